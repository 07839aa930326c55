"""The gateway's own metrics that are read when they are asked for, from whoever knows: nothing is counted here.

Owns nothing. The callables are called without the registry's lock, on the thread that writes the page.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from typing import Callable, Optional

from gateway.telemetry.merging import LEADER, MAX, MIN, SUM
from gateway.telemetry.registry import Registry
from gateway.telemetry.slo import WINDOWS_S, SloFigures


def bind_engines(registry: Registry, engines: Callable[[], Iterable[tuple[str, str, bool, int]]]) -> None:
    """Declares the gauges read from `engines`: (model, engine, up, requests in flight)."""
    registry.callback(
        "gateway_engine_up",
        "gauge",
        "1 when the engine may be chosen.",
        ("model", "engine"),
        lambda: [((model, engine), int(up)) for model, engine, up, _ in engines()],
        merge=MIN,
    )
    registry.callback(
        "gateway_engine_inflight",
        "gauge",
        "Requests the engine is working on.",
        ("model", "engine"),
        lambda: [((model, engine), in_flight) for model, engine, _, in_flight in engines()],
        merge=SUM,
    )


def bind_surplus(registry: Registry, counts: Callable[[], Iterable[tuple[tuple[str, str], float]]]) -> None:
    """Declares how often engines have sent more than they were asked for: ((model, engine), count)."""
    registry.callback(
        "gateway_engine_surplus_total",
        "counter",
        "Connections closed because the engine sent bytes behind an answer, or without a request.",
        ("model", "engine"),
        counts,
    )


def bind_breakers(
    registry: Registry,
    states: Callable[[], Iterable[tuple[tuple[str, str], int]]],
    waiting: Callable[[], Iterable[tuple[tuple[str], int]]],
) -> None:
    """Declares the gauges of circuit breakers ((model, engine), state) and of requests waiting for an engine."""
    registry.callback(
        "gateway_breaker_state",
        "gauge",
        "Circuit breaker of an engine: 0 closed, 1 half-open, 2 open.",
        ("model", "engine"),
        states,
        merge=MAX,
    )
    registry.callback(
        "gateway_engine_queue_depth",
        "gauge",
        "Requests waiting for a place on an engine of the model.",
        ("model",),
        waiting,
        merge=SUM,
    )


def bind_policy(
    registry: Registry,
    factors: Callable[[], Iterable[tuple[tuple[str], float]]],
    ledger_dropped: Callable[[], float],
    state_db_errors: Callable[[], float],
    budget_used: Callable[[], float | None],
) -> None:
    """Declares the factors of the adaptive limits ((priority), factor), the rows that the ledger has lost, how often
    the state database could not be written, and how much of its budget the key has spent that has spent most of it
    (None: no key has one)."""
    registry.callback(
        "gateway_limit_factor",
        "gauge",
        "What is left of keys' limits while the gateway is behind, by priority.",
        ("priority",),
        factors,
        merge=MIN,
    )
    registry.callback(
        "gateway_ledger_dropped_total",
        "counter",
        "Rows that the ledger has lost.",
        (),
        lambda: [((), ledger_dropped())],
    )
    registry.callback(
        "gateway_state_db_errors_total",
        "counter",
        "Writes to the state database that failed; what can be kept is written later.",
        (),
        lambda: [((), state_db_errors())],
    )
    registry.callback(
        "gateway_budget_used_ratio",
        "gauge",
        "What a key has spent of its budget, 0 to 1; the highest of all keys.",
        (),
        lambda: [] if (used := budget_used()) is None else [((), used)],
        merge=MAX,
    )


def bind_discovery(registry: Registry, states: Callable[[], Iterable[tuple[str, str, int, int, float | None]]]) -> None:
    """Declares what is read from `states` of models whose engines are discovered: (model, source, engines, failures,
    seconds since the last good answer or None)."""
    registry.callback(
        "gateway_discovered_engines",
        "gauge",
        "Engines that the last good answer of the model's source had.",
        ("model",),
        lambda: [((model,), engines) for model, _, engines, _, _ in states()],
        merge=MAX,
    )
    registry.callback(
        "gateway_discovery_failures_total",
        "counter",
        "Looks for engines without a usable answer; the last good one stays in use.",
        ("model", "source"),
        lambda: [((model, source), failures) for model, source, _, failures, _ in states()],
    )
    registry.callback(
        "gateway_discovery_age_seconds",
        "gauge",
        "Seconds since the model's source last had a good answer.",
        ("model",),
        lambda: [((model,), age_s) for model, _, _, _, age_s in states() if age_s is not None],
        merge=MAX,
    )


def bind_shared(
    registry: Registry,
    state: Callable[[], Optional[tuple[Iterable[tuple[str, int]], int, int, int]]],
) -> None:
    """Declares who decides on limits that gateways share, and what each has decided, the gateways last known, and the
    failures of Redis: `state` gives ((mode, decided), ...), the place of the mode that it is now, the gateways, the
    failures; None: nothing is shared."""

    def modes() -> Iterable[tuple[tuple[str], float]]:
        found = state()
        return [] if found is None else [((mode,), float(at == found[1])) for at, (mode, _) in enumerate(found[0])]

    def decided() -> Iterable[tuple[tuple[str], float]]:
        found = state()
        return [] if found is None else [((mode,), count) for mode, count in found[0]]

    registry.callback(
        "gateway_shared_state",
        "gauge",
        "1 for who decides on shared limits: shared (Redis), local (this gateway), closed (they are refused).",
        ("mode",),
        modes,
        merge=MAX,
    )
    registry.callback(
        "gateway_shared_decisions_total",
        "counter",
        "Requests to which a shared limit applied, by who has decided.",
        ("mode",),
        decided,
    )
    registry.callback(
        "gateway_shared_peers",
        "gauge",
        "Gateways that share their state, as last known.",
        (),
        lambda: [] if (found := state()) is None else [((), found[2])],
        merge=MAX,
    )
    registry.callback(
        "gateway_shared_errors_total",
        "counter",
        "Failures of the Redis that gateways share their state in.",
        (),
        lambda: [] if (found := state()) is None else [((), found[3])],
    )


def bind_alerts(
    registry: Registry,
    counts: Callable[[], Iterable[tuple[tuple[str, str], int]]],
    notifications: Callable[[], Iterable[tuple[tuple[str], int]]],
) -> None:
    """Declares how many alerts each rule has ((name, state), count), and what became of sent ones ((result), count)."""
    registry.callback("gateway_alerts", "gauge", "Alerts by rule and state.", ("name", "state"), counts, merge=LEADER)
    registry.callback(
        "gateway_alert_notifications_total",
        "counter",
        "Alerts sent, by what became of them.",
        ("result",),
        notifications,
    )


def bind_slos(registry: Registry, figures: Callable[[], Iterable[SloFigures]]) -> None:
    """Declares what is left of error budgets, and how fast they are spent."""

    def remaining() -> Iterable[tuple[tuple[str], float]]:
        least: dict[str, float] = {}
        for one in figures():
            least[one.model] = min(one.remaining, least.get(one.model, 1.0))
        return [((model,), share) for model, share in least.items()]

    def burns() -> Iterable[tuple[tuple[str, str, str], float]]:
        return [
            ((one.model, one.objective, window), one.burn_by_s[window_s])
            for one in figures()
            for window, window_s in WINDOWS_S.items()
        ]

    registry.callback(
        "gateway_slo_error_budget_remaining",
        "gauge",
        "What is left of three days' error budget, of 1; with two objectives the smaller.",
        ("model",),
        remaining,
        merge=LEADER,
    )
    registry.callback(
        "gateway_slo_burn_rate",
        "gauge",
        "How many times as fast as allowed the error budget is spent.",
        ("model", "objective", "window"),
        burns,
        merge=LEADER,
    )


def bind_cache(registry: Registry, figures: Callable[[], tuple[int, int, int]]) -> None:
    """Declares what the cache holds: (entries, bytes, evictions)."""
    for place, (name, kind, text, merge) in enumerate(
        (
            ("gateway_cache_entries", "gauge", "Answers in the cache.", SUM),
            ("gateway_cache_bytes", "gauge", "Memory that the answers in the cache take.", SUM),
            ("gateway_cache_evictions_total", "counter", "Answers dropped from the cache to make room.", ""),
        )
    ):
        registry.callback(name, kind, text, (), lambda place=place: [((), figures()[place])], merge)  # type: ignore[misc]


def bind_queue(registry: Registry, depth: Callable[[], int], busy: Callable[[], int], size: int) -> None:
    """Declares the gauges of waiting requests (`depth`, at most `size`) and working threads (`busy`)."""
    registry.callback(
        "gateway_queue_depth",
        "gauge",
        "Requests waiting for a worker.",
        (),
        lambda: [((), depth())],
        merge=SUM,
    )
    registry.callback(
        "gateway_queue_size",
        "gauge",
        "Places for requests that wait for a worker.",
        (),
        lambda: [((), size)],
        merge=SUM,
    )
    registry.callback(
        "gateway_workers_busy",
        "gauge",
        "Workers with a request in hand.",
        (),
        lambda: [((), busy())],
        merge=SUM,
    )


def bind_in_flight(registry: Registry, in_flight: Callable[[], int]) -> None:
    """Declares the gauge of requests under way, waiting ones and open streams too."""
    registry.callback(
        "gateway_requests_in_flight",
        "gauge",
        "Requests of inference that have not ended: waiting, at an engine, or streaming.",
        (),
        lambda: [((), in_flight())],
        merge=SUM,
    )


def bind_build(registry: Registry, version: str) -> None:
    """Declares what runs: the gateway's version, and the interpreter's."""
    labels = (version, platform.python_implementation(), platform.python_version())
    registry.callback(
        "gateway_build_info",
        "gauge",
        "Always 1; its labels tell what runs.",
        ("version", "implementation", "python"),
        lambda: [(labels, 1)],
        merge=MAX,
    )
