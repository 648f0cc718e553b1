"""A relay with faults, to stand between two parties that speak TCP.

Bytes come in on a port of its own and go out to a target, bent in each direction as `Fault` says. It knows no TLS and
no HTTP, and it counts bytes from the start of a connection. One connection has two threads, so keep to a few.
"""

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from typing import Self

from actors import PATIENCE, reset


@dataclass(frozen=True)
class Fault:
    """What happens to the bytes of one direction. Every `…_after` counts bytes that were passed on; None is never."""

    delay: float = 0.0
    """Seconds that each piece is held back."""
    one_byte_at_a_time: bool = False
    swallow_after: int | None = None
    """Go on reading, pass nothing more on."""
    stop_reading_after: int | None = None
    """Leave the rest in the sender's and the kernel's buffers until the relay closes."""
    half_close_after: int | None = None
    """End this direction with a FIN; the other goes on."""
    reset_after: int | None = None
    """Reset both connections."""

    @property
    def limit(self) -> int | None:
        """How many bytes pass unharmed."""
        limits = (self.swallow_after, self.stop_reading_after, self.half_close_after, self.reset_after)
        return min((limit for limit in limits if limit is not None), default=None)


NO_FAULT = Fault()


@dataclass
class _Pair:
    """The two sockets of one connection, and what it has carried."""

    client: socket.socket
    server: socket.socket
    over: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        self.over.set()
        for sock in (self.client, self.server):
            # Another thread may sit in recv() on it, and a close alone would not wake that one.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RD)
            with contextlib.suppress(OSError):
                reset(sock)

    def close(self) -> None:
        self.over.set()
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class FaultyRelay:
    """Listens on `address`, connects to `target` for each connection, and passes bytes on with these faults."""

    def __init__(self, target: tuple[str, int], *, to_server: Fault = NO_FAULT, to_client: Fault = NO_FAULT) -> None:
        self.target = target
        self.to_server = to_server
        self.to_client = to_client
        self._pairs: list[_Pair] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def port(self) -> int:
        return self.address[1]

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target, PATIENCE)
            except OSError:
                reset(client)
                continue
            server.settimeout(None)
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(client, server)
            self._pairs.append(pair)
            for source, sink, fault in ((client, server, self.to_server), (server, client, self.to_client)):
                thread = threading.Thread(target=self._pass_on, args=(pair, source, sink, fault), daemon=True)
                self._threads.append(thread)
                thread.start()

    @staticmethod
    def _pass_on(pair: _Pair, source: socket.socket, sink: socket.socket, fault: Fault) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while fault.limit is None or passed < fault.limit:
                try:
                    data = source.recv(65536 if fault.limit is None else min(65536, fault.limit - passed))
                except ConnectionResetError:
                    pair.reset()
                    return
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                if fault.delay and pair.over.wait(fault.delay):
                    return
                for piece in (data[i : i + 1] for i in range(len(data))) if fault.one_byte_at_a_time else (data,):
                    sink.sendall(piece)
                passed += len(data)
            if fault.reset_after is not None:
                pair.reset()
            elif fault.half_close_after is not None:
                sink.shutdown(socket.SHUT_WR)
                _swallow(source)
            elif fault.swallow_after is not None:
                _swallow(source)
            else:
                pair.over.wait()

    def close(self) -> None:
        """Close everything; whoever was held up sees the end of its connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(PATIENCE)
        for pair in self._pairs:
            pair.close()
        for thread in self._threads:
            thread.join(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _swallow(source: socket.socket) -> None:
    while source.recv(65536):
        pass
