"""OpenSSL: settings -> contexts, and one connection's TLS session: bytes in, bytes and plaintext out.

Every context made here is TLS 1.3 only and CERT_REQUIRED (`_assert_closed`), but for `observe`, which one line sets.
OpenSSL verifies, and its errors become our closed set of reasons here and nowhere else. Whether a refused client may be
told in words (`Sealing`) is decided here too, beside the evidence for it. Must not know connections.
"""

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from aop_proxy.farewell import SUITES, Buffer
from aop_proxy.model import Settings
from aop_proxy.reasons import Reason
from aop_proxy.records import RECORD_HEADER, Records

UNRECOGNIZED_NAME_ALERT = bytes.fromhex("15 03 03 00 02 02 70")
"""A fatal unrecognized_name in clear (RFC 6066 section 3), for when nothing has been said yet."""
_SEALED_ALERT = bytes.fromhex("17 03 03 00 13")
_SEALED_ALERT_LENGTH = 24
"""A sealed alert is always 5 bytes of header, 2 of alert, 1 of type, 16 of tag."""
_CLIENT_RANDOM = slice(11, 43)
"""Where the random stands in a ClientHello that starts a record (RFC 8446 sections 4.1.2, 5.1)."""
_SECRET_LINE = b"SERVER_TRAFFIC_SECRET_0 "
NO_RX_CERTIFICATE_COMPRESSION = 1 << 33
"""SSL_OP_NO_RX_CERTIFICATE_COMPRESSION of OpenSSL 3.2 and newer; no meaning before."""
_CLOSED_OPTIONS = ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET | NO_RX_CERTIFICATE_COMPRESSION

_REASONS_BY_VERIFY_CODE = {
    **dict.fromkeys((18, 19), Reason.SELF_SIGNED),
    **dict.fromkeys((2, 20, 21), Reason.UNKNOWN_CA),
    10: Reason.EXPIRED,
    9: Reason.NOT_YET_VALID,
    26: Reason.WRONG_PURPOSE,
    23: Reason.REVOKED,
    **dict.fromkeys((3, 11, 12, 33, 44), Reason.REVOCATION_UNKNOWN),
    7: Reason.BAD_SIGNATURE,
    **dict.fromkeys((66, 67, 68), Reason.WEAK_CERTIFICATE),
}
_CERTIFICATE_REFUSALS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": Reason.NO_CERTIFICATE,
    "CERTIFICATE_VERIFY_FAILED": Reason.BAD_CERTIFICATE,
    "BAD_SIGNATURE": Reason.BAD_SIGNATURE,
    "WRONG_SIGNATURE_TYPE": Reason.WEAK_CERTIFICATE,
    "WRONG_CURVE": Reason.WEAK_CERTIFICATE,
}
"""The only errors after which a page may be sealed: OpenSSL has judged the certificate, and nothing else is wrong."""
_OTHER_REFUSALS = {
    "UNSUPPORTED_PROTOCOL": Reason.TLS_VERSION,
    "VERSION_TOO_LOW": Reason.TLS_VERSION,
    "CALLBACK_FAILED": Reason.UNKNOWN_HOST,
}


class KeyLog:
    """A pipe of this process through which OpenSSL tells the secret that a refusal page is sealed under.

    Make it in the process that handshakes, after privileges are dropped and the process is not dumpable: nobody else
    may read it. Raises OSError where /dev/fd does not exist or no descriptor is left.
    """

    def __init__(self) -> None:
        """Open the pipe, and prove that its path can be opened."""
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        os.set_blocking(self._reader, False)
        self.path = f"/dev/fd/{self._writer}"
        self._buffer = bytearray(65536)
        """As large as the pipe, so that one read empties it."""
        try:
            os.close(os.open(self.path, os.O_WRONLY | os.O_CLOEXEC))
        except OSError:
            self.close()
            raise

    def drain(self) -> bytes:
        """Empty the pipe; the lines that OpenSSL wrote since the last time."""
        try:
            length = os.readv(self._reader, [self._buffer])
        except BlockingIOError:
            return b""
        lines = bytes(memoryview(self._buffer)[:length])
        self._buffer[:length] = bytes(length)
        return lines

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reader)
        os.close(self._writer)


