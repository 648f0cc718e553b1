"""The order of the rooms, what each must not know, what each process loads, and what must not lie in the repository."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aop_proxy.reasons import Reason

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aop_proxy"
ROOMS = {
    "model": "model reasons",
    "configuration": "notation files document schema remainder config flags",
    "decisions": "identity policy expiry fields http1 pages proxy_protocol",
    "log": "log telemetry histogram counters",
    "OpenSSL": "credentials farewell records tls upstream_tls snapshot",
    "one connection": "poller endpoint relay tls_socket health resolver transparency upstream stream pool exchange connection",
    "many connections": "processors service_manager watch privileges occupancy listeners quotas server channel worker worker_process ledger admin_child exposure reminders workers launch companion",
    "what is shown": "metrics summary status_page admin",
    "people": "zone_certificates visit judgement probe report status demo cli __main__",
}
"""A module imports only from those that stand before it."""
ORDER = " ".join(ROOMS.values()).split()
MODULES = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


def modules_of(*rooms: str) -> list[str]:
    """Those of them that there are."""
    return [module for room in rooms for module in ROOMS[room].split() if module in MODULES]


EVERY = modules_of(*ROOMS)
ONLY_FOR_TYPES = {("connection", "server"), ("exchange", "server")}
"""These tell their server what happens; for that the type checker, and nothing else, must know both."""

WORDS = (
    "closed no_certificate unknown_ca self_signed expired not_yet_valid wrong_purpose revoked revocation_unknown"
    " bad_signature weak_certificate bad_certificate identity_not_allowed unknown_host plain_http tls_version"
    " handshake_timeout handshake_failed proxy_header_invalid too_many_connections upstream_unreachable"
    " upstream_timeout idle_timeout drained drain_timeout client_reset upstream_reset client_silent internal_error"
)
"""Design, section 5."""


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def imported(module: str) -> Iterator[tuple[str, int]]:
    """Everything that a module imports, at its top or inside a function, with the line."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((name, node.lineno) for name in (names if node.module == "aop_proxy" else [str(node.module)]))


