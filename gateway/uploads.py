"""The body of a request that is passed on while it comes.

An `Upload` is between the thread that receives from the client, which puts, and the one that sends to the engine, which
takes; its lock guards what is between them, and is held for no call of anybody else's. It knows no socket. What comes
is held until it is taken, and the receiving side stops at `FULL_BYTES` (back-pressure).
"""

from __future__ import annotations

import threading
from typing import Callable, Optional

from gateway.steps import Flag, Flagged, Steps

FULL_BYTES = 262_144
LOOK_S = 5.0  # a timer of the loop holds the request that long, even if it has been woken before


class Upload:
    """What is still to come of a body. `put`, `end`, `fail` are for one thread, `take` for another.

    `on_room`: called by who takes, when what had been full is so no more; it must not block.
    """

    __slots__ = ("_ended", "_error", "_flag", "_lock", "_on_room", "_parts", "_size_bytes", "spent")

    def __init__(self, on_room: Callable[[], None]) -> None:
        self._on_room = on_room
        self._lock = threading.Lock()
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self._ended = False
        self._error: Optional[Exception] = None
        self._flag: Optional[Flag] = None  # who waits to take
        self.spent = False  # set by who takes to send: the body cannot be sent from its beginning any more

    @property
    def full(self) -> bool:
        """Whether no more is to be received for now."""
        return self._size_bytes >= FULL_BYTES

    @property
    def over(self) -> bool:
        """Whether all of it has come, or nothing more will."""
        return self._ended or self._error is not None

    def put(self, data: bytes) -> None:
        """More has come."""
        if data:
            with self._lock:
                self._parts.append(data)
                self._size_bytes += len(data)
            self._wake()

    def end(self) -> None:
        """All of it has come."""
        self._ended = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """Nothing more comes: who takes gets `error`, and nothing of what has come. The first one stays."""
        if not self.over:
            self._error = error
            self._wake()

    def take(self) -> Steps[bytes]:
        """All that has come since, and at least something; b"" at the end. Raises what it has failed with.

        `_wake` looks for who waits after there is something, this looks for something after it has said that it waits:
        one of the two sees the other.
        """
        while True:
            flag = Flag()
            self._flag = flag
            if self._error is not None:
                raise self._error
            ended = self._ended  # first: what is put before the end is there when the end is
            with self._lock:
                parts, self._parts = self._parts, []
                size_bytes, self._size_bytes = self._size_bytes, 0
            if parts:
                if size_bytes >= FULL_BYTES:
                    self._on_room()
                return b"".join(parts)
            if ended:
                return b""
            yield Flagged(flag, LOOK_S)

    def _wake(self) -> None:
        flag = self._flag
        if flag is not None:
            flag.set()
