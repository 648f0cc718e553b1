"""A CA for the origin and a client certificate of it for Cloudflare to show, and in words what to do with them.

In: a directory, a name, a number of days. Out: private files, all of them or none, and the text to print. Knows what
Cloudflare takes: a leaf with an unencrypted key, RSA from 2048 bits or ECDSA from 225. Must not know the proxy.
"""

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aop_proxy import notation
from aop_proxy.credentials import Findings, fingerprint, read_authorities
from aop_proxy.files import read_file
from aop_proxy.identity import UNREADABLE

CA_DAYS = 3650
_SHORTEST_DAYS = 14
"""Cloudflare takes no custom certificate that ends sooner than this from its upload."""
_LONGEST_NAME = 64
"""Bytes in a common name or organization; RFC 5280 appendix A.1 says characters, our library counts UTF-8."""
_BACKDATED = timedelta(days=1)
"""The origin's clock may be behind ours."""
_CA, _CA_KEY, _LEAF, _LEAF_KEY = "ca.pem", "ca.key", "client.pem", "client.key"
_ASIDE = ".unfinished"
_HELD_BACK = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Extensions = Sequence[tuple[x509.ExtensionType, bool]]
"""Each with whether it is critical."""


class NothingMade(Exception):
    """Why nothing was made or changed, in one sentence."""


class Issued(NamedTuple):
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

    @property
    def certificate_pem(self) -> bytes:
        """The certificate alone, without a chain."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """PKCS #8, unencrypted."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def last_day(self) -> str:
        """The day on which it ends."""
        return f"{self.certificate.not_valid_after_utc:%Y-%m-%d}"


def _usage(*names: str) -> tuple[x509.KeyUsage, bool]:
    every = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign crl_sign"
        " encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: name in names for name in every.split()}), True


AUTHORITY: Extensions = ((x509.BasicConstraints(ca=True, path_length=0), True), _usage("key_cert_sign", "crl_sign"))
LEAF: Extensions = ((x509.BasicConstraints(ca=False, path_length=None), True), _usage("digital_signature"))
CLIENT: Extensions = (*LEAF, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False))


