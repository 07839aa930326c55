"""A small metrics registry, rendered in Prometheus' text format 0.0.4.

Owns counters, gauges, histograms and their series; knows nothing of what they count. One lock per registry guards every
number and the table of series; it is held for a batch or a snapshot, never while formatting text, and callbacks that
supply numbers at scrape time run outside it.
Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
import re
import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Callable, Generic, Protocol, TypeVar

LabelledNumber = tuple[tuple[str, ...], float]
Sample = tuple[str, str, float]
"""Name suffix, a further label pair or "", number."""


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

    def samples_locked(self) -> list[Sample]:
        return [("", "", self.value)]


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

    def samples_locked(self) -> list[Sample]:
        return [("", "", self.value)]


class Histogram:
    """One distribution; counts are kept per bucket and cumulated only when rendered."""

    __slots__ = ("_bounds", "_counts", "_lock", "_sum")

    def __init__(self, lock: threading.Lock, bounds: tuple[float, ...]) -> None:
        self._lock = lock
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts `value` in the first bucket whose bound is not below it. Any thread."""
        with self._lock:
            self.observe_locked(value)

    def observe_locked(self, value: float) -> None:
        """`observe` for a caller that holds the registry's lock for a whole batch."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples_locked(self) -> list[Sample]:
        samples: list[Sample] = []
        total = 0
        for bound, count in zip((*self._bounds, math.inf), self._counts):
            total += count
            samples.append(("_bucket", f'le="{_number(bound)}"', total))
        return [*samples, ("_sum", "", self._sum), ("_count", "", total)]


class _Series(Protocol):
    def samples_locked(self) -> list[Sample]: ...


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
        # Without the lock: series are never removed, and dict.get is atomic.
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

    def snapshot_locked(self) -> list[tuple[tuple[str, ...], list[Sample]]]:
        return [(values, self._series[values].samples_locked()) for values in sorted(self._series)]


class _Declaration:
    """What a scrape says about one metric, and where its numbers come from (one of the two)."""

    __slots__ = ("head", "label_names", "metric", "name", "read")

    def __init__(self, name: str, kind: str, help_text: str, label_names: tuple[str, ...]) -> None:
        help_line = help_text.replace("\\", "\\\\").replace("\n", "\\n")
        self.name = name
        self.head = f"# HELP {name} {help_line}\n# TYPE {name} {kind}\n"
        self.label_names = label_names
        self.metric: Metric[Counter] | Metric[Gauge] | Metric[Histogram] | None = None
        self.read: Callable[[], Iterable[LabelledNumber]] | None = None


class Registry:
    """Every metric of one process, rendered in the order in which they were declared.

    Declaring a name twice, or an impossible name, raises ValueError.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._declared: dict[str, _Declaration] = {}

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Metric[Counter]:
        declared = self._declare(name, "counter", help_text, labels)
        metric = Metric(self.lock, declared.label_names, lambda: Counter(self.lock))
        declared.metric = metric
        return metric

    def gauge(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Metric[Gauge]:
        declared = self._declare(name, "gauge", help_text, labels)
        metric = Metric(self.lock, declared.label_names, lambda: Gauge(self.lock))
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
        metric = Metric(self.lock, declared.label_names, lambda: Histogram(self.lock, bounds))
        declared.metric = metric
        return metric

    def callback(
        self,
        name: str,
        kind: str,
        help_text: str,
        labels: Sequence[str],
        read: Callable[[], Iterable[LabelledNumber]],
    ) -> None:
        """Declares a metric whose numbers `read` supplies at every scrape, outside the lock.

        `kind` is "gauge" or "counter". `read` gives (label values, number) pairs, none for
        "not known now"; what it raises, `render` raises.
        """
        self._declare(name, kind, help_text, labels).read = read

    def render(self) -> bytes:
        """The scrape's body: one consistent snapshot of all series, plus the callbacks' numbers."""
        declared = list(self._declared.values())
        with self.lock:
            snapshots = [d.metric.snapshot_locked() if d.metric else [] for d in declared]
        parts: list[str] = []
        for declaration, series in zip(declared, snapshots):
            if declaration.read is not None:
                series = [(v, [("", "", n)]) for v, n in sorted(declaration.read())]
            parts.append(declaration.head)
            for values, samples in series:
                parts.extend(_lines(declaration, values, samples))
        # A lone surrogate in a configured name must not cost the whole scrape.
        return "".join(parts).encode("utf-8", "replace")

    def _declare(self, name: str, kind: str, help_text: str, labels: Sequence[str]) -> _Declaration:
        if not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", name):
            raise ValueError(f"not a metric name: {name!r}")
        for label in labels:
            if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", label) or label == "le":
                raise ValueError(f"{name}: not a label name: {label!r}")
        with self.lock:
            if name in self._declared:
                raise ValueError(f"declared twice: {name}")
            declared = self._declared[name] = _Declaration(name, kind, help_text, tuple(labels))
        return declared


def _lines(declaration: _Declaration, values: tuple[str, ...], samples: list[Sample]) -> list[str]:
    own = [f'{n}="{_escaped(v)}"' for n, v in zip(declaration.label_names, values)]
    lines = []
    for suffix, pair, number in samples:
        labels = ",".join([*own, pair] if pair else own)
        braces = f"{{{labels}}}" if labels else ""
        lines.append(f"{declaration.name}{suffix}{braces} {_number(number)}\n")
    return lines


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))  # also True and False
    if math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
