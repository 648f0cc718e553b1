"""One record per connection, or request -> one log line. Every name that such a line can hold stands in this file.

Lines of connections that were not simply accepted pass a token bucket, so that a scan does not fill a disk; what it
held back is counted by reason. Must not know what it counts.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from aop_proxy.expiry import days_left, ends_soon
from aop_proxy.identity import Identity, UnreadableCertificate, parse_identity, read_identity
from aop_proxy.log import Log, Value
from aop_proxy.reasons import Fault, Reason, Verdict

SUPPRESSED_EVERY = 10.0
"""Seconds between the lines that say how many were held back."""
_LONGEST_PATH = 512
"""Bytes of a path that are looked at; the log keeps fewer."""
_REASON_LEVELS = {
    Reason.CLIENT_SILENT: "debug",
    Reason.UPSTREAM_UNREACHABLE: "warning",
    Reason.UPSTREAM_TIMEOUT: "warning",
    Reason.INTERNAL_ERROR: "error",
}


@dataclass(slots=True)
class ConnectionRecord:
    """What there is to say about one connection, filled in as it goes."""

    client: str
    reference: str
    started: float
    """Monotonic seconds."""
    generation: int
    reason: Reason = Reason.CLOSED
    would_refuse: Reason | None = None
    """Why a client that was forwarded would have been refused if we did not only observe."""
    site: str | None = None
    sni: str | None = None
    tls_version: str | None = None
    cipher: str | None = None
    certificate: bytes | None = None
    """DER of the leaf: verified if the client was accepted, else only claimed."""
    upstream: str | None = None
    bytes_from_client: int = 0
    bytes_from_upstream: int = 0

    @property
    def verdict(self) -> Verdict:
        """What became of the connection."""
        return Verdict.WOULD_REFUSE if self.would_refuse else self.reason.verdict

    def fields(self, now: float, worker: int) -> dict[str, Value]:
        """The record as a line's fields, in the order of the contract."""
        identity = self.identity()
        fields: dict[str, Value] = {
            "verdict": self.verdict,
            "reason": self.would_refuse or self.reason,
            "client": self.client,
            "site": self.site,
            "sni": self.sni,
            "tls_version": self.tls_version,
            "cipher": self.cipher,
            "subject": identity.subject if identity else None,
            "issuer": identity.issuer if identity else None,
            "fingerprint": identity.fingerprint if identity else None,
            "upstream": self.upstream,
            "bytes_from_client": self.bytes_from_client,
            "bytes_from_upstream": self.bytes_from_upstream,
            "duration_ms": round((now - self.started) * 1000, 1),
            "reference": self.reference,
            "worker": worker,
            "generation": self.generation,
        }
        if identity is not None and self.reason in (Reason.EXPIRED, Reason.NOT_YET_VALID):
            fields["not_before"] = identity.not_before.isoformat()
            fields["not_after"] = identity.not_after.isoformat()
            fields["our_clock"] = datetime.now(UTC).isoformat(timespec="seconds")
        if identity is not None and self.verdict is not Verdict.REFUSED:
            now_utc = datetime.now(UTC)
            if ends_soon(identity.not_after, now_utc):
                fields["certificate_days_left"] = days_left(identity.not_after, now_utc)
        if self.would_refuse:
            fields["ended"] = self.reason
        return fields

    def identity(self) -> Identity | None:
        """What the leaf says; None without one, and where it cannot be read."""
        try:
            if not self.certificate:
                return None
            read = read_identity if self.reason.verdict is Verdict.ACCEPTED else parse_identity
            return read(self.certificate)
        except UnreadableCertificate:
            return None


@dataclass(slots=True)
class RequestRecord:
    """What there is to say about one request, where requests are read."""

    connection: ConnectionRecord
    started: float = 0.0
    """Monotonic seconds at which its head was there; 0 before that."""
    ended: float = 0.0
    answered: float | None = None
    """When the response's head was."""
    method: bytes = b""
    path: bytes = b""
    status: int = 0
    fault: Fault | None = None
    bytes_from_client: int = 0
    bytes_from_upstream: int = 0

    def note_status(self, status: int, now: float) -> None:
        """The response begins now, or has begun."""
        if not self.status:
            self.status, self.answered = status, now

    def values(self, worker: int) -> tuple[Value, ...]:
        """The record as a line's `REQUEST_FIELDS`."""
        return (
            self.method.decode("ascii") or None,
            self.path[:_LONGEST_PATH].decode("ascii") or None,
            self.status or None,
            self.fault,
            self.connection.site,
            self.bytes_from_client,
            self.bytes_from_upstream,
            None if self.answered is None else round((self.answered - self.started) * 1000, 1),
            round((self.ended - self.started) * 1000, 1),
            self.connection.reference,
            worker,
        )


REQUEST_FIELDS = (
    "method", "path", "status", "fault", "site", "bytes_from_client", "bytes_from_upstream", "answered_ms",
    "duration_ms", "reference", "worker",
)  # fmt: skip


class ConnectionLog:
    """The lines of one worker's connections and their requests."""

    def __init__(self, log: Log, worker: int, rate: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Write to `log`; at most `rate` lines a second are of connections that were not accepted."""
        self._log = log
        self._worker = worker
        self._monotonic = monotonic
        self._suppressed: Counter[Reason] = Counter()
        self._refilled = monotonic()
        self.rate = self._tokens = rate

    def write(self, record: ConnectionRecord) -> None:
        """Write the one line of a connection that has ended, or count it as suppressed."""
        level = _REASON_LEVELS.get(record.reason, "info")
        if not self._log.shows(level):
            return
        now = self._monotonic()
        if record.verdict is not Verdict.ACCEPTED and not self._take_token(now):
            self._suppressed[record.would_refuse or record.reason] += 1
            return
        self._log.event(level, "connection", **record.fields(now, self._worker))

    def write_requests(self, records: list[RequestRecord]) -> None:
        """Write the one line of each request that has ended."""
        if self._log.shows("info"):
            rows = [record.values(self._worker) for record in records]
            self._log.events("info", "request", REQUEST_FIELDS, rows)

    def write_suppressed(self) -> None:
        """Say how many lines of each reason were held back since the last time; call every `SUPPRESSED_EVERY`."""
        for reason, count in self._suppressed.items():
            self._log.event("info", "suppressed", reason=reason, count=count, worker=self._worker)
        self._suppressed.clear()

    def _take_token(self, now: float) -> bool:
        self._tokens = min(max(self.rate, 1.0), self._tokens + (now - self._refilled) * self.rate)
        self._refilled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
