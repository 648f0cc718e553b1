"""The TLS session in memory: who gets in, who may be told why, and that no key serves two.

The client is `tls13`, which does as it likes; the server is `TlsSession` over whatever OpenSSL is there. After every step
of every test the key log must be empty, and a refusal must hold the right to a page or OpenSSL's alert, never both.
"""

import os
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
from cryptography import x509

import tls13
from aop_proxy import tls
from aop_proxy.farewell import seal_farewell
from aop_proxy.reasons import Reason
from aop_proxy.tls import Accepted, KeyLog, NameReader, Refused, TlsSession
from certificates import ACCEPTED, DAY, REFUSED, Authority, CredentialFiles, Credentials, make_key
from encounter import (
    FATAL,
    PAGE,
    REQUEST,
    Judge,
    assert_alerted,
    assert_each_number_once,
    assert_told,
    chain_of,
    der,
)
from tls13 import (
    CLOSE_NOTIFY,
    SUITES,
    Alert,
    ContentType,
    Group,
    HandshakeType,
    Record,
    Scheme,
    SigningKey,
    Suite,
    Tls13Client,
    handshake_message,
    plain_record,
    records_under,
    vector,
)

PROTOCOL_VERSION = 70  # an alert


@pytest.fixture
def key_log() -> Iterator[KeyLog]:
    """A worker's key log; empty again at the end of every test."""
    log = KeyLog()
    yield log
    assert log.drain() == b""
    log.close()


@pytest.fixture
def judge(server_credentials: CredentialFiles, key_log: KeyLog, authority: Authority) -> Judge:
    """One who trusts our authority."""
    return Judge.of(server_credentials, key_log, authority)


# Who gets in


@pytest.mark.parametrize("specimen", ACCEPTED)
def test_a_good_certificate_is_accepted(judge: Judge, authority: Authority, specimen: str) -> None:
    """The outcome holds the leaf that OpenSSL has verified, and data passes both ways."""
    encounter, credentials = judge.meet(), ACCEPTED[specimen](authority)
    encounter.greet()
    accepted = encounter.accept(encounter.flight(credentials))
    assert der(credentials.certificate) == accepted.certificate
    assert encounter.session is accepted.session
    assert encounter.decrypt(encounter.client.application_data(REQUEST)) == REQUEST
    encounter.encrypt(PAGE * 500)
    assert encounter.client.received == PAGE * 500


@pytest.mark.parametrize("share", [Group.X25519, Group.P256, None], ids=["X25519", "P256", "retry"])
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_every_suite_and_group(judge: Judge, authority: Authority, suite: Suite, share: Group | None) -> None:
    """Who is good gets in, who shows nothing reads the page, with every suite and with a HelloRetryRequest."""
    good = judge.meet(Tls13Client(suite=suite, share=share))
    good.greet()
    assert suite.name == good.accept(good.flight(authority.issue())).cipher
    stranger = judge.meet(Tls13Client(suite=suite, share=share))
    stranger.greet()
    refused = stranger.refuse(stranger.client.certificate_flight())
    assert (Reason.NO_CERTIFICATE, suite.name) == (refused.reason, refused.cipher)
    assert_told(stranger, refused)


def test_nothing_is_said_unasked(judge: Judge, authority: Authority) -> None:
    """An accepted client gets no session ticket: its first record is the first of our data."""
    encounter = judge.meet()
    encounter.greet()
    encounter.accept(encounter.flight(authority.issue()))
    encounter.encrypt(b"first")
    assert [Record(0, ContentType.APPLICATION_DATA, b"first")] == encounter.client.records
    assert encounter.client.tickets == []


def test_what_came_with_the_finished_is_kept(judge: Judge, authority: Authority) -> None:
    """A request in one segment with the Finished is handed out as it came, to be decrypted first."""
    encounter = judge.meet()
    encounter.greet()
    flight, request = encounter.flight(authority.issue()), encounter.client.application_data(REQUEST)
    assert encounter.accept(flight + request).behind == request
    assert encounter.decrypt(b"") == REQUEST


@pytest.mark.parametrize("size", [1, 4, 5, 6, 100])
def test_data_may_be_cut_anywhere(judge: Judge, authority: Authority, size: int) -> None:
    """Plaintext comes out whole and in order however TCP cuts the records, with KeyUpdates between them."""
    encounter = judge.meet()
    encounter.greet()
    encounter.accept(encounter.flight(authority.issue()))
    client = encounter.client
    data = [bytes([index]) * (index * 7) for index in range(20)]
    wire = b"".join(client.application_data(piece) + client.key_update(answer=False) for piece in data)
    decrypted = b"".join(encounter.decrypt(wire[at : at + size]) for at in range(0, len(wire), size))
    assert decrypted == b"".join(data)


def test_empty_records_are_no_end(judge: Judge, authority: Authority) -> None:
    """An application data record that holds nothing is not taken for the client's close_notify."""
    encounter = judge.meet()
    encounter.greet()
    encounter.accept(encounter.flight(authority.issue()))
    assert encounter.decrypt(encounter.client.application_data(b"")) == b""
    assert not encounter.session.peer_ended
    wire = encounter.client.application_data(b"") + encounter.client.application_data(b"a")
    assert encounter.decrypt(wire) == b"a"


