// The cards of what was used: charts by day out of the ledger, and what the limits have left.

import { card, cell, table } from "./admincards.js";
import { lastLimits } from "./ask.js";
import { ago, clock, compact, number, percent, usd } from "./format.js";
import { niceMax } from "./series.js";
import { badge, button, el, empty, replace, svg } from "./ui.js";
import { amountOf, daysBetween, lastDays, periodStart_s, seriesOf, totalsOf } from "./usage.js";

const [HEIGHT, LEFT, BOTTOM, TOP] = [208, 52, 22, 8];
const MEASURES = { requests: "Requests", tokens: "Tokens", cost_usd: "Cost", errors: "Errors" };
const COLUMNS = { key: "Key", model: "Model", engine: "Engine" };
const RANGES = [
  ["7", "7 days"],
  ["14", "14 days"],
  ["30", "30 days"],
  ["90", "90 days"],
];
const WARN_AT = 0.8;

const said = (measure, value) => (measure === "cost_usd" ? usd(value) : compact(value));

/** Stacked bars, one for each day. The table below it says the same. */
function bars(series, days, measure, width) {
  const sums = days.map((_, index) => series.reduce((sum, one) => sum + one.values[index], 0));
  const top = niceMax(Math.max(0, ...sums));
  const step = (width - LEFT) / days.length;
  const height = HEIGHT - BOTTOM - TOP;
  const y = (value) => TOP + height * (1 - value / top);
  const lines = [0, 0.5, 1].map((share) => [
    svg("line", { class: share ? "gridline" : "axis", x1: LEFT, x2: width, y1: y(top * share), y2: y(top * share) }),
    svg("text", { x: LEFT - 6, y: y(top * share) + 4, "text-anchor": "end" }, said(measure, top * share)),
  ]);
  const every = Math.ceil((days.length * 48) / (width - LEFT)); // a date takes 48 pixels
  const columns = days.map((day, index) => {
    const x = LEFT + step * index;
    const parts = [];
    let below = 0;
    for (const [place, one] of series.entries()) {
      const value = one.values[index];
      if (value <= 0) continue;
      parts.push(
        svg("rect", {
          "data-group": place,
          x: x + step * 0.15,
          width: step * 0.7,
          y: y(below + value),
          height: Math.max(0.5, (height * value) / top),
        }),
      );
      below += value;
    }
    const tip = [
      day,
      ...series.filter((one) => one.values[index] > 0).map((one) => `${one.name}: ${said(measure, one.values[index])}`),
    ];
    const label = (days.length - 1 - index) % every === 0;
    return svg(
      "g",
      { class: "day" },
      svg("title", {}, tip.join("\n")),
      svg("rect", { class: "hit", x, width: step, y: TOP, height }),
      parts,
      label && svg("text", { x: x + step / 2, y: HEIGHT - 6, "text-anchor": "middle" }, day.slice(5)),
    );
  });
  return svg(
    "svg",
    {
      class: "bars",
      viewBox: `0 0 ${width} ${HEIGHT}`,
      role: "img",
      "aria-label": `${MEASURES[measure]} by day; the table below has the sums`,
    },
    lines,
    columns,
  );
}

function segments(label, options, chosen, onChoose) {
  const nodes = Object.entries(options).map(([value, text]) => {
    const node = el(
      "button",
      {
        type: "button",
        "aria-pressed": String(value === chosen),
        dataset: { value },
        on: {
          click: () => {
            for (const other of nodes) other.setAttribute("aria-pressed", String(other === node));
            onChoose(value);
          },
        },
      },
      text,
    );
    return node;
  });
  return el("div", { class: "segments", role: "group", "aria-label": label }, nodes);
}

