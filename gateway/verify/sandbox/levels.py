"""The levels of isolation, in their order, and how a run is ended from outside.

A `Stop` has a lock that guards whether that has happened and whom to tell; it is never held while anybody is told.
Nothing here starts a process.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Callable, Optional

from gateway.verify.sandbox.bubblewrap import Bubblewrap
from gateway.verify.sandbox.container import Container
from gateway.verify.sandbox.job import Level, Limits, Run
from gateway.verify.sandbox.namespaces import NamespacesLevel
from gateway.verify.sandbox.process import ProcessLevel

CANCELLED = "cancelled"
MOST_SPARE = 4  # jails of a level that wait for jobs: some 10 MiB each


def nothing_ran(error: str, isolation: str = "") -> Run:
    """The result of a job that was not run, or of whose run nothing can be said."""
    return Run("setup", None, b"", b"", False, b"", 0.0, isolation, error)


class Stop:
    """Ends one run from outside. Thread-safe; `set` may be called again, and never blocks if `kill` does not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._set = False
        self._kill: Optional[Callable[[], None]] = None

    @property
    def is_set(self) -> bool:
        """Return whether the run is to end."""
        return self._set

    def set(self) -> None:
        """End the run: now, or as soon as it has begun."""
        with self._lock:
            self._set = True
            kill, self._kill = self._kill, None
        if kill is not None:
            kill()

    def attach(self, kill: Callable[[], None]) -> None:
        """Have `kill` called, once: when the run is to end, at once if that is already known. It raises nothing."""
        with self._lock:
            if not self._set:
                self._kill = kill
                return
        kill()

    def detach(self) -> None:
        """The run has ended: nobody is told any more, though a call may be under way."""
        with self._lock:
            self._kill = None


def all_levels(
    source_by_harness: Mapping[str, str], runtime: str, image: str, limits: Limits, concurrency: int
) -> list[Level]:
    """Every level, none of them tried or started yet. `limits` are the most that any job will ask for."""
    spare = min(concurrency, MOST_SPARE)
    return [
        Container(source_by_harness, runtime, image, limits, spare),
        Bubblewrap(source_by_harness, limits.disk_bytes, spare),
        NamespacesLevel(source_by_harness, spare, limits.disk_bytes),
        ProcessLevel(source_by_harness),
    ]
