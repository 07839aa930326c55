"""What is measured of one gateway: one function per section, each returning rows.

Owns the conditions of each measurement (warm-up, connection counts, what counts as invalid) and
nothing that lasts: a gateway is started for a group of sections and ended before the next one
starts. A row's metrics carry their units in their names.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from . import authtiming, client, estimates, load, measure, peers, reuse, routing, streams
from .processes import BenchError
from .running import Target, Usage, running, with_engines
from .upstream import Upstream

SECTIONS = (
    *("requests", "connections", "streams", "idle", "startup", "engines", "memory"),
    *("cache", "near", "routing", "authtiming", "estimates"),
)
STRATEGIES = ("round_robin", "random", "power_of_two", "least_connections")
ENGINE_COUNTS = (1, 10, 100, 1000)
_REQUEST_CONNECTIONS = (1, 32)
_IDLE_LIMIT_S = 30.0
# Events may be short by this share: a mark cut in two by a chunk's frame is not counted.
_EVENTS_TOLERANCE = 0.005
_MEMORY_WARMUP_REQUESTS = 10_000
_MEMORY_REQUESTS = 50_000


class Plan(NamedTuple):
    """What every measurement of a run shares; `seconds` is the length of one load run."""

    sections: tuple[str, ...]
    seconds: float
    stream_counts: tuple[int, ...]
    idle_connections: int
    run_dir: Path
    upstream: Upstream


class Row(NamedTuple):
    """One measurement: `error` is empty when it is valid, else why it is not."""

    section: str
    variant: str
    gateway: str
    metrics: dict[str, float]
    error: str = ""


def measure_direct(plan: Plan) -> list[Row]:
    """Measures the upstream with nothing in front: the baseline of added latency."""
    upstream = plan.upstream
    target = Target("direct", upstream.json_ports[0], upstream.json_pid, {}, 1.0, 0.0)
    rows = _load_rows(plan, target)
    if "streams" in plan.sections:
        streaming = target._replace(port=upstream.stream_port, pid=upstream.stream_pid)
        rows += _stream_rows(plan, streaming)
    return rows


def measure_gateway(plan: Plan, gateway: peers.Gateway) -> list[Row]:
    """Measures one gateway in every wanted section that applies to all gateways.

    It is started afresh for requests and connections, for idle connections and for streams. What
    cannot be measured becomes an invalid row; nothing is raised for it.
    """
    rows: list[Row] = []
    wanted = set(plan.sections)
    engines = plan.upstream.json_ports
    loaded = [name for name in ("requests", "connections", "startup") if name in wanted]
    if loaded:
        with _collecting(rows, loaded[0], "all", gateway.name):
            with running(gateway, engines, plan.run_dir) as target:
                rows += _rest_rows(plan, target)
                rows += _load_rows(plan, target)
                if "requests" in wanted:
                    after = measure.memory(target.pid)._asdict()
                    rows.append(Row("footprint", "after load", gateway.name, after))
    if "idle" in wanted:
        with _collecting(rows, "idle", _idle_variant(plan), gateway.name):
            with running(gateway, engines, plan.run_dir) as target:
                rows.append(_idle_row(plan, target))
    if "streams" in wanted:
        with _collecting(rows, "streams", "all", gateway.name):
            with running(gateway, engines, plan.run_dir, plan.upstream.stream_port) as target:
                rows += _stream_rows(plan, target)
    return rows


def measure_engine_counts(plan: Plan, gateway: peers.Gateway) -> list[Row]:
    """Measures what our gateway's request costs with 1 to 1 000 engines, for each strategy.

    All engines are the same nginx under different ids, so only choosing and pooling differ; health
    probes are off, because 1 000 of them would be measured as well.
    """
    rows: list[Row] = []
    for strategy in STRATEGIES:
        for count in ENGINE_COUNTS:
            variant = f"{strategy}, {count} engines"
            many = with_engines(gateway, strategy, count)
            with _collecting(rows, "engines", variant, gateway.name):
                with running(many, plan.upstream.json_ports, plan.run_dir) as target:
                    rows.append(_load_row(plan, target, "engines", variant, 32, False))
    return rows


def measure_memory(plan: Plan, gateway: peers.Gateway) -> list[Row]:
    """Measures our gateway's memory at rest, warm, and after 50 000 requests more."""
    rows: list[Row] = []
    with _collecting(rows, "memory", "50 000 requests", gateway.name):
        with running(gateway, plan.upstream.json_ports, plan.run_dir) as target:
            rest = measure.memory(target.pid)
            errors = _requests_until(plan, target, _MEMORY_WARMUP_REQUESTS)
            warm = measure.memory(target.pid)
            errors = errors or _requests_until(plan, target, _MEMORY_REQUESTS)
            after = measure.memory(target.pid)
            metrics = {
                "rest_rss_mb": rest.rss_mb,
                "rest_pss_mb": rest.pss_mb,
                "warm_rss_mb": warm.rss_mb,
                "after_rss_mb": after.rss_mb,
                "growth_rss_mb": after.rss_mb - warm.rss_mb,
            }
            rows.append(Row("memory", "50 000 requests", gateway.name, metrics, errors))
    return rows


