"""Writes the Grafana dashboard: `python3 docs/deploy/grafana/make.py > docs/deploy/grafana/inference-gateway.json`.

What is shown stands in ROWS; the rest is what Grafana wants to have said about it. A test holds the file to what this
writes, and every name in it to what the gateway gives.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple, Optional

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
HERE = 'instance=~"$instance"'
MODEL = f'model=~"$model",{HERE}'
ENGINE = f'engine=~"$engine",{MODEL}'
GENAI = f'gen_ai_request_model=~"$model",{HERE}'
WIDTH = 24
QUANTILES = (0.5, 0.95, 0.99)

Query = tuple[str, str]
"""An expression, and how its series are called."""


class Panel(NamedTuple):
    """One picture."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    exemplars: bool = False
    mappings: tuple[tuple[str, str, str], ...] = ()
    """Values with the texts and colours that they are shown by."""
    thresholds: tuple[tuple[Optional[float], str], ...] = ((None, "green"),)
    maximum: Optional[float] = None


def rate(metric: str, labels: str, by: str = "", kind: str = "rate") -> str:
    """A counter's rate, summed."""
    grouped = f"sum by ({by}) " if by else "sum "
    return f"{grouped}({kind}({metric}{{{labels}}}[$__rate_interval]))"


def quantiles(metric: str, labels: str, of: tuple[float, ...] = QUANTILES, by: str = "") -> tuple[Query, ...]:
    """Quantiles of a histogram."""
    buckets = rate(f"{metric}_bucket", labels, f"le, {by}" if by else "le")
    name = f" {{{{{by}}}}}" if by else ""
    return tuple((f"histogram_quantile({one}, {buckets})", f"p{one * 100:g}{name}") for one in of)


def stat(title: str, description: str, unit: str, query: str, **further: Any) -> Panel:
    """One number."""
    return Panel(title, description, unit, ((query, ""),), "stat", 3, 4, **further)


