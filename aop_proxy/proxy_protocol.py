"""PROXY protocol, versions 1 and 2: the first bytes of a connection <-> between whom it is, as the proxy before says.

In: bytes -> a header and its size, how many bytes it still wants, or why it is none; a header -> its bytes. Must not
know sockets, nor whose header is believed. Held to HAProxy's doc/proxy-protocol.txt of 2026/04/27, its sections named.
"""

import functools
import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

Address = tuple[str, int]  # IP address and port: the first two items of `getpeername()`

MAX_V1 = 107  # section 2.1: the longest line, CRLF included
MAX_V2 = 4096
"""Section 2 means 536, one segment: too few for a certificate. NGINX takes 4096 (nginx#1400), HAProxy its 16384."""
_SHORTEST = len(b"PROXY UNKNOWN\r\n")
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED, _TLV, _TLS = struct.Struct("!12sBBH"), struct.Struct("!BH"), struct.Struct("!BI")
_LOCAL, _PROXY = 0x20, 0x21
_UNSPEC, _TCP4, _TCP6 = 0x00, 0x11, 0x21
_INET, _INET6, _UNIX = struct.Struct("!4s4sHH"), struct.Struct("!16s16sHH"), struct.Struct("!108s108s")
_ADDRESSES = {_TCP4: _INET, 0x12: _INET, _TCP6: _INET6, 0x22: _INET6, 0x31: _UNIX, 0x32: _UNIX}
"""Section 2.2: family and transport -> how their addresses come; what is not expected there is refused."""
_ALPN, _AUTHORITY, _CRC32C, _UNIQUE_ID, _SSL, _SSL_CLIENT_CERT = 0x01, 0x02, 0x03, 0x05, 0x20, 0x28
_SSL_TEXTS = {0x21: "version", 0x22: "common_name", 0x23: "cipher", 0x24: "signature_algorithm", 0x25: "key_algorithm"}
_READ = frozenset({_ALPN, _AUTHORITY, _CRC32C, _UNIQUE_ID, _SSL, _SSL_CLIENT_CERT, *_SSL_TEXTS})
"""The types that mean something here: one of them twice means nothing. All others are skipped (section 2.2)."""
PP2_CLIENT_SSL, PP2_CLIENT_CERT_CONN, PP2_CLIENT_CERT_SESS = 0x01, 0x02, 0x04
CLIENT_WITH_CERTIFICATE = PP2_CLIENT_SSL | PP2_CLIENT_CERT_CONN | PP2_CLIENT_CERT_SESS
NOT_ALLOWED = 50
"""For `verify`: OpenSSL's X509_V_ERR_APPLICATION_VERIFICATION, a good certificate that our own rules do not accept."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What a proxy says of its client's TLS (section 2.2.6); what is empty is not said.

    `verify` is 0 only for a certificate that was shown and verified. Common name and certificate (DER) are the
    client's; the algorithms are those of the *server's* certificate. HAProxy from 2.9 on takes 1024 bytes of all this.
    """

    client: int = PP2_CLIENT_SSL
    verify: int = 1
    version: str = ""
    common_name: str = ""
    cipher: str = ""
    signature_algorithm: str = ""
    key_algorithm: str = ""
    certificate: bytes = b""


@dataclass(frozen=True, slots=True)
class Header:
    """Between whom a connection is, in the words of the proxy that forwards it.

    Without `source` and `destination` the socket's own addresses count: it is a health check, or no TCP/IP client
    (section 2.1: UNKNOWN; 2.2: LOCAL, UNSPEC and, "automatically falling back" to it, unix sockets and datagrams).
    """

    source: Address | None = None
    destination: Address | None = None
    alpn: bytes = b""
    authority: str = ""  # the server name that the client asked for
    unique_id: bytes = b""
    tls: Tls | None = None


class Complete(NamedTuple):
    """A whole header; what comes after it begins at `size`."""

    header: Header
    size: int


class Incomplete(NamedTuple):
    """A header has begun. At least `wanted` more bytes are part of it: who reads no more than these reads no other."""

    wanted: int


class Invalid(NamedTuple):
    """This is no header: the connection must be dropped (section 2.1)."""

    why: str


