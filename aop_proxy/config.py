"""Plain text by key -> frozen settings, or *every* problem with its path.

Knows the rules between keys, and how a mistake is put into words. Must not know what certificates mean, sockets, or
the event loop; reads the one file it is told to, and never the environment.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import ParamSpec, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from aop_proxy import model, notation
from aop_proxy.document import Location, as_written, parse_document, path_of
from aop_proxy.files import read_file
from aop_proxy.model import ConfigurationError, Problem, Settings
from aop_proxy.notation import quoted
from aop_proxy.remainder import remainder
from aop_proxy.schema import (
    AdminPart,
    ClientsPart,
    ConfigurationPart,
    HttpPart,
    ListenPart,
    SitePart,
    UpstreamPart,
    as_list,
    keys,
)

P = ParamSpec("P")
T = TypeVar("T")

_THIS_MACHINE = re.compile(r"(.*\.)?localhost|localhost\.localdomain|ip6-(localhost|loopback)")
"""Names of the loopback addresses: RFC 6761 section 6.3, and those of Debian's and Red Hat's /etc/hosts."""


def load_file(path: str, own_upstream: str | None = None) -> Settings:
    """Load a YAML file; ConfigurationError with everything that is wrong with it.

    `own_upstream` is for the sites that name none.
    """
    try:
        content = read_file(path)
    except ValueError as error:
        raise ConfigurationError(Problem("--config", str(error))) from None
    document, problems = parse_document(content)
    if own_upstream is not None:
        problems = [*problems, *_fill_in_upstream(document, own_upstream)]
    return load(document, os.path.dirname(os.path.abspath(path)), problems)


def load(document: object, directory: str, problems: Sequence[Problem] = ()) -> Settings:
    """Settings from mappings, lists and text, relative paths starting in `directory`.

    `problems` are those that reading the document has already shown.
    """
    found = [*problems, *_between_keys(document, directory)]
    try:
        configuration = ConfigurationPart.model_validate(document, context=directory)
    except ValidationError as error:
        of_keys = [_problem(details, document) for details in error.errors(include_url=False)]
        left = remainder(document, directory)
        raise ConfigurationError(*of_keys, *found, rest=None if left is None else _settings(left)) from None
    settings = _settings(configuration)
    if found:
        raise ConfigurationError(*found, rest=settings)
    return settings


def _fill_in_upstream(document: object, upstream: str) -> Iterator[Problem]:
    sites = [site for _, site in _items(document, "sites")] if isinstance(document, dict) else []
    lacking = [site for site in sites if isinstance(site, dict) and "upstream" not in site]
    for site in lacking:
        site["upstream"] = upstream
    if sites and not lacking:
        yield Problem("sites", "each name an upstream of their own: leave it out where COMMAND is to answer")


def _settings(configuration: ConfigurationPart) -> Settings:
    log = configuration.log
    return Settings(
        listen=tuple(
            replace(entry.address, proxy_protocol_from=tuple(entry.proxy_protocol_from))
            for entry in configuration.listen
        ),
        sites=tuple(_site(site) for site in configuration.sites),
        enforcement=configuration.enforcement,
        refusal=configuration.refusal,
        unknown_hosts=configuration.unknown_hosts,
        workers=configuration.workers,
        timeouts=model.Timeouts(**dict(configuration.timeouts)),
        limits=model.Limits(**dict(configuration.limits)),
        reload=model.Reload(**dict(configuration.reload)),
        log=model.Log(None if log.format == "auto" else log.format, log.level, log.refusals_per_second),
        admin=_admin(configuration.admin),
        user=configuration.user,
    )


def _admin(admin: AdminPart | None) -> model.Admin | None:
    return None if admin is None else replace(admin.address, shows=tuple(admin.only))


def _site(site: SitePart) -> model.Site:
    return model.Site(
        certificate=site.certificate,
        private_key=site.private_key or site.certificate,
        upstream=tuple(map(_upstream, site.upstream)),
        hosts=tuple(site.hosts),
        private_key_password_file=site.private_key_password_file,
        alpn=tuple(site.alpn),
        clients=_clients(site.clients),
        dial=model.Dial(site.dial),
        mode=model.Mode(site.mode),
        http=model.Http(**{**dict(site.http), "fields": tuple(site.http.fields)}),
    )


def _upstream(entry: UpstreamPart) -> model.Upstream:
    tls = None
    if entry.url.tls:
        key = entry.private_key or entry.certificate
        tls = model.UpstreamTls(entry.ca, entry.server_name, entry.certificate, key)
    return replace(entry.url, tls=tls, proxy_protocol=entry.proxy_protocol, transparent=entry.transparent)


def _clients(clients: ClientsPart) -> model.Clients:
    return model.Clients(tuple(clients.ca), tuple(clients.crl), frozenset(clients.fingerprints), tuple(clients.names))


def _problem(details: ErrorDetails, document: object) -> Problem:
    return Problem(path_of(as_written(details["loc"], document)), _sentence(details))


def _sentence(details: ErrorDetails) -> str:
    """One of pydantic's errors in our words."""
    value, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "value_error":
            return str(context["error"])
        case "missing":
            return f"is missing: give {_purpose(details['loc'])}"
        case "extra_forbidden":
            return _unknown_key(details["loc"])
        case "literal_error":
            return f"{quoted(value)} is not known here: write {context['expected'].replace(chr(39), '`')}"
        case "too_short":
            return "is an empty list: name at least one or leave it out"
        case "list_type" | "model_type" if value is None:
            return "has no value: give one or leave it out"
        case "list_type":
            return f"must be a list, not {quoted(value)}: write each item after a dash, or all in brackets"
        case "model_type":
            return f"must be a mapping, not {quoted(value)}: write keys with their values"
        case _:
            return f"{quoted(value)} is not possible here: {details['msg']}"


