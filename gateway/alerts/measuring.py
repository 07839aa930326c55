"""From counts and states to the values that rules judge. Pure: what was read comes in.

`History` owns some readings of counts that only grow, to tell what a window has added; for one thread.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from typing import Callable, NamedTuple, Optional, Protocol

from gateway.alerts.rules import BURN_WINDOWS_S, Labels, Rule
from gateway.alerts.slowdowns import Slowdown

Counts = Mapping[tuple[str, ...], "array[float]"]
Numbers = Mapping[str, Counts]
STEPS = 30
"""Readings kept of each window: it is right to a thirtieth of its length."""

_FAMILIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "error_ratio": ("requests", ("model", "path")),
    "latency_p95_ms": ("latency", ("model", "path")),
    "ttft_p95_ms": ("ttft", ("model",)),
    "engine_error_ratio": ("attempts", ("model", "engine")),
    "verification_disagreement": ("verifications", ()),
}
"""Where the counts of a measure are found, and with which labels."""


class EngineNow(Protocol):
    """What is looked at of an engine (`EngineSnapshot`)."""

    @property
    def model(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def available(self) -> bool: ...


class SloNow(Protocol):
    """What is looked at of an objective (`SloFigures`)."""

    @property
    def model(self) -> str: ...
    @property
    def objective(self) -> str: ...
    @property
    def remaining(self) -> float: ...
    @property
    def burn_by_s(self) -> Mapping[int, float]: ...
    @property
    def count_by_s(self) -> Mapping[int, int]: ...


class Reading(NamedTuple):
    """Everything that rules look at, as of one moment."""

    numbers: Numbers
    engines: Sequence[EngineNow]
    queue: tuple[int, int]
    """Waiting requests, and places for them."""
    budgets: Sequence[tuple[str, float]]
    """Keys with a budget, and the share of it that is spent."""
    slos: Sequence[SloNow]
    slowdowns: Mapping[tuple[str, str], Slowdown]
    bounds_s: tuple[float, ...]
    """Of the buckets of latencies."""


class History:
    """The readings of one window's length, `STEPS` of them. `families`: those that are needed over it."""

    def __init__(self, window_s: float, families: Collection[str]) -> None:
        self.window_s = window_s
        self.families = frozenset(families)
        self._kept: list[tuple[float, Numbers]] = []
        self._now: Numbers = {}

    def add(self, now_s: float, numbers: Numbers) -> None:
        """Take a reading; it is kept if the one before is old enough."""
        self._now = numbers
        if not self._kept or now_s - self._kept[-1][0] >= self.window_s / STEPS:
            self._kept.append((now_s, self._sparse(numbers)))
        while len(self._kept) > 1 and self._kept[1][0] <= now_s - self.window_s:
            del self._kept[0]

    def _sparse(self, numbers: Numbers) -> Numbers:
        """The families that are needed; counts that have not grown are the same objects as before."""
        before = self._kept[-1][1] if self._kept else {}
        sparse: dict[str, Counts] = {}
        for family in self.families:
            old, new = before.get(family, {}), numbers.get(family, {})
            sparse[family] = {
                labels: kept if (kept := old.get(labels)) is not None and kept == counts else counts
                for labels, counts in new.items()
            }
        return sparse

    def grown(self, family: str) -> dict[tuple[str, ...], list[float]]:
        """What the window has added to the counts; of a series that was not there yet, or has begun anew, all."""
        before = self._kept[0][1].get(family, {}) if self._kept else {}
        grown = {}
        for labels, counts in self._now.get(family, {}).items():
            old = before.get(labels)
            added = list(counts) if old is None else [now - then for now, then in zip(counts, old)]
            grown[labels] = list(counts) if min(added, default=0.0) < 0 else added
        return grown


def quantile(share: float, counts: Sequence[float], bounds: Sequence[float]) -> Optional[float]:
    """The value below which that share lies, evenly spread within its bucket, as Prometheus' `histogram_quantile` has
    it; above the last bound that bound. `counts`: by bucket, the last above all bounds. None: there is none."""
    total = sum(counts)
    if not total:
        return None
    rank = share * total
    below = 0.0
    for index, count in enumerate(counts[: len(bounds)]):
        if count and below + count >= rank:
            lower = bounds[index - 1] if index else 0.0
            return lower + (bounds[index] - lower) * (rank - below) / count
        below += count
    return bounds[-1]


