"""A name for several models, of which one answers: by weight, or the first of a chain that can.

Owns the frozen `SplitSpec`, which refuses values that cannot work, the choice that it makes, and the faults that it has
together with the other models. No lock: nothing here changes after it was made. No I/O; chance comes in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Optional

from gateway.routing import checks
from gateway.routing.checks import Check, member, quoted, step
from gateway.routing.params import PARAM_CHECKS, Params, params_of

SHARES_MAX = 64
_WEIGHT = checks.integer(1, 1_000_000)


def _shares(value: object) -> Iterator[str]:
    if not isinstance(value, tuple) or not 1 <= len(value) <= SHARES_MAX:
        yield f": must be an object of 1 to {SHARES_MAX} models with their weights"
        return
    for name, weight in value:
        yield from (member(name) + fault for fault in (*checks.name(name), *_WEIGHT(weight)))


def check_chain(value: object) -> Iterator[str]:
    """Check a list of models, the first of which answers, or else the next one that can."""
    if not isinstance(value, tuple) or not 1 <= len(value) <= SHARES_MAX:
        yield f": must be a list of 1 to {SHARES_MAX} models"
        return
    yield from checks.names(value)


SPLIT_CHECKS: Mapping[str, Check] = {
    "name": checks.name,
    "shares": _shares,
    "fallbacks": checks.optional(checks.names),
    "aliases": checks.names,
    **PARAM_CHECKS,
}


@dataclass(frozen=True)
class SplitSpec:
    """A model whose requests others answer; raises ValueError naming each faulty field.

    `shares` are (name or alias of a model with engines, weight): so much of the requests goes there. The same session,
    else the same caller, always goes to the same one, whatever process it comes to, and when weights change or models
    come and go, no more callers move than have to. `fallbacks` are the models that stand in for the chosen one; None:
    those that it has itself. `aliases` are further names. `strip`, `defaults` and `force` change what is asked as those
    of a `ModelSpec` do, before that model's own.
    """

    name: str
    shares: tuple[tuple[str, int], ...]
    fallbacks: tuple[str, ...] | None = None
    aliases: tuple[str, ...] = ()
    strip: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    force: Mapping[str, Any] = field(default_factory=dict)
    params: Params | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        faults = [key + fault for key, check in SPLIT_CHECKS.items() for fault in check(getattr(self, key))]
        if faults:
            raise ValueError("; ".join(faults))
        object.__setattr__(self, "params", params_of(self.strip, self.defaults, self.force))

    @property
    def is_chain(self) -> bool:
        """Whether one model answers, and the others only when it cannot."""
        return len(self.shares) == 1

    @property
    def label(self) -> str:
        """Its name, and what tells people that it is no model with engines."""
        if self.is_chain:
            return f"{self.name} (is {', then '.join((self.shares[0][0], *(self.fallbacks or ())))})"
        total = sum(weight for _, weight in self.shares)
        return f"{self.name} ({', '.join(f'{100 * weight / total:.3g} % {name}' for name, weight in self.shares)})"

    def choose(self, key: str, there: Collection[Optional[str]], chance: Callable[[], float]) -> str | None:
        """The name of the model that answers, of those that are `there`; None: none of them is.

        `key` says whose request it is, "": nobody's, and `chance` (0 to 1) decides. By weighted rendezvous hashing:
        each model draws a number for the key, and the least one, divided by the weight, wins (Thaler, Ravishankar 1998;
        the weights by Schindelhauer and Schomaker 2005).
        """
        shares = [(name, weight) for name, weight in self.shares if name in there]
        if len(shares) < 2:
            return shares[0][0] if shares else None

        def cost(name: str, weight: int) -> float:
            drawn = _drawn(f"{self.name}\n{key}\n{name}") if key else chance()
            return -math.log(max(drawn, 1e-300)) / weight

        return min(shares, key=lambda share: cost(*share))[0]


def _drawn(text: str) -> float:
    """A number from 0 to 1, the same for the same text on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 1) / (2**64 + 1)


class SplitLinks(NamedTuple):
    """The names by which such a model is known and those by which it knows others; None stands for what is no name, a
    fault of its own. `key` is where the latter stand."""

    name: str
    aliases: Sequence[str | None]
    shares: Sequence[str | None]
    fallbacks: Sequence[str | None] = ()
    key: str = "split"


def split_faults(
    splits: Sequence[SplitLinks], model_by_name: Mapping[str, str], made: Collection[str], open_ended: bool
) -> Iterator[str]:
    """Yield, with their JSON paths, the faults that splits have by what the others are. `made`: the names of models
    made of others. `open_ended`: there may be models whose names nobody knows yet."""
    taken = {*model_by_name, *made}
    for links in splits:
        if links.name in taken:
            yield f"{step('models', links.name)}: the name is taken"
        taken.add(links.name)
    for links in splits:
        for index, alias in enumerate(links.aliases):
            if alias in taken and alias not in links.aliases[:index]:
                yield f"{step('models', links.name)}.aliases[{index}]: {quoted(alias)} is taken"
            if alias is not None:
                taken.add(alias)
    for links in splits:
        here = step("models", links.name)
        in_list = [f"{here}.fallbacks[{index}]" for index in range(len(links.fallbacks))]
        named = links.key == "split"
        within = f"{here}.{links.key}"
        places = [step(within, n or "") if named else f"{within}[{i}]" for i, n in enumerate(links.shares)]
        for place, name in zip([*places, *in_list], [*links.shares, *links.fallbacks]):
            if name is None or name in model_by_name:
                continue
            if name in taken:
                yield f"{place}: {quoted(name)} has no engines itself: only a model with engines can answer"
            elif not open_ended:
                yield f"{place}: there is no model {quoted(name)}"
