"""A hostile client before one TLS session, in memory: `tls13` on one side, `aop_proxy.tls` on the other.

After every step the key log must be empty, and a refusal must hold the right to a page or OpenSSL's alert, never both.
"""

import ssl
from dataclasses import dataclass, field
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from aop_proxy import tls
from aop_proxy.farewell import seal_farewell
from aop_proxy.records import MAX_RECORD_PLAINTEXT
from aop_proxy.tls import Accepted, KeyLog, Refused, TlsSession
from certificates import Authority, CredentialFiles, Credentials
from tls13 import CLOSE_NOTIFY, Tls13Client, records_under

PAGE = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
REQUEST = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
FATAL = 2  # the level of an alert


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def chain_of(credentials: Credentials) -> list[bytes]:
    return [der(certificate) for certificate in (credentials.certificate, *credentials.chain)]


@dataclass
class Encounter:
    """One client before one session."""

    session: TlsSession
    key_log: KeyLog | None
    client: Tls13Client = field(default_factory=Tls13Client)
    outcome: Accepted | Refused | None = None
    _behind: bytes = b""

    def step(self, wire: bytes) -> Accepted | Refused | None:
        """One step of the session, and nothing said to the client."""
        assert self.outcome is None, "the handshake is over"
        self.outcome = self.session.handshake(wire)
        self._look_at_key_log()
        match self.outcome:
            case Refused():
                assert not (self.outcome.sealing and self.outcome.output)
            case Accepted():
                self._behind = self.outcome.behind
        return self.outcome

    def send(self, wire: bytes) -> Accepted | Refused | None:
        """One step of the session; what it says for as long as it lives goes to the client."""
        outcome = self.step(wire)
        if not isinstance(outcome, Refused):
            self.client.receive(self.session.take_output())
        return outcome

    def greet(self) -> None:
        """The hellos, until the client's flight is due."""
        self.send(self.client.hello())
        if self.client.retry_requested:
            self.send(self.client.hello())
        assert self.client.ready

    def refuse(self, wire: bytes) -> Refused:
        """A step that must end in a refusal, whose last words reach the client."""
        refused = self.send(wire)
        assert isinstance(refused, Refused)
        if refused.sealing:
            self.client.receive(seal_farewell(refused.sealing.secret, refused.sealing.suite, PAGE))
        else:
            self.client.receive(refused.output)
        return refused

    def accept(self, wire: bytes) -> Accepted:
        """A step that must let the client in."""
        accepted = self.send(wire)
        assert isinstance(accepted, Accepted)
        return accepted

    def flight(self, credentials: Credentials) -> bytes:
        """All that the client sends after the hellos, with this certificate."""
        return self.client.certificate_flight(chain_of(credentials), credentials.key)

    def decrypt(self, wire: bytes) -> bytes:
        """What an accepted session makes of what came with the Finished and of this; its answers go to the client."""
        wire, self._behind = self._behind + wire, b""
        plaintext = memoryview(bytearray(len(wire) + 2 * MAX_RECORD_PLAINTEXT))
        try:
            length = self.session.decrypt(memoryview(wire), plaintext)
        finally:
            self._look_at_key_log()
        self.client.receive(self.session.take_output())
        return bytes(plaintext[:length])

    def encrypt(self, data: bytes) -> None:
        """The client receives this from an accepted session."""
        for start in range(0, len(data), MAX_RECORD_PLAINTEXT):
            self.client.receive(self.session.encrypt(memoryview(data)[start : start + MAX_RECORD_PLAINTEXT]))

    def _look_at_key_log(self) -> None:
        left = self.key_log.drain() if self.key_log else b""
        assert left == b""


@dataclass(frozen=True)
class Judge:
    """A worker's contexts for one site, and its key log."""

    context: ssl.SSLContext
    quiet: ssl.SSLContext
    key_log: KeyLog | None

    @classmethod
    def of(
        cls,
        server: CredentialFiles,
        key_log: KeyLog | None,
        *authorities: Authority,
        crl: bytes = b"",
        alpn: tuple[str, ...] = ("http/1.1",),
        remember_names: bool = True,
    ) -> Self:
        """Trust these authorities, and look at revocation lists if there are any."""
        pem = server.certificate.read_bytes() + server.private_key.read_bytes()
        trusted = [der(authority.certificate) for authority in authorities]
        context = tls.site_context(pem, trusted, crl, alpn, key_log, remember_names=remember_names)
        return cls(context, tls.quiet_context(trusted), key_log)

    def meet(self, client: Tls13Client | None = None) -> Encounter:
        session = TlsSession(self.context, self.quiet, self.key_log)
        return Encounter(session, self.key_log, client or Tls13Client())


def assert_told(encounter: Encounter, refused: Refused) -> None:
    """The client has read the page and its end, and no sequence number under the application key stands twice."""
    assert refused.sealing is not None
    assert encounter.client.received == PAGE
    assert encounter.client.alerts == [CLOSE_NOTIFY]
    assert_each_number_once(encounter.client, 2)


def assert_alerted(encounter: Encounter, refused: Refused, description: int | None = None) -> None:
    """The client has got one fatal alert and no page, under the key that a page would have been sealed with."""
    assert refused.sealing is None
    assert encounter.client.received == b""
    assert [alert.level for alert in encounter.client.alerts] == [FATAL]
    assert description in (None, encounter.client.alerts[0].description)
    assert_each_number_once(encounter.client, 1)


def assert_each_number_once(client: Tls13Client, records: int) -> None:
    """So many records were on the wire under the server's application key, numbered from 0 without a gap."""
    secret = client.secrets["SERVER_TRAFFIC_SECRET_0"]
    numbers = [record.sequence for record in records_under(client.suite, secret, client.wire)]
    assert numbers == list(range(records))
