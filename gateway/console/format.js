// How figures, durations and times are written. Pure: no DOM, no clock of its own.
//
//   number(n, digits)   "1,234.5"      at most `digits` decimals (default 1); "–" for null and what is no number
//   compact(n)          "1.2k"         three significant digits
//   duration(ms)        "340 ms", "1.24 s", "2 min 03 s", "3 h 20 min", "4 d 2 h"
//   durationMark(ms)    "1.5 s"        without the zeros that only a changing figure needs; usdMark the same
//   ago(seconds)        "now", "12 s ago", "5 min ago"
//   clock(unix_s)       "14:03:07"     the reader's own time zone; clockMinute: "14:03"
//   dateTime(unix_s)    "2026-11-21 14:03:07"
//   percent(ratio)      "12.5 %"
//   usd(amount)         "$0.0042"

export const NONE = "–";

function known(value) {
  return typeof value === "number" && Number.isFinite(value);
}

const formats = new Map();

/** A number with grouped thousands and at most `digits` decimals. */
export function number(value, digits = 1) {
  if (!known(value)) return NONE;
  if (!formats.has(digits)) {
    formats.set(digits, new Intl.NumberFormat("en", { maximumFractionDigits: digits }));
  }
  const text = formats.get(digits).format(value);
  return text === "-0" ? "0" : text;
}

const STEPS = [
  [1e12, "T"],
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
];

/** A number in three significant digits: 0.012, 3.4, 120, 1.2k, 3.45M. */
export function compact(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 0.001) return value.toExponential(0);
  // 999.6 would round to 1000: it is 1k.
  for (const [step, unit] of STEPS) if (size >= step * 0.9995) return `${significant(value / step)}${unit}`;
  return significant(value);
}

function significant(value) {
  const size = Math.abs(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return String(Number(value.toFixed(digits)));
}

/** A duration given in milliseconds. */
export function duration(ms) {
  if (!known(ms)) return NONE;
  if (ms < 0) return `-${duration(-ms)}`;
  if (ms === 0) return "0 ms";
  if (ms < 1) return `${Number(ms.toFixed(2))} ms`;
  if (ms < 9.95) return `${Number(ms.toFixed(1))} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 9995) return `${(ms / 1000).toFixed(2)} s`;
  if (ms < 59950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${two(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${two(Math.floor((seconds % 3600) / 60))} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

/** A duration at an axis. */
export function durationMark(ms) {
  if (ms === 0) return "0";
  return duration(ms).replace(/\.0+ s$/, " s").replace(/(\.[0-9])0 s$/, "$1 s");
}

/** US dollars at an axis. */
export function usdMark(amount) {
  return usd(amount).replace(/(\.[0-9]*?)0+$/, "$1").replace(/\.$/, "");
}

/** How long ago something was, in its largest unit. */
export function ago(seconds) {
  if (!known(seconds)) return NONE;
  if (seconds < 1.5) return "now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

function two(value) {
  return String(value).padStart(2, "0");
}

/** The time of day. */
export function clock(unix_s) {
  if (!known(unix_s)) return NONE;
  const date = new Date(unix_s * 1000);
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

/** The time of day without its seconds. */
export function clockMinute(unix_s) {
  return known(unix_s) ? clock(unix_s).slice(0, 5) : NONE;
}

/** Date and time of day. */
export function dateTime(unix_s) {
  if (!known(unix_s)) return NONE;
  const date = new Date(unix_s * 1000);
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(unix_s)}`;
}

/** A ratio as a percentage: 0.125 is 12.5 %. What is not all is never written as 100 %, nor what is not nothing as 0. */
export function percent(ratio) {
  if (!known(ratio)) return NONE;
  const value = ratio * 100;
  if (value > 99.9 && value < 100) return `${Math.floor(value * 100) / 100} %`;
  if (value > 0 && value < 0.01) return "< 0.01 %";
  return `${number(value, Math.abs(value) < 1 ? 2 : 1)} %`;
}

/** US dollars; small amounts keep two significant digits. */
export function usd(amount) {
  if (!known(amount)) return NONE;
  const size = Math.abs(amount);
  if (size === 0) return "$0";
  if (size >= 1000) return `${amount < 0 ? "-" : ""}$${compact(size)}`;
  const digits = size >= 1 ? 2 : Math.min(8, 1 - Math.floor(Math.log10(size)));
  return `${amount < 0 ? "-" : ""}$${size.toFixed(digits)}`;
}
