"""Every key of the configuration, once: how it is written, its default, what it is for.

One pydantic model stands behind the file, the flags and the JSON Schema. Defaults are as an operator would write them.
Must not know where the text comes from, nor rules that hold between keys.
"""

import os
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from aop_proxy import model, notation
from aop_proxy.model import CLOUDFLARE, SYSTEM

_Schema = dict[str, Any]


class Placeholder(str):
    """What stands for a value of some type where a flag is explained."""

    __slots__ = ()


def _one_text(value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        raise ValueError("has no value: give one or leave it out")
    raise ValueError(f"must be one value, not {notation.quoted(value)}: write it without brackets or keys")


def _written(parse: Callable[[str], object]) -> PlainValidator:
    def validate(value: object) -> object:
        return parse(_one_text(value))

    return PlainValidator(validate)


def _absolute(value: object, info: ValidationInfo) -> str:
    """Relative paths start in the directory that is the validation's context."""
    return os.path.join(str(info.context), notation.path(_one_text(value)))


def _ca(built_in: str) -> PlainValidator:
    def validate(value: object, info: ValidationInfo) -> str:
        return built_in if value == built_in else _absolute(value, info)

    return PlainValidator(validate)


def _text(form: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "description": form}]})


def _text_or_number(form: str, pattern: str, number: _Schema) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "string", "pattern": pattern, "description": form}, number]})


def _automatic(largest: int) -> tuple[PlainValidator, WithJsonSchema]:
    number = {"type": "integer", "minimum": 1, "maximum": largest}
    return _written(notation.automatic(largest)), _text_or_number(
        "`auto`, or a whole number", "^(auto|[0-9]+)$", number
    )


_A_DURATION = "`10s`, `500ms`, `5m`, `1h` or a number of seconds", r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)?$"
_SECONDS = {"type": "number", "description": "seconds"}
_Duration = Annotated[
    float,
    _written(notation.duration),
    _text_or_number(*_A_DURATION, {**_SECONDS, "exclusiveMinimum": 0}),
    Placeholder("DURATION"),
]
_Delay = Annotated[
    float, _written(notation.delay), _text_or_number(*_A_DURATION, {**_SECONDS, "minimum": 0}), Placeholder("DURATION")
]
_HandshakeBytes = Annotated[
    int,
    _written(notation.size(4 * 1024, 256 * 1024)),
    _text_or_number(
        "`16KiB`, `64KiB` or a number of bytes",
        "^[0-9]+(KiB|MiB)?$",
        {"type": "integer", "minimum": 4096, "maximum": 256 * 1024, "description": "bytes"},
    ),
    Placeholder("SIZE"),
]
_BodySize = Annotated[
    int,
    _written(notation.size(1024, 1024 * 1024 * 1024)),
    _text_or_number(
        "`1MiB`, `64KiB` or a number of bytes",
        "^[0-9]+(KiB|MiB)?$",
        {"type": "integer", "minimum": 1024, "maximum": 1024 * 1024 * 1024, "description": "bytes"},
    ),
    Placeholder("SIZE"),
]
_Rate = Annotated[
    float,
    _written(notation.rate),
    _text_or_number("a number", r"^[0-9]+(\.[0-9]+)?$", {"type": "number", "exclusiveMinimum": 0}),
    Placeholder("NUMBER"),
]
_Workers = Annotated[int | None, *_automatic(256), Placeholder("auto|NUMBER")]
_Connections = Annotated[int | None, *_automatic(1_000_000), Placeholder("auto|NUMBER")]
_HandshakesPerTurn = Annotated[int | None, *_automatic(64), Placeholder("auto|NUMBER")]
_HandshakesPerAddress = Annotated[
    int,
    _written(notation.count(1_000_000)),
    _text_or_number("a whole number", "^[0-9]+$", {"type": "integer", "minimum": 1, "maximum": 1_000_000}),
    Placeholder("NUMBER"),
]
_User = Annotated[
    str,
    _written(notation.user),
    _text_or_number("a user's name or number", "^.+$", {"type": "integer", "minimum": 0}),
    Placeholder("USER"),
]
_Switch = Annotated[bool, _written(notation.switch), WithJsonSchema({"type": "boolean"})]
_Path = Annotated[str, PlainValidator(_absolute), _text("a path"), Placeholder("FILE")]
_ClientCa = Annotated[str, _ca(CLOUDFLARE), _text("`cloudflare` or a path"), Placeholder("cloudflare|FILE")]
_UpstreamCa = Annotated[str, _ca(SYSTEM), _text("`system` or a path"), Placeholder("system|FILE")]
_ServerName = Annotated[
    str, _written(notation.server_name), _text("`app.example.com` or an IP address"), Placeholder("NAME")
]
_Host = Annotated[str, _written(notation.host), _text("`example.com` or `*.example.com`"), Placeholder("NAME")]
_Fingerprint = Annotated[
    str, _written(notation.fingerprint), _text("64 hexadecimal digits, with colons or without"), Placeholder("SHA256")
]
_Name = Annotated[
    str, _written(notation.identity_name), _text("`edge.example.com`, `*.example.com` or a URI"), Placeholder("NAME")
]
_Address = Annotated[
    model.Listen,
    _written(notation.listen),
    _text("`192.0.2.1:443`, `0.0.0.0:443` or `[::]:443`"),
    Placeholder("HOST:PORT"),
]
_AdminAddress = Annotated[
    model.Admin,
    _written(notation.admin),
    _text("`127.0.0.1:9180` or `unix:/run/admin.sock`"),
    Placeholder("HOST:PORT|unix:/PATH"),
]
_Network = Annotated[str, _written(notation.network), _text("`10.0.0.0/8` or `2001:db8::/32`"), Placeholder("NETWORK")]
_Url = Annotated[
    model.Upstream,
    _written(notation.upstream),
    _text("`http://127.0.0.1:8000`, `https://app.example.com` or `unix:/run/app.sock`"),
    Placeholder("URL"),
]
_HostField = Annotated[
    str, _written(notation.host_field), _text("`app.internal` or `app.internal:8080`"), Placeholder("HOST")
]
_UrlPath = Annotated[str, _written(notation.url_path), _text("`/healthz`"), Placeholder("/PATH")]
_FieldName = Annotated[str, _written(notation.field_name), _text("`X-Origin-Secret`"), Placeholder("NAME")]


