"""The parent as an operator meets it: a process that starts workers, replaces them, reloads, and ends as asked."""

import asyncio
import contextlib
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import actors
from actors import (
    GET,
    HELLO,
    ONE_WORKER,
    PATIENCE,
    Proxy,
    RecordingBackend,
    TlsClient,
    ask,
    client_context,
    never_answer,
    run_command,
)
from aop_proxy.channel import Channel
from aop_proxy.log import Log
from aop_proxy.model import ConfigurationError
from aop_proxy.processors import usable_cpus
from aop_proxy.reminders import Reminders
from aop_proxy.service_manager import ServiceManager
from aop_proxy.worker_process import WorkerProcess
from aop_proxy.workers import ExitCode, Parent
from certificates import Authority, CredentialFiles
from in_process import make_bundle
from processes import open_descriptors

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
Config = dict[str, Any]


@pytest.fixture
def config(site: Config, backend: RecordingBackend) -> Config:
    """One worker in front of `backend`."""
    return {**ONE_WORKER, "sites": [site]}


def test_exit_codes() -> None:
    """Service managers know them by number."""
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 4]


def is_served(proxy: Proxy, credentials: CredentialFiles) -> bool:
    return ask(proxy.address, client_context(credentials)).status == 200


def is_gone(pid: int) -> bool:
    """Whether a process that is not our child ends within the deadline."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            return bool(select.select([descriptor], [], [], PATIENCE)[0])
        finally:
            os.close(descriptor)
    return True


@contextlib.contextmanager
def busy(
    proxy: Proxy, backend: RecordingBackend, credentials: CredentialFiles, count: int = 1
) -> Iterator[list[TlsClient]]:
    """Clients whose request the backend does not answer."""
    backend.behaviour = never_answer
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            clients.append(stack.enter_context(TlsClient(proxy.address, client_context(credentials))))
            clients[-1].handshake(with_data=GET)
        backend.wait_for_connection(count)
        yield clients


@contextlib.contextmanager
def running(
    site: Config, *, before: str = "", directory: Path | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], actors.Log]]:
    """`run` by flags, with something changed before it starts: a pause that nobody has the time for, say."""
    code = f"import sys\nfrom aop_proxy import cli, workers\n{before}\nsys.exit(cli.main(sys.argv[1:]))"
    flags = {"listen": "127.0.0.1:0", "workers": "1", "log-format": "json", "client-ca": site["clients"]["ca"][0]}
    flags |= {name.replace("_", "-"): site[name] for name in ("certificate", "private_key", "upstream")}
    command = [sys.executable, "-c", code, "run", *(f"--{name}={value}" for name, value in flags.items())]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    read, write = os.pipe()
    with subprocess.Popen(command, stderr=write, cwd=directory, env=environment) as process:
        os.close(write)
        log = actors.Log(read)
        try:
            yield process, log
        finally:
            process.terminate()
            process.wait(PATIENCE)
            log.join(PATIENCE)


def has(log: actors.Log, *events: str, count: int = 1, timeout: float = PATIENCE) -> bool:
    """Whether so many of these events come before the deadline."""
    return log.wait_until(lambda: sum(event["event"] in events for event in log.events) >= count, timeout)


def pid_of(log: actors.Log, number: int) -> int:
    """The process of the worker that was started as the `number`-th, from 1."""
    assert has(log, "worker_started", count=number)
    return int([event["pid"] for event in log.events if event["event"] == "worker_started"][number - 1])


# Start


def test_says_where_it_listens(config: Config, client_credentials: CredentialFiles) -> None:
    """Once, when every worker serves, with the real ports of every address; before that each worker's number and pid."""
    with Proxy({**config, "listen": ["127.0.0.1:0", "[::1]:0"], "workers": "auto"}) as proxy:
        numbers = [*range(1, usable_cpus() + 1)]
        assert [event["event"] for event in proxy.log.events] == ["worker_started" for _ in numbers] + ["listening"]
        assert sorted(event["worker"] for event in proxy.events("worker_started")) == numbers
        addresses = proxy.events("listening")[0]["addresses"]
        assert [address.rpartition(":")[0] for address in addresses] == ["127.0.0.1", "[::1]"]
        for family, address in zip((socket.AF_INET, socket.AF_INET6), addresses, strict=True):
            host, _, port = address.rpartition(":")
            with socket.socket(family) as sock:
                sock.connect((host.strip("[]"), int(port)))
        assert is_served(proxy, client_credentials)


