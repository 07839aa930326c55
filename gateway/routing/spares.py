"""Engines that wait for others to be out: by their `priority`, as SRV records have it (RFC 2782). Pure.

What counts are the engines of the same region: what must stay in one is not to miss an engine there because others are
in elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Optional

from gateway.routing.engine import Engine


def without_spares(engines: Sequence[Engine]) -> tuple[Engine, ...]:
    """Of engines that may be chosen those of the lowest priority number that one of their region has."""
    first: dict[Optional[str], int] = {}
    for engine in engines:
        spec = engine.spec
        first[spec.region] = min(spec.priority, first.get(spec.region, spec.priority))
    return tuple(engine for engine in engines if engine.spec.priority == first[engine.spec.region])


def weight_beside(chosen: Sequence[Engine], engines: Iterable[Engine]) -> int:
    """The weight of those of the engines that would be chosen if none were out: all but the spares of `chosen`."""
    last = max((engine.spec.priority for engine in chosen), default=None)
    return sum(engine.weight for engine in engines if last is None or engine.spec.priority <= last)
