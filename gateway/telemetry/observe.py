"""Takes what requests report and turns it into numbers and log lines, away from their threads.

`Telemetry` owns two queues and the thread "telemetry". Entries go through two steps with an owner
each: *counting* (metrics and other observers), by whoever holds the drain lock, and *writing* log
lines, by the telemetry thread alone. So a scrape can have everything counted while the stream is
blocked. The drain lock guards the taking of entries and the calls of observers; the stream is
never written to under it. A request's own thread only appends. A thread that has asked an engine
and has nothing else to do may `help`: what it does then delays nobody, while the telemetry thread,
whenever it comes, takes the interpreter's lock from somebody (measured at one connection: 99th
percentile 0.57 -> 0.43 ms).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Callable, Optional, TextIO, Union

from gateway.clock import unix_s
from gateway.telemetry.events import LogRecord, RequestEvent
from gateway.telemetry.logs import LEVELS, format_json, of_process, request_level
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.textlines import Look, TextLines

Observer = Callable[[Sequence[RequestEvent]], None]
_Entry = Union[RequestEvent, LogRecord]

MAX_WAITING_LINES = 100_000
"""Lines kept for a stream that does not take them, some 60 MB; beyond, lines are dropped."""
MAX_WAITING_EVENTS = 10_000
"""Uncounted events at which, while the stream is blocked, a request's thread counts them."""
DRAIN_INTERVAL_S = 0.05
"""Between two drains under load: 20 wake-ups a second, however many requests there are."""
QUIET_DRAINS = 20
"""Empty drains (a second) after which the thread stops polling."""
ASLEEP_S = 5.0
AT_ONCE = 32
"""Entries counted before others have their turn."""
WRITTEN_AT_ONCE = 128
"""Lines, some 60 KB."""
PAUSE_S = 0.0002
"""Between two turns: the interpreter's lock is taken back before anybody wakes up, unless its holder sleeps."""
STUCK_S = 1.0
"""Without a line written at the end: the stream is taken for blocked."""
PAUSES_BELOW = 2_000
"""Entries waiting; with more of them, catching up comes first."""

_AWAKE, _ASLEEP, _WRITING = 0, 1, 2


