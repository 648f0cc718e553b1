"""What a running program says again, since it runs for months and nobody reads its first lines.

Daily what ends soon, every hour that nobody is kept out. In: settings, and what the workers hold. Out: log lines.
Standard library only. Must not know workers.
"""

import asyncio
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime

from aop_proxy.expiry import Expiry, days_left, ends_soon
from aop_proxy.exposure import while_observing
from aop_proxy.log import Log
from aop_proxy.model import Settings

HOUR = 3600.0
"""Seconds."""
_HOURS_OF_A_DAY = 24


class Reminders:
    """What is to be said again of the configuration that is served now."""

    def __init__(self, log: Log, hour: float = HOUR) -> None:
        """Write to `log`."""
        self._log = log
        self._hour = hour
        self._settings: Settings | None = None
        self._expiries: Sequence[Expiry] = ()

    def renew(self, settings: Settings, expiries: Sequence[Expiry]) -> None:
        """Take a configuration that is to be served from now on, and say what ends soon."""
        self._settings = settings
        self._expiries = expiries
        self._tell_what_ends()

    async def keep_telling(self) -> None:
        """Say it again and again, until cancelled."""
        for hours in itertools.count(1):
            await asyncio.sleep(self._hour)
            for warning in while_observing(self._settings) if self._settings else ():
                self._log.event("warning", "advice", advice=str(warning))
            if hours % _HOURS_OF_A_DAY == 0:
                self._tell_what_ends()

    def _tell_what_ends(self) -> None:
        now = datetime.now(UTC)
        for expiry in self._expiries:
            if ends_soon(expiry.not_after, now):
                self._log.event(
                    "warning",
                    "certificate_expires_soon",
                    path=expiry.path,
                    subject=expiry.subject,
                    not_after=expiry.not_after.isoformat(),
                    days_left=days_left(expiry.not_after, now),
                )
