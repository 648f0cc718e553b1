"""Lines of the log: whole, escaped, bounded, and never a reason to wait or to fail."""

import errno
import fcntl
import json
import os
import pty
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aop_proxy import model
from aop_proxy.log import MAX_FIELD, MAX_LINE, Log, Value, escape, open_descriptor

JSON = model.Log(format="json", level="debug")
TEXT = model.Log(format="text", level="debug")
PRINTABLE = re.compile(rb"[\x20-\x7e]*\n")
TEXT_WORD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^ "=\\]+)')

any_text = st.text(st.characters(), max_size=600)
texts = st.one_of(any_text, st.text(st.sampled_from('\n\r\0\x1b\x7f\x9b\u2028\ud800\\"= ä😀')))


@pytest.fixture(scope="module")
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose both ends are non-blocking: its reader, its writer."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def logged(pipe: tuple[int, int], settings: model.Log, fields: dict[str, Value]) -> bytes:
    """What one event becomes."""
    reader, writer = pipe
    Log(settings, writer).event("info", "happened", **fields)
    return os.read(reader, 65536)


def parse_text(line: bytes) -> tuple[list[str], dict[str, str]]:
    """Time, level and event, and the fields, as any reader of the text format would take them apart."""
    head, _, fields = re.sub(r"^(\S+ \S+ +\S+) ?", "\\1\0", line.decode("ascii").removesuffix("\n")).partition("\0")
    words = TEXT_WORD.findall(fields)
    assert fields == " ".join(f"{name}={value}" for name, value in words)
    return head.split(), {name: json.loads(value) if value[0] == '"' else value for name, value in words}


# What a line looks like


def test_json_line(pipe: tuple[int, int]) -> None:
    """One object: time, level and event first, then the fields in their order, null included."""
    fields: dict[str, Value] = {"z": "text", "a": None, "n": 3, "f": 1.5, "many": ["one", "two"]}
    line = json.loads(logged(pipe, JSON, fields))
    assert ["time", "level", "event", *fields] == list(line)
    assert {"level": "info", "event": "happened", **fields} == {k: v for k, v in line.items() if k != "time"}


def test_time_is_utc_in_milliseconds(pipe: tuple[int, int]) -> None:
    """The time is UTC, ends in Z, and is now."""
    text = json.loads(logged(pipe, JSON, {}))["time"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    assert abs(datetime.fromisoformat(text) - datetime.now(UTC)) < timedelta(minutes=1)


def test_text_line(pipe: tuple[int, int]) -> None:
    """Words a person can read: what is null is left out, what has blanks is quoted."""
    fields: dict[str, Value] = {"a": "plain", "b": None, "c": "two words", "d": 3, "e": ["x", "y"], "f": "", "g": 'q"'}
    line = logged(pipe, TEXT, fields)
    assert line.endswith(b' info    happened a=plain c="two words" d=3 e=x,y f="" g="q\\""\n')


# Whatever a client sends


@given(value=texts)
@example(value="\n{}" * 100)
@example(value='"' * 300)
@example(value="\\" * 300)
@example(value="\x7f" * 300)
@example(value="a" * 256)
@example(value="a" * 257)
def test_any_text_stays_one_bounded_line(pipe: tuple[int, int], value: str) -> None:
    """Any text becomes printable ASCII of at most 256 bytes, in one line of valid JSON."""
    line = logged(pipe, JSON, {"sni": value, "last": 1})
    assert PRINTABLE.fullmatch(line)
    shown = json.loads(line)
    assert list(shown) == ["time", "level", "event", "sni", "last"]
    assert len(json.dumps(shown["sni"])) - 2 <= MAX_FIELD
    assert shown["sni"].isprintable()


@given(value=texts)
@example(value='x" verdict="accepted')
@example(value="x verdict=accepted")
@example(value="x\n2026-01-01T00:00:00.000Z info    connection verdict=accepted")
@example(value="\\")
@example(value='\\" verdict=accepted')
def test_no_text_forges_another_field(pipe: tuple[int, int], value: str) -> None:
    """In the text format a value cannot end its own field and begin another, nor a line."""
    line = logged(pipe, TEXT, {"first": "1", "sni": value, "last": "2"})
    assert PRINTABLE.fullmatch(line)
    head, fields = parse_text(line)
    assert head[1:] == ["info", "happened"]
    assert {"first": "1", "sni": escape(value, MAX_FIELD), "last": "2"} == fields


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        ("a\nb", "a\\nb"),
        ("ä", "\\xe4"),
        ("\u2028", "\\u2028"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\ud800", "\\ud800"),
        ("\x7f", "\\x7f"),
        ('"', '"'),
    ],
)
def test_escapes(text: str, expected: str) -> None:
    """What does not print in ASCII is written as Python writes it."""
    assert expected == escape(text, MAX_FIELD)


