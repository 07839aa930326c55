"""The engines of one model, for requests: who is chosen, who waits, what an outcome changes.

`ModelPool` is a model's roster with what a request needs; it owns nothing besides (`roster.py` says what the lock
guards). A place is taken and given back here, each in one step under the lock.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Optional

from gateway.routing.engine import Engine
from gateway.routing.line import Lease, Waiter
from gateway.routing.retry import OK, Outcome, judge
from gateway.routing.roster import Roster, wake
from gateway.routing.standing import StateChange


class ModelPool(Roster):
    """Chooses among the engines of one model. Thread-safe; every call returns at once."""

    # --- choosing --------------------------------------------------------------------------------------------------

    def acquire(
        self, tried: Collection[Engine], affinity: bytes, avoid: Collection[Engine] = (), residency: str = ""
    ) -> Optional[Lease]:
        """Choose an engine that is in and take one place on it; None when none is in or all are full.

        `tried` engines are chosen again only when every engine that is in has been tried. The place is given back by
        `settle`, exactly once. The first try of a request (nothing tried) counts towards the budget of retries. Engines
        to `avoid` are chosen only when no other is free. With a `residency`, as everywhere here, there are only the
        engines within it (see regions.py).
        """
        with self._lock:
            now_s = self._clock()
            if not tried:
                self._budget.request(now_s)
            lease = self._chooser.acquire_locked(tried, affinity, avoid, now_s, residency)
            if self._decisions is not None:
                self._decisions.acquire_locked(tried, affinity, avoid, residency, lease, now_s)
            return lease

    def join_line(self, priority: str, affinity: bytes, residency: str = "") -> Optional[Waiter]:
        """Wait for a place when engines are in but all are full; None when none is in.

        The waiter's `ready` is set when it has its `lease`, which may be at once, or, without one, when no engine is in
        any more. Leave the line with `leave_line`.
        """
        with self._lock:
            now_s = self._clock()
            waiter, served = self._chooser.join_locked(priority, now_s, residency)
            if self._decisions is not None:
                self._decisions.join_locked(priority, residency, served, now_s)
        wake(served)
        return waiter

    def leave_line(self, waiter: Waiter) -> Optional[Lease]:
        """Stop waiting. Returns the place if one has been handed over meanwhile: it must be settled then.

        Under the lock a free place goes to the first in line before anybody else can see it, and the lease is stored
        before its waiter's event is set: one that comes at the last moment is found here.
        """
        with self._lock:
            self._chooser.leave_locked(waiter)
            if self._decisions is not None:
                self._decisions.leave_locked(waiter, self._clock())
            return waiter.lease

    def serve_line(self) -> None:
        """Look again whether a place is free: an engine's rest or open breaker ends without anybody's doing."""
        with self._lock:
            now_s = self._clock()
            if self._chooser.in_vain_locked(now_s):
                return  # in vain, and so without a trace: only what is recorded may change what is decided
            served = self._chooser.serve_locked(now_s)
            if served and self._decisions is not None:
                self._decisions.line_locked("serve", {}, served, now_s)
        wake(served)

    def predicted_wait_s(self, waiter: Optional[Waiter] = None, residency: str = "") -> float:
        """How long this request (None: one that joins the line now) will wait, as it looks now: so many places must
        become free until it is served, each at the usual time a place is held."""
        with self._lock:
            return self._chooser.predicted_wait_s_locked(waiter, 0, self._clock(), residency)

    def acquire_last_resort(self, tried: Collection[Engine], residency: str = "") -> Optional[Lease]:
        """Take a place on the engine that returns soonest although it is out; never a resting, full or tried one."""
        with self._lock:
            now_s = self._clock()
            engine = self._chooser.last_resort_locked(tried, now_s, residency)
            lease = None if engine is None else self._chooser.take_locked(engine, now_s)
            if self._decisions is not None:
                self._decisions.last_resort_locked(tried, residency, engine, now_s)
            return lease

    def last_resort_wait_s(self, tried: Collection[Engine], residency: str = "") -> Optional[float]:
        """Seconds (to the millisecond) until the engine that `acquire_last_resort` would take returns, or None."""
        with self._lock:
            now_s = self._clock()
            engine = self._chooser.last_resort_locked(tried, now_s, residency)
            return None if engine is None else round(engine.returns_at_s(now_s) - now_s, 3)

    def takes_over(self, left: Collection[Engine], place_s: float, ahead: int = 0, residency: str = "") -> bool:
        """Whether an engine other than those `left` is in, and a request that came now would have a place at once, or
        in less than `place_s` seconds. `ahead`: so many others are on their way here."""
        with self._lock:
            return self._chooser.takes_over_locked(left, place_s, ahead, self._clock(), residency)

    def take_retry(self, often: bool = False) -> bool:
        """Take one retry from the budget (20 % of the last ten seconds' requests, at least 10); False: none is left.

        Who asks `often`, until there is one, leaves no trace of having asked in vain.
        """
        with self._lock:
            now_s = self._clock()
            granted = self._budget.take(now_s)
            if self._decisions is not None and (granted or not often):
                self._decisions.retry_locked(granted, now_s)
            return granted

    def hedge_after_s(self) -> Optional[float]:
        """Seconds after which a second engine is to be asked; None: not (yet). For a hedging model's request, once."""
        with self._lock:
            return self._hedges.after_s_locked(self._clock())

    def take_hedge(self) -> bool:
        """Whether one more request may ask a second engine (at most `hedge_ratio` of the last ten seconds')."""
        with self._lock:
            return self._hedges.take_locked(self._clock())

    # --- outcomes --------------------------------------------------------------------------------------------------

    def answered(self, lease: Lease, duration_s: float) -> Optional[StateChange]:
        """The first event of a stream has come, after `duration_s`: the engine has answered well, and a trial is over.

        To be called at most once before `settle`, which then counts a failure if the stream breaks, nothing if it ends
        well, and gives the place back: it is taken while the stream is open. Returns the change of state, if any.
        """
        with self._lock:
            now_s = self._clock()
            ticket = lease.ticket
            change = self._standing.answered_locked(lease, duration_s, now_s)
            self._chooser.changed_locked(lease.engine, now_s)
            self._hedges.note_locked(duration_s)
            served = self._chooser.serve_locked(now_s)
            if self._decisions is not None:
                self._decisions.answered_locked(lease.engine, ticket, duration_s, served, now_s)
        if served:
            wake(served)
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
        that the engine is still there. `doubted`: the outcome is rather the caller's (`Accusers`, or a list), and is
        held against nobody.
        """
        blame = "none" if doubted else "good" if outcome is OK else judge(outcome).blame
        with self._lock:
            now_s = self._clock()
            if lease.ticket < lease.engine.since_ticket:
                blame = "none"
            change = self._standing.ended_locked(lease, blame, outcome, duration_s, now_s)
            if blame == "good":
                held_s = duration_s if held_s is None else held_s
                if lease.counted is None and self._hedges.by_latency:
                    self._hedges.note_locked(duration_s)
            chooser = self._chooser
            chooser.give_back_locked(lease.engine, held_s if blame == "good" else None, now_s)
            served = chooser.serve_locked(now_s) if chooser.line.length or chooser.staying else []
            if self._decisions is not None:
                self._decisions.settle_locked(lease, outcome, doubted, blame, duration_s, held_s, served, now_s)
        if served:
            wake(served)
        return change
