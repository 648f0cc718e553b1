"""How far a connection may have come when something befalls its client: a client in each of these states.

Each takes an address and contexts, and returns the client's socket with everything that keeps it alive.
"""

import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from actors import GET, HELLO, TlsClient

UPLOAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"


@dataclass(frozen=True)
class Place:
    """Where a client goes, and what it may show."""

    address: tuple[str, int]
    good: ssl.SSLContext
    stranger: ssl.SSLContext

    def connect(self, context: ssl.SSLContext) -> TlsClient:
        return TlsClient(self.address, context)


def _answered(place: Place, context: ssl.SSLContext) -> TlsClient:
    client = place.connect(context)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.tls.do_handshake()
    client._flush()
    client._feed()
    return client


def silent(place: Place) -> TlsClient:
    return place.connect(place.good)


def in_its_hello(place: Place) -> TlsClient:
    client = place.connect(place.good)
    client.sock.sendall(b"\x16\x03\x01\x02\x00\x01")
    return client


def greeted(place: Place) -> TlsClient:
    """The server has sent its flight."""
    return _answered(place, place.good)


def accepted(place: Place) -> TlsClient:
    """In, and nothing asked yet."""
    client = place.connect(place.good)
    client.handshake()
    return client


def kept(place: Place) -> TlsClient:
    """Between two requests."""
    client = place.connect(place.good)
    client.handshake(with_data=GET)
    client.receive_exactly(len(HELLO))
    return client


def uploading(place: Place) -> TlsClient:
    """In the middle of its request."""
    client = place.connect(place.good)
    client.handshake(with_data=UPLOAD)
    return client


def refused(place: Place) -> TlsClient:
    """It has the beginning of its page, and has not left."""
    client = place.connect(place.stranger)
    client.handshake(with_data=GET)
    client.receive_exactly(12)
    return client


STATES: dict[str, Callable[[Place], TlsClient]] = {
    state.__name__: state for state in (silent, in_its_hello, greeted, accepted, kept, uploading, refused)
}
