"""The demonstration: five visitors, a table, and nothing that stays behind."""

import contextlib
import io
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from actors import GET_AND_CLOSE, HELLO, PATIENCE, TlsClient, client_context, run_command
from aop_proxy import demo
from certificates import CredentialFiles

Output = pytest.CaptureFixture[str]
ROWS = [
    ("no certificate", "400", "No required SSL certificate was sent", "right"),
    ("self-signed certificate", "400", "The SSL certificate error", "right"),
    ("expired certificate", "400", "The SSL certificate error", "right"),
    ("plain HTTP", "400", "The plain HTTP request was sent to HTTPS port", "right"),
    ("Cloudflare-like certificate", "200", "Hello from the backend", "right"),
]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that holds a row of the table."""
    monkeypatch.setenv("COLUMNS", "200")


def rows(shown: str) -> list[tuple[str, ...]]:
    """What stands in the table."""
    lines = [re.split(r"\s*[│|]\s*", line.strip("│| \n")) for line in shown.splitlines() if "│" in line]
    return [tuple(cell.strip() for cell in line) for line in lines]


@pytest.fixture(autouse=True)
def own_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the demonstration makes its temporary directory, here and in processes of its own."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


def test_five_visitors(capsys: Output, own_directory: Path) -> None:
    """Each sees what it should, the exit code says so, and nothing is left."""
    assert demo.run("127.0.0.1:0", once=True) == 0
    shown = capsys.readouterr().out
    assert rows(shown) == ROWS
    assert re.search(r"aop-proxy listens on 127\.0\.0\.1:\d+, in front of http://127\.0\.0\.1:\d+\n", shown)
    assert list(own_directory.iterdir()) == []


def test_on_ipv6(capsys: Output) -> None:
    """`--listen [::1]:0` works as well."""
    assert demo.run("[::1]:0", once=True) == 0
    assert rows(capsys.readouterr().out) == ROWS


def test_a_proxy_that_does_not_start() -> None:
    """What it said is shown, and the exit code is not 0."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run_command("demo", "--once", "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.exit_code == 1
    assert "the proxy did not start:\naop-proxy: cannot listen on 127.0.0.1:" in done.stderr
    assert "Traceback" not in done.stderr


@contextlib.contextmanager
def open_door(directory: Path) -> Iterator[str]:
    """An origin that lets everybody in, over TLS or without."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in ROWS:
                end, _ = listener.accept()
                end.settimeout(PATIENCE)
                if end.recv(1, socket.MSG_PEEK) == b"\x16":
                    end = context.wrap_socket(end, server_side=True)
                end.recv(65536)
                end.sendall(HELLO)
                end.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(PATIENCE)


def test_who_lets_everybody_in_is_wrong(tmp_path: Path) -> None:
    """The table can say WRONG, too."""
    demo._make_certificates(tmp_path)
    console = Console(record=True, width=200, file=io.StringIO())
    with open_door(tmp_path) as address:
        assert not demo._ask_all(console, address, tmp_path)
    assert [row[1::2] for row in rows(console.export_text())] == [("200", "WRONG")] * 5


def test_keys_are_for_their_owner(tmp_path: Path) -> None:
    """Nobody else may read them."""
    demo._make_certificates(tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.key")} == {0o600}
    assert {path.stem for path in tmp_path.glob("*.key")} == {path.stem for path in tmp_path.glob("*.pem")}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stays_until_it_is_told_to_end(number: signal.Signals, own_directory: Path) -> None:
    """It goes on serving, with lines to try that work, and leaves neither files nor processes."""
    command = [sys.executable, "-m", "aop_proxy", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        shown = ""
        for line in process.stdout:
            shown += line
            if "Ctrl-C" in line:
                break
        assert rows(shown) == ROWS
        (found,) = re.findall(r"curl --cacert (\S+) --cert (\S+) --key (\S+) https://localhost:(\d+)/", shown)
        files = CredentialFiles(Path(found[1]), Path(found[2]))
        address = ("127.0.0.1", int(found[3]))
        with TlsClient(address, client_context(files, ca=Path(found[0]))) as client:
            client.handshake(with_data=GET_AND_CLOSE)
            assert client.receive_all().body == "Hello from the backend\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (0, "")
    assert list(own_directory.iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_told_to_end_before_its_table(own_directory: Path) -> None:
    """At any moment it ends at once, and its proxy with it."""
    command = [sys.executable, "-m", "aop_proxy", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + PATIENCE
        while not list(own_directory.glob("*/server.key")):  # what is made last before the proxy is started
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.terminate()
        shown, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode in (0, 1), errors) == (True, ""), shown
    while list(who_names(own_directory)):
        assert time.monotonic() < deadline, "the proxy outlives the demonstration"
        time.sleep(0.01)
    assert list(own_directory.iterdir()) == []


def who_names(directory: Path) -> Iterator[bytes]:
    """The command lines of processes that name this directory."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if bytes(directory) in (line := path.read_bytes()):
                yield line


def test_modules_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are nothing to it."""
    (tmp_path / "yaml.py").write_text("raise SystemExit('somebody else')")
    monkeypatch.chdir(tmp_path)
    assert demo.run("127.0.0.1:0", once=True) == 0
