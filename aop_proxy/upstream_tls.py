"""TLS towards backends: whom to trust and what to show -> contexts; one session as the client, bytes in, bytes out.

OpenSSL verifies every backend's certificate, its chain and its name; `_assert_verifying` holds each context to it, and
nothing turns it off. TLS 1.2 and newer. Must not know sockets or files.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from aop_proxy.farewell import Buffer
from aop_proxy.model import Upstream
from aop_proxy.records import Records
from aop_proxy.tls import NO_RX_CERTIFICATE_COMPRESSION, as_path

_OPTIONS = ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | NO_RX_CERTIFICATE_COMPRESSION


@dataclass(frozen=True, slots=True)
class Backend:
    """One address of a site's backend, with what TLS towards it needs."""

    upstream: Upstream
    contexts: Mapping[str, ssl.SSLContext] = field(default_factory=dict)
    """By the protocol that they offer in ALPN; empty for a backend that is spoken to in clear."""

    def context(self, protocol: str | None) -> ssl.SSLContext:
        """The one for what was agreed with the client, which is HTTP/1.1 where nothing was, if that is spoken here."""
        return self.contexts.get(protocol or "http/1.1") or next(iter(self.contexts.values()))


def upstream_context(anchors: bytes, key_pair: bytes | None, protocol: str) -> ssl.SSLContext:
    """Make a context for sessions with backends.

    `anchors` holds the certificates to trust and `key_pair` our own with its key, as PEM. Raises ssl.SSLError for what
    OpenSSL does not load.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= _OPTIONS
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.hostname_checks_common_name = False  # RFC 9525 section 2
    with as_path(anchors) as path:
        context.load_verify_locations(cafile=path)
    if key_pair is not None:
        with as_path(key_pair) as path:
            context.load_cert_chain(path)
    context.set_alpn_protocols([protocol])
    _assert_verifying(context)
    return context


def _assert_verifying(context: ssl.SSLContext) -> None:
    """Refuse to go on with a context that would talk to anybody."""
    verifying = (
        context.verify_mode is ssl.CERT_REQUIRED
        and context.check_hostname
        and context.minimum_version is ssl.TLSVersion.TLSv1_2
        and context.options & _OPTIONS == _OPTIONS
        and context.cert_store_stats()["x509"] > 0
    )
    if not verifying:
        raise RuntimeError("a TLS context does not verify backends")


class UpstreamSession(Records):
    """One TLS connection to a backend."""

    __slots__ = ("_protocol", "server_name")

    def __init__(self, backend: Backend, server_name: str | None, protocol: str | None) -> None:
        """Start a session for a client that asked for `server_name`, and agreed on `protocol`, if it did."""
        tls = backend.upstream.tls
        self.server_name = (tls and tls.server_name) or server_name or backend.upstream.host
        """Whom the backend must prove to be; also what it is asked for, where that is no address."""
        self._protocol = protocol
        super().__init__(backend.context(protocol), server_side=False, server_hostname=self.server_name)

    def handshake(self, data: Buffer) -> bool:
        """Take what the backend sent and go one step further; True at the end. Raises ssl.SSLError.

        The caller must send `take_output()` after every step, and after an error: it may hold OpenSSL's alert. Fed
        record by record, a session holds nothing that came behind the handshake.
        """
        self._incoming.write(data)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        if self._protocol == "h2" != self._object.selected_alpn_protocol():
            raise ssl.SSLError("the backend does not speak h2, on which the client was agreed with")
        return True


def why_failed(error: ssl.SSLError) -> str:
    """Why OpenSSL gave a session up, as it says it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    reason = getattr(error, "reason", None)  # which errors of our own making lack
    return reason.lower().replace("_", " ") if reason else str(error.args[-1])
