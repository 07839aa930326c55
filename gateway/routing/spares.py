"""Engines that wait for others to be out: by their `priority`, as SRV records have it (RFC 2782). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.routing.engine import Engine


def without_spares(engines: Sequence[Engine]) -> tuple[Engine, ...]:
    """Of engines that may be chosen those of the lowest priority number that one of them has."""
    first = min((engine.spec.priority for engine in engines), default=0)
    return tuple(engine for engine in engines if engine.spec.priority == first)
