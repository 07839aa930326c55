"""Parts of a request that are requests of their own: each is admitted, asked, charged and reported by itself.

`Parts.begin` is what `verify/panel.py` calls `Begin`. A `Part` is run by a `Task` as an exchange is, but nobody's
connection stands behind it: who has begun it takes its answer, and cancels it. For the loop's thread, but for `begin`,
`cancel` and `cut_off`, which any thread may call: they pass what is to be done on to the loop.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable, Optional

from gateway.asked import Asked
from gateway.errors import ClientGone, GatewayError
from gateway.inference import Answer, Call
from gateway.pipeline import Pipeline, shutting_down
from gateway.server.loop import Loop
from gateway.server.report import event_of
from gateway.server.task import Task
from gateway.threads import Threads
from gateway.traces.context import part_of

if TYPE_CHECKING:
    from gateway.verify.panel import Done


class Part(Asked):
    """A request that is made for another one."""

    def __init__(self, whole: Asked, call: Call, parts: Parts, done: Done) -> None:
        super().__init__(whole.head, whole.client_address, call.request_id, time.monotonic())
        self.identity = whole.identity
        self.restricted = whole.restricted
        self.residency = call.residency = whole.residency
        self.call = call
        self.priority = call.priority
        self.part_of = whole.request_id
        if whole.trace is not None:
            self.trace = part_of(whole.trace)
        self._whole = whole
        self._task: Optional[_PartTask] = _PartTask(self, parts, done)
        self._loop = parts.loop

    def begin(self, events: int) -> None:
        """Run its steps."""
        if self._task is not None:
            self._task.begin()

    def run(self) -> bool:
        task = self._task
        if task is not None:
            task.drive()
        return True  # the task gives the place back

    def cancel(self) -> None:
        """Nobody waits for its answer. From any thread; never blocks; may be called again."""
        self.left = True  # first: see `Flights.leave`
        call = self.call
        if call is not None and not self.needed:
            call.cancel()
        self._loop.soon(self._give_up)

    @property
    def is_cut(self) -> bool:
        """Whether the gateway's end has ended it, or what it is a part of."""
        return self.cut or self._whole.cut

    def cut_off(self) -> None:
        self.cut = True
        self.cancel()

    def _give_up(self, events: int) -> None:
        task = self._task
        if task is not None and self.queued and not self.needed:
            task.give_up(shutting_down() if self.is_cut else ClientGone())

    def queue_timeout(self, events: int) -> None:
        """It has waited for a place for as long as a request may."""
        task = self._task
        if task is not None and self.queued:
            task.give_up(task.pipeline.queue_timeout())

    def over(self) -> None:
        """It has ended: it refers to nothing that it needs no more."""
        self._task = None


class _PartTask(Task):
    def __init__(self, part: Part, parts: Parts, done: Done) -> None:
        super().__init__(part, parts.loop, parts.threads)
        self.pipeline = parts.pipeline
        self._part = part
        self._tell = done

    def begin(self) -> None:
        call = self._part.call
        assert call is not None
        part, loop, timeout_s = self._part, self._loop, self.pipeline.settings.queue_timeout_s
        self._steps = self.pipeline.serve_part(part, call)
        self._run(self._steps.send, None)
        if part.queued:
            loop.later(timeout_s, part.queue_timeout)

    def give_up(self, error: GatewayError) -> None:
        """Have it wait no more for a worker's place, unless it has just got one."""
        if self._part.claim():
            self.pipeline.workers.gave_up(self._part)
            self.throw(error)

    def _done(self, value: Any, error: Optional[Exception]) -> None:
        part, pipeline = self._part, self.pipeline
        del self._steps
        answer = value if isinstance(value, Answer) else None
        part.answered = True
        if part.is_cut and isinstance(error, ClientGone):
            error = shutting_down()
        if error is not None and not isinstance(error, GatewayError):
            error = pipeline.internal_error(error, part.request_id)
        try:
            call = part.call
            if part.account is not None and call is not None:
                part.account.settle(call, part.identity)
            code = error.code if isinstance(error, GatewayError) else None
            status = error.status if isinstance(error, GatewayError) else 200
            pipeline.concluded(part, event_of(part, code, status, None, None))
        except Exception as unforeseen:
            pipeline.internal_error(unforeseen, part.request_id)
        finally:
            part.finished = True
            part.over()
            if self.has_place:
                pipeline.workers.leave(part)
            if error is not None:
                error.__traceback__ = None  # whose frames refer to the error
            self._tell(answer, error)


class Parts:
    """Begins parts of requests. Thread-safe."""

    def __init__(self, pipeline: Pipeline, loop: Loop, threads: Threads) -> None:
        self.pipeline = pipeline
        self.loop = loop
        self.threads = threads

    def begin(self, asked: Asked, call: Call, done: Done) -> Callable[[], None]:
        """Ask for a call; see `verify.panel.Begin`."""
        part = Part(asked, call, self, done)
        self.loop.soon(part.begin)
        return part.cancel
