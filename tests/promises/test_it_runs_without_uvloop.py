"""Where uvloop cannot be imported the worker runs on asyncio's own loop, and strangers and friends see the same."""

import os
from pathlib import Path
from typing import Any

from actors import HELLO, ONE_WORKER, Proxy, RecordingBackend, ask, client_context
from certificates import CredentialFiles


def test_on_asyncio(
    site: dict[str, Any], backend: RecordingBackend, client_credentials: CredentialFiles, tmp_path: Path
) -> None:
    """A module of that name that fails to import stands in for a system that has none."""
    (tmp_path / "uvloop.py").write_text("raise ImportError('not for this system')\n")
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))}
    with Proxy({**ONE_WORKER, "sites": [site]}, env=environment) as proxy:
        maps = Path(f"/proc/{proxy.worker_pids[0]}/maps")
        assert not maps.exists() or "uvloop" not in maps.read_text()
        assert b"No required SSL certificate was sent" in ask(proxy.address, client_context()).data
        assert [] == backend.connections
        assert HELLO in ask(proxy.address, client_context(client_credentials)).data
