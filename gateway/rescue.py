"""Requests that wait for an engine that has gone out are moved to another one.

An engine that hangs says nothing: what it holds would wait for its deadline. So an attempt that has nothing of its
answer yet is ended once the engine is down (its probes have failed, or it has refused another request's connection), if
its request may leave: an engine must be in that takes it, else the return of the one that hangs is the better hope.
Ending an attempt is all that is done here. Whoever waits on it, the loop or a thread, finds its connection shut, and
asks on as after any failure.

`Rescue` owns the waiting attempts: a dict whose single operations are atomic; there is no lock. The watchdog's thread
walks it at each tick, so nobody has to tell that an engine has gone: one that goes between the choice of it and `enter`
is seen at the next tick, and a request that finds no place elsewhere, or no retry left, is looked at again. (`begun` is
written by whoever reads the answer, and only looked at here: a late look ends what might have been waited for, or waits
for a tick more. A complete answer that comes in that moment may stand.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Callable, Optional, Protocol

from gateway.routing.engine import Engine
from gateway.routing.line import Lease
from gateway.routing.pool import ModelPool
from gateway.upstream.attempt import HUNG

LOOKING_SHARE = 0.1  # of a processor, at most: thousands may wait with nowhere to go


class Leaver(Protocol):
    """A request with one attempt under way, or two."""

    def may_leave(self, leases: Sequence[Lease], place_s: float, ahead: int) -> bool:
        """Whether it goes elsewhere from these hung engines, behind the `ahead` that have just gone; True: it has all
        that it needs to. Called on the watchdog's thread."""


class Waiting(Protocol):
    """An attempt that may be ended: see `Attempt`, whose words these are."""

    begun: bool
    aborted: Optional[str]

    def abort(self, reason: str) -> None:
        """End it."""


class Rescue:
    """The attempts that wait for an answer. Thread-safe; `expire` is for one thread, the watchdog's.

    `place_s`: how long a request may wait in line for a place elsewhere.
    """

    def __init__(self, place_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.deadline_s = -math.inf  # due at each tick, but after a long look
        self._place_s = place_s
        self._clock = clock
        self._waiting: dict[Waiting, tuple[Leaver, Lease]] = {}

    def enter(self, attempt: Waiting, request: Leaver, lease: Lease) -> None:
        """The attempt may be ended for another engine's sake, until `leave`."""
        self._waiting[attempt] = request, lease

    def leave(self, attempt: Waiting) -> bool:
        """The attempt is not to be ended any more; False: it has been, or is just being, or had left before.

        Either this or `expire` takes the attempt out, so a stream that has left in time is never cut off here.
        """
        return self._waiting.pop(attempt, None) is not None

    def expire(self) -> None:
        """End the attempts whose requests leave a hung engine now."""
        try:
            waiting = list(self._waiting.items())
        except RuntimeError:  # an interpreter whose list(dict) is not atomic: the next tick sees it all
            return
        hung: dict[Leaver, list[tuple[Waiting, Lease]]] = {}
        for attempt, (request, lease) in waiting:
            if _hangs(attempt, lease):
                hung.setdefault(request, []).append((attempt, lease))
        if not hung:
            return
        began_s = self._clock()
        self._move(hung, waiting)
        self.deadline_s = began_s + (self._clock() - began_s) / LOOKING_SHARE

    def _move(
        self,
        hung: dict[Leaver, list[tuple[Waiting, Lease]]],
        waiting: list[tuple[Waiting, tuple[Leaver, Lease]]],
    ) -> None:
        """End those attempts whose requests may leave."""
        # With a second attempt at an engine that is well, the request has left already.
        served = {request for attempt, (request, lease) in waiting if not _hangs(attempt, lease)}
        moved = 0  # have no place yet, wherever they go: not all are to leave for the same one
        for request, attempts in hung.items():
            if request not in served and request.may_leave([lease for _, lease in attempts], self._place_s, moved):
                moved += 1
                for attempt, _ in attempts:
                    if self.leave(attempt):
                        attempt.abort(HUNG)


def _hangs(attempt: Waiting, lease: Lease) -> bool:
    """Return whether there is no answer yet, and the engine has been found gone since it was chosen: one that was asked
    although it was down may have come back for it."""
    engine = lease.engine
    return engine.down and engine.misses != lease.misses and not attempt.begun and attempt.aborted is None


class Onward:
    """A broken stream that goes on elsewhere, as a request that may leave. `others`: engines that are not for it;
    `residency`: where it must stay."""

    __slots__ = ("_others", "_paid", "_pool", "_residency")

    def __init__(self, pool: ModelPool, others: list[Engine], residency: str = "") -> None:
        self._residency = residency
        self._pool = pool
        self._others = others
        self._paid = False  # the next retry has been taken from the budget, or needs none

    def take_retry(self) -> bool:
        """Return whether the budget has the next try."""
        paid, self._paid = self._paid, False
        return paid or self._pool.take_retry()

    def may_leave(self, leases: Sequence[Lease], place_s: float, ahead: int = 0) -> bool:
        """As `Tries.may_leave`; it waits in no line."""
        pool = self._pool
        if not pool.takes_over(self._others, 0.0, ahead, self._residency):
            return False
        self._paid = all(lease.proven for lease in leases) or pool.take_retry(often=True)
        return self._paid
