// The engines of the Live page, by model: a row for each, or, of many, a cell for each and rows for those that are out.
//
//   const engines = new Engines({onPick(engine)}); engines.element; engines.draw(store, changes); engines.close()
//
// Owns the rows. Draws what has changed, and sparklines only of rows that are on the screen. `data-engine`, `data-model`
// and `data-state` on each row (and `data-cell`, `data-state` on each cell) say what the row says in colour and shape.

import { Sparkline } from "./charts.js";
import { clock, duration } from "./format.js";
import { byName, stateOf } from "./livestore.js";
import { badge, button, el, icon, replace, setAttr, setIcon, setText } from "./ui.js";

/** A model with more engines than this is shown as cells. */
const MANY = 16;
const OUT_ROWS = 8; // of such a model, until all are asked for

class EngineRow {
  constructor(key, engine, onPick, watch) {
    this.key = key;
    this.visible = false;
    this._engine = engine;
    this._state = icon("up");
    this._name = el("button", { type: "button", class: "engine-name truncate", title: "Show this engine’s requests", on: { click: () => onPick(this._engine) } });
    this._label = el("span", { class: "engine-state" });
    this._detail = el("span", { class: "engine-detail" });
    this._error = el("span", { class: "engine-error" });
    this._latency = el("span", { class: "engine-latency number" });
    this._load = el("span", { class: "engine-load number" });
    this._meter = el("span", {});
    this._meterBox = el("span", { class: "meter" }, this._meter);
    this._spark = new Sparkline();
    this.element = el(
      "li",
      { class: "engine" },
      el("span", { class: "engine-mark" }, this._state),
      el("div", { class: "engine-what" }, this._name, el("div", { class: "engine-line" }, this._label, this._detail)),
      el("div", { class: "engine-spark", title: "Latency of the last minute’s attempts" }, this._spark.element, this._latency),
      el("div", { class: "engine-use", title: "Requests in flight" }, this._load, this._meterBox),
      this._error,
    );
    this.element.row = this;
    watch.observe(this.element);
    this.update(engine);
  }

  update(engine) {
    this._engine = engine;
    const state = stateOf(engine);
    const data = this.element.dataset;
    data.engine = engine.engine;
    data.model = engine.model;
    data.state = engine.state;
    data.available = String(Boolean(engine.available));
    data.tone = state.tone;
    setIcon(this._state, state.icon);
    setText(this._name, engine.engine);
    setText(this._label, state.label);
    setText(this._detail, details(engine));
    const error = engine.last_error ? `${engine.last_error_at ? `${clock(engine.last_error_at)} ` : ""}${engine.last_error}` : "";
    setText(this._error, error);
    setAttr(this._error, "title", error || null);
    const max = engine.max_concurrency;
    setText(this._load, max ? `${engine.in_flight} / ${max}` : String(engine.in_flight));
    this._meterBox.classList.toggle("unbounded", !max);
    this._meter.style.setProperty("--part", String(max ? Math.min(1, engine.in_flight / max) : 0));
  }

  drawSpark(values) {
    if (!this.visible || !values) return;
    this._spark.update(values);
    let last = values.length - 1;
    while (last >= 0 && values[last] === null) last -= 1;
    setText(this._latency, last < 0 ? "–" : duration(values[last]));
  }
}

function details(engine) {
  const parts = [`Breaker ${String(engine.breaker).replace("_", " ")}`];
  if (engine.weight !== 1 && engine.weight !== undefined) parts.push(`weight ${engine.weight}`);
  if (engine.region) parts.push(engine.region);
  return parts.join(" · ");
}

