"""Who was refused by which engine: how far one caller's 403s may take engines out.

A 403 may be the engine's (a key without the rights) or the request's (a prompt that nobody will answer), and does not
say which. So a caller's word takes one engine out; what others answer the same caller meanwhile is held against nobody,
and that caller's next requests are asked elsewhere first. An engine that refuses everybody is out with the second
caller. Owns that memory, a minute long; `_lock` guards it. Time comes in through `clock` (monotonic seconds).
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Callable

from gateway.routing.engine import Engine
from gateway.routing.retry import MISCONFIGURED_S

CALLERS_MAX = 4096  # beyond it nobody new is believed, until a minute has passed


class _Refused:
    """What one caller was told: the engine that its word has taken out, and until when each engine is avoided."""

    __slots__ = ("believed", "until_s")

    def __init__(self, engine: Engine) -> None:
        self.believed = engine
        self.until_s: dict[Engine, float] = {}


class Accusers:
    """Callers that engines have answered 403 within the last minute. Thread-safe; every call returns at once.

    A caller is an opaque name; `told` is False as long as there is none.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._refused: dict[str, _Refused] = {}
        self.told = False
        """Whether `avoided` may have something to say."""

    def believed(self, caller: str, engine: Engine) -> bool:
        """Whether the 403 that `engine` has just answered `caller` takes it out; remembered either way.

        True unless this caller's word has taken out another engine within the last minute.
        """
        with self._lock:
            now_s = self._clock()
            refused = self._refused.get(caller)
            if refused is None:
                if len(self._refused) >= CALLERS_MAX:
                    self._prune_locked(now_s)
                    if len(self._refused) >= CALLERS_MAX:
                        return False
                refused = self._refused[caller] = _Refused(engine)
                self.told = True
            elif refused.until_s.get(refused.believed, now_s) <= now_s:
                refused.believed = engine
            refused.until_s[engine] = now_s + MISCONFIGURED_S
            return refused.believed is engine

    def avoided(self, caller: str) -> tuple[Engine, ...]:
        """The engines that have answered this caller 403 within the last minute."""
        with self._lock:
            refused = self._refused.get(caller)
            if refused is None:
                return ()
            now_s = self._clock()
            refused.until_s = {engine: until_s for engine, until_s in refused.until_s.items() if until_s > now_s}
            if not refused.until_s:
                del self._refused[caller]
                self.told = bool(self._refused)
            return tuple(refused.until_s)

    def forget(self, engines: Collection[Engine]) -> None:
        """Nothing is held against these any more: their key has changed, or they are gone."""
        with self._lock:
            for refused in self._refused.values():
                for engine in engines:
                    refused.until_s.pop(engine, None)
            self._prune_locked(self._clock())

    def _prune_locked(self, now_s: float) -> None:
        self._refused = {
            caller: refused
            for caller, refused in self._refused.items()
            if any(until_s > now_s for until_s in refused.until_s.values())
        }
        self.told = bool(self._refused)
