"""Many connections in one worker: accept, limits, back-off, idle ends, drain. Must not know what a connection does.

Accepting never waits for a handshake. Unauthenticated clients have a cap of their own, past which the oldest is closed
of the stage at which most of them are, so that a flood, whatever it does, pushes out its own.
"""

import asyncio
import errno
import functools
import itertools
import resource
import socket
import time
import traceback
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from aop_proxy.connection import Connection, Stage
from aop_proxy.counters import Counters, Report
from aop_proxy.endpoint import Listener, format_address
from aop_proxy.log import Log
from aop_proxy.model import Limits
from aop_proxy.poller import make_poller
from aop_proxy.pool import Pool
from aop_proxy.quotas import Addresses, Turns
from aop_proxy.reasons import Reason
from aop_proxy.relay import Buffers
from aop_proxy.snapshot import Snapshot
from aop_proxy.telemetry import SUPPRESSED_EVERY, ConnectionLog, RequestRecord
from aop_proxy.upstream import Dialler

ACCEPTS_PER_TURN = 64
EVERYBODY = 1_000_000
BACK_OFF_MIN, BACK_OFF_MAX = 0.005, 1.0
"""Seconds; net/http's and ghostunnel's figures for a failing accept."""
SWEEP_EVERY = 1.0
IDLE_BEFORE_DRAIN = 1.0
"""Seconds since the upstream's last byte after which a kept connection is taken to be between two requests."""
SILENT_BEFORE_DRAIN = 3.0
"""Seconds since accept after which a client that has sent nothing is not waited for."""
_RESERVED_DESCRIPTORS = 64
"""For the process itself: listeners, pipes, event loop, name resolution, reloads."""
_MAX_AUTO_CONNECTIONS = 16384
_MAX_AUTO_UNAUTHENTICATED = 1024
_AUTO_HANDSHAKES_PER_TURN = 4
"""A step takes 0.3 to 1 ms, and requests on kept connections wait behind so many."""
_OUT_OF_CAPACITY = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many connections this process may hold."""

    connections: int
    unauthenticated: int


def capacity(limits: Limits, descriptors: int) -> Capacity:
    """Fit the limits below the descriptor limit: an authenticated connection holds two, any other one."""
    usable = max(descriptors - _RESERVED_DESCRIPTORS, 8)
    unauthenticated = min(limits.unauthenticated or _MAX_AUTO_UNAUTHENTICATED, usable // 4)
    connections = min(limits.connections or _MAX_AUTO_CONNECTIONS, (usable - unauthenticated) // 2)
    return Capacity(connections, unauthenticated)


class Server:
    """One worker's connections."""

    def __init__(self, loop: asyncio.AbstractEventLoop, log: Log, snapshot: Snapshot, number: int = 1) -> None:
        """Serve by `snapshot` until `switch`, as the worker of this number."""
        self.loop = loop
        self.log = log
        self._records = ConnectionLog(log, number, snapshot.settings.log.refusals_per_second)
        self.counters = Counters(tells_refusals=snapshot.settings.admin is not None)
        self.buffers = Buffers()
        self.poller = make_poller(loop)
        self.dialler = Dialler(self.poller, self.buffers.ciphertext, log, number, self.counters.dialled)
        self.turns = Turns(loop, _AUTO_HANDSHAKES_PER_TURN)
        self.addresses = Addresses()
        self.pool = Pool(self.poller)
        self.is_draining = False
        loop.set_exception_handler(self._tell_of_a_bug)
        self._listeners: list[Listener] = []
        self._strangers: dict[Stage, dict[Connection, None]] = {stage: {} for stage in Stage}
        self._admitted: set[Connection] = set()
        self._retiring: dict[int, float] = {}
        """By when the connections of a generation of before a reload are to end, where `reload_drain` is set."""
        self._ended_requests: list[RequestRecord] = []
        self._back_off = 0.0
        self._empty = asyncio.Event()
        self._next_suppressed = loop.time() + SUPPRESSED_EVERY
        self.switch(snapshot)
        self._sweeping = loop.call_later(0, self._sweep)

    def switch(self, snapshot: Snapshot) -> None:
        """Serve connections accepted from now on by `snapshot`; those that live keep theirs."""
        self.snapshot = snapshot
        self.log.configure(snapshot.settings.log)
        self._records.rate = snapshot.settings.log.refusals_per_second
        self._proxies = [tuple(map(ip_network, listen.proxy_protocol_from)) for listen in snapshot.settings.listen]
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 2 * len(snapshot.gates)  # key logs, old and new
        self.turns.at_most = snapshot.settings.limits.handshakes_per_turn or _AUTO_HANDSHAKES_PER_TURN
        self._capacity = capacity(snapshot.settings.limits, descriptors)
        # None are to be pushed out by those who come in the same turn, before a byte of theirs is looked at.
        self._accepts_per_turn = min(ACCEPTS_PER_TURN, max(self._capacity.unauthenticated // 4, 1))
        patience = snapshot.settings.timeouts.reload_drain
        if patience is not None:
            for connection in self._everybody():
                self._retiring.setdefault(connection.record.generation, self.loop.time() + patience)

    def listen(self, listeners: list[Listener]) -> None:
        """Begin to accept on non-blocking listening sockets, which are this server's to close."""
        self._listeners = listeners
        self._resume()

    def _tell_of_a_bug(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        bug = context.get("exception")
        told = traceback.format_exception(bug) if isinstance(bug, BaseException) else [str(context.get("message"))]
        self.log.event("error", "internal_error", traceback="".join(told).splitlines()[-12:])

    # What a connection tells.

    def note_stage(self, connection: Connection, stage: Stage) -> None:
        """`connection` has come to this stage, unless it is authenticated."""
        if self._strangers[connection.stage].pop(connection, 0) is None:
            self._strangers[stage][connection] = None
            connection.stage = stage

    def admit(self, connection: Connection) -> bool:
        """Count `connection` as authenticated; False if there are too many, and it stays with those that are not."""
        if len(self._admitted) >= self._capacity.connections:
            return False
        self._strangers[connection.stage].pop(connection, None)
        self._admitted.add(connection)
        self.counters.admitted += 1
        return True

    def note_request(self, record: RequestRecord) -> None:
        """A request of somebody's has ended: its record is complete."""
        record.ended = time.monotonic()
        self.counters.end_request(record)
        if not self._ended_requests:
            self.poller.after_turn(self._write_requests)
        self._ended_requests.append(record)

    def _write_requests(self) -> None:
        """Log what has ended in one turn: line by line in between would cost twice as much, and wake a reader each."""
        records, self._ended_requests = self._ended_requests, []
        if records:
            self._records.write_requests(records)

    def forget(self, connection: Connection) -> None:
        """`connection` has ended: its record is complete."""
        self._strangers[connection.stage].pop(connection, None)
        self._admitted.discard(connection)
        self.counters.end(connection.record)
        self._write_requests()  # whose lines come first
        self._records.write(connection.record)
        if not self._count():
            self._empty.set()

    def report(self) -> Report:
        """What has been counted, and what is open now."""
        open_now = {
            "silent": len(self._strangers[Stage.SILENT]),
            "handshake": len(self._strangers[Stage.SPEAKING]) + len(self._strangers[Stage.ANSWERED]),
            "leaving": len(self._strangers[Stage.REFUSED]),
            "accepted": len(self._admitted),
        }
        moving = [connection.bytes_so_far() for connection in self._admitted]
        return self.counters.report(moving, open_now, self.snapshot.generation)

    def _count(self) -> int:
        return self._count_strangers() + len(self._admitted)

    def _count_strangers(self) -> int:
        return sum(map(len, self._strangers.values()))

    def _everybody(self) -> list[Connection]:
        return [*itertools.chain(*self._strangers.values()), *self._admitted]

    # Accepting.

    def _resume(self) -> None:
        for listener in self._listeners:
            self.poller.on_readable(listener.socket.fileno(), functools.partial(self._acceptable, listener))

    def _pause(self, error: OSError) -> None:
        if not self._back_off:
            self.log.event("error", "accept_failed", error=str(error), connections=self._count())
        self._back_off = min(max(self._back_off * 2, BACK_OFF_MIN), BACK_OFF_MAX)
        for listener in self._listeners:
            self.poller.stop_reading(listener.socket.fileno())
        self.loop.call_later(self._back_off, self._resume)

    def _acceptable(self, listener: Listener) -> None:
        # Where handshakes wait for their turn, newcomers wait better in the kernel's queue: accepted, they would push
        # out who has waited longest. But one a turn comes in: who feeds us byte by byte is to keep nobody out.
        self._accept(listener, 1 if self.turns.is_any_waiting else self._accepts_per_turn)

    def _accept(self, listener: Listener, at_most: int) -> None:
        for _ in range(at_most):
            try:
                client, address = listener.socket.accept()
            except BlockingIOError:
                self._back_off = 0.0
                return
            except OSError as error:
                if error.errno in _OUT_OF_CAPACITY:
                    self._pause(error)
                    return
                continue  # this one client was gone before we came (accept(2): treat as EAGAIN)
            self._begin(client, address, listener.place)

    def _begin(self, client: socket.socket, address: tuple[str, int], place: int) -> None:
        client.setblocking(False)
        if self._count_strangers() >= self._capacity.unauthenticated:
            self._evict()
        proxies = self._proxies[place]
        is_proxied = bool(proxies) and any(ip_address(address[0]) in network for network in proxies)
        connection = Connection(self, client, format_address(address), is_proxied=is_proxied)
        self._strangers[connection.stage][connection] = None

    def _evict(self) -> None:
        """Close the oldest of the stage at which most are; where that is a draw, of the first such stage."""
        strangers = max(self._strangers.values(), key=len)
        connection = next(iter(strangers))
        del strangers[connection]
        connection.give_up()

    # Ending.

    def _sweep(self) -> None:
        now = self.loop.time()
        timeouts = self.snapshot.settings.timeouts
        idle = timeouts.idle
        for connection in list(self._admitted):
            active_at = connection.active_at()
            if active_at is not None and now - active_at >= idle:
                connection.end(Reason.IDLE_TIMEOUT)
        for connection in self._everybody():
            if connection.is_late(now):
                connection.give_up()
        if self._retiring:
            self._retire(now)
        self.pool.sweep(now)
        if now >= self._next_suppressed:
            self._next_suppressed = now + SUPPRESSED_EVERY
            self._records.write_suppressed()
        self._sweeping = self.loop.call_later(
            min(SWEEP_EVERY, *(each / 4 for each in (idle, timeouts.handshake, timeouts.linger))), self._sweep
        )

    def _retire(self, now: float) -> None:
        """End connections of before a reload: idle ones at once, the others when their time has come."""
        old = [connection for connection in self._everybody() if connection.record.generation in self._retiring]
        self._end_idle(old)
        for connection in old:
            if connection.ended_by_us is None and now >= self._retiring[connection.record.generation]:
                connection.end(Reason.DRAIN_TIMEOUT)
        left = {connection.record.generation for connection in old}
        self._retiring = {generation: end for generation, end in self._retiring.items() if generation in left}

    async def drain(self) -> int:
        """Stop accepting and wait for the connections to end; how many had to be cut at the deadline."""
        self.is_draining = True
        for listener in self._listeners:
            self._accept(listener, EVERYBODY)  # who is in the queue by now has been promised a connection
            self.poller.forget(listener.socket.fileno())
            listener.socket.close()
        self._listeners = []
        deadline = self.loop.time() + self.snapshot.settings.timeouts.drain
        while self._count() and self.loop.time() < deadline:
            self._end_idle(list(self._admitted))
            self._end_silent()
            self._empty.clear()
            try:
                async with asyncio.timeout(min(IDLE_BEFORE_DRAIN / 4, max(deadline - self.loop.time(), 0))):
                    await self._empty.wait()
            except TimeoutError:
                continue
        cut = sum(connection.ended_by_us is None for connection in self._everybody())
        await self.stop(Reason.DRAIN_TIMEOUT)
        return cut

    def _end_idle(self, connections: list[Connection]) -> None:
        """End who waits between two requests: nothing of theirs is lost."""
        now = self.loop.time()
        for connection in connections:
            idle_since = connection.idle_since()
            if idle_since is not None and now - idle_since >= IDLE_BEFORE_DRAIN:
                connection.end(Reason.DRAINED)

    def _end_silent(self) -> None:
        """End who has said nothing yet."""
        now = self.loop.time()
        for connection in list(self._strangers[Stage.SILENT]):
            if now - connection.record.started >= SILENT_BEFORE_DRAIN:
                connection.end(Reason.CLIENT_SILENT)

    async def stop(self, reason: Reason) -> None:
        """Cut every connection now."""
        self._sweeping.cancel()
        while self._count():  # the second time round cuts short those that linger
            for connection in self._everybody():
                connection.end(connection.ended_by_us or reason)
            await asyncio.sleep(0.01)
        self.pool.close()
        self._records.write_suppressed()
