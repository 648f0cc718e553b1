"""Strangers, however many and whatever they do, keep no authenticated client out, nor waiting for long."""

import contextlib
import os
import select
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import (
    GET,
    HELLO,
    ONE_WORKER,
    PATIENCE,
    Proxy,
    RecordingBackend,
    TlsClient,
    ask,
    client_context,
)
from aop_proxy.proxy_protocol import Header, encode_v2
from certificates import Authority, CredentialFiles
from states import Place, greeted

CROWD = 60
CAP = 32
"""Far fewer unauthenticated clients than a flood brings."""


@contextlib.contextmanager
def stopped(proxy: Proxy) -> Iterator[None]:
    """The worker does nothing meanwhile: whatever is done all comes at once for it."""
    (worker,) = proxy.worker_pids
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def test_requests_do_not_wait_for_a_crowd_that_shakes_hands(
    site: dict[str, Any],
    backend: RecordingBackend,
    server_authority: Authority,
    client_credentials: CredentialFiles,
    tmp_path: Path,
) -> None:
    """A request on a kept connection is answered between the handshakes, not after them all."""
    slow = server_authority.issue_server("origin.example", key="rsa2048").write(tmp_path, "slow")
    site = {**site, "certificate": str(slow.certificate), "private_key": str(slow.private_key)}
    context = client_context(client_credentials)
    with Proxy({**ONE_WORKER, "sites": [site]}) as proxy, TlsClient(proxy.address, context) as kept:
        kept.handshake(with_data=GET)
        kept.receive_exactly(len(HELLO))
        # We may be late to count, and count too many: not every time.
        assert min(greeted_before_an_answer(proxy, context, kept) for _ in range(3)) < CROWD // 2


def greeted_before_an_answer(proxy: Proxy, context: ssl.SSLContext, kept: TlsClient) -> int:
    """How many of a crowd, who came before it, the worker has greeted when it has answered a request."""
    poll = select.poll()
    with contextlib.ExitStack() as stack:
        with stopped(proxy):
            for _ in range(CROWD):
                client = stack.enter_context(TlsClient(proxy.address, context))
                with contextlib.suppress(ssl.SSLWantReadError):
                    client.tls.do_handshake()
                client._flush()
                poll.register(client.sock, select.POLLIN)
            kept.send(GET)
        kept.receive_exactly(len(HELLO))
        return len(poll.poll(0))


def silent(address: tuple[str, int]) -> socket.socket:
    return socket.create_connection(address, PATIENCE)


def speaking(address: tuple[str, int]) -> socket.socket:
    """Somebody who begins with a handshake, and leaves it at that."""
    sock = socket.create_connection(address, PATIENCE)
    sock.send(b"\x16\x03\x01")
    return sock


def refused(address: tuple[str, int]) -> socket.socket:
    """Somebody who has read the 400 and does not leave."""
    stranger = TlsClient(address, client_context())
    stranger.handshake(with_data=GET)
    assert stranger.receive_exactly(12) == b"HTTP/1.1 400"
    return stranger.sock


@pytest.mark.parametrize("stranger", [silent, speaking, refused])
def test_a_flood_of_strangers(
    site: dict[str, Any],
    backend: RecordingBackend,
    client_credentials: CredentialFiles,
    stranger: Callable[[tuple[str, int]], socket.socket],
) -> None:
    """More than may be unauthenticated push out each other: not who was answered, not who is in, and others come in."""
    context = client_context(client_credentials)
    log = {**ONE_WORKER["log"], "level": "debug"}
    config = {
        "workers": 1,
        "log": log,
        "timeouts": {"linger": "1m"},
        "limits": {"unauthenticated": CAP},
        "sites": [site],
    }
    with Proxy(config) as proxy, contextlib.ExitStack() as stack:
        kept, slow = (stack.enter_context(TlsClient(proxy.address, context)) for _ in range(2))
        kept.handshake(with_data=GET)
        kept.receive_exactly(len(HELLO))
        with contextlib.suppress(ssl.SSLWantReadError):
            slow.tls.do_handshake()
        slow._flush()
        slow._feed()  # it is answered, and its own flight takes a while
        for _ in range(3 * CAP):
            stack.enter_context(stranger(proxy.address))
        proxy.wait_for("connection", count=2 * CAP)  # of those who were pushed out
        assert ask(proxy.address, context).status == 200
        slow.handshake()
        for client in (slow, kept):
            client.send(GET)
            assert client.receive_exactly(len(HELLO)) == HELLO


