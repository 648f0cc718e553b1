"""How many proxies a load needs, and what one of them carries: computed from the benchmark's JSON.

`python -m benchmarks.sizing --help`. A proxy is one worker on one core; what several carry is the sum, since they share
nothing. Every figure of docs/scaling.md that comes from a measurement is written by `--write` from here.
"""

import argparse
import json
import math
import random
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aop_proxy.model import Limits
from aop_proxy.server import capacity

PROJECT = Path(__file__).parents[1]
MEASURED = PROJECT / "benchmarks/results/measured.json"
DOCUMENT = PROJECT / "docs/scaling.md"

BUSY = 0.6
"""The share of a core to plan with; the rest is for a lost neighbour, uneven shares and clients that reconnect."""
TRIALS = 51
MOST_OPEN = capacity(Limits(), descriptors=2**20).connections
"""Connections that one worker holds, if `limits.connections` and the descriptor limit say no less."""


@dataclass(frozen=True)
class Costs:
    """What one proxy spends: CPU in microseconds, memory in KiB."""

    connection: float
    """Handshake and close, without the request that the benchmark sends in between."""
    request: float
    closing_request: float
    """With a backend that closes after each response: every request is a new connection, to the backend too."""
    mib_down: float
    mib_up: float
    refusal: float
    open_connection: float
    """Of one that has carried a response of 16 KiB and waits for the next request."""
    open_after_bulk: float
    at_rest: float


@dataclass(frozen=True)
class Load:
    """What comes in a second, and how many connections stand open meanwhile."""

    connections: float = 0
    requests: float = 0
    mib_down: float = 0
    mib_up: float = 0
    strangers: float = 0
    open: float = 0


def read(path: Path) -> Costs:
    """The costs that a run of the benchmark has measured; KeyError if it left out a work."""
    works: dict[str, Any] = json.loads(path.read_text())["works"]

    def median(work: str, figure: str) -> float:
        return float(works[work]["contenders"]["us"]["median"][figure])

    request = median("b", "cpu_us")
    return Costs(
        connection=median("a", "cpu_us") - request,
        request=request,
        closing_request=median("j", "cpu_us"),
        mib_down=median("c", "cpu_ms") * 1000 / 100,
        mib_up=median("d", "cpu_ms") * 1000 / 100,
        refusal=median("f", "cpu_us"),
        open_connection=median("e", "medium_kib"),
        open_after_bulk=max(median("e", "down_kib"), median("e", "up_kib")),
        at_rest=median("e", "rest_mib") * 1024,
    )


def cores(costs: Costs, load: Load) -> float:
    """CPU seconds per second."""
    spent = (
        load.connections * costs.connection
        + load.requests * costs.request
        + load.mib_down * costs.mib_down
        + load.mib_up * costs.mib_up
        + load.strangers * costs.refusal
    )
    return spent / 1e6


def held(costs: Costs, memory: float) -> float:
    """Open connections that fit into so many MiB, each as heavy as bulk transfers leave it."""
    return (memory * 1024 - costs.at_rest) / costs.open_after_bulk


def proxies(costs: Costs, load: Load, busy: float = BUSY, memory: float = 1024) -> dict[str, int]:
    """How many each resource asks for; the largest decides. `memory` is that of one proxy, in MiB."""
    return {
        "CPU": math.ceil(cores(costs, load) / busy),
        "memory": math.ceil(load.open / held(costs, memory)),
        "limits.connections": math.ceil(load.open / MOST_OPEN),
    }


# Connections stay where they were placed, and each is placed by chance: the kernel, kube-proxy and a load balancer's
# random steering do no better.


def _fullest(counts: Sequence[int]) -> float:
    """The fullest proxy's share, as a multiple of an even one."""
    return max(counts) * len(counts) / sum(counts)


def placed(chance: random.Random, connections: int, among: int) -> float:
    """Place every connection anew."""
    counts = [0] * among
    for _ in range(connections):
        counts[int(chance.random() * among)] += 1
    return _fullest(counts)


