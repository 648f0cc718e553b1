"""Backend connections between two requests: kept when clean, given out again, closed at the first byte out of turn.

A connection is clean if the last response ended where it said it would and nothing has come since; what does come then
was asked for by nobody, and would be taken for the answer to the next request. Must not know requests or clients.
"""

import functools
from collections.abc import Callable

from aop_proxy.poller import Poller
from aop_proxy.stream import BackendEnd

MAX_KEPT = 64
"""Idle connections to one backend. NGINX keeps 32 by default since 1.29."""
MAX_KEPT_IN_ALL = 256
IDLE = 55.0
"""Seconds that one is kept: below the 60 and 75 s after which common backends close, maybe as a request comes."""


class Pool:
    """One worker's idle backend connections, by what they were opened for."""

    def __init__(self, poller: Poller) -> None:
        """Tell their ages by `poller`."""
        self._poller = poller
        self._kept: dict[str, dict[BackendEnd, float]] = {}
        self._count = 0

    def take(self, key: str, wake: Callable[[], None]) -> BackendEnd | None:
        """The connection used last for `key` that is still clean; it wakes `wake`, and is the caller's to close now."""
        while kept := self._kept.get(key):
            end, _ = kept.popitem()
            self._count -= 1
            if end.is_silent():
                end.wake = wake
                return end
            end.close()
        return None

    def holds(self, key: str) -> bool:
        """Whether there is one for `key` that is still clean. It grows no younger by being looked at."""
        while kept := self._kept.get(key):
            end = next(reversed(kept))
            if end.is_silent():
                return True
            self._drop(key, end)
        return False

    def give(self, key: str, end: BackendEnd) -> None:
        """Keep a clean connection of `key`, or close it where there are enough."""
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = {}
        if len(kept) >= MAX_KEPT or self._count >= MAX_KEPT_IN_ALL:
            end.close()
            return
        kept[end] = self._poller.now
        self._count += 1
        end.wake = functools.partial(self._hear, key, end)
        end.listen()

    def sweep(self, now: float) -> None:
        """Close those that were not used for `IDLE` seconds; by the loop's clock, since the poller's may rest."""
        latest = now - IDLE
        for key, kept in list(self._kept.items()):
            for end in [end for end, since in kept.items() if since < latest]:
                self._drop(key, end)
            if not kept:
                del self._kept[key]

    def close(self) -> None:
        """Close all of them."""
        for key, kept in list(self._kept.items()):
            for end in list(kept):
                self._drop(key, end)

    def _hear(self, key: str, end: BackendEnd) -> None:
        """Close one on which something came that nobody asked for: the backend's end of it, most likely."""
        if end.is_silent():
            end.listen()
        else:
            self._drop(key, end)

    def _drop(self, key: str, end: BackendEnd) -> None:
        del self._kept[key][end]
        self._count -= 1
        end.close()
