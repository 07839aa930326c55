"""Tables of a bench run: medians over the rounds, ratios against each peer, machine and versions.

Pure functions from rows to text and to a JSON value; only `machine()` looks at the computer.
A round in which a measurement was invalid does not count; where none was valid the table says why.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from . import load
from .payloads import EVENTS_PER_S
from .sections import ENGINE_COUNTS, STRATEGIES, Row


class _Column(NamedTuple):
    metric: str
    title: str
    digits: int
    ratio: bool


_FOREIGN = _Column("foreign_cpu_percent", "others' CPU %", 0, False)
_COLUMNS = {
    "requests": (
        _Column("cpu_us_per_request", "CPU µs/request", 0, True),
        _Column("requests_per_s", "requests/s", 0, True),
        _Column("p50_us", "p50 µs", 0, False),
        _Column("p99_us", "p99 µs", 0, False),
        _Column("added_p50_us", "added p50 µs", 0, True),
        _Column("added_p99_us", "added p99 µs", 0, True),
        _FOREIGN,
    ),
    "footprint": (
        _Column("rss_mb", "RSS MB", 1, True),
        _Column("pss_mb", "PSS MB", 1, True),
    ),
    "streams": (
        _Column("cpu_us_per_event", "CPU µs/event", 1, True),
        _Column("steady_cpu_us_per_event", "steady CPU µs/event", 1, True),
        _Column("events_per_s", "steady events/s", 0, False),
        _Column("events", "events received", 0, False),
        _Column("events_sent", "of", 0, False),
        _Column("first_event_p50_ms", "first event p50 ms", 1, True),
        _Column("first_event_p99_ms", "first event p99 ms", 1, True),
        _Column("client_cpu_percent", "client CPU %", 0, False),
        _FOREIGN,
    ),
    "idle": (
        _Column("kb_per_connection", "KB/connection", 1, True),
        _Column("held", "held", 0, False),
    ),
    "startup": (_Column("start_s", "start to first answer, s", 3, True),),
    "memory": (
        _Column("rest_rss_mb", "at rest, RSS MB", 1, False),
        _Column("rest_pss_mb", "at rest, PSS MB", 1, False),
        _Column("warm_rss_mb", "warm, RSS MB", 1, False),
        _Column("after_rss_mb", "after, RSS MB", 1, False),
        _Column("growth_rss_mb", "growth MB", 1, False),
    ),
    "routing": (
        _Column("ns_10", "ns/choice, 10 engines", 0, False),
        _Column("ns_10000", "ns/choice, 10 000 engines", 0, False),
        _Column("ratio", "ratio", 2, False),
    ),
    "estimates": (
        _Column("chars_o200k_base", "characters/token, o200k_base", 2, False),
        _Column("ratio_o200k_base", "estimate/real", 2, False),
        _Column("chars_cl100k_base", "characters/token, cl100k_base", 2, False),
        _Column("ratio_cl100k_base", "estimate/real", 2, False),
        _Column("ms_per_million", "ms/million characters", 2, False),
    ),
    "authtiming": (
        _Column("mean_ns", "ns/refusal", 0, False),
        _Column("t", "t", 2, False),
    ),
    "cache": (
        _Column("cpu_us_per_request", "CPU µs/request", 1, True),
        _Column("to_miss", "of a miss's", 2, False),
        _Column("requests_per_s", "requests/s", 0, True),
        _Column("p50_us", "p50 µs", 0, True),
        _Column("p99_us", "p99 µs", 0, True),
        _FOREIGN,
    ),
    "misses": (
        _Column("cpu_us_per_request", "CPU µs/request", 1, False),
        _Column("difference_us", "more than all off, µs", 1, False),
        _Column("difference_low_us", "lowest", 1, False),
        _Column("difference_high_us", "highest", 1, False),
        _Column("pairs", "pairs of runs", 0, False),
        _FOREIGN,
    ),
    "near": (
        _Column("p50_ms", "p50 ms", 3, False),
        _Column("p99_ms", "p99 ms", 3, False),
        _Column("us_per_call", "µs/call", 1, False),
    ),
}
_COLUMNS["connections"] = _COLUMNS["requests"]
_TITLES = {
    "requests": "Requests over kept connections",
    "connections": "A new connection for each request",
    "footprint": "Memory of the process tree",
    "streams": f"Event streams ({EVENTS_PER_S} events/s each)",
    "idle": "Idle keep-alive connections",
    "startup": "Start-up",
    "memory": "Memory under 50 000 requests (to hold: under 40 MB at rest, less than 5 MB growth)",
    "cache": "Answers from the cache (to hold: a hit's CPU below half of a miss's, p99 below 2 000 µs)",
    "misses": "Misses only, against CACHE=off and COALESCE=off (to hold: less than 10 µs more)",
    "near": "Near look-ups (to hold: under 5 ms without numpy, under 1 ms with)",
    "authtiming": "Refusing wrong keys and tokens (to hold: |t| ≤ 4.5 against wrong in the first place)",
    "estimates": "Estimates of tokens",
    "routing": "Choosing an engine (to hold: ratio ≤ 2 for round_robin, random, power_of_two)",
}
_DIRECT = "direct"


class Summary(NamedTuple):
    """The median of one measurement over its valid rounds; `error` is set when none was valid,
    `invalid_rounds` counts those left out."""

    section: str
    variant: str
    gateway: str
    metrics: dict[str, float]
    invalid_rounds: int
    error: str


def machine() -> dict[str, str]:
    """Returns what the figures depend on: processor, cores, kernel, memory, tools."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    total = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    wrk = ""
    if load.available():
        wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, timeout=10).stdout
    return {
        "processor": model.group(1) if model else platform.machine(),
        "cores": str(os.cpu_count()),
        "kernel": f"{platform.system()} {platform.release()}",
        "memory": f"{int(total.group(1)) / 1e6:.0f} GB" if total else "unknown",
        "bench": f"{platform.python_implementation()} {platform.python_version()}",
        "load tool": " ".join(wrk.split()[:2]) or "wrk",
    }


