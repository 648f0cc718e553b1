"""A TLS 1.3 client (RFC 8446) to attack our server with: bytes in, bytes out.

Every method that sends returns what belongs on the wire and moves the client's state; `receive` takes what came. Nothing
is answered, repeated or closed on the client's own initiative: a test may leave out, reorder, cut or spoil what it likes.
HKDF, key schedule and record layer are written out here, on the standard library and bare AEADs, and must not be shared
with the server under test: they check each other.
"""

import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SigningKey = RSAPrivateKey | ec.EllipticCurvePrivateKey | Ed25519PrivateKey


class ContentType(IntEnum):
    CHANGE_CIPHER_SPEC = 20
    ALERT = 21
    HANDSHAKE = 22
    APPLICATION_DATA = 23


class HandshakeType(IntEnum):
    CLIENT_HELLO = 1
    SERVER_HELLO = 2
    NEW_SESSION_TICKET = 4
    ENCRYPTED_EXTENSIONS = 8
    CERTIFICATE = 11
    CERTIFICATE_REQUEST = 13
    CERTIFICATE_VERIFY = 15
    FINISHED = 20
    KEY_UPDATE = 24


class Extension(IntEnum):
    SERVER_NAME = 0
    MAX_FRAGMENT_LENGTH = 1
    SUPPORTED_GROUPS = 10
    SIGNATURE_ALGORITHMS = 13
    ALPN = 16
    SUPPORTED_VERSIONS = 43
    KEY_SHARE = 51


class Group(IntEnum):
    P256 = 0x0017
    X25519 = 0x001D


class Scheme(IntEnum):
    RSA_PKCS1_SHA256 = 0x0401
    ECDSA_SECP256R1_SHA256 = 0x0403
    ECDSA_SECP384R1_SHA384 = 0x0503
    RSA_PSS_RSAE_SHA256 = 0x0804
    ED25519 = 0x0807


@dataclass(frozen=True)
class Suite:
    code: int
    name: str  # as OpenSSL writes it
    hash: str
    key_length: int
    aead: type[AESGCM] | type[ChaCha20Poly1305]


AES_128_GCM_SHA256 = Suite(0x1301, "TLS_AES_128_GCM_SHA256", "sha256", 16, AESGCM)
AES_256_GCM_SHA384 = Suite(0x1302, "TLS_AES_256_GCM_SHA384", "sha384", 32, AESGCM)
CHACHA20_POLY1305_SHA256 = Suite(0x1303, "TLS_CHACHA20_POLY1305_SHA256", "sha256", 32, ChaCha20Poly1305)
SUITES = (AES_128_GCM_SHA256, AES_256_GCM_SHA384, CHACHA20_POLY1305_SHA256)

TLS_1_2, TLS_1_3 = b"\x03\x03", b"\x03\x04"
RECORD_SIZE = 2**14
MESSAGE_HASH = 254  # stands for the first ClientHello in the transcript (section 4.4.1)
HELLO_RETRY_REQUEST = hashlib.sha256(b"HelloRetryRequest").digest()  # the "random" of section 4.1.3


class Record(NamedTuple):
    """A protected record, opened: the sequence number it was sealed under, its inner type, its plaintext."""

    sequence: int
    content_type: int
    plaintext: bytes


class Alert(NamedTuple):
    level: int
    description: int


CLOSE_NOTIFY = Alert(1, 0)


class ProtocolViolation(Exception):
    """The server sent what no TLS 1.3 client can accept."""


# Key schedule (section 7.1)


def hkdf_expand_label(suite: Suite, secret: bytes, label: str, context: bytes, length: int) -> bytes:
    info = length.to_bytes(2) + vector(1, b"tls13 " + label.encode()) + vector(1, context)
    return hmac.digest(secret, info + b"\x01", suite.hash)[:length]  # one block: TLS 1.3 never asks for more


