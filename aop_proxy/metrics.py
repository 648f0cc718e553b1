"""The parent's state -> metrics, as Prometheus reads them. Every name and label stands in this file.

A label is a word of ours or of the operator's files, never of a client's. Must not know who asks.
"""

import platform
import ssl
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from aop_proxy.histogram import BUCKETS
from aop_proxy.ledger import State
from aop_proxy.reasons import Fault, Reason

_STATUS_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
_DIALS = ("connected", Reason.UPSTREAM_UNREACHABLE.value, Reason.UPSTREAM_TIMEOUT.value)
_Labels = Mapping[str, float]


def exposition(state: State, accept: str) -> tuple[bytes, str]:
    """Metrics in the form that a scraper accepts, and what that form is called."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(state))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Collector(Collector):
    """What one state says."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._totals: Mapping[str, _Labels] = state["totals"]

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._connections()
        yield from self._requests()
        yield from self._upstreams()
        yield from self._expiries()
        yield from self._program()

    def _total(self, family: str) -> _Labels:
        return self._totals.get(family, {})

    def _connections(self) -> Iterator[Metric]:
        ended = CounterMetricFamily(
            "aop_proxy_connections", "Connections that have ended, by what became of them", labels=["verdict", "reason"]
        )
        counted = {f"{reason.verdict} {reason}": 0.0 for reason in Reason} | dict(self._total("connections"))
        for words, count in counted.items():
            ended.add_metric(words.split(" "), count)
        yield ended
        admitted = self._total("admitted").get("", 0)
        yield CounterMetricFamily("aop_proxy_admitted", "Connections that were let in", admitted)
        is_open = GaugeMetricFamily("aop_proxy_open_connections", "Connections that are open", labels=["state"])
        for state in ("silent", "handshake", "leaving", "accepted"):
            is_open.add_metric([state], sum(worker["open"].get(state, 0) for worker in self._state["workers"]))
        yield is_open
        yield _histogram(
            HistogramMetricFamily("aop_proxy_handshake_seconds", "From accept to the end of the TLS handshake"),
            {(): self._total("handshakes")},
        )
        moved = CounterMetricFamily(
            "aop_proxy_bytes", "Bytes forwarded, also on open connections", labels=["direction"]
        )
        for direction in ("from_client", "from_upstream"):
            moved.add_metric([direction], self._total("bytes").get(direction, 0))
        yield moved

    def _requests(self) -> Iterator[Metric]:
        """Of sites with `mode: http`; the others' are not read."""
        answered = CounterMetricFamily("aop_proxy_requests", "Requests, by the class of the status", labels=["status"])
        for status in _STATUS_CLASSES:
            answered.add_metric([status], self._total("requests").get(status, 0))
        yield answered
        faults = CounterMetricFamily(
            "aop_proxy_request_faults", "Requests that did not get a whole answer of the backend's", labels=["fault"]
        )
        for fault in Fault:
            faults.add_metric([fault], self._total("faults").get(fault, 0))
        yield faults

    def _upstreams(self) -> Iterator[Metric]:
        urls: list[str] = self._state["upstreams"]
        dials = CounterMetricFamily(
            "aop_proxy_upstream_dials", "Dials, by how they ended", labels=["upstream", "result"]
        )
        for url in urls:
            for result in _DIALS:
                dials.add_metric([url, result], self._total("dials").get(f"{result} {url}", 0))
        yield dials
        took: dict[tuple[str, ...], dict[str, float]] = {(url,): {} for url in urls}
        for words, count in self._total("dial_seconds").items():
            word, _, url = words.partition(" ")
            if (url,) in took:
                took[url,][word] = count
        text = "How long it took to reach an upstream, where it was reached"
        yield _histogram(HistogramMetricFamily("aop_proxy_upstream_dial_seconds", text, labels=["upstream"]), took)

    def _expiries(self) -> Iterator[Metric]:
        left = GaugeMetricFamily(
            "aop_proxy_expiry_seconds", "Seconds until it expires", labels=["kind", "path", "subject"]
        )
        first: dict[tuple[str, str], float] = {}  # a renewed CA may stand beside the old one under the same name
        for one in self._state["expiries"]:
            named = (one["path"], one["subject"])
            first[named] = min(one["not_after"], first.get(named, one["not_after"]))
        for (path, subject), ends in first.items():
            kind = path.rpartition(".")[2].partition("[")[0]
            left.add_metric([kind, path, subject], ends - self._state["time"])
        yield left
        clients = GaugeMetricFamily(
            "aop_proxy_client_certificate_expiry_seconds",
            "Seconds until the certificate expires by which a client was last let in",
            labels=["site"],
        )
        for site, ends in self._state["client_ends"].items():
            clients.add_metric([site], ends - self._state["time"])
        yield clients

    def _program(self) -> Iterator[Metric]:
        state = self._state
        reloads = CounterMetricFamily("aop_proxy_reloads", "Reloads of the configuration", labels=["result"])
        for result, count in state["reloads"].items():
            reloads.add_metric([result], count)
        yield reloads
        is_good = not state["reload_problems"]
        yield GaugeMetricFamily("aop_proxy_last_reload_good", "0 once a reload has failed, until one is good", is_good)
        yield GaugeMetricFamily("aop_proxy_generation", "Generation of the configuration, from 1", state["generation"])
        serving = sum(worker["serves"] for worker in state["workers"])
        yield GaugeMetricFamily("aop_proxy_workers", "Workers that serve", serving)
        restarts = state["restarts"]
        yield CounterMetricFamily("aop_proxy_worker_restarts", "Workers started in a dead one's place", restarts)
        yield GaugeMetricFamily("aop_proxy_ready", "1 if new connections should be sent here", state["ready"])
        enforces = state["enforcement"] == "enforce"
        yield GaugeMetricFamily("aop_proxy_enforcing", "0 while it only observes", enforces)
        yield GaugeMetricFamily("aop_proxy_start_time_seconds", "Unix time of the start", state["started"])
        build = GaugeMetricFamily("aop_proxy_build_info", "What runs", labels=["version", "python", "openssl"])
        build.add_metric([state["version"], platform.python_version(), ssl.OPENSSL_VERSION], 1)
        yield build


def _histogram(family: HistogramMetricFamily, totals: Mapping[tuple[str, ...], _Labels]) -> HistogramMetricFamily:
    for labels, counted in totals.items():
        buckets, so_far = [], 0.0
        for index, bound in enumerate((*map(str, BUCKETS), "+Inf")):
            so_far += counted.get(str(index), 0)
            buckets.append((bound, so_far))
        family.add_metric(labels, buckets, counted.get("seconds", 0.0))
    return family
