"""Under systemd, or whoever speaks its protocols: sockets are taken, states told, the watchdog fed, upgrades lossless."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import actors
from actors import (
    ONE_WORKER,
    PATIENCE,
    Proxy,
    RecordingBackend,
    ask,
    client_context,
    free_port,
    require_peer,
    run_command,
)
from aop_proxy.workers import ExitCode
from certificates import CredentialFiles
from load import Load
from service_managers import NotifySocket

ROOT = Path(__file__).parents[2]
Config = dict[str, Any]


@pytest.fixture
def config(site: Config, backend: RecordingBackend) -> Config:
    return {**ONE_WORKER, "sites": [site]}


@pytest.fixture
def given() -> Iterator[socket.socket]:
    """A socket that listens, as a socket unit holds it: whoever serves comes and goes."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        yield listener


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(tmp_path / "notify") as listening:
        yield listening


def address_of(given: socket.socket) -> str:
    host, port = given.getsockname()
    return f"{host}:{port}"


# Sockets


def test_a_socket_that_is_given_is_served(
    config: Config, given: socket.socket, client_credentials: CredentialFiles
) -> None:
    """By every worker, in place of binding: who connected before the start is served too; it stays when all is over."""
    config = {**config, "listen": [address_of(given)], "workers": 2}
    early = socket.create_connection(given.getsockname(), PATIENCE)
    with Proxy(config, sockets=[given]) as proxy:
        assert proxy.addresses == [address_of(given)]
        early.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"400" in early.recv(65536)
        early.close()
        while {record["worker"] for record in proxy.connection_records()} != {1, 2}:
            assert ask(proxy.address, client_context(client_credentials)).status == 200
        proxy.terminate()
        assert proxy.exit_code == ExitCode.DRAINED
        socket.create_connection(given.getsockname(), PATIENCE).close()


def test_a_worker_that_dies_is_replaced_on_the_given_socket(
    config: Config, given: socket.socket, client_credentials: CredentialFiles
) -> None:
    """The socket outlives it."""
    with Proxy({**config, "listen": [address_of(given)]}, sockets=[given]) as proxy:
        os.kill(proxy.worker_pids[0], signal.SIGKILL)
        assert ask(proxy.address, client_context(client_credentials)).status == 200


def test_a_given_socket_is_told_by_its_address(config: Config, client_credentials: CredentialFiles) -> None:
    """PROXY headers are demanded on the listener that is configured for it, in whatever order the sockets come."""
    with socket.create_server(("127.0.0.1", 0)) as plain, socket.create_server(("127.0.0.1", 0)) as proxied:
        listen = [{"address": address_of(proxied), "proxy_protocol_from": ["127.0.0.1"]}, address_of(plain)]
        with Proxy({**config, "listen": listen}, sockets=[plain, proxied]) as proxy:
            assert sorted(proxy.addresses) == sorted([address_of(plain), address_of(proxied)])
            assert ask(plain.getsockname(), client_context(client_credentials)).status == 200
            with socket.create_connection(proxied.getsockname(), PATIENCE) as client:
                client.sendall(b"no PROXY header")
                proxy.connection_record(client.getsockname()[1], reason="proxy_header_invalid")


