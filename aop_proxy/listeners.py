"""Addresses -> listening sockets, one per worker and address, opened once by the parent and kept for good.

Must not know what is done with a connection.
"""

import itertools
import socket
from typing import Any

from aop_proxy.endpoint import Listener, format_address
from aop_proxy.model import Listen

BACKLOG = 4096
"""What the kernel cuts to net.core.somaxconn, whose default is this."""
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_COUNT = 60, 15, 4
"""Seconds, seconds and probes: a peer that vanished is noticed within two minutes."""


class BindError(Exception):
    """An address cannot be listened on; the message names it."""


def bind(addresses: tuple[Listen, ...], workers: int) -> list[list[Listener]]:
    """Bind every address once per worker: one list per worker. Raises BindError."""
    bound: list[list[Listener]] = [[] for _ in range(workers)]
    try:
        for index, address in enumerate(addresses):
            for family, place in _resolve(address):
                port = _probe(family, place)
                for own in bound:
                    own.append(Listener(_listen(family, (place[0], port, *place[2:])), index))
    except BindError:
        for listener in itertools.chain(*bound):
            listener.socket.close()
        raise
    return bound


def name(listener: Listener) -> str:
    """The address a listener is really bound to, as HOST:PORT."""
    return format_address(listener.socket.getsockname())


def _resolve(address: Listen) -> list[tuple[int, Any]]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise BindError(f"cannot listen on {address.host}:{address.port}: {error.strerror}") from error
    return [(family, place) for family, _type, _protocol, _name, place in found]


def _probe(family: int, place: Any) -> int:
    """Bind without SO_REUSEPORT: with it a second instance would bind too and silently take half the traffic."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        _set_common_options(probe)
        _bind(probe, place)
        return int(probe.getsockname()[1])


def _listen(family: int, place: Any) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    _set_common_options(listener)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # What a listener has set, accepted sockets inherit: three system calls per connection saved.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_COUNT)
    try:
        _bind(listener, place)
    except BindError:
        listener.close()
        raise
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _set_common_options(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if end.family == socket.AF_INET6:
        end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def _bind(end: socket.socket, place: Any) -> None:
    try:
        end.bind(place)
    except OSError as error:
        raise BindError(f"cannot listen on {place[0]}:{place[1]}: {error.strerror}") from error
