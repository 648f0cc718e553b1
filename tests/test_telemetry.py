"""One line per connection, with its fields in the order of the contract, and few of those about strangers."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from aop_proxy import model
from aop_proxy.log import Log
from aop_proxy.reasons import Reason, Verdict
from aop_proxy.telemetry import SUPPRESSED_EVERY, ConnectionLog, ConnectionRecord
from certificates import Authority, Credentials

ORDER = (
    "time level event verdict reason client site sni tls_version cipher subject issuer fingerprint upstream"
    " bytes_from_client bytes_from_upstream duration_ms reference worker generation"
)
RECORD = ConnectionRecord(client="192.0.2.1:4711", reference="0123abcd", started=100.0, generation=3)
REFUSED = replace(RECORD, reason=Reason.NO_CERTIFICATE)


class Clock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Lines:
    """What was logged since the last look."""

    def __init__(self, reader: int) -> None:
        self._reader = reader

    def __call__(self) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in os.read(self._reader, 1 << 20).splitlines()]
        except BlockingIOError:
            return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def lines(pipe: tuple[int, int]) -> Lines:
    return Lines(pipe[0])


@pytest.fixture
def make_log(pipe: tuple[int, int], clock: Clock) -> Callable[..., ConnectionLog]:
    def make(rate: float = 20.0, level: Any = "info") -> ConnectionLog:
        return ConnectionLog(Log(model.Log("json", level), pipe[1]), 2, rate, clock)

    return make


@pytest.fixture(scope="module")
def edge() -> Credentials:
    return Authority("Some CA").issue("edge.example")


def der(credentials: Credentials) -> bytes:
    return credentials.certificate.public_bytes(Encoding.DER)


def test_keys_stand_in_the_order_of_the_contract(
    make_log: Callable[..., ConnectionLog], lines: Lines, clock: Clock, edge: Credentials
) -> None:
    """A connection that was served has all there is to say about it."""
    record = replace(
        RECORD,
        site="example.com",
        sni="www.example.com",
        tls_version="TLSv1.3",
        cipher="TLS_AES_128_GCM_SHA256",
        certificate=der(edge),
        upstream="http://127.0.0.1:8000",
        bytes_from_client=12,
        bytes_from_upstream=34,
    )
    clock.now += 1.23456
    make_log().write(record)
    (line,) = lines()
    assert " ".join(line) == ORDER
    del line["time"]
    assert line == {
        "level": "info",
        "event": "connection",
        "verdict": "accepted",
        "reason": "closed",
        "client": "192.0.2.1:4711",
        "site": "example.com",
        "sni": "www.example.com",
        "tls_version": "TLSv1.3",
        "cipher": "TLS_AES_128_GCM_SHA256",
        "subject": "CN=edge.example",
        "issuer": "CN=Some CA",
        "fingerprint": edge.fingerprint,
        "upstream": "http://127.0.0.1:8000",
        "bytes_from_client": 12,
        "bytes_from_upstream": 34,
        "duration_ms": 1234.6,
        "reference": "0123abcd",
        "worker": 2,
        "generation": 3,
    }


@pytest.mark.parametrize("certificate", [None, b"", b"no certificate at all"])
def test_without_a_certificate_that_can_be_read(
    make_log: Callable[..., ConnectionLog], lines: Lines, certificate: bytes | None
) -> None:
    """The keys are there all the same, with null."""
    make_log().write(replace(REFUSED, certificate=certificate))
    (line,) = lines()
    assert " ".join(line) == ORDER
    assert [line[name] for name in ("subject", "issuer", "fingerprint", "sni", "site")] == [None] * 5


@pytest.mark.parametrize("reason", [Reason.EXPIRED, Reason.NOT_YET_VALID])
def test_dates_are_told_where_they_are_the_reason(
    make_log: Callable[..., ConnectionLog], lines: Lines, edge: Credentials, reason: Reason
) -> None:
    """Who looks for the fault needs the certificate's dates and our clock."""
    make_log().write(replace(RECORD, reason=reason, certificate=der(edge)))
    (line,) = lines()
    assert " ".join(line) == ORDER + " not_before not_after our_clock"
    assert datetime.fromisoformat(line["not_before"]) == edge.certificate.not_valid_before_utc
    assert datetime.fromisoformat(line["not_after"]) == edge.certificate.not_valid_after_utc
    assert abs(datetime.fromisoformat(line["our_clock"]) - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize("reason", [Reason.UNKNOWN_CA, Reason.CLOSED])
def test_dates_are_not_told_elsewhere(
    make_log: Callable[..., ConnectionLog], lines: Lines, edge: Credentials, reason: Reason
) -> None:
    """Another reason has nothing to do with dates."""
    make_log().write(replace(RECORD, reason=reason, certificate=der(edge)))
    assert " ".join(lines()[0]) == ORDER


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_levels(make_log: Callable[..., ConnectionLog], lines: Lines, reason: Reason) -> None:
    """Who says nothing is debug, a backend that fails is a warning, a bug an error, all else info."""
    expected = {
        Reason.CLIENT_SILENT: "debug",
        Reason.UPSTREAM_UNREACHABLE: "warning",
        Reason.UPSTREAM_TIMEOUT: "warning",
        Reason.INTERNAL_ERROR: "error",
    }
    make_log(level="debug").write(replace(RECORD, reason=reason))
    (line,) = lines()
    assert [line["level"], line["verdict"], line["reason"]] == [expected.get(reason, "info"), reason.verdict, reason]


def test_silent_clients_are_not_seen(make_log: Callable[..., ConnectionLog], lines: Lines) -> None:
    """A health check that connects and closes leaves no line, and is not counted as held back either."""
    log = make_log(rate=1)
    for _ in range(100):
        log.write(replace(RECORD, reason=Reason.CLIENT_SILENT))
    log.write(REFUSED)
    log.write_suppressed()
    assert [line["reason"] for line in lines()] == ["no_certificate"]


def test_a_scan_leaves_few_lines_that_add_up(
    make_log: Callable[..., ConnectionLog], lines: Lines, clock: Clock
) -> None:
    """700 refusals a second for 20 s: 20 lines a second, and those held back are counted exactly, by reason."""
    log, sent, seen, held_back = make_log(rate=20), Counter[str](), Counter[str](), Counter[str]()
    reasons = [Reason.NO_CERTIFICATE, Reason.SELF_SIGNED, Reason.PLAIN_HTTP, Reason.HANDSHAKE_FAILED]
    for number in range(700 * 20):
        clock.now = 100.0 + number / 700
        record = replace(RECORD, reason=reasons[number % 7 % 4])
        sent[record.reason.value] += 1
        log.write(record)
        if number % 7000 == 6999:  # every 10 s
            log.write_suppressed()
        for line in lines():
            (seen if line["event"] == "connection" else held_back)[line["reason"]] += line.get("count", 1)
    assert 20 * 20 <= seen.total() <= 20 * 20 + 20
    assert seen + held_back == sent
    assert SUPPRESSED_EVERY == 10


def test_who_was_accepted_is_never_held_back(
    make_log: Callable[..., ConnectionLog], lines: Lines, clock: Clock
) -> None:
    """In the middle of a scan every connection that was served has its line."""
    log = make_log(rate=1)
    for _ in range(50):
        log.write(REFUSED)
        log.write(RECORD)
    assert Counter(line["verdict"] for line in lines()) == {"refused": 1, "accepted": 50}


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.verdict is not Verdict.ACCEPTED], ids=str)
def test_every_other_reason_passes_the_bucket(
    make_log: Callable[..., ConnectionLog], lines: Lines, reason: Reason
) -> None:
    """Whoever is refused or fails cannot fill a disk."""
    log = make_log(rate=2, level="debug")
    for _ in range(5):
        log.write(replace(RECORD, reason=reason))
    log.write_suppressed()
    shown = lines()
    assert [line["event"] for line in shown] == ["connection", "connection", "suppressed"]
    assert [shown[2]["reason"], shown[2]["count"], shown[2]["worker"]] == [reason, 3, 2]


