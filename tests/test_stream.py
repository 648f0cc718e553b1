"""The two ends of an exchange: what is sent arrives in order however slowly it is taken, and ends are told apart."""

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import PATIENCE, TlsClient, client_context, reset
from aop_proxy import snapshot
from aop_proxy.poller import Poller
from aop_proxy.relay import MAX_WORDLESS, Buffers
from aop_proxy.stream import LITTLE, End, TlsEnd
from certificates import CredentialFiles
from in_process import POLLERS, LoopThread, accepted_session, make_bundle, tcp_pair, watching

LARGE = bytes(range(256)) * 20000


class Woken:
    """An end on its loop, and a test that waits until it is woken."""

    def __init__(self, loop: LoopThread, poller: Poller, ours: socket.socket) -> None:
        self.loop = loop
        self.news = threading.Event()
        self.poller = poller
        self.end = End(poller, Buffers(), ours, self.news.set)

    def receive(self) -> bytes:
        """What comes next, listened for."""
        while True:
            self.news.clear()
            self.loop.call(self.end.listen)
            assert self.news.wait(PATIENCE)
            data = self.loop.call(self.end.receive)
            if data is not None:
                return bytes(data)


@pytest.fixture(params=POLLERS)
def watched(request: pytest.FixtureRequest) -> Iterator[tuple[LoopThread, Poller]]:
    make_loop, make_poller = request.param
    with LoopThread(make_loop) as loop, watching(loop, make_poller) as poller:
        yield loop, poller


@pytest.fixture
def plain(watched: tuple[LoopThread, Poller]) -> Iterator[tuple[Woken, socket.socket]]:
    """An end in clear, and its peer."""
    loop, poller = watched
    ours, theirs = tcp_pair(send_buffer=8192, receive_buffer=8192)
    with ours, theirs:
        yield Woken(loop, poller, ours), theirs
        loop.call(poller.forget, ours.fileno())


@pytest.fixture
def sealed(
    watched: tuple[LoopThread, Poller],
    server_credentials: CredentialFiles,
    client_ca: Path,
    client_credentials: CredentialFiles,
) -> Iterator[tuple[Woken, TlsClient]]:
    """An end under TLS, and the client."""
    loop, poller = watched
    bundle = make_bundle(server_credentials, client_ca)
    built = snapshot.build(bundle, 1, None)
    session, client, ours = accepted_session(built, client_context(client_credentials))
    with ours, client:
        woken = Woken(loop, poller, ours)
        woken.end = TlsEnd(poller, Buffers(), ours, woken.news.set, session)
        yield woken, client
        loop.call(poller.forget, ours.fileno())


def test_what_comes_is_told_once(plain: tuple[Woken, socket.socket]) -> None:
    """Bytes, then the end; None where there was nothing after all."""
    woken, peer = plain
    assert woken.loop.call(woken.end.receive) is None
    peer.sendall(b"hello")
    assert woken.receive() == b"hello"
    assert not woken.end.has_news
    peer.shutdown(socket.SHUT_WR)
    assert woken.receive() == b""


def test_a_reset_is_no_end(plain: tuple[Woken, socket.socket]) -> None:
    """It raises."""
    woken, peer = plain
    reset(peer)
    with pytest.raises(ConnectionResetError):
        woken.receive()


def test_a_slow_peer_gets_all_in_order(plain: tuple[Woken, socket.socket]) -> None:
    """What it does not take is kept, and the coroutine is woken when it has been taken."""
    woken, peer = plain
    for start in range(0, len(LARGE), 1_000_000):
        woken.loop.call(woken.end.send, memoryview(LARGE)[start : start + 1_000_000])
    assert woken.end.backlog
    received = bytearray()
    while len(received) < len(LARGE):
        received += peer.recv(1 << 20)
    assert received == LARGE
    assert woken.news.wait(PATIENCE)
    assert not woken.end.backlog


def test_a_peer_that_takes_no_more_is_noted(plain: tuple[Woken, socket.socket]) -> None:
    """At once, or when what it owes to take cannot be sent; nothing is kept for it."""
    woken, peer = plain
    woken.loop.call(woken.end.send, LARGE)
    assert woken.end.backlog
    reset(peer)
    assert woken.news.wait(PATIENCE)
    assert (woken.end.broken, woken.end.backlog) == (True, b"")
    woken.loop.call(woken.end.send, b"more")
    assert woken.end.backlog == b""


