"""`aop-proxy probe` tells an origin that enforces Authenticated Origin Pulls from one that does not, whatever its make."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import origins
from actors import ONE_WORKER, PATIENCE, Outcome, Proxy, free_port, run_command
from certificates import CredentialFiles
from origins import Files, Manner

Origin = Callable[[Files, Manner], AbstractContextManager[int]]
EVERY: list[Origin] = [origins.ours, origins.nginx, origins.apache, origins.haproxy, origins.caddy]
NAME = "origin.example"


@pytest.fixture
def files(tmp_path: Path, server_credentials: CredentialFiles, client_ca: Path) -> Files:
    return Files(tmp_path, server_credentials, client_ca)


@pytest.fixture
def certificate(client_credentials: CredentialFiles) -> list[str]:
    """The flags of a client that may pass."""
    return [f"--certificate={client_credentials.certificate}", f"--private-key={client_credentials.private_key}"]


def probe(port: int, *arguments: str | Path) -> Outcome:
    return run_command("probe", f"127.0.0.1:{port}", "--server-name", NAME, *arguments)


def probe_as_json(port: int, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    done = probe(port, "--json", *arguments)
    return done.exit_code, json.loads(done.stdout)


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {visit["visitor"]: visit["outcome"] for visit in report["visitors"]}


@pytest.mark.parametrize("origin", EVERY)
def test_an_origin_that_enforces(origin: Origin, files: Files, server_ca: Path, certificate: list[str]) -> None:
    """Every stranger is refused, who shows the certificate is let in, and the exit code is 0."""
    with origin(files, "enforcing") as port:
        exit_code, report = probe_as_json(port, "--ca", server_ca, *certificate)
    assert (exit_code, report["enforced"]) == (0, True)
    seen = outcomes(report)
    assert seen.pop("certificate") == "let_in"
    assert seen.pop("certificate_resumed") in ("let_in", "not_tried")
    assert seen.pop("resumed") in ("refused", "not_tried")
    assert seen == dict.fromkeys(
        ["no_certificate", "self_signed", "expired", "plain_http", "old_tls", "unknown_name"], "refused"
    )
    assert (report["serves_plain_http"], report["accepts_old_tls"]) == (False, False)
    assert report["shows_certificate_to_unknown_name"] == (origin is not origins.caddy)
    (lasting,) = report["certificates"]
    assert (lasting["subject"], lasting["days_left"]) == (f"CN={NAME}", 89)


@pytest.mark.parametrize("origin", EVERY)
def test_an_origin_that_lets_everybody_in(origin: Origin, files: Files, certificate: list[str]) -> None:
    """The exit code is 1, with the certificate that would be let in and without."""
    with origin(files, "open") as port:
        for arguments in (certificate, []):
            exit_code, report = probe_as_json(port, "--insecure", *arguments)
            assert (exit_code, report["enforced"]) == (1, False)
            assert outcomes(report)["no_certificate"] == "let_in"
            assert report["accepts_old_tls"] == (origin is origins.nginx)
            assert not report["resumes_past_verification"]  # there is none to be passed


@pytest.mark.parametrize("origin", [origins.nginx, origins.haproxy])
def test_an_origin_that_forbids(origin: Origin, files: Files, certificate: list[str]) -> None:
    """A 403 is a refusal only if a given certificate does not get it: a backend may say 403 to everybody."""
    with origin(files, "forbidding") as port:
        exit_code, report = probe_as_json(port, "--insecure")
        assert (exit_code, report["enforced"], outcomes(report)["no_certificate"]) == (1, False, "unclear")
        exit_code, report = probe_as_json(port, "--insecure", *certificate)
        assert (exit_code, report["enforced"], outcomes(report)["no_certificate"]) == (0, True, "refused")


def test_who_resumes_is_told_from_who_shows_a_certificate(files: Files, certificate: list[str]) -> None:
    """NGINX with session tickets asks the holder of one for no certificate again; ours hands out none."""
    with origins.nginx(files, "enforcing") as port:
        assert probe_as_json(port, "--insecure", *certificate)[1]["resumes_past_verification"]
    with origins.ours(files, "enforcing") as port:
        assert not probe_as_json(port, "--insecure", *certificate)[1]["resumes_past_verification"]


def test_ours_where_refusals_are_alerts(site: dict[str, Any]) -> None:
    """`refusal: alert` and `unknown_hosts: reject` are refusals in TLS."""
    rejecting = {**ONE_WORKER, "refusal": "alert", "unknown_hosts": "reject", "sites": [{**site, "hosts": [NAME]}]}
    with Proxy(rejecting) as proxy:
        exit_code, report = probe_as_json(proxy.port, "--insecure")
    assert (exit_code, report["shows_certificate_to_unknown_name"]) == (0, False)
    alerts = {visit["visitor"]: visit["alert"] for visit in report["visitors"]}
    assert (alerts["no_certificate"], alerts["unknown_name"]) == ("certificate_required", "unrecognized_name")


def test_no_stranger_reaches_the_backend(proxy: Proxy, backend: Any) -> None:
    """And the proxy has one line for each visit that came to a request, no more."""
    assert probe(proxy.port, "--insecure").exit_code == 0
    assert backend.connections == []
    proxy.wait_for("connection", count=7)
    assert len(proxy.connection_records()) == 7


def test_the_table(proxy: Proxy, certificate: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One row for each visitor with what it saw, one for each finding, the verdict last."""
    monkeypatch.setenv("COLUMNS", "160")
    shown = probe(proxy.port, "--insecure", *certificate).stdout
    for words in ("no certificate", "expired certificate", "plain HTTP", "TLS 1.0 or 1.1", "the given certificate"):
        assert words in shown
    assert shown.splitlines()[-1] == "enforced: every stranger is refused"


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_nobody_listens(arguments: tuple[str, ...]) -> None:
    """Exit code 3, and why."""
    done = probe(free_port(), *arguments)
    assert done.exit_code == 3
    said: dict[str, Any] = json.loads(done.stdout) if arguments else {"enforced": None, "problem": done.stderr}
    assert said["enforced"] is None
    assert "cannot connect: Connection refused" in said["problem"]


