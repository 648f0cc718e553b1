"""Everything that a reload replaces, built whole or not at all.

In: the bundle of settings and file contents that the parent read. Out: a `Snapshot`, or every `Problem` at once. A
connection keeps the snapshot it began with. Must not know signals or the file system.
"""

import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from aop_proxy import credentials, tls
from aop_proxy.credentials import Findings
from aop_proxy.expiry import Expiry
from aop_proxy.fields import Kind, Secret, learn
from aop_proxy.model import (
    CLOUDFLARE,
    SYSTEM,
    Bundle,
    Clients,
    ConfigurationError,
    Problem,
    Settings,
    Site,
    Upstream,
    UpstreamTls,
)
from aop_proxy.policy import HostTable, Rules
from aop_proxy.upstream_tls import Backend, upstream_context


@dataclass(frozen=True, slots=True)
class Gate:
    """One site, ready to judge and forward its clients."""

    site: Site
    name: str
    context: ssl.SSLContext
    rules: Rules
    backends: tuple[Backend, ...]
    secret: Secret | None
    """What every request must bear, where requests are read."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One generation of settings and contexts."""

    generation: int
    settings: Settings
    gates: tuple[Gate, ...]
    hosts: HostTable
    quiet_context: ssl.SSLContext
    name_reading_context: ssl.SSLContext | None
    """Set where a name must be known before a context is chosen."""
    key_log: tls.KeyLog | None
    """None: refused clients get alerts."""
    advice: tuple[Problem, ...]
    expiries: tuple[Expiry, ...]
    sound_keys: frozenset[bytes]
    """Private keys that the next snapshot need not look at again; see `Findings`."""


def build(bundle: Bundle, generation: int, key_log: tls.KeyLog | None) -> Snapshot:
    """Build a snapshot. Raises ConfigurationError with every problem of every file that the bundle holds."""
    builder = Builder(bundle, key_log, Findings())
    for _ in builder.build_gates():
        pass
    return builder.finish(generation)


