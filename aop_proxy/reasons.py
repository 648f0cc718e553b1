"""The closed set of words for how a connection ended, and whose doing each is.

The same words stand in the log, the metrics and the documentation. This file knows no step that produces them.
"""

from enum import StrEnum
from typing import Self


class Verdict(StrEnum):
    """What became of a connection."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    """Our decision, before any byte was forwarded."""
    FAILED = "failed"
    """The network's or a peer's doing."""
    WOULD_REFUSE = "would_refuse"
    """Forwarded, since we only observe; no reason has it by itself."""


class Reason(StrEnum):
    """Why a connection ended."""

    verdict: Verdict

    def __new__(cls, word: str, verdict: Verdict) -> Self:
        """Make the member a plain string that also carries its verdict."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.verdict = verdict
        return member

    CLOSED = "closed", Verdict.ACCEPTED
    IDLE_TIMEOUT = "idle_timeout", Verdict.ACCEPTED
    DRAINED = "drained", Verdict.ACCEPTED

    NO_CERTIFICATE = "no_certificate", Verdict.REFUSED
    UNKNOWN_CA = "unknown_ca", Verdict.REFUSED
    SELF_SIGNED = "self_signed", Verdict.REFUSED
    EXPIRED = "expired", Verdict.REFUSED
    NOT_YET_VALID = "not_yet_valid", Verdict.REFUSED
    WRONG_PURPOSE = "wrong_purpose", Verdict.REFUSED
    REVOKED = "revoked", Verdict.REFUSED
    REVOCATION_UNKNOWN = "revocation_unknown", Verdict.REFUSED
    BAD_SIGNATURE = "bad_signature", Verdict.REFUSED
    WEAK_CERTIFICATE = "weak_certificate", Verdict.REFUSED
    BAD_CERTIFICATE = "bad_certificate", Verdict.REFUSED
    IDENTITY_NOT_ALLOWED = "identity_not_allowed", Verdict.REFUSED
    UNKNOWN_HOST = "unknown_host", Verdict.REFUSED
    PLAIN_HTTP = "plain_http", Verdict.REFUSED
    TLS_VERSION = "tls_version", Verdict.REFUSED
    PROXY_HEADER_INVALID = "proxy_header_invalid", Verdict.REFUSED
    TOO_MANY_CONNECTIONS = "too_many_connections", Verdict.REFUSED

    HANDSHAKE_TIMEOUT = "handshake_timeout", Verdict.FAILED
    HANDSHAKE_FAILED = "handshake_failed", Verdict.FAILED
    UPSTREAM_UNREACHABLE = "upstream_unreachable", Verdict.FAILED
    UPSTREAM_TIMEOUT = "upstream_timeout", Verdict.FAILED
    DRAIN_TIMEOUT = "drain_timeout", Verdict.FAILED
    CLIENT_RESET = "client_reset", Verdict.FAILED
    UPSTREAM_RESET = "upstream_reset", Verdict.FAILED
    CLIENT_SILENT = "client_silent", Verdict.FAILED
    INTERNAL_ERROR = "internal_error", Verdict.FAILED


class Fault(StrEnum):
    """Why a request, where requests are read, did not get the backend's whole answer: a page instead, but for `cut`."""

    BAD_REQUEST = "bad_request"
    SECRET_MISSING = "secret_missing"  # noqa: S105 - a word for the log
    BODY_TOO_LARGE = "body_too_large"
    WRONG_HOST = "wrong_host"
    HEAD_TOO_LARGE = "head_too_large"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    BAD_RESPONSE = "bad_response"
    NO_ROOM = "no_room"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    CUT = "cut"
