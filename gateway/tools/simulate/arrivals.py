"""When requests come: `poisson:2000/s` and the like, or a file of times. Pure; the generator comes in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from random import Random
from typing import Callable, NamedTuple

from gateway.tools.loadtest.arrivals import Stage
from gateway.tools.loadtest.durations import duration_s, rate

_BLOCK = 4096
GRAMMAR = (
    "poisson:RATE, constant:RATE, ramp:RATE,RATE, burst:RATE,RATE,MEAN_TIME,MEAN_TIME, diurnal:RATE,RATE,PERIOD"
    " or trace:FILE"
)


class Arrivals(NamedTuple):
    """How it is told, requests a second on average over so many seconds, and the times from 0 on until then, rising."""

    text: str
    mean_rate: Callable[[float], float]
    times: Callable[[Random, float], Iterator[float]]


def arrivals(text: str) -> Arrivals:
    """What a text names; not `trace:`, whose file somebody else reads. Raises ValueError."""
    name, _, rest = text.strip().partition(":")
    parts = [part.strip() for part in rest.split(",")]
    if (name, len(parts)) == ("poisson", 1):
        steady = _rate(parts[0])
        return Arrivals(text, lambda end_s: steady, lambda chance, end_s: _poisson(chance, steady, end_s))
    if (name, len(parts)) == ("constant", 1):
        steady = _rate(parts[0])
        return Arrivals(text, lambda end_s: steady, lambda chance, end_s: _even(steady, end_s))
    if (name, len(parts)) == ("ramp", 2):
        low, high = rate(parts[0]), rate(parts[1])
        if low + high <= 0:
            raise ValueError(f"one of the rates must be more than 0 in {text!r}")
        return Arrivals(text, lambda end_s: (low + high) / 2, lambda chance, end_s: _ramp(chance, low, high, end_s))
    if (name, len(parts)) == ("diurnal", 3):
        low, high, period_s = rate(parts[0]), _rate(parts[1]), _span(parts[2])
        return Arrivals(
            text,
            lambda end_s: _diurnal_mean(low, high, period_s, end_s),
            lambda chance, end_s: _diurnal(chance, low, high, period_s, end_s),
        )
    if (name, len(parts)) == ("burst", 4):
        low, high, quiet_s, busy_s = rate(parts[0]), _rate(parts[1]), _span(parts[2]), _span(parts[3])
        mean = (low * quiet_s + high * busy_s) / (quiet_s + busy_s)
        return Arrivals(
            text, lambda end_s: mean, lambda chance, end_s: _burst(chance, low, high, quiet_s, busy_s, end_s)
        )
    raise ValueError(f"must be {GRAMMAR}, not {text!r}")


def _rate(text: str) -> float:
    found = rate(text)
    if found <= 0:
        raise ValueError(f"must be more than 0, not {text!r}")
    return found


def _span(text: str) -> float:
    found = duration_s(text)
    if found <= 0:
        raise ValueError(f"must be more than 0, not {text!r}")
    return found


def trace(text: str, times_s: Sequence[float]) -> Arrivals:
    """Those times, from the first one on. Raises ValueError when there are fewer than two."""
    ordered = sorted(times_s)
    if len(ordered) < 2 or ordered[0] == ordered[-1]:
        raise ValueError("there are too few times of arrival")
    begin_s = ordered[0]
    mean = (len(ordered) - 1) / (ordered[-1] - begin_s)

    def times(chance: Random, end_s: float) -> Iterator[float]:
        return (at_s - begin_s for at_s in ordered if at_s - begin_s < end_s)

    return Arrivals(text, lambda end_s: mean, times)


def _poisson(chance: Random, per_s: float, end_s: float) -> Iterator[float]:
    at_s, mean_s, draw = 0.0, 1.0 / per_s, chance.expovariate
    while True:
        for gap in [draw(1.0) for _ in range(_BLOCK)]:
            at_s += gap * mean_s
            if at_s >= end_s:
                return
            yield at_s


def _even(per_s: float, end_s: float) -> Iterator[float]:
    index = 0
    while index / per_s < end_s:
        yield index / per_s
        index += 1


def _ramp(chance: Random, low: float, high: float, end_s: float) -> Iterator[float]:
    stage = Stage(low, high, end_s)
    come = chance.expovariate(1.0)
    while come < stage.expected:
        yield stage.when_s(come)
        come += chance.expovariate(1.0)


def _diurnal_mean(low: float, high: float, period_s: float, end_s: float) -> float:
    turned = 2 * math.pi * end_s / period_s
    return (low + high) / 2 - (high - low) / 2 * (math.sin(turned) / turned if turned else 1.0)


def _diurnal(chance: Random, low: float, high: float, period_s: float, end_s: float) -> Iterator[float]:
    """A sine from the low rate to the high one and back, by thinning (Lewis and Shedler, 1979)."""
    top = max(low, high)
    for at_s in _poisson(chance, top, end_s):
        now = (low + high) / 2 - (high - low) / 2 * math.cos(2 * math.pi * at_s / period_s)
        if chance.random() * top < now:
            yield at_s


def _burst(chance: Random, low: float, high: float, quiet_s: float, busy_s: float, end_s: float) -> Iterator[float]:
    """A Poisson process whose rate changes between two at random times (MMPP(2))."""
    begin_s, busy = 0.0, False
    while begin_s < end_s:
        until_s = begin_s + chance.expovariate(1.0) * (busy_s if busy else quiet_s)
        now = high if busy else low
        at_s = begin_s
        while now > 0:
            at_s += chance.expovariate(1.0) / now
            if at_s >= min(until_s, end_s):
                break
            yield at_s
        begin_s, busy = until_s, not busy
