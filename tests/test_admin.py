"""The admin listener's answers: to whom, to what, and what it says of the program's state."""

import asyncio
import json
from typing import Any

import pytest

from aop_proxy.admin import PATIENCE, Admin, Answer
from aop_proxy.ledger import Ledger
from aop_proxy.model import Settings

EVERYTHING = ("health", "metrics", "status")


@pytest.fixture
def state() -> dict[str, Any]:
    ledger = Ledger(Settings((), ()))
    nothing = {"totals": {}, "open": {}, "seen": {}, "shown": {}, "generation": 1, "refusals": []}
    ledger.report(ledger.worker_started(1, 11), nothing)
    return ledger.state()


@pytest.fixture
def admin(state: dict[str, Any]) -> Admin:
    admin = Admin(EVERYTHING)
    admin.tell(state)
    return admin


def get(admin: Admin, path: str, host: str = "localhost") -> Answer:
    return admin.answer("GET", path, {b"host": host.encode("latin-1")})


@pytest.mark.parametrize(
    ("shows", "expected"),
    [
        (EVERYTHING, {"/healthz": 200, "/readyz": 200, "/metrics": 200, "/status.json": 200, "/nothing": 404}),
        (("health",), {"/healthz": 200, "/readyz": 200, "/metrics": 404, "/status.json": 404, "/": 404}),
        (("health", "metrics"), {"/healthz": 200, "/metrics": 200, "/status.json": 404, "/": 404}),
        (("metrics",), {"/healthz": 404, "/metrics": 200}),
    ],
)
def test_only_what_it_is_to_show(state: dict[str, Any], shows: tuple[str, ...], expected: dict[str, int]) -> None:
    """Everything else is not there; what is there is named."""
    admin = Admin(shows)
    admin.tell(state)
    assert {path: get(admin, path).status for path in expected} == expected
    listed = get(admin, "/nothing").body.decode().split()
    assert set(listed) >= {path for path, status in expected.items() if status == 200}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9180", 200),
        ("10.1.2.3", 200),
        ("[::1]:9180", 200),
        ("[2001:db8::1]", 200),
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("proxy:9180", 200),
        ("my_proxy-1", 200),
        ("aop.monitoring.svc", 200),
        ("aop.monitoring.svc.cluster.local:9180", 200),
        ("host.docker.internal", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("127.0.0.1.nip.io:9180", 421),
        ("evil.example:localhost", 421),
        ("evil.example/.local", 421),
        ("evil.example .local", 421),
        ("ev\xeel.local", 421),
        ("localhost.", 421),
        ("", 421),
        ("[::1", 421),
        ("::1", 421),
    ],
)
@pytest.mark.parametrize("path", ["/metrics", "/status.json", "/healthz"])
def test_dns_rebinding(admin: Admin, host: str, status: int, path: str) -> None:
    """A page of somebody else's that has its name point here learns nothing."""
    answer = get(admin, path, host)
    assert answer.status == status
    assert status == 200 or b"names" not in answer.body


def test_without_a_host(admin: Admin) -> None:
    """A health check in HTTP/1.0 is no browser."""
    assert admin.answer("GET", "/healthz", {}).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT"])
def test_nothing_can_be_changed(admin: Admin, method: str) -> None:
    """It is to be read."""
    answer = admin.answer(method, "/status.json", {b"host": b"localhost"})
    assert (answer.status, answer.headers) == (405, {"allow": "GET, HEAD"})


def test_readiness(admin: Admin, state: dict[str, Any]) -> None:
    """The reasons are said; so is that it only observes."""
    assert get(admin, "/readyz").body == b"ready\n"
    admin.tell({**state, "enforcement": "observe"})
    assert get(admin, "/readyz")[:2] == (200, b"ready, but it only observes: strangers are let in\n")
    admin.tell({**state, "ready": False, "not_ready": ["draining", "no worker serves"]})
    assert get(admin, "/readyz")[:2] == (503, b"not ready: draining, no worker serves\n")
    assert get(admin, "/healthz").status == 200


def test_a_parent_that_is_silent(admin: Admin) -> None:
    """Neither healthy nor ready."""
    admin._told -= PATIENCE + 1
    assert [get(admin, path).status for path in ("/healthz", "/readyz")] == [503, 503]


def test_the_status_is_what_it_was_told(admin: Admin, state: dict[str, Any]) -> None:
    """As JSON."""
    answer = get(admin, "/status.json")
    assert answer.content_type == "application/json"
    assert json.loads(answer.body) == json.loads(json.dumps(state))


def ask(admin: Admin, method: str, path: str) -> tuple[int, dict[bytes, bytes], bytes]:
    """One request by way of ASGI."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing of a request's body is read")

    scope = {"method": method, "path": path, "headers": [(b"host", b"localhost")]}
    asyncio.run(admin(scope, receive, send))
    head, body = sent
    return head["status"], dict(head["headers"]), body["body"]


def test_headers(admin: Admin) -> None:
    """Nothing is kept by caches, nor taken for something else; HEAD has no body."""
    status, headers, body = ask(admin, "GET", "/healthz")
    assert (status, body, headers[b"content-length"]) == (200, b"healthy\n", b"8")
    assert (headers[b"cache-control"], headers[b"x-content-type-options"]) == (b"no-store", b"nosniff")
    assert ask(admin, "HEAD", "/healthz") == (status, headers, b"")


def test_a_bug(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    """It costs one answer, and is told in full in one line, for the parent to log."""
    admin.tell({})
    assert ask(admin, "GET", "/metrics")[0] == 500
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split("\t")[-1] == "KeyError: 'totals'"
    assert ask(admin, "GET", "/healthz")[0] == 200
