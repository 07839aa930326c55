"""What Locust's CSV files say, as a Markdown table and as a chart in SVG.

Pure functions from text to text: nothing is read, written or started. The chart is one file with a ground of its own,
in the colours of the reader's system, light or dark; it needs no script, and no font but the system's.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Optional

FIRST_TOKEN = "TTFT"
AGGREGATED = "Aggregated"
REQUESTS = "requests/s"
# In this order, and others behind them.
NAMES = ("chat", "query", "stream: first token", "stream", "inference")

_COLUMNS = 3
_WIDTH, _HEIGHT, _TOP = 900, 470, 62
_CELL_WIDTH, _CELL_HEIGHT = 286, 196
_PLOT_LEFT, _PLOT_TOP, _PLOT_WIDTH, _PLOT_HEIGHT = 46, 30, 222, 122

_STYLE = """\
text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328; }
.title { font-size: 15px; font-weight: 600; } .name { font-weight: 600; } .quiet { fill: #59636e; font-size: 11px; }
.ground { fill: #ffffff; } .grid { stroke: #d8dee4; stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.p50 { stroke: #0b62c4; } .p95 { stroke: #b4470e; stroke-dasharray: 5 4; } .rate { stroke: #1f7a3d; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .quiet { fill: #9aa4af; } .ground { fill: #0d1117; } .grid { stroke: #30363d; }
  .p50 { stroke: #66b0ff; } .p95 { stroke: #ffa25c; } .rate { stroke: #57c777; }
}"""


class Row(NamedTuple):
    """All requests of one name in a run. `counts`: False for what is reported beside a request and is none itself."""

    name: str
    requests: int
    failures: int
    per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    slowest_ms: float
    counts: bool


class Point(NamedTuple):
    """A second of a run: `time_s` since its beginning, and the figure there."""

    time_s: float
    value: float


class Lines(NamedTuple):
    """The course of one name: milliseconds that half and 95 % of the requests of the last seconds took."""

    p50: list[Point]
    p95: list[Point]


def rows_of(stats_csv: str) -> list[Row]:
    """Return the rows of `…_stats.csv`, without the sum. Raises KeyError or ValueError when it is another file."""
    rows = [_row(line) for line in csv.DictReader(io.StringIO(stats_csv)) if line["Name"] != AGGREGATED]
    return sorted(rows, key=lambda row: _place(row.name))


def _row(line: Mapping[str, str]) -> Row:
    requests = int(line["Request Count"])
    return Row(
        name=line["Name"],
        requests=requests,
        failures=int(line["Failure Count"]),
        per_s=float(line["Requests/s"]),
        p50_ms=_number(line["50%"]) or 0.0,
        p95_ms=_number(line["95%"]) or 0.0,
        p99_ms=_number(line["99%"]) or 0.0,
        slowest_ms=float(line["Max Response Time"]),
        counts=line["Type"] != FIRST_TOKEN,
    )


def fault_of(rows: Sequence[Row], wanted: Iterable[str]) -> Optional[str]:
    """Return why a run has failed: a request did, or none was made of a name that is `wanted`; None: it has not."""
    failed = [f"{row.failures} of {row.requests} {row.name}" for row in rows if row.failures]
    made = {row.name for row in rows if row.requests}
    missing = [name for name in wanted if name not in made]
    faults = [f"failed: {', '.join(failed)}"] * bool(failed) + [f"never made: {', '.join(missing)}"] * bool(missing)
    return "; ".join(faults) or None


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, with the sum of what are requests at its end."""
    lines = ["| | requests | failed | requests/s | p50 ms | p95 ms | p99 ms | slowest ms |", "|---|" + "---:|" * 7]
    for row in rows:
        times = (row.p50_ms, row.p95_ms, row.p99_ms, row.slowest_ms)
        counts = (_spaced(row.requests), _spaced(row.failures), f"{row.per_s:.1f}") if row.counts else ("", "", "")
        lines.append(_table_line(row.name, *counts, *(_spaced(time_ms) for time_ms in times)))
    counted = [row for row in rows if row.counts]
    requests, failures = sum(row.requests for row in counted), sum(row.failures for row in counted)
    per_s = sum(row.per_s for row in counted)
    lines.append(_table_line("all", _spaced(requests), _spaced(failures), f"{per_s:.1f}", "", "", "", ""))
    return "\n".join(lines) + "\n"


def _table_line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _spaced(number: float) -> str:
    return f"{number:,.0f}".replace(",", " ")


def course_of(history_csv: str) -> tuple[list[Point], dict[str, Lines]]:
    """Return requests/s over the run, and the lines of each name, of `…_stats_history.csv` with a full history.

    Requests/s are what has been added to the counts since the row before, first tokens left out. What comes when users
    have begun to leave is left out.
    """
    requests_by_time: dict[int, int] = {}
    lines_by_name: dict[str, Lines] = {}
    began: Optional[int] = None
    users_most = 0
    for line in csv.DictReader(io.StringIO(history_csv)):
        time_s, name = int(line["Timestamp"]), line["Name"]
        began = time_s if began is None else began
        if int(line["User Count"]) < users_most:
            break
        users_most = int(line["User Count"])
        if name == AGGREGATED:
            requests_by_time.setdefault(time_s - began, 0)
            continue
        if line["Type"] != FIRST_TOKEN:
            total = requests_by_time.get(time_s - began, 0) + int(line["Total Request Count"])
            requests_by_time[time_s - began] = total
        lines = lines_by_name.setdefault(name, Lines([], []))
        for points, column in ((lines.p50, "50%"), (lines.p95, "95%")):
            value = _number(line[column])
            if value:  # 0: none in the last seconds
                points.append(Point(time_s - began, value))
    return _rates(requests_by_time), dict(sorted(lines_by_name.items(), key=lambda item: _place(item[0])))


def _rates(requests_by_time: Mapping[int, int]) -> list[Point]:
    known = sorted(requests_by_time.items())
    steps = zip(known, known[1:])
    return [Point(at, (total - before) / (at - since)) for (since, before), (at, total) in steps]


def _number(text: str) -> Optional[float]:
    try:
        return float(text)
    except ValueError:  # N/A
        return None


def _place(name: str) -> tuple[int, str]:
    return (NAMES.index(name) if name in NAMES else len(NAMES), name)


def chart(rates: Sequence[Point], lines_by_name: Mapping[str, Lines], title: str, subtitle: str) -> str:
    """Return the chart: a panel of requests/s, and one of p50 and p95 for each name, each with a scale of its own."""
    until_s = _up_to_step(max([1.0, *(point.time_s for point in rates)]))
    panels = [_panel(REQUESTS, [("rate", rates)], until_s)]
    panels += [_panel(f"{name}, ms", [("p50", x.p50), ("p95", x.p95)], until_s) for name, x in lines_by_name.items()]
    height = _HEIGHT + (math.ceil(len(panels) / _COLUMNS) - 2) * _CELL_HEIGHT
    placed = []
    for index, panel in enumerate(panels):
        x, y = 14 + index % _COLUMNS * _CELL_WIDTH, _TOP + index // _COLUMNS * _CELL_HEIGHT
        placed.append(f'<g transform="translate({x} {y})">\n{panel}\n</g>')
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{html.escape(title)}</title>",
        f"<style>\n{_STYLE}\n</style>",
        f'<rect class="ground" width="{_WIDTH}" height="{height}" rx="6"/>',
        f'<text class="title" x="20" y="27">{html.escape(title)}</text>',
        f'<text class="quiet" x="20" y="46">{html.escape(subtitle)}</text>',
        _legend(),
        *placed,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _legend() -> str:
    drawn = []
    for x, name in ((_WIDTH - 150, "p50"), (_WIDTH - 78, "p95")):
        drawn.append(f'<line class="line {name}" x1="{x}" y1="23" x2="{x + 26}" y2="23"/>')
        drawn.append(f'<text x="{x + 32}" y="27">{name}</text>')
    return "\n".join(drawn)


def _panel(name: str, lines: Sequence[tuple[str, Sequence[Point]]], until_s: float) -> str:
    highest = max([0.0, *(point.value for _, points in lines for point in points)])
    step, top = scale_step(highest), _up_to_step(highest)
    right, bottom = _PLOT_LEFT + _PLOT_WIDTH, _PLOT_TOP + _PLOT_HEIGHT

    def x_of(time_s: float) -> float:
        return _PLOT_LEFT + _PLOT_WIDTH * time_s / until_s

    def y_of(value: float) -> float:
        return bottom - _PLOT_HEIGHT * value / top

    drawn = [f'<text class="name" x="{_PLOT_LEFT}" y="18">{html.escape(name)}</text>']
    for number in range(round(top / step) + 1):
        y, text = y_of(number * step), f"{number * step:g}"
        drawn.append(f'<line class="grid" x1="{_PLOT_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        drawn.append(f'<text class="quiet" x="{_PLOT_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    step_s = scale_step(until_s)
    for number in range(round(until_s / step_s) + 1):
        text = f"{number * step_s:g} s"
        drawn.append(
            f'<text class="quiet" x="{x_of(number * step_s):.1f}" y="{bottom + 17}" text-anchor="middle">{text}</text>'
        )
    for kind, points in lines:
        if points:
            path = " ".join(f"{x_of(point.time_s):.1f},{y_of(point.value):.1f}" for point in points)
            drawn.append(f'<polyline class="line {kind}" points="{path}"/>')
    return "\n".join(drawn)


def _up_to_step(highest: float) -> float:
    step = scale_step(highest)
    return step * max(1, math.ceil(highest / step))


def scale_step(highest: float) -> float:
    """Return a round step (1, 2 or 5 times a power of ten) of which two to five reach `highest`; 1 for nothing."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * 5 >= highest)
