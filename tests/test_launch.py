"""The first moments of a backend under `exec`; what it then is, `promises` tells."""

import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actors import PATIENCE
from aop_proxy.launch import NOT_EXECUTABLE, NOT_FOUND

ROOT = Path(__file__).parents[1]


def launch(
    *command: str, parent: int | None = None, user: str = "", before: str = ""
) -> "subprocess.CompletedProcess[str]":
    code = f"import sys; sys.path.append({str(ROOT)!r}); from aop_proxy.launch import main\n{before}main()"
    words = [sys.executable, "-P", "-c", code, str(parent or os.getpid()), user, *command]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_it_becomes_the_command() -> None:
    """With its arguments as they are, and its exit code."""
    done = launch("sh", "-c", 'echo "$1"; exit 3', "name", "a  b")
    assert (done.returncode, done.stdout, done.stderr) == (3, "a  b\n", "")


def test_what_cannot_be_run(tmp_path: Path) -> None:
    """Exits as a shell does, with one line that says why."""
    done = launch(str(tmp_path / "gone"))
    assert (done.returncode, done.stderr) == (NOT_FOUND, f"aop-proxy: {tmp_path}/gone is not found\n")
    done = launch(str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (NOT_EXECUTABLE, 1)
    done = launch("true", user="nobody-of-this-name")
    assert (done.returncode, "there is no user" in done.stderr) == (NOT_EXECUTABLE, True)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no /proc")
def test_signals_are_as_they_were() -> None:
    """Python ignores SIGPIPE; a backend need not."""
    ignored = next(line for line in launch("cat", "/proc/self/status").stdout.splitlines() if line.startswith("SigIgn"))
    assert not int(ignored.split()[1], 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


def test_a_parent_that_is_gone() -> None:
    """Nothing is started that nobody would end."""
    assert launch("echo", "started", parent=1 if os.getppid() != 1 else 2).returncode == -signal.SIGTERM


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user() -> None:
    """Its home and name go with it."""
    nobody = pwd.getpwnam("nobody")
    done = launch("sh", "-c", "id -u; echo $HOME $USER $LOGNAME", user="nobody")
    assert done.stdout.split() == [str(nobody.pw_uid), nobody.pw_dir, "nobody", "nobody"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a capability")
def test_the_proxy_s_capabilities_are_not_the_backend_s() -> None:
    """What a service manager gave us to bind a low port with is for us alone."""
    given = """
import ctypes, os, struct
libc = ctypes.CDLL(None)
libc.prctl(8, 1, 0, 0, 0)
os.setuid(1)
libc.capset(struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", *[1 << 10] * 3, 0, 0, 0))
libc.prctl(47, 2, 10, 0, 0)
"""
    show = ["grep", "-E", "Cap(Inh|Prm|Amb)", "/proc/self/status"]
    plain = subprocess.run(
        [sys.executable, "-c", given + f"os.execv('/bin/grep', {show})"],
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    assert int(plain.stdout.split()[1], 16) == 1 << 10
    assert {int(held, 16) for held in launch(*show, before=given).stdout.split()[1::2]} == {0}
