"""Backends over TLS: always verified, found by the client's name, and never mistaken for having ended when they were cut."""

import contextlib
import hashlib
import os
import signal
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from websockets.asyncio.client import connect as connect_websocket

import backends
from actors import (
    GET_AND_CLOSE,
    ONE_WORKER,
    PATIENCE,
    Answer,
    Proxy,
    RecordingBackend,
    TlsClient,
    ask,
    client_context,
    free_port,
    never_answer,
    require_peer,
    run_command,
    running,
    wait_for_port,
)
from applications import blocks, summary
from certificates import DAY, Authority, CredentialFiles
from duplex import DuplexClient
from tls_backend import TlsBackend, backend_context, tls_backend

HUNDRED_MEGABYTES = 100_000_000
NGINX = """
daemon off;
error_log stderr;
pid nginx.pid;
events {{ }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {servers}
}}
"""
SERVER = """
    server {{
        listen 127.0.0.1:{port} ssl {options};
        server_name {name};
        ssl_certificate {name}.pem;
        ssl_certificate_key {name}.key;
        {body}
    }}
"""

Site = dict[str, Any]


@dataclass
class Ca:
    """The CA of the backends, and where its files are."""

    authority: Authority
    directory: Path

    @property
    def pem(self) -> str:
        return str(self.authority.write(self.directory / "ca.pem"))

    def issue(self, *names: str, **options: Any) -> CredentialFiles:
        return self.authority.issue_server(*names, **options).write(self.directory, names[0])


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return Ca(Authority("Backend CA"), tmp_path_factory.mktemp("nginx"))


@contextlib.contextmanager
def nginx(ca: Ca, servers: Sequence[str], port: int) -> Iterator[None]:
    """NGINX with these servers, in the directory of the certificates."""
    (ca.directory / "nginx.conf").write_text(NGINX.format(servers="".join(servers)))
    user = ("-g", "user root;") if os.getuid() == 0 else ()
    command = [require_peer("nginx"), "-p", str(ca.directory), "-c", "nginx.conf", "-e", "stderr", *user]
    with running(command) as process:
        wait_for_port(port, process)
        yield


@contextlib.contextmanager
def in_front_of(site: Site, upstream: object, **settings: Any) -> Iterator[Proxy]:
    with Proxy({**ONE_WORKER, **settings, "sites": [{**site, "upstream": upstream}]}) as proxy:
        yield proxy


@pytest.fixture
def visit(client_credentials: CredentialFiles) -> Callable[..., Answer]:
    """One request, under a name."""
    context = client_context(client_credentials)

    def visit(proxy: Proxy, name: str | None = "localhost") -> Answer:
        request = GET_AND_CLOSE.replace(b"localhost", (name or "localhost").encode())
        return ask(proxy.address, context, request, server_name=name)

    return visit


Visit = Callable[..., Answer]


# Who is found


def test_requests_of_one_name_share_a_connection(site: Site, ca: Ca, client_credentials: CredentialFiles) -> None:
    """Where requests are read it is kept, session tickets and all; another name's requests never travel on it."""
    port = free_port()
    ca.issue("a.example", "b.example")
    body = 'return 200 "$ssl_server_name $connection_requests";'
    servers = [SERVER.format(port=port, name="a.example", options="", body=body)]
    upstream = {"url": f"https://127.0.0.1:{port}", "ca": ca.pem}
    context = client_context(client_credentials)
    seen = []
    with nginx(ca, servers, port), in_front_of({**site, "mode": "http"}, upstream) as proxy:
        for name in ("a.example", "a.example", "b.example", "a.example"):
            request = f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode()
            seen.append(ask(proxy.address, context, request, server_name=name).body)
    assert seen == ["a.example 1", "a.example 2", "b.example 1", "a.example 3"]


def test_the_clients_name_finds_the_right_virtual_host(site: Site, ca: Ca, visit: Visit) -> None:
    """Each of many hosts behind one port is reached by its own name; one that NGINX has no certificate for is 502."""
    names = [f"host-{number}.example" for number in range(12)]
    port = free_port()
    for name in ("default.example", *names):
        ca.authority.issue(name, purposes=(), names=[name]).write(ca.directory, name)
    servers = [
        SERVER.format(port=port, name=name, options="", body=f'return 200 "{name}";')
        for name in ("default.example", *names)
    ]
    with nginx(ca, servers, port), in_front_of(site, {"url": f"https://127.0.0.1:{port}", "ca": ca.pem}) as proxy:
        assert names == [visit(proxy, name).body for name in names]
        assert 502 == visit(proxy, "other.example").status
        told = proxy.wait_for("upstream_tls_failed")
    assert ("other.example", "warning") == (told["server_name"], told["level"])
    assert "Hostname mismatch" in told["why"]


