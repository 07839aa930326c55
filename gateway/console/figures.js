// The charts of the Live page: which columns of the feed each shows, and what its headline says.
//
//   const figures = new Figures(); figures.element; figures.draw(store); figures.close()

import { CrosshairGroup, TimeChart } from "./charts.js";
import { compact, duration, durationMark, number, percent, usd, usdMark } from "./format.js";
import { bucketed, recent, spanFor, stepFor } from "./series.js";
import { el } from "./ui.js";

const NOW_S = 10; // what a headline calls now: one second alone says little
const MINUTE_S = 60;

/** A ratio of two columns over the last minute; null where the second is nothing. */
function ratio(read, above, below) {
  const whole = below.reduce((sum, name) => sum + (read(name, MINUTE_S) || 0), 0);
  return whole > 0 ? (read(above, MINUTE_S) || 0) / whole : null;
}

// `reduce`: what stands for the seconds of one bucket. Of tails and queues the largest, or a short one would vanish.
// `now(read)`: the headline; read(column, seconds, "mean" | "sum").
const CHARTS = [
  {
    id: "requests",
    title: "Requests",
    format: compact,
    least: 1,
    now: (read) => [number(read("requests", NOW_S, "mean"), 1), "per second"],
    series: [{ key: "requests", label: "all", tone: 1, area: true, reduce: "mean" }],
  },
  {
    id: "errors",
    title: "Errors",
    format: compact,
    least: 1,
    now: (read) => [percent(ratio(read, "errors", ["requests"])), "of the last minute’s requests"],
    series: [{ key: "errors", label: "per second", tone: "bad", area: true, reduce: "mean" }],
  },
  {
    id: "latency",
    title: "Latency",
    format: duration,
    mark: durationMark,
    least: 1,
    now: (read) => [duration(read("p95_ms", NOW_S, "mean")), "p95"],
    series: [
      { key: "p50_ms", label: "p50", tone: 1, reduce: "mean" },
      { key: "p95_ms", label: "p95", tone: 2, reduce: "max" },
      { key: "p99_ms", label: "p99", tone: 3, reduce: "max", dash: true },
    ],
  },
  {
    id: "ttft",
    title: "Time to first token",
    format: duration,
    mark: durationMark,
    least: 1,
    now: (read) => [duration(read("ttft_p95_ms", NOW_S, "mean")), "p95"],
    series: [
      { key: "ttft_p50_ms", label: "p50", tone: 1, reduce: "mean" },
      { key: "ttft_p95_ms", label: "p95", tone: 2, reduce: "max" },
    ],
  },
  {
    id: "tokens",
    title: "Tokens",
    format: compact,
    least: 10,
    now: (read) => [compact(read("completion_tokens", NOW_S, "mean")), "completion tokens per second"],
    series: [
      { key: "completion_tokens", label: "completion", tone: 1, area: true, reduce: "mean" },
      { key: "prompt_tokens", label: "prompt", tone: 4, reduce: "mean", dash: true },
    ],
  },
  {
    id: "queue",
    title: "In flight and queue",
    format: compact,
    least: 4,
    now: (read) => [number(read("in_flight", 3, "mean"), 0), "in flight"],
    series: [
      { key: "in_flight", label: "in flight", tone: 1, area: true, reduce: "max" },
      { key: "workers_busy", label: "workers", tone: 4, reduce: "max", dash: true },
      { key: "queue", label: "queue", tone: 2, reduce: "max" },
    ],
  },
  {
    id: "cache",
    title: "Cache",
    format: compact,
    least: 1,
    now: (read) => [percent(ratio(read, "cache_hits", ["cache_hits", "cache_misses"])), "hits in the last minute"],
    series: [
      { key: "cache_hits", label: "hits", tone: 4, area: true, reduce: "mean" },
      { key: "cache_misses", label: "misses", tone: 2, reduce: "mean", dash: true },
    ],
  },
  {
    id: "cost",
    title: "Cost",
    format: usd,
    mark: usdMark,
    least: 0,
    now: (read) => [usd(hourly(read("cost_usd", MINUTE_S, "mean"))), "per hour"],
    series: [{ key: "cost_usd", label: "USD per hour", tone: 3, area: true, reduce: "mean", times: 3600 }],
  },
];

function hourly(perSecondUsd) {
  return perSecondUsd === null ? null : perSecondUsd * 3600;
}

export class Figures {
  constructor() {
    const group = new CrosshairGroup();
    this._charts = CHARTS.map((given) => ({ given, chart: new TimeChart({ ...given, group }) }));
    this.element = el(
      "section",
      { class: "figures", "aria-label": "The last 15 minutes", id: "live-charts" },
      this._charts.map(({ chart }) => chart.element),
    );
  }

  close() {
    for (const { chart } of this._charts) chart.close();
  }

  draw(store) {
    const time = store.at.time;
    const last_s = store.points.length ? store.points[store.points.length - 1][time] : Math.floor(store.now_s);
    const span_s = spanFor(store.points.length ? last_s - store.points[0][time] : 0);
    const read = (name, seconds, reduce) => recent(store.points, time, store.at[name], last_s, seconds, reduce);
    for (const { given, chart } of this._charts) {
      const step_s = stepFor(span_s, chart.wide);
      // The bucket that time is still filling is left out: it would jump each second.
      const end = Math.floor((last_s + 1) / step_s);
      const count = Math.floor(span_s / step_s);
      const from_s = (end - count) * step_s;
      const values = {};
      for (const one of given.series) {
        const list = bucketed(store.points, time, store.at[one.key], { from_s, step_s, count, reduce: one.reduce });
        values[one.key] = one.times ? list.map((value) => (value === null ? null : value * one.times)) : list;
      }
      const [headline, note] = given.now(read);
      chart.update({ headline, note, from_s, step_s, values });
    }
  }
}
