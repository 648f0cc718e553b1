"""PROXY headers that other programs write and read, whole, in pieces and spoilt.

Specimens come from the specification (HAProxy's doc/proxy-protocol.txt), from the tests of aiosmtpd, HAProxy, NGINX and
libproxyprotocol, and from what Cloudflare Spectrum, Amazon, Google and Microsoft document.
"""

import base64
import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv6Address, ip_address
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from actors import PATIENCE, TlsClient, client_context, free_port, missing_peer, require_peer, running, wait_for_port
from aop_proxy.proxy_protocol import (
    MAX_V1,
    MAX_V2,
    PP2_CLIENT_CERT_CONN,
    PP2_CLIENT_CERT_SESS,
    PP2_CLIENT_SSL,
    Address,
    Complete,
    Header,
    Incomplete,
    Invalid,
    Tls,
    crc32c,
    encode_v1,
    encode_v2,
    parse,
)
from backends import ScriptedBackend, listening, scripted
from certificates import Authority, CredentialFiles, Credentials

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
LOCAL, PROXY = 0x20, 0x21
UNSPEC, TCP4, UDP4, TCP6, UDP6, UNIX_STREAM, UNIX_DATAGRAM = 0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32
TRAILER = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and so on\r\n"
"""What comes after a header: a ClientHello, say."""


def version_2(command: int, family: int, block: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


LOOPBACK = bytes.fromhex("7f000001 7f000001 002a 0539")
FROM_LOOPBACK = Header(("127.0.0.1", 42), ("127.0.0.1", 1337))
"""The addresses of HAProxy's own tests."""


def tcp4(*tlvs: bytes) -> bytes:
    return version_2(PROXY, TCP4, LOOPBACK + b"".join(tlvs))


def with_checksum(header: bytes, checksum: bytes | None = None) -> bytes:
    """The header with a checksum as its last TLV: the right one, or another."""
    block = header[16:] + tlv(0x03, bytes(4))
    blank = header[:14] + struct.pack("!H", len(block)) + block
    return blank[:-4] + (crc32c(blank).to_bytes(4) if checksum is None else checksum)


# Specimens


FFFF = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"

VERSION_1: dict[str, tuple[bytes, Header]] = {
    "spec": (
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        Header(("192.168.0.1", 56324), ("192.168.0.11", 443)),
    ),
    "spec_longest_tcp4": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        Header(("255.255.255.255", 65535), ("255.255.255.255", 65535)),
    ),
    "spec_longest_tcp6": (f"PROXY TCP6 {FFFF} {FFFF} 65535 65535\r\n".encode(), Header((FFFF, 65535), (FFFF, 65535))),
    "cloudflare_spectrum_tcp4": (
        b"PROXY TCP4 192.0.2.0 192.0.2.255 42300 443\r\n",
        Header(("192.0.2.0", 42300), ("192.0.2.255", 443)),
    ),
    "cloudflare_spectrum_tcp6": (
        b"PROXY TCP6 2001:db8:: 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff 42300 443\r\n",
        Header(("2001:db8::", 42300), ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", 443)),
    ),
    "amazon_classic": (
        b"PROXY TCP4 198.51.100.22 203.0.113.7 35646 80\r\n",
        Header(("198.51.100.22", 35646), ("203.0.113.7", 80)),
    ),
    "nginx_tests": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 5678\r\n", Header(("192.0.2.1", 1234), ("192.0.2.2", 5678))),
    "aiosmtpd_tcp4": (b"PROXY TCP4 1.2.3.4 5.6.7.8 0 65535\r\n", Header(("1.2.3.4", 0), ("5.6.7.8", 65535))),
    "aiosmtpd_tcp6": (
        b"PROXY TCP6 2020:dead::0001 2021:cafe::0002 8000 65535\r\n",
        Header(("2020:dead::1", 8000), ("2021:cafe::2", 65535)),
    ),
    "four_digits_a_set": (
        b"PROXY TCP6 2020:dead:0000:0000:0000:0000:0000:0001 ::1 1 2\r\n",
        Header(("2020:dead::1", 1), ("::1", 2)),
    ),
    "upper_case_hexadecimal": (b"PROXY TCP6 2001:DB8::A ::B 1 2\r\n", Header(("2001:db8::a", 1), ("::b", 2))),
    "shortest_tcp6": (b"PROXY TCP6 :: :: 0 0\r\n", Header(("::", 0), ("::", 0))),
}

LISTENER_OF_BOTH_FAMILIES: dict[str, tuple[bytes, Header]] = {
    "haproxy_v4v6": (
        b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1 2\r\n",
        Header(("192.0.2.1", 1), ("192.0.2.2", 2)),
    ),
    "hexadecimal": (b"PROXY TCP6 ::ffff:c000:201 2001:db8::1 1 2\r\n", Header(("192.0.2.1", 1), ("2001:db8::1", 2))),
    "version_2": (
        version_2(
            PROXY, TCP6, bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 1]) + bytes(15) + b"\1" + bytes([0, 1, 0, 2])
        ),
        Header(("192.0.2.1", 1), ("::1", 2)),
    ),
}

