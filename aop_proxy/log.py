"""Events -> lines on one descriptor that never blocks: JSON, or text on a terminal. Standard library only.

Every value is escaped and bounded, every write is atomic, of whole lines. Must not know what the events mean.
"""

import contextlib
import fcntl
import functools
import json
import os
import stat
import time
from collections.abc import Iterable, Sequence

from aop_proxy import model

MAX_FIELD = 256
MAX_LINE = 4096
"""PIPE_BUF on Linux: a write of at most this many bytes to a pipe is atomic (pipe(7))."""
_SHORT_FIELD = 64
_MAX_ITEMS = 32
_NUMBERS = frozenset((int, float))
_LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}

Value = str | int | float | None | list[str]


class Log:
    """Writes lines to one descriptor, from one process."""

    def __init__(self, settings: model.Log, descriptor: int) -> None:
        """Write to `descriptor`; see `open_descriptor`."""
        self._descriptor = descriptor
        self._second = 0
        self._second_text = ""
        self.configure(settings)

    def configure(self, settings: model.Log) -> None:
        """Take new settings, as after a reload."""
        text = os.isatty(self._descriptor) if settings.format is None else settings.format == "text"
        self._compose = _text_line if text else _json_line
        self._threshold = _LEVELS[settings.level]

    def shows(self, level: str) -> bool:
        """Whether a line of this level would be written."""
        return _LEVELS[level] >= self._threshold

    def event(self, level: str, event: str, **fields: Value) -> None:
        """Write one line."""
        self.events(level, event, tuple(fields), (tuple(fields.values()),))

    def events(self, level: str, event: str, names: tuple[str, ...], rows: Iterable[Sequence[Value]]) -> None:
        """Write a line for each row, as many as are atomic in one write: it is what wakes whoever reads them."""
        if not self.shows(level):
            return
        now = self._timestamp()
        lines: list[bytes] = []
        length = 0
        for values in rows:
            line = self._compose(now, level, event, names, values, MAX_FIELD)
            if len(line) > MAX_LINE:
                line = self._compose(now, level, event, names, values, _SHORT_FIELD)
            if lines and length + len(line) > MAX_LINE:
                self._write(lines)
                lines, length = [], 0
            lines.append(line)
            length += len(line)
        self._write(lines)

    def _write(self, lines: list[bytes]) -> None:
        with contextlib.suppress(OSError):  # a full disk, a reader that is gone or asleep: serving goes on without it
            os.write(self._descriptor, b"".join(lines))

    def _timestamp(self) -> str:
        """RFC 3339 in UTC with milliseconds; the second's text is kept, since many lines share it."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{int((now - second) * 1000):03}Z"


_PIPE_SIZE = 1024 * 1024
"""Bytes, which is what everybody may ask for (fs.pipe-max-size): two thousand lines, where a pipe holds a hundred or so
otherwise and many more connections may end at once."""


def open_descriptor(standard_error: int = 2) -> int:
    """A descriptor for the log that goes where stderr goes and never blocks.

    Opened anew where the kernel can, since O_NONBLOCK belongs to the open file, which a shell may share with us. A
    socket (as a service manager gives) cannot be, and is ours alone; a file need not be, since writing to one never
    waits, and others who write to it (the backend, under `exec`) go on where we end. Where stderr is closed the log
    goes nowhere.
    """
    try:
        kind = os.fstat(standard_error).st_mode
    except OSError:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    if stat.S_ISREG(kind):
        return os.dup(standard_error)
    if stat.S_ISSOCK(kind):
        own = os.dup(standard_error)
        os.set_blocking(own, False)
        return own
    try:
        own = os.open(f"/dev/fd/{standard_error}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # somebody else's pipe: a sleeping reader must not stop us, though others may share the pipe
        own = os.dup(standard_error)
        if stat.S_ISFIFO(kind):
            os.set_blocking(own, False)
    if stat.S_ISFIFO(kind) and hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # this user's pipes hold as much as they may
            fcntl.fcntl(own, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    return own


def escape(text: str, limit: int) -> str:
    """`text` in printable ASCII, at most `limit` bytes once it stands in a JSON string."""
    if not (text.isascii() and text.isprintable()):
        text = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    if 2 * len(text) <= limit or len(text) + text.count("\\") + text.count('"') <= limit:
        return text
    doubled = 2 if "\\" in text or '"' in text else 1
    return text[: (limit - 3) // doubled] + "..."


_quote = json.encoder.encode_basestring_ascii
"""A JSON string. Composing the line around it by hand costs a third of what a JSONEncoder takes per line."""


@functools.lru_cache(maxsize=512)
def _json_string(text: str, limit: int) -> str:
    """A string, escaped and quoted; many lines hold the same few."""
    return _quote(escape(text, limit))


@functools.lru_cache(maxsize=64)
def _json_template(level: str, event: str, names: tuple[str, ...]) -> str:
    """A line with room for the time and these fields: one call for each name would cost more than all the rest."""
    words = [f'"level":"{level}"', f'"event":"{event}"', *(f'"{name}":%s' for name in names)]
    return '{"time":"%s",' + ",".join(words) + "}\n"


def _json_line(now: str, level: str, event: str, names: tuple[str, ...], values: Sequence[Value], limit: int) -> bytes:
    words = [
        value
        if type(value) in _NUMBERS
        else "null"
        if value is None
        else _json_string(value, limit)
        if isinstance(value, str)
        else _json_list(value, limit)
        if isinstance(value, list)
        else value
        for value in values
    ]
    return (_json_template(level, event, names) % (now, *words)).encode("ascii")


def _json_list(items: list[str], limit: int) -> str:
    return f"[{','.join([_quote(escape(item, limit)) for item in items[:_MAX_ITEMS]])}]"


def _text_line(now: str, level: str, event: str, names: tuple[str, ...], values: Sequence[Value], limit: int) -> bytes:
    words = [f"{now} {level:<7} {event}"]
    for name, value in zip(names, values, strict=True):
        if value is None:
            continue
        items = value if isinstance(value, list) else [str(value)]
        shown = ",".join(escape(item, limit) for item in items[:_MAX_ITEMS])
        plain = shown and not any(mark in shown for mark in ' "=\\')
        words.append(f"{name}={shown if plain else _quote(shown)}")
    return " ".join(words).encode("ascii") + b"\n"
