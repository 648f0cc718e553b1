"""Whether an origin enforces Authenticated Origin Pulls, from what it says to strangers, one visit each.

In: an address and a few files. Out: a `Report`. Needs no privilege, and asks at most nine times. Must not know how an
origin is asked, nor how a report is shown.
"""

import ssl
import tempfile
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from pathlib import Path

from cryptography import x509

from aop_proxy.judgement import STRANGERS, Outcome, Visit, Visitor, is_service, judge
from aop_proxy.visit import (
    Address,
    Answer,
    Credentials,
    NotPossibleHere,
    Unreachable,
    ask,
    ask_plainly,
    client_context,
    locate,
    make_old,
)
from aop_proxy.zone_certificates import AUTHORITY, CLIENT, issue, subject_of


class ExitCode(IntEnum):
    """How `probe` ends."""

    ENFORCED = 0
    NOT_ENFORCED = 1
    UNREACHABLE = 3


@dataclass(frozen=True)
class Question:
    """Whom to ask, and as whom."""

    address: Address
    server_name: str
    credentials: Credentials | None = None
    """Of a client that should pass."""
    ca: str | None = None
    verify: bool = True


@dataclass(frozen=True)
class Lasting:
    """How long one of the origin's certificates lasts."""

    subject: str
    not_after: datetime
    days_left: int


@dataclass(frozen=True)
class Report:
    """What was found out."""

    enforced: bool
    """Every stranger is refused in TLS, or reads a refusal."""
    visits: tuple[Visit, ...]
    shows_certificate_to_unknown_name: bool
    serves_plain_http: bool
    accepts_old_tls: bool | None
    """None: the OpenSSL of this machine does not speak it."""
    resumes_past_verification: bool
    """Whoever resumes a session is let in without a certificate, where others are not."""
    certificates: tuple[Lasting, ...]


def probe(question: Question) -> Report:
    """Ask as everyone. Raises Unreachable, and ValueError for files that cannot be used."""
    answers = _Asking(question).ask_all()
    good = answers.get(Visitor.CERTIFICATE)
    tells_apart = good is not None and is_service(good)
    visits = {visitor: judge(visitor, answer, tells_apart) for visitor, answer in answers.items()}
    strangers = [visits[visitor] for visitor in visits if visitor in STRANGERS]
    first, unknown, old = (answers[one] for one in (Visitor.NO_CERTIFICATE, Visitor.UNKNOWN_NAME, Visitor.OLD_TLS))
    let_in = any(visit.outcome is Outcome.LET_IN for visit in strangers)
    if first is None or (not first.chain and not let_in):
        raise Unreachable(_why_nothing_was_learnt(first))
    refuses = visits[Visitor.NO_CERTIFICATE].outcome is not Outcome.LET_IN
    resumed = (visits.get(visitor) for visitor in (Visitor.RESUMED, Visitor.CERTIFICATE_RESUMED))
    return Report(
        enforced=all(visit.outcome in (Outcome.REFUSED, Outcome.NOT_TRIED) for visit in strangers),
        visits=tuple(visits.values()),
        shows_certificate_to_unknown_name=bool(unknown and first.chain and unknown.chain[:1] == first.chain[:1]),
        serves_plain_http=visits[Visitor.PLAIN_HTTP].status is not None
        and visits[Visitor.PLAIN_HTTP].outcome is not Outcome.REFUSED,
        accepts_old_tls=bool(old.chain or old.tls_version) if old else None,
        resumes_past_verification=refuses
        and any(visit is not None and visit.resumed and visit.outcome is Outcome.LET_IN for visit in resumed),
        certificates=tuple(map(_lasting, first.chain)),
    )


def exit_code(found: Report | Unreachable) -> ExitCode:
    """How a probe that found this ends."""
    if isinstance(found, Unreachable):
        return ExitCode.UNREACHABLE
    return ExitCode.ENFORCED if found.enforced else ExitCode.NOT_ENFORCED


