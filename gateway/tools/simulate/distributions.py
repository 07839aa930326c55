"""Laws of chance as they are typed: `lognormal:300ms,0.6`. Pure; the generator comes in."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from random import Random
from typing import Callable, NamedTuple

BLOCK = 4096  # values drawn at once


class Distribution(NamedTuple):
    """A law: how it is told, its mean, and how a value is drawn."""

    text: str
    mean: float
    draw: Callable[[Random], float]

    def values(self, chance: Random) -> Iterator[float]:
        """Values without end."""
        draw = self.draw
        while True:
            yield from [draw(chance) for _ in range(BLOCK)]


GRAMMAR = "constant:X, exponential:MEAN, lognormal:MEDIAN,SIGMA, gamma:MEAN,SHAPE or uniform:LEAST,MOST"


def distribution(text: str, read: Callable[[str], float]) -> Distribution:
    """The law that a text names; `read` reads a value with its unit. Raises ValueError."""
    name, colon, rest = text.strip().partition(":")
    if not colon:
        return constant(text.strip(), read(name))
    parts = [part.strip() for part in rest.split(",")]
    known = {"constant": 1, "exponential": 1, "lognormal": 2, "gamma": 2, "uniform": 2}
    if known.get(name) != len(parts):
        raise ValueError(f"must be {GRAMMAR}, not {text!r}")
    first = read(parts[0])
    if name == "constant":
        return constant(text, first)
    if first <= 0 and name != "uniform":
        raise ValueError(f"the first value must be more than 0 in {text!r}")
    if name == "exponential":
        return Distribution(text, first, lambda chance: chance.expovariate(1.0) * first)
    if name == "uniform":
        last = read(parts[1])
        if last < first:
            raise ValueError(f"the second value must be no less than the first in {text!r}")
        return Distribution(text, (first + last) / 2, lambda chance: first + chance.random() * (last - first))
    shape = _positive(parts[1], text)
    if name == "gamma":
        return Distribution(text, first, lambda chance: chance.gammavariate(shape, first / shape))
    mu = math.log(first)
    return Distribution(text, first * math.exp(shape * shape / 2), lambda chance: chance.lognormvariate(mu, shape))


def _positive(text: str, of: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 100:
        raise ValueError(f"the second value must be a number above 0, at most 100, in {of!r}")
    return found


def constant(text: str, value: float) -> Distribution:
    """Always the same."""
    return Distribution(text, value, lambda chance: value)


def empirical(text: str, values: Sequence[float]) -> Distribution:
    """Any of those that were seen, each as often. Raises ValueError when there are none."""
    if not values:
        raise ValueError("there are no values to draw from")
    seen, count = tuple(values), len(values)
    return Distribution(text, sum(seen) / count, lambda chance: seen[int(chance.random() * count)])


def number(text: str) -> float:
    """A plain number that is not negative. Raises ValueError."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e12:
        raise ValueError(f"must be a number, not {text!r}")
    return found


class Zipf:
    """One of `count` things, the k-th most popular with a weight of 1 / k ** `exponent` (0: all alike)."""

    def __init__(self, count: int, exponent: float) -> None:
        self._cumulative = list(accumulate(rank**-exponent for rank in range(1, count + 1)))

    def values(self, chance: Random) -> Iterator[int]:
        """Ranks from 0, without end."""
        cumulative, total, most = self._cumulative, self._cumulative[-1], len(self._cumulative) - 1
        while True:
            yield from [min(most, bisect_left(cumulative, chance.random() * total)) for _ in range(BLOCK)]


def mixed(*numbers: int) -> float:
    """A number from 0 to 1 that looks drawn, the same for the same `numbers` (the finaliser of SplitMix64: Steele and
    others, 2014): what befalls the second try of request 7 does not depend on what came before."""
    state = 0
    for one in numbers:
        state = (state + one + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state / 2.0**64