export class UsageCard {
  constructor({ api, signal }) {
    this._api = api;
    this._signal = signal;
    this._column = "key";
    this._measure = "requests";
    this._range = el(
      "select",
      { class: "select", id: "usage-range", "aria-label": "Time", on: { change: () => this.refresh() } },
      RANGES.map(([value, label]) => el("option", { value, selected: value === "14" }, label)),
    );
    this._rows = null;
    this._chart = el("div", { class: "chart-place" });
    this._sizes = new ResizeObserver(() => this._draw?.());
    this._sizes.observe(this._chart);
    signal.addEventListener("abort", () => this._sizes.disconnect());
    this._body = el("div", { class: "card-body admin-usage", id: "usage-body" });
    const by = segments("By", COLUMNS, this._column, (value) => {
      this._column = value;
      this.refresh();
    });
    const of = segments("Measure", MEASURES, this._measure, (value) => {
      this._measure = value;
      this._show();
    });
    by.id = "usage-by";
    of.id = "usage-measure";
    const csv = button("CSV", {
      small: true,
      id: "usage-csv",
      "aria-label": "Download as CSV",
      onClick: () => this._download(),
    });
    this._card = card("admin-usage", "Usage", el("div", { class: "toolbar" }, by, of, this._range, csv), this._body);
    this.node = this._card.node;
  }

  _query() {
    return { by: `${this._column},day`, ...lastDays(Number(this._range.value), Date.now()) };
  }

  async refresh() {
    const query = this._query();
    try {
      const { rows } = await this._api.get("admin/usage", { query, signal: this._signal });
      if (query.by !== this._query().by || query.from !== this._query().from) return; // asked anew meanwhile
      Object.assign(this, { _rows: rows, _asked: query });
      this._card.fail(null);
      this._show();
    } catch (error) {
      if (!error.aborted) this._card.fail(error);
    }
  }

  _show() {
    if (!this._rows) return;
    if (!this._rows.length) {
      replace(
        this._body,
        empty(
          "Nothing was used in this time",
          el("p", {}, "The ledger is kept while keys live in STATE_DB, or with LEDGER=on."),
        ),
      );
      return;
    }
    const column = this._asked.by.split(",")[0];
    const days = daysBetween(this._asked.from, this._asked.to);
    const series = seriesOf(this._rows, column, this._measure, days);
    const legend = series.map((one, index) =>
      el(
        "li",
        {},
        el("span", { class: "swatch", "aria-hidden": "true", dataset: { group: String(index) } }),
        one.name,
        el("span", { class: "muted" }, said(this._measure, one.total)),
      ),
    );
    const sums = totalsOf(this._rows, column);
    const total = (measure) => this._rows.reduce((sum, row) => sum + amountOf(row, measure), 0);
    const kinds = [
      ["requests", "Requests"],
      ["prompt_tokens", "Tokens in"],
      ["completion_tokens", "Tokens out"],
      ["cost_usd", "Cost"],
      ["errors", "Errors"],
    ];
    const show = (kind, value) => (kind === "cost_usd" ? usd(value) : number(value, 0));
    const row = (name, values, kindOf) =>
      el(
        "tr",
        { dataset: { name } },
        cell(COLUMNS[column], "", kindOf(name)),
        kinds.map(([kind, label]) => cell(label, "number", show(kind, values[kind]))),
        cell("Error ratio", "number", values.requests ? percent(values.errors / values.requests) : "–"),
      );
    const all = Object.fromEntries(kinds.map(([kind]) => [kind, total(kind)]));
    this._draw = () =>
      this._chart.clientWidth && replace(this._chart, bars(series, days, this._measure, this._chart.clientWidth));
    this._draw();
    replace(
      this._body,
      this._chart,
      el("ul", { class: "usage-legend" }, legend),
      table(
        `Usage by ${column}`,
        [[COLUMNS[column]], ...kinds.map(([, label]) => [label, "number"]), ["Error ratio", "number"]],
        [...sums.map((one) => row(one.name, one, (name) => name)), row("All", all, (name) => el("strong", {}, name))],
      ),
    );
  }