def measure_routing() -> list[Row]:
    """Times choosing among 10 and among 10 000 engines, in this process, for each strategy."""
    rows: list[Row] = []
    with _collecting(rows, "routing", "all", "gateway"):
        costs = routing.choice_costs()
        rows += [Row("routing", variant, "gateway", cost) for variant, cost in costs.items()]
    return rows


def measure_authtiming() -> list[Row]:
    """Times refusing wrong keys and tokens, in this process; a row is invalid where the time tells the place."""
    rows: list[Row] = []
    with _collecting(rows, "authtiming", "all", "gateway"):
        for variant, times in authtiming.refusal_times().items():
            leaks = abs(times["t"]) > authtiming.LEAK_T
            error = f"the time tells where it is wrong: t = {times['t']:.1f}" if leaks else ""
            rows.append(Row("authtiming", variant, "gateway", times, error))
    return rows


def measure_estimates() -> list[Row]:
    """Compares estimates of tokens with the real numbers, in this process, for texts of many kinds."""
    rows: list[Row] = []
    with _collecting(rows, "estimates", "all", "gateway"):
        rows += [Row("estimates", kind, "gateway", found) for kind, found in estimates.estimate_errors().items()]
    return rows


def measure_cache(plan: Plan, gateway: peers.Gateway) -> list[Row]:
    """Measures what our gateway's cache saves where it has the answer, and costs where it has not."""
    rows: list[Row] = []
    with _collecting(rows, "cache", "all", gateway.name):
        for run in reuse.hits_and_misses(gateway, plan.upstream, plan.seconds, plan.run_dir):
            rows.append(Row("cache", run.variant, run.name, run.metrics, run.error))
    with _collecting(rows, "misses", "all", gateway.name):
        for run in reuse.cost_of_misses(gateway, plan.upstream, plan.seconds, plan.run_dir):
            rows.append(Row("misses", run.variant, run.name, run.metrics, run.error))
    return rows


def measure_near() -> list[Row]:
    """Times near look-ups, in this process."""
    rows: list[Row] = []
    with _collecting(rows, "near", "all", "gateway"):
        rows += [Row("near", variant, "gateway", times) for variant, times in reuse.near_times().items()]
    return rows


@contextlib.contextmanager
def _collecting(rows: list[Row], section: str, variant: str, gateway: str) -> Iterator[None]:
    """Turns a BenchError into an invalid row, so that one gateway's failure ends nothing else."""
    try:
        yield
    except BenchError as exc:
        rows.append(Row(section, variant, gateway, {}, str(exc)))


def _rest_rows(plan: Plan, target: Target) -> list[Row]:
    rows = []
    if "startup" in plan.sections:
        rows.append(Row("startup", "start", target.name, {"start_s": target.start_s}))
    if "requests" in plan.sections:
        rest = measure.memory(target.pid)._asdict()
        rows.append(Row("footprint", "at rest", target.name, rest))
    return rows


def _load_rows(plan: Plan, target: Target) -> list[Row]:
    rows = []
    for section, fresh in (("requests", False), ("connections", True)):
        if section in plan.sections:
            for count in _REQUEST_CONNECTIONS:
                variant = f"{count} connection{'s' if count > 1 else ''}"
                rows.append(_load_row(plan, target, section, variant, count, fresh))
    return rows


