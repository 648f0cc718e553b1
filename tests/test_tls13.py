"""The attacking client held to the published traces of RFC 8448, and to Python's own `ssl` as the server.

The reasons that OpenSSL gives for a refusal, and the alerts it sends, are pinned here for the client's every misdeed.
"""

import hashlib
import ssl
from collections.abc import Collection
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate

import rfc8448
import tls13
from certificates import ACCEPTED, REFUSED, Authority, CredentialFiles, Credentials, make_key
from rfc8448 import Trace
from tls13 import (
    CLOSE_NOTIFY,
    SUITES,
    Alert,
    ContentType,
    Extension,
    Group,
    HandshakeType,
    KeySchedule,
    ProtocolViolation,
    Record,
    Scheme,
    Suite,
    Tls13Client,
    TrafficKeys,
    finished_data,
    handshake_message,
    plain_record,
    records_under,
    split_records,
)

# The published traces

traces = pytest.mark.parametrize("trace", rfc8448.TRACES, ids=lambda trace: trace.section)


def transcript_of(hellos: tuple[bytes, ...]) -> bytes:
    first, *others = hellos
    if len(hellos) == 4:  # with a HelloRetryRequest
        first = handshake_message(tls13.MESSAGE_HASH, hashlib.sha256(first).digest())
    return b"".join([first, *others])


@traces
def test_the_key_schedule_yields_the_published_secrets(trace: Trace) -> None:
    """From (EC)DHE secret and hellos: both flights open, both Finished are right, the application secret is the RFC's."""
    suite = tls13.AES_128_GCM_SHA256
    schedule = KeySchedule(suite, trace.shared_secret)
    transcript = transcript_of(trace.hellos)
    handshake = schedule.handshake_secrets(transcript)
    for side, flight in (("SERVER", trace.server_flight), ("CLIENT", trace.client_flight)):
        secret = handshake[f"{side}_HANDSHAKE_TRAFFIC_SECRET"]
        record = TrafficKeys(suite, secret).open(flight)
        assert ContentType.HANDSHAKE == record.content_type
        messages, finished = record.plaintext[:-36], record.plaintext[-36:]
        expected = handshake_message(HandshakeType.FINISHED, finished_data(suite, secret, transcript + messages))
        assert expected == finished
        transcript += record.plaintext
        if side == "SERVER":
            application = schedule.application_secrets(transcript)
    assert trace.server_application_traffic_secret == application["SERVER_TRAFFIC_SECRET_0"]


@traces
def test_the_published_records_are_sealed_byte_for_byte(trace: Trace) -> None:
    """Key and IV derive from the application secret, and the server's records from them, in order."""
    keys = TrafficKeys(tls13.AES_128_GCM_SHA256, trace.server_application_traffic_secret)
    assert (trace.server_key, trace.server_iv) == (keys.key, keys.iv)
    for published in trace.server_records:
        assert published.sequence == keys.sequence
        assert published.wire == keys.seal(published.content_type, published.plaintext)


@traces
def test_the_published_records_are_found_under_their_sequence_numbers(trace: Trace) -> None:
    """`records_under` picks the application records out of everything that was on the wire."""
    hellos = [plain_record(ContentType.HANDSHAKE, hello) for hello in trace.hellos]
    wire = b"".join([*hellos, trace.server_flight, *(published.wire for published in trace.server_records)])
    expected = [Record(r.sequence, r.content_type, r.plaintext) for r in trace.server_records]
    assert expected == records_under(tls13.AES_128_GCM_SHA256, trace.server_application_traffic_secret, wire)


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_a_nonce_used_twice_is_seen(suite: Suite) -> None:
    """Two records under one sequence number give that number twice, whatever stands between them."""
    secret = bytes(hashlib.new(suite.hash).digest_size)
    alert = TrafficKeys(suite, secret).seal(ContentType.ALERT, b"\x02\x74")
    page = TrafficKeys(suite, secret)
    wire = alert + page.seal(ContentType.APPLICATION_DATA, b"page") + plain_record(ContentType.ALERT, b"\x01\x00")
    wire += page.seal(ContentType.ALERT, b"\x01\x00")
    assert [0, 0, 1] == [record.sequence for record in records_under(suite, secret, wire)]


