"""Who waits for a place on an engine, or pauses before a try: the shipped steps (`waiting.py`), resumed by events.

`Waits` owns those who wait. One thread, no I/O.
"""

from __future__ import annotations

from itertools import islice
from typing import Callable, Optional

from gateway.errors import GatewayError
from gateway.routing.tries import Step, Tries
from gateway.steps import Event
from gateway.tools.simulate.events import Events
from gateway.tools.simulate.request import Request
from gateway.waiting import step_after_wait

_LOOKED = 8  # requests in line that are looked at when somebody may have got a place


class Waits:
    """Those of one gateway. Who has waited goes on with `ask`, or gets an error by `end`. `place_s`: how long one waits
    for a place at most."""

    def __init__(
        self,
        events: Events,
        place_s: float,
        ask: Callable[[Request, Tries, Step], object],
        end: Callable[[Request, str], object],
    ) -> None:
        self._events = events
        self._place_s = place_s
        self._ask = ask
        self._end = end
        self._waiting: dict[Request, None] = {}

    def begin(self, request: Request, tries: Tries, step: Optional[Step]) -> None:
        """There is something to wait for before the next try, or nothing left to try."""
        request.steps = step_after_wait(request, tries, step, self._place_s, request.deadline_s, self._events.clock)
        self._waiting[request] = None
        self._resume(request)

    def _resume(self, request: Request) -> None:
        """Its wait is over, or has not begun yet."""
        steps, tries = request.steps, request.tries
        assert steps is not None and tries is not None
        try:
            wait = steps.send(None)
        except StopIteration as done:
            self._waited(request)
            self._ask(request, tries, done.value)
        except GatewayError as error:
            self._waited(request)
            self._end(request, error.code)
        else:
            assert isinstance(wait, Event)
            request.event = wait.event
            if wait.event.is_set():
                self._events.at(self._events.now_s, self._wake, (request, request.turn))
            else:
                self._events.at(self._events.now_s + wait.seconds, self._wake, (request, request.turn))

    def _waited(self, request: Request) -> None:
        request.turn += 1
        request.steps = request.event = None
        self._waiting.pop(request, None)

    def _wake(self, whose: tuple[Request, int]) -> None:
        request, turn = whose
        if turn == request.turn and request.steps is not None:
            request.turn += 1
            self._resume(request)
            self._wake_served()

    def look(self) -> None:
        """Somebody may have got a place."""
        if self._waiting:
            self._wake_served()

    def _wake_served(self) -> None:
        """Go on with those in line whose event is set. They are the first of those who wait, but for some that pause
        (and for those who are found when they look themselves, `LINE_LOOK_S` later)."""
        ready = [one for one in islice(self._waiting, _LOOKED) if one.event is not None and one.event.is_set()]
        for request in ready:
            request.event = None
            request.turn += 1
            self._events.at(self._events.now_s, self._wake, (request, request.turn))
