"""Whatever a stranger does with TLS, nothing of theirs reaches the backend, and others are served meanwhile.

The client is one of our own that keeps to no rule; it reads the whole wire and opens every record under the server's
application key, so that a key that served twice would be seen. The backend records every connection.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from actors import (
    GET_AND_CLOSE,
    HELLO,
    ONE_WORKER,
    Answer,
    Proxy,
    RecordingBackend,
    ask,
    ask_plainly,
    client_context,
    echo,
    reply,
    reset,
)
from certificates import DAY, REFUSED, Authority, CredentialFiles, Credentials, make_key
from encounter import chain_of
from hostile import HostileClient, send_bytewise
from tls13 import (
    CLOSE_NOTIFY,
    SUITES,
    Alert,
    ContentType,
    Group,
    HandshakeType,
    Suite,
    Tls13Client,
    handshake_message,
    plain_record,
    vector,
)

FATAL = 2
CERTIFICATE_REQUIRED = 116
PROTOCOL_VERSION = 70
STRANGERS = {"nobody": lambda _: None, **REFUSED}
MEBIBYTE = 1 << 20

strangers = pytest.mark.parametrize("stranger", STRANGERS)


@pytest.fixture(scope="module")
def module_proxy(site: dict[str, Any]) -> Iterator[Proxy]:
    """A proxy that waits for nobody long."""
    timeouts = {"handshake": "1s", "linger": "500ms"}
    with Proxy({**ONE_WORKER, "timeouts": timeouts, "sites": [site]}) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def good(authority: Authority) -> Credentials:
    return authority.issue("edge.example")


def assert_turned_away(intruder: HostileClient, answer: Answer, backend: RecordingBackend) -> None:
    """One page and one close_notify, each under a number of its own, nothing else, and nothing at the backend."""
    assert (answer.status, answer.ending, answer.tcp_end) == (400, "close_notify", "fin")
    assert answer.data.endswith(b"</html>\r\n")
    assert intruder.numbers() == [0, 1]
    assert intruder.records_behind_the_flight() == 2
    assert backend.connections == []


def assert_others_are_served(proxy: Proxy, credentials: CredentialFiles) -> None:
    assert ask(proxy.address, client_context(credentials)).data == HELLO


# One key, one number, one record


@strangers
def test_a_request_with_the_finished_goes_nowhere(
    stranger: str, proxy: Proxy, backend: RecordingBackend, authority: Authority
) -> None:
    """A refused client's requests, in one segment with its flight, are never decrypted, and it reads its page."""
    with HostileClient(proxy.address) as intruder:
        intruder.greet()
        flight = intruder.flight(STRANGERS[stranger](authority))
        intruder.send(flight + intruder.client.application_data(GET_AND_CLOSE) * 3)
        assert_turned_away(intruder, intruder.read_answer(), backend)


@pytest.mark.parametrize("share", [Group.X25519, Group.P256, None], ids=["X25519", "P256", "retry"])
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_no_number_twice_under_any_suite(
    suite: Suite, share: Group | None, proxy: Proxy, backend: RecordingBackend
) -> None:
    """The page is sealed under numbers that nothing else on the wire bears, with or without a second hello."""
    with HostileClient(proxy.address, Tls13Client(suite=suite, share=share, session_id=bytes(32))) as intruder:
        intruder.greet()
        intruder.send(intruder.flight(None))
        assert_turned_away(intruder, intruder.read_answer(), backend)


def test_a_client_of_small_records(proxy: Proxy, backend: RecordingBackend) -> None:
    """A client that agreed on 512 bytes reads the whole page."""
    with HostileClient(proxy.address, Tls13Client(max_fragment_length=512)) as intruder:
        intruder.greet()
        intruder.send(intruder.flight(None))
        assert_turned_away(intruder, intruder.read_answer(), backend)
        assert max(len(record.plaintext) for record in intruder.client.records) < 512


@pytest.mark.parametrize("record_size", [1, 20])
def test_a_secret_that_is_bound_to_nobody_seals_nothing(
    record_size: int, proxy: Proxy, backend: RecordingBackend
) -> None:
    """A hello in crumbs hides whose secret it is: then OpenSSL's alert goes out under number 0, and no page."""
    with HostileClient(proxy.address, Tls13Client(record_size=record_size)) as intruder:
        intruder.greet()
        intruder.send(intruder.flight(None))
        assert intruder.read_answer() == Answer(b"", str([Alert(FATAL, CERTIFICATE_REQUIRED)]), "fin")
        assert intruder.numbers() == [0]
    assert backend.connections == []
    assert proxy.connection_record(intruder.port)["reason"] == "no_certificate"


