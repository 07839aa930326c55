"""Advice as text and as JSON, with its reasons. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.tools.advise.sizing import Advice, Ask, Tried
from gateway.tools.loadtest.durations import counted, shown_ns, three_digits


def lines(advice: Advice, ask: Ask, source: str) -> Iterator[str]:
    """The advice, and why."""
    seen = advice.seen
    percent = f"p{ask.percentile:g}"
    yield f"seen in {source}: {counted(seen.requests)} answered requests"
    busy = f"{three_digits(seen.busy_rate)}/s in the busiest minute" if seen.busy_rate > seen.mean_rate else "evenly"
    yield f"  they came at {three_digits(seen.mean_rate)}/s on average, {busy}"
    service = f"mean {_s(seen.service_mean_s)}, p50 {_s(seen.service_median_s)}, {percent} {_s(seen.service_at_s)}"
    yield f"  an engine took {service} (as lognormal: sigma {seen.sigma:.2f})"
    wanted = seen.busy_rate * ask.headroom
    yield f"wanted: {percent} within {_s(ask.slo_s)} at {three_digits(wanted)}/s, {ask.headroom:g} times the busiest"
    yield ""
    if advice.engines is None:
        yield f"No number of engines keeps that: {_why_not(advice, ask, percent)}"
        return
    for tried in sorted(advice.tried):
        yield f"  {_told(tried, ask, percent)}"
    if min(tried.engines for tried in advice.tried) == advice.engines > 1:
        yield "  with fewer, work comes faster than it is done"
    yield ""
    yield f"engines           {advice.engines}, of {ask.slots} slots each (max_concurrency: {ask.slots})"
    yield f"strategy          {ask.strategy}"
    yield f"WORKERS           {advice.workers}"
    yield f"QUEUE_SIZE        {advice.queue_size}"
    yield f"RATE_LIMIT_GLOBAL_RPM  {advice.rpm}"
    yield ""
    chosen = next(tried for tried in advice.tried if tried.engines == advice.engines)
    yield f"They are busy for {100 * chosen.utilisation:.0f} % at that rate, and keep {percent} up to"
    yield f"{three_digits(advice.rate)}/s: that is the limit of all requests; beyond it, who is refused is told when to"
    yield "come back, and the others are still answered in time. At that limit, WORKERS hold what is under way at once"
    yield "for 99.9 % of the time (Little's law), and QUEUE_SIZE what comes while a usual request may still wait."
    yield ""
    yield "assumed: requests come independently of each other at that rate (Poisson); a request takes what one took"
    yield "in the record, waits there included; engines are alike, none fails, no slot slows its neighbours down."


def _why_not(advice: Advice, ask: Ask, percent: str) -> str:
    if advice.seen.service_at_s > ask.slo_s:
        return f"an engine alone takes {_s(advice.seen.service_at_s)} ({percent})."
    best = min(advice.tried, key=lambda tried: tried.at_s)
    return f"with {best.engines} it is still {_s(best.at_s)}."


def _told(tried: Tried, ask: Ask, percent: str) -> str:
    failed = f", {100 * tried.failed_share:.1f} % fail" if tried.failed_share else ""
    verdict = "kept" if tried.keeps(ask) else "not kept"
    engines = f"{tried.engines} engine{'' if tried.engines == 1 else 's'}"
    return f"{engines}: {percent} {_s(tried.at_s)}, {100 * tried.utilisation:.0f} % busy{failed}: {verdict}"


def as_json(advice: Advice, ask: Ask, source: str) -> dict[str, Any]:
    """The same for programs."""
    return {
        "source": source,
        "asked": ask._asdict(),
        "seen": advice.seen._asdict(),
        "tried": [one._asdict() for one in sorted(advice.tried)],
        "engines": advice.engines,
        "max_concurrency": None if advice.engines is None else ask.slots,
        "rate_per_s": advice.rate,
        "settings": {}
        if advice.engines is None
        else {
            "WORKERS": advice.workers,
            "QUEUE_SIZE": advice.queue_size,
            "RATE_LIMIT_GLOBAL_RPM": advice.rpm,
        },
    }


def _s(value_s: float) -> str:
    return shown_ns(value_s * 1e9) if value_s < 1e9 else "for ever"
