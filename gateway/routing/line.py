"""Requests that wait for a place on a full engine, in order.

Owns the heap of waiting requests of one model; guarded by the pool's lock. A waiting thread blocks on its own `Waiter`,
outside that lock; the pool hands it a place directly, so that nobody who comes later can take it.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Iterator
from itertools import count
from typing import Optional

from gateway.routing.engine import Engine

AGEING_S = 5.0  # a lower priority is overtaken by requests that come at most this much later, then never again
RANK_BY_PRIORITY = {"high": 0, "normal": 1, "low": 2}


class Lease:
    """A place on an engine, given back by `ModelPool.settle` exactly once. `ticket` is the breaker's.

    `trial`: with this request an open breaker has become half-open. `others`: it tries out a half-open engine while
    other engines are in, so it has to leave time for them. `proven`: when the place was taken, the engine's last
    outcome was a good answer; `misses`: what its count was then. `counted`: None until the first event of a stream has
    come (`ModelPool.answered`), then where the breaker counts it.
    """

    __slots__ = ("counted", "engine", "misses", "others", "proven", "ticket", "trial")

    def __init__(self, engine: Engine, ticket: int, trial: bool = False, others: bool = False) -> None:
        self.engine = engine
        self.ticket = ticket
        self.trial = trial
        self.others = others
        self.proven = engine.ok_at_s > engine.failed_at_s
        self.misses = engine.misses
        self.counted: Optional[int] = None


class Waiter:
    """One waiting request. `lease` is set before `ready` is; ready without a lease: no engine is left to wait for.

    `predicted_s`: how long it will wait, as it looked when it joined; who overtakes it later is no reason to refuse it.
    `residency`: only engines there are for it; "": any.
    """

    __slots__ = ("due_s", "gone", "lease", "number", "predicted_s", "ready", "residency")

    def __init__(self, number: int, due_s: float, residency: str = "") -> None:
        self.number = number
        self.due_s = due_s
        self.residency = residency
        self.ready = threading.Event()
        self.lease: Optional[Lease] = None
        self.gone = False
        self.predicted_s = 0.0


class Line:
    """Waiting requests, the next one first: by arrival, lower priorities as if they had come `AGEING_S` later each.

    `numbers` come from one count for all lines of a model; None: there is this one.
    """

    def __init__(self, numbers: Optional[Iterator[int]] = None) -> None:
        self._heap: list[tuple[float, int, Waiter]] = []
        self._numbers = count(1) if numbers is None else numbers
        self.length = 0

    def join(self, priority: str, now_s: float, residency: str = "") -> Waiter:
        """Queue up."""
        waiter = Waiter(next(self._numbers), now_s + RANK_BY_PRIORITY[priority] * AGEING_S, residency)
        heapq.heappush(self._heap, (waiter.due_s, waiter.number, waiter))
        self.length += 1
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Stop waiting; a place that has been handed over already stays the waiter's."""
        if not waiter.gone and waiter.lease is None:
            waiter.gone = True
            self.length -= 1

    def place_of(self, waiter: Waiter) -> int:
        """Where it stands: 1 is the next to be served."""
        return 1 + sum(item < (waiter.due_s, waiter.number) and not item[2].gone for item in self._heap)

    def dismiss(self) -> list[Waiter]:
        """Send everybody away, without a place; the caller wakes them."""
        waiters = [waiter for _, _, waiter in self._heap if not waiter.gone]
        for waiter in waiters:
            waiter.gone = True
        self._heap.clear()
        self.length = 0
        return waiters

    def head(self) -> tuple[float, int]:
        """What the next one is known by among those of all lines, the least first; infinity when nobody waits."""
        while self._heap and self._heap[0][2].gone:
            heapq.heappop(self._heap)
        return self._heap[0][:2] if self._heap else (math.inf, 0)

    def next(self) -> Optional[Waiter]:
        """Take the next one out of the line; None when nobody waits."""
        while self._heap:
            waiter = heapq.heappop(self._heap)[2]
            if not waiter.gone:
                self.length -= 1
                return waiter
        return None
