"""One client from accept to its record: every way that it can go, in order, before a backend that sees everything."""

import contextlib
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from actors import (
    GET,
    GET_AND_CLOSE,
    HELLO,
    PATIENCE,
    Answer,
    BackendConnection,
    RecordingBackend,
    TlsClient,
    ask,
    ask_plainly,
    client_context,
    free_port,
    never_answer,
    reset_after_request,
    speak_first,
)
from aop_proxy.connection import Connection
from aop_proxy.model import Dial, Listen, Upstream
from aop_proxy.proxy_protocol import Complete, Header, encode_v1, encode_v2, parse
from aop_proxy.reasons import Reason
from aop_proxy.relay import MAX_WORDLESS
from aop_proxy.tls import Accepted
from certificates import QUARTER, Authority, CredentialFiles, Credentials, key_pem, make_key
from in_process import LOOPS, InProcessServer, LoopThread, make_bundle
from tls13 import Tls13Client

Serve = Callable[..., InProcessServer]
SITES = ({"hosts": ("a.example",)}, {"hosts": ("b.example", "*.b.example")})


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Iterator[LoopThread]:
    with LoopThread(request.param) as running:
        yield running


@pytest.fixture
def serve(
    loop: LoopThread, backend: RecordingBackend, server_credentials: CredentialFiles, client_ca: Path
) -> Iterator[Serve]:
    """Servers in front of `backend`; the arguments are those of `make_bundle`."""
    with contextlib.ExitStack() as servers:

        def make(upstream: str = backend.url, **settings: Any) -> InProcessServer:
            bundle = make_bundle(server_credentials, client_ca, upstream, **settings)
            return servers.enter_context(InProcessServer(loop, bundle))

        yield make


@pytest.fixture
def good(client_credentials: CredentialFiles) -> ssl.SSLContext:
    """A client that shows a good certificate."""
    return client_context(client_credentials)


def the_record(server: InProcessServer) -> dict[str, Any]:
    """The record of the only connection there was."""
    record = server.record()
    assert server.events("connection") == [record]
    return record


def is_refused(answer: Answer, record: dict[str, Any], status: int, sentence: str, reason: str) -> bool:
    """A page in these words, ended cleanly, with the reference that the log has; refused for this reason."""
    assert (answer.status, answer.ending, answer.tcp_end) == (status, "close_notify", "fin")
    assert sentence in answer.body
    assert record["reference"] in answer.body
    assert (record["reason"], record["bytes_from_client"]) == (reason, 0)
    return True


# Who passes


def test_a_good_client(serve: Serve, good: ssl.SSLContext, backend: RecordingBackend) -> None:
    """Its request and the answer pass unchanged, and one record says all there is to say."""
    server = serve(sites=({"hosts": ("origin.example",)},))
    answer = ask(server.address, good, server_name="origin.example")
    assert (answer.data, answer.ending) == (HELLO, "close_notify")
    assert backend.received == GET_AND_CLOSE
    record = the_record(server)
    duration = record.pop("duration_ms")
    assert 0 < duration < 5000
    assert re.fullmatch("[0-9a-f]{8}", record.pop("reference"))
    assert re.fullmatch("[0-9a-f]{64}", record.pop("fingerprint"))
    assert re.fullmatch(r"127\.0\.0\.1:\d+", record.pop("client"))
    del record["time"]
    assert record == {
        "level": "info",
        "event": "connection",
        "verdict": "accepted",
        "reason": "closed",
        "site": "origin.example",
        "sni": "origin.example",
        "tls_version": "TLSv1.3",
        "cipher": "TLS_AES_256_GCM_SHA384",
        "subject": "CN=edge.example",
        "issuer": "CN=Test Client CA",
        "upstream": backend.url,
        "bytes_from_client": len(GET_AND_CLOSE),
        "bytes_from_upstream": len(HELLO),
        "worker": 1,
        "generation": 1,
    }


