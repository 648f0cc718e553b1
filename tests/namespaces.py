"""A network of a test's own: what is routed, bound or lost in it is seen nowhere else. It takes root and iproute2."""

import contextlib
import ctypes
import itertools
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import pytest

from actors import PATIENCE, require_peer

P = ParamSpec("P")
T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


class Namespace:
    """A network namespace of Linux."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.launcher = ("ip", "netns", "exec", name)

    def run(self, *commands: str) -> None:
        """Run commands of the shell in it."""
        for command in commands:
            subprocess.run([*self.launcher, "sh", "-c", command], check=True, timeout=PATIENCE)

    def call(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call a function in a thread that is in it; sockets made there stay in it, wherever they are used then."""

        def enter() -> T:
            with open(f"/run/netns/{self.name}", "rb") as place:
                assert ctypes.CDLL(None, use_errno=True).setns(place.fileno(), _CLONE_NEWNET) == 0
            return function(*arguments, **named)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(enter).result(4 * PATIENCE)


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """A new one with its loopback up, or the end of the test where none can be made."""
    require_peer("ip")
    if os.getuid() != 0:
        pytest.skip("only root may make network namespaces")
    name = f"aop-{os.getpid()}-{next(_numbers)}"
    if subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, timeout=PATIENCE).returncode:
        pytest.skip("no network namespaces can be made here")
    try:
        made = Namespace(name)
        made.run("ip link set lo up")
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True, timeout=PATIENCE)


def join(one: Namespace, other: Namespace, *networks: str) -> None:
    """Lay a cable between two; in each network, written as `192.0.2.{}/24`, they are 1 and 2."""
    ends = [f"v{next(_numbers)}", f"v{next(_numbers)}"]
    command = f"ip link add {ends[0]} netns {one.name} type veth peer name {ends[1]} netns {other.name}"
    subprocess.run(shlex.split(command), check=True, timeout=PATIENCE)
    for number, (space, end) in enumerate(zip((one, other), ends, strict=True), 1):
        nodad = ["nodad" if ":" in network else "" for network in networks]
        addresses = [network.format(number) for network in networks]
        space.run(*(f"ip addr add {address} dev {end} {flag}" for address, flag in zip(addresses, nodad, strict=True)))
        space.run(f"ip link set {end} up")
