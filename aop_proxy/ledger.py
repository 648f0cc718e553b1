"""The parent's books: what the workers report and what the parent knows -> the state that the admin listener shows.

Totals never go backwards: what a worker had reported when it died is kept. A worker faces strangers, so its report is
taken apart with care and bounded. Values only; must not know sockets, nor what the totals count, but for those that
the chart of the last hour is drawn from.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import aop_proxy
from aop_proxy.expiry import Expiry
from aop_proxy.model import Settings

State = dict[str, Any]

FRESH = 10.0
"""Seconds: a worker that has not reported for longer does not serve, whatever it does."""
MINUTES = 60
REFUSALS = 50
_MAX_FAMILIES = 32
_MAX_LABELS = 20_000
_MAX_NUMBER = 2.0**63
_MAX_TEXT = 512
_HISTORY = ("accepted", "refused", "failed", "would_refuse", "from_client", "from_upstream")
_NOTHING: tuple[float, ...] = (0,) * len(_HISTORY)

_Totals = dict[str, dict[str, float]]


class Account:
    """What is known of one worker process."""

    def __init__(self, number: int, pid: int) -> None:
        """Nothing has been heard of it yet."""
        self.number = number
        self.pid = pid
        self.started = time.time()
        self.heard: float | None = None
        """Monotonic."""
        self.generation = 0
        self.totals: _Totals = {}
        self.open: dict[str, float] = {}


class Ledger:
    """The books of one run."""

    def __init__(self, settings: Settings, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Begin at nothing."""
        self._monotonic = monotonic
        self._settings = settings
        self._started = time.time()
        self._generation = 0
        self._expiries: Sequence[Expiry] = ()
        self._reloads = {"good": 0, "failed": 0}
        self._reload_problems: list[str] = []
        self._restarts = 0
        self._is_draining = False
        self._workers: list[Account] = []
        self._numbers: set[int] = set()
        self._gone: _Totals = {}
        """Of workers that are no more."""
        self._seen: dict[str, float] = {}
        self._shown: dict[str, tuple[float, float]] = {}
        self._refusals: deque[dict[str, Any]] = deque(maxlen=REFUSALS)
        self._minute = monotonic() // 60
        self._history = deque([_NOTHING] * MINUTES, maxlen=MINUTES)
        self._at_last_count = _NOTHING

    # What the parent tells.

    def worker_started(self, number: int, pid: int) -> Account:
        """A worker has been started, maybe in a dead one's place."""
        self._restarts += number in self._numbers
        self._numbers.add(number)
        self._workers.append(Account(number, pid))
        return self._workers[-1]

    def worker_ended(self, worker: Account) -> None:
        """A worker is no more: what it had counted is kept, and what it held open is open no longer."""
        self._workers.remove(worker)
        _add(self._gone, worker.totals)

    def serves(self, settings: Settings, generation: int, expiries: Sequence[Expiry]) -> None:
        """Every worker serves this generation."""
        if generation > 1:
            self._reloads["good"] += 1
        self._settings, self._generation, self._expiries = settings, generation, expiries
        self._reload_problems = []

    def reload_failed(self, problems: Sequence[str]) -> None:
        """A reload changed nothing."""
        self._reloads["failed"] += 1
        self._reload_problems = list(problems)

    def draining(self) -> None:
        """No new client should be sent here."""
        self._is_draining = True

    # What the workers report.

    def report(self, worker: Account, report: Any) -> None:
        """Take a worker's report. Raises ValueError, and changes nothing, if it is none."""
        try:
            if len(report["totals"]) > _MAX_FAMILIES:
                raise ValueError("too many families")
            totals = {str(family)[:_MAX_TEXT]: _numbers(labels) for family, labels in report["totals"].items()}
            open_now, seen = _numbers(report["open"]), _numbers(report["seen"])
            shown = {
                str(site)[:_MAX_TEXT]: (_number(when), _number(ends)) for site, (when, ends) in report["shown"].items()
            }
            generation = int(_number(report["generation"]))
            refusals = [_refusal(one) for one in report["refusals"][:REFUSALS]]
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"no report: {error!r}") from error
        worker.totals, worker.open, worker.generation, worker.heard = totals, open_now, generation, self._monotonic()
        for words, when in seen.items():
            if words in self._seen or len(self._seen) < _MAX_LABELS:
                self._seen[words] = max(when, self._seen.get(words, 0.0))
        for site, news in shown.items():
            if site in self._shown or len(self._shown) < _MAX_LABELS:
                self._shown[site] = max(news, self._shown.get(site, news))  # the latest, of all workers
        self._refusals.extend(refusals)

    def _count(self) -> None:
        """Add what has come since the last time to the minute that it is."""
        minute = self._monotonic() // 60
        while self._minute < minute:
            self._history.append(_NOTHING)
            self._minute = max(self._minute + 1, minute - MINUTES)
        totals = self._totals()
        counts = totals.get("bytes", {}).copy()
        for words, count in totals.get("connections", {}).items():
            verdict = words.partition(" ")[0]
            counts[verdict] = counts.get(verdict, 0) + count
        counts["accepted"] = totals.get("admitted", {}).get("", 0)  # when they are let in: some stay for days
        now = tuple(counts.get(name, 0) for name in _HISTORY)
        news = (new - old for new, old in zip(now, self._at_last_count, strict=True))
        self._history[-1] = tuple(sum(pair) for pair in zip(self._history[-1], news, strict=True))
        self._at_last_count = now

    def _totals(self) -> _Totals:
        totals: _Totals = {}
        for one in (self._gone, *(worker.totals for worker in self._workers)):
            _add(totals, one)
        return totals

    # What there is to show.

    def state(self) -> State:
        """Everything, as plain values for JSON."""
        self._count()
        fresh = self._monotonic() - FRESH
        serving = [one for one in self._workers if one.heard is not None and one.heard >= fresh]
        reasons = ["draining"] * self._is_draining + ["no worker serves"] * (not serving)
        names = [site.name for site in self._settings.sites]
        upstreams = dict.fromkeys(upstream.url for site in self._settings.sites for upstream in site.upstream)
        return {
            "version": aop_proxy.__version__,
            "time": time.time(),
            "started": self._started,
            "ready": not reasons,
            "not_ready": reasons,
            "enforcement": self._settings.enforcement,
            "generation": self._generation,
            "reloads": self._reloads,
            "reload_problems": self._reload_problems,
            "restarts": self._restarts,
            "workers": [
                {
                    "number": one.number,
                    "pid": one.pid,
                    "started": one.started,
                    "serves": one in serving,
                    "generation": one.generation,
                    "open": one.open,
                }
                for one in sorted(self._workers, key=lambda one: one.number)
            ],
            "totals": self._totals(),
            "upstreams": list(upstreams),
            "seen": self._seen,
            "client_ends": {name: self._shown[name][1] for name in names if name in self._shown},
            "expiries": [
                {"path": one.path, "subject": one.subject, "not_after": one.not_after.timestamp()}
                for one in self._expiries
            ],
            "refusals": list(self._refusals)[::-1],
            "history": [dict(zip(_HISTORY, minute, strict=True)) for minute in self._history],
        }


def _add(totals: _Totals, more: _Totals) -> None:
    for family, labels in more.items():
        if family not in totals and len(totals) >= _MAX_FAMILIES:
            continue
        sums = totals.setdefault(family, {})
        for words, number in labels.items():
            if words in sums or len(sums) < _MAX_LABELS:
                sums[words] = sums.get(words, 0) + number


def _numbers(labels: Any) -> dict[str, float]:
    """Labels with their numbers; TypeError or ValueError for anything else."""
    if len(labels) > _MAX_LABELS:
        raise ValueError("too many labels")
    found: dict[str, float] = {}
    for words, number in labels.items():
        found[str(words)[:_MAX_TEXT]] = _number(number)
    return found


def _number(number: Any) -> float:
    """A number as it is; TypeError for anything else, ValueError for one that no counter and no clock can come to."""
    if not 0 <= number < _MAX_NUMBER:
        raise ValueError("a total cannot be negative, nor without end")
    return number  # type: ignore[no-any-return]


def _refusal(told: Any) -> dict[str, Any]:
    texts = {name: told[name] for name in ("verdict", "reason", "client", "sni", "subject", "reference")}
    return {"time": _number(told["time"])} | {name: text and str(text)[:_MAX_TEXT] for name, text in texts.items()}
