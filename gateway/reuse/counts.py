"""What has been saved, counted from the events of finished requests, for who asks for the cache's figures.

`ReuseCounts` owns the counts; it is an observer of Telemetry, which calls it with one batch at a time, so there is no
lock. (The metrics of the same are counted in `telemetry/metrics.py`.)
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.telemetry.events import RequestEvent


class ReuseCounts:
    """Hits, misses and what hits have saved, since the start."""

    def __init__(self) -> None:
        self.by_result = {"hit": 0, "near": 0, "miss": 0, "bypass": 0}
        self.saved_tokens = 0
        self.saved_usd = 0.0

    def observe(self, events: Sequence[RequestEvent]) -> None:
        """Count a batch."""
        for event in events:
            extra = event.extra
            if extra is None or "cache" not in extra:
                continue
            self.by_result[str(extra["cache"])] += 1
            tokens, usd = extra.get("saved_tokens"), extra.get("saved_usd")
            if isinstance(tokens, int):
                self.saved_tokens += tokens
            if isinstance(usd, float):
                self.saved_usd += usd
