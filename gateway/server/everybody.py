"""All processes of this gateway, as those who answer requests see them.

Owns nothing. `Everybody` is what it is where there is one process: there is nobody to ask or to tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from gateway.reuse.stored import Chosen
from gateway.telemetry.exposition import Family
from gateway.telemetry.registry import Registry


class Everybody:
    """Thread-safe. What asks others waits a second at most: it is for a thread that may."""

    waits = False
    """Whether there are others: what asks them is not for the loop then."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> list[Family]:
        """All processes' metrics as one. Asks others."""
        return self._registry.collect()

    def in_flight(self) -> Mapping[tuple[str, str], int]:
        """Requests in flight at each engine (by model and id) in all other processes. Asks them."""
        return {}

    def cache_stats(self) -> Sequence[Mapping[str, float]]:
        """What each other process tells of its cache. Asks them."""
        return ()

    def drained(self, engine_id: str, draining: bool, model: Optional[str]) -> None:
        """An operator has taken an engine out, or let it in again."""

    def weighed(self, engine_id: str, weight: int, model: Optional[str]) -> None:
        """An operator has given an engine another weight."""

    def keys_changed(self) -> None:
        """A key has been made, rotated or revoked."""

    def cache_cleared(self, chosen: Chosen) -> None:
        """Answers have been dropped."""

    def schemas_changed(self) -> None:
        """A schema has been kept or forgotten."""


def added(own: Mapping[str, Any], others: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The sums of what all tell, by the names of `own`."""
    return {name: value + sum(other.get(name, 0) for other in others) for name, value in own.items()}
