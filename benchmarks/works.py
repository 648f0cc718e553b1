"""The works: what is asked of a contender, and what it cost. One function per work takes one sample.

A sample is a mapping of figures; the table at the end says which figure is judged and how the figures are read.
CPU figures are the contender's own, whatever the load was busy with; `busy` is the part of its core that it used.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import accounting, backend, load
from benchmarks.accounting import settled_cpu_seconds
from benchmarks.contenders import Contender, Running
from benchmarks.lab import Lab

Sample = dict[str, float]

KEPT_CONNECTIONS = 32
NEW_AT_ONCE = 64  # ab leaves Nagle on: with few at once, 40 ms delayed ACKs are all one sees of some contenders
REFUSED_AT_ONCE = 64
CLOSED_AT_ONCE = 16  # few, since who keeps them still has to make them
MOST_PACED_PER_SECOND = 15000  # what the load, in Python, can pace without becoming what is measured
CROWD = load.Crowd(strangers_per_second=50, downloads=4, bytes_per_second=25e6)  # a full gigabit, no core is full


def new_connection(lab: Lab, contender: Contender) -> Sample:
    """(a) mTLS handshake, one request, close."""
    running = lab.running(contender)
    return _ab_sample(lab, running, lab.counts.connections, NEW_AT_ONCE, keep=False)


def small_request(lab: Lab, contender: Contender) -> Sample:
    """(b) A small request on a kept connection."""
    running = lab.running(contender)
    return _ab_sample(lab, running, lab.counts.requests, KEPT_CONNECTIONS, keep=True)


def closing_backend(lab: Lab, contender: Contender) -> Sample:
    """(j) A small request, the client would keep the connection, the backend closes."""
    running = lab.running(contender, "closing")
    return _ab_sample(lab, running, lab.counts.connections, CLOSED_AT_ONCE, keep=True)


def python_backends(lab: Lab, contender: Contender) -> Sample:
    """(k) As (b), with servers of Python applications behind."""
    sample: Sample = {}
    for name in backend.PYTHON:
        running = lab.running(contender, name)
        one = _ab_sample(lab, running, lab.counts.requests // 4, KEPT_CONNECTIONS, keep=True)
        sample |= {f"{name}_{figure}": value for figure, value in one.items()}
    return sample


def _ab_sample(lab: Lab, running: Running, requests: int, concurrency: int, *, keep: bool) -> Sample:
    before = settled_cpu_seconds(running.pid)
    result = load.run_ab(running.port, requests, concurrency, lab.keys, keep=keep)
    spent = settled_cpu_seconds(running.pid) - before
    return {
        "cpu_us": spent / requests * 1e6,
        "per_second": result.per_second,
        "p50_ms": result.p50_ms,
        "p99_ms": result.p99_ms,
        "busy": spent / result.seconds,
    }


def download(lab: Lab, contender: Contender) -> Sample:
    """(c) The bulk file, down."""
    first = not lab.is_running(contender)
    running = lab.running(contender)
    if first:  # all of it arrives, and is what was sent
        with load.Client(running.port, lab.known) as client:
            status, body = client.get("/bulk")
        if status != 200 or hashlib.sha256(body).digest() != lab.backend.bulk_digest:
            raise load.LoadError(f"a download gave status {status} and {len(body)} bytes, not those of the file")
    spent = elapsed = 0.0
    for _ in range(lab.counts.transfers):
        with load.Client(running.port, lab.known) as client:
            before, start = settled_cpu_seconds(running.pid), time.perf_counter()
            load.discard_download(client, lab.bulk_bytes)
            elapsed += time.perf_counter() - start
            spent += settled_cpu_seconds(running.pid) - before
    return _bulk_sample(lab, spent, elapsed)


def upload(lab: Lab, contender: Contender) -> Sample:
    """(d) As many bytes up."""
    running = lab.running(contender, "sink")
    spent = elapsed = 0.0
    for _ in range(lab.counts.transfers):
        with load.Client(running.port, lab.known) as client:
            sealed = load.sealed_upload(client, lab.bulk_bytes)
            before, start = settled_cpu_seconds(running.pid), time.perf_counter()
            client.socket.sendall(sealed)
            status, _ = client.response()
            elapsed += time.perf_counter() - start
            spent += settled_cpu_seconds(running.pid) - before
            if status != 200:
                raise load.LoadError(f"an upload got {status}")
    return _bulk_sample(lab, spent, elapsed)


def _bulk_sample(lab: Lab, spent: float, elapsed: float) -> Sample:
    hundreds = lab.counts.transfers * lab.counts.bulk_mib / 100
    return {"cpu_ms": spent / hundreds * 1e3, "mib_per_second": hundreds * 100 / elapsed, "busy": spent / elapsed}


def memory(lab: Lab, contender: Contender) -> Sample:
    """(e) Memory at rest, and what one more idle connection keeps: a fresh process for each kind of past."""
    many, few = lab.counts.idle_connections, lab.counts.idle_transfers
    pasts: dict[str, tuple[int, Callable[[load.Client], None]]] = {
        "small_kib": (many, lambda client: _get(client, "/small")),
        "medium_kib": (many, lambda client: _get(client, "/medium")),
        "down_kib": (few, lambda client: _get(client, "/bulk")),
        "up_kib": (few, lambda client: _put(client, lab.bulk_bytes)),
    }
    sample: Sample = {}
    for figure, (count, use) in pasts.items():
        with lab.fresh(contender) as running, contextlib.ExitStack() as held:
            settled_cpu_seconds(running.pid)
            sample["rest_mib"] = accounting.memory_kib(running.pid) / 1024
            for _ in range(max(2, count // 10)):  # what is made once, by the first ones, is not a connection's
                use(held.enter_context(load.Client(running.port, lab.known)))
            before = _own_kib(running)
            for _ in range(count):
                use(held.enter_context(load.Client(running.port, lab.known)))
            sample[figure] = (_own_kib(running) - before) / count
    return sample


def _own_kib(running: Running) -> float:
    settled_cpu_seconds(running.pid)
    return accounting.memory_kib(running.pid, own=True)


def _get(client: load.Client, path: str) -> None:
    if client.get(path)[0] != 200:
        raise load.LoadError(f"{path} was not answered")


def _put(client: load.Client, length: int) -> None:
    client.socket.sendall(load.sealed_upload(client, length))
    if client.response()[0] != 200:
        raise load.LoadError("an upload was not answered")


def refusal(lab: Lab, contender: Contender) -> Sample:
    """(f) A client without a certificate, up to its page or its alert."""
    running = lab.running(contender)
    page = load.ask_as_stranger(running.port, lab.stranger)
    if page not in (400, None):
        raise load.LoadError(f"a stranger got {page}")
    count = lab.counts.refusals
    before = settled_cpu_seconds(running.pid)
    result = load.run_ab(running.port, count, REFUSED_AT_ONCE, None)
    spent = settled_cpu_seconds(running.pid) - before
    if page and result.refused < count:  # ab may begin more than it was asked for
        raise load.LoadError(f"{result.refused} of {count} strangers saw the page")
    return {
        "cpu_us": spent / count * 1e6,
        "per_second": result.per_second,
        "busy": spent / result.seconds,
        "page": float(page is not None),
    }


def added_latency(lab: Lab, contender: Contender) -> Sample:
    """(g) Latency of a small request at half of what the contender's core can do, less that of the backend alone."""
    running = lab.running(contender)
    before = settled_cpu_seconds(running.pid)
    load.run_ab(running.port, lab.counts.requests // 4, KEPT_CONNECTIONS, lab.keys, keep=True)
    cost = (settled_cpu_seconds(running.pid) - before) / (lab.counts.requests // 4)
    per_second, seconds = min(0.5 / cost, MOST_PACED_PER_SECOND), lab.counts.latency_seconds
    direct = load.lanes(lab.backend.files, None, KEPT_CONNECTIONS, int(per_second * seconds))
    through = load.lanes(running.port, lab.known, KEPT_CONNECTIONS, int(per_second * seconds))
    alone = load.paced_latencies(direct, per_second, seconds)
    before = settled_cpu_seconds(running.pid)
    proxied = load.paced_latencies(through, per_second, seconds)
    spent = settled_cpu_seconds(running.pid) - before
    return {
        "added_p50_us": (load.percentile(proxied, 50) - load.percentile(alone, 50)) * 1e6,
        "added_p99_us": (load.percentile(proxied, 99) - load.percentile(alone, 99)) * 1e6,
        "rate": per_second,
        "busy": spent / seconds,
    }


def two_workers(lab: Lab, contender: Contender) -> Sample:
    """(h) What two workers spend on a unit, against one worker; and how evenly they share connections."""
    one, two = (lab.running(contender, workers=workers) for workers in (1, 2))
    requests = [_ab_sample(lab, run, lab.counts.requests // 2, KEPT_CONNECTIONS, keep=True) for run in (one, two)]
    new = [_ab_sample(lab, run, lab.counts.connections // 2, NEW_AT_ONCE, keep=False) for run in (one, two)]
    with contextlib.ExitStack() as held:
        for _ in range(lab.counts.shared_connections):
            held.enter_context(load.Client(two.port, lab.known))
        shares = accounting.connections_by_process(two.pid, two.port)
    return {
        "request_ratio": requests[1]["cpu_us"] / requests[0]["cpu_us"],
        "connection_ratio": new[1]["cpu_us"] / new[0]["cpu_us"],
        "request_us": requests[1]["cpu_us"],
        "connection_us": new[1]["cpu_us"],
        "larger_share": max(shares) / sum(shares) if len(shares) > 1 else float("nan"),  # threads share one process
    }


def fairness(lab: Lab, contender: Contender) -> Sample:
    """(i) p99 of a small request, quiet and beside strangers and bulk transfers."""
    running = lab.running(contender)
    quiet = load.run_ab(running.port, lab.counts.fair_requests, 1, lab.keys, keep=True)
    with load.crowded(running.port, lab.keys, CROWD) as counted:
        before = counted()
        beside = load.run_ab(running.port, lab.counts.fair_requests, 1, lab.keys, keep=True)
        after = counted()
    return {
        "ratio": beside.p99_ms / quiet.p99_ms,
        "quiet_ms": quiet.p99_ms,
        "beside_ms": beside.p99_ms,
        "strangers": (after[0] - before[0]) / beside.seconds,
        "mb_per_second": (after[1] - before[1]) / beside.seconds / 1e6,
    }


@dataclass(frozen=True)
class Aim:
    """What our figure must reach, and should: as a ratio to the best peer, or as it stands."""

    must: float
    goal: float
    as_it_stands: bool = False


@dataclass(frozen=True)
class Column:
    """One figure of a work: its key in the samples, its heading, how it is printed."""

    figure: str
    heading: str
    form: str = "{:.0f}"
    judged: bool = False
    """Contenders are compared by it; less is better."""
    aim: Aim | None = None
    ratio: bool = True
    """Ours to the best peer's says something: it is not a ratio already."""


@dataclass(frozen=True)
class Work:
    """A work, and what its figures mean."""

    letter: str
    title: str
    sample: Callable[[Lab, Contender], Sample]
    columns: tuple[Column, ...]
    note: str
    pages_only: bool = False
    """Only those that refuse with a page are compared."""


_BUSY = Column("busy", "core busy", "{:.0%}")
_PER_SECOND = Column("per_second", "per second", "{:,.0f}")
_LATENCY = (Column("p50_ms", "p50 ms", "{:.2f}"), Column("p99_ms", "p99 ms", "{:.2f}"))


def _cpu_us(aim: Aim | None = None) -> Column:
    return Column("cpu_us", "CPU µs", "{:.1f}", judged=True, aim=aim)


def _bulk(aim: Aim) -> tuple[Column, ...]:
    return (
        Column("cpu_ms", "CPU ms", judged=True, aim=aim),
        Column("mib_per_second", "MiB/s", "{:,.0f}"),
        _BUSY,
    )


def _kib(figure: str, past: str, aim: Aim) -> Column:
    return Column(figure, f"KiB idle after {past}", "{:.1f}", judged=True, aim=aim)


WORKS = (
    Work(
        "a",
        "new connection",
        new_connection,
        (_cpu_us(Aim(1.00, 0.90)), _PER_SECOND, *_LATENCY, _BUSY),
        f"Full mTLS handshake, one request, close; {NEW_AT_ONCE} at once.",
    ),
    Work(
        "b",
        "small request",
        small_request,
        (_cpu_us(Aim(1.10, 1.00)), _PER_SECOND, *_LATENCY, _BUSY),
        f"On {KEPT_CONNECTIONS} kept connections.",
    ),
    Work(
        "c",
        "100 MiB down",
        download,
        _bulk(Aim(0.85, 0.70)),
        "One transfer at a time; the handshake is not counted.",
    ),
    Work(
        "d",
        "100 MiB up",
        upload,
        _bulk(Aim(1.05, 0.85)),
        "One transfer at a time, streamed; the handshake is not counted.",
    ),
    Work(
        "e",
        "memory",
        memory,
        (
            _kib("medium_kib", "16 KiB", Aim(45, 20, as_it_stands=True)),
            _kib("down_kib", "100 MiB down", Aim(200, 60, as_it_stands=True)),
            _kib("up_kib", "100 MiB up", Aim(200, 60, as_it_stands=True)),
            Column("rest_mib", "MiB at rest", "{:.1f}", judged=True),
            Column("small_kib", "KiB idle after a small response", "{:.1f}"),
        ),
        "What one more idle connection keeps, in a fresh process for each past; without the kernel's socket buffers.",
    ),
    Work(
        "f",
        "refusal",
        refusal,
        (_cpu_us(Aim(1.25, 1.00)), Column("page", "see a page", "{:.0%}"), _PER_SECOND, _BUSY),
        f"A client without a certificate, {REFUSED_AT_ONCE} at once. † sends no page: the visitor sees a TLS error.",
        pages_only=True,
    ),
    Work(
        "g",
        "added latency",
        added_latency,
        (
            Column("added_p50_us", "added p50 µs", judged=True),
            Column("added_p99_us", "added p99 µs", judged=True),
            Column("rate", "requests/s", "{:,.0f}"),
            _BUSY,
        ),
        f"At half of what its core can do, at most {MOST_PACED_PER_SECOND}/s; less the backend's own at that pace.",
    ),
    Work(
        "h",
        "two workers",
        two_workers,
        (
            Column(
                "request_ratio", "CPU of a request, 2 : 1", "{:.2f}", judged=True, aim=Aim(1.05, 1, True), ratio=False
            ),
            Column(
                "connection_ratio",
                "CPU of a connection, 2 : 1",
                "{:.2f}",
                judged=True,
                aim=Aim(1.05, 1, True),
                ratio=False,
            ),
            Column("larger_share", "larger share", "{:.0%}", judged=True, aim=Aim(0.60, 0.55, True), ratio=False),
            Column("request_us", "CPU µs of a request", "{:.1f}"),
            Column("connection_us", "CPU µs of a connection", "{:.1f}"),
        ),
        "The larger share of held connections; how threads share them cannot be seen from outside.",
    ),
    Work(
        "i",
        "fairness",
        fairness,
        (
            Column("ratio", "p99 beside : quiet", "{:.1f}", judged=True, aim=Aim(3, 2, True), ratio=False),
            Column("quiet_ms", "p99 ms, quiet", "{:.2f}"),
            Column("beside_ms", "beside", "{:.2f}"),
            Column("strangers", "refused/s"),
            Column("mb_per_second", "bulk MB/s"),
        ),
        f"A small request, one after the other on a kept connection, beside {CROWD.strangers_per_second:.0f} refused "
        f"strangers per second and {CROWD.downloads} downloads of {CROWD.bytes_per_second / 1e6:.0f} MB/s.",
    ),
    Work(
        "j",
        "backend that closes",
        closing_backend,
        (_cpu_us(), _PER_SECOND, *_LATENCY, _BUSY),
        "The client would keep its connection. A relay closes it with the backend's; who speaks HTTP keeps it.",
    ),
    Work(
        "k",
        "Python behind",
        python_backends,
        tuple(
            column
            for name in ("gunicorn", "uvicorn")
            for column in (
                Column(f"{name}_cpu_us", f"{name}: CPU µs", "{:.1f}", judged=True),
                Column(f"{name}_per_second", "per second", "{:,.0f}"),
                Column(f"{name}_busy", "core busy", "{:.0%}"),
            )
        ),
        f"A small request on {KEPT_CONNECTIONS} kept connections, by those who speak HTTP, for gunicorn's gthread"
        " workers and for uvicorn.",
    ),
)
