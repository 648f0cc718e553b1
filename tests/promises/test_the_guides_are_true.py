"""What the guides in `docs` say is so: every command in them runs, every configuration is loaded by whom it is for.

A fenced block is judged by its language, in one of the tests below or where `ELSEWHERE` says. Commands run in a directory
with the files that they name, beside a proxy that runs; what stands for a service manager is in `STUBS`.
"""

import http.client
import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors import (
    ONE_WORKER,
    PATIENCE,
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
from admin import admin_address
from aop_proxy import farewell, pages, schema, tls
from aop_proxy.reasons import Fault, Reason, Verdict
from certificates import Authority, CredentialFiles
from documents import ROOT, Block, blocks, code, table

GUIDES = sorted((ROOT / "docs").glob("*.md"))
ELSEWHERE = {
    "docs/scaling.md": "tests/test_sizing.py",
    "docs/configuration.md": "tests/promises/test_the_readme_is_true.py",
    "docs/logs-and-metrics.md": "tests/promises/test_the_readme_is_true.py",
}
"""Documents whose blocks another test holds."""
BLOCKS = [block for path in GUIDES for block in blocks(path) if block.document not in ELSEWHERE]
BACKENDS = "docs/backends.md"
PORTS = re.compile(r"(?<=\D)(443|8000)\b")
"""Of the examples: what is started for real gets a port of its own."""


def of(*languages: str) -> list[Block]:
    """The blocks that one test judges."""
    return [block for block in BLOCKS if block.language in languages]


def guide(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


# The files that the guides name


@pytest.fixture
def files(tmp_path: Path, server_authority: Authority, authority: Authority) -> Path:
    """A directory with each of them."""
    server_authority.issue_server("example.com").write(tmp_path, "origin")
    both = (tmp_path / "origin.pem").read_bytes() + (tmp_path / "origin.key").read_bytes()
    (tmp_path / "origin-and-key.pem").write_bytes(both)
    server_authority.write(tmp_path / "backend-ca.pem")
    for name in ("zone", "new-zone"):
        (tmp_path / name).mkdir()
    authority.write(tmp_path / "zone/ca.pem")
    (tmp_path / "zone/ca.crl").write_bytes(authority.revoke())
    (tmp_path / "secret").write_text("4f2c8a1e9b7d6350\n")
    Authority("Next CA").write(tmp_path / "new-zone/ca.pem")
    return tmp_path


SITE = {
    "hosts": ["example.com"],
    "certificate": "origin.pem",
    "private_key": "origin.key",
    "clients": {"ca": ["zone/ca.pem"]},
    "upstream": "http://127.0.0.1:8000",
}


def completed(given: dict[str, Any]) -> dict[str, Any]:
    """A piece of a configuration with the rest around it: keys of a site are the first site's."""
    if "listen" in given:
        return given
    for_site = {key: given[key] for key in given if key in schema.SitePart.model_fields}
    sites = [{**SITE, **for_site, **site} for site in given.get("sites", [{}])]
    return {"listen": ["0.0.0.0:443"], **{key: given[key] for key in given.keys() - for_site}, "sites": sites}


# Configurations


def test_every_block_is_judged() -> None:
    """By its language; a document whose blocks are held elsewhere is there, and so is the test."""
    judged = {"sh", "yaml", "js", *LOADERS}
    assert [str(block) for block in BLOCKS if block.language not in judged] == []
    assert [name for pair in ELSEWHERE.items() for name in pair if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_check_has_nothing_against_it(block: Block, files: Path) -> None:
    """Our own configurations, whole or with the rest around them; a slip in a key would be told."""
    (files / "proxy.yaml").write_text(yaml.safe_dump(completed(yaml.safe_load(block.text))))
    checked = run_command("check", "--config", files / "proxy.yaml")
    problems = [line for line in checked.stdout.splitlines() if not line.startswith("advice: ")]
    assert (checked.exit_code, problems, checked.stderr) == (0, [], "")


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
    {servers}
}}
"""


def nginx(text: str, directory: Path) -> list[str]:
    (directory / "nginx.conf").write_text(NGINX.format(servers=text))
    return [require_peer("nginx"), "-p", str(directory), "-c", "nginx.conf", "-e", "stderr"]


APACHE = """
ServerRoot {directory}
ServerName localhost
PidFile {directory}/apache.pid
ErrorLog /dev/stderr
DefaultRuntimeDir {directory}
User #{user}
Mutex posixsem
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule alias_module /usr/lib/apache2/modules/mod_alias.so
Redirect 410 /
"""


def apache(text: str, directory: Path) -> list[str]:
    own = APACHE.format(directory=directory, user=os.geteuid() or 65534)
    (directory / "apache.conf").write_text(own + text)
    return [require_peer("apache2"), "-X", "-f", str(directory / "apache.conf")]


def haproxy(text: str, directory: Path) -> list[str]:
    (directory / "haproxy.cfg").write_text(text)
    return [require_peer("haproxy"), "-db", "-f", "haproxy.cfg"]


def caddy(text: str, directory: Path) -> list[str]:
    (directory / "Caddyfile").write_text(text)
    return [require_peer("caddy"), "run", "--config", "Caddyfile", "--adapter", "caddyfile"]


def stunnel(text: str, directory: Path) -> list[str]:
    (directory / "stunnel.conf").write_text("foreground = yes\npid =\ndebug = err\nTIMEOUTclose = 0\n" + text)
    return [require_peer("stunnel4"), "stunnel.conf"]


LOADERS: Mapping[str, Callable[[str, Path], list[str]]] = {
    "nginx": nginx,
    "apache": apache,
    "haproxy": haproxy,
    "caddyfile": caddy,
    "ini": stunnel,
}
"""Language -> how the program that it is for is started with it."""
TESTS = {
    "nginx": lambda command: [*command, "-t"],
    "apache": lambda command: [*command, "-t"],
    "haproxy": lambda command: [*command, "-c"],
    "caddyfile": lambda command: [command[0], "validate", *command[2:]],
}
"""Language -> the program's own test of a configuration; stunnel has none, and is started."""


@pytest.mark.parametrize("block", of(*LOADERS), ids=str)
def test_its_own_program_loads_it(block: Block, files: Path) -> None:
    """With ports that need no root."""
    port = free_port()
    command = LOADERS[block.language](PORTS.sub(lambda match: str(port + (match[1] == "8000")), block.text), files)
    environment = {"HOME": str(files), "PATH": os.environ["PATH"]}
    if block.language in TESTS:
        test = TESTS[block.language](command)
        tested = subprocess.run(
            test, check=False, cwd=files, env=environment, capture_output=True, text=True, timeout=60
        )
        assert tested.returncode == 0, tested.stdout + tested.stderr
    else:
        with running(command, cwd=files, env=environment) as process:
            wait_for_port(port, process)


PAIRS = [
    (theirs, ours)
    for theirs, ours in itertools.pairwise(BLOCKS)
    if theirs.document == ours.document == "docs/migrating.md" and theirs.language in LOADERS
]
CADDY_ELSEWHERE = "{{\n\tadmin off\n\tauto_https disable_redirects\n\thttps_port {port}\n}}\n"
"""Its ports stand nowhere in a Caddyfile that is written as its manual writes it."""


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=[theirs.language for theirs, _ in PAIRS])
def test_each_pair_does_the_same(theirs: Block, ours: Block, files: Path, client_credentials: CredentialFiles) -> None:
    """Of a configuration and the one beside it: both let in the edge, and neither lets a stranger's byte through."""
    with RecordingBackend() as backend:

        def placed(text: str, port: int) -> str:
            return PORTS.sub(lambda match: str(port if match[1] == "443" else backend.port), text)

        def judge(address: tuple[str, int]) -> None:
            """A test of the backend too: what it got is what the edge sent."""
            backend.forget()
            ask(address, client_context(), server_name="example.com")
            assert backend.received == b""
            edge = client_context(client_credentials)
            request = b"GET / HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n"
            assert ask(address, edge, request, server_name="example.com").status == 200
            assert backend.received.startswith(b"GET / HTTP/1.")

        port = free_port()
        text = placed(theirs.text, port)
        if theirs.language == "caddyfile":
            text = CADDY_ELSEWHERE.format(port=port) + text
        environment = {"HOME": str(files), "PATH": os.environ["PATH"]}
        with running(LOADERS[theirs.language](text, files), cwd=files, env=environment) as process:
            wait_for_port(port, process)
            judge(("127.0.0.1", port))
        given = yaml.safe_load(placed(ours.text, 443))
        proxy = Proxy({**given, **ONE_WORKER, "listen": ["127.0.0.1:0"]})
        shutil.copytree(files, proxy.config_path.parent, dirs_exist_ok=True)
        with proxy:
            judge(proxy.address)


