"""Real backends as processes of their own, unmodified and as people start them; and one that does what a test says.

Every backend is a context manager: it starts on a free port or on a unix socket in the directory it is given, waits
until it accepts connections, yields its address, and ends with its whole process group killed.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from actors import PATIENCE, free_port, require_peer
from applications import blocks

TESTS = Path(__file__).parent
STATIC_STREAM = 3_000_001
"""The one size of `/stream/N` that backends of plain files have."""


@dataclass(frozen=True)
class Backend:
    """A running backend: `HOST:PORT` or the path of its unix socket, and the directory it serves or stores to."""

    address: str
    directory: Path

    @property
    def url(self) -> str:
        """The address as `--upstream` wants it."""
        return f"http://{self.address}" if ":" in self.address else f"unix:{self.address}"

    def connect(self, timeout: float = PATIENCE) -> socket.socket:
        """A plain connection, without the proxy."""
        host, colon, port = self.address.rpartition(":")
        connection = socket.socket(socket.AF_INET if colon else socket.AF_UNIX)
        connection.settimeout(timeout)
        try:
            connection.connect((host, int(port)) if colon else self.address)
        except OSError:
            connection.close()
            raise
        return connection


@contextmanager
def started(directory: Path, address: str, *command: str, deadline: float = 2 * PATIENCE) -> Iterator[Backend]:
    """Start `command`, wait until `address` accepts connections, and kill its process group at the end."""
    backend = Backend(address, directory)
    log = directory / "backend.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        give_up = time.monotonic() + deadline
        while not _accepts(backend):
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                if time.monotonic() < give_up:
                    continue
            raise RuntimeError(f"nothing listens on {address}: {' '.join(command)}\n{log.read_text()}")
        yield backend
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _accepts(backend: Backend) -> bool:
    try:
        backend.connect().close()
    except OSError:
        return False
    return True


def _address(directory: Path, unix: bool) -> str:
    return str(directory / "backend.socket") if unix else f"127.0.0.1:{free_port()}"


def _gunicorn(directory: Path, unix: bool, *arguments: str) -> AbstractContextManager[Backend]:
    address = _address(directory, unix)
    bind = f"unix:{address}" if unix else address
    return started(
        directory, address, sys.executable, "-m", "gunicorn", "--bind", bind, *arguments, "applications:wsgi"
    )


def gunicorn_sync(directory: Path, unix: bool) -> AbstractContextManager[Backend]:
    """As gunicorn comes: one sync worker, which closes after every response."""
    return _gunicorn(directory, unix)


def gunicorn_gthread(directory: Path, unix: bool) -> AbstractContextManager[Backend]:
    """As it is started to keep connections: with threads."""
    return _gunicorn(directory, unix, "--worker-class", "gthread", "--threads", "4")


def uvicorn(directory: Path, unix: bool) -> AbstractContextManager[Backend]:
    address = _address(directory, unix)
    bind = ("--uds", address) if unix else ("--port", address.rpartition(":")[2])
    options = ("--ws-max-size", str(32 << 20), "applications:asgi")
    return started(directory, address, sys.executable, "-m", "uvicorn", *bind, *options)


def hypercorn(directory: Path, unix: bool) -> AbstractContextManager[Backend]:
    address = _address(directory, unix)
    bind = f"unix:{address}" if unix else address
    (directory / "hypercorn.toml").write_text(f"websocket_max_message_size = {32 << 20}\n")
    options = ("--config", "hypercorn.toml", "--bind", bind, "applications:asgi")
    return started(directory, address, sys.executable, "-m", "hypercorn", *options)


def waitress(directory: Path, unix: bool) -> AbstractContextManager[Backend]:
    address = _address(directory, unix)
    bind = f"--unix-socket={address}" if unix else f"--listen={address}"
    return started(directory, address, sys.executable, "-m", "waitress", bind, "applications:wsgi")


def django_runserver(directory: Path, unix: bool) -> AbstractContextManager[Backend]:
    assert not unix
    address = _address(directory, unix)
    project = str(TESTS / "django_project.py")
    return started(directory, address, sys.executable, project, "runserver", "--noreload", address)


def flask_run(directory: Path, unix: bool) -> AbstractContextManager[Backend]:
    """Flask's development server."""
    address = _address(directory, unix)
    bind = ("--host", f"unix://{address}") if unix else ("--port", address.rpartition(":")[2])
    application = ("--app", "applications:flask_application", "run", "--no-reload")
    return started(directory, address, sys.executable, "-m", "flask", *application, *bind)


