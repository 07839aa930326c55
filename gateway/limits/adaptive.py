"""Smaller limits while the gateway is behind: additive increase, multiplicative decrease (AIMD).

After Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance in Computer Networks"
(1989): halving what is offered ends an overload in a few steps, and recovering in small equal ones does not bring it
back at once. What is scarce is taken from the lowest priority first and given back to the highest first.

`AdaptiveLimits` owns one factor per priority, replaced whole, so that reading needs no lock; `tick` is for one thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Optional

FLOORS: Mapping[str, float] = MappingProxyType({"low": 0.1, "normal": 0.25, "high": 0.5})
"""What is left of a priority's limits at worst, lowest priority first. None is ever shut out."""
DECREASE = 0.5
RECOVERY_PER_S = 0.02
"""A priority comes back from its floor in less than a minute."""
CALM = 0.8
"""Of the target: below it limits recover, between both they stay, so that they do not swing."""


class AdaptiveLimits:
    """Factors for the limits of each priority, driven by how long requests wait and how many fail (`shares.py`: what
    of that counts, and that no one caller decides it).

    `target_queue_wait_s` and `target_error_rate` (0 ... 1): beyond either, one step down per `interval_s`, which gives
    the last step time to show; None: that signal counts for nothing. `floors`: the least factor of each priority, in
    the order in which they shrink. Raises ValueError for what cannot work.
    """

    def __init__(
        self,
        target_queue_wait_s: Optional[float],
        target_error_rate: Optional[float],
        floors: Mapping[str, float] = FLOORS,
        interval_s: float = 1.0,
    ) -> None:
        if not all(0 < floor <= 1 for floor in floors.values()):
            raise ValueError(f"a floor must be above 0 and at most 1: {dict(floors)}")
        for target in (target_queue_wait_s, target_error_rate):
            if target is not None and target <= 0:
                raise ValueError(f"a target must be above 0: {target}")
        self._targets = (target_queue_wait_s, target_error_rate)
        self._floors = dict(floors)
        self._interval_s = interval_s
        self._factors: Mapping[str, float] = MappingProxyType(dict.fromkeys(floors, 1.0))
        self._ticked_s: Optional[float] = None
        self._shrunk_s = -float("inf")

    def factors(self) -> Mapping[str, float]:
        """The factor of each priority now, from its floor to 1; does not change any more. Any thread."""
        return self._factors

    def tick(self, now_s: float, queue_wait_p95_s: Optional[float], error_rate: Optional[float]) -> bool:
        """Judge what was measured since the last tick; True when the factors have changed.

        `now_s` is monotonic; None: nothing was measured (no request came), which is calm. Call it once a second or so.
        """
        elapsed_s = 0.0 if self._ticked_s is None else max(now_s - self._ticked_s, 0.0)
        self._ticked_s = now_s
        strain = 0.0
        for measured, target in zip((queue_wait_p95_s, error_rate), self._targets):
            if measured is not None and target is not None:
                strain = max(strain, measured / target)
        factors = dict(self._factors)
        if strain > 1.0:
            if now_s - self._shrunk_s >= self._interval_s:
                self._shrunk_s = now_s
                self._shrink(factors)
        elif strain <= CALM:
            self._recover(factors, RECOVERY_PER_S * elapsed_s)
        if factors == self._factors:
            return False
        self._factors = MappingProxyType(factors)
        return True

    def _shrink(self, factors: dict[str, float]) -> None:
        for priority, floor in self._floors.items():
            if factors[priority] > floor:
                factors[priority] = max(factors[priority] * DECREASE, floor)
                return

    def _recover(self, factors: dict[str, float], step: float) -> None:
        for priority in reversed(list(self._floors)):
            if factors[priority] < 1.0:
                factors[priority] = min(factors[priority] + step, 1.0)
                return
