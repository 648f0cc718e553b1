"""Many connections in one worker: who is accepted, who must leave, and how it all ends."""

import contextlib
import os
import resource
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors import (
    GET,
    HELLO,
    PATIENCE,
    BackendConnection,
    Proxy,
    RecordingBackend,
    TlsClient,
    ask,
    client_context,
    never_answer,
    reply_and_half_close,
)
from aop_proxy import server as server_module
from aop_proxy import snapshot
from aop_proxy.connection import QUESTION_PATIENCE, Stage
from aop_proxy.endpoint import Listener
from aop_proxy.model import Limits
from aop_proxy.reasons import Reason
from aop_proxy.server import ACCEPTS_PER_TURN, Capacity, capacity
from certificates import CredentialFiles
from in_process import LOOPS, InProcessServer, LoopThread, make_bundle

Serve = Callable[..., InProcessServer]
BETWEEN_REQUESTS = 0.2
"""Seconds; in the program they are `IDLE_BEFORE_DRAIN` and `SILENT_BEFORE_DRAIN`."""


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take less time to tell an idle connection from a busy one, and a silent client from a slow one."""
    monkeypatch.setattr(server_module, "IDLE_BEFORE_DRAIN", BETWEEN_REQUESTS)
    monkeypatch.setattr(server_module, "SILENT_BEFORE_DRAIN", BETWEEN_REQUESTS)


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Iterator[LoopThread]:
    with LoopThread(request.param) as running:
        yield running


@pytest.fixture
def serve(
    loop: LoopThread, backend: RecordingBackend, server_credentials: CredentialFiles, client_ca: Path
) -> Iterator[Serve]:
    """Servers in front of `backend`; the arguments are those of `make_bundle`."""
    with contextlib.ExitStack() as servers:

        def make(*, listen: bool = True, **settings: Any) -> InProcessServer:
            bundle = make_bundle(server_credentials, client_ca, backend.url, **settings)
            return servers.enter_context(InProcessServer(loop, bundle, listen=listen))

        yield make


@pytest.fixture
def clients(client_credentials: CredentialFiles) -> Iterator[Callable[[InProcessServer], TlsClient]]:
    """Clients with a good certificate that have shaken hands."""
    context = client_context(client_credentials)
    with contextlib.ExitStack() as stack:

        def make(server: InProcessServer) -> TlsClient:
            client = stack.enter_context(TlsClient(server.address, context))
            client.handshake()
            return client

        yield make


Clients = Callable[[InProcessServer], TlsClient]


def silent(server: InProcessServer, count: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Clients that connect and say nothing."""
    return [stack.enter_context(socket.create_connection(server.address, PATIENCE)) for _ in range(count)]


def is_closed(sock: socket.socket) -> bool:
    """Wait for the end of a connection that nothing came over."""
    with contextlib.suppress(ConnectionResetError):
        return sock.recv(1) == b""
    return True


def leave(client: TlsClient) -> None:
    """Close a connection, whose port is still asked for."""
    with contextlib.suppress(OSError):
        client.sock.shutdown(socket.SHUT_RDWR)


# Limits


@pytest.mark.parametrize(
    ("limits", "descriptors", "expected"),
    [
        (Limits(), 1024, Capacity(360, 240)),
        (Limits(), 20_000, Capacity(9456, 1024)),
        (Limits(), 1_048_576, Capacity(16384, 1024)),
        (Limits(connections=100), 20_000, Capacity(100, 1024)),
        (Limits(unauthenticated=10), 1024, Capacity(475, 10)),
        (Limits(connections=100_000, unauthenticated=100_000), 1024, Capacity(360, 240)),
        (Limits(), 64, Capacity(3, 2)),
        (Limits(), 0, Capacity(3, 2)),
    ],
)
def test_capacity_fits_the_descriptors(limits: Limits, descriptors: int, expected: Capacity) -> None:
    """What is configured holds as far as the descriptors reach; two are needed for who is forwarded."""
    found = capacity(limits, descriptors)
    assert found == expected
    assert found.connections * 2 + found.unauthenticated <= max(descriptors - 64, 8)


