"""A scan of 700 refused connections a second fills no disk, hides nobody who was let in, and is counted to the last.

Strangers of three kinds come for two seconds, evenly, and good clients among them. The bound is computed from the time
it really took, so a slow machine makes the scan longer, not the test weaker.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from actors import ONE_WORKER, Event, Proxy, RecordingBackend, ask, ask_plainly, client_context
from aop_proxy.log import MAX_LINE
from aop_proxy.telemetry import SUPPRESSED_EVERY
from aop_proxy.workers import ExitCode
from certificates import CredentialFiles

SCANNERS = 10
RATE = 700
STRANGERS = 2 * RATE
LINES_PER_SECOND = 20
"""`log.refusals_per_second`, at its default."""
GOOD_CLIENTS = 20
TLS_EVERY, GARBAGE_EVERY = 20, 3
"""A stranger in so many speaks TLS, of the others one in so many no protocol at all, the rest plain HTTP."""

Address = tuple[str, int]


def no_certificate(address: Address) -> bool:
    return ask(address, client_context()).status == 400


def garbage(address: Address) -> bool:
    return ask_plainly(address, b"\0\1\2\3 no protocol at all\r\n\r\n").data == b""


def plain_http(address: Address) -> bool:
    return ask_plainly(address, b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n").data.startswith(b"HTTP/1.1 400 ")


REASONS: dict[Callable[[Address], bool], str] = {
    no_certificate: "no_certificate",
    garbage: "handshake_failed",
    plain_http: "plain_http",
}


def stranger(number: int) -> Callable[[Address], bool]:
    """Who comes as this number of the scan."""
    if number % TLS_EVERY == 0:
        return no_certificate
    return garbage if number % GARBAGE_EVERY == 0 else plain_http


def scan(address: Address, first: int, start: float) -> int:
    """Every tenth stranger from the first on, each when it is due or as soon after as can be; how many were refused."""
    refused = 0
    for number in range(first, STRANGERS, SCANNERS):
        time.sleep(max(0.0, start + number / RATE - time.monotonic()))  # the scan's own pace
        refused += stranger(number)(address)
    return refused


def length(event: Event) -> int:
    """Bytes of the line that an event was read from."""
    return len(json.dumps(event, separators=(",", ":"))) + 1


def test_a_scan(site: dict[str, Any], backend: RecordingBackend, client_credentials: CredentialFiles) -> None:
    """Few lines, which with the `suppressed` ones add up exactly, all lines of good clients, and no line too long."""
    good = client_context(client_credentials)
    log = {"format": "json", "refusals_per_second": LINES_PER_SECOND}
    with Proxy({**ONE_WORKER, "log": log, "sites": [site]}) as proxy, ThreadPoolExecutor(SCANNERS) as threads:
        start = time.monotonic()
        scans = [threads.submit(scan, proxy.address, first, start) for first in range(SCANNERS)]
        served = [ask(proxy.address, good).status for _ in range(GOOD_CLIENTS)]
        refused = sum(one.result() for one in scans)
        proxy.terminate()
        assert proxy.exit_code == ExitCode.DRAINED
        elapsed = time.monotonic() - start
        proxy.log.join(5.0)

        assert (served, refused) == ([200] * GOOD_CLIENTS, STRANGERS)
        assert len(proxy.events("connection", verdict="accepted")) == GOOD_CLIENTS
        lines = [line for line in proxy.connection_records() if line["verdict"] != "accepted"]
        # The bucket is full at the start, and is filled at the rate.
        assert LINES_PER_SECOND <= len(lines) <= LINES_PER_SECOND * (1 + elapsed)
        held_back = proxy.events("suppressed")
        assert len(held_back) <= len(REASONS) * (1 + math.floor(elapsed / SUPPRESSED_EVERY))
        counted = Counter(line["reason"] for line in lines)
        for line in held_back:
            counted[line["reason"]] += line["count"]
        assert counted == Counter(REASONS[stranger(number)] for number in range(STRANGERS))
        assert max(map(length, proxy.log.events)) <= MAX_LINE
        assert len(backend.connections) == GOOD_CLIENTS
