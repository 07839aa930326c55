"""When a request of a model is asked of a second engine at once, and how many may be.

`Hedges` owns the latest latencies of a model and the budget of second tries. The pool's lock guards both: who calls a
method that ends in `_locked` holds it.
"""

from __future__ import annotations

from collections import deque
from typing import Optional

from gateway.routing.breaker import RetryBudget
from gateway.routing.specs import ModelSpec

P95_SAMPLES = 200
P95_LEAST = 20  # fewer say nothing about a 95th percentile


class Hedges:
    """The hedged requests of one model."""

    def __init__(self) -> None:
        self._latencies_s: deque[float] = deque(maxlen=P95_SAMPLES)

    def configure_locked(self, spec: ModelSpec) -> None:
        """Take over a configuration: the budget begins anew, what was measured stays."""
        self._after_ms = spec.hedge_after_ms
        self.by_latency = spec.hedge_after_ms == "p95"
        self._budget = RetryBudget(spec.hedge_ratio, least=1 if spec.hedge_ratio else 0)  # one, or nobody would see it

    def note_locked(self, latency_s: float) -> None:
        """An engine has answered well after so long."""
        if self.by_latency:
            self._latencies_s.append(latency_s)

    def after_s_locked(self, now_s: float) -> Optional[float]:
        """Count a request. See `ModelPool.hedge_after_s`."""
        self._budget.request(now_s)
        if isinstance(self._after_ms, (int, float)):
            return self._after_ms / 1000
        if self._after_ms is None or len(self._latencies_s) < P95_LEAST:
            return None
        return sorted(self._latencies_s)[int(len(self._latencies_s) * 0.95)]

    def take_locked(self, now_s: float) -> bool:
        """Take one second try; False when there is none left."""
        return self._budget.take(now_s)
