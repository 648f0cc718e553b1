"""What is left of a document when what is wrong in it is replaced."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aop_proxy.remainder import remainder

GOOD: dict[str, Any] = {"listen": ["a:1"], "sites": [{"certificate": "c", "upstream": "http://b"}]}


def left(document: object) -> Any:
    part = remainder(document, "/etc")
    assert part is not None
    return part


def test_nothing_wrong() -> None:
    """Nothing is replaced, nor changed where it came from."""
    assert left(GOOD).sites[0].certificate == "/etc/c"


def test_places_stay() -> None:
    """A list keeps its length, so that later problems name the right item."""
    site = {**GOOD["sites"][0], "clients": {"ca": ["", "x.pem"], "crl": "no list"}}
    (found,) = left({**GOOD, "sites": [site]}).sites
    assert found.clients.ca == ["/", "/etc/x.pem"]
    assert found.clients.crl == ["/"]
    assert site["clients"]["crl"] == "no list"


def test_what_is_missing_and_what_is_unknown() -> None:
    """The one is stood in for, the other left out."""
    found = left({"sites": [{"nonsense": 1}], "timeouts": {"idle": "x"}, "log": None})
    assert (found.sites[0].certificate, found.listen[0].address.port, found.timeouts.idle) == ("/", 0, 3600)


@pytest.mark.parametrize("document", [None, [], "x", {}, {"sites": []}, {"sites": ["x"]}, {"sites": {"a": 1}}])
def test_nothing_left(document: object) -> None:
    """Without a site there is nothing to look into."""
    assert remainder(document, "/etc") is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["ca", "url", "x"]), inner, max_size=2),
    max_leaves=4,
)
names = st.sampled_from(["hosts", "certificate", "private_key", "alpn", "clients", "upstream", "dial", "mode", "x"])


@given(
    st.dictionaries(names, values), st.dictionaries(st.sampled_from(["listen", "log", "user", "limits", "y"]), values)
)
def test_whatever_is_written(site: dict[str, Any], rest: dict[str, Any]) -> None:
    """It comes to an end, with settings or without."""
    remainder({**GOOD, **rest, "sites": [site]}, "/etc")
