"""The line to the Redis that gateways share their state in: who asks it, when, and when it is left alone.

Owns the thread `shared`, which alone has the connection: it takes all that waits at once and sends it as one pipeline,
so the scripts of many requests share a round trip. (Answers that are kept have a connection of their own,
`reuse/redisstore.py`: they are large, and no limit is to wait behind them.) The lock, inside the condition `_changed`,
guards the queue, the breaker's state and the counters; it is never held while something is sent, waited for, told, or
logged.

Nobody waits in this module. After a failure, or a reply that took longer than the bound, the breaker has everybody told
at once that Redis cannot be asked; the thread itself tries again, with the jobs that are due anyway (`beat`), so no
request waits for a trial. What is only to be told (`tell`) is kept until then, in the order in which it came.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

from gateway.shared.redislink import Breaker, Command, Link

BEAT_S = 0.2
"""How often the jobs that are due anyway are done; what one gateway publishes others know by then."""
RETRY_S = 1.0
"""Until Redis is tried again."""
BATCH_MAX = 256
WAITING_MAX = 8192
"""Jobs that wait at most. Beyond, who asks is told that Redis cannot be asked, and of what is told the oldest goes."""

Heard = Callable[[Any], None]


class Job(NamedTuple):
    """One command. Neither function may block or wait."""

    command: Callable[[bool], Command]
    """The command; with True the one that needs no script to be known."""
    heard: Optional[Heard] = None
    """Called on the thread `shared` with the reply, never an error; with None when there is none. Once."""
    asks: bool = False
    """Somebody waits for it: it is given up where Redis cannot be asked, not kept."""


class Line:
    """Does jobs at the Redis at `url`. Thread-safe. `start` it, `close` it.

    `timeout_s` bounds each wait for Redis. `beat` gives the jobs that are due, every BEAT_S, and is the trial after a
    failure. `on_change(reason)` hears of each failure that opens the breaker, with why, and with None when Redis
    answers again; both are called on the thread `shared`. `clock` gives monotonic seconds. Raises ConfigurationError
    without redis-py or for a malformed URL.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float,
        beat: Callable[[], Sequence[Job]],
        on_change: Callable[[Optional[str]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.errors = 0
        """Failures: connections, late or faulty replies; a trial that fails counts, too."""
        self._link = Link(url, timeout_s)
        self._timeout_s = timeout_s
        self._beat = beat
        self._on_change = on_change
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._begun_s: Optional[float] = None  # when the batch under way was sent
        self._breaker = Breaker(RETRY_S)
        self._ends_at_s: Optional[float] = None  # by when the thread ends; None: it is not to
        self._last: Sequence[Job] = ()  # what is done last of all
        self._beat_at_s = -float("inf")  # of the thread alone
        self._thread = threading.Thread(target=self._run, name="shared", daemon=True)

    def start(self) -> None:
        """Connect, in the background."""
        self._thread.start()

    @property
    def is_open(self) -> bool:
        """Whether Redis is left alone, after a failure, or because it is late. Takes no lock."""
        begun_s = self._begun_s
        # A batch that hangs (in a name's look-up, say) is late before it has failed.
        late = begun_s is not None and self._clock() - begun_s > self._timeout_s
        return late or self._breaker.retry_at_s is not None

    def ask(self, job: Job) -> bool:
        """Have a job done whose end somebody waits for; False at once, and never heard of, where that cannot be."""
        with self._changed:
            if self.is_open or self._ends_at_s is not None or len(self._waiting) >= WAITING_MAX:
                return False
            self._waiting.append(job)
            if self._begun_s is None:  # else the thread looks again anyway
                self._changed.notify()
        return True

    def tell(self, job: Job) -> None:
        """Have a job done, soon, or when Redis answers again."""
        dropped: Optional[Job] = None
        with self._changed:
            if self._ends_at_s is not None:
                dropped = job
            else:
                if len(self._waiting) >= WAITING_MAX:
                    dropped = self._waiting.popleft()
                self._waiting.append(job)
                if self._begun_s is None and not self.is_open:
                    self._changed.notify()
        if dropped is not None:
            _hear(dropped, None)

    def close(self, timeout_s: float, last: Sequence[Job] = ()) -> None:
        """Do what waits, and then `last`, within `timeout_s` where Redis answers; end the thread. Idempotent."""
        with self._changed:
            if self._ends_at_s is None:
                self._ends_at_s, self._last = self._clock() + timeout_s, last
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                self._link.drop()  # of another thread, but it wakes that from its wait

    # --- the thread shared -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                batch = self._next()
                if not batch:
                    return
                self._do(batch)
        finally:
            self._link.drop()

    def _next(self) -> list[Job]:
        """Wait for something to do; nothing: it is the end."""
        jobs: list[Job] = []
        given_up: list[Job] = []
        beats = False
        with self._changed:
            self._begun_s = None
            while True:
                now_s = self._clock()
                retry_at_s = self._breaker.retry_at_s
                if self._ends_at_s is not None and (retry_at_s is not None or now_s >= self._ends_at_s):
                    given_up = [*self._waiting, *self._last]
                    break
                if self._ends_at_s is not None and not self._waiting:
                    jobs, self._last = list(self._last), ()
                    break
                due_s = self._beat_at_s if retry_at_s is None else retry_at_s
                if now_s >= due_s:
                    self._beat_at_s = now_s + BEAT_S
                    self._begun_s = now_s
                    beats = self._ends_at_s is None
                    break
                if self._waiting and retry_at_s is None:
                    self._begun_s = now_s
                    break
                self._changed.wait(due_s - now_s)
            if self._begun_s is not None and retry_at_s is None:
                jobs = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_MAX))]
            if given_up:
                self._waiting.clear()
        for job in given_up:
            _hear(job, None)
        if beats:
            jobs = [*self._beats(), *jobs]
        return jobs

    def _beats(self) -> Sequence[Job]:
        try:
            return self._beat() or (PING,)
        except Exception:  # whatever it is: this thread must not end by it, nor keep to itself that Redis is there
            return (PING,)

    def _do(self, jobs: Sequence[Job]) -> None:
        left = list(reversed(jobs))  # those not heard of yet, the first at the end
        try:
            reason = self._exchange(jobs, left)
        except Exception as error:
            self._link.drop()
            reason = self._link.in_words(error)
        for job in reversed(left):
            _hear(job, None)
        if reason is None:
            self._recover()
        else:
            self._fail(reason)

    def _exchange(self, jobs: Sequence[Job], left: list[Job]) -> Optional[str]:
        """Send a batch and take the replies. Returns why Redis is to be left alone, None: it is well.

        Raises when the connection cannot be used any longer.
        """
        link = self._link
        began_s = self._clock()
        fault: Optional[Exception] = None
        for reply in link.talk([job.command(False) for job in jobs]):
            job = left.pop()
            if link.lacks_script(reply):
                left.insert(0, job)  # behind those that are still to come
            else:
                fault = _given(job, reply, fault)
        took_s = self._clock() - began_s
        if left:
            for reply in link.talk([job.command(True) for job in reversed(left)]):
                fault = _given(left.pop(), reply, fault)
        if fault is not None:
            return link.in_words(fault)
        return f"an answer took {took_s * 1000:.0f} ms" if took_s > self._timeout_s else None

    def _fail(self, reason: str) -> None:
        with self._changed:
            opens = self._breaker.fail(self._clock())
            self.errors += 1
            given_up = [job for job in self._waiting if job.asks]
            self._waiting = deque(job for job in self._waiting if not job.asks)
        for job in given_up:
            _hear(job, None)
        if opens:
            self._tell_change(reason)

    def _recover(self) -> None:
        if self._breaker.retry_at_s is not None:
            self._tell_change(None)  # first: what is told now comes before what others ask
            with self._changed:
                self._breaker.recover(self._clock())

    def _tell_change(self, reason: Optional[str]) -> None:
        with contextlib.suppress(Exception):  # a reporter that fails must not end this thread
            self._on_change(reason)


PING = Job(lambda whole: (b"PING",))


def _given(job: Job, reply: Any, fault: Optional[Exception]) -> Optional[Exception]:
    """Give a job its reply. Returns the first fault there was."""
    if isinstance(reply, Exception):
        _hear(job, None)
        return fault or reply
    _hear(job, reply)
    return fault


def _hear(job: Job, reply: Any) -> None:
    if job.heard is not None:
        with contextlib.suppress(Exception):
            job.heard(reply)
