"""Who listens where on this machine, from the kernel's own lists."""

import os
import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from aop_proxy import occupancy
from aop_proxy.occupancy import who_is_at

HEADING = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
REST = "00000000:00000000 00:00000000 00000000  1000        0 1 1 0000000000000000 100 0 0 10 0\n"
IPV4 = f"""{HEADING}\
   0: 00000000:1F40 00000000:0000 0A {REST}\
   1: 0100007F:0050 00000000:0000 0A {REST}\
   2: 0100007F:C350 0100007F:1F40 01 {REST}\
   3: 00000000:1F41 00000000:0000 0A {REST}"""
IPV6 = f"""{HEADING}\
   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A {REST}\
   1: 0000000000000000FFFF0000070200C0:0051 00000000000000000000000000000000:0000 0A {REST}\
   2: B80D0120000000000000000007000000:0052 00000000000000000000000000000000:0000 0A {REST}"""


@pytest.mark.skipif("sys.byteorder == 'big'", reason="the tables were written on a little-endian machine")
@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (IPV4, ["0.0.0.0 8000 1", "127.0.0.1 80 1"]),
        (IPV6, ["::1 80 1", "192.0.2.7 81 1", "2001:db8::7 82 1"]),
        (HEADING, []),
        ("", []),
    ],
)
def test_the_kernels_table(table: str, expected: list[str]) -> None:
    """Listening sockets up to the first that is none, in both families; a mapped address is the IPv4 one."""
    found = occupancy.parse(table.splitlines(keepends=True))
    assert expected == [f"{place.address} {place.port} {inode}" for place, inode in found]


@pytest.mark.parametrize("line", ["nonsense", "0: 0100007F 0 0A 0 0 0 0 0 1", "0: xyz:0050 0 0A 0 0 0 0 0 1"])
def test_a_table_that_only_looks_like_one(line: str) -> None:
    """It is not read, which `listening` takes as there being none."""
    with pytest.raises(ValueError, match=r"."):
        list(occupancy.parse([HEADING, line]))


def test_sockets_of_this_machine_are_seen() -> None:
    """One that listens is in the list, and one that does not is not."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        seen = list(occupancy.listening())
        if not seen:
            pytest.skip("this kernel keeps no list")
        ports = [(str(address), port) for (address, port), _ in seen]
        assert listener.getsockname() in ports
        assert bound.getsockname() not in ports


# By whom

US = f"{Path('/proc/self/comm').read_text().strip()} (process {os.getpid()})"


@pytest.mark.parametrize(
    ("bound", "asked", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", US),
        ("127.0.0.1", "0.0.0.0", US),
        ("0.0.0.0", "127.0.0.1", US),
        ("::1", "::", US),
        ("::", "0.0.0.0", US),
        ("127.0.0.1", "127.0.0.2", None),
        ("127.0.0.1", "::1", None),
        ("::1", "0.0.0.0", None),
    ],
)
def test_who_holds_an_address(bound: str, asked: str, expected: str | None) -> None:
    """Whoever listens there, or on every address where ours is one of them, or the other way round."""
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.create_server((bound, 0), family=family) as listener:
        assert who_is_at(ip_address(asked), listener.getsockname()[1]) == expected


def test_nobody() -> None:
    """A port that is merely bound, or free, is nobody's."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert who_is_at(ip_address("127.0.0.1"), bound.getsockname()[1]) is None


def test_the_oldest_of_several() -> None:
    """A socket that children share is told as their parent's; names that could move a cursor are escaped."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = "import sys; open('/proc/self/comm', 'w').write('a\\x1bb'); print(flush=True); sys.stdin.read()"
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[listener.fileno()],
        )  # fmt: skip
        with child:
            assert child.stdout
            child.stdout.readline()
            place = ip_address("127.0.0.1"), listener.getsockname()[1]
            assert who_is_at(*place) == US
            listener.close()
            assert who_is_at(*place) == f"a\\x1bb (process {child.pid})"
            child.communicate()


def test_a_search_has_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with very many processes a name is not waited for."""
    monkeypatch.setattr(occupancy, "_SEARCH_PATIENCE", -1.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert who_is_at(ip_address("127.0.0.1"), listener.getsockname()[1]) is None
