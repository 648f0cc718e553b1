"""The command that makes a CA and a client certificate: what it writes, how, and what it refuses.

Faults come from outside: a full file system, and a helper process that runs the real command once for every step it
takes in the directory and there lets the step fail, sends a signal, or looks at the modes of what lies there. That the
certificates are good for Cloudflare, for us and for others is the business of the promise of their name.
"""

import datetime as dt
import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors import require_peer, run_command
from aop_proxy import cli
from aop_proxy.zone_certificates import CA_DAYS, NothingMade, make
from certificates import DAY, Authority, KeyType, key_pem, write_private

CA_FILES = ("ca.pem", "ca.key")
LEAF_FILES = ("client.pem", "client.key")
FILES = (*CA_FILES, *LEAF_FILES)
NAME = "www.example.com"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A directory with a CA and a client certificate."""
    make(str(tmp_path / "made"), NAME, 365, renew=False)
    return tmp_path / "made"


def certificate(directory: Path, name: str = "client.pem") -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / name).read_bytes())


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def public(key: object) -> bytes:
    return key.public_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def is_pair(certificate_pem: bytes, private_pem: bytes) -> bool:
    key = serialization.load_pem_private_key(private_pem, None)
    return public(x509.load_pem_x509_certificate(certificate_pem).public_key()) == public(key.public_key())


def common_name(name: x509.Name) -> str:
    return str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def refuse(out: Path | str, name: str = NAME, days: int = 365, *, renew: bool = False) -> str:
    """The one sentence of a refusal."""
    with pytest.raises(NothingMade) as caught:
        make(str(out), name, days, renew=renew)
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1
    return sentence


# What is made


def test_makes_four_private_files(made: Path) -> None:
    """A CA, a client certificate, and the key of each."""
    assert set(FILES) == set(contents(made))
    for pair in (CA_FILES, LEAF_FILES):
        assert is_pair(*((made / name).read_bytes() for name in pair))
    certificate(made).verify_directly_issued_by(certificate(made, "ca.pem"))


def test_keys_are_of_a_kind_that_cloudflare_takes(made: Path) -> None:
    """ECDSA on P-256 in unencrypted PKCS #8: of at least 225 bits, and without a block of parameters before the key."""
    for name in ("ca.key", "client.key"):
        pem = (made / name).read_bytes()
        key = serialization.load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.curve.name == "secp256r1"
        assert (pem.count(b"-----BEGIN "), pem.count(b"-----BEGIN PRIVATE KEY-----")) == (1, 1)


def test_how_long_they_are_valid(made: Path) -> None:
    """The CA ten years, the client certificate as long as asked; both from yesterday, for clocks that differ."""
    now = dt.datetime.now(dt.UTC)
    for name, days in (("ca.pem", CA_DAYS), ("client.pem", 365)):
        one = certificate(made, name)
        assert abs(one.not_valid_before_utc - (now - DAY)) < dt.timedelta(minutes=5)
        assert abs(one.not_valid_after_utc - (now + days * DAY)) < dt.timedelta(minutes=5)


@pytest.mark.parametrize("renew", [False, True])
def test_a_certificate_never_outlives_its_ca(tmp_path: Path, renew: bool) -> None:
    """With the longest --days both end in the same second."""
    make(str(tmp_path / "made"), NAME, CA_DAYS, renew=False)
    if renew:
        make(str(tmp_path / "made"), NAME, CA_DAYS, renew=True)
    ends = {certificate(tmp_path / "made", name).not_valid_after_utc for name in ("ca.pem", "client.pem")}
    assert len(ends) == 1


def test_every_ca_and_every_certificate_is_another(tmp_path: Path) -> None:
    """No key and no serial number is used twice; two CAs of one name and day are told apart by their key identifiers."""
    for directory in ("one", "two"):
        make(str(tmp_path / directory), NAME, 365, renew=False)
    every = [
        certificate(tmp_path / directory, name) for directory in ("one", "two") for name in ("ca.pem", "client.pem")
    ]
    assert len({public(one.public_key()) for one in every}) == 4
    assert len({one.serial_number for one in every}) == 4
    with pytest.raises(InvalidSignature):
        certificate(tmp_path / "one").verify_directly_issued_by(certificate(tmp_path / "two", "ca.pem"))


# Names


