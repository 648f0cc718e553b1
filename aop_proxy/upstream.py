"""One dial: a backend's addresses in order, each under its own deadline -> a connected stream, or why there is none.

Names are resolved anew at every dial, so that a backend that moves is found. Addresses are tried one after the other
and do not race (RFC 8305): backends would get connections for nothing, and a silent one costs its deadline but once,
since it is skipped from then on. What is well and on this machine is reached without waiting. Where a backend speaks
TLS a PROXY header goes first, in clear, and then the handshake, as HAProxy and NGINX do it. Must not know the client.
"""

import asyncio
import contextlib
import errno
import functools
import os
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import NamedTuple

from aop_proxy.endpoint import Endpoint, Stream, keep_alive
from aop_proxy.health import Health
from aop_proxy.log import Log
from aop_proxy.model import Upstream
from aop_proxy.poller import Poller
from aop_proxy.reasons import Reason
from aop_proxy.records import CONTENT_TYPES, RECORD_HEADER
from aop_proxy.resolver import Address, Resolver, in_words, known_address
from aop_proxy.tls_socket import TlsSocket
from aop_proxy.transparency import speak_as
from aop_proxy.upstream_tls import Backend, UpstreamSession, why_failed

TELL_EVERY = 10.0
"""Seconds between two lines about what failed with one backend: clients decide how often it is dialled."""
_BACKLOG_PAUSE = 0.01
"""Seconds until a unix socket whose backlog is full is tried again."""
Note = Callable[[str, float, Reason | None], None]
"""Takes an upstream's URL, the seconds that it took, and why it failed if it did."""
_STREAM = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)
"""Where the kernel makes sockets that do not block, that saves a call for each."""
_UNDER_WAY = (errno.EALREADY, errno.EINPROGRESS, errno.EAGAIN)
_OUR_OWN = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
"""Failures that no backend is to blame for."""


class Caller(NamedTuple):
    """What a backend hears of the client for whom it is dialled."""

    server_name: str | None = None
    """Whom the client asked for, if that is a host name."""
    protocol: str | None = None
    """What was agreed with it in ALPN."""
    header: Callable[[Upstream], bytes] = lambda _: b""
    """The PROXY header that a backend is configured to get."""
    source: Callable[[], tuple[str, int]] = lambda: ("0.0.0.0", 0)
    """Where it came from, for backends that are dialled from there."""


class Dialled(NamedTuple):
    """A backend that answered."""

    stream: Stream
    """Non-blocking, and the caller's to close."""
    upstream: Upstream
    preamble: bytes
    """The PROXY header, which goes in one piece with the first bytes; empty where dialling has sent it."""


class _NotOurs(OSError):
    """A client's address from which a backend cannot be dialled."""


@dataclass(slots=True)
class _Attempt:
    """One dial, on its way."""

    deadline: float
    caller: Caller
    tries_all: bool = False
    """Nobody answered of those that are not known to be down."""
    tried: set[tuple[int, str]] = field(default_factory=set)
    found: dict[str, list[Address]] = field(default_factory=dict)
    """What the names of upstreams were resolved to."""
    failures: int = 0
    failure: Reason = Reason.UPSTREAM_UNREACHABLE
    """The last one."""
    not_ours: tuple[str, str] | None = None
    """An upstream that could not be tried from the client's address, and why."""


