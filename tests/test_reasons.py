"""The closed set of words, and whose doing each is."""

import json

import pytest

from aop_proxy.reasons import Reason, Verdict

WORDS = {
    "accepted": "closed idle_timeout drained",
    "refused": (
        "no_certificate unknown_ca self_signed expired not_yet_valid wrong_purpose revoked revocation_unknown"
        " bad_signature weak_certificate bad_certificate identity_not_allowed unknown_host plain_http tls_version"
        " proxy_header_invalid too_many_connections"
    ),
    "failed": (
        "handshake_timeout handshake_failed upstream_unreachable upstream_timeout drain_timeout client_reset"
        " upstream_reset client_silent internal_error"
    ),
}


def test_every_word_has_its_verdict() -> None:
    """The words are those that users filter their logs by, and each says whose doing it was."""
    expected = {word: verdict for verdict, words in WORDS.items() for word in words.split()}
    assert expected == {reason.value: reason.verdict.value for reason in Reason}


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_a_reason_is_its_word(reason: Reason) -> None:
    """A reason reads, compares and is written to JSON as the plain word, and is found by it."""
    word = reason.name.lower()
    assert (word, word, f'"{word}"') == (reason, str(reason), json.dumps(reason))
    assert Reason(word) is reason  # type: ignore[call-arg]  # a member's verdict comes with its word


@pytest.mark.parametrize("word", ["", "Closed", "refused", "CLOSED"])
def test_no_other_word_is_a_reason(word: str) -> None:
    """The set is closed."""
    with pytest.raises(ValueError, match="not a valid Reason"):
        Reason(word)  # type: ignore[call-arg]


def test_verdicts() -> None:
    """A connection was accepted, refused by us, or failed; or it would have been refused, and we only observed."""
    assert [verdict.value for verdict in Verdict] == ["accepted", "refused", "failed", "would_refuse"]
