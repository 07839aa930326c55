"""What one scope's limits have let pass while Redis could not be asked, so that it can be told when it is back; and how
much of a minute may then pass at once.

Owns nothing but one scope's numbers. It has no lock and reads no clock: the `SharedLimits` guards it and brings the
time, the local monotonic seconds.
"""

from __future__ import annotations

from gateway.limits.quotas import Bursts
from gateway.shared.scopes import Counted

Tats = tuple[float, float]
"""Of a scope in Redis, in seconds of the local clock; of requests, and of tokens."""
NOTHING_KNOWN: Tats = (float("-inf"), float("-inf"))
LOCAL_BURST = 0.02
"""Of a minute's requests and tokens, at most; at least one request."""


class Alone:
    """A scope that has been used without Redis: its TATs before that, and as they would be if every gateway had let
    pass what this one has. Not thread-safe."""

    __slots__ = ("before_s", "one", "requests_s", "tokens_s")

    def __init__(self, one: Counted, before_s: Tats) -> None:
        self.one = one
        self.before_s = before_s
        self.requests_s, self.tokens_s = before_s

    def take(self, tokens: float, peers: int, now_s: float) -> None:
        """A request has passed."""
        requests, limited, _ = self.one.sizes
        if requests is not None:
            self.requests_s = max(self.requests_s, now_s) + requests.interval_s * peers
        if limited is not None:
            self.tokens_s = max(self.tokens_s, now_s) + tokens * limited.interval_s * peers

    def passed_s(self, peers: int, now_s: float) -> Tats:
        """How much further the TATs in Redis are to go ahead for this gateway; all of them together no further than the
        burst allows, so that nobody is locked out by it."""
        requests, tokens, _ = self.one.sizes
        return (
            0.0 if requests is None else _beyond_s(self.requests_s, self.before_s[0], requests.burst_s, now_s) / peers,
            0.0 if tokens is None else _beyond_s(self.tokens_s, self.before_s[1], tokens.burst_s, now_s) / peers,
        )


def local_bursts(bursts: Bursts) -> Bursts:
    """What may pass at once as one gateway alone decides: little, where others may still have Redis."""
    return Bursts(*(min(share, LOCAL_BURST) for share in bursts))


def _beyond_s(tat_s: float, before_s: float, burst_s: float, now_s: float) -> float:
    """How much further ahead the one TAT is than the other, of what is within the burst."""
    return max(min(tat_s - now_s, burst_s) - max(before_s - now_s, 0.0), 0.0)
