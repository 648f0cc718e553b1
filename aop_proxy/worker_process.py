"""One worker as its parent sees it: a process that is started, asked, and ended.

In: a log descriptor and listeners for it to hold. Out: its replies. Must not know how many there are, nor what for.
"""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence

from aop_proxy.channel import Channel, Command, Reply
from aop_proxy.endpoint import Listener

_WORKER = f"""
import sys
sys.path.append({os.path.dirname(os.path.dirname(os.path.abspath(__file__)))!r})
from aop_proxy.worker import main
main()
"""
"""What a worker runs: this package, with -P, so that no file in the working directory can pass for a module."""
ASK_PATIENCE = 60.0
"""Seconds that a worker has to build a snapshot: far more than a thousand sites take."""
MAX_REPORT = 16 * 1024 * 1024
"""Bytes of one report, far more than a thousand upstreams take."""
END_PATIENCE = 1.0
"""Seconds that a worker whose parent hung up has to end."""


class WorkerProcess:
    """One worker, as the parent sees it."""

    def __init__(self, number: int, process: Process, channel: Channel) -> None:
        """Take a process that was just started; see `start`."""
        self.number = number
        self.process = process
        self._channel = channel
        self._asking = asyncio.Lock()
        self._owed = 0
        """Replies to come; more than one where a question was given up before its own came."""
        self.started = asyncio.get_running_loop().time()

    @classmethod
    async def start(
        cls, number: int, log_descriptor: int, own_listeners: Sequence[Listener], *, reports: bool = False
    ) -> "WorkerProcess":
        """Exec a worker that holds these listeners; with `reports` its stdout is ours to read."""
        ours, theirs = socket.socketpair()
        descriptors = [listener.socket.fileno() for listener in own_listeners]
        places = [f"{listener.socket.fileno()}:{listener.place}" for listener in own_listeners]
        arguments = [theirs.fileno(), log_descriptor, number, *places]
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-c", _WORKER, *map(str, arguments),
                stdin=DEVNULL, stdout=PIPE if reports else None, limit=MAX_REPORT,
                pass_fds=[theirs.fileno(), log_descriptor, *descriptors],
            )  # fmt: skip
        return cls(number, process, await Channel.open(ours))

    async def ask(self, command: Command, patience: float = ASK_PATIENCE) -> Reply | None:
        """Send a command and wait for its reply; None if the worker died over it, or is past answering."""
        async with self._asking:  # a reply belongs to the command before it
            try:
                async with asyncio.timeout(patience):
                    self._owed += 1  # given up while it is sent, it is answered all the same
                    await self._channel.send_command(command)
                    while True:
                        reply = await self._channel.receive_reply()
                        self._owed -= 1
                        if reply is None or not self._owed:
                            return reply
            except ConnectionError:
                return None
            except TimeoutError:
                self.process.kill()
                return None

    async def end(self) -> None:
        """Close the channel, over which a worker that still lives ends, and see that it does."""
        self._channel.close()
        try:
            await asyncio.wait_for(self.process.wait(), END_PATIENCE)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