def test_every_worker_serves(config: Config, client_credentials: CredentialFiles) -> None:
    """Connections are spread over the workers."""
    with Proxy({**config, "workers": 2}) as proxy:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda _: is_served(proxy, client_credentials), range(40)))
        proxy.wait_for("connection", count=40)
        assert {record["worker"] for record in proxy.connection_records()} == {1, 2}


# Workers that die


def test_a_dead_worker_is_replaced(config: Config, client_credentials: CredentialFiles) -> None:
    """Within a second there is another one on the same port, with the same configuration."""
    with Proxy(config) as proxy:
        (dead,) = proxy.worker_pids
        os.kill(dead, signal.SIGKILL)
        exited = proxy.wait_for("worker_exited")
        assert [exited[name] for name in ("level", "worker", "pid", "code")] == ["error", 1, dead, -9]
        started = proxy.wait_for("worker_started", count=2, timeout=1)
        assert started["worker"] == 1
        assert is_served(proxy, client_credentials)
        assert proxy.connection_record(reason="closed")["generation"] == 1


def test_a_dead_worker_of_several_takes_nobody_with_it(
    config: Config, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """The connections of the others live on."""
    with Proxy({**config, "workers": 2}) as proxy, contextlib.ExitStack() as stack:
        clients = []
        for _ in range(32):  # so that each worker surely has some
            clients.append(stack.enter_context(TlsClient(proxy.address, client_context(client_credentials))))
            clients[-1].handshake(with_data=GET)
            clients[-1].receive_exactly(len(HELLO))
        first = next(event["pid"] for event in proxy.events("worker_started", worker=1))
        os.kill(first, signal.SIGKILL)
        proxy.wait_for("worker_exited")
        alive = 0
        for client in clients:
            with contextlib.suppress(OSError):
                client.send(GET)
                alive += client.receive(len(HELLO)) == HELLO
        assert 0 < alive < 32
        while not proxy.events("connection", worker=1):  # until the new one serves
            assert is_served(proxy, client_credentials)


def test_a_worker_that_dies_after_a_reload_comes_back_with_the_new_configuration(
    config: Config, site: Config, client_credentials: CredentialFiles
) -> None:
    """The replacement serves what the others serve."""
    with Proxy(config) as proxy:
        proxy.write_config({**config, "sites": [{**site, "hosts": ["other.example"]}]})
        proxy.signal(signal.SIGHUP)
        proxy.wait_for("reloaded")
        os.kill(proxy.worker_pids[0], signal.SIGKILL)
        proxy.wait_for("worker_exited")
        assert ask(proxy.address, client_context(client_credentials)).status == 421


def test_workers_that_keep_dying(site: Config) -> None:
    """After the ninth death in a row it gives up, with its own exit code (the pauses between them are shortened)."""
    with running(site, before="workers.RESTART_PAUSE_MIN = workers.RESTART_PAUSE_MAX = 0.01") as (process, log):
        assert has(log, "listening")
        for number in range(1, 10):
            os.kill(pid_of(log, number), signal.SIGKILL)
        assert process.wait(PATIENCE) == ExitCode.WORKERS_KEEP_DYING
    assert not has(log, "worker_started", count=10, timeout=0)


def test_the_parent_dies(config: Config, backend: RecordingBackend, client_credentials: CredentialFiles) -> None:
    """Workers end with it, whatever they are doing, and the port is free again."""
    proxy = Proxy({**config, "workers": 2}).start()
    try:
        workers, port = proxy.worker_pids, proxy.port
        with busy(proxy, backend, client_credentials, count=4):
            proxy.kill()
            assert [is_gone(pid) for pid in workers] == [True, True]
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
    finally:
        proxy.end()


# Reload


def reload(proxy: Proxy, config: Config) -> None:
    proxy.write_config(config)
    proxy.signal(signal.SIGHUP)


def test_a_reload(
    config: Config, site: Config, client_credentials: CredentialFiles, server_authority: Authority, tmp_path: Path
) -> None:
    """New connections meet the new certificate and rules; old ones live on; advice is given again; the log says so."""
    renewed = server_authority.issue_server("renewed.example").write(tmp_path, "server")
    new_site = {**site, "certificate": str(renewed.certificate), "private_key": str(renewed.private_key)}
    with Proxy(config) as proxy, TlsClient(proxy.address, client_context(client_credentials)) as old:
        old.handshake(with_data=GET)
        old.receive_exactly(len(HELLO))
        reload(proxy, {**config, "sites": [new_site], "log": {"format": "json", "level": "debug"}})
        assert proxy.wait_for("reloaded")["generation"] == 2
        with TlsClient(proxy.address, client_context(client_credentials)) as new:
            new.handshake(with_data=GET)
            new.receive_exactly(len(HELLO))
            assert new.tls.getpeercert(True) == renewed_der(renewed)
        old.send(GET)
        assert old.receive_exactly(len(HELLO)) == HELLO
        reload(proxy, config)
        assert proxy.wait_for("reloaded", count=2)["generation"] == 3


def renewed_der(files: CredentialFiles) -> bytes:
    return ssl.PEM_cert_to_DER_cert(files.certificate.read_text())


def test_a_broken_reload_changes_nothing(
    config: Config, site: Config, client_credentials: CredentialFiles, tmp_path: Path
) -> None:
    """Every problem is named, whether of the file's form or of a certificate, and the old configuration serves."""
    bad = tmp_path / "bad.pem"
    bad.write_text("<html>")
    with Proxy({**config, "workers": 2}) as proxy:
        broken: list[tuple[Config, list[str]]] = [
            ({**config, "nonsense": 1}, ["nonsense: is not a known key"]),
            ({**config, "sites": [{**site, "certificate": "gone.pem"}]}, ["sites[0].certificate: "]),
            (
                {**config, "sites": [{**site, "certificate": str(bad), "clients": {"ca": [str(bad)]}}]},
                ["sites[0].clients.ca[0]: this is an HTML page", "sites[0].certificate: this is an HTML page"],
            ),
        ]
        for number, (wrong, expected) in enumerate(broken, 1):
            reload(proxy, {**wrong, "workers": 2})
            failed = proxy.wait_for("reload_failed", count=number)
            assert failed["level"] == "error"
            assert [told[: len(start)] for told, start in zip(failed["problems"], expected, strict=True)] == expected
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda _: is_served(proxy, client_credentials), range(12)))
        assert {record["generation"] for record in proxy.connection_records()} == {1}
        assert proxy.events("reloaded") == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("listen", ["127.0.0.1:1"]), ("workers", 2), ("user", "nobody"), ("enforcement", "observe"), ("refusal", "alert")],
)
def test_what_needs_a_restart(
    proxy: Proxy, site: Config, key: str, value: Any, client_credentials: CredentialFiles
) -> None:
    """It is said, and the rest of the new file does not come into force either."""
    reload(proxy, {**ONE_WORKER, "sites": [{**site, "hosts": ["other.example"]}], key: value})
    assert proxy.wait_for("reload_failed")["problems"] == [f"{key}: a change of this key needs a restart"]
    assert is_served(proxy, client_credentials)