class Builder:
    """Builds a snapshot site by site, and collects findings over all of them, so that one run names them all."""

    def __init__(self, bundle: Bundle, key_log: tls.KeyLog | None, findings: Findings) -> None:
        """Begin with a bundle, and with what is known already."""
        self._settings = bundle.settings
        self._files: Mapping[str, bytes] = bundle.files
        self._key_log = key_log
        self._findings = findings
        self._gates: list[Gate] = []
        self._expiries: list[Expiry] = []
        self._upstream_contexts: dict[tuple[UpstreamTls, tuple[str, ...]], dict[str, ssl.SSLContext]] = {}
        # A name is read ahead only where it decides something that comes before the certificate is judged.
        self._reads_names_first = len(bundle.settings.sites) > 1 or bundle.settings.unknown_hosts == "reject"

    def build_gates(self) -> Iterator[None]:
        """Build one gate after the other; between two of them others may have their turn."""
        for index, site in enumerate(self._settings.sites):
            gate = self._gate(f"sites[{index}]", site)
            if gate is not None:
                self._gates.append(gate)
            yield

    def finish(self, generation: int) -> Snapshot:
        """Put everything together. Raises ConfigurationError."""
        sites = self._settings.sites
        if self._settings.refusal == "page" and self._key_log is None:
            self._findings.advise(
                "refusal", "/dev/fd cannot be used here: refused clients get TLS alerts instead of pages that say why"
            )
        if self._findings.problems or len(self._gates) != len(sites):
            raise ConfigurationError(*self._findings.problems)
        anchor = [
            certificate.public_bytes(Encoding.DER) for certificate in self._authorities("sites[0]", sites[0].clients)
        ]
        return Snapshot(
            generation=generation,
            settings=self._settings,
            gates=tuple(self._gates),
            hosts=HostTable(site.hosts for site in sites),
            quiet_context=tls.quiet_context(anchor),
            name_reading_context=tls.name_reading_context(anchor) if self._reads_names_first else None,
            key_log=self._key_log,
            advice=tuple(self._findings.advice),
            expiries=tuple(self._expiries),
            sound_keys=frozenset(self._findings.sound_keys),
        )

    def _gate(self, path: str, site: Site) -> Gate | None:
        authorities = self._authorities(f"{path}.clients", site.clients, note=True)
        lists = self._revocation_lists(f"{path}.clients", site.clients, authorities)
        server = self._server_credentials(path, site)
        backends = tuple(
            self._backend(f"{path}.upstream[{index}]", upstream, site.alpn)
            for index, upstream in enumerate(site.upstream)
        )
        secret = self._secret(f"{path}.http.secret_file", site)
        self._advise(path, site)
        if server is None or not authorities:
            return None
        try:
            context = tls.site_context(
                server.pem,
                [certificate.public_bytes(Encoding.DER) for certificate in authorities],
                b"".join(crl.public_bytes(Encoding.PEM) for crl in lists),
                site.alpn,
                self._key_log,
                remember_names=not self._reads_names_first,
                observe=self._settings.enforcement == "observe",
            )
        except OSError as error:  # ssl.SSLError is one
            why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
            self._findings.problem(f"{path}.certificate", f"OpenSSL cannot load this certificate and key ({why})")
            return None
        return Gate(site, site.name, context, Rules.of(site.clients), backends, secret)

    def _authorities(self, path: str, clients: Clients, *, note: bool = False) -> list[x509.Certificate]:
        found: list[x509.Certificate] = []
        for index, name in enumerate(clients.ca):
            findings = self._findings if note else Findings(expired_is_problem=self._findings.expired_is_problem)
            if name not in self._files:
                continue
            certificates = credentials.read_authorities(f"{path}.ca[{index}]", self._files[name], findings)
            found += certificates
            if note:
                self._note_expiries(f"{path}.ca[{index}]", certificates)
        return found

    def _revocation_lists(
        self, path: str, clients: Clients, authorities: list[x509.Certificate]
    ) -> list[x509.CertificateRevocationList]:
        lists: list[x509.CertificateRevocationList] = []
        for index, name in enumerate(clients.crl):
            if name not in self._files:
                continue
            found = credentials.read_revocation_lists(f"{path}.crl[{index}]", self._files[name], self._findings)
            lists += found
            self._expiries += (
                Expiry(f"{path}.crl[{index}]", f"the CRL of {crl.issuer.rfc4514_string()}", crl.next_update_utc)
                for crl in found
                if crl.next_update_utc is not None
            )
        if clients.crl:
            self._judge_coverage(f"{path}.crl", authorities, lists)
        return lists

    def _judge_coverage(
        self, path: str, authorities: list[x509.Certificate], lists: list[x509.CertificateRevocationList]
    ) -> None:
        """OpenSSL looks up every CA of a chain, to its root, or none; where a list is missing it refuses everybody."""
        issuers = [crl.issuer for crl in lists]
        subjects = [authority.subject for authority in authorities]
        for authority in authorities:
            name = repr(authority.subject.rfc4514_string())
            if authority.subject not in issuers:
                self._findings.problem(
                    path,
                    f"there is no CRL of {name}, but OpenSSL checks every CA of a site or none: add its CRL, or give"
                    " that CA a site of its own (Cloudflare publishes none)",
                )
            elif not any(credentials.is_signed_by(crl, authority) for crl in lists):
                self._findings.problem(
                    path, f"the CRL of {name} is signed by another key than that CA's: name the one that belongs to it"
                )
            if authority.issuer not in subjects:
                self._findings.problem(
                    path,
                    f"OpenSSL checks CRLs up to a root, and the CA above {name} is not among `ca`: add"
                    f" {authority.issuer.rfc4514_string()!r} there, and its CRL here",
                )

    def _server_credentials(self, path: str, site: Site) -> credentials.KeyPair | None:
        password_file = site.private_key_password_file
        if not {site.certificate, site.private_key, password_file or site.certificate} <= self._files.keys():
            return None
        password = self._files[password_file].rstrip(b"\r\n") if password_file else None
        key_path = f"{path}.private_key" if site.private_key != site.certificate else f"{path}.certificate"
        server = credentials.read_server_credentials(
            (f"{path}.certificate", self._files[site.certificate]),
            (key_path, self._files[site.private_key]),
            password,
            self._findings,
        )
        if server is not None:
            self._note_expiries(f"{path}.certificate", server.chain)
        return server

    def _backend(self, path: str, upstream: Upstream, protocols: tuple[str, ...]) -> Backend:
        if upstream.tls is None:
            return Backend(upstream)
        key = (replace(upstream.tls, server_name=None), protocols)
        if key not in self._upstream_contexts:  # a thousand sites with one CA are not to load it a thousand times
            self._upstream_contexts[key] = self._make_upstream_contexts(path, upstream.tls, protocols)
        return Backend(upstream, self._upstream_contexts[key])

    def _make_upstream_contexts(
        self, path: str, tls: UpstreamTls, protocols: tuple[str, ...]
    ) -> dict[str, ssl.SSLContext]:
        """One for each protocol, or none after a problem."""
        anchors = self._anchors(f"{path}.ca", tls.ca)
        key_pair = self._client_credentials(path, tls)
        if not anchors or (tls.certificate is not None and key_pair is None):
            return {}
        pem = key_pair.pem if key_pair else None
        try:
            return {protocol: upstream_context(anchors, pem, protocol) for protocol in protocols}
        except OSError as error:  # ssl.SSLError is one
            why = error.reason if isinstance(error, ssl.SSLError) else error.strerror
            self._findings.problem(path, f"OpenSSL cannot load these certificates ({why})")
            return {}

    def _anchors(self, path: str, name: str) -> bytes:
        """What to trust, as PEM; what the system trusts is not ours to judge."""
        if name not in self._files or name == SYSTEM:
            return self._files.get(name, b"")
        anchors = credentials.read_anchors(path, self._files[name], self._findings)
        self._note_expiries(path, anchors)
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in anchors)

    def _client_credentials(self, path: str, tls: UpstreamTls) -> credentials.KeyPair | None:
        if tls.certificate is None or tls.private_key is None:
            return None
        if not {tls.certificate, tls.private_key} <= self._files.keys():
            return None
        key_path = f"{path}.private_key" if tls.private_key != tls.certificate else f"{path}.certificate"
        key_pair = credentials.read_client_credentials(
            (f"{path}.certificate", self._files[tls.certificate]),
            (key_path, self._files[tls.private_key]),
            self._findings,
        )
        if key_pair is not None:
            self._note_expiries(f"{path}.certificate", key_pair.chain)
        return key_pair

    def _secret(self, path: str, site: Site) -> Secret | None:
        name, file = site.http.secret_header, site.http.secret_file
        if name is None or file is None or file not in self._files:
            return None
        if learn(name.encode("ascii")).kind not in (Kind.PASSES, Kind.BINDS):
            self._findings.problem(
                path.replace("file", "header"),
                f"{name} is a header that the proxy itself removes or writes: take another",
            )
        values = [value for line in self._files[file].splitlines() if (value := line.strip())]
        if not values or not all(value.isascii() and value.decode("ascii").isprintable() for value in values):
            self._findings.problem(
                path, "this file holds no secret: write one of printable ASCII, or several, one a line"
            )
        return Secret(name, values)

    def _advise(self, path: str, site: Site) -> None:
        shared = CLOUDFLARE in site.clients.ca
        if shared and not site.hosts:
            self._findings.advise(
                f"{path}.clients.ca",
                "Cloudflare's shared CA proves only that a visitor came through Cloudflare, through anybody's account:"
                " list `hosts` so that other accounts' names are refused, or use a certificate of your own",
            )
        if shared and (site.clients.fingerprints or site.clients.names):
            self._findings.advise(
                f"{path}.clients",
                "all Cloudflare accounts share one client certificate, which changes without notice: a rule on its"
                " fingerprint or names refuses everybody one day, and tells no account from another",
            )

    def _note_expiries(self, path: str, certificates: list[x509.Certificate]) -> None:
        self._expiries += (
            Expiry(path, certificate.subject.rfc4514_string(), certificate.not_valid_after_utc)
            for certificate in certificates
        )