def test_close_notify_ends_one_half(judge: Judge, authority: Authority) -> None:
    """After the client's close_notify its data is whole, ours still leaves, and our own close_notify ends it."""
    encounter = judge.meet()
    encounter.greet()
    encounter.accept(encounter.flight(authority.issue()))
    assert (
        encounter.decrypt(encounter.client.application_data(b"last") + encounter.client.alert(CLOSE_NOTIFY)) == b"last"
    )
    assert encounter.session.peer_ended
    encounter.encrypt(b"answer")
    encounter.session.close_notify()
    encounter.client.receive(encounter.session.take_output())
    assert (encounter.client.received, encounter.client.alerts) == (b"answer", [CLOSE_NOTIFY])


@pytest.mark.parametrize(
    "message_type", [HandshakeType.CERTIFICATE, HandshakeType.FINISHED, HandshakeType.CLIENT_HELLO]
)
def test_no_handshake_after_the_handshake(judge: Judge, authority: Authority, message_type: HandshakeType) -> None:
    """A Certificate, Finished or ClientHello from an accepted client breaks the session, with an alert."""
    encounter = judge.meet()
    encounter.greet()
    encounter.accept(encounter.flight(authority.issue()))
    with pytest.raises(ssl.SSLError):
        encounter.decrypt(encounter.client.handshake(message_type, bytes(36)))
    encounter.client.receive(encounter.session.take_output())
    assert [alert.level for alert in encounter.client.alerts] == [FATAL]


# Who does not, and is told why in a page


def broken_signature(ours: Authority) -> Credentials:
    """A leaf in which one bit of our authority's signature is wrong."""
    good = ours.issue("forged.example")
    content = bytearray(der(good.certificate))
    content[-1] ^= 1
    return replace(good, certificate=x509.load_der_x509_certificate(bytes(content)))


def strange_root_sent_along(_: Authority) -> Credentials:
    """A stranger's leaf together with the stranger's root."""
    theirs = Authority("Someone Else's CA")
    return replace(theirs.issue(), chain=(theirs.certificate,))


def too_many_intermediates(ours: Authority) -> Credentials:
    """A leaf at the end of a chain that is true, and longer than OpenSSL follows."""
    issuer = ours
    for _ in range(102):
        issuer = issuer.intermediate(path_length=None)
    return issuer.issue()


def ninety_needless_intermediates(ours: Authority) -> Credentials:
    """A stranger's leaf, and ninety certificates that have nothing to do with it."""
    stranger = Authority("Someone Else's CA").issue()
    return replace(stranger, chain=(ours.issue().certificate,) * 90)


CERTIFICATES: dict[str, tuple[Callable[[Authority], Credentials], Reason]] = {
    **{
        specimen: (REFUSED[specimen], reason)
        for specimen, reason in {
            "self_signed": Reason.SELF_SIGNED,
            "unknown_ca": Reason.UNKNOWN_CA,
            "same_name_other_ca": Reason.UNKNOWN_CA,
            "broken_chain": Reason.UNKNOWN_CA,
            "expired": Reason.EXPIRED,
            "not_yet_valid": Reason.NOT_YET_VALID,
            "wrong_purpose": Reason.WRONG_PURPOSE,
            "wrong_key_usage": Reason.WRONG_PURPOSE,
            "ca_as_leaf": Reason.WRONG_PURPOSE,
            "leaf_as_ca": Reason.BAD_CERTIFICATE,
            "path_too_long": Reason.BAD_CERTIFICATE,
            "unknown_critical_extension": Reason.BAD_CERTIFICATE,
            "rsa_1024": Reason.WEAK_CERTIFICATE,
            "sha1": Reason.WEAK_CERTIFICATE,
        }.items()
    },
    "broken_signature": (broken_signature, Reason.BAD_SIGNATURE),
    "strange_root_sent_along": (strange_root_sent_along, Reason.SELF_SIGNED),
    "expired_intermediate": (
        lambda ours: Authority("Old CA", validity=(-2 * DAY, -DAY), parent=ours).issue(),
        Reason.EXPIRED,
    ),
    "weak_intermediate": (lambda ours: ours.intermediate(key="rsa1024").issue(), Reason.WEAK_CERTIFICATE),
    "p224": (lambda ours: ours.issue(key="p224"), Reason.WEAK_CERTIFICATE),
    "too_many_intermediates": (too_many_intermediates, Reason.BAD_CERTIFICATE),
    "ninety_needless_intermediates": (ninety_needless_intermediates, Reason.UNKNOWN_CA),
}


def test_every_refused_specimen_is_judged_here() -> None:
    """No specimen is left out of the table; the stolen one, which needs a thief's key, has a test of its own."""
    assert REFUSED.keys() - {"stolen"} <= CERTIFICATES.keys()


@pytest.mark.parametrize("specimen", CERTIFICATES)
def test_a_bad_certificate_gets_a_page(judge: Judge, authority: Authority, specimen: str) -> None:
    """OpenSSL's judgement becomes our word, the leaf is kept as claimed, and the client reads a page."""
    make, reason = CERTIFICATES[specimen]
    encounter, credentials = judge.meet(), make(authority)
    encounter.greet()
    refused = encounter.refuse(encounter.flight(credentials))
    assert reason == refused.reason
    assert der(credentials.certificate) == refused.certificate
    assert_told(encounter, refused)


