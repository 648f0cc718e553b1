"""Good, refused, slow and broken clients at the proxy for a long time, with a reload every few seconds.

Every good transfer is compared by its digest; every connection must have its record; in the end the descriptors and the
memory of every worker must be where they began. `scripts/soak` runs it; it ends with 0 only if all of that held.
"""

import argparse
import contextlib
import hashlib
import os
import random
import signal
import socket
import socketserver
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from actors import PATIENCE, Proxy, TlsClient, ask, ask_plainly, client_context
from certificates import REFUSED, Authority, CredentialFiles
from processes import open_descriptors, resident_kib

CLIENTS = 12
PAUSE = 0.01
"""Seconds between two connections of one client, so that other programs have some of the machine."""
RELOAD_EVERY = 3.0
SAMPLE_EVERY = 0.5
GROWTH_KIB = 4096
"""What a worker's memory may gain between the second and the last fifth of a run: its allocator's fragments."""
MAX_TRANSFER = 1 << 20
_HEADER = struct.Struct("!II")


# The backend: so many bytes up, their digest and so many bytes down, again and again.


class Backend(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that left in the middle is what we are here for."""


class Transfers(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while len(header := self.rfile.read(_HEADER.size)) == _HEADER.size:
            up, down = _HEADER.unpack(header)
            digest = hashlib.sha256(self.rfile.read(up)).digest()
            self.wfile.write(digest + hashlib.shake_128(digest).digest(down))


def transfer(client: TlsClient, chance: random.Random) -> None:
    """One transfer, whole and unaltered in both directions."""
    size, down = (min(int(chance.paretovariate(0.5)), MAX_TRANSFER) for _ in range(2))
    up = chance.randbytes(size)
    client.send(_HEADER.pack(len(up), down) + up)
    digest = client.receive_exactly(32)
    if digest != hashlib.sha256(up).digest():
        raise AssertionError("an upload was altered")
    if client.receive_exactly(down) != hashlib.shake_128(digest).digest(down):
        raise AssertionError("a download was altered")


# The clients


@dataclass
class Visitors:
    """Everybody who comes, and what became of them."""

    address: tuple[str, int]
    good: CredentialFiles
    bad: list[CredentialFiles]
    over: threading.Event = field(default_factory=threading.Event)
    came: Counter[str] = field(default_factory=Counter)
    transfers: int = 0
    faults: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def visit(self, seed: int) -> None:
        """One after another until it is over."""
        chance = random.Random(seed)
        kinds: dict[Callable[[random.Random], None], int] = {
            self.one_transfer: 6, self.kept: 3, self.refused: 3, self.plain_http: 1, self.slow: 1, self.garbage: 1,
            self.reset_in_handshake: 1, self.reset_in_transfer: 1, self.never_reads: 1, self.silent: 1,
        }  # fmt: skip
        while not self.over.wait(PAUSE):
            kind = chance.choices(list(kinds), list(kinds.values()))[0]
            try:
                kind(chance)
            except Exception as error:
                self.faults.append(f"{kind.__name__}: {error!r}")
            with self._lock:
                self.came[kind.__name__] += 1

    def _connect(self, *, one_byte_at_a_time: bool = False) -> TlsClient:
        return TlsClient(self.address, client_context(self.good), one_byte_at_a_time=one_byte_at_a_time)

    def _transfer(self, client: TlsClient, chance: random.Random) -> None:
        transfer(client, chance)
        with self._lock:
            self.transfers += 1

    def one_transfer(self, chance: random.Random) -> None:
        with self._connect() as client:
            client.handshake()
            self._transfer(client, chance)
            client.close_notify()

    def kept(self, chance: random.Random) -> None:
        """A connection that outlives reloads."""
        with self._connect() as client:
            client.handshake()
            for _ in range(chance.randrange(2, 20)):
                self._transfer(client, chance)
                self.over.wait(chance.random() / 4)

    def slow(self, chance: random.Random) -> None:
        with self._connect(one_byte_at_a_time=True) as client:
            client.handshake()
            self._transfer(client, random.Random(0))

    def refused(self, chance: random.Random) -> None:
        credentials = chance.choice([None, *self.bad])
        status = ask(self.address, client_context(credentials)).status
        if status != 400:
            raise AssertionError(f"a stranger got {status}")

    def plain_http(self, chance: random.Random) -> None:
        if ask_plainly(self.address, b"GET / HTTP/1.1\r\n\r\n").status != 400:
            raise AssertionError("plain HTTP got no page")

    def garbage(self, chance: random.Random) -> None:
        ask_plainly(self.address, chance.choice([b"\x00", b"\x16\x03\x01"]) + chance.randbytes(500))

    def reset_in_handshake(self, chance: random.Random) -> None:
        sock = socket.create_connection(self.address, PATIENCE)
        sock.sendall(b"\x16\x03\x01\x02\x00")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    def reset_in_transfer(self, chance: random.Random) -> None:
        client = self._connect()
        client.handshake()
        client.send(_HEADER.pack(MAX_TRANSFER, MAX_TRANSFER) + bytes(1000))
        client.reset()

    def never_reads(self, chance: random.Random) -> None:
        """A client that asks for much, reads nothing, and goes."""
        with self._connect() as client:
            client.handshake()
            client.send(_HEADER.pack(0, 1 << 24))
            self.over.wait(chance.random())

    def silent(self, chance: random.Random) -> None:
        with socket.create_connection(self.address, PATIENCE):
            self.over.wait(chance.random())


# What is measured


@dataclass
class Samples:
    """Of one worker, in time: seconds, descriptors, KiB."""

    at: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def take(self, pid: int, now: float) -> None:
        self.at.append(now)
        self.descriptors.append(open_descriptors(pid))
        self.memory.append(resident_kib(pid))

    @property
    def settled(self) -> slice:
        """All but the first fifth, in which caches fill and buffers grow."""
        return slice(len(self.at) // 5, None)

    @property
    def slope(self) -> float:
        """KiB per minute."""
        return 60 * linear_regression(self.at[self.settled], self.memory[self.settled]).slope

    @property
    def growth(self) -> float:
        """KiB from the second fifth to the last."""
        fifth = max(len(self.memory) // 5, 1)
        return median(self.memory[-fifth:]) - median(self.memory[fifth : 2 * fifth])


def draw(samples: Mapping[int, Samples], picture: Path) -> None:
    """Descriptors and memory of every worker over time."""
    from matplotlib.figure import Figure  # takes a second to load, and only a picture needs it

    figure = Figure(figsize=(9, 5), layout="constrained")
    descriptors, memory = figure.subplots(2, sharex=True)
    for number, (pid, taken) in enumerate(samples.items(), 1):
        label = f"worker {number}: {taken.slope:+.1f} KiB/min"
        descriptors.plot(taken.at, taken.descriptors, linewidth=0.8)
        memory.plot(taken.at, [kib / 1024 for kib in taken.memory], linewidth=0.8, label=label, gid=str(pid))
    descriptors.set_ylabel("descriptors")
    memory.set_ylabel("memory, MiB")
    memory.set_xlabel("seconds")
    memory.set_ylim(bottom=0)
    memory.legend(frameon=False)
    figure.savefig(picture)


class Soak:
    """One run of it."""

    def __init__(self, seconds: float, seed: int) -> None:
        self._seconds = seconds
        self._seed = seed
        self._scratch = tempfile.TemporaryDirectory(prefix="aop-soak-")
        self._ended: Counter[str] = Counter()
        self._reloads = 0
        self.samples: dict[int, Samples] = {}

    def run(self) -> list[str]:
        """Everything that was not as it must be."""
        directory = Path(self._scratch.name)
        authority = Authority()
        servers = [Authority("Soak").issue_server("origin.example").write(directory, f"server{n}") for n in range(2)]
        bad = [REFUSED[case](authority).write(directory, case) for case in ("self_signed", "expired", "unknown_ca")]
        good = authority.issue().write(directory, "good")
        ca = authority.write(directory / "ca.pem")
        with self._scratch, Backend(("127.0.0.1", 0), Transfers) as backend:
            threading.Thread(target=backend.serve_forever, daemon=True).start()
            configurations = [_configuration(server, ca, backend.server_address[1]) for server in servers]
            with Proxy(configurations[0]) as proxy:
                problems = self._visit(proxy, Visitors(proxy.address, good, bad), configurations)
                proxy.terminate()
                if proxy.exit_code != 0:
                    problems.append(f"it ended with {proxy.exit_code}")
            backend.shutdown()
        return problems

    def _visit(self, proxy: Proxy, visitors: Visitors, configurations: list[dict[str, Any]]) -> list[str]:
        pids = proxy.worker_pids
        self.samples = {pid: Samples() for pid in pids}
        self._settle(proxy, visitors, pids)
        before = {pid: open_descriptors(pid) for pid in pids}
        began = time.monotonic()
        threads = [threading.Thread(target=visitors.visit, args=(self._seed + n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        next_reload = began
        while (now := time.monotonic()) < began + self._seconds:
            for pid, samples in self.samples.items():
                samples.take(pid, now - began)
            if now >= next_reload:
                self._reload(proxy, configurations)
                next_reload = now + RELOAD_EVERY
            visitors.over.wait(SAMPLE_EVERY)
        visitors.over.set()
        for thread in threads:
            thread.join(3 * PATIENCE)
        return self._judge(proxy, visitors, before)

    def _settle(self, proxy: Proxy, visitors: Visitors, pids: list[int]) -> None:
        """Every worker has served somebody: what it opens once is open."""
        served: set[int] = set()
        while len(served) < len(pids):
            visitors.one_transfer(random.Random(0))
            visitors.came["one_transfer"] += 1
            proxy.wait_for("connection", count=visitors.came.total())
            served = {record["worker"] for record in proxy.connection_records()}

    def _reload(self, proxy: Proxy, configurations: list[dict[str, Any]]) -> None:
        self._reloads += 1
        proxy.write_config(configurations[self._reloads % 2])
        proxy.signal(signal.SIGHUP)
        proxy.wait_for("reloaded", timeout=3 * PATIENCE)
        self._count(proxy)

    def _count(self, proxy: Proxy) -> None:
        """What the log says, which is then forgotten: a long run has long logs."""
        events = proxy.log.events
        read = len(events)
        self._ended.update(event["reason"] for event in events[:read] if event["event"] == "connection")
        self._ended.update(f"({event['event']})" for event in events[:read] if event["level"] == "error")
        del events[:read]

    def _judge(self, proxy: Proxy, visitors: Visitors, before: dict[int, int]) -> list[str]:
        came = visitors.came.total()
        deadline = time.monotonic() + PATIENCE
        while self._told() < came and time.monotonic() < deadline:
            self._count(proxy)
            time.sleep(0.05)
        after = {pid: open_descriptors(pid) for pid in before}
        problems = visitors.faults[:20]
        if self._told() != came:
            problems.append(f"{came} connections have {self._told()} records")
        problems += [f"event {word}" for word in self._ended if word.startswith("(")]
        problems += ["internal_error"] if self._ended["internal_error"] else []
        for pid, samples in self.samples.items():
            if after[pid] != before[pid]:
                problems.append(f"worker {pid} had {before[pid]} descriptors, and has {after[pid]}")
            if samples.growth > GROWTH_KIB:
                problems.append(f"worker {pid} has grown by {samples.growth:.0f} KiB")
        print(
            f"seed {self._seed}: {came} connections, {visitors.transfers} transfers verified, {self._reloads} reloads"
        )
        print("came: ", dict(visitors.came.most_common()))
        print("ended:", dict(self._ended.most_common()))
        for pid, samples in self.samples.items():
            print(
                f"worker {pid}: descriptors {before[pid]} -> {after[pid]}, at most {max(samples.descriptors)}; memory"
                f" {samples.memory[0]} -> {samples.memory[-1]} KiB, {samples.slope:+.1f} KiB/min"
            )
        return problems

    def _told(self) -> int:
        return sum(count for word, count in self._ended.items() if not word.startswith("("))


def _configuration(server: CredentialFiles, ca: Path, port: int) -> dict[str, Any]:
    return {
        "workers": 2,
        "log": {"format": "json", "level": "debug", "refusals_per_second": 999_999},
        "timeouts": {"linger": "1s"},
        "sites": [
            {
                "certificate": str(server.certificate),
                "private_key": str(server.private_key),
                "clients": {"ca": [str(ca)]},
                "upstream": f"http://127.0.0.1:{port}",
            }
        ],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--picture", type=Path, help="draw descriptors and memory over time into this SVG")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(31))
    arguments = parser.parse_args()
    soak = Soak(arguments.seconds, arguments.seed)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):  # a test's log
        problems = soak.run()
    if arguments.picture:
        draw(soak.samples, arguments.picture)
    print("\n".join(problems) or "nothing was lost, and nothing is left")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
