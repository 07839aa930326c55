"""A small metrics registry: counted here, read as one consistent whole (how it looks as text: exposition.py).

Owns counters, gauges, histograms and their series; knows nothing of what they count. One lock per registry guards every
number, exemplar and the table of series; it is held for a batch or a snapshot, never while formatting text, and
callbacks that supply numbers at scrape time run outside it.
"""

from __future__ import annotations

import math
import re
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterable, Sequence
from typing import Callable, Generic, Optional, Protocol, TypeVar, Union

from gateway.telemetry.exposition import Distribution, Exemplar, Family
from gateway.telemetry.merging import RULES

LabelledNumber = tuple[tuple[str, ...], float]
Numbers = list[tuple[tuple[str, ...], Union[float, Distribution]]]
"""A metric's series: label values, and what was counted."""
Traced = tuple[str, str, float]
"""Whose an observation is, for an exemplar: trace id, span id (hex), Unix seconds."""


class Counter:
    """One series that only grows. `value` is guarded by the registry's lock."""

    __slots__ = ("_lock", "value")

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self.value: float = 0

    def inc(self, amount: float = 1) -> None:
        """Adds `amount`; raises ValueError when it is negative. Any thread."""
        if amount < 0:
            raise ValueError(f"a counter cannot go down (by {amount})")
        with self._lock:
            self.value += amount

    def read_locked(self) -> float:
        return self.value


class Gauge:
    """One series that goes up and down. `value` is guarded by the registry's lock."""

    __slots__ = ("_lock", "value")

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self.value: float = 0

    def set(self, value: float) -> None:
        """Replaces the value. Any thread."""
        with self._lock:
            self.value = value

    def inc(self, amount: float = 1) -> None:
        """Adds `amount`, which may be negative. Any thread."""
        with self._lock:
            self.value += amount

    def read_locked(self) -> float:
        return self.value


class Histogram:
    """One distribution; counts are kept per bucket and cumulated only when rendered.

    Of each bucket the last observation of a sampled trace is kept beside its count, and nothing of any other.
    """

    __slots__ = ("_bounds", "_counts", "_exemplars", "_lock", "_sum")

    def __init__(self, lock: threading.Lock, bounds: tuple[float, ...]) -> None:
        self._lock = lock
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._exemplars: list[tuple[float, Traced] | None] | None = None  # most series never have any
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts `value` in the first bucket whose bound is not below it. Any thread."""
        with self._lock:
            self.observe_locked(value)

    def observe_locked(self, value: float, traced: Traced | None = None) -> None:
        """`observe` for a caller that holds the registry's lock for a whole batch. `traced` None: no exemplar."""
        index = bisect_left(self._bounds, value)
        self._counts[index] += 1
        self._sum += value
        if traced is not None:
            self._keep_locked(index, value, traced)

    def observe_all_locked(self, values: Sequence[float], traced: Callable[[int], Traced] | None = None) -> None:
        """`observe_locked` for each of many values. `traced`: whose the value at an index is; None: no exemplars."""
        bounds = self._bounds
        if len(values) < len(bounds):
            for index, value in enumerate(values):
                self.observe_locked(value, None if traced is None else traced(index))
            return
        # The values' places among the bounds by those of the bounds among the values, which are fewer.
        ordered, below = sorted(values), 0
        indices = () if traced is None else sorted(range(len(values)), key=values.__getitem__)
        for place, bound in enumerate((*bounds, math.inf)):
            up_to = bisect_right(ordered, bound, below)
            if up_to == below:
                continue
            self._counts[place] += up_to - below
            if traced is not None:
                last = max(indices[below:up_to])
                self._keep_locked(place, values[last], traced(last))
            below = up_to
        self._sum += sum(values)

    def _keep_locked(self, place: int, value: float, traced: Traced) -> None:
        if self._exemplars is None:
            self._exemplars = [None] * len(self._counts)
        self._exemplars[place] = (value, traced)  # to become an Exemplar where somebody reads it

    def read_locked(self) -> Distribution:
        exemplars: tuple[Exemplar | None, ...] = ()
        if self._exemplars is not None:
            exemplars = tuple(None if kept is None else Exemplar(kept[0], *kept[1]) for kept in self._exemplars)
        return Distribution(self._bounds, tuple(self._counts), self._sum, exemplars)


class _Series(Protocol):
    def read_locked(self) -> float | Distribution: ...


SeriesT = TypeVar("SeriesT", bound=_Series)