def derive_secret(suite: Suite, secret: bytes, label: str, transcript: bytes) -> bytes:
    digest = hashlib.new(suite.hash, transcript).digest()
    return hkdf_expand_label(suite, secret, label, digest, len(digest))


def finished_data(suite: Suite, secret: bytes, transcript: bytes) -> bytes:
    digest = hashlib.new(suite.hash, transcript).digest()
    return hmac.digest(hkdf_expand_label(suite, secret, "finished", b"", len(digest)), digest, suite.hash)


class KeySchedule:
    """(EC)DHE secret and transcript -> traffic secrets, under the labels of the key log (SSLKEYLOGFILE)."""

    def __init__(self, suite: Suite, shared_secret: bytes) -> None:
        self.suite = suite
        zeros = bytes(hashlib.new(suite.hash).digest_size)
        early = hmac.digest(zeros, zeros, suite.hash)
        self.handshake = hmac.digest(derive_secret(suite, early, "derived", b""), shared_secret, suite.hash)
        self.master = hmac.digest(derive_secret(suite, self.handshake, "derived", b""), zeros, suite.hash)

    def handshake_secrets(self, transcript: bytes) -> dict[str, bytes]:
        return {
            "CLIENT_HANDSHAKE_TRAFFIC_SECRET": derive_secret(self.suite, self.handshake, "c hs traffic", transcript),
            "SERVER_HANDSHAKE_TRAFFIC_SECRET": derive_secret(self.suite, self.handshake, "s hs traffic", transcript),
        }

    def application_secrets(self, transcript: bytes) -> dict[str, bytes]:
        return {
            "CLIENT_TRAFFIC_SECRET_0": derive_secret(self.suite, self.master, "c ap traffic", transcript),
            "SERVER_TRAFFIC_SECRET_0": derive_secret(self.suite, self.master, "s ap traffic", transcript),
            "EXPORTER_SECRET": derive_secret(self.suite, self.master, "exp master", transcript),
        }


# Records (section 5)


class TrafficKeys:
    """One direction under one traffic secret; counts the records it sealed or opened."""

    def __init__(self, suite: Suite, secret: bytes) -> None:
        self.suite = suite
        self.secret = secret
        self.key = hkdf_expand_label(suite, secret, "key", b"", suite.key_length)
        self.iv = hkdf_expand_label(suite, secret, "iv", b"", 12)
        self.sequence = 0
        self._aead = suite.aead(self.key)

    def seal(self, content_type: int, plaintext: bytes) -> bytes:
        inner = plaintext + bytes([content_type])
        header = bytes([ContentType.APPLICATION_DATA]) + TLS_1_2 + (len(inner) + 16).to_bytes(2)
        sealed = self._aead.encrypt(self._nonce(self.sequence), inner, header)
        self.sequence += 1
        return header + sealed

    def open(self, wire: bytes) -> Record:
        record = self.open_at(self.sequence, wire)
        if record is None:
            raise ProtocolViolation(f"record does not open under sequence number {self.sequence}: {wire[:5].hex(' ')}")
        self.sequence += 1
        return record

    def open_at(self, sequence: int, wire: bytes) -> Record | None:
        """The record, if this is the sequence number it was sealed under."""
        try:
            inner = self._aead.decrypt(self._nonce(sequence), wire[5:], wire[:5]).rstrip(b"\x00")
        except InvalidTag:
            return None
        if not inner:
            raise ProtocolViolation("record without a content type")
        return Record(sequence, inner[-1], inner[:-1])

    def next_generation(self) -> Self:
        """The keys after a KeyUpdate (section 7.2)."""
        secret = hkdf_expand_label(self.suite, self.secret, "traffic upd", b"", len(self.secret))
        return type(self)(self.suite, secret)

    def _nonce(self, sequence: int) -> bytes:
        return (int.from_bytes(self.iv) ^ sequence).to_bytes(12)


def plain_record(content_type: int, payload: bytes) -> bytes:
    return bytes([content_type]) + TLS_1_2 + vector(2, payload)


