"""Headless Chromium over its DevTools protocol: one page at a width, in light or dark, with what went wrong in it."""

import base64
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from actors import PATIENCE, require_peer, running

PHONE, DESKTOP = 390, 1280
"""Pixels."""


class Browser:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self.complaints: list[str] = []
        """What the browser has logged: blocked by the policy, thrown by a script, not found."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; its result."""
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(PATIENCE))
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
                self.complaints.append(json.dumps(message["params"]))

    def look(self, width: int, *, dark: bool = False) -> None:
        """Be so wide, and prefer this."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Go there, and wait until it is shown."""
        self.call("Page.navigate", url=url)
        self.wait_until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_until(self, expression: str) -> None:
        """Return as soon as it is true in the page."""
        deadline = time.monotonic() + PATIENCE
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        """The whole page."""
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))


@contextlib.contextmanager
def browser(scratch: Path) -> Iterator[Browser]:
    """A browser that knows nothing yet, with one tab."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
    command = [
        require_peer("chromium"),
        *options,
        "--remote-debugging-port=0",
        f"--user-data-dir={scratch}",
        "about:blank",
    ]
    with (scratch / "log").open("w") as log, running(command, stdout=log, stderr=log) as process:
        told = scratch / "DevToolsActivePort"
        deadline = time.monotonic() + 30
        while not told.exists() or len(told.read_text().split()) < 2:
            assert process.poll() is None, (scratch / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        port, path = told.read_text().split()
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None) as whole:
            whole.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
            while (answer := json.loads(whole.recv(PATIENCE))).get("id") != 1:
                pass
        (target,) = [one["targetId"] for one in answer["result"]["targetInfos"] if one["type"] == "page"]
        address = f"ws://127.0.0.1:{port}/devtools/page/{target}"
        with connect(address, max_size=None, proxy=None) as connection:
            yield Browser(connection)