def parse(data: bytes | bytearray | memoryview) -> Complete | Incomplete | Invalid:
    """Read the header, of either version, of a connection whose bytes so far are `data`."""
    start = bytes(data[:MAX_V2])
    try:
        if start.startswith(b"PROXY "):
            return _parse_v1(start[:MAX_V1])
        if start.startswith(SIGNATURE):
            return _parse_v2(start)
    except ValueError as error:
        return Invalid(str(error))
    if b"PROXY ".startswith(start) or SIGNATURE.startswith(start):
        return Incomplete(_SHORTEST - len(start))
    return Invalid("the connection does not begin with a PROXY header")


_TCP_LINE = re.compile(rb"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})")
_UNKNOWN_LINE = re.compile(rb"PROXY UNKNOWN( [^\r\n]*)?")


def _parse_v1(start: bytes) -> Complete | Incomplete:
    """Section 2.1. Nothing is decoded before CRLF has come; a CR or LF alone ends no line."""
    line, crlf, _ = start.partition(b"\r\n")
    if not crlf:
        if b"\n" in start or b"\r" in start[:-1] or len(start) == MAX_V1:
            raise ValueError("version 1: no CRLF where it must be")
        return Incomplete(1 if start.endswith(b"\r") else 2)
    if _UNKNOWN_LINE.fullmatch(line):
        return Complete(Header(), len(line) + 2)
    if (match := _TCP_LINE.fullmatch(line)) is None:
        raise ValueError("version 1: the line is not as it must be")
    read = IPv4Address if match[1] == b"4" else IPv6Address
    source = str(_plain(read(match[2].decode()))), int(match[4])
    destination = str(_plain(read(match[3].decode()))), int(match[5])
    if max(source[1], destination[1]) > 0xFFFF:
        raise ValueError("version 1: a port above 65535")
    return Complete(Header(source, destination), len(line) + 2)


def _parse_v2(start: bytes) -> Complete | Incomplete:
    """Section 2.2. What cannot become a header that we take is refused before its rest is waited for."""
    if len(start) < _FIXED.size:
        return Incomplete(_FIXED.size - len(start))
    _, command, family, length = _FIXED.unpack_from(start)
    size = _FIXED.size + length
    if command not in (_LOCAL, _PROXY):
        raise ValueError("version 2: neither LOCAL nor PROXY")
    # LOCAL: "discard the protocol block including the family". UNSPEC: its addresses have no length to skip.
    skipped = command == _LOCAL or family == _UNSPEC
    if not skipped and family not in _ADDRESSES:
        raise ValueError("version 2: no address family and transport")
    if size > MAX_V2:
        raise ValueError(f"version 2: longer than {MAX_V2} bytes")
    if len(start) < size:
        return Incomplete(size - len(start))
    return Complete(Header() if skipped else _parse_block(start[:size], family), size)


def _parse_block(header: bytes, family: int) -> Header:
    addresses = _ADDRESSES[family]
    if _FIXED.size + addresses.size > len(header):
        raise ValueError("version 2: too short for its addresses")
    found = _find_tlvs(header, _FIXED.size + addresses.size)
    if checksum := found.get(_CRC32C):  # section 2.2.3: over the whole header, with zeros in its own place
        blank = header[: checksum.start] + bytes(4) + header[checksum.stop :]
        if header[checksum] != crc32c(blank).to_bytes(4):
            raise ValueError("version 2: the checksum is wrong")
    if len(unique_id := header[found.get(_UNIQUE_ID, slice(0))]) > 128:
        raise ValueError("version 2: a unique ID of more than 128 bytes")  # section 2.2.5
    source = destination = None
    if family in (_TCP4, _TCP6):
        source_ip, destination_ip, source_port, destination_port = addresses.unpack_from(header, _FIXED.size)
        source = str(_plain(ip_address(source_ip))), source_port
        destination = str(_plain(ip_address(destination_ip))), destination_port
    alpn, authority = (header[found.get(kind, slice(0))] for kind in (_ALPN, _AUTHORITY))
    tls = _parse_tls(header[found[_SSL]]) if _SSL in found else None
    return Header(source, destination, alpn, authority.decode(), unique_id, tls)


def _parse_tls(value: bytes) -> Tls:
    if len(value) < _TLS.size:
        raise ValueError("version 2: PP2_TYPE_SSL is too short")
    found = _find_tlvs(value, _TLS.size)
    texts = {name: value[found[kind]].decode() for kind, name in _SSL_TEXTS.items() if kind in found}
    client, verify = _TLS.unpack_from(value)
    return Tls(client, verify, certificate=value[found.get(_SSL_CLIENT_CERT, slice(0))], **texts)


