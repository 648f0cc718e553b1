"""Flags -> the same settings as a file makes, and problems named by flag.

Every flag is derived from a key: the words of its path without `sites`, those of mappings and lists in the singular.
So `sites[0].clients.ca` is `--client-ca`, and `timeouts.idle` is `--timeout-idle`. A list's flag may be repeated.
"""

import argparse
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, get_origin

from pydantic.fields import FieldInfo

from aop_proxy.config import load, load_file
from aop_proxy.document import Location, path_of
from aop_proxy.model import ConfigurationError, Problem, Settings
from aop_proxy.schema import ONE_OR_MORE, ConfigurationPart, Part, Shorthand, part_of, placeholder


class _Flag(NamedTuple):
    name: str
    location: Location
    field: FieldInfo

    @property
    def destination(self) -> str:
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def repeatable(self) -> bool:
        return get_origin(self.field.annotation) is list and ONE_OR_MORE not in self.field.metadata


def _flags(part: type[Part], words: str = "-", above: Location = ()) -> Iterator[_Flag]:
    for key, field in part.model_fields.items():
        is_list = get_origin(field.annotation) is list
        inner = part_of(field)
        word = key.replace("_", "-")
        singular = f"{words}-{word.removesuffix('s')}"
        if inner is None or issubclass(inner, Shorthand):
            yield _Flag(singular if is_list else f"{words}-{word}", (*above, key), field)
        elif is_list:
            yield from _flags(inner, words, (*above, key, 0))
        else:
            yield from _flags(inner, singular, (*above, key))


_FLAGS = tuple(_flags(ConfigurationPart))
_BY_KEY = {path_of(flag.location): flag.name for flag in _FLAGS}
_BY_WORD = {str(flag.location[-1]): flag.name for flag in _FLAGS}
_WORD = re.compile(f"`({'|'.join(_BY_WORD)})`")
_LAST_INDEX = re.compile(r"\[[0-9]+\]$")
_ITEM = re.compile(f"({'|'.join(map(re.escape, _BY_KEY))})(?=\\[[0-9]+\\])")
UPSTREAM = "--upstream"


def add_arguments(parser: argparse.ArgumentParser, *, upstream: bool = True) -> None:
    """Add `--config` and the flags that may stand in its place, but for `--upstream` where that is not asked for."""
    group = parser.add_argument_group("configuration", "a file, or flags in its place")
    group.add_argument("--config", metavar="FILE", help="YAML file with the configuration")
    for flag in (flag for flag in _FLAGS if upstream or flag.name != UPSTREAM):
        group.add_argument(
            flag.name,
            dest=flag.destination,
            action="append" if flag.repeatable else "store",
            metavar=placeholder(flag.field),
            help=_help(flag),
        )


def _help(flag: _Flag) -> str:
    default = flag.field.default
    shown = " ".join(default) if isinstance(default, list) else default
    notes = ["may be repeated"] if flag.repeatable else []
    notes += [f"default: {shown}"] if shown and isinstance(shown, str) else []
    words = f"{flag.field.description} ({'; '.join(notes)})" if notes else str(flag.field.description)
    return words.replace("%", "%%")


def load_arguments(arguments: argparse.Namespace, own_upstream: str | None = None) -> Settings:
    """Load `--config` or the flags; ConfigurationError with everything that is wrong, named by flag.

    `own_upstream` is for sites that name none.
    """
    given = [(flag, value) for flag in _FLAGS if (value := getattr(arguments, flag.destination, None)) is not None]
    if arguments.config is not None:
        if given:
            names = ", ".join(flag.name for flag, _ in given)
            raise ConfigurationError(Problem("--config", f"cannot stand beside {names}: write those into the file"))
        return load_file(arguments.config, own_upstream)
    if not given:
        known = (flag for flag in _FLAGS if hasattr(arguments, flag.destination))
        required = ", ".join(flag.name for flag in known if flag.field.is_required())
        raise ConfigurationError(Problem("", f"nothing is configured: give --config FILE, or at least {required}"))
    document: dict[str, Any] = {"sites": [{} if own_upstream is None else {"upstream": own_upstream}]}
    for flag, value in given:
        _put(document, flag.location, value)
    try:
        return load(document, os.getcwd())
    except ConfigurationError as error:
        raise ConfigurationError(*map(by_flag, error.problems), rest=error.rest) from None


def _put(document: Any, location: Location, value: object) -> None:
    *above, key = location
    for step in above:
        document = document[step] if isinstance(step, int) else document.setdefault(step, {})
    document[key] = value


def by_flag(problem: Problem) -> Problem:
    """The same problem, named by flag, also where its sentence points at another item or key."""
    key = _LAST_INDEX.sub("", problem.path)
    path = _BY_KEY[key] + problem.path[len(key) :] if key in _BY_KEY else problem.path
    sentence = _ITEM.sub(lambda item: _BY_KEY[item[1]], problem.sentence)
    return Problem(path, _WORD.sub(lambda word: f"`{_BY_WORD[word[1]]}`", sentence))