def with_added_latency(rows: Sequence[Row]) -> list[Row]:
    """Returns one round's rows with the latency added over `direct` in the same round."""
    base = {(row.section, row.variant): row for row in rows if row.gateway == _DIRECT}
    result = []
    for row in rows:
        direct = base.get((row.section, row.variant))
        if row.gateway != _DIRECT and direct and "p50_us" in row.metrics:
            added = {f"added_{name}": row.metrics[name] - direct.metrics[name] for name in ("p50_us", "p99_us")}
            row = row._replace(metrics={**row.metrics, **added})
        result.append(row)
    return result


def summarise(rounds: Sequence[Sequence[Row]]) -> list[Summary]:
    """Returns the medians over the rounds, in the order in which things were first measured."""
    grouped: dict[tuple[str, str, str], list[Row]] = {}
    for rows in rounds:
        for row in rows:
            grouped.setdefault((row.section, row.variant, row.gateway), []).append(row)
    summaries = []
    for (section, variant, gateway), rows in grouped.items():
        valid = [row for row in rows if not row.error]
        used = valid or rows
        names = {name: None for row in used for name in row.metrics}
        metrics = {name: statistics.median(row.metrics[name] for row in used if name in row.metrics) for name in names}
        error = "" if valid else rows[-1].error
        summaries.append(Summary(section, variant, gateway, metrics, len(rows) - len(valid), error))
    return summaries


