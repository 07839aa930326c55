"""The metrics of several processes as one: as data that another process can read, and added up.

No state, no lock, no I/O. Counters and histograms add up; how a gauge merges is declared with it (`RULES`). What one
has counted outlives it (`lasting`): whoever keeps the last snapshots of those that have ended folds them into one sum.
Numbers go through JSON as they are: a whole number stays one, and a float comes back with the same bits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, Union

from gateway.telemetry.exposition import Distribution, Exemplar, Family

SUM, MAX, MIN, EARLIEST, LEADER = "sum", "max", "min", "earliest", "leader"
RULES = (SUM, MAX, MIN, EARLIEST, LEADER)
"""How the processes' values of a gauge become one. EARLIEST is the least, of those that have ended as well; LEADER is
what the leader says, or the first that says anything."""

Value = Union[float, Distribution]
Data = list[Any]
"""Families as JSON has them: of each [name, kind, help, label names, rule, bounds or null, series]."""


def data_of(families: Iterable[Family]) -> Data:
    """Families as data; those without a series are left out."""
    return [_family_data(family) for family in families if family.series]


def families_of(data: Data) -> list[Family]:
    """What `data_of` was given. Raises ValueError, TypeError and others for anything else."""
    return [_family(*one) for one in data]


def lasting(families: Iterable[Family]) -> list[Family]:
    """What is still true when the process has ended: what it has counted, and when it began."""
    return [family for family in families if family.kind != "gauge" or family.merge == EARLIEST]


def fold(a: Data, b: Data) -> Data:
    """The sum of what two processes have counted, as data."""
    return data_of(merged([families_of(a), families_of(b)]))


def merged(snapshots: Sequence[Iterable[Family]], leader: int = 0) -> list[Family]:
    """All processes' families as one list, in the order of the first. `leader`: whose snapshot is the leader's.

    Of a name that another snapshot declares in another way than the leader's (another version's, in a rolling restart),
    that one's numbers are left out; other buckets are counted in those that hold them.
    """
    heads: dict[str, Family] = {}
    sums: dict[str, dict[tuple[str, ...], Value]] = {}
    for place in sorted(range(len(snapshots)), key=lambda place: place != leader):
        for family in snapshots[place]:
            head = heads.setdefault(family.name, family)
            if (family.kind, family.label_names, family.merge) == (head.kind, head.label_names, head.merge):
                _add(sums.setdefault(family.name, {}), family)
    order: dict[str, None] = {}
    for snapshot in snapshots:
        order.update(dict.fromkeys(family.name for family in snapshot))
    return [heads[name]._replace(series=sorted(sums[name].items(), key=_labels)) for name in order]


def _labels(series: tuple[tuple[str, ...], Value]) -> tuple[str, ...]:
    return series[0]


def _add(found: dict[tuple[str, ...], Value], family: Family) -> None:
    for values, value in family.series:
        before = found.get(values)
        found[values] = value if before is None else _both(before, value, family.merge or SUM)


def _both(a: Value, b: Value, rule: str) -> Value:
    if isinstance(a, Distribution):
        return _distributions(a, b) if isinstance(b, Distribution) else a
    if isinstance(b, Distribution) or rule == LEADER:
        return a
    if rule == SUM:
        return a + b
    return max(a, b) if rule == MAX else min(a, b)


def _distributions(a: Distribution, b: Distribution) -> Distribution:
    counts = list(a.counts)
    same = a.bounds == b.bounds
    places = list(range(len(b.counts)))
    if not same:
        places = [*(bisect_left(a.bounds, bound) for bound in b.bounds), len(a.bounds)]
    for place, count in zip(places, b.counts):
        counts[place] += count
    exemplars = a.exemplars
    if b.exemplars:
        newest: list[Union[Exemplar, None]] = list(a.exemplars) or [None] * len(counts)
        for place, exemplar in zip(places, b.exemplars):
            kept = newest[place]
            if exemplar is not None and same and (kept is None or exemplar.unix_s > kept.unix_s):
                newest[place] = exemplar
        exemplars = tuple(newest)
    return Distribution(a.bounds, tuple(counts), a.sum + b.sum, exemplars)


# --- as data ---------------------------------------------------------------------------------------------------------


def _family_data(family: Family) -> Data:
    name, kind, text, label_names, series, rule = family
    found = series[0][1]
    bounds = list(found.bounds) if isinstance(found, Distribution) else None
    return [name, kind, text, list(label_names), rule, bounds, [[list(v), _value_data(one)] for v, one in series]]


def _value_data(value: Value) -> Any:
    if not isinstance(value, Distribution):
        return value
    data: list[Any] = [list(value.counts), value.sum]
    if value.exemplars:
        data.append([None if one is None else list(one) for one in value.exemplars])
    return data


def _family(
    name: str, kind: str, text: str, labels: list[str], rule: str, bounds: Union[list[float], None], series: Data
) -> Family:
    found = [(tuple(values), _value(value, bounds)) for values, value in series]
    return Family(name, kind, text, tuple(labels), found, rule)


def _value(value: Any, bounds: Union[list[float], None]) -> Value:
    if bounds is None:
        return value  # type: ignore[no-any-return]
    exemplars = tuple(None if one is None else Exemplar(*one) for one in value[2]) if len(value) > 2 else ()
    return Distribution(tuple(bounds), tuple(value[0]), value[1], exemplars)
