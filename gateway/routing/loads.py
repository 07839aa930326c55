"""Which engines of a large fleet carry least, kept up with every place that is taken or given back.

Looking at each engine for each request costs 0.14 us an engine: nothing for ten of them, 1.4 ms for ten thousand, under
the pool's lock. `Loads` keeps the engines that are in sorted into groups of equal load instead, so that a choice costs
the same for any number of them; `Costs` keeps them by expected wait, in a heap. Both give what looking at each would.
The pool's lock guards them. They choose nothing by themselves: strategies and the `Chooser` ask them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence
from itertools import count
from random import Random
from typing import Optional

from gateway.routing.engine import EWMA_TAU_S, FAILURE_LATENCY_S, SUSPECT_S, Engine, faded

LEAST_ENGINES = 32  # with fewer, looking at each is as fast
USUAL_WEIGHT = 0.02  # of the engine that has changed last, in the usual latency
_IDLE = 1e-12
_DRAWS = 4  # until one is found that was not tried, before each is looked at


class _Spot:
    """Where an engine stands: in a group at a place, or in none (it is full, or suspect)."""

    __slots__ = ("engine", "group", "in_flight", "place", "trusted", "weight")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.group: Optional[list[_Spot]] = None
        self.place = 0
        self.in_flight = 0  # as counted in `Loads.in_flight`, if it is trusted
        self.weight = 0  # as counted in `Loads.weights`
        self.trusted = False


class Loads:
    """The loads of `engines`. Tell it of every change of one of them (`changed`), and when others are in (`follow`).

    `weights` and `in_flight` are sums over those that are trusted: that have not failed a moment ago. `free`: how many
    are not full, `places`: how many requests all may have at once, as far as that is limited.
    """

    def __init__(self, engines: Sequence[Engine], rng: Random, now_s: float, costs: Optional[Costs] = None) -> None:
        self.engines: Sequence[Engine] = ()
        self.costs = costs
        self.weights = self.in_flight = self.free = self.places = 0
        self._rng = rng
        # By requests in flight per weight, then by weight. A load without engines is taken out when it is the least.
        self._groups: dict[float, dict[int, list[_Spot]]] = {}
        self._levels: list[float] = []  # a heap of the keys
        self._suspects: list[tuple[float, int, Engine]] = []  # a heap: trusted again from then on
        self._number = count()
        self._spots: dict[Engine, _Spot] = {}
        self._occupied: set[Engine] = set()  # those that are full
        self.follow(engines, now_s)

    def follow(self, engines: Sequence[Engine], now_s: float) -> None:
        """These are in now, with other weights maybe. What is known of those that were in before stays."""
        self.engines = engines
        self.places = sum(engine.spec.max_concurrency or 0 for engine in engines)
        spots, kept = self._spots, set(engines)
        for engine in [engine for engine in spots if engine not in kept]:
            self._drop(spots.pop(engine))
        for engine in engines:
            spot = spots.get(engine)
            if spot is None:
                spots[engine] = _Spot(engine)
                self._occupied.add(engine)
                self.changed(engine, now_s)
            elif spot.weight != engine.weight:
                self.changed(engine, now_s)
        self.free = len(spots) - len(self._occupied)

    def _drop(self, spot: _Spot) -> None:
        self._step_out(spot)
        if spot.trusted:
            self.weights -= spot.weight
            self.in_flight -= spot.in_flight
        self._occupied.discard(spot.engine)
        if self.costs is not None:
            self.costs.changed(spot.engine, False)

    def _step_out(self, spot: _Spot) -> None:
        group = spot.group
        if group is not None:
            last = group.pop()
            if last is not spot:
                group[spot.place] = last
                last.place = spot.place
            spot.group = None

    def changed(self, engine: Engine, now_s: float) -> None:
        """It has another number of requests in flight, has failed, or has been measured. O(log n) at worst."""
        spot = self._spots.get(engine)
        if spot is None:
            return  # it is out
        self._step_out(spot)
        if spot.trusted:
            self.in_flight += engine.in_flight - spot.in_flight
            self.weights += engine.weight - spot.weight
        spot.in_flight = in_flight = engine.in_flight
        spot.weight = engine.weight
        limit = engine.spec.max_concurrency
        full = limit is not None and in_flight >= limit
        if full != (engine in self._occupied):
            if full:
                self._occupied.add(engine)
            else:
                self._occupied.remove(engine)
            self.free = len(self._spots) - len(self._occupied)
        trusted = now_s - engine.failed_at_s >= SUSPECT_S
        if trusted != spot.trusted:
            spot.trusted = trusted
            self.weights += engine.weight if trusted else -engine.weight
            self.in_flight += in_flight if trusted else -in_flight
        if not trusted:
            self.look(now_s)  # where nobody asks for the least, those whose time is over would pile up
            heapq.heappush(self._suspects, (engine.failed_at_s + SUSPECT_S, next(self._number), engine))
        elif not full:
            self._enter(spot, in_flight / engine.weight, engine.weight)
        if self.costs is not None:
            self.costs.changed(engine, trusted)

    def _enter(self, spot: _Spot, level: float, weight: int) -> None:
        groups = self._groups.get(level)
        if groups is None:
            groups = self._groups[level] = {}
            heapq.heappush(self._levels, level)
        group = groups.get(weight)
        if group is None:
            group = groups[weight] = []
        spot.group = group
        spot.place = len(group)
        group.append(spot)

    def look(self, now_s: float) -> None:
        """Trust those again whose failure is long enough ago."""
        suspects = self._suspects
        while suspects and suspects[0][0] <= now_s:
            engine = suspects[0][2]
            if now_s - engine.failed_at_s >= SUSPECT_S:
                heapq.heappop(suspects)
                spot = self._spots.get(engine)
                if spot is not None and not spot.trusted:
                    self.changed(engine, now_s)
            elif engine.failed_at_s + SUSPECT_S > suspects[0][0]:
                heapq.heappop(suspects)  # it has failed again, and stands here once more
            else:
                break  # by the last bit of a float, not yet

    def least(self, now_s: float, besides: Collection[Engine] = ()) -> Optional[Engine]:
        """One of those with the fewest requests in flight per weight that are not full, and not among `besides`; one
        that failed a moment ago only if there is no other. Among equals the weight decides how often. None: there is
        none."""
        self.look(now_s)
        for _ in range(_DRAWS):
            engine = self._drawn()
            if engine is None:
                break
            if engine not in besides:
                return engine
        if not self.free:
            return None
        return least_of([e for e in self.engines if not e.full() and e not in besides], now_s, self._rng)

    def _drawn(self) -> Optional[Engine]:
        levels = self._levels
        while levels:
            groups = self._groups[levels[0]]
            if len(groups) == 1:
                (group,) = groups.values()
                if group:
                    return group[int(self._rng.random() * len(group))].engine
            else:
                ticket = self._rng.random() * sum(weight * len(group) for weight, group in groups.items())
                for weight, group in groups.items():
                    ticket -= weight * len(group)
                    if group and ticket < 0:
                        return group[int(self._rng.random() * len(group))].engine
                last = next((group for group in groups.values() if group), None)
                if last is not None:  # by the last bit of a float
                    return last[0].engine
            del self._groups[heapq.heappop(levels)]
        return None


def least_of(engines: Sequence[Engine], now_s: float, rng: Random) -> Optional[Engine]:
    """The one with the fewest requests in flight per weight, by looking at each; a recent failure ranks behind; ties
    are broken at random, by weight. None: there are no engines."""
    best: list[Engine] = []
    best_load = (True, math.inf)
    for engine in engines:
        load = (engine.suspect(now_s), engine.in_flight / engine.weight)
        if load < best_load:
            best_load = load
            best = [engine]
        elif load == best_load:
            best.append(engine)
    if len(best) < 2:
        return best[0] if best else None
    # Among equals the weight decides how often: an idle engine of weight 2 gets two of three requests.
    return rng.choices(best, [engine.weight for engine in best])[0]


class Costs:
    """Engines by `Engine.expected_cost`, least first.

    That is (ewma * fade + 1e-6) * load, and all fade alike: ewma * load in the order of its logarithm plus the time of
    its measurement stays in order while time passes. The 1e-6 is left to compare among the first few. Those never
    measured count as `usual_s`, an average of what is measured of the others (idle ones as if they took no time), and
    stand in a heap of their own.
    """

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._measured: list[tuple[float, float, int, Engine]] = []  # heaps; what is not in `_valid` is out of date
        self._unmeasured: list[tuple[float, float, int, Engine]] = []
        self._valid: dict[Engine, int] = {}
        self._number = 0
        self._average_s = 0.0  # of the latencies of those that have changed
        self._average_at_s = 0.0

    def changed(self, engine: Engine, trusted: bool) -> None:
        """Its load, its latency, or whether it is trusted may be another."""
        self._number += 1
        if not trusted:
            self._valid.pop(engine, None)
            return
        self._valid[engine] = self._number
        load = (engine.in_flight + 1) / engine.weight
        chance = self._rng.random()  # so that unmeasured engines are not tried in file order
        if engine.ewma_s:
            self._average_s += (USUAL_WEIGHT if self._average_s else 1.0) * (engine.ewma_s - self._average_s)
            self._average_at_s = max(self._average_at_s, engine.ewma_at_s)
            key = math.log(engine.ewma_s * load) + engine.ewma_at_s / EWMA_TAU_S
            heapq.heappush(self._measured, (key, chance, self._number, engine))
        else:
            key = load if engine.in_flight else load * _IDLE  # before all others
            heapq.heappush(self._unmeasured, (key, chance, self._number, engine))
        if len(self._measured) + len(self._unmeasured) > 4 * len(self._valid) + 64:
            self._measured = [entry for entry in self._measured if self._valid.get(entry[3]) == entry[2]]
            self._unmeasured = [entry for entry in self._unmeasured if self._valid.get(entry[3]) == entry[2]]
            heapq.heapify(self._measured)
            heapq.heapify(self._unmeasured)

    def usual_s(self, now_s: float) -> float:
        """The usual latency, as far as it has not faded."""
        return faded(self._average_s, self._average_at_s, now_s) if self._average_s else FAILURE_LATENCY_S

    def cheapest(self, now_s: float) -> Optional[Engine]:
        """The engine with the lowest expected wait; None: none is trusted."""
        best, best_cost = None, math.inf
        first = self._first(self._unmeasured)
        if first is not None:
            best, best_cost = first[3], first[3].expected_cost(now_s, self.usual_s(now_s))
        looked: list[tuple[float, float, int, Engine]] = []
        heap = self._measured
        while True:
            first = self._first(heap)
            if first is None or _unfaded(first[0], now_s) >= best_cost:
                break
            cost = first[3].expected_cost(now_s)
            if cost < best_cost:
                best, best_cost = first[3], cost
            if all(_unfaded(entry[0], now_s) >= best_cost for entry in heap[1:3]):
                break
            looked.append(heapq.heappop(heap))
        for entry in looked:
            heapq.heappush(heap, entry)
        return best

    def _first(self, heap: list[tuple[float, float, int, Engine]]) -> Optional[tuple[float, float, int, Engine]]:
        valid = self._valid
        while heap:
            if valid.get(heap[0][3]) == heap[0][2]:
                return heap[0]
            heapq.heappop(heap)
        return None


def _unfaded(key: float, now_s: float) -> float:
    """What a key is worth now: `expected_cost` is no less."""
    return math.exp(key - now_s / EWMA_TAU_S)
