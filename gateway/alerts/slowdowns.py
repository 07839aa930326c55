"""How long engines take, counted for `anomaly.py`.

`Slowdowns` owns the sums of what has come since the last look, which its lock guards (held to add up KEPT_BACK requests
at most, or to take them away), and each engine's baselines, which belong to the thread that looks. Complete answers
and first events of streams have a baseline each: otherwise an engine would become slower when its clients stop
streaming.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Container, Sequence
from operator import attrgetter, mul
from typing import NamedTuple

from gateway.alerts.anomaly import Baseline, Group
from gateway.telemetry.events import AttemptRecord, RequestEvent

LEAST_S = 1e-4
"""Less is not told apart: of engines in the same process, or no time at all."""
KEPT_BACK = 64
"""Requests that are added up together, which takes less time than each by itself."""
Key = tuple[str, str, bool]
"""Model, engine, whether it was a whole answer."""

_RECORDS = attrgetter("attempt_records")


class Slowdown(NamedTuple):
    """How many times slower than usual an engine is, and how many answers say so."""

    times: float
    answers: float


class Slowdowns:
    """`observe` from any thread; `look` from one. `wanted` False: nothing is counted."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self._lock = threading.Lock()
        self._waiting: list[Sequence[AttemptRecord]] = []  # of requests that have not been added up
        self._sums: dict[Key, tuple[int, float, float]] = {}  # answers, sum of their logarithms, of the squares
        self._baselines: dict[Key, Baseline] = {}

    def observe(self, events: Sequence[RequestEvent]) -> None:
        """Count the good attempts of a batch."""
        if not self.wanted:
            return
        with self._lock:
            self._waiting += map(_RECORDS, events)
            if len(self._waiting) >= KEPT_BACK:
                self._add_up_locked()

    def _add_up_locked(self) -> None:
        waiting, self._waiting = self._waiting, []
        durations_s: dict[Key, list[float]] = {}
        for records in waiting:
            for model, engine, outcome, duration_s, _, first_s, _, _ in records:
                if outcome != "ok":
                    continue
                took_s = duration_s if first_s is None else first_s
                try:
                    durations_s[model, engine, first_s is None].append(took_s if took_s > LEAST_S else LEAST_S)
                except KeyError:
                    durations_s[model, engine, first_s is None] = [took_s if took_s > LEAST_S else LEAST_S]
        for key, some_s in durations_s.items():
            values = list(map(math.log, some_s))
            count, total, squares = self._sums.get(key, (0, 0.0, 0.0))
            self._sums[key] = (count + len(values), total + sum(values), squares + sum(map(mul, values, values)))

    def look(self, now_s: float, engines: Container[tuple[str, str]]) -> dict[tuple[str, str], Slowdown]:
        """What is known of each of these engines now; others are forgotten."""
        with self._lock:
            self._add_up_locked()
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
            baseline.learn(Group(count, total, squares), now_s)
            now = Slowdown(baseline.slower(now_s), baseline.recent_at(now_s))
            found[engine] = max(found.get(engine, now), now)
        return found
