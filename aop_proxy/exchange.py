"""One accepted client's requests, one after the other: the order of events, and nothing of how a message is read.

request -> its Host is the connection's -> a backend connection, kept or new -> the request written anew -> the response
written anew -> the next. One coroutine does it all, resumed by its sockets: a task, and a future for each wait, would
cost more than reading a head. Bodies move in both directions at once, each as fast as its receiver, and of them nothing
is held but what a receiver has not taken yet. A fault before the response has begun is a page; one after it cuts.
"""

import asyncio
import contextlib
import socket
import tempfile
import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from aop_proxy import http1, pages
from aop_proxy.fields import Introduction, Secret, is_the_edges
from aop_proxy.http1 import Body, Chunked, Malformed, Request, Response, Sized, TooLarge
from aop_proxy.model import Site
from aop_proxy.reasons import Fault, Reason
from aop_proxy.stream import BackendEnd, TlsEnd
from aop_proxy.telemetry import ConnectionRecord, RequestRecord
from aop_proxy.tls import TlsSession
from aop_proxy.upstream import Caller, Dialled
from aop_proxy.upstream_tls import Backend

if TYPE_CHECKING:
    from aop_proxy.server import Server

HEAD_PATIENCE = 60.0
"""Seconds for a head, from its first byte to its last; NGINX's client_header_timeout."""
BODY_PATIENCE = 60.0
"""Seconds between two pieces of a body that is read whole first; NGINX's client_body_timeout."""
MAX_AHEAD = 64 * 1024
"""Bytes of further requests from which on a client is not read until it has its answer."""
MAX_INTERIM = 32
"""1xx responses to one request."""
IN_MEMORY = 64 * 1024
"""Bytes of a buffered body that are not written to a disk."""
_SPOOL_PIECE = 128 * 1024
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""RFC 9110 section 9.2.2."""
_NO_BODY = Sized(0)
_HEALTHY = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\nCache-Control: no-store\r\n\r\n"


class Terms(NamedTuple):
    """What holds for every request of one connection."""

    site: Site
    backends: tuple[Backend, ...]
    caller: Caller
    pool_key: str
    """What backend connections may be used for each other."""
    secret: Secret | None
    introduction: Introduction
    is_host: Callable[[str], bool]
    """Whether a request may be for a host."""
    is_verified: bool
    """The client's certificate was verified and is allowed; where we only observe it need not be."""
    connect: float
    """Seconds to reach the backend."""


class Upgraded(NamedTuple):
    """The backend has agreed to speak WebSocket: what follows is to be relayed, once the exchange has let it go."""

    backend: Dialled
    heard: bytes
    """What the client has said since."""