def test_a_worker_dies_in_the_middle_of_a_reload(
    config: Config, site: Config, client_credentials: CredentialFiles
) -> None:
    """All switch or none: in the end every worker serves the same."""
    with Proxy({**config, "workers": 3}) as proxy:
        _, second, third = proxy.worker_pids
        os.kill(third, signal.SIGSTOP)
        reload(proxy, {**config, "workers": 3, "sites": [{**site, "hosts": ["other.example"]}]})
        os.kill(second, signal.SIGKILL)
        proxy.wait_for("worker_exited")
        os.kill(third, signal.SIGCONT)
        assert proxy.log.wait_until(lambda: bool(proxy.events("reloaded") or proxy.events("reload_failed")), PATIENCE)
        proxy.wait_for("worker_started", count=4)
        with ThreadPoolExecutor(8) as pool:
            answers = set(pool.map(lambda _: ask(proxy.address, client_context(client_credentials)).status, range(48)))
        assert answers in ({200}, {421})
        assert answers == {421 if proxy.events("reloaded") else 200}


def test_a_reload_while_a_worker_is_being_replaced(
    config: Config, site: Config, client_credentials: CredentialFiles
) -> None:
    """A worker that is dead for a moment is no reason to keep the old configuration."""
    with Proxy({**config, "workers": 2}) as proxy:
        for number in (1, 2):  # the second death is followed by a pause
            worker = [event["pid"] for event in proxy.events("worker_started", worker=1)][-1]
            served = len(proxy.events("connection", worker=1))
            while len(proxy.events("connection", worker=1)) == served:
                assert is_served(proxy, client_credentials)
            os.kill(worker, signal.SIGKILL)
            proxy.wait_for("worker_exited", count=number)
            proxy.wait_for("worker_started", count=3) if number == 1 else None
        reload(proxy, {**config, "workers": 2, "sites": [{**site, "hosts": ["other.example"]}]})
        assert proxy.log.wait_until(lambda: bool(proxy.events("reloaded") or proxy.events("reload_failed")), PATIENCE)
        assert proxy.events("reload_failed") == []
        while {record["worker"] for record in proxy.events("connection", generation=2)} != {1, 2}:
            assert ask(proxy.address, client_context(client_credentials)).status == 421


