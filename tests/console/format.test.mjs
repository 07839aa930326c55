import assert from "node:assert/strict";
import test from "node:test";

import { ago, compact, duration, number, percent, usd } from "../../gateway/console/format.js";

const cases = (f, rows) => rows.forEach(([given, wanted]) => assert.equal(f(given), wanted, `${f.name}(${given})`));

test("durations take the unit that a reader would", () => {
  cases(duration, [
    [0, "0 ms"], [0.456, "0.46 ms"], [3.14, "3.1 ms"], [9.94, "9.9 ms"], [9.99, "10 ms"], [340.4, "340 ms"], [999.4, "999 ms"],
    [999.6, "1.00 s"], [1240, "1.24 s"], [9994, "9.99 s"], [9996, "10.0 s"], [59900, "59.9 s"], [59990, "1 min 00 s"], [123000, "2 min 03 s"],
    [3599600, "1 h 00 min"], [12000000, "3 h 20 min"], [93600000 * 2, "2 d 4 h"], [-5, "-5 ms"], [null, "–"], [NaN, "–"], [undefined, "–"],
  ]);
});

test("compact numbers keep three digits and never say 1000k", () => {
  cases(compact, [
    [0, "0"], [0.0123, "0.012"], [0.0001, "1e-4"], [3.456, "3.46"], [12.34, "12.3"], [123.4, "123"], [999.4, "999"], [999.6, "1k"], [1234, "1.23k"],
    [999600, "1M"], [4.5e9, "4.5G"], [-1500, "-1.5k"], [null, "–"], [Infinity, "–"],
  ]);
});

test("numbers are grouped, and zero has no sign", () => {
  cases(number, [[1234.56, "1,234.6"], [-0.01, "0"], [null, "–"], ["7", "–"]]);
  assert.equal(number(1.23456, 3), "1.235");
});

test("a percentage is not rounded to all or to nothing", () => {
  cases(percent, [[0, "0 %"], [1, "100 %"], [0.99996, "99.99 %"], [0.00001, "< 0.01 %"], [0.0042, "0.42 %"], [0.125, "12.5 %"], [-0.12, "-12 %"], [null, "–"]]);
});

test("small amounts of money keep two digits that say something", () => {
  cases(usd, [[0, "$0"], [0.00421, "$0.0042"], [0.5, "$0.50"], [12.345, "$12.35"], [1234, "$1.23k"], [-2, "-$2.00"], [null, "–"]]);
});

test("ages and ids", () => {
  cases(ago, [[-3, "now"], [0.4, "now"], [12.9, "12 s ago"], [61, "1 min ago"], [7300, "2 h ago"], [90000, "1 d ago"], [null, "–"]]);
});