def test_nothing_is_dialled_before_the_first_byte(
    serve: Serve, good: ssl.SSLContext, backend: RecordingBackend
) -> None:
    """A client that only shakes hands holds no backend; its first byte brings one."""
    server = serve()
    with TlsClient(server.address, good) as client:
        client.handshake()
        while server.loop.call(lambda: len(server.server._admitted)) < 1:
            pass
        assert backend.connections == []
        client.send(GET)
        assert client.receive_exactly(len(HELLO)) == HELLO
        assert len(backend.connections) == 1


def test_eager_sites_are_dialled_at_once(serve: Serve, good: ssl.SSLContext, backend: RecordingBackend) -> None:
    """A backend that speaks first is heard first."""
    backend.behaviour = speak_first(b"220 hello\r\n")
    server = serve(sites=({"dial": Dial.EAGER},))
    with TlsClient(server.address, good) as client:
        client.handshake()
        assert client.receive_exactly(11) == b"220 hello\r\n"


@pytest.mark.parametrize("ending", ["close_notify", "half_close"])
def test_who_leaves_without_asking(serve: Serve, good: ssl.SSLContext, backend: RecordingBackend, ending: str) -> None:
    """A good client that ends before its first byte was served well, and no backend hears of it."""
    server = serve()
    with TlsClient(server.address, good) as client:
        client.handshake()
        getattr(client, ending)()
        assert (the_record(server)["reason"], backend.connections) == ("closed", [])


def test_who_resets_without_asking(serve: Serve, good: ssl.SSLContext, backend: RecordingBackend) -> None:
    """A reset in place of a request is told as one."""
    server = serve()
    client = TlsClient(server.address, good)
    client.handshake()
    while server.loop.call(lambda: len(server.server._admitted)) < 1:
        pass
    client.reset()
    assert (the_record(server)["reason"], backend.connections) == ("client_reset", [])


def test_garbage_in_place_of_a_request(serve: Serve, good: ssl.SSLContext, backend: RecordingBackend) -> None:
    """A good client that breaks TLS gets OpenSSL's alert."""
    server = serve()
    with TlsClient(server.address, good) as client:
        client.handshake()
        client.sock.sendall(bytes.fromhex("1703030020") + bytes(32))
        assert client.receive_all().ending.startswith("alert:")
    assert (the_record(server)["reason"], backend.connections) == ("client_reset", [])