@pytest.mark.parametrize("behind", [b"", REQUEST, REQUEST * 1000], ids=["nothing", "a request", "requests"])
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_no_certificate_gets_a_page(judge: Judge, suite: Suite, behind: bytes) -> None:
    """An empty Certificate is refused with a page, whatever comes in the same segment, and nobody is claimed."""
    encounter = judge.meet(Tls13Client(suite=suite))
    encounter.greet()
    flight = encounter.client.certificate_flight()
    refused = encounter.refuse(flight + (encounter.client.application_data(behind) if behind else b""))
    assert (refused.reason, refused.certificate) == (Reason.NO_CERTIFICATE, None)
    assert refused.asked == bool(behind)
    assert_told(encounter, refused)


@pytest.mark.parametrize(
    ("key", "scheme", "reason"),
    [
        ("p256", None, Reason.BAD_SIGNATURE),
        ("ed25519", None, Reason.WEAK_CERTIFICATE),
        (None, Scheme.ED25519, Reason.WEAK_CERTIFICATE),
        (None, Scheme.RSA_PKCS1_SHA256, Reason.WEAK_CERTIFICATE),
        (None, 0x1234, Reason.WEAK_CERTIFICATE),
    ],
)
def test_a_stolen_certificate_gets_a_page(
    judge: Judge, authority: Authority, key: str | None, scheme: int | None, reason: Reason
) -> None:
    """Who cannot sign with the certificate's key, or claims a scheme that is not its, is refused with a page."""
    encounter, credentials = judge.meet(), authority.issue()
    encounter.greet()
    signing: SigningKey | None = make_key(key) if key else credentials.key  # type: ignore[arg-type]
    assert signing is not None
    flight = encounter.client.certificate(chain_of(credentials))
    refused = encounter.refuse(flight + encounter.client.certificate_verify(signing, scheme))
    assert (reason, der(credentials.certificate)) == (refused.reason, refused.certificate)
    assert_told(encounter, refused)


@pytest.mark.parametrize("case", ["revoked", "no list", "list too old", "list too young", "not revoked"])
def test_revocation_lists(
    server_credentials: CredentialFiles, key_log: KeyLog, authority: Authority, case: str
) -> None:
    """Who is on the list is revoked; who is on none, or on one whose time is not now, is not known not to be."""
    credentials = authority.intermediate().issue() if case == "no list" else authority.issue()
    validity = {"list too old": (-2 * DAY, -DAY), "list too young": (DAY, 2 * DAY)}.get(case, (-DAY, DAY))
    revoked = [credentials] if case == "revoked" else []
    crl = authority.revoke(*revoked, validity=validity)
    encounter = Judge.of(server_credentials, key_log, authority, crl=crl).meet()
    encounter.greet()
    flight = encounter.flight(credentials)
    if case == "not revoked":
        encounter.accept(flight)
        return
    refused = encounter.refuse(flight)
    assert (Reason.REVOKED if case == "revoked" else Reason.REVOCATION_UNKNOWN) == refused.reason
    assert_told(encounter, refused)


def test_a_small_fragment_length_is_kept_to(judge: Judge) -> None:
    """A client that agreed on 512 bytes reads a long page: no record holds more."""
    encounter = judge.meet(Tls13Client(max_fragment_length=512))
    encounter.greet()
    assert tls13.Extension.MAX_FRAGMENT_LENGTH in encounter.client.encrypted_extensions
    refused = encounter.send(encounter.client.certificate_flight())
    assert isinstance(refused, Refused)
    assert refused.sealing is not None
    encounter.client.receive(seal_farewell(refused.sealing.secret, refused.sealing.suite, PAGE * 100))
    assert encounter.client.received == PAGE * 100
    assert max(len(record.plaintext) for record in encounter.client.records) < 512


