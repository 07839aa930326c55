"""The result as a table for a terminal. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

from gateway.tools.loadtest.durations import counted, shown_bytes, shown_ns, three_digits
from gateway.tools.loadtest.thresholds import member_ms

COLUMNS = ("p50", "p90", "p95", "p99", "p99.9", "max", "mean")
_NAMES = {
    "response": "response time",
    "service": "service time",
    "corrected": "corrected",
    "ttft": "time to first token",
    "tpot": "time per output token",
    "longest_gap": "longest pause in a stream",
    "connect": "connecting",
}
_WIDTH = 100


def table(result: Mapping[str, Any]) -> str:
    """All of it, ending with a line end. What comes from the server is without control characters."""
    return "\n".join(_lines(result)) + "\n"


def clean(text: str) -> str:
    """A server's text as a terminal may have it."""
    return "".join(one if one.isprintable() else "�" for one in text)


def ms(value: Optional[float]) -> str:
    """Milliseconds for people."""
    return shown_ns(None if value is None else value * 1e6)


def summary(config: Mapping[str, Any]) -> str:
    """What was asked, in one line."""
    models = ", ".join(
        f"{clean(one['name'])}={one['weight']:g}" if len(config["models"]) > 1 else clean(one["name"])
        for one in config["models"]
    )
    if config["loop"] == "closed":
        how = f"closed loop of {config['connections']}"
    else:
        how = f"open loop, {config['arrivals']} arrivals"
    streams = config["stream_share"]
    kind = {0.0: "", 1.0: ", streams"}.get(streams, f", {100 * streams:g} % streams")
    return f"{config['url']}{config['path']}, {models}: {how}{kind}"


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    requests, rates, config = result["requests"], result["rates"], result["config"]
    yield summary(config)
    warm = (
        f" after a warm-up of {config['warmup_s']:g} s ({requests['warmup_sent']} requests)"
        if config["warmup_s"]
        else ""
    )
    ended = ", ended early" if result["interrupted"] else ""
    yield f"{shown_ns(result['duration_s'] * 1e9)}{warm}{ended}; seed {config['seed']}"
    yield ""
    finished = requests["finished"]
    yield from _aligned(
        [
            ("requests", counted(requests["sent"]), "sent"),
            ("answered", counted(requests["ok"]), percent_of(requests["ok"], finished)),
            ("errors", counted(requests["errors"]), percent_of(requests["errors"], finished)),
            (
                "refused",
                counted(requests["refused"]),
                percent_of(requests["refused"], finished) + " (429, 503 with Retry-After)",
            ),
            ("throughput", three_digits(rates["requests_per_s"]), "requests/s"),
            *_tokens(result),
            ("received", shown_bytes(result["body_bytes"]), f"{shown_bytes(rates['body_bytes_per_s'])}/s"),
        ]
    )
    yield ""
    yield from _grid(("", *COLUMNS), times_rows(result))
    for title, rows in (("model", result["models"]), ("engine", result["engines"])):
        if len(rows) > (title == "model"):
            yield ""
            heads = (title, "answered", "errors", "refused", "p50", "p99", "ttft p50", "tpot p50", "tokens")
            yield from _grid(heads, [label_row(row) for row in rows])
    if result["errors"]:
        yield ""
        yield from _grid(("error", "count", "share"), error_rows(result))
    yield ""
    yield from _generator(result)
    for text in result["warnings"]:
        yield from _wrapped(text, "! ")
    for text in result["notes"]:
        yield from _wrapped(text, "  ")
    if result["thresholds"]:
        yield ""
        yield from (threshold_line(one) for one in result["thresholds"])


def threshold_line(judged: Mapping[str, Any]) -> str:
    """One --fail-if, and what came of it."""
    value = judged["value"]
    rule = judged["rule"]
    if value is None:
        shown = "nothing was measured"
    elif rule.startswith(("rate", "tokens")):
        shown = f"{three_digits(value)}/s"
    elif rule.startswith(("errors", "refused", "failed", "late")):
        shown = f"{100 * value:.3g} %" if "%" in rule else f"{value:g}"
    else:
        shown = shown_ns(value * 1e9)
    return f"{'FAILED' if judged['failed'] else 'passed'}  {rule}  ({shown})"


def _tokens(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    tokens = result["tokens"]
    if not tokens["output"]:
        return []
    estimated = ", counted events" if tokens["estimated"] else ""
    return [
        (
            "output tokens",
            counted(tokens["output"]),
            f"{three_digits(result['rates']['output_tokens_per_s'])}/s{estimated}",
        )
    ]


def _generator(result: Mapping[str, Any]) -> Iterator[str]:
    generator = result["generator"]
    own = generator["cpu_us_per_request"]
    each = "" if own is None else f", {own:g} µs a request"
    lag = generator["lag"]
    late = "" if lag is None else f"; sent late by p50 {ms(lag['p50_ms'])}, p99 {ms(lag['p99_ms'])}"
    yield f"generator: {100 * generator['cpu_share']:.0f} % of a processor{each}{late}"


def times_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each kind of time that was measured, with COLUMNS."""
    measured = [(name, times) for key, name in _NAMES.items() if (times := result["times"][key]) is not None]
    return [(name, *(ms(times[member_ms(column)]) for column in COLUMNS)) for name, times in measured]


def label_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The row of a model or an engine."""
    latency, ttft, tpot = (row[key] or {} for key in ("latency", "ttft", "tpot"))
    return (
        clean(row["name"]),
        *(counted(row[key]) for key in ("ok", "errors", "refused")),
        *(ms(latency.get(key)) for key in ("p50_ms", "p99_ms")),
        *(ms(times.get("p50_ms")) for times in (ttft, tpot)),
        counted(row["output_tokens"]),
    )


def error_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A row for each kind of error: how often, and of how many."""
    whole = result["requests"]["finished"]
    return [(clean(one["error"]), counted(one["count"]), percent_of(one["count"], whole)) for one in result["errors"]]


def percent_of(count: int, whole: int) -> str:
    """A share for people."""
    return f"{100 * count / whole:.3g} %" if whole else "–"


def _aligned(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    wide = max(len(row[1]) for row in rows)
    for name, value, unit in rows:
        yield f"{name:<15}{value:>{wide}}  {unit}".rstrip()


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not rows:
        return
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    for row in (heads, *rows):
        first, *others = (
            text.ljust(width) if not column else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths))
        )
        yield "  ".join((first, *others)).rstrip()


def _wrapped(text: str, mark: str) -> list[str]:
    return textwrap.wrap(clean(text), _WIDTH, initial_indent=mark, subsequent_indent="  ")
