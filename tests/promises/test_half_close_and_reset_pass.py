"""The end of a connection passes as what it was, an end of one half or a reset; and nobody is waited for without end."""

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from ssl import SSLContext
from typing import Any

import pytest

from actors import PATIENCE, Proxy, TlsClient, client_context, reset
from backends import ScriptedBackend, listening, scripted, url_of
from certificates import CredentialFiles
from duplex import DuplexClient

REQUEST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n"
ANSWER = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 20000\r\nConnection: close\r\n\r\n" + b"A" * 20_000
SOON = 5.0
"""Seconds within which a limit of one second must have shown."""

Site = dict[str, Any]
Connect = Callable[..., DuplexClient]


@pytest.fixture(scope="module")
def module_backend() -> Iterator[ScriptedBackend]:
    with scripted() as backend:
        yield backend


@pytest.fixture(scope="module")
def context(client_credentials: CredentialFiles) -> SSLContext:
    return client_context(client_credentials)


@pytest.fixture(scope="module")
def site(module_backend: ScriptedBackend, server_credentials: CredentialFiles, client_ca: Path) -> Site:
    """A site in front of `backend`."""
    return {
        "certificate": str(server_credentials.certificate),
        "private_key": str(server_credentials.private_key),
        "clients": {"ca": [str(client_ca)]},
        "upstream": module_backend.url,
    }


@pytest.fixture(scope="module")
def unix_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedBackend]:
    """A backend on a unix socket."""
    with scripted(tmp_path_factory.mktemp("backend") / "socket") as backend:
        yield backend


@contextlib.contextmanager
def full_backlog(path: Path | None = None) -> Iterator[str]:
    """The URL of a backend that listens and takes no connection more."""
    with listening(path, backlog=0) as listener, contextlib.ExitStack() as waiting:
        with contextlib.suppress(TimeoutError, BlockingIOError):
            while True:
                filling = waiting.enter_context(socket.socket(listener.family))
                filling.settimeout(0.2)
                filling.connect(listener.getsockname())
        yield url_of(listener)


@pytest.fixture(scope="module")
def full_tcp() -> Iterator[str]:
    with full_backlog() as url:
        yield url


@pytest.fixture(scope="module")
def full_unix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with full_backlog(tmp_path_factory.mktemp("full") / "socket") as url:
        yield url


@pytest.fixture(scope="module")
def down() -> str:
    """The URL of a backend that is not there."""
    with listening() as listener:
        return url_of(listener)


@pytest.fixture(scope="module")
def impatient(site: Site, unix_backend: ScriptedBackend, full_tcp: str, full_unix: str, down: str) -> Iterator[Proxy]:
    """A proxy whose limits are one second, with a site for every kind of backend."""
    config = {
        "workers": 1,
        "log": {"format": "json", "level": "debug"},
        "timeouts": {"handshake": "1s", "connect": "1s", "idle": "1s"},
        "sites": [
            {**site, "hosts": ["lazy.example"]},
            {**site, "hosts": ["eager.example"], "dial": "eager"},
            {**site, "hosts": ["unix.example"], "upstream": unix_backend.url},
            {**site, "hosts": ["full.example"], "upstream": full_tcp},
            {**site, "hosts": ["full-unix.example"], "upstream": full_unix},
            {**site, "hosts": ["down.example"], "upstream": down},
            {**site, "hosts": ["eager-down.example"], "upstream": down, "dial": "eager"},
            {**site, "hosts": ["next.example"], "upstream": [down, site["upstream"]]},
        ],
    }
    with Proxy(config) as proxy:
        yield proxy


@pytest.fixture
def connect(context: SSLContext) -> Iterator[Connect]:
    """Makes clients that have shaken hands with a proxy, closed at the end."""
    with contextlib.ExitStack() as stack:

        def connect(proxy: Proxy, server_name: str = "localhost") -> DuplexClient:
            client = stack.enter_context(DuplexClient(proxy.address, context, server_name=server_name))
            client.handshake()
            return client

        yield connect


