"""Which sockets are ready -> the calls that want to know, by one epoll of our own inside the event loop.

`loop.add_reader` costs uvloop four system calls and an object per registration, and a connection needs several; here a
socket costs one for its life, and changing who is called costs none. Where there is no epoll (macOS) the loop's own
calls serve. Must not know what the calls do.
"""

import asyncio
import contextlib
import select
from collections.abc import Callable
from typing import ClassVar, Protocol

Callback = Callable[[], None]
_READABLE, _WRITABLE = getattr(select, "EPOLLIN", 1), getattr(select, "EPOLLOUT", 4)
EVENTS_PER_TURN = 64
"""Sockets served before the loop sees to timers and tasks again."""


class Poller(Protocol):
    """What connections need of an event loop."""

    loop: asyncio.AbstractEventLoop
    forgets: ClassVar[bool]
    """A callback may be forgotten before anybody asks for it: uvloop stops watching a socket at its first error."""

    @property
    def now(self) -> float:
        """Monotonic seconds, as of this turn of the loop."""

    def on_readable(self, descriptor: int, callback: Callback) -> None:
        """Call back whenever there is something to read, until told otherwise; replaces the callback before."""

    def on_writable(self, descriptor: int, callback: Callback) -> None:
        """Call back whenever there is room to write, until told otherwise; replaces the callback before."""

    def stop_reading(self, descriptor: int) -> None:
        """Call back no more about reading."""

    def stop_writing(self, descriptor: int) -> None:
        """Call back no more about writing."""

    def forget(self, descriptor: int) -> None:
        """Call back no more at all: the caller closes the socket in the same breath."""

    def after_turn(self, callback: Callback) -> None:
        """Call back once, when all sockets that were ready together have been served."""

    def close(self) -> None:
        """Give up what is held."""


def make_poller(loop: asyncio.AbstractEventLoop) -> Poller:
    """The best there is for this system."""
    if hasattr(select, "epoll"):
        return EpollPoller(loop)
    return LoopPoller(loop)


class EpollPoller:
    """Linux: level-triggered epoll; closing a socket takes it out (epoll(7)), so forgetting one costs no call."""

    forgets: ClassVar[bool] = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Attach to a loop."""
        self.loop = loop
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._asked: dict[int, int] = {}
        """What the kernel was asked about each descriptor. It may be more than anyone still wants to know: that is
        noticed when the kernel answers, since it often never does, or is wanted again by then."""
        self._after: list[Callback] = []
        self._is_dispatching = False
        self.now = loop.time()
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def on_readable(self, descriptor: int, callback: Callback) -> None:
        """See `Poller`."""
        self._readers[descriptor] = callback
        if not self._asked.get(descriptor, 0) & _READABLE:
            self._ask(descriptor)

    def on_writable(self, descriptor: int, callback: Callback) -> None:
        """See `Poller`."""
        self._writers[descriptor] = callback
        if not self._asked.get(descriptor, 0) & _WRITABLE:
            self._ask(descriptor)

    def stop_reading(self, descriptor: int) -> None:
        """See `Poller`."""
        self._readers.pop(descriptor, None)

    def stop_writing(self, descriptor: int) -> None:
        """See `Poller`."""
        self._writers.pop(descriptor, None)

    def forget(self, descriptor: int) -> None:
        """See `Poller`."""
        self._readers.pop(descriptor, None)
        self._writers.pop(descriptor, None)
        self._asked.pop(descriptor, None)

    def after_turn(self, callback: Callback) -> None:
        """See `Poller`."""
        if self._is_dispatching:
            self._after.append(callback)
        else:
            self.loop.call_soon(callback)

    def close(self) -> None:
        """See `Poller`."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ask(self, descriptor: int) -> None:
        """Ask the kernel for what is wanted now; about a descriptor for which nothing is, it would tell errors."""
        mask = _READABLE if descriptor in self._readers else 0
        if descriptor in self._writers:
            mask |= _WRITABLE
        before = self._asked.pop(descriptor, 0)
        if not mask:
            with contextlib.suppress(OSError):  # closed since
                self._epoll.unregister(descriptor)
            return
        self._asked[descriptor] = mask
        if before:
            self._epoll.modify(descriptor, mask)
        else:
            self._epoll.register(descriptor, mask)

    def _dispatch(self) -> None:
        self.now = self.loop.time()
        readers = self._readers
        self._is_dispatching = True
        for descriptor, events in self._epoll.poll(0, EVENTS_PER_TURN):
            # A call before may have closed this descriptor, and another connection may bear its number now: that one
            # is then asked once in vain, which it takes as not ready.
            try:
                if events == _READABLE and descriptor in readers:
                    readers[descriptor]()
                else:
                    self._dispatch_rarer(descriptor, events)
            except Exception as bug:  # noqa: BLE001 - costs one connection: called again it would raise again, for ever
                self.stop_reading(descriptor)
                self.stop_writing(descriptor)
                self._tell(bug)
        self._is_dispatching = False
        after, self._after = self._after, []
        for callback in after:
            try:
                callback()
            except Exception as bug:  # noqa: BLE001 - costs one connection
                self._tell(bug)

    def _tell(self, bug: Exception) -> None:
        self.loop.call_exception_handler({"message": "a callback failed", "exception": bug})

    def _dispatch_rarer(self, descriptor: int, events: int) -> None:
        """Errors and hang-ups wake whoever waits; what nobody wants to know any more is asked for no longer."""
        reader, writer = self._readers.get(descriptor), self._writers.get(descriptor)
        reads, writes = events & ~_WRITABLE, events & ~_READABLE
        if (events & _READABLE and reader is None) or (events & _WRITABLE and writer is None) or not (reader or writer):
            self._ask(descriptor)
        if reads and reader is not None:
            reader()
        if writes and (writer := self._writers.get(descriptor)) is not None:
            writer()


class LoopPoller:
    """Anywhere: the event loop's own calls."""

    forgets: ClassVar[bool] = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use a loop's calls."""
        self.loop = loop

    @property
    def now(self) -> float:
        """See `Poller`."""
        return self.loop.time()

    def on_readable(self, descriptor: int, callback: Callback) -> None:
        """See `Poller`."""
        self.loop.add_reader(descriptor, callback)

    def on_writable(self, descriptor: int, callback: Callback) -> None:
        """See `Poller`."""
        self.loop.add_writer(descriptor, callback)

    def stop_reading(self, descriptor: int) -> None:
        """See `Poller`."""
        self.loop.remove_reader(descriptor)

    def stop_writing(self, descriptor: int) -> None:
        """See `Poller`."""
        self.loop.remove_writer(descriptor)

    def forget(self, descriptor: int) -> None:
        """See `Poller`."""
        self.loop.remove_reader(descriptor)
        self.loop.remove_writer(descriptor)

    def after_turn(self, callback: Callback) -> None:
        """See `Poller`."""
        self.loop.call_soon(callback)

    def close(self) -> None:
        """See `Poller`."""
