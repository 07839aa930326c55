"""Charts as HTML with inline SVG, for a page without scripts. Pure; numbers in, text out.

Only lines and areas are SVG, stretched to whatever width there is; axes are text of the page's own size beside it, so
that a phone shows them as large as a wide screen. Nothing here is from a server but numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Callable, NamedTuple, Optional

WIDE, HIGH = 1000.0, 260.0
_TICKS = 4
_PERCENTS = (50, 90, 99, 99.9, 99.99, 99.999, 99.9999)
_END = ' class="end"'
_CHARACTER = 0.0155  # of the width of a chart beside another, that one takes

Format = Callable[[float], str]
Dot = tuple[float, Optional[float]]


class Series(NamedTuple):
    """A line: its name, its CSS class, and its points; where one has no value, the line is interrupted."""

    name: str
    style: str
    points: Sequence[Dot]
    area: bool = False
    bars: bool = False


class Band(NamedTuple):
    """A part of the time axis that is shaded; `style` is its CSS class."""

    begin: float
    end: float
    style: str
    name: str


class Hover(NamedTuple):
    """A part of the axis that tells its numbers when it is pointed at."""

    begin: float
    end: float
    text: str


class Axis(NamedTuple):
    """What is between two ends, with its ticks; `log` spreads decades evenly."""

    least: float
    most: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value is, from 0 to 1."""
        if self.log:
            if value <= self.least:
                return 0.0
            return min(1.0, math.log(value / self.least) / math.log(self.most / self.least))
        return min(1.0, max(0.0, (value - self.least) / (self.most - self.least)))


def even_axis(most: float, shown: Format, whole: bool = False) -> Axis:
    """From 0 to something round that is at least `most`; `whole`: of things that are counted."""
    step = _round_step(max(most, 1e-9) / _TICKS)
    if whole:
        step = float(math.ceil(step))
    count = max(1, math.ceil(most / step - 1e-9))
    return Axis(0.0, count * step, tuple((one * step, shown(one * step)) for one in range(count + 1)))


def log_axis(least: float, most: float, shown: Format) -> Axis:
    """Whole decades, or for less than two of them their 1, 2 and 5."""
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    high = max(high, low + 1)
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    ticks = [step * 10.0**power for power in range(low, high) for step in steps]
    ticks = [one for one in ticks if one <= most * 1.3]
    begin = max((one for one in ticks if one <= least), default=ticks[0])
    end = min(step * 10.0**power for power in (high - 1, high) for step in (1, 2, 5) if step * 10.0**power >= most)
    end = max(end, begin * 10)
    kept = [one for one in ticks if one >= begin]
    return Axis(begin, end, tuple((one, shown(one)) for one in kept), log=True)


def value_axis(series: Sequence[Series], shown: Format, may_log: bool = False, whole: bool = False) -> Axis:
    """An axis for all values; with `may_log` a logarithmic one, where the largest would flatten the others."""
    values = sorted(value for one in series for _, value in one.points if value is not None)
    if not values:
        return even_axis(1.0, shown)
    middle = values[len(values) // 2]
    if may_log and values[0] > 0 and values[-1] > 20 * middle:
        return log_axis(values[0], values[-1], shown)
    return even_axis(values[-1] or 1.0, shown, whole)


def time_axis(begin_s: float, end_s: float) -> Axis:
    """Seconds from the start."""
    spans = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
    step = next((one for one in spans if (end_s - begin_s) / one <= 6), 86400)
    ticks = [one * step for one in range(math.ceil(begin_s / step), math.floor(end_s / step) + 1)]
    return Axis(begin_s, end_s, tuple((float(one), _time(one, step)) for one in ticks))


def _time(at_s: int, step_s: int) -> str:
    if step_s >= 3600:
        return f"{at_s / 3600:g} h"
    if step_s >= 60:
        return f"{at_s / 60:g} m"
    return f"{at_s} s"


def nines(percent: float) -> float:
    """Where a percentile stands at its axis: 90 at 1, 99 at 2; infinite for 100."""
    return math.inf if percent >= 100 else -math.log10(1 - percent / 100)


def percent_axis(most: float) -> Axis:
    """Percentiles, by `nines`."""
    ticks = ((nines(one), f"{one:g} %") for one in _PERCENTS)
    return Axis(0.0, most, tuple(tick for tick in ticks if tick[0] <= most))


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * (1 - 1e-9))


