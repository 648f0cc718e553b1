"""What was measured, as values: medians and ratios, and as JSON, Markdown and a table for the terminal."""

import datetime as dt
import json
import math
import os
import platform
import ssl
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.contenders import CONTENDERS, Contender, Us
from benchmarks.works import Column, Sample, Work

IDLE = 0.5  # a load average that does not disturb


@dataclass(frozen=True)
class About:
    """Where, when and with what the run was made."""

    date: str
    command: str
    machine: str
    cores: str
    load_average: float
    """Of the minute before: what else the machine was doing."""
    python: str
    versions: dict[str, str]
    missing: dict[str, str]
    """How to install those that are not here, by title."""


@dataclass
class Measured:
    """The samples of one contender in one work, and why there are no more of them."""

    samples: list[Sample] = field(default_factory=list)
    error: str | None = None

    def values(self, figure: str) -> list[float]:
        """All values of one figure that are known."""
        return [sample[figure] for sample in self.samples if not math.isnan(sample[figure])]

    def median(self, figure: str) -> float | None:
        """The median of one figure, if it is known."""
        values = self.values(figure)
        return statistics.median(values) if values else None


@dataclass
class Result:
    """One work, done by all who take part."""

    work: Work
    contenders: dict[str, Contender]
    measured: dict[str, Measured]

    def compared(self, name: str) -> bool:
        """Whether this contender's figures may be held beside ours."""
        contender = self.contenders[name]
        return contender.same_job and (contender.sends_page or not self.work.pages_only)

    def best_peer(self, column: Column) -> tuple[str, float] | None:
        """The comparable peer with the least of this figure."""
        figures = {
            name: value
            for name in self.contenders
            if name != Us.name and self.compared(name)
            if (value := self.measured[name].median(column.figure)) is not None
        }
        return min(figures.items(), key=lambda item: item[1]) if figures else None

    def ours(self, column: Column) -> float | None:
        """Our own figure."""
        return self.measured[Us.name].median(column.figure) if Us.name in self.measured else None

    def ratio(self, column: Column) -> float | None:
        """Our figure to that of the best peer, where that says something."""
        ours, best = self.ours(column), self.best_peer(column)
        return ours / best[1] if column.ratio and ours is not None and best and best[1] > 0 else None


def about(command: str, cores: list[int], contenders: dict[str, str], missing: dict[str, str]) -> About:
    """Describe this machine and this moment."""
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return About(
        date=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=command,
        machine=f"{_processor()}, {os.cpu_count()} cores, {gib:.0f} GiB; Linux {platform.release()}, {release}",
        cores=f"contender on core {cores[0]}, load and backend on core {cores[1]}",
        load_average=os.getloadavg()[0],
        python=f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}",
        versions=contenders,
        missing=missing,
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write_json(path: Path, described: About, results: list[Result]) -> None:
    """Everything, samples too."""
    works: dict[str, Any] = {}
    for result in results:
        works[result.work.letter] = {
            "title": result.work.title,
            "note": result.work.note,
            "figures": {column.figure: column.heading for column in result.work.columns},
            "contenders": {
                name: {
                    "median": {column.figure: measured.median(column.figure) for column in result.work.columns},
                    "samples": [
                        {key: None if math.isnan(value) else value for key, value in sample.items()}
                        for sample in measured.samples
                    ],
                    "error": measured.error,
                }
                for name, measured in result.measured.items()
            },
            "ratio_to_best_peer": {
                column.figure: result.ratio(column) for column in result.work.columns if column.judged
            },
        }
    path.write_text(json.dumps({"about": vars(described), "works": works}, indent=1, ensure_ascii=False) + "\n")


def write_markdown(path: Path, described: About, results: list[Result], picture: str) -> None:
    """The summary, the picture, and one table per work."""
    path.write_text("\n".join(_markdown(described, results, picture)) + "\n")


