"""The tries of one request: one engine, another, then another model, as far as each is allowed.

`Tries` belongs to one request and one thread; the places that its steps hold are their models' (`pool.py`). No I/O and
no waiting: a step says what is to be waited for.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Callable, Optional

from gateway.errors import EngineFailed, GatewayError
from gateway.routing.engine import Engine
from gateway.routing.line import Lease, Waiter
from gateway.routing.pool import ModelPool
from gateway.routing.regions import kept_within, within
from gateway.routing.retry import BACKOFF_MAX_S, OVERLOADED, RATE_LIMITED, Outcome, backoff_ceiling_s, rest_s

_CODE_BY_KIND = {
    "refused": "backend_unavailable",
    "connect_timeout": "backend_unavailable",
    "reset": "backend_unavailable",
    "timeout": "gateway_timeout",
    "hung": "backend_unavailable",
    "moved": "backend_unavailable",
}
_UNREACHED = ("refused", "connect_timeout")
_CONNECTION_BROKE = (*_UNREACHED, "reset")
_ENGINE_DIED = ("reset", "truncated")


class Step:
    """What to do next: ask `lease.engine` (after `delay_s`), or wait in `pool`'s line until `waiter` has a lease; with
    neither: wait a little, for one of those engines that can be asked.

    Immutable by convention, like every small record that is made for each request: a NamedTuple takes 0.5 us, this 0.2.
    """

    __slots__ = ("delay_s", "lease", "pool", "waiter")

    def __init__(
        self, pool: ModelPool, lease: Optional[Lease], waiter: Optional[Waiter] = None, delay_s: float = 0.0
    ) -> None:
        self.pool = pool
        self.lease = lease
        self.waiter = waiter
        self.delay_s = delay_s


class Tries:
    """The tries of one request: which engine is asked next, and what the client is told when none is left."""

    __slots__ = (
        "_affinity",
        "_avoid",
        "_failure",
        "_here",
        "_index",
        "_jitter",
        "_left",
        "_limit",
        "_orphaned",
        "_paid",
        "_pauses_s",
        "_pools",
        "_priority",
        "_proven",
        "_reaches",
        "_residency",
        "_tried",
        "_unable",
        "_unreached",
        "asked",
        "named",
        "sent",
    )

    def __init__(
        self,
        pools: tuple[ModelPool, ...],
        attempts_per_model: int,
        affinity: bytes,
        priority: str = "normal",
        jitter: Callable[[], float] = random.random,
        avoid: tuple[Engine, ...] = (),
        reaches: Callable[[ModelPool, ModelPool], bool] = lambda asked, other: True,
        named: Sequence[str] = (),
        unable: tuple[Engine, ...] = (),
        asked: Optional[ModelPool] = None,
        residency: str = "",
    ) -> None:
        self._pools = pools
        self.asked = asked or pools[0]  # the model whose route it is, be it none of those that can be asked
        self.named = named  # models that stand in because the request's own model says so, wherever they are
        self._reaches = reaches
        self._limit = attempts_per_model
        self._affinity = affinity
        self._avoid = avoid
        self._unable = unable  # whose dialect has no words for the request
        self._residency = residency  # that no engine may be outside of
        self._priority = priority
        self._jitter = jitter
        self._index = 0
        self._here = 0
        self._tried: list[Engine] = []
        self._pauses_s: dict[Engine, float] = {}  # that engines have asked for (Retry-After)
        self._failure: Optional[Outcome] = None
        self._proven = False  # of the last try's lease
        self._orphaned = self._unreached = False
        self._left: list[Engine] = []  # while they hung
        self._paid = False  # the next retry has been taken from the budget
        self.sent = 0

    def next(self) -> Optional[Step]:
        """The next step, or None when nothing is left to try. A place is taken on the lease's engine."""
        retrying = self.sent > 0 and not (self._orphaned or self._paid)
        self._paid = False
        step = self._find()
        if self._unreached and self._index < len(self._pools):
            retrying = False
        # Asked last: what is never tried takes nothing from the budget.
        if step is None or not retrying or self._pools[0].take_retry():
            return step
        lease = step.lease if step.waiter is None else step.pool.leave_line(step.waiter)
        if step.lease is not None:
            self._tried.pop()  # nothing has been sent there
            self.sent -= 1
        if lease is not None:
            step.pool.settle(lease, Outcome("cancelled"), 0.0)
        return None

    def _find(self) -> Optional[Step]:
        while self._index < len(self._pools):
            pool = self._pools[self._index]
            if self._here < self._limit and (pool is self.asked or self.may_ask(pool)):
                lease = pool.acquire(self._tried, self._affinity, self._avoid, self._residency)
                if lease is not None and self._unable:
                    lease = self._able(pool, lease)
                    if lease is None:  # nor is there a line for it: those that are free would come out of it
                        if pool.all_full(self._unable, self._residency):
                            return Step(pool, None)
                        self._index += 1
                        self._here = 0
                        continue
                if lease is not None:
                    if not (self._pauses_s and self._better_elsewhere(lease.engine)):
                        return self._take(pool, lease if self._failure is None else self._untried_at_last(pool, lease))
                    pool.settle(lease, Outcome("cancelled"), 0.0)
                else:
                    waiter = pool.join_line(self._priority, self._affinity, self._residency)
                    if waiter is not None:
                        return Step(pool, None, waiter)
            self._index += 1
            self._here = 0
        # An engine that has come in since its model was looked at is found here too: it returns soonest of all.
        return self._last_resort() if self.sent < self._limit else None

    def _able(self, pool: ModelPool, lease: Lease) -> Optional[Lease]:
        """The lease, or instead of one on an engine that cannot be asked, one on another, be it a tried one."""
        if self.can_ask(lease):
            return lease
        pool.settle(lease, Outcome("cancelled"), 0.0)
        other = pool.acquire(self._unable, self._affinity, (), self._residency)
        if other is None or self.can_ask(other):
            return other
        pool.settle(other, Outcome("cancelled"), 0.0)
        return None

    def can_ask(self, lease: Lease) -> bool:
        """Whether the lease's engine has words for the request, and is (by now) where that may be sent."""
        return lease.engine not in self._unable and within(lease.engine.spec.region, self._residency)

    def pass_over(self, is_unable: Callable[[Engine], bool]) -> bool:
        """Ask no engine that cannot be asked, and count the try that has shown it as none; returns whether there is
        another engine."""
        engines = [engine for pool in self._pools for engine in kept_within(pool.engines, self._residency)]
        unable = (*self._unable, *filter(is_unable, engines))
        self._unable = _and_unnamed(unable, self._pools, self.named, self._residency)
        self.sent -= 1
        self._here -= 1
        return not all(engine in self._unable for engine in engines)

    def _passed_over(self) -> Sequence[Engine]:
        """The engines that are no last resort."""
        return [*self._tried, *self._unable] if self._unable else self._tried

    def _better_elsewhere(self, engine: Engine) -> bool:
        """Whether the engine has asked for a long pause while there is another model to try."""
        pause_s = self._pauses_s.get(engine, 0.0)
        return pause_s > BACKOFF_MAX_S and any(map(self.may_ask, self._pools[self._index + 1 :]))

    def may_ask(self, pool: ModelPool) -> bool:
        """Whether the request may be sent there now: see `Router.reaches`."""
        return pool.name in self.named or self._reaches(self.asked, pool)

    def _untried_at_last(self, pool: ModelPool, lease: Lease) -> Lease:
        """The model's last try: rather on an engine that is out but untried than where the connection broke before."""
        assert self._failure is not None  # of an earlier try
        broke = self._failure.kind in _CONNECTION_BROKE
        if not broke or self._here + 1 < self._limit or lease.engine not in self._tried:
            return lease
        other = pool.acquire_last_resort(self._passed_over(), self._residency)
        if other is None:
            return lease
        pool.settle(lease, Outcome("cancelled"), 0.0)
        return other

    def granted(self, pool: ModelPool, lease: Lease) -> Step:
        """The wait for a place is over."""
        return self._take(pool, lease)

    def hedge(self) -> Optional[Step]:
        """A second engine of the same model, one that is free at once; None when there is none."""
        if self._index == len(self._pools):  # this is a last resort: no engine is in
            return None
        pool = self._pools[self._index]
        lease = pool.acquire(self._tried, self._affinity, self._avoid, self._residency)
        if lease is None:
            return None
        if lease.engine in self._tried or not self.can_ask(lease):
            pool.settle(lease, Outcome("cancelled"), 0.0)
            return None
        self.sent += 1
        self._tried.append(lease.engine)
        return Step(pool, lease)

    def _last_resort(self) -> Optional[Step]:
        """Of all candidate models the engine that returns soonest; among equals the first model's."""
        waits: list[tuple[float, int]] = []
        for index, pool in enumerate(self._pools):
            wait_s = pool.last_resort_wait_s(self._passed_over(), self._residency) if self.may_ask(pool) else None
            if wait_s is not None:
                waits.append((wait_s, index))
        for _, index in sorted(waits):
            pool = self._pools[index]
            lease = pool.acquire_last_resort(self._passed_over(), self._residency)
            if lease is not None:
                return self._take(pool, lease)
        return None

    def _take(self, pool: ModelPool, lease: Lease) -> Step:
        # Another engine is tried at once; the same one only after a pause, which grows.
        before = self._tried.count(lease.engine)
        delay_s = 0.0
        if before:
            pause_s = self._pauses_s.get(lease.engine, 0.0)
            delay_s = max(pause_s, self._jitter() * backoff_ceiling_s(before))
        self.sent += 1
        self._here += 1
        self._tried.append(lease.engine)
        self._proven = lease.proven
        return Step(pool, lease, None, delay_s)

    def may_leave(self, leases: Sequence[Lease], place_s: float, ahead: int = 0) -> bool:
        """Whether the request may leave the engines on which it waits, those of all its tries under way, which hang.

        Only for one that is in, that has a place for it at once or in less than `place_s` seconds, behind the `ahead`
        that have just left, and that it has not left before: else waiting on is the better hope. True has taken the
        retry from the budget, which those need that leave an engine that had not answered well. For another thread than
        the one that waits.
        """
        left = [*self._unable, *self._left, *(lease.engine for lease in leases)]
        here, place = self._here, self._residency
        for pool in self._pools[self._index :]:
            if here < self._limit and pool.takes_over(left, place_s, ahead, place) and self.may_ask(pool):
                break
            here = 0
        else:
            again = self.sent < self._limit  # as a last resort, wherever one has come in meanwhile
            everywhere = [*left, *self._tried]
            if not again:
                return False
            if not any(p.takes_over(everywhere, 0.0, ahead, place) and self.may_ask(p) for p in self._pools):
                return False
        if not (all(lease.proven for lease in leases) or self._pools[0].take_retry(often=True)):
            return False
        self._left, self._paid = left, True
        return True

    def failed(self, outcome: Outcome) -> None:
        """Remember why the last try failed. A 429 gives way to any other failure in what the client is told."""
        # An engine that answered well until it died leaves at once all that it held, which may be more than the budget
        # has: those requests move without it. They are a load that comes once; the budget is against one that stays.
        # Nor does it count what has reached no engine, and so was none at all, while there is one that is in.
        self._unreached = outcome.kind in _UNREACHED
        self._orphaned = self._proven and (self._unreached or outcome.kind in _ENGINE_DIED)
        if self._tried and outcome.retry_after_s is not None:
            self._pauses_s[self._tried[-1]] = outcome.retry_after_s
        if outcome.kind != "rate_limited" or self._failure is None:
            self._failure = outcome

    def error(self) -> GatewayError:
        """What the client is told when no try is left."""
        rests = (pool.shortest_rest_s(self._residency) for pool in self._pools if self.may_ask(pool))
        return _error_of(self._failure, [wait_s for wait_s in rests if wait_s is not None], self.asked)


