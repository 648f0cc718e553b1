"""How many CPUs this process may use: its affinity, cut by the quota of every cgroup that it is in.

In: what the kernel tells under /proc and /sys. Out: a number, at least 1. What cannot be read limits nothing.
"""

import contextlib
import os
import re
from collections.abc import Iterator

_MOUNT = re.compile(r"\S+ \S+ \S+ (?P<root>\S+) (?P<point>\S+) .*? - (?P<kind>cgroup2?) \S+ (?P<options>\S+)")
"""A line of /proc/PID/mountinfo (proc_pid_mountinfo(5)) about a cgroup hierarchy."""


def usable_cpus() -> int:
    """CPUs this process may run on, as many as its quota pays for: 2.5 CPUs keep two workers busy."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([cpus, *quotas()])))


def quotas(root: str = "/") -> Iterator[float]:
    """CPUs that each cgroup of this process may use at a time, where it has a limit: version 2, and version 1."""
    groups = dict(line.split(":", 2)[1:] for line in _lines(f"{root}/proc/self/cgroup"))
    own = {controller: path for controllers, path in groups.items() for controller in controllers.split(",")}
    for mount in filter(None, map(_MOUNT.fullmatch, _lines(f"{root}/proc/self/mountinfo"))):
        is_v2 = mount["kind"] == "cgroup2"
        if not is_v2 and "cpu" not in mount["options"].split(","):
            continue
        quota = _quota_v2 if is_v2 else _quota_v1
        for directory in _up_the_tree(own.get("" if is_v2 else "cpu", "/"), mount["root"]):
            # A limit that cannot be read, or that is `max` or -1, is none.
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                if (found := quota(f"{root}{mount['point']}{directory}")) > 0:
                    yield found


def _up_the_tree(path: str, mounted: str) -> Iterator[str]:
    """Every directory from a cgroup's up to where its hierarchy is mounted, relative to there."""
    inside = path.removeprefix(mounted.rstrip("/"))
    while inside.strip("/"):
        yield inside
        inside = inside.rpartition("/")[0]
    yield ""


def _quota_v2(directory: str) -> float:
    quota, period = _words(f"{directory}/cpu.max")
    return int(quota) / int(period)


def _quota_v1(directory: str) -> float:
    (quota,), (period,) = _words(f"{directory}/cpu.cfs_quota_us"), _words(f"{directory}/cpu.cfs_period_us")
    return int(quota) / int(period)


def _words(path: str) -> list[str]:
    with open(path, encoding="ascii") as file:
        return file.read().split()


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().splitlines()
    except OSError:
        return []
