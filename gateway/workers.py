"""Who may work, how many at once, and who waits.

A `WorkerPool` has `workers` places. While one is free, a job runs at once where it is; when none is, it waits in a
bounded `queue.PriorityQueue`, and a worker thread runs it as soon as a place is given back. A job that has a place and
must block is brought to a worker thread, too (`run`): there are never more of them than places. (Every job through a
queue to another thread costs 75 us CPU and a hand-over of the interpreter's lock or four: measured 118 instead of 40 us
a request at one connection, 165 instead of 50 at 32, on a bare prototype.)

`_lock` guards the counts `_running` and `_waiting` and the average `_held_s`; it is never held while a job runs or a
thread waits. Every accepted job is run exactly once, or claimed by whoever gives it up (a queue timeout, a client that
leaves): `Job.claim` decides.
"""

from __future__ import annotations

import functools
import heapq
import math
import queue
import threading
import time
from typing import Callable, Optional, Protocol

from gateway.routing.line import AGEING_S, RANK_BY_PRIORITY
from gateway.threads import Threads

HELD_WEIGHT = 0.1  # of a new sample in the average time a place is held


class Job:
    """Something to run once. `answered` turns True just before its last write, `finished` after it."""

    priority = "normal"
    began_s = 0.0  # when it got its place; 0: nobody has noted that
    answered = False
    finished = False
    _claim: Optional[threading.Lock] = None

    def queue_up(self) -> None:
        """Called before the job is queued: from now on there are two who may end it."""
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """Take the right to end this job; True for exactly one caller."""
        claim = self._claim
        return claim is not None and claim.acquire(blocking=False)

    def run(self) -> Optional[bool]:
        """Do the work, on a worker's thread. True: the job keeps its place, and somebody calls `leave` for it."""
        raise NotImplementedError

    @property
    def queued(self) -> bool:
        """Return whether it waits for a place, and nobody has taken the right to end it."""
        claim = self._claim
        return claim is not None and not claim.locked()

    def cut_off(self) -> None:
        """End it early, because the gateway ends. From any thread; never blocks; may be called again."""
        raise NotImplementedError


class Overloaded(Exception):
    """The queue is full; or with `wait_s`, which is about what a job would have to wait, there is no use in waiting."""

    def __init__(self, wait_s: Optional[float] = None) -> None:
        super().__init__()
        self.wait_s = wait_s


class Runner(Protocol):
    """Where jobs run that had to wait for a place, or must block."""

    def start(self) -> None:
        """See `Threads.start`."""

    def run(self, job: Callable[[], object]) -> None:
        """Have it run, soon; it raises nothing."""

    def close(self, timeout_s: float) -> None:
        """Run nothing more."""


