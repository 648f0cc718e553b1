"""HTTP/1.1 messages: bytes -> what they say, or `Malformed`; and the pieces they are written anew from.

One grammar (RFC 9110, RFC 9112), narrower than the RFC wherever parsers are known to differ: a head that does not match
it from its first byte to its last is refused, and so is a body. Nothing is mended and nothing is guessed. Must not know
sockets, nor what a field means to us beyond its kind.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from aop_proxy.fields import FieldName, Kind, learn, may_be_named_away

MAX_HEAD = 128 * 1024
"""Bytes of a head; what Cloudflare's edge sends at most."""
MAX_FIELDS = 256
MAX_HOST = 300
MAX_OPTIONS = 16
"""Names in one `Connection`."""
MAX_CHUNK_LINE = 1024
MAX_EXTENSIONS = 16 * 1024
"""Bytes of chunk extensions in one body (CVE-2023-39326): nobody uses them."""
MAX_TRAILERS = 16 * 1024
_PASSES, _FRAMES, _LINE = attrgetter("passes"), attrgetter("frames"), attrgetter("line")
_MOST_DIGITS = 18
"""Of a Content-Length: what fits in 64 bits."""
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
_OF_CONNECTIONS = (b"ntlm", b"negotiate")
_MOST_REMEMBERED, _LONGEST_REMEMBERED, _SHORT_HEAD = 2048, 256, 1024
"""Lines of heads, and their bytes; bytes of a head of which all lines are."""
_CLOSE = b"Connection: close\r\n"
HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
CONTINUE_STATUS, SWITCHING_PROTOCOLS = 100, 101
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_TEXT = rb"[\t\x20-\x7e\x80-\xff]*+"
_FIELD_LINES = rb"((?:" + _TOKEN + rb":" + _TEXT + rb"\r\n)*+)"
_REQUEST_LINE = re.compile(rb"(?!CONNECT )([A-Z][A-Z_-]{0,31}) ([\x21\x22\x24-\x7e]++) HTTP/1\.([01])")
"""A `#` never belongs in a target (RFC 9112 section 3.2), and some cut there. What follows an answer to CONNECT is a
tunnel to some, whatever the target: nobody would read the requests in it."""
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: (" + _TEXT + rb"))?")
_FIELD_LINE = re.compile(rb"(" + _TOKEN + rb"):(" + _TEXT + rb")")
_FIRST_LINE = re.compile(rb"[A-Z_-]{1,32} [\x21-\x7e]++ HTTP/1\.[01]\r\n|HTTP/1\.[01] [1-9][0-9]{2}[ \r]")
_BARE = re.compile(rb"(?<!\r)\n|\r(?=[^\n])|\0")
_OPTION = re.compile(rb"[ \t]*(" + _TOKEN + rb")[ \t]*")
_ABSOLUTE = re.compile(rb"https?://([^/?@]+)(/[^?]*)?(\?.*)?", re.IGNORECASE)
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._\x80-\xff-]+)(?::[0-9]{1,5})?")
_CHUNK_START = re.compile(rb"\r\n([0-9A-Fa-f]{1,12})(;[\t\x20-\x7e\x80-\xff]*+)?\r\n")
_CUT_CHUNK_START = re.compile(rb"\r(\n([0-9A-Fa-f]{1,12}(;[\t\x20-\x7e\x80-\xff]*+)?\r?)?)?")
_NO_HEAD = "the head is not as HTTP/1.1 has it"
_EXPECTATIONS = (b"", b"100-continue")
_WITHOUT_FIELDS = frozenset((b"close", b"keep-alive", b"upgrade"))
"""What `Connection` mostly says, which names no field that could pass on."""
_TRAILERS = re.compile(_FIELD_LINES + rb"\r\n")
_CUT_TRAILERS = re.compile(_FIELD_LINES + rb"(?:" + _TOKEN + rb"(?::" + _TEXT + rb"\r?)?|\r)?")


class Malformed(Exception):
    """A peer's message is not HTTP/1.1 as it is taken here. Its text is ours, and holds nothing of the peer's."""


class TooLarge(Malformed):
    """A head past its bounds."""


