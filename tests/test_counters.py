"""What a worker counts, and what of it a report tells."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from aop_proxy.counters import LATEST_REFUSALS, MAX_TEXT, Counters, Report
from aop_proxy.reasons import Fault, Reason
from aop_proxy.telemetry import ConnectionRecord, RequestRecord
from certificates import Authority

RECORD = ConnectionRecord(client="192.0.2.1:4711", reference="0123abcd", started=100.0, generation=3)
REFUSED = replace(RECORD, reason=Reason.NO_CERTIFICATE)
URL = "http://127.0.0.1:8000"


def told(counters: Counters) -> Report:
    """A report as it arrives."""
    report: Report = json.loads(json.dumps(counters.report([], {"accepted": 0}, 3)))
    return report


@pytest.fixture
def counters() -> Counters:
    return Counters(tells_refusals=True)


def test_nothing_yet(counters: Counters) -> None:
    """A report is whole from the first on."""
    assert told(counters) == {
        "totals": {
            "connections": {},
            "admitted": {"": 0},
            "bytes": {"from_client": 0, "from_upstream": 0},
            "requests": {},
            "faults": {},
            "handshakes": {"seconds": 0},
            "dials": {},
            "dial_seconds": {},
        },
        "seen": {},
        "shown": {},
        "open": {"accepted": 0},
        "generation": 3,
        "refusals": [],
    }


def test_requests_by_status_and_fault(counters: Counters) -> None:
    """Each once; one that was cut before its answer began has no status."""
    for status, fault in ((200, None), (204, None), (502, Fault.BAD_RESPONSE), (200, Fault.CUT), (0, Fault.CUT)):
        counters.end_request(RequestRecord(RECORD, status=status, fault=fault))
    totals = told(counters)["totals"]
    assert totals["requests"] == {"2xx": 3, "5xx": 1}
    assert totals["faults"] == {"bad_response": 1, "cut": 2}


def test_connections_by_verdict_and_reason(counters: Counters) -> None:
    """Each once; one that was forwarded only because we observe, by the reason for which it would not have been."""
    for reason in (Reason.CLOSED, Reason.CLOSED, Reason.NO_CERTIFICATE, Reason.CLIENT_RESET):
        counters.end(replace(RECORD, reason=reason))
    counters.end(replace(RECORD, would_refuse=Reason.UNKNOWN_HOST))
    assert told(counters)["totals"]["connections"] == {
        "accepted closed": 2,
        "refused no_certificate": 1,
        "failed client_reset": 1,
        "would_refuse unknown_host": 1,
    }


def test_bytes_of_open_connections_count(counters: Counters) -> None:
    """Those that have ended, and those that still move."""
    counters.end(replace(RECORD, bytes_from_client=5, bytes_from_upstream=700))
    report = counters.report([(1, 10), (2, 20)], {}, 1)
    assert report["totals"]["bytes"] == {"from_client": 8, "from_upstream": 730}


def test_dials(counters: Counters) -> None:
    """By upstream and result; only those that connected have a duration; the last of each kind is dated."""
    counters.dialled(URL, 0.0003, None)
    counters.dialled(URL, 0.003, None)
    counters.dialled(URL, 5.0, Reason.UPSTREAM_TIMEOUT)
    report = told(counters)
    expected = {f"connected {URL}": 2, f"upstream_unreachable {URL}": 0, f"upstream_timeout {URL}": 1}
    assert report["totals"]["dials"] == expected
    assert report["totals"]["dial_seconds"] == {f"0 {URL}": 1, f"3 {URL}": 1, f"seconds {URL}": 0.0033}
    assert list(report["seen"]) == [f"connected {URL}", f"failed {URL}"]


def test_the_certificate_shown_last(counters: Counters) -> None:
    """By site: when it was, and when it ends, whatever was shown before."""
    for year in (2040, 2030):
        counters.shown("a.example", datetime(year, 1, 1, tzinfo=UTC))
    counters.shown("*", datetime(2050, 1, 1, tzinfo=UTC))
    shown = told(counters)["shown"]
    assert {site: datetime.fromtimestamp(ends, UTC).year for site, (_, ends) in shown.items()} == {
        "a.example": 2030,
        "*": 2050,
    }
    assert all(abs(time.time() - when) < 60 for when, _ in shown.values())


def test_refusals_are_told_once_and_only_the_latest(counters: Counters) -> None:
    """A scan does not make a report long."""
    for number in range(50):
        counters.end(replace(REFUSED, reference=f"{number:08x}"))
    counters.end(RECORD)
    references = [one["reference"] for one in told(counters)["refusals"]]
    assert references == [f"{number:08x}" for number in range(50 - LATEST_REFUSALS, 50)]
    assert told(counters)["refusals"] == []


def test_what_would_be_refused_is_told_too(counters: Counters) -> None:
    """With the reason for which it would be."""
    counters.end(replace(RECORD, would_refuse=Reason.UNKNOWN_HOST))
    (one,) = told(counters)["refusals"]
    assert (one["verdict"], one["reason"]) == ("would_refuse", "unknown_host")


def test_nobody_to_tell() -> None:
    """Without an admin listener nothing is kept of who was refused."""
    counters = Counters(tells_refusals=False)
    counters.end(REFUSED)
    report = told(counters)
    assert (report["refusals"], report["totals"]["connections"]) == ([], {"refused no_certificate": 1})


def test_what_a_client_says_is_escaped_and_bounded(counters: Counters) -> None:
    """Name and subject are printable ASCII, and short."""
    hostile = Authority("CA").issue("\x1b[2J\u202e<script>").certificate.public_bytes(Encoding.DER)
    counters.end(replace(REFUSED, sni="\r\n\x1b]0;" + "x" * 500, certificate=hostile))
    counters.end(replace(REFUSED, certificate=b"no certificate"))
    one, other = told(counters)["refusals"]
    assert one["subject"] == r"CN=\x1b[2J\u202e\\<script\\>"
    assert one["sni"].startswith("\\r\\n\\x1b]0;xxx")
    assert 20 < len(one["sni"]) <= MAX_TEXT
    assert other["subject"] is None
