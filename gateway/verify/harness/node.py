"""The JavaScript side of the judge: what `candidate.py` is for Python, as a program for node.

Loads the program, answers the judge's lines on descriptor 3. undefined and null are None, objects and Maps dicts, sets
of arrays sets of tuples. A call that takes too long is interrupted here if it can be, else ended from outside.
"""

from __future__ import annotations

NODE_PROGRAM = r"""
"use strict";
const fs = require("fs"), vm = require("vm"), path = require("path");
const {parse, stringify} = JSON, isArray = Array.isArray, now = Date.now;
const cpuUsage = process.cpuUsage.bind(process), TURNS_MAX = 3;
const PARTS_MAX = 50000, CHARS_MAX = 1 << 21, LEVELS_MAX = 80, ITEMS_MAX = 1000, PRINTED_CHARS = 10000;
const handles = [], numbers = new Map(), names = new Map();
let held = Buffer.alloc(0), called = null, printed = "";

function receive() {
  const buffer = Buffer.alloc(65536), parts = [held];
  let end = held.indexOf(10);
  while (end < 0) {
    const count = fs.readSync(3, buffer, 0, buffer.length, null);
    if (count === 0) process.reallyExit(0);
    const part = Buffer.from(buffer.subarray(0, count));
    parts.push(part);
    if (part.includes(10)) break;
  }
  held = Buffer.concat(parts);
  end = held.indexOf(10);
  const line = held.subarray(0, end).toString("utf8");
  held = held.subarray(end + 1);
  return parse(line);
}

function send(message) {
  const escaped = c => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0");
  const text = stringify(message).replace(/[\u007f-\uffff]/g, escaped);
  const data = Buffer.from(text + "\n");
  for (let at = 0; at < data.length;) at += fs.writeSync(3, data, at);
}

class OverLarge extends Error {}

function typeName(value) {
  if (typeof value !== "object") return typeof value;
  const made = value.constructor;
  return typeof made === "function" ? String(made.name) : "object";
}

function handle(value) {
  if (!numbers.has(value)) { numbers.set(value, handles.length); handles.push(value); }
  return ["h", numbers.get(value), typeName(value), ""];
}

function pack(value, withHandles) {
  let left = PARTS_MAX, chars = CHARS_MAX;
  const frozen = v => isArray(v) ? ["(", ...v.map(frozen)] : one(v, 1);
  function one(v, level) {
    if (--left < 0 || level > LEVELS_MAX) throw new OverLarge();
    if (v === null || v === undefined) return null;
    if (typeof v === "boolean") return v;
    if (typeof v === "number") return Number.isFinite(v) ? v : ["n", String(v)];
    if (typeof v === "string") { if ((chars -= v.length) < 0) throw new OverLarge(); return v; }
    if (typeof v === "bigint") {
      const digits = (v < 0n ? -v : v).toString(16);
      if ((chars -= digits.length) < 0) throw new OverLarge();
      return ["i", (v < 0n ? "-0x" : "0x") + digits];
    }
    if (typeof v !== "object") return withHandles ? handle(v) : ["o", typeof v];
    if (isArray(v)) return ["[", ...Array.from(v, x => one(x, level + 1))];
    if (v instanceof Set) return ["s", ...[...v].map(frozen)];
    if (v instanceof Map) return ["{", ...[...v].flatMap(([k, x]) => [frozen(k), one(x, level + 1)])];
    if (v instanceof Date) return ["(", "Date", String(Number(v))];
    if (ArrayBuffer.isView(v) && !(v instanceof DataView)) return ["[", ...Array.from(v, x => one(x, level + 1))];
    const base = Object.getPrototypeOf(v);
    if (base === null || base === Object.prototype) return fields(v, level);
    if (withHandles) return handle(v);
    if (typeof v.next === "function") {
      const items = ["["];
      for (let step = v.next(); !step.done && items.length <= ITEMS_MAX; step = v.next()) {
        items.push(one(step.value, level + 1));
      }
      return ["(", "<iterator>", items];
    }
    return v instanceof Error ? ["o", typeName(v)] : fields(v, level);
  }
  function fields(v, level) {
    const out = ["{"];
    for (const key of Object.keys(v)) if (v[key] !== undefined) out.push(key, one(v[key], level + 1));
    return out;
  }
  return one(value, 0);
}

function unpack(packed) {
  if (!isArray(packed)) return packed;
  const [tag, ...rest] = packed;
  if (tag === "[" || tag === "(") return rest.map(unpack);
  if (tag === "s" || tag === "f") return new Set(rest.map(unpack));
  if (tag === "i") return Number(rest[0].startsWith("-") ? -BigInt(rest[0].slice(1)) : BigInt(rest[0]));
  if (tag === "h") return handles[rest[0]];
  if (tag === "call") return (...args) => callBack(rest[0], args);
  if (tag === "{") {
    const flat = rest.map(unpack), plain = flat.every((v, i) => i % 2 || typeof v !== "object");
    const out = plain ? {} : new Map();
    for (let i = 0; i < flat.length; i += 2) if (plain) out[flat[i]] = flat[i + 1]; else out.set(flat[i], flat[i + 1]);
    return out;
  }
  throw new TypeError("a value that JavaScript does not have");
}

function callBack(number, args) {
  send(["call_back", number, ["(", ...args.map(a => pack(a, true))], ["{"]]);
  for (;;) {
    const message = receive();
    if (message[0] === "given") return unpack(message[1]);
    if (message[0] === "failed") throw new Error(message[2]);
    send(["raised", [["builtins", "RuntimeError"]], ["("], "a call within a call", ["{"]]);
  }
}

function keepPrinted() {  // its start: of a call that gives nothing, what it may have been called for
  const stdout = process.stdout, write = stdout.write;
  stdout.write = function (chunk, ...more) {
    const room = PRINTED_CHARS - printed.length;
    if (room > 0) printed += (typeof chunk === "string" ? chunk : Buffer.from(chunk).toString()).slice(0, room);
    return write.call(stdout, chunk, ...more);
  };
}

// By the clock, as vm has no other: what had less than half of that of the processor has waited for its turn, and is
// begun anew, after `again`.
function timed(work, ms, again = () => {}) {
  called = work;
  for (let left = TURNS_MAX; ; left--) {
    const began = cpuUsage();
    try {
      return vm.runInThisContext("__judge_call()", {timeout: Math.max(1, Math.ceil(ms))});
    } catch (error) {
      const {user, system} = cpuUsage(began), usedMs = (user + system) / 1000;
      if (left <= 1 || !isLate(error) || usedMs > ms / 2) throw error;
      again();
    }
  }
}

function isLate(error) {
  return Boolean(error) && error.code === "ERR_SCRIPT_EXECUTION_TIMEOUT";
}

async function settled(value, ms) {
  if (value === null || typeof value !== "object" || typeof value.then !== "function") return value;
  let timer;
  const late = new Promise((_, no) => { timer = setTimeout(() => no({code: "ERR_SCRIPT_EXECUTION_TIMEOUT"}), ms); });
  try { return await Promise.race([value, late]); } finally { clearTimeout(timer); }
}

async function output(call, packedArgs, ms) {
  let args;
  try { args = unpack(packedArgs); } catch (error) { return ["raised", "input"]; }
  if (!isArray(args)) return ["raised", "input"];
  printed = "";
  try {
    const again = () => { args = unpack(packedArgs); printed = ""; };
    const value = await settled(timed(() => call(...args), ms, again), ms);
    if (value === undefined) {
      const after = pack(args, false);
      if (stringify(after) !== stringify(pack(unpack(packedArgs), false))) return ["changed", after];
    }
    if (printed && (value === undefined || value === null)) return ["printed", printed];
    return ["value", timed(() => pack(value, false), ms)];
  } catch (error) {
    if (error instanceof OverLarge) return ["value", ["o", "large value"]];
    if (isLate(error)) return ["late"];
    return ["raised", error instanceof Error ? typeName(error) : "thrown"];
  }
}

function named(value) {
  try { return pack(value, true); } catch (error) { if (!(error instanceof OverLarge)) throw error; }
  return typeof value === "object" ? handle(value) : ["o", "large value"];  // a module that refers to itself
}

async function answer(request) {
  try {
    if (request[0] === "names") return ["names", [...names].map(([name, value]) => [name, named(value)])];
    const args = unpack(request[2]), before = args.map(a => pack(a, true));
    if (request[1] === "call") {
      const value = await settled(args[0](...args.slice(1)), 1e9);
      const changed = args.map((a, i) => [i, pack(a, true)]).filter(([i, p]) => stringify(p) !== stringify(before[i]));
      return ["value", pack(value, true), changed];
    }
    if (request[1] === "__getattr__") {
      const value = args[0][args[1]];
      return ["value", pack(typeof value === "function" ? value.bind(args[0]) : value, true), []];
    }
    if (request[1] === "__str__" || request[1] === "__repr__") return ["value", String(args[0]), []];
    const text = `${request[1]} of an object of JavaScript`;
    return ["raised", [["builtins", "TypeError"]], ["(", text], text, ["{"]];
  } catch (error) {
    const text = described(error);
    return ["raised", [["builtins", "RuntimeError"]], ["(", text], text, ["{"]];
  }
}

function described(error) {
  if (!(error instanceof Error)) return "thrown: " + String(error).slice(0, 300);
  const place = /main\.m?js:(\d+)/.exec(String(error.stack));
  return (typeName(error) + ": " + error.message).slice(0, 500) + (place ? ` (line ${place[1]})` : "");
}

function topLevel(code) {
  const found = new Set();
  const exported = /(?:export\s+(?:default\s+)?)?(?:async\s+)?/.source;
  const named = /(?:function\s*\*?|class|const|let|var)\s+([A-Za-z_$][\w$]*)/.source;
  for (const match of code.matchAll(new RegExp("^" + exported + named, "gm"))) found.add(match[1]);
  return [...found];
}

class Exited extends Error {}

function evaluated(name) { try { return vm.runInThisContext(name); } catch (error) { return undefined; } }

async function load(code, entry) {
  const wanted = topLevel(code), before = entry && evaluated(entry);
  if (code.split(/\r?\n/).some(line => /^(import[ {]|export )/.test(line))) {
    const file = path.resolve("main.mjs");
    fs.writeFileSync(file, code + `\n;export const __judge_names = {${wanted}};\n`);
    const loaded = await import("file://" + file);
    for (const [name, value] of Object.entries(loaded.__judge_names)) names.set(name, value);
    return;
  }
  const own = {exports: {}}, script = new vm.Script(code, {filename: "main.js"});
  Object.assign(globalThis, {require, module: own, exports: own.exports, __filename: "main.js", __dirname: "."});
  const exit = process.exit;
  process.exit = status => { if (status) process.reallyExit(status); throw new Exited(); };
  try { script.runInThisContext(); } catch (error) { if (!(error instanceof Exited)) throw error; }
  process.exit = exit;
  for (const name of wanted) {
    try { names.set(name, vm.runInThisContext(name)); } catch (error) { }
  }
  const given = own.exports;
  if (typeof given === "function" && given.name && !names.has(given.name)) names.set(given.name, given);
  for (const [name, value] of Object.entries(given)) if (!names.has(name)) names.set(name, value);
  if (!entry || names.has(entry)) return;  // else: put in place as the program runs, or exported without a name
  const made = evaluated(entry);
  if (typeof made === "function" && made !== before) names.set(entry, made);
  else if (typeof given === "function" && !given.name) names.set(entry, given);
}

(async () => {
  Object.defineProperty(globalThis, "__judge_call", {value: () => called()});
  process.on("unhandledRejection", () => {});
  keepPrinted();
  try { const [, code, entry] = receive(); await load(code, entry); } catch (error) {
    send(["failed", error instanceof SyntaxError ? "syntax" : "load", described(error)]);
    process.reallyExit(0);
  }
  const callable = [...names].filter(([, value]) => typeof value === "function").map(([name]) => name);
  const isClass = name => /^class\b/.test(Function.prototype.toString.call(names.get(name)));
  send(["loaded", callable.filter(name => !isClass(name)), callable]);
  for (;;) {
    const request = receive();
    if (request[0] !== "outputs") { send(await answer(request)); continue; }
    const [, entry, perCallS, inputs, first] = request;
    for (let i = 0; i < inputs.length; i++) {
      send(["output", first + i, ...await output(names.get(entry), inputs[i], perCallS * 2000)]);
    }
  }
})();
"""
