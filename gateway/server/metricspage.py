"""The answer to `GET /metrics`: the registry's text, in the format and coding that its reader would rather have.

Owns the last texts and how much time they took, which its lock guards; it is not held while they are made. Of one
process it is for the loop's thread; where others are asked, for a thread that may wait.
"""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from typing import Optional

from gateway.keys.auth import Identity
from gateway.server.admin import Reply
from gateway.server.negotiating import takes_gzip, wants_openmetrics
from gateway.server.parsing import RequestHead
from gateway.telemetry import exposition
from gateway.telemetry.exposition import Family

# Who asks for metrics again and again shall not keep the loop from everything else: so much of its time at most is
# spent on making their text (0.3 ms of CPU for nine engines, 30 for 800 of 266 models), but for so much at once; who
# asks meanwhile gets the last one.
RENDERING_SHARE = 0.25
RENDERED_AT_ONCE_S = 0.25
TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
GZIP_LEVEL = 1  # 6.5 MB, of those 800, become 0.23 in 8 ms; level 6 takes 25 for 0.20


class MetricsPage:
    """Renders the metrics for whoever asks. `collect` gives them. Thread-safe."""

    def __init__(self, collect: Callable[[], list[Family]]) -> None:
        self._collect = collect
        self._lock = threading.Lock()
        self._until_s = 0.0  # (monotonic) the texts that there are, are given
        self._bodies: dict[tuple[bool, bool], bytes] = {}  # by whether they are OpenMetrics, and gzipped
        self._rendering_s = 0.0  # CPU seconds spent on them beyond the share, as of `_rendered_at_s`
        self._rendered_at_s = 0.0

    def answer(self, head: RequestHead, identity: Optional[Identity]) -> Reply:
        """The metrics of now, or of a moment ago."""
        openmetrics = wants_openmetrics(head.text(b"accept"))
        packed = takes_gzip(head.text(b"accept-encoding"))
        now_s = time.monotonic()
        with self._lock:
            if now_s >= self._until_s:
                self._bodies.clear()
            body = self._bodies.get((openmetrics, packed))
        if body is None:
            body = self._made(openmetrics, packed, now_s)
        headers = [
            ("Content-Type", OPENMETRICS_TYPE if openmetrics else TEXT_TYPE),
            ("Vary", "Accept, Accept-Encoding"),
        ]
        if packed:
            headers.append(("Content-Encoding", "gzip"))
        return Reply(200, tuple(headers), body)

    def _made(self, openmetrics: bool, packed: bool, now_s: float) -> bytes:
        """Make one of the four texts; each is kept for as long as there was no time for another."""
        began_s = time.thread_time()
        families = self._collect()
        body = exposition.openmetrics(families) if openmetrics else exposition.text(families)
        if packed:
            body = gzip.compress(body, GZIP_LEVEL, mtime=0)
        took_s = time.thread_time() - began_s
        with self._lock:
            left_s = max(0.0, self._rendering_s - RENDERING_SHARE * max(0.0, now_s - self._rendered_at_s))
            self._rendering_s, self._rendered_at_s = left_s + took_s, max(now_s, self._rendered_at_s)
            over_s = self._rendering_s - RENDERED_AT_ONCE_S
            self._until_s = now_s + over_s / RENDERING_SHARE if over_s > 0 else 0.0
            self._bodies[openmetrics, packed] = body
        return body
