"""Every common way to serve a Python application works behind the proxy as it does without it, in both modes.

One proxy per mode and one backend process per backend. Where requests are read, a backend that closes after every
response can do what it cannot by itself: the client's connection is kept all the same. A cell that a backend cannot do by itself is named in `LEFT_OUT` with the
reason, and is tried without the proxy: an entry that is no longer true fails.
"""

import asyncio
import hashlib
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from email.message import Message
from http.client import parse_headers
from itertools import chain
from pathlib import Path
from typing import Self

import pytest
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import WebSocketException

import backends
from actors import PATIENCE, Proxy, client_context
from applications import EVENTS, blocks, event, summary
from backends import STATIC_STREAM, Backend
from certificates import CredentialFiles

LARGE = b"".join(blocks(16_000_001))


SERVER_NAME = "origin.example"


@dataclass(frozen=True)
class Origin:
    """What a check talks to: a backend, through the proxy (with TLS) or without it."""

    backend: Backend
    dial: Callable[[], socket.socket]
    tls: ssl.SSLContext | None
    upload_method: str
    left_out: frozenset["Check"]

    def converse(self) -> "Conversation":
        connection = self.dial()
        if self.tls is not None:
            connection = self.tls.wrap_socket(connection, server_hostname=SERVER_NAME, suppress_ragged_eofs=False)
        return Conversation(connection)

    def without_proxy(self) -> "Origin":
        return replace(self, dial=lambda: self.backend.connect(timeout=1), tls=None)


@dataclass(frozen=True)
class Response:
    status: int
    headers: Message
    body: bytes


