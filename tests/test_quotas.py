"""What clients that are not known yet may take: turns in order and so many at a time, places by address."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from aop_proxy.quotas import Addresses, Turns
from in_process import LOOPS

Make = Callable[[], asyncio.AbstractEventLoop]


def run(
    make_loop: Make, walkers: int, at_most: int, *, cancelled: frozenset[int] = frozenset()
) -> list[tuple[int, int]]:
    """Each walker takes two turns: (turn of the loop, walker), in the order in which they had them."""

    async def main() -> list[tuple[int, int]]:
        loop, turns, had = asyncio.get_running_loop(), Turns(asyncio.get_running_loop(), at_most), []
        now, clock = 0, asyncio.Handle(lambda: None, (), loop)

        def tick() -> None:
            nonlocal now, clock
            now += 1
            clock = loop.call_soon(tick)

        async def walk(walker: int) -> None:
            for _ in range(2):
                await turns.take()
                had.append((now, walker))

        clock = loop.call_soon(tick)
        tasks = [loop.create_task(walk(walker)) for walker in range(walkers)]
        await asyncio.sleep(0)
        for walker in cancelled:
            tasks[walker].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        clock.cancel()
        assert not turns.is_any_waiting
        await turns.take()  # afterwards there is room as in the beginning
        return had

    with asyncio.Runner(loop_factory=make_loop) as runner:
        return runner.run(main())


@pytest.mark.parametrize("make_loop", LOOPS)
@pytest.mark.parametrize("at_most", [1, 3, 4])
def test_so_many_in_a_turn(make_loop: Make, at_most: int) -> None:
    """Never more, and never a turn in vain while somebody waits; who came first is first."""
    had = run(make_loop, 10, at_most)
    per_turn = list(Counter(turn for turn, _ in had).values())
    assert max(per_turn) == at_most
    assert min(per_turn[:-1]) == at_most
    assert list(dict.fromkeys(walker for _, walker in had)) == [*range(10)]


@pytest.mark.parametrize("make_loop", LOOPS)
def test_who_leaves_takes_no_turn(make_loop: Make) -> None:
    """One that is closed while it waits costs the others nothing."""
    had = run(make_loop, 10, 2, cancelled=frozenset({4, 5, 6}))
    assert {walker for _, walker in had} == {0, 1, 2, 3, 7, 8, 9}
    assert max(Counter(turn for turn, _ in had).values()) == 2


def test_a_place_for_each_handshake() -> None:
    """So many at a time; who leaves makes room; nothing is kept of an address without any."""
    addresses = Addresses()
    assert [addresses.enter("192.0.2.1", 2) for _ in range(3)] == [True, True, False]
    assert addresses.enter("192.0.2.2", 2)
    addresses.leave("192.0.2.1")
    assert [addresses.enter("192.0.2.1", 2) for _ in range(2)] == [True, False]
    for host in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
        addresses.leave(host)
    assert len(addresses) == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%lo", "fe80::2", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
def test_what_one_address_is(one: str, other: str, same: bool) -> None:
    """An IPv4 address, however it is written, or the /64 of an IPv6 address."""
    addresses = Addresses()
    assert addresses.enter(one, 1)
    assert addresses.enter(other, 1) is not same
