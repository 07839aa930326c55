"""From a model's name to the engines to ask, in order: one engine, another, then another model.

`Router` owns the map of models; the map is replaced whole on reload, so readers need no lock. `Tries` belongs to one
request and one thread. No I/O.
"""

from __future__ import annotations

import time
from random import Random
from typing import Callable, Optional

from gateway.errors import EngineFailed, GatewayError, RequestRefused
from gateway.routing.engine import Engine
from gateway.routing.pool import ModelPool
from gateway.routing.retry import Outcome
from gateway.routing.specs import FleetSpec

_CODE_BY_KIND = {
    "refused": "backend_unavailable",
    "connect_timeout": "backend_unavailable",
    "reset": "backend_unavailable",
    "timeout": "gateway_timeout",
}


class Router:
    """All models. `fallback` is `any` (other models in file order), `configured` (a model's own list) or `off`."""

    def __init__(
        self,
        fleet: FleetSpec,
        *,
        strategy: str = "round_robin",
        fallback: str = "any",
        rng: Optional[Random] = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._strategy = strategy
        self._fallback = fallback
        self._rng = rng or Random()
        self._clock = clock
        self.pools: dict[str, ModelPool] = {}
        self.reload(fleet)

    def reload(self, fleet: FleetSpec) -> tuple[Engine, ...]:
        """Serve another fleet from now on; returns the engines that are gone. Call from one thread at a time."""
        gone: list[Engine] = []
        pools: dict[str, ModelPool] = {}
        for spec in fleet.models:
            pool = self.pools.get(spec.name)
            if pool is None:
                pool = ModelPool(spec, self._strategy, self._rng, self._clock)
            else:
                gone.extend(pool.reconfigure(spec, self._strategy))
            pools[spec.name] = pool
        for name, pool in self.pools.items():
            if name not in pools:
                gone.extend(pool.retire())
        names = {alias: spec.name for spec in fleet.models for alias in spec.aliases}
        routes = {name: self._route(fleet, pools, name) for name in pools}
        for alias, name in names.items():
            routes[alias] = routes[name]
        # One assignment each, and `routes` holds its own pools: a reader sees the old map or the new one.
        self.fleet = fleet
        self._routes = routes
        self.pools = pools
        return tuple(gone)

    def _route(self, fleet: FleetSpec, pools: dict[str, ModelPool], name: str) -> tuple[ModelPool, ...]:
        own = pools[name].spec.fallbacks
        if self._fallback == "off":
            others: list[str] = []
        elif own is not None:
            others = list(own)
        elif self._fallback == "any":
            others = [other for other in pools if other != name]
        else:
            others = []
        by_alias = {alias: spec.name for spec in fleet.models for alias in spec.aliases}
        return (pools[name], *(pools[by_alias.get(other, other)] for other in others))

    def names(self) -> tuple[str, ...]:
        """Every name that requests may use: models in file order, then aliases."""
        return tuple(self._routes)

    def route(self, model: Optional[str], allow_fallback: bool = True) -> tuple[ModelPool, ...]:
        """The pools to ask for `model` (None: the default), first its own; raises `model_not_found`."""
        fleet = self.fleet
        if model is None or fleet.wildcard:
            route = self._routes.get(fleet.default_model or "") or next(iter(self._routes.values()))
        else:
            found = self._routes.get(model)
            if found is None:
                known = ", ".join(sorted(self.pools)[:20])
                raise RequestRefused(
                    "model_not_found",
                    f"the model {model[:200]!r} does not exist; known: {known}",
                    param="model",
                )
            route = found
        return route if allow_fallback else route[:1]


class Tries:
    """The tries of one request: which engine is asked next, and what the client is told when none is left."""

    __slots__ = ("_affinity", "_failure", "_here", "_index", "_limit", "_pools", "_tried", "sent")

    def __init__(self, pools: tuple[ModelPool, ...], attempts_per_model: int, affinity: bytes):
        self._pools = pools
        self._limit = attempts_per_model
        self._affinity = affinity
        self._index = 0
        self._here = 0
        self._tried: list[Engine] = []
        self._failure: Optional[Outcome] = None
        self.sent = 0

    def next(self) -> Optional[tuple[ModelPool, Engine]]:
        """The next engine with a place taken on it, or None when nothing is left to try."""
        while self._index < len(self._pools):
            pool = self._pools[self._index]
            if self._here < self._limit:
                engine = pool.acquire(self._tried, self._affinity)
                if engine is not None:
                    self._here += 1
                    return self._take(pool, engine)
            self._index += 1
            self._here = 0
        if self.sent < self._limit and not any(pool.any_available() for pool in self._pools):
            return self._last_resort()
        return None

    def _last_resort(self) -> Optional[tuple[ModelPool, Engine]]:
        """Of all candidate models the engine that returns soonest; among equals the first model's."""
        waits: list[tuple[float, int]] = []
        for index, pool in enumerate(self._pools):
            wait_s = pool.last_resort_wait_s(self._tried)
            if wait_s is not None:
                waits.append((wait_s, index))
        for _, index in sorted(waits):
            pool = self._pools[index]
            engine = pool.acquire_last_resort(self._tried)
            if engine is not None:
                return self._take(pool, engine)
        return None

    def _take(self, pool: ModelPool, engine: Engine) -> tuple[ModelPool, Engine]:
        self.sent += 1
        self._tried.append(engine)
        return pool, engine

    def failed(self, outcome: Outcome) -> None:
        """Remember why the last try failed. A 429 gives way to any other failure in what the client is told."""
        if outcome.kind != "rate_limited" or self._failure is None:
            self._failure = outcome

    def error(self) -> GatewayError:
        """What the client is told when no try is left."""
        failure = self._failure
        if failure is None or failure.kind == "rate_limited":
            waits = [w for w in (pool.shortest_rest_s() for pool in self._pools) if w is not None]
            if waits or failure is not None:
                return EngineFailed(
                    "backend_rate_limited",
                    "every engine of the model asks for a pause",
                    retry_after_s=min(waits, default=1.0),
                )
            if any(pool.all_full() for pool in self._pools):
                return EngineFailed("overloaded", "every engine of the model is at its limit", retry_after_s=1.0)
            return EngineFailed("backend_unavailable", "no engine of the model is available")
        code = _CODE_BY_KIND.get(failure.kind, "backend_error")
        return EngineFailed(code, failure.message or "the engine failed")
