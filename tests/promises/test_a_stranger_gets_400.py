"""A stranger gets `400 Bad Request` in words, and nothing of theirs reaches the backend.

Every kind of refused certificate is shown by a client that believes its handshake done and sends its request in one
segment with its Finished. The client must read a whole page that names the case as NGINX does and ends in order; the
backend must have seen no connection; the log must hold one record with our word for the reason. What cannot be seen
here: that OpenSSL and no code of ours refused (the tests of `tls.py` look at that).
"""

import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import (
    GET_AND_CLOSE,
    HELLO,
    ONE_WORKER,
    Answer,
    Event,
    Proxy,
    RecordingBackend,
    TlsClient,
    ask,
    client_context,
)
from certificates import ACCEPTED, DAY, REFUSED, Authority, CredentialFiles, Credentials

NO_CERTIFICATE = "No required SSL certificate was sent"
CERTIFICATE_ERROR = "The SSL certificate error"

REASONS = {
    "self_signed": "self_signed",
    "unknown_ca": "unknown_ca",
    "same_name_other_ca": "unknown_ca",
    "expired": "expired",
    "not_yet_valid": "not_yet_valid",
    "wrong_purpose": "wrong_purpose",
    "wrong_key_usage": "wrong_purpose",
    "ca_as_leaf": "wrong_purpose",
    "broken_chain": "unknown_ca",
    "leaf_as_ca": "bad_certificate",
    "unknown_critical_extension": "bad_certificate",
    "path_too_long": "bad_certificate",
    "rsa_1024": "weak_certificate",
    "sha1": "weak_certificate",
    "stolen": "bad_signature",
}


def show(proxy: Proxy, credentials: CredentialFiles | None, request: bytes = GET_AND_CLOSE) -> tuple[Answer, Event]:
    """What one client with these credentials is told, and its record; the request travels with the Finished."""
    with TlsClient(proxy.address, client_context(credentials)) as client:
        client.handshake(with_data=request)
        answer, port = client.receive_all(), client.port
    # With the record the proxy is done with the connection: what the backend has not seen by now it will not see.
    return answer, proxy.connection_record(port)


def assert_refused(answer: Answer, sentence: str, backend: RecordingBackend) -> None:
    """A whole page that says this sentence, ended in order, and a backend that has seen nothing."""
    assert answer.status == 400
    assert f"<center>{sentence}</center>" in answer.body
    head = answer.data.partition(b"\r\n\r\n")[0].lower()
    assert b"\r\ncontent-length: %d\r\n" % len(answer.body) in head
    assert b"\r\nconnection: close" in head
    assert (answer.ending, answer.tcp_end) == ("close_notify", "fin")
    assert backend.connections == []


def test_every_specimen_has_a_reason() -> None:
    """No refused specimen is left out below."""
    assert REASONS.keys() == REFUSED.keys()


def test_without_a_certificate(proxy: Proxy, backend: RecordingBackend) -> None:
    """A client without a certificate reads the page for that, though its request came with its Finished."""
    answer, record = show(proxy, None)
    assert_refused(answer, NO_CERTIFICATE, backend)
    assert (record["verdict"], record["reason"]) == ("refused", "no_certificate")
    assert record["tls_version"] == "TLSv1.3"


def test_without_a_word(proxy: Proxy, backend: RecordingBackend) -> None:
    """A client without a certificate that sends no request gets the page all the same."""
    answer, _ = show(proxy, None, b"")
    assert_refused(answer, NO_CERTIFICATE, backend)


def test_the_page_answers_the_request(proxy: Proxy, backend: RecordingBackend) -> None:
    """The page does not come before the request: Go's client and Chromium take an answer to nothing for a failure."""
    with TlsClient(proxy.address, client_context()) as stranger:
        stranger.handshake()
        assert select.select([stranger.sock], [], [], 0.05) == ([], [], [])
        stranger.send(GET_AND_CLOSE)
        assert_refused(stranger.receive_all(), NO_CERTIFICATE, backend)


@pytest.mark.parametrize("specimen", REFUSED)
def test_with_a_certificate_that_fails(
    specimen: str, proxy: Proxy, backend: RecordingBackend, authority: Authority, tmp_path: Path
) -> None:
    """A client with a certificate that fails reads the page for that, and the log has the reason."""
    files = REFUSED[specimen](authority).write(tmp_path, specimen)
    answer, record = show(proxy, files)
    assert_refused(answer, CERTIFICATE_ERROR, backend)
    assert (record["verdict"], record["reason"]) == ("refused", REASONS[specimen])
    assert record["reference"] in answer.body


