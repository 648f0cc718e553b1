"""How a report is shown, above all what the origin wrote into it."""

import io
import json
from datetime import UTC, datetime

from rich.console import Console

from aop_proxy.judgement import Outcome, Visit, Visitor
from aop_proxy.probe import Lasting, Question, Report
from aop_proxy.report import as_json, show
from aop_proxy.visit import Unreachable

HOSTILE = "200 \x1b[2J[red]x[/red]\u202e\x07" + "y" * 10_000
QUESTION = Question(("192.0.2.1", 443), "example.com")


def report(
    outcome: Outcome = Outcome.REFUSED, seen: str = "400 no", visitor: Visitor = Visitor.NO_CERTIFICATE
) -> Report:
    return Report(
        enforced=outcome is Outcome.REFUSED,
        visits=(Visit(visitor, outcome, seen),),
        shows_certificate_to_unknown_name=True,
        serves_plain_http=False,
        accepts_old_tls=None,
        resumes_past_verification=False,
        certificates=(Lasting(f"CN={seen}", datetime(2030, 1, 1, tzinfo=UTC), 7),),
    )


def shown(of: Report) -> str:
    console = Console(record=True, width=400, file=io.StringIO())
    show(of, console)
    return console.export_text()


def test_what_the_origin_wrote_is_escaped() -> None:
    """No control character, no markup, no flood, in the table as in JSON."""
    table = shown(report(seen=HOSTILE))
    assert [character for character in "\x1b\x07\u202e" if character in table] == []
    assert r"200 \x1b[2J[red]x[/red]\u202e\x07" in table
    text = as_json(QUESTION, report(seen=HOSTILE))
    assert (text.isascii(), len(text) < 2000) == (True, True)
    (visit,) = json.loads(text)["visitors"]
    assert visit["seen"].startswith(r"200 \x1b[2J[red]")
    problem = json.loads(as_json(QUESTION, Unreachable(HOSTILE)))["problem"]
    assert (problem.isprintable(), len(problem) <= 256) == (True, True)


def test_the_verdict_stands_last() -> None:
    """In one of three ways."""
    verdicts = {outcome: shown(report(outcome)).splitlines()[-1] for outcome in Outcome}
    assert verdicts[Outcome.REFUSED] == "enforced: every stranger is refused"
    assert verdicts[Outcome.LET_IN] == "not enforced: strangers are let in"
    assert verdicts[Outcome.UNCLEAR].startswith("not enforced as far as can be told: give --certificate")


def test_what_could_not_be_tried() -> None:
    """Is said so, and is null for machines."""
    assert "could not be tried" in shown(report())
    assert json.loads(as_json(QUESTION, report()))["accepts_old_tls"] is None


def test_a_session_that_was_not_taken_up() -> None:
    """The visit was then one like any other."""
    assert "400 no (not resumed)" in shown(report(visitor=Visitor.RESUMED))
