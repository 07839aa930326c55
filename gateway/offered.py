"""Which models are offered now: those configured, with the engines found for them, and those that engines list.

`Offered` owns the configured fleet, the engines that were last discovered for each of its models, and the names that
engines have ever brought. Its lock lets one change of the fleet be at a time, whether a reload, another list or other
engines; it is held while the router takes the fleet over, and never across I/O.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Callable, Optional

from gateway.routing.engine import Engine
from gateway.routing.found import discovered, with_found
from gateway.routing.listed import with_listed
from gateway.routing.pool import ModelPool
from gateway.routing.router import Router
from gateway.routing.sources import DiscoverSpec
from gateway.routing.specs import EngineSpec, FleetSpec

Serve = Callable[[FleetSpec, Sequence[str], bool, bool], None]
"""Takes over a fleet; the variables whose secrets have changed; whether engines keep the weights they were given;
whether new ones are out until a probe of them passes."""


class Offered:
    """The models of a router's fleet. Thread-safe. `probes`: engines are probed, and discovered ones out until then."""

    def __init__(self, router: Router, fleet: FleetSpec, serve: Serve, probes: bool = True) -> None:
        self.configured = fleet
        self._router = router
        self._serve = serve
        self._probes = probes
        self._ever: dict[str, None] = {}
        self._found: dict[str, tuple[EngineSpec, ...]] = {}
        self._lock = threading.Lock()

    def reload(self, fleet: FleetSpec, renewed: Sequence[str]) -> None:
        """Offer another fleet from now on, with what engines that stay have listed. Models whose engines are to be
        discovered have those that they had before, until there is word of them."""
        with self._lock:
            before = {model.name: model.engines for model in (*self._router.fleet.groups, *self._router.fleet.models)}
            self.configured = fleet
            self._found = {name: before[name] for name, _ in discovered(fleet) if name in before}
            self._serve(self._with_listed(), renewed, False, False)

    def rediscover(self, name: str, discover: DiscoverSpec, engines: tuple[EngineSpec, ...]) -> Optional[bool]:
        """These are the engines of a model (or group) now; returns whether they are others than before. None: it is
        not, or no longer, discovered that way.

        Engines that stay keep what is known of them, and their weights; those that are gone finish what they have.
        """
        with self._lock:
            if (name, discover) not in discovered(self.configured):
                return None
            before, self._found[name] = self._found.get(name, ()), engines
            if before != engines:
                self._serve(self._with_listed(), (), True, self._probes)
            return before != engines

    def relist(self, engine: Engine) -> None:
        """An engine lists other models than before."""
        with self._lock:
            if engine.removed or not self.is_source(engine):
                return
            fleet = self._with_listed()
            if fleet.models != self._router.fleet.models:
                self._serve(fleet, (), True, False)

    def _with_listed(self) -> FleetSpec:
        sources = self._router.sources.items()
        said = {(name, e.spec.id, e.spec.url): e.listed for name, pool in sources for e in pool.engines}
        fleet = with_found(self.configured, self._found)
        return with_listed(fleet, lambda group, e: said.get((group, e.id, e.url)), self._ever)

    def is_source(self, engine: Engine) -> bool:
        """Whether this is an engine of a group, which is asked what it serves."""
        pool = self._router.sources.get(engine.model_name)
        return pool is not None and engine in pool.engines

    def lists(self, engine: Engine) -> bool:
        """Whether it is of use to know what models an engine has: where they go by its own names."""
        listing = self._router.fleet.by_engines or self.is_source(engine)
        return listing and engine.spec.model is None and not engine.spec.is_echo

    def find(self, model: str, engine_id: str, url: str) -> list[tuple[ModelPool, Engine]]:
        """The engine of a model or a group that is called so and is there, and its pool; [] where there is none."""
        pools = (self._router.pools.get(model), self._router.sources.get(model))
        return [
            (pool, engine)
            for pool in pools
            if pool is not None
            for engine in pool.engines
            if engine.id == engine_id and engine.spec.url == url
        ]

    def probed_pools(self) -> list[ModelPool]:
        """All but the models that were listed, whose engines are those of their group."""
        own = [pool for pool in self._router.pools.values() if pool.spec.source is None]
        return [*own, *self._router.sources.values()]

    def followers(self, engine: Engine) -> list[tuple[ModelPool, Engine]]:
        """The same engine in the models that it has listed."""
        if not self.is_source(engine):
            return []
        listed = [pool for pool in self._router.pools.values() if pool.spec.source is not None]
        return [(pool, same) for pool in listed for same in pool.engines if same.spec == engine.spec]
