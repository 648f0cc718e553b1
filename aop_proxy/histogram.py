"""How many took how long, in buckets that never change. Must not know what took it."""

from bisect import bisect_left

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: Prometheus's own steps, from a dial on loopback to `timeouts.handshake`."""


class Histogram:
    """How many took how long."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        """Nothing yet."""
        self.counts = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds

    def totals(self, label: str = "") -> dict[str, float]:
        """Of each bucket by its number, and the seconds of all."""
        behind = f" {label}" if label else ""
        totals: dict[str, float] = {f"{index}{behind}": count for index, count in enumerate(self.counts) if count}
        return totals | {f"seconds{behind}": self.seconds}
