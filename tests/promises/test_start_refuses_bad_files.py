"""A start with a bad file is refused by name, in words that say what to do; `check` and `run` agree.

What people really put in these places is tried: Cloudflare's origin-pull CA of 2015 and Cloudflare's Origin CA roots,
which sign server certificates (the real ones lie in `certs_public/`), a saved web page, a leaf, an empty file, a key
that does not fit. Each must end in exit code 2 with a line that begins with the path of the setting. All files but the
bad one are good, and the last test shows that these alone are fine.
"""

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from actors import Outcome, run_command
from certificates import DAY, Authority, CredentialFiles, Credentials

PUBLIC = Path(__file__).parent.parent / "certs_public"
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Please sign in.</body></html>\n"
PASSWORD = b"correct horse"


@dataclass(frozen=True)
class SiteFiles:
    """The files of one site, and what they were made from."""

    directory: Path
    certificate: Path
    private_key: Path
    client_cas: tuple[Path, ...]
    authority: Authority
    server: Credentials
    server_authority: Authority
    password_file: Path | None = None

    def put(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        return path

    def with_server(self, files: CredentialFiles) -> "SiteFiles":
        return replace(self, certificate=files.certificate, private_key=files.private_key)

    def as_file(self) -> list[str]:
        """Arguments that name it in a configuration file."""
        site = {
            "certificate": str(self.certificate),
            "private_key": str(self.private_key),
            "clients": {"ca": list(map(str, self.client_cas))},
            "upstream": "http://127.0.0.1:9",
        }
        if self.password_file:
            site["private_key_password_file"] = str(self.password_file)
        path = self.directory / "proxy.yaml"
        path.write_text(yaml.safe_dump({"listen": ["127.0.0.1:0"], "sites": [site]}))
        return ["--config", str(path)]

    def as_flags(self) -> list[str]:
        """Arguments that name it in flags."""
        arguments = ["--listen", "127.0.0.1:0", "--upstream", "http://127.0.0.1:9"]
        arguments += ["--certificate", str(self.certificate), "--private-key", str(self.private_key)]
        return arguments + [word for path in self.client_cas for word in ("--client-ca", str(path))]


@pytest.fixture
def files(tmp_path: Path, authority: Authority, server_authority: Authority) -> SiteFiles:
    """Files that are fine."""
    server = server_authority.issue_server("origin.example")
    pair = server.write(tmp_path, "server")
    client_ca = authority.write(tmp_path / "client-ca.pem")
    return SiteFiles(tmp_path, pair.certificate, pair.private_key, (client_ca,), authority, server, server_authority)


BAD_CLIENT_CAS: dict[str, tuple[Callable[[SiteFiles], Path], str]] = {
    "expired_origin_pull_ca": (
        lambda files: PUBLIC / "cloudflare_origin_pull_ca_expired_2020.pem",
        r"expired 2020-01-12.*write `cloudflare`",
    ),
    "origin_ca_rsa_root": (
        lambda files: PUBLIC / "cloudflare_origin_ca_rsa_root.pem",
        r"Origin CA root.*server certificates.*write `cloudflare`",
    ),
    "origin_ca_ecc_root": (
        lambda files: PUBLIC / "cloudflare_origin_ca_ecc_root.pem",
        r"Origin CA root.*server certificates.*write `cloudflare`",
    ),
    "html_page": (lambda files: files.put("page.pem", HTML), r"HTML page.*download"),
    "leaf": (
        lambda files: files.authority.issue("leaf.example").write(files.directory, "leaf").certificate,
        r"CN=leaf\.example.*not a CA.*name the CA",
    ),
    "empty": (lambda files: files.put("empty.pem", b""), r"empty\.pem.* is empty"),
    "absent": (lambda files: files.directory / "absent.pem", r"absent\.pem.* does not exist"),
    "private_key": (lambda files: files.private_key, r"private key but no certificate"),
    "expired_ca": (
        lambda files: Authority("Old CA", validity=(-2 * DAY, -DAY)).write(files.directory / "old-ca.pem"),
        r"CN=Old CA.*expired on \d{4}-\d\d-\d\d.*renew",
    ),
    "early_ca": (
        lambda files: Authority("New CA", validity=(DAY, 2 * DAY)).write(files.directory / "new-ca.pem"),
        r"CN=New CA.*not valid before.*clock",
    ),
    "der": (
        lambda files: files.put("ca.der", ssl.PEM_cert_to_DER_cert(files.authority.pem.decode())),
        r"DER.*openssl x509",
    ),
    "cut_short": (lambda files: files.put("cut.pem", files.authority.pem[:200]), r"no certificate in this file"),
}

BAD_SERVER_FILES: dict[str, tuple[Callable[[SiteFiles], SiteFiles], str, str]] = {
    "foreign_key": (
        lambda files: replace(
            files, private_key=files.server_authority.issue_server().write(files.directory, "x").private_key
        ),
        "private_key",
        r"does not belong to the certificate",
    ),
    "expired": (
        lambda files: files.with_server(
            files.server_authority.issue_server("old.example", validity=(-2 * DAY, -DAY)).write(files.directory, "old")
        ),
        "certificate",
        r"CN=old\.example.*expired on \d{4}-\d\d-\d\d.*renew",
    ),
    "client_certificate": (
        lambda files: files.with_server(files.authority.issue().write(files.directory, "client")),
        "certificate",
        r"client certificate",
    ),
    "encrypted_key": (
        lambda files: files.with_server(files.server.write(files.directory, "encrypted", PASSWORD)),
        "private_key",
        r"encrypted.*private.key.password.file",
    ),
    "wrong_password": (
        lambda files: replace(
            files.with_server(files.server.write(files.directory, "encrypted", PASSWORD)),
            password_file=files.put("password", b"incorrect horse\n"),
        ),
        "private_key",
        r"password may be wrong",
    ),
    "page_for_certificate": (
        lambda files: replace(files, certificate=files.put("page.pem", HTML)),
        "certificate",
        r"HTML page.*download",
    ),
    "certificate_for_key": (
        lambda files: replace(files, private_key=files.certificate),
        "certificate",
        r"no private key in this file",
    ),
}


def assert_refused(outcome: Outcome, *expected: tuple[str, str]) -> None:
    """Exit code 2 and one line of output for each of these (path, words), beginning with the path."""
    assert outcome.exit_code == 2, outcome
    for path, words in expected:
        found = re.findall(rf"^.*{re.escape(path)}: .*$", outcome.stdout + outcome.stderr, re.MULTILINE)
        assert len(found) == 1, (path, outcome)
        assert re.search(words, found[0]), (words, found[0])


@pytest.mark.parametrize("form", ["file", "flags"])
def test_check_names_every_bad_client_ca(form: str, files: SiteFiles) -> None:
    """`check` says of each CA file what it is and what to do, all in one run, on stdout, a line each."""
    bad = replace(files, client_cas=tuple(make(files) for make, _ in BAD_CLIENT_CAS.values()))
    outcome = run_command("check", *(bad.as_file() if form == "file" else bad.as_flags()))
    prefix = "sites[0].clients.ca" if form == "file" else "--client-ca"
    assert_refused(outcome, *((f"{prefix}[{i}]", words) for i, (_, words) in enumerate(BAD_CLIENT_CAS.values())))
    assert [line for line in outcome.stdout.splitlines() if not line.startswith((prefix, "advice: "))] == []


# `run` shares its sentences with `check`: one file by fingerprint, one by content, one that is not there.
@pytest.mark.parametrize("case", ["expired_origin_pull_ca", "html_page", "absent"])
def test_run_refuses_a_bad_client_ca(case: str, files: SiteFiles) -> None:
    """`run` ends with exit code 2, says the same, and never listens."""
    make, words = BAD_CLIENT_CAS[case]
    outcome = run_command("run", *replace(files, client_cas=(make(files),)).as_file())
    assert_refused(outcome, ("sites[0].clients.ca[0]", words))
    assert "listening" not in outcome.stdout + outcome.stderr


@pytest.mark.parametrize("case", BAD_SERVER_FILES)
def test_check_refuses_bad_server_files(case: str, files: SiteFiles) -> None:
    """`check` says what is wrong with the server's own certificate or key, and what to do."""
    change, setting, words = BAD_SERVER_FILES[case]
    assert_refused(run_command("check", *change(files).as_file()), (f"sites[0].{setting}", words))


@pytest.mark.parametrize("case", ["foreign_key", "encrypted_key"])
def test_run_refuses_bad_server_files(case: str, files: SiteFiles) -> None:
    """`run` with flags ends with exit code 2 and names the flag."""
    change, setting, words = BAD_SERVER_FILES[case]
    outcome = run_command("run", *change(files).as_flags())
    assert_refused(outcome, (f"--{setting.replace('_', '-')}", words))
    assert "listening" not in outcome.stdout + outcome.stderr


def test_no_secret_is_printed(files: SiteFiles) -> None:
    """Neither key nor password stands in any message."""
    change, _, _ = BAD_SERVER_FILES["wrong_password"]
    outcome = run_command("check", *change(files).as_file())
    printed = outcome.stdout + outcome.stderr
    assert "incorrect horse" not in printed
    assert not any(line and line in printed for line in files.private_key.read_text().splitlines())


def test_good_files_pass(files: SiteFiles) -> None:
    """The same site with nothing wrong is fine, also with an encrypted key whose password is given."""
    encrypted = replace(
        files.with_server(files.server.write(files.directory, "encrypted", PASSWORD)),
        password_file=files.put("password", PASSWORD + b"\n"),
    )
    for arguments in (files.as_file(), files.as_flags(), encrypted.as_file()):
        outcome = run_command("check", *arguments)
        assert outcome.exit_code == 0, outcome