def test_what_a_poller_may_forget_is_asked_for_again(plain: tuple[Woken, socket.socket]) -> None:
    """With the next listening, whatever was asked for before."""
    woken, peer = plain
    woken.loop.call(woken.end.listen)
    if woken.poller.forgets:
        woken.loop.call(woken.poller.stop_reading, woken.end._descriptor)
    peer.sendall(b"hello")
    assert woken.receive() == b"hello"


def test_what_is_little_goes_out_together(plain: tuple[Woken, socket.socket]) -> None:
    """After the turn of the loop in which it was given, or before what is much; in order; or not at all."""
    woken, peer = plain
    peer.settimeout(PATIENCE)

    def give(*pieces: bytes, then: str | None = None) -> bool:
        for piece in pieces:
            woken.end.send(piece)
        if then is not None:
            getattr(woken.end, then)()
        return woken.end.owes

    assert woken.loop.call(give, b"one ", b"two ")
    assert peer.recv(100) == b"one two "
    assert not woken.end.owes
    assert not woken.loop.call(lambda: give(b"at ", b"once", then="flush"))
    assert peer.recv(100) == b"at once"
    much = bytes(LITTLE)
    woken.loop.call(give, b"before", much)
    assert _receive_exactly(peer, 6 + LITTLE) == b"before" + much
    assert not woken.loop.call(lambda: give(b"never", then="leave"))
    woken.loop.call(give, b"last")
    assert peer.recv(100) == b"last"


def _receive_exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += peer.recv(size - len(data))
    return data


@pytest.mark.parametrize("size", [1, 8192, 8193, 100_000, len(LARGE)])
def test_sealed_in_both_directions(sealed: tuple[Woken, TlsClient], size: int) -> None:
    """All that is sent arrives, in records that a client takes."""
    woken, client = sealed
    data = LARGE[:size]
    sender = threading.Thread(target=client.send, args=(data,))
    sender.start()
    received = bytearray()
    while len(received) < size:
        received += woken.receive()
    sender.join(PATIENCE)
    assert received == data
    woken.loop.call(woken.end.send, memoryview(data))
    assert client.receive_exactly(size) == data


def test_what_came_before_the_end_is_told_before_it(sealed: tuple[Woken, TlsClient]) -> None:
    """Also where both came in one piece, after which nothing will come to tell of."""
    woken, client = sealed
    client.tls.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    client._flush()
    assert woken.receive() == b"last"
    assert woken.end.has_news
    assert bytes(woken.loop.call(woken.end.receive) or b"x") == b"x"


def test_a_cut_record_is_a_reset(sealed: tuple[Woken, TlsClient]) -> None:
    """A FIN in the middle of one is no end."""
    woken, client = sealed
    client.tls.write(b"whole")
    client.sock.sendall(client._out.read()[:-1])
    client.half_close()
    with pytest.raises(ConnectionResetError):
        woken.receive()


def test_garbage_is_a_reset(sealed: tuple[Woken, TlsClient]) -> None:
    """The client breaks the protocol, and hears OpenSSL's alert."""
    woken, client = sealed
    client.sock.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32)
    with pytest.raises(ConnectionResetError):
        woken.receive()
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        client.receive()


def test_goodbye(sealed: tuple[Woken, TlsClient]) -> None:
    """It is said behind what is owed."""
    woken, client = sealed
    woken.loop.call(woken.end.send, b"last")
    woken.loop.call(woken.end.say_goodbye)  # type: ignore[attr-defined]
    assert client.receive() == b"last"
    assert client.receive() == b""


def test_a_client_that_says_nothing_at_length(sealed: tuple[Woken, TlsClient]) -> None:
    """Records without data cost more than they are worth: there is a bound."""
    woken, client = sealed
    session = woken.end._session  # type: ignore[attr-defined]
    assert MAX_WORDLESS < 1 << 20
    woken.end._wordless = MAX_WORDLESS  # type: ignore[attr-defined]
    client.sock.sendall(b"\x17\x03\x03")  # the beginning of a record
    with pytest.raises(ConnectionResetError):
        woken.receive()
    assert session.is_mid_record
