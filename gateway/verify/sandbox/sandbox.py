"""Runs jobs at the strongest level of isolation there is, a few at once; the others wait their turn.

A `Sandbox` owns its levels, the jobs that wait and the threads that run them. Which level is used is found out by
trying, when the first job comes or somebody asks, and again when a level has failed. `_lock` guards the choice, the
queue and the counts; it is never held while a level is tried or used, nor while anybody is told. Below the level that
is demanded nothing ever runs.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Callable, NamedTuple, Optional

from gateway.threads import Threads
from gateway.verify.sandbox.job import ORDER, Job, Level, Limits, Run
from gateway.verify.sandbox.levels import CANCELLED, Stop, all_levels, nothing_ran

QUEUE_SIZE = 1024  # jobs that wait
CHOICE_S = 300.0  # for whoever makes the choice: every level's commands and jobs have less time than that together
RETRY_S = 30.0  # a choice made in want of a better level is made anew after this long
CEILING = Limits()
UNAVAILABLE = "isolation_unavailable"
BUSY = "sandbox_busy"  # too many jobs wait
CLOSED = "sandbox_closed"

Done = Callable[[Run], None]


class Choice(NamedTuple):
    """The level that is used, if any, and why none of the better ones is."""

    level: Optional[Level]
    refused: Mapping[str, str]  # reason by name
    until_s: float  # by the monotonic clock; then it is made anew


class _Choosing:
    """A choice that is being made by one thread; others wait for it."""

    def __init__(self) -> None:
        self.made = threading.Event()
        self.choice = Choice(None, {}, 0.0)


class Ticket:
    """A job that was handed in. Thread-safe."""

    def __init__(self, sandbox: Sandbox, job: Job, done: Done) -> None:
        self.job = job
        self.done = done
        self.stop = Stop()
        self._sandbox = sandbox

    def cancel(self) -> None:
        """Drop the job if it waits, kill it if it runs, do nothing if it has ended. Never blocks; may be called again.

        `done` is still called once, with the error "cancelled": for a job that waited, by this call.
        """
        self._sandbox._cancel(self)


class Sandbox:
    """Runs at most `concurrency` jobs at once. Thread-safe.

    `level_wanted` is "auto" (the strongest that works), a level's name (that one or none) or "off"; `minimum` the name
    of the weakest level at which anything may run. `runtime` is the container command with its arguments (None: docker,
    else podman), `image` the image it is to use (None: no containers). `source_by_harness` has the harnesses by name,
    `limits` the most that any job will ask for. At most `queue_size` jobs wait. `levels` stand in for
    those of this machine. Raises ValueError for a name that is no level's.
    """

    def __init__(
        self,
        level_wanted: str = "auto",
        minimum: str = "namespaces",
        runtime: Optional[str] = None,
        image: Optional[str] = None,
        concurrency: int = 2,
        source_by_harness: Optional[Mapping[str, str]] = None,
        limits: Limits = CEILING,
        queue_size: int = QUEUE_SIZE,
        levels: Optional[Sequence[Level]] = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wanted = level_wanted
        self._minimum = minimum
        if levels is None:
            levels = all_levels(source_by_harness or {}, runtime or "", image or "", limits, concurrency)
        self._levels = _permitted(levels, level_wanted, minimum)
        self._concurrency = concurrency
        self._queue_size = queue_size
        self._clock = clock
        self._threads = Threads("sandbox", concurrency)
        self._enders = Threads("sandbox-ends", concurrency)  # closing a jail may block, cancelling a job must not
        self._lock = threading.Lock()
        self._choosing: Optional[_Choosing] = None
        self._lost = False  # a level that once worked has failed
        self._waiting: deque[Ticket] = deque()
        self._running: set[Ticket] = set()
        self._started = False
        self._closed = False

    # --- jobs ------------------------------------------------------------------------------------------------------

    def submit(self, job: Job, done: Done) -> Ticket:
        """Have `job` run, and `done` called once with its result, on a thread of the sandbox. Never blocks.

        What cannot be run ends with the reason "setup" and an error: "isolation_unavailable", "sandbox_busy" (too many
        jobs wait), "sandbox_closed", "cancelled". For the second and third, `done` is called before this returns.
        """
        ticket = Ticket(self, job, done)
        try:
            self._start_threads()
        except RuntimeError:
            self._finish(ticket, nothing_ran("sandbox_no_thread"))
            return ticket
        with self._lock:
            refused = CLOSED if self._closed else None
            starts = len(self._running) < self._concurrency
            if not refused and starts:
                self._running.add(ticket)
            elif not refused and len(self._waiting) < self._queue_size:
                self._waiting.append(ticket)
            else:
                refused = refused or BUSY
        if refused:
            self._finish(ticket, nothing_ran(refused))
        elif starts:
            self._threads.run(functools.partial(self._work, ticket))
        return ticket

    def run(self, job: Job) -> Run:
        """Run `job` and wait for its result. Not on a thread of the sandbox: it might wait for itself."""
        results: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self.submit(job, results.put)
        return results.get()  # which comes in any case: each job before it, and this one, has a limit of time

    def _start_threads(self) -> None:
        with self._lock:
            first = not self._started
            self._started = True
        if first:
            try:
                self._threads.start()
                self._enders.start()
            except RuntimeError:
                with self._lock:
                    self._started = False
                raise

    def _cancel(self, ticket: Ticket) -> None:
        with self._lock:
            try:
                self._waiting.remove(ticket)
                waited = True
            except ValueError:
                waited = False
        if waited:
            self._finish(ticket, nothing_ran(CANCELLED))
        else:
            ticket.stop.set()

    def _work(self, first: Ticket) -> None:
        """Run a job that has a place, then those that wait for it; the place is free after that."""
        ticket: Optional[Ticket] = first
        while ticket is not None:
            try:
                run = self._run(ticket)
            except Exception:
                traceback.print_exc()
                run = nothing_ran("internal_error")
            self._finish(ticket, run)
            with self._lock:
                self._running.discard(ticket)
                ticket = self._waiting.popleft() if self._waiting else None
                if ticket is not None:
                    self._running.add(ticket)
                level = self._choosing.choice.level if self._choosing is not None else None
            if ticket is None and level is not None:
                self._refill(level)

    def _run(self, ticket: Ticket) -> Run:
        """Run one job. When nothing came of it, the levels are tried anew, and it once more: what had been started for
        it may have died while it waited."""
        run = nothing_ran(UNAVAILABLE)
        for _ in range(2):
            choosing = self._choose()
            level = choosing.choice.level
            if level is None:
                return nothing_ran(UNAVAILABLE)
            if not ticket.stop.is_set:
                run = self._run_in_a_jail(level, ticket)
            if ticket.stop.is_set:
                return nothing_ran(CANCELLED, level.name)._replace(seconds=run.seconds)
            if run.reason != "setup":
                break
            with self._lock:
                self._lost = True
                if self._choosing is choosing:
                    self._choosing = None
        return run

    def _run_in_a_jail(self, level: Level, ticket: Ticket) -> Run:
        try:
            jail = level.open()
        except OSError as error:
            return nothing_ran(str(error), level.name)
        ticket.stop.attach(lambda: self._enders.run(jail.close))
        try:
            return jail.run(ticket.job)
        finally:
            ticket.stop.detach()
            jail.close()

    def _refill(self, level: Level) -> None:
        try:
            level.refill()
        except Exception:
            traceback.print_exc()

    def _finish(self, ticket: Ticket, run: Run) -> None:
        try:
            ticket.done(run)
        except Exception:
            traceback.print_exc()

    # --- the level -------------------------------------------------------------------------------------------------

    def level(self) -> Optional[str]:
        """Return the name of the level that is used, or None when nothing runs. Tries them if need be: may block."""
        chosen = self._choose().choice.level
        return chosen.name if chosen is not None else None

    def describe(self) -> list[str]:
        """Return one line with the level that is used, then one for each better one with why it is not. May block."""
        if self._wanted == "off":
            return ["sandbox: off, nothing is run"]
        level, refused, _ = self._choose().choice
        lines = [f"sandbox: {level.name}" if level is not None else "sandbox: nothing is run, no level can be used"]
        if level is None and not refused:
            lines.append(f"sandbox: {self._wanted} is weaker than {self._minimum}, the least that is demanded")
        return lines + [f"sandbox: not {name}: {why}" for name, why in refused.items()]

    def _choose(self) -> _Choosing:
        """The choice that holds; made here, or by whoever is about it."""
        with self._lock:
            choosing = self._choosing
            ours = choosing is None or (choosing.made.is_set() and choosing.choice.until_s <= self._clock())
            if choosing is None or ours:
                choosing = self._choosing = _Choosing()
        if not ours:
            choosing.made.wait(CHOICE_S)  # after that there is no level, for this job
            return choosing
        try:
            choosing.choice = self._try_levels()
        finally:
            choosing.made.set()
        return choosing

    def _try_levels(self) -> Choice:
        refused: dict[str, str] = {}
        for level in self._levels:
            try:
                why = level.probe() if not self._closed else None
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
            if self._closed:  # meanwhile, perhaps, and then it may have been closed before it was opened
                why = CLOSED
            if why is None:
                until_s = self._clock() + RETRY_S if self._lost and refused else float("inf")
                return Choice(level, refused, until_s)
            refused[level.name] = why
            if self._closed:
                level.close()
        return Choice(None, refused, self._clock() + RETRY_S)

    def close(self, timeout_s: float = 0.0) -> None:
        """End all jobs, waiting or running, and every process of theirs; waits for at most about `timeout_s` seconds.

        May be called again. What is handed in later ends with the error "sandbox_closed".
        """
        with self._lock:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
            running = list(self._running)
        for ticket in waiting:
            self._finish(ticket, nothing_ran(CLOSED))
        for ticket in running:
            ticket.stop.set()
        for level in self._levels:
            level.close()
        self._threads.close(timeout_s)
        self._enders.close(timeout_s)


def _permitted(levels: Sequence[Level], wanted: str, minimum: str) -> list[Level]:
    """The levels that may be used, the best first. Raises ValueError for a name that is none."""
    if wanted not in ("auto", "off", *ORDER):
        raise ValueError(f"no such level of isolation: {wanted}")
    if minimum not in ORDER:
        raise ValueError(f"no such level of isolation: {minimum}")
    names = ORDER[: ORDER.index(minimum) + 1]
    return [
        level
        for level in sorted(levels, key=lambda level: ORDER.index(level.name))
        if level.name in names and wanted in ("auto", level.name)
    ]