class _Failed(Exception):
    """The request cannot be served, or not to its end."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


@types.coroutine
def _news() -> Generator[None]:
    """Wait to be resumed: an end has something to tell, or the deadline has passed (TimeoutError)."""
    yield


class Exchange:
    """The requests of one connection."""

    __slots__ = (
        "_added", "_answer", "_body", "_client", "_health_path", "_host", "_inbox", "_is_waiting", "_line", "_patience",
        "_poller", "_record", "_requests", "_server", "_spool", "_spooled", "_terms", "_upstream", "active_at",
        "deadline", "finished", "idle_since",
    )  # fmt: skip

    def __init__(
        self, server: "Server", client: socket.socket, session: TlsSession, terms: Terms, record: ConnectionRecord
    ) -> None:
        """Take an accepted session and its socket, which stays the caller's to close."""
        self._server = server
        self._poller = server.poller
        self._terms = terms
        self._record = record
        self._line = RequestRecord(record)
        path = terms.site.http.health_path
        self._health_path = None if path is None else path.encode("ascii")
        self._client = TlsEnd(server.poller, server.buffers, client, self._resume, session)
        self._upstream: BackendEnd | None = None
        self._patience = terms.site.http.response_timeout
        self._body: Body = _NO_BODY
        """What reads the request's body."""
        self._spool: IO[bytes] | None = None
        """What the backend has not got yet of a body that was read whole."""
        self._spooled = 0
        """Its size."""
        self._inbox = b""
        """Bytes of the client's that no request has taken yet."""
        self._answer = b""
        """Bytes of the backend's that no response has taken yet."""
        self._host = b""
        """The Host of the request before, which was right."""
        self._added = b""
        """The fields of ours for requests with that Host."""
        self._requests: Coroutine[Any, None, Reason | Upgraded] | None = None
        """What `start` has started."""
        self._is_waiting = False
        """It can be resumed."""
        self.active_at = server.poller.now
        """When anything last moved."""
        self.idle_since: float | None = None
        """Since when the client is owed nothing; None while a request is under way."""
        self.deadline: float | None = None
        """When the server is to call `expire`."""
        self.finished: asyncio.Future[Reason | Upgraded] = self._poller.loop.create_future()
        """Raises OSError when the client is gone. After a reason that is no failure the client is to be told that
        nothing more comes."""

    def start(self, first: bytes) -> None:
        """Serve every request, the first of which begins with `first`, until `finished`."""
        self._inbox = first
        self._requests = self._serve()
        self._is_waiting = True
        self._resume()

    def stop(self) -> None:
        """Serve no more, and close what was reached of the backend unless it was let go; to be called at the end."""
        if self._is_waiting and self._requests is not None:
            self._is_waiting = False
            with contextlib.suppress(asyncio.CancelledError):
                self._requests.throw(asyncio.CancelledError())
        self._close_upstream()

    def let_go(self) -> BackendEnd:
        """Have the backend's connection no more, and leave it open."""
        upstream = self._backend
        self._upstream = None
        return upstream

    def expire(self) -> None:
        """Give up what is waited for: it has not come in time."""
        self._resume(TimeoutError())

    def _resume(self, error: BaseException | None = None) -> None:
        """Go on to the next wait, or to the end; not where nothing is waited for, nor where `stop` is on its way."""
        if not self._is_waiting or self.finished.done() or self._requests is None:
            return
        self._is_waiting = False
        self.active_at = self._poller.now
        try:
            if error is None:
                self._requests.send(None)
            else:
                self._requests.throw(error)
        except StopIteration as ended:
            self.finished.set_result(ended.value)
        except Exception as failure:  # noqa: BLE001 - whoever waits for the end is told
            self.finished.set_exception(failure)
        else:
            self._is_waiting = True

    async def _serve(self) -> Reason | Upgraded:
        client = self._client
        try:
            outcome = None
            while outcome is None:
                outcome = await self._serve_one()
                if outcome is not None:
                    client.flush()
                while client.backlog:
                    await _news()
                if client.broken:
                    raise ConnectionResetError
            return outcome
        finally:
            client.flush()  # also what was answered, or OpenSSL's alert, before the client was lost
            client.leave()

    def say_goodbye(self) -> None:
        """Tell an idle client that the connection ends here; one that is owed something is to see it cut."""
        if self.idle_since is not None:
            self._client.say_goodbye()
            self._client.flush()

    async def _serve_one(self) -> Reason | Upgraded | None:
        """One request and its response; None if another may follow."""
        line = self._line = RequestRecord(self._record)
        try:
            request = await self._receive_request()
            if request is None:
                return Reason.CLOSED
            self._check(request)
            if line.path == self._health_path:
                return await self._tell_health(request)
            if request.has_body:
                await self._prepare_body(request)
            else:
                self._body = _NO_BODY
            response = await self._ask_backend(request)
            if response.status == http1.SWITCHING_PROTOCOLS:
                return await self._upgrade(response)
            return await self._deliver(request, response)
        except _Failed as failed:
            return self._explain(failed.fault)
        except (OSError, asyncio.CancelledError):
            line.fault = Fault.CUT
            raise
        finally:
            self.deadline = None
            self._close_spool()
            if line.started:
                self._server.note_request(line)

    def _explain(self, fault: Fault) -> Reason:
        """Send a page, unless the response has begun: then it is cut, and never patched."""
        self._close_upstream()
        line = self._line
        if line.status:
            line.fault = Fault.CUT
            return Reason.CLIENT_RESET if fault is Fault.BAD_REQUEST else Reason.UPSTREAM_RESET
        line.fault, line.status = fault, pages.fault_status(fault)
        line.started = line.started or time.monotonic()
        self._client.send(pages.fault_page(fault, self._record.reference, head_only=line.method == b"HEAD"))
        return Reason.CLOSED

    # The request's head.

    async def _receive_request(self) -> Request | None:
        """The next request's head; None if the client leaves instead, or takes too long over it."""
        client, line, inbox = self._client, self._line, self._inbox
        seen = 0
        try:
            while not inbox or not (length := http1.head_length(inbox, seen)):
                if not inbox:
                    self.idle_since = self._poller.now
                elif not seen:
                    self.deadline = self._poller.now + HEAD_PATIENCE
                while (data := client.take()) is None:
                    await _news()
                self.idle_since = None
                if not data and inbox:
                    raise ConnectionResetError
                if not data:
                    return None
                seen = len(inbox)
                inbox += data
            self.deadline = None
            self._inbox = inbox[length:]
            line.started = time.monotonic()
            self._count_from_client(length)
            request = http1.parse_request(inbox[:length])
        except TooLarge:
            raise _Failed(Fault.HEAD_TOO_LARGE) from None
        except Malformed:
            raise _Failed(Fault.BAD_REQUEST) from None
        except TimeoutError:
            return None
        line.method, line.path = request.method, request.path
        return request

    def _check(self, request: Request) -> None:
        """Hold a request to what its connection was opened for, and to the site's secret."""
        terms = self._terms
        if request.host != self._host:
            if not terms.is_host(http1.host_name(request.host)):
                raise _Failed(Fault.WRONG_HOST)
            self._host, self._added = request.host, terms.introduction.lines(request.host)
        if terms.secret is not None and not terms.secret.is_met_by(request.take_values(terms.secret.canonical)):
            raise _Failed(Fault.SECRET_MISSING)
        if not terms.is_verified:
            request.fields = [field for field in request.fields if not is_the_edges(field.name)]

    async def _tell_health(self, request: Request) -> Reason | None:
        """Answer an edge's health check; the backend gets not a byte of it."""
        if self._server.is_draining or not await self._is_backend_up():
            raise _Failed(Fault.NO_ROOM)
        self._line.status = 200
        await self._pass_turn()  # nothing else here waits, however many requests come at once
        self._client.send(_HEALTHY if request.method == b"HEAD" else _HEALTHY + b"ok\n")
        return Reason.CLOSED if request.is_last or request.has_body else None

    async def _is_backend_up(self) -> bool:
        if self._server.pool.holds(self._terms.pool_key):
            return True
        dialled = await self._dial()
        if isinstance(dialled, Reason):
            return False
        self._close(dialled)
        return True

    async def _dial(self) -> Dialled | Reason:
        terms, dialler = self._terms, self._server.dialler
        if at_once := dialler.dial_at_once(terms.backends, terms.caller):
            return at_once
        dial = self._poller.loop.create_task(dialler.dial(terms.backends, terms.connect, terms.caller))
        dial.add_done_callback(lambda _: self._resume())
        self.deadline = None
        try:
            while not dial.done():
                await _news()
        except BaseException:
            dial.add_done_callback(self._hang_up)
            dial.cancel()
            raise
        return dial.result()

    def _hang_up(self, dial: asyncio.Task[Dialled | Reason]) -> None:
        """Leave a backend that answered when nobody wanted it any more."""
        if not dial.cancelled() and isinstance(answer := dial.result(), Dialled):
            self._close(answer)

    def _close(self, dialled: Dialled) -> None:
        self._poller.forget(dialled.stream.fileno())
        dialled.stream.close()

    # The request's body.

    async def _prepare_body(self, request: Request) -> None:
        """Be ready to read the body; where bodies are buffered, read it to its end, in memory and then on a disk."""
        self._body = request.body()
        at_most = self._terms.site.http.buffer_requests
        if at_most is None:
            return
        if (request.length or 0) > at_most:
            raise _Failed(Fault.BODY_TOO_LARGE)
        if request.expects_continue and not self._inbox:
            self._client.send(http1.CONTINUE)
        request.expects_continue = False
        spool = self._spool = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - see `_close_spool`
        size = 0
        data: memoryview | bytes = self._take_inbox()
        while True:
            pieces = self._decode(data)
            size += sum(map(len, pieces))
            if size > at_most:
                raise _Failed(Fault.BODY_TOO_LARGE)
            try:
                spool.writelines(pieces)
            except OSError:
                raise _Failed(Fault.NO_ROOM) from None
            if self._body.ended:
                break
            self.deadline = self._poller.now + BODY_PATIENCE
            while (heard := self._client.take()) is None:
                await _news()
            if not heard:
                raise ConnectionResetError
            data = heard
        self.deadline = None
        spool.seek(0)
        self._spooled = size
        request.length, request.is_chunked = size, False

    def _close_spool(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def _take_inbox(self) -> bytes:
        inbox, self._inbox = self._inbox, b""
        return inbox

    def _decode(self, data: memoryview | bytes) -> list[memoryview]:
        """What there is of the request's body in the client's bytes; what is behind it waits for its turn."""
        try:
            pieces, used = self._body.feed(data)
        except Malformed:
            raise _Failed(Fault.BAD_REQUEST) from None
        self._count_from_client(used)
        if used < len(data):
            self._inbox += data[used:]
        return pieces

    def _body_for_backend(self, data: memoryview | bytes) -> memoryview | bytes:
        """The same, as the backend gets it."""
        pieces = self._decode(data)
        if isinstance(self._body, Chunked):
            return http1.chunk(pieces) + (http1.LAST_CHUNK if self._body.ended else b"")
        return pieces[0] if pieces else b""

    def _move_body(self, upstream: BackendEnd) -> None:
        """Move on what there is of the request's body, as fast as the backend takes it, and hear what else comes."""
        client, body = self._client, self._body
        if client.has_news:
            data = client.receive()
            if data is not None and not data:
                raise ConnectionResetError  # before it had its answer
            if data and body.ended:
                self._inbox += data
            elif data:
                upstream.send(self._body_for_backend(data))
        if self._spool is not None and not upstream.backlog:
            self._unspool(self._spool, upstream)
        if body.ended:
            if len(self._inbox) < MAX_AHEAD:
                client.listen()
            is_client_awaited = False
        elif is_client_awaited := not upstream.backlog and not upstream.broken:
            client.listen()
        if not self._line.status:
            self.deadline = None if is_client_awaited else self._poller.now + self._patience

    def _unspool(self, spool: IO[bytes], upstream: BackendEnd) -> None:
        upstream.send(spool.read(_SPOOL_PIECE))
        if spool.tell() == self._spooled:
            self._close_spool()
        else:
            self._poller.loop.call_soon(self._resume)  # others have their turn

    @property
    def _is_body_sent(self) -> bool:
        return self._body.ended and self._spool is None and not self._backend.owes

    # The backend.

    async def _ask_backend(self, request: Request) -> Response:
        """Send the request; the head of the final response, or of a 101 that was asked for. Its body is to come.

        A request that was lost on a connection that had served before is sent again, once, if that cannot do harm.
        """
        terms = self._terms
        host = request.host if terms.site.http.host is None else terms.site.http.host.encode("ascii")
        head = http1.write_request(request, host, self._added)
        upstream = self._server.pool.take(terms.pool_key, self._resume)
        if upstream is None:
            upstream = await self._reach_backend()
        else:
            self._use(upstream)
            rest = b"" if self._body.ended else self._body_for_backend(self._take_inbox())
            upstream.send(head + rest)
            try:
                return await self._receive_response(request)
            except _Failed as failed:
                is_closed = failed.fault is Fault.BAD_RESPONSE and not self._line.bytes_from_upstream
                if not is_closed or request.has_body or request.method not in _IDEMPOTENT:
                    raise
            self._close_upstream()
            upstream = await self._reach_backend()
        upstream.send(head + (b"" if self._body.ended else self._body_for_backend(self._take_inbox())))
        return await self._receive_response(request)

    async def _reach_backend(self) -> BackendEnd:
        """A new connection to the backend."""
        dialled = await self._dial()
        if isinstance(dialled, Reason):
            timed_out = dialled is Reason.UPSTREAM_TIMEOUT
            raise _Failed(Fault.UPSTREAM_TIMEOUT if timed_out else Fault.UPSTREAM_UNREACHABLE)
        upstream = BackendEnd(self._poller, self._server.buffers, dialled, self._resume)
        self._use(upstream)
        return upstream

    def _use(self, upstream: BackendEnd) -> None:
        self._upstream = upstream
        self._record.upstream = upstream.dialled.upstream.url

    async def _receive_response(self, request: Request) -> Response:
        """The head of the final response; those before it go to the client."""
        answer = self._answer = b""
        seen = interim = 0
        try:
            while True:
                while not answer or not (length := http1.head_length(answer, seen)):
                    seen = len(answer)
                    data = await self._hear_backend()
                    if not data:
                        raise _Failed(Fault.BAD_RESPONSE)
                    answer += data
                response = http1.parse_response(answer[:length])
                answer, seen = answer[length:], 0
                if response.status >= 200 or self._is_upgrade(request, response):
                    self._answer = answer
                    return response
                interim += 1
                if interim == MAX_INTERIM:
                    raise _Failed(Fault.BAD_RESPONSE)
                self._pass_interim(request, response)
        except Malformed:
            raise _Failed(Fault.BAD_RESPONSE) from None
        except TimeoutError:
            raise _Failed(Fault.UPSTREAM_TIMEOUT) from None

    def _is_upgrade(self, request: Request, response: Response) -> bool:
        """Whether the response is a 101, which only a request for WebSocket may get."""
        if response.status != http1.SWITCHING_PROTOCOLS:
            return False
        if not request.upgrades or response.frame.upgrade != b"websocket" or self._backend.owes:
            raise _Failed(Fault.BAD_RESPONSE)
        return True

    def _pass_interim(self, request: Request, response: Response) -> None:
        if response.status != http1.CONTINUE_STATUS and not request.is_http_1_0:
            self._client.send(http1.write_interim(response))
        elif request.expects_continue:
            request.expects_continue = False
            self._client.send(http1.CONTINUE)

    async def _deliver(self, request: Request, response: Response) -> Reason | None:
        """Pass on the response as it comes; None if the connection can serve another."""
        client = self._client
        body = response.body(request.method)
        is_sized = isinstance(body, Sized)
        is_chunked = not (is_sized or request.is_http_1_0)
        is_endless = not is_sized and request.is_http_1_0
        is_body_sent = self._is_body_sent
        is_last = request.is_last or is_endless or self._server.is_draining or not is_body_sent
        ahead = http1.write_response(response, request, is_chunked=is_chunked, is_last=is_last)
        data: memoryview | bytes = self._answer
        self._answer = b""
        self.deadline = None
        while True:
            try:
                pieces, used = body.feed(data)
            except Malformed:
                raise _Failed(Fault.BAD_RESPONSE) from None
            self._line.note_status(response.status, time.monotonic())
            if is_chunked:
                ahead += http1.chunk(pieces) + (http1.LAST_CHUNK if body.ended else b"")
            elif ahead or len(pieces) > 1:
                ahead += b"".join(pieces)
            client.send(ahead or (pieces[0] if pieces else b""))
            ahead = b""
            if body.ended:
                break
            data = await self._hear_backend()
            if not data and body.ends_with_connection:
                client.send(http1.LAST_CHUNK if is_chunked else b"")
                break
            if not data:
                raise _Failed(Fault.BAD_RESPONSE)
        # Nobody can know whether a backend has read the body of a request that it has answered: what it has not read
        # it would take for the next one ("CL.0").
        is_clean = body.ended and used == len(data) and is_body_sent and not request.has_body
        if is_clean and response.keeps_alive and not (request.frame.binds or response.frame.binds):
            self._server.pool.give(self._terms.pool_key, self.let_go())
        else:
            self._close_upstream()
        return Reason.CLOSED if is_last or self._server.is_draining else None

    async def _upgrade(self, response: Response) -> Upgraded:
        """Tell the client that both go on in another protocol, with what the backend has said in it already."""
        self._line.note_status(response.status, time.monotonic())
        self._client.send(http1.write_interim(response) + self._answer)
        self._client.flush()
        while self._client.backlog:
            await _news()
        self._backend.leave()
        return Upgraded(self._backend.dialled, self._take_inbox())

    @property
    def _backend(self) -> BackendEnd:
        if self._upstream is None:
            raise RuntimeError("no backend was reached")
        return self._upstream

    def _close_upstream(self) -> None:
        if self._upstream is not None:
            self.let_go().close()

    # Waiting.

    async def _hear_backend(self) -> memoryview:
        """What the backend says next, empty when it has ended; meanwhile the request's body moves on."""
        upstream, client = self._backend, self._client
        while True:
            if client.broken:
                raise ConnectionResetError
            if not client.backlog:  # else it is to take that first
                try:
                    data = upstream.take()
                except OSError:
                    raise _Failed(Fault.BAD_RESPONSE) from None
                if data is not None:
                    self._count_from_upstream(len(data))
                    return data
            self._move_body(upstream)
            await _news()

    async def _pass_turn(self) -> None:
        """Let others have theirs."""
        self._poller.loop.call_soon(self._resume)
        await _news()

    def _count_from_client(self, length: int) -> None:
        self._line.bytes_from_client += length
        self._record.bytes_from_client += length

    def _count_from_upstream(self, length: int) -> None:
        self._line.bytes_from_upstream += length
        self._record.bytes_from_upstream += length
