import assert from "node:assert/strict";
import test from "node:test";

import { areaPath, bridged, bucketed, linePath, niceMax, percentile, recent, spanFor, stepFor, summary, timeMarks } from "../../gateway/console/series.js";

test("a chart has no more buckets than its width has room for", () => {
  for (const most of [15, 40, 90, 150, 300, 900]) assert.ok(900 / stepFor(900, most) <= most || stepFor(900, most) === 60);
  assert.equal(stepFor(900, 900), 1);
  assert.equal(stepFor(900, 150), 10);
});

test("a chart shows all there is, up to 15 minutes", () => {
  assert.deepEqual([0, 119, 121, 300, 450, 899, 5000].map(spanFor), [120, 120, 300, 300, 600, 900, 900]);
});

test("short gaps are bridged, long ones and the ends are not", () => {
  assert.deepEqual(bridged([null, 2, null, null, 8, null], 2), [null, 2, 4, 6, 8, null]);
  assert.deepEqual(bridged([2, null, null, null, 8], 2), [2, null, null, null, 8]);
  assert.deepEqual(bridged([null, null], 2), [null, null]);
});

test("buckets keep gaps, and tails are not averaged away", () => {
  const rows = [[100, 2], [101, 4], [102, null], [105, 9], [106, 1], [130, 5]];
  const of = (reduce) => bucketed(rows, 0, 1, { from_s: 100, step_s: 5, count: 4, reduce });
  assert.deepEqual(of("mean"), [3, 5, null, null]);
  assert.deepEqual(of("max"), [4, 9, null, null]);
  assert.deepEqual(of("sum"), [6, 10, null, null]);
  assert.deepEqual(of("last"), [4, 1, null, null]);
});

test("a point stays in its bucket while time goes on", () => {
  const rows = Array.from({ length: 60 }, (_, at) => [1000 + at, at % 7]);
  const early = bucketed(rows, 0, 1, { from_s: 1000, step_s: 5, count: 12, reduce: "mean" });
  const late = bucketed(rows, 0, 1, { from_s: 1005, step_s: 5, count: 12, reduce: "mean" });
  assert.deepEqual(early.slice(1), late.slice(0, 11));
});

test("an axis ends at a round number that holds the largest value", () => {
  for (const [value, wanted] of [[0, 1], [0.3, 0.4], [1, 1], [1.1, 2], [3.9, 4], [7, 8], [9.5, 10], [123, 200], [999, 1000]]) {
    assert.equal(niceMax(value), wanted);
  }
  assert.equal(niceMax(1, 10), 10);
  for (let value = 0.001; value < 1e6; value *= 1.37) assert.ok(niceMax(value) >= value && niceMax(value) <= 2 * value + 1e-9);
});

test("lines break at gaps, and a lone value is a circle", () => {
  const x = (at) => at * 10;
  const y = (value) => 100 - value;
  assert.equal(linePath([1, 2, null, 3, null], x, y), "M0,99L10,98M28.5,97a1.5,1.5 0 1,0 3,0a1.5,1.5 0 1,0 -3,0");
  assert.equal(areaPath([1, 2, null, 3], x, y, 100), "M0,100L0,99L10,98L10,100Z");
  assert.equal(linePath([null], x, y), "");
});

test("summaries, percentiles and recent figures of nothing are null, not 0", () => {
  assert.deepEqual(summary([null, null]), { last: null, least: null, most: null, mean: null });
  assert.deepEqual(summary([1, null, 3]), { last: 3, least: 1, most: 3, mean: 2 });
  assert.equal(percentile([], 0.95), null);
  assert.equal(percentile([5, 1, 4, 2, 3], 0.5), 3);
  assert.equal(percentile([1, 2, 3, 4], 0.95), 4);
  assert.equal(percentile([7], 0), 7);
  const rows = [[98, 100], [99, null], [100, 4], [101, 6]];
  assert.equal(recent(rows, 0, 1, 101, 3), 10);
  assert.equal(recent(rows, 0, 1, 101, 3, "mean"), 5);
  assert.equal(recent([[1, null]], 0, 1, 1, 3), null);
});

test("the marks of the time axis are at round times", () => {
  assert.deepEqual(timeMarks(1000, 1900, 300), [1200, 1500, 1800]);
});
