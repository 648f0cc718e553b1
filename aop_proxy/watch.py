"""What configuration and files say, read anew: for a reload, or to see whether one is due.

In: a function that reads everything. Out: what it read, or that it says something new, and the same at two looks in a
row: a file may be half written. Content is compared, not dates: so swapped symbolic links count, and touched files do
not. Must not know what a reload does.
"""

import asyncio
from collections.abc import Callable

from aop_proxy.model import Bundle, ConfigurationError, Problem

_Read = Bundle | tuple[Problem, ...]
"""What was read, or why it cannot be used: that is told once, too, and not at every look."""


class Watch:
    """Remembers what was last taken for a reload."""

    def __init__(self, load: Callable[[], Bundle], taken: Bundle) -> None:
        """Compare with `taken`; `load` reads anew, and may raise ConfigurationError and OSError."""
        self._load = load
        self._taken: _Read = taken
        self._seen: _Read = taken
        self._taken_anew = asyncio.Event()

    async def take(self, *, anew: bool = True) -> Bundle:
        """What to reload with: what is there now, or what `sees_change` saw. Raises ConfigurationError."""
        if anew:
            self._seen = await self._read()
        self._taken = self._seen
        self._taken_anew.set()
        if isinstance(self._taken, Bundle):
            return self._taken
        raise ConfigurationError(*self._taken)

    async def sees_change(self, after: float | None) -> bool:
        """Look once, after so many seconds (None: never), unless something is taken meanwhile: whether to take it."""
        self._taken_anew.clear()
        try:
            async with asyncio.timeout(after):
                await self._taken_anew.wait()
        except TimeoutError:
            before, seen = self._seen, await self._read()
            if not self._taken_anew.is_set():  # else what was taken may be newer
                self._seen = seen
                return seen == before != self._taken
        return False

    async def _read(self) -> _Read:
        try:
            return await asyncio.get_running_loop().run_in_executor(None, self._load)
        except ConfigurationError as error:
            return error.problems
        except OSError as error:  # the working directory is gone, say
            return (Problem("", str(error)),)
