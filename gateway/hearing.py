"""What a factory makes of what other processes of the same gateway have found out about its engines.

Owns nothing: it finds the engine that is meant, which may not be known here, and hands on. No state changes here are
told to anybody: who has found them out has done that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Optional

from gateway.offered import Offered
from gateway.routing.engine import ListedModel
from gateway.routing.members import EngineStanding
from gateway.routing.pool import ModelPool
from gateway.routing.router import Router
from gateway.upstream.prober import HealthChecker


class Hearing:
    """Applies it. Thread-safe; every call returns at once. An engine that is not known here is passed over."""

    def __init__(self, router: Router, offered: Offered, health: HealthChecker) -> None:
        self._router = router
        self._offered = offered
        self._health = health

    def probe(self, model: str, engine_id: str, url: str, error: Optional[str]) -> None:
        """An engine has been probed: it is well (None), or what is wrong with it."""
        for pool, engine in self._offered.find(model, engine_id, url):
            self._health.hear(pool, engine, error)

    def list(self, model: str, engine_id: str, url: str, listed: Sequence[ListedModel]) -> None:
        """An engine has been asked for its models."""
        for _, engine in self._offered.find(model, engine_id, url):
            if engine.listed != tuple(listed):
                engine.listed = tuple(listed)
                self._offered.relist(engine)

    def state(self, model: str, engine_id: str, url: str, state: str, left_s: float, error: Optional[str]) -> None:
        """An engine has been found in a state; see `Roster.hear`."""
        for pool, engine in self._offered.find(model, engine_id, url):
            with contextlib.suppress(KeyError):
                pool.hear(engine.id, state, left_s, error)

    def known(self, model: str, engine_id: str, url: str) -> None:
        """It has been told how an engine is: nobody need wait here for a probe of it."""
        for _, engine in self._offered.find(model, engine_id, url):
            self._health.known(engine)

    def proven(self, model: str, engine_id: str, url: str) -> None:
        """It has been told that an engine answers: it is in, if it is out here for want of that."""
        for pool, engine in self._offered.find(model, engine_id, url):
            if engine.unproven:
                with contextlib.suppress(KeyError):
                    pool.hear(engine.id, "up")

    def unknown(self) -> Sequence[tuple[str, str, str]]:
        """The engines that others may know more of: their models or groups, ids and URLs."""
        return [
            (name, engine.id, engine.spec.url)
            for name, pool in self._pools().items()
            for engine in pool.engines
            if engine.unproven or (engine.listed is None and self._offered.lists(engine))
        ]

    def draining(self, engine_id: str, draining: bool, model: Optional[str] = None) -> None:
        """An operator has taken an engine out, or let it in again."""
        for name, pool in self._router.pools.items():
            if model in (None, name):
                with contextlib.suppress(KeyError):
                    pool.set_draining(engine_id, draining)

    def lead(self) -> None:
        """Others have probed the engines until now: do so from now on, and at once."""
        self._health.tick()

    def standings(self) -> Sequence[tuple[str, EngineStanding]]:
        """What another process needs to know of every engine, with the model or group that it is of."""
        return [(name, standing) for name, pool in self._pools().items() for standing in pool.standings()]

    def _pools(self) -> dict[str, ModelPool]:
        return {**self._router.pools, **self._router.sources}
