"""What came of a simulation, as JSON has it: one row for each strategy. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

from gateway.limits.prices import cost_usd
from gateway.tools.loadtest.histogram import RELATIVE_ERROR, Histogram
from gateway.tools.simulate.draws import mean_need_s
from gateway.tools.simulate.measures import Moment
from gateway.tools.simulate.scenario import Scenario
from gateway.tools.simulate.simulator import Run
from gateway.tools.simulate.virtual import MODEL

PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9)
NAMES = ("p50", "p90", "p95", "p99", "p99_9")


def result_of(scenario: Scenario, runs: Sequence[Run], python: str) -> dict[str, Any]:
    """All of it."""
    return {
        "config": scenario.config,
        "duration_s": scenario.duration_s,
        "warmup_s": scenario.warmup_s,
        "seed": scenario.seed,
        "offered_load": offered_load(scenario),
        "relative_error": RELATIVE_ERROR,
        "python": python,
        "strategies": [strategy_row(scenario, run) for run in runs],
    }


def offered_load(scenario: Scenario) -> Optional[float]:
    """The work that comes, as a share of what the slots can do at most; None: engines share a batch, and do less."""
    fleet = scenario.fleet
    if fleet.batching:
        return None
    work = scenario.arrivals.mean_rate(scenario.duration_s) * mean_need_s(scenario)
    return work / (fleet.engines * fleet.slots * fleet.speed.mean)


def strategy_row(scenario: Scenario, run: Run) -> dict[str, Any]:
    """One strategy's figures."""
    measures = run.measures
    machines = run.machines[MODEL]
    busy = [moment.busy_share for moment in measures.moments if moment.busy_share is not None]
    counted = busy[int(len(busy) * scenario.warmup_s / scenario.duration_s) :]
    waited_s, half_s = measures.waited_mean_s()
    failed = sum(measures.failures.values())
    priced = scenario.price.input or scenario.price.output
    cost = cost_usd(scenario.price, round(measures.prompt_tokens), round(measures.output_tokens))
    served = sum(machine.served for machine in machines)
    return {
        "strategy": run.strategy,
        "requests": measures.arrived,
        "answered": measures.answered,
        "failed": failed,
        "failures": dict(measures.failures.most_common()),
        "unanswered": run.unanswered,
        "latency": times(measures.latency),
        "first_token": times(measures.first_token),
        "waited": {
            **(times(measures.waited) or {}),
            "batch_mean_ms": waited_s * 1000,
            "batch_mean_95_ms": half_s * 1000 if half_s < math.inf else None,
        },
        "utilisation": sum(counted) / len(counted) if counted else None,
        "imbalance": measures.imbalance,
        "retried": measures.retried,
        "retries": measures.retries,
        "hedged": measures.hedged,
        "hedges_won": measures.hedges_won,
        "fallbacks": measures.fallbacks,
        "cache_hits": sum(machine.hits for machine in machines) / served if served and scenario.fleet.cache else None,
        "cost_usd": cost if priced else None,
        "probes": run.probes,
        "cpu_s": round(run.took_s, 3),
        "cpu_us_per_request": round(run.took_s / max(1, measures.arrived) * 1e6, 1),
        "timeline": [
            moment_row(index * measures.width_s, measures.width_s, moment)
            for index, moment in enumerate(measures.moments)
        ],
        "spread": [[percent, value / 1e6] for percent, value in measures.latency.spread()],
    }


def times(histogram: Histogram) -> Optional[dict[str, float]]:
    """Milliseconds; None: nothing was measured."""
    if not histogram.count:
        return None
    found = dict(zip(NAMES, histogram.percentiles(PERCENTS)))
    told = {f"{name}_ms": (value or 0.0) / 1e6 for name, value in found.items()}
    return {**told, "mean_ms": (histogram.mean or 0.0) / 1e6, "max_ms": histogram.largest / 1e6}


def moment_row(at_s: float, width_s: float, moment: Moment) -> dict[str, Any]:
    """One part of the run, of the requests that came in it."""
    p50, p95, p99 = moment.latency.percentiles((50.0, 95.0, 99.0))
    return {
        "at_s": round(at_s, 6),
        "width_s": round(width_s, 6),
        "arrived": moment.arrived,
        "answered": moment.answered,
        "failed": moment.failed,
        "p50_ms": _ms(p50),
        "p95_ms": _ms(p95),
        "p99_ms": _ms(p99),
        "in_flight_max": moment.in_flight_max,
        "in_flight_mean": moment.in_flight_mean,
        "out": moment.out,
        "utilisation": moment.busy_share,
    }


def _ms(value_ns: Optional[float]) -> Optional[float]:
    return None if value_ns is None else value_ns / 1e6