@pytest.fixture
def pair(proxy: Proxy, backend: ScriptedBackend, connect: Connect) -> Iterator[tuple[DuplexClient, socket.socket]]:
    """A client that has sent `REQUEST`, and the backend's end of its connection, which has read it."""
    client = connect(proxy)
    client.send(REQUEST)
    with backend.accept() as connection:
        assert connection.recv(65536) == REQUEST
        yield client, connection


# The client ends


@pytest.mark.parametrize("end", [TlsClient.close_notify, TlsClient.half_close])
def test_client_that_has_ended_reads_the_answer(
    pair: tuple[DuplexClient, socket.socket], end: Callable[[TlsClient], None]
) -> None:
    """After close_notify or a bare FIN the backend sees the end, and the client still gets all of a late answer."""
    client, connection = pair
    end(client)
    assert connection.recv(1) == b""
    connection.sendall(ANSWER)
    connection.close()
    assert b"".join(client.exchange(())) == ANSWER
    client.sock.settimeout(PATIENCE)
    assert client.sock.recv(1) == b""


def test_half_close_passes_on_a_unix_socket(impatient: Proxy, unix_backend: ScriptedBackend, connect: Connect) -> None:
    """A backend on a unix socket sees the client's end, and the client its late answer and its end."""
    client = connect(impatient, "unix.example")
    client.send(REQUEST)
    client.close_notify()
    with unix_backend.accept() as connection:
        assert b"".join(iter(lambda: connection.recv(65536), b"")) == REQUEST
        connection.sendall(ANSWER)
    assert b"".join(client.exchange(())) == ANSWER


def test_bytes_and_end_in_one_segment(proxy: Proxy, backend: ScriptedBackend, connect: Connect) -> None:
    """A request and a close_notify behind it, before the backend was dialled, arrive as that."""
    client = connect(proxy)
    client.tls.write(REQUEST)
    client.close_notify()
    with backend.accept() as connection:
        assert b"".join(iter(lambda: connection.recv(65536), b"")) == REQUEST
        connection.sendall(ANSWER)
    assert client.receive_all().data == ANSWER


@pytest.mark.parametrize("end", [TlsClient.close_notify, TlsClient.half_close])
def test_client_that_ends_without_a_word(
    proxy: Proxy, backend: ScriptedBackend, connect: Connect, end: Callable[[TlsClient], None]
) -> None:
    """A client that ends before it has sent anything is let go, and the backend is not bothered."""
    client = connect(proxy)
    end(client)
    assert proxy.connection_record(client.port)["reason"] == "closed"
    assert backend.nobody_waits()


def test_reset_of_the_client_reaches_the_backend(pair: tuple[DuplexClient, socket.socket]) -> None:
    """A client's RST arrives at the backend as RST, not as an end."""
    client, connection = pair
    client.reset()
    with pytest.raises(ConnectionResetError):
        connection.recv(1)


def test_client_that_breaks_the_protocol_is_a_reset(pair: tuple[DuplexClient, socket.socket]) -> None:
    """A truncated or forged record is no end of the request: the backend sees RST."""
    client, connection = pair
    client.sock.sendall(b"\x17\x03\x03\x00\x20" + b"?" * 32)
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    assert client.receive_all().ending != "close_notify"


# The backend ends


def test_backend_that_has_ended_still_hears_the_client(pair: tuple[DuplexClient, socket.socket]) -> None:
    """After the backend's FIN the client gets close_notify, and what it sends then still arrives, to its own end."""
    client, connection = pair
    connection.sendall(ANSWER)
    connection.shutdown(socket.SHUT_WR)
    assert client.receive_exactly(len(ANSWER)) == ANSWER
    assert client.receive() == b""
    client.send(b"more")
    assert connection.recv(65536) == b"more"
    client.close_notify()
    assert connection.recv(1) == b""


def test_reset_of_the_backend_is_no_clean_end(pair: tuple[DuplexClient, socket.socket]) -> None:
    """A backend's RST in the middle of an answer reaches the client as anything but the end of that answer."""
    client, connection = pair
    connection.sendall(ANSWER[:1000])
    assert client.receive_exactly(1000) == ANSWER[:1000]
    reset(connection)
    answer = client.receive_all()
    assert answer.data == b""
    assert answer.ending in ("reset", "fin")


