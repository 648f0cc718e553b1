"""The content of certificate and key files -> what a TLS context needs, or everything that is wrong with it in words.

In: PEM bytes and where the configuration names them. Out: certificates and keys, `Problem`s that stop a start, and
advice that does not. Knows certificates' meaning, and Cloudflare's by fingerprint. Must not know contexts or the file
system.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID

from aop_proxy.identity import UNREADABLE
from aop_proxy.model import Problem

T = TypeVar("T")
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
"""One PEM block, also where two files were joined without a newline between them."""

SHARED_CA_FINGERPRINT = "9a1ac2b4be15f9f27eee20a734cba4e9898f61001b3bd7c84b69b56a3e25a2b9"
_NOT_AN_ORIGIN_PULL_CA = {
    "062465eea14401f48be7d9a873f2ee674f96806584225d50c04f761d4480b8ba": (
        "this is Cloudflare's old origin-pull CA (expired 2020-01-12): write `cloudflare` instead, the current one"
        " ships with this program"
    ),
    "aa63697a22764b67b2134ce14cb5690ea336940b93986113f49545917832d80d": (
        "this is Cloudflare's Origin CA root (ECC), which signs server certificates, not the edge's client"
        " certificate: write `cloudflare` instead"
    ),
    "d3c7e85c91707fc0a12abc5d88266747aa4fa8e7b162f633ffb3c9d989947620": (
        "this is Cloudflare's Origin CA root (RSA), which signs server certificates, not the edge's client"
        " certificate: write `cloudflare` instead"
    ),
}


@dataclass(slots=True)
class Findings:
    """What was found wrong, and what is merely worth saying."""

    expired_is_problem: bool = True
    known_keys: frozenset[bytes] = frozenset()
    """`sound_keys` of an earlier reading. They need no second look: one at an RSA key takes 30 ms."""
    sound_keys: set[bytes] = field(default_factory=set, compare=False)
    """SHA-256 of the private keys that were read, as they stand in their files."""
    problems: list[Problem] = field(default_factory=list)
    advice: list[Problem] = field(default_factory=list)

    def problem(self, path: str, sentence: str) -> None:
        """Note what stops a start."""
        self.problems.append(Problem(path, sentence))

    def expired(self, path: str, sentence: str) -> bool:
        """Note what has expired; whether it can be used all the same."""
        (self.problem if self.expired_is_problem else self.advise)(path, sentence)
        return not self.expired_is_problem

    def advise(self, path: str, sentence: str) -> None:
        """Note what is worth knowing."""
        self.advice.append(Problem(path, sentence))


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate with its chain and its private key, as one PEM that OpenSSL loads without a password."""

    pem: bytes = field(repr=False)
    chain: list[x509.Certificate]
    """The leaf first."""


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER, 64 lower-case hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def read_authorities(path: str, pem: bytes, findings: Findings) -> list[x509.Certificate]:
    """Read the CA certificates of a file named at `path`; what cannot serve as one becomes a problem."""
    certificates = _read_certificates(path, pem, findings)
    return [certificate for certificate in certificates if _can_be_authority(path, certificate, findings)]


def read_anchors(path: str, pem: bytes, findings: Findings) -> list[x509.Certificate]:
    """Read what a backend's certificate must be signed by, or be."""
    certificates = _read_certificates(path, pem, findings)
    return [certificate for certificate in certificates if _judge_validity(path, certificate, findings)]


def read_server_credentials(
    certificate: tuple[str, bytes], private_key: tuple[str, bytes], password: bytes | None, findings: Findings
) -> KeyPair | None:
    """Read a server certificate and its key, each given as (path in the configuration, content)."""
    remedy = "name its password in `private_key_password_file`"
    credentials = _read_credentials(certificate, private_key, password, remedy, findings)
    if credentials is not None and _is_only_for(credentials.chain[0], ExtendedKeyUsageOID.CLIENT_AUTH):
        findings.problem(
            certificate[0],
            "this is a client certificate (its extended key usage has no serverAuth): name the server's own",
        )
        return None
    if credentials is not None and isinstance(credentials.chain[0].public_key(), rsa.RSAPublicKey):
        advice = "an RSA key costs about 0.7 ms of CPU per handshake; an ECDSA P-256 key costs 0.03 ms"
        findings.advise(certificate[0], advice)
    return credentials


def read_client_credentials(
    certificate: tuple[str, bytes], private_key: tuple[str, bytes], findings: Findings
) -> KeyPair | None:
    """Read a certificate to show to a backend and its key, each given as (path in the configuration, content)."""
    credentials = _read_credentials(certificate, private_key, None, "write it without a password", findings)
    if credentials is not None and _is_only_for(credentials.chain[0], ExtendedKeyUsageOID.SERVER_AUTH):
        findings.problem(
            certificate[0], "this is a server certificate (its extended key usage has no clientAuth): name a client's"
        )
        return None
    return credentials


