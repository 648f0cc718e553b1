"""The backend's end of a TLS connection, record by record under the test's control."""

import contextlib
import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors import PATIENCE, TlsClient
from certificates import CredentialFiles


def backend_context(
    credentials: CredentialFiles, *, version: ssl.TLSVersion | None = None, client_ca: Path | None = None
) -> ssl.SSLContext:
    """A backend with this certificate, which speaks one version or both, and demands a certificate or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(credentials.certificate, credentials.private_key)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


class TlsEnd(TlsClient):
    """All that a `TlsClient` can do, as the server."""

    def __init__(self, accepted: socket.socket, context: ssl.SSLContext) -> None:
        accepted.settimeout(PATIENCE)
        self.sock = accepted
        self._one_byte_at_a_time = False
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=True)


class TlsBackend:
    """Listens, and hands out connections that have shaken hands."""

    def __init__(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        self.listener = listener
        self.context = context
        self.url = "https://{}:{}".format(*listener.getsockname())

    def accept(self, *, handshake: bool = True) -> TlsEnd:
        self.listener.settimeout(PATIENCE)
        end = TlsEnd(self.listener.accept()[0], self.context)
        if handshake:
            end.handshake()
        return end

    def nobody_waits(self) -> bool:
        """Whether no connection is there to be accepted."""
        return not select.select([self.listener], [], [], 0)[0]

    def forget(self) -> None:
        while not self.nobody_waits():
            with contextlib.suppress(OSError):
                self.listener.accept()[0].close()


@contextmanager
def tls_backend(context: ssl.SSLContext) -> Iterator[TlsBackend]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield TlsBackend(listener, context)
