"""The health checks of a simulated gateway: the rules of `upstream/prober.py`, which asks on threads, as events.

What a result means is decided by the shipped pool (`record_probe`); which engines are due, too (`due_for_probe`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Callable, Optional

from gateway.routing.engine import Engine
from gateway.routing.pool import ModelPool
from gateway.tools.simulate.events import Events
from gateway.tools.simulate.machines import Machine
from gateway.tools.simulate.scenario import Rules
from gateway.upstream.prober import AGAIN_S, FAILS_UNANSWERED, MAX_PROBES_AT_ONCE

ANSWER_S = 0.002  # until a probe is answered, or refused


class Probing:
    """Probes the engines of some pools for one gateway. `served` is called after each result."""

    def __init__(
        self,
        events: Events,
        pools: tuple[ModelPool, ...],
        machines: Mapping[Engine, Machine],
        rules: Rules,
        served: Callable[[], None],
    ) -> None:
        self._events = events
        self._pools = pools
        self._machines = machines
        self._rules = rules
        self._served = served
        self._under_way: set[Engine] = set()
        self._to_follow: deque[tuple[ModelPool, Engine]] = deque()
        self._following: set[Engine] = set()
        self.probes = 0

    def start(self, after_s: float) -> None:
        """Probe from then on, each interval; 0: never."""
        if self._rules.health_interval_s > 0:
            self._events.at(self._events.now_s + after_s, self._tick, None)

    def _tick(self, nothing: None) -> None:
        for pool in self._pools:
            for engine in pool.due_for_probe(self._rules.health_interval_s):
                self._begin(pool, engine)
        self._events.at(self._events.now_s + self._rules.health_interval_s, self._tick, None)

    def _begin(self, pool: ModelPool, engine: Engine) -> None:
        if engine in self._under_way or engine in self._following:
            return
        if len(self._under_way) >= MAX_PROBES_AT_ONCE:
            self._following.add(engine)
            self._to_follow.append((pool, engine))
            return
        self._under_way.add(engine)
        self._ask((pool, engine))

    def _ask(self, which: tuple[ModelPool, Engine]) -> None:
        self.probes += 1
        pool, engine = which
        machine = self._machines[engine]
        after_s, error = ANSWER_S, None
        if machine.dead:
            error = "refused"
        elif machine.cut:
            after_s, error = self._rules.health_timeout_s, "timeout"
        self._events.at(self._events.now_s + after_s, self._over, (pool, engine, error))

    def _over(self, what: tuple[ModelPool, Engine, Optional[str]]) -> None:
        pool, engine, error = what
        rules = self._rules
        pool.record_probe(engine, error, rules.health_fails, rules.health_passes, FAILS_UNANSWERED)
        self._served()
        if engine.fails and engine.in_flight and not engine.down:  # requests wait there: again, soon
            again_s = min(AGAIN_S, rules.health_interval_s)
            self._events.at(self._events.now_s + again_s, self._again, (pool, engine))
            return
        self._end(engine)

    def _again(self, which: tuple[ModelPool, Engine]) -> None:
        engine = which[1]
        if engine.fails and engine.in_flight and not engine.down:
            self._ask(which)
        else:
            self._end(engine)

    def _end(self, engine: Engine) -> None:
        self._under_way.discard(engine)
        if self._to_follow:
            pool, following = self._to_follow.popleft()
            self._following.discard(following)
            self._begin(pool, following)
