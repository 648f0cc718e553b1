"""What a reload replaces: built whole from values and bytes, or every problem of every file at once."""

import datetime as dt
import hashlib
import re
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from actors import client_context
from aop_proxy import snapshot
from aop_proxy.credentials import Findings
from aop_proxy.model import (
    CLOUDFLARE,
    SYSTEM,
    Bundle,
    Clients,
    ConfigurationError,
    Http,
    Listen,
    Mode,
    Problem,
    Settings,
    Site,
    Upstream,
    UpstreamTls,
)
from aop_proxy.policy import Rules
from aop_proxy.reasons import Reason
from aop_proxy.snapshot import Snapshot
from aop_proxy.tls import Accepted, KeyLog, TlsSession
from certificates import DAY, QUARTER, Authority, Credentials, key_pem

UPSTREAM = (Upstream("http://127.0.0.1:80", "127.0.0.1", 80),)
CLOUDFLARE_PEM = (Path(__file__).parents[1] / "certs" / "cloudflare_origin_pull_ca.pem").read_bytes()
SHARED_CA = Clients((CLOUDFLARE,))


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority("First CA")


@pytest.fixture(scope="module")
def other_ca() -> Authority:
    return Authority("Second CA")


@pytest.fixture(scope="module")
def server() -> Credentials:
    return Authority("Server CA").issue_server("origin.example")


@pytest.fixture(scope="module")
def key_log() -> Iterator[KeyLog]:
    pipe = KeyLog()
    yield pipe
    pipe.close()


@pytest.fixture(scope="module")
def files(ca: Authority, other_ca: Authority, server: Credentials) -> dict[str, bytes]:
    """Files of any name that a test may name in a site."""
    assert server.key is not None
    return {
        "server.pem": server.certificate_pem,
        "server.key": server.private_pem,
        "both.pem": server.certificate_pem + server.private_pem,
        "locked.key": key_pem(server.key, b"secret"),
        "password": b"secret\r\n",
        "ca": ca.pem,
        "other-ca": other_ca.pem,
        "cas": ca.pem.rstrip(b"\n") + other_ca.pem,
        "html": b"<html></html>",
        CLOUDFLARE: CLOUDFLARE_PEM,
    }


def site(ca: tuple[str, ...] = ("ca",), crl: tuple[str, ...] = (), **more: Any) -> Site:
    given: dict[str, Any] = {"certificate": "server.pem", "private_key": "server.key", "upstream": UPSTREAM}
    return Site(**{**given, "clients": Clients(ca, crl), **more})


def bundle(files: dict[str, bytes], *sites: Site, **more: Any) -> Bundle:
    return Bundle(Settings((Listen("127.0.0.1", 0),), sites, **more), files)


def problems(one: Bundle, key_log: KeyLog | None = None) -> list[Problem]:
    with pytest.raises(ConfigurationError) as caught:
        snapshot.build(one, 1, key_log)
    return list(caught.value.problems)


@pytest.fixture
def verdict(tmp_path: Path) -> Callable[..., Reason | None]:
    """Why the clients of a site refuse a certificate, in a handshake in memory; None if they accept it."""

    def judge(built: Snapshot, credentials: Credentials | None, number: int = 0) -> Reason | None:
        context = client_context(credentials.write(tmp_path, "client") if credentials else None)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing, server_hostname="origin.example")
        session = TlsSession(built.gates[number].context, built.quiet_context, built.key_log)
        while True:
            try:
                client.do_handshake()
            except ssl.SSLWantReadError:
                pass
            outcome = session.handshake(outgoing.read())
            if outcome is not None:
                return None if isinstance(outcome, Accepted) else outcome.reason
            incoming.write(session.take_output())

    return judge


# What is built


