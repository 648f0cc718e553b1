"""What NGINX and HAProxy hold themselves to, in their published tests of client certificates, holds here too.

Each test names the case it was made after; NGINX's are files of nginx-tests, HAProxy's of its reg-tests/ssl. What they
look at and we cannot do has its reason in `NOT_HERE`; what other files of ours hold already is named in `ELSEWHERE`.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from actors import HELLO, ONE_WORKER, Event, Proxy, RecordingBackend, ask, client_context
from certificates import DAY, Authority, Credentials
from encounter import der
from hostile import HostileClient

ELSEWHERE = {
    "ssl_reject_handshake.t": ("test_a_site_is_judged_by_its_own_certificates.py", "test_unknown_names_rejected"),
    "ssl_sni.t": ("test_a_site_is_judged_by_its_own_certificates.py", "test_a_name_that_is_listed"),
    "ssl_sni_sessions.t": ("test_nothing_resumes.py", "test_a_real_session_opens_nothing"),
    "ssl_session_reuse.t": ("test_nothing_resumes.py", "test_there_is_no_session_to_come_back_with"),
    "ssl_session_ticket_key.t": ("test_nothing_resumes.py", "test_a_forged_session_opens_nothing"),
    "ssl_reuse.vtci": ("test_nothing_resumes.py", "test_a_real_session_opens_nothing"),
    "new_del_ssl_crlfile.vtci": ("test_a_site_is_judged_by_its_own_certificates.py", "test_a_name_that_is_listed"),
}
"""Their case -> our file and test."""
NOT_HERE = {
    "ssl_verify_client.t: bad optional_no_ca cert": "no site passes a certificate on that nobody has verified",
    "ssl_verify_client.t: misdirected": "a relay reads no Host header: sites that share a backend must have equal clients",
    "ssl_verify_client.t: no duplicates sent": "the request for a certificate names no CA: a scanner learns none",
    "ssl_verify_depth.t": "a chain may be as long as its CAs' own path lengths allow, there is no key to shorten it",
    "ssl_ocsp.t, ocsp_client_check.vtc": "certificates are looked up in lists, not online",
}
"""Their case -> why there is none of ours."""


@pytest.mark.parametrize("case", ELSEWHERE)
def test_what_is_held_elsewhere(case: str) -> None:
    """The test that is named is there."""
    file, test = ELSEWHERE[case]
    assert f"\ndef {test}(" in (Path(__file__).parent / file).read_text()


@dataclass
class World:
    """A proxy whose one site is changed by reloads, and a directory for its files."""

    proxy: Proxy
    site: dict[str, Any]
    directory: Path
    _reloads: int = 0

    def trust(self, *authorities: Authority, lists: tuple[bytes, ...] = ()) -> None:
        """Trust these CAs from now on, and look into these lists."""
        self._write(authorities, lists)
        self._reloads += 1
        self.proxy.wait_for("reloaded", count=self._reloads)

    def fail_to_trust(self, *authorities: Authority, lists: tuple[bytes, ...] = ()) -> list[str]:
        """Try to; the problems."""
        self._write(authorities, lists)
        return list(self.proxy.wait_for("reload_failed")["problems"])

    def _write(self, authorities: tuple[Authority, ...], lists: tuple[bytes, ...]) -> None:
        (self.directory / "ca.pem").write_bytes(b"".join(authority.pem for authority in authorities))
        (self.directory / "list.crl").write_bytes(b"".join(lists))
        clients: dict[str, Any] = {"ca": [str(self.directory / "ca.pem")]}
        if lists:
            clients["crl"] = [str(self.directory / "list.crl")]
        self.proxy.write_config({**ONE_WORKER, "sites": [{**self.site, "clients": clients}]})
        self.proxy.signal(signal.SIGHUP)

    def judge(self, credentials: Credentials | None) -> str:
        """`passed`, or the reason in the log."""
        shown = credentials.write(self.directory, "client") if credentials else None
        with_whom = client_context(shown)
        seen = len(self.proxy.events("connection"))
        answer = ask(self.proxy.address, with_whom)
        record: Event = self.proxy.wait_for("connection", count=seen + 1)
        assert (answer.data == HELLO) == (record["verdict"] == "accepted")
        assert answer.status == (200 if answer.data == HELLO else 400)
        return "passed" if answer.data == HELLO else str(record["reason"])


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority("root")


@pytest.fixture
def world(site: dict[str, Any], backend: RecordingBackend, root: Authority, tmp_path: Path) -> Iterator[World]:
    own = {**site, "clients": {"ca": [str(root.write(tmp_path / "first.pem"))]}}
    with Proxy({**ONE_WORKER, "sites": [own]}) as proxy:
        assert [] == backend.connections
        yield World(proxy, site, tmp_path)


# NGINX


def test_ssl_verify_client(world: World, root: Authority) -> None:
    """ssl_verify_client.t: no cert, bad optional cert, good cert, good cert trusted."""
    other = Authority("3.example.com")
    assert "no_certificate" == world.judge(None)
    assert "unknown_ca" == world.judge(other.issue())
    assert "self_signed" == world.judge(root.issue(self_signed=True))
    assert "passed" == world.judge(root.issue())
    world.trust(root, other)
    assert "passed" == world.judge(other.issue())


def test_ssl_verify_client_names_no_authority(world: World, root: Authority) -> None:
    """ssl_verify_client.t: no trusted sent. Nobody is told which CA is asked for."""
    with HostileClient(world.proxy.address) as visitor:
        visitor.greet()
        assert visitor.client.certificate_request is not None
        assert 47 not in visitor.client.certificate_request  # certificate_authorities, RFC 8446 section 4.2.4
        assert der(root.certificate) not in visitor.client.wire


def test_ssl_crl(world: World, root: Authority) -> None:
    """ssl_crl.t: no revoked certs, client revoked, CA revoked, incomplete chain, no revoked chain."""
    client, intermediate = root.issue("client"), root.intermediate("int")
    end = intermediate.issue("end")
    world.trust(root, lists=(root.revoke(),))
    assert "passed" == world.judge(client)
    assert "revocation_unknown" == world.judge(end)
    world.trust(root, lists=(root.revoke(client),))
    assert "revoked" == world.judge(client)
    world.trust(intermediate, root, lists=(root.revoke(), intermediate.revoke()))
    assert "passed" == world.judge(end)
    ca_revoked = root.revoke(replace(client, certificate=intermediate.certificate))
    world.trust(intermediate, root, lists=(ca_revoked, intermediate.revoke()))
    assert "revoked" == world.judge(end)
    assert "passed" == world.judge(client)
    (problem,) = world.fail_to_trust(intermediate, root, lists=(root.revoke(),))
    assert problem.startswith("sites[0].clients.crl: there is no CRL of 'CN=int'")
    assert "revoked" == world.judge(end)


def test_ssl_verify_depth(world: World, root: Authority) -> None:
    """ssl_verify_depth.t: int and end pass at depth 2, where the path lengths of the CAs allow it."""
    deep, too_deep = root.intermediate("one", path_length=1), root.intermediate("one", path_length=0)
    assert "passed" == world.judge(deep.issue())
    assert "passed" == world.judge(deep.intermediate("two").issue())
    assert "bad_certificate" == world.judge(too_deep.intermediate("two").issue())


# HAProxy


def test_ssl_client_auth(world: World, root: Authority) -> None:
    """ssl_client_auth.vtc: the right certificate, an expired one (10), a revoked one (23)."""
    revoked = root.issue("client3")
    world.trust(root, lists=(root.revoke(revoked),))
    assert "passed" == world.judge(root.issue("client1"))
    assert "expired" == world.judge(root.issue("client2", validity=(-2 * DAY, -DAY)))
    assert "revoked" == world.judge(revoked)


def test_set_ssl_crlfile(world: World, root: Authority) -> None:
    """set_ssl_crlfile.vtc: a new list counts once it has been taken over, not when that failed, and can be taken back."""
    client = root.issue()
    world.trust(root, lists=(root.revoke(),))
    assert "passed" == world.judge(client)
    assert world.fail_to_trust(root, lists=(root.revoke(client), b"-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n"))
    assert "passed" == world.judge(client)
    world.trust(root, lists=(root.revoke(client),))
    assert "revoked" == world.judge(client)
    world.trust(root, lists=(root.revoke(),))
    assert "passed" == world.judge(client)


def test_set_ssl_cafile(world: World) -> None:
    """set_ssl_cafile.vtci: a client of a CA that is not listed (20, 21), then a list of CAs with it, then without."""
    above = Authority("Root CA")
    first, second = above.intermediate("CA 1"), above.intermediate("CA 2")
    client = replace(first.issue(), chain=())
    world.trust(second)
    assert "unknown_ca" == world.judge(client)
    world.trust(second, first, above)
    assert "passed" == world.judge(client)
    assert "passed" == world.judge(second.issue())
    world.trust(second, first)
    assert "passed" == world.judge(client)
    world.trust(second)
    assert "unknown_ca" == world.judge(client)


def test_a_list_of_another_key(world: World, root: Authority) -> None:
    """In neither: a list in the CA's name that another key signed, an old one's say, is not taken over."""
    (problem,) = world.fail_to_trust(root, lists=(Authority("root").revoke(),))
    assert problem.startswith("sites[0].clients.crl: the CRL of 'CN=root' is signed by another key")
    assert "passed" == world.judge(root.issue())
    world.trust(root, lists=(Authority("root").revoke(), root.revoke()))
