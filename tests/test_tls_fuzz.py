"""Spoilt handshakes fed to a TLS session in memory: it ends in a reason or waits for more, and does nothing else.

Whatever is cut, flipped, doubled, exchanged, left out or added: no exception but OpenSSL's own on an accepted session,
nobody is accepted who is not good, nobody reads a page under a key that is not theirs, the key log stays empty.
"""

import contextlib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aop_proxy import tls
from aop_proxy.reasons import Reason
from aop_proxy.tls import Accepted, KeyLog, NameReader, Refused
from certificates import REFUSED, Authority, CredentialFiles, Credentials, make_key
from encounter import Encounter, Judge, chain_of, der
from spoil import ALERT_IN_CLEAR, CHANGES, COMPATIBILITY, insert, pieces
from tls13 import SUITES, Group, ProtocolViolation, Tls13Client

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""A flipped bit makes a name that is not ASCII, of which CPython tells `sys.unraisablehook`."""

TOLD = {
    Reason.NO_CERTIFICATE,
    Reason.SELF_SIGNED,
    Reason.BAD_SIGNATURE,
    Reason.WEAK_CERTIFICATE,
    Reason.BAD_CERTIFICATE,
}

Spoil = Callable[[bytes], bytes]


def spoilers() -> st.SearchStrategy[Spoil]:
    """One thing or several done to what is on the wire, or nothing."""
    positions = st.integers(0, 1 << 16)
    changes = st.builds(
        lambda change, position: lambda wire: change(wire, position),
        st.sampled_from(CHANGES),
        positions,
    )
    noise = st.one_of(st.binary(max_size=64), st.sampled_from([COMPATIBILITY, ALERT_IN_CLEAR]))
    insertions = st.builds(
        lambda at, added: lambda wire: insert(wire, at, added),
        positions,
        noise,
    )
    appendices = st.builds(lambda added: lambda wire: wire + added, noise)

    def all_of(several: list[Spoil]) -> Spoil:
        def spoil(wire: bytes) -> bytes:
            for each in several:
                wire = each(wire)
            return wire

        return spoil

    return st.lists(st.one_of(changes, insertions, appendices), max_size=2).map(all_of)


cuts = st.lists(st.integers(0, 4096), max_size=5)


@pytest.fixture(scope="module")
def judge(server_credentials: CredentialFiles, authority: Authority) -> Iterator[Judge]:
    key_log = KeyLog()
    yield Judge.of(server_credentials, key_log, authority)
    key_log.close()


@pytest.fixture(scope="module")
def people(authority: Authority) -> dict[str, Credentials | None]:
    """Who comes: one who is good, and others."""
    good = authority.issue()
    return {
        "good": good,
        "thief": Credentials(good.certificate, (), make_key(), b""),
        "self_signed": REFUSED["self_signed"](authority),
        "nobody": None,
    }


def feed(encounter: Encounter, wire: bytes, at: list[int]) -> None:
    """Step by step until the handshake is over; the client takes what it understands."""
    for piece in pieces(wire, at):
        if encounter.outcome is None and encounter.step(piece) is None:
            with contextlib.suppress(ProtocolViolation, ValueError, KeyError):
                encounter.client.receive(encounter.session.take_output())


@dataclass
class Attempt:
    """What one client does."""

    who: str
    client: Tls13Client
    spoil_hello: Spoil
    spoil_flight: Spoil
    cuts: list[int]
    noise: bytes


attempts = st.builds(
    Attempt,
    who=st.sampled_from(["good", "good", "thief", "self_signed", "nobody"]),
    client=st.builds(
        Tls13Client,
        suite=st.sampled_from(SUITES),
        share=st.sampled_from([Group.X25519, Group.P256, None]),
        server_name=st.one_of(st.none(), st.just(b"a.example"), st.binary(max_size=40)),
        record_size=st.sampled_from([16384, 16384, 300, 40]),
    ),
    spoil_hello=st.one_of(st.just(lambda wire: wire), spoilers()),
    spoil_flight=spoilers(),
    cuts=cuts,
    noise=st.binary(max_size=200),
)


@given(attempt=attempts)
def test_spoilt_handshakes(judge: Judge, people: dict[str, Credentials | None], attempt: Attempt) -> None:
    """Only the good are accepted, only those whose certificate was judged may be told, and only under their own key."""
    client, credentials = attempt.client, people[attempt.who]
    encounter = judge.meet(client)
    feed(encounter, attempt.spoil_hello(client.hello()), attempt.cuts)
    if client.retry_requested and not client.ready:
        feed(encounter, client.hello(), attempt.cuts)
    if client.ready and encounter.outcome is None:
        flight = encounter.flight(credentials) if credentials else client.certificate_flight()
        feed(encounter, attempt.spoil_flight(flight), attempt.cuts)
    feed(encounter, attempt.noise, attempt.cuts)
    outcome = encounter.outcome
    if isinstance(outcome, Accepted):
        assert attempt.who == "good"
        assert credentials is not None
        assert outcome.certificate == der(credentials.certificate)
    elif isinstance(outcome, Refused) and outcome.sealing:
        assert outcome.reason in TOLD
        assert client.secrets["SERVER_TRAFFIC_SECRET_0"] == bytes(outcome.sealing.secret)


@given(
    first=st.sampled_from([b"\x16", b"\x16\x03\x01", b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03", b""]),
    at=cuts,
    noise=st.binary(),
)
def test_noise(judge: Judge, first: bytes, at: list[int], noise: bytes) -> None:
    """Nobody gets in by noise, and nobody is told anything but an alert."""
    encounter = judge.meet()
    feed(encounter, first + noise, at)
    assert not isinstance(encounter.outcome, Accepted)
    assert not (encounter.outcome and encounter.outcome.sealing)


@given(share=st.sampled_from([Group.X25519, None]), name=st.binary(max_size=300), spoil=spoilers(), at=cuts)
def test_spoilt_names(
    authority_context: ssl.SSLContext, share: Group | None, name: bytes, spoil: Spoil, at: list[int]
) -> None:
    """The name reader says a name, that there is none, or that it waits for more; and keeps every byte it was given."""
    client = Tls13Client(server_name=name, share=share)
    reader, given_so_far = NameReader(authority_context), b""
    for piece in pieces(spoil(client.hello()), at):
        given_so_far += piece
        if reader.feed(piece):
            break
    assert given_so_far == bytes(reader.seen)
    assert reader.server_name is None or reader.server_name.isascii()


@pytest.fixture(scope="module")
def authority_context(authority: Authority) -> ssl.SSLContext:
    return tls.name_reading_context([der(authority.certificate)])


@given(data=st.lists(st.binary(max_size=500), max_size=5), spoil=spoilers(), at=cuts)
def test_spoilt_data(
    judge: Judge, people: dict[str, Credentials | None], data: list[bytes], spoil: Spoil, at: list[int]
) -> None:
    """After the handshake what is decrypted is a beginning of what was sent; where it is spoilt OpenSSL says so."""
    encounter, good = judge.meet(), people["good"]
    assert good is not None
    encounter.greet()
    encounter.accept(encounter.client.certificate_flight(chain_of(good), good.key))
    wire = spoil(b"".join(map(encounter.client.application_data, data)))
    decrypted = b""
    with contextlib.suppress(ssl.SSLError):
        for piece in pieces(wire, at):
            decrypted += encounter.decrypt(piece)
    assert b"".join(data).startswith(decrypted)
    assert not encounter.session.peer_ended
