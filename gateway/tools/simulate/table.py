"""The result of a simulation as a table for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.tools.loadtest.durations import counted
from gateway.tools.loadtest.table import ms

HEADS = (
    "strategy",
    "answered",
    "failed",
    "p50",
    "p95",
    "p99",
    "TTFT p50",
    "TTFT p95",
    "utilisation",
    "imbalance",
    "retried",
    "hedged",
)


def table(result: Mapping[str, Any]) -> str:
    """All of it, ending with a line end."""
    return "\n".join(_lines(result)) + "\n"


def summary(result: Mapping[str, Any]) -> str:
    """What was simulated, in one line."""
    config = result["config"]
    load = result["offered_load"]
    known = "" if load is None else f", offered load {100 * load:.1f} %"
    gateways = f", {config['gateways']} gateways" if config.get("gateways", "1") != "1" else ""
    return f"{config['engines']} engines x {config['slots']} slots{gateways}, {arrivals_of(result)}{known}"


def arrivals_of(result: Mapping[str, Any]) -> str:
    """How requests come."""
    config = result["config"]
    return str(config.get("arrivals") or config.get("from") or "poisson:100/s")


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each strategy, with HEADS, and what else was asked for."""
    stood_in = "stood in" in more(result)
    return [(*_row(one), *((counted(one["fallbacks"]),) if stood_in else ())) for one in result["strategies"]]


def more(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The heads of what is told only where it was asked for."""
    first = result["strategies"][0]
    return (
        *(("cache hits",) if first["cache_hits"] is not None else ()),
        *(("cost",) if first["cost_usd"] is not None else ()),
        *(("stood in",) if any(one["fallbacks"] for one in result["strategies"]) else ()),
    )


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    latency, first = one["latency"] or {}, one["first_token"] or {}
    return (
        one["strategy"],
        counted(one["answered"]),
        percent(one["failed"], one["requests"]) if one["failed"] else "0",
        *(ms(latency.get(f"{name}_ms")) for name in ("p50", "p95", "p99")),
        *(ms(first.get(f"{name}_ms")) for name in ("p50", "p95")),
        "–" if one["utilisation"] is None else f"{100 * one['utilisation']:.1f} %",
        "–" if one["imbalance"] is None else f"{one['imbalance']:.2f}",
        percent(one["retried"], one["requests"]) if one["retried"] else "0",
        percent(one["hedged"], one["requests"]) if one["hedged"] else "0",
        *((f"{100 * one['cache_hits']:.1f} %",) if one["cache_hits"] is not None else ()),
        *((usd(one["cost_usd"]),) if one["cost_usd"] is not None else ()),
    )


def usd(value: float) -> str:
    """Dollars to the cent, and less than one of them to four digits."""
    return f"${value:,.2f}".replace(",", " ") if value >= 1 else f"${value:.4f}"


def percent(part: float, whole: float) -> str:
    """A share for people."""
    return f"{100 * part / whole:.2g} %" if whole else "–"


def failure_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What went wrong, and how often for each strategy."""
    strategies = result["strategies"]
    codes = sorted({code for one in strategies for code in one["failures"]})
    return [(code, *(counted(one["failures"].get(code, 0)) for one in strategies)) for code in codes]


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    yield summary(result)
    warm = f", the first {result['warmup_s']:g} s not counted" if result["warmup_s"] else ""
    requests = result["strategies"][0]["requests"]
    yield f"{result['duration_s']:g} s{warm}: {counted(requests)} requests; seed {result['seed']}"
    yield ""
    yield from _grid((*HEADS, *more(result)), rows(result))
    failed = failure_rows(result)
    if failed:
        yield ""
        yield from _grid(("error", *(one["strategy"] for one in result["strategies"])), failed)
    lost = sum(one["unanswered"] for one in result["strategies"])
    if lost:
        yield f"! {lost} requests had no end when the simulation ended"
    yield ""
    took = ", ".join(f"{one['cpu_us_per_request']:g}" for one in result["strategies"])
    yield f"simulated in {sum(one['cpu_s'] for one in result['strategies']):.1f} s CPU ({took} us a request)"


def _grid(heads: Sequence[str], told: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(heads, *told)]
    for row in (heads, *told):
        first = row[0].ljust(widths[0])
        yield "  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