def test_a_reload_where_the_working_directory_is_gone(site: Config, tmp_path: Path) -> None:
    """A deployment that removes the old release's directory gets an answer, too."""
    directory = tmp_path / "release"
    directory.mkdir()
    with running(site, directory=directory) as (process, log):
        assert has(log, "listening")
        directory.rmdir()
        process.send_signal(signal.SIGHUP)
        assert has(log, "reloaded", "reload_failed", timeout=0.5)


def swap(link: Path, target: Path) -> None:
    """Point a symbolic link elsewhere in one step, as deployments and mounted secrets do."""
    link.with_suffix(".new").symlink_to(target)
    link.with_suffix(".new").rename(link)


def test_files_are_watched(
    config: Config, site: Config, client_credentials: CredentialFiles, server_authority: Authority, tmp_path: Path
) -> None:
    """With `reload.watch` a swapped link to a certificate and a changed configuration are noticed."""
    renewed = server_authority.issue_server("renewed.example").write(tmp_path, "server")
    live = tmp_path / "live"
    live.mkdir()
    names = {"certificate": renewed.certificate, "private_key": renewed.private_key}
    for name in names:
        swap(live / name, Path(site[name]))
    linked: Config = {**site, **{name: str(live / name) for name in names}}
    watched: Config = {**config, "reload": {"watch": "200ms"}, "sites": [linked]}
    with Proxy(watched) as proxy:
        for name, target in names.items():
            swap(live / name, target)
        assert proxy.log.wait_until(lambda: bool(proxy.events("reloaded")), PATIENCE)
        with TlsClient(proxy.address, client_context(client_credentials)) as client:
            client.handshake()
            assert client.tls.getpeercert(True) == renewed_der(renewed)
        before = len(proxy.events("reloaded"))
        proxy.write_config({**watched, "reload": {}})
        proxy.wait_for("reloaded", count=before + 1)
        proxy.write_config(config)
        assert not has(proxy.log, "reloaded", count=before + 2, timeout=0.5), "it is watched no longer"


def test_a_broken_file_is_told_once(config: Config, site: Config, tmp_path: Path) -> None:
    """Not at every look, whether the parent or a worker finds it; mended, it is taken."""
    bad = tmp_path / "bad.pem"
    bad.write_text("<html>")
    watched = {**config, "reload": {"watch": "50ms"}}
    mistakes: list[Config] = [{"nonsense": 1}, {"sites": [{**site, "clients": {"ca": [str(bad)]}}]}]
    with Proxy(watched) as proxy:
        for number, wrong in enumerate(mistakes, 1):
            proxy.write_config({**watched, **wrong})
            proxy.wait_for("reload_failed", count=number)
            assert not has(proxy.log, "reload_failed", count=number + 1, timeout=0.3)
        proxy.write_config({**watched, "unknown_hosts": "reject"})
        proxy.wait_for("reloaded")


@needs_root
def test_keys_of_root_are_rotated_under_another_user(
    config: Config, site: Config, client_credentials: CredentialFiles, server_authority: Authority, tmp_path: Path
) -> None:
    """The parent reads them for workers that cannot, also for one that takes a dead one's place; pages still work."""
    live = {name: tmp_path / name for name in ("certificate", "private_key")}
    live["private_key"].touch(0o600)

    def rotate(number: int) -> bytes:
        fresh = server_authority.issue_server(f"{number}.example").write(tmp_path, f"server-{number}")
        for name, path in live.items():
            path.write_bytes(getattr(fresh, name).read_bytes())
        return renewed_der(fresh)

    def served(proxy: Proxy) -> bytes | None:
        with TlsClient(proxy.address, client_context(client_credentials)) as client:
            client.handshake(with_data=GET)
            assert client.receive_exactly(len(HELLO)) == HELLO
            return client.tls.getpeercert(True)

    expected = rotate(0)
    paths = {name: str(path) for name, path in live.items()}
    with Proxy({**config, "user": "nobody", "sites": [{**site, **paths}]}) as proxy:
        for number in (1, 2, 3):
            assert served(proxy) == expected
            assert ask(proxy.address, client_context()).status == 400
            expected = rotate(number)
            proxy.signal(signal.SIGHUP)
            assert proxy.wait_for("reloaded", count=number)["generation"] == number + 1
        os.kill(proxy.worker_pids[0], signal.SIGKILL)
        proxy.wait_for("worker_started", count=2)
        assert served(proxy) == expected
        assert live["private_key"].stat().st_mode & 0o777 == 0o600
        assert "\t65534\t" in Path(f"/proc/{proxy.worker_pids[0]}/status").read_text()
        assert "Uid:\t0\t" in Path(f"/proc/{proxy.pid}/status").read_text()


