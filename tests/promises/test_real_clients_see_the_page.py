"""The clients that people use show the 400 page, where other servers that verify in the handshake show a TLS error.

Each program is run as its users run it, without a certificate and with one that has expired, and must print the page;
with a good certificate it must print what the backend said. It trusts our test CA: nothing is switched off to make it
succeed (Chromium alone is told to ignore that CA). What a program prints is all that is looked at, besides the backend
and the log.
"""

import http.client
import json
import os
import re
import ssl
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

from actors import (
    GET_AND_CLOSE,
    HELLO,
    ONE_WORKER,
    PATIENCE,
    Proxy,
    RecordingBackend,
    TlsClient,
    ask,
    ask_plainly,
    client_context,
    free_port,
    reply_and_close,
    require_peer,
    running,
    wait_for_port,
)
from certificates import DAY, REFUSED, Authority, CredentialFiles, Credentials
from faults import Fault, FaultyRelay

NO_CERTIFICATE = "No required SSL certificate was sent"
CERTIFICATE_ERROR = "The SSL certificate error"
PLAIN_HTTP = "The plain HTTP request was sent to HTTPS port"
WORD = "backend's word"
SUITES = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")


@pytest.fixture(scope="module")
def expired(authority: Authority) -> Credentials:
    """From the right CA, so that every client sends it, and out of date."""
    return authority.issue("latecomer.example", validity=(-2 * DAY, -DAY))


@pytest.fixture(scope="module")
def expired_credentials(expired: Credentials, tmp_path_factory: pytest.TempPathFactory) -> CredentialFiles:
    return expired.write(tmp_path_factory.mktemp("expired"), "expired")


def run(command: Sequence[str | Path], *, text: str = "", **environment: str) -> str:
    """All that a program prints, however it ends; `text` is its standard input."""
    done = subprocess.run(
        [str(word) for word in command],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=60,
        env={**os.environ, "no_proxy": "*", **environment},
        check=False,
    )
    return done.stdout


def curl(port: int, ca: Path, shown: CredentialFiles | None, *options: str | Path) -> str:
    own: list[str | Path] = ["--cert", shown.certificate, "--key", shown.private_key] if shown else []
    status = ["--write-out", "\n%{http_code}"]
    return run(["curl", "-sS", "--cacert", ca, *own, *status, *options, f"https://127.0.0.1:{port}/"])


def wget(port: int, ca: Path, shown: CredentialFiles | None) -> str:
    own = [f"--certificate={shown.certificate}", f"--private-key={shown.private_key}"] if shown else []
    options = ["-O", "-", "--tries=1", "--content-on-error", f"--ca-certificate={ca}"]
    return run(["wget", "-nv", "--server-response", *options, *own, f"https://127.0.0.1:{port}/"])


NODE = """
const fs = require("fs"), [port, ca, certificate, key] = process.argv.slice(1);
const options = {host: "127.0.0.1", port, ca: fs.readFileSync(ca), agent: false};
if (certificate) Object.assign(options, {cert: fs.readFileSync(certificate), key: fs.readFileSync(key)});
require("https").get(options, (response) => {
    process.stdout.write(response.statusCode + "\\n");
    response.pipe(process.stdout);
}).on("error", (error) => console.log(error.code, error.message));
"""


def node(port: int, ca: Path, shown: CredentialFiles | None) -> str:
    own = [shown.certificate, shown.private_key] if shown else []
    return run(["node", "-e", NODE, str(port), ca, *own])


def python(port: int, ca: Path, shown: CredentialFiles | None) -> str:
    context = ssl.create_default_context(cafile=ca)
    if shown:
        context.load_cert_chain(shown.certificate, shown.private_key)
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=context)
    connection.request("GET", "/")
    response = connection.getresponse()
    text = f"{response.status}\n{response.read().decode()}"
    connection.close()
    return text


def s_client(port: int, ca: Path, shown: CredentialFiles | None, *options: str) -> str:
    own: list[str | Path] = ["-cert", shown.certificate, "-key", shown.private_key] if shown else []
    # -ign_eof instead of -quiet: what was negotiated stays visible.
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", ca, "-ign_eof", *options, *own]
    return run(command, text=GET_AND_CLOSE.decode())


Client = Callable[[int, Path, CredentialFiles | None], str]
CLIENTS: dict[str, tuple[str, Client]] = {
    "curl": ("curl", curl),
    "wget": ("wget", wget),
    "node": ("node", node),
    "python": ("python3", python),
    "s_client": ("openssl", s_client),
}


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> Client:
    program, visit = CLIENTS[request.param]
    require_peer(program)
    return visit