# The client against OpenSSL


class OpensslServer:
    """Python's own TLS server, in memory: bytes in, bytes out; `error` is why it gave up."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.accepted = False
        self.received = b""
        self.error: ssl.SSLError | None = None

    def receive(self, wire: bytes) -> bytes:
        self._incoming.write(wire)
        try:
            if not self.accepted:
                self.tls.do_handshake()
                self.accepted = True
            while data := self.tls.read(65536):
                self.received += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.error = error
        return self._outgoing.read()

    def send(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self._outgoing.read()

    def close(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self._outgoing.read()


@pytest.fixture
def context(server_credentials: CredentialFiles, client_ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    context.load_cert_chain(server_credentials.certificate, server_credentials.private_key)
    context.load_verify_locations(client_ca)
    return context


def chain_of(credentials: Credentials) -> list[bytes]:
    return [certificate.public_bytes(Encoding.DER) for certificate in (credentials.certificate, *credentials.chain)]


def greet(client: Tls13Client, server: OpensslServer) -> None:
    """The hellos, and one more each if the server asks for it, until the client's flight is due."""
    client.receive(server.receive(client.hello()))
    if client.retry_requested:
        client.receive(server.receive(client.hello()))
    assert client.ready


def authenticate(client: Tls13Client, server: OpensslServer, credentials: Credentials) -> None:
    greet(client, server)
    client.receive(server.receive(client.certificate_flight(chain_of(credentials), credentials.key)))
    assert (True, None) == (server.accepted, server.error)


def talk(client: Tls13Client, server: OpensslServer) -> None:
    """Data both ways, on top of what was said before."""
    said, heard = server.received, client.received
    server.receive(client.application_data(b"question" * 400))
    client.receive(server.send(b"answer" * 400))
    assert (said + b"question" * 400, heard + b"answer" * 400) == (server.received, client.received)


@pytest.mark.parametrize("share", [Group.X25519, Group.P256, None])
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_suite_and_group_speaks_both_ways(
    context: ssl.SSLContext, authority: Authority, tmp_path: Path, suite: Suite, share: Group | None
) -> None:
    """A good client is accepted, data passes, no sequence number comes twice, and both sides log the same secrets."""
    context.keylog_filename = str(tmp_path / "keys")
    client, server = Tls13Client(suite=suite, share=share), OpensslServer(context)
    authenticate(client, server, authority.issue())
    talk(client, server)
    client.receive(server.close())
    assert server.tls.cipher() == (suite.name, "TLSv1.3", suite.key_length * 8)
    assert (share is None) == client.retry_requested
    assert [CLOSE_NOTIFY] == client.alerts
    seen = records_under(suite, client.secrets["SERVER_TRAFFIC_SECRET_0"], client.wire)
    assert client.records == seen
    assert [0, 1] == [record.sequence for record in seen]
    lines = [line.split() for line in (tmp_path / "keys").read_text().splitlines() if not line.startswith("#")]
    assert client.secrets == {label: bytes.fromhex(secret) for label, _, secret in lines}
    assert {client.random.hex()} == {random for _, random, _ in lines}


@pytest.mark.parametrize("specimen", ACCEPTED)
def test_every_good_certificate_is_accepted(context: ssl.SSLContext, authority: Authority, specimen: str) -> None:
    """CertificateVerify is right for every kind of key, and chains arrive whole."""
    client, server, credentials = Tls13Client(), OpensslServer(context), ACCEPTED[specimen](authority)
    authenticate(client, server, credentials)
    assert chain_of(credentials)[0] == server.tls.getpeercert(binary_form=True)


def test_what_the_server_says_is_read(context: ssl.SSLContext, server_credentials: CredentialFiles) -> None:
    """Its certificate, the protocol it chose, and that it asks for ours."""
    context.set_alpn_protocols(["http/1.1"])
    client, server = Tls13Client(alpn=[b"h2", b"http/1.1"]), OpensslServer(context)
    greet(client, server)
    shown = load_pem_x509_certificate(server_credentials.certificate.read_bytes())
    assert shown.public_bytes(Encoding.DER) == client.server_certificate
    assert b"http/1.1" == client.selected_alpn
    assert client.certificate_request is not None
    assert Extension.SIGNATURE_ALGORITHMS in client.certificate_request


