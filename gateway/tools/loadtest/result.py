"""What a run has measured, as one JSON document: the report's tables and page are made of it, and so is --json.

Its schema is `SCHEMA`: members may be added to it, none is taken away or changes its meaning under the same name
(docs/LOADTEST.md). Times are milliseconds, shares go from 0 to 1. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

from gateway.tools.loadtest.arrivals import rate_at
from gateway.tools.loadtest.durations import NS, shown_ns
from gateway.tools.loadtest.histogram import RELATIVE_ERROR, Histogram
from gateway.tools.loadtest.measures import LATE_NS, OTHER, Measures, Point, Tally
from gateway.tools.loadtest.plan import Plan
from gateway.tools.loadtest.thresholds import PERCENTS, member_ms

SCHEMA = "loadtest/1"
SPREAD_POINTS = 160
BUSY_S = 0.5  # of processor time: a shorter run is mostly its own beginning
BUSY_SHARE = 0.85  # of a processor: above, what is measured is partly the generator
LATE_SHARE = 0.01
HELD_UP_MS = 20.0
NO_MODEL = "(not sent)"


class Run(NamedTuple):
    """What is known of a run besides what was measured. `began`: in UTC, ISO 8601; `ended_ns`: from the start of what
    counts; `cpu_s`, `wall_s`: of the generator, the warm-up included."""

    began: str
    ended_ns: int
    cpu_s: float
    wall_s: float
    interrupted: bool
    models: tuple[tuple[str, float], ...]
    python: str


def result_of(plan: Plan, run: Run, measures: Measures) -> dict[str, Any]:
    """The document."""
    total, window = measures.total, measures.window
    within_s = _window_s(run, measures)
    failed_all = total.failed + total.refused
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "began": run.began,
        "title": plan.title or f"Load test of {plan.base.url}",
        "interrupted": run.interrupted,
        "config": _config(plan, run),
        "duration_s": _rounded(within_s),
        "ended_s": _rounded(run.ended_ns / NS),
        "requests": {
            "sent": measures.sent,
            "finished": total.ok + failed_all,
            "ok": total.ok,
            "errors": total.failed,
            "refused": total.refused,
            "failed": failed_all,
            "unsent": measures.unsent,
            "waited_for_connection": measures.waited,
            "abandoned": measures.abandoned,
            "streams": total.streams,
            "warmup_sent": measures.warmup_sent,
            "warmup_failed": measures.warmup_failed,
        },
        "rates": {
            "requests_per_s": _per_s(window.ok, within_s),
            "output_tokens_per_s": _per_s(window.tokens, within_s),
            "prompt_tokens_per_s": _per_s(window.prompt_tokens, within_s),
            "body_bytes_per_s": _per_s(window.bytes, within_s),
        },
        "tokens": {
            "output": total.tokens,
            "prompt": total.prompt_tokens,
            "answers_with_usage": total.told,
            "estimated": total.told < total.streams,
        },
        "body_bytes": total.bytes,
        "errors": [{"error": name, "count": count} for name, count in _by_count(total.errors)],
        "times": {
            "response": _times(total.response, spread=True),
            "service": _times(total.service, spread=True),
            "corrected": _times(total.corrected, spread=True),
            "ttft": _times(total.ttft, spread=True),
            "tpot": _times(total.tpot),
            "longest_gap": _times(total.gap),
            "connect": _times(measures.connect),
        },
        "relative_error": RELATIVE_ERROR,
        "models": [_row(name or NO_MODEL, tally, plan) for name, tally in _by_ok(measures.models)],
        "engines": [_row(name, tally, plan) for name, tally in _by_ok(measures.engines)],
        "connections": {"opened": measures.connections, "resent": measures.resent},
        "generator": _generator(run, measures),
        "stages": _stages(plan),
        "timeline": [_moment(plan, point) for point in measures.points],
    }
    document["warnings"] = _warnings(plan, document)
    document["notes"] = _notes(plan, document)
    document["thresholds"] = [one.judged(document) for one in plan.thresholds]
    return document


def _window_s(run: Run, measures: Measures) -> float:
    """How long that was of which the rates are: all of the time planned, though nothing may have been due at its
    end."""
    planned_ns = measures.end_ns
    if planned_ns is None or (run.interrupted and run.ended_ns < planned_ns):
        planned_ns = run.ended_ns
    return max(0.0, planned_ns / NS)


def _config(plan: Plan, run: Run) -> dict[str, Any]:
    return {
        "url": plan.base.url,
        "path": plan.path,
        "kind": plan.kind,
        "loop": "open" if plan.open_loop else "closed",
        "models": [{"name": name, "weight": weight} for name, weight in run.models],
        "connections": plan.connections,
        "arrivals": ("poisson" if plan.poisson else "constant") if plan.open_loop else None,
        "duration_s": None if plan.duration_s is None else _rounded(plan.duration_s),
        "requests": plan.limit,
        "warmup_s": plan.warmup_s,
        "think_s": list(plan.think_s),
        "expected_interval_s": plan.expected_s,
        "stream_share": plan.stream_share,
        "unique": plan.unique,
        "max_tokens": None if plan.max_tokens is None else list(plan.max_tokens),
        "prompt_tokens": None if plan.prompt_tokens is None else list(plan.prompt_tokens),
        "shared_prefix_tokens": plan.shared_prefix,
        "params": sorted(plan.params),
        "headers": sorted(name for name, _ in plan.headers),  # never their values
        "key_from": plan.key_from or None,
        "keepalive": plan.keepalive,
        "timeout_s": plan.timeout_s,
        "seed": plan.seed,
    }


def _rounded(value: float, digits: int = 3) -> float:
    return round(value, digits)


def _ms(value_ns: Optional[float]) -> Optional[float]:
    return None if value_ns is None else round(value_ns / 1e6, 4)


def _per_s(count: int, within_s: float) -> float:
    return _rounded(count / within_s) if within_s > 0 else 0.0


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _by_ok(tallies: Mapping[str, Tally]) -> list[tuple[str, Tally]]:
    return sorted(tallies.items(), key=lambda item: (item[0] == OTHER, -item[1].ok, item[0]))


def _times(histogram: Histogram, spread: bool = False) -> Optional[dict[str, Any]]:
    if not histogram.count:
        return None
    found: dict[str, Any] = {"count": histogram.count, "min_ms": _ms(histogram.least), "mean_ms": _ms(histogram.mean)}
    for percent, value in zip(PERCENTS, histogram.percentiles(PERCENTS)):
        found[member_ms(f"p{percent:g}")] = _ms(value)
    found["max_ms"] = _ms(histogram.largest)
    if spread:
        found["spread"] = _spread(histogram)
    return found


def _spread(histogram: Histogram) -> list[list[float]]:
    """(percent, ms), as many as a curve on a logarithmic axis of 1 / (1 - share) needs."""
    points: list[list[float]] = []
    reached = -1
    steps = SPREAD_POINTS / max(1.0, math.log10(histogram.count + 1))
    for percent, value in histogram.spread():
        left = max(1 - percent / 100, 0.5 / histogram.count)
        step = math.floor(-math.log10(left) * steps)
        if step > reached or percent >= 100 or not points:
            points.append([round(percent, 6), round(value / 1e6, 4)])
            reached = step
    return points


def _row(name: str, tally: Tally, plan: Plan) -> dict[str, Any]:
    latency = tally.response if plan.open_loop else tally.service
    return {
        "name": name,
        "ok": tally.ok,
        "errors": tally.failed,
        "refused": tally.refused,
        "output_tokens": tally.tokens,
        "latency": _times(latency),
        "ttft": _times(tally.ttft),
        "tpot": _times(tally.tpot),
    }


def _generator(run: Run, measures: Measures) -> dict[str, Any]:
    share = run.cpu_s / run.wall_s if run.wall_s > 0 else 0.0
    asked = measures.sent + measures.warmup_sent
    return {
        "cpu_s": _rounded(run.cpu_s),
        "cpu_share": _rounded(share),
        "cpu_us_per_request": _rounded(run.cpu_s * 1e6 / asked, 1) if asked else None,
        "late": measures.late,
        "late_after_ms": LATE_NS / 1e6,
        "held_up": _times(measures.tick_lag),
        "lag": _times(measures.lag),
        "python": run.python,
    }


def _stages(plan: Plan) -> list[dict[str, Any]]:
    at_s, found = -plan.warmup_s, []
    for number, stage in enumerate(plan.stages):
        warm = plan.warmup_s > 0 and number == 0
        takes_s = None if stage.duration_s == math.inf else stage.duration_s
        found.append(
            {
                "at_s": at_s,
                "duration_s": takes_s,
                "from_per_s": stage.from_rate,
                "to_per_s": stage.to_rate,
                "warmup": warm,
            }
        )
        at_s += stage.duration_s
    return found


def _moment(plan: Plan, point: Point) -> dict[str, Any]:
    latency, ttft = point.latency.unpacked(), point.ttft.unpacked()
    offered = rate_at(plan.stages, point.at_s + point.width_s / 2 + plan.warmup_s) if plan.stages else None
    p50, p95, p99 = latency.percentiles((50.0, 95.0, 99.0))
    first = ttft.percentiles((50.0, 95.0, 99.0))
    return {
        "at_s": point.at_s,
        "width_s": point.width_s,
        "offered_per_s": None if offered is None else _rounded(offered),
        "sent": point.sent,
        "ok": point.ok,
        "errors": point.failed,
        "refused": point.refused,
        "output_tokens": point.tokens,
        "body_bytes": point.bytes,
        "in_flight": point.in_flight,
        "p50_ms": _ms(p50),
        "p95_ms": _ms(p95),
        "p99_ms": _ms(p99),
        "max_ms": _ms(latency.largest) if latency.count else None,
        "ttft_p50_ms": _ms(first[0]),
        "ttft_p95_ms": _ms(first[1]),
        "ttft_p99_ms": _ms(first[2]),
    }


def _warnings(plan: Plan, document: Mapping[str, Any]) -> list[str]:
    """What makes the figures wrong, or another's."""
    generator, requests, found = document["generator"], document["requests"], []
    sent = max(1, requests["sent"])
    if generator["late"] > LATE_SHARE * sent:
        found.append(
            f"THE GENERATOR COULD NOT KEEP UP: {100 * generator['late'] / sent:.1f} % of the requests were sent more "
            f"than {generator['late_after_ms']:g} ms after they were due, "
            f"p99 {shown_ns(generator['lag']['p99_ms'] * 1e6)}, with a connection at hand: this machine is too busy "
            "or too slow for it. Response times hold that delay; take a lower rate, or more machines."
        )
    elif (generator["held_up"] or {}).get("p99_ms", 0) > HELD_UP_MS:
        found.append(
            "THE GENERATOR WAS HELD UP: one in a hundred of its own looks at the time came "
            f"{shown_ns(generator['held_up']['p99_ms'] * 1e6)} too late or more, so this machine has too much else to "
            "do, and every time measured may hold such a delay."
        )
    if generator["cpu_share"] > BUSY_SHARE and generator["cpu_s"] > BUSY_S:
        found.append(
            f"THE GENERATOR WAS BUSY: it used {100 * generator['cpu_share']:.0f} % of a processor, so part of what was "
            "measured is its own doing; another process beside it shows how much."
        )
    if requests["waited_for_connection"] > LATE_SHARE * sent:
        found.append(
            f"{100 * requests['waited_for_connection'] / sent:.1f} % of the requests had to wait for one of the "
            f"{plan.connections} connections, which were all taken: the server does not bear this rate, or "
            "--connections is too low. That wait is part of the response time."
        )
    if requests["unsent"]:
        found.append(
            f"{requests['unsent']} requests were due and never sent: all {plan.connections} connections were "
            f"taken for {plan.timeout_s:g} s. They count as errors."
        )
    if requests["finished"] and requests["failed"] > 0.001 * requests["finished"]:
        share = 100 * requests["failed"] / requests["finished"]
        found.append(
            f"Times are of the {requests['ok']} requests that were answered well; {share:.3g} % were not."
            if requests["ok"]
            else "No request was answered well."
        )
    if not requests["finished"]:
        found.append("Nothing has ended that counts.")
    return found


def _notes(plan: Plan, document: Mapping[str, Any]) -> list[str]:
    """What one has to know to read the figures."""
    found = []
    if not plan.open_loop:
        found.append(
            "A closed loop: a caller who waits for a slow answer does not ask meanwhile, so a stall is seen by "
            f"{plan.connections} requests at most, and percentiles show less of it than independent users would. "
            "--rate shows what those see."
        )
    if document["connections"]["resent"]:
        found.append(
            f"{document['connections']['resent']} requests went out once more, since the server had closed the kept "
            "connection; their time counts from the first attempt."
        )
    if document["tokens"]["estimated"]:
        found.append("Some streams told no usage: their tokens are the events with text that came.")
    if document["requests"]["abandoned"]:
        found.append(f"{document['requests']['abandoned']} requests were in flight when it ended, and count nowhere.")
    return found