def _why_nothing_was_learnt(first: Answer | None) -> str:
    seen = first.ending if first else "TLS cannot be spoken here"
    if first and first.alert:
        return f"it refuses before it shows a certificate ({seen}), so certificates are not why: give --server-name"
    return f"something listens there, but not for TLS 1.2 or 1.3: {seen}"


class _Asking:
    """One visit after the other; None where one could not be made."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._address = question.address
        host = question.server_name if question.address[1] == 443 else f"{question.server_name}:{question.address[1]}"
        self._request = (
            f"GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: aop-proxy-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        ).encode("ascii", "replace")
        self._unknown_name = f"unknown-{uuid.uuid4().hex[:12]}.invalid"

    def ask_all(self) -> dict[Visitor, Answer | None]:
        """Ask as everyone, in the order of `Visitor`."""
        # The name is foreign, so the certificate cannot fit it; that the key is known is checked by resuming with it.
        anybody = client_context(None, None, verify=False)
        # Before anybody is asked: files may be of no use.
        stranger, given = self._context(None), self._context(self._question.credentials)
        self._address = locate(self._question.address)
        answers: dict[Visitor, Answer | None] = {Visitor.NO_CERTIFICATE: self._ask(stranger)}
        with tempfile.TemporaryDirectory(prefix="aop-proxy-probe-") as directory:
            for visitor, credentials in _strangers_credentials(Path(directory)).items():
                answers[visitor] = self._ask(self._context(credentials))
        answers[Visitor.PLAIN_HTTP] = ask_plainly(self._address, self._request)
        answers[Visitor.OLD_TLS] = self._ask_in_old_tls()
        unknown = answers[Visitor.UNKNOWN_NAME] = self._ask(anybody, self._unknown_name)
        session = unknown.session if unknown else None
        answers[Visitor.RESUMED] = self._ask(anybody, session=session) if session else None
        if self._question.credentials is not None:
            good = answers[Visitor.CERTIFICATE] = self._ask(given)
            again = self._ask(given, session=good.session) if good and good.session else None
            # Where the session was not taken up, the certificate was shown again, which is as it should be.
            answers[Visitor.CERTIFICATE_RESUMED] = again if again and again.resumed else None
        return answers

    def _context(self, credentials: Credentials | None) -> ssl.SSLContext:
        return client_context(credentials, self._question.ca, verify=self._question.verify)

    def _ask(
        self, context: ssl.SSLContext, server_name: str | None = None, session: ssl.SSLSession | None = None
    ) -> Answer | None:
        try:
            name = server_name or self._question.server_name
            return ask(self._address, self._request, context, name, session)
        except NotPossibleHere:
            return None

    def _ask_in_old_tls(self) -> Answer | None:
        context = self._context(None)
        try:
            make_old(context)
        except NotPossibleHere:
            return None
        return self._ask(context)


def _strangers_credentials(directory: Path) -> dict[Visitor, Credentials]:
    """A certificate that signs itself, and one that ended yesterday, from a CA that nobody knows."""
    now, day = datetime.now(UTC), timedelta(days=1)
    authority = issue(subject_of("probe CA"), None, now - 3 * day, now + day, AUTHORITY)
    made = {
        Visitor.SELF_SIGNED: issue(subject_of("probe"), None, now - day, now + day, CLIENT),
        Visitor.EXPIRED: issue(subject_of("probe, expired"), authority, now - 2 * day, now - day, CLIENT),
    }
    found = {}
    for visitor, issued in made.items():
        certificate, key = directory / f"{visitor}.pem", directory / f"{visitor}.key"
        certificate.write_bytes(issued.certificate_pem)
        key.write_bytes(issued.key_pem)
        found[visitor] = Credentials(str(certificate), str(key))
    return found


def _lasting(der: bytes) -> Lasting:
    """Raises Unreachable for what is no certificate."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        subject = certificate.subject.rfc4514_string()
        end = certificate.not_valid_after_utc
    except ValueError as error:
        raise Unreachable("the origin's certificate cannot be read") from error
    return Lasting(subject, end, (end - datetime.now(UTC)).days)
