"""A socket that speaks TLS keeps a socket's promises: readiness, ends, and room, with TLS 1.2 and 1.3."""

import contextlib
import hashlib
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors import PATIENCE
from aop_proxy.model import Upstream, UpstreamTls
from aop_proxy.records import RECORD_HEADER
from aop_proxy.tls_socket import PIECE, TlsSocket
from aop_proxy.upstream_tls import Backend, UpstreamSession, upstream_context
from certificates import CredentialFiles
from in_process import POLLERS, LoopThread, tcp_pair, watching
from tls_backend import TlsEnd, backend_context

SIZE = 256 * 1024
SMALL = 32 * 1024
UPSTREAM = Upstream("https://origin.example:443", "origin.example", 443, tls=UpstreamTls())


@dataclass
class Line:
    """Our end, the peer's, and what our end has told."""

    ours: TlsSocket
    peer: TlsEnd
    told: list[ssl.SSLError]
    loop: LoopThread

    def receive(self) -> bytes:
        """What the next successful call returns, once the kernel says that there is something."""
        buffer = memoryview(bytearray(SIZE + SMALL))
        while True:
            readable, _, _ = select.select([self.ours.fileno()], [], [], PATIENCE)
            assert readable, "nothing came"
            with contextlib.suppress(BlockingIOError):
                return bytes(buffer[: self.ours.recv_into(buffer, SIZE)])

    def receive_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += (piece := self.receive())
            assert piece
        return data

    def send_all(self, data: bytes) -> None:
        """As the relay does it: what was not taken comes again, when there is room."""
        while data:
            with contextlib.suppress(BlockingIOError):
                data = data[self.ours.send(memoryview(data)) :]
            select.select([], [self.ours.fileno()], [], PATIENCE)


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda version: version.name)
def context(request: pytest.FixtureRequest, server_credentials: CredentialFiles) -> ssl.SSLContext:
    return backend_context(server_credentials, version=request.param)


MakeLine = Callable[..., Line]


@pytest.fixture
def make_line(context: ssl.SSLContext, server_ca: Path) -> Iterator[MakeLine]:
    """Lines whose handshake is over; `small` makes the kernel's buffers small."""
    make_loop, make_poller = POLLERS[0].values[0]  # type: ignore[misc]
    with contextlib.ExitStack() as stack, LoopThread(make_loop) as loop, watching(loop, make_poller) as poller:

        def make(*, small: bool = False) -> Line:
            plain, theirs = tcp_pair(*([SMALL, SMALL] if small else []))
            peer = stack.enter_context(TlsEnd(theirs, context))
            told: list[ssl.SSLError] = []
            session = _shake_hands(plain, peer, server_ca)
            scratch = memoryview(bytearray(SIZE))
            ours = TlsSocket(plain, session, poller, scratch, told.append)
            stack.callback(plain.close)
            return Line(ours, peer, told, loop)

        yield make


def _shake_hands(plain: socket.socket, peer: TlsEnd, server_ca: Path) -> UpstreamSession:
    backend = Backend(UPSTREAM, {"http/1.1": upstream_context(server_ca.read_bytes(), None, "http/1.1")})
    session = UpstreamSession(backend, None, None)
    shaking = threading.Thread(target=peer.handshake)
    shaking.start()
    plain.settimeout(PATIENCE)
    received = b""
    while not session.handshake(received):
        plain.sendall(session.take_output())
        header = plain.recv(RECORD_HEADER, socket.MSG_WAITALL)
        received = header + plain.recv(int.from_bytes(header[3:]), socket.MSG_WAITALL)
    plain.sendall(session.take_output())
    plain.setblocking(False)
    shaking.join(PATIENCE)
    return session


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Readiness


def test_nothing_that_came_waits_inside(make_line: MakeLine) -> None:
    """When the kernel holds nothing more, everything has been handed out, however many records came at once."""
    line = make_line()
    data = os.urandom(3 * SIZE)
    sending = threading.Thread(target=line.peer.send, args=(data,))
    sending.start()
    assert digest(data) == digest(line.receive_exactly(len(data)))
    sending.join(PATIENCE)