def replaced(chance: random.Random, connections: int, among: int) -> float:
    """Replace one proxy after the other; what it held reconnects to those that stand. The shares afterwards."""
    counts = [connections // among] * among
    for old in range(among):
        moving, counts[old] = counts[old], 0
        # Its successor is ready before it ends, and takes part.
        for _ in range(moving):
            counts[int(chance.random() * among)] += 1
    return _fullest(counts)


def simulated(happening: Callable[[random.Random, int, int], float], each: int, among: int) -> float:
    """The median of many trials, the same at every run."""
    chance = random.Random(among * 100_003 + each)
    return statistics.median(happening(chance, each * among, among) for _ in range(TRIALS))


# The document


def rounded(value: float) -> str:
    """Two digits that count: the measurement holds no more."""
    if value >= 10:
        value = round(value, 1 - math.floor(math.log10(value)))
        return f"{value:,.0f}"
    return f"{value:.1f}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---", *["--:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _costs(costs: Costs, about: dict[str, Any]) -> Iterator[str]:
    yield f"Measured {about['date']} on {about['machine']} ({about['python']}), one worker on one core:"
    yield ""
    yield _table(
        ["one", "costs", "figure of the benchmark"],
        [
            ["new connection, without its request", f"{rounded(costs.connection)} µs of CPU", "a less b"],
            ["small request on a kept connection", f"{rounded(costs.request)} µs of CPU", "b"],
            ["MiB to the client", f"{rounded(costs.mib_down)} µs of CPU", "c"],
            ["MiB from the client", f"{rounded(costs.mib_up)} µs of CPU", "d"],
            ["refused stranger, page included", f"{rounded(costs.refusal)} µs of CPU", "f"],
            ["open connection, after small responses", f"{rounded(costs.open_connection)} KiB", "e"],
            ["open connection, after bulk transfers", f"{rounded(costs.open_after_bulk)} KiB", "e"],
            ["proxy at rest, its parent included", f"{rounded(costs.at_rest / 1024)} MiB", "e"],
        ],
    )


def _reuse(costs: Costs, _: dict[str, Any]) -> Iterator[str]:
    rows = []
    for reuse in (1, 10, 100, 1000):
        each = costs.request + costs.connection / reuse
        rows.append([f"{reuse:,}", f"{rounded(each)} µs", rounded(BUSY * 1e6 / each)])
    yield _table(["requests per connection", "CPU of a request", f"requests/s of one proxy, {BUSY:.0%} busy"], rows)


def _many(costs: Costs, _: dict[str, Any]) -> Iterator[str]:
    reuse = 100
    request = costs.request + costs.connection / reuse
    each = [costs.connection + costs.request, request, costs.mib_down, costs.mib_up, costs.refusal]
    rows = []
    for count in (1, 2, 4, 8, 16, 32):
        a_second = [rounded(count * BUSY * 1e6 / cost) for cost in each]
        rows.append([str(count), *a_second, rounded(count * min(held(costs, 1024), MOST_OPEN))])
    carried = ("new connections/s", f"or requests/s, {reuse} a connection", "or MiB/s down", "or MiB/s up")
    yield _table(["proxies", *carried, "or refusals/s", "and open connections, 1 GiB each"], rows)


def _balance(_: Costs, __: dict[str, Any]) -> Iterator[str]:
    among = (2, 4, 8, 16)
    rows = []
    for happening, title in ((placed, "placed by chance"), (replaced, "after a rolling restart")):
        for each in (10, 100, 1000):
            shares = [f"{simulated(happening, each, count):.2f}" for count in among]
            rows.append([f"{title}, {each:,} connections a proxy", *shares])
    yield _table(["fullest proxy, as a multiple of an even share", *(f"of {count}" for count in among)], rows)
    yield ""
    yield f"Where an even share keeps a core {BUSY:.0%} busy, {1 / BUSY:.2f} times as much fills it."


def _limits(costs: Costs, _: dict[str, Any]) -> Iterator[str]:
    returning = 10_000
    spare = (1 - BUSY) * 1e6
    both_ways = 1250 / 1.048576  # MiB/s in each direction of a link of 10 Gbit/s
    yield _table(
        ["what", "when"],
        [
            [
                f"CPU, when clients come back: {returning:,} connections reconnect at once after a restart",
                f"one core shakes hands for {rounded(returning * costs.connection / 1e6)} s",
            ],
            ["CPU, when strangers come", f"{rounded(spare / costs.refusal)}/s take what {BUSY:.0%} leave of a core"],
            [
                "CPU, when the backend closes after each response (every request is a new connection)",
                f"{rounded(BUSY * 1e6 / costs.closing_request)} requests/s of one proxy, {BUSY:.0%} busy",
            ],
            [
                "memory, in a container of 256 MiB",
                f"{rounded(held(costs, 256))} open connections",
            ],
            [
                "`limits.connections: auto`, past which the edge reads 503",
                f"{MOST_OPEN:,} open connections of one worker",
            ],
            [
                "a link of 10 Gbit/s, full of downloads",
                f"{rounded(both_ways * costs.mib_down / 1e6)} cores fill it: before that the CPU is the limit",
            ],
        ],
    )


EXAMPLE = Load(connections=50, requests=5000, mib_down=100, mib_up=10, strangers=50, open=20_000)


def _example(costs: Costs, _: dict[str, Any]) -> Iterator[str]:
    flags = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in vars(EXAMPLE).items())
    yield "```console"
    yield f"$ python -m benchmarks.sizing {flags}"
    yield from answer(costs, EXAMPLE)
    yield "```"


BLOCKS: dict[str, Callable[[Costs, dict[str, Any]], Iterator[str]]] = {
    "costs": _costs,
    "reuse": _reuse,
    "many": _many,
    "balance": _balance,
    "limits": _limits,
    "example": _example,
}
GENERATED = re.compile(r"(?<=<!-- sizing: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def written(document: str, results: Path) -> str:
    """The document with every block made anew; what stands between them is untouched."""
    costs, about = read(results), json.loads(results.read_text())["about"]

    def block(found: re.Match[str]) -> str:
        return "".join((found[1], found[2], "\n", "\n".join(BLOCKS[found[1]](costs, about)), "\n\n"))

    return GENERATED.sub(block, document)


# The command


def answer(costs: Costs, load: Load, busy: float = BUSY, memory: float = 1024, spare: int = 1) -> Iterator[str]:
    """What this load needs, in words."""
    asked = proxies(costs, load, busy, memory)
    needed = max(1, *asked.values())
    lost = f"{spare} is" if spare == 1 else f"{spare} are"
    yield f"CPU: {cores(costs, load):.2f} cores, {busy:.0%} of one core each: {asked['CPU']}"
    yield f"memory: {load.open:,.0f} open connections, {memory:g} MiB each: {asked['memory']}"
    yield f"limits.connections: {load.open:,.0f} open connections, {MOST_OPEN:,} each: {asked['limits.connections']}"
    yield f"so {needed} and {spare} to spare: {needed + spare} proxies of one core and {memory:g} MiB"
    share = load.open / needed
    yield f"each with {share:,.0f} connections and {2 * share:,.0f} descriptors when {lost} lost"


def main(arguments: Sequence[str] | None = None) -> int:
    """Say what a load needs, or write the document's figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizing", description="What a load needs.")
    parser.add_argument("--connections", type=float, default=0, help="new ones per second")
    parser.add_argument("--requests", type=float, default=0, help="per second")
    parser.add_argument("--mib-down", type=float, default=0, help="MiB per second to clients")
    parser.add_argument("--mib-up", type=float, default=0, help="MiB per second from clients")
    parser.add_argument("--strangers", type=float, default=0, help="refused connections per second")
    parser.add_argument("--open", type=float, default=0, help="connections at a time")
    parser.add_argument("--busy", type=float, default=BUSY, help="the share of a core to plan with (%(default)s)")
    parser.add_argument("--memory", type=float, default=1024, help="MiB of one proxy (%(default)s)")
    parser.add_argument("--spare", type=int, default=1, help="proxies that may be lost (%(default)s)")
    parser.add_argument("--results", type=Path, default=MEASURED, help="the benchmark's JSON")
    parser.add_argument("--write", action="store_true", help="write the figures of docs/scaling.md anew instead")
    options = parser.parse_args(arguments)
    if options.write:
        DOCUMENT.write_text(written(DOCUMENT.read_text(), options.results))
    else:
        load = Load(**{name: getattr(options, name) for name in vars(EXAMPLE)})
        print("\n".join(answer(read(options.results), load, options.busy, options.memory, options.spare)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
