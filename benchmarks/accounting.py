"""What a contender has cost: CPU time, memory and connections of a process and all its descendants.

CPU time is read from each process's CPU clock (`clock_gettime` on another process's clock id). It counts what the
scheduler counted, in nanoseconds, for all threads, ended ones too, needs no privilege and no cgroup. The alternatives
are worse: /proc/PID/stat rounds to 10 ms, /proc/PID/schedstat forgets ended threads, cpu.stat wants a delegated cgroup.
Processes that have ended stand in their parent's cutime and cstime (10 ms each, and none ends in a normal run).
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
CPUCLOCK_SCHED = 2  # include/linux/posix-timers_types.h: the clock id of a process is (~pid << 3) | CPUCLOCK_SCHED
ESTABLISHED = "01"  # include/net/tcp_states.h, as /proc/net/tcp prints it


def family(root: int) -> list[int]:
    """`root` and its living descendants."""
    children: dict[int, list[int]] = {}
    for pid, fields in _all_stats():
        children.setdefault(int(fields[1]), []).append(pid)
    found = [root]
    for pid in found:  # grows while it is walked: breadth first
        found += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """User and system time of the whole family since it was started."""
    total = 0.0
    for pid in family(root):
        try:
            total += time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED)
            fields = _stat(pid)
        except (OSError, IndexError):  # it ended between two of these lines: its parent's cutime has it the next time
            continue
        total += (int(fields[13]) + int(fields[14])) / TICKS_PER_SECOND
    return total


def settled_cpu_seconds(root: int, quiet: float = 0.02, deadline: float = 1.0) -> float:
    """`cpu_seconds` once the family has done nothing for `quiet` seconds: closing goes on after the last answer."""
    give_up = time.monotonic() + deadline
    before = cpu_seconds(root)
    while True:
        time.sleep(quiet)
        now = cpu_seconds(root)
        if now - before < 0.0005 or time.monotonic() > give_up:  # what a runtime's own timers cost in that time
            return now
        before = now


def memory_kib(root: int, *, own: bool = False) -> float:
    """Proportional set size: private memory, and of shared memory each process's part; `own` leaves out mapped files.

    What a process maps with others weighs less when one of them starts: differences are to be taken of its own only.
    A worker that made itself undumpable is unreadable to any user but root; its anonymous memory stands in.
    """
    wanted: tuple[str, ...] = ("Pss_Anon:", "Pss_Shmem:") if own else ("Pss:",)
    total = 0
    for pid in family(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except PermissionError:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
        else:
            total += sum(int(line.split()[1]) for line in lines if line.startswith(wanted))
    return float(total)


def connections_by_process(root: int, port: int) -> list[int]:
    """How many accepted connections on `port` each process of the family holds, those with none left out.

    Nothing if that cannot be seen: an undumpable worker's descriptors are for root only.
    """
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == ESTABLISHED and int(fields[1].rpartition(":")[2], 16) == port:
            inodes.add(f"socket:[{fields[9]}]")
    try:
        counts = [sum(link in inodes for link in _links(pid)) for pid in family(root)]
    except PermissionError:
        return []
    return [count for count in counts if count]


def _links(pid: int) -> Iterator[str]:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            yield os.readlink(descriptor)
        except FileNotFoundError:  # closed since it was listed
            continue


def _all_stats() -> Iterator[tuple[int, list[str]]]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                yield int(entry), _stat(int(entry))
            except OSError:  # it ended since it was listed
                continue


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat that follow the command's name: state, parent and so on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
