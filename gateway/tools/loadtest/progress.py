"""How far it is, while it runs: one line that is drawn anew on a terminal, a plain line now and then elsewhere.

A thread of its own writes, since a terminal that is held up (Ctrl-S) must not hold up the load: it is handed one line
at a time, and a line that was not written when the next one comes is forgotten. `_lock` guards that line.
"""

from __future__ import annotations

import shutil
import threading
from typing import Optional, TextIO

from gateway.tools.loadtest.durations import NS, shown_ns, three_digits
from gateway.tools.loadtest.measures import Measures

TERMINAL_NS, ELSEWHERE_NS = NS // 4, 10 * NS  # between two lines
_END_S = 1.0  # for what is being written
_ERASED = "\r\x1b[K"


def line(measures: Measures, now_ns: int, duration_s: Optional[float], limit: Optional[int]) -> str:
    """What is known now: of the last whole second, and in all."""
    if now_ns < 0:
        when = f"warm-up, {-now_ns / NS:.0f} s left"
    else:
        when = f"{now_ns / NS:.0f} s" + ("" if duration_s is None else f" of {duration_s:.0f} s")
    done = f", {measures.sent} of {limit}" if limit is not None else ""
    parts = [when + done]
    point = measures.last if now_ns >= 0 else None
    total = measures.total
    if point is not None:
        parts.append(f"{three_digits(point.ok / point.width_s)}/s")
    parts.append(f"{measures.in_flight} in flight")
    parts.append(f"{total.failed} errors" + (f", {total.refused} refused" if total.refused else ""))
    if measures.late:
        parts.append(f"{measures.late} SENT LATE")
    if point is not None:
        p50, p99 = point.latency.unpacked().percentiles((50.0, 99.0))
        parts.append(f"p50 {shown_ns(p50)}, p99 {shown_ns(p99)}")
        if total.tokens:
            parts.append(f"{three_digits(point.tokens / point.width_s)} tokens/s")
    return " | ".join(parts)


class Progress:
    """Writes lines to a stream until it is closed."""

    def __init__(self, stream: TextIO) -> None:
        self.terminal = stream.isatty()
        self.every_ns = TERMINAL_NS if self.terminal else ELSEWHERE_NS
        self._stream = stream
        self._lock = threading.Lock()
        self._line: Optional[str] = None
        self._something = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="progress", daemon=True)
        self._thread.start()

    def show(self, text: str) -> None:
        """Show a line; returns at once."""
        with self._lock:
            self._line = text
        self._something.set()

    def close(self) -> None:
        """Write no more, and take the line off a terminal. Waits for what is being written, for a second at most."""
        self._closed = True
        self._something.set()
        self._thread.join(_END_S)

    def _write(self) -> None:
        try:
            while not self._closed:
                self._something.wait(_END_S)
                self._something.clear()
                with self._lock:
                    text, self._line = self._line, None
                if text is not None and not self._closed:
                    if self.terminal:
                        width = shutil.get_terminal_size().columns - 1
                        text = _ERASED + text[:width]
                    else:
                        text += "\n"
                    self._stream.write(text)
                    self._stream.flush()
            if self.terminal:
                self._stream.write(_ERASED)
                self._stream.flush()
        except (OSError, ValueError):
            pass  # closed, or full: the load goes on
