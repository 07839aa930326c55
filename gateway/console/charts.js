// Charts over time and sparklines, in SVG: crisp at any resolution, coloured by the theme's CSS.
//
//   const chart = new TimeChart({id, title, series: [{key, label, tone, area, dash}], format(value), mark(value), least, group});
//     tone: 1-4 or "bad" (style.css: --series-…); dash: the line is dashed, so that lines differ without their colours;
//     format: of values, mark: of the axis (default: as format); least: the axis reaches at least this; group: a CrosshairGroup that charts share
//   chart.element                         a <figure class="chart card" data-chart="<id>">, for the document
//   chart.update({headline, note, from_s, step_s, values: {key: [number|null, …]}})   draws, if its width is known
//   chart.close()                         ends its observer
//   chart.wide                            how many buckets its width has room for
//
//   const spark = new Sparkline(); spark.element; spark.update(values)
//
// A chart has a headline, a legend with the values at the crosshair, or the newest, a plot that the arrow keys read out,
// and a table of the same figures behind a button.

import { clock, clockMinute } from "./format.js";
import { areaPath, bridged, largest, linePath, niceMax, summary, timeMarks } from "./series.js";
import { announce, el, iconButton, replace, setAttr, setIcon, setText, svg } from "./ui.js";

const HEIGHT = 132;
const TOP = 8;
const BOTTOM = 20; // room for the times
const LEFT = 46; // room for the values
const RIGHT = 6;
const TABLE_ROWS = 15;

/** What the charts of a page show the crosshair of together. */
export class CrosshairGroup {
  constructor() {
    this.time_s = null;
    this._charts = new Set();
    this._frame = 0;
  }

  add(chart) {
    this._charts.add(chart);
  }

  set(time_s) {
    if (this.time_s === time_s) return;
    this.time_s = time_s;
    if (this._frame) return;
    this._frame = requestAnimationFrame(() => {
      this._frame = 0;
      for (const chart of this._charts) chart.drawCrosshair();
    });
  }
}

export class TimeChart {
  constructor({ id, title, series, format, mark = format, least = 0, group = new CrosshairGroup() }) {
    this._series = series;
    this._format = format;
    this._mark = mark;
    this._least = least;
    this._title = title;
    this._group = group;
    this._width = 0;
    this._data = null;
    this._tabled = false;
    group.add(this);
    this._build(id, title);
    this._observer = new ResizeObserver(([entry]) => {
      const width = Math.round(entry.contentRect.width);
      if (width === this._width) return;
      this._width = width;
      this._draw();
    });
    this._observer.observe(this._plot);
  }

  get wide() {
    return Math.max(40, Math.floor(((this._width || 320) - LEFT - RIGHT) / 2));
  }

  close() {
    this._observer.disconnect();
  }

  update(data) {
    this._data = data;
    setText(this._headline, data.headline);
    setText(this._note, data.note || "");
    this._draw();
  }

