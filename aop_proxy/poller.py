"""Which sockets are ready -> the calls that want to know, by one epoll of our own inside the event loop.

`loop.add_reader` costs uvloop four system calls and an object per registration, and a connection needs several; here a
socket costs one for its life, and changing who is called costs none. Where there is no epoll (macOS) the loop's own
calls serve. Must not know what the calls do.
"""

import asyncio
import contextlib
import select
from collections.abc import Callable
from typing import Protocol

Callback = Callable[[], None]
EVENTS_PER_TURN = 64
"""Sockets served before the loop sees to timers and tasks again."""


class Poller(Protocol):
    """What connections need of an event loop."""

    loop: asyncio.AbstractEventLoop

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

    def close(self) -> None:
        """Give up what is held."""


def make_poller(loop: asyncio.AbstractEventLoop) -> Poller:
    """The best there is for this system."""
    if hasattr(select, "epoll"):
        return EpollPoller(loop)
    return LoopPoller(loop)


class EpollPoller:
    """Linux: level-triggered epoll; closing a socket takes it out (epoll(7)), so forgetting one costs no call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Attach to a loop."""
        self.loop = loop
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._asked: dict[int, int] = {}
        """What the kernel was asked about each descriptor. It may be more than anyone still wants to know: that is
        noticed when the kernel answers, since it often never does, or is wanted again by then."""
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def on_readable(self, descriptor: int, callback: Callback) -> None:
        """See `Poller`."""
        self._readers[descriptor] = callback
        if not self._asked.get(descriptor, 0) & select.EPOLLIN:
            self._ask(descriptor)

    def on_writable(self, descriptor: int, callback: Callback) -> None:
        """See `Poller`."""
        self._writers[descriptor] = callback
        if not self._asked.get(descriptor, 0) & select.EPOLLOUT:
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

    def close(self) -> None:
        """See `Poller`."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ask(self, descriptor: int) -> None:
        """Ask the kernel for what is wanted now; about a descriptor for which nothing is, it would tell errors."""
        mask = select.EPOLLIN if descriptor in self._readers else 0
        if descriptor in self._writers:
            mask |= select.EPOLLOUT
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
        readers, writers = self._readers, self._writers
        for descriptor, events in self._epoll.poll(0, EVENTS_PER_TURN):
            # A call before may have closed this descriptor, and another connection may bear its number now: that one
            # is then asked once in vain, which it takes as not ready.
            if events & ~select.EPOLLOUT:
                if (callback := readers.get(descriptor)) is not None:
                    callback()
                elif descriptor not in writers or events & select.EPOLLIN:
                    self._ask(descriptor)
            if events & ~select.EPOLLIN:
                if (callback := writers.get(descriptor)) is not None:
                    callback()
                elif events & select.EPOLLOUT:
                    self._ask(descriptor)


class LoopPoller:
    """Anywhere: the event loop's own calls."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Use a loop's calls."""
        self.loop = loop

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

    def close(self) -> None:
        """See `Poller`."""
