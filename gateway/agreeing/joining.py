"""What of a running gateway's parts agrees with the other processes' parts: one line for each.

Owns nothing; called once, before the bus starts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Optional, Protocol

from gateway.agreeing.agreement import Agreement
from gateway.guard import Guard
from gateway.inference import InferenceFactory
from gateway.observing import Observing
from gateway.pipeline import Pipeline
from gateway.reuse.caches import Caches
from gateway.reuse.stored import Chosen
from gateway.schemas.registry import SchemaRegistry
from gateway.server.cachepages import CachePages
from gateway.server.server import GatewayServer
from gateway.telemetry.liveothers import Others
from gateway.telemetry.liveticker import LiveTicker
from gateway.telemetry.observe import Telemetry


class Parts(Protocol):
    """The running parts, all of them."""

    agreement: Agreement
    cache_pages: CachePages
    caches: Optional[Caches]
    factory: InferenceFactory
    guard: Guard
    live: Optional[LiveTicker]
    observing: Observing
    pipeline: Pipeline
    server: GatewayServer
    schemas: Optional[SchemaRegistry]
    telemetry: Telemetry


def agree(parts: Parts) -> None:
    """Have the parts hear what others tell, and tell what others need."""
    agreement, caches, schemas = parts.agreement, parts.caches, parts.schemas
    agreement.bind(parts.factory, lambda: settling(parts))
    agreement.hear("keys", lambda what: parts.guard.store.refresh())
    if caches is not None:
        agreement.hear("cache", lambda what: caches.clear_here(Chosen(*what)))
        agreement.bus.on("cache_stats", lambda what, slot: parts.cache_pages.own_stats())
    if schemas is not None:
        agreement.hear("schemas", lambda what: schemas.reload())
    parts.observing.agree(agreement)
    if parts.live is not None and agreement.waits:
        _watch(parts.live, agreement)


def _watch(live: LiveTicker, agreement: Agreement) -> None:
    """Have the console show the seconds of all."""
    others = live.others = Others()
    live.series.shares = True
    live.share = lambda told: agreement.bus.tell("live", told)
    agreement.bus.on("live", lambda told, slot: others.hear(told))


def settling(parts: Parts) -> Callable[[], bool]:
    """Note which requests have their answer now; what is returned says whether all of them have been counted."""
    turned = threading.Event()
    parts.server.loop.soon(lambda events: turned.set())  # what the loop answers in a turn it reports in that turn
    answered = parts.pipeline.concluding()

    def settled() -> bool:
        nonlocal answered
        if answered is None:
            answered = parts.pipeline.concluding()
        if answered is None or not turned.is_set() or not all(job.finished for job in answered):
            return False
        return parts.telemetry.flush(0.0)

    return settled
