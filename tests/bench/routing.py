"""What choosing an engine costs, in this process: a model pool of 10 engines against one of 10 000.

Owns nothing. One choice is `ModelPool.acquire` plus the `settle` that gives the place back, as a
request does it. The two sizes are timed in turn, several times; the fastest batch of each counts,
because whatever else the machine does only ever adds time.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from .processes import BenchError

if TYPE_CHECKING:
    from gateway.routing.pool import ModelPool

SIZES = (10, 10_000)
_WEIGHTS = {"equal weights": (1,), "weights 1 to 3": (1, 2, 3)}
_BATCHES = 7
_BATCH_S = 0.03
_AFFINITIES = tuple(b"session-%d" % number for number in range(256))


def choice_costs() -> dict[str, dict[str, float]]:
    """Returns, by strategy and weights, the nanoseconds per choice for each size and their ratio.

    Raises BenchError when this checkout has no `gateway.routing.pool`.
    """
    try:
        from gateway.routing.strategies import STRATEGY_BY_NAME
    except ImportError as exc:
        raise BenchError(f"routing: this checkout cannot choose engines yet: {exc}") from exc
    return {
        f"{strategy}, {name}": _compare(strategy, weights)
        for strategy in STRATEGY_BY_NAME
        for name, weights in _WEIGHTS.items()
    }


def _compare(strategy: str, weights: tuple[int, ...]) -> dict[str, float]:
    pools = [_pool(strategy, size, weights) for size in SIZES]
    fastest = [min(times) for times in zip(*(map(_time, pools) for _ in range(_BATCHES)))]
    costs = {f"ns_{size}": cost * 1e9 for size, cost in zip(SIZES, fastest)}
    return {**costs, "ratio": fastest[1] / fastest[0]}


def _pool(strategy: str, size: int, weights: tuple[int, ...]) -> ModelPool:
    from gateway.routing.pool import ModelPool
    from gateway.routing.specs import EngineSpec, ModelSpec

    engines = tuple(
        EngineSpec("http://127.0.0.1:9000/v1", id=f"e{index}", weight=weights[index % len(weights)])
        for index in range(size)
    )
    spec = ModelSpec("m", engines)
    pool = ModelPool(spec, strategy, random.Random(7), time.monotonic)
    _choose(pool, 3)  # what a strategy prepares once per change of the fleet is not its choice
    return pool


def _time(pool: ModelPool) -> float:
    """Returns the seconds per choice of one batch."""
    count, spent_s = 1, 0.0
    while spent_s < _BATCH_S:
        count *= 2
        began = time.perf_counter()
        _choose(pool, count)
        spent_s = time.perf_counter() - began
    return spent_s / count


def _choose(pool: ModelPool, count: int) -> None:
    from gateway.routing.retry import Outcome

    ok = Outcome("ok")
    for number in range(count):
        lease = pool.acquire((), _AFFINITIES[number & 255])
        if lease is None:
            raise BenchError(f"routing: {pool.strategy_name} chose nothing among healthy engines")
        pool.settle(lease, ok, 0.01)
