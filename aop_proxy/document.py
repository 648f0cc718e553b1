"""YAML -> plain lists, mappings and text, bounded.

Every scalar stays text until a key says what it is: no `no` becomes False, no fingerprint a number; `null` is None.
Knows YAML, its aliases and duplicate keys. Must not know which keys there are.
"""

import re

import yaml

from aop_proxy.model import ConfigurationError, Problem
from aop_proxy.notation import printable, quoted

Location = tuple[str | int, ...]
"""Keys and list indices from the top."""

LARGEST_DOCUMENT = 100_000
"""Values, once aliases are written out: a few hundred bytes of nested aliases would otherwise make billions."""

_NULL = "tag:yaml.org,2002:null"
_WORDS = ("null", "bool", "int", "float", "timestamp", "merge", "value", "str", "seq", "map")
_PLAIN = {f"tag:yaml.org,2002:{word}" for word in _WORDS}


def parse_document(content: bytes) -> tuple[object, list[Problem]]:
    """What the document says and what is wrong with its writing; ConfigurationError when it cannot be read at all."""
    try:
        text = content.decode("utf-8-sig")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        document = _Document()
        return (None if node is None else document.value(node, ())), document.problems
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(Problem(f"line {line}", "this is not UTF-8: save the file as UTF-8")) from None
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position)
        sentence = f"this is not YAML: the character U+{error.character:04X} must not stand here"
        raise ConfigurationError(Problem(f"line {line}, column {column}", sentence)) from None
    except yaml.MarkedYAMLError as error:
        sentence = ", ".join(printable(part) for part in (error.context, error.problem) if part)
        raise ConfigurationError(Problem(_place(error.problem_mark), f"this is not YAML: {sentence}")) from None
    except RecursionError:
        raise ConfigurationError(Problem("", "the file nests its values too deeply: make it flatter")) from None


def path_of(location: Location) -> str:
    """`sites[0].clients.ca[1]`, with what the operator wrote in it made printable."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if re.fullmatch(r"[\w-]{1,80}", part, re.ASCII) else f".{quoted(part)}"
    return path.removeprefix(".")


def _place(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""


class _Document:
    """One walk over the composed nodes."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._left = LARGEST_DOCUMENT

    def value(self, node: yaml.Node, location: Location) -> object:
        self._left -= 1
        if self._left < 0:
            sentence = f"the file holds more than {LARGEST_DOCUMENT} values once its aliases are written out: use fewer"
            raise ConfigurationError(Problem("", sentence))
        if node.tag not in _PLAIN:
            self._report(location, f"has the tag {quoted(node.tag)}, which is not known here: leave it out")
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*location, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location)
        return None if node.tag == _NULL else self._text(node, location)

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, object]:
        mapping: dict[str, object] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._report(location, f"has a key in line {line} that is not text: write a word")
                continue
            key = self._text(key_node, location)
            if key in mapping:
                self._report(
                    (*location, key), f"is given in line {first_lines[key]} and again in line {line}: keep one"
                )
            first_lines.setdefault(key, line)
            mapping[key] = self.value(value_node, (*location, key))
        return mapping

    def _text(self, node: yaml.Node, location: Location) -> str:
        text = str(node.value)
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._report(location, f"{quoted(text)} holds half of a surrogate pair: write the character itself")
            return printable(text)
        return text

    def _report(self, location: Location, sentence: str) -> None:
        self.problems.append(Problem(path_of(location), sentence))


def as_written(location: Location, document: object) -> Location:
    """Leave out the steps that only the written-out form of a shorthand has."""
    written: list[str | int] = []
    for step in location:
        if isinstance(document, list) and isinstance(step, int):
            document = document[step]
        elif isinstance(document, dict) and isinstance(step, str):
            document = document.get(step)
        else:
            continue
        written.append(step)
    return tuple(written)
