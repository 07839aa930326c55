"""How a call waits for its next try: in a model's line for a place, without one, or through a pause.

Steps. Owns nothing; what is given back is given back here, whoever ends the wait.
"""

from __future__ import annotations

import threading
import time
from typing import Callable, Optional, Protocol

from gateway.errors import EngineFailed
from gateway.routing.line import Lease, Waiter
from gateway.routing.pool import ModelPool
from gateway.routing.retry import CANCELLED
from gateway.routing.tries import Step, Tries
from gateway.steps import Steps
from gateway.telemetry.events import Mark

SAME_S = 0.01  # between two parts of one wait
LINE_LOOK_S = 0.25  # how often who waits looks for an engine whose time outside has ended


class Waits(Protocol):
    """What waits: a `Call`, or a simulated one. `waited_s`, `marks`: what is told of its waits."""

    waited_s: float
    marks: tuple[Mark, ...]

    def wait(self, event: threading.Event, timeout_s: float) -> Steps[None]:
        """Wait for `event`, at most `timeout_s` seconds."""


def step_after_wait(
    call: Waits,
    tries: Tries,
    step: Optional[Step],
    place_s: float,
    deadline_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Steps[Step]:
    """A step with a place on an engine, after waiting for one at most `place_s` seconds, and after the pause before a
    repeated try. `step`: what there is to do; None: nothing is left. `deadline_s` is by `clock`. Raises
    GatewayError."""
    until_s = 0.0
    while step is None or step.lease is None:
        if step is None:
            raise tries.error()
        if step.waiter is None:
            until_s = until_s or min(deadline_s, clock() + place_s)
            yield from _wait_without_line(call, until_s, clock)
            step = tries.next()
            continue
        lease = yield from _wait_in_line(call, step.pool, step.waiter, place_s, deadline_s, clock)
        # Its engines have moved meanwhile, or this one cannot be asked.
        if lease is not None and not (tries.may_ask(step.pool) and tries.can_ask(lease)):
            step.pool.settle(lease, CANCELLED, 0.0)
            lease = None
        step = tries.next() if lease is None else tries.granted(step.pool, lease)
    if step.delay_s:
        yield from _pause(call, tries, step, step.lease, deadline_s, clock)
    return step


def _pause(
    call: Waits, tries: Tries, step: Step, lease: Lease, deadline_s: float, clock: Callable[[], float]
) -> Steps[None]:
    began_s = clock()
    try:
        if began_s + step.delay_s >= deadline_s:
            raise tries.error()
        yield from call.wait(threading.Event(), step.delay_s)
    except BaseException:
        step.pool.settle(lease, CANCELLED, 0.0)
        raise
    finally:
        _note(call, "pause", began_s, clock())


def _wait_without_line(call: Waits, until_s: float, clock: Callable[[], float]) -> Steps[None]:
    """Wait a little for a place on one of those engines of a model that can be asked: they are full, and the line is
    for any. Raises `queue_timeout` when it is `until_s` by the clock."""
    began_s = clock()
    if began_s >= until_s:
        raise EngineFailed("queue_timeout", "no place on an engine that can be asked for this", retry_after_s=1.0)
    try:
        yield from call.wait(threading.Event(), min(until_s - began_s, LINE_LOOK_S))
    finally:
        _note(call, "place", began_s, clock())


def _wait_in_line(
    call: Waits, pool: ModelPool, waiter: Waiter, place_s: float, deadline_s: float, clock: Callable[[], float]
) -> Steps[Optional[Lease]]:
    """A place; None when no engine of the model is in any more. Raises `overloaded`, `queue_timeout`."""
    began_s = clock()
    limit_s = min(place_s, deadline_s - began_s)
    try:
        left_s = limit_s if waiter.predicted_s <= limit_s else 0.0
        while left_s > 0 and not waiter.ready.is_set():
            yield from call.wait(waiter.ready, min(left_s, LINE_LOOK_S))
            pool.serve_line()
            left_s = began_s + limit_s - clock()
    except BaseException:  # the client has gone
        lease = pool.leave_line(waiter)
        if lease is not None:
            pool.settle(lease, CANCELLED, 0.0)
        raise
    finally:
        _note(call, "place", began_s, clock())
    lease = pool.leave_line(waiter)
    if lease is not None or waiter.ready.is_set():
        return lease
    if waiter.predicted_s > limit_s:
        text = f"a place on an engine is {waiter.predicted_s:.0f} s away"
        raise EngineFailed("overloaded", text, retry_after_s=waiter.predicted_s)
    raise EngineFailed("queue_timeout", f"no place on an engine within {limit_s:g} s", retry_after_s=1.0)


def _note(call: Waits, name: str, began_s: float, now_s: float) -> None:
    """It has waited since then. What is one wait in several parts is told as one."""
    duration_s = now_s - began_s
    call.waited_s += duration_s
    last = call.marks[-1] if call.marks else None
    if last is not None and last.name == name and began_s - (last.began_s + last.duration_s) < SAME_S:
        call.marks = (*call.marks[:-1], Mark(name, last.began_s, began_s + duration_s - last.began_s))
    else:
        call.marks += (Mark(name, began_s, duration_s),)
