"""What a process may do: become another user for good, and be readable by no other process.

Standard library and the configuration model only. Must not know what the process is for.
"""

import ctypes
import os
import pwd
import signal
import sys

from aop_proxy.model import ConfigurationError, Problem

NOBODY = 65534
"""The user and group of Linux that own nothing, whether or not this system has names for them."""
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def find_user(user: str) -> pwd.struct_passwd:
    """Look a user up by name or number; ConfigurationError if there is none."""
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        raise ConfigurationError(Problem("user", f"there is no user {user!r} on this machine")) from None


def become(user: str) -> pwd.struct_passwd:
    """Become this user for good. Raises ConfigurationError."""
    entry = find_user(user)
    try:
        if os.getuid() != entry.pw_uid:
            os.initgroups(entry.pw_name, entry.pw_gid)
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
    except OSError as error:
        raise ConfigurationError(Problem("user", f"cannot become {user!r}: {error.strerror}")) from error
    return entry


def end_with(parent: int) -> None:
    """Have the kernel end us by SIGTERM when this process, our parent, is gone, however it went (Linux alone can).

    A change of user undoes it (prctl(2)), so it comes after that.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:  # it went before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def drop_privileges(user: str | None) -> None:
    """Become `user` for good, and readable by no other process of that user's (the secrets in our pipe above all)."""
    if user is not None:
        become(user)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def keep_no_privileges(user: str | None) -> None:
    """As `drop_privileges`, but root becomes nobody where no other user is named. OSError if it may not."""
    if user is None and os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    drop_privileges(user)
