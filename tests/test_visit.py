"""One visit to an origin: what is learnt, and the bounds of it."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors import PATIENCE, reset
from aop_proxy import visit
from aop_proxy.visit import Address, Answer, Credentials, Unreachable, ask, ask_plainly, client_context, make_old
from certificates import CredentialFiles

REQUEST = b"GET / HTTP/1.1\r\n\r\n"
Behaviour = Callable[[socket.socket], None]


@contextlib.contextmanager
def origin(behave: Behaviour) -> Iterator[Address]:
    """Whoever connects first is treated so."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            end, _ = listener.accept()
            end.settimeout(PATIENCE)
            with end, contextlib.suppress(OSError):
                behave(end)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()
        thread.join(PATIENCE)


def over_tls(credentials: CredentialFiles, behave: Behaviour, ca: Path | None = None) -> Behaviour:
    """The same inside TLS, from a server that asks for no certificate, or for one of `ca`."""

    def serve(end: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(credentials.certificate, credentials.private_key)
        if ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(ca)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        with context.wrap_socket(end, server_side=True) as tls:
            behave(tls)

    return serve


def ask_anybody(address: Address) -> Answer:
    return ask(address, REQUEST, client_context(None, None, verify=False), "origin.example")


def hello(end: socket.socket) -> None:
    end.recv(1024)
    end.sendall(b"hello")


def endless(end: socket.socket) -> None:
    while True:
        end.sendall(b"x" * 65536)


def silent(end: socket.socket) -> None:
    while end.recv(1024):
        pass


def test_in_clear() -> None:
    """What was said, to its end."""
    with origin(hello) as address:
        assert ask_plainly(address, REQUEST).data == b"hello"


def test_over_tls(server_credentials: CredentialFiles) -> None:
    """What was said, in which version, with which certificate, and the session that was offered."""
    with origin(over_tls(server_credentials, hello)) as address:
        answer = ask_anybody(address)
    assert (answer.data, answer.tls_version, answer.resumed, answer.alert) == (b"hello", "TLSv1.3", False, None)
    assert answer.session is not None
    leaf = ssl.PEM_cert_to_DER_cert(server_credentials.certificate.read_text())
    assert answer.chain[0] == leaf


@pytest.mark.parametrize("encrypted", [False, True])
def test_an_endless_answer_is_cut(server_credentials: CredentialFiles, encrypted: bool) -> None:
    """Soon after as much as a refusal can be."""
    with origin(over_tls(server_credentials, endless) if encrypted else endless) as address:
        answer = ask_anybody(address) if encrypted else ask_plainly(address, REQUEST)
    assert visit.MAX_ANSWER <= len(answer.data) < 2 * visit.MAX_ANSWER


def test_a_connection_is_cut(server_credentials: CredentialFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its bytes are, answer or not."""
    monkeypatch.setattr(visit, "MAX_RECEIVED", 30_000)
    with origin(over_tls(server_credentials, endless)) as address:
        assert len(ask_anybody(address).data) < 30_000


def test_one_address_is_asked() -> None:
    """Whatever a name leads to."""
    with origin(lambda _: None) as address:
        assert visit.locate(("localhost", address[1])) == address
    with pytest.raises(Unreachable, match="cannot connect"):
        visit.locate(address)


def test_a_silent_origin_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing within the deadline, in the handshake as after it."""
    monkeypatch.setattr(visit, "PATIENCE", 0.2)
    with origin(silent) as address:
        assert ask_plainly(address, REQUEST).ending == "no answer within 0 s"
    with origin(silent) as address:
        answer = ask_anybody(address)
    assert (answer.ending, answer.tls_version, answer.chain) == ("no answer within 0 s", None, ())


def test_a_trickle_is_cut_at_the_same_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is for the whole answer, not for each byte."""
    monkeypatch.setattr(visit, "PATIENCE", 0.3)
    go_on = threading.Event()

    def trickle(end: socket.socket) -> None:
        while not go_on.wait(0.05):
            end.sendall(b"x")

    with origin(trickle) as address:
        answer = ask_plainly(address, REQUEST)
        go_on.set()
    assert answer.data.strip(b"x") == b""


def test_a_reset(server_credentials: CredentialFiles) -> None:
    """Is told from an end."""

    def listen_and_reset(end: socket.socket) -> None:
        end.recv(1024)
        reset(end)

    with origin(listen_and_reset) as address:
        assert ask_plainly(address, REQUEST).ending == "reset without an answer"


def test_no_tls_at_all() -> None:
    """A server that answers in clear has not refused anybody in TLS."""
    with origin(lambda end: end.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as address:
        answer = ask_anybody(address)
    assert (answer.alert, answer.ending[:8], answer.chain) == (None, "no TLS (", ())


def test_a_refusal_inside_the_handshake(server_credentials: CredentialFiles, client_ca: Path) -> None:
    """In TLS 1.2 the handshake fails; the alert and the origin's certificate are known all the same."""
    with origin(over_tls(server_credentials, hello, client_ca)) as address:
        answer = ask_anybody(address)
    assert (answer.alert, answer.tls_version, len(answer.chain)) == ("handshake_failure", None, 1)


def test_who_is_not_trusted(server_credentials: CredentialFiles, server_ca: Path, client_ca: Path) -> None:
    """Nothing is asked of an origin whose certificate is from elsewhere, or for another name."""
    for ca, name, problem in (
        (client_ca, "origin.example", "is not trusted"),
        (server_ca, "other.example", "is not trusted (Hostname mismatch"),
    ):
        context = client_context(None, str(ca), verify=True)
        with origin(over_tls(server_credentials, hello)) as address, pytest.raises(Unreachable) as caught:
            ask(address, REQUEST, context, name)
        assert problem in str(caught.value)


def test_files_that_are_of_no_use(tmp_path: Path, server_credentials: CredentialFiles) -> None:
    """Each is named."""
    with pytest.raises(ValueError, match=r"gone\.pem: cannot be read"):
        client_context(Credentials(f"{tmp_path}/gone.pem", f"{tmp_path}/gone.pem"), None, verify=True)
    certificate = str(server_credentials.certificate)
    with pytest.raises(ValueError, match=r"server\.pem: OpenSSL cannot use this as PEM"):
        client_context(Credentials(certificate, certificate), None, verify=True)


def test_old_tls_is_all_that_is_offered(server_credentials: CredentialFiles) -> None:
    """TLS 1.1 at most, and from an OpenSSL that can."""
    hellos: list[bytes] = []
    context = client_context(None, None, verify=False)
    make_old(context)
    with origin(lambda end: hellos.append(end.recv(1024))) as address:
        ask(address, REQUEST, context, "origin.example")
    assert hellos[0][9:11] == b"\x03\x02"  # RFC 4346, ClientHello.client_version
