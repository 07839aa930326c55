"""A gate that holds streams in the middle, so that tests need no sleeping.

Owns whether it is released and how many streams have come to it; its condition guards both. What
`changed` does (nudging the connections that wait) happens after the lock is let go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Gate:
    """Stops streams after `after` content events until released. Thread safe.

    A context manager: leaving it releases.
    """

    def __init__(self, after: int, changed: Callable[[], None]) -> None:
        self.after = after
        self._changed = changed
        self._condition = threading.Condition()
        self._released = False
        self._held = 0

    def release(self) -> None:
        """Let the streams that wait here go on, and all later ones pass."""
        with self._condition:
            self._released = True
        self._changed()

    def is_released(self) -> bool:
        """Return whether streams pass."""
        with self._condition:
            return self._released

    def note_held(self) -> None:
        """Count a stream that has sent `after` content events and now waits here."""
        with self._condition:
            self._held += 1
            self._condition.notify_all()

    def wait_for_held(self, count: int, timeout_s: float) -> bool:
        """Wait until `count` streams in all have come to this gate; False after `timeout_s`."""
        with self._condition:
            return self._condition.wait_for(lambda: self._held >= count, timeout_s)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()
