"""One stream that several processes write lines to, so that none is torn.

A lock in the kernel (of a file that has no name, and that each process has inherited) is held while lines are written;
a process that dies gives it back. It is waited for at most LOCK_S: lines that might be torn are better than none.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from typing import Optional, TextIO

try:
    import fcntl
except ImportError:  # Windows, where there is one process
    fcntl = None  # type: ignore[assignment]

LOCK_S = 1.0
FIRST_PAUSE_S = 0.0005


def new_lock() -> Optional[int]:
    """The descriptor of a new lock; None where the system gives none."""
    try:
        if hasattr(os, "memfd_create"):
            return os.memfd_create("gateway-output")
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    except OSError:
        return None


class Lock:
    """The lock behind a descriptor (None: there is none, and nothing waits). One thread of each process at a time."""

    def __init__(self, descriptor: Optional[int]) -> None:
        self._descriptor = descriptor

    def take(self, timeout_s: float) -> bool:
        """Whether it is this process's now."""
        if self._descriptor is None:
            return True
        deadline_s, pause_s = time.monotonic() + timeout_s, FIRST_PAUSE_S
        while True:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                if time.monotonic() >= deadline_s:
                    return False
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.02)

    def give(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


class SharedStream(io.TextIOBase):
    """`stream`, with each `write` whole among those of other processes. For one thread at a time."""

    def __init__(self, stream: TextIO, lock: Lock) -> None:
        self._stream = stream
        self._lock = lock

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, text: str) -> int:
        """Write whole lines, and flush them. Raises OSError, ValueError."""
        self._lock.take(LOCK_S)
        try:
            self._stream.write(text)
            self._stream.flush()
        finally:
            self._lock.give()
        return len(text)

    def flush(self) -> None:
        """Nothing is kept."""
