"""Whether something is known of each engine that was there at the start.

`FirstRound` owns the engines that have no result yet, under its lock; who probes them tells it of results.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from typing import Callable

from gateway.routing.engine import Engine

LOOK_S = 0.02  # how often who waits looks whether traffic has vouched for an engine


class FirstRound:
    """The engines that were there at the start, and have no result of a probe yet. Thread-safe.

    Over for good when each has one, has answered a request well or is gone, and at the latest after `limit_s` seconds.
    Of those that are `asked` for something else too, an answer to a request is not enough. While it is `pending` which
    engines there are, it is not over; that has an end of its own.
    """

    def __init__(
        self,
        engines: Iterable[Engine],
        limit_s: float,
        asked: Callable[[Engine], bool] = lambda engine: False,
        pending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._asked = asked
        self._pending = pending
        self._lock = threading.Lock()
        self._awaited = set(engines)
        self._until_s = time.monotonic() + limit_s
        self._over = threading.Event()
        self.over()

    def add(self, engines: Iterable[Engine], limit_s: float) -> None:
        """Wait for these, too, unless it is over: for `limit_s` seconds from now at the latest."""
        if self._over.is_set():
            return
        with self._lock:
            self._awaited.update(engine for engine in engines if not (self._known(engine) or engine.fails))
            self._until_s = max(self._until_s, time.monotonic() + limit_s)

    def done(self, engine: Engine) -> None:
        """Something is known of the engine, or nothing can be learned."""
        if self._over.is_set():
            return
        with self._lock:
            self._awaited.discard(engine)
        self.over()

    def over(self) -> bool:
        """Return whether the round has ended. Never blocks."""
        if self._over.is_set():
            return True
        if self._pending():
            return False
        with self._lock:
            # Without the engines' own lock: a single field, which somebody may set a moment later as well.
            self._awaited = {engine for engine in self._awaited if not self._known(engine)}
            ended = not self._awaited or time.monotonic() >= self._until_s
        if ended:
            self._over.set()
        return ended

    def _known(self, engine: Engine) -> bool:
        return engine.removed or (engine.ok_at_s > -math.inf and not self._asked(engine))

    def wait(self, timeout_s: float, ending: threading.Event) -> bool:
        """Wait until it is over, at most `timeout_s` seconds and while not `ending`; returns whether it is."""
        deadline_s = time.monotonic() + timeout_s
        while not self.over():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or ending.is_set():
                return False
            self._over.wait(min(LOOK_S, left_s))
        return True
