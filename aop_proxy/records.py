"""One TLS session's records, whichever side it is: ciphertext -> plaintext, plaintext -> ciphertext.

How OpenSSL is fed without a Python object per record, so that its buffers stay small and nothing that came waits in
them unseen. Must not know certificates, handshakes, or sockets.
"""

import contextlib
import ssl
from collections.abc import Callable

MAX_RECORD_PLAINTEXT = 16384
"""RFC 8446 section 5.1."""
MAX_WORDLESS_RECORDS = 3000
"""Records without data (KeyUpdates: 10 to 30 us each) in one piece of ciphertext; nobody needs two."""
RECORD_HEADER = 5
"""Bytes: type, version, length (RFC 8446 section 5.1)."""
CONTENT_TYPES = range(20, 24)
"""What a record may begin with."""
_MAX_RECORD_CIPHERTEXT = MAX_RECORD_PLAINTEXT + 2048
"""RFC 5246 section 6.2.3; TLS 1.3 allows less. OpenSSL refuses a header that says more, once it has this much."""


class Records:
    """A session of OpenSSL's, with the BIOs through which its records go in and out."""

    __slots__ = (
        "_cut_header", "_drain", "_feed", "_incoming", "_missing", "_object", "_outgoing", "_read", "_write",
        "has_answer", "peer_ended",
    )  # fmt: skip

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None) -> None:
        """Start a session of `context`."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        self._feed = self._incoming.write
        self._drain = self._outgoing.read
        # What SSLObject's own methods call: looking these up and going through those would be paid for every chunk.
        raw = self._object._sslobj  # type: ignore[attr-defined]  # noqa: SLF001
        self._read: Callable[[int, memoryview], int] = raw.read
        self._write: Callable[[memoryview | bytes], int] = raw.write
        self._missing = 0
        """Bytes that the record in the BIO still lacks."""
        self._cut_header = b""
        self.peer_ended = False
        """The peer has sent its close_notify."""
        self.has_answer = False
        """There is output that nobody asked for."""

    def take_output(self) -> bytes:
        """What is to be sent to the peer now."""
        self.has_answer = False
        return self._outgoing.read()

    @property
    def is_mid_record(self) -> bool:
        """The peer has sent the beginning of a record, and not its end."""
        return bool(self._missing or self._cut_header)

    def decrypt(self, ciphertext: memoryview, plaintext: memoryview) -> int:
        """Decrypt what the peer sent into `plaintext`; the number of bytes there now.

        `plaintext` must be as long as `ciphertext`, and a record longer. OpenSSL is fed whole records, one at a time:
        its BIO then never grows beyond one, and is never read in vain, which would cost an exception. The beginning of
        a record whose end has not come waits in the BIO. Raises ssl.SSLError when the peer breaks the protocol; sets
        `peer_ended` at its close_notify, and `has_answer` when OpenSSL has answered a KeyUpdate of the peer's.
        """
        read, feed = self._read, self._feed
        filled = start = wordless = 0
        end = len(ciphertext)
        while start < end:
            if self._missing or self._cut_header or end - start < RECORD_HEADER:
                stop = start + (self._missing or self._begin_record(ciphertext, start))
                self._missing = 0
            else:
                length = ciphertext[start + 3] << 8 | ciphertext[start + 4]
                stop = start + RECORD_HEADER + min(length, _MAX_RECORD_CIPHERTEXT)
            if stop > end:
                feed(ciphertext[start:])
                self._missing = stop - end
                break
            feed(ciphertext[start:stop])
            start = stop
            try:
                length = read(MAX_RECORD_PLAINTEXT, plaintext[filled:])
            except ssl.SSLWantReadError:  # a record without data
                self.has_answer = self._outgoing.pending > 0
                wordless += 1
                if wordless > MAX_WORDLESS_RECORDS:
                    raise ssl.SSLError("too many records without data") from None
                continue
            except ssl.SSLZeroReturnError:
                length = 0
            if not length:
                self.peer_ended = True
                break
            filled += length
        return filled

    def _begin_record(self, ciphertext: memoryview, start: int) -> int:
        """How many bytes from `start` on the next record takes, where its header is cut (RFC 8446 section 5.1).

        The header goes into the BIO as far as it is here, and its length is asked for again with its rest.
        """
        known = len(self._cut_header)
        header = self._cut_header + bytes(ciphertext[start : start + RECORD_HEADER - known])
        if len(header) < RECORD_HEADER:
            self._cut_header = header
            return len(header) - known
        self._cut_header = b""
        return RECORD_HEADER - known + min(int.from_bytes(header[3:]), _MAX_RECORD_CIPHERTEXT)

    def encrypt(self, plaintext: memoryview | bytes) -> bytes:
        """Encrypt at most `MAX_RECORD_PLAINTEXT` bytes: one record, to be sent behind any output taken before."""
        self._write(plaintext)
        return self._drain()

    def close_notify(self) -> None:
        """Say that we send no more (RFC 8446 section 6.1), as output; the peer's direction stays open."""
        with contextlib.suppress(ssl.SSLError):  # WantRead: the peer has not said so yet, which is as it should be
            self._object.unwrap()

    def drop(self) -> None:
        """Let go of a session that is dead, so that no later flush can find anything of it."""
        del self._object, self._incoming, self._outgoing, self._feed, self._drain, self._read, self._write