def assert_page(printed: str, sentence: str, backend: RecordingBackend) -> None:
    """The program printed the status and the sentence, and the backend has seen nothing."""
    assert f"<center>{sentence}</center>" in printed
    assert re.search(r"\b400\b", printed)
    assert backend.connections == []


def test_no_certificate(client: Client, proxy: Proxy, backend: RecordingBackend, server_ca: Path) -> None:
    """Without a certificate each client prints the page for that."""
    assert_page(client(proxy.port, server_ca, None), NO_CERTIFICATE, backend)
    proxy.wait_for("connection", verdict="refused", reason="no_certificate")


def test_refused_certificate(
    client: Client, proxy: Proxy, backend: RecordingBackend, server_ca: Path, expired_credentials: CredentialFiles
) -> None:
    """With a certificate that has expired each client prints the page for that."""
    assert_page(client(proxy.port, server_ca, expired_credentials), CERTIFICATE_ERROR, backend)
    proxy.wait_for("connection", verdict="refused", reason="expired")


def test_good_certificate(
    client: Client, proxy: Proxy, backend: RecordingBackend, server_ca: Path, client_credentials: CredentialFiles
) -> None:
    """With a good certificate each client prints what the backend said."""
    backend.behaviour = reply_and_close()
    printed = client(proxy.port, server_ca, client_credentials)
    assert WORD in printed
    assert re.search(r"\b200\b", printed)
    assert len(backend.connections) == 1


# curl will not load RSA-1024 or SHA-1 at all.
@pytest.mark.parametrize("specimen", sorted(REFUSED.keys() - {"rsa_1024", "sha1"}))
def test_curl_with_every_refused_certificate(
    specimen: str, proxy: Proxy, backend: RecordingBackend, authority: Authority, server_ca: Path, tmp_path: Path
) -> None:
    """Each refused certificate that curl can be made to send has it print the page."""
    require_peer("curl")
    files = REFUSED[specimen](authority).write(tmp_path, specimen)
    assert_page(curl(proxy.port, server_ca, files), CERTIFICATE_ERROR, backend)


def keystore(credentials: Credentials, path: Path) -> Path:
    """The pair as PKCS #12, which is what Java loads."""
    encryption = BestAvailableEncryption(b"visitor")
    path.write_bytes(
        pkcs12.serialize_key_and_certificates(b"client", credentials.key, credentials.certificate, None, encryption)
    )
    return path


def test_java(
    proxy: Proxy,
    backend: RecordingBackend,
    authority: Authority,
    server_ca: Path,
    expired: Credentials,
    tmp_path: Path,
) -> None:
    """HttpsURLConnection and java.net.http.HttpClient print the pages, and the backend's word."""
    stores = ["none=", f"expired={keystore(expired, tmp_path / 'expired.p12')}"]
    command: list[str | Path] = [
        require_peer("java"),
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        Path(__file__).parent / "Visitor.java",
    ]
    url = f"https://127.0.0.1:{proxy.port}/"
    good = f"good={keystore(authority.issue(), tmp_path / 'good.p12')}"
    told = [line.split(" ", 3) for line in run([*command, url, server_ca, *stores, good]).splitlines()]
    sentences = {"none": NO_CERTIFICATE, "expired": CERTIFICATE_ERROR, "good": WORD}
    assert [line[:3] for line in told] == [
        [program, shown, status]
        for shown, status in (("none", "400"), ("expired", "400"), ("good", "200"))
        for program in ("HttpsURLConnection", "HttpClient")
    ]
    assert all(sentences[shown] in body for _, shown, _, body in told)
    for reason in ("no_certificate", "expired"):
        proxy.wait_for("connection", reason=reason, count=2)
    backend.wait_for_connection(2)


@pytest.fixture(scope="module")
def caddy_ports(
    module_proxy: Proxy,
    server_ca: Path,
    client_credentials: CredentialFiles,
    expired_credentials: CredentialFiles,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, int]]:
    """Caddy as a Go client of ours: one plain port for each certificate that it shows to us."""
    caddy = require_peer("caddy")
    directory = tmp_path_factory.mktemp("caddy")
    shown = {"none": None, "expired": expired_credentials, "good": client_credentials}
    ports = {name: free_port() for name in shown}
    servers = {}
    for name, files in shown.items():
        tls: dict[str, object] = {"ca": {"provider": "file", "pem_files": [str(server_ca)]}, "server_name": "localhost"}
        if files:
            tls |= {
                "client_certificate_file": str(files.certificate),
                "client_certificate_key_file": str(files.private_key),
            }
        forward = {
            "handler": "reverse_proxy",
            "upstreams": [{"dial": f"127.0.0.1:{module_proxy.port}"}],
            "transport": {"protocol": "http", "tls": tls},
        }
        servers[name] = {
            "listen": [f"127.0.0.1:{ports[name]}"],
            "automatic_https": {"disable": True},
            "routes": [{"handle": [forward]}],
        }
    config = directory / "caddy.json"
    config.write_text(json.dumps({"admin": {"disabled": True}, "apps": {"http": {"servers": servers}}}))
    environment = {
        **os.environ,
        "HOME": str(directory),
        "XDG_DATA_HOME": str(directory),
        "XDG_CONFIG_HOME": str(directory),
    }
    with running([caddy, "run", "--config", config], env=environment, stderr=subprocess.DEVNULL) as process:
        for port in ports.values():
            wait_for_port(port, process)
        yield ports


