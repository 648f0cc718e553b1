"""`aop-proxy exec`: a backend that nobody reaches but through the gate, and that begins and ends with the proxy."""

import contextlib
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import actors
from actors import (
    GET_AND_CLOSE,
    ONE_WORKER,
    PATIENCE,
    Proxy,
    RecordingBackend,
    TlsClient,
    ask,
    client_context,
    free_port,
    run_command,
)
from certificates import CredentialFiles

HELLO = b"GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[1])}
PYTHON = sys.executable
SERVERS = {
    "gunicorn": [PYTHON, "-m", "gunicorn", "--bind", "{address}", "applications:wsgi"],
    "uvicorn": [PYTHON, "-m", "uvicorn", "{flag}", "{only}", "applications:asgi"],
    "hypercorn": [PYTHON, "-m", "hypercorn", "--bind", "{address}", "applications:asgi"],
    "waitress": [PYTHON, "-m", "waitress", "{listen}", "applications:wsgi"],
}
ON_SOCKET = {"address": "unix:{socket}", "flag": "--uds", "only": "{socket}", "listen": "--unix-socket={socket}"}
ON_PORT = {"address": "127.0.0.1:{port}", "flag": "--port", "only": "{port}", "listen": "--listen=127.0.0.1:{port}"}

BACKEND = """
import os, signal, socket, sys, threading
def ended(number, _):
    print("told", signal.Signals(number).name, flush=True)
    if "stubborn" not in sys.argv:
        os._exit(7)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, ended)
if "gate" in sys.argv:
    open(sys.argv[-1]).read()  # a FIFO, until the test has opened it and closed it
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("descriptors", sorted(os.listdir("/proc/self/fd"), key=int), flush=True)
print("user", os.getuid(), os.environ.get("USER"), flush=True)
def answer(end):
    data = b""
    while not data.endswith(b"\\r\\n\\r\\n"):
        piece = end.recv(65536)
        if not piece:
            return
        data += piece
    if data.startswith(b"POST"):
        end.sendall(b"HTTP/1.1 100 Continue\\r\\n\\r\\n")
        end.recv(65536)
    end.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\nConnection: close\\r\\n\\r\\nhello")
    end.close()
while True:
    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
"""
"""Says on stdout what happens to it, exits with 7 when it is told to end; a POST waits for its body."""


@pytest.fixture(scope="module")
def flags(server_credentials: CredentialFiles, client_ca: Path) -> list[str | Path]:
    """The flags of `exec`."""
    certificate, private_key = server_credentials.certificate, server_credentials.private_key
    files: list[str | Path] = ["--certificate", certificate, "--private-key", private_key, "--client-ca", client_ca]
    return [*files, "--workers", "1", "--log-format", "json"]


@pytest.fixture
def script(tmp_path: Path) -> list[str]:
    """The command of `BACKEND`."""
    path = tmp_path / "backend.py"
    path.write_text(BACKEND)
    return [PYTHON, str(path), "{socket}"]


@pytest.fixture
def passes(client_credentials: CredentialFiles) -> Any:
    """A client with the right certificate."""
    return client_context(client_credentials)


def stray(proxy: Proxy, words: str) -> str:
    """The line of the backend that begins so, waited for."""
    assert proxy.log.wait_until(lambda: any(line.startswith(words) for line in proxy.log.stray), PATIENCE), proxy.log
    return next(line for line in proxy.log.stray if line.startswith(words))


@contextlib.contextmanager
def gone_at_the_end(pids: list[int]) -> Iterator[None]:
    """These processes end within the block, or soon after it."""
    watched = [os.pidfd_open(pid) for pid in pids]
    try:
        yield
        deadline = time.monotonic() + PATIENCE
        for descriptor in watched:
            readable, _, _ = select.select([descriptor], [], [], max(0, deadline - time.monotonic()))
            assert readable, "a process outlives the other"
    finally:
        for descriptor in watched:
            os.close(descriptor)


