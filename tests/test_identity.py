"""Reading certificates: what good ones say, and that nothing a client sends does more than be unreadable."""

import datetime as dt
import hashlib
import random
import warnings
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from aop_proxy.identity import Identity, UnreadableCertificate, parse_identity, read_identity
from certificates import QUARTER, Authority, make_key

CERTS = [*(Path(__file__).parent / "certs_public").glob("*.pem"), *(Path(__file__).parents[1] / "certs").glob("*.pem")]


def build(
    subject: "list[x509.NameAttribute[str]] | None" = None, extensions: list[x509.ExtensionType] | None = None
) -> x509.Certificate:
    """A self-signed certificate with any subject and any extensions."""
    key, now = make_key(), dt.datetime.now(dt.UTC)
    name = x509.Name(subject if subject is not None else [x509.NameAttribute(NameOID.COMMON_NAME, "client.example")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 4711, now + QUARTER[0], now + QUARTER[1])
    for extension in extensions or []:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256())


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


@cache
def good() -> bytes:
    """One certificate with everything that is read."""
    names, uris = ["a.example", "*.b.example"], ["spiffe://x/y"]
    return der(Authority().issue("client.example", names=names, uris=uris).certificate)


def test_a_certificate_says_who_holds_it() -> None:
    """Names, URIs, issuer, dates and fingerprint are read as they stand, addresses left out."""
    names, uris = ["A.example", "192.0.2.1", "*.b.example"], ["spiffe://x/Y", "https://c.example/"]
    credentials = Authority("Some CA").issue("client.example", names=names, uris=uris)
    certificate = credentials.certificate
    expected = Identity(
        subject="CN=client.example",
        issuer="CN=Some CA",
        common_names=("client.example",),
        dns_names=("A.example", "*.b.example"),
        uris=("spiffe://x/Y", "https://c.example/"),
        fingerprint=hashlib.sha256(der(certificate)).hexdigest(),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )
    assert expected == read_identity(der(certificate))
    assert credentials.fingerprint == expected.fingerprint


@pytest.mark.parametrize("path", CERTS, ids=lambda path: path.stem)
def test_public_certificates_are_read(path: Path) -> None:
    """Cloudflare's own certificates are readable."""
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    identity = read_identity(der(certificate))
    assert (certificate.subject.rfc4514_string(), certificate.not_valid_after_utc) == (
        identity.subject,
        identity.not_after,
    )


def test_an_empty_subject_and_no_alternative_names() -> None:
    """A certificate that names nobody is an identity without names."""
    identity = read_identity(der(build(subject=[])))
    assert (identity.subject, identity.common_names, identity.dns_names, identity.uris) == ("", (), (), ())


def test_several_common_names() -> None:
    """Each of them counts, in order."""
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, name) for name in ("first.example", "second.example")]
    assert read_identity(der(build(subject))).common_names == ("first.example", "second.example")


def test_thousands_of_names() -> None:
    """A huge certificate is read as any other."""
    names = [f"{number}.example" for number in range(5000)]
    certificate = build(extensions=[x509.SubjectAlternativeName(map(x509.DNSName, names))])
    assert tuple(names) == read_identity(der(certificate)).dns_names


