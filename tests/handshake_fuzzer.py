"""Spoilt handshakes against a live listener, many at a time: cut, flipped, reordered, doubled, and noise behind them.

Nobody who comes is good and asks for anything, so that whatever reaches a backend is a break-in. A client speaks at most
twice, hello and flight, then ends its half and reads to the end: whatever it did, the server has what it needs to
decide. Where the last word goes is the caller's, who reads the log. The seed says all.
"""

import contextlib
import random
import select
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from actors import PATIENCE
from certificates import CredentialFiles, Credentials
from encounter import chain_of
from spoil import ALERT_IN_CLEAR, CHANGES, COMPATIBILITY, insert, pieces
from tls13 import SUITES, Group, HandshakeType, ProtocolViolation, Tls13Client

AT_A_TIME = 128
PATIENCE_FOR_HELLOS = 0.03
"""Seconds until clients whose hello was spoilt are not waited for: the server may be waiting for the rest of it."""
_RESET = struct.pack("ii", 1, 0)
_NO_TLS = (b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n", b"SSH-2.0-x\r\n", b"\x80\x2e\x01\x03\x01")


class Speaker(Protocol):
    """Who has something to say in a handshake."""

    def hello(self) -> bytes: ...

    def flight(self, answer: bytes) -> bytes:
        """What is due after the server's answer; empty if that is not enough."""


class Ordinary:
    """OpenSSL's client."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")

    def hello(self) -> bytes:
        return self.flight(b"")

    def flight(self, answer: bytes) -> bytes:
        self._in.write(answer)
        with contextlib.suppress(ssl.SSLError):
            self._tls.do_handshake()
        return self._out.read()


class Insider(Tls13Client):
    """A client that spoils its messages before it seals them: they arrive under the right keys."""

    chance: random.Random

    def seal(self, content_type: int, payload: bytes) -> bytes:
        if self.write is not None and self.chance.random() < 0.4:
            payload = self.chance.choice(CHANGES)(payload, self.chance.randrange(1 << 16))
        return super().seal(content_type, payload)


class Hostile:
    """An insider who shows a certificate or none, and may leave messages out or send others."""

    def __init__(self, chance: random.Random, credentials: Credentials | None) -> None:
        self._chance, self._credentials = chance, credentials
        self._client = Insider(
            suite=chance.choice(SUITES),
            share=chance.choice([Group.X25519, Group.X25519, Group.P256, None]),
            server_name=chance.choice([None, b"localhost", chance.randbytes(chance.randrange(40))]),
            record_size=chance.choice([16384, 16384, 300, 40]),
        )
        self._client.chance = chance

    def hello(self) -> bytes:
        return self._client.hello()

    def flight(self, answer: bytes) -> bytes:
        client, chance = self._client, self._chance
        with contextlib.suppress(ProtocolViolation, ValueError, KeyError):
            client.receive(answer)
        if client.retry_requested and not client.ready:
            return client.hello()
        if not client.ready:
            return b""
        chain = chain_of(self._credentials) if self._credentials else []
        key = self._credentials.key if self._credentials else None
        due: list[Callable[[], bytes]] = [partial(client.certificate, chain)]
        if key is not None:
            due.append(partial(client.certificate_verify, key))
        due.append(client.finished)
        if chance.random() < 0.3:
            extra: tuple[Callable[[], bytes], ...] = (
                partial(client.key_update, answer=True),
                partial(client.handshake, chance.choice(list(HandshakeType)), chance.randbytes(20)),
                client.change_cipher_spec,
            )
            due.insert(chance.randrange(len(due) + 1), chance.choice(extra))
        if chance.random() < 0.2:
            chance.shuffle(due)
        if chance.random() < 0.2:
            del due[chance.randrange(len(due))]
        return b"".join(step() for step in due)


class Noise:
    """Anything."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def hello(self) -> bytes:
        chance = self._chance
        start = chance.choice([b"", b"\x16", b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03", *_NO_TLS])
        return start + chance.randbytes(chance.randrange(300))

    def flight(self, answer: bytes) -> bytes:
        return b""


@dataclass
class Attempt:
    """One connection of it."""

    sock: socket.socket
    speaker: Speaker
    answer: bytes = b""
    is_over: bool = False

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])


class HandshakeFuzzer:
    """Makes attempts at `address`, showing any of these certificates, or none."""

    def __init__(
        self,
        address: tuple[str, int],
        shown: list[tuple[Credentials, CredentialFiles]],
        seed: int | None = None,
    ) -> None:
        self.seed = random.SystemRandom().getrandbits(32) if seed is None else seed
        self._chance = random.Random(self.seed)
        self._address = address
        self._shown: list[Credentials | None] = [None, *(credentials for credentials, _ in shown)]
        self._contexts = [_context(None), *(_context(files) for _, files in shown)]

    def attempt(self, count: int) -> set[str]:
        """Make so many attempts, each to its end; the addresses they came from, as the log names them."""
        names: set[str] = set()
        for start in range(0, count, AT_A_TIME):
            attempts = [self._begin() for _ in range(min(AT_A_TIME, count - start))]
            names |= {f"127.0.0.1:{attempt.port}" for attempt in attempts}
            self._hear(attempts)
            for attempt in attempts:
                self._go_on(attempt)
            for attempt in attempts:
                _read_to_the_end(attempt)
        return names

    def _begin(self) -> Attempt:
        kind = self._chance.random()
        speaker: Speaker
        if kind < 0.5:
            speaker = Ordinary(self._chance.choice(self._contexts))
        elif kind < 0.9:
            speaker = Hostile(self._chance, self._chance.choice(self._shown))
        else:
            speaker = Noise(self._chance)
        attempt = Attempt(socket.create_connection(self._address, PATIENCE), speaker)
        attempt.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._send(attempt, speaker.hello(), spoilt=self._chance.random() < 0.4)
        return attempt

    def _hear(self, attempts: list[Attempt]) -> None:
        waiting = {attempt.sock.fileno(): attempt for attempt in attempts}
        poll = select.poll()
        for descriptor in waiting:
            poll.register(descriptor, select.POLLIN)
        while waiting and (ready := poll.poll(PATIENCE_FOR_HELLOS * 1000)):
            for descriptor, _ in ready:
                poll.unregister(descriptor)
                attempt = waiting.pop(descriptor)
                with contextlib.suppress(OSError):
                    attempt.answer = attempt.sock.recv(65536)
                attempt.is_over = not attempt.answer

    def _go_on(self, attempt: Attempt) -> None:
        if attempt.answer:
            flight = attempt.speaker.flight(attempt.answer)
            self._send(attempt, flight, spoilt=self._chance.random() < 0.7)
        with contextlib.suppress(OSError):
            attempt.sock.shutdown(socket.SHUT_WR)

    def _send(self, attempt: Attempt, wire: bytes, *, spoilt: bool) -> None:
        chance = self._chance
        if spoilt:
            for _ in range(chance.choice([1, 1, 2])):
                wire = chance.choice(CHANGES)(wire, chance.randrange(1 << 16))
            if chance.random() < 0.3:
                added = chance.choice([COMPATIBILITY, ALERT_IN_CLEAR, chance.randbytes(chance.randrange(1, 64))])
                wire = insert(wire, chance.randrange(1 << 16), added)
            if chance.random() < 0.3:
                wire += chance.randbytes(chance.randrange(1, 400))
        cuts = [chance.randrange(4096) for _ in range(chance.choice([0, 0, 1, 2, 4]))]
        with contextlib.suppress(OSError):  # it may have ended us already, as is its right
            for piece in pieces(wire, cuts):
                attempt.sock.send(piece)


def _read_to_the_end(attempt: Attempt) -> None:
    """Whether it is an end or a reset; TimeoutError if the server leaves us hanging."""
    with attempt.sock as sock, contextlib.suppress(ConnectionError):
        while not attempt.is_over:
            attempt.is_over = not sock.recv(65536)
        # No connection of ours may linger in the kernel: the ports would run out within a minute.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _context(files: CredentialFiles | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if files is not None:
        context.load_cert_chain(files.certificate, files.private_key)
    return context
