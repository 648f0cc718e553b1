"""The backend as a child of ours, at an address where nobody else can reach it, for as long as the proxy serves.

In: COMMAND, with `{socket}` or `{port}` in it. Out: the exit code of what ended the two. The proxy is up before
the child is started, serves once the child can be reached, and drains while the child still answers. Must not know
what the child says, nor how the proxy works.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aop_proxy.log import Log
from aop_proxy.model import ConfigurationError, Problem
from aop_proxy.privileges import find_user
from aop_proxy.workers import ExitCode, Parent

PATIENCE = 10.0
"""Seconds that a child has to end once it is told to: the proxy has drained by then."""
WAIT_TOLD = 10.0
"""Seconds between the lines that say that the child cannot be reached yet."""
LOOK = 0.05
"""Seconds between two looks whether the child accepts connections."""
SIGNALLED = 128
"""Exit codes above are those of children that a signal killed."""
_LAUNCH = f"""
import sys
sys.path.append({os.path.dirname(os.path.dirname(os.path.abspath(__file__)))!r})
from aop_proxy.launch import main
main()
"""


@dataclass(frozen=True)
class Place:
    """Where the child is to listen, and the command that says so."""

    command: tuple[str, ...]
    directory: str
    """Of its socket; for nobody but who runs it."""
    address: str | tuple[str, int]

    @property
    def upstream(self) -> str:
        """As the configuration writes it."""
        return f"unix:{self.address}" if isinstance(self.address, str) else f"http://127.0.0.1:{self.address[1]}"


@contextlib.contextmanager
def place(command: Sequence[str]) -> Iterator[Place]:
    """A socket or port for this command. Raises ConfigurationError if it cannot be run."""
    if not command:
        raise ConfigurationError(Problem("COMMAND", "is missing: write it behind `--`, with {socket} or {port} in it"))
    wanted = [name for name in ("{socket}", "{port}") if any(name in word for word in command)]
    if len(wanted) != 1:
        raise ConfigurationError(
            Problem("COMMAND", "must be told where to listen: write {socket} or {port}, one of them, in its place")
        )
    if shutil.which(command[0]) is None:
        raise ConfigurationError(Problem("COMMAND", f"there is no program {command[0]!r}"))
    with tempfile.TemporaryDirectory(prefix="aop-proxy-", ignore_cleanup_errors=True) as directory:
        path, port = os.path.join(directory, "backend.sock"), _free_port()
        address = path if wanted == ["{socket}"] else ("127.0.0.1", port)
        words = tuple(word.replace("{socket}", path).replace("{port}", str(port)) for word in command)
        yield Place(words, directory, address)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Companion:
    """The child, and what its life and the proxy's mean to each other."""

    def __init__(self, where: Place, user: str | None, parent: Parent, log: Log) -> None:
        """Serve behind `parent`, as the same `user` that its workers become."""
        self._place = where
        self._user = user
        self._parent = parent
        self._log = log
        self._process: Process | None = None
        self._watching: asyncio.Task[None]

    async def run(self) -> int:
        """Run both to their end; the exit code of what ended them. Raises what `Parent.run` raises."""
        try:
            code = await self._parent.run(self._start)
        finally:
            child = await self._end()
        return code if child is None or code is ExitCode.WORKERS_KEEP_DYING else child

    async def _start(self) -> None:
        """Start the child, and return when it accepts connections, or has ended."""
        if self._user is not None and os.getuid() == 0:
            entry = find_user(self._user)
            os.chown(self._place.directory, entry.pw_uid, entry.pw_gid)
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", _LAUNCH, str(os.getpid()), self._user or "", *self._place.command,
            stdin=DEVNULL, process_group=0,  # a terminal's Ctrl-C is for us, who drain first
        )  # fmt: skip
        self._log.event("info", "backend_started", pid=process.pid)
        loop = asyncio.get_running_loop()
        self._watching = loop.create_task(self._watch(process))
        tell = loop.time() + WAIT_TOLD
        while not self._watching.done() and not await self._accepts():
            if loop.time() > tell:
                self._log.event("warning", "backend_awaited", pid=process.pid, upstream=self._place.upstream)
                tell += WAIT_TOLD
            await asyncio.wait([self._watching], timeout=LOOK)

    async def _watch(self, process: Process) -> None:
        code = await process.wait()
        self._log.event("info", "backend_exited", pid=process.pid, code=code)
        self._parent.stop()

    async def _accepts(self) -> bool:
        address = self._place.address
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as end:
            end.setblocking(False)
            try:
                await asyncio.wait_for(asyncio.get_running_loop().sock_connect(end, address), 1.0)
            except (OSError, TimeoutError):
                return False
        return True

    async def _end(self) -> int | None:
        """Pass the signal on and wait for the child's end; its exit code as shells give it, None if it never was."""
        process = self._process
        if process is None:
            return None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):  # whoever asks once more has waited long enough
            loop.add_signal_handler(number, _kill_group, process)
        if process.returncode is None:
            process.send_signal(self._parent.stopped_by)
        await asyncio.wait([self._watching], timeout=PATIENCE)
        _kill_group(process)
        await self._watching
        code = await process.wait()
        return code if code >= 0 else SIGNALLED - code


def _kill_group(process: Process) -> None:
    """By force, and with it whatever it has started and left behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
