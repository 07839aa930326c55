"""One thread that waits for many sockets at once, and threads for what must wait for one.

`Loop` owns an epoll object and its thread; a socket's target is a function that is called there when something has
arrived, and that must not block. Registered sockets are reported at each arrival (edge-triggered), so nothing has to be
switched off and on around a request. `Threads` owns threads that are started on demand; its lock guards their count.

Only where the system has epoll; elsewhere each connection has a thread (`server.py`).
"""

from __future__ import annotations

import contextlib
import heapq
import queue
import select
import threading
import time
from collections import deque
from typing import Callable

from gateway.server.wakeup import Wakeup

# Where there is no epoll, this can still be imported.
_READABLE = getattr(select, "EPOLLIN", 0)
_WRITABLE = getattr(select, "EPOLLOUT", 0)
HUNG_UP = getattr(select, "EPOLLRDHUP", 0x2000)  # PyPy 3.9 does not name it
_EACH = _READABLE | HUNG_UP | getattr(select, "EPOLLET", 0)
EVENTS_MAX = 256  # at once
WAIT_MAX_S = 1.0
SPARE_THREADS = 16  # that wait for a job
IDLE_S = 60.0  # a thread without a job for this long ends

Job = Callable[[], None]
Target = Callable[[int], None]  # gets the events that epoll reports, 0 = none


def nothing() -> None:
    """No job."""


class Loop:
    """Calls the targets of sockets that have something to read. `watch`, `forget` and `soon` are thread-safe.

    `after_turn` is called when all that were ready have been, before it waits for more.
    """

    def __init__(self, name: str, on_error: Callable[[BaseException], None], after_turn: Job = nothing) -> None:
        self._epoll = select.epoll()
        self._on_error = on_error
        self._after_turn = after_turn
        self._targets: dict[int, Target] = {}
        self._again: list[tuple[Target, int]] = []
        self._later: list[tuple[float, int, Target]] = []
        self._posted: deque[Target] = deque()
        self._closing = False
        self._wakeup = Wakeup()
        self.watch(self._wakeup.receiver.fileno(), self._call_posted, each=False)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread_id = 0

    def start(self) -> None:
        """Begin to wait."""
        self._thread.start()

    def watch(self, descriptor: int, target: Target, each: bool = True, writing: bool = False) -> None:
        """Call `target` from now on at each arrival, or without `each`, as long as something is there to be taken.

        With `writing`, also when the socket takes something (again): it has been connected.
        """
        self._targets[descriptor] = target
        self._epoll.register(descriptor, (_EACH if each else _READABLE) | (_WRITABLE if writing else 0))

    def unwatch(self, descriptor: int) -> None:
        """Stop watching a socket that stays open."""
        self._targets.pop(descriptor, None)
        with contextlib.suppress(OSError, ValueError):  # it is not watched; the loop has ended
            self._epoll.unregister(descriptor)

    def retarget(self, descriptor: int, target: Target) -> None:
        """Another target for a socket that is watched: for what arrives from now on."""
        self._targets[descriptor] = target

    def look(self, descriptor: int) -> None:
        """Report the socket once more if something is there: who was called for it before may have left it.

        Only on the loop's thread: elsewhere, it may have been closed there, and its number be another's already.
        """
        self._epoll.modify(descriptor, _EACH)

    def watch_writing(self, descriptor: int, writing: bool) -> None:
        """With `writing`, report a watched socket also when it takes something (again); now, if it does.

        Only on the loop's thread, as `look`.
        """
        self._epoll.modify(descriptor, _EACH | (_WRITABLE if writing else 0))

    def forget(self, descriptor: int) -> None:
        """Call nothing for this socket any more. Before it is closed: its number may be another's right after."""
        self._targets.pop(descriptor, None)

    def soon(self, target: Target) -> bool:
        """Call `target` with 0 on the loop's thread. Thread-safe; False: it has ended."""
        self._posted.append(target)
        self._wakeup.wake()
        return not self._closing

    def again(self, target: Target, events: int) -> None:
        """Call `target` with `events` after what has its turn now. Only on the loop's thread."""
        self._again.append((target, events))

    def later(self, delay_s: float, target: Target) -> None:
        """Call `target` after `delay_s` seconds. Only on the loop's thread."""
        heapq.heappush(self._later, (time.monotonic() + delay_s, id(target), target))

    def close(self, timeout_s: float) -> None:
        """End the thread."""
        self._closing = True
        self._wakeup.wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._epoll.close()
        self._wakeup.close()

    def _run(self) -> None:
        self.thread_id = threading.get_ident()
        poll, target_of = self._epoll.poll, self._targets.get
        timeout_s = WAIT_MAX_S
        while not self._closing:
            for descriptor, events in poll(timeout_s, EVENTS_MAX):
                target = target_of(descriptor)
                if target is not None:
                    try:
                        target(events)
                    except Exception as error:
                        self._on_error(error)
            try:
                self._after_turn()
            except Exception as error:
                self._on_error(error)
            timeout_s = self._call_others() if self._again or self._later else WAIT_MAX_S

    def _call_posted(self, events: int) -> None:
        self._wakeup.clear()
        while self._posted:
            target = self._posted.popleft()
            try:
                target(0)
            except Exception as error:
                self._on_error(error)

    def _call_others(self) -> float:
        """Call what is to be called without an arrival; returns the seconds until the next of these."""
        calls, self._again = self._again, []
        now_s = time.monotonic()
        while self._later and self._later[0][0] <= now_s:
            calls.append((heapq.heappop(self._later)[2], 0))
        for target, events in calls:
            try:
                target(events)
            except Exception as error:
                self._on_error(error)
        if self._again:
            return 0.0
        return min(max(0.0, self._later[0][0] - now_s), WAIT_MAX_S) if self._later else WAIT_MAX_S


class Threads:
    """Runs each job at once, on a thread of its own. Thread-safe.

    A thread without a job waits for another one, for a while. When the system gives no more threads, a job waits for
    the next that is free; there always is one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0  # threads that wait for a job, less the jobs on their way to them
        self._closed = False

    def start(self) -> None:
        """Start the first thread. Raises RuntimeError when there is not even that."""
        self._start_thread(nothing)

    def run(self, job: Job) -> None:
        """Have `job` run, which raises nothing."""
        with self._lock:
            idle = self._idle > 0
            if idle:
                self._idle -= 1
        if not idle:
            try:
                self._start_thread(job)
                return
            except RuntimeError:
                with self._lock:
                    self._idle -= 1
        self._jobs.put(job)

    def close(self) -> None:
        """Let every thread end behind its job."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, 0
        for _ in range(idle):
            self._jobs.put(nothing)

    def _start_thread(self, job: Job) -> None:
        threading.Thread(target=self._work, args=(job,), name=self._name, daemon=True).start()

    def _work(self, job: Job) -> None:
        while True:
            job()
            job = nothing  # or what it refers to would live until the next one comes
            with self._lock:
                if self._idle >= SPARE_THREADS or self._closed:
                    return
                self._idle += 1
            while True:
                try:
                    job = self._jobs.get(timeout=IDLE_S)
                    break
                except queue.Empty:
                    with self._lock:
                        if self._idle > 1:  # else it is the last, or a job is on its way to it
                            self._idle -= 1
                            return
