"""A state in words: what is told first, and with which tone."""

from typing import Any

import pytest

from aop_proxy import summary
from test_status_page import DAY, lively, quiet


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0"), (999, "999"), (12345, "12,345"), (123456, "123k"), (1234567, "1.2M"), (5e9, "5.0G")]
)
def test_counts(number: float, words: str) -> None:
    """Exact as long as that is short."""
    assert summary.count(number) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (500_000, "488 KiB"), (3e9, "2.8 GiB"), (5e15, "4547.5 TiB")],
)
def test_bytes(number: float, words: str) -> None:
    """In the units of the configuration."""
    assert summary.size(number) == words


@pytest.mark.parametrize(
    ("counted", "words"),
    [({}, None), ({"0": 3}, "0.5 ms"), ({"0": 1, "9": 2}, "500 ms"), ({"11": 1}, "2.5 s"), ({"14": 1}, "10 s")],
)
def test_the_middle_one(counted: dict[str, float], words: str | None) -> None:
    """As exact as the buckets are."""
    assert summary.median(counted) == words


def test_causes() -> None:
    """The most frequent first; who was accepted is none."""
    causes = summary.causes(lively())
    assert [(cause.verdict, cause.reason) for cause in causes[:2]] == [
        ("refused", "no_certificate"),
        ("refused", "plain_http"),
    ]
    assert [cause.number for cause in causes] == sorted((cause.number for cause in causes), reverse=True)
    assert "accepted" not in {cause.verdict for cause in causes}
    assert summary.causes(quiet()) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ("Enforcing", "good")),
        ({"enforcement": "observe"}, ("Observing", "warn")),
        ({"ready": False, "not_ready": ["draining"]}, ("Draining", "warn")),
        ({"ready": False, "not_ready": ["draining", "no worker serves"]}, ("Draining", "warn")),
        ({"ready": False, "not_ready": ["no worker serves"]}, ("Not serving", "bad")),
    ],
)
def test_condition(changed: dict[str, Any], expected: tuple[str, str]) -> None:
    """One word for all of it."""
    assert summary.condition(quiet() | changed) == expected


@pytest.mark.parametrize(("days", "tone"), [(-1, "bad"), (6.9, "bad"), (7.1, "warn"), (29.9, "warn"), (30.1, "good")])
def test_the_tone_of_an_end(days: float, tone: str) -> None:
    """A month before it is a warning, a week before an alarm."""
    state = quiet()
    state["expiries"] = [{"path": "p", "subject": "s", "not_after": state["time"] + days * DAY}]
    assert summary.ends(state)[0].tone == tone


def test_traffic_is_that_of_two_minutes() -> None:
    """The second of which is still going on."""
    state = quiet()
    state["time"] = 1_000_000 * 60 + 30.0
    state["history"][-2]["from_client"] = 90 * 1024
    assert [figure.number for figure in summary.figures(state) if figure.name == "traffic"] == ["1.0 KiB/s"]