class Group {
  constructor(model, owner) {
    this.model = model;
    this._owner = owner;
    this.rows = new Map();
    this._cells = new Map();
    this._all = false;
    this._count = el("span", { class: "muted nowrap" });
    this._load = el("span", { class: "muted nowrap" });
    this._grid = el("div", { class: "engine-cells", role: "img", hidden: true });
    this._list = el("ul", { class: "engine-list" });
    this._more = button("", { small: true, kind: "ghost", onClick: () => this._showAll(!this._all) });
    this.element = el(
      "section",
      { class: "engine-group", dataset: { group: model } },
      el("header", { class: "engine-group-head" }, el("h3", { class: "truncate", title: model }, model), this._count, this._load),
      this._grid,
      this._list,
      this._more,
    );
  }

  _showAll(all) {
    this._all = all;
    this._owner.redraw(this);
  }

  /** Makes the rows and cells those of `keys`, and says how many are in. */
  draw(keys, store, matches) {
    const many = keys.length > MANY;
    const out = keys.filter((key) => !store.engines.get(key).available);
    let shown = keys.filter((key) => matches(store.engines.get(key)));
    const wanted = shown.length;
    if (many && !this._all && !this._owner.narrowed) shown = shown.filter((key) => !store.engines.get(key).available).slice(0, OUT_ROWS);
    this.element.hidden = wanted === 0;
    this.element.classList.toggle("many", many);
    this._more.hidden = !many || this._owner.narrowed || (wanted <= shown.length && !this._all);
    setText(this._more.querySelector("span"), this._all ? "Show those that are out only" : `Show all ${keys.length}`);
    setText(this._count, `${keys.length - out.length} of ${keys.length} available`);
    this.summarise(keys, store);
    this._drawCells(many ? keys : [], store);
    this._drawRows(shown, store);
  }

  summarise(keys, store) {
    const load = keys.reduce((sum, key) => sum + store.engines.get(key).in_flight, 0);
    setText(this._load, `${load} in flight`);
  }

  _drawCells(keys, store) {
    this._grid.hidden = keys.length === 0;
    const wanted = new Set(keys);
    for (const [key, cell] of this._cells) {
      if (wanted.has(key)) continue;
      cell.remove();
      this._cells.delete(key);
    }
    const states = new Map();
    for (const key of keys) {
      const engine = store.engines.get(key);
      const state = stateOf(engine);
      states.set(state.label, (states.get(state.label) || 0) + 1);
      let cell = this._cells.get(key);
      if (!cell) {
        cell = el("span", { class: "cell" });
        this._cells.set(key, cell);
        this._grid.append(cell);
      }
      if (cell.dataset.state === engine.state) continue;
      Object.assign(cell.dataset, { cell: engine.engine, state: engine.state, tone: state.tone });
      cell.title = `${engine.engine}: ${state.label}`;
    }
    setAttr(this._grid, "aria-label", [...states].map(([label, count]) => `${count} ${label}`).join(", "));
  }

  _drawRows(keys, store) {
    const wanted = new Set(keys);
    for (const [key, row] of this.rows) if (!wanted.has(key)) this._drop(key, row);
    let before = null;
    for (const key of keys) {
      let row = this.rows.get(key);
      if (row) row.update(store.engines.get(key));
      else {
        row = new EngineRow(key, store.engines.get(key), this._owner.onPick, this._owner.watch);
        this.rows.set(key, row);
      }
      const place = before ? before.nextSibling : this._list.firstChild;
      if (row.element !== place) this._list.insertBefore(row.element, place);
      before = row.element;
    }
  }

  _drop(key, row) {
    this._owner.watch.unobserve(row.element);
    row.element.remove();
    this.rows.delete(key);
  }

  end() {
    for (const [key, row] of this.rows) this._drop(key, row);
    this.element.remove();
  }
}

