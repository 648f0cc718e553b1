"""The units under deploy/systemd: systemd finds nothing wrong with them, and little that the service could do."""

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors import ONE_WORKER, PATIENCE, Proxy, RecordingBackend, ask, client_context, require_peer
from aop_proxy.workers import ExitCode
from certificates import CredentialFiles

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"
SERVICE, SOCKET = UNITS / "aop-proxy.service", UNITS / "aop-proxy.socket"
MOST_EXPOSURE = 20
"""In tenths, of 100: what `systemd-analyze security` calls OK."""


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    program = require_peer("systemd-analyze")
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)


def values(unit: Path, key: str) -> list[str]:
    return re.findall(f"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


def test_exposure() -> None:
    """At most 2.0."""
    judged = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", SERVICE)
    assert judged.returncode == 0, judged.stdout


def test_nothing_is_wrong(tmp_path: Path) -> None:
    """`systemd-analyze verify` says nothing, with a program in place of ours, which is installed elsewhere."""
    units = [Path(shutil.copy(unit, tmp_path)) for unit in (SERVICE, SOCKET)]
    program = values(SERVICE, "ExecStart")[0].split()[0]
    units[0].write_text(units[0].read_text().replace(program, require_peer("true")))
    verified = analyze("verify", *units)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def sets_of_calls() -> dict[str, set[str]]:
    """System calls by the name of their set, as systemd knows them."""
    found: dict[str, set[str]] = {}
    for line in analyze("syscall-filter", "--no-pager").stdout.splitlines():
        if line.startswith("@"):
            calls = found.setdefault(line, set())
        elif (name := line.strip()) and not name.startswith("#"):
            calls.add(name)
    return found


def members(sets: dict[str, set[str]], name: str) -> Iterator[str]:
    for member in sets[name]:
        yield from members(sets, member) if member.startswith("@") else (member,)


def test_every_system_call_is_allowed(
    site: dict[str, Any], backend: RecordingBackend, client_credentials: CredentialFiles, tmp_path: Path
) -> None:
    """From the start over good and refused clients and a reload to the drain, the filter has all that is called."""
    strace, sets = require_peer("strace"), sets_of_calls()
    allowed, denied = values(SERVICE, "SystemCallFilter")
    traced = tmp_path / "traced"
    with Proxy({**ONE_WORKER, "sites": [site]}, launcher=[strace, "-D", "-f", "-qq", "-o", str(traced)]) as proxy:
        for credentials, status in ((client_credentials, 200), (None, 400)):
            assert ask(proxy.address, client_context(credentials)).status == status
        proxy.signal(signal.SIGHUP)
        proxy.wait_for("reloaded")
        proxy.terminate()
        assert proxy.exit_code == ExitCode.DRAINED
        proxy.log.join(PATIENCE)  # whoever traces ends last
    called = set(re.findall(r"^[0-9]+ +(\w+)\(", traced.read_text(), re.MULTILINE))
    assert {"accept4", "prctl", "sendto"} <= called
    denied_calls = {call for name in denied.removeprefix("~").split() for call in members(sets, name)}
    assert called - (set(members(sets, allowed)) - denied_calls) == set()


def test_the_socket_is_for_the_addresses_that_we_take() -> None:
    """One for each family: a socket for both would be refused."""
    assert values(SOCKET, "ListenStream") == ["0.0.0.0:443", "[::]:443"]
    assert values(SOCKET, "BindIPv6Only") == ["ipv6-only"]
    assert values(SERVICE, "Sockets") == [SOCKET.name]


def test_no_privilege_is_asked_for() -> None:
    """Neither root, nor a capability, nor one to come by."""
    assert values(SERVICE, "User") == ["aop-proxy"]
    assert values(SERVICE, "CapabilityBoundingSet") + values(SERVICE, "AmbientCapabilities") == ["", ""]
    assert values(SERVICE, "NoNewPrivileges") == ["yes"]


def test_the_readme_installs_what_there_is() -> None:
    """Its lines name the units, and the paths that are in them."""
    (lines,) = re.findall(
        r"^```console\n(.*?systemctl.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    program, *arguments = values(SERVICE, "ExecStart")[0].split()
    for named in ("deploy/systemd/aop-proxy.*", program.removesuffix("/bin/aop-proxy"), Path(arguments[-1]).parent):
        assert str(named) in lines
    assert set(UNITS.iterdir()) == {SERVICE, SOCKET}
    assert all(unit.name in lines for unit in (SERVICE, SOCKET))
    assert f" {values(SERVICE, 'User')[0]}\n" in lines
