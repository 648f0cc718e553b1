"""Sealed pages held to the published traces of RFC 8448, and opened by the tests' own record layer, which shares nothing
with ours.
"""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rfc8448
import tls13
from aop_proxy.farewell import MAX_FRAGMENT, expand_label, seal_farewell
from rfc8448 import Trace
from tls13 import ContentType, Suite, TrafficKeys, split_records

CLOSE_NOTIFY = b"\x01\x00"
SMALLEST_FRAGMENT_LENGTH = 512  # RFC 6066 section 4

traces = pytest.mark.parametrize("trace", rfc8448.TRACES, ids=lambda trace: trace.section)
suites = pytest.mark.parametrize("suite", tls13.SUITES, ids=lambda suite: suite.name)


def secret_of(suite: Suite, seed: int = 0) -> bytes:
    return hashlib.new(suite.hash, bytes([seed])).digest()


def open_in_order(suite: Suite, secret: bytes, wire: bytes) -> list[tuple[int, bytes]]:
    """Type and plaintext of every record, each opened under the next sequence number from 0; nothing may be left over."""
    records, rest = split_records(wire)
    assert rest == b""
    keys = TrafficKeys(suite, secret)
    return [(record.content_type, record.plaintext) for record in map(keys.open, records)]


@traces
def test_key_and_iv_are_the_published_ones(trace: Trace) -> None:
    """HKDF-Expand-Label makes the RFC's write key and IV of the RFC's secret."""
    assert trace.server_key == expand_label(trace.server_application_traffic_secret, b"key", 16, "sha256")
    assert trace.server_iv == expand_label(trace.server_application_traffic_secret, b"iv", 12, "sha256")


@pytest.mark.parametrize("trace", [rfc8448.RETRY, rfc8448.CLIENT_AUTHENTICATION], ids=lambda trace: trace.section)
def test_a_lone_close_notify_is_the_published_record(trace: Trace) -> None:
    """Where the RFC's server sends only its close_notify, an empty page is that record, byte for byte."""
    [published] = trace.server_records
    assert published.wire == seal_farewell(trace.server_application_traffic_secret, "TLS_AES_128_GCM_SHA256", b"")


def test_data_and_close_notify_are_the_published_records() -> None:
    """The RFC's records 1 and 2 come out byte for byte behind a full record 0."""
    _, data, close_notify = rfc8448.SIMPLE.server_records
    page = bytes(MAX_FRAGMENT) + data.plaintext
    sealed = seal_farewell(rfc8448.SIMPLE.server_application_traffic_secret, "TLS_AES_128_GCM_SHA256", page)
    records, _ = split_records(sealed)
    assert [data.wire, close_notify.wire] == records[1:]


@suites
def test_a_page_and_a_close_notify(suite: Suite) -> None:
    """A short page is one record under number 0, and a close_notify under number 1 ends it."""
    secret = secret_of(suite)
    sealed = seal_farewell(bytearray(secret), suite.name, b"page")
    expected = [(ContentType.APPLICATION_DATA, b"page"), (ContentType.ALERT, CLOSE_NOTIFY)]
    assert expected == open_in_order(suite, secret, sealed)


@suites
@pytest.mark.parametrize("length", [0, 1, 479, 480, 481, 960, 961, 70_000])
def test_a_long_page_is_cut(suite: Suite, length: int) -> None:
    """Every record is full at 480 bytes of plaintext but the last, so that with its type it stays below 512."""
    secret, page = secret_of(suite), bytes(index % 251 for index in range(length))
    opened = open_in_order(suite, secret, seal_farewell(secret, suite.name, page))
    pieces = [plaintext for content_type, plaintext in opened if content_type == ContentType.APPLICATION_DATA]
    assert page == b"".join(pieces)
    assert [480] * (length // 480) + [length % 480] * (length % 480 > 0) == [len(piece) for piece in pieces]
    assert all(len(piece) + 1 < SMALLEST_FRAGMENT_LENGTH for piece in pieces)
    assert opened[-1] == (ContentType.ALERT, CLOSE_NOTIFY)


@given(suite=st.sampled_from(tls13.SUITES), seed=st.integers(0, 255), page=st.binary(max_size=3000))
def test_any_page_under_any_secret_is_read_whole(suite: Suite, seed: int, page: bytes) -> None:
    """What is sealed opens to the page, and to nothing under another secret."""
    secret = secret_of(suite, seed)
    sealed = seal_farewell(secret, suite.name, page)
    *data, end = open_in_order(suite, secret, sealed)
    assert page == b"".join(plaintext for _, plaintext in data)
    assert end == (ContentType.ALERT, CLOSE_NOTIFY)
    assert tls13.records_under(suite, secret_of(suite, (seed + 1) % 256), sealed) == []


@suites
def test_sealing_twice_gives_the_same_bytes(suite: Suite) -> None:
    """There is no state and no chance in it: the same page under the same secret uses no nonce for anything new."""
    secret = secret_of(suite)
    assert seal_farewell(secret, suite.name, b"page") == seal_farewell(secret, suite.name, b"page")


@pytest.mark.parametrize("name", ["", "TLS_AES_128_CCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"])
def test_no_page_under_a_suite_that_is_not_known(name: str) -> None:
    """Any other suite is a mistake of the caller's, and seals nothing."""
    with pytest.raises(KeyError):
        seal_farewell(bytes(32), name, b"page")
