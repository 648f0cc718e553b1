"""`Reason` or `Fault` -> the complete bytes of the reply a client sees. Must not know how the reason came about.

Sentences are NGINX's for the same cases, since every guide quotes them. A page holds the connection's reference and
nothing else that differs between connections: nothing of the client's, no version, no secret. Each is shorter than 480
bytes, so that sealed it is one record that clients with a small max_fragment_length (RFC 8449, RFC 6066) can read.
"""

from aop_proxy.reasons import Fault, Reason

REFERENCE_LENGTH = 8
_PLACE = b"{reference}"

_BAD_CERTIFICATE = (400, "Bad Request", "The SSL certificate error")
_BAD_GATEWAY = (502, "Bad Gateway", "The server behind this one cannot be reached")
_MISDIRECTED = (421, "Misdirected Request", "This server does not answer for that name")
_Sentence = tuple[int, str, str]
_SENTENCES: dict[Reason, _Sentence] = {
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
    Reason.UNKNOWN_HOST: _MISDIRECTED,
    Reason.UPSTREAM_UNREACHABLE: _BAD_GATEWAY,
    Reason.UPSTREAM_TIMEOUT: _BAD_GATEWAY,
    Reason.TOO_MANY_CONNECTIONS: (503, "Service Unavailable", "Too many connections"),
}
_FAULT_SENTENCES: dict[Fault, _Sentence] = {
    Fault.BAD_REQUEST: (400, "Bad Request", "The request is not valid HTTP"),
    Fault.SECRET_MISSING: (400, "Bad Request", "The request did not come the right way"),
    Fault.BODY_TOO_LARGE: (413, "Content Too Large", "The request is too large"),
    Fault.WRONG_HOST: _MISDIRECTED,
    Fault.HEAD_TOO_LARGE: (431, "Request Header Fields Too Large", "The header of the request is too large"),
    Fault.UPSTREAM_UNREACHABLE: _BAD_GATEWAY,
    Fault.BAD_RESPONSE: (502, "Bad Gateway", "The server behind this one gave no valid answer"),
    Fault.NO_ROOM: (503, "Service Unavailable", "The server cannot take the request now"),
    Fault.UPSTREAM_TIMEOUT: (504, "Gateway Timeout", "The server behind this one did not answer in time"),
}


def _body(status: int, phrase: str, sentence: str) -> bytes:
    return (
        f"<html>\r\n<head><title>{status} {sentence}</title></head>\r\n<body>\r\n<center><h1>{status} {phrase}</h1>"
        f"</center>\r\n<center>{sentence}</center>\r\n<hr><center>"
    ).encode() + (_PLACE + b"</center>\r\n</body>\r\n</html>\r\n")


def _http1(status: int, phrase: str, sentence: str) -> bytes:
    body = _body(status, phrase, sentence)
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: text/html\r\nContent-Length: {_final_length(body)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _http2(status: int, phrase: str, sentence: str) -> bytes:
    """The same on stream 1, which is the one that a client's first request opens (RFC 9113 section 5.1.1)."""
    body = _body(status, phrase, sentence)
    # Literal fields without indexing, their names by index of the static table (RFC 7541 section 6.2.2, appendix A).
    head = b"".join(
        name + bytes([len(value)]) + value
        for name, value in (
            (b"\x08", str(status).encode()),  # :status
            (b"\x0f\x10", b"text/html"),  # content-type
            (b"\x0f\x0d", str(_final_length(body)).encode()),  # content-length
            (b"\x0f\x09", b"no-store"),  # cache-control
        )
    )
    data = _frame(_DATA, _END_STREAM, 1, body, _final_length(body))
    return _SETTINGS + _frame(_HEADERS, _END_HEADERS, 1, head, len(head)) + data + _goaway(1, status, sentence)


def _http2_unasked(status: int, _phrase: str, sentence: str) -> bytes:
    """A client that has opened no stream takes frames on one for a protocol error: it can only be told to go."""
    return _SETTINGS + _goaway(0, status, sentence)


def _frame(kind: int, flags: int, stream: int, payload: bytes, length: int) -> bytes:
    """A frame (RFC 9113 section 4.1) whose payload will have this length."""
    return length.to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _goaway(last_stream: int, status: int, sentence: str) -> bytes:
    """The end, with words for whoever shows them: gRPC prints this text and nothing of a page."""
    text = f"{status} {sentence} ".encode() + _PLACE
    payload = last_stream.to_bytes(4) + bytes(4) + text  # NO_ERROR
    return _frame(_GOAWAY, 0, 0, payload, _final_length(payload))


def _final_length(body: bytes) -> int:
    return len(body) - len(_PLACE) + REFERENCE_LENGTH


_DATA, _HEADERS, _GOAWAY = 0, 1, 7
_END_STREAM, _END_HEADERS = 1, 4
_SETTINGS = bytes.fromhex("000000 04 00 00000000")
_HTTP1_PAGES = {reason: _http1(*sentence) for reason, sentence in _SENTENCES.items()}
_FAULT_PAGES = {fault: _http1(*sentence) for fault, sentence in _FAULT_SENTENCES.items()}
_HTTP2_PAGES = {reason: _http2(*sentence) for reason, sentence in _SENTENCES.items()}
_HTTP2_UNASKED_PAGES = {reason: _http2_unasked(*sentence) for reason, sentence in _SENTENCES.items()}


def page(reason: Reason, reference: str, alpn: str | None = None, *, asked: bool = True) -> bytes:
    """Compose the reply for a reason that has one (KeyError otherwise); `reference` has 8 characters.

    `alpn` is the protocol that was agreed, `asked` whether the client has sent something behind its handshake.
    """
    pages = _HTTP1_PAGES if alpn != "h2" else _HTTP2_PAGES if asked else _HTTP2_UNASKED_PAGES
    return pages[reason].replace(_PLACE, reference.encode("ascii"))


def fault_page(fault: Fault, reference: str, *, head_only: bool = False) -> bytes:
    """Compose the reply to one HTTP/1.1 request, after which the connection is closed; only its head for HEAD."""
    whole = _FAULT_PAGES[fault].replace(_PLACE, reference.encode("ascii"))
    return whole[: whole.index(b"\r\n\r\n") + 4] if head_only else whole


def fault_status(fault: Fault) -> int:
    """The status of a fault's page."""
    return _FAULT_SENTENCES[fault][0]
