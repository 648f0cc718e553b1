"""YAML: what it says, and what is wrong with its writing."""

import itertools

import pytest

from aop_proxy.document import parse_document
from aop_proxy.model import ConfigurationError

BOMB = b"a: &a x\n" + b"\n".join(
    b"%c: &%c [%b]" % (name, name, b",".join([b"*%c" % above] * 20)) for above, name in itertools.pairwise(b"abcdefgh")
)
"""Each line holds the one above twenty times."""


def test_scalars_stay_text() -> None:
    """Nothing becomes a boolean, a number or a date by itself; only null is nothing."""
    expected = {"a": ["no", "1:30", "0x10", "2001-01-01", None, None, "null"], "1": "é"}
    read, problems = parse_document('a: [no, 1:30, 0x10, 2001-01-01, ~, null, "null"]\n1: é'.encode())
    assert expected == read
    assert not problems


def test_aliases_stand_for_their_anchor() -> None:
    """One value may be written once and used in several places."""
    expected = {"a": ["x"], "b": ["x"]}
    assert expected == parse_document(b"a: &a [x]\nb: *a")[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "a: {b: 1,\n  b: 2}",
            "a.b: is given in line 1 and again in line 2: keep one",
        ),
        ("a: !secret b", 'a: has the tag "!secret", which is not known here: leave it out'),
        ("a: {? [b] : c}", "a: has a key in line 1 that is not text: write a word"),
        (r'a: ["\ud800"]', r'a[0]: "\ud800" holds half of a surrogate pair: write the character itself'),
        (r'"a\eb": !x c', r'"a\x1bb": has the tag "!x", which is not known here: leave it out'),
    ],
)
def test_reports_and_reads_on(text: str, problem: str) -> None:
    """A slip in one place does not hide those in others."""
    expected = [problem]
    assert expected == [str(found) for found in parse_document(text.encode())[1]]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            b"a:\n  - [b",
            "line 2, column 7: this is not YAML: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'",
        ),
        (b"a: *b", "line 1, column 4: this is not YAML: found undefined alias 'b'"),
        (
            b"a\n--- b",
            "line 2, column 1: this is not YAML: expected a single document in the stream, but found another document",
        ),
        (b"a\nb: \x01", "line 2, column 4: this is not YAML: the character U+0001 must not stand here"),
        (b"a\nb: \xff", "line 2: this is not UTF-8: save the file as UTF-8"),
        (b"[" * 5000, "the file nests its values too deeply: make it flatter"),
        (b"&a [*a]", "the file nests its values too deeply: make it flatter"),
        (
            BOMB,
            "the file holds more than 100000 values once its aliases are written out: use fewer",
        ),
    ],
)
def test_refuses_what_cannot_be_read(content: bytes, problem: str) -> None:
    """What is no YAML, or would grow without bound, is refused in one sentence, with line and column if there is one."""
    with pytest.raises(ConfigurationError) as caught:
        parse_document(content)
    expected = [problem]
    assert expected == [str(found) for found in caught.value.problems]
