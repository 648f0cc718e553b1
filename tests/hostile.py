"""The hostile TLS 1.3 client of `tls13` over a real socket: what it sends, and how it is answered."""

import socket
from collections.abc import Callable
from typing import Self

from actors import GET_AND_CLOSE, PATIENCE, Answer
from certificates import Credentials, make_key
from encounter import chain_of
from tls13 import CLOSE_NOTIFY, Tls13Client, records_under, split_records


def send_whole(sock: socket.socket, wire: bytes) -> None:
    """All at once."""
    sock.sendall(wire)


def send_bytewise(sock: socket.socket, wire: bytes) -> None:
    """Each byte in a segment of its own, as far as the kernel lets us."""
    for byte in wire:
        sock.sendall(bytes([byte]))


class HostileClient:
    """One connection, under the test's control."""

    def __init__(
        self,
        address: tuple[str, int],
        client: Tls13Client | None = None,
        send: Callable[[socket.socket, bytes], None] = send_whole,
    ) -> None:
        self.client = client or Tls13Client(server_name=b"localhost")
        self.sock = socket.create_connection(address, PATIENCE)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self.sock.getsockname()[1]
        """Ours, which the proxy's log names."""
        self._send = send
        self._flight_ends = 0

    def send(self, wire: bytes) -> None:
        self._send(self.sock, wire)

    def receive(self) -> bool:
        """Some bytes for the client; False at the end."""
        data = self.sock.recv(65536)
        self.client.receive(data)
        return bool(data)

    def exchange_hellos(self, between: Callable[[], None] = lambda: None) -> bool:
        """The hellos, until our flight is due; False if the server ended first. `between` comes before a second hello."""
        self.send(self.client.hello())
        retried = False
        while not self.client.ready:
            if not self.receive():
                return False
            if self.client.retry_requested and not retried:
                retried = True
                between()
                self.send(self.client.hello())
        self._flight_ends = len(self.client.wire)
        return True

    def greet(self, between: Callable[[], None] = lambda: None) -> None:
        """The hellos, which must succeed."""
        assert self.exchange_hellos(between), f"the connection ended in the hellos: {self.client.wire.hex(' ', 4)}"

    def flight(self, credentials: Credentials | None, request: bytes = GET_AND_CLOSE) -> bytes:
        """Certificate to Finished and a request, if any, behind it; a stolen certificate comes with another key."""
        chain, key = ([], None) if credentials is None else (chain_of(credentials), credentials.key or make_key())
        flight = self.client.certificate_flight(chain, key)
        return flight + (self.client.application_data(request) if request else b"")

    def read_answer(self) -> Answer:
        """Read to the end, whichever it is."""
        try:
            while self.receive():
                pass
            tcp_end = "fin"
        except TimeoutError:
            tcp_end = "timeout"
        except OSError:
            tcp_end = "reset"
        ending = "close_notify" if self.client.alerts == [CLOSE_NOTIFY] else str(self.client.alerts)
        return Answer(self.client.received, ending, tcp_end)

    def numbers(self) -> list[int]:
        """Sequence numbers of all records on the wire under the server's application key, in wire order."""
        secret = self.client.secrets["SERVER_TRAFFIC_SECRET_0"]
        return [record.sequence for record in records_under(self.client.suite, secret, self.client.wire)]

    def records_behind_the_flight(self) -> int:
        """How many records came after the server's Finished."""
        return len(split_records(self.client.wire[self._flight_ends :])[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