def _error_of(failure: Optional[Outcome], waits: Sequence[float], asked: ModelPool) -> GatewayError:
    """What a request has failed by; None: it was sent nowhere. `waits`: until models have a resting engine back."""
    if failure is None or failure.kind == "rate_limited":
        if waits or failure is not None:
            said = "" if failure is None or failure.message in ("", RATE_LIMITED) else f": {failure.message}"
            return EngineFailed(
                "backend_rate_limited",
                f"every engine of the model asks for a pause{said}",
                retry_after_s=min(waits, default=1.0),
                engine=None if failure is None else failure.details,
            )
        return _unavailable(asked)
    if failure.status == OVERLOADED:
        return _overloaded(failure)
    code = _CODE_BY_KIND.get(failure.kind, "backend_error")
    return EngineFailed(code, failure.message or "the engine failed", engine=failure.details)


def _and_unnamed(
    unable: tuple[Engine, ...], pools: tuple[ModelPool, ...], named: Sequence[str], residency: str
) -> tuple[Engine, ...]:
    """The engines that cannot be asked; where the first model has no others, those of all that it has not `named`, too:
    it has not failed."""
    own = kept_within(pools[0].engines, residency)
    if not own or any(engine not in unable for engine in own):
        return unable
    return (*unable, *(engine for pool in pools[1:] if pool.name not in named for engine in pool.engines))


def _unavailable(asked: ModelPool) -> EngineFailed:
    if not asked.engines:
        text = "no engine of the model has been discovered"
        return EngineFailed("backend_unavailable", text, status=503, retry_after_s=1.0)
    return EngineFailed("backend_unavailable", "no engine of the model is available")


def _overloaded(said: Outcome) -> EngineFailed:
    """An engine's word that it is overloaded, with the status for which clients come back when they are told to."""
    return EngineFailed("backend_error", said.message, status=503, retry_after_s=rest_s(said), engine=said.details)
