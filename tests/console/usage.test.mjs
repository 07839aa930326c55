import assert from "node:assert/strict";
import { test } from "node:test";

import {
  amountOf,
  daysBetween,
  keyBody,
  lastDays,
  periodStart_s,
  seriesOf,
  totalsOf,
} from "../../gateway/console/usage.js";

const row = (key, day, requests, rest = {}) => ({
  key,
  day,
  requests,
  prompt_tokens: 10,
  completion_tokens: 5,
  cost_usd: 0.5,
  errors: 1,
  ...rest,
});
const NOW_MS = Date.parse("2026-03-01T23:30:00Z"); // a Sunday

test("days are UTC's, over a month's end, and bounded", () => {
  assert.deepEqual(daysBetween("2026-02-27", "2026-03-01"), ["2026-02-27", "2026-02-28", "2026-03-01"]);
  assert.deepEqual(lastDays(7, NOW_MS), { from: "2026-02-23", to: "2026-03-01" });
  assert.equal(daysBetween("2000-01-01", "2026-03-01").length, 366);
});

test("rows become series, the largest first, and a row without a name is told", () => {
  const days = ["2026-03-01", "2026-03-02"];
  const rows = [
    row("a", "2026-03-01", 1),
    row("b", "2026-03-02", 5),
    row(null, "2026-03-01", 2),
    row("a", "2026-03-02", 1),
    row("a", "2020-01-01", 99),
  ];
  assert.deepEqual(seriesOf(rows, "key", "requests", days), [
    { name: "b", values: [0, 5], total: 5 },
    { name: "a", values: [1, 1], total: 2 },
    { name: "none", values: [2, 0], total: 2 },
  ]);
  assert.equal(amountOf(row("a", "", 1), "tokens"), 15);
});

test("of many series the smallest are one", () => {
  const rows = Array.from({ length: 9 }, (_, index) => row(`k${index}`, "d", 10 - index));
  const series = seriesOf(rows, "key", "requests", ["d"]);
  assert.deepEqual(
    series.map((one) => one.name),
    ["k0", "k1", "k2", "k3", "k4", "4 others"],
  );
  assert.equal(series.at(-1).total, 5 + 4 + 3 + 2);
  assert.equal(
    series.reduce((sum, one) => sum + one.total, 0),
    rows.reduce((sum, one) => sum + one.requests, 0),
  );
});

test("totals are sums by name", () => {
  const [first] = totalsOf([row("a", "1", 1), row("a", "2", 2), row("b", "1", 1)], "key");
  assert.deepEqual(first, { name: "a", requests: 3, prompt_tokens: 20, completion_tokens: 10, cost_usd: 1, errors: 2 });
});

test("a budget's period begins as the gateway's does", () => {
  const day = (period) => new Date(periodStart_s(period, NOW_MS) * 1000).toISOString().slice(0, 10);
  assert.deepEqual([day("day"), day("week"), day("month")], ["2026-03-01", "2026-02-23", "2026-03-01"]);
  assert.equal(
    new Date(periodStart_s("week", Date.parse("2026-03-02T00:00:00Z")) * 1000).toISOString().slice(0, 10),
    "2026-03-02",
  );
});

test("a new key's form becomes a body without what is empty", () => {
  const form = {
    name: " alice ",
    role: "",
    models: "13b*, 7b\nx",
    rpm: "60",
    tpm: "",
    concurrency: "",
    budget_usd: "5",
    budget_period: "week",
    expires: "90d",
    priority: "",
    residency: "",
  };
  assert.deepEqual(keyBody(form), {
    faults: [],
    body: { name: "alice", models: ["13b*", "7b", "x"], rpm: 60, budget_usd: 5, budget_period: "week", expires: "90d" },
  });
  assert.equal(keyBody({ ...form, budget_usd: "" }).body.budget_period, undefined);
  assert.equal(keyBody({ ...form, residency: " eu " }).body.residency, "eu");
  assert.deepEqual(
    keyBody({ ...form, name: "", rpm: "many" }).faults.map((fault) => fault.field),
    ["name", "rpm"],
  );
});
