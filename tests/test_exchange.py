"""One client's requests where they are read: what the backend gets, what the client gets, and how each of them ends."""

import asyncio
import contextlib
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import (
    GET,
    GET_AND_CLOSE,
    HELLO,
    PATIENCE,
    Answer,
    BackendConnection,
    RecordingBackend,
    TlsClient,
    ask,
    client_context,
    free_port,
    full,
    never_answer,
    reply,
    reply_and_close,
)
from aop_proxy import exchange, http1
from aop_proxy.connection import Connection
from aop_proxy.model import Clients, Http, Mode
from aop_proxy.reasons import Reason
from certificates import CredentialFiles
from in_process import LOOPS, InProcessServer, LoopThread, make_bundle

Serve = Callable[..., InProcessServer]
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
POST = b"POST /form HTTP/1.1\r\nHost: localhost\r\n"
WEBSOCKET = b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX: y\r\n\r\n"


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Iterator[LoopThread]:
    with LoopThread(request.param) as running:
        yield running


@pytest.fixture
def serve(
    loop: LoopThread, backend: RecordingBackend, server_credentials: CredentialFiles, client_ca: Path
) -> Iterator[Serve]:
    """Servers in front of `backend`, for one site with these settings of `http`."""
    with contextlib.ExitStack() as servers:

        def make(
            upstream: str = backend.url, files: dict[str, bytes] | None = None, timeouts: Any = None, **http: Any
        ) -> InProcessServer:
            site = {"mode": Mode.HTTP, "http": Http(**http)}
            bundle = make_bundle(server_credentials, client_ca, upstream, sites=(site,), timeouts=timeouts)
            bundle.files.update(files or {})  # type: ignore[attr-defined]
            return servers.enter_context(InProcessServer(loop, bundle))

        yield make


@pytest.fixture
def good(client_credentials: CredentialFiles) -> ssl.SSLContext:
    """A client that shows a good certificate."""
    return client_context(client_credentials)


@contextlib.contextmanager
def connected(server: InProcessServer, context: ssl.SSLContext) -> Iterator[TlsClient]:
    with TlsClient(server.address, context) as client:
        client.handshake()
        yield client


def page(answer: Answer) -> tuple[int, str, str]:
    """Status, sentence and reference of a page, after which the connection has ended in good order."""
    assert (answer.ending, answer.tcp_end) == ("close_notify", "fin")
    (sentence,) = re.findall("<title>[0-9]+ (.*)</title>", answer.body)
    (reference,) = re.findall("<hr><center>([0-9a-f]{8})</center>", answer.body)
    return answer.status, sentence, reference


def script(*steps: bytes | Callable[[BackendConnection], None]) -> Callable[[BackendConnection], None]:
    """A backend that takes a request's head and then sends bytes, or does what it is told to."""

    def behave(connection: BackendConnection) -> None:
        assert connection.receive_request()
        for step in steps:
            if isinstance(step, bytes):
                connection.sock.sendall(step)
            else:
                step(connection)

    return behave


def assert_set(event: threading.Event) -> None:
    assert event.wait(PATIENCE)


def only(server: InProcessServer) -> Connection:
    """The one connection that has been let in."""
    (connection,) = server.server._admitted
    return connection


# Connections


