"""Where a backend under `exec` is to listen; how both live and end, `promises` tells."""

import stat
from pathlib import Path

import pytest

from aop_proxy.companion import place
from aop_proxy.config import load_file
from aop_proxy.model import ConfigurationError
from aop_proxy.notation import upstream


def test_a_socket() -> None:
    """In a directory for nobody else, which goes at the end; everything else in the command stays as it is."""
    with place(["true", "--bind", "unix:{socket}", '{"json": {}}', "{other}"]) as found:
        path = str(found.address)
        assert found.command == ("true", "--bind", f"unix:{path}", '{"json": {}}', "{other}")
        assert upstream(found.upstream).path == path
        assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
    assert not Path(path).parent.exists()


def test_a_port() -> None:
    """A free one, on loopback, wherever the command names it."""
    with place(["true", "127.0.0.1:{port}", "{port}"]) as found:
        assert isinstance(found.address, tuple)
        host, port = found.address
        assert found.command == ("true", f"127.0.0.1:{port}", str(port))
        assert (host, upstream(found.upstream).port) == ("127.0.0.1", port)


@pytest.mark.parametrize("command", [[], ["true"], ["true", "{port}{socket}"], ["/nowhere/true", "{port}"]])
def test_no_place(command: list[str]) -> None:
    """A command that is not told where to listen, or is none, is a mistake of configuration."""
    with pytest.raises(ConfigurationError, match="COMMAND: "), place(command):
        pass


def test_sites_that_name_no_upstream(tmp_path: Path) -> None:
    """Get the command's; other mistakes of the file are named beside."""
    path = tmp_path / "proxy.yaml"
    path.write_text(
        "{listen: ['a:1'], sites: [{hosts: [a.b], certificate: c}, {certificate: c, upstream: 'http://b:2'}]}"
    )
    settings = load_file(str(path), "unix:/own")
    assert [site.upstream[0].url for site in settings.sites] == ["unix:/own", "http://b:2"]
    path.write_text("{listen: ['a:1'], sites: [{certificate: c, upstream: 'http://b:2'}], nonsense: 1}")
    with pytest.raises(ConfigurationError) as caught:
        load_file(str(path), "unix:/own")
    assert [problem.path for problem in caught.value.problems] == ["nonsense", "sites"]
