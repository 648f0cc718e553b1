"""deploy/docker: what the image holds and how Compose starts it, and that the program runs under those conditions.

No container engine is asked. The program is started as the image's user, without capabilities, in a network of its own
and with a root that cannot be written; the image's health check is run beside it. Needs root; skipped otherwise.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors import Proxy, require_peer, run_command
from certificates import Authority

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy/docker"
DOCKERFILE = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "docker-compose.yaml").read_text())
CONFIGURATION: dict[str, Any] = yaml.safe_load((DOCKER / "config/proxy.yaml").read_text())
SETUP = """
ip link set lo up
# A Python in root's own directory is one that others may use; the first layer says who may enter.
mount --types overlay overlay --options lowerdir=/srv:/root /root || true
for mount in / /tmp /run /dev/shm; do
    if mountpoint --quiet "$mount"; then mount --options remount,bind,ro "$mount"; fi
done
unset COVERAGE_PROCESS_START COVERAGE_PROCESS_CONFIG  # which would be written into a root that cannot be
exec setpriv --reuid "$0" --regid "$0" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""
"""What the engine does for `read_only`, `cap_drop` and `user`; `$0` is the user."""


def instruction(name: str) -> list[str]:
    """The arguments of every instruction of this name."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def words(name: str) -> list[str]:
    """The only instruction of this name, written as a list."""
    (line,) = instruction(name)
    found: list[str] = json.loads(line[line.index("[") :])
    return found


(USER,) = (line.partition(":")[0] for line in instruction("USER"))


def test_the_image_is_small_and_not_roots() -> None:
    """Two stages of one slim image; the second holds neither sources nor pip, and runs as a number that is not root's."""
    assert [line.partition(" AS ")[0] for line in instruction("FROM")] == ["python:3.13-slim"] * 2
    last = DOCKERFILE[DOCKERFILE.rindex("FROM ") :]
    assert re.findall(r"^(?:RUN|ADD) .*", last, re.MULTILINE) == []
    assert "--without-pip" in DOCKERFILE
    assert re.fullmatch(r"[1-9]\d+", USER)


def test_what_is_copied_is_there() -> None:
    """In the repository, and let through by the ignore file, which lets nothing else through."""
    copied = {
        source
        for line in instruction("COPY")
        if "--from" not in line
        for source in [word for word in line.split()[:-1] if not word.startswith("--")]
    }
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignore[1] == "*"
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_the_command_and_the_paths_meet(tmp_path: Path, server_authority: Authority, authority: Authority) -> None:
    """The volume of Compose is where the command looks, and `check` has nothing against what lies there."""
    service = COMPOSE["services"]["aop-proxy"]
    assert words("ENTRYPOINT") == ["/opt/aop-proxy/bin/aop-proxy"]
    assert words("CMD") == ["run", "--config", "/etc/aop-proxy/proxy.yaml"]
    assert service["volumes"] == ["./config:/etc/aop-proxy:ro"]
    assert service["ports"] == [f"443:{port}" for port in instruction("EXPOSE")] == ["443:8443"]
    assert CONFIGURATION["listen"] == ["0.0.0.0:8443"]
    (tmp_path / "proxy.yaml").write_text((DOCKER / "config/proxy.yaml").read_text())
    _write_files(tmp_path, server_authority, authority)
    checked = run_command("check", "--config", tmp_path / "proxy.yaml")
    assert (checked.exit_code, checked.stdout, checked.stderr) == (0, "", "")


def test_compose_shuts_the_backend_in() -> None:
    """Only the proxy is on the outside; the backend's network leads nowhere, and it publishes no port."""
    proxy, app = COMPOSE["services"]["aop-proxy"], COMPOSE["services"]["app"]
    assert COMPOSE["networks"]["inside"]["internal"] is True
    assert (proxy["networks"], app["networks"]) == (["outside", "inside"], ["inside"])
    assert "ports" not in app
    assert CONFIGURATION["sites"][0]["upstream"] == "http://app:8000"
    assert app["command"][:3] == ["gunicorn", "--bind", "0.0.0.0:8000"]
    for service in (proxy, app):
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert [(ROOT / "deploy/examples/gunicorn" / name).exists() for name in ("app.py", "gunicorn.conf.py")] == [
        True
    ] * 2


def test_the_container_outlives_the_drain() -> None:
    """Compose kills after its grace period: later than the drain may end."""
    seconds = {key: int(value.removesuffix("s")) for key, value in CONFIGURATION["timeouts"].items()}
    for service in COMPOSE["services"].values():
        assert int(service["stop_grace_period"].removesuffix("s")) > seconds["drain_delay"] + seconds["drain"]


def _write_files(directory: Path, server_authority: Authority, authority: Authority) -> None:
    server_authority.issue_server("example.com").write(directory, "origin")
    (directory / "zone").mkdir()
    authority.write(directory / "zone/ca.pem")


@pytest.fixture
def container(server_authority: Authority, authority: Authority) -> Iterator[Proxy]:
    """The program under the engine's conditions."""
    for peer in ("nsenter", "setpriv", "ip", "curl"):
        require_peer(peer)
    if os.geteuid() != 0:
        pytest.skip("only root can make namespaces and become the image's user")
    launcher = (require_peer("unshare"), "--mount", "--net", "--propagation", "private", "sh", "-ec", SETUP, USER)
    may_run = [*launcher, sys.executable, "-c", "import os, sys; os.execv(sys.executable, [sys.executable, '-V'])"]
    if subprocess.run(may_run, capture_output=True, timeout=30, check=False).returncode:
        pytest.skip(f"user {USER} may not run {sys.executable}")
    proxy = Proxy({**CONFIGURATION, "workers": 1}, launcher=launcher)
    directory = proxy.config_path.parent
    _write_files(directory, server_authority, authority)
    for path in (directory, *directory.rglob("*")):
        os.chown(path, int(USER), int(USER))
    with proxy:
        proxy.wait_for("admin_ready")
        yield proxy


def inside(proxy: Proxy, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the container's namespaces."""
    enter = ["nsenter", "--target", str(proxy.pid), "--net", "--mount", "--wd=/"]
    return subprocess.run([*enter, *command], capture_output=True, text=True, timeout=30, check=False)


def healthy(proxy: Proxy) -> bool:
    (program,) = words("HEALTHCHECK")
    return inside(proxy, str(DOCKER / program)).returncode == 0


def test_it_runs_as_nobody_with_a_root_that_cannot_be_written(container: Proxy) -> None:
    """Strangers read their page, and the health check says well, until the drain begins."""
    status = Path(f"/proc/{container.worker_pids[0]}/status").read_text()
    assert re.findall(r"^(?:Uid|CapEff|CapBnd|NoNewPrivs):\t(\S+)", status, re.MULTILINE) == [
        USER,
        *["0" * 16] * 2,
        "1",
    ]
    assert "Read-only file system" in inside(container, "touch", str(container.config_path.parent / "new")).stderr
    answer = inside(container, *shlex.split("curl --silent --insecure https://127.0.0.1:8443/")).stdout
    assert "<title>400 No required SSL certificate was sent</title>" in answer
    assert healthy(container)
    container.terminate()
    container.wait_for("draining")
    while healthy(container):  # the admin process is told a little later
        assert not container.events("drained"), "the health check never failed"
    container.signal(signal.SIGTERM)  # it need not wait out its drain_delay
    assert container.exit_code in (0, 1)


def test_the_health_check_fails_where_nothing_runs() -> None:
    """In a network where nobody listens."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a network")
    (program,) = words("HEALTHCHECK")
    command = [require_peer("unshare"), "--net", str(DOCKER / program)]
    assert subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 1
