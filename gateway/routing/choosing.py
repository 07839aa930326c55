"""Which engine of a model gets a request, and who waits while none has a place.

`Chooser` owns the model's strategy, the line of those that wait, and how long a place is usually held. The pool's lock
guards that and the engines' `in_flight`: who calls a method that ends in `_locked` holds it. What an outcome says of an
engine is not decided here.
"""

from __future__ import annotations

from collections.abc import Collection
from random import Random
from typing import Optional

from gateway.routing.breaker import CLOSED, HALF_OPEN
from gateway.routing.engine import Engine
from gateway.routing.line import Lease, Line, Waiter
from gateway.routing.members import Members
from gateway.routing.strategies import STRATEGY_BY_NAME, LeastConnections, RouteRequest

SERVICE_WEIGHT = 0.1  # of a new sample in the average service time


class Chooser:
    """Takes places on the engines of one model and gives them back. Who is served from the line is for the caller to
    wake, after it has released the lock."""

    def __init__(self, members: Members, rng: Random) -> None:
        self._members = members
        self._rng = rng
        self._retry = LeastConnections(rng)  # a retry goes to the idlest, leaving rotations alone
        self.line = Line()
        self._service_s = 0.0  # average time a request holds its place

    def use_locked(self, strategy: str) -> None:
        """Choose by this strategy, from its beginning."""
        self._strategy = STRATEGY_BY_NAME[strategy](self._rng)

    def acquire_locked(
        self, tried: Collection[Engine], affinity: bytes, avoid: Collection[Engine], now_s: float
    ) -> Optional[Lease]:
        """Choose an engine and take a place. See `ModelPool.acquire`."""
        if self.line.length:  # nobody overtakes those who wait
            return None
        engines = self._members.in_locked(now_s)
        if not engines:
            return None
        request = RouteRequest(affinity, now_s)
        if not (tried or avoid):
            engine = self._strategy.select(engines, request)
            limit = engine.spec.max_concurrency
            if limit is None or engine.in_flight < limit:
                return self.take_locked(engine, now_s)
        free = [e for e in engines if not e.full()]
        fresh = [e for e in free if e not in tried]
        if avoid:
            fresh = [e for e in fresh if e not in avoid] or fresh
        return self.take_locked(self._retry.select(fresh or free, request), now_s) if free else None

    def last_resort_locked(self, tried: Collection[Engine], now_s: float) -> Optional[Engine]:
        """The engine that returns soonest although it is out; never a resting, full or tried one."""
        out = [
            engine
            for engine in self._members.engines
            if engine not in tried and not engine.full() and engine.state(now_s) not in ("resting", "draining")
        ]

        def rank(engine: Engine) -> tuple[bool, float]:
            # One that only has an open breaker passes its probes: more is to be hoped of it than of one that is down.
            # And of those, the one that refused longest ago is the likeliest to have been started again.
            if engine.down:
                return True, engine.failed_at_s
            return engine.out_until_s > now_s, engine.returns_at_s(now_s)

        return min(out, key=rank, default=None)

    def take_locked(self, engine: Engine, now_s: float) -> Lease:
        """Take a place on this engine."""
        engine.in_flight += 1
        before = engine.breaker.state
        if before == CLOSED:
            return Lease(engine, engine.breaker.ticket)
        ticket = engine.breaker.admit(now_s)
        if engine.breaker.state != HALF_OPEN:
            return Lease(engine, ticket)
        self._members.stale = True  # it has its one trial and is out until that ends
        others = any(other is not engine and other.available(now_s) for other in self._members.engines)
        return Lease(engine, ticket, trial=before != HALF_OPEN, others=others)

    def give_back_locked(self, engine: Engine, held_s: Optional[float]) -> None:
        """Give a place back. `held_s`: how long a request that ended well has held it; None: it did not."""
        engine.in_flight -= 1
        if held_s is not None:
            self._service_s += SERVICE_WEIGHT * (held_s - self._service_s) if self._service_s else held_s

    def join_locked(self, priority: str, now_s: float) -> tuple[Optional[Waiter], list[Waiter]]:
        """Queue up; None when no engine is in. Returns who is served as well, which may be that one."""
        waiter = self.line.join(priority, now_s) if self._members.in_locked(now_s) else None
        served = self.serve_locked(now_s)
        if waiter is not None and waiter not in served:
            waiter.predicted_s = self.predicted_wait_s_locked(waiter, 0, now_s)
        return waiter, served

    def serve_locked(self, now_s: float) -> list[Waiter]:
        """Hand free places to those who wait, or send them away when no engine is in."""
        served: list[Waiter] = []
        while self.line.length:
            engines = self._members.in_locked(now_s)
            if not engines:
                return served + self.line.dismiss()
            free = [engine for engine in engines if not engine.full()]
            if not free:
                break
            waiter = self.line.next()
            if waiter is None:
                break
            waiter.lease = self.take_locked(self._retry.select(free, RouteRequest(b"", now_s)), now_s)
            served.append(waiter)
        return served

    def predicted_wait_s_locked(self, waiter: Optional[Waiter], ahead: int, now_s: float) -> float:
        """How long this request will wait. See `ModelPool.predicted_wait_s`; `ahead`: so many others come before it."""
        places = sum(engine.spec.max_concurrency or 0 for engine in self._members.look_locked(now_s))
        turns = self.line.length + 1 + ahead if waiter is None else self.line.place_of(waiter)
        return turns * self._service_s / places if places else 0.0

    def takes_over_locked(self, left: Collection[Engine], place_s: float, ahead: int, now_s: float) -> bool:
        """Whether a request may go over to another engine. See `ModelPool.takes_over`."""
        engines = [engine for engine in self._members.look_locked(now_s) if engine not in left]
        if not engines:
            return False
        if not self.line.length:
            free = sum(engine.free() for engine in engines)
            if free > ahead:
                return True
            ahead -= int(free)
        return self.predicted_wait_s_locked(None, ahead, now_s) < place_s
