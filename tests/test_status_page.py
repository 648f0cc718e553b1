"""The page for a person: what stands in it for which state, and that nothing said by a client is more than text."""

import base64
import hashlib
import math
import random
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from aop_proxy import status_page
from aop_proxy.ledger import MINUTES
from aop_proxy.status_page import HEADERS, page

DAY = 86400.0
HOSTILE = "</code></td><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='alert(1)' &lt;b&gt;"


def quiet() -> dict[str, Any]:
    """A program to which nothing has happened."""
    now = time.time()
    nothing = dict.fromkeys(("accepted", "refused", "failed", "would_refuse", "from_client", "from_upstream"), 0)
    return {
        "version": "1.2.3", "time": now, "started": now - 5, "ready": True, "not_ready": [], "enforcement": "enforce",
        "generation": 1, "reloads": {"good": 0, "failed": 0}, "reload_problems": [], "restarts": 0, "workers": [],
        "totals": {}, "upstreams": [], "seen": {}, "client_ends": {}, "expiries": [], "refusals": [],
        "history": [dict(nothing) for _ in range(MINUTES)],
    }  # fmt: skip


def lively(refusals: int = 14) -> dict[str, Any]:
    """A program in the middle of its day: a scan half an hour ago, a backend that is down, a list that ends soon."""
    chance, state = random.Random(7), quiet()
    now = state["time"]
    for minute, counts in enumerate(state["history"]):
        usual = 46 + 22 * math.sin(minute / 9) + chance.gauss(0, 4)
        scan = 60 * math.exp(-(((minute - 38) / 2.2) ** 2))
        counts["accepted"], counts["refused"] = int(usual), int(max(0, chance.gauss(4, 2)) + scan)
        counts["failed"] = chance.randint(1, 4) if chance.random() < 0.3 else 0
        counts["from_client"], counts["from_upstream"] = (
            int(usual * 20_000),
            int(usual * 400_000 * chance.uniform(0.6, 1.6)),
        )
    words = ["no_certificate", "plain_http", "unknown_ca", "self_signed", "tls_version", "expired", "unknown_host"]
    counted = dict(zip((f"refused {word}" for word in words), (18233, 6120, 2211, 1410, 640, 190, 77), strict=True))
    first, second, third, fourth = (
        "http://127.0.0.1:8000",
        "unix:/run/shop.sock",
        "http://10.20.0.7:8080",
        "http://10.20.0.8:8080",
    )
    certificates = {"unknown_ca": "CN=origin-pull,O=Example", "self_signed": "CN=localhost", "expired": "CN=edge-2024"}
    reasons = chance.choices(words, [8, 5, 3, 2, 1, 1, 1], k=refusals)
    return state | {
        "started": now - 12.4 * DAY, "generation": 4, "reloads": {"good": 3, "failed": 0}, "restarts": 1,
        "workers": [
            {"number": number, "pid": 4120 + 3 * number, "started": now - 12.4 * DAY, "serves": True, "generation": 4,
             "open": {"silent": 1, "handshake": 0, "leaving": 1, "accepted": 210 + 7 * number}}
            for number in range(1, 5)
        ],
        "totals": {
            "connections": {"accepted closed": 390112, "failed client_reset": 905, "failed upstream_timeout": 44} | counted,
            "admitted": {"": 391010}, "handshakes": {"3": 640, "4": 9100, "5": 3900, "6": 700, "seconds": 190},
            "dials": {f"connected {first}": 380210, f"upstream_unreachable {first}": 12, f"upstream_timeout {third}": 44},
            "dial_seconds": {f"0 {first}": 380000, f"0 {second}": 10233, f"3 {third}": 1200},
        },
        "upstreams": [first, second, third, fourth],
        "seen": {f"connected {first}": now, f"failed {first}": now - DAY, f"connected {second}": now,
                 f"connected {third}": now - 900, f"failed {third}": now - 11},
        "expiries": [
            {"path": path, "subject": subject, "not_after": now + days * DAY}
            for path, subject, days in (
                ("sites[0].clients.ca[0]", "CN=origin-pull.cloudflare.net,O=CloudFlare\\, Inc.,C=US", 1074),
                ("sites[0].certificate", "CN=example.com", 61.5),
                ("sites[1].certificate", "CN=shop.example.com", 19.2),
                ("sites[1].clients.crl[0]", "the CRL of CN=Origin CA of shop.example.com", 5.6),
            )
        ],
        "refusals": [
            {"time": now - 3 - 23 * index, "verdict": "refused", "reason": reason, "subject": certificates.get(reason),
             "client": f"203.0.113.{chance.randint(2, 250)}:{chance.randint(20000, 60000)}",
             "sni": None if reason == "plain_http" else chance.choice(["shop.example.com", "www.example.com"]),
             "reference": f"{chance.getrandbits(32):08x}"}
            for index, reason in enumerate(reasons)
        ],
    }  # fmt: skip


