"""A real gRPC client and a real gRPC server speak through the gate as they do without it, in every kind of call.

`h2` is agreed with the client and passed through unread: unary calls, streams each way and both ways at once, messages
larger than a window, trailers and a status that is not OK.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import ONE_WORKER, Proxy
from certificates import REFUSED, Authority, CredentialFiles

pytest.importorskip("grpc")
PEER = [sys.executable, str(Path(__file__).parents[1] / "grpc_peer.py")]
EVERYTHING = {
    "unary": [True, str(1 << 20)],
    "server streaming": True,
    "client streaming": True,
    "both ways": ["ONE", "TWO", "THREE"],
    "status": ["FAILED_PRECONDITION", "not today"],
}


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """The URL of a gRPC server, in clear, as a backend is."""
    with subprocess.Popen([*PEER, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
        process.communicate(timeout=20)


@pytest.fixture(scope="module")
def module_proxy(site: dict[str, Any], service: str) -> Iterator[Proxy]:
    with Proxy({**ONE_WORKER, "sites": [{**site, "alpn": ["h2"], "upstream": service}]}) as proxy:
        yield proxy


def call(proxy: Proxy, ca: Path, shown: CredentialFiles | None) -> dict[str, Any]:
    """What a client says of its calls."""
    own = [str(shown.certificate), str(shown.private_key)] if shown else []
    command = [*PEER, "call", f"127.0.0.1:{proxy.port}", str(ca), *own]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_every_kind_of_call(module_proxy: Proxy, server_ca: Path, client_credentials: CredentialFiles) -> None:
    """All come out as they went in, over one connection."""
    module_proxy.forget()
    assert EVERYTHING == call(module_proxy, server_ca, client_credentials)
    record = module_proxy.wait_for("connection", verdict="accepted")
    assert record["bytes_from_client"] > 4 << 20
    assert 1 == len(module_proxy.connection_records())


@pytest.mark.parametrize("who", ["nobody", "expired"])
def test_who_is_refused_learns_why(
    module_proxy: Proxy, server_ca: Path, authority: Authority, tmp_path: Path, who: str
) -> None:
    """The first call fails, and its details say what the page would, with the reference that stands in the log."""
    module_proxy.forget()
    shown = None if who == "nobody" else REFUSED[who](authority).write(tmp_path, who)
    said = call(module_proxy, server_ca, shown)
    sentence = "No required SSL certificate was sent" if who == "nobody" else "The SSL certificate error"
    assert "UNAVAILABLE" == said["error"]
    told = re.search(f"400 {sentence} ([0-9a-f]{{8}})", said["details"])
    assert told is not None, said
    assert "refused" == module_proxy.wait_for("connection", reference=told[1])["verdict"]  # it tries more than once
