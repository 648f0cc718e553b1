"""Certificate and key files: good ones are read in every form that people have, bad ones get a sentence that helps."""

import hashlib
import re
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, rsa, x25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from aop_proxy.credentials import (
    SHARED_CA_FINGERPRINT,
    Findings,
    KeyPair,
    fingerprint,
    read_anchors,
    read_authorities,
    read_client_credentials,
    read_revocation_lists,
    read_server_credentials,
)
from certificates import CLIENT_AUTH, DAY, SERVER_AUTH, Authority, Credentials, KeyType, _der, key_pem

ROOT = Path(__file__).parents[1]
PUBLIC = ROOT / "tests" / "certs_public"
CA = "sites[0].clients.ca[0]"
CERTIFICATE, KEY, CRL = "sites[0].certificate", "sites[0].private_key", "sites[0].clients.crl[0]"
PASSWORD = b"correct horse"


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority("Test CA")


@pytest.fixture(scope="module")
def server(ca: Authority) -> Credentials:
    return ca.issue_server("origin.example")


def day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")


# Authorities


def authorities(pem: bytes) -> tuple[list[x509.Certificate], Findings]:
    findings = Findings()
    return read_authorities(CA, pem, findings), findings


def the_problem(pem: bytes) -> str:
    """What is wrong with a file of CAs, of which nothing else may be said; no certificate of it is used."""
    found, findings = authorities(pem)
    assert (found, findings.advice, [problem.path for problem in findings.problems]) == ([], [], [CA])
    return findings.problems[0].sentence


def test_cloudflares_ca_is_the_one_that_ships() -> None:
    """The file in the package is Cloudflare's current CA, and nothing is wrong with it."""
    found, findings = authorities((ROOT / "aop_proxy" / "certs" / "cloudflare_origin_pull_ca.pem").read_bytes())
    assert [fingerprint(certificate) for certificate in found] == [SHARED_CA_FINGERPRINT]
    assert findings == Findings()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda one, two: one + two,
        lambda one, two: one.rstrip(b"\n") + two,
        lambda one, two: one.replace(b"\n", b"\r\n") + two.replace(b"\n", b"\r\n"),
        lambda one, two: b"\xef\xbb\xbf# first\n" + one + b"\n\n# second, with words between\n" + two + b"\n",
        lambda one, two: one.replace(b"CERTIFICATE", b"X509 CERTIFICATE") + two,
    ],
    ids=["plain", "glued", "crlf", "comments", "old label"],
)
def test_several_cas_in_one_file(ca: Authority, wrap: Callable[[bytes, bytes], bytes]) -> None:
    """All of them are read, also where the first file had no newline at its end."""
    other = Authority("Other CA")
    assert authorities(wrap(ca.pem, other.pem)) == ([ca.certificate, other.certificate], Findings())


def test_an_authority_without_key_usage() -> None:
    """Basic constraints alone make a CA."""
    key, now = Authority().key, datetime.now(UTC)
    name = x509.Name.from_rfc4514_string("CN=Bare CA")
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - DAY, now + 90 * DAY)
    certificate = builder.add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    assert authorities(certificate.public_bytes(Encoding.PEM)) == ([certificate], Findings())


HTML = b"<!DOCTYPE html>\n<html><body>Please sign in.</body></html>\n"


