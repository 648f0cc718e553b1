"""How one value is written: its text in; the value out, or ValueError with the sentence that says what to write.

Knows durations, sizes, counts, addresses, host names, fingerprints and backend URLs. Must not know keys or files.
"""

import ipaddress
import re
from collections.abc import Callable

from aop_proxy.model import Admin, Listen, Upstream, UpstreamTls

_LONGEST_DURATION = 7 * 24 * 3600
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|)")
_SECONDS = {"ms": 0.001, "s": 1, "": 1, "m": 60, "h": 3600}
_SIZE = re.compile(r"([0-9]{1,12})(KiB|MiB|)")
_BYTES = {"": 1, "KiB": 1024, "MiB": 1024 * 1024}
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
_ENDPOINT = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<name>[^:\[\]]*))(?::(?P<port>[0-9]{1,5}))?")
_LONGEST_SOCKET_PATH = 107
"""Bytes in `sun_path` of unix(7), without the NUL."""
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_SHA256_DIGITS, _SHA1_DIGITS = 64, 40


def quoted(value: object) -> str:
    """Name a value in a sentence: bounded, and with nothing in it that could move a terminal's cursor."""
    if not isinstance(value, str):
        return {list: "a list", dict: "a mapping", type(None): "nothing"}.get(type(value), "this")
    return f'"{printable(value)}"'


def printable(text: str, longest: int = 80) -> str:
    """Escape what does not print and cut what is too long."""
    shown = text if len(text) <= longest else text[:longest] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def duration(text: str) -> float:
    """Seconds, from `10s`, `500ms`, `5m`, `1h` or a bare number of seconds."""
    seconds = _seconds(text)
    if not 0 < seconds <= _LONGEST_DURATION:
        raise ValueError(f"{quoted(text)} is out of range: write more than `0s` and at most `{_LONGEST_DURATION}s`")
    return seconds


def delay(text: str) -> float:
    """Seconds, written as a duration; there may be none."""
    seconds = _seconds(text)
    if seconds > _LONGEST_DURATION:
        raise ValueError(f"{quoted(text)} is out of range: write `0s` to `{_LONGEST_DURATION}s`")
    return seconds


def _seconds(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f"{quoted(text)} is not a duration: write `10s`, `500ms`, `5m`, `1h` or a number of seconds")
    return float(match[1]) * _SECONDS[match[2]]


def size(smallest: int, largest: int) -> Callable[[str], int]:
    """Bytes, from `16KiB`, `1MiB` or a bare number of bytes."""

    def parse(text: str) -> int:
        match = _SIZE.fullmatch(text)
        if not match:
            raise ValueError(f"{quoted(text)} is not a size: write `16KiB`, `1MiB` or a number of bytes")
        if not smallest <= (count := int(match[1]) * _BYTES[match[2]]) <= largest:
            raise ValueError(f"{quoted(text)} is out of range: write {smallest} to {largest} bytes")
        return count

    return parse


def automatic(largest: int) -> Callable[[str], int | None]:
    """None for `auto`, or a whole number from 1."""
    parse_number = count(largest, "`auto` or ")
    return lambda text: None if text == "auto" else parse_number(text)


def count(largest: int, otherwise: str = "") -> Callable[[str], int]:
    """A whole number from 1; `otherwise` names what else may be written."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not 1 <= int(text) <= largest:
            raise ValueError(f"{quoted(text)} is not possible: write {otherwise}a whole number from 1 to {largest}")
        return int(text)

    return parse


def rate(text: str) -> float:
    """Times per second."""
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) or not float(text):
        raise ValueError(f"{quoted(text)} is not a rate: write a number above 0 and below 1000000")
    return float(text)


def switch(text: str) -> bool:
    """`true` or `false`."""
    if text not in ("true", "false"):
        raise ValueError(f"{quoted(text)} is no answer: write `true` or `false`")
    return text == "true"


def user(text: str) -> str:
    """The name or number of a user of this system; whether it exists is not judged here."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\$?", text):
        raise ValueError(f"{quoted(text)} is not a user: write a user's name or number")
    return text