def markdown(
    summaries: Sequence[Summary],
    command: str,
    facts: Mapping[str, str],
    versions: Mapping[str, str],
    missing: Mapping[str, str],
) -> str:
    """Returns the whole report: what ran where, then a table per section and its ratios."""
    lines = ["# Bench", "", f"`{command}`", ""]
    lines += [f"* {name}: {value}" for name, value in {**facts, **versions}.items()]
    lines += [f"* {name}: not measured, {reason}" for name, reason in missing.items()]
    for section, title in _TITLES.items():
        part = [summary for summary in summaries if summary.section == section]
        if part:
            lines += ["", f"## {title}", "", *_table(part, _COLUMNS[section])]
            lines += _ratio_table(part, _COLUMNS[section])
    engines = [summary for summary in summaries if summary.section == "engines"]
    if engines:
        lines += ["", "## CPU µs/request by number of engines, 32 connections", ""]
        lines += _engine_table(engines)
    return "\n".join([*lines, ""])


def _table(summaries: Sequence[Summary], columns: Sequence[_Column]) -> list[str]:
    shown = [c for c in columns if any(c.metric in one.metrics for one in summaries)]
    rows = []
    order = list(dict.fromkeys(one.variant for one in summaries))
    for one in sorted(summaries, key=lambda one: order.index(one.variant)):
        cells = [_number(one.metrics.get(column.metric), column.digits) for column in shown]
        rows.append([one.variant, one.gateway, *cells, _validity(one)])
    table = _aligned(["", "gateway", *(column.title for column in shown), "valid"], rows)
    return [*table, *_reasons(summaries)]


def _validity(one: Summary) -> str:
    if one.error:
        return "INVALID"
    return f"{one.invalid_rounds} rounds left out" if one.invalid_rounds else "yes"


def _reasons(summaries: Sequence[Summary]) -> list[str]:
    """Why what is invalid is so: one line each, below the table that shows it."""
    lines = []
    for one in summaries:
        if one.error:
            reason = " / ".join(one.error.split("\n"))
            lines.append(f"* INVALID: {one.gateway}, {one.variant}: {reason[:400]}")
    return ["", *lines] if lines else []


def _ratio_table(summaries: Sequence[Summary], columns: Sequence[_Column]) -> list[str]:
    """Each of our gateways divided by each peer, metric by metric; below 1 is better (but for
    requests/s). Empty without both."""
    valid = [one for one in summaries if not one.error and one.gateway != _DIRECT]
    ours = [one for one in valid if one.gateway.startswith("gateway")]
    peers = list(dict.fromkeys(o.gateway for o in valid if not o.gateway.startswith("gateway")))
    by_key = {(one.variant, one.gateway): one for one in valid}
    rows = []
    for own in ours:
        for column in columns:
            if column.ratio and column.metric in own.metrics:
                cells = [_ratio(own, by_key.get((own.variant, peer)), column.metric) for peer in peers]
                rows.append([own.variant, f"{own.gateway}: {column.title}", *cells])
    if not rows or not peers:
        return []
    head = ["", "ratio to", *peers]
    return ["", *_aligned(head, rows)]


def _ratio(own: Summary, peer: Summary | None, metric: str) -> str:
    if peer is None or peer.metrics.get(metric, 0.0) <= 0:
        return "–"
    return f"{own.metrics[metric] / peer.metrics[metric]:.2f}"


def _engine_table(summaries: Sequence[Summary]) -> list[str]:
    by_variant = {one.variant: one for one in summaries}
    rows = []
    for strategy in STRATEGIES:
        cells = []
        for count in ENGINE_COUNTS:
            one = by_variant.get(f"{strategy}, {count} engines")
            value = one.metrics.get("cpu_us_per_request") if one else None
            cells.append(_number(value, 0) + (" INVALID" if one and one.error else ""))
        rows.append([strategy, *cells])
    table = _aligned(["engines", *map(str, ENGINE_COUNTS)], rows, left=1)
    return [*table, *_reasons(summaries)]


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "–"
    return f"{value:,.{digits}f}".replace(",", " ")


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> list[str]:
    """A Markdown table that also reads well in a terminal; the first `left` columns are words."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return [line(head), line(rule), *map(line, rows)]
