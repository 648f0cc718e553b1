"""What one side sends is what the other side receives, whatever the sizes, the pieces and the timing."""

import random
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ssl import SSLContext

import pytest

from actors import Proxy, client_context
from applications import blocks, summary
from backends import ScriptedBackend, scripted
from certificates import CredentialFiles
from duplex import DuplexClient

GIGABYTE = 1 << 30
BORDERS = [480, 16384, 32768, 65536, 131072, 262144, 349524, 524288, 1048576]
SIZES = [1, 2, *(size + offset for size in BORDERS for offset in (-1, 0, 1)), 5_000_000]


@pytest.fixture(scope="module")
def module_backend() -> Iterator[ScriptedBackend]:
    with scripted() as backend:
        yield backend


@pytest.fixture(scope="module")
def context(client_credentials: CredentialFiles) -> SSLContext:
    return client_context(client_credentials)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """What the backend does meanwhile."""
    with ThreadPoolExecutor() as executor:
        yield executor


@pytest.fixture
def client(proxy: Proxy, context: SSLContext) -> Iterator[DuplexClient]:
    """A client that has shaken hands."""
    with DuplexClient(proxy.address, context) as client:
        client.handshake()
        yield client


def rest(sock: socket.socket, portion: Callable[[], int] = lambda: 1 << 18) -> Iterator[bytes]:
    """All that comes, to the end."""
    return iter(lambda: sock.recv(portion()), b"")


def chopped(data: bytes, chop: Callable[[], int]) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        yield data[position : (position := position + chop())]


def assert_same(received: bytes, sent: bytes) -> None:
    """Compare without a megabyte of explanation."""
    assert summary([received]) == summary([sent])


def test_gigabyte_down(client: DuplexClient, backend: ScriptedBackend, threads: ThreadPoolExecutor) -> None:
    """A download of 1 GiB has the SHA-256 it should have."""

    def serve() -> None:
        with backend.accept() as connection:
            assert connection.recv(2) == b"go"
            for block in blocks(GIGABYTE):
                connection.sendall(block)

    serving = threads.submit(serve)
    client.send(b"go")
    assert summary(iter(client.receive, b"")) == summary(blocks(GIGABYTE))
    serving.result()


def test_gigabyte_up(client: DuplexClient, backend: ScriptedBackend, threads: ThreadPoolExecutor) -> None:
    """An upload of 1 GiB has the SHA-256 it should have."""

    def serve() -> None:
        with backend.accept() as connection:
            connection.sendall(summary(rest(connection)))

    serving = threads.submit(serve)
    for block in blocks(GIGABYTE):
        client.send(block)
    client.close_notify()
    assert client.receive_all().data == summary(blocks(GIGABYTE))
    serving.result()


@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_borders(
    client: DuplexClient, backend: ScriptedBackend, threads: ThreadPoolExecutor, size: int
) -> None:
    """One write of any size arrives whole, with nothing after it, and so does the same the other way."""

    def serve() -> None:
        with backend.accept() as connection:
            connection.sendall(b"".join(rest(connection)))

    data = random.Random(size).randbytes(size)
    serving = threads.submit(serve)
    client.send(data)
    client.close_notify()
    answer = client.receive_all()
    assert answer.ending == "close_notify"
    assert_same(answer.data, data)
    serving.result()


@pytest.mark.parametrize("size", [1, 12_000, 16_384, 20_000, 1_000_000])
def test_bytes_right_behind_the_handshake(
    proxy: Proxy, context: SSLContext, backend: ScriptedBackend, threads: ThreadPoolExecutor, size: int
) -> None:
    """What leaves in one segment with the client's Finished arrives whole, however much it is."""
    data = random.Random(size).randbytes(size)
    with DuplexClient(proxy.address, context) as client:
        shaking = threads.submit(client.handshake, with_data=data)
        with backend.accept() as connection:
            received = b""
            while len(received) < size and (piece := connection.recv(1 << 18)):
                received += piece
            shaking.result()
    assert_same(received, data)


def test_nothing_is_nothing(client: DuplexClient, backend: ScriptedBackend) -> None:
    """A backend that closes without a word leaves its client with an end and no byte."""
    client.send(b"?")
    with backend.accept() as connection:
        assert connection.recv(1) == b"?"
    answer = client.receive_all()
    assert (answer.data, answer.ending) == (b"", "close_notify")


@pytest.mark.parametrize("largest", [20, 2_000, 40_000, 600_000])
@pytest.mark.parametrize("window", [1 << 16, 1 << 20])
def test_pieces_of_any_size_both_ways_at_once(
    client: DuplexClient, backend: ScriptedBackend, threads: ThreadPoolExecutor, largest: int, window: int
) -> None:
    """Two streams at once, cut at random where they are written and where they are read, come out as they went in."""
    chance = random.Random(largest)
    size = min(largest * 500, 10_000_000)
    up, down = chance.randbytes(size), chance.randbytes(size)

    def chop() -> int:
        return chance.randint(1, largest)

    def send(connection: socket.socket) -> None:
        for piece in chopped(down, chop):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)

    def serve() -> bytes:
        with backend.accept() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sending = threads.submit(send, connection)
            received = b"".join(rest(connection, chop))
            sending.result()
            return received

    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    serving = threads.submit(serve)
    assert_same(b"".join(client.exchange(chopped(up, chop), portion=chop)), down)
    client.close_notify()
    assert_same(serving.result(), up)


def test_connections_at_once_do_not_mix(
    proxy: Proxy, backend: ScriptedBackend, context: SSLContext, threads: ThreadPoolExecutor
) -> None:
    """Sixteen connections through one worker, each with a stream of its own both ways, get their own bytes only."""
    connections, size = 16, 1_000_000

    def echo() -> None:
        with backend.accept() as connection:
            for piece in rest(connection):
                connection.sendall(piece)

    def ask(number: int) -> bool:
        chance = random.Random(number)
        data = chance.randbytes(size)
        with DuplexClient(proxy.address, context) as client:
            client.handshake()
            answers = client.exchange(chopped(data, lambda: chance.randint(1, 30_000)))
            received = b""
            while len(received) < size:
                received += next(answers)
            return received == data

    with ThreadPoolExecutor(2 * connections) as both_ends:
        echoing = [both_ends.submit(echo) for _ in range(connections)]
        assert all(both_ends.map(ask, range(connections)))
        for task in echoing:
            task.result()
