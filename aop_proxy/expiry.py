"""When what we hold ends, and from when on that is worth saying.

In: dates, the present one among them. Out: days, and whether they are few. Must not know certificates or the clock.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from aop_proxy.model import Problem

SOON = timedelta(days=30)
"""Cloudflare sends its first warning for uploaded client certificates 30 days ahead."""


def ends_soon(not_after: datetime, now: datetime) -> bool:
    """Whether it is time to say so."""
    return not_after <= now + SOON


def days_left(not_after: datetime, now: datetime) -> int:
    """Whole days; below zero once it has ended."""
    return (not_after - now).days


@dataclass(frozen=True, slots=True)
class Expiry:
    """The end of one certificate or revocation list, and the key of the configuration that names it."""

    path: str
    subject: str
    not_after: datetime

    def advice(self) -> Problem:
        """What `check` says of an end that is near."""
        return Problem(self.path, f"{self.subject} expires on {self.not_after:%Y-%m-%d}: renew it")