@pytest.mark.parametrize(
    "certificate",
    [
        build([x509.NameAttribute(NameOID.COMMON_NAME, "good.example\0.evil")]),
        build([x509.NameAttribute(NameOID.COMMON_NAME, "good.example\0", _ASN1Type.BMPString)]),
        build(extensions=[x509.SubjectAlternativeName([x509.DNSName("good.example\0.evil")])]),
        build(extensions=[x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://good\0evil")])]),
    ],
    ids=["cn", "cn in UTF-16", "dns", "uri"],
)
def test_a_nul_makes_a_name_unreadable(certificate: x509.Certificate) -> None:
    """Programs disagree on where a name with a NUL ends, so it names nobody."""
    with pytest.raises(UnreadableCertificate, match="NUL"):
        read_identity(der(certificate))


def replaced(old: bytes, new: bytes) -> bytes:
    """`good` with some bytes exchanged; its signature is nobody's business here."""
    assert old in good()
    assert len(old) == len(new)
    return good().replace(old, new)


def with_one_extension_twice() -> bytes:
    """Two extensions with the identifier of the alternative names."""
    both = build(
        extensions=[
            x509.SubjectAlternativeName([x509.DNSName("a.example")]),
            x509.IssuerAlternativeName([x509.DNSName("b.example")]),
        ]
    )
    return der(both).replace(b"\x55\x1d\x12", b"\x55\x1d\x11")


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x30\x80", id="indefinite length"),
        pytest.param(good()[:-1], id="cut"),
        pytest.param(good() + b"\0", id="trailing byte"),
        pytest.param(b"\x30\x84\xff\xff\xff\xff" + good()[4:], id="length of four gigabytes"),
        pytest.param(replaced(b"client.example", b"client\xffexample"), id="common name is no UTF-8"),
        pytest.param(replaced(b"\x82\x09a.example", b"\x82\x09\xe4.example"), id="DNS name is no IA5"),
        pytest.param(replaced(b"spiffe://x/y", b"spiffe://x/\xff"), id="URI is no IA5"),
        pytest.param(replaced(b"\x82\x09a.example", b"\x89\x09a.example"), id="general name of unknown type"),
        pytest.param(with_one_extension_twice(), id="extension twice"),
    ],
)
def test_what_cannot_be_read(wrong: bytes) -> None:
    """Wrong DER, wrong strings and doubled extensions are unreadable certificates."""
    with pytest.raises(UnreadableCertificate):
        read_identity(wrong)


def is_read_or_not(data: bytes) -> None:
    try:
        identity = parse_identity(data)
    except UnreadableCertificate:
        return
    assert hashlib.sha256(data).hexdigest() == identity.fingerprint
    names = [*identity.common_names, *identity.dns_names, *identity.uris]
    assert [name for name in names if "\0" in name] == []


@given(st.binary(max_size=300))
@example(b"\x30\x03\x02\x01\x00")
def test_any_bytes(data: bytes) -> None:
    """Whatever bytes a client sends, they are an identity or unreadable, and nothing else happens."""
    is_read_or_not(data)


@given(st.integers(0, 2**32 - 1))
def test_any_damage_to_a_good_certificate(seed: int) -> None:
    """A good certificate with any few bytes changed, left out or doubled is an identity or unreadable."""
    chance, damaged = random.Random(seed), bytearray(good())
    for _ in range(chance.randrange(1, 6)):
        place = chance.randrange(len(damaged))
        damaged[place : place + chance.randrange(2)] = chance.choice(
            [b"", bytes([chance.randrange(256)]), bytes([chance.choice([2, 3, 12, 19, 22, 30, 48, 0x80, 0xFF])])]
        )
    is_read_or_not(bytes(damaged))


@pytest.mark.parametrize(
    "certificate",
    [
        pytest.param(der(build()).replace(b"\x55\x04\x03", b"\x55\x04\x06"), id="country of more than two letters"),
        pytest.param(der(build()).replace(b"\x02\x02\x12\x67", b"\x02\x02\xff\x67"), id="negative serial number"),
    ],
)
def test_an_odd_certificate_makes_no_noise(certificate: bytes) -> None:
    """What a stranger's certificate holds makes no warning: those would be lines on stderr that are no log lines."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parse_identity(certificate)
    assert [str(warning.message) for warning in caught] == []


def test_readings_are_remembered_by_the_bytes() -> None:
    """The same leaf is read once, and only so many are remembered; parsing remembers nothing."""
    data = der(build())
    assert read_identity(data) is read_identity(bytes(bytearray(data)))
    assert parse_identity(data) == read_identity(data)
    assert parse_identity(data) is not parse_identity(data)
    maximum = read_identity.cache_info().maxsize
    assert maximum is not None
    assert maximum <= 1024
