"""The state -> one page for a person: what happened in the last hour, who was refused and why, what is behind the gate.

Everything is in the page, which refreshes itself; built as a tree, so that whatever a client controls is escaped by the
serializer and cannot be forgotten. Must not know who asks.
"""

import base64
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, tostring

from aop_proxy.histogram import BUCKETS
from aop_proxy.ledger import State

MOST_REFUSALS = 20
MOST_ROWS = 12
"""Certificates and upstreams that are shown; the ones that need attention come first."""
SOON, VERY_SOON = 30 * 86400, 7 * 86400
"""Seconds before its end at which a certificate is shown as a warning, and as an alarm."""
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
    "cross-origin-resource-policy": "same-origin",
}

_Child = Element | str | None


def page(state: State) -> bytes:
    """The page, in UTF-8."""
    word, tone = _condition(state)
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
        *_notices(state),
        _tiles(state),
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


def _condition(state: State) -> tuple[str, str]:
    """One word for all of it, and its tone."""
    if not state["ready"]:
        return ("Draining", "warn") if "draining" in state["not_ready"] else ("Not serving", "bad")
    return ("Observing", "warn") if state["enforcement"] == "observe" else ("Enforcing", "good")


def _header(state: State, word: str, tone: str) -> Element:
    facts = (
        ("up", _span(state["time"] - state["started"])),
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


def _notices(state: State) -> list[Element]:
    notices = []
    if not state["ready"]:
        notices.append(_tag("p", "notice bad", f"Send no clients here: {', '.join(state['not_ready'])}."))
    if state["enforcement"] == "observe":
        text = "It only observes: who shows no certificate is let in, and counted as would_refuse."
        notices.append(_tag("p", "notice warn", text))
    if state["reload_problems"]:
        problems = _tag("ul", None, *(_tag("li", None, problem) for problem in state["reload_problems"][:MOST_ROWS]))
        text = "The last reload failed, and the configuration before it is served:"
        notices.append(_tag("div", "notice bad", text, problems))
    return notices


def _tiles(state: State) -> Element:
    history = state["history"]
    recent = history[-2:]
    seconds = 60 + state["time"] % 60  # of the last two minutes; the second is still going on
    rate = sum(minute["from_client"] + minute["from_upstream"] for minute in recent) / seconds
    open_now = sum(worker["open"].get("accepted", 0) for worker in state["workers"])
    others = sum(sum(worker["open"].values()) for worker in state["workers"]) - open_now
    moved = [minute["from_client"] + minute["from_upstream"] for minute in history]
    middle = _median(state["totals"].get("handshakes", {}))
    return _tag(
        "section",
        "tiles",
        *(
            _tile(
                label,
                _count(sum(minute[name] for minute in history)),
                "in the last hour",
                name,
                [m[name] for m in history],
            )
            for label, name in (("Let in", "accepted"), ("Refused", "refused"), ("Failed", "failed"))
        ),
        _tile("Traffic", f"{_bytes(rate)}/s", f"{_bytes(sum(moved))} in the last hour", "traffic", moved),
        _tile("Open", _count(open_now), f"and {_count(others)} not let in yet, or leaving"),
        _tile("Handshake", middle or "—", "half took no longer" if middle else "none yet"),
    )


def _tile(label: str, number: str, text: str, tone: str = "", series: Sequence[float] = ()) -> Element:
    kind = f"tile {tone}".strip()
    return _tag(
        "div",
        kind,
        _tag("span", "label", label),
        _tag("span", "number", number),
        _tag("span", "text", text),
        _sparkline(series) if any(series) else None,
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
            _tag("li", _SERIES[i][0], _SERIES[i][1], _tag("b", None, _count(sum(stack[i] for stack in stacks))))
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
    marks = _tag("div", "marks", *(_tag("span", None, _count(top * part / 4)) for part in (4, 3, 2, 1, 0)))
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
    for (name, _), count in zip(_SERIES, stack, strict=True):
        if count:
            height = max(100 * count / top, _LEAST_HEIGHT)
            y -= height
            bars.append(
                _tag("rect", name, x=f"{minute + 0.14:.2f}", y=f"{y:.2f}", width="0.72", height=f"{height:.2f}")
            )
    words = [f"{_count(count)} {text}" for (_, text), count in zip(_SERIES, stack, strict=True) if count]
    when = f"{ago} min ago" if ago else "this minute"
    bars.append(
        _tag("rect", "hover", _tag("title", None, f"{when}: {', '.join(words) or 'nobody'}"),
             x=str(minute), y="0", width="1", height="100")
    )  # fmt: skip
    return bars


# What there is beside it.


def _reasons(state: State) -> Element:
    found = [
        (words.partition(" ")[2], words.partition(" ")[0], count)
        for words, count in state["totals"].get("connections", {}).items()
        if not words.startswith("accepted ") and count
    ]
    found.sort(key=lambda one: -one[2])
    most = found[0][2] if found else 1
    rows = [
        _tag(
            "li", None, _tag("span", "name", reason), _bar(verdict, count / most), _tag("span", "count", _count(count))
        )
        for reason, verdict, count in found[:MOST_ROWS]
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
    dials, took, seen = state["totals"].get("dials", {}), state["totals"].get("dial_seconds", {}), state["seen"]
    rows = []
    for url in state["upstreams"]:
        failed, connected = seen.get(f"failed {url}", 0), seen.get(f"connected {url}", 0)
        middle = _median({words.partition(" ")[0]: n for words, n in took.items() if words.partition(" ")[2] == url})
        failures = sum(dials.get(f"{word} {url}", 0) for word in ("upstream_unreachable", "upstream_timeout"))
        if failed > connected:
            tone, text = "bad", f"does not answer: tried {_span(state['time'] - failed)} ago"
        elif connected:
            tone, text = "good", f"answers, half within {middle}"
        else:
            tone, text = "idle", "not asked yet"
        rows.append((tone != "bad", url, tone, text + (f" · {_count(failures)} failed" if failures else "")))
    rows.sort(key=lambda row: row[0])
    items = [
        _tag("li", tone, _tag("span", "dot"), _tag("div", None, _tag("code", None, url), _tag("small", None, text)))
        for _, url, tone, text in rows[:MOST_ROWS]
    ]
    return _card("Upstreams", _rest(rows), _tag("ul", "things", *items) if items else _empty("There are none."))


def _certificates(state: State) -> Element:
    items = []
    ends = sorted(state["expiries"], key=lambda one: float(one["not_after"]))
    for one in ends[:MOST_ROWS]:
        left = one["not_after"] - state["time"]
        tone = "bad" if left < VERY_SOON else "warn" if left < SOON else "good"
        days = f"{left // 86400:.0f} days" if left >= 2 * 86400 else _span(left) if left > 0 else "expired"
        names = _tag("div", None, _tag("span", "name", one["subject"]), _tag("small", None, one["path"]))
        items.append(_tag("li", tone, names, _tag("div", "left", _tag("b", None, days), _bar(tone, left / _GAUGE))))
    return _card(
        "Certificates", _rest(ends), _tag("ul", "certificates", *items) if items else _empty("There are none.")
    )


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
            _tag("td", None, _span(state["time"] - one["started"])),
            _tag("td", None, _count(sum(one["open"].values()))),
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
    text = f"{_count(state['restarts'])} restarted · {_count(good)} reloads, {_count(failed)} failed"
    return _card("Workers", text, table if rows else _empty("None is running."))


def _refusals(state: State) -> Element:
    heads = ("When", "Reason", "Server name", "Address", "Certificate", "Reference")
    rows = []
    for one in state["refusals"][:MOST_REFUSALS]:
        cells: tuple[tuple[str, _Child], ...] = (
            ("when", f"{_span(state['time'] - one['time'])} ago"),
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


# Numbers in a person's words.


def _count(number: float) -> str:
    """1, 12,345, 3.4M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= max(size, 100_000):
            return f"{number / size:.1f}{unit}" if number < 100 * size else f"{number / size:.0f}{unit}"
    return f"{number:,.0f}"


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def _span(seconds: float) -> str:
    """3 s, 4 min, 5 h, 6 days."""
    seconds = max(seconds, 0)
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _median(counted: Mapping[str, float]) -> str | None:
    """The bound of the bucket that holds the middle one."""
    counts = [counted.get(str(index), 0) for index in range(len(BUCKETS) + 1)]
    passed = 0.0
    for bound, count in zip((*BUCKETS, math.inf), counts, strict=True):
        passed += count
        if passed and passed >= sum(counts) / 2:
            return f"{bound * 1000:g} ms" if bound < 1 else f"{min(bound, BUCKETS[-1]):g} s"
    return None


def _round_up(number: float) -> float:
    """The next of 4, 8, 12, 20, 40, 80, 120, 200, of which a quarter is a round number, too."""
    size = 4.0
    while True:
        for step in (1, 2, 3, 5):
            if number <= step * size:
                return step * size
        size *= 10
