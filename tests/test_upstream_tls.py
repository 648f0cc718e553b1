"""Contexts towards backends verify, and a session says in OpenSSL's words why it would not go on."""

import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from aop_proxy import upstream_tls
from aop_proxy.model import Upstream, UpstreamTls
from aop_proxy.upstream_tls import Backend, UpstreamSession, upstream_context, why_failed
from certificates import CLIENT_AUTH, DAY, Authority, CredentialFiles, Credentials
from tls_backend import backend_context


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority("Backend CA")


def to_backend(ca: Authority, *, tls: UpstreamTls | None = None, key_pair: bytes | None = None) -> Backend:
    contexts = {word: upstream_context(ca.pem, key_pair, word) for word in ("http/1.1", "h2")}
    return Backend(Upstream("https://app:443", "app", 443, tls=tls or UpstreamTls()), contexts)


def meet(session: UpstreamSession, context: ssl.SSLContext) -> ssl.SSLObject:
    """Have a session shake hands with a backend, in memory; raises what the session raises."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    received = b""
    while not session.handshake(received):
        incoming.write(session.take_output())
        with contextlib.suppress(ssl.SSLWantReadError):
            server.do_handshake()
        received = outgoing.read()
    incoming.write(session.take_output())
    with contextlib.suppress(ssl.SSLWantReadError):
        server.do_handshake()
    return server


def failure(session: UpstreamSession, context: ssl.SSLContext) -> str:
    with pytest.raises(ssl.SSLError) as caught:
        meet(session, context)
    return why_failed(caught.value)


def files_of(credentials: Credentials, directory: Path) -> CredentialFiles:
    return credentials.write(directory, "backend")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_good_backend(ca: Authority, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """Chain and name are right, in TLS 1.2 and 1.3."""
    context = backend_context(files_of(ca.issue_server("a.example"), tmp_path), version=version)
    meet(UpstreamSession(to_backend(ca), "a.example", None), context)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: Authority("Backend CA").issue_server("a.example"), "unable to get local issuer certificate"),
        (lambda _: Authority("Other CA").issue_server("a.example"), "unable to get local issuer certificate"),
        (lambda ca: ca.issue_server("b.example"), "Hostname mismatch, certificate is not valid for 'a.example'."),
        (lambda ca: ca.issue("a.example", purposes=()), "Hostname mismatch, certificate is not valid for 'a.example'."),
        (lambda ca: ca.issue_server("a.example", validity=(-2 * DAY, -DAY)), "certificate has expired"),
        (
            lambda ca: ca.issue("a.example", purposes=(CLIENT_AUTH,), names=["a.example"]),
            "unsuitable certificate purpose",
        ),
        (
            lambda ca: ca.issue("a.example", purposes=(), names=["a.example"], self_signed=True),
            "self-signed certificate",
        ),
    ],
    ids=["forged CA", "other CA", "other name", "name only in CN", "expired", "client's certificate", "self-signed"],
)
def test_a_bad_backend(ca: Authority, tmp_path: Path, make: Callable[[Authority], Credentials], words: str) -> None:
    """Each is refused, and why."""
    context = backend_context(files_of(make(ca), tmp_path))
    assert words == failure(UpstreamSession(to_backend(ca), "a.example", None), context)


def test_the_backends_own_certificate_may_be_named(tmp_path: Path) -> None:
    """A self-signed one is trusted when it is the anchor; for its own name alone."""
    credentials = Authority().issue("a.example", purposes=(), names=["a.example"], self_signed=True)
    context = backend_context(files_of(credentials, tmp_path))
    contexts = {"http/1.1": upstream_context(credentials.certificate_pem, None, "http/1.1")}
    backend = Backend(Upstream("https://app:443", "app", 443, tls=UpstreamTls()), contexts)
    meet(UpstreamSession(backend, "a.example", None), context)
    assert "Hostname mismatch" in failure(UpstreamSession(backend, "b.example", None), context)


@pytest.mark.parametrize(
    ("configured", "asked", "expected"),
    [(None, "a.example", "a.example"), (None, None, "app"), ("b.example", "a.example", "b.example")],
)
def test_whom_a_backend_must_be(ca: Authority, configured: str | None, asked: str | None, expected: str) -> None:
    """The name that is configured, else the one the client asked for, else the URL's host: in SNI, and verified."""
    session = UpstreamSession(to_backend(ca, tls=UpstreamTls(server_name=configured)), asked, None)
    assert expected == session.server_name
    session.handshake(b"")
    assert expected.encode() in session.take_output()


@pytest.mark.parametrize(
    ("agreed", "offered"), [("h2", b"\x02h2"), ("http/1.1", b"\x08http/1.1"), (None, b"\x08http/1.1")]
)
def test_what_was_agreed_with_the_client_is_offered(ca: Authority, agreed: str | None, offered: bytes) -> None:
    """And nothing else: the bytes that follow speak it already."""
    session = UpstreamSession(to_backend(ca), None, agreed)
    session.handshake(b"")
    hello = session.take_output()
    assert offered in hello
    assert hello.count(b"h2") + hello.count(b"http/1.1") == 1


def test_a_backend_without_h2(ca: Authority, tmp_path: Path) -> None:
    """A client that speaks h2 is not connected to it."""
    context = backend_context(files_of(ca.issue_server("app"), tmp_path))
    assert "does not speak h2" in failure(UpstreamSession(to_backend(ca), None, "h2"), context)
    context.set_alpn_protocols(["h2"])
    meet(UpstreamSession(to_backend(ca), None, "h2"), context)


def test_a_certificate_of_ours_is_shown(ca: Authority, authority: Authority, client_ca: Path, tmp_path: Path) -> None:
    """To a backend that demands one."""
    context = backend_context(files_of(ca.issue_server("app"), tmp_path), client_ca=client_ca)
    ours = authority.issue("proxy.example")
    server = meet(
        UpstreamSession(to_backend(ca, key_pair=ours.certificate_pem + ours.private_pem), None, None), context
    )
    assert server.getpeercert(True) == ssl.PEM_cert_to_DER_cert(ours.certificate_pem.decode())


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("check_hostname", False),
        ("minimum_version", ssl.TLSVersion.TLSv1_1),
        ("options", ssl.OP_ALL),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_context_that_was_opened_is_not_used(ca: Authority, attribute: str, value: object) -> None:
    """Whatever a later change of this program loosens is noticed where the context is made."""
    context = upstream_context(ca.pem, None, "http/1.1")
    setattr(context, attribute, value)
    with pytest.raises(RuntimeError):
        upstream_tls._assert_verifying(context)


def test_an_empty_store_is_not_used(ca: Authority) -> None:
    """A file without a certificate trusts nobody, and says so when it is loaded."""
    with pytest.raises((ssl.SSLError, RuntimeError)):
        upstream_context(b"no certificate", None, "http/1.1")