@pytest.mark.parametrize(
    ("specimen", "words"),
    [
        (lambda _: (PUBLIC / "cloudflare_origin_pull_ca_expired_2020.pem").read_bytes(), "old expired 2020 `cloudflare`"),
        (lambda _: (PUBLIC / "cloudflare_origin_ca_ecc_root.pem").read_bytes(), "Origin CA ECC server `cloudflare`"),
        (lambda _: (PUBLIC / "cloudflare_origin_ca_rsa_root.pem").read_bytes(), "Origin CA RSA server `cloudflare`"),
        (lambda _: HTML, "HTML page download again curl"),
        (lambda _: b"  \n<html>" + b" " * 5000, "HTML page download again curl"),
        (lambda _: b'<?xml version="1.0"?><html/>', "HTML page download again curl"),
        (lambda _: b"\n\n", "no certificate PEM BEGIN"),
        (lambda _: b"-----BEGIN CERTIFICATE-----\nMIIB", "no certificate PEM BEGIN"),
        (lambda ca: ca.certificate.public_bytes(Encoding.DER), "DER openssl x509 -inform der"),
        (lambda ca: ca.issue().certificate_pem, "CN=client.example not a CA name `fingerprints`"),
        (lambda ca: ca.issue(is_ca=True).certificate_pem, "CN=client.example not a CA"),
        (lambda ca: ca.issue().private_pem, "private key no certificate"),
        (lambda ca: ca.revoke(), "no certificate PEM BEGIN"),
        (lambda _: b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "certificate cannot be read"),
        (lambda _: b"-----BEGIN CERTIFICATE-----\n<b>\n-----END CERTIFICATE-----\n", "certificate cannot be read"),
        (lambda _: Authority("Old CA", validity=(-2 * DAY, -DAY)).pem, "CN=Old CA expired on renew"),
        (lambda _: Authority("New CA", validity=(DAY, 2 * DAY)).pem, "CN=New CA not valid before clock"),
    ],
)  # fmt: skip
def test_what_is_no_authority(ca: Authority, specimen: Callable[[Authority], bytes], words: str) -> None:
    """What people put there instead is refused, with a sentence that names it and says what to do."""
    sentence = the_problem(specimen(ca))
    assert [word for word in words.split() if word not in sentence] == []
    assert "\n" not in sentence


def test_dates_are_told() -> None:
    """A CA that has ended, or has not begun, is refused with the day."""
    old, new = Authority("Old CA", validity=(-9 * DAY, -3 * DAY)), Authority("New CA", validity=(3 * DAY, 9 * DAY))
    assert day(datetime.now(UTC) - 3 * DAY) in the_problem(old.pem)
    assert day(datetime.now(UTC) + 3 * DAY) in the_problem(new.pem)


def test_extensions_that_cannot_be_read(ca: Authority) -> None:
    """A CA whose extensions nobody can read is refused, not used and not a crash."""
    damaged = ca.certificate.public_bytes(Encoding.DER).replace(b"\x30\x03\x01\x01\xff", b"\x30\x03\x01\x01\x05")
    certificate = x509.load_der_x509_certificate(damaged)
    assert re.search("extensions of 'CN=Test CA' cannot be read", the_problem(certificate.public_bytes(Encoding.PEM)))


def test_a_good_one_among_bad_ones(ca: Authority) -> None:
    """Each bad certificate of a file is a problem of its own; the good ones are found."""
    leaf, old = ca.issue(), Authority("Old CA", validity=(-2 * DAY, -DAY))
    found, findings = authorities(leaf.certificate_pem + ca.pem + old.pem)
    assert found == [ca.certificate]
    assert [problem.path for problem in findings.problems] == [CA, CA]


def test_names_in_sentences_are_printable_and_short() -> None:
    """What somebody wrote into a certificate cannot move the operator's cursor or fill the screen."""
    sentence = the_problem(Authority("\x1b[2J" + "x" * 60, validity=(-2 * DAY, -DAY)).pem)
    assert sentence.isprintable()
    assert len(sentence) < 300


# Server credentials


def credentials(
    certificate: bytes, private_key: bytes, password: bytes | None = None
) -> tuple[KeyPair | None, Findings]:
    findings = Findings()
    return read_server_credentials((CERTIFICATE, certificate), (KEY, private_key), password, findings), findings


def test_a_key_is_looked_at_once(ca: Authority) -> None:
    """An RSA key whose numbers do not fit together is found out, unless one of the same bytes was found sound before."""
    server = ca.issue_server("origin.example", key="rsa2048")
    assert isinstance(server.key, rsa.RSAPrivateKey)
    numbers = server.key.private_numbers()
    crooked = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, numbers.d + 2, numbers.dmp1, numbers.dmq1, numbers.iqmp, numbers.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    pem = key_pem(crooked)
    read, findings = credentials(server.certificate_pem, pem)
    assert (read, len(findings.problems), findings.sound_keys) == (None, 1, set())
    assert "the private key cannot be read" in str(findings.problems[0])
    known = Findings(known_keys=frozenset({hashlib.sha256(pem.strip()).digest()}))
    assert read_server_credentials((CERTIFICATE, server.certificate_pem), (KEY, pem), None, known)
    assert known.sound_keys == known.known_keys


def openssl_loads(one: KeyPair, path: Path) -> bool:
    path.write_bytes(one.pem)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)
    return True


