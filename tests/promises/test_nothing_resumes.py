"""Whoever comes back shows a certificate again: no session of any site, or of any server, opens this one or another.

The class of CVE-2025-23419 (NGINX) and CVE-2025-23048 (Apache): a TLS 1.3 session of one virtual host was resumed at
another, where its client's certificate was never judged. Two sites with CAs of their own stand here in either order; the
sessions are those of `openssl s_client`, and forged ones.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from actors import (
    GET_AND_CLOSE,
    HELLO,
    ONE_WORKER,
    Proxy,
    RecordingBackend,
    free_port,
    require_peer,
    running,
    wait_for_port,
)
from certificates import Authority, CredentialFiles, Credentials
from hostile import HostileClient
from tls13 import ContentType, Tls13Client, plain_record, vector

NAMES = ("a.example", "b.example")
PAIRS = list(product(NAMES, NAMES))
PRE_SHARED_KEY, EARLY_DATA, PSK_MODES = 41, 42, 45


@dataclass(frozen=True)
class Sites:
    """Two sites behind one proxy, each with its own CA, and one good client of each."""

    proxy: Proxy
    backends: dict[str, RecordingBackend]
    clients: dict[str, Credentials]
    files: dict[str, CredentialFiles]
    server: CredentialFiles


@pytest.fixture(scope="module", params=[NAMES, NAMES[::-1]], ids=["a first", "b first"])
def module_sites(
    request: pytest.FixtureRequest, server_credentials: CredentialFiles, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sites]:
    directory = tmp_path_factory.mktemp("sites")
    authorities = {name: Authority(f"CA of {name}") for name in NAMES}
    clients = {name: authority.issue(f"edge.{name}") for name, authority in authorities.items()}
    files = {name: one.write(directory, name) for name, one in clients.items()}
    with RecordingBackend() as a, RecordingBackend() as b:
        backends = dict(zip(NAMES, (a, b), strict=True))
        configured = [
            {
                "hosts": [name],
                "certificate": str(server_credentials.certificate),
                "private_key": str(server_credentials.private_key),
                "clients": {"ca": [str(authorities[name].write(directory / f"{name}.ca"))]},
                "upstream": backends[name].url,
            }
            for name in request.param
        ]
        with Proxy({**ONE_WORKER, "sites": configured}) as proxy:
            yield Sites(proxy, backends, clients, files, server_credentials)


@pytest.fixture
def sites(module_sites: Sites) -> Sites:
    for backend in module_sites.backends.values():
        backend.forget()
    return module_sites


def s_client(port: int, name: str, *options: str | Path, shown: CredentialFiles | None = None) -> str:
    """What `openssl s_client` prints of one request: the session, and what was answered."""
    own = ["-cert", str(shown.certificate), "-key", str(shown.private_key)] if shown else []
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", name, "-ign_eof", "-tls1_3"]
    done = subprocess.run(
        [*command, *map(str, options), *own], input=GET_AND_CLOSE, capture_output=True, timeout=20, check=False
    )
    return done.stdout.decode(errors="replace")


@pytest.fixture(scope="module")
def donor(module_sites: Sites) -> Iterator[int]:
    """A server with our certificate, our key and our names that gives tickets to everybody; its port."""
    port = free_port()
    openssl = require_peer("openssl")
    own: list[str | Path] = ["-cert", module_sites.server.certificate, "-key", module_sites.server.private_key]
    command: list[str | Path] = [openssl, "s_server", "-accept", f"127.0.0.1:{port}", "-tls1_3", "-www", "-quiet", *own]
    with running(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for_port(port, process)
        yield port


def assert_nobody_passed(sites: Sites) -> None:
    assert {name: [] for name in NAMES} == {name: backend.connections for name, backend in sites.backends.items()}


@pytest.mark.parametrize("name", NAMES)
def test_there_is_no_session_to_come_back_with(sites: Sites, tmp_path: Path, name: str) -> None:
    """After a good visit, and after a refused one, a client that would keep its session has none."""
    require_peer("openssl")
    for number, shown in enumerate((sites.files[name], None)):
        kept = tmp_path / f"session-{number}"
        printed = s_client(sites.proxy.port, name, "-sess_out", kept, shown=shown)
        assert ("backend's word" in printed) == (shown is not None)
        assert not kept.exists()


@pytest.mark.parametrize(("given_for", "shown_at"), PAIRS)
@pytest.mark.parametrize("who", ["nobody", *NAMES])
def test_a_real_session_opens_nothing(
    sites: Sites, donor: int, tmp_path: Path, given_for: str, shown_at: str, who: str
) -> None:
    """With a session that a server gave for either name, each site makes a new one, and judges as ever."""
    kept = tmp_path / "session"
    s_client(donor, given_for, "-sess_out", kept)
    assert "Reused, TLSv1.3" in s_client(donor, given_for, "-sess_in", kept)
    s_client(donor, given_for, "-sess_out", kept)
    printed = s_client(sites.proxy.port, shown_at, "-sess_in", kept, shown=sites.files.get(who))
    assert "New, TLSv1.3" in printed
    assert "Reused" not in printed
    assert ("backend's word" in printed) == (who == shown_at)
    assert ("<h1>400 Bad Request</h1>" in printed) == (who != shown_at)
    assert (who == shown_at) == bool(sites.backends[shown_at].connections)


def forged(identities: int, binder: bytes) -> bytes:
    """A `pre_shared_key` that offers so many invented tickets (RFC 8446 section 4.2.11)."""
    offered = b"".join(vector(2, bytes([number]) * 208) + bytes(4) for number in range(identities))
    return vector(2, offered) + vector(2, vector(1, binder) * identities)


@pytest.mark.parametrize("with_early_data", [False, True], ids=["", "early data"])
@pytest.mark.parametrize("modes", [b"\1\1", b"\1\0", b"\2\0\1"], ids=["psk_dhe_ke", "psk_ke", "both"])
@pytest.mark.parametrize(("good_at", "shown_at"), PAIRS)
def test_a_forged_session_opens_nothing(
    sites: Sites, good_at: str, shown_at: str, modes: bytes, with_early_data: bool
) -> None:
    """A client that was served at one site, and pretends to resume, is asked for its certificate, and refused without."""
    with HostileClient(sites.proxy.address, Tls13Client(server_name=good_at.encode())) as visitor:
        visitor.greet()
        visitor.send(visitor.flight(sites.clients[good_at]))
        assert HELLO == visitor.read_answer().data
        assert [] == visitor.client.tickets
        binder = visitor.client.secrets["EXPORTER_SECRET"]
    sites.backends[good_at].forget()
    offers = [(EARLY_DATA, b"")] if with_early_data else []
    offers += [(PSK_MODES, modes), (PRE_SHARED_KEY, forged(3, binder))]
    with HostileClient(sites.proxy.address, Tls13Client(server_name=shown_at.encode(), extensions=offers)) as visitor:
        early = plain_record(ContentType.APPLICATION_DATA, bytes(64)) if with_early_data else b""
        visitor.sock.sendall(visitor.client.hello() + early)
        while not visitor.client.ready:
            assert visitor.receive()
        assert visitor.client.certificate_request is not None
        assert {PRE_SHARED_KEY, EARLY_DATA}.isdisjoint(visitor.client.encrypted_extensions)
        visitor.send(visitor.flight(None))
        assert 400 == visitor.read_answer().status
    assert_nobody_passed(sites)
