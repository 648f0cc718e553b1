"""A socket that one coroutine waits for, on both event loops and both ways to watch."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from actors import PATIENCE, reset
from aop_proxy.endpoint import Endpoint
from aop_proxy.poller import Poller
from in_process import POLLERS, LoopThread, tcp_pair, watching

SOON = 0.1
"""Seconds in which something that must not happen would have happened."""


class Line:
    """An endpoint on a loop, and its peer."""

    def __init__(self, loop: LoopThread, poller: Poller) -> None:
        self.loop = loop
        self.poller = poller
        ours, self.peer = tcp_pair(16384, 16384)
        self.endpoint = loop.call(lambda: Endpoint(ours, poller))
        self.buffer = memoryview(bytearray(65536))

    def receive(self) -> bytes:
        async def receive() -> bytes:
            return bytes(await self.endpoint.receive(self.buffer))

        return self.loop.run(receive())

    def close(self) -> None:
        self.loop.call(self.endpoint.close)
        self.peer.close()


@pytest.fixture(params=POLLERS)
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    make_loop, make_poller = request.param
    with (
        LoopThread(make_loop) as loop,
        watching(loop, make_poller) as poller,
        contextlib.closing(Line(loop, poller)) as one,
    ):
        yield one


def test_receives_what_comes(line: Line) -> None:
    """At once where it is there already, else when it comes; empty at the end."""
    line.peer.sendall(b"first")
    assert line.receive() == b"first"
    threading.Timer(0.02, line.peer.sendall, (b"second",)).start()
    assert line.receive() == b"second"
    line.peer.shutdown(socket.SHUT_WR)
    assert line.receive() == b""


def test_receives_nothing_into_nothing(line: Line) -> None:
    """Where the buffer is empty nothing is waited for."""

    async def receive() -> int:
        return len(await line.endpoint.receive(line.buffer[:0]))

    assert line.loop.run(receive(), timeout=SOON) == 0


def test_sends_all_of_it(line: Line) -> None:
    """However slowly the peer reads, and though it sends all the while."""
    data = b"x" * 2_000_000
    sending = asyncio.run_coroutine_threadsafe(line.endpoint.send(data), line.loop.loop)
    line.peer.sendall(b"y" * 1000)
    got = 0
    while got < len(data):
        got += len(line.peer.recv(65536))
    sending.result(PATIENCE)
    assert line.receive() == b"y" * 1000


def test_a_reset_is_an_error(line: Line) -> None:
    """For who receives and for who sends."""
    reset(line.peer)
    with pytest.raises(ConnectionResetError):
        line.receive()
    with pytest.raises(BrokenPipeError):
        line.loop.run(line.endpoint.send(b"x"))


def test_readable_within(line: Line) -> None:
    """True when something has come, and it is still there; False when nothing came in time, or only an end."""
    assert line.loop.run(line.endpoint.is_readable_within(SOON / 2)) is False
    line.peer.sendall(b"late")
    assert line.loop.run(line.endpoint.is_readable_within(PATIENCE)) is True
    assert line.receive() == b"late"
    line.peer.shutdown(socket.SHUT_WR)
    assert line.loop.run(line.endpoint.is_readable_within(PATIENCE)) is False


def test_a_wait_that_is_given_up(line: Line) -> None:
    """Nothing of it is left: another socket that gets the same descriptor is watched."""
    descriptor = line.endpoint.socket.fileno()
    with pytest.raises(TimeoutError):
        line.loop.run(line.endpoint.is_readable_within(2 * SOON), timeout=SOON / 2)
    line.loop.call(line.endpoint.close)
    other = Line(line.loop, line.poller)
    receiving = asyncio.run_coroutine_threadsafe(other.endpoint.receive(other.buffer), line.loop.loop)
    try:
        assert other.endpoint.socket.fileno() == descriptor
        threading.Event().wait(3 * SOON)  # past that timer
        other.peer.sendall(b"heard")
        assert bytes(receiving.result(1)) == b"heard"
    finally:
        receiving.cancel()
        other.close()


def test_takes_leave(line: Line) -> None:
    """Our half is closed; what the peer still sends is taken until it ends, so that it reads what we said."""
    line.loop.run(line.endpoint.send(b"farewell"))
    leaving = asyncio.run_coroutine_threadsafe(line.endpoint.take_leave(line.buffer, 1 << 30), line.loop.loop)
    for _ in range(50):
        line.peer.sendall(b"x" * 16384)
    assert line.peer.recv(100) == b"farewell"
    assert line.peer.recv(100) == b""
    assert not leaving.done()
    line.peer.shutdown(socket.SHUT_WR)
    leaving.result(PATIENCE)


def test_takes_leave_of_so_much(line: Line) -> None:
    """Past its allowance it ends."""
    leaving = asyncio.run_coroutine_threadsafe(line.endpoint.take_leave(line.buffer, 100_000), line.loop.loop)
    with contextlib.suppress(OSError):
        line.peer.sendall(b"x" * 200_000)
    leaving.result(PATIENCE)


def test_closed_while_somebody_waits(line: Line) -> None:
    """Who is cancelled in a wait and closes leaves nothing behind."""
    with pytest.raises(TimeoutError):
        line.loop.run(line.endpoint.readable(), timeout=SOON / 2)
    line.loop.call(line.endpoint.close)
    assert line.peer.recv(1) == b""


def test_woken_while_nobody_waits(line: Line) -> None:
    """Bytes that come between two waits are there for the next."""
    line.peer.sendall(b"a")
    assert line.receive() == b"a"
    line.peer.sendall(b"b")
    threading.Event().wait(SOON / 4)
    assert line.receive() == b"b"


def test_acknowledges(line: Line) -> None:
    """It is asked of the kernel, where it can be."""
    line.loop.call(line.endpoint.acknowledge_at_once)
    if hasattr(socket, "TCP_QUICKACK"):
        assert line.endpoint.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK) == 1
