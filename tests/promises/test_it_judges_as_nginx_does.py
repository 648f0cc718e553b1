"""Every certificate we can think of, shown to NGINX and to us on the same sites: who passes there passes here.

Both trust the same CAs, hold the same revocation lists and run the same OpenSSL. NGINX has OpenSSL accept any certificate
and judges it behind the handshake; we have OpenSSL judge. Where we differ stands in `DECIDED_OTHERWISE` and
`SAID_OTHERWISE`, each with its reason: an entry that is no longer true fails.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from actors import (
    ONE_WORKER,
    Answer,
    Proxy,
    RecordingBackend,
    ask,
    client_context,
    free_port,
    reply,
    require_peer,
    running,
    wait_for_port,
)
from certificates import ACCEPTED, DAY, REFUSED, SIGNING, Authority, CredentialFiles, Credentials, key_pem

PASSED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\npassed"
SITES = {
    "plain.example": "the CA alone",
    "listed.example": "its list, which names nobody",
    "revoked.example": "its list, which names everybody",
    "lower.example": "an intermediate CA and the one above it, each with a list that names nobody",
    "pinned.example": "an intermediate CA, and not the one above it",
    "other.example": "another CA",
}
"""What each site trusts."""


def _root_itself(ours: Authority) -> Credentials:
    """The CA's own certificate, in the hands of one who has its key."""
    return Credentials(ours.certificate, (), ours.key, key_pem(ours.key))


def _deep(ours: Authority) -> Credentials:
    return ours.intermediate(path_length=1).intermediate("Deeper CA").issue()


def _in_wrong_order(ours: Authority) -> Credentials:
    leaf = _deep(ours)
    return replace(leaf, chain=leaf.chain[::-1])


def _with_the_root(ours: Authority) -> Credentials:
    leaf = ours.intermediate().issue()
    return replace(leaf, chain=(*leaf.chain, ours.certificate))


MORE: dict[str, Callable[[Authority], Credentials]] = {
    "root_itself": _root_itself,
    "ca_that_may_sign_in": lambda ours: ours.issue("ca.example", usage=SIGNING, is_ca=True),
    "two_intermediates": _deep,
    "chain_in_wrong_order": _in_wrong_order,
    "chain_with_the_root": _with_the_root,
    "ends_in_an_hour": lambda ours: ours.issue(validity=(-DAY, DAY / 24)),
}
"""Specimens beyond those that every test knows."""
SPECIMENS = {**ACCEPTED, **REFUSED, **MORE}
PEOPLE = ["nobody", *SPECIMENS, "of the intermediate", "of another CA"]

DECIDED_OTHERWISE = {
    ("of the intermediate", "pinned.example"): (
        "we take an intermediate that is listed for a trust anchor of its own (X509_V_FLAG_PARTIAL_CHAIN), NGINX wants the"
        " root as well: 'unable to get issuer certificate'"
    ),
}
"""Who comes, and where: we let in whom NGINX refuses, or the other way round."""
SAID_OTHERWISE = {
    "stolen": "a wrong signature ends NGINX's handshake with the alert decrypt_error; our page comes in its place",
}
"""Refused by both, but NGINX does not say it in words."""


@dataclass(frozen=True)
class Judges:
    """Two servers with the same sites, and everyone who comes."""

    nginx: tuple[str, int]
    proxy: Proxy
    people: dict[str, CredentialFiles | None]


NGINX = """
daemon off;
error_log stderr;
pid nginx.pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    ssl_protocols TLSv1.3;
    ssl_session_tickets off;
    ssl_verify_depth 100;
    {servers}
}}
"""
SERVER = """
    server {{
        listen 127.0.0.1:{port} ssl;
        server_name {name};
        ssl_certificate {certificate};
        ssl_certificate_key {private_key};
        ssl_client_certificate "{ca}";
        {crl}
        ssl_verify_client on;
        location / {{ return 200 "passed"; }}
    }}
"""


@pytest.fixture(scope="module")
def judges(server_credentials: CredentialFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judges]:
    directory = tmp_path_factory.mktemp("judges")
    ours, other = Authority("Our CA"), Authority("Another CA")
    pinned = ours.intermediate("Pinned CA")
    coming = {name: make(ours) for name, make in SPECIMENS.items()}
    revoked = ours.revoke(*coming.values())
    coming |= {"of the intermediate": pinned.issue(), "of another CA": other.issue()}
    trusted = {
        "plain.example": (ours.pem, b""),
        "listed.example": (ours.pem, ours.revoke()),
        "revoked.example": (ours.pem, revoked),
        "lower.example": (pinned.pem + ours.pem, pinned.revoke() + ours.revoke()),
        "pinned.example": (pinned.pem, b""),
        "other.example": (other.pem, b""),
    }
    port, servers, sites = free_port(), [], []
    own = {"certificate": str(server_credentials.certificate), "private_key": str(server_credentials.private_key)}
    with contextlib.ExitStack() as stack:
        for name in SITES:
            backend = stack.enter_context(RecordingBackend(reply(PASSED)))
            files = {kind: directory / f"{name}.{kind}" for kind in ("ca", "crl")}
            for path, content in zip(files.values(), trusted[name], strict=True):
                path.write_bytes(content)
            lists = [str(files["crl"])] if trusted[name][1] else []
            crl = f"ssl_crl {lists[0]};" if lists else ""
            servers.append(SERVER.format(port=port, name=name, ca=files["ca"], crl=crl, **own))
            clients = {"ca": [str(files["ca"])], "crl": lists}
            sites.append({**own, "hosts": [name], "clients": clients, "upstream": backend.url})
        (directory / "nginx.conf").write_text(NGINX.format(servers="".join(servers)))
        command = [require_peer("nginx"), "-p", str(directory), "-c", "nginx.conf", "-e", "stderr"]
        command += ["-g", "user root;"] if os.geteuid() == 0 else []
        wait_for_port(port, stack.enter_context(running(command)))
        proxy = stack.enter_context(Proxy({**ONE_WORKER, "sites": sites}))
        people = {name: credentials.write(directory, name) for name, credentials in coming.items()}
        yield Judges(("127.0.0.1", port), proxy, {"nobody": None, **people})


def visit(address: tuple[str, int], name: str, credentials: CredentialFiles | None) -> Answer:
    request = f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode()
    return ask(address, client_context(credentials), request, server_name=name)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("who", PEOPLE)
def test_the_same_verdict(judges: Judges, who: str, site: str) -> None:
    """Who passes NGINX passes us, and who does not reads NGINX's sentence from us too."""
    theirs = visit(judges.nginx, site, judges.people[who])
    ours = visit(judges.proxy.address, site, judges.people[who])
    assert ((who, site) in DECIDED_OTHERWISE) == ((theirs.status == 200) != (ours.status == 200))
    if (who, site) in DECIDED_OTHERWISE:
        return
    assert ours.status in (200, 400)
    assert ("passed" in ours.body) == (ours.status == 200)
    assert (who in SAID_OTHERWISE) == (theirs.status != ours.status)
    if ours.status == theirs.status == 400:
        sentences = [answer.body.partition("</h1></center>")[2].partition("</center>")[0] for answer in (theirs, ours)]
        assert sentences[0] == sentences[1]
        assert "certificate" in sentences[0]