def the_server_problem(certificate: bytes, private_key: bytes, password: bytes | None = None) -> tuple[str, str]:
    """Where the only problem is, and what it says."""
    found, findings = credentials(certificate, private_key, password)
    assert found is None
    (problem,) = findings.problems
    return problem.path, problem.sentence


@pytest.mark.parametrize("key", ["p256", "p384", "ed25519"])
def test_a_good_pair(ca: Authority, key: KeyType, tmp_path: Path) -> None:
    """It becomes one PEM that OpenSSL loads, and there is nothing to say about it."""
    server = ca.issue_server("origin.example", key=key)
    found, findings = credentials(server.certificate_pem, server.private_pem)
    assert found is not None
    assert openssl_loads(found, tmp_path / "pem")
    assert (found.chain, findings) == ([server.certificate], Findings())


# Towards backends


def test_anchors_may_be_of_any_kind(ca: Authority, server: Credentials) -> None:
    """A CA, Cloudflare's for origins too, or the backend's own certificate."""
    origin_ca = (PUBLIC / "cloudflare_origin_ca_ecc_root.pem").read_bytes()
    findings = Findings()
    read = read_anchors(CA, ca.pem + server.certificate_pem + origin_ca, findings)
    assert ([ca.certificate, server.certificate], findings.problems) == (read[:2], [])
    assert 3 == len(read)


def test_an_anchor_that_has_expired() -> None:
    """It would refuse every backend, and is a problem at the start."""
    findings = Findings()
    assert [] == read_anchors(CA, Authority("Old CA", validity=(-2 * DAY, -DAY)).pem, findings)
    assert ["expired" in problem.sentence for problem in findings.problems] == [True]


def client_credentials(certificate: bytes, private_key: bytes) -> tuple[KeyPair | None, list[str]]:
    findings = Findings()
    read = read_client_credentials((CERTIFICATE, certificate), (KEY, private_key), findings)
    return read, [f"{problem.path}: {problem.sentence}" for problem in findings.problems]


@pytest.mark.parametrize("purposes", [[], [CLIENT_AUTH], [SERVER_AUTH, CLIENT_AUTH]])
def test_what_may_be_shown_to_backends(ca: Authority, purposes: list[x509.ObjectIdentifier]) -> None:
    """Whatever is not for servers alone."""
    client = ca.issue("proxy.example", purposes=purposes)
    read, problems = client_credentials(client.certificate_pem, client.private_pem)
    assert (read is not None, problems) == (True, [])


def test_what_may_not_be_shown_to_backends(ca: Authority, server: Credentials) -> None:
    """A server's certificate, and one whose key is locked, since there is no place for its password."""
    read, problems = client_credentials(server.certificate_pem, server.private_pem)
    assert (read, len(problems)) == (None, 1)
    assert problems[0].startswith(f"{CERTIFICATE}: this is a server certificate")
    client = ca.issue("proxy.example")
    assert client.key is not None
    read, problems = client_credentials(client.certificate_pem, key_pem(client.key, PASSWORD))
    assert (read, problems) == (None, [f"{KEY}: this private key is encrypted: write it without a password"])


def test_an_rsa_key_is_dear(ca: Authority) -> None:
    """An RSA key is accepted, with advice."""
    server = ca.issue_server("origin.example", key="rsa2048")
    found, findings = credentials(server.certificate_pem, server.private_pem)
    assert found is not None
    assert findings.problems == []
    assert [(one.path, "ECDSA" in one.sentence) for one in findings.advice] == [(CERTIFICATE, True)]


def test_a_chain_stays_in_order(ca: Authority, tmp_path: Path) -> None:
    """The leaf, then its chain, then the key, also from files without newlines at their ends."""
    server = ca.intermediate().issue_server("origin.example")
    glued = server.certificate_pem.replace(b"-----\n-----", b"----------")
    found, findings = credentials(glued.rstrip(b"\n"), server.private_pem)
    assert found is not None
    assert findings == Findings()
    assert x509.load_pem_x509_certificates(found.pem) == [server.certificate, *server.chain]
    assert openssl_loads(found, tmp_path / "pem")


@pytest.mark.parametrize("key_first", [True, False])
def test_the_key_in_the_certificate_file(server: Credentials, tmp_path: Path, key_first: bool) -> None:
    """One file may hold both, in either order."""
    parts = [server.private_pem, server.certificate_pem]
    both = b"".join(parts if key_first else reversed(parts))
    found, findings = credentials(both, both)
    assert found is not None
    assert findings == Findings()
    assert openssl_loads(found, tmp_path / "pem")


