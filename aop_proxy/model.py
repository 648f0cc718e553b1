"""What the operator asked for, as plain frozen values.

In: nothing. Out: the shapes that configuration is loaded into and that workers are handed. Every path is absolute,
every duration is in seconds, every size in bytes. Standard library only: workers import this, not the loader.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

CLOUDFLARE = "cloudflare"
"""In `clients.ca`: Cloudflare's shared origin-pull CA, which ships with this package."""
SYSTEM = "system"
"""In `upstream.ca`: the CAs that this machine trusts."""


class Dial(StrEnum):
    """When the backend is dialled."""

    FIRST_BYTE = "first_byte"
    EAGER = "eager"


class Mode(StrEnum):
    """What passes between client and backend."""

    RELAY = "relay"
    """Bytes, unread."""
    HTTP = "http"
    """HTTP/1.1 messages, parsed and written anew."""


@dataclass(frozen=True, slots=True)
class Listen:
    """One address to listen on. IPv6 sockets are V6ONLY; port 0 lets the kernel choose."""

    host: str
    port: int
    proxy_protocol_from: tuple[str, ...] = ()
    """Networks (CIDR) of the proxies before us: from them, and only from them, a PROXY header comes first."""


@dataclass(frozen=True, slots=True)
class Clients:
    """Which client certificates a site accepts: any of the CAs, then narrowed by the rules that are set."""

    ca: tuple[str, ...] = (CLOUDFLARE,)
    crl: tuple[str, ...] = ()
    fingerprints: frozenset[str] = frozenset()
    """SHA-256 of the leaf, 64 lower-case hexadecimal digits."""
    names: tuple[str, ...] = ()
    """DNS or URI SAN, or CN; lower case for DNS names; exact or `*.` wildcard."""


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """Whom a backend must prove to be, and what it is shown; it is always verified."""

    ca: str = SYSTEM
    server_name: str | None = None
    """None means: the client's, or the URL's host where the client sent none."""
    certificate: str | None = None
    private_key: str | None = None


@dataclass(frozen=True, slots=True)
class Upstream:
    """One backend address: `host` and `port`, or `path` of a unix socket."""

    url: str
    host: str = ""
    port: int = 0
    path: str = ""
    tls: UpstreamTls | None = None
    """None means: in clear."""
    proxy_protocol: Literal["v1", "v2", "v2-tls"] | None = None
    """The PROXY header that is sent first."""
    transparent: bool = False
    """Dial from the client's own address."""


@dataclass(frozen=True, slots=True)
class Http:
    """What `mode: http` does with requests."""

    fields: tuple[str, ...] = ("x-forwarded", "x-client", "client-cert")
    """Groups of fields that tell the backend who came."""
    host: str | None = None
    """The Host that the backend gets; None keeps the client's."""
    health_path: str | None = None
    secret_header: str | None = None
    secret_file: str | None = None
    """One accepted value a line."""
    buffer_requests: int | None = None
    """Bytes of a body that is read whole before the backend gets it; None streams."""
    response_timeout: float = 120.0


@dataclass(frozen=True, slots=True)
class Site:
    """A set of host names with one certificate, one set of accepted clients and one backend."""

    certificate: str
    private_key: str
    upstream: tuple[Upstream, ...]
    hosts: tuple[str, ...] = ()
    """Lower case, no trailing dot; exact or `*.` wildcard; empty means any name."""
    private_key_password_file: str | None = None
    alpn: tuple[str, ...] = ("http/1.1",)
    clients: Clients = field(default_factory=Clients)
    dial: Dial = Dial.FIRST_BYTE
    mode: Mode = Mode.RELAY
    http: Http = field(default_factory=Http)

    @property
    def name(self) -> str:
        """What logs and metrics call the site: its first host, or `*`."""
        return self.hosts[0] if self.hosts else "*"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines in seconds."""

    handshake: float = 10.0
    connect: float = 5.0
    idle: float = 3600.0
    linger: float = 2.0
    drain: float = 25.0
    drain_delay: float = 0.0
    reload_drain: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds per worker. None means: as the server thinks best."""

    connections: int | None = None
    unauthenticated: int | None = None
    handshakes_per_turn: int | None = None
    """Steps, in a turn of the event loop."""
    handshakes_per_address: int | None = None
    """Under way at a time, IPv6 by /64; None means any number."""
    handshake_bytes: int = 16 * 1024


@dataclass(frozen=True, slots=True)
class Reload:
    """When to reload without being asked."""

    watch: float | None = None
    """Seconds between two looks at every file; None means: not at all."""


@dataclass(frozen=True, slots=True)
class Log:
    """How to log. `format` None means: text on a terminal, else JSON."""

    format: Literal["text", "json"] | None = None
    level: Literal["debug", "info", "warning", "error"] = "info"
    refusals_per_second: float = 20.0


@dataclass(frozen=True, slots=True)
class Admin:
    """Where health, metrics and status are shown: `host` and `port`, or `path` of a unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""
    shows: tuple[str, ...] = ("health", "metrics", "status")


@dataclass(frozen=True, slots=True)
class Settings:
    """A whole configuration."""

    listen: tuple[Listen, ...]
    sites: tuple[Site, ...]
    enforcement: Literal["enforce", "observe"] = "enforce"
    refusal: Literal["page", "alert"] = "page"
    unknown_hosts: Literal["page", "reject"] = "page"
    workers: int | None = None
    """None means: one per usable CPU."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)
    reload: Reload = field(default_factory=Reload)
    log: Log = field(default_factory=Log)
    admin: Admin | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """A configuration with the content of every file it names: all that a worker needs to start or reload."""

    settings: Settings
    files: Mapping[str, bytes]
    """Content by the name used in the settings; `cloudflare` is one of them when a site lists it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where (`sites[0].clients.ca[1]`) and a sentence that says what to do."""

    path: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}: {self.sentence}" if self.path else self.sentence


class ConfigurationError(Exception):
    """A configuration that cannot be used, with everything that is wrong with it."""

    def __init__(self, *problems: Problem, rest: Settings | None = None) -> None:
        """Take the problems, and the rest: settings to look into for more of them, never to serve by."""
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
        self.rest = rest
