"""Fixtures that every test file may ask for."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from actors import ONE_WORKER, Proxy, RecordingBackend
from certificates import Authority, CredentialFiles

settings.register_profile("fast", max_examples=50, deadline=None)
settings.register_profile(
    "deep", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile(os.environ.get("AOP_HYPOTHESIS", "fast"))


def pytest_configure() -> None:
    """Take SIGTERM (from `timeout`, say) as Ctrl-C, so that fixtures end what they started: it would outlive us."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def certificates_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for certificate files that live as long as the run."""
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="session")
def authority() -> Authority:
    """The CA of the clients that may pass."""
    return Authority()


@pytest.fixture(scope="session")
def client_ca(authority: Authority, certificates_dir: Path) -> Path:
    """The PEM file of `authority`."""
    return authority.write(certificates_dir / "client-ca.pem")


@pytest.fixture(scope="session")
def client_credentials(authority: Authority, certificates_dir: Path) -> CredentialFiles:
    """What a client shows to pass."""
    return authority.issue("edge.example").write(certificates_dir, "client")


@pytest.fixture(scope="session")
def server_authority() -> Authority:
    """The CA of the proxy's own certificate, which no client certificate may come from."""
    return Authority("Test Server CA")


@pytest.fixture(scope="session")
def server_ca(server_authority: Authority, certificates_dir: Path) -> Path:
    """The PEM file of `server_authority`, for clients that check whom they talk to."""
    return server_authority.write(certificates_dir / "server-ca.pem")


@pytest.fixture(scope="session")
def server_credentials(server_authority: Authority, certificates_dir: Path) -> CredentialFiles:
    """The proxy's own certificate and key."""
    return server_authority.issue_server("origin.example").write(certificates_dir, "server")


@pytest.fixture(scope="module")
def module_backend() -> Iterator[RecordingBackend]:
    """One backend for a file of tests; ask for `backend`."""
    with RecordingBackend() as backend:
        yield backend


@pytest.fixture(scope="module")
def site(module_backend: RecordingBackend, server_credentials: CredentialFiles, client_ca: Path) -> dict[str, Any]:
    """The configuration of one site with our CA, in front of `backend`."""
    return {
        "certificate": str(server_credentials.certificate),
        "private_key": str(server_credentials.private_key),
        "clients": {"ca": [str(client_ca)]},
        "upstream": module_backend.url,
    }


@pytest.fixture(scope="module")
def module_proxy(site: dict[str, Any]) -> Iterator[Proxy]:
    """One proxy for a file of tests; ask for `proxy`."""
    with Proxy({**ONE_WORKER, "sites": [site]}) as proxy:
        yield proxy


@pytest.fixture
def backend(module_backend: RecordingBackend) -> RecordingBackend:
    """A backend that has seen nothing yet and answers every request with `HELLO`."""
    module_backend.forget()
    return module_backend


@pytest.fixture
def proxy(module_proxy: Proxy, backend: RecordingBackend) -> Proxy:
    """A running proxy in front of `backend`, its log empty."""
    module_proxy.forget()
    return module_proxy
