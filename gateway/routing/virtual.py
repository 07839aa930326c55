"""A model that is made of others: who its members are, and when what they say counts.

Owns the frozen `VirtualSpec`, which refuses values that cannot work, and the faults that it has together with the other
models. No lock: nothing here changes after it was made. Never holds live state, never does I/O.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.routing import checks
from gateway.routing.checks import Check, quoted, step

FALLBACKS = ("best", "abstain")
MEMBERS_MAX = 32


def _members(value: object) -> Iterator[str]:
    if not isinstance(value, tuple) or not 2 <= len(value) <= MEMBERS_MAX:
        yield f": must be a list of 2 to {MEMBERS_MAX} models"
        return
    yield from checks.names(value)


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

    @property
    def label(self) -> str:
        """Its name, and what tells people that it is no model with engines."""
        return f"{self.name} (of {', '.join(self.members)})"

    def __post_init__(self) -> None:
        faults = [key + fault for key, check in VIRTUAL_CHECKS.items() for fault in check(getattr(self, key))]
        faults += ["start" + fault for fault in start_faults(self.start, self.members)] if not faults else []
        if faults:
            raise ValueError("; ".join(faults))


def start_faults(start: object, members: object) -> Iterator[str]:
    """Yield the fault that `start` has when there are not so many members."""
    if isinstance(start, int) and isinstance(members, (list, tuple)) and start > len(members):
        yield f": must be at most {len(members)}, the number of members"


class VirtualLinks(NamedTuple):
    """The names by which a model made of others is known and those by which it knows them; None stands for what is no
    name, a fault of its own."""

    name: str
    aliases: Sequence[str | None]
    members: Sequence[str | None]
    judge: str | None = None
    min_families: int = 1


def virtual_faults(
    virtual: Sequence[VirtualLinks], model_by_name: Mapping[str, str], family_by_model: Mapping[str, str]
) -> Iterator[str]:
    """Yield, with their JSON paths, the faults that a model made of others has by what the others are. The names of
    real models are in `model_by_name`."""
    if virtual and not model_by_name:
        yield "models: all of them are made of others, and what they are made of must be here, too, with engines"
    taken = set(model_by_name)
    for links in virtual:
        if links.name in taken:
            yield f"{step('models', links.name)}: the name is taken"
        taken.add(links.name)
    for links in virtual:
        for index, alias in enumerate(links.aliases):
            if alias in taken and alias not in links.aliases[:index]:
                yield f"{step('models', links.name)}.aliases[{index}]: {quoted(alias)} is taken"
            if alias is not None:
                taken.add(alias)
    for links in virtual:
        here = f"{step('models', links.name)}.consensus"
        found: dict[str, str] = {}  # the members' names, by the model that they stand for
        for index, name in enumerate(links.members):
            if name is None or name in links.members[:index]:
                continue
            model = model_by_name.get(name)
            if model is None:
                yield f"{here}.members[{index}]: {_not_real(name, taken)}"
            elif model in found:
                same = f"{quoted(name)} is {quoted(found[model])} again"
                yield f"{here}.members[{index}]: {same}: one model has one voice"
            else:
                found[model] = name
        if links.judge is not None and links.judge not in model_by_name:
            yield f"{here}.judge: {_not_real(links.judge, taken)}"
        families = {family_by_model[model] for model in found}
        if found and len(found) == len(links.members) and links.min_families > len(families):
            yield f"{here}.min_families: the members are of {len(families)} families only"


def _not_real(name: str, taken: Collection[str]) -> str:
    return f"the model {quoted(name)} {'is made of others itself' if name in taken else 'does not exist'}"