@pytest.mark.parametrize(("shown", "sentence"), [("none", NO_CERTIFICATE), ("expired", CERTIFICATE_ERROR)])
def test_go_is_refused(
    shown: str, sentence: str, proxy: Proxy, backend: RecordingBackend, caddy_ports: dict[str, int]
) -> None:
    """A Go client (Caddy, which has us as its upstream) passes the page on."""
    answer = ask_plainly(("127.0.0.1", caddy_ports[shown]), GET_AND_CLOSE)
    assert answer.status == 400
    assert_page(answer.data.decode(), sentence, backend)


def test_go_passes(proxy: Proxy, backend: RecordingBackend, caddy_ports: dict[str, int]) -> None:
    """A Go client with a good certificate reaches the backend."""
    answer = ask_plainly(("127.0.0.1", caddy_ports["good"]), GET_AND_CLOSE)
    assert (answer.status, answer.body) == (200, WORD)


def chromium(url: str, directory: Path) -> str:
    """The page that a headless Chromium shows, as it stands in its document."""
    # It looks up its maker's hosts unless it is told not to.
    quiet = "--no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-quic"
    options = ["--headless", "--no-sandbox", "--disable-gpu", *quiet.split(), f"--user-data-dir={directory}"]
    return run(
        [require_peer("chromium"), *options, "--ignore-certificate-errors", "--timeout=20000", "--dump-dom", url]
    )


def test_chromium(proxy: Proxy, backend: RecordingBackend, tmp_path: Path) -> None:
    """Headless Chromium shows the page, not its own error page."""
    assert_page(chromium(f"https://127.0.0.1:{proxy.port}/", tmp_path), NO_CERTIFICATE, backend)


# The same page in unusual weather


def test_while_uploading(
    proxy: Proxy, backend: RecordingBackend, server_ca: Path, expired_credentials: CredentialFiles, tmp_path: Path
) -> None:
    """In the middle of sending 10 MB curl prints the page."""
    require_peer("curl")
    upload = tmp_path / "upload"
    upload.write_bytes(bytes(10_000_000))
    for shown, sentence in ((None, NO_CERTIFICATE), (expired_credentials, CERTIFICATE_ERROR)):
        printed = curl(proxy.port, server_ca, shown, "-H", "Expect:", "--data-binary", f"@{upload}")
        assert_page(printed, sentence, backend)


def test_with_a_client_that_sends_everything_first(proxy: Proxy, backend: RecordingBackend) -> None:
    """A client that reads nothing until its whole upload has left finds the page, not a reset."""
    body = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000)
    with TlsClient(proxy.address, client_context()) as stranger:
        stranger.handshake()
        for start in range(0, len(body), 8192):
            stranger.send(body[start : start + 8192])
        answer = stranger.receive_all()
    assert answer.ending == "close_notify"
    assert_page(answer.data.decode(), NO_CERTIFICATE, backend)


def test_one_byte_at_a_time(
    proxy: Proxy, backend: RecordingBackend, server_ca: Path, expired_credentials: CredentialFiles
) -> None:
    """A handshake that comes one byte at a time, both ways, ends in the page."""
    require_peer("curl")
    crawl = Fault(one_byte_at_a_time=True)
    with FaultyRelay(proxy.address, to_server=crawl, to_client=crawl) as relay:
        assert_page(curl(relay.port, server_ca, None), NO_CERTIFICATE, backend)
        assert_page(curl(relay.port, server_ca, expired_credentials), CERTIFICATE_ERROR, backend)


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite(
    suite: str, proxy: Proxy, backend: RecordingBackend, server_ca: Path, expired_credentials: CredentialFiles
) -> None:
    """Each TLS 1.3 suite carries the page."""
    require_peer("openssl")
    printed = s_client(proxy.port, server_ca, expired_credentials, "-ciphersuites", suite)
    assert f"Cipher is {suite}" in printed
    assert_page(printed, CERTIFICATE_ERROR, backend)
    proxy.wait_for("connection", reason="expired", cipher=suite)