def ours(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    return {name.split(".")[1] for name, _ in imported(module) if name.startswith("aop_proxy.")}


def foreign(module: str) -> set[str]:
    """The top-level packages that a module imports from elsewhere."""
    return {name.split(".")[0] for name, _ in imported(module)} - {"aop_proxy"}


def test_every_module_has_its_place() -> None:
    """A new module is given a room, here and in the README's table, which is in the same order."""
    assert MODULES - set(ORDER) == set()
    rows = re.findall(r"^\| (`[a-z_0-9]+`(?:, `[a-z_0-9]+`)*) \| ", (ROOT / "README.md").read_text(), re.MULTILINE)
    in_readme = [name for row in rows for name in re.findall("`([a-z_0-9]+)`", row) if name in MODULES]
    assert in_readme == [name for name in EVERY if name != "__main__"]


@pytest.mark.parametrize("module", EVERY)
def test_modules_import_only_those_before_them(module: str) -> None:
    """The order is one-way, imports inside functions included."""
    later = {other for other in ours(module) if ORDER.index(other) >= ORDER.index(module)}
    assert {(module, other) for other in later} == {pair for pair in ONLY_FOR_TYPES if pair[0] == module}


@pytest.mark.parametrize(("module", "other"), ONLY_FOR_TYPES)
def test_the_exception_is_for_types_only(module: str, other: str) -> None:
    """At run time the import that goes against the order does not happen."""
    parsed = tree(module)
    blocks = [node for node in parsed.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    guarded = [node for block in blocks for node in block.body]
    imports = [node for node in ast.walk(parsed) if isinstance(node, ast.ImportFrom)]
    assert [node for node in imports if node.module == f"aop_proxy.{other}"] == guarded


@pytest.mark.parametrize("module", modules_of("model", "configuration", "decisions", "log"))
def test_values_and_decisions_know_no_network(module: str) -> None:
    """No event loop, no socket, no TLS, no process."""
    assert foreign(module) & {"asyncio", "socket", "ssl", "select", "threading", "subprocess", "uvloop"} == set()


@pytest.mark.parametrize("module", modules_of("OpenSSL"))
def test_tls_knows_no_event_loop(module: str) -> None:
    """TLS is bytes in, bytes out."""
    assert foreign(module) & {"asyncio", "socket", "select", "threading", "uvloop"} == set()


@pytest.mark.parametrize(
    ("module", "must_not_know"),
    [
        ("identity", "policy model"),
        ("policy", "tls pages"),
        ("pages", "policy tls identity"),
        ("farewell", "tls pages reasons"),
        ("credentials", "tls files"),
        ("snapshot", "files config flags"),
        ("relay", "policy config model snapshot telemetry log pages"),
        ("upstream", "tls relay snapshot telemetry connection"),
        ("health", "upstream tls_socket poller connection"),
        ("fields", "http1 policy pages"),
        ("http1", "policy pages model identity"),
        ("stream", "http1 fields pages policy model telemetry"),
        ("pool", "http1 fields pages policy telemetry exchange"),
        ("exchange", "config snapshot policy relay"),
        ("poller", "relay upstream connection reasons"),
        ("connection", "config flags files credentials workers worker channel"),
        ("server", "tls pages policy identity"),
        ("listeners", "server worker channel"),
        ("processors", "model"),
        ("occupancy", "model listeners exposure"),
        ("watch", "listeners workers files config log"),
        ("service_manager", "listeners worker_process workers"),
        ("worker_process", "worker workers snapshot server"),
        ("workers", "tls snapshot connection server relay credentials"),
        ("telemetry", "tls relay connection policy"),
        ("counters", "ledger server connection"),
        ("ledger", "counters telemetry server"),
        ("admin_child", "counters metrics admin"),
        ("metrics", "admin counters"),
        ("status_page", "admin counters metrics"),
        ("summary", "admin counters metrics status_page"),
        ("admin", "workers server admin_child"),
        ("log", "telemetry reasons"),
        ("visit", "tls relay server workers snapshot config"),
        ("judgement", "tls pages policy reasons"),
        ("probe", "tls relay server workers snapshot config report"),
        ("demo", "tls relay server workers snapshot config"),
    ],
)
def test_what_each_must_not_know(module: str, must_not_know: str) -> None:
    """Each module's docstring says what it must not know."""
    assert ours(module) & set(must_not_know.split()) == set()


CONTEXT_MAKERS = {"SSLContext", "create_default_context", "_create_unverified_context", "wrap_socket"}


@pytest.mark.parametrize("module", EVERY)
def test_server_contexts_are_made_in_one_place(module: str) -> None:
    """Only `tls` makes contexts of servers, in one function; those of clients, towards backends too, in others."""
    made = [
        name
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func).rpartition(".")[2]) in CONTEXT_MAKERS
    ]
    expected = {
        "tls": ["SSLContext"],
        "upstream_tls": ["SSLContext"],
        "visit": ["SSLContext"],
        "demo": ["create_default_context", "wrap_socket"],
    }
    assert made == expected.get(module, [])
    weak = r"PROTOCOL_TLS\w*|CERT_NONE|ssl\.CERT_OPTIONAL|check_hostname"
    allowed = {
        "tls": ["ssl.CERT_OPTIONAL", "PROTOCOL_TLS_SERVER"],
        "upstream_tls": ["PROTOCOL_TLS_CLIENT", "check_hostname"],
        # A visitor may talk to whoever answers: it sends nothing that is secret.
        "visit": ["PROTOCOL_TLS_CLIENT", "check_hostname", "CERT_NONE"],
    }
    assert re.findall(weak, ast.unparse(tree(module))) == allowed.get(module, [])


@pytest.mark.parametrize("module", EVERY)
def test_cryptography_where_it_belongs(module: str) -> None:
    """Certificates are read in few places, and only the farewell encrypts."""
    packages = {name for name, _ in imported(module) if name.startswith("cryptography")}
    readers = "identity credentials farewell snapshot zone_certificates probe demo"
    assert not packages or module in readers.split()
    assert module == "farewell" or not any("ciphers" in name for name in packages)


# What each process loads