def _load_row(plan: Plan, target: Target, section: str, variant: str, connections: int, fresh: bool) -> Row:
    def drive(seconds: float) -> load.LoadResult:
        return load.run(target.port, target.headers, connections, seconds, plan.run_dir, fresh)

    drive(target.warmup_s)
    usage = Usage(target.pid, _upstream_pids(plan))
    result = drive(plan.seconds)
    cpu_s, foreign_percent = usage.so_far()
    metrics = {
        "cpu_us_per_request": cpu_s / max(1, result.requests) * 1e6,
        "requests_per_s": result.requests / result.duration_s,
        "p50_us": float(result.p50_us),
        "p99_us": float(result.p99_us),
        "foreign_cpu_percent": foreign_percent,
    }
    return Row(section, variant, target.name, metrics, _load_error(result))


def _load_error(result: load.LoadResult) -> str:
    if result.requests == 0:
        return "no request was answered"
    found = ", ".join(f"{count} {kind}" for kind, count in result.errors.items())
    return f"errors among {result.requests} requests: {found}" if found else ""


def _stream_rows(plan: Plan, target: Target) -> list[Row]:
    rows = []
    for count in plan.stream_counts:
        usage = Usage(target.pid, _upstream_pids(plan))
        result = streams.run(target.port, target.headers, target.pid, count, plan.seconds, plan.run_dir)
        _cpu_s, foreign_percent = usage.so_far()
        metrics = {
            "cpu_us_per_event": result.cpu_s / max(1, result.events) * 1e6,
            "events": float(result.events),
            "events_sent": float(result.events_sent),
            "first_event_p50_ms": result.first_event_p50_ms,
            "first_event_p99_ms": result.first_event_p99_ms,
            "client_cpu_percent": result.client_cpu_s / result.duration_s * 100,
            "foreign_cpu_percent": foreign_percent,
        }
        if result.steady_events:
            steady_us = result.steady_cpu_s / result.steady_events * 1e6
            metrics["steady_cpu_us_per_event"] = steady_us
            metrics["events_per_s"] = result.steady_events / result.steady_s
        error = _stream_error(result)
        rows.append(Row("streams", f"{count} streams", target.name, metrics, error))
    return rows


def _stream_error(result: streams.StreamResult) -> str:
    if result.errors:
        return ", ".join(f"{count} streams: {kind}" for kind, count in result.errors.items())
    if result.events < result.events_sent * (1 - _EVENTS_TOLERANCE):
        return f"{result.events_sent - result.events} of {result.events_sent} events missing"
    return ""


def _idle_row(plan: Plan, target: Target) -> Row:
    # What the first requests allocate once is not what a connection costs.
    load.run(target.port, target.headers, 4, 1.0, plan.run_dir)
    time.sleep(0.5)
    before = measure.memory(target.pid)
    idle = client.open_idle(target.port, target.headers, plan.idle_connections, _IDLE_LIMIT_S)
    try:
        time.sleep(1.0)
        after = measure.memory(target.pid)
        held = idle.still_open()
    finally:
        idle.close()
    metrics = {
        "kb_per_connection": (after.pss_mb - before.pss_mb) * 1000 / max(1, held),
        "held": float(held),
    }
    short = f"only {held} of {plan.idle_connections} connections held"
    return Row(
        "idle",
        _idle_variant(plan),
        target.name,
        metrics,
        short if held < plan.idle_connections else "",
    )


def _upstream_pids(plan: Plan) -> set[int]:
    return {plan.upstream.json_pid, plan.upstream.stream_pid}


def _idle_variant(plan: Plan) -> str:
    return f"{plan.idle_connections} connections"


def _requests_until(plan: Plan, target: Target, count: int) -> str:
    """Drives at least `count` requests; returns what went wrong, '' when nothing did."""
    done = 0
    while done < count:
        result = load.run(target.port, target.headers, 32, plan.seconds, plan.run_dir)
        if error := _load_error(result):
            return error
        done += result.requests
    return ""
