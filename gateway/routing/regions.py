"""Where engines are: which of them may have what must stay somewhere, and which come first.

A name is a place, and what stands before one of its hyphens is the wider place around it: `eu-west-1` lies within
`eu-west` and `eu`. Owns that rule, and `Regions`: the engines of one model as levels, the gateway's own region first.
The pool's lock guards those. No clock, no I/O; nothing is drawn: the same calls give the same levels.

How much of the traffic a level gets is Envoy's rule for priority levels: a level of which the share h of the weight is
in takes 1.4 h of what the levels before it have left, at most all of it. So a region that has lost a quarter of its
engines still takes everything, and one that has lost half gives 30 % away instead of overloading the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Callable, Optional

from gateway.routing.engine import Engine
from gateway.routing.spares import weight_beside
from gateway.routing.strategies import Strategy

OVERPROVISIONING = 1.4  # as in Envoy: so much more than its share the engines of a level that are left can take
ROUNDING = 1e-9  # what is left of a share by that alone is nothing
OWN, NOWHERE = -1_000, 1_000  # before and behind all numbers of parts that two names have in common


def within(region: Optional[str], residency: str) -> bool:
    """Whether an engine in `region` (None: nobody has said where it is) may have what must stay in `residency` ("":
    anybody may). Both in lower case."""
    return not residency or (region is not None and f"{region}-".startswith(f"{residency}-"))


def kept_within(engines: Sequence[Engine], residency: str) -> Sequence[Engine]:
    """Those of the engines that may have what must stay there; the same sequence where nothing must."""
    return [engine for engine in engines if within(engine.spec.region, residency)] if residency else engines


def levels_of(engines: Sequence[Engine], home: Optional[str]) -> list[tuple[Engine, ...]]:
    """The engines in the order in which their regions are asked, one level for each.

    First those within `home`, then region by region: the more parts of its name one has in common with `home`, the
    earlier, and else in the order of the file; last those of which nobody has said where they are. One level for all
    where `home` is None.
    """
    found: dict[tuple[int, str], list[Engine]] = {}
    for engine in engines:
        region = engine.spec.region
        if home is None or within(region, home):
            key = (OWN, "")
        elif region is None:
            key = (NOWHERE, "")
        else:
            key = (-_parts_in_common(region, home), region)
        found.setdefault(key, []).append(engine)
    return [tuple(found[key]) for key in sorted(found, key=lambda key: key[0])]  # stable: else as in the file


def _parts_in_common(region: str, home: str) -> int:
    count = 0
    for one, other in zip(region.split("-"), home.split("-")):
        if one != other:
            break
        count += 1
    return count


class Level:
    """The engines of one region, or of several that count alike. `engines`: those that are in, the same tuple until
    they or their weights change."""

    __slots__ = ("all", "credit", "engines", "share", "strategy", "weights")

    def __init__(self, engines: tuple[Engine, ...], strategy: Strategy) -> None:
        self.all = engines
        self.strategy = strategy
        self.engines: tuple[Engine, ...] = ()
        self.weights: list[int] = []
        self.share = 0.0  # of the requests
        self.credit = 0.0  # what it has yet to get of them; below 0: what it has had too much

    def take_over(self, engines: Collection[Engine]) -> float:
        """Only these are in; returns which part of the level's weight that is, without that of spares."""
        now = tuple(engine for engine in self.all if engine in engines)
        weights = [engine.weight for engine in now]
        if now != self.engines or weights != self.weights:
            self.engines, self.weights = now, weights
        return sum(weights) / weight_beside(now, self.all)


class View:
    """One model's engines as a request sees them that may go to all of them, or to those of its residency."""

    def __init__(self, levels: Sequence[tuple[Engine, ...]], strategy: Callable[[], Strategy]) -> None:
        self.levels = [Level(engines, strategy()) for engines in levels]
        self.engines: tuple[Engine, ...] = ()  # those that are in
        self._of: Optional[tuple[Engine, ...]] = None  # made of these
        self._open: list[Level] = []  # with a share
        self._rank = {engine: rank for rank, engines in enumerate(levels) for engine in engines}

    def take_over(self, engines: tuple[Engine, ...]) -> None:
        """These are in, of all that the model has."""
        if engines is self._of:
            return
        self._of = engines
        there = frozenset(engines)
        left, total = 1.0, 0.0
        for level in self.levels:
            level.share = min(left, OVERPROVISIONING * level.take_over(there))
            left = left - level.share if left - level.share > ROUNDING else 0.0
            total += level.share
        for level in self.levels:
            level.share = level.share / total if total else 0.0
        self._open = [level for level in self.levels if level.share]
        self.engines = tuple(engine for level in self.levels for engine in level.engines)

    def choose(self, affinity: bytes) -> Optional[Level]:
        """Whose turn it is; None: no engine is in. Each level gets its share evenly spread, but that requests with the
        same `affinity` get the same one."""
        levels = self._open
        if len(levels) < 2:
            return levels[0] if levels else None
        if affinity:
            # Not by the hash that places it on the ring: of each region the same engines would get what spills over.
            digest = hashlib.blake2b(affinity, digest_size=8, person=b"region").digest()
            point = int.from_bytes(digest, "big") / 2**64
            for level in levels:
                point -= level.share
                if point < 0:
                    return level
            return levels[-1]
        chosen = levels[0]
        for level in levels:
            level.credit += level.share
            if level.credit > chosen.credit:  # of equals the first
                chosen = level
        chosen.credit -= 1.0
        return chosen

    def nearest(self, engines: Sequence[Engine]) -> Sequence[Engine]:
        """Those of these engines, of which there is one at least, whose region comes first."""
        if len(self.levels) < 2:
            return engines
        rank = self._rank
        first = min(rank[engine] for engine in engines)
        return [engine for engine in engines if rank[engine] == first]


class Regions:
    """The views of one model's engines. `home`: the region of this gateway; None: no region comes first.

    There is one view for each residency that some engine lies within, as requests ask for them: no more than the
    engines' regions have parts.
    """

    def __init__(self, home: Optional[str]) -> None:
        self._home = home
        self._engines: tuple[Engine, ...] = ()
        self._views: dict[str, View] = {}

    def configure_locked(self, engines: tuple[Engine, ...], strategy: Callable[[], Strategy]) -> bool:
        """Take over other engines, or another strategy, which is begun anew for each level. Returns whether there are
        several levels: else all engines are alike to what may go anywhere, and no view is needed."""
        self._engines = engines
        self._strategy = strategy
        self._views = {}
        return len(levels_of(engines, self._home)) > 1

    def view_locked(self, residency: str, engines: tuple[Engine, ...]) -> Optional[View]:
        """What a request may choose from while these `engines` are in; None: the model has no engine there."""
        view = self._views.get(residency)
        if view is None:
            kept = kept_within(self._engines, residency)
            if not kept:
                return None
            view = self._views[residency] = View(levels_of(kept, self._home), self._strategy)
        view.take_over(engines)
        return view
