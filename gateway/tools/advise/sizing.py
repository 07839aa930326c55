"""The smallest fleet that keeps a promise, found by simulating it. No I/O.

More engines never make a fleet slower here, so the number is found by doubling and halving; each fleet gets the same
requests (common random numbers), and so many that the percentile means something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Callable, NamedTuple, Optional

from gateway.tools.simulate.arrivals import arrivals
from gateway.tools.simulate.distributions import empirical
from gateway.tools.simulate.recorded import Recorded
from gateway.tools.simulate.scenario import Fleet, Rules, Scenario, Work
from gateway.tools.simulate.simulator import simulate

MOST_ENGINES = 10_000
WINDOW_S = 60.0  # the busiest of these is what the fleet is for
SPARE_SHARE = 0.999  # of the time that workers are to be enough


class Ask(NamedTuple):
    """What is wanted: `percentile` of the answers within `slo_s`, at `headroom` times the busiest rate seen, by engines
    of so many `slots`. Each fleet is simulated with so many `requests`."""

    slo_s: float
    percentile: float = 95.0
    headroom: float = 1.3
    slots: int = 8
    strategy: str = "least_connections"
    seed: int = 1
    requests: int = 20_000


class Seen(NamedTuple):
    """What the record says: requests, requests a second on average and in the busiest window, seconds of service (mean,
    median, the percentile asked for), and of the lognormal law that fits best its sigma."""

    requests: int
    mean_rate: float
    busy_rate: float
    service_mean_s: float
    service_median_s: float
    service_at_s: float
    sigma: float


class Tried(NamedTuple):
    """A fleet that was simulated: the percentile asked for in seconds, the share of failures, busy slots."""

    engines: int
    at_s: float
    failed_share: float
    utilisation: float

    def keeps(self, ask: Ask) -> bool:
        """Whether the promise is kept."""
        return self.at_s <= ask.slo_s and self.failed_share <= 1 - ask.percentile / 100


class Advice(NamedTuple):
    """`engines` None: no number of them keeps the promise. `rate`: requests a second that this fleet bears, `workers`
    and `queue_size` as the settings of these names, `rpm` a limit for all requests."""

    seen: Seen
    tried: list[Tried]
    engines: Optional[int]
    rate: float
    workers: int
    queue_size: int
    rpm: int


def seen_in(record: Recorded, percentile: float) -> Seen:
    """What the record says."""
    service = sorted(record.service_s)
    logs = [math.log(value) for value in service if value > 0]
    mean_log = sum(logs) / len(logs)
    return Seen(
        len(service),
        record.rate_per_s,
        max(record.rate_per_s, busiest(record.arrivals_s, WINDOW_S)),
        sum(service) / len(service),
        service[len(service) // 2],
        service[min(len(service) - 1, math.ceil(len(service) * percentile / 100) - 1)],
        math.sqrt(sum((value - mean_log) ** 2 for value in logs) / len(logs)),
    )


def busiest(times_s: Sequence[float], window_s: float) -> float:
    """Requests a second in the busiest of all windows of that length; 0.0: the record is shorter than one."""
    ordered = sorted(times_s)
    if ordered[-1] - ordered[0] < window_s:
        return 0.0
    most = first = 0
    for last, at_s in enumerate(ordered):
        while at_s - ordered[first] >= window_s:
            first += 1
        most = max(most, last - first + 1)
    return most / window_s


def advise(record: Recorded, ask: Ask, told: Callable[[Tried], object] = lambda tried: None) -> Advice:
    """Find the fleet. `told` hears of each that was tried."""
    seen = seen_in(record, ask.percentile)
    wanted = seen.busy_rate * ask.headroom
    tried: dict[int, Tried] = {}

    def keeps(engines: int) -> bool:
        if engines not in tried:
            tried[engines] = _tried(record, ask, engines, wanted)
            told(tried[engines])
        return tried[engines].keeps(ask)

    # With fewer, work comes faster than it is done.
    least = max(1, math.ceil(wanted * seen.service_mean_s / ask.slots))
    engines = _smallest(keeps, least) if seen.service_at_s <= ask.slo_s else None
    found = list(tried.values())
    if engines is None:
        return Advice(seen, found, None, 0.0, 0, 0, 0)
    rate = _borne(record, ask, engines, wanted)
    # By Little's law so many are inside on average, and the number is about Poisson's.
    inside = rate * (seen.service_mean_s + max(0.0, tried[engines].at_s - seen.service_at_s))
    workers = math.ceil(inside + NormalDist().inv_cdf(SPARE_SHARE) * math.sqrt(inside))
    slack_s = max(0.0, ask.slo_s - seen.service_median_s)
    queue_size = max(1, math.ceil(rate * slack_s))
    return Advice(seen, found, engines, rate, workers, queue_size, max(1, math.floor(rate * 60)))


def _smallest(keeps: Callable[[int], bool], least: int) -> Optional[int]:
    high = least
    while not keeps(high):
        if high >= MOST_ENGINES:
            return None
        least, high = high + 1, min(2 * high, MOST_ENGINES)
    while least < high:
        middle = (least + high) // 2
        if keeps(middle):
            high = middle
        else:
            least = middle + 1
    return high


def _borne(record: Recorded, ask: Ask, engines: int, rate: float) -> float:
    """The most requests a second at which the fleet keeps the promise, within 2 %."""
    low, high = rate, 2 * rate
    while high - low > 0.02 * rate:
        middle = (low + high) / 2
        if _tried(record, ask, engines, middle).keeps(ask):
            low = middle
        else:
            high = middle
    return low


def _tried(record: Recorded, ask: Ask, engines: int, rate: float) -> Tried:
    duration_s = ask.requests / rate
    scenario = Scenario(
        fleet=Fleet(engines=engines, slots=ask.slots),
        arrivals=arrivals(f"poisson:{rate:.6f}/s"),
        work=Work(service=empirical(record.name, record.service_s)),
        rules=Rules(health_interval_s=0, request_timeout_s=max(60.0, 4 * ask.slo_s)),
        duration_s=duration_s,
        warmup_s=duration_s / 10,
        seed=ask.seed,
    )
    run = simulate(scenario, ask.strategy)
    measures = run.measures
    at_ns = measures.latency.percentiles((ask.percentile,))[0]
    busy = [moment.busy_share for moment in measures.moments if moment.busy_share is not None]
    return Tried(
        engines,
        math.inf if at_ns is None else at_ns / 1e9,
        sum(measures.failures.values()) / max(1, measures.arrived),
        sum(busy) / len(busy),
    )
