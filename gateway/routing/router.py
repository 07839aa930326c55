"""From a model's name to the pools to ask, in order: its own, then the other models' that it may fall back to.

`Router` owns the maps of models and names; they are replaced whole on reload, so readers need no lock. In which order
engines are asked is for `Tries` (tries.py). No I/O.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from random import Random
from typing import Callable, Optional

from gateway.errors import RequestRefused
from gateway.routing.accusers import Accusers
from gateway.routing.breaker import BreakerPolicy
from gateway.routing.decisions import Recorder, model_json
from gateway.routing.engine import DEFAULT_POLICY, Engine, ListedModel
from gateway.routing.nearness import IsNear, are_near, is_near_host
from gateway.routing.pool import ModelPool
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec
from gateway.routing.virtual import VirtualSpec

COUNTED_NAMES_MAX = 1000  # that engines may add to what is counted, ever: a stranger's list is no closed set


class Router:
    """All models.

    `fallback` is `any` (a model's own list, then the others in file order, as far as `reaches` says), `configured` (its
    own list) or `off`. `is_near` tells of hosts.
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
    ) -> None:
        self._strategy = strategy
        self._fallback = fallback
        self._seed = (rng or Random()).getrandbits(64)
        self.jitter = Random(self._seed).random
        self._clock = clock
        self._breaker = breaker
        self._recorder = recorder
        self._is_near = is_near
        self.accusers = Accusers(clock)
        self.pools: dict[str, ModelPool] = {}
        # What each engine has said, and what is listed because of it.
        self._listed: tuple[list[tuple[EngineSpec, Optional[tuple[ListedModel, ...]]]], tuple[ListedModel, ...]]
        self._listed = ([], ())
        self.reload(fleet)

    def reload(self, fleet: FleetSpec, renewed: Collection[str] = ()) -> tuple[Engine, ...]:
        """Serve another fleet from now on; returns the engines that are gone. Call from one thread at a time.

        `renewed` names the variables (`api_key_env`) whose secrets have changed. What was held against an engine is
        forgotten when it is asked with another key, or for another model.
        """
        gone: list[Engine] = []
        forgotten: list[Engine] = []
        pools: dict[str, ModelPool] = {}
        for spec in fleet.models:
            pool = self.pools.get(spec.name)
            if pool is None:
                pool = self.new_pool(spec)
                if self._recorder is not None and self.pools:
                    self._recorder({"op": "add", "model": spec.name, "spec": model_json(spec)})
            else:
                forget = _asked_otherwise(pool, spec, renewed)
                gone.extend(pool.reconfigure(spec, self._strategy, [engine.id for engine in forget]))
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
        made = fleet.virtual_by_name()
        virtual: dict[Optional[str], VirtualSpec] = {}
        virtual.update(made.items())
        # None stands for what requests get that name no model.
        if fleet.default_model in virtual:
            virtual[None] = virtual[fleet.default_model]
        else:
            routes[None] = routes.get(fleet.default_model) or next(iter(routes.values()))
        self.uses_affinity = any(pool.strategy_name == "prefix_affinity" for pool in pools.values())
        self.knows_context = any(spec.max_model_len is not None for spec in fleet.models)
        # One assignment each, and `routes` holds its own pools: a reader sees the old map or the new one.
        self.fleet = fleet
        self._virtual = virtual
        self._routes = routes
        self._own_lists = {name: self._own_list(fleet, pools[name].spec) for name in pools}
        own = {fleet.default_model: fleet.default_model} if fleet.wildcard and fleet.default_model else {}
        own.update({name: spec.name for name, spec in made.items()})
        self._counted: tuple[Sequence[ListedModel], dict[str, str]] = ((), {**own, **fleet.model_by_name()})
        self._names_of = {spec.name: (spec.name, *spec.aliases) for spec in fleet.models}
        self._names_of.update({spec.name: (spec.name, *spec.aliases) for spec in fleet.virtual})
        self.pools = pools
        return tuple(gone)

    def new_pool(self, spec: ModelSpec) -> ModelPool:
        """A pool with a random generator of its own: what one model draws depends on its own requests only."""
        rng = Random(f"{self._seed}:{spec.name}")
        return ModelPool(spec, self._strategy, rng, self._clock, self._breaker, self._recorder)

    def _route(self, fleet: FleetSpec, pools: dict[str, ModelPool], name: str) -> tuple[ModelPool, ...]:
        spec = pools[name].spec
        others = list(self._own_list(fleet, spec))
        if self._fallback == "any" and spec.fallbacks != ():  # an empty list says that there is to be none
            others += [other for other in pools if other != name and other not in others]
        return (pools[name], *(pools[other] for other in others))

    def _own_list(self, fleet: FleetSpec, spec: ModelSpec) -> tuple[str, ...]:
        """A model's own `fallbacks`, without aliases."""
        if self._fallback == "off":
            return ()
        by_alias = {alias: other.name for other in fleet.models for alias in other.aliases}
        return tuple(by_alias.get(other, other) for other in spec.fallbacks or ())

    def route_beyond(self, asked: ModelPool, name: str) -> tuple[ModelPool, ...]:
        """The pools for what is too long for `asked`, one of whose `context_fallbacks` is called `name`. Those after it
        that its own list does not name are within reach of both."""
        larger, *others = self.route(name)
        named = self._own_lists.get(larger.name, ())
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
        if asked is other or other.name in self._own_lists.get(asked.name, ()):
            return False
        return self._near(asked) is not False

    def is_near(self, pool: ModelPool) -> bool:
        """Whether all of a model's engines are known to be near."""
        return self._near(pool) is True

    def _near(self, pool: ModelPool) -> Optional[bool]:
        return are_near([engine.spec for engine in pool.engines], self._is_near)

    def fallbacks(self, model: str) -> list[tuple[str, str]]:
        """The other models that FALLBACK has for a model, in order, each with why it gets nothing now ("": it does)."""
        asked, *others = self._routes[model]
        return [(other.name, "" if self.reaches(asked, other) else self._why_not(asked, other)) for other in others]

    def _why_not(self, asked: ModelPool, other: ModelPool) -> str:
        near = self._near(asked)
        if near and self._near(other) is False:
            return "farther than its engines"
        doubtful = other if near else asked
        hosts = [engine.spec.host for engine in doubtful.engines if not engine.spec.is_echo]
        unknown = [host for host in dict.fromkeys(hosts) if self._is_near(host) is None]
        return f"nothing tells whether {', '.join(unknown[:3]) or 'it'} is in a private network"

    def names(self) -> tuple[str, ...]:
        """Every name that requests may use: models in file order, then aliases, then models made of others."""
        return tuple(name for name in (*self._routes, *self._virtual) if name is not None)

    def virtual(self, model: Optional[str]) -> Optional[VirtualSpec]:
        """The model made of others that has this name, or that is the default where `model` is None; None: it is none
        of those."""
        return self._virtual.get(model)

    def labels(self) -> list[str]:
        """All models as people are told of them: those made of others behind the others, with their members."""
        return [*sorted(self.pools), *sorted(spec.label for spec in self.fleet.virtual)]

    def models(self) -> tuple[str, ...]:
        """All models by their own names: those with engines, then those made of others."""
        return (*self.pools, *(spec.name for spec in self.fleet.virtual))

    def names_of(self, model: str) -> tuple[str, ...]:
        """All names of a configured model, its own first; just the name for one that is (or has become) unknown."""
        return self._names_of.get(model) or (model,)

    def listed(self) -> tuple[ListedModel, ...]:
        """What the engine that serves every name says it serves, in its order; empty when it has said nothing (yet),
        and for other fleets. Takes no lock."""
        if not self.fleet.wildcard:
            return ()
        engines = next(iter(self.pools.values())).engines
        said = [(engine.spec, engine.listed) for engine in engines]
        before, listed = self._listed
        # Every request may ask, and some list hundreds. `listed` is replaced whole, so one `is` tells.
        if len(said) == len(before) and all(a is c and b is d for (a, b), (c, d) in zip(said, before)):
            return listed
        found: dict[str, ListedModel] = {}
        for spec, names in said:
            for one in names or () if spec.model is None else (ListedModel(spec.model),):
                found.setdefault(one.id, one)
        listed = tuple(found.values())
        self._listed = (said, listed)  # replaced whole; of two at once, each is right
        return listed

    def unnamed(self) -> Optional[str]:
        """The model of a request that names none, where one engine serves every name: the default that was set, else
        the first that the engine lists; None: not known, and for other fleets, whose default has a route."""
        fleet = self.fleet
        if not fleet.wildcard:
            return None
        if fleet.default_model != fleet.models[0].name:
            return fleet.default_model
        listed = self.listed()
        return listed[0].id if listed else None

    def counted_names(self) -> Mapping[str, str]:
        """Every name that has a count of its own, with the model it stands for: all that requests may use; where one
        engine serves every name, those that it has listed."""
        before, names = self._counted
        listed = self.listed()
        if listed is before or not listed:
            return names
        new = [one.id for one in listed if one.id not in names][: max(0, COUNTED_NAMES_MAX - len(names))]
        names = {**names, **{name: name for name in new}}
        self._counted = (listed, names)  # replaced whole; of two at once, the next one makes up for it
        return names

    def route(
        self, model: Optional[str], allow_fallback: bool = True, may_use: Optional[Callable[[str], bool]] = None
    ) -> tuple[ModelPool, ...]:
        """The pools to ask for `model` (None: the default), first its own. Raises `model_not_found`, which names those
        models that the caller `may_use` (None: all); `endpoint_not_served` for one that is made of others, `forbidden`
        where the caller may not use that."""
        route = self._routes.get(None if self.fleet.wildcard else model)
        if route is None:
            raise self._unrouted(model, may_use)
        return route if allow_fallback else route[:1]

    def _unrouted(self, model: Optional[str], may_use: Optional[Callable[[str], bool]]) -> RequestRefused:
        virtual = self._virtual.get(model)
        named = virtual.name if model is None and virtual is not None else (model or "")[:200]
        if virtual is None:
            known = ", ".join([name for name in sorted(self.models()) if may_use is None or may_use(name)][:20])
            text = f"the model {named!r} does not exist; known: {known or 'none to this key'}"
            return RequestRefused("model_not_found", text, param="model")
        if may_use is not None and not may_use(virtual.name):
            return RequestRefused("forbidden", f"the model {named} is not allowed for this key", param="model")
        text = f"the {'default ' * (model is None)}model {named!r} is made of others: it answers chat completions only"
        return RequestRefused("endpoint_not_served", text, param="model")


def _asked_otherwise(pool: ModelPool, spec: ModelSpec, renewed: Collection[str]) -> list[Engine]:
    """The engines that stay, with the same address, but with another key or under another model's name."""

    def identity(engine: EngineSpec) -> tuple[object, ...]:
        return engine.id, engine.url, engine.model, engine.api_key_env

    same = {identity(engine) for engine in spec.engines if engine.api_key_env not in renewed}
    stay = {(engine.id, engine.url) for engine in spec.engines}
    return [e for e in pool.engines if (e.spec.id, e.spec.url) in stay and identity(e.spec) not in same]
