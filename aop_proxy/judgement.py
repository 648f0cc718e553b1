"""What one answer comes to: refused, let in, or unclear. Must not know how anybody was asked."""

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from aop_proxy.visit import Answer


class Outcome(StrEnum):
    """What an answer comes to."""

    REFUSED = "refused"
    LET_IN = "let_in"
    UNCLEAR = "unclear"
    """A 403 or silence, which a backend behind no gate may give as well."""
    NOT_TRIED = "not_tried"


class Visitor(StrEnum):
    """Who asks."""

    NO_CERTIFICATE = "no_certificate"
    SELF_SIGNED = "self_signed"
    EXPIRED = "expired"
    PLAIN_HTTP = "plain_http"
    OLD_TLS = "old_tls"
    UNKNOWN_NAME = "unknown_name"
    RESUMED = "resumed"
    CERTIFICATE = "certificate"
    CERTIFICATE_RESUMED = "certificate_resumed"


STRANGERS = frozenset(Visitor) - {Visitor.CERTIFICATE, Visitor.CERTIFICATE_RESUMED}
_REFUSALS = (
    b"No required SSL certificate was sent",
    b"The SSL certificate error",
    b"The SSL certificate is not allowed here",  # ours
    b"The plain HTTP request was sent to HTTPS port",
    b"speaking plain HTTP to an SSL-enabled server port",  # Apache
    b"Client sent an HTTP request to an HTTPS server",  # Go, and so Caddy
)
"""What stands in a 400 that is a refusal: NGINX's sentences, which are ours too, unless said otherwise."""
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: ([^\r\n]{0,80}))?")


@dataclass(frozen=True)
class Visit:
    """What one visitor saw, and what that comes to."""

    visitor: Visitor
    outcome: Outcome
    seen: str
    """In words; partly the origin's own, unescaped."""
    status: int | None = None
    alert: str | None = None
    tls_version: str | None = None
    resumed: bool = False


def judge(visitor: Visitor, answer: Answer | None, tells_apart: bool) -> Visit:
    """`tells_apart`: a given certificate is answered, so that a 403 or silence is about the certificate."""
    if answer is None:
        return Visit(visitor, Outcome.NOT_TRIED, _why_not_tried(visitor))
    status, seen = _status(answer), _seen(answer)
    visit = Visit(visitor, Outcome.LET_IN, seen, status, answer.alert, answer.tls_version, answer.resumed)
    if _is_refusal(answer) or (not answer.data and _needs_no_words(visitor, answer)):
        return replace(visit, outcome=Outcome.REFUSED)
    if status == 403 or not answer.data:
        return replace(visit, outcome=Outcome.REFUSED if tells_apart else Outcome.UNCLEAR)
    return visit


def _why_not_tried(visitor: Visitor) -> str:
    match visitor:
        case Visitor.RESUMED:
            return "was offered no session to resume"
        case Visitor.CERTIFICATE_RESUMED:
            return "no session was resumed"
        case _:
            return "could not be tried: the OpenSSL of this machine does not speak it"


def _status(answer: Answer) -> int | None:
    line = _STATUS_LINE.match(answer.data)
    return int(line[1]) if line else None


def _is_refusal(answer: Answer) -> bool:
    if answer.data:
        status = _status(answer)
        return status == 421 or (status == 400 and any(sentence in answer.data for sentence in _REFUSALS))
    return answer.alert is not None


def is_service(answer: Answer) -> bool:
    """It is an answer, and none that a stranger gets."""
    return _status(answer) not in (None, 403) and not _is_refusal(answer)


def _needs_no_words(visitor: Visitor, answer: Answer) -> bool:
    """Silence refuses who came in clear, or in a TLS that was not taken up."""
    return visitor is Visitor.PLAIN_HTTP or (visitor is Visitor.OLD_TLS and answer.tls_version is None)


def _seen(answer: Answer) -> str:
    if not answer.data:
        return answer.ending
    line = _STATUS_LINE.match(answer.data)
    if line is None:
        return f"{len(answer.data)} bytes that are no HTTP/1"
    known = next((sentence for sentence in _REFUSALS if sentence in answer.data), line[2] or b"")
    return f"{line[1].decode()} {known.decode('utf-8', 'replace')}".rstrip()
