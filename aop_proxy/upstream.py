"""One dial: a backend's addresses in order, each under its own deadline -> a connected socket, or why there is none.

Names are resolved anew at every dial, so that a backend that moves is found. Must not know the client.
"""

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable

from aop_proxy.endpoint import Endpoint
from aop_proxy.model import Upstream
from aop_proxy.poller import Poller
from aop_proxy.reasons import Reason

_BACKLOG_PAUSE = 0.01
"""Seconds until a unix socket whose backlog is full is tried again."""
Note = Callable[[str, float, Reason | None], None]
"""Takes an upstream's URL, the seconds that it took, and why it failed if it did."""
_Address = tuple[socket.AddressFamily, str | tuple[str, int]]


async def dial(
    poller: Poller, upstreams: tuple[Upstream, ...], deadline: float, note: Note
) -> tuple[socket.socket, Upstream] | Reason:
    """Connect to the first address that answers within `deadline` seconds.

    The socket is non-blocking and the caller's to close. UPSTREAM_TIMEOUT if the last address was silent, else
    UPSTREAM_UNREACHABLE. `note` is told what became of each upstream that was tried.
    """
    failure = Reason.UPSTREAM_UNREACHABLE
    for upstream in upstreams:
        failure = Reason.UPSTREAM_UNREACHABLE
        began = time.monotonic()
        for address in await _addresses(poller.loop, upstream):
            try:
                end = await _connect(poller, *address, deadline)
            except TimeoutError:
                failure = Reason.UPSTREAM_TIMEOUT
            except OSError:
                failure = Reason.UPSTREAM_UNREACHABLE
            else:
                note(upstream.url, time.monotonic() - began, None)
                return end, upstream
        note(upstream.url, time.monotonic() - began, failure)
    return failure


async def _addresses(loop: asyncio.AbstractEventLoop, upstream: Upstream) -> list[_Address]:
    """Every address of an upstream in the resolver's order; none if its name does not resolve."""
    if upstream.path:
        return [(socket.AF_UNIX, upstream.path)]
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, upstream.host)
            return [(family, (upstream.host, upstream.port))]
    try:
        found = await loop.getaddrinfo(upstream.host, upstream.port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [(family, (str(address[0]), int(address[1]))) for family, _type, _protocol, _name, address in found]


async def _connect(
    poller: Poller, family: socket.AddressFamily, address: str | tuple[str, int], deadline: float
) -> socket.socket:
    end = socket.socket(family, socket.SOCK_STREAM)
    try:
        end.setblocking(False)
        if family != socket.AF_UNIX:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        code = end.connect_ex(address)
        if code == errno.EINPROGRESS:
            code = end.connect_ex(address)  # on loopback the handshake is over by now, and asking again tells
        if code in (errno.EALREADY, errno.EINPROGRESS, errno.EAGAIN):
            async with asyncio.timeout(deadline):
                code = await _connected(poller, end, address, code)
        if code not in (0, errno.EISCONN):  # the second is how some systems say that it is done
            raise OSError(code, os.strerror(code))
    except BaseException:
        poller.forget(end.fileno())
        end.close()
        raise
    return end


async def _connected(poller: Poller, end: socket.socket, address: str | tuple[str, int], code: int) -> int:
    """Wait for a connect that is under way; its error, or 0."""
    while code == errno.EAGAIN:  # a unix socket whose backlog is full: the kernel does not wait for us
        await asyncio.sleep(_BACKLOG_PAUSE)
        code = end.connect_ex(address)
    if code in (errno.EALREADY, errno.EINPROGRESS):
        await Endpoint(end, poller).writable()
        code = end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return code