def test_a_snapshot_of_one_site(
    files: dict[str, bytes], key_log: KeyLog, ca: Authority, server: Credentials, verdict: Callable[..., Reason | None]
) -> None:
    """It judges clients by their CA, and holds the settings, the rules and when all of it ends."""
    clients = Clients(("ca",), fingerprints=frozenset({"ab" * 32}), names=("edge.example",))
    one = bundle(files, site(hosts=("a.example", "b.example"), clients=clients))
    built = snapshot.build(one, 7, key_log)
    assert (built.generation, built.settings, built.key_log, built.advice) == (7, one.settings, key_log, ())
    assert [gate.name for gate in built.gates] == ["a.example"]
    assert built.gates[0].rules == Rules(frozenset({"ab" * 32}), frozenset({"edge.example"}))
    assert [built.hosts.find(name) for name in ("b.example", "c.example", None)] == [0, None, None]
    assert built.name_reading_context is None
    assert [(expiry.path, expiry.subject, expiry.not_after) for expiry in built.expiries] == [
        ("sites[0].clients.ca[0]", "CN=First CA", ca.certificate.not_valid_after_utc),
        ("sites[0].certificate", "CN=origin.example", server.certificate.not_valid_after_utc),
    ]
    assert verdict(built, ca.issue()) is None
    assert verdict(built, None) is Reason.NO_CERTIFICATE
    assert verdict(built, Authority("Stranger").issue()) is Reason.UNKNOWN_CA


def test_every_context_is_closed(files: dict[str, bytes]) -> None:
    """Whatever there is in a snapshot that could shake hands requires a certificate and TLS 1.3."""
    built = snapshot.build(bundle(files, site(("ca",)), site(("other-ca",), hosts=("b.example",))), 1, None)
    contexts = [*(gate.context for gate in built.gates), built.quiet_context, built.name_reading_context]
    assert len(contexts) == 4
    for context in contexts:
        assert context is not None
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert not context.post_handshake_auth
        assert context.num_tickets == 0
        assert context.cert_store_stats()["x509_ca"] > 0


@pytest.mark.parametrize("names", [("ca", "other-ca"), ("cas",)], ids=["two files", "one file, glued"])
def test_several_cas(
    files: dict[str, bytes],
    ca: Authority,
    other_ca: Authority,
    verdict: Callable[..., Reason | None],
    names: tuple[str, ...],
) -> None:
    """A client of any of them passes, and nobody else."""
    built = snapshot.build(bundle(files, site(names)), 1, None)
    clients = [ca.issue(), other_ca.issue(), ca.intermediate().issue(), Authority("First CA").issue()]
    assert [verdict(built, client) for client in clients] == [None, None, None, Reason.UNKNOWN_CA]
    assert [expiry.subject for expiry in built.expiries[:2]] == ["CN=First CA", "CN=Second CA"]


def test_each_site_has_its_own_cas(
    files: dict[str, bytes], ca: Authority, other_ca: Authority, verdict: Callable[..., Reason | None]
) -> None:
    """A client of one site is a stranger to the other."""
    sites = site(("ca",), hosts=("a.example",)), site(("other-ca",), hosts=("b.example",))
    built = snapshot.build(bundle(files, *sites), 1, None)
    assert [verdict(built, ca.issue(), number) for number in (0, 1)] == [None, Reason.UNKNOWN_CA]
    assert [verdict(built, other_ca.issue(), number) for number in (0, 1)] == [Reason.UNKNOWN_CA, None]
    assert [built.hosts.find(name) for name in ("a.example", "B.EXAMPLE.")] == [0, 1]


def test_a_site_without_hosts_is_called_so(files: dict[str, bytes]) -> None:
    """The log has a name for it."""
    assert [gate.name for gate in snapshot.build(bundle(files, site()), 1, None).gates] == ["*"]


@pytest.mark.parametrize(
    ("sites", "unknown_hosts", "expected"), [(1, "page", False), (1, "reject", True), (2, "page", True)]
)
def test_names_are_read_first_where_they_matter(
    files: dict[str, bytes], sites: int, unknown_hosts: str, expected: bool
) -> None:
    """One site takes every client as it comes, unless it rejects unknown hosts."""
    some = [site(hosts=(f"{number}.example",)) for number in range(sites)]
    built = snapshot.build(bundle(files, *some, unknown_hosts=unknown_hosts), 1, None)
    assert (built.name_reading_context is not None) is expected


@pytest.mark.parametrize("both", [False, True])
def test_a_locked_key(files: dict[str, bytes], both: bool) -> None:
    """The password is the file's content without the newline at its end; certificate and key may be one file."""
    locked = {**files, "server.pem": files["server.pem"] + files["locked.key"]} if both else files
    key = "server.pem" if both else "locked.key"
    built = snapshot.build(bundle(locked, site(private_key=key, private_key_password_file="password")), 1, None)
    assert len(built.gates) == 1


# Revocation


