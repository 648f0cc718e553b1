"""What is left of a document once everything that is wrong in it is replaced: to be looked into, never to be served.

What stands in for a path cannot be read, so that nothing is found out about it beyond what is wrong already.
"""

import copy
from typing import Any

from pydantic import ValidationError

from aop_proxy.document import Location, as_written
from aop_proxy.schema import ConfigurationPart

_ROUNDS = 8
"""A replacement may show what was hidden behind it, but not without end."""
_UNREADABLE = "/"
_STAND_INS = {
    ("listen",): "127.0.0.1:0",
    ("sites", "hosts"): "stand-in.invalid",
    ("sites", "certificate"): _UNREADABLE,
    ("sites", "private_key"): _UNREADABLE,
    ("sites", "private_key_password_file"): _UNREADABLE,
    ("sites", "clients", "ca"): _UNREADABLE,
    ("sites", "clients", "crl"): _UNREADABLE,
    ("sites", "upstream"): "unix:/",
}
"""Keys that must have a value, or whose default would mislead; every other is left out."""
_LISTS = {"listen", "hosts", "ca", "crl"}


def remainder(document: object, directory: str) -> ConfigurationPart | None:
    """A document that is wrong nowhere, with indices as they were; None if nothing is left of it."""
    document = copy.deepcopy(document)
    for _ in range(_ROUNDS):
        try:
            return ConfigurationPart.model_validate(document, context=directory)
        except ValidationError as error:
            wrong = {as_written(details["loc"], document) for details in error.errors()}
            for location in sorted(wrong, key=len, reverse=True):
                _replace(document, location)
    return None


def _replace(document: Any, location: Location) -> None:
    names = tuple(step for step in location if isinstance(step, str))
    stand_in = _STAND_INS.get(names)
    while location and isinstance(location[-1], int) and stand_in is None:  # an item that cannot be: without the list
        location = location[:-1]
    if not location:
        return
    *above, last = location
    try:
        for step in above:
            document = document[step]
        if stand_in is None:
            document.pop(last, None)
        else:
            document[last] = [stand_in] if last in _LISTS else stand_in
    except (LookupError, TypeError, AttributeError):  # gone with what was around it
        return
