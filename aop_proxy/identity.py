"""Certificate DER -> what the certificate says about its holder.

In: DER bytes, as a client showed them. Out: an `Identity`, or `UnreadableCertificate`. Must not know what is allowed.
Reading one costs about 0.1 ms, and an edge shows the same few leaves for months, so readings are remembered by the
exact bytes. Validity is not judged here: OpenSSL judges it, anew at every handshake.
"""

import functools
import hashlib
import warnings
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for certificates that OpenSSL may still have parsed."""


class UnreadableCertificate(ValueError):
    """The certificate's names cannot be read, or not in one way only (a NUL byte inside a name)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a certificate says. Nothing here is verified by being here."""

    subject: str
    issuer: str
    common_names: tuple[str, ...]
    dns_names: tuple[str, ...]
    uris: tuple[str, ...]
    fingerprint: str
    """SHA-256 of the DER, 64 lower-case hexadecimal digits."""
    not_before: datetime
    not_after: datetime


def parse_identity(der: bytes) -> Identity:
    """Read a certificate. Raises UnreadableCertificate, and nothing else, for whatever bytes a client sends."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stranger's odd certificate is not to write on our stderr
            return _parse(der)
    except UNREADABLE as error:
        raise UnreadableCertificate(str(error)) from error


read_identity = functools.lru_cache(maxsize=128)(parse_identity)
"""The same, remembered: for certificates that were verified, which are few. Strangers' would only fill the memory."""


def _parse(der: bytes) -> Identity:
    certificate = x509.load_der_x509_certificate(der)
    identity = Identity(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        common_names=tuple(
            str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        ),
        dns_names=_alternative_names(certificate, x509.DNSName),
        uris=_alternative_names(certificate, x509.UniformResourceIdentifier),
        fingerprint=hashlib.sha256(der).hexdigest(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )
    if any("\0" in name for name in (*identity.common_names, *identity.dns_names, *identity.uris)):
        raise UnreadableCertificate("a name holds a NUL byte")
    return identity


def _alternative_names(
    certificate: x509.Certificate, kind: type[x509.DNSName] | type[x509.UniformResourceIdentifier]
) -> tuple[str, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(extension.value.get_values_for_type(kind))
