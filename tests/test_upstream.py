"""One dial: the first address that answers in time, or whose fault it was that none did."""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import actors
from actors import PATIENCE, free_port, full
from aop_proxy import model
from aop_proxy.endpoint import Stream
from aop_proxy.log import Log
from aop_proxy.model import Upstream, UpstreamTls
from aop_proxy.poller import Poller
from aop_proxy.reasons import Reason
from aop_proxy.upstream import Caller, Dialled, Dialler
from aop_proxy.upstream_tls import Backend, upstream_context
from certificates import Authority
from in_process import POLLERS, LoopThread, watching

HURRY = 0.08
"""Seconds: a deadline that is meant to pass."""
NOBODY = Caller()
SCRATCH = 256 * 1024
UNREACHABLE, TIMEOUT = Reason.UPSTREAM_UNREACHABLE, Reason.UPSTREAM_TIMEOUT


class Phone:
    """A `Dialler`, called from outside its loop."""

    def __init__(self, loop: LoopThread, poller: Poller) -> None:
        self.loop = loop
        self._read, self._write = os.pipe()
        self.log = actors.Log(self._read)
        log = Log(model.Log("json"), self._write)
        self.told: list[tuple[str, Reason | None]] = []
        self._dialler = Dialler(poller, memoryview(bytearray(SCRATCH)), log, 1, self.note)

    def note(self, url: str, seconds: float, failure: Reason | None) -> None:
        assert 0 < seconds < PATIENCE
        self.told.append((url, failure))

    def stop_the_clock(self) -> None:
        """Nothing that is skipped has its turn again, however slow this machine is."""
        self._dialler._health._monotonic = lambda: 0.0

    def dial(
        self, *upstreams: Upstream | Backend, deadline: float = PATIENCE, caller: Caller = NOBODY
    ) -> Coroutine[Any, Any, Dialled | Reason]:
        backends = tuple(Backend(one) if isinstance(one, Upstream) else one for one in upstreams)
        return self._dialler.dial(backends, deadline, caller)

    def __call__(
        self, *upstreams: Upstream | Backend, deadline: float = PATIENCE, caller: Caller = NOBODY
    ) -> Dialled | Reason:
        return self.loop.run(self.dial(*upstreams, deadline=deadline, caller=caller))

    def at_once(self, upstream: Upstream, caller: Caller = NOBODY) -> Dialled | None:
        return self.loop.call(self._dialler.dial_at_once, (Backend(upstream),), caller)

    def begin(self, upstream: Upstream) -> Callable[[], socket.socket]:
        """Have a dial under way, and go on; call the result to wait for its socket."""
        dialling = asyncio.run_coroutine_threadsafe(self.dial(upstream), self.loop.loop)
        self.loop.call(lambda: None)  # its first step is taken by then

        def end() -> socket.socket:
            outcome = dialling.result(PATIENCE + 5)
            assert not isinstance(outcome, Reason)
            return plain(outcome.stream)

        return end

    def connect(self, *upstreams: Upstream | Backend, deadline: float = PATIENCE) -> tuple[socket.socket, Upstream]:
        """Dial with success."""
        outcome = self(*upstreams, deadline=deadline)
        assert not isinstance(outcome, Reason)
        return plain(outcome.stream), outcome.upstream

    def close(self) -> None:
        os.close(self._write)
        self.log.join(PATIENCE)


def plain(stream: Stream) -> socket.socket:
    assert isinstance(stream, socket.socket)
    return stream


@pytest.fixture(params=POLLERS)
def dialler(request: pytest.FixtureRequest) -> Iterator[Phone]:
    make_loop, make_poller = request.param
    with LoopThread(make_loop) as loop, watching(loop, make_poller) as poller:
        phone = Phone(loop, poller)
        yield phone
        phone.close()


def tcp(host: str, port: int) -> Upstream:
    return Upstream(f"http://{host}:{port}", host, port)


def unix(path: Path) -> Upstream:
    return Upstream(f"unix:{path}", path=str(path))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)
        yield listening


@pytest.fixture
def backend(listener: socket.socket) -> Upstream:
    """A backend that answers."""
    return tcp(*listener.getsockname())


@pytest.fixture
def refusing() -> Upstream:
    """A port that nobody listens on."""
    return tcp("127.0.0.1", free_port())