def test_every_configuration_to_leave_has_ours_beside_it() -> None:
    """In the order of the title."""
    assert [theirs.language for theirs, _ in PAIRS] == ["nginx", "haproxy", "caddyfile", "ini"]
    assert {ours.language for _, ours in PAIRS} == {"yaml"}


# Commands

STUBS = {
    "aop-proxy": 'exec "$AOP_PYTHON" -m aop_proxy "$@"',
    "systemctl": 'case "$*" in "reload aop-proxy") kill -HUP "$AOP_PID";; "restart aop-proxy");; *) exit 1;; esac',
    "journalctl": '[ "$*" = "--unit aop-proxy --output cat" ] && cat "$AOP_JOURNAL"',
}
"""What is on the path: the program, and in place of systemd what it would do to the process or show of it."""
SAID = {
    "aop-proxy certificates": "Upload ",
    "aop-proxy probe": "enforced: every stranger is refused",
    "aop-proxy status": "Enforcing",
    "journalctl": '"no_certificate"',
    "openssl x509": "notAfter=",
}
"""What the output of a block holds that begins with such a command."""


@dataclass(frozen=True)
class Desk:
    """Where commands are tried."""

    proxy: Proxy
    journal: list[dict[str, Any]]
    replaced: Mapping[str, str]


