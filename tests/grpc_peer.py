"""A gRPC service and a client of it, as programs of their own: `serve`, or `call ADDRESS CA [CERTIFICATE KEY]`.

Bytes are messages as they stand: no generated code. What is said is JSON on stdout, one line. A program of its own, since
gRPC's threads and its handlers of fork must not live in the tests' process.
"""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import grpc  # type: ignore[import-untyped]

PATIENCE = 10.0
LARGE = bytes(range(256)) * 4096  # 1 MiB, far beyond a window of HTTP/2
MESSAGES = [b"one", b"two", b"three"]
SERVICE = "echo.Echo"


def _shout(message: bytes, context: Any) -> bytes:
    context.set_trailing_metadata((("seen", str(len(message))),))
    return message.upper()


def _count(message: bytes, _context: Any) -> Iterator[bytes]:
    for number in range(int(message)):
        yield str(number).encode()


def _join(messages: Iterator[bytes], _context: Any) -> bytes:
    return b"".join(messages)


def _answer_each(messages: Iterator[bytes], _context: Any) -> Iterator[bytes]:
    for message in messages:
        yield message.upper()


def _fail(_message: bytes, context: Any) -> bytes:
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")
    raise AssertionError("abort raises")


def serve() -> None:
    """Serve on a port of its own until the end of stdin."""
    handlers = {
        "Shout": grpc.unary_unary_rpc_method_handler(_shout),
        "Count": grpc.unary_stream_rpc_method_handler(_count),
        "Join": grpc.stream_unary_rpc_method_handler(_join),
        "AnswerEach": grpc.stream_stream_rpc_method_handler(_answer_each),
        "Fail": grpc.unary_unary_rpc_method_handler(_fail),
    }
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(json.dumps({"port": port}), flush=True)
    sys.stdin.read()
    server.stop(None).wait(PATIENCE)


def _conversation(channel: Any) -> dict[str, Any]:
    """Each kind of call; the stream both ways sends its next message only when it has read the last one's answer."""
    said: dict[str, Any] = {}
    reply, call = channel.unary_unary(f"/{SERVICE}/Shout").with_call(LARGE, timeout=PATIENCE)
    said["unary"] = [reply == LARGE.upper(), dict(call.trailing_metadata())["seen"]]
    counted = channel.unary_stream(f"/{SERVICE}/Count")(b"1000", timeout=PATIENCE)
    said["server streaming"] = [reply.decode() for reply in counted] == [str(number) for number in range(1000)]
    joined = channel.stream_unary(f"/{SERVICE}/Join")(iter([LARGE] * 3), timeout=PATIENCE)
    said["client streaming"] = joined == LARGE * 3
    answers: list[str] = []

    sending: Queue[bytes | None] = Queue()
    replies = channel.stream_stream(f"/{SERVICE}/AnswerEach")(iter(sending.get, None), timeout=PATIENCE)
    for message in MESSAGES:
        sending.put(message)
        answers.append(next(replies).decode())
    sending.put(None)
    said["both ways"] = [*answers, *(reply.decode() for reply in replies)]
    try:
        channel.unary_unary(f"/{SERVICE}/Fail")(b"", timeout=PATIENCE)
    except grpc.RpcError as error:
        said["status"] = [error.code().name, error.details()]
    return said


def call(address: str, ca: str, certificate: str | None = None, key: str | None = None) -> None:
    """Call every method, or say how the first call failed."""
    own = [Path(path).read_bytes() for path in (key, certificate) if path]
    credentials = grpc.ssl_channel_credentials(Path(ca).read_bytes(), *own)
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.enable_retries", 0)]
    with grpc.secure_channel(address, credentials, options) as channel:
        try:
            said = _conversation(channel)
        except grpc.RpcError as error:
            said = {"error": error.code().name, "details": error.details()}
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        call(*sys.argv[2:])
