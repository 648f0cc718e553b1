"""How many CPUs may be used: what affinity and the quotas of a tree of cgroups come to."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aop_proxy.processors import quotas, usable_cpus

ROOT = Path(__file__).parents[1]
V2 = "24 1 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
HYBRID = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
OTHERS = ["22 1 8:1 / / rw - ext4 /dev/sda1 rw", "36 31 0:33 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"]


def found(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> list[float]:
    """The quotas that are found where the kernel tells these things."""
    files = {"proc/self/cgroup": groups, "proc/self/mountinfo": "\n".join([*OTHERS, *mounts]), **files}
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")
    return list(quotas(str(root)))


def v1_limit(directory: str, quota: int, period: int = 100_000) -> dict[str, str]:
    return {f"{directory}/cpu.cfs_quota_us": str(quota), f"{directory}/cpu.cfs_period_us": str(period)}


def test_version_2_up_the_tree(tmp_path: Path) -> None:
    """Each group on the way up counts; `max` is no limit, nor is a group that says nothing."""
    limits = {
        "sys/fs/cgroup/a.slice/b.service/cpu.max": "max 100000",
        "sys/fs/cgroup/a.slice/cpu.max": "250000 100000",
        "sys/fs/cgroup/elsewhere/cpu.max": "1000 100000",
    }
    assert found(tmp_path, "0::/a.slice/b.service", [V2], limits) == [2.5]


def test_version_2_in_a_container(tmp_path: Path) -> None:
    """Where the group is the root of what can be seen, its limit stands there."""
    assert found(tmp_path, "0::/", [V2], {"sys/fs/cgroup/cpu.max": "50000 100000"}) == [0.5]


def test_version_1(tmp_path: Path) -> None:
    """The hierarchy that has the CPU controller counts, and only that; -1 is no limit."""
    groups = "5:cpuset:/x\n3:cpu,cpuacct:/a/b\n0::/x"
    limits = {
        **v1_limit("sys/fs/cgroup/cpu,cpuacct/a/b", 300_000),
        **v1_limit("sys/fs/cgroup/cpu,cpuacct/a", 100_000, 50_000),
        **v1_limit("sys/fs/cgroup/cpu,cpuacct", -1),
        **v1_limit("sys/fs/cgroup/cpuset/x", 1000),
    }
    assert found(tmp_path, groups, [V1.format(root="/"), HYBRID], limits) == [3, 2]


def test_version_1_in_a_container(tmp_path: Path) -> None:
    """The group's path is that of the host, of which only its own branch is mounted."""
    limits = v1_limit("sys/fs/cgroup/cpu,cpuacct", 150_000)
    assert found(tmp_path, "3:cpu,cpuacct:/docker/c0ffee", [V1.format(root="/docker/c0ffee")], limits) == [1.5]


@pytest.mark.parametrize("content", ["", "max", "1 0", "1 2 3", "-5 100000", "x y"])
def test_what_makes_no_sense_limits_nothing(tmp_path: Path, content: str) -> None:
    """Nor is it an error."""
    assert found(tmp_path, "0::/", [V2], {"sys/fs/cgroup/cpu.max": content}) == []


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    """Without /proc there is no limit."""
    assert list(quotas(str(tmp_path))) == []


def test_affinity_limits() -> None:
    """A process that is pinned to one CPU uses one."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= usable_cpus() <= len(before)


@contextlib.contextmanager
def cgroup(percent: int) -> Iterator[Path]:
    """A real group with a quota, where this machine lets us make one."""
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    group = (v1 if v1.is_dir() else v2) / f"aop-test-{os.getpid()}"
    try:
        group.mkdir()
        try:
            name, quota = ("cpu.cfs_quota_us", "{}") if v1.is_dir() else ("cpu.max", "{} 100000")
            (group / name).write_text(quota.format(percent * 1000))
            yield group
        finally:
            group.rmdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here ({error})")


@pytest.mark.parametrize("percent", [50, 100, 199])
def test_a_real_quota_limits(percent: int) -> None:
    """A process in a group that may use less than two CPUs uses one."""
    code = "from aop_proxy.processors import quotas, usable_cpus; print(usable_cpus(), min(quotas()))"
    with cgroup(percent) as group:
        command = ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh", sys.executable, "-c", code]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    if "cgroup.procs" in shown.stderr:
        pytest.skip(f"no process can be put into a cgroup here ({shown.stderr})")
    assert shown.stdout.split() == ["1", str(percent / 100)]