@pytest.mark.parametrize(
    ("name", "alternative"),
    [
        ("www.example.com", "www.example.com"),
        ("WWW.Example.COM.", "www.example.com"),
        ("edge", "edge"),
        ("Cloudflare, für uns", None),
        ("CN=x, O=y/../'\"; $(id)", None),
        ("192.0.2.1", None),
        ("x" * 64, None),
    ],
)
def test_a_name_is_a_host_or_a_text(tmp_path: Path, name: str, alternative: str | None) -> None:
    """Either is the common name; a host name is a DNS name too, as `names` in the configuration wants it."""
    make(str(tmp_path / "made"), name, 365, renew=False)
    leaf, ca = certificate(tmp_path / "made"), certificate(tmp_path / "made", "ca.pem")
    assert common_name(leaf.subject) == name
    assert [one.value for one in ca.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == [name]
    found = [one for one in leaf.extensions if isinstance(one.value, x509.SubjectAlternativeName)]
    expected = [] if alternative is None else [[alternative]]
    assert [one.value.get_values_for_type(x509.DNSName) for one in found] == expected


@pytest.mark.parametrize(
    "name", ["", "  ", "*.example.com", "a\nb", "a\0b", "\x1b[2J", "\u202egpj.exe", "\udcff", "x" * 65, "é" * 33]
)
def test_what_is_no_name(tmp_path: Path, name: str) -> None:
    """Refused in a sentence in which nothing moves the cursor."""
    sentence = refuse(tmp_path / "made", name)
    assert sentence.startswith("--name ")
    assert sentence.isprintable()
    assert list(tmp_path.iterdir()) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=70))
def test_any_name_is_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """Whatever the text: it is the common name as it stands, or there is one sentence and nothing on disk."""
    out = tmp_path_factory.mktemp("any") / "made"
    sentence = ""
    try:
        make(str(out), name, 365, renew=False)
    except NothingMade as reason:
        sentence = str(reason)
    assert sentence.isprintable()
    assert [common_name(certificate(path).subject) for path in out.parent.iterdir()] == ([] if sentence else [name])


# Permissions


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277, 0o777])
def test_only_the_owner_may_read(tmp_path: Path, umask: int) -> None:
    """The directory is 0700 and every file 0600, whatever the umask gives away or takes, and after a renewal too."""
    before = os.umask(umask)
    try:
        make(str(tmp_path / "made"), NAME, 365, renew=False)
        modes = {path.name: mode(path) for path in (tmp_path / "made").iterdir()}
        make(str(tmp_path / "made"), NAME, 365, renew=True)
    finally:
        os.umask(before)
    assert mode(tmp_path / "made") == 0o700
    assert modes == dict.fromkeys(FILES, 0o600)
    assert {path.name: mode(path) for path in (tmp_path / "made").iterdir()} == modes


def test_a_directory_that_is_there_keeps_its_mode_and_its_files(tmp_path: Path) -> None:
    """Ours come beside what lies there."""
    tmp_path.chmod(0o755)
    (tmp_path / "proxy.yaml").write_text("listen: []\n")
    make(str(tmp_path), NAME, 365, renew=False)
    assert mode(tmp_path) == 0o755
    assert set(contents(tmp_path)) == {*FILES, "proxy.yaml"}