def test_one_too_many_gets_a_page(
    serve: Serve, clients: Clients, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """Past `limits.connections` an authenticated client is told so; when another leaves there is room again."""
    server = serve(limits={"connections": 1})
    first = clients(server)
    first.send(GET)
    first.receive_exactly(len(HELLO))
    answer = ask(server.address, client_context(client_credentials))
    assert (answer.status, answer.ending) == (503, "close_notify")
    assert "Too many connections" in answer.body
    assert server.record(reason="too_many_connections")["verdict"] == "refused"
    assert len(backend.connections) == 1
    leave(first)
    server.record(first)
    assert ask(server.address, client_context(client_credentials)).status == 200


def test_the_oldest_silent_client_makes_room(serve: Serve, clients: Clients) -> None:
    """Past `limits.unauthenticated` whoever has waited longest without a word is closed, and nobody else."""
    server = serve(limits={"unauthenticated": 3})
    with contextlib.ExitStack() as stack:
        idle = []
        for _ in range(3):
            idle += silent(server, 1, stack)
            server.loop.call(lambda: None)
        clients(server).send(GET)
        assert is_closed(idle[0])
        record = server.record(idle[0])
        assert (record["reason"], record["verdict"], record["level"]) == ("client_silent", "failed", "debug")
        assert server.events("connection") == [record]


def test_who_began_to_speak_goes_last(serve: Serve) -> None:
    """Silent clients go before those in the middle of a handshake, and of these the oldest."""
    server = serve(limits={"unauthenticated": 2})
    with contextlib.ExitStack() as stack:
        speaking, idle = silent(server, 2, stack)
        speaking.sendall(b"\x16\x03\x01")
        while server.loop.call(lambda: len(server.server._strangers[Stage.SPEAKING])) < 1:
            pass
        third = silent(server, 1, stack)[0]
        assert is_closed(idle)
        third.sendall(b"\x16\x03\x01")
        while server.loop.call(lambda: len(server.server._strangers[Stage.SPEAKING])) < 2:
            pass
        silent(server, 1, stack)
        assert is_closed(speaking)
        assert server.record(speaking)["reason"] == "handshake_timeout"
        assert server.record(idle)["reason"] == "client_silent"


def test_600_silent_sockets_keep_nobody_out(serve: Serve, client_credentials: CredentialFiles) -> None:
    """Accepting never waits for handshakes: a good client is served past a crowd that says nothing."""
    server = serve(limits={"unauthenticated": 64})
    with contextlib.ExitStack() as stack:
        silent(server, 600, stack)
        answers = [ask(server.address, client_context(client_credentials)).status for _ in range(3)]
        assert answers == [200, 200, 200]
    server.wait_for("connection", count=603)


def test_nobody_is_pushed_out_unheard(serve: Serve, client_credentials: CredentialFiles) -> None:
    """Who has said hello is not closed for those who stood behind in the kernel's queue, however many they are."""
    server = serve(listen=False, limits={"unauthenticated": 8})
    with TlsClient(server.address, client_context(client_credentials)) as client, contextlib.ExitStack() as stack:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.do_handshake()
        client._flush()
        silent(server, 30, stack)
        server.listen()
        client.handshake(with_data=GET)
        assert client.receive_exactly(len(HELLO)) == HELLO


def test_everybody_has_a_record(serve: Serve) -> None:
    """Also who must leave in the same turn of the loop."""
    server = serve(listen=False, limits={"unauthenticated": 2})
    with contextlib.ExitStack() as stack:
        silent(server, 8, stack)
        server.listen()
    server.wait_for("connection", count=8, timeout=0.5)


def test_a_refused_client_keeps_its_reason(serve: Serve) -> None:
    """Who has read its page and does not leave is closed for room, as what it was refused for."""
    server = serve(limits={"unauthenticated": 1}, timeouts={"linger": 5})
    with TlsClient(server.address, client_context()) as stranger, contextlib.ExitStack() as stack:
        stranger.handshake(with_data=GET)
        assert stranger.receive_exactly(12) == b"HTTP/1.1 400"
        silent(server, 1, stack)
        assert server.record(stranger)["reason"] == "no_certificate"


def test_who_must_leave_takes_nobody_with_it(serve: Serve, client_credentials: CredentialFiles) -> None:
    """A stranger is closed while it is given time to ask: the client that gets its descriptor next is served."""
    server = serve(limits={"unauthenticated": 1})
    for_us = os.open(os.devnull, os.O_RDONLY)
    with TlsClient(server.address, client_context()) as stranger, contextlib.ExitStack() as stack:
        stranger.handshake()
        while server.loop.call(lambda: [one.record.cipher for one in server.server._everybody()]) in ([], [None]):
            pass
        silent(server, 1, stack)  # for whom the stranger must leave
        server.record(stranger)
        os.close(for_us)  # our end takes this number, and the server's end the stranger's
        with TlsClient(server.address, client_context(client_credentials), timeout=1.0) as late:
            threading.Event().wait(2 * QUESTION_PATIENCE)
            late.handshake(with_data=GET)
            assert late.receive_exactly(len(HELLO)) == HELLO


# Accepting


def test_clients_in_the_queue_are_served(serve: Serve, client_credentials: CredentialFiles) -> None:
    """Who connected before the first accept is served, and many are accepted in one turn."""
    server = serve(listen=False)
    context = client_context(client_credentials)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(TlsClient(server.address, context)) for _ in range(ACCEPTS_PER_TURN + 6)]
        server.listen()
        for client in waiting:
            client.handshake()


