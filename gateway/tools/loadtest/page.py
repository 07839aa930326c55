"""The result as one page: no scripts, nothing from elsewhere, light and dark, from a phone to a wide screen. Pure.

What comes from a server, or from the command line, stands in it as text only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, Optional

from gateway.tools.loadtest.charts import (
    Axis,
    Band,
    Dot,
    Format,
    Hover,
    Series,
    chart,
    nines,
    percent_axis,
    time_axis,
    value_axis,
)
from gateway.tools.loadtest.durations import counted, shown_bytes, shown_ns, three_digits, tick, tick_ms
from gateway.tools.loadtest.style import document, pairs_html, table_html
from gateway.tools.loadtest.table import (
    COLUMNS,
    clean,
    error_rows,
    label_row,
    ms,
    percent_of,
    summary,
    threshold_line,
    times_rows,
)

_BAD = ' class="bad"'


def page(result: Mapping[str, Any]) -> str:
    """The whole document."""
    title = clean(result["title"])
    return document(title, _parts(result, title))


def _parts(result: Mapping[str, Any], title: str) -> Iterator[str]:
    early = " · <b>ended early</b>" if result["interrupted"] else ""
    yield f"<header><h1>{escape(title)}</h1><p>{escape(summary(result['config']))}</p>"
    began = result["began"].replace("T", " ").replace("+00:00", " UTC")
    yield f"<p>{escape(began)} · {shown_ns(result['duration_s'] * 1e9)}{_warm(result)}{early}</p></header>\n"
    yield f'<ul class="tiles">{"".join(_tiles(result))}</ul>\n'
    if result["thresholds"]:
        yield '<ul class="rules">'
        for one in result["thresholds"]:
            verdict, _, text = threshold_line(one).partition("  ")
            yield f'<li class="{verdict.lower()}"><b>{verdict}</b> {escape(text)}</li>'
        yield "</ul>\n"
    if result["warnings"] or result["notes"]:
        lines = [f'<li class="warning">{escape(clean(text))}</li>' for text in result["warnings"]]
        lines += [f"<li>{escape(clean(text))}</li>" for text in result["notes"]]
        yield f'<ul class="say">{"".join(lines)}</ul>\n'
    if result["requests"]["finished"]:
        yield f'<h2>Over time</h2>\n<div class="charts">{"".join(_over_time(result))}</div>\n'
        spreads = "".join(_spreads(result))
        if spreads:
            yield f'<h2>How long it took</h2>\n<div class="charts">{spreads}</div>\n'
    yield from _tables(result)
    yield from _settings(result)


def _warm(result: Mapping[str, Any]) -> str:
    seconds = result["config"]["warmup_s"]
    return f" after a warm-up of {seconds:g} s" if seconds else ""


# --- figures at first sight ------------------------------------------------------------------------------------------


def _tiles(result: Mapping[str, Any]) -> Iterator[str]:
    requests, rates, times = result["requests"], result["rates"], result["times"]
    counts = f"{counted(requests['ok'])} of {counted(requests['sent'])}"
    yield _tile("Answered", three_digits(rates["requests_per_s"]), "/s", counts)
    name = "response" if result["config"]["loop"] == "open" else "service"
    latency = times[name] or {}
    for percent in ("p50", "p99"):
        number, _, unit = ms(latency.get(f"{percent}_ms")).partition(" ")
        beside = f"max {ms(latency.get('max_ms'))}" if percent == "p99" else f"mean {ms(latency.get('mean_ms'))}"
        yield _tile(f"{name.capitalize()} time, {percent}", number, unit, beside)
    failed = requests["failed"]
    number = percent_of(failed, requests["finished"]).partition(" ")[0]
    told = f"{counted(requests['errors'])} errors, {counted(requests['refused'])} refused"
    yield _tile("Not answered well", number, "%", told, bad=failed > 0)
    first = times["ttft"]
    if first is not None:
        number, _, unit = ms(first["p50_ms"]).partition(" ")
        yield _tile("First token, p50", number, unit, f"p99 {ms(first['p99_ms'])}")
    if result["tokens"]["output"]:
        estimated = " (counted events)" if result["tokens"]["estimated"] else " in all"
        told = f"{counted(result['tokens']['output'])}{estimated}"
        yield _tile("Output tokens", three_digits(rates["output_tokens_per_s"]), "/s", told)


def _tile(name: str, number: str, unit: str, beside: str, bad: bool = False) -> str:
    return (
        f"<li{_BAD if bad else ''}><span>{escape(name)}</span><b>{escape(number)}<small>{escape(unit)}</small>"
        f"</b><span>{escape(beside)}</span></li>"
    )


# --- charts ----------------------------------------------------------------------------------------------------------


def _moments(result: Mapping[str, Any]) -> list[tuple[float, float, Mapping[str, Any]]]:
    """(begin, end, what happened), without a last moment that is too short to make a rate of."""
    found: list[tuple[float, float, Mapping[str, Any]]] = []
    ended_s = max(result["ended_s"], result["duration_s"])  # at 3/s, the last of 5 s is answered in the middle of it
    for moment in result["timeline"]:
        begin = float(max(moment["at_s"], -result["config"]["warmup_s"]))
        end = min(moment["at_s"] + moment["width_s"], ended_s)
        if end - begin >= min(0.5, 0.5 * moment["width_s"]) or not found:
            found.append((begin, max(end, begin + 0.001), moment))
    return found


def _over_time(result: Mapping[str, Any]) -> Iterator[str]:
    moments = _moments(result)
    x = time_axis(moments[0][0], moments[-1][1])
    bands = list(_bands(result, x))
    hovers = [Hover(begin, end, _told(begin, end, moment)) for begin, end, moment in moments]

    def rates(key: str) -> list[Dot]:
        counts = ((begin, end, None if begin < 0 else moment[key] / (end - begin)) for begin, end, moment in moments)
        return _line(counts)

    def values(key: str) -> list[Dot]:
        return _line((begin, end, moment[key]) for begin, end, moment in moments)

    def drawn(
        title: str,
        about: str,
        series: Sequence[Series],
        shown: Format,
        may_log: bool = False,
        whole: bool = False,
    ) -> str:
        y = value_axis(series, shown, may_log, whole)
        return chart(title, about + (", logarithmic" if y.log else ""), series, x, y, bands, hovers)

    answered = [Series("answered", "blue", rates("ok"), area=True)]
    if result["config"]["loop"] == "open":
        answered.append(Series("offered", "grey dashed", values("offered_per_s")))
    for key in ("errors", "refused"):
        if result["requests"][key]:
            bars = [(at, moment[key] / (end - begin)) for begin, end, moment in moments for at in (begin, end)]
            answered.append(Series(key, "red" if key == "errors" else "amber", bars, bars=True))
    yield drawn("Throughput", "requests a second", answered, tick)
    latency = [Series(name, style, values(f"{name}_ms")) for name, style in _STYLES] if result["requests"]["ok"] else []
    which = "response" if result["times"]["response"] is not None else "service"
    if latency:
        yield drawn("Latency", f"{which} time of what ended in each second", latency, tick_ms, may_log=True)
    if result["times"]["ttft"] is not None:
        first = [Series(name, style, values(f"ttft_{name}_ms")) for name, style in _STYLES]
        yield drawn("Time to first token", "of the streams that ended in each second", first, tick_ms, may_log=True)
    if result["tokens"]["output"]:
        tokens = [Series("output tokens", "violet", rates("output_tokens"), area=True)]
        yield drawn("Output tokens", "a second, of what ended in it", tokens, tick)
    flying = [Series("in flight", "teal", values("in_flight"), area=True)]
    yield drawn("In flight", "requests sent and not answered yet, at most", flying, tick, whole=True)


_STYLES = (("p50", "teal"), ("p95", "blue"), ("p99", "amber"))


def _line(values: Iterable[tuple[float, float, Optional[float]]]) -> list[Dot]:
    """A line through the middles of the moments, from the first one's begin to the last one's end."""
    dots: list[Dot] = []
    last: Optional[tuple[float, float, Optional[float]]] = None
    for begin, end, value in values:
        if last is None or last[2] is None:
            dots.append((begin, value))
        dots.append(((begin + end) / 2, value))
        last = begin, end, value
    if last is not None:
        dots.append((last[1], last[2]))
    return dots


def _bands(result: Mapping[str, Any], x: Axis) -> Iterator[Band]:
    end_s = result["duration_s"]
    shaded = False
    for stage in result["stages"]:
        begin = stage["at_s"]
        end = min(end_s, x.most if stage["duration_s"] is None else begin + stage["duration_s"])
        if end <= begin:
            continue
        if stage["warmup"]:
            yield Band(begin, end, "warm", "warm-up")
            continue
        rates = [tick(stage[key]) for key in ("from_per_s", "to_per_s")]
        name = f"{rates[0]}/s" if rates[0] == rates[1] else f"{rates[0]} → {rates[1]}/s"
        yield Band(begin, end, "band" if shaded else "plain", name)
        shaded = not shaded
    if not result["stages"] and result["config"]["warmup_s"]:
        yield Band(x.least, 0.0, "warm", "warm-up")
    if x.most > end_s + 0.5:
        yield Band(end_s, x.most, "warm", "last answers")


def _told(begin: float, end: float, moment: Mapping[str, Any]) -> str:
    texts = [f"{begin:g} to {end:.4g} s", f"{counted(moment['ok'])} answered"]
    texts += [f"{counted(moment[key])} {key}" for key in ("errors", "refused") if moment[key]]
    if moment["p50_ms"] is not None:
        texts.append(", ".join(f"{name} {ms(moment[f'{name}_ms'])}" for name in ("p50", "p95", "p99", "max")))
    if moment["ttft_p50_ms"] is not None:
        texts.append(f"first token p50 {ms(moment['ttft_p50_ms'])}, p99 {ms(moment['ttft_p99_ms'])}")
    if moment["output_tokens"]:
        texts.append(f"{counted(moment['output_tokens'])} tokens")
    texts.append(f"at most {moment['in_flight']} in flight")
    return "\n".join(texts)


def _spreads(result: Mapping[str, Any]) -> Iterator[str]:
    times = result["times"]
    names = (
        ("response", "response time", "blue"),
        ("service", "service time", "teal"),
        ("corrected", "corrected", "amber"),
    )
    latency = [Series(name, style, _curve(times[key])) for key, name, style in names if times[key] is not None]
    if latency:
        yield _spread("Latency by percentile", latency)
    if times["ttft"] is not None:
        yield _spread(
            "Time to first token by percentile", [Series("time to first token", "violet", _curve(times["ttft"]))]
        )


def _spread(title: str, series: Sequence[Series]) -> str:
    most = max(at for one in series for at, _ in one.points)
    y = value_axis(series, tick_ms, may_log=True)
    about = "how long the slowest of so many took" + (", logarithmic" if y.log else "")
    hovers = []
    dots = series[0].points
    for (at, value), (until, _) in zip(dots, dots[1:]):
        hovers.append(Hover(at, until, f"{100 * (1 - 10**-at):.5g} %: {ms(value)}"))
    return chart(title, about, series, percent_axis(most), y, hovers=hovers)


def _curve(times: Mapping[str, Any]) -> list[Dot]:
    last = math.log10(2 * times["count"])
    dots: list[Dot] = [(0.0, times["min_ms"])]
    dots += [(min(last, nines(percent)), value) for percent, value in times["spread"]]
    return dots


# --- tables ----------------------------------------------------------------------------------------------------------


def _tables(result: Mapping[str, Any]) -> Iterator[str]:
    times = [(name.capitalize(), *cells) for name, *cells in times_rows(result)]
    yield table_html("Times", ("", *COLUMNS), times)
    heads = ("", "answered", "errors", "refused", "p50", "p99", "first token p50", "per token p50", "tokens")
    for title, kind in (("By model", "models"), ("By engine", "engines")):
        yield table_html(title, heads, [label_row(row) for row in result[kind]])
    yield table_html("What went wrong", ("", "count", "share"), error_rows(result))


def _settings(result: Mapping[str, Any]) -> Iterator[str]:
    config, generator = result["config"], result["generator"]
    pairs = {
        "Loop": config["loop"] + (f", {config['arrivals']} arrivals" if config["arrivals"] else ""),
        "Callers" if config["loop"] == "closed" else "Connections at most": counted(config["connections"]),
        "Connections opened": counted(result["connections"]["opened"]),
        "Kept between requests": "yes" if config["keepalive"] else "no",
        "Streams": f"{100 * config['stream_share']:g} %",
        "Prompts": "each its own" if config["unique"] else "may repeat",
        "Answer's tokens at most": _span(config["max_tokens"]),
        "Prompt's tokens, about": _span(config["prompt_tokens"]),
        "Shared prefix, about": f"{config['shared_prefix_tokens']} tokens"
        if config["shared_prefix_tokens"]
        else "none",
        "Timeout": f"{config['timeout_s']:g} s",
        "Received": shown_bytes(result["body_bytes"]),
        "Seed": str(config["seed"]),
        "Generator": f"{100 * generator['cpu_share']:.0f} % of a processor, {generator['python']}",
        "Sent late": f"{counted(generator['late'])}, p99 {ms((generator['lag'] or {}).get('p99_ms'))}",
    }
    if config["loop"] == "closed":
        del pairs["Sent late"]
    yield pairs_html("How it was measured", pairs)
    error = 100 * result["relative_error"]
    yield f"<footer><p>Percentiles are within {error:.1f} %; smallest, largest and mean are exact.</p></footer>\n"


def _span(span: Optional[Sequence[int]]) -> str:
    if span is None:
        return "not said"
    return str(span[0]) if span[0] == span[1] else f"{span[0]} to {span[1]}"