def test_openssl_as_the_client_reads_the_page(judge: Judge) -> None:
    """A stock client that believes its handshake done reads the page and an end in order."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client = context.wrap_bio(incoming, outgoing)
    session = TlsSession(judge.context, judge.quiet, judge.key_log)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    assert None is session.handshake(outgoing.read())
    incoming.write(session.take_output())
    client.do_handshake()
    client.write(REQUEST)
    refused = session.handshake(outgoing.read())
    assert isinstance(refused, Refused)
    assert refused.sealing is not None
    incoming.write(seal_farewell(refused.sealing.secret, refused.sealing.suite, PAGE * 100))
    received = b"".join(iter(client.read, b""))
    assert received == PAGE * 100


# Who gets an alert at most: whatever else is wrong than the certificate

Flight = Callable[[Tls13Client, Credentials], bytes]


def certificate_body(client: Tls13Client, body: bytes) -> bytes:
    return client.handshake(HandshakeType.CERTIFICATE, body)


def entries(*chain: bytes) -> bytes:
    return b"".join(vector(3, each) + vector(2, b"") for each in chain)


def instead_of_certificate_verify(message_type: int, body: bytes = b"") -> Flight:
    return lambda client, good: client.certificate(chain_of(good)) + client.handshake(message_type, body)


def wrong_finished(client: Tls13Client, good: Credentials) -> bytes:
    assert good.key is not None
    return client.certificate(chain_of(good)) + client.certificate_verify(good.key) + client.finished(bytes(32))


def flipped_bit(client: Tls13Client, good: Credentials) -> bytes:
    flight = bytearray(client.certificate_flight(chain_of(good), good.key))
    flight[40] ^= 1
    return bytes(flight)


def under_application_keys(client: Tls13Client, _: Credentials) -> bytes:
    assert client.application_write is not None
    return client.application_write.seal(ContentType.APPLICATION_DATA, REQUEST)


MISDEEDS: dict[str, tuple[Flight, int | None]] = {
    # name: (what is sent where the certificate is due, the alert where every OpenSSL sends the same)
    "wrong Finished": (wrong_finished, 51),
    "Finished without CertificateVerify": (
        lambda client, good: client.certificate(chain_of(good)) + client.finished(),
        10,
    ),
    "KeyUpdate for CertificateVerify": (instead_of_certificate_verify(HandshakeType.KEY_UPDATE, b"\0"), 10),
    "EndOfEarlyData for CertificateVerify": (instead_of_certificate_verify(5), 10),
    "NewSessionTicket for CertificateVerify": (instead_of_certificate_verify(HandshakeType.NEW_SESSION_TICKET), 10),
    "ClientHello for CertificateVerify": (instead_of_certificate_verify(HandshakeType.CLIENT_HELLO), 10),
    "a second Certificate for CertificateVerify": (instead_of_certificate_verify(HandshakeType.CERTIFICATE), 10),
    "Finished alone": (lambda client, _: client.finished(), 10),
    "KeyUpdate for Certificate": (lambda client, _: client.handshake(HandshakeType.KEY_UPDATE, b"\0"), 10),
    "CompressedCertificate": (lambda client, _: client.handshake(25, b"\0\1\0\0\2\0\0\2xx"), 10),
    "a message of no known type": (lambda client, _: client.handshake(99, b"x"), 10),
    "junk for a certificate": (lambda client, _: client.certificate([b"junk"]), 50),
    "an empty certificate": (lambda client, _: client.certificate([b""]), 50),
    "junk behind the certificate": (lambda client, good: client.certificate([*chain_of(good), b"junk"]), 50),
    "bytes behind the DER": (lambda client, good: client.certificate([chain_of(good)[0] + b"\0"]), 50),
    "a list shorter than it says": (
        lambda client, good: certificate_body(client, b"\0" + b"\0\xff\xff" + entries(*chain_of(good))),
        50,
    ),
    "bytes behind the list": (
        lambda client, good: certificate_body(client, b"\0" + vector(3, entries(*chain_of(good))) + b"x"),
        50,
    ),
    "a request context of the client's": (
        lambda client, good: certificate_body(client, b"\1x" + vector(3, entries(*chain_of(good)))),
        50,
    ),
    "a message that ends too soon": (lambda client, _: certificate_body(client, b""), 50),
    "110,000 bytes of certificate": (lambda client, _: client.certificate([bytes(110_000)]), 47),
    "a flipped bit": (flipped_bit, 20),
    "a request before the certificate": (lambda client, _: client.application_data(REQUEST), 10),
    "a request under the application keys": (under_application_keys, 20),
    "a Certificate in clear": (
        lambda _, good: plain_record(
            ContentType.HANDSHAKE,
            handshake_message(HandshakeType.CERTIFICATE, b"\0" + vector(3, entries(*chain_of(good)))),
        ),
        None,
    ),
    "a record that is too long": (lambda *_: bytes.fromhex("17 03 03 ff ff"), None),
    "a sealed record without a tag": (lambda *_: plain_record(ContentType.APPLICATION_DATA, b"x"), None),
    "a sealed record without a type": (lambda client, _: client.seal(0, b""), None),
    "a ChangeCipherSpec that is none": (lambda *_: plain_record(ContentType.CHANGE_CIPHER_SPEC, b"\2"), None),
    "a hundred ChangeCipherSpecs": (lambda *_: plain_record(ContentType.CHANGE_CIPHER_SPEC, b"\1") * 100, None),
    "plain HTTP": (lambda *_: REQUEST, None),
}


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_a_broken_handshake_gets_no_page(judge: Judge, authority: Authority, misdeed: str) -> None:
    """Where OpenSSL has not judged a certificate there is no page, and its alert is our only record."""
    make_flight, alert = MISDEEDS[misdeed]
    encounter = judge.meet()
    encounter.greet()
    refused = encounter.refuse(make_flight(encounter.client, authority.issue()))
    assert refused.reason == Reason.HANDSHAKE_FAILED
    assert_alerted(encounter, refused, alert)


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "plain"])
@pytest.mark.parametrize("alert", [CLOSE_NOTIFY, Alert(FATAL, 48), Alert(FATAL, 116)], ids=str)
def test_an_alert_of_the_clients_gets_no_answer(judge: Judge, alert: Alert, sealed: bool) -> None:
    """A client that gives up first, even in the words of a refusal, is told nothing."""
    encounter = judge.meet()
    encounter.greet()
    refused = encounter.refuse(
        encounter.client.alert(alert) if sealed else plain_record(ContentType.ALERT, bytes(alert))
    )
    assert (refused.reason, refused.sealing) == (Reason.HANDSHAKE_FAILED, None)
    assert encounter.client.records == [] or sealed is False


@pytest.mark.parametrize(
    "behind",
    [
        plain_record(ContentType.ALERT, bytes(Alert(FATAL, 40))),
        plain_record(ContentType.ALERT, bytes(CLOSE_NOTIFY)),
        plain_record(ContentType.APPLICATION_DATA, bytes(64)),
        plain_record(ContentType.HANDSHAKE, handshake_message(HandshakeType.CERTIFICATE, bytes(4))),
        REQUEST,
    ],
    ids=["alert", "close_notify", "junk", "Certificate", "HTTP"],
)
def test_what_stands_right_behind_the_hello(judge: Judge, behind: bytes) -> None:
    """Our flight and the alert come in one piece then: all of it goes out as it is, and there is no page."""
    encounter = judge.meet()
    refused = encounter.refuse(encounter.client.hello() + behind)
    assert (refused.reason, refused.sealing) == (Reason.HANDSHAKE_FAILED, None)
    assert encounter.client.ready
    assert encounter.client.received == b""
    assert_each_number_once(encounter.client, len(encounter.client.alerts))


def test_change_cipher_spec_behind_the_hello(judge: Judge) -> None:
    """A ChangeCipherSpec, which middleboxes are fond of, changes nothing."""
    encounter = judge.meet()
    assert None is encounter.send(encounter.client.hello() + encounter.client.change_cipher_spec())
    assert_told(encounter, encounter.refuse(encounter.client.certificate_flight()))


# Hellos


def legacy_hello(version: bytes, extensions: bytes = b"") -> bytes:
    """A ClientHello of the time before TLS 1.3."""
    body = (
        version + os.urandom(32) + b"\0" + vector(2, bytes.fromhex("c02f c013 002f")) + b"\1\0" + vector(2, extensions)
    )
    return plain_record(ContentType.HANDSHAKE, handshake_message(HandshakeType.CLIENT_HELLO, body))


@pytest.mark.parametrize(
    "hello",
    [
        legacy_hello(b"\3\3"),
        legacy_hello(b"\3\2"),
        legacy_hello(b"\3\1"),
        legacy_hello(b"\3\3", b"\0\x2b" + vector(2, vector(1, b"\3\3\3\2"))),
        legacy_hello(b"\3\3", b"\0\0" + vector(2, vector(2, b"\0" + vector(2, b"a.example")))),
    ],
    ids=["1.2", "1.1", "1.0", "supported_versions of 1.2 and 1.1", "1.2 with a name"],
)
def test_older_versions(judge: Judge, hello: bytes) -> None:
    """TLS 1.2 and older get a protocol_version alert in clear, and nothing of ours is shown."""
    refused = judge.meet().send(hello)
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.sealing) == (Reason.TLS_VERSION, None)
    assert (refused.output[:2], refused.output[5:]) == (b"\x15\x03", bytes([FATAL, PROTOCOL_VERSION]))


def test_a_hello_of_ssl_2(judge: Judge) -> None:
    """A ClientHello in the format of SSL 2 is no handshake."""
    hello = bytes.fromhex("80 2e 01 03 01 00 15 00 00 00 10") + bytes(0x2E - 9)
    refused = judge.meet().send(hello + bytes(32))
    assert isinstance(refused, Refused)
    assert refused.reason in (Reason.TLS_VERSION, Reason.HANDSHAKE_FAILED)
    assert None is refused.sealing


JUNK_PSK = vector(2, vector(2, bytes(32)) + bytes(4)) + vector(2, vector(1, bytes(32)))
PSK_WITH_DHE = (45, b"\1\1")
EARLY_DATA = (42, b"")
EARLY_RECORD = plain_record(ContentType.APPLICATION_DATA, bytes(64))


@pytest.mark.parametrize(
    ("extensions", "behind"),
    [
        ([EARLY_DATA], b""),
        ([EARLY_DATA], EARLY_RECORD * 3),
        ([PSK_WITH_DHE, (41, JUNK_PSK)], b""),
        ([EARLY_DATA, PSK_WITH_DHE, (41, JUNK_PSK)], EARLY_RECORD * 3),
    ],
    ids=["early data", "early data sent", "pre-shared key", "pre-shared key and early data sent"],
)
def test_nothing_is_resumed(
    judge: Judge, authority: Authority, extensions: Sequence[tuple[int, bytes]], behind: bytes
) -> None:
    """Early data and pre-shared keys are passed over: a whole handshake with its certificate is asked for."""
    for credentials in (authority.issue(), None):
        encounter = judge.meet(Tls13Client(extensions=extensions))
        assert None is encounter.send(encounter.client.hello() + behind)
        assert encounter.client.certificate_request is not None
        assert {41, 42}.isdisjoint(encounter.client.encrypted_extensions)
        if credentials is None:
            assert_told(encounter, encounter.refuse(encounter.client.certificate_flight()))
        else:
            encounter.accept(encounter.flight(credentials))
            assert encounter.decrypt(b"") == b""


def test_openssl_as_the_client_cannot_resume(judge: Judge, client_credentials: CredentialFiles) -> None:
    """A stock client that comes back with its last session, and without its certificate, is refused like a stranger."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(client_credentials.certificate, client_credentials.private_key)
    previous, outcomes = None, []
    for session in (TlsSession(judge.context, judge.quiet, judge.key_log) for _ in range(2)):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing, session=previous)
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        assert None is session.handshake(outgoing.read())
        incoming.write(session.take_output())
        client.do_handshake()
        outcomes.append(session.handshake(outgoing.read()))
        assert not client.session_reused
        previous = client.session
        assert previous is not None
        assert not previous.has_ticket
    assert [Accepted, Accepted] == [type(outcome) for outcome in outcomes]


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [([], None), ([b"h3"], None), ([b"x" * 255] * 50 + [b"http/1.1"], "http/1.1"), ([b"http/1.1", b"h2"], "h2")],
    ids=["none", "unknown", "many", "our order"],
)
def test_protocols(
    server_credentials: CredentialFiles, authority: Authority, offered: list[bytes], chosen: str | None
) -> None:
    """The first of ours that the client offers is agreed; with none in common the handshake goes on without."""
    judge = Judge.of(server_credentials, None, authority, alpn=("h2", "http/1.1"))
    encounter = judge.meet(Tls13Client(alpn=offered))
    encounter.greet()
    assert chosen == encounter.accept(encounter.flight(authority.issue())).alpn
    assert chosen == (encounter.client.selected_alpn and encounter.client.selected_alpn.decode())


