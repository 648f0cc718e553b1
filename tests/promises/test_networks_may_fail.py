"""Lines that lose, delay or swallow packets: connections recover, or end for the right reason within their deadlines."""

import hashlib
import random
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import (
    GET,
    HELLO,
    PATIENCE,
    BackendConnection,
    Proxy,
    RecordingBackend,
    TlsClient,
    ask,
    client_context,
    never_answer,
)
from certificates import CredentialFiles
from faults import Fault, FaultyRelay
from hosts import BACKEND, CLIENT, PROXY_TO_CLIENT, Line, Network, network
from processes import open_descriptors
from states import STATES, Place

Config = dict[str, Any]
BULK = random.Random(1).randbytes(400_000)
IMPATIENT_KERNEL = """
from aop_proxy import endpoint
endpoint.KEEPALIVE_IDLE, endpoint.KEEPALIVE_INTERVAL, endpoint.KEEPALIVE_COUNT = 1, 1, 2
"""
"""Imported by every process of the proxy as it starts: what takes two minutes takes three seconds."""
pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="network namespaces are Linux's")


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.fixture
def far(net: Network) -> Iterator[RecordingBackend]:
    """A backend on a host of its own."""
    with net.backend.call(RecordingBackend, host=BACKEND) as backend:
        yield backend


@pytest.fixture
def good(client_credentials: CredentialFiles) -> ssl.SSLContext:
    return client_context(client_credentials)


def config(site: Config, backend: RecordingBackend, **timeouts: str) -> Config:
    log = {"format": "json", "level": "debug", "refusals_per_second": 10_000}
    return {
        "listen": [f"{PROXY_TO_CLIENT}:0"],
        "workers": 1,
        "log": log,
        "timeouts": {"handshake": "10s", **timeouts},
        "sites": [{**site, "upstream": backend.url}],
    }


def connect(net: Network, proxy: Proxy, context: ssl.SSLContext) -> TlsClient:
    return net.client.call(TlsClient, proxy.address, context)


def is_served(net: Network, proxy: Proxy, context: ssl.SSLContext) -> bool:
    return net.client.call(ask, proxy.address, context).status == 200


# Loss


@pytest.mark.parametrize("where", ["to_client", "to_backend"])
def test_lost_packets(net: Network, site: Config, far: RecordingBackend, good: ssl.SSLContext, where: str) -> None:
    """Every transfer is whole in both directions, and nobody is refused for a bad line."""

    def digest_and_send(connection: BackendConnection) -> None:
        while len(connection.received) < len(BULK):
            connection.receive()
        connection.sock.sendall(hashlib.sha256(connection.received).digest() + BULK)
        connection.receive_rest()

    line: Line = getattr(net, where)
    far.behaviour = digest_and_send
    with Proxy(config(site, far), launcher=net.proxy.launcher) as proxy, line.losing(20):
        for _ in range(2):
            with connect(net, proxy, good) as client:
                client.handshake()
                client.send(BULK)
                assert client.receive_exactly(32) == hashlib.sha256(BULK).digest()
                assert client.receive_exactly(len(BULK)) == BULK
                client.close_notify()
                port = client.port
            assert proxy.wait_for("connection", client=f"{CLIENT}:{port}")["reason"] == "closed"


# Delay


