"""deploy/in-front-of-nginx, whole: an NGINX that holds port 443 and is not touched; a stranger and an edge on hosts of their own."""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors import PATIENCE, Answer, Proxy, ask, ask_plainly, client_context, require_peer, running
from certificates import Authority, CredentialFiles
from hosts import Host, connect, hosts

FILES = Path(__file__).parents[2] / "deploy/in-front-of-nginx"
NGINX = """
daemon off;
user root;
pid nginx.pid;
error_log stderr;
events {{ }}
http {{
    log_format visitor '$remote_addr $server_port $ssl_server_name $uri';
    access_log access.log visitor;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    server {{
        listen 80;
        listen [::]:80;
        listen 443 ssl;
        listen [::]:443 ssl;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_certificate {certificate};
        ssl_certificate_key {private_key};
        location / {{ return 200 "nginx's word"; }}
    }}
}}
"""
TO_EDGE, EDGE = ("192.0.2.1", "2001:db8:1::1"), ("192.0.2.2", "2001:db8:1::2")
TO_STRANGER, STRANGER = ("198.51.100.1", "2001:db8:2::1"), ("198.51.100.2", "2001:db8:2::2")
FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])


def request(path: str) -> bytes:
    return f"GET /{path} HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n".encode()


@dataclass(frozen=True)
class World:
    """The three hosts, and what the origin runs."""

    origin: Host
    stranger: Host
    edge: Host
    proxy: Proxy
    nginx_log: Path
    credentials: CredentialFiles
    server_ca: Path

    def strangers_answer(self, family: int, path: str, credentials: CredentialFiles | None = None) -> Answer:
        """Whoever it is that answers on the origin's port 443."""
        address, context = (TO_STRANGER[family], 443), client_context(credentials)
        return self.stranger.call(ask, address, context, request(path), server_name="example.com")

    def edges_answer(self, family: int, path: str) -> Answer:
        """With the right certificate, to whoever can prove to be the origin."""
        address, context = (TO_EDGE[family], 443), client_context(self.credentials, ca=self.server_ca)
        return self.edge.call(ask, address, context, request(path), server_name="example.com")

    def seen_by_nginx(self, path: str) -> list[str]:
        """The lines that it has logged about a path."""
        return [line for line in self.nginx_log.read_text().splitlines() if line.endswith(f" /{path}")]


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    authority: Authority,
    server_authority: Authority,
    client_credentials: CredentialFiles,
    server_ca: Path,
) -> Iterator[World]:
    """NGINX serves everybody; the proxy runs, and nobody comes its way yet."""
    nginx = require_peer("nginx")
    directory = tmp_path_factory.mktemp("nginx")
    own = server_authority.issue_server("example.com").write(directory, "nginx")
    (directory / "nginx.conf").write_text(NGINX.format(**vars(own)))
    configuration: dict[str, Any] = yaml.safe_load((FILES / "proxy.yaml").read_text())
    with hosts("origin", "stranger", "edge") as (origin, stranger, edge), contextlib.ExitStack() as stack:
        for other, device, near, far in ((stranger, "s", TO_STRANGER, STRANGER), (edge, "e", TO_EDGE, EDGE)):
            connect(origin, other, device, near[0], far[0])
            for host, address in ((origin, near[1]), (other, far[1])):
                host.run("ip", "-6", "address", "add", f"{address}/64", "dev", device, "nodad")
        command = [*origin.launcher, nginx, "-p", str(directory), "-c", "nginx.conf", "-e", "stderr"]
        process = stack.enter_context(running(command))
        proxy = Proxy({**configuration, "workers": 1}, launcher=origin.launcher)
        beside = proxy.config_path.parent
        server_authority.issue_server("example.com").write(beside, "origin")
        server_authority.write(beside / "nginx-ca.pem")
        (beside / "zone").mkdir()
        authority.write(beside / "zone/ca.pem")
        stack.enter_context(proxy)
        made = World(origin, stranger, edge, proxy, directory / "access.log", client_credentials, server_ca)
        _wait_for_nginx(made, process)
        yield made


