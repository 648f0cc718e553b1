"""Which site a name belongs to, and which identities may pass: examples, and properties over any text."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aop_proxy.identity import Identity
from aop_proxy.model import Clients
from aop_proxy.policy import MAX_NAME, HostTable, Rules, is_host_of, normalise_host, wildcard_of
from aop_proxy.reasons import Reason

FINGERPRINT = "ab" * 32
IDENTITY = Identity(
    subject="CN=edge.example.com",
    issuer="CN=Some CA",
    common_names=("edge.example.com",),
    dns_names=(),
    uris=(),
    fingerprint=FINGERPRINT,
    not_before=datetime(2024, 1, 1, tzinfo=UTC),
    not_after=datetime(2034, 1, 1, tzinfo=UTC),
)
NOT_ALLOWED = Reason.IDENTITY_NOT_ALLOWED
LONGEST = ".".join(["a" * 63] * 3 + ["b" * 61])

# Names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com", "example.com"),
        ("example.com.", "example.com"),
        ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example"),
        ("_acme.internal_name.example", "_acme.internal_name.example"),
        ("localhost", "localhost"),
        ("a" * 63, "a" * 63),
        (LONGEST, LONGEST),
        (LONGEST + ".", LONGEST),
        (None, None),
        ("", None),
        (".", None),
        ("example.com..", None),
        ("a..b", None),
        (".example.com", None),
        ("-a.example", None),
        ("a-.example", None),
        ("*.example.com", None),
        ("münchen.example", None),
        ("exämple.com", None),
        ("\uff45\uff58ample.com", None),  # full-width letters, which some libraries fold
        ("\u212aelvin.example", None),  # the Kelvin sign, which lower() makes a k
        ("a b", None),
        ("example.com\0", None),
        ("example.com\n", None),
        ("a\0.example.com", None),
        ("example.com:443", None),
        ("http://example.com", None),
        ("a" * 64, None),
        ("a" * 300, None),
        pytest.param(LONGEST + "b", None),
        ("a." * 150, None),
    ],
)
def test_host_names_have_one_form(name: str | None, expected: str | None) -> None:
    """Lower case and without the dot at the end; what is no LDH name is none, NUL, non-ASCII and length included."""
    assert expected == normalise_host(name)


@given(st.text(max_size=300))
def test_any_text_is_a_host_name_or_not(text: str) -> None:
    """No text breaks the reading, and a name that was read is ASCII, bounded and read the same again."""
    host = normalise_host(text)
    if host is not None:
        assert host.isascii()
        assert len(host) <= MAX_NAME + 1
        assert host == normalise_host(host)


def test_the_wildcard_of_a_name() -> None:
    """One whole label is replaced, the first."""
    assert [wildcard_of("a.b.example"), wildcard_of("localhost")] == ["*.b.example", "*."]


TABLE = HostTable([["example.com", "*.example.com"], ["www.example.com", "other.example"]])


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("example.com", 0),
        ("Example.COM.", 0),
        ("a.example.com", 0),
        ("www.example.com", 1),
        ("WWW.EXAMPLE.COM", 1),
        ("other.example", 1),
        ("a.b.example.com", None),
        ("a.www.example.com", None),
        ("badexample.com", None),
        ("example.com.evil", None),
        ("com", None),
        ("*.example.com", None),
        ("a.example.com\0", None),
        ("\0.example.com", None),
        ("ä.example.com", None),
        ("a" * 300 + ".example.com", None),
        ("", None),
        (None, None),
    ],
)
def test_names_find_their_site(name: str | None, site: int | None) -> None:
    """An exact name goes before a wildcard, and a wildcard stands for one whole label."""
    assert site == TABLE.find(name)


@pytest.mark.parametrize("name", ["example.org", "a.b.example.com", None, "", "\0", "ä.example", "a" * 300])
def test_a_site_for_any_name_gets_the_rest(name: str | None) -> None:
    """What no other site lists, a missing name and what is no name at all go to the site without hosts."""
    table = HostTable([["example.com"], [], ["*.example.com"]])
    assert [table.find(name), table.find("example.com"), table.find("a.example.com")] == [1, 0, 2]


@given(st.one_of(st.none(), st.text(), st.from_regex(r"[a-z*.\0-]{0,20}example\.com\.?", fullmatch=True)))
def test_any_name_finds_a_site_or_none(name: str | None) -> None:
    """No name that a client may send breaks the table, and it finds only names that are listed."""
    site = TABLE.find(name)
    assert site in (None, 0, 1)
    if site is not None:
        assert name is not None
        assert name.lower().removesuffix(".").endswith(("example.com", "other.example"))


# Rules


def rules(*names: str, fingerprints: tuple[str, ...] = ()) -> Rules:
    return Rules.of(Clients(fingerprints=frozenset(fingerprints), names=names))


def named(*dns_names: str, cn: tuple[str, ...] = (), uris: tuple[str, ...] = ()) -> Identity:
    return replace(IDENTITY, dns_names=dns_names, common_names=cn, uris=uris)


SPIFFE = "spiffe://example.com/edge"


@pytest.mark.parametrize(
    ("rule", "identity"),
    [
        ("edge.example.com", named("edge.example.com")),
        ("edge.example.com", named("other.example", "EDGE.example.com.")),
        ("Edge.Example.com", named("edge.example.com")),
        ("edge.example.com", named(cn=("edge.example.com",))),
        ("edge.example.com", named("other.example", cn=("a", "Edge.Example.Com"))),
        ("*.example.com", named("edge.example.com")),
        ("*.example.com", named(cn=("edge.example.com",))),
        (SPIFFE, named(uris=("https://a.example/", SPIFFE))),
    ],
)
def test_a_listed_name_passes(rule: str, identity: Identity) -> None:
    """DNS names in any case, common names and URIs count, wherever they stand among others."""
    assert rules(rule).decide(identity) is None


@pytest.mark.parametrize(
    ("rule", "identity"),
    [
        ("edge.example.com", named("edge.example.org")),
        ("edge.example.com", named()),
        ("edge.example.com", named("*.example.com")),
        ("*.example.com", named("*.example.com")),
        ("*.example.com", named("example.com")),
        ("*.example.com", named("a.b.example.com")),
        ("*.example.com", named("edge.example.com.evil")),
        ("edge.example.com", named("edge.example.com evil")),
        ("edge.example.com", named("edge.example.com\0")),
        ("edge.example.com", named(uris=("https://edge.example.com",))),
        (SPIFFE, named(uris=(SPIFFE.upper(),))),
        (SPIFFE, named(uris=(SPIFFE + "/",))),
        (SPIFFE, named(SPIFFE, cn=(SPIFFE,))),
    ],
)
def test_any_other_name_is_refused(rule: str, identity: Identity) -> None:
    """Names are compared whole; a wildcard in the client's certificate names nobody; URIs count letter by letter."""
    assert rules(rule).decide(identity) == NOT_ALLOWED


