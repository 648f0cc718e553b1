"""Three hosts on one machine, each a network namespace of its own: client - proxy - backend, and lines that fail.

Needs root, `ip` and `nft`. A host runs programs (`launcher`) and calls (`call`), whose sockets and threads are its own.
"""

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import pytest

from actors import PATIENCE, require_peer

P = ParamSpec("P")
T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
# Addresses for documentation (RFC 5737): on no other network can they be met.
CLIENT, PROXY_TO_CLIENT = "192.0.2.1", "192.0.2.2"
PROXY_TO_BACKEND, BACKEND = "198.51.100.1", "198.51.100.2"


def _run(*command: str, text: str | None = None) -> None:
    subprocess.run(command, input=text, text=True, check=True, capture_output=True, timeout=PATIENCE)


class Host:
    """One of them."""

    def __init__(self, name: str) -> None:
        self.name = f"aop-{os.getpid()}-{name}"
        _run("ip", "netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def launcher(self) -> list[str]:
        """What a command must begin with to run here."""
        return ["ip", "netns", "exec", self.name]

    def run(self, *command: str, text: str | None = None) -> None:
        _run(*self.launcher, *command, text=text)

    def call(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call a function in a thread that is here, as are those that it starts."""
        results: list[T] = []
        errors: list[BaseException] = []

        def enter_and_call() -> None:
            try:
                with open(f"/run/netns/{self.name}", "rb") as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                results.append(function(*arguments, **named))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=enter_and_call)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def remove(self) -> None:
        _run("ip", "netns", "del", self.name)


@dataclass(frozen=True)
class Line:
    """A line between the proxy's host and another, seen from the proxy's end."""

    host: Host
    device: str

    @contextlib.contextmanager
    def _rule(self, rule: str) -> Iterator[None]:
        """Something that befalls every packet, in both directions, for the length of the block."""
        ways = (("input", "iifname"), ("output", "oifname"))
        chains = "".join(
            f"chain {way} {{ type filter hook {way} priority 0; {device} {self.device} {rule}; }}\n"
            for way, device in ways
        )
        table = f"inet on_{self.device}"
        self.host.run("nft", "-f", "-", text=f"table {table} {{\n{chains}}}\n")
        try:
            yield
        finally:
            self.host.run("nft", "delete", "table", *table.split())

    def cut(self) -> contextlib.AbstractContextManager[None]:
        """Nothing comes through, and nobody is told."""
        return self._rule("drop")

    def losing(self, one_in: int) -> contextlib.AbstractContextManager[None]:
        """Every so-many-th packet of each direction is lost: no chance in it, so that a test is the same every time."""
        return self._rule(f"numgen inc mod {one_in} 0 drop")


@dataclass(frozen=True)
class Network:
    """The three, and their two lines."""

    client: Host
    proxy: Host
    backend: Host
    to_client: Line
    to_backend: Line


def connect(one: Host, other: Host, device: str, address: str, other_address: str) -> Line:
    _run("ip", "link", "add", device, "netns", one.name, "type", "veth", "peer", device, "netns", other.name)
    for host, own in ((one, address), (other, other_address)):
        host.run("ip", "address", "add", f"{own}/30", "dev", device)
        host.run("ip", "link", "set", device, "up")
    return Line(one, device)


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[list[Host]]:
    """Make them, and take them away; the test is skipped where that is not possible."""
    for peer in ("ip", "nft"):
        require_peer(peer)
    if os.geteuid() != 0:
        pytest.skip("only root makes network namespaces")
    with contextlib.ExitStack() as stack:
        made = []
        for name in names:
            try:
                made.append(Host(name))
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr}")
            stack.callback(made[-1].remove)
        yield made


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """The three, joined."""
    with hosts("client", "proxy", "backend") as (client, proxy, backend):
        to_client = connect(proxy, client, "client", PROXY_TO_CLIENT, CLIENT)
        to_backend = connect(proxy, backend, "backend", PROXY_TO_BACKEND, BACKEND)
        yield Network(client, proxy, backend, to_client, to_backend)