def test_a_configured_name_comes_first(site: Site, ca: Ca, visit: Visit) -> None:
    """Whatever the client asked for; and where it asked for nothing and nothing is configured the URL's host is meant."""
    port = free_port()
    for name in ("inner.example", "by-address.example"):
        ca.issue(name)
    servers = [
        SERVER.format(
            port=port, name="by-address.example", options="default_server", body='return 200 "[$ssl_server_name]";'
        ),
        SERVER.format(port=port, name="inner.example", options="", body='return 200 "[$ssl_server_name]";'),
    ]
    url = {"url": f"https://127.0.0.1:{port}", "ca": ca.pem}
    with nginx(ca, servers, port):
        with in_front_of(site, {**url, "server_name": "inner.example"}) as proxy:
            assert ["[inner.example]"] * 2 == [visit(proxy, name).body for name in ("any.example", None)]
        with in_front_of(site, url) as proxy:
            assert ["[]", "[inner.example]"] == [visit(proxy, name).body for name in (None, "inner.example")]


# What passes


def test_a_hundred_megabytes_each_way(site: Site, ca: Ca, client_credentials: CredentialFiles, tmp_path: Path) -> None:
    """Both ways at once, by digest, to a backend that sends back what comes, with TLS 1.2 and with 1.3."""
    credentials = ca.issue("localhost")
    with ThreadPoolExecutor() as threads:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            with (
                tls_backend(backend_context(credentials, version=version)) as backend,
                in_front_of(site, {"url": backend.url, "ca": ca.pem}) as proxy,
                DuplexClient(proxy.address, client_context(client_credentials)) as client,
            ):
                serving = threads.submit(_echo, backend)
                client.handshake()
                digest, left = hashlib.sha256(), HUNDRED_MEGABYTES
                answers = client.exchange(blocks(HUNDRED_MEGABYTES))
                while left:
                    piece = next(answers)
                    digest.update(piece)
                    left -= len(piece)
                client.sock.setblocking(True)
                client.close_notify()
                assert serving.result(PATIENCE) == summary(blocks(HUNDRED_MEGABYTES))
                assert digest.hexdigest().encode() in summary(blocks(HUNDRED_MEGABYTES))


def _echo(backend: TlsBackend) -> bytes:
    with backend.accept() as accepted:
        accepted.sock.settimeout(None)

        def echo() -> Iterator[bytes]:
            while data := accepted.receive():
                accepted.send(data)
                yield data

        digest = summary(echo())
        accepted.close_notify()
        return digest


async def test_websocket(
    site: Site, ca: Ca, client_credentials: CredentialFiles, server_ca: Path, tmp_path: Path
) -> None:
    """Through a backend's TLS as well: an echo of words and of a megabyte, and the closing handshake."""
    port = free_port()
    ca.issue("ws.example")
    with backends.websockets_server(tmp_path, unix=False) as behind:
        body = (
            f"location / {{ proxy_pass http://{behind.address}; proxy_http_version 1.1;"
            " proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }"
        )
        servers = [SERVER.format(port=port, name="ws.example", options="", body=body)]
        upstream = {"url": f"https://127.0.0.1:{port}", "ca": ca.pem, "server_name": "ws.example"}
        with nginx(ca, servers, port), in_front_of(site, upstream) as proxy:
            context = client_context(client_credentials)
            uri = "wss://{}:{}/ws".format(*proxy.address)
            async with connect_websocket(uri, ssl=context, max_size=None, proxy=None) as websocket:
                for message in ("hello", "x" * 1_000_000):
                    await websocket.send(message)
                    assert message == await websocket.recv()
        assert "closed" == proxy.connection_record()["reason"]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_proxy_header_goes_before_the_handshake(site: Site, ca: Ca, visit: Visit, version: str) -> None:
    """NGINX reads it there, as from HAProxy."""
    port = free_port()
    ca.issue("told.example")
    body = 'return 200 "$proxy_protocol_addr";'
    servers = [SERVER.format(port=port, name="told.example", options="proxy_protocol", body=body)]
    upstream = {"url": f"https://127.0.0.1:{port}", "ca": ca.pem, "proxy_protocol": version}
    with nginx(ca, servers, port), in_front_of(site, upstream) as proxy:
        assert "127.0.0.1" == visit(proxy, "told.example").body


