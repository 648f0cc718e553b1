"""One visit to an origin: address, request and TLS client context -> everything the origin said.

One connection, one request, an answer bounded in bytes and time. Must not know what an answer means.
"""

import contextlib
import re
import socket
import ssl
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self, TypeVar

CONNECT_PATIENCE, PATIENCE = 5.0, 10.0
"""Seconds for TCP's handshake; for all that follows it."""
MAX_ANSWER = 64 * 1024
"""Bytes of an answer that are read: a page of refusal is far shorter."""
MAX_RECEIVED = 512 * 1024
"""Bytes of a whole connection, handshake and all: an origin's certificates are at most 100 KiB to OpenSSL."""
_READ = 16 * 1024
_ENCODING_DER: Literal[2] = 2
"""`_ssl.ENCODING_DER`, for `_ssl.Certificate.public_bytes` of Python 3.11 and 3.12."""

_ALERT = re.compile("(?:SSLV3|TLSV1|TLSV13)_(?:ALERT_)?([A-Z_]+)$")
"""OpenSSL's names of alerts; its complaints about what it received itself have no version before them."""

_ALERT_RECORD = b"\x15\x03"
"""What a TLS alert begins with on the wire (RFC 8446 section 5.1): some servers answer plain HTTP so."""

Address = tuple[str, int]
T = TypeVar("T")


class Unreachable(Exception):
    """Nothing could be learnt; the message says why."""


class NotPossibleHere(Exception):
    """The local OpenSSL cannot ask in this way."""


class Credentials(NamedTuple):
    """Paths of a certificate and its key."""

    certificate: str
    private_key: str


@dataclass
class Answer:
    """What an origin said to one visitor."""

    data: bytes = b""
    ending: str = "closed without an answer"
    """How the connection ended, in words."""
    alert: str | None = None
    """The TLS alert that ended it, in the words of RFC 8446."""
    tls_version: str | None = None
    """Of a handshake that was finished."""
    chain: tuple[bytes, ...] = ()
    """The origin's certificates in DER, leaf first, from the handshake even where it failed later."""
    session: ssl.SSLSession | None = None
    resumed: bool = False


def locate(address: Address) -> Address:
    """The one address behind a name that can be connected to, so that all visits go to the same. Raises Unreachable."""
    with _connect(address) as end:
        host, port, *_ = end.getpeername()
    return str(host), int(port)


def _connect(address: Address) -> socket.socket:
    try:
        return socket.create_connection(address, CONNECT_PATIENCE)
    except OSError as error:
        raise Unreachable(f"cannot connect: {error.strerror or error}") from error


