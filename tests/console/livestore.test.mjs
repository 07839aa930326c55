import assert from "node:assert/strict";
import test from "node:test";

import { merged } from "../../gateway/console/live.js";
import { keyOf, KEPT_REQUESTS, LiveStore, ranked, SPARK_VALUES, stateOf } from "../../gateway/console/livestore.js";

const engine = (model, name, more = {}) => ({ model, engine: name, state: "up", available: true, breaker: "closed", in_flight: 0, ...more });
const history = (more = {}) => ({
  version: "1.0", now: 1000, started: 1, interval_s: 1, kept_s: 5, columns: ["time", "requests"], points: [[998, 1], [999, 2]],
  engines: [engine("m", "a-10"), engine("m", "a-2"), engine("l", "b")], sparks: { "m a-2": [1, null, 3] }, alerts: [], slos: [], requests: [{ id: "1" }], ...more,
});

test("a history and its ticks make the state, and say what has changed", () => {
  const store = new LiveStore();
  assert.equal(store.take("history", history()).all, true);
  assert.deepEqual([...store.groups()], [["l", ["l b"]], ["m", ["m a-2", "m a-10"]]]);
  assert.equal(store.sparks.get("m a-2").length, SPARK_VALUES);
  assert.deepEqual(store.sparks.get("m a-2").slice(-3), [1, null, 3]);

  const changes = store.take("tick", { now: 1001, point: [1000, 3], engines: [engine("m", "a-2", { state: "down", available: false }), engine("n", "c")], gone: ["l b"], sparks: { "m a-2": 9 }, requests: [{ id: "2" }], skipped: 4 });
  assert.deepEqual([...changes.engines], ["m a-2", "n c"]);
  assert.deepEqual([...changes.gone], ["l b"]);
  assert.deepEqual([changes.alerts, changes.slos, changes.skipped], [false, false, 4]);
  assert.equal(store.engines.get("m a-2").state, "down");
  assert.equal(store.engines.has("l b"), false);
  assert.deepEqual(store.sparks.get("m a-2").slice(-3), [null, 3, 9]);
  assert.equal(store.sparks.get("m a-10").at(-1), null);
  assert.deepEqual(store.requests.map(({ id }) => id), ["1", "2"]);
});

test("memory is bounded however long it runs", () => {
  const store = new LiveStore();
  store.take("history", history());
  for (let at = 0; at < 1000; at += 1) store.take("tick", { now: 1001 + at, point: [1000 + at, 1], engines: [], gone: [], sparks: {}, requests: [{ id: `r${at}` }], skipped: 0 });
  assert.equal(store.points.length, 5);
  assert.equal(store.requests.length, KEPT_REQUESTS);
  for (const values of store.sparks.values()) assert.equal(values.length, SPARK_VALUES);
});

test("after a reconnection only requests that were not known are new, and engines that left meanwhile are gone", () => {
  const store = new LiveStore();
  store.take("history", history());
  const changes = store.take("history", history({ engines: [engine("m", "a-2")], requests: [{ id: "1" }, { id: "5" }] }));
  assert.deepEqual(changes.requests.map(({ id }) => id), ["5"]);
  assert.deepEqual([...changes.gone].sort(), ["l b", "m a-10"]);
});

test("an event that this console does not know changes nothing", () => {
  assert.equal(new LiveStore().take("later", {}), null);
});

test("changes of several ticks are drawn at once: what came and went is gone, what went and came is there", () => {
  const of = (engines, gone) => ({ all: false, engines: new Set(engines), gone: new Set(gone), alerts: false, slos: false, requests: [], skipped: 0 });
  const left = merged(of(["a", "b"], []), of([], ["a"]));
  assert.deepEqual([[...left.engines], [...left.gone]], [["b"], ["a"]]);
  const back = merged(of([], ["a"]), of(["a"], []));
  assert.deepEqual([[...back.engines], [...back.gone]], [["a"], []]);
});

test("every state has a word, also one of a later gateway", () => {
  for (const state of ["up", "down", "open", "half_open", "resting", "misconfigured", "draining", "removed"]) assert.notEqual(stateOf({ state }).label, state);
  assert.deepEqual(stateOf({ state: "asleep", available: false }), { tone: "bad", icon: "out", label: "asleep" });
  assert.equal(stateOf({ state: "constructor", available: true }).label, "constructor");
  assert.equal(keyOf({ model: "m", engine: "e" }), "m e");
});

test("alerts that fire come first, the newest of them before others", () => {
  const order = ranked([{ state: "resolved", since: 9 }, { state: "pending", since: 1 }, { state: "firing", since: 2 }, { state: "firing", since: 3 }, { state: "odd", since: 1 }]);
  assert.deepEqual(order.map(({ state, since }) => `${state}${since}`), ["firing3", "firing2", "pending1", "odd1", "resolved9"]);
});
