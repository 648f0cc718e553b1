"""The two ends of an exchange, as one coroutine uses both: what has come, and what is sent in the order it is given.

An end is heard of once and then left alone until it is listened to again. What is little is sent when every socket
that was ready has been served: the first wakes a sleeping peer, and finds it awake for all the others, which saves a
quarter of the CPU under load. What a peer does not take is kept, and the coroutine sees to it that it is little. In:
streams, a TLS session. Out: plaintext. Must not know HTTP.
"""

import select
import socket
import ssl
from collections.abc import Callable

from aop_proxy.endpoint import Stream
from aop_proxy.poller import Poller
from aop_proxy.records import MAX_RECORD_PLAINTEXT
from aop_proxy.relay import BULK, MAX_UNASKED, MAX_WORDLESS, RECEIVE, SMALL_RECORD, Buffers
from aop_proxy.tls import TlsSession
from aop_proxy.upstream import Dialled

LITTLE = 16 * 1024
"""Bytes from which on what is given is sent at once."""


class End:
    """A stream as it is: the backend's."""

    __slots__ = (
        "_buffers", "_descriptor", "_held", "_is_awaited", "_is_watched", "_poller", "backlog", "broken", "has_news",
        "stream", "wake",
    )  # fmt: skip

    def __init__(self, poller: Poller, buffers: Buffers, connected: Stream, wake: Callable[[], None]) -> None:
        """Take a connected non-blocking stream, which the caller closes; `wake` is called whenever there is news."""
        self._poller = poller
        self._buffers = buffers
        self.wake = wake
        self._descriptor = connected.fileno()
        self.stream = connected
        self._held = b""
        """What is to be sent after this turn."""
        self.backlog = b""
        """What the peer has not taken yet."""
        self.broken = False
        """The peer takes no more."""
        self.has_news = False
        """There may be something to receive."""
        self._is_awaited = False
        self._is_watched = False

    def listen(self) -> None:
        """Wake the coroutine when there is something to receive."""
        self._is_awaited = True
        if not self._is_watched or self._poller.forgets:
            self._is_watched = True
            self._poller.on_readable(self._descriptor, self._heard)

    def take(self) -> memoryview | None:
        """As `receive`; where nothing has come, the coroutine will be woken."""
        if self.has_news and (data := self.receive()) is not None:
            return data
        self.listen()
        return None

    def leave(self) -> None:
        """Wake nobody any more, and send no more."""
        self._stop_watching()
        self._poller.stop_writing(self._descriptor)
        self._held = b""

    @property
    def owes(self) -> bool:
        """The peer has not taken all yet."""
        return bool(self._held or self.backlog)

    def receive(self) -> memoryview | None:
        """What has come, good until anything else is received in this worker; empty at the end, None if nothing came.

        Raises OSError for a reset.
        """
        self.has_news = False
        try:
            received = self.stream.recv_into(self._buffers.plaintext, RECEIVE)
        except BlockingIOError:
            return None
        return self._buffers.plaintext[:received]

    def send(self, data: memoryview | bytes) -> None:
        """Send soon, or keep for later, in order. A peer that takes no more is noted in `broken`."""
        if self.broken or not data:
            return
        if self.backlog:
            self.backlog += data
        elif len(data) < LITTLE:
            if not self._held:
                self._poller.after_turn(self.flush)
            self._held += data
        else:
            self._send(self._held + data if self._held else data)

    def flush(self) -> None:
        """Send at once what was given in this turn."""
        if self._held:
            self._send(self._held)
            if self.broken:
                self.wake()  # whoever gave it has gone on to wait, maybe for the other end alone

    def _send(self, data: memoryview | bytes) -> None:
        self._held = b""
        try:
            sent = self.stream.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.broken = True
            return
        if sent < len(data):
            self.backlog = bytes(data[sent:])
            self._poller.on_writable(self._descriptor, self._writable)

    def _heard(self) -> None:
        if self._is_awaited:
            self._is_awaited = False
            self.has_news = True
            self.wake()
        else:  # only now, since it is mostly listened to again before anything comes
            self._stop_watching()

    def _stop_watching(self) -> None:
        self._is_watched = False
        self._poller.stop_reading(self._descriptor)

    def _writable(self) -> None:
        try:
            self.backlog = self.backlog[self.stream.send(self.backlog) :]
        except BlockingIOError:
            return
        except OSError:
            self.broken = True
            self.backlog = b""
        if not self.backlog:
            self._poller.stop_writing(self._descriptor)
            self.wake()