def test_interleaved_strangers_read_their_own_pages(proxy: Proxy, backend: RecordingBackend, good: Credentials) -> None:
    """A client that is accepted between the two halves of a refused one's handshake has its secrets for itself."""
    with (
        HostileClient(proxy.address) as first,
        HostileClient(proxy.address) as victim,
        HostileClient(proxy.address) as last,
    ):
        victim.client.random = last.client.random = first.client.random
        first.greet()
        victim.greet()
        last.greet()
        victim.send(victim.flight(good))
        assert victim.read_answer().data == HELLO
        backend.forget()
        for intruder in (last, first):
            intruder.send(intruder.flight(None))
            assert_turned_away(intruder, intruder.read_answer(), backend)
        assert victim.numbers() == list(range(len(victim.client.records)))


# However it comes


@pytest.mark.parametrize("stranger", ["nobody", "self_signed", "stolen"])
def test_a_stranger_byte_by_byte(stranger: str, proxy: Proxy, backend: RecordingBackend, authority: Authority) -> None:
    """However TCP cuts the handshake, the page is the same."""
    with HostileClient(proxy.address, send=send_bytewise) as intruder:
        intruder.greet()
        intruder.send(intruder.flight(STRANGERS[stranger](authority)))
        assert_turned_away(intruder, intruder.read_answer(), backend)


def test_a_good_client_byte_by_byte(proxy: Proxy, backend: RecordingBackend, good: Credentials) -> None:
    """Nor does it keep a good client out, or change a byte of its request."""
    with HostileClient(proxy.address, send=send_bytewise) as visitor:
        visitor.greet()
        visitor.send(visitor.flight(good))
        assert visitor.read_answer().data == HELLO
    assert backend.received == GET_AND_CLOSE


@pytest.mark.parametrize("size", [100_000, 10 * MEBIBYTE])
def test_what_comes_after_the_refusal(size: int, proxy: Proxy, backend: RecordingBackend) -> None:
    """Garbage after the flight, up to 10 MiB of it, is thrown away, and does not cost the client its page."""
    with HostileClient(proxy.address) as intruder:
        intruder.greet()
        intruder.send(intruder.flight(None))
        intruder.send(os.urandom(size))
        intruder.sock.shutdown(socket.SHUT_WR)
        assert_turned_away(intruder, intruder.read_answer(), backend)


