"""What one answer of an origin comes to."""

import pytest

from aop_proxy import pages
from aop_proxy.judgement import Outcome, Visitor, judge
from aop_proxy.reasons import Reason
from aop_proxy.visit import Answer

STRANGER, PLAIN, OLD = Visitor.NO_CERTIFICATE, Visitor.PLAIN_HTTP, Visitor.OLD_TLS
SILENCE = Answer(tls_version="TLSv1.3")
FORBIDDEN = Answer(b"HTTP/1.1 403 Forbidden\r\n\r\n", tls_version="TLSv1.3")


def answered(text: str) -> Answer:
    return Answer(text.encode(), tls_version="TLSv1.3")


@pytest.mark.parametrize(
    ("visitor", "answer", "expected"),
    [
        (STRANGER, answered("HTTP/1.1 400 Bad Request\r\n\r\nNo required SSL certificate was sent"), Outcome.REFUSED),
        (STRANGER, answered("HTTP/1.1 421 Misdirected Request\r\n\r\n"), Outcome.REFUSED),
        (STRANGER, Answer(alert="certificate_required"), Outcome.REFUSED),
        (STRANGER, answered("HTTP/1.1 400 Bad Request\r\n\r\nInvalid host header"), Outcome.LET_IN),
        (STRANGER, answered("HTTP/1.1 200 OK\r\n\r\nNo required SSL certificate was sent"), Outcome.LET_IN),
        (STRANGER, answered("HTTP/1.1 502 Bad Gateway\r\n\r\n"), Outcome.LET_IN),
        (STRANGER, answered("HTTP/1.1 301 Moved\r\nLocation: /\r\n\r\n"), Outcome.LET_IN),
        (STRANGER, answered("SSH-2.0-x\r\n"), Outcome.LET_IN),
        (STRANGER, Answer(b"HTTP/1.1 200 OK\r\n\r\n", alert="internal_error"), Outcome.LET_IN),
        (STRANGER, FORBIDDEN, Outcome.UNCLEAR),
        (STRANGER, SILENCE, Outcome.UNCLEAR),
        (PLAIN, Answer(), Outcome.REFUSED),
        (PLAIN, Answer(b"HTTP/1.1 200 OK\r\n\r\n"), Outcome.LET_IN),
        (PLAIN, Answer(b"HTTP/1.1 301 Moved\r\n\r\n"), Outcome.LET_IN),
        (OLD, Answer(), Outcome.REFUSED),
        (OLD, SILENCE, Outcome.UNCLEAR),
        (OLD, None, Outcome.NOT_TRIED),
    ],
)
def test_what_an_answer_comes_to(visitor: Visitor, answer: Answer | None, expected: Outcome) -> None:
    """Only a known refusal is one."""
    assert expected is judge(visitor, answer, tells_apart=False).outcome


@pytest.mark.parametrize("answer", [SILENCE, FORBIDDEN])
def test_what_a_given_certificate_does_not_get(answer: Answer) -> None:
    """A 403, or silence, is a refusal where another visitor is answered."""
    assert Outcome.REFUSED is judge(STRANGER, answer, tells_apart=True).outcome


def test_every_page_of_ours_that_refuses_is_known() -> None:
    """What we say to whom we do not let in."""
    certificates = [reason for reason in Reason if "400" in _title(reason) or "421" in _title(reason)]
    assert len(certificates) > 10
    for reason in certificates:
        answer = Answer(pages.page(reason, "0" * pages.REFERENCE_LENGTH), tls_version="TLSv1.3")
        assert Outcome.REFUSED is judge(STRANGER, answer, tells_apart=False).outcome


def _title(reason: Reason) -> str:
    try:
        return pages.page(reason, "0" * pages.REFERENCE_LENGTH).decode().partition("<title>")[2][:4]
    except KeyError:
        return ""
