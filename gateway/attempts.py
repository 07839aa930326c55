"""One try of one engine, or two at once: the attempt from its begin to what it gives, and what that means.

`Attempts` owns the attempts that wait for an answer (`rescue.py`) and the watchdog of hedges; it holds no lock of its
own. What one engine says is asked for by `engines.py`. An attempt's steps end in a `finally` that gives the engine's
place back, however they end; a stream that has begun takes the place with it until it is closed. What nobody had
foreseen is the attempt's failure, like any other.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Callable, NamedTuple, Optional

from gateway.deadlines import Watchdog
from gateway.engines import Engines, SizeLimits
from gateway.errors import ClientGone, GatewayError
from gateway.hedging import Race, Tried
from gateway.rescue import Leaver, Rescue
from gateway.routing.engine import Engine
from gateway.routing.line import Lease
from gateway.routing.pool import ModelPool
from gateway.routing.retry import CANCELLED, CRASHED, OK, Outcome
from gateway.routing.router import Router
from gateway.routing.standing import StateChange
from gateway.routing.tries import Step, Tries
from gateway.steps import Steps, drive
from gateway.telemetry.events import AttemptRecord
from gateway.upstream.attempt import HUNG, Attempt, EngineFault
from gateway.upstream.call import Call
from gateway.upstream.client import EngineClient
from gateway.upstream.sse import EventStream
from gateway.upstream.stream import GRACE_S, EngineStream

HEDGE_TICK_S = 0.01


class TimeLimits(NamedTuple):
    """Seconds: for all attempts of a complete answer, until a stream's first event, for a place on an engine, for the
    end of a complete stream."""

    request_s: float = 60.0
    first_token_s: float = 60.0
    place_s: float = 30.0
    stream_end_s: float = GRACE_S


OnCrash = Callable[[Exception, str, str], None]
"""Told of what nobody had foreseen in an attempt: the exception, the model and the engine."""


class Attempts:
    """Makes attempts. Thread-safe."""

    def __init__(
        self,
        router: Router,
        client: EngineClient,
        limits: TimeLimits,
        on_change: Callable[[StateChange], None],
        sizes: SizeLimits,
        on_crash: OnCrash,
    ) -> None:
        self._router = router
        self._told = on_change
        self._on_crash = on_crash
        self.engines = Engines(router, client, limits.stream_end_s, sizes)
        self._rescue = Rescue(limits.place_s)
        self.engines.watch(self._rescue)
        # Of its own: a hedge wants finer ticks than a deadline, and only where a model hedges.
        self._hedges = Watchdog("hedges", tick_s=HEDGE_TICK_S)
        self._hedging = False
        self._watch_hedges()

    def close(self) -> None:
        """Stop watching deadlines."""
        self.engines.close()
        self._hedges.close()

    def _watch_hedges(self) -> None:
        hedging = any(pool.spec.hedge_after_ms is not None for pool in self._router.pools.values())
        if hedging and not self._hedging:
            self._hedging = True
            self._hedges.start()

    def forget_changed(self, renewed: Collection[str] = ()) -> None:
        """Take over a reload: see `Engines.forget_changed`."""
        self.engines.forget_changed(renewed)
        self._watch_hedges()

    # --- a step ----------------------------------------------------------------------------------------------------

    def try_step(self, call: Call, tries: Tries, step: Step, deadline_s: float) -> Steps[Tried]:
        """Ask the engine that a step has a place on, and where the model hedges, a second one when that is slow."""
        must_stay = step.pool is not tries.asked and self._must_stay(tries, step.pool)
        attempt = self.new_attempt(tries, step, deadline_s, must_stay)
        if step.pool.spec.hedge_after_ms is None or call.form is not None:  # what is sent once can be sent to one
            return self.attempt(call, step, attempt)
        return self._hedged(call, tries, step, attempt, deadline_s)

    def _must_stay(self, tries: Tries, pool: ModelPool) -> bool:
        return pool.name not in tries.named and self._router.must_stay(tries.asked, pool)

    def new_attempt(self, request: Leaver, step: Step, deadline_s: float, must_stay: bool) -> Attempt:
        """The attempt at the engine that a step has a place on; it may be ended for another one until the end of
        `attempt`."""
        limit_s = step.pool.spec.attempt_timeout_s
        lease = step.lease
        assert lease is not None
        now_s = time.monotonic()
        if lease.others:
            # The engine may still hang: half of the time is left for another, so that no trial costs a client its
            # answer.
            deadline_s = now_s + (deadline_s - now_s) / 2
        if limit_s is not None:
            deadline_s = min(deadline_s, now_s + limit_s)
        attempt = Attempt(deadline_s, (step.pool.name, lease.engine.id))
        attempt.must_stay = must_stay
        self._rescue.enter(attempt, request, lease)
        return attempt

    def _hedged(self, call: Call, tries: Tries, step: Step, attempt: Attempt, deadline_s: float) -> Steps[Tried]:
        """Try one engine, and a second one too when the first has not answered in time; the first answer wins."""
        after_s = step.pool.hedge_after_s()
        if after_s is None:
            return (yield from self.attempt(call, step, attempt))

        def second() -> Optional[Tried]:
            other = tries.hedge() if step.pool.take_hedge() else None
            if other is None:
                return None
            call.hedged = True
            must_stay = self._must_stay(tries, other.pool)
            rival = race.enter(self.new_attempt(tries, other, deadline_s, must_stay))
            return drive(self.attempt(call, other, rival))

        race = Race(attempt, time.monotonic() + after_s, second)
        self._hedges.watch(race)
        own: Optional[GatewayError] = None
        try:
            try:
                first = yield from self.attempt(call, step, attempt)
            except GatewayError as error:
                if call.cancelled:
                    raise
                if not isinstance(error, ClientGone):
                    own = error  # the gateway's own fault: only the second attempt may still have an answer
                first = Tried(CANCELLED, step.pool, step.lease.engine)  # type: ignore[union-attr]
            finally:
                self._hedges.forget(race)
            tried = yield from race.finish(first, deadline_s)
        except BaseException:  # also where the steps are closed
            race.close()
            raise
        if own is not None and tried is first:
            raise own
        return tried

    # --- an attempt ------------------------------------------------------------------------------------------------

    def attempt(
        self,
        call: Call,
        step: Step,
        attempt: Attempt,
        earlier: Optional[EventStream] = None,
    ) -> Steps[Tried]:
        """One try of one engine, whose place is given back here, or by the stream when it is closed.

        `earlier` is the broken stream that is to go on.
        """
        pool, lease = step.pool, step.lease
        assert lease is not None
        if lease.trial:
            self._on_change(StateChange(pool.name, lease.engine.id, "open", "half_open", "one request on trial"))
        started_s = time.monotonic()
        call.attempts += 1
        outcome = CANCELLED
        stream: Optional[EngineStream] = None
        try:
            result = yield from self.engines.ask(call, pool, lease.engine, attempt, earlier)
            if isinstance(result, EngineStream):
                if not self._rescue.leave(attempt):  # moved in the moment of its first event, its connection is shut
                    attempt.abort(HUNG)
                    call.end(attempt)
                    result.response.close()
                    raise attempt.failure()
                stream = result
                call.must_stay = attempt.must_stay
            outcome = OK
            return Tried(result, pool, lease.engine)
        except GatewayError:
            raise
        except Exception as error:
            outcome = self._outcome_of(error, attempt, pool, lease.engine)
            return Tried(outcome, pool, lease.engine)
        finally:
            self._rescue.leave(attempt)
            took_s = time.monotonic() - started_s
            if stream is None:
                self._settle(call, pool, lease, outcome, attempt.span_id, started_s, None, took_s)
            else:
                change = pool.answered(lease, took_s)  # before anybody else can close the stream
                if change is not None:
                    self._on_change(change)
                stream.on_close(self._settler(call, pool, lease, attempt.span_id, started_s, took_s))

    def _on_change(self, change: StateChange) -> None:
        """Tell of it; who cannot be told fails no attempt."""
        try:
            self._told(change)
        except Exception as error:
            self._on_crash(error, change.model, change.engine)

    def _outcome_of(self, error: Exception, attempt: Attempt, pool: ModelPool, engine: Engine) -> Outcome:
        """Return how an attempt has failed.

        What nobody had foreseen is its failure, too: the engine's answer has brought it about, or another engine may do
        without it.
        """
        outcome = error.outcome if isinstance(error, EngineFault) else CRASHED
        if outcome is CRASHED:
            cause = error.__cause__ if isinstance(error, EngineFault) else error
            self._on_crash(cause if isinstance(cause, Exception) else error, pool.name, engine.id)
        return attempt.masked(outcome)

    def _settler(
        self, call: Call, pool: ModelPool, lease: Lease, span_id: str, started_s: float, first_s: float
    ) -> Callable[[Outcome], None]:
        def settle(outcome: Outcome) -> None:
            total_s = time.monotonic() - started_s
            (call.origin or call).engine_s += total_s - first_s
            self._settle(call, pool, lease, outcome, span_id, started_s, first_s, total_s)

        return settle

    def _settle(
        self,
        call: Call,
        pool: ModelPool,
        lease: Lease,
        outcome: Outcome,
        span_id: str,
        began_s: float,
        first_s: Optional[float],
        total_s: float,
    ) -> None:
        """`first_s`: until a stream's first event; None: it is none, or has not begun."""
        status = outcome.status
        record = AttemptRecord(pool.name, lease.engine.id, outcome.kind, total_s, began_s, first_s, status, span_id)
        call.records.append(record)
        # A list may have failed for being one: each of its requests is asked by itself then, and tells.
        doubted = (call.is_joint and outcome.kind in ("error", "invalid")) or (
            outcome.kind == "unauthorized"
            and outcome.status == 403
            and not self._router.accusers.believed(call.caller, lease.engine)
        )
        change = pool.settle(lease, outcome, total_s if first_s is None else first_s, total_s, doubted)
        if change is not None:
            if change.after == "down":
                self.engines.discard_idle(lease.engine)
            self._on_change(change)
