"""Skipped for a short, growing while, tried by one at a time, told once when it goes down and once when it comes back."""

import os
from collections.abc import Iterator

import pytest

import actors
from actors import PATIENCE, Event
from aop_proxy import model
from aop_proxy.health import MOST_DOWN, SKIP_MAX, SKIP_MIN, Health
from aop_proxy.log import Log

URL = "http://app:8000"
A, B = "192.0.2.1:8000", "192.0.2.2:8000"


class Clinic:
    """A `Health` whose clock is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._read, self._write = os.pipe()
        self._log = actors.Log(self._read)
        self.health = Health(Log(model.Log("json"), self._write), 7, lambda: self.now)

    def fail(self, place: str = A) -> None:
        self.health.failed(place, URL, "Connection refused")

    def told(self) -> list[Event]:
        """Every line, once the log is closed."""
        if self._write >= 0:
            os.close(self._write)
        self._write = -1
        self._log.join(PATIENCE)
        return [{key: value for key, value in event.items() if key != "time"} for event in self._log.events]


@pytest.fixture
def clinic() -> Iterator[Clinic]:
    clinic = Clinic()
    yield clinic
    clinic.told()


def test_who_never_failed_is_tried(clinic: Clinic) -> None:
    """Again and again, and nothing is told of it."""
    for _ in range(3):
        assert clinic.health.is_worth_a_try(A)
        clinic.health.answered(A, URL)
    assert [] == clinic.told()


def test_who_failed_is_skipped_for_a_while(clinic: Clinic) -> None:
    """Others are not; when the while is over one try is made, and others wait for what comes of it."""
    clinic.fail()
    assert (False, True) == (clinic.health.is_worth_a_try(A), clinic.health.is_worth_a_try(B))
    clinic.now += SKIP_MIN
    assert [True, False, False] == [clinic.health.is_worth_a_try(A) for _ in range(3)]


def test_a_try_of_which_nothing_is_heard_is_made_again(clinic: Clinic) -> None:
    """A client that leaves during the dial does not keep a backend down for ever."""
    clinic.fail()
    for _ in range(3):
        clinic.now += SKIP_MIN
        assert clinic.health.is_worth_a_try(A)


def test_the_while_grows(clinic: Clinic) -> None:
    """It doubles with each failure, to thirty seconds; failures of those who try in spite of it change nothing."""
    clinic.fail()
    whiles = []
    for _ in range(7):
        start = clinic.now
        while not clinic.health.is_worth_a_try(A):
            clinic.fail()
            clinic.now += 0.5
        whiles.append(clinic.now - start)
        clinic.fail()
    assert [SKIP_MIN, 2.0, 4.0, 8.0, 16.0, SKIP_MAX, SKIP_MAX] == whiles


def test_both_ends_are_told_once(clinic: Clinic) -> None:
    """With the address, the reason and the time; after that it begins anew."""
    clinic.fail()
    clinic.fail()
    clinic.now += 12.34
    assert clinic.health.is_worth_a_try(A)
    clinic.health.answered(A, URL)
    clinic.health.answered(A, URL)
    assert clinic.health.is_worth_a_try(A)
    common = {"upstream": URL, "address": A, "worker": 7}
    assert clinic.told() == [
        {"level": "warning", "event": "upstream_down", "why": "Connection refused", **common},
        {"level": "info", "event": "upstream_up", "down_seconds": 12.3, **common},
    ]


def test_failing_and_answering_in_turns_is_not_told_each_time(clinic: Clinic) -> None:
    """Within a second of going down an answer does not bring it up: a thousand turns in a second are one line."""
    for _ in range(1000):
        clinic.fail()
        clinic.health.answered(A, URL)
        clinic.now += 0.0005
    assert 1 == len(clinic.told())


def test_what_is_remembered_is_bounded(clinic: Clinic) -> None:
    """The oldest is forgotten first."""
    for number in range(MOST_DOWN + 1):
        clinic.fail(str(number))
    assert clinic.health.is_worth_a_try("0")
    assert not clinic.health.is_worth_a_try("1")
