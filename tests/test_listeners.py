"""Listening sockets: one per worker and address, as many as promised, or none and a sentence."""

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from aop_proxy.endpoint import Listener
from aop_proxy.listeners import BACKLOG, BindError, adopt, bind, name
from aop_proxy.model import ConfigurationError, Listen

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
    us = f"{Path('/proc/self/comm').read_text().strip()} (process {os.getpid()})"
    assert str(caught.value) == f"cannot listen on 127.0.0.1:{taken.port}: Address already in use by {us}"
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


# Sockets that a service manager has bound


@contextlib.contextmanager
def given(*hosts: str) -> Iterator[list[socket.socket]]:
    """Sockets that listen, as systemd would open them."""
    with contextlib.ExitStack() as stack:
        families = [socket.AF_INET6 if ":" in host else socket.AF_INET for host in hosts]
        yield [
            stack.enter_context(socket.create_server((host, 0), family=family))
            for host, family in zip(hosts, families, strict=True)
        ]


def adopted(addresses: tuple[Listen, ...], *sockets: socket.socket, workers: int = 1) -> list[list[Listener]]:
    """Take duplicates, which are closed by the test as a worker does."""
    return adopt(addresses, [os.dup(one.fileno()) for one in sockets], workers)


def problems_of(addresses: tuple[Listen, ...], *sockets: socket.socket) -> list[str]:
    """What is wrong with them; nothing stays open."""
    before = descriptors()
    with pytest.raises(ConfigurationError) as caught:
        adopted(addresses, *sockets)
    assert descriptors() == before
    return [str(problem) for problem in caught.value.problems]


def address_of(sock: socket.socket) -> Listen:
    return Listen(*sock.getsockname()[:2])


def test_given_sockets_are_shared_by_all_workers() -> None:
    """One socket for each address, whatever the order; which address it is for decides who sends PROXY headers."""
    with given("127.0.0.1", "::1") as (four, six):
        lists = adopted((address_of(four), address_of(six)), six, four, workers=2)
        assert [[(name(one), one.place) for one in own] for own in lists] == [
            [(f"[::1]:{six.getsockname()[1]}", 1), (f"127.0.0.1:{four.getsockname()[1]}", 0)]
        ] * 2
        assert lists[0][0].socket is lists[1][0].socket
        for listener in lists[0]:
            assert not listener.socket.getblocking()
            assert listener.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            listener.socket.close()


def test_port_0_is_any_port() -> None:
    """So is a name every address of it."""
    with given("127.0.0.1", "127.0.0.1") as sockets:
        (own,) = adopted((Listen("localhost", 0),), *sockets)
        assert [listener.place for listener in own] == [0, 0]
        for listener in own:
            listener.socket.close()


def test_an_exact_port_comes_first() -> None:
    """Whether PROXY headers are taken is not left to an address for any port that stands before."""
    with given("127.0.0.1") as (exact,):
        with given("127.0.0.1") as (other,):
            (own,) = adopted((LOOPBACK, address_of(exact)), exact, other)
        assert [listener.place for listener in own] == [1, 0]
        for listener in own:
            listener.socket.close()


def test_a_socket_that_is_not_listed() -> None:
    """It is named: nobody would know what to do with it."""
    with given("127.0.0.1", "127.0.0.1") as (listed, other):
        (problem,) = problems_of((address_of(listed),), listed, other)
        assert problem.startswith("listen: socket ")
        assert f"is at 127.0.0.1:{other.getsockname()[1]}, which is not in the list" in problem


def test_an_address_without_a_socket() -> None:
    """It is named: what is given replaces binding, all of it."""
    with given("127.0.0.1") as (listed,):
        (problem,) = problems_of((address_of(listed), LOOPBACK_6), listed)
        assert problem.startswith("listen[1]: the service manager gave no socket for it")


@pytest.mark.parametrize("kind", ["not listening", "datagram", "unix"])
def test_what_is_no_listening_tcp_socket(kind: str) -> None:
    """It is refused."""
    family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM) as wrong:
        wrong.bind("" if kind == "unix" else ("127.0.0.1", 0))
        if kind == "unix":
            wrong.listen()
        (problem,) = problems_of((LOOPBACK,), wrong)
        assert "is no TCP socket that listens" in problem


def test_what_is_no_socket() -> None:
    """A descriptor of something else is refused."""
    reader, writer = os.pipe()
    with pytest.raises(ConfigurationError, match=f"listen: socket {reader} from the service manager is no socket"):
        adopt((LOOPBACK,), [reader], 1)
    os.close(reader)
    os.close(writer)


def test_a_socket_for_both_families() -> None:
    """It is refused: addresses of IPv4 clients would be written in another way, and networks would not match them."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        (problem,) = problems_of((address_of(both),), both)
        assert "takes IPv4, too: give it BindIPv6Only=ipv6-only" in problem
