"""What one worker counts: plain numbers, added to where things happen, and told in one report of plain values.

A total only grows. In a report it stands in its family under its labels, one word each but the last: so reports of
several workers add up without anybody knowing what is counted. Must not know who reads it.
"""

import time
from collections import Counter, deque
from datetime import datetime
from typing import Any

from aop_proxy.histogram import Histogram
from aop_proxy.log import escape
from aop_proxy.reasons import Fault, Reason, Verdict
from aop_proxy.telemetry import ConnectionRecord, RequestRecord

LATEST_REFUSALS = 10
"""Refusals that one report tells in full; a page shows no more, and a scan must not make reports long."""
MAX_TEXT = 128
"""Bytes of anything a client has said."""
_TOLD = (Verdict.REFUSED, Verdict.WOULD_REFUSE)

Report = dict[str, Any]
"""`totals` (family -> labels -> number), `seen` (word and upstream -> Unix time), `shown` (site -> when a client was
last let in there, and when its certificate ends, in Unix time), `open` (state -> number), `generation`, `refusals`."""


class _Dials:
    """What became of the dials of one upstream."""

    __slots__ = ("results", "seen", "took")

    def __init__(self) -> None:
        self.results = {"connected": 0, Reason.UPSTREAM_UNREACHABLE.value: 0, Reason.UPSTREAM_TIMEOUT.value: 0}
        self.took = Histogram()
        self.seen: dict[str, float] = {}


class Counters:
    """One worker's numbers."""

    def __init__(self, *, tells_refusals: bool) -> None:
        """Begin at nothing; without anybody to tell, refused connections are counted and not kept."""
        self.admitted = 0
        self.handshakes = Histogram()
        self._ends = dict.fromkeys(Reason, 0)
        self._overlooked = Counter[Reason]()
        """Forwarded while we only observe, by the reason for which they would have been refused."""
        self._requests = Counter[int]()
        """By the first digit of their status."""
        self._faults = Counter[Fault]()
        self._bytes_from_client = 0
        self._bytes_from_upstream = 0
        self._dials: dict[str, _Dials] = {}
        self._shown: dict[str, tuple[float, float]] = {}
        self._refused: deque[tuple[float, ConnectionRecord]] = deque(maxlen=LATEST_REFUSALS if tells_refusals else 0)

    def end(self, record: ConnectionRecord) -> None:
        """Count a connection whose record is complete."""
        if record.would_refuse is None:
            self._ends[record.reason] += 1
        else:
            self._overlooked[record.would_refuse] += 1
        self._bytes_from_client += record.bytes_from_client
        self._bytes_from_upstream += record.bytes_from_upstream
        if record.verdict in _TOLD:
            self._refused.append((time.time(), record))

    def shown(self, site: str, not_after: datetime) -> None:
        """A client was let in at a site by a certificate that ends then."""
        self._shown[site] = time.time(), not_after.timestamp()

    def end_request(self, record: RequestRecord) -> None:
        """Count a request whose record is complete."""
        if record.status:
            self._requests[record.status // 100] += 1
        if record.fault is not None:
            self._faults[record.fault] += 1

    def dialled(self, url: str, seconds: float, failure: Reason | None) -> None:
        """Count one dial of an upstream."""
        dials = self._dials.get(url)
        if dials is None:
            dials = self._dials[url] = _Dials()
        if failure is None:
            dials.results["connected"] += 1
            dials.took.observe(seconds)
        else:
            dials.results[failure.value] += 1
        dials.seen["failed" if failure else "connected"] = time.time()

    def report(self, moving: list[tuple[int, int]], open_now: dict[str, int], generation: int) -> Report:
        """Everything so far, with the bytes of connections that have not ended, and the latest refusals once."""
        dials = self._dials.items()
        ends: dict[str, float] = {f"{reason.verdict} {reason}": count for reason, count in self._ends.items() if count}
        ends |= {f"{Verdict.WOULD_REFUSE} {reason}": count for reason, count in self._overlooked.items()}
        totals: dict[str, dict[str, float]] = {
            "connections": ends,
            "admitted": {"": self.admitted},
            "bytes": {
                "from_client": self._bytes_from_client + sum(up for up, _ in moving),
                "from_upstream": self._bytes_from_upstream + sum(down for _, down in moving),
            },
            "requests": {f"{digit}xx": count for digit, count in self._requests.items()},
            "faults": {fault.value: count for fault, count in self._faults.items()},
            "handshakes": self.handshakes.totals(),
            "dials": {f"{word} {url}": count for url, one in dials for word, count in one.results.items()},
            "dial_seconds": {words: count for url, one in dials for words, count in one.took.totals(url).items()},
        }
        refusals = [_told(when, record) for when, record in self._refused]
        self._refused.clear()
        return {
            "totals": totals,
            "seen": {f"{word} {url}": when for url, one in dials for word, when in one.seen.items()},
            "shown": self._shown,
            "open": open_now,
            "generation": generation,
            "refusals": refusals,
        }


def _told(when: float, record: ConnectionRecord) -> dict[str, Any]:
    """What a person wants to know of a refused connection; each text in printable ASCII, and bounded."""
    identity = record.identity()
    texts = {
        "verdict": record.verdict.value,
        "reason": (record.would_refuse or record.reason).value,
        "client": record.client,
        "sni": record.sni,
        "subject": identity and identity.subject,
        "reference": record.reference,
    }
    return {"time": when} | {name: text and escape(text, MAX_TEXT) for name, text in texts.items()}