def loaded_after(code: str) -> set[str]:
    """The top-level packages, and the modules of ours, that a fresh Python has loaded after some code."""
    show = "import sys; print(*{n if n.startswith('aop_proxy.') else n.split('.')[0] for n in sys.modules})"
    # Not measured for coverage, which loads modules of its own.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-c", f"{code}\n{show}"]
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=True, timeout=30)
    return set(done.stdout.split())


def test_what_a_worker_loads() -> None:
    """uvloop, cryptography and the standard library; nothing of the configuration, since each core pays for it."""
    loaded = loaded_after("import aop_proxy.worker")
    assert loaded >= {"uvloop", "cryptography", "ssl", "aop_proxy.server"}
    assert loaded & {"pydantic", "pydantic_core", "yaml", "rich", "argparse", "multiprocessing"} == set()
    assert loaded & {"uvicorn", "h11", "prometheus_client"} == set()
    configuration = {f"aop_proxy.{module}" for module in modules_of("configuration")}
    assert loaded & {*configuration, "aop_proxy.workers", "aop_proxy.cli", "aop_proxy.demo"} == set()


def test_what_the_parent_loads() -> None:
    """The standard library and the configuration model: the parent may be root, and meets no stranger."""
    run = (
        "from aop_proxy import cli, files, flags\n"
        "arguments = cli._parser().parse_args('run --listen 127.0.0.1:0 --certificate README.md --private-key README.md"
        " --upstream http://127.0.0.1:1'.split())\n"
        "files.read_bundle(flags.load_arguments(arguments))"
    )
    loaded = loaded_after(run)
    assert loaded >= {"pydantic", "aop_proxy.workers", "aop_proxy.listeners", "aop_proxy.log"}
    assert loaded & {"cryptography", "uvloop", "rich", "multiprocessing", "uvicorn", "prometheus_client"} == set()
    theirs = {f"aop_proxy.{name}" for name in modules_of("OpenSSL", "one connection")} - {"aop_proxy.listeners"}
    theirs -= {"aop_proxy.poller", "aop_proxy.endpoint"}  # what a listening socket is
    assert loaded & {*theirs, "aop_proxy.server", "aop_proxy.worker", "aop_proxy.demo"} == set()


def test_what_the_admin_child_loads() -> None:
    """What shows things: nothing that touches a client, a key or the configuration."""
    loaded = loaded_after("import aop_proxy.admin")
    assert loaded >= {"uvicorn", "prometheus_client", "aop_proxy.metrics", "aop_proxy.ledger"}
    assert loaded & {"cryptography", "pydantic", "yaml", "uvloop", "rich"} == set()
    theirs = {f"aop_proxy.{name}" for name in modules_of("configuration", "OpenSSL", "one connection")}
    assert loaded & {*theirs, "aop_proxy.server", "aop_proxy.worker", "aop_proxy.workers"} == set()


# Words


def test_every_reason_is_in_the_contract() -> None:
    """Logs are filtered by these words."""
    assert {reason.value for reason in Reason} - set(WORDS.split()) == set()


# The repository


def kept_files() -> list[Path]:
    """What is in the repository, or would be with the next commit."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git repository")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=30).stdout
    return [path for name in listed.split(b"\0") if name and (path := ROOT / name.decode()).is_file()]


def test_no_private_key_is_kept() -> None:
    """Keys are made at run time: no file holds one, in PEM or PKCS #12, in code or beside it."""
    key = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[\s\\n\"']{1,20}[A-Za-z0-9+/]{32}")
    kept = kept_files()
    assert [path for path in kept if path.suffix in (".key", ".p12", ".pfx", ".jks", ".der")] == []
    assert [path for path in kept if key.search(path.read_bytes())] == []
    marked = {path for path in kept if b"PRIVATE KEY-----" in path.read_bytes()}
    assert [path for path in marked if path.suffix not in (".py", ".md")] == []


def test_every_module_has_its_test_file() -> None:
    """One file of tests for each module that does something."""
    expected = {f"test_{module}.py" for module in EVERY if module not in ("model", "__main__")}
    assert expected - {path.name for path in (ROOT / "tests").glob("test_*.py")} == set()
