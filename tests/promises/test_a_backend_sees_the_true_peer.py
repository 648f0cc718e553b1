"""`transparent: true`: an NGINX that knows nothing of a proxy logs the client's own address, IPv4 and IPv6."""

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors import (
    GET_AND_CLOSE,
    ONE_WORKER,
    PATIENCE,
    Proxy,
    TlsClient,
    client_context,
    require_peer,
    run_command,
    running,
)
from aop_proxy.proxy_protocol import Header, encode_v2
from certificates import CredentialFiles
from namespaces import Namespace, join, namespace

NGINX = """
daemon off;
error_log stderr;
pid nginx.pid;
events {{ }}
http {{
    log_format peer "$remote_addr";
    access_log access.log peer;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        {listen}
        return 200 "$remote_addr";
    }}
}}
"""
CLIENTS = ("198.51.100.{}/24", "2001:db8:1::{}/64")
BACKENDS = ("192.0.2.{}/24", "2001:db8:2::{}/64")
EDGE = {4: "198.51.100.2", 6: "2001:db8:1::2"}
"""The client, as it is."""
VISITOR = {4: "203.0.113.7", 6: "2001:db8:9::7"}
"""Whom a PROXY header names."""
GATE = {4: ("198.51.100.1", 443), 6: ("2001:db8:1::1", 443)}

Site = dict[str, Any]


@contextlib.contextmanager
def nginx(space: Namespace, directory: Path, *addresses: str) -> Iterator[None]:
    """One that listens on port 8000 of these addresses."""
    listen = "".join(f"listen {address}:8000;" for address in addresses)
    (directory / "nginx.conf").write_text(NGINX.format(listen=listen))
    command = [*space.launcher, require_peer("nginx"), "-p", str(directory), "-c", "nginx.conf", "-e", "stderr"]
    with running([*command, "-g", "user root;"]) as process:
        deadline = time.monotonic() + PATIENCE
        for address in addresses:
            while True:
                with contextlib.suppress(OSError):
                    space.call(socket.create_connection, (address.strip("[]"), 8000), PATIENCE).close()
                    break
                assert process.poll() is None
                assert time.monotonic() < deadline
        yield


def set_up_routes(config: dict[str, Any], directory: Path, space: Namespace) -> None:
    """Do what `check` says, to the letter."""
    (directory / "check.yaml").write_text(yaml.safe_dump(config))
    checked = run_command("check", "--config", directory / "check.yaml")
    assert checked.exit_code == 0, checked.stdout
    commands = re.findall(
        r"^advice: sites\[\d\]\.upstream\[0\]\.transparent: needs this .*?: (.*)$", checked.stdout, re.MULTILINE
    )
    assert {command.split()[0] for command in commands} <= {"ip", "nft"}
    space.run(*commands)


def ask(clients: Namespace, gate: int, site: int, credentials: CredentialFiles, header: bytes = b"") -> bytes:
    """What the backend of `site` says, asked over version `gate` of IP; the status where it is not 200."""

    def connect() -> TlsClient:
        return TlsClient(GATE[gate], client_context(credentials), server_name=f"v{site}.example")

    with clients.call(connect) as connection:
        connection.sock.sendall(header)
        connection.handshake(with_data=GET_AND_CLOSE)
        answer = connection.receive_all()
    return answer.body.encode() if answer.status == 200 else str(answer.status).encode()


@pytest.fixture
def spaces() -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    """Clients, the proxy, and a machine of backends whose way to the clients is through the proxy."""
    with namespace() as clients, namespace() as gate, namespace() as backends:
        join(gate, clients, *CLIENTS)
        join(gate, backends, *BACKENDS)
        backends.run("ip route add default via 192.0.2.1", "ip -6 route add default via 2001:db8:2::1")
        yield clients, gate, backends


def sites_of(site: Site, host: str, other_host: str) -> list[Site]:
    """One for each version of IP: the client's must be the backend's."""
    urls = {"v4.example": f"http://{host}:8000", "v6.example": f"http://{other_host}:8000"}
    return [{**site, "hosts": [name], "upstream": [{"url": url, "transparent": True}]} for name, url in urls.items()]