VERSION_2: dict[str, tuple[bytes, Header]] = {
    "haproxy_dump": (
        bytes.fromhex("0d0a0d0a000d0a515549540a 2111 000c ac130001 ac130003 a652 0050"),
        Header(("172.19.0.1", 42578), ("172.19.0.3", 80)),
    ),
    "haproxy_authority": (tcp4(bytes.fromhex("020005 3132333435")), replace(FROM_LOOPBACK, authority="12345")),
    "haproxy_many": (
        bytes.fromhex(
            "0d0a0d0a000d0a515549540a 2111 002f 7f0000017f000001002a0539 020006 7075626c6963 050006 7075626c6963"
            " e10006 7075626c6963 200005 0000000000"
        ),
        replace(FROM_LOOPBACK, authority="public", unique_id=b"public", tls=Tls(client=0, verify=0)),
    ),
    "haproxy_nul_inside": (
        bytes.fromhex(
            "0d0a0d0a000d0a515549540a 2111 002d 7f0000017f000001002a0539 020008 7075626c69630078"
            " 050008 7075626c69630078 e10008 7075626c69630078"
        ),
        replace(FROM_LOOPBACK, authority="public\0x", unique_id=b"public\0x"),
    ),
    "amazon_endpoint": (  # a capture, from the tests of libproxyprotocol: checksum, VPC endpoint, 36 bytes of padding
        bytes.fromhex(
            "0d0a0d0a000d0a515549540a 2111 0054 ac1f0771 ac1f0a1f c8f2 0050 030004 e8d6892d"
            " ea0017 01767063652d3038643262663135666163353030316339 040024"
        )
        + bytes(36),
        Header(("172.31.7.113", 51442), ("172.31.10.31", 80)),
    ),
    "microsoft_private_link": (tcp4(tlv(0xEE, b"\x01" + struct.pack("<I", 123456))), FROM_LOOPBACK),
    "google_private_service": (tcp4(tlv(0xE0, (1234567890).to_bytes(8))), FROM_LOOPBACK),
    "aiosmtpd": (
        base64.b64decode(
            "DQoNCgANClFVSVQKIREAcn8AAAF/AAABsFJipQMABFT9xv8CAAlBVVRIT1JJVFkFAAlVTklRVUVf"
            "SUQgAEQBAAAAACEAB1RMU3YxLjIlAAdSU0E0MDk2JAAKUlNBLVNIQTI1NiMAG0VDREhFLVJTQS1B"
            "RVMyNTYtR0NNLVNIQTM4NA=="
        ),
        Header(
            ("127.0.0.1", 45138),
            ("127.0.0.1", 25253),
            authority="AUTHORITY",
            unique_id=b"UNIQUE_ID",
            tls=Tls(
                PP2_CLIENT_SSL,
                verify=0,
                version="TLSv1.2",
                cipher="ECDHE-RSA-AES256-GCM-SHA384",
                signature_algorithm="RSA-SHA256",
                key_algorithm="RSA4096",
            ),
        ),
    ),
    "tcp6": (
        version_2(PROXY, TCP6, IPv6Address("2001:db8::1").packed + IPv6Address("::1").packed + b"\xff\xff\x01\xbb"),
        Header(("2001:db8::1", 65535), ("::1", 443)),
    ),
    "certificate": (
        tcp4(
            tlv(0x01, b"h2"), tlv(0x20, bytes([7, 0, 0, 0, 0]) + tlv(0x22, "Zoë".encode()) + tlv(0x28, b"\x30\x82DER"))
        ),
        replace(FROM_LOOPBACK, alpn=b"h2", tls=Tls(7, 0, common_name="Zoë", certificate=b"\x30\x82DER")),
    ),
    "types_of_tomorrow": (
        tcp4(tlv(0x06, b"?"), tlv(0x06, b"!"), tlv(0xFF, b""), tlv(0x02, b"a")),
        replace(FROM_LOOPBACK, authority="a"),
    ),
    "longest_unique_id": (tcp4(tlv(0x05, b"u" * 128)), replace(FROM_LOOPBACK, unique_id=b"u" * 128)),
    "checksum_behind": (with_checksum(tcp4(tlv(0x01, b"h2"))), replace(FROM_LOOPBACK, alpn=b"h2")),
    "as_long_as_can_be": (tcp4(tlv(0x04, bytes(MAX_V2 - len(tcp4()) - 3))), FROM_LOOPBACK),
}

WITHOUT_ADDRESSES: dict[str, tuple[bytes, Header]] = {
    "unknown": (b"PROXY UNKNOWN\r\n", Header()),
    "unknown_longest": (f"PROXY UNKNOWN {FFFF} {FFFF} 65535 65535\r\n".encode(), Header()),
    "aiosmtpd_unknown": (b"PROXY UNKNOWN whatever\r\n", Header()),
    "local": (version_2(LOCAL, UNSPEC, b""), Header()),
    "aiosmtpd_local_with_a_block": (version_2(LOCAL, UNSPEC, b"asdfghjkl"), Header()),
    "local_with_addresses": (version_2(LOCAL, TCP4, LOOPBACK + b"fake_tlv"), Header()),
    "local_with_no_family": (version_2(LOCAL, 0xFF, b"whatever"), Header()),
    "unspec": (version_2(PROXY, UNSPEC, b""), Header()),
    "unspec_with_a_block": (version_2(PROXY, UNSPEC, b"whatever"), Header()),
    "unix_stream": (
        version_2(PROXY, UNIX_STREAM, struct.pack("108s108s", b"/proc/source", b"/proc/dest") + tlv(0x02, b"a")),
        Header(authority="a"),
    ),
    "unix_datagram": (version_2(PROXY, UNIX_DATAGRAM, bytes(216)), Header()),
    "udp4": (version_2(PROXY, UDP4, LOOPBACK), Header()),
    "udp6": (version_2(PROXY, UDP6, bytes(36)), Header()),
}

VALID = VERSION_1 | VERSION_2 | LISTENER_OF_BOTH_FAMILIES | WITHOUT_ADDRESSES
valid = pytest.mark.parametrize(("wire", "header"), VALID.values(), ids=VALID)

NOT_ONE = "the connection does not begin with a PROXY header"
NOT_A_LINE = "version 1: the line is not as it must be"
NO_CRLF = "version 1: no CRLF where it must be"
NO_FAMILY = "version 2: no address family and transport"
TOO_LONG = "version 2: longer than 4096 bytes"
BEYOND = "version 2: a TLV reaches beyond what holds it"
WRONG_CHECKSUM = "version 2: the checksum is wrong"

