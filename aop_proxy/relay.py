"""The forwarding loop: plaintext both ways between one accepted TLS session and one upstream socket.

How a chunk travels up: `recv_into` one buffer of the worker's (kernel -> ciphertext), a memoryview of it into OpenSSL's
BIO (copied), `SSL_read` into the other buffer (decrypted), `send` of a memoryview of that. Down: `recv_into` (kernel ->
plaintext), a memoryview into `SSL_write` (encrypted into the BIO), out of the BIO as one bytes object per record,
`sendmsg` of all of them. No Python object is made per chunk on the way up, and bytes are copied in user space only by
OpenSSL's BIOs, and where a peer is slower than the other: what it did not take is kept, and the other is not read until
it has taken it. So at most one buffer's worth per direction is ever held.

Half-close passes: close_notify or FIN of the client's becomes a FIN upstream, the upstream's FIN becomes a close_notify
and a FIN. A reset passes as a reset. Must not know policy, configuration or metrics.
"""

import asyncio
import contextlib
import fcntl
import socket
import ssl
import struct
import termios

from aop_proxy.endpoint import MORE_FOLLOWS, Stream
from aop_proxy.poller import Poller
from aop_proxy.reasons import Reason, Verdict
from aop_proxy.records import MAX_RECORD_PLAINTEXT
from aop_proxy.tls import TlsSession

RECEIVE = 256 * 1024
"""Bytes read from a socket at a time; bounds what one connection does in one turn of the loop."""
SMALL_RECORD = 8 * 1024
"""Plaintext bytes per record of an answer that is no bulk transfer. OpenSSL's BIO grows to 4/3 of the largest record it
ever held and never shrinks: this keeps 11 KiB less in every idle connection than full records would."""
BULK = 64 * 1024
"""Bytes waiting in the upstream's socket from which on an answer is a bulk transfer."""
MAX_WORDLESS = 64 * 1024
"""Bytes that a client may send without a byte of plaintext in them. A KeyUpdate of 27 bytes costs 10 to 30 us."""
MAX_UNASKED = 64 * 1024
"""Bytes of answers to a client's KeyUpdates that may wait for that client to read them."""
_RESET = struct.pack("ii", 1, 0)


class Buffers:
    """A worker's two buffers. Every relay uses them, and none keeps anything in them across a turn of the loop."""

    def __init__(self) -> None:
        """Allocate them."""
        self.ciphertext = memoryview(bytearray(RECEIVE))
        # Everything fed is decrypted at once, so it must hold that and one record that was waiting for its end.
        self.plaintext = memoryview(bytearray(RECEIVE + 2 * MAX_RECORD_PLAINTEXT))


