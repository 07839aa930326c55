"""What alert rules look at, read from the metrics: nothing is counted twice.

Owns the way from the metrics' series to plain numbers by labels.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping

from gateway.telemetry.exposition import Distribution, Family

Numbers = Mapping[str, Mapping[tuple[str, ...], "array[float]"]]
"""By family (`requests`, ...) and labels: counts that only grow.

requests (model, path): all, those with 5xx. latency (model, path), ttft (model): by bucket. attempts (model, engine):
all, failed ones. verifications (): those with code, those in which the models did not agree.
"""

OWN_FAULT = frozenset({"ok", "cancelled", "rejected", "not_implemented"})
"""Outcomes of attempts that say nothing bad of the engine."""
NO_CODE = frozenset({"no_code", "unfinished"})
DISAGREED = frozenset({"best_available", "abstained"})


NAMES = (
    "gateway_requests_total",
    "gateway_request_duration_seconds",
    "gateway_time_to_first_token_seconds",
    "gateway_engine_requests_total",
    "gateway_verifications_total",
)
"""The metrics that are read."""
QUEUE_NAMES = ("gateway_queue_depth", "gateway_queue_size")


def read_numbers(metrics: Iterable[Family]) -> Numbers:
    """What these metrics have counted. Requests without a model are left out."""
    series = {family.name: family.series for family in metrics}
    requests, latency, ttft, attempts, verifications = (series.get(name, ()) for name in NAMES)
    families: dict[str, dict[tuple[str, ...], array[float]]] = {
        "requests": {},
        "latency": {(model, path): _counts(found) for (path, model), found in latency if model},
        "ttft": {(model,): _counts(found) for (model,), found in ttft if model},
        "attempts": {},
        "verifications": {},
    }
    for (path, model, status), found in requests:
        if model:
            _add(families["requests"], (model, path), found, status[:1] == "5")
    for (model, engine, outcome), found in attempts:
        if outcome != "cancelled":
            _add(families["attempts"], (model, engine), found, outcome not in OWN_FAULT)
    for (result,), found in verifications:
        if result not in NO_CODE:
            _add(families["verifications"], (), found, result in DISAGREED)
    return families


def read_queue(metrics: Iterable[Family]) -> tuple[int, int]:
    """Requests that wait for a worker, and places for them."""
    found = {family.name: family.series[0][1] for family in metrics if family.series}
    waiting, places = (found.get(name, 0) for name in QUEUE_NAMES)
    assert not isinstance(waiting, Distribution) and not isinstance(places, Distribution)
    return int(waiting), int(places)


def _counts(found: float | Distribution) -> array[float]:
    return array("d", found.counts if isinstance(found, Distribution) else (found,))


def _add(
    family: dict[tuple[str, ...], array[float]], labels: tuple[str, ...], counted: float | Distribution, bad: bool
) -> None:
    count = 0.0 if isinstance(counted, Distribution) else counted
    found = family.get(labels)
    if found is None:
        found = family[labels] = array("d", (0.0, 0.0))
    found[0] += count
    if bad:
        found[1] += count