def test_a_client_that_never_reads(
    proxy: Proxy, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """Who does not read the page is left to itself in the end, and keeps nobody waiting."""
    with HostileClient(proxy.address) as intruder:
        intruder.greet()
        intruder.send(intruder.flight(None))
        assert_others_are_served(proxy, client_credentials)
        assert proxy.connection_record(intruder.port)["reason"] == "no_certificate"
    assert len(backend.connections) == 1


# Handshakes that do not end


def whole_hello(intruder: HostileClient) -> bytes:
    return intruder.client.hello()


def half_a_flight(intruder: HostileClient) -> bytes:
    intruder.greet()
    return intruder.flight(None)[:20]


HALVES: dict[str, Callable[[HostileClient], bytes]] = {
    "one byte": lambda intruder: intruder.client.hello()[:1],
    "half a hello": lambda intruder: intruder.client.hello()[:90],
    "a hello": whole_hello,
    "half a flight": half_a_flight,
}


@pytest.mark.parametrize("then", ["fin", "reset", "silence"])
@pytest.mark.parametrize("half", HALVES)
def test_half_a_handshake(
    half: str, then: str, proxy: Proxy, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """Who stops in the middle is waited for, by nobody else, until it is gone or its time is up."""
    with HostileClient(proxy.address) as intruder:
        intruder.send(HALVES[half](intruder))
        assert_others_are_served(proxy, client_credentials)
        if then == "fin":
            intruder.sock.shutdown(socket.SHUT_WR)
        elif then == "reset":
            reset(intruder.sock)
        reasons = {"fin": {"handshake_failed"}, "reset": {"client_reset"}, "silence": {"handshake_timeout"}}
        assert proxy.connection_record(intruder.port)["reason"] in reasons[then]
    assert len(backend.connections) == 1


def long_chain(intruder: HostileClient, authority: Authority) -> bytes:
    intruder.greet()
    stranger, needless = REFUSED["unknown_ca"](authority), authority.issue()
    return intruder.client.certificate_flight([*chain_of(stranger), *chain_of(needless) * 90], stranger.key)


def huge_certificate(intruder: HostileClient, _: Authority) -> bytes:
    intruder.greet()
    return intruder.client.certificate_flight([bytes(100 * 1024)])


def endless_hello(intruder: HostileClient, _: Authority) -> bytes:
    beginning = handshake_message(HandshakeType.CLIENT_HELLO, bytes(60_000))[:1000]
    return b"".join(plain_record(ContentType.HANDSHAKE, part) for part in [beginning, *[bytes(1000)] * 50])


@pytest.mark.parametrize("attack", [long_chain, huge_certificate, endless_hello])
def test_more_than_a_handshake_may_cost(
    attack: Callable[[HostileClient, Authority], bytes],
    proxy: Proxy,
    backend: RecordingBackend,
    authority: Authority,
    client_credentials: CredentialFiles,
) -> None:
    """Past `limits.handshake_bytes` a stranger is cut off without a word: OpenSSL need not look at it all."""
    with HostileClient(proxy.address) as intruder:
        wire = attack(intruder, authority)
        with contextlib.suppress(OSError):  # it may be cut off while it still sends
            intruder.send(wire)
        answer = intruder.read_answer()
        assert (answer.data, answer.ending) == (b"", "[]")
    assert proxy.connection_record(intruder.port)["reason"] == "handshake_failed"
    assert backend.connections == []
    assert_others_are_served(proxy, client_credentials)


# Other openings


def legacy_hello(version: bytes) -> bytes:
    """A ClientHello of the time before TLS 1.3."""
    body = version + bytes(32) + b"\0" + vector(2, bytes.fromhex("c02f c013 002f")) + b"\1\0"
    return plain_record(ContentType.HANDSHAKE, handshake_message(HandshakeType.CLIENT_HELLO, body))


@pytest.mark.parametrize("version", [b"\3\3", b"\3\2", b"\3\1"], ids=["1.2", "1.1", "1.0"])
def test_older_versions(version: bytes, proxy: Proxy, backend: RecordingBackend) -> None:
    """TLS 1.2 and older get a protocol_version alert in clear, and nothing else of ours."""
    with HostileClient(proxy.address) as intruder:
        intruder.send(legacy_hello(version))
        answer = intruder.read_answer()
        assert (answer.ending, answer.tcp_end) == (str([Alert(FATAL, PROTOCOL_VERSION)]), "fin")
        assert len(intruder.client.wire) == 7
    assert proxy.connection_record(intruder.port)["reason"] == "tls_version"
    assert backend.connections == []


OPENINGS = {
    "SSL 2": bytes.fromhex("80 2e 01 03 01 00 15 00 00 00 10") + bytes(37),
    "SSH": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "zeros": bytes(1000),
    "a record of zeros": b"\x16" + bytes(1000),
    "a record without end": b"\x16\x03\x01\xff\xff" + bytes(1000),
    "application data": plain_record(ContentType.APPLICATION_DATA, bytes(100)),
    "an alert": plain_record(ContentType.ALERT, bytes(CLOSE_NOTIFY)),
}


@pytest.mark.parametrize("opening", OPENINGS)
def test_what_is_no_hello(opening: str, proxy: Proxy, backend: RecordingBackend) -> None:
    """What is neither TLS nor HTTP gets no page, and ends at once."""
    answer = ask_plainly(proxy.address, OPENINGS[opening])
    assert b"HTTP" not in answer.data
    assert len(answer.data) in (0, 7)
    assert proxy.wait_for("connection")["reason"] == "handshake_failed"
    assert backend.connections == []


@pytest.mark.parametrize(
    "name", [b"\xff\xfe.example", b"a\0b.example", b"a" * 300, b'a\n{"event":"connection"}', b""], ids=range(5)
)
def test_names_that_are_none(
    name: bytes, proxy: Proxy, backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """A server name of any bytes brings a stranger no further, and the log keeps one line of JSON for each."""
    with HostileClient(proxy.address, Tls13Client(server_name=name)) as intruder:
        if intruder.exchange_hellos():
            intruder.send(intruder.flight(None))
            assert intruder.read_answer().status == 400
        else:
            assert len(intruder.client.wire) == 7
    assert proxy.connection_record(intruder.port)["verdict"] in ("refused", "failed")
    assert backend.connections == []
    assert_others_are_served(proxy, client_credentials)


@pytest.mark.filterwarnings("ignore:Attribute's length")
def test_an_odd_certificate_writes_one_line(site: dict[str, Any]) -> None:
    """What a stranger's certificate says, though it break the rules for certificates, goes into the log and nowhere else."""
    key = make_key()
    odd = x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "Atlantis", _validate=False)])
    builder = x509.CertificateBuilder().subject_name(odd).issuer_name(odd).public_key(key.public_key()).serial_number(1)
    now = datetime.now(UTC)
    certificate = builder.not_valid_before(now).not_valid_after(now + DAY).sign(key, hashes.SHA256())
    with Proxy(
        {**ONE_WORKER, "sites": [site]}
    ) as proxy:  # which, when it ends, has written nothing that is no log line
        with HostileClient(proxy.address) as intruder:
            intruder.greet()
            intruder.send(intruder.flight(Credentials(certificate, (), key, b"")))
            assert intruder.read_answer().status == 400
        assert proxy.connection_record(intruder.port)["subject"] == "C=Atlantis"


