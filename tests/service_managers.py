"""Service managers for tests: the socket on which one hears of its services."""

import contextlib
import os
import socket
from pathlib import Path
from typing import Self

from actors import PATIENCE

States = dict[str, str]


class NotifySocket:
    """A datagram socket as in `NOTIFY_SOCKET`: at a path, or abstract for a name that begins with @."""

    def __init__(self, name: Path | str) -> None:
        self.name = str(name)
        self._end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._end.bind(self.name.replace("@", "\0", 1) if self.name.startswith("@") else self.name)
        self._end.settimeout(PATIENCE)
        self.environment = {"NOTIFY_SOCKET": self.name}

    def receive(self) -> States:
        """The next message."""
        return dict(line.split("=", 1) for line in self._end.recv(65536).decode().split("\n"))

    def wait_for(self, state: str) -> States:
        """The next message that has this state; those before it are passed over."""
        while state not in (states := self.receive()):
            pass
        return states

    def is_silent_for(self, seconds: float) -> bool:
        """Whether nothing at all comes."""
        self._end.settimeout(seconds)
        try:
            with contextlib.suppress(TimeoutError):
                self._end.recv(1)
                return False
            return True
        finally:
            self._end.settimeout(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()
        if not self.name.startswith("@"):
            os.unlink(self.name)
