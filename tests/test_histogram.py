"""Durations in buckets."""

from aop_proxy.histogram import BUCKETS, Histogram


def test_buckets() -> None:
    """A bound belongs to its bucket; what is longer than all is in the last."""
    histogram = Histogram()
    for seconds in (0.0, BUCKETS[0], BUCKETS[0] + 1e-9, BUCKETS[-1], BUCKETS[-1] + 1e-9):
        histogram.observe(seconds)
    assert histogram.counts == [2, 1] + [0] * (len(BUCKETS) - 3) + [1, 1]


def test_totals() -> None:
    """What a report tells of it: only buckets that hold something, under a label where there is one."""
    histogram = Histogram()
    histogram.observe(0.003)
    assert histogram.totals() == {"3": 1, "seconds": 0.003}
    assert histogram.totals("http://a b") == {"3 http://a b": 1, "seconds http://a b": 0.003}
