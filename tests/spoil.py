"""What may happen to the bytes of a handshake on their way: each takes a wire and a number that says where."""

from collections.abc import Callable, Iterator
from itertools import pairwise

from tls13 import split_records

Change = Callable[[bytes, int], bytes]


def flip(wire: bytes, position: int) -> bytes:
    spoilt = bytearray(wire)
    if spoilt:
        spoilt[position // 8 % len(spoilt)] ^= 1 << position % 8
    return bytes(spoilt)


def cut_off(wire: bytes, position: int) -> bytes:
    return wire[: position % (len(wire) + 1)]


def leave_out(wire: bytes, position: int) -> bytes:
    at = position % (len(wire) + 1)
    return wire[:at] + wire[at + 1 + position % 7 :]


def exchange_records(wire: bytes, position: int) -> bytes:
    records, rest = split_records(wire)
    if len(records) > 1:
        at = position % (len(records) - 1)
        records[at], records[at + 1] = records[at + 1], records[at]
    return b"".join(records) + rest


def double_record(wire: bytes, position: int) -> bytes:
    records, rest = split_records(wire)
    if records:
        records.insert(position % len(records), records[position % len(records)])
    return b"".join(records) + rest


CHANGES: tuple[Change, ...] = (flip, cut_off, leave_out, exchange_records, double_record)

COMPATIBILITY = b"\x14\x03\x03\x00\x01\x01"
"""A ChangeCipherSpec, which TLS 1.3 allows and ignores (RFC 8446 appendix D.4)."""
ALERT_IN_CLEAR = b"\x15\x03\x03\x00\x02\x02\x28"


def insert(wire: bytes, position: int, added: bytes) -> bytes:
    at = position % (len(wire) + 1)
    return wire[:at] + added + wire[at:]


def pieces(wire: bytes, at: list[int]) -> Iterator[bytes]:
    """The wire as TCP may deliver it."""
    marks = sorted({0, len(wire), *(position % (len(wire) + 1) for position in at)})
    return (wire[start:end] for start, end in pairwise(marks))
