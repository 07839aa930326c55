"""How long one small program takes in each level of the sandbox, beside a bare Python: `python -m tests.bench.sandbox`.

Levels and the bare process take turns, one job each, so that what else the machine does meets all alike; jobs stand
`--pause-ms` apart, as a gateway's do, which is when levels that keep jails ready prepare the next one.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Callable

from gateway.verify.sandbox.job import Job, Level
from gateway.verify.sandbox.namespaces import NamespacesLevel
from gateway.verify.sandbox.process import ProcessLevel

PROGRAM = "print(1)"
WARM_UP = 5


def bare() -> None:
    command = [sys.executable, "-I", "-S", "-c", PROGRAM]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert done.stdout == b"1\n", done


def in_level(level: Level) -> Callable[[], None]:
    def one() -> None:
        jail = level.open()
        try:
            run = jail.run(Job("python", PROGRAM))
        finally:
            jail.close()
        assert (run.reason, run.stdout) == ("exit", b"1\n"), run

    return one


def levels() -> list[Level]:
    """The levels that can be used here; why another cannot is printed."""
    found: list[Level] = []
    made: Iterable[Level] = (NamespacesLevel({}), ProcessLevel({}))
    for level in made:
        why_not = level.probe()
        if why_not is None:
            found.append(level)
        else:
            print(f"{level.name}: {why_not}")
            level.close()
    return found


def measure(jobs: int, pause_s: float, usable: list[Level]) -> dict[str, list[float]]:
    """Wall milliseconds of each job by what ran it, sorted."""
    runs: list[tuple[str, Callable[[], None], Callable[[], None]]] = [("bare", bare, lambda: None)]
    runs += [(level.name, in_level(level), level.refill) for level in usable]
    taken_ms: dict[str, list[float]] = {name: [] for name, _, _ in runs}
    for turn in range(-WARM_UP, jobs):
        for name, run, refill in runs:
            started_s = time.perf_counter()
            run()
            if turn >= 0:
                taken_ms[name].append((time.perf_counter() - started_s) * 1000)
            refill()
            time.sleep(pause_s)
    return {name: sorted(values) for name, values in taken_ms.items()}


def at(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--pause-ms", type=float, default=50.0)
    options = parser.parse_args()
    usable = levels()
    try:
        taken_ms = measure(options.jobs, options.pause_ms / 1000, usable)
    finally:
        for level in usable:
            level.close()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{python}, {options.jobs} jobs each, {options.pause_ms:g} ms apart, load {os.getloadavg()[0]:.1f}")
    print(f"{'':12} {'p50 ms':>8} {'p99 ms':>8} {'of bare p50':>12} {'of bare p99':>12}")
    base = taken_ms["bare"]
    for name, values in taken_ms.items():
        p50, p99 = at(values, 0.5), at(values, 0.99)
        print(f"{name:12} {p50:8.1f} {p99:8.1f} {p50 / at(base, 0.5):12.2f} {p99 / at(base, 0.99):12.2f}")


if __name__ == "__main__":
    main()
