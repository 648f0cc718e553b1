"""Dialling from the client's own address, so that a backend sees who came: what the kernel wants for it.

Linux alone can: a socket that may be bound to a foreign address, the privilege to make one, and routes by which what
the backend answers to that address comes to us instead of going there. Must not know who the client is.
"""

import contextlib
import errno
import socket
from collections.abc import Iterator
from ipaddress import ip_address

from aop_proxy.model import Problem, Settings

_IP_TRANSPARENT, _IPV6_TRANSPARENT, _IP_BIND_ADDRESS_NO_PORT = 19, 75, 24
"""ip(7), linux/in6.h."""
_LOCAL = "ip rule add from {network} iif lo lookup 100", "ip route add local {everybody} dev lo table 100"
_REMOTE = "ip rule add fwmark 1 lookup 100", "ip route add local {everybody} dev lo table 100"
_DIVERT = (
    "nft add table inet aop_proxy",
    "nft add chain inet aop_proxy divert '{ type filter hook prerouting priority mangle; }'",
    "nft add rule inet aop_proxy divert meta l4proto tcp socket transparent 1 meta mark set 1 accept",
)
"""For a backend on another machine, as the kernel's Documentation/networking/tproxy.rst has it."""


def speak_as(end: socket.socket, address: str) -> None:
    """Bind a socket that is to be connected to a client's address. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if family != end.family:
        raise OSError(errno.EAFNOSUPPORT, "the client and the backend do not speak the same version of IP")
    if family == socket.AF_INET6:
        end.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    else:
        end.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
    with contextlib.suppress(OSError):  # the port is chosen when it connects: one may serve for many destinations
        end.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    end.bind((address, 0))


def problems(settings: Settings) -> list[Problem]:
    """Where the settings ask for what this process may not do."""
    wanted = list(_wanted(settings))
    if not wanted or _is_permitted():
        return []
    sentence = (
        "needs the capability CAP_NET_ADMIN, which this process does not have: start as root, or write"
        " `AmbientCapabilities=CAP_NET_ADMIN` into the unit; a reload cannot bring it back"
    )
    return [Problem(path, sentence) for path, _host in wanted]


def routes(settings: Settings) -> Iterator[Problem]:
    """Each command that this machine needs, as advice."""
    told: set[str] = set()
    for path, host in _wanted(settings):
        for command in _commands(host):
            if command not in told:
                told.add(command)
                yield Problem(path, f"needs this once on this machine: {command}")
        if not _is_near(host):
            yield Problem(path, f"the way back from {host} to the clients must lead through this machine")


def is_wanted(settings: Settings) -> bool:
    """Whether any upstream is to be dialled so."""
    return any(_wanted(settings))


def _wanted(settings: Settings) -> Iterator[tuple[str, str]]:
    for index, site in enumerate(settings.sites):
        for number, upstream in enumerate(site.upstream):
            if upstream.transparent:
                yield f"sites[{index}].upstream[{number}].transparent", upstream.host


def _is_permitted() -> bool:
    with socket.socket() as end:
        try:
            end.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
        except OSError:
            return False
    return True


def _is_near(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _commands(host: str) -> Iterator[str]:
    """For IPv4, IPv6, or both where a name may lead to either."""
    is_near = _is_near(host)
    if not is_near:
        yield from _DIVERT
    versions = [("ip", "127.0.0.0/8", "0.0.0.0/0"), ("ip -6", "::1/128", "::/0")]
    with contextlib.suppress(ValueError):
        versions = [versions[ip_address(host).version == 6]]
    for program, network, everybody in versions:
        for command in _LOCAL if is_near else _REMOTE:
            yield command.format(network=network, everybody=everybody).replace("ip", program, 1)
