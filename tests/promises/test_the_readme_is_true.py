"""What the README and its reference pages say is so: commands run; tables, keys, defaults and lines are the program's own.

Commands are run as they stand there, in a directory that held nothing before, but for the words in `REPLACED`. Whoever
changes the README or the program finds here what of the other has to follow.
"""

import ast
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

import documents
from actors import HELLO, ONE_WORKER, Proxy, RecordingBackend, ask, client_context, require_peer, run_command
from aop_proxy import companion, flags, judgement, pages, probe, schema, visit
from aop_proxy.cli import main
from aop_proxy.fields import Introduction
from aop_proxy.reasons import Fault, Reason, Verdict
from aop_proxy.workers import ExitCode
from certificates import REFUSED, Authority, CredentialFiles
from documents import DOCUMENTS, ROOT, code

README = (ROOT / "README.md").read_text()
REFERENCE = {
    name: (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("commands", "configuration", "http-mode", "logs-and-metrics")
}
"""What of the README a newcomer does not need."""
PAGES = [README, *REFERENCE.values()]
EVERYTHING = "\n".join(PAGES)
REPLACED = {
    "0.0.0.0:443": "127.0.0.1:0",  # 443 is root's, and may be taken
    "[::]:443": "localhost:0",
    "https://127.0.0.1:443/": "https://{address}/",
    "127.0.0.1:443": "{address}",
    "DIR": "zone",
    "NAME": "example.com",
}
"""What is not used as it stands, word by word."""


def blocks(language: str, page: str = README) -> list[str]:
    """What stands between the fences of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def only_page(words: str) -> str:
    """The one page that says this, in one line."""
    pages_flat = [" ".join(page.split()) for page in PAGES]
    saying = [number for number, page in enumerate(pages_flat) if words in page]
    assert len(saying) == 1, f"{len(saying)} pages say: {words}"
    return PAGES[saying[0]]


def table(first_heading: str) -> list[list[str]]:
    """The rows of a table, cell by cell, wherever it stands."""
    return documents.table(only_page(f"| {first_heading} |"), first_heading)


def after(words: str, end: str) -> list[str]:
    """What stands between backticks in the passage that begins with these words and ends before those."""
    flat = " ".join(only_page(words).split())
    return code(flat.partition(words)[2].partition(end)[0])


def arguments_of(command: str) -> list[str]:
    """The words of a command, replaced where they have to be, without the program's name."""
    return [REPLACED.get(word, word) for word in shlex.split(command)[1:]]


COMMANDS = [line for block in blocks("sh") for line in block.splitlines()]
(SHORT_CONFIGURATION,) = blocks("yaml")
(CONFIGURATION,) = blocks("yaml", REFERENCE["configuration"])
(_EXAMPLE_LINE,) = blocks("json", REFERENCE["logs-and-metrics"])
EXAMPLE_LINE: dict[str, Any] = json.loads(_EXAMPLE_LINE)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with nothing in it, from which the program is found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    return tmp_path


# Commands


def test_every_command_is_known_here() -> None:
    """A command that is added to the README is added to a test below."""
    starts = ["scripts/demo", "scripts/test", "pip install .", "aop-proxy run ", "curl ", "aop-proxy probe "]
    starts.append("aop-proxy exec ")
    assert [command[: len(start)] for command, start in zip(COMMANDS, starts, strict=True)] == starts


@pytest.mark.parametrize("script", [command for command in COMMANDS if command.startswith("scripts/")])
def test_scripts_can_be_started(script: str) -> None:
    """They are there, may be executed, and are shell; what they install runs in this very test."""
    assert os.access(ROOT / script, os.X_OK)
    for file in (script, "scripts/environment"):
        subprocess.run(["sh", "-n", ROOT / file], check=True, timeout=30)
    assert 'pip" install --quiet --editable .' in (ROOT / script).read_text()


def test_the_demonstration_shows_five_visitors(empty: Path) -> None:
    """`scripts/demo` ends in `aop-proxy demo`; with --once that exits 0 after a table of five."""
    assert (ROOT / "scripts/demo").read_text().splitlines()[-1] == 'exec "$bin/aop-proxy" demo "$@"'
    assert "five kinds of visitor" in README
    done = run_command("demo", "--once")
    assert (done.exit_code, done.stdout.count("right"), done.stdout.count("WRONG")) == (0, 5, 0)


def test_what_is_installed_is_what_is_named() -> None:
    """`pip install .` (which is how `scripts/test` came to run this) gives the command, on the Python that is named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"aop-proxy": f"{main.__module__}:{main.__name__}"}
    assert f"Python {project['requires-python'].removeprefix('>=')} or newer" in README


def test_without_a_configuration_file(empty: Path, server_authority: Authority) -> None:
    """The line that starts it serves, `check` has nothing against it, and the lines that try it show that it refuses."""
    require_peer("curl")
    server_authority.issue_server("example.com").write(empty, "origin")
    *_, run, curl, asking, _ = COMMANDS
    _, *arguments = arguments_of(run)
    checked = run_command("check", *arguments)
    assert (checked.exit_code, checked.stdout, checked.stderr) == (0, "", "")
    with Proxy(flags=arguments) as proxy:
        command = ["curl", *(word.format(address=proxy.addresses[0]) for word in arguments_of(curl))]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        assert "<title>400 No required SSL certificate was sent</title>" in answer
        assert proxy.connection_record(reason="no_certificate")["reference"] in answer
        asked = run_command(*(word.format(address=proxy.addresses[0]) for word in arguments_of(asking)))
        assert (asked.exit_code, asked.stdout.splitlines()[-1]) == (0, "enforced: every stranger is refused")
        proxy.terminate()
        assert proxy.exit_code == ExitCode.DRAINED


def test_a_backend_as_a_child(empty: Path, server_authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that starts both serves, the line that asks sees that strangers are refused, and both end."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # where gunicorn is
    server_authority.issue_server("example.com").write(empty, "origin")
    (empty / "app.py").write_text("def app(environ, start):\n    start('200 OK', [])\n    return [b'hello']\n")
    *_, asking, command = COMMANDS
    _, *words = arguments_of(command)
    place = words.index("--")
    with Proxy(flags=words[:place], backend=words[place + 1 :]) as proxy:
        asked = run_command(*(word.format(address=proxy.addresses[0]) for word in arguments_of(asking)))
        assert asked.exit_code == 0
        proxy.terminate()
        assert proxy.exit_code == 0
    assert only_page(f"every {companion.WAIT_TOLD:.0f} s".replace("10 s", "ten seconds") + " (`backend_awaited`)")


def test_what_a_probe_prints_for_machines(proxy: Proxy, client_credentials: CredentialFiles) -> None:
    """Every key, visitor and outcome that the text names, and no other; the table names every exit code."""
    credentials = f"--certificate={client_credentials.certificate}", f"--private-key={client_credentials.private_key}"
    report = json.loads(run_command("probe", proxy.addresses[0], "--insecure", "--json", *credentials).stdout)
    assert {path[-1] for path, _ in paths(report)} | {"problem"} == set(after("prints one object:", ". A visitor is"))
    assert after("A visitor is", "; an outcome is") == list(judgement.Visitor)
    assert [visit["visitor"] for visit in report["visitors"]] == list(judgement.Visitor)
    assert after("; an outcome is", ". ## exec") == list(judgement.Outcome)
    codes = [int(number) for number, _ in table("exit code of `probe`")]
    assert codes == sorted([*probe.ExitCode, ExitCode.BAD_CONFIGURATION])
    bounds = f"bounded to {visit.MAX_ANSWER // 1024} KiB and {visit.PATIENCE:.0f} s"
    assert only_page(bounds)
    most = {9: "nine"}[len(judgement.Visitor)]
    assert f"at most {most} bounded requests" in README
    assert only_page(f"at most {most}, each")


def test_commands_named_in_the_text(empty: Path) -> None:
    """Each command and flag that the text names is one that the program takes."""
    named = [words.split() for words in code(EVERYTHING) if words.startswith("aop-proxy ") and words[10] != "-"]
    helps = {command: run_command(command, "--help") for command in sorted({words[1] for words in named})}
    assert list(helps) == ["certificates", "check", "demo", "exec", "probe", "run", "status"]
    assert {name.strip("`").removeprefix("aop-proxy ") for name, _ in table("command")} == set(helps)
    assert [shown.exit_code for shown in helps.values()] == [0] * len(helps)
    unknown = [
        (words[1], flag)
        for words in named
        for flag in words[2:]
        if flag.startswith("--") and flag not in helps[words[1]].stdout
    ]
    assert unknown == []
    alone = {flag for flag in code(EVERYTHING) if flag.startswith("--")}
    assert {flag for flag in alone if not any(flag in shown.stdout for shown in helps.values())} == set()


def test_certificates_for_the_zone(empty: Path) -> None:
    """`certificates` makes what is said; again it refuses, and `--renew` keeps the CA and makes a new certificate."""
    command = next(words for words in code(README) if words.startswith("aop-proxy certificates "))
    arguments = arguments_of(command)
    assert run_command(*arguments).exit_code == 0
    ca, leaf = (empty / "zone/ca.pem").read_bytes(), (empty / "zone/client.pem").read_bytes()
    assert run_command(*arguments).exit_code == 2
    assert run_command(*arguments, "--renew").exit_code == 0
    assert (empty / "zone/ca.pem").read_bytes() == ca
    assert (empty / "zone/client.pem").read_bytes() != leaf


# Configuration


def alternatives() -> Iterator[tuple[str, dict[str, object]]]:
    """Each mapping that a comment offers in place of the value before it, with the value's key."""
    key = ""
    for line in CONFIGURATION.splitlines():
        value, _, comment = line.partition("# ")
        key = value.strip(" -").partition(":")[0] or key
        for mapping in re.findall(r"\{.*?\}", comment):
            yield key, yaml.safe_load(mapping)


def paths(value: object, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every key below a value, list indices left out, with what it holds."""
    if isinstance(value, list):
        for item in value:
            yield from paths(item, above)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield (*above, name), inner
            yield from paths(inner, (*above, name))


KEYS = dict(schema.keys())
WRITTEN = dict(paths(yaml.safe_load(CONFIGURATION)))
OFFERED = {
    (*path, *inner): held
    for key, mapping in alternatives()
    for path in WRITTEN
    if path[-1] == key
    for inner, held in paths(mapping)
}
NECESSARY = {part.necessary for part in (schema.ListenPart, schema.UpstreamPart, schema.AdminPart)}
"""What a mapping is written as when it is written short."""


def test_every_key_stands_in_the_configuration() -> None:
    """The schema's keys, all of them and no others."""
    assert WRITTEN.keys() | OFFERED.keys() == KEYS.keys()


def test_every_value_is_the_default() -> None:
    """But for those that are named as examples."""
    examples = set(after("These are the defaults, but for", ";"))
    plain = {path: held for path, held in WRITTEN.items() if not isinstance(held, dict) and path != ("sites",)}
    defaults = {path: KEYS[path].get_default(call_default_factory=True) for path in plain}
    differ = {path[-1] for path, held in plain.items() if str(held) != str(defaults[path])}
    assert differ == examples


def test_the_other_choice_is_named() -> None:
    """Where a comment begins with another word for the value, the two are all that there are."""
    others = dict(re.findall(r"^ *(\w+): \w+ +# or (\w+)[:,]", CONFIGURATION, re.MULTILINE))
    offered = {path[-1]: {field.default, others[path[-1]]} for path, field in KEYS.items() if path[-1] in others}
    assert offered == {path[-1]: set(get_args(KEYS[path].annotation)) for path in KEYS if path[-1] in others}
    assert list(offered) == ["dial", "mode", "enforcement", "refusal", "unknown_hosts"]


def test_what_must_be_given() -> None:
    """The keys without a default are named; a site is what holds them."""
    required = {path[-1] for path, field in KEYS.items() if field.is_required()} - NECESSARY - {"sites"}
    assert required == set(after("and `upstream`; ", " must be given"))


def test_every_key_is_a_flag_but_some() -> None:
    """Those that only a mapping can hold stand in a file alone."""
    flagged = {tuple(step for step in flag.location if isinstance(step, str)) for flag in flags._FLAGS}
    plain = {path for path, field in KEYS.items() if schema.part_of(field) is None and path[-1] not in NECESSARY}
    assert {path[-2] for path in plain - flagged} == set(after("but those of the mappings in", ";"))
    shown = run_command("run", "--help").stdout
    assert [flag.name for flag in flags._FLAGS if flag.name not in shown] == []


def as_it_stands() -> Iterator[str]:
    """The configuration, then once for each alternative with that in its place."""
    yield CONFIGURATION
    for key, mapping in alternatives():
        document = yaml.safe_load(CONFIGURATION)
        where = document if key in document else document["sites"][0]
        where[key] = [mapping] if isinstance(where[key], list) else mapping
        yield yaml.safe_dump(document)


@pytest.mark.parametrize(
    "configuration",
    [SHORT_CONFIGURATION, *as_it_stands()],
    ids=["short", "shown", *(key for key, _ in alternatives())],
)
def test_check_has_nothing_against_the_configuration(
    configuration: str, empty: Path, server_authority: Authority, authority: Authority
) -> None:
    """Copied into a file beside the certificate that it names; without the certificate `check` says so and exits 2."""
    (empty / "proxy.yaml").write_text(configuration)
    missing = run_command("check", "--config", "proxy.yaml")
    assert (missing.exit_code, missing.stdout.startswith("sites[0].certificate: ")) == (2, True)
    server_authority.issue_server("example.com").write(empty, "example")
    authority.issue("proxy.example").write(empty, "proxy")
    checked = run_command("check", "--config", "proxy.yaml")
    assert (checked.exit_code, checked.stdout, checked.stderr) == (0, "", "")


@pytest.mark.parametrize("configuration", [SHORT_CONFIGURATION, CONFIGURATION], ids=["short", "shown"])
def test_the_configuration_serves(configuration: str, empty: Path, server_authority: Authority) -> None:
    """With a port that needs no root; its paths start at the file, not where the program is started."""
    shown = yaml.safe_load(configuration)
    if os.geteuid() != 0:
        shown.pop("user", None)
    proxy = Proxy({**shown, "listen": [REPLACED[address] for address in shown["listen"]]})
    server_authority.issue_server("example.com").write(proxy.config_path.parent, "example")
    with proxy:
        assert ask(proxy.address, client_context()).status == 400
        proxy.terminate()
        assert proxy.exit_code == ExitCode.DRAINED


def test_the_json_schema_has_every_key() -> None:
    """`check --schema` prints it, for editors and checks of others."""
    shown = run_command("check", "--schema")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["properties"].keys() == {path[0] for path in KEYS}


def test_a_slip_names_the_nearest_key(empty: Path) -> None:
    """An unknown key is an error that says what was meant."""
    (empty / "proxy.yaml").write_text(CONFIGURATION.replace("workers:", "wrokers:"))
    expected = (2, "wrokers: is not a known key: did you mean `workers`?\n")
    checked = run_command("check", "--config", "proxy.yaml")
    assert (checked.exit_code, checked.stdout.partition("sites[0].certificate: ")[0]) == expected


# Answers


def answer_of(reason: Reason) -> str | None:
    """Status and sentence of a reason's page."""
    try:
        page = pages.page(reason, "0" * pages.REFERENCE_LENGTH)
    except KeyError:
        return None
    (title,) = re.findall(rb"<title>(.*)</title>", page)
    return str(title, "ascii")


REASONS = {reason.value: reason for reason in Reason}
ANSWERS = {REASONS[word]: sees for _, sees, reasons in table("visitor") for word in code(reasons)}


@pytest.mark.parametrize("reason", ANSWERS)
def test_what_the_visitor_sees(reason: Reason) -> None:
    """Status and sentence are those of the page; where there is none, the table says what comes instead."""
    pageless = "the TLS alert `protocol_version`" if reason is Reason.TLS_VERSION else "a closed connection"
    answer = answer_of(reason)
    assert ANSWERS[reason].removesuffix(", in clear") == (f"`{answer}`" if answer else pageless)


def test_every_reason_is_named_once() -> None:
    """The table has those that are answered; the others stand beside the log's line, accepted and failed apart."""
    accepted = after("an accepted connection is", ", a failed one")
    failed = after("an accepted connection is `closed`, `idle_timeout` or `drained`, a failed one", ". The three last")
    failed.remove("debug")
    assert after("`verdict` is", ". Beside") == list(Verdict)
    assert {REASONS[word].verdict for word in accepted} == {Verdict.ACCEPTED}
    assert {REASONS[word].verdict for word in failed} == {Verdict.FAILED}
    assert sorted([*ANSWERS, *accepted, *failed]) == sorted(Reason)
    assert [reason for reason in Reason if answer_of(reason) and reason not in ANSWERS] == []


def test_what_is_answered_to_requests() -> None:
    """Each fault with status and sentence of its page, but for what is cut."""
    rows = {word: code(answer) for answer, (word,) in ((answer, code(cell)) for answer, cell in table("answer"))}
    shown = {
        fault.value: re.findall(rb"<title>(.*)</title>", pages.fault_page(fault, "0" * pages.REFERENCE_LENGTH))
        for fault in Fault
        if fault is not Fault.CUT
    }
    assert rows == {word: [str(title, "ascii") for title in titles] for word, titles in shown.items()} | {"cut": []}


def test_the_fields_that_are_named_are_those_that_are_sent(authority: Authority) -> None:
    """All of them, in one table."""
    der = authority.issue().certificate.public_bytes(Encoding.DER)
    sent = Introduction(("x-forwarded", "x-client", "client-cert", "forwarded"), "192.0.2.1", der).lines(b"a.example")
    named = [name for cell, _ in table("field") for name in code(cell)]
    assert sorted(named) == sorted(re.findall(r"^([A-Za-z-]+): ", sent.decode(), re.MULTILINE))


# Running it


def test_exit_codes() -> None:
    """Every code, with words that hold its name."""
    rows = {int(number): set(re.findall("[a-z]+", meaning)) for number, meaning in table("exit code of `run`")}
    assert list(rows) == list(ExitCode)
    assert [one for one in ExitCode if not set(one.name.lower().split("_")) <= rows[one]] == []


def test_what_needs_a_restart(site: dict[str, Any]) -> None:
    """The signals are those of the system; a reload refuses exactly the keys that the table names."""
    named = [code(cell) for cell, _ in table("signal")]
    assert named == [[signal.SIGTERM.name, signal.SIGINT.name], [signal.SIGHUP.name]]
    keys = table("signal")[1][1].rpartition(";")[2]
    assert keys.endswith(" need a restart")
    with Proxy({**ONE_WORKER, "sites": [site]}) as proxy:
        listen, others = ["127.0.0.1:0", "127.0.0.1:1"], {"unknown_hosts": "reject", "timeouts": {"idle": "1m"}}
        changed = {
            "listen": listen,
            "workers": 2,
            "admin": "127.0.0.1:0",
            "user": "nobody",
            "enforcement": "observe",
            "refusal": "alert",
        }
        proxy.write_config({**ONE_WORKER, "sites": [site], **changed, **others})
        proxy.signal(signal.SIGHUP)
        problems = proxy.wait_for("reload_failed")["problems"]
        assert {problem.partition(":")[0] for problem in problems} == set(code(keys)) == set(changed)


# Logs


def test_the_line_in_the_log(proxy: Proxy, backend: RecordingBackend, authority: Authority, tmp_path: Path) -> None:
    """It has the keys of a real line, in order, with values of the same kinds; an accepted one lacks the three last."""
    expired = REFUSED["expired"](authority).write(tmp_path, "expired")
    ask(proxy.address, client_context(expired), server_name="example.com")
    real = proxy.connection_record(reason="expired")
    assert list(real) == list(EXAMPLE_LINE)
    kinds = [(type(EXAMPLE_LINE[key]), type(real[key])) for key in real]
    assert kinds == [(kind, kind) for kind, _ in kinds]
    assert REASONS[EXAMPLE_LINE["reason"]].verdict == EXAMPLE_LINE["verdict"]
    good = authority.issue().write(tmp_path, "good")
    assert ask(proxy.address, client_context(good)).data == HELLO
    accepted = proxy.connection_record(verdict="accepted")
    assert list(accepted) == list(EXAMPLE_LINE)[:-3]
    assert backend.received


def test_every_event_is_named() -> None:
    """Those that the program writes: connections, what was held back, and the others in one sentence."""
    written = {
        node.args[1].value
        for module in (ROOT / "aop_proxy").glob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(("log.event", "log.events"))
        and isinstance(node.args[1], ast.Constant)
    }
    others = after("Other events:", ", as `check` gives it")
    assert len(others) == len(set(others))
    assert written == {EXAMPLE_LINE["event"], "suppressed", *others}


# How fast

WORKS = {
    "new connection": ("a", "cpu_us"),
    "small request": ("b", "cpu_us"),
    "100 MiB down": ("c", "cpu_ms"),
    "100 MiB up": ("d", "cpu_ms"),
    "refusal": ("f", "cpu_us"),
    "KiB per idle": ("e", "medium_kib"),
    "MiB at rest": ("e", "rest_mib"),
    "backend that closes": ("j", "cpu_us"),
}
"""How a row of the table begins, and the figure of the benchmark that it shows."""


def test_every_figure_is_measured() -> None:
    """The whole table, from the benchmark's own results."""
    works = json.loads((ROOT / "benchmarks/results/measured.json").read_text())["works"]
    rows = table("less is better")
    assert len(rows) == len(WORKS)
    for (row, *shown), (start, (letter, figure)) in zip(rows, WORKS.items(), strict=True):
        assert row.startswith(start)
        medians = [
            works[letter]["contenders"][name]["median"][figure]
            for name in ("us", "nginx", "haproxy", "hitch", "stunnel", "caddy")
        ]
        digits = 1 if letter == "b" else 0
        assert [cell.strip("()") for cell in shown] == [f"{median:.{digits}f}" for median in medians]


def test_what_http_mode_costs_is_measured() -> None:
    """The table of its own document, too."""
    works = json.loads((ROOT / "benchmarks/results/measured.json").read_text())["works"]
    document = (ROOT / "docs/http-mode.md").read_text()
    rows = {
        "NGINX behind": ("b", "cpu_us", ("us-http", "nginx", "us")),
        "gunicorn behind (`gthread`)": ("k", "gunicorn_cpu_us", ("us-http", "nginx")),
        "uvicorn behind": ("k", "uvicorn_cpu_us", ("us-http", "nginx")),
        "a backend that closes after each response": ("j", "cpu_us", ("us-http", "nginx", "us")),
    }
    for row, (letter, figure, names) in rows.items():
        medians = [works[letter]["contenders"][name]["median"][figure] for name in names]
        shown = [f"{median:.0f}" for median in medians] + [""] * (3 - len(names))
        assert f"| {row} | {' | '.join(shown)} |" in document


# What is around it


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link of every document, to a heading too, and every path of the repository that one names."""
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not re.match("[a-z]+:", link)]
    assert [link for link in links if not (document.parent / link.partition("#")[0]).exists()] == []
    to_headings = [link.partition("#")[::2] for link in links if "#" in link]
    headings = {
        name: documents.anchors((document.parent / name if name else document).read_text()) for name, _ in to_headings
    }
    assert [(name, anchor) for name, anchor in to_headings if anchor not in headings[name]] == []
    named = [
        name
        for name in code(text)
        if re.fullmatch(r"(aop_proxy|benchmarks|certs|deploy|docs|scripts|tests)/[\w./]*", name)
    ]
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_documents_hold_no_key_and_no_registry() -> None:
    """Nothing to copy by accident, and nothing that ties an installation to somebody's mirror."""
    around = [*DOCUMENTS, ROOT / "pyproject.toml", *(ROOT / "scripts").iterdir(), *(ROOT / ".ci").iterdir()]
    assert [path for path in around if "PRIVATE KEY-----" in path.read_text()] == []
    registry = re.compile(r"index-url|find-links|/simple\b|pypi[.]org|pythonhosted|registry[.]", re.IGNORECASE)
    assert [path for path in around if registry.search(path.read_text())] == []


# certs/README.md

CERTS = ROOT / "certs"
CERTS_README = (CERTS / "README.md").read_text()
CLOUDFLARE_CA = CERTS / "cloudflare_origin_pull_ca.pem"


def certificate_of(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_certificate_that_ships_is_described() -> None:
    """Subject, dates, fingerprint and the file's digest, recomputed."""
    certificate = certificate_of(CLOUDFLARE_CA)
    names = [f"{name.rfc4514_attribute_name}={name.value!s}" for name in certificate.subject]
    start, end = (
        f"{when:%Y-%m-%d %H:%M:%S} UTC" for when in (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    )
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", CERTS_README, re.MULTILINE))
    assert {name: cell for name, cell in rows.items() if name not in ("file", "field", "---")} == {
        f"`{CLOUDFLARE_CA.name}`": "Cloudflare's shared origin-pull CA: what `cloudflare` means in `clients.ca`",
        "subject": f"`{', '.join(names)}`",
        "valid": f"{start} to **{end}**",
        "SHA-256 of the certificate": f"`{certificate.fingerprint(hashes.SHA256()).hex(':').upper()}`",
        "SHA-256 of the file": f"`{hashlib.sha256(CLOUDFLARE_CA.read_bytes()).hexdigest()}`",
    }
    assert {path.name for path in CERTS.iterdir()} == {CLOUDFLARE_CA.name, "README.md"}


def test_the_command_that_checks_it() -> None:
    """It prints the fingerprint and the end that the table names."""
    require_peer("openssl")
    (command,) = [words for words in code(CERTS_README) if words.startswith("openssl ")]
    shown = subprocess.run(
        shlex.split(command), cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    ).stdout
    (fingerprint,) = re.findall("(?:[0-9A-F]{2}:){31}[0-9A-F]{2}", CERTS_README)
    assert fingerprint in shown
    assert f"notAfter={certificate_of(CLOUDFLARE_CA).not_valid_after_utc:%b %_d %H:%M:%S %Y} GMT" in shown


def test_its_predecessor_is_what_is_said() -> None:
    """Of the same subject, serial number and key, and expired on the day that is named."""
    old = certificate_of(ROOT / "tests/certs_public/cloudflare_origin_pull_ca_expired_2020.pem")
    new = certificate_of(CLOUDFLARE_CA)
    assert (old.subject, old.serial_number, old.public_key()) == (new.subject, new.serial_number, new.public_key())
    assert f"(expired {old.not_valid_after_utc:%Y-%m-%d})" in CERTS_README
