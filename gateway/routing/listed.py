"""The models that there are because engines list them: a fleet with its groups, and what these say, as a fleet.

Pure functions. A name is a stranger's: how many there may be is bounded, and what was configured goes before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Optional

from gateway.routing.engine import ListedModel
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec

LISTED_MAX = 1000  # names of models that engines may bring, ever: each has counts of its own

Said = Callable[[str, EngineSpec], Optional[Sequence[ListedModel]]]
"""What an engine of a group (by name) lists; None: nothing is known."""


def with_listed(fleet: FleetSpec, said: Said, ever: dict[str, None]) -> FleetSpec:
    """The fleet with the models that its groups' engines list, behind those that were configured.

    A name that several engines list is one model with several engines, as the first group to have it says. `ever` are
    the names that there have been: LISTED_MAX of them at most, a new one more is left out.
    """
    if not fleet.groups:
        return fleet
    taken = {*fleet.model_by_name(), *fleet.virtual_by_name()}
    found: dict[str, tuple[ModelSpec, dict[Optional[str], EngineSpec], list[int]]] = {}
    for group in fleet.groups:
        for engine in group.engines:
            for one in said(group.name, engine) or ():
                if one.id in taken or (one.id not in ever and len(ever) >= LISTED_MAX):
                    continue
                ever[one.id] = None
                _, engines, tokens = found.setdefault(one.id, (group, {}, []))
                engines.setdefault(engine.id, engine)
                if one.max_model_len is not None:
                    tokens.append(one.max_model_len)
    models = [_model(name, *parts) for name, parts in found.items()]
    return replace(fleet, models=(*fleet.models, *models))


def _model(name: str, group: ModelSpec, engines: dict[Optional[str], EngineSpec], tokens: list[int]) -> ModelSpec:
    return replace(
        group,
        name=name,
        source=group.name,
        engines=tuple(engines.values()),
        max_model_len=group.max_model_len or min(tokens, default=None),
        fallbacks=tuple(other for other in group.fallbacks or () if other != name),
        context_fallbacks=tuple(other for other in group.context_fallbacks if other != name),
    )