@dataclass(slots=True, eq=False)
class Field:
    """One line of a head. Whoever sent the same line has the same one: it is never changed."""

    name: FieldName
    value: bytes
    """Without the space around it."""
    line: bytes
    """As it is written anew."""
    passes: bool
    frames: bool
    """It says something about the message, or the connection, that decides what becomes of them."""
    options: frozenset[bytes]
    """What a `Connection` names, in lower case."""


@dataclass(slots=True, eq=False)
class Frame:
    """What the fields of one head that frame say together. The same fields say the same: it is never changed."""

    host: bytes
    options: frozenset[bytes]
    """What `Connection` names, in lower case."""
    binds: bool
    """A backend's connection may be authenticated by it, as NTLM and Negotiate have it: nobody else is to use it."""
    length: int | None
    is_chunked: bool
    expect: bytes
    upgrade: bytes
    names_fields: bool
    """`Connection` names some that could pass."""


@dataclass(slots=True)
class Request:
    """A request's head."""

    method: bytes
    target: bytes
    """In origin form, or `*`."""
    is_http_1_0: bool
    host: bytes
    fields: list[Field]
    """Those that may pass on."""
    frame: Frame
    length: int | None
    is_chunked: bool
    expects_continue: bool
    upgrades: bool
    """It asks to go on as WebSocket; nothing else is ever upgraded to (h2c would open a way past every check)."""

    @property
    def is_last(self) -> bool:
        """The client wants no other answer on its connection."""
        options = self.frame.options
        return b"close" in options or (self.is_http_1_0 and b"keep-alive" not in options)

    def take_values(self, canonical: bytes) -> list[bytes]:
        """The values of the fields of this name in every spelling, which are taken out."""
        values = [field.value for field in self.fields if field.name.canonical == canonical]
        self.fields = [field for field in self.fields if field.name.canonical != canonical]
        return values

    @property
    def has_body(self) -> bool:
        """Whether anything follows the head."""
        return self.is_chunked or bool(self.length)

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.target.partition(b"?")[0]

    def body(self) -> "Body":
        """What reads the body."""
        return Chunked() if self.is_chunked else Sized(self.length or 0)


@dataclass(slots=True)
class Response:
    """A response's head."""

    status: int
    line: bytes
    """As it is written anew."""
    fields: list[Field]
    frame: Frame
    keeps_alive: bool
    """The connection can serve again once the body has ended."""

    def has_no_body(self, method: bytes) -> bool:
        """Whether it ends with its head (RFC 9112 section 6.3)."""
        return method == b"HEAD" or self.status < 200 or self.status in (204, 304)

    def body(self, method: bytes) -> "Body":
        """What reads the body of the answer to this method."""
        if self.has_no_body(method):
            return Sized(0)
        if self.frame.is_chunked:
            return Chunked()
        return UntilEnd() if self.frame.length is None else Sized(self.frame.length)


def head_length(data: bytes, seen: int = 0) -> int:
    """Bytes of the head at the beginning of `data`; 0 if its end is not there yet.

    `seen` bytes were there the last time. What can be no head any more is refused without waiting for its end.
    """
    end = data.find(HEAD_END, max(seen - 4, 0) if seen else 0, MAX_HEAD)
    if end >= 0:
        return end + 4
    if len(data) >= MAX_HEAD:
        raise TooLarge("the head is too long")
    fresh = max(seen - 1, 0)
    if _BARE.search(data, fresh) or (data.find(b"\r\n", fresh) >= 0 and not _FIRST_LINE.match(data)):
        raise Malformed(_NO_HEAD)
    return 0


def parse_request(head: bytes) -> Request:
    """A request's head, whole and alone."""
    line, *lines = head.removesuffix(HEAD_END).split(b"\r\n")
    method, target, is_http_1_0 = _known_request(line) if len(line) <= _LONGEST_REMEMBERED else _request(line)
    fields, frame = _sort(head, lines, is_http_1_0=is_http_1_0)
    if len(frame.host) > MAX_HOST:
        raise Malformed("a Host too long")
    if frame.expect not in _EXPECTATIONS:
        raise Malformed("an Expect that is not 100-continue")
    return Request(
        method,
        target if target[:1] == b"/" else _origin_form(method, target, frame.host),
        is_http_1_0,
        _in_one_spelling(frame.host),
        fields,
        frame,
        frame.length,
        frame.is_chunked,
        bool(frame.expect) and not is_http_1_0 and (frame.is_chunked or bool(frame.length)),
        frame.upgrade == b"websocket" and _may_upgrade(method, frame, is_http_1_0=is_http_1_0),
    )


