"""Certificates for the tests, good and bad in every way that matters; all keys are made at run time.

In: what a certificate should say. Out: certificates with their keys, and PEM files of them. Must not know the proxy.
"""

import base64
import datetime as dt
import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KeyType = Literal["p256", "p384", "p224", "rsa2048", "rsa1024", "ed25519"]
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
Validity = tuple[dt.timedelta, dt.timedelta]
"""From and until, counted from now."""

CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
DAY = dt.timedelta(days=1)
QUARTER = (-DAY, 90 * DAY)
"""Long enough that nothing is said of an end that comes near."""


def _key_usage(*names: str) -> x509.KeyUsage:
    every = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign "
        "crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: name in names for name in every.split()})


SIGNING = _key_usage("digital_signature")
ENCIPHERING = _key_usage("key_encipherment")
CERTIFYING = _key_usage("key_cert_sign", "crl_sign")
UNKNOWN_EXTENSION = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")


@cache
def _rsa_key(bits: int) -> rsa.RSAPrivateKey:
    """One key per size and run: they are slow to make, and no test sets two of one size against each other."""
    return rsa.generate_private_key(65537, bits)


def make_key(kind: KeyType = "p256") -> PrivateKey:
    match kind:
        case "p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "p224":
            return ec.generate_private_key(ec.SECP224R1())
        case "rsa2048":
            return _rsa_key(2048)
        case "rsa1024":
            return _rsa_key(1024)
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()


def key_pem(key: PrivateKey, password: bytes | None = None) -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def write_private(path: Path, content: bytes) -> Path:
    """Write a file that only its owner may read."""
    path.touch(0o600)
    path.write_bytes(content)
    return path


@dataclass(frozen=True)
class CredentialFiles:
    """A certificate file (the leaf, then what is sent with it) and the file of its key."""

    certificate: Path
    private_key: Path


@dataclass(frozen=True)
class Credentials:
    """A leaf, the certificates that are sent with it, and its key as PEM (`key` is None where that one is forged)."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: PrivateKey | None
    private_pem: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the leaf, lower-case hexadecimal."""
        return hashlib.sha256(self.certificate.public_bytes(serialization.Encoding.DER)).hexdigest()

    @property
    def certificate_pem(self) -> bytes:
        sent = (self.certificate, *self.chain)
        return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in sent)

    def write(self, directory: Path, name: str, password: bytes | None = None) -> CredentialFiles:
        """`NAME.pem` and `NAME.key` in the directory, the key encrypted if a password is given."""
        certificate = directory / f"{name}.pem"
        certificate.write_bytes(self.certificate_pem)
        private = self.private_pem
        if password is not None:
            assert self.key is not None
            private = key_pem(self.key, password)
        return CredentialFiles(certificate, write_private(directory / f"{name}.key", private))


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _certificate(
    subject: x509.Name,
    key: PrivateKey,
    issuer: tuple[x509.Name, PrivateKey],
    validity: Validity,
    extensions: Iterable[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    issuer_name, issuer_key = issuer
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + validity[0])
        .not_valid_after(now + validity[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    digest = None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(issuer_key, digest)


class Authority:
    """A certificate authority: a root, or an intermediate whose own certificate goes out with what it issues."""

    def __init__(
        self,
        name: str = "Test Client CA",
        *,
        key: KeyType = "p256",
        path_length: int | None = None,
        validity: Validity = QUARTER,
        parent: "Authority | None" = None,
    ) -> None:
        self.key = make_key(key)
        self.certificate: x509.Certificate = _certificate(
            _name(name),
            self.key,
            (parent.certificate.subject, parent.key) if parent else (_name(name), self.key),
            validity,
            [(x509.BasicConstraints(True, path_length), True), (CERTIFYING, True)],
        )
        self.chain: tuple[x509.Certificate, ...] = (self.certificate, *parent.chain) if parent else ()
        """What a leaf of this authority is sent with, for a peer that trusts the root alone."""

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.pem)
        return path

    def intermediate(
        self, name: str = "Test Intermediate CA", *, key: KeyType = "p256", path_length: int | None = 0
    ) -> "Authority":
        return Authority(name, key=key, path_length=path_length, parent=self)

    def issue(
        self,
        common_name: str = "client.example",
        *,
        key: KeyType = "p256",
        validity: Validity = QUARTER,
        purposes: Sequence[x509.ObjectIdentifier] = (CLIENT_AUTH,),
        usage: x509.KeyUsage | None = SIGNING,
        names: Sequence[str] = (),
        uris: Sequence[str] = (),
        is_ca: bool = False,
        extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
        self_signed: bool = False,
    ) -> Credentials:
        """A leaf. `names` are DNS names or IP addresses; no `purposes` or `usage` leaves that extension out."""
        private = make_key(key)
        alternatives = [*map(_general_name, names), *map(x509.UniformResourceIdentifier, uris)]
        extensions: list[tuple[x509.ExtensionType, bool]] = [(x509.BasicConstraints(is_ca, None), True)]
        if usage is not None:
            extensions.append((usage, True))
        if purposes:
            extensions.append((x509.ExtendedKeyUsage(purposes), False))
        if alternatives:
            extensions.append((x509.SubjectAlternativeName(alternatives), False))
        subject = _name(common_name)
        issuer = (subject, private) if self_signed else (self.certificate.subject, self.key)
        certificate = _certificate(subject, private, issuer, validity, [*extensions, *extra])
        return Credentials(certificate, () if self_signed else self.chain, private, key_pem(private))

    def issue_server(self, *names: str, key: KeyType = "p256", validity: Validity = QUARTER) -> Credentials:
        """A server certificate for these names, and for the loopback names and addresses."""
        every = (*names, "localhost", "127.0.0.1", "::1")
        return self.issue(every[0], key=key, validity=validity, purposes=(SERVER_AUTH,), names=every)

    def revoke(self, *revoked: Credentials, validity: Validity = QUARTER) -> bytes:
        """A certificate revocation list of this authority, PEM."""
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now + validity[0])
            .next_update(now + validity[1])
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        for credentials in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(credentials.certificate.serial_number)
                .revocation_date(now + validity[0])
                .build()
            )
        assert not isinstance(self.key, ed25519.Ed25519PrivateKey)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _der(tag: int, *content: bytes) -> bytes:
    body = b"".join(content)
    assert len(body) < 0x10000
    length = bytes([len(body)]) if len(body) < 0x80 else b"\x82" + len(body).to_bytes(2, "big")
    return bytes([tag]) + length + body


