"""Whatever goes wrong around it, the proxy serves the next good client, gives back what it held, and says why.

Other files hold what is not here: half a handshake and its end (`test_the_gate_holds_against_hostile_handshakes`), resets
and ends on both sides, backends that are down or silent (`test_half_close_and_reset_pass`), peers that do not read
(`test_back_pressure_bounds_memory`), ports that are taken and parents that are killed (`test_workers`), log lines that
nobody takes (`test_log`).
"""

import contextlib
import itertools
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from actors import (
    GET,
    GET_AND_CLOSE,
    HELLO,
    ONE_WORKER,
    PATIENCE,
    BackendConnection,
    Behaviour,
    Proxy,
    RecordingBackend,
    TlsClient,
    ask,
    client_context,
    close_at_once,
    free_port,
    missing_peer,
    never_answer,
    reset_after_request,
    wait_for_port,
)
from certificates import DAY, Authority, CredentialFiles
from processes import open_descriptors
from states import STATES, Place

Config = dict[str, Any]
CROWD = 2000
SECOND = timedelta(seconds=1)
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc to look at other processes with")
pytestmark = needs_proc


@pytest.fixture
def good(client_credentials: CredentialFiles) -> ssl.SSLContext:
    return client_context(client_credentials)


def eventually(satisfied: Callable[[], bool]) -> bool:
    """Whether it comes true before the deadline."""
    deadline = time.monotonic() + PATIENCE
    while not (came := satisfied()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return came


@contextlib.contextmanager
def unharmed(proxy: Proxy, good: ssl.SSLContext) -> Iterator[None]:
    """After the block a good client is served, by the same worker, and every descriptor of before is back."""
    assert ask(proxy.address, good).status == 200  # and whatever is opened once is open
    (worker,) = proxy.worker_pids
    proxy.wait_for("connection")
    before = open_descriptors(worker)
    proxy.forget()
    yield
    assert ask(proxy.address, good).status == 200
    assert eventually(lambda: open_descriptors(worker) == before), (before, open_descriptors(worker))


def quick(site: Config, **timeouts: str) -> Config:
    """A configuration with short deadlines, which tells everything."""
    log = {"format": "json", "level": "debug", "refusals_per_second": 100_000}
    return {"workers": 1, "log": log, "timeouts": {"linger": "300ms", **timeouts}, "sites": [site]}


# Crowds


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Enough for a crowd on our side."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 2 * CROWD:
        pytest.skip(f"a process may have {before[1]} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 2 * CROWD), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("said", "reasons"),
    [
        (b"", {"client_silent"}),
        (b"\x16\x03\x01\x02\x00\x01", {"client_silent", "handshake_timeout"}),
        (b"\x00" * 100, {"handshake_failed", "client_silent", "client_reset"}),
        (b"GET", {"client_silent", "handshake_timeout"}),
    ],
    ids=["silent", "half a hello", "garbage", "half a request"],
)
def test_two_thousand(
    site: Config,
    backend: RecordingBackend,
    good: ssl.SSLContext,
    many_descriptors: None,
    said: bytes,
    reasons: set[str],
) -> None:
    """Clients who are no use, all at once: each is closed, none reaches the backend, and the log says why."""
    with Proxy(quick(site, handshake="2s")) as proxy, unharmed(proxy, good):
        with contextlib.ExitStack() as crowd:
            socks = []
            for _ in range(CROWD):
                sock = crowd.enter_context(socket.create_connection(proxy.address, PATIENCE))
                with contextlib.suppress(OSError):  # who came before is closed for those who come
                    sock.send(said)
                socks.append(sock)
            assert ask(proxy.address, good).status == 200
            assert all(map(is_closed, socks))
            proxy.wait_for("connection", count=CROWD + 1)
        told = [record["reason"] for record in proxy.connection_records()]
        assert set(told) <= reasons | {"closed"}
        assert told.count("closed") == 1
        assert backend.received == 2 * GET_AND_CLOSE


def is_closed(sock: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return sock.recv(1) == b""
    return True


# Clients that are reset


@pytest.mark.parametrize("state", STATES)
def test_reset_in_each_state(site: Config, backend: RecordingBackend, good: ssl.SSLContext, state: str) -> None:
    """A client that resets is gone at once, however far it had come."""
    with Proxy(quick(site)) as proxy, unharmed(proxy, good):
        client = STATES[state](Place(proxy.address, good, client_context()))
        port = client.port
        client.reset()
        expected = "no_certificate" if state == "refused" else "client_reset"
        assert proxy.connection_record(port)["reason"] == expected


# Backends


def talk_before_asked(connection: BackendConnection) -> None:
    connection.sock.sendall(HELLO)
    connection.receive_rest()


def reset_in_the_answer(connection: BackendConnection) -> None:
    connection.receive_request()
    connection.sock.sendall(HELLO[:40])
    connection.reset()


@pytest.mark.parametrize(
    ("behaviour", "data", "reasons"),
    [
        (never_answer, b"", {"idle_timeout"}),
        (talk_before_asked, HELLO, {"idle_timeout"}),
        (close_at_once, b"", {"closed", "upstream_reset"}),  # the second if the request came before its end
        (reset_after_request, b"", {"upstream_reset"}),
        (reset_in_the_answer, HELLO[:40], {"upstream_reset"}),
    ],
    ids=["never answers", "speaks first", "closes at once", "resets", "resets in its answer"],
)
def test_backends(
    site: Config,
    backend: RecordingBackend,
    good: ssl.SSLContext,
    behaviour: Behaviour,
    data: bytes,
    reasons: set[str],
) -> None:
    """The client learns as much as there was; an answer that was cut never ends like a whole one."""
    with Proxy(quick(site, idle="500ms")) as proxy, unharmed(proxy, good):
        backend.behaviour = behaviour
        with TlsClient(proxy.address, good) as client:
            client.handshake(with_data=GET)
            answer, port = client.receive_all(), client.port
        reason = proxy.connection_record(port)["reason"]
        assert data.startswith(answer.data)
        assert reason in reasons
        assert (answer.ending == "close_notify") == (reason != "upstream_reset")
        backend.forget()


def test_a_backend_that_comes_and_goes(site: Config, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """Each client gets what there is at its time: an answer, an end, or a 502; never somebody else's."""
    behaviours = itertools.cycle([close_at_once, reset_after_request, reset_in_the_answer])
    port = free_port()
    flapping = {**site, "upstream": f"http://127.0.0.1:{port}"}
    with Proxy(quick(flapping)) as proxy:
        for number in range(12):
            if number % 2:
                assert ask(proxy.address, good).status == 502
                continue
            with socket.create_server(("127.0.0.1", port)) as listener:
                thread = threading.Thread(target=serve_once, args=(listener, next(behaviours) if number % 4 else None))
                thread.start()
                answer = ask(proxy.address, good)
                thread.join(PATIENCE)
            assert answer.data in (b"", HELLO[:40], HELLO)
            assert (answer.data == HELLO) == (number % 4 == 0)
        proxy.wait_for("connection", count=6, reason="upstream_unreachable")


def serve_once(listener: socket.socket, behaviour: Behaviour | None) -> None:
    sock, peer = listener.accept()
    connection = BackendConnection(sock, peer)
    with sock, contextlib.suppress(OSError):
        if behaviour:
            behaviour(connection)
        elif connection.receive_request():
            sock.sendall(HELLO)


def test_a_client_that_never_reads(site: Config, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """It is ended at the idle limit, with its backend, whatever it is still owed."""

    def answer_without_end(connection: BackendConnection) -> None:
        while True:
            connection.sock.sendall(bytes(65536))

    with Proxy(quick(site, idle="500ms")) as proxy, unharmed(proxy, good):
        backend.behaviour = answer_without_end
        with TlsClient(proxy.address, good) as client:
            client.handshake(with_data=GET)
            assert proxy.connection_record(client.port)["reason"] == "idle_timeout"
        backend.forget()


# The log


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "2>/dev/null"])
def test_a_log_that_takes_nothing(
    site: Config, backend: RecordingBackend, good: ssl.SSLContext, tmp_path: Path, stderr: str
) -> None:
    """Closed or full: it starts, serves and ends as ever."""
    with started(site, tmp_path, ["sh", "-c", f'exec "$@" {stderr}', "sh"], None) as (process, address):
        assert [ask(address, good).status for _ in range(5)] == [200] * 5
        assert ask(address, client_context()).status == 400
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_a_log_that_nobody_reads(site: Config, backend: RecordingBackend, good: ssl.SSLContext, tmp_path: Path) -> None:
    """A pipe that is full stops no worker, and not the parent."""
    reader, writer = os.pipe()
    try:
        with started(site, tmp_path, [], writer) as (process, address):
            fill(writer)
            assert ask(address, client_context()).status == 400
            assert ask(address, good).status == 200
            process.send_signal(signal.SIGHUP)
            assert ask(address, good).status == 200
            process.terminate()
            assert process.wait(PATIENCE) == 0
    finally:
        os.close(reader)
        os.close(writer)


def fill(pipe: int) -> None:
    """Write until it takes no more."""
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, bytes(4096))
    os.set_blocking(pipe, True)


@contextlib.contextmanager
def started(
    site: Config, directory: Path, launcher: list[str], stderr: int | None
) -> Iterator[tuple[subprocess.Popen[bytes], tuple[str, int]]]:
    """A proxy that cannot tell us its port."""
    port = free_port()
    flags = {"listen": f"127.0.0.1:{port}", "workers": "1", "log-format": "json", "client-ca": site["clients"]["ca"][0]}
    flags |= {name.replace("_", "-"): site[name] for name in ("certificate", "private_key", "upstream")}
    flags["log-refusals-per-second"] = "100000"
    command = [*launcher, sys.executable, "-m", "aop_proxy", "run", *(f"--{name}={flags[name]}" for name in flags)]
    with subprocess.Popen(command, stderr=stderr, cwd=Path(__file__).parents[2]) as process:
        try:
            wait_for_port(port, process)
            yield process, ("127.0.0.1", port)
        finally:
            process.kill()
            process.wait(PATIENCE)


# Time


def libfaketime() -> str:
    """The library that moves a program's wall clock, which Debian's faketime brings."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        missing_peer("faketime")
    return str(found[0])


@pytest.mark.parametrize("jump", ["-12h", "+12h", "+365d"])
def test_clock_jumps(site: Config, backend: RecordingBackend, good: ssl.SSLContext, tmp_path: Path, jump: str) -> None:
    """Deadlines are of a clock that only goes on: nobody is cut by a jump, nobody stays for one; certificates do end."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    env = {
        "LD_PRELOAD": libfaketime(),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    with Proxy(quick(site, handshake="1s", idle="1h"), env=env) as proxy, TlsClient(proxy.address, good) as kept:
        kept.handshake(with_data=GET)
        kept.receive_exactly(len(HELLO))
        with socket.create_connection(proxy.address, PATIENCE) as silent:
            clock.write_text(jump)
            assert silent.recv(1) == b""
        kept.send(GET)
        assert kept.receive_exactly(len(HELLO)) == HELLO
        assert ask(proxy.address, good).status == (400 if jump == "+365d" else 200)
        reasons = ("client_silent", "expired" if jump == "+365d" else "closed")
        durations = [proxy.wait_for("connection", reason=reason)["duration_ms"] for reason in reasons]
        assert 1000 <= durations[0] < 5000
        assert 0 < durations[1] < 5000


def test_a_client_certificate_that_expires_meanwhile(
    proxy: Proxy, backend: RecordingBackend, authority: Authority, tmp_path: Path
) -> None:
    """Let in until then, refused from then on, with nothing reloaded; who is in stays in."""
    context = client_context(authority.issue("edge.example", validity=(-DAY, 3 * SECOND)).write(tmp_path, "brief"))
    with TlsClient(proxy.address, context) as kept:
        kept.handshake(with_data=GET)
        kept.receive_exactly(len(HELLO))
        assert eventually(lambda: ask(proxy.address, context).status == 400)
        kept.send(GET)
        assert kept.receive_exactly(len(HELLO)) == HELLO
    assert proxy.wait_for("connection", reason="expired")["verdict"] == "refused"


def test_our_certificate_that_expires_meanwhile(
    site: Config, backend: RecordingBackend, server_authority: Authority, good: ssl.SSLContext, tmp_path: Path
) -> None:
    """It is told in time; Cloudflare, which may not care, is served on, also by a worker that comes later."""
    brief = server_authority.issue_server("origin.example", validity=(-DAY, 3 * SECOND)).write(tmp_path, "brief")
    ending = {**site, "certificate": str(brief.certificate), "private_key": str(brief.private_key)}
    strict = ssl.create_default_context(cafile=server_authority.write(tmp_path / "ca.pem"))
    with Proxy({**ONE_WORKER, "sites": [ending]}) as proxy:
        assert proxy.wait_for("certificate_expires_soon")["path"] == "sites[0].certificate"
        assert eventually(lambda: has_expired(proxy.address, strict))
        assert ask(proxy.address, good).status == 200
        os.kill(proxy.worker_pids[0], signal.SIGKILL)
        proxy.wait_for("worker_started", count=2)
        assert ask(proxy.address, good).status == 200


def has_expired(address: tuple[str, int], strict: ssl.SSLContext) -> bool:
    try:
        with TlsClient(address, strict) as client:
            client.handshake()
    except ssl.SSLCertVerificationError as error:
        return error.verify_code == 10
    return False


# Processes and files


def test_a_worker_is_killed_under_load(site: Config, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """Nobody of the other worker notices; within a second there is another one, and everybody is served again."""
    with Proxy({**ONE_WORKER, "workers": 2, "sites": [site]}) as proxy, contextlib.ExitStack() as stack:
        doomed = proxy.events("worker_started", worker=1)[0]["pid"]
        answered: list[bool] = []
        over = threading.Event()

        def ask_on() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    answered.append(ask(proxy.address, good).status == 200)

        kept = [stack.enter_context(TlsClient(proxy.address, good)) for _ in range(16)]
        for client in kept:
            client.handshake(with_data=GET)
            client.receive_exactly(len(HELLO))
        load = [threading.Thread(target=ask_on) for _ in range(4)]
        for thread in load:
            thread.start()
        try:
            assert eventually(lambda: len(answered) > 20)
            os.kill(doomed, signal.SIGKILL)
            times = proxy.wait_for("worker_exited")["time"], proxy.wait_for("worker_started", count=3)["time"]
            died, replaced = map(datetime.fromisoformat, times)
            assert replaced - died < SECOND
            alive = sum(is_served(client) for client in kept)
            served = len(answered)
            assert eventually(lambda: len(answered) > served + 20)
        finally:
            over.set()
            for thread in load:
                thread.join(PATIENCE)
        assert 0 < alive < len(kept)
        assert answered.count(False) <= len(load)  # one of each at the moment of death, at most


def is_served(client: TlsClient) -> bool:
    """Whether a kept connection lives; its worker's death is a reset or an end."""
    try:
        client.send(GET)
        return client.receive_exactly(len(HELLO)) == HELLO
    except (OSError, AssertionError):
        return False


def test_files_that_are_gone(
    site: Config,
    backend: RecordingBackend,
    good: ssl.SSLContext,
    server_authority: Authority,
    authority: Authority,
    tmp_path: Path,
) -> None:
    """What was read is held: it serves on, a reload says what is missing, a new worker has what the old one had."""
    files = server_authority.issue_server("origin.example").write(tmp_path, "server")
    ca = authority.write(tmp_path / "ca.pem")
    here = {"certificate": str(files.certificate), "private_key": str(files.private_key), "clients": {"ca": [str(ca)]}}
    with Proxy({**ONE_WORKER, "sites": [{**site, **here}]}) as proxy:
        for path in (files.certificate, files.private_key, ca, proxy.config_path):
            path.unlink()
        assert ask(proxy.address, good).status == 200
        proxy.signal(signal.SIGHUP)
        (problem,) = proxy.wait_for("reload_failed")["problems"]
        assert "does not exist" in problem
        assert ask(proxy.address, good).status == 200
        os.kill(proxy.worker_pids[0], signal.SIGKILL)
        proxy.wait_for("worker_started", count=2)
        assert ask(proxy.address, good, GET_AND_CLOSE).status == 200
