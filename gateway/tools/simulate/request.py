"""One simulated request under way: what it needs, what it holds, what it waits for. One thread, no I/O."""

from __future__ import annotations

import math
import threading
from typing import Callable, Optional

from gateway.limits.limiter import Admission
from gateway.routing.retry import Outcome
from gateway.routing.tries import Step, Tries
from gateway.steps import Event, Steps
from gateway.telemetry.events import Mark
from gateway.tools.simulate.draws import Row
from gateway.tools.simulate.machines import Attempt
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