def test_a_retry_for_another_group_than_the_shared_one(context: ssl.SSLContext, authority: Authority) -> None:
    """A server of P-256 alone asks for it, and gets it."""
    context.set_ecdh_curve("prime256v1")
    client, server = Tls13Client(share=Group.X25519), OpensslServer(context)
    authenticate(client, server, authority.issue())
    assert (True, Group.P256) == (client.retry_requested, client.share)
    talk(client, server)


@pytest.mark.parametrize("second", [b"a.example", b"b.example", None])
def test_the_second_hello_may_name_another_server(
    context: ssl.SSLContext, authority: Authority, second: bytes | None
) -> None:
    """OpenSSL compares neither the names around a HelloRetryRequest nor the randoms."""
    names = []
    context.sni_callback = lambda _, name, __: names.append(name)
    client, server = Tls13Client(server_name=b"a.example", share=None), OpensslServer(context)
    client.receive(server.receive(client.hello()))
    assert client.retry_requested
    client.server_name, client.random = second, bytes(32)
    client.receive(server.receive(client.hello()))
    server.receive(client.certificate_flight(chain_of(credentials := authority.issue()), credentials.key))
    assert server.accepted
    assert ["a.example", second and second.decode()] == names


def test_a_name_of_any_bytes_is_sent(context: ssl.SSLContext) -> None:
    """Control characters of ASCII reach the server as they are."""
    names = []
    context.sni_callback = lambda _, name, __: names.append(name)
    client, server = Tls13Client(server_name=b"a\n{evil}"), OpensslServer(context)
    greet(client, server)
    assert ["a\n{evil}"] == names


@pytest.mark.parametrize("size", [512, 1024, 2048, 4096])
def test_a_smaller_fragment_length_is_agreed(context: ssl.SSLContext, authority: Authority, size: int) -> None:
    """With max_fragment_length no record of either side holds more."""
    client, server = Tls13Client(max_fragment_length=size), OpensslServer(context)
    authenticate(client, server, authority.issue())
    assert Extension.MAX_FRAGMENT_LENGTH in client.encrypted_extensions
    client.receive(server.send(bytes(3 * size)))
    assert [size] * 3 == [len(record.plaintext) for record in client.records]
    sent, _ = split_records(client.application_data(bytes(2 * size)))
    assert [5 + size + 1 + 16] * 2 == [len(record) for record in sent]


def test_everything_may_come_in_crumbs(context: ssl.SSLContext, authority: Authority) -> None:
    """Hello and flight in records of 20 bytes, ChangeCipherSpec between, and each byte both ways on its own."""
    client, server = Tls13Client(record_size=20, session_id=bytes(32)), OpensslServer(context)

    def crumble(wire: bytes) -> None:
        answer = b"".join(server.receive(bytes([byte])) for byte in wire)
        for byte in answer:
            client.receive(bytes([byte]))

    crumble(client.hello())
    assert client.ready
    assert plain_record(ContentType.CHANGE_CIPHER_SPEC, b"\x01") in client.wire
    credentials = authority.issue()
    crumble(client.change_cipher_spec() + client.certificate_flight(chain_of(credentials), credentials.key))
    assert server.accepted
    talk(client, server)


def test_a_request_may_ride_behind_the_finished(context: ssl.SSLContext, authority: Authority) -> None:
    """Application data in the segment that ends the handshake is read."""
    client, server, credentials = Tls13Client(), OpensslServer(context), authority.issue()
    greet(client, server)
    flight = client.certificate_flight(chain_of(credentials), credentials.key)
    server.receive(flight + client.application_data(b"request"))
    assert b"request" == server.received