def test_a_revoked_client(
    files: dict[str, bytes], ca: Authority, other_ca: Authority, verdict: Callable[..., Reason | None]
) -> None:
    """With a CRL for each CA, revoked clients of each are refused and the others pass."""
    good, bad, other_good, other_bad = ca.issue(), ca.issue(), other_ca.issue(), other_ca.issue()
    lists = {**files, "crl": ca.revoke(bad).rstrip(b"\n") + other_ca.revoke(other_bad)}
    built = snapshot.build(bundle(lists, site(("ca", "other-ca"), ("crl",))), 1, None)
    revoked = Reason.REVOKED
    assert [verdict(built, one) for one in (good, bad, other_good, other_bad)] == [None, revoked, None, revoked]


def test_lists_in_several_files(files: dict[str, bytes], ca: Authority, other_ca: Authority) -> None:
    """Each CA's list may stand in a file of its own."""
    lists = {**files, "one": ca.revoke(ca.issue()), "two": other_ca.revoke(other_ca.issue())}
    assert snapshot.build(bundle(lists, site(("ca", "other-ca"), ("one", "two"))), 1, None).advice[:0] == ()


def test_a_ca_without_a_list(files: dict[str, bytes], ca: Authority) -> None:
    """OpenSSL would refuse every client of the other CA, so it is told at the start."""
    lists = {**files, "crl": ca.revoke(ca.issue())}
    (problem,) = problems(bundle(lists, site(("ca", "other-ca"), ("crl",))))
    assert problem.path == "sites[0].clients.crl"
    assert "no CRL of 'CN=Second CA'" in problem.sentence
    assert "First CA" not in problem.sentence


def test_lists_up_to_a_root(files: dict[str, bytes], ca: Authority, verdict: Callable[..., Reason | None]) -> None:
    """Where a CA of the site is an intermediate, its clients are looked up in its list and in the root's."""
    lower = ca.intermediate("Lower CA")
    good, bad = lower.issue(), lower.issue()
    lists = {**files, "lower": lower.pem, "one": lower.revoke(bad), "root's": ca.revoke()}
    both = snapshot.build(bundle(lists, site(("lower", "ca"), ("one", "root's"))), 1, None)
    assert [verdict(both, one) for one in (good, bad)] == [None, Reason.REVOKED]
    lists["root's"] = ca.revoke(replace(good, certificate=lower.certificate))
    revoked = snapshot.build(bundle(lists, site(("lower", "ca"), ("one", "root's"))), 1, None)
    assert verdict(revoked, good) is Reason.REVOKED


def test_lists_below_a_root(files: dict[str, bytes], ca: Authority, verdict: Callable[..., Reason | None]) -> None:
    """An intermediate alone will do without lists; with one OpenSSL would refuse everybody, so it is told."""
    lower = ca.intermediate("Lower CA")
    lists = {**files, "lower": lower.pem, "one": lower.revoke()}
    assert verdict(snapshot.build(bundle(lists, site(("lower",))), 1, None), lower.issue()) is None
    (problem,) = problems(bundle(lists, site(("lower",), ("one",))))
    assert problem.path == "sites[0].clients.crl"
    assert "the CA above 'CN=Lower CA' is not among `ca`: add 'CN=First CA' there" in problem.sentence


@pytest.mark.parametrize("content", [b"<html>", b"-----BEGIN X509 CRL-----\nMIIB\n-----END X509 CRL-----\n"])
def test_a_list_that_cannot_be_read(files: dict[str, bytes], content: bytes) -> None:
    """A revocation list that is none stops a start; nobody is let in unchecked."""
    found = problems(bundle({**files, "crl": content}, site(crl=("crl",))))
    assert [problem.path for problem in found] == ["sites[0].clients.crl[0]", "sites[0].clients.crl"]


def test_a_list_that_revokes_nobody(
    files: dict[str, bytes], ca: Authority, verdict: Callable[..., Reason | None]
) -> None:
    """A CRL without entries is a CRL."""
    built = snapshot.build(bundle({**files, "crl": ca.revoke()}, site(crl=("crl",))), 1, None)
    assert verdict(built, ca.issue()) is None


# What is wrong


