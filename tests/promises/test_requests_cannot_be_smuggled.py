"""Where requests are read, no two parsers read them differently: what is odd is refused, and reaches no backend.

Published vectors of request smuggling, on kept connections, before a backend that records every byte; and requests of
every kind and length through the proxy to NGINX, which must count as many as the client sent.
"""

import re
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import backends
from actors import HELLO, ONE_WORKER, Proxy, RecordingBackend, TlsClient, client_context, require_peer
from certificates import CredentialFiles

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\nX: "
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"


@pytest.fixture(scope="module")
def site(site: dict[str, Any]) -> dict[str, Any]:
    return {**site, "mode": "http"}


@pytest.fixture(scope="module")
def good(client_credentials: CredentialFiles) -> ssl.SSLContext:
    return client_context(client_credentials)


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"POST / HTTP/1.1", b"Host: localhost", *lines, b"", b""]) + body


def te(line: bytes) -> bytes:
    """TE.CL: a length that covers the chunks only in part, and a Transfer-Encoding that not everyone sees."""
    return post(b"Content-Length: 4", line, body=b"2e\r\n" + SMUGGLED + b"\r\n0\r\n\r\n")


VECTORS = {
    # PortSwigger, "HTTP desync attacks" (2019): CL.TE, TE.CL, and the ways in which a Transfer-Encoding is hidden.
    "CL.TE": post(b"Content-Length: 49", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
    "TE.CL": te(b"Transfer-Encoding: chunked"),
    "TE.TE, x": te(b"Transfer-Encoding: xchunked"),
    "TE.TE, space before the colon": te(b"Transfer-Encoding : chunked"),
    "TE.TE, two": te(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x"),
    "TE.TE, tab": te(b"Transfer-Encoding:\tchunked"),
    "TE.TE, space before the name": te(b" Transfer-Encoding: chunked"),
    "TE.TE, LF in the line before": te(b"X: X\nTransfer-Encoding: chunked"),
    "TE.TE, on a fold": te(b"Transfer-Encoding\r\n : chunked"),
    "TE.TE, vertical tab": te(b"Transfer-Encoding:\x0bchunked"),
    "TE.TE, quoted": te(b'Transfer-Encoding: "chunked"'),
    "TE.TE, CR at the end": te(b"Transfer-Encoding: chunked\r"),
    "TE.TE, case": te(b"TrAnSfEr-EnCoDiNg: cHuNkEd"),
    "TE.TE, null": te(b"Transfer-Encoding: chunked\0"),
    "TE.TE, underscore": te(b"Transfer_Encoding: chunked"),
    "TE.TE, identity": te(b"Transfer-Encoding: identity, chunked"),
    "TE.TE, in HTTP/1.0": te(b"Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    # RFC 9112 section 11.2, and CVE-2019-16276, CVE-2020-8287, CVE-2021-22960, CVE-2022-24766 and their like.
    "CL.CL": post(b"Content-Length: 5", b"Content-Length: 50", body=b"hello" + SMUGGLED),
    "CL.CL, equal": post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello" + SMUGGLED),
    "CL, a list": post(b"Content-Length: 5, 50", body=b"hello" + SMUGGLED),
    "CL, signed": post(b"Content-Length: +5", body=b"hello" + SMUGGLED),
    "CL, underscores": post(b"Content-Length: 0_5", body=b"hello" + SMUGGLED),
    "CL, behind a space": post(b"Content-Length : 5", body=b"hello" + SMUGGLED),
    "CL, behind a control": post(b"\x01Content-Length: 5", body=b"hello" + SMUGGLED),
    "CL, hidden by a bare CR": post(b"X: y\rContent-Length: 5", body=b"hello" + SMUGGLED),
    "CL, hidden by a fold": post(b"X: y", b" Content-Length: 5", body=b"hello" + SMUGGLED),
    "LF LF": b"GET / HTTP/1.1\r\nHost: localhost\n\n" + SMUGGLED,
    "LF in front": b"\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CRLF in front": b"\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    # Chunks: CVE-2021-22959, CVE-2022-32214, CVE-2023-30589, CVE-2025-22871 (bare LF in an extension, "TERM.EXT").
    "chunk, size behind a space": post(b"Transfer-Encoding: chunked", body=b" 5\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk, 0x": post(b"Transfer-Encoding: chunked", body=b"0x5\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk, overflow": post(b"Transfer-Encoding: chunked", body=b"100000005\r\nhello\r\n0\r\n\r\n" + SMUGGLED)[:-200]
    + post(b"Transfer-Encoding: chunked", body=b"1000000000000000005\r\nhello\r\n"),
    "chunk, LF ends the size": post(b"Transfer-Encoding: chunked", body=b"5\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk, LF ends an extension": post(b"Transfer-Encoding: chunked", body=b"5;\n" + CHUNKS + SMUGGLED),
    "chunk, CR ends an extension": post(b"Transfer-Encoding: chunked", body=b"5;\r" + CHUNKS + SMUGGLED),
    "chunk, LF ends the data": post(b"Transfer-Encoding: chunked", body=b"5\r\nhello\n0\r\n\r\n" + SMUGGLED),
    "chunk, more data than told": post(b"Transfer-Encoding: chunked", body=b"5\r\nhelloXX0\r\n\r\n" + SMUGGLED),
    "chunk, negative": post(b"Transfer-Encoding: chunked", body=b"-5\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk, trailer that is no field": post(b"Transfer-Encoding: chunked", body=b"0\r\n" + SMUGGLED + b"\r\n\r\n"),
    "chunk, LF LF": post(b"Transfer-Encoding: chunked", body=b"0\r\n\n" + SMUGGLED),
    # Hosts and targets.
    "another host in the target": b"GET http://smuggled/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "two Hosts": b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n",
    "a Host on a fold": b"GET /smuggled HTTP/1.1\r\nX: y\r\n Host: other\r\nHost: localhost\r\n\r\n",
    "another Host": b"GET /smuggled HTTP/1.1\r\nHost: other\r\n\r\n",
    "a Host with a user": b"GET /smuggled HTTP/1.1\r\nHost: localhost@other\r\n\r\n",
    "a space in the target": b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\nGET /smuggled y HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "HTTP/0.9": b"GET /smuggled\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
def test_published_vectors(proxy: Proxy, backend: RecordingBackend, good: ssl.SSLContext, vector: bytes) -> None:
    """Refused, and the connection ends; what they would smuggle in reaches no backend, and neither does what follows."""
    with TlsClient(proxy.address, good) as client:
        client.handshake()
        client.send(b"GET /first HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.receive_exactly(len(HELLO)) == HELLO
        client.send(vector + b"GET /next HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = client.receive_all()
    statuses = re.findall(rb"HTTP/1\.1 (\d+) ", answer.data)
    assert statuses[-1:] in ([b"400"], [b"421"])
    assert answer.ending == "close_notify"
    received = bytes(backend.received)
    assert b"smuggled" not in received
    assert b"/next" not in received
    assert received.startswith(b"GET /first HTTP/1.1\r\n")
    assert proxy.wait_for("request", fault="wrong_host" if statuses[-1] == b"421" else "bad_request")


NGINX = """
daemon off;
error_log stderr;
pid nginx.pid;
worker_processes 1;
events {{ }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{
        listen {listen};
        client_max_body_size 0;
        large_client_header_buffers 4 64k;
        location / {{
            proxy_pass http://unix:inner.socket;    # once it has read the whole request
            proxy_set_header X-Said "$request_method $request_uri $http_host [$http_x_mark] $http_transfer_encoding$http_content_length|";
        }}
    }}
    server {{
        listen unix:inner.socket;
        return 200 "$http_x_said\n";
    }}
}}
"""


@pytest.fixture(scope="module")
def nginx(site: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy before an NGINX that says of every request what it has read."""
    require_peer("nginx")
    directory = tmp_path_factory.mktemp("nginx")
    with (
        backends.nginx(directory, False, NGINX) as backend,
        Proxy({**ONE_WORKER, "sites": [{**site, "upstream": backend.url}]}) as proxy,
    ):
        yield proxy


# Without what NGINX itself refuses: a % that escapes nothing, and a way out of its root.
PATHS = st.text("abc/?=&-_~:@!$'()*+,;|{}\"<>\\^`", max_size=20).map(lambda text: "/" + text)
MARKS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
PIECES = st.lists(st.binary(min_size=1, max_size=300), max_size=4)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, str]:
    """A request as it is sent, and what NGINX is to say of it."""
    method, path, mark = draw(st.sampled_from(["GET", "POST", "PUT", "OPTIONS"])), draw(PATHS), draw(MARKS)
    space = draw(st.sampled_from(["", " ", "\t ", "   "]))
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"X-Mark:{space}{mark}{space}", "Connection: keep-alive"]
    pieces = draw(PIECES)
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    body = b"".join(pieces)
    if framing == "none":
        body, said = b"", ""
    elif framing == "length":
        lines.append(f"Content-Length: {len(body)}")
        said = str(len(body))
    else:
        extension = draw(st.sampled_from(["", ";x", ';x="y z"', ";a=b;c"]))
        lines.append("Transfer-Encoding: chunked")
        body = b"".join(f"{len(piece):x}{extension}\r\n".encode() + piece + b"\r\n" for piece in pieces)
        body += b"0\r\n" + draw(st.sampled_from([b"", b"X-Trailer: t\r\n"])) + b"\r\n"
        said = "chunked"
    head = "\r\n".join([*draw(st.permutations(lines[1:])), "", ""])
    return f"{lines[0]}\r\n{head}".encode() + body, f"{method} {path} localhost [{mark}] {said}|\n"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(sent=st.lists(requests(), min_size=1, max_size=6), cut=st.integers(1, 400))
def test_nginx_reads_what_the_client_sent(
    nginx: Proxy, good: ssl.SSLContext, sent: list[tuple[bytes, str]], cut: int
) -> None:
    """Requests on one connection, however they are cut: as many answers, each about the request it belongs to."""
    stream = b"".join(request for request, _ in sent)
    with TlsClient(nginx.address, good) as client:
        client.handshake()
        client.send(stream[:cut])
        client.send(stream[cut:] + b"GET /last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answer = client.receive_all()
    bodies = [
        rest[: int(length)].decode()
        for length, rest in zip(
            re.findall(rb"\r\nContent-Length: (\d+)\r\n", answer.data),
            re.split(rb"HTTP/1\.1 200 OK\r\n(?:[^\r]+\r\n)*\r\n", answer.data)[1:],
            strict=True,
        )
    ]
    assert bodies == [*(said for _, said in sent), "GET /last localhost [] |\n"]