def test_a_certificate_of_ours_is_shown(
    site: Site, ca: Ca, visit: Visit, authority: Authority, client_ca: Path
) -> None:
    """NGINX that demands one lets us in with it, and says its own 400 without."""
    port = free_port()
    ca.issue("strict.example")
    ours = authority.issue("proxy.example").write(ca.directory, "ours")
    body = f'ssl_client_certificate {client_ca}; ssl_verify_client on; return 200 "$ssl_client_s_dn";'
    servers = [SERVER.format(port=port, name="strict.example", options="", body=body)]
    upstream = {"url": f"https://127.0.0.1:{port}", "ca": ca.pem, "server_name": "strict.example"}
    shown = {"certificate": str(ours.certificate), "private_key": str(ours.private_key)}
    with nginx(ca, servers, port):
        with in_front_of(site, {**upstream, **shown}) as proxy:
            assert "CN=proxy.example" == visit(proxy).body
        with in_front_of(site, upstream) as proxy:
            assert "No required SSL certificate was sent" in visit(proxy).body


def test_a_backend_that_gives_us_up_late_is_told(site: Site, ca: Ca, visit: Visit, client_ca: Path) -> None:
    """In TLS 1.3 its alert comes when our handshake is over: the client is cut, and the log has the alert."""
    context = backend_context(ca.issue("localhost"), version=ssl.TLSVersion.TLSv1_3, client_ca=client_ca)
    with tls_backend(context) as backend, in_front_of(site, {"url": backend.url, "ca": ca.pem}) as proxy:
        with ThreadPoolExecutor(1) as thread:
            refusing = thread.submit(_refuse, backend)
            assert visit(proxy).ending in ("reset", "fin")
            refusing.result(PATIENCE)
        assert "upstream_reset" == proxy.connection_record()["reason"]
        assert "certificate required" in proxy.wait_for("upstream_tls_failed")["why"]


def _refuse(backend: TlsBackend) -> None:
    with backend.accept(handshake=False) as accepted:
        with pytest.raises(ssl.SSLError):
            accepted.handshake()
        accepted._flush()
        accepted._tcp_end()


def test_a_backend_may_renew_its_keys(site: Site, ca: Ca, client_credentials: CredentialFiles) -> None:
    """Whether it asks us to do the same or not, what both say then still arrives."""
    port, credentials = free_port(), ca.issue("localhost")
    command = [
        require_peer("openssl"), "s_server", "-accept", str(port), "-tls1_3", "-naccept", "1",
        "-cert", str(credentials.certificate), "-key", str(credentials.private_key),
    ]  # fmt: skip
    upstream = {"url": f"https://127.0.0.1:{port}", "ca": ca.pem}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as backend:
        assert backend.stdin is not None
        assert backend.stdout is not None
        patience = threading.Timer(3 * PATIENCE, backend.kill)  # then its lines end
        patience.start()
        _wait_for(backend.stdout, "ACCEPT")
        with (
            in_front_of(site, upstream) as proxy,
            TlsClient(proxy.address, client_context(client_credentials)) as client,
        ):
            client.handshake(with_data=b"first\n")
            _wait_for(backend.stdout, "first")
            for letter in "kKkK":
                backend.stdin.write(f"{letter}\n")
                backend.stdin.flush()
                client.send(b"ping\n")  # which it reads behind the letter
                _wait_for(backend.stdout, "ping")
                backend.stdin.write("said\n")
                backend.stdin.flush()
                assert b"said\n" == client.receive_exactly(5)
                client.send(b"heard\n")
                _wait_for(backend.stdout, "heard")
        patience.cancel()
        backend.kill()


def _wait_for(lines: Iterable[str], word: str) -> None:
    assert any(word in line for line in lines), f"{word} was not said"


