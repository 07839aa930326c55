"""The engines of one model: who is in, who is chosen, who waits, what an outcome changes.

Owns the live `Engine` objects of one model, the strategy over them, the line of requests that wait for a place, and the
budget of retries. `_lock` guards all of that. Decisions are made under the lock and returned; nothing here does I/O,
calls back (but for the recorder, which only appends), or waits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from random import Random
from typing import Callable, NamedTuple, Optional

from gateway.routing.breaker import CLOSED, HALF_OPEN, OPEN, BreakerPolicy, RetryBudget
from gateway.routing.decisions import Recorder, candidates, id_of, ids_in, model_json
from gateway.routing.engine import DEFAULT_POLICY, FAILURE_LATENCY_S, Engine
from gateway.routing.line import Lease, Line, Waiter
from gateway.routing.retry import MISCONFIGURED_S, Outcome, judge, rest_s
from gateway.routing.specs import ModelSpec
from gateway.routing.strategies import STRATEGY_BY_NAME, LeastConnections, RouteRequest

P95_SAMPLES = 200
P95_LEAST = 20  # fewer say nothing about a 95th percentile
SERVICE_WEIGHT = 0.1  # of a new sample in the average service time


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
    breaker: str
    available: bool  # may be chosen: a breaker stays `open` until a request tries the engine, but not in the way of it


class ModelPool:
    """Chooses among the engines of one model. Thread-safe; every call returns at once."""

    def __init__(
        self,
        spec: ModelSpec,
        strategy: str,
        rng: Random,
        clock: Callable[[], float],
        breaker: BreakerPolicy = DEFAULT_POLICY,
        recorder: Optional[Recorder] = None,
    ) -> None:
        self.name = spec.name
        self._rng = rng
        self._clock = clock
        self._policy = breaker
        self._recorder = recorder
        self._lock = threading.Lock()
        self._retry = LeastConnections(rng)  # a retry goes to the idlest, leaving rotations alone
        self._line = Line()
        self._budget = RetryBudget()
        self._latencies_s: deque[float] = deque(maxlen=P95_SAMPLES)
        self._service_s = 0.0  # average time a request holds its place
        self._apply(spec, strategy, ())

    def _apply(self, spec: ModelSpec, strategy: str, kept: Sequence[Engine], forget: Collection[str] = ()) -> None:
        known = {(engine.id, engine.spec.url): engine for engine in kept}
        engines = []
        for engine_spec in spec.engines:
            engine = known.get((engine_spec.id or "", engine_spec.url))
            if engine is None:
                engine = Engine(engine_spec, spec.name, self._policy)
            elif engine.id in forget:
                engine.forget(self._policy)
            engine.spec, engine.weight = engine_spec, engine_spec.weight
            engines.append(engine)
        self.spec = spec
        self._hedges = RetryBudget(spec.hedge_ratio, least=1 if spec.hedge_ratio else 0)  # one, or nobody would see it
        self.engines = tuple(engines)
        self.strategy_name = spec.strategy or strategy
        self._strategy = STRATEGY_BY_NAME[self.strategy_name](self._rng)
        self._in: tuple[Engine, ...] = ()
        self._stale = True
        self._recheck_at_s = 0.0

    # --- configuration ---------------------------------------------------------------------------------------------

    def reconfigure(self, spec: ModelSpec, strategy: str, forget: Collection[str] = ()) -> tuple[Engine, ...]:
        """Take over a new configuration; returns the engines that are gone.

        Engines with the same id and address keep their state, but for those whose id is in `forget`: they are asked
        with another key or for another model, and nothing is held against them. What is in flight on a removed engine
        goes on and is settled as usual.
        """
        with self._lock:
            before = self.engines
            self._apply(spec, strategy, before, forget)
            kept = set(self.engines)  # engines compare by identity; in a tuple, thousands would be compared with each
            gone = tuple(engine for engine in before if engine not in kept)
            for engine in gone:
                engine.removed = True
            now_s = self._clock()
            served = self._serve_line_locked(now_s)
            if self._recorder is not None:
                inputs = {
                    "spec": model_json(spec),
                    "strategy": strategy,
                    **({"forget": list(forget)} if forget else {}),
                }
                self._record("reconfigure", now_s, inputs, [w.number for w in served])
        _wake(served)
        return gone

    def retire(self) -> tuple[Engine, ...]:
        """Mark every engine removed because the model itself is gone; returns them."""
        with self._lock:
            self._recorder = None  # nothing is decided here any more; another model may get the name
            for engine in self.engines:
                engine.removed = True
            self._stale = True
            dismissed = self._line.dismiss()
        _wake(dismissed)
        return self.engines

    def set_draining(self, engine_id: str, draining: bool) -> Optional[StateChange]:
        """An operator takes an engine out (it finishes what it has) or lets it in again. KeyError: no such engine."""
        with self._lock:
            now_s = self._clock()
            engine = next((e for e in self.engines if e.id == engine_id), None)
            if engine is None:
                raise KeyError(engine_id)
            before = engine.state(now_s)
            engine.draining = draining
            if not draining:
                engine.down = False
            change = self._change_locked(engine, before, now_s, "operator")
            served = self._serve_line_locked(now_s)
            if self._recorder is not None:
                self._record("drain", now_s, {"engine": engine_id, "draining": draining}, [w.number for w in served])
        _wake(served)
        return change

    # --- choosing --------------------------------------------------------------------------------------------------

    def acquire(self, tried: Collection[Engine], affinity: bytes, avoid: Collection[Engine] = ()) -> Optional[Lease]:
        """Choose an engine that is in and take one place on it; None when none is in or all are full.

        `tried` engines are chosen again only when every engine that is in has been tried. The place is given back by
        `settle`, exactly once. The first try of a request (nothing tried) counts towards the budget of retries. Engines
        to `avoid` are chosen only when no other is free.
        """
        with self._lock:
            now_s = self._clock()
            if not tried:
                self._budget.request(now_s)
            lease = None
            if not self._line.length:  # nobody overtakes those who wait
                engine = self._choose_locked(tried, affinity, now_s, avoid)
                if engine is not None:
                    lease = self._lease_locked(engine, now_s)
            if self._recorder is not None:
                inputs = {
                    "tried": ids_in(self.name, tried),
                    "affinity": affinity.hex(),
                    **({"avoid": ids_in(self.name, avoid)} if avoid else {}),
                    "candidates": self._candidates(now_s),
                }
                self._record("acquire", now_s, inputs, id_of(lease.engine if lease else None))
            return lease

    def _choose_locked(
        self, tried: Collection[Engine], affinity: bytes, now_s: float, avoid: Collection[Engine]
    ) -> Optional[Engine]:
        engines = self._engines_in_locked(now_s)
        if not engines:
            return None
        request = RouteRequest(affinity, now_s)
        if not (tried or avoid):
            engine = self._strategy.select(engines, request)
            if not engine.full():
                return engine
        free = [e for e in engines if not e.full()]
        fresh = [e for e in free if e not in tried]
        if avoid:
            fresh = [e for e in fresh if e not in avoid] or fresh
        return self._retry.select(fresh or free, request) if free else None

    def _lease_locked(self, engine: Engine, now_s: float) -> Lease:
        engine.in_flight += 1
        before = engine.breaker.state
        ticket = engine.breaker.admit(now_s)
        if engine.breaker.state != HALF_OPEN:
            return Lease(engine, ticket)
        self._stale = True  # it has its one trial and is out until that ends
        others = any(other is not engine and other.available(now_s) for other in self.engines)
        return Lease(engine, ticket, trial=before != HALF_OPEN, others=others)

    def join_line(self, priority: str, affinity: bytes) -> Optional[Waiter]:
        """Wait for a place when engines are in but all are full; None when none is in.

        The waiter's `ready` is set when it has its `lease`, which may be at once, or, without one, when no engine is in
        any more. Leave the line with `leave_line`.
        """
        with self._lock:
            now_s = self._clock()
            waiter = None
            if self._engines_in_locked(now_s):
                waiter = self._line.join(priority, now_s)
            served = self._serve_line_locked(now_s)
            if waiter is not None and waiter not in served:
                waiter.predicted_s = self._predicted_wait_s_locked(waiter)
            if self._recorder is not None:
                self._record("join", now_s, {"priority": priority}, [w.number for w in served])
        _wake(served)
        return waiter

    def leave_line(self, waiter: Waiter) -> Optional[Lease]:
        """Stop waiting. Returns the place if one has been handed over meanwhile: it must be settled then."""
        with self._lock:
            self._line.leave(waiter)
            if self._recorder is not None:
                self._record("leave", self._clock(), {"waiter": waiter.number}, None)
            return waiter.lease

    def serve_line(self) -> None:
        """Look again whether a place is free: an engine's rest or open breaker ends without anybody's doing."""
        with self._lock:
            now_s = self._clock()
            engines = self._look_locked(now_s)
            if engines and all(engine.full() for engine in engines):
                return  # in vain, and so without a trace: only what is recorded may change what is decided
            served = self._serve_line_locked(now_s)
            if served and self._recorder is not None:
                self._record("serve", now_s, {}, [w.number for w in served])
        _wake(served)

    def predicted_wait_s(self, waiter: Optional[Waiter] = None) -> float:
        """How long this request (None: one that joins the line now) will wait, as it looks now: so many places must
        become free until it is served, each at the usual time a place is held."""
        with self._lock:
            return self._predicted_wait_s_locked(waiter)

    def _predicted_wait_s_locked(self, waiter: Optional[Waiter], ahead: int = 0) -> float:
        places = sum(engine.spec.max_concurrency or 0 for engine in self._look_locked(self._clock()))
        turns = self._line.length + 1 + ahead if waiter is None else self._line.place_of(waiter)
        return turns * self._service_s / places if places else 0.0

    def _serve_line_locked(self, now_s: float) -> list[Waiter]:
        """Hand free places to those who wait, or send them away when no engine is in; the caller wakes them after the
        lock is released."""
        served: list[Waiter] = []
        while self._line.length:
            engines = self._engines_in_locked(now_s)
            if not engines:
                return served + self._line.dismiss()
            free = [engine for engine in engines if not engine.full()]
            if not free:
                break
            waiter = self._line.next()
            if waiter is None:
                break
            engine = self._retry.select(free, RouteRequest(b"", now_s))
            waiter.lease = self._lease_locked(engine, now_s)
            served.append(waiter)
        return served

    def acquire_last_resort(self, tried: Collection[Engine]) -> Optional[Lease]:
        """Take a place on the engine that returns soonest although it is out; never a resting, full or tried one."""
        with self._lock:
            now_s = self._clock()
            engine = self._last_resort_locked(tried, now_s)
            lease = None if engine is None else self._lease_locked(engine, now_s)
            if self._recorder is not None:
                inputs = {"tried": ids_in(self.name, tried), "candidates": self._candidates(now_s)}
                self._record("last_resort", now_s, inputs, id_of(engine))
            return lease

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
            if engine not in tried and not engine.full() and engine.state(now_s) not in ("resting", "draining")
        ]

        def rank(engine: Engine) -> tuple[bool, float]:
            # One that only has an open breaker passes its probes: more is to be hoped of it than of one that is down.
            # And of those, the one that refused longest ago is the likeliest to have been started again.
            if engine.down:
                return True, engine.failed_at_s
            return engine.out_until_s > now_s, engine.returns_at_s(now_s)

        return min(out, key=rank, default=None)

    def take_retry(self, often: bool = False) -> bool:
        """Take one retry from the budget (20 % of the last ten seconds' requests, at least 10); False: none is left.

        Who asks `often`, until there is one, leaves no trace of having asked in vain.
        """
        with self._lock:
            now_s = self._clock()
            granted = self._budget.take(now_s)
            if self._recorder is not None and (granted or not often):
                self._record("retry", now_s, {}, granted)
            return granted

    def hedge_after_s(self) -> Optional[float]:
        """Seconds after which a second engine is to be asked; None: not (yet). For a hedging model's request, once."""
        after_ms = self.spec.hedge_after_ms
        with self._lock:
            self._hedges.request(self._clock())
            if isinstance(after_ms, (int, float)):
                return after_ms / 1000
            if after_ms is None or len(self._latencies_s) < P95_LEAST:
                return None
            return sorted(self._latencies_s)[int(len(self._latencies_s) * 0.95)]

    def take_hedge(self) -> bool:
        """Whether one more request may ask a second engine (at most `hedge_ratio` of the last ten seconds')."""
        with self._lock:
            return self._hedges.take(self._clock())

    # --- outcomes --------------------------------------------------------------------------------------------------

    def answered(self, lease: Lease, duration_s: float) -> Optional[StateChange]:
        """The first event of a stream has come, after `duration_s`: the engine has answered well, and a trial is over.

        To be called at most once before `settle`, which then counts a failure if the stream breaks, nothing if it ends
        well, and gives the place back: it is taken while the stream is open. Returns the change of state, if any.
        """
        engine = lease.engine
        with self._lock:
            now_s = self._clock()
            ticket = lease.ticket
            change = None
            if ticket < engine.since_ticket:
                lease.counted = -1
            else:
                change = self._apply_good_locked(lease, duration_s, now_s, first_event=True)
            if self.spec.hedge_after_ms == "p95":
                self._latencies_s.append(duration_s)
            served = self._serve_line_locked(now_s) if self._line.length else ()
            if self._recorder is not None:
                inputs = {"engine": engine.id, "ticket": ticket, "duration_s": duration_s}
                self._record("answered", now_s, inputs, [engine.state(now_s), [w.number for w in served]])
        _wake(served)
        return change

    def settle(
        self,
        lease: Lease,
        outcome: Outcome,
        duration_s: float,
        held_s: Optional[float] = None,
        doubted: bool = False,
    ) -> Optional[StateChange]:
        """Give a place back and apply the verdict on what happened there. Returns the change of state, if any.

        `duration_s` is how long the engine took until its answer (or first event); `held_s` how long the place was
        held, None = the same. A stream that ends well after `answered` is not counted again: it only shows
        that the engine is still there. `doubted`: the outcome is rather the caller's (`Accusers`), and is held against
        nobody.
        """
        engine = lease.engine
        blame = "none" if doubted else judge(outcome).blame
        with self._lock:
            now_s = self._clock()
            engine.in_flight -= 1
            if lease.ticket < engine.since_ticket:
                blame = "none"
            change = self._apply_outcome_locked(lease, blame, outcome, duration_s, now_s)
            if blame == "good":
                held_s = duration_s if held_s is None else held_s
                self._service_s += SERVICE_WEIGHT * (held_s - self._service_s) if self._service_s else held_s
                if self.spec.hedge_after_ms == "p95" and lease.counted is None:
                    self._latencies_s.append(duration_s)
            served = self._serve_line_locked(now_s) if self._line.length else ()
            if self._recorder is not None:
                counted = {} if lease.counted is None else {"counted": lease.counted}
                inputs = {
                    "engine": engine.id,
                    "ticket": lease.ticket,
                    **counted,
                    "outcome": outcome.kind,
                    **({"doubted": True} if doubted else {}),
                    "verdict": blame,
                    "duration_s": duration_s,
                    "held_s": held_s,
                    "retry_after_s": outcome.retry_after_s,
                }
                self._record("settle", now_s, inputs, [engine.state(now_s), [w.number for w in served]])
        _wake(served)
        return change

    def _apply_outcome_locked(
        self, lease: Lease, blame: str, outcome: Outcome, duration_s: float, now_s: float
    ) -> Optional[StateChange]:
        engine = lease.engine
        breaker = engine.breaker
        if blame == "good":
            if lease.counted is None:
                return self._apply_good_locked(lease, duration_s, now_s)
            return self._ended_well_locked(engine, now_s)
        before = engine.state(now_s)
        # A 429 or a refused key says nothing about the engine's health, and a refused connection has an end of its own
        # (the next good probe), which an open breaker would only put off: the breaker learns nothing from them.
        failed = True if blame == "failure" else None
        state = breaker.state
        if lease.counted is None:
            breaker.record(lease.ticket, failed, now_s)
        elif failed:
            breaker.broke(lease.ticket, lease.counted, now_s)
        if breaker.state != state or state == HALF_OPEN:
            self._stale = True
        self._apply_blame_locked(engine, blame, outcome, duration_s, now_s)
        return self._change_locked(engine, before, now_s, outcome.message)

    def _apply_good_locked(
        self, lease: Lease, duration_s: float, now_s: float, first_event: bool = False
    ) -> Optional[StateChange]:
        engine = lease.engine
        breaker = engine.breaker
        engine.observe_latency(duration_s, now_s)
        engine.ok_at_s = now_s
        engine.answered = True
        # Nothing to change on the usual way: comparisons instead of two state strings.
        usual = breaker.state == CLOSED and not (engine.down or engine.fails) and engine.out_until_s <= now_s
        before = "" if usual else engine.state(now_s)
        state = breaker.state
        if first_event:
            lease.ticket, lease.counted = breaker.answer(lease.ticket, now_s)
        else:
            breaker.record(lease.ticket, False, now_s)
        if usual:
            return None
        if breaker.state != state or state == HALF_OPEN:
            self._stale = True
        engine.down = False
        engine.fails = 0
        if engine.out_reason == "misconfigured":
            engine.out_until_s = min(engine.out_until_s, now_s)  # its key was put right
        return self._change_locked(engine, before, now_s, "")

    def _ended_well_locked(self, engine: Engine, now_s: float) -> Optional[StateChange]:
        """A stream whose first event was counted has ended: the engine is there, which is all that is new."""
        before = engine.state(now_s) if engine.down else ""
        engine.ok_at_s = now_s
        engine.down = False
        engine.fails = 0
        return self._change_locked(engine, before, now_s, "") if before else None

    def _apply_blame_locked(
        self, engine: Engine, blame: str, outcome: Outcome, duration_s: float, now_s: float
    ) -> None:
        if blame == "none":
            return
        engine.last_error = outcome.message or outcome.kind
        if blame in ("rest", "misconfigured"):
            until_s = now_s + (rest_s(outcome) if blame == "rest" else MISCONFIGURED_S)
            if until_s > engine.out_until_s:  # the longer reason counts
                engine.out_until_s = until_s
                engine.out_reason = "resting" if blame == "rest" else "misconfigured"
        if blame == "rest":
            return
        engine.failed_at_s = now_s
        engine.observe_latency(max(duration_s, FAILURE_LATENCY_S), now_s)
        if blame == "down":
            engine.down = True
            engine.passes = 0
            engine.misses += 1

    def record_probe(
        self,
        engine: Engine,
        error: Optional[str],
        fails_to_down: int,
        passes_to_up: int,
        fails_unanswered: Optional[int] = None,
    ) -> Optional[StateChange]:
        """Apply one probe's result (`error` None = it passed). Returns the change of state, if any.

        `fails_unanswered`: so many failures take out an engine that has not answered anything well yet (None: as many
        as others). Recorded is the number that counted.
        """
        with self._lock:
            if engine.removed:  # while the probe was under way
                return None
            now_s = self._clock()
            before = engine.state(now_s)
            if error is None:
                engine.answered = True
                engine.fails = 0
                engine.passes += 1
                if engine.passes >= passes_to_up:
                    engine.down = False
            else:
                engine.passes = 0
                engine.misses += 1
                engine.fails += 1
                engine.last_error = error
                if fails_unanswered is not None and not engine.answered:
                    fails_to_down = fails_unanswered
                if engine.fails >= fails_to_down:
                    engine.down = True
            change = self._change_locked(engine, before, now_s, error or "probe passed")
            served = self._serve_line_locked(now_s) if self._line.length else ()
            if self._recorder is not None:
                inputs = {"engine": engine.id, "error": error, "fails": fails_to_down, "passes": passes_to_up}
                self._record("probe", now_s, inputs, [engine.state(now_s), [w.number for w in served]])
        _wake(served)
        return change

    def due_for_probe(self, fresh_s: float) -> list[Engine]:
        """The engines without a good answer in the last `fresh_s` seconds: traffic has not vouched for them."""
        with self._lock:
            now_s = self._clock()
            return [
                engine
                for engine in self.engines
                if not engine.spec.is_echo and (engine.down or engine.fails or now_s - engine.ok_at_s >= fresh_s)
            ]

    # --- looking ---------------------------------------------------------------------------------------------------

    def any_available(self) -> bool:
        """Whether at least one engine is in."""
        with self._lock:
            return bool(self._look_locked(self._clock()))

    def all_full(self) -> bool:
        """Whether engines are in, but each is at its `max_concurrency`."""
        with self._lock:
            engines = self._look_locked(self._clock())
            return bool(engines) and all(engine.full() for engine in engines)

    def takes_over(self, left: Collection[Engine], place_s: float, ahead: int = 0) -> bool:
        """Whether an engine other than those `left` is in, and a request that came now would have a place at once, or
        in less than `place_s` seconds. `ahead`: so many others are on their way here."""
        with self._lock:
            engines = [engine for engine in self._look_locked(self._clock()) if engine not in left]
            if not engines:
                return False
            if not self._line.length:
                free = sum(engine.free() for engine in engines)
                if free > ahead:
                    return True
                ahead -= int(free)
            return self._predicted_wait_s_locked(None, ahead) < place_s

    @property
    def waiting(self) -> int:
        """Requests that wait for a place on an engine."""
        return self._line.length

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
                    e.breaker.state_name,
                    e.available(now_s),
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
            returns += [
                e.breaker.until_s for e in self.engines if e.breaker.state == OPEN and e.breaker.until_s > now_s
            ]
            self._recheck_at_s = min(returns, default=float("inf"))
            self._stale = False
        return self._in

    def _look_locked(self, now_s: float) -> tuple[Engine, ...]:
        """The engines that are in, for who only looks: a look leaves no trace in what is decided after it."""
        if self._stale or now_s >= self._recheck_at_s:
            return tuple(engine for engine in self.engines if engine.available(now_s))
        return self._in

    def _change_locked(self, engine: Engine, before: str, now_s: float, reason: str) -> Optional[StateChange]:
        after = engine.state(now_s)
        if after == before:
            return None
        self._stale = True
        return StateChange(self.name, engine.id, before, after, reason)

    def _candidates(self, now_s: float) -> list[list[object]]:
        return candidates(self.engines, now_s)

    def _record(self, operation: str, now_s: float, inputs: Mapping[str, object], out: object) -> None:
        assert self._recorder is not None
        self._recorder({"op": operation, "model": self.name, "now_s": now_s, **inputs, "out": out})


def _wake(served: Sequence[Waiter]) -> None:
    for waiter in served:
        waiter.ready.set()