def test_an_origin_that_is_not_trusted(proxy: Proxy, server_ca: Path, client_ca: Path) -> None:
    """Whoever answers in the origin's place is told from the origin, unless asked not to."""
    assert probe(proxy.port, "--ca", server_ca).exit_code == 0
    done = probe(proxy.port, "--ca", client_ca)
    assert (done.exit_code, "is not trusted" in done.stderr, "--insecure" in done.stderr) == (3, True, True)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("x:y",), 'aop-proxy: "x:y" cannot be read: write HOST:PORT'),
        (("[::1]:0",), "aop-proxy: port 0 does not exist: write 1 to 65535"),
        (("a:1", "--private-key", "x"), "aop-proxy: --private-key: is of no use without --certificate"),
        (("127.0.0.1:1", "--certificate", "/gone.pem"), "aop-proxy: /gone.pem: cannot be read"),
        (("127.0.0.1:1", "--ca", "/dev/null"), "aop-proxy: /dev/null: OpenSSL cannot use this as PEM"),
        (("127.0.0.1:1", "--server-name", "a" * 70), "aop-proxy: --server-name: "),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], problem: str) -> None:
    """Exit code 2, in a sentence, before anybody is asked."""
    done = run_command("probe", *arguments)
    assert (done.exit_code, done.stdout, done.stderr.startswith(problem)) == (2, "", True), done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_it_needs_no_privilege(proxy: Proxy) -> None:
    """Nobody can ask: what is loaded, from wherever this Python lives, is loaded before root is given up."""
    code = f"""
import os
from aop_proxy.cli import main
ask = ["probe", "127.0.0.1:{proxy.port}", "--server-name", "{NAME}", "--insecure", "--json"]
main(ask)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
print("as nobody")
raise SystemExit(main(ask))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=3 * PATIENCE, env={**os.environ, "TMPDIR": "/tmp"}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.partition("as nobody\n")[2])["enforced"]
