"""What all the answers of an origin come to; origins of every make are asked in `promises`."""

import contextlib
import socket
import threading

import pytest

from actors import PATIENCE
from aop_proxy.probe import ExitCode, Question, exit_code, probe
from aop_proxy.visit import Unreachable


def _serve(listener: socket.socket, answer: bytes) -> None:
    while True:
        try:
            end, _ = listener.accept()
        except OSError:
            return
        with end, contextlib.suppress(OSError):
            end.settimeout(PATIENCE)
            end.recv(65536)
            end.sendall(answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # unrecognized_name, before any certificate: it says nothing about what certificates do
        (b"\x15\x03\x03\x00\x02\x02\x70", "refuses before it shows a certificate (TLS alert unrecognized_name)"),
        (b"", "not for TLS 1.2 or 1.3: closed without an answer"),
    ],
)
def test_where_nothing_is_learnt(answer: bytes, expected: str) -> None:
    """It is not called enforced."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, answer))
        thread.start()
        with pytest.raises(Unreachable) as caught:
            probe(Question(listener.getsockname(), "origin.example"))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
    assert expected in str(caught.value)
    assert exit_code(caught.value) is ExitCode.UNREACHABLE


def test_a_server_of_plain_http() -> None:
    """Where no TLS is spoken, but plain HTTP is served, everybody is let in."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, b"HTTP/1.1 200 OK\r\n\r\nhello"))
        thread.start()
        report = probe(Question(listener.getsockname(), "origin.example"))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(PATIENCE)
    assert (report.enforced, report.serves_plain_http, report.certificates) == (False, True, ())
    assert exit_code(report) is ExitCode.NOT_ENFORCED
