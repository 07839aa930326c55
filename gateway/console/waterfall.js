// A request's time as bars: where it waited, what was tried, for how long. The layout is pure; drawing makes SVG.
//
//   layout(request) -> {total_ms, lanes, bars: [{kind, name, tone, start_ms, duration_ms, lane, ttft_ms, engine, outcome}]}
//   draw(request, scale_ms)   a row's picture; the same scale for all rows makes them comparable
//   setScale(picture, scale_ms), details(request)   one bar a line, with its words, for the panel
//   scaleFor(requests) -> ms

import { duration } from "./format.js";
import { niceMax, percentile } from "./series.js";
import { el, setAttr, svg } from "./ui.js";

const HEIGHT = 18;
const MARKS = new Set(["queue", "cache", "batch", "sandbox", "judge"]);

/** How an attempt's outcome looks: "ok", "lost" (it failed), "left" (nobody wanted it any more). */
export function outcomeTone(outcome) {
  if (outcome === "ok") return "ok";
  return outcome === "cancelled" ? "left" : "lost";
}

function length_of(value) {
  return typeof value === "number" && value > 0 ? value : 0;
}

/** Bars in the order of their start; those that overlap lie in lanes of their own, each in the first that is free. */
export function layout(request) {
  const attempts = (request.attempts || []).map((attempt) => ({
    kind: "attempt",
    name: attempt.engine || attempt.model || "",
    model: attempt.model,
    engine: attempt.engine,
    outcome: attempt.outcome,
    tone: outcomeTone(attempt.outcome),
    start_ms: length_of(attempt.start_ms),
    duration_ms: length_of(attempt.duration_ms),
    ttft_ms: typeof attempt.ttft_ms === "number" ? attempt.ttft_ms : null,
  }));
  const marks = (request.marks || []).map((mark) => ({
    kind: "mark",
    name: mark.name,
    tone: MARKS.has(mark.name) ? mark.name : "other",
    start_ms: length_of(mark.start_ms),
    duration_ms: length_of(mark.duration_ms),
    ttft_ms: null,
  }));
  // Shorter, it is the way through the queue and no wait.
  if (length_of(request.queue_ms) >= 0.1 && !marks.some((mark) => mark.name === "queue")) {
    marks.push({ kind: "mark", name: "queue", tone: "queue", start_ms: 0, duration_ms: request.queue_ms, ttft_ms: null });
  }
  const bars = [...marks, ...attempts].sort((a, b) => a.start_ms - b.start_ms);
  const ends = [];
  let total_ms = length_of(request.latency_ms);
  for (const bar of bars) {
    const end_ms = bar.start_ms + bar.duration_ms;
    // Times are rounded to hundredths: what begins as another ends does not overlap it.
    const free = ends.findIndex((taken_ms) => taken_ms <= bar.start_ms + 0.02);
    bar.lane = free < 0 ? ends.length : free;
    ends[bar.lane] = end_ms;
    total_ms = Math.max(total_ms, end_ms);
  }
  return { total_ms, lanes: Math.max(1, ends.length), bars };
}

/** One scale for many requests: all but the slowest twentieth fit in. */
export function scaleFor(requests) {
  const found = percentile(requests.map((request) => length_of(request.latency_ms)), 0.95);
  return niceMax(found || 0, 1);
}

function shape(bar, y, height) {
  const box = { x: bar.start_ms, y, height, width: bar.duration_ms, class: "bar-shape", "data-bar": bar.tone };
  return svg("rect", box);
}

/** The picture of a row. Its words are the row's other cells; here they are a title for the pointer. */
export function draw(request, scale_ms) {
  const { total_ms, lanes, bars } = layout(request);
  const height = (HEIGHT - 4) / lanes;
  const gap = lanes > 1 ? 1 : 0;
  const line = svg("line", { class: "bar-whole", x1: 0, x2: total_ms, y1: HEIGHT / 2, y2: HEIGHT / 2 });
  const rects = bars.map((bar) => shape(bar, 2 + bar.lane * height, Math.max(1.5, height - gap)));
  const picture = svg("svg", { class: "waterfall", preserveAspectRatio: "none", "aria-hidden": "true", height: HEIGHT }, line, rects);
  const box = el("div", { class: "waterfall-box", title: bars.map(words).join("\n") || "no attempt" }, picture);
  box.picture = picture;
  box.total_ms = total_ms;
  setScale(box, scale_ms);
  return box;
}

/** Bars are drawn in milliseconds: another scale is another view box, and nothing is drawn anew. */
export function setScale(box, scale_ms) {
  setAttr(box.picture, "viewBox", `0 0 ${scale_ms} ${HEIGHT}`);
  box.classList.toggle("over", box.total_ms > scale_ms * 1.001);
}

/** What a bar says. */
export function words(bar) {
  const first = bar.ttft_ms === null ? "" : `, first token after ${duration(bar.ttft_ms)}`;
  const what = bar.kind === "attempt" ? `${bar.name}: ${bar.outcome}` : bar.name;
  return `${what}, ${duration(bar.duration_ms)} from ${duration(bar.start_ms)}${first}`;
}

/** One bar a line, each with its words, on the request's own scale. */
export function details(request) {
  const { total_ms, bars } = layout(request);
  const scale_ms = niceMax(total_ms, 1);
  const part = (ms) => `${Math.min(100, (ms / scale_ms) * 100)}%`;
  const lines = bars.map((bar) => {
    const box = el("span", { class: "span-bar", dataset: { bar: bar.tone }, style: { left: part(bar.start_ms), width: part(bar.duration_ms) } });
    const first = bar.ttft_ms !== null && el("span", { class: "span-first", style: { left: part(bar.start_ms + bar.ttft_ms) } });
    return el(
      "li",
      { class: "span-line", dataset: { bar: bar.tone } },
      el("span", { class: "span-name truncate" }, el("b", {}, bar.name), bar.outcome && ` ${bar.outcome}`),
      el("span", { class: "span-time number" }, duration(bar.duration_ms)),
      el("span", { class: "span-track", "aria-hidden": "true" }, box, first),
      el("span", { class: "span-note muted" }, `starts at ${duration(bar.start_ms)}${bar.ttft_ms === null ? "" : `, first token after ${duration(bar.ttft_ms)}`}`),
    );
  });
  const axis = bars.length > 0 && el("li", { class: "span-axis muted", "aria-hidden": "true" }, [0, 0.5, 1].map((at) => el("span", {}, duration(scale_ms * at))));
  return el("ol", { class: "spans", "aria-label": "What was done, in order" }, lines, axis);
}
