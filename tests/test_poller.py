"""Readiness of sockets, told to whoever wants to know and to nobody else, on every loop and in both ways."""

import asyncio
import contextlib
import queue
import socket
from collections.abc import Callable, Iterator

import pytest
import uvloop

from actors import PATIENCE, reset
from aop_proxy.poller import EVENTS_PER_TURN, EpollPoller, LoopPoller, Poller, make_poller
from in_process import LoopThread, tcp_pair, watching

OWN_UNDER_UVLOOP = "uvloop-own"
SOON = 0.03
"""Seconds in which something that must not happen would have happened."""


class Watcher:
    """One poller, and what it has called, in order."""

    def __init__(self, loop: LoopThread, poller: Poller) -> None:
        self.loop = loop
        self.poller = poller
        self.calls: queue.Queue[str] = queue.Queue()
        self._ends: list[socket.socket] = []

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Our end and the peer's."""
        pair = tcp_pair()
        self._ends += pair
        return pair

    def on_readable(self, end: socket.socket, name: str, then: Callable[[], object] = lambda: None) -> None:
        """Note the name and take one byte, whenever there is one."""

        def ready() -> None:
            try:
                data = end.recv(1)
            except BlockingIOError:
                return
            except OSError:
                data = b"!"
            self.calls.put(f"{name} {data.decode()}")
            then()

        self.loop.call(self.poller.on_readable, end.fileno(), ready)

    def on_writable(self, end: socket.socket, name: str, *, once: bool = True) -> None:
        """Note the name when there is room."""

        def ready() -> None:
            self.calls.put(name)
            if once:
                self.poller.stop_writing(end.fileno())

        self.loop.call(self.poller.on_writable, end.fileno(), ready)

    def heard(self, count: int) -> list[str]:
        return [self.calls.get(timeout=PATIENCE) for _ in range(count)]

    def hears_nothing(self) -> bool:
        try:
            self.calls.get(timeout=SOON)
        except queue.Empty:
            return True
        return False

    def close(self) -> None:
        for end in self._ends:
            if end.fileno() >= 0:
                self.loop.call(self.poller.forget, end.fileno())
                end.close()


def fill(end: socket.socket) -> None:
    """Send until there is no more room."""
    with contextlib.suppress(BlockingIOError):
        while True:
            end.send(b"x" * 65536)


def empty(peer: socket.socket) -> None:
    """Take all that is there."""
    peer.settimeout(SOON)
    with contextlib.suppress(TimeoutError):
        while True:
            peer.recv(1 << 20)


@pytest.fixture(
    params=[
        pytest.param((asyncio.new_event_loop, EpollPoller), id="asyncio-epoll"),
        pytest.param((uvloop.new_event_loop, EpollPoller), id="uvloop-epoll"),
        pytest.param((asyncio.new_event_loop, LoopPoller), id="asyncio-own"),
        pytest.param((uvloop.new_event_loop, LoopPoller), id=OWN_UNDER_UVLOOP),
    ]
)
def watcher(request: pytest.FixtureRequest) -> Iterator[Watcher]:
    make_loop, make = request.param
    with LoopThread(make_loop) as loop, watching(loop, make) as poller:
        watching_one = Watcher(loop, poller)
        yield watching_one
        watching_one.close()


def test_linux_has_epoll() -> None:
    """Where there is epoll it is used."""
    loop = asyncio.new_event_loop()
    poller = make_poller(loop)
    assert isinstance(poller, EpollPoller)
    assert poller.loop is loop
    poller.close()
    loop.close()


def test_called_as_long_as_there_is_something_to_read(watcher: Watcher) -> None:
    """Once for each look, until everything has been taken, and the end is something to read too."""
    end, peer = watcher.pair()
    watcher.on_readable(end, "read", lambda: None)
    assert watcher.hears_nothing()
    peer.sendall(b"abc")
    assert watcher.heard(3) == ["read a", "read b", "read c"]
    assert watcher.hears_nothing()
    peer.sendall(b"d")
    assert watcher.heard(1) == ["read d"]
    peer.close()
    assert watcher.heard(1) == ["read "]


