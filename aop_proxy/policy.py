"""What is allowed: a server name and an identity -> allowed, or the `Reason` it is not.

In: values. Out: values. Rules only ever narrow what OpenSSL has already accepted: nothing here can let in a client
that verification refused, since it is asked only about those that passed. Must not know TLS or HTTP.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from aop_proxy.identity import Identity
from aop_proxy.model import Clients
from aop_proxy.reasons import Reason

OVERLOOKED = frozenset({Reason.NO_CERTIFICATE, Reason.IDENTITY_NOT_ALLOWED, Reason.UNKNOWN_HOST})
"""What `enforcement: observe` forwards all the same. Whatever OpenSSL has refused can be overruled by nobody."""
_LDH_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
MAX_NAME = 253
"""RFC 1035 section 2.3.4: 255 octets on the wire, 253 as text."""


def normalise_host(name: str | None) -> str | None:
    """Lower case, without the trailing dot; None for whatever is not a host name of letters, digits and hyphens."""
    if not name or not name.isascii():
        return None
    name = name.lower().removesuffix(".")
    return name if len(name) <= MAX_NAME and _LDH_NAME.fullmatch(name) else None


def wildcard_of(name: str) -> str:
    """`*.` and the parent of a name: the one wildcard that can match it (RFC 6125 section 6.4.3, one whole label)."""
    return "*." + name.partition(".")[2]


class HostTable:
    """Server name -> index of the site that lists it."""

    def __init__(self, hosts_of_sites: Iterable[Iterable[str]]) -> None:
        """Take each site's `hosts`; a site without any is for every name that no other lists."""
        self._sites: dict[str, int] = {}
        self._for_any_name: int | None = None
        for index, hosts in enumerate(hosts_of_sites):
            names = list(hosts)
            self._sites.update((name, index) for name in names)
            if not names:
                self._for_any_name = index

    def find(self, server_name: str | None) -> int | None:
        """Find the site for a name as the client sent it (None: it sent none); None if no site is for it."""
        host = normalise_host(server_name)
        if host is not None:
            for name in (host, wildcard_of(host)):
                if name in self._sites:
                    return self._sites[name]
        return self._for_any_name


def is_host_of(server_name: str | None, hosts: HostTable, site: int, host: str) -> bool:
    """Whether a request for `host` may come on a connection that was opened for `server_name`, and so for a site.

    It must be the same name; where none was sent, one of that site.
    """
    opened = normalise_host(server_name)
    return normalise_host(host) == opened if opened is not None else hosts.find(host) == site


@dataclass(frozen=True, slots=True)
class Rules:
    """What a site asks of a verified certificate beyond its CA. Each rule that is not empty must be met."""

    fingerprints: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    """Host names and `*.` wildcards in lower case; URIs (whatever has a colon) and other common names as written."""

    @classmethod
    def of(cls, clients: Clients) -> "Rules":
        """Take the rules out of a site's `clients`."""
        return cls(clients.fingerprints, frozenset(map(_as_listed, clients.names)))

    def decide(self, identity: Identity) -> Reason | None:
        """None if the identity may pass, else why not."""
        if self.fingerprints and identity.fingerprint not in self.fingerprints:
            return Reason.IDENTITY_NOT_ALLOWED
        if self.names and self.names.isdisjoint(_good_for(identity)):
            return Reason.IDENTITY_NOT_ALLOWED
        return None


def _as_listed(name: str) -> str:
    return name.lower() if normalise_host(name.removeprefix("*.")) else name


def _good_for(identity: Identity) -> Iterable[str]:
    """Every rule that an identity meets. A wildcard in a *client's* certificate names no one: it is left out.

    A URI meets a rule for a URI only, and a common name none for a URI: a CA judges each kind by rules of its own.
    """
    for name in (*identity.dns_names, *identity.common_names):
        host = normalise_host(name)
        if host is not None:
            yield host
            yield wildcard_of(host)
    yield from (name for name in identity.common_names if ":" not in name and "*" not in name)
    yield from (uri for uri in identity.uris if ":" in uri)