INVALID: dict[str, tuple[bytes, str]] = {
    "tls": (TRAILER, NOT_ONE),
    "http": (b"GET / HTTP/1.1\r\n\r\n", NOT_ONE),
    "aiosmtpd_helo": (b"HELO example.org\r\n", NOT_ONE),
    "aiosmtpd_not_proxy": (b"NOTPROX TCP4 1.2.3.4 5.6.7.8 65535 65535\r\n", NOT_ONE),
    "nginx_bogus": (b"BOGUS TCP4 192.0.2.1 192.0.2.2 1234 5678\r\n", NOT_ONE),
    "lower_case": (b"proxy tcp4 1.2.3.4 5.6.7.8 1 2\r\n", NOT_ONE),
    "late": (b"\r\nPROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", NOT_ONE),
    "late_by_a_space": (b" PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", NOT_ONE),
    "tab_behind_proxy": (b"PROXY\tTCP4 1.2.3.4 5.6.7.8 1 2\r\n", NOT_ONE),
    "aiosmtpd_signature": (b"\r\n\r\n\x00\r\nQUIP\n" + bytes(4), NOT_ONE),
    "lower_case_protocol": (b"PROXY tcp4 1.2.3.4 5.6.7.8 1 2\r\n", NOT_A_LINE),
    "lower_case_unknown": (b"PROXY unknown\r\n", NOT_A_LINE),
    "no_protocol": (b"PROXY \r\n", NOT_A_LINE),
    "udp": (b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n", NOT_A_LINE),
    "tcp5": (b"PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n", NOT_A_LINE),
    "unknown_word": (b"PROXY UNKNOWNS\r\n", NOT_A_LINE),
    "unknown_with_lf_inside": (b"PROXY UNKNOWN a\nb\r\n", NOT_A_LINE),
    "unknown_with_cr_inside": (b"PROXY UNKNOWN a\rb\r\n", NOT_A_LINE),
    "two_spaces": (b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n", NOT_A_LINE),
    "tab": (b"PROXY TCP4 1.2.3.4\t5.6.7.8 1 2\r\n", NOT_A_LINE),
    "space_at_the_end": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n", NOT_A_LINE),
    "word_at_the_end": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n", NOT_A_LINE),
    "no_ports": (b"PROXY TCP4 1.2.3.4 5.6.7.8\r\n", NOT_A_LINE),
    "one_port": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", NOT_A_LINE),
    "empty_port": (b"PROXY TCP4 1.2.3.4 5.6.7.8  2\r\n", NOT_A_LINE),
    "port_with_leading_zero": (b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n", NOT_A_LINE),
    "aiosmtpd_port_with_leading_zero": (b"PROXY TCP6 2020:dead::0001 2021:cafe::0002 02501 0\r\n", NOT_A_LINE),
    "port_zero_twice": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 00\r\n", NOT_A_LINE),
    "port_with_sign": (b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n", NOT_A_LINE),
    "port_below_0": (b"PROXY TCP4 1.2.3.4 5.6.7.8 -1 2\r\n", NOT_A_LINE),
    "port_of_six_digits": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 100000\r\n", NOT_A_LINE),
    "port_with_underscore": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 6_0\r\n", NOT_A_LINE),
    "port_in_hexadecimal": (b"PROXY TCP4 1.2.3.4 5.6.7.8 0x1 2\r\n", NOT_A_LINE),
    "port_in_arabic_digits": ("PROXY TCP4 1.2.3.4 5.6.7.8 ١ 2\r\n".encode(), NOT_A_LINE),
    "aiosmtpd_source_port_65536": (b"PROXY TCP4 1.2.3.4 5.6.7.8 65536 10200\r\n", "version 1: a port above 65535"),
    "aiosmtpd_destination_port_65536": (
        b"PROXY TCP6 2020:dead::0001 2021:cafe::0002 10000 65536\r\n",
        "version 1: a port above 65535",
    ),
    "scope": (b"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n", NOT_A_LINE),
    "brackets": (b"PROXY TCP6 [::1] [::1] 1 2\r\n", NOT_A_LINE),
    "prefix_length": (b"PROXY TCP4 1.2.3.4/8 5.6.7.8 1 2\r\n", NOT_A_LINE),
    "aiosmtpd_not_hexadecimal": (b"PROXY TCP6 2020:dead::000g 2021:cafe::0002 1 2\r\n", NOT_A_LINE),
    "aiosmtpd_lf_alone": (b"PROXY UNKNOWN\n", NO_CRLF),
    "lf_alone": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", NO_CRLF),
    "cr_alone": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\rG", NO_CRLF),
    "no_crlf_in_107": (b"PROXY UNKNOWN ".ljust(107, b"*"), NO_CRLF),
    "crlf_too_late_by_one": (b"PROXY UNKNOWN ".ljust(106, b"*") + b"\r\n", NO_CRLF),
    "aiosmtpd_too_long": (b"PROXY UNKNOWN " + b"*" * 100 + b"\r\n", NO_CRLF),
    "version_1_of_the_signature": (SIGNATURE + b"\x11\x11\x00\x0c" + LOOPBACK, "version 2: neither LOCAL nor PROXY"),
    "aiosmtpd_version_3": (SIGNATURE + b"\x30\x00\x00\x00", "version 2: neither LOCAL nor PROXY"),
    "aiosmtpd_command_2": (version_2(0x22, UNSPEC, b""), "version 2: neither LOCAL nor PROXY"),
    "aiosmtpd_family_4": (version_2(PROXY, 0x40, b""), NO_FAMILY),
    "aiosmtpd_transport_3": (version_2(PROXY, 0x03, b""), NO_FAMILY),
    "inet_of_no_transport": (version_2(PROXY, 0x10, LOOPBACK), NO_FAMILY),
    "stream_of_no_family": (version_2(PROXY, 0x01, b""), NO_FAMILY),
    "tcp4_without_addresses": (version_2(PROXY, TCP4, b""), "version 2: too short for its addresses"),
    "tcp4_one_byte_short": (version_2(PROXY, TCP4, LOOPBACK[:-1]), "version 2: too short for its addresses"),
    "aiosmtpd_tcp4_as_tcp6": (version_2(PROXY, TCP6, LOOPBACK), "version 2: too short for its addresses"),
    "unix_one_byte_short": (version_2(PROXY, UNIX_STREAM, bytes(215)), "version 2: too short for its addresses"),
    "one_byte_too_long": (tcp4(tlv(0x04, bytes(MAX_V2 - len(tcp4()) - 2))), TOO_LONG),
    "as_long_as_can_be_said": (SIGNATURE + b"\x21\x11\xff\xff", TOO_LONG),
    "local_as_long_as_can_be_said": (SIGNATURE + b"\x20\x00\xff\xff", TOO_LONG),
    "haproxy_tlv_too_long": (tcp4(bytes.fromhex("02000a 3132333435"))[:36] + b"12345", BEYOND),
    "haproxy_tlv_too_short": (tcp4(bytes.fromhex("020004 31323334 00")), BEYOND),
    "tlv_without_length": (tcp4(b"\x04"), BEYOND),
    "tlv_with_half_a_length": (tcp4(b"\x04\x00"), BEYOND),
    "tlv_in_tlv_too_long": (tcp4(tlv(0x20, bytes(5) + b"\x21\x00\x02a")), BEYOND),
    "ssl_too_short": (tcp4(tlv(0x20, bytes(4))), "version 2: PP2_TYPE_SSL is too short"),
    "ssl_empty": (tcp4(tlv(0x20, b"")), "version 2: PP2_TYPE_SSL is too short"),
    "wrong_checksum": (with_checksum(tcp4(), bytes(4)), WRONG_CHECKSUM),
    "checksum_of_three_bytes": (tcp4(tlv(0x03, b"abc")), WRONG_CHECKSUM),
    "checksum_of_none": (tcp4(tlv(0x03, b"")), WRONG_CHECKSUM),
    "long_unique_id": (tcp4(tlv(0x05, bytes(129))), "version 2: a unique ID of more than 128 bytes"),
    "authority_not_utf_8": (
        tcp4(tlv(0x02, b"\xff")),
        "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    ),
    "common_name_not_utf_8": (
        tcp4(tlv(0x20, bytes(5) + tlv(0x22, b"\xc3"))),
        "'utf-8' codec can't decode byte 0xc3 in position 0: unexpected end of data",
    ),
}
for kind in (0x01, 0x02, 0x03, 0x05, 0x20):
    INVALID[f"{kind:#04x}_twice"] = (tcp4(2 * tlv(kind, bytes(5))), f"version 2: the TLV {kind:#04x} comes twice")
for kind in (0x21, 0x22, 0x23, 0x24, 0x25, 0x28):
    twice = tlv(0x20, bytes(5) + 2 * tlv(kind, b"a"))
    INVALID[f"{kind:#04x}_twice"] = (tcp4(twice), f"version 2: the TLV {kind:#04x} comes twice")

NO_ADDRESSES = (
    b"TCP4 1.2.3 5.6.7.8", b"TCP4 1.2.3.4.5 5.6.7.8", b"TCP4 1.2.3.256 5.6.7.8", b"TCP4 01.2.3.4 5.6.7.8",
    b"TCP4 1.2.3.4 5.6.7.08", b"TCP4 1.2.3. 5.6.7.8", b"TCP4 .1.2.3.4 5.6.7.8", b"TCP4 16909060 5.6.7.8",
    b"TCP4 2020:dead::0001 2021:cafe::0002", b"TCP4 ::1 5.6.7.8", b"TCP4 1.2.3.a 5.6.7.8",
    b"TCP6 1.2.3.4 5.6.7.8", b"TCP6 1.2.3.4 2021:cafe::0002", b"TCP6 2021:cafe::0002 1.2.3.4", b"TCP6 ::1::2 ::",
    b"TCP6 ::: ::", b"TCP6 1:2:3:4:5:6:7 ::", b"TCP6 1:2:3:4:5:6:7:8:9 ::", b"TCP6 00001:: ::",
    b"TCP6 :1:2:3:4:5:6:7 ::", b"TCP6 ::ffff:1.2.3 ::", b"TCP6 ::ffff:1.2.3.04 ::", b"TCP6 ::1.2.3.4:5 ::",
    b"TCP6 1:2:3:4:5:6:7:8:: ::",
)  # fmt: skip


# Reading


@valid
def test_a_header_is_read_and_its_size(wire: bytes, header: Header) -> None:
    """Whole, alone and with the connection's own bytes behind it, which are left alone."""
    assert Complete(header, len(wire)) == parse(wire)
    assert Complete(header, len(wire)) == parse(wire + TRAILER)
    assert Complete(header, len(wire)) == parse(wire + bytes(100_000))
    assert Complete(header, len(wire)) == parse(memoryview(bytearray(wire + wire)))


@valid
def test_a_header_may_come_byte_by_byte(wire: bytes, header: Header) -> None:
    """Every part of it wants more, and never so much that a byte behind the header would be taken."""
    for size in range(len(wire)):
        parsed = parse(wire[:size])
        assert isinstance(parsed, Incomplete)
        assert 1 <= parsed.wanted <= len(wire) - size


@valid
def test_who_reads_what_is_wanted_reads_the_header_and_no_more(wire: bytes, header: Header) -> None:
    """The connection's own bytes can stay where they are."""
    taken, rest = b"", wire + TRAILER
    while isinstance(parsed := parse(taken), Incomplete):
        taken, rest = taken + rest[: parsed.wanted], rest[parsed.wanted :]
    assert (Complete(header, len(wire)), TRAILER) == (parsed, rest)


@pytest.mark.parametrize(("wire", "why"), INVALID.values(), ids=INVALID)
def test_what_is_no_header_is_refused(wire: bytes, why: str) -> None:
    """By a sentence, also in pieces and with bytes behind it: no part of it is ever taken for a header."""
    assert Invalid(why) == parse(wire)
    assert isinstance(parse(wire + TRAILER), Invalid)
    for size in range(len(wire)):
        assert not isinstance(parse(wire[:size]), Complete)


@pytest.mark.parametrize("addresses", NO_ADDRESSES, ids=bytes.decode)
def test_an_address_that_is_not_canonical_is_refused(addresses: bytes) -> None:
    """Of the wrong family, with leading zeros, too short or too long."""
    assert isinstance(parse(b"PROXY " + addresses + b" 1 2\r\n"), Invalid)


@pytest.mark.parametrize(
    ("begun", "why"),
    [
        (b"G", NOT_ONE),
        (b"\x16", NOT_ONE),
        (b"PROXY TCP4 1.2.3.4\n", NO_CRLF),
        (SIGNATURE + b"\x21\x13\x00\x0c", NO_FAMILY),
        (SIGNATURE + b"\x21\x11\x0f\xf1", TOO_LONG),
    ],
)
def test_what_can_become_no_header_is_refused_before_its_end(begun: bytes, why: str) -> None:
    """Nobody waits for bytes that cannot help (section 2.1: "as soon as possible")."""
    assert Invalid(why) == parse(begun)


@pytest.mark.parametrize(
    ("data", "checksum"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)],
)
def test_the_checksum_is_the_published_one(data: bytes, checksum: int) -> None:
    """The check value of CRC-32C, and RFC 3720 appendix B.4."""
    assert checksum == crc32c(data)


# Writing


CERTIFICATE_SHOWN = PP2_CLIENT_SSL | PP2_CLIENT_CERT_CONN | PP2_CLIENT_CERT_SESS
V4, V6 = ("192.0.2.1", 56324), ("2001:db8::1", 443)


@pytest.mark.parametrize(
    ("source", "destination", "line"),
    [
        (V4, ("192.0.2.2", 443), b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n"),
        (V6, ("2001:db8::2", 1), b"PROXY TCP6 2001:db8::1 2001:db8::2 443 1\r\n"),
        (V4, V6, b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 56324 443\r\n"),
        (V6, V4, b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 443 56324\r\n"),
        (("::ffff:192.0.2.1", 1), ("192.0.2.2", 2), b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"),
        (("fe80::1%eth0", 1), ("fe80::2%eth0", 2), b"PROXY TCP6 fe80::1 fe80::2 1 2\r\n"),
        (None, None, b"PROXY UNKNOWN\r\n"),
        (V4, None, b"PROXY UNKNOWN\r\n"),
    ],
)
def test_a_line_of_version_1(source: Address | None, destination: Address | None, line: bytes) -> None:
    """Addresses of two families are both written as IPv6, as HAProxy and NGINX do it."""
    assert line == encode_v1(Header(source, destination))


@pytest.mark.parametrize(
    ("header", "checksum", "wire"),
    [
        (FROM_LOOPBACK, False, tcp4()),
        (FROM_LOOPBACK, True, with_checksum(tcp4())),
        (Header(), True, version_2(LOCAL, UNSPEC, b"")),
        (Header(V4, None, authority="a"), False, version_2(LOCAL, UNSPEC, b"")),
        (
            Header(V6, V4),
            False,
            version_2(
                PROXY,
                TCP6,
                IPv6Address("2001:db8::1").packed + IPv6Address("::ffff:192.0.2.1").packed + b"\x01\xbb\xdc\x04",
            ),
        ),
        (
            replace(FROM_LOOPBACK, alpn=b"h2", authority="a.example", unique_id=b"ref", tls=Tls(version="TLSv1.3")),
            False,
            tcp4(
                tlv(0x01, b"h2"),
                tlv(0x02, b"a.example"),
                tlv(0x05, b"ref"),
                tlv(0x20, b"\1\0\0\0\1" + tlv(0x21, b"TLSv1.3")),
            ),
        ),
        (
            replace(
                FROM_LOOPBACK,
                tls=Tls(CERTIFICATE_SHOWN, 0, "TLSv1.3", "Zoë", "AES", "RSA-SHA256", "RSA2048", b"\x30DER"),
            ),
            False,
            tcp4(
                tlv(
                    0x20,
                    b"\7\0\0\0\0"
                    + tlv(0x21, b"TLSv1.3")
                    + tlv(0x22, "Zoë".encode())
                    + tlv(0x23, b"AES")
                    + tlv(0x24, b"RSA-SHA256")
                    + tlv(0x25, b"RSA2048")
                    + tlv(0x28, b"\x30DER"),
                )
            ),
        ),
    ],
    ids=["plain", "checksum", "no_addresses", "half_the_addresses", "two_families", "tls", "certificate"],
)
def test_a_header_of_version_2(header: Header, checksum: bool, wire: bytes) -> None:
    """Byte for byte; what is empty is not there."""
    assert wire == encode_v2(header, checksum=checksum)


@pytest.mark.parametrize(("wire", "header"), VERSION_2.values(), ids=VERSION_2)
def test_what_was_read_can_be_written_on(wire: bytes, header: Header) -> None:
    """A header that came in goes out saying the same, in either version as far as that one goes."""
    assert header == complete(encode_v2(header))
    assert Header(header.source, header.destination) == complete(encode_v1(header))


def test_a_certificate_is_there_up_to_the_limit() -> None:
    """Of the largest header each byte is used; one byte more, and the certificate is left out, the rest stays."""
    tls = Tls(CERTIFICATE_SHOWN, 0, version="TLSv1.3", common_name="edge.example")
    room = MAX_V2 - len(encode_v2(replace(FROM_LOOPBACK, tls=tls), checksum=True)) - 3
    largest = replace(FROM_LOOPBACK, tls=replace(tls, certificate=bytes(room)))
    assert (MAX_V2, largest) == (len(encode_v2(largest, checksum=True)), complete(encode_v2(largest, checksum=True)))
    too_large = replace(FROM_LOOPBACK, tls=replace(tls, certificate=bytes(room + 1)))
    assert replace(FROM_LOOPBACK, tls=tls) == complete(encode_v2(too_large, checksum=True))


def complete(wire: bytes) -> Header:
    parsed = parse(wire)
    assert isinstance(parsed, Complete), parsed
    assert len(wire) == parsed.size
    return parsed.header


# Everything else that may come


PORTS = st.integers(0, 0xFFFF)
HOSTS = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).filter(lambda ip: IPv6Address(ip).ipv4_mapped is None).map(
    str
)
ADDRESSES = st.tuples(HOSTS, PORTS)
WORDS = st.text(max_size=40)
SESSIONS = st.builds(
    Tls, st.integers(0, 255), st.integers(0, 2**32 - 1), WORDS, WORDS, WORDS, WORDS, WORDS, st.binary(max_size=2000)
)
HEADERS = st.builds(
    Header,
    ADDRESSES,
    ADDRESSES,
    alpn=st.binary(max_size=255),
    authority=WORDS,
    unique_id=st.binary(max_size=128),
    tls=st.none() | SESSIONS,
)


@given(source=ADDRESSES, destination=ADDRESSES, rest=st.binary(max_size=50))
def test_version_1_says_what_it_is_told(source: Address, destination: Address, rest: bytes) -> None:
    """Whatever the addresses, mixed families too."""
    line = encode_v1(Header(source, destination))
    assert len(line) <= MAX_V1
    assert Complete(Header(source, destination), len(line)) == parse(line + rest)


@given(header=HEADERS, checksum=st.booleans(), rest=st.binary(max_size=50))
def test_version_2_says_what_it_is_told(header: Header, checksum: bool, rest: bytes) -> None:
    """Whatever the addresses and the TLVs, with a checksum and without."""
    wire = encode_v2(header, checksum=checksum)
    assert len(wire) <= MAX_V2
    assert Complete(header, len(wire)) == parse(wire + rest)


@given(
    name=st.integers(0, 6000).map("n".__mul__),
    certificate=st.integers(0, 70_000).map(bytes),
    authority=st.integers(0, 5000).map("a".__mul__),
)
def test_version_2_leaves_out_what_does_not_fit(name: str, certificate: bytes, authority: str) -> None:
    """However large what a client showed: the header stays within its bound, and each value is whole or not there."""
    tls = Tls(CERTIFICATE_SHOWN, 0, common_name=name, certificate=certificate)
    wire = encode_v2(replace(FROM_LOOPBACK, authority=authority, tls=tls), checksum=True)
    said = complete(wire)
    assert len(wire) <= MAX_V2
    assert (said.source, said.destination) == (FROM_LOOPBACK.source, FROM_LOOPBACK.destination)
    assert said.authority in (authority, "")
    if said.tls is not None:
        assert said.tls.common_name in (name, "")
        assert said.tls.certificate in (certificate, b"")


@given(header=st.builds(Header, ADDRESSES, ADDRESSES), data=st.data())
def test_a_checksum_guards_the_addresses(header: Header, data: st.DataObject) -> None:
    """Any one bit that changes in them is noticed."""
    wire = bytearray(encode_v2(header, checksum=True))
    position = data.draw(st.integers(16, len(wire) - 8))
    wire[position] ^= 1 << data.draw(st.integers(0, 7))
    assert Invalid(WRONG_CHECKSUM) == parse(wire)


def flip(wire: bytes, position: int) -> bytes:
    spoilt = bytearray(wire)
    spoilt[position // 8 % len(wire)] ^= 1 << position % 8
    return bytes(spoilt)


def cut_off(wire: bytes, position: int) -> bytes:
    return wire[: position % (len(wire) + 1)]


def leave_out(wire: bytes, position: int) -> bytes:
    at = position % (len(wire) + 1)
    return wire[:at] + wire[at + 1 + position % 7 :]


def put_in(wire: bytes, position: int) -> bytes:
    at = position % (len(wire) + 1)
    return wire[:at] + position.to_bytes(4) + wire[at:]


def put_space_in(wire: bytes, position: int) -> bytes:
    at = position % (len(wire) + 1)
    return wire[:at] + b" \r\n0:"[position % 5 :][:1] + wire[at:]


Spoil = Callable[[bytes, int], bytes]
SPOILS: list[Spoil] = [flip, cut_off, leave_out, put_in, put_space_in]


def hold_to_the_promises(data: bytes) -> None:
    """Whatever came: an answer and no exception, and one that more bytes do not turn into another."""
    parsed = parse(data)
    match parsed:
        case Complete(header, size):
            assert size <= len(data)
            assert parsed == parse(data[:size])
            assert isinstance(parse(data[: size - 1]), Incomplete)
            assert header == complete(encode_v2(header)) or header.source is None
        case Incomplete(wanted):
            assert wanted >= 1
            assert len(data) < MAX_V2
        case Invalid(why):
            assert why
            assert isinstance(parse(data + TRAILER), Invalid)


@given(
    wire=st.sampled_from([wire for wire, _ in VALID.values() if len(wire) < MAX_V2]),
    spoils=st.lists(st.tuples(st.sampled_from(SPOILS), st.integers(0, 2**20)), min_size=1, max_size=4),
    rest=st.binary(max_size=20),
)
def test_a_spoilt_header_is_answered(wire: bytes, spoils: list[tuple[Spoil, int]], rest: bytes) -> None:
    """Bits flipped, bytes put in and left out: never an exception."""
    for spoil, position in spoils:
        wire = spoil(wire, position) or b"P"
    hold_to_the_promises(wire + rest)


@given(
    prefix=st.sampled_from(
        [b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", SIGNATURE, SIGNATURE + b"\x21\x11", tcp4()[:15]]
    ),
    noise=st.binary(max_size=200) | st.text("0123456789abcdef:. \r\n", max_size=120).map(str.encode),
)
def test_noise_is_answered(prefix: bytes, noise: bytes) -> None:
    """Arbitrary bytes, alone or where a header has begun: never an exception."""
    hold_to_the_promises(prefix + noise)


# Other programs


PLAIN = b"what the client says"
GET = b"GET / HTTP/1.0\r\n\r\n"


@contextlib.contextmanager
def haproxy(directory: Path, configuration: str, *listeners: socket.socket) -> Iterator[None]:
    """HAProxy, with sockets that listen already: whoever connects early waits in the backlog."""
    program = require_peer("haproxy")
    times = "timeout connect 10s\n timeout client 10s\n timeout server 10s\n"
    (directory / "haproxy.cfg").write_text(f"defaults\n mode tcp\n {times}{configuration}")
    descriptors = [listener.fileno() for listener in listeners]
    with running([program, "-db", "-f", directory / "haproxy.cfg"], pass_fds=descriptors):
        yield


@contextlib.contextmanager
def nginx(directory: Path, configuration: str, listener: socket.socket, modules: str = "") -> Iterator[None]:
    """NGINX, with a socket that listens already, which it takes as it does from its predecessor at an upgrade."""
    program = require_peer("nginx")
    user = "user root;" if os.getuid() == 0 else ""
    top = f"{modules}\ndaemon off; error_log stderr; pid nginx.pid; {user} events {{ }}\n"
    (directory / "nginx.conf").write_text(top + configuration)
    listener.setblocking(False)
    inherited = {"pass_fds": [listener.fileno()], "env": {**os.environ, "NGINX": f"{listener.fileno()};"}}
    with running([program, "-p", directory, "-c", "nginx.conf", "-e", "stderr"], **inherited):
        yield


def nginx_stream() -> str:
    """The line that loads NGINX's stream module, where it is not built in."""
    program = require_peer("nginx")
    built = subprocess.run([program, "-V"], capture_output=True, text=True, check=True, timeout=10).stderr
    if "--with-stream=dynamic" not in built:
        return ""
    module = Path(built.partition("--modules-path=")[2].partition(" ")[0]) / "ngx_stream_module.so"
    if not module.exists():
        missing_peer("NGINX's stream module (libnginx-mod-stream)")
    return f"load_module {module};"


def listening_on_ipv6() -> socket.socket:
    return socket.create_server(("::1", 0), family=socket.AF_INET6)


def listening_on_both() -> socket.socket:
    return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), listening_on_ipv6():
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on the loopback interface")
KINDS = ["ipv4", pytest.param("ipv6", marks=needs_ipv6)]


def name_of(listener: socket.socket) -> Address:
    host, port = listener.getsockname()[:2]
    return str(host), int(port)


def receive_header(connection: socket.socket) -> Header:
    """Read what is wanted and no byte more, however it comes."""
    received = b""
    while isinstance(parsed := parse(received), Incomplete):
        piece = connection.recv(parsed.wanted)
        assert piece, f"the connection ended after {received!r}"
        received += piece
    assert isinstance(parsed, Complete), (parsed, received)
    assert len(received) == parsed.size
    return parsed.header


@dataclass
class Sender:
    """A program that forwards to us with a header."""

    backend: ScriptedBackend
    listeners: dict[str, socket.socket]

    def forward(self, name: str, to: Address | None = None) -> tuple[Header, Address]:
        """What a new connection's header says, and from where it was; what the client sent comes right behind it."""
        listener = self.listeners[name]
        with socket.socket(listener.family if to is None else socket.AF_INET) as client:
            client.settimeout(PATIENCE)
            client.connect(to or listener.getsockname())
            client.sendall(PLAIN)
            with self.backend.accept() as connection:
                header = receive_header(connection)
                assert connection.recv(1000) == PLAIN
            return header, name_of(client) if listener.family != socket.AF_UNIX else ("", 0)


@pytest.fixture(scope="module")
def haproxy_sender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sender]:
    directory = tmp_path_factory.mktemp("haproxy-sender")
    options = {"v1": "send-proxy", "v2": "send-proxy-v2", "crc32c": "send-proxy-v2 proxy-v2-options crc32c"}
    with scripted() as backend, contextlib.ExitStack() as open_sockets:
        listeners, sections = {}, ""
        for version, option in options.items():
            kinds: dict[str, Callable[[], socket.socket]] = {
                "ipv4": listening,
                "unix": partial(listening, directory / version),
            }
            if has_ipv6():
                kinds |= {"ipv6": listening_on_ipv6, "both": listening_on_both}
            for kind, listen in kinds.items():
                listener = open_sockets.enter_context(listen())
                listeners[f"{version} {kind}"] = listener
                sections += f"listen {version}_{kind}\n bind fd@{listener.fileno()}\n"
                sections += f" server us {backend.url.removeprefix('http://')} {option}\n"
        with haproxy(directory, sections, *listeners.values()):
            yield Sender(backend, listeners)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["v1", "v2", "crc32c"])
def test_haproxy_says_who_connects(haproxy_sender: Sender, version: str, kind: str) -> None:
    """`send-proxy`, `send-proxy-v2`, and that with a checksum."""
    header, client = haproxy_sender.forward(f"{version} {kind}")
    assert Header(client, name_of(haproxy_sender.listeners[f"{version} {kind}"])) == header


@needs_ipv6
@pytest.mark.parametrize("version", ["v1", "v2", "crc32c"])
def test_haproxy_says_who_connects_to_both_families(haproxy_sender: Sender, version: str) -> None:
    """It writes such an IPv4 client as ::ffff:127.0.0.1, and has one name here all the same."""
    port = name_of(haproxy_sender.listeners[f"{version} both"])[1]
    header, client = haproxy_sender.forward(f"{version} both", ("127.0.0.1", port))
    assert Header(client, ("127.0.0.1", port)) == header


@pytest.mark.parametrize("version", ["v1", "v2", "crc32c"])
def test_haproxy_cannot_say_who_connects_to_a_unix_socket(haproxy_sender: Sender, version: str) -> None:
    """UNKNOWN, and LOCAL."""
    header, _ = haproxy_sender.forward(f"{version} unix")
    assert Header() == header


@pytest.fixture(scope="module")
def edge(authority: Authority) -> Credentials:
    return authority.issue("edge.example")


@pytest.fixture(scope="module")
def edge_files(edge: Credentials, certificates_dir: Path) -> CredentialFiles:
    return edge.write(certificates_dir, "proxy-protocol-edge")


@pytest.fixture(scope="module")
def server_file(server_credentials: CredentialFiles, certificates_dir: Path) -> Path:
    """Certificate and key in one file, as HAProxy and hitch want it."""
    path = certificates_dir / "server-both.pem"
    path.touch(0o600)
    path.write_bytes(server_credentials.certificate.read_bytes() + server_credentials.private_key.read_bytes())
    return path


@contextlib.contextmanager
def shaking_hands(address: Address, files: CredentialFiles | None) -> Iterator[TlsClient]:
    context = client_context(files, alpn=["http/1.1"])
    with TlsClient(address, context, server_name="origin.example") as client:
        client.handshake(with_data=PLAIN)
        yield client


@pytest.fixture(scope="module")
def haproxy_tls_sender(
    tmp_path_factory: pytest.TempPathFactory, server_file: Path, client_ca: Path
) -> Iterator[Sender]:
    directory = tmp_path_factory.mktemp("haproxy-tls-sender")
    options = "proxy-v2-options ssl-cipher,cert-sig,cert-key,authority,crc32c,unique-id"
    with scripted() as backend, listening() as listener:
        sections = (
            f"listen tls\n unique-id-format %[src_port]\n bind fd@{listener.fileno()} ssl crt {server_file}"
            f" ca-file {client_ca} verify optional crt-ignore-err all ca-ignore-err all"
            " alpn h2,http/1.1 ssl-min-ver TLSv1.3\n"
            f" server us {backend.url.removeprefix('http://')} send-proxy-v2-ssl-cn {options}\n"
        )
        with haproxy(directory, sections, listener):
            yield Sender(backend, {"tls": listener})


def tls_header_of(sender: Sender, files: CredentialFiles | None) -> tuple[Header, Header]:
    """The header for a TLS client, and what it must say apart from TLS."""
    address = name_of(sender.listeners["tls"])
    with shaking_hands(address, files) as client, sender.backend.accept() as connection:
        header = receive_header(connection)
        assert connection.recv(1000) == PLAIN
        unique_id = str(client.port).encode()
        return header, Header(("127.0.0.1", client.port), address, b"http/1.1", "origin.example", unique_id)


HAPROXY_TLS = Tls(
    PP2_CLIENT_SSL,
    0,
    version="TLSv1.3",
    cipher="TLS_AES_256_GCM_SHA384",
    signature_algorithm="ecdsa-with-SHA256",
    key_algorithm="EC256",
)


def test_haproxy_says_what_certificate_was_shown(haproxy_tls_sender: Sender, edge_files: CredentialFiles) -> None:
    """`send-proxy-v2-ssl-cn` with all it can add: every text TLV there is, checksum, unique ID, server name, ALPN."""
    header, expected = tls_header_of(haproxy_tls_sender, edge_files)
    assert replace(expected, tls=replace(HAPROXY_TLS, client=CERTIFICATE_SHOWN, common_name="edge.example")) == header


def test_haproxy_says_that_no_certificate_was_shown(haproxy_tls_sender: Sender) -> None:
    """`verify` alone does not say it: HAProxy leaves it 0."""
    header, expected = tls_header_of(haproxy_tls_sender, None)
    assert replace(expected, tls=HAPROXY_TLS) == header


def test_haproxy_says_that_a_certificate_failed(haproxy_tls_sender: Sender, certificates_dir: Path) -> None:
    """OpenSSL's code stands in `verify`: 21, unable to verify the leaf's signature."""
    stranger = Authority("Another CA").issue("stranger.example").write(certificates_dir, "proxy-protocol-stranger")
    header, expected = tls_header_of(haproxy_tls_sender, stranger)
    tls = replace(HAPROXY_TLS, client=CERTIFICATE_SHOWN, common_name="stranger.example", verify=21)
    assert replace(expected, tls=tls) == header


def test_hitch_says_what_certificate_was_shown(
    tmp_path: Path, server_file: Path, client_ca: Path, edge_files: CredentialFiles
) -> None:
    """TLVs of hitch are read, the client's certificate as PEM under a type of its own is skipped."""
    program, port = require_peer("hitch"), free_port()
    with scripted() as backend:
        backend_host, backend_port = name_of(backend.listener)
        (tmp_path / "hitch.conf").write_text(
            f'frontend = "[127.0.0.1]:{port}"\nbackend = "[{backend_host}]:{backend_port}"\n'
            f'pem-file = "{server_file}"\nclient-verify = required\nclient-verify-ca = "{client_ca}"\n'
            'alpn-protos = "http/1.1"\nwrite-proxy-v2 = on\nproxy-tlv = on\nproxy-client-cert = on\nworkers = 1\n'
        )
        user = ["--user", "nobody"] if os.getuid() == 0 else []
        with running([program, "--config", tmp_path / "hitch.conf", *user]) as process:
            wait_for_port(port, process)
            with shaking_hands(("127.0.0.1", port), edge_files) as client, backend.accept() as connection:
                header = receive_header(connection)
                assert connection.recv(1000) == PLAIN
                source = ("127.0.0.1", client.port)
    tls = Tls(CERTIFICATE_SHOWN, 0, version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384")
    assert Header(source, ("127.0.0.1", port), b"http/1.1", "origin.example", tls=tls) == header


@pytest.mark.parametrize("kind", KINDS)
def test_nginx_says_who_connects(tmp_path: Path, kind: str) -> None:
    """`proxy_protocol on` in a stream server, which writes version 1."""
    with scripted() as backend, listening() if kind == "ipv4" else listening_on_ipv6() as listener:
        host, port = name_of(listener)
        listen = f"{host}:{port}" if kind == "ipv4" else f"[{host}]:{port}"
        server = f"listen {listen}; proxy_pass {backend.url.removeprefix('http://')}; proxy_protocol on;"
        with nginx(tmp_path, f"stream {{ server {{ {server} }} }}\n", listener, nginx_stream()):
            header, client = Sender(backend, {"nginx": listener}).forward("nginx")
    assert Header(client, (host, port)) == header


def test_curl_says_who_connects() -> None:
    """`--haproxy-protocol`, which writes version 1."""
    program = require_peer("curl")
    with scripted() as backend:
        command = [program, "--silent", "--haproxy-protocol", backend.url]
        with running(command, stdout=subprocess.DEVNULL), backend.accept() as connection:
            header = receive_header(connection)
            assert connection.recv(1000).startswith(b"GET / HTTP/1.1\r\n")
            assert Header(connection.getpeername(), connection.getsockname()) == header


@dataclass
class Receiver:
    """A program that takes a header and answers with what it read: four words."""

    listener: socket.socket

    def ask(self, data: bytes) -> str:
        """The answer to a header and a request; empty if the connection was dropped."""
        with socket.create_connection(name_of(self.listener), PATIENCE) as client:
            answer = b""
            with contextlib.suppress(ConnectionError):
                client.sendall(data)
                while piece := client.recv(10_000):
                    answer += piece
        return answer.partition(b"\r\n\r\n")[2].decode()

    def addresses(self, wire: bytes) -> Header:
        words = self.ask(wire + GET).split(" ")
        hosts, ports = words[0:4:2], words[1:4:2]
        # HAProxy writes port 0 as nothing.
        source, destination = ((str(ip_address(host)), int(port or 0)) for host, port in zip(hosts, ports, strict=True))
        return Header(source, destination)


@pytest.fixture(scope="module")
def haproxy_receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    words = "%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_authority] %[fc_pp_unique_id]"
    with listening() as listener:
        section = (
            f"frontend http\n mode http\n bind fd@{listener.fileno()} accept-proxy\n"
            f' http-request return status 200 content-type text/plain lf-string "{words}"\n'
        )
        with haproxy(tmp_path_factory.mktemp("haproxy-receiver"), section, listener):
            yield Receiver(listener)


@pytest.fixture(scope="module")
def nginx_receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    words = "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port"
    paths = "".join(f"{name}_temp_path {name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    with listening() as listener:
        server = f"listen 127.0.0.1:{name_of(listener)[1]} proxy_protocol; client_header_buffer_size 8k;"
        configuration = f'http {{ access_log off; {paths} server {{ {server} return 200 "{words}"; }} }}\n'
        with nginx(tmp_path_factory.mktemp("nginx-receiver"), configuration, listener):
            yield Receiver(listener)


RECEIVERS = pytest.mark.parametrize("receiver", ["haproxy_receiver", "nginx_receiver"])
FULL = Tls(CERTIFICATE_SHOWN, 0, "TLSv1.3", "edge.example", "TLS_AES_128_GCM_SHA256", "RSA-SHA256", "RSA2048")
OURS = {
    "ipv4": Header(V4, ("192.0.2.2", 443)),
    "ipv6": Header(V6, ("2001:db8::2", 443)),
    "tls": Header(V4, ("192.0.2.2", 443), b"h2", "origin.example", b"reference", FULL),
}


@RECEIVERS
@pytest.mark.parametrize("header", OURS.values(), ids=OURS)
@pytest.mark.parametrize(
    "encode", [encode_v1, encode_v2, lambda header: encode_v2(header, checksum=True)], ids=["v1", "v2", "crc32c"]
)
def test_others_read_what_we_write(
    request: pytest.FixtureRequest, receiver: str, header: Header, encode: Callable[[Header], bytes]
) -> None:
    """`accept-proxy` and `listen ... proxy_protocol` see the addresses that we wrote."""
    them: Receiver = request.getfixturevalue(receiver)
    assert Header(header.source, header.destination) == them.addresses(encode(header))


@RECEIVERS
@pytest.mark.parametrize("encode", [encode_v1, encode_v2], ids=["v1", "v2"])
def test_others_read_mixed_families(
    request: pytest.FixtureRequest, receiver: str, encode: Callable[[Header], bytes]
) -> None:
    """An IPv4 client of an IPv6 address is one family to them."""
    them: Receiver = request.getfixturevalue(receiver)
    assert Header((str(IPv6Address("::ffff:192.0.2.1")), 1), V6) == them.addresses(encode(Header(("192.0.2.1", 1), V6)))


@pytest.mark.parametrize("encode", [encode_v1, encode_v2], ids=["v1", "v2"])
def test_haproxy_uses_the_socket_where_we_know_no_addresses(
    haproxy_receiver: Receiver, encode: Callable[[Header], bytes]
) -> None:
    """UNKNOWN and LOCAL are taken, and say nothing."""
    assert name_of(haproxy_receiver.listener) == haproxy_receiver.addresses(encode(Header())).destination


def test_haproxy_reads_server_name_and_unique_id(haproxy_receiver: Receiver) -> None:
    """The TLVs that it can show are the ones we wrote."""
    answer = haproxy_receiver.ask(encode_v2(OURS["tls"], checksum=True) + GET)
    assert answer == "192.0.2.1 56324 192.0.2.2 443 origin.example reference"


@RECEIVERS
def test_others_take_a_client_certificate(request: pytest.FixtureRequest, receiver: str, edge: Credentials) -> None:
    """A header with one, of more than 536 bytes, is read when it comes at once."""
    certificate = edge.certificate.public_bytes(Encoding.DER)
    header = replace(OURS["tls"], tls=replace(FULL, certificate=certificate))
    wire = encode_v2(header, checksum=True)
    assert len(wire) > 536
    assert Header(header.source, header.destination) == request.getfixturevalue(receiver).addresses(wire)


def test_haproxy_verifies_our_checksum(haproxy_receiver: Receiver) -> None:
    """It drops the connection if a bit of the header has changed."""
    wire = flip(encode_v2(OURS["tls"], checksum=True), 8 * 19)
    assert haproxy_receiver.ask(wire + GET) == ""


TCP_SPECIMENS = {name: wire for name, (wire, _) in (VERSION_1 | VERSION_2).items()}


@RECEIVERS
@pytest.mark.parametrize("name", TCP_SPECIMENS)
def test_others_read_the_specimens_as_we_do(request: pytest.FixtureRequest, receiver: str, name: str) -> None:
    """Every specimen with TCP addresses."""
    them: Receiver = request.getfixturevalue(receiver)
    _, header = VALID[name]
    assert Header(header.source, header.destination) == them.addresses(TCP_SPECIMENS[name])
