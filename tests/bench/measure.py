"""What the operating system says a process tree used: CPU seconds and memory (Linux's /proc).

Owns nothing and has no lock; every function reads /proc afresh. A tree is the root process, all its
descendants, and every process of the root's session (a daemonised grandchild stays counted). CPU is
user + system of all threads, children that were waited for included, so it only grows while the
tree lives; the kernel scales it from exact run time but rounds it to clock ticks (10 ms per
process), which at 3 s and 1 000 requests/s is an error of 3 µs per request, less when busier.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Memory(NamedTuple):
    """Memory of a tree, in MB (10^6 bytes): `rss_mb` counts shared pages once per process,
    `pss_mb` divides them among the processes that share them."""

    rss_mb: float
    pss_mb: float


class _Stat(NamedTuple):
    pid: int
    parent: int
    session: int
    ticks: int


def supported() -> bool:
    """Tells whether this machine has the accounting the bench rests on."""
    return (_PROC / "self" / "smaps_rollup").exists()


def cpu_s(root: int) -> float:
    """Returns the user + system CPU seconds used so far by the tree of process `root`."""
    return sum(stat.ticks for stat in _tree(root)) / _TICKS_PER_S


def memory(root: int) -> Memory:
    """Returns what the tree of process `root` holds in memory now."""
    rss_kb = pss_kb = 0
    for stat in _tree(root):
        try:
            rollup = (_PROC / str(stat.pid) / "smaps_rollup").read_text()
        except OSError:  # it ended meanwhile, or is a kernel's zombie
            continue
        for line in rollup.splitlines():
            if line.startswith("Rss:"):
                rss_kb += int(line.split()[1])
            elif line.startswith("Pss:"):
                pss_kb += int(line.split()[1])
    return Memory(rss_kb * 1024 / 1e6, pss_kb * 1024 / 1e6)


def machine_busy_s() -> float:
    """Returns the CPU seconds the whole machine has been busy since boot, stolen time included."""
    fields = (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def _tree(root: int) -> list[_Stat]:
    stats = [stat for stat in map(_stat, _pids()) if stat is not None]
    members = {stat.pid for stat in stats if stat.pid == root or stat.session == root}
    grew = True
    while grew:
        young = {stat.pid for stat in stats if stat.parent in members} - members
        members |= young
        grew = bool(young)
    return [stat for stat in stats if stat.pid in members]


def _pids() -> list[int]:
    return [int(entry.name) for entry in os.scandir(_PROC) if entry.name.isdigit()]


def _stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The command name, field 2, may hold spaces and parentheses: count from its last one. Of what
    # follows: [1] parent, [3] session, [11..14] utime, stime, and those of children waited for.
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(pid, int(fields[1]), int(fields[3]), sum(map(int, fields[11:15])))
