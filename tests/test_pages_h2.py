"""The pages as HTTP/2 frames, read by a client of its own (the h2 library)."""

import re

import h2.connection
import h2.events
import pytest

from aop_proxy import pages
from aop_proxy.reasons import Reason

REFERENCE = "0123abcd"


def events_of(reply: bytes, *, asked: bool) -> list[h2.events.Event]:
    """What a client makes of the reply, having opened stream 1 before or not."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    if asked:
        client.send_headers(
            1,
            [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "example.com")],
            end_stream=True,
        )
    return list(client.receive_data(reply))


@pytest.mark.parametrize("reason", [Reason.NO_CERTIFICATE, Reason.UNKNOWN_HOST, Reason.UPSTREAM_UNREACHABLE])
def test_a_page_is_the_answer_to_the_first_request(reason: Reason) -> None:
    """Status, type, length and body arrive on stream 1, which ends, and the connection is said to end."""
    plain = pages.page(reason, REFERENCE)
    status, body = plain.split(b" ", 2)[1], plain.partition(b"\r\n\r\n")[2]
    events = events_of(pages.page(reason, REFERENCE, "h2"), asked=True)
    (answer,) = (event for event in events if isinstance(event, h2.events.ResponseReceived))
    (data,) = (event for event in events if isinstance(event, h2.events.DataReceived))
    fields = dict(answer.headers or [])
    assert {
        b":status": status,
        b"content-type": b"text/html",
        b"content-length": str(len(body)).encode(),
        b"cache-control": b"no-store",
    } == fields
    assert body == data.data
    assert any(isinstance(event, h2.events.StreamEnded) for event in events)
    (end,) = (event for event in events if isinstance(event, h2.events.ConnectionTerminated))
    assert end.additional_data is not None
    assert re.fullmatch(rf"{status.decode()} [A-Z].* {REFERENCE}".encode(), end.additional_data)


def test_who_has_not_asked_is_told_to_go() -> None:
    """Frames on a stream that was never opened would be a protocol error: there are none."""
    events = events_of(pages.page(Reason.NO_CERTIFICATE, REFERENCE, "h2", asked=False), asked=False)
    assert [h2.events.RemoteSettingsChanged, h2.events.ConnectionTerminated] == [type(event) for event in events]


def test_another_protocol_gets_http1() -> None:
    """Only an agreed h2 changes the form."""
    assert pages.page(Reason.NO_CERTIFICATE, REFERENCE) == pages.page(Reason.NO_CERTIFICATE, REFERENCE, "http/1.1")