REQUESTS = rate("gateway_requests_total", MODEL)
ERRORS = rate("gateway_requests_total", f'{MODEL},status=~"5..|429"')
ERROR_RATIO = f"({ERRORS} or vector(0)) / {REQUESTS}"
HITS, LOOKED = f'{MODEL},result=~"hit|near"', f'{MODEL},result!="bypass"'
DURATION = "gateway_request_duration_seconds"
FIRST = "gateway_time_to_first_token_seconds"
BREAKERS = (("0", "closed", "green"), ("1", "half-open", "yellow"), ("2", "open", "red"))
UP = (("0", "out", "red"), ("1", "in", "green"))
ERROR_STEPS = ((None, "green"), (0.01, "yellow"), (0.05, "red"))

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Overview",
        (
            stat("Requests", "Answered, a second.", "reqps", REQUESTS),
            stat(
                *("Errors", "Share of 5xx and 429.", "percentunit", ERROR_RATIO),
                thresholds=ERROR_STEPS,
            ),
            stat("Latency p95", "From first byte to last.", "s", quantiles(DURATION, MODEL, (0.95,))[0][0]),
            stat("First token p95", "Of streams.", "s", quantiles(FIRST, MODEL, (0.95,))[0][0]),
            stat(
                *("Tokens", "Generated, a second.", "short"),
                rate("gateway_tokens_total", f'{MODEL},kind="completion"'),
            ),
            stat(
                "In flight",
                "Waiting, at an engine, or streaming.",
                "short",
                f"sum(gateway_requests_in_flight{{{HERE}}})",
            ),
            stat(
                *("Engines in", "Share that may be chosen.", "percentunit", f"avg(gateway_engine_up{{{ENGINE}}})"),
                thresholds=((None, "red"), (0.5, "yellow"), (1, "green")),
            ),
            stat(
                "Cost",
                "An hour, by the models' prices.",
                "currencyUSD",
                f"3600 * {rate('gateway_cost_usd_total', MODEL)}",
            ),
        ),
    ),
    (
        "Requests",
        (
            Panel(
                *("Requests by status", "", "reqps"),
                ((rate("gateway_requests_total", MODEL, "status"), "{{status}}"),),
                stacked=True,
            ),
            Panel(
                *("Error ratio", "5xx and 429: what clients had no answer for.", "percentunit"),
                ((ERROR_RATIO, "all"),),
                thresholds=ERROR_STEPS,
            ),
            Panel(
                *("Errors by code", "Of requests of inference, as docs/ERRORS.md has them.", "reqps"),
                (
                    (
                        rate("gen_ai_server_request_duration_seconds_count", f'{GENAI},error_type!=""', "error_type"),
                        "{{error_type}}",
                    ),
                ),
                stacked=True,
            ),
            Panel("Latency", "From first byte to last.", "s", quantiles(DURATION, MODEL), exemplars=True),
            Panel("Time to first token", "Of streams.", "s", quantiles(FIRST, MODEL), exemplars=True),
            Panel(
                *("Time per output token", "Of streams, behind the first one.", "s"),
                quantiles("gen_ai_server_time_per_output_token_seconds", GENAI),
            ),
            Panel(
                *("Tokens", "A second.", "short"),
                ((rate("gateway_tokens_total", MODEL, "model, kind"), "{{model}} {{kind}}"),),
                stacked=True,
            ),
            Panel(
                *("In flight and waiting", "", "short"),
                (
                    (f"sum(gateway_requests_in_flight{{{HERE}}})", "in flight"),
                    (f"sum(gateway_workers_busy{{{HERE}}})", "workers busy"),
                    (f"sum(gateway_queue_depth{{{HERE}}})", "waiting for a worker"),
                    (f"sum by (model) (gateway_engine_queue_depth{{{MODEL}}})", "waiting for {{model}}"),
                ),
            ),
            Panel("Wait for a worker", "", "s", quantiles("gateway_queue_wait_seconds", HERE)),
        ),
    ),
    (
        "Engines",
        (
            Panel(
                *("In or out", "", "short"),
                ((f"min by (model, engine) (gateway_engine_up{{{ENGINE}}})", "{{model}} {{engine}}"),),
                *("state-timeline", 12),
                mappings=UP,
            ),
            Panel(
                *("Breakers", "", "short"),
                ((f"max by (model, engine) (gateway_breaker_state{{{ENGINE}}})", "{{model}} {{engine}}"),),
                *("state-timeline", 12),
                mappings=BREAKERS,
            ),
            Panel(
                *("Latency by engine", "p95 of attempts, failed ones too.", "s"),
                quantiles("gateway_engine_duration_seconds", ENGINE, (0.95,), "engine"),
                exemplars=True,
            ),
            Panel(
                *("Attempts by engine", "", "reqps"),
                ((rate("gateway_engine_requests_total", ENGINE, "engine"), "{{engine}}"),),
                stacked=True,
            ),
            Panel(
                *("At work by engine", "", "short"),
                ((f"sum by (engine) (gateway_engine_inflight{{{ENGINE}}})", "{{engine}}"),),
                stacked=True,
            ),
            Panel(
                *("Failed attempts", "How they ended.", "reqps"),
                (
                    (
                        rate("gateway_engine_requests_total", f'{ENGINE},outcome!="ok"', "engine, outcome"),
                        "{{engine}} {{outcome}}",
                    ),
                ),
            ),
            Panel(
                *("What clients did not notice", "", "reqps"),
                (
                    (rate("gateway_retries_total", MODEL, "reason"), "retry: {{reason}}"),
                    (
                        f"sum by (from_model, to_model) (rate(gateway_fallbacks_total{{{HERE}}}[$__rate_interval]))",
                        "fallback: {{from_model}} to {{to_model}}",
                    ),
                    (rate("gateway_hedges_total", MODEL), "second engine asked"),
                    (rate("gateway_stream_resumes_total", MODEL), "stream went on elsewhere"),
                    (rate("gateway_rescued_total", ENGINE), "passed on from an engine that hung"),
                ),
            ),
            Panel(
                *("Engines to mend", "Sent more than was asked for, or counts that cannot be.", "reqps"),
                (
                    (rate("gateway_engine_surplus_total", ENGINE, "engine"), "surplus: {{engine}}"),
                    (rate("gateway_usage_rejected_total", ENGINE, "engine"), "usage: {{engine}}"),
                ),
            ),
            Panel(
                *("Engines discovered", "In the last good answer, and looks a second without one.", "short"),
                (
                    (f"min by (model) (gateway_discovered_engines{{{MODEL}}})", "{{model}}"),
                    (rate("gateway_discovery_failures_total", MODEL, "model, source"), "failed: {{model}} {{source}}"),
                ),
            ),
            Panel(
                *("Age of what was discovered", "Since the last good answer.", "s"),
                ((f"max by (model) (gateway_discovery_age_seconds{{{MODEL}}})", "{{model}}"),),
            ),
        ),
    ),
    (
        "Reuse",
        (
            Panel(
                *("Cache", "What it did for requests.", "reqps"),
                ((rate("gateway_cache_requests_total", MODEL, "result"), "{{result}}"),),
                stacked=True,
            ),
            Panel(
                *("Cache hits", "Share of what was looked for.", "percentunit"),
                (
                    (
                        f"{rate('gateway_cache_requests_total', HITS)}"
                        f" / {rate('gateway_cache_requests_total', LOOKED)}",
                        "hits",
                    ),
                ),
                maximum=1,
            ),
            Panel(
                *("Cache in memory", "", "bytes"),
                ((f"sum(gateway_cache_bytes{{{HERE}}})", "bytes"),),
            ),
            Panel(
                *("Answers kept and dropped", "", "short"),
                (
                    (f"sum(gateway_cache_entries{{{HERE}}})", "kept"),
                    (rate("gateway_cache_evictions_total", HERE), "dropped a second"),
                ),
            ),
            Panel(
                *("Shared calls", "", "short"),
                (
                    (rate("gateway_coalesced_total", MODEL), "coalesced a second"),
                    (
                        f"{rate('gateway_batch_size_sum', HERE)} / {rate('gateway_batch_size_count', HERE)}",
                        "requests in a batch",
                    ),
                ),
            ),
            Panel(
                *("Wait for a batch", "", "s"),
                quantiles("gateway_batch_wait_seconds", HERE),
            ),
        ),
    ),
    (
        "Alerts and objectives",
        (
            Panel(
                *("Alerts", "As the gateway judges them itself.", "short"),
                (
                    (
                        f'sum by (name, state) (gateway_alerts{{{HERE},state=~"pending|firing"}})',
                        "{{name}} {{state}}",
                    ),
                ),
                stacked=True,
            ),
            Panel(
                *("Error budget", "What is left of three days', of 1.", "percentunit"),
                ((f"min by (model) (gateway_slo_error_budget_remaining{{{MODEL}}})", "{{model}}"),),
                maximum=1,
            ),
            Panel(
                *("Burn rates", "How many times as fast as allowed budgets are spent.", "short"),
                (
                    (
                        f'max by (model, objective, window) (gateway_slo_burn_rate{{{MODEL},window=~"1h|6h|3d"}})',
                        "{{model}} {{objective}} {{window}}",
                    ),
                ),
            ),
            Panel(
                *("Alerts sent", "What became of them.", "short"),
                ((rate("gateway_alert_notifications_total", HERE, "result", "increase"), "{{result}}"),),
            ),
            Panel(
                *("Queue", "Share of its places that are taken.", "percentunit"),
                ((f"gateway_queue_depth{{{HERE}}} / gateway_queue_size{{{HERE}}}", "{{instance}}"),),
                maximum=1,
            ),
            Panel(
                *("Budgets of keys", "What the key has spent that has spent most of its own.", "percentunit"),
                ((f"gateway_budget_used_ratio{{{HERE}}}", "{{instance}}"),),
            ),
        ),
    ),
    (
        "Cost and limits",
        (
            Panel(
                *("Cost by model", "An hour.", "currencyUSD"),
                ((f"3600 * {rate('gateway_cost_usd_total', MODEL, 'model')}", "{{model}}"),),
                stacked=True,
            ),
            Panel(
                *("Tokens spared", "A second, by answers from the cache.", "short"),
                ((rate("gateway_saved_tokens_total", MODEL, "model"), "{{model}}"),),
            ),
            Panel(
                *("Refused", "401: no key; 403: may not; 429: limits, budgets; 503: full, draining.", "reqps"),
                ((rate("gateway_requests_total", f'{MODEL},status=~"401|403|429|503"', "status"), "{{status}}"),),
            ),
            Panel(
                *(
                    "What is left of limits",
                    "Below 1 the gateway is behind, and lowers them by priority.",
                    "percentunit",
                ),
                ((f"min by (priority) (gateway_limit_factor{{{HERE}}})", "{{priority}}"),),
                maximum=1,
            ),
            Panel(
                *("Shared limits", "Decided a second: by Redis, by each gateway alone, or refused.", "reqps"),
                ((rate("gateway_shared_decisions_total", HERE, "mode"), "{{mode}}"),),
                stacked=True,
            ),
            Panel(
                *("Who decides on them", "How many gateways: with Redis, alone, or not at all.", "short"),
                ((f"sum by (mode) (gateway_shared_state{{{HERE}}})", "{{mode}}"),),
                stacked=True,
            ),
            Panel(
                *(
                    "Gateways known to each",
                    "Fewer than there are: cut off from Redis, or begun without.",
                    "short",
                ),
                ((f"min by (instance) (gateway_shared_peers{{{HERE}}})", "{{instance}}"),),
            ),
            Panel(
                *("Failures of Redis", "A second; each has limits decided without it for a second.", "short"),
                ((rate("gateway_shared_errors_total", HERE, "instance"), "{{instance}}"),),
            ),
            Panel(
                *("Tokens a request", "Median of prompts and of answers.", "short"),
                quantiles("gen_ai_client_token_usage", GENAI, (0.5,), "gen_ai_token_type"),
            ),
        ),
    ),
    (
        "Verification",
        (
            Panel(
                *("Verifications", "How the answer was chosen.", "reqps"),
                ((rate("gateway_verifications_total", HERE, "result"), "{{result}}"),),
                stacked=True,
                width=6,
            ),
            Panel(
                *("Agreement", "Mean share of all members.", "percentunit"),
                (
                    (
                        f"{rate('gateway_verification_agreement_sum', HERE)}"
                        f" / {rate('gateway_verification_agreement_count', HERE)}",
                        "mean",
                    ),
                ),
                width=6,
                maximum=1,
            ),
            Panel(
                *("Programs run", "", "reqps"),
                ((rate("gateway_sandbox_runs_total", HERE, "isolation, result"), "{{isolation}} {{result}}"),),
                stacked=True,
                width=6,
            ),
            Panel("Duration of programs", "", "s", quantiles("gateway_sandbox_seconds", HERE), width=6),
        ),
    ),
    (
        "Process",
        (
            Panel(
                *("Own time of an answer", "Neither waiting nor at an engine.", "s"),
                quantiles("gateway_overhead_seconds", HERE),
                width=6,
                exemplars=True,
            ),
            Panel(
                *("Processor", "1 is one core.", "short"),
                ((f"rate(process_cpu_seconds_total{{{HERE}}}[$__rate_interval])", "{{instance}}"),),
                width=6,
            ),
            Panel(
                *("Memory", "", "bytes"),
                ((f"process_resident_memory_bytes{{{HERE}}}", "{{instance}}"),),
                width=6,
            ),
            Panel(
                *("Descriptors", "Share of those that may be open.", "percentunit"),
                ((f"process_open_fds{{{HERE}}} / process_max_fds{{{HERE}}}", "{{instance}}"),),
                width=6,
                maximum=1,
            ),
            Panel(
                *("Lost", "Log lines, rows of the ledger, writes to the database.", "short"),
                (
                    (rate("gateway_log_lines_dropped_total", HERE, kind="increase"), "log lines"),
                    (rate("gateway_ledger_dropped_total", HERE, kind="increase"), "ledger rows"),
                    (rate("gateway_state_db_errors_total", HERE, kind="increase"), "failed writes"),
                ),
                width=12,
            ),
            Panel(
                *("Uptime", "", "s"),
                ((f"time() - process_start_time_seconds{{{HERE}}}", "{{instance}}"),),
                *("stat", 4),
            ),
            Panel(
                *("Processes", "Those whose numbers these are, and those that have not answered.", "short"),
                ((f"sum by (state) (gateway_processes{{{HERE}}})", "{{state}}"),),
                *("stat", 4),
            ),
            Panel(
                *("Version", "", "short"),
                (
                    (
                        f"count by (version, implementation, python) (gateway_build_info{{{HERE}}})",
                        "{{version}} on {{implementation}} {{python}}",
                    ),
                ),
                *("stat", 4),
            ),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """The whole document."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS:
        panels.append(_row(len(panels) + 1, title, top))
        top += 1
        left = height = 0
        for panel in row:
            if left + panel.width > WIDTH:
                top, left, height = top + height, 0, 0
            panels.append(_panel(len(panels) + 1, panel, left, top))
            left, height = left + panel.width, max(height, panel.height)
        top += height
    return {
        "uid": "inference-gateway",
        "title": "Inference Gateway",
        "description": "Requests, engines, reuse, cost, verification and the process of the Inference Gateway.",
        "tags": ["inference", "llm", "gateway"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}
    return [
        source,
        _variable("instance", "Gateway", "label_values(gateway_build_info, instance)"),
        _variable("model", "Model", f"label_values(gateway_requests_total{{{HERE}}}, model)"),
        _variable("engine", "Engine", f"label_values(gateway_engine_up{{{MODEL}}}, engine)"),
    ]


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",  # what names no model has no such label
        "current": {"text": "All", "value": "$__all", "selected": True},
    }


def _row(number: int, title: str, top: int) -> dict[str, Any]:
    place = {"h": 1, "w": WIDTH, "x": 0, "y": top}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _panel(number: int, panel: Panel, left: int, top: int) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + place),
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": expression,
            "legendFormat": legend,
            "instant": panel.kind == "stat",
            "range": panel.kind != "stat",
            "exemplar": panel.exemplars,
        }
        for place, (expression, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"h": panel.height, "w": panel.width, "x": left, "y": top},
        "targets": targets,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _OPTIONS[panel.kind](panel),
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps = [{"value": value, "color": colour} for value, colour in panel.thresholds]
    found: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "timeseries":
        found["min"] = 0
        found["color"] = {"mode": "palette-classic"}
        found["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 25 if panel.stacked else 8,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    if panel.maximum is not None:
        found["max"] = panel.maximum
    if panel.mappings:
        texts = {
            value: {"text": text, "color": colour, "index": place}
            for place, (value, text, colour) in enumerate(panel.mappings)
        }
        found["mappings"] = [{"type": "value", "options": texts}]
        found["custom"] = {"fillOpacity": 70, "lineWidth": 0}
    return found


_OPTIONS = {
    "timeseries": lambda panel: {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": lambda panel: {
        "reduceOptions": {"calcs": ["lastNotNull"], "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "name" if panel.title == "Version" else "auto",
    },
    "state-timeline": lambda panel: {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
        "mergeValues": True,
        "rowHeight": 0.9,
        "showValue": "never",
    },
}


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