@pytest.fixture
def silent() -> Iterator[Upstream]:
    """A TCP address that does not answer."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        with full(listening):
            yield tcp(*listening.getsockname())


@pytest.fixture
def unix_listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(PATIENCE)
        listening.bind(str(tmp_path / "app.sock"))
        yield listening


def descriptors() -> set[str]:
    return set(os.listdir("/dev/fd"))


# Who answers


def test_a_backend_that_answers(dialler: Phone, backend: Upstream, listener: socket.socket) -> None:
    """The socket is connected, non-blocking, and without Nagle; which backend it is, is told."""
    end, upstream = dialler.connect(backend)
    with end, listener.accept()[0] as accepted:
        assert upstream is backend
        assert not end.getblocking()
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        end.sendall(b"hello")
        assert accepted.recv(5) == b"hello"


def test_who_may_vanish_is_asked(dialler: Phone, backend: Upstream, listener: socket.socket) -> None:
    """By keep-alive; nobody on this machine's loopback does so without a word."""
    for host, is_asked in (("127.0.0.1", 0), ("0.0.0.0", 1)):  # Linux takes the second for this machine, too
        with dialler.connect(replace(backend, host=host))[0] as end, listener.accept()[0]:
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == is_asked
            assert (end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60) is bool(is_asked)


def test_who_is_near_is_reached_at_once(
    dialler: Phone, backend: Upstream, listener: socket.socket, unix_listener: socket.socket
) -> None:
    """A backend in clear on this machine that answers; its header is handed over."""
    unix_listener.listen()
    near = unix(Path(unix_listener.getsockname()))
    for upstream, accepting in ((backend, listener), (near, unix_listener)):
        dialled = dialler.at_once(upstream, caller=Caller(header=lambda upstream: upstream.url.encode()))
        assert dialled is not None
        assert (dialled.upstream, dialled.preamble) == (upstream, upstream.url.encode())
        with plain(dialled.stream) as end, accepting.accept()[0] as accepted:
            assert not end.getblocking()
            end.sendall(b"hello")
            assert accepted.recv(5) == b"hello"
    assert dialler.told == [(backend.url, None), (near.url, None)]


def test_who_is_not_is_left_to_patience(dialler: Phone, backend: Upstream, listener: socket.socket) -> None:
    """Names, TLS, other machines, other addresses of ours, and who does not answer; and nobody is blamed for it."""
    nobody = tcp("127.0.0.1", free_port())
    before = descriptors()
    for upstream in (
        replace(backend, host="localhost"),
        replace(backend, host="0.0.0.0"),
        replace(backend, tls=UpstreamTls()),
        replace(backend, transparent=True),
        nobody,
    ):
        assert dialler.at_once(upstream) is None
    assert dialler.told == []
    assert dialler(nobody) is UNREACHABLE
    with socket.create_server(("127.0.0.1", nobody.port)):
        assert dialler.at_once(nobody) is None  # it is known to be down
    assert descriptors() == before


def test_ipv6(dialler: Phone) -> None:
    """An IPv6 address is dialled as it stands."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        port = listening.getsockname()[1]
        with dialler.connect(Upstream(f"http://[::1]:{port}", "::1", port))[0] as end:
            assert end.getpeername()[:2] == ("::1", port)


def test_a_unix_socket(dialler: Phone, unix_listener: socket.socket) -> None:
    """A path is dialled too."""
    unix_listener.listen()
    end, _ = dialler.connect(unix(Path(unix_listener.getsockname())))
    with end, unix_listener.accept()[0] as accepted:
        assert not end.getblocking()
        end.sendall(b"hello")
        assert accepted.recv(5) == b"hello"


def test_a_name_with_several_addresses(dialler: Phone, listener: socket.socket) -> None:
    """Where a name has an address that refuses, the next one is tried."""
    port = listener.getsockname()[1]
    with dialler.connect(tcp("localhost", port))[0] as end:
        assert end.getpeername() == ("127.0.0.1", port)


def test_names_are_looked_up_at_every_dial(dialler: Phone) -> None:
    """A backend that comes up later is found."""
    port = free_port()
    assert dialler(tcp("localhost", port)) is UNREACHABLE
    with socket.create_server(("127.0.0.1", port)):
        dialler.connect(tcp("localhost", port))[0].close()


def test_a_full_unix_socket_is_waited_for(dialler: Phone, unix_listener: socket.socket) -> None:
    """A backend that is busy for a moment is no backend that is down."""
    with full(unix_listener) as waiting:
        connected = dialler.begin(unix(Path(unix_listener.getsockname())))
        for _ in waiting:
            unix_listener.accept()[0].close()
        with connected() as end, unix_listener.accept()[0] as accepted:
            end.sendall(b"hello")
            assert accepted.recv(5) == b"hello"


def test_an_address_that_is_slow(dialler: Phone) -> None:
    """A connection that comes about within the deadline counts, though not at once."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(PATIENCE)
        with full(listening) as waiting:
            connected = dialler.begin(tcp(*listening.getsockname()))
            for _ in waiting:
                listening.accept()[0].close()
            with connected() as end, listening.accept()[0] as accepted:  # the kernel asks again after a second
                end.sendall(b"hello")
                assert accepted.recv(5) == b"hello"


