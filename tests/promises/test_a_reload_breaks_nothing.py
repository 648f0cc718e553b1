"""Reloads as fast as they complete, under load: nobody is refused, nobody cut, and who was there before lives on."""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from actors import GET, HELLO, ONE_WORKER, PATIENCE, Proxy, RecordingBackend, TlsClient, client_context, echo
from aop_proxy.model import Timeouts
from aop_proxy.workers import ExitCode
from certificates import CredentialFiles
from load import Load

RELOADS = 100
Config = dict[str, Any]


@pytest.fixture
def websocket_backend() -> Iterator[str]:
    """A WebSocket server that sends back what it gets."""

    def send_back(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message)

    with serve(send_back, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        host, port = server.socket.getsockname()
        yield f"http://{host}:{port}"
        server.shutdown()
        thread.join(PATIENCE)


@contextlib.contextmanager
def websocket(proxy: Proxy, credentials: CredentialFiles) -> Iterator[ClientConnection]:
    sock = socket.create_connection(proxy.address, PATIENCE)
    context = client_context(credentials)
    with connect("wss://socket.example/", sock=sock, ssl=context, open_timeout=PATIENCE) as connected:
        yield connected


def test_100_reloads_under_load(
    site: Config, backend: RecordingBackend, websocket_backend: str, client_credentials: CredentialFiles
) -> None:
    """A WebSocket and a raw connection that were opened before are asked after each of them, and answer."""
    with RecordingBackend(echo) as raw_backend:
        upstreams = {"localhost": backend.url, "raw.example": raw_backend.url, "socket.example": websocket_backend}
        sites = [{**site, "hosts": [host], "upstream": url} for host, url in upstreams.items()]
        with (
            Proxy({**ONE_WORKER, "workers": 2, "sites": sites}) as proxy,
            TlsClient(proxy.address, client_context(client_credentials), server_name="raw.example") as raw,
            websocket(proxy, client_credentials) as talk,
        ):
            raw.handshake()
            with Load(proxy.address, client_credentials, threads=2) as load:
                for number in range(1, RELOADS + 1):
                    proxy.signal(signal.SIGHUP)
                    proxy.wait_for("reloaded", count=number)
                    raw.send(b"%5d" % number)
                    talk.send(str(number))
                    assert raw.receive_exactly(5) == b"%5d" % number
                    assert talk.recv(PATIENCE) == str(number)
                load.wait_for(4)
            assert proxy.events("reload_failed") == []
            records = proxy.connection_records()
            assert {record["verdict"] for record in records} == {"accepted"}
            assert max(record["generation"] for record in records) == RELOADS + 1
            assert [one.ended for one in raw_backend.connections] == [None]


def test_100_idle_connections_hold_no_restart(
    site: Config, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """Kept between two requests, as an edge keeps them: each is told a clean end at once, and it exits 0."""
    context = client_context(client_credentials)
    with Proxy({**ONE_WORKER, "workers": 2, "sites": [site]}) as proxy, contextlib.ExitStack() as stack:
        kept = [stack.enter_context(TlsClient(proxy.address, context)) for _ in range(100)]
        for client in kept:
            client.handshake(with_data=GET)
            assert client.receive_exactly(len(HELLO)) == HELLO
        started = time.monotonic()
        proxy.terminate()
        for client in kept:
            assert client.receive_all().ending == "close_notify"
            client.sock.close()
        assert proxy.exit_code == ExitCode.DRAINED
        assert time.monotonic() - started < Timeouts().drain / 2
        proxy.wait_for("drained", connections_cut=0)
        assert len(proxy.events("connection", reason="drained")) == 100
