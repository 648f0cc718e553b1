"""What a running program's admin listener knows, in a terminal.

In: the listener's address. Out: tables and an exit code. The answer is another program's: whatever it says is escaped.
Must not know how the program works.
"""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from enum import IntEnum

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aop_proxy import summary
from aop_proxy.ledger import State
from aop_proxy.log import escape
from aop_proxy.model import Admin

PATIENCE = 5.0
"""Seconds for an answer."""
WATCH_EVERY = 2.0
MOST_BYTES = 64 * 1024 * 1024
MOST_ROWS, MOST_REFUSALS = 12, 10
_COLOURS = {"good": "green", "warn": "yellow", "bad": "red", "idle": "bright_black"}
_STEPS = " ▁▂▃▄▅▆▇█"
_NOTHING = "-"


class ExitCode(IntEnum):
    """What `status` says to a script."""

    READY = 0
    NOT_READY = 1
    UNREACHABLE = 3


class Unreachable(Exception):
    """No state could be had; the message says why."""


def run(admin: Admin, *, watch: bool) -> ExitCode:
    """Print the state once, or again and again until Ctrl-C."""
    console = Console()
    if not watch:
        shown, code = _look(admin)
        (Console(stderr=True) if code is ExitCode.UNREACHABLE else console).print(
            shown, soft_wrap=isinstance(shown, Text)
        )
        return code
    code = ExitCode.UNREACHABLE
    try:
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                shown, code = _look(admin)
                live.update(shown, refresh=True)
                time.sleep(WATCH_EVERY)
    except KeyboardInterrupt:
        return code


def _look(admin: Admin) -> tuple[RenderableType, ExitCode]:
    try:
        state = ask(admin)
        return Group(*_render(state)), ExitCode.READY if state["ready"] else ExitCode.NOT_READY
    except Unreachable as reason:
        return Text(f"aop-proxy: {reason}", "red"), ExitCode.UNREACHABLE
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError):
        text = f"aop-proxy: what answers at {_name(admin)} is no aop-proxy of this version"
        return Text(text, "red"), ExitCode.UNREACHABLE


def ask(admin: Admin) -> State:
    """The state that a program shows at this address. Raises Unreachable."""
    connection = _UnixConnection(admin.path) if admin.path else _tcp_connection(admin)
    try:
        connection.request("GET", "/status.json", headers={"Host": "localhost"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise Unreachable(f"{_name(admin)} answers {response.status}: it may show no status (`admin.only`)")
        state: State = json.loads(response.read(MOST_BYTES))
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise Unreachable(f"{_name(admin)} cannot be asked: {escape(str(why), 200)}") from error
    finally:
        connection.close()
    return state


def _tcp_connection(admin: Admin) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(admin.host, admin.port, timeout=PATIENCE)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


def _name(admin: Admin) -> str:
    return f"unix:{admin.path}" if admin.path else f"{admin.host}:{admin.port}"


def _text(said: object, style: str = "") -> Text:
    """Something that was said, on one line and as text only."""
    return Text(escape(str(said), 256), style)


def _toned(said: object, tone: str) -> Text:
    return _text(said, _COLOURS[tone])


def _render(state: State) -> Iterator[RenderableType]:
    word, tone = summary.condition(state)
    up = summary.span(state["time"] - state["started"])
    yield Text.assemble(
        ("● ", _COLOURS[tone]),
        (word, f"bold {_COLOURS[tone]}"),
        _text(f"   up {up}   generation {state['generation']}   version {state['version']}", "bright_black"),
    )
    for notice in summary.notices(state):
        yield _toned(notice.text, notice.tone)
        yield from (_toned(f"  {detail}", notice.tone) for detail in notice.details[:MOST_ROWS])
    yield Text()
    yield _figures(state)
    yield _hour(state)
    yield _upstreams(state)
    yield _certificates(state)
    yield _workers(state)
    yield _reasons(state)
    yield _refusals(state)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        *columns,
        show_header=bool(columns),
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for column in table.columns:
        column.header_style = "bright_black"
        column.overflow = "fold"
    return table


def _figures(state: State) -> Table:
    grid = Table.grid(padding=(0, 4, 0, 0))
    figures = summary.figures(state)
    grid.add_row(*(_text(figure.label, "bright_black") for figure in figures))
    grid.add_row(*(_text(figure.number.replace("—", _NOTHING), "bold") for figure in figures))
    return grid


def _hour(state: State) -> Table:
    table = _table("\nThe last hour, by minute")
    for figure, style in zip(summary.figures(state), ("green", "red", "magenta", "blue"), strict=False):
        top = max(figure.series, default=0) or 1
        line = "".join(_STEPS[-(-8 * int(value) // int(top))] if value else _STEPS[0] for value in figure.series)
        table.add_row(_text(figure.label), Text(line, style), _text(figure.text, "bright_black"))
    return table


def _upstreams(state: State) -> Table:
    table = _table("\nUpstreams")
    for one in summary.upstreams(state)[:MOST_ROWS]:
        table.add_row(_toned("*", one.tone), _text(one.name), _toned(one.text.replace(" · ", ", "), one.tone))
    return table


def _certificates(state: State) -> Table:
    table = _table("\nCertificates", "Left", "Whose", "Key")
    for one in summary.ends(state)[:MOST_ROWS]:
        table.add_row(_toned(one.text, one.tone), _text(one.subject), _text(one.path, "bright_black"))
    return table


def _workers(state: State) -> Table:
    table = _table(
        f"\nWorkers ({summary.count(state['restarts'])} restarted)", "", "Process", "Generation", "Up", "Open"
    )
    for one in state["workers"]:
        table.add_row(
            _toned(one["number"], "good" if one["serves"] else "bad"),
            _text(one["pid"]),
            _text(one["generation"]),
            _text(summary.span(state["time"] - one["started"])),
            _text(summary.count(sum(one["open"].values()))),
        )
    return table


def _reasons(state: State) -> Table:
    table = _table("\nRefused or failed, since the start")
    for cause in summary.causes(state)[:MOST_ROWS]:
        table.add_row(
            _text(cause.reason), _text(cause.verdict, "bright_black"), _text(summary.count(cause.number), "bold")
        )
    return table


def _refusals(state: State) -> Table:
    table = _table("\nLatest refusals", "When", "Reason", "Server name", "Address", "Certificate", "Reference")
    for one in state["refusals"][:MOST_REFUSALS]:
        table.add_row(
            _text(f"{summary.span(state['time'] - one['time'])} ago", "bright_black"),
            _text(one["reason"], "red"),
            *(_text(one[name] or _NOTHING) for name in ("sni", "client", "subject", "reference")),
        )
    return table