def encrypted(server: Credentials, form: PrivateFormat) -> bytes:
    assert server.key is not None
    return server.key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(PASSWORD))


FORMATS = pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL], ids=["new", "old"])


@FORMATS
def test_an_encrypted_key(server: Credentials, form: PrivateFormat, tmp_path: Path) -> None:
    """With its password it is loaded, and OpenSSL is given it without one."""
    found, findings = credentials(server.certificate_pem, encrypted(server, form), PASSWORD)
    assert found is not None
    assert findings == Findings()
    assert openssl_loads(found, tmp_path / "pem")


@FORMATS
def test_an_encrypted_key_without_its_password(server: Credentials, form: PrivateFormat) -> None:
    """The sentence names the key that takes the password; a wrong one is told as such, and printed nowhere."""
    path, sentence = the_server_problem(server.certificate_pem, encrypted(server, form))
    assert (path, "`private_key_password_file`" in sentence) == (KEY, True)
    path, sentence = the_server_problem(server.certificate_pem, encrypted(server, form), b"wrong")
    assert (path, sentence) == (KEY, "the private key cannot be read (the password may be wrong)")


def test_a_password_that_is_not_needed(server: Credentials) -> None:
    """A key in clear is loaded all the same."""
    assert credentials(server.certificate_pem, server.private_pem, PASSWORD)[1] == Findings()


def test_a_traditional_key(server: Credentials, tmp_path: Path) -> None:
    """`BEGIN EC PRIVATE KEY` with its parameters before it, as openssl writes it, is a key too."""
    assert server.key is not None
    traditional = server.key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    found, findings = credentials(server.certificate_pem, parameters + traditional)
    assert found is not None
    assert findings == Findings()
    assert openssl_loads(found, tmp_path / "pem")


def other_key() -> bytes:
    return x25519.X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("make", "path", "words"),
    [
        (lambda ca, s: (s.certificate_pem, ca.issue().private_pem), KEY, "does not belong to the certificate"),
        (lambda _, s: (s.certificate_pem, other_key()), KEY, "does not belong to the certificate"),
        (lambda ca, s: (ca.pem + s.certificate_pem, s.private_pem), CERTIFICATE, "must come first"),
        (lambda _, s: (s.certificate_pem, s.certificate_pem), KEY, "no private key PRIVATE KEY"),
        (lambda _, s: (s.certificate_pem, b"\n"), KEY, "no private key PRIVATE KEY"),
        (lambda _, s: (s.private_pem, s.private_pem), CERTIFICATE, "private key but no certificate"),
        (lambda _, s: (HTML, s.private_pem), CERTIFICATE, "HTML page download"),
        (lambda _, s: (s.certificate_pem, s.private_pem.replace(b"\nM", b"\nX")), KEY, "private key cannot be read"),
        (
            lambda ca, _: ((c := ca.issue()).certificate_pem, c.private_pem),
            CERTIFICATE,
            "client certificate serverAuth server's own",
        ),
    ],
)
def test_what_is_no_server_certificate(
    ca: Authority,
    server: Credentials,
    make: Callable[[Authority, Credentials], tuple[bytes, bytes]],
    path: str,
    words: str,
) -> None:
    """Each mistake is named at the key of the configuration where it can be mended."""
    where, sentence = the_server_problem(*make(ca, server))
    assert where == path
    assert [word for word in words.split() if word not in sentence] == []


def test_a_key_that_no_tls_can_use(server: Credentials) -> None:
    """A DSA key is readable and fits nothing."""
    key = dsa.generate_private_key(1024).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert the_server_problem(server.certificate_pem, key) == (
        KEY,
        "this private key does not belong to the certificate",
    )


def test_a_public_key_of_unknown_kind(server: Credentials) -> None:
    """A certificate whose key nobody knows belongs to no private key."""
    damaged = server.certificate.public_bytes(Encoding.DER).replace(
        bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d0255")
    )
    pem = x509.load_der_x509_certificate(damaged).public_bytes(Encoding.PEM)
    assert the_server_problem(pem, server.private_pem)[0] == KEY


