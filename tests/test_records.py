"""Records of either side, TLS 1.2 and 1.3, in memory: what one session encrypts the other decrypts, however it is cut."""

import os
import ssl

import pytest

from aop_proxy.records import MAX_RECORD_PLAINTEXT, Records
from certificates import CredentialFiles

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
CUTS = [1, 4, 5, 6, 1000, 1_000_000]


class Shaking(Records):
    """A session that can shake hands, as both of ours can."""

    def shake(self, other: "Shaking") -> bool:
        """One step; whether this side is done."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        finally:
            other._incoming.write(self.take_output())
        return True


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def pair(request: pytest.FixtureRequest, server_credentials: CredentialFiles) -> tuple[Shaking, Shaking]:
    """A client and a server that have shaken hands; what the server said behind its Finished is in neither."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(server_credentials.certificate, server_credentials.private_key)
    server_context.num_tickets = 0
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_mode = ssl.CERT_NONE
    client_context.maximum_version = request.param
    client = Shaking(client_context, server_side=False, server_hostname="origin.example")
    server = Shaking(server_context, server_side=True)
    done = (False, False)
    while done != (True, True):
        done = (client.shake(server), server.shake(client))
    return client, server


def encrypted(sender: Records, data: bytes) -> bytes:
    pieces = [data[at : at + MAX_RECORD_PLAINTEXT] for at in range(0, len(data), MAX_RECORD_PLAINTEXT)]
    return b"".join(sender.encrypt(memoryview(piece)) for piece in pieces)


def decrypted(receiver: Records, wire: bytes, cut: int) -> bytes:
    """What comes out of `wire` in pieces; nothing that is there may wait for the next piece."""
    data = b""
    for start in range(0, len(wire), cut):
        piece = memoryview(wire)[start : start + cut]
        plaintext = memoryview(bytearray(len(piece) + MAX_RECORD_PLAINTEXT))
        data += bytes(plaintext[: receiver.decrypt(piece, plaintext)])
        assert receiver._object.pending() == 0
    return data


@pytest.mark.parametrize("cut", CUTS)
def test_data_passes_both_ways_however_it_is_cut(pair: tuple[Shaking, Shaking], cut: int) -> None:
    """Every byte in order, from empty words to several full records at once."""
    for sender, receiver in (pair, pair[::-1]):
        data = os.urandom(3000 if cut < 100 else 3 * MAX_RECORD_PLAINTEXT + 1)
        assert data == decrypted(receiver, encrypted(sender, data), cut)
        assert not receiver.is_mid_record


def test_the_middle_of_a_record_is_known(pair: tuple[Shaking, Shaking]) -> None:
    """Behind a header, a part of one, or a part of a body, an end would be a loss."""
    client, server = pair
    wire = encrypted(server, b"whole")
    for end in (1, 5, len(wire) - 1):
        taken, wire = wire[:end], wire[end:] + encrypted(server, b"whole")
        decrypted(client, taken, end)
        assert client.is_mid_record
    decrypted(client, wire, len(wire))
    assert not client.is_mid_record


def test_close_notify_ends_one_half(pair: tuple[Shaking, Shaking]) -> None:
    """It comes behind what was said before; the other half goes on."""
    client, server = pair
    wire = encrypted(client, b"last")
    client.close_notify()
    assert b"last" == decrypted(server, wire + client.take_output(), 1_000_000)
    assert server.peer_ended
    assert b"answer" == decrypted(client, encrypted(server, b"answer"), 1_000_000)
    assert not client.peer_ended


def test_what_is_no_record_breaks_the_session(pair: tuple[Shaking, Shaking]) -> None:
    """Junk, a record longer than any may be, and one that was changed raise."""
    client, server = pair
    wire = bytearray(encrypted(server, b"changed"))
    wire[-1] ^= 1
    with pytest.raises(ssl.SSLError):
        decrypted(client, bytes(wire), 1_000_000)
    with pytest.raises(ssl.SSLError):
        decrypted(server, b"\x17\x03\x03\xff\xff" + bytes(0xFFFF), 1_000_000)