class Reader(HTMLParser):
    """Elements, attributes and words of a page, as a browser finds them."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._words: list[str] = []
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] not in ("script", "style"):
            self._words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._words).split())


def text(state: dict[str, Any]) -> str:
    return Reader(page(state)).text


def test_a_quiet_program() -> None:
    """Every part says that there is nothing."""
    shown = text(quiet())
    for words in ("Enforcing", "version 1.2.3", "Nobody has been refused.", "Nobody was refused, and nothing failed."):
        assert words in shown
    assert "Traffic 0 B/s" in shown
    assert "Handshake — none yet" in shown


def test_a_lively_program() -> None:
    """What happened is told in numbers and words."""
    state = lively()
    shown = text(state)
    let_in = sum(minute["accepted"] for minute in state["history"])
    assert f"Let in {let_in:,} in the last hour" in shown
    assert "Handshake 10 ms half took no longer" in shown
    assert "Open 910 and 8 not let in yet, or leaving" in shown
    assert "no_certificate 18,233" in shown
    assert "accepted" not in shown
    assert "up 12 days generation 4" in shown
    assert "1 restarted · 3 reloads, 0 failed" in shown
    refusal = state["refusals"][0]
    for name in ("reason", "client", "reference"):
        assert refusal[name] in shown


def test_refusals_that_are_shown() -> None:
    """The latest, and no more than a person reads."""
    shown = text(lively(refusals=50))
    assert [one["reference"] in shown for one in lively(refusals=50)["refusals"]] == [True] * 20 + [False] * 30


def test_upstreams() -> None:
    """Those that do not answer come first, with when and how often."""
    shown = text(lively())
    section = shown[shown.index("Upstreams") : shown.index("Certificates")]
    assert section.split("http", 1)[1].startswith("://10.20.0.7:8080 does not answer: tried 11 s ago · 44 failed")
    assert "http://127.0.0.1:8000 answers, half within 0.5 ms · 12 failed" in section
    assert "unix:/run/shop.sock answers, half within 0.5 ms" in section
    assert "http://10.20.0.8:8080 not asked yet" in section


def test_certificates() -> None:
    """What ends first comes first, and is marked."""
    html = page(lively()).decode()
    section = html[html.index("Certificates") : html.index("Workers")]
    assert re.findall(r"<li class=\"(\w+)\">", section) == ["bad", "warn", "good", "good"]
    assert re.findall(r"<b>([^<]+)</b>", section) == ["5 days", "19 days", "61 days", "1074 days"]


@pytest.mark.parametrize(("left", "words"), [(-5, "expired"), (90, "90 s"), (3700, "61 min"), (47 * 3600, "47 h")])
def test_the_last_days(left: float, words: str) -> None:
    """Hours and minutes count then."""
    state = quiet()
    state["expiries"] = [{"path": "p", "subject": "CN=a", "not_after": state["time"] + left}]
    assert f"CN=a p {words} " in text(state)


def test_many_of_everything() -> None:
    """A thousand sites do not bury what needs attention."""
    state = quiet()
    for number in range(1000):
        state["upstreams"].append(f"http://10.0.0.{number}")
        state["expiries"].append(
            {"path": f"sites[{number}]", "subject": "CN=a", "not_after": state["time"] + number * DAY}
        )
    state["seen"] = {"failed http://10.0.0.999": state["time"]}
    shown = text(state)
    assert shown.count("12 of 1000") == 2
    assert "http://10.0.0.999 does not answer" in shown
    assert len(page(state)) < 100_000


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"ready": False, "not_ready": ["draining"]}, ["Draining", "Send no clients here: draining."]),
        (
            {"ready": False, "not_ready": ["no worker serves"]},
            ["Not serving", "Send no clients here: no worker serves."],
        ),
        ({"enforcement": "observe"}, ["Observing", "who shows no certificate is let in"]),
        ({"reload_problems": ["listen: is bad"]}, ["The last reload failed", "listen: is bad"]),
    ],
)
def test_what_needs_attention(changed: dict[str, Any], words: list[str]) -> None:
    """It stands on top, and, in a word, in the tab's title."""
    shown = text(quiet() | changed)
    assert [word in shown for word in words] == [True] * len(words)
    assert [word in text(quiet()) for word in words] == [False] * len(words)