def test_early_answer_is_read_by_a_client_that_uploads(pair: tuple[DuplexClient, socket.socket]) -> None:
    """A backend answers, closes with the upload unread, which resets it; the client can read the answer."""
    client, connection = pair
    connection.sendall(ANSWER)
    connection.close()
    assert answer_during_upload(client) == ANSWER


def test_early_answer_with_half_close_is_read_by_a_client_that_uploads(
    pair: tuple[DuplexClient, socket.socket],
) -> None:
    """A backend answers, half-closes and reads nothing for as long as the client wants to send."""
    client, connection = pair
    connection.sendall(ANSWER)
    connection.shutdown(socket.SHUT_WR)
    assert answer_during_upload(client) == ANSWER


def test_early_answer_is_read_by_a_client_that_sends_first(pair: tuple[DuplexClient, socket.socket]) -> None:
    """A client that reads nothing until its upload is through, or fails, can read the answer then."""
    client, connection = pair
    connection.sendall(ANSWER)
    connection.close()
    with contextlib.suppress(OSError):
        for _ in range(100):
            client.send(b"u" * 100_000)
    assert client.receive_exactly(len(ANSWER)) == ANSWER


def answer_during_upload(client: DuplexClient) -> bytes:
    """What a client that sends 10 MB has received by the time it has a whole `ANSWER`, or nothing more comes."""
    arriving, received = client.exchange(b"u" * 100_000 for _ in range(100)), b""
    with contextlib.suppress(OSError, StopIteration):
        while len(received) < len(ANSWER):
            received += next(arriving)
    return received


# When the backend is dialled, and when it cannot be


def test_dial_waits_for_the_first_byte(proxy: Proxy, backend: ScriptedBackend, connect: Connect) -> None:
    """A connection on which the client has said nothing holds no connection to the backend."""
    silent, speaking = connect(proxy), connect(proxy)
    speaking.send(b"speaking")
    with backend.accept() as first:
        assert first.recv(65536) == b"speaking"
        assert backend.nobody_waits()
        silent.send(b"no longer silent")
        with backend.accept() as second:
            assert second.recv(65536) == b"no longer silent"


def test_eager_dial_lets_the_backend_speak_first(impatient: Proxy, backend: ScriptedBackend, connect: Connect) -> None:
    """With `dial: eager` the backend is dialled at the end of the handshake, and its greeting reaches the client."""
    client = connect(impatient, "eager.example")
    with backend.accept() as connection:
        connection.sendall(b"220 at your service\r\n")
        assert client.receive_exactly(21) == b"220 at your service\r\n"
        client.send(b"QUIT\r\n")
        assert connection.recv(65536) == b"QUIT\r\n"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("down.example", "upstream_unreachable"),
        ("eager-down.example", "upstream_unreachable"),
        ("full.example", "upstream_timeout"),
        ("full-unix.example", "upstream_timeout"),
    ],
)
def test_backend_that_cannot_be_reached_is_502(impatient: Proxy, connect: Connect, name: str, reason: str) -> None:
    """A backend that is down, or accepts nothing until the connect deadline, is 502 on the live TLS session."""
    client = connect(impatient, name)
    port, started = client.port, time.monotonic()
    client.send(REQUEST)
    answer = client.receive_all()
    assert time.monotonic() - started < SOON
    assert (answer.status, answer.ending) == (502, "close_notify")
    assert "502 Bad Gateway" in answer.body
    client.sock.close()
    record = impatient.connection_record(port)
    assert (record["verdict"], record["reason"]) == ("failed", reason)


def test_backend_that_cannot_be_reached_is_502_during_an_upload(impatient: Proxy, connect: Connect) -> None:
    """A client in the middle of its upload can read the 502."""
    arriving = connect(impatient, "down.example").exchange(b"u" * 100_000 for _ in range(100))
    assert b"".join(arriving).startswith(b"HTTP/1.1 502 Bad Gateway\r\n")


