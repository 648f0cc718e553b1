"""Where the works happen: cores, keys, backend, and the contenders that have been started and answer.

The contender has the first core for itself; the load, this process and the backend share the second. Two workers get a
third core if the machine has one, else they share the first.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks import backend, contenders, keys, load
from benchmarks.contenders import Contender, Running, Setting

START_SECONDS = 10.0


@dataclass(frozen=True)
class Counts:
    """How much is done in one sample of each work."""

    rounds: int
    memory_rounds: int
    warm_up: int
    connections: int
    requests: int
    bulk_mib: int
    transfers: int
    idle_connections: int
    idle_transfers: int
    refusals: int
    latency_seconds: float
    shared_connections: int
    fair_requests: int


PRESETS = {
    "full": Counts(
        rounds=5,
        memory_rounds=2,
        warm_up=300,
        connections=800,
        requests=30000,
        bulk_mib=100,
        transfers=3,
        idle_connections=200,
        idle_transfers=6,
        refusals=800,
        latency_seconds=1.5,
        shared_connections=400,
        fair_requests=6000,
    ),
    "quick": Counts(
        rounds=3,
        memory_rounds=1,
        warm_up=50,
        connections=150,
        requests=5000,
        bulk_mib=100,
        transfers=1,
        idle_connections=50,
        idle_transfers=2,
        refusals=150,
        latency_seconds=0.3,
        shared_connections=100,
        fair_requests=1500,
    ),
    "tiny": Counts(
        rounds=1,
        memory_rounds=1,
        warm_up=10,
        connections=20,
        requests=200,
        bulk_mib=4,
        transfers=1,
        idle_connections=10,
        idle_transfers=1,
        refusals=20,
        latency_seconds=0.1,
        shared_connections=10,
        fair_requests=100,
    ),
}


class Lab:
    """One run's equipment. Contenders are started when a work first asks for them and run until `clear`."""

    def __init__(self, directory: Path, counts: Counts, cores: list[int]) -> None:
        self.directory = directory
        self.counts = counts
        self.contender_core, self.load_core, *self.more_cores = cores
        self.keys = keys.make_keys(directory)
        self.known, self.stranger = load.contexts(self.keys)
        self.bulk_bytes = counts.bulk_mib << 20
        self._everything = contextlib.ExitStack()
        self._started = contextlib.ExitStack()
        self._python: dict[str, int] = {}
        self._running: dict[tuple[str, str, int], Running] = {}
        self._starts = 0

    def __enter__(self) -> Self:
        os.sched_setaffinity(0, {self.load_core})  # what this process starts inherits it
        self.backend = self._everything.enter_context(backend.serve(self.directory, self.bulk_bytes))
        self._everything.callback(self.clear)
        return self

    def __exit__(self, *_: object) -> None:
        self._everything.close()

    def clear(self) -> None:
        """Stop every contender."""
        self._started.close()
        self._running.clear()

    def is_running(self, contender: Contender) -> bool:
        """Whether it has been started since the last `clear`."""
        return any(name == contender.name for name, _, _ in self._running)

    def running(self, contender: Contender, upstream: str = "files", workers: int = 1) -> Running:
        """The contender in front of that part of the backend, warmed up; the same one until `clear`."""
        key = (contender.name, upstream, workers)
        if key not in self._running:
            self._running[key] = self._started.enter_context(self.fresh(contender, upstream, workers))
            if upstream != "sink":
                load.run_ab(self._running[key].port, self.counts.warm_up, 8, self.keys)
        return self._running[key]

    @contextlib.contextmanager
    def fresh(self, contender: Contender, upstream: str = "files", workers: int = 1) -> Iterator[Running]:
        """A newly started contender that has answered one request."""
        self._starts += 1
        setting = Setting(
            directory=self.directory / f"{contender.name}-{self._starts}",
            listen=backend.free_port(),
            upstream=self._port(upstream),
            keys=self.keys,
            workers=workers,
        )
        cores = {self.contender_core, *self.more_cores[: workers - 1]}
        with contenders.started(contender, setting, cores) as running:
            self._wait_until_it_answers(running)
            yield running

    def _port(self, upstream: str) -> int:
        if upstream not in backend.PYTHON:
            return {"files": self.backend.files, "closing": self.backend.closing, "sink": self.backend.sink}[upstream]
        if upstream not in self._python:
            self._python[upstream] = self._everything.enter_context(backend.serve_python(upstream))
        return self._python[upstream]

    def _wait_until_it_answers(self, running: Running) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with load.Client(running.port, self.known) as client:
                    status, _ = client.get("/small")
                if status == 200:
                    return
                problem = f"status {status}"
            except (OSError, load.LoadError) as error:
                problem = str(error)
            if running.ended() or time.monotonic() > deadline:
                raise load.LoadError(f"{running.contender.title} did not start: {problem}\n{running.log_tail()}")
            time.sleep(0.02)
