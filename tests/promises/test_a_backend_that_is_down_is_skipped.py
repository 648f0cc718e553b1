"""Of several backends one that is down costs one attempt, not one for each client; it is told, and so is its return."""

import socket
import time
from typing import Any

import pytest

from actors import (
    GET_AND_CLOSE,
    HELLO,
    ONE_WORKER,
    PATIENCE,
    Proxy,
    RecordingBackend,
    ask,
    client_context,
    free_port,
)
from certificates import CredentialFiles


@pytest.mark.parametrize("is_silent", [False, True], ids=["refusing", "silent"])
def test_down_and_up_again(
    site: dict[str, Any], backend: RecordingBackend, client_credentials: CredentialFiles, is_silent: bool
) -> None:
    """Clients are served from the next in the list meanwhile, and from the first once it answers; one line tells each."""
    context, port = client_context(client_credentials), free_port()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        waiting = _fill(listener) if is_silent else []
        url = f"http://127.0.0.1:{port}"
        config = {**ONE_WORKER, "timeouts": {"connect": "1s"}, "sites": [{**site, "upstream": [url, site["upstream"]]}]}
        with Proxy(config) as proxy:
            for number in range(1, 4):
                assert HELLO == ask(proxy.address, context).data
                assert number == len(backend.connections)
            down = proxy.wait_for("upstream_down")
            assert (url, f"127.0.0.1:{port}", "warning") == (down["upstream"], down["address"], down["level"])
            assert ("no answer in time" if is_silent else "Connection refused") == down["why"]
            for end in waiting:
                end.close()
            listener.listen()
            listener.settimeout(0.1)
            deadline = time.monotonic() + PATIENCE
            while not _is_dialled(listener):
                assert time.monotonic() < deadline
                ask(proxy.address, context, GET_AND_CLOSE, timeout=0.3)
            assert 1.0 <= proxy.wait_for("upstream_up")["down_seconds"]
            assert 1 == len(proxy.events("upstream_down"))


def _fill(listener: socket.socket) -> list[socket.socket]:
    """Leave no room in a listener's queue: further clients wait for an answer."""
    listener.listen(0)
    waiting: list[socket.socket] = []
    while True:
        client = socket.socket()
        client.settimeout(0.1)
        try:
            client.connect(listener.getsockname())
        except TimeoutError:
            client.close()
            return waiting
        waiting.append(client)


def _is_dialled(listener: socket.socket) -> bool:
    """Whether a connection of the proxy's is there; those that filled the queue are over."""
    try:
        while True:
            end, _ = listener.accept()
            with end:
                end.settimeout(0.1)
                if end.recv(1):
                    return True
    except TimeoutError:
        return False
