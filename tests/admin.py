"""A visitor of the admin listener."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from actors import PATIENCE, Proxy


@dataclass(frozen=True)
class Page:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class _UnixConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self.host)


def admin_address(proxy: Proxy, count: int = 1) -> str:
    """Where it listens, as the log says; of the `count`-th child."""
    address: str = proxy.wait_for("admin_ready", count=count)["address"]
    return address


def visit(address: str, path: str, *, method: str = "GET", host: str | None = None, **headers: str) -> Page:
    """Ask for one page."""
    if address.startswith("unix:"):
        connection: http.client.HTTPConnection = _UnixConnection(address.removeprefix("unix:"))
        headers.setdefault("Host", host or "localhost")
    else:
        connection = http.client.HTTPConnection(address, timeout=PATIENCE)
        if host is not None:
            headers["Host"] = host
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return Page(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def status_when(
    address: str, satisfied: Callable[[dict[str, Any]], object], timeout: float = PATIENCE
) -> dict[str, Any]:
    """The status as soon as this is true of it."""
    deadline = time.monotonic() + timeout
    while True:
        status: dict[str, Any] = json.loads(visit(address, "/status.json").body)
        if satisfied(status):
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.05)


def total(status: Mapping[str, Any], family: str, labels: str) -> float:
    """One number of a status."""
    found: float = status["totals"].get(family, {}).get(labels, 0)
    return found
