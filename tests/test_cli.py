"""The command line: what it prints where, and how it exits."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import aop_proxy
from actors import PATIENCE, Proxy, run_command
from aop_proxy.cli import INTERRUPTED, main
from aop_proxy.schema import json_schema
from certificates import Authority

Output = pytest.CaptureFixture[str]


@pytest.fixture
def config(site: dict[str, Any], tmp_path: Path) -> Path:
    """A file with nothing wrong in it."""
    return write(tmp_path, site)


def write(directory: Path, site: dict[str, Any], **more: Any) -> Path:
    path = directory / "proxy.yaml"
    path.write_text(yaml.safe_dump({"listen": ["127.0.0.1:0"], "sites": [site], **more}))
    return path


def flags(site: dict[str, Any], **changed: str) -> list[str]:
    """The same as flags."""
    given = {
        "listen": "127.0.0.1:0",
        "certificate": site["certificate"],
        "private-key": site["private_key"],
        "client-ca": site["clients"]["ca"][0],
        "upstream": site["upstream"],
    }
    given |= {name.replace("_", "-"): value for name, value in changed.items()}
    return [f"--{name}={value}" for name, value in given.items()]


def fails(*arguments: str) -> object:
    """The exit code of arguments that argparse does not take."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


# The program


def test_the_program_is_installed_under_its_name() -> None:
    """The console script and `python -m` are the same."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"aop-proxy": "aop_proxy.cli:main"}
    assert run_command("--version").stdout == f"aop-proxy {aop_proxy.__version__}\n"


def test_version_and_help(capsys: Output) -> None:
    """Both print and exit 0; the help names every command with what it is for."""
    assert fails("--version") == 0
    assert capsys.readouterr().out == f"aop-proxy {aop_proxy.__version__}\n"
    assert fails("--help") == 0
    shown = capsys.readouterr().out
    listed = re.findall(r"^    ([a-z]+)\s", shown, re.MULTILINE)
    assert set(listed) >= {"run", "check", "certificates", "demo"}


@pytest.mark.parametrize("command", ["run", "check"])
def test_the_help_of_a_command(capsys: Output, command: str) -> None:
    """Every flag is there, percent signs and all."""
    assert fails(command, "--help") == 0
    shown = capsys.readouterr().out
    assert [flag for flag in ("--config", "--listen", "--client-ca", "--timeout-idle") if flag not in shown] == []


@pytest.mark.parametrize(
    "arguments", [(), ("serve",), ("run", "--nonsense"), ("demo", "--config", "x"), ("run", "--", "x")]
)
def test_arguments_that_nobody_knows(capsys: Output, arguments: tuple[str, ...]) -> None:
    """Exit code 2, and how it is used on stderr."""
    assert fails(*arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, "usage: aop-proxy" in captured.err) == ("", True)


def test_keys_are_logged_nowhere_else(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    """SSLKEYLOGFILE is forgotten before anything of OpenSSL's is used."""
    monkeypatch.setenv("SSLKEYLOGFILE", "/nonexistent/keys")
    assert main(["check", "--schema"]) == 0
    assert "SSLKEYLOGFILE" not in os.environ
    assert capsys.readouterr().err == ""


def test_ctrl_c() -> None:
    """Ends a command that takes its time, without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [sys.executable, "-m", "aop_proxy", "probe", f"127.0.0.1:{silent.getsockname()[1]}", "--insecure"]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            silent.accept()[0].close()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (INTERRUPTED, b"")


# check


def test_check_of_a_good_file(config: Path, capsys: Output) -> None:
    """Nothing to say is exit code 0."""
    assert main(["check", "--config", str(config)]) == 0
    assert capsys.readouterr() == ("", "")


def test_check_of_good_flags(site: dict[str, Any], capsys: Output) -> None:
    """The same for flags, also where they ask for alerts in place of pages."""
    assert main(["check", *flags(site)]) == 0
    assert main(["check", *flags(site, refusal="alert")]) == 0
    assert capsys.readouterr() == ("", "")


def test_check_opens_no_port(site: dict[str, Any], tmp_path: Path) -> None:
    """An address that is taken is nothing to it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        path = write(tmp_path, site, listen=[f"127.0.0.1:{taken.getsockname()[1]}"])
        assert main(["check", "--config", str(path)]) == 0


def test_check_says_everything_that_is_wrong(site: dict[str, Any], tmp_path: Path, capsys: Output) -> None:
    """On stdout, one problem a line: what cannot be read and what cannot be used, together."""
    (tmp_path / "page.pem").write_text("<html>")
    wrong = {**site, "private_key": "gone.key", "clients": {"ca": ["page.pem", site["clients"]["ca"][0]]}}
    assert main(["check", "--config", str(write(tmp_path, wrong))]) == 2
    captured = capsys.readouterr()
    assert [line.partition(": ")[0] for line in captured.out.splitlines()] == [
        "sites[0].private_key",
        "sites[0].clients.ca[0]",
    ]
    assert captured.err == ""