@pytest.mark.parametrize(
    ("name", "remembered"),
    [
        (b"a.example", "a.example"),
        (b"A.Example.", "A.Example."),
        (b"a\n{evil}", "a\n{evil}"),
        (b"", ""),
        (b"a" * 255, "a" * 255),
        (None, None),
    ],
    ids=str,
)
def test_names_are_remembered_as_sent(
    judge: Judge, authority: Authority, name: bytes | None, remembered: str | None
) -> None:
    """The session holds the name in the hello, whatever it is made of, for those who may judge it."""
    encounter = judge.meet(Tls13Client(server_name=name))
    encounter.greet()
    encounter.accept(encounter.flight(authority.issue()))
    assert remembered == encounter.session.server_name


UNREADABLE_NAMES = {"NUL": b"a\0b.example", "300 bytes": b"a" * 300, "not ASCII": b"\xff\xfe.example"}
not_ascii_is_reported = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""CPython tells `sys.unraisablehook` of names that are not ASCII; workers set that, see `worker.py`."""


@not_ascii_is_reported
@pytest.mark.parametrize("kind", UNREADABLE_NAMES)
def test_names_that_are_none(judge: Judge, kind: str) -> None:
    """A name with a NUL, of 300 bytes or not of ASCII ends the handshake at once, before anything of ours is shown."""
    refused = judge.meet(Tls13Client(server_name=UNREADABLE_NAMES[kind])).refuse(
        Tls13Client(server_name=UNREADABLE_NAMES[kind]).hello()
    )
    expected = Reason.UNKNOWN_HOST if kind == "not ASCII" else Reason.HANDSHAKE_FAILED
    assert (expected, None, 7) == (refused.reason, refused.sealing, len(refused.output))


# A page only for the client whose secret it is sealed under


@pytest.mark.parametrize(("record_size", "told"), [(1, False), (20, False), (37, False), (38, True), (100, True)])
def test_a_hello_in_crumbs(judge: Judge, authority: Authority, record_size: int, told: bool) -> None:
    """Where the first record does not hold the whole random nothing proves whose secret it is: an alert then."""
    encounter = judge.meet(Tls13Client(record_size=record_size))
    encounter.greet()
    refused = encounter.refuse(encounter.client.certificate_flight())
    assert refused.reason == Reason.NO_CERTIFICATE
    (assert_told if told else assert_alerted)(encounter, refused)
    good = judge.meet(Tls13Client(record_size=record_size))
    good.greet()
    good.accept(good.flight(authority.issue()))


def test_everything_byte_by_byte(judge: Judge, authority: Authority) -> None:
    """However TCP cuts it, the outcome is the same."""
    for credentials in (authority.issue(), None):
        encounter = judge.meet(Tls13Client(session_id=bytes(32)))
        for byte in encounter.client.hello():
            assert None is encounter.send(bytes([byte]))
        *flight, last = (
            encounter.flight(credentials)
            if credentials
            else encounter.client.certificate([])  # refused with its last byte, whatever would follow
        )
        for byte in flight:
            assert None is encounter.send(bytes([byte]))
        if credentials:
            encounter.accept(bytes([last]))
        else:
            assert_told(encounter, encounter.refuse(bytes([last])))


@pytest.mark.parametrize("changed", [False, True])
def test_a_second_hello_with_another_random(judge: Judge, changed: bool) -> None:
    """After a HelloRetryRequest the secret is logged under the second random: no page if it is not the first."""
    encounter = judge.meet(Tls13Client(share=None))
    encounter.send(encounter.client.hello())
    if changed:
        encounter.client.random = os.urandom(32)
    encounter.send(encounter.client.hello())
    refused = encounter.refuse(encounter.client.certificate_flight())
    (assert_alerted if changed else assert_told)(encounter, refused)


@pytest.mark.parametrize("same_random", [False, True], ids=["own randoms", "a copied random"])
@pytest.mark.parametrize("order", ["AABB", "ABAB", "ABBA", "BAAB", "BABA", "BBAA"])
def test_interleaved_handshakes_cannot_swap_secrets(
    judge: Judge, authority: Authority, order: str, same_random: bool
) -> None:
    """Two sessions step by turns on one key log, one even with the other's random: each page opens for its own client,
    and nothing is ever sealed under the secret of the session that is accepted.
    """
    victim, thief = judge.meet(), judge.meet()
    if same_random:
        thief.client.random = victim.client.random
    credentials, begun = authority.issue(), set()
    for who in order:
        encounter = victim if who == "A" else thief
        if who not in begun:
            begun.add(who)
            encounter.greet()
        elif encounter is victim:
            victim.accept(victim.flight(credentials))
        else:
            refused = thief.refuse(thief.client.certificate_flight())
            assert_told(thief, refused)
            assert refused.sealing is not None
            assert thief.client.secrets["SERVER_TRAFFIC_SECRET_0"] == bytes(refused.sealing.secret)
    victim.encrypt(b"HTTP/1.1 200 OK\r\n\r\nsecret")
    stolen = records_under(victim.client.suite, victim.client.secrets["SERVER_TRAFFIC_SECRET_0"], thief.client.wire)
    assert stolen == []
    assert_each_number_once(victim.client, 1)


@pytest.mark.parametrize("same_random", [False, True], ids=["own random", "a copied random"])
@pytest.mark.parametrize("moment", ["before the hello", "inside the hello", "before the flight"])
def test_lines_left_in_the_pipe_cost_the_page(judge: Judge, moment: str, same_random: bool) -> None:
    """Were another session's lines ever left undrained, the next to be refused would get the alert, not a page under
    that session's secret: not even if it had copied the random that they are bound to.
    """
    victim, thief = Tls13Client(), judge.meet()
    if same_random:
        thief.client.random = victim.random

    def leave_lines() -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        incoming.write(victim.hello())
        with pytest.raises(ssl.SSLWantReadError):
            judge.context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
        victim.receive(outgoing.read())
        assert victim.ready

    hello = thief.client.hello()
    if moment == "before the hello":
        leave_lines()
    thief.send(hello[:60])
    if moment == "inside the hello":
        leave_lines()
    thief.send(hello[60:])
    if moment == "before the flight":
        leave_lines()
    refused = thief.refuse(thief.client.certificate_flight())
    assert_alerted(thief, refused, 116)


def test_output_that_was_still_to_be_sent_costs_the_page(judge: Judge) -> None:
    """Where the failing step leaves more than OpenSSL's alert, all of it goes out as it is."""
    encounter = judge.meet()
    encounter.greet()
    unsent = plain_record(ContentType.CHANGE_CIPHER_SPEC, b"\1")
    encounter.session._outgoing.write(unsent)
    refused = encounter.refuse(encounter.client.certificate_flight())
    assert refused.output.startswith(unsent)
    assert_alerted(encounter, refused, 116)