class WorkerPool:
    """`workers` places and at most `queue_size` jobs waiting for one, none longer than `queue_timeout_s` by all that is
    known when it comes. Thread-safe.

    `runner`: where jobs run; None: on threads of its own. In a simulation there are none.
    """

    def __init__(
        self,
        workers: int,
        queue_size: int,
        on_error: Callable[[BaseException], None],
        clock: Callable[[], float] = time.monotonic,
        queue_timeout_s: float = math.inf,
        runner: Optional[Runner] = None,
    ) -> None:
        self._clock = clock
        self._workers = workers
        self._queue_size = queue_size
        self._queue_timeout_s = queue_timeout_s
        self._on_error = on_error
        # Jobs without a place: by arrival, a lower priority as if it had come AGEING_S later, so that none starves.
        self._queue: queue.PriorityQueue[tuple[float, int, Job]] = queue.PriorityQueue()
        self._arrivals = 0
        self._lock = threading.Lock()
        self._running = 0
        self._waiting = 0
        self._waiting_by_rank = [0] * len(RANK_BY_PRIORITY)
        self._held_s = 0.0  # average time a place is held, when all are taken; 0: not known yet
        self._threads: Runner = Threads("worker", workers) if runner is None else runner
        self._closed = False

    def start(self) -> None:
        """Start the first worker thread. Raises RuntimeError when there is not even that."""
        self._threads.start()

    def run(self, job: Callable[[], None]) -> None:
        """Have something run on a worker's thread, for a job that has a place. It raises nothing."""
        self._threads.run(job)

    def submit(self, job: Job) -> bool:
        """True: a place is taken, the caller runs the job now and calls `leave` after it. False: the job is queued.

        Raises Overloaded when the queue is full, the job's turn would come too late, or the pool is closed.
        """
        with self._lock:
            if self._running < self._workers and not self._closed:
                self._running += 1
                if self._running == self._workers:  # how long others do not wait for does not matter
                    job.began_s = self._clock()
                return True
            if self._waiting >= self._queue_size or self._closed:
                raise Overloaded
            due_s = self._clock() + RANK_BY_PRIORITY[job.priority] * AGEING_S
            self._arrivals += 1
            entry = (due_s, self._arrivals, job)
            wait_s = self._predicted_wait_s_locked(entry)
            if wait_s > self._queue_timeout_s:
                raise Overloaded(wait_s)
            self._count_waiting_locked(job, 1)
            job.queue_up()
            self._queue.put_nowait(entry)  # unbounded, so it never blocks; inside, so that no place is left unused
        return False

    def _predicted_wait_s_locked(self, entry: tuple[float, int, Job]) -> float:
        """Predict how long a job that comes now waits: until a place is free for each that is ahead, and for itself."""
        turn_s = self._held_s / self._workers
        if (self._waiting + 1) * turn_s <= self._queue_timeout_s:
            return 0.0  # in time, even behind all of them
        ahead = sum(self._waiting_by_rank[: RANK_BY_PRIORITY[entry[2].priority] + 1])
        if ahead < self._waiting and (ahead + 1) * turn_s <= self._queue_timeout_s:
            # Of the lower priorities, those that have waited for long are ahead too. Looked at one by one (0.4 us each)
            # only when that decides.
            ahead = sum(other < entry and other[2].queued for other in self._queue.queue)
        return (ahead + 1) * turn_s

    def leave(self, left: Job) -> None:
        """Give the place of a job back: to the next waiting one, if there is one. Never blocks."""
        with self._lock:
            if not (self._waiting or left.began_s):
                self._running -= 1
                return
            job = self._next_locked(left)
        if job is not None:
            self._threads.run(functools.partial(self._run, job))

    def gave_up(self, job: Job) -> None:
        """A waiting job has been claimed by who waited for it: its place in the queue is free."""
        with self._lock:
            self._count_waiting_locked(job, -1)
            entries = self._queue.queue
            if len(entries) > 2 * self._waiting:  # most are of nobody, and would keep their requests
                entries[:] = [entry for entry in entries if entry[2].queued]
                heapq.heapify(entries)

    def _count_waiting_locked(self, job: Job, change: int) -> None:
        self._waiting += change
        self._waiting_by_rank[RANK_BY_PRIORITY[job.priority]] += change

    def _next_locked(self, left: Job) -> Optional[Job]:
        """The next waiting job, which takes over the place of the one that has `left`; None when the place is free
        now."""
        if left.began_s:
            self._note_held_locked(self._clock() - left.began_s)
        while self._waiting:
            try:
                job = self._queue.get_nowait()[2]
            except queue.Empty:
                break  # what waits is being given up by who waited for it
            if job.claim():
                self._count_waiting_locked(job, -1)
                job.began_s = self._clock()
                return job
        self._running -= 1
        return None

    def _note_held_locked(self, held_s: float) -> None:
        self._held_s += HELD_WEIGHT * (held_s - self._held_s) if self._held_s else held_s

    @property
    def queue_size(self) -> int:
        """How many jobs may wait."""
        return self._queue_size

    @property
    def depth(self) -> int:
        """Jobs waiting for a place."""
        return self._waiting

    @property
    def busy(self) -> int:
        """Places taken."""
        return self._running

    def _run(self, job: Optional[Job]) -> None:
        """Run a job that has a place, then those that wait for it; the place is free after that."""
        while job is not None:
            try:
                if job.run():
                    return
            except BaseException as error:
                self._on_error(error)
            with self._lock:
                job = self._next_locked(job)

    def close(self, timeout_s: float) -> None:
        """Accept nothing more and let the threads end; waits for at most `timeout_s` in all."""
        with self._lock:
            self._closed = True
        self._threads.close(timeout_s)
