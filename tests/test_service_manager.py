"""What a service manager gives by the environment, and hears over a real socket."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aop_proxy import service_manager
from aop_proxy.model import ConfigurationError
from aop_proxy.service_manager import ServiceManager
from service_managers import NotifySocket

ROOT = Path(__file__).parents[1]
US = str(os.getpid())


def test_nobody_manages_us() -> None:
    """Without the variables there is nothing to take, and nothing is said."""
    environment = {"PATH": "/bin"}
    manager = ServiceManager(environment)
    assert (manager.descriptors, manager.watchdog, environment) == ([], 0, {"PATH": "/bin"})
    manager.ready("")
    manager.alive()


# States


@pytest.mark.parametrize("name", ["{directory}/notify", "@aop-test-{pid}"], ids=["path", "abstract"])
def test_states_are_told(tmp_path: Path, name: str) -> None:
    """Over a datagram socket at a path, or in the abstract namespace; what was taken is out of the environment."""
    with NotifySocket(name.format(directory=tmp_path, pid=US)) as systemd:
        environment = dict(systemd.environment)
        manager = ServiceManager(environment)
        assert environment == {}
        manager.ready("Serving")
        assert systemd.receive() == {"READY": "1", "STATUS": "Serving"}
        manager.alive()
        assert systemd.receive() == {"WATCHDOG": "1"}
        manager.stopping(30.5)
        assert systemd.receive() == {"STOPPING": "1", "EXTEND_TIMEOUT_USEC": "30500000", "STATUS": "Draining"}


def test_a_reload_says_when_it_began(tmp_path: Path) -> None:
    """By the clock that systemd compares with."""
    with NotifySocket(tmp_path / "notify") as systemd:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        ServiceManager(systemd.environment).reloading()
        told = systemd.receive()
        assert told["RELOADING"] == "1"
        assert before <= int(told["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_a_status_is_one_short_line(tmp_path: Path) -> None:
    """Whatever a problem's sentence quotes, it cannot say anything else."""
    with NotifySocket(tmp_path / "notify") as systemd:
        ServiceManager(systemd.environment).ready("a\nSTOPPING=1\ud800" + "x" * 9000)
        told = systemd.receive()
    assert list(told) == ["READY", "STATUS"]
    assert told["STATUS"].startswith("a STOPPING=1")
    assert len(told["STATUS"]) < 300


@pytest.mark.parametrize("name", ["/nowhere/notify", "vsock:2:1234", "relative"])
def test_a_socket_that_is_not_there(name: str) -> None:
    """It is no reason not to serve."""
    ServiceManager({"NOTIFY_SOCKET": name}).ready("Serving")


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service manager that takes nothing any more is not waited for."""
    monkeypatch.setattr(service_manager, "_SEND_PATIENCE", 0.05)
    with NotifySocket(tmp_path / "notify") as systemd:
        manager = ServiceManager(dict(systemd.environment))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while filler.sendto(b"X=1", systemd.name):
                    pass
            manager.ready("Serving")
            assert systemd.receive() == {"X": "1"}


# The watchdog


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": US}, 0.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "often"}, 0.0),
        ({"WATCHDOG_PID": US}, 0.0),
    ],
)
def test_whether_we_are_watched(variables: dict[str, str], expected: float) -> None:
    """A watchdog is ours if no other process is named, and says its time."""
    assert ServiceManager(variables).watchdog == expected
    assert variables == {}


# Sockets


def test_sockets_for_us() -> None:
    """Those from descriptor 3 on, which no child inherits."""
    code = (
        "import os; from aop_proxy.service_manager import ServiceManager\n"
        "manager = ServiceManager(os.environ)\n"
        "print(manager.descriptors, [os.get_inheritable(one) for one in manager.descriptors],"
        " [name for name in os.environ if name.startswith('LISTEN_')])"
    )
    given = 'exec 3</dev/null 4</dev/null; LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=a:b exec "$@"'
    shown = subprocess.run(
        ["sh", "-c", given, "sh", sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert shown.stdout == "[3, 4] [False, False] []\n"


def test_sockets_for_somebody_else() -> None:
    """They are left alone, and no child of ours hears of them."""
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "2"}
    assert ServiceManager(environment).descriptors == []
    assert environment == {}


@pytest.mark.parametrize("count", ["", "many", "-1", "100000"])
def test_a_count_that_makes_no_sense(count: str) -> None:
    """That is a configuration error."""
    with pytest.raises(ConfigurationError, match="LISTEN_FDS is no number of sockets"):
        ServiceManager({"LISTEN_PID": US, "LISTEN_FDS": count})


def test_a_socket_that_was_promised() -> None:
    """A descriptor that is not open is named."""
    with pytest.raises(ConfigurationError, match=r"listen: .*LISTEN_FDS promises 1000 sockets, but \d+ is not open"):
        ServiceManager({"LISTEN_PID": US, "LISTEN_FDS": "1000"})