def test_keys_are_updated_on_both_sides(context: ssl.SSLContext, authority: Authority) -> None:
    """KeyUpdate with and without a wish for an answer; the server's records go on under its next keys."""
    client, server = Tls13Client(), OpensslServer(context)
    authenticate(client, server, authority.issue())
    talk(client, server)
    client.receive(server.receive(client.key_update(answer=False) + client.key_update(answer=True)))
    talk(client, server)
    client.receive(server.receive(b"".join(client.key_update(answer=True) for _ in range(3))))
    talk(client, server)
    assert client.key_updates
    assert not any(client.key_updates)
    for generation in range(len(client.key_updates) + 1):
        seen = records_under(client.suite, client.secrets[f"SERVER_TRAFFIC_SECRET_{generation}"], client.wire)
        assert list(range(len(seen))) == [record.sequence for record in seen]


def test_tickets_are_kept(context: ssl.SSLContext, authority: Authority) -> None:
    """A session ticket counts as a record of the application keys and is there to be looked at."""
    context.num_tickets = 1
    client, server = Tls13Client(), OpensslServer(context)
    authenticate(client, server, authority.issue())
    assert [record.plaintext for record in client.records] == client.tickets
    assert 1 == len(client.tickets)


def test_a_spoilt_record_of_the_server_is_refused(context: ssl.SSLContext) -> None:
    """One flipped bit in the server's flight is a violation, not silence."""
    client, server = Tls13Client(), OpensslServer(context)
    flight = server.receive(client.hello())
    with pytest.raises(ProtocolViolation, match="sequence number"):
        client.receive(flight[:-1] + bytes([flight[-1] ^ 1]))


def test_a_wrong_finished_of_the_server_is_refused(context: ssl.SSLContext) -> None:
    """The client's transcript must be the server's."""
    client, server = Tls13Client(), OpensslServer(context)
    (hello, *flight), _ = split_records(server.receive(client.hello()))
    client.receive(hello)
    client.transcript += b"not heard by the server"
    with pytest.raises(ProtocolViolation, match="Finished is wrong"):
        client.receive(b"".join(flight))


@pytest.mark.parametrize("content_type", [ContentType.ALERT, ContentType.HANDSHAKE, ContentType.APPLICATION_DATA])
def test_a_plain_record_of_the_server_is_refused(context: ssl.SSLContext, content_type: ContentType) -> None:
    """Nothing may come in clear once there are keys."""
    client, server = Tls13Client(), OpensslServer(context)
    greet(client, server)
    with pytest.raises(ProtocolViolation):
        client.receive(plain_record(content_type, b"\x01\x00"))


# What OpenSSL answers to each misdeed

