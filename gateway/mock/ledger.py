"""What a mock engine has seen: counts, the last requests, and waiting for either to change.

Owns every number that `stats()` reports. Its condition guards them all and is notified on every
change; nothing is called and no socket touched while it is held.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

KEPT_REQUESTS = 64
_KEPT_BODY_BYTES = 1 << 20
_KEPT_REQUEST_IDS = 100_000


class Ledger:
    """Counts of one mock engine. All methods are thread safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requests: deque[dict[str, Any]] = deque(maxlen=KEPT_REQUESTS)
        self._seen_ids: OrderedDict[str, None] = OrderedDict()
        self._counts = {
            "requests": 0,
            "in_flight": 0,
            "cancelled": 0,
            "probes": 0,
            "connections": 0,
            "connections_total": 0,
            "request_ids": 0,
            "duplicates": 0,
        }

    def arrived(self, path: str, headers: dict[str, str], body: object, body_bytes: int) -> int:
        """Note an inference request and return its running number, from 1.

        A body of more than 1 MiB is not kept (None stands for it), so memory stays bounded.
        """
        kept = body if body_bytes <= _KEPT_BODY_BYTES else None
        record = {"path": path, "headers": headers, "body": kept, "body_bytes": body_bytes}
        request_id = headers.get("x-request-id")
        with self._changed:
            self._requests.append(record)
            self._counts["requests"] += 1
            self._counts["in_flight"] += 1
            if request_id is not None:
                self._note_id_locked(request_id)
            self._changed.notify_all()
            return self._counts["requests"]

    def _note_id_locked(self, request_id: str) -> None:
        if request_id in self._seen_ids:
            self._counts["duplicates"] += 1
            return
        self._counts["request_ids"] += 1
        self._seen_ids[request_id] = None
        if len(self._seen_ids) > _KEPT_REQUEST_IDS:
            self._seen_ids.popitem(last=False)

    def ended(self) -> None:
        """Note that an inference request is no longer in flight."""
        self.count("in_flight", -1)

    def cancelled(self, in_flight: bool) -> None:
        """Note that the caller closed first; `in_flight` says whether `ended` is still due."""
        with self._changed:
            self._counts["cancelled"] += 1
            self._counts["in_flight"] -= int(in_flight)
            self._changed.notify_all()

    def count(self, name: str, step: int = 1) -> None:
        """Add `step` to the count `name`."""
        with self._changed:
            self._counts[name] += step
            self._changed.notify_all()

    def snapshot(self) -> dict[str, int]:
        """Return all counts as of one moment."""
        with self._changed:
            return dict(self._counts)

    def requests(self) -> list[dict[str, Any]]:
        """Return the last requests, oldest first."""
        with self._changed:
            return list(self._requests)

    def wait_until(self, reached: Callable[[dict[str, int]], bool], timeout_s: float) -> bool:
        """Wait until `reached(counts)` holds; return False when `timeout_s` pass before."""
        with self._changed:
            return self._changed.wait_for(lambda: reached(self._counts), timeout_s)
