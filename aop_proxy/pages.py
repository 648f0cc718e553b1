"""`Reason` -> the complete bytes of the reply a client sees. Must not know how the reason came about.

Sentences are NGINX's for the same cases, since every guide quotes them. A page holds the connection's reference and
nothing else that differs between connections: nothing of the client's, no version, no secret. Each is shorter than 480
bytes, so that sealed it is one record that clients with a small max_fragment_length (RFC 8449, RFC 6066) can read.
"""

from aop_proxy.reasons import Reason

REFERENCE_LENGTH = 8
_PLACE = b"{reference}"

_BAD_CERTIFICATE = (400, "Bad Request", "The SSL certificate error")
_BAD_GATEWAY = (502, "Bad Gateway", "The server behind this one cannot be reached")
_SENTENCES: dict[Reason, tuple[int, str, str]] = {
    Reason.NO_CERTIFICATE: (400, "Bad Request", "No required SSL certificate was sent"),
    Reason.UNKNOWN_CA: _BAD_CERTIFICATE,
    Reason.SELF_SIGNED: _BAD_CERTIFICATE,
    Reason.EXPIRED: _BAD_CERTIFICATE,
    Reason.NOT_YET_VALID: _BAD_CERTIFICATE,
    Reason.WRONG_PURPOSE: _BAD_CERTIFICATE,
    Reason.REVOKED: _BAD_CERTIFICATE,
    Reason.REVOCATION_UNKNOWN: _BAD_CERTIFICATE,
    Reason.BAD_SIGNATURE: _BAD_CERTIFICATE,
    Reason.WEAK_CERTIFICATE: _BAD_CERTIFICATE,
    Reason.BAD_CERTIFICATE: _BAD_CERTIFICATE,
    Reason.IDENTITY_NOT_ALLOWED: (400, "Bad Request", "The SSL certificate is not allowed here"),
    Reason.PLAIN_HTTP: (400, "Bad Request", "The plain HTTP request was sent to HTTPS port"),
    Reason.UNKNOWN_HOST: (421, "Misdirected Request", "This server does not answer for that name"),
    Reason.UPSTREAM_UNREACHABLE: _BAD_GATEWAY,
    Reason.UPSTREAM_TIMEOUT: _BAD_GATEWAY,
    Reason.TOO_MANY_CONNECTIONS: (503, "Service Unavailable", "Too many connections"),
}


def _compose(status: int, phrase: str, sentence: str) -> bytes:
    body = (
        f"<html>\r\n<head><title>{status} {sentence}</title></head>\r\n<body>\r\n<center><h1>{status} {phrase}</h1>"
        f"</center>\r\n<center>{sentence}</center>\r\n<hr><center>"
    ).encode()
    end = b"</center>\r\n</body>\r\n</html>\r\n"
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: text/html\r\n"
        f"Content-Length: {len(body) + REFERENCE_LENGTH + len(end)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    ).encode()
    return head + body + _PLACE + end


_PAGES = {reason: _compose(*sentence) for reason, sentence in _SENTENCES.items()}


def page(reason: Reason, reference: str) -> bytes:
    """Compose the HTTP/1.1 reply for a reason that has one (KeyError otherwise); `reference` has 8 characters."""
    return _PAGES[reason].replace(_PLACE, reference.encode("ascii"))