@given(text=texts, limit=st.integers(16, 300))
def test_escaped_text_is_bounded(text: str, limit: int) -> None:
    """However many characters have to be escaped once more in JSON; what was cut ends in dots."""
    shown = escape(text, limit)
    assert len(json.dumps(shown)) - 2 <= limit
    assert shown.isascii()
    assert shown.isprintable() or not shown
    assert shown.endswith("...") or shown == escape(text, 10**6)


@pytest.mark.parametrize("settings", [JSON, TEXT], ids=["json", "text"])
@pytest.mark.parametrize(
    "value", ["a" * 5000, '"' * 5000, "\0" * 5000, ["\\" * 500] * 500], ids=["a", "q", "nul", "list"]
)
def test_a_line_is_one_atomic_write(pipe: tuple[int, int], settings: model.Log, value: Value) -> None:
    """However much there is to say, a line fits into what a pipe takes whole."""
    fields = {f"field_{number}": value for number in range(1 if isinstance(value, list) else 17)}
    line = logged(pipe, settings, fields)
    assert len(line) <= MAX_LINE
    assert PRINTABLE.fullmatch(line)


@pytest.mark.parametrize("size", [1, 230, 5000])
def test_many_lines_are_few_writes(size: int) -> None:
    """All of them, in order and whole, in no more writes than it takes; each as long as is atomic at most."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        rows = [(number, "x" * size) for number in range(100)]
        Log(JSON, ours.fileno()).events("info", "happened", ("number", "text"), rows)
        ours.shutdown(socket.SHUT_WR)
        writes = list(iter(lambda: theirs.recv(65536), b""))
    lines = [json.loads(line) for line in b"".join(writes).splitlines()]
    assert [line["number"] for line in lines] == list(range(100))
    assert all(write.endswith(b"}\n") and len(write) <= MAX_LINE for write in writes)
    assert all(len(write) + len(next_write) > MAX_LINE for write, next_write in pairwise(writes))


# Levels and formats


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_levels(
    pipe: tuple[int, int], level: Literal["debug", "info", "warning", "error"], expected: list[str]
) -> None:
    """What is less than the level is not written, and `shows` says so beforehand."""
    log = Log(model.Log("json", level), pipe[1])
    for one in ("debug", "info", "warning", "error"):
        log.event(one, "happened")
    assert expected == [json.loads(line)["level"] for line in os.read(pipe[0], 65536).splitlines()]
    assert expected == [one for one in ("debug", "info", "warning", "error") if log.shows(one)]


def test_new_settings(pipe: tuple[int, int]) -> None:
    """After a reload format and level are the new ones."""
    log = Log(model.Log("json", "error"), pipe[1])
    log.event("info", "unseen")
    log.configure(model.Log("text", "info"))
    log.event("info", "seen")
    assert os.read(pipe[0], 65536).endswith(b" info    seen\n")


def test_format_by_itself(pipe: tuple[int, int]) -> None:
    """Without a format it is JSON, and on a terminal text."""
    Log(model.Log(), pipe[1]).event("info", "happened")
    assert json.loads(os.read(pipe[0], 65536))["event"] == "happened"
    ours, terminal = pty.openpty()
    try:
        Log(model.Log(), terminal).event("info", "happened")
        assert os.read(ours, 65536).endswith(b" info    happened\r\n")
    finally:
        os.close(ours)
        os.close(terminal)


# Nothing waits for the log, and nothing fails for it


def fill(writer: int) -> int:
    """Write to a non-blocking pipe until it is full; how much that was."""
    count = 0
    try:
        while True:
            count += os.write(writer, b"x" * 65536)
    except BlockingIOError:
        return count


def test_a_reader_that_sleeps_costs_lines_and_no_time() -> None:
    """With the pipe full a line is lost whole; when there is room again lines are whole again."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    try:
        log = Log(JSON, writer)
        full = fill(writer)
        log.event("info", "lost", why="a" * 200)
        assert full == len(os.read(reader, full + 1))
        log.event("info", "kept")
        assert json.loads(os.read(reader, 65536))["event"] == "kept"
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="only Linux lets a pipe grow")
def test_a_pipe_holds_what_comes_at_once() -> None:
    """Two thousand connections that end at the same moment all have their line, before anybody has read one."""
    reader, writer = os.pipe()
    own = open_descriptor(writer)
    log = Log(JSON, own)
    for _ in range(2000):
        log.event("info", "connection", why="a" * 350)
    os.close(own)
    os.close(writer)
    with open(reader, "rb") as lines:
        assert len(lines.readlines()) == 2000


