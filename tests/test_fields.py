"""Whose a field is, by its name in every spelling; and what the backend is told of a client."""

import base64
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from aop_proxy import fields
from aop_proxy.fields import Introduction, Kind, Secret, learn, may_be_named_away
from aop_proxy.reasons import Reason
from certificates import Authority

TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
OURS = [
    *("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-forwarded-anything"),
    *("forwarded", "client-cert", "client-cert-chain", "x-client-verify", "x-client-subject", "x-client-fingerprint"),
]
FRAMING = ["connection", "content-length", "expect", "host", "transfer-encoding", "upgrade"]
HOP = ["keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer", "http2-settings", "proxy"]


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> x509.Certificate:
    return authority.issue("edge.example").certificate


def introduce(
    *groups: str,
    address: str = "192.0.2.7",
    certificate: x509.Certificate | None = None,
    would_refuse: Reason | None = None,
    host: bytes = b"a.example",
) -> str:
    der = None if certificate is None else certificate.public_bytes(Encoding.DER)
    return Introduction(groups, address, der, would_refuse).lines(host).decode()


@pytest.mark.parametrize("name", OURS + HOP)
@given(data=st.data())
def test_what_is_not_the_clients_to_say_is_removed_in_every_spelling(name: str, data: st.DataObject) -> None:
    """Letters of either case, and anything that some server takes for a hyphen."""
    punctuation = [character for character in TOKEN if not character.isalnum()]
    spelt = "".join(
        data.draw(st.sampled_from(punctuation if letter == "-" else [letter, letter.upper()])) for letter in name
    )
    assert learn(spelt.encode()).kind is Kind.REMOVED


@pytest.mark.parametrize("name", FRAMING)
def test_what_frames_frames_in_one_spelling_only(name: str) -> None:
    """Case is free, as HTTP has it; a disguise is told from the name."""
    assert learn(name.title().encode()).kind is Kind.FRAMES
    if "-" in name:
        for other in "_.~'":
            assert learn(name.replace("-", other).encode()).kind is Kind.DISGUISED


@pytest.mark.parametrize("name", ["Cookie", "X-Forward", "X-Client-Id", "CF-Connecting-IP", "Forwarded-By", "Te-St"])
def test_everything_else_passes(name: str) -> None:
    """A name that only looks like one of ours is not one."""
    assert learn(name.encode()).kind is Kind.PASSES


def test_names_are_remembered_within_bounds() -> None:
    """A client that sends other names for ever fills no memory, and is judged all the same."""
    for number in range(3000):
        assert learn(f"X-{number}".encode()).kind is Kind.PASSES
    assert learn(b"Content_Length").kind is Kind.DISGUISED
    assert fields._judge.cache_info().currsize == 2048


def test_long_names_are_not_remembered() -> None:
    """A head may be all one name, and thousands of those would stay for good."""
    fields._judge.cache_clear()
    assert learn(b"X_Forwarded_" + b"For" * 40_000).kind is Kind.REMOVED
    assert learn(b"X" * 65).kind is Kind.PASSES
    assert fields._judge.cache_info().currsize == 0


@pytest.mark.parametrize("name", ["Cookie", "authorization", "CF-Connecting-IP", "cf_ray", "True-Client-IP"])
def test_what_connection_cannot_name_away(name: str) -> None:
    """What tells who came, or decides what is meant."""
    assert not may_be_named_away(learn(name.encode()))
    assert may_be_named_away(learn(b"X-Own"))


def test_introduction_as_it_comes(certificate: x509.Certificate) -> None:
    """The address, the scheme, the certificate; the Host with each request."""
    der = certificate.public_bytes(Encoding.DER)
    assert introduce("x-forwarded", "x-client", "client-cert", certificate=certificate).split("\r\n") == [
        "X-Forwarded-For: 192.0.2.7",
        "X-Forwarded-Proto: https",
        "X-Client-Verify: SUCCESS",
        "X-Client-Subject: CN=edge.example",
        f"X-Client-Fingerprint: {hashlib.sha256(der).hexdigest()}",
        f"Client-Cert: :{base64.b64encode(der).decode()}:",
        "X-Forwarded-Host: a.example",
        "",
    ]


@pytest.mark.parametrize(("address", "node"), [("192.0.2.7", "192.0.2.7"), ("2001:db8::7", '"[2001:db8::7]"')])
def test_forwarded(address: str, node: str) -> None:
    """RFC 7239, where it is asked for, and nothing else."""
    expected = f'Forwarded: for={node};host="a.example:8443";proto=https\r\n'
    assert introduce("forwarded", address=address, host=b"a.example:8443") == expected
    assert introduce() == ""


@pytest.mark.parametrize(
    ("would_refuse", "word"),
    [(None, "NONE"), (Reason.NO_CERTIFICATE, "NONE"), (Reason.IDENTITY_NOT_ALLOWED, "FAILED:identity_not_allowed")],
)
def test_introduction_of_one_who_is_only_observed(would_refuse: Reason | None, word: str) -> None:
    """Nothing is said of a certificate that was not verified, or is not allowed."""
    told = introduce("x-client", "client-cert", would_refuse=would_refuse)
    assert told == f"X-Client-Verify: {word}\r\n"


def test_a_subject_cannot_end_its_line(authority: Authority) -> None:
    """What a CA has signed may hold anything: it is escaped as RFC 4514 has it, and bounded."""
    odd = authority.issue("a\r\nHost: bé").certificate
    assert "X-Client-Subject: CN=a\\0D\\0AHost: b\\C3\\A9\r\n" in introduce("x-client", certificate=odd)
    assert fields._printable("é" * 10000) == "\\C3\\A9" * 341 + "\\C"


@pytest.mark.parametrize(
    ("offered", "met"),
    [([b"one"], True), ([b"two"], True), ([b"three"], False), ([], False), ([b"one", b"one"], False), ([b""], False)],
)
def test_secret(offered: list[bytes], met: bool) -> None:
    """Once, with one of the right values."""
    assert Secret("X-Secret", [b"one", b"two"]).is_met_by(offered) is met
    assert Secret("X_Secret", []).canonical == b"x-secret"