def test_a_client_that_is_gone_before_it_is_accepted(serve: Serve, client_credentials: CredentialFiles) -> None:
    """It is no trouble for the next one."""
    server = serve(listen=False)
    for _ in range(3):
        TlsClient(server.address, client_context()).reset()
    server.listen()
    assert ask(server.address, client_context(client_credentials)).status == 200


def test_ipv6_clients_are_named_in_brackets(
    loop: LoopThread, server_credentials: CredentialFiles, client_ca: Path
) -> None:
    """As everywhere an address stands beside a port."""
    with InProcessServer(loop, make_bundle(server_credentials, client_ca), host="::1") as server:
        with socket.create_connection(server.address) as sock:
            port = sock.getsockname()[1]
        assert server.record()["client"] == f"[::1]:{port}"


@pytest.fixture
def few_descriptors(proxy: Proxy) -> Iterator[Proxy]:
    """A proxy whose worker has five descriptors left."""
    (worker,) = proxy.worker_pids
    before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    in_use = max(int(path.name) for path in Path(f"/proc/{worker}/fd").iterdir())
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (in_use + 5, before[1]))
    yield proxy
    resource.prlimit(worker, resource.RLIMIT_NOFILE, before)


needs_prlimit = pytest.mark.skipif(
    os.geteuid() != 0 or not hasattr(resource, "prlimit"), reason="only root sets another process's limits"
)


@needs_prlimit
def test_out_of_descriptors(few_descriptors: Proxy, client_credentials: CredentialFiles) -> None:
    """Without descriptors it says so and waits; when there are some again it goes on."""
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(few_descriptors.address, PATIENCE))
        failed = few_descriptors.wait_for("accept_failed")
        assert (failed["level"], failed["error"]) == ("error", "[Errno 24] Too many open files")
    assert ask(few_descriptors.address, client_context(client_credentials)).status == 200


@needs_prlimit
def test_out_of_descriptors_is_said_once(few_descriptors: Proxy, client_credentials: CredentialFiles) -> None:
    """However long it lasts, and though a place becomes free now and then."""
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(socket.create_connection(few_descriptors.address, PATIENCE)) for _ in range(20)]
        few_descriptors.wait_for("accept_failed")
        for sock in crowd:
            sock.close()
    assert ask(few_descriptors.address, client_context(client_credentials)).status == 200
    assert len(few_descriptors.events("accept_failed")) == 1


# Reload