# KeyUpdates, which only an accepted client can send


@pytest.mark.parametrize("answer", [False, True], ids=["unanswered", "answered"])
def test_key_updates_disturb_nobody(
    answer: bool, proxy: Proxy, backend: RecordingBackend, good: Credentials, client_credentials: CredentialFiles
) -> None:
    """A good client's KeyUpdates, 1,000 before its first byte and 2,000 behind it, keep the worker from nothing, and its
    data passes between them.
    """
    with HostileClient(proxy.address) as visitor:
        visitor.greet()
        visitor.send(visitor.flight(good, b""))
        for number, part in ((1000, b"between"), (2000, b"behind")):
            visitor.send(b"".join(visitor.client.key_update(answer=answer) for _ in range(number)))
            assert_others_are_served(proxy, client_credentials)
            backend.behaviour = echo
            visitor.send(visitor.client.application_data(part))
            while not visitor.client.received.endswith(part):
                assert visitor.receive()
            backend.behaviour = reply()
        assert visitor.client.received == b"betweenbehind"
        assert answer == bool(visitor.client.key_updates)


def test_nothing_but_key_updates(
    proxy: Proxy, backend: RecordingBackend, good: Credentials, client_credentials: CredentialFiles
) -> None:
    """A client that is let in and sends KeyUpdates without end, each dear to open, is ended before its first byte."""
    with HostileClient(proxy.address) as visitor:
        visitor.greet()
        visitor.send(visitor.flight(good, b""))
        with contextlib.suppress(OSError):
            visitor.send(b"".join(visitor.client.key_update(answer=False) for _ in range(20_000)))
        assert_others_are_served(proxy, client_credentials)
        assert proxy.connection_record(visitor.port)["reason"] == "client_reset"
    assert len(backend.connections) == 1


# Many


def nobody(client: HostileClient) -> None:
    client.greet()
    client.send(client.flight(None))
    client.read_answer()


def a_rude_nobody(client: HostileClient) -> None:
    client.greet()
    client.send(client.flight(None) + os.urandom(5000))
    reset(client.sock)


def junk_behind_the_hello(client: HostileClient) -> None:
    client.send(client.client.hello() + os.urandom(300))
    client.read_answer()


def a_spoilt_flight(client: HostileClient) -> None:
    client.greet()
    client.send(bytes(byte ^ (at == 10) for at, byte in enumerate(client.flight(None))))
    client.read_answer()


def plain_http(client: HostileClient) -> None:
    client.send(GET_AND_CLOSE)
    while client.sock.recv(65536):
        pass


def an_old_version(client: HostileClient) -> None:
    client.send(legacy_hello(b"\3\3"))
    client.read_answer()


def half_a_hello(client: HostileClient) -> None:
    client.send(client.client.hello()[:100])


def an_unanswered_retry(client: HostileClient) -> None:
    client.client.share = None
    client.send(client.client.hello())
    client.receive()


@pytest.mark.skipif(os.geteuid() != 0, reason="the descriptors of a process that is not dumpable are root's to read")
def test_three_hundred_leave_nothing_behind(proxy: Proxy, backend: RecordingBackend, good: Credentials) -> None:
    """Strangers of every kind, and good clients that vanish in the middle, cost neither descriptors nor memory."""

    def a_thief(client: HostileClient) -> None:
        client.greet()
        client.send(client.flight(replace(good, key=None)))
        client.read_answer()

    def a_good_client_that_vanishes(client: HostileClient) -> None:
        client.greet()
        client.send(client.flight(good))
        assert client.receive()
        reset(client.sock)

    kinds = [
        nobody, a_rude_nobody, junk_behind_the_hello, a_spoilt_flight, plain_http, an_old_version, half_a_hello,
        an_unanswered_retry, a_thief, a_good_client_that_vanishes,
    ]  # fmt: skip
    [pid] = proxy.worker_pids

    def visit(times: int) -> tuple[int, int]:
        ports = []
        for kind in kinds * times:
            with HostileClient(proxy.address) as client:
                kind(client)
            ports.append(client.port)
        for port in ports:
            proxy.connection_record(port)
        return len(os.listdir(f"/proc/{pid}/fd")), resident(pid)

    descriptors, memory = visit(6)
    descriptors_after, memory_after = visit(30)
    assert descriptors_after == descriptors
    assert memory_after - memory < 3 * MEBIBYTE


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
