"""The times and durations that Ollama tells. Pure: what tells the time is handed in."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Callable, NamedTuple


class Times(NamedTuple):
    """What tells the time for one request."""

    unix_s: Callable[[], float]
    monotonic_s: Callable[[], float]
    began_s: float
    """When the request came, in monotonic seconds."""

    def created_at(self) -> str:
        """Now, as answers say it."""
        return date_of(self.unix_s())

    def since_ns(self) -> int:
        """For how long the request has been served."""
        return max(0, int((self.monotonic_s() - self.began_s) * 1e9))


def date_of(unix_s: float) -> str:
    """Seconds since 1970 as RFC 3339 writes them."""
    return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