def host(text: str) -> str:
    """A host name of letters, digits and hyphens, or a wildcard for one first label: lower case, no trailing dot."""
    if not text.isascii():
        raise ValueError(f"{quoted(text)} is not ASCII: write {_a_label(text)}")
    name = text.lower().removesuffix(".")
    labels = name.removeprefix("*.").split(".")
    if name == "*":
        raise ValueError('"*" names no host: leave the list out to accept any name')
    if "*" in "".join(labels):
        raise ValueError(f"{quoted(text)} has a * that is not the whole first label: write it as in `*.example.com`")
    if _is_address(name):
        raise ValueError(f"{quoted(text)} is an address, and clients send none as server name: write a host name")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError(
            f"{quoted(text)} is not a host name: write letters, digits, hyphens and dots, and nothing else"
        )
    return name


def server_name(text: str) -> str:
    """The one host name or IP address that a backend's certificate must be for."""
    if "*" in text:
        raise ValueError(f"{quoted(text)} is a pattern: write one host name or address")
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return host(text)


def _a_label(text: str) -> str:
    """What to write for a name in another script; only where the two forms agree (IDNA 2003 turns ß into ss)."""
    try:
        ascii_name = text.encode("idna").decode()
        if ascii_name.encode().decode("idna") == text.lower():
            return f"`{printable(ascii_name)}`"
    except UnicodeError:
        pass
    return "its A-label, which begins with `xn--`"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return name.rpartition(".")[2].isdigit()
    return True


def host_field(text: str) -> str:
    """What stands in a Host field: a name or an address, with a port or without."""
    match = _ENDPOINT.fullmatch(text)
    if not match or match["name"] == "":
        raise ValueError(f"{quoted(text)} is no Host: write a host name, with a port or without")
    address = _address_or_name(match)
    if match["port"] is not None:
        _port(match["port"], smallest=1)
    port = f":{match['port']}" if match["port"] else ""
    return (f"[{address}]" if ":" in address else address) + port


def url_path(text: str) -> str:
    """The path of a URL, as a request has it."""
    if not re.fullmatch(r"/[!\"$->@-~]*", text):
        raise ValueError(f"{quoted(text)} is no path of a URL: write it as in `/healthz`, without a query")
    return text


def field_name(text: str) -> str:
    """The name of an HTTP field that is nobody's yet."""
    if not re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", text) or len(text) > 64:
        raise ValueError(f"{quoted(text)} is no name of a header: write letters, digits and hyphens")
    return text


def identity_name(text: str) -> str:
    """A DNS name or wildcard (lower case), a URI, or a common name as it stands."""
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{quoted(text)} is no name: write a DNS name, a URI or a common name")
    try:
        return host(text)
    except ValueError:
        if "*" in text:
            raise
        return text


def fingerprint(text: str) -> str:
    """SHA-256 of a certificate as 64 lower-case hexadecimal digits; colons and upper case are welcome."""
    digits = text.lower().replace(":", "")
    if re.fullmatch(r"[0-9a-f]{2}(:?[0-9a-f]{2})*", text.lower()):
        if len(digits) == _SHA256_DIGITS:
            return digits
        if len(digits) == _SHA1_DIGITS:
            raise ValueError(f"{quoted(text)} is a SHA-1 fingerprint: write the certificate's SHA-256 one")
    raise ValueError(f"{quoted(text)} is not a SHA-256 fingerprint: write {_SHA256_DIGITS} hexadecimal digits")


def path(text: str) -> str:
    """A file's path."""
    if not text or "\0" in text:
        raise ValueError(f"{quoted(text)} is no path: name a file")
    return text


def listen(text: str) -> Listen:
    """`HOST:PORT`, with an IPv6 address in brackets."""
    match = _ENDPOINT.fullmatch(text)
    if not match:
        raise ValueError(_not_an_endpoint(text, quoted(text), "HOST:PORT"))
    if match["port"] is None:
        raise ValueError(f"{quoted(text)} lacks a part: write HOST:PORT, as in `0.0.0.0:443` or `[::]:443`")
    if match["name"] in ("", "*"):
        raise ValueError(
            f"{quoted(text)} names no address: write `0.0.0.0:{match['port']}` for all of IPv4,"
            f" `[::]:{match['port']}` for all of IPv6"
        )
    return Listen(_address_or_name(match), _port(match["port"], smallest=0))


