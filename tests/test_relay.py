"""The forwarding loop between one accepted TLS session and one upstream socket, both real, on every kind of loop."""

import contextlib
import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from actors import PATIENCE, TlsClient, client_context, reset
from aop_proxy import snapshot
from aop_proxy.poller import Poller
from aop_proxy.reasons import Reason
from aop_proxy.relay import MAX_UNASKED, MAX_WORDLESS, RECEIVE, Buffers, Relay
from aop_proxy.snapshot import Snapshot
from aop_proxy.tls import Accepted, TlsSession
from certificates import Authority, CredentialFiles
from in_process import POLLERS, LoopThread, accepted_session, make_bundle, tcp_pair, watching
from tls13 import Tls13Client

SMALL, LARGE = 32 * 1024, 1024 * 1024
"""Socket buffers, before the kernel doubles them: small so that back-pressure comes soon, large to end it fast."""
ENDLESS, HELD = 50 << 20, 6 << 20
"""More than anybody may take, and what the kernel and one buffer of ours may hold."""
SOON = 0.06
"""Seconds in which something that must not happen would have happened."""


@pytest.fixture(scope="module")
def built(server_credentials: CredentialFiles, client_ca: Path) -> Snapshot:
    return snapshot.build(make_bundle(server_credentials, client_ca), 1, None)


