"""From a model's name to the pools to ask, in order: its own, then the other models' that it may fall back to.

`Router` owns the maps of models and names; they are replaced whole on reload, so readers need no lock. In which order
engines are asked is for `Tries` (tries.py). No I/O.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from random import Random
from typing import Callable, Optional

from gateway.routing.accusers import Accusers
from gateway.routing.breaker import BreakerPolicy
from gateway.routing.decisions import Recorder, model_json
from gateway.routing.engine import DEFAULT_POLICY, Engine
from gateway.routing.names import Names
from gateway.routing.nearness import IsNear, are_near, is_near_host
from gateway.routing.pool import ModelPool
from gateway.routing.providers import CHAT, OPENAI, RESPONSES
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec
from gateway.routing.splits import SplitSpec


class Router(Names):
    """All models.

    `fallback` is `any` (a model's own list, then the others in file order, as far as `reaches` says), `configured` (its
    own list) or `off`. `is_near` tells of hosts. `region`: whose engines come first; None: nobody's.
    `scattered`: other gateways choose among the same engines, so rotations begin at places of their own.
    """

    def __init__(
        self,
        fleet: FleetSpec,
        *,
        strategy: str = "round_robin",
        fallback: str = "any",
        rng: Optional[Random] = None,
        clock: Callable[[], float] = time.monotonic,
        breaker: BreakerPolicy = DEFAULT_POLICY,
        recorder: Optional[Recorder] = None,
        is_near: IsNear = is_near_host,
        region: Optional[str] = None,
        scattered: bool = False,
    ) -> None:
        super().__init__()
        self._strategy = strategy
        self._fallback = fallback
        self._seed = (rng or Random()).getrandbits(64)
        self.jitter = Random(self._seed).random
        self._clock = clock
        self._breaker = breaker
        self._recorder = recorder
        self._is_near = is_near
        self._place = region, scattered
        self.accusers = Accusers(clock)
        self.pools: dict[str, ModelPool] = {}
        self.sources: dict[str, ModelPool] = {}
        self._loaded = False
        self.reload(fleet)

    def reload(
        self,
        fleet: FleetSpec,
        renewed: Collection[str] = (),
        keep_weights: bool = False,
        unproven: bool = False,
    ) -> tuple[Engine, ...]:
        """Serve another fleet from now on; returns the engines that are gone. Call from one thread at a time.

        `renewed` names the variables (`api_key_env`) whose secrets have changed. What was held against an engine is
        forgotten when it is asked with another key, or for another model. With `keep_weights` engines that stay keep
        the weights that an operator gave them: it is the same configuration, and only what engines list, or which there
        are, has changed. With `unproven` engines that are new to a model are out until a probe of them passes.
        """
        gone: list[Engine] = []
        forgotten: list[Engine] = []
        pools: dict[str, ModelPool] = {}
        for spec in fleet.models:
            pool = self.pools.get(spec.name)
            if pool is None:
                pool = self.new_pool(spec)
                if self._recorder is not None and self._loaded:
                    self._recorder({"op": "add", "model": spec.name, "spec": model_json(spec)})
            elif not (keep_weights and pool.spec == spec and not renewed):  # else there is nothing new to it
                forget = _asked_otherwise(pool, spec, renewed)
                ids = [engine.id for engine in forget]
                gone.extend(pool.reconfigure(spec, self._strategy, ids, keep_weights, unproven))
                forgotten.extend(forget)
            pools[spec.name] = pool
        for name, pool in self.pools.items():
            if name not in pools:
                gone.extend(pool.retire())
        if gone or forgotten:
            self.accusers.forget([*gone, *forgotten])
        names = {alias: spec.name for spec in fleet.models for alias in spec.aliases}
        routes: dict[Optional[str], tuple[ModelPool, ...]]
        routes = {name: self._route(fleet, pools, name) for name in pools}
        for alias, name in names.items():
            routes[alias] = routes[name]
        prefixes: dict[str, tuple[ModelPool, ...]]
        prefixes = {spec.prefix: (pools[spec.name],) for spec in fleet.models if spec.prefix}
        for spec in fleet.models:
            if spec.prefix:  # only with a name behind it
                del routes[spec.name]
        self._name(fleet, routes)
        # None stands for what requests get that name no model.
        if not (None in self._virtual or None in (self.splits or ())):
            default = routes.get(fleet.default_model) or next(iter(routes.values()), None)
            if default is not None:
                routes[None] = default
        self.uses_affinity = any(pool.strategy_name == "prefix_affinity" for pool in pools.values())
        self.knows_context = any(spec.max_model_len is not None for spec in fleet.models)
        self.engines_differ = any(
            engine.endpoints is not None or engine.dialect not in (None, OPENAI) or engine.can_serve(RESPONSES)
            for spec in fleet.models
            for engine in spec.engines
        )
        # One assignment each, and `routes` holds its own pools: a reader sees the old map or the new one.
        self.fleet = fleet
        self._routes = routes
        self._by_prefix = prefixes
        self._own_lists = {name: self._own_list(fleet, pools[name].spec, pools) for name in pools}
        self.sources = self._sources_of(fleet, unproven)
        self.pools = pools
        self._loaded = True
        return tuple(gone)

    def _sources_of(self, fleet: FleetSpec, unproven: bool) -> dict[str, ModelPool]:
        """The groups' engines, which are asked what they serve, and get no requests: nothing is decided there."""
        sources: dict[str, ModelPool] = {}
        for spec in fleet.groups:
            pool = self.sources.get(spec.name)
            if pool is None:
                pool = ModelPool(spec, self._strategy, Random(0), self._clock, self._breaker)
            else:
                pool.reconfigure(spec, self._strategy, unproven=unproven)
            sources[spec.name] = pool
        for name, pool in self.sources.items():
            if name not in sources:
                pool.retire()
        return sources

    def new_pool(self, spec: ModelSpec) -> ModelPool:
        """A pool with a random generator of its own: what one model draws depends on its own requests only."""
        rng = Random(f"{self._seed}:{spec.name}")
        return ModelPool(spec, self._strategy, rng, self._clock, self._breaker, self._recorder, *self._place)

    def _route(self, fleet: FleetSpec, pools: dict[str, ModelPool], name: str) -> tuple[ModelPool, ...]:
        spec = pools[name].spec
        others = list(self._own_list(fleet, spec, pools))
        if self._fallback == "any" and spec.fallbacks != ():  # an empty list says that there is to be none
            named = {name, *others}
            others += [other.name for other in fleet.models if other.source is None and other.name not in named]
        return (pools[name], *(pools[other] for other in others))

    def _own_list(self, fleet: FleetSpec, spec: ModelSpec, pools: Collection[str]) -> tuple[str, ...]:
        """A model's own `fallbacks`, without aliases, as far as they are there: engines may list them still."""
        if self._fallback == "off" or not spec.fallbacks:
            return ()
        by_alias = {alias: other.name for other in fleet.models for alias in other.aliases}
        names = (by_alias.get(other, other) for other in spec.fallbacks)
        return tuple(name for name in names if name in pools and name != spec.name)

    @property
    def routed(self) -> Collection[Optional[str]]:
        """The names of models with engines, and None where requests that name none get one of them."""
        return self._routes.keys()

    def with_stand_ins(self, route: tuple[ModelPool, ...], names: Sequence[str]) -> tuple[ModelPool, ...]:
        """The route's first pool, and behind it the models of these names instead of its own."""
        others = [self._routes[name][0] for name in names if name in self._routes]
        return tuple(dict.fromkeys((route[0], *others)))

    def stand_ins_of(self, split: SplitSpec) -> Optional[tuple[str, ...]]:
        """The models that stand in for those of a split; None: those that each has itself. FALLBACK may say that there
        are to be none, but not of a chain, which is a model made of all of them."""
        return split.fallbacks if split.is_chain or self._fallback != "off" else ()

    def there(self, names: Sequence[str], path: str, residency: str = "") -> Collection[Optional[str]]:
        """Of these models, those that have an endpoint (of OpenAI's); where none has it, all with engines. With a
        residency, those that have engines within it; where none has, as if there was none."""
        if residency:
            routes = [(name, self._routes[name][0]) for name in names if name in self._routes]
            names = [name for name, pool in routes if pool.is_within(residency)] or names
            return [name for name in self.there(names, path) if name in names]
        if path in (CHAT, RESPONSES) and not self.engines_differ:
            return self.routed
        paths = (RESPONSES, CHAT) if path == RESPONSES else (path,)  # in whose words the others are asked
        pools = [(name, self._routes[name][0]) for name in names if name in self._routes]
        able = [name for name, pool in pools if not all(map(pool.lacks, paths))]
        return able or self.routed

    def stand_in(self, names: Sequence[str]) -> Optional[str]:
        """The first of these models that is there; None: none is."""
        return next((name for name in names if name in self._routes), None)

    def named_by(self, asked: ModelPool) -> Sequence[str]:
        """The models that its own list names to stand in, as far as they are there."""
        return self._own_lists.get(asked.name, ())

    def route_beyond(self, asked: ModelPool, name: str) -> tuple[ModelPool, ...]:
        """The pools for what is too long for `asked`, one of whose `context_fallbacks` is called `name`. Those after it
        that its own list does not name are within reach of both."""
        larger, *others = self.route(name)
        named = self.named_by(larger)
        return (larger, *[other for other in others if other.name in named or self.reaches(asked, other)])

    def reaches(self, asked: ModelPool, other: ModelPool) -> bool:
        """Whether what `asked` cannot answer may be sent to `other`, which comes after it in its route, now.

        To what its own list names, yes. To others not from a model whose engines are all near (see nearness.py), unless
        theirs are as well. While that is not known of a model, its prompts stay near, and none comes from there. Names
        move, so this is asked whenever a request is about to be sent.
        """
        return not self.must_stay(asked, other) or self.is_near(other)

    def must_stay(self, asked: ModelPool, other: ModelPool) -> bool:
        """Whether what `asked` cannot answer may be sent to `other` only where that is near."""
        if asked is other or other.name in self.named_by(asked):
            return False
        return self._near(asked) is not False

    def is_near(self, pool: ModelPool) -> bool:
        """Whether all of a model's engines are known to be near."""
        return self._near(pool) is True

    def _near(self, pool: ModelPool) -> Optional[bool]:
        return are_near([engine.spec for engine in pool.engines], self._is_near)

    def fallbacks(self, model: str) -> list[tuple[str, str]]:
        """The other models that FALLBACK has for a model, in order, each with why it gets nothing now ("": it does)."""
        asked, *others = self._routes.get(model) or (self.pools[model],)
        return [(other.name, "" if self.reaches(asked, other) else self._why_not(asked, other)) for other in others]

    def _why_not(self, asked: ModelPool, other: ModelPool) -> str:
        near = self._near(asked)
        if near and self._near(other) is False:
            return "farther than its engines"
        doubtful = other if near else asked
        hosts = [engine.spec.host for engine in doubtful.engines if not engine.spec.is_echo]
        unknown = [host for host in dict.fromkeys(hosts) if self._is_near(host) is None]
        return f"nothing tells whether {', '.join(unknown[:3]) or 'it'} is in a private network"

    def serves(self, model: object, path: str) -> bool:
        """Whether an engine of the model that a request names, or of one that may answer for it, has an endpoint (of
        OpenAI's), as far as was said."""
        asked = model if isinstance(model, str) and model else self.unnamed()
        named = None if self.fleet.wildcard else asked
        split = (self.splits or {}).get(named)
        names = [named] if split is None else [*(name for name, _ in split.shares), *(split.fallbacks or ())]
        routes = [self._routes.get(name) or self._by_its_prefix(name) for name in names]
        pools = [route[0] for route in routes if route is not None]
        return any(engine.spec.can_serve(path) for pool in pools for engine in pool.engines)

    def route(
        self, model: Optional[str], allow_fallback: bool = True, may_use: Optional[Callable[[str], bool]] = None
    ) -> tuple[ModelPool, ...]:
        """The pools to ask for `model` (None: the default), first its own. Raises `model_not_found`, which names those
        models that the caller `may_use` (None: all); `endpoint_not_served` for one that is made of others, `forbidden`
        where the caller may not use that."""
        route = self._routes.get(None if self.fleet.wildcard else model) or self._by_its_prefix(model)
        if route is None:
            raise self._unrouted(model, may_use)
        return route if allow_fallback else route[:1]


def _asked_otherwise(pool: ModelPool, spec: ModelSpec, renewed: Collection[str]) -> list[Engine]:
    """The engines that stay, with the same address, but with another key or under another model's name."""

    def identity(engine: EngineSpec) -> tuple[object, ...]:
        return (
            engine.id,
            engine.url,
            engine.model,
            engine.api_key_env,
            engine.provider,
            engine.dialect,
            engine.api_version,
        )

    same = {identity(engine) for engine in spec.engines if engine.api_key_env not in renewed}
    stay = {(engine.id, engine.url) for engine in spec.engines}
    return [e for e in pool.engines if (e.spec.id, e.spec.url) in stay and identity(e.spec) not in same]