def open_key_log(settings: Settings) -> KeyLog | None:
    """The pipe that pages need; None if they are not wanted, or cannot be had here."""
    if settings.refusal == "alert":
        return None
    try:
        return KeyLog()
    except OSError:
        return None


class _NamedObject(ssl.SSLObject):
    """An SSLObject that remembers the server name of its *first* ClientHello (a second may follow a retry request)."""

    name_was_read = False
    server_name: str | None = None


def _remember_name(session: object, name: str | None, _context: ssl.SSLContext) -> None:
    if isinstance(session, _NamedObject) and not session.name_was_read:
        session.name_was_read, session.server_name = True, name


def _remember_name_and_stop(session: object, name: str | None, context: ssl.SSLContext) -> ssl.AlertDescription:
    _remember_name(session, name, context)
    return ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME


def site_context(
    server_pem: bytes,
    authorities: Iterable[bytes],
    revocation_lists: bytes,
    alpn: tuple[str, ...],
    key_log: KeyLog | None,
    *,
    remember_names: bool,
    observe: bool = False,
) -> ssl.SSLContext:
    """Make the context that judges one site's clients.

    `server_pem` holds chain and key, `authorities` the client CAs as DER, `revocation_lists` CRLs as PEM (empty: none
    are checked). With `observe` a client need not show a certificate; one that it shows is verified all the same.
    Raises ssl.SSLError for what OpenSSL does not load.
    """
    context = _closed_context(authorities)
    with as_path(server_pem) as path:
        context.load_cert_chain(path)
    if revocation_lists:
        with as_path(revocation_lists) as path:
            context.load_verify_locations(cafile=path)
        # A chain that ends below a root has no CA for the last list's signature: OpenSSL would refuse everybody.
        context.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    context.set_alpn_protocols(list(alpn))
    if remember_names:
        context.sni_callback = _remember_name
    if key_log is not None:
        context.keylog_filename = key_log.path
    _assert_closed(context)
    if observe:  # the one place where a context stops being closed
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def quiet_context(authorities: Iterable[bytes]) -> ssl.SSLContext:
    """Make the context that accepted sessions are moved to, so that nothing of theirs is key-logged any more.

    OpenSSL logs at every KeyUpdate, and 211 of them would fill the pipe inside `read` and stop the worker for good.
    """
    return _closed_context(authorities)


def name_reading_context(authorities: Iterable[bytes]) -> ssl.SSLContext:
    """Make the context of throw-away sessions that read a ClientHello's server name and go no further."""
    context = _closed_context(authorities)
    context.sni_callback = _remember_name_and_stop
    return context


def _closed_context(authorities: Iterable[bytes]) -> ssl.SSLContext:
    """Make a context that lets nobody in. Every default that differs between Pythons is set here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _NamedObject
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= _CLOSED_OPTIONS
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=b"".join(authorities))
    _assert_closed(context)
    return context


def _assert_closed(context: ssl.SSLContext) -> None:
    """Refuse to go on with a context that could let a stranger in."""
    closed = (
        context.verify_mode is ssl.CERT_REQUIRED
        and not context.post_handshake_auth  # True lets everybody in while verify_mode still reads CERT_REQUIRED
        and context.num_tickets == 0
        and context.minimum_version is ssl.TLSVersion.TLSv1_3
        and context.options & _CLOSED_OPTIONS == _CLOSED_OPTIONS
        and context.cert_store_stats()["x509_ca"] > 0
    )
    if not closed:
        raise RuntimeError("a TLS context does not require client certificates")


_DESCRIPTORS = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"


@contextlib.contextmanager
def as_path(content: bytes) -> Iterator[str]:
    """A path to `content`, for OpenSSL's functions that want one; nothing is written to a disk where memfd exists."""
    descriptor = os.memfd_create("pem", os.MFD_CLOEXEC) if hasattr(os, "memfd_create") else -1
    with os.fdopen(descriptor, "w+b") if descriptor >= 0 else tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield f"{_DESCRIPTORS}/{file.fileno()}"


