"""What a pool decided, and from what: records that a later run can be checked against.

A pool calls its recorder under its own lock, in the order of its decisions; the recorder only appends. Each record is a
flat dictionary of JSON values: the inputs of one call (with the time it saw) and, under `out`, what came of it. The
same calls with the same seed and the same times give the same decisions: `python main.py replay` checks that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Callable, Optional

from gateway.routing.engine import Engine
from gateway.routing.specs import ModelSpec

Record = dict[str, Any]
Recorder = Callable[[Record], None]


def candidates(engines: Iterable[Engine], now_s: float) -> list[list[Any]]:
    """Each engine as [id, state, requests in flight]: what a choice was made from."""
    return [[engine.id, engine.state(now_s), engine.in_flight] for engine in engines]


def model_json(model: ModelSpec) -> Record:
    """What of a model's configuration decisions depend on."""
    return {
        "strategy": model.strategy,
        "hedge_ratio": model.hedge_ratio,
        "hedge_after_ms": model.hedge_after_ms,
        "engines": [
            {"url": e.url, "id": e.id, "weight": e.weight, "max_concurrency": e.max_concurrency} for e in model.engines
        ],
    }


def ids_in(model_name: str, engines: Iterable[Engine]) -> list[Optional[str]]:
    """The engines' ids; None for each that is not, or no longer, one of the model's, though it may be called the same:
    one server may serve several models, and come back after a reload."""
    return [engine.id if engine.model_name == model_name and not engine.removed else None for engine in engines]


def id_of(engine: Optional[Engine]) -> Optional[str]:
    """The engine's id, or None."""
    return None if engine is None else engine.id
