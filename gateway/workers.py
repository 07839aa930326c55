"""The worker pool: a bounded queue and threads started on demand.

`WorkerPool` owns the queue and its threads. `_lock` guards the two counts `_load` (jobs submitted and not yet finished)
and `_threads`; it is never held while a job runs or a queue waits. Every accepted job is run exactly once, or claimed
by whoever waits for it (a queue timeout): `Job.claim` decides.
"""

from __future__ import annotations

import queue
import threading
from typing import Callable, Optional

IDLE_SECONDS = 60.0  # a worker without work for this long ends


class Job:
    """Something to run once. `finished` turns True after its answer has been sent."""

    __slots__ = ("_claim", "_waiter", "answered", "finished")

    def __init__(self) -> None:
        self._claim = threading.Lock()
        self._waiter: Optional[threading.Event] = None
        self.answered = False
        self.finished = False

    def claim(self) -> bool:
        """Take the right to end this job; True for exactly one caller."""
        return self._claim.acquire(blocking=False)

    def run(self) -> None:
        """Do the work. Raises nothing."""
        raise NotImplementedError

    def finish(self) -> None:
        """Tell who waits that nothing more will be sent for this job."""
        # Flag first, then look for a waiter; `wait` installs a waiter first, then looks at the flag.
        self.finished = True
        waiter = self._waiter
        if waiter is not None:
            waiter.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the job has finished; only one thread (the connection's handler) ever waits."""
        if self.finished:
            return True
        if self._waiter is None:
            self._waiter = threading.Event()
        if self.finished:
            return True
        return self._waiter.wait(timeout_s)


class Overloaded(Exception):
    """The queue is full."""


class WorkerPool:
    """Runs jobs on at most `workers` threads; at most `queue_size` jobs wait. Thread-safe."""

    def __init__(self, workers: int, queue_size: int, on_error: Callable[[BaseException], None]) -> None:
        self._workers = workers
        self._queue_size = queue_size
        self._on_error = on_error
        self._queue: queue.Queue[Optional[Job]] = queue.Queue()
        self._lock = threading.Lock()
        self._load = 0
        self._threads = 0
        self._started = 0
        self._closed = False

    def submit(self, job: Job) -> bool:
        """Accept a job; returns whether it has to wait for a worker. Raises Overloaded."""
        with self._lock:
            if self._closed or self._load >= self._workers + self._queue_size:
                raise Overloaded
            self._load += 1
            waits = self._load > self._workers
            start = self._load > self._threads and self._threads < self._workers
            if start:
                self._threads += 1
                self._started += 1
                number = self._started
        if start:
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True).start()
        self._queue.put(job)
        return waits

    @property
    def depth(self) -> int:
        """Jobs waiting for a worker."""
        return max(0, self._load - self._workers)

    @property
    def busy(self) -> int:
        """Workers at work."""
        return min(self._load, self._workers)

    def _work(self) -> None:
        while True:
            try:
                job = self._queue.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    # A submit that counted on this thread has raised the load: stay for its job.
                    if self._load >= self._threads:
                        continue
                    self._threads -= 1
                return
            if job is None:
                return
            try:
                if job.claim():
                    job.run()
            except BaseException as error:
                self._on_error(error)
            with self._lock:
                self._load -= 1

    def close(self, timeout_s: float) -> None:
        """Accept nothing more and let the threads end when the queue is empty; waits for at most `timeout_s`."""
        with self._lock:
            self._closed = True
            threads = self._threads
        for _ in range(threads):
            self._queue.put(None)
        for thread in threading.enumerate():
            if thread.name.startswith("worker-") and thread is not threading.current_thread():
                thread.join(timeout_s / max(1, threads))