def test_many_signals_are_one_wish(config: Config) -> None:
    """Whoever asks again and again during a reload gets one more, which finds what is written by then."""
    with Proxy(config) as proxy:
        worker = proxy.worker_pids[0]
        os.kill(worker, signal.SIGSTOP)  # the first cannot end
        for _ in range(20):
            proxy.signal(signal.SIGHUP)
            assert is_handled(proxy.pid)
        os.kill(worker, signal.SIGCONT)
        proxy.wait_for("reloaded")
        reload(proxy, {**config, "sites": []})
        proxy.wait_for("reload_failed")
        proxy.terminate()
        assert proxy.exit_code == ExitCode.DRAINED
        assert len(proxy.events("reloaded") + proxy.events("reload_failed")) <= 3


def is_handled(pid: int) -> bool:
    """Whether every signal that was sent to a process has been delivered, waited for."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        if not int(fields["ShdPnd"], 16) | int(fields["SigPnd"], 16):
            return True
        time.sleep(0.001)
    return False


def test_a_reload_of_which_one_dies(config: Config) -> None:
    """The others give back what they had built for it."""
    with Proxy({**config, "workers": 2}) as proxy:
        first, second = proxy.worker_pids
        before = open_descriptors(second)
        os.kill(first, signal.SIGSTOP)
        proxy.signal(signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE
        while open_descriptors(second) == before:
            assert time.monotonic() < deadline
        os.kill(first, signal.SIGKILL)
        proxy.wait_for("reload_failed")
        assert open_descriptors(second) == before


def test_the_end_in_a_reload(config: Config) -> None:
    """It is given up: nothing is reloaded any more, and the drain does not wait for it."""
    with Proxy(config) as proxy:
        worker = proxy.worker_pids[0]
        os.kill(worker, signal.SIGSTOP)
        proxy.signal(signal.SIGHUP)
        assert is_handled(proxy.pid)
        proxy.terminate()
        proxy.wait_for("draining")
        os.kill(worker, signal.SIGCONT)
        assert proxy.exit_code == ExitCode.DRAINED
        assert proxy.wait_for("drained")["connections_cut"] == 0
        assert proxy.events("reloaded") + proxy.events("reload_failed") == []


# Ends


def test_ends_as_asked(config: Config, client_credentials: CredentialFiles) -> None:
    """SIGTERM drains, and with nothing left it exits 0, and its workers and its port are gone."""
    with Proxy({**config, "workers": 2}) as proxy:
        assert is_served(proxy, client_credentials)
        proxy.connection_record(reason="closed")
        workers = proxy.worker_pids
        proxy.terminate()
        assert proxy.exit_code == ExitCode.DRAINED
        assert proxy.wait_for("drained")["connections_cut"] == 0
        assert [is_gone(pid) for pid in workers] == [True, True]
        assert proxy.events("worker_exited") == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(proxy.address)


def test_the_drain_deadline(config: Config, backend: RecordingBackend, client_credentials: CredentialFiles) -> None:
    """SIGINT drains too; connections that are busy at the deadline are cut, and it exits 1."""
    timeouts = {"drain": "200ms", "linger": "100ms"}
    with Proxy({**config, "timeouts": timeouts}) as proxy, busy(proxy, backend, client_credentials, count=2):
        proxy.signal(signal.SIGINT)
        assert proxy.exit_code == ExitCode.CUT_CONNECTIONS
        assert proxy.wait_for("drained")["connections_cut"] == 2
        assert len(proxy.events("connection", reason="drain_timeout")) == 2


def test_the_drain_delay(config: Config, client_credentials: CredentialFiles) -> None:
    """It says that it drains, and accepts on for so long; a reload changes nothing any more."""
    with Proxy({**config, "timeouts": {"drain_delay": "2s"}}) as proxy:
        proxy.terminate()
        proxy.wait_for("draining")
        proxy.signal(signal.SIGHUP)
        assert is_served(proxy, client_credentials)
        assert proxy.exit_code == ExitCode.DRAINED
        assert proxy.events("reloaded") == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(proxy.address)


def test_a_worker_that_dies_in_the_drain_delay(config: Config, client_credentials: CredentialFiles) -> None:
    """It is replaced: until the delay is over everything goes on."""
    with Proxy({**config, "timeouts": {"drain_delay": "1h"}}) as proxy:
        proxy.terminate()
        proxy.wait_for("draining")
        os.kill(proxy.worker_pids[0], signal.SIGKILL)
        assert is_served(proxy, client_credentials)
        started = time.monotonic()
        proxy.terminate()
        assert proxy.exit_code == ExitCode.CUT_CONNECTIONS
        assert time.monotonic() - started < 5


def time_of_second_signal(proxy: Proxy) -> float:
    """Seconds from a second SIGTERM to the end."""
    proxy.terminate()
    proxy.wait_for("draining")
    started = time.monotonic()
    proxy.terminate()
    assert proxy.exit_code == ExitCode.CUT_CONNECTIONS
    return time.monotonic() - started


def test_a_second_signal_stops_at_once(
    config: Config, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """Whatever is still open is cut, and it exits 1."""
    with Proxy(config) as proxy, busy(proxy, backend, client_credentials) as (client,):
        assert time_of_second_signal(proxy) < 2
        assert client.receive_all().data == b""


def test_a_second_signal_stops_all_at_once(
    config: Config, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """However many workers there are."""
    with Proxy({**config, "workers": 3}) as proxy, busy(proxy, backend, client_credentials, count=18):
        assert time_of_second_signal(proxy) < 2


def test_a_worker_that_does_not_answer_is_not_waited_for(config: Config) -> None:
    """A worker that hangs when it is to drain is killed by a second signal."""
    with Proxy(config) as proxy:
        (worker,) = proxy.worker_pids
        os.kill(worker, signal.SIGSTOP)
        assert time_of_second_signal(proxy) < 3
        assert is_gone(worker)


def test_a_worker_that_hangs_past_the_deadline(site: Config) -> None:
    """Without a second signal it is killed a little after the drain deadline, and it exits 1."""
    with running(site, before="sys.argv.append('--timeout-drain=1ms'); workers.DRAIN_GRACE = 0.2") as (process, log):
        assert has(log, "listening")
        worker = pid_of(log, 1)
        os.kill(worker, signal.SIGSTOP)
        process.terminate()
        assert process.wait(PATIENCE) == ExitCode.CUT_CONNECTIONS
        assert is_gone(worker)
    assert log.events[-1]["connections_cut"] == "unknown"
    assert log.stray == []


def test_a_signal_during_the_start(site: Config) -> None:
    """Who is told to end before it serves ends."""
    with running(site) as (process, log):
        pid_of(log, 1)
        process.terminate()
        assert process.wait(PATIENCE) == ExitCode.DRAINED
    assert log.stray == []


def test_told_to_end_while_a_worker_is_replaced(config: Config) -> None:
    """A worker that is just building its first snapshot is no reason for anything but log lines."""
    with Proxy(config) as proxy:
        os.kill(proxy.worker_pids[0], signal.SIGKILL)
        replacement = proxy.wait_for("worker_started", count=2)["pid"]
        os.kill(replacement, signal.SIGSTOP)
        proxy.terminate()
        proxy.wait_for("draining")
        os.kill(replacement, signal.SIGCONT)
        assert proxy.exit_code == ExitCode.DRAINED


@pytest.fixture
def our_signals() -> Iterator[None]:
    """Put back what this process does with signals, after a parent has lived in it."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("our_signals")
