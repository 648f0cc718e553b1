"""The pages: parsed as a client parses them, in NGINX's sentences, and bare of everything else."""

import http.client
import re
import socket

import pytest

import aop_proxy
from aop_proxy.farewell import MAX_FRAGMENT
from aop_proxy.pages import REFERENCE_LENGTH, fault_page, fault_status, page
from aop_proxy.reasons import Fault, Reason, Verdict

REFERENCE = "0123abcd"
BAD_CERTIFICATE = "400 Bad Request", "The SSL certificate error"
BAD_GATEWAY = "502 Bad Gateway", "The server behind this one cannot be reached"
SENTENCES = {
    "no_certificate": ("400 Bad Request", "No required SSL certificate was sent"),
    "unknown_ca": BAD_CERTIFICATE,
    "self_signed": BAD_CERTIFICATE,
    "expired": BAD_CERTIFICATE,
    "not_yet_valid": BAD_CERTIFICATE,
    "wrong_purpose": BAD_CERTIFICATE,
    "revoked": BAD_CERTIFICATE,
    "revocation_unknown": BAD_CERTIFICATE,
    "bad_signature": BAD_CERTIFICATE,
    "weak_certificate": BAD_CERTIFICATE,
    "bad_certificate": BAD_CERTIFICATE,
    "identity_not_allowed": ("400 Bad Request", "The SSL certificate is not allowed here"),
    "plain_http": ("400 Bad Request", "The plain HTTP request was sent to HTTPS port"),
    "unknown_host": ("421 Misdirected Request", "This server does not answer for that name"),
    "upstream_unreachable": BAD_GATEWAY,
    "upstream_timeout": BAD_GATEWAY,
    "too_many_connections": ("503 Service Unavailable", "Too many connections"),
}
WITHOUT_A_PAGE = set(Reason) - set(SENTENCES)

every_page = pytest.mark.parametrize("reason", [reason for reason in Reason if reason in SENTENCES], ids=str)


FAULTS = {
    "bad_request": ("400 Bad Request", "The request is not valid HTTP"),
    "secret_missing": ("400 Bad Request", "The request did not come the right way"),
    "body_too_large": ("413 Content Too Large", "The request is too large"),
    "wrong_host": ("421 Misdirected Request", "This server does not answer for that name"),
    "head_too_large": ("431 Request Header Fields Too Large", "The header of the request is too large"),
    "upstream_unreachable": BAD_GATEWAY,
    "bad_response": ("502 Bad Gateway", "The server behind this one gave no valid answer"),
    "no_room": ("503 Service Unavailable", "The server cannot take the request now"),
    "upstream_timeout": ("504 Gateway Timeout", "The server behind this one did not answer in time"),
}


def parse(wire: bytes) -> tuple[http.client.HTTPResponse, bytes]:
    """What a client makes of it."""
    server, client = socket.socketpair()
    with server, client:
        server.sendall(wire)
        server.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(client)
        response.begin()
        return response, response.read()


@every_page
def test_page_is_a_complete_reply(reason: Reason) -> None:
    """Status line, a length that is the body's, nothing behind it, and a connection that is to be closed."""
    wire = page(reason, REFERENCE)
    status, sentence = SENTENCES[reason]
    response, body = parse(wire)
    assert status == f"{response.status} {response.reason}"
    assert wire.endswith(b"\r\n\r\n" + body)
    assert [
        ("Content-Type", "text/html"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("Connection", "close"),
    ] == response.getheaders()
    assert (
        f"<html>\r\n<head><title>{status[:3]} {sentence}</title></head>\r\n<body>\r\n<center><h1>{status}</h1></center>"
        f"\r\n<center>{sentence}</center>\r\n<hr><center>{REFERENCE}</center>\r\n</body>\r\n</html>\r\n"
    ) == body.decode("ascii")


@every_page
def test_page_fits_into_one_small_record(reason: Reason) -> None:
    """Sealed it is one record that a client with max_fragment_length 512 can read."""
    assert len(page(reason, REFERENCE)) < 480 == MAX_FRAGMENT


@every_page
def test_page_does_not_name_the_software(reason: Reason) -> None:
    """Neither the program nor its version, nor those of what it stands on."""
    wire = page(reason, REFERENCE).decode()
    assert re.findall(r"(?i)aop|proxy|python|openssl|server:|\d\.\d+\.\d", wire.replace("HTTP/1.1", "")) == []
    assert aop_proxy.__version__ not in wire


def test_reference_is_all_that_differs() -> None:
    """Two pages of one reason differ in the reference, which stands in them once."""
    first, second = page(Reason.EXPIRED, "a" * REFERENCE_LENGTH), page(Reason.EXPIRED, "b" * REFERENCE_LENGTH)
    assert second == first.replace(b"a" * REFERENCE_LENGTH, b"b" * REFERENCE_LENGTH)
    assert first.count(b"a" * REFERENCE_LENGTH) == 1


@pytest.mark.parametrize("reason", sorted(WITHOUT_A_PAGE))
def test_no_page_for_other_reasons(reason: Reason) -> None:
    """Who ends otherwise than by our decision or for want of a backend gets no page."""
    with pytest.raises(KeyError):
        page(reason, REFERENCE)


def test_almost_every_refusal_has_a_page() -> None:
    """Old TLS gets an alert, since a page cannot be sealed for it; a false load balancer gets nothing."""
    refusals = {reason for reason in Reason if reason.verdict is Verdict.REFUSED}
    assert {Reason.TLS_VERSION, Reason.PROXY_HEADER_INVALID} == refusals - set(SENTENCES)


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault in FAULTS], ids=str)
def test_page_of_a_fault(fault: Fault) -> None:
    """A complete reply of one record, with the reference and nothing of the client's; for HEAD its head alone."""
    wire = fault_page(fault, REFERENCE)
    status, sentence = FAULTS[fault]
    response, body = parse(wire)
    assert f"{response.status} {response.reason}" == status
    assert fault_status(fault) == response.status
    assert (response.headers["Connection"], response.headers["Content-Length"]) == ("close", str(len(body)))
    assert sentence.encode() in body
    assert REFERENCE.encode() in body
    assert len(wire) < MAX_FRAGMENT
    assert fault_page(fault, REFERENCE, head_only=True) + body == wire


def test_every_fault_but_a_cut_has_a_page() -> None:
    """What is cut is cut, and never patched."""
    assert set(Fault) - set(FAULTS) == {Fault.CUT}
    with pytest.raises(KeyError):
        fault_page(Fault.CUT, REFERENCE)
