"""The status page in a real browser: on a desk and on a phone, in light and in dark, live, and safe to look at."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import GET, ONE_WORKER, Proxy, RecordingBackend, ask, ask_plainly, client_context
from admin import admin_address, visit
from aop_proxy import status_page
from browser import DESKTOP, PHONE, Browser, browser
from certificates import Authority, CredentialFiles
from test_status_page import lively

TEXT = "document.querySelector('main').innerText"
WIDTHS = pytest.mark.parametrize("width", [PHONE, DESKTOP], ids=["phone", "desktop"])
DARK = pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module")
def watched(site: dict[str, Any]) -> Iterator[Proxy]:
    with Proxy({**ONE_WORKER, "sites": [site], "admin": "127.0.0.1:0"}) as proxy:
        yield proxy


def open_page(chromium: Browser, proxy: Proxy, width: int = DESKTOP, *, dark: bool = False) -> None:
    chromium.complaints.clear()
    chromium.look(width, dark=dark)
    chromium.open(f"http://{admin_address(proxy)}/")


def complaints(chromium: Browser) -> list[str]:
    """But for the icon that every browser asks for, and that there is none of."""
    chromium.evaluate("0")
    return [one for one in chromium.complaints if "favicon" not in one]


@WIDTHS
@DARK
def test_it_fits(chromium: Browser, watched: Proxy, width: int, dark: bool) -> None:
    """Nothing is wider than the screen, and nothing is missing; the background is what was asked for."""
    open_page(chromium, watched, width, dark=dark)
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    headings = chromium.evaluate("[...document.querySelectorAll('h2')].map(one => one.innerText)")
    assert headings == ["The last hour", "Reasons", "Upstreams", "Certificates", "Workers", "Latest refusals"]
    colour = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3
    assert (light < 64) if dark else (light > 192)
    assert complaints(chromium) == []


@WIDTHS
@DARK
def test_a_lively_hour_fits(chromium: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    """With long names too, no part of the page is wider than what it stands in, and all text can be told from its back."""
    state = lively()
    state["refusals"][0] |= {
        "sni": "a" * 128,
        "subject": "CN=" + "W" * 125,
        "client": "[" + "2001:db8:" * 4 + "]:65535",
    }
    state["upstreams"].append("http://" + "b" * 200)
    state["expiries"][0]["subject"] = "CN=" + "W" * 250
    (tmp_path / "page.html").write_bytes(status_page.page(state))
    chromium.look(width, dark=dark)
    chromium.open(f"file://{tmp_path}/page.html")
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    spilling = chromium.evaluate(
        "[...document.querySelectorAll('.card, .tile')].filter(one => one.scrollWidth > one.clientWidth).map(one => one.innerText)"
    )
    assert spilling == []
    assert chromium.evaluate(FAINT) == []
    if pictures := os.environ.get("AOP_PICTURES"):  # for a person's eye
        chromium.screenshot(Path(pictures) / f"status-{width}-{'dark' if dark else 'light'}.png")


FAINT = """
(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map(Number).map((one) => one / 255)
      .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    const colour = getComputedStyle(one).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" && one.parentElement ? behind(one.parentElement) : colour;
  };
  const faint = [];
  for (const one of document.querySelectorAll("main *")) {
    if (one.closest("svg") || ![...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(one.innerText);
  }
  return faint;
})()
"""
"""Texts with less contrast than WCAG 2.2 asks for (1.4.3: 4.5 to 1)."""


def test_it_lives(
    chromium: Browser, watched: Proxy, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """Who is refused and who is let in while one looks appears within seconds, with the reference of the page they saw."""
    open_page(chromium, watched)
    chromium.evaluate("window.untouched = true")
    answer = ask_plainly(watched.address, GET)
    assert ask(watched.address, client_context(client_credentials)).status == 200
    reference = watched.connection_record(reason="plain_http")["reference"]
    assert reference in answer.body
    chromium.wait_until(f"{TEXT}.includes('{reference}')")
    chromium.wait_until(f"/Let in\\s+[1-9]/.test({TEXT})")
    chromium.wait_until("document.querySelectorAll('.chart rect.refused').length > 0")
    assert chromium.evaluate("window.untouched") is True, "it was not loaded anew"
    assert complaints(chromium) == []


def test_a_hostile_certificate_is_text(chromium: Browser, watched: Proxy, tmp_path: Path) -> None:
    """What a stranger writes into its certificate is shown, and does nothing."""
    name = "<img src=x onerror=alert(1)>"
    stranger = Authority("Stranger").issue(name).write(tmp_path, "stranger")
    ask(watched.address, client_context(stranger), server_name="evil.example")
    open_page(chromium, watched)
    chromium.wait_until(f"{TEXT}.includes('onerror=alert')")
    assert "\\<img src=x onerror=alert(1)\\>" in chromium.evaluate(TEXT).replace("\\\\", "\\").replace("\n", "")
    assert chromium.evaluate(f"{TEXT}.includes('evil.example')") is True
    assert chromium.evaluate("document.images.length") == 0
    assert complaints(chromium) == []


def test_the_browser_enforces_the_policy(chromium: Browser, watched: Proxy) -> None:
    """Whatever got into the page all the same could not run, nor send anything anywhere."""
    open_page(chromium, watched)
    blocked = chromium.evaluate(
        """(async () => {
          const seen = [];
          document.addEventListener("securitypolicyviolation", (event) => seen.push(event.effectiveDirective));
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
          document.body.insertAdjacentHTML("beforeend", "<img src=/healthz onerror='window.ran = true'><p style='color: red'>");
          await fetch("http://127.0.0.1:9/").catch(() => seen.push("fetch failed"));
          await new Promise((done) => setTimeout(done, 100));
          return [window.ran === undefined, [...new Set(seen)].sort()];
        })()"""
    )
    assert blocked[0] is True
    assert {"connect-src", "fetch failed", "img-src", "script-src-elem"} <= set(blocked[1])


def test_it_says_when_it_is_old(chromium: Browser, site: dict[str, Any]) -> None:
    """A page whose program is gone does not look like one of a program that is well."""
    with Proxy({**ONE_WORKER, "sites": [site], "admin": "127.0.0.1:0"}) as proxy:
        open_page(chromium, proxy)
        shown = "getComputedStyle(document.querySelector('.connection-lost')).display"
        assert chromium.evaluate(shown) == "none"
        proxy.signal(signal.SIGTERM)
        assert proxy.exit_code == 0
        chromium.wait_until(f"{shown} === 'block'")


def test_without_scripts(watched: Proxy) -> None:
    """It refreshes itself too where scripts are off, and nothing is kept by a cache."""
    answer = visit(admin_address(watched), "/")
    assert '<noscript><meta http-equiv="refresh" content="5"></noscript>' in answer.text
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"] == status_page.HEADERS["content-security-policy"]
