"""One client, from accept to its record: the order of events, and nothing of how any step works.

accept -> [first bytes -> name -> handshake] under one deadline -> identity -> policy -> a page, or first byte ->
dial -> relay -> exactly one record. No byte of a client's reaches `dial` before `_decide` has let it pass.
"""

import asyncio
import contextlib
import functools
import math
import random
import re
import socket
import ssl
import time
import traceback
from dataclasses import replace
from enum import IntEnum
from typing import TYPE_CHECKING

from aop_proxy import pages, proxy_protocol
from aop_proxy.endpoint import MORE_FOLLOWS, Endpoint, format_address
from aop_proxy.exchange import Exchange, Terms, Upgraded
from aop_proxy.farewell import seal_farewell
from aop_proxy.fields import Introduction
from aop_proxy.identity import UnreadableCertificate, read_identity
from aop_proxy.model import Dial, Mode, Upstream
from aop_proxy.policy import OVERLOOKED, is_host_of, normalise_host
from aop_proxy.reasons import Reason, Verdict
from aop_proxy.relay import MAX_WORDLESS, Relay
from aop_proxy.snapshot import Gate, Snapshot
from aop_proxy.telemetry import ConnectionRecord
from aop_proxy.tls import UNRECOGNIZED_NAME_ALERT, Accepted, NameReader, Refused, TlsSession
from aop_proxy.upstream import Caller

if TYPE_CHECKING:
    from aop_proxy.server import Server

TLS_HANDSHAKE_RECORD = b"\x16"
MAX_LINGER_BYTES = 64 * 1024 * 1024
"""What a client that was turned away may still send before it is reset, so that it reads its page first. Throwing
bytes away costs next to nothing, and the deadline (`timeouts.linger`) is the real bound."""
QUESTION_PATIENCE = 0.25
"""Seconds. Chromium and Go drop a connection that speaks before they have: they ask within a few milliseconds."""
_HTTP_METHOD = re.compile(rb"[A-Z]{1,32} ")
_START_OF_METHOD = re.compile(rb"[A-Z]{1,32}")
_SILENCE = Refused(Reason.CLIENT_SILENT, None, b"")
_NO_PROXY_HEADER = Refused(Reason.PROXY_HEADER_INVALID, None, b"")
_TOO_MANY = Refused(Reason.TOO_MANY_CONNECTIONS, None, b"")
_GARBAGE = Refused(Reason.HANDSHAKE_FAILED, None, b"")


class Stage(IntEnum):
    """How far a client has come that is not authenticated.

    Where room is needed it is made at the stage where most are: who comes in crowds pushes out its like. To be answered
    costs a signature of ours, so that not even crowds of that kind come faster than a flight needs to reach us.
    """

    SILENT = 0
    REFUSED = 1
    SPEAKING = 2
    ANSWERED = 3


