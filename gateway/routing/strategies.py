"""How one engine is chosen among those that are in.

Each strategy is one small class with `select(engines, request)`; the pool has filtered availability before, so a
strategy cannot return an engine that is out. `engines` is the same tuple object until membership or availability
changes, which is what the cached orders below are keyed on. Called under the pool's lock only; no clock, no I/O;
randomness comes in. Of a large fleet the chooser keeps the loads (`loads.py`); without them each engine is looked at.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from heapq import heapify, heapreplace
from itertools import accumulate
from random import Random
from typing import Callable, NamedTuple, Optional, Protocol

from gateway.routing.engine import FAILURE_LATENCY_S, Engine, faded
from gateway.routing.loads import LEAST_ENGINES, Costs, Loads, least_of


class RouteRequest(NamedTuple):
    """What a strategy may look at: `affinity` (session or prompt prefix, empty when unknown), monotonic `now_s`."""

    affinity: bytes
    now_s: float


class Strategy(Protocol):
    """Chooses one of `engines` (never empty). Not thread-safe by itself: the pool's lock is held."""

    def select(self, engines: Sequence[Engine], request: RouteRequest) -> Engine: ...


class Informed:
    """A strategy that goes by the loads of all engines. `loads`: as the chooser keeps them; None: it does not."""

    loads: Optional[Loads] = None


