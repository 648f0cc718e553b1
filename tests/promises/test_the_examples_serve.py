"""Every example in deploy/examples serves as it stands: its unit's command, its settings, its proxy configuration.

What is replaced: the program's path by the installed one, the backend's address by a free one, and the proxy's ports.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors import Proxy, TlsClient, ask, client_context, free_port, require_peer, run_command
from backends import started
from certificates import Authority, CredentialFiles

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "deploy/examples"
README = (EXAMPLES / "README.md").read_text()
NAMES = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())
EDGE_KEEPS = 900
"""Seconds for which Cloudflare's edge reuses an idle connection."""
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: example.com\r\nX-Forwarded-For: 198.51.100.1, 203.0.113.7\r\n"
    b"X-Forwarded-Proto: https\r\nCF-Connecting-IP: 203.0.113.7\r\n\r\n"
)
"""As the edge sends it for a visitor who claims another address."""


@dataclass(frozen=True)
class Example:
    """A copy of an example, with addresses of its own."""

    name: str
    directory: Path
    address: str
    """Of the backend: `HOST:PORT`, or the path of its unix socket."""

    @property
    def configuration(self) -> dict[str, Any]:
        configuration: dict[str, Any] = yaml.safe_load((self.directory / "proxy.yaml").read_text())
        return configuration

    def command(self) -> list[str]:
        """The unit's `ExecStart`, with the program that is installed here."""
        (line,) = re.findall(r"^ExecStart=(.*)$", (self.directory / "app.service").read_text(), re.MULTILINE)
        return _installed(line)

    def child(self) -> list[str]:
        """COMMAND of `exec`, in the words of the table."""
        name = re.escape(self.name)
        (line,) = re.findall(rf"^\| {name} \| `aop-proxy exec --config proxy.yaml -- (.*)` \|$", README, re.MULTILINE)
        return _installed(line)


@pytest.fixture(scope="module", params=NAMES)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    directory = tmp_path_factory.mktemp(request.param)
    on_unix = "unix:" in (EXAMPLES / request.param / "proxy.yaml").read_text()
    port = free_port()
    socket_path = str(directory / "app.sock")
    replaced = {
        "/run/app/app.sock": socket_path,
        "127.0.0.1:8000": f"127.0.0.1:{port}",
        "--port 8000": f"--port {port}",
    }
    for file in (EXAMPLES / request.param).iterdir():
        text = file.read_text()
        for old, new in replaced.items():
            text = text.replace(old, new)
        (directory / file.name).write_text(text)
    return Example(request.param, directory, socket_path if on_unix else f"127.0.0.1:{port}")


@pytest.fixture(scope="module", params=["systemd", "exec"])
def behind(
    request: pytest.FixtureRequest, example: Example, authority: Authority, server_authority: Authority
) -> Iterator[Proxy]:
    """The example's proxy, with its backend running behind it: a service of its own, or a child."""
    configuration = {**example.configuration, "listen": ["127.0.0.1:0"], "workers": 1}
    with contextlib.ExitStack() as stack:
        if request.param == "systemd":
            stack.enter_context(started(example.directory, example.address, *example.command()))
            proxy = Proxy(configuration)
        else:
            del configuration["sites"][0]["upstream"]
            path = os.pathsep.join([str(ROOT), str(example.directory)])
            proxy = Proxy(configuration, backend=example.child(), env={"PYTHONPATH": path})
            stack.enter_context(contextlib.chdir(example.directory))
        _write_files(proxy.config_path.parent, authority, server_authority)
        yield stack.enter_context(proxy)


def _installed(line: str) -> list[str]:
    """A command line with the program that is installed here."""
    program, *arguments = shlex.split(line)
    return [sys.executable, "-m", Path(program).name.removesuffix("-serve"), *arguments]


def _write_files(directory: Path, authority: Authority, server_authority: Authority) -> None:
    """The files that an example's configuration names, beside it."""
    server_authority.issue_server("example.com").write(directory, "origin")
    (directory / "zone").mkdir()
    authority.write(directory / "zone/ca.pem")


def test_an_example_for_each_that_is_promised() -> None:
    assert NAMES == ["django", "flask", "gunicorn", "uvicorn"]
    table = re.findall(r"^\| \[(\w+)\]", README, re.MULTILINE)
    assert sorted(table) == NAMES


def test_check_has_nothing_against_it(example: Example, authority: Authority, server_authority: Authority) -> None:
    """The configuration as it stands, with the files it names beside it."""
    _write_files(example.directory, authority, server_authority)
    checked = run_command("check", "--config", example.directory / "proxy.yaml")
    assert (checked.exit_code, checked.stdout, checked.stderr) == (0, "", "")


def test_a_stranger_gets_400(behind: Proxy) -> None:
    assert ask(behind.address, client_context(), REQUEST, server_name="example.com").status == 400
    assert behind.connection_record(reason="no_certificate")["bytes_from_client"] == 0


def test_the_edge_is_served_again_and_again(behind: Proxy, client_credentials: CredentialFiles) -> None:
    """Over one connection; the backend knows scheme and address as the edge told them, not as the visitor claims."""
    with TlsClient(behind.address, client_context(client_credentials), server_name="example.com") as client:
        client.handshake()
        for _ in range(2):
            client.send(REQUEST)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.receive_exactly(1)
            assert head.startswith(b"HTTP/1.1 200 "), head
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            assert length, head
            body = client.receive_exactly(int(length[1]))
            assert json.loads(body) == {"scheme": "https", "address": "203.0.113.7"}


def test_the_backend_keeps_connections_longer_than_the_edge(example: Example) -> None:
    """Whichever of its settings says so: its unit, its configuration, the command of `exec`."""
    settings = "".join(file.read_text() for file in example.directory.iterdir() if file.suffix in (".service", ".py"))
    seconds = re.findall(r"(?:keepalive = |keep-alive |channel-timeout=)(\d+)", settings + " ".join(example.child()))
    assert seconds
    assert min(map(int, seconds)) > EDGE_KEEPS


def test_the_unit_is_understood(example: Example) -> None:
    """`systemd-analyze` has nothing against it but that the program is not there."""
    unit = example.directory / "app.service"
    verify = [require_peer("systemd-analyze"), "verify", "--man=no", str(unit)]
    said = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=30).stderr.splitlines()
    assert [line for line in said if "app.service" in line and "is not executable" not in line] == []
