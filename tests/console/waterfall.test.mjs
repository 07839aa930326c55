import assert from "node:assert/strict";
import test from "node:test";

import { requestTone, searchable } from "../../gateway/console/requests.js";
import { layout, outcomeTone, scaleFor, words } from "../../gateway/console/waterfall.js";

const attempt = (engine, outcome, start_ms, duration_ms, ttft_ms = null) => ({ model: "m", engine, outcome, start_ms, duration_ms, ttft_ms });

test("attempts one after another share a lane, hedged ones do not", () => {
  const tried = layout({ latency_ms: 100, attempts: [attempt("b", "ok", 40.01, 55), attempt("a", "refused", 10, 30.02)], marks: [{ name: "queue", start_ms: 0, duration_ms: 10 }] });
  assert.deepEqual(tried.bars.map(({ name, lane, tone }) => [name, lane, tone]), [["queue", 0, "queue"], ["a", 0, "lost"], ["b", 0, "ok"]]);
  assert.equal(tried.lanes, 1);
  const hedged = layout({ latency_ms: 80, attempts: [attempt("a", "cancelled", 0, 80), attempt("b", "ok", 30, 50, 12)] });
  assert.deepEqual(hedged.bars.map(({ lane, tone }) => [lane, tone]), [[0, "left"], [1, "ok"]]);
  assert.equal(hedged.lanes, 2);
});

test("a wait in the queue is shown also where no mark tells of it, and only once", () => {
  assert.deepEqual(layout({ latency_ms: 9, queue_ms: 0.01, attempts: [] }).bars, []);
  assert.deepEqual(layout({ latency_ms: 9, queue_ms: 4, attempts: [] }).bars.map(({ name }) => name), ["queue"]);
  assert.equal(layout({ latency_ms: 9, queue_ms: 4, marks: [{ name: "queue", start_ms: 1, duration_ms: 4 }] }).bars.length, 1);
});

test("what a request lacks, or says wrongly, breaks no layout", () => {
  assert.deepEqual(layout({}), { total_ms: 0, lanes: 1, bars: [] });
  const odd = layout({ latency_ms: null, attempts: [attempt("a", "error", null, -5)], marks: [{ name: "new thing", start_ms: 3, duration_ms: 2 }] });
  assert.equal(odd.total_ms, 5);
  assert.deepEqual(odd.bars.map(({ tone }) => tone), ["lost", "other"]);
});

test("an attempt that outlives its request is not cut off", () => {
  assert.equal(layout({ latency_ms: 50, attempts: [attempt("a", "cancelled", 0, 90)] }).total_ms, 90);
});

test("one slow request among twenty does not flatten the others", () => {
  const fast = Array.from({ length: 19 }, () => ({ latency_ms: 90 }));
  assert.equal(scaleFor([...fast, { latency_ms: 60000 }]), 100);
  assert.equal(scaleFor([]), 1);
});

test("outcomes and bars have words", () => {
  assert.deepEqual(["ok", "cancelled", "timeout", "anything"].map(outcomeTone), ["ok", "left", "lost", "lost"]);
  const [bar] = layout({ latency_ms: 50, attempts: [attempt("a", "ok", 2, 48, 12)] }).bars;
  assert.equal(words(bar), "a: ok, 48 ms from 2 ms, first token after 12 ms");
});

test("a stream that broke after its 200 is an error, and the filter finds a request by all that it shows", () => {
  assert.deepEqual([{ status: 200 }, { status: 200, error: "backend_error" }, { status: 429 }, { status: 503 }].map(requestTone), ["good", "bad", "warn", "bad"]);
  const text = searchable({ id: "ID-1", path: "/v1/chat", status: 503, error: "backend_error", cache: "hit", attempts: [attempt("E7", "timeout", 0, 1)] });
  for (const word of ["id-1", "/v1/chat", "503", "backend_error", "cache", "e7", "timeout"]) assert.ok(text.includes(word), word);
});
