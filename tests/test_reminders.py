"""What is said again while the program runs, and only that; an hour is as long as a test says."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aop_proxy import model
from aop_proxy.expiry import Expiry
from aop_proxy.log import Log
from aop_proxy.model import Settings
from aop_proxy.reminders import Reminders

NEAR = Expiry("sites[0].clients.crl[0]", "the CRL of CN=Test CA", datetime.now(UTC) + timedelta(days=5, hours=1))
FAR = Expiry("sites[0].certificate", "CN=origin.example", datetime.now(UTC) + timedelta(days=31))
OBSERVING = Settings((), (), enforcement="observe")
ENFORCING = Settings((), ())


class Told:
    """Reminders, and the lines that they write."""

    def __init__(self, hour: float) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._writer = writer
        self.reminders = Reminders(Log(model.Log("json"), writer), hour)
        self.lines: list[dict[str, Any]] = []

    def look(self) -> list[dict[str, Any]]:
        with contextlib.suppress(BlockingIOError):
            self.lines += map(json.loads, os.read(self._reader, 1 << 20).splitlines())
        return self.lines

    async def wait_until(self, satisfied: Callable[[list[dict[str, Any]]], bool]) -> None:
        async with asyncio.timeout(10):
            while not satisfied(self.look()):
                await asyncio.sleep(0.005)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


@pytest.fixture
async def told() -> AsyncIterator[Told]:
    told = Told(hour=0.002)
    task = asyncio.create_task(told.reminders.keep_telling())
    yield told
    task.cancel()
    told.close()


async def test_what_ends_soon_is_told_at_once_and_daily(told: Told) -> None:
    """With the key that names it, the day, and how many are left; what ends later is not told."""
    told.reminders.renew(ENFORCING, [FAR, NEAR])
    (first,) = told.look()
    del first["time"]
    assert {
        "level": "warning",
        "event": "certificate_expires_soon",
        "path": NEAR.path,
        "subject": NEAR.subject,
        "not_after": NEAR.not_after.isoformat(),
        "days_left": 5,
    } == first
    await told.wait_until(lambda lines: len(lines) >= 3)
    assert {NEAR.path} == {line["path"] for line in told.lines}


async def test_observing_is_told_every_hour(told: Told) -> None:
    """24 times as often as what ends soon."""
    told.reminders.renew(OBSERVING, [NEAR])
    await told.wait_until(lambda lines: len([line for line in lines if line["event"] != "advice"]) == 3)
    until_the_second_day = next(
        index for index, line in reversed(list(enumerate(told.lines))) if line["event"] == "certificate_expires_soon"
    )
    warnings = [line for line in told.lines[:until_the_second_day] if line["event"] == "advice"]
    assert 48 == len(warnings)
    assert {"warning"} == {line["level"] for line in warnings}
    assert all(line["advice"].startswith("enforcement: `observe` keeps nobody out") for line in warnings)


async def test_a_renewed_certificate_is_told_no_more(told: Told) -> None:
    """After a reload only what is served then counts."""
    told.reminders.renew(ENFORCING, [NEAR])
    told.reminders.renew(OBSERVING, [FAR])
    await told.wait_until(lambda lines: len(lines) > 2 * 24)
    assert 1 == len([line for line in told.lines if line["event"] == "certificate_expires_soon"])