class Metric(Generic[SeriesT]):
    """A named metric and its series, one per tuple of label values; made by a Registry."""

    def __init__(self, lock: threading.Lock, label_names: tuple[str, ...], new_series: Callable[[], SeriesT]) -> None:
        self._lock = lock
        self._label_names = label_names
        self._new_series = new_series
        self._series: dict[tuple[str, ...], SeriesT] = {}
        if not label_names:
            self.labels_locked()  # so that a scrape shows 0 before the first event

    def labels(self, *values: str) -> SeriesT:
        """The series of these label values, made on first use; the same object every time.

        Raises ValueError when the number of values is not that of the declared names. Any thread.
        """
        # Without the lock: dict.get is atomic.
        series = self._series.get(values)
        if series is None:
            with self._lock:
                series = self.labels_locked(*values)
        return series

    def labels_locked(self, *values: str) -> SeriesT:
        """`labels` for a caller that holds the registry's lock."""
        series = self._series.get(values)
        if series is None:
            if len(values) != len(self._label_names):
                raise ValueError(f"labels {self._label_names} got the values {values}")
            series = self._series[values] = self._new_series()
        return series

    def values_locked(self) -> list[tuple[str, ...]]:
        """The label values of every series."""
        return list(self._series)

    def drop_locked(self, values: Iterable[tuple[str, ...]]) -> None:
        """Know nothing of these series any more. Who holds one counts in vain."""
        for one in values:
            self._series.pop(one, None)

    def snapshot_locked(self) -> Numbers:
        return [(values, self._series[values].read_locked()) for values in sorted(self._series)]


class _Declaration:
    """What a scrape says about one metric, and where its numbers come from (one of the two)."""

    __slots__ = ("family", "metric", "read")

    def __init__(self, name: str, kind: str, help_text: str, label_names: tuple[str, ...], merge: str) -> None:
        self.family = Family(name, kind, help_text, label_names, (), merge)
        self.metric: Metric[Counter] | Metric[Gauge] | Metric[Histogram] | None = None
        self.read: Callable[[], Iterable[LabelledNumber]] | None = None


class Registry:
    """Every metric of one process, in the order in which they were declared.

    Declaring a name twice, or an impossible name, raises ValueError. `catch_up_locked` is called with the lock before
    anything is read: whoever keeps something back to count it with more (usual.py) counts it then.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.catch_up_locked: Callable[[], None] = lambda: None
        self._declared: dict[str, _Declaration] = {}

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Metric[Counter]:
        declared = self._declare(name, "counter", help_text, labels)
        metric = Metric(self.lock, declared.family.label_names, lambda: Counter(self.lock))
        declared.metric = metric
        return metric

    def gauge(self, name: str, help_text: str, labels: Sequence[str] = (), *, merge: str) -> Metric[Gauge]:
        """`merge`: how several processes' values become one (`merging.RULES`)."""
        declared = self._declare(name, "gauge", help_text, labels, merge)
        metric = Metric(self.lock, declared.family.label_names, lambda: Gauge(self.lock))
        declared.metric = metric
        return metric

    def histogram(
        self, name: str, help_text: str, labels: Sequence[str] = (), *, buckets: Sequence[float]
    ) -> Metric[Histogram]:
        """`buckets`: upper bounds, ascending, without +Inf, in the unit of the metric's name."""
        bounds = tuple(buckets)
        if not bounds or list(bounds) != sorted(set(bounds)) or not math.isfinite(bounds[-1]):
            raise ValueError(f"{name}: buckets must ascend and end before +Inf: {bounds}")
        declared = self._declare(name, "histogram", help_text, labels)
        metric = Metric(self.lock, declared.family.label_names, lambda: Histogram(self.lock, bounds))
        declared.metric = metric
        return metric

    def callback(
        self,
        name: str,
        kind: str,
        help_text: str,
        labels: Sequence[str],
        read: Callable[[], Iterable[LabelledNumber]],
        merge: str = "",
    ) -> None:
        """Declares a metric whose numbers `read` supplies at every scrape, outside the lock.

        `kind` is "gauge", which says how several processes' values `merge`, or "counter". `read` gives (label values,
        number) pairs, none for "not known now"; what it raises, `collect` raises.
        """
        self._declare(name, kind, help_text, labels, merge).read = read

    def names(self) -> tuple[str, ...]:
        """Every metric's name."""
        return tuple(self._declared)

    def collect(self, names: Optional[Container[str]] = None) -> list[Family]:
        """Every metric as it is now: one consistent snapshot of all series, plus the callbacks' numbers. Any thread.

        `names`: those that are wanted; None: all. Raises what a callback raises.
        """
        declared = [d for name, d in list(self._declared.items()) if names is None or name in names]
        with self.lock:
            self.catch_up_locked()
            snapshots = [d.metric.snapshot_locked() if d.metric else [] for d in declared]
        return [
            d.family._replace(series=sorted(d.read()) if d.read is not None else snapshot)
            for d, snapshot in zip(declared, snapshots)
        ]

    def _declare(self, name: str, kind: str, help_text: str, labels: Sequence[str], merge: str = "") -> _Declaration:
        if not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", name):
            raise ValueError(f"not a metric name: {name!r}")
        if kind == "counter" and not name.endswith("_total"):
            raise ValueError(f"{name}: a counter's name ends with _total")
        if (merge not in RULES) if kind == "gauge" else merge:
            raise ValueError(f"{name}: a gauge, and nothing else, merges by one of {', '.join(RULES)}: {merge!r}")
        for label in labels:
            if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", label) or label == "le":
                raise ValueError(f"{name}: not a label name: {label!r}")
        with self.lock:
            if name in self._declared:
                raise ValueError(f"declared twice: {name}")
            declared = self._declared[name] = _Declaration(name, kind, help_text, tuple(labels), merge)
        return declared