class Telemetry:
    """Counts and logs finished requests on one thread of its own, started here.

    `stream` gets the lines, `log_format` is "json" or "text" (which is shown as `look` says), `level` (debug,
    info, warning or error) the least level written; a request that took longer than `slow_s` (0: none) is a
    warning. `process`: this one's number among several, which each line names. Every observer is called with
    each batch of RequestEvents, after `metrics`, one batch at a time; it must not block, nor call `flush` or
    `close`. One that raises is reported in the log once, and the others still get the batch.
    Raises ValueError for an unknown format or level. All methods are for any thread.
    """

    def __init__(
        self,
        stream: TextIO,
        log_format: str,
        level: str,
        metrics: GatewayMetrics,
        observers: Sequence[Observer] = (),
        *,
        slow_s: float = 0.0,
        look: Look = Look(),  # noqa: B008 - immutable
        process: Optional[int] = None,
    ) -> None:
        if log_format not in ("json", "text"):
            raise ValueError(f"log format {log_format!r} is neither json nor text")
        if level not in LEVELS:
            raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
        self._stream = stream
        self._slow_s = slow_s
        self._format: Callable[[_Entry], str] = format_json
        if log_format == "text":
            self._format = TextLines(look, slow_s)
        elif slow_s:
            self._format = partial(format_json, slow_s=slow_s)
        if process is not None:
            self._format = of_process(self._format, process, log_format)
        self._least = LEVELS[level]
        self._dropped_total = metrics.log_lines_dropped
        self._observers: tuple[Observer, ...] = (metrics.observe, *observers)
        self._failed_observers: set[int] = set()
        self._waiting: deque[_Entry] = deque()
        self._lines: deque[Union[_Entry, str]] = deque()  # as text where somebody has helped
        self._reported_drops: float = 0
        self._written = 0  # batches
        self._drain_lock = threading.Lock()
        self._state = _AWAKE
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def emit(self, event: RequestEvent) -> None:
        """Hands over a finished request; 0.15 µs, never blocks, never raises."""
        self._waiting.append(event)
        if self._state:
            self._attend()

    def log(self, level: str, event: str, **fields: object) -> None:
        """Hands over a line of the gateway's own log; KeyError when `level` is unknown."""
        if LEVELS[level] >= self._least:
            self._waiting.append(LogRecord(unix_s(), level, event, fields))
            if self._state:
                self._attend()

    def help(self, most: int) -> None:
        """Counts up to `most` waiting entries and makes lines of them, unless another thread is at it. Never blocks."""
        if self._waiting and self._drain_lock.acquire(blocking=False):
            try:
                self._count_locked(most, as_text=True)
            finally:
                self._drain_lock.release()
            self._wake_sleeper()

    def flush(self, timeout_s: float) -> bool:
        """Has everything emitted before this call counted (not: written) when it returns True.

        False when another drain did not end within `timeout_s`.
        """
        if not self._drain_lock.acquire(timeout=timeout_s):
            return False
        try:
            self._count_locked()
        finally:
            self._drain_lock.release()
        self._wake_sleeper()
        return True

    def close(self, timeout_s: float) -> bool:
        """Counts and writes everything left and ends the thread; False when that took too long.

        That is `timeout_s`, or a second in which the stream took nothing. Everything emitted is
        then still counted, but a blocked stream keeps its lines (and the daemon thread). May be
        called again, e.g. to write what was logged since.
        """
        deadline_s = time.monotonic() + timeout_s
        self._closing = True
        self._wake.set()
        self._join(self._thread, deadline_s)
        counted = self.flush(max(deadline_s - time.monotonic(), 0.0))
        if not self._thread.is_alive() and self._lines:
            # On a thread again: the stream may block now, and whoever closes must not.
            late = threading.Thread(target=self._write, name="telemetry", daemon=True)
            late.start()
            self._join(late, deadline_s)
            if late.is_alive():
                self._thread = late
        return counted and not self._thread.is_alive()

    def _join(self, thread: threading.Thread, deadline_s: float) -> None:
        """Waits for the end of a thread that writes, as long as it does."""
        written = -1
        while thread.is_alive() and written != self._written and time.monotonic() < deadline_s:
            written = self._written
            thread.join(min(STUCK_S, max(deadline_s - time.monotonic(), 0.0)))

    def _wake_sleeper(self) -> None:
        if self._state == _ASLEEP:
            self._wake.set()  # the lines are no longer where the sleeper looked for them

    def _attend(self) -> None:
        """The rare half of `emit`: wakes the sleeper, or counts in place of a blocked writer."""
        if self._state == _ASLEEP:
            self._wake.set()
        elif len(self._waiting) > MAX_WAITING_EVENTS and self._drain_lock.acquire(blocking=False):
            # Without this, memory would grow with every request until the stream moves on.
            try:
                self._count_locked()
            finally:
                self._drain_lock.release()

    def _run(self) -> None:
        quiet_drains = 0
        while not self._closing:
            quiet_drains = 0 if self._drain() else quiet_drains + 1
            if quiet_drains < QUIET_DRAINS:
                self._pause(DRAIN_INTERVAL_S)
                continue
            # No wake-up is lost: emit appends and then looks at the state, this sets the state and
            # then looks at the queues, so whichever comes second sees what the other did.
            self._state = _ASLEEP
            if not self._waiting and not self._lines:
                self._pause(ASLEEP_S)
            self._state = _AWAKE
        self._drain()

    def _pause(self, timeout_s: float) -> None:
        # Cleared before the next look at `_closing`, which close sets before it wakes.
        if self._wake.wait(timeout_s):
            self._wake.clear()

    def _drain(self) -> bool:
        """Counts and writes what waits; True when there was anything."""
        anything = False
        for _ in range(0, len(self._waiting), AT_ONCE):
            if anything and len(self._waiting) < PAUSES_BELOW:
                time.sleep(PAUSE_S)
            anything = True
            with self._drain_lock:
                self._count_locked(AT_ONCE)
            self._write()
        return self._write() or anything

    def _count_locked(self, most: Optional[int] = None, as_text: bool = False) -> None:
        """Calls the observers with what waits now (`most` of it), and keeps the lines that are to be written."""
        count = len(self._waiting)
        entries = [self._waiting.popleft() for _ in range(count if most is None else min(most, count))]
        events = [entry for entry in entries if isinstance(entry, RequestEvent)]
        if events:
            for index, observer in enumerate(self._observers):
                try:
                    observer(events)
                except Exception as error:
                    self._report_observer_locked(index, observer, error)
        self._keep_lines_locked(entries, as_text)

    def _report_observer_locked(self, index: int, observer: Observer, error: Exception) -> None:
        if index in self._failed_observers:
            return
        self._failed_observers.add(index)
        name = getattr(observer, "__qualname__", type(observer).__qualname__)
        fields = {"observer": name, "error": f"{type(error).__name__}: {error}"}
        self._keep_lines_locked([LogRecord(unix_s(), "error", "observer_failed", fields)])

    def _keep_lines_locked(self, entries: list[_Entry], as_text: bool = False) -> None:
        least, slow_s = self._least, self._slow_s
        wanted: list[Union[_Entry, str]] = [
            entry
            for entry in entries
            if LEVELS[request_level(entry, slow_s) if isinstance(entry, RequestEvent) else entry.level] >= least
        ]
        room = MAX_WAITING_LINES - len(self._lines)
        kept = wanted[:room] if len(wanted) > room else wanted
        self._lines.extend(map(self._line, kept) if as_text else kept)
        if len(wanted) > room:
            self._dropped_total.inc(len(wanted) - room)

    def _write(self) -> bool:
        """Writes the lines kept so far, a few per write; True when there were any."""
        lines = self._lines
        anything = bool(lines)
        self._state = _WRITING
        try:
            while lines:
                count = min(len(lines), WRITTEN_AT_ONCE)
                self._write_batch([lines.popleft() for _ in range(count)])
        finally:
            self._state = _AWAKE
        return anything

    def _write_batch(self, batch: list[Union[_Entry, str]]) -> None:
        # A closed pipe or a full disk costs these lines and is counted; the next batch tries again.
        dropped = self._dropped_total.value
        text = "".join(map(self._line, batch))
        if dropped > self._reported_drops and self._least <= LEVELS["warning"]:
            fields = {"lines": dropped - self._reported_drops}
            text += self._line(LogRecord(unix_s(), "warning", "log_lines_dropped", fields))
        try:
            self._stream.write(text)
            self._stream.flush()
        except Exception:
            self._dropped_total.inc(len(batch))
        else:
            self._reported_drops = dropped
        self._written += 1

    def _line(self, entry: Union[_Entry, str]) -> str:
        if isinstance(entry, str):
            return entry
        try:
            return self._format(entry) + "\n"
        except Exception:  # a value whose own str() raises, a field of the wrong type
            self._dropped_total.inc()
            return ""