@dataclass
class Line:
    """A client, a relay and a backend; what the relay was given is closed when it has finished, as its caller does."""

    loop: LoopThread
    relay: Relay
    client: TlsClient
    backend: socket.socket
    ours: tuple[socket.socket, socket.socket]

    def start(self, plaintext: bytes = b"") -> None:
        self.loop.call(self.relay.finished.add_done_callback, lambda _: self.close())
        self.loop.call(self.relay.start, plaintext)

    def finished(self) -> Reason:
        """Why it has ended, within the deadline."""

        async def wait() -> Reason:
            return await self.relay.finished

        return self.loop.run(wait())

    def close(self) -> None:
        """Close our sockets, on the loop; or only half, towards a client that may still send what nobody reads."""
        client, upstream = self.ours
        for end in (upstream,) if self.relay.client_may_be_sending else (upstream, client):
            self.relay._poller.forget(end.fileno())
            end.close()
        if self.relay.client_may_be_sending:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)

    def backend_receives(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size and (piece := self.backend.recv(size - len(data))):
            data += piece
        return bytes(data)

    def backend_receives_all(self) -> bytes:
        data = bytearray()
        while piece := self.backend.recv(65536):
            data += piece
        return bytes(data)


MakeLine = Callable[..., Line]


@pytest.fixture(params=POLLERS)
def make_line(
    request: pytest.FixtureRequest, built: Snapshot, client_credentials: CredentialFiles
) -> Iterator[MakeLine]:
    """Lines on one loop; `small` makes their socket buffers small, `start=False` leaves the start to the test."""
    make_loop, make_poller = request.param
    context = client_context(client_credentials)
    lines: list[Line] = []
    with LoopThread(make_loop) as loop, watching(loop, make_poller) as poller:
        buffers = Buffers()

        def make(*, small: bool = False, start: bool = True) -> Line:
            session, client, ours = accepted_session(built, context)
            if small:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            upstream, backend = tcp_pair(*([SMALL, SMALL] if small else []))
            relay = loop.call(lambda: Relay(poller, buffers, session, ours, upstream))
            line = Line(loop, relay, client, backend, (ours, upstream))
            lines.append(line)
            if start:
                line.start()
            return line

        yield make
        for line in lines:
            if not line.relay.finished.done():
                loop.call(line.relay.stop, Reason.DRAINED)
            line.finished()  # and what its end calls has been called: it closes our sockets, on the loop
            for end in (*line.ours, line.client.sock, line.backend):
                end.close()


# Bytes


def test_bytes_pass_both_ways(make_line: MakeLine) -> None:
    """What one side says the other hears, as often as they like, and it is counted."""
    line = make_line()
    for number in range(3):
        line.client.send(b"question %d" % number)
        assert line.backend_receives(10) == b"question %d" % number
        line.backend.sendall(b"the answer %d" % number)
        assert line.client.receive_exactly(12) == b"the answer %d" % number
    assert (line.relay.bytes_from_client, line.relay.bytes_from_upstream) == (30, 36)
    assert not line.relay.finished.done()


def test_what_was_decrypted_before_goes_first(make_line: MakeLine) -> None:
    """The first bytes, which made us dial, reach the upstream before any other."""
    line = make_line(start=False)
    line.client.send(b"second")
    line.start(b"first")
    assert line.backend_receives(11) == b"firstsecond"
    assert line.relay.bytes_from_client == 11


def test_a_backend_that_speaks_first(make_line: MakeLine) -> None:
    """Its greeting arrives before the client has said anything."""
    line = make_line()
    line.backend.sendall(b"220 hello")
    assert line.client.receive_exactly(9) == b"220 hello"


def in_thread(function: Callable[..., object], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("small", [False, True], ids=["large buffers", "small buffers"])
def test_megabytes_both_ways_at_once(make_line: MakeLine, small: bool) -> None:
    """Nothing is lost, doubled or moved, through large and through tiny socket buffers."""
    size = 300_000 if small else 3_000_000
    up, down = os.urandom(size), os.urandom(size)
    line = make_line(small=small)
    got: list[bytes] = []
    threads = [
        in_thread(line.backend.sendall, down),
        in_thread(lambda: got.append(line.backend_receives(size))),
    ]
    # TlsClient is for one thread: what it sends is kept small enough for the kernel, and it reads in between.
    answer = bytearray()
    for start in range(0, size, 30_000):
        line.client.send(up[start : start + 30_000])
        answer += line.client.receive_exactly(len(down[start : start + 30_000]))
    for thread in threads:
        thread.join(PATIENCE)
    assert (digest(got[0]), digest(bytes(answer))) == (digest(up), digest(down))


# Half-close


@pytest.mark.parametrize("end", ["close_notify", "half_close"])
def test_the_client_ends_first(make_line: MakeLine, end: str) -> None:
    """close_notify and a bare FIN alike become a FIN upstream; the answer still comes, with a clean end."""
    line = make_line()
    line.client.send(b"question")
    getattr(line.client, end)()
    assert line.backend_receives_all() == b"question"
    line.backend.sendall(b"answer")
    line.backend.shutdown(socket.SHUT_WR)
    assert line.finished() is Reason.CLOSED
    answer = line.client.receive_all()
    assert (answer.data, answer.ending, answer.tcp_end) == (b"answer", "close_notify", "fin")
    assert not line.relay.client_may_be_sending


def test_the_upstream_ends_first(make_line: MakeLine) -> None:
    """Its FIN becomes close_notify and FIN; what the client sends after that still arrives."""
    line = make_line()
    line.backend.sendall(b"greeting")
    line.backend.shutdown(socket.SHUT_WR)
    answer = line.client.receive_all()
    assert (answer.data, answer.ending, answer.tcp_end) == (b"greeting", "close_notify", "fin")
    line.client.send(b"late")
    assert line.backend_receives(4) == b"late"
    assert not line.relay.finished.done()
    line.client.half_close()
    assert line.backend_receives_all() == b""
    assert line.finished() is Reason.CLOSED


def test_the_client_had_ended_before_the_start(make_line: MakeLine) -> None:
    """A request and close_notify in one segment: both are passed on."""
    line = make_line(start=False)
    line.client.close_notify()
    with contextlib.suppress(BlockingIOError):
        session, buffers = line.relay._session, Buffers()
        line.ours[0].setblocking(True)
        wire = memoryview(bytearray(line.ours[0].recv(65536)))
        line.ours[0].setblocking(False)
        assert session.decrypt(wire, buffers.plaintext) == 0
    line.start(b"request")
    assert line.backend_receives_all() == b"request"
    line.backend.sendall(b"answer")
    line.backend.shutdown(socket.SHUT_WR)
    assert line.finished() is Reason.CLOSED
    assert line.client.receive_all().data == b"answer"


def test_half_close_waits_for_what_is_owed(make_line: MakeLine) -> None:
    """The FIN in either direction comes behind everything that was sent before it."""
    line = make_line(small=True)
    line.client.send(b"u" * 200_000)
    line.client.close_notify()
    threading.Thread(target=_send_and_end, args=(line.backend, b"d" * 200_000)).start()
    assert len(line.backend_receives_all()) == 200_000
    answer = line.client.receive_all()
    assert (len(answer.data), answer.ending) == (200_000, "close_notify")
    assert line.finished() is Reason.CLOSED


def _send_and_end(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


# Back-pressure


def pour(sock: socket.socket) -> int:
    """Send until nobody takes any more for a while; how much it was."""
    sock.settimeout(SOON)
    count = 0
    with contextlib.suppress(TimeoutError):
        while count < ENDLESS:
            count += sock.send(b"d" * 65536)
    sock.settimeout(PATIENCE)
    return count


def upload(client: TlsClient) -> int:
    """Send whole records until nobody takes any more for a while; how much it was, the last one cut."""
    client.sock.settimeout(SOON)
    count = 0
    with contextlib.suppress(TimeoutError):
        while count < ENDLESS:
            client.send(b"u" * 16384)
            count += 16384
    client.sock.settimeout(PATIENCE)
    return count


def widen(sock: socket.socket) -> None:
    """Read faster from now on."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LARGE)


def test_a_client_that_does_not_read(make_line: MakeLine) -> None:
    """The upstream is not read either: one buffer's worth is held, and nothing of it is lost in the end."""
    line = make_line(small=True)
    poured = pour(line.backend)
    assert poured < HELD, "the kernel's buffers and one of ours"
    assert len(line.relay._client_backlog) <= RECEIVE + 100 * 22
    line.backend.shutdown(socket.SHUT_WR)
    widen(line.client.sock)
    answer = line.client.receive_all()
    assert (len(answer.data), answer.ending) == (poured, "close_notify")


def test_an_upstream_that_does_not_read(make_line: MakeLine) -> None:
    """The client is not read either, and what it had sent arrives in the end."""
    line = make_line(small=True)
    sent = upload(line.client)
    assert sent < HELD
    assert len(line.relay._upstream_backlog) <= RECEIVE + 2 * 16384
    widen(line.backend)
    assert len(line.backend_receives(sent)) == sent
    assert not line.relay.finished.done()


def test_each_direction_waits_for_itself(make_line: MakeLine) -> None:
    """While the client does not read, what it sends still arrives."""
    line = make_line(small=True)
    pour(line.backend)
    line.client.send(b"still here")
    assert line.backend_receives(10) == b"still here"


def test_activity_is_noted(make_line: MakeLine) -> None:
    """Every byte that moves in either direction puts off the idle limit; who spoke last is known."""
    line = make_line()
    for _ in range(2):
        line.relay.active_at = 0.0
        line.client.send(b"question")
        line.backend_receives(8)
        assert line.relay.active_at > 0
        assert not line.relay.upstream_spoke_last
        line.relay.active_at = 0.0
        line.backend.sendall(b"answer")
        line.client.receive_exactly(6)
        assert line.relay.active_at > 0
        assert line.relay.upstream_spoke_last


# Resets


def test_the_client_resets(make_line: MakeLine) -> None:
    """The upstream is reset too: it must not take a broken request for a whole one."""
    line = make_line()
    line.client.send(b"half a req")
    assert line.backend_receives(10) == b"half a req"
    line.client.reset()
    assert line.finished() is Reason.CLIENT_RESET
    with pytest.raises(ConnectionResetError):
        line.backend.recv(1)
    assert not line.relay.client_may_be_sending


def test_the_client_resets_while_it_is_sent_to(make_line: MakeLine) -> None:
    """The same, where it is a send that fails."""
    line = make_line(small=True)
    pour(line.backend)
    line.client.reset()
    assert line.finished() is Reason.CLIENT_RESET
    with pytest.raises(ConnectionResetError):
        line.backend_receives_all()


def test_the_client_leaves_after_its_question(make_line: MakeLine) -> None:
    """A client that has ended its side and is gone when the answer comes went as clients do."""
    line = make_line()
    line.client.send(b"question")
    line.client.close_notify()
    assert line.backend_receives_all() == b"question"
    line.client.sock.close()
    line.backend.sendall(b"answer")
    while line.loop.call(lambda: line.relay.bytes_from_upstream) < len(b"answer"):
        assert not line.relay.finished.done()
    line.backend.close()
    assert line.finished() is Reason.CLOSED


def test_the_client_ends_its_half_and_resets(make_line: MakeLine) -> None:
    """Who asked, reads nothing and resets has not been answered: the upstream is reset."""
    line = make_line(small=True)
    line.client.close_notify()
    assert line.backend_receives_all() == b""
    pour(line.backend)
    line.client.reset()
    assert line.finished() is Reason.CLIENT_RESET
    with pytest.raises(ConnectionError):
        line.backend.send(b"more")


def test_the_upstream_resets(make_line: MakeLine) -> None:
    """The client is reset as well, never told a clean end, behind everything that the upstream had said."""
    line = make_line()
    line.backend.sendall(b"half an answ")
    assert line.client.receive_exactly(12) == b"half an answ"
    line.client.send(b"ok")  # which acknowledges the answer: nothing is on its way any more
    assert line.backend_receives(2) == b"ok"
    reset(line.backend)
    assert line.finished() is Reason.UPSTREAM_RESET
    assert line.client.receive_all().ending == "reset"
    assert not line.relay.client_may_be_sending


def test_the_upstream_resets_while_the_client_is_owed_bytes(make_line: MakeLine) -> None:
    """A reset would destroy what is on its way: the client gets that, and then an end without close_notify."""
    line = make_line(small=True)
    poured = pour(line.backend)
    reset(line.backend)
    widen(line.client.sock)
    answer = line.client.receive_all()
    assert answer.ending in ("fin", "reset")
    assert 0 < len(answer.data) <= poured
    assert line.finished() is Reason.UPSTREAM_RESET


def test_the_upstream_resets_where_both_sides_stand_still(make_line: MakeLine) -> None:
    """With both directions full the reset is found out, and the client is told no clean end."""
    line = make_line(small=True)
    upload(line.client)
    pour(line.backend)
    reset(line.backend)
    widen(line.client.sock)
    assert line.client.receive_all().ending in ("fin", "reset")
    assert line.finished() is Reason.UPSTREAM_RESET


ANSWER = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("how", ["close", "half-close, then close"])
def test_an_early_answer_reaches_a_client_that_is_still_uploading(make_line: MakeLine, how: str) -> None:
    """A backend that answers 413 and closes on the upload: its answer arrives whole, though it resets."""
    line = make_line()
    line.client.send(b"POST / HTTP/1.1\r\n\r\n" + b"u" * 100_000)
    assert line.backend_receives(10) == b"POST / HTT"
    line.backend.sendall(ANSWER)
    if how != "close":
        line.backend.shutdown(socket.SHUT_WR)
    line.backend.close()  # with most of the upload unread, this is a reset
    line.client.sock.settimeout(SOON)
    with contextlib.suppress(OSError):
        for _ in range(100):
            line.client.send(b"u" * 16384)
    line.client.sock.settimeout(PATIENCE)
    assert line.client.receive_all().data == ANSWER
    line.client.sock.close()
    assert line.finished() in (Reason.CLOSED, Reason.UPSTREAM_RESET, Reason.CLIENT_RESET)


def test_garbage_in_place_of_a_record(make_line: MakeLine) -> None:
    """The client gets OpenSSL's alert, and the upstream learns that this is no end."""
    line = make_line()
    line.client.send(b"whole")
    assert line.backend_receives(5) == b"whole"
    line.client.sock.sendall(bytes.fromhex("1703030020") + bytes(32))
    assert line.finished() is Reason.CLIENT_RESET
    with pytest.raises(ConnectionResetError):
        line.backend.recv(1)
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        line.client.receive()


def test_asked_in_vain(make_line: MakeLine) -> None:
    """A socket that is reported as ready and is not costs nothing."""
    line = make_line(small=True)
    line.loop.call(line.relay._client_readable)
    line.loop.call(line.relay._upstream_readable)
    pour(line.backend)
    upload(line.client)
    line.loop.call(line.relay._client_writable)
    line.loop.call(line.relay._upstream_writable)
    assert not line.relay.finished.done()


# KeyUpdates


@dataclass
class Updating:
    """A client of our own that can send KeyUpdates, before a relay."""

    tls: Tls13Client
    sock: socket.socket
    line: Line

    def receive_until(self, satisfied: Callable[[], bool]) -> None:
        while not satisfied():
            data = self.sock.recv(65536)
            assert data, "the connection ended"
            self.tls.receive(data)


@pytest.fixture
def updating(make_line: MakeLine, built: Snapshot, authority: Authority) -> Iterator[Updating]:
    """The same line with another client."""
    line = make_line(start=False)
    credentials = authority.issue("updating.example")
    ours, theirs = tcp_pair()
    session, tls = TlsSession(built.gates[0].context, built.quiet_context, None), Tls13Client()
    assert session.handshake(tls.hello()) is None
    tls.receive(session.take_output())
    chain = [credentials.certificate.public_bytes(Encoding.DER)]
    assert isinstance(session.handshake(tls.certificate_flight(chain, credentials.key)), Accepted)
    tls.receive(session.take_output())
    poller: Poller = line.relay._poller
    relay = line.loop.call(lambda: Relay(poller, Buffers(), session, ours, line.ours[1]))
    line.ours[0].close()
    line.relay, line.ours = relay, (ours, line.ours[1])
    line.start()
    yield Updating(tls, theirs, line)
    theirs.close()


def test_key_updates_are_answered(updating: Updating) -> None:
    """As many as a client that reads likes, between its data (OpenSSL leaves the first without an answer)."""
    tls = updating.tls
    for number in range(1, 301):
        updating.sock.sendall(tls.key_update(answer=True) + tls.application_data(b"%03d" % number))
        assert updating.line.backend_receives(3) == b"%03d" % number
    updating.receive_until(lambda: len(tls.key_updates) >= 299)
    updating.line.backend.sendall(b"answer")
    updating.receive_until(lambda: tls.received == b"answer")
    assert not updating.line.relay.finished.done()


def test_answers_to_key_updates_are_bounded(updating: Updating) -> None:
    """A client that asks and does not read is reset, before its answers fill the memory."""
    updating.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    updating.line.ours[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    pour(updating.line.backend)
    with contextlib.suppress(OSError):
        for _ in range(2 * MAX_UNASKED // 26 // 100):  # with a word now and then: without one it would end sooner
            flood = b"".join(updating.tls.key_update(answer=True) for _ in range(100))
            updating.sock.sendall(flood + updating.tls.application_data(b"x"))
    assert updating.line.finished() is Reason.CLIENT_RESET
    assert len(updating.line.relay._client_backlog) <= RECEIVE + 100 * 22 + 2 * MAX_UNASKED


def test_only_so_much_without_a_word(updating: Updating) -> None:
    """A client that keeps us busy with KeyUpdates that nobody answers, and says nothing, is reset."""
    updating.sock.sendall(updating.tls.application_data(b"a word"))
    assert updating.line.backend_receives(6) == b"a word"
    relay, sent = updating.line.relay, 0
    while sent <= MAX_WORDLESS:  # in portions that are read one by one
        portion = b"".join(updating.tls.key_update(answer=False) for _ in range(500))
        updating.sock.sendall(portion)
        sent += len(portion)
        while not relay.finished.done() and relay._wordless < sent:
            updating.line.loop.call(lambda: None)
    assert updating.line.finished() is Reason.CLIENT_RESET


def test_a_key_update_after_our_close_notify(updating: Updating) -> None:
    """When the upstream has ended its half, a client that goes on sending may update its keys."""
    tls = updating.tls
    updating.line.backend.shutdown(socket.SHUT_WR)
    updating.receive_until(lambda: tls.alerts != [])
    for number in range(3):
        updating.sock.sendall(tls.key_update(answer=True) + tls.application_data(b"late%d" % number))
        assert updating.line.backend_receives(5) == b"late%d" % number
    assert not updating.line.relay.finished.done()


# Stop


def test_stop_tells_both_sides(make_line: MakeLine) -> None:
    """close_notify and FIN for the client, FIN for the upstream, and the reason that was given."""
    line = make_line()
    line.client.send(b"question")
    assert line.backend_receives(8) == b"question"
    line.loop.call(line.relay.stop, Reason.IDLE_TIMEOUT)
    assert line.relay.client_may_be_sending
    assert line.finished() is Reason.IDLE_TIMEOUT
    answer = line.client.receive_all()
    assert (answer.data, answer.ending) == (b"", "close_notify")
    assert line.backend_receives_all() == b""


def test_stop_while_the_client_is_owed_bytes(make_line: MakeLine) -> None:
    """What cannot be delivered any more is not ended as if it were whole."""
    line = make_line(small=True)
    pour(line.backend)
    line.loop.call(line.relay.stop, Reason.DRAIN_TIMEOUT)
    assert line.finished() is Reason.DRAIN_TIMEOUT
    assert line.client.receive_all().ending in ("fin", "reset")


@pytest.mark.parametrize("first", ["client", "upstream"])
def test_stop_after_one_side_has_ended(make_line: MakeLine, first: str) -> None:
    """The reason is the one that was given, also where one direction had ended by itself."""
    line = make_line()
    if first == "client":
        line.client.close_notify()
        assert line.backend_receives_all() == b""
    else:
        line.backend.shutdown(socket.SHUT_WR)
        assert line.client.receive_all().ending == "close_notify"
    line.loop.call(line.relay.stop, Reason.DRAIN_TIMEOUT)
    assert line.finished() is Reason.DRAIN_TIMEOUT


def test_stop_twice(make_line: MakeLine) -> None:
    """The first reason stands."""
    line = make_line()
    line.loop.call(line.relay.stop, Reason.IDLE_TIMEOUT)
    line.loop.call(line.relay.stop, Reason.DRAIN_TIMEOUT)
    assert line.finished() is Reason.IDLE_TIMEOUT


def test_relays_share_their_buffers(make_line: MakeLine) -> None:
    """Every relay of a worker uses the same two, and nothing of one connection shows in another."""
    first, second = make_line(), make_line()
    first.client.send(b"a" * 5000)
    second.client.send(b"b" * 3000)
    assert first.backend_receives(5000) == b"a" * 5000
    assert second.backend_receives(3000) == b"b" * 3000
