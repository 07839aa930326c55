"""Service level objectives: what is left of each model's error budget, and how fast it is spent.

`Slos` owns, for each model and objective, two numbers for each of the last 4320 minutes (three days), and their sums
over the windows that are asked for; its lock guards them, and is held for a batch or a reading. Nothing is written
down: after a restart the three days begin anew.

What counts: requests that the service has answered, or failed to by a fault of its own (`FAULTS`: a 5xx, an engine that
has had enough, a stream that broke). What callers got wrong, their limits, and who left early say nothing; but who left
without a first word after the time that an answer should have taken counts as one that was late. Budgets and burn rates
are those of Google's SRE workbook, chapter 5 (Alerting on SLOs).
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Container, Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional

from gateway.errors import ERRORS
from gateway.telemetry.events import RequestEvent

MINUTES = 4320
BUDGET_S = MINUTES * 60
WINDOWS_S: Mapping[str, int] = {"5m": 300, "30m": 1800, "1h": 3600, "6h": 21_600, "3d": BUDGET_S}
LATENCY_SHARE = 0.99
"""The objective of latency without SLO_AVAILABILITY."""
MODELS_MAX = 256
"""Models with figures of their own, 70 KB each with both objectives; others count together as `other`."""
NAMES_MAX = 1000
"""Names of models in the requests of one minute, before they are looked up: callers may invent some."""
OTHER = "other"
FAULTS = frozenset(
    {code for code, error in ERRORS.items() if error.status >= 500 and error.status not in (501, 505)}
    | {"backend_rate_limited"}
)
"""Errors that are faults of the service, not of the one who asks."""
LEFT = "client_closed_request"


class SloFigures(NamedTuple):
    """One model's objective at one moment."""

    model: str
    objective: str
    """`availability` or `latency`."""
    target: float
    remaining: float
    """Of three days' error budget, 1: all; below 0: more than all is spent."""
    burn_by_s: Mapping[int, float]
    """By window (seconds): how many times as fast as allowed the budget is spent."""
    count_by_s: Mapping[int, int]
    """By window: the requests that counted."""