  async _download() {
    try {
      const response = await this._api.raw("admin/usage", {
        query: { ...this._query(), format: "csv" },
        accept: "text/csv",
        signal: this._signal,
      });
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await response.blob());
      link.download = `usage-by-${this._column}-${this._query().to}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    } catch (error) {
      if (!error.aborted) this._card.fail(error);
    }
  }
}

function meter(used, limit, text) {
  const part = limit > 0 ? Math.min(1, used / limit) : 0;
  const tone = part >= 1 ? "bad" : part >= WARN_AT ? "warn" : "good";
  return el(
    "div",
    { class: "budget", dataset: { tone } },
    el("span", {}, text),
    el("span", { class: "meter", "aria-hidden": "true" }, el("span", { style: { "--part": String(part) } })),
  );
}

/** What the keys' limits have left, worked out of the ledger: it is a second behind, and knows nothing of what is in flight. */
export class LimitsCard {
  constructor({ api, signal }, keys) {
    this._api = api;
    this._signal = signal;
    this._keys = keys;
    this._body = el("div", {});
    this._own = el("p", { class: "card-note small", hidden: true });
    this._at = el("span", { class: "small muted" });
    const again = button("Look again", {
      small: true,
      icon: "refresh",
      id: "limits-refresh",
      onClick: () => this.refresh(),
    });
    this._card = card(
      "admin-limits",
      "Limits now",
      [this._at, again],
      this._body,
      this._own,
      el(
        "p",
        { class: "hint card-note" },
        "Worked out of the ledger, which is a second behind: what was used in the last minute, and of the budget since its period began (UTC).",
      ),
    );
    this.node = this._card.node;
  }

  async _used(from_s) {
    const { rows } = await this._api.get("admin/usage", {
      query: { by: "key", from: from_s.toFixed(3) },
      signal: this._signal,
    });
    return new Map(rows.map((row) => [row.key, row]));
  }

  async refresh(keys = this._keys) {
    this._keys = keys;
    const now_ms = Date.now();
    const limited = keys.filter(
      (key) => key.state !== "revoked" && (key.rpm || key.tpm || key.concurrency || key.budget_usd),
    );
    try {
      const minute = limited.length ? await this._used(now_ms / 1000 - 60) : new Map();
      const periods = new Map();
      for (const period of new Set(limited.filter((key) => key.budget_usd).map((key) => key.budget_period))) {
        periods.set(period, await this._used(periodStart_s(period, now_ms)));
      }
      this._card.fail(null);
      this._at.textContent = `at ${clock(now_ms / 1000)}`;
      this._show(limited, minute, periods);
    } catch (error) {
      if (!error.aborted) this._card.fail(error);
    }
  }

  _show(limited, minute, periods) {
    const none = el("span", { class: "muted" }, "no limit of its own");
    const rows = limited.map((key) => {
      const used = minute.get(key.name);
      const tokens = used ? amountOf(used, "tokens") : 0;
      const spent = periods.get(key.budget_period)?.get(key.name)?.cost_usd ?? 0;
      return el(
        "tr",
        { dataset: { key: key.name } },
        cell("Key", "", el("strong", {}, key.name)),
        cell(
          "Requests",
          "",
          key.rpm
            ? meter(used?.requests ?? 0, key.rpm, `${number(used?.requests ?? 0, 0)} of ${number(key.rpm, 0)}`)
            : none.cloneNode(true),
        ),
        cell(
          "Tokens",
          "",
          key.tpm ? meter(tokens, key.tpm, `${number(tokens, 0)} of ${number(key.tpm, 0)}`) : none.cloneNode(true),
        ),
        cell("At once", "", key.concurrency ? `up to ${number(key.concurrency, 0)}` : none.cloneNode(true)),
        cell(
          "Budget",
          "",
          key.budget_usd
            ? meter(spent, key.budget_usd, `${usd(spent)} of ${usd(key.budget_usd)} this ${key.budget_period}`)
            : el("span", { class: "muted" }, "none"),
        ),
        cell(
          "Left",
          "nowrap",
          key.budget_usd ? usd(Math.max(0, key.budget_usd - spent)) : "–",
          spent >= key.budget_usd && key.budget_usd ? badge("bad", "Used up", "out") : null,
        ),
      );
    });
    const columns = [
      ["Key"],
      ["Requests, last minute"],
      ["Tokens, last minute"],
      ["Requests at once"],
      ["Budget"],
      ["Left"],
    ];
    replace(
      this._body,
      rows.length
        ? table("Limits", columns, rows)
        : empty("No key has a limit of its own", el("p", {}, "The gateway’s limits (RATE_LIMIT_…) apply to all.")),
    );
    const own = lastLimits(this._api.key);
    this._own.hidden = !own;
    if (own) {
      replace(
        this._own,
        `Your own key, as its last answer in the Playground said (${ago((performance.now() - own.at_ms) / 1000)}): `,
        own.rows.map((row) => `${number(row.remaining, 0)} of ${number(row.limit, 0)} ${row.what} left now`).join(", "),
        ".",
      );
    }
  }
}
