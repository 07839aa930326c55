"""What a pool decided, and from what: records that a later run can be checked against.

A pool's `Decisions` calls the recorder while the pool holds its lock, so in the order of its decisions; the recorder
only appends. Each record is a flat dictionary of JSON values: the inputs of one call (with the time it saw) and, under
`out`, what came of it. The same calls with the same seed and the same times give the same decisions:
`python main.py replay` checks that. Nothing here changes what it tells of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Callable, Optional

from gateway.routing.engine import Engine
from gateway.routing.line import Lease, Waiter
from gateway.routing.members import Members
from gateway.routing.retry import Outcome
from gateway.routing.specs import ModelSpec

Record = dict[str, Any]
Recorder = Callable[[Record], None]


class Decisions:
    """Makes the records of one model's decisions, one method for what each tells. For who holds the pool's lock."""

    def __init__(self, recorder: Recorder, model_name: str, members: Members) -> None:
        self._recorder = recorder
        self._name = model_name
        self._members = members

    def _record_locked(self, operation: str, now_s: float, inputs: Mapping[str, object], out: object) -> None:
        self._recorder({"op": operation, "model": self._name, "now_s": now_s, **inputs, "out": out})

    def acquire_locked(
        self,
        tried: Collection[Engine],
        affinity: bytes,
        avoid: Collection[Engine],
        residency: str,
        lease: Optional[Lease],
        now_s: float,
    ) -> None:
        """An engine was chosen, or none."""
        inputs = {
            "tried": self._ids_in(tried),
            "affinity": affinity.hex(),
            **({"avoid": self._ids_in(avoid)} if avoid else {}),
            **_of_residency(residency),
            "candidates": self._candidates_locked(now_s),
        }
        self._record_locked("acquire", now_s, inputs, None if lease is None else lease.engine.id)

    def last_resort_locked(
        self, tried: Collection[Engine], residency: str, engine: Optional[Engine], now_s: float
    ) -> None:
        """An engine that is out was chosen, or none."""
        inputs = {
            "tried": self._ids_in(tried),
            **_of_residency(residency),
            "candidates": self._candidates_locked(now_s),
        }
        self._record_locked("last_resort", now_s, inputs, None if engine is None else engine.id)

    def reconfigure_locked(
        self,
        spec: ModelSpec,
        strategy: str,
        forget: Collection[str],
        keep_weights: bool,
        unproven: bool,
        served: Sequence[Waiter],
        now_s: float,
    ) -> None:
        """The model has another configuration."""
        inputs = {
            "spec": model_json(spec),
            "strategy": strategy,
            **({"forget": list(forget)} if forget else {}),
            **({"keep_weights": True} if keep_weights else {}),
            **({"unproven": True} if unproven else {}),
        }
        self.line_locked("reconfigure", inputs, served, now_s)

    def join_locked(self, priority: str, residency: str, served: Sequence[Waiter], now_s: float) -> None:
        """One waits for a place."""
        self.line_locked("join", {"priority": priority, **_of_residency(residency)}, served, now_s)

    def line_locked(self, operation: str, inputs: Mapping[str, object], served: Sequence[Waiter], now_s: float) -> None:
        """After this operation, these were served from the line."""
        self._record_locked(operation, now_s, inputs, [waiter.number for waiter in served])

    def weight_locked(self, engine_id: str, weight: int, now_s: float) -> None:
        """An operator has given an engine this weight."""
        self._record_locked("weight", now_s, {"engine": engine_id, "weight": weight}, None)

    def leave_locked(self, waiter: Waiter, now_s: float) -> None:
        """One waits no more."""
        self._record_locked("leave", now_s, {"waiter": waiter.number}, None)

    def retry_locked(self, granted: bool, now_s: float) -> None:
        """A retry was asked for."""
        self._record_locked("retry", now_s, {}, granted)

    def answered_locked(
        self, engine: Engine, ticket: int, duration_s: float, served: Sequence[Waiter], now_s: float
    ) -> None:
        """A stream's first event has come; `ticket`: the lease's until then."""
        inputs = {"engine": engine.id, "ticket": ticket, **_if_forgotten(engine, ticket), "duration_s": duration_s}
        self._engine_locked("answered", engine, inputs, served, now_s)

    def settle_locked(
        self,
        lease: Lease,
        outcome: Outcome,
        doubted: bool,
        blame: str,
        duration_s: float,
        held_s: Optional[float],
        served: Sequence[Waiter],
        now_s: float,
    ) -> None:
        """A place was given back."""
        inputs = {
            "engine": lease.engine.id,
            "ticket": lease.ticket,
            **_if_forgotten(lease.engine, lease.ticket),
            **({} if lease.counted is None else {"counted": lease.counted}),
            "outcome": outcome.kind,
            **({"doubted": True} if doubted else {}),
            "verdict": blame,
            "duration_s": duration_s,
            "held_s": held_s,
            "retry_after_s": outcome.retry_after_s,
        }
        self._engine_locked("settle", lease.engine, inputs, served, now_s)

    def probe_locked(
        self, engine: Engine, error: Optional[str], fails: int, passes: int, served: Sequence[Waiter], now_s: float
    ) -> None:
        """A probe has ended; so many in a row would have counted."""
        inputs = {"engine": engine.id, "error": error, "fails": fails, "passes": passes}
        self._engine_locked("probe", engine, inputs, served, now_s)

    def _engine_locked(
        self, operation: str, engine: Engine, inputs: Mapping[str, object], served: Sequence[Waiter], now_s: float
    ) -> None:
        """As `line_locked`, with what the engine's state is then."""
        self._record_locked(operation, now_s, inputs, [engine.state(now_s), [waiter.number for waiter in served]])

    def _candidates_locked(self, now_s: float) -> list[list[Any]]:
        """Each engine as [id, state, requests in flight]: what a choice was made from."""
        return [[engine.id, engine.state(now_s), engine.in_flight] for engine in self._members.engines]

    def _ids_in(self, engines: Iterable[Engine]) -> list[Optional[str]]:
        """The engines' ids; None for each that is not, or no longer, one of the model's, though it may be called the
        same: one server may serve several models, and come back after a reload."""
        return [e.id if e.model_name == self._name and not e.removed else None for e in engines]


def model_json(model: ModelSpec) -> Record:
    """What of a model's configuration decisions depend on."""
    return {
        "strategy": model.strategy,
        "hedge_ratio": model.hedge_ratio,
        "hedge_after_ms": model.hedge_after_ms,
        "engines": [
            {
                "url": e.url,
                "id": e.id,
                "weight": e.weight,
                "max_concurrency": e.max_concurrency,
                **({"priority": e.priority} if e.priority else {}),
                **({} if e.region is None else {"region": e.region}),
            }
            for e in model.engines
        ],
        **({"discovered": True} if model.discover is not None else {}),
    }


def _if_forgotten(engine: Engine, ticket: int) -> Record:
    """That a place was taken before its engine was forgotten: of two gone engines of one name, it tells which it is."""
    return {"forgotten": True} if ticket < engine.since_ticket else {}


def _of_residency(residency: str) -> Record:
    return {"residency": residency} if residency else {}
