"""The names by which models know each other, and the faults in them that no model can see alone.

Pure functions of what was configured: no state, no lock, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gateway.routing.checks import quoted, step
from gateway.routing.splits import SplitLinks, split_faults
from gateway.routing.virtual import VirtualLinks, virtual_faults


class ModelLinks(NamedTuple):
    """The names by which one model is known and those by which it knows others; None stands for what is no name, a
    fault of its own."""

    name: str
    aliases: Sequence[str | None]
    fallbacks: Sequence[str | None]
    context_fallbacks: Sequence[str | None] = ()
    family: str | None = None


def link_faults(
    models: Sequence[ModelLinks],
    default_model: str | None,
    virtual: Sequence[VirtualLinks] = (),
    splits: Sequence[SplitLinks] = (),
    open_ended: bool = False,
) -> Iterator[str]:
    """Yield, with their JSON paths, the faults that no model can see alone. `virtual`: those made of others; `splits`:
    those that others answer for; `open_ended`: there may be models whose names nobody knows yet."""
    owner: dict[str, str] = {}
    for model in models:
        if model.name in owner:
            yield f"{step('models', model.name)}: is defined twice"
        owner[model.name] = model.name
    for model in models:
        for index, alias in enumerate(model.aliases):
            if alias is None:
                continue
            if alias in owner and alias not in model.aliases[:index]:
                yield f"{step('models', model.name)}.aliases[{index}]: {quoted(alias)} is taken"
            owner.setdefault(alias, model.name)
    made_of_others = {name for links in virtual for name in (links.name, *links.aliases) if name}
    made = {name for links in splits for name in (links.name, *links.aliases) if name} | made_of_others
    made -= set(owner)
    for model in models:
        for key, others in (("fallbacks", model.fallbacks), ("context_fallbacks", model.context_fallbacks)):
            for index, other in enumerate(others):
                where = f"{step('models', model.name)}.{key}[{index}]"
                if other is None:
                    continue
                if other in made:
                    yield f"{where}: {quoted(other)} is made of others: only a model with engines can stand in"
                elif other not in owner:
                    if not open_ended:
                        yield f"{where}: there is no model {quoted(other)}"
                elif owner[other] == model.name:
                    yield f"{where}: {quoted(other)} is the model itself"
    families = {model.name: model.family or model.name for model in models}
    yield from virtual_faults(virtual, owner, families)
    yield from split_faults(splits, owner, made_of_others, open_ended)
    if default_model is not None and default_model not in owner and default_model not in made and not open_ended:
        yield f"default_model: there is no model {quoted(default_model)}"