@pytest.mark.parametrize(
    "purposes", [[], [SERVER_AUTH], [SERVER_AUTH, CLIENT_AUTH], [ExtendedKeyUsageOID.OCSP_SIGNING]]
)
def test_purposes_that_a_server_may_have(ca: Authority, purposes: list[x509.ObjectIdentifier]) -> None:
    """Only what is plainly for clients is refused."""
    one = ca.issue("origin.example", purposes=purposes)
    assert credentials(one.certificate_pem, one.private_pem)[0] is not None


@pytest.mark.parametrize(
    ("validity", "words"), [((-2 * DAY, -DAY), "expired on"), ((DAY, 2 * DAY), "not valid before clock")]
)
def test_a_server_certificate_out_of_time(ca: Authority, validity: tuple[timedelta, timedelta], words: str) -> None:
    """It is a problem, with the day."""
    server = ca.issue_server("origin.example", validity=validity)
    findings = credentials(server.certificate_pem, server.private_pem)[1]
    (problem,) = findings.problems
    assert problem.path == CERTIFICATE
    assert [word for word in words.split() if word not in problem.sentence] == []


def test_secrets_do_not_show(server: Credentials) -> None:
    """Neither the key nor the password stands in what may be printed."""
    found, _ = credentials(server.certificate_pem, server.private_pem)
    assert found is not None
    assert "PRIVATE" not in repr(found)
    damaged = encrypted(server, PrivateFormat.PKCS8)
    assert PASSWORD.decode() not in str(credentials(server.certificate_pem, damaged[:-60], PASSWORD)[1])


def test_every_problem_at_once() -> None:
    """A certificate and a key that are both wrong are two problems."""
    assert [problem.path for problem in credentials(HTML, HTML)[1].problems] == [CERTIFICATE, KEY]


# Revocation lists


def revocation_lists(pem: bytes) -> tuple[list[x509.CertificateRevocationList], Findings]:
    findings = Findings()
    return read_revocation_lists(CRL, pem, findings), findings


def test_several_lists_in_one_file(ca: Authority) -> None:
    """All of them are read, glued or not."""
    one, two = ca.revoke(ca.issue(), ca.issue()), Authority("Other CA").revoke(ca.issue())
    found, findings = revocation_lists(one.rstrip(b"\n") + two)
    assert [crl.issuer.rfc4514_string() for crl in found] == ["CN=Test CA", "CN=Other CA"]
    assert [len(crl) for crl in found] == [2, 1]
    assert findings == Findings()


def test_an_empty_list(ca: Authority) -> None:
    """A CA that has revoked nobody yet has a CRL all the same."""
    found, findings = revocation_lists(ca.revoke())
    assert [crl.issuer.rfc4514_string() for crl in found] == ["CN=Test CA"]
    assert findings == Findings()


def test_a_list_that_never_ends(ca: Authority) -> None:
    """A CRL without a next update, which RFC 5280 forbids and OpenSSL takes, is taken as it is."""
    algorithm = _der(0x30, bytes.fromhex("06082a8648ce3d040302"))
    begins = _der(0x17, b"200101000000Z")
    revoked = _der(0x30, _der(0x30, _der(0x02, b"\x01"), begins))
    signed = _der(0x30, _der(0x02, b"\x01"), algorithm, ca.certificate.subject.public_bytes(), begins, revoked)
    crl = x509.load_der_x509_crl(_der(0x30, signed, algorithm, _der(0x03, b"\0")))
    found, findings = revocation_lists(crl.public_bytes(Encoding.PEM))
    assert [one.next_update_utc for one in found] == [None]
    assert findings == Findings()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda ca: ca.revoke(ca.issue(), validity=(-9 * DAY, -DAY)), "CRL of 'CN=Test CA' expired on renew"),
        (lambda ca: ca.pem, "no CRL BEGIN X509 CRL"),
        (lambda _: b"\n", "no CRL BEGIN X509 CRL"),
        (lambda _: b"-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n", "a CRL cannot be read"),
    ],
)
def test_what_is_no_revocation_list(ca: Authority, make: Callable[[Authority], bytes], words: str) -> None:
    """What cannot be used is a problem: a site whose CRL has ended would refuse everybody."""
    findings = revocation_lists(make(ca))[1]
    (problem,) = findings.problems
    assert problem.path == CRL
    assert [word for word in words.split() if word not in problem.sentence] == []
