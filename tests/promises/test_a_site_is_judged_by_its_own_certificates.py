"""Each site judges its clients by its own CAs and revocation lists, whatever name a client gives, and when.

Two sites stand behind one listener, in either order, each with a CA, a server certificate and a backend of its own; the
second has a revocation list. The name in a client's first hello decides for good, and a name of no site's is judged by
the first. Every case is one connection of the hostile client, which may change its mind between two hellos.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from actors import HELLO, ONE_WORKER, Answer, Proxy, RecordingBackend
from certificates import Authority, Credentials
from encounter import der
from hostile import HostileClient, send_bytewise
from tls13 import Alert, ContentType, HandshakeType, Tls13Client, handshake_message, plain_record, vector

FATAL = 2
UNRECOGNIZED_NAME, PROTOCOL_VERSION = 112, 70
UNKNOWN_NAME = b"c.example"


@dataclass(frozen=True)
class Site:
    """A site: who may come, whom it shows, what stands behind it."""

    name: str
    authority: Authority
    server: Credentials
    backend: RecordingBackend
    client: Credentials

    def configuration(self, directory: Path, crl: bytes = b"") -> dict[str, Any]:
        shown = self.server.write(directory, f"{self.name}-server")
        clients: dict[str, Any] = {"ca": [str(self.authority.write(directory / f"{self.name}-ca.pem"))]}
        if crl:
            (directory / f"{self.name}.crl").write_bytes(crl)
            clients["crl"] = [str(directory / f"{self.name}.crl")]
        return {
            "hosts": [self.name, f"*.{self.name}"],
            "certificate": str(shown.certificate),
            "private_key": str(shown.private_key),
            "clients": clients,
            "upstream": self.backend.url,
        }


@dataclass(frozen=True)
class TwoSites:
    """Two sites behind one proxy."""

    proxy: Proxy
    a: Site
    b: Site
    revoked: Credentials
    """Issued by B's authority, and on B's list."""
    first: Site


@contextlib.contextmanager
def build(name: str, server_authority: Authority) -> Iterator[Site]:
    authority = Authority(f"Client CA of {name}")
    with RecordingBackend() as backend:
        yield Site(name, authority, server_authority.issue_server(name), backend, authority.issue(f"edge.{name}"))


@pytest.fixture(scope="module", params=["A first", "B first"])
def module_sites(
    request: pytest.FixtureRequest, server_authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TwoSites]:
    directory = tmp_path_factory.mktemp("sites")
    with build("a.example", server_authority) as a, build("b.example", server_authority) as b:
        revoked = b.authority.issue("revoked.example")
        configured = [a.configuration(directory), b.configuration(directory, b.authority.revoke(revoked))]
        if request.param == "B first":
            configured.reverse()
        with Proxy({**ONE_WORKER, "sites": configured}) as proxy:
            yield TwoSites(proxy, a, b, revoked, a if request.param == "A first" else b)


@pytest.fixture
def sites(module_sites: TwoSites) -> TwoSites:
    module_sites.proxy.forget()
    module_sites.a.backend.forget()
    module_sites.b.backend.forget()
    return module_sites


def visit(
    sites: TwoSites,
    name: bytes | None,
    credentials: Credentials | None,
    *,
    then: Callable[[Tls13Client], None] | None = None,
) -> tuple[Answer, HostileClient]:
    """One connection with one request; `then` changes the client before the second hello that the server asks for."""
    client = Tls13Client(server_name=name)
    if then is not None:
        client.share = None
    with HostileClient(sites.proxy.address, client) as intruder:
        intruder.greet(lambda: then(client) if then else None)
        intruder.send(intruder.flight(credentials))
        answer = intruder.read_answer()
    assert intruder.numbers() == list(range(len(client.records)))
    return answer, intruder


def assert_served_by(sites: TwoSites, site: Site, answer: Answer) -> None:
    assert answer.data == HELLO
    seen = {each.name: len(each.backend.connections) for each in (sites.a, sites.b)}
    assert seen == {"a.example": 0, "b.example": 0, site.name: 1}


def assert_refused(sites: TwoSites, answer: Answer, status: int) -> None:
    assert (answer.status, answer.ending) == (status, "close_notify")
    assert sites.a.backend.connections == sites.b.backend.connections == []


NAMES = [b"a.example", b"A.Example", b"www.a.example", b"b.example", b"b.example.", b"www.b.example"]


@pytest.mark.parametrize("who", ["a.example", "b.example", "revoked", "nobody"])
@pytest.mark.parametrize("name", NAMES, ids=bytes.decode)
def test_a_name_that_is_listed(sites: TwoSites, name: bytes, who: str) -> None:
    """A site shows its own certificate, serves its own CA's clients, and nobody else: not the other site's clients, and
    not those on its list, whichever site stands first.
    """
    site = sites.a if b"a.example" in name.lower() else sites.b
    people = {"a.example": sites.a.client, "b.example": sites.b.client, "revoked": sites.revoked, "nobody": None}
    answer, intruder = visit(sites, name, people[who])
    assert intruder.client.server_certificate == der(site.server.certificate)
    record = sites.proxy.connection_record(intruder.port)
    if who == site.name:
        assert_served_by(sites, site, answer)
        assert record["site"] == site.name
    else:
        assert_refused(sites, answer, 400)
        revoked_here = "revoked" if site is sites.b else "unknown_ca"
        assert record["reason"] == {"nobody": "no_certificate", "revoked": revoked_here}.get(who, "unknown_ca")


@pytest.mark.parametrize("name", [UNKNOWN_NAME, b"example", b"a.b.a.example", b"*.a.example", b"", None], ids=str)
def test_a_name_that_is_not(sites: TwoSites, name: bytes | None) -> None:
    """The first site's certificate and CAs judge it: its good clients read 421, all others 400."""
    other = sites.b if sites.first is sites.a else sites.a
    for credentials, status in ((sites.first.client, 421), (other.client, 400), (None, 400)):
        answer, intruder = visit(sites, name, credentials)
        assert_refused(sites, answer, status)
        assert intruder.client.server_certificate == der(sites.first.server.certificate)
        record = sites.proxy.connection_record(intruder.port)
        assert record["reason"] == {421: "unknown_host"}.get(status, "unknown_ca" if credentials else "no_certificate")


