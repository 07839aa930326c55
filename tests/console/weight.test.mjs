import assert from "node:assert/strict";
import { test } from "node:test";

import { WEIGHT_MAX, weightOf } from "../../gateway/console/weight.js";

test("what the engines file may have is a weight", () => {
  for (const [text, weight] of [
    ["1", 1],
    [" 2 ", 2],
    ["0010", 10],
    ["1000000", WEIGHT_MAX],
  ])
    assert.deepEqual(weightOf(text), { weight });
});

test("anything else is told what it must be, and is not sent", () => {
  for (const text of ["", " ", "0", "-1", "1.5", "1e3", "1000001", "99999999", "two", "0x10", "1 2", "١"])
    assert.deepEqual(weightOf(text), { fault: "This must be a whole number from 1 to 1000000." }, text);
});