def test_every_problem_of_every_site_at_once(files: dict[str, bytes], ca: Authority) -> None:
    """One run names them all, each by its path, and a file named twice is named twice."""
    wrong = {
        **files,
        "leaf": ca.issue().certificate_pem,
        "stranger.key": ca.issue().private_pem,
        "client.pem": (client := ca.issue()).certificate_pem + client.private_pem,
        "empty": b"\n",
    }
    found = problems(
        bundle(
            wrong,
            site(("leaf", "ca", "html"), ("html",)),
            site(private_key="stranger.key"),
            site(certificate="html", private_key="html"),
            site(certificate="client.pem", private_key="client.pem"),
            site(certificate="both.pem", private_key="both.pem"),
            site(private_key="locked.key"),
            site(("empty",)),
        )
    )
    assert [problem.path for problem in found] == [
        "sites[0].clients.ca[0]",
        "sites[0].clients.ca[2]",
        "sites[0].clients.crl[0]",
        "sites[0].clients.crl",
        "sites[1].private_key",
        "sites[2].certificate",
        "sites[2].certificate",
        "sites[3].certificate",
        "sites[5].private_key",
        "sites[6].clients.ca[0]",
    ]


@pytest.mark.parametrize(
    ("make", "paths"),
    [
        (lambda files: {**files, "ca": b"\n"}, ["sites[0].clients.ca[0]"]),
        (lambda files: {**files, "server.key": b"\n"}, ["sites[0].private_key"]),
    ],
)
def test_half_a_site_is_no_site(
    files: dict[str, bytes], make: Callable[[dict[str, bytes]], dict[str, bytes]], paths: list[str]
) -> None:
    """Without CAs, or without credentials, nothing is built, though all else is good."""
    assert [problem.path for problem in problems(bundle(make(files), site()))] == paths


def test_what_only_openssl_refuses(files: dict[str, bytes]) -> None:
    """A pair that fits and that no TLS can sign with is a problem in OpenSSL's own word."""
    key, now = x25519.X25519PrivateKey.generate(), dt.datetime.now(dt.UTC)
    name = x509.Name.from_rfc4514_string("CN=origin.example")
    signer = Authority().key
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now + QUARTER[0], now + QUARTER[1])
    wrong = {
        **files,
        "server.pem": builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM),
        "server.key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }
    (problem,) = problems(bundle(wrong, site()))
    assert problem.path == "sites[0].certificate"
    assert "OpenSSL" in problem.sentence
    assert re.search(r"\([A-Z_]+\)", problem.sentence)


@pytest.mark.parametrize("missing", ["server.pem", "locked.key", "password", "ca", "crl"])
def test_what_could_not_be_read(files: dict[str, bytes], ca: Authority, missing: str) -> None:
    """Where a file is missing from the bundle, the others are judged all the same, and nothing is built."""
    every = {**files, "crl": ca.revoke(ca.issue()), "other-ca": b"<html>"}
    del every[missing]
    locked = site(("ca", "other-ca"), ("crl",), private_key="locked.key", private_key_password_file="password")
    assert "sites[0].clients.ca[1]" in [problem.path for problem in problems(bundle(every, locked))]
    only = {name: content for name, content in files.items() if name != "server.key"}
    assert problems(bundle(only, site())) == []


# Advice


def advice(one: Bundle, key_log: KeyLog | None) -> list[str]:
    return [problem.path for problem in snapshot.build(one, 1, key_log).advice]


def test_without_a_key_log_there_are_no_pages(files: dict[str, bytes], key_log: KeyLog) -> None:
    """Where /dev/fd cannot be used it is said, unless nobody asked for pages."""
    assert advice(bundle(files, site()), None) == ["refusal"]
    assert advice(bundle(files, site(), refusal="alert"), None) == []
    assert advice(bundle(files, site()), key_log) == []


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (site(clients=SHARED_CA), ["sites[0].clients.ca"]),
        (site(clients=SHARED_CA, hosts=("a.example",)), []),
        (site(clients=replace(SHARED_CA, names=("a",)), hosts=("a.example",)), ["sites[0].clients"]),
        (site(clients=replace(SHARED_CA, fingerprints=frozenset({"ab"})), hosts=("a.example",)), ["sites[0].clients"]),
        (site(clients=Clients(("ca",), names=("a",))), []),
    ],
)
def test_what_the_shared_ca_proves(files: dict[str, bytes], key_log: KeyLog, one: Site, expected: list[str]) -> None:
    """Who relies on Cloudflare's shared certificate for more than it proves is told so."""
    assert advice(bundle(files, one), key_log) == expected