def _stolen(authority: Authority) -> Credentials:
    """A good certificate in the hands of one who has not its key.

    Stock programs load the pair: the thief's scalar stands in an ECPrivateKey (RFC 5915) that names the victim's
    public key, which is the half that OpenSSL compares.
    """
    victim = authority.issue("victim.example")
    thief = make_key("p256")
    assert isinstance(thief, ec.EllipticCurvePrivateKey)
    assert victim.key is not None
    point = victim.key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    scalar = thief.private_numbers().private_value.to_bytes(32, "big")
    prime256v1 = bytes.fromhex("06082a8648ce3d030107")
    forged = _der(
        0x30, _der(0x02, b"\x01"), _der(0x04, scalar), _der(0xA0, prime256v1), _der(0xA1, _der(0x03, b"\0", point))
    )
    body = base64.encodebytes(forged).decode()
    pem = f"-----BEGIN EC PRIVATE KEY-----\n{body}-----END EC PRIVATE KEY-----\n".encode()
    return replace(victim, key=None, private_pem=pem)


def _sha1_signed(authority: Authority) -> Credentials:
    """A leaf signed with RSA and SHA-1, which libraries no longer do: the digest's name is exchanged by hand."""
    issuer = authority.intermediate("Test SHA-1 CA", key="rsa2048")
    leaf = issuer.issue("sha1.example")
    rsa_sha256, rsa_sha1 = bytes.fromhex("06092a864886f70d01010b"), bytes.fromhex("06092a864886f70d010105")
    signed = leaf.certificate.tbs_certificate_bytes.replace(rsa_sha256, rsa_sha1)
    assert isinstance(issuer.key, rsa.RSAPrivateKey)
    numbers = issuer.key.private_numbers()
    digest_info = bytes.fromhex("3021300906052b0e03021a05000414") + hashlib.sha1(signed).digest()
    # PKCS #1 v1.5 (RFC 8017 section 9.2) for a modulus of 256 bytes.
    padded = b"\0\1" + b"\xff" * (256 - 3 - len(digest_info)) + b"\0" + digest_info
    signature = pow(int.from_bytes(padded, "big"), numbers.d, numbers.public_numbers.n).to_bytes(256, "big")
    algorithm = _der(0x30, rsa_sha1, b"\x05\0")
    certificate = x509.load_der_x509_certificate(_der(0x30, signed, algorithm, _der(0x03, b"\0", signature)))
    return replace(leaf, certificate=certificate)


def _issued_by_leaf(authority: Authority) -> Credentials:
    """Issued by a certificate that the authority gave to a client, not to a CA."""
    client = authority.issue("client.example")
    imposter = Authority("client.example")
    assert client.key is not None
    imposter.key, imposter.certificate, imposter.chain = client.key, client.certificate, (client.certificate,)
    return imposter.issue("imposter.example")


REFUSED: dict[str, Callable[[Authority], Credentials]] = {
    "self_signed": lambda ours: ours.issue("self-signed.example", self_signed=True),
    "unknown_ca": lambda ours: Authority("Someone Else's CA").issue("client.example"),
    "same_name_other_ca": lambda ours: Authority("Test Client CA").issue("client.example"),
    "expired": lambda ours: ours.issue("expired.example", validity=(-2 * DAY, -DAY)),
    "not_yet_valid": lambda ours: ours.issue("early.example", validity=(DAY, 2 * DAY)),
    "wrong_purpose": lambda ours: ours.issue("server.example", purposes=(SERVER_AUTH,)),
    "wrong_key_usage": lambda ours: ours.issue("encipher.example", usage=ENCIPHERING),
    "ca_as_leaf": lambda ours: ours.issue("ca.example", purposes=(), usage=CERTIFYING, is_ca=True),
    "broken_chain": lambda ours: replace(ours.intermediate().issue("broken.example"), chain=()),
    "leaf_as_ca": _issued_by_leaf,
    "unknown_critical_extension": lambda ours: ours.issue("critical.example", extra=[(UNKNOWN_EXTENSION, True)]),
    "path_too_long": lambda ours: ours.intermediate().intermediate("Too Deep CA").issue("deep.example"),
    "rsa_1024": lambda ours: ours.issue("weak.example", key="rsa1024"),
    "sha1": _sha1_signed,
    "stolen": _stolen,
}
"""Specimens that must not get in, by name; each takes the authority that the proxy trusts."""

ACCEPTED: dict[str, Callable[[Authority], Credentials]] = {
    "p256": lambda ours: ours.issue(),
    "p384": lambda ours: ours.issue(key="p384"),
    "rsa_2048": lambda ours: ours.issue(key="rsa2048"),
    "ed25519": lambda ours: ours.issue(key="ed25519"),
    "no_purpose": lambda ours: ours.issue(purposes=()),
    "no_name": lambda ours: ours.issue("", uris=["spiffe://example/edge"]),
    "intermediate": lambda ours: ours.intermediate().issue(),
}
"""Specimens that must get in."""
