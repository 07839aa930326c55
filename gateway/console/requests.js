// The table of the last requests on the Live page: newest first, with filter, pause and a waterfall in each row.
//
//   const requests = new Requests({onOpen(request), curl}); requests.element; requests.draw(store, changes)
//   requests.pause(), .errorsOnly(), .focusFilter(), .find(text), .move(+1 | -1), .focusRow(id)
//
// Owns the rows. A row is made once, and hidden by the filter; while it is paused the table stands still, and what comes
// meanwhile is counted and shown after that.

import { clock, duration, number } from "./format.js";
import { KEPT_REQUESTS } from "./livestore.js";
import { draw, scaleFor, setScale } from "./waterfall.js";
import { badge, button, copyButton, el, icon, setAttr, setIcon, setText } from "./ui.js";

/** The tone of how a request ended. */
export function requestTone(request) {
  if (request.status >= 500) return "bad";
  if (request.status >= 400) return "warn";
  return request.error ? "bad" : "good";
}

const ICONS = { good: "check", warn: "warn", bad: "out" };

/** Whether a kept answer was given: others say how the cache was asked, too. */
export function reused(request) {
  return request.cache === "hit" || request.cache === "near";
}

/** The text that the filter looks into. */
export function searchable(request) {
  const attempts = (request.attempts || []).map(({ engine, outcome }) => `${engine} ${outcome}`);
  const words = [request.id, request.trace, request.method, request.path, request.model, request.engine, request.status, request.error];
  const flags = [request.cache && `cache ${request.cache}`, request.fallback && "fallback", request.stream && "stream"];
  return [...words, ...flags, ...attempts].filter(Boolean).join(" ").toLowerCase();
}

export class Requests {
  constructor({ onOpen, curl }) {
    this._onOpen = onOpen;
    this._rows = new Map(); // id -> {element, request, text, box, opener}
    this._scale_ms = 0;
    this._store = null;
    this._paused = false;
    this._waiting = 0;
    this._open = null;
    this._build(curl);
  }

  _build(curl) {
    this._search = el("input", { class: "input", type: "search", id: "request-filter", placeholder: "Filter requests", "aria-label": "Filter requests by id, model, engine, path, status or error", on: { input: () => this._filter() } });
    this._errors = button("Errors only", { small: true, id: "request-errors", "aria-pressed": "false", onClick: () => this.errorsOnly() });
    this._pause = button("Pause", { small: true, icon: "pause", id: "request-pause", "aria-pressed": "false", onClick: () => this.pause() });
    this._count = el("span", { class: "muted nowrap", id: "request-count" });
    this._axis = el("span", { class: "waterfall-axis" }, el("span", {}, "0"), el("span", {}, ""));
    this._body = el("tbody", { on: { click: (event) => this._clicked(event), keydown: (event) => this._key(event) } });
    const head = ["Time", "Status", "Model, engine", "Path", "Tokens", "First token", "Latency"];
    const columns = ["when", "status", "model", "path", "tokens", "ttft", "latency"];
    const numbers = new Set(["tokens", "ttft", "latency"]);
    const cells = head.map((title, at) => el("th", { scope: "col", class: [`col-${columns[at]}`, numbers.has(columns[at]) && "number"] }, title));
    this._table = el(
      "table",
      { class: "table requests-table", id: "requests-table" },
      el("caption", { class: "visually-hidden" }, "The last requests, newest first. Enter opens one, the arrow keys move between them."),
      el("thead", {}, el("tr", {}, cells, el("th", { scope: "col", class: "col-waterfall" }, el("span", { class: "visually-hidden" }, "Attempts"), this._axis))),
      this._body,
    );
    this._scroll = el("div", { class: "table-scroll requests-scroll", tabindex: 0, role: "region", "aria-label": "The last requests" }, this._table);
    this._empty = el(
      "div",
      { class: "empty", id: "requests-empty", hidden: true },
      el("p", { class: "empty-title" }, "No requests yet"),
      el("p", {}, "Send one, and it appears here within a second:"),
      el("div", { class: "code-box" }, el("pre", { class: "code", tabindex: 0 }, curl), copyButton(() => curl, "Copy the command")),
    );
    this._none = el("p", { class: "empty", hidden: true }, "No request matches the filter.");
    this.element = el(
      "section",
      { class: "card requests", id: "live-requests", "aria-labelledby": "requests-title" },
      el("header", { class: "card-head" }, el("h2", { id: "requests-title" }, "Requests"), legend(), this._count, el("span", { class: "search" }, icon("search"), this._search), this._errors, this._pause),
      this._scroll,
      this._none,
      this._empty,
    );
  }