# Who is refused


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        ("other CA", "unable to get local issuer certificate"),
        ("other name", "Hostname mismatch"),
        ("expired", "certificate has expired"),
        ("plain", "wrong version number"),
    ],
)
def test_a_backend_that_does_not_prove_itself_gets_no_byte(
    site: Site, ca: Ca, visit: Visit, tmp_path: Path, flaw: str, words: str
) -> None:
    """The client reads the 502, the log says why, and not one byte of the request has left."""
    issuer = Authority("Other CA") if flaw == "other CA" else ca.authority
    name = "other.example" if flaw == "other name" else "a.example"
    validity = (-2 * DAY, -DAY) if flaw == "expired" else (-DAY, DAY)
    credentials = issuer.issue(name, purposes=(), names=[name], validity=validity).write(tmp_path, "backend")
    context = backend_context(credentials)
    with tls_backend(context) as backend, in_front_of(site, {"url": backend.url, "ca": ca.pem}) as proxy:
        with ThreadPoolExecutor(1) as thread:
            serving = thread.submit(_meet_badly, backend, plain=flaw == "plain")
            answer = visit(proxy, "a.example")
            assert (502, "close_notify") == (answer.status, answer.ending)
            heard = serving.result(PATIENCE)
        assert b"GET" not in heard
        record = proxy.connection_record()
        assert ("failed", "upstream_unreachable") == (record["verdict"], record["reason"])
        told = proxy.wait_for("upstream_tls_failed")
        assert words in told["why"]
        assert backend.url == told["upstream"]


def _meet_badly(backend: TlsBackend, *, plain: bool) -> bytes:
    """What a backend hears in clear, or in TLS, of who does not trust it."""
    with backend.accept(handshake=False) as accepted:
        if plain:
            heard = accepted.sock.recv(100_000)
            accepted.sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            return heard
        try:
            accepted.handshake()
            return accepted.receive()
        except (ssl.SSLError, ConnectionResetError):
            with contextlib.suppress(OSError):
                accepted._flush()
            return b""


def test_a_handshake_that_hangs_is_given_up(site: Site, ca: Ca, visit: Visit) -> None:
    """At the connect deadline, and the next backend of the list is served from."""
    with (
        RecordingBackend(never_answer) as silent,
        RecordingBackend() as good,
        in_front_of(
            site, {"url": silent.url.replace("http", "https"), "ca": ca.pem}, timeouts={"connect": "1s"}
        ) as proxy,
    ):
        assert 502 == visit(proxy).status
        assert "upstream_timeout" == proxy.connection_record()["reason"]
        upstream = [{"url": silent.url.replace("http", "https"), "ca": ca.pem}, good.url]
        proxy.write_config({**ONE_WORKER, "timeouts": {"connect": "1s"}, "sites": [{**site, "upstream": upstream}]})
        proxy.signal(signal.SIGHUP)
        proxy.wait_for("reloaded")
        assert b"backend's word" in visit(proxy).data
        assert b"GET" not in silent.received


def test_the_log_is_kept_small(site: Site, ca: Ca, visit: Visit, tmp_path: Path) -> None:
    """Clients decide how often a bad backend is dialled: it is told of once, not once for each."""
    credentials = Authority("Other CA").issue_server("localhost").write(tmp_path, "backend")
    with (
        tls_backend(backend_context(credentials)) as backend,
        ThreadPoolExecutor(1) as thread,
        in_front_of(site, {"url": backend.url, "ca": ca.pem}) as proxy,
    ):
        for _ in range(5):
            serving = thread.submit(_meet_badly, backend, plain=False)
            assert 502 == visit(proxy).status
            serving.result(PATIENCE)
        proxy.wait_for("connection", count=5)
        assert 1 == len(proxy.events("upstream_tls_failed"))


# Ends


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda version: version.name)
@pytest.mark.parametrize("end", ["close_notify", "half_close", "reset"])
def test_an_end_passes_as_what_it_was(
    site: Site, ca: Ca, client_credentials: CredentialFiles, version: ssl.TLSVersion, end: str
) -> None:
    """A backend's close_notify is its end; a FIN without one, and a reset, are a cut for the client too."""
    context = backend_context(ca.issue("localhost"), version=version)
    with tls_backend(context) as backend, in_front_of(site, {"url": backend.url, "ca": ca.pem}) as proxy:
        with ThreadPoolExecutor(1) as thread, TlsClient(proxy.address, client_context(client_credentials)) as client:
            accepting = thread.submit(backend.accept)
            client.handshake(with_data=GET_AND_CLOSE)
            with accepting.result(PATIENCE) as accepted:
                assert GET_AND_CLOSE == accepted.receive_exactly(len(GET_AND_CLOSE))
                accepted.send(b"half an answer")
                assert b"half an answer" == client.receive_exactly(14)
                getattr(accepted, end)()
                if end == "close_notify":
                    accepted.half_close()
                ending = client.receive_all().ending
                if end == "close_notify":
                    assert "close_notify" == ending
                    client.close_notify()
                    assert "close_notify" == accepted.receive_all().ending
                else:
                    assert ending in ("fin", "reset")
        assert ("closed" if end == "close_notify" else "upstream_reset") == proxy.connection_record()["reason"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda version: version.name)