class Relay:
    """Forwards between a client and an upstream until both directions have ended; `finished` then says why."""

    __slots__ = (
        "_ciphertext", "_client", "_client_backlog", "_client_ended", "_client_fd", "_client_recv_into",
        "_client_send", "_decrypt", "_encrypt", "_plaintext", "_poller", "_reason", "_session", "_unasked",
        "_upstream", "_upstream_backlog", "_upstream_broken", "_upstream_ended", "_upstream_fd",
        "_upstream_recv_into", "_upstream_send", "_upstream_takes_no_more", "_wordless", "active_at",
        "bytes_from_client", "bytes_from_upstream", "client_may_be_sending", "finished", "upstream_spoke_last",
    )  # fmt: skip

    def __init__(
        self,
        poller: Poller,
        buffers: Buffers,
        session: TlsSession,
        client: socket.socket,
        upstream: Stream,
    ) -> None:
        """Take two connected non-blocking sockets and an accepted session; the caller closes the sockets at the end."""
        self._poller = poller
        self._ciphertext = buffers.ciphertext
        self._plaintext = buffers.plaintext
        self._session = session
        self._client = client
        self._client_fd = client.fileno()
        self._upstream = upstream
        self._upstream_fd = upstream.fileno()
        # Looking a method up costs as much as calling it, and these are called for every chunk.
        self._client_recv_into = client.recv_into
        self._client_send = client.send
        self._upstream_recv_into = upstream.recv_into
        self._upstream_send = upstream.send
        self._decrypt = session.decrypt
        self._encrypt = session.encrypt
        self._reason = Reason.CLOSED
        self._client_backlog = b""
        self._upstream_backlog = b""
        self._unasked = 0
        self._wordless = 0
        self._client_ended = False
        self._upstream_ended = False
        self._upstream_broken = False
        self._upstream_takes_no_more = False
        self.bytes_from_client = 0
        self.bytes_from_upstream = 0
        self.active_at = self._poller.now
        self.upstream_spoke_last = False
        self.client_may_be_sending = False
        """At the end: bytes may still come, and closing on them would destroy what the client is to read."""
        self.finished: asyncio.Future[Reason] = poller.loop.create_future()

    def start(self, plaintext: bytes, header: bytes = b"") -> None:
        """Begin with what was already decrypted, behind a header of ours: both in one piece, as receivers want it."""
        self._poller.on_readable(self._upstream_fd, self._upstream_readable)
        if plaintext or header:
            self.bytes_from_client += len(plaintext)
            self._send_upstream(memoryview(header + plaintext))
        if self._session.peer_ended:
            self._end_client()
        elif not self._upstream_backlog and not self._upstream_takes_no_more:
            self._poller.on_readable(self._client_fd, self._client_readable)

    @property
    def owes(self) -> bool:
        """Something is kept for a peer that does not keep up."""
        return bool(self._client_backlog or self._upstream_backlog)

    def stop(self, reason: Reason) -> None:
        """End now: close_notify and FIN to the client and a FIN to the upstream, or a reset if it is no good end.

        Who is cut in the middle must not take what it has for the whole.
        """
        if reason.verdict is Verdict.FAILED:
            self._reset_both(reason)
            return
        self._reason = reason
        if not self._upstream_ended:
            self._end_upstream()
        self._finish(reason)

    # Client to upstream.

    def _client_readable(self) -> None:
        try:
            received = self._client_recv_into(self._ciphertext)
        except BlockingIOError:
            return
        except OSError:
            self._lose_client()
            return
        self.active_at = self._poller.now
        session = self._session
        if not received:
            if session.is_mid_record:
                self._reset_both(Reason.CLIENT_RESET)  # a FIN there is no end but a loss
            else:
                self._end_client()
            return
        try:
            filled = self._decrypt(self._ciphertext[:received], self._plaintext)
        except ssl.SSLError:
            self._break_client()
            return
        if session.has_answer:
            self._answer_client()
        if filled:
            self._wordless = 0
            self.upstream_spoke_last = False
            self.bytes_from_client += filled
            self._send_upstream(self._plaintext[:filled])
        else:
            self._wordless += received
            if self._wordless > MAX_WORDLESS:
                self._reset_both(Reason.CLIENT_RESET)
        if session.peer_ended:
            self._end_client()

    def _send_upstream(self, data: memoryview) -> None:
        if self._upstream_takes_no_more or self.finished.done():
            return
        try:
            sent = self._upstream_send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._stop_sending_upstream(error)
            return
        if sent < len(data):
            self._upstream_backlog = bytes(data[sent:])
            self._poller.stop_reading(self._client_fd)
            self._poller.on_writable(self._upstream_fd, self._upstream_writable)

    def _upstream_writable(self) -> None:
        try:
            sent = self._upstream_send(self._upstream_backlog)
        except BlockingIOError:
            return
        except OSError as error:
            self._stop_sending_upstream(error)
            return
        self.active_at = self._poller.now
        self._upstream_backlog = self._upstream_backlog[sent:]
        if self._upstream_backlog:
            return
        self._poller.stop_writing(self._upstream_fd)
        if self._client_ended:
            self._end_towards_upstream()
        else:
            self._poller.on_readable(self._client_fd, self._client_readable)

    def _stop_sending_upstream(self, error: OSError) -> None:
        """The upstream takes no more, but may have answered already: that answer is still delivered.

        EPIPE means that its FIN came before its RST, so that its answer is whole; any other error is consumed here,
        and the end of what it sent will look like a FIN although it was none.
        """
        self._upstream_broken = not isinstance(error, BrokenPipeError)
        self._upstream_takes_no_more = True
        self._upstream_backlog = b""
        self._poller.stop_writing(self._upstream_fd)
        self._poller.stop_reading(self._client_fd)
        if self._upstream_ended:
            self._finish_if_delivered()

    def _end_client(self) -> None:
        """The client sends no more, by close_notify or by FIN: say the same to the upstream, behind what it is owed."""
        if self.finished.done():
            return
        self._client_ended = True
        self._poller.stop_reading(self._client_fd)
        if not self._upstream_backlog:
            self._end_towards_upstream()

    def _end_towards_upstream(self) -> None:
        if self._upstream_ended:
            self._finish_if_delivered()  # closing says it too
        else:
            self._shut_down(self._upstream)

    def _break_client(self) -> None:
        """The client broke the TLS protocol: OpenSSL's alert goes out, and the upstream learns that this is no end."""
        with contextlib.suppress(OSError):
            self._client_send(self._session.take_output())
        self._reset_both(Reason.CLIENT_RESET)

    def _answer_client(self) -> None:
        """Send what OpenSSL answers by itself while it reads: KeyUpdates (RFC 8446 section 4.6.3)."""
        answer = self._session.take_output()
        if self._upstream_ended:
            return  # nothing may follow our close_notify
        self._unasked += len(answer) if self._client_backlog else 0
        if self._unasked > MAX_UNASKED:
            self._reset_both(Reason.CLIENT_RESET)
        else:
            self._send_client(answer)

    # Upstream to client.

    def _upstream_readable(self) -> None:
        plaintext = self._plaintext
        try:
            received = self._upstream_recv_into(plaintext, RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            self._upstream_broken = True
            received = 0
        self.active_at = self._poller.now
        self.upstream_spoke_last = True
        if not received:
            self._end_upstream()
            return
        self.bytes_from_upstream += received
        encrypt = self._encrypt
        if received <= SMALL_RECORD:
            self._send_client(encrypt(plaintext[:received]))
            return
        size = SMALL_RECORD if received < BULK else MAX_RECORD_PLAINTEXT
        records = [encrypt(plaintext[start : min(start + size, received)]) for start in range(0, received, size)]
        self._send_client_records(records)

    def _send_client(self, data: bytes, flags: int = 0) -> None:
        if self._client_backlog:
            self._client_backlog += data
            return
        try:
            sent = self._client_send(data, flags)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose_client()
            return
        if sent < len(data):
            self._owe_client(data[sent:])

    def _send_client_records(self, records: list[bytes]) -> None:
        if self._client_backlog:
            self._client_backlog += b"".join(records)
            return
        try:
            sent = self._client.sendmsg(records)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose_client()
            return
        if sent < sum(map(len, records)):
            self._owe_client(b"".join(records)[sent:])

    def _owe_client(self, data: bytes) -> None:
        """The client does not keep up: the upstream is not read until it has."""
        self._client_backlog = data
        self._poller.stop_reading(self._upstream_fd)
        self._poller.on_writable(self._client_fd, self._client_writable)

    def _client_writable(self) -> None:
        try:
            sent = self._client_send(self._client_backlog)
        except BlockingIOError:
            return
        except OSError:
            self._lose_client()
            return
        self.active_at = self._poller.now
        self._client_backlog = self._client_backlog[sent:]
        if self._client_backlog:
            return
        self._unasked = 0
        self._poller.stop_writing(self._client_fd)
        if self._upstream_ended:
            self._end_towards_client()
        else:
            self._poller.on_readable(self._upstream_fd, self._upstream_readable)

    def _end_upstream(self) -> None:
        """The upstream sends no more: the client is told so behind what it is owed."""
        self._upstream_ended = True
        self._poller.stop_reading(self._upstream_fd)
        if not self._upstream_broken:
            self._session.close_notify()
            self._send_client(self._session.take_output(), flags=MORE_FOLLOWS)
        if not self._client_backlog and not self.finished.done():
            self._end_towards_client()

    def _end_towards_client(self) -> None:
        if self._upstream_broken:
            self._reset_client()
        else:
            if not self._client_ended:  # else closing says it too
                self._shut_down(self._client)
            self._finish_if_delivered()

    # Ends.

    def _finish_if_delivered(self) -> None:
        if (
            not self._client_backlog
            and not self._upstream_backlog
            and (self._client_ended or self._upstream_takes_no_more)
        ):
            self._finish(self._reason)

    def _lose_client(self) -> None:
        """The client is gone. Once it has all that we had to say it went as clients do, not waiting for the end."""
        if self._upstream_ended and not self._client_backlog:
            if not self._client_ended:  # in the middle of what it was sending, maybe: no clean end for the upstream
                _reset_on_close(self._upstream)
            self._client_ended = True
            self._finish(Reason.CLOSED)
        else:
            self._reset_both(Reason.CLIENT_RESET)

    def _reset_client(self) -> None:
        """The upstream was reset: never a clean end for the client, who may be reading to the end of the stream.

        A reset in our turn, unless that would destroy what the client is still owed: then a FIN without close_notify.
        """
        if _unsent(self._client) == 0:
            _reset_on_close(self._client)
            self._client_ended = True
        self._finish(Reason.UPSTREAM_RESET)

    def _reset_both(self, reason: Reason) -> None:
        _reset_on_close(self._client)
        _reset_on_close(self._upstream)
        self._client_ended = True
        self._finish(reason)

    def _finish(self, reason: Reason) -> None:
        self.client_may_be_sending = not self._client_ended
        if self.finished.done():
            return
        for end in (self._client_fd, self._upstream_fd):
            self._poller.stop_reading(end)
            self._poller.stop_writing(end)
        self.finished.set_result(reason)

    @staticmethod
    def _shut_down(end: Stream) -> None:
        with contextlib.suppress(OSError):  # it may be gone already
            end.shutdown(socket.SHUT_WR)


def _reset_on_close(end: Stream) -> None:
    """Make `close` send RST instead of FIN."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _unsent(end: socket.socket) -> int:
    """Bytes that the kernel still holds for the peer: a reset would destroy them."""
    return int.from_bytes(fcntl.ioctl(end.fileno(), termios.TIOCOUTQ, bytes(4)), "little")
