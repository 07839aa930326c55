"""The way into a simulated gateway: limits, then a worker's place or the queue.

Both are the shipped ones, `Limiter` and `WorkerPool`. `Door` owns them and counts who is inside. One thread, no I/O.
"""

from __future__ import annotations

from typing import Callable, Optional

from gateway.limits.limiter import Limiter, Refusal, Subject
from gateway.tools.simulate.draws import Row
from gateway.tools.simulate.events import Events
from gateway.tools.simulate.measures import Measures
from gateway.tools.simulate.request import Request
from gateway.tools.simulate.scenario import Rules
from gateway.workers import Overloaded, WorkerPool


class _AsEvents:
    """Runs what a `WorkerPool` would have threads for."""

    def __init__(self, events: Events) -> None:
        self._events = events

    def start(self) -> None:
        """Nothing to start."""

    def run(self, job: Callable[[], object]) -> None:
        """As soon as what happens now has happened."""
        self._events.at(self._events.now_s, _call, job)

    def close(self, timeout_s: float) -> None:
        """Nothing to close."""


def _call(job: Callable[[], object]) -> None:
    job()


def _raise(error: BaseException) -> None:
    raise error


class Door:
    """Lets requests in; `begin` is called with each that has a place. `limiter`: of all gateways; None: no limits."""

    def __init__(
        self,
        events: Events,
        rules: Rules,
        limiter: Optional[Limiter],
        measures: Measures,
        begin: Callable[[Request], object],
    ) -> None:
        self._events = events
        self._rules = rules
        self._limiter = limiter
        self._measures = measures
        self._begin = begin
        self._workers: Optional[WorkerPool] = None
        if rules.workers:
            self._workers = WorkerPool(
                rules.workers, rules.queue_size, _raise, events.clock, rules.queue_timeout_s, _AsEvents(events)
            )
        self.open = 0  # requests that have come in and have no answer

    def arrive(self, row: Row) -> None:
        """A request comes."""
        request = Request(row, self._placed)
        if self._limiter is not None and not self._admitted(self._limiter, request):
            self._measures.badly(request.at_s, "rate_limit_exceeded")
            return
        self.open += 1
        if self._workers is None:
            self._begin(request)
            return
        try:
            placed = self._workers.submit(request)
        except Overloaded:
            self._refuse(request, "overloaded")
            return
        if placed:
            self._placed(request)
        else:
            self._events.at(self._events.now_s + self._rules.queue_timeout_s, self._queued_too_long, request)

    def _admitted(self, limiter: Limiter, request: Request) -> bool:
        tokens = request.prompt + request.output
        subject = Subject(f"key {request.key}", self._rules.key_limits, tokens_estimate=tokens)
        admitted = limiter.admit(subject, self._events.now_s)
        if isinstance(admitted, Refusal):
            return False
        request.admission = admitted
        return True

    def _placed(self, request: Request) -> None:
        request.placed = True
        self._begin(request)

    def _queued_too_long(self, request: Request) -> None:
        if request.claim() and self._workers is not None:
            self._workers.gave_up(request)
            self._refuse(request, "queue_timeout")

    def _refuse(self, request: Request, code: str) -> None:
        self._measures.badly(request.at_s, code)
        self.leave(request, 0)

    def give_place_back(self, request: Request) -> None:
        """It needs no worker any more. Its second time does nothing."""
        if request.placed and self._workers is not None:
            request.placed = False
            self._workers.leave(request)

    def leave(self, request: Request, tokens: int) -> None:
        """It has its answer, for so many tokens, or an error (0)."""
        self.open -= 1
        if request.admission is not None:
            request.admission.release_concurrency()
            request.admission.settle(tokens)
        self.give_place_back(request)
