"""Which engine of a model gets a request, and who waits while none has a place.

`Chooser` owns the model's strategy, the lines of those that wait, and how long a place is usually held. What must stay
in one region has a line of its own, which waits for no other engines than are there. The pool's lock guards that and
the engines' `in_flight`: who calls a method that ends in `_locked` holds it. What an outcome says of an engine is not
decided here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from itertools import count
from random import Random
from typing import Optional

from gateway.routing.breaker import CLOSED, HALF_OPEN
from gateway.routing.engine import Engine
from gateway.routing.line import Lease, Line, Waiter
from gateway.routing.loads import Loads, least_of
from gateway.routing.members import Members
from gateway.routing.regions import Regions, kept_within, within
from gateway.routing.strategies import RouteRequest, kept_loads, strategy_of

SERVICE_WEIGHT = 0.1  # of a new sample in the average service time


class Chooser:
    """Takes places on the engines of one model and gives them back. Who is served from the line is for the caller to
    wake, after it has released the lock.

    Of a large fleet it keeps the loads, where somebody goes by them: a strategy, or a line, where places are limited.
    They are asked as long as neither regions nor residency say who may be chosen.
    """

    def __init__(self, members: Members, rng: Random, home: Optional[str] = None, scattered: bool = False) -> None:
        self._members = members
        self._rng = rng
        self._scattered = scattered
        self._regions = Regions(home)
        self._numbers = count(1)
        self.line = Line(self._numbers)  # of those who may go to any engine
        self.staying: dict[str, Line] = {}  # of the others, by residency, as long as somebody waits there
        self._service_s = 0.0  # average time a request holds its place
        self._followed: tuple[Engine, ...] = ()  # whose loads are kept, if those of any
        self._loads: Optional[Loads] = None

    def use_locked(self, strategy: str) -> None:
        """Choose by this strategy, from its beginning, among the engines that the model has now."""
        new = partial(strategy_of, strategy, self._rng, self._scattered)
        self._strategy = new()
        self._has_levels = self._regions.configure_locked(self._members.engines, new)
        self._followed, self._loads = (), None

    def _loads_locked(self, engines: tuple[Engine, ...], now_s: float) -> Optional[Loads]:
        """The loads of those that are in, if they are kept."""
        if engines is not self._followed:
            self._loads = kept_loads(self._loads, self._strategy, engines, self._rng, now_s)
            self._followed = engines
        return self._loads

    def changed_locked(self, engine: Engine, now_s: float) -> None:
        """Something of an engine has changed that strategies go by."""
        if self._loads is not None:
            self._loads.changed(engine, now_s)

    def acquire_locked(
        self, tried: Collection[Engine], affinity: bytes, avoid: Collection[Engine], now_s: float, residency: str = ""
    ) -> Optional[Lease]:
        """Choose an engine and take a place. See `ModelPool.acquire`."""
        if self.line.length:  # nobody overtakes those who wait
            return None
        engines = self._members.in_locked(now_s)
        if not engines:
            return None
        request = RouteRequest(affinity, now_s)
        view = None
        if residency or self._has_levels:
            view = self._regions.view_locked(residency, engines)
            if view is None or not view.engines:
                return None
            engines = view.engines
            loads = None
        else:
            loads = self._loads if engines is self._followed else self._loads_locked(engines, now_s)
        if not (tried or avoid):
            level = None if view is None else view.choose(affinity)
            if level is None:
                engine = self._strategy.select(engines, request)
            else:
                engine = level.strategy.select(level.engines, request)
            limit = engine.spec.max_concurrency
            if (limit is None or engine.in_flight < limit) and not (self.staying and self._awaited_locked(engine)):
                return self.take_locked(engine, now_s)
        # A retry goes to the idlest, leaving rotations alone.
        if loads is not None and not self.staying:
            least = loads.least(now_s, [*tried, *avoid]) or loads.least(now_s, tried) or loads.least(now_s)
            return None if least is None else self.take_locked(least, now_s)
        free = [e for e in engines if not e.full()]
        if self.staying:
            free = [e for e in free if not self._awaited_locked(e)]
        if not free:
            return None
        fresh = [e for e in free if e not in tried]
        if avoid:
            fresh = [e for e in fresh if e not in avoid] or fresh
        fitting = fresh or free
        least = least_of(fitting if view is None else view.nearest(fitting), now_s, self._rng)
        return None if least is None else self.take_locked(least, now_s)

    def _awaited_locked(self, engine: Engine) -> bool:
        """Whether somebody waits who must stay where this engine is, and so is before all others there."""
        return any(within(engine.spec.region, residency) for residency in self.staying)

    def last_resort_locked(self, tried: Collection[Engine], now_s: float, residency: str = "") -> Optional[Engine]:
        """The engine that returns soonest although it is out; never a resting, full or tried one."""
        out = [
            engine
            for engine in kept_within(self._members.engines, residency)
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
        engine.take(now_s)
        if self._loads is not None:
            self._loads.changed(engine, now_s)
        before = engine.breaker.state
        if before == CLOSED:
            return Lease(engine, engine.breaker.ticket)
        ticket = engine.breaker.admit(now_s)
        if engine.breaker.state != HALF_OPEN:
            return Lease(engine, ticket)
        self._members.stale = True  # it has its one trial and is out until that ends
        others = any(other is not engine and other.available(now_s) for other in self._members.engines)
        return Lease(engine, ticket, trial=before != HALF_OPEN, others=others)

    def give_back_locked(self, engine: Engine, held_s: Optional[float], now_s: float) -> None:
        """Give a place back. `held_s`: how long a request that ended well has held it; None: it did not."""
        engine.in_flight -= 1
        if self._loads is not None:
            self._loads.changed(engine, now_s)
        if held_s is not None:
            self._service_s += SERVICE_WEIGHT * (held_s - self._service_s) if self._service_s else held_s

    def join_locked(self, priority: str, now_s: float, residency: str = "") -> tuple[Optional[Waiter], list[Waiter]]:
        """Queue up; None when no engine is in. Returns who is served as well, which may be that one."""
        waiter = None
        if kept_within(self._members.in_locked(now_s), residency):
            line = self.staying.setdefault(residency, Line(self._numbers)) if residency else self.line
            waiter = line.join(priority, now_s, residency)
        served = self.serve_locked(now_s)
        if waiter is not None and waiter not in served:
            waiter.predicted_s = self.predicted_wait_s_locked(waiter, 0, now_s)
        return waiter, served

    def leave_locked(self, waiter: Waiter) -> None:
        """One waits no more."""
        line = self.staying.get(waiter.residency) if waiter.residency else self.line
        if line is not None:
            line.leave(waiter)
            if waiter.residency and not line.length:
                del self.staying[waiter.residency]

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self.line.length + sum(line.length for line in list(self.staying.values()))

    def in_vain_locked(self, now_s: float) -> bool:
        """Whether `serve_locked` would change nothing; a look that leaves no trace."""
        if not (self.line.length or self.staying):
            return True
        engines = self._members.look_locked(now_s)
        if self._loads is not None and engines is self._followed and not self.staying:
            return bool(engines) and not self._loads.free
        lines = [*self.staying, ""] if self.line.length else list(self.staying)
        kept = [kept_within(engines, residency) for residency in lines]
        return all(some and all(engine.full() for engine in some) for some in kept)

    def dismiss_locked(self) -> list[Waiter]:
        """Send everybody away, without a place; the caller wakes them."""
        lines = [self.line, *self.staying.values()]
        self.staying.clear()
        return [waiter for line in lines for waiter in line.dismiss()]

    def serve_locked(self, now_s: float) -> list[Waiter]:
        """Hand free places to those who wait, or send them away when no engine is in."""
        served: list[Waiter] = []
        while self.line.length or self.staying:
            engines = self._members.in_locked(now_s)
            if not engines:
                return served + self.dismiss_locked()
            if not (self.staying or self._has_levels):
                loads = self._loads if engines is self._followed else self._loads_locked(engines, now_s)
                if loads is not None:
                    least = loads.least(now_s)
                    waiter = None if least is None else self.line.next()
                    if least is None or waiter is None:
                        break
                    waiter.lease = self.take_locked(least, now_s)
                    served.append(waiter)
                    continue
            free: Sequence[Engine] = [engine for engine in engines if not engine.full()]
            if self.staying:
                waiter = self._next_locked(engines, free, served)
            else:
                waiter = self.line.next() if free else None
            if waiter is None:
                break
            free = kept_within(free, waiter.residency)
            if waiter.residency or self._has_levels:
                view = self._regions.view_locked(waiter.residency, engines)
                free = free if view is None else view.nearest(free)
            least = least_of(free, now_s, self._rng)
            if least is None:
                break  # cannot be: it was taken out of a line because one is free
            waiter.lease = self.take_locked(least, now_s)
            served.append(waiter)
        return served

    def _next_locked(self, engines: Sequence[Engine], free: Sequence[Engine], served: list[Waiter]) -> Optional[Waiter]:
        """Take out of the lines the first of those for whom a place is free; None: nobody is. Those of a line whose
        engines are all out are sent away, and are among the `served`."""
        for residency in list(self.staying):
            if not kept_within(engines, residency):
                served += self.staying.pop(residency).dismiss()
        lines = [line for residency, line in self.staying.items() if kept_within(free, residency)]
        if free and self.line.length:
            lines.append(self.line)
        if not lines:
            return None
        line = min(lines, key=Line.head)
        waiter = line.next()
        if waiter is not None and waiter.residency and not line.length:
            del self.staying[waiter.residency]
        return waiter

    def predicted_wait_s_locked(self, waiter: Optional[Waiter], ahead: int, now_s: float, residency: str = "") -> float:
        """How long this request will wait. See `ModelPool.predicted_wait_s`; `ahead`: so many others come before it.
        (What must stay is behind its own line alone: who may go anywhere is likelier to.)"""
        if waiter is not None:
            residency = waiter.residency
        line = self.staying.get(residency) if residency else self.line
        engines = kept_within(self._members.look_locked(now_s), residency)
        if self._loads is not None and engines is self._followed:
            places = self._loads.places
        else:
            places = sum(engine.spec.max_concurrency or 0 for engine in engines)
        if line is None:
            turns = 1 + ahead
        else:
            turns = line.length + 1 + ahead if waiter is None else line.place_of(waiter)
        return turns * self._service_s / places if places else 0.0

    def takes_over_locked(
        self, left: Collection[Engine], place_s: float, ahead: int, now_s: float, residency: str = ""
    ) -> bool:
        """Whether a request may go over to another engine. See `ModelPool.takes_over`."""
        engines = [e for e in kept_within(self._members.look_locked(now_s), residency) if e not in left]
        if not engines:
            return False
        if not (self.line.length or self.staying):
            free = sum(engine.free() for engine in engines)
            if free > ahead:
                return True
            ahead -= int(free)
        return self.predicted_wait_s_locked(None, ahead, now_s, residency) < place_s
