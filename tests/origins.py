"""Origins of every make, with Authenticated Origin Pulls and without, as their own manuals configure it.

Every origin is a context manager that yields its port, and answers whom it lets in without a backend.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actors import ONE_WORKER, Proxy, RecordingBackend, free_port, require_peer, running, wait_for_port
from certificates import CredentialFiles

Manner = Literal["enforcing", "open", "forbidding"]
"""A certificate is demanded; is not asked for; is asked for, and who has none reads a 403."""


@dataclass(frozen=True)
class Files:
    """What an origin is configured with."""

    directory: Path
    server: CredentialFiles
    client_ca: Path


@contextlib.contextmanager
def ours(files: Files, manner: Manner) -> Iterator[int]:
    """The open one observes."""
    assert manner != "forbidding"
    with RecordingBackend() as backend:
        site = {
            "certificate": str(files.server.certificate),
            "private_key": str(files.server.private_key),
            "clients": {"ca": [str(files.client_ca)]},
            "upstream": backend.url,
        }
        enforcement = "enforce" if manner == "enforcing" else "observe"
        with Proxy({**ONE_WORKER, "enforcement": enforcement, "sites": [site]}) as proxy:
            yield proxy.port


NGINX = """
daemon off;
error_log stderr;
pid {directory}/nginx.pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        {verify}
        location / {{ return 200 "let in"; }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(files: Files, manner: Manner) -> Iterator[int]:
    """The open one takes old TLS too."""
    verify = {
        "enforcing": f"ssl_verify_client on; ssl_client_certificate {files.client_ca};",
        "open": "ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3; ssl_ciphers ALL:@SECLEVEL=0;",
        "forbidding": f"ssl_verify_client optional; ssl_client_certificate {files.client_ca};"
        " if ($ssl_client_verify != SUCCESS) { return 403; }",
    }[manner]
    with (
        _serving(files, "nginx.conf", NGINX, verify) as (configuration, port),
        running([require_peer("nginx"), "-e", "stderr", "-c", configuration]) as process,
    ):
        wait_for_port(port, process)
        yield port


APACHE = """
ServerRoot {directory}
ServerName localhost
PidFile {directory}/apache.pid
ErrorLog /dev/stderr
Listen 127.0.0.1:{port}
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule alias_module /usr/lib/apache2/modules/mod_alias.so
LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so
DefaultRuntimeDir {directory}
User #{user}
Mutex posixsem
SSLEngine on
SSLCertificateFile {certificate}
SSLCertificateKeyFile {key}
{verify}
Redirect 410 /
"""


@contextlib.contextmanager
def apache(files: Files, manner: Manner) -> Iterator[int]:
    assert manner != "forbidding"
    verify = {
        "enforcing": f"SSLVerifyClient require\nSSLCACertificateFile {files.client_ca}",
        "open": "",
    }[manner]
    with (
        _serving(files, "apache.conf", APACHE, verify) as (configuration, port),
        running([require_peer("apache2"), "-X", "-f", configuration]) as process,
    ):
        wait_for_port(port, process)
        yield port


HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
frontend tls
    bind 127.0.0.1:{port} ssl crt {both} {verify}
    http-request return status 200 content-type text/plain string let-in
"""


@contextlib.contextmanager
def haproxy(files: Files, manner: Manner) -> Iterator[int]:
    verify = {
        "enforcing": f"ca-file {files.client_ca} verify required",
        "open": "",
        "forbidding": f"ca-file {files.client_ca} verify optional crt-ignore-err all ca-ignore-err all\n"
        "    http-request deny deny_status 403 unless { ssl_c_used } { ssl_c_verify 0 }",
    }[manner]
    with (
        _serving(files, "haproxy.cfg", HAPROXY, verify) as (configuration, port),
        running([require_peer("haproxy"), "-db", "-f", configuration]) as process,
    ):
        wait_for_port(port, process)
        yield port


@contextlib.contextmanager
def caddy(files: Files, manner: Manner) -> Iterator[int]:
    assert manner != "forbidding"
    port = free_port()
    certificate = {"certificate": str(files.server.certificate), "key": str(files.server.private_key)}
    ca = {"provider": "file", "pem_files": [str(files.client_ca)]}
    policy = {"client_authentication": {"ca": ca, "mode": "require_and_verify"}} if manner == "enforcing" else {}
    server = {
        "listen": [f"127.0.0.1:{port}"],
        "protocols": ["h1"],
        "automatic_https": {"disable": True},
        "tls_connection_policies": [policy],
        "routes": [{"handle": [{"handler": "static_response", "body": "let in"}]}],
    }
    configuration = {
        "admin": {"disabled": True},
        "logging": {"logs": {"default": {"level": "ERROR"}}},
        "apps": {
            "tls": {"certificates": {"load_files": [certificate]}},
            "http": {"servers": {"tls": server}},
        },
    }
    path = files.directory / "caddy.json"
    path.write_text(json.dumps(configuration))
    home = {"HOME": str(files.directory), "PATH": "/usr/bin:/bin"}
    with running([require_peer("caddy"), "run", "--config", path], env=home) as process:
        wait_for_port(port, process)
        yield port


@contextlib.contextmanager
def _serving(files: Files, name: str, template: str, verify: str) -> Iterator[tuple[Path, int]]:
    """The configuration file of an origin, and the port that it names."""
    port = free_port()
    both = files.directory / "both.pem"
    both.write_bytes(files.server.certificate.read_bytes() + files.server.private_key.read_bytes())
    path = files.directory / name
    path.write_text(
        template.format(
            directory=files.directory,
            port=port,
            certificate=files.server.certificate,
            key=files.server.private_key,
            both=both,
            verify=verify,
            user=os.geteuid() or 65534,
        )
    )
    yield path, port
