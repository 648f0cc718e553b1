"""A worker process: takes a bundle and listening sockets from the parent, builds snapshots, serves.

The parent runs `main` with the arguments CHANNEL-FD LOG-FD NUMBER LISTENER-FD:PLACE…. It needs no file system once it
is running, drops its privileges before it hears of any client, and ends when the parent is gone.
"""

import asyncio
import contextlib
import gc
import json
import os
import resource
import signal
import socket
import sys

from aop_proxy import snapshot, transparency
from aop_proxy.channel import Abort, Channel, Commit, Ping, Prepare, Reply
from aop_proxy.credentials import Findings
from aop_proxy.endpoint import Listener
from aop_proxy.log import Log
from aop_proxy.model import ConfigurationError
from aop_proxy.privileges import drop_privileges
from aop_proxy.reasons import Reason
from aop_proxy.server import Server
from aop_proxy.tls import KeyLog, open_key_log

try:
    import uvloop as loops
except ImportError:  # no wheel for this Python or system yet: slower, and otherwise the same
    loops = asyncio  # type: ignore[misc]


REPORT_EVERY = 1.0
"""Seconds; a report costs some 0.1 ms, and 0.15 us for each open connection."""


class Worker:
    """One worker's side of the conversation."""

    def __init__(self, channel: Channel, log_descriptor: int, number: int, listeners: list[Listener]) -> None:
        """Take what the parent handed over."""
        self._channel = channel
        self._log_descriptor = log_descriptor
        self._number = number
        self._listeners = listeners
        self._key_log: KeyLog | None = None
        self._has_privileges = True
        self._prepared: snapshot.Snapshot | None = None
        self._server: Server | None = None

    async def serve(self) -> None:
        """Obey the parent until it says to drain, or is gone."""
        while command := await self._channel.receive_command():
            if isinstance(command, Prepare):
                await self._channel.send_reply(await self._prepare(command))
            elif isinstance(command, Commit):
                self._commit()
                await self._channel.send_reply({"committed": True})
            elif isinstance(command, Abort):
                self._prepared = None
                await self._channel.send_reply({"aborted": True})
            elif isinstance(command, Ping):
                await self._channel.send_reply({"alive": True})
            else:
                await self._drain()
                return
        if self._server:
            await self._server.stop(Reason.DRAIN_TIMEOUT)

    async def _drain(self) -> None:
        """Let the connections end; cut them if the parent goes meanwhile."""
        if self._server is None:
            await self._channel.send_reply({"drained": 0})
            return
        drained = asyncio.ensure_future(self._server.drain())
        parent_gone = asyncio.ensure_future(self._channel.receive_command())
        await asyncio.wait([drained, parent_gone], return_when=asyncio.FIRST_COMPLETED)
        if drained.done():
            parent_gone.cancel()
            await self._channel.send_reply({"drained": drained.result()})
        else:
            await self._server.stop(Reason.DRAIN_TIMEOUT)
            await drained

    async def _prepare(self, command: Prepare) -> Reply:
        """Build a snapshot, site by site: in between, those that are served have their turn."""
        known_keys = self._server.snapshot.sound_keys if self._server else frozenset()
        findings = Findings(expired_is_problem=not command.is_replacement, known_keys=known_keys)
        try:
            if self._has_privileges:
                settings = command.bundle.settings
                drop_privileges(settings.user, keeps_net_admin=transparency.is_wanted(settings))
                self._has_privileges = False
                self._key_log = open_key_log(settings)
            if problems := transparency.problems(command.bundle.settings):
                raise ConfigurationError(*problems)
            builder = snapshot.Builder(command.bundle, self._key_log, findings)
            for _ in builder.build_gates():
                await asyncio.sleep(0)
            self._prepared = builder.finish(command.generation)
        except ConfigurationError as error:
            return {"problems": [[problem.path, problem.sentence] for problem in error.problems]}
        return {
            "prepared": command.generation,
            "advice": [str(advice) for advice in self._prepared.advice],
            "expiries": [[end.path, end.subject, end.not_after.isoformat()] for end in self._prepared.expiries],
        }

    async def _report(self, server: Server) -> None:
        """Tell the parent on stdout what has been counted, again and again."""
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(1, "wb", closefd=False)
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
        writer = asyncio.StreamWriter(transport, protocol, None, loop)
        while True:
            writer.write(json.dumps(server.report()).encode() + b"\n")
            await writer.drain()
            await asyncio.sleep(REPORT_EVERY)

    def _commit(self) -> None:
        if self._prepared is None:
            raise RuntimeError("told to commit what was never prepared")
        if self._server is None:
            loop = asyncio.get_running_loop()
            log = Log(self._prepared.settings.log, self._log_descriptor)
            self._server = Server(loop, log, self._prepared, self._number)
            self._server.listen(self._listeners)
            if self._prepared.settings.admin is not None:
                self._reporting = loop.create_task(self._report(self._server))
            # What lives by now lives for good: the collector need not look at it again.
            gc.collect()
            gc.freeze()
        else:
            self._server.switch(self._prepared)
        self._prepared = None


async def _main(channel: int, log: int, number: int, listeners: list[Listener]) -> None:
    with contextlib.suppress(ConnectionError):  # the parent is gone, and so is whoever would hear of it
        await Worker(await Channel.open(socket.socket(fileno=channel)), log, number, listeners).serve()


def main() -> None:
    """Run one worker to its end."""
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)  # a terminal or a service manager signals us all; the parent decides
    os.environ.pop("SSLKEYLOGFILE", None)  # OpenSSL 3.5 and newer may read it by itself
    sys.unraisablehook = lambda _: (
        None
    )  # CPython's complaint about a server name that is not ASCII: the client is refused
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    channel, log, number = map(int, sys.argv[1:4])
    pairs = [map(int, pair.split(":")) for pair in sys.argv[4:]]
    listeners = [Listener(socket.socket(fileno=descriptor), place) for descriptor, place in pairs]
    with asyncio.Runner(loop_factory=loops.new_event_loop) as runner:
        runner.run(_main(channel, log, number, listeners))
