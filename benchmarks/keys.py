"""The keys of one run: an ECDSA P-256 server key, a client CA and an RSA-2048 client certificate.

They are made when the run starts and are gone with its directory. Every contender gets the same files.
"""

import datetime as dt
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Keys:
    """Paths of PEM files. The `_both` files hold certificate and key, as HAProxy, hitch and ab want them."""

    server_certificate: Path
    server_key: Path
    server_both: Path
    client_ca: Path
    client_both: Path


def make_keys(directory: Path) -> Keys:
    """Make the CA and both leaves, and write them below `directory`."""
    ca_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    ca_name = _name("benchmark client CA")
    ca = _certificate(ca_name, ca_name, ca_key, ca_key, None)
    server_key = ec.generate_private_key(ec.SECP256R1())
    server_name = _name("origin.example")
    server = _certificate(server_name, server_name, server_key, server_key, ExtendedKeyUsageOID.SERVER_AUTH)
    client_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    client = _certificate(_name("edge.example"), ca_name, client_key, ca_key, ExtendedKeyUsageOID.CLIENT_AUTH)
    return Keys(
        server_certificate=_write(directory / "server.pem", server),
        server_key=_write(directory / "server.key", _pem(server_key)),
        server_both=_write(directory / "server-both.pem", server + _pem(server_key)),
        client_ca=_write(directory / "client-ca.pem", ca),
        client_both=_write(directory / "client-both.pem", client + _pem(client_key)),
    )


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, signer: PrivateKey, usage: x509.ObjectIdentifier | None
) -> bytes:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=60))
        .add_extension(x509.BasicConstraints(ca=usage is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if usage is None:
        signing = {"key_cert_sign": True, "crl_sign": True, "digital_signature": True}
        others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        off = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
        builder = builder.add_extension(x509.KeyUsage(**signing, **off), critical=True)
    else:
        names = x509.SubjectAlternativeName([x509.DNSName("origin.example"), x509.IPAddress(IPv4Address("127.0.0.1"))])
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path