def test_a_socket_that_is_not_listed(config: Config, given: socket.socket) -> None:
    """That is a mistake of the configuration: exit code 2, and a sentence that names both."""
    proxy = Proxy({**config, "listen": ["127.0.0.1:1"]}, sockets=[given])
    done = subprocess.run(
        [*proxy._launcher, sys.executable, "-m", "aop_proxy", "run", *proxy.flags],
        pass_fds=[given.fileno()], capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    proxy._scratch.cleanup()
    assert done.returncode == ExitCode.BAD_CONFIGURATION
    assert (
        f"listen: socket 3 from the service manager is at {address_of(given)}, which is not in the list" in done.stderr
    )


def test_systemd_socket_activate(
    config: Config, client_credentials: CredentialFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own program opens the socket, and starts us when the first client comes, who is served."""
    activate = require_peer("systemd-socket-activate")
    address = ("127.0.0.1", free_port())
    proxy = Proxy({**config, "listen": [f"127.0.0.1:{address[1]}"]})
    command = [activate, f"--listen={address[0]}:{address[1]}", f"--setenv=PYTHONPATH={ROOT}"]
    with actors.running(
        [*command, sys.executable, "-m", "aop_proxy", "run", *proxy.flags], stderr=subprocess.PIPE
    ) as process:
        assert process.stderr
        while b"Listening on" not in process.stderr.readline():
            pass
        assert ask(address, client_context(client_credentials)).status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == ExitCode.DRAINED
        process.stderr.close()
    proxy._scratch.cleanup()


# Upgrade


def test_an_upgrade_loses_nothing(config: Config, given: socket.socket, client_credentials: CredentialFiles) -> None:
    """The old process drains while the new one serves on the same socket: under load nobody is refused, nobody cut."""
    config = {**config, "listen": [address_of(given)], "workers": 2}
    with contextlib.ExitStack() as releases:
        serving = releases.enter_context(Proxy(config, sockets=[given]))
        with Load(given.getsockname(), client_credentials) as load:
            load.wait_for(20)
            for _ in range(2):
                released = releases.enter_context(Proxy(config, sockets=[given]))
                load.wait_for(20)
                serving.terminate()
                assert serving.exit_code == ExitCode.DRAINED
                assert serving.wait_for("drained")["connections_cut"] == 0
                load.wait_for(20)
                assert released.connection_records()
                serving = released


# States


def test_states_are_told(config: Config, systemd: NotifySocket) -> None:
    """Ready when it serves and not before; reloading, and ready again whatever came of it; stopping, and for how long."""
    with Proxy(config, env=systemd.environment) as proxy:
        ready = systemd.receive()
        assert (ready["READY"], ready["STATUS"]) == ("1", "Serving, generation 1, workers: 1")
        proxy.signal(signal.SIGHUP)
        assert systemd.receive()["RELOADING"] == "1"
        assert systemd.receive() == {"READY": "1", "STATUS": "Serving, generation 2, workers: 1"}
        proxy.write_config({**config, "nonsense": 1})
        proxy.signal(signal.SIGHUP)
        assert systemd.receive()["RELOADING"] == "1"
        status = systemd.receive()["STATUS"]
        assert status.startswith("Serving, generation 2, workers: 1; not reloaded: nonsense: is not a known key")
        proxy.terminate()
        stopping = systemd.receive()
        assert stopping["STOPPING"] == "1"
        assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 25_000_000
        assert proxy.exit_code == ExitCode.DRAINED
        assert systemd.is_silent_for(0.01)


def test_a_start_that_fails_is_never_ready(config: Config, systemd: NotifySocket, tmp_path: Path) -> None:
    """What only a worker finds wrong is found before anybody is told."""
    bad = tmp_path / "bad.pem"
    bad.write_text("<html>")
    proxy = Proxy({**config, "sites": [{**config["sites"][0], "clients": {"ca": [str(bad)]}}]})
    environment = " ".join(f"{name}={value}" for name, value in systemd.environment.items())
    assert run_command("run", *proxy.flags, launcher=["env", environment]).exit_code == ExitCode.BAD_CONFIGURATION
    proxy._scratch.cleanup()
    assert systemd.is_silent_for(0.01)


def test_workers_are_no_children_of_systemd(config: Config, systemd: NotifySocket) -> None:
    """What was meant for the parent is out of the environment that workers get."""
    variables = {**systemd.environment, "WATCHDOG_USEC": "30000000", "LISTEN_FDS": "1", "LISTEN_PID": "1"}
    with Proxy(config, env=variables) as proxy:
        if os.geteuid():
            pytest.skip("only root can read a worker's environment")
        names = [
            entry.split(b"=")[0] for entry in Path(f"/proc/{proxy.worker_pids[0]}/environ").read_bytes().split(b"\0")
        ]
        assert b"PATH" in names
        assert {name.decode() for name in names} & variables.keys() == set()


# The watchdog

WATCHED = {"WATCHDOG_USEC": "4000000"}


def test_the_watchdog_is_fed(config: Config, systemd: NotifySocket) -> None:
    """Well within its time, while every worker answers."""
    with Proxy(config, env={**systemd.environment, **WATCHED}):
        systemd.wait_for("WATCHDOG")
        started = time.monotonic()
        assert systemd.wait_for("WATCHDOG") == {"WATCHDOG": "1"}
        assert time.monotonic() - started < 4


def test_a_worker_that_hangs_is_replaced(
    config: Config, systemd: NotifySocket, client_credentials: CredentialFiles
) -> None:
    """The watchdog starves meanwhile; but the worker goes before its time is over, and then it is fed again."""
    with Proxy(config, env={**systemd.environment, **WATCHED}) as proxy:
        systemd.wait_for("WATCHDOG")
        (hung,) = proxy.worker_pids
        os.kill(hung, signal.SIGSTOP)
        assert systemd.is_silent_for(1.5)
        assert proxy.wait_for("worker_exited")["pid"] == hung
        systemd.wait_for("WATCHDOG")
        assert ask(proxy.address, client_context(client_credentials)).status == 200


def test_a_reload_may_take_its_time(config: Config, systemd: NotifySocket) -> None:
    """While workers build what is new the watchdog is fed: they have longer for that."""
    with Proxy(config, env={**systemd.environment, **WATCHED}) as proxy:
        systemd.wait_for("WATCHDOG")
        os.kill(proxy.worker_pids[0], signal.SIGSTOP)
        proxy.signal(signal.SIGHUP)
        systemd.wait_for("RELOADING")
        for _ in range(2):
            assert systemd.receive() == {"WATCHDOG": "1"}
        os.kill(proxy.worker_pids[0], signal.SIGCONT)
        proxy.wait_for("reloaded")
        assert proxy.events("worker_exited") == []


def test_nobody_is_killed_unwatched(config: Config, systemd: NotifySocket) -> None:
    """Without a watchdog's time in the environment nothing is fed."""
    with Proxy(config, env=systemd.environment):
        systemd.wait_for("READY")
        assert systemd.is_silent_for(0.1)
