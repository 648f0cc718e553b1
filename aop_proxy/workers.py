"""The parent: binds, starts workers, replaces those that die, passes on what signals ask for.

A reload is two-phase over all workers: each builds a snapshot of the new bundle, and only when all have built it do all
switch. Standard library and the configuration model only. Must not know connections.
"""

import asyncio
import itertools
import signal
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from enum import IntEnum
from typing import Any

from aop_proxy import exposure, listeners
from aop_proxy.admin_child import AdminChild
from aop_proxy.channel import Abort, Commit, Drain, Ping, Prepare, Reply
from aop_proxy.endpoint import Listener
from aop_proxy.expiry import Expiry
from aop_proxy.ledger import Ledger
from aop_proxy.log import Log
from aop_proxy.model import Bundle, ConfigurationError, Problem, Settings
from aop_proxy.processors import usable_cpus
from aop_proxy.reminders import Reminders
from aop_proxy.service_manager import ServiceManager
from aop_proxy.watch import Watch
from aop_proxy.worker_process import WorkerProcess

QUICK_DEATH = 10.0
"""Seconds: a worker that lived longer than this died of something new."""
MAX_QUICK_DEATHS = 8
RESTART_PAUSE_MIN, RESTART_PAUSE_MAX = 0.1, 2.0
WATCHDOG_BEATS = 4
"""Within the watchdog's time, so that one worker may hang and be replaced before its parent is taken for dead."""
DRAIN_GRACE = 5.0
"""Seconds past the drain deadline until a worker that does not answer is killed."""


class ExitCode(IntEnum):
    """How `run` ends."""

    DRAINED = 0
    CUT_CONNECTIONS = 1
    BAD_CONFIGURATION = 2
    WORKERS_KEEP_DYING = 3
    CANNOT_BIND = 4


