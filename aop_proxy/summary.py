"""The state -> what a person wants to know of it, in words, in order, and with a tone; for whatever shows it.

A tone is `good`, `warn`, `bad` or `idle`. Nothing is escaped here. Must not know how it is shown.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from aop_proxy.histogram import BUCKETS
from aop_proxy.ledger import State

SOON, VERY_SOON = 30 * 86400, 7 * 86400
"""Seconds before its end at which a certificate is worth a warning, and an alarm."""


class Notice(NamedTuple):
    """Something that needs attention."""

    tone: str
    text: str
    details: tuple[str, ...] = ()


class Figure(NamedTuple):
    """One number that matters."""

    name: str
    label: str
    number: str
    text: str
    series: tuple[float, ...] = ()
    """By minute."""


class Cause(NamedTuple):
    """Why connections were refused or failed."""

    verdict: str
    reason: str
    number: float


class Thing(NamedTuple):
    """Something that is well or not."""

    name: str
    text: str
    tone: str


class End(NamedTuple):
    """What ends when."""

    subject: str
    path: str
    left: float
    """Seconds."""
    text: str
    tone: str


def condition(state: State) -> tuple[str, str]:
    """One word for all of it, and its tone."""
    if not state["ready"]:
        return ("Draining", "warn") if "draining" in state["not_ready"] else ("Not serving", "bad")
    return ("Observing", "warn") if state["enforcement"] == "observe" else ("Enforcing", "good")


def notices(state: State) -> list[Notice]:
    """What needs attention."""
    found = []
    if not state["ready"]:
        found.append(Notice("bad", f"Send no clients here: {', '.join(state['not_ready'])}."))
    if state["enforcement"] == "observe":
        text = "It only observes: who shows no certificate is let in, and counted as would_refuse."
        found.append(Notice("warn", text))
    if state["reload_problems"]:
        text = "The last reload failed, and the configuration before it is served:"
        found.append(Notice("bad", text, tuple(state["reload_problems"])))
    return found


def figures(state: State) -> list[Figure]:
    """The numbers above all others."""
    history = state["history"]
    found = []
    for name, label in (("accepted", "Let in"), ("refused", "Refused"), ("failed", "Failed")):
        series = tuple(minute[name] for minute in history)
        found.append(Figure(name, label, count(sum(series)), "in the last hour", series))
    moved = tuple(minute["from_client"] + minute["from_upstream"] for minute in history)
    rate = sum(moved[-2:]) / (60 + state["time"] % 60)  # of two minutes, the second of which is still going on
    found.append(Figure("traffic", "Traffic", f"{size(rate)}/s", f"{size(sum(moved))} in the last hour", moved))
    accepted = sum(worker["open"].get("accepted", 0) for worker in state["workers"])
    others = sum(sum(worker["open"].values()) for worker in state["workers"]) - accepted
    found.append(Figure("open", "Open", count(accepted), f"and {count(others)} not let in yet, or leaving"))
    middle = median(state["totals"].get("handshakes", {}))
    text = "half took no longer" if middle else "none yet"
    found.append(Figure("handshake", "Handshake", middle or "—", text))
    return found


def causes(state: State) -> list[Cause]:
    """Why connections were refused or failed since the start, the most frequent first."""
    found = []
    for words, number in state["totals"].get("connections", {}).items():
        verdict, _, reason = words.partition(" ")
        if number and verdict != "accepted":
            found.append(Cause(verdict, reason, number))
    return sorted(found, key=lambda cause: -cause.number)


def upstreams(state: State) -> list[Thing]:
    """The backends, those that do not answer first."""
    dials, took, seen = state["totals"].get("dials", {}), state["totals"].get("dial_seconds", {}), state["seen"]
    found = []
    for url in state["upstreams"]:
        failed, connected = seen.get(f"failed {url}", 0), seen.get(f"connected {url}", 0)
        if failed > connected:
            tone, text = "bad", f"does not answer: tried {span(state['time'] - failed)} ago"
        elif connected:
            middle = median({words.partition(" ")[0]: n for words, n in took.items() if words.partition(" ")[2] == url})
            tone, text = "good", f"answers, half within {middle}"
        else:
            tone, text = "idle", "not asked yet"
        failures = sum(dials.get(f"{word} {url}", 0) for word in ("upstream_unreachable", "upstream_timeout"))
        found.append(Thing(url, text + (f" · {count(failures)} failed" if failures else ""), tone))
    return sorted(found, key=lambda thing: thing.tone != "bad")


def ends(state: State) -> list[End]:
    """Certificates, CAs and CRLs, what ends first first."""
    found = []
    for one in state["expiries"]:
        left = one["not_after"] - state["time"]
        tone = "bad" if left < VERY_SOON else "warn" if left < SOON else "good"
        days = f"{left // 86400:.0f} days" if left >= 2 * 86400 else span(left) if left > 0 else "expired"
        found.append(End(one["subject"], one["path"], left, days, tone))
    return sorted(found, key=lambda end: end.left)


def count(number: float) -> str:
    """1, 12,345, 3.4M."""
    for unit, one in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= max(one, 100_000):
            return f"{number / one:.1f}{unit}" if number < 100 * one else f"{number / one:.0f}{unit}"
    return f"{number:,.0f}"


def size(number: float) -> str:
    """999 B, 1.5 KiB, 2.8 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def span(seconds: float) -> str:
    """3 s, 4 min, 5 h, 6 days."""
    seconds = max(seconds, 0)
    for unit, one in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * one:
            return f"{int(seconds // one)} {unit}"
    return f"{int(seconds)} s"


def median(counted: Mapping[str, float]) -> str | None:
    """The bound of the bucket that holds the middle one."""
    counts = [counted.get(str(index), 0) for index in range(len(BUCKETS) + 1)]
    passed = 0.0
    for bound, held in zip((*BUCKETS, math.inf), counts, strict=True):
        passed += held
        if passed and passed >= sum(counts) / 2:
            return f"{bound * 1000:g} ms" if bound < 1 else f"{min(bound, BUCKETS[-1]):g} s"
    return None
