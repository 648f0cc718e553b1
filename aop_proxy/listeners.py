"""Addresses -> listening sockets, opened once by the parent and kept for good.

Bound by us there is one per worker and address; those that a service manager has bound are shared by all workers. Must
not know what is done with a connection.
"""

import contextlib
import errno
import itertools
import os
import socket
import stat
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from aop_proxy.endpoint import Listener, format_address, keep_alive
from aop_proxy.model import ConfigurationError, Listen, Problem
from aop_proxy.occupancy import who_is_at
from aop_proxy.privileges import find_user

BACKLOG = 4096
"""What the kernel cuts to net.core.somaxconn, whose default is this."""
SOCKET_MODE = 0o660
"""Of a unix socket: for its owner and that one's group, and nobody else."""


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


def adopt(addresses: tuple[Listen, ...], descriptors: Sequence[int], workers: int) -> list[list[Listener]]:
    """Take sockets that are bound already in place of binding: each must be one address's, and each address have one.

    Raises ConfigurationError.
    """
    adopted, problems = [], []
    for descriptor in descriptors:
        try:
            adopted.append(_adopt(addresses, descriptor))
        except ValueError as error:
            problems.append(Problem("listen", f"socket {descriptor} from the service manager {error}"))
    given = {listener.place for listener in adopted}
    if not problems:  # else a socket that is wrong may be the one that is missing
        problems = [
            Problem(f"listen[{index}]", "the service manager gave no socket for it: add it there, or take it out here")
            for index in range(len(addresses))
            if index not in given
        ]
    if problems:
        for listener in adopted:
            listener.socket.close()
        raise ConfigurationError(*problems)
    return [adopted] * workers


def _adopt(addresses: tuple[Listen, ...], descriptor: int) -> Listener:
    try:
        given = socket.socket(fileno=descriptor)
    except OSError:
        raise ValueError("is no socket: give it one by ListenStream=") from None
    try:
        place = _place(addresses, given)
    except ValueError:
        given.close()
        raise
    _set_inherited_options(given)
    return Listener(given, place)


def _place(addresses: tuple[Listen, ...], given: socket.socket) -> int:
    """Which of the addresses a socket is bound to; ValueError says why it cannot serve."""
    is_tcp = given.family in (socket.AF_INET, socket.AF_INET6) and given.type == socket.SOCK_STREAM
    if not is_tcp or not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError("is no TCP socket that listens: give it ListenStream=ADDRESS:PORT, and Accept=no")
    if given.family == socket.AF_INET6 and not given.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        raise ValueError("takes IPv4, too: give it BindIPv6Only=ipv6-only, and IPv4 a ListenStream= of its own")
    host, port = given.getsockname()[:2]
    for wanted in (port, 0):  # whoever wrote a port means it
        for place, address in enumerate(addresses):
            if address.port == wanted and host in (own[0] for _, own in _resolve(address)):
                return place
    raise ValueError(
        f"is at {format_address((host, port))}, which is not in the list: add it here, or take it out there"
    )


def bind_one(host: str, port: int) -> socket.socket:
    """Bind one address, once: the first that the host's name stands for. Raises BindError."""
    family, place = _resolve(Listen(host, port))[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        _set_common_options(listener)
        _bind(listener, place)
    except BindError:
        listener.close()
        raise
    return _listening(listener)


def bind_path(path: str, user: str | None) -> socket.socket:
    """Bind a unix socket for `user` and its group, in place of one that nobody listens on. Raises BindError."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        _remove_if_left_behind(path)
        before = os.umask(0o777 & ~SOCKET_MODE)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        if user is not None and os.geteuid() == 0:
            entry = find_user(user)
            os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
    except OSError as error:
        listener.close()
        raise BindError(f"cannot listen on unix:{path}: {error.strerror}") from error
    return _listening(listener)


def _remove_if_left_behind(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as visitor:
                if visitor.connect_ex(path) == errno.ECONNREFUSED:
                    os.unlink(path)


def _listening(listener: socket.socket) -> socket.socket:
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def name(listener: Listener) -> str:
    """The address a listener is really bound to, as HOST:PORT."""
    return format_address(listener.socket.getsockname())


def _resolve(address: Listen) -> list[tuple[int, Any]]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise BindError(f"cannot listen on {format_address((address.host, address.port))}: {error.strerror}") from error
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
    _set_inherited_options(listener)
    try:
        _bind(listener, place)
    except BindError:
        listener.close()
        raise
    listener.listen(BACKLOG)
    return listener


def _set_inherited_options(listener: socket.socket) -> None:
    """What a listener has set, accepted sockets inherit: five system calls per connection saved."""
    listener.setblocking(False)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    keep_alive(listener)


def _set_common_options(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if end.family == socket.AF_INET6:
        end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)


def _bind(end: socket.socket, place: Any) -> None:
    try:
        end.bind(place)
    except OSError as error:
        holder = who_is_at(ip_address(place[0]), place[1]) if error.errno == errno.EADDRINUSE else None
        by = f" by {holder}" if holder else ""
        raise BindError(f"cannot listen on {format_address(place)}: {error.strerror}{by}") from error