def _names(location: Location) -> tuple[str, ...]:
    return tuple(step for step in location if isinstance(step, str))


def _purpose(location: Location) -> str:
    """What a key is for, as the schema describes it, up to the semicolon."""
    description = next(field.description for path, field in keys() if path == _names(location)) or ""
    return description[0].lower() + description.partition(";")[0][1:]


def _unknown_key(location: Location) -> str:
    *above, key = _names(location)
    known = [path[-1] for path, _ in keys() if [*path[:-1]] == above]
    if nearest := difflib.get_close_matches(key, known, n=1):
        return f"is not a known key: did you mean `{nearest[0]}`?"
    return f"is not a known key: those known here are {', '.join(known)}"


def _between_keys(document: object, directory: str) -> Iterator[Problem]:
    """What is wrong between keys; values that are wrong by themselves are reported elsewhere and passed over here."""
    if isinstance(document, dict):
        yield from _same_address_twice(document)
        sites = [(index, site) for index, site in _items(document, "sites") if isinstance(site, dict)]
        yield from _same_host_twice(sites)
        yield from _shared_upstreams(sites, directory)
        for index, site in sites:
            yield from _modes(f"sites[{index}]", site, directory)


def _items(mapping: dict[str, object], key: str) -> list[tuple[int, object]]:
    value = mapping.get(key)
    return list(enumerate(value)) if isinstance(value, list) else []