def test_a_new_snapshot_is_for_new_connections(
    serve: Serve,
    clients: Clients,
    backend: RecordingBackend,
    server_credentials: CredentialFiles,
    client_ca: Path,
    client_credentials: CredentialFiles,
) -> None:
    """Who is connected keeps what it began with; who comes later meets the new rules."""
    server = serve()
    old = clients(server)
    old.send(GET)
    old.receive_exactly(len(HELLO))
    bundle = make_bundle(server_credentials, client_ca, backend.url, sites=({"hosts": ("other.example",)},))
    built = replace(snapshot.build(bundle, 2, server.key_log))
    server.loop.call(server.server.switch, built)
    assert ask(server.address, client_context(client_credentials)).status == 421
    old.send(GET)
    old.receive_exactly(len(HELLO))
    leave(old)
    assert [server.record(old)["generation"], server.record(reason="unknown_host")["generation"]] == [1, 2]


@pytest.fixture
def reload(
    backend: RecordingBackend, server_credentials: CredentialFiles, client_ca: Path
) -> Callable[[InProcessServer, int, float | None], None]:
    """Switch to a new generation with this `reload_drain`."""

    def switch(server: InProcessServer, generation: int, reload_drain: float | None) -> None:
        timeouts = {"reload_drain": reload_drain} if reload_drain else {}
        bundle = make_bundle(server_credentials, client_ca, backend.url, timeouts=timeouts)
        server.loop.call(server.server.switch, snapshot.build(bundle, generation, server.key_log))

    return switch


def test_old_connections_end_after_a_reload(
    serve: Serve, clients: Clients, backend: RecordingBackend, reload: Callable[..., None]
) -> None:
    """With `reload_drain` idle ones end cleanly at once, busy ones are cut in time; those of after it live on."""
    server = serve()
    idle, busy = clients(server), clients(server)
    idle.send(GET)
    idle.receive_exactly(len(HELLO))
    backend.behaviour = never_answer
    busy.send(GET)
    backend.wait_for_connection(2).wait_until(lambda: backend.received == GET * 2)
    reload(server, 2, 1.0)
    new = clients(server)
    new.send(GET)
    assert idle.receive_all().ending == "close_notify"
    leave(idle)
    assert (server.record(idle)["reason"], server.record(idle)["verdict"]) == ("drained", "accepted")
    assert busy.receive_all().data == b""
    record = server.record(busy)
    assert (record["reason"], record["generation"]) == ("drain_timeout", 1)
    assert record["duration_ms"] >= 1000
    assert [event["generation"] for event in server.events("connection")] == [1, 1]
    assert server.loop.call(lambda: len(server.server._admitted)) == 1


def test_each_generation_has_its_own_time(
    serve: Serve, clients: Clients, backend: RecordingBackend, reload: Callable[..., None]
) -> None:
    """Another reload does not put it off; without `reload_drain` nobody's time is set; who is gone is forgotten."""
    backend.behaviour = never_answer
    server = serve()
    first = clients(server)
    first.send(GET)
    reload(server, 2, None)
    assert server.server._retiring == {}
    reload(server, 3, 60.0)
    second = clients(server)
    second.send(GET)
    backend.wait_for_connection(2)
    deadlines = dict(server.server._retiring)
    assert [*deadlines] == [1]
    reload(server, 4, 70.0)
    assert server.server._retiring[1] == deadlines[1]
    assert server.server._retiring[3] > deadlines[1]
    for client in (first, second):
        leave(client)
        server.record(client)
    while server.loop.call(lambda: server.server._retiring):
        pass


def test_new_limits_and_levels_count_at_once(
    serve: Serve, server_credentials: CredentialFiles, client_ca: Path
) -> None:
    """Limits, log level and the rate of refusals are those of the snapshot that is served."""
    server = serve()
    limits = {"connections": 7, "handshakes_per_turn": 2}
    bundle = make_bundle(server_credentials, client_ca, limits=limits, level="info", refusals_per_second=3)
    server.loop.call(server.server.switch, snapshot.build(bundle, 2, server.key_log))
    assert server.server._capacity.connections == 7
    assert server.server.turns.at_most == 2
    assert not server.server.log.shows("debug")
    for _ in range(6):
        ask(server.address, client_context())
    while server.loop.call(server.server._count):
        pass
    server.loop.run(server.server.stop(Reason.DRAIN_TIMEOUT))
    held_back = server.wait_for("suppressed")["count"]
    assert len(server.events("connection", reason="no_certificate")) + held_back == 6


