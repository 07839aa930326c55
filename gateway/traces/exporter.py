"""Finished requests that are traced, as spans to a collector, behind everybody's back.

`SpanExporter` owns a bounded queue of events and the thread `traces`, which makes spans of them, packs and sends them;
its lock guards the queue and its counts, and is held for appending and taking alone. Nobody waits for it: what has no
room in the queue is dropped and counted, the newest first. Memory: see QUEUE_MAX_BYTES and BATCH_MAX_BYTES.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from gateway.posting import Poster
from gateway.telemetry.events import RequestEvent, Trace
from gateway.telemetry.registry import Counter
from gateway.traces.delivery import Delivery, Log
from gateway.traces.encoding import Json, request_of
from gateway.traces.spans import CONTENT, Find, is_failure, span_count, spans_of

QUEUE_MAX_BYTES = 16 << 20  # of events that wait, as `_size_of` reckons
BATCH_SPANS = 512
BATCH_MAX_BYTES = 2 << 20  # likewise, of those that leave together: their spans take some four times as much
INTERVAL_S = 5.0  # that a span waits for others
EVENT_BYTES, PART_BYTES = 2500, 700  # that an event takes, and each of its attempts and marks


class _Waiting(NamedTuple):
    event: RequestEvent
    trace: Trace
    spans: int
    size_bytes: int


class SpanExporter:
    """Sends what is traced, from `start` to `close`. `observe` is called by one thread at a time."""

    def __init__(
        self, collector: Poster, resource: Json, find: Find, exported: Counter, dropped: Counter, log: Log
    ) -> None:
        self._resource = resource
        self._find = find
        self._exported = exported
        self._dropped = dropped
        self._lock = threading.Lock()
        self._queue: deque[_Waiting] = deque()
        self._queue_bytes = 0
        self._queue_spans = 0
        self._wake = threading.Event()  # there are enough for a batch
        self._stopping = threading.Event()
        self._delivery = Delivery(collector, "spans", log, self._stopping)
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def observe(self, events: Sequence[RequestEvent]) -> None:
        """Take what is traced of finished requests: what was chosen at its begin, and what has failed. Never blocks."""
        wanted = [
            event
            for event in events
            if event.trace is not None and (event.trace.sampled or (event.error is not None and is_failure(event)))
        ]
        if wanted:
            self._put(wanted)

    def _put(self, events: Sequence[RequestEvent]) -> None:
        entries = [_Waiting(event, event.trace, span_count(event), _size_of(event)) for event in events if event.trace]
        lost = 0
        with self._lock:
            for entry in entries:
                if self._queue_bytes + entry.size_bytes > QUEUE_MAX_BYTES:
                    lost += entry.spans
                    continue
                self._queue.append(entry)
                self._queue_bytes += entry.size_bytes
                self._queue_spans += entry.spans
            enough = self._queue_spans >= BATCH_SPANS or self._queue_bytes >= BATCH_MAX_BYTES
        if lost:
            self._dropped.inc(lost)
        if enough:
            self._wake.set()

    def close(self, timeout_s: float) -> None:
        """Send what waits, within so many seconds, and end; what is left then is dropped and counted."""
        self._delivery.end(self._thread, timeout_s, self._wake.set)

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            enough = self._wake.wait(INTERVAL_S)
            self._wake.clear()  # before the queue is looked at: who puts something sets it behind that
            self._send_all(whole_batches=enough)
        self._send_all()

    def _send_all(self, whole_batches: bool = False) -> None:
        """Send what waits; what is less than a batch, only when nothing has made one of it for so long."""
        while True:
            batch = self._take(whole_batches)
            if not batch:
                return
            end_s = self._delivery.end_s
            if end_s is not None and time.monotonic() >= end_s:
                self._dropped.inc(sum(entry.spans for entry in batch))
                continue
            self._send(batch)

    def _take(self, whole_batch: bool) -> list[_Waiting]:
        batch: list[_Waiting] = []
        spans = size_bytes = 0
        with self._lock:
            if whole_batch and self._queue_spans < BATCH_SPANS and self._queue_bytes < BATCH_MAX_BYTES:
                return batch
            while self._queue and spans < BATCH_SPANS and size_bytes < BATCH_MAX_BYTES:
                entry = self._queue.popleft()
                batch.append(entry)
                spans += entry.spans
                size_bytes += entry.size_bytes
            self._queue_bytes -= size_bytes
            self._queue_spans -= spans
        return batch

    def _send(self, batch: Sequence[_Waiting]) -> None:
        def make() -> bytes:
            spans = (span for entry in batch for span in spans_of(entry.event, entry.trace, self._find))
            return request_of("Spans", spans, self._resource)

        count = sum(entry.spans for entry in batch)
        rejected = self._delivery.export(make, "rejectedSpans")
        lost = count if rejected is None else min(rejected, count)
        self._dropped.inc(lost)
        self._exported.inc(count - lost)


def _size_of(event: RequestEvent) -> int:
    """About so many bytes of memory."""
    size_bytes = EVENT_BYTES + PART_BYTES * (len(event.attempt_records) + len(event.marks))
    if event.extra:
        size_bytes += sum(4 * len(str(event.extra[key])) for key in CONTENT if key in event.extra)
    return size_bytes + 100 * sum(len(mark.links) for mark in event.marks)
