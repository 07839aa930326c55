"""Threads for whatever must block, started on demand.

`Threads` owns its threads and the `queue.Queue` of jobs that wait for one. `_lock` guards the set of threads and
`_idle`; it is never held while a job runs, a thread is started or anybody waits.
"""

from __future__ import annotations

import math
import queue
import threading
from typing import Callable

SPARE_THREADS = 16  # that wait for a job
IDLE_S = 60.0  # a thread without a job for this long ends

Job = Callable[[], object]


def nothing() -> None:
    """No job."""


class Threads:
    """Runs each job at once, on a thread of its own; beyond `most` of them, on the next that is free. Thread-safe.

    A thread without a job waits for another one, for a while. When the system gives no more threads, a job waits for
    the next that is free; after `start` there always is one.
    """

    def __init__(self, name: str, most: float = math.inf) -> None:
        self._name = name
        self._most = most
        self._jobs: queue.Queue[Job] = queue.Queue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._idle = 0  # threads that wait for a job, less the jobs that wait for them
        self._kept = 0  # of those, so many do not end
        self._closed = False

    def start(self) -> None:
        """Start the first thread. Raises RuntimeError when there is not even that."""
        self._kept = 1
        with self._lock:
            thread = self._new_locked(nothing)
        thread.start()

    def run(self, job: Job) -> None:
        """Have `job` run, which raises nothing."""
        thread = None
        with self._lock:
            if self._idle <= 0 and len(self._threads) < self._most:
                thread = self._new_locked(job)
            else:
                self._idle -= 1
        if thread is not None:
            try:
                thread.start()
                return
            except RuntimeError:
                with self._lock:
                    self._threads.discard(thread)
                    self._idle -= 1
        self._jobs.put(job)

    def close(self, timeout_s: float = 0.0) -> None:
        """Let every thread end behind its job, and what waits for one; waits `timeout_s` seconds at most in all."""
        with self._lock:
            self._closed = True
            idle = max(0, self._idle)
            self._idle -= idle
            threads = [thread for thread in self._threads if thread.ident is not None]
        for _ in range(idle):
            self._jobs.put(nothing)
        for thread in threads:
            thread.join(timeout_s / len(threads))

    def _new_locked(self, job: Job) -> threading.Thread:
        thread = threading.Thread(target=self._work, args=(job,), name=self._name, daemon=True)
        self._threads.add(thread)
        return thread

    def _work(self, job: Job) -> None:
        while True:
            job()
            job = nothing  # or what it refers to would live until the next one comes
            with self._lock:
                if self._idle >= SPARE_THREADS or (self._closed and self._idle >= 0):
                    self._threads.discard(threading.current_thread())
                    return
                self._idle += 1
            while True:
                try:
                    job = self._jobs.get(timeout=IDLE_S)
                    break
                except queue.Empty:
                    with self._lock:
                        if self._idle > self._kept:  # else it is one that stays, or a job is on its way to it
                            self._idle -= 1
                            self._threads.discard(threading.current_thread())
                            return