def split_records(wire: bytes) -> tuple[list[bytes], bytes]:
    """The complete records on the wire, headers included, and the beginning of the one not complete yet."""
    records, start = [], 0
    while start + 5 <= len(wire) and (end := start + 5 + int.from_bytes(wire[start + 3 : start + 5])) <= len(wire):
        records.append(wire[start:end])
        start = end
    return records, wire[start:]


def records_under(suite: Suite, secret: bytes, wire: bytes) -> list[Record]:
    """Every record on the wire that was sealed under this secret, in wire order, whatever sequence number it was given.

    All numbers are tried on all records (so keep it to some hundred): a nonce used twice stands twice in the answer.
    """
    keys, opened = TrafficKeys(suite, secret), []
    records, _ = split_records(wire)
    for record in records:
        attempts = (keys.open_at(sequence, record) for sequence in range(len(records)))
        opened += [found for found in attempts if found is not None][:1]
    return opened


# Messages (section 4)


def vector(length_bytes: int, data: bytes) -> bytes:
    """`data` behind its length, as the presentation language of TLS writes `opaque data<0..2^n-1>`."""
    return len(data).to_bytes(length_bytes) + data


def handshake_message(message_type: int, body: bytes) -> bytes:
    return bytes([message_type]) + vector(3, body)


