"""Flags in place of a file."""

import argparse
from pathlib import Path

import pytest

from aop_proxy.flags import add_arguments, by_flag, load_arguments
from aop_proxy.model import (
    Admin,
    Clients,
    ConfigurationError,
    Dial,
    Limits,
    Listen,
    Log,
    Problem,
    Settings,
    Site,
    Timeouts,
)
from aop_proxy.notation import upstream


def load(line: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return load_arguments(parser.parse_args(line.split()))


def problems(line: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(line)
    return [str(problem) for problem in caught.value.problems]


def test_least_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address, a certificate and a backend are enough; paths start in the working directory."""
    monkeypatch.chdir(tmp_path)
    expected = Settings(
        (Listen("127.0.0.1", 0),),
        (Site(f"{tmp_path}/a.pem", f"{tmp_path}/a.pem", (upstream("http://127.0.0.1:8000"),)),),
    )
    assert expected == load("--listen 127.0.0.1:0 --certificate a.pem --upstream http://127.0.0.1:8000")


def test_every_flag() -> None:
    """Each key that is one value, and each of a single site, has its flag; those of lists repeat."""
    fingerprint = "ab" * 32
    expected = Settings(
        listen=(Listen("0.0.0.0", 443), Listen("::", 443)),
        sites=(
            Site(
                certificate="/c",
                private_key="/k",
                upstream=(upstream("unix:/u"),),
                hosts=("a.b", "*.a.b"),
                private_key_password_file="/p",
                alpn=("h2", "http/1.1"),
                clients=Clients(("cloudflare", "/ca"), ("/crl", "/crl2"), frozenset({fingerprint}), ("n.a", "m.a")),
                dial=Dial.EAGER,
            ),
        ),
        refusal="alert",
        unknown_hosts="reject",
        workers=3,
        timeouts=Timeouts(1, 2, 3, 4, 5),
        limits=Limits(6, 7, 8, 9, 8192),
        log=Log("text", "error", 9),
        admin=Admin(path="/a"),
        user="nobody",
    )
    assert expected == load(
        "--listen 0.0.0.0:443 --listen [::]:443 --certificate /c --private-key /k --private-key-password-file /p"
        " --upstream unix:/u --client-ca cloudflare --client-ca /ca --client-crl /crl --client-crl /crl2"
        f" --client-fingerprint {fingerprint} --client-name n.a --client-name m.a --host a.b --host *.a.b"
        " --alpn h2 --alpn http/1.1 --dial eager --refusal alert --unknown-hosts reject --workers 3"
        " --timeout-handshake 1s --timeout-connect 2s --timeout-idle 3s --timeout-linger 4s --timeout-drain 5s"
        " --limit-connections 6 --limit-unauthenticated 7 --limit-handshakes-per-turn 8"
        " --limit-handshakes-per-address 9 --limit-handshake-bytes 8KiB"
        " --log-format text --log-level error --log-refusals-per-second 9 --admin unix:/a --user nobody"
    )


def test_problems_are_named_by_flag() -> None:
    """Every problem at once, each by the flag that made it, also inside its sentence."""
    expected = [
        '--listen[0]: ":80" names no address: write `0.0.0.0:80` for all of IPv4, `[::]:80` for all of IPv6',
        "--certificate: is missing: give the PEM file of the server's certificate and its intermediates",
        '--client-ca[1]: "" is no path: name a file',
        '--upstream: "x" has no scheme: write `http[s]://HOST:PORT` or `unix:/path`',
        '--timeout-idle: "x" is not a duration: write `10s`, `500ms`, `5m`, `1h` or a number of seconds',
        "--listen[2]: is the same address as --listen[1]: keep one",
    ]
    assert expected == problems(
        "--listen :80 --listen a:1 --listen a:1 --client-ca cloudflare --client-ca= --upstream x --timeout-idle x"
    )


def test_problems_of_later_stages_are_named_by_flag() -> None:
    """A path that is no flag's stays as it is."""
    later = ["sites[0].private_key", "sites[0].clients.ca[1]", "sites[0].clients", "--config", ""]
    expected = ["--private-key", "--client-ca[1]", "sites[0].clients", "--config", ""]
    assert expected == [by_flag(Problem(path, "sentence")).path for path in later]


def test_nothing_given() -> None:
    """Without a file and without flags, one sentence says what to give."""
    expected = "nothing is configured: give --config FILE, or at least --listen, --certificate, --upstream"
    assert [expected] == problems("")


def test_file_and_flags() -> None:
    """A file and flags do not mix."""
    expected = "--config: cannot stand beside --listen, --workers: write those into the file"
    assert [expected] == problems("--config a.yaml --listen a:1 --workers 2")


def test_file(tmp_path: Path) -> None:
    """Problems of a file keep the file's paths, also when it has one site."""
    (tmp_path / "a.yaml").write_text("{listen: ['a:1'], sites: [{certificate: a, upstream: b}]}")
    expected = 'sites[0].upstream: "b" has no scheme: write `http[s]://HOST:PORT` or `unix:/path`'
    assert [expected] == problems(f"--config {tmp_path}/a.yaml")


def test_bytes_that_are_no_text() -> None:
    """An argument that is not UTF-8 is a mistake like any other, and prints."""
    (problem,) = problems("--listen a:1 --certificate c --upstream http://a --dial \udcff")
    assert problem.isprintable()
    assert problem.startswith(r'--dial: "\udcff" is not possible here: ')


def test_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable takes the place of a flag."""
    for name in ("LISTEN", "CONFIG", "AOP_PROXY_LISTEN", "AOP_PROXY_CONFIG"):
        monkeypatch.setenv(name, "127.0.0.1:0")
    expected = 1
    assert expected == len(problems(""))


def test_help_can_be_printed() -> None:
    """Every flag stands in the help with what it takes and its default."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = " ".join(parser.format_help().split())
    assert "--timeout-idle DURATION Without a byte in either direction (default: 1h)" in words
    assert "--client-ca cloudflare|FILE CAs that sign client certificates: PEM files" in words
    assert "--listen HOST:PORT Addresses to listen on, HOST:PORT (may be repeated)" in words
    assert "--alpn http/1.1|h2 Protocols" in words


def test_sentences_name_flags() -> None:
    """Where a key stands between backticks, its flag does; other words stay."""
    told = by_flag(Problem("sites[0].clients.ca", "list `hosts`, or `fingerprints`, not `cloudflare`"))
    assert str(told) == "--client-ca: list `--host`, or `--client-fingerprint`, not `cloudflare`"
