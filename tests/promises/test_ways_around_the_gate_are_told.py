"""`check` and the log at the start tell of ways around the gate: open ports, and what the shared CA does not prove.

Ports are opened in a network namespace of their own, where the world consists of nobody.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from actors import ONE_WORKER, Proxy, run_command
from certificates import CredentialFiles

PORT = 8000
OPEN_AND_RUN = """
import os, socket, sys
for port in map(int, sys.argv[1].split(",")):
    listener = socket.create_server(("0.0.0.0", port))
    os.set_inheritable(listener.fileno(), True)
    listener.detach()
os.execv(sys.argv[2], sys.argv[2:])
"""


def in_a_world_with(*ports: int) -> Sequence[str]:
    """What runs another program in a new network namespace where these ports are open."""
    unshare = ["unshare", "--net", "--map-root-user"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("network namespaces cannot be made here")
    return [*unshare, sys.executable, "-c", OPEN_AND_RUN, ",".join(map(str, ports))]


@pytest.fixture
def config(server_credentials: CredentialFiles, client_ca: Path) -> dict[str, Any]:
    site = {
        "certificate": str(server_credentials.certificate),
        "private_key": str(server_credentials.private_key),
        "clients": {"ca": [str(client_ca)]},
        "upstream": f"http://127.0.0.1:{PORT}",
    }
    return {**ONE_WORKER, "listen": ["0.0.0.0:0"], "sites": [site]}


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ([PORT], [f"sites[0].upstream: port {PORT} is open on 0.0.0.0 too"]),
        ([PORT + 1, 80], ["sites: something listens on port 80 of 0.0.0.0"]),
        ([PORT + 1], []),
    ],
)
def test_they_are_told(config: dict[str, Any], ports: list[int], expected: list[str]) -> None:
    """The backend's port, or port 80, on every address; another port is nobody's business. It stops nothing."""
    world = in_a_world_with(*ports)
    with Proxy(config, launcher=world) as proxy:
        started = [event["advice"] for event in proxy.events("advice", level="warning")]
        checked = run_command("check", "--config", proxy.config_path, launcher=world)
    assert 0 == checked.exit_code
    for told in (started, [line.removeprefix("advice: ") for line in checked.stdout.splitlines()]):
        assert expected == [one[: len(start)] for one, start in zip(told, expected, strict=True)]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ["sites[0].clients.ca: Cloudflare's shared CA proves only that a visitor came through Cloudflare"]),
        ({"hosts": ["example.com"]}, []),
        ({"hosts": ["example.com"], "clients": {"names": ["*.cloudflare.com"]}}, ["sites[0].clients: all Cloudflare"]),
    ],
    ids=["any name", "hosts", "a rule on the shared certificate"],
)
def test_what_the_shared_ca_does_not_prove(site: dict[str, Any], changed: dict[str, Any], expected: list[str]) -> None:
    """Where nothing but Cloudflare's own CA is asked for, `check` and the start say what that leaves open."""
    lax = {key: value for key, value in site.items() if key != "clients"}
    with Proxy({**ONE_WORKER, "sites": [{**lax, **changed}]}) as proxy:
        started = [event["advice"] for event in proxy.events("advice", level="warning")]
        checked = run_command("check", "--config", proxy.config_path)
    assert 0 == checked.exit_code
    for told in (started, [line.removeprefix("advice: ") for line in checked.stdout.splitlines()]):
        assert expected == [one[: len(start)] for one, start in zip(told, expected, strict=True)]
