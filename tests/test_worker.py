"""A worker as its parent meets it: a process of its own that builds, serves, drops what it may do, and ends."""

import asyncio
import contextlib
import os
import pwd
import resource
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

import actors
from actors import GET_AND_CLOSE, HELLO, PATIENCE, Event, RecordingBackend, TlsClient, ask, client_context, never_answer
from aop_proxy.channel import Commit, Drain, Prepare, Reply
from aop_proxy.endpoint import Listener
from aop_proxy.model import Bundle
from aop_proxy.worker_process import WorkerProcess
from certificates import Authority, CredentialFiles
from in_process import make_bundle

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
NOBODY = pwd.getpwnam("nobody")
CLOUDFLARE = (Path(__file__).parents[1] / "certs" / "cloudflare_origin_pull_ca.pem").read_bytes()


class Employer:
    """One worker with one listener, and what it logs."""

    def __init__(self, process: WorkerProcess, listener: socket.socket, log: actors.Log) -> None:
        self.process = process
        self.address: tuple[str, int] = listener.getsockname()
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.process.pid

    async def ask(self, command: Prepare | Commit | Drain) -> Reply:
        reply = await asyncio.wait_for(self.process.ask(command), PATIENCE)
        assert reply is not None, f"the worker is gone:\n{self.log}"
        return reply

    async def employ(self, bundle: Bundle, generation: int = 1) -> None:
        """Have it serve a bundle."""
        reply = await self.ask(Prepare(bundle, generation))
        assert (reply["prepared"], reply["advice"]) == (generation, [])
        assert await self.ask(Commit()) == {"committed": True}

    def hang_up(self) -> None:
        """Close our end, as when the parent dies."""
        self.process._channel.close()

    async def exit_code(self) -> int:
        return await asyncio.wait_for(self.process.process.wait(), PATIENCE)

    def status(self) -> dict[str, list[str]]:
        """What the kernel says of it."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}

    def pipes(self) -> set[str]:
        """The pipes that it holds."""
        held = [os.readlink(path) for path in Path(f"/proc/{self.pid}/fd").iterdir()]
        return {name for name in held if name.startswith("pipe:")}

    def descriptor_limits(self) -> list[str]:
        """Soft and hard."""
        limits = Path(f"/proc/{self.pid}/limits").read_text().splitlines()
        (line,) = [line for line in limits if line.startswith("Max open files")]
        return line.split()[3:5]

    async def record(self) -> Event:
        """The record of its first connection."""
        connections: list[Event] = []

        def arrived() -> bool:
            connections[:] = [event for event in self.log.events if event["event"] == "connection"]
            return bool(connections)

        assert await asyncio.to_thread(self.log.wait_until, arrived, PATIENCE)
        return connections[0]


@contextlib.asynccontextmanager
async def hire() -> AsyncIterator[Employer]:
    read, write = os.pipe()
    log = actors.Log(read)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        process = await WorkerProcess.start(1, write, [Listener(listener, 0)])
        os.close(write)
        try:
            yield Employer(process, listener, log)
        finally:
            await process.end()
            log.join(PATIENCE)
    assert log.stray == []


@pytest.fixture
async def worker() -> AsyncIterator[Employer]:
    async with hire() as employer:
        yield employer


@pytest.fixture
def bundle(server_credentials: CredentialFiles, client_ca: Path, backend: RecordingBackend) -> Bundle:
    return make_bundle(server_credentials, client_ca, backend.url)


async def visit(worker: Employer, credentials: CredentialFiles | None) -> actors.Answer:
    return await asyncio.to_thread(ask, worker.address, client_context(credentials))


async def test_serves_what_was_committed(
    worker: Employer, bundle: Bundle, client_credentials: CredentialFiles, backend: RecordingBackend
) -> None:
    """After `Prepare` it only holds a snapshot; after `Commit` it serves by it, with pages for strangers."""
    assert (await worker.ask(Prepare(bundle, 4)))["prepared"] == 4
    waiting = asyncio.create_task(visit(worker, client_credentials))
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert done == set()
    assert await worker.ask(Commit()) == {"committed": True}
    assert (await waiting).data == HELLO
    record = await worker.record()
    assert (record["worker"], record["generation"]) == (1, 4)
    assert (await visit(worker, None)).status == 400
    assert backend.received == GET_AND_CLOSE


async def test_says_what_is_wrong(worker: Employer, bundle: Bundle, client_credentials: CredentialFiles) -> None:
    """A bundle that cannot be served is answered with every problem, and changes nothing."""
    await worker.employ(bundle)
    bad = replace(bundle, files={**bundle.files, "ca": b"<html>", "key": b"none"})
    reply = await worker.ask(Prepare(bad, 2))
    assert [path for path, _ in reply["problems"]] == ["sites[0].clients.ca[0]", "sites[0].private_key"]
    assert (await visit(worker, client_credentials)).data == HELLO


async def test_begins_with_something_wrong(
    worker: Employer, bundle: Bundle, client_credentials: CredentialFiles
) -> None:
    """A first bundle that cannot be served is no end: the next may be better."""
    reply = await worker.ask(Prepare(replace(bundle, files={**bundle.files, "ca": b"<html>"}), 1))
    assert len(reply["problems"]) == 1
    await worker.employ(bundle)
    assert (await visit(worker, client_credentials)).data == HELLO


async def test_advice_and_ends_go_to_the_parent(worker: Employer, bundle: Bundle, authority: Authority) -> None:
    """What is merely worth knowing comes with the reply, and when everything ends."""
    reply = await worker.ask(Prepare(bundle, 1))
    ends = authority.certificate.not_valid_after_utc
    assert ["sites[0].clients.ca[0]", "CN=Test Client CA", ends.isoformat()] in reply["expiries"]
    (site,) = bundle.settings.sites
    shared = replace(site, clients=replace(site.clients, ca=("cloudflare",)))
    changed = Bundle(replace(bundle.settings, sites=(shared,)), {**bundle.files, "cloudflare": CLOUDFLARE})
    reply = await worker.ask(Prepare(changed, 1))
    (advice,) = reply["advice"]
    assert advice.startswith("sites[0].clients.ca: Cloudflare's shared CA")


async def test_switches(worker: Employer, bundle: Bundle, client_credentials: CredentialFiles) -> None:
    """A second snapshot replaces the first."""
    await worker.employ(bundle)
    (site,) = bundle.settings.sites
    await worker.employ(
        replace(bundle, settings=replace(bundle.settings, sites=(replace(site, hosts=("a.example",)),))), 2
    )
    assert (await visit(worker, client_credentials)).status == 421


async def test_serves_while_it_builds(worker: Employer, bundle: Bundle, client_credentials: CredentialFiles) -> None:
    """Hundreds of sites are built in between what it is there for."""
    await worker.employ(bundle)
    (site,) = bundle.settings.sites
    sites = tuple(replace(site, hosts=(f"{number}.example",)) for number in range(300))
    many = replace(bundle, settings=replace(bundle.settings, sites=sites))
    building = asyncio.create_task(worker.ask(Prepare(many, 2)))
    await asyncio.sleep(0)
    assert (await visit(worker, client_credentials)).data == HELLO
    assert not building.done()
    assert (await building)["prepared"] == 2


async def test_refusal_alert(worker: Employer, bundle: Bundle) -> None:
    """Without pages there is no key log."""
    await worker.employ(replace(bundle, settings=replace(bundle.settings, refusal="alert")))
    assert (await visit(worker, None)).ending == "alert:certificate_required"
    async with hire() as other:
        await other.employ(bundle)
        assert len(other.pipes()) == len(worker.pipes()) + 1


async def test_commit_without_prepare(worker: Employer) -> None:
    """That is a bug of the parent's, and the worker's end."""
    async with hire() as other:
        assert await asyncio.wait_for(other.process.ask(Commit()), PATIENCE) is None
        assert await other.exit_code() == 1


# Ends


async def test_drains_and_ends(worker: Employer, bundle: Bundle) -> None:
    """Nothing to wait for: it says so and exits."""
    await worker.employ(bundle)
    assert await worker.ask(Drain()) == {"drained": 0}
    assert await worker.exit_code() == 0


async def test_drains_before_it_serves(worker: Employer) -> None:
    """It may be told to end at any time."""
    assert await worker.ask(Drain()) == {"drained": 0}
    assert await worker.exit_code() == 0


async def test_says_how_many_it_cut(
    worker: Employer, bundle: Bundle, client_credentials: CredentialFiles, backend: RecordingBackend
) -> None:
    """Connections that are busy at the deadline are counted."""
    backend.behaviour = never_answer
    hasty = replace(bundle.settings, timeouts=replace(bundle.settings.timeouts, drain=0.2, linger=0.1))
    await worker.employ(replace(bundle, settings=hasty))
    with TlsClient(worker.address, client_context(client_credentials)) as client:
        await asyncio.to_thread(client.handshake, GET_AND_CLOSE)
        await asyncio.to_thread(backend.wait_for_connection)
        assert await worker.ask(Drain()) == {"drained": 1}


@pytest.mark.parametrize("busy", [False, True], ids=["before it serves", "while it serves"])
async def test_ends_with_its_parent(
    worker: Employer, bundle: Bundle, busy: bool, client_credentials: CredentialFiles, backend: RecordingBackend
) -> None:
    """When the channel is closed it cuts what it has and exits."""
    if not busy:
        worker.hang_up()
        assert await worker.exit_code() == 0
        return
    backend.behaviour = never_answer
    await worker.employ(bundle)
    with TlsClient(worker.address, client_context(client_credentials)) as client:
        await asyncio.to_thread(client.handshake, GET_AND_CLOSE)
        await asyncio.to_thread(backend.wait_for_connection)
        worker.hang_up()
        assert await worker.exit_code() == 0
        assert (await asyncio.to_thread(client.receive_all)).data == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_signals_are_the_parents(
    worker: Employer, bundle: Bundle, client_credentials: CredentialFiles, number: signal.Signals
) -> None:
    """A terminal or a service manager signals us all; a worker waits for what its parent says."""
    await worker.employ(bundle)
    os.kill(worker.pid, number)
    assert (await visit(worker, client_credentials)).data == HELLO


# What it may do


async def test_takes_all_the_descriptors_it_may_have(bundle: Bundle) -> None:
    """The soft limit is raised to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    try:
        async with hire() as worker:
            await worker.employ(bundle)
            assert worker.descriptor_limits() == [str(hard)] * 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_nothing_in_the_working_directory_is_loaded(
    bundle: Bundle, client_credentials: CredentialFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `json.py` there, or an `aop_proxy`, is not taken for a module."""
    for name in ("json.py", "aop_proxy.py", "uvloop.py"):
        (tmp_path / name).write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    async with hire() as worker:
        await worker.employ(bundle)
        assert (await visit(worker, client_credentials)).data == HELLO


async def test_no_file_takes_the_keys(
    bundle: Bundle, client_credentials: CredentialFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSLKEYLOGFILE in the environment is not honoured."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    async with hire() as worker:
        await worker.employ(bundle)
        assert (await visit(worker, client_credentials)).data == HELLO
    assert not await asyncio.to_thread((tmp_path / "keys").exists)


@needs_root
async def test_becomes_another_user(worker: Employer, bundle: Bundle, client_credentials: CredentialFiles) -> None:
    """With `user` it is that user for good, in none of root's groups, and pages still work, also after a reload."""
    as_nobody = replace(bundle, settings=replace(bundle.settings, user="nobody"))
    await worker.employ(as_nobody)
    status = worker.status()
    assert (status["Uid"], status["Gid"]) == ([str(NOBODY.pw_uid)] * 4, [str(NOBODY.pw_gid)] * 4)
    assert "0" not in status["Groups"]
    assert set(status["CapEff"] + status["CapPrm"]) == {"0" * 16}
    assert os.stat(f"/proc/{worker.pid}/fd").st_uid == 0, "not dumpable"
    assert (await visit(worker, None)).status == 400
    await worker.employ(as_nobody, 2)
    assert (await visit(worker, None)).status == 400
    assert (await visit(worker, client_credentials)).data == HELLO


@pytest.mark.parametrize("user", ["nobody-of-this-name", "no such user"])
async def test_an_unknown_user(worker: Employer, bundle: Bundle, user: str) -> None:
    """It is a problem, with the name."""
    reply = await worker.ask(Prepare(replace(bundle, settings=replace(bundle.settings, user=user)), 1))
    assert reply == {"problems": [["user", f"there is no user '{user}' on this machine"]]}


@needs_root
async def test_a_user_by_number(worker: Employer, bundle: Bundle) -> None:
    """A user may be given by number, as in a container that has no name for it."""
    await worker.employ(replace(bundle, settings=replace(bundle.settings, user=str(NOBODY.pw_uid))))
    assert worker.status()["Uid"] == [str(NOBODY.pw_uid)] * 4


@needs_root
async def test_privileges_are_dropped_once(worker: Employer, bundle: Bundle) -> None:
    """A later bundle cannot make it somebody else."""
    await worker.employ(replace(bundle, settings=replace(bundle.settings, user="nobody")))
    await worker.employ(replace(bundle, settings=replace(bundle.settings, user="daemon")), 2)
    assert worker.status()["Uid"] == [str(NOBODY.pw_uid)] * 4
