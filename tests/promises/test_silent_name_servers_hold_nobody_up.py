"""A name server that does not answer costs the connect deadline, once: not the resolver's patience, for each client."""

import contextlib
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from actors import HELLO, ONE_WORKER, Answer, Proxy, RecordingBackend, ask, client_context, reply
from certificates import CredentialFiles
from namespaces import namespace

NAME_SERVER = ("127.0.0.1", 53)
RESOLVERS_PATIENCE = 20_000
"""Milliseconds: two attempts of ten seconds, as the file below says."""


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a process another resolv.conf")
def test_the_next_backend_is_served_from(site: dict[str, Any], client_credentials: CredentialFiles) -> None:
    """In a network whose name server takes questions and says nothing."""
    context = client_context(client_credentials)
    with namespace() as space:
        configuration = Path("/etc/netns", space.name)
        configuration.mkdir(parents=True)
        try:
            (configuration / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:10 attempts:2\n")
            with space.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as name_server:
                name_server.bind(NAME_SERVER)  # it is in that network, and never reads
                with space.call(RecordingBackend, reply()) as backend:
                    upstream = ["http://silent.example:80", backend.url]
                    config = {**ONE_WORKER, "timeouts": {"connect": "500ms"}, "sites": [{**site, "upstream": upstream}]}
                    with Proxy(config, launcher=space.launcher) as proxy:

                        def visit() -> Answer:
                            return ask(proxy.address, context)

                        assert [HELLO] * 3 == [space.call(visit).data for _ in range(3)]
                        durations = [proxy.wait_for("connection", count=number)["duration_ms"] for number in (1, 2, 3)]
                        assert 500 <= durations[0]
                        assert max(durations) < RESOLVERS_PATIENCE / 2
                        down = proxy.wait_for("upstream_down")
                        assert ("silent.example", "no answer in time") == (down["address"], down["why"])
                        assert 1 == len(proxy.events("upstream_down"))
        finally:
            shutil.rmtree(configuration)
            with contextlib.suppress(OSError):  # of others, or still needed
                configuration.parent.rmdir()