class Measuring:
    """Works out the values of rules. For one thread."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules: tuple[Rule, ...] = ()
        self._histories: dict[float, History] = {}
        self.replace(rules)

    def replace(self, rules: Sequence[Rule]) -> None:
        """Take other rules; what is known of windows that they still have stays."""
        families: dict[float, set[str]] = {}
        for rule in rules:
            if rule.what in _FAMILIES:
                families.setdefault(rule.window_s, set()).add(_FAMILIES[rule.what][0])
        before = self._histories
        self._rules = tuple(rules)
        self._histories = {}
        for window_s, needed in families.items():
            history = before.get(window_s)
            # Of a family that was not read so far the beginning would be missing.
            kept = history is not None and needed <= history.families
            self._histories[window_s] = history if history is not None and kept else History(window_s, needed)

    def samples(self, now_s: float, reading: Reading) -> dict[str, dict[Labels, float]]:
        """By a rule's name: each series that can be judged, with its value. Call it at each look, once."""
        for history in self._histories.values():
            history.add(now_s, reading.numbers)
        return {rule.name: dict(self._values(rule, reading)) for rule in self._rules}

    def _values(self, rule: Rule, reading: Reading) -> list[tuple[Labels, float]]:
        counted = _FAMILIES.get(rule.what)
        if counted is not None:
            return self._counted(rule, counted[0], counted[1], reading.bounds_s)
        return _combined(rule, _NOW[rule.what](rule, reading))

    def _counted(
        self, rule: Rule, family: str, names: tuple[str, ...], bounds_s: tuple[float, ...]
    ) -> list[tuple[Labels, float]]:
        sums: dict[Labels, list[float]] = {}
        for values, counts in self._histories[rule.window_s].grown(family).items():
            labels = dict(zip(names, values))
            if rule.admits(labels):
                series = _series(rule, labels)
                before = sums.get(series)
                sums[series] = counts if before is None else [a + b for a, b in zip(before, counts)]
        found = []
        for series, counts in sums.items():
            by_bucket = family in ("latency", "ttft")
            if (sum(counts) if by_bucket else counts[0]) < max(1, rule.at_least):
                continue
            if not by_bucket:
                found.append((series, counts[1] / counts[0]))
            else:
                value = quantile(0.95, counts, bounds_s)
                if value is not None:
                    found.append((series, value * 1000))
        return found


def _series(rule: Rule, labels: Mapping[str, str]) -> Labels:
    return tuple((name, labels.get(name, "")) for name in rule.by)


Found = list[tuple[dict[str, str], float]]


def _combined(rule: Rule, found: Found) -> list[tuple[Labels, float]]:
    """The worst of what a rule does not tell apart."""
    worst = min if rule.below is not None else max
    values: dict[Labels, float] = {}
    for labels, value in found:
        if rule.admits(labels):
            series = _series(rule, labels)
            values[series] = worst(values.get(series, value), value)
    return list(values.items())


def _engine_down(rule: Rule, reading: Reading) -> Found:
    return [
        ({"model": e.model, "engine": e.id}, float(not e.available and e.state != "draining")) for e in reading.engines
    ]


def _model_without_engine(rule: Rule, reading: Reading) -> Found:
    available: dict[str, bool] = {}
    for engine in reading.engines:
        available[engine.model] = available.get(engine.model, False) or engine.available
    return [({"model": model}, float(not is_in)) for model, is_in in available.items()]


def _engine_anomaly(rule: Rule, reading: Reading) -> Found:
    return [
        ({"model": model, "engine": engine}, slowdown.times)
        for (model, engine), slowdown in reading.slowdowns.items()
        if slowdown.answers >= rule.at_least
    ]


def _queue_fill(rule: Rule, reading: Reading) -> Found:
    waiting, places = reading.queue
    return [({}, waiting / places)] if places else []


def _budget_used(rule: Rule, reading: Reading) -> Found:
    return [({"key": key}, used) for key, used in reading.budgets]


def _slo_burn_rate(rule: Rule, reading: Reading) -> Found:
    long_s = int(rule.window_s)
    return [
        (
            {"model": slo.model, "objective": slo.objective},
            min(slo.burn_by_s[long_s], slo.burn_by_s[BURN_WINDOWS_S[long_s]]),
        )
        for slo in reading.slos
        if slo.count_by_s[long_s] >= rule.at_least
    ]


def _slo_budget_remaining(rule: Rule, reading: Reading) -> Found:
    return [
        ({"model": slo.model, "objective": slo.objective}, slo.remaining)
        for slo in reading.slos
        if max(slo.count_by_s.values(), default=0) >= rule.at_least
    ]


_NOW: Mapping[str, Callable[[Rule, Reading], Found]] = {
    "engine_down": _engine_down,
    "model_without_engine": _model_without_engine,
    "engine_anomaly": _engine_anomaly,
    "queue_fill": _queue_fill,
    "budget_used": _budget_used,
    "slo_burn_rate": _slo_burn_rate,
    "slo_budget_remaining": _slo_budget_remaining,
}