def test_the_log_names_who_was_refused(
    proxy: Proxy, backend: RecordingBackend, authority: Authority, tmp_path: Path
) -> None:
    """The record of a refused client has what its certificate claims, as a claim."""
    specimen = authority.issue("latecomer.example", validity=(-2 * DAY, -DAY))
    answer, record = show(proxy, specimen.write(tmp_path, "expired"))
    assert_refused(answer, CERTIFICATE_ERROR, backend)
    assert "latecomer.example" in record["subject"]
    assert "Test Client CA" in record["issuer"]
    assert record["fingerprint"] == specimen.fingerprint


def test_the_page_says_nothing_of_the_client(
    proxy: Proxy, backend: RecordingBackend, authority: Authority, tmp_path: Path
) -> None:
    """Pages echo neither the request nor the certificate, and differ in the reference alone."""
    files = authority.issue("<script>alert(1)</script>", validity=(-2 * DAY, -DAY)).write(tmp_path, "script")
    request = b"GET /<script>alert(2)</script> HTTP/1.1\r\nHost: <script>alert(3)</script>\r\n\r\n"
    pages = []
    for shown, asked in ((files, request), (REFUSED["self_signed"](authority).write(tmp_path, "self"), GET_AND_CLOSE)):
        answer, record = show(proxy, shown, asked)
        assert_refused(answer, CERTIFICATE_ERROR, backend)
        pages.append(answer.data.decode().replace(record["reference"], "REFERENCE"))
    assert pages[0] == pages[1]


def test_a_name_with_a_nul(proxy: Proxy, backend: RecordingBackend, authority: Authority, tmp_path: Path) -> None:
    """A certificate of the right CA whose name can be read in two ways is refused too, though OpenSSL takes it."""
    answer, record = show(proxy, authority.issue("good.example\0.evil.example").write(tmp_path, "nul"))
    assert_refused(answer, CERTIFICATE_ERROR, backend)
    assert record["reason"] == "bad_certificate"


def test_many_requests_at_once(proxy: Proxy, backend: RecordingBackend) -> None:
    """A hundred pipelined requests of a stranger are one refusal, and the page arrives whole."""
    answer, _ = show(proxy, None, GET_AND_CLOSE * 100)
    assert_refused(answer, NO_CERTIFICATE, backend)
    assert answer.data.count(b"HTTP/1.1 400") == 1


@pytest.mark.parametrize("specimen", ACCEPTED)
def test_good_certificates_pass(
    specimen: str, proxy: Proxy, backend: RecordingBackend, authority: Authority, tmp_path: Path
) -> None:
    """The other side of the promise: each good certificate reaches the backend, byte for byte."""
    answer, _ = show(proxy, ACCEPTED[specimen](authority).write(tmp_path, specimen))
    assert answer.data == HELLO
    assert backend.received == GET_AND_CLOSE


def test_a_good_client_after_a_hundred_strangers(
    proxy: Proxy, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """Refusals leave nothing behind that a good client would notice."""
    stranger = client_context()
    for _ in range(100):
        assert ask(proxy.address, stranger).status == 400
    assert backend.connections == []
    assert ask(proxy.address, client_context(client_credentials)).data == HELLO


# Revocation: a proxy of its own, since a list of one CA binds every client of the site.


@pytest.fixture(scope="module")
def revoked(authority: Authority) -> Credentials:
    return authority.issue("revoked.example")


@pytest.fixture(scope="module")
def crl_proxy(
    authority: Authority,
    revoked: Credentials,
    site: dict[str, Any],
    client_ca: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Proxy]:
    crl = tmp_path_factory.mktemp("crl") / "clients.crl"
    crl.write_bytes(authority.revoke(revoked))
    clients = {"ca": [str(client_ca)], "crl": [str(crl)]}
    with Proxy({**ONE_WORKER, "sites": [{**site, "clients": clients}]}) as proxy:
        yield proxy


def test_a_revoked_certificate(
    crl_proxy: Proxy, backend: RecordingBackend, revoked: Credentials, tmp_path: Path
) -> None:
    """A client whose certificate is on the CA's revocation list reads the page."""
    answer, record = show(crl_proxy, revoked.write(tmp_path, "revoked"))
    assert_refused(answer, CERTIFICATE_ERROR, backend)
    assert record["reason"] == "revoked"


def test_a_certificate_that_no_list_covers(
    crl_proxy: Proxy, backend: RecordingBackend, authority: Authority, tmp_path: Path
) -> None:
    """A client of an intermediate CA that has no revocation list reads the page: its state is not known."""
    answer, record = show(crl_proxy, authority.intermediate().issue().write(tmp_path, "unlisted"))
    assert_refused(answer, CERTIFICATE_ERROR, backend)
    assert record["reason"] == "revocation_unknown"


def test_a_certificate_that_is_not_revoked(
    crl_proxy: Proxy, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """A client that the list does not name passes."""
    assert show(crl_proxy, client_credentials)[0].data == HELLO
    assert backend.received == GET_AND_CLOSE
