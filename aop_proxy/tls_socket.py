"""A connected socket whose bytes travel as TLS records: what the forwarding loop needs of a socket, and no more.

It can stand where a plain one stands, since it keeps a socket's promises. Readiness: nothing that came waits in here,
so the kernel's word about the descriptor is the whole truth. Ends: close_notify is the end, a FIN without it a reset,
ours is both. Room: what the kernel does not take is held, one piece at most. Must not know what is said, nor why.
"""

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from typing import NoReturn

from aop_proxy.poller import Poller
from aop_proxy.records import MAX_RECORD_PLAINTEXT, Records

PIECE = 64 * 1024
"""Plaintext bytes that are encrypted at a time; as much is held where the peer takes no more."""
MAX_UNASKED = 64 * 1024
"""Bytes of answers to a peer's KeyUpdates that may wait for it to read them."""
_LINGER = struct.Struct("ii")


class TlsSocket:
    """A socket and the session on it, whose handshake is over."""

    __slots__ = ("_encrypted", "_held", "_poller", "_scratch", "_session", "_socket", "_tell")

    def __init__(
        self,
        connected: socket.socket,
        session: Records,
        poller: Poller,
        scratch: memoryview,
        tell: Callable[[ssl.SSLError], None],
    ) -> None:
        """Take a non-blocking socket, to be closed by `close`; `scratch` is used within a call and never between two.

        `tell` hears why a session broke.
        """
        self._socket = connected
        self._session = session
        self._poller = poller
        self._scratch = scratch
        self._tell = tell
        self._held = b""
        """Ciphertext that the kernel has not taken."""
        self._encrypted = 0
        """Bytes at the start of what the caller sends next that are in `_held`, or have left since."""

    def fileno(self) -> int:
        """The descriptor, whose readiness is ours."""
        return self._socket.fileno()

    def recv_into(self, buffer: memoryview, size: int, /) -> int:
        """Receive at most `size` bytes, which must be more than a record; 0 at the peer's close_notify.

        As much ciphertext is taken out of the kernel as can be decrypted at once, behind a beginning that came before.
        """
        session = self._session
        if session.peer_ended:
            return 0
        received = self._socket.recv_into(self._scratch[: size - MAX_RECORD_PLAINTEXT])
        if not received:
            raise ConnectionResetError("the TLS session was cut")
        try:
            filled = session.decrypt(self._scratch[:received], buffer)
        except ssl.SSLError as error:
            self._break(error)
        if session.has_answer:
            self._answer()
        if session.peer_ended:
            # The kernel is to say so too, again and again: a FIN may not come before ours has.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)
        elif not filled:
            raise BlockingIOError  # a part of a record, or one without data
        return filled

    def send(self, data: memoryview | bytes, /) -> int:
        """Send what the kernel takes. The rest must come first in the next call: it may be encrypted already."""
        view = memoryview(data)
        sent = 0
        try:
            while True:
                self._flush()
                sent += self._encrypted
                self._encrypted = 0
                if sent == len(view):
                    return sent
                end = min(sent + PIECE, len(view))
                starts = range(sent, end, MAX_RECORD_PLAINTEXT)
                self._held = b"".join(
                    [self._session.encrypt(view[start : min(start + MAX_RECORD_PLAINTEXT, end)]) for start in starts]
                )
                self._encrypted = end - sent
        except BlockingIOError:
            if not sent:
                raise
            return sent

    def shutdown(self, _how: int, /) -> None:
        """Send no more: close_notify and a FIN behind it, as soon as there is room. The peer may go on."""
        self._session.close_notify()
        self._held += self._session.take_output()
        self._end()

    def setsockopt(self, level: int, option: int, value: bytes, /) -> None:
        """As for any socket."""
        self._socket.setsockopt(level, option, value)

    def close(self) -> None:
        """Close; with close_notify, unless the socket was told to reset, or something would be missing before it."""
        is_reset, _ = _LINGER.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.size))
        if not is_reset:
            with contextlib.suppress(OSError):
                self._flush()
                self._session.close_notify()
                self._socket.send(self._session.take_output())
        self._socket.close()

    def _flush(self) -> None:
        """Have the kernel take all that is held. Raises BlockingIOError where it does not."""
        while self._held:
            self._held = self._held[self._socket.send(self._held) :]

    def _end(self) -> None:
        try:
            self._flush()
        except BlockingIOError:
            self._poller.on_writable(self.fileno(), self._end)
            return
        except OSError:
            pass  # it is gone: whoever reads is told
        self._poller.stop_writing(self.fileno())
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def _answer(self) -> None:
        """Send what OpenSSL answers by itself to KeyUpdates; it may wait for what is sent next (RFC 8446 4.6.3)."""
        self._held += self._session.take_output()
        if len(self._held) > 2 * PIECE + MAX_UNASKED:
            raise ConnectionResetError("the peer asks and does not read")
        with contextlib.suppress(OSError):  # what came before it is still to be read
            self._flush()

    def _break(self, error: ssl.SSLError) -> NoReturn:
        """The peer broke the session, or gave it up: OpenSSL's alert goes out if there is one, and it is told."""
        self._tell(error)
        with contextlib.suppress(OSError):
            self._socket.send(self._session.take_output())
        raise ConnectionResetError from error