def bars(state: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Kind, place and height of each bar of the chart."""
    for tag, attributes in Reader(page(state)).elements:
        if tag == "rect" and attributes["class"] in ("accepted", "would_refuse", "refused", "failed"):
            yield str(attributes["class"]), float(str(attributes["x"])), float(str(attributes["height"]))


def test_the_chart() -> None:
    """A minute's bars stand on each other; one of many is still seen; who would be refused was let in."""
    state = quiet()
    state["history"][0] |= {"accepted": 1000, "refused": 1}
    state["history"][59] |= {"accepted": 300, "would_refuse": 100, "failed": 50}
    in_chart = [one for one in bars(state) if one[2] != 6]
    assert [(kind, int(x)) for kind, x, _ in in_chart] == [
        ("accepted", 0), ("refused", 0), ("accepted", 59), ("would_refuse", 59), ("failed", 59),
    ]  # fmt: skip
    heights = [height for _, _, height in in_chart]
    assert heights[0] == pytest.approx(100 * 1000 / 1200, abs=0.01)
    assert heights[1] == 1.5
    assert heights[2:4] == [pytest.approx(100 * 200 / 1200, abs=0.01), pytest.approx(100 * 100 / 1200, abs=0.01)]
    shown = text(state)
    assert "59 min ago: 1,000 let in, 1 refused" in shown
    assert "this minute: 200 let in, 100 would be refused, 50 failed" in shown
    assert "30 min ago: nobody" in shown


@pytest.mark.parametrize("name", ["reason", "client", "sni", "subject", "reference"])
def test_a_hostile_client_is_text(name: str) -> None:
    """Wherever its words are shown they are words: no element, no attribute, no end of what they stand in."""
    harmless, hostile = lively(refusals=1), lively(refusals=1)
    harmless["refusals"][0] |= {"sni": "a", "subject": "a", name: "x"}
    hostile["refusals"][0] |= {"sni": "a", "subject": "a", name: HOSTILE}
    found = Reader(page(hostile))
    assert " ".join(HOSTILE.split()) in found.text
    hostile["time"] = harmless["time"]
    expected = Reader(page(harmless)).elements
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in expected]
    assert [sorted(attributes) for _, attributes in found.elements] == [
        sorted(attributes) for _, attributes in expected
    ]


def test_a_hostile_worker_or_file_is_text() -> None:
    """Nor anything else."""
    state = lively()
    state["totals"]["connections"][f"refused {HOSTILE}"] = 7
    state["upstreams"].append(HOSTILE)
    state["expiries"].append({"path": HOSTILE, "subject": HOSTILE, "not_after": 0})
    state["reload_problems"], state["not_ready"], state["ready"] = [HOSTILE], [HOSTILE], False
    found = Reader(page(state))
    assert [tag for tag, _ in found.elements if tag in ("script", "img", "b>", "iframe")] == ["script"]
    assert [attributes for _, attributes in found.elements if any(name.startswith("on") for name in attributes)] == []


def test_only_our_own_style_and_script() -> None:
    """The policy names both by their hash, and nothing else may be loaded, framed or sent anywhere."""
    html = page(lively()).decode()
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["content-security-policy"].split(";"))
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert policy[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
    assert {
        rule: policy[rule] for rule in ("default-src", "base-uri", "form-action", "frame-ancestors")
    } == dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
    assert [
        tag for tag, attributes in Reader(html.encode()).elements if {"src", "href", "style"} & attributes.keys()
    ] == []


@pytest.mark.parametrize(
    ("number", "top"), [(0, 4), (4, 4), (5, 8), (9, 12), (84, 120), (121, 200), (201, 400), (1e6, 1.2e6)]
)
def test_the_charts_top(number: float, top: float) -> None:
    """A quarter of it is a round number."""
    assert status_page._round_up(number) == top