def _wait_for_nginx(world: World, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            assert world.strangers_answer(0, "ready").status == 200
            return
    raise AssertionError("NGINX does not serve")


@pytest.fixture(scope="module")
def gated(world: World) -> World:
    """After what the README says to run, twice: it may be repeated. Before, every stranger is served."""
    for family in (0, 1):
        assert world.strangers_answer(family, "before").body == "nginx's word"
    for _ in range(2):
        world.origin.run(str(FILES / "gate.nft"))
        world.origin.run(str(FILES / "routes"))
    return world


@FAMILIES
def test_a_stranger_reads_our_page(gated: World, family: int) -> None:
    """On NGINX's own address and port; NGINX has seen nothing of it."""
    answer = gated.strangers_answer(family, "stranger")
    assert "<title>400 No required SSL certificate was sent</title>" in answer.body
    (reference,) = re.findall("<center>([0-9a-f]{8})</center>", answer.body)
    record = gated.proxy.wait_for("connection", reason="no_certificate", reference=reference)
    assert STRANGER[family] in record["client"]
    assert gated.seen_by_nginx("stranger") == []


@FAMILIES
def test_the_edge_is_served_and_known_by_its_address(gated: World, family: int) -> None:
    """NGINX answers, over TLS that is verified on both sides, and logs the edge's own address."""
    path = f"edge-{family}"
    assert gated.edges_answer(family, path).body == "nginx's word"
    assert gated.seen_by_nginx(path) == [f"{EDGE[family]} 443 example.com /{path}"]
    # The upstream of the other version of IP is passed over in silence: it has not failed.
    assert gated.proxy.events("upstream_not_dialled") == []


@FAMILIES
def test_somebody_elses_certificate_opens_nothing(gated: World, family: int, tmp_path: Path) -> None:
    other = Authority("Someone Else's CA").issue("edge.example").write(tmp_path, "other")
    answer = gated.strangers_answer(family, "other", other)
    assert "<title>400 The SSL certificate error</title>" in answer.body
    assert gated.seen_by_nginx("other") == []


@FAMILIES
def test_nginx_has_no_other_way_in(gated: World, family: int) -> None:
    """Its port in clear is dropped, for the edge too."""
    with pytest.raises(TimeoutError):
        gated.edge.call(ask_plainly, (TO_EDGE[family], 80), request("clear"), timeout=0.5)
    assert gated.seen_by_nginx("clear") == []


@FAMILIES
def test_without_the_redirection_the_port_is_closed(gated: World, family: int) -> None:
    """Whatever becomes of the redirection, nobody reaches NGINX from outside."""
    gated.origin.run("nft", "flush", "chain", "inet", "aop_proxy_gate", "redirected")
    try:
        with pytest.raises(TimeoutError):
            gated.stranger.call(ask_plainly, (TO_STRANGER[family], 443), request("closed"), timeout=0.5)
    finally:
        gated.origin.run(str(FILES / "gate.nft"))
    assert gated.edges_answer(family, f"again-{family}").status == 200


def test_the_units_take_the_drop_ins(tmp_path: Path) -> None:
    """`systemd-analyze` has nothing against them, and they name the script, the ports and the privilege."""
    systemd = FILES.parent / "systemd"
    for unit, drop_in in (("aop-proxy.service", "service.conf"), ("aop-proxy.socket", "socket.conf")):
        text = (systemd / unit).read_text().replace("/opt/aop-proxy/bin/aop-proxy", require_peer("true"))
        (tmp_path / unit).write_text(text)
        (tmp_path / f"{unit}.d").mkdir()
        text = (FILES / drop_in).read_text().replace("/etc/aop-proxy/routes", str(FILES / "routes"))
        (tmp_path / f"{unit}.d" / drop_in).write_text(text)
    verify = [require_peer("systemd-analyze"), "verify", "--man=no", str(tmp_path / "aop-proxy.service")]
    verified = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    listens = re.findall(r"^ListenStream=(.+)$", (FILES / "socket.conf").read_text(), re.MULTILINE)
    assert listens == yaml.safe_load((FILES / "proxy.yaml").read_text())["listen"]
    assert "redirect to :8443" in (FILES / "gate.nft").read_text()


def test_check_advises_what_the_script_does(gated: World) -> None:
    """Every command that it names for this configuration stands in `routes`, and it has no other remark."""
    command = [
        *gated.origin.launcher,
        sys.executable,
        "-m",
        "aop_proxy",
        "check",
        "--config",
        str(gated.proxy.config_path),
    ]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert checked.returncode == 0, checked.stdout
    advised = re.findall(
        r"^advice: .*\.transparent: needs this once on this machine: (.*)$", checked.stdout, re.MULTILINE
    )
    script = (FILES / "routes").read_text().splitlines()
    assert sorted(advised) == sorted(line for line in script if re.match(r"ip( -6)? \w+ add ", line))
