"""What stands before every session: the key log, and the contexts, each of which must be closed to strangers."""

import ast
import gc
import os
import resource
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import aop_proxy
from aop_proxy import snapshot, tls
from aop_proxy.model import Bundle, Clients, Settings, Site, Upstream
from aop_proxy.reasons import Reason
from aop_proxy.tls import KeyLog, Refused
from certificates import Authority, CredentialFiles
from encounter import Judge, der


@pytest.fixture
def key_log() -> Iterator[KeyLog]:
    log = KeyLog()
    yield log
    log.close()


@pytest.fixture
def judge(server_credentials: CredentialFiles, key_log: KeyLog, authority: Authority) -> Judge:
    return Judge.of(server_credentials, key_log, authority)


# The key log


def test_the_key_log_overwrites_what_it_read(key_log: KeyLog, judge: Judge) -> None:
    """What was drained stands in no buffer of ours any more."""
    encounter = judge.meet()
    encounter.greet()
    assert not any(key_log._buffer)


def test_a_key_log_holds_no_descriptor_once_closed() -> None:
    """Closing it gives both back."""
    before = os.listdir("/dev/fd")
    KeyLog().close()
    assert before == os.listdir("/dev/fd")


def test_no_key_log_without_descriptors() -> None:
    """Where no descriptor is left it says so, and keeps none that it got."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = os.listdir("/dev/fd")
    next_ones = [os.open("/dev/null", os.O_RDONLY) for _ in range(3)]
    for descriptor in next_ones:
        os.close(descriptor)
    try:
        for limit in next_ones:  # none can be opened, one, two: the pipe alone
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            with pytest.raises(OSError, match="Too many open files"):
                KeyLog()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert before == os.listdir("/dev/fd")


def test_no_program_inherits_the_key_log(judge: Judge, key_log: KeyLog) -> None:
    """A program that is started with every descriptor it can have has none of the pipe's: not even the context's own."""
    assert judge.key_log is key_log
    pipe = os.readlink(key_log.path)
    assert [os.readlink(f"/dev/fd/{name}") for name in os.listdir("/dev/fd") if _is_open(name)].count(pipe) >= 3
    listing = subprocess.run(["ls", "-l", "/dev/fd/"], close_fds=False, capture_output=True, text=True, check=True)
    assert pipe not in listing.stdout


def _is_open(descriptor: str) -> bool:
    return os.path.lexists(f"/dev/fd/{descriptor}")


def test_a_context_gives_its_descriptor_back(
    server_credentials: CredentialFiles, key_log: KeyLog, authority: Authority
) -> None:
    """No cycle keeps a context alive after its last session, nor the descriptor that it logs through."""
    gc.disable()
    try:
        before = len(os.listdir("/dev/fd"))
        encounter = Judge.of(server_credentials, key_log, authority).meet()
        encounter.greet()
        encounter.refuse(encounter.client.certificate_flight())
        del encounter
        assert before == len(os.listdir("/dev/fd"))
    finally:
        gc.enable()


# Contexts: the one gate


def remove_option(option: int) -> Callable[[ssl.SSLContext], None]:
    def remove(context: ssl.SSLContext) -> None:
        context.options &= ~option

    return remove


def set_to(name: str, value: object) -> Callable[[ssl.SSLContext], None]:
    return lambda context: setattr(context, name, value)


OPENED: dict[str, Callable[[ssl.SSLContext], None]] = {
    "certificates optional": set_to("verify_mode", ssl.CERT_OPTIONAL),
    "no certificates": set_to("verify_mode", ssl.CERT_NONE),
    "post-handshake authentication": set_to("post_handshake_auth", True),
    "session tickets": set_to("num_tickets", 2),
    "TLS 1.2": set_to("minimum_version", ssl.TLSVersion.TLSv1_2),
    "any version": set_to("minimum_version", ssl.TLSVersion.MINIMUM_SUPPORTED),
    "stateless tickets": remove_option(ssl.OP_NO_TICKET),
    "renegotiation": remove_option(ssl.OP_NO_RENEGOTIATION),
    "compression": remove_option(ssl.OP_NO_COMPRESSION),
    "certificate compression": remove_option(tls.NO_RX_CERTIFICATE_COMPRESSION),
}


@pytest.mark.parametrize("opening", OPENED)
def test_a_context_that_is_not_closed_is_refused(judge: Judge, opening: str) -> None:
    """Each setting that could let a stranger in stops the program."""
    tls._assert_closed(judge.context)
    OPENED[opening](judge.context)
    with pytest.raises(RuntimeError, match="does not require client certificates"):
        tls._assert_closed(judge.context)


def test_post_handshake_authentication_would_open_the_gate(judge: Judge) -> None:
    """Why it is asserted: with it on nobody is asked for a certificate, while the context still reads CERT_REQUIRED."""
    judge.context.post_handshake_auth = True
    assert judge.context.verify_mode == ssl.CERT_REQUIRED
    encounter = judge.meet()
    encounter.greet()
    assert None is encounter.client.certificate_request
    refused = encounter.send(encounter.client.finished())
    assert isinstance(refused, Refused)  # the session has a second look: it found no certificate
    assert refused.reason == Reason.INTERNAL_ERROR


@pytest.mark.parametrize("mode", [ssl.CERT_OPTIONAL, ssl.CERT_NONE])
def test_a_session_passes_nobody_without_a_certificate(judge: Judge, mode: ssl.VerifyMode) -> None:
    """Where a context would: the session requires one of its own, unless it is told otherwise as well."""
    judge.context.verify_mode = mode
    encounter = judge.meet()
    encounter.greet()
    shown = [] if mode is ssl.CERT_NONE else [encounter.client.certificate_flight()]
    refused = encounter.send(b"".join(shown) or encounter.client.finished())
    assert isinstance(refused, Refused)
    assert refused.reason == Reason.INTERNAL_ERROR


def test_a_context_without_a_ca_is_refused(authority: Authority) -> None:
    """An authority that is no CA trusts nobody, and is no context at all."""
    with pytest.raises(RuntimeError):
        tls.quiet_context([der(authority.issue().certificate)])
    with pytest.raises((RuntimeError, ValueError, ssl.SSLError)):
        tls.quiet_context([])


@pytest.fixture
def settings(
    server_credentials: CredentialFiles, client_ca: Path, authority: Authority
) -> tuple[Settings, dict[str, bytes]]:
    """Two sites, one with a revocation list, and the content of their files."""
    files = {
        "pem": server_credentials.certificate.read_bytes(),
        "key": server_credentials.private_key.read_bytes(),
        "ca": client_ca.read_bytes(),
        "crl": authority.revoke(authority.issue()),
    }

    def site(name: str, crl: tuple[str, ...], port: int) -> Site:
        upstream = Upstream(f"http://127.0.0.1:{port}", "127.0.0.1", port)
        return Site("pem", "key", (upstream,), (name,), clients=Clients(("ca",), crl))

    return Settings(listen=(), sites=(site("a.example", (), 1), site("b.example", ("crl",), 2))), files


@pytest.mark.parametrize("unknown_hosts", ["page", "reject"])
@pytest.mark.parametrize("refusal", ["page", "alert"])
def test_every_context_of_a_snapshot_requires_certificates(
    settings: tuple[Settings, dict[str, bytes]], key_log: KeyLog, unknown_hosts: str, refusal: str
) -> None:
    """Whatever is configured, each server context that a worker then has is closed: looked for in all of its memory."""
    chosen, files = settings
    before = [each for each in gc.get_objects() if isinstance(each, ssl.SSLContext)]
    configured = replace(chosen, unknown_hosts=unknown_hosts, refusal=refusal)  # type: ignore[arg-type]
    built = snapshot.build(Bundle(configured, files), 1, key_log if refusal == "page" else None)
    contexts = [each for each in gc.get_objects() if isinstance(each, ssl.SSLContext) and each not in before]
    named = {built.quiet_context, built.name_reading_context, *(gate.context for gate in built.gates)}
    assert named == set(contexts)
    for context in contexts:
        assert context.protocol == ssl.PROTOCOL_TLS_SERVER
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert not context.post_handshake_auth
        tls._assert_closed(context)
    assert [bool(gate.context.verify_flags & ssl.VERIFY_CRL_CHECK_CHAIN) for gate in built.gates] == [False, True]


def test_what_observing_opens(settings: tuple[Settings, dict[str, bytes]], key_log: KeyLog) -> None:
    """The contexts of the sites, on which a certificate becomes optional and nothing else changes; no other."""
    chosen, files = settings
    built = snapshot.build(Bundle(replace(chosen, enforcement="observe"), files), 1, key_log)
    assert built.name_reading_context is not None
    for context in (built.quiet_context, built.name_reading_context):
        tls._assert_closed(context)
    for gate in built.gates:
        assert gate.context.verify_mode == ssl.CERT_OPTIONAL
        gate.context.verify_mode = ssl.CERT_REQUIRED
        tls._assert_closed(gate.context)


def test_server_contexts_are_made_in_one_place() -> None:
    """Only `_closed_context` makes a context for a server, and only `tls` makes sessions of one."""
    makers, wrappers = set(), set()
    for path in Path(aop_proxy.__file__).parent.glob("**/*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Attribute) and node.attr in ("PROTOCOL_TLS_SERVER", "PROTOCOL_TLS", "Purpose"):
                    makers.add((path.name, function.name))
                if isinstance(node, ast.keyword) and node.arg == "server_side" and ast.unparse(node.value) != "False":
                    wrappers.add(path.name)
    assert {("tls.py", "_closed_context")} == makers
    assert {"tls.py"} == wrappers
