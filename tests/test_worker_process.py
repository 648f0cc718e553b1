"""A worker from its parent's side: what comes of a question when the worker is well, slow, hung or dead."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

import actors
from actors import PATIENCE, RecordingBackend
from aop_proxy.channel import Commit, Drain, Prepare
from aop_proxy.model import Bundle
from aop_proxy.worker_process import WorkerProcess
from certificates import CredentialFiles
from in_process import make_bundle


@pytest.fixture
def bundle(server_credentials: CredentialFiles, client_ca: Path, backend: RecordingBackend) -> Bundle:
    return make_bundle(server_credentials, client_ca, backend.url)


@pytest.fixture
async def worker() -> AsyncIterator[WorkerProcess]:
    """A worker without listeners."""
    read, write = os.pipe()
    log = actors.Log(read)
    process = await WorkerProcess.start(1, write, [])
    os.close(write)
    yield process
    await process.end()
    log.join(PATIENCE)


async def test_an_answer_belongs_to_its_question(worker: WorkerProcess, bundle: Bundle) -> None:
    """Questions that are asked at once are answered one after the other."""
    prepared, committed, drained = await asyncio.gather(
        worker.ask(Prepare(bundle, 7)), worker.ask(Commit()), worker.ask(Drain())
    )
    assert prepared is not None
    assert (prepared["prepared"], committed, drained) == (7, {"committed": True}, {"drained": 0})


@pytest.mark.parametrize("padding", [0, 4 * 1024 * 1024], ids=["sent", "half_sent"])
async def test_a_question_that_was_given_up(worker: WorkerProcess, bundle: Bundle, padding: int) -> None:
    """Its answer, when it comes, is not taken for the next one's."""
    bundle = replace(bundle, files={**bundle.files, "padding": bytes(padding)})
    os.kill(worker.process.pid, signal.SIGSTOP)
    given_up = asyncio.create_task(worker.ask(Prepare(bundle, 1)))
    while not worker._owed:
        await asyncio.sleep(0.01)
    given_up.cancel()
    os.kill(worker.process.pid, signal.SIGCONT)
    assert await worker.ask(Commit()) == {"committed": True}


async def test_a_worker_that_does_not_answer_is_killed(worker: WorkerProcess) -> None:
    """Patience ends, and with it the worker: one that hangs serves nobody."""
    os.kill(worker.process.pid, signal.SIGSTOP)
    assert await worker.ask(Drain(), patience=0.1) is None
    assert await asyncio.wait_for(worker.process.wait(), PATIENCE) == -signal.SIGKILL


async def test_a_dead_worker_answers_nothing(worker: WorkerProcess) -> None:
    """Neither the question during which it died, nor any later one."""
    os.kill(worker.process.pid, signal.SIGSTOP)
    asked = asyncio.create_task(worker.ask(Drain()))
    while not worker._owed:
        await asyncio.sleep(0.01)
    worker.process.kill()
    assert await asyncio.wait_for(asked, PATIENCE) is None
    assert await asyncio.wait_for(worker.ask(Drain()), PATIENCE) is None


async def test_ends_also_who_hangs(worker: WorkerProcess) -> None:
    """A worker that does not leave when its parent hangs up is killed."""
    os.kill(worker.process.pid, signal.SIGSTOP)
    await asyncio.wait_for(worker.end(), PATIENCE)
    assert worker.process.returncode == -signal.SIGKILL