async def test_told_to_end_while_workers_prepare(
    server_credentials: CredentialFiles, client_ca: Path, backend: RecordingBackend
) -> None:
    """A reload that waits for a worker does not keep the parent (here: this process) from draining."""
    bundle = make_bundle(server_credentials, client_ca, backend.url, workers=1)
    read, write = os.pipe()
    lines = actors.Log(read)
    parent = Parent(lambda: bundle, bundle, Log(bundle.settings.log, write), write, ServiceManager({}))
    running = asyncio.create_task(parent.run())
    assert await asyncio.to_thread(has, lines, "listening")
    (worker,) = parent._workers.values()
    os.kill(worker.process.pid, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGHUP)
    while worker._channel._reader._waiter is None:  # type: ignore[attr-defined]  # until it is asked
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.to_thread(has, lines, "draining")
    os.kill(worker.process.pid, signal.SIGCONT)
    assert await asyncio.wait_for(running, PATIENCE) is ExitCode.DRAINED
    os.close(write)
    lines.join(PATIENCE)


@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"problems": 7},
        {"problems": [7]},
        {"prepared": 2},
        {"prepared": 2, "advice": 7, "expiries": []},
        {"prepared": 2, "advice": [], "expiries": [["path", "subject", "never"]]},
    ],
)
async def test_a_worker_that_makes_no_sense(
    server_credentials: CredentialFiles, client_ca: Path, backend: RecordingBackend, reply: dict[str, Any]
) -> None:
    """One that was taken over can make a reload fail, and nothing else: the parent takes it for a problem."""
    bundle = make_bundle(server_credentials, client_ca, backend.url, workers=1)
    read, write = os.pipe()
    log = Log(bundle.settings.log, write)
    parent = Parent(lambda: bundle, bundle, log, write, ServiceManager({}))
    ours, theirs = socket.socketpair()
    liar = await Channel.open(theirs)
    process = await asyncio.create_subprocess_exec("sleep", "60")
    worker = WorkerProcess(1, process, await Channel.open(ours))
    process.kill()  # all that it has to say is said here
    await liar.send_reply(reply)
    with pytest.raises(ConfigurationError, match="makes no sense"):
        await parent._prepare([worker], bundle, 2, announce=True)
    await worker.end()
    liar.close()
    os.close(read)
    os.close(write)


