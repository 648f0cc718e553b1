"""How one value is written, one table for each kind."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aop_proxy import notation
from aop_proxy.model import Listen, Upstream, UpstreamTls

ANY_SIZE = notation.size(1, 1024 * 1024)
SHA256 = "2b7e151628aed2a6abf7158809cf4f3c2b7e151628aed2a6abf7158809cf4f3c"


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (notation.duration, "10s", 10.0),
        (notation.duration, "500ms", 0.5),
        (notation.duration, "5m", 300.0),
        (notation.duration, "1h", 3600.0),
        (notation.duration, "1.5", 1.5),
        (notation.duration, "168h", 604800.0),
        (notation.delay, "0s", 0.0),
        (notation.delay, "500ms", 0.5),
        (ANY_SIZE, "16KiB", 16384),
        (ANY_SIZE, "1MiB", 1048576),
        (ANY_SIZE, "512", 512),
        (notation.automatic(8), "auto", None),
        (notation.automatic(8), "8", 8),
        (notation.rate, "0.5", 0.5),
        (notation.user, "www-data", "www-data"),
        (notation.host, "Example.COM.", "example.com"),
        (notation.host, "*.Example.com", "*.example.com"),
        (notation.host, "xn--bcher-kva.de", "xn--bcher-kva.de"),
        (notation.identity_name, "Edge.Example.com", "edge.example.com"),
        (notation.identity_name, "spiffe://Example/Edge", "spiffe://Example/Edge"),
        (notation.identity_name, "Müller Edge 7", "Müller Edge 7"),
        (notation.fingerprint, SHA256, SHA256),
        (notation.fingerprint, ":".join(SHA256[i : i + 2].upper() for i in range(0, 64, 2)), SHA256),
        (notation.listen, "0.0.0.0:443", Listen("0.0.0.0", 443)),
        (notation.listen, "[0:0::1]:0", Listen("::1", 0)),
        (notation.listen, "LocalHost:8443", Listen("localhost", 8443)),
        (notation.upstream, "http://127.0.0.1:8000", Upstream("http://127.0.0.1:8000", "127.0.0.1", 8000)),
        (notation.upstream, "http://my_app", Upstream("http://my_app:80", "my_app", 80)),
        (notation.upstream, "http://[::1]:81", Upstream("http://[::1]:81", "::1", 81)),
        (notation.upstream, "https://App", Upstream("https://app:443", "app", 443, tls=UpstreamTls())),
        (notation.server_name, "App.example.", "app.example"),
        (notation.server_name, "0::1", "::1"),
        (notation.upstream, "unix:/run/app.sock", Upstream("unix:/run/app.sock", path="/run/app.sock")),
    ],
)
def test_reads_what_is_right(parse: Callable[[str], object], text: str, expected: object) -> None:
    """Every form that is documented gives its value, in one spelling."""
    assert expected == parse(text)


@pytest.mark.parametrize(
    ("parse", "text", "sentence"),
    [
        (
            notation.duration,
            "1:30",
            '"1:30" is not a duration: write `10s`, `500ms`, `5m`, `1h` or a number of seconds',
        ),
        (notation.duration, "0s", '"0s" is out of range: write more than `0s` and at most `604800s`'),
        (notation.delay, "-1s", '"-1s" is not a duration: write `10s`, `500ms`, `5m`, `1h` or a number of seconds'),
        (notation.delay, "169h", '"169h" is out of range: write `0s` to `604800s`'),
        (notation.duration, "169h", '"169h" is out of range: write more than `0s` and at most `604800s`'),
        (ANY_SIZE, "16KB", '"16KB" is not a size: write `16KiB`, `1MiB` or a number of bytes'),
        (ANY_SIZE, "2MiB", '"2MiB" is out of range: write 1 to 1048576 bytes'),
        (notation.automatic(8), "9", '"9" is not possible: write `auto` or a whole number from 1 to 8'),
        (notation.automatic(8), "1.0", '"1.0" is not possible: write `auto` or a whole number from 1 to 8'),
        (notation.rate, "0", '"0" is not a rate: write a number above 0 and below 1000000'),
        (notation.user, "a b", '"a b" is not a user: write a user\'s name or number'),
        (notation.path, "", '"" is no path: name a file'),
        (notation.host, "Bücher.de", '"Bücher.de" is not ASCII: write `xn--bcher-kva.de`'),
        (notation.host, "straße.de", '"straße.de" is not ASCII: write its A-label, which begins with `xn--`'),
        (notation.host, "*", '"*" names no host: leave the list out to accept any name'),
        (
            notation.host,
            "a*.example.com",
            '"a*.example.com" has a * that is not the whole first label: write it as in `*.example.com`',
        ),
        (
            notation.host,
            "192.0.2.1",
            '"192.0.2.1" is an address, and clients send none as server name: write a host name',
        ),
        (notation.host, "[::1]", '"[::1]" is an address, and clients send none as server name: write a host name'),
        (
            notation.host,
            "-a.example",
            '"-a.example" is not a host name: write letters, digits, hyphens and dots, and nothing else',
        ),
        (
            notation.host,
            "a\x1b[2J\u202e",
            r'"a\x1b[2J\u202e" is not ASCII: write its A-label, which begins with `xn--`',
        ),
        (notation.identity_name, " ", '" " is no name: write a DNS name, a URI or a common name'),
        (notation.identity_name, "*", '"*" names no host: leave the list out to accept any name'),
        (notation.fingerprint, "xyz", '"xyz" is not a SHA-256 fingerprint: write 64 hexadecimal digits'),
        (notation.upstream, "http://a:b", '"http://a:b" cannot be read: write http://HOST:PORT'),
        (notation.fingerprint, "abcd", '"abcd" is not a SHA-256 fingerprint: write 64 hexadecimal digits'),
        (
            notation.fingerprint,
            SHA256[:40],
            f'"{SHA256[:40]}" is a SHA-1 fingerprint: write the certificate\'s SHA-256 one',
        ),
        (
            notation.listen,
            ":443",
            '":443" names no address: write `0.0.0.0:443` for all of IPv4, `[::]:443` for all of IPv6',
        ),
        (notation.listen, "443", '"443" lacks a part: write HOST:PORT, as in `0.0.0.0:443` or `[::]:443`'),
        (
            notation.listen,
            "::1:443",
            '"::1:443" is ambiguous: put an IPv6 address in brackets, as in `[::1]:8443`',
        ),
        (notation.listen, "a:443/b", '"a:443/b" cannot be read: write HOST:PORT'),
        (notation.listen, "a:65536", "port 65536 does not exist: write 0 to 65535"),
        (notation.listen, "1.2.3.400:1", '"1.2.3.400" is not an IP address: correct it or write a host name'),
        (notation.listen, "*.a:443", '"*.a" is a pattern: write one address or host name'),
        (
            notation.upstream,
            "ftp://a",
            '"ftp://a" has an unknown scheme: write `http[s]://HOST:PORT` or `unix:/path`',
        ),
        (
            notation.upstream,
            "a:8000",
            '"a:8000" has no scheme: write `http[s]://HOST:PORT` or `unix:/path`',
        ),
        (
            notation.upstream,
            "https://a/b",
            '"https://a/b" has a path, which is meaningless here: write `https://HOST:PORT`',
        ),
        (notation.server_name, "*.a", '"*.a" is a pattern: write one host name or address'),
        (
            notation.upstream,
            "http://a/",
            '"http://a/" has a path, which is meaningless here: write `http://HOST:PORT`',
        ),
        (
            notation.upstream,
            "http://a?b",
            '"http://a?b" has a query, which is meaningless here: write `http://HOST:PORT`',
        ),
        (
            notation.upstream,
            "http://user:secret@a",
            '"http://…@a" has a user name, which is meaningless here: write `http://HOST:PORT`',
        ),
        (notation.upstream, "http://:80", '"http://:80" names no host: write `http://HOST:PORT`'),
        (notation.upstream, "http://a:0", "port 0 does not exist: write 1 to 65535"),
        (
            notation.upstream,
            "unix:app.sock",
            '"unix:app.sock" names no absolute path: write it as in `unix:/run/app.sock`',
        ),
        (
            notation.upstream,
            "unix:/" + "a" * 107,
            f'"unix:/{"a" * 74}…" is too long: a socket\'s path has at most 107 bytes',
        ),
    ],
)
def test_says_what_is_wrong(parse: Callable[[str], object], text: str, sentence: str) -> None:
    """Every mistake gets one sentence that says what to write, and control characters in it are escaped."""
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert sentence == str(caught.value)


@given(st.text(st.characters()), st.sampled_from([notation.host, notation.listen, notation.upstream]))
def test_sentences_are_printable(text: str, parse: Callable[[str], object]) -> None:
    """Whatever is written, the answer is a value or a sentence that can be printed on any terminal."""
    try:
        sentence = str(parse(text))
    except ValueError as error:
        sentence = str(error)
    assert sentence.isprintable()