@pytest.fixture(scope="module")
def desk(site: dict[str, Any]) -> Iterator[Desk]:
    """A proxy that enforces, and what it and one that observes have logged of a stranger each."""
    admin = {"admin": "127.0.0.1:0", "sites": [site]}
    with Proxy({**ONE_WORKER, **admin}) as proxy, Proxy({**ONE_WORKER, **admin, "enforcement": "observe"}) as observing:
        for one in (proxy, observing):
            ask(one.address, client_context(), server_name="example.com")
        refused = proxy.connection_record(reason="no_certificate")
        seen = observing.connection_record(verdict="would_refuse")
        replaced = {
            "127.0.0.1:443": proxy.addresses[0],
            "127.0.0.1:9180": admin_address(proxy),
            "bca1e0c9": refused["reference"],
        }
        yield Desk(proxy, [refused, seen], replaced)


@pytest.mark.parametrize("block", [block for block in of("sh") if block.document != BACKENDS], ids=str)
def test_its_commands_run(block: Block, desk: Desk, files: Path) -> None:
    """Each block as it stands, by a shell that stops at the first failure."""
    if "jq" in block.text:
        require_peer("jq")
    (files / "proxy.yaml").write_text(yaml.safe_dump(completed({"listen": ["127.0.0.1:443"], "sites": [SITE]})))
    (files / "bin").mkdir()
    for name, script in STUBS.items():
        (files / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (files / "bin" / name).chmod(0o755)
    (files / "journal").write_text("".join(json.dumps(line) + "\n" for line in desk.journal))
    if "--out zone" in block.text:
        (files / "zone").rename(files / "old-zone")
    text = block.text
    for old, new in desk.replaced.items():
        text = text.replace(old, new)
    environment = {
        **os.environ,
        "PATH": f"{files / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "AOP_PYTHON": sys.executable,
        "AOP_PID": str(desk.proxy.pid),
        "AOP_JOURNAL": str(files / "journal"),
    }
    desk.proxy.forget()
    shell = ["sh", "-eu"]
    done = subprocess.run(
        shell, input=text, cwd=files, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for start, said in SAID.items():
        if start in text:
            assert said in done.stdout
    if "systemctl reload" in text:
        desk.proxy.wait_for("reloaded")


APPLICATION = """
def wsgi(environ, start):
    start("200 OK", [("Content-Length", "6")])
    return [b"hello\\n"]

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        fields = [(b"content-length", b"6")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"hello\\n"})
"""
COMMANDS = [line for block in of("sh") if block.document == BACKENDS for line in block.text.splitlines()]


def answers_twice(port: int, command: list[str], directory: Path, environment: Mapping[str, str]) -> None:
    """Two requests over one connection."""
    with running(command, cwd=directory, env=environment) as process:
        wait_for_port(port, process, timeout=2 * PATIENCE)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.connect()
        first = connection.sock
        for _ in range(2):
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"hello\n"
            assert connection.sock is first
        connection.close()


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line.partition(" ")[0])
def test_backends_keep_connections(line: str, tmp_path: Path) -> None:
    """Started as the guide says, each serves a connection again; which says so many seconds as the edge needs."""
    (tmp_path / "app.py").write_text(APPLICATION)
    port = free_port()
    program, *arguments = shlex.split(PORTS.sub(str(port), line))
    module = program.removesuffix("-serve")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    answers_twice(port, [sys.executable, "-m", module, *arguments], tmp_path, environment)
    (seconds,) = re.findall(r"(?:keep-alive|channel-timeout)[ =](\d+)", line)
    assert int(seconds) > 900


@pytest.mark.parametrize("block", of("js"), ids=str)
def test_node_keeps_connections(block: Block, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "app.js").write_text(PORTS.sub(str(port), block.text))
    answers_twice(port, [require_peer("node"), "app.js"], tmp_path, os.environ)


def test_what_backends_keep_as_they_come() -> None:
    """The defaults of those that are Python, asked themselves, and of Node.js."""
    gunicorn, uvicorn, hypercorn, waitress = (
        importlib.import_module(name)
        for name in ("gunicorn.config", "uvicorn", "hypercorn.config", "waitress.adjustments")
    )
    shown = {name: keeps for name, keeps, _ in table(guide("backends"), "backend")}
    node = [require_peer("node"), "-p", "require('node:http').createServer().keepAliveTimeout / 1000"]
    asked = {
        "gunicorn": f"0 (`sync`), {gunicorn.Keepalive.default} s (`gthread`)",
        "uvicorn": f"{uvicorn.Config('app').timeout_keep_alive} s",
        "hypercorn": f"{hypercorn.Config().keep_alive_timeout:.0f} s",
        "waitress": f"{waitress.Adjustments.channel_timeout} s",
        "Node.js": f"{subprocess.run(node, capture_output=True, text=True, check=True).stdout.strip()} s",
    }
    assert {name: shown[name] for name in asked} == asked


# Figures and tables


def test_figures_of_a_refusal() -> None:
    """As the program has them."""
    text = " ".join(guide("security").split())
    assert f"one record of {tls._SEALED_ALERT_LENGTH} bytes" in text
    assert f"records of at most {farewell.MAX_FRAGMENT} bytes" in text
    assert pages.REFERENCE_LENGTH == 8
    assert "a reference of eight characters" in text
    assert len(farewell.SUITES) == 3
    assert "one of TLS 1.3's three" in text
    assert len(tls._CERTIFICATE_REFUSALS) == 5


def test_troubleshooting_knows_every_answer() -> None:
    """Each page stands under its status with its sentence, beside its own reasons."""
    text = guide("troubleshooting")
    words = {reason.value: reason for reason in Reason}
    for status, section in re.findall(r"^## (\d+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        if "| the page says |" not in section:
            continue
        for sentence, reasons, _ in table(section, "the page says"):
            for reason in code(reasons):
                title = f"<title>{status} {code(sentence)[0]}</title>"
                assert title in pages.page(words[reason], "0" * pages.REFERENCE_LENGTH).decode()


def test_troubleshooting_knows_every_reason() -> None:
    """But for those that a client meets by itself: it went, said nothing, or met a bug."""
    ours = {Reason.CLIENT_RESET, Reason.CLIENT_SILENT, Reason.INTERNAL_ERROR}
    reasons = {reason for reason in Reason if reason.verdict is not Verdict.ACCEPTED} - ours
    assert reasons - set(code(guide("troubleshooting"))) == set()


def test_troubleshooting_knows_every_fault() -> None:
    """Each once, in the table of requests."""
    named = [word for row in table(guide("troubleshooting"), "fault") for word in code(row[0])]
    assert sorted(named) == sorted(Fault)


def test_migrating_leads_to_keys_that_exist() -> None:
    """What stands on the right of each table begins with a key or with a command."""
    known = {".".join(path) for path in dict(schema.keys())}
    rights = [
        code(row[-1])[0] for program in ("NGINX", "HAProxy", "stunnel") for row in table(guide("migrating"), program)
    ]
    assert [right for right in rights if right not in known and not right.startswith("aop-proxy ")] == []


@pytest.mark.parametrize("document", GUIDES, ids=lambda path: path.name)
def test_every_guide_can_be_found(document: Path) -> None:
    """From the README or from another guide."""
    name = document.name
    around = [(ROOT / "README.md"), *(path for path in GUIDES if path != document)]
    assert [path for path in around if re.search(rf"\]\((docs/)?{re.escape(name)}[#)]", path.read_text())]
