"""The admin listener: a process without privileges that shows what its parent tells it, and can change nothing.

On stdin comes the state, a line of JSON each second; on stdout goes `ready`, and what bugs it meets. It may be visited
by browsers, so it answers only to names that nobody else can own. Must not know workers or clients.
"""

import asyncio
import contextlib
import ipaddress
import json
import logging
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from aop_proxy import metrics, status_page
from aop_proxy.ledger import State
from aop_proxy.privileges import keep_no_privileges

MAX_STATE = 64 * 1024 * 1024
PATIENCE = 10.0
"""Seconds without news from the parent after which we are not healthy."""
MAX_CONNECTIONS = 128
LONGEST_CONNECTION = 60.0
"""Seconds: nobody needs longer, whether it asks, reads or is silent."""
MAX_HEAD = 16 * 1024
_PRIVATE_NAME = re.compile(r"[a-z0-9_-]+|([a-z0-9_-]+\.)+(localhost|local|internal|svc)", re.IGNORECASE)
"""One label, as containers have, or under a name that no public DNS has: no page elsewhere can be made to bear it."""

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class Answer(NamedTuple):
    """What a visitor gets."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = {}


class Admin:
    """What there is to see."""

    def __init__(self, shows: Sequence[str]) -> None:
        """Show only these: `health`, `metrics`, `status`."""
        self._state: State = {}
        self._told = 0.0
        pages: dict[str, dict[str, Callable[[str], Answer]]] = {
            "health": {"/healthz": self._healthz, "/readyz": self._readyz},
            "metrics": {"/metrics": self._metrics},
            "status": {"/": self._page, "/status.json": self._status},
        }
        self._pages = {path: page for shown in shows for path, page in pages[shown].items()}

    def tell(self, state: State) -> None:
        """Take what the parent says now."""
        self._state, self._told = state, time.monotonic()

    async def __call__(self, scope: _Message, _receive: _Receive, send: _Send) -> None:
        """Answer one request (ASGI)."""
        try:
            answer = self.answer(scope["method"], scope["path"], dict(scope["headers"]))
        except Exception:  # noqa: BLE001 - a bug costs one answer, and is told in full
            _tell_of_a_bug()
            answer = Answer(500, b"a bug: see the log\n")
        headers = {
            "content-type": answer.content_type,
            "content-length": str(len(answer.body)),
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            "cross-origin-resource-policy": "same-origin",
            **answer.headers,
        }
        head = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": head})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    def answer(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Answer:
        """Decide what a visitor gets."""
        if not _is_our_name(headers.get(b"host", b"localhost").decode("latin-1")):
            return Answer(421, b"ask by address, or by a name that is no one else's\n")
        if method not in ("GET", "HEAD"):
            return Answer(405, b"nothing can be changed here\n", headers={"allow": "GET, HEAD"})
        page = self._pages.get(path)
        if page is None:
            return Answer(404, "".join(f"{path}\n" for path in self._pages).encode())
        return page(headers.get(b"accept", b"").decode("latin-1"))

    def _healthz(self, _accept: str) -> Answer:
        if time.monotonic() - self._told > PATIENCE:
            return Answer(503, b"the proxy does not say how it is\n")
        return Answer(200, b"healthy\n")

    def _readyz(self, accept: str) -> Answer:
        health = self._healthz(accept)
        if health.status != 200:
            return health
        if not self._state["ready"]:
            return Answer(503, f"not ready: {', '.join(self._state['not_ready'])}\n".encode())
        observes = self._state["enforcement"] == "observe"
        return Answer(200, b"ready, but it only observes: strangers are let in\n" if observes else b"ready\n")

    def _metrics(self, accept: str) -> Answer:
        return Answer(200, *metrics.exposition(self._state, accept))

    def _page(self, _accept: str) -> Answer:
        return Answer(200, status_page.page(self._state), "text/html; charset=utf-8", status_page.HEADERS)

    def _status(self, _accept: str) -> Answer:
        return Answer(200, json.dumps(self._state).encode(), "application/json")


def _is_our_name(host: str) -> bool:
    """Whether a Host header is nothing that a page of somebody else's can be served under (DNS rebinding)."""
    name = re.sub(r":[0-9]{1,5}$", "", host)
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return bool(_PRIVATE_NAME.fullmatch(name))
    return True


def _tell_of_a_bug() -> None:
    print(*traceback.format_exc().splitlines()[-12:], sep="\t", flush=True)


class _BriefConnection(H11Protocol):
    """A connection that ends by itself, and makes room when there are many: who asks is answered at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.loop.time()
        self.loop.call_later(LONGEST_CONNECTION, transport.abort)
        others = [one for one in self.connections if isinstance(one, _BriefConnection) and one is not self]
        if len(others) >= MAX_CONNECTIONS:
            min(others, key=lambda one: one.since).transport.abort()


class _Server(uvicorn.Server):
    """Leaves signals to the parent, and says when it listens."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print("ready", flush=True)


async def _serve(listener: socket.socket, user: str | None, shows: Sequence[str]) -> None:
    loop = asyncio.get_running_loop()
    admin = Admin(shows)
    news = asyncio.StreamReader(MAX_STATE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(news), sys.stdin)
    admin.tell(json.loads(await news.readline()))
    config = uvicorn.Config(
        admin,
        http=_BriefConnection,
        loop="asyncio",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEAD,
    )
    config.load()
    keep_no_privileges(user)
    serving = loop.create_task(_Server(config).serve([listener]))
    async for line in news:  # to its end: then the parent is gone
        admin.tell(json.loads(line))
    serving.cancel()


def main() -> None:
    """Show until the parent is gone. Arguments: LISTENER-FD USER SHOWN…."""
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)  # a terminal or a service manager signals us all; the parent decides
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())  # what visitors do wrong is no news
    logging.getLogger("uvicorn").propagate = False
    descriptor, user, *shows = sys.argv[1:]
    try:
        asyncio.run(_serve(socket.socket(fileno=int(descriptor)), user or None, shows))
    except Exception:  # noqa: BLE001 - told in full, where the parent hears it
        _tell_of_a_bug()
        sys.exit(1)
