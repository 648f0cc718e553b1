"""With `enforcement: observe` who would be refused by our own rules is forwarded and told; what OpenSSL refuses is not.

Nothing of this may happen where it is not asked for: without the key every context requires a certificate, which
`test_tls_contexts` looks at, and a session of such a context passes nobody without one.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import (
    HELLO,
    ONE_WORKER,
    Answer,
    Event,
    Proxy,
    RecordingBackend,
    TlsClient,
    ask,
    client_context,
    run_command,
)
from aop_proxy.proxy_protocol import PP2_CLIENT_SSL, Complete, parse
from aop_proxy.reasons import Reason
from certificates import REFUSED, Authority, CredentialFiles

OBSERVING = {**ONE_WORKER, "enforcement": "observe"}
STRICT = {"names": ["edge.example"]}


@pytest.fixture(scope="module")
def observed_site(site: dict[str, Any]) -> dict[str, Any]:
    """A site with a rule of its own and a name, whose backend is told of the certificate."""
    upstream = {"url": site["upstream"], "proxy_protocol": "v2-tls"}
    return {**site, "hosts": ["localhost"], "clients": {**site["clients"], **STRICT}, "upstream": upstream}


@pytest.fixture(scope="module")
def module_proxy(observed_site: dict[str, Any]) -> Iterator[Proxy]:
    with Proxy({**OBSERVING, "sites": [observed_site]}) as proxy:
        yield proxy


def visit(
    proxy: Proxy, credentials: CredentialFiles | None, server_name: str | None = "localhost"
) -> tuple[Answer, Event]:
    """One request with this certificate, and the line it left."""
    proxy.forget()
    answer = ask(proxy.address, client_context(credentials), server_name=server_name)
    return answer, proxy.wait_for("connection")


def told(backend: RecordingBackend) -> tuple[int, int, bool]:
    """What the one connection's header said of the client's certificate: bits, result, and whether it came along."""
    (connection,) = backend.connections
    outcome = parse(bytes(connection.received))
    assert isinstance(outcome, Complete)
    assert outcome.header.tls is not None
    return outcome.header.tls.client, outcome.header.tls.verify, bool(outcome.header.tls.certificate)


def test_no_certificate(proxy: Proxy, backend: RecordingBackend) -> None:
    """It is served, and logged with the reason for which it would have been refused; the backend hears of none."""
    answer, line = visit(proxy, None)
    assert HELLO in answer.data
    assert ["would_refuse", "no_certificate", "closed"] == [line[key] for key in ("verdict", "reason", "ended")]
    assert [None, None, "localhost"] == [line[key] for key in ("subject", "fingerprint", "site")]
    assert (PP2_CLIENT_SSL, 1, False) == told(backend)


def test_an_identity_that_is_not_listed(
    proxy: Proxy, backend: RecordingBackend, authority: Authority, tmp_path: Path
) -> None:
    """It is served and named in the log; the backend hears of its certificate, and that it is not allowed."""
    answer, line = visit(proxy, authority.issue("other.example").write(tmp_path, "other"))
    assert HELLO in answer.data
    assert ["would_refuse", "identity_not_allowed", "CN=other.example"] == [
        line[key] for key in ("verdict", "reason", "subject")
    ]
    assert (7, 50, True) == told(backend)  # X509_V_ERR_APPLICATION_VERIFICATION


def test_who_may_pass_is_accepted(proxy: Proxy, backend: RecordingBackend, client_credentials: CredentialFiles) -> None:
    """Nothing is different for it."""
    answer, line = visit(proxy, client_credentials)
    assert HELLO in answer.data
    assert ["accepted", "closed", False] == [line["verdict"], line["reason"], "ended" in line]
    assert (7, 0, True) == told(backend)


@pytest.mark.parametrize("unknown_hosts", ["page", "reject"])
def test_a_host_that_nobody_serves(
    observed_site: dict[str, Any], backend: RecordingBackend, client_credentials: CredentialFiles, unknown_hosts: str
) -> None:
    """It goes to the first site's backend, whatever is configured for such hosts."""
    with Proxy({**OBSERVING, "unknown_hosts": unknown_hosts, "sites": [observed_site]}) as proxy:
        for credentials, reason in ((client_credentials, "unknown_host"), (None, "no_certificate")):
            answer, line = visit(proxy, credentials, "other.example")
            assert HELLO in answer.data
            assert ["would_refuse", reason, None] == [line[key] for key in ("verdict", "reason", "site")]
    assert 2 == len(backend.connections)


