"""All workers' doings, summed, within seconds, and never backwards: as a scraper and an orchestrator see them."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
    ask_plainly,
    client_context,
    never_answer,
    require_peer,
    run_command,
)
from admin import admin_address, status_when, total, visit
from aop_proxy.reasons import Reason
from certificates import CredentialFiles

ROOT = Path(__file__).parents[2]
Config = dict[str, Any]


@pytest.fixture(scope="module")
def watched(site: Config) -> Iterator[Proxy]:
    """Two workers and an admin listener."""
    with Proxy({**ONE_WORKER, "workers": 2, "sites": [site], "admin": "127.0.0.1:0"}) as proxy:
        admin_address(proxy)
        yield proxy


def metrics(address: str) -> dict[str, float]:
    """Each series with its value."""
    lines = visit(address, "/metrics").text.splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def test_connections_by_reason(watched: Proxy, backend: RecordingBackend, client_credentials: CredentialFiles) -> None:
    """Of both workers, each counted once; handshakes and dials with how long they took."""
    address = admin_address(watched)
    before = metrics(address)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ask(watched.address, client_context(client_credentials)), range(12)))
        list(pool.map(lambda _: ask(watched.address, client_context()), range(8)))
    ask_plainly(watched.address, GET)
    series = 'aop_proxy_connections_total{reason="plain_http",verdict="refused"}'
    status_when(address, lambda status: total(status, "connections", "accepted closed") >= 12)
    status_when(address, lambda status: total(status, "connections", "refused plain_http") == 1)
    status_when(address, lambda status: total(status, "connections", "refused no_certificate") == 8)
    after = metrics(address)
    assert after[series] - before[series] == 1
    connected = f'aop_proxy_upstream_dials_total{{result="connected",upstream="{backend.url}"}}'
    grown = {name: after[name] - before[name] for name in (
        'aop_proxy_connections_total{reason="closed",verdict="accepted"}',
        'aop_proxy_connections_total{reason="no_certificate",verdict="refused"}',
        "aop_proxy_admitted_total",
        "aop_proxy_handshake_seconds_count",
        connected,
        f'aop_proxy_upstream_dial_seconds_count{{upstream="{backend.url}"}}',
        'aop_proxy_bytes_total{direction="from_upstream"}',
    )}  # fmt: skip
    assert list(grown.values()) == [12, 8, 12, 20, 12, 12, 12 * len(HELLO)]
    assert 0 < after["aop_proxy_handshake_seconds_sum"] - before["aop_proxy_handshake_seconds_sum"] < 20 * PATIENCE


def test_bytes_of_a_connection_that_lives(
    watched: Proxy, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """They are there before it ends, and are not counted again when it does."""
    address = admin_address(watched)
    backend.behaviour = never_answer
    status = status_when(address, lambda status: sum(one["open"]["accepted"] for one in status["workers"]) == 0)
    before = total(status, "bytes", "from_client")
    with TlsClient(watched.address, client_context(client_credentials)) as client:
        client.handshake(with_data=GET)
        client.send(b"x" * 100_000)
        expected = before + len(GET) + 100_000
        status = status_when(address, lambda status: total(status, "bytes", "from_client") == expected)
        assert sum(one["open"]["accepted"] for one in status["workers"]) == 1
    status = status_when(address, lambda status: sum(one["open"]["accepted"] for one in status["workers"]) == 0)
    assert total(status, "bytes", "from_client") == expected


def test_who_is_open(watched: Proxy, client_credentials: CredentialFiles) -> None:
    """Silent, shaking hands, or accepted."""
    address = admin_address(watched)
    with (
        TlsClient(watched.address, client_context()) as silent,
        TlsClient(watched.address, client_context()) as slow,
        TlsClient(watched.address, client_context(client_credentials)) as good,
    ):
        slow.sock.sendall(b"\x16\x03\x01")
        good.handshake()
        expected = {"silent": 1, "handshake": 1, "leaving": 0, "accepted": 1}

        def is_so(status: dict[str, Any]) -> bool:
            return {name: sum(one["open"][name] for one in status["workers"]) for name in expected} == expected

        status_when(address, is_so)
        assert silent.port


def test_a_dead_worker_takes_nothing_with_it(watched: Proxy, client_credentials: CredentialFiles) -> None:
    """What it had reported stays counted; its replacement is counted."""
    address = admin_address(watched)
    for _ in range(4):
        ask(watched.address, client_context())
    status = status_when(address, lambda status: not any(sum(one["open"].values()) for one in status["workers"]))
    before = total(status, "connections", "refused no_certificate")
    restarts, victim = status["restarts"], status["workers"][0]["pid"]
    os.kill(victim, signal.SIGKILL)

    def is_replaced(status: dict[str, Any]) -> bool:
        assert total(status, "connections", "refused no_certificate") >= before
        return status["restarts"] == restarts + 1 and all(one["serves"] for one in status["workers"])

    status = status_when(address, is_replaced)
    assert [one["number"] for one in status["workers"]] == [1, 2]
    assert victim not in [one["pid"] for one in status["workers"]]


def test_reloads_and_what_they_bring(site: Config, client_ca: Path) -> None:
    """Good and failed ones, the generation, and the ends of the certificates that are served now."""
    config = {**ONE_WORKER, "sites": [site], "admin": "127.0.0.1:0"}
    with Proxy(config) as proxy:
        address = admin_address(proxy)
        proxy.write_config({**config, "sites": [{**site, "certificate": "gone.pem"}]})
        proxy.signal(signal.SIGHUP)
        status = status_when(address, lambda status: status["reloads"]["failed"] == 1)
        assert (status["generation"], len(status["reload_problems"])) == (1, 1)
        proxy.write_config({**config, "sites": [{**site, "clients": {"ca": [str(client_ca), str(client_ca)]}}]})
        proxy.signal(signal.SIGHUP)
        status = status_when(address, lambda status: status["workers"][0]["generation"] == 2)
        assert (status["generation"], status["reloads"]) == (2, {"good": 1, "failed": 1})
        paths = [one["path"] for one in status["expiries"]]
        assert paths == ["sites[0].clients.ca[0]", "sites[0].clients.ca[1]", "sites[0].certificate"]
        expiries = {name: value for name, value in metrics(address).items() if name.startswith("aop_proxy_expiry")}
        assert sorted(re.findall('kind="([a-z]+)"', " ".join(expiries))) == ["ca", "ca", "certificate"]
        assert {round(value / 86400) for value in expiries.values()} <= {89, 90}


def test_an_upstream_that_is_down(site: Config, backend: RecordingBackend, client_credentials: CredentialFiles) -> None:
    """Each failed dial is counted for the backend that failed."""
    down, up = "http://127.0.0.1:9", backend.url
    with Proxy({**ONE_WORKER, "sites": [{**site, "upstream": [down, up]}], "admin": "127.0.0.1:0"}) as proxy:
        assert ask(proxy.address, client_context(client_credentials)).status == 200
        address = admin_address(proxy)
        status = status_when(address, lambda status: total(status, "dials", f"connected {up}") == 1)
        assert total(status, "dials", f"upstream_unreachable {down}") == 1
        assert set(status["seen"]) == {f"connected {up}", f"failed {down}"}


def test_readiness_while_it_drains(
    site: Config, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """From the moment that it is told to end, while connections end in peace, it wants no new ones, and is healthy."""
    backend.behaviour = never_answer
    with Proxy({**ONE_WORKER, "sites": [site], "admin": "127.0.0.1:0"}) as proxy:
        address = admin_address(proxy)
        status_when(address, lambda status: status["ready"])
        assert visit(address, "/readyz").status == 200
        with TlsClient(proxy.address, client_context(client_credentials)) as client:
            client.handshake(with_data=GET)
            backend.wait_for_connection()
            proxy.terminate()
            status_when(address, lambda status: not status["ready"])
            assert visit(address, "/readyz").body == b"not ready: draining\n"
            assert visit(address, "/healthz").status == 200


def test_readiness_while_it_still_serves(
    site: Config, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """During `drain_delay` it wants no new clients, and serves those that come."""
    config = {**ONE_WORKER, "sites": [site], "admin": "127.0.0.1:0", "timeouts": {"drain_delay": "30s"}}
    with Proxy(config) as proxy:
        address = admin_address(proxy)
        status_when(address, lambda status: status["ready"])
        proxy.terminate()
        status_when(address, lambda status: not status["ready"])
        assert visit(address, "/readyz").body == b"not ready: draining\n"
        assert ask(proxy.address, client_context(client_credentials)).data == HELLO
        assert len(backend.connections) == 1
        proxy.terminate()


def test_observing_is_seen(site: Config, backend: RecordingBackend) -> None:
    """By readiness and by a metric; who would be refused is counted as such."""
    with Proxy({**ONE_WORKER, "sites": [site], "admin": "127.0.0.1:0", "enforcement": "observe"}) as proxy:
        address = admin_address(proxy)
        assert ask(proxy.address, client_context()).status == 200
        assert len(backend.connections) == 1
        status = status_when(address, lambda status: total(status, "connections", "would_refuse no_certificate"))
        assert [one["verdict"] for one in status["refusals"]] == ["would_refuse"]
        assert status["ready"]
        assert visit(address, "/readyz").body.startswith(b"ready, but it only observes")
        assert metrics(address)["aop_proxy_enforcing"] == 0


def test_prometheus_has_nothing_against_them(watched: Proxy) -> None:
    """Its own tool reads what a real program shows."""
    tool = require_peer("promtool")
    page = visit(admin_address(watched), "/metrics")
    done = subprocess.run([tool, "check", "metrics"], input=page.body, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_every_word_of_a_label_is_known(watched: Proxy, backend: RecordingBackend) -> None:
    """Nothing that a client has said becomes one."""
    context = client_context()
    ask(watched.address, context, b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", server_name="evil.example")
    address = admin_address(watched)
    status = status_when(address, lambda status: any(one["sni"] == "evil.example" for one in status["refusals"]))
    page = visit(address, "/metrics").text
    assert "evil" not in page
    assert status["refusals"][0]["reference"] not in page
    assert set(re.findall('reason="([a-z_]+)"', page)) == set(Reason)


def test_only_what_is_asked_for(site: Config) -> None:
    """`only` for an address that others reach; without it, away from loopback, `check` says a word."""
    admin = {"address": "127.0.0.1:0", "only": ["health", "metrics"]}
    with Proxy({**ONE_WORKER, "sites": [site], "admin": admin}) as proxy:
        address = admin_address(proxy)
        while metrics(address)["aop_proxy_ready"] == 0:
            time.sleep(0.05)
        paths = ("/healthz", "/readyz", "/metrics", "/status.json", "/")
        assert [visit(address, path).status for path in paths] == [200, 200, 200, 404, 404]
        for word, expected in (("0.0.0.0:9180", True), (admin, False), ("127.0.0.1:9180", False)):
            proxy.write_config({**ONE_WORKER, "sites": [site], "admin": word})
            checked = run_command("check", *proxy.flags)
            assert (checked.exit_code, "advice: admin: " in checked.stdout) == (0, expected)


def test_the_status_is_json(watched: Proxy) -> None:
    """For machines."""
    page = visit(admin_address(watched), "/status.json")
    assert page.headers["content-type"] == "application/json"
    assert json.loads(page.body)["version"]
