"""Which of the running parts' figures the console shows: built from the settings, read on the thread `live`.

Owns nothing. The parts are looked up when they are read: there are none yet when the console's part is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, Optional, Protocol

from gateway import __version__
from gateway.api.document import OPERATIONS
from gateway.inference import InferenceFactory
from gateway.pipeline import PATHS, Pipeline
from gateway.settings import Settings
from gateway.telemetry.live import LiveSeries
from gateway.telemetry.liveticker import LiveTicker
from gateway.telemetry.liveview import EngineView, Sources
from gateway.workers import WorkerPool

BROWSERS_OWN = ("/favicon.ico", "/apple-touch-icon.png", "/apple-touch-icon-precomposed.png", "/robots.txt")
"""What browsers ask for by themselves."""
ERROR_CHARS = 300
"""Of what an engine has said to a failure."""
Listing = Callable[[], Sequence[Mapping[str, Any]]]


class Parts(Protocol):
    """The running parts; all of them are there when the ticker starts."""

    factory: InferenceFactory
    workers: WorkerPool
    pipeline: Pipeline


def live_ticker(
    settings: Settings,
    parts: Parts,
    on_error: Callable[[BaseException], object],
    alerts: Listing = tuple,
    slos: Listing = tuple,
) -> Optional[LiveTicker]:
    """The console's part; None: CONSOLE=off. `alerts` and `slos` list what the feed tells of them."""
    if not settings.console:
        return None
    about = {
        "version": __version__,
        "slow_ms": settings.slow_ms,
        "slo": {"availability": settings.slo_availability, "latency_ms": settings.slo_latency_ms},
    }
    sources = Sources(
        lambda: {**about, "started": parts.pipeline.started_unix_s}, lambda: engines_of(parts.factory), alerts, slos
    )
    return LiveTicker(
        LiveSeries(PATHS, is_own),
        sources,
        lambda: (parts.pipeline.in_flight, parts.workers.depth, parts.workers.busy),
        on_error,
    )


def engines_of(factory: InferenceFactory) -> Iterator[EngineView]:
    """Every engine of every model as it is now."""
    for pool in list(factory.router.pools.values()):
        limits = {spec.id: spec.max_concurrency for spec in pool.spec.engines}
        for e in pool.snapshot():
            yield EngineView(
                *(e.model, e.id, e.url, e.state, e.available, e.breaker),
                *(e.in_flight, limits.get(e.id), e.weight, e.last_error and e.last_error[:ERROR_CHARS]),
                e.region,
            )


_OWN = frozenset((*(operation.path for operation in OPERATIONS if operation.path not in PATHS), *BROWSERS_OWN))
_OWN_STARTS = tuple({path.partition("{")[0] for path in _OWN if "{" in path})


def is_own(path: str) -> bool:
    """Whether a path that is not inference's is one of the gateway's own: the console's, a probe's, an
    administrator's."""
    return path in _OWN or path.startswith(_OWN_STARTS)
