"""A certificate, a CA or a revocation list that ends soon is told at the start, after a reload, and by `check`.

That it is told daily, `test_reminders` sees; that a list refuses everybody once it has expired, `test_tls`.
"""

import signal
from pathlib import Path
from typing import Any

from actors import HELLO, ONE_WORKER, Proxy, ask, client_context, run_command
from admin import admin_address, status_when
from certificates import DAY, Authority, CredentialFiles

SOON = (-DAY, 10 * DAY)


def test_what_we_hold(site: dict[str, Any], server_authority: Authority, tmp_path: Path) -> None:
    """Each is told once with the key that names it and the days it has left; once all are renewed there is silence."""
    ending = Authority("Ending CA", validity=SOON)
    server = server_authority.issue_server("ending.example", validity=SOON).write(tmp_path, "server")
    (tmp_path / "list.crl").write_bytes(ending.revoke(validity=SOON))
    clients = {"ca": [str(ending.write(tmp_path / "ca.pem"))], "crl": [str(tmp_path / "list.crl")]}
    ends = {"certificate": str(server.certificate), "private_key": str(server.private_key), "clients": clients}
    expected = {
        "sites[0].clients.ca[0]": "CN=Ending CA",
        "sites[0].clients.crl[0]": "the CRL of CN=Ending CA",
        "sites[0].certificate": "CN=ending.example",
    }
    with Proxy({**ONE_WORKER, "sites": [site]}) as proxy:
        assert [] == proxy.events("certificate_expires_soon")
        proxy.write_config({**ONE_WORKER, "sites": [{**site, **ends}]})
        proxy.signal(signal.SIGHUP)
        proxy.wait_for("reloaded")
        told = proxy.events("certificate_expires_soon")
        assert expected == {event["path"]: event["subject"] for event in told}
        assert {("warning", 9)} == {(event["level"], event["days_left"]) for event in told}
        checked = run_command("check", "--config", proxy.config_path)
        assert (0, 3) == (checked.exit_code, checked.stdout.count(" expires on "))
        assert all(f"advice: {path}: {subject} expires on" in checked.stdout for path, subject in expected.items())
        proxy.forget()
        proxy.write_config({**ONE_WORKER, "sites": [site]})
        proxy.signal(signal.SIGHUP)
        proxy.wait_for("reloaded")
        assert [] == proxy.events("certificate_expires_soon")


def test_at_the_start(site: dict[str, Any], server_authority: Authority, tmp_path: Path) -> None:
    """It is in the log before the first client is."""
    server = server_authority.issue_server("ending.example", validity=SOON).write(tmp_path, "server")
    ends = {"certificate": str(server.certificate), "private_key": str(server.private_key)}
    with Proxy({**ONE_WORKER, "workers": 2, "sites": [{**site, **ends}]}) as proxy:
        assert ["CN=ending.example"] == [event["subject"] for event in proxy.events("certificate_expires_soon")]


def test_what_the_client_shows(
    proxy: Proxy, authority: Authority, client_credentials: CredentialFiles, tmp_path: Path
) -> None:
    """The line of a client whose certificate ends soon says in how many days; no other line does."""
    ending = authority.issue("ending.example", validity=(-DAY, 3 * DAY)).write(tmp_path, "ending")
    for shown, expected in ((ending, 2), (client_credentials, None), (None, None)):
        proxy.forget()
        answer = ask(proxy.address, client_context(shown))
        assert (answer.data == HELLO) == (shown is not None)
        assert expected == proxy.wait_for("connection").get("certificate_days_left")


def days_left(status: Any) -> int:
    """Of the certificate by which a client was last let in, as `/status.json` has it."""
    ends: float = status["client_ends"].get("*", 0.0)
    return round((ends - float(status["time"])) / 86400)


def test_what_the_client_shows_is_measured(
    site: dict[str, Any], authority: Authority, client_credentials: CredentialFiles, tmp_path: Path
) -> None:
    """For each site the end of the certificate by which a client was last let in is told; a stranger changes nothing."""
    ending = authority.issue("ending.example", validity=(-DAY, 3 * DAY)).write(tmp_path, "ending")
    with Proxy({**ONE_WORKER, "admin": "127.0.0.1:0", "sites": [site]}) as proxy:
        address = admin_address(proxy)
        for shown, days in ((client_credentials, 90), (ending, 3), (None, 3)):
            ask(proxy.address, client_context(shown))
            status_when(address, lambda status, days=days: days == days_left(status))  # type: ignore[misc]