def test_the_later_callback_replaces_the_earlier(watcher: Watcher) -> None:
    """A socket has one reader."""
    end, peer = watcher.pair()
    watcher.on_readable(end, "first")
    watcher.on_readable(end, "second")
    peer.sendall(b"a")
    assert watcher.heard(1) == ["second a"]


def test_reading_can_stop_and_go_on(watcher: Watcher) -> None:
    """While nobody wants to know nobody is called; what has come meanwhile is told afterwards."""
    end, peer = watcher.pair()
    for _ in range(2):
        watcher.on_readable(end, "read")
        peer.sendall(b"a")
        assert watcher.heard(1) == ["read a"]
        watcher.loop.call(watcher.poller.stop_reading, end.fileno())
        watcher.loop.call(watcher.poller.stop_reading, end.fileno())
        peer.sendall(b"b")
        assert watcher.hears_nothing()
        watcher.on_readable(end, "later")
        assert watcher.heard(1) == ["later b"]


def test_called_when_there_is_room_to_write(watcher: Watcher) -> None:
    """At once where there is, else when the peer has taken something; and no more after `stop_writing`."""
    end, peer = watcher.pair()
    watcher.on_writable(end, "room")
    assert watcher.heard(1) == ["room"]
    assert watcher.hears_nothing()
    fill(end)
    watcher.on_writable(end, "room again")
    assert watcher.hears_nothing()
    empty(peer)
    assert watcher.heard(1) == ["room again"]


def test_reading_and_writing_at_once(watcher: Watcher) -> None:
    """One socket may have both callbacks, and each stops by itself."""
    end, peer = watcher.pair()
    watcher.on_readable(end, "read")
    watcher.on_writable(end, "room")
    peer.sendall(b"a")
    assert sorted(watcher.heard(2)) == ["read a", "room"]
    peer.sendall(b"b")
    assert watcher.heard(1) == ["read b"]
    watcher.loop.call(watcher.poller.stop_reading, end.fileno())
    watcher.on_writable(end, "room")
    peer.sendall(b"c")
    assert watcher.heard(1) == ["room"]
    assert watcher.hears_nothing()


def test_a_forgotten_number_may_come_again(watcher: Watcher) -> None:
    """After `forget` and `close` another socket with the same number is watched as a new one."""
    for number in range(3):
        end, peer = watcher.pair()
        descriptor = end.fileno()
        watcher.on_readable(end, f"reader {number}")
        watcher.on_writable(end, f"writer {number}", once=False)
        peer.sendall(b"a")
        while f"reader {number} a" not in watcher.heard(1):
            pass

        def leave(end: socket.socket = end, descriptor: int = descriptor) -> None:
            watcher.poller.forget(descriptor)
            end.close()

        watcher.loop.call(leave)
        while not watcher.calls.empty():
            watcher.calls.get()
        assert watcher.hears_nothing()
        peer.close()


def test_a_callback_may_close_another_socket(watcher: Watcher) -> None:
    """Two sockets are ready at once and the first closes the second: nobody is called for that one."""
    first, first_peer = watcher.pair()
    second, second_peer = watcher.pair()

    def leave() -> None:
        for end in (first, second):
            watcher.poller.forget(end.fileno())
            end.close()

    def both_ready() -> None:
        first_peer.sendall(b"a")
        second_peer.sendall(b"b")

    watcher.on_readable(first, "first", leave)
    watcher.on_readable(second, "second", leave)
    watcher.loop.call(both_ready)
    assert watcher.heard(1) in (["first a"], ["second b"])
    assert watcher.hears_nothing()


def test_more_sockets_than_one_turn_serves(watcher: Watcher) -> None:
    """All of them are served in the end."""
    pairs = [watcher.pair() for _ in range(EVENTS_PER_TURN + 10)]
    for number, (end, _) in enumerate(pairs):
        watcher.on_readable(end, f"{number:03}")

    def all_at_once() -> None:
        for _, peer in pairs:
            peer.sendall(b"a")

    watcher.loop.call(all_at_once)
    assert sorted(watcher.heard(len(pairs))) == [f"{number:03} a" for number in range(len(pairs))]