def test_nothing_held_back_is_nothing_to_say(make_log: Callable[..., ConnectionLog], lines: Lines) -> None:
    """What was told once is not told again."""
    log = make_log(rate=1)
    for _ in range(3):
        log.write(REFUSED)
    log.write_suppressed()
    assert [line["event"] for line in lines()] == ["connection", "suppressed"]
    log.write_suppressed()
    assert lines() == []


def test_tokens_come_back(make_log: Callable[..., ConnectionLog], lines: Lines, clock: Clock) -> None:
    """After a quiet time a burst of one second's worth is shown, and not more."""
    log = make_log(rate=3)
    for _ in range(2):
        clock.now += 1000
        for _ in range(10):
            log.write(REFUSED)
        assert len(lines()) == 3


def test_rate_below_one(make_log: Callable[..., ConnectionLog], lines: Lines, clock: Clock) -> None:
    """Half a line a second is one line in two seconds."""
    log = make_log(rate=0.5)
    for _ in range(100):
        clock.now += 0.1
        log.write(REFUSED)
    assert 5 <= len(lines()) <= 6


def test_a_new_rate(make_log: Callable[..., ConnectionLog], lines: Lines, clock: Clock) -> None:
    """After a reload the new rate holds."""
    log = make_log(rate=1)
    log.rate = 5
    clock.now += 10
    for _ in range(10):
        log.write(REFUSED)
    assert len(lines()) == 5
