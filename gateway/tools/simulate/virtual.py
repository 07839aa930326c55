"""One simulated gateway: the shipped router, tries, waits, hedges, rescue, workers and limits, driven by events.

What is shipped runs here as it is: `Router` and its `ModelPool`s (strategies, breakers, standing, line, budgets of
retries and hedges), `Tries`, the steps of `waiting.py`, `Rescue`, `WorkerPool`, `Limiter`. What asks over sockets and
threads there (`dispatch.py`, `attempts.py`, `hedging.py`) is here a few lines each, in the same order of calls. It owns
the requests under way. One thread; time is virtual.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from random import Random
from typing import Optional

from gateway.attempts import HEDGE_TICK_S
from gateway.limits.limiter import Limiter
from gateway.rescue import Rescue
from gateway.routing.engine import Engine
from gateway.routing.retry import CANCELLED, OK, Outcome
from gateway.routing.router import Router
from gateway.routing.specs import EngineSpec, FleetSpec, ModelSpec
from gateway.routing.tries import Step, Tries
from gateway.tools.simulate.door import Door
from gateway.tools.simulate.events import Events
from gateway.tools.simulate.machines import Machine
from gateway.tools.simulate.measures import Measures
from gateway.tools.simulate.probing import Probing
from gateway.tools.simulate.request import Attempt, Request
from gateway.tools.simulate.scenario import Fleet, Scenario
from gateway.tools.simulate.waits import Waits

MODEL, STANDBY = "model", "standby"
LEFT = Outcome("hung", "the engine has stopped answering")
TICK_S = 0.1  # of the watchdog: what is late, and who leaves a hung engine


def fleet_spec(scenario: Scenario) -> FleetSpec:
    """The configuration that a gateway of the scenario would have."""
    rules = scenario.rules

    def model(name: str, fleet: Fleet, fallbacks: tuple[str, ...]) -> ModelSpec:
        specs = tuple(
            EngineSpec(f"http://{name}-{i}/v1", id=f"{name}-{i}", max_concurrency=fleet.max_concurrency)
            for i in range(fleet.engines)
        )
        return ModelSpec(
            name,
            specs,
            fallbacks=fallbacks,
            hedge_after_ms=rules.hedge_after_ms,
            hedge_ratio=rules.hedge_ratio,
        )

    if scenario.standby is None:
        return FleetSpec((model(MODEL, scenario.fleet, ()),))
    return FleetSpec((model(MODEL, scenario.fleet, (STANDBY,)), model(STANDBY, scenario.standby, ())))


class Gateway:
    """One gateway. `machines`: its engines', by name of the model."""

    def __init__(
        self,
        scenario: Scenario,
        strategy: str,
        spec: FleetSpec,
        events: Events,
        machines: Mapping[str, Sequence[Machine]],
        limiter: Optional[Limiter],
        measures: Measures,
        index: int,
        hangs: bool,
    ) -> None:
        rules = scenario.rules
        self._rules = rules
        self._events = events
        self._measures = measures
        self._hangs = hangs
        self._pays = scenario.price.input or scenario.price.output
        rng = Random(f"{scenario.seed} gateway {index}")
        self.router = Router(
            spec,
            strategy=strategy,
            fallback="configured",
            rng=rng,
            clock=events.clock,
            breaker=rules.breaker,
            scattered=scenario.gateways > 1,
        )
        self.route = self.router.route(MODEL)
        self._named = self.router.named_by(self.route[0])
        self._jitter = self.router.jitter
        self.machines: dict[Engine, Machine] = {}
        for pool in self.route:
            self.machines.update(zip(pool.engines, machines[pool.name]))
        self._hedging = rules.hedge_after_ms is not None
        self.door = Door(events, rules, limiter, measures, self.begin)
        self._rescue = Rescue(rules.queue_timeout_s, events.clock)
        self._waits = Waits(events, rules.queue_timeout_s, self._ask, self._end)
        self.probing = Probing(events, self.route, self.machines, rules, self._waits.look)
        # Whose deadline counts, the earliest first; those of streams (1) have another limit.
        self._under_way: tuple[dict[Request, None], dict[Request, None]] = ({}, {})

    def start(self) -> None:
        """Begin probing, and to look for what is late."""
        self.probing.start(0.0)
        self._events.at(self._events.now_s + TICK_S, self._tick, None)

    # --- a request ------------------------------------------------------------------------------------------------

    def begin(self, request: Request) -> None:
        """It has a worker's place: ask engines (`Asker.ask`)."""
        rules = self._rules
        request.deadline_s = self._events.now_s + (
            rules.first_token_timeout_s if request.stream else rules.request_timeout_s
        )
        self._under_way[request.stream][request] = None
        request.tries = Tries(self.route, rules.retry_attempts, request.prefix, jitter=self._jitter, named=self._named)
        self._go_on(request, request.tries)

    def _go_on(self, request: Request, tries: Tries) -> None:
        step = tries.next()
        if step is not None and step.lease is not None and not step.delay_s:
            self._ask(request, tries, step)
            return
        self._waits.begin(request, tries, step)

    # --- a try ----------------------------------------------------------------------------------------------------

    def _ask(self, request: Request, tries: Tries, step: Step) -> None:
        if request.sent:
            request.resent += 1
        request.attempt = attempt = self._attempt(request, tries, step)
        if self._hedging:
            after_s = step.pool.hedge_after_s()
            if after_s is not None:  # found by a watchdog's tick
                after_s = math.ceil(after_s / HEDGE_TICK_S) * HEDGE_TICK_S
                self._events.at(self._events.now_s + after_s, self._hedge, attempt)
        self.machines[attempt.lease.engine].take(attempt)

    def _attempt(self, request: Request, tries: Tries, step: Step) -> Attempt:
        lease = step.lease
        assert lease is not None
        now_s = self._events.now_s
        attempt = Attempt(self, request, step.pool, lease, now_s)
        request.sent += 1
        if self._hangs:
            self._rescue.enter(attempt, tries, lease)
        if lease.others:  # on trial: half of the time is left for another
            self._events.at(now_s + (request.deadline_s - now_s) / 2, self._too_late, attempt)
        return attempt

    def _hedge(self, attempt: Attempt) -> None:
        """The first try has not answered in time: a second one (`Race`)."""
        if attempt.over or attempt.begun:
            return
        request = attempt.request
        assert request.tries is not None
        step = request.tries.hedge() if attempt.pool.take_hedge() else None
        if step is None:
            return
        rival = self._attempt(request, request.tries, step)
        attempt.rival, rival.rival = rival, attempt
        if request.at_s >= self._measures.from_s:
            self._measures.hedged += 1
        self.machines[rival.lease.engine].take(rival)

    def first(self, attempt: Attempt) -> None:
        """A stream's first event."""
        request = attempt.request
        now_s = self._events.now_s
        attempt.begun = True
        attempt.took_first_s = now_s - attempt.started_s
        if self._hangs:
            self._rescue.leave(attempt)
        attempt.pool.answered(attempt.lease, attempt.took_first_s)
        request.took_first_s = now_s - request.at_s
        self._under_way[request.stream].pop(request, None)
        self._drop_rival(attempt)
        self.door.give_place_back(request)
        self._waits.look()

    def ended(self, attempt: Attempt, outcome: Outcome) -> None:
        """A try has ended."""
        request = attempt.request
        assert request.tries is not None
        if outcome is OK and request.stream and not attempt.begun:
            self.first(attempt)  # both at once, behind a partition
        self._settle(attempt, outcome)
        if outcome is OK or attempt.begun:
            self._drop_rival(attempt)
            self._conclude(request, attempt, outcome)
            return
        rival = attempt.rival
        if rival is not None and not rival.over:
            if rival.index > attempt.index:
                request.first_failure = outcome  # that counts, if the second fails, too
            return
        if rival is not None and rival.index < attempt.index and request.first_failure is not None:
            outcome = request.first_failure
        request.first_failure = None
        request.tries.failed(outcome)
        if self._events.now_s >= request.deadline_s:
            self._end(request, "gateway_timeout")
        else:
            self._go_on(request, request.tries)

    def hung(self, attempt: Attempt) -> None:
        """It leaves its engine (`Rescue`), once all that leave have been chosen."""
        self._events.at(self._events.now_s, self._left, attempt)

    def _left(self, attempt: Attempt) -> None:
        if not attempt.over:
            self.ended(attempt, LEFT)

    def _settle(self, attempt: Attempt, outcome: Outcome) -> None:
        took_s = self._events.now_s - attempt.started_s
        attempt.over = True
        if self._hangs:
            self._rescue.leave(attempt)
        if outcome is not OK:
            self.machines[attempt.lease.engine].drop(attempt)
        first_s = attempt.took_first_s
        attempt.pool.settle(attempt.lease, outcome, took_s if first_s is None else first_s, took_s)
        if self._pays:
            self._charge(attempt, outcome)
        self._waits.look()

    def _charge(self, attempt: Attempt, outcome: Outcome) -> None:
        """Count the tokens that an engine has worked on."""
        request, measures = attempt.request, self._measures
        if attempt.running_s < 0 or request.at_s < measures.from_s:
            return
        done = 1.0
        if outcome is not OK and attempt.need_s > 0:
            done = min(1.0, (self._events.now_s - attempt.running_s) / attempt.need_s)
        measures.prompt_tokens += request.prompt
        measures.output_tokens += request.output * done

    def _drop_rival(self, attempt: Attempt) -> None:
        rival = attempt.rival
        if rival is None:
            return
        attempt.rival = rival.rival = None
        request = attempt.request
        if attempt.index > rival.index and request.at_s >= self._measures.from_s:
            self._measures.hedges_won += 1
        if not rival.over:
            self._settle(rival, CANCELLED)

    # --- the end --------------------------------------------------------------------------------------------------

    def _conclude(self, request: Request, attempt: Attempt, outcome: Outcome) -> None:
        if outcome is not OK:
            self._end(request, "stream_broken")
            return
        now_s, measures, at_s = self._events.now_s, self._measures, request.at_s
        first_s = request.took_first_s
        running_s = attempt.running_s
        if first_s is None:
            share = attempt.first_after_s / attempt.need_s if attempt.need_s > 0 else 1.0
            first_s = running_s - at_s + (now_s - running_s) * share
        measures.well(at_s, now_s - at_s, first_s, running_s - at_s)
        if at_s >= measures.from_s and attempt.pool is not self.route[0]:
            measures.fallbacks += 1
        self._give_back(request, request.prompt + request.output)

    def _end(self, request: Request, code: str) -> None:
        """It gets an error."""
        self._measures.badly(request.at_s, code)
        self._give_back(request, 0)

    def _give_back(self, request: Request, tokens: int) -> None:
        if request.resent and request.at_s >= self._measures.from_s:
            self._measures.retried += 1
            self._measures.retries += request.resent
        request.attempt = None  # no circle is left behind, which only the collector would find
        self._under_way[request.stream].pop(request, None)
        self.door.leave(request, tokens)

    # --- what is late ---------------------------------------------------------------------------------------------

    def _tick(self, nothing: None) -> None:
        now_s = self._events.now_s
        for under_way in self._under_way:
            for request in list(takewhile(lambda request: request.deadline_s <= now_s, under_way)):
                self._expire(request)
        if self._hangs:
            self._rescue.expire()
        self._events.at(now_s + TICK_S, self._tick, None)

    def _expire(self, request: Request) -> None:
        if request.steps is not None:
            return  # waits for a place, or pauses: that ends in time by itself
        attempt = request.attempt
        if attempt is not None:
            if attempt.rival is not None:
                self._too_late(attempt.rival)
            self._too_late(attempt)

    def _too_late(self, attempt: Attempt) -> None:
        if not (attempt.over or attempt.begun):
            self.ended(attempt, Outcome("timeout", "the engine did not answer in time"))
