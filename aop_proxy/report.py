"""A probe's report -> one table, or JSON for machines. Whatever the origin wrote is escaped here."""

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aop_proxy.judgement import STRANGERS, Outcome, Visitor
from aop_proxy.log import escape
from aop_proxy.probe import Question, Report
from aop_proxy.visit import Unreachable

_MAX_SHOWN, _MAX_IN_JSON = 120, 256
_NAMES = {
    Visitor.NO_CERTIFICATE: "no certificate",
    Visitor.SELF_SIGNED: "self-signed certificate",
    Visitor.EXPIRED: "expired certificate",
    Visitor.PLAIN_HTTP: "plain HTTP",
    Visitor.OLD_TLS: "TLS 1.0 or 1.1",
    Visitor.UNKNOWN_NAME: "an unknown name in the handshake",
    Visitor.RESUMED: "a session of that unknown name",
    Visitor.CERTIFICATE: "the given certificate",
    Visitor.CERTIFICATE_RESUMED: "its session, without the certificate",
}
_FINDINGS = {
    "shows_certificate_to_unknown_name": "shows its certificate to an unknown name",
    "serves_plain_http": "serves plain HTTP on this port",
    "accepts_old_tls": "accepts TLS 1.0 or 1.1",
    "resumes_past_verification": "resumes sessions past verification",
}
_STYLES = {Outcome.REFUSED: "green", Outcome.LET_IN: "red", Outcome.UNCLEAR: "yellow", Outcome.NOT_TRIED: "dim"}
_SOON = 30
"""Days left that are worth a colour."""


def show(report: Report, console: Console) -> None:
    """Print the table and the verdict."""
    table = Table("Asked with", "Sees", "")
    for visit in report.visits:
        fresh = visit.visitor is Visitor.RESUMED and visit.outcome is not Outcome.NOT_TRIED and not visit.resumed
        seen = f"{visit.seen} (not resumed)" if fresh else visit.seen
        style = _STYLES[visit.outcome]
        if visit.visitor is Visitor.CERTIFICATE:  # who is to be let in
            style = _STYLES[Outcome.REFUSED if visit.outcome is Outcome.LET_IN else Outcome.UNCLEAR]
        table.add_row(_NAMES[visit.visitor], _text(seen), Text(visit.outcome.replace("_", " "), style))
    table.add_section()
    for name, words in _FINDINGS.items():
        found = getattr(report, name)
        answer = "could not be tried" if found is None else "yes" if found else "no"
        table.add_row(words, "", Text(answer, "yellow" if found else ""))
    table.add_section()
    for one in report.certificates:
        days = Text(f"{one.days_left} days left", "yellow" if one.days_left < _SOON else "")
        table.add_row("certificate of the origin", _text(f"{one.subject}, until {one.not_after:%Y-%m-%d}"), days)
    console.print(table)
    console.print(_verdict(report))


def _verdict(report: Report) -> Text:
    if report.enforced:
        return Text("enforced: every stranger is refused", "bold green")
    if any(visit.outcome is Outcome.LET_IN for visit in report.visits if visit.visitor in STRANGERS):
        return Text("not enforced: strangers are let in", "bold red")
    return Text(
        "not enforced as far as can be told: give --certificate, to tell refusals from a backend's own", "bold yellow"
    )


def _text(words: str) -> Text:
    """As text, never as rich's markup."""
    return Text(escape(words, _MAX_SHOWN))


def as_json(question: Question, found: Report | Unreachable) -> str:
    """The same for machines; `enforced` is null where nothing was learnt, and `problem` says why."""
    asked = {"origin": f"{question.address[0]}:{question.address[1]}", "server_name": question.server_name}
    if isinstance(found, Unreachable):
        return json.dumps({**asked, "enforced": None, "problem": escape(str(found), _MAX_IN_JSON)}, indent=2)
    visitors = [
        {
            "visitor": visit.visitor,
            "outcome": visit.outcome,
            "seen": escape(visit.seen, _MAX_IN_JSON),
            "status": visit.status,
            "alert": visit.alert,
            "tls_version": visit.tls_version,
            "resumed": visit.resumed,
        }
        for visit in found.visits
    ]
    findings = {name: getattr(found, name) for name in _FINDINGS}
    certificates = [
        {
            "subject": escape(one.subject, _MAX_IN_JSON),
            "not_after": one.not_after.isoformat(),
            "days_left": one.days_left,
        }
        for one in found.certificates
    ]
    whole = {**asked, "enforced": found.enforced, "visitors": visitors, **findings, "certificates": certificates}
    return json.dumps(whole, indent=2)