def chart(
    title: str,
    about: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    bands: Sequence[Band] = (),
    hovers: Sequence[Hover] = (),
) -> str:
    """A figure with its title, a line about it, a legend where there is more than one line, and the plot."""
    legend = "".join(f'<li class="{one.style}">{escape(one.name)}</li>' for one in series)
    below = "".join(
        f'<span style="left:{100 * x.share(at):.2f}%"{_END if x.share(at) > 0.96 else ""}>{escape(text)}</span>'
        for at, text in x.ticks
    )
    beside = "".join(f'<span style="bottom:{100 * y.share(at):.2f}%">{escape(text)}</span>' for at, text in y.ticks)
    names = "".join(_named(band, x) for band in bands if band.name)
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3><p>{escape(about)}</p>'
        f'<ul class="legend">{legend}</ul></figcaption>'
        f'<div class="plot"><div class="y" aria-hidden="true">{beside}</div><div class="area">'
        f'<svg viewBox="0 0 {WIDE:g} {HIGH:g}" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">'
        f"{''.join(_drawn(series, x, y, bands, hovers))}</svg>{names}</div>"
        f'<div class="x" aria-hidden="true">{below}</div></div></figure>\n'
    )


def _named(band: Band, x: Axis) -> str:
    left, right = x.share(band.begin), x.share(band.end)
    if right - left < _CHARACTER * len(band.name):
        return ""
    return (
        f'<i class="band-name" style="left:{100 * left:.2f}%;width:{100 * (right - left):.2f}%">{escape(band.name)}</i>'
    )


def _drawn(series: Sequence[Series], x: Axis, y: Axis, bands: Sequence[Band], hovers: Sequence[Hover]) -> Iterator[str]:
    for band in bands:
        left, right = WIDE * x.share(band.begin), WIDE * x.share(band.end)
        yield f'<rect class="{band.style}" x="{left:.1f}" y="0" width="{right - left:.1f}" height="{HIGH:g}"/>'
    for at, _ in y.ticks:
        level = HIGH * (1 - y.share(at))
        yield f'<path class="grid" d="M0 {level:.1f}H{WIDE:g}"/>'
    for one in series:
        for part in _parts(one.points):
            places = [(WIDE * x.share(at), HIGH * (1 - y.share(value))) for at, value in part]
            if one.bars:
                yield _bars(one, places)
                continue
            line = "L".join(f"{left:.1f} {top:.1f}" for left, top in places)
            if one.area:
                base = f"V{HIGH:g}H{places[0][0]:.1f}Z"
                yield f'<path class="fill {one.style}" d="M{line}{base}"/>'
            yield f'<path class="line {one.style}" d="M{line}"/>'
    for hover in hovers:
        left, right = WIDE * x.share(hover.begin), WIDE * x.share(hover.end)
        if right > left:
            yield (
                f'<rect class="hover" x="{left:.1f}" y="0" width="{right - left:.1f}" height="{HIGH:g}">'
                f"<title>{escape(hover.text)}</title></rect>"
            )


def _bars(one: Series, places: Sequence[tuple[float, float]]) -> str:
    """Pairs of points are the left and right end of a bar."""
    drawn = "".join(
        f"M{left:.1f} {HIGH:g}V{top:.1f}H{right:.1f}V{HIGH:g}Z"
        for (left, top), (right, _) in zip(places[::2], places[1::2])
        if top < HIGH
    )
    return f'<path class="bars {one.style}" d="{drawn}"/>' if drawn else ""


def _parts(points: Sequence[Dot]) -> Iterator[list[tuple[float, float]]]:
    part: list[tuple[float, float]] = []
    for at, value in points:
        if value is None:
            if part:
                yield part
            part = []
        else:
            part.append((at, value))
    if part:
        yield part