class _Minutes:
    """One objective of one model. Guarded by the lock of its Slos. The sums are without the current minute."""

    __slots__ = ("_bad", "_minute", "_sums", "_total")

    def __init__(self, minute: int) -> None:
        self._total = array("I", bytes(4 * MINUTES))
        self._bad = array("I", bytes(4 * MINUTES))
        self._minute = minute
        self._sums = {window_s: [0, 0] for window_s in WINDOWS_S.values()}

    def add(self, minute: int, total: int, bad: int) -> None:
        if minute != self._minute:
            self.advance(minute)
        index = self._minute % MINUTES
        self._total[index] += total
        if bad:
            self._bad[index] += bad

    def advance(self, minute: int) -> None:
        """Let what is older than each window leave its sums."""
        if minute - self._minute >= MINUTES:
            self.__init__(minute)  # type: ignore[misc]
        while self._minute < minute:
            over = self._minute % MINUTES
            self._minute += 1
            for window_s, sums in self._sums.items():
                leaves = (self._minute - window_s // 60) % MINUTES
                sums[0] += self._total[over] - self._total[leaves]
                sums[1] += self._bad[over] - self._bad[leaves]
            index = self._minute % MINUTES
            self._total[index] = self._bad[index] = 0

    def state(self) -> list[list[int]]:
        """What is not 0, as [minutes ago, all, bad]."""
        found = []
        for ago in range(MINUTES):
            index = (self._minute - ago) % MINUTES
            if self._total[index]:
                found.append([ago, self._total[index], self._bad[index]])
        return found

    def restore(self, state: Sequence[Sequence[int]]) -> None:
        """Be as a state says, in place of what was counted."""
        minute = self._minute
        self.__init__(minute)  # type: ignore[misc]
        for ago, total, bad in state:
            if not 0 <= ago < MINUTES:
                continue
            index = (minute - ago) % MINUTES
            self._total[index], self._bad[index] = total, bad
            for window_s, sums in self._sums.items():
                if 0 < ago < window_s // 60:
                    sums[0] += total
                    sums[1] += bad

    def figures(self, model: str, objective: str, target: float) -> SloFigures:
        allowed = 1 - target
        index = self._minute % MINUTES
        now, bad_now = self._total[index], self._bad[index]
        counts = {window_s: total + now for window_s, (total, _) in self._sums.items()}
        burns = {
            window_s: (bad + bad_now) / counts[window_s] / allowed if counts[window_s] else 0.0
            for window_s, (_, bad) in self._sums.items()
        }
        return SloFigures(model, objective, target, 1 - burns[BUDGET_S], burns, counts)


class Slos:
    """Counts finished requests by objectives. Thread-safe.

    `availability` and `latency_ms`: None where there is no such objective. `paths`: those of inference; `known_models`
    gives every name that a request may use, with the configured model it stands for. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        availability: Optional[float],
        latency_ms: Optional[float],
        paths: Container[str],
        known_models: Callable[[], Mapping[str, str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.availability = availability
        self.latency_target = None if latency_ms is None else availability or LATENCY_SHARE
        self._latency_s = None if latency_ms is None else latency_ms / 1000
        self._paths = paths
        self._known_models = known_models
        self._clock = clock
        self._lock = threading.Lock()
        self._models: dict[str, tuple[Optional[_Minutes], Optional[_Minutes]]] = {}
        # Of this minute, by the name that was asked for: answered in time, faults, answered late, left late. A dict
        # lookup for each request; what they mean is worked out when somebody reads, or with the next minute.
        self._counts: dict[Optional[str], list[int]] = {}
        self._minute = int(clock() // 60)
        self.shares = False
        """Whether there are other processes to be told what is counted; set before anything is."""
        self._untold: dict[str, list[int]] = {}

    def observe(self, events: Sequence[RequestEvent]) -> None:
        """Count a batch."""
        paths, latency_s = self._paths, self._latency_s
        minute = int(self._clock() // 60)
        known = self._known_models() if minute > self._minute or len(self._counts) > NAMES_MAX else None
        with self._lock:
            counts = self._counts
            if known is not None:
                self._settle_locked(known, minute)
            for event in events:
                error = event.error
                if event.path not in paths:
                    continue
                if error is None:
                    taken_s = event.latency_s if event.ttft_s is None else event.ttft_s
                    place = 0 if latency_s is None or taken_s <= latency_s else 2
                elif error in FAULTS:
                    place = 1
                elif error == LEFT and latency_s is not None and event.ttft_s is None and event.latency_s > latency_s:
                    place = 3
                else:
                    continue
                if event.extra is not None and "part_of" in event.extra:
                    continue
                model = event.model
                if model in counts:
                    counts[model][place] += 1
                else:
                    counts[model] = [0, 0, 0, 0]
                    counts[model][place] = 1

    def _settle_locked(self, known: Mapping[str, str], minute: int) -> None:
        """Give what was counted since the last time to the minute that it was counted in; now it is `minute`."""
        for name, (in_time, faults, late, left) in self._counts.items():
            model = known.get(name or "")
            if model is None:
                continue
            self._enter_locked(model, in_time, faults, late, left)
            if self.shares:
                before = self._untold.get(model, (0, 0, 0, 0))
                self._untold[model] = [a + b for a, b in zip(before, (in_time, faults, late, left))]
        self._counts.clear()
        self._minute = max(minute, self._minute)  # whoever reads may have been faster

    def _enter_locked(self, model: str, in_time: int, faults: int, late: int, left: int) -> None:
        available, timely = self._minutes_locked(model, self._minute)
        if available is not None:
            available.add(self._minute, in_time + late + faults, faults)
        if timely is not None and in_time + late + left:
            timely.add(self._minute, in_time + late + left, late + left)

    # --- other processes of the same gateway -------------------------------------------------------------------------

    def take(self) -> Optional[dict[str, list[int]]]:
        """What has been counted here since this was called last, for `add`; None: nothing."""
        known, minute = self._known_models(), int(self._clock() // 60)
        with self._lock:
            self._settle_locked(known, minute)
            untold, self._untold = self._untold, {}
        return untold or None

    def add(self, told: Mapping[str, Sequence[int]]) -> None:
        """Count what another process has taken."""
        known, minute = self._known_models(), int(self._clock() // 60)
        with self._lock:
            self._settle_locked(known, minute)
            for model, counts in told.items():
                in_time, faults, late, left = counts
                self._enter_locked(model, in_time, faults, late, left)

    def state(self) -> dict[str, list[Optional[list[list[int]]]]]:
        """All that is counted, for `restore`."""
        known, minute = self._known_models(), int(self._clock() // 60)
        with self._lock:
            self._settle_locked(known, minute)
            for kinds in self._models.values():
                for one in kinds:
                    if one is not None:
                        one.advance(self._minute)
            return {
                model: [None if one is None else one.state() for one in kinds] for model, kinds in self._models.items()
            }

    def restore(self, state: Mapping[str, Sequence[Optional[Sequence[Sequence[int]]]]]) -> None:
        """Take over what another process has counted until now, in place of what was counted here."""
        known, minute = self._known_models(), int(self._clock() // 60)
        with self._lock:
            self._settle_locked(known, minute)
            for model, kinds in state.items():
                for mine, theirs in zip(self._minutes_locked(model, self._minute), kinds):
                    if mine is not None and theirs is not None:
                        mine.advance(self._minute)
                        mine.restore(theirs)

    def _minutes_locked(self, model: str, minute: int) -> tuple[Optional[_Minutes], Optional[_Minutes]]:
        found = self._models.get(model)
        if found is None and len(self._models) >= MODELS_MAX:
            model = OTHER
            found = self._models.get(model)
        if found is None:
            found = self._models[model] = (
                None if self.availability is None else _Minutes(minute),
                None if self._latency_s is None else _Minutes(minute),
            )
        return found

    def read(self) -> list[SloFigures]:
        """Every model's objectives now. Models that are not served any more are forgotten."""
        known = self._known_models()
        served = {*known.values(), OTHER}
        minute = int(self._clock() // 60)
        figures = []
        with self._lock:
            self._settle_locked(known, minute)
            for model in [model for model in self._models if model not in served]:
                del self._models[model]
            for model, kinds in sorted(self._models.items()):
                targets = (("availability", self.availability), ("latency", self.latency_target))
                for minutes, (objective, target) in zip(kinds, targets):
                    if minutes is not None and target is not None:
                        minutes.advance(self._minute)
                        figures.append(minutes.figures(model, objective, target))
        return figures

    def told(self) -> list[dict[str, Any]]:
        """The same, for the console: with the burn rates over 1 h, 6 h and 3 d."""
        return [
            {
                "model": one.model,
                "objective": one.objective,
                "target": one.target,
                "budget_remaining": round(one.remaining, 4),
                "burn": {name: round(one.burn_by_s[WINDOWS_S[name]], 3) for name in ("1h", "6h", "3d")},
            }
            for one in self.read()
        ]

    def start(self) -> None:
        """Nothing to start: there is no thread."""

    def close(self, timeout_s: float) -> None:
        """Nothing to end."""