LEVEL_FATAL = 2
SPOILT_RECORD = {"DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "RECORD_LAYER_FAILURE"}  # the second from OpenSSL 3.5 on


def assert_refused(
    client: Tls13Client, server: OpensslServer, wire: bytes, reasons: Collection[str | None], alert: int
) -> None:
    """The server gives up for one of the reasons, and its alert alone is its first record under the application key."""
    answer = server.receive(wire)
    client.receive(answer)
    assert not server.accepted
    assert server.error is not None
    assert server.error.reason in reasons
    assert bytes.fromhex("1703030013") == answer[:5]
    assert 24 == len(answer)
    assert [Record(0, ContentType.ALERT, bytes(Alert(LEVEL_FATAL, alert)))] == client.records
    assert [Alert(LEVEL_FATAL, alert)] == client.alerts


VERIFY_CODES = {
    # specimen: (OpenSSL's verify code, alert)
    "self_signed": (18, 48),
    "unknown_ca": (20, 48),
    "same_name_other_ca": (20, 48),
    "expired": (10, 45),
    "not_yet_valid": (9, 42),
    "wrong_purpose": (26, 43),
    "wrong_key_usage": (26, 43),
    "ca_as_leaf": (26, 43),
    "broken_chain": (20, 48),
    "path_too_long": (25, 48),
    "leaf_as_ca": (79, 48),
    "unknown_critical_extension": (34, 46),
    "rsa_1024": (66, 42),
    "sha1": (68, 42),
}


@pytest.mark.parametrize("specimen", VERIFY_CODES)
def test_a_bad_certificate_is_refused_with_its_verify_code(
    context: ssl.SSLContext, authority: Authority, specimen: str
) -> None:
    """CERTIFICATE_VERIFY_FAILED, the code that says why, and the alert that goes with it."""
    client, server, credentials = Tls13Client(), OpensslServer(context), REFUSED[specimen](authority)
    greet(client, server)
    flight = client.certificate_flight(chain_of(credentials), credentials.key)
    code, alert = VERIFY_CODES[specimen]
    assert_refused(client, server, flight, {"CERTIFICATE_VERIFY_FAILED"}, alert)
    assert isinstance(server.error, ssl.SSLCertVerificationError)
    assert code == server.error.verify_code


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
@pytest.mark.parametrize("share", [Group.X25519, None])
def test_no_certificate_is_refused(context: ssl.SSLContext, suite: Suite, share: Group | None) -> None:
    """An empty Certificate is answered at once, also with a request behind it."""
    client, server = Tls13Client(suite=suite, share=share), OpensslServer(context)
    greet(client, server)
    flight = client.certificate_flight() + client.application_data(b"GET / HTTP/1.1\r\n\r\n")
    assert_refused(client, server, flight, {"PEER_DID_NOT_RETURN_A_CERTIFICATE"}, 116)


def test_a_stolen_certificate_is_refused(context: ssl.SSLContext, authority: Authority) -> None:
    """CertificateVerify by another key of the same kind: BAD_SIGNATURE."""
    client, server = Tls13Client(), OpensslServer(context)
    greet(client, server)
    flight = client.certificate_flight(chain_of(authority.issue()), make_key())
    assert_refused(client, server, flight, {"BAD_SIGNATURE"}, 51)


@pytest.mark.parametrize("scheme", [Scheme.RSA_PKCS1_SHA256, Scheme.ED25519, 0x1234])
def test_a_scheme_that_does_not_fit_the_key_is_refused(
    context: ssl.SSLContext, authority: Authority, scheme: int
) -> None:
    """CertificateVerify that claims another scheme than the certificate's key has: WRONG_SIGNATURE_TYPE."""
    client, server, credentials = Tls13Client(), OpensslServer(context), authority.issue()
    greet(client, server)
    assert credentials.key is not None
    flight = client.certificate(chain_of(credentials)) + client.certificate_verify(credentials.key, scheme)
    assert_refused(client, server, flight, {"WRONG_SIGNATURE_TYPE"}, 47)


def test_a_curve_that_tls_does_not_know_is_refused(context: ssl.SSLContext, authority: Authority) -> None:
    """A P-224 certificate: WRONG_CURVE."""
    client, server, credentials = Tls13Client(), OpensslServer(context), authority.issue(key="p224")
    greet(client, server)
    flight = client.certificate_flight(chain_of(credentials), credentials.key)
    assert_refused(client, server, flight, {"WRONG_CURVE"}, 47)


@pytest.mark.parametrize(
    ("chain", "reason", "alert"),
    [([b"junk"], None, 50), ([b""], None, 50), ([bytes(110_000)], "EXCESSIVE_MESSAGE_SIZE", 47)],
    ids=["junk", "empty entry", "huge"],
)
def test_a_certificate_that_is_none_is_refused(
    context: ssl.SSLContext, chain: list[bytes], reason: str | None, alert: int
) -> None:
    """What OpenSSL cannot parse has no reason at all; what is too large, one of its own."""
    client, server = Tls13Client(), OpensslServer(context)
    greet(client, server)
    assert_refused(client, server, client.certificate(chain), {reason}, alert)


def test_ninety_needless_certificates_change_nothing(context: ssl.SSLContext, authority: Authority) -> None:
    """A long chain is read whole, and its leaf judged alone."""
    client, server = Tls13Client(), OpensslServer(context)
    greet(client, server)
    stranger = Authority("Someone Else's CA").issue()
    [needless] = chain_of(authority.issue())
    flight = client.certificate_flight([*chain_of(stranger), *[needless] * 90], stranger.key)
    assert_refused(client, server, flight, {"CERTIFICATE_VERIFY_FAILED"}, 48)


def test_a_wrong_finished_is_refused(context: ssl.SSLContext, authority: Authority) -> None:
    """Everything right but the Finished: DIGEST_CHECK_FAILED."""
    client, server, credentials = Tls13Client(), OpensslServer(context), authority.issue()
    greet(client, server)
    assert credentials.key is not None
    flight = client.certificate(chain_of(credentials)) + client.certificate_verify(credentials.key)
    assert_refused(client, server, flight + client.finished(bytes(32)), {"DIGEST_CHECK_FAILED"}, 51)


@pytest.mark.parametrize(
    ("message_type", "body"),
    [(HandshakeType.FINISHED, bytes(32)), (HandshakeType.KEY_UPDATE, b"\x00"), (HandshakeType.CLIENT_HELLO, b"")],
)
def test_certificate_verify_cannot_be_left_out(
    context: ssl.SSLContext, authority: Authority, message_type: int, body: bytes
) -> None:
    """Another message in its place: UNEXPECTED_MESSAGE."""
    client, server = Tls13Client(), OpensslServer(context)
    greet(client, server)
    flight = client.certificate(chain_of(authority.issue())) + client.handshake(message_type, body)
    assert_refused(client, server, flight, {"UNEXPECTED_MESSAGE"}, 10)


def test_a_flipped_bit_is_refused(context: ssl.SSLContext, authority: Authority) -> None:
    """A flight is bytes that a test may spoil."""
    client, server, credentials = Tls13Client(), OpensslServer(context), authority.issue()
    greet(client, server)
    flight = bytearray(client.certificate_flight(chain_of(credentials), credentials.key))
    flight[40] ^= 1
    assert_refused(client, server, bytes(flight), SPOILT_RECORD, 20)


def test_application_keys_are_not_accepted_before_finished(context: ssl.SSLContext, authority: Authority) -> None:
    """A request under the application keys, ahead of the certificate, opens under none of the server's keys."""
    client, server = Tls13Client(), OpensslServer(context)
    greet(client, server)
    assert client.application_write is not None
    early = client.application_write.seal(ContentType.APPLICATION_DATA, b"GET / HTTP/1.1\r\n\r\n")
    assert_refused(client, server, early, SPOILT_RECORD, 20)


def test_application_data_is_not_accepted_before_finished(context: ssl.SSLContext) -> None:
    """Nor does a request pass under the handshake keys."""
    client, server = Tls13Client(), OpensslServer(context)
    greet(client, server)
    early = client.application_data(b"GET / HTTP/1.1\r\n\r\n")
    assert_refused(client, server, early, {"UNEXPECTED_RECORD"}, 10)


def test_a_plain_record_is_not_accepted_under_keys(context: ssl.SSLContext) -> None:
    """An unprotected Certificate in the middle of the handshake is refused."""
    client, server = Tls13Client(), OpensslServer(context)
    greet(client, server)
    plain = plain_record(ContentType.HANDSHAKE, handshake_message(HandshakeType.CERTIFICATE, bytes(4)))
    assert_refused(client, server, plain, {"BAD_RECORD_TYPE", "RECORD_LAYER_FAILURE"}, 10)


@pytest.mark.parametrize("alert", [CLOSE_NOTIFY, Alert(2, 48)])
def test_an_alert_of_the_client_gets_no_answer(context: ssl.SSLContext, alert: Alert) -> None:
    """The handshake ends, and nothing is sent."""
    client, server = Tls13Client(), OpensslServer(context)
    greet(client, server)
    assert b"" == server.receive(client.alert(alert))
    assert server.error is not None
    assert not server.accepted


def test_close_notify_ends_the_clients_half(context: ssl.SSLContext, authority: Authority) -> None:
    """After it the server has read everything, and may still write."""
    client, server = Tls13Client(), OpensslServer(context)
    authenticate(client, server, authority.issue())
    server.receive(client.application_data(b"last words") + client.alert(CLOSE_NOTIFY))
    assert b"last words" == server.received
    client.receive(server.send(b"farewell"))
    assert b"farewell" == client.received