def test_everything_that_ends_is_noted(files: dict[str, bytes], ca: Authority, server: Credentials) -> None:
    """Every CA, every list and every certificate of the server's chain, once for each key that names it."""
    soon = ca.revoke(validity=(-DAY, 10 * DAY))
    chained = Authority("Server CA").intermediate("Server Intermediate").issue_server("origin.example")
    more = {"list": soon, "server.pem": chained.certificate_pem, "server.key": chained.private_pem}
    built = snapshot.build(bundle({**files, **more}, site(clients=Clients(("ca",), ("list",)))), 1, None)
    assert [(expiry.path, expiry.subject) for expiry in built.expiries] == [
        ("sites[0].clients.ca[0]", "CN=First CA"),
        ("sites[0].clients.crl[0]", "the CRL of CN=First CA"),
        ("sites[0].certificate", "CN=origin.example"),
        ("sites[0].certificate", "CN=Server Intermediate"),
    ]
    (until,) = [expiry.not_after for expiry in built.expiries if "CRL" in expiry.subject]
    assert x509.load_pem_x509_crl(soon).next_update_utc == until


def to_backends(*tls: UpstreamTls) -> tuple[Upstream, ...]:
    return tuple(Upstream("https://app:443", "app", 443, tls=one) for one in tls)


def test_sites_share_what_they_need_for_backends(files: dict[str, bytes], key_log: KeyLog) -> None:
    """One context for all with the same trust, whatever name each wants; others for others."""
    files = {**files, SYSTEM: files["other-ca"]}
    one, same = UpstreamTls("ca", "a.example"), UpstreamTls("ca", "b.example")
    sites = [
        site(hosts=(f"{number}.example",), upstream=to_backends(*tls))
        for number, tls in enumerate([(one, same), (same,), (UpstreamTls(),)])
    ]
    built = snapshot.build(bundle(files, *sites), 1, key_log)
    contexts = [backend.contexts["http/1.1"] for gate in built.gates for backend in gate.backends]
    assert [contexts[0]] * 3 == contexts[:3]
    assert contexts[3] is not contexts[0]
    assert [["http/1.1"]] * 4 == [list(backend.contexts) for gate in built.gates for backend in gate.backends]


def test_problems_of_backends(files: dict[str, bytes]) -> None:
    """Each at its key, once however many protocols are spoken."""
    pair = UpstreamTls("server.key", None, "server.pem", "server.key")
    found = problems(bundle(files, site(alpn=("h2", "http/1.1"), upstream=to_backends(pair))))
    assert ["sites[0].upstream[0].ca", "sites[0].upstream[0].certificate"] == [problem.path for problem in found]


def test_sites_are_built_one_by_one(files: dict[str, bytes], key_log: KeyLog) -> None:
    """Others have their turn after each; what is finished knows the keys that need no second look."""
    sites = (site(hosts=("a.example",)), site(hosts=("b.example",)))
    builder = snapshot.Builder(Bundle(Settings((Listen("127.0.0.1", 0),), sites), files), key_log, Findings())
    assert len(list(builder.build_gates())) == 2
    built = builder.finish(3)
    assert ([gate.name for gate in built.gates], built.generation) == (["a.example", "b.example"], 3)
    assert built.sound_keys == {hashlib.sha256(files["server.key"].strip()).digest()}


def test_secrets(files: dict[str, bytes], key_log: KeyLog) -> None:
    """One a line, of printable ASCII, in a header that is nobody else's."""
    right = {**files, "secret": b"one\r\ntwo \n\n"}
    with_secret = site(mode=Mode.HTTP, http=Http(secret_header="X-Secret", secret_file="secret"))
    (gate,) = snapshot.build(bundle(right, with_secret), 1, key_log).gates
    assert gate.secret is not None
    assert [gate.secret.is_met_by([word]) for word in (b"one", b"two", b"")] == [True, True, False]
    for content, header, path in [
        (b"\n", "X-Secret", "secret_file"),
        ("schön".encode(), "X-Secret", "secret_file"),
        (b"one", "X-Forwarded-For", "secret_header"),
        (b"one", "Host", "secret_header"),
    ]:
        wrong = site(mode=Mode.HTTP, http=Http(secret_header=header, secret_file="secret"))
        with pytest.raises(ConfigurationError) as raised:
            snapshot.build(bundle({**files, "secret": content}, wrong), 1, key_log)
        assert [problem.path for problem in raised.value.problems] == [f"sites[0].http.{path}"]
