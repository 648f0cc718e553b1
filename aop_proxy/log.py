"""Events -> lines on one descriptor that never blocks: JSON, or text on a terminal. Standard library only.

Every value is escaped and bounded, every line is one atomic write. Must not know what the events mean.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from aop_proxy import model

MAX_FIELD = 256
MAX_LINE = 4096
"""PIPE_BUF on Linux: a write of at most this many bytes to a pipe is atomic (pipe(7))."""
_SHORT_FIELD = 64
_MAX_ITEMS = 32
_LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}

Value = str | int | float | None | list[str]


class Log:
    """Writes lines to one descriptor, from one process."""

    def __init__(self, settings: model.Log, descriptor: int) -> None:
        """Write to `descriptor`; see `open_descriptor`."""
        self._descriptor = descriptor
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
        if not self.shows(level):
            return
        line = self._compose(level, event, fields, MAX_FIELD)
        if len(line) > MAX_LINE:
            line = self._compose(level, event, fields, _SHORT_FIELD)
        with contextlib.suppress(OSError):  # a full disk, a reader that is gone or asleep: serving goes on without it
            os.write(self._descriptor, line)


def open_descriptor(standard_error: int = 2) -> int:
    """A descriptor for the log that goes where stderr goes and never blocks.

    Opened anew where the kernel can, since O_NONBLOCK belongs to the open file, which a shell may share with us. A
    socket (as a service manager gives) cannot be, and is ours alone. Where stderr is closed the log goes nowhere.
    """
    try:
        kind = os.fstat(standard_error).st_mode
    except OSError:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    if stat.S_ISSOCK(kind):
        own = os.dup(standard_error)
        os.set_blocking(own, False)
        return own
    try:
        return os.open(f"/dev/fd/{standard_error}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return os.dup(standard_error)


def escape(text: str, limit: int) -> str:
    """`text` in printable ASCII, at most `limit` bytes once it stands in a JSON string."""
    if not (text.isascii() and text.isprintable()):
        text = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    if 2 * len(text) <= limit or len(text) + text.count("\\") + text.count('"') <= limit:
        return text
    doubled = 2 if "\\" in text or '"' in text else 1
    return text[: (limit - 3) // doubled] + "..."


def _bounded(fields: Mapping[str, Value], limit: int) -> Iterator[tuple[str, Value]]:
    for name, value in fields.items():
        if isinstance(value, str):
            yield name, escape(value, limit)
        elif isinstance(value, list):
            yield name, [escape(item, limit) for item in value[:_MAX_ITEMS]]
        else:
            yield name, value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_encode = json.JSONEncoder(separators=(",", ":")).encode


def _json_line(level: str, event: str, fields: Mapping[str, Value], limit: int) -> bytes:
    line: dict[str, Value] = {"time": _now(), "level": level, "event": event}
    line.update(_bounded(fields, limit))
    return _encode(line).encode("ascii") + b"\n"


def _text_line(level: str, event: str, fields: Mapping[str, Value], limit: int) -> bytes:
    words = [_now(), f"{level:<7}", event]
    for name, value in _bounded(fields, limit):
        if value is None:
            continue
        shown = ",".join(value) if isinstance(value, list) else str(value)
        plain = shown and not any(mark in shown for mark in ' "=\\')
        words.append(f"{name}={shown if plain else _encode(shown)}")
    return " ".join(words).encode("ascii") + b"\n"
