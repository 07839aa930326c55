"""One request's steps on their way: on the loop as long as it can wait for what they wait for, then on a thread.

The loop's thread runs the steps of every request and waits for all their sockets at once. Steps that must wait for
something else (`Event`), or that take long (`ASIDE`), go over to a thread and are driven there to their end: to a
worker's where the request has its place, else to one of those that are aside, from where it comes back for its place
(`Turn`). What they give comes back to the loop.

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
from gateway.steps import (
    ASIDE,
    Flag,
    Flagged,
    Opened,
    Pause,
    Places,
    Readable,
    Say,
    Steps,
    Turn,
    Wait,
    Watched,
    Writable,
)
from gateway.threads import Threads
from gateway.upstream.shortage import overloaded
from gateway.workers import Job, Overloaded


class _Timer:
    """What the loop calls when a wait has taken long enough. It lets go of its task when that is woken before: the loop
    keeps a timer until it is due, and would keep the request with it."""

    __slots__ = ("task",)

    def __init__(self, task: Task) -> None:
        self.task: Optional[Task] = task

    def __call__(self, events: int) -> None:
        if self.task is not None:
            self.task._be_late()


class Task:
    """Runs steps for a request. `_done` is called once, on the loop's thread, with what they give or raise."""

    has_place = False  # a worker's; who has made the task gives it back
    _steps: Steps[Any]
    _pool: Optional[Places] = None  # in which it has a place, or waits for one
    _waiting = False
    _number = 0  # of the wait: what was to wake an earlier one comes too late
    _timer: Optional[_Timer] = None  # of the wait
    _watched = -1  # the descriptor that the loop watches for it
    _ended: tuple[Any, Optional[Exception]] = (None, None)  # what the steps have given, or raised

    def __init__(self, job: Job, loop: Loop, threads: Threads) -> None:
        self._job = job
        self._loop = loop
        self._threads = threads
        self._below: list[Steps[Any]] = []  # those that wait for the end of `_steps`, a conversation

    def _done(self, value: Any, error: Optional[Exception]) -> None:
        """The steps have ended."""
        raise NotImplementedError

    def _say(self, lines: bytes) -> None:
        """The client is to be told something before its answer; on the loop's thread."""

    def throw(self, error: Exception) -> None:
        """Have the steps end, which wait for a place, on the loop's thread. The caller holds the job's claim."""
        self._run(self._steps.throw, error)

    def drive(self) -> None:
        """The task has got the place that it has waited for; on a worker's thread."""
        self.has_place = True
        self._drive(ASIDE)

    def _run(self, resume: Callable[[Any], Any], value: Any) -> None:
        """Run `_steps` on the loop's thread, until they wait for what it cannot wait for or have ended.

        They begin with `resume(value)`: `send` or `throw` of theirs.
        """
        while True:
            wait = self._advance(resume, value)
            value = None  # an error's traceback refers to this frame
            if wait is None:
                self._end()
                return
            kind = type(wait)
            resume = self._steps.send
            try:
                if kind is Readable:
                    self._watch(wait[0], wait[1])
                    return
                if kind is Opened:  # the conversation with an engine is part of the steps
                    self._below.append(self._steps)
                    self._steps = wait.request.converse()
                    resume = self._steps.send
                    continue
                if kind is Turn:
                    self._pool = wait.pool
                    self.has_place = wait.pool.submit(self._job)
                    if not self.has_place:
                        return  # `drive` comes, or `throw`
                    continue
                if kind is Say:
                    self._say(wait.lines)
                    continue
                if kind is Writable:
                    for connection in wait.connections:
                        self._watch(connection, wait.until_s, writing=True)
                elif kind is Flagged:
                    self._unwatch()  # as below
                    self._wait_for(wait.flag, wait.seconds)
                elif kind is Pause:
                    self._unwatch()  # or what comes would cut it short
                    self._later(wait.seconds)
                else:
                    self._pass_on(wait)
                return
            except OSError as error:  # the system lets nobody watch more
                self._stop_waiting()  # for another of several
                resume, value = self._steps.throw, overloaded(error)
            except Overloaded as error:
                resume, value = self._steps.throw, error

    def _advance(self, resume: Callable[[Any], Any], value: Any) -> Any:
        """Run `_steps` to their next wait, a conversation's end into those below; None: they have ended, and `_ended`
        says how."""
        while True:
            try:
                wait = resume(value)
                value = None  # as in `_run`
                return wait
            except StopIteration as end:
                value = None
                if not self._below:
                    self._ended = end.value, None
                    return None
                steps = self._steps = self._below.pop()
                resume, value = steps.send, end.value
            except Exception as error:
                value = None
                if not self._below:
                    self._ended = None, error
                    return None
                steps = self._steps = self._below.pop()
                resume, value = steps.throw, error

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
            self._stop_waiting()
            self._run(self._steps.send, True)

    def _stop_waiting(self) -> None:
        self._waiting = False
        if self._timer is not None:
            self._timer.task = None
            self._timer = None

    def _wait_for(self, flag: Flag, seconds: float) -> None:
        self._later(seconds)
        wake = functools.partial(self._be_flagged, self._number)
        flag.call(lambda: self._loop.soon(wake))

    def _be_flagged(self, number: int, events: int) -> None:
        if self._waiting and self._number == number:
            self._stop_waiting()
            self._run(self._steps.send, True)

    def _later(self, seconds: float) -> None:
        self._waiting = True
        self._number += 1
        if self._timer is not None:  # another of several connections has set it
            self._timer.task = None
        timer = self._timer = _Timer(self)
        self._loop.later(max(0.0, seconds), timer)

    def _be_late(self) -> None:
        if self._waiting:
            self._stop_waiting()
            self._run(self._steps.send, False)

    def _unwatch(self) -> None:
        """Refer to nothing on the loop any more. (The number is nobody else's: only this thread has any watched.)"""
        if self._watched >= 0:
            self._loop.forget(self._watched)
            self._watched = -1

    def _end(self) -> None:
        self._unwatch()
        (value, error), self._ended = self._ended, (None, None)
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
        """Block on `wait`, and run the steps to their end, or until they need a place, or no thread."""
        while not isinstance(wait, (Turn, Flagged, Say)):
            resume: Callable[[Any], Any] = self._steps.send
            try:
                value = wait.block()
            except Exception as error:
                resume, value = self._steps.throw, error
            wait = self._advance(resume, value)
            value = None
            if wait is None:
                self._loop.soon(lambda events: self._end())
                return
        known = wait
        self._loop.soon(lambda events: self._run(lambda nothing: known, None))
