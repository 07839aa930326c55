"""The process as the operating system sees it: memory, CPU time, open files, start time.

Reads /proc on Linux, /dev/fd where only that exists, and leaves out what the system cannot tell
(a peak would be no substitute for the resident memory of now). Keeps no state, takes no lock,
never raises to a scrape.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Callable

from gateway.clock import unix_s
from gateway.telemetry.merging import EARLIEST, SUM
from gateway.telemetry.registry import LabelledNumber, Registry

_IMPORTED_UNIX_S = unix_s()


def register_process_metrics(registry: Registry) -> None:
    """Declares the `process_…` metrics this system can tell; call once per registry."""
    started = start_time_unix_s()
    for name, kind, help_text, read, merge in (
        (
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory in bytes.",
            resident_memory_bytes,
            SUM,
        ),
        (
            "process_cpu_seconds_total",
            "counter",
            "User and system CPU time in seconds.",
            time.process_time,
            "",
        ),
        ("process_open_fds", "gauge", "Open file descriptors.", open_fds, SUM),
        ("process_max_fds", "gauge", "Open file descriptors that there may be.", max_fds, SUM),
        (
            "process_start_time_seconds",
            "gauge",
            "Start of the process in seconds since 1970.",
            lambda: started,
            EARLIEST,
        ),
    ):
        if read() is not None:
            registry.callback(name, kind, help_text, (), _reader(read), merge)


def _reader(read: Callable[[], float | None]) -> Callable[[], list[LabelledNumber]]:
    def samples() -> list[LabelledNumber]:
        number = read()
        return [] if number is None else [((), number)]

    return samples


def resident_memory_bytes() -> int | None:
    """Resident memory now; None where the system has no /proc."""
    try:
        pages = Path("/proc/self/statm").read_bytes().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


def open_fds() -> int | None:
    """Open file descriptors, the one used for counting not among them; None when unknown."""
    for directory in ("/proc/self/fd", "/dev/fd"):
        try:
            return sum(1 for _ in Path(directory).iterdir()) - 1
        except OSError:
            continue
    return None


def max_fds() -> int | None:
    """As many descriptors as may be open; None when that is unknown, or there is no limit."""
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def start_time_unix_s() -> float:
    """When the process started, in seconds since 1970; without /proc, when this was imported."""
    try:
        # proc(5): field 22 is the start in clock ticks since boot. The second field, the command,
        # may itself hold spaces and parentheses, so count from its last one.
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        for line in Path("/proc/stat").read_bytes().splitlines():
            if line.startswith(b"btime "):
                return int(line.split()[1]) + int(fields[19]) / ticks_per_s
    except (OSError, ValueError, IndexError, AttributeError):
        pass
    return _IMPORTED_UNIX_S
