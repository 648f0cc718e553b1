"""Ways around the gate are seen in the kernel's list of listening sockets, told once, and nothing else is."""

from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from aop_proxy import exposure
from aop_proxy.model import Admin, Listen, Settings, Site, Upstream
from aop_proxy.occupancy import Place


def places(*written: str) -> list[Place]:
    """`ADDRESS PORT` each."""
    return [Place(ip_address(one.split()[0]), int(one.split()[1])) for one in written]


def configured(*urls: tuple[str, int], listen: Sequence[Listen] = (Listen("0.0.0.0", 443),)) -> Settings:
    """One site per backend; a host that begins with a slash is a unix socket's path."""
    upstreams = [Upstream("u", path=host) if host.startswith("/") else Upstream("u", host, port) for host, port in urls]
    return Settings(tuple(listen), tuple(Site("c", "k", (upstream,)) for upstream in upstreams))


OPEN = "port 8000 is open on"


@pytest.mark.parametrize(
    ("settings", "listening", "expected"),
    [
        (configured(("127.0.0.1", 8000)), ["0.0.0.0 8000"], [f"sites[0].upstream: {OPEN} 0.0.0.0"]),
        (configured(("127.0.0.1", 8000)), ["127.0.0.1 8000", "127.0.0.53 8000", "::1 8000"], []),
        (configured(("localhost", 8000)), ["127.0.0.1 8000", ":: 8000"], [f"sites[0].upstream: {OPEN} ::"]),
        (configured(("::1", 8000)), ["192.0.2.1 8000"], [f"sites[0].upstream: {OPEN} 192.0.2.1"]),
        (configured(("192.0.2.1", 8000)), ["192.0.2.1 8000"], [f"sites[0].upstream: {OPEN} 192.0.2.1"]),
        (configured(("192.0.2.9", 8000)), ["0.0.0.0 8000", "192.0.2.1 8000"], []),
        (configured(("app.example", 8000)), ["0.0.0.0 8000", "0.0.0.0 80"], []),
        (configured(("127.0.0.1", 8001)), ["0.0.0.0 8000"], []),
        (configured(("127.0.0.1", 8000)), ["0.0.0.0 8000", ":: 8000"], [f"sites[0].upstream: {OPEN} 0.0.0.0"]),
        (
            configured(("127.0.0.1", 8001), ("127.0.0.1", 8000), ("127.0.0.1", 8000)),
            ["0.0.0.0 8000"],
            [f"sites[1].upstream: {OPEN} 0.0.0.0"],
        ),
        (configured(("/run/app.sock", 0)), ["0.0.0.0 8000"], []),
        (configured(("/run/app.sock", 0)), ["127.0.0.1 80"], []),
        (configured(("/run/app.sock", 0)), [":: 80"], ["sites: something listens on port 80 of ::"]),
        (configured(("127.0.0.1", 80)), ["0.0.0.0 80"], ["sites[0].upstream: port 80 is open on 0.0.0.0"]),
        (configured(("127.0.0.1", 443), listen=[Listen("192.0.2.1", 443)]), ["192.0.2.1 443", "127.0.0.1 443"], []),
        (configured(("/run/app.sock", 0), listen=[Listen("::", 80)]), [":: 80"], []),
    ],
)
def test_ways_around(settings: Settings, listening: list[str], expected: list[str]) -> None:
    """A backend of this host, or port 80 beside one, on an address that is not loopback's; our own ports are ours."""
    told = [str(problem) for problem in exposure.open_backends(settings, places(*listening))]
    assert expected == [one[: len(start)] for one, start in zip(told, expected, strict=True)]


@pytest.mark.parametrize(
    ("admin", "expected"),
    [
        (None, []),
        (Admin("127.0.0.1", 9180), []),
        (Admin("::1", 9180), []),
        (Admin("localhost", 9180), []),
        (Admin(path="/run/admin.sock"), []),
        (Admin("0.0.0.0", 9180, shows=("health", "metrics")), []),
        (Admin("0.0.0.0", 9180), ["admin"]),
        (Admin("admin.example", 9180), ["admin"]),
        (Admin("192.0.2.1", 9180, shows=("status",)), ["admin"]),
    ],
)
def test_a_status_that_anybody_can_read(admin: Admin | None, expected: list[str]) -> None:
    """Away from loopback it is worth a word, unless only health and metrics are shown."""
    assert expected == [problem.path for problem in exposure.open_status(admin)]


@pytest.mark.parametrize(("enforcement", "expected"), [("observe", ["enforcement"]), ("enforce", [])])
def test_observing_is_one(enforcement: str, expected: list[str]) -> None:
    """While it observes, the gate itself stands open."""
    settings = Settings((), (), enforcement=enforcement)  # type: ignore[arg-type]
    assert expected == [problem.path for problem in exposure.while_observing(settings)]