class NameReader:
    """Reads the server name of one ClientHello, however it is cut, before a context is chosen for it."""

    __slots__ = ("_incoming", "_object", "is_too_old", "seen")

    def __init__(self, context: ssl.SSLContext) -> None:
        """Take a context from `name_reading_context`."""
        self._incoming = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, ssl.MemoryBIO(), server_side=True)
        self.is_too_old = False
        """The client speaks no TLS that we speak; OpenSSL did not look for its name."""
        self.seen = bytearray()
        """Every byte fed so far: the real session is to be fed the same."""

    def feed(self, data: Buffer) -> bool:
        """Take what the client sent; True once the name is known, or is known to be unreadable."""
        self.seen += data
        self._incoming.write(data)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            self.is_too_old = _OTHER_REFUSALS.get(error.reason or "") is Reason.TLS_VERSION
            return True
        raise RuntimeError("a name-reading session finished a handshake")

    @property
    def server_name(self) -> str | None:
        """The name as the client sent it, None if it sent none or none that is ASCII."""
        return self._object.server_name if isinstance(self._object, _NamedObject) else None


class Sealing(NamedTuple):
    """The right to seal one farewell: this secret has sealed nothing that left, and nothing else ever will."""

    secret: bytearray
    suite: str


class Refused(NamedTuple):
    """A handshake that is over. Exactly one of `sealing` and `output` may be used, and only one is there."""

    reason: Reason
    sealing: Sealing | None
    output: bytes
    """OpenSSL's alert, and whatever else of its flight was still to be sent; empty with `sealing`."""
    certificate: bytes | None = None
    """DER of the leaf the client showed: claimed, not proven."""
    cipher: str | None = None
    alpn: str | None = None
    asked: bool = True
    """Something came behind the client's Finished: its request, most likely."""


class Accepted(NamedTuple):
    """A handshake in which OpenSSL has verified the client's certificate."""

    session: "TlsSession"
    certificate: bytes | None
    """DER of the leaf; None if the client showed none, which only a session without `certificate_required` allows."""
    behind: bytes
    """What the client sent behind its Finished, still encrypted: to be decrypted first."""
    cipher: str
    alpn: str | None


