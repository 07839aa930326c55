"""The rules there always are, unless ALERTS_FILE says `"defaults": false` or has one of the same name.

Each has a twin for Prometheus in docs/deploy/prometheus/rules.yml, with the same threshold and times.
"""

from __future__ import annotations

from gateway.alerts.rules import Rule

BY_MODEL, BY_ENGINE, BY_OBJECTIVE = ("model",), ("model", "engine"), ("model", "objective")

_USUAL = (
    Rule(
        "ErrorRatioHigh",
        "error_ratio",
        BY_MODEL,
        window_s=300,
        above=0.05,
        for_s=120,
        at_least=20,
        severity="critical",
        summary="{value} of the requests for {model} are answered with an error of the service",
    ),
    Rule(
        "LatencyHigh",
        "latency_p95_ms",
        BY_MODEL,
        window_s=300,
        above=60_000,
        for_s=300,
        at_least=20,
        summary="95 % of the requests for {model} take up to {value}",
    ),
    Rule(
        "FirstTokenSlow",
        "ttft_p95_ms",
        BY_MODEL,
        window_s=300,
        above=10_000,
        for_s=300,
        at_least=20,
        summary="95 % of the streams of {model} begin within {value}",
    ),
    Rule(
        "EngineDown",
        "engine_down",
        BY_ENGINE,
        above=0,
        for_s=120,
        summary="engine {engine} of {model} cannot be used",
    ),
    Rule(
        "ModelWithoutEngine",
        "model_without_engine",
        BY_MODEL,
        above=0,
        for_s=30,
        severity="critical",
        summary="no engine of {model} can be used",
    ),
    Rule(
        "EngineSlowdown",
        "engine_anomaly",
        BY_ENGINE,
        above=2,
        for_s=120,
        keep_firing_s=300,
        at_least=20,
        summary="engine {engine} of {model} is {value} slower than usual",
    ),
    Rule(
        "QueueFilling",
        "queue_fill",
        above=0.5,
        for_s=60,
        summary="{value} of the queue is taken",
    ),
    Rule(
        "BudgetNearlySpent",
        "budget_used",
        above=0.9,
        summary="a key has spent {value} of its budget; the log's line budget_warning names it",
    ),
    Rule(
        "VerificationDisagreement",
        "verification_disagreement",
        window_s=900,
        above=0.5,
        for_s=300,
        at_least=20,
        summary="in {value} of the verifications the models do not agree",
    ),
)


def _burn(name: str, window_s: int, above: float, severity: str, window: str) -> Rule:
    summary = f"{{model}} spends its error budget ({{objective}}) at {{value}} the rate allowed, over {window}"
    return Rule(
        name,
        "slo_burn_rate",
        BY_OBJECTIVE,
        window_s=window_s,
        above=above,
        at_least=20,
        severity=severity,
        summary=summary,
    )


_BURNS = (
    # Google's SRE workbook, chapter 5, table 5-8: 2 %, 5 % and 10 % of 30 days' budget.
    _burn("SloBurnFast", 3600, 14.4, "critical", "1 h"),
    _burn("SloBurn", 21_600, 6, "critical", "6 h"),
    _burn("SloBurnSlow", 259_200, 1, "warning", "3 d"),
)


def default_rules(slos: bool) -> tuple[Rule, ...]:
    """Those for a gateway with objectives (`slos`), or without."""
    return _USUAL + _BURNS if slos else _USUAL
