"""The run: every work by every contender in interleaved rounds, progress on stderr; then the tables and the picture."""

import argparse
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import picture, report
from benchmarks.contenders import CONTENDERS, PROJECT, Contender
from benchmarks.lab import PRESETS, Counts, Lab
from benchmarks.load import LoadError
from benchmarks.works import WORKS, Work

RESULTS = Path(__file__).parent / "results"
TOOLS = {
    "nginx": "apt-get install nginx",
    "ab": "apt-get install apache2-utils",
    "taskset": "apt-get install util-linux",
}


def main() -> int:
    """Run it; 0 if every contender did every work, 1 if one failed, 2 if it cannot be done here."""
    options = _options()
    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 150)
    cores = sorted(os.sched_getaffinity(0))
    lacking = [f"{tool} is needed: {how}" for tool, how in TOOLS.items() if not shutil.which(tool)]
    if len(cores) < 2:
        lacking.append("two cores are needed: one for the contender, one for the load and the backend")
    if lacking:
        console.print("\n".join(lacking))
        return 2
    wanted = [contender for contender in CONTENDERS if contender.name in options.contenders]
    versions = {contender.name: contender.version() for contender in wanted}
    missing = {contender.title: contender.install for contender in wanted if versions[contender.name] is None}
    for title, how in missing.items():
        console.print(f"{title} is not installed: {how} (or scripts/bench --install)")
    present = [contender for contender in wanted if versions[contender.name] is not None]
    works = [work for work in WORKS if work.letter in options.works]
    described = report.about(
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        cores=cores,
        contenders={contender.title: versions[contender.name] or "" for contender in present if contender.same_job},
        missing=missing,
    )
    if described.load_average > report.IDLE:
        console.print(f"The machine is busy (load average {described.load_average:.1f}): latencies will be noise.")
    began = time.monotonic()
    results = _measure(console, PRESETS[options.preset], cores, works, present)
    console.print(report.terminal_table(results), f"{time.monotonic() - began:.0f} s")
    whole = works == list(WORKS) and wanted == list(CONTENDERS)
    _write(options.out, options.preset if whole else "part", described, results)
    failures = [measured.error for result in results for measured in result.measured.values() if measured.error]
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [contender.name for contender in CONTENDERS]
    letters = [work.letter for work in WORKS]
    parser.set_defaults(preset="full")
    preset = parser.add_mutually_exclusive_group()
    preset.add_argument("--quick", dest="preset", action="store_const", const="quick", help="under two minutes")
    preset.add_argument("--tiny", dest="preset", action="store_const", const="tiny", help="that it works, not how fast")
    parser.add_argument("--works", type=_subset(letters), default=letters, help="such as a,b,f")
    parser.add_argument("--contenders", type=_subset(names), default=names, help="such as us,nginx")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the results")
    return parser.parse_args()


class _subset:  # noqa: N801 - argparse prints a type's name
    def __init__(self, known: list[str]) -> None:
        self.known = known

    def __call__(self, text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in self.known]:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)} among {', '.join(self.known)}")
        return chosen


def _measure(
    console: Console, counts: Counts, cores: list[int], works: list[Work], contenders: list[Contender]
) -> list[report.Result]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    results = []
    for work in works:
        taking_part = {contender.name: contender for contender in contenders if work.letter in contender.works}
        results.append(report.Result(work, taking_part, {name: report.Measured() for name in taking_part}))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="benchmarks-") as directory,
        Lab(Path(directory), counts, cores) as lab,
        # It is drawn between samples only: a thread that draws would compete with the load.
        Progress(*columns, console=console, auto_refresh=False) as progress,
    ):
        total = sum(_rounds(counts, result.work) * len(result.contenders) for result in results)
        task = progress.add_task("starting", total=total)
        for result in results:
            began = time.monotonic()
            for turn in range(_rounds(counts, result.work)):
                names = list(result.contenders)
                first = turn % len(names) if names else 0
                for name in names[first:] + names[:first]:  # nobody always follows the same neighbour
                    work, contender = result.work, result.contenders[name]
                    progress.update(task, description=f"({work.letter}) {work.title}, {contender.title}")
                    progress.refresh()
                    _take(lab, result, name)
                    progress.advance(task)
            lab.clear()
            _tell(progress.console, result, time.monotonic() - began)
    return results


def _rounds(counts: Counts, work: Work) -> int:
    return counts.memory_rounds if work.letter == "e" else counts.rounds


def _take(lab: Lab, result: report.Result, name: str) -> None:
    measured = result.measured[name]
    if measured.error is None:
        try:
            measured.samples.append(result.work.sample(lab, result.contenders[name]))
        except (LoadError, OSError, subprocess.SubprocessError) as error:
            measured.error = f"{type(error).__name__}: {error}"


def _tell(console: Console, result: report.Result, seconds: float) -> None:
    column = result.work.columns[0]
    figures = (f"{result.contenders[name].title} {report.figure(result, column, name)}" for name in result.contenders)
    console.print(
        f"({result.work.letter}) {result.work.title}, {column.heading}: {', '.join(figures)} [{seconds:.0f} s]",
        markup=False,
    )
    for name, measured in result.measured.items():
        if measured.error:
            console.print(f"    {result.contenders[name].title}: {measured.error}", style="red", markup=False)


def _write(directory: Path, name: str, described: report.About, results: list[report.Result]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    report.write_json(directory / f"{name}.json", described, results)
    picture.draw(directory / f"{name}.svg", results)
    report.write_markdown(directory / f"{name}.md", described, results, f"{name}.svg")
    written = directory.relative_to(PROJECT) if directory.is_relative_to(PROJECT) else directory
    print(f"{written}/{name}.md, .json, .svg")
