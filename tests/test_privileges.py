"""Becoming somebody else for good, each time in a process made for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
SHOW = """
import ctypes, os
from aop_proxy.privileges import drop_capabilities, drop_privileges, keep_no_privileges
def show(): print(*os.getresuid(), *os.getresgid(), os.getgroups(), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""
DAEMON = "1 1 1 1 1 1 [1] 0"


def shown(code: str) -> list[str]:
    # Not measured for coverage, whose files another user may not write.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    environment = {**plain, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", SHOW + code], capture_output=True, text=True, env=environment, timeout=30, check=False
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_is_not_dumpable() -> None:
    """Without another user to become, too: no process of the same user can open its pipe, nor read its memory."""
    before, after = shown("show()\ndrop_privileges(None)\nshow()")
    assert (before[-1], after[-1]) == ("1", "0")
    assert before[:-1] == after[:-1]


@needs_root
@pytest.mark.parametrize("drop", ["drop_privileges", "keep_no_privileges"])
@pytest.mark.parametrize("user", ["daemon", "1"])
def test_becomes_a_user(drop: str, user: str) -> None:
    """By name or number, real, effective and saved, with that user's groups and none of root's."""
    assert shown(f"{drop}({user!r})\nshow()") == [DAEMON]


@needs_root
def test_twice_is_once() -> None:
    """Whoever is that user already may call it again."""
    assert shown("drop_privileges('daemon')\ndrop_privileges('daemon')\nshow()") == [DAEMON]


@needs_root
def test_root_keeps_nothing() -> None:
    """Where no user is named, what needs no privilege becomes nobody."""
    assert shown("keep_no_privileges(None)\nshow()") == ["65534 65534 65534 65534 65534 65534 [] 0"]


@needs_root
@pytest.mark.parametrize(
    ("drop", "left"),
    [
        ("keep_no_privileges(None)", 0),
        ("drop_privileges(None)", 0),
        ("drop_privileges('daemon')", 0),
        ("drop_privileges(None, keeps_net_admin=True)", 1 << 12),
        ("drop_capabilities()", 0),
    ],
)
def test_no_capability_stays(drop: str, left: int) -> None:
    """Whatever a service manager has given to a user that is not root, but for the one that is asked for."""
    as_given = "ctypes.CDLL(None).prctl(8, 1, 0, 0, 0)\nos.setuid(1)\n"
    capabilities = "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('CapPrm')))\n"
    before, after = shown(as_given + capabilities + drop + "\n" + capabilities)
    assert int(before, 16) & 1 << 12
    assert int(after, 16) == left


@pytest.mark.parametrize("user", ["nobody-of-this-name", "4000000000"])
def test_nobody_of_that_name(user: str) -> None:
    """It is a problem, with the name, and nothing changes."""
    code = f"from aop_proxy.model import ConfigurationError\ntry: drop_privileges({user!r})\nexcept ConfigurationError as e: print(e)"
    assert shown(code) == [f"user: there is no user '{user}' on this machine"]


@needs_root
def test_may_not_become() -> None:
    """Who is not root may become nobody else."""
    code = "from aop_proxy.model import ConfigurationError\ndrop_privileges('daemon')\n"
    code += "try: drop_privileges('nobody')\nexcept ConfigurationError as e: print(e)"
    assert shown(code) == ["user: cannot become 'nobody': Operation not permitted"]
