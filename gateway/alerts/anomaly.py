"""Whether an engine answers slower than it usually does. Pure: counts and time come in.

Latencies spread like a lognormal distribution, so their logarithms are looked at, by an EWMA control chart (Roberts,
1959; NIST/SEMATECH e-Handbook of Statistical Methods, 6.3.2.4): a fast mean, in which each answer has the weight
`LAMBDA`, is compared with a slow mean and deviation, in limits of `LIMIT` times the deviation that the fast one would
have by chance, s * sqrt(LAMBDA / (2 - LAMBDA)). Slow mean and variance are weighted ones, moved on with each group of
answers (Finch, 2009, Incremental calculation of weighted mean and variance): by the time that has passed, with
`TAU_S`, so that the hours of the day are followed at any rate. While the engine is slower than usual they learn ten
times slower: what stays slow becomes usual after some five hours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

LAMBDA = 0.05
LIMIT = 5.0
FACTOR = 2.0
"""Less than twice as slow is never called slower, however regular the engine was."""
TAU_S = 3600.0
WEIGHT_MAX = 0.02
"""Of one answer in the slow mean, however long none came before."""
SLOWER = 0.1
WARM_UP = 100
WARM_UP_S = 600.0
"""No judgement before so many answers, nor so soon: after a start engines load models and fill caches."""
RECENT_S = 600.0
"""`recent` counts the answers of about the last ten minutes."""
OUTLIER = 2.0
"""A single answer counts as exp(2) = 7 times as slow as usual at most: one that hung for minutes says nothing."""
DEVIATION_MIN = 0.05


class Group(NamedTuple):
    """Answers that came since the last look: how many, and the sums of their logarithms (of seconds) and squares."""

    answers: int
    total: float
    squares: float


class Baseline:
    """What is usual for one engine. For one thread."""

    __slots__ = ("_at_s", "_began_s", "_fast", "_mean", "_variance", "count", "recent")

    def __init__(self, now_s: float) -> None:
        self._began_s = self._at_s = now_s
        self._mean = self._fast = self._variance = 0.0
        self.count = 0
        self.recent = 0.0

    def learn(self, group: Group, now_s: float) -> None:
        """Take over a group of answers that has come since the last one."""
        passed_s = max(0.0, now_s - self._at_s)
        self.recent *= math.exp(-passed_s / RECENT_S)
        self._at_s = now_s
        if not group.answers:
            return
        self.recent += group.answers
        mean = group.total / group.answers
        spread = max(0.0, group.squares / group.answers - mean * mean)
        if not self.count:
            self._mean = self._fast = mean
        fast = mean if self.count < WARM_UP else min(mean, self._mean + OUTLIER)
        self._fast += (1 - (1 - LAMBDA) ** group.answers) * (fast - self._fast)
        weight = min(1 - math.exp(-passed_s / TAU_S), WEIGHT_MAX * group.answers)
        if self.count < WARM_UP or now_s - self._began_s < WARM_UP_S:
            weight = max(weight, group.answers / (self.count + group.answers))
        elif self._slower() > 1:
            weight *= SLOWER
        difference = mean - self._mean
        self._mean += weight * difference
        self._variance = (1 - weight) * (self._variance + weight * difference * difference) + weight * spread
        self.count += group.answers

    def slower(self, now_s: float) -> float:
        """How many times slower than usual the last answers are; 1.0: not enough to say so, or nothing is known yet."""
        if self.count < WARM_UP or now_s - self._began_s < WARM_UP_S:
            return 1.0
        return self._slower()

    def recent_at(self, now_s: float) -> float:
        """About how many answers the last ten minutes had."""
        return self.recent * math.exp(-max(0.0, now_s - self._at_s) / RECENT_S)

    def _slower(self) -> float:
        deviation = max(DEVIATION_MIN, math.sqrt(self._variance))
        difference = self._fast - self._mean
        if difference < max(math.log(FACTOR), LIMIT * deviation * math.sqrt(LAMBDA / (2 - LAMBDA))):
            return 1.0
        return math.exp(difference)
