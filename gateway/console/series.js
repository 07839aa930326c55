// The arithmetic of charts: buckets, scales, paths, summaries. Pure: numbers in, numbers and path texts out.
//
// A series is an array with one value for each bucket of time, null where nothing was measured: never 0 for that, since
// "no request" and "answered at once" are not the same.

/** Seconds that a bucket may have; each divides a minute, so that buckets fall on the minutes of the axis. */
const STEPS_S = [1, 2, 3, 5, 10, 15, 30, 60];

const SPANS_S = [120, 300, 600, 900];

/** The smallest bucket for which `span_s` has at most `most` of them. */
export function stepFor(span_s, most) {
  return STEPS_S.find((step_s) => span_s / step_s <= most) || STEPS_S[STEPS_S.length - 1];
}

/** Seconds that a chart shows of figures that go back `age_s`: a gateway that has just started would fill a corner of 15 minutes. */
export function spanFor(age_s) {
  return SPANS_S.find((span_s) => age_s <= span_s) || SPANS_S[SPANS_S.length - 1];
}

/** `values` with gaps of at most `most` between two of them bridged by a straight line: for lines that show a shape only. */
export function bridged(values, most) {
  const whole = [...values];
  let last = -1;
  for (const [at, value] of values.entries()) {
    if (value === null) continue;
    const gap = at - last - 1;
    if (last >= 0 && gap > 0 && gap <= most) {
      for (let step = 1; step <= gap; step += 1) whole[last + step] = values[last] + ((value - values[last]) * step) / (gap + 1);
    }
    last = at;
  }
  return whole;
}

/**
 * Puts `rows` (sorted by `row[timeAt]`, in seconds) into buckets of `step_s` from `from_s` on, `count` of them.
 * Buckets begin at multiples of `step_s`, so a point stays in its bucket while the chart moves: the shape does not
 * flicker. `reduce`: "mean", "max", "sum" or "last" of what is not null.
 */
export function bucketed(rows, timeAt, valueAt, { from_s, step_s, count, reduce }) {
  const first = Math.floor(from_s / step_s);
  const values = new Array(count).fill(null);
  const counts = reduce === "mean" ? new Array(count).fill(0) : null;
  for (const row of rows) {
    const at = Math.floor(row[timeAt] / step_s) - first;
    const value = row[valueAt];
    if (at < 0 || at >= count || typeof value !== "number") continue;
    const before = values[at];
    if (before === null || reduce === "last") values[at] = value;
    else values[at] = reduce === "max" ? Math.max(before, value) : before + value;
    if (counts) counts[at] += 1;
  }
  if (counts) counts.forEach((n, at) => n > 1 && (values[at] /= n));
  return values;
}

/** The largest value of several series; 0 where there is none. */
export function largest(lists) {
  let most = 0;
  for (const list of lists) for (const value of list) if (value !== null && value > most) most = value;
  return most;
}

/** The end of an axis from 0 that holds `value`, and the middle mark is as round: 1, 2, 4, 5 or 8 times a power of ten. */
export function niceMax(value, least = 0) {
  const wanted = Math.max(value, least);
  if (!(wanted > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(wanted));
  for (const times of [1, 2, 4, 5, 8, 10]) if (wanted <= times * power * (1 + 1e-9)) return times * power;
  return 10 * power;
}

/** Round times of day for an axis: every `every_s` between the two. */
export function timeMarks(from_s, to_s, every_s) {
  const marks = [];
  for (let at = Math.ceil(from_s / every_s) * every_s; at <= to_s; at += every_s) marks.push(at);
  return marks;
}

const round = (value) => Math.round(value * 10) / 10;

/** The runs of a series between its gaps, as arrays of [x, y]. */
function runs(values, x, y) {
  const found = [];
  let run = null;
  values.forEach((value, at) => {
    if (value === null) {
      run = null;
      return;
    }
    if (!run) found.push((run = []));
    run.push([round(x(at)), round(y(value))]);
  });
  return found;
}

const LONE = 1.5; // the radius of the circle around a value that has no neighbour

function circle([x, y]) {
  const arc = `a${LONE},${LONE} 0 1,0`;
  return `M${round(x - LONE)},${y}${arc} ${2 * LONE},0${arc} ${-2 * LONE},0`;
}

/** An SVG path through a series, broken where nothing was measured; a lone value is a small circle. */
export function linePath(values, x, y) {
  return runs(values, x, y)
    .map((run) => (run.length === 1 ? circle(run[0]) : `M${run.join("L")}`))
    .join("");
}

/** The same down to `base`, closed. */
export function areaPath(values, x, y, base) {
  return runs(values, x, y)
    .filter((run) => run.length > 1)
    .map((run) => `M${run[0][0]},${base}L${run.join("L")}L${run[run.length - 1][0]},${base}Z`)
    .join("");
}

/** What a series was: {last, least, most, mean}, each null where nothing was measured. */
export function summary(values) {
  const known = values.filter((value) => value !== null);
  if (known.length === 0) return { last: null, least: null, most: null, mean: null };
  return {
    last: known[known.length - 1],
    least: Math.min(...known),
    most: Math.max(...known),
    mean: known.reduce((sum, value) => sum + value, 0) / known.length,
  };
}

/** The `q`-quantile by the nearest rank; null of nothing. */
export function percentile(values, q) {
  if (values.length === 0) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(q * sorted.length) - 1))];
}

/** Sum or mean of a column over the newest `seconds` of rows; null where nothing was measured then. */
export function recent(rows, timeAt, valueAt, now_s, seconds, reduce = "sum") {
  let sum = 0;
  let count = 0;
  for (let at = rows.length - 1; at >= 0 && rows[at][timeAt] > now_s - seconds; at -= 1) {
    const value = rows[at][valueAt];
    if (typeof value !== "number") continue;
    sum += value;
    count += 1;
  }
  if (count === 0) return null;
  return reduce === "mean" ? sum / count : sum;
}