class BackendEnd(End):
    """A backend that was dialled. Whoever has it has its `wake`, and closes it."""

    __slots__ = ("_asked", "dialled")

    def __init__(self, poller: Poller, buffers: Buffers, dialled: Dialled, wake: Callable[[], None]) -> None:
        """As `End`."""
        super().__init__(poller, buffers, dialled.stream, wake)
        self.dialled = dialled
        self._asked: select.poll | None = None

    def is_silent(self) -> bool:
        """Whether nothing has come, not even an end; TLS records without data (session tickets) are nothing."""
        if self._asked is None:
            self._asked = select.poll()
            self._asked.register(self._descriptor, select.POLLIN)
        try:
            return not self._asked.poll(0) or self.receive() is None  # the first costs a third of an error
        except OSError:
            return False

    def close(self) -> None:
        """Close the stream, whatever was still to be sent."""
        self._held = b""
        self._poller.forget(self._descriptor)
        self.stream.close()


class TlsEnd(End):
    """A socket under an accepted TLS session: the client's."""

    __slots__ = ("_encrypt", "_session", "_unasked", "_wordless")

    def __init__(
        self,
        poller: Poller,
        buffers: Buffers,
        connected: socket.socket,
        wake: Callable[[], None],
        session: TlsSession,
    ) -> None:
        """As `End`, and the session that everything goes through."""
        super().__init__(poller, buffers, connected, wake)
        self._session = session
        self._encrypt = session.encrypt
        self._unasked = 0
        self._wordless = 0

    def take(self) -> memoryview | None:
        """As `End` has it. Raises ConnectionResetError for a client that takes no more: nobody may tell of it again."""
        if self.broken:
            raise ConnectionResetError
        return super().take()

    def receive(self) -> memoryview | None:
        """As `End` has it; the end is the client's close_notify or its FIN."""
        self.has_news = False
        session, buffers = self._session, self._buffers
        if session.peer_ended:
            return buffers.plaintext[:0]
        try:
            received = self.stream.recv_into(buffers.ciphertext, RECEIVE)
        except BlockingIOError:
            return None
        if not received:
            if session.is_mid_record:
                raise ConnectionResetError
            return buffers.plaintext[:0]
        try:
            filled = session.decrypt(buffers.ciphertext[:received], buffers.plaintext)
        except ssl.SSLError:
            super().send(session.take_output())
            raise ConnectionResetError from None
        if session.has_answer:
            self._answer()
        if filled or session.peer_ended:
            self._wordless = 0
            self.has_news = session.peer_ended  # to be told next time, though nothing more may come
            return buffers.plaintext[:filled]
        self._wordless += received
        if self._wordless > MAX_WORDLESS:
            raise ConnectionResetError
        return None

    def send(self, data: memoryview | bytes) -> None:
        """As `End` has it; each record is small unless the data is much, as `relay` has it."""
        if self.broken or not data:
            return
        length = len(data)
        if length <= SMALL_RECORD:
            super().send(self._encrypt(data))
            return
        encrypt, view = self._encrypt, memoryview(data)
        size = SMALL_RECORD if length < BULK else MAX_RECORD_PLAINTEXT
        super().send(b"".join([encrypt(view[start : start + size]) for start in range(0, length, size)]))

    def say_goodbye(self) -> None:
        """Send close_notify, behind what is owed."""
        self._session.close_notify()
        super().send(self._session.take_output())

    def _answer(self) -> None:
        """Send what OpenSSL answers by itself while it reads (RFC 8446 section 4.6.3), of which little may wait."""
        answer = self._session.take_output()
        self._unasked = self._unasked + len(answer) if self.backlog else 0
        if self._unasked > MAX_UNASKED:
            raise ConnectionResetError
        super().send(answer)