def test_check_looks_on_past_bad_values(site: dict[str, Any], tmp_path: Path, capsys: Output) -> None:
    """Values, files and what is in the files in one run; nothing about what stands in for a bad value, and no advice."""
    (tmp_path / "page.pem").write_text("<html>")
    clients = {"ca": ["", "page.pem", site["clients"]["ca"][0]], "crl": ["gone.crl"], "nonsense": 1}
    wrong = {**site, "private_key": "gone.key", "clients": clients, "upstream": "x", "alpn": ["h3"]}
    lacking = {"hosts": ["b.example", "*"], "clients": {"ca": ["cloudflare"]}, "upstream": "http://b:1"}
    path = tmp_path / "proxy.yaml"
    document = {"listen": [":443"], "workers": "many", "user": "nobody-of-this-name", "sites": [wrong, lacking]}
    path.write_text(yaml.safe_dump(document))
    assert main(["check", "--config", str(path)]) == 2
    assert sorted(line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()) == sorted(
        [
            "listen[0]",
            "workers",
            "user",
            "sites[0].clients.ca[0]",
            "sites[0].clients.ca[1]",
            "sites[0].clients.crl[0]",
            "sites[0].clients.crl",
            "sites[0].clients.nonsense",
            "sites[0].private_key",
            "sites[0].upstream",
            "sites[0].alpn[0]",
            "sites[1].hosts[1]",
            "sites[1].certificate",
        ]
    )


def test_check_looks_on_past_bad_flags(site: dict[str, Any], capsys: Output) -> None:
    """The same by flag."""
    assert main(["check", *flags(site, upstream="x", private_key="/gone.key")]) == 2
    shown = capsys.readouterr().out
    assert [line.partition(": ")[0] for line in shown.splitlines()] == ["--upstream", "--private-key"]


def test_check_names_flags(site: dict[str, Any], tmp_path: Path, capsys: Output) -> None:
    """What was given as a flag is named as one."""
    (tmp_path / "page.pem").write_text("<html>")
    arguments = [*flags(site, private_key=f"{tmp_path}/gone.key"), f"--client-ca={tmp_path}/page.pem"]
    assert main(["check", *arguments]) == 2
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in told] == ["--private-key", "--client-ca[1]"]


def test_check_of_a_file_that_is_no_configuration(tmp_path: Path, capsys: Output) -> None:
    """What is wrong with the form comes out the same way."""
    path = tmp_path / "proxy.yaml"
    path.write_text("listn: []\n")
    assert main(["check", "--config", str(path)]) == 2
    assert "listn: is not a known key: did you mean `listen`?" in capsys.readouterr().out


def test_check_gives_advice(site: dict[str, Any], tmp_path: Path, capsys: Output) -> None:
    """What is merely worth knowing is marked as such, and changes nothing."""
    path = write(tmp_path, {**site, "clients": {"ca": ["cloudflare"]}})
    assert main(["check", "--config", str(path)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("advice: sites[0].clients.ca: Cloudflare's shared CA")


def test_check_knows_the_users_of_this_machine(site: dict[str, Any], tmp_path: Path, capsys: Output) -> None:
    """A start that would fail for its `user` fails in `check` already."""
    path = write(tmp_path, site, user="nobody-of-this-name")
    assert main(["check", "--config", str(path)]) == 2
    assert "nobody-of-this-name" in capsys.readouterr().out


def test_check_schema(capsys: Output) -> None:
    """The JSON Schema, and nothing else; no configuration is needed."""
    assert main(["check", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


# run


def test_run_with_something_wrong(site: dict[str, Any], capsys: Output) -> None:
    """Every problem on stderr, one a line, by flag; nothing on stdout; exit code 2."""
    assert main(["run", *flags(site, certificate="/gone.pem", private_key="/gone.key")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split(": ")[:2] for line in captured.err.splitlines()] == [
        ["aop-proxy", "--certificate"],
        ["aop-proxy", "--private-key"],
    ]


def test_run_without_anything(capsys: Output) -> None:
    """It is said what is needed."""
    assert main(["run"]) == 2
    assert "nothing is configured: give --config FILE, or at least --listen" in capsys.readouterr().err


def test_run_where_an_address_is_taken(site: dict[str, Any], capsys: Output) -> None:
    """Exit code 4, and which one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["run", *flags(site, listen=f"127.0.0.1:{port}")]) == 4
    expected = f"aop-proxy: cannot listen on 127.0.0.1:{port}: Address already in use by "
    assert capsys.readouterr().err.startswith(expected)


def test_run_with_a_certificate_that_is_none(site: dict[str, Any], tmp_path: Path) -> None:
    """What a worker finds wrong is named by flag, too."""
    leaf = Authority().issue().write(tmp_path, "leaf")
    done = run_command("run", *flags(site, client_ca=str(leaf.certificate)), "--workers=1", "--log-format=json")
    assert done.exit_code == 2
    told = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert [line.split(": ")[:2] for line in told] == [["aop-proxy", "--client-ca[0]"]]


def test_run_serves_until_it_is_told_to_end(site: dict[str, Any]) -> None:
    """By flags as by a file."""
    with Proxy(flags=[*flags(site), "--workers=1", "--log-format=json"]) as proxy:
        proxy.signal(signal.SIGTERM)
        assert proxy.exit_code == 0


def test_log_as_text(site: dict[str, Any]) -> None:
    """`--log-format text` is for people."""
    read, write = os.pipe()
    command = [sys.executable, "-m", "aop_proxy", "run", *flags(site), "--workers=1", "--log-format=text"]
    with subprocess.Popen(command, stderr=write) as process, open(read) as lines:
        os.close(write)
        for line in lines:
            if "listening" in line:
                break
        process.terminate()
        rest = lines.read()
    assert " info    listening addresses=127.0.0.1:" in line
    assert " info    drained connections_cut=0" in rest


def test_certificates(tmp_path: Path, capsys: Output) -> None:
    """What was made is told on stdout; why nothing was, in one line on stderr, with exit code 2."""
    arguments = ["certificates", "--out", str(tmp_path / "zone"), "--name", "example.com"]
    assert main(arguments) == 0
    assert str(tmp_path / "zone") in capsys.readouterr().out
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n"), captured.err.startswith("aop-proxy: ")) == ("", 1, True)
