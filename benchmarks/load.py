"""The load: `ab` for what it can do, raw sockets and `ssl` for the rest. Nothing here resumes a session.

So that the load is never the limit, bulk data is not worked on while it is measured: an upload is sealed before the
clock starts, a download is discarded in the kernel (MSG_TRUNC). That all of it arrives is checked before, decrypted.
"""

import contextlib
import multiprocessing
import os
import random
import re
import select
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from benchmarks.keys import Keys

TIMEOUT_SECONDS = 30.0
CHUNK = 1 << 20
PACED_CHUNK = 1 << 17
BULK_REQUEST = b"GET /bulk HTTP/1.1\r\nHost: origin.example\r\nConnection: close\r\n\r\n"
SMALL_REQUEST = b"GET /small HTTP/1.1\r\nHost: origin.example\r\n\r\n"


class LoadError(Exception):
    """A contender did not answer as it must."""


def contexts(keys: Keys) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The client's context with its certificate, and a stranger's, who has none."""
    known, stranger = (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) for _ in range(2))
    for context in known, stranger:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # what the client thinks of the server is not what is measured
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    known.load_cert_chain(keys.client_both)
    return known, stranger


# ab


@dataclass(frozen=True)
class AbResult:
    """What `ab` counted."""

    seconds: float
    per_second: float
    refused: int
    p50_ms: float
    p99_ms: float


def run_ab(port: int, requests: int, concurrency: int, keys: Keys | None, *, keep: bool = False) -> AbResult:
    """GET /small `requests` times; without `keys` as a stranger."""
    with tempfile.NamedTemporaryFile("r", suffix=".csv") as percentiles:
        command = ["ab", "-q", "-S", "-n", str(requests), "-c", str(min(concurrency, requests)), "-e", percentiles.name]
        command += ["-k"] if keep else []
        command += ["-E", str(keys.client_both)] if keys else []
        command += ["-f", "TLS1.3", f"https://127.0.0.1:{port}/small"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        served = dict(line.split(",", 1) for line in percentiles.read().splitlines())
    if done.returncode:
        raise LoadError(
            f"{' '.join(command)} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-200:]}"
        )
    result = AbResult(
        seconds=_number("Time taken for tests", done.stdout),
        per_second=_number("Requests per second", done.stdout),
        refused=int(_number("Non-2xx responses", done.stdout)),
        p50_ms=float(served["50"]),
        p99_ms=float(served["99"]),
    )
    completed = _number("Complete requests", done.stdout)
    failed = _number("Failed requests", done.stdout)
    if keys and (completed != requests or failed or result.refused):
        raise LoadError(f"ab: {completed:.0f} of {requests} requests, {failed:.0f} failed, {result.refused} not 200")
    return result


def _number(label: str, report: str) -> float:
    found = re.search(rf"^{label}:\s+([\d.]+)", report, re.MULTILINE)
    return float(found[1]) if found else 0.0


# one connection


class Client:
    """One TLS connection as the edge makes it: a socket, and an SSLObject over two memory BIOs."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.received = 0  # sealed bytes
        self.tls = context.wrap_bio(self.incoming, self.outgoing)
        try:
            self._step(self.tls.do_handshake)
        except BaseException:
            self.socket.close()
            raise

    def send(self, data: bytes) -> None:
        """Send all of `data`."""
        self.tls.write(data)
        self.socket.sendall(self.outgoing.read())

    def receive(self) -> bytes:
        """Some plaintext; b"" at the end, however the peer ended."""
        try:
            return bytes(self._step(lambda: self.tls.read(CHUNK)))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def response(self) -> tuple[int, bytes]:
        """Status and body of one response that has a Content-Length, or that the end of the stream ends."""
        received = bytearray()
        while b"\r\n\r\n" not in received:
            data = self.receive()
            if not data:
                raise LoadError("the connection ended before the response")
            received += data
        head, _, rest = received.partition(b"\r\n\r\n")
        length = re.search(rb"\ncontent-length: *(\d+)", head, re.IGNORECASE)
        body = bytearray(rest)
        while length is None or len(body) < int(length[1]):
            data = self.receive()
            if not data and length:
                raise LoadError(f"the connection ended after {len(body)} of {int(length[1])} bytes")
            if not data:
                break
            body += data
        return int(head.split(None, 2)[1]), bytes(body)

    def get(self, path: str) -> tuple[int, bytes]:
        """One request on the kept connection."""
        self.send(f"GET {path} HTTP/1.1\r\nHost: origin.example\r\n\r\n".encode())
        return self.response()

    def _step(self, operation: Callable[[], Any]) -> Any:
        """Run `operation` and move bytes until it has what it needs."""
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                if self.outgoing.pending:
                    self.socket.sendall(self.outgoing.read())
                data = self.socket.recv(CHUNK)
                self.received += len(data)
                if data:
                    self.incoming.write(data)
                else:
                    self.incoming.write_eof()
                continue
            if self.outgoing.pending:
                self.socket.sendall(self.outgoing.read())
            return result

    def close(self) -> None:
        """Close without a word: what is measured is over."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask_as_stranger(port: int, context: ssl.SSLContext) -> int | None:
    """The status of the page that a client without a certificate gets, or None if it gets an alert."""
    try:
        with Client(port, context) as client:
            return client.get("/small")[0]
    except (ssl.SSLError, ConnectionError):
        return None


# bulk


def discard_download(client: Client, expected: int) -> None:
    """Ask for the bulk file and throw the sealed answer away up to the end of the connection."""
    client.send(BULK_REQUEST)
    scratch, received = bytearray(CHUNK), 0
    while discarded := client.socket.recv_into(scratch, CHUNK, socket.MSG_TRUNC):
        received += discarded
    if not expected < received < expected * 1.05:  # its records' headers and tags, nothing else
        raise LoadError(f"{received} sealed bytes arrived of a file of {expected}")


def sealed_upload(client: Client, length: int) -> bytes:
    """The sealed bytes of one PUT, ready to be sent on this connection and no other."""
    head = f"PUT /upload HTTP/1.1\r\nHost: origin.example\r\nContent-Length: {length}\r\n\r\n"
    client.tls.write(head.encode())
    block = random.randbytes(CHUNK)
    for _ in range(length // CHUNK):
        client.tls.write(block)
    return client.outgoing.read()


# latency


@dataclass
class Lane:
    """A kept connection whose requests were sealed before the clock started and whose answers are discarded."""

    socket: socket.socket
    requests: deque[bytes]
    answer_bytes: int
    missing: int = 0
    since: float = 0.0


def lanes(port: int, context: ssl.SSLContext | None, count: int, requests: int) -> list[Lane]:
    """`count` kept connections, ready for `requests` small requests in all; without a context in clear."""
    each = requests * 3 // 2 // count + 100  # those that answer faster are asked more often
    return [_lane(port, context, each) for _ in range(count)]


def _lane(port: int, context: ssl.SSLContext | None, requests: int) -> Lane:
    if context is None:
        plain = socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.sendall(SMALL_REQUEST)
        return Lane(plain, deque([SMALL_REQUEST] * requests), len(plain.recv(CHUNK)))
    client = Client(port, context)
    client.get("/small")  # with the first answer session tickets may come
    before = client.received
    client.get("/small")
    sealed: deque[bytes] = deque()
    for _ in range(requests):
        client.tls.write(SMALL_REQUEST)
        sealed.append(client.outgoing.read())
    return Lane(client.socket, sealed, client.received - before)


def paced_latencies(kept: list[Lane], per_second: float, seconds: float) -> list[float]:
    """Send small requests at a steady pace over kept connections that are free; seconds that each took.

    A request counts from when it was due if no connection was free then (the contender held them), else from when it
    was sent (a late start is this loop's doing).
    """
    latencies: list[float] = []
    free, busy = deque(kept), dict[int, Lane]()
    scratch = bytearray(65536)
    clock = time.perf_counter
    due = start = starved_until = clock()
    while True:
        now = clock()
        while due <= now and free and due < start + seconds:
            lane = free.popleft()
            lane.since = due if due < starved_until else now
            lane.missing = lane.answer_bytes
            lane.socket.send(lane.requests.popleft())
            busy[lane.socket.fileno()] = lane
            due += 1 / per_second
        if not busy and due >= start + seconds:
            return latencies
        wait = max(due - clock(), 0) if free else TIMEOUT_SECONDS
        ready, _, _ = select.select(busy, (), (), wait)
        if not ready and wait == TIMEOUT_SECONDS:
            raise LoadError("a small request got no answer")
        now = clock()
        for descriptor in ready:
            lane = busy[descriptor]
            received = lane.socket.recv_into(scratch, 65536, socket.MSG_TRUNC)
            if not received:
                raise LoadError("a kept connection was closed")
            lane.missing -= received
            if lane.missing <= 0:
                latencies.append(now - lane.since)
                starved_until = starved_until if free else now
                free.append(busy.pop(descriptor))


def percentile(values: list[float], percent: float) -> float:
    """The nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


# in the background


@dataclass(frozen=True)
class Crowd:
    """Strangers who come to be refused, and bulk downloads that each take their time."""

    strangers_per_second: float
    downloads: int
    bytes_per_second: float


@contextlib.contextmanager
def crowded(port: int, keys: Keys, crowd: Crowd) -> Iterator[Callable[[], tuple[int, int]]]:
    """Have the crowd there while the context lasts; yields what counts refused strangers and downloaded bytes."""
    spawn = multiprocessing.get_context("spawn")
    strangers, downloaded = spawn.Value("q", 0), spawn.Value("q", 0)
    process = spawn.Process(target=_crowd, args=(port, keys, crowd, strangers, downloaded), daemon=True)
    process.start()
    try:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not (strangers.value and downloaded.value):
            if not process.is_alive() or time.monotonic() > deadline:
                raise LoadError("strangers and downloads did not start")
            time.sleep(0.01)
        yield lambda: (strangers.value, downloaded.value)
    finally:
        process.kill()
        process.join()


def _crowd(port: int, keys: Keys, crowd: Crowd, strangers: Any, downloaded: Any) -> None:
    os.nice(19)  # who measures goes first on the core they share
    known, stranger = contexts(keys)

    def come_and_go() -> None:
        due = time.monotonic()
        while True:
            ask_as_stranger(port, stranger)
            strangers.value += 1
            due += 1 / crowd.strangers_per_second
            time.sleep(max(due - time.monotonic(), 0))

    def download() -> None:
        scratch = bytearray(CHUNK)
        while True:
            with Client(port, known) as client:
                client.send(BULK_REQUEST)
                due = time.monotonic()
                while received := client.socket.recv_into(scratch, PACED_CHUNK, socket.MSG_TRUNC):
                    with downloaded.get_lock():
                        downloaded.value += received
                    due += received / crowd.bytes_per_second
                    time.sleep(max(due - time.monotonic(), 0))

    for target in (come_and_go, *[download] * crowd.downloads):
        threading.Thread(target=target).start()