def test_a_reader_that_is_gone() -> None:
    """A broken pipe and a closed descriptor raise nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    Log(JSON, writer).event("info", "happened")
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"x")
    os.close(writer)
    Log(JSON, writer).event("info", "happened")


def test_a_full_disk() -> None:
    """Nothing is raised when nothing can be written."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError) as caught:
            os.write(full, b"x")
        assert caught.value.errno == errno.ENOSPC
        Log(JSON, full).event("info", "happened")
    finally:
        os.close(full)


# Where it goes


def flags_of(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL)


def close_on_exec(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)


def test_a_pipe_is_opened_anew() -> None:
    """Ours does not block; the pipe as the shell shares it with others does as before."""
    reader, writer = os.pipe()
    own = open_descriptor(writer)
    try:
        assert [os.get_blocking(own), os.get_blocking(writer)] == [False, True]
        assert close_on_exec(own)
        fill(own)
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b"x"
    finally:
        for descriptor in (reader, writer, own):
            os.close(descriptor)


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    """Lines go behind what stands in the file, also when something else is appended meanwhile."""
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    with path.open("ab") as shared:
        own = open_descriptor(shared.fileno())
        try:
            assert flags_of(own) & os.O_APPEND
            os.write(own, b"one\n")
            shared.write(b"theirs\n")
            shared.flush()
            os.write(own, b"two\n")
        finally:
            os.close(own)
    assert path.read_bytes() == b"before\none\ntheirs\ntwo\n"


def test_a_socket_is_taken_as_it_is() -> None:
    """A socket, as a service manager gives, cannot be opened anew; it does not block either."""
    theirs, ours = socket.socketpair()
    with theirs, ours:
        own = open_descriptor(ours.fileno())
        try:
            assert not os.get_blocking(own)
            assert close_on_exec(own)
            Log(JSON, own).event("info", "happened")
            assert json.loads(theirs.recv(65536))["event"] == "happened"
        finally:
            os.close(own)


def test_a_closed_stderr() -> None:
    """The log goes nowhere."""
    reader, writer = os.pipe()
    os.close(writer)
    try:
        own = open_descriptor(writer)
        Log(JSON, own).event("info", "happened")
        assert os.path.samestat(os.stat(os.devnull), os.fstat(own))
        os.close(own)
    finally:
        os.close(reader)


@pytest.fixture
def foreign_pipe() -> Iterator[tuple[int, int]]:
    """Reader and own descriptor of a pipe that this user may not open anew, as a container's stderr is."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    reader, writer = os.pipe()
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionError):
            os.open(f"/dev/fd/{writer}", os.O_WRONLY)
        own = open_descriptor(writer)
    finally:
        os.seteuid(0)
    yield reader, own
    for descriptor in (reader, writer, own):
        os.close(descriptor)


def test_somebody_elses_pipe_is_written_to(foreign_pipe: tuple[int, int]) -> None:
    """Where stderr may not be opened anew, lines go there all the same."""
    reader, own = foreign_pipe
    Log(JSON, own).event("info", "happened")
    assert json.loads(os.read(reader, 65536))["event"] == "happened"


def test_somebody_elses_pipe_does_not_block(foreign_pipe: tuple[int, int]) -> None:
    """A reader that sleeps must not stop a proxy that runs as another user than the pipe's."""
    assert not os.get_blocking(foreign_pipe[1])


def test_default_is_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """Without an argument it is stderr."""
    own = open_descriptor()
    Log(JSON, own).event("info", "happened")
    os.close(own)
    shown: dict[str, Any] = json.loads(capfd.readouterr().err)
    assert shown["event"] == "happened"
