"""Who is cut at the drain deadline learns that it was cut: no close_notify for the client, a reset for the backend."""

from typing import Any

from actors import GET, ONE_WORKER, Proxy, RecordingBackend, TlsClient, client_context, never_answer
from certificates import CredentialFiles


def test_at_the_drain_deadline(
    site: dict[str, Any], backend: RecordingBackend, client_credentials: CredentialFiles
) -> None:
    """Half an upload must not look whole to the backend, nor half an answer to the client."""
    backend.behaviour = never_answer
    timeouts = {"drain": "1s"}
    with Proxy({**ONE_WORKER, "timeouts": timeouts, "sites": [site]}) as proxy:
        with TlsClient(proxy.address, client_context(client_credentials)) as client:
            client.handshake(with_data=GET)
            connection = backend.wait_for_connection()
            proxy.terminate()
            assert client.receive_all().ending in ("reset", "fin")
        assert 1 == proxy.exit_code
        assert "drain_timeout" == proxy.wait_for("connection")["reason"]
    connection.wait_until(lambda: connection.ended is not None)
    assert "reset" == connection.ended
