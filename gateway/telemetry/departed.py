"""Series of engines that are gone: kept for a while, for the last scrapes and alerts, and then dropped.

Where engines come and go all day, each with an address of its own, their series would be more every day. `Departed`
owns when each engine was first missed; the registry's lock guards that, as it does the series.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Callable

from gateway.telemetry.registry import Counter, Histogram, Metric, Registry

KEPT_S = 900.0  # longer than the windows of usual alerts, and than a scrape may fail

Pair = tuple[str, str]
"""A model and an engine of it."""


class Departed:
    """Drops series whose first two labels are a model and an engine that is gone. `metrics`: theirs, the first one
    having each engine that was ever asked. `count_locked` counts what is kept back, `forget_locked` drops what is kept
    of some engines beside the series. Thread-safe."""

    def __init__(
        self,
        registry: Registry,
        metrics: Sequence[Metric[Counter] | Metric[Histogram]],
        count_locked: Callable[[], None],
        forget_locked: Callable[[Collection[Pair]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._count_locked = count_locked
        self._forget_locked = forget_locked
        self._clock = clock
        self._missed_s: dict[Pair, float] = {}

    def look(self, present: Collection[Pair]) -> None:
        """These are the engines now: drop the series of those that were missed long enough. What comes late of one
        begins anew."""
        with self._registry.lock:
            now_s = self._clock()
            known = {(values[0], values[1]) for values in self._metrics[0].values_locked()}
            self._missed_s = {pair: self._missed_s.get(pair, now_s) for pair in known if pair not in present}
            gone = {pair for pair, since_s in self._missed_s.items() if now_s - since_s >= KEPT_S}
            if not gone:
                return
            self._count_locked()
            self._forget_locked(gone)
            for metric in self._metrics:
                metric.drop_locked([values for values in metric.values_locked() if values[:2] in gone])
            for pair in gone:
                del self._missed_s[pair]