def test_a_relative_directory_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed works from anywhere."""
    monkeypatch.chdir(tmp_path)
    printed = make("made", NAME, 365, renew=False)
    assert f"'{tmp_path}/made/client.pem'" in printed or f" {tmp_path}/made/client.pem " in printed


# Renewal


def test_a_renewal_keeps_the_ca(made: Path) -> None:
    """Byte for byte, its key too; the client certificate and its key are new, and the name may be."""
    before = contents(made)
    printed = make(str(made), "other.example.com", 30, renew=True)
    after = contents(made)
    assert set(after) == set(FILES)
    assert {name for name in FILES if after[name] != before[name]} == set(LEAF_FILES)
    assert is_pair(after["client.pem"], after["client.key"])
    old, new = x509.load_pem_x509_certificate(before["client.pem"]), certificate(made)
    new.verify_directly_issued_by(certificate(made, "ca.pem"))
    assert public(old.public_key()) != public(new.public_key())
    assert common_name(new.subject) == "other.example.com"
    for one in (old, new):
        assert one.fingerprint(hashes.SHA256()).hex() in printed


@pytest.mark.parametrize("lost", [("client.pem", "client.key"), ("client.pem",), ("client.key",)])
def test_a_renewal_needs_the_ca_alone(made: Path, lost: tuple[str, ...]) -> None:
    """A client certificate or key that was moved away is made anew."""
    for name in lost:
        (made / name).unlink()
    make(str(made), NAME, 365, renew=True)
    assert set(contents(made)) == set(FILES)
    assert is_pair(*((made / name).read_bytes() for name in LEAF_FILES))


def ca_of_ones_own(directory: Path, key: KeyType, identifier: bytes | None) -> None:
    """A CA that another program made: any key, and its key identifier chosen otherwise or left out."""
    authority = Authority("Own CA", key=key)
    pem = authority.pem
    assert isinstance(authority.key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    if key == "rsa2048":
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder(authority.certificate.subject, authority.certificate.subject)
            .public_key(authority.key.public_key())
            .serial_number(1)
            .not_valid_before(now - DAY)
            .not_valid_after(now + 90 * DAY)
            .add_extension(x509.BasicConstraints(True, None), critical=True)
        )
        if identifier is not None:
            builder = builder.add_extension(x509.SubjectKeyIdentifier(identifier), critical=False)
        pem = builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (directory / "ca.pem").write_bytes(pem)
    write_private(directory / "ca.key", key_pem(authority.key))


@pytest.mark.parametrize(("key", "identifier"), [("p384", None), ("rsa2048", None), ("rsa2048", b"chosen by hand")])
def test_a_ca_of_ones_own_will_do(tmp_path: Path, key: KeyType, identifier: bytes | None) -> None:
    """A certificate of it verifies, which it would not if it named another key of the CA than the CA does itself."""
    ca_of_ones_own(tmp_path, key, identifier)
    make(str(tmp_path), NAME, 30, renew=True)
    command = [require_peer("openssl"), "verify", "-purpose", "sslclient", "-CAfile", "ca.pem", "client.pem"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "client.pem: OK\n")


# Refusals


@pytest.mark.parametrize("there", [FILES, ("ca.pem",), ("client.key",)])
def test_nothing_is_overwritten_without_renew(tmp_path: Path, there: tuple[str, ...]) -> None:
    """Not even one file of another's, and not through a link that leads nowhere."""
    for name in there[1:]:
        (tmp_path / name).write_text("precious")
    (tmp_path / there[0]).symlink_to("nowhere")
    sentence = refuse(tmp_path)
    assert f'"{tmp_path}" holds {", ".join(name for name in FILES if name in there)} already: give --renew' in sentence
    assert {path.name for path in tmp_path.iterdir()} == set(there)
    assert {(tmp_path / name).read_text() for name in there[1:]} <= {"precious"}


@pytest.mark.parametrize("days", [-1, 0, CA_DAYS + 1, 10**30])
def test_days_out_of_range(tmp_path: Path, days: int) -> None:
    """At least one, at most as long as a new CA is valid."""
    assert refuse(tmp_path / "made", days=days).startswith(f"--days {days} is out of range: write 1 to {CA_DAYS}")
    assert not (tmp_path / "made").exists()


def put(directory: Path, name: str, content: bytes) -> None:
    (directory / name).unlink(missing_ok=True)
    write_private(directory / name, content)


def put_authority(directory: Path, authority: Authority) -> None:
    put(directory, "ca.pem", authority.pem)
    put(directory, "ca.key", key_pem(authority.key))


BAD_CAS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no CA": (lambda made: (made / "ca.pem").unlink(), '"{}/ca.pem" does not exist'),
    "no key": (lambda made: (made / "ca.key").unlink(), '"{}/ca.key" does not exist'),
    "another key": (
        lambda made: put(made, "ca.key", (made / "client.key").read_bytes()),
        '"{}/ca.key" is not the key of ca.pem',
    ),
    "an encrypted key": (
        lambda made: put(made, "ca.key", key_pem(ec.generate_private_key(ec.SECP256R1()), b"password")),
        '"{}/ca.key" cannot be read as a private key without a password',
    ),
    "no PEM": (lambda made: put(made, "ca.key", b"key"), '"{}/ca.key" cannot be read as a private key'),
    "Ed25519": (lambda made: put_authority(made, Authority(key="ed25519")), '"{}/ca.key" is neither ECDSA nor RSA'),
    "a leaf": (
        lambda made: put(made, "ca.pem", (made / "client.pem").read_bytes()),
        "\"{}/ca.pem\": 'CN=www.example.com' is not a CA certificate",
    ),
    "two": (
        lambda made: put(made, "ca.pem", 2 * (made / "ca.pem").read_bytes()),
        '"{}/ca.pem" holds 2 certificates',
    ),
    "a web page": (lambda made: put(made, "ca.pem", b"<!DOCTYPE html>"), '"{}/ca.pem": this is an HTML page'),
    "expired": (
        lambda made: put_authority(made, Authority(validity=(-2 * DAY, -DAY))),
        "\"{}/ca.pem\": 'CN=Test Client CA' expired on",
    ),
    "not yet valid": (
        lambda made: put_authority(made, Authority(validity=(DAY, 2 * DAY))),
        "\"{}/ca.pem\": 'CN=Test Client CA' is not valid before",
    ),
    "soon to end": (
        lambda made: put_authority(made, Authority(validity=(-DAY, 20 * DAY + DAY / 2))),
        '"{}/ca.pem" ends on ',
    ),
    "a foreign client certificate": (
        lambda made: put(made, "client.pem", Authority().issue().certificate_pem),
        '"{}/client.pem" is no certificate of the CA beside it: move it and client.key away first',
    ),
    "a client certificate of the CA's name": (
        lambda made: put_authority(made, Authority()),
        '"{}/client.pem" is no certificate of the CA beside it',
    ),
    "a broken client certificate": (
        lambda made: put(made, "client.pem", b"precious"),
        '"{}/client.pem" is no certificate of the CA beside it',
    ),
}


