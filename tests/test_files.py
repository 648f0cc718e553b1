"""Reading the files that a configuration names."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aop_proxy.files import LARGEST_FILE, read_bundle, read_file
from aop_proxy.model import Clients, ConfigurationError, Listen, Settings, Site, Upstream


def settings(*sites: Site) -> Settings:
    return Settings((Listen("127.0.0.1", 0),), sites)


def site(certificate: Path, **more: object) -> Site:
    names: dict[str, object] = {"private_key": str(certificate)} | more
    return Site(str(certificate), upstream=(Upstream("http://a:80", "a", 80),), **names)  # type: ignore[arg-type]


def test_reads_every_file_once(tmp_path: Path) -> None:
    """The bundle has every file by the name the settings use, and Cloudflare's CA by its own."""
    for name in ("certificate", "key", "password", "ca", "crl"):
        (tmp_path / name).write_text(name)
    clients = Clients(("cloudflare", str(tmp_path / "ca")), (str(tmp_path / "crl"),))
    key, password = str(tmp_path / "key"), str(tmp_path / "password")
    one = settings(site(tmp_path / "certificate", private_key=key, private_key_password_file=password, clients=clients))
    bundle = read_bundle(one)
    packaged = bundle.files["cloudflare"]
    expected = {str(tmp_path / name): name.encode() for name in ("certificate", "key", "password", "ca", "crl")}
    assert expected | {"cloudflare": packaged} == bundle.files
    assert packaged.startswith(b"-----BEGIN CERTIFICATE-----")
    assert one == bundle.settings


def test_reports_every_file_at_once(tmp_path: Path) -> None:
    """Each file that cannot be used is named by its key, also when two keys name it."""
    here, gone = tmp_path / "here", tmp_path / "gone"
    here.write_text("content")
    clients = Clients((str(gone), "cloudflare", str(tmp_path)))
    with pytest.raises(ConfigurationError) as caught:
        read_bundle(settings(site(gone), site(here, private_key=str(gone), clients=clients)))
    missing = f'"{gone}" does not exist: correct the path or put the file there'
    expected = [
        f"sites[0].certificate: {missing}",
        f"sites[1].private_key: {missing}",
        f"sites[1].clients.ca[0]: {missing}",
        f'sites[1].clients.ca[2]: "{tmp_path}" is a directory: name a file in it',
    ]
    assert expected == [str(problem) for problem in caught.value.problems]


def make_nothing(path: Path) -> None:
    path.touch()


def make_too_much(path: Path) -> None:
    path.write_bytes(b"a" * (LARGEST_FILE + 1))


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (make_nothing, "is empty: put the content there or name another file"),
        (make_too_much, "is larger than 1048576 bytes: name a smaller file"),
        (make_fifo, "is not a regular file: copy its content into one"),
        (make_loop, "cannot be read (Too many levels of symbolic links): correct the path or the file"),
    ],
)
def test_says_why_a_file_cannot_be_used(make: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    """A file that is there but no use gets a sentence that says so, at once: a FIFO holds nobody up."""
    make(tmp_path / "file")
    with pytest.raises(ValueError) as caught:
        read_file(str(tmp_path / "file"))
    assert f'"{tmp_path}/file" {sentence}' == str(caught.value)


@pytest.fixture
def unreadable(tmp_path: Path) -> Iterator[Path]:
    """A file that nobody may read; root may read every file, so the test stops being root for a while."""
    path = tmp_path / "file"
    path.touch(mode=0)
    user = os.geteuid()
    os.seteuid(user or 65534)
    yield path
    os.seteuid(user)


def test_says_that_a_file_may_not_be_read(unreadable: Path) -> None:
    """Missing permission is told apart from a missing file."""
    with pytest.raises(ValueError) as caught:
        read_file(str(unreadable))
    assert f'"{unreadable}" may not be read by user {os.geteuid()}: change its owner or mode' == str(caught.value)
