"""Which names requests may use, and what each of them stands for.

`Names` owns the maps of names, which are replaced whole on reload, so readers need no lock; `Router`, its subclass,
finds the pools behind them. No I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

from gateway.errors import RequestRefused
from gateway.routing.engine import ListedModel
from gateway.routing.pool import ModelPool
from gateway.routing.specs import EngineSpec, FleetSpec
from gateway.routing.splits import SplitSpec
from gateway.routing.virtual import VirtualSpec

COUNTED_NAMES_MAX = 1000  # that engines may add to what is counted, ever: a stranger's list is no closed set
LATEST = ":latest"  # what Ollama's clients put behind a name, or leave out: the two are one name there


class Names:
    """The names of a fleet's models."""

    fleet: FleetSpec
    pools: dict[str, ModelPool]
    splits: Optional[dict[Optional[str], SplitSpec]]
    """The models that others answer for, by name; None: there are none."""
    _routes: dict[Optional[str], tuple[ModelPool, ...]]
    _by_prefix: dict[str, tuple[ModelPool, ...]]
    _names: tuple[str, ...]

    def __init__(self) -> None:
        # What each engine has said, and what is listed because of it.
        self._listed: tuple[list[tuple[EngineSpec, Optional[tuple[ListedModel, ...]]]], tuple[ListedModel, ...]]
        self._listed = ([], ())

    def _name(self, fleet: FleetSpec, routes: dict[Optional[str], tuple[ModelPool, ...]]) -> None:
        """Take over the names of another fleet. Those that lead to pools, in `routes`, get their other spellings."""
        made = fleet.virtual_by_name()
        virtual: dict[Optional[str], VirtualSpec] = {}
        virtual.update(made.items())
        by_name = fleet.split_by_name()
        splits: dict[Optional[str], SplitSpec] = {}
        splits.update(by_name.items())
        maps: tuple[dict[Optional[str], Any], ...] = (routes, splits, virtual)
        self._names = tuple(name for known in maps for name in known if name is not None)
        taken = frozenset(self._names)
        for known in maps:
            for name in [name for name in known if name in taken]:
                other = _other_spelling(name)
                if other not in taken:
                    known[other] = known[name]
        # None stands for what requests get that name no model.
        if fleet.default_model in virtual:
            virtual[None] = virtual[fleet.default_model]
        elif fleet.default_model in splits:
            splits[None] = splits[fleet.default_model]
        self._virtual = virtual
        self.has_virtual = bool(virtual)
        self.splits = splits or None
        own = {fleet.default_model: fleet.default_model} if fleet.by_engines and fleet.default_model else {}
        own.update({name: spec.name for name, spec in made.items()})
        self._counted: tuple[Sequence[ListedModel], dict[str, str]] = ((), {**own, **fleet.model_by_name()})
        self._names_of = {spec.name: (spec.name, *spec.aliases) for spec in fleet.models}
        self._names_of.update({spec.name: (spec.name, *spec.aliases) for spec in fleet.virtual})
        self._names_of.update({spec.name: (spec.name, *spec.aliases) for spec in fleet.splits})

    def names(self) -> tuple[str, ...]:
        """Every name that requests may use: models in file order, then aliases, then models without engines."""
        return self._names

    def virtual(self, model: Optional[str]) -> Optional[VirtualSpec]:
        """The model made of others that has this name, or that is the default where `model` is None; None: it is none
        of those."""
        return self._virtual.get(model)

    def labels(self) -> list[str]:
        """All models as people are told of them: those without engines behind the others, with their members."""
        prefixed = {spec.name: f"{spec.prefix}…" for spec in self.fleet.models if spec.prefix}
        own = [prefixed.get(name, name) for name in sorted(self.pools)]
        made = [*(spec.label for spec in self.fleet.virtual), *(spec.label for spec in self.fleet.splits)]
        return [*own, *sorted(made)]

    def models(self) -> tuple[str, ...]:
        """All models by their own names: those with engines, then those without."""
        made = [*(spec.name for spec in self.fleet.splits), *(spec.name for spec in self.fleet.virtual)]
        return (*self.pools, *made)

    def names_of(self, model: str) -> tuple[str, ...]:
        """All names of a configured model, its own first; just the name for one that is (or has become) unknown."""
        return self._names_of.get(model) or (model,)

    def is_within(self, name: Optional[str], residency: str) -> bool:
        """Whether what must stay there may be asked of the model of that name: one of its engines is there, or one of
        what it is made of."""
        if not residency:
            return True
        virtual, split = self._virtual.get(name), (self.splits or {}).get(name)
        if virtual is not None:
            names: Sequence[Optional[str]] = virtual.members
        elif split is not None:
            names = [*(share for share, _ in split.shares), *(split.fallbacks or ())]
        else:
            names = [name]
        if self.fleet.wildcard:
            names = [None]
        routes = [self._routes.get(one) or self._by_its_prefix(one) for one in names]
        return any(route is not None and route[0].is_within(residency) for route in routes)

    def _by_its_prefix(self, name: Optional[str]) -> Optional[tuple[ModelPool, ...]]:
        """The pools for a name that nobody has listed; None: it begins with no model's prefix."""
        prefix, slash, own = (name or "").partition("/")
        return self._by_prefix.get(prefix + slash) if own else None

    def listed(self) -> tuple[ListedModel, ...]:
        """What engines whose own names count say they serve, in their order, each name behind its model's prefix; empty
        when they have said nothing (yet), and for other fleets. Takes no lock."""
        if not self.fleet.by_engines:
            return ()
        said = [(engine.spec, engine.listed) for pool in self.pools.values() for engine in pool.engines]
        before, listed = self._listed
        # Every request may ask, and some list hundreds. `listed` is replaced whole, so one `is` tells.
        if len(said) == len(before) and all(a is c and b is d for (a, b), (c, d) in zip(said, before)):
            return listed
        found: dict[str, ListedModel] = {}
        for pool in self.pools.values():
            prefix = pool.spec.prefix or ""
            for engine in pool.engines:
                own = engine.spec.model
                for one in engine.listed or () if own is None else (ListedModel(own),):
                    found.setdefault(prefix + one.id, one if not prefix else one._replace(id=prefix + one.id))
        listed = tuple(found.values())
        self._listed = (said, listed)  # replaced whole; of two at once, each is right
        return listed

    def unnamed(self) -> Optional[str]:
        """The model of a request that names none, where engines' own names count: the default that was set, else the
        first that an engine lists which serves every name; None: not known, and for other fleets, whose default has a
        route."""
        fleet = self.fleet
        if not fleet.by_engines:
            return None
        if not fleet.wildcard or fleet.default_model != fleet.models[0].name:
            return fleet.default_model
        listed = self.listed()
        return listed[0].id if listed else None

    def counted_names(self) -> Mapping[str, str]:
        """Every name that has a count of its own, with the model it stands for: all that requests may use; where
        engines' own names count, those that they have listed."""
        before, names = self._counted
        listed = self.listed()
        if listed is before or not listed:
            return names
        new = [one.id for one in listed if one.id not in names][: max(0, COUNTED_NAMES_MAX - len(names))]
        names = {**names, **{name: name for name in new}}
        self._counted = (listed, names)  # replaced whole; of two at once, the next one makes up for it
        return names

    def _unrouted(self, model: Optional[str], may_use: Optional[Callable[[str], bool]]) -> RequestRefused:
        virtual = self._virtual.get(model)
        named = virtual.name if model is None and virtual is not None else (model or "")[:200]
        if virtual is None and model is None:
            return RequestRefused("model_not_found", f"name a model; {self._prefixes_told()}", param="model")
        if virtual is None:
            known = ", ".join([name for name in sorted(self.models()) if may_use is None or may_use(name)][:20])
            if self.fleet.by_engines:
                known = self._prefixes_told()
            text = f"the model {named!r} does not exist; known: {known or 'none to this key'}"
            return RequestRefused("model_not_found", text, param="model")
        if may_use is not None and not may_use(virtual.name):
            return RequestRefused("forbidden", f"the model {named} is not allowed for this key", param="model")
        text = f"the {'default ' * (model is None)}model {named!r} is made of others: it answers chat completions only"
        return RequestRefused("endpoint_not_served", text, param="model")

    def _prefixes_told(self) -> str:
        """Names that there are at least, as people are told of them."""
        prefixes = [f"{spec.prefix}…" for spec in self.fleet.models if spec.prefix]
        return f"those that begin with {', '.join(prefixes)}" if prefixes else "there is none yet"


def _other_spelling(name: str) -> str:
    """How Ollama's clients may write a name instead; itself, where there is no other way."""
    own = name.removesuffix(LATEST)
    return own if own != name or ":" in name else name + LATEST
