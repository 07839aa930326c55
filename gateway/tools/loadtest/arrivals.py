"""When requests are due in an open loop: at a rate that may change, evenly or as independent callers come.

The n-th request is due when the integral of the rate reaches n (evenly), or the sum of n draws from the exponential
distribution of mean 1 (a Poisson process of a rate that changes: the time change of its events). Nothing that a server
does moves a time: that is what makes the loop an open one. Pure; chance comes in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple, Optional

from gateway.tools.loadtest.durations import NS


class Stage(NamedTuple):
    """Some time in which the rate goes evenly from one to another. `duration_s` inf: it never ends, at an even rate."""

    from_rate: float
    to_rate: float
    duration_s: float

    @property
    def expected(self) -> float:
        """How many requests become due in it."""
        return (self.from_rate + self.to_rate) / 2 * self.duration_s if self.from_rate + self.to_rate else 0.0

    def when_s(self, count: float) -> float:
        """Seconds from its start until `count` requests have become due."""
        slope = (self.to_rate - self.from_rate) / self.duration_s if self.duration_s < math.inf else 0.0
        square = max(0.0, self.from_rate * self.from_rate + 2 * slope * count)
        return 2 * count / (self.from_rate + math.sqrt(square)) if count else 0.0

    def rate_at(self, after_s: float) -> float:
        """The rate so long after its start."""
        if self.duration_s == math.inf or self.duration_s <= 0:
            return self.to_rate
        return self.from_rate + (self.to_rate - self.from_rate) * min(1.0, after_s / self.duration_s)


def due_ns(stages: Sequence[Stage], begin_ns: int, chance: Optional[Random] = None) -> Iterator[int]:
    """The times at which requests are due, in nanoseconds, rising; `chance` None: evenly, else as a Poisson process."""
    began_s = begin_ns / NS
    passed, wanted = 0.0, 0.0 if chance is None else chance.expovariate(1.0)
    for stage in stages:
        until = passed + stage.expected
        while wanted < until and not _same(wanted, until):
            yield round((began_s + stage.when_s(wanted - passed)) * NS)
            wanted += 1.0 if chance is None else chance.expovariate(1.0)
        passed = until
        began_s += stage.duration_s


def _same(one: float, other: float) -> bool:
    """A sum of rates times durations may miss a whole number by its last bits, which is no request more."""
    return other < math.inf and abs(one - other) <= 1e-9 * max(1.0, other)


def rate_at(stages: Sequence[Stage], at_s: float) -> Optional[float]:
    """The rate at a time from the start of the first; None where there is no stage."""
    for stage in stages:
        if at_s < stage.duration_s:
            return stage.rate_at(max(0.0, at_s))
        at_s -= stage.duration_s
    return None