def _read_credentials(
    certificate: tuple[str, bytes],
    private_key: tuple[str, bytes],
    password: bytes | None,
    remedy: str,
    findings: Findings,
) -> KeyPair | None:
    chain = _read_certificates(*certificate, findings)
    key = _read_private_key(*private_key, password, remedy, findings)
    if not chain or key is None:
        return None
    leaf, path = chain[0], certificate[0]
    if not _same_key(leaf, key):
        if any(_same_key(other, key) for other in chain[1:]):
            findings.problem(path, "the certificate of the key must come first in this file, before its chain")
        else:
            findings.problem(private_key[0], "this private key does not belong to the certificate")
        return None
    _judge_validity(path, leaf, findings)
    blocks = [certificate.public_bytes(serialization.Encoding.PEM) for certificate in chain]
    blocks.append(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return KeyPair(b"".join(blocks), chain)


def read_revocation_lists(path: str, pem: bytes, findings: Findings) -> list[x509.CertificateRevocationList]:
    """Read the CRLs of a file named at `path`; an expired one is a problem."""
    blocks = [block.group(0) for block in _BLOCK.finditer(pem) if block.group(1) == b"X509 CRL"]
    if not blocks:
        findings.problem(path, "there is no CRL in this file (PEM blocks that begin `-----BEGIN X509 CRL-----`)")
    lists = [
        crl for block in blocks if (crl := _parse(x509.load_pem_x509_crl, block, path, "CRL", findings)) is not None
    ]
    now = datetime.now(UTC)
    for crl in lists:
        if crl.next_update_utc is not None and crl.next_update_utc <= now:
            findings.expired(path, f"the CRL of {_name(crl.issuer)} expired on {_day(crl.next_update_utc)}: renew it")
    return lists


def is_signed_by(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    """Whether a revocation list is this CA's: by its name, and by its signature."""
    try:
        return crl.issuer == authority.subject and crl.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except UNREADABLE:
        return False


def _read_certificates(path: str, pem: bytes, findings: Findings) -> list[x509.Certificate]:
    blocks = [b.group(0) for b in _BLOCK.finditer(pem) if b.group(1) in (b"CERTIFICATE", b"X509 CERTIFICATE")]
    if not blocks:
        findings.problem(path, _why_no_certificate(pem))
    parsed = (_parse(x509.load_pem_x509_certificate, block, path, "certificate", findings) for block in blocks)
    return [certificate for certificate in parsed if certificate is not None]


def _parse(load: Callable[[bytes], T], block: bytes, path: str, noun: str, findings: Findings) -> T | None:
    try:
        return load(block)
    except UNREADABLE as error:
        findings.problem(path, f"a {noun} in this file cannot be read ({_one_line(error)})")
        return None


def _why_no_certificate(pem: bytes) -> str:
    start = pem[:1024].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "this is an HTML page, not a certificate: download the file again (`curl -f` fails instead of saving one)"
        )
    if b"PRIVATE KEY" in pem:
        return "this file holds a private key but no certificate"
    if pem[:1] == b"\x30":
        return "this is DER, not PEM: convert it with `openssl x509 -inform der -in FILE -out FILE.pem`"
    return "there is no certificate in this file (PEM blocks that begin `-----BEGIN CERTIFICATE-----`)"


def _can_be_authority(path: str, certificate: x509.Certificate, findings: Findings) -> bool:
    known = _NOT_AN_ORIGIN_PULL_CA.get(fingerprint(certificate))
    if known is not None:
        findings.problem(path, known)
        return False
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as missing:
        is_authority, usage = missing.oid != x509.BasicConstraints.oid, True
    except UNREADABLE as error:
        findings.problem(path, f"the extensions of {_name(certificate.subject)} cannot be read ({_one_line(error)})")
        return False
    if not (is_authority and usage):
        findings.problem(
            path,
            f"{_name(certificate.subject)} is not a CA certificate: name the CA that signed the client's certificate"
            " (to accept one leaf only, name its CA here and its SHA-256 under `fingerprints`)",
        )
        return False
    return _judge_validity(path, certificate, findings)


def _judge_validity(path: str, certificate: x509.Certificate, findings: Findings) -> bool:
    now, name = datetime.now(UTC), _name(certificate.subject)
    if certificate.not_valid_after_utc <= now:
        return findings.expired(path, f"{name} expired on {_day(certificate.not_valid_after_utc)}: renew it")
    if certificate.not_valid_before_utc > now:
        findings.problem(
            path, f"{name} is not valid before {_day(certificate.not_valid_before_utc)}: is this machine's clock right?"
        )
        return False
    return True


def _read_private_key(
    path: str, pem: bytes, password: bytes | None, remedy: str, findings: Findings
) -> PrivateKeyTypes | None:
    blocks = [block.group(0) for block in _BLOCK.finditer(pem) if block.group(1).endswith(b"PRIVATE KEY")]
    if not blocks:
        findings.problem(path, "there is no private key in this file (a PEM block that ends in `PRIVATE KEY-----`)")
        return None
    encrypted = b"ENCRYPTED" in blocks[0]
    if encrypted and password is None:
        findings.problem(path, f"this private key is encrypted: {remedy}")
        return None
    digest = hashlib.sha256(blocks[0]).digest()
    is_known = digest in findings.known_keys or digest in findings.sound_keys
    try:
        key = serialization.load_pem_private_key(
            blocks[0], password if encrypted else None, unsafe_skip_rsa_key_validation=is_known
        )
        findings.sound_keys.add(digest)
        return key
    except UNREADABLE as error:
        why = "the password may be wrong" if encrypted else _one_line(error)
        findings.problem(path, f"the private key cannot be read ({why})")
        return None


def _same_key(certificate: x509.Certificate, key: PrivateKeyTypes) -> bool:
    def encode(public: object) -> bytes:
        return public.public_bytes(  # type: ignore[attr-defined,no-any-return]
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    try:
        return encode(certificate.public_key()) == encode(key.public_key())
    except UNREADABLE:
        return False


def _is_only_for(certificate: x509.Certificate, purpose: x509.ObjectIdentifier) -> bool:
    """Whether a certificate names this one of the two purposes, and not the other."""
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return False
    return {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}.intersection(usage) == {purpose}


def _name(name: x509.Name) -> str:
    return repr(name.rfc4514_string())[:200]


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
