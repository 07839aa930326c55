"""Answers that several gateways share in Redis: look-ups, answers to be kept, and when Redis is left alone.

Owns the thread `redis`, which alone has the connection for look-ups and answers: it takes all that waits at once and
sends it as one pipeline, so many requests share a round trip. The lock, inside the condition `_changed`, guards the two
queues, the breaker's state, and the counters; it is never held while something is sent, waited for, or logged. What
comes from other gateways is read with each batch (`redisnews.py`).

A request never waits in this module and never fails by it: whoever has a `Lookup` bounds the wait. After a failure, or
a look-up that took too long, the breaker has everything skipped, and the thread itself tries again: no client ever
waits for a trial. No text and no key holds the URL's password, or a scope's or model's name.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Callable, NamedTuple, Optional

from gateway.reuse.redisentries import Asked, Doomed, putting, remove, size_of
from gateway.reuse.redisnews import News
from gateway.reuse.stored import Chosen, Stored
from gateway.shared.redislink import Breaker, Command, Link
from gateway.steps import Flag

__all__ = ["Lookup", "RedisStore", "RedisUnavailable"]

GETS_MAX = 4096
PUTS_MAX = 1024
PUTS_MAX_BYTES = 32 << 20
BATCH_GETS = 128
BATCH_PUT_BYTES = 256 << 10  # so that no look-up waits for many answers to be sent


class RedisUnavailable(Exception):
    """Redis could not be asked, or not to the end; the text says why. `removed`: how many went before that."""

    def __init__(self, text: str, removed: int) -> None:
        super().__init__(text)
        self.removed = removed


class Lookup:
    """One look-up under way. `flag` is set from the thread `redis`; from then on `found` is its answer, None: nothing
    was found, or Redis could not say. Who does not want to wait any longer forgets it."""

    __slots__ = ("asked", "asked_s", "flag", "found")

    def __init__(self, asked: Asked, asked_s: float) -> None:
        self.flag = Flag()
        self.found: Optional[Stored] = None
        self.asked = asked
        self.asked_s = asked_s

    def end(self) -> None:
        """Wake who waits, unless that has been done; whatever comes of it."""
        if not self.flag.is_set():
            with contextlib.suppress(Exception):
                self.flag.set()


class _Batch(NamedTuple):
    """What one pipeline carries; with neither it is a trial, or reads what other gateways have asked."""

    gets: Sequence[Lookup]
    puts: Sequence[Stored]


class RedisStore:
    """Keeps answers in the Redis at `url` for `ttl_s` seconds each. Thread-safe; connects in the background.

    `timeout_s` bounds each wait for Redis; a look-up that takes longer opens the breaker, as does every failure: for
    1 s, doubled each time it fails again (within 30 s of having recovered, too) up to 30 s. `log(level, "redis",
    state=, reason=)` hears once of each opening and closing. `on_vector`, called on the thread `redis`, hears of every
    answer with a vector that another gateway has put within the last `ttl_s` or later, its `body` empty; None: they are
    not read. `clock` gives monotonic seconds. Raises ConfigurationError without redis-py or for a malformed URL.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float,
        ttl_s: float,
        log: Callable[..., None],
        on_vector: Optional[Callable[[Stored], None]] = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.skipped = 0
        """Look-ups and answers not sent: the breaker was open, a queue full, or the store closed."""
        self.errors = 0
        """Failures: connections, late or faulty replies; a trial that fails counts, too."""
        self._link = Link(url, timeout_s)
        self._url = url
        self._timeout_s = timeout_s
        self._ttl_ms = max(1, int(ttl_s * 1000))
        self._log = log
        self._clock = clock
        self._changed = threading.Condition()
        self._gets: deque[Lookup] = deque()
        self._puts: deque[Stored] = deque()
        self._put_bytes = 0
        self._under_way: Sequence[Lookup] = ()
        self._begun_s: Optional[float] = None  # when the batch under way was sent
        self._breaker = Breaker()
        self._ends_at_s: Optional[float] = None  # by when the thread ends; None: it is not to
        # Of the thread redis alone:
        self._first = True
        self._news = News(self._ttl_ms, on_vector)
        self._thread = threading.Thread(target=self._run, name="redis", daemon=True)
        self._thread.start()

    def get(self, *keys: bytes, near: bytes = b"") -> Optional[Lookup]:
        """Ask for the first of `keys` that Redis has, else for what was put last with this `near` (b"": not that).

        None at once while Redis is to be left alone, or too many ask. Never blocks.
        """
        lookup = Lookup(Asked(keys, near), self._clock())
        with self._changed:
            if self._refuses(lookup.asked_s) or len(self._gets) >= GETS_MAX or not (keys or near):
                self.skipped += 1
                return None
            self._gets.append(lookup)
            self._changed.notify()
        return lookup

    def put(self, stored: Stored) -> None:
        """Have an answer kept, soon. Never blocks; dropped and counted when `get` would give None."""
        size = size_of(stored)
        now_s = self._clock()
        with self._changed:
            full = len(self._puts) >= PUTS_MAX or self._put_bytes + size > PUTS_MAX_BYTES
            if self._refuses(now_s) or full:
                self.skipped += 1
                return
            self._puts.append(stored)
            self._put_bytes += size
            self._changed.notify()

    def clear(self, chosen: Chosen, timeout_s: float) -> int:
        """Remove the answers that are chosen, those that are just so old included; of all, pointers and vectors, too.

        Returns how many were removed. Blocks, on a connection of its own, for about `timeout_s`, at most twice that;
        raises RedisUnavailable when it could not be done, or not to the end.
        """
        link = Link(self._url, timeout_s)
        removed = 0
        try:
            for count in remove(link, Doomed.of(chosen), time.monotonic() + timeout_s):
                removed += count
        except Exception as error:
            raise RedisUnavailable(link.in_words(error), removed) from None
        finally:
            link.drop()
        return removed

    def close(self, timeout_s: float) -> None:
        """Give up every look-up, send the answers that wait, and end the thread: within `timeout_s`. Idempotent."""
        with self._changed:
            self._ends_at_s = self._clock() + timeout_s
            given_up = [*self._gets, *self._under_way]
            self.skipped += len(self._gets)
            self._gets.clear()
            self._changed.notify_all()
        _end_all(given_up)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._link.drop()  # of another thread, but it wakes that from its wait

    def _refuses(self, now_s: float) -> bool:
        """Whether nothing is to be sent now. With the lock."""
        retry_at_s = self._breaker.retry_at_s
        if retry_at_s is not None:
            if now_s >= retry_at_s:
                self._changed.notify()
            return True
        # A batch that hangs (in a name's look-up, say) is late before it has failed.
        return self._ends_at_s is not None or (self._begun_s is not None and now_s - self._begun_s > self._timeout_s)

    # --- the thread redis --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                batch = self._next()
                if batch is None:
                    return
                self._serve(batch)
        finally:
            self._link.drop()

    def _next(self) -> Optional[_Batch]:
        """Wait for something to do; None: nothing any more."""
        with self._changed:
            self._under_way, self._begun_s = (), None
            while True:
                now_s = self._clock()
                retry_at_s = self._breaker.retry_at_s
                idle = retry_at_s is not None or not self._puts
                if self._ends_at_s is not None and (idle or now_s >= self._ends_at_s):
                    self.skipped += len(self._puts)
                    self._puts.clear()
                    return None
                wait_s = None if retry_at_s is None else retry_at_s - now_s
                work = self._gets or self._puts or self._news.behind or self._first
                if (wait_s is None and work) or (wait_s is not None and wait_s <= 0):
                    self._begun_s = now_s
                    batch = self._take()
                    self._under_way = batch.gets
                    return batch
                self._changed.wait(wait_s)

    def _take(self) -> _Batch:
        """All that waits, up to a batch's bounds. With the lock."""
        gets = [self._gets.popleft() for _ in range(min(len(self._gets), BATCH_GETS))]
        puts, size = _taken(self._puts)
        self._put_bytes -= size
        return _Batch(gets, puts)

    def _serve(self, batch: _Batch) -> None:
        self._first = False
        try:
            reason = self._exchange(batch)
        except Exception as error:  # whatever it is: this thread must not end by it
            self._link.drop()
            reason = self._link.in_words(error)
        finally:
            _end_all(batch.gets)
        if reason is None:
            self._recover()
        else:
            self._fail(reason)

    def _exchange(self, batch: _Batch) -> Optional[str]:
        """Send a batch and take the replies, look-ups first. Returns why Redis is to be left alone, None: it is well.

        Raises when the connection cannot be used any longer.
        """
        link = self._link
        gets = [lookup.asked.command() for lookup in batch.gets]
        puts, faulty = _putting(batch.puts, self._ttl_ms, self._news.origin)
        self._count(faulty)
        news = self._news.commands()
        replies = link.talk([*gets, *puts, *news] or [(b"PING",)])
        faults, without_script = self._settle(batch.gets, replies)
        answered_s = self._clock()
        faults += self._faults_of_puts(itertools.islice(replies, len(puts)))
        rest = list(replies)
        if without_script:
            again = link.talk([lookup.asked.command(whole_script=True) for lookup in without_script])
            faults += self._settle(without_script, again)[0]
            answered_s = self._clock()
        if news:
            self._hear(rest[0])
        else:
            faults += [reply for reply in rest if isinstance(reply, Exception)]
        if faults:
            return link.in_words(faults[0])
        took_s = max((answered_s - lookup.asked_s for lookup in batch.gets), default=0.0)
        return f"an answer took {took_s * 1000:.0f} ms" if took_s > self._timeout_s else None

    def _settle(self, lookups: Sequence[Lookup], replies: Iterator[Any]) -> tuple[list[Exception], list[Lookup]]:
        """Give look-ups their replies. Returns what is wrong, and those for which Redis does not know the script."""
        faults: list[Exception] = []
        without_script: list[Lookup] = []
        for lookup in lookups:
            reply = next(replies)
            if self._link.lacks_script(reply):
                without_script.append(lookup)
                continue
            if isinstance(reply, Exception):
                faults.append(reply)
            else:
                lookup.found = lookup.asked.found_in(reply)
            lookup.end()
        return faults, without_script

    def _faults_of_puts(self, replies: Iterator[Any]) -> list[Exception]:
        """What is wrong with Redis. What is wrong with one answer is only counted."""
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        faults = [error for error in errors if not self._link.is_of_one_command(error)]
        self._count(len(errors) - len(faults))
        return faults

    def _hear(self, reply: Any) -> None:
        """Have the vectors told of. Where they cannot be read that is counted and said, and opens nothing."""
        error = self._news.hear(reply)
        if error is not None:
            self._count(1)
            self._tell("vectors are not read", self._link.in_words(error))

    def _count(self, errors: int) -> None:
        with self._changed:
            self.errors += errors

    def _fail(self, reason: str) -> None:
        with self._changed:
            opens = self._breaker.fail(self._clock()) and self._ends_at_s is None
            self.errors += 1
            given_up = list(self._gets)
            self.skipped += len(self._gets) + len(self._puts)
            self._gets.clear()
            self._puts.clear()
            self._put_bytes = 0
        _end_all(given_up)
        if opens:
            self._tell("open", reason)

    def _recover(self) -> None:
        with self._changed:
            if not self._breaker.recover(self._clock()):
                return
        self._news.listen()
        self._tell("closed", "it answers again")

    def _tell(self, state: str, reason: str) -> None:
        with contextlib.suppress(Exception):  # a reporter that fails must not end this thread
            self._log("warning", "redis", state=state, reason=reason)


def _end_all(lookups: Sequence[Lookup]) -> None:
    for lookup in lookups:
        lookup.end()


def _taken(waiting: deque[Stored]) -> tuple[list[Stored], int]:
    """The first of what waits, at least one and up to a batch's bound, taken out; and about how many bytes it takes."""
    puts: list[Stored] = []
    size = 0
    while waiting and (not puts or size + size_of(waiting[0]) <= BATCH_PUT_BYTES):
        puts.append(waiting.popleft())
        size += size_of(puts[-1])
    return puts, size


def _putting(puts: Sequence[Stored], ttl_ms: int, origin: bytes) -> tuple[list[Command], int]:
    """What keeps the answers, and how many cannot be written: each of these fails alone."""
    commands: list[Command] = []
    faulty = 0
    for stored in puts:
        try:
            commands += list(putting(stored, ttl_ms, origin))
        except Exception:
            faulty += 1
    return commands, faulty