def _markdown(described: About, results: list[Result], picture: str) -> Iterator[str]:
    yield f"Measured {described.date} with `{described.command}` on {described.machine}; {described.cores}."
    versions = (f"{title} {version}" for title, version in described.versions.items())
    yield f"{described.python}; {', '.join(versions)}."
    if described.load_average > IDLE:
        yield f"**The machine was busy (load average {described.load_average:.1f}): latencies and fairness are noise.**"
    yield from (f"Not installed: {title} (`{how}`)." for title, how in described.missing.items())
    yield ""
    yield from _summary(results)
    yield ""
    yield f"![Every contender side by side, per work]({picture})"
    for result in results:
        yield ""
        yield f"**({result.work.letter}) {result.work.title}.** {result.work.note}"
        yield ""
        yield from _details(result)


def _summary(results: list[Result]) -> Iterator[str]:
    everybody = _everybody(results)
    yield "| less is better | " + " | ".join(everybody.values()) + " | ratio to the best peer |"
    yield "|---|" + "--:|" * (len(everybody) + 1)
    for result, column in judged(results):
        best, ratio = result.best_peer(column), result.ratio(column)
        cells = [figure(result, column, name) for name in everybody]
        if best and best[0] in everybody:
            cells[list(everybody).index(best[0])] += " ◂"
        yield f"| {label(result, column)} | {' | '.join(cells)} | {f'**{ratio:.2f}**' if ratio else '-'} |"
    yield ""
    yield "Medians. ◂ the best peer; † not compared, since it does less."
    for result, column in judged(results):
        for name, contender in result.contenders.items():
            if not contender.same_job:
                beside = _beside(result, column, contender)
                yield f"{contender.title}, in {label(result, column)}: {figure(result, column, name)}{beside}."


def _details(result: Result) -> Iterator[str]:
    columns = result.work.columns
    yield "| | " + " | ".join(f"{column.heading}" for column in columns) + " |"
    yield "|---|" + "--:|" * len(columns)
    for name, measured in result.measured.items():
        cells = []
        for column in columns:
            values, cell = measured.values(column.figure), figure(result, column, name)
            if column.judged and len(values) > 1:
                cell += f" ({column.form.format(min(values))} to {column.form.format(max(values))})"
            cells.append(cell)
        yield f"| {result.contenders[name].title} | " + " | ".join(cells) + " |"
        if measured.error:
            problem = measured.error.splitlines()[0].replace("|", "/")
            yield f"| | {problem} |" + " |" * (len(columns) - 1)


def terminal_table(results: list[Result]) -> Table:
    """The summary with what we must and should reach."""
    everybody = _everybody(results)
    table = Table(title="medians, less is better")
    for heading in ("", *everybody.values(), "ratio", "must / goal"):
        table.add_column(heading, no_wrap=True)
    for result, column in judged(results):
        ratio, ours, aim = result.ratio(column), result.ours(column), column.aim
        reached = (ours if aim.as_it_stands else ratio) if aim else None
        colour = ""
        if aim and reached is not None:
            colour = "green" if reached <= aim.goal else "yellow" if reached <= aim.must else "red"
        table.add_row(
            label(result, column),
            *(figure(result, column, name) for name in everybody),
            f"[{colour or 'default'}]{ratio:.2f}" if ratio else "-",
            f"[{colour or 'default'}]{aim.must:g} / {aim.goal:g}" if aim else "",
        )
    return table


def judged(results: list[Result]) -> Iterator[tuple[Result, Column]]:
    """Every figure that contenders are compared by."""
    for result in results:
        for column in result.work.columns:
            if column.judged:
                yield result, column


def label(result: Result, column: Column) -> str:
    """What a figure is called in a summary."""
    return f"({result.work.letter}) {result.work.title}: {column.heading}"


def figure(result: Result, column: Column, name: str) -> str:
    """One median, printed; marked if it is not comparable."""
    value = result.measured[name].median(column.figure) if name in result.measured else None
    if value is None:
        return "-"
    return column.form.format(value) + ("" if result.compared(name) else " †")


def _beside(result: Result, column: Column, contender: Contender) -> str:
    """How many times the figure of the peer that it is held beside."""
    peer = result.measured.get(contender.beside)
    theirs, own = peer and peer.median(column.figure), result.measured[contender.name].median(column.figure)
    return f", {own / theirs:.1f} times {result.contenders[contender.beside].title}'s" if theirs and own else ""


def _everybody(results: list[Result]) -> dict[str, str]:
    present = {name for result in results for name in result.contenders}
    return {
        contender.name: contender.title for contender in CONTENDERS if contender.name in present and contender.same_job
    }
