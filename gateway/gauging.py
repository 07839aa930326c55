"""Which of the running parts' figures are metrics: read when somebody asks for them, counted by the parts themselves.

Owns nothing. What is read is called on whatever thread renders the metrics, without any lock of theirs.
"""

from __future__ import annotations

from typing import Optional

from gateway import __version__
from gateway.guard import Guard
from gateway.inference import InferenceFactory
from gateway.reuse.caches import Caches
from gateway.routing.breaker import STATE_NAMES
from gateway.telemetry import gauges
from gateway.telemetry.genai import NOBODY
from gateway.telemetry.registry import Registry
from gateway.traces.spans import EngineAt
from gateway.workers import WorkerPool


def bind_metrics(
    registry: Registry, factory: InferenceFactory, workers: WorkerPool, guard: Guard, caches: Optional[Caches]
) -> None:
    """Declare them all. `caches` None: nothing is kept."""
    surplus = factory.client.surplus

    def cache_figures() -> tuple[int, int, int]:
        if caches is None:
            return 0, 0, 0
        return len(caches.store), caches.store.bytes, caches.store.evictions

    gauges.bind_engines(registry, lambda: [(e.model, e.id, e.available, e.in_flight) for e in factory.engines()])
    gauges.bind_surplus(registry, lambda: [((e.model, e.id), surplus((e.model, e.id))) for e in factory.engines()])
    gauges.bind_breakers(
        registry,
        lambda: [((e.model, e.id), STATE_NAMES.index(e.breaker)) for e in factory.engines()],
        lambda: [((name,), pool.waiting) for name, pool in factory.router.pools.items()],
    )
    gauges.bind_discovery(
        registry, lambda: [(s.model, s.kind, s.engines, s.failures, s.age_s) for s in factory.discoveries.states()]
    )
    gauges.bind_queue(registry, lambda: workers.depth, lambda: workers.busy, workers.queue_size)
    gauges.bind_build(registry, __version__)
    gauges.bind_cache(registry, cache_figures)
    gauges.bind_policy(
        registry,
        lambda: [((name,), guard.limiter.factors.get(name, 1.0)) for name in guard.adaptive.factors()],
        lambda: 0 if guard.ledger is None else guard.ledger.dropped_total,
        lambda: 0 if guard.db is None else guard.db.errors,
        lambda: max((used for _, used in guard.budgets.used()), default=None),
    )
    gauges.bind_shared(registry, lambda: None if guard.shared is None else guard.shared.figures())


def provider_of(factory: InferenceFactory, model: str, engine: str) -> str:
    """Whose an engine is: its provider, else the dialect of whoever runs it; "" where there is none of that name."""
    at = engine_at(factory, model, engine)
    return "" if at is None else at.provider


def engine_at(factory: InferenceFactory, model: str, engine: str) -> Optional[EngineAt]:
    """Where an engine is, and whose; None where there is none of that name."""
    pools = factory.router.pools
    own = pools.get(model)
    for pool in pools.values() if own is None else (own,):  # another's name where an engine's own models count
        for one in pool.engines:
            if one.id == engine:
                spec = one.spec
                return EngineAt(spec.host, spec.port, NOBODY if spec.is_echo else spec.provider or spec.dialect or "")
    return None