def origin(text: str) -> tuple[str, int]:
    """`HOST[:PORT]` of a server to ask; 443 unless said otherwise."""
    match = _ENDPOINT.fullmatch(text)
    if not match:
        raise ValueError(_not_an_endpoint(text, quoted(text), "HOST:PORT"))
    if match["name"] == "":
        raise ValueError(f"{quoted(text)} names no host: write HOST:PORT")
    return _address_or_name(match), _port(match["port"] or "443", smallest=1)


def admin(text: str) -> Admin:
    """`HOST:PORT` or `unix:/path`."""
    if text.startswith("unix:"):
        return Admin(path=_unix_socket(text, text.removeprefix("unix:")).path)
    address = listen(text)
    return Admin(address.host, address.port)


def network(text: str) -> str:
    """A network, `10.0.0.0/8`, or an address, which is a network of one."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError(
            f"{quoted(text)} is no network: write `10.0.0.0/8` or `2001:db8::/32`, with no bits set behind the length"
        ) from None


def upstream(text: str) -> Upstream:
    """`http://HOST[:PORT]`, `https://HOST[:PORT]` or `unix:/path`."""
    shown = quoted(re.sub("//[^/]*@", "//…@", text))  # a password is nothing to print
    scheme, colon, rest = text.partition(":")
    if scheme == "unix" and colon:
        return _unix_socket(text, rest)
    if scheme not in _DEFAULT_PORTS or not rest.startswith("//"):
        what = "an unknown" if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:/.*", text) else "no"
        raise ValueError(f"{shown} has {what} scheme: write `http[s]://HOST:PORT` or `unix:/path`")
    form = f"{scheme}://HOST:PORT"
    authority = rest.removeprefix("//")
    for mark, name in (("@", "user name"), ("#", "fragment"), ("?", "query"), ("/", "path")):
        if mark in authority:
            raise ValueError(f"{shown} has a {name}, which is meaningless here: write `{form}`")
    match = _ENDPOINT.fullmatch(authority)
    if not match:
        raise ValueError(_not_an_endpoint(authority, shown, form))
    if match["name"] == "":
        raise ValueError(f"{shown} names no host: write `{form}`")
    address, port = _address_or_name(match), _port(match["port"] or _DEFAULT_PORTS[scheme], smallest=1)
    url = f"{scheme}://{f'[{address}]' if ':' in address else address}:{port}"
    return Upstream(url, address, port, tls=UpstreamTls() if scheme == "https" else None)


def _unix_socket(text: str, socket_path: str) -> Upstream:
    if not socket_path.startswith("/") or socket_path.startswith("//") or not socket_path.isprintable():
        raise ValueError(f"{quoted(text)} names no absolute path: write it as in `unix:/run/app.sock`")
    if len(socket_path.encode()) > _LONGEST_SOCKET_PATH:
        raise ValueError(f"{quoted(text)} is too long: a socket's path has at most {_LONGEST_SOCKET_PATH} bytes")
    return Upstream(text, path=socket_path)


def _not_an_endpoint(text: str, shown: str, form: str) -> str:
    if text.count(":") > 1 and "[" not in text:
        return f"{shown} is ambiguous: put an IPv6 address in brackets, as in `[::1]:8443`"
    return f"{shown} cannot be read: write {form}"


def _port(text: str, smallest: int) -> int:
    if not smallest <= int(text) <= 65535:
        raise ValueError(f"port {text} does not exist: write {smallest} to 65535")
    return int(text)


def _address_or_name(match: re.Match[str]) -> str:
    """An IP address in its one form, or a name to look up (underscores too: container networks use them)."""
    text = match["v6"] if match["v6"] is not None else match["name"]
    if match["v6"] is None and not _is_address(text):
        if "*" not in text:
            host(text.replace("_", "x"))
            return text.lower().removesuffix(".")
        raise ValueError(f"{quoted(text)} is a pattern: write one address or host name")
    try:
        return str(ipaddress.IPv6Address(text) if match["v6"] is not None else ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError(f"{quoted(text)} is not an IP address: correct it or write a host name") from None
