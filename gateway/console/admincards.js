// Two cards of Admin: the engines, which can be drained, taken back and weighed, and the cache, which can be emptied.

import { toldBy } from "./ask.js";
import { errorView } from "./answerview.js";
import { compact, number, percent, usd } from "./format.js";
import { stateOf } from "./livestore.js";
import { Fields, input, select } from "./playform.js";
import { badge, button, confirm, el, empty, replace, setText, toast } from "./ui.js";
import { WeightField } from "./weight.js";

const LOOK_MS = 5000;

/** A card with a headline, tools beside it, and a place for what goes wrong. */
export function card(id, title, tools, ...children) {
  const fault = el("div", { id: `${id}-fault`, role: "alert" });
  const node = el(
    "section",
    { class: "card", id, "aria-labelledby": `${id}-title` },
    el("div", { class: "card-head" }, el("h2", { id: `${id}-title` }, title), tools),
    fault,
    ...children,
  );
  return {
    node,
    fail: (error) => replace(fault, error ? el("div", { class: "card-body" }, errorView(toldBy(error))) : null),
  };
}

/** A table that becomes a list of blocks on a phone. `columns`: [label, class]. */
export function table(label, columns, rows) {
  return el(
    "div",
    { class: "table-scroll", tabindex: "0", role: "region", "aria-label": `${label}, table` },
    el(
      "table",
      { class: "table blocks" },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          columns.map(([name, kind]) =>
            el(
              "th",
              { scope: "col", class: kind || null },
              name || el("span", { class: "visually-hidden" }, "Actions"),
            ),
          ),
        ),
      ),
      el("tbody", {}, rows),
    ),
  );
}

/** One cell of such a table. */
export function cell(label, kind, ...children) {
  return el("td", { class: kind || null, dataset: { label } }, ...children);
}

export class EnginesCard {
  constructor({ api, signal }, health) {
    this._api = api;
    this._signal = signal;
    this._body = el("div", {});
    this._card = card(
      "admin-engines",
      "Engines",
      null,
      this._body,
      el(
        "p",
        { class: "hint card-note" },
        "A drained engine is given nothing new; what it is answering, it answers. A weight set here counts from the next request on, until the engines file is reloaded or the gateway restarts.",
      ),
    );
    this.node = this._card.node;
    this._busy = false;
    this._unseen = false; // the last look has failed
    this._changes = 0; // that were made here: a look that began before one tells what was
    this._rows = new Map(); // "<model> <engine>" -> its row
    this._show(health);
    // Not below an open dialog: where the first key has just been made, a look without it would be refused, and the
    // sign-in would take the place of the secret that is shown this once.
    const isFree = () => !document.hidden && !this._busy && !document.querySelector("dialog[open]");
    const timer = setInterval(() => isFree() && this.refresh(), LOOK_MS);
    signal.addEventListener("abort", () => clearInterval(timer));
  }

  /** What /health says; it does so with status 503, too, when no engine is available. Looks must not pile up before a
   *  gateway that hangs: two are under way at most. */
  static async look(api) {
    try {
      return await api.get("health", { signal: AbortSignal.timeout(2 * LOOK_MS) });
    } catch (error) {
      if (error.status === 503 && error.body?.models) return error.body;
      throw error;
    }
  }

  async refresh() {
    const changes = this._changes;
    try {
      const health = await EnginesCard.look(this._api);
      if (changes !== this._changes || this._signal.aborted) return;
      if (this._unseen) this._card.fail(null); // what an action was refused for stays
      this._unseen = false;
      this._show(health);
    } catch (error) {
      if (this._signal.aborted) return;
      this._unseen = true;
      this._card.fail(error);
    }
  }

  /** Rows stay while their engines do: what is focused, or being pressed, is not replaced below the hand. */
  _show(health) {
    const told = Object.entries(health.models).flatMap(([model, of]) =>
      of.engines.map((engine) => ({ model, engine, of, name: `${model} ${engine.id}` })),
    );
    if (told.length !== this._rows.size || told.some(({ name }) => !this._rows.has(name))) {
      this._rows = new Map(told.map(({ name, model, engine }) => [name, this._row(model, engine)]));
      const columns = [
        ["Model"],
        ["Engine"],
        ["State"],
        ["Weight"],
        ["In flight", "number"],
        ["Last error"],
        [""],
      ];
      replace(
        this._body,
        told.length
          ? table(
              "Engines",
              columns,
              [...this._rows.values()].map((row) => row.node),
            )
          : empty("There is no engine"),
      );
    }
    for (const { name, engine, of } of told) this._update(this._rows.get(name), engine, of);
  }

  _row(model, engine) {
    const row = { model, engine, of: null, state: "", badge: cell("State"), act: null };
    row.act = button("Drain", { small: true, onClick: () => this._act(row) });
    row.weight = new WeightField(`${engine.id} of ${model}`, (weight) => this._weigh(row, weight));
    row.inFlight = cell("In flight", "number");
    row.error = cell("Last error", "anywhere small");
    row.node = el(
      "tr",
      { dataset: { model, engine: engine.id } },
      cell("Model", "", el("strong", { class: "anywhere" }, model)),
      cell("Engine", "", engine.id, el("div", { class: "small muted mono anywhere" }, engine.url)),
      row.badge,
      cell("Weight", "", row.weight.nodes),
      row.inFlight,
      row.error,
      cell("", "", row.act),
    );
    return row;
  }