def test_a_refused_session_is_gone(judge: Judge) -> None:
    """Nothing more can be had of it: no output, no step, no plaintext."""
    encounter = judge.meet()
    encounter.greet()
    encounter.refuse(encounter.client.certificate_flight())
    with pytest.raises(AttributeError):
        encounter.session.take_output()
    with pytest.raises(AttributeError):
        encounter.session.handshake(b"x")
    with pytest.raises(AttributeError):
        encounter.session.decrypt(memoryview(b"x"), memoryview(bytearray(1)))


def test_without_a_key_log_there_are_alerts(server_credentials: CredentialFiles, authority: Authority) -> None:
    """`refusal: alert`: the same judgement, OpenSSL's alert, and good clients pass."""
    judge = Judge.of(server_credentials, None, authority)
    encounter = judge.meet()
    encounter.greet()
    refused = encounter.refuse(encounter.client.certificate_flight())
    assert refused.reason == Reason.NO_CERTIFICATE
    assert_alerted(encounter, refused, 116)
    good = judge.meet()
    good.greet()
    good.accept(good.flight(authority.issue()))


# KeyUpdate


@pytest.mark.parametrize("answer", [False, True], ids=["unanswered", "answered"])
def test_key_updates_never_reach_the_key_log(judge: Judge, authority: Authority, answer: bool) -> None:
    """2,000 KeyUpdates, the first hundred in one segment with the Finished, log nothing; data passes before and behind."""
    encounter = judge.meet()
    encounter.greet()
    client = encounter.client
    flight = encounter.flight(authority.issue())
    encounter.accept(flight + b"".join(client.key_update(answer=answer) for _ in range(100)))
    assert encounter.decrypt(b"") == b""
    for _ in range(19):  # a hundred fit into the pipe: were they logged, `read` would find them there, not hang
        wire = b"".join(client.key_update(answer=answer) for _ in range(100))
        assert encounter.decrypt(wire + client.application_data(b"data")) == b"data"
    encounter.encrypt(b"answer")
    assert client.received == b"answer"
    assert answer == bool(client.key_updates)