def client_context(credentials: Credentials | None, ca: str | None, *, verify: bool) -> ssl.SSLContext:
    """A client with this certificate or none, that trusts `ca`, the system's CAs, or whoever answers.

    Raises ValueError for a file that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca is not None:
        with _file_named(ca):
            context.load_verify_locations(ca)
    else:
        context.load_default_certs()
    if credentials is not None:
        with _file_named(credentials.certificate):
            context.load_cert_chain(*credentials, password="")  # nobody is asked for one
    return context


@contextlib.contextmanager
def _file_named(path: str) -> Iterator[None]:
    """OpenSSL does not say which file it could not use."""
    try:
        yield
    except ssl.SSLError as error:
        raise ValueError(f"{path}: OpenSSL cannot use this as PEM ({error.reason or 'no certificate'})") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read, or its key cannot: {error.strerror}") from error


def make_old(context: ssl.SSLContext) -> None:
    """Offer TLS 1.0 and 1.1 alone. Raises NotPossibleHere."""
    try:
        context.set_ciphers("ALL:@SECLEVEL=0")  # OpenSSL 3 allows these versions on no other level
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that they are deprecated is why they are tried
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
    except (ssl.SSLError, ValueError) as error:
        raise NotPossibleHere from error


def ask_plainly(address: Address, request: bytes) -> Answer:
    """Ask without TLS."""
    answer = Answer()
    with _Line(address) as line, _ending_told(answer):
        line.send(request)
        while data := line.receive():
            _keep(answer, data)
    if answer.data.startswith(_ALERT_RECORD):
        answer.data, answer.ending = b"", "a TLS alert"
    return answer


def ask(
    address: Address, request: bytes, context: ssl.SSLContext, server_name: str, session: ssl.SSLSession | None = None
) -> Answer:
    """Ask over TLS, resuming a session if one is given. Raises Unreachable and NotPossibleHere."""
    answer = Answer()
    with _Line(address) as line:
        end = _TlsEnd(line, context, server_name, session)
        with _ending_told(answer):
            try:
                end.run(end.tls.do_handshake)
            finally:
                answer.chain = _chain(end.tls)
            answer.tls_version, answer.resumed = end.tls.version(), bool(end.tls.session_reused)
            end.run(lambda: end.tls.write(request))
            while data := end.run(lambda: end.tls.read(_READ)):
                _keep(answer, bytes(data))
        if answer.tls_version is not None:
            answer.session = end.tls.session
    return answer


class _TooLong(Exception):
    pass


def _keep(answer: Answer, data: bytes) -> None:
    answer.data += data
    if len(answer.data) >= MAX_ANSWER:
        raise _TooLong


@contextlib.contextmanager
def _ending_told(answer: Answer) -> Iterator[None]:
    """Take down how the exchange inside ended."""
    try:
        yield
    except _TooLong:
        pass
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(
            f"the origin's certificate is not trusted ({error.verify_message}): give --ca PEM, or --insecure"
        ) from error
    except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
        pass
    except ssl.SSLError as error:
        alert = _ALERT.match(error.reason or "")
        answer.alert = alert[1].lower() if alert else None
        answer.ending = f"TLS alert {answer.alert}" if alert else f"no TLS ({(error.reason or 'error').lower()})"
    except TimeoutError:
        answer.ending = f"no answer within {PATIENCE:.0f} s"
    except OSError:
        answer.ending = "reset without an answer"


class _Line:
    """A TCP connection with one deadline for all that happens on it."""

    def __init__(self, address: Address) -> None:
        self._socket = _connect(address)
        self._until = time.monotonic() + PATIENCE
        self._received = 0

    def send(self, data: bytes) -> None:
        """Send; who is refused may be cut off meanwhile, and what was said before that can still be read."""
        self._limit()
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(data)

    def receive(self) -> bytes:
        """Some bytes; empty at the end."""
        self._limit()
        data = self._socket.recv(_READ)
        self._received += len(data)
        if self._received > MAX_RECEIVED:
            raise _TooLong
        return data

    def _limit(self) -> None:
        self._socket.settimeout(max(self._until - time.monotonic(), 0.001))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class _TlsEnd:
    """OpenSSL between two buffers, so that what it has not yet sent can be seen."""

    def __init__(self, line: _Line, context: ssl.SSLContext, server_name: str, session: ssl.SSLSession | None) -> None:
        self._line = line
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name, session=session)
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except ssl.SSLError as error:  # before a byte was sent
            raise NotPossibleHere from error

    def run(self, action: Callable[[], T]) -> T:
        """Do it, with as much sending and receiving as it takes."""
        while True:
            try:
                return action()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._line.receive()
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            finally:
                self._flush()

    def _flush(self) -> None:
        if data := self._outgoing.read():
            self._line.send(data)


def _chain(tls: ssl.SSLObject) -> tuple[bytes, ...]:
    """What the origin has shown, also where the handshake did not come to its end. Nothing of it is verified."""
    if hasattr(tls, "get_unverified_chain"):  # public from Python 3.13 on
        return tuple(tls.get_unverified_chain())
    found = tls._sslobj.get_unverified_chain() or []  # type: ignore[attr-defined]  # noqa: SLF001
    return tuple(certificate.public_bytes(_ENCODING_DER) for certificate in found)
