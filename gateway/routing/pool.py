"""The engines of one model: who is in, who is chosen, what an outcome changes.

Owns the live `Engine` objects of one model and the strategy over them. `_lock` guards every field of those engines, the
cached tuple of engines that are in, and the strategy's state. Decisions are made under the lock and returned; nothing
here does I/O, calls back, or waits.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from random import Random
from typing import Callable, NamedTuple, Optional

from gateway.routing.engine import FAILURE_LATENCY_S, Engine
from gateway.routing.retry import MISCONFIGURED_S, Outcome, judge, rest_s
from gateway.routing.specs import ModelSpec
from gateway.routing.strategies import STRATEGY_BY_NAME, LeastConnections, RouteRequest


class StateChange(NamedTuple):
    """An engine went from one state to another; returned to the caller, who logs it outside the lock."""

    model: str
    engine: str
    before: str
    after: str
    reason: str


class EngineSnapshot(NamedTuple):
    """One engine at one moment, for /health, the metrics and `InferenceFactory.engines()`."""

    model: str
    id: str
    url: str
    state: str
    weight: int
    in_flight: int
    last_error: Optional[str]


class ModelPool:
    """Chooses among the engines of one model. Thread-safe; every call returns at once."""

    def __init__(self, spec: ModelSpec, strategy: str, rng: Random, clock: Callable[[], float]) -> None:
        self.name = spec.name
        self._rng = rng
        self._clock = clock
        self._lock = threading.Lock()
        self._retry = LeastConnections(rng)  # a retry goes to the idlest, leaving rotations alone
        self._apply(spec, strategy, ())

    def _apply(self, spec: ModelSpec, strategy: str, kept: Sequence[Engine]) -> None:
        known = {(engine.id, engine.spec.url): engine for engine in kept}
        engines = []
        for engine_spec in spec.engines:
            engine = known.get((engine_spec.id or "", engine_spec.url))
            if engine is None:
                engine = Engine(engine_spec, spec.name)
            engine.spec, engine.weight = engine_spec, engine_spec.weight
            engines.append(engine)
        self.spec = spec
        self.engines = tuple(engines)
        self.strategy_name = spec.strategy or strategy
        self._strategy = STRATEGY_BY_NAME[self.strategy_name](self._rng)
        self._in: tuple[Engine, ...] = ()
        self._stale = True
        self._recheck_at_s = 0.0

    def reconfigure(self, spec: ModelSpec, strategy: str) -> tuple[Engine, ...]:
        """Take over a new configuration: engines with the same id and address keep their state; those gone are
        returned.

        What is in flight on a removed engine goes on and is settled as usual.
        """
        with self._lock:
            before = self.engines
            self._apply(spec, strategy, before)
            gone = tuple(engine for engine in before if engine not in self.engines)
            for engine in gone:
                engine.removed = True
            return gone

    def retire(self) -> tuple[Engine, ...]:
        """Mark every engine removed because the model itself is gone; returns them."""
        with self._lock:
            for engine in self.engines:
                engine.removed = True
            self._stale = True
            return self.engines

    def acquire(self, tried: Collection[Engine], affinity: bytes) -> Optional[Engine]:
        """Choose an engine that is in and take one place on it; None when none is in or all are full.

        `tried` engines are chosen again only when every engine that is in has been tried. The place is given back by
        `settle`, exactly once.
        """
        with self._lock:
            now_s = self._clock()
            engines = self._engines_in_locked(now_s)
            if not engines:
                return None
            request = RouteRequest(affinity, now_s)
            engine = None
            if not tried:
                engine = self._strategy.select(engines, request)
            if engine is None or engine.full():
                free = [e for e in engines if not e.full()]
                fresh = [e for e in free if e not in tried]
                if not free:
                    return None
                engine = self._retry.select(fresh or free, request)
            engine.in_flight += 1
            return engine

    def acquire_last_resort(self, tried: Collection[Engine]) -> Optional[Engine]:
        """Take a place on the engine that returns soonest although it is out; never a resting, full or tried one."""
        with self._lock:
            now_s = self._clock()
            engine = self._last_resort_locked(tried, now_s)
            if engine is not None:
                engine.in_flight += 1
            return engine

    def last_resort_wait_s(self, tried: Collection[Engine]) -> Optional[float]:
        """Seconds (to the millisecond) until the engine that `acquire_last_resort` would take returns, or None."""
        with self._lock:
            now_s = self._clock()
            engine = self._last_resort_locked(tried, now_s)
            return None if engine is None else round(engine.returns_at_s(now_s) - now_s, 3)

    def _last_resort_locked(self, tried: Collection[Engine], now_s: float) -> Optional[Engine]:
        out = [
            engine
            for engine in self.engines
            if engine not in tried and not engine.full() and engine.state(now_s) != "resting"
        ]
        return min(out, key=lambda e: e.returns_at_s(now_s), default=None)

    def settle(self, engine: Engine, outcome: Outcome, duration_s: float) -> Optional[StateChange]:
        """Give an engine's place back and apply the verdict on what happened there.

        `duration_s` is how long the engine took until its answer (or first event). Returns the change of state, if any.
        """
        blame = judge(outcome).blame
        with self._lock:
            engine.in_flight -= 1
            if blame == "none":
                return None
            now_s = self._clock()
            if blame == "good":
                engine.observe_latency(duration_s, now_s)
                engine.ok_at_s = now_s
                # Nothing to change on the usual way: one comparison instead of two state strings.
                if not engine.down and engine.out_until_s <= now_s and not engine.fails:
                    return None
            before = engine.state(now_s)
            self._apply_blame_locked(engine, blame, outcome, duration_s, now_s)
            return self._change_locked(engine, before, now_s, outcome.message)

    def _apply_blame_locked(
        self, engine: Engine, blame: str, outcome: Outcome, duration_s: float, now_s: float
    ) -> None:
        if blame == "good":
            engine.down = False
            engine.fails = 0
            if engine.out_reason == "misconfigured":
                engine.out_until_s = now_s  # its key was put right; a rest still ends by its own time
            return
        engine.last_error = outcome.message or outcome.kind
        if blame == "rest":
            engine.out_until_s = max(engine.out_until_s, now_s + rest_s(outcome))
            engine.out_reason = "resting"
            return
        engine.failed_at_s = now_s
        engine.observe_latency(max(duration_s, FAILURE_LATENCY_S), now_s)
        if blame == "down":
            engine.down = True
            engine.passes = 0
        elif blame == "misconfigured":
            engine.out_until_s = now_s + MISCONFIGURED_S
            engine.out_reason = "misconfigured"

    def record_probe(
        self, engine: Engine, error: Optional[str], fails_to_down: int, passes_to_up: int
    ) -> Optional[StateChange]:
        """Apply one probe's result (`error` None = it passed). Returns the change of state, if any."""
        with self._lock:
            now_s = self._clock()
            before = engine.state(now_s)
            if error is None:
                engine.fails = 0
                engine.passes += 1
                if engine.passes >= passes_to_up:
                    engine.down = False
            else:
                engine.passes = 0
                engine.fails += 1
                engine.last_error = error
                if engine.fails >= fails_to_down:
                    engine.down = True
            return self._change_locked(engine, before, now_s, error or "probe passed")

    def due_for_probe(self, fresh_s: float) -> list[Engine]:
        """The engines without a good answer in the last `fresh_s` seconds: traffic has not vouched for them."""
        with self._lock:
            now_s = self._clock()
            return [
                engine
                for engine in self.engines
                if not engine.spec.is_echo and (engine.down or engine.fails or now_s - engine.ok_at_s >= fresh_s)
            ]

    def any_available(self) -> bool:
        """Whether at least one engine is in."""
        with self._lock:
            return bool(self._engines_in_locked(self._clock()))

    def all_full(self) -> bool:
        """Whether engines are in, but each is at its `max_concurrency`."""
        with self._lock:
            engines = self._engines_in_locked(self._clock())
            return bool(engines) and all(engine.full() for engine in engines)

    def shortest_rest_s(self) -> Optional[float]:
        """Seconds until the first resting engine returns; None when none rests."""
        with self._lock:
            now_s = self._clock()
            waits = [e.out_until_s - now_s for e in self.engines if e.state(now_s) == "resting"]
            return min(waits) if waits else None

    def snapshot(self) -> list[EngineSnapshot]:
        """Every engine as it is now."""
        with self._lock:
            now_s = self._clock()
            return [
                EngineSnapshot(
                    self.name,
                    e.id,
                    e.spec.url,
                    e.state(now_s),
                    e.weight,
                    e.in_flight,
                    e.last_error,
                )
                for e in self.engines
            ]

    def _engines_in_locked(self, now_s: float) -> tuple[Engine, ...]:
        """The engines that are in: recomputed only after a change, or when an engine's time outside has ended."""
        if self._stale or now_s >= self._recheck_at_s:
            engines = tuple(engine for engine in self.engines if engine.available(now_s))
            if engines != self._in:
                self._in = engines
            returns = [e.out_until_s for e in self.engines if e.out_until_s > now_s]
            self._recheck_at_s = min(returns, default=float("inf"))
            self._stale = False
        return self._in

    def _change_locked(self, engine: Engine, before: str, now_s: float, reason: str) -> Optional[StateChange]:
        after = engine.state(now_s)
        if after == before:
            return None
        self._stale = True
        return StateChange(self.name, engine.id, before, after, reason)
