"""Idle backend connections: the last used first, none on which anything came, none for long, never too many."""

import asyncio
import socket
from collections.abc import Callable, Iterator

import pytest

from actors import PATIENCE
from aop_proxy import pool as module
from aop_proxy.endpoint import Stream
from aop_proxy.model import Upstream
from aop_proxy.poller import Poller
from aop_proxy.pool import IDLE, Pool
from aop_proxy.relay import Buffers
from aop_proxy.stream import BackendEnd
from aop_proxy.upstream import Dialled
from in_process import POLLERS, LoopThread, tcp_pair, watching

UPSTREAM = Upstream("http://127.0.0.1:1", "127.0.0.1", 1)
KEY, OTHER = "one", "other"


class Keeper:
    """A pool on its loop, and the peers of the connections that it was given."""

    def __init__(self, loop: LoopThread, pool: Pool, poller: Poller) -> None:
        self.loop = loop
        self.pool = pool
        self.poller = poller
        self.ours: list[socket.socket] = []
        self.taken: list[BackendEnd] = []

    def give(self, key: str = KEY) -> socket.socket:
        """Have the pool keep a connection; its peer."""
        ours, theirs = tcp_pair()
        self.ours.append(ours)
        end = BackendEnd(self.poller, Buffers(), Dialled(ours, UPSTREAM, b""), lambda: None)
        self.loop.call(self.pool.give, key, end)
        return theirs

    def take(self, key: str = KEY) -> Stream | None:
        taken = self.loop.call(self.pool.take, key, lambda: None)
        if taken is None:
            return None
        self.taken.append(taken)
        return taken.stream

    def now(self) -> float:
        return self.loop.call(self.loop.loop.time)

    def sweep(self, now: float) -> None:
        self.loop.call(self.pool.sweep, now)

    def wait_until_closed(self, end: socket.socket) -> None:
        """Return when the pool has closed one of ours."""

        async def wait() -> None:
            while end.fileno() >= 0:
                await asyncio.sleep(0.001)

        self.loop.run(wait())


@pytest.fixture(params=POLLERS)
def keeper(request: pytest.FixtureRequest) -> Iterator[Keeper]:
    make_loop, make_poller = request.param
    with LoopThread(make_loop) as loop, watching(loop, make_poller) as poller:
        keeper = Keeper(loop, Pool(poller), poller)
        yield keeper
        loop.call(keeper.pool.close)
        for taken in keeper.taken:
            loop.call(taken.close)
        for end in keeper.ours:
            end.close()


def test_the_last_used_comes_first(keeper: Keeper) -> None:
    """So that the others grow old and are closed; and each but once, and for its own backend alone."""
    with keeper.give(), keeper.give(), keeper.give(OTHER):
        first, last, other = keeper.ours
        assert keeper.take() is last
        assert keeper.take() is first
        assert keeper.take() is None
        assert keeper.take(OTHER) is other


def test_looking_makes_none_younger(keeper: Keeper) -> None:
    """Else health checks would keep one until the backend closes it, maybe as a request comes."""
    with keeper.give() as theirs:
        given = keeper.now()
        keeper.loop.run(asyncio.sleep(0.01))  # this much older
        keeper.give(OTHER).close()
        keeper.wait_until_closed(keeper.ours[1])
        assert keeper.loop.call(keeper.pool.holds, KEY)
        keeper.sweep(given + IDLE + 0.001)
        assert theirs.recv(1) == b""
        assert not keeper.loop.call(keeper.pool.holds, KEY)


Spoil = Callable[[socket.socket], object]
SPOILED: dict[str, Spoil] = {
    "a byte": lambda end: end.sendall(b"x"),
    "an end": lambda end: end.shutdown(socket.SHUT_WR),
    "a reset": lambda end: end.close(),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_what_spoke_out_of_turn_is_closed(keeper: Keeper, spoil: Spoil) -> None:
    """At once, and without anybody asking for it."""
    with keeper.give() as theirs:
        spoil(theirs)
        keeper.wait_until_closed(keeper.ours[0])
        assert keeper.take() is None


def test_what_spoke_just_now_is_not_given_out(keeper: Keeper) -> None:
    """Also in the turn of the loop in which nobody has been told yet."""
    theirs, ours = keeper.give(), keeper.ours[0]

    def speak_and_take() -> object:
        theirs.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        return keeper.pool.take(KEY, lambda: None)

    with theirs:
        assert keeper.loop.call(speak_and_take) is None
        assert ours.fileno() < 0


def test_none_is_kept_for_long(keeper: Keeper) -> None:
    """Those not used for `IDLE` seconds are closed by the next sweep, and no others; even if nothing else happens."""
    with keeper.give() as theirs:
        keeper.sweep(keeper.now() + IDLE / 2)
        assert keeper.ours[0].fileno() >= 0
        keeper.sweep(keeper.now() + IDLE + 1)
        assert theirs.recv(1) == b""
        assert keeper.take() is None


@pytest.mark.parametrize("bound", ["MAX_KEPT", "MAX_KEPT_IN_ALL"])
def test_their_number_is_bounded(keeper: Keeper, monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """What is too many is closed."""
    monkeypatch.setattr(module, bound, 1)
    with keeper.give(), keeper.give() as too_many:
        too_many.settimeout(PATIENCE)
        assert too_many.recv(1) == b""
        assert keeper.take() is keeper.ours[0]
