"""How long things took: counts in buckets whose width grows with their value, as HdrHistogram has them.

A value below 256 has a bucket of its own; above, each power of two is cut into 128 of equal width, so what a bucket
stands for is within 1/256 (0.4 %) of any value in it. Only buckets that hold something take memory: at most 128 for
each power of two between the least and the largest value. Values are whole numbers, here nanoseconds. No I/O, no lock:
one thread writes, and whoever reads beside it reads a copy.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

_BITS = 7  # of a value that are kept besides its highest
RELATIVE_ERROR = 0.5 / (1 << _BITS)
_CORRECTED_MAX = 100_000  # counts that one value adds: an expected interval of nanoseconds is a mistake


def index_of(value: int) -> int:
    """The bucket of a value; of a negative one that of 0."""
    if value <= 0:
        return 0
    shift = value.bit_length() - _BITS - 1
    return (shift << _BITS) + (value >> shift) if shift > 0 else value


def middle_of(index: int) -> float:
    """What a bucket stands for: its middle."""
    shift = (index >> _BITS) - 1
    if shift <= 0:
        return float(index)
    return float(((index - (shift << _BITS)) << shift) + ((1 << shift) - 1) / 2)


class Histogram:
    """Counts of values; least, largest and sum are exact."""

    __slots__ = ("count", "counts", "largest", "least", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.count = 0
        self.total = 0
        self.least = 0
        self.largest = 0

    def record(self, value: int) -> None:
        """Count a value."""
        index = index_of(value)
        counts = self.counts
        counts[index] = counts.get(index, 0) + 1
        self.total += value
        if value > self.largest:
            self.largest = value
        if value < self.least or not self.count:
            self.least = value
        self.count += 1

    def record_expected(self, value: int, interval: int) -> None:
        """Count a value, and what requests due every `interval` behind it would have seen: `value - interval`, `value -
        2 interval` and so on (HdrHistogram's recordValueWithExpectedInterval)."""
        self.record(value)
        missing = value - interval
        for _ in range(_CORRECTED_MAX):
            if missing < interval or interval <= 0:
                return
            self.record(missing)
            missing -= interval

    def add(self, other: Histogram) -> None:
        """Count all that another has counted."""
        if not other.count:
            return
        counts = self.counts
        for index, count in other.counts.items():
            counts[index] = counts.get(index, 0) + count
        self.least = min(self.least, other.least) if self.count else other.least
        self.largest = max(self.largest, other.largest)
        self.total += other.total
        self.count += other.count

    @property
    def mean(self) -> Optional[float]:
        """Their mean, exact; None without any."""
        return self.total / self.count if self.count else None

    def percentiles(self, percents: Sequence[float]) -> list[Optional[float]]:
        """For each, the value that so many percent of all do not exceed (the nearest rank's), within RELATIVE_ERROR;
        None without any. `percents` must rise."""
        if not self.count:
            return [None] * len(percents)
        found: list[Optional[float]] = []
        ordered = iter(sorted(self.counts.items()))
        index, seen = next(ordered)
        for percent in percents:
            # The product may be off by its last bit: 99.9 % of 1000 is 999, not 1000.
            rank = max(1, math.ceil(round(percent * self.count / 100, 6)))
            while seen < rank:
                index, count = next(ordered)
                seen += count
            found.append(float(self.largest) if rank == self.count else self._bounded(middle_of(index)))
        return found

    def _bounded(self, value: float) -> float:
        return min(max(value, self.least), self.largest)

    def spread(self) -> Iterator[tuple[float, float]]:
        """(percent, value) of each bucket, rising: the share of all that do not exceed it."""
        seen = 0
        for index, count in sorted(self.counts.items()):
            seen += count
            value = float(self.largest) if seen == self.count else self._bounded(middle_of(index))
            yield 100 * seen / self.count, value

    def packed(self) -> Packed:
        """What it has counted, in little memory."""
        ordered = sorted(self.counts.items())
        indexes = array("Q", (index for index, _ in ordered))
        counts = array("Q", (count for _, count in ordered))
        return Packed(indexes, counts, self.count, self.total, self.least, self.largest)


class Packed(NamedTuple):
    """A histogram put away: 16 bytes a bucket instead of some 100."""

    indexes: array[int]
    bucket_counts: array[int]
    total_count: int
    total: int
    least: int
    largest: int

    def unpacked(self) -> Histogram:
        """A new histogram with the same counts."""
        histogram = Histogram()
        histogram.counts = dict(zip(self.indexes, self.bucket_counts))
        histogram.count, histogram.total = self.total_count, self.total
        histogram.least, histogram.largest = self.least, self.largest
        return histogram
