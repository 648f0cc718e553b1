"""Which TCP addresses of this machine something listens on, and who: from the kernel's own lists under /proc.

No socket is opened. Where the kernel has no such lists, or does not show them to us, nothing is known.
"""

import contextlib
import itertools
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from aop_proxy.notation import printable

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTEN = "0A"
_SEARCH_PATIENCE = 1.0
"""Seconds: a machine may have very many processes, and a name is only worth so much."""

Address = IPv4Address | IPv6Address


class Place(NamedTuple):
    """An address and port that something listens on."""

    address: Address
    port: int


def listening() -> Iterator[tuple[Place, str]]:
    """Every place that something listens on, and the inode of its socket."""
    for table in _TABLES:
        try:
            with open(table, encoding="ascii") as lines:
                yield from parse(lines)
        except (OSError, ValueError):  # there is none, or one that only looks like Linux's
            continue


def parse(lines: Iterable[str]) -> Iterator[tuple[Place, str]]:
    """Read one of the kernel's tables (proc(5)), in which the listening sockets come first."""
    for line in itertools.islice(lines, 1, None):
        _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
        if state != _LISTEN:
            return
        host, _, port = local.partition(":")
        words = (int(host[start : start + 8], 16).to_bytes(4, sys.byteorder) for start in range(0, len(host), 8))
        address = ip_address(b"".join(words))
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        yield Place(mapped or address, int(port, 16)), inode


def who_is_at(address: Address, port: int) -> str | None:
    """Name the process that keeps others from listening there, the oldest of several; None if it is not found."""
    sockets = {
        f"socket:[{inode}]" for place, inode in listening() if place.port == port and _meet(place.address, address)
    }
    deadline = time.monotonic() + _SEARCH_PATIENCE
    for process in _processes() if sockets else ():
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look into
            for descriptor in os.listdir(f"/proc/{process}/fd"):
                if time.monotonic() > deadline:
                    return None
                if os.readlink(f"/proc/{process}/fd/{descriptor}") in sockets:
                    return f"{_name(process)} (process {process})"
    return None


def _meet(one: Address, ours: Address) -> bool:
    """Whether sockets at the two addresses get in each other's way; :: may stand for IPv4, too."""
    if one.version != ours.version:
        return one.version == 6 and one.is_unspecified
    return one == ours or one.is_unspecified or ours.is_unspecified


def _processes() -> list[int]:
    """The oldest first. Their numbers do not tell: they begin anew."""
    with contextlib.suppress(OSError):
        return sorted((int(name) for name in os.listdir("/proc") if re.fullmatch("[0-9]+", name)), key=_started)
    return []


def _started(process: int) -> int:
    """Clock ticks since the machine's start (proc_pid_stat(5), field 22; the second, a name, may hold anything)."""
    with contextlib.suppress(OSError), open(f"/proc/{process}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])
    return sys.maxsize


def _name(process: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{process}/comm", "rb") as file:
        return printable(file.read(64).rstrip(b"\n").decode(errors="backslashreplace"))
    return "a process"
