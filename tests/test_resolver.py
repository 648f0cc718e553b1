"""Names become addresses within a deadline, and one question about a name is under way at a time."""

import asyncio
import socket
from typing import Any

import pytest

from aop_proxy.model import Upstream
from aop_proxy.resolver import Address, Resolver, in_words, known_address

ANSWER: Address = (socket.AF_INET, ("192.0.2.1", 80))


class SlowServers:
    """An event loop's resolver whose servers answer when they are told to; what it was asked is counted."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = asyncio.Event()
        self.failure: OSError | None = None

    async def getaddrinfo(self, host: str, port: int, **_options: Any) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]


@pytest.fixture
def servers() -> SlowServers:
    return SlowServers()


@pytest.fixture
def resolver(servers: SlowServers) -> Resolver:
    return Resolver(servers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("upstream", "expected", "shown"),
    [
        (Upstream("", "127.0.0.1", 80), (socket.AF_INET, ("127.0.0.1", 80)), "127.0.0.1:80"),
        (Upstream("", "::1", 80), (socket.AF_INET6, ("::1", 80)), "[::1]:80"),
        (Upstream("", path="/run/a"), (socket.AF_UNIX, "/run/a"), "/run/a"),
    ],
)
def test_addresses_need_no_question(upstream: Upstream, expected: Address, shown: str) -> None:
    """They are what they are, and have their form in the log."""
    assert expected == known_address(upstream.host, upstream.port, upstream.path)
    assert shown == in_words(expected)


def test_names_do(servers: SlowServers) -> None:
    """A name has no address of its own."""
    assert known_address("app", 80, "") is None


async def test_one_question_at_a_time(servers: SlowServers, resolver: Resolver) -> None:
    """Whoever asks meanwhile gets its answer; whoever asks later asks anew."""
    asking = [asyncio.create_task(resolver.addresses("app", 80, 5.0)) for _ in range(3)]
    other = asyncio.create_task(resolver.addresses("other", 80, 5.0))
    await asyncio.sleep(0)
    servers.answers.set()
    assert [[ANSWER]] * 4 == await asyncio.gather(*asking, other)
    await resolver.addresses("app", 80, 5.0)
    assert ["app", "other", "app"] == servers.asked


async def test_the_deadline_is_each_callers_own(servers: SlowServers, resolver: Resolver) -> None:
    """Who gives up leaves the question to others, and to whoever comes next."""
    patient = asyncio.create_task(resolver.addresses("app", 80, 5.0))
    with pytest.raises(TimeoutError):
        await resolver.addresses("app", 80, 0.01)
    late = asyncio.create_task(resolver.addresses("app", 80, 5.0))
    await asyncio.sleep(0)
    servers.answers.set()
    assert [ANSWER] == await patient == await late
    assert ["app"] == servers.asked


async def test_a_failure_nobody_waits_for_is_no_complaint(servers: SlowServers, resolver: Resolver) -> None:
    """The loop's handler, which would log it as a bug, hears nothing."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    servers.failure = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with pytest.raises(TimeoutError):
        await resolver.addresses("app", 80, 0.01)
    servers.answers.set()
    with pytest.raises(socket.gaierror):
        await resolver.addresses("app", 80, 5.0)
    assert [] == complaints