def _key(default: object = PydanticUndefined, *, description: str, **more: Any) -> Any:
    """A key with its default as an operator would write it; without one the key is required."""
    return Field(default, description=description, **more)


class Part(BaseModel):
    """A mapping with known keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)


class Shorthand(Part):
    """A mapping that may also be written as the text of its one necessary key."""

    necessary: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: object) -> object:
        return value if isinstance(value, dict) else {cls.necessary: value}


def _or_text(schema: _Schema, shorthand: type[Shorthand]) -> None:
    """In the JSON Schema: the mapping or its text."""
    mapping = dict(schema)
    schema.clear()
    schema.update(anyOf=[mapping["properties"][shorthand.necessary], mapping])


def as_list(value: object) -> list[object]:
    """A list as it stands; anything else as the only item of one."""
    return value if isinstance(value, list) else [value]


def _or_one(schema: _Schema) -> None:
    """In the JSON Schema: the list or its only item."""
    whole = {word: schema.pop(word) for word in ("type", "items", "minItems")}
    schema["anyOf"] = [whole["items"], whole]


ONE_OR_MORE = BeforeValidator(as_list)
"""Marks a list whose only item may stand without brackets."""


class ListenPart(Shorthand):
    """One address to listen on."""

    model_config = ConfigDict(json_schema_extra=_or_text)
    necessary = "address"

    address: _Address = _key(description="Address and port; port 0 lets the system choose")
    proxy_protocol_from: list[_Network] = _key(
        default_factory=list,
        validate_default=False,
        min_length=1,
        description="Networks of proxies whose connections begin with a PROXY header, and no others' do",
    )


class UpstreamPart(Shorthand):
    """One address of the backend."""

    model_config = ConfigDict(json_schema_extra=_or_text)
    necessary = "url"

    url: _Url = _key(description="The backend's address, http[s]://HOST[:PORT] or unix:/path")
    proxy_protocol: Literal["v1", "v2", "v2-tls"] | None = _key(
        None, description="Send a PROXY header first; v2-tls tells the client's certificate too"
    )
    ca: _UpstreamCa = _key(
        "system", description="CAs of an https:// backend's certificate, PEM, or system for those this machine trusts"
    )
    server_name: _ServerName | None = _key(
        None, description="Whom an https:// backend must prove to be; left out: whom the client asked for, else HOST"
    )
    certificate: _Path | None = _key(None, description="The PEM file of the certificate shown to an https:// backend")
    private_key: _Path | None = _key(None, description="The PEM file of its key; left out: the certificate file")

    transparent: _Switch = _key("false", description="Dial from the client's own address; it takes routes, see `check`")

    @model_validator(mode="after")
    def _fits_the_url(self) -> Self:
        given = [key for key in ("ca", "server_name", "certificate", "private_key") if key in self.model_fields_set]
        if given and self.url.tls is None:
            raise ValueError(f"`{given[0]}` is for a backend that speaks TLS: write https://, or leave it out")
        if self.transparent and self.url.path:
            raise ValueError("`transparent` is for a backend behind an IP address: a unix socket sees no client's")
        if self.private_key and not self.certificate:
            raise ValueError("`private_key` is given without `certificate`: name the certificate that it belongs to")
        return self


class ClientsPart(Part):
    """Which client certificates a site accepts: from any of the CAs, then narrowed by each rule that is set."""

    ca: list[_ClientCa] = _key(
        ["cloudflare"],
        min_length=1,
        description="CAs that sign client certificates: PEM files, or cloudflare for its shared CA",
    )
    crl: list[_Path] = _key([], description="Revocation lists, PEM; with one, every CA of the site needs its own")
    fingerprints: list[_Fingerprint] = _key([], description="SHA-256 of the accepted certificates")
    names: list[_Name] = _key([], description="Accepted names: DNS or URI SAN, or common name; *. is a wildcard")


class HttpPart(Part):
    """What `mode: http` does with requests."""

    fields: list[Literal["x-forwarded", "x-client", "client-cert", "forwarded"]] = _key(
        ["x-forwarded", "x-client", "client-cert"], description="Fields that tell the backend who came"
    )
    host: _HostField | None = _key(None, description="The Host that the backend gets; left out: the client's")
    health_path: _UrlPath | None = _key(
        None, description="A path answered by the proxy itself, with 200 or 503; never forwarded"
    )
    secret_header: _FieldName | None = _key(None, description="A header that every request must bear; removed")
    secret_file: _Path | None = _key(None, description="The file with the right value of that header, or one a line")
    buffer_requests: _BodySize | None = _key(
        None, description="Read request bodies whole before the backend gets them, up to this size; left out: stream"
    )
    response_timeout: _Duration = _key("2m", description="For the backend to begin its response")


class SitePart(Part):
    """A set of host names with one certificate, one set of accepted clients and one backend."""

    hosts: list[_Host] = _key(
        default_factory=list,
        validate_default=False,  # an empty list is not for operators to write: a slip would open the site to any name
        min_length=1,
        description="Host names, exact or *. wildcard; left out means any name",
    )
    certificate: _Path = _key(
        description="The PEM file of the server's certificate and its intermediates; it may hold the key too"
    )
    private_key: _Path | None = _key(
        None, description="The PEM file of the private key; left out: the certificate file"
    )
    private_key_password_file: _Path | None = _key(None, description="The file with the password of the private key")
    alpn: list[Literal["http/1.1", "h2"]] = _key(
        ["http/1.1"], min_length=1, description="Protocols offered, preferred first; h2 only if the backend speaks it"
    )
    clients: ClientsPart = _key({}, description="Which client certificates are accepted")
    upstream: Annotated[list[UpstreamPart], ONE_OR_MORE] = _key(
        min_length=1,
        description="The backend, http[s]://HOST[:PORT] or unix:/path; a list is tried in order",
        json_schema_extra=_or_one,
    )
    dial: Literal["first_byte", "eager"] = _key(
        "first_byte", description="When to dial the backend; eager is for backends that speak first"
    )
    mode: Literal["relay", "http"] = _key(
        "relay", description="What passes: bytes, unread, or HTTP/1.1 messages, parsed and written anew"
    )
    http: HttpPart = _key({}, description="What mode http does with requests")


class TimeoutsPart(Part):
    """Deadlines."""

    handshake: _Duration = _key("10s", description="From accept to the end of the TLS handshake")
    connect: _Duration = _key("5s", description="To reach the backend")
    idle: _Duration = _key("1h", description="Without a byte in either direction")
    linger: _Duration = _key("2s", description="For a refused client to read its page")
    drain: _Duration = _key("25s", description="For open connections to end when the program is asked to end")
    drain_delay: _Delay = _key("0s", description="Before that, still accepting, so that load balancers look elsewhere")
    reload_drain: _Duration | None = _key(
        None, description="For connections of before a reload to end; left out, they live on"
    )


class LimitsPart(Part):
    """Bounds of each worker; `auto` is what suits the descriptor limit."""

    connections: _Connections = _key("auto", description="Authenticated connections at a time")
    unauthenticated: _Connections = _key("auto", description="Connections without a finished handshake at a time")
    handshakes_per_turn: _HandshakesPerTurn = _key(
        "auto", description="Handshake steps before other connections have their turn"
    )
    handshakes_per_address: _HandshakesPerAddress | None = _key(
        None, description="Handshakes under way at a time from one client address, IPv6 by /64; more are closed"
    )
    handshake_bytes: _HandshakeBytes = _key("16KiB", description="What a client may send before it is authenticated")


class ReloadPart(Part):
    """When to reload without being asked."""

    watch: _Duration | None = _key(None, description="How often to compare the content of every file; left out: never")


class LogPart(Part):
    """What is logged, and how."""

    format: Literal["auto", "text", "json"] = _key("auto", description="auto is text on a terminal, else JSON")
    level: Literal["debug", "info", "warning", "error"] = _key("info", description="The least that is logged")
    refusals_per_second: _Rate = _key("20", description="Lines for refused and failed connections; the rest is counted")


class AdminPart(Shorthand):
    """The admin listener."""

    model_config = ConfigDict(json_schema_extra=_or_text)
    necessary = "address"

    address: _AdminAddress = _key(description="HOST:PORT or unix:/path; port 0 lets the system choose")
    only: list[Literal["health", "metrics", "status"]] = _key(
        ["health", "metrics", "status"], min_length=1, description="What it shows; left out: everything"
    )


class ConfigurationPart(Part):
    """Configuration of aop-proxy. Paths are relative to the file that names them."""

    listen: list[ListenPart] = _key(min_length=1, description="Addresses to listen on, HOST:PORT")
    sites: list[SitePart] = _key(
        min_length=1, description="At least one site; names that none lists are judged by the first"
    )
    enforcement: Literal["enforce", "observe"] = _key(
        "enforce", description="observe lets in who shows no certificate, and only logs who would be refused"
    )
    refusal: Literal["page", "alert"] = _key("page", description="What a refused client gets: a 400 page or an alert")
    unknown_hosts: Literal["page", "reject"] = _key(
        "page", description="What a client gets that asks for a host of no site: a 421 page or an alert"
    )
    workers: _Workers = _key("auto", description="Processes; auto is one per CPU that may be used")
    timeouts: TimeoutsPart = _key({}, description="Deadlines")
    limits: LimitsPart = _key({}, description="Bounds of each worker")
    reload: ReloadPart = _key({}, description="When to reload without being asked")
    log: LogPart = _key({}, description="What is logged, and how")
    admin: AdminPart | None = _key(None, description="Where health, metrics and status are shown")
    user: _User | None = _key(None, description="User that workers run as")


def part_of(field: FieldInfo) -> type[Part] | None:
    """The mapping that a key holds, alone or in a list; None for a plain value."""
    candidates = (field.annotation, *get_args(field.annotation))
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, Part)), None)


def placeholder(field: FieldInfo) -> str:
    """What stands for the value of a key, or of one item of its list."""
    inner = part_of(field)
    if inner is not None and issubclass(inner, Shorthand):
        return placeholder(inner.model_fields[inner.necessary])
    return next(_placeholders(Annotated[field.annotation, *field.metadata, None]))


def _placeholders(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield "|".join(get_args(annotation))
    for inner in get_args(annotation):
        if isinstance(inner, Placeholder):
            yield inner
        yield from _placeholders(inner)


def keys(
    part: type[Part] = ConfigurationPart, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every key with its path, list indices left out; a mapping comes before its keys."""
    for name, field in part.model_fields.items():
        yield (*above, name), field
        if inner := part_of(field):
            yield from keys(inner, (*above, name))


def json_schema() -> dict[str, object]:
    """The JSON Schema of the file, draft 2020-12."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | ConfigurationPart.model_json_schema()
