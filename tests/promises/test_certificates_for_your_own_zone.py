"""`aop-proxy certificates` makes what Cloudflare takes and shows, and what it prints can be copied and works.

OpenSSL's command line judges the certificates. Our proxy and NGINX are given the CA, and visitors come with the client
certificate, with those of others, and with none. The printed lines of configuration are what the proxy runs on, also
while certificates change over, and the printed calls of the API are run by a shell with nothing exchanged but the
address, against a server that records them. What cannot be seen here: Cloudflare itself.
"""

import contextlib
import hashlib
import http.server
import json
import os
import shutil
import ssl
import subprocess
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors import (
    ONE_WORKER,
    Answer,
    Proxy,
    RecordingBackend,
    ask,
    client_context,
    free_port,
    require_peer,
    run_command,
    running,
    wait_for_port,
)
from certificates import Authority, CredentialFiles

NAME = "www.example.com"
NO_CERTIFICATE = "No required SSL certificate was sent"
CERTIFICATE_ERROR = "The SSL certificate error"
NOT_ALLOWED = "The SSL certificate is not allowed here"


@dataclass(frozen=True)
class Made:
    """A directory of certificates, and what was printed with the last of them."""

    directory: Path
    printed: str

    def pair(self, stem: str = "client") -> CredentialFiles:
        return CredentialFiles(self.directory / f"{stem}.pem", self.directory / f"{stem}.key")

    @property
    def paragraphs(self) -> list[str]:
        return [textwrap.dedent(block) for block in self.printed.split("\n\n")]

    @property
    def clients(self) -> list[dict[str, Any]]:
        """Each `clients:` of a configuration that was printed, in order."""
        return [yaml.safe_load(block)["clients"] for block in self.paragraphs if block.startswith("clients:")]

    @property
    def commands(self) -> list[str]:
        """Each group of shell commands that was printed, in order."""
        return [block for block in self.paragraphs if "curl " in block]


def make(directory: Path, *more: str) -> Made:
    done = run_command("certificates", "--out", directory, "--name", NAME, *more)
    assert (done.exit_code, done.stderr) == (0, "")
    return Made(directory, done.stdout)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A CA and a client certificate, in a directory whose name a shell and YAML would misread."""
    return make(tmp_path / "the zone's #1: certificates")


def fingerprint(pair: CredentialFiles) -> str:
    """SHA-256 of the certificate."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())).hexdigest()


def keep(pair: CredentialFiles, directory: Path) -> CredentialFiles:
    """A copy that a renewal does not touch."""
    directory.mkdir()
    copies = (Path(shutil.copy(path, directory)) for path in (pair.certificate, pair.private_key))
    return CredentialFiles(*copies)


# OpenSSL


