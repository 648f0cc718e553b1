"""The one grammar: what is refused, what is made of the rest, and that two other parsers make the same of what we write."""

import random
from collections.abc import Iterator
from itertools import pairwise

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aop_proxy import http1
from aop_proxy.http1 import Chunked, Malformed, Request, Sized, TooLarge, UntilEnd, head_length

HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n%b\r\n"


def field(*lines: bytes) -> bytes:
    """A good request with these lines in its head."""
    return HEAD % b"".join(line + b"\r\n" for line in lines)


def first(line: bytes) -> bytes:
    """A request with this line in front."""
    return line + b"\r\nHost: a\r\n\r\n"


REFUSED = {
    "both lengths": field(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "both lengths, the other way": field(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "two lengths": field(b"Content-Length: 5", b"Content-Length: 6"),
    "the same length twice": field(b"Content-Length: 5", b"Content-Length: 5"),
    "the same short length twice": field(b"Content-Length: 0", b"content-length: 0"),
    "a list of lengths": field(b"Content-Length: 5, 5"),
    "a signed length": field(b"Content-Length: +5"),
    "a negative length": field(b"Content-Length: -1"),
    "a hexadecimal length": field(b"Content-Length: 0x5"),
    "an underscored length": field(b"Content-Length: 1_0"),
    "a length in other digits": field("Content-Length: ٥".encode()),
    "a fraction": field(b"Content-Length: 5.0"),
    "an empty length": field(b"Content-Length:"),
    "a quoted length": field(b'Content-Length: "5"'),
    "an endless length": field(b"Content-Length: " + b"9" * 30),
    "a length with a space inside": field(b"Content-Length: 1 0"),
    "TE upper": field(b"Transfer-Encoding: CHUNKED"),
    "TE mixed": field(b"Transfer-Encoding: Chunked"),
    "TE identity": field(b"Transfer-Encoding: identity"),
    "TE list": field(b"Transfer-Encoding: gzip, chunked"),
    "TE list, chunked first": field(b"Transfer-Encoding: chunked, identity"),
    "TE twice": field(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "TE twice, one hidden": field(b"Transfer-Encoding: chunked", b"Transfer-encoding: x"),
    "TE x": field(b"Transfer-Encoding: xchunked"),
    "TE quoted": field(b'Transfer-Encoding: "chunked"'),
    "TE with a parameter": field(b"Transfer-Encoding: chunked;q=1"),
    "TE with a comma": field(b"Transfer-Encoding: ,chunked"),
    "TE empty": field(b"Transfer-Encoding:"),
    "TE with vertical tab": field(b"Transfer-Encoding:\x0bchunked"),
    "TE with form feed": field(b"Transfer-Encoding: chunked\x0c"),
    "TE behind NUL": field(b"Transfer-Encoding: \0chunked"),
    "TE behind a space in the name": field(b"Transfer-Encoding : chunked"),
    "TE behind a tab in the name": field(b"Transfer-Encoding\t: chunked"),
    "TE behind a space before the name": field(b" Transfer-Encoding: chunked"),
    "TE on a fold": field(b"Transfer-Encoding:", b" chunked"),
    "TE folded with a tab": field(b"Transfer-Encoding: chunked", b"\t, identity"),
    "TE with an underscore": field(b"Transfer_Encoding: chunked"),
    "CL with an underscore": field(b"Content_Length: 5"),
    "TE behind a bare CR": field(b"X: a\rTransfer-Encoding: chunked"),
    "TE behind a bare LF": field(b"X: a\nTransfer-Encoding: chunked"),
    "TE in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    "obs-fold": field(b"X: a", b" b"),
    "a fold in front": b"GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n",
    "NUL in a value": field(b"X: a\0b"),
    "NUL in a name": field(b"X\0: a"),
    "DEL in a value": field(b"X: a\x7fb"),
    "a control in a value": field(b"X: a\x01b"),
    "a space in a name": field(b"X Y: a"),
    "no name": field(b": a"),
    "no colon": field(b"X"),
    "a name that is no token": field(b"X(: a"),
    "a name in another script": field("É: a".encode()),
    "two Hosts": field(b"Host: b"),
    "the same Host twice": field(b"Host: a"),
    "a disguised... Expect": field(b"Expect: 100-continue", b"expect: 100-continue"),
    "another expectation": field(b"Expect: 200-ok"),
    "a Connection that is no list": field(b"Connection: close, x y"),
    "an empty Connection option": field(b"Connection: close,,"),
    "a Connection that names too many": field(b"Connection: " + b",".join([b"x"] * 17)),
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "no Host in 1.0": b"GET / HTTP/1.0\r\n\r\n",
    "an empty Host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "user in Host": b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "a path in Host": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "a list of Hosts": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "a Host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a Host with an odd port": b"GET / HTTP/1.1\r\nHost: a:8x\r\n\r\n",
    "a Host with an empty port": b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n",
    "a Host in no script": b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
    "a Host too long": b"GET / HTTP/1.1\r\nHost: " + b"a" * 301 + b"\r\n\r\n",
    "a Host with a bracket": b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9 with a version": first(b"GET / HTTP/0.9"),
    "HTTP/1.2": first(b"GET / HTTP/1.2"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.10": first(b"GET / HTTP/1.10"),
    "http/1.1": first(b"GET / http/1.1"),
    "a longer version": first(b"GET / HTTP/1.1 x"),
    "a space behind": first(b"GET / HTTP/1.1 "),
    "two spaces": first(b"GET  / HTTP/1.1"),
    "a tab": first(b"GET\t/ HTTP/1.1"),
    "a space in front": b" " + field(),
    "an empty line in front": b"\r\n" + field(),
    "a bare LF in front": b"\n" + field(),
    "lower case": first(b"get / HTTP/1.1"),
    "an odd method": first(b"GE(T / HTTP/1.1"),
    "a method too long": first(b"G" * 33 + b" / HTTP/1.1"),
    "CONNECT": first(b"CONNECT a:443 HTTP/1.1"),
    "CONNECT of all": first(b"CONNECT http://a/ HTTP/1.1"),
    "CONNECT of a path": first(b"CONNECT / HTTP/1.1"),
    "a target without a slash": first(b"GET x HTTP/1.1"),
    "a fragment": first(b"GET /#x HTTP/1.1"),
    "a control in the target": first(b"GET /\x01 HTTP/1.1"),
    "a target in another script": first("GET /é HTTP/1.1".encode()),
    "an asterisk for GET": first(b"GET * HTTP/1.1"),
    "another host": first(b"GET http://b/ HTTP/1.1"),
    "another port": first(b"GET http://a:1/ HTTP/1.1"),
    "a user": first(b"GET http://u@a/ HTTP/1.1"),
    "another scheme": first(b"GET ftp://a/ HTTP/1.1"),
    "no authority": first(b"GET http:/// HTTP/1.1"),
    "bare LFs": b"GET / HTTP/1.1\nHost: a\n\n",
    "a bare LF at the end": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    "a bare CR": b"GET / HTTP/1.1\rHost: a\r\n\r\n",
    "a bare CR behind the first line": b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    "CR CR LF": b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
}
TOO_LARGE = {
    "too many fields": field(*[b"X: y"] * 257),
    "too long": field(b"X: " + b"y" * http1.MAX_HEAD),
}


def read(data: bytes) -> Request:
    """A request as it is read from a connection: its end is looked for first."""
    length = head_length(data)
    assert length
    return http1.parse_request(data[:length])


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_requests_that_are_refused(data: bytes) -> None:
    """Whatever two parsers could read differently is read by none."""
    with pytest.raises(Malformed) as refused:
        read(data)
    assert not isinstance(refused.value, TooLarge)


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_nobody_waits_for_more_of_what_is_refused(data: bytes) -> None:
    """Byte by byte the same comes out, with its last byte at the latest."""

    def drip() -> None:
        for end in range(1, len(data) + 1):
            if length := head_length(data[:end], end - 1):
                http1.parse_request(data[:length])

    with pytest.raises(Malformed):
        drip()


@pytest.mark.parametrize("data", TOO_LARGE.values(), ids=TOO_LARGE)
def test_heads_are_bounded(data: bytes) -> None:
    """In bytes and in fields, told apart from what is wrong."""
    with pytest.raises(TooLarge):
        read(data)


def test_what_is_read_of_a_request() -> None:
    """Its parts; of a head, no byte more."""
    data = (
        b"POST /a?b=c HTTP/1.1\r\nhost: A.example:8443\r\nX-A:  one \t\r\nConnection: close , X-Hop\r\nTE: trailers\r\n"
        b"Content-Length: 12\r\nX_Forwarded-for: evil\r\nX-A: two\r\nExpect: 100-Continue\r\n\r\nbody"
    )
    request = read(data)
    assert head_length(data) == len(data) - 4
    assert (request.method, request.target, request.path) == (b"POST", b"/a?b=c", b"/a")
    assert (request.host, http1.host_name(request.host)) == (b"a.example:8443", "a.example")
    assert [field.line for field in request.fields] == [b"X-A: one\r\n", b"X-A: two\r\n"]
    assert request.frame.options == {b"close", b"x-hop"}
    assert (request.length, request.is_chunked, request.has_body, request.is_last) == (12, False, True, True)
    assert request.expects_continue
    assert not request.upgrades


@pytest.mark.parametrize(
    ("line", "target"),
    [
        (b"GET / HTTP/1.1", b"/"),
        (b"GET //x/../y HTTP/1.1", b"//x/../y"),
        (b"OPTIONS * HTTP/1.1", b"*"),
        (b"GET http://A HTTP/1.1", b"/"),
        (b"GET HTTPS://a/x?y HTTP/1.1", b"/x?y"),
        (b"GET http://a?y=http://b/ HTTP/1.1", b"/?y=http://b/"),
        (b'M-SEARCH /"<>\\^`{|} HTTP/1.0', b'/"<>\\^`{|}'),
    ],
)
def test_targets(line: bytes, target: bytes) -> None:
    """In origin form, whatever form they came in."""
    assert read(first(line)).target == target


@pytest.mark.parametrize(
    ("host", "passed_on"),
    [(b"[::1]:443", b"[::1]:443"), ("bücher.example".encode(), b"xn--bcher-kva.example"), (b"A_b.c.", b"a_b.c")],
)
def test_hosts(host: bytes, passed_on: bytes) -> None:
    """In ASCII, so that what is compared is what the backend gets."""
    assert read(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host).host == passed_on


@pytest.mark.parametrize(
    ("lines", "upgrades"),
    [
        ((b"Connection: keep-alive, Upgrade", b"Upgrade: WebSocket"), True),
        ((b"Upgrade: websocket",), False),
        ((b"Connection: upgrade",), False),
        ((b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA"), False),
        ((b"Connection: upgrade", b"Upgrade: websocket, h2c"), False),
        ((b"Connection: upgrade", b"Upgrade: websocket", b"Content-Length: 0"), False),
        ((b"Connection: upgrade", b"Upgrade: websocket", b"Transfer-Encoding: chunked"), False),
    ],
)
def test_upgrades(lines: tuple[bytes, ...], upgrades: bool) -> None:
    """To WebSocket alone, by a GET without a body; of any other the backend hears nothing."""
    request = read(field(*lines))
    assert request.upgrades is upgrades
    written = http1.write_request(request, request.host, b"")
    assert (b"pgrade" in written) is upgrades
    assert b"HTTP2-Settings" not in written


@pytest.mark.parametrize("length", [255, 256, 257, 900, 1100, 5000])
def test_lines_of_any_length(length: int) -> None:
    """What is remembered of heads is no matter of what they say; not even of one with a first line alone."""
    line = b"X: " + b"y" * length
    for _ in range(2):
        request = read(field(line))
        assert [field.line for field in request.fields] == [line + b"\r\n"]
        with pytest.raises(Malformed):
            read(b"GET /" + b"y" * length + b" HTTP/1.1\r\n\r\n")
        response = http1.parse_response(b"HTTP/1.1 200 " + b"y" * length + b"\r\n\r\n")
        written = http1.write_response(response, request, is_chunked=False, is_last=False)
        assert written == b"HTTP/1.1 200 " + b"y" * length + b"\r\n\r\n"


def test_what_is_remembered_is_bounded() -> None:
    """Lines by their number and their length, so that no client fills memory with them."""
    for number in range(3000):
        read(field(b"X: %d" % number))
        read(field(b"Content-Length: %d" % number))
        http1.parse_response(b"HTTP/1.1 200 %d\r\n\r\n" % number)
    caches = (http1._known_request, http1._known_status, http1._known_field, http1._known_frame)
    for remembered in (*caches, http1._in_one_spelling):
        assert remembered.cache_info().currsize <= 2048
        remembered.cache_clear()
    long = b"X: " + b"y" * 1100
    read(b"GET /" + b"y" * 1100 + b" HTTP/1.1\r\nHost: a\r\n" + long + b"\r\n\r\n")
    http1.parse_response(b"HTTP/1.1 200 " + long + b"\r\n" + long + b"\r\n\r\n")
    for remembered in caches:
        assert remembered.cache_info().currsize == 0


def test_http_1_0() -> None:
    """One request a connection, unless it asks to keep it; no expectations, no upgrades."""
    assert read(first(b"GET / HTTP/1.0")).is_last
    assert not read(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n").is_last
    late = read(b"POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n")
    assert not late.expects_continue


@pytest.mark.parametrize(
    ("sent", "host"), [(b"A.Example", b"a.example"), (b"a.example.:443", b"a.example:443"), (b"[::A]:1", b"[::a]:1")]
)
def test_a_host_is_in_one_spelling(sent: bytes, host: bytes) -> None:
    """Whatever looks it up behind us finds the one that was checked."""
    assert read(b"GET / HTTP/1.1\r\nHost: " + sent + b"\r\n\r\n").host == host


def test_a_request_is_written_anew() -> None:
    """What passes, then ours, then what frames; nothing of this hop."""
    request = read(
        b"PUT http://a:1/x HTTP/1.0\r\nHost: a:1\r\nA:b\r\nKeep-Alive: 5\r\nConnection: x-hop, cookie, cf-ray, a\r\n"
        b"x-hop: 1\r\nCookie: c\r\nCF-Ray: r\r\nProxy: p\r\nX-Forwarded-For: evil\r\nContent-Length: 007\r\n\r\n"
    )
    assert http1.write_request(request, b"other", b"Ours: 1\r\n") == (
        b"PUT /x HTTP/1.1\r\nHost: other\r\nCookie: c\r\nCF-Ray: r\r\nOurs: 1\r\nContent-Length: 7\r\nConnection: close\r\n\r\n"
    )


# Responses

RESPONSES_REFUSED = {
    "both": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
    "an odd length": b"HTTP/1.1 200 OK\r\nContent-Length: 5 5\r\n\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a coding in 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 5\n\n",
    "fold": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
    "NUL": b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "a short status": b"HTTP/1.1 20 OK\r\n\r\n",
    "a long status": b"HTTP/1.1 2000 OK\r\n\r\n",
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "ICY": b"ICY 200 OK\r\n\r\n",
    "an empty line in front": b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    "a request": field(),
    "no head": b"hello there\r\n\r\n",
    "in disguise": b"HTTP/1.1 200 OK\r\nContent_Length: 5\r\n\r\n",
}


@pytest.mark.parametrize("data", RESPONSES_REFUSED.values(), ids=RESPONSES_REFUSED)
def test_responses_that_are_refused(data: bytes) -> None:
    """As strictly as requests."""
    with pytest.raises(Malformed):
        http1.parse_response(data[: head_length(data)])


@pytest.mark.parametrize(
    ("status", "lines", "method", "kind"),
    [
        (200, b"Content-Length: 5\r\n", b"GET", Sized),
        (200, b"Transfer-Encoding: chunked\r\n", b"GET", Chunked),
        (200, b"", b"GET", UntilEnd),
        (200, b"Content-Length: 5\r\n", b"HEAD", None),
        (200, b"", b"HEAD", None),
        (204, b"", b"GET", None),
        (204, b"Content-Length: 5\r\n", b"GET", None),
        (304, b"Content-Length: 5\r\n", b"GET", None),
        (304, b"Transfer-Encoding: chunked\r\n", b"GET", None),
        (103, b"", b"GET", None),
        (404, b"Content-Length: 0\r\n", b"POST", None),
    ],
)
def test_where_a_response_ends(status: int, lines: bytes, method: bytes, kind: type | None) -> None:
    """RFC 9112 section 6.3."""
    response = http1.parse_response(b"HTTP/1.1 %d X\r\n%b\r\n" % (status, lines))
    body = response.body(method)
    assert body.ended is (kind is None)
    assert kind is None or isinstance(body, kind)


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\n\r\n", False),
        (b"HTTP/1.1 200\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", True),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", False),
        (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", False),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", True),
    ],
)
def test_whether_a_connection_can_serve_again(head: bytes, keeps: bool) -> None:
    """Only where nothing speaks against it."""
    assert http1.parse_response(head).keeps_alive is keeps


def test_a_response_is_written_anew() -> None:
    """Without what concerns the hop to the backend, and framed as the client understands it."""
    response = http1.parse_response(
        b"HTTP/1.0 404 Not  there\r\nA:b\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\n"
        b"Content-Length: 03\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n"
    )
    new, old = read(first(b"GET / HTTP/1.1")), read(first(b"GET / HTTP/1.0"))
    head = b"HTTP/1.1 404 Not  there\r\nA: b\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n"
    write = http1.write_response
    assert write(response, new, is_chunked=False, is_last=False) == head + b"Content-Length: 3\r\n\r\n"
    closing = head + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert write(response, new, is_chunked=True, is_last=True) == closing
    kept = head + b"Content-Length: 3\r\nConnection: keep-alive\r\n\r\n"
    assert write(response, old, is_chunked=False, is_last=False) == kept


def test_an_interim_response_is_written_anew() -> None:
    """Early hints with their fields; a switch names what it switches to."""
    hints = http1.parse_response(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 5\r\n\r\n")
    assert http1.write_interim(hints) == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    switch = http1.parse_response(b"HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\nA: b\r\n\r\n")
    expected = b"HTTP/1.1 101 S\r\nA: b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert (http1.write_interim(switch), switch.frame.upgrade) == (expected, b"websocket")


# Bodies

CHUNKS_REFUSED = {
    "no size": b"\r\n",
    "a size that is no number": b"x\r\n",
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a negative size": b"-1\r\n",
    "a space before": b" 5\r\nhello\r\n0\r\n\r\n",
    "a space behind": b"5 \r\nhello\r\n0\r\n\r\n",
    "a tab behind": b"5\t\r\nhello\r\n0\r\n\r\n",
    "an underscore": b"1_0\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n",
    "a size past 48 bits": b"f" * 13 + b"\r\n",
    "a size that overflows": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "bare LF behind the size": b"5\nhello\r\n0\r\n\r\n",
    "bare CR behind the size": b"5\rhello\r\n0\r\n\r\n",
    "bare LF behind the data": b"5\r\nhello\n0\r\n\r\n",
    "data too long": b"5\r\nhelloo\r\n0\r\n\r\n",
    "data too short": b"5\r\nhell\r\n0\r\n\r\n",
    "nothing between": b"5\r\nhello0\r\n\r\n",
    "LF in an extension": b"5;a\n=b\r\nhello\r\n0\r\n\r\n",
    "CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;a\0\r\nhello\r\n0\r\n\r\n",
    "an extension without a semicolon": b"5 a\r\nhello\r\n0\r\n\r\n",
    "an extension past the bound": b"5;" + b"a" * 1024 + b"\r\nhello\r\n0\r\n\r\n",
    "extensions past the bound": (b"1;" + b"a" * 900 + b"\r\nx\r\n") * 20 + b"0\r\n\r\n",
    "a bare LF at the end": b"0\r\n\n",
    "a trailer that is no field": b"0\r\nx\r\n\r\n",
    "a folded trailer": b"0\r\nX: a\r\n b\r\n\r\n",
    "a trailer with a bare LF": b"0\r\nX: a\nY: b\r\n\r\n",
    "trailers past the bound": b"0\r\n" + b"X: y\r\n" * 4000 + b"\r\n",
    "garbage behind the last chunk": b"0\r\nGET / HTTP/1.1\r\n\r\n",
}


def pieces_of(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    edges = [0, *sorted(cuts), len(data)]
    for start, end in pairwise(edges):
        yield data[start:end]


def decode(body: Chunked | Sized, pieces: Iterator[bytes]) -> tuple[bytes, bytes]:
    """The content, and what was left behind the end."""
    content, left = bytearray(), bytearray()
    for piece in pieces:
        used = 0
        if not body.ended:
            decoded, used = body.feed(piece)
            content += b"".join(decoded)
            assert used == len(piece) or bool(body.ended)
        left += piece[used:]
    return bytes(content), bytes(left)


@pytest.mark.parametrize("by", [1, 7, 1 << 20])
@pytest.mark.parametrize("data", CHUNKS_REFUSED.values(), ids=CHUNKS_REFUSED)
def test_chunks_that_are_refused(data: bytes, by: int) -> None:
    """However they are cut."""
    with pytest.raises(Malformed):
        decode(Chunked(), (data[start : start + by] for start in range(0, len(data), by)))


CHUNKED = b'5\r\nhello\r\n00a;x="y z";q\r\n, my world\r\n1;\r\n!\r\n0;last\r\nTrailer: dropped\r\nX: y\r\n\r\nGET /'


@given(st.lists(st.integers(0, len(CHUNKED)), max_size=12))
@example(list(range(len(CHUNKED))))
@example([])
def test_chunks_however_they_are_cut(cuts: list[int]) -> None:
    """The same content, and not a byte of what is behind."""
    assert decode(Chunked(), pieces_of(CHUNKED, cuts)) == (b"hello, my world!", b"GET /")


@given(st.integers(0, 20), st.lists(st.integers(0, 20), max_size=5))
def test_sized_bodies(length: int, cuts: list[int]) -> None:
    """As long as they are, and what is behind is left."""
    data = bytes(range(20))
    assert decode(Sized(length), pieces_of(data, cuts)) == (data[:length], data[length:])


def test_a_chunk_is_written() -> None:
    """All pieces in one; nothing ends a body by accident."""
    assert http1.chunk([memoryview(b"hello"), memoryview(b", world.....")]) == b"11\r\nhello, world.....\r\n"
    assert http1.chunk([]) == b""
    assert http1.chunk([memoryview(b"")]) == b""


def test_many_tiny_chunks_cost_little_memory_and_are_all_there() -> None:
    """What a peer sends a byte at a time is read all the same."""
    content = random.Random(7).randbytes(5000)
    wire = b"".join(b"1\r\n" + content[at : at + 1] + b"\r\n" for at in range(len(content))) + b"0\r\n\r\n"
    assert decode(Chunked(), pieces_of(wire, [1000, 1001, 1003, 1006])) == (content, b"")


# What another parser makes of it

TOKENS = st.text("!#$%&'*+-.^_`|~019azAZ", min_size=1, max_size=8).map(str.encode)
VALUES = st.binary(max_size=12).map(lambda data: bytes(byte for byte in data if byte >= 32 and byte != 127))
NAMES = st.sampled_from(
    [
        *(b"Content-Length", b"Transfer-Encoding", b"content_length", b"Connection", b"Host", b"Cookie", b"TE", b"X"),
        *(
            b"Upgrade",
            b"Expect",
            b"Trailer",
            b"X-Forwarded-For",
            b"Keep-Alive",
            b"Content-Length ",
            b"\tTransfer-Encoding",
        ),
    ]
)
ODD = st.sampled_from([b"5", b"0", b"chunked", b" chunked", b"close", b"x", b"a", b"upgrade", b"5, 5", b"\x0bchunked"])
LINES = st.tuples(NAMES | TOKENS, st.sampled_from([b":", b": ", b" :", b":\t "]), ODD | VALUES)
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\0\r\n"])
STARTS = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /x?y HTTP/1.1", b"GET http://a/z HTTP/1.1", b"PUT / HTTP/1.0", b"HEAD /\x7f HTTP/1.1"]
)
BODIES = st.sampled_from([b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\n", b"GET /smuggled HTTP/1.1\r\n\r\n"])


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A request that may be wrong in any of the known ways."""
    lines = [(b"Host", b": ", b"a"), *draw(st.lists(LINES, max_size=5))]
    head = draw(STARTS) + draw(ENDS) + b"".join(b"".join(line) + draw(ENDS) for line in draw(st.permutations(lines)))
    return head + b"\r\n" + draw(BODIES)


def read_and_write(stream: bytes) -> list[tuple[Request, bytes, bytes]]:
    """Every request of a stream with its content, and what the backend gets; nothing from the first that is wrong on."""
    seen = []
    try:
        while stream:
            length = head_length(stream)
            if not length:
                break
            request = http1.parse_request(stream[:length])
            body = request.body()
            pieces, used = body.feed(stream[length:])
            if not body.ended:
                break
            content = b"".join(pieces)
            stream = stream[length + used :]
            written = http1.write_request(request, request.host, b"Ours: 1\r\n")
            if request.is_chunked:
                written += http1.chunk([memoryview(content)]) + http1.LAST_CHUNK
            else:
                written += content
            seen.append((request, content, written))
    except Malformed:
        pass
    return seen


@given(st.lists(messages(), min_size=1, max_size=3).map(b"".join))
@example(field(b"Content-Length: 5") + b"hello" + field(b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n")
def test_h11_reads_what_we_write_as_we_read_what_came(stream: bytes) -> None:
    """As many requests, each with the same method, target and content, and nothing behind the last."""
    ours = read_and_write(stream) or read_and_write(field())
    while ours:
        last = next((index for index, (request, _, _) in enumerate(ours) if request.has_body), len(ours))
        on_one_connection, ours = ours[: last + 1], ours[last + 1 :]
        theirs = h11.Connection(h11.SERVER)
        theirs.receive_data(b"".join(written for _, _, written in on_one_connection))
        for request, content, _ in on_one_connection:
            head = theirs.next_event()
            assert isinstance(head, h11.Request)
            assert (head.method, head.target) == (request.method, request.target)
            assert [value for name, value in head.headers if name == b"host"] == [request.host]
            names = {name for name, _ in head.headers}
            assert not names & {b"te", b"trailer", b"keep-alive", b"x-forwarded-for"}
            received = b""
            while isinstance(event := theirs.next_event(), h11.Data):
                received += event.data
            assert isinstance(event, h11.EndOfMessage)
            assert received == content
            theirs.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
            theirs.send(h11.EndOfMessage())
            if request.has_body:
                assert theirs.their_state is h11.MUST_CLOSE
            else:
                theirs.start_next_cycle()
        assert theirs.next_event() is h11.NEED_DATA
        assert theirs.trailing_data == (b"", False)


@given(messages())
def test_h11_refuses_nothing_that_we_accept(message: bytes) -> None:
    """What passes our grammar as it came passes h11's as it came, unless h11 is the stricter one in what we drop."""
    for request, content, _ in read_and_write(message)[:1]:
        theirs = h11.Connection(h11.SERVER)
        theirs.receive_data(message)
        try:
            head = theirs.next_event()
        except h11.RemoteProtocolError:
            continue  # it is refused by somebody
        assert isinstance(head, h11.Request)
        assert head.method == request.method
        received = b""
        while isinstance(event := theirs.next_event(), h11.Data):
            received += event.data
        assert received == content