def test_an_error_is_told_again_and_again(watcher: Watcher, request: pytest.FixtureRequest) -> None:
    """A socket that was reset stays readable until its reader has taken what came before, and has seen the end."""
    if OWN_UNDER_UVLOOP in request.node.name:
        request.applymarker(pytest.mark.xfail(reason="uvloop stops watching a socket at its first error", strict=True))
    end, peer = watcher.pair()
    watcher.on_readable(end, "read")
    watcher.loop.call(watcher.poller.stop_reading, end.fileno())
    peer.sendall(b"abc")
    reset(peer)
    watcher.on_readable(end, "read")
    assert [watcher.calls.get(timeout=1) for _ in range(4)] == ["read a", "read b", "read c", "read !"]


@pytest.mark.parametrize("ending", ["fin", "reset"])
def test_an_end_that_nobody_wants_to_know_of(watcher: Watcher, ending: str) -> None:
    """A peer that leaves while nobody reads does not keep the loop busy, and its end is told later."""
    end, peer = watcher.pair()
    watcher.on_readable(end, "read")
    watcher.loop.call(watcher.poller.stop_reading, end.fileno())
    reset(peer) if ending == "reset" else peer.close()
    assert watcher.hears_nothing()
    if isinstance(watcher.poller, EpollPoller):
        assert watcher.loop.call(lambda: watcher.poller._epoll.poll(0)) == []  # type: ignore[attr-defined]
    watcher.on_readable(end, "read")
    assert watcher.heard(1) == ["read !" if ending == "reset" else "read "]


def test_a_writer_hears_of_the_end(watcher: Watcher) -> None:
    """Who waits for room to write to a peer that is gone is called, to find out."""
    end, peer = watcher.pair()
    fill(end)
    watcher.on_writable(end, "gone")
    assert watcher.hears_nothing()
    reset(peer)
    assert watcher.heard(1) == ["gone"]


def test_closed_while_nobody_was_watching(watcher: Watcher) -> None:
    """A socket that was closed without a word is no trouble for the others."""
    end, peer = watcher.pair()
    other, other_peer = watcher.pair()
    watcher.on_readable(end, "read")
    watcher.loop.call(watcher.poller.stop_reading, end.fileno())
    peer.sendall(b"a")
    end.close()
    watcher.on_readable(other, "other")
    other_peer.sendall(b"b")
    assert watcher.heard(1) == ["other b"]


def test_after_a_turn(watcher: Watcher) -> None:
    """Once, when every socket that was ready has been served; and by itself where no socket is."""
    ours, theirs = zip(*(watcher.pair() for _ in range(3)), strict=True)

    def after(name: str) -> None:
        watcher.poller.after_turn(lambda: watcher.calls.put(name))

    for number, end in enumerate(ours):
        watcher.on_readable(end, str(number), lambda number=number: after(f"after {number}"))  # type: ignore[misc]

    def speak() -> None:
        for end in theirs:
            end.sendall(b"x")

    watcher.loop.call(speak)
    heard = watcher.heard(6)
    assert set(heard) == {"0 x", "1 x", "2 x", "after 0", "after 1", "after 2"}
    if isinstance(watcher.poller, EpollPoller):
        assert sorted(heard[:3]) == ["0 x", "1 x", "2 x"]
    watcher.loop.call(after, "alone")
    assert watcher.heard(1) == ["alone"]
    assert watcher.hears_nothing()


def test_a_bug_after_a_turn_costs_nobody_else(watcher: Watcher) -> None:
    """What the others wait for happens all the same, and the bug is told."""
    ours, theirs = watcher.pair()

    def fail() -> None:
        raise ZeroDivisionError

    def order() -> None:
        watcher.poller.after_turn(fail)
        watcher.poller.after_turn(lambda: watcher.calls.put("after"))

    def tell(_: object, context: dict[str, object]) -> None:
        watcher.calls.put(type(context["exception"]).__name__)

    watcher.loop.call(watcher.loop.loop.set_exception_handler, tell)
    watcher.on_readable(ours, "heard", order)
    theirs.sendall(b"x")
    assert watcher.heard(3) == ["heard x", "ZeroDivisionError", "after"]
