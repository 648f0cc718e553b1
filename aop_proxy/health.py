"""Which of a worker's backends failed lately: how each try ended -> whether an address is worth one now.

What failed is skipped for a short, growing while, then one try at a time shows whether it is back; a line tells when it
goes down, and one when it comes back. Lives as long as the worker: a reload changes nothing about what can be reached.
Must not know how a backend is reached.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from aop_proxy.log import Log

SKIP_MIN, SKIP_MAX = 1.0, 30.0
"""Seconds that a backend is skipped after it failed, doubled each time it fails again."""
MOST_DOWN = 1024
"""Addresses remembered as down: a name may bring new ones with every answer."""


@dataclass(slots=True)
class _Trouble:
    since: float
    until: float
    pause: float = SKIP_MIN
    is_tried: bool = False


class Health:
    """What a worker has seen of its backends."""

    def __init__(self, log: Log, worker: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Tell `log` who goes down and who comes back."""
        self._log = log
        self._worker = worker
        self._monotonic = monotonic
        self._down: dict[str, _Trouble] = {}

    def is_well(self, place: str) -> bool:
        """Whether it has answered whenever it was tried lately, or was not tried."""
        return place not in self._down

    def is_worth_a_try(self, place: str) -> bool:
        """Whether to try now; where a while of skipping has just ended, only the first to ask is to."""
        trouble = self._down.get(place)
        if trouble is None:
            return True
        now = self._monotonic()
        if now < trouble.until:
            return False
        trouble.until = now + trouble.pause
        trouble.is_tried = True
        return True

    def failed(self, place: str, upstream: str, why: str) -> None:
        """A try of `place`, an address or name of `upstream`, came to nothing."""
        now = self._monotonic()
        trouble = self._down.get(place)
        if trouble is None:
            if len(self._down) >= MOST_DOWN:
                del self._down[next(iter(self._down))]
            self._down[place] = _Trouble(now, now + SKIP_MIN)
            self._log.event("warning", "upstream_down", upstream=upstream, address=place, why=why, worker=self._worker)
        elif trouble.is_tried:
            trouble.is_tried = False
            trouble.pause = min(2 * trouble.pause, SKIP_MAX)
            trouble.until = now + trouble.pause

    def answered(self, place: str, upstream: str) -> None:
        """A try of `place` went well. What fails and answers in turns is told twice a second at most."""
        trouble = self._down.get(place)
        if trouble is None:
            return
        down_for = self._monotonic() - trouble.since
        if down_for >= SKIP_MIN:
            del self._down[place]
            self._log.event(
                "info",
                "upstream_up",
                upstream=upstream,
                address=place,
                down_seconds=round(down_for, 1),
                worker=self._worker,
            )
