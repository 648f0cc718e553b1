"""When a reload is due: what is read differs from what was last taken, and two looks in a row agree."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aop_proxy.model import Bundle, ConfigurationError, Listen, Problem, Settings
from aop_proxy.watch import Watch

SOON = 0.001
SETTINGS = Settings((Listen("127.0.0.1", 0),), ())
BROKEN = ConfigurationError(Problem("listen", "is missing"))
GONE = FileNotFoundError("there is no working directory")


def says(content: str) -> Bundle:
    return Bundle(SETTINGS, {"file": content.encode()})


def reading(*outcomes: str | Exception) -> Callable[[], Bundle]:
    """Reads that come out like this, one after the other."""
    left: Iterator[str | Exception] = iter(outcomes)

    def load() -> Bundle:
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return says(outcome)

    return load


async def looks(watch: Watch, count: int) -> list[bool]:
    return [await watch.sees_change(SOON) for _ in range(count)]


async def test_nothing_changes() -> None:
    """Then nothing is due."""
    assert await looks(Watch(reading("a", "a"), says("a")), 2) == [False, False]


async def test_a_change_that_stays() -> None:
    """It is due at the second look that agrees; taken, it is no change any more."""
    watch = Watch(reading("b", "b", "b", "b"), says("a"))
    assert await looks(watch, 2) == [False, True]
    assert await watch.take() == says("b")
    assert await looks(watch, 1) == [False]


async def test_a_file_that_is_being_written() -> None:
    """As long as each look finds something else, nothing is due."""
    assert await looks(Watch(reading("b", "bc", "bcd", "bcd"), says("a")), 4) == [False, False, False, True]


async def test_a_file_that_is_written_again_meanwhile() -> None:
    """What two looks agreed on is taken, without a third that might find half of something else."""
    watch = Watch(reading("b", "b", "half", "whole", "whole"), says("a"))
    assert await looks(watch, 2) == [False, True]
    assert await watch.take(anew=False) == says("b")
    assert await looks(watch, 3) == [False, False, True]
    assert await watch.take(anew=False) == says("whole")


async def test_a_look_that_is_overtaken() -> None:
    """What is taken while a look is under way is newer than what the look found."""
    has_begun, may_end = threading.Event(), threading.Event()
    read = reading("b", "b", "c", "c")
    calls = itertools.count(1)

    def load() -> Bundle:
        is_second, found = next(calls) == 2, read()
        if is_second:
            has_begun.set()
            may_end.wait(10)
        return found

    watch = Watch(load, says("a"))
    assert await looks(watch, 1) == [False]
    looking = asyncio.create_task(watch.sees_change(SOON))
    assert await asyncio.to_thread(has_begun.wait, 10)
    assert await watch.take() == says("c")
    may_end.set()
    assert await looking is False
    assert await watch.take(anew=False) == says("c")
    assert await looks(watch, 1) == [False]


async def test_a_change_that_is_taken_back() -> None:
    """It was none."""
    assert await looks(Watch(reading("b", "a", "a"), says("a")), 3) == [False, False, False]


@pytest.mark.parametrize("error", [BROKEN, GONE], ids=lambda error: type(error).__name__)
async def test_what_cannot_be_used_is_told_once(error: Exception) -> None:
    """It is due once, with its problems; mended, whatever it says then is due again."""
    watch = Watch(reading(error, error, error, error, error, "a", "a"), says("a"))
    assert await looks(watch, 2) == [False, True]
    with pytest.raises(ConfigurationError, match=str(error)):
        await watch.take()
    assert await looks(watch, 4) == [False, False, False, True]


async def test_what_was_taken_meanwhile() -> None:
    """A reload for another reason ends the wait: there may be another interval now, or none."""
    watch = Watch(reading("b", "b", "b"), says("a"))
    looking = asyncio.create_task(watch.sees_change(None))
    await asyncio.sleep(0)
    assert await watch.take() == says("b")
    assert await asyncio.wait_for(looking, 10) is False
    assert await looks(watch, 2) == [False, False]


async def test_content_counts(tmp_path: Path) -> None:
    """A link that points elsewhere is a change, a file that was merely touched is none."""
    for name in ("old", "new"):
        (tmp_path / name).write_text(name)
    link = tmp_path / "link"
    link.symlink_to("old")
    watch = Watch(lambda: says(link.read_text()), says("old"))
    (tmp_path / "old").touch()
    assert await looks(watch, 2) == [False, False]
    link.unlink()
    link.symlink_to("new")
    assert await looks(watch, 2) == [False, True]