  _update(row, engine, of) {
    Object.assign(row, { engine, of });
    row.weight.show(engine.weight);
    setText(row.inFlight, number(engine.in_flight, 0));
    setText(row.error, engine.last_error ?? "none");
    row.error.classList.toggle("muted", !engine.last_error);
    if (row.state === engine.state) return;
    row.state = engine.state;
    row.node.dataset.state = engine.state;
    const { tone, label, icon } = stateOf(engine);
    replace(row.badge, badge(tone, label, icon));
    const action = engine.state === "draining" ? "Enable" : "Drain";
    setText(row.act.lastChild, action);
    row.act.setAttribute("aria-label", `${action} ${engine.id} of ${row.model}`);
  }

  async _act({ model, engine, of }) {
    const drained = engine.state === "draining";
    const others = of.engines.filter((other) => other.id !== engine.id && other.available).length;
    const last =
      others || !engine.available
        ? ""
        : ` No other engine of ${model} is available: who asks it will be refused, or answered by another model.`;
    const yes =
      drained ||
      (await confirm({
        title: `Drain ${engine.id}?`,
        text: `It is given nothing new for ${model}; what it is answering, it answers.${last}`,
        action: "Drain",
        danger: last !== "",
      }));
    if (!yes) return;
    this._busy = true;
    this._card.fail(null);
    try {
      const path = `admin/engines/${encodeURIComponent(engine.id)}/${drained ? "enable" : "drain"}`;
      const said = await this._api.post(path, null, { query: { model }, signal: this._signal });
      this._changes += 1;
      toast(`${said.engine} of ${said.models.join(", ")} ${said.draining ? "is being drained" : "is enabled"}`, "good");
      await this.refresh();
    } catch (error) {
      if (!error.aborted) this._card.fail(error);
    }
    this._busy = false;
  }

  /** Sets a weight; gives the one that the gateway says it is then, and throws what it refuses it with. */
  async _weigh({ model, engine }, weight) {
    this._busy = true;
    try {
      const path = `admin/engines/${encodeURIComponent(engine.id)}/weight`;
      const said = await this._api.post(path, { weight }, { query: { model }, signal: this._signal });
      this._changes += 1;
      toast(`${said.engine} of ${said.models.join(", ")} has the weight ${said.weight}`, "good");
      return said.weight;
    } finally {
      this._busy = false;
    }
  }
}

const bytes = (count) => (count < 1e6 ? `${number(count / 1e3, 1)} kB` : `${number(count / 1e6, 1)} MB`);

export class CacheCard {
  constructor({ api, signal }, models) {
    this._api = api;
    this._signal = signal;
    this._tiles = el("dl", { class: "tiles", id: "cache-tiles" });
    this._fields = new Fields("cache");
    const clear = button("Clear", { icon: "trash", kind: "danger", id: "cache-clear", type: "submit" });
    const form = el(
      "form",
      {
        class: "toolbar end",
        "aria-label": "Drop kept answers",
        on: {
          submit: (event) => {
            event.preventDefault();
            this._clear();
          },
        },
      },
      this._fields.add("model", "Of the model", select([["", "All models"], ...models.map((name) => [name, name])])),
      this._fields.add("key", "Of the key", input({ placeholder: "All keys" })),
      this._fields.add("age", "Older than, s", input({ inputmode: "decimal", placeholder: "Any age" })),
      clear,
    );
    this._card = card("admin-cache", "Cache", null, el("div", { class: "card-body stack" }, this._tiles, form));
    this.node = this._card.node;
  }

  async refresh() {
    try {
      const told = await this._api.get("api/v1/cache/stats", { signal: this._signal });
      const asked = told.hits + told.near_hits + told.misses;
      const tiles = [
        ["Kept answers", number(told.entries, 0)],
        ["Size", bytes(told.bytes)],
        ["Hit rate", asked ? percent((told.hits + told.near_hits) / asked) : "–"],
        ["Hits", number(told.hits, 0)],
        ["In other words", number(told.near_hits, 0)],
        ["Misses", number(told.misses, 0)],
        ["Evicted", number(told.evictions, 0)],
        ["Tokens saved", compact(told.saved_tokens)],
        ["Saved", usd(told.saved_usd)],
      ];
      replace(
        this._tiles,
        tiles.map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, value))),
      );
      this._card.fail(null);
    } catch (error) {
      if (!error.aborted) this._card.fail(error);
    }
  }

  async _clear() {
    const { model, key, age } = this._fields.values();
    const body = {};
    if (model) body.model = model;
    if (key.trim()) body.key = key.trim();
    if (age.trim()) body.older_than_s = Number(age);
    if (Number.isNaN(body.older_than_s)) {
      this._fields.fault("age", "This must be a number of seconds.");
      return;
    }
    const which = [
      model && `of the model ${model}`,
      body.key && `of the key ${body.key}`,
      age.trim() && `older than ${age.trim()} s`,
    ].filter(Boolean);
    const text = `Kept answers ${which.join(", ") || "of all"} are dropped, and will be asked for anew.`;
    if (!(await confirm({ title: "Clear the cache?", text, action: "Clear", danger: true }))) return;
    try {
      const { cleared } = await this._api.post("api/v1/cache/clear", body, { signal: this._signal });
      toast(`${number(cleared, 0)} kept ${cleared === 1 ? "answer was" : "answers were"} dropped`, "good");
      await this.refresh();
    } catch (error) {
      if (!error.aborted) this._card.fail(error);
    }
  }
}
