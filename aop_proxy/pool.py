"""Backend connections between two requests: kept when clean, given out again, closed at the first byte out of turn.

A connection is clean if the last response ended where it said it would and nothing has come since; what does come then
was asked for by nobody, and would be taken for the answer to the next request. Must not know requests or clients.
"""

import functools

from aop_proxy.endpoint import Stream
from aop_proxy.poller import Poller
from aop_proxy.relay import RECEIVE, Buffers
from aop_proxy.upstream import Dialled

MAX_KEPT = 64
"""Idle connections to one backend. NGINX keeps 32 by default since 1.29."""
MAX_KEPT_IN_ALL = 256
IDLE = 55.0
"""Seconds that one is kept: below the 60 and 75 s after which common backends close, maybe as a request comes."""


class Pool:
    """One worker's idle backend connections, by what they were opened for."""

    def __init__(self, poller: Poller, buffers: Buffers) -> None:
        """Watch the connections with `poller`."""
        self._poller = poller
        self._buffers = buffers
        self._kept: dict[str, dict[Stream, tuple[Dialled, float]]] = {}
        self._count = 0

    def take(self, key: str) -> Dialled | None:
        """The connection used last for `key` that is still clean; it is the caller's to close now."""
        dialled = self._last_used(key)
        if dialled is not None:
            self._remove(key, dialled)
        return dialled

    def holds(self, key: str) -> bool:
        """Whether there is one for `key` that is still clean. It grows no younger by being looked at."""
        return self._last_used(key) is not None

    def give(self, key: str, dialled: Dialled) -> None:
        """Keep a clean connection of `key`, or close it where there are enough."""
        kept = self._kept.setdefault(key, {})
        if len(kept) >= MAX_KEPT or self._count >= MAX_KEPT_IN_ALL:
            self._close(dialled)
            return
        kept[dialled.stream] = dialled, self._poller.now
        self._count += 1
        self._poller.on_readable(dialled.stream.fileno(), functools.partial(self._hear, key, dialled))

    def sweep(self, now: float) -> None:
        """Close those that were not used for `IDLE` seconds; by the loop's clock, since the poller's may rest."""
        latest = now - IDLE
        for key, kept in list(self._kept.items()):
            for dialled in [dialled for dialled, since in kept.values() if since < latest]:
                self._remove(key, dialled)
                self._close(dialled)

    def close(self) -> None:
        """Close all of them."""
        for key, kept in list(self._kept.items()):
            for dialled, _ in list(kept.values()):
                self._remove(key, dialled)
                self._close(dialled)

    def _last_used(self, key: str) -> Dialled | None:
        """The one used last for `key` that is still clean; those that are not are closed."""
        while kept := self._kept.get(key):
            dialled, _ = kept[next(reversed(kept))]
            if self._is_silent(dialled.stream):
                return dialled
            self._remove(key, dialled)
            self._close(dialled)
        return None

    def _hear(self, key: str, dialled: Dialled) -> None:
        """Close one on which something came that nobody asked for: the backend's end of it, most likely."""
        if not self._is_silent(dialled.stream):
            self._remove(key, dialled)
            self._close(dialled)

    def _remove(self, key: str, dialled: Dialled) -> None:
        self._poller.stop_reading(dialled.stream.fileno())
        kept = self._kept[key]
        del kept[dialled.stream]
        self._count -= 1
        if not kept:
            del self._kept[key]

    def _close(self, dialled: Dialled) -> None:
        self._poller.forget(dialled.stream.fileno())
        dialled.stream.close()

    def _is_silent(self, stream: Stream) -> bool:
        """Whether nothing has come, not even an end; TLS records without data (session tickets) are nothing."""
        try:
            stream.recv_into(self._buffers.plaintext, RECEIVE)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False