class Connection:
    """One client's connection."""

    __slots__ = (
        "_allowance", "_client", "_exchange", "_gate", "_has_begun", "_is_proxied", "_loop", "_proxied", "_relay",
        "_server", "_settings", "_snapshot", "_task", "deadline", "ended_by_us", "record", "stage", "waiting_since",
    )  # fmt: skip

    def __init__(self, server: "Server", client: socket.socket, address: str, *, is_proxied: bool = False) -> None:
        """Take an accepted non-blocking socket, to be closed when `serve` ends; a PROXY header comes first or not."""
        self._server = server
        self._snapshot: Snapshot = server.snapshot
        self._settings = server.snapshot.settings
        self._client = Endpoint(client, server.poller)
        self._loop = server.loop
        self._relay: Relay | None = None
        self._exchange: Exchange | None = None
        self._gate: Gate = self._snapshot.gates[0]
        self.deadline: float | None = self._loop.time() + self._settings.timeouts.handshake
        """When the server is to end the handshake, from the first byte to the last, or the leave-taking; None between
        the two. A timer for each would cost more than the server's look at all of them."""
        self._allowance = self._settings.limits.handshake_bytes
        self.stage = Stage.SILENT
        self.ended_by_us: Reason | None = None
        self._has_begun = False
        self._is_proxied = is_proxied
        self._proxied = proxy_protocol.Header()
        """Between whom the connection is, as the proxy before us says."""
        self.waiting_since: float | None = None
        """When an accepted client began to wait for its first byte; None while it is not waiting."""
        self.record = ConnectionRecord(
            client=address,
            reference=f"{random.getrandbits(32):08x}",
            started=self._loop.time(),
            generation=self._snapshot.generation,
        )
        self._task = self._loop.create_task(self.serve())

    async def serve(self) -> None:
        """Serve the client to its end. Never raises; closes the socket, tells the server, writes the record."""
        self._has_begun = True
        try:
            self.record.reason = self.ended_by_us or await self._walk()
        except asyncio.CancelledError:
            self.record.reason = self.ended_by_us or Reason.INTERNAL_ERROR
        except OSError:
            self.record.reason = self.ended_by_us or Reason.CLIENT_RESET
        except Exception:  # noqa: BLE001 - a bug costs one connection, and is told in full
            self.record.reason = Reason.INTERNAL_ERROR
            self._server.log.event("error", "internal_error", traceback=traceback.format_exc().splitlines()[-12:])
        self._client.close()
        self._server.forget(self)

    def end(self, reason: Reason) -> None:
        """End the connection now, whatever it is doing."""
        self.ended_by_us = reason
        if self._relay is not None:
            self._relay.stop(reason)
            return
        if self._exchange is not None:
            self._exchange.say_goodbye()
        if self._has_begun:  # a task that is cancelled before it begins never does: no record, no close
            self._task.cancel()

    def is_late(self, now: float) -> bool:
        """Whether what is waited for has not come in time."""
        deadline = self.deadline if self._exchange is None else self._exchange.deadline
        return deadline is not None and now >= deadline

    def give_up(self) -> None:
        """End what took too long: a handshake, the taking of leave, or the waiting for one message."""
        if self._exchange is not None:
            self._exchange.expire()
            return
        silent = Reason.CLIENT_SILENT if self.stage is Stage.SILENT else Reason.HANDSHAKE_TIMEOUT
        self.end(self.ended_by_us or silent)

    @property
    def _is_observing(self) -> bool:
        return self._settings.enforcement == "observe"

    def idle_since(self) -> float | None:
        """When the client, accepted and with nothing owed to it, was last heard or spoken to; None while it is busy."""
        if self._exchange is not None:
            return None if self._exchange.idle_since is None else -math.inf  # nobody is in the middle of anything
        if self._relay is None:
            return self.waiting_since
        return self._relay.active_at if self._relay.upstream_spoke_last and not self._relay.owes else None

    def active_at(self) -> float | None:
        """When anything last moved, once the client's bytes are forwarded."""
        if self._exchange is not None:
            return self._exchange.active_at
        return self._relay.active_at if self._relay is not None else self.waiting_since

    def bytes_so_far(self) -> tuple[int, int]:
        """From the client and from the upstream, while the connection lives."""
        up, down = self.record.bytes_from_client, self.record.bytes_from_upstream
        relay = self._relay
        return (up, down) if relay is None else (up + relay.bytes_from_client, down + relay.bytes_from_upstream)

    async def _walk(self) -> Reason:
        outcome = await self._arrive()
        self.deadline = None
        if isinstance(outcome, Refused):
            return await self._turn_away(outcome)
        refusal = self._decide(outcome)
        if refusal is not None:
            return await self._explain(outcome, refusal, outcome.behind)
        site, backends = self._gate.site, self._gate.backends
        terms = self._terms(outcome) if site.mode is Mode.HTTP else None
        del self._gate, self._snapshot  # contexts that a reload has replaced live no longer than their handshakes
        first = await self._first_plaintext(outcome, site.dial)
        if first is None:
            return Reason.CLOSED
        if terms is not None:
            reached = await self._exchange_messages(outcome.session, terms, first)
            if isinstance(reached, Reason):
                return reached
            dialled, first = reached
        else:
            header = functools.partial(self._proxy_header, outcome)
            caller = Caller(normalise_host(self.record.sni), outcome.alpn, header, self._source)
            dialler, patience = self._server.dialler, self._settings.timeouts.connect
            answer = dialler.dial_at_once(backends, caller) or await dialler.dial(backends, patience, caller)
            if isinstance(answer, Reason):
                return await self._explain(outcome, answer, first)
            dialled = answer
        upstream = dialled.stream
        self.record.upstream = dialled.upstream.url
        relay = Relay(self._server.poller, self._server.buffers, outcome.session, self._client.socket, upstream)
        try:
            relay.start(first, dialled.preamble)
            # Some of it is large, and the connection may live for days.
            del outcome, first, backends, dialled, terms
            await self._forward(relay)
        finally:
            self._server.poller.forget(upstream.fileno())
            upstream.close()
        reason = relay.finished.result()
        return await self._last_words(b"", reason) if relay.client_may_be_sending else reason

    async def _arrive(self) -> Accepted | Refused:
        """From the first byte to the end of the handshake, if this client's address has not too many under way."""
        if self._is_proxied and (refused := await self._receive_proxy_header()):
            return refused
        at_most = self._settings.limits.handshakes_per_address
        if at_most is None:
            return await self._shake_hands()
        host, _ = self._source()
        if not self._server.addresses.enter(host, at_most):
            return _TOO_MANY
        try:
            return await self._shake_hands()
        finally:
            self._server.addresses.leave(host)

    async def _shake_hands(self) -> Accepted | Refused:
        """From the first byte of TLS to a verified certificate, or to the refusal that OpenSSL decided."""
        seen = await self._receive_handshake()
        if seen[:1] != TLS_HANDSHAKE_RECORD:
            return await self._answer_in_clear(seen) if seen else _SILENCE
        name_context = self._snapshot.name_reading_context
        if name_context is not None:
            reader = NameReader(name_context)
            fresh = seen
            while not reader.feed(fresh):
                fresh = await self._receive_handshake()
                if not fresh:
                    return _GARBAGE
            seen = bytes(reader.seen)
            self.record.sni = reader.server_name
            index = self._snapshot.hosts.find(reader.server_name)
            if index is not None:
                self._gate = self._snapshot.gates[index]
            elif self._settings.unknown_hosts == "reject" and not (reader.is_too_old or self._is_observing):
                return Refused(Reason.UNKNOWN_HOST, None, UNRECOGNIZED_NAME_ALERT)
        session = TlsSession(
            self._gate.context,
            self._snapshot.quiet_context,
            self._snapshot.key_log,
            certificate_required=not self._is_observing,
        )
        try:
            outcome = session.handshake(seen)
            while outcome is None:
                if answer := session.take_output():
                    self._server.note_stage(self, Stage.ANSWERED)
                    await self._client.send(answer)
                fresh = await self._receive_handshake()
                if not fresh:
                    return _GARBAGE
                outcome = session.handshake(fresh)
        finally:
            session.forget_secret()
        self._take_note(session, outcome)
        return outcome

    async def _answer_in_clear(self, seen: bytes) -> Refused:
        """Tell plain HTTP, which gets a page in clear, from garbage, which gets nothing."""
        while not _HTTP_METHOD.match(seen):
            if not _START_OF_METHOD.fullmatch(seen):
                return _NO_PROXY_HEADER if seen.startswith(proxy_protocol.SIGNATURE) else _GARBAGE
            fresh = await self._receive_handshake()
            if not fresh:
                return _GARBAGE
            seen += fresh
        if seen.startswith(b"PROXY "):
            return _NO_PROXY_HEADER  # from somewhere that is not listed for it
        return Refused(Reason.PLAIN_HTTP, None, pages.page(Reason.PLAIN_HTTP, self.record.reference))

    async def _receive_proxy_header(self) -> Refused | None:
        """Read exactly the header that a listed proxy must send first; not one byte of the TLS behind it."""
        seen = bytearray()
        while isinstance(outcome := proxy_protocol.parse(seen), proxy_protocol.Incomplete):
            received = await self._client.receive(self._server.buffers.ciphertext[: outcome.wanted])
            if not received:
                return _NO_PROXY_HEADER if seen else _SILENCE  # the second is how load balancers look after our health
            self._note_heard()
            seen += received
        if isinstance(outcome, proxy_protocol.Invalid):
            return _NO_PROXY_HEADER
        self._proxied = outcome.header
        if outcome.header.source is not None:
            self.record.client = format_address(outcome.header.source)
        return None

    def _take_note(self, session: TlsSession, outcome: Accepted | Refused) -> None:
        record = self.record
        record.sni = record.sni or session.server_name
        record.cipher = outcome.cipher
        record.tls_version = "TLSv1.3" if outcome.cipher else None
        record.certificate = outcome.certificate
        self._server.counters.handshakes.observe(time.monotonic() - record.started)

    def _decide(self, accepted: Accepted) -> Reason | None:
        """Let a client pass (None), or say why not. Where we only observe, our own rules are not held against it."""
        refusal = self._judge(accepted)
        is_overlooked = self._is_observing and refusal in OVERLOOKED
        if refusal is not None and not is_overlooked:
            return refusal
        if not self._server.admit(self):
            return Reason.TOO_MANY_CONNECTIONS
        self.record.would_refuse = refusal
        if refusal is None and accepted.certificate is not None:
            self._server.counters.shown(self._gate.name, read_identity(accepted.certificate).not_after)
        return None

    def _judge(self, accepted: Accepted) -> Reason | None:
        """Decide by our own rules about a client whose certificate OpenSSL has verified: None lets it pass."""
        is_known = self._snapshot.hosts.find(self.record.sni) is not None
        self.record.site = self._gate.name if is_known else None
        if accepted.certificate is None:
            return Reason.NO_CERTIFICATE
        try:
            identity = read_identity(accepted.certificate)
        except UnreadableCertificate:
            return Reason.BAD_CERTIFICATE
        return self._gate.rules.decide(identity) if is_known else Reason.UNKNOWN_HOST

    async def _first_plaintext(self, accepted: Accepted, when: Dial) -> bytes | None:
        """Wait for the client to say something, so that an idle connection holds no backend; None if it leaves."""
        session, ciphertext = accepted.session, memoryview(accepted.behind)
        plaintext = self._server.buffers.plaintext
        wordless = 0
        self.waiting_since = self._loop.time()
        try:
            await self._client.send(session.take_output())
            while True:
                try:
                    filled = session.decrypt(ciphertext, plaintext)
                except ssl.SSLError:
                    await self._client.send(session.take_output())
                    raise ConnectionResetError from None
                first = bytes(plaintext[:filled])
                await self._client.send(session.take_output())
                if first or when is Dial.EAGER:
                    return first
                wordless += len(ciphertext)
                if wordless > MAX_WORDLESS:
                    raise ConnectionResetError
                if session.peer_ended:
                    return None
                self._client.acknowledge_at_once()
                await asyncio.sleep(0)  # a client may send records without data for ever: others have their turn
                ciphertext = await self._client.receive(self._server.buffers.ciphertext)
                if not ciphertext:
                    return None
        finally:
            self.waiting_since = None

    def _terms(self, accepted: Accepted) -> Terms:
        """What requests are held to, and what the backend is told of the client with each."""
        site, (address, _) = self._gate.site, self._source()
        place = next(index for index, gate in enumerate(self._snapshot.gates) if gate is self._gate)
        caller = Caller(normalise_host(self.record.sni), "http/1.1")
        speaks_tls = any(upstream.tls for upstream in site.upstream)  # and so to one name only
        is_verified = accepted.certificate is not None and self.record.would_refuse is None
        certificate = accepted.certificate if is_verified else None
        return Terms(
            site=site,
            secret=self._gate.secret,
            backends=self._gate.backends,
            caller=caller,
            pool_key=f"{self._snapshot.generation} {place} {caller.server_name if speaks_tls else None}",
            introduction=Introduction(site.http.fields, address, certificate, self.record.would_refuse),
            is_host=functools.partial(is_host_of, self.record.sni, self._snapshot.hosts, place),
            is_verified=is_verified,
            connect=self._settings.timeouts.connect,
        )

    async def _exchange_messages(self, session: TlsSession, terms: Terms, first: bytes) -> Reason | Upgraded:
        """Serve requests until the connection ends, or becomes one that is to be relayed."""
        exchange = self._exchange = Exchange(self._server, self._client.socket, session, terms, self.record)
        try:
            exchange.start(first)
            outcome = await exchange.finished
            if isinstance(outcome, Upgraded):
                exchange.let_go()
        finally:
            exchange.stop()
            self._exchange = None
        if isinstance(outcome, Upgraded) or outcome.verdict is Verdict.FAILED:
            return outcome
        session.close_notify()
        return await self._last_words(session.take_output(), outcome)

    def _proxy_header(self, accepted: Accepted, upstream: Upstream) -> bytes:
        """The PROXY header that an upstream is configured to get; empty for most."""
        if upstream.proxy_protocol is None:
            return b""
        header = proxy_protocol.Header(
            self._source(),
            self._proxied.destination or self._client.socket.getsockname()[:2],
        )
        if upstream.proxy_protocol == "v1":
            return proxy_protocol.encode_v1(header)
        if upstream.proxy_protocol == "v2":
            return proxy_protocol.encode_v2(header)
        tls = proxy_protocol.Tls(version="TLSv1.3", cipher=accepted.cipher)
        if accepted.certificate is not None:
            names = read_identity(accepted.certificate).common_names
            tls = replace(
                tls,
                client=proxy_protocol.CLIENT_WITH_CERTIFICATE,
                verify=proxy_protocol.NOT_ALLOWED if self.record.would_refuse else 0,
                common_name=names[0] if names else "",
                certificate=accepted.certificate,
            )
        alpn = (accepted.alpn or "").encode()
        return proxy_protocol.encode_v2(replace(header, alpn=alpn, authority=self.record.sni or "", tls=tls))

    async def _forward(self, relay: Relay) -> None:
        self._relay = relay
        await relay.finished
        self.record.bytes_from_client += relay.bytes_from_client
        self.record.bytes_from_upstream += relay.bytes_from_upstream
        self._relay = None

    async def _turn_away(self, refused: Refused) -> Reason:
        """Say why in a sealed page if that is allowed, else with OpenSSL's alert; one of the two, never both."""
        self.ended_by_us = refused.reason  # also for a client that does not stay to hear it
        self._server.note_stage(self, Stage.REFUSED)
        farewell = refused.output
        if refused.sealing is not None:
            asked = refused.asked or await self._is_asked()
            page = pages.page(refused.reason, self.record.reference, refused.alpn, asked=asked)
            farewell = seal_farewell(refused.sealing.secret, refused.sealing.suite, page)
            refused.sealing.secret[:] = bytes(len(refused.sealing.secret))
        return await self._last_words(farewell, refused.reason) if farewell else refused.reason

    async def _explain(self, accepted: Accepted, reason: Reason, heard: bytes) -> Reason:
        """Send a page on a live session whose client is not served, and read nothing more of it."""
        self.ended_by_us = reason
        self._server.note_stage(self, Stage.REFUSED)
        asked = bool(heard) or await self._is_asked()
        page = pages.page(reason, self.record.reference, accepted.alpn, asked=asked)
        sealed = accepted.session.encrypt(memoryview(page))
        accepted.session.close_notify()
        return await self._last_words(sealed + accepted.session.take_output(), reason)

    async def _is_asked(self) -> bool:
        """Give a client the time to ask: some take an answer that comes before their request for no answer at all."""
        return await self._client.is_readable_within(QUESTION_PATIENCE)

    async def _last_words(self, farewell: bytes, reason: Reason) -> Reason:
        """Send what there is to say, and half-close; the server sees to the deadline."""
        self.ended_by_us = reason
        self.deadline = self._loop.time() + self._settings.timeouts.linger
        with contextlib.suppress(OSError):
            await self._client.send(farewell, MORE_FOLLOWS)
            await self._client.take_leave(self._server.buffers.ciphertext, MAX_LINGER_BYTES)
        return reason

    def _note_heard(self) -> None:
        if self.stage is Stage.SILENT:
            self._server.note_stage(self, Stage.SPEAKING)

    def _source(self) -> tuple[str, int]:
        """Where the client is: what the proxy before us says, if it says anything."""
        host, port = self._proxied.source or self._client.socket.getpeername()[:2]
        return host, port

    async def _receive_handshake(self) -> bytes:
        """What a client sent in its handshake, when it is its turn; empty at its end, and where its allowance ends."""
        received = await self._client.receive(self._server.buffers.ciphertext[: self._allowance])
        if received:
            self._allowance -= len(received)
            self._note_heard()
        fresh = bytes(received)  # the buffer is everybody's, and others will read before this is looked at
        await self._server.turns.take()
        return fresh
