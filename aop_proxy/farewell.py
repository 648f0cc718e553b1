"""A TLS 1.3 session that OpenSSL has refused, and a page -> the sealed records that carry it.

In: the server's application traffic secret of a session that is dead and has never sent application data, the name of
its suite, the page. Out: complete records, the last one a close_notify. Must not know who asked or why.

Nonces: the caller guarantees that nothing else was ever or will ever be sent under this secret (see `tls.Sealing`), so
sequence numbers start at 0 here (RFC 8446 sections 5.2, 5.3, 7.1, 7.3). Held to RFC 8448's published traces.
"""

import hmac
from collections.abc import Callable
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

Buffer = bytes | bytearray | memoryview

MAX_FRAGMENT = 480
"""Plaintext bytes per record: with the type byte it stays below 512, the smallest max_fragment_length of RFC 6066."""
_IV_LENGTH = 12
_TAG_LENGTH = 16
_APPLICATION_DATA = 23
_ALERT = 21
_CLOSE_NOTIFY = b"\x01\x00"


class Suite(NamedTuple):
    """What a TLS 1.3 cipher suite fixes (RFC 8446 appendix B.4)."""

    digest: str
    key_length: int
    cipher: Callable[[bytes], AESGCM | ChaCha20Poly1305]


SUITES = {
    "TLS_AES_128_GCM_SHA256": Suite("sha256", 16, AESGCM),
    "TLS_AES_256_GCM_SHA384": Suite("sha384", 32, AESGCM),
    "TLS_CHACHA20_POLY1305_SHA256": Suite("sha256", 32, ChaCha20Poly1305),
}


def expand_label(secret: Buffer, label: bytes, length: int, digest: str) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 section 7.1), for lengths of at most one digest.

    One block of HKDF-Expand (RFC 5869 section 2.3) is HMAC(secret, info || 0x01), which the standard library has.
    """
    name = b"tls13 " + label
    info = length.to_bytes(2) + bytes([len(name)]) + name + b"\x00"
    return hmac.digest(secret, info + b"\x01", digest)[:length]


def seal_farewell(secret: Buffer, suite_name: str, page: bytes) -> bytes:
    """Seal `page` and a close_notify as the first and only records under `secret`."""
    suite = SUITES[suite_name]
    cipher = suite.cipher(expand_label(secret, b"key", suite.key_length, suite.digest))
    iv = int.from_bytes(expand_label(secret, b"iv", _IV_LENGTH, suite.digest))
    fragments = [(page[start : start + MAX_FRAGMENT], _APPLICATION_DATA) for start in range(0, len(page), MAX_FRAGMENT)]
    fragments.append((_CLOSE_NOTIFY, _ALERT))
    sealed = bytearray()
    for sequence, (fragment, content_type) in enumerate(fragments):
        header = b"\x17\x03\x03" + (len(fragment) + 1 + _TAG_LENGTH).to_bytes(2)
        nonce = (iv ^ sequence).to_bytes(_IV_LENGTH)
        sealed += header + cipher.encrypt(nonce, fragment + bytes([content_type]), header)
    return bytes(sealed)
