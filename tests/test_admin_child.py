"""The admin child as the program has it: bound, told, replaced when it dies, without privileges, and gone at the end."""

import contextlib
import json
import os
import pwd
import select
import signal
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from actors import ONE_WORKER, PATIENCE, Proxy, RecordingBackend, ask, client_context, run_command
from admin import admin_address, status_when, total, visit
from aop_proxy.admin import MAX_CONNECTIONS
from aop_proxy.workers import ExitCode

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
Config = dict[str, Any]


@pytest.fixture
def config(site: Config) -> Config:
    return {**ONE_WORKER, "sites": [site], "admin": "127.0.0.1:0"}


def children(proxy: Proxy) -> set[int]:
    """Every child of the parent."""
    return set(map(int, Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()))


def admin_pid(proxy: Proxy) -> int:
    (pid,) = children(proxy) - set(proxy.worker_pids)
    return pid


def process_status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def test_without_admin_there_is_no_child(proxy: Proxy) -> None:
    """Whoever does not ask for it pays nothing."""
    assert children(proxy) == set(proxy.worker_pids)


def test_a_dead_child_is_replaced(config: Config) -> None:
    """On the same port, and it knows what the first one knew."""
    with Proxy(config) as proxy:
        address = admin_address(proxy)
        assert visit(address, "/healthz").status == 200
        assert ask(proxy.address, client_context()).status == 400
        status_when(address, lambda status: total(status, "connections", "refused no_certificate") == 1)
        os.kill(admin_pid(proxy), signal.SIGKILL)
        assert proxy.wait_for("admin_exited")["code"] == -9
        assert admin_address(proxy, count=2) == address
        status = json.loads(visit(address, "/status.json").body)
        assert total(status, "connections", "refused no_certificate") == 1
        assert sum(minute["refused"] for minute in status["history"]) == 1
        assert [one["reason"] for one in status["refusals"]] == ["no_certificate"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_the_parents(config: Config, number: signal.Signals) -> None:
    """A terminal or a service manager signals us all."""
    with Proxy(config) as proxy:
        address = admin_address(proxy)
        os.kill(admin_pid(proxy), number)
        assert visit(address, "/healthz").status == 200
        assert proxy.events("admin_exited") == []


@needs_root
@pytest.mark.parametrize("user", [None, "daemon"])
def test_it_keeps_no_privileges(config: Config, user: str | None) -> None:
    """It is `user`, or nobody where root has named none; it can be read by no other process of that user's."""
    with Proxy({**config, "user": user}) as proxy:
        visit(admin_address(proxy), "/healthz")
        pid = admin_pid(proxy)
        status = process_status(pid)
        expected = pwd.getpwnam(user or "nobody")
        assert (status["Uid"], status["Gid"]) == ([str(expected.pw_uid)] * 4, [str(expected.pw_gid)] * 4)
        assert "0" not in status["Groups"]
        assert set(status["CapEff"] + status["CapPrm"]) == {"0" * 16}
        assert os.stat(f"/proc/{pid}/fd").st_uid == 0, "not dumpable"


def test_it_holds_no_socket_of_clients(config: Config) -> None:
    """Nor the log: its own listener, and what the parent tells it."""
    with Proxy(config) as proxy:
        address = admin_address(proxy)
        sockets = [
            line.split()[9]
            for line in Path(f"/proc/{proxy.pid}/net/tcp").read_text().splitlines()[1:]
            if line.split()[1].endswith(f":{proxy.port:04X}")
        ]
        held = [os.readlink(path) for path in Path(f"/proc/{admin_pid(proxy)}/fd").iterdir()]
        assert visit(address, "/healthz").status == 200
        assert sockets
        assert [inode for inode in sockets if f"socket:[{inode}]" in held] == []


@needs_root
def test_a_unix_socket(config: Config, tmp_path: Path) -> None:
    """It belongs to `user` and its group, nobody else may connect, and it is removed at the end."""
    path = tmp_path / "admin.sock"
    with Proxy({**config, "admin": f"unix:{path}", "user": "daemon"}) as proxy:
        address = admin_address(proxy)
        assert address == f"unix:{path}"
        entry, daemon = path.stat(), pwd.getpwnam("daemon")
        assert stat.S_IMODE(entry.st_mode) == 0o660
        assert (entry.st_uid, entry.st_gid) == (daemon.pw_uid, daemon.pw_gid)
        status_when(address, lambda status: status["ready"])
        assert visit(address, "/readyz").body == b"ready\n"
        proxy.terminate()
        assert proxy.exit_code == ExitCode.DRAINED
    assert not path.exists()


def test_a_socket_left_behind(config: Config, tmp_path: Path) -> None:
    """What a program that was killed has left is replaced; what somebody listens on, or is no socket, is not."""
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert cannot_listen(config, path)
    with Proxy({**config, "admin": f"unix:{path}"}) as proxy:
        assert visit(admin_address(proxy), "/healthz").status == 200
    path.write_text("a file")
    assert cannot_listen(config, path)
    assert path.read_text() == "a file"


def cannot_listen(config: Config, path: Path) -> bool:
    proxy = Proxy({**config, "admin": f"unix:{path}"})
    done = run_command("run", *proxy.flags)
    proxy._scratch.cleanup()
    expected = f"aop-proxy: cannot listen on unix:{path}: Address already in use\n"
    return (done.exit_code, done.stderr) == (ExitCode.CANNOT_BIND, expected)


def test_a_port_that_is_taken(config: Config) -> None:
    """It ends the start, like any other address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        proxy = Proxy({**config, "admin": f"127.0.0.1:{port}"})
        done = run_command("run", *proxy.flags)
        proxy._scratch.cleanup()
    assert done.exit_code == ExitCode.CANNOT_BIND
    assert done.stderr.startswith(f"aop-proxy: cannot listen on 127.0.0.1:{port}: Address already in use by ")


def test_a_worker_that_talks_nonsense(config: Config) -> None:
    """It is told, and believed no more; what it had counted stays, and the others are heard."""
    with Proxy({**config, "workers": 2}) as proxy:
        address = admin_address(proxy)
        status_when(address, lambda status: sum(one["serves"] for one in status["workers"]) == 2)
        with open(f"/proc/{proxy.worker_pids[0]}/fd/1", "w") as stdout:
            stdout.write("nonsense\n")
        told = proxy.wait_for("report_unreadable")
        assert (told["level"], told["worker"]) == ("error", proxy.wait_for("worker_started")["worker"])
        status = status_when(address, lambda status: len(status["workers"]) == 1)
        assert status["ready"] is True


def test_the_parent_dies(config: Config) -> None:
    """So does the child, and its port is free."""
    proxy = Proxy(config).start()
    try:
        address = admin_address(proxy)
        pid = admin_pid(proxy)
        proxy.kill()
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                assert select.select([descriptor], [], [], PATIENCE)[0]
            finally:
                os.close(descriptor)
        with pytest.raises(ConnectionRefusedError):
            visit(address, "/healthz")
    finally:
        proxy.end()


def test_too_many_visitors(config: Config) -> None:
    """Past a bound the oldest makes room: those who hold connections keep nobody out."""
    with Proxy(config) as proxy, contextlib.ExitStack() as stack:
        address = admin_address(proxy)
        host, _, port = address.rpartition(":")
        silent = [
            stack.enter_context(socket.create_connection((host, int(port)), PATIENCE)) for _ in range(MAX_CONNECTIONS)
        ]
        assert visit(address, "/healthz").status == 200
        with contextlib.suppress(ConnectionResetError):
            assert silent[0].recv(1) == b""


def test_told_to_end_while_it_starts(config: Config, backend: RecordingBackend) -> None:
    """Nothing is left, whatever it was doing."""
    with Proxy(config) as proxy:
        proxy.terminate()
        assert proxy.exit_code == ExitCode.DRAINED