class RoundRobin:
    """Smooth weighted round robin in O(log n): stride scheduling (Waldspurger, 1995) with exact integers.

    Engine i has stride L / weight_i (L = lcm of the weights) and its k-th turn at (2k - 1) * stride / 2, so after every
    sum(weights) choices each engine has had exactly its weight, evenly spread. Equal weights are a plain rotation.

    Where the same engines get other weights, nobody starts anew: each stays as far ahead of its share, or behind it, as
    it was (its lag, as in Stoica and others, 1996). However often weights change, that stays small.

    `scattered`: others go round among the same engines, so the rotation begins at a place drawn from `rng`. From the
    same place they would go in step, and meet at every engine.
    """

    FINENESS = 1 << 20  # into so many parts a stride is divided when turns are taken over: they are whole numbers

    def __init__(self, rng: Random, scattered: bool = False) -> None:
        self._rng = rng if scattered else None
        self._engines: Optional[Sequence[Engine]] = None
        self._next = 0
        self._turns: Optional[list[tuple[int, int, int]]] = None  # (due * 2, index, stride)
        self._given = 0  # turns since these were made
        self._whole = self._total = 1  # of these: L, and the sum of the weights

    def select(self, engines: Sequence[Engine], request: RouteRequest) -> Engine:
        if engines is not self._engines:
            self._prepare(engines)
        if self._turns is None:
            index = self._next % len(engines)
            self._next = index + 1
            return engines[index]
        due, index, stride = self._turns[0]
        heapreplace(self._turns, (due + 2 * stride, index, stride))
        self._given += 1
        return engines[index]

    def _prepare(self, engines: Sequence[Engine]) -> None:
        before, self._engines = self._engines, engines
        weights = [engine.weight for engine in engines]
        count, whole, given = len(engines), 1, 0
        for weight in set(weights):
            whole = whole * weight // math.gcd(whole, weight)
        if engines == before:  # but not the same tuple: weights have changed
            whole *= self.FINENESS
            strides = [whole // weight for weight in weights]
            self._turns = [(part * strides[i] // of, i, strides[i]) for i, part, of in self._waits(count)]
        elif min(weights) == max(weights):
            if before is None:
                self._next = self._drawn(count)
            self._turns = None
            return
        else:
            # What is due before a moment has been had. Of those due at once, any engine may be the first: it and the
            # ones behind it have negative indexes.
            moment, first = self._drawn(2 * whole), self._drawn(count)
            self._turns = []
            for index in range(first - count, first):
                stride = whole // weights[index]
                had = -(-moment // stride) // 2  # at odd multiples of half the stride
                self._turns.append(((2 * had + 1) * stride, index, stride))
                given += had
        self._given, self._whole, self._total = given, whole, sum(weights)
        heapify(self._turns)

    def _drawn(self, count: int) -> int:
        return 0 if self._rng is None else self._rng.randrange(count)

    def _waits(self, count: int) -> list[tuple[int, int, int]]:
        """How long each engine waits for its turn yet, from where all would be if turns could be shared: its index, and
        the two parts of a fraction, which says how many halves of its stride."""
        if self._turns is not None:
            given, whole, total, turns = self._given, self._whole, self._total, self._turns
        else:
            given, whole, total = self._next % count, 1, count
            turns = [(3 if index < given else 1, index, 1) for index in range(count)]
        return [(index, due * total - 2 * whole * given, stride * total) for due, index, stride in turns]


class WeightedRandom:
    """Each engine with probability weight / sum(weights): bisection over cumulative weights."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._engines: Optional[Sequence[Engine]] = None
        self._cumulative: list[int] = []

    def select(self, engines: Sequence[Engine], request: RouteRequest) -> Engine:
        if engines is not self._engines:
            self._engines = engines
            self._cumulative = list(accumulate(engine.weight for engine in engines))
        ticket = self._rng.random() * self._cumulative[-1]
        return engines[min(bisect_right(self._cumulative, ticket), len(engines) - 1)]


class LeastConnections(Informed):
    """The fewest requests in flight per weight; a recent failure ranks behind; ties are broken evenly at random."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def select(self, engines: Sequence[Engine], request: RouteRequest) -> Engine:
        loads = self.loads
        if loads is not None and loads.engines is engines:
            return loads.least(request.now_s) or engines[0]  # all are full
        return least_of(engines, request.now_s, self._rng) or engines[0]


class PowerOfTwo:
    """The less loaded of two engines drawn at random (Mitzenmacher, 2001): O(1) at any fleet size."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def select(self, engines: Sequence[Engine], request: RouteRequest) -> Engine:
        count = len(engines)
        if count == 1:
            return engines[0]
        draw = self._rng.random
        first = int(draw() * count)
        second = int(draw() * (count - 1))
        if second >= first:
            second += 1
        a, b = engines[first], engines[second]
        now_s = request.now_s
        load_a = (a.suspect(now_s), (a.in_flight + 1) / a.weight)
        load_b = (b.suspect(now_s), (b.in_flight + 1) / b.weight)
        return a if load_a <= load_b else b


class Latency(Informed):
    """The lowest expected wait: peak-EWMA latency (as in Finagle) times the requests already there; a recent failure
    ranks behind."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def select(self, engines: Sequence[Engine], request: RouteRequest) -> Engine:
        now_s = request.now_s
        loads = self.loads
        if loads is not None and loads.engines is engines and loads.costs is not None:
            loads.look(now_s)
            cheapest = loads.costs.cheapest(now_s)
            if cheapest is not None:
                return cheapest
        start = int(self._rng.random() * len(engines))  # so that unmeasured engines are not tried in file order
        best = engines[start]
        # Where good answers take seconds, no latency of a failure is slow enough to keep requests away from it.
        usual_s = _usual_s(engines, now_s)
        best_cost = (best.suspect(now_s), best.expected_cost(now_s, usual_s))
        for offset in range(1, len(engines)):
            engine = engines[start - offset]
            cost = (engine.suspect(now_s), engine.expected_cost(now_s, usual_s))
            if cost < best_cost:
                best, best_cost = engine, cost
        return best


def _usual_s(engines: Sequence[Engine], now_s: float) -> float:
    """The median latency of those that have been measured, as far as it has not faded, for those that have not."""
    measured = sorted(faded(engine.ewma_s, engine.ewma_at_s, now_s) for engine in engines if engine.ewma_s)
    return measured[len(measured) // 2] if 0 < len(measured) < len(engines) else FAILURE_LATENCY_S


class PrefixAffinity(Informed):
    """The same session or prompt prefix goes to the same engine, so that its KV cache is warm there.

    Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016): the next engine on the ring whose
    load stays within 1.25 times its fair share. A request without an affinity key goes where a random point falls.
    """

    BOUND = 1.25
    POINTS_TOTAL = 32768  # at most; and 64 points for each unit of weight in a small fleet

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._engines: Optional[Sequence[Engine]] = None
        self._points: list[int] = []
        self._owners: list[Engine] = []
        # Each engine's points, so that they are not hashed for each that comes or goes.
        self._own: dict[str, list[int]] = {}

    def select(self, engines: Sequence[Engine], request: RouteRequest) -> Engine:
        if engines is not self._engines:
            self._prepare(engines)
        if request.affinity:
            point = _hash64(request.affinity)
        else:
            point = self._rng.getrandbits(64)
        start = bisect_left(self._points, point)
        # One that failed a moment ago is empty for that reason: it neither counts in the bound nor takes the overflow.
        wary, weights, in_flight = self._trusted(engines, request.now_s)
        allowed = (in_flight + 1) * self.BOUND / weights
        seen: set[str] = set()
        for offset in range(len(self._owners)):
            engine = self._owners[(start + offset) % len(self._owners)]
            if engine.id in seen:
                continue
            seen.add(engine.id)
            if wary and engine.suspect(request.now_s):
                continue
            # At least one request is always allowed, however many engines share a small total.
            if engine.in_flight + 1 <= max(1.0, math.ceil(allowed * engine.weight)):
                return engine
            if len(seen) == len(engines):
                break
        return self._owners[start % len(self._owners)]

    def _trusted(self, engines: Sequence[Engine], now_s: float) -> tuple[bool, int, int]:
        """Whether there are engines that have not failed a moment ago, and of those (else of all) the weights and the
        requests in flight."""
        loads = self.loads
        if loads is not None and loads.engines is engines:
            loads.look(now_s)
            if loads.weights:
                return True, loads.weights, loads.in_flight
        trusted = [engine for engine in engines if not engine.suspect(now_s)]
        some = trusted or engines
        return bool(trusted), sum(engine.weight for engine in some), sum(engine.in_flight for engine in some)

    def _prepare(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        weights = sum(engine.weight for engine in engines)
        share = max(1, min(64, self.POINTS_TOTAL // max(1, weights)))
        known = self._own
        if len(known) > 2 * len(engines) + 64:
            known.clear()  # most have gone for good
        owner_by_point: dict[int, Engine] = {}
        for engine in engines:
            points = min(share * engine.weight, self.POINTS_TOTAL // 8)
            own = known.setdefault(engine.id, [])
            own.extend(_hash64(b"%s#%d" % (engine.id.encode(), k)) for k in range(len(own), points))
            for point in own[:points]:
                owner_by_point.setdefault(point, engine)
        self._points = sorted(owner_by_point)
        self._owners = [owner_by_point[point] for point in self._points]


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def kept_loads(
    before: Optional[Loads], strategy: Strategy, engines: Sequence[Engine], rng: Random, now_s: float
) -> Optional[Loads]:
    """The loads of engines, for a strategy that goes by them, or where places are limited; None: they are too few, or
    nobody asks. `before`: those of the engines that were in until now."""
    informed = strategy if isinstance(strategy, Informed) else None
    loads = None
    if len(engines) >= LEAST_ENGINES and (
        informed is not None or any(engine.spec.max_concurrency is not None for engine in engines)
    ):
        if before is None:
            loads = Loads(engines, rng, now_s, Costs(rng) if isinstance(strategy, Latency) else None)
        else:
            before.follow(engines, now_s)
            loads = before
    if informed is not None:
        informed.loads = loads
    return loads


def strategy_of(name: str, rng: Random, scattered: bool = False) -> Strategy:
    """A strategy from its beginning. `scattered`: others that know nothing of this one go by it, too, with an `rng` of
    their own. KeyError: there is none of that name."""
    if scattered and name == "round_robin":
        return RoundRobin(rng, scattered)
    return STRATEGY_BY_NAME[name](rng)


STRATEGY_BY_NAME: dict[str, Callable[[Random], Strategy]] = {
    "round_robin": RoundRobin,
    "random": WeightedRandom,
    "least_connections": LeastConnections,
    "power_of_two": PowerOfTwo,
    "latency": Latency,
    "prefix_affinity": PrefixAffinity,
}
