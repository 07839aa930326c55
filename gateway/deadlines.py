"""Deadlines for threads that block on sockets.

A socket's own timeout is per read and costs a poll() and two more GIL hand-overs around every call. Here sockets block,
and one thread looks ten times a second at everything under way and ends what is past its time by shutting its socket
down, which wakes the blocked thread.

Owns the set of watched items and the thread that walks it. The set is a dict whose single operations are atomic;
there is no lock. It never blocks: `expire()` of an item only flags it and shuts a socket down.
"""

from __future__ import annotations

import threading
import time
import traceback
from typing import Callable, Optional, Protocol


class Expirable(Protocol):
    """Something under a deadline (monotonic seconds; infinity = none)."""

    deadline_s: float

    def expire(self) -> None:
        """End it. Called from the watchdog's thread, at most every tick while it is watched; must not block."""


class Watchdog:
    """Ends what outlives its deadline, at most `tick_s` late. Thread-safe."""

    def __init__(self, name: str, tick_s: float = 0.1, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._tick_s = tick_s
        self._clock = clock
        self._items: dict[Expirable, None] = {}
        self._stop = threading.Event()
        self._thread: Optional[threading.Thread] = None

    def start(self) -> None:
        """Start the watching thread; nothing expires before."""
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def watch(self, item: Expirable) -> None:
        """Watch `item` until `forget`. Its `deadline_s` may change at any time."""
        self._items[item] = None

    def forget(self, item: Expirable) -> None:
        """Stop watching `item`; a call of `expire()` may be under way on the watchdog's thread."""
        self._items.pop(item, None)

    def __len__(self) -> int:
        return len(self._items)

    def tick(self) -> None:
        """Expire what is due now. Called by the thread; tests call it themselves."""
        now_s = self._clock()
        try:
            items = list(self._items)
        except RuntimeError:  # an interpreter whose list(dict) is not atomic: the next tick sees it all
            return
        for item in items:
            if item.deadline_s <= now_s:
                try:
                    item.expire()
                except Exception:  # one broken item must not leave all the others without a deadline
                    traceback.print_exc()

    def close(self) -> None:
        """Stop watching; joins the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stop.wait(self._tick_s):
            self.tick()