@pytest.mark.parametrize("end", ["close_notify", "half_close", "reset"])
def test_the_clients_end_passes_too(
    site: Site, ca: Ca, client_credentials: CredentialFiles, version: ssl.TLSVersion, end: str
) -> None:
    """As close_notify and FIN, with the answer still to come; a client's reset is one for the backend."""
    context = backend_context(ca.issue("localhost"), version=version)
    with (
        tls_backend(context) as backend,
        in_front_of(site, {"url": backend.url, "ca": ca.pem}) as proxy,
        ThreadPoolExecutor(1) as thread,
        TlsClient(proxy.address, client_context(client_credentials)) as client,
    ):
        accepting = thread.submit(backend.accept)
        client.handshake(with_data=b"question")
        with accepting.result(PATIENCE) as accepted:
            assert b"question" == accepted.receive_exactly(8)
            getattr(client, end)()
            answer = accepted.receive_all()
            if end == "reset":
                assert "reset" == answer.ending
                return
            assert (b"", "close_notify", "fin") == (answer.data, answer.ending, answer.tcp_end)
            accepted.send(b"answer")
            accepted.close_notify()
            assert b"answer" == client.receive_all().data


# Where trust comes from


def test_system_roots_and_reload(
    site: Site, ca: Ca, visit: Visit, tmp_path: Path, server_credentials: CredentialFiles
) -> None:
    """Without `ca` the machine's CAs are trusted; a reload reads them anew."""
    roots = tmp_path / "roots.pem"
    roots.write_bytes(b"# Some CA\n" + Authority("Some CA").pem)
    config = {**ONE_WORKER, "sites": [site]}
    with tls_backend(backend_context(ca.issue("localhost"))) as backend, ThreadPoolExecutor(1) as thread:
        config["sites"] = [{**site, "upstream": backend.url}]
        with Proxy(config, env={"SSL_CERT_FILE": str(roots)}) as proxy:
            serving = thread.submit(_meet_badly, backend, plain=False)
            assert 502 == visit(proxy).status
            serving.result(PATIENCE)
            roots.write_bytes(roots.read_bytes() + "# Bäckend\n".encode() + ca.authority.pem)
            proxy.signal(signal.SIGHUP)
            proxy.wait_for("reloaded")
            serving = thread.submit(_meet_badly, backend, plain=False)
            visit(proxy)
            assert serving.result(PATIENCE) == GET_AND_CLOSE


@pytest.mark.parametrize(
    ("upstream", "problem"),
    [
        ({"ca": "missing.pem"}, "sites[0].upstream[0].ca: "),
        (
            {"certificate": "SERVER", "private_key": "KEY"},
            "sites[0].upstream[0].certificate: this is a server certificate",
        ),
        (
            {"certificate": "CLIENT", "private_key": "KEY"},
            "sites[0].upstream[0].private_key: this private key does not",
        ),
    ],
)
def test_bad_files_are_named(
    site: Site, client_credentials: CredentialFiles, tmp_path: Path, upstream: dict[str, str], problem: str
) -> None:
    """By the path of their key."""
    named = {"SERVER": site["certificate"], "KEY": site["private_key"], "CLIENT": str(client_credentials.certificate)}
    entry = {key: named.get(value, value) for key, value in upstream.items()}
    config = {"listen": ["127.0.0.1:0"], "sites": [{**site, "upstream": {"url": "https://127.0.0.1:1", **entry}}]}
    (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(config))
    checked = run_command("check", "--config", tmp_path / "proxy.yaml")
    assert (2, True) == (checked.exit_code, checked.stdout.startswith(problem))