class Parent:
    """Holds the sockets and the workers."""

    def __init__(
        self, load: Callable[[], Bundle], bundle: Bundle, log: Log, log_descriptor: int, manager: ServiceManager
    ) -> None:
        """Serve `bundle`; `load` reads it anew for a reload (ConfigurationError says why it cannot be served)."""
        self._bundle = bundle
        self._log = log
        self._log_descriptor = log_descriptor
        self._manager = manager
        self._generation = 1
        self._workers: dict[int, WorkerProcess] = {}
        self._replacing: dict[int, asyncio.Task[None]] = {}
        self._listeners: list[list[Listener]] = []
        self._changing = asyncio.Lock()
        self._reload_asked = asyncio.Event()
        self._watch = Watch(load, bundle)
        self._ledger = Ledger(bundle.settings)
        self._admin: AdminChild | None = None
        self._reminders = Reminders(log)
        self._expiries: list[Expiry] = []
        self._ended: asyncio.Future[ExitCode]
        self.stopped_by = signal.SIGTERM
        """The last signal that asked for the end."""

    async def run(self, before_serving: Callable[[], Coroutine[Any, Any, None]] | None = None) -> ExitCode:
        """Bind, start the workers, serve until a signal says otherwise. Raises ConfigurationError and BindError.

        `before_serving` is awaited once everything could be served, before anybody is.
        """
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        stop_asked = asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, lambda: None)  # what is being read is read anew already
        self._listeners = self._open_listeners()
        try:
            self._admin = self._open_admin()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stop_signal, number, stop_asked)
            workers = await self._start_all()
            stopping = loop.create_task(stop_asked.wait())
            if before_serving is not None:
                preparing = loop.create_task(before_serving())
                await _first(preparing, stopping, self._ended)
                if not preparing.cancel():
                    preparing.result()
            if not stopping.done() and not self._ended.done():
                await self._serve(workers)
                beside = [
                    loop.create_task(task)
                    for task in (
                        self._reminders.keep_telling(),
                        self._feed_watchdog(),
                        self._watch_files(),
                        self._reload_when_asked(),
                    )
                ]
                await _first(stopping, self._ended)
                for task in beside:
                    task.cancel()
            stopping.cancel()
            return self._ended.result() if self._ended.done() else await self._drain()
        finally:
            await self._kill_all()

    def stop(self) -> None:
        """End at once, as a second signal does."""
        if not self._ended.done():
            self._ended.set_result(ExitCode.CUT_CONNECTIONS)

    def _open_listeners(self) -> list[list[Listener]]:
        settings, given = self._bundle.settings, self._manager.descriptors
        workers = settings.workers or usable_cpus()
        return listeners.adopt(settings.listen, given, workers) if given else listeners.bind(settings.listen, workers)

    def _open_admin(self) -> AdminChild | None:
        settings = self._bundle.settings
        return AdminChild(settings.admin, settings.user, self._log, self._ledger) if settings.admin else None

    def _status(self) -> str:
        return f"Serving, generation {self._generation}, workers: {len(self._listeners)}"

    async def _feed_watchdog(self) -> None:
        """Tell whoever watches that we live, as long as every worker answers; who does not is killed, and replaced."""
        beat = self._manager.watchdog / WATCHDOG_BEATS
        while beat:
            # In a reload they are asked already, and have longer: building what is new takes its time.
            if self._changing.locked() or await self._do_all_answer(beat):
                self._manager.alive()
            await asyncio.sleep(beat)

    async def _do_all_answer(self, patience: float) -> bool:
        async with self._changing:
            answers = await asyncio.gather(*(worker.ask(Ping(), patience) for worker in self._alive()))
        return bool(answers) and None not in answers

    # Starting and replacing.

    async def _start_all(self) -> list[WorkerProcess]:
        numbers = range(1, len(self._listeners) + 1)
        started = await asyncio.gather(*(self._spawn(number) for number in numbers))
        await self._prepare(started, self._bundle, self._generation, announce=True)
        return started

    async def _serve(self, workers: Sequence[WorkerProcess]) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(worker.ask(Commit()) for worker in workers))
        self._ledger.serves(self._bundle.settings, self._generation, self._expiries)
        for worker in workers:
            self._keep_replacing(worker)
        loop.add_signal_handler(signal.SIGHUP, self._reload_asked.set)
        self._log.event("info", "listening", addresses=[listeners.name(one) for one in self._listeners[0]])
        self._manager.ready(self._status())
        if self._admin is not None:
            self._admin.start()

    async def _spawn(self, number: int) -> WorkerProcess:
        own = self._listeners[number - 1]
        worker = await WorkerProcess.start(number, self._log_descriptor, own, reports=self._admin is not None)
        self._workers[number] = worker
        if self._admin is not None:
            self._admin.hear(worker)
        self._log.event("info", "worker_started", worker=number, pid=worker.process.pid)
        return worker

    async def _prepare(
        self, workers: Sequence[WorkerProcess], bundle: Bundle, generation: int, *, announce: bool = False
    ) -> None:
        """Have every worker build a snapshot. Raises ConfigurationError with what any of them says is wrong."""
        replies = await asyncio.gather(*(worker.ask(Prepare(bundle, generation)) for worker in workers))
        try:
            problems = dict.fromkeys(itertools.chain(*map(_problems, workers, replies)))
            if not problems and announce and replies:
                self._announce(bundle.settings, replies[0] or {})
        except (LookupError, TypeError, ValueError) as error:  # whoever said this is no worker of ours any more
            raise ConfigurationError(Problem("", f"what a worker says makes no sense: {error!r}")) from error
        if problems:
            raise ConfigurationError(*problems)

    def _announce(self, settings: Settings, reply: Reply) -> None:
        """Tell what is worth knowing of a configuration; all workers say the same of it."""
        for advice in (*exposure.advise(settings), *reply["advice"]):
            self._log.event("warning", "advice", advice=str(advice))
        self._expiries = [
            Expiry(path, subject, datetime.fromisoformat(end)) for path, subject, end in reply["expiries"]
        ]
        self._reminders.renew(settings, self._expiries)

    def _keep_replacing(self, worker: WorkerProcess) -> None:
        self._replacing[worker.number] = asyncio.get_running_loop().create_task(self._replace_when_dead(worker))

    async def _replace_when_dead(self, worker: WorkerProcess) -> None:
        """Start a new worker on the same sockets whenever this one dies; give up if it keeps dying."""
        deaths = 0
        while True:
            code = await worker.process.wait()
            await worker.end()
            self._log.event("error", "worker_exited", worker=worker.number, pid=worker.process.pid, code=code)
            lived = asyncio.get_running_loop().time() - worker.started
            deaths = deaths + 1 if lived < QUICK_DEATH else 1
            if deaths > MAX_QUICK_DEATHS and not self._alive():
                if not self._ended.done():
                    self._ended.set_result(ExitCode.WORKERS_KEEP_DYING)
                return
            if deaths > 1:
                await asyncio.sleep(min(RESTART_PAUSE_MIN * 2**deaths, RESTART_PAUSE_MAX))
            worker = await self._replacement(worker.number)

    async def _replacement(self, number: int) -> WorkerProcess:
        """A new worker in a dead one's place, as soon as one can be started."""
        while True:
            try:
                async with self._changing:
                    worker = await self._spawn(number)
                    await self._bring_up(worker)
                    return worker
            except OSError as error:  # no descriptor, no memory: later there may be
                self._log.event("error", "worker_not_started", worker=number, error=str(error))
            await asyncio.sleep(RESTART_PAUSE_MAX)

    async def _bring_up(self, worker: WorkerProcess) -> None:
        """What was valid when it was loaded is served on: one worker's death must not end what the others do."""
        reply = await worker.ask(Prepare(self._bundle, self._generation, is_replacement=True))
        if reply is not None and "prepared" in reply:
            await worker.ask(Commit())
            return
        problems = [": ".join(map(str, pair)) for pair in (reply or {}).get("problems", [])]
        self._log.event("error", "worker_not_prepared", worker=worker.number, problems=problems)
        if worker.process.returncode is None:
            worker.process.kill()

    # Reload.

    async def _reload(self, *, anew: bool = True) -> None:
        async with self._changing:
            self._manager.reloading()
            try:
                bundle = await self._watch.take(anew=anew)
                _refuse_what_needs_a_restart(self._bundle.settings, bundle.settings)
                await self._prepare(self._alive(), bundle, self._generation + 1, announce=True)
            except ConfigurationError as error:
                await asyncio.gather(*(worker.ask(Abort()) for worker in self._alive()))
                problems = [str(problem) for problem in error.problems]
                self._log.event("error", "reload_failed", problems=problems)
                self._ledger.reload_failed(problems)
                self._manager.ready(f"{self._status()}; not reloaded: {problems[0]}")
                return
            await asyncio.gather(*(worker.ask(Commit()) for worker in self._alive()))
            self._bundle = bundle
            self._generation += 1
            self._ledger.serves(bundle.settings, self._generation, self._expiries)
            self._log.configure(bundle.settings.log)
            self._log.event("info", "reloaded", generation=self._generation)
            self._manager.ready(self._status())

    async def _reload_when_asked(self) -> None:
        """Reload once more however often it was asked for during a reload."""
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            await self._reload()

    async def _watch_files(self) -> None:
        """Reload when the files say something new."""
        while True:
            async with self._changing:  # a reload may change how often we look
                interval = self._bundle.settings.reload.watch
            if await self._watch.sees_change(interval):
                await self._reload(anew=False)  # a third look might find a file half written

    def _alive(self) -> list[WorkerProcess]:
        """Those that can be asked; who takes a dead one's place gets the bundle of that time."""
        return [worker for worker in self._workers.values() if worker.process.returncode is None]

    # Ending.

    def _stop_signal(self, number: signal.Signals, asked: asyncio.Event) -> None:
        if asked.is_set():  # the second time: at once
            self.stop()
        self.stopped_by = number
        asked.set()

    async def _drain(self) -> ExitCode:
        timeouts = self._bundle.settings.timeouts
        limit = timeouts.drain + DRAIN_GRACE
        self._log.event("info", "draining")
        self._ledger.draining()
        self._manager.stopping(timeouts.drain_delay + limit)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: None)  # what ends is not changed any more
        await _first(self._ended, timeout=timeouts.drain_delay)
        if self._ended.done():
            return self._ended.result()
        for task in self._replacing.values():
            task.cancel()
        for listener in itertools.chain(*self._listeners):
            listener.socket.close()
        drained = asyncio.gather(*(worker.ask(Drain(), limit) for worker in self._alive()))
        await _first(drained, self._ended, timeout=limit)
        if not drained.done():
            drained.cancel()
            await asyncio.gather(drained, return_exceptions=True)
            self._log.event("warning", "drained", connections_cut="unknown")
            return ExitCode.CUT_CONNECTIONS
        replies = drained.result()
        cut = sum(int(reply.get("drained", 0)) for reply in replies if reply)
        lost = replies.count(None)
        self._log.event("info", "drained", connections_cut=cut, **({"workers_lost": lost} if lost else {}))
        return ExitCode.CUT_CONNECTIONS if cut or lost else ExitCode.DRAINED

    async def _kill_all(self) -> None:
        for task in self._replacing.values():
            task.cancel()
        await asyncio.gather(*(worker.end() for worker in self._workers.values()))
        if self._admin is not None:
            await self._admin.end()


async def _first(*things: asyncio.Future[Any], timeout: float | None = None) -> None:
    await asyncio.wait(things, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


def _problems(worker: WorkerProcess, reply: Reply | None) -> list[Problem]:
    """What a worker has against a configuration."""
    if reply is None:
        return [Problem("", f"worker {worker.number} died while it loaded the configuration")]
    return [] if "prepared" in reply else [Problem(*map(str, pair)) for pair in reply["problems"]]


def _refuse_what_needs_a_restart(old: Settings, new: Settings) -> None:
    fixed = ("listen", "workers", "admin", "user", "enforcement", "refusal")
    changed = [name for name in fixed if getattr(old, name) != getattr(new, name)]
    if changed:
        raise ConfigurationError(*(Problem(name, "a change of this key needs a restart") for name in changed))