def _find_tlvs(data: bytes, position: int) -> dict[int, slice]:
    """Where each value lies, by type. The last must end where `data` does; one that is cut off reaches beyond."""
    found: dict[int, slice] = {}
    while position < len(data):
        kind, length = data[position], int.from_bytes(data[position + 1 : position + 3])
        value = slice(position + 3, position + 3 + length)
        if value.stop > len(data):
            raise ValueError("version 2: a TLV reaches beyond what holds it")
        if kind in found and kind in _READ:
            raise ValueError(f"version 2: the TLV {kind:#04x} comes twice")
        found[kind] = value
        position = value.stop
    return found


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """One host has one name: ::ffff:192.0.2.1, in the words of a listener for both families, is 192.0.2.1."""
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def encode_v1(header: Header) -> bytes:
    """Write the line of version 1: addresses, and nothing else."""
    if header.source is None or header.destination is None:
        return b"PROXY UNKNOWN\r\n"  # HAProxy takes nothing behind the word
    version, ends = _common_version(header.source[0], header.destination[0])
    source, destination = (str(end) if end.version == version else f"::ffff:{end}" for end in ends)
    return f"PROXY TCP{version} {source} {destination} {header.source[1]} {header.destination[1]}\r\n".encode()


def encode_v2(header: Header, *, checksum: bool = False) -> bytes:
    """Write the header of version 2, `MAX_V2` bytes at most: what does not fit is left out, the certificate first.

    Send it whole and before all else (section 2): HAProxy and NGINX drop a connection whose header comes in pieces.
    """
    if header.source is None or header.destination is None:
        return _FIXED.pack(SIGNATURE, _LOCAL, _UNSPEC, 0)  # not PROXY with UNSPEC, which HAProxy refuses
    version, ends = _common_version(header.source[0], header.destination[0])
    family, addresses = (_TCP4, _INET) if version == 4 else (_TCP6, _INET6)
    packed = (end.packed if end.version == version else bytes(10) + b"\xff\xff" + end.packed for end in ends)
    block = addresses.pack(*packed, header.source[1], header.destination[1])
    room, checksum_at = MAX_V2 - _FIXED.size, _FIXED.size + len(block) + _TLV.size
    said = ((_ALPN, header.alpn), (_AUTHORITY, header.authority.encode()), (_UNIQUE_ID, header.unique_id))
    block = _append(block, room, (_CRC32C, bytes(4 if checksum else 0)), *said)
    if tls := header.tls:
        texts = ((kind, getattr(tls, name).encode()) for kind, name in _SSL_TEXTS.items())
        inner, inner_room = _TLS.pack(tls.client, tls.verify), room - len(block) - _TLV.size
        block = _append(block, room, (_SSL, _append(inner, inner_room, *texts, (_SSL_CLIENT_CERT, tls.certificate))))
    encoded = _FIXED.pack(SIGNATURE, _PROXY, family, len(block)) + block
    if checksum:
        encoded = encoded[:checksum_at] + crc32c(encoded).to_bytes(4) + encoded[checksum_at + 4 :]
    return encoded


def _append(block: bytes, room: int, *tlvs: tuple[int, bytes]) -> bytes:
    """The block and what fits into `room` bytes; nothing that is empty, which made HAProxy hang (haproxy#3482)."""
    for kind, value in tlvs:
        if value and len(block) + _TLV.size + len(value) <= room:
            block += _TLV.pack(kind, len(value)) + value
    return block


def _common_version(*hosts: str) -> tuple[int, list[IPv4Address | IPv6Address]]:
    """The IP version to write addresses in, and the addresses: if one is IPv6, so is all, as with HAProxy and NGINX."""
    ends = [_plain(ip_address(host.partition("%")[0])) for host in hosts]
    return max(end.version for end in ends), ends


_REMAINDERS = [functools.reduce(lambda r, _: r >> 1 ^ 0x82F63B78 * (r & 1), range(8), byte) for byte in range(256)]


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 4960 appendix B): Castagnoli's polynomial, which the standard library has not."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder = remainder >> 8 ^ _REMAINDERS[(remainder ^ byte) & 0xFF]
    return remainder ^ 0xFFFFFFFF
