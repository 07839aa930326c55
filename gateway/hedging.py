"""What a try gives, and two tries at once: the first to answer wins, the other one is ended.

A `Race` is shared by the thread that made the first attempt, the one that makes the second, and the watchdog that tells
when it is time for that; its lock guards who has won. The loser is aborted after that, and an answer that comes second
gives its connection and its place back. It chooses no engine and asks none.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Optional, Union

from gateway.errors import GatewayError
from gateway.routing.engine import Engine
from gateway.routing.pool import ModelPool
from gateway.routing.retry import CANCELLED, Outcome
from gateway.steps import Event, Steps
from gateway.upstream import answers
from gateway.upstream.attempt import Attempt
from gateway.upstream.stream import EngineStream

LOSER_S = 0.05  # how long the answer may wait for a cancelled second attempt to end; it takes a millisecond


class Answer:
    """A complete answer. `body` is for the client: JSON, or for a streaming call all events at once. (A large one is a
    bytearray, so that it is held once; nobody changes it.) `parsed` is the complete answer that it was made of, with
    the engine's own id and figures; None: it is large. `media_type`: of what has been passed on as it was; b"": it is
    one of these."""

    __slots__ = ("body", "media_type", "parsed", "usage")

    def __init__(
        self,
        body: Union[bytes, bytearray],
        usage: answers.Usage,
        parsed: Optional[dict[str, Any]] = None,
        media_type: bytes = b"",
    ) -> None:
        self.body = body
        self.usage = usage
        self.parsed = parsed
        self.media_type = media_type


class Tried:
    """How one try ended: `result` is the answer, the open stream, or why there is neither."""

    __slots__ = ("engine", "pool", "result")

    def __init__(self, result: Union[Answer, EngineStream, Outcome], pool: ModelPool, engine: Engine) -> None:
        self.result = result
        self.pool = pool
        self.engine = engine


class Race:
    """The first of two attempts to answer wins; the other one is ended. Watched until it is time for the second."""

    def __init__(self, first: Attempt, deadline_s: float, second: Callable[[], Optional[Tried]]) -> None:
        self.deadline_s = deadline_s
        self.rival: Optional[Attempt] = None
        self._first = first
        self._second = second
        self._lock = threading.Lock()
        self._started = False
        self._closed = False
        self._winner: Optional[Tried] = None
        self._done = threading.Event()

    def enter(self, rival: Attempt) -> Attempt:
        """`rival` is the second attempt from now on; ended at once when the race is over already."""
        self.rival = rival
        with self._lock:
            closed = self._closed
        if closed:
            rival.abort("cancelled")
        return rival

    def expire(self) -> None:
        """Time for the second attempt (on the watchdog's thread, which must not block)."""
        with self._lock:
            if self._started or self._closed:
                return
            self._started = True
        self.deadline_s = float("inf")
        try:
            threading.Thread(target=self._run_second, name="hedge", daemon=True).start()
        except RuntimeError:  # the system gives no more threads: no second attempt
            self._done.set()

    def _run_second(self) -> None:
        try:
            tried = self._second()
            if tried is not None and _is_final(tried):
                with self._lock:
                    late = self._closed
                    if not late:
                        self._closed = True
                        self._winner = tried
                if late:
                    _discard(tried)
                else:
                    self._first.abort("cancelled")
        except GatewayError:
            pass  # the client has left, or the gateway itself has run short of something: no second answer
        finally:
            self._done.set()  # whatever went wrong here, nobody waits for it

    def close(self) -> None:
        """Nobody waits for an answer any more; one that is there is dropped.

        `_run_second` looks at the flag and stores its answer under the same lock: either it is found here, or dropped
        there.
        """
        with self._lock:
            self._closed = True
            winner, self._winner = self._winner, None
        if self.rival is not None:
            self.rival.abort("cancelled")
        if winner is not None:
            _discard(winner)

    def finish(self, first: Tried, deadline_s: float) -> Steps[Tried]:
        """The try that counts, when the first attempt has ended."""
        answered = _is_final(first)
        with self._lock:
            if answered and not self._closed:
                self._closed = True
                self._winner = first
            waits = self._started and self._winner is None
            if not self._started:
                self._closed = True
        try:
            if waits:
                yield Event(self._done, max(0.0, deadline_s - time.monotonic()) + 1.0)
            with self._lock:
                self._closed = True
                winner = self._winner or first
            if winner is first and self.rival is not None:
                self.rival.abort("cancelled")
                yield Event(self._done, LOSER_S)  # what became of it belongs into this request's report
        except BaseException:
            _discard(first)  # whoever has won: nobody takes it
            raise
        if winner is not first and answered:
            _discard(first)
        return winner


def _is_final(tried: Tried) -> bool:
    """Return whether a try has an answer: a rejection is one too, since every engine would give it."""
    return not isinstance(tried.result, Outcome) or tried.result.kind == "rejected"


def _discard(tried: Tried) -> None:
    """An answer that came second: a stream gives its connection and its place back."""
    if isinstance(tried.result, EngineStream):
        tried.result.close(CANCELLED)