def subject_of(common_name: str, organization: str | None = None) -> x509.Name:
    """Whom a certificate is for."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def issue(subject: x509.Name, issuer: Issued | None, start: datetime, end: datetime, extensions: Extensions) -> Issued:
    """A new key and its certificate, self-signed without an issuer.

    ECDSA P-256: Cloudflare takes ECDSA from 225 bits, RSA from 2048, no Ed25519; every origin verifies it; handshakes
    are small; and RSA-2048, 40 us cheaper to verify, is too short for a CA of ten years.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_key_identifier(issuer) if issuer else _key_identifier_of(key), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return Issued(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def _key_identifier(issuer: Issued) -> x509.AuthorityKeyIdentifier:
    """As the issuer's own certificate has it: a CA from elsewhere may have chosen another than we would."""
    try:
        chosen = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return _key_identifier_of(issuer.key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(chosen)


def _key_identifier_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def make(out: str, name: str, days: int, *, renew: bool) -> str:
    """Make a CA and a client certificate, or with `renew` a new one of the CA that is there; say what to do now.

    NothingMade if anything is in the way.
    """
    host = _read_name(name)
    if not 1 <= days <= CA_DAYS:
        raise NothingMade(f"--days {days} is out of range: write 1 to {CA_DAYS}, which is how long a new CA is valid")
    directory = Path(os.path.abspath(out))
    if not str(directory).isprintable():
        raise NothingMade(f"--out {_shown(directory)} cannot be printed: choose another path, for commands to name it")
    try:
        with _to_ourselves(directory, create=not renew) as descriptor:
            if renew:
                authority = _read_authority(directory)
                _check_that_it_lasts(authority, directory, days)
                previous = _read_previous(directory, authority)
            else:
                _check_that_nothing_is_there(directory)
                authority, previous = _issue_authority(name), None
            leaf = _issue_leaf(name, host, authority, days)
            contents = {_LEAF_KEY: leaf.key_pem, _LEAF: leaf.certificate_pem}
            if not renew:
                contents = {_CA_KEY: authority.key_pem, _CA: authority.certificate_pem} | contents
            _put(directory, descriptor, contents)
    except OSError as error:
        raise NothingMade(f"{_shown(directory)} cannot be used: {error.strerror}") from None
    return _instructions(directory, name, host, authority, leaf, previous)


def _read_name(name: str) -> str | None:
    """The name as a host name; None where it is a text of another kind."""
    if not name.strip() or not name.isprintable() or "*" in name:
        raise NothingMade(
            f"--name {notation.quoted(name)} names no one: write a host name, or a text without * or line breaks"
        )
    if len(name.encode()) > _LONGEST_NAME:
        raise NothingMade(f"--name {notation.quoted(name)} is longer than {_LONGEST_NAME} bytes: write a shorter one")
    try:
        return notation.host(name)
    except ValueError:
        return None


def _issue_authority(name: str) -> Issued:
    now = datetime.now(UTC)
    subject = subject_of(f"Origin-pull CA of {now:%Y-%m-%d}", organization=name)
    return issue(subject, None, now - _BACKDATED, now + timedelta(days=CA_DAYS), AUTHORITY)


def _issue_leaf(name: str, host: str | None, authority: Issued, days: int) -> Issued:
    now = datetime.now(UTC)
    extensions = list(CLIENT)
    if host is not None:
        extensions.append((x509.SubjectAlternativeName([x509.DNSName(host)]), False))
    end = min(now + timedelta(days=days), authority.certificate.not_valid_after_utc)
    return issue(subject_of(name), authority, now - _BACKDATED, end, extensions)


# What is there already


def _check_that_nothing_is_there(directory: Path) -> None:
    there = [name for name in (_CA, _CA_KEY, _LEAF, _LEAF_KEY) if os.path.lexists(directory / name)]
    if there:
        raise NothingMade(
            f"{_shown(directory)} holds {', '.join(there)} already: give --renew to keep the CA and make a new client"
            " certificate, or name another directory"
        )


def _read_authority(directory: Path) -> Issued:
    findings = Findings()
    certificates = read_authorities(_shown(directory / _CA), _read(directory / _CA), findings)
    if findings.problems:
        raise NothingMade(str(findings.problems[0]))
    if len(certificates) != 1:
        raise NothingMade(
            f"{_shown(directory / _CA)} holds {len(certificates)} certificates: leave the CA's alone in it"
        )
    certificate, path = certificates[0], _shown(directory / _CA_KEY)
    try:
        key = serialization.load_pem_private_key(_read(directory / _CA_KEY), None)
    except UNREADABLE:
        raise NothingMade(
            f"{path} cannot be read as a private key without a password: put the CA's key there"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise NothingMade(f"{path} is neither ECDSA nor RSA: make a new CA in another directory")
    if key.public_key() != certificate.public_key():
        raise NothingMade(f"{path} is not the key of {_CA}: put the CA's own key there")
    return Issued(certificate, key)


def _check_that_it_lasts(authority: Issued, directory: Path, days: int) -> None:
    left = (authority.certificate.not_valid_after_utc - datetime.now(UTC)).days
    if days > left + 1:  # the last day may be a part of one
        raise NothingMade(
            f"{_shown(directory / _CA)} ends on {authority.last_day}, and no certificate may outlive its CA:"
            f" give --days {left} or fewer, or make a new CA in another directory and list both while you change over"
        )


def _read_previous(directory: Path, authority: Issued) -> x509.Certificate | None:
    """The client certificate that will be replaced; one that is not ours to replace is refused."""
    if not os.path.lexists(directory / _LEAF):
        return None
    try:
        certificate = x509.load_pem_x509_certificate(_read(directory / _LEAF))
        certificate.verify_directly_issued_by(authority.certificate)
    except (*UNREADABLE, InvalidSignature):
        raise NothingMade(
            f"{_shown(directory / _LEAF)} is no certificate of the CA beside it: move it and {_LEAF_KEY} away first"
        ) from None
    return certificate


def _read(path: Path) -> bytes:
    try:
        return read_file(str(path))
    except ValueError as error:
        raise NothingMade(str(error)) from None


def _shown(path: Path) -> str:
    return f'"{notation.printable(str(path), longest=256)}"'


# Writing


@contextlib.contextmanager
def _to_ourselves(directory: Path, *, create: bool) -> Iterator[int]:
    """The directory, locked, as a descriptor; one that was made goes again if nothing comes of it.

    Signals wait until all is in place or nothing is: a few milliseconds.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    made = False
    try:
        if create:
            with contextlib.suppress(FileExistsError):
                directory.mkdir(0o700)
                made = True
                directory.chmod(0o700)  # a umask may have taken bits that we need
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock(directory, descriptor)
            yield descriptor
        finally:
            os.close(descriptor)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _lock(directory: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise NothingMade(f"another run is at work in {_shown(directory)}: let it end first") from None


def _put(directory: Path, descriptor: int, contents: Mapping[str, bytes]) -> None:
    """Write the files aside, then rename them into place, in order; what went wrong half-way is taken back."""
    aside = directory / _ASIDE
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed: it is not at work, or it had the lock
    placed = []
    try:
        aside.mkdir(0o700)
        aside.chmod(0o700)
        for name, content in contents.items():
            _write_private(aside / name, content)
            if os.path.lexists(directory / name):
                os.link(directory / name, aside / f"{name}.before")
        for name in contents:
            os.replace(aside / name, directory / name)
            placed.append(name)
        os.fsync(descriptor)
    except OSError:
        for name in placed:
            if os.path.lexists(aside / f"{name}.before"):
                os.replace(aside / f"{name}.before", directory / name)
            else:
                os.unlink(directory / name)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_private(path: Path, content: bytes) -> None:
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


# Words


def _instructions(
    directory: Path, name: str, host: str | None, authority: Issued, leaf: Issued, previous: x509.Certificate | None
) -> str:
    ca, pin = json.dumps(str(directory / _CA), ensure_ascii=False), fingerprint(leaf.certificate)
    again = shlex.join(["aop-proxy", "certificates", "--out", str(directory), "--name", name, "--renew"])
    if previous is None:
        before = f"""\
1. Let the proxy accept it beside what Cloudflare shows now (`cloudflare` is the shared certificate), and reload:

     clients:
       ca: [cloudflare, {ca}]
"""
        after = f"""\
3. Once it is active, and the proxy's log shows its fingerprint, accept nothing else, and reload:

     clients:
       ca: [{ca}]
       # optional, where the CA is to have other certificates too:
       fingerprints: [{pin}]
"""
    else:
        old = fingerprint(previous)
        before = f"""\
1. The CA is the old one, so the proxy accepts both certificates already. Only if you list `fingerprints`, list both,
   and reload; the old one is valid until {previous.not_valid_after_utc:%Y-%m-%d}:

     clients:
       ca: [{ca}]
       fingerprints: [{old}, {pin}]
"""
        after = """\
3. Once it is active, and the proxy's log shows its fingerprint, delete the old one at Cloudflare, take its fingerprint
   out of the list, and reload.
"""
    return f"""\
In {directory}, readable by their owner alone:

  {_CA}      the CA, until {authority.last_day}: all that the proxy needs, and no secret
  {_CA_KEY}      its key, for renewals: keep it away from the origin
  {_LEAF}  the client certificate that Cloudflare is to show, until {leaf.last_day}
              SHA-256 {pin}
  {_LEAF_KEY}  its key, for Cloudflare alone

{before}
2. Upload {_LEAF} and {_LEAF_KEY} to Cloudflare; the zone's encryption mode must be Full or Full (strict).
{_warning(leaf)}
   In the dashboard: SSL/TLS > Origin Server > Authenticated Origin Pulls > Zone-level > Upload certificate, then switch
   Zone-level on; or Per-hostname > Upload certificate, then associate the host names.

   Or by the API, with a token that may edit "SSL and Certificates":

     export CLOUDFLARE_API_TOKEN=... CLOUDFLARE_ZONE_ID=...

   For the whole zone:

{textwrap.indent(_upload_for_zone(directory), "     ")}

   Or for one host name, which goes before the zone's:

{textwrap.indent(_upload_for_host(directory, host or "www.example.com"), "     ")}

{after}
Before {leaf.last_day}, the next one: {again}
Before {authority.last_day}, or if a key leaked: a new CA in another directory; list both under `ca` until its
certificate is active at Cloudflare.
"""


def _warning(leaf: Issued) -> str:
    if leaf.certificate.not_valid_after_utc - datetime.now(UTC) > timedelta(days=_SHORTEST_DAYS):
        return ""
    return f"   Cloudflare refuses certificates that end within {_SHORTEST_DAYS} days: this one is for tests.\n"


_API = "https://api.cloudflare.com/client/v4/zones/$CLOUDFLARE_ZONE_ID/origin_tls_client_auth"
_ENABLED = """'{"enabled": true}'"""


def _upload_for_zone(directory: Path) -> str:
    return f"""\
{_pair_as_json(directory)} |
{_call("POST", "", "@-")}
{_call("PUT", "/settings", _ENABLED)}"""


def _upload_for_host(directory: Path, host: str) -> str:
    return f"""\
certificate_id=$({_pair_as_json(directory)} |
{_call("POST", "/hostnames/certificates", "@-")} |
tee /dev/stderr | jq --raw-output .result.id)
jq --null-input --arg id "$certificate_id" \\
  '{{config: [{{hostname: "{host}", cert_id: $id, enabled: true}}]}}' |
{_call("PUT", "/hostnames", "@-")}"""


def _pair_as_json(directory: Path) -> str:
    """From the files to a pipe: a key in the arguments of a command could be read by other users."""
    certificate, key = shlex.quote(str(directory / _LEAF)), shlex.quote(str(directory / _LEAF_KEY))
    return f"""\
jq --null-input --rawfile certificate {certificate} \\
  --rawfile private_key {key} '{{$certificate, $private_key}}'"""


def _call(method: str, path: str, data: str) -> str:
    return f"""\
curl --silent --show-error --request {method} "{_API}{path}" \\
  --header "Authorization: Bearer $CLOUDFLARE_API_TOKEN" \\
  --header "Content-Type: application/json" --data {data}"""