# The next one


def test_the_next_address_is_tried(dialler: Phone, refusing: Upstream, backend: Upstream, tmp_path: Path) -> None:
    """In order, past one that refuses and a unix socket that is not there."""
    end, upstream = dialler.connect(refusing, unix(tmp_path / "none.sock"), backend)
    end.close()
    assert upstream is backend


def test_the_first_that_answers_is_taken(dialler: Phone, backend: Upstream, refusing: Upstream) -> None:
    """Those behind it are not asked."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.setblocking(False)
        end, upstream = dialler.connect(backend, tcp(*other.getsockname()), refusing)
        end.close()
        assert upstream is backend
        with pytest.raises(BlockingIOError):
            other.accept()


def test_each_address_has_its_own_deadline(dialler: Phone, silent: Upstream, backend: Upstream) -> None:
    """A silent address costs its deadline, and the next one is reached."""
    end, upstream = dialler.connect(silent, backend, deadline=HURRY)
    end.close()
    assert upstream is backend


# Who failed lately


def test_who_failed_is_skipped(dialler: Phone, refusing: Upstream, silent: Upstream, backend: Upstream) -> None:
    """The next dial goes to the one that answers at once; the first is tried again where nobody else is left."""
    dialler.stop_the_clock()
    dialler.connect(refusing, silent, backend, deadline=HURRY)[0].close()
    dialler.told.clear()
    dialler.connect(refusing, silent, backend, deadline=HURRY)[0].close()
    assert [(backend.url, None)] == dialler.told
    assert dialler(refusing) is UNREACHABLE
    with socket.create_server(("127.0.0.1", refusing.port)):
        dialler.connect(refusing, silent)[0].close()


def test_one_address_spoken_to_in_two_ways(dialler: Phone, backend: Upstream) -> None:
    """That it does not speak TLS does not keep it from being dialled in clear."""
    contexts = {"http/1.1": upstream_context(Authority().pem, None, "http/1.1")}
    in_tls = Backend(replace(backend, url=backend.url.replace("http", "https"), tls=UpstreamTls()), contexts)
    end, upstream = dialler.connect(in_tls, backend, deadline=HURRY)
    end.close()
    assert upstream is backend


def test_what_was_not_tried_is_not_told(dialler: Phone, refusing: Upstream, backend: Upstream) -> None:
    """A backend that was skipped has not failed another time, whether its address is known or has to be looked up."""
    dialler.stop_the_clock()
    named = tcp("localhost", refusing.port)
    dialler.connect(refusing, named, backend)[0].close()
    dialler.told.clear()
    dialler.connect(refusing, named, backend)[0].close()
    assert [(backend.url, None)] == dialler.told


def test_going_down_is_told_once(dialler: Phone, refusing: Upstream, tmp_path: Path) -> None:
    """With the address and the kernel's or the resolver's reason."""
    for _ in range(3):
        dialler(refusing, unix(tmp_path / "none.sock"), tcp("name.invalid", 80))
    assert dialler.log.wait_until(lambda: len(dialler.log.events) == 3, PATIENCE)
    told = [(event["event"], event["upstream"], event["address"]) for event in dialler.log.events]
    assert told == [
        ("upstream_down", refusing.url, f"127.0.0.1:{refusing.port}"),
        ("upstream_down", f"unix:{tmp_path}/none.sock", f"{tmp_path}/none.sock"),
        ("upstream_down", "http://name.invalid:80", "name.invalid"),
    ]
    whys = [event["why"] for event in dialler.log.events]
    assert whys[:2] == ["Connection refused", "No such file or directory"]


def test_an_address_of_a_name_is_skipped_alone(dialler: Phone, listener: socket.socket) -> None:
    """Where one address of two is down the other is dialled, and the one that is down is told by address."""
    port = listener.getsockname()[1]
    for _ in range(2):
        with dialler.connect(tcp("localhost", port))[0] as end:
            assert end.getpeername() == ("127.0.0.1", port)
    addresses = [event["address"] for event in dialler.log.events]
    assert addresses in ([], [f"[::1]:{port}"])  # [] where the resolver gives the IPv4 address first, or alone


# Nobody answers


def test_nobody_listens(dialler: Phone, refusing: Upstream) -> None:
    """A refused connection is unreachable."""
    assert dialler(refusing) is UNREACHABLE
    assert dialler(refusing, refusing) is UNREACHABLE


def test_no_unix_socket(dialler: Phone, tmp_path: Path) -> None:
    """So is a path that is not there, and one that is no socket."""
    (tmp_path / "file").touch()
    assert dialler(unix(tmp_path / "none.sock")) is UNREACHABLE
    assert dialler(unix(tmp_path / "file")) is UNREACHABLE


def test_a_name_that_does_not_resolve(dialler: Phone, backend: Upstream) -> None:
    """So is a name without an address; the next upstream is tried."""
    nowhere = tcp("name.invalid", 80)
    assert dialler(nowhere) is UNREACHABLE
    dialler.connect(nowhere, backend)[0].close()


def test_a_silent_address(dialler: Phone, silent: Upstream) -> None:
    """An address that does not answer in time is a timeout."""
    assert dialler(silent, deadline=HURRY) is TIMEOUT


def test_a_unix_socket_that_stays_full(dialler: Phone, unix_listener: socket.socket) -> None:
    """So is a unix socket whose backend does not accept."""
    with full(unix_listener):
        assert dialler(unix(Path(unix_listener.getsockname())), deadline=HURRY) is TIMEOUT


def test_the_last_one_is_told(dialler: Phone, silent: Upstream, refusing: Upstream) -> None:
    """With several addresses the reason is that of the last."""
    assert dialler(refusing, silent, deadline=HURRY) is TIMEOUT
    assert dialler(silent, refusing, deadline=HURRY) is UNREACHABLE


def test_no_upstream_at_all(dialler: Phone) -> None:
    """Nothing to dial is unreachable."""
    assert dialler() is UNREACHABLE


def test_every_attempt_is_told(dialler: Phone, silent: Upstream, refusing: Upstream, backend: Upstream) -> None:
    """Each upstream that was tried, with why it failed; none behind the one that answered."""
    nowhere = tcp("name.invalid", 80)
    dialler.connect(refusing, silent, nowhere, backend, refusing, deadline=HURRY)[0].close()
    failures = [(refusing.url, UNREACHABLE), (silent.url, TIMEOUT), (nowhere.url, UNREACHABLE)]
    assert dialler.told == [*failures, (backend.url, None)]


def test_nothing_stays_open(dialler: Phone, silent: Upstream, refusing: Upstream, unix_listener: socket.socket) -> None:
    """Who could not be reached leaves no socket behind, and neither does a dial that is given up."""
    dialler(refusing)
    before = descriptors()
    with full(unix_listener):
        busy = unix(Path(unix_listener.getsockname()))
        during = descriptors()
        dialler(refusing, silent, busy, tcp("localhost", refusing.port), deadline=HURRY)
        with pytest.raises(TimeoutError):
            dialler.loop.run(dialler.dial(silent), timeout=HURRY)
        assert descriptors() == during
    assert descriptors() == before


def test_no_descriptor_is_left(dialler: Phone, backend: Upstream) -> None:
    """Where no socket can be made the backend counts as unreachable; nothing raises."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reader, writer = os.pipe()
    taken = [writer]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, descriptors())) + 8, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(reader))
        assert dialler.at_once(backend) is None
        assert dialler.told == []
        assert dialler(backend) is UNREACHABLE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in (reader, *taken):
            os.close(descriptor)
