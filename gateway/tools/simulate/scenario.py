"""What is simulated: plain values, checked where they are read (`options.py`). Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional, Union

from gateway.limits.limiter import NO_KEY_LIMITS, NO_RATE_LIMITS
from gateway.limits.prices import Price
from gateway.limits.quotas import KeyLimits, RateLimits
from gateway.routing.breaker import BreakerPolicy
from gateway.routing.engine import DEFAULT_POLICY
from gateway.tools.loadtest.durations import duration_s
from gateway.tools.simulate.arrivals import Arrivals, arrivals
from gateway.tools.simulate.distributions import Distribution, constant, distribution, number
from gateway.tools.simulate.faults import Fault

ALIKE = constant("1", 1.0)
FIRST = constant("200ms", 0.2)
PER_TOKEN = constant("10ms", 0.01)
FREE = Price(0.0, 0.0)


@dataclass(frozen=True)
class Fleet:
    """One model's engines.

    `slots`: requests that one works on at once; more wait there, first come first served. `batching` 0: each slot works
    at its own speed; else all share one batch, in which b requests go on at 1 / (1 + batching * (b - 1)) of the speed
    of one (1: what there is is shared out). `speed`: of each engine, drawn once. `max_concurrency`: how many the
    gateway sends at once, None: any number. `cache`: prefixes that an engine remembers, the latest; a request whose
    prefix is among them is spared the share `hit_saves` of its time to the first token.
    """

    engines: int = 10
    slots: int = 8
    max_concurrency: Optional[int] = None
    batching: float = 0.0
    speed: Distribution = ALIKE
    cache: int = 0
    hit_saves: float = 0.8


@dataclass(frozen=True)
class Work:
    """What a request needs of an engine that does nothing else, at speed 1.

    `service`: seconds for the whole answer, of which the share `first_share` until the first token; None: `first`
    seconds until then, and `per_token` for each token of the answer behind the first. `hiccup`: of so many tries the
    answer takes so many times as long, whatever the engine. `prefixes` 0: requests have none in common.
    """

    service: Optional[Distribution] = field(default_factory=lambda: distribution("exponential:300ms", duration_s))
    first_share: float = 0.2
    first: Distribution = FIRST
    per_token: Distribution = PER_TOKEN
    prompt_tokens: Distribution = field(default_factory=lambda: distribution("lognormal:300,0.8", number))
    output_tokens: Distribution = field(default_factory=lambda: distribution("lognormal:120,0.8", number))
    stream_share: float = 0.0
    hiccup: tuple[float, float] = (0.0, 1.0)
    prefixes: int = 0
    zipf: float = 1.0


@dataclass(frozen=True)
class Rules:
    """The gateway's settings, with their defaults. `workers` 0: as many as are needed."""

    workers: int = 0
    queue_size: int = 1024
    queue_timeout_s: float = 30.0
    request_timeout_s: float = 60.0
    first_token_timeout_s: float = 60.0
    stream_idle_timeout_s: float = 60.0
    connect_timeout_s: float = 5.0
    retry_attempts: int = 3
    hedge_after_ms: Union[int, float, str, None] = None
    hedge_ratio: float = 0.1
    health_interval_s: float = 5.0
    health_timeout_s: float = 2.0
    health_fails: int = 2
    health_passes: int = 1
    breaker: BreakerPolicy = DEFAULT_POLICY
    everybody: RateLimits = NO_RATE_LIMITS
    key_limits: KeyLimits = NO_KEY_LIMITS
    keys: int = 1


@dataclass(frozen=True)
class Scenario:
    """All of it. `overhead_s`: what the gateway itself adds to each answer. `warmup_s`: from the start, what is not
    counted. `standby`: the engines of a model that stands in; None: there is none."""

    fleet: Fleet = Fleet()
    standby: Optional[Fleet] = None
    arrivals: Arrivals = field(default_factory=lambda: arrivals("poisson:100/s"))
    work: Work = field(default_factory=Work)
    rules: Rules = Rules()
    faults: tuple[Fault, ...] = ()
    gateways: int = 1
    duration_s: float = 60.0
    warmup_s: float = 0.0
    overhead_s: float = 0.0
    price: Price = FREE
    seed: int = 1
    config: dict[str, str] = field(default_factory=dict)
    """What was asked, as it is told."""
