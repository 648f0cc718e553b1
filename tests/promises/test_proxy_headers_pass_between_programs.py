"""HAProxy and NGINX stand before the gate and behind it, and everybody knows who the client is.

Before: HAProxy writes version 1 and 2, NGINX (a stream server) version 1. Behind: both read all that we write. The
headers themselves are held to both programs by `test_proxy_protocol`.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import (
    GET_AND_CLOSE,
    HELLO,
    ONE_WORKER,
    Proxy,
    RecordingBackend,
    TlsClient,
    client_context,
    free_port,
    missing_peer,
    require_peer,
    running,
    wait_for_port,
)
from certificates import CredentialFiles

Address = tuple[str, int]
TIMES = "timeout connect 10s\n timeout client 10s\n timeout server 10s\n"


@contextlib.contextmanager
def haproxy(directory: Path, section: str) -> Iterator[Address]:
    """HAProxy with one listener, `{port}` in its section; its address."""
    port = free_port()
    (directory / "haproxy.cfg").write_text(f"defaults\n {TIMES}{section.format(port=port)}\n")
    with running([require_peer("haproxy"), "-db", "-f", directory / "haproxy.cfg"]) as process:
        wait_for_port(port, process)
        yield "127.0.0.1", port


@contextlib.contextmanager
def nginx(directory: Path, block: str, modules: str = "") -> Iterator[Address]:
    """NGINX with one listener, `PORT` in its block; its address."""
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    top = f"{modules} daemon off; error_log stderr; pid nginx.pid; {user} events {{ }}\n"
    (directory / "nginx.conf").write_text(top + block.replace("PORT", str(port)))
    with running([require_peer("nginx"), "-p", directory, "-c", "nginx.conf", "-e", "stderr"]) as process:
        wait_for_port(port, process)
        yield "127.0.0.1", port


def stream_module() -> str:
    """The line that loads NGINX's stream module, where it is not built in."""
    built = subprocess.run([require_peer("nginx"), "-V"], capture_output=True, text=True, check=True, timeout=10).stderr
    module = Path(built.partition("--modules-path=")[2].partition(" ")[0]) / "ngx_stream_module.so"
    if "--with-stream=dynamic" in built and not module.exists():
        missing_peer("NGINX's stream module (libnginx-mod-stream)")
    return f"load_module {module};" if module.exists() else ""


@contextlib.contextmanager
def before(program: str, directory: Path, proxy: Proxy) -> Iterator[Address]:
    """The program that forwards to us with a header."""
    target = f"127.0.0.1:{proxy.port}"
    if program == "nginx":
        server = f"listen 127.0.0.1:PORT; proxy_pass {target}; proxy_protocol on;"
        started = nginx(directory, f"stream {{ server {{ {server} }} }}", stream_module())
    else:
        started = haproxy(directory, f"listen tls\n mode tcp\n bind 127.0.0.1:{{port}}\n server us {target} {program}")
    with started as address:
        yield address


@contextlib.contextmanager
def behind(program: str, directory: Path) -> Iterator[Address]:
    """The program that reads our header and answers with the client's address and port."""
    if program == "nginx":
        paths = "".join(f"{name}_temp_path {name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        server = "listen 127.0.0.1:PORT proxy_protocol; client_header_buffer_size 8k;"
        words = "$proxy_protocol_addr $proxy_protocol_port"
        block = f'http {{ access_log off; {paths} server {{ {server} return 200 "{words}"; }} }}'
        started = nginx(directory, block)
    else:
        answer = 'http-request return status 200 content-type text/plain lf-string "%[src] %[src_port]"'
        started = haproxy(directory, f"frontend http\n mode http\n bind 127.0.0.1:{{port}} accept-proxy\n {answer}")
    with started as address:
        yield address


@pytest.fixture
def listed(site: dict[str, Any], backend: RecordingBackend) -> Iterator[Proxy]:
    """A proxy behind programs of this machine."""
    assert [] == backend.connections
    listen = {"address": "127.0.0.1:0", "proxy_protocol_from": ["127.0.0.0/8"]}
    with Proxy({**ONE_WORKER, "listen": [listen], "sites": [site]}) as proxy:
        yield proxy


@pytest.mark.parametrize("program", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl", "nginx"])
def test_behind_another_program(
    listed: Proxy, client_credentials: CredentialFiles, tmp_path: Path, program: str
) -> None:
    """The log names the client and not the program; strangers read their page through it, and the good are served."""
    with before(program, tmp_path, listed) as address:
        for credentials, word in ((client_credentials, HELLO), (None, b"No required SSL certificate was sent")):
            with TlsClient(address, client_context(credentials)) as client:
                client.handshake(with_data=GET_AND_CLOSE)
                assert word in client.receive_all().data
                own = f"127.0.0.1:{client.port}"
            verdict = listed.wait_for("connection", client=own)["verdict"]
            assert ("accepted" if credentials else "refused") == verdict


@pytest.mark.parametrize("version", ["v1", "v2", "v2-tls"])
@pytest.mark.parametrize("program", ["haproxy", "nginx"])
def test_before_another_program(
    site: dict[str, Any], client_credentials: CredentialFiles, tmp_path: Path, program: str, version: str
) -> None:
    """It reads who the client is from each version, a client's certificate along with it or not."""
    with behind(program, tmp_path) as (host, port):
        upstream = {"url": f"http://{host}:{port}", "proxy_protocol": version}
        with (
            Proxy({**ONE_WORKER, "sites": [{**site, "upstream": upstream}]}) as proxy,
            TlsClient(proxy.address, client_context(client_credentials)) as client,
        ):
            client.handshake(with_data=GET_AND_CLOSE)
            answer = client.receive_all()
            assert (200, f"127.0.0.1 {client.port}") == (answer.status, answer.body)


def test_between_two(site: dict[str, Any], client_credentials: CredentialFiles, tmp_path: Path) -> None:
    """HAProxy before, NGINX behind: what the one says of the client the other hears."""
    for name in ("before", "behind"):
        (tmp_path / name).mkdir()
    with behind("nginx", tmp_path / "behind") as (host, port):
        listen = {"address": "127.0.0.1:0", "proxy_protocol_from": ["127.0.0.1"]}
        upstream = {"url": f"http://{host}:{port}", "proxy_protocol": "v2"}
        with (
            Proxy({**ONE_WORKER, "listen": [listen], "sites": [{**site, "upstream": upstream}]}) as proxy,
            before("send-proxy-v2", tmp_path / "before", proxy) as address,
            TlsClient(address, client_context(client_credentials)) as client,
        ):
            client.handshake(with_data=GET_AND_CLOSE)
            assert f"127.0.0.1 {client.port}" == client.receive_all().body