def test_a_name_that_is_not_ascii(sites: TwoSites) -> None:
    """It is no name: nothing is forwarded, and nothing but log lines is written."""
    answer, _ = visit(sites, b"\xff\xfe.a.example", sites.first.client)
    assert_refused(sites, answer, 421)


@pytest.mark.parametrize("second", [b"a.example", b"b.example", UNKNOWN_NAME, None], ids=str)
@pytest.mark.parametrize("first", [b"a.example", b"b.example"], ids=bytes.decode)
def test_a_name_changed_between_two_hellos(sites: TwoSites, first: bytes, second: bytes | None) -> None:
    """After a HelloRetryRequest the second hello's name, or its lack of one, changes nothing."""
    site, other = (sites.a, sites.b) if first == b"a.example" else (sites.b, sites.a)

    def change_name(client: Tls13Client) -> None:
        client.server_name = second

    answer, intruder = visit(sites, first, site.client, then=change_name)
    assert intruder.client.retry_requested
    assert_served_by(sites, site, answer)
    site.backend.forget()
    for credentials in (other.client, sites.revoked, None):
        answer, intruder = visit(sites, first, credentials, then=change_name)
        assert intruder.client.server_certificate == der(site.server.certificate)
        assert_refused(sites, answer, 400)


@pytest.mark.parametrize("second", [b"a.example", b"b.example"], ids=bytes.decode)
def test_a_name_given_in_the_second_hello(sites: TwoSites, second: bytes) -> None:
    """Who gave none first has none: the first site judges, and its clients read 421."""

    def give_name(client: Tls13Client) -> None:
        client.server_name = second

    for credentials, status in ((sites.first.client, 421), (sites.revoked, 400), (None, 400)):
        answer, _ = visit(sites, None, credentials, then=give_name)
        assert_refused(sites, answer, status)


@pytest.mark.parametrize("record_size", [1, 20, 100])
def test_a_hello_in_crumbs(sites: TwoSites, record_size: int) -> None:
    """The name is read however the hello is cut."""
    for site in (sites.a, sites.b):
        with HostileClient(
            sites.proxy.address, Tls13Client(server_name=site.name.encode(), record_size=record_size)
        ) as visitor:
            visitor.greet()
            visitor.send(visitor.flight(site.client))
            assert_served_by(sites, site, visitor.read_answer())
        site.backend.forget()


def test_a_hello_byte_by_byte(sites: TwoSites) -> None:
    """Nor does it matter how TCP cuts it, with every byte in a segment of its own."""
    for site in (sites.a, sites.b):
        client = Tls13Client(server_name=site.name.encode())
        with HostileClient(sites.proxy.address, client, send_bytewise) as visitor:
            visitor.greet()
            visitor.send(visitor.flight(site.client))
            assert_served_by(sites, site, visitor.read_answer())
        site.backend.forget()


def legacy_hello(name: bytes) -> bytes:
    """A ClientHello of TLS 1.2 that names a server."""
    server_name = b"\0\0" + vector(2, vector(2, b"\0" + vector(2, name)))
    body = b"\3\3" + bytes(32) + b"\0" + vector(2, bytes.fromhex("c02f c013 002f")) + b"\1\0" + vector(2, server_name)
    return plain_record(ContentType.HANDSHAKE, handshake_message(HandshakeType.CLIENT_HELLO, body))


