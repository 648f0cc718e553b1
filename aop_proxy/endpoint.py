"""Sockets as the program holds them: one that listens, and one on which a coroutine may wait.

Deadlines are the caller's. Must not know what is sent, nor why.
"""

import asyncio
import socket
from typing import Any, NamedTuple, Protocol

from aop_proxy.poller import Poller

MORE_FOLLOWS = getattr(socket, "MSG_MORE", 0)
"""Where there is such a flag, a FIN goes out with the last bytes instead of behind them."""


KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 60, 15, 4
"""Seconds, seconds and probes: a peer that vanished is noticed within two minutes."""


class Stream(Protocol):
    """What forwarding needs of a connected non-blocking socket; each call means what it means to the kernel."""

    def fileno(self) -> int:
        """The descriptor whose readiness tells."""

    def recv_into(self, buffer: memoryview, size: int, /) -> int:
        """Receive at most `size` bytes; 0 at the peer's end."""

    def send(self, data: memoryview | bytes, /) -> int:
        """Send what there is room for; the rest comes first in the next call."""

    def shutdown(self, how: int, /) -> None:
        """Send no more."""

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        """Set an option of the socket."""

    def close(self) -> None:
        """Close, or reset if the socket was told to."""


class Listener(NamedTuple):
    """A listening socket, and which of `listen` it is for."""

    socket: socket.socket
    place: int


def keep_alive(end: socket.socket) -> None:
    """Have the kernel ask a peer that is silent whether it is still there, and end the connection if it is not.

    No TCP_USER_TIMEOUT: it would also end a connection to a peer that is there and does not read for so long (the
    kernel takes a closed window for silence), which is for the idle limit to decide. What a vanished peer has not
    acknowledged, the kernel gives up by itself after a quarter of an hour (tcp_retries2).
    """
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)


def format_address(address: tuple[Any, ...]) -> str:
    """HOST:PORT of what `getsockname`, `getpeername` or `accept` gave."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Endpoint:
    """A socket and the coroutine that waits for it."""

    __slots__ = ("_descriptor", "_poller", "_waiter", "socket")

    def __init__(self, connected: socket.socket, poller: Poller) -> None:
        """Take a non-blocking socket, to be closed by `close`."""
        self.socket = connected
        self._descriptor = connected.fileno()
        self._poller = poller
        self._waiter: asyncio.Future[None] | None = None

    async def receive(self, buffer: memoryview) -> memoryview:
        """What has come, in `buffer`; empty at the peer's end, and where the buffer is."""
        while buffer:
            try:
                return buffer[: self.socket.recv_into(buffer)]
            except BlockingIOError:
                await self.readable()
        return buffer

    async def send(self, data: bytes, flags: int = 0) -> None:
        """Send all of it."""
        while data:
            try:
                data = data[self.socket.send(data, flags) :]
            except BlockingIOError:
                await self.writable()

    async def readable(self) -> None:
        """Wait until there is something to read, or an end, or an error."""
        self._poller.on_readable(self._descriptor, self._wake)
        await self._wait()

    async def writable(self) -> None:
        """Wait until there is room to write, or an error."""
        self._poller.stop_reading(self._descriptor)  # a peer that sends without reading is not to wake us for it
        self._poller.on_writable(self._descriptor, self._wake)
        try:
            await self._wait()
        finally:
            self._poller.stop_writing(self._descriptor)

    async def is_readable_within(self, seconds: float) -> bool:
        """Wait for something to read, but no longer than this."""
        patience = self._poller.loop.call_later(seconds, self._wake)
        try:
            await self.readable()
        finally:
            patience.cancel()  # it must not fire when the descriptor is closed, and another connection bears its number
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    async def take_leave(self, buffer: memoryview, at_most: int) -> None:
        """Half-close, and throw away what still comes: closing on unread bytes would reset what the peer is to read."""
        self.socket.shutdown(socket.SHUT_WR)
        while at_most > 0:
            await self.readable()  # always by way of the loop: others have their turn, however fast it sends
            received = len(await self.receive(buffer))
            if not received:
                return
            at_most -= received

    def acknowledge_at_once(self) -> None:
        """Acknowledge what will not be answered at once: a peer with Nagle on waits 40 ms for it otherwise."""
        if hasattr(socket, "TCP_QUICKACK"):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def close(self) -> None:
        """Close the socket; nobody is told of it any more."""
        self._poller.forget(self._descriptor)
        self.socket.close()

    async def _wait(self) -> None:
        self._waiter = self._poller.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is None:  # nobody waits: the next to wait will ask again
            self._poller.stop_reading(self._descriptor)
        elif not self._waiter.done():
            self._waiter.set_result(None)
