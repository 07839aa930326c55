"""What is looked at while a job runs, by the keeper: part three of `inside.py`.

A job's memory is that of its processes and what the kernel keeps for it beside them: page tables, data on the way from
socket to socket, files. How many sockets and files there are is told, not what each takes: each counts as the most.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from typing import Any, Optional

from gateway.verify.sandbox.kernel import SYS_PIDFD_OPEN, syscall
from gateway.verify.sandbox.worker import Walls

TICK_S = 0.025  # how often memory, CPU and processes are looked at
FILE_BYTES = 2048  # of a file on a tmpfs beside what is in it, at most: its inode and its name
OWN_MOST = 16  # sockets, or files of a folder, of a jail that has had no job
EXACT_S = 0.05  # of the processor, for one exact look at memory
OOM_PATHS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")  # of cgroups version 2, 1
PAGE_TABLES = b"VmPTE:"
ROUGH = (b"RssAnon:", b"RssShmem:", b"VmSwap:", PAGE_TABLES)  # of /proc/.../status
EXACT = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")  # of /proc/.../smaps_rollup


class Kept:
    """What the kernel keeps for a job beside its processes. To be made before there is one: where there is much
    already, it is the machine's that the kernel tells of, and is not counted. And whether the kernel, which holds a
    container to its memory, was faster than any look."""

    def __init__(self, walls: Walls) -> None:
        self._folders = [folder for folder in walls.folders if files_in(folder) < OWN_MOST]
        self._socket_bytes = 0
        if walls.own_network and sockets_here() < OWN_MOST:
            self._socket_bytes = most_on_the_way()
        self._killed_before = killed_for_memory() if walls.own_cgroup else None

    def most_bytes(self) -> int:
        """As much as it may be now."""
        kept_bytes = self._socket_bytes * sockets_here() if self._socket_bytes else 0
        return kept_bytes + FILE_BYTES * sum(map(files_in, self._folders))

    def was_short(self) -> bool:
        """Whether the kernel has killed any of the job's processes since: there was no memory left for it."""
        return self._killed_before is not None and killed_for_memory() > self._killed_before


def files_in(folder: str) -> int:
    """Files of the file system that is mounted there, if there is such a folder."""
    try:
        room = os.statvfs(folder)
    except OSError:
        return 0
    return room.f_files - room.f_ffree


def sockets_here() -> int:
    """Sockets of this network namespace: those that are closed, but have data on the way, and those that nobody has
    accepted yet among them."""
    try:
        with open("/proc/self/net/sockstat", "rb") as file:
            return int(file.readline().split()[2])
    except (OSError, IndexError):
        return 0


def killed_for_memory() -> int:
    """Processes of this control group that the kernel has killed since there was no memory left for it."""
    for path in OOM_PATHS:
        try:
            with open(path, "rb") as file:
                return sum(int(line.split()[1]) for line in file if line.startswith(b"oom_kill "))
        except OSError:
            pass
    return 0


def most_on_the_way() -> int:
    """Bytes that one socket may have sent which nobody has received: its buffer, and one more message of that size,
    since there is room as long as the buffer is not full."""
    import _socket  # the rest of `socket` is not worth its loading here

    unused = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        return 2 * unused.getsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF)
    finally:
        unused.close()


def tell(fd: int, said: dict[str, Any]) -> None:
    os.write(fd, json.dumps(said).encode() + b"\n")


def watch(worker: int, ready_r: int, status_w: int, kept: Kept) -> dict[str, Any]:
    poll, limits, tick_s, peak, doubted = select.poll(), None, TICK_S, 0, False
    pidfd = syscall(SYS_PIDFD_OPEN, worker, 0)
    if pidfd >= 0:
        poll.register(pidfd, select.POLLIN)
    poll.register(ready_r, select.POLLIN)
    poll.register(status_w, 0)  # POLLERR: the supervisor has died
    while True:
        events = dict(poll.poll(None if limits is None and pidfd >= 0 else tick_s * 1000 if pidfd >= 0 else 5))
        if status_w in events:
            os._exit(1)
        if ready_r in events:
            poll.unregister(ready_r)
            said = json.loads(os.read(ready_r, 1 << 16) or b'{"reason": "setup", "error": "the worker died"}')
            if "error" in said:
                return dict(said)
            limits = said
            tell(status_w, {})
            continue
        ended = reap(worker)
        if ended is not None:
            ended["memory_bytes"] = max(peak, ended["memory_bytes"])
            if limits and ended["exit_code"] == -signal.SIGKILL and ended["cpu_s"] >= limits["cpu_s"]:
                ended["reason"] = "cpu"
            if kept.was_short():
                ended.update(reason="memory", exit_code=None)
            return ended
        if limits:
            started_s = time.monotonic()
            kept_bytes = kept.most_bytes()
            processes, memory_bytes, cpu_s, is_exact = usage_of(os.getpid(), limits["memory_bytes"] - kept_bytes)
            memory_bytes += kept_bytes
            if memory_bytes > limits["memory_bytes"] and not (is_exact or doubted):
                doubted, tick_s = True, 0.0  # the machine may have held up this look: the next one, at once, counts
                continue
            doubted = False
            peak = max(peak, memory_bytes)
            tick_s = max(TICK_S, time.monotonic() - started_s)  # half a processor at most
            for reason, over in (
                ("memory", memory_bytes > limits["memory_bytes"] or kept.was_short()),
                ("cpu", cpu_s > limits["cpu_s"]),
                ("processes", processes > limits["processes"]),
            ):
                if over:
                    return {"reason": reason, "memory_bytes": peak, "cpu_s": cpu_s}


