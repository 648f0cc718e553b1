"""The PROXY protocol: believed from listed networks alone, where it is compulsory; written for backends that want it."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from actors import GET_AND_CLOSE, HELLO, ONE_WORKER, Proxy, RecordingBackend, TlsClient, client_context
from aop_proxy.proxy_protocol import Complete, Header, encode_v1, encode_v2, parse
from certificates import CredentialFiles

SOURCE, DESTINATION = ("203.0.113.7", 4711), ("192.0.2.1", 443)
HEADER = Header(SOURCE, DESTINATION)


@pytest.fixture
def listed(site: dict[str, Any]) -> Iterator[Proxy]:
    """A proxy behind proxies of this machine."""
    listen = {"address": "127.0.0.1:0", "proxy_protocol_from": ["127.0.0.0/8"]}
    with Proxy({**ONE_WORKER, "listen": [listen], "sites": [site]}) as proxy:
        yield proxy


def ask(proxy: Proxy, header: bytes, credentials: CredentialFiles | None) -> bytes:
    with TlsClient(proxy.address, client_context(credentials)) as client:
        client.sock.sendall(header)
        client.handshake(with_data=GET_AND_CLOSE)
        return client.receive_all().data


@pytest.mark.parametrize("header", [encode_v1(HEADER), encode_v2(HEADER), encode_v2(HEADER, checksum=True)])
def test_the_header_names_the_client(listed: Proxy, client_credentials: CredentialFiles, header: bytes) -> None:
    """The address in the header is the client's in the log, and the request passes."""
    assert HELLO in ask(listed, header, client_credentials)
    assert "203.0.113.7:4711" == listed.wait_for("connection")["client"]


def test_a_stranger_behind_a_proxy_reads_the_page(listed: Proxy, backend: RecordingBackend) -> None:
    """A header opens nothing."""
    assert b"No required SSL certificate was sent" in ask(listed, encode_v2(HEADER), None)
    assert [] == backend.connections


@pytest.mark.parametrize(
    "start",
    [
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 99999\r\n",
        b"PROXY " + b"x" * 200,
        b"\r\n\r\n\0\r\nQUIT\n\xff" + bytes(20),
        b"GET / ",
    ],
)
def test_what_is_no_header_is_refused(listed: Proxy, backend: RecordingBackend, start: bytes) -> None:
    """From a listed network the header is compulsory, and must be right."""
    with socket.create_connection(listed.address, 10) as end:
        end.sendall(start)
        with contextlib.suppress(ConnectionResetError):  # it was closed with bytes unread
            assert b"" == end.recv(1000)
    assert "proxy_header_invalid" == listed.wait_for("connection")["reason"]
    assert [] == backend.connections


@pytest.mark.parametrize(
    ("said", "then", "reason", "level"),
    [
        (b"", "silence", "client_silent", "debug"),
        (b"", "end", "client_silent", "debug"),
        (b"PROXY TCP4 1.2.3.4", "silence", "handshake_timeout", "info"),
        (b"PROXY TCP4 1.2.3.4", "end", "proxy_header_invalid", "info"),
    ],
)
def test_headers_that_do_not_come(
    site: dict[str, Any], backend: RecordingBackend, said: bytes, then: str, reason: str, level: str
) -> None:
    """The handshake's deadline is the header's too; a balancer that only looks whether we are there makes no noise."""
    listen = {"address": "127.0.0.1:0", "proxy_protocol_from": ["127.0.0.0/8"]}
    log = {"format": "json", "level": "debug"}
    config = {"workers": 1, "log": log, "listen": [listen], "timeouts": {"handshake": "300ms"}, "sites": [site]}
    with Proxy(config) as proxy, socket.create_connection(proxy.address, 10) as end:
        end.sendall(said)
        if then == "end":
            end.shutdown(socket.SHUT_WR)
        assert b"" == end.recv(1000)
        record = proxy.wait_for("connection")
        assert [reason, level] == [record["reason"], record["level"]]
        assert [] == backend.connections


@pytest.mark.parametrize("header", [encode_v1(HEADER), encode_v2(HEADER)])
def test_a_header_from_elsewhere_is_refused(proxy: Proxy, backend: RecordingBackend, header: bytes) -> None:
    """Where no network is listed nobody is believed."""
    proxy.forget()
    with socket.create_connection(proxy.address, 10) as end:
        end.sendall(header)
        with contextlib.suppress(ConnectionResetError):
            assert b"" == end.recv(1000)
    assert "proxy_header_invalid" == proxy.wait_for("connection")["reason"]
    assert [] == backend.connections


@pytest.mark.parametrize("version", ["v1", "v2", "v2-tls"])
def test_the_backend_is_told_who_came(
    site: dict[str, Any], backend: RecordingBackend, client_credentials: CredentialFiles, version: str
) -> None:
    """The header is the first thing the backend reads, once, with the client's address, and its certificate if asked."""
    upstream = {"url": site["upstream"], "proxy_protocol": version}
    with Proxy({**ONE_WORKER, "sites": [{**site, "upstream": upstream}]}) as proxy:
        with TlsClient(proxy.address, client_context(client_credentials)) as client:
            own = client.sock.getsockname()
            client.handshake(with_data=GET_AND_CLOSE)
            assert HELLO in client.receive_all().data
        record = proxy.wait_for("connection")
    received = bytes(backend.connections[0].received)
    outcome = parse(received)
    assert isinstance(outcome, Complete)
    assert (own, proxy.address) == (outcome.header.source, outcome.header.destination)
    assert GET_AND_CLOSE == received[outcome.size :]
    assert len(GET_AND_CLOSE) == record["bytes_from_client"]
    if version == "v2-tls":
        tls = outcome.header.tls
        assert tls is not None
        assert (0, "TLSv1.3", "edge.example") == (tls.verify, tls.version, tls.common_name)
        assert tls.certificate
        assert "localhost" == outcome.header.authority


def test_the_header_is_passed_on(
    site: dict[str, Any], backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """Whom the proxy before us named, the backend hears of."""
    listen = {"address": "127.0.0.1:0", "proxy_protocol_from": ["127.0.0.1"]}
    upstream = {"url": site["upstream"], "proxy_protocol": "v1"}
    with Proxy({**ONE_WORKER, "listen": [listen], "sites": [{**site, "upstream": upstream}]}) as proxy:
        assert HELLO in ask(proxy, encode_v2(HEADER), client_credentials)
    assert bytes(backend.connections[0].received).startswith(encode_v1(HEADER))
