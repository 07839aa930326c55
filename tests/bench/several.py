"""What several processes of one gateway bear: `python -m tests.bench.several`.

A gateway of one process and one of `--processes` in front of the same engine (an nginx), asked by wrk in short slices,
one after the other, there and back. On a machine with fewer processors than processes, engine and generator together,
requests a second say what that machine can do, not what the gateway can. So CPU is counted, too, by the scheduler's own
count: **bears** is how many requests are answered for each second of CPU of the busiest process, which is
what it bears where each process, the generator and the engine have processors of their own.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional

if sys.platform != "linux":
    sys.exit("tests.bench.several: needs Linux, whose /proc it reads CPU from")

from . import load, peers, upstream
from .consoles import scheduled_s
from .processes import BenchError
from .running import Target, Usage, running


class Figures(NamedTuple):
    """Of one gateway in one round."""

    requests: int
    duration_s: float
    cpu_s: float
    busiest_s: float
    """CPU of the process that worked most."""

    def plus(self, other: Figures) -> Figures:
        """Both slices together."""
        return Figures(*map(sum, zip(self, other)))  # type: ignore[arg-type]

    @property
    def per_s(self) -> float:
        return self.requests / self.duration_s

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.requests * 1e6

    @property
    def bears_per_s(self) -> float:
        return self.requests / self.busiest_s


def of_processes(gateway: peers.Gateway, count: int) -> peers.Gateway:
    """The same gateway with so many processes."""

    def launch(port: int, engine_ports: list[int], run_dir: Path) -> peers.Launch:
        plain = gateway.plan(port, engine_ports, run_dir)
        return plain._replace(env={**plain.env, "PROCESSES": str(count)})

    return gateway._replace(plan=launch)


def serving(target: Target, count: int) -> list[int]:
    """The processes that serve: of several, the parent's children."""
    if count == 1:
        return [target.pid]
    children = Path(f"/proc/{target.pid}/task/{target.pid}/children").read_text().split()
    if len(children) != count:
        raise BenchError(f"{len(children)} of {count} processes serve")
    return [int(pid) for pid in children]


def measure(target: Target, count: int, connections: int, seconds: float, run_dir: Path) -> Figures:
    """One slice of load."""
    pids = serving(target, count)
    before = [scheduled_s(pid) for pid in pids]
    result = load.run(target.port, target.headers, connections, seconds, run_dir)
    used = [scheduled_s(pid) - then for pid, then in zip(pids, before)]
    if result.errors:
        raise BenchError(f"errors under load: {result.errors}")
    return Figures(result.requests, result.duration_s, sum(used), max(used))


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args(argv)
    (found,) = peers.find("gateway", [sys.executable])
    if isinstance(found, peers.Missing) or not load.available():
        sys.exit(f"cannot measure: {found.reason if isinstance(found, peers.Missing) else 'wrk is not installed'}")
    counts = (1, options.processes)
    figures: dict[int, list[Figures]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        engine = upstream.start(run_dir, 1, 1.0)
        one, several = (of_processes(found, count) for count in counts)
        for _ in range(options.rounds):
            with running(one, engine.json_ports, run_dir) as a, running(several, engine.json_ports, run_dir) as b:
                slices = [(a, counts[0]), (b, counts[1])]
                for target, count in slices:
                    measure(target, count, options.connections, 1.0, run_dir)
                usage = Usage(a.pid, {b.pid, engine.json_pid})
                here: dict[int, Figures] = {}
                for target, count in [*slices, *reversed(slices)]:
                    now = measure(target, count, options.connections, options.seconds, run_dir)
                    here[count] = here[count].plus(now) if count in here else now
                told = "; ".join(f"{count}: {of.per_s:.0f}/s, {of.cpu_us:.0f} us" for count, of in here.items())
                print(f"  {told}; others {usage.so_far()[1]:.0f} %", flush=True)
            for count, of in here.items():
                figures[count].append(of)
    report(figures)
    return 0


def report(figures: dict[int, list[Figures]]) -> None:
    """Print medians, and the ratios of figures of the same round."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{python}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    for count, of in figures.items():
        per_s, cpu_us, bears = (
            statistics.median(getattr(one, key) for one in of) for key in ("per_s", "cpu_us", "bears_per_s")
        )
        print(f"PROCESSES={count}: {per_s:.0f} requests/s, {cpu_us:.0f} us of CPU each, bears {bears:.0f}/s")
    (_, one), (_, several) = figures.items()
    per_s, bears = (
        statistics.median(getattr(b, key) / getattr(a, key) for a, b in zip(one, several))
        for key in ("per_s", "bears_per_s")
    )
    print(f"requests/s x {per_s:.2f}; bears x {bears:.2f}")


if __name__ == "__main__":
    sys.exit(main())