def test_small_records(proxy: Proxy, backend: RecordingBackend, server_ca: Path) -> None:
    """A client that takes records of 512 bytes at most reads the page."""
    require_peer("openssl")
    assert_page(s_client(proxy.port, server_ca, None, "-maxfraglen", "512"), NO_CERTIFICATE, backend)


def test_hello_retry_request(
    site: dict[str, Any],
    backend: RecordingBackend,
    server_ca: Path,
    client_credentials: CredentialFiles,
    expired_credentials: CredentialFiles,
    tmp_path: Path,
) -> None:
    """A client whose key share is not wanted, and that is asked for another, reads the page too."""
    require_peer("openssl")
    # OpenSSL itself narrows the groups, for every context of the process: the client's first guess is X25519.
    openssl_config = tmp_path / "openssl.cnf"
    openssl_config.write_text("openssl_conf=a\n[a]\nssl_conf=b\n[b]\nsystem_default=c\n[c]\nGroups=P-384\n")
    with Proxy({**ONE_WORKER, "sites": [site]}, env={"OPENSSL_CONF": str(openssl_config)}) as proxy:
        for shown, sentence in ((None, NO_CERTIFICATE), (expired_credentials, CERTIFICATE_ERROR)):
            printed = s_client(proxy.port, server_ca, shown, "-msg")
            assert printed.count("ClientHello") == 2
            assert_page(printed, sentence, backend)
        assert ask(proxy.address, client_context(client_credentials)).data == HELLO


# Those who get no page


def test_tls_1_2_gets_an_alert(proxy: Proxy, backend: RecordingBackend, server_ca: Path) -> None:
    """Without TLS 1.3 curl is told `protocol version`, and the log has it."""
    require_peer("curl")
    printed = curl(proxy.port, server_ca, None, "--tls-max", "1.2")
    assert "alert protocol version" in printed
    assert backend.connections == []
    proxy.wait_for("connection", verdict="refused", reason="tls_version")


def test_tls_1_2_with_a_good_certificate_gets_an_alert(
    proxy: Proxy, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """A good certificate does not help where the version is too old."""
    context = client_context(client_credentials)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    answer = ask(proxy.address, context)
    assert (answer.data, answer.ending) == (b"", "alert:protocol_version")
    assert backend.connections == []


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"])
def test_plain_http_gets_a_page_in_clear(method: str, proxy: Proxy, backend: RecordingBackend) -> None:
    """A request in clear text on the TLS port is told so, in clear text."""
    answer = ask_plainly(proxy.address, f"{method} / HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (answer.status, answer.ending) == (400, "fin")
    assert_page(answer.data.decode(), PLAIN_HTTP, backend)
    proxy.wait_for("connection", verdict="refused", reason="plain_http")


def test_plain_http_with_curl(proxy: Proxy, backend: RecordingBackend, tmp_path: Path) -> None:
    """That page is what curl prints, also while it sends 1 MB."""
    require_peer("curl")
    upload = tmp_path / "upload"
    upload.write_bytes(bytes(1_000_000))
    for options in ([], ["-H", "Expect:", "--data-binary", f"@{upload}"]):
        assert_page(run(["curl", "-sS", *options, f"http://127.0.0.1:{proxy.port}/"]), PLAIN_HTTP, backend)


GARBAGE = {
    "binary": bytes(range(128, 256)) * 4,
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "sslv2_hello": bytes.fromhex("802e0103010015000000100000"),
    "lower_case": b"get / http/1.1\r\n\r\n",
    "zeros": bytes(2000),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_closed_without_a_page(kind: str, proxy: Proxy, backend: RecordingBackend) -> None:
    """What is neither TLS nor HTTP gets no answer."""
    answer = ask_plainly(proxy.address, GARBAGE[kind])
    assert answer.data == b""
    assert answer.ending in ("fin", "reset")
    assert backend.connections == []
    proxy.wait_for("connection", verdict="failed", reason="handshake_failed")


def test_garbage_in_a_tls_record_is_closed_without_a_page(proxy: Proxy, backend: RecordingBackend) -> None:
    """A record that claims to be a handshake and holds none gets at most an alert."""
    answer = ask_plainly(proxy.address, b"\x16\x03\x01\x00\x40" + bytes(0x40))
    assert b"HTTP" not in answer.data
    assert len(answer.data) <= 7
    assert backend.connections == []
