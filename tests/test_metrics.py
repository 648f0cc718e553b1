"""Metrics of a state: their names, labels and numbers, held to the table in docs, and judged by Prometheus's own tool."""

import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from actors import require_peer
from aop_proxy.counters import Counters
from aop_proxy.expiry import Expiry
from aop_proxy.ledger import Ledger
from aop_proxy.metrics import exposition
from aop_proxy.model import Settings, Site, Upstream
from aop_proxy.reasons import Reason
from aop_proxy.telemetry import ConnectionRecord

UPSTREAMS = ("http://127.0.0.1:8000", 'unix:/run/my "app".sock')
PAGE = (Path(__file__).parents[1] / "docs/logs-and-metrics.md").read_text()


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """What a lively program tells."""
    settings = Settings((), (Site("c", "k", tuple(map(Upstream, UPSTREAMS))),), enforcement="observe")
    ledger = Ledger(settings)
    ends = datetime.now(UTC).replace(microsecond=0)
    names = ("sites[0].certificate", "sites[0].clients.ca[0]", "sites[0].clients.ca[0]", "sites[0].clients.crl[0]")
    ledger.serves(settings, 2, [Expiry(name, "CN=a\\b", ends) for name in names])
    ledger.reload_failed(["no"])
    counters = Counters(tells_refusals=True)
    record = ConnectionRecord(
        client="192.0.2.1:4711", reference="0123abcd", started=0.0, generation=1, sni="evil.example"
    )
    for reason in Reason:
        record.reason = reason
        counters.end(record)
    counters.admitted = 7
    counters.shown("*", ends)
    counters.handshakes.observe(0.003)
    counters.handshakes.observe(30)
    counters.dialled(UPSTREAMS[1], 0.003, None)
    counters.dialled(UPSTREAMS[1], 5, Reason.UPSTREAM_TIMEOUT)
    counters.dialled("http://of-an-older-configuration", 0.003, None)
    open_now = {"silent": 1, "handshake": 2, "leaving": 3, "accepted": 4}
    for number in (1, 2):
        ledger.report(ledger.worker_started(number, number), counters.report([(5, 50)], open_now, 2))
    return ledger.state()


@pytest.fixture(scope="module")
def text(state: dict[str, Any]) -> str:
    body, content_type = exposition(state, "")
    assert content_type.startswith("text/plain; version=")
    return body.decode()


@pytest.fixture(scope="module")
def samples(text: str) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(samples: list[Sample], name: str, **labels: str) -> float:
    (found,) = [one.value for one in samples if one.name == name and labels.items() <= one.labels.items()]
    return found


def test_numbers_of_all_workers(samples: list[Sample]) -> None:
    """Each sum stands under its name."""
    assert value(samples, "aop_proxy_connections_total", verdict="refused", reason="expired") == 2
    assert value(samples, "aop_proxy_admitted_total") == 14
    assert value(samples, "aop_proxy_open_connections", state="leaving") == 6
    assert value(samples, "aop_proxy_bytes_total", direction="from_upstream") == 100
    assert value(samples, "aop_proxy_handshake_seconds_bucket", le="0.0025") == 0
    assert value(samples, "aop_proxy_handshake_seconds_bucket", le="0.005") == 2
    assert value(samples, "aop_proxy_handshake_seconds_bucket", le="10.0") == 2
    assert value(samples, "aop_proxy_handshake_seconds_count") == 4
    assert value(samples, "aop_proxy_handshake_seconds_sum") == 60.006
    assert value(samples, "aop_proxy_generation") == 2
    assert value(samples, "aop_proxy_reloads_total", result="failed") == 1
    assert value(samples, "aop_proxy_reloads_total", result="good") == 1
    assert value(samples, "aop_proxy_last_reload_good") == 0
    assert value(samples, "aop_proxy_enforcing") == 0
    assert value(samples, "aop_proxy_ready") == 1
    assert value(samples, "aop_proxy_workers") == 2


def test_upstreams(samples: list[Sample]) -> None:
    """Those of the configuration, also before they are dialled, whatever their path; no older one's."""
    dials = {
        (one.labels["upstream"], one.labels["result"]): one.value
        for one in samples
        if one.name == "aop_proxy_upstream_dials_total"
    }
    results = ("connected", "upstream_unreachable", "upstream_timeout")
    expected = {(url, result): 0.0 for url in UPSTREAMS for result in results}
    assert dials == expected | {(UPSTREAMS[1], "connected"): 2, (UPSTREAMS[1], "upstream_timeout"): 2}
    assert value(samples, "aop_proxy_upstream_dial_seconds_count", upstream=UPSTREAMS[0]) == 0
    assert value(samples, "aop_proxy_upstream_dial_seconds_bucket", upstream=UPSTREAMS[1], le="0.005") == 2


def test_expiries(samples: list[Sample]) -> None:
    """Seconds left of each, by kind; two of one name are one, since a series must not come twice."""
    found = [one for one in samples if one.name == "aop_proxy_expiry_seconds"]
    assert [one.labels["kind"] for one in found] == ["certificate", "ca", "crl"]
    assert [-60 < one.value <= 0 for one in found] == [True] * 3
    assert -60 < value(samples, "aop_proxy_client_certificate_expiry_seconds", site="*") <= 0


def test_every_reason_is_there_from_the_start(samples: list[Sample]) -> None:
    """A rate of something that was never counted is nothing, not missing."""
    found = {one.labels["reason"] for one in samples if one.name == "aop_proxy_connections_total"}
    assert found == set(Reason)


def test_no_series_twice(samples: list[Sample]) -> None:
    """Prometheus drops the whole scrape otherwise."""
    series = [(one.name, tuple(sorted(one.labels.items()))) for one in samples]
    assert len(series) == len(set(series))


def test_nothing_a_client_said_is_a_label(text: str) -> None:
    """Labels are ours and the operator's."""
    assert "evil.example" not in text
    assert "192.0.2.1" not in text


def test_prometheus_has_nothing_against_them(text: str) -> None:
    """Its own linter."""
    tool = require_peer("promtool")
    done = subprocess.run(
        [tool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_openmetrics_where_it_is_asked_for(state: dict[str, Any]) -> None:
    """As Prometheus asks."""
    body, content_type = exposition(state, "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.3")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def documented() -> Iterator[tuple[str, set[str], bool]]:
    """Name, labels, and whether it is a histogram, of each row in the table."""
    start = PAGE.index("| metric | labels | meaning |")
    for row in PAGE[start : PAGE.index("\n\n", start)].splitlines()[2:]:
        name, labels, meaning = (cell.strip() for cell in row.strip("|").split("|"))
        yield name.strip("`"), set(re.findall("`([a-z]+)`", labels)), meaning.startswith("histogram")


def test_the_readme_has_every_metric(text: str) -> None:
    """Name, labels and type, in the same order."""
    real = []
    for family in text_string_to_metric_families(text):
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        suffix = "_total" if family.type == "counter" else ""
        real.append((family.name + suffix, labels, family.type == "histogram"))
    assert real == list(documented())
