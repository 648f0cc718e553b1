"""Conversations after tlsfuzzer's scripts for TLS 1.3: by script, what one visitor does, and how it must end.

The names are those of its scripts, `test-tls13-` left out; the cases are theirs, the client is our own (`tls13`), since
tlsfuzzer is on no package index. The visitor has a good certificate, and a request stands behind every handshake.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from actors import GET_AND_CLOSE
from certificates import Credentials
from encounter import chain_of
from hostile import HostileClient
from tls13 import (
    CHACHA20_POLY1305_SHA256,
    ContentType,
    Extension,
    Group,
    HandshakeType,
    KeyShare,
    Tls13Client,
    finished_data,
    handshake_message,
    plain_record,
    vector,
)

SERVED, PAGE, CLOSED = "served", "page", "closed"
UNEXPECTED_MESSAGE, BAD_RECORD_MAC, RECORD_OVERFLOW, HANDSHAKE_FAILURE = 10, 20, 22, 40
ILLEGAL_PARAMETER, DECODE_ERROR, DECRYPT_ERROR, PROTOCOL_VERSION, MISSING_EXTENSION = 47, 50, 51, 70, 109

Ending = str | int
"""`SERVED`, `PAGE`, `CLOSED` (without a word), or the fatal alert."""
Play = Callable[[HostileClient, Credentials], None]


@dataclass(frozen=True)
class Conversation:
    script: str
    case: str
    play: Play
    endings: tuple[Ending, ...]
    key: str = "p256"
    """Whose certificate `good` is."""

    def __str__(self) -> str:
        return f"{self.script}: {self.case}"


# Hellos, which end before anything is secret


def offers(**changed: bytes | None) -> list[tuple[int, bytes]]:
    """The extensions of a good hello, some of them changed, or left out."""
    share = KeyShare(Group.X25519)
    good: dict[str, bytes | None] = {
        "SUPPORTED_VERSIONS": vector(1, b"\3\4"),
        "SUPPORTED_GROUPS": vector(2, b"\0\x1d\0\x17"),
        "SIGNATURE_ALGORITHMS": vector(2, bytes.fromhex("0403 0804 0401")),
        "KEY_SHARE": vector(2, b"\0\x1d" + vector(2, share.public)),
    }
    return [(Extension[name], body) for name, body in {**good, **changed}.items() if body is not None]


def hello(
    extensions: Iterable[tuple[int, bytes]], suites: str = "1301", compression: bytes = b"\0", version: bytes = b"\3\3"
) -> bytes:
    block = b"".join(code.to_bytes(2) + vector(2, body) for code, body in extensions)
    body = version + bytes(range(32)) + vector(1, b"") + vector(2, bytes.fromhex(suites)) + vector(1, compression)
    return plain_record(ContentType.HANDSHAKE, handshake_message(HandshakeType.CLIENT_HELLO, body + vector(2, block)))


def share_of(group: int, point: bytes) -> bytes:
    return vector(2, group.to_bytes(2) + vector(2, point))


def _hellos() -> Iterable[tuple[str, str, bytes, tuple[Ending, ...]]]:
    point = KeyShare(Group.P256).public
    off_the_curve = point[:-1] + bytes([point[-1] ^ 1])
    for name, public in {
        "all zeros": bytes(32), "one": b"\1" + bytes(31), "too short": bytes(31), "too long": bytes(33), "empty": b"",
    }.items():  # fmt: skip
        endings = (ILLEGAL_PARAMETER, DECODE_ERROR) if name == "empty" else (ILLEGAL_PARAMETER,)
        yield "crfg-curves", f"X25519 share {name}", hello(offers(KEY_SHARE=share_of(0x1D, public))), endings
    for name, public in {
        "off the curve": off_the_curve, "the point at infinity": b"\0", "too short": point[:-1], "too long": point + b"\0",
        "all zeros": b"\4" + bytes(64), "compressed, and cut": b"\2" + point[1:20],
    }.items():  # fmt: skip
        yield (
            "ecdhe-curves",
            f"P-256 share {name}",
            hello(offers(KEY_SHARE=share_of(0x17, public))),
            (ILLEGAL_PARAMETER,),
        )
    missing = (MISSING_EXTENSION,)
    yield "keyshare-omitted", "no key_share", hello(offers(KEY_SHARE=None)), missing
    yield "keyshare-omitted", "no supported_groups", hello(offers(SUPPORTED_GROUPS=None)), missing
    yield "signature-algorithms", "none", hello(offers(SIGNATURE_ALGORITHMS=None)), missing
    yield "signature-algorithms", "an empty list", hello(offers(SIGNATURE_ALGORITHMS=vector(2, b""))), (DECODE_ERROR,)
    yield "signature-algorithms", "cut", hello(offers(SIGNATURE_ALGORITHMS=vector(2, b"\4"))), (DECODE_ERROR,)
    yield (
        "signature-algorithms",
        "only unknown ones",
        hello(offers(SIGNATURE_ALGORITHMS=vector(2, b"\xfe\xfe"))),
        (HANDSHAKE_FAILURE,),
    )
    yield (
        "pkcs-signature",
        "only PKCS #1",
        hello(offers(SIGNATURE_ALGORITHMS=vector(2, b"\4\1\5\1\6\1"))),
        (HANDSHAKE_FAILURE,),
    )
    yield (
        "nociphers",
        "no cipher suite",
        hello(offers(), suites=""),
        (ILLEGAL_PARAMETER, DECODE_ERROR, HANDSHAKE_FAILURE),
    )
    yield "invalid-ciphers", "only unknown ones", hello(offers(), suites="fefe fdfd"), (HANDSHAKE_FAILURE,)
    yield "invalid-ciphers", "half a suite", hello(offers(), suites="1301 13"), (DECODE_ERROR, ILLEGAL_PARAMETER)
    yield (
        "version-negotiation",
        "only a later one",
        hello(offers(SUPPORTED_VERSIONS=vector(1, b"\3\5"))),
        (PROTOCOL_VERSION,),
    )
    yield (
        "version-negotiation",
        "only TLS 1.2",
        hello(offers(SUPPORTED_VERSIONS=vector(1, b"\3\3"))),
        (PROTOCOL_VERSION,),
    )
    yield "version-negotiation", "no list", hello(offers(SUPPORTED_VERSIONS=None)), (PROTOCOL_VERSION,)
    yield "version-negotiation", "an empty list", hello(offers(SUPPORTED_VERSIONS=vector(1, b""))), (
        DECODE_ERROR, PROTOCOL_VERSION,
    )  # fmt: skip
    yield "version-negotiation", "half a version", hello(offers(SUPPORTED_VERSIONS=vector(1, b"\3"))), (
        DECODE_ERROR, PROTOCOL_VERSION,
    )  # fmt: skip
    yield "conversation", "compression beside none", hello(offers(), compression=b"\0\1"), (ILLEGAL_PARAMETER,)
    yield "conversation", "compression alone", hello(offers(), compression=b"\1"), (ILLEGAL_PARAMETER, DECODE_ERROR)
    for code in (Extension.KEY_SHARE, Extension.SUPPORTED_VERSIONS, Extension.SIGNATURE_ALGORITHMS):
        twice = [*offers(), *(offer for offer in offers() if offer[0] == code)]
        yield "shuffled-extentions", f"{code.name} twice", hello(twice), (ILLEGAL_PARAMETER, DECODE_ERROR)
    psk = (41, vector(2, vector(2, bytes(32)) + bytes(4)) + vector(2, vector(1, bytes(32))))
    yield "shuffled-extentions", "pre_shared_key not last", hello([psk, (45, b"\1\1"), *offers()]), (ILLEGAL_PARAMETER,)
    yield "psk_ke", "no psk_key_exchange_modes", hello([*offers(), psk]), (MISSING_EXTENSION,)
    yield "ccs", "before the hello", plain_record(ContentType.CHANGE_CIPHER_SPEC, b"\1") + hello(offers()), (CLOSED,)
    yield (
        "finished-plaintext",
        "Finished for a hello",
        plain_record(ContentType.HANDSHAKE, handshake_message(HandshakeType.FINISHED, bytes(32))),
        (UNEXPECTED_MESSAGE,),
    )
    yield "zero-length-data", "an empty handshake record", plain_record(ContentType.HANDSHAKE, b"") * 40, (
        UNEXPECTED_MESSAGE, DECODE_ERROR, CLOSED,
    )  # fmt: skip
    whole = hello(offers())
    yield (
        "conversation",
        "an alert inside the hello",
        (
            plain_record(ContentType.HANDSHAKE, whole[5:50])
            + plain_record(ContentType.ALERT, b"\1\x5a")
            + plain_record(ContentType.HANDSHAKE, whole[50:])
        ),
        (UNEXPECTED_MESSAGE, CLOSED),
    )
    yield (
        "record-layer-limits",
        "a hello longer than a record may be",
        (b"\x16\3\1" + vector(2, whole[5:] + bytes(16385 - len(whole) + 5))),
        (RECORD_OVERFLOW, DECODE_ERROR, CLOSED),
    )


# CertificateVerify


def content_to_sign(client: Tls13Client) -> bytes:
    digest = hashlib.new(client.suite.hash, client.transcript).digest()
    return b" " * 64 + b"TLS 1.3, client CertificateVerify\0" + digest


Signer = Callable[[Credentials, bytes], tuple[int, bytes]]
"""Scheme and signature for a content."""


def signed(make: Signer) -> Play:
    """A good certificate, this CertificateVerify, a right Finished and a request."""

    def play(visitor: HostileClient, good: Credentials) -> None:
        client = visitor.client
        visitor.greet()
        wire = client.certificate(chain_of(good))
        scheme, signature = make(good, content_to_sign(client))
        wire += client.handshake(HandshakeType.CERTIFICATE_VERIFY, scheme.to_bytes(2) + vector(2, signature))
        visitor.send(wire + client.finished() + client.application_data(GET_AND_CLOSE))

    return play


HASHES = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384(), "sha512": hashes.SHA512()}


def rsa_pss(scheme: int, digest: str = "sha256", *, salt: int | None = None, mgf: str | None = None) -> Signer:
    def make(good: Credentials, content: bytes) -> tuple[int, bytes]:
        assert isinstance(good.key, RSAPrivateKey)
        algorithm = HASHES[digest]
        length = algorithm.digest_size if salt is None else salt
        pss = padding.PSS(padding.MGF1(HASHES[mgf or digest]), length)
        return scheme, good.key.sign(content, pss, algorithm)

    return make


def rsa_pkcs1(scheme: int, digest: str) -> Signer:
    def make(good: Credentials, content: bytes) -> tuple[int, bytes]:
        assert isinstance(good.key, RSAPrivateKey)
        return scheme, good.key.sign(content, padding.PKCS1v15(), HASHES[digest])

    return make


def ecdsa(scheme: int = 0x0403, digest: str = "sha256") -> Signer:
    def make(good: Credentials, content: bytes) -> tuple[int, bytes]:
        assert isinstance(good.key, ec.EllipticCurvePrivateKey)
        return scheme, good.key.sign(content, ec.ECDSA(HASHES[digest]))

    return make


def eddsa(scheme: int = 0x0807) -> Signer:
    def make(good: Credentials, content: bytes) -> tuple[int, bytes]:
        assert isinstance(good.key, Ed25519PrivateKey)
        return scheme, good.key.sign(content)

    return make


def spoilt(signer: Signer, spoil: Callable[[bytes], bytes]) -> Signer:
    def make(good: Credentials, content: bytes) -> tuple[int, bytes]:
        scheme, signature = signer(good, content)
        return scheme, spoil(signature)

    return make


def flip(position: int, mask: int = 1) -> Callable[[bytes], bytes]:
    def spoil(data: bytes) -> bytes:
        spoiling = bytearray(data)
        spoiling[position] ^= mask
        return bytes(spoiling)

    return spoil


def constant(data: bytes) -> Callable[[bytes], bytes]:
    return lambda _: data


def _signatures() -> Iterable[tuple[str, str, str, Signer, tuple[Ending, ...]]]:
    script = "certificate-verify"
    for number, digest in enumerate(HASHES):
        yield script, "rsa2048", f"rsa_pss_rsae_{digest}", rsa_pss(0x0804 + number, digest), (SERVED,)
        yield script, "rsa2048", f"rsa_pss_pss_{digest}", rsa_pss(0x0809 + number, digest), (PAGE,)
        yield script, "rsa2048", f"rsa_pkcs1_{digest}", rsa_pkcs1(0x0401 + 0x100 * number, digest), (PAGE,)
    for scheme in (0x0201, 0x0101, 0x0301, 0x0000, 0xFFFF, 0x0403, 0x0807):
        yield script, "rsa2048", f"scheme {scheme:#06x} unasked", rsa_pss(scheme), (PAGE,)
    for salt in (0, 31, 33):
        yield script, "rsa2048", f"a salt of {salt}", rsa_pss(0x0804, salt=salt), (PAGE,)
    yield script, "rsa2048", "PKCS #1 under the name of PSS", rsa_pkcs1(0x0804, "sha256"), (PAGE,)
    yield script, "rsa2048", "another hash", rsa_pss(0x0804, "sha384"), (PAGE,)
    yield script, "rsa2048", "another hash in MGF1", rsa_pss(0x0804, mgf="sha512"), (PAGE,)
    for position in (0, 1, 100, 254, 255):
        for mask in (0x01, 0x80):
            fuzzed = spoilt(rsa_pss(0x0804), flip(position, mask))
            yield script, "rsa2048", f"byte {position} xor {mask:#x}", fuzzed, (PAGE,)
    odd: dict[str, Callable[[bytes], bytes]] = {
        "empty": constant(b""), "cut": lambda whole: whole[:-1], "with a byte more": lambda whole: whole + b"\0",
        "all zeros": lambda whole: bytes(len(whole)), "all ones": lambda whole: b"\xff" * len(whole), "a byte": constant(b"x"),
    }  # fmt: skip
    for key, signer, of_key in (
        ("rsa2048", rsa_pss(0x0804), script),
        ("p256", ecdsa(), "ecdsa-in-certificate-verify"),
        ("ed25519", eddsa(), "eddsa-in-certificate-verify"),
    ):
        for name, spoil in odd.items():
            yield of_key, key, f"a signature that is {name}", spoilt(signer, spoil), (PAGE, DECODE_ERROR)
    script = "ecdsa-in-certificate-verify"
    yield script, "p256", "ecdsa_secp256r1_sha256", ecdsa(), (SERVED,)
    for scheme, digest in ((0x0503, "sha384"), (0x0603, "sha512"), (0x0203, "sha256"), (0x0804, "sha256")):
        yield script, "p256", f"scheme {scheme:#06x}", ecdsa(scheme, digest), (PAGE,)
    yield script, "p256", "another hash", ecdsa(0x0403, "sha384"), (PAGE,)
    for name, signature in {
        "r and s are 0": bytes.fromhex("3006 0201 00 0201 00"), "r is 0": bytes.fromhex("3006 0201 00 0201 01"),
        "r and s are 1": bytes.fromhex("3006 0201 01 0201 01"), "r is below 0": bytes.fromhex("3006 0201 ff 0201 01"),
        "an empty sequence": bytes.fromhex("3000"), "no sequence": bytes.fromhex("0201 01"),
    }.items():  # fmt: skip
        yield script, "p256", name, spoilt(ecdsa(), constant(signature)), (PAGE,)
    for position in (0, 1, 4, 10, -1):
        yield script, "p256", f"byte {position} flipped", spoilt(ecdsa(), flip(position)), (PAGE,)
    script = "eddsa-in-certificate-verify"
    yield script, "ed25519", "ed25519", eddsa(), (SERVED,)
    for scheme in (0x0808, 0x0403, 0x0804):
        yield script, "ed25519", f"scheme {scheme:#06x}", eddsa(scheme), (PAGE,)
    for position in (0, 31, 32, 63):
        yield script, "ed25519", f"byte {position} flipped", spoilt(eddsa(), flip(position)), (PAGE,)


# Finished, and what stands around it

Step = Callable[[Tls13Client], bytes]
"""What a client sends at one moment."""


def nothing(_: Tls13Client) -> bytes:
    return b""


def unchanged(message: bytes) -> bytes:
    return message


def flight_with(
    *,
    finished: Callable[[bytes], bytes] = unchanged,
    before: Step = nothing,
    between: Step = nothing,
    behind: Step = nothing,
) -> Play:
    """A good flight and a request: its Finished spoilt, or something `before` it, `between` its messages, `behind` it."""

    def play(visitor: HostileClient, good: Credentials) -> None:
        client = visitor.client
        visitor.greet()
        assert good.key is not None
        wire = (
            before(client) + client.certificate(chain_of(good)) + client.certificate_verify(good.key) + between(client)
        )
        right = finished_data(client.suite, client.secrets["CLIENT_HANDSHAKE_TRAFFIC_SECRET"], client.transcript)
        wire += client.seal(ContentType.HANDSHAKE, finished(handshake_message(HandshakeType.FINISHED, right)))
        client.write = client.application_write
        wire += behind(client)
        visitor.send(wire + client.application_data(GET_AND_CLOSE))

    return play


def wire(data: bytes) -> Step:
    return lambda _: data


def sealed(content_type: int, payload: bytes, zeros: int = 0) -> Step:
    """One record, with padding (RFC 8446 section 5.4) or none, however long it becomes."""

    def step(client: Tls13Client) -> bytes:
        assert client.write is not None
        inner = payload + bytes([content_type]) + bytes(zeros)
        return client.write.seal(inner[-1], inner[:-1])

    return step


def message(message_type: int, body: bytes) -> Step:
    return sealed(ContentType.HANDSHAKE, handshake_message(message_type, body))


def key_updates(number: int, *, answer: bool) -> Step:
    return lambda client: b"".join(client.key_update(answer=answer) for _ in range(number))


def spoilt_data(position: int) -> Step:
    return lambda client: flip(position)(client.application_data(b"x"))


def split_key_update(between: Step) -> Step:
    """A KeyUpdate in two records, and what stands `between` them."""

    def step(client: Tls13Client) -> bytes:
        whole = handshake_message(HandshakeType.KEY_UPDATE, b"\0")
        halves = client.seal(ContentType.HANDSHAKE, whole[:2]) + between(client)
        halves += client.seal(ContentType.HANDSHAKE, whole[2:])
        assert client.write is not None
        client.write = client.write.next_generation()
        return halves

    return step


def of_length(length: int) -> Callable[[bytes], bytes]:
    """The message cut or filled up, and saying so."""
    return lambda whole: whole[:1] + length.to_bytes(3) + whole[4 : 4 + length].ljust(length, b"\0")


CHANGE_CIPHER_SPEC = plain_record(ContentType.CHANGE_CIPHER_SPEC, b"\1")
Ended = tuple[str, str, Play, tuple[Ending, ...]]


def _finishes() -> Iterable[Ended]:
    for position in (4, 5, 19, 34, 35):
        for mask in (0x01, 0x80, 0xFF):
            play = flight_with(finished=flip(position, mask))
            yield "finished", f"byte {position - 4} xor {mask:#x}", play, (DECRYPT_ERROR,)
    for length in (0, 1, 16, 31, 33, 48, 64, 255):
        too_long = (DECODE_ERROR, DECRYPT_ERROR, ILLEGAL_PARAMETER)
        yield "finished", f"{length} bytes", flight_with(finished=of_length(length)), too_long
    in_clear = plain_record(ContentType.HANDSHAKE, handshake_message(HandshakeType.FINISHED, bytes(32)))
    endings = (UNEXPECTED_MESSAGE, DECODE_ERROR, BAD_RECORD_MAC)
    yield "finished-plaintext", "in clear", flight_with(between=wire(in_clear)), endings


def _records() -> Iterable[Ended]:
    unexpected, ccs = (UNEXPECTED_MESSAGE,), CHANGE_CIPHER_SPEC
    yield "ccs", "before the certificate", flight_with(before=wire(ccs)), (SERVED,)
    yield "multiple-ccs-messages", "two", flight_with(before=wire(ccs * 2)), (SERVED, *unexpected)
    yield "multiple-ccs-messages", "between the messages", flight_with(between=wire(ccs)), (SERVED, *unexpected)
    yield "ccs", "behind the Finished", flight_with(behind=wire(ccs)), (*unexpected, CLOSED)
    yield "ccs", "sealed", flight_with(before=sealed(ContentType.CHANGE_CIPHER_SPEC, b"\1")), unexpected
    for content in (b"\0", b"\2", b"\1\1", b""):
        play = flight_with(before=wire(plain_record(ContentType.CHANGE_CIPHER_SPEC, content)))
        yield "ccs", f"that holds {content.hex() or 'nothing'}", play, (*unexpected, DECODE_ERROR, ILLEGAL_PARAMETER)
    empty = sealed(ContentType.ALERT, b"")
    yield "empty-alert", "before the certificate", flight_with(before=empty), (*unexpected, DECODE_ERROR)
    yield "empty-alert", "behind the Finished", flight_with(behind=empty), (*unexpected, DECODE_ERROR)
    alert = wire(plain_record(ContentType.ALERT, b"\2\x28"))
    for place, play in (("before the certificate", flight_with(before=alert)), ("behind", flight_with(behind=alert))):
        yield "unencrypted-alert", place, play, (CLOSED, BAD_RECORD_MAC, DECODE_ERROR, *unexpected)
    for zeros in (0, 15, 16000):
        blank = sealed(0, b"", zeros)
        yield "zero-content-type", f"before the certificate, {zeros} more", flight_with(before=blank), unexpected
        yield "zero-content-type", f"behind the Finished, {zeros} more", flight_with(behind=blank), unexpected
    for zeros in (0, 31, 2**14):
        data, no_message = sealed(ContentType.APPLICATION_DATA, b"", zeros), sealed(ContentType.HANDSHAKE, b"", zeros)
        name = f"with {zeros} bytes of padding"
        yield "zero-length-data", f"behind the Finished, {name}", flight_with(behind=data), (SERVED,)
        yield "zero-length-data", f"before the Finished, {name}", flight_with(between=data), unexpected
        yield "zero-length-data", f"a handshake record, {name}", flight_with(before=no_message), unexpected
    for length, zeros in ((2**14 + 1, 0), (2**14, 255), (2**14 - 8, 264)):
        play = flight_with(behind=sealed(ContentType.APPLICATION_DATA, b"x" * length, zeros))
        yield "record-layer-limits", f"{length} bytes and {zeros} of padding", play, (RECORD_OVERFLOW,)
    for zeros in (1, 255, 16000):
        request = sealed(ContentType.APPLICATION_DATA, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", zeros)
        yield "record-padding", f"a request with {zeros} bytes of padding", flight_with(behind=request), (SERVED,)
    for position, name in ((5, "ciphertext"), (-1, "tag")):
        play = flight_with(behind=spoilt_data(position))
        yield "symetric-ciphers", f"a flipped bit of the {name}", play, (BAD_RECORD_MAC,)
    twice = flight_with(behind=lambda client: client.application_data(b"") * 2)
    yield "symetric-ciphers", "a record twice", twice, (BAD_RECORD_MAC,)
    for description, name in ((0, "close_notify"), (90, "user_canceled"), (40, "handshake_failure"), (255, "unknown")):
        level = 1 if description in (0, 90) else 2
        play = flight_with(before=sealed(ContentType.ALERT, bytes([level, description])))
        endings: tuple[Ending, ...] = (SERVED, UNEXPECTED_MESSAGE) if description == 90 else (CLOSED,)
        yield "connection-abort", f"{name} in place of the certificate", play, endings


def _updates() -> Iterable[Ended]:
    script, unexpected = "keyupdate", (UNEXPECTED_MESSAGE,)
    for answer in (False, True):
        for number in (1, 2, 10):
            play = flight_with(behind=key_updates(number, answer=answer))
            yield script, f"{number}, {'with' if answer else 'without'} an answer", play, (SERVED,)
    yield script, "in two records", flight_with(behind=split_key_update(nothing)), (SERVED,)
    data = sealed(ContentType.APPLICATION_DATA, b"x")
    yield script, "in two records, data between", flight_with(behind=split_key_update(data)), unexpected
    either = (ILLEGAL_PARAMETER, DECODE_ERROR)
    for value in (2, 3, 127, 255):
        yield script, f"of type {value}", flight_with(behind=message(24, bytes([value]))), either
    for body in (b"", b"\0\0", b"\1" * 100):
        yield script, f"of {len(body)} bytes", flight_with(behind=message(24, body)), either
    whole = handshake_message(HandshakeType.KEY_UPDATE, b"\0")
    yield script, "two in one record", flight_with(behind=sealed(ContentType.HANDSHAKE, whole * 2)), unexpected
    yield script, "and old keys afterwards", flight_with(behind=message(24, b"\0")), (BAD_RECORD_MAC,)
    in_clear = flight_with(behind=wire(plain_record(ContentType.HANDSHAKE, whole)))
    yield script, "in clear", in_clear, (UNEXPECTED_MESSAGE, DECODE_ERROR, BAD_RECORD_MAC, CLOSED)
    for number, name in {
        11: "Certificate", 13: "CertificateRequest", 1: "ClientHello", 2: "ServerHello", 4: "NewSessionTicket",
        5: "EndOfEarlyData", 20: "Finished", 0: "HelloRequest", 254: "message_hash",
    }.items():  # fmt: skip
        play = flight_with(behind=message(number, bytes(32)))
        yield "post-handshake-auth", f"{name} behind the Finished", play, unexpected


# A second hello


def second_hello(change: Callable[[Tls13Client], None]) -> Play:
    """A hello without a share, and after the HelloRetryRequest one that is not what was asked for."""

    def play(visitor: HostileClient, good: Credentials) -> None:
        client = visitor.client
        client.share = None
        if visitor.exchange_hellos(lambda: change(client)):
            visitor.send(visitor.flight(good))

    return play


def set_to(name: str, value: object) -> Callable[[Tls13Client], None]:
    return lambda client: setattr(client, name, value)


def _retries() -> Iterable[Ended]:
    yield "hrr", "as asked for", second_hello(lambda _: None), (SERVED,)
    endings = (ILLEGAL_PARAMETER, MISSING_EXTENSION)
    yield "hrr", "still without a share", second_hello(set_to("share", None)), endings
    yield "hrr", "a share of another group", second_hello(set_to("share", Group.P256)), endings
    yield "hrr", "another suite", second_hello(set_to("suite", CHACHA20_POLY1305_SHA256)), endings


def bare(data: bytes) -> Play:
    """These bytes, and nothing else."""
    return lambda visitor, _: visitor.send(data)


def _all() -> Iterable[Conversation]:
    for script, case, data, endings in _hellos():
        yield Conversation(script, case, bare(data), endings)
    for script, key, case, make, endings in _signatures():
        yield Conversation(script, case, signed(make), endings, key)
    for script, case, play, endings in (*_finishes(), *_records(), *_updates(), *_retries()):
        yield Conversation(script, case, play, endings)


CONVERSATIONS = list(_all())
