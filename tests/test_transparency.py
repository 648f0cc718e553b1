"""Dialling as the client: which commands it takes, for whom, and from which addresses it cannot be done."""

import errno
import os
import socket

import pytest

from aop_proxy import transparency
from aop_proxy.model import Listen, Settings, Site, Upstream

LOCAL_4 = ["ip rule add from 127.0.0.0/8 iif lo lookup 100", "ip route add local 0.0.0.0/0 dev lo table 100"]
LOCAL_6 = ["ip -6 rule add from ::1/128 iif lo lookup 100", "ip -6 route add local ::/0 dev lo table 100"]
MARKED_4 = ["ip rule add fwmark 1 lookup 100", "ip route add local 0.0.0.0/0 dev lo table 100"]
MARKED_6 = ["ip -6 rule add fwmark 1 lookup 100", "ip -6 route add local ::/0 dev lo table 100"]
NFT = "nft add rule inet aop_proxy divert meta l4proto tcp socket transparent 1 meta mark set 1 accept"


def settings(*hosts: str, transparent: bool = True) -> Settings:
    upstreams = tuple(Upstream(f"http://{host}:80", host, 80, transparent=transparent) for host in hosts)
    return Settings((Listen("127.0.0.1", 0),), (Site("certificate", "key", upstreams),))


def commands(wanted: Settings) -> list[str]:
    return [advice.sentence.partition(": ")[2] for advice in transparency.routes(wanted) if "once" in advice.sentence]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", LOCAL_4), ("::1", LOCAL_6), ("localhost", [*LOCAL_4, *LOCAL_6])],
)
def test_routes_to_this_machine(host: str, expected: list[str]) -> None:
    """For the version of IP that the address is of, or for both where a name may lead to either."""
    assert expected == commands(settings(host))


@pytest.mark.parametrize(
    ("host", "expected"),
    [("192.0.2.1", MARKED_4), ("2001:db8::1", MARKED_6), ("app", [*MARKED_4, *MARKED_6])],
)
def test_routes_to_another_machine(host: str, expected: list[str]) -> None:
    """What comes back is marked; and the backend's own way back is named."""
    *divert, nft = commands(settings(host))[:3]
    assert (NFT, 2) == (nft, len(divert))
    assert expected == commands(settings(host))[3:]
    assert any(f"the way back from {host}" in advice.sentence for advice in transparency.routes(settings(host)))


def test_each_command_is_given_once() -> None:
    """However many upstreams need it; at the path of the first."""
    told = list(transparency.routes(settings("127.0.0.1", "127.0.0.2")))
    assert ["sites[0].upstream[0].transparent"] * 2 == [advice.path for advice in told]


def test_nothing_for_others() -> None:
    """Who dials as itself needs neither routes nor privileges."""
    assert ([], []) == (
        commands(settings("127.0.0.1", transparent=False)),
        transparency.problems(settings("127.0.0.1", transparent=False)),
    )


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "::1"), (socket.AF_INET6, "127.0.0.1")])
def test_the_versions_of_ip_do_not_mix(family: socket.AddressFamily, address: str) -> None:
    """A client is never passed off as somebody else, where its own address cannot be used."""
    with socket.socket(family) as end, pytest.raises(OSError, match="same version of IP") as caught:
        transparency.speak_as(end, address)
    assert errno.EAFNOSUPPORT == caught.value.errno


@pytest.mark.skipif(os.getuid() != 0, reason="only root may speak as others")
@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "203.0.113.7"), (socket.AF_INET6, "2001:db8::7")])
def test_an_address_of_somebody_elses(family: socket.AddressFamily, address: str) -> None:
    """A socket is bound to it, with the port still to be chosen."""
    with socket.socket(family) as end:
        transparency.speak_as(end, address)
        assert (address, 0) == end.getsockname()[:2]