  draw(store, changes) {
    this._store = store;
    if (this._paused) {
      this._waiting += changes.requests.length;
      setText(this._pause.querySelector("span"), this._waiting ? `Resume, ${this._waiting >= KEPT_REQUESTS ? `${KEPT_REQUESTS}+` : this._waiting} new` : "Resume");
      return;
    }
    if (changes.all || changes.requests.length) this._sync();
    if (changes.skipped) setAttr(this._count, "title", `${number(changes.skipped, 0)} more in the last second are not shown`);
  }

  /** Makes the rows those of the store: drops what is too old, puts what is new on top. */
  _sync() {
    const kept = new Set(this._store.requests.map((request) => request.id));
    for (const [id, row] of this._rows) {
      if (kept.has(id)) continue;
      if (row.element.contains(document.activeElement)) this._scroll.focus({ preventScroll: true });
      row.element.remove();
      this._rows.delete(id);
    }
    const scale_ms = scaleFor(this._store.requests);
    if (scale_ms !== this._scale_ms) this._rescale(scale_ms);
    const fresh = document.createDocumentFragment();
    for (let at = this._store.requests.length - 1; at >= 0; at -= 1) {
      const request = this._store.requests[at];
      if (this._rows.has(request.id)) continue;
      const row = this._row(request);
      this._rows.set(request.id, row);
      row.element.hidden = !this._matches(row);
      fresh.append(row.element);
    }
    this._body.prepend(fresh);
    this._tell();
  }

  _rescale(scale_ms) {
    this._scale_ms = scale_ms;
    for (const row of this._rows.values()) setScale(row.box, scale_ms);
    setText(this._axis.lastChild, duration(scale_ms));
  }

  _row(request) {
    const tone = requestTone(request);
    const opener = el("button", { type: "button", class: "row-opener", tabindex: -1, "aria-label": `${clock(request.time)}, details of this request` }, clock(request.time));
    const box = draw(request, this._scale_ms);
    const notes = [reused(request) && badge("good", `cache ${request.cache}`), request.fallback && badge("info", "fallback"), (request.attempts || []).length > 1 && badge("mute", `${request.attempts.length} attempts`)];
    const status = el("span", { class: "status", dataset: { tone } }, icon(ICONS[tone]), el("span", {}, String(request.status)), request.error && el("span", { class: "status-code truncate", title: request.error }, request.error));
    const tokens = request.prompt_tokens === null && request.completion_tokens === null ? "–" : `${number(request.prompt_tokens, 0)} → ${number(request.completion_tokens, 0)}`;
    const element = el(
      "tr",
      { dataset: { request: request.id, status: String(request.status), tone } },
      el("td", { class: "col-when" }, opener),
      el("td", { class: "col-status" }, status),
      el("td", { class: "col-model" }, el("span", { class: "two" }, el("span", { class: "truncate" }, request.model || "–"), request.engine && el("span", { class: "muted truncate" }, request.engine), notes)),
      el("td", { class: "col-path truncate muted", title: request.path }, request.path),
      el("td", { class: "col-tokens number" }, tokens),
      el("td", { class: "col-ttft number" }, duration(request.ttft_ms)),
      el("td", { class: "col-latency number" }, duration(request.latency_ms)),
      el("td", { class: "col-waterfall" }, box),
    );
    return { element, request, text: searchable(request), box, opener };
  }

