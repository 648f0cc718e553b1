"""With `h2` in `alpn`, who is refused reads the page as HTTP/2, and who passes speaks HTTP/2 with the backend.

A page is an answer on stream 1, so it is for those that have sent something behind their Finished. Who has not is told
to go, with the same words: frames on a stream that was never opened would be a protocol error.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h2.connection
import h2.events
import pytest

from actors import ONE_WORKER, Proxy, RecordingBackend, TlsClient, client_context, require_peer
from certificates import REFUSED, Authority, CredentialFiles

NO_CERTIFICATE = "No required SSL certificate was sent"


@pytest.fixture(scope="module")
def module_proxy(site: dict[str, Any]) -> Iterator[Proxy]:
    with Proxy({**ONE_WORKER, "sites": [{**site, "alpn": ["h2", "http/1.1"]}]}) as proxy:
        yield proxy


def test_curl_reads_the_page(proxy: Proxy, backend: RecordingBackend) -> None:
    """Curl agrees on h2, shows no certificate, and sees NGINX's sentence with status 400."""
    command = [
        require_peer("curl"),
        "-sk",
        "--http2",
        "-w",
        "%{http_version} %{http_code}",
        f"https://127.0.0.1:{proxy.port}/",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    assert NO_CERTIFICATE in answer
    assert answer.endswith("2 400")
    assert [] == backend.connections


def test_curl_reads_that_the_backend_is_down(site: dict[str, Any], client_credentials: CredentialFiles) -> None:
    """A 502 on the live session is HTTP/2 too."""
    down = {**site, "alpn": ["h2"], "upstream": "http://127.0.0.1:9"}
    with Proxy({**ONE_WORKER, "sites": [down]}) as proxy:
        certificate = ["--cert", str(client_credentials.certificate), "--key", str(client_credentials.private_key)]
        command = [require_peer("curl"), "-sk", "--http2", "-w", "%{http_version} %{http_code}", *certificate]
        answer = subprocess.run(
            [*command, f"https://127.0.0.1:{proxy.port}/"], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    assert answer.endswith("2 502")


NODE = """
const http2 = require("node:http2");
const [port, ask] = process.argv.slice(1);
const said = {events: []};
const session = http2.connect(`https://127.0.0.1:${port}`, {rejectUnauthorized: false, servername: "localhost"});
session.on("error", (error) => said.events.push(error.code));
session.on("goaway", (code, last, text) => { said.goaway = [code, last, String(text)]; });
session.on("close", () => console.log(JSON.stringify(said)));
if (ask === "ask") {
    const request = session.request({":path": "/"});
    request.setEncoding("utf8");
    request.on("response", (fields) => { said.status = fields[":status"]; });
    said.body = "";
    request.on("data", (data) => { said.body += data; });
    request.on("error", (error) => said.events.push(error.code));
    request.on("end", () => said.events.push("end"));
}
"""


def node(proxy: Proxy, *words: str) -> dict[str, Any]:
    command = [require_peer("node"), "-e", NODE, str(proxy.port), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_node_reads_the_page(proxy: Proxy, backend: RecordingBackend) -> None:
    """A request is answered with status and sentence, and the session ends without an error."""
    said = node(proxy, "ask")
    assert (400, ["end"]) == (said["status"], said["events"])
    assert NO_CERTIFICATE in said["body"]
    assert [] == backend.connections


def test_node_without_a_request(proxy: Proxy, backend: RecordingBackend) -> None:
    """A session that has sent settings and no request looks as if it had asked: it ends, in an error at worst."""
    said = node(proxy)
    assert said["events"] in ([], ["ERR_HTTP2_ERROR"])
    assert "body" not in said
    assert "no_certificate" == proxy.wait_for("connection", verdict="refused")["reason"]
    assert [] == backend.connections


@pytest.mark.parametrize("who", ["nobody", "expired"])
@pytest.mark.parametrize("asks", [True, False], ids=["asks", "waits"])
def test_the_h2_library(
    proxy: Proxy, backend: RecordingBackend, authority: Authority, tmp_path: Path, who: str, asks: bool
) -> None:
    """Who has asked reads status, fields and body, in order; who waits reads SETTINGS and GOAWAY, and no other frame."""
    shown = None if who == "nobody" else REFUSED[who](authority).write(tmp_path, who)
    sentence = NO_CERTIFICATE if who == "nobody" else "The SSL certificate error"
    ours = h2.connection.H2Connection()
    ours.initiate_connection()
    if asks:
        fields = [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "localhost")]
        ours.send_headers(1, fields, end_stream=True)
    with TlsClient(proxy.address, client_context(shown, alpn=["h2"])) as client:
        client.handshake(with_data=ours.data_to_send() if asks else b"")
        assert "h2" == client.tls.selected_alpn_protocol()
        answer = client.receive_all()
    assert "close_notify" == answer.ending
    events = ours.receive_data(answer.data)
    end = events[-1]
    assert isinstance(end, h2.events.ConnectionTerminated)
    reference = proxy.wait_for("connection", verdict="refused")["reference"]
    assert f"400 {sentence} {reference}".encode() == end.additional_data
    if not asks:
        assert [h2.events.RemoteSettingsChanged] == [type(event) for event in events[:-1]]
    else:
        (response,) = (event for event in events if isinstance(event, h2.events.ResponseReceived))
        (data,) = (event for event in events if isinstance(event, h2.events.DataReceived))
        assert b"400" == dict(response.headers or [])[b":status"]
        assert f"<center>{sentence}</center>" in data.data.decode()
    assert [] == backend.connections