@pytest.mark.parametrize("specimen", REFUSED)
@pytest.mark.parametrize("refusal", ["page", "alert"])
def test_what_openssl_refuses_is_refused(
    proxy: Proxy,
    observed_site: dict[str, Any],
    backend: RecordingBackend,
    authority: Authority,
    tmp_path: Path,
    specimen: str,
    refusal: str,
) -> None:
    """A certificate that is shown and fails is refused as ever, and nothing of it is forwarded."""
    credentials = REFUSED[specimen](authority).write(tmp_path, "stranger")
    with contextlib.ExitStack() as stack:
        if refusal == "alert":
            settings = {**OBSERVING, "refusal": "alert", "sites": [observed_site]}
            proxy = stack.enter_context(Proxy(settings))
        answer, line = visit(proxy, credentials)
    assert (400 if refusal == "page" else 0) == answer.status
    assert "refused" == line["verdict"]
    assert [] == backend.connections


def test_a_name_that_cannot_be_read(
    proxy: Proxy, backend: RecordingBackend, authority: Authority, tmp_path: Path
) -> None:
    """Nor can it be overruled that nobody can say whose certificate it is, though OpenSSL verified it."""
    answer, line = visit(proxy, authority.issue("edge.example\0.evil").write(tmp_path, "nul"))
    assert (400, "refused", "bad_certificate") == (answer.status, line["verdict"], line["reason"])
    assert [] == backend.connections


def test_a_backend_that_is_down(observed_site: dict[str, Any]) -> None:
    """Who would have been refused is told as that, and how it ended beside it."""
    down = {**observed_site, "upstream": "http://127.0.0.1:9"}
    with Proxy({**OBSERVING, "sites": [down]}) as proxy:
        answer, line = visit(proxy, None)
    assert 502 == answer.status
    assert ["would_refuse", "no_certificate", "upstream_unreachable", "warning"] == [
        line[key] for key in ("verdict", "reason", "ended", "level")
    ]


def test_too_many_are_turned_away(observed_site: dict[str, Any], backend: RecordingBackend) -> None:
    """Limits hold for those that are only observed, too."""
    with Proxy({**OBSERVING, "limits": {"connections": 1}, "sites": [observed_site]}) as proxy:
        with TlsClient(proxy.address, client_context()) as first:
            first.handshake(with_data=b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            first.receive_exactly(len(HELLO))
            assert 503 == ask(proxy.address, client_context()).status
        assert "refused" == proxy.wait_for("connection", reason="too_many_connections")["verdict"]
    assert 1 == len(backend.connections)


def test_it_is_said_loudly(observed_site: dict[str, Any], proxy: Proxy) -> None:
    """At the start as a warning, and by `check`; not where it enforces."""
    assert proxy.log.events
    (warning,) = [event for event in proxy.log.events if event["event"] == "advice"]
    assert "warning" == warning["level"]
    assert warning["advice"].startswith("enforcement: `observe` keeps nobody out")
    checked = run_command("check", "--config", proxy.config_path)
    assert (0, True) == (checked.exit_code, checked.stdout.startswith("advice: enforcement: `observe`"))
    with Proxy({**ONE_WORKER, "sites": [observed_site]}) as enforcing:
        assert [] == enforcing.events("advice")


def test_enforcing_is_what_it_was(
    observed_site: dict[str, Any], backend: RecordingBackend, authority: Authority, tmp_path: Path
) -> None:
    """The same visitors are refused without the key, and with `enforce`."""
    other = authority.issue("other.example").write(tmp_path, "other")
    for settings in (ONE_WORKER, {**ONE_WORKER, "enforcement": "enforce"}):
        with Proxy({**settings, "sites": [observed_site]}) as proxy:
            for credentials, reason in ((None, Reason.NO_CERTIFICATE), (other, Reason.IDENTITY_NOT_ALLOWED)):
                answer, line = visit(proxy, credentials)
                assert (400, "refused", reason) == (answer.status, line["verdict"], line["reason"])
    assert [] == backend.connections


def test_a_flag_does_the_same(server_credentials: CredentialFiles, client_ca: Path, backend: RecordingBackend) -> None:
    """`--enforcement observe`."""
    flags: list[str | Path] = [
        "--certificate",
        server_credentials.certificate,
        "--private-key",
        server_credentials.private_key,
    ]
    flags += ["--client-ca", client_ca, "--upstream", backend.url, "--enforcement", "observe", "--log-format", "json"]
    with Proxy(flags=flags) as proxy:
        assert HELLO in ask(proxy.address, client_context()).data