def test_a_part_of_a_record_is_nothing_yet(make_line: MakeLine) -> None:
    """It is taken from the kernel, and its data comes with its end."""
    line = make_line()
    line.peer.tls.write(b"whole")
    wire = line.peer._out.read()
    line.peer.sock.sendall(wire[:-1])
    select.select([line.ours.fileno()], [], [], PATIENCE)
    buffer = memoryview(bytearray(SIZE + SMALL))
    while select.select([line.ours.fileno()], [], [], 0)[0]:
        with pytest.raises(BlockingIOError):
            line.ours.recv_into(buffer, SIZE)
    line.peer.sock.sendall(wire[-1:])
    assert b"whole" == line.receive()


# Ends


def test_close_notify_is_the_end(make_line: MakeLine) -> None:
    """Told again and again, without a FIN behind it; the other direction goes on."""
    line = make_line()
    line.peer.tls.write(b"last")
    with contextlib.suppress(ssl.SSLWantReadError):
        line.peer.tls.unwrap()
    line.peer._flush()
    assert [b"last", b"", b""] == [line.receive() for _ in range(3)]
    line.send_all(b"more")
    assert b"more" == line.peer.receive_exactly(4)


@pytest.mark.parametrize("end", ["half_close", "reset"])
def test_a_cut_is_no_end(make_line: MakeLine, end: str) -> None:
    """A FIN without close_notify is a reset, as an RST is."""
    line = make_line()
    line.peer.send(b"half")
    assert b"half" == line.receive()
    getattr(line.peer, end)()
    with pytest.raises(ConnectionResetError):
        line.receive()


def test_junk_is_a_reset_and_is_told(make_line: MakeLine) -> None:
    """Whoever listens hears OpenSSL's reason."""
    line = make_line()
    line.peer.sock.sendall(b"\x17\x03\x03\x00\x20" + b"?" * 32)
    with pytest.raises(ConnectionResetError):
        line.receive()
    assert line.told[0].reason


def test_our_end_is_both_ends(make_line: MakeLine) -> None:
    """close_notify and a FIN behind it; what the peer says then still comes."""
    line = make_line()
    line.send_all(b"question")
    line.loop.call(line.ours.shutdown, socket.SHUT_WR)
    answer = line.peer.receive_all()
    assert (b"question", "close_notify", "fin") == (answer.data, answer.ending, answer.tcp_end)


def test_our_end_waits_for_room(make_line: MakeLine) -> None:
    """Where the kernel takes nothing more it follows as soon as it can, behind all that was sent."""
    line = make_line(small=True)
    sent = 1000
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += line.ours.send(b"x" * 1000)
    assert line.ours._held
    line.loop.call(line.ours.shutdown, socket.SHUT_WR)
    answer = line.peer.receive_all()
    assert (sent, "close_notify", "fin") == (len(answer.data), answer.ending, answer.tcp_end)


def test_closing_says_it_too(make_line: MakeLine) -> None:
    """Who closes without a word before has ended."""
    line = make_line()
    line.send_all(b"question")
    line.ours.close()
    answer = line.peer.receive_all()
    assert (b"question", "close_notify") == (answer.data, answer.ending)


def test_closing_in_the_middle_is_no_end(make_line: MakeLine) -> None:
    """Where the kernel did not take all there is no close_notify."""
    line = make_line(small=True)
    with contextlib.suppress(BlockingIOError):
        while True:
            line.ours.send(b"x" * PIECE)
    line.ours.close()
    assert line.peer.receive_all().ending in ("fin", "reset")


def test_a_reset_is_a_reset(make_line: MakeLine) -> None:
    """Told to, it sends no close_notify and no FIN."""
    line = make_line()
    line.ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    line.ours.close()
    assert "reset" == line.peer.receive_all().ending


# Room


def test_back_pressure_and_nothing_lost(make_line: MakeLine) -> None:
    """What the kernel does not take is held a piece at a time, and arrives whole and in order."""
    line = make_line(small=True)
    data = os.urandom(2_000_000)
    received: list[bytes] = []
    reading = threading.Thread(target=lambda: received.append(line.peer.receive_exactly(len(data))))
    waiting = data
    with contextlib.suppress(BlockingIOError):
        while True:
            waiting = waiting[line.ours.send(memoryview(waiting)) :]
    assert 0 < len(line.ours._held) < PIECE + 1000
    reading.start()
    line.send_all(waiting)
    reading.join(PATIENCE)
    assert digest(data) == digest(received[0])
