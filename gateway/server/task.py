"""One request's steps on their way: on the loop as long as it can wait for what they wait for, then on a thread.

The loop's thread runs the steps of every request and waits for all their sockets at once. Steps that must wait for
something else (`Event`), or that take long (`ASIDE`), go over to a thread, once, and are driven there to their end: to
a worker's where the request has its place, else to one of those that are aside. What they give comes back to the loop.

A `Task` belongs to one thread at a time: it is passed on as the last thing done with it, so there is no lock. Before it
goes to a thread it refers to nothing on the loop; while it is away the loop touches nothing of its request but
`Exchange.cancel`, which sets flags and aborts.
"""

from __future__ import annotations

import functools
import math
import time
from typing import Any, Callable, Optional

from gateway.server.loop import Loop
from gateway.steps import ASIDE, Opened, Pause, Places, Readable, Steps, Turn, Wait, Watched, Writable
from gateway.threads import Threads
from gateway.upstream.shortage import overloaded
from gateway.workers import Job, Overloaded


class Task:
    """Runs steps for a request. `_done` is called once, on the loop's thread, with what they give or raise."""

    has_place = False  # a worker's; who has made the task gives it back
    _steps: Steps[Any]
    _pool: Optional[Places] = None  # in which it has a place, or waits for one
    _waiting = False
    _number = 0  # of the wait: what was to wake an earlier one comes too late
    _watched = -1  # the descriptor that the loop watches for it

    def __init__(self, job: Job, loop: Loop, threads: Threads) -> None:
        self._job = job
        self._loop = loop
        self._threads = threads
        self._below: list[Steps[Any]] = []  # those that wait for the end of `_steps`, a conversation

    def _done(self, value: Any, error: Optional[Exception]) -> None:
        """The steps have ended."""
        raise NotImplementedError

    def throw(self, error: Exception) -> None:
        """Have the steps end, which wait for a place, on the loop's thread. The caller holds the job's claim."""
        self._go_on(self._steps.throw, error)

    def drive(self) -> None:
        """The task has got the place that it has waited for; on a worker's thread."""
        self.has_place = True
        self._drive(ASIDE)

    def _go_on(self, resume: Callable[[Any], Any], value: Any) -> None:
        """Run `_steps` until they wait, on the loop's thread, from `send` or `throw` of them with the value."""
        while True:
            try:
                wait = resume(value)
            except StopIteration as end:
                if not self._below:
                    self._end(end.value, None)
                    return
                steps = self._steps = self._below.pop()
                resume, value = steps.send, end.value
                continue
            except Exception as error:
                if not self._below:
                    self._end(None, error)
                    return
                steps = self._steps = self._below.pop()
                resume, value = steps.throw, error
                continue
            kind = type(wait)
            try:
                if kind is Readable:
                    connection, until_s = wait
                    self._watch(connection, until_s)
                    return
                if kind is Opened:  # the conversation with an engine is part of the steps
                    self._below.append(self._steps)
                    steps = self._steps = wait.request.converse()
                    resume, value = steps.send, None
                    continue
                if kind is Turn:
                    self._pool = wait.pool
                    self.has_place = wait.pool.submit(self._job)
                    if not self.has_place:
                        return  # `drive` comes, or `throw`
                    resume, value = self._steps.send, None
                    continue
                if kind is Writable:
                    for connection in wait.connections:
                        self._watch(connection, wait.until_s, writing=True)
                elif kind is Pause:
                    self._unwatch()  # or what comes would cut it short
                    self._later(wait.seconds)
                else:
                    self._pass_on(wait)
                return
            except OSError as error:  # the system lets nobody watch more
                self._waiting = False  # for another of several
                resume, value = self._steps.throw, overloaded(error)
            except Overloaded as error:
                resume, value = self._steps.throw, error

    def _watch(self, connection: Watched, until_s: float, writing: bool = False) -> None:
        loop = self._loop
        if connection.descriptor < 0:
            loop.add(connection.sock.fileno())
            connection.watched_by(loop.unwatch)
        self._watched = connection.descriptor
        loop.wait_for(connection.descriptor, self._wake, writing)
        self._waiting = True
        self._number += 1
        if until_s != math.inf:
            self._later(until_s - time.monotonic())

    def _wake(self, events: int) -> None:
        if self._waiting:
            self._waiting = False
            self._go_on(self._steps.send, True)

    def _later(self, seconds: float) -> None:
        self._waiting = True
        self._number += 1
        self._loop.later(max(0.0, seconds), functools.partial(self._be_late, self._number))

    def _be_late(self, number: int, events: int) -> None:
        if self._waiting and self._number == number:
            self._waiting = False
            self._go_on(self._steps.send, False)

    def _unwatch(self) -> None:
        """Refer to nothing on the loop any more. (The number is nobody else's: only this thread has any watched.)"""
        if self._watched >= 0:
            self._loop.forget(self._watched)
            self._watched = -1

    def _end(self, value: Any, error: Optional[Exception]) -> None:
        if self._watched >= 0:
            self._loop.forget(self._watched)
            self._watched = -1
        self._done(value, error)

    # --- on a thread -----------------------------------------------------------------------------------------------

    def _pass_on(self, wait: Wait) -> None:
        self._unwatch()
        drive = functools.partial(self._drive, wait)
        if self._pool is not None:
            self._pool.run(drive)
        else:
            self._threads.run(drive)

    def _drive(self, wait: Wait) -> None:
        """Block on `wait`, and run the steps to their end, or until they need a place."""
        resume: Callable[[Any], Any]
        value: Any
        while True:
            if isinstance(wait, Turn):
                self._post(self._take_turn, wait, None)
                return
            try:
                value = wait.block()
                resume = self._steps.send
            except Exception as error:
                resume, value = self._steps.throw, error
            while True:
                try:
                    wait = resume(value)
                    break
                except StopIteration as end:
                    if not self._below:
                        self._post(self._done, end.value, None)
                        return
                    self._steps = self._below.pop()
                    resume, value = self._steps.send, end.value
                except Exception as error:
                    if not self._below:
                        self._post(self._done, None, error)
                        return
                    self._steps = self._below.pop()
                    resume, value = self._steps.throw, error

    def _take_turn(self, turn: Turn, nothing: None) -> None:
        self._go_on(lambda value: turn, None)

    def _post(self, target: Callable[[Any, Any], None], first: Any, second: Any) -> None:
        """Have the loop call it; where the loop has ended, it is called here."""

        def call(events: int) -> None:
            target(first, second)

        self._loop.soon(call)
