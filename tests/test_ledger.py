"""The parent's books: reports of several workers, some of whom die, and what they come to."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from aop_proxy.expiry import Expiry
from aop_proxy.ledger import FRESH, MINUTES, REFUSALS, Account, Ledger
from aop_proxy.model import Settings, Site, Upstream

SETTINGS = Settings((), (Site("c", "k", (Upstream("http://a:1"), Upstream("http://b:1"), Upstream("http://a:1"))),))
REFUSAL = {"time": 5.0, "verdict": "refused", "reason": "expired", "client": "192.0.2.1:1", "sni": None, "subject": "CN=a", "reference": "0123abcd"}  # fmt: skip


class Clock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 6000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(SETTINGS, clock)


def report(refused: int = 0, *, admitted: int = 0, down: int = 0, **more: Any) -> dict[str, Any]:
    totals = {"connections": {"refused expired": refused}, "admitted": {"": admitted}, "bytes": {"from_upstream": down}}
    common = {"open": {"accepted": 1}, "seen": {}, "shown": {}, "generation": 1, "refusals": []}
    return {"totals": totals, **common, **more}


def state(ledger: Ledger) -> dict[str, Any]:
    """What is told, as it arrives."""
    told: dict[str, Any] = json.loads(json.dumps(ledger.state()))
    return told


def refused(ledger: Ledger) -> float:
    count: float = state(ledger)["totals"]["connections"]["refused expired"]
    return count


def test_workers_are_summed(ledger: Ledger) -> None:
    """Their latest reports, each of which holds everything so far."""
    first, second = ledger.worker_started(1, 11), ledger.worker_started(2, 12)
    for worker, count in ((first, 3), (second, 4), (first, 5)):
        ledger.report(worker, report(count))
    assert refused(ledger) == 9


def test_nothing_goes_backwards(ledger: Ledger) -> None:
    """What a worker had told when it died is kept, and its replacement begins at nothing."""
    worker = ledger.worker_started(1, 11)
    for number in range(3):
        ledger.report(worker, report(10))
        ledger.worker_ended(worker)
        assert refused(ledger) == 10 * (number + 1)
        worker = ledger.worker_started(1, 12 + number)
        assert refused(ledger) == 10 * (number + 1)
    assert state(ledger)["restarts"] == 3


def test_who_is_ready(ledger: Ledger, clock: Clock) -> None:
    """Not before a worker reports, not when it has not for long, not while draining."""
    assert state(ledger)["not_ready"] == ["no worker serves"]
    worker = ledger.worker_started(1, 11)
    assert state(ledger)["ready"] is False
    ledger.report(worker, report())
    assert (state(ledger)["ready"], state(ledger)["workers"][0]["serves"]) == (True, True)
    clock.now += FRESH + 0.1
    assert (state(ledger)["ready"], state(ledger)["workers"][0]["serves"]) == (False, False)
    ledger.report(worker, report())
    ledger.draining()
    assert state(ledger)["not_ready"] == ["draining"]


def test_workers_stand_in_order(ledger: Ledger) -> None:
    """By number, however they were started."""
    dead, _ = ledger.worker_started(1, 11), ledger.worker_started(2, 12)
    ledger.worker_ended(dead)
    ledger.worker_started(1, 13)
    assert [(one["number"], one["pid"]) for one in state(ledger)["workers"]] == [(1, 13), (2, 12)]


def test_reloads(ledger: Ledger) -> None:
    """The first configuration is no reload; a failed one is told until a good one comes."""
    ledger.serves(SETTINGS, 1, [])
    assert state(ledger)["reloads"] == {"good": 0, "failed": 0}
    ledger.reload_failed(["listen: no"])
    told = state(ledger)
    assert (told["reloads"], told["reload_problems"], told["generation"]) == (
        {"good": 0, "failed": 1},
        ["listen: no"],
        1,
    )
    expiry = Expiry("sites[0].certificate", "CN=a", datetime.fromtimestamp(5, UTC))
    ledger.serves(SETTINGS, 2, [expiry])
    told = state(ledger)
    assert (told["reloads"], told["reload_problems"], told["generation"]) == ({"good": 1, "failed": 1}, [], 2)
    assert told["expiries"] == [{"path": "sites[0].certificate", "subject": "CN=a", "not_after": 5.0}]


def test_upstreams_are_those_of_the_configuration(ledger: Ledger) -> None:
    """Each once, in order; the latest dials of all workers are told."""
    for number, when in ((1, 7.0), (2, 6.0)):
        worker = ledger.worker_started(number, number)
        ledger.report(worker, report(seen={"failed http://a:1": when}))
    assert state(ledger)["upstreams"] == ["http://a:1", "http://b:1"]
    assert state(ledger)["seen"] == {"failed http://a:1": 7.0}


def test_the_certificates_shown_last(ledger: Ledger) -> None:
    """The latest of all workers counts, for the sites of the configuration alone."""
    first, second = ledger.worker_started(1, 11), ledger.worker_started(2, 12)
    ledger.report(first, report(shown={"*": [7.0, 300.0], "gone.example": [7.0, 1.0]}))
    ledger.report(second, report(shown={"*": [8.0, 200.0]}))
    ledger.report(first, report(shown={"*": [7.0, 300.0]}))
    assert state(ledger)["client_ends"] == {"*": 200.0}


def test_the_latest_refusals(ledger: Ledger) -> None:
    """The latest first, and not more than a page shows."""
    worker = ledger.worker_started(1, 11)
    for number in range(20):
        ledger.report(worker, report(refusals=[{**REFUSAL, "reference": f"{number}-{index}"} for index in range(10)]))
    told = state(ledger)["refusals"]
    assert (len(told), told[0]["reference"]) == (REFUSALS, "19-9")
    assert told[0] == {**REFUSAL, "reference": "19-9"}


def test_the_last_hour(ledger: Ledger, clock: Clock) -> None:
    """By minute; what has come since the last look belongs to the minute that it is."""
    worker = ledger.worker_started(1, 11)
    ledger.report(worker, report(4, admitted=6, down=100))
    state(ledger)
    clock.now += 60
    ledger.report(worker, report(5, admitted=6, down=150))
    ledger.worker_ended(worker)
    history = state(ledger)["history"]
    assert len(history) == MINUTES
    assert [(one["accepted"], one["refused"], one["from_upstream"]) for one in history[-3:]] == [
        (0, 0, 0),
        (6, 4, 100),
        (0, 1, 50),
    ]
    clock.now += 59 * 60
    assert [one["refused"] for one in state(ledger)["history"]] == [1] + [0] * 59
    clock.now += 24 * 3600
    assert {one["refused"] for one in state(ledger)["history"]} == {0}


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        "report",
        {},
        report(totals=[]),
        report(totals={"connections": {"refused expired": "7"}}),
        report(totals={"connections": {"refused expired": None}}),
        report(-1),
        report(totals={"connections": {"a": float("nan")}}),
        report(totals={"connections": {"a": float("inf")}}),
        report(totals={"connections": {str(number): 1 for number in range(20_001)}}),
        report(totals={"connections": {"a": 10**400}}),
        report(totals={str(number): {} for number in range(33)}),
        report(shown={"*": [float("nan"), 1.0]}),
        report(open=7),
        report(generation="x"),
        report(generation=10**400),
        report(generation=float("inf")),
        report(refusals=7),
        report(refusals=[7]),
        report(refusals=[{}]),
        report(refusals=[{**REFUSAL, "time": "x"}]),
        report(refusals=[{**REFUSAL, "time": float("inf")}]),
    ],
)
def test_what_is_no_report(ledger: Ledger, wrong: Any) -> None:
    """A worker that was taken over says what it likes: nothing of it is entered, and nothing breaks."""
    worker: Account = ledger.worker_started(1, 11)
    ledger.report(worker, report(3))
    with pytest.raises(ValueError, match=r"^(no report|could not|invalid|too many|a total)"):
        ledger.report(worker, wrong)
    assert refused(ledger) == 3


def test_a_liar_is_bounded(ledger: Ledger) -> None:
    """Words without end, again and again, do not fill the parent's memory."""
    for life in range(5):
        worker = ledger.worker_started(1, 11)
        totals = {"connections": {f"{life} {number} {'x' * 100}": 1 for number in range(10_000)}}
        seen = {f"{life} {number}": 1.0 for number in range(10_000)}
        ledger.report(worker, report(totals=totals, seen=seen, refusals=[{**REFUSAL, "sni": "x" * 10_000}]))
        ledger.worker_ended(worker)
    for life in range(5):
        worker = ledger.worker_started(1, 11)
        ledger.report(worker, report(totals={f"{life} {number}": {"": 1} for number in range(32)}))
        ledger.worker_ended(worker)
    told = state(ledger)
    assert (len(told["totals"]["connections"]), len(told["seen"]), len(told["totals"])) == (20_000, 20_000, 32)
    assert {len(one["sni"]) for one in told["refusals"]} == {512}
