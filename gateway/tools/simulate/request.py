"""One simulated request under way, what it needs, holds and waits for, and its tries of engines. One thread, no I/O."""

from __future__ import annotations

import math
import threading
from typing import Callable, Optional, Protocol

from gateway.limits.limiter import Admission
from gateway.routing.line import Lease
from gateway.routing.pool import ModelPool
from gateway.routing.retry import Outcome
from gateway.routing.tries import Step, Tries
from gateway.steps import Event, Steps
from gateway.telemetry.events import Mark
from gateway.tools.simulate.draws import Row
from gateway.workers import Job


class Request(Job):
    """One request. `begin` is called with it when it has a worker's place."""

    def __init__(self, row: Row, begin: Callable[[Request], object]) -> None:
        (
            self.number,
            self.at_s,
            self.need_s,
            self.first_s,
            self.prompt,
            self.output,
            self.prefix,
            self.key,
            _,
            self.stream,
        ) = row
        self._begin = begin
        self.deadline_s = math.inf
        self.admission: Optional[Admission] = None
        self.tries: Optional[Tries] = None
        self.placed = False  # has a worker's place
        self.sent = 0
        self.attempt: Optional[Attempt] = None  # the latest, but for a hedge
        self.resent = 0
        self.first_failure: Optional[Outcome] = None
        self.took_first_s: Optional[float] = None
        self.steps: Optional[Steps[Step]] = None
        self.turn = 0  # of its waits, so that one that is over wakes nobody
        self.event: Optional[threading.Event] = None
        self.waited_s = 0.0
        self.marks: tuple[Mark, ...] = ()

    def wait(self, event: threading.Event, timeout_s: float) -> Steps[None]:
        """See `Call.wait`."""
        yield Event(event, timeout_s)

    def run(self) -> bool:
        """It has got a place, which it keeps until it is answered."""
        self._begin(self)
        return True

    def cut_off(self) -> None:
        """Nobody does."""


class Asks(Protocol):
    """Who hears of a try: a `Gateway`."""

    def first(self, attempt: Attempt) -> object:
        """The first event of a stream has come."""

    def ended(self, attempt: Attempt, outcome: Outcome) -> object:
        """It has ended."""

    def hung(self, attempt: Attempt) -> object:
        """It is to end: its engine hangs."""


class Attempt:
    """One try of one engine. `over`: nobody waits for it any more. It stands for `upstream.attempt.Attempt` where
    `Rescue` has it: `begun`, `aborted`, `abort`. `index`: 0 is the request's first try."""

    __slots__ = (
        "aborted",
        "begun",
        "first_after_s",
        "gateway",
        "index",
        "lease",
        "need_s",
        "over",
        "parked",
        "pool",
        "request",
        "rival",
        "running_s",
        "started_s",
        "took_first_s",
    )

    def __init__(self, gateway: Asks, request: Request, pool: ModelPool, lease: Lease, now_s: float) -> None:
        self.gateway = gateway
        self.request = request
        self.pool = pool
        self.lease = lease
        self.index = request.sent
        self.started_s = now_s
        self.running_s = -1.0  # since when a slot works on it; less than 0: none does
        self.need_s = 0.0
        self.first_after_s = 0.0
        self.took_first_s: Optional[float] = None
        self.begun = False
        self.aborted: Optional[str] = None
        self.over = False
        self.parked = False  # answered behind a partition
        self.rival: Optional[Attempt] = None

    def abort(self, reason: str) -> None:
        """End it for another engine's sake (`Rescue`)."""
        self.aborted = reason
        self.gateway.hung(self)