def test_only_so_much_without_a_word(serve: Serve, authority: Authority, backend: RecordingBackend) -> None:
    """A client that sends KeyUpdates and never a byte is not listened to for ever."""
    server = serve()
    credentials = authority.issue()
    tls = Tls13Client()
    with socket.create_connection(server.address, PATIENCE) as sock:
        sock.sendall(tls.hello())
        while not tls.ready:
            tls.receive(sock.recv(65536))
        chain = [credentials.certificate.public_bytes(Encoding.DER)]
        sock.sendall(tls.certificate_flight(chain, credentials.key))
        with contextlib.suppress(OSError):
            sock.sendall(b"".join(tls.key_update(answer=False) for _ in range(MAX_WORDLESS // 26 + 100)))
        the_record(server)
    assert backend.connections == []


def test_the_backend_resets(serve: Serve, good: ssl.SSLContext, backend: RecordingBackend) -> None:
    """The record says whose doing it was."""
    backend.behaviour = reset_after_request
    server = serve()
    assert ask(server.address, good).ending in ("reset", "fin")
    assert [the_record(server)[name] for name in ("reason", "verdict")] == ["upstream_reset", "failed"]


# Who is refused by OpenSSL


def test_no_certificate(serve: Serve, backend: RecordingBackend) -> None:
    """The page says what is missing."""
    server = serve()
    answer = ask(server.address, client_context())
    record = the_record(server)
    assert is_refused(answer, record, 400, "No required SSL certificate was sent", "no_certificate")
    assert [record[name] for name in ("verdict", "site", "sni", "tls_version")] == [
        "refused",
        None,
        "localhost",
        "TLSv1.3",
    ]
    assert backend.connections == []


def test_a_certificate_that_fails(
    serve: Serve, authority: Authority, backend: RecordingBackend, tmp_path: Path
) -> None:
    """The log names what the client claimed to be; the page does not."""
    server = serve()
    stranger = authority.issue("stranger.example", self_signed=True)
    answer = ask(server.address, client_context(stranger.write(tmp_path, "stranger")))
    record = the_record(server)
    assert is_refused(answer, record, 400, "The SSL certificate error", "self_signed")
    assert (record["subject"], record["fingerprint"]) == ("CN=stranger.example", stranger.fingerprint)
    assert "stranger" not in answer.body
    assert backend.connections == []


@pytest.mark.parametrize("mode", [ssl.CERT_OPTIONAL, ssl.CERT_NONE], ids=lambda mode: mode.name)
def test_a_context_that_forgot_to_ask_opens_nothing(
    serve: Serve, backend: RecordingBackend, mode: ssl.VerifyMode
) -> None:
    """Were a site's context ever less than it is made, who shows no certificate would still end before the backend."""
    server = serve()
    server.built.gates[0].context.verify_mode = mode
    answer = ask(server.address, client_context())
    assert b"" == answer.data
    record = the_record(server)
    assert ("failed", "internal_error") == (record["verdict"], record["reason"])
    assert backend.connections == []


def test_our_own_judgement_wants_a_certificate_too(serve: Serve, backend: RecordingBackend) -> None:
    """Nor would a session do that let nobody's certificate pass: it is no_certificate to us, unless we observe."""
    server = serve()
    settings, accepted = server.built.settings, Accepted(None, None, b"", "TLS_AES_128_GCM_SHA256", None)  # type: ignore[arg-type]

    def decide(enforcement: Any) -> tuple[Reason | None, Reason | None]:
        ours, theirs = socket.socketpair()
        with theirs:
            server.server.snapshot = replace(server.built, settings=replace(settings, enforcement=enforcement))
            connection = Connection(server.server, ours, "192.0.2.1:1")
            connection._task.cancel()
            decided = connection._decide(accepted), connection.record.would_refuse
            server.server._admitted.discard(connection)
            ours.close()
        return decided

    assert (Reason.NO_CERTIFICATE, None) == server.loop.call(decide, "enforce")
    assert (None, Reason.NO_CERTIFICATE) == server.loop.call(decide, "observe")
    assert backend.connections == []


def test_a_page_waits_for_the_question(serve: Serve) -> None:
    """Some clients take an answer to no question for none: without one it comes a little later, with one at once."""
    server = serve()
    with TlsClient(server.address, client_context()) as client:
        client.handshake()
        assert client.receive_all().status == 400
    assert server.wait_for("connection", count=1)["duration_ms"] >= 250
    with TlsClient(server.address, client_context()) as client:
        client.handshake(with_data=GET)
        assert client.receive_exactly(12) == b"HTTP/1.1 400"
    assert server.wait_for("connection", count=2)["duration_ms"] < 250


def test_a_refused_client_that_resets(serve: Serve) -> None:
    """Who is refused and does not stay to hear it was refused all the same."""
    server = serve()
    client = TlsClient(server.address, client_context())
    client.handshake()
    while server.loop.call(lambda: [one.record.cipher for one in server.server._everybody()]) in ([], [None]):
        pass
    client.reset()
    assert [the_record(server)[name] for name in ("reason", "verdict")] == ["no_certificate", "refused"]


def test_who_goes_on_sending_reads_its_page(serve: Serve, backend: RecordingBackend) -> None:
    """A refused client that uploads is read and not heard, so that the kernel does not destroy its page."""
    server = serve()
    with TlsClient(server.address, client_context()) as client:
        client.handshake(with_data=b"POST / HTTP/1.1\r\n\r\n")
        for _ in range(100):
            client.send(b"x" * 16384)
        assert client.receive_all().status == 400
    assert (the_record(server)["reason"], backend.connections) == ("no_certificate", [])


def test_who_does_not_leave_is_left(serve: Serve) -> None:
    """A refused client has `timeouts.linger` to read and close."""
    server = serve(timeouts={"linger": 0.2})
    with TlsClient(server.address, client_context()) as client:
        client.handshake(with_data=GET)
        assert 200 <= the_record(server)["duration_ms"] < 3000


def test_alerts_instead_of_pages(serve: Serve, good: ssl.SSLContext) -> None:
    """With `refusal: alert` it is OpenSSL's own."""
    server = serve(refusal="alert")
    assert ask(server.address, client_context()).ending == "alert:certificate_required"
    assert the_record(server)["reason"] == "no_certificate"
    assert ask(server.address, good).status == 200


def test_tls_1_2(serve: Serve, client_credentials: CredentialFiles) -> None:
    """An older client gets an alert, whatever it shows."""
    server = serve()
    context = client_context(client_credentials)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert "protocol_version" in ask(server.address, context).ending
    record = the_record(server)
    assert [record[name] for name in ("reason", "verdict", "tls_version", "cipher")] == [
        "tls_version",
        "refused",
        None,
        None,
    ]


# Who does not speak TLS


@pytest.mark.parametrize(
    "request_line", [b"GET / HTTP/1.0\r\n\r\n", b"POST /x HTTP/1.1\r\nHost: a\r\n\r\nbody", b"MKCALENDAR "]
)
def test_plain_http(serve: Serve, backend: RecordingBackend, request_line: bytes) -> None:
    """It is told in clear, in NGINX's words."""
    server = serve()
    answer = ask_plainly(server.address, request_line)
    assert (answer.status, answer.ending) == (400, "fin")
    record = the_record(server)
    assert "The plain HTTP request was sent to HTTPS port" in answer.body
    assert record["reference"] in answer.body
    assert (record["reason"], backend.connections) == ("plain_http", [])


def heard(server: InProcessServer) -> int:
    """How many bytes clients have been heard to say."""
    whole = server.server.snapshot.settings.limits.handshake_bytes
    return sum(whole - connection._allowance for connection in server.server._everybody())


@pytest.mark.parametrize(
    "method",
    [
        b"GET ",
        b"PUT ",
    ],
)
def test_plain_http_byte_by_byte(serve: Serve, method: bytes) -> None:
    """However it is cut."""
    server = serve()
    with socket.create_connection(server.address, PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, byte in enumerate(method):
            sock.sendall(bytes([byte]))
            while number < 3 and server.loop.call(heard, server) <= number:
                assert server.events("connection") == []
        assert sock.recv(12) == b"HTTP/1.1 400"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0\0\0\0",
        b"get / HTTP/1.1\r\n",
        b"GET",
        b"G\0",
        b"A" * 33 + b" ",
        b"A" * 100,
        b"SSH-2.0-OpenSSH\r\n",
        b"\x80\x2e\x01",
    ],
)
def test_garbage(serve: Serve, backend: RecordingBackend, garbage: bytes) -> None:
    """It is closed without a word."""
    server = serve()
    with socket.create_connection(server.address, PATIENCE) as sock:
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""
    assert (the_record(server)["reason"], backend.connections) == ("handshake_failed", [])


def test_garbage_in_tls(serve: Serve) -> None:
    """What only looks like TLS fails in OpenSSL."""
    server = serve()
    answer = ask_plainly(server.address, b"\x16\x03\x01\x00\x05hello" + bytes(40))
    assert b"HTTP" not in answer.data
    assert the_record(server)["reason"] == "handshake_failed"


# Load balancers

CLIENT, ORIGIN = ("203.0.113.7", 4711), ("192.0.2.1", 443)
HEADER = Header(CLIENT, ORIGIN)
LISTED = (Listen("127.0.0.1", 0, ("10.0.0.0/8", "127.0.0.0/8")),)


@pytest.mark.parametrize(
    ("header", "client"),
    [(encode_v1(HEADER), "203.0.113.7:4711"), (encode_v2(HEADER), "203.0.113.7:4711"), (encode_v2(Header()), None)],
    ids=["v1", "v2", "v2 of its own"],
)
@pytest.mark.parametrize("one_byte_at_a_time", [False, True])
def test_a_header_from_a_listed_network(
    serve: Serve,
    good: ssl.SSLContext,
    backend: RecordingBackend,
    header: bytes,
    client: str | None,
    one_byte_at_a_time: bool,
) -> None:
    """It names the client, however it is cut; a balancer that asks for itself is the client."""
    server = serve(listen=LISTED)
    with TlsClient(server.address, good, one_byte_at_a_time=one_byte_at_a_time) as connection:
        for piece in [header[at : at + 1] for at in range(len(header))] if one_byte_at_a_time else [header]:
            connection.sock.sendall(piece)
        connection.handshake(with_data=GET_AND_CLOSE)
        assert connection.receive_all().data == HELLO
        own = f"127.0.0.1:{connection.port}"
    assert the_record(server)["client"] == (client or own)
    assert backend.received == GET_AND_CLOSE


@pytest.mark.parametrize(
    ("said", "listed"),
    [
        (encode_v1(HEADER)[:-3], True),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 99999\r\n", True),
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (encode_v1(HEADER), False),
        (encode_v2(HEADER), False),
    ],
)
def test_a_header_that_is_none(serve: Serve, backend: RecordingBackend, said: bytes, listed: bool) -> None:
    """Half a header, a wrong one, and any from elsewhere are refused without a word."""
    server = serve(listen=LISTED if listed else (Listen("127.0.0.1", 0),))
    with socket.create_connection(server.address, PATIENCE) as sock:
        sock.sendall(said)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b""
    assert [the_record(server)[name] for name in ("reason", "verdict")] == ["proxy_header_invalid", "refused"]
    assert backend.connections == []


def test_no_header_where_one_must_be(serve: Serve, good: ssl.SSLContext, backend: RecordingBackend) -> None:
    """Behind a load balancer nobody comes in past it, whatever they show."""
    server = serve(listen=LISTED)
    with contextlib.suppress(ConnectionResetError):
        assert ask(server.address, good).data == b""
    assert (the_record(server)["reason"], backend.connections) == ("proxy_header_invalid", [])


@pytest.mark.parametrize("version", ["v1", "v2", "v2-tls"])
def test_the_backend_is_told_who_came(
    serve: Serve, good: ssl.SSLContext, backend: RecordingBackend, version: str
) -> None:
    """In a header before the first byte, which counts as nothing of the client's."""

    def answer(connection: BackendConnection) -> None:
        while not connection.received.endswith(GET_AND_CLOSE):
            assert connection.receive()
        connection.sock.sendall(HELLO)

    backend.behaviour = answer
    upstream = Upstream(backend.url, "127.0.0.1", backend.port, proxy_protocol=version)  # type: ignore[arg-type]
    server = serve(sites=({"upstream": (upstream,)},))
    with TlsClient(server.address, good) as client:
        own = client.sock.getsockname()
        client.handshake(with_data=GET_AND_CLOSE)
        assert client.receive_all().data == HELLO
    told = parse(backend.received)
    assert isinstance(told, Complete)
    assert (told.header.source, told.header.destination) == (own, server.address)
    assert backend.received[told.size :] == GET_AND_CLOSE
    assert the_record(server)["bytes_from_client"] == len(GET_AND_CLOSE)
    if version == "v2-tls":
        tls = told.header.tls
        assert tls is not None
        assert (tls.verify, tls.version, tls.common_name) == (0, "TLSv1.3", "edge.example")


# Who is slow, or says too much


def test_a_flight_that_does_not_fit(
    loop: LoopThread, good: ssl.SSLContext, server_credentials: CredentialFiles, client_ca: Path, authority: Authority
) -> None:
    """A client that takes our part of the handshake in small pieces is waited for."""
    bundle = make_bundle(server_credentials, client_ca)
    chain = authority.pem * 150
    larger = replace(bundle, files={**bundle.files, "certificate": bundle.files["certificate"] + chain})
    with InProcessServer(loop, larger) as server, socket.socket() as sock:
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(PATIENCE)
        sock.connect(server.address)
        tls = Tls13Client()
        sock.sendall(tls.hello())
        while not tls.ready:
            tls.receive(sock.recv(4096))
        assert len(tls.server_chain) == 151


def test_who_says_nothing(serve: Serve) -> None:
    """Connects and closes: a health check. It is told at debug only."""
    server = serve()
    socket.create_connection(server.address).close()
    record = the_record(server)
    assert [record[name] for name in ("reason", "verdict", "level")] == ["client_silent", "failed", "debug"]


@pytest.mark.parametrize(
    ("said", "reason"), [(b"", "client_silent"), (b"\x16\x03\x01", "handshake_timeout"), (b"GE", "handshake_timeout")]
)
def test_who_takes_too_long(serve: Serve, said: bytes, reason: str) -> None:
    """`timeouts.handshake` is for all of it, from the first byte to the last."""
    server = serve(timeouts={"handshake": 0.2})
    with socket.create_connection(server.address, PATIENCE) as sock:
        sock.sendall(said)
        assert sock.recv(1) == b""
        assert the_record(server)["reason"] == reason


def test_who_leaves_in_the_middle(serve: Serve, good: ssl.SSLContext) -> None:
    """A client that is gone after its hello failed in the handshake."""
    server = serve()
    with TlsClient(server.address, good) as client:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.do_handshake()
        client._flush()
        client.sock.recv(1)
        client.half_close()
        assert the_record(server)["reason"] == "handshake_failed"


def test_a_certificate_chain_beyond_the_allowance(serve: Serve, authority: Authority, tmp_path: Path) -> None:
    """Before it is authenticated a client is heard for `limits.handshake_bytes` and no longer."""
    server = serve(limits={"handshake_bytes": 4096})
    credentials = authority.issue(names=[f"{number}.example" for number in range(500)])
    context = client_context(credentials.write(tmp_path, "long"))
    assert ask(server.address, context).data == b""
    assert the_record(server)["reason"] == "handshake_failed"


# Who is refused by our rules


def test_identity_not_on_the_list(
    serve: Serve, good: ssl.SSLContext, backend: RecordingBackend, server_credentials: CredentialFiles, client_ca: Path
) -> None:
    """OpenSSL's acceptance is not enough where a site has rules; the log names who it was."""
    clients = make_bundle(server_credentials, client_ca).settings.sites[0].clients
    server = serve(sites=({"clients": replace(clients, names=("other.example",))},))
    answer = ask(server.address, good)
    record = the_record(server)
    assert is_refused(answer, record, 400, "The SSL certificate is not allowed here", "identity_not_allowed")
    assert [record[name] for name in ("verdict", "site", "subject")] == ["refused", "*", "CN=edge.example"]
    assert backend.connections == []


def test_a_refused_identity_that_does_not_ask(
    serve: Serve, good: ssl.SSLContext, server_credentials: CredentialFiles, client_ca: Path
) -> None:
    """It is given a moment to ask, and then told."""
    clients = make_bundle(server_credentials, client_ca).settings.sites[0].clients
    server = serve(sites=({"clients": replace(clients, names=("other.example",))},))
    with TlsClient(server.address, good) as client:
        client.handshake()
        assert client.receive_all().status == 400
    assert the_record(server)["duration_ms"] >= 250


def test_identity_on_the_list(
    serve: Serve, good: ssl.SSLContext, server_credentials: CredentialFiles, client_ca: Path
) -> None:
    """Who is on it passes."""
    clients = make_bundle(server_credentials, client_ca).settings.sites[0].clients
    server = serve(sites=({"clients": replace(clients, names=("edge.example",))},))
    assert ask(server.address, good).status == 200


def test_a_certificate_that_only_openssl_can_read(
    serve: Serve, authority: Authority, backend: RecordingBackend, tmp_path: Path
) -> None:
    """A name with a NUL in it passes OpenSSL and not us."""
    server = serve()
    answer = ask(server.address, client_context(_with_nul(authority).write(tmp_path, "nul")))
    assert is_refused(answer, the_record(server), 400, "The SSL certificate error", "bad_certificate")
    assert backend.connections == []


def _with_nul(authority: Authority) -> Credentials:
    credentials, key = authority.issue(), make_key()
    old = credentials.certificate
    builder = x509.CertificateBuilder(
        old.issuer,
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edge.example\0.evil")]),
        key.public_key(),
        old.serial_number,
        old.not_valid_before_utc,
        old.not_valid_before_utc + (QUARTER[1] - QUARTER[0]),
    )
    return Credentials(builder.sign(authority.key, hashes.SHA256()), (), key, key_pem(key))


def test_too_many(serve: Serve, good: ssl.SSLContext, backend: RecordingBackend) -> None:
    """Past the limit an authenticated client is told so."""
    server = serve(limits={"connections": 1})
    with TlsClient(server.address, good) as first:
        first.handshake(with_data=GET)
        first.receive_exactly(len(HELLO))
        answer = ask(server.address, good)
        record = server.record(reason="too_many_connections")
        assert is_refused(answer, record, 503, "Too many connections", "too_many_connections")
        assert len(backend.connections) == 1


# Names


@pytest.mark.parametrize(
    ("name", "site"), [("a.example", "a.example"), ("B.example", "b.example"), ("x.b.example", "b.example")]
)
def test_a_site_by_its_name(serve: Serve, good: ssl.SSLContext, name: str, site: str) -> None:
    """With several sites the name chooses."""
    server = serve(sites=SITES)
    assert ask(server.address, good, server_name=name).status == 200
    assert [the_record(server)[key] for key in ("site", "sni")] == [site, name]


@pytest.mark.parametrize("sites", [SITES, SITES[:1]], ids=["several sites", "one site"])
@pytest.mark.parametrize("name", ["c.example", None])
def test_an_unknown_name(
    serve: Serve, good: ssl.SSLContext, backend: RecordingBackend, sites: Any, name: str | None
) -> None:
    """A good client that asks for nobody's name is told so, and forwarded nowhere."""
    server = serve(sites=sites)
    answer = ask(server.address, good, server_name=name)
    record = the_record(server)
    assert is_refused(answer, record, 421, "This server does not answer for that name", "unknown_host")
    assert [record[key] for key in ("sni", "site")] == [name, None]
    assert backend.connections == []


def test_an_unknown_name_and_no_certificate(serve: Serve) -> None:
    """A stranger learns that a certificate is missing, and nothing of the names."""
    server = serve(sites=SITES)
    assert "No required SSL certificate" in ask(server.address, client_context(), server_name="c.example").body
    assert [the_record(server)[key] for key in ("reason", "sni")] == ["no_certificate", "c.example"]


@pytest.mark.parametrize("sites", [SITES, SITES[:1]], ids=["several sites", "one site"])
def test_unknown_names_rejected(serve: Serve, good: ssl.SSLContext, backend: RecordingBackend, sites: Any) -> None:
    """With `unknown_hosts: reject` our certificate is not even shown."""
    server = serve(sites=sites, unknown_hosts="reject")
    assert "unrecognized_name" in ask(server.address, good, server_name="c.example").ending
    assert [the_record(server)[key] for key in ("reason", "verdict", "sni")] == ["unknown_host", "refused", "c.example"]
    assert ask(server.address, good, server_name="a.example").status == 200
    assert len(backend.connections) == 1


def test_a_hello_in_pieces_before_several_sites(serve: Serve, good: ssl.SSLContext) -> None:
    """The name is read however the hello is cut."""
    server = serve(sites=SITES)
    with TlsClient(server.address, good, server_name="b.example", one_byte_at_a_time=True) as client:
        client.handshake(with_data=GET)
        assert client.receive_exactly(len(HELLO)) == HELLO


@pytest.mark.parametrize(
    "said", [b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01\x00\x05hello" + bytes(40)], ids=["cut", "garbage"]
)
def test_no_hello_before_several_sites(serve: Serve, said: bytes) -> None:
    """A hello that ends too soon, or is none, is a failed handshake."""
    server = serve(sites=SITES)
    with socket.create_connection(server.address, PATIENCE) as sock:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(100):
                pass
    assert the_record(server)["reason"] == "handshake_failed"


# Backends that fail


def test_no_backend(serve: Serve, good: ssl.SSLContext) -> None:
    """A backend that is down is a 502 on the live session."""
    server = serve(f"http://127.0.0.1:{free_port()}")
    answer = ask(server.address, good)
    record = the_record(server)
    sentence = "The server behind this one cannot be reached"
    assert is_refused(answer, record, 502, sentence, "upstream_unreachable")
    assert [record[name] for name in ("verdict", "level", "site", "upstream")] == ["failed", "warning", "*", None]


def test_a_backend_that_does_not_answer(serve: Serve, good: ssl.SSLContext, tmp_path: Path) -> None:
    """So is one that is silent for `timeouts.connect`."""
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(tmp_path / "app.sock"))
        busy.listen(0)
        waiting.connect(str(tmp_path / "app.sock"))
        server = serve(f"unix:{tmp_path}/app.sock", timeouts={"connect": 0.2})
        answer = ask(server.address, good)
        assert is_refused(answer, the_record(server), 502, "cannot be reached", "upstream_timeout")


def test_the_next_backend(serve: Serve, good: ssl.SSLContext, backend: RecordingBackend) -> None:
    """The record names the one that was reached."""
    port = free_port()
    first = Upstream(f"http://127.0.0.1:{port}", "127.0.0.1", port)
    second = Upstream(backend.url, "127.0.0.1", backend.port)
    server = serve(sites=({"upstream": (first, second)},))
    assert ask(server.address, good).status == 200
    assert the_record(server)["upstream"] == backend.url


def test_an_early_answer_to_an_upload(serve: Serve, good: ssl.SSLContext, backend: RecordingBackend) -> None:
    """A backend that answers and closes on an upload: the client reads the answer, though it goes on sending."""

    def answer_early(connection: BackendConnection) -> None:
        connection.receive()
        connection.sock.sendall(HELLO)
        connection.sock.shutdown(socket.SHUT_RDWR)

    backend.behaviour = answer_early
    server = serve()
    with TlsClient(server.address, good) as client:
        client.handshake(with_data=b"POST / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(100):
                client.send(b"x" * 16384)
        assert client.receive_exactly(len(HELLO)) == HELLO
    assert the_record(server)["reason"] in ("closed", "upstream_reset", "client_reset")


def test_the_client_is_gone_when_the_backend_has_answered(
    serve: Serve, good: ssl.SSLContext, backend: RecordingBackend
) -> None:
    """A client that resets is told as one."""
    backend.behaviour = never_answer
    server = serve()
    client = TlsClient(server.address, good)
    client.handshake(with_data=GET)
    backend.wait_for_connection().wait_until(lambda: backend.received == GET)
    client.reset()
    assert the_record(server)["reason"] == "client_reset"
    backend.connections[0].wait_until(lambda: backend.connections[0].ended == "reset")


# A bug


def test_a_bug_costs_one_connection(
    loop: LoopThread,
    good: ssl.SSLContext,
    backend: RecordingBackend,
    server_credentials: CredentialFiles,
    client_ca: Path,
) -> None:
    """What nobody thought of is told in full, costs that connection, forwards nothing, and the next one is served."""
    server = InProcessServer(loop, make_bundle(server_credentials, client_ca, backend.url))
    try:
        broken = replace(server.built, gates=(replace(server.built.gates[0], rules=None),))  # type: ignore[arg-type]
        loop.call(server.server.switch, broken)
        assert ask(server.address, good).data == b""
        record = server.record()
        assert [record[name] for name in ("reason", "verdict", "level")] == ["internal_error", "failed", "error"]
        assert backend.connections == []
        told = "\n".join(server.wait_for("internal_error")["traceback"])
        assert "AttributeError: 'NoneType' object has no attribute 'decide'" in told
        assert "_judge" in told
        loop.call(server.server.switch, server.built)
        assert ask(server.address, good).status == 200
    finally:
        server.stop()