# Idle


@pytest.mark.parametrize("spoken", [True, False], ids=["kept", "never asked"])
def test_idle_connections_end(serve: Serve, clients: Clients, spoken: bool) -> None:
    """After `timeouts.idle` without a byte the client is told a clean end, whether it has asked or not."""
    server = serve(timeouts={"idle": 0.2})
    client = clients(server)
    if spoken:
        client.send(GET)
        client.receive_exactly(len(HELLO))
    answer = client.receive_all()
    leave(client)
    record = server.record(client)
    assert (record["reason"], record["verdict"]) == ("idle_timeout", "accepted")
    if spoken:
        assert (answer.data, answer.ending) == (b"", "close_notify")


def test_who_moves_is_not_idle(serve: Serve, clients: Clients, backend: RecordingBackend) -> None:
    """A byte now and then in one direction is enough."""
    backend.behaviour = never_answer
    server = serve(timeouts={"idle": 0.2})
    client = clients(server)
    ticks = threading.Event()
    for number in range(6):
        client.send(b"x")
        backend.wait_for_connection().wait_until(lambda number=number: len(backend.received) > number)  # type: ignore[misc]
        ticks.wait(0.06)
    assert server.events("connection") == []


# Drain


def test_nothing_to_drain(serve: Serve) -> None:
    """Without connections it is over at once, and nobody is accepted any more."""
    server = serve()
    assert server.drain() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address)


def test_a_kept_connection_ends_at_once(serve: Serve, clients: Clients) -> None:
    """A second after its last answer a client between two requests is told a clean end: it takes another connection."""
    server = serve(timeouts={"drain": 20})
    client = clients(server)
    client.send(GET)
    client.receive_exactly(len(HELLO))
    draining = threading.Thread(target=server.drain)
    draining.start()
    answer = client.receive_all()
    leave(client)
    draining.join(PATIENCE)
    assert (answer.ending, answer.tcp_end) == ("close_notify", "fin")
    record = server.record(client)
    assert (record["reason"], record["verdict"]) == ("drained", "accepted")
    assert record["duration_ms"] < 5000


def test_who_never_asked_ends_at_once(serve: Serve, clients: Clients) -> None:
    """So do a client that has shaken hands and not asked, and one that has said nothing at all."""
    server = serve(timeouts={"drain": 20, "handshake": 20})
    client = clients(server)
    with contextlib.ExitStack() as stack:
        (idle,) = silent(server, 1, stack)
        while server.loop.call(lambda: len(server.server._strangers[Stage.SILENT])) < 1:
            pass
        assert server.drain() == 0
        assert is_closed(idle)
        assert [server.record(client)["reason"], server.record(idle)["reason"]] == ["drained", "client_silent"]


def test_a_busy_connection_is_waited_for(serve: Serve, clients: Clients, backend: RecordingBackend) -> None:
    """A request that is on its way is answered, in full, and nothing is cut."""
    answer_now = threading.Event()

    def slowly(connection: BackendConnection) -> None:
        connection.receive_request()
        assert answer_now.wait(PATIENCE)
        connection.sock.sendall(HELLO)
        connection.receive_rest()

    backend.behaviour = slowly
    server = serve(timeouts={"drain": 20})
    client = clients(server)
    client.send(GET)
    backend.wait_for_connection().wait_until(lambda: backend.received == GET)
    cut: list[int] = []
    draining = threading.Thread(target=lambda: cut.append(server.drain()))
    draining.start()
    draining.join(2 * BETWEEN_REQUESTS)
    assert draining.is_alive()
    answer_now.set()
    assert client.receive_exactly(len(HELLO)) == HELLO
    assert client.receive_all().ending == "close_notify"
    leave(client)
    draining.join(PATIENCE)
    assert cut == [0]
    assert server.record(client)["reason"] == "drained"


def test_the_deadline_cuts(serve: Serve, clients: Clients, backend: RecordingBackend) -> None:
    """What is still busy at `timeouts.drain` is cut, counted and told."""
    backend.behaviour = never_answer
    server = serve(timeouts={"drain": 0.2, "linger": 0.1})
    busy = [clients(server) for _ in range(2)]
    for client in busy:
        client.send(GET)
    backend.wait_for_connection(2)
    assert server.drain() == 2
    assert [server.record(client)["reason"] for client in busy] == ["drain_timeout"] * 2