class Reader:
    """Takes fields off the front of a message."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, length: int) -> bytes:
        if length > len(self.rest):
            raise ProtocolViolation(f"{length} bytes expected, {len(self.rest)} left")
        taken, self.rest = self.rest[:length], self.rest[length:]
        return taken

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length))

    def vector(self, length_bytes: int) -> bytes:
        return self.take(self.number(length_bytes))

    def extensions(self) -> dict[int, bytes]:
        block = Reader(self.vector(2))
        found = {}
        while block.rest:
            extension = block.number(2)
            found[extension] = block.vector(2)
        return found


class KeyShare:
    def __init__(self, group: Group) -> None:
        self.group = group
        self._private: X25519PrivateKey | ec.EllipticCurvePrivateKey
        if group is Group.X25519:
            self._private = X25519PrivateKey.generate()
            self.public = self._private.public_key().public_bytes_raw()
        else:
            self._private = ec.generate_private_key(ec.SECP256R1())
            self.public = self._private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def exchange(self, peer: bytes) -> bytes:
        if isinstance(self._private, X25519PrivateKey):
            return self._private.exchange(X25519PublicKey.from_public_bytes(peer))
        return self._private.exchange(
            ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(self._private.curve, peer)
        )


def sign(key: SigningKey, content: bytes) -> tuple[int, bytes]:
    """The scheme that fits the key (for a curve TLS 1.3 does not know: that of P-256), and the signature."""
    match key:
        case RSAPrivateKey():
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size)
            return Scheme.RSA_PSS_RSAE_SHA256, key.sign(content, pss, hashes.SHA256())
        case Ed25519PrivateKey():
            return Scheme.ED25519, key.sign(content)
        case _ if key.curve.name == "secp384r1":
            return Scheme.ECDSA_SECP384R1_SHA384, key.sign(content, ec.ECDSA(hashes.SHA384()))
        case _:
            return Scheme.ECDSA_SECP256R1_SHA256, key.sign(content, ec.ECDSA(hashes.SHA256()))


@dataclass(eq=False, kw_only=True)
class Tls13Client:
    """One connection: `hello` -> `receive` until `ready` -> `certificate_flight` -> `application_data`, `receive`, ...

    With `share=None` or a share the server will not take, it asks for another hello (`retry_requested`): call `hello`
    again then. `server_name`, `random`, `record_size`, `write` and all else may be changed at any time.
    """

    server_name: bytes | None = None
    suite: Suite = AES_128_GCM_SHA256
    groups: Sequence[Group] = (Group.X25519, Group.P256)
    share: Group | None = Group.X25519
    alpn: Sequence[bytes] = ()
    max_fragment_length: int | None = None  # 512, 1024, 2048 or 4096
    session_id: bytes = b""  # 32 bytes ask for middlebox compatibility: the server sends a ChangeCipherSpec
    extensions: Sequence[tuple[int, bytes]] = ()  # sent as they are, behind ours
    random: bytes = field(default_factory=lambda: os.urandom(32))
    record_size: int = RECORD_SIZE  # most bytes of plaintext in a record we send

    ready: bool = field(default=False, init=False)  # the server's Finished was right: our flight is due
    retry_requested: bool = field(default=False, init=False)
    encrypted_extensions: dict[int, bytes] = field(default_factory=dict, init=False)
    selected_alpn: bytes | None = field(default=None, init=False)
    certificate_request: dict[int, bytes] | None = field(default=None, init=False)  # its extensions
    server_chain: list[bytes] = field(default_factory=list, init=False)  # DER, leaf first
    wire: bytes = field(default=b"", init=False)  # all that was received
    records: list[Record] = field(default_factory=list, init=False)  # those under the server's application keys
    received: bytes = field(default=b"", init=False)  # application data
    alerts: list[Alert] = field(default_factory=list, init=False)
    tickets: list[bytes] = field(default_factory=list, init=False)
    key_updates: list[bool] = field(default_factory=list, init=False)  # for each received: does it ask for an answer
    secrets: dict[str, bytes] = field(default_factory=dict, init=False)  # by their names in the key log

    transcript: bytes = field(default=b"", init=False)
    write: TrafficKeys | None = field(default=None, init=False)  # what we seal with now
    application_write: TrafficKeys | None = field(default=None, init=False)  # ... and after our Finished
    _key_share: KeyShare | None = field(default=None, init=False)
    _schedule: KeySchedule = field(init=False)
    _read: TrafficKeys | None = field(default=None, init=False)
    _unread: bytes = field(default=b"", init=False)
    _messages: bytes = field(default=b"", init=False)

    # What the client sends

    def hello(self) -> bytes:
        """ClientHello; called again after a HelloRetryRequest, the second one."""
        self._key_share = KeyShare(self.share) if self.share else None
        key_share = self._key_share.group.to_bytes(2) + vector(2, self._key_share.public) if self._key_share else b""
        offers = [
            (Extension.SUPPORTED_VERSIONS, vector(1, TLS_1_3)),
            (Extension.SUPPORTED_GROUPS, vector(2, b"".join(group.to_bytes(2) for group in self.groups))),
            (Extension.SIGNATURE_ALGORITHMS, vector(2, b"".join(scheme.to_bytes(2) for scheme in Scheme))),
            (Extension.KEY_SHARE, vector(2, key_share)),
        ]
        if self.server_name is not None:
            offers.append((Extension.SERVER_NAME, vector(2, b"\x00" + vector(2, self.server_name))))
        if self.alpn:
            offers.append((Extension.ALPN, vector(2, b"".join(vector(1, name) for name in self.alpn))))
        if self.max_fragment_length:
            offers.append((Extension.MAX_FRAGMENT_LENGTH, bytes([self.max_fragment_length.bit_length() - 9])))
        extensions = b"".join(code.to_bytes(2) + vector(2, body) for code, body in [*offers, *self.extensions])
        suites = vector(2, self.suite.code.to_bytes(2))
        return self.handshake(
            HandshakeType.CLIENT_HELLO,
            TLS_1_2 + self.random + vector(1, self.session_id) + suites + vector(1, b"\x00") + vector(2, extensions),
        )

    def certificate_flight(self, chain: Sequence[bytes] = (), key: SigningKey | None = None) -> bytes:
        """Certificate, CertificateVerify if there is a key, Finished."""
        return self.certificate(chain) + (self.certificate_verify(key) if key else b"") + self.finished()

    def certificate(self, chain: Sequence[bytes]) -> bytes:
        """Certificate with any DER, or what pretends to be DER, leaf first."""
        entries = b"".join(vector(3, der) + vector(2, b"") for der in chain)
        return self.handshake(HandshakeType.CERTIFICATE, vector(1, b"") + vector(3, entries))

    def certificate_verify(self, key: SigningKey, scheme: int | None = None) -> bytes:
        """CertificateVerify, signed as fits the key; `scheme` only changes what it claims to be."""
        digest = hashlib.new(self.suite.hash, self.transcript).digest()
        fitting, signature = sign(key, b" " * 64 + b"TLS 1.3, client CertificateVerify\x00" + digest)
        claimed = fitting if scheme is None else scheme
        return self.handshake(HandshakeType.CERTIFICATE_VERIFY, claimed.to_bytes(2) + vector(2, signature))

    def finished(self, verify_data: bytes | None = None) -> bytes:
        """Finished, right unless told otherwise; what follows is sealed under the application keys."""
        right = finished_data(self.suite, self.secrets["CLIENT_HANDSHAKE_TRAFFIC_SECRET"], self.transcript)
        wire = self.handshake(HandshakeType.FINISHED, right if verify_data is None else verify_data)
        self.write = self.application_write
        return wire

    def application_data(self, data: bytes) -> bytes:
        return self.seal(ContentType.APPLICATION_DATA, data)

    def key_update(self, *, answer: bool) -> bytes:
        """KeyUpdate that asks for an `answer` or not; what follows is sealed under the next keys."""
        wire = self.seal(ContentType.HANDSHAKE, handshake_message(HandshakeType.KEY_UPDATE, bytes([answer])))
        if self.write is not None:
            self.write = self.write.next_generation()
        return wire

    def alert(self, alert: Alert) -> bytes:
        return self.seal(ContentType.ALERT, bytes(alert))

    def change_cipher_spec(self) -> bytes:
        return plain_record(ContentType.CHANGE_CIPHER_SPEC, b"\x01")

    def handshake(self, message_type: int, body: bytes) -> bytes:
        """Any handshake message, entered in the transcript."""
        message = handshake_message(message_type, body)
        self.transcript += message
        return self.seal(ContentType.HANDSHAKE, message)

    def seal(self, content_type: int, payload: bytes) -> bytes:
        """`payload` in records of at most `record_size` under the keys of the moment; in clear before ServerHello."""
        size = min(self.record_size, self.max_fragment_length or RECORD_SIZE)
        pieces = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
        seal = self.write.seal if self.write else plain_record
        return b"".join(seal(content_type, piece) for piece in pieces)

    # What the server sends

    @property
    def server_certificate(self) -> bytes | None:
        return self.server_chain[0] if self.server_chain else None

    def receive(self, data: bytes) -> None:
        """Takes bytes off the wire, cut anywhere; raises ProtocolViolation where they are wrong."""
        self.wire += data
        records, self._unread = split_records(self._unread + data)
        for record in records:
            content_type, payload = record[0], record[5:]
            if content_type == ContentType.APPLICATION_DATA:
                content_type, payload = self._open(record)
            elif self._read is not None and content_type != ContentType.CHANGE_CIPHER_SPEC:
                raise ProtocolViolation(f"record of type {content_type} in clear where there are keys")
            match content_type:
                case ContentType.HANDSHAKE:
                    self._receive_messages(payload)
                case ContentType.APPLICATION_DATA if self.ready:
                    self.received += payload
                case ContentType.ALERT:
                    self.alerts.append(Alert(*payload))
                case ContentType.CHANGE_CIPHER_SPEC:
                    pass
                case _:
                    raise ProtocolViolation(f"record of type {content_type} out of place")

    def _open(self, wire: bytes) -> tuple[int, bytes]:
        if self._read is None:
            raise ProtocolViolation("protected record before ServerHello")
        record = self._read.open(wire)
        if self.ready:
            self.records.append(record)
        return record.content_type, record.plaintext

    def _receive_messages(self, payload: bytes) -> None:
        self._messages += payload
        while len(self._messages) >= 4 and len(self._messages) >= (end := 4 + int.from_bytes(self._messages[1:4])):
            message, self._messages = self._messages[:end], self._messages[end:]
            self._receive_message(message)

    def _receive_message(self, message: bytes) -> None:
        body, before = Reader(message[4:]), self.transcript
        if message[0] not in (HandshakeType.NEW_SESSION_TICKET, HandshakeType.KEY_UPDATE):
            self.transcript += message
        match message[0]:
            case HandshakeType.SERVER_HELLO:
                self._receive_server_hello(message, before)
            case HandshakeType.FINISHED:
                self._receive_finished(body.rest, before)
            case HandshakeType.NEW_SESSION_TICKET:
                self.tickets.append(message)
            case HandshakeType.KEY_UPDATE:
                self._receive_key_update(bool(body.number(1)))
            case HandshakeType.ENCRYPTED_EXTENSIONS:
                self.encrypted_extensions = body.extensions()
                if Extension.ALPN in self.encrypted_extensions:
                    self.selected_alpn = Reader(Reader(self.encrypted_extensions[Extension.ALPN]).vector(2)).vector(1)
            case HandshakeType.CERTIFICATE_REQUEST:
                body.vector(1)
                self.certificate_request = body.extensions()
            case HandshakeType.CERTIFICATE:
                body.vector(1)
                entries = Reader(body.vector(3))
                while entries.rest:
                    self.server_chain.append(entries.vector(3))
                    entries.extensions()
            case HandshakeType.CERTIFICATE_VERIFY:
                pass  # the server's own certificate is not what these tests are about
            case unknown:
                raise ProtocolViolation(f"handshake message of type {unknown}")

    def _receive_server_hello(self, message: bytes, before: bytes) -> None:
        body = Reader(message[4:])
        body.take(2)
        random = body.take(32)
        body.vector(1)
        if body.number(2) != self.suite.code:
            raise ProtocolViolation("a suite that was not offered")
        body.take(1)
        key_share = Reader(body.extensions()[Extension.KEY_SHARE])
        group = Group(key_share.number(2))
        if random == HELLO_RETRY_REQUEST:
            self.retry_requested, self.share = True, group
            self.transcript = handshake_message(MESSAGE_HASH, hashlib.new(self.suite.hash, before).digest()) + message
            return
        if self._key_share is None or self._key_share.group is not group:
            raise ProtocolViolation("a group without our key share")
        self._schedule = KeySchedule(self.suite, self._key_share.exchange(key_share.vector(2)))
        self.secrets |= self._schedule.handshake_secrets(self.transcript)
        self.write = TrafficKeys(self.suite, self.secrets["CLIENT_HANDSHAKE_TRAFFIC_SECRET"])
        self._read = TrafficKeys(self.suite, self.secrets["SERVER_HANDSHAKE_TRAFFIC_SECRET"])

    def _receive_finished(self, verify_data: bytes, before: bytes) -> None:
        if verify_data != finished_data(self.suite, self.secrets["SERVER_HANDSHAKE_TRAFFIC_SECRET"], before):
            raise ProtocolViolation("the server's Finished is wrong")
        self.secrets |= self._schedule.application_secrets(self.transcript)
        self.application_write = TrafficKeys(self.suite, self.secrets["CLIENT_TRAFFIC_SECRET_0"])
        self._read = TrafficKeys(self.suite, self.secrets["SERVER_TRAFFIC_SECRET_0"])
        self.ready = True

    def _receive_key_update(self, answer: bool) -> None:
        assert self._read is not None, "handshake messages are read under keys"
        self._read = self._read.next_generation()
        self.key_updates.append(answer)
        self.secrets[f"SERVER_TRAFFIC_SECRET_{len(self.key_updates)}"] = self._read.secret