def _may_upgrade(method: bytes, frame: Frame, *, is_http_1_0: bool) -> bool:
    has_no_body = frame.length is None and not frame.is_chunked
    return b"upgrade" in frame.options and method == b"GET" and not is_http_1_0 and has_no_body


def parse_response(head: bytes) -> Response:
    """A response's head, whole and alone."""
    line, *lines = head.removesuffix(HEAD_END).split(b"\r\n")
    status, written, is_http_1_0 = _known_status(line) if len(line) <= _LONGEST_REMEMBERED else _status(line)
    fields, frame = _sort(head, lines, is_http_1_0=is_http_1_0)
    keeps_alive = b"keep-alive" in frame.options if is_http_1_0 else b"close" not in frame.options
    if status == 204 and (frame.length or frame.is_chunked):
        keeps_alive = False  # it may send the body that it may not have
    return Response(status, written, fields, frame, keeps_alive)


def _request(line: bytes) -> tuple[bytes, bytes, bool]:
    """Method, target, and whether it is HTTP/1.0's."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise Malformed(_NO_HEAD)
    method, target, minor = match.groups()
    return method, target, minor == b"0"


def _status(line: bytes) -> tuple[int, bytes, bool]:
    """The status, the line as it is written anew, and whether it was HTTP/1.0's."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise Malformed(_NO_HEAD)
    minor, status, phrase = match.groups()
    return int(status), b"HTTP/1.1 %b %b\r\n" % (status, phrase or b""), minor == b"0"


def passing(fields: list[Field], frame: Frame) -> Iterable[bytes]:
    """The lines of the fields that pass on, written anew; what `Connection` names stays behind."""
    if frame.names_fields:
        named = frame.options
        fields = [field for field in fields if field.name.lower not in named or not may_be_named_away(field.name)]
    return map(_LINE, fields)


def write_request(request: Request, host: bytes, added: bytes) -> bytes:
    """The head as the backend gets it: to this host, with these lines of ours."""
    lines = [request.method, b" ", request.target, b" HTTP/1.1\r\nHost: ", host, b"\r\n"]
    lines += passing(request.fields, request.frame)
    lines.append(added)
    if request.is_chunked:
        lines.append(_CHUNKED)
    elif request.length is not None:
        lines.append(b"Content-Length: %d\r\n" % request.length)
    if request.expects_continue:
        lines.append(b"Expect: 100-continue\r\n")
    if request.upgrades:
        lines.append(_UPGRADE)
    elif request.has_body:
        lines.append(_CLOSE)  # what of it is not read is not to be taken for a request
    lines.append(b"\r\n")
    return b"".join(lines)


