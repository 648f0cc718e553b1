"""A reader that stops reading stops its sender; the proxy's memory stays where it was, and no byte is lost.

In both modes: what passes is one request and one response of 1 GiB each.
"""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from resource import getpagesize
from ssl import SSLSocket
from typing import Any

import pytest

from actors import ONE_WORKER, PATIENCE, Proxy, client_context
from applications import blocks, summary
from backends import ScriptedBackend, scripted
from certificates import CredentialFiles

GIGABYTE = 1 << 30
MEBIBYTE = 1 << 20
REQUEST = b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % GIGABYTE
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GIGABYTE


@pytest.fixture(scope="module")
def module_backend() -> Iterator[ScriptedBackend]:
    with scripted() as backend:
        yield backend


@pytest.fixture(scope="module", params=["relay", "http"])
def module_proxy(request: pytest.FixtureRequest, site: dict[str, Any]) -> Iterator[Proxy]:
    with Proxy({**ONE_WORKER, "sites": [{**site, "mode": request.param}]}) as proxy:
        yield proxy


def read_head(sock: socket.socket) -> None:
    """Read one head, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)


@pytest.fixture
def connect(proxy: Proxy, client_credentials: CredentialFiles) -> Iterator[Callable[[], SSLSocket]]:
    """Makes clients that have sent the head of their request, closed at the end."""
    context = client_context(client_credentials)
    with ExitStack() as stack:

        def connect() -> SSLSocket:
            connection = stack.enter_context(socket.create_connection(proxy.address, PATIENCE))
            client = stack.enter_context(context.wrap_socket(connection, suppress_ragged_eofs=False))
            client.sendall(REQUEST)
            return client

        yield connect


@pytest.fixture
def pair(connect: Callable[[], SSLSocket], backend: ScriptedBackend) -> Iterator[tuple[SSLSocket, socket.socket]]:
    """A client and the backend's end of its connection, each with only the other's body to come."""
    client = connect()
    with backend.accept() as connection:
        read_head(connection)
        connection.sendall(RESPONSE)
        read_head(client)
        yield client, connection


class Sender:
    """A stream of 1 GiB on its way into a socket, plain or TLS, that can stop where the socket takes no more."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sent = 0
        self._blocks = blocks(GIGABYTE)
        self._unsent = memoryview(next(self._blocks))

    def send(self, patience: float) -> bool:
        """Send on; whether all has been sent before the socket took nothing for so many seconds."""
        self.sock.settimeout(patience)
        try:
            while self._unsent:
                count = self.sock.send(self._unsent)
                self.sent += count
                self._unsent = self._unsent[count:] or memoryview(next(self._blocks, b""))
        except TimeoutError:
            return False
        return True


def received(sock: socket.socket, size: int = GIGABYTE) -> Iterator[bytes]:
    """So many bytes, piece by piece."""
    while size and (piece := sock.recv(min(size, 1 << 18))):
        yield piece
        size -= len(piece)


def resident(proxy: Proxy) -> int:
    """Bytes of memory that the parent and its workers hold."""
    processes = [proxy.pid, *proxy.worker_pids]
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in processes) * getpagesize()


def assert_stalls_and_resumes(proxy: Proxy, source: socket.socket, sink: socket.socket) -> None:
    """The source is stopped within what the kernel buffers, at no cost in memory; then all arrives."""
    before, sender = resident(proxy), Sender(source)
    assert not sender.send(patience=0.5)
    assert sender.sent < GIGABYTE // 4
    assert resident(proxy) - before < 8 * MEBIBYTE
    with ThreadPoolExecutor() as threads:
        sending = threads.submit(sender.send, PATIENCE)
        assert summary(received(sink)) == summary(blocks(GIGABYTE))
        assert sending.result()
    assert resident(proxy) - before < 8 * MEBIBYTE


def test_client_that_does_not_read(proxy: Proxy, pair: tuple[SSLSocket, socket.socket]) -> None:
    """With 1 GiB behind it a client that reads nothing stops the backend; when it reads again it gets every byte."""
    client, connection = pair
    assert_stalls_and_resumes(proxy, source=connection, sink=client)


def test_backend_that_does_not_read(proxy: Proxy, pair: tuple[SSLSocket, socket.socket]) -> None:
    """A backend that reads nothing stops the client's upload of 1 GiB; when it reads again it gets every byte."""
    client, connection = pair
    assert_stalls_and_resumes(proxy, source=client, sink=connection)


def test_others_are_served_meanwhile(
    pair: tuple[SSLSocket, socket.socket], connect: Callable[[], SSLSocket], backend: ScriptedBackend
) -> None:
    """While one connection is stalled both ways, another through the same worker is served."""
    client, connection = pair
    assert not Sender(connection).send(patience=0.5)
    assert not Sender(client).send(patience=0.5)
    other = connect()
    with backend.accept() as other_connection:
        read_head(other_connection)
        other_connection.sendall(RESPONSE + b"go")
        read_head(other)
        assert other.recv(2) == b"go"
