"""What a field of a request is to a proxy, by its name; and the fields in which we tell the backend who came.

In: names as a peer spelt them; a client's certificate and address. Out: kinds; lines to be written. A backend may take
`X_Client_Verify` for `X-Client-Verify` (WSGI and CGI do), so a name is judged by its letters and digits alone. Must not
know sockets, nor how messages are parsed.
"""

import base64
import functools
import hmac
import re
from collections.abc import Iterable
from enum import IntEnum
from ipaddress import ip_address
from typing import NamedTuple

from aop_proxy.identity import read_identity
from aop_proxy.reasons import Reason


class Kind(IntEnum):
    """What becomes of a field."""

    PASSES = 0
    FRAMES = 1
    """It says where a message ends or what the connection is for: parsed, and written anew."""
    REMOVED = 2
    """It concerns one hop, or is ours to say."""
    DISGUISED = 3
    """It is one that frames, in a spelling that only some would take for it."""
    BINDS = 4
    """It passes, and may make the connection that it is on one client's."""


class FieldName(NamedTuple):
    """A name as it was spelt."""

    lower: bytes
    canonical: bytes
    """Lower case, whatever is no letter or digit as a hyphen."""
    kind: Kind


_FRAMING = frozenset(b"connection content-length expect host transfer-encoding upgrade".split())
_REMOVED = frozenset(
    b"keep-alive proxy-authorization proxy-connection te trailer http2-settings proxy"
    b" client-cert client-cert-chain forwarded x-client-fingerprint x-client-subject x-client-verify".split()
)
"""`Proxy` would become HTTP_PROXY in CGI (httpoxy, CVE-2016-5385)."""
_BINDING = frozenset((b"authorization", b"www-authenticate"))
_FORWARDED = b"x-forwarded-"
_CLOUDFLARE = b"cf-"
_TRUE_CLIENT_IP = b"true-client-ip"
_PROTECTED = frozenset(b"authorization cache-control content-type cookie".split())
"""Beside what frames and what is Cloudflare's, fields that no `Connection` can name away (RFC 9110 section 7.6.1)."""
_NOT_ALPHANUMERIC = re.compile(rb"[^0-9a-z]")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_MAX_SUBJECT = 2048

_MOST_REMEMBERED = 2048
_LONGEST_REMEMBERED = 64


def learn(name: bytes) -> FieldName:
    """What a name is. Clients send the same few with every request: short ones that were met lately are remembered."""
    return _judge(name) if len(name) <= _LONGEST_REMEMBERED else _judge.__wrapped__(name)


@functools.lru_cache(maxsize=_MOST_REMEMBERED)
def _judge(name: bytes) -> FieldName:
    lower = name.lower()
    canonical = _NOT_ALPHANUMERIC.sub(b"-", lower)
    if canonical in _FRAMING:
        kind = Kind.FRAMES if lower == canonical else Kind.DISGUISED
    elif canonical in _REMOVED or canonical.startswith(_FORWARDED):
        kind = Kind.REMOVED
    else:
        kind = Kind.BINDS if canonical in _BINDING else Kind.PASSES
    return FieldName(lower, canonical, kind)


def is_the_edges(name: FieldName) -> bool:
    """Whether a field is Cloudflare's to say, and says nothing from anybody else."""
    return name.canonical.startswith(_CLOUDFLARE) or name.canonical == _TRUE_CLIENT_IP


def may_be_named_away(name: FieldName) -> bool:
    """Whether a `Connection` field that names this one takes it for this hop's."""
    return name.canonical not in _PROTECTED and not is_the_edges(name)


class Secret:
    """A field that every request must bear, as a rule at the edge adds it."""

    def __init__(self, name: str, values: Iterable[bytes]) -> None:
        """Demand one of `values` in the field `name`, in whichever spelling."""
        self.canonical = learn(name.encode()).canonical
        self._values = tuple(values)

    def is_met_by(self, offered: list[bytes]) -> bool:
        """Whether the field stood there once, with a right value. Takes as long for any wrong one."""
        return len(offered) == 1 and sum(hmac.compare_digest(offered[0], value) for value in self._values) > 0


class Introduction:
    """What we tell the backend of one client: the same with every request of a connection, but for the host."""

    def __init__(
        self, groups: Iterable[str], address: str, certificate: bytes | None, would_refuse: Reason | None = None
    ) -> None:
        """Speak of a client at an IP address in these groups of fields.

        `certificate` is its verified one (DER); None if it is only observed, and `would_refuse` why it is not verified.
        """
        self._groups = frozenset(groups)
        fixed: list[tuple[str, str]] = []
        if "x-forwarded" in self._groups:
            fixed += [("X-Forwarded-For", address), ("X-Forwarded-Proto", "https")]
        if "x-client" in self._groups:
            fixed += _verdict(certificate, would_refuse)
        if "client-cert" in self._groups and certificate is not None:
            fixed += [("Client-Cert", f":{base64.b64encode(certificate).decode()}:")]  # RFC 9440 section 2.1
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in fixed).encode("ascii")
        node = f'"[{address}]"' if ip_address(address).version == 6 else address  # RFC 7239 section 6
        self._node = f"for={node}".encode()

    def lines(self, host: bytes) -> bytes:
        """The fields, each with its CRLF, for a request with this Host."""
        lines = self._fixed
        if "x-forwarded" in self._groups:
            lines += b"X-Forwarded-Host: " + host + b"\r\n"
        if "forwarded" in self._groups:
            lines += b"Forwarded: " + self._node + b';host="' + host + b'";proto=https\r\n'
        return lines


def _verdict(certificate: bytes | None, would_refuse: Reason | None) -> list[tuple[str, str]]:
    """In NGINX's words ($ssl_client_verify)."""
    if certificate is None:
        word = "NONE" if would_refuse in (None, Reason.NO_CERTIFICATE) else f"FAILED:{would_refuse}"
        return [("X-Client-Verify", word)]
    identity = read_identity(certificate)
    return [
        ("X-Client-Verify", "SUCCESS"),
        ("X-Client-Subject", _printable(identity.subject)),
        ("X-Client-Fingerprint", identity.fingerprint),
    ]


def _printable(subject: str) -> str:
    r"""A subject (RFC 4514) in printable ASCII, all else as `\XX` byte by byte, which that RFC reads back the same."""
    escaped = _UNPRINTABLE.sub(lambda found: "".join(f"\\{byte:02X}" for byte in found[0].encode()), subject)
    return escaped[:_MAX_SUBJECT]