@pytest.mark.parametrize("unix", [True, False], ids=["socket", "port"])
@pytest.mark.parametrize("server", SERVERS)
def test_with_every_server(server: str, unix: bool, flags: list[str | Path], passes: Any) -> None:
    """Who passes is answered at once, a stranger is refused, and SIGTERM ends both."""
    where = ON_SOCKET if unix else ON_PORT
    words = [where.get(word.strip("{}"), word) if word.startswith("{") else word for word in SERVERS[server]]
    with Proxy(flags=flags, env=ENVIRONMENT, backend=words) as proxy:
        upstream = proxy.wait_for("backend_started")
        assert ask(proxy.address, passes, HELLO).status == 200
        assert ask(proxy.address, client_context(), HELLO).status == 400
        address = str(proxy.connection_record(verdict="accepted")["upstream"])
        if unix:
            directory = Path(address.removeprefix("unix:")).parent
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        else:
            assert address.startswith("http://127.0.0.1:")
        with gone_at_the_end([upstream["pid"], *proxy.worker_pids]):
            proxy.terminate()
            # What each makes of SIGTERM: an end of its own, or that signal's.
            assert proxy.exit_code in (0, 128 + signal.SIGTERM)
        if unix:
            assert not directory.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_backend_answers_until_the_proxy_has_drained(
    number: signal.Signals, flags: list[str | Path], script: list[str], passes: Any
) -> None:
    """A request under way when the signal comes is answered; then the backend gets the same signal, and its code is ours."""
    with Proxy(flags=flags, backend=script) as proxy:
        with TlsClient(proxy.address, passes) as client:
            client.handshake(with_data=b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.receive().startswith(b"HTTP/1.1 100")
            proxy.signal(number)
            proxy.wait_for("draining")
            client.send(b"body")
            assert client.receive_all().data.endswith(b"hello")
        assert proxy.exit_code == 7
        assert proxy.wait_for("drained")["connections_cut"] == 0
        assert stray(proxy, "told") == f"told {number.name}"
        assert proxy.wait_for("backend_exited")["code"] == 7


@pytest.mark.parametrize(("end", "expected"), [("raise SystemExit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_a_backend_that_ends_by_itself(end: str, expected: int, flags: list[str | Path], script: list[str]) -> None:
    """The proxy ends with it, with its exit code."""
    path = Path(script[1])
    path.write_text(path.read_text().partition("while True")[0] + f"listener.accept(); sys.stdin.read(); {end}")
    port = free_port()
    proxy = Proxy(flags=["--listen", f"127.0.0.1:{port}", *flags], backend=script)
    with contextlib.closing(_Launched(proxy)):
        assert proxy.exit_code == expected
        proxy.wait_for("backend_exited")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), PATIENCE)


class _Launched:
    """A proxy that need not come to serve."""

    def __init__(self, proxy: Proxy) -> None:
        proxy.launch()
        self.close = proxy.end


def test_a_backend_that_never_listens(flags: list[str | Path]) -> None:
    """Nobody is served, and its exit code is ours; so is a shell's where it cannot be run."""
    for command, expected in (
        ([PYTHON, "-c", "raise SystemExit(5)", "{port}"], 5),
        (["/etc", "{port}"], 2),
    ):
        proxy = Proxy(flags=flags, backend=command)
        with contextlib.closing(_Launched(proxy)):
            assert proxy.exit_code == expected
            assert proxy.events("listening") == []


def test_a_proxy_that_cannot_start(
    flags: list[str | Path], tmp_path: Path, client_credentials: CredentialFiles
) -> None:
    """The backend is not started, whether it is the address or what only a worker sees."""
    started = tmp_path / "started"
    touch = ["touch", str(started), "{port}"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        assert run_command("exec", "--listen", listen, *flags, "--", *touch).exit_code == 4
    no_ca = ["--client-ca", str(client_credentials.certificate)]
    assert run_command("exec", "--listen", "127.0.0.1:0", *flags, *no_ca, "--", *touch).exit_code == 2
    assert not started.exists()


def test_who_comes_early_waits(flags: list[str | Path], script: list[str], passes: Any, tmp_path: Path) -> None:
    """A visitor from before the backend listens is answered, not told that nobody is there."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    port = free_port()
    proxy = Proxy(flags=["--listen", f"127.0.0.1:{port}", *flags], backend=[*script, "gate", str(gate)])
    with contextlib.closing(_Launched(proxy)):
        proxy.wait_for("backend_started")
        with TlsClient(("127.0.0.1", port), passes) as client:
            assert proxy.events("listening") == []
            gate.open("w").close()
            client.handshake(with_data=GET_AND_CLOSE)
            assert client.receive_all().data.endswith(b"hello")
        proxy.terminate()
        assert proxy.exit_code == 7


def test_told_to_end_before_the_backend_listens(flags: list[str | Path], script: list[str], tmp_path: Path) -> None:
    """Both end at once."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    proxy = Proxy(flags=flags, backend=[*script, "gate", str(gate)])
    with contextlib.closing(_Launched(proxy)):
        pid = proxy.wait_for("backend_started")["pid"]
        # Its own handler is in place once it waits for the gate.
        with gone_at_the_end([pid]), gate.open("w"):
            proxy.terminate()
            assert proxy.exit_code == 7
        assert proxy.events("listening") == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_the_end_of_one_by_force_is_the_end_of_all(flags: list[str | Path], script: list[str]) -> None:
    """After SIGKILL neither the backend nor a worker is left (but for the socket's directory)."""
    with tempfile.TemporaryDirectory() as scratch, Proxy(flags=flags, env={"TMPDIR": scratch}, backend=script) as proxy:
        backend = proxy.wait_for("backend_started")["pid"]
        with gone_at_the_end([backend, *proxy.worker_pids]):
            proxy.kill()


def test_a_stubborn_backend(flags: list[str | Path], script: list[str]) -> None:
    """Whoever asks once more has waited long enough: it is ended by force, and the exit code says so."""
    with Proxy(flags=flags, backend=[*script, "stubborn"]) as proxy:
        proxy.terminate()
        stray(proxy, "told SIGTERM")
        proxy.terminate()
        assert proxy.exit_code == 128 + signal.SIGKILL


def test_what_the_backend_inherits(flags: list[str | Path], script: list[str]) -> None:
    """Standard streams and nothing else (its own listener is the fourth, the listing itself the fifth)."""
    with Proxy(flags=flags, backend=script) as proxy:
        assert stray(proxy, "descriptors") == "descriptors ['0', '1', '2', '3', '4']"


def test_a_reload_is_the_proxy_s(flags: list[str | Path], script: list[str], passes: Any) -> None:
    """SIGHUP, which would end a backend that does not know it, reaches the proxy alone."""
    with Proxy(flags=flags, backend=script) as proxy:
        proxy.signal(signal.SIGHUP)
        proxy.wait_for("reloaded", generation=2)
        assert ask(proxy.address, passes, HELLO).status == 200
        assert proxy.events("backend_exited") == []


def test_with_a_file(
    site: dict[str, Any], script: list[str], backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """Sites that name no upstream are the command's; the others keep theirs; one of the former there must be."""
    own = {key: value for key, value in site.items() if key != "upstream"} | {"hosts": ["own.example"]}
    other = {**site, "hosts": ["other.example"]}
    passes = client_context(client_credentials)
    with Proxy({**ONE_WORKER, "sites": [own, other]}, backend=script) as proxy:
        assert ask(proxy.address, passes, server_name="own.example").data.endswith(b"hello")
        assert backend.connections == []
        assert ask(proxy.address, passes, server_name="other.example").data == actors.HELLO
        proxy.write_config({**ONE_WORKER, "sites": [other]})
        proxy.signal(signal.SIGHUP)
        (problem,) = proxy.wait_for("reload_failed")["problems"]
        assert problem.startswith("sites: each name an upstream of their own")


@pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/usr/bin/python3", os.X_OK), reason="only root can become nobody"
)
def test_as_another_user(site: dict[str, Any], passes: Any) -> None:
    """With `user`, backend and workers become that one, and no third user reaches the socket."""
    command = ["/usr/bin/python3", "-c", BACKEND, "{socket}"]
    bare = {key: value for key, value in site.items() if key != "upstream"}
    with Proxy({**ONE_WORKER, "user": "nobody", "sites": [bare]}, backend=command) as proxy:
        assert stray(proxy, "user") == "user 65534 nobody"
        assert ask(proxy.address, passes).data.endswith(b"hello")
        directory = Path(str(proxy.connection_record(verdict="accepted")["upstream"]).removeprefix("unix:")).parent
        assert (directory.stat().st_uid, stat.S_IMODE(directory.stat().st_mode)) == (65534, 0o700)


def test_both_logs_in_one_file(flags: list[str | Path], script: list[str], tmp_path: Path) -> None:
    """Neither writes over the other's lines."""
    path = tmp_path / "log"
    words = ["--listen", "127.0.0.1:0", *map(str, flags), "--", *script]
    with path.open("wb") as log:
        command = [PYTHON, "-m", "aop_proxy", "exec", *words]
        with subprocess.Popen(command, stdout=log, stderr=log) as process:
            deadline = time.monotonic() + PATIENCE
            while b"listening" not in path.read_bytes():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.terminate()
    lines = path.read_text().splitlines()
    assert [line.split()[0] for line in lines if not line.startswith("{")] == ["descriptors", "user", "told"]
    assert [line for line in lines if line.startswith("{") and not line.endswith("}")] == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "COMMAND: is missing"),
        (["--", "true"], "COMMAND: must be told where to listen"),
        (["--", "true", "{port}", "{socket}"], "COMMAND: must be told where to listen"),
        (["--", "no-such-program", "{port}"], "COMMAND: there is no program 'no-such-program'"),
    ],
)
def test_commands_that_cannot_be(arguments: list[str], problem: str) -> None:
    """Exit code 2, and what to write instead."""
    done = run_command("exec", *arguments)
    assert (done.exit_code, done.stderr.startswith(f"aop-proxy: {problem}")) == (2, True), done.stderr