def assert_alert_alone(proxy: Proxy, hello: bytes | None, client: Tls13Client, alert: int, reason: str) -> None:
    """All that a client hears is one fatal alert in clear."""
    with HostileClient(proxy.address, client) as intruder:
        intruder.send(hello or client.hello())
        answer = intruder.read_answer()
    assert (answer.ending, answer.tcp_end) == (str([Alert(FATAL, alert)]), "fin")
    assert len(client.wire) == 7
    assert proxy.connection_record(intruder.port)["reason"] == reason


@pytest.mark.parametrize("name", [b"a.example", b"b.example", UNKNOWN_NAME], ids=bytes.decode)
def test_an_old_version(sites: TwoSites, name: bytes) -> None:
    """TLS 1.2 is answered with protocol_version whatever name it gives."""
    assert_alert_alone(sites.proxy, legacy_hello(name), Tls13Client(), PROTOCOL_VERSION, "tls_version")


# `unknown_hosts: reject`


@pytest.fixture(scope="module", params=["one site", "two sites"])
def rejecting(
    request: pytest.FixtureRequest, server_authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TwoSites]:
    directory = tmp_path_factory.mktemp("rejecting")
    with build("a.example", server_authority) as a, build("b.example", server_authority) as b:
        configured = [a.configuration(directory)]
        if request.param == "two sites":
            configured.append(b.configuration(directory))
        with Proxy({**ONE_WORKER, "unknown_hosts": "reject", "sites": configured}) as proxy:
            yield TwoSites(proxy, a, b, b.client, a)


@pytest.mark.parametrize(
    "name",
    [UNKNOWN_NAME, b"", b"a\n.example", b"a\0.example", b"a" * 300, b"\xff\xfe", None],
    ids=lambda name: repr(name)[:20],
)
@pytest.mark.parametrize("record_size", [16384, 20])
def test_unknown_names_rejected(rejecting: TwoSites, name: bytes | None, record_size: int) -> None:
    """A name of no site's, and none, is answered with unrecognized_name before any certificate of ours is shown."""
    client = Tls13Client(server_name=name, record_size=record_size)
    assert_alert_alone(rejecting.proxy, None, client, UNRECOGNIZED_NAME, "unknown_host")
    assert client.server_certificate is None


def test_known_names_not_rejected(rejecting: TwoSites) -> None:
    """Names that are listed are served and refused as ever."""
    rejecting.a.backend.forget()
    assert_served_by(rejecting, rejecting.a, visit(rejecting, b"www.a.example", rejecting.a.client)[0])
    rejecting.a.backend.forget()
    assert_refused(rejecting, visit(rejecting, b"www.a.example", None)[0], 400)


def test_an_old_version_where_names_are_rejected(rejecting: TwoSites) -> None:
    """A listed name in a hello of TLS 1.2 is answered with protocol_version: the name is not what is wrong."""
    assert_alert_alone(rejecting.proxy, legacy_hello(b"a.example"), Tls13Client(), PROTOCOL_VERSION, "tls_version")


# What else each site has for itself


def test_rules_and_protocols(server_authority: Authority, tmp_path: Path) -> None:
    """Fingerprints, names and ALPN are those of the site that was asked for, though both trust one CA."""
    with build("a.example", server_authority) as a, build("b.example", server_authority) as b:
        shared = replace(b, authority=a.authority)
        other = a.authority.issue("other.example")
        of_a, of_b = a.configuration(tmp_path), shared.configuration(tmp_path)
        of_a["clients"]["fingerprints"] = [a.client.fingerprint]
        of_b["clients"]["names"] = ["other.example"]
        of_a["alpn"], of_b["alpn"] = ["http/1.1"], ["h2", "http/1.1"]
        with Proxy({**ONE_WORKER, "sites": [of_a, of_b]}) as proxy:
            for site, credentials, passes in (
                (a, a.client, True),
                (a, other, False),
                (b, a.client, False),
                (b, other, True),
            ):
                client = Tls13Client(server_name=site.name.encode(), alpn=[b"h2", b"http/1.1"])
                with HostileClient(proxy.address, client) as visitor:
                    visitor.greet()
                    assert client.selected_alpn == (b"http/1.1" if site is a else b"h2")
                    visitor.send(visitor.flight(credentials))
                    answer = visitor.read_answer()
                assert (answer.data == HELLO) == passes
                reason = proxy.connection_record(visitor.port)["reason"]
                assert reason == ("closed" if passes else "identity_not_allowed")
        assert [1, 1] == [len(site.backend.connections) for site in (a, b)]
