"""A model's engines as reloads, operators, probes and those who look at them know them, and the lock over all of it.

`Roster` owns `_lock`, which guards everything of a model that lives: its engines (`members.py`), who is chosen and who
waits (`choosing.py`), what becomes of an engine's state (`standing.py`), the records of that (`decisions.py`), hedges
and the budget of retries. These parts take no lock: a method of `Roster` or `ModelPool`, its subclass for requests,
holds it and calls theirs, which end in `_locked`. Decisions are made under the lock and returned; nothing does I/O,
calls back (but for the recorder, which only appends), or waits.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from random import Random
from typing import Callable, Optional

from gateway.routing.breaker import BreakerPolicy, RetryBudget
from gateway.routing.choosing import Chooser
from gateway.routing.decisions import Decisions, Recorder
from gateway.routing.engine import DEFAULT_POLICY, Engine
from gateway.routing.hedges import Hedges
from gateway.routing.line import Waiter
from gateway.routing.members import EngineSnapshot, EngineStanding, Members
from gateway.routing.providers import RESPONSES
from gateway.routing.regions import kept_within
from gateway.routing.specs import ENGINE_CHECKS, ModelSpec
from gateway.routing.standing import Standing, StateChange

LACKING_S = 300.0  # an engine that has said that it has not an endpoint is not asked for it
HAVING_S = 3600.0  # and one that has answered well there has it, whatever it says of something else


class Roster:
    """The engines of one model. Thread-safe; every call returns at once."""

    def __init__(
        self,
        spec: ModelSpec,
        strategy: str,
        rng: Random,
        clock: Callable[[], float],
        breaker: BreakerPolicy = DEFAULT_POLICY,
        recorder: Optional[Recorder] = None,
        home: Optional[str] = None,
        scattered: bool = False,
    ) -> None:
        self.name = spec.name
        self._clock = clock
        self._lock = threading.Lock()
        self._members = Members(breaker)
        self._chooser = Chooser(self._members, rng, home, scattered)
        self._standing = Standing(self._members)
        self._hedges = Hedges()
        self._budget = RetryBudget()
        self._decisions = None if recorder is None else Decisions(recorder, self.name, self._members)
        self._configure_locked(spec, strategy, (), False)  # nobody else knows the pool yet

    def _configure_locked(
        self, spec: ModelSpec, strategy: str, forget: Collection[str], keep_weights: bool, unproven: bool = False
    ) -> tuple[Engine, ...]:
        self.spec = spec
        self.strategy_name = spec.strategy or strategy
        self._hedges.configure_locked(spec)
        gone = self._members.configure_locked(spec, forget, keep_weights, unproven)
        self._chooser.use_locked(self.strategy_name)  # among these
        return gone

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The model's engines, in file order."""
        return self._members.engines

    def reconfigure(
        self,
        spec: ModelSpec,
        strategy: str,
        forget: Collection[str] = (),
        keep_weights: bool = False,
        unproven: bool = False,
    ) -> tuple[Engine, ...]:
        """Take over a new configuration; returns the engines that are gone.

        Engines with the same id and address keep their state, but for those whose id is in `forget`: they are asked
        with another key or for another model, and nothing is held against them. What is in flight on a removed engine
        goes on and is settled as usual. Weights are those of `spec`, whatever `set_weight` has said; with
        `keep_weights` an engine that stays keeps what an operator gave it. With `unproven` new engines are out until a
        probe of them passes.
        """
        with self._lock:
            gone = self._configure_locked(spec, strategy, forget, keep_weights, unproven)
            now_s = self._clock()
            served = self._chooser.serve_locked(now_s)
            if self._decisions is not None:
                self._decisions.reconfigure_locked(spec, strategy, forget, keep_weights, unproven, served, now_s)
        wake(served)
        return gone

    def retire(self) -> tuple[Engine, ...]:
        """Mark every engine removed because the model itself is gone; returns them."""
        with self._lock:
            self._decisions = None  # nothing is decided here any more; another model may get the name
            self._members.retire_locked()
            dismissed = self._chooser.dismiss_locked()
        wake(dismissed)
        return self.engines

    def set_draining(self, engine_id: str, draining: bool) -> Optional[StateChange]:
        """An operator takes an engine out (it finishes what it has) or lets it in again. KeyError: no such engine."""
        with self._lock:
            now_s = self._clock()
            engine = self._find_locked(engine_id)
            change = self._standing.draining_locked(engine, draining, now_s)
            served = self._chooser.serve_locked(now_s)
            if self._decisions is not None:
                self._decisions.line_locked("drain", {"engine": engine_id, "draining": draining}, served, now_s)
        wake(served)
        return change

    def hint(self, engine_id: str, left_s: float) -> Optional[StateChange]:
        """Another gateway's breaker of the same engine has opened, for `left_s` seconds more: leave the engine alone as
        long, unless it is the last one that is in, or out already. KeyError: no such engine."""
        with self._lock:
            now_s = self._clock()
            change = self._standing.hinted_locked(self._find_locked(engine_id), left_s, now_s)
            served = self._chooser.serve_locked(now_s)
            if self._decisions is not None:
                self._decisions.line_locked("hint", {"engine": engine_id, "left_s": left_s}, served, now_s)
        wake(served)
        return change

    def set_weight(self, engine_id: str, weight: int) -> None:
        """An operator gives an engine another weight, which the next choice goes by; `reconfigure` takes it back.

        KeyError: no such engine. ValueError: a weight that the engines file may not have.
        """
        faults = [f"weight{fault}" for fault in ENGINE_CHECKS["weight"](weight)]
        if faults:
            raise ValueError("; ".join(faults))
        with self._lock:
            self._members.weigh_locked(self._find_locked(engine_id), weight)
            if self._decisions is not None:
                self._decisions.weight_locked(engine_id, weight, self._clock())

    def _find_locked(self, engine_id: str) -> Engine:
        engine = next((e for e in self.engines if e.id == engine_id), None)
        if engine is None:
            raise KeyError(engine_id)
        return engine

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
            if error is not None and fails_unanswered is not None and not engine.answered:
                fails_to_down = fails_unanswered
            change = self._standing.probed_locked(engine, error, fails_to_down, passes_to_up, now_s)
            served = self._chooser.serve_locked(now_s)
            if self._decisions is not None:
                self._decisions.probe_locked(engine, error, fails_to_down, passes_to_up, served, now_s)
        wake(served)
        return change

    def hear(
        self, engine_id: str, state: str, left_s: float = 0.0, error: Optional[str] = None
    ) -> Optional[StateChange]:
        """Another process of this gateway has found an engine `open`, `down`, `resting` or `misconfigured` (`left_s`
        seconds more, but for `down`), or `up` again. Returns the change of state here, if any. KeyError: no such
        engine."""
        with self._lock:
            now_s = self._clock()
            engine = self._find_locked(engine_id)
            change = self._standing.heard_locked(engine, state, left_s, error, now_s)
            served = self._chooser.serve_locked(now_s)
            if self._decisions is not None:
                inputs = {"engine": engine_id, "state": state, "left_s": left_s}
                self._decisions.line_locked("hear", inputs, served, now_s)
        wake(served)
        return change

    def standings(self, engine_id: Optional[str] = None) -> list[EngineStanding]:
        """What another process of this gateway needs to know of every engine, or of the one that is called so."""
        with self._lock:
            return self._members.standings_locked(self._clock(), engine_id)

    def unable(self, path: str) -> tuple[Engine, ...]:
        """The engines that have nothing like an endpoint (of OpenAI's): so it was said, or found not long ago."""
        with self._lock:
            now_s = self._clock()
            return tuple(
                engine
                for engine in self._members.engines
                if not engine.spec.can_serve(path) or engine.lacking.get(path, now_s) > now_s
            )

    def lacks(self, path: str) -> bool:
        """Whether none of its engines has an endpoint (of OpenAI's); so it is where there are none."""
        return len(self.unable(path)) == len(self.engines)

    def found_lacking(self, engine: Engine, path: str, status: int) -> bool:
        """An engine has said that it has no such endpoint, with this status. It is believed for a while, as it may come
        again with it. False: what it has not is something else, of the request; a 404 where the endpoint is known."""
        with self._lock:
            now_s = self._clock()
            said = engine.spec.endpoints is not None or path == RESPONSES  # else it would not have been asked
            if status == 404 and (said or engine.having.get(path, now_s) > now_s):
                return False
            engine.lacking[path] = now_s + LACKING_S
            return True

    def found_having(self, engine: Engine, path: str) -> None:
        """An engine has answered well at an endpoint."""
        with self._lock:
            engine.having[path] = self._clock() + HAVING_S

    def due_for_probe(self, fresh_s: float) -> list[Engine]:
        """The engines without a good answer in the last `fresh_s` seconds: traffic has not vouched for them."""
        with self._lock:
            return self._members.due_for_probe_locked(fresh_s, self._clock())

    def any_available(self, residency: str = "") -> bool:
        """Whether at least one engine is in, of those that may have what must stay in `residency` ("": any)."""
        with self._lock:
            return bool(kept_within(self._members.look_locked(self._clock()), residency))

    def is_within(self, residency: str) -> bool:
        """Whether one of its engines, be it out, may have what must stay there."""
        return not residency or bool(kept_within(self._members.engines, residency))

    def all_full(self, besides: Collection[Engine] = (), residency: str = "") -> bool:
        """Whether engines other than these are in, but each is at its `max_concurrency`."""
        with self._lock:
            return self._members.all_full_locked(self._clock(), besides, residency)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place on an engine."""
        return self._chooser.waiting

    def shortest_rest_s(self, residency: str = "") -> Optional[float]:
        """Seconds until the first resting engine returns; None when none rests."""
        with self._lock:
            return self._members.shortest_rest_s_locked(self._clock(), residency)

    def snapshot(self) -> list[EngineSnapshot]:
        """Every engine as it is now."""
        with self._lock:
            return self._members.snapshot_locked(self._clock())


def wake(served: Sequence[Waiter]) -> None:
    """Tell who waited that it has a place, or that it waits in vain. Without the lock."""
    for waiter in served:
        waiter.ready.set()
