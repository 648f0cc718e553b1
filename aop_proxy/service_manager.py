"""What a service manager hands to this process and wants to hear of it: listening sockets, states, the watchdog's beat.

In: the environment, out of which everything is taken, so that no child takes it for its own. The protocols are those of
sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3). Must not know what the sockets are, nor what is alive.
"""

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

from aop_proxy.model import ConfigurationError, Problem

FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START."""
_MAX_DESCRIPTORS = 1024
_SEND_PATIENCE = 1.0
"""Seconds that a service manager has to take a message: it is told, not waited for."""
_MAX_STATUS = 256


class ServiceManager:
    """Whoever started us, if it speaks these protocols; silence towards anybody else."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Take what is meant for this process. Raises ConfigurationError for sockets that are not there."""
        take = {name: environment.pop(name, "") for name in _VARIABLES}
        self._address = _address(take["NOTIFY_SOCKET"])
        self.descriptors = _descriptors(take["LISTEN_FDS"]) if take["LISTEN_PID"] == str(os.getpid()) else []
        """Sockets that were opened for us; a restart of ours does not close them."""
        is_watched = take["WATCHDOG_PID"] in ("", str(os.getpid())) and take["WATCHDOG_USEC"].isdecimal()
        self.watchdog = int(take["WATCHDOG_USEC"]) / 1e6 if is_watched else 0.0
        """Seconds after the last `alive` until we are taken for dead; 0 if nobody watches."""

    def ready(self, status: str) -> None:
        """Say that we serve, after the start or after a reload, whatever came of that."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that a reload has begun; `ready` ends it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=Reloading")

    def stopping(self, longest: float) -> None:
        """Say that we end, and how many seconds that may take."""
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(longest * 1e6)}", "STATUS=Draining")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._tell("WATCHDOG=1")

    def _tell(self, *assignments: str) -> None:
        if self._address is None:
            return
        lines = (line.replace("\n", " ").encode(errors="backslashreplace")[:_MAX_STATUS] for line in assignments)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.settimeout(_SEND_PATIENCE)
            end.sendto(b"\n".join(lines), self._address)


_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")


def _address(name: str) -> str | None:
    """The path of a unix socket, or @ and a name in the abstract namespace."""
    if name[:1] not in ("/", "@"):
        return None
    return name.replace("@", "\0", 1) if name.startswith("@") else name


def _descriptors(count: str) -> list[int]:
    if not count.isdecimal() or int(count) > _MAX_DESCRIPTORS:
        raise ConfigurationError(Problem("listen", "the environment's LISTEN_FDS is no number of sockets"))
    descriptors = list(range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)))
    for descriptor in descriptors:
        try:
            os.set_inheritable(descriptor, False)
        except OSError:
            raise ConfigurationError(
                Problem(
                    "listen", f"the environment's LISTEN_FDS promises {count} sockets, but {descriptor} is not open"
                )
            ) from None
    return descriptors
