"""The sizing script: its sums, and that docs/scaling.md says what the benchmark has measured."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import sizing
from benchmarks.sizing import DOCUMENT, MEASURED, Costs, Load

COSTS = Costs(
    connection=900,
    request=100,
    closing_request=1500,
    mib_down=1000,
    mib_up=2000,
    refusal=500,
    open_connection=10,
    open_after_bulk=64,
    at_rest=64 * 1024,
)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """What a run of the benchmark leaves, with `COSTS` for medians."""
    medians = {
        "a": {"cpu_us": 1000},
        "b": {"cpu_us": 100},
        "c": {"cpu_ms": 100},
        "d": {"cpu_ms": 200},
        "e": {"medium_kib": 10, "down_kib": 20, "up_kib": 64, "rest_mib": 64},
        "f": {"cpu_us": 500},
        "j": {"cpu_us": 1500},
    }
    works = {letter: {"contenders": {"us": {"median": median}}} for letter, median in medians.items()}
    about = {"date": "a day", "machine": "a machine", "python": "Python"}
    path = tmp_path / "measured.json"
    path.write_text(json.dumps({"about": about, "works": works}))
    return path


def test_costs_are_the_benchmarks_medians(results: Path) -> None:
    """A new connection without the request that was sent over it; the heavier of two pasts."""
    assert sizing.read(results) == COSTS


def test_a_load_is_the_sum_of_its_parts() -> None:
    """CPU seconds per second."""
    load = Load(connections=1000, requests=1000, mib_down=100, mib_up=100, strangers=200)
    assert sizing.cores(COSTS, load) == pytest.approx(0.9 + 0.1 + 0.1 + 0.2 + 0.1)


def test_each_resource_asks_for_proxies() -> None:
    """CPU by what may be spent of a core, memory by what is left beside the program, connections by their limit."""
    load = Load(requests=12_001, open=sizing.MOST_OPEN + 1)
    assert sizing.held(COSTS, 1088) == 16_384 == sizing.MOST_OPEN
    expected = {"CPU": 3, "memory": 2, "limits.connections": 2}
    assert sizing.proxies(COSTS, load, busy=0.6, memory=1088) == expected


def test_one_proxy_carries_an_even_share() -> None:
    """By chance it is never less than even; a rolling restart makes it worse, and a simulation is the same again."""
    by_chance = sizing.simulated(sizing.placed, 100, 8)
    restarted = sizing.simulated(sizing.replaced, 100, 8)
    assert 1 < by_chance < restarted < 8
    assert sizing.simulated(sizing.placed, 100, 8) == by_chance
    assert sizing.simulated(sizing.placed, 100, 1) == 1


def test_the_answer(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says what decides and what each proxy gets."""
    flags = ["--requests", "12000", "--open", "33000", "--memory", "1088", "--spare", "2"]
    assert sizing.main(["--results", str(results), *flags]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "CPU: 1.20 cores, 60% of one core each: 2",
        "memory: 33,000 open connections, 1088 MiB each: 3",
        "limits.connections: 33,000 open connections, 16,384 each: 3",
        "so 3 and 2 to spare: 5 proxies of one core and 1088 MiB",
        "each with 11,000 connections and 22,000 descriptors when 2 are lost",
    ]


def test_the_document_says_what_was_measured() -> None:
    """Every block is what the script makes of benchmarks/results; `python -m benchmarks.sizing --write` mends it."""
    document = DOCUMENT.read_text()
    assert [name for name, _ in sizing.GENERATED.findall(document)] == re.findall(r"<!-- sizing: (\w+) -->", document)
    assert set(re.findall(r"<!-- sizing: (\w+) -->", document)) == set(sizing.BLOCKS)
    assert document == sizing.written(document, MEASURED)


def test_another_measurement_makes_other_figures(results: Path) -> None:
    """The text between the blocks stays."""
    document = DOCUMENT.read_text()
    other = sizing.written(document, results)
    assert "| small request on a kept connection | 100 µs of CPU | b |" in other
    assert sizing.GENERATED.sub("", other) == sizing.GENERATED.sub("", document)


def test_the_text_between_holds_no_measurement() -> None:
    """It would go stale: figures with a unit of the benchmark stand in blocks alone."""
    text = sizing.GENERATED.sub("", DOCUMENT.read_text())
    assert re.findall(r"[\d.,]+ ?(?:µs|ms|KiB|MiB|[a-z ]+/s)\b", text) == []


def test_the_share_that_is_planned_is_the_one_in_the_text() -> None:
    text = sizing.GENERATED.sub("", DOCUMENT.read_text())
    assert set(re.findall(r"(\d+) %", text)) == {f"{sizing.BUSY * 100:.0f}"}