def _if_right(parse: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | None:
    try:
        return parse(*arguments, **options)
    except ValueError:
        return None


def _same_address_twice(document: dict[str, object]) -> Iterator[Problem]:
    first: dict[model.Listen, int] = {}
    for index, entry in _items(document, "listen"):
        part = _if_right(ListenPart.model_validate, entry)
        if part and part.address.port and first.setdefault(part.address, index) != index:
            yield Problem(f"listen[{index}]", f"is the same address as listen[{first[part.address]}]: keep one")


def _same_host_twice(sites: list[tuple[int, dict[str, object]]]) -> Iterator[Problem]:
    """Among host names, None stands for any name."""
    first: dict[str | None, str] = {}
    for index, site in sites:
        if "hosts" not in site:
            path = f"sites[{index}].hosts"
            if first.setdefault(None, path) != path:
                yield Problem(path, f"is left out, as {first[None]} is: only one site can be the one for any name")
        for number, text in _items(site, "hosts"):
            path = f"sites[{index}].hosts[{number}]"
            name = _if_right(notation.host, text) if isinstance(text, str) else None
            if name and first.setdefault(name, path) != path:
                yield Problem(path, f"{quoted(name)} is listed in {first[name]} already: keep one")


def _modes(path: str, site: dict[str, object], directory: str) -> Iterator[Problem]:
    """What has no meaning with a site's mode would be done by nobody."""
    http = _if_right(HttpPart.model_validate, site.get("http", {}), context=directory)
    if site.get("mode", "relay") == "relay":
        if http is not None and http != HttpPart.model_validate({}, context=directory):
            yield Problem(f"{path}.http", "has a meaning with `mode: http` only: write that too, or leave this out")
        return
    if http is not None and (http.secret_header is None) != (http.secret_file is None):
        here, other = ("secret_header", "secret_file") if http.secret_file is None else ("secret_file", "secret_header")
        yield Problem(f"{path}.http.{here}", f"has no meaning without `{other}`: give both, or neither")
    if "h2" in as_list(site.get("alpn")):
        yield Problem(f"{path}.alpn", "holds h2, and `mode: http` speaks HTTP/1.1: take it out, or write `mode: relay`")
    if site.get("dial") == "eager":
        yield Problem(f"{path}.dial", "is eager, and `mode: http` dials for requests: leave it out")
    for entry in as_list(site.get("upstream")):
        for key in ("proxy_protocol", "transparent"):
            if isinstance(entry, dict) and entry.get(key) not in (None, False, "false"):
                sentence = (
                    f"has `{key}`, which tells of one client per connection, and with `mode: http` a connection"
                    " serves many: leave it out, requests bear X-Forwarded-For"
                )
                yield Problem(f"{path}.upstream", sentence)


def _shared_upstreams(sites: list[tuple[int, dict[str, object]]], directory: str) -> Iterator[Problem]:
    """Whoever a site lets in may send another site's Host header to a shared backend, where bytes are relayed unread.

    Between sites with `mode: http` nobody can: there every request's Host is that of the connection.
    """
    seen: dict[tuple[str, int, str], list[tuple[int, object, object]]] = {}
    for index, site in sites:
        clients = _if_right(ClientsPart.model_validate, site.get("clients", {}), context=directory)
        accepted = clients and {key: set(values) for key, values in clients}
        mode = site.get("mode", "relay")
        for entry in as_list(site.get("upstream", [])):
            part = _if_right(UpstreamPart.model_validate, entry, context=directory)
            if not part or not accepted:
                continue
            url = part.url
            others = seen.setdefault(_backend(url), [])
            for other, mode_there, accepted_there in others:
                if accepted != accepted_there and not mode == mode_there == "http":
                    sentence = (
                        f"{url.url} is the backend of sites[{other}] too, which accepts other clients, so a Host header"
                        " would walk past the stricter of the two: give both the same clients, or each its own backend,"
                        " or both `mode: http`, which holds every request to its site"
                    )
                    yield Problem(f"sites[{index}].upstream", sentence)
                    break
            others.append((index, mode, accepted))


def _backend(upstream: model.Upstream) -> tuple[str, int, str]:
    """One spelling for all that reach one backend, in TLS or in clear, as far as that can be known without asking.

    Every loopback address counts as the same, since whoever listens on all of them is reached by each.
    """
    host = upstream.host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        is_near = _THIS_MACHINE.fullmatch(host) is not None
    else:
        address = getattr(address, "ipv4_mapped", None) or address
        is_near, host = address.is_loopback or address.is_unspecified, str(address)
    host = "localhost" if is_near else host
    return host, upstream.port, os.path.realpath(upstream.path) if upstream.path else ""