@pytest.mark.parametrize(
    ("rule", "identity"),
    [
        ("My Edge No. 1", named(cn=("My Edge No. 1",))),
        ("urn:example:Edge", named(uris=("urn:example:Edge",))),
    ],
)
def test_a_common_name_or_urn_as_it_stands(rule: str, identity: Identity) -> None:
    """A common name that is no host name, and a URI without `//`, pass where they are listed as they stand."""
    assert rules(rule).decide(identity) is None


@pytest.mark.parametrize("rule", ["edge.example.com", "*.example.com"])
def test_a_uri_is_no_host_name(rule: str) -> None:
    """A URI SAN that only looks like a host name meets no rule for host names: a CA judges the two by other rules."""
    assert rules(rule).decide(named(uris=("edge.example.com",))) == NOT_ALLOWED


def test_fingerprints() -> None:
    """A listed fingerprint passes, any other is refused."""
    assert rules(fingerprints=("00" * 32, FINGERPRINT)).decide(IDENTITY) is None
    assert rules(fingerprints=("00" * 32,)).decide(IDENTITY) == NOT_ALLOWED


def test_every_rule_that_is_set_must_be_met() -> None:
    """The right name with the wrong fingerprint is refused, and the other way round."""
    name = "edge.example.com"
    assert rules(name, fingerprints=(FINGERPRINT,)).decide(IDENTITY) is None
    assert rules(name, fingerprints=("00" * 32,)).decide(IDENTITY) == NOT_ALLOWED
    assert rules("other.example", fingerprints=(FINGERPRINT,)).decide(IDENTITY) == NOT_ALLOWED


_names = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["edge.example.com", "EDGE.example.com.", "*.example.com", "a.b.example.com", SPIFFE, "\0", ""]),
)
_several = st.lists(_names, max_size=3).map(tuple)
_identities = st.builds(
    replace,
    st.just(IDENTITY),
    common_names=_several,
    dns_names=_several,
    uris=_several,
    fingerprint=st.sampled_from([FINGERPRINT, "00" * 32]),
)
_fingerprints = st.frozensets(st.sampled_from([FINGERPRINT, "11" * 32]))
_rules = st.builds(Clients, fingerprints=_fingerprints, names=_several).map(Rules.of)


@given(_identities)
def test_without_rules_whoever_passed_the_ca_may_pass(identity: Identity) -> None:
    """An empty set of rules admits every identity: OpenSSL has judged it already."""
    assert Rules().decide(identity) is None


@given(_rules, _identities)
def test_a_rule_only_narrows(both: Rules, identity: Identity) -> None:
    """Who is refused by one kind of rule is refused by it together with another, and nobody else is."""
    each = [replace(both, names=frozenset()).decide(identity), replace(both, fingerprints=frozenset()).decide(identity)]
    expected = NOT_ALLOWED if NOT_ALLOWED in each else None
    assert expected == both.decide(identity)


@pytest.mark.parametrize(
    ("server_name", "host", "allowed"),
    [
        ("a.example", "a.example", True),
        ("a.example", "A.Example.", True),
        ("A.example.", "a.example", True),
        ("a.example", "b.example", False),
        ("a.example", "x.a.example", False),
        ("a.example", "[::1]", False),
        ("other.example", "other.example", True),
        (None, "b.example", True),
        (None, "[::1]", True),
        (None, "a.example", False),
    ],
)
def test_a_request_is_for_what_its_connection_was_opened_for(server_name: str | None, host: str, allowed: bool) -> None:
    """The same name, however it is spelt; where none was sent, one of the site for any name."""
    hosts = HostTable([["a.example"], []])
    assert is_host_of(server_name, hosts, 1 if server_name is None else 0, host) is allowed