def reap(worker: int) -> Optional[dict[str, Any]]:
    """Take leave of all who have ended; how the worker ended, if it has.

    One that was stopped counts as ended: a harness is by a program that would hold its place in the sandbox for longer
    than the harness lets it.
    """
    pid, status, usage = os.wait4(worker, os.WNOHANG | os.WUNTRACED)
    while pid != worker:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid == 0:
            return None
    if os.WIFSTOPPED(status):
        code = -os.WSTOPSIG(status)
    else:
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
    reason = "cpu" if code == -signal.SIGXCPU else "signal" if code < 0 else "exit"
    cpu_s = processor_s(resource.getrusage(resource.RUSAGE_CHILDREN))
    return {"reason": reason, "exit_code": code, "cpu_s": cpu_s, "memory_bytes": usage.ru_maxrss << 10}


def descendants(root: int) -> dict[int, list[bytes]]:
    """Those who descend from `root`, each with the fields of its /proc/.../stat behind the name."""
    stats: dict[int, list[bytes]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                with open(f"/proc/{entry.name}/stat", "rb") as file:
                    stats[int(entry.name)] = file.read().rpartition(b")")[2].split()
            except OSError:
                pass
    children: dict[int, list[int]] = {}
    for pid, fields in stats.items():
        children.setdefault(int(fields[1]), []).append(pid)
    found, todo = {}, children.get(root, [])
    while todo:
        pid = todo.pop()
        found[pid] = stats[pid]
        todo.extend(children.get(pid, ()))
    return found


def usage_of(root: int, enough_bytes: int) -> tuple[int, int, float, bool]:
    """Processes, bytes of memory and CPU seconds of all who descend from `root`, and whether there was time to count
    the memory as exactly as was needed.

    RLIMIT_AS and RLIMIT_CPU are of one process each: forks would multiply them. Memory is counted page by page, each
    shared one once for each who has it; exactly, the largest first, until it is no more than `enough_bytes`. Who has
    made himself unreadable, or so odd that this takes too long, stays counted page by page: a look that takes its time
    is one in which nobody watches.
    """
    found = descendants(root)
    ticks = sum(int(field) for fields in found.values() for field in fields[11:15])  # its own, its dead children's
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    rough = {pid: _field_bytes(f"/proc/{pid}/status", ROUGH) for pid in found}
    memory_bytes = sum(rough.values())
    until_s = time.process_time() + EXACT_S
    in_time = True
    for pid in sorted(rough, key=rough.__getitem__, reverse=True):
        in_time = time.process_time() <= until_s
        if memory_bytes <= enough_bytes or not in_time:
            break
        exact = _field_bytes(f"/proc/{pid}/smaps_rollup", EXACT)
        # None of either: it has made itself unreadable, or it has ended meanwhile, and has no memory any more.
        beside = _field_bytes(f"/proc/{pid}/status", (PAGE_TABLES,) if exact else ROUGH)
        memory_bytes += exact + beside - rough[pid]
    return len(found), memory_bytes, ticks / os.sysconf("SC_CLK_TCK") + processor_s(reaped), in_time


def _field_bytes(path: str, names: tuple[bytes, ...]) -> int:
    """The sum of some fields; 0 where they cannot be read."""
    try:
        with open(path, "rb") as file:
            return sum(int(line.split()[1]) << 10 for line in file if line.startswith(names))
    except OSError:
        return 0


def processor_s(usage: resource.struct_rusage) -> float:
    return round(usage.ru_utime + usage.ru_stime, 4)
