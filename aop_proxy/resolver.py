"""Names -> addresses, by the system's resolver, anew each time and within a deadline.

One question about a name is under way at a time: the resolver holds a thread until it gives up, and a name whose
servers are silent must not keep others from theirs. Must not know what is done with addresses.
"""

import asyncio
import contextlib
import functools
import socket
from typing import Any

from aop_proxy.endpoint import format_address

Address = tuple[socket.AddressFamily, str | tuple[str, int]]
_Found = list[tuple[Any, ...]]
"""What `getaddrinfo` gives."""


def known_address(host: str, port: int, path: str) -> Address | None:
    """The one address of an upstream for which nobody need be asked; None where it has a name."""
    if path:
        return socket.AF_UNIX, path
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, host)
            return family, (host, port)
    return None


def in_words(address: Address) -> str:
    """An address as it stands in a log."""
    return address[1] if isinstance(address[1], str) else format_address(address[1])


class Resolver:
    """A worker's questions about names."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ask by this loop."""
        self._loop = loop
        self._asking: dict[tuple[str, int], asyncio.Future[_Found]] = {}

    async def addresses(self, host: str, port: int, deadline: float) -> list[Address]:
        """Every address of a name, in the resolver's order. Raises OSError, of which TimeoutError is one."""
        async with asyncio.timeout(deadline):
            found = await asyncio.shield(self._ask(host, port))
        return [(family, (str(address[0]), int(address[1]))) for family, _type, _protocol, _name, address in found]

    def _ask(self, host: str, port: int) -> asyncio.Future[_Found]:
        """Ask, or wait for the answer to what was asked a moment ago."""
        asking = self._asking.get((host, port))
        if asking is None:
            asking = asyncio.ensure_future(self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            self._asking[host, port] = asking
            asking.add_done_callback(functools.partial(self._answered, (host, port)))
        return asking

    def _answered(self, question: tuple[str, int], asking: asyncio.Future[_Found]) -> None:
        del self._asking[question]
        if not asking.cancelled():
            asking.exception()  # nobody may be waiting for it any more
