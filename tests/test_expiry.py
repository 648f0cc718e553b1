"""When an end is near, and how it is told."""

from datetime import UTC, datetime, timedelta

import pytest

from aop_proxy.expiry import SOON, Expiry, days_left, ends_soon

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("left", "soon", "days"),
    [
        (timedelta(days=31), False, 31),
        (timedelta(days=30, seconds=1), False, 30),
        (timedelta(days=30), True, 30),
        (timedelta(hours=47), True, 1),
        (timedelta(0), True, 0),
        (timedelta(seconds=-1), True, -1),
    ],
)
def test_an_end_that_is_near(left: timedelta, soon: bool, days: int) -> None:
    """From a month ahead it is soon, and so it is afterwards; days are whole ones that are left."""
    assert (timedelta(days=30), soon) == (SOON, ends_soon(NOW + left, NOW))
    assert days == days_left(NOW + left, NOW)


def test_advice() -> None:
    """It says where, what, when, and what to do."""
    advice = Expiry("sites[0].certificate", "CN=origin.example", NOW).advice()
    assert "sites[0].certificate: CN=origin.example expires on 2026-11-22: renew it" == str(advice)
