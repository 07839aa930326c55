"""The result of a simulation as one page: no scripts, nothing from elsewhere, light and dark. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Callable, Optional

from gateway.tools.loadtest.charts import Dot, Format, Series, chart, nines, percent_axis, time_axis, value_axis
from gateway.tools.loadtest.durations import tick, tick_ms
from gateway.tools.loadtest.style import document, pairs_html, table_html
from gateway.tools.loadtest.table import ms
from gateway.tools.simulate.table import HEADS, failure_rows, more, percent, rows, summary, usd

_HUES = ("blue", "teal", "amber", "violet", "red", "grey")


Number = Callable[[Mapping[str, Any]], Optional[float]]  # of a strategy


def page(result: Mapping[str, Any]) -> str:
    """The whole document."""
    return document("Simulation", _parts(result))


def _parts(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"<header><h1>Simulation</h1><p>{escape(summary(result))}</p>"
    yield f"<p>{result['duration_s']:g} s, seed {result['seed']}</p></header>\n"
    yield table_html("Strategies", (*HEADS, *more(result)), rows(result))
    strategies = result["strategies"]
    yield f'<h2>Compared</h2>\n<div class="tallies">{"".join(_compared(strategies))}</div>\n'
    yield f'<h2>Over time</h2>\n<div class="charts">{"".join(_over_time(strategies))}</div>\n'
    if any(one["spread"] for one in strategies):
        yield f'<h2>How long it took</h2>\n<div class="charts">{_spread(strategies)}</div>\n'
    yield table_html("What went wrong", ("", *(one["strategy"] for one in strategies)), failure_rows(result))
    pairs = {name.replace("_", " "): value for name, value in result["config"].items()}
    yield pairs_html("What was simulated", pairs)
    error = 100 * result["relative_error"]
    yield f"<footer><p>Percentiles are within {error:.1f} %; simulated by {escape(result['python'])}.</p></footer>\n"


def _compared(strategies: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A figure for each number of the table that a strategy has, with a bar for each strategy."""

    def tally(title: str, shown: Format, value: Number, most: float = 0.0) -> str:
        values = [value(one) for one in strategies]
        most = max(most, *(one or 0.0 for one in values))
        if not any(values):
            return ""
        bars = "".join(
            f'<li class="{_hue(index)}"><span>{escape(one["strategy"])}</span><b>{escape(shown(found))}</b>'
            f'<i><i style="width:{100 * found / most:.1f}%"></i></i></li>'
            for index, (one, found) in enumerate(zip(strategies, values))
            if found is not None
        )
        return f'<figure class="box"><figcaption><h3>{escape(title)}</h3></figcaption><ul>{bars}</ul></figure>\n'

    def time_of(kind: str, name: str) -> Number:
        return lambda one: (one[kind] or {}).get(f"{name}_ms")

    def share_of(key: str) -> Number:
        return lambda one: one[key] / one["requests"] if one["requests"] else None

    for name in ("p50", "p95", "p99"):
        yield tally(f"Latency {name}", ms, time_of("latency", name))
    for name in ("p50", "p95", "p99"):
        yield tally(f"First token {name}", ms, time_of("first_token", name))
    yield tally("Utilisation", lambda value: f"{100 * value:.1f} %", lambda one: one["utilisation"], 1.0)
    yield tally("Imbalance", "{:.2f}".format, lambda one: one["imbalance"])
    for key in ("failed", "retried", "hedged"):
        yield tally(key.capitalize(), lambda value: percent(value, 1) if value else "0", share_of(key))
    yield tally("Cache hits", lambda value: f"{100 * value:.1f} %", lambda one: one["cache_hits"], 1.0)
    yield tally("Cost", usd, lambda one: one["cost_usd"])


def _hue(index: int) -> str:
    return _HUES[index % len(_HUES)]


def _over_time(strategies: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    end_s = strategies[0]["timeline"][-1]["at_s"] + strategies[0]["timeline"][-1]["width_s"]
    x = time_axis(0.0, end_s)

    def values(one: Mapping[str, Any], key: str, per_s: bool = False, factor: float = 1.0) -> list[Dot]:
        dots: list[Dot] = []
        for moment in one["timeline"]:
            value: Optional[float] = moment[key]
            if value is not None:
                value = value / moment["width_s"] if per_s else value * factor
            dots.append((moment["at_s"] + moment["width_s"] / 2, value))
        return dots

    def drawn(title: str, about: str, series: Sequence[Series], shown: Format, may_log: bool = False) -> str:
        y = value_axis(series, shown, may_log)
        return chart(title, about + (", logarithmic" if y.log else ""), series, x, y)

    def each(key: str, per_s: bool = False, factor: float = 1.0) -> list[Series]:
        return [
            Series(one["strategy"], _hue(index), values(one, key, per_s, factor))
            for index, one in enumerate(strategies)
        ]

    yield drawn("p50", "latency of the requests that came then", each("p50_ms"), tick_ms, may_log=True)
    yield drawn("p95", "latency of the requests that came then", each("p95_ms"), tick_ms, may_log=True)
    yield drawn("p99", "latency of the requests that came then", each("p99_ms"), tick_ms, may_log=True)
    offered = Series("offered", "grey dashed", values(strategies[0], "arrived", per_s=True))
    yield drawn("Answered", "requests a second, by when they came", [*each("answered", per_s=True), offered], tick)
    if any(one["failed"] for one in strategies):
        yield drawn("Failed", "requests a second, by when they came", each("failed", per_s=True), tick)
    yield drawn("Busy slots", "per cent of all engines' slots", each("utilisation", factor=100.0), tick)
    yield drawn("The fullest engine", "requests at it, at most", each("in_flight_max"), tick)
    if any(moment["out"] for one in strategies for moment in one["timeline"]):
        yield drawn("Engines out", "not chosen by a gateway, at most", each("out"), tick)


def _spread(strategies: Sequence[Mapping[str, Any]]) -> str:
    series = []
    most = 1.0
    for index, one in enumerate(strategies):
        if one["spread"]:
            last = math.log10(2 * max(1, one["answered"]))
            most = max(most, last)
            dots = [(min(last, nines(percent)), value) for percent, value in one["spread"]]
            series.append(Series(one["strategy"], _hue(index), dots))
    y = value_axis(series, tick_ms, may_log=True)
    return chart("Percentiles", "latency that so many requests did not exceed", series, percent_axis(most), y)