def test_key_updates_before_the_finished_are_refused(judge: Judge) -> None:
    """A stranger cannot update keys at all."""
    encounter = judge.meet()
    encounter.greet()
    refused = encounter.refuse(encounter.client.key_update(answer=True))
    assert_alerted(encounter, refused, 10)


# Names, read before a context is chosen


@pytest.fixture
def name_context(authority: Authority) -> ssl.SSLContext:
    return tls.name_reading_context([der(authority.certificate)])


@pytest.mark.parametrize("record_size", [16384, 20, 1])
@pytest.mark.parametrize("name", [b"a.example", b"A.Example.", b"a\n{evil}", b"", None], ids=str)
def test_a_name_is_read_ahead(name_context: ssl.SSLContext, name: bytes | None, record_size: int) -> None:
    """The name is known with the hello's last byte and not before, however it is cut; every byte of it is kept."""
    hello = Tls13Client(server_name=name, record_size=record_size).hello()
    reader = NameReader(name_context)
    assert [False] * (len(hello) - 1) + [True] == [reader.feed(bytes([byte])) for byte in hello]
    assert (None if name is None else name.decode()) == reader.server_name
    assert hello == reader.seen


def test_what_follows_the_hello_is_kept_too(name_context: ssl.SSLContext) -> None:
    """Bytes in one segment with the hello are the real session's to judge."""
    wire = Tls13Client(server_name=b"a.example").hello() + REQUEST
    reader = NameReader(name_context)
    assert reader.feed(wire)
    assert ("a.example", wire) == (reader.server_name, bytes(reader.seen))


