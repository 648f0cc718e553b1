"""What a process may do: become another user for good, and be readable by no other process.

Standard library and the configuration model only. Must not know what the process is for.
"""

import ctypes
import os
import pwd
import signal
import struct
import sys

from aop_proxy.model import ConfigurationError, Problem

NOBODY = 65534
"""The user and group of Linux that own nothing, whether or not this system has names for them."""
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS = 1, 4, 8
_CAPABILITY_VERSION_3, _CAP_NET_ADMIN = 0x20080522, 12
"""linux/capability.h."""
_HEADER = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)


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


def drop_privileges(user: str | None, *, keeps_net_admin: bool = False) -> None:
    """Become `user` for good, and readable by no other process of that user's (the secrets in our pipe above all).

    `keeps_net_admin`: of all that root may do, CAP_NET_ADMIN stays, if it was there.
    """
    if sys.platform == "linux" and keeps_net_admin:
        ctypes.CDLL(None).prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    if user is not None:
        become(user)
    drop_capabilities(keeps_net_admin=keeps_net_admin)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def drop_capabilities(*, keeps_net_admin: bool = False) -> None:
    """Hold none, unless we are root: a service manager may have given some to another user, to bind ports with.

    Capabilities are what is effective, permitted and inheritable, 32 of each in a word (capset(2)). Where the one to be
    kept is not there nothing is: whoever needs it will be told.
    """
    if sys.platform != "linux" or os.geteuid() == 0:
        return
    kept = keeps_net_admin << _CAP_NET_ADMIN
    if ctypes.CDLL(None).capset(_HEADER, struct.pack("=6I", kept, kept, 0, 0, 0, 0)):
        ctypes.CDLL(None).capset(_HEADER, bytes(24))


def keep_no_privileges(user: str | None) -> None:
    """As `drop_privileges`, but root becomes nobody where no other user is named, and holds nothing where it is.

    Raises OSError if root may become nobody else.
    """
    if user is None and os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    drop_privileges(user)
    if sys.platform == "linux":
        ctypes.CDLL(None).capset(_HEADER, bytes(24))