@pytest.mark.usefixtures("our_signals")
async def test_it_says_again_and_again_that_it_only_observes(
    server_credentials: CredentialFiles, client_ca: Path, backend: RecordingBackend
) -> None:
    """As long as it serves, in hours that are short here."""
    bundle = make_bundle(server_credentials, client_ca, backend.url, workers=1, enforcement="observe")
    read, write = os.pipe()
    lines = actors.Log(read)
    log = Log(bundle.settings.log, write)
    parent = Parent(lambda: bundle, bundle, log, write, ServiceManager({}))
    parent._reminders = Reminders(log, hour=0.01)
    running = asyncio.create_task(parent.run())

    def warned_thrice() -> bool:
        return sum("keeps nobody out" in str(event.get("advice")) for event in lines.events) >= 3

    assert await asyncio.to_thread(lines.wait_until, warned_thrice, PATIENCE)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, PATIENCE) is ExitCode.DRAINED
    os.close(write)
    lines.join(PATIENCE)


def test_bad_configuration(config: Config, site: Config, tmp_path: Path) -> None:
    """What only a worker can find wrong ends the start as well, with every problem on stderr, and exit code 2."""
    bad = tmp_path / "bad.pem"
    bad.write_text("<html>")
    proxy = Proxy({**config, "workers": 2, "sites": [{**site, "clients": {"ca": [str(bad), str(bad)]}}]})
    done = run_command("run", *proxy.flags)
    proxy._scratch.cleanup()
    assert done.exit_code == ExitCode.BAD_CONFIGURATION
    told = [line for line in done.stderr.splitlines() if line.startswith("aop-proxy: ")]
    assert [line.split(": ")[1] for line in told] == ["sites[0].clients.ca[0]", "sites[0].clients.ca[1]"]
    assert "Traceback" not in done.stderr


def test_an_address_that_is_taken(config: Config) -> None:
    """It is named, and who holds it; the exit code is 4; a second instance is noticed, too."""
    with Proxy(config) as proxy:
        other = Proxy({**config, "listen": [proxy.addresses[0]]})
        done = run_command("run", *other.flags)
        other._scratch.cleanup()
        holder = f"{Path(f'/proc/{proxy.pid}/comm').read_text().strip()} (process {proxy.pid})"
    assert done.exit_code == ExitCode.CANNOT_BIND
    assert done.stderr == f"aop-proxy: cannot listen on {proxy.addresses[0]}: Address already in use by {holder}\n"
