"""What the real backends serve: one WSGI, one ASGI and one Flask application with the same routes, and a WebSocket echo.

`/hello` six bytes; `/digest` the length and SHA-256 of the body sent; `/stream/N` the first N bytes of `blocks`;
`/events?gate=PATH` Server-Sent Events, each after the first only once the test has written a byte to the unix socket at
PATH; `/echo` WebSocket. Run by name (`gunicorn applications:wsgi`), as a script it is the `websockets` server.
"""

import asyncio
import hashlib
import random
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

import flask
from websockets.asyncio.server import ServerConnection, serve, unix_serve

BLOCK = 1 << 20
PATTERN = random.Random(2).randbytes(BLOCK - 8)
EVENTS = 5


def blocks(size: int) -> Iterator[bytes]:
    """A stream of `size` bytes in pieces of 1 MiB, each different from every other, at the price of a copy."""
    for number in range(size // BLOCK):
        yield number.to_bytes(8) + PATTERN
    if size % BLOCK:
        yield ((size // BLOCK).to_bytes(8) + PATTERN)[: size % BLOCK]


def summary(pieces: Iterable[bytes]) -> bytes:
    """The length and SHA-256 of a body, as `/digest` answers them."""
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    return f"{size} {digest.hexdigest()}\n".encode()


def event(number: int) -> bytes:
    """One Server-Sent Event."""
    return f"data: {number}\n\n".encode()


def gated_events(gate: str) -> Iterator[bytes]:
    """Events that never run ahead of their reader: each waits for a byte that says the one before has arrived."""
    with socket.socket(socket.AF_UNIX) as permits:
        permits.settimeout(10)
        permits.connect(gate)
        for number in range(EVENTS):
            yield event(number)
            permits.recv(1)


def wsgi(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    """The application of gunicorn and waitress."""
    kind = "text/plain"
    length: int | None = None
    body: Iterator[bytes] = iter(())
    match environ["PATH_INFO"].split("/")[1:]:
        case ["hello"]:
            length, body = 6, iter([b"hello\n"])
        case ["digest"]:
            answer = summary(iter(lambda: environ["wsgi.input"].read(1 << 16), b""))
            length, body = len(answer), iter([answer])
        case ["stream", size]:
            kind, length, body = "application/octet-stream", int(size), blocks(int(size))
        case ["events"]:
            kind, body = "text/event-stream", gated_events(parse_qs(environ["QUERY_STRING"])["gate"][0])
    headers = [("Content-Type", kind)]
    if length is not None:
        headers.append(("Content-Length", str(length)))
    start_response("200 OK", headers)
    return body if environ["REQUEST_METHOD"] != "HEAD" else []


Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def asgi(scope: Message, receive: Receive, send: Send) -> None:
    """The application of uvicorn and hypercorn."""
    match scope["type"], scope.get("path", "").split("/")[1:]:
        case "websocket", ["echo"]:
            await asgi_echo(receive, send)
        case "http", ["hello"]:
            await asgi_answer(send, "text/plain", 6, one(b"hello\n"))
        case "http", ["digest"]:
            answer = summary([piece async for piece in asgi_body(receive)])
            await asgi_answer(send, "text/plain", len(answer), one(answer))
        case "http", ["stream", size]:
            await asgi_answer(send, "application/octet-stream", int(size), asgi_stream(int(size)))
        case "http", ["events"]:
            gate = parse_qs(scope["query_string"].decode())["gate"][0]
            await asgi_answer(send, "text/event-stream", None, asgi_gated_events(gate))
        case "lifespan", _:
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": message["type"] + ".complete"})
            await send({"type": "lifespan.shutdown.complete"})


async def asgi_answer(send: Send, kind: str, length: int | None, body: AsyncIterator[bytes]) -> None:
    headers = [(b"content-type", kind.encode())]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async for piece in body:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def asgi_body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def asgi_echo(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "websocket.send", "bytes": message.get("bytes"), "text": message.get("text")})


async def one(piece: bytes) -> AsyncIterator[bytes]:
    yield piece


async def asgi_stream(size: int) -> AsyncIterator[bytes]:
    for block in blocks(size):
        yield block


async def asgi_gated_events(gate: str) -> AsyncIterator[bytes]:
    reader, writer = await asyncio.open_unix_connection(gate)
    for number in range(EVENTS):
        yield event(number)
        await asyncio.wait_for(reader.read(1), 10)
    writer.close()


flask_application = flask.Flask(__name__)


@flask_application.get("/hello")
def flask_hello() -> flask.Response:
    return flask.Response("hello\n", mimetype="text/plain")


@flask_application.post("/digest")
def flask_digest() -> flask.Response:
    return flask.Response(summary(iter(lambda: flask.request.stream.read(1 << 16), b"")), mimetype="text/plain")


@flask_application.get("/stream/<int:size>")
def flask_stream(size: int) -> flask.Response:
    return flask.Response(blocks(size), headers={"Content-Length": str(size)})


@flask_application.get("/events")
def flask_events() -> flask.Response:
    return flask.Response(gated_events(flask.request.args["gate"]), mimetype="text/event-stream")


async def websocket_echo(address: str) -> None:
    """The `websockets` library's own server on `HOST:PORT` or on the path of a unix socket."""

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    host, colon, port = address.rpartition(":")
    server = serve(echo, host, int(port), max_size=None) if colon else unix_serve(echo, address, max_size=None)
    async with server as listening:
        await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(websocket_echo(sys.argv[1]))
