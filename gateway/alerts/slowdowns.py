"""How long engines take, counted for `anomaly.py`.

`Slowdowns` owns the sums of what has come since the last look, which its lock guards (held for a batch, or to take them
away), and each engine's baselines, which belong to the thread that looks. Complete answers and first events of streams
have a baseline each: otherwise an engine would become slower when its clients stop streaming.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Container, Sequence
from typing import Any, NamedTuple, Optional

from gateway.alerts.anomaly import Baseline, Group
from gateway.telemetry.events import RequestEvent

LEAST_S = 1e-4
"""Less is not told apart: of engines in the same process, or no time at all."""
Key = tuple[str, str, bool]


class Slowdown(NamedTuple):
    """How many times slower than usual an engine is, and how many answers say so."""

    times: float
    answers: float


class Slowdowns:
    """`observe` from any thread; `look` from one. `wanted` False: nothing is counted."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self._lock = threading.Lock()
        self._sums: dict[Key, list[float]] = {}
        self.shares = False
        """Whether there are other processes, which `take` tells and `add` hears; set before anything is counted."""
        self._everybodys: dict[Key, list[float]] = {}  # since the last look, where there are others
        self._baselines: dict[Key, Baseline] = {}

    def observe(self, events: Sequence[RequestEvent]) -> None:
        """Count the good attempts of a batch."""
        if not self.wanted:
            return
        logarithm = math.log
        with self._lock:
            sums = self._sums
            for event in events:
                for model, engine, outcome, duration_s, _, first_s, _, _ in event.attempt_records:
                    if outcome != "ok":
                        continue
                    took_s = duration_s if first_s is None else first_s
                    value = logarithm(took_s if took_s > LEAST_S else LEAST_S)
                    try:
                        found = sums[model, engine, first_s is None]
                    except KeyError:
                        found = sums[model, engine, first_s is None] = [0, 0.0, 0.0]
                    found[0] += 1
                    found[1] += value
                    found[2] += value * value

    def take(self) -> Optional[list[list[Any]]]:
        """What has come here since this was called last, for `add` in another process; None: nothing."""
        with self._lock:
            own, self._sums = self._sums, {}
            for key, sums in own.items():
                _add(self._everybodys, key, sums)
        return [[*key, *sums] for key, sums in own.items()] or None

    def add(self, told: Sequence[Sequence[Any]]) -> None:
        """Count what another process has taken."""
        with self._lock:
            for model, engine, whole, *sums in told:
                _add(self._everybodys, (model, engine, whole), sums)

    def look(self, now_s: float, engines: Container[tuple[str, str]]) -> dict[tuple[str, str], Slowdown]:
        """What is known of each of these engines now; others are forgotten."""
        with self._lock:
            if self.shares:  # what is counted here comes with `take`
                sums, self._everybodys = self._everybodys, {}
            else:
                sums, self._sums = self._sums, {}
        for key in sums:
            if key not in self._baselines:
                self._baselines[key] = Baseline(now_s)
        found: dict[tuple[str, str], Slowdown] = {}
        for key, baseline in list(self._baselines.items()):
            engine = key[:2]
            if engine not in engines:
                del self._baselines[key]
                continue
            count, total, squares = sums.get(key, (0, 0.0, 0.0))
            baseline.learn(Group(int(count), total, squares), now_s)
            now = Slowdown(baseline.slower(now_s), baseline.recent_at(now_s))
            found[engine] = max(found.get(engine, now), now)
        return found


def _add(found: dict[Key, list[float]], key: Key, sums: Sequence[float]) -> None:
    before = found.get(key)
    found[key] = list(sums) if before is None else [a + b for a, b in zip(before, sums)]
