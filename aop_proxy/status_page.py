"""The state -> one page for a person: what happened in the last hour, who was refused and why, what is behind the gate.

Everything is in the page, which refreshes itself; built as a tree, so that whatever a client controls is escaped by the
serializer and cannot be forgotten. Must not know who asks.
"""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, tostring

from aop_proxy import summary
from aop_proxy.ledger import State
from aop_proxy.summary import Figure, Notice, count, span

MOST_REFUSALS = 20
MOST_ROWS = 12
"""Certificates and upstreams that are shown; the ones that need attention come first."""
_GAUGE = 90 * 86400
"""Seconds left that fill a certificate's bar."""
_LEAST_HEIGHT = 1.5
"""Of a bar that is not nothing, in hundredths of the chart."""


def _asset(name: str) -> str:
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name), encoding="utf-8") as file:
        return file.read()


_STYLE, _SCRIPT = _asset("status_page.css"), _asset("status_page.js")


def _source(text: str) -> str:
    """The one inline text that a browser may take, named by its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; style-src {_source(_STYLE)}; script-src {_source(_SCRIPT)}; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}

_Child = Element | str | None


def page(state: State) -> bytes:
    """The page, in UTF-8."""
    word, tone = summary.condition(state)
    refresh = _tag("noscript", None, _tag("meta", None, **{"http-equiv": "refresh", "content": "5"}))
    head = _tag(
        "head",
        None,
        _tag("meta", None, charset="utf-8"),
        _tag("meta", None, name="viewport", content="width=device-width, initial-scale=1"),
        _tag("meta", None, name="color-scheme", content="light dark"),
        refresh,
        _tag("title", None, f"{word} · aop_proxy"),
        _tag("style", None, _STYLE),
    )
    main = _tag(
        "main",
        None,
        _header(state, word, tone),
        *map(_notice, summary.notices(state)),
        _tag("section", "tiles", *map(_tile, summary.figures(state))),
        _hour(state["history"]),
        _tag("div", "columns", _reasons(state), _upstreams(state), _certificates(state), _workers(state)),
        _refusals(state),
    )
    lost = _tag("p", "connection-lost", "The admin listener does not answer: what stands here is old.", role="alert")
    html = _tag("html", None, head, _tag("body", None, lost, main, _tag("script", None, _SCRIPT)), lang="en")
    return f"<!doctype html>\n{tostring(html, encoding='unicode', method='html')}".encode()


def _tag(name: str, kind: str | None = None, /, *children: _Child, **attributes: str) -> Element:
    """An element with text and elements in it."""
    element = Element(name, ({"class": kind} if kind else {}) | attributes)
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif child is not None and len(element):
            element[-1].tail = (element[-1].tail or "") + child
        elif child is not None:
            element.text = (element.text or "") + child
    return element


def _card(title: str, aside: str | None, *children: _Child, kind: str = "card") -> Element:
    heading = _tag("div", "heading", _tag("h2", None, title), _tag("span", "aside", aside) if aside else None)
    return _tag("section", kind, heading, *children)


# Above all: how it is.


def _header(state: State, word: str, tone: str) -> Element:
    facts = (
        ("up", span(state["time"] - state["started"])),
        ("generation", str(state["generation"])),
        ("version", state["version"]),
    )
    return _tag(
        "header",
        None,
        _tag("h1", None, "aop_proxy"),
        _tag("span", f"state {tone}", word),
        _tag(
            "dl", "facts", *(_tag("div", None, _tag("dt", None, name), _tag("dd", None, fact)) for name, fact in facts)
        ),
    )


def _notice(notice: Notice) -> Element:
    details = [_tag("li", None, detail) for detail in notice.details[:MOST_ROWS]]
    return _tag("div", f"notice {notice.tone}", notice.text, _tag("ul", None, *details) if details else None)


def _tile(figure: Figure) -> Element:
    return _tag(
        "div",
        f"tile {figure.name}",
        _tag("span", "label", figure.label),
        _tag("span", "number", figure.number),
        _tag("span", "text", figure.text),
        _sparkline(figure.series) if any(figure.series) else None,
    )


def _sparkline(series: Sequence[float]) -> Element:
    top = max(series)
    points = [f"{index},{30 - 28 * value / top:.2f}" for index, value in enumerate(series)]
    last = len(series) - 1
    return _tag(
        "svg",
        "sparkline",
        _tag("polygon", None, points=" ".join(["0,30", *points, f"{last},30"])),
        _tag("polyline", None, points=" ".join(points)),
        viewBox=f"0 0 {last} 30",
        preserveAspectRatio="none",
        **{"aria-hidden": "true"},
    )


# The last hour.

_SERIES = (("accepted", "let in"), ("would_refuse", "would be refused"), ("refused", "refused"), ("failed", "failed"))


def _hour(history: Sequence[Mapping[str, float]]) -> Element:
    stacks = [_stack(minute) for minute in history]
    top = _round_up(max(sum(stack) for stack in stacks))
    shown = [
        index for index, (name, _) in enumerate(_SERIES) if name != "would_refuse" or any(s[index] for s in stacks)
    ]
    legend = _tag(
        "ul",
        "legend",
        *(
            _tag("li", _SERIES[i][0], _SERIES[i][1], _tag("b", None, count(sum(stack[i] for stack in stacks))))
            for i in shown
        ),
    )
    lines = [_tag("line", "grid", x1="0", x2=str(len(stacks)), y1=f"{y}", y2=f"{y}") for y in (0, 25, 50, 75, 100)]
    svg = _tag(
        "svg",
        None,
        *lines,
        *(bar for minute, stack in enumerate(stacks) for bar in _bars(minute, stack, top, len(stacks) - 1 - minute)),
        viewBox=f"0 0 {len(stacks)} 100",
        preserveAspectRatio="none",
        role="img",
        **{"aria-label": "Connections of each minute of the last hour"},
    )
    marks = _tag("div", "marks", *(_tag("span", None, count(top * part / 4)) for part in (4, 3, 2, 1, 0)))
    minutes = _tag(
        "div", "minutes", *(_tag("span", None, text) for text in ("1 h ago", "45 min", "30 min", "15 min", "now"))
    )
    return _card(
        "The last hour", "connections a minute", legend, _tag("div", "chart", marks, svg, minutes), kind="card wide"
    )


def _stack(minute: Mapping[str, float]) -> list[float]:
    """What stands on what; who would be refused was let in."""
    would = min(minute["would_refuse"], minute["accepted"])
    return [minute["accepted"] - would, would, minute["refused"], minute["failed"]]


def _bars(minute: int, stack: Sequence[float], top: float, ago: int) -> list[Element]:
    bars, y = [], 100.0
    for (name, _), number in zip(_SERIES, stack, strict=True):
        if number:
            height = max(100 * number / top, _LEAST_HEIGHT)
            y -= height
            bars.append(
                _tag("rect", name, x=f"{minute + 0.14:.2f}", y=f"{y:.2f}", width="0.72", height=f"{height:.2f}")
            )
    words = [f"{count(number)} {text}" for (_, text), number in zip(_SERIES, stack, strict=True) if number]
    when = f"{ago} min ago" if ago else "this minute"
    bars.append(
        _tag("rect", "hover", _tag("title", None, f"{when}: {', '.join(words) or 'nobody'}"),
             x=str(minute), y="0", width="1", height="100")
    )  # fmt: skip
    return bars


# What there is beside it.


def _reasons(state: State) -> Element:
    causes = summary.causes(state)[:MOST_ROWS]
    rows = [
        _tag(
            "li",
            None,
            _tag("span", "name", cause.reason),
            _bar(cause.verdict, cause.number / causes[0].number),
            _tag("span", "count", count(cause.number)),
        )
        for cause in causes
    ]
    body = _tag("ul", "reasons", *rows) if rows else _empty("Nobody was refused, and nothing failed.")
    return _card("Reasons", "of refusals and failures since the start", body)


def _bar(tone: str, part: float) -> Element:
    """A horizontal bar, full at 1."""
    width = f"{100 * min(max(part, 0.01), 1):.1f}"
    return _tag(
        "svg",
        f"bar {tone}",
        _tag("rect", "rail", width="100", height="6"),
        _tag("rect", None, width=width, height="6"),
        viewBox="0 0 100 6",
        preserveAspectRatio="none",
        **{"aria-hidden": "true"},
    )


def _upstreams(state: State) -> Element:
    upstreams = summary.upstreams(state)
    items = [
        _tag("li", one.tone, _tag("span", "dot"), _tag("div", None, _tag("code", None, one.name), _small(one.text)))
        for one in upstreams[:MOST_ROWS]
    ]
    return _card("Upstreams", _rest(upstreams), _tag("ul", "things", *items) if items else _empty("There are none."))


def _certificates(state: State) -> Element:
    ends = summary.ends(state)
    items = [
        _tag(
            "li",
            one.tone,
            _tag("div", None, _tag("span", "name", one.subject), _small(one.path)),
            _tag("div", "left", _tag("b", None, one.text), _bar(one.tone, one.left / _GAUGE)),
        )
        for one in ends[:MOST_ROWS]
    ]
    return _card(
        "Certificates", _rest(ends), _tag("ul", "certificates", *items) if items else _empty("There are none.")
    )


def _small(text: str) -> Element:
    return _tag("small", None, text)


def _workers(state: State) -> Element:
    heads = ("", "Worker", "Process", "Generation", "Up", "Open")
    rows = [
        _tag(
            "tr",
            None,
            _tag("td", None, _tag("span", f"dot {'good' if one['serves'] else 'bad'}")),
            _tag("td", None, str(one["number"])),
            _tag("td", None, str(one["pid"])),
            _tag("td", None, str(one["generation"] or "—")),
            _tag("td", None, span(state["time"] - one["started"])),
            _tag("td", None, count(sum(one["open"].values()))),
        )
        for one in state["workers"]
    ]
    table = _tag(
        "table",
        "workers",
        _tag("thead", None, _tag("tr", None, *(_tag("th", None, head) for head in heads))),
        _tag("tbody", None, *rows),
    )
    good, failed = state["reloads"]["good"], state["reloads"]["failed"]
    text = f"{count(state['restarts'])} restarted · {count(good)} reloads, {count(failed)} failed"
    return _card("Workers", text, table if rows else _empty("None is running."))


def _refusals(state: State) -> Element:
    heads = ("When", "Reason", "Server name", "Address", "Certificate", "Reference")
    rows = []
    for one in state["refusals"][:MOST_REFUSALS]:
        cells: tuple[tuple[str, _Child], ...] = (
            ("when", f"{span(state['time'] - one['time'])} ago"),
            ("reason", _tag("span", f"pill {one['verdict']}", one["reason"])),
            ("sni" if one["sni"] else "sni unknown", one["sni"] or "—"),
            ("client", one["client"]),
            ("subject" if one["subject"] else "subject unknown", one["subject"] or "—"),
            ("reference", _tag("code", None, one["reference"])),
        )
        named = ((head, kind, cell) for head, (kind, cell) in zip(heads, cells, strict=True))
        rows.append(_tag("tr", None, *(_tag("td", kind, cell, **{"data-label": head}) for head, kind, cell in named)))
    table = _tag(
        "table",
        "refusals",
        _tag("thead", None, _tag("tr", None, *(_tag("th", None, head) for head in heads))),
        _tag("tbody", None, *rows),
    )
    body = table if rows else _empty("Nobody has been refused.")
    return _card(
        "Latest refusals", "the reference stands on the page that they saw, and in the log", body, kind="card wide"
    )


def _empty(text: str) -> Element:
    return _tag("p", "empty", text)


def _rest(rows: Sequence[Any]) -> str | None:
    return f"{MOST_ROWS} of {len(rows)}" if len(rows) > MOST_ROWS else None


def _round_up(number: float) -> float:
    """The next of 4, 8, 12, 20, 40, 80, 120, 200, of which a quarter is a round number, too."""
    size = 4.0
    while True:
        for step in (1, 2, 3, 5):
            if number <= step * size:
                return step * size
        size *= 10