class TlsSession(Records):
    """One TLS connection, as the server."""

    __slots__ = (
        "_certificate_required", "_hello", "_key_log", "_quiet", "_secret", "_secrets_seen", "server_name",
    )  # fmt: skip

    def __init__(
        self,
        context: ssl.SSLContext,
        quiet: ssl.SSLContext,
        key_log: KeyLog | None,
        *,
        certificate_required: bool = True,
    ) -> None:
        """Start a session of `context`, to be moved to `quiet` when it is accepted.

        `certificate_required` is a second look at what the context is to see to: nobody passes without one.
        """
        super().__init__(context, server_side=True)
        self._certificate_required = certificate_required
        self._quiet = quiet
        self._key_log = key_log
        self._hello = b""
        self._secret = bytearray()
        self._secrets_seen = 0
        self.server_name: str | None = None
        """The name in the first ClientHello, where the context remembers names."""

    def handshake(self, data: Buffer) -> Accepted | Refused | None:
        """Take what the client sent and go one step further; None while more is needed.

        The caller must send `take_output()` after every None and every Accepted, before the next step. After a
        Refused the session is dead, whatever OpenSSL thinks of it.
        """
        if len(self._hello) < _CLIENT_RANDOM.stop:
            self._hello += bytes(data[: _CLIENT_RANDOM.stop])
        self._incoming.write(data)
        # From here to the drain nothing else may run in this thread: what is in the pipe is this session's alone.
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            self._collect_secret()
            return None
        except ssl.SSLError as error:
            self._collect_secret()
            return self._refuse(error)
        self._collect_secret()
        return self._accept()

    def forget_secret(self) -> None:
        """Overwrite the secret; call when the handshake is over, however it ended, unless a `Sealing` holds it now."""
        self._secret[:] = bytes(len(self._secret))
        self._secret = bytearray()

    def _accept(self) -> Accepted | Refused:
        certificate = self._object.getpeercert(True)
        cipher = self._object.cipher()
        if cipher is None or (certificate is None and self._certificate_required):
            return self._end(Reason.INTERNAL_ERROR)
        self._note_server_name()
        self._object.context = self._quiet
        self.forget_secret()
        return Accepted(self, certificate, self._incoming.read(), cipher[0], self._object.selected_alpn_protocol())

    def _refuse(self, error: ssl.SSLError) -> Refused:
        reason = _CERTIFICATE_REFUSALS.get(error.reason or "")
        if reason is None:
            return self._end(_OTHER_REFUSALS.get(error.reason or "", Reason.HANDSHAKE_FAILED))
        if isinstance(error, ssl.SSLCertVerificationError):
            reason = _REASONS_BY_VERIFY_CODE.get(error.verify_code, reason)
        claimed = _claimed_certificate(self._object)
        cipher = self._object.cipher()
        suite = cipher[0] if cipher else ""
        alpn = self._object.selected_alpn_protocol()
        output = self._outgoing.read()
        sealing = self._sealing(output, suite)
        if sealing is not None:
            self._secret = bytearray()
        asked = _has_asked(self._incoming.read(), suite)
        self._drop()
        # With `sealing`, OpenSSL's alert goes nowhere: it bears the key and sequence number of our first record.
        return Refused(reason, sealing, b"" if sealing else output, claimed, suite, alpn, asked)

    def _sealing(self, output: bytes, suite: str) -> Sealing | None:
        """Decide whether OpenSSL's alert may be replaced by a page: only if nothing is in doubt.

        The client_random binds the secret to *this* client: a page sealed under another session's secret would hand
        that session's first response to whoever knows the page's text.
        """
        only_the_alert = len(output) == _SEALED_ALERT_LENGTH and output.startswith(_SEALED_ALERT)
        bound = self._secrets_seen == 1 and len(self._secret) > 0
        return Sealing(self._secret, suite) if only_the_alert and bound and suite in SUITES else None

    def _end(self, reason: Reason) -> Refused:
        output = self._outgoing.read()
        self.forget_secret()
        self._drop()
        return Refused(reason, None, output)

    def _drop(self) -> None:
        """Let go of the dead session, so that no later flush can find anything of it."""
        self._note_server_name()
        self.drop()

    def _note_server_name(self) -> None:
        if isinstance(self._object, _NamedObject):
            self.server_name = self._object.server_name

    def _collect_secret(self) -> None:
        if self._key_log is None:
            return
        lines = self._key_log.drain()
        self._secrets_seen += lines.count(_SECRET_LINE)
        start = lines.find(_SECRET_LINE + self._hello[_CLIENT_RANDOM].hex().encode() + b" ")
        if start >= 0:
            line = lines[start : lines.index(b"\n", start)]
            self._secret = bytearray.fromhex(line.rpartition(b" ")[2].decode())


def _has_asked(unread: bytes, suite: str) -> bool:
    """Whether anything follows the client's Finished in what OpenSSL has left unread.

    Told by the length of the last record (a Finished is a header of 4 and a digest, and sealing adds 17: RFC 8446
    sections 4 and 5.2). It decides when a page is sent, and nothing else.
    """
    finished = RECORD_HEADER + 4 + (48 if suite.endswith("SHA384") else 32) + 17
    position = last = 0
    while position < len(unread):
        last = RECORD_HEADER + int.from_bytes(unread[position + 3 : position + 5])
        position += last
    return last not in (0, finished)


def _claimed_certificate(session: ssl.SSLObject) -> bytes | None:
    """DER of the leaf that a refused client showed. The method's name misleads: nothing of it is verified."""
    if hasattr(session, "get_verified_chain"):  # public from Python 3.13 on
        chain = session.get_verified_chain()
    else:
        found = session._sslobj.get_verified_chain() or []  # type: ignore[attr-defined]  # noqa: SLF001
        chain = [certificate.public_bytes(_ENCODING_DER) for certificate in found]
    return chain[0] if chain else None


_ENCODING_DER: Literal[2] = 2
"""`_ssl.ENCODING_DER`, for `_ssl.Certificate.public_bytes` of Python 3.11 and 3.12. Goes with 3.12."""
