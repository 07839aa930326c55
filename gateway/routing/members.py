"""Which engines a model has, and which of them are in.

`Members` owns the tuple of a model's live `Engine` objects and the tuple of those that may be chosen. The pool's lock
guards both: who calls a method that ends in `_locked` holds it. `engines` is replaced whole, and is read without it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple, Optional

from gateway.routing.breaker import CLOSED, OPEN, BreakerPolicy
from gateway.routing.engine import UNPROVEN, Engine
from gateway.routing.regions import kept_within
from gateway.routing.spares import without_spares
from gateway.routing.specs import ModelSpec


class EngineSnapshot(NamedTuple):
    """One engine at one moment, for /health, the metrics and `InferenceFactory.engines()`."""

    model: str
    id: str
    url: str
    state: str
    weight: int
    in_flight: int
    last_error: Optional[str]
    breaker: str
    available: bool  # may be chosen: a breaker stays `open` until a request tries the engine, but not in the way of it
    region: Optional[str] = None  # nobody has said where it is


class EngineStanding(NamedTuple):
    """What one process tells another of an engine, as of one moment."""

    id: str
    url: str
    draining: bool
    weight: int
    configured_weight: int
    """Another one than `weight`: an operator has set that."""
    down: bool
    answered: bool
    out_reason: str
    out_s: float
    """Seconds that it rests, or is misconfigured; 0: it does not."""
    open_s: Optional[float]
    """Seconds until its breaker lets one request try it; None: it is closed."""
    last_error: Optional[str]
    listed: Optional[list[list[object]]]
    """Names of the models it lists, each with its context in tokens, or None."""


class Members:
    """The engines of one model. Whoever changes what an engine's `available` says sets `stale`."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self.engines: tuple[Engine, ...] = ()
        self.stale = True  # `_in` has to be made anew
        self._in: tuple[Engine, ...] = ()
        self._recheck_at_s = 0.0  # so does it then: an engine's time outside ends

    def configure_locked(
        self, spec: ModelSpec, forget: Collection[str], keep_weights: bool, unproven: bool = False
    ) -> tuple[Engine, ...]:
        """Take over a configuration; returns the engines that are gone. See `Roster.reconfigure`."""
        before = self.engines
        known = {(engine.id, engine.spec.url): engine for engine in before}
        engines = []
        for engine_spec in spec.engines:
            engine = known.get((engine_spec.id or "", engine_spec.url))
            if engine is None:
                engine = Engine(engine_spec, spec.name, self._policy)
                if unproven and not engine_spec.is_echo:
                    engine.down, engine.last_error = True, UNPROVEN
            elif engine.id in forget:
                engine.forget(self._policy)
            if not keep_weights or engine.weight == engine.spec.weight:
                engine.weight = engine_spec.weight
            engine.spec = engine_spec
            engines.append(engine)
        self.engines = tuple(engines)
        self._in = ()
        self.stale = True
        kept = set(engines)  # engines compare by identity; in a tuple, thousands would be compared with each
        gone = tuple(engine for engine in before if engine not in kept)
        for engine in gone:
            engine.removed = True
        return gone

    def weigh_locked(self, engine: Engine, weight: int) -> None:
        """Give an engine another weight. Strategies keep what they have computed as long as they get the same tuple, so
        the next one is another, though it has the same engines in it."""
        if engine.weight == weight:
            return
        engine.weight = weight
        self._in = ()
        self.stale = True

    def retire_locked(self) -> None:
        """Mark every engine removed: the model itself is gone."""
        for engine in self.engines:
            engine.removed = True
        self.stale = True

    def in_locked(self, now_s: float) -> tuple[Engine, ...]:
        """The engines that are in: found anew only after a change, or when an engine's time outside has ended."""
        if self.stale or now_s >= self._recheck_at_s:
            engines = without_spares([engine for engine in self.engines if engine.available(now_s)])
            if engines != self._in:
                self._in = engines
            returns = [e.out_until_s for e in self.engines if e.out_until_s > now_s]
            returns += [
                e.breaker.until_s for e in self.engines if e.breaker.state == OPEN and e.breaker.until_s > now_s
            ]
            self._recheck_at_s = min(returns, default=math.inf)
            self.stale = False
        return self._in

    def look_locked(self, now_s: float) -> tuple[Engine, ...]:
        """The engines that are in, for who only looks: a look leaves no trace in what is decided after it."""
        if self.stale or now_s >= self._recheck_at_s:
            return without_spares([engine for engine in self.engines if engine.available(now_s)])
        return self._in

    def all_full_locked(self, now_s: float, besides: Collection[Engine] = (), residency: str = "") -> bool:
        """Whether engines other than these are in, but each is at its `max_concurrency`."""
        engines = [engine for engine in kept_within(self.look_locked(now_s), residency) if engine not in besides]
        return bool(engines) and all(engine.full() for engine in engines)

    def due_for_probe_locked(self, fresh_s: float, now_s: float) -> list[Engine]:
        """The engines without a good answer in the last `fresh_s` seconds: traffic has not vouched for them."""
        return [
            engine
            for engine in self.engines
            if not engine.spec.is_echo and (engine.down or engine.fails or now_s - engine.ok_at_s >= fresh_s)
        ]

    def shortest_rest_s_locked(self, now_s: float, residency: str = "") -> Optional[float]:
        """Seconds until the first resting engine returns; None when none rests."""
        waits = [e.out_until_s - now_s for e in kept_within(self.engines, residency) if e.state(now_s) == "resting"]
        return min(waits) if waits else None

    def standings_locked(self, now_s: float, engine_id: Optional[str] = None) -> list[EngineStanding]:
        """What another process needs to know of every engine, or of the one that is called so."""
        return [
            EngineStanding(
                e.id,
                e.spec.url,
                e.draining,
                e.weight,
                e.spec.weight,
                e.down,
                e.answered,
                e.out_reason if e.out_until_s > now_s else "",
                max(0.0, e.out_until_s - now_s),
                None if e.breaker.state == CLOSED else max(0.0, e.breaker.until_s - now_s),
                e.last_error,
                None if e.listed is None else [list(one) for one in e.listed],
            )
            for e in self.engines
            if engine_id is None or e.id == engine_id
        ]

    def snapshot_locked(self, now_s: float) -> list[EngineSnapshot]:
        """Every engine as it is now."""
        return [
            EngineSnapshot(
                e.model_name,
                e.id,
                e.spec.url,
                e.state(now_s),
                e.weight,
                e.in_flight,
                e.last_error,
                e.breaker.state_name,
                e.available(now_s),
                e.spec.region,
            )
            for e in self.engines
        ]