  _matches(row) {
    if (this._errors.getAttribute("aria-pressed") === "true" && requestTone(row.request) === "good") return false;
    return this._words.every((word) => row.text.includes(word));
  }

  get _words() {
    return this._search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  }

  _filter() {
    for (const row of this._rows.values()) row.element.hidden = !this._matches(row);
    this._tell();
  }

  _tell() {
    const shown = this._visible();
    this._count.hidden = this._rows.size === 0;
    setText(this._count, shown.length === this._rows.size ? `last ${shown.length}` : `${shown.length} of ${this._rows.size}`);
    this._empty.hidden = this._rows.size > 0;
    this._none.hidden = this._rows.size === 0 || shown.length > 0;
    this._scroll.hidden = shown.length === 0;
    // One row takes part in the tab order: the one that was used last, or the newest.
    if (!shown.some((row) => row.opener.tabIndex === 0)) this._rove(shown[0]);
  }

  _visible() {
    return [...this._body.children].filter((node) => !node.hidden).map((node) => this._rows.get(node.dataset.request));
  }

  _rove(row) {
    for (const other of this._rows.values()) other.opener.tabIndex = other === row ? 0 : -1;
  }

  pause() {
    this._paused = !this._paused;
    setAttr(this._pause, "aria-pressed", this._paused ? "true" : "false");
    setIcon(this._pause, this._paused ? "play" : "pause");
    setText(this._pause.querySelector("span"), this._paused ? "Resume" : "Pause");
    this.element.classList.toggle("paused", this._paused);
    this._waiting = 0;
    if (!this._paused && this._store) this._sync();
  }

  errorsOnly() {
    setAttr(this._errors, "aria-pressed", this._errors.getAttribute("aria-pressed") === "true" ? "false" : "true");
    this._filter();
  }

  focusFilter() {
    this._search.focus();
    this._search.select();
  }

  find(text) {
    this._search.value = text;
    this._filter();
    this.element.scrollIntoView({ block: "start" });
  }

  _clicked(event) {
    const node = event.target.closest("tr");
    const row = node && this._rows.get(node.dataset.request);
    if (!row || String(window.getSelection())) return; // text was marked, to be copied
    this._pick(row);
  }

  _pick(row) {
    this._rove(row);
    this.mark(row.request.id);
    this._onOpen(row.request);
  }

  /** Marks the row whose details are open; null: none. */
  mark(id) {
    const before = this._rows.get(this._open);
    if (before) before.element.classList.remove("open");
    this._open = id;
    const row = this._rows.get(id);
    if (row) row.element.classList.add("open");
  }

  _key(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    const rows = this._visible();
    const at = rows.findIndex((row) => row.element.contains(event.target));
    const next = rows[Math.min(rows.length - 1, Math.max(0, at + by))];
    if (!next) return;
    this._rove(next);
    next.opener.focus();
  }

  /** Opens the next request of the table, or the one before. */
  move(by) {
    const rows = this._visible();
    const at = rows.findIndex((row) => row.request.id === this._open);
    const row = at < 0 ? rows[0] : rows[Math.min(rows.length - 1, Math.max(0, at + by))];
    if (!row) return;
    this._pick(row);
    row.element.scrollIntoView({ block: "nearest" });
  }

  focusRow(id) {
    const row = this._rows.get(id);
    if (row && !row.element.hidden) row.opener.focus({ preventScroll: true });
    else this._scroll.focus({ preventScroll: true });
  }
}

function legend() {
  const items = [["queue", "waiting"], ["ok", "answered"], ["lost", "failed"], ["left", "cancelled"], ["cache", "other steps"]];
  return el("ul", { class: "bar-legend", "aria-label": "Bars" }, items.map(([tone, label]) => el("li", {}, el("span", { class: "bar-swatch", dataset: { bar: tone } }), label)));
}
