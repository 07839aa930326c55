"""A stream whose lines become lines of the log, for those who print to stderr while nobody may be reading that.

Owns what each thread has written of a line that is not complete yet (thread-local, so there is no lock). Never blocks.
"""

from __future__ import annotations

import io
import threading
from typing import Callable

LINE_MAX = 8192
"""Characters after which a line is taken as complete."""


class DivertedStream(io.TextIOBase):
    """What is written becomes log lines with the event `stderr`, one for each line. Thread-safe."""

    def __init__(self, log: Callable[..., None]) -> None:
        self._log = log
        self._mine = threading.local()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Keep `text`, and log every line that is complete with it."""
        *lines, rest = (getattr(self._mine, "text", "") + text).split("\n")
        if len(rest) > LINE_MAX:
            lines.append(rest)
            rest = ""
        self._mine.text = rest
        for line in lines:
            if line.strip():
                self._log("warning", "stderr", text=line)
        return len(text)
