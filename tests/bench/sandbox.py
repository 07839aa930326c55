"""How long one small program takes in each level of the sandbox, beside a bare Python: `python -m tests.bench.sandbox`.

Levels and the bare process take turns, one job each, so that what else the machine does meets all alike; jobs stand
`--pause-ms` apart, as a gateway's do, which is when levels that keep jails ready prepare the next one. Jails stand back
behind whoever else wants the processors, so a bare Python that is as nice is measured, too; `--busy N` has N processes
want them. Containers are measured where `SANDBOX_IMAGE` (or `--image`) names an image, by `SANDBOX_RUNTIME`. The exit
status is 1 when a level's median is more than it may be of the bare Python's.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from typing import Callable, Optional

from gateway.verify.sandbox.job import ORDER, Job, Level, Limits
from gateway.verify.sandbox.kernel import NICE
from gateway.verify.sandbox.levels import all_levels

PROGRAM = "print(1)"
WARM_UP = 5
SPARE = 2  # jails that wait for jobs: what a gateway with two programs at once keeps
MOST_BY_LEVEL = {"bubblewrap": 2.0}  # of the bare Python's median


def bare() -> None:
    command = [sys.executable, "-I", "-S", "-c", PROGRAM]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert done.stdout == b"1\n", done


def bare_niced() -> None:
    """As nice as jails are: what a level can do at best where others want the processors."""
    command = ["nice", "-n", str(NICE), sys.executable, "-I", "-S", "-c", PROGRAM]
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


def levels(names: list[str], runtime: str, image: str) -> list[Level]:
    """Those of these levels that can be used here; why another cannot is printed."""
    found: list[Level] = []
    for level in all_levels({}, runtime, image, Limits(), SPARE):
        if level.name not in names:
            continue
        why_not = level.probe()
        if why_not is None:
            found.append(level)
        else:
            print(f"{level.name}: {why_not}")
            level.close()
    return found


def measure(jobs: int, pause_s: float, usable: list[Level]) -> dict[str, list[float]]:
    """Wall milliseconds of each job by what ran it, sorted."""
    runs: list[tuple[str, Callable[[], None], Callable[[], None]]] = [
        ("bare", bare, lambda: None),
        ("bare, niced", bare_niced, lambda: None),
    ]
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


def main(argv: Optional[list[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--pause-ms", type=float, default=50.0)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--levels", default=",".join(ORDER))
    parser.add_argument("--runtime", default=os.environ.get("SANDBOX_RUNTIME", ""))
    parser.add_argument("--image", default=os.environ.get("SANDBOX_IMAGE", ""))
    options = parser.parse_args(argv)
    usable = levels(options.levels.split(","), options.runtime, options.image)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    try:
        taken_ms = measure(options.jobs, options.pause_ms / 1000, usable)
    finally:
        for process in busy:
            process.kill()
            process.wait()
        for level in usable:
            level.close()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    load = f"{options.busy} others busy, load {os.getloadavg()[0]:.1f}"
    print(f"{python}, {options.jobs} jobs each, {options.pause_ms:g} ms apart, {load}")
    print(f"{'':12} {'p50 ms':>8} {'p99 ms':>8} {'of bare p50':>12} {'of bare p99':>12}")
    base = taken_ms["bare"]
    missed = False
    for name, values in taken_ms.items():
        p50, p99 = at(values, 0.5), at(values, 0.99)
        of_bare = p50 / at(base, 0.5)
        most = MOST_BY_LEVEL.get(name)
        too_much = most is not None and of_bare > most
        missed = missed or too_much
        bar = "" if most is None else f"  may be {most:g}" + (": too much" if too_much else "")
        print(f"{name:12} {p50:8.1f} {p99:8.1f} {of_bare:12.2f} {p99 / at(base, 0.99):12.2f}{bar}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