export class Engines {
  constructor({ onPick }) {
    this.onPick = onPick;
    this._groups = new Map();
    this._keys = new Map(); // model -> keys of its engines
    this._store = null;
    this._search = el("input", { class: "input", type: "search", id: "engine-filter", placeholder: "Filter engines", "aria-label": "Filter engines by model, name, state or error", on: { input: () => this._redrawAll() } });
    this._out = button("Out only", { small: true, id: "engine-out", "aria-pressed": "false", onClick: () => this._toggleOut() });
    this._counts = el("span", { class: "row", id: "engine-counts" });
    this._none = el("p", { class: "muted engine-none", hidden: true }, "No engine matches.");
    this._body = el("div", { class: "engine-groups" });
    this.element = el(
      "section",
      { class: "card engines", id: "live-engines", "aria-labelledby": "engines-title" },
      el("header", { class: "card-head" }, el("h2", { id: "engines-title" }, "Engines"), this._counts, el("span", { class: "search" }, icon("search"), this._search), this._out),
      this._body,
      this._none,
    );
    this.watch = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const row = entry.target.row;
        row.visible = entry.isIntersecting;
        if (row.visible && this._store) row.drawSpark(this._store.sparks.get(row.key));
      }
    });
  }

  close() {
    this.watch.disconnect();
  }

  get narrowed() {
    return this._search.value.trim() !== "" || this._out.getAttribute("aria-pressed") === "true";
  }

  focusFilter() {
    this._search.focus();
  }

  _toggleOut() {
    setAttr(this._out, "aria-pressed", this._out.getAttribute("aria-pressed") === "true" ? "false" : "true");
    this._redrawAll();
  }

  _matches(engine) {
    if (this._out.getAttribute("aria-pressed") === "true" && engine.available) return false;
    const text = this._search.value.trim().toLowerCase();
    if (!text) return true;
    const where = `${engine.model} ${engine.engine} ${engine.state} ${stateOf(engine).label} ${engine.last_error || ""}`.toLowerCase();
    return text.split(/\s+/).every((word) => where.includes(word));
  }

  /** Draws what `changes` names: whole groups where engines came, went or changed their state, else single rows. */
  draw(store, changes) {
    this._store = store;
    if (changes.all || changes.gone.size || this._isNew(changes)) {
      this._keys = store.groups();
      this._arrange();
      this._redrawAll();
    } else {
      const models = new Set();
      for (const key of changes.engines) models.add(store.engines.get(key).model);
      for (const model of models) this._drawGroup(model);
      if (models.size) this._count();
    }
    for (const group of this._groups.values()) for (const [key, row] of group.rows) row.drawSpark(store.sparks.get(key));
  }

  _isNew(changes) {
    for (const key of changes.engines) {
      const keys = this._keys.get(this._store.engines.get(key).model);
      if (!keys || !keys.includes(key)) return true;
    }
    return false;
  }

  _arrange() {
    for (const [model, group] of this._groups) {
      if (this._keys.has(model)) continue;
      group.end();
      this._groups.delete(model);
    }
    for (const model of [...this._keys.keys()].sort(byName)) {
      if (!this._groups.has(model)) this._groups.set(model, new Group(model, this));
      this._body.append(this._groups.get(model).element);
    }
    this._body.classList.toggle("crowded", this._keys.size > 12);
  }

  _redrawAll() {
    if (!this._store) return;
    for (const model of this._keys.keys()) this._drawGroup(model);
    this._count();
  }

  redraw(group) {
    this._drawGroup(group.model);
    for (const [key, row] of group.rows) row.drawSpark(this._store.sparks.get(key));
  }

  _drawGroup(model) {
    const group = this._groups.get(model);
    group.draw(this._keys.get(model), this._store, (engine) => this._matches(engine));
  }

  _count() {
    const states = new Map();
    for (const engine of this._store.engines.values()) {
      const { label, tone, icon: name } = stateOf(engine);
      const found = states.get(label) || { count: 0, tone, name };
      found.count += 1;
      states.set(label, found);
    }
    const text = JSON.stringify([...states]);
    if (text !== this._counted) {
      this._counted = text;
      replace(this._counts, [...states].map(([label, { count, tone, name }]) => badge(tone, `${count} ${label.toLowerCase()}`, name)));
    }
    this._none.hidden = [...this._groups.values()].some((group) => !group.element.hidden);
  }
}