class Dialler:
    """A worker's way to its backends."""

    def __init__(self, poller: Poller, scratch: memoryview, log: Log, worker: int, note: Note) -> None:
        """Wait by `poller`; `scratch` is a buffer that nobody keeps anything in across a turn of the loop.

        `note` is told what became of each upstream that was tried.
        """
        self._poller = poller
        self._scratch = scratch
        self._log = log
        self._worker = worker
        self._note = note
        self._health = Health(log, worker)
        self._resolver = Resolver(poller.loop)
        self._quiet_until: dict[str, float] = {}

    def dial_at_once(self, backends: tuple[Backend, ...], caller: Caller) -> Dialled | None:
        """Reach the first backend if that takes no waiting, as on this machine; else None, and nobody is blamed."""
        upstream, began = backends[0].upstream, time.monotonic()
        near = _near(upstream.host, upstream.port, upstream.path)
        if near is None or upstream.tls or upstream.transparent or not self._health.is_well(near.place):
            return None
        header = caller.header(upstream)
        try:
            end = socket.socket(near.family, _STREAM)
        except OSError:
            return None
        try:
            failed = _begin(end, near.address) != 0
        except OSError:
            failed = True
        if failed:
            end.close()
            return None
        self._note(upstream.url, time.monotonic() - began, None)
        return Dialled(end, upstream, header)

    async def dial(self, backends: tuple[Backend, ...], deadline: float, caller: Caller) -> Dialled | Reason:
        """Reach the first address that answers within `deadline` seconds, its TLS handshake included.

        What failed lately is tried only where nothing else answers. UPSTREAM_TIMEOUT if the last address that was
        tried was silent, else UPSTREAM_UNREACHABLE.
        """
        attempt = _Attempt(deadline, caller)
        for attempt.tries_all in (False, True):
            for backend in backends:
                dialled = await self._try(backend, attempt)
                if dialled is not None:
                    return dialled
        if attempt.not_ours and not attempt.failures:
            self._tell_not_ours(*attempt.not_ours)
        return attempt.failure

    async def _try(self, backend: Backend, attempt: _Attempt) -> Dialled | None:
        """The first address of one backend that answers, of those whose turn it is; None if none does."""
        url, began = backend.upstream.url, time.monotonic()
        failures_before = attempt.failures
        header = attempt.caller.header(backend.upstream)
        source = attempt.caller.source()[0] if backend.upstream.transparent else None
        for address in await self._addresses(backend.upstream, attempt):
            place = in_words(address)
            if not self._is_next(backend, place, attempt):
                continue
            try:
                dialled = await self._reach(backend, address, attempt, header, source)
            except OSError as error:
                self._fail(place, backend.upstream, error, attempt)
            else:
                self._health.answered(place, url)
                self._note(url, time.monotonic() - began, None)
                return dialled
        if attempt.failures > failures_before:
            self._note(url, time.monotonic() - began, attempt.failure)
        return None

    def _is_next(self, backend: Backend, place: str, attempt: _Attempt) -> bool:
        """Whether to try an address now; each is tried once, and again for a backend that is spoken to otherwise."""
        way = (id(backend), place)
        if way in attempt.tried or not (attempt.tries_all or self._health.is_worth_a_try(place)):
            return False
        attempt.tried.add(way)
        return True

    def _fail(self, place: str, upstream: Upstream, error: OSError, attempt: _Attempt) -> None:
        if isinstance(error, _NotOurs):  # another upstream may be of the client's version of IP
            attempt.not_ours = upstream.url, str(error)
            return
        is_timeout = isinstance(error, TimeoutError)
        attempt.failures += 1
        attempt.failure = Reason.UPSTREAM_TIMEOUT if is_timeout else Reason.UPSTREAM_UNREACHABLE
        # What depends on the client's name or address, or on ourselves, says nothing about the backend.
        if not (upstream.transparent or isinstance(error, ssl.SSLError) or error.errno in _OUR_OWN):
            self._health.failed(
                place, upstream.url, "no answer in time" if is_timeout else error.strerror or str(error)
            )

    async def _addresses(self, upstream: Upstream, attempt: _Attempt) -> list[Address]:
        """Every address of an upstream in the resolver's order; none if its name does not resolve."""
        if (known := known_address(upstream.host, upstream.port, upstream.path)) is not None:
            return [known]
        if upstream.url not in attempt.found and (attempt.tries_all or self._health.is_worth_a_try(upstream.host)):
            attempt.found[upstream.url] = await self._look_up(upstream, attempt)
        return attempt.found.get(upstream.url, [])

    async def _look_up(self, upstream: Upstream, attempt: _Attempt) -> list[Address]:
        try:
            found = await self._resolver.addresses(upstream.host, upstream.port, attempt.deadline)
        except OSError as error:
            self._fail(upstream.host, upstream, error, attempt)
            return []
        self._health.answered(upstream.host, upstream.url)
        return found

    async def _reach(
        self, backend: Backend, address: Address, attempt: _Attempt, header: bytes, source: str | None
    ) -> Dialled:
        """Connect, and shake hands with a backend that speaks TLS. Raises OSError, of which ssl.SSLError is one."""
        caller = attempt.caller
        end = socket.socket(address[0], _STREAM)
        try:
            if source is not None:
                _speak_as(end, source)
            code = _begin(end, address[1])
            async with asyncio.timeout(attempt.deadline):
                await self._connected(end, address[1], code)
                if backend.upstream.tls is None:
                    return Dialled(end, backend.upstream, header)
                session = UpstreamSession(backend, caller.server_name, caller.protocol)
                tell = functools.partial(self._tell, backend.upstream, session.server_name)
                try:
                    await self._shake_hands(end, session, header)
                except (ssl.SSLError, ConnectionError) as error:
                    reason = error if isinstance(error, ssl.SSLError) else ssl.SSLError(error.strerror)
                    tell(reason)
                    raise reason from None
                return Dialled(TlsSocket(end, session, self._poller, self._scratch, tell), backend.upstream, b"")
        except BaseException:
            self._poller.forget(end.fileno())
            end.close()
            raise

    async def _connected(self, end: socket.socket, address: str | tuple[str, int], code: int) -> None:
        """Wait for a connect that is under way. Raises OSError if it comes to nothing."""
        while code == errno.EAGAIN:  # a unix socket whose backlog is full: the kernel does not wait for us
            await asyncio.sleep(_BACKLOG_PAUSE)
            code = _connect(end, address)
        if code in _UNDER_WAY:
            await Endpoint(end, self._poller).writable()
            code = end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    async def _shake_hands(self, end: socket.socket, session: UpstreamSession, header: bytes) -> None:
        """Send the header and shake hands; take no more out of the kernel than that needs."""
        backend = Endpoint(end, self._poller)
        received = b""
        try:
            while not session.handshake(received):
                await backend.send(header + session.take_output())
                header = b""
                received = await self._record(backend)
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                end.send(session.take_output())
            raise
        await backend.send(session.take_output())
        self._poller.stop_reading(end.fileno())

    async def _record(self, backend: Endpoint) -> bytes:
        """The next record, whole and alone."""
        record = b""
        wanted = RECORD_HEADER
        while len(record) < wanted:
            received = bytes(await backend.receive(self._scratch[: wanted - len(record)]))
            if not received:
                raise ssl.SSLError("the backend ended the handshake")
            record += received
            if len(record) == RECORD_HEADER and record[0] in CONTENT_TYPES:  # else OpenSSL says what it is not
                wanted += int.from_bytes(record[3:])
        return record

    def _tell(self, upstream: Upstream, server_name: str, error: ssl.SSLError) -> None:
        """Say why a backend's TLS failed."""
        if self._may_tell(upstream.url):
            self._log.event(
                "warning",
                "upstream_tls_failed",
                upstream=upstream.url,
                server_name=server_name,
                why=why_failed(error),
                worker=self._worker,
            )

    def _tell_not_ours(self, url: str, why: str) -> None:
        """Nothing was tried: that is neither this backend's doing nor that of its network."""
        self._note(url, 0.0, Reason.UPSTREAM_UNREACHABLE)
        if self._may_tell(url):
            self._log.event("warning", "upstream_not_dialled", upstream=url, why=why, worker=self._worker)

    def _may_tell(self, url: str) -> bool:
        now = self._poller.loop.time()
        if now < self._quiet_until.get(url, 0):
            return False
        self._quiet_until[url] = now + TELL_EVERY
        return True


def _speak_as(end: socket.socket, source: str) -> None:
    try:
        speak_as(end, source)
    except OSError as error:
        raise _NotOurs(error.strerror) from error


class _Near(NamedTuple):
    """An address on this machine."""

    family: socket.AddressFamily
    address: str | tuple[str, int]
    place: str


@functools.lru_cache
def _near(host: str, port: int, path: str) -> _Near | None:
    known = known_address(host, port, path)
    return _Near(*known, in_words(known)) if known and (path or ip_address(host).is_loopback) else None


def _begin(end: socket.socket, address: str | tuple[str, int]) -> int:
    """Begin to connect; 0, or the code of what it is at."""
    if end.getblocking():
        end.setblocking(False)
    if isinstance(address, tuple):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if _near(*address, "") is None:  # what is on this machine does not vanish without a word
            keep_alive(end)
    code = _connect(end, address)
    if code == errno.EINPROGRESS:
        code = _connect(end, address)  # on loopback the handshake is over by now, and asking again tells
    return code


def _connect(end: socket.socket, address: str | tuple[str, int]) -> int:
    code = end.connect_ex(address)
    return 0 if code == errno.EISCONN else code  # which is how some systems say that it is done
