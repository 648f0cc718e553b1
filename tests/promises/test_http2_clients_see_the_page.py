"""With `h2` in `alpn`, who is refused reads the page as HTTP/2, and who passes speaks HTTP/2 with the backend."""

import subprocess
from typing import Any

import pytest

from actors import ONE_WORKER, Proxy, RecordingBackend, require_peer
from certificates import CredentialFiles


@pytest.fixture
def proxy(site: dict[str, Any]) -> Any:
    with Proxy({**ONE_WORKER, "sites": [{**site, "alpn": ["h2", "http/1.1"]}]}) as proxy:
        yield proxy


def test_curl_reads_the_page(proxy: Proxy, backend: RecordingBackend) -> None:
    """Curl agrees on h2, shows no certificate, and sees NGINX's sentence with status 400."""
    command = [
        require_peer("curl"),
        "-sk",
        "--http2",
        "-w",
        "%{http_version} %{http_code}",
        f"https://127.0.0.1:{proxy.port}/",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    assert "No required SSL certificate was sent" in answer
    assert answer.endswith("2 400")
    assert [] == backend.connections


def test_curl_reads_that_the_backend_is_down(site: dict[str, Any], client_credentials: CredentialFiles) -> None:
    """A 502 on the live session is HTTP/2 too."""
    down = {**site, "alpn": ["h2"], "upstream": "http://127.0.0.1:9"}
    with Proxy({**ONE_WORKER, "sites": [down]}) as proxy:
        certificate = ["--cert", str(client_credentials.certificate), "--key", str(client_credentials.private_key)]
        command = [require_peer("curl"), "-sk", "--http2", "-w", "%{http_version} %{http_code}", *certificate]
        answer = subprocess.run(
            [*command, f"https://127.0.0.1:{proxy.port}/"], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    assert answer.endswith("2 502")
