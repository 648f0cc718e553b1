"""The parent's side of the admin listener: binds it, hears the workers' reports, keeps a child alive that shows them.

The child gets its socket and, each second, the ledger's state as one line of JSON; whoever visits it never meets the
parent. Standard library only. Must not know what is counted.
"""

import asyncio
import contextlib
import json
import os
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Coroutine
from typing import Any

from aop_proxy import listeners
from aop_proxy.endpoint import format_address
from aop_proxy.ledger import Account, Ledger
from aop_proxy.log import Log
from aop_proxy.model import Admin
from aop_proxy.worker_process import WorkerProcess

TELL_EVERY = 1.0
RESTART_PAUSE_MIN, RESTART_PAUSE_MAX = 0.1, 10.0
END_PATIENCE = 1.0
_CHILD = f"""
import sys
sys.path.append({os.path.dirname(os.path.dirname(os.path.abspath(__file__)))!r})
from aop_proxy.admin import main
main()
"""


class AdminChild:
    """Keeps one admin process running, and tells it what there is to know."""

    def __init__(self, admin: Admin, user: str | None, log: Log, ledger: Ledger) -> None:
        """Bind the address. Raises BindError."""
        self._admin = admin
        self._user = user
        self._log = log
        self._ledger = ledger
        self._socket = _bind(admin, user)
        self._process: Process | None = None
        self._news = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """Where it really listens."""
        return f"unix:{self._admin.path}" if self._admin.path else format_address(self._socket.getsockname())

    def start(self) -> None:
        """Start the child, and another whenever it dies."""
        self._keep(self._keep_alive())

    def hear(self, worker: WorkerProcess) -> None:
        """Enter a worker's reports into the books until it is no more."""
        if worker.process.stdout is None:
            raise RuntimeError("it was not started to report")
        self._keep(
            self._listen_to(self._ledger.worker_started(worker.number, worker.process.pid), worker.process.stdout)
        )

    async def end(self) -> None:
        """End the child and hear nobody any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            self._process.kill()  # it holds nothing but what we told it
            await self._process.wait()
        self._socket.close()
        if self._admin.path:
            with contextlib.suppress(OSError):
                os.unlink(self._admin.path)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Hold a reference: the loop itself does not."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen_to(self, worker: Account, reports: asyncio.StreamReader) -> None:
        try:
            async for line in reports:
                is_first = worker.heard is None
                self._ledger.report(worker, json.loads(line))
                if is_first:  # a worker that serves is news
                    self._news.set()
        except (ValueError, RecursionError) as error:  # whoever wrote this is no worker of ours any more
            self._log.event("error", "report_unreadable", worker=worker.number, error=str(error))
        finally:
            self._ledger.worker_ended(worker)

    async def _keep_alive(self) -> None:
        pause = RESTART_PAUSE_MIN
        while True:
            began = asyncio.get_running_loop().time()
            try:
                code = await self._live()
                self._log.event("error", "admin_exited", code=code)
            except OSError as error:  # no descriptor, no memory: later there may be
                self._log.event("error", "admin_exited", error=str(error))
            lived = asyncio.get_running_loop().time() - began
            pause = RESTART_PAUSE_MIN if lived > RESTART_PAUSE_MAX else min(2 * pause, RESTART_PAUSE_MAX)
            await asyncio.sleep(pause)

    async def _live(self) -> int:
        """One child's life; its exit code."""
        words = [str(self._socket.fileno()), self._user or "", *self._admin.shows]
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", _CHILD, *words, stdin=PIPE, stdout=PIPE, pass_fds=[self._socket.fileno()]
        )
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("pipes were asked for")
        talk = [asyncio.ensure_future(self._tell(process.stdin)), asyncio.ensure_future(self._heed(process.stdout))]
        try:
            return await process.wait()
        finally:
            for one in talk:
                one.cancel()
            await asyncio.gather(*talk, return_exceptions=True)

    async def _tell(self, child: asyncio.StreamWriter) -> None:
        """Tell the child the state until it is gone."""
        with contextlib.suppress(ConnectionError):
            while True:
                self._news.clear()
                child.write(json.dumps(self._ledger.state()).encode() + b"\n")
                await child.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), TELL_EVERY)

    async def _heed(self, child: asyncio.StreamReader) -> None:
        """Hear that the child is ready, and of the bugs that it meets."""
        async for line in child:
            told = line.decode("ascii", "replace").split("\t")
            if told[0].strip() == "ready":
                self._log.event("info", "admin_ready", address=self.address)
            else:
                self._log.event("error", "internal_error", traceback=told)


def _bind(admin: Admin, user: str | None) -> socket.socket:
    return listeners.bind_path(admin.path, user) if admin.path else listeners.bind_one(admin.host, admin.port)
