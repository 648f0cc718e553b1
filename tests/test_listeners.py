"""Listening sockets: one per worker and address, as many as promised, or none and a sentence."""

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator

import pytest

from aop_proxy.endpoint import Listener
from aop_proxy.listeners import BACKLOG, BindError, bind, name
from aop_proxy.model import Listen

LOOPBACK = Listen("127.0.0.1", 0)
LOOPBACK_6 = Listen("::1", 0)


@contextlib.contextmanager
def bound(*addresses: Listen, workers: int = 1) -> Iterator[list[list[socket.socket]]]:
    sockets = [[listener.socket for listener in own] for own in bind(addresses, workers)]
    try:
        yield sockets
    finally:
        for listener in itertools.chain(*sockets):
            listener.close()


@pytest.fixture
def taken() -> Iterator[Listen]:
    """An address that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield Listen("127.0.0.1", other.getsockname()[1])


def descriptors() -> set[str]:
    return set(os.listdir("/dev/fd"))


def test_one_socket_per_worker_and_address() -> None:
    """Workers get sockets of their own for the same ports, which are chosen once."""
    with bound(LOOPBACK, LOOPBACK_6, workers=3) as sockets:
        names = [[name(Listener(listener, 0)) for listener in own] for own in sockets]
        assert names == [names[0]] * 3
        assert len({listener.fileno() for listener in itertools.chain(*sockets)}) == 6
        assert names[0] == [
            f"127.0.0.1:{sockets[0][0].getsockname()[1]}",
            f"[::1]:{sockets[0][1].getsockname()[1]}",
        ]


def test_connections_reach_every_worker() -> None:
    """The kernel spreads connections over the workers' sockets, and none is lost."""
    with bound(LOOPBACK, workers=2) as sockets:
        clients = [socket.create_connection(sockets[0][0].getsockname()) for _ in range(64)]
        accepted = [_accept_all(own[0]) for own in sockets]
        for client in clients:
            client.close()
    assert sum(accepted) == 64
    assert min(accepted) > 0


def _accept_all(listener: socket.socket) -> int:
    for count in itertools.count():
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
    raise AssertionError


def test_options_that_connections_inherit() -> None:
    """Accepted sockets have Nagle off and keep-alive on, without a call for each."""
    with bound(LOOPBACK) as [[listener]], socket.create_connection(listener.getsockname()):
        assert not listener.getblocking()
        client, _ = listener.accept()
        with client:
            expected = {
                (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 60,
                (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 15,
                (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 4,
            }
            assert {option: client.getsockopt(*option) for option in expected} == expected


def test_the_queue_is_long() -> None:
    """A burst of connections before the first accept is kept, not refused."""
    with bound(LOOPBACK) as [[listener]], contextlib.ExitStack() as clients:
        for _ in range(300):
            clients.enter_context(socket.create_connection(listener.getsockname(), 5))
        assert _accept_all(listener) == 300
    assert BACKLOG == 4096


def test_ipv6_means_ipv6_only() -> None:
    """The same port can be bound for both families, each by its own socket."""
    with bound(Listen("::", 0)) as [[six]]:
        port = six.getsockname()[1]
        assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)
        with bound(Listen("0.0.0.0", port)) as [[four]]:
            assert [name(Listener(six, 0)), name(Listener(four, 0))] == [f"[::]:{port}", f"0.0.0.0:{port}"]


def test_a_host_name_is_every_address_of_it() -> None:
    """What the name resolves to is bound, each address."""
    expected = {address[0] for *_, address in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    with bound(Listen("localhost", 0)) as [own]:
        assert {listener.getsockname()[0] for listener in own} == expected


def test_an_address_that_is_taken(taken: Listen) -> None:
    """The message names it, and nothing stays bound."""
    before = descriptors()
    with pytest.raises(BindError) as caught:
        bind((LOOPBACK, taken), 3)
    assert str(caught.value) == f"cannot listen on 127.0.0.1:{taken.port}: Address already in use"
    assert descriptors() == before


def test_a_second_instance_is_noticed() -> None:
    """With SO_REUSEPORT alone it would bind too, and silently take half of the connections."""
    with bound(LOOPBACK, workers=2) as sockets:
        port = sockets[0][0].getsockname()[1]
        with pytest.raises(BindError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            bind((Listen("127.0.0.1", port),), 1)


def test_a_restart_binds_at_once() -> None:
    """Connections of the last run that linger in the kernel do not hold the port."""
    with bound(LOOPBACK) as [[listener]]:
        address = listener.getsockname()
        client = socket.create_connection(address)
        accepted, _ = listener.accept()
        accepted.close()  # this side closes first, so TIME_WAIT stays on this port
        assert client.recv(1) == b""
        client.close()
    with bound(Listen(*address)) as [[again]]:
        assert again.getsockname() == address


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (Listen("192.0.2.77", 443), "cannot listen on 192.0.2.77:443: Cannot assign requested address"),
        (Listen("name.invalid", 443), "cannot listen on name.invalid:443: "),
    ],
)
def test_an_address_that_is_not_ours(address: Listen, message: str) -> None:
    """The message names it."""
    with pytest.raises(BindError) as caught:
        bind((address,), 1)
    assert str(caught.value).startswith(message)
