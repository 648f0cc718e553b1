"""`aop-proxy status`: what it prints of a running program, what it says to a script, and that nothing said moves a cursor."""

import http.server
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import GET, ONE_WORKER, PATIENCE, Outcome, Proxy, ask, ask_plainly, client_context, run_command
from admin import admin_address, status_when, total
from aop_proxy.status import ExitCode
from certificates import CredentialFiles
from test_status_page import DAY, lively, quiet

COLUMNS = {**os.environ, "COLUMNS": "160", "NO_COLOR": "1"}
HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202e[red]x[/red]\r\n\x9b31m"


class Answering:
    """Something that answers every request alike."""

    def __init__(self, body: bytes, status: int = 200) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> str:
        self._thread.start()
        return self.address

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def shown(body: Any, status: int = 200) -> Outcome:
    """What is printed of an answer."""
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    with Answering(encoded, status) as address:
        return run_command("status", "--admin", address)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_a_lively_program() -> None:
    """The same as the page shows."""
    state = lively()
    done = shown(state)
    assert (done.exit_code, done.stderr) == (ExitCode.READY, "")
    words = " ".join(done.stdout.split())
    for expected in (
        "● Enforcing up 12 days generation 4 version 1.2.3",
        "* http://10.20.0.7:8080 does not answer: tried 11 s ago, 44 failed",
        "5 days the CRL of CN=Origin CA of shop.example.com sites[1].clients.crl[0]",
        "no_certificate refused 18,233",
        "Workers (1 restarted)",
        "4123",
    ):
        assert expected in words
    assert [one["reference"] in words for one in state["refusals"]] == [True] * 10 + [False] * 4
    assert any(step in done.stdout for step in "▁▂▃▄▅▆▇█")


def test_a_quiet_program() -> None:
    """Nothing breaks where there is nothing."""
    assert shown(quiet()).exit_code == ExitCode.READY


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ({"ready": False, "not_ready": ["draining"]}, 1, "Send no clients here: draining."),
        ({"enforcement": "observe"}, 0, "It only observes"),
        ({"reload_problems": ["listen: is bad"]}, 0, "listen: is bad"),
    ],
)
def test_what_a_script_hears(changed: dict[str, Any], code: int, words: str) -> None:
    """0 is ready, 1 is not; the reason is said."""
    done = shown(quiet() | changed)
    assert (done.exit_code, words in done.stdout) == (code, True)


@pytest.mark.parametrize("name", ["reason", "client", "sni", "subject", "reference"])
def test_a_hostile_client_moves_no_cursor(name: str) -> None:
    """What it says is printable text on its own line, and no markup."""
    state = lively(refusals=1)
    state["refusals"][0][name] = HOSTILE
    assert_harmless(shown(state).stdout)


def test_nor_does_anything_else_that_is_told() -> None:
    """Whoever answers at that address may be somebody else."""
    state = lively()
    state["version"] = state["generation"] = HOSTILE
    state["workers"][0]["pid"] = HOSTILE
    state["upstreams"] = [HOSTILE]
    state["expiries"] = [{"path": HOSTILE, "subject": HOSTILE, "not_after": state["time"] + DAY}]
    state["totals"]["connections"] = {f"{HOSTILE} {HOSTILE}": 5}
    state["not_ready"], state["ready"], state["reload_problems"] = [HOSTILE], False, [HOSTILE]
    assert_harmless(shown(state).stdout)


def assert_harmless(printed: str) -> None:
    assert re.findall("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", printed) == []
    assert "[red]x[/red]" in printed.replace("\n", "")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"not found", 404, "answers 404: it may show no status"),
        (b"<html>", 200, "cannot be asked"),
        (b"[" * 100_000, 200, "cannot be asked"),
        (b"{}", 200, "is no aop-proxy of this version"),
        (b"[]", 200, "is no aop-proxy of this version"),
        (b"7", 200, "is no aop-proxy of this version"),
        (json.dumps({**quiet(), "history": 5}).encode(), 200, "is no aop-proxy of this version"),
        (json.dumps({**quiet(), "refusals": [{}]}).encode(), 200, "is no aop-proxy of this version"),
    ],
)
def test_something_else_answers(body: bytes, status: int, words: str) -> None:
    """It is said in one line, and the exit code is 3."""
    done = shown(body, status)
    assert (done.exit_code, done.stdout) == (ExitCode.UNREACHABLE, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("where", ["127.0.0.1:{port}", "unix:{path}/none.sock"])
def test_nobody_answers(where: str, tmp_path: Path) -> None:
    """The address is named."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = where.format(port=listener.getsockname()[1], path=tmp_path)
    done = run_command("status", "--admin", address)
    assert (done.exit_code, done.stdout) == (ExitCode.UNREACHABLE, "")
    assert done.stderr.startswith(f"aop-proxy: {address} cannot be asked: ")


def test_no_address() -> None:
    """That is a mistake of the arguments."""
    done = run_command("status", "--admin", "nonsense")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith('aop-proxy: --admin: "nonsense" ')


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_running_program(
    site: dict[str, Any], client_credentials: CredentialFiles, tmp_path: Path, kind: str
) -> None:
    """Over TCP or a unix socket: who was refused a moment ago is there."""
    admin = "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/admin.sock"
    with Proxy({**ONE_WORKER, "sites": [site], "admin": admin}) as proxy:
        address = admin_address(proxy)
        ask_plainly(proxy.address, GET)
        assert ask(proxy.address, client_context(client_credentials)).data
        status_when(address, lambda status: total(status, "connections", "refused plain_http"))
        done = run_command("status", "--admin", address)
        assert done.exit_code == ExitCode.READY
        assert proxy.connection_record(reason="plain_http")["reference"] in done.stdout
        assert site["upstream"] in done.stdout


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


def test_watching(terminal: tuple[int, int]) -> None:
    """It draws again and again on a screen of its own, until Ctrl-C, and gives the terminal back."""
    ours, theirs = terminal
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[1])}
    with Answering(json.dumps(lively()).encode()) as address:
        command = [sys.executable, "-m", "aop_proxy", "status", "--watch", "--admin", address]
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        drawn, deadline = bytearray(), time.monotonic() + 2 * PATIENCE
        while drawn.count(b"Enforcing") < 2:
            assert time.monotonic() < deadline, drawn
            if select.select([ours], [], [], 0.1)[0]:
                drawn += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    drawn += os.read(ours, 65536)
                except OSError:  # the terminal's other end is closed
                    break
        assert process.wait(PATIENCE) == ExitCode.READY
    assert b"\x1b[?1049h" in drawn, "on another screen"
    assert b"Traceback" not in drawn
