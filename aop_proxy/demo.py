"""The demonstration: throw-away certificates, a backend of its own, the real proxy, and five kinds of visitor.

Everything lives in a temporary directory and on loopback, and goes when it ends. Must not know how the proxy works: it
starts `aop-proxy run` as anyone would, and asks it as anyone could.
"""

import contextlib
import http.server
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import IO, NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from rich.console import Console
from rich.table import Table

from aop_proxy.zone_certificates import AUTHORITY, CLIENT, LEAF, issue, subject_of

PATIENCE = 20.0
"""Seconds until something that should have happened counts as failed."""
_PROXY = f"""
import sys
sys.path.append({os.path.dirname(os.path.dirname(os.path.abspath(__file__)))!r})
from aop_proxy.cli import main
from aop_proxy.privileges import end_with
end_with(int(sys.argv[1]))
sys.exit(main(sys.argv[2:]))
"""
"""This program, with -P, so that no file in the working directory can pass for a module; it ends with us."""
_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class _Visitor(NamedTuple):
    name: str
    credentials: str | None
    """Stem of its files, None for no certificate."""
    encrypted: bool
    expected: int
    expected_sentence: str


_VISITORS = (
    _Visitor("no certificate", None, True, 400, "No required SSL certificate was sent"),
    _Visitor("self-signed certificate", "self_signed", True, 400, "The SSL certificate error"),
    _Visitor("expired certificate", "expired", True, 400, "The SSL certificate error"),
    _Visitor("plain HTTP", None, False, 400, "The plain HTTP request was sent to HTTPS port"),
    _Visitor("Cloudflare-like certificate", "client", True, 200, "Hello from the backend"),
)


def run(listen: str, *, once: bool) -> int:
    """Run the demonstration until it is told to end; 0 if every visitor saw what it should."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return 0 if _run(listen, once=once) else 1
    except KeyboardInterrupt:
        return 1


def _run(listen: str, *, once: bool) -> bool:
    console = Console()
    with tempfile.TemporaryDirectory(prefix="aop-proxy-demo-") as directory, _backend() as port:
        _make_certificates(Path(directory))
        with _proxy(listen, directory, port) as address:
            console.print(f"\n[bold]aop-proxy[/bold] listens on {address}, in front of http://127.0.0.1:{port}\n")
            all_right = _ask_all(console, address, Path(directory))
            if not once:
                _show_commands(console, address, directory)
                with contextlib.suppress(KeyboardInterrupt):
                    signal.pause()
    return all_right


def _ask_all(console: Console, address: str, directory: Path) -> bool:
    table = Table("Visitor", "Answer", "In words", "")
    all_right = True
    for visitor in _VISITORS:
        status, sentence = _ask(visitor, address, directory)
        right = status == visitor.expected and visitor.expected_sentence in sentence
        all_right &= right
        table.add_row(visitor.name, str(status), sentence, "[green]right[/green]" if right else "[red]WRONG[/red]")
    console.print(table)
    return all_right


def _ask(visitor: _Visitor, address: str, directory: Path) -> tuple[int, str]:
    """Ask for / as a visitor; the status and the sentence of the answer."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), PATIENCE) as end:
        if visitor.encrypted:
            context = ssl.create_default_context(cafile=str(directory / "server.pem"))
            if visitor.credentials is not None:
                context.load_cert_chain(
                    directory / f"{visitor.credentials}.pem", directory / f"{visitor.credentials}.key"
                )
            end = context.wrap_socket(end, server_hostname="localhost")  # noqa: PLW2901 - the same connection, encrypted
        answer = b""
        with contextlib.suppress(OSError):
            end.sendall(_REQUEST)
            while data := end.recv(4096):
                answer += data
        end.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    text = body.decode("utf-8", "replace")
    title = text.partition("<title>")[2].partition("</title>")[0]
    return status, (title.partition(" ")[2] if title else text.strip()) or "no answer"


def _show_commands(console: Console, address: str, directory: str) -> None:
    curl = f"curl --cacert {directory}/server.pem"
    host, _, port = address.rpartition(":")
    console.print("\nTry it yourself:\n")
    for line in (
        f"{curl} https://localhost:{port}/",
        f"{curl} --cert {directory}/client.pem --key {directory}/client.key https://localhost:{port}/",
        f"curl http://{host}:{port}/",
    ):
        console.print(f"  {line}", soft_wrap=True, highlight=False)
    console.print("\nCtrl-C ends it.")


@contextlib.contextmanager
def _proxy(listen: str, directory: str, port: int) -> Iterator[str]:
    """The proxy as a process of its own; its real address."""
    command = [
        sys.executable, "-P", "-c", _PROXY, str(os.getpid()), "run", "--listen", listen, "--workers", "1",
        "--certificate", f"{directory}/server.pem", "--private-key", f"{directory}/server.key",
        "--client-ca", f"{directory}/ca.pem", "--upstream", f"http://127.0.0.1:{port}", "--log-format", "json",
    ]  # fmt: skip
    # Ctrl-C is for us, and we tell it.
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:  # noqa: S603 - this very program
        log = process.stderr
        if log is None:
            raise RuntimeError("the proxy has no log")
        try:
            yield _address_in(log)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _address_in(log: IO[bytes]) -> str:
    """Read the proxy's log up to its address, then let the rest run off."""
    said = []
    for line in log:
        said.append(line.decode("utf-8", "replace"))
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if event.get("event") == "listening":
                threading.Thread(target=log.read, daemon=True).start()
                return str(event["addresses"][0])
    raise SystemExit("the proxy did not start:\n" + "".join(said))


class _Backend(http.server.BaseHTTPRequestHandler):
    """Answers every GET in one sentence. Knows nothing of TLS or certificates."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        body = b"Hello from the backend\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent: the table is what there is to see."""


@contextlib.contextmanager
def _backend() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Backend) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def _make_certificates(directory: Path) -> None:
    """A CA that plays Cloudflare's, two client certificates of it (one expired), a self-signed one, the server's."""
    now, day = datetime.now(UTC), timedelta(days=1)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))])
    server = (*LEAF, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False), (names, False))
    authority = issue(subject_of("demo origin-pull CA"), None, now - day, now + day, AUTHORITY)
    for stem, issued in {
        "ca": authority,
        "client": issue(subject_of("demo edge"), authority, now - day, now + day, CLIENT),
        "expired": issue(subject_of("demo edge, long ago"), authority, now - 2 * day, now - day, CLIENT),
        "self_signed": issue(subject_of("a stranger"), None, now - day, now + day, CLIENT),
        "server": issue(subject_of("localhost"), None, now - day, now + day, server),
    }.items():
        (directory / f"{stem}.pem").write_bytes(issued.certificate_pem)
        key = directory / f"{stem}.key"
        key.touch(0o600)
        key.write_bytes(issued.key_pem)