def test_strangers_who_have_an_answer_push_out_each_other(
    site: dict[str, Any], backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """Having come far protects nobody who comes in crowds: one whose hello is on its way is not closed for them."""
    context = client_context(client_credentials)
    with (
        Proxy({**ONE_WORKER, "limits": {"unauthenticated": CAP}, "sites": [site]}) as proxy,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(CAP):
            stack.enter_context(greeted(Place(proxy.address, context, context)))
        slow = stack.enter_context(TlsClient(proxy.address, context))
        with contextlib.suppress(ssl.SSLWantReadError):
            slow.tls.do_handshake()
        hello = slow._out.read()
        slow.sock.sendall(hello[:20])
        for _ in range(CAP // 2):
            stack.enter_context(greeted(Place(proxy.address, context, context)))
        slow.sock.sendall(hello[20:])
        slow.handshake(with_data=GET)
        assert slow.receive_exactly(len(HELLO)) == HELLO


def test_byte_by_byte_keeps_nobody_out(
    site: dict[str, Any], backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """Clients who always have one more byte of a handshake ready take turns with everyone else."""
    with Proxy({**ONE_WORKER, "sites": [site]}) as proxy, contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(socket.create_connection(proxy.address, PATIENCE)) for _ in range(50)]
        for sock in crowd:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(b"\x16\x03\x01\x20\x00\x01\x00\x1f\xfc")  # a hello of 8 KiB
        over = threading.Event()

        def feed() -> None:
            for _ in range(1000):
                for sock in crowd:
                    if over.is_set():
                        return
                    with contextlib.suppress(OSError):
                        sock.send(b"\x03")

        feeding = threading.Thread(target=feed)
        feeding.start()
        try:
            assert [ask(proxy.address, client_context(client_credentials)).status for _ in range(5)] == [200] * 5
        finally:
            over.set()
            feeding.join(PATIENCE)


# Handshakes of one address


def begin(proxy: Proxy, host: str = "127.0.0.1", header: bytes = b"") -> socket.socket:
    """Somebody at this address who is in the middle of a handshake."""
    sock = socket.create_connection(proxy.address, PATIENCE, (host, 0))
    sock.sendall(header + b"\x16\x03\x01")
    return sock


def is_closed(sock: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return sock.recv(1) == b""
    return True


def test_an_address_has_so_many_handshakes(
    site: dict[str, Any], backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """One too many at a time is closed, and logged as that; other addresses do not care; who leaves makes room."""
    context = client_context(client_credentials)
    limits = {"handshakes_per_address": 2}
    with Proxy({**ONE_WORKER, "limits": limits, "sites": [site]}) as proxy, contextlib.ExitStack() as stack:
        first, _ = (stack.enter_context(begin(proxy, "127.0.0.2")) for _ in range(2))
        third = stack.enter_context(begin(proxy, "127.0.0.2"))
        assert is_closed(third)
        refused = proxy.wait_for("connection", client=f"127.0.0.2:{third.getsockname()[1]}")
        assert [refused["verdict"], refused["reason"]] == ["refused", "too_many_connections"]
        assert [ask(proxy.address, context).status for _ in range(3)] == [200] * 3  # one after another: each makes room
        first.close()
        proxy.wait_for("connection", reason="handshake_failed")
        with TlsClient(proxy.address, context, source=("127.0.0.2", 0)) as client:
            client.handshake(with_data=GET)
            assert client.receive_exactly(len(HELLO)) == HELLO


def test_behind_a_proxy_the_address_is_the_clients(site: dict[str, Any], backend: RecordingBackend) -> None:
    """The one that the PROXY header tells counts, an IPv6 address by its /64; the proxy's own does not."""
    listen = {"address": "127.0.0.1:0", "proxy_protocol_from": ["127.0.0.1/32"]}
    config = {**ONE_WORKER, "listen": [listen], "limits": {"handshakes_per_address": 1}, "sites": [site]}

    def header(source: str) -> bytes:
        return encode_v2(Header((source, 4711), ("2001:db8::443", 443)))

    with Proxy(config) as proxy, contextlib.ExitStack() as stack:
        waiting = [
            stack.enter_context(begin(proxy, header=header(source)))
            for source in ("2001:db8:0:1::1", "2001:db8:0:2::1", "192.0.2.1")
        ]
        for source in ("2001:db8:0:1:ffff::2", "192.0.2.1"):
            assert is_closed(stack.enter_context(begin(proxy, header=header(source))))
        proxy.wait_for("connection", count=2, reason="too_many_connections")
        assert len(proxy.connection_records()) == 2
        assert len(waiting) == 3