def openssl(directory: Path, *arguments: str) -> tuple[int, str]:
    command = [require_peer("openssl"), *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_openssl_verifies_the_client_certificate(made: Made) -> None:
    """As a client's, by the strictest rules, against this CA and nothing else; not as a server's, nor as a CA."""
    verify = ("verify", "-x509_strict", "-CAfile", "ca.pem")
    assert openssl(made.directory, *verify, "-purpose", "sslclient", "client.pem") == (0, "client.pem: OK\n")
    assert openssl(made.directory, *verify, "-check_ss_sig", "ca.pem") == (0, "ca.pem: OK\n")
    for purpose in ("sslserver", "smimesign"):
        code, said = openssl(made.directory, *verify, "-purpose", purpose, "client.pem")
        assert code != 0
        assert "unsuitable certificate purpose" in said


def test_openssl_shows_a_leaf_for_clients(made: Made) -> None:
    """What Cloudflare and a strict TLS library at its edge look at: a leaf, its usage, its purpose, key identifiers."""
    _, text = openssl(made.directory, "x509", "-in", "client.pem", "-noout", "-text")
    lines = [line.strip() for line in text.splitlines()]
    for name, value in (
        ("X509v3 Basic Constraints: critical", "CA:FALSE"),
        ("X509v3 Key Usage: critical", "Digital Signature"),
        ("X509v3 Extended Key Usage:", "TLS Web Client Authentication"),
        ("X509v3 Subject Alternative Name:", f"DNS:{NAME}"),
    ):
        assert lines[lines.index(name) + 1] == value
    assert "NIST CURVE: P-256" in lines
    _, of_leaf = openssl(made.directory, "x509", "-in", "client.pem", "-noout", "-ext", "authorityKeyIdentifier")
    _, of_ca = openssl(made.directory, "x509", "-in", "ca.pem", "-noout", "-ext", "subjectKeyIdentifier")
    assert of_leaf.split()[-1] == of_ca.split()[-1]
    _, text = openssl(made.directory, "x509", "-in", "ca.pem", "-noout", "-text")
    assert "CA:TRUE, pathlen:0" in text
    assert "Certificate Sign, CRL Sign" in text


# Our proxy


def refused(answer: Answer, sentence: str) -> None:
    assert answer.status == 400
    assert f"<center>{sentence}</center>" in answer.body


def strangers(made: Made, tmp_path: Path) -> list[tuple[CredentialFiles | None, str]]:
    """Visitors that must not pass, and what each is told."""
    of_that_name = make(tmp_path / "another of that name")
    return [
        (None, NO_CERTIFICATE),
        (Authority().issue(NAME, self_signed=True).write(tmp_path, "self-signed"), CERTIFICATE_ERROR),
        (Authority().issue(NAME).write(tmp_path, "foreign"), CERTIFICATE_ERROR),
        (of_that_name.pair(), CERTIFICATE_ERROR),
        (made.pair("ca"), CERTIFICATE_ERROR),
    ]


def test_our_proxy_lets_in_this_certificate_alone(
    made: Made, site: dict[str, Any], backend: RecordingBackend, tmp_path: Path
) -> None:
    """On the printed configuration, with and without the fingerprint; others read their page, the CA itself as well."""
    *_, strict = made.clients
    assert list(strict) == ["ca", "fingerprints"]
    visitors = strangers(made, tmp_path)
    for clients in (strict, {"ca": strict["ca"]}, {**strict, "names": [NAME]}):
        with Proxy({**ONE_WORKER, "sites": [{**site, "clients": clients}]}) as proxy:
            for credentials, sentence in visitors:
                refused(ask(proxy.address, client_context(credentials)), sentence)
            assert backend.connections == []
            assert ask(proxy.address, client_context(made.pair())).status == 200
            record = proxy.connection_record(verdict="accepted")
            assert (record["fingerprint"], record["subject"]) == (fingerprint(made.pair()), f"CN={NAME}")
        backend.forget()


def test_check_has_nothing_against_the_printed_configuration(made: Made, site: dict[str, Any], tmp_path: Path) -> None:
    """Neither while Cloudflare's shared certificate is listed beside it nor afterwards."""
    beside, alone = made.clients
    assert (beside["ca"], alone["ca"]) == (
        ["cloudflare", str(made.directory / "ca.pem")],
        [str(made.directory / "ca.pem")],
    )
    for clients in (beside, alone):
        path = tmp_path / "proxy.yaml"
        path.write_text(yaml.safe_dump({"listen": ["127.0.0.1:0"], "sites": [{**site, "clients": clients}]}))
        done = run_command("check", "--config", path)
        assert (done.exit_code, "ca.pem" in done.stdout) == (0, False)


def test_old_and_new_pass_while_both_are_listed(
    made: Made, site: dict[str, Any], backend: RecordingBackend, tmp_path: Path
) -> None:
    """A renewal: both pass on the printed configuration; without the old fingerprint the old one no longer does."""
    old = keep(made.pair(), tmp_path / "kept")
    renewed = make(made.directory, "--renew")
    (both,) = renewed.clients
    assert both["fingerprints"] == [fingerprint(old), fingerprint(renewed.pair())]
    for clients in (both, {"ca": both["ca"]}):
        with Proxy({**ONE_WORKER, "sites": [{**site, "clients": clients}]}) as proxy:
            for pair in (old, renewed.pair()):
                assert ask(proxy.address, client_context(pair)).status == 200
    new_alone = {**both, "fingerprints": [fingerprint(renewed.pair())]}
    with Proxy({**ONE_WORKER, "sites": [{**site, "clients": new_alone}]}) as proxy:
        refused(ask(proxy.address, client_context(old)), NOT_ALLOWED)
        assert ask(proxy.address, client_context(renewed.pair())).status == 200


@pytest.mark.parametrize("new_first", [False, True])
def test_two_cas_of_one_name_and_day_pass_side_by_side(
    made: Made, site: dict[str, Any], backend: RecordingBackend, tmp_path: Path, new_first: bool
) -> None:
    """A new CA: in either order both are accepted, though nothing but their keys tells them apart."""
    new = make(tmp_path / "new")
    authorities = [str(new.directory / "ca.pem"), str(made.directory / "ca.pem")]
    clients = {"ca": authorities if new_first else authorities[::-1]}
    with Proxy({**ONE_WORKER, "sites": [{**site, "clients": clients}]}) as proxy:
        for pair in (made.pair(), new.pair()):
            assert ask(proxy.address, client_context(pair)).status == 200


# NGINX

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
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_certificate {certificate};
        ssl_certificate_key {private_key};
        ssl_client_certificate "{ca}";
        ssl_verify_client on;
        location / {{ return 200 "passed"; }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(directory: Path, server: CredentialFiles, ca: Path) -> Iterator[tuple[str, int]]:
    """NGINX that demands a certificate of this CA; its address."""
    directory.mkdir()
    port = free_port()
    configuration = NGINX.format(port=port, certificate=server.certificate, private_key=server.private_key, ca=ca)
    (directory / "nginx.conf").write_text(configuration)
    command = [require_peer("nginx"), "-p", str(directory), "-c", "nginx.conf", "-e", "stderr"]
    if os.geteuid() == 0:
        command += ["-g", "user root;"]
    with running(command) as process:
        wait_for_port(port, process)
        yield "127.0.0.1", port


def test_nginx_lets_in_this_certificate_alone(made: Made, server_credentials: CredentialFiles, tmp_path: Path) -> None:
    """As Cloudflare's instructions configure it; everyone else gets its 400, and a renewed certificate passes too."""
    with nginx(tmp_path / "nginx", server_credentials, made.directory / "ca.pem") as address:
        for credentials, sentence in strangers(made, tmp_path):
            refused(ask(address, client_context(credentials)), sentence)
        old = keep(made.pair(), tmp_path / "kept")
        for pair in (old, make(made.directory, "--renew").pair()):
            assert (answer := ask(address, client_context(pair))).status == 200
            assert answer.body == "passed"


# The API

ID = "0123456789abcdef0123456789abcdef"
API = "https://api.cloudflare.com/client/v4"


@dataclass(frozen=True)
class Call:
    """What a call of the API consisted of."""

    request: str
    authorization: str | None
    content_type: str | None
    body: Any


class Api(http.server.BaseHTTPRequestHandler):
    """Answers as Cloudflare does to an upload, and records what it was asked."""

    calls: list[Call]

    def answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        headers = (self.headers["Authorization"], self.headers["Content-Type"])
        self.calls.append(Call(f"{self.command} {self.path}", *headers, body))
        reply = json.dumps(
            {"success": True, "errors": [], "result": {"id": ID, "status": "pending_deployment"}}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@contextlib.contextmanager
def recording_api() -> Iterator[tuple[str, list[Call]]]:
    """Its address, and the calls so far."""
    calls: list[Call] = []
    handler = type("RecordingApi", (Api,), {"calls": calls})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", calls
        finally:
            server.shutdown()
            thread.join()


def test_the_printed_calls_upload_the_files(made: Made) -> None:
    """For the zone: the pair, then the switch. For a host: the pair, then the association with the id that came back."""
    for peer in ("curl", "jq"):
        require_peer(peer)
    pair = {"certificate": made.pair().certificate.read_text(), "private_key": made.pair().private_key.read_text()}
    environment = {**os.environ, "CLOUDFLARE_API_TOKEN": "token", "CLOUDFLARE_ZONE_ID": "zone"}
    zone = "/zones/zone/origin_tls_client_auth"
    association = {"hostname": NAME, "cert_id": ID, "enabled": True}
    expected = [
        [(f"POST {zone}", pair), (f"PUT {zone}/settings", {"enabled": True})],
        [(f"POST {zone}/hostnames/certificates", pair), (f"PUT {zone}/hostnames", {"config": [association]})],
    ]
    assert len(made.commands) == len(expected)
    for command, calls_expected in zip(made.commands, expected, strict=True):
        assert command.count(API) == 2
        with recording_api() as (address, calls):
            script = command.replace(API, address)
            done = subprocess.run(
                ["sh", "-eu", "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=30
            )
        assert done.returncode == 0, done.stderr
        assert calls == [Call(request, "Bearer token", "application/json", body) for request, body in calls_expected]


def test_the_printed_command_renews(made: Made) -> None:
    """The last lines name the command for the next time, quoted for a shell."""
    (line,) = [line for line in made.printed.splitlines() if "aop-proxy certificates" in line]
    command = line[line.index("aop-proxy certificates") :]
    words = subprocess.run(
        ["sh", "-c", f'printf "%s\\n" {command}'], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words == ["aop-proxy", "certificates", "--out", str(made.directory), "--name", NAME, "--renew"]