def write_response(response: Response, request: Request, *, is_chunked: bool, is_last: bool) -> bytes:
    """The head of a final response as the client of this request gets it."""
    lines = [response.line]
    lines += passing(response.fields, response.frame)
    if is_chunked:
        lines.append(_CHUNKED)
    elif response.frame.length is not None and response.status != 204:
        lines.append(b"Content-Length: %d\r\n" % response.frame.length)
    if is_last:
        lines.append(_CLOSE)
    elif request.is_http_1_0:
        lines.append(b"Connection: keep-alive\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def write_interim(response: Response) -> bytes:
    """The head of a 1xx response as the client gets it."""
    lines = [response.line]
    lines += passing(response.fields, response.frame)
    if response.status == SWITCHING_PROTOCOLS:
        lines.append(_UPGRADE)
    lines.append(b"\r\n")
    return b"".join(lines)


def host_name(host: bytes) -> str:
    """A Host that was parsed, without its port."""
    match = _HOST.fullmatch(host)
    return match[1].decode("ascii") if match else ""


def _sort(head: bytes, lines: list[bytes], *, is_http_1_0: bool) -> tuple[list[Field], Frame]:
    """What passes of a head's lines behind the first, and what the others say of it."""
    if len(lines) > MAX_FIELDS:
        raise TooLarge("too many fields")
    # Loops of the interpreter's own cost several times as much as these, and nothing else is done so often.
    is_short = len(head) <= _SHORT_HEAD or len(max(lines, key=len, default=b"")) <= _LONGEST_REMEMBERED
    found = list(map(_known_field if is_short else _field, lines))
    return list(filter(_PASSES, found)), (_known_frame if is_short else _frame)(
        tuple(filter(_FRAMES, found)), is_http_1_0
    )


def _field(line: bytes) -> Field:
    """One line, without its CRLF."""
    match = _FIELD_LINE.fullmatch(line)
    if match is None:
        raise Malformed(_NO_HEAD)
    spelt, text = match.groups()
    name, value = learn(spelt), text.strip(b" \t")
    kind = name.kind
    if kind is Kind.DISGUISED:
        raise Malformed("a field that frames, in disguise")
    return Field(
        name,
        value,
        b"%b: %b\r\n" % (spelt, value),
        passes=kind in (Kind.PASSES, Kind.BINDS),
        frames=kind is Kind.FRAMES or (kind is Kind.BINDS and value[:9].lower().startswith(_OF_CONNECTIONS)),
        options=_options(value) if kind is Kind.FRAMES and name.canonical == b"connection" else frozenset(),
    )


def _frame(fields: tuple[Field, ...], is_http_1_0: bool) -> Frame:
    said: dict[bytes, bytes] = {}
    options: frozenset[bytes] = frozenset()
    binds = False
    for field in fields:
        if field.passes:
            binds = True
        elif field.options:
            options |= field.options
        elif field.name.canonical in said:
            raise Malformed("a field twice that may stand once")
        else:
            said[field.name.canonical] = field.value
    length, is_chunked = _length(said, is_http_1_0=is_http_1_0)
    return Frame(
        host=said.get(b"host", b""),
        options=options,
        binds=binds,
        length=length,
        is_chunked=is_chunked,
        expect=said.get(b"expect", b"").lower(),
        upgrade=said.get(b"upgrade", b"").lower(),
        names_fields=not options <= _WITHOUT_FIELDS,
    )


_known_request = functools.lru_cache(maxsize=_MOST_REMEMBERED)(_request)
_known_status = functools.lru_cache(maxsize=_MOST_REMEMBERED)(_status)
_known_field = functools.lru_cache(maxsize=_MOST_REMEMBERED)(_field)
_known_frame = functools.lru_cache(maxsize=_MOST_REMEMBERED)(_frame)
"""Most lines are the same in every request of a client and every response of a backend, above all those that frame."""


def _options(value: bytes) -> frozenset[bytes]:
    options: list[bytes] = []
    parts = value.split(b",")
    if len(parts) > MAX_OPTIONS:
        raise Malformed("a Connection that names too many")
    for part in parts:
        match = _OPTION.fullmatch(part)
        if match is None:
            raise Malformed("a Connection that is no list of names")
        options.append(match[1].lower())
    return frozenset(options)


def _length(said: dict[bytes, bytes], *, is_http_1_0: bool) -> tuple[int | None, bool]:
    """Content-Length, and whether the body is chunked: one of them at most."""
    length, coding = said.get(b"content-length"), said.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or is_http_1_0 or coding != b"chunked":
            raise Malformed("a Transfer-Encoding that is not chunked, alone")
        return None, True
    if length is None:
        return None, False
    if not length.isdigit() or len(length) > _MOST_DIGITS:
        raise Malformed("a Content-Length that is no number")
    return int(length), False


@functools.lru_cache(maxsize=_MOST_REMEMBERED)
def _in_one_spelling(host: bytes) -> bytes:
    """A Host in ASCII, in lower case, without the trailing dot."""
    # Compared and passed on so: a backend that knows `a.example` alone would give `A.example.` to its default site.
    try:
        match = _HOST.fullmatch(host if host.isascii() else host.decode().encode("idna"))
    except UnicodeError:
        match = None
    if match is None:
        raise Malformed("no Host, or none that is a host")
    return match[1].lower().removesuffix(b".") + match.string[match.end(1) :]


def _origin_form(method: bytes, target: bytes, host: bytes) -> bytes:
    """An absolute target without its authority, which must be the Host's."""
    if target == b"*" and method == b"OPTIONS":
        return target
    match = _ABSOLUTE.fullmatch(target)
    if match is None or match[1].lower() != host.lower():
        raise Malformed("a target that is no path, or of another host")
    return (match[2] or b"/") + (match[3] or b"")


# Bodies


Decoded = tuple[list[memoryview], int]
"""What some bytes of a message's body hold: views of them, or of copies; and how many of them belong to the message:
all, until it has ended."""


class Sized:
    """A body of a known length."""

    ends_with_connection = False

    __slots__ = ("_left", "ended")

    def __init__(self, length: int) -> None:
        """Expect so many bytes."""
        self._left = length
        self.ended = not length

    def feed(self, data: memoryview | bytes) -> Decoded:
        """Take the next bytes."""
        piece = memoryview(data)[: self._left]
        self._left -= len(piece)
        self.ended = not self._left
        return [piece] if piece else [], len(piece)


class UntilEnd:
    """A response's body that goes to the end of the connection; `ended` is for the caller to judge."""

    ends_with_connection = True
    ended = False

    def feed(self, data: memoryview | bytes) -> Decoded:
        """Take the next bytes."""
        return [memoryview(data)], len(data)


class Chunked:
    """A chunked body (RFC 9112 section 7.1). Extensions and trailers are checked, bounded, and dropped."""

    ends_with_connection = False

    def __init__(self) -> None:
        """Expect the first chunk."""
        self._held = b"\r\n"
        """The beginning of what was cut. A size stands behind the CRLF of the chunk before; the first behind this."""
        self._left = 0
        self._extensions = 0
        self._in_trailers = False
        self.ended = False

    def feed(self, data: memoryview | bytes) -> Decoded:
        """Take the next bytes. Raises Malformed at the first that cannot be right."""
        held = len(self._held)
        view = memoryview(self._held + bytes(data)) if held else memoryview(data)
        self._held = b""
        pieces: list[memoryview] = []
        at, end = 0, len(view)
        while not self.ended:
            if self._left:
                piece = view[at : at + self._left]
                if piece:
                    pieces.append(piece)
                    at += len(piece)
                    self._left -= len(piece)
                if self._left:
                    break
            step = self._end_trailers(view, at) if self._in_trailers else self._begin_chunk(view, at)
            if not step:
                self._held = bytes(view[at:])
                at = end
                break
            at += step
        return pieces, at - held

    def _begin_chunk(self, view: memoryview, at: int) -> int:
        """Bytes of the line with the next size, and the CRLF before it; 0 if it is cut."""
        match = _CHUNK_START.match(view, at, at + MAX_CHUNK_LINE)
        if match is None:
            if len(view) - at >= MAX_CHUNK_LINE or (at < len(view) and not _CUT_CHUNK_START.fullmatch(view, at)):
                raise Malformed("a chunk's size is not as HTTP/1.1 has it")
            return 0
        self._extensions += len(match[2] or b"")
        if self._extensions > MAX_EXTENSIONS:
            raise Malformed("too many chunk extensions")
        self._left = int(match[1], 16)
        self._in_trailers = not self._left
        return match.end() - at

    def _end_trailers(self, view: memoryview, at: int) -> int:
        """Bytes of the trailers and the line that ends the body; 0 if they are cut."""
        match = _TRAILERS.match(view, at, at + MAX_TRAILERS)
        if match is None:
            if len(view) - at >= MAX_TRAILERS or not _CUT_TRAILERS.fullmatch(view, at):
                raise Malformed("trailers that are not as HTTP/1.1 has them")
            return 0
        self.ended = True
        return match.end() - at


Body = Sized | UntilEnd | Chunked


def chunk(pieces: list[memoryview]) -> bytes:
    """One chunk of all the pieces; nothing of nothing, since an empty chunk would end the body."""
    size = sum(map(len, pieces))
    return b"".join((b"%x\r\n" % size, *pieces, b"\r\n")) if size else b""