def http_server(directory: Path, unix: bool) -> AbstractContextManager[Backend]:
    """`python -m http.server`, told to speak HTTP/1.1."""
    assert not unix
    address = _address(directory, unix)
    options = ("--bind", "127.0.0.1", "--protocol", "HTTP/1.1", "--directory", str(_static_files(directory)))
    return started(directory, address, sys.executable, "-m", "http.server", *options, address.rpartition(":")[2])


def websockets_server(directory: Path, unix: bool) -> AbstractContextManager[Backend]:
    """The `websockets` library's own server."""
    address = _address(directory, unix)
    return started(directory, address, sys.executable, str(TESTS / "applications.py"), address)


NGINX = """
daemon off;
error_log stderr;
pid nginx.pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen {listen};
        root files;
        client_max_body_size 0;
        location = /digest {{ dav_methods PUT; }}
    }}
}}
"""


def nginx(directory: Path, unix: bool, configuration: str = NGINX) -> AbstractContextManager[Backend]:
    """NGINX with plain files, and a place to PUT them; or with a configuration of the test's own."""
    address = _address(directory, unix)
    _static_files(directory)
    (directory / "nginx.conf").write_text(configuration.format(listen=f"unix:{address}" if unix else address))
    user = ("-g", "user root;") if os.getuid() == 0 else ()
    return started(
        directory, address, require_peer("nginx"), "-p", str(directory), "-c", "nginx.conf", "-e", "stderr", *user
    )


def _static_files(directory: Path) -> Path:
    """`/hello` and `/stream/N` for the backends that serve files; what is uploaded becomes `digest`."""
    files = directory / "files"
    (files / "stream").mkdir(parents=True)
    (files / "hello").write_text("hello\n")
    (files / "stream" / str(STATIC_STREAM)).write_bytes(b"".join(blocks(STATIC_STREAM)))
    return files


class ScriptedBackend:
    """A listening socket: the test accepts the proxy's connections itself and does with them what it likes."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.url = url_of(listener)

    def forget(self) -> None:
        """Drop connections that nobody has accepted."""
        while not self.nobody_waits():
            self.accept().close()

    def nobody_waits(self) -> bool:
        """Whether no connection is there to be accepted."""
        readable, _, _ = select.select([self.listener], [], [], 0)
        return not readable

    def accept(self, timeout: float = PATIENCE) -> socket.socket:
        """The next connection of the proxy, within a deadline."""
        self.listener.settimeout(timeout)
        connection, _ = self.listener.accept()
        connection.settimeout(timeout)
        return connection


def url_of(listener: socket.socket) -> str:
    """Where a listening socket listens, as `--upstream` wants it."""
    name = listener.getsockname()
    return f"unix:{name}" if listener.family == socket.AF_UNIX else f"http://{name[0]}:{name[1]}"


@contextmanager
def scripted(path: Path | None = None) -> Iterator[ScriptedBackend]:
    """A `ScriptedBackend` on TCP, or on a unix socket at `path`."""
    with listening(path) as listener:
        yield ScriptedBackend(listener)


def listening(path: Path | None = None, backlog: int = 100) -> socket.socket:
    """A socket that listens on a port of the kernel's choice, or at `path`."""
    if path is None:
        return socket.create_server(("127.0.0.1", 0), backlog=backlog)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(backlog)
    return listener
