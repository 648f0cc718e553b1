"""TLS 1.3 as tlsfuzzer's scripts test it, client certificates above all: each conversation ends as RFC 8446 has it end.

A request stands behind every handshake. It reaches the backend where the conversation is to be served, and nowhere else;
a certificate that does not prove itself gets the page, all else OpenSSL's alert. A good client is served before and after.
"""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from actors import GET_AND_CLOSE, HELLO, ONE_WORKER, PATIENCE, Proxy, RecordingBackend
from certificates import Authority, Credentials, KeyType
from conversations import CLOSED, CONVERSATIONS, PAGE, SERVED, Conversation, Ending
from hostile import HostileClient
from tls13 import Extension, Tls13Client, vector

FATAL = 2
KEYS: tuple[KeyType, ...] = ("p256", "rsa2048", "ed25519")


@pytest.fixture(scope="module")
def module_proxy(site: dict[str, Any]) -> Iterator[Proxy]:
    limits, timeouts = {"handshake_bytes": "64KiB"}, {"handshake": "3s", "linger": "500ms"}
    with Proxy({**ONE_WORKER, "limits": limits, "timeouts": timeouts, "sites": [site]}) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def people(authority: Authority) -> dict[str, Credentials]:
    """A good client for each kind of key."""
    return {key: authority.issue(f"{key}.example", key=key) for key in KEYS}


def ending_of(visitor: HostileClient) -> Ending:
    """How the proxy ended it, and that it did, in order."""
    answer = visitor.read_answer()
    assert answer.tcp_end in ("fin", "reset")
    fatal = [alert.description for alert in visitor.client.alerts if alert.level == FATAL]
    if fatal:
        return fatal[0]
    if answer.data.startswith(HELLO):
        return SERVED
    return PAGE if answer.status == 400 else CLOSED


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=str)
def test_conversations(
    proxy: Proxy, backend: RecordingBackend, people: dict[str, Credentials], conversation: Conversation
) -> None:
    """It ends as it must, and only what is served reaches the backend."""
    client = Tls13Client(server_name=b"localhost", session_id=bytes(32))
    with HostileClient(proxy.address, client) as visitor:
        conversation.play(visitor, people[conversation.key])
        ending = ending_of(visitor)
    assert ending in conversation.endings
    assert [] == client.tickets
    assert (ending == SERVED) == bool(backend.received)
    with HostileClient(proxy.address) as visitor:
        visitor.greet()
        visitor.send(visitor.flight(people["p256"]))
        assert SERVED == ending_of(visitor)


def test_every_script_is_there() -> None:
    """Those for TLS 1.3 that concern a server which asks for certificates, and neither resumes nor takes early data."""
    scripts = """
        ccs certificate-verify connection-abort conversation crfg-curves ecdhe-curves ecdsa-in-certificate-verify
        eddsa-in-certificate-verify empty-alert finished finished-plaintext hrr invalid-ciphers keyshare-omitted keyupdate
        multiple-ccs-messages nociphers pkcs-signature post-handshake-auth psk_ke record-layer-limits record-padding
        shuffled-extentions signature-algorithms symetric-ciphers unencrypted-alert version-negotiation
        zero-content-type zero-length-data
    """
    assert scripts.split() == sorted({conversation.script for conversation in CONVERSATIONS})


def test_certificate_request(proxy: Proxy) -> None:
    """certificate-request: the request's context is empty, and no scheme in it is of MD5, SHA-1 or DSA."""
    with HostileClient(proxy.address) as visitor:
        visitor.greet()
        assert visitor.client.certificate_request is not None
        asked = visitor.client.certificate_request[Extension.SIGNATURE_ALGORITHMS]
    schemes = [asked[at : at + 2] for at in range(2, len(asked), 2)]
    assert vector(2, b"".join(schemes)) == asked
    assert {b"\4\3", b"\x08\4", b"\x08\7"} <= set(schemes)
    assert not [scheme for scheme in schemes if scheme[0] in (1, 2) or (scheme[0] < 8 and scheme[1] == 2)]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("who", ["good", "stranger", "nobody"])
def test_its_own_library(
    proxy: Proxy, backend: RecordingBackend, people: dict[str, Credentials], key: KeyType, who: str
) -> None:
    """tlslite-ng, on which tlsfuzzer stands and which shares no code with OpenSSL, is served, or reads the page."""
    tlslite = pytest.importorskip("tlslite.api")
    shown = {"good": people[key], "stranger": Authority("Strange CA").issue(key=key), "nobody": None}[who]
    chain = private = None
    if shown is not None:
        chain = tlslite.X509CertChain()
        chain.parsePemList(shown.certificate_pem.decode())
        private = tlslite.parsePEMKey(shown.private_pem.decode(), private=True)
    with socket.create_connection(proxy.address, PATIENCE) as sock:
        connection = tlslite.TLSConnection(sock)
        settings = tlslite.HandshakeSettings()
        settings.certificate_compression_send = []  # it compresses without being asked to
        connection.handshakeClientCert(chain, private, serverName="localhost", settings=settings)
        connection.write(GET_AND_CLOSE)
        answer = b"".join(iter(lambda: bytes(connection.read(max=65536, min=1)), b""))
    if who == "good":
        assert HELLO == answer
    else:
        assert b"HTTP/1.1 400" == answer[:12]
        assert answer.endswith(b"</html>\r\n")
    assert (who == "good") == bool(backend.received)
