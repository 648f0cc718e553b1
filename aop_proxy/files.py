"""Reading files, bounded: one file, or every file that a configuration names.

In: paths. Out: content, or a problem that says what to do. Must not know what the content means.
"""

import os
import stat
from collections.abc import Iterator
from importlib import resources

from aop_proxy.model import CLOUDFLARE, SYSTEM, Bundle, ConfigurationError, Problem, Settings, UpstreamTls
from aop_proxy.notation import printable

LARGEST_FILE = 1024 * 1024
_SYSTEM_CAS = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Red Hat
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # macOS, BSD
)
"""Where systems keep the CAs that they trust as one file."""


def read_file(path: str) -> bytes:
    """The content of a regular file; ValueError with a sentence when it cannot be used."""
    name = f'"{printable(path, longest=256)}"'
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError(f"{name} is not a regular file: copy its content into one")
            content = file.read(LARGEST_FILE + 1)
    except IsADirectoryError:
        raise ValueError(f"{name} is a directory: name a file in it") from None
    except FileNotFoundError:
        raise ValueError(f"{name} does not exist: correct the path or put the file there") from None
    except PermissionError:
        raise ValueError(f"{name} may not be read by user {os.geteuid()}: change its owner or mode") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror}): correct the path or the file") from None
    if not content:
        raise ValueError(f"{name} is empty: put the content there or name another file")
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{name} is larger than {LARGEST_FILE} bytes: name a smaller file")
    return content


def _open_at_once(path: str, flags: int) -> int:
    """Without O_NONBLOCK a FIFO that nobody writes to would hold a start or a reload for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_bundle(settings: Settings) -> Bundle:
    """Read every file that the settings name; ConfigurationError with each that cannot be used."""
    bundle, problems = read_what_can_be_read(settings)
    if problems:
        raise ConfigurationError(*problems)
    return bundle


def read_what_can_be_read(settings: Settings) -> tuple[Bundle, list[Problem]]:
    """Read every file that the settings name; a bundle of those that can be, and why the others cannot."""
    files: dict[str, bytes] = {}
    problems = []
    for key, path in named_files(settings):
        try:
            files[path] = files.get(path) or _BUILT_IN.get(path, read_file)(path)
        except ValueError as error:
            problems.append(Problem(key, str(error)))
    return Bundle(settings, files), problems


def named_files(settings: Settings) -> Iterator[tuple[str, str]]:
    """Each file with the key that names it, once per key; a private key inside the certificate file is that file."""
    for index, site in enumerate(settings.sites):
        at = f"sites[{index}]"
        yield f"{at}.certificate", site.certificate
        if site.private_key != site.certificate:
            yield f"{at}.private_key", site.private_key
        if site.private_key_password_file is not None:
            yield f"{at}.private_key_password_file", site.private_key_password_file
        if site.http.secret_file is not None:
            yield f"{at}.http.secret_file", site.http.secret_file
        for number, path in enumerate(site.clients.ca):
            yield f"{at}.clients.ca[{number}]", path
        for number, path in enumerate(site.clients.crl):
            yield f"{at}.clients.crl[{number}]", path
        for number, upstream in enumerate(site.upstream):
            if upstream.tls is not None:
                yield from _files_of_tls(f"{at}.upstream[{number}]", upstream.tls)


def _files_of_tls(at: str, tls: UpstreamTls) -> Iterator[tuple[str, str]]:
    yield f"{at}.ca", tls.ca
    if tls.certificate is not None:
        yield f"{at}.certificate", tls.certificate
    if tls.private_key is not None and tls.private_key != tls.certificate:
        yield f"{at}.private_key", tls.private_key


def _cloudflare(_name: str) -> bytes:
    return resources.files("aop_proxy").joinpath("certs", "cloudflare_origin_pull_ca.pem").read_bytes()


def _system(_name: str) -> bytes:
    """What SSL_CERT_FILE names, as for any program that uses OpenSSL, or what the system trusts."""
    named = os.environ.get("SSL_CERT_FILE")
    for path in (named,) if named else _SYSTEM_CAS:
        if named or os.path.exists(path):
            return read_file(path)
    raise ValueError(f"this machine has no file of trusted CAs ({', '.join(_SYSTEM_CAS)}): name one")


_BUILT_IN = {CLOUDFLARE: _cloudflare, SYSTEM: _system}
"""Names that stand for content that no file of the configuration holds."""
