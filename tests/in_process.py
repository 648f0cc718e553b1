"""The proxy's rooms inside the test's own process: an event loop in a thread, and sockets that the test holds.

A test stands outside, in blocking calls with deadlines; the loop thread is the proxy. When a loop ends, nothing may have
gone wrong unseen: no exception in a callback, no task left.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar

import pytest
import uvloop

import actors
from actors import PATIENCE, Event, TlsClient
from aop_proxy import model, snapshot
from aop_proxy.endpoint import Listener
from aop_proxy.log import Log
from aop_proxy.model import Bundle, Clients, Limits, Listen, Settings, Site, Timeouts
from aop_proxy.poller import EpollPoller, LoopPoller, Poller
from aop_proxy.reasons import Reason
from aop_proxy.server import Server
from aop_proxy.snapshot import Snapshot
from aop_proxy.tls import Accepted, KeyLog, TlsSession
from certificates import CredentialFiles

P = ParamSpec("P")
T = TypeVar("T")

LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio"), pytest.param(uvloop.new_event_loop, id="uvloop")]
"""Both event loops, to parametrise a fixture with."""
POLLERS = [
    pytest.param((uvloop.new_event_loop, EpollPoller), id="uvloop-epoll"),
    pytest.param((asyncio.new_event_loop, LoopPoller), id="asyncio-own"),
]
"""Both event loops and both ways to watch sockets: what Linux has, and what there is elsewhere."""


class LoopThread:
    """A running event loop in a thread of its own."""

    def __init__(self, make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.faults: list[str] = []
        self._make_loop = make_loop
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._live)
        self._left: set[asyncio.Task[Any]] = set()

    def _live(self) -> None:
        with asyncio.Runner(loop_factory=self._make_loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(lambda _, context: self.faults.append(repr(context)))
        self._end = asyncio.Event()
        self._ready.set()
        await self._end.wait()
        await asyncio.sleep(0)
        self._left = asyncio.all_tasks() - {asyncio.current_task()}

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float = PATIENCE) -> T:
        """Run a coroutine on the loop; its result, within the deadline."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, timeout), self.loop).result(timeout + 5)

    def call(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call a function on the loop; its result."""

        async def wrapped() -> T:
            return function(*arguments, **named)

        return self.run(wrapped())

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(PATIENCE)
        if error is None:
            assert self.faults == [], self.faults
            assert self._left == set()


@contextlib.contextmanager
def watching(loop: LoopThread, make_poller: Callable[[asyncio.AbstractEventLoop], Poller]) -> Iterator[Poller]:
    """A poller on the loop, for the length of the block."""
    poller = loop.call(make_poller, loop.loop)
    yield poller
    loop.call(poller.close)


def tcp_pair(send_buffer: int | None = None, receive_buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection: ours, which is non-blocking, and the peer's, which has a deadline."""
    with socket.socket() as listener:
        if receive_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours = socket.socket()
        if send_buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    for end in (ours, theirs):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ours.setblocking(False)
    theirs.settimeout(PATIENCE)
    return ours, theirs


def make_bundle(
    server: CredentialFiles,
    client_ca: Path,
    upstream: str = "http://127.0.0.1:9",
    *,
    listen: tuple[Listen, ...] = (Listen("127.0.0.1", 0),),
    sites: tuple[Mapping[str, Any], ...] = ({},),
    timeouts: Mapping[str, float] | None = None,
    limits: Mapping[str, int] | None = None,
    level: Literal["debug", "info"] = "debug",
    refusals_per_second: float = 1000,
    **settings: Any,
) -> Bundle:
    """A configuration with its files. Each of `sites` changes what it likes of a good one."""
    scheme, _, rest = upstream.partition(":")
    host, _, port = rest.removeprefix("//").rpartition(":")
    address = model.Upstream(upstream, path=rest) if scheme == "unix" else model.Upstream(upstream, host, int(port))
    good = Site("certificate", "key", (address,), clients=Clients(("ca",)))
    return Bundle(
        Settings(
            listen,
            tuple(replace(good, **site) for site in sites),
            timeouts=replace(Timeouts(handshake=5.0, connect=2.0, linger=0.5, drain=5.0), **(timeouts or {})),
            limits=replace(Limits(), **(limits or {})),
            log=model.Log("json", level, refusals_per_second),
            **settings,
        ),
        {
            "certificate": server.certificate.read_bytes(),
            "key": server.private_key.read_bytes(),
            "ca": client_ca.read_bytes(),
        },
    )


def accepted_session(built: Snapshot, context: ssl.SSLContext) -> tuple[TlsSession, TlsClient, socket.socket]:
    """A session whose client was accepted, that client, and our end of its connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = TlsClient(listener.getsockname(), context)
        ours, _ = listener.accept()
    ours.settimeout(PATIENCE)
    session, outcome = TlsSession(built.gates[0].context, built.quiet_context, built.key_log), None
    while outcome is None:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.do_handshake()
        client._flush()
        outcome = session.handshake(ours.recv(65536))
        ours.sendall(session.take_output())
        if outcome is None:
            client._feed()
    assert isinstance(outcome, Accepted)
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ours.setblocking(False)
    return session, client, ours


class InProcessServer:
    """A `Server` on a loop, listening on a port of its own, its log read line by line."""

    def __init__(self, loop: LoopThread, bundle: Bundle, *, listen: bool = True, host: str = "127.0.0.1") -> None:
        self.loop = loop
        self._read, self._write = os.pipe()
        self.log = actors.Log(self._read)
        self.key_log = KeyLog() if bundle.settings.refusal == "page" else None
        self.built = snapshot.build(bundle, 1, self.key_log)
        self.listener = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
        self.listener.setblocking(False)
        self.address: tuple[str, int] = self.listener.getsockname()[:2]
        log = Log(bundle.settings.log, self._write)
        self.server: Server = loop.call(lambda: Server(loop.loop, log, self.built, 1))
        if listen:
            self.listen()

    def listen(self) -> None:
        """Begin to accept; whoever has connected before waits in the queue until then."""
        self.loop.call(self.server.listen, [Listener(self.listener, 0)])

    def wait_for(self, event: str, *, count: int = 1, timeout: float = PATIENCE, **fields: Any) -> Event:
        """The `count`-th event of this name whose fields have these values."""
        assert self.log.wait_until(lambda: len(self.events(event, **fields)) >= count, timeout), (
            f"no {count} of {event} {fields} within {timeout} s; the log:\n{self.log}"
        )
        return self.events(event, **fields)[count - 1]

    def events(self, event: str, **fields: Any) -> list[Event]:
        wanted = {"event": event, **fields}
        return [entry for entry in self.log.events if all(entry.get(name) == value for name, value in wanted.items())]

    def record(self, client: TlsClient | socket.socket | None = None, **fields: Any) -> Event:
        """The one record of a connection, waited for."""
        if client is not None:
            sock = client.sock if isinstance(client, TlsClient) else client
            host, port = sock.getsockname()[:2]
            fields["client"] = f"{host}:{port}"
        return self.wait_for("connection", **fields)

    def drain(self) -> int:
        return self.loop.run(self.server.drain(), timeout=30)

    def stop(self) -> None:
        """Cut what is left, and close everything."""

        def leave() -> None:
            self.server._listeners = []
            if self.listener.fileno() >= 0:
                self.server.poller.forget(self.listener.fileno())
                self.listener.close()

        self.loop.call(leave)
        self.loop.run(self.server.stop(Reason.DRAIN_TIMEOUT))
        self.loop.call(self.server.poller.close)
        os.close(self._write)
        self.log.join(PATIENCE)
        if self.key_log is not None:
            self.key_log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()
        if error is None:
            assert self.log.stray == []
            assert self.events("internal_error") == []