def test_the_deadline_cuts_who_waits_for_its_answer(serve: Serve, clients: Clients, backend: RecordingBackend) -> None:
    """A client that has ended its half and waits is cut like any other."""
    over = threading.Event()

    def work(connection: BackendConnection) -> None:
        connection.receive_rest()
        over.wait(PATIENCE)

    backend.behaviour = work
    server = serve(timeouts={"drain": 0.2})
    client = clients(server)
    client.send(GET)
    client.close_notify()
    backend.wait_for_connection().wait_until(lambda: backend.connections[0].ended == "fin")
    cut = server.drain()
    over.set()
    assert (cut, server.record(client)["reason"]) == (1, "drain_timeout")


def test_a_client_in_the_queue_at_the_end_is_served(serve: Serve, client_credentials: CredentialFiles) -> None:
    """Who had connected by then has been promised a connection."""
    server = serve(listen=False, timeouts={"drain": 10})
    server.server._listeners = [Listener(server.listener, 0)]
    with TlsClient(server.address, client_context(client_credentials)) as client:
        draining = threading.Thread(target=server.drain)
        draining.start()
        client.handshake(with_data=GET)
        assert client.receive_exactly(len(HELLO)) == HELLO
        leave(client)
        draining.join(PATIENCE)
        assert server.record()["reason"] in ("closed", "client_reset", "drained")


def test_a_long_queue_at_the_end_is_served(serve: Serve, client_credentials: CredentialFiles) -> None:
    """However many they are."""
    server = serve(listen=False, timeouts={"drain": 10})
    server.server._listeners = [Listener(server.listener, 0)]
    context = client_context(client_credentials)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(TlsClient(server.address, context)) for _ in range(ACCEPTS_PER_TURN + 6)]
        for client in waiting:  # their hellos are there already: who is silent is not waited for
            with contextlib.suppress(ssl.SSLWantReadError):
                client.tls.do_handshake()
            client._flush()
        draining = threading.Thread(target=server.drain)
        draining.start()
        for client in waiting:
            client.handshake()
            client.sock.close()
        draining.join(PATIENCE)
        assert not draining.is_alive()


def test_a_connection_of_the_backends_that_ends_first(
    serve: Serve, clients: Clients, backend: RecordingBackend
) -> None:
    """A backend that closes after its answer leaves nothing to drain."""
    backend.behaviour = reply_and_half_close()
    server = serve()
    client = clients(server)
    client.send(GET)
    assert client.receive_all().ending == "close_notify"
    leave(client)
    server.record(client)
    assert server.drain() == 0


def test_stop_cuts_whatever_there_is(serve: Serve, clients: Clients, backend: RecordingBackend) -> None:
    """Silent, in a handshake, waiting, busy, lingering: every one ends, and has its record."""
    backend.behaviour = never_answer
    server = serve(timeouts={"linger": 20})
    with contextlib.ExitStack() as stack:
        idle, speaking = silent(server, 2, stack)
        speaking.sendall(b"\x16\x03\x01")
        waiting, busy = clients(server), clients(server)
        busy.send(GET)
        backend.wait_for_connection()
        stranger = stack.enter_context(TlsClient(server.address, client_context()))
        stranger.handshake(with_data=GET)
        stranger.receive_all()
        server.loop.run(server.server.stop(Reason.DRAIN_TIMEOUT))
        for client in (idle, speaking, waiting, busy):
            assert server.record(client)["reason"] == "drain_timeout"
        server.record(stranger)


def test_a_stranger_that_lingers_is_no_connection_cut(serve: Serve) -> None:
    """At the end a refused client that has its page keeps its reason, and does not make the exit code 1."""
    server = serve(timeouts={"drain": 0.2, "linger": 20})
    with TlsClient(server.address, client_context()) as stranger:
        stranger.handshake(with_data=GET)
        assert stranger.receive_all().status == 400
        assert (server.drain(), server.record(stranger)["reason"]) == (0, "no_certificate")
