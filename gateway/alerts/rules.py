"""What a rule, a silence and a set of both are. Pure: shapes, and what they say of a value or of labels.

`MEASURES` is the closed set of what a rule can look at; `measuring.py` works the values out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Optional

from gateway.routing.checks import fits

Labels = tuple[tuple[str, str], ...]
"""Pairs of name and value, by name."""

BURN_WINDOWS_S: Mapping[int, int] = {3600: 300, 21_600: 1800, 259_200: 21_600}
"""The long windows of burn rates, and the short one that shows that it still goes on: Google's SRE workbook, chapter 5
(Alerting on SLOs), table 5-8."""
WINDOW_MAX_S = 3600
DAY_S = 86_400
INTERVAL_S = 5.0
PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Measure(NamedTuple):
    """What can be looked at. `window_s`: over how long, unless a rule says otherwise; 0: as it is now."""

    labels: tuple[str, ...]
    """What a rule may tell apart; the first ones (`by`) it does unless it says otherwise."""
    by: tuple[str, ...]
    unit: str
    text: str
    window_s: int = 0
    counts: bool = False
    """Whether it is worked out of events, so that `at_least` says something."""


MEASURES: Mapping[str, Measure] = {
    "error_ratio": Measure(
        ("model", "path"), ("model",), "ratio", "requests answered with 5xx, of all", 300, counts=True
    ),
    "latency_p95_ms": Measure(
        ("model", "path"), ("model",), "ms", "within which 95 % of requests are answered", 300, counts=True
    ),
    "ttft_p95_ms": Measure(
        ("model",), ("model",), "ms", "within which 95 % of streams have their first event", 300, counts=True
    ),
    "engine_error_ratio": Measure(
        ("model", "engine"), ("model", "engine"), "ratio", "attempts at an engine that failed, of all", 300, counts=True
    ),
    "engine_down": Measure(
        ("model", "engine"), ("model", "engine"), "", "engines that cannot be chosen and are not drained"
    ),
    "engine_anomaly": Measure(
        ("model", "engine"),
        ("model", "engine"),
        "times",
        "how many times slower than usual the engine answers",
        counts=True,
    ),
    "model_without_engine": Measure(("model",), ("model",), "", "models of which no engine can be chosen"),
    "queue_fill": Measure((), (), "ratio", "places of the queue that are taken, of QUEUE_SIZE"),
    "budget_used": Measure(("key",), (), "ratio", "what a key has spent, of its budget; the highest of all"),
    "verification_disagreement": Measure(
        (), (), "ratio", "verifications in which the models did not agree, of those with code", 900, counts=True
    ),
    "slo_burn_rate": Measure(
        ("model", "objective"),
        ("model", "objective"),
        "times",
        "how fast the error budget is spent, over the window and its twelfth",
        3600,
        counts=True,
    ),
    "slo_budget_remaining": Measure(
        ("model", "objective"), ("model", "objective"), "ratio", "what is left of three days' error budget", counts=True
    ),
}


@dataclass(frozen=True)
class Rule:
    """One rule; made by `rulesfile.py`, which has checked it, or `defaults.py`."""

    name: str
    what: str
    by: tuple[str, ...] = ()
    match: Labels = ()
    """Patterns (`*`, `?`, `[abc]`) that labels of the measure must fit to be looked at."""
    window_s: float = 0
    above: Optional[float] = None
    below: Optional[float] = None
    for_s: float = 0.0
    keep_firing_s: float = 0.0
    at_least: int = 1
    """With fewer events in the window there is no judgement."""
    severity: str = "warning"
    labels: Labels = ()
    summary: str = ""
    annotations: Labels = ()

    def holds(self, value: float) -> bool:
        """Whether the value is one to warn of."""
        return (self.above is not None and value > self.above) or (self.below is not None and value < self.below)

    def admits(self, labels: Mapping[str, str]) -> bool:
        """Whether a series with these labels is looked at."""
        return all(fits(labels.get(name, ""), pattern) for name, pattern in self.match)

    def identity(self, series: Labels) -> Labels:
        """The labels of the alert for a series, `alertname` and `severity` among them."""
        named = {"severity": self.severity, **dict(self.labels), **dict(series), "alertname": self.name}
        return tuple(sorted((name, value) for name, value in named.items() if value))

    def filled(self, text: str, series: Labels, value: Optional[float]) -> str:
        """A text with the series' labels and the value for `{model}`, `{value}` and the like."""
        words = {**dict(self.labels), **dict(series), "value": shown(value, MEASURES[self.what].unit)}
        return PLACEHOLDER.sub(lambda found: words.get(found[1], found[0]), text)


@dataclass(frozen=True)
class Silence:
    """Alerts whose labels fit all patterns are not sent, from `from_unix_s` up to `until_unix_s` (None: open)."""

    match: Labels
    from_unix_s: Optional[float] = None
    until_unix_s: Optional[float] = None
    why: str = ""

    def covers(self, identity: Labels, now_unix_s: float) -> bool:
        """Whether an alert with these labels is silenced now."""
        if self.from_unix_s is not None and now_unix_s < self.from_unix_s:
            return False
        if self.until_unix_s is not None and now_unix_s >= self.until_unix_s:
            return False
        labels = dict(identity)
        return all(fits(labels.get(name, ""), pattern) for name, pattern in self.match)


@dataclass(frozen=True)
class RuleSet:
    """Everything that ALERTS_FILE says, the usual rules included."""

    rules: tuple[Rule, ...]
    silences: tuple[Silence, ...] = ()
    interval_s: float = INTERVAL_S


def shown(value: Optional[float], unit: str) -> str:
    """A value for people."""
    if value is None:
        return "-"
    if unit == "ratio":
        return f"{100 * value:.3g} %"
    if unit == "ms":
        return f"{value:.0f} ms"
    return f"{value:.3g} times" if unit == "times" else f"{value:g}"
