"""What finished requests say about engines and queues, counted caller by caller, so that none of them decides for all.

Owns the counts of the current interval, in bounded memory. It has no lock and reads no clock: the `Guard` guards
`count` and `take`, and brings the time; `measure` is for one thread, and needs no lock.

**What counts.** Outcomes of requests that were admitted, and that engines or queues caused: an answer; a failure (502,
503 `overloaded` and `queue_timeout`, 504, a stream that an engine broke off). What a caller did itself counts for
nothing: 4xx, also an engine's own; a rate limit or a budget (429); a body that came too late (408); leaving (499). Nor
does what the gateway did: a drain, an internal error. The waits of all that were asked for count, also of those who
left, or an overload would end as soon as nobody has the patience to see it.

**How much.** Per caller at most its share. A caller is a key (or a token's subject); without one, a group of addresses
(`address_group`). All callers weigh the same, whether one sends a request a second or a thousand: the rate of errors is
the mean of theirs, and the wait is the 95th percentile of requests each of which weighs 1/n of its caller. And whoever
fares worst is left out, so that no one caller can shrink the limits of others, whatever it sends: a request that makes
an engine fail says as much about the request as about the engine. Only who is alone (nobody else had an outcome for
ALONE_S) is judged by its own: then it is its own limits that shrink.

So one key that fails a thousand times a second beside ten others that are well served shrinks nobody's limits: it is
left out, and 0 is left. Of two such keys beside ten one counts, as one of eleven: an error rate of 9 %, but among less
than twenty callers also the 95th percentile of the waits. Where all fail, leaving one out changes nothing, and the
limits of all shrink. Without keys, a caller with many addresses is many callers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional, Union

from gateway.limits.addresses import address_group
from gateway.telemetry.events import RequestEvent

FAILURES = frozenset(("backend_error", "backend_unavailable", "gateway_timeout", "overloaded", "queue_timeout"))
"""The codes of failures that engines and queues cause."""
LEFT = "client_closed_request"
ALONE_S = 60.0
CALLERS_MAX = 1000
"""Callers told apart in an interval; all others count as one more."""
WAITS_MAX = 64
"""The latest waits of each caller that are looked at."""
PERCENTILE = 0.95

Caller = Union[tuple[str], str, bytes, None]
"""A key's name, in a tuple, or a group of addresses, or None: all beyond CALLERS_MAX."""


class Measured(NamedTuple):
    """What to judge limits by; None: nothing that counts has been seen."""

    wait_s: Optional[float]
    error_rate: Optional[float]


class _Counts:
    """One caller in this interval."""

    __slots__ = ("failures", "outcomes", "seen", "waits_s")

    def __init__(self) -> None:
        self.outcomes = 0
        self.failures = 0
        self.seen = 0  # waits
        self.waits_s: list[float] = []


Counts = dict[Caller, _Counts]


class Shares:
    """Counts outcomes by caller, and judges them once an interval."""

    def __init__(self) -> None:
        self._counts: Counts = {}
        # The last two different callers that had an outcome, and when: enough to know whether another one was there.
        self._last: tuple[Caller, float] = (None, -float("inf"))
        self._before: tuple[Caller, float] = (None, -float("inf"))

    def count(self, event: RequestEvent) -> None:
        """Take note of a finished request of inference."""
        error = event.error
        if error is None or error == LEFT:
            if not (event.attempts or event.queue_s):
                return  # it was never let in (a preflight, say)
        elif error not in FAILURES:
            return  # the caller's doing, or the gateway's own
        caller: Caller = address_group(event.client) if event.key is None else (event.key,)
        counts = self._counts.get(caller)
        if counts is None:
            if len(self._counts) >= CALLERS_MAX:
                caller = None
            counts = self._counts.setdefault(caller, _Counts())
        if len(counts.waits_s) < WAITS_MAX:
            counts.waits_s.append(event.queue_s)
        else:
            counts.waits_s[counts.seen % WAITS_MAX] = event.queue_s
        counts.seen += 1
        if error != LEFT:
            counts.outcomes += 1
            counts.failures += error is not None

    def take(self) -> Counts:
        """What has been counted in the interval that ends now; another one begins."""
        counts, self._counts = self._counts, {}
        return counts

    def measure(self, counts: Counts, now_s: float) -> Measured:
        """What an interval that ended now (monotonic seconds) has shown. 1 ms for 1 000 requests."""
        for caller in counts:
            if caller != self._last[0]:
                self._before = self._last
            self._last = (caller, now_s)
        alone = len(counts) == 1 and now_s - self._before[1] > ALONE_S
        rates = [one.failures / one.outcomes for one in counts.values() if one.outcomes]
        waits = [sorted(one.waits_s) for one in counts.values()]
        if not alone:
            rates = sorted(rates)[:-1]
            waits = sorted(waits, key=_percentile)[:-1]
        return Measured(_weighted_percentile(waits) if waits else None, sum(rates) / len(rates) if rates else None)


def _percentile(waits_s: Sequence[float]) -> float:
    return waits_s[int(len(waits_s) * PERCENTILE)]


def _weighted_percentile(callers: Sequence[Sequence[float]]) -> float:
    """The wait that PERCENTILE of all do not exceed, when each caller's weigh the same together."""
    if len(callers) == 1:
        return _percentile(callers[0])
    weighted = sorted((wait_s, 1.0 / len(waits_s)) for waits_s in callers for wait_s in waits_s)
    left = len(callers) * (1.0 - PERCENTILE)
    for wait_s, weight in reversed(weighted):
        left -= weight
        if left < -1e-9:
            return wait_s
    return weighted[0][0]