def test_both_connections_are_kept(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """Requests of one client, and of the next, over the same connection to the backend."""
    server = serve()
    for _ in range(2):
        with connected(server, good) as client:
            for _ in range(3):
                client.send(GET)
                assert client.receive_exactly(len(HELLO)) == HELLO
    assert len(backend.connections) == 1
    assert backend.received.count(b"GET / HTTP/1.1\r\n") == 6


def test_a_client_is_kept_whatever_the_backend_does(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext
) -> None:
    """A backend that closes after each response costs the client nothing, with a length, in chunks or without."""
    bodies = [HELLO, CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nto the end"]
    server = serve()
    with connected(server, good) as client:
        for body in bodies:
            backend.behaviour = reply_and_close(body)
            client.send(GET)
            expected = {
                HELLO: HELLO,
                bodies[1]: CHUNKED + b"5\r\nhello\r\n0\r\n\r\n",
                bodies[2]: CHUNKED + b"a\r\nto the end\r\n0\r\n\r\n",
            }[body]
            assert client.receive_exactly(len(expected)) == expected
            backend.wait_for_connection(len(backend.connections)).wait_until(lambda: True)
    assert len(backend.connections) == 3
    assert server.record()["reason"] == "closed"


def test_pipelined_requests(serve: Serve, good: ssl.SSLContext) -> None:
    """Are answered in order."""
    server = serve()
    with connected(server, good) as client:
        client.send(GET * 3 + GET_AND_CLOSE)
        assert client.receive_all().data == HELLO * 3 + HELLO.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert server.wait_for("request", status=200, count=4)


@pytest.mark.parametrize(
    ("request_line", "kept"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n", True),
    ],
)
def test_when_the_client_wants_no_more(serve: Serve, good: ssl.SSLContext, request_line: bytes, kept: bool) -> None:
    """Its connection ends in good order behind the response."""
    with connected(serve(), good) as client:
        client.send(request_line)
        head = client.receive()
        assert (b"Connection: keep-alive" in head, b"Connection: close" in head) == (kept, not kept)
        if kept:
            client.send(GET_AND_CLOSE)
        assert client.receive_all().ending == "close_notify"


def test_an_old_client_gets_no_chunks(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """HTTP/1.0 does not know them: the end of the body is the end of the connection."""
    backend.behaviour = reply(CHUNKED + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")
    answer = ask(serve().address, good, b"GET / HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n")
    assert answer.data == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello world"
    assert answer.ending == "close_notify"


def test_a_connection_that_closed_meanwhile_is_not_used(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext
) -> None:
    """Also a request that could not be sent again is not lost on it."""
    server = serve()
    with connected(server, good) as client:
        client.send(GET)
        client.receive_exactly(len(HELLO))
        backend.connections[0].sock.shutdown(socket.SHUT_RDWR)
        backend.connections[0].wait_until(lambda: backend.connections[0].ended is not None)
        client.send(POST + b"Content-Length: 2\r\n\r\nhi")
        assert client.receive_exactly(len(HELLO)) == HELLO
    assert len(backend.connections) == 2


@pytest.mark.parametrize(
    ("again", "status"),
    [
        (GET, 200),
        (b"DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (POST + b"\r\n", 502),
        (b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx", 502),
    ],
)
def test_one_retry_where_it_does_no_harm(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext, again: bytes, status: int
) -> None:
    """Only of idempotent requests without a body, on a connection that had served before."""

    def serve_once(connection: BackendConnection) -> None:
        connection.receive_request()
        connection.sock.sendall(HELLO)
        connection.receive_request()

    backend.behaviour = serve_once
    server = serve()
    with connected(server, good) as client:
        client.send(GET)
        client.receive_exactly(len(HELLO))
        backend.behaviour = reply()
        client.send(again)
        assert int(client.receive().split(b" ", 2)[1]) == status
    assert len(backend.connections) == (2 if status == 200 else 1)


@pytest.mark.parametrize("behaviour", [reply_and_close(b""), reply_and_close(b"HTTP/1.1 200 OK\r\n")])
def test_no_second_retry(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext, behaviour: Callable[[BackendConnection], None]
) -> None:
    """A fresh connection that ends without an answer, or in the middle of a head, is the backend's fault."""
    backend.behaviour = behaviour
    server = serve()
    status, sentence, reference = page(ask(server.address, good, GET))
    assert (status, sentence) == (502, "The server behind this one gave no valid answer")
    line = server.wait_for("request")
    assert (line["status"], line["fault"], line["reference"]) == (502, "bad_response", reference)
    assert len(backend.connections) == 1


def test_bytes_behind_a_response_belong_to_nobody(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext
) -> None:
    """The connection on which they came never serves again."""
    backend.behaviour = reply(HELLO + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
    with connected(serve(), good) as client:
        for _ in range(3):
            client.send(GET)
            assert client.receive_exactly(len(HELLO)) == HELLO
        client.send(GET_AND_CLOSE)
        assert b"poison" not in client.receive_all().data
    assert len(backend.connections) == 4


@pytest.mark.parametrize("scheme", [b"NTLM", b"Negotiate", b"negotiate oYG2MIGz", b"Basic"])
def test_an_authenticated_connection_is_nobody_elses(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext, scheme: bytes
) -> None:
    """NTLM and Negotiate authenticate a connection, and the next request on it, whoever sends it."""
    asks = b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: " + scheme + b"\r\nContent-Length: 0\r\n\r\n"
    backend.behaviour = reply(asks)
    with connected(serve(), good) as client:
        for _ in range(2):
            client.send(GET)
            assert client.receive_exactly(len(asks)) == asks
    assert len(backend.connections) == (1 if scheme == b"Basic" else 2)


def test_nor_is_one_that_a_request_may_have_authenticated(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext
) -> None:
    """The answer to the last step need not say so."""
    with connected(serve(), good) as client:
        for scheme in (b"NTLM TlRM", b"negotiate oYG2MIGz", b"Basic YTpi", b"Bearer x"):
            client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: " + scheme + b"\r\n\r\n")
            assert client.receive_exactly(len(HELLO)) == HELLO
            assert b"\r\nAuthorization: " + scheme + b"\r\n" in backend.connections[-1].received
    assert len(backend.connections) == 3


@pytest.mark.parametrize(
    "body", [b"Content-Length: 3\r\n\r\nGET", b"Transfer-Encoding: chunked\r\n\r\n1\r\nG\r\n0\r\n\r\n"]
)
def test_a_body_may_have_been_left_unread(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext, body: bytes
) -> None:
    """And would be taken for a request: no connection that carried one serves again, and the backend is told so."""
    with connected(serve(), good) as client:
        for number in range(1, 4):
            client.send(POST + body)
            assert client.receive_exactly(len(HELLO)) == HELLO
            assert len(backend.connections) == number
            assert b"\r\nConnection: close\r\n" in backend.connections[-1].received
        client.send(POST + b"Content-Length: 0\r\n\r\n" + GET)
        assert client.receive_exactly(2 * len(HELLO)) == 2 * HELLO
    assert len(backend.connections) == 4


# Bodies


def test_a_request_streams(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """The backend has each piece before the next is sent, framed anew."""
    backend.behaviour = never_answer
    with connected(serve(), good) as client:
        client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhel")
        arrived = backend.wait_for_connection()
        arrived.wait_until(lambda: arrived.received.endswith(b"\r\n\r\n3\r\nhel\r\n"))
        client.send(b"lo\r\n6\r\n world\r\n")
        arrived.wait_until(lambda: arrived.received.endswith(b"8\r\nlo world\r\n"))
        client.send(b"0\r\nTrailer: x\r\n\r\n")
        arrived.wait_until(lambda: arrived.received.endswith(b"0\r\n\r\n"))
        assert b"Trailer" not in arrived.received
        assert b"Transfer-Encoding: chunked\r\n" in arrived.received


def test_a_response_streams(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """The client has each piece before the next is sent."""
    permits = threading.Semaphore(0)

    def wait(_: BackendConnection) -> None:
        assert permits.acquire(timeout=PATIENCE)

    backend.behaviour = script(CHUNKED, b"5\r\nhello\r\n", wait, b"3\r\nyou\r\n", wait, b"0\r\n\r\n")
    with connected(serve(), good) as client:
        client.send(GET)
        first = CHUNKED + b"5\r\nhello\r\n"
        assert client.receive_exactly(len(first)) == first
        permits.release()
        assert client.receive_exactly(8) == b"3\r\nyou\r\n"
        permits.release()
        assert client.receive_exactly(5) == b"0\r\n\r\n"


def test_large_bodies_arrive(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """In both directions, past what any buffer holds, though neither side reads before it has written."""
    size = 8 << 20
    backend.behaviour = reply(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
    with connected(serve(), good) as client:
        client.send(POST + b"Content-Length: %d\r\n\r\n" % size + bytes(size))
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
        assert client.receive_exactly(len(head) + size) == head + bytes(size)
    assert backend.received.endswith(b"\r\n\r\n" + bytes(size))


def test_an_early_answer_ends_an_upload(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """What the backend says before it has the whole body reaches the client, whose connection then ends."""
    backend.behaviour = script(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")

    def promise_much(connection: BackendConnection) -> None:
        while b"\r\n\r\n" not in connection.received:
            connection.receive()
        connection.sock.sendall(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
        connection.receive_rest()

    backend.behaviour = promise_much
    with connected(serve(), good) as client:
        client.send(POST + b"Content-Length: 1000000\r\n\r\nbeginning")
        answer = client.receive_all()
        assert answer.data == b"HTTP/1.1 413 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
        assert answer.ending == "close_notify"
    backend.connections[0].wait_until(lambda: backend.connections[0].ended is not None)


@pytest.mark.parametrize("behind", [b"", b"never asked for"])
@pytest.mark.parametrize(
    ("method", "head"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n"),
    ],
)
def test_responses_without_a_body(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext, method: bytes, head: bytes, behind: bytes
) -> None:
    """End with their head, whatever it says of a length, and whatever comes behind."""
    backend.behaviour = reply(head + b"\r\n" + behind)
    with connected(serve(), good) as client:
        for _ in range(2):
            client.send(method + GET[3:])
            assert client.receive_exactly(len(head) + 2) == head + b"\r\n"
    assert len(backend.connections) == (2 if behind else 1)


def test_interim_responses(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """Early hints pass; a 100 passes once, to who waits for it; the final response is the final one."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    backend.behaviour = script(http1.CONTINUE + hints + http1.CONTINUE + HELLO)
    with connected(serve(), good) as client:
        client.send(GET)
        assert client.receive_exactly(len(hints + HELLO)) == hints + HELLO


def test_an_expectation_is_the_backends_to_meet(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """Its 100 lets the client send; and once only."""

    def meet(connection: BackendConnection) -> None:
        while b"\r\n\r\n" not in connection.received:
            connection.receive()
        connection.sock.sendall(http1.CONTINUE * 2)
        connection.receive_request()
        connection.sock.sendall(HELLO)

    backend.behaviour = meet
    with connected(serve(), good) as client:
        client.send(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert client.receive_exactly(len(http1.CONTINUE)) == http1.CONTINUE
        client.send(b"hello")
        assert client.receive_exactly(len(HELLO)) == HELLO
    assert b"\r\nExpect: 100-continue\r\n" in backend.received
    assert backend.received.endswith(b"\r\n\r\nhello")


def test_a_body_is_read_whole_first(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """Where that is asked for: the backend hears nothing before, and gets a length whatever came."""
    server = serve(buffer_requests=1 << 20)
    large = bytes(range(256)) * 1024  # more than is kept in memory
    with connected(server, good) as client:
        client.send(POST + b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
        assert client.receive_exactly(len(http1.CONTINUE)) == http1.CONTINUE
        client.send(b"40000\r\n" + large[:100_000])
        assert backend.connections == []
        client.send(large[100_000:] + b"\r\n0\r\n\r\n" + GET)
        assert client.receive_exactly(2 * len(HELLO)) == HELLO * 2
    head, _, rest = backend.received.partition(b"\r\n\r\n")
    assert b"Content-Length: 262144" in head
    assert b"Expect" not in head
    assert rest.startswith(large + b"GET / HTTP/1.1\r\n")


def test_a_body_that_stops_is_not_waited_for(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client is left, what there is of it is thrown away, and the backend has heard nothing."""
    monkeypatch.setattr(exchange, "BODY_PATIENCE", 0.05)
    server = serve(buffer_requests=1000, timeouts={"linger": 0.2})
    with connected(server, good) as client:
        client.send(POST + b"Content-Length: 5\r\n\r\nhell")
        assert client.receive_all().data == b""
    line = server.wait_for("request")
    assert (line["status"], line["fault"]) == (None, "cut")
    assert server.record()["reason"] == "client_reset"
    assert len(backend.connections) == 0


@pytest.mark.parametrize(
    "body",
    [b"Content-Length: 2000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n800\r\n" + bytes(0x800) + b"\r\n"],
    ids=["told", "found"],
)
def test_a_body_past_its_bound(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext, body: bytes) -> None:
    """Is refused before the backend hears of it."""
    server = serve(buffer_requests=1024)
    assert page(ask(server.address, good, POST + body))[:2] == (413, "The request is too large")
    assert server.wait_for("request")["fault"] == "body_too_large"
    assert backend.connections == []


# Upgrades


def test_websocket_becomes_a_relay(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """After the 101, with what either side has said already; every byte passes, and both ends."""

    def switch(connection: BackendConnection) -> None:
        connection.receive_request()
        connection.sock.sendall(SWITCH + b"\x81\x02hi")
        while data := connection.receive():
            connection.sock.sendall(data)

    backend.behaviour = switch
    server = serve()
    head = b"HTTP/1.1 101 Switching Protocols\r\nX: y\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with connected(server, good) as client:
        client.send(WEBSOCKET + b"\x00early")
        expected = head + b"\x81\x02hi\x00early"
        assert client.receive_exactly(len(expected)) == expected
        client.send(b"GET /\n\r\n\0")  # nothing is parsed any more
        assert client.receive_exactly(9) == b"GET /\n\r\n\0"
        client.close_notify()
        assert client.receive_all().data == b""
    record = server.record()
    assert (record["reason"], server.wait_for("request")["status"]) == ("closed", 101)
    assert record["bytes_from_client"] == len(WEBSOCKET) + 6 + 9


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (GET, SWITCH),
        (WEBSOCKET, SWITCH.replace(b"websocket", b"h2c")),
        (WEBSOCKET.replace(b"websocket", b"h2c"), SWITCH.replace(b"websocket", b"h2c")),
        (WEBSOCKET.replace(b"websocket", b"h2c"), SWITCH),
    ],
)
def test_nothing_else_is_upgraded(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext, asked: bytes, answered: bytes
) -> None:
    """A switch that was not asked for, or to something else, is no answer."""
    backend.behaviour = reply(answered)
    assert page(ask(serve().address, good, asked))[0] == 502
    assert b"h2c" not in backend.received


def test_an_upgrade_that_is_declined(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """Is a request like any other, and the next one is one too."""
    backend.behaviour = reply(
        b"HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 13\r\nContent-Length: 0\r\n\r\n"
    )
    with connected(serve(), good) as client:
        client.send(WEBSOCKET + GET)
        assert client.receive().startswith(b"HTTP/1.1 426 ")
        assert client.receive().startswith(b"HTTP/1.1 426 ")
    assert backend.received.count(b" HTTP/1.1\r\nHost: localhost\r\n") == 2


# What requests are held to


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"localhost", 200),
        (b"LocalHost.", 200),
        (b"localhost:8443", 200),
        (b"other.example", 421),
        (b"localhost.example", 421),
        (b"127.0.0.1", 421),
        (b"[::1]", 421),
    ],
)
def test_the_host_is_the_connections(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext, host: bytes, status: int
) -> None:
    """On every request, also on a connection whose first was right; else 421, and the end."""
    server = serve()
    with connected(server, good) as client:
        client.send(GET)
        client.receive_exactly(len(HELLO))
        client.send(b"GET /second HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
        assert int(client.receive().split(b" ", 2)[1]) == status
    assert (b"/second" in backend.received) is (status == 200)


def test_sites_are_kept_apart_before_one_backend(
    loop: LoopThread,
    backend: RecordingBackend,
    server_credentials: CredentialFiles,
    client_ca: Path,
    good: ssl.SSLContext,
) -> None:
    """A client of one site cannot name the other; who names none is held to the site for any name."""
    sites = (
        {"mode": Mode.HTTP, "hosts": ("strict.example",), "clients": Clients(("ca",), names=("somebody.else",))},
        {"mode": Mode.HTTP},
    )
    bundle = make_bundle(server_credentials, client_ca, backend.url, sites=sites)
    with InProcessServer(loop, bundle) as server:
        for host, name, status in [
            ("lax.example", "lax.example", 200),
            ("strict.example", "lax.example", 421),
            ("strict.example", None, 421),
            ("lax.example", None, 200),
            ("strict.example", "strict.example", 400),
        ]:
            request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            with TlsClient(server.address, good, server_name=name) as client:
                client.handshake(with_data=request)
                assert int(client.receive().split(b" ", 2)[1]) == status
    assert b"strict" not in backend.received


def test_the_secret(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """Who does not bear it is refused; it never reaches the backend, in any spelling."""
    files = {"secret": b"first\nsecond\n"}
    server = serve(files=files, secret_header="X-Secret", secret_file="secret")
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n%b\r\n"
    assert page(ask(server.address, good, request % b""))[0] == 400
    assert page(ask(server.address, good, request % b"X-Secret: wrong\r\n"))[0] == 400
    assert page(ask(server.address, good, request % b"X-Secret: first\r\nX_Secret: second\r\n"))[0] == 400
    assert server.wait_for("request")["fault"] == "secret_missing"
    assert backend.connections == []
    with connected(server, good) as client:
        client.send(request % b"x-secret: second\r\nConnection: x-secret\r\n")
        assert client.receive_exactly(len(HELLO)) == HELLO
    assert b"second" not in backend.received


def test_what_the_backend_is_told(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """Ours in place of every copy that came; the Host rewritten where that is asked for."""
    server = serve(fields=("x-forwarded", "forwarded", "x-client"), host="inside:8080")
    lines = b"X-Forwarded-For: 6.6.6.6\r\nx_client_verify: SUCCESS\r\nForwarded: for=6.6.6.6\r\nCF-Ray: r\r\nA:b\r\n"
    with connected(server, good) as client:
        client.send(b"GET /p?q HTTP/1.1\r\nHost: LOCALHOST\r\nConnection: x-forwarded-for, A\r\n" + lines + b"\r\n")
        assert client.receive_exactly(len(HELLO)) == HELLO
    fingerprint = server.record()["fingerprint"]
    assert backend.received.decode().split("\r\n") == [
        "GET /p?q HTTP/1.1",
        "Host: inside:8080",
        "CF-Ray: r",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Proto: https",
        "X-Client-Verify: SUCCESS",
        "X-Client-Subject: CN=edge.example",
        f"X-Client-Fingerprint: {fingerprint}",
        "X-Forwarded-Host: localhost",
        'Forwarded: for=127.0.0.1;host="localhost";proto=https',
        "",
        "",
    ]


def test_who_is_only_observed(
    loop: LoopThread, backend: RecordingBackend, server_credentials: CredentialFiles, client_ca: Path
) -> None:
    """Is forwarded, and what only the edge may say is not believed of it."""
    site = {"mode": Mode.HTTP}
    bundle = make_bundle(server_credentials, client_ca, backend.url, sites=(site,), enforcement="observe")
    lines = b"CF-Connecting-IP: 6.6.6.6\r\ncf_ray: r\r\nTrue-Client-IP: 6.6.6.6\r\nX-Client-Verify: SUCCESS\r\nA: b\r\n"
    with InProcessServer(loop, bundle) as server, connected(server, client_context()) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n")
        assert client.receive_exactly(len(HELLO)) == HELLO
    told = backend.received.decode().lower()
    assert "6.6.6.6" not in told
    assert "cf_ray" not in told
    assert "x-client-verify: none\r\n" in told
    assert "client-cert" not in told
    assert "a: b\r\n" in told


# Pages and ends


def test_a_bad_request_is_explained(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """400 with the connection's reference, and the end; HEAD gets no body."""
    server = serve()
    status, sentence, reference = page(ask(server.address, good, b"GET / HTTP/1.1\nHost: localhost\n\n"))
    assert (status, sentence) == (400, "The request is not valid HTTP")
    assert server.record(reference=reference)["reason"] == "closed"
    assert page(ask(server.address, good, GET[:-2] + b"X: y\r\n" * 300 + b"\r\n"))[0] == 431
    without = ask(server.address, good, b"HEAD / HTTP/1.1\r\nHost: other\r\n\r\n")
    assert (without.status, without.body) == (421, "")
    assert backend.connections == []


def test_what_is_wrong_in_a_body_is_told_too(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """If no answer has begun: the backend, which has a part of the request, is left without its end."""
    backend.behaviour = never_answer
    server = serve()
    with connected(server, good) as client:
        client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        arrived = backend.wait_for_connection()
        arrived.wait_until(lambda: arrived.received.endswith(b"hello\r\n"))
        client.send(b"5 \r\nhello\r\n0\r\n\r\n")
        assert page(client.receive_all())[0] == 400
        arrived.wait_until(lambda: arrived.ended is not None)
        assert not arrived.received.endswith(b"0\r\n\r\n")


def test_a_backend_that_is_down(serve: Serve, good: ssl.SSLContext) -> None:
    """502, as in the other mode."""
    server = serve(f"http://127.0.0.1:{free_port()}")
    assert page(ask(server.address, good, GET))[:2] == (502, "The server behind this one cannot be reached")
    assert server.wait_for("request")["fault"] == "upstream_unreachable"


def test_a_backend_that_does_not_answer(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """504 after `response_timeout`, and the backend's connection is closed."""
    backend.behaviour = never_answer
    server = serve(response_timeout=0.05, timeouts={"linger": 0.2})
    assert page(ask(server.address, good, GET))[:2] == (504, "The server behind this one did not answer in time")
    backend.connections[0].wait_until(lambda: backend.connections[0].ended == "fin")


def test_what_takes_too_long_is_not_asked_for_twice(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext
) -> None:
    """A connection that had served before is not lost by being slow: 504, and the backend has one request to work at."""
    backend.behaviour = script(HELLO, never_answer)
    server = serve(response_timeout=0.05, timeouts={"linger": 0.2})
    with connected(server, good) as client:
        client.send(GET)
        client.receive_exactly(len(HELLO))
        client.send(GET)
        assert client.receive_all().status == 504
    assert len(backend.connections) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"hello\r\n\r\n",
        http1.CONTINUE * 40,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * http1.MAX_HEAD,
    ],
)
def test_a_backend_that_speaks_otherwise(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext, answer: bytes
) -> None:
    """502: what cannot be read in one way only is not passed on."""
    backend.behaviour = reply(answer)
    assert page(ask(serve().address, good, GET))[0] == 502


@pytest.mark.parametrize(
    ("begun", "then"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", "close"),
        (CHUNKED + b"5\r\nhello\r\n", "close"),
        (CHUNKED + b"5\r\nhello\r\n", "garbage"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "reset"),
    ],
)
def test_a_response_that_breaks_off_is_cut(
    serve: Serve, backend: RecordingBackend, good: ssl.SSLContext, begun: bytes, then: str
) -> None:
    """Never patched up, never ended in good order: the client can tell."""
    sent = threading.Event()

    def break_off(connection: BackendConnection) -> None:
        assert sent.wait(PATIENCE)
        if then == "garbage":
            connection.sock.sendall(b"x\r\n")
        elif then == "reset":
            connection.reset()

    backend.behaviour = script(begun, break_off)
    server = serve()
    with connected(server, good) as client:
        client.send(GET)
        data = b""
        while b"hello" not in data:
            data += client.receive()
        sent.set()
        answer = client.receive_all()
        assert answer.ending in ("fin", "reset")
        assert b"0\r\n\r\n" not in answer.data
    assert server.record()["reason"] == "upstream_reset"
    assert server.wait_for("request")["fault"] == "cut"


def test_a_client_that_leaves(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """Before it has its answer: the backend is told at once, and not at the next byte it has to say."""
    backend.behaviour = script(CHUNKED + b"5\r\nhello\r\n", BackendConnection.receive_rest)
    server = serve()
    with connected(server, good) as client:
        client.send(GET)
        client.receive()
        client.reset()
    backend.connections[0].wait_until(lambda: backend.connections[0].ended is not None)
    assert server.record()["reason"] == "client_reset"


def test_a_client_that_breaks_the_session_is_told(serve: Serve, good: ssl.SSLContext) -> None:
    """By OpenSSL's alert, though nothing more is sent to it."""
    with connected(serve(), good) as client:
        client.send(GET)
        assert client.receive_exactly(len(HELLO)) == HELLO
        client.sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert client.receive_all().ending == "alert:bad_record_mac"


def test_an_answer_is_not_lost_with_what_comes_behind_it(
    loop: LoopThread, serve: Serve, backend: RecordingBackend, good: ssl.SSLContext
) -> None:
    """The client ends in the middle of its next request, in the turn in which the answer to the one before has come."""
    answer_now = threading.Event()
    answered = threading.Event()
    backend.behaviour = script(lambda _: assert_set(answer_now), HELLO, lambda _: answered.set(), never_answer)
    server = serve()
    with connected(server, good) as client:
        client.send(GET + b"GET /next")
        backend.wait_for_connection().wait_until(lambda: b"\r\n\r\n" in backend.received)

        def both_in_one_turn() -> None:
            answer_now.set()
            assert_set(answered)
            client.half_close()

        loop.call(both_in_one_turn)
        assert client.receive_all().data == HELLO
    assert server.record()["reason"] == "client_reset"


def test_a_client_that_cannot_be_told_is_left(
    loop: LoopThread, serve: Serve, backend: RecordingBackend, good: ssl.SSLContext
) -> None:
    """Also where it is too far ahead to be read, and the backend says no more."""
    go_on = threading.Event()
    begun = CHUNKED + b"5\r\nhello\r\n"
    backend.behaviour = script(begun, lambda _: assert_set(go_on), b"5\r\nworld\r\n", never_answer)
    server = serve()
    with connected(server, good) as client:
        client.send(GET)
        assert client.receive_exactly(len(begun)) == begun
        client.send(GET * (2 * exchange.MAX_AHEAD // len(GET)))

        async def too_far_ahead() -> None:
            while len(only(server)._exchange._inbox) < exchange.MAX_AHEAD:  # type: ignore[union-attr]
                await asyncio.sleep(0.001)

        loop.run(too_far_ahead())
        client.reset()
        go_on.set()
        assert server.record()["reason"] == "client_reset"


def test_a_client_that_cannot_be_told_is_not_waited_for(
    loop: LoopThread, serve: Serve, backend: RecordingBackend, good: ssl.SSLContext
) -> None:
    """A send may take the socket's error, and a poller of the loop's own tells of no other."""

    class Broken:
        def __init__(self, whole: socket.socket) -> None:
            self.recv_into = whole.recv_into

        def send(self, data: bytes) -> int:
            raise BrokenPipeError

    server = serve()
    with connected(server, good) as client:
        client.send(GET)
        assert client.receive_exactly(len(HELLO)) == HELLO

        def break_it() -> None:
            end = only(server)._exchange._client  # type: ignore[union-attr]
            end.stream = Broken(end.stream)  # type: ignore[arg-type]

        loop.call(break_it)
        client.send(GET)
        assert server.record()["reason"] == "client_reset"


def test_a_client_that_leaves_between_requests(serve: Serve, good: ssl.SSLContext) -> None:
    """Has ended its connection in good order."""
    server = serve()
    with connected(server, good) as client:
        client.send(GET)
        client.receive_exactly(len(HELLO))
        client.close_notify()
        assert client.receive_all().ending == "close_notify"
    assert server.record()["reason"] == "closed"


def test_a_head_takes_no_longer_than_it_may(
    serve: Serve, good: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that drips it is left."""
    monkeypatch.setattr(exchange, "HEAD_PATIENCE", 0.05)
    with connected(serve(timeouts={"linger": 0.2}), good) as client:
        client.send(b"GET / HTTP/1.1\r\n")
        assert client.receive_all() == Answer(b"", "close_notify", "fin")


def test_idle_clients_are_kept(serve: Serve, good: ssl.SSLContext) -> None:
    """As long as `timeouts.idle` says, which the edge's 900 s are far below; then they are told goodbye."""
    server = serve(timeouts={"idle": 0.1})
    with connected(server, good) as client:
        client.send(GET)
        assert client.receive_exactly(len(HELLO)) == HELLO
        assert client.receive_all().ending == "close_notify"
    assert server.record()["reason"] == "idle_timeout"


def test_draining(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """Idle clients are let go at once; a busy one gets its answer, and is told that it is the last."""
    permit = threading.Event()

    def wait(_: BackendConnection) -> None:
        assert permit.wait(PATIENCE)

    backend.behaviour = script(wait, HELLO)
    server = serve()
    with connected(server, good) as idle, connected(server, good) as busy:
        idle.send(GET)
        permit.set()
        idle.receive_exactly(len(HELLO))
        permit.clear()
        busy.send(GET)
        backend.wait_for_connection(2)
        cut: list[int] = []
        draining = threading.Thread(target=lambda: cut.append(server.drain()))
        draining.start()
        assert idle.receive_all().ending == "close_notify"
        permit.set()
        answer = busy.receive_all()
        assert b"Connection: close\r\n" in answer.data
        assert answer.ending == "close_notify"
        draining.join(PATIENCE)
        assert cut == [0]
    for reason in ("drained", "closed"):
        assert server.wait_for("connection", reason=reason)


@pytest.mark.parametrize("then", [POST + b"\r\n", None])
def test_who_was_ended_is_not_heard_any_more(
    loop: LoopThread, serve: Serve, backend: RecordingBackend, good: ssl.SSLContext, then: bytes | None
) -> None:
    """Not even in the turn in which it was ended: after our close_notify no request reaches the backend."""
    server = serve()
    with connected(server, good) as client:
        client.send(GET)
        assert client.receive_exactly(len(HELLO)) == HELLO

        def end() -> None:
            only(server).end(Reason.DRAINED)
            client.send(then) if then else client.half_close()

        loop.call(end)
        assert client.receive_all().ending == "close_notify"
    assert server.record()["reason"] == "drained"
    assert b"POST" not in backend.received


# The health path


def test_health(serve: Serve, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """200 while the backend can be reached, which gets not a byte; the connection serves on."""
    server = serve(health_path="/healthz")
    with connected(server, good) as client:
        for target in (b"/healthz", b"/healthz?x"):
            client.send(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % target)
            assert client.receive() == exchange._HEALTHY + b"ok\n"
        client.send(b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.receive() == exchange._HEALTHY
        assert backend.received == b""
        client.send(GET.replace(b"/ ", b"/healthzz "))
        assert client.receive_exactly(len(HELLO)) == HELLO
        client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.receive() == exchange._HEALTHY + b"ok\n"
    assert b"/healthz " not in backend.received


def test_health_checks_in_a_crowd(loop: LoopThread, serve: Serve, good: ssl.SSLContext) -> None:
    """However many come at once, others have their turn between any two."""
    server = serve(health_path="/health")

    def answered() -> int:
        return sum(server.server.report()["totals"]["requests"].values())

    async def turns() -> int:
        while not answered():
            await asyncio.sleep(0)
        count = 0
        while answered() < 100:
            await asyncio.sleep(0)
            count += 1
        return count

    with connected(server, good) as client:
        counted = asyncio.run_coroutine_threadsafe(turns(), loop.loop)
        client.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        assert counted.result(PATIENCE) >= 90


def test_ill_health(serve: Serve, good: ssl.SSLContext) -> None:
    """503 while the backend is down, and while draining."""
    health = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    down = serve(f"http://127.0.0.1:{free_port()}", health_path="/healthz")
    assert page(ask(down.address, good, health))[:2] == (503, "The server cannot take the request now")
    draining = serve(health_path="/healthz")
    with connected(draining, good) as client:
        client.send(GET[:-2])  # it is in the middle of a request
        draining.loop.call(setattr, draining.server, "is_draining", True)
        client.send(b"\r\n")
        assert b"Connection: close\r\n" in client.receive()
    with connected(draining, good) as client:
        client.send(health)
        assert page(client.receive_all())[0] == 503


# The log


def test_the_line_of_a_request(serve: Serve, good: ssl.SSLContext) -> None:
    """Method, path without its query, status, bytes, times; bounded and escaped; beside the connection's."""
    server = serve()
    with connected(server, good) as client:
        client.send(b"GET /a%22b" + b"x" * 1000 + b"?token=secret HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.receive_exactly(len(HELLO))
    line = server.wait_for("request")
    record = server.record()
    assert list(line) == [
        *("time", "level", "event", "method", "path", "status", "fault", "site", "bytes_from_client"),
        *("bytes_from_upstream", "answered_ms", "duration_ms", "reference", "worker"),
    ]
    assert (line["level"], line["method"], line["status"], line["fault"]) == ("info", "GET", 200, None)
    assert line["path"].startswith("/a%22bxxx")
    assert len(line["path"]) == 256
    assert "secret" not in str(server.log)
    assert line["bytes_from_client"] == record["bytes_from_client"]
    assert line["bytes_from_upstream"] == record["bytes_from_upstream"] == len(HELLO)
    assert 0 <= line["answered_ms"] <= line["duration_ms"]
    assert line["reference"] == record["reference"]


def test_a_dial_that_nobody_waits_for_is_given_up(loop: LoopThread, serve: Serve, good: ssl.SSLContext) -> None:
    """The client is cut while the backend's queue is full: nothing of the dial is left, and nothing is a bug."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        with full(listening):
            server = serve(f"http://127.0.0.1:{listening.getsockname()[1]}")
            before = set(os.listdir("/dev/fd"))
            with connected(server, good) as client:
                client.send(GET)

                async def cut() -> None:
                    while not any("Dialler.dial" in repr(task) for task in asyncio.all_tasks()):
                        await asyncio.sleep(0.001)
                    only(server).end(Reason.DRAIN_TIMEOUT)

                loop.run(cut())
                record = server.record()
            assert record["reason"] == "drain_timeout"
            loop.run(asyncio.sleep(0))  # what was cancelled has ended
            assert set(os.listdir("/dev/fd")) <= before
    assert server.events("internal_error") == []


def test_the_line_of_a_request_comes_first(
    loop: LoopThread, serve: Serve, backend: RecordingBackend, good: ssl.SSLContext
) -> None:
    """Before its connection's, also where both are cut."""
    backend.behaviour = never_answer
    server = serve()
    with connected(server, good) as client:
        client.send(GET)
        backend.wait_for_connection().wait_until(lambda: b"\r\n\r\n" in backend.received)

        loop.call(lambda: only(server).end(Reason.DRAIN_TIMEOUT))
        server.record()
        server.wait_for("request")
    assert [event["event"] for event in server.log.events] == ["request", "connection"]


def test_a_slow_reader_gets_the_last_answer_whole(
    loop: LoopThread, serve: Serve, backend: RecordingBackend, good: ssl.SSLContext
) -> None:
    """What is sent after the turn may find no room, and the connection is not closed before it has gone."""
    large = b"HTTP/1.1 200 OK\r\nContent-Length: 15000\r\n\r\n" + bytes(15000)
    backend.behaviour = reply(large)
    server = serve()
    with connected(server, good) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def narrow() -> None:
            only(server)._client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

        client.send(GET)
        assert client.receive_exactly(len(large)) == large
        loop.call(narrow)
        client.send(GET + GET_AND_CLOSE)
        answer = client.receive_all()
    assert (answer.data.count(b"HTTP/1.1 200 OK\r\n"), answer.ending) == (2, "close_notify")
    assert answer.data.endswith(b"Connection: close\r\n\r\n" + bytes(15000))
