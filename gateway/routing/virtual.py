"""A model that is made of others: who its members are, and when what they say counts.

Owns the frozen `VirtualSpec`, which refuses values that cannot work, and the faults that it has together with the other
models. No lock: nothing here changes after it was made. Never holds live state, never does I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gateway.routing import checks
from gateway.routing.checks import Check, quoted, step

FALLBACKS = ("best", "abstain")
MEMBERS_MAX = 32


def _members(value: object) -> Iterator[str]:
    if not isinstance(value, tuple) or not 2 <= len(value) <= MEMBERS_MAX:
        yield f": must be a list of 2 to {MEMBERS_MAX} models"
        return
    yield from checks.names(value)
    for index, name in enumerate(value):
        if name in value[:index]:
            yield f"[{index}]: {quoted(name)} is a member already: one model has one voice"


VIRTUAL_CHECKS: Mapping[str, Check] = {
    "name": checks.name,
    "members": _members,
    "start": checks.optional(checks.integer(2, MEMBERS_MAX)),
    "min_families": checks.integer(1, MEMBERS_MAX),
    "fallback": checks.one_of(FALLBACKS),
    "judge": checks.optional(checks.text),
    "aliases": checks.names,
}


@dataclass(frozen=True)
class VirtualSpec:
    """A model whose answer is what several models agree on; raises ValueError naming each faulty field.

    `members` are models' names or aliases, in the order in which they are preferred. `start` are asked first, the
    others only while those have not decided; None: all at once. A group of members counts from `min_families`
    families on (a model's family is its `family`, or its name). `fallback`: where no group is a strict majority, `best`
    answers with the best there is, `abstain` with an error. `judge` is a model that is asked which answers without code
    say the same, None: words alone decide. `aliases` are further names.
    """

    name: str
    members: tuple[str, ...]
    start: int | None = None
    min_families: int = 1
    fallback: str = "best"
    judge: str | None = None
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        faults = [key + fault for key, check in VIRTUAL_CHECKS.items() for fault in check(getattr(self, key))]
        if not faults and self.start is not None and self.start > len(self.members):
            faults.append(f"start: must be at most {len(self.members)}, the number of members")
        if faults:
            raise ValueError("; ".join(faults))


def virtual_faults(
    virtual: Sequence[VirtualSpec], model_by_name: Mapping[str, str], family_by_model: Mapping[str, str]
) -> Iterator[str]:
    """Yield, with their JSON paths, the faults that a model made of others has by what the others are. The names of
    real models are in `model_by_name`."""
    taken = set(model_by_name)
    for spec in virtual:
        here = step("models", spec.name)
        if spec.name in taken:
            yield f"{here}: the name is taken"
        taken.add(spec.name)
    for spec in virtual:
        here = step("models", spec.name)
        for index, alias in enumerate(spec.aliases):
            if alias in taken:
                yield f"{here}.aliases[{index}]: {quoted(alias)} is taken"
            taken.add(alias)
        named = [(f"consensus.members[{index}]", name) for index, name in enumerate(spec.members)]
        named += [("consensus.judge", spec.judge)] if spec.judge is not None else []
        found: dict[str, str] = {}
        for where, name in named:
            model = model_by_name.get(name)
            if model is None:
                other = "is made of others itself" if name in taken else "does not exist"
                yield f"{here}.{where}: the model {quoted(name)} {other}"
            elif model in found and where != "consensus.judge":
                yield f"{here}.{where}: {quoted(name)} is {quoted(found[model])} again: one model has one voice"
            elif where != "consensus.judge":
                found[model] = name
        families = {family_by_model[model] for model in found}
        if len(found) == len(spec.members) and spec.min_families > len(families):
            yield f"{here}.consensus.min_families: the members are of {len(families)} families only"