  _build(id, title) {
    this._headline = el("span", { class: "chart-headline" }, "–");
    this._note = el("span", { class: "chart-note" });
    this._values = new Map();
    const legend = this._series.map((one) => {
      const value = el("span", { class: "chart-legend-value" }, "–");
      this._values.set(one.key, value);
      return el("li", { class: "chart-legend-item" }, swatch(one), el("span", {}, one.label), value);
    });
    this._grid = svg("g", { class: "chart-grid" });
    this._areas = new Map();
    this._lines = new Map();
    const shapes = this._series.map((one) => {
      const line = svg("path", { class: ["chart-line", one.dash && "dashed"], "data-tone": one.tone });
      this._lines.set(one.key, line);
      if (!one.area) return line;
      const area = svg("path", { class: "chart-area", "data-tone": one.tone });
      this._areas.set(one.key, area);
      return [area, line];
    });
    this._cross = svg("line", { class: "chart-cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    this._dots = new Map(this._series.map((one) => [one.key, svg("circle", { class: "chart-dot", r: 3, "data-tone": one.tone, visibility: "hidden" })]));
    this._svg = svg("svg", { class: "chart-svg", height: HEIGHT, "aria-hidden": "true" }, this._grid, shapes, this._cross, [...this._dots.values()]);
    this._tip = el("div", { class: "chart-tip", hidden: true });
    this._none = el("span", { class: "chart-none", hidden: true }, "Nothing measured yet");
    this._plot = el("div", { class: "chart-plot", tabindex: 0, role: "img", "aria-label": title, on: this._handlers() }, this._svg, this._none, this._tip);
    this._table = el("div", { class: "chart-table", hidden: true, tabindex: 0, role: "region", "aria-label": `${title}, as a table` });
    this._toggle = iconButton(`${title} as a table`, "table", { small: true, "aria-pressed": "false", onClick: () => this._showTable(!this._tabled) });
    this.element = el(
      "figure",
      { class: "chart card", dataset: { chart: id } },
      el("figcaption", { class: "chart-head" }, el("h3", {}, title), this._toggle),
      el("div", { class: "chart-now" }, el("p", {}, this._headline, " ", this._note), el("ul", { class: "chart-legend" }, legend)),
      this._plot,
      this._table,
    );
  }

  _handlers() {
    const leave = () => {
      this._tip.hidden = true;
      this._group.set(null);
    };
    return {
      pointermove: (event) => {
        const time_s = this._timeAt(event.clientX - this._plot.getBoundingClientRect().left);
        this._tip.hidden = time_s === null;
        this._group.set(time_s);
      },
      pointerleave: leave,
      blur: leave,
      keydown: (event) => this._key(event),
    };
  }

  /** The arrow keys move the crosshair and say what is there. */
  _key(event) {
    const { from_s, step_s, count } = this._range();
    if (!count) return;
    const last = from_s + (count - 1) * step_s;
    const at = this._group.time_s === null ? last : this._group.time_s;
    const page = step_s * Math.max(1, Math.round(60 / step_s));
    const moved = { ArrowLeft: at - step_s, ArrowRight: at + step_s, PageUp: at - page, PageDown: at + page, Home: from_s, End: last }[event.key];
    if (event.key === "Escape") {
      this._tip.hidden = true;
      this._group.set(null);
    }
    if (moved === undefined) return;
    event.preventDefault();
    const time_s = Math.min(last, Math.max(from_s, moved));
    this._tip.hidden = false;
    this._group.set(time_s);
    const index = Math.round((time_s - from_s) / step_s);
    announce(`${clock(time_s)}: ${this._series.map((one) => `${one.label} ${this._format(this._data.values[one.key][index])}`).join(", ")}`);
  }

  _range() {
    if (!this._data) return { from_s: 0, step_s: 1, count: 0 };
    return { from_s: this._data.from_s, step_s: this._data.step_s, count: this._data.values[this._series[0].key].length };
  }

  _timeAt(x) {
    const { from_s, step_s, count } = this._range();
    const inner = this._width - LEFT - RIGHT;
    if (!count || inner <= 0 || x < LEFT - 4) return null;
    const index = Math.round(((x - LEFT) / inner) * (count - 1));
    return from_s + Math.min(count - 1, Math.max(0, index)) * step_s;
  }

  _draw() {
    if (!this._data || this._width <= LEFT + RIGHT) return;
    const { from_s, step_s, count } = this._range();
    const { values } = this._data;
    const lists = this._series.map((one) => values[one.key]);
    const measured = lists.some((list) => list.some((value) => value !== null));
    this._none.hidden = measured;
    const max = niceMax(largest(lists), this._least);
    const base = HEIGHT - BOTTOM;
    const inner = this._width - LEFT - RIGHT;
    this._x = (at) => LEFT + (count > 1 ? (at / (count - 1)) * inner : inner);
    this._y = (value) => base - (Math.max(0, value) / max) * (base - TOP);
    setAttr(this._svg, "width", this._width);
    this._drawGrid(from_s, from_s + (count - 1) * step_s, max, measured);
    for (const one of this._series) {
      setAttr(this._lines.get(one.key), "d", linePath(values[one.key], this._x, this._y));
      if (one.area) setAttr(this._areas.get(one.key), "d", areaPath(values[one.key], this._x, this._y, base));
    }
    this.drawCrosshair();
    this._describe();
    if (this._tabled) this._fillTable();
  }

  _drawGrid(from_s, to_s, max, measured) {
    const right = this._width - RIGHT;
    const nodes = [0, max / 2, max].map((value) => {
      const y = Math.round(this._y(value)) + 0.5;
      return [
        svg("line", { x1: LEFT, x2: right, y1: y, y2: y, class: value === 0 ? "base" : "" }),
        measured && svg("text", { x: LEFT - 6, y: y + 3.5, "text-anchor": "end" }, this._mark(value)),
      ];
    });
    const inner = right - LEFT;
    for (const time_s of timeMarks(from_s, to_s, markEvery(to_s - from_s, inner))) {
      const x = LEFT + ((time_s - from_s) / (to_s - from_s || 1)) * inner;
      // A label at either end would be cut off.
      if (x - LEFT < 14 || right - x < 14) continue;
      nodes.push(svg("text", { x, y: HEIGHT - 5, "text-anchor": "middle" }, clockMinute(time_s)));
      nodes.push(svg("line", { x1: x, x2: x, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 3 }));
    }
    replace(this._grid, nodes);
  }

  /** Shows the group's time, or the newest values where there is none. */
  drawCrosshair() {
    if (!this._data || !this._x) return;
    const { from_s, step_s, count } = this._range();
    const time_s = this._group.time_s;
    const index = time_s === null ? -1 : Math.round((time_s - from_s) / step_s);
    const shown = index >= 0 && index < count;
    setAttr(this._cross, "visibility", shown ? "visible" : "hidden");
    for (const one of this._series) {
      const list = this._data.values[one.key];
      const value = shown ? list[index] : summary(list.slice(-5)).last;
      setText(this._values.get(one.key), this._format(value));
      const dot = this._dots.get(one.key);
      setAttr(dot, "visibility", shown && value !== null ? "visible" : "hidden");
      if (shown && value !== null) {
        setAttr(dot, "cx", this._x(index));
        setAttr(dot, "cy", this._y(value));
      }
    }
    if (!shown) {
      this._tip.hidden = true;
      return;
    }
    const x = this._x(index);
    setAttr(this._cross, "x1", x);
    setAttr(this._cross, "x2", x);
    if (!this._tip.hidden) this._fillTip(time_s, index, x);
  }

  _fillTip(time_s, index, x) {
    const rows = this._series.map((one) => [swatch(one), el("span", {}, one.label), el("b", {}, this._format(this._data.values[one.key][index]))]);
    replace(this._tip, el("p", {}, clock(time_s)), el("div", { class: "chart-tip-rows" }, rows));
    const left = x > this._width / 2;
    this._tip.style.left = left ? "" : `${Math.round(x + 10)}px`;
    this._tip.style.right = left ? `${Math.round(this._width - x + 10)}px` : "";
  }

  _describe() {
    const parts = this._series.map((one) => {
      const { last, least, most } = summary(this._data.values[one.key]);
      if (last === null) return `${one.label}: nothing measured`;
      return `${one.label}: now ${this._format(last)}, between ${this._format(least)} and ${this._format(most)}`;
    });
    setAttr(this._plot, "aria-label", `${this._title}, last 15 minutes. ${parts.join("; ")}. Arrow keys read single values.`);
  }

  _showTable(shown) {
    this._tabled = shown;
    setAttr(this._toggle, "aria-pressed", shown ? "true" : "false");
    setIcon(this._toggle, shown ? "chart" : "table");
    this._plot.hidden = shown;
    this._table.hidden = !shown;
    if (shown) this._fillTable();
  }

  _fillTable() {
    const { from_s, step_s, count } = this._range();
    const every = Math.max(1, Math.round(count / TABLE_ROWS));
    const rows = [];
    for (let at = count - 1; at >= 0; at -= every) {
      const cells = this._series.map((one) => el("td", { class: "number" }, this._format(this._data.values[one.key][at])));
      rows.push(el("tr", {}, el("th", { scope: "row" }, clock(from_s + at * step_s)), cells));
    }
    const head = this._series.map((one) => el("th", { scope: "col", class: "number" }, one.label));
    replace(this._table, el("table", { class: "table" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"), head)), el("tbody", {}, rows)));
  }
}

function swatch({ tone, dash }) {
  const line = svg("line", { x1: 1, x2: 13, y1: 4, y2: 4, class: ["chart-line", dash && "dashed"], "data-tone": tone });
  return svg("svg", { class: "chart-swatch", width: 14, height: 8, "aria-hidden": "true" }, line);
}

/** Seconds between the marks of the time axis: whole minutes, since that is what a mark says. */
function markEvery(span_s, width) {
  const most = width < 220 ? 2 : 4;
  return [60, 120, 300, 600].find((every_s) => span_s / every_s < most + 0.5) || 600;
}

const SPARK_WIDTH = 96;
const SPARK_HEIGHT = 24;
const SPARK_BRIDGE = 8; // seconds without an attempt that the line goes on over

export class Sparkline {
  constructor() {
    this._line = svg("path", { class: "spark-line" });
    this._area = svg("path", { class: "spark-area" });
    this.element = svg("svg", { class: "spark", viewBox: `0 0 ${SPARK_WIDTH} ${SPARK_HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" }, this._area, this._line);
  }

  /** Draws values from 0 to the largest of them; null is a gap, of which short ones are bridged: few requests are no specks. */
  update(measured) {
    const values = bridged(measured, SPARK_BRIDGE);
    const max = niceMax(largest([values]));
    const x = (at) => 1 + (at / Math.max(1, values.length - 1)) * (SPARK_WIDTH - 2);
    const y = (value) => SPARK_HEIGHT - 2 - (value / max) * (SPARK_HEIGHT - 4);
    setAttr(this._line, "d", linePath(values, x, y));
    setAttr(this._area, "d", areaPath(values, x, y, SPARK_HEIGHT));
  }
}