def test_next_address_is_tried(impatient: Proxy, backend: ScriptedBackend, connect: Connect) -> None:
    """Where the first of two backends is down, the second is served from."""
    client = connect(impatient, "next.example")
    client.send(REQUEST)
    with backend.accept() as connection:
        assert connection.recv(65536) == REQUEST


# Nobody is waited for without end


def test_idle_limit_ends_a_connection(impatient: Proxy, backend: ScriptedBackend, connect: Connect) -> None:
    """A connection on which nothing has moved for the idle limit is ended on both sides."""
    client = connect(impatient, "lazy.example")
    client.send(REQUEST)
    with backend.accept() as connection:
        assert connection.recv(65536) == REQUEST
        started = time.monotonic()
        assert b"".join(client.exchange(())) == b""
        assert 0.5 < time.monotonic() - started < SOON
        assert connection.recv(1) == b""
    port = client.port
    client.sock.close()
    assert impatient.connection_record(port)["reason"] == "idle_timeout"


def test_idle_limit_ends_a_connection_without_a_first_byte(impatient: Proxy, connect: Connect) -> None:
    """A client that has shaken hands and says nothing is let go at the idle limit."""
    client = connect(impatient, "lazy.example")
    assert client.receive_all().data == b""
    assert impatient.connection_record(client.port)["reason"] == "idle_timeout"


def test_idle_limit_leaves_a_slow_stream_alone(impatient: Proxy, backend: ScriptedBackend, connect: Connect) -> None:
    """A stream in one direction with pauses shorter than the limit lives longer than the limit."""
    client = connect(impatient, "lazy.example")
    client.send(REQUEST)
    with backend.accept() as connection:
        assert connection.recv(65536) == REQUEST
        for _ in range(5):
            client_speaks, _, _ = select.select([connection], [], [], 0.4)
            assert not client_speaks
            connection.sendall(b".")
            assert client.receive_exactly(1) == b"."


def test_silent_client_is_let_go(impatient: Proxy) -> None:
    """A client that connects and says nothing is closed at the handshake deadline."""
    with socket.create_connection(impatient.address, SOON) as silent:
        assert silent.recv(1) == b""
        port = silent.getsockname()[1]
    assert impatient.connection_record(port)["reason"] == "client_silent"


def test_client_that_stops_in_the_handshake_is_let_go(impatient: Proxy, context: SSLContext) -> None:
    """A client that sends its hello and no more is closed at the same deadline, however it trickles."""
    with TlsClient(impatient.address, context, timeout=SOON) as client:
        with contextlib.suppress(Exception):
            client.tls.do_handshake()
        hello = client._out.read()
        started = time.monotonic()
        for byte in hello[:4]:
            client.sock.sendall(bytes([byte]))
            ended, _, _ = select.select([client.sock], [], [], 0.3)
            if ended:
                break
        assert client._tcp_end() in ("fin", "reset")
        assert time.monotonic() - started < SOON
        assert impatient.connection_record(client.port)["reason"] == "handshake_timeout"


@pytest.mark.parametrize("unauthenticated", [64, None])
def test_silent_sockets_do_not_keep_a_good_client_out(
    site: Site, backend: ScriptedBackend, context: SSLContext, unauthenticated: int | None
) -> None:
    """600 sockets that say nothing, ten times what may be unauthenticated at once, leave room for who speaks."""
    limits = {"limits": {"unauthenticated": unauthenticated}} if unauthenticated else {}
    config = {"workers": 1, "log": {"format": "json"}, "sites": [site], **limits}
    with Proxy(config) as proxy, contextlib.ExitStack() as silent:
        for _ in range(600):
            silent.enter_context(socket.create_connection(proxy.address, PATIENCE))
        started = time.monotonic()
        with TlsClient(proxy.address, context) as client:
            client.handshake(with_data=REQUEST)
            with backend.accept() as connection:
                assert connection.recv(65536) == REQUEST
                connection.sendall(ANSWER)
            assert client.receive_exactly(len(ANSWER)) == ANSWER
        assert time.monotonic() - started < SOON