class Conversation:
    """One connection, HTTP/1.1 or 1.0, read no further than each response goes."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.reader = connection.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.close()
        self.connection.close()

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.connection.sendall(piece)

    def head(self) -> tuple[int, Message]:
        """Status and headers of the next response."""
        version, _, rest = self.reader.readline().partition(b" ")
        assert version in (b"HTTP/1.1", b"HTTP/1.0")
        return int(rest.split()[0]), parse_headers(self.reader)

    def response(self, *, body: bool = True) -> Response:
        status = 100
        while status == 100:  # Flask sends two of them
            status, headers = self.head()
        content = b"".join(self.body(headers)) if body and status != 204 else b""
        return Response(status, headers, content)

    def body(self, headers: Message) -> Iterator[bytes]:
        """The body piece by piece, as soon as each has arrived."""
        if headers["Transfer-Encoding"] == "chunked":
            while size := int(self.reader.readline(), 16):
                yield self.reader.read(size)
                assert self.reader.readline() == b"\r\n"
            assert self.reader.readline() == b"\r\n"
        elif (length := headers["Content-Length"]) is not None:
            yield self.reader.read(int(length))
        else:
            while piece := self.reader.read1():
                yield piece

    def ended(self) -> bool:
        """The other side has ended the connection, over TLS with close_notify."""
        return self.reader.read(1) == b""


def request(method: str, path: str, *fields: str, version: str = "1.1") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/{version}", f"Host: {SERVER_NAME}", *fields, "", "")).encode()


def assert_digest(origin: Origin, response: Response, body: bytes) -> None:
    """The backend has received this body: it says so, or it has stored it."""
    if origin.upload_method == "PUT":
        assert response.status in (201, 204)
        stored = (origin.backend.directory / "files" / "digest").read_bytes()
        assert hashlib.sha256(stored).hexdigest() == hashlib.sha256(body).hexdigest()
    else:
        assert (response.status, response.body) == (200, summary([body]))


def get(origin: Origin) -> None:
    with origin.converse() as client:
        client.send(request("GET", "/hello"))
        response = client.response()
        assert (response.status, response.body) == (200, b"hello\n")


def head(origin: Origin) -> None:
    with origin.converse() as client:
        client.send(request("HEAD", "/hello", "Connection: close"))
        response = client.response(body=False)
        assert (response.status, response.headers["Content-Length"]) == (200, "6")
        assert client.ended()


def download(origin: Origin) -> None:
    with origin.converse() as client:
        client.send(request("GET", f"/stream/{STATIC_STREAM}"))
        assert summary([client.response().body]) == summary(blocks(STATIC_STREAM))


def large_post(origin: Origin) -> None:
    with origin.converse() as client:
        client.send(request(origin.upload_method, "/digest", f"Content-Length: {len(LARGE)}"), LARGE)
        assert_digest(origin, client.response(), LARGE)


def chunked_upload(origin: Origin) -> None:
    chop, body = random.Random(4), LARGE[:1_000_001]
    with origin.converse() as client:
        client.send(request(origin.upload_method, "/digest", "Transfer-Encoding: chunked"))
        position = 0
        while chunk := body[position : position + chop.randint(1, 60_000)]:
            client.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            position += len(chunk)
        client.send(b"0\r\n\r\n")
        assert_digest(origin, client.response(), body)


def expect_100_continue(origin: Origin) -> None:
    body = LARGE[:70_000]
    with origin.converse() as client:
        client.send(request(origin.upload_method, "/digest", "Expect: 100-continue", f"Content-Length: {len(body)}"))
        assert client.head()[0] == 100
        client.send(body)
        assert_digest(origin, client.response(), body)


def pipelining(origin: Origin) -> None:
    with origin.converse() as client:
        client.send(request("GET", "/hello") + request("GET", f"/stream/{STATIC_STREAM}"))
        assert client.response().body == b"hello\n"
        assert summary([client.response().body]) == summary(blocks(STATIC_STREAM))


def http_1_0(origin: Origin) -> None:
    with origin.converse() as client:
        client.send(request("GET", "/hello", version="1.0"))
        response = client.response()
        assert (response.status, response.body) == (200, b"hello\n")
        assert client.ended()


def keep_alive(origin: Origin) -> None:
    with origin.converse() as client:
        for _ in range(100):
            client.send(request("GET", "/hello"))
            assert client.response().body == b"hello\n"


def server_sent_events(origin: Origin) -> None:
    """Each event is read before the backend is allowed to make the next."""
    gate = origin.backend.directory / "gate"
    gate.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, origin.converse() as client:
        listener.bind(str(gate))
        listener.listen()
        listener.settimeout(2)
        client.send(request("GET", f"/events?gate={gate}"))
        status, headers = client.head()
        assert (status, headers.get_content_type()) == (200, "text/event-stream")
        events = client.body(headers)
        permits, _ = listener.accept()
        with permits:
            for number in range(EVENTS):
                assert next(events) == event(number)
                permits.send(b".")


def websocket(origin: Origin) -> None:
    binary, text = LARGE[: 10 << 20], "é" * (5 << 20)

    async def echo() -> None:
        async with connect_websocket(
            f"{'wss' if origin.tls else 'ws'}://{SERVER_NAME}/echo",
            sock=origin.dial(),
            ssl=origin.tls,
            max_size=None,
            open_timeout=5,
        ) as client:
            for message in (binary, text, b"", "short"):
                await client.send(message)
                assert await client.recv() == message

    asyncio.run(echo())


Check = Callable[[Origin], None]
CHECKS: tuple[Check, ...] = (
    get,
    head,
    download,
    large_post,
    chunked_upload,
    expect_100_continue,
    pipelining,
    http_1_0,
    keep_alive,
    server_sent_events,
    websocket,
)

Starter = Callable[[Path, bool], AbstractContextManager[Backend]]
ON_TCP_AND_UNIX: tuple[Starter, ...] = (
    backends.gunicorn_sync,
    backends.gunicorn_gthread,
    backends.uvicorn,
    backends.hypercorn,
    backends.waitress,
    backends.flask_run,
    backends.nginx,
    backends.websockets_server,
)
ON_TCP: tuple[Starter, ...] = (backends.django_runserver, backends.http_server)
BACKENDS = [(start, unix) for start in ON_TCP_AND_UNIX for unix in (False, True)] + [(start, False) for start in ON_TCP]

CLOSES = "closes after every response"
LEFT_OUT: dict[Starter, dict[str, tuple[Check, ...]]] = {
    backends.gunicorn_sync: {
        CLOSES: (pipelining, keep_alive),
        "WSGI has no WebSocket": (websocket,),
    },
    backends.gunicorn_gthread: {"WSGI has no WebSocket": (websocket,)},
    backends.waitress: {"WSGI has no WebSocket": (websocket,)},
    backends.django_runserver: {
        "wsgiref does not read chunked bodies": (chunked_upload,),
        "WSGI has no WebSocket": (websocket,),
    },
    backends.flask_run: {
        CLOSES: (pipelining, keep_alive),
        "WSGI has no WebSocket": (websocket,),
    },
    backends.nginx: {"runs no application": (server_sent_events, websocket)},
    backends.http_server: {
        "has no method with a body": (large_post, chunked_upload, expect_100_continue),
        "runs no application": (server_sent_events, websocket),
    },
    backends.websockets_server: {
        "speaks nothing but WebSocket": tuple(check for check in CHECKS if check is not websocket),
    },
}


def backend_id(backend: tuple[Starter, bool]) -> str:
    start, unix = backend
    return start.__name__ + ("_unix" if unix else "")


@pytest.fixture(scope="module")
def flags(server_credentials: CredentialFiles, client_ca: Path) -> list[str | Path]:
    """The flags of the proxy, but for the backend."""
    certificate, private_key = server_credentials.certificate, server_credentials.private_key
    files: list[str | Path] = ["--certificate", certificate, "--private-key", private_key, "--client-ca", client_ca]
    return [*files, "--workers", "1", "--log-format", "json"]


@pytest.fixture(scope="module")
def tls(client_credentials: CredentialFiles, server_ca: Path) -> ssl.SSLContext:
    """A client that may pass and checks whom it talks to."""
    return client_context(client_credentials, ca=server_ca)


@pytest.fixture(scope="module", params=BACKENDS, ids=backend_id)
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Starter, Backend]]:
    """A backend, and what it is."""
    start, unix = request.param
    with start(tmp_path_factory.mktemp("backend"), unix) as running:
        yield start, running


@pytest.fixture(scope="module", params=["relay", "http"])
def origin(
    request: pytest.FixtureRequest, backend: tuple[Starter, Backend], flags: list[str | Path], tls: ssl.SSLContext
) -> Iterator[Origin]:
    """A backend with the proxy in front."""
    start, running = backend
    left_out = LEFT_OUT.get(start, {})
    with Proxy(flags=[*flags, "--mode", request.param, "--upstream", running.url]) as proxy:
        yield Origin(
            running,
            dial=lambda: socket.create_connection(proxy.address, PATIENCE),
            tls=tls,
            upload_method="PUT" if start is backends.nginx else "POST",
            left_out=frozenset(
                chain(*(checks for why, checks in left_out.items() if (why, request.param) != (CLOSES, "http")))
            ),
        )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_backend_works_behind_the_proxy(origin: Origin, check: Check) -> None:
    """What a backend can do, it can do behind the proxy; what is left out, it cannot do without the proxy either."""
    if check in origin.left_out:
        with pytest.raises((AssertionError, OSError, ValueError, LookupError, WebSocketException)):
            check(origin.without_proxy())
    else:
        check(origin)