@pytest.mark.parametrize("place", ["this machine", "another machine"])
def test_the_true_peer(
    site: Site,
    client_credentials: CredentialFiles,
    tmp_path: Path,
    spaces: tuple[Namespace, Namespace, Namespace],
    place: str,
) -> None:
    """On this machine or another, with the routes that `check` prints, as a user that keeps one capability alone."""
    clients, gate, backends = spaces
    addresses = ("127.0.0.1", "[::1]") if place == "this machine" else ("192.0.2.2", "[2001:db8:2::2]")
    config = {
        **ONE_WORKER,
        "listen": ["198.51.100.1:443", "[2001:db8:1::1]:443"],
        "user": "nobody",
        "sites": sites_of(site, *addresses),
    }
    set_up_routes(config, tmp_path, gate)
    with nginx(gate if place == "this machine" else backends, tmp_path, *addresses):
        with Proxy(config, launcher=gate.launcher) as proxy:
            status = Path(f"/proc/{proxy.worker_pids[0]}/status").read_text()
            assert {"0000000000001000"} == set(re.findall(r"Cap(?:Eff|Prm):\s(\w+)", status))
            for version in (4, 6):
                assert EDGE[version].encode() == ask(clients, version, version, client_credentials)
            assert b"502" in ask(clients, 4, 6, client_credentials)
            assert "same version of IP" in proxy.wait_for("upstream_not_dialled")["why"]
            assert [] == proxy.events("upstream_down")
        assert list(EDGE.values()) == [
            line for line in (tmp_path / "access.log").read_text().splitlines() if line in EDGE.values()
        ]


def test_whom_a_listed_proxy_names(
    site: Site, client_credentials: CredentialFiles, tmp_path: Path, spaces: tuple[Namespace, Namespace, Namespace]
) -> None:
    """The address in its PROXY header is the one that the backend sees, whichever version the header came over."""
    clients, gate, _ = spaces
    listed = {"address": "198.51.100.1:443", "proxy_protocol_from": ["198.51.100.0/24"]}
    config = {**ONE_WORKER, "listen": [listed], "sites": sites_of(site, "127.0.0.1", "[::1]")}
    set_up_routes(config, tmp_path, gate)
    with nginx(gate, tmp_path, "127.0.0.1", "[::1]"), Proxy(config, launcher=gate.launcher):
        for version, visitor in VISITOR.items():
            header = encode_v2(Header((visitor, 4711), GATE[version]))
            assert visitor.encode() == ask(clients, 4, version, client_credentials, header)


@pytest.mark.parametrize("command", ["check", "run"])
def test_without_the_privilege(site: Site, tmp_path: Path, command: str) -> None:
    """It is refused by the key's path, before anything is served."""
    bounded = (require_peer("setpriv"), "--bounding-set", "-net_admin,-net_raw") if os.getuid() == 0 else ()
    upstream = {"url": "http://127.0.0.1:8000", "transparent": True}
    config = {"listen": ["127.0.0.1:0"], "workers": 1, "sites": [{**site, "upstream": [upstream]}]}
    (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(config))
    done = run_command(command, "--config", tmp_path / "proxy.yaml", launcher=bounded)
    assert done.exit_code == 2
    assert "sites[0].upstream[0].transparent: needs the capability CAP_NET_ADMIN" in done.stdout + done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user")
def test_a_reload_cannot_bring_the_privilege_back(site: Site) -> None:
    """Workers gave it up when they started, since nothing asked for it: the old configuration serves on."""
    with Proxy({**ONE_WORKER, "user": "nobody", "sites": [site]}) as proxy:
        wanted = {"url": site["upstream"], "transparent": True}
        proxy.write_config({**ONE_WORKER, "user": "nobody", "sites": [{**site, "upstream": [wanted]}]})
        proxy.signal(signal.SIGHUP)
        (problem,) = proxy.wait_for("reload_failed")["problems"]
    assert problem.startswith("sites[0].upstream[0].transparent: needs the capability CAP_NET_ADMIN")
