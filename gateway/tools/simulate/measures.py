"""What has happened in a run: counts and histograms, no list that grows with the requests. No I/O."""

from __future__ import annotations

import math
from collections import Counter
from typing import Optional

from gateway.tools.loadtest.histogram import Histogram

MOMENTS = 120  # parts of the time of a run that are told one by one
BATCHES = 20  # parts of the counted time whose means tell how sure the mean is
_STUDENT_975 = 2.093  # of Student's distribution with 19 degrees of freedom


class Moment:
    """A part of the run: of the requests that came in it."""

    __slots__ = ("answered", "arrived", "busy_share", "failed", "in_flight_max", "in_flight_mean", "latency", "out")

    def __init__(self) -> None:
        self.arrived = 0
        self.answered = 0
        self.failed = 0
        self.latency = Histogram()
        self.in_flight_max = 0
        self.in_flight_mean = 0.0
        self.out = 0  # engines that a gateway does not choose
        self.busy_share: Optional[float] = None


class Measures:
    """Counts of one run that begins at `begin_s`, of the requests that come from `from_s` to `end_s`; `overhead_s`
    stands in each time."""

    def __init__(self, begin_s: float, from_s: float, end_s: float, overhead_s: float = 0.0) -> None:
        self.begin_s = begin_s
        self.from_s = from_s
        self.end_s = end_s
        self.overhead_s = overhead_s
        self.width_s = (end_s - begin_s) / MOMENTS
        self.moments = [Moment() for _ in range(MOMENTS)]
        self._batch_s = (end_s - from_s) / BATCHES
        self._batch_sums = [[0, 0.0] for _ in range(BATCHES)]
        self.latency = Histogram()
        self.first_token = Histogram()
        self.waited = Histogram()  # until an engine worked on it
        self.arrived = 0
        self.answered = 0
        self.failures: Counter[str] = Counter()
        self.retried = 0  # requests that were sent more than once, but for a hedge
        self.retries = 0
        self.hedged = 0
        self.hedges_won = 0
        self.fallbacks = 0
        self.prompt_tokens = 0.0  # that engines have worked on, whoever got them
        self.output_tokens = 0.0
        self.occupancy: Counter[int] = Counter()  # engines with so many requests, whenever they were looked at
        self.imbalance_sum = 0.0
        self.imbalance_count = 0

    def moment(self, at_s: float) -> Moment:
        """The part of the run that a time is in."""
        return self.moments[min(MOMENTS - 1, int((at_s - self.begin_s) / self.width_s))]

    def came(self, at_s: float) -> None:
        """A request has come."""
        self.moment(at_s).arrived += 1
        if at_s >= self.from_s:
            self.arrived += 1

    def well(self, at_s: float, latency_s: float, first_s: float, waited_s: float) -> None:
        """A request that came then was answered."""
        latency_ns = int((latency_s + self.overhead_s) * 1e9)
        moment = self.moment(at_s)
        moment.answered += 1
        moment.latency.record(latency_ns)
        if at_s < self.from_s:
            return
        self.answered += 1
        self.latency.record(latency_ns)
        self.first_token.record(int((first_s + self.overhead_s) * 1e9))
        self.waited.record(int(waited_s * 1e9))
        batch = self._batch_sums[min(BATCHES - 1, int((at_s - self.from_s) / self._batch_s))]
        batch[0] += 1
        batch[1] += waited_s

    def badly(self, at_s: float, code: str) -> None:
        """A request that came then got this error."""
        self.moment(at_s).failed += 1
        if at_s >= self.from_s:
            self.failures[code] += 1

    def looked(self, now_s: float, loads: list[int], out: int, busy_share: float) -> None:
        """The engines' requests at one moment, how many are out, and the share of slots that were busy since the last
        look."""
        moment = self.moment(now_s)
        most, mean = max(loads), sum(loads) / len(loads)
        moment.in_flight_max = max(moment.in_flight_max, most)
        moment.in_flight_mean = mean
        moment.out = max(moment.out, out)
        moment.busy_share = busy_share
        if now_s < self.from_s:
            return
        self.occupancy.update(loads)
        if mean > 0:
            self.imbalance_sum += most / mean
            self.imbalance_count += 1

    @property
    def imbalance(self) -> Optional[float]:
        """How many times the mean number of requests the fullest engine had, on average; None: nothing was seen."""
        return self.imbalance_sum / self.imbalance_count if self.imbalance_count else None

    def tail(self, least: int) -> float:
        """The share of engines with at least so many requests, on average over time."""
        total = sum(self.occupancy.values())
        return sum(count for load, count in self.occupancy.items() if load >= least) / total if total else 0.0

    def waited_mean_s(self) -> tuple[float, float]:
        """The mean time until an engine worked on a request, and half of its 95 % confidence interval by batch means;
        that is infinite where a batch is empty."""
        means = [total / count for count, total in self._batch_sums if count]
        if len(means) < BATCHES:
            return (sum(means) / len(means) if means else 0.0), math.inf
        mean = sum(means) / BATCHES
        spread = math.sqrt(sum((one - mean) ** 2 for one in means) / (BATCHES - 1))
        return mean, _STUDENT_975 * spread / math.sqrt(BATCHES)
