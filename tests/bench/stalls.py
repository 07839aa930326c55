"""How long other threads of a gateway stand still when it starts a jail: `python -m tests.bench.stalls`.

A thread wakes up every half millisecond and notes how late it is; the longest gap between two of its wake-ups around
each start is what a jail costs those who have nothing to do with it. Levels take turns, with pauses in which nothing
is started for comparison. No level keeps jails ready here, so each `open` starts one. `--held-mb`: so much memory is
held by this process, which matters to a fork.
"""

from __future__ import annotations

import argparse
import bisect
import os
import platform
import sys
import threading
import time
from collections.abc import Sequence
from typing import Callable, Optional

from gateway.verify.sandbox.bubblewrap import Bubblewrap
from gateway.verify.sandbox.job import Level
from gateway.verify.sandbox.namespaces import NamespacesLevel
from gateway.verify.sandbox.process import ProcessLevel

from .sandbox import at

TICK_S = 0.0005
STANDS_S = 0.06  # in which a jail gets ready, after `open`
PAGE_BYTES = 4096


class Ticker(threading.Thread):
    """Notes when it wakes up. One thread appends to `at_s`, another reads what stands there already."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.at_s: list[float] = []
        self._ends = False

    def run(self) -> None:
        while not self._ends:
            time.sleep(TICK_S)
            self.at_s.append(time.perf_counter())

    def end(self) -> None:
        self._ends = True
        self.join()

    def gap_ms(self, from_s: float, until_s: float) -> float:
        """The longest time between two wake-ups, of those that reach into this span."""
        first = max(1, bisect.bisect_left(self.at_s, from_s))
        last = min(len(self.at_s) - 1, bisect.bisect_left(self.at_s, until_s))
        return max(self.at_s[place] - self.at_s[place - 1] for place in range(first, last + 1)) * 1000


def starts(level: Level) -> Callable[[], Callable[[], None]]:
    def start() -> Callable[[], None]:
        return level.open().close

    return start


def measure(runs: dict[str, Callable[[], Callable[[], None]]], times: int) -> dict[str, list[tuple[float, float]]]:
    """Of each start by what made it: the longest gap while it was made, and from then until the jail stands."""
    spans: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
    ticker = Ticker()
    ticker.start()
    for _ in range(times):
        for name, start in runs.items():
            time.sleep(STANDS_S)
            from_s = time.perf_counter()
            close = start()
            started_s = time.perf_counter()
            time.sleep(STANDS_S)
            spans[name].append((from_s, started_s, time.perf_counter()))
            close()
    ticker.end()
    return {
        name: [
            (ticker.gap_ms(from_s, started_s), ticker.gap_ms(started_s, until_s)) for from_s, started_s, until_s in of
        ]
        for name, of in spans.items()
    }


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--held-mb", type=int, default=0)
    options = parser.parse_args(argv)
    held = bytearray(options.held_mb << 20)
    for place in range(0, len(held), PAGE_BYTES):
        held[place] = 1
    levels: list[Level] = [NamespacesLevel({}, parked=0), Bubblewrap({}, spare=0), ProcessLevel({})]
    runs: dict[str, Callable[[], Callable[[], None]]] = {"nothing": lambda: lambda: None}
    try:
        for level in levels:
            why_not = level.probe()
            if why_not is None:
                runs[level.name] = starts(level)
            else:
                print(f"{level.name}: {why_not}")
        gaps_ms = measure(runs, options.times)
    finally:
        for level in levels:
            level.close()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"{python}, {options.times} starts each, {options.held_mb} MB more held, load {os.getloadavg()[0]:.1f}")
    print(f"{'longest gap, ms':15} {'at the start: p50':>18} {'p99':>6}   {'until it stands: p50':>20} {'p99':>6}")
    for name, pairs in gaps_ms.items():
        at_start, later = sorted(pair[0] for pair in pairs), sorted(pair[1] for pair in pairs)
        cells = f"{at(at_start, 0.5):18.2f} {at(at_start, 0.99):6.2f}   {at(later, 0.5):20.2f} {at(later, 0.99):6.2f}"
        print(f"{name:15} {cells}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