def test_a_slow_line(proxy: Proxy, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """A tenth of a second each way delays a handshake, a request and its answer, and ends none of them."""
    slow = Fault(delay=0.1)
    with FaultyRelay(proxy.address, to_server=slow, to_client=slow) as line:
        assert ask(line.address, good).data == HELLO


def test_a_line_slower_than_the_deadline(site: Config, backend: RecordingBackend, good: ssl.SSLContext) -> None:
    """A handshake that cannot be over in time is ended as that, and the next one has its own time."""
    log = {"format": "json", "level": "debug"}
    slow = Fault(delay=0.5)
    with Proxy({"workers": 1, "log": log, "timeouts": {"handshake": "700ms"}, "sites": [site]}) as proxy:
        with FaultyRelay(proxy.address, to_server=slow, to_client=slow) as line:
            assert ask(line.address, good).status == 0
            assert proxy.wait_for("connection")["reason"] == "handshake_timeout"
        assert ask(proxy.address, good).status == 200


# A backend that cannot be reached any more


def test_a_backend_behind_a_cut_line(net: Network, site: Config, far: RecordingBackend, good: ssl.SSLContext) -> None:
    """A dial that nobody answers is a 502 after `timeouts.connect`; once the line is whole again, so is the service."""
    with Proxy(config(site, far, connect="1s"), launcher=net.proxy.launcher) as proxy:
        with net.to_backend.cut():
            began = time.monotonic()
            answer = net.client.call(ask, proxy.address, good)
            took = time.monotonic() - began
        assert (answer.status, answer.ending) == (502, "close_notify")
        assert proxy.wait_for("connection")["reason"] == "upstream_timeout"
        assert 1.0 <= took < PATIENCE
        assert is_served(net, proxy, good)


def test_a_line_that_is_cut_for_a_while(
    net: Network, site: Config, far: RecordingBackend, good: ssl.SSLContext
) -> None:
    """A request that is on its way meanwhile arrives, and is answered."""
    with Proxy(config(site, far), launcher=net.proxy.launcher) as proxy, connect(net, proxy, good) as client:
        client.handshake(with_data=GET)
        client.receive_exactly(len(HELLO))
        with net.to_backend.cut():
            client.send(GET)
            client.sock.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.receive()
            client.sock.settimeout(PATIENCE)
        assert client.receive_exactly(len(HELLO)) == HELLO


def test_a_line_that_stays_cut(net: Network, site: Config, far: RecordingBackend, good: ssl.SSLContext) -> None:
    """Who waits for a backend that is gone is let go at the idle limit, with the reason."""
    far.behaviour = never_answer
    with Proxy(config(site, far, idle="1s"), launcher=net.proxy.launcher) as proxy, connect(net, proxy, good) as client:
        client.handshake(with_data=GET)
        far.wait_for_connection()
        with net.to_backend.cut():
            client.receive_all()
            client.sock.close()
            assert proxy.wait_for("connection")["reason"] == "idle_timeout"
        far.forget()
        assert is_served(net, proxy, good)


# Keep-alive


@pytest.fixture
def impatient(net: Network, site: Config, far: RecordingBackend, tmp_path: Path) -> Iterator[Proxy]:
    """A proxy whose kernel asks silent peers soon, and whose deadlines are far off but for the handshake's."""
    (tmp_path / "sitecustomize.py").write_text(IMPATIENT_KERNEL)
    env = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    timeouts = {"handshake": "1s", "linger": "1s", "idle": "1h"}
    with Proxy(config(site, far, **timeouts), env=env, launcher=net.proxy.launcher) as proxy:
        yield proxy


VANISHED = {
    "silent": "client_silent",
    "in_its_hello": "handshake_timeout",
    "greeted": "handshake_timeout",
    "accepted": "client_reset",
    "kept": "client_reset",
    "uploading": "client_reset",
    "refused": "no_certificate",
}


@pytest.mark.parametrize("state", STATES)
def test_clients_that_vanish(
    net: Network, far: RecordingBackend, impatient: Proxy, good: ssl.SSLContext, state: str
) -> None:
    """No FIN, no RST, no word: ended by the handshake's deadline, the linger's, or the kernel's question."""
    assert is_served(net, impatient, good)
    (worker,) = impatient.worker_pids
    impatient.wait_for("connection")
    before = open_descriptors(worker)
    client = net.client.call(STATES[state], Place(impatient.address, good, client_context()))
    # What it has not acknowledged the kernel would repeat for a quarter of an hour, and ask nothing.
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    with client, net.to_client.cut():
        record = impatient.wait_for("connection", client=f"{CLIENT}:{client.port}")
        assert record["reason"] == VANISHED[state]
        assert open_descriptors(worker) == before
    assert is_served(net, impatient, good)


def test_a_backend_that_vanishes(net: Network, far: RecordingBackend, impatient: Proxy, good: ssl.SSLContext) -> None:
    """The client learns that its answer will not come, by a reset and not by an end."""
    far.behaviour = never_answer
    with connect(net, impatient, good) as client:
        client.handshake(with_data=GET)
        far.wait_for_connection().wait_until(lambda: far.received == GET)
        with net.to_backend.cut():
            assert client.receive_all().ending in ("reset", "fin")
            record = impatient.wait_for("connection", client=f"{CLIENT}:{client.port}")
            assert record["reason"] == "upstream_reset"
    far.forget()
    assert is_served(net, impatient, good)