@pytest.mark.parametrize("share", [None, Group.X25519])
def test_the_first_hello_is_enough(name_context: ssl.SSLContext, share: Group | None) -> None:
    """No HelloRetryRequest is waited for: the name is that of the first hello."""
    reader = NameReader(name_context)
    assert reader.feed(Tls13Client(server_name=b"a.example", share=share).hello())
    assert reader.server_name == "a.example"


@not_ascii_is_reported
@pytest.mark.parametrize("kind", UNREADABLE_NAMES)
def test_an_unreadable_name_is_none(name_context: ssl.SSLContext, kind: str) -> None:
    """What is no name is read as none, and the reader is done."""
    reader = NameReader(name_context)
    assert reader.feed(Tls13Client(server_name=UNREADABLE_NAMES[kind]).hello())
    assert None is reader.server_name


@pytest.mark.parametrize("wire", [b"\x16" + bytes(100), b"\x16\x03\x01\xff\xff", legacy_hello(b"\3\3"), REQUEST])
def test_junk_is_read_as_no_name(name_context: ssl.SSLContext, wire: bytes) -> None:
    """The real session is to refuse it."""
    reader = NameReader(name_context)
    assert reader.feed(wire)
    assert None is reader.server_name


@pytest.mark.parametrize("second", [b"b.example", None])
def test_the_name_of_the_first_hello_counts(judge: Judge, authority: Authority, second: bytes | None) -> None:
    """A HelloRetryRequest is no occasion to change the name, or to take it back."""
    encounter = judge.meet(Tls13Client(server_name=b"a.example", share=None))
    encounter.send(encounter.client.hello())
    encounter.client.server_name = second
    encounter.send(encounter.client.hello())
    encounter.accept(encounter.flight(authority.issue()))
    assert encounter.session.server_name == "a.example"


def test_no_name_first_and_one_later(judge: Judge, authority: Authority) -> None:
    """Nor to give one that the first hello had not."""
    encounter = judge.meet(Tls13Client(share=None))
    encounter.send(encounter.client.hello())
    encounter.client.server_name = b"a.example"
    encounter.send(encounter.client.hello())
    encounter.accept(encounter.flight(authority.issue()))
    assert None is encounter.session.server_name


@pytest.mark.parametrize("second", [b"a.example", None])
def test_a_changed_name_changes_no_judge(
    server_credentials: CredentialFiles, authority: Authority, second: bytes | None
) -> None:
    """The session belongs to one site's context for good: the other site's clients are strangers to it."""
    theirs = Authority("Test CA of b.example")
    judge = Judge.of(server_credentials, None, theirs, remember_names=False)
    for credentials, welcome in ((authority.issue(), False), (theirs.issue(), True)):
        encounter = judge.meet(Tls13Client(server_name=b"b.example", share=None))
        encounter.send(encounter.client.hello())
        encounter.client.server_name = second
        encounter.send(encounter.client.hello())
        outcome = encounter.send(encounter.flight(credentials))
        assert welcome == isinstance(outcome, Accepted)


def test_the_alert_for_an_unknown_name() -> None:
    """It is unrecognized_name, fatal and in clear, as a TLS client reads it."""
    client = Tls13Client()
    client.hello()
    client.receive(tls.UNRECOGNIZED_NAME_ALERT)
    assert [Alert(FATAL, 112)] == client.alerts
