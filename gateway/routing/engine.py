"""One engine as the gateway sees it now: occupancy, health, rests, the last error.

`EngineSpec` (specs.py) is what was configured; `Engine` is what is known. An `Engine` belongs to exactly one
`ModelPool`, and every field here is guarded by that pool's lock. No I/O, no clock: `now_s` (monotonic seconds) comes
in.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Optional

from gateway.routing.breaker import CLOSED, OPEN, STATE_NAMES, Breaker, BreakerPolicy
from gateway.routing.specs import EngineSpec

EWMA_TAU_S = 10.0  # how long a latency sample is remembered: as in Finagle's peak EWMA
SUSPECT_S = 2.0  # how long a failure makes load-based strategies prefer another engine
FAILURE_LATENCY_S = 1.0  # a failure counts as at least this slow, so failing fast never looks fast
DEFAULT_POLICY = BreakerPolicy()
UNPROVEN = "no probe has passed yet"
"""The last error of an engine that was discovered and not heard of since."""


class ListedModel(NamedTuple):
    """One model that an engine says it serves: its name, and the context in tokens (None: it does not say)."""

    id: str
    max_model_len: Optional[int] = None


class Engine:
    """Live state of one engine. All methods expect the pool's lock to be held.

    Without it: `listed` is replaced whole by whoever asks the engine, which is one thread at a time.
    """

    __slots__ = (
        "answered",
        "breaker",
        "down",
        "draining",
        "ewma_at_s",
        "ewma_s",
        "failed_at_s",
        "fails",
        "having",
        "id",
        "in_flight",
        "lacking",
        "last_error",
        "list_asked_s",
        "listed",
        "misses",
        "model_name",
        "ok_at_s",
        "out_reason",
        "out_until_s",
        "passes",
        "removed",
        "since_ticket",
        "spec",
        "weight",
    )

    def __init__(self, spec: EngineSpec, model_name: str, policy: BreakerPolicy = DEFAULT_POLICY) -> None:
        self.spec = spec
        self.id: str = spec.id or ""
        self.model_name = model_name
        self.weight = spec.weight
        self.in_flight = 0
        self.down = False  # refused a connection or failed its probes; ended by a good probe or answer
        self.answered = False  # a probe or a request well, ever: one that has not is out after one failed probe
        self.out_until_s = -math.inf  # resting (429) or misconfigured (401/403); ended by time alone
        self.out_reason = ""
        self.removed = False
        self.draining = False  # by an operator: gets nothing new until it is enabled again
        self.since_ticket = 0  # places with an older ticket were taken under another key: see `forget`
        self.breaker = Breaker(policy)
        self.fails = 0  # probes failed in a row
        self.passes = 0  # probes passed in a row
        self.misses = 0  # failed probes and refused connections, ever: what has shown that it is gone
        self.failed_at_s = -math.inf
        self.ok_at_s = -math.inf
        self.ewma_s = 0.0
        self.ewma_at_s = -math.inf
        self.last_error: Optional[str] = None
        self.listed: Optional[tuple[ListedModel, ...]] = None  # the models that it serves; None: nobody has said
        self.list_asked_s = -math.inf
        self.lacking: dict[str, float] = {}  # endpoints that it was found not to have, until then
        self.having: dict[str, float] = {}  # endpoints that are passed on to, and have answered well: until then it has

    @property
    def unproven(self) -> bool:
        """Whether it was discovered and no probe of it has passed or failed since. Needs no lock: a moment ago."""
        return self.down and self.last_error == UNPROVEN

    def forget(self, policy: BreakerPolicy) -> None:
        """Know nothing of it any more but what is in flight and what an operator said: its key or model is another.

        What was sent before is settled without a word about the engine.
        """
        ticket = self.breaker.ticket + 1
        self.breaker = Breaker(policy)
        self.breaker.ticket = self.since_ticket = ticket
        self.down = self.answered = False
        self.lacking, self.having = {}, {}
        self.out_until_s = self.failed_at_s = self.ok_at_s = self.ewma_at_s = -math.inf
        self.out_reason = ""
        self.fails = self.passes = 0
        self.ewma_s = 0.0
        self.last_error = None

    def available(self, now_s: float) -> bool:
        """The one predicate that says whether balancing may choose this engine (a full one is skipped by the pool)."""
        return (
            not (self.down or self.removed or self.draining)
            and now_s >= self.out_until_s
            and self.breaker.passes(now_s)
        )

    def free(self) -> float:
        """How many more requests it takes; infinity: any number."""
        limit = self.spec.max_concurrency
        return math.inf if limit is None else max(0, limit - self.in_flight)

    def full(self) -> bool:
        """Whether `max_concurrency` requests are already in flight here."""
        limit = self.spec.max_concurrency
        return limit is not None and self.in_flight >= limit

    def state(self, now_s: float) -> str:
        """`up`, `down`, `resting` (429), `misconfigured` (401/403), `open`, `half_open` (breaker), `draining`,
        `removed`."""
        if self.removed:
            return "removed"
        if self.draining:
            return "draining"
        if now_s < self.out_until_s:
            return self.out_reason
        if self.down:
            return "down"
        if self.breaker.state != CLOSED:
            return STATE_NAMES[self.breaker.state]
        return "up"

    def returns_at_s(self, now_s: float) -> float:
        """When this engine is worth trying again: its own time, or now for one that only a try can bring back."""
        until_s = max(self.out_until_s, now_s)
        if self.breaker.state == OPEN:
            until_s = max(until_s, self.breaker.until_s)
        return until_s + (1.0 if self.down else 0.0)

    def suspect(self, now_s: float) -> bool:
        """Whether it failed a moment ago: fast failures empty an engine, and emptiness must not attract load."""
        return now_s - self.failed_at_s < SUSPECT_S

    def observe_latency(self, sample_s: float, now_s: float) -> None:
        """Peak EWMA: a slower sample counts at once, a faster one with weight 1 - exp(-dt / tau)."""
        if sample_s >= self.ewma_s:
            self.ewma_s = sample_s
        else:
            keep = math.exp(-(now_s - self.ewma_at_s) / EWMA_TAU_S)
            self.ewma_s = sample_s + (self.ewma_s - sample_s) * keep
        self.ewma_at_s = now_s

    def take(self, now_s: float) -> None:
        """One more request is here. An idle engine that was asked long ago counts as unmeasured from then on: faded to
        nothing, its latency would have it get every request until its first answer."""
        if not self.in_flight and now_s - self.ewma_at_s > EWMA_TAU_S:
            self.ewma_s = 0.0
        self.in_flight += 1

    def expected_cost(self, now_s: float, usual_s: float = FAILURE_LATENCY_S) -> float:
        """Peak-EWMA latency, fading while nothing is measured, times the requests that would share the engine.

        One that has never been measured gets a request at once, and until that is answered is taken to be as slow as is
        usual (`usual_s`): were it still taken to be fast, it would get every request until its first answer.
        """
        if not self.ewma_s:
            return ((usual_s if self.in_flight else 0.0) + 1e-6) * (self.in_flight + 1) / self.weight
        return (faded(self.ewma_s, self.ewma_at_s, now_s) + 1e-6) * (self.in_flight + 1) / self.weight


def faded(latency_s: float, at_s: float, now_s: float) -> float:
    """What is left of a latency that was measured then."""
    return latency_s * math.exp(-(now_s - at_s) / EWMA_TAU_S)
