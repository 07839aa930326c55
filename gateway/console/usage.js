// What the ledger's rows say, summed up for charts and tables; and what a key's budget has left. Pure.

const SERIES_MAX = 6; // the smallest of more series than that are shown as one, "others"
const DAY_MS = 86_400_000;

const dayOf = (ms) => new Date(ms).toISOString().slice(0, 10);

/** The days, in UTC, from `from` up to and including `to` (texts such as 2026-11-01); at most `most`, the last ones. */
export function daysBetween(from, to, most = 366) {
  const last_ms = Date.parse(`${to}T00:00:00Z`);
  const first_ms = Math.max(Date.parse(`${from}T00:00:00Z`), last_ms - (most - 1) * DAY_MS);
  const days = [];
  for (let ms = first_ms; ms <= last_ms; ms += DAY_MS) days.push(dayOf(ms));
  return days;
}

/** The first and the last of the `count` days up to `now_ms`. */
export function lastDays(count, now_ms) {
  return { from: dayOf(now_ms - (count - 1) * DAY_MS), to: dayOf(now_ms) };
}

/**
 * Rows of `by=<column>,day` as series: `[{name, values, total}]`, the largest first; `values` are of `measure`, one for
 * each day. A row without a name is of "none".
 */
export function seriesOf(rows, column, measure, days) {
  const place = new Map(days.map((day, index) => [day, index]));
  const found = new Map();
  for (const row of rows) {
    const index = place.get(row.day);
    if (index === undefined) continue;
    const name = row[column] ?? "none";
    if (!found.has(name)) found.set(name, { name, values: days.map(() => 0), total: 0 });
    const one = found.get(name);
    const amount = amountOf(row, measure);
    one.values[index] += amount;
    one.total += amount;
  }
  const ordered = [...found.values()].sort((a, b) => b.total - a.total || (a.name < b.name ? -1 : 1));
  if (ordered.length <= SERIES_MAX) return ordered;
  const rest = ordered.slice(SERIES_MAX - 1);
  const others = {
    name: `${rest.length} others`,
    values: days.map((_, index) => rest.reduce((sum, one) => sum + one.values[index], 0)),
    total: rest.reduce((sum, one) => sum + one.total, 0),
  };
  return [...ordered.slice(0, SERIES_MAX - 1), others];
}

/** What a row counts of a measure: requests, tokens, cost_usd or errors. */
export function amountOf(row, measure) {
  return measure === "tokens" ? row.prompt_tokens + row.completion_tokens : row[measure];
}

/** The rows summed up by one column: `[{name, requests, prompt_tokens, completion_tokens, cost_usd, errors}]`. */
export function totalsOf(rows, column) {
  const found = new Map();
  for (const row of rows) {
    const name = row[column] ?? "none";
    const sums = found.get(name) ?? {
      name,
      requests: 0,
      prompt_tokens: 0,
      completion_tokens: 0,
      cost_usd: 0,
      errors: 0,
    };
    for (const measure of Object.keys(sums)) if (measure !== "name") sums[measure] += row[measure];
    found.set(name, sums);
  }
  return [...found.values()].sort((a, b) => b.requests - a.requests);
}

/** When the budget's period that `now_ms` is in has begun, in Unix seconds (UTC): a day, a week from Monday, a month. */
export function periodStart_s(period, now_ms) {
  const now = new Date(now_ms);
  const [year, month, day] = [now.getUTCFullYear(), now.getUTCMonth(), now.getUTCDate()];
  const back = period === "week" ? (now.getUTCDay() + 6) % 7 : 0;
  return Date.UTC(year, month, period === "month" ? 1 : day - back) / 1000;
}

/** A key's form as the body of POST /admin/keys: `{body, faults}`. Empty texts are left out. */
export function keyBody(form) {
  const faults = [];
  const body = {};
  const text = (name) => form[name].trim();
  if (text("name")) body.name = text("name");
  else faults.push({ field: "name", message: "The name is missing" });
  for (const name of ["role", "expires", "priority", "residency"]) if (text(name)) body[name] = text(name);
  const models = form.models.split(/[\s,]+/).filter(Boolean);
  if (models.length) body.models = models;
  for (const [name, label] of [
    ["rpm", "Requests per minute"],
    ["tpm", "Tokens per minute"],
    ["concurrency", "Requests at once"],
    ["budget_usd", "Budget"],
  ]) {
    if (!text(name)) continue;
    const value = Number(text(name));
    if (Number.isFinite(value)) body[name] = value;
    else faults.push({ field: name, message: `${label} must be a number` });
  }
  if (body.budget_usd !== undefined) body.budget_period = form.budget_period;
  return { body, faults };
}
