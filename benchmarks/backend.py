"""The backend that every contender forwards to: NGINX with static files, and a sink that swallows uploads.

Four loopback ports: `files` (kept connections), `closing` (closes after each response), `sink`, and through `files`
also /upload, which streams into the sink. The sink discards in the kernel (MSG_TRUNC), so that an upload
costs the load's core next to nothing, and answers only when the whole body has arrived. Beside these, servers of
Python applications that answer with the small file, each when it is asked for.
"""

import contextlib
import hashlib
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL = b"a small static file, as small as the answers of many programs\n" * 2
MEDIUM_BYTES = 16 * 1024

CONFIGURATION = """
worker_processes 1;
daemon off;
{user}
pid {directory}/backend.pid;
error_log {directory}/backend.log warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    sendfile on;
    sendfile_max_chunk 256k;   # a bulk transfer must not make a small request wait
    tcp_nopush on;
    open_file_cache max=16;
    keepalive_requests 100000000;
    keepalive_timeout 1h;
    client_max_body_size 0;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    root {directory}/files;
    server {{
        listen 127.0.0.1:{files} backlog=4096;
        location /upload {{
            proxy_pass http://127.0.0.1:{sink};
            proxy_http_version 1.1;
            proxy_request_buffering off;
            client_body_buffer_size 256k;
        }}
    }}
    server {{ listen 127.0.0.1:{closing} backlog=4096; keepalive_timeout 0; }}
}}
"""


PYTHON = {
    "gunicorn": ["--worker-class", "gthread", "--threads", "8", "--keep-alive", "60", "--log-level", "error"],
    "uvicorn": ["--no-access-log", "--log-level", "error"],
}
"""How the servers of Python applications are started, but for where they listen and what they serve."""
_PLACE = {
    "gunicorn": ["--bind", "127.0.0.1:{port}", "benchmarks.backend:wsgi"],
    "uvicorn": ["--host", "127.0.0.1", "--port", "{port}", "benchmarks.backend:asgi"],
}
_HEADERS = [("Content-Type", "text/plain"), ("Content-Length", str(len(SMALL)))]


@dataclass(frozen=True)
class Backend:
    """The ports of the running backend, and what its bulk file is."""

    files: int
    closing: int
    sink: int
    bulk_digest: bytes


def free_port() -> int:
    """A loopback port that nobody uses now, below those that the kernel gives to outgoing connections by itself."""
    while True:
        port = random.randrange(10000, 30000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def serve(directory: Path, bulk_bytes: int) -> Iterator[Backend]:
    """Run the backend (on the caller's cores) with its files below `directory`."""
    (directory / "files").mkdir()
    (directory / "files" / "small").write_bytes(SMALL)
    (directory / "files" / "medium").write_bytes(os.urandom(MEDIUM_BYTES))
    bulk = os.urandom(1 << 20) * (bulk_bytes >> 20)
    (directory / "files" / "bulk").write_bytes(bulk)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    backend = Backend(
        files=free_port(),
        closing=free_port(),
        sink=listener.getsockname()[1],
        bulk_digest=hashlib.sha256(bulk).digest(),
    )
    configuration = directory / "backend.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # root's temporary directory is closed to other users
    configuration.write_text(CONFIGURATION.format(directory=directory, user=user, **vars(backend)))
    sink = multiprocessing.get_context("spawn").Process(target=_swallow, args=(listener,), daemon=True)
    sink.start()
    nginx = subprocess.Popen(["nginx", "-e", "stderr", "-c", str(configuration)], stdin=subprocess.DEVNULL)
    try:
        yield backend
    finally:
        nginx.terminate()
        nginx.wait()
        sink.terminate()
        sink.join()
        listener.close()


@contextlib.contextmanager
def serve_python(name: str) -> Iterator[int]:
    """Run one of `PYTHON` (on the caller's cores); its port. It may not answer yet."""
    port = free_port()
    place = [word.format(port=port) for word in _PLACE[name]]
    server = subprocess.Popen(
        [sys.executable, "-m", name, *PYTHON[name], *place],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        server.terminate()
        server.wait()


def wsgi(_environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    """What gunicorn serves."""
    start_response("200 OK", _HEADERS)
    return [SMALL]


async def asgi(scope: dict[str, Any], _receive: object, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    """What uvicorn serves."""
    if scope["type"] == "http":
        headers = [(name.lower().encode(), value.encode()) for name, value in _HEADERS]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": SMALL})


def _swallow(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_swallow_uploads, args=(connection,), daemon=True).start()


def _swallow_uploads(connection: socket.socket) -> None:
    """Answer each PUT on one connection once its body is complete."""
    scratch = bytearray(1 << 20)
    with connection, contextlib.suppress(ConnectionError):
        while True:
            head = b""
            while b"\r\n\r\n" not in head:
                received = connection.recv(65536)
                if not received:
                    return
                head += received
            head, _, body = head.partition(b"\r\n\r\n")
            length = head.lower().partition(b"\r\ncontent-length:")[2].split()
            left = int(length[0]) - len(body) if length else 0
            while left:
                discarded = connection.recv_into(scratch, min(left, len(scratch)), socket.MSG_TRUNC)
                if not discarded:
                    return
                left -= discarded
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