@pytest.mark.parametrize("case", BAD_CAS)
def test_what_cannot_be_renewed(made: Path, case: str) -> None:
    """Each in one sentence that names the file; nothing changes."""
    spoil, expected = BAD_CAS[case]
    spoil(made)
    before = contents(made)
    days = 30 if case.startswith("a client") else 365
    assert expected.format(made) in refuse(made, days=days, renew=True)
    assert contents(made) == before


def test_a_ca_that_ends_before_the_certificate_would(made: Path) -> None:
    """The sentence says which --days it still allows, and that many it does."""
    for name in LEAF_FILES:
        (made / name).unlink()
    put_authority(made, Authority(validity=(-DAY, 20 * DAY + DAY / 2)))
    assert "no certificate may outlive its CA: give --days 20 or fewer, or make a new CA" in refuse(made, renew=True)
    make(str(made), NAME, 20, renew=True)
    assert certificate(made).not_valid_after_utc < certificate(made, "ca.pem").not_valid_after_utc


def test_a_short_one_is_said_to_be_for_tests(made: Path) -> None:
    """Cloudflare takes no certificate that ends within 14 days."""
    assert "within 14 days" not in make(str(made), NAME, 15, renew=True)
    assert "Cloudflare refuses certificates that end within 14 days" in make(str(made), NAME, 14, renew=True)


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    """A file, a directory without its parent, a place where nobody may write, a path that does not print."""
    (tmp_path / "file").touch()
    assert refuse(tmp_path / "file") == f'"{tmp_path}/file" cannot be used: Not a directory'
    assert refuse(tmp_path / "file" / "made") == f'"{tmp_path}/file/made" cannot be used: Not a directory'
    assert refuse(tmp_path / "a" / "b") == f'"{tmp_path}/a/b" cannot be used: No such file or directory'
    assert refuse(tmp_path / "a", renew=True) == f'"{tmp_path}/a" cannot be used: No such file or directory'
    assert refuse("/proc/made").startswith('"/proc/made" cannot be used: ')
    assert r"a\nb" in refuse(tmp_path / "a\nb")
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


