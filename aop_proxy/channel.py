"""The conversation between the parent and one worker: what each may say, and how it is framed on a socket pair.

The parent speaks in pickled values, which a worker may trust; a worker speaks in JSON, since it faces strangers and the
parent may be root. Standard library only.
"""

import asyncio
import json
import pickle
import socket
from dataclasses import dataclass
from typing import Any

from aop_proxy.model import Bundle

MAX_MESSAGE = 256 * 1024 * 1024
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Prepare:
    """Build a snapshot of this bundle, and say `prepared` or `problems`."""

    bundle: Bundle
    generation: int
    is_replacement: bool = False
    """Others serve this bundle already: what has expired since it was loaded is no problem."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Serve by the snapshot prepared last, and say `committed`."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Let go of the snapshot prepared last, since not all could build theirs, and say `aborted`."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Stop accepting, let the connections end, say `drained`, exit."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Say `alive`."""


Command = Prepare | Commit | Abort | Drain | Ping
Reply = dict[str, Any]
"""`{"prepared": generation, "advice": […], "expiries": [[path, subject, date], …]}`,
`{"problems": [[path, sentence], …]}`, `{"committed": true}`, `{"aborted": true}`, `{"drained": connections cut}`,
`{"alive": true}`."""


class Channel:
    """One end of the conversation."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take the streams of one end; see `open`."""
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> "Channel":
        """Take one end of a socket pair."""
        return cls(*await asyncio.open_connection(sock=end))

    async def send_command(self, command: Command) -> None:
        """Parent to worker."""
        await self._send(pickle.dumps(command))

    async def receive_command(self) -> Command | None:
        """Wait for the parent's next command; None once the parent is gone."""
        message = await self._receive()
        return None if message is None else pickle.loads(message)  # noqa: S301 - our own parent, over our own socket pair

    async def send_reply(self, reply: Reply) -> None:
        """Worker to parent."""
        await self._send(json.dumps(reply).encode())

    async def receive_reply(self) -> Reply | None:
        """Wait for the worker's next reply; None once the worker is gone, or makes no sense."""
        message = await self._receive()
        if message is None:
            return None
        try:
            reply = json.loads(message)
        except ValueError:  # whoever wrote this is no worker of ours any more
            return None
        return reply if isinstance(reply, dict) else {}

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def _send(self, message: bytes) -> None:
        self._writer.write(len(message).to_bytes(_LENGTH_BYTES) + message)
        await self._writer.drain()

    async def _receive(self) -> bytes | None:
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES))
            return await self._reader.readexactly(length) if length <= MAX_MESSAGE else None
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
