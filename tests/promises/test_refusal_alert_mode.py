"""With `refusal: alert` a refused client gets OpenSSL's own alert, and no secret of any session is ever written down.

The alert must be the one that RFC 8446 section 6.2 has for the case, and no page may come with it. That no key log is
open is read from the worker's descriptors: a key log is a pipe that the worker itself reads and has open for appending,
and the same look at a proxy in its default mode must find it.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import (
    HELLO,
    ONE_WORKER,
    Proxy,
    RecordingBackend,
    ask,
    client_context,
    missing_peer,
    require_peer,
    run_command,
)
from certificates import REFUSED, Authority, CredentialFiles

ALERTS = {
    "self_signed": "unknown_ca",
    "unknown_ca": "unknown_ca",
    "same_name_other_ca": "unknown_ca",
    "broken_chain": "unknown_ca",
    "leaf_as_ca": "unknown_ca",
    "expired": "certificate_expired",
    "not_yet_valid": "bad_certificate",
    "wrong_purpose": "unsupported_certificate",
    "wrong_key_usage": "unsupported_certificate",
    "ca_as_leaf": "unsupported_certificate",
    "unknown_critical_extension": "certificate_unknown",
    "path_too_long": "unknown_ca",
    "rsa_1024": "bad_certificate",
    "sha1": "bad_certificate",
    "stolen": "decrypt_error",
}


@pytest.fixture(scope="module")
def alert_proxy(site: dict[str, Any]) -> Iterator[Proxy]:
    """A proxy as in `proxy`, but one that refuses with alerts."""
    with Proxy({**ONE_WORKER, "refusal": "alert", "sites": [site]}) as proxy:
        yield proxy


def key_logs(pid: int) -> set[str]:
    """Pipes that a process both reads from and appends to."""
    read, appended = set(), set()
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        status = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text()
        flags = int(status.partition("flags:\t")[2].split()[0], 8)
        if target.startswith("pipe:") and flags & os.O_ACCMODE == os.O_RDONLY:
            read.add(target)
        elif target.startswith("pipe:") and flags & os.O_APPEND:
            appended.add(target)
    return read & appended


def test_no_certificate(alert_proxy: Proxy, backend: RecordingBackend) -> None:
    """A client without a certificate is told `certificate required`, and nothing else."""
    answer = ask(alert_proxy.address, client_context())
    assert (answer.data, answer.ending) == (b"", "alert:certificate_required")
    assert backend.connections == []
    assert alert_proxy.wait_for("connection", reason="no_certificate")["verdict"] == "refused"


@pytest.mark.parametrize("specimen", REFUSED)
def test_a_certificate_that_fails(
    specimen: str, alert_proxy: Proxy, backend: RecordingBackend, authority: Authority, tmp_path: Path
) -> None:
    """A client with a certificate that fails gets the alert for its case, and nothing else."""
    files = REFUSED[specimen](authority).write(tmp_path, specimen)
    answer = ask(alert_proxy.address, client_context(files))
    assert (answer.data, answer.ending) == (b"", f"alert:{ALERTS[specimen]}")
    assert backend.connections == []


def test_a_good_certificate(alert_proxy: Proxy, backend: RecordingBackend, client_credentials: CredentialFiles) -> None:
    """Good clients pass as they do with pages."""
    assert ask(alert_proxy.address, client_context(client_credentials)).data == HELLO
    assert len(backend.connections) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="the descriptors of a process that is not dumpable are root's to read")
def test_no_key_log_is_open(
    alert_proxy: Proxy, proxy: Proxy, client_credentials: CredentialFiles, backend: RecordingBackend
) -> None:
    """The worker reads no pipe that it appends to, whereas in the default mode it does."""
    for one in (alert_proxy, proxy):
        assert ask(one.address, client_context(client_credentials)).data == HELLO
    assert [len(key_logs(pid)) for pid in alert_proxy.worker_pids] == [0]
    assert [len(key_logs(pid)) for pid in proxy.worker_pids] == [1]


def test_without_dev_fd(site: dict[str, Any], backend: RecordingBackend, client_credentials: CredentialFiles) -> None:
    """Where no key log can be opened the proxy refuses with alerts, says so once, and `check` says so too."""
    bare = 'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$@"'
    launcher = (require_peer("unshare"), "--mount", "sh", "-c", bare, "sh")
    if subprocess.run([*launcher, "true"], capture_output=True, check=False).returncode:
        missing_peer("a mount namespace of our own")
    with Proxy({**ONE_WORKER, "sites": [site]}, launcher=launcher) as proxy:
        answer = ask(proxy.address, client_context())
        assert (answer.data, answer.ending) == (b"", "alert:certificate_required")
        assert backend.connections == []
        assert ask(proxy.address, client_context(client_credentials)).data == HELLO
        assert len([event for event in proxy.log.events if event["level"] == "warning"]) == 1
        checked = run_command("check", "--config", proxy.config_path, launcher=launcher)
    assert checked.exit_code == 0
    assert "advice: refusal" in checked.stdout