@pytest.mark.parametrize("renew", [False, True])
def test_two_runs_do_not_meet(made: Path, renew: bool) -> None:
    """While one is at work in a directory, the other is refused."""
    before = contents(made)
    descriptor = os.open(made, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert refuse(made, renew=renew) == f'another run is at work in "{made}": let it end first'
    finally:
        os.close(descriptor)
    assert contents(made) == before


# Faults


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds four small files, and no fifth."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    mounted = tmp_path / "disk"
    mounted.mkdir()
    size = 4 * os.sysconf("SC_PAGESIZE")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(mounted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_a_full_disk_leaves_nothing(small_disk: Path) -> None:
    """Neither a file nor the directory that was made for them."""
    (small_disk / "filling").write_bytes(b"x" * os.sysconf("SC_PAGESIZE"))
    for out in (small_disk, small_disk / "made"):
        assert refuse(out) == f'"{out}" cannot be used: No space left on device'
        assert {path.name for path in small_disk.iterdir()} == {"filling"}


def test_a_full_disk_leaves_the_old_pair(small_disk: Path) -> None:
    """A renewal that cannot be written changes nothing."""
    make(str(small_disk), NAME, 365, renew=False)
    before = contents(small_disk)
    assert refuse(small_disk, renew=True) == f'"{small_disk}" cannot be used: No space left on device'
    assert contents(small_disk) == before


EVERY_STEP = """
import errno, itertools, json, os, shutil, signal, sys
from pathlib import Path
from aop_proxy import cli, zone_certificates

what, start, scratch, *arguments = sys.argv[1:]
STEPS = ("open", "os.mkdir", "os.chmod", "os.link", "os.rename", "fcntl.flock")


def watch(out, number, fired):
    steps = itertools.count(1)

    def step(event, details):
        about = details and (str(details[0]).startswith(str(out)) or isinstance(details[0], int))
        tidying = event == "open" and str(details[0]).endswith(".unfinished")
        if event not in STEPS or not about or tidying:
            return
        if what == "look":
            for path in [out, *out.rglob("*")] if out.exists() else []:
                seen = path.lstat()
                os.write(fired, json.dumps([path.is_dir(), seen.st_mode & 0o777, seen.st_size]).encode() + b"\\n")
        elif next(steps) == number:
            os.write(fired, event.encode())
            if what == "fail":
                raise OSError(errno.EIO, "Input/output error")
            os.kill(os.getpid(), getattr(signal, what))

    sys.addaudithook(step)


def run(number):
    out = Path(scratch) / str(number)
    if start != "nothing":
        shutil.copytree(start, out)
    fired, errors = Path(scratch) / f"{number}.fired", Path(scratch) / f"{number}.errors"
    child = os.fork()
    if child == 0:
        os.umask(0)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT, 0o600), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        watch(out, number, os.open(fired, os.O_WRONLY | os.O_CREAT, 0o600))
        sys.exit(cli.main([*arguments, "--out", str(out)]))
    _, status = os.waitpid(child, 0)
    return {"out": str(out), "ended": os.waitstatus_to_exitcode(status), "fired": fired.read_text(),
            "errors": errors.read_text()}


runs = []
for number in range(1, 100):
    runs.append(run(number))
    if what == "look" or not runs[-1]["fired"]:
        break
print(json.dumps(runs))
"""


@dataclass(frozen=True)
class Run:
    """One run of the command in which one step met with something."""

    out: Path
    ended: int
    """Exit code, or the signal that killed it, negative."""
    fired: str
    errors: str


def at_every_step(what: str, start: Path | None, scratch: Path, *arguments: str) -> list[Run]:
    """Run the command once for each step it takes in its directory; the last run went undisturbed."""
    scratch.mkdir()
    command = [sys.executable, "-c", EVERY_STEP, what, str(start or "nothing"), str(scratch), *arguments]
    root = Path(cli.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    runs: list[dict[str, Any]] = json.loads(done.stdout)
    return [Run(Path(run.pop("out")), **run) for run in runs]


NEW = ("certificates", "--name", NAME)
RENEW = (*NEW, "--renew")


def test_private_from_the_first_byte(made: Path, tmp_path: Path) -> None:
    """At no step does anything lie there that others may read, though the umask allows everything."""
    for start, arguments in ((None, NEW), (made, RENEW)):
        (run,) = at_every_step("look", start, tmp_path / arguments[-1], *arguments)
        seen = [json.loads(line) for line in run.fired.splitlines()]
        assert run.ended == 0
        assert {tuple(one[:2]) for one in seen} == {(True, 0o700), (False, 0o600)}
        assert min(size for is_directory, _, size in seen if not is_directory) == 0


def test_a_step_that_fails_leaves_nothing_of_a_first_run(tmp_path: Path) -> None:
    """Whichever it is: one sentence, exit code 2, no directory."""
    *disturbed, last = at_every_step("fail", None, tmp_path / "runs", *NEW)
    assert {"open", "os.mkdir", "os.chmod", "os.rename", "fcntl.flock"} == {run.fired for run in disturbed}
    for run in disturbed:
        assert (run.ended, run.errors) == (2, f'aop-proxy: "{run.out}" cannot be used: Input/output error\n'), run
        assert not run.out.exists()
    assert (last.ended, set(contents(last.out))) == (0, set(FILES))


def test_a_step_that_fails_leaves_the_old_pair(made: Path, tmp_path: Path) -> None:
    """Whichever it is: nothing has changed after a renewal that failed."""
    before = contents(made)
    *disturbed, last = at_every_step("fail", made, tmp_path / "runs", *RENEW)
    assert {"open", "os.mkdir", "os.chmod", "os.link", "os.rename", "fcntl.flock"} == {run.fired for run in disturbed}
    for run in disturbed:
        assert (run.ended, len(run.errors.splitlines())) == (2, 1), run
        assert contents(run.out) == before
    assert last.ended == 0
    assert contents(last.out)["client.pem"] != before["client.pem"]


@pytest.mark.parametrize(("name", "number"), [("SIGTERM", -15), ("SIGHUP", -1)])
def test_a_signal_waits_until_all_is_in_place(made: Path, tmp_path: Path, name: str, number: int) -> None:
    """At whichever step it comes, it ends the program, with every file whole and in its place."""
    for start, arguments in ((None, NEW), (made, RENEW)):
        *disturbed, _ = at_every_step(name, start, tmp_path / arguments[-1], *arguments)
        assert {run.ended for run in disturbed} == {number}
        for run in disturbed:
            after = contents(run.out)
            assert set(after) == set(FILES)
            assert is_pair(after["client.pem"], after["client.key"])


def test_a_killed_first_run_can_be_made_good(tmp_path: Path) -> None:
    """What SIGKILL leaves is whole, file by file, and a sentence or --renew leads on from there."""
    *disturbed, _ = at_every_step("SIGKILL", None, tmp_path / "runs", *NEW)
    assert {run.ended for run in disturbed} == {-9}
    for run in disturbed:
        left = {path.name: path.read_bytes() for path in run.out.glob("*.???")} if run.out.exists() else {}
        for name, content in left.items():
            load: Callable[[bytes], object] = x509.load_pem_x509_certificate
            if name.endswith(".key"):
                load = lambda pem: serialization.load_pem_private_key(pem, None)  # noqa: E731 - the other reader
            assert load(content)
        assert all(mode(path) == (0o700 if path.is_dir() else 0o600) for path in run.out.rglob("*"))
        if set(CA_FILES) <= set(left):
            make(str(run.out), NAME, 365, renew=True)
        elif left:
            assert "already" in refuse(run.out)
            continue
        else:
            make(str(run.out), NAME, 365, renew=False)
        assert set(contents(run.out)) == set(FILES)


def test_a_killed_renewal_is_made_good_by_the_next(made: Path, tmp_path: Path) -> None:
    """The CA is never touched, and the next renewal leaves a pair and nothing beside it."""
    before = contents(made)
    *disturbed, _ = at_every_step("SIGKILL", made, tmp_path / "runs", *RENEW)
    assert {run.ended for run in disturbed} == {-9}
    for run in disturbed:
        assert {name: (run.out / name).read_bytes() for name in CA_FILES} == {name: before[name] for name in CA_FILES}
        for name in LEAF_FILES:
            assert (run.out / name).read_bytes().count(b"-----END ") == 1
        make(str(run.out), NAME, 365, renew=True)
        after = contents(run.out)
        assert set(after) == set(FILES)
        assert is_pair(after["client.pem"], after["client.key"])


# The command


def test_the_command_says_what_to_do(tmp_path: Path) -> None:
    """Everything on stdout, nothing on stderr, exit code 0; each command to copy names the files that were made."""
    done = run_command("certificates", "--out", tmp_path / "made", "--name", NAME)
    assert (done.exit_code, done.stderr) == (0, "")
    for word in ("Authenticated Origin Pulls", "/settings", "/hostnames", "$CLOUDFLARE_API_TOKEN", "--renew"):
        assert word in done.stdout
    for name in FILES:
        assert name in done.stdout
    assert (tmp_path / "made" / "client.key").read_text() not in done.stdout


def test_the_command_refuses_in_one_line(made: Path) -> None:
    """Nothing on stdout, one line on stderr, exit code 2."""
    done = run_command("certificates", "--out", made, "--name", NAME)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert done.stderr.startswith(f'aop-proxy: "{made}" holds ')


def test_the_command_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same words and exit codes, and the printed configuration is YAML whatever the path."""
    out = tmp_path / 'a "path": #1'
    assert cli.main(["certificates", "--out", str(out), "--name", NAME, "--days", "90"]) == 0
    printed = capsys.readouterr().out
    assert [yaml.safe_load(block)["clients"]["ca"][-1] for block in configurations(printed)] == 2 * [
        str(out / "ca.pem")
    ]
    assert cli.main(["certificates", "--out", str(out), "--name", NAME]) == 2
    assert capsys.readouterr().err.startswith("aop-proxy: ")


def configurations(printed: str) -> list[str]:
    """The paragraphs that are lines of a configuration."""
    return [block for block in printed.split("\n\n") if block.strip().startswith("clients:")]
