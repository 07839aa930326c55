// The Live page: what the feed tells, drawn at most once a frame, never while the tab is hidden.
//
// Whether what is shown is fresh stands on #live as data-feed (the feed's state) and data-stale ("true" greys it): a page
// whose feed has broken must not look alive.

import { Alerts, Budgets } from "./alerts.js";
import { ApiError } from "./api.js";
import { Engines } from "./engines.js";
import { Feed } from "./feed.js";
import { Figures } from "./figures.js";
import { ago, durationMark } from "./format.js";
import { KEPT_REQUESTS, LiveStore } from "./livestore.js";
import { Panel } from "./panel.js";
import { Requests } from "./requests.js";
import { curlOf } from "./snippets.js";
import { announce, el, icon, notice, replace, setAttr, setIcon, setText } from "./ui.js";

const PATH = "api/v1/live";
// What the gateway's `end` event would have been as the status of an answer.
const ENDS = { unauthorized: 401, forbidden: 403 };

function nothing() {
  return { all: false, engines: new Set(), gone: new Set(), alerts: false, slos: false, requests: [], skipped: 0 };
}

/** What two events in a row have changed. */
export function merged(before, after) {
  for (const key of after.gone) before.engines.delete(key);
  for (const key of after.engines) before.gone.delete(key);
  return {
    all: before.all || after.all,
    engines: new Set([...before.engines, ...after.engines]),
    gone: new Set([...before.gone, ...after.gone]),
    alerts: before.alerts || after.alerts,
    slos: before.slos || after.slos,
    requests: [...before.requests, ...after.requests].slice(-KEPT_REQUESTS),
    skipped: after.skipped,
  };
}

class Live {
  constructor(root, context) {
    this._context = context;
    this._store = new LiveStore();
    this._changes = nothing();
    this._frame = 0;
    this._heard_ms = 0; // when the last event came, by this machine's clock
    this._feedState = { state: "connecting" };
    this._engines = new Engines({ onPick: (engine) => this._requests.find(engine.engine) });
    this._figures = new Figures();
    this._alerts = new Alerts();
    this._budgets = new Budgets();
    this._requests = new Requests({ onOpen: (request) => this._panel.show(request), curl: curl(context.api) });
    this._panel = new Panel({
      onClose: (id, focused) => {
        this._requests.mark(null);
        if (focused) this._requests.focusRow(id);
      },
    });
    this._build(root);
    this._feed = new Feed(context.api, PATH, { onEvent: (event) => this._take(event), onState: (state) => this._say(state) });
    const visible = () => {
      this._age();
      this._schedule();
    };
    document.addEventListener("visibilitychange", visible, { signal: context.signal });
    this._clock = setInterval(() => document.hidden || this._age(), 1000);
    context.signal.addEventListener("abort", () => this._close());
    context.shortcuts(this._shortcuts());
    this._feed.start();
  }

  _close() {
    this._feed.stop();
    clearInterval(this._clock);
    cancelAnimationFrame(this._frame);
    this._panel.close();
    this._engines.close();
    this._figures.close();
  }

  _build(root) {
    this._mark = icon("info");
    this._title = el("span", {}, "Connecting");
    this._heading = el("h1", { id: "live-summary" }, this._mark, this._title);
    this._meta = el("p", { class: "muted", id: "live-meta" });
    this._banner = el("div", { class: "live-banner", id: "live-banner", hidden: true });
    this._bannerText = el("span", {});
    replace(this._banner, notice("warn", this._bannerText));
    this._content = el(
      "div",
      { class: "live-content" },
      this._engines.element,
      el("div", { class: "live-side" }, this._alerts.element, this._budgets.element),
      this._figures.element,
      this._requests.element,
    );
    this._content.hidden = true;
    this._waiting = el("div", { class: "page-loading" }, el("span", { class: "spinner", role: "img", "aria-label": "Waiting for the feed" }));
    this._page = el("div", { class: "page live", id: "live", dataset: { feed: "connecting", stale: "false" } }, el("div", { class: "page-head" }, this._heading, this._meta), this._banner, this._waiting, this._content, this._panel.element);
    root.append(this._page);
  }

  _shortcuts() {
    return [
      { keys: "/", label: "Filter requests", run: () => this._requests.focusFilter() },
      { keys: "f", label: "Filter engines", run: () => this._engines.focusFilter() },
      { keys: "e", label: "Show errors only", run: () => this._requests.errorsOnly() },
      { keys: "p", label: "Pause or resume the requests", run: () => this._requests.pause() },
      { keys: "j", label: "Open the next request", run: () => this._requests.move(1) },
      { keys: "k", label: "Open the request before", run: () => this._requests.move(-1) },
      { keys: "Escape", label: "Close the details", run: () => this._panel.close() },
      { keys: "← →", label: "Read a chart that has the focus", told: true },
    ];
  }

  /** Throws what the feed's last word says: the connection is over, and whether it is to be made again hangs on why. */
  _take({ event, data }) {
    if (event === "end") throw new ApiError(data.message || "the feed has ended", { status: ENDS[data.code] || 503, code: data.code });
    const changes = this._store.take(event, data);
    if (!changes) return;
    this._heard_ms = Date.now();
    this._changes = merged(this._changes, changes);
    this._schedule();
  }

  /** One frame for whatever has come; the browser gives none to a hidden tab, which draws once it is looked at. */
  _schedule() {
    if (this._frame || document.hidden) return;
    this._frame = requestAnimationFrame(() => {
      this._frame = 0;
      this._draw();
    });
  }

  _draw() {
    if (!this._store.now_s) return;
    const changes = this._changes;
    this._changes = nothing();
    this._content.hidden = false;
    this._waiting.hidden = true;
    this._summarise();
    this._engines.draw(this._store, changes);
    this._figures.draw(this._store);
    if (changes.all || changes.alerts) this._alerts.draw(this._store);
    else this._alerts.age(this._store.now_s);
    if (changes.all || changes.slos) this._budgets.draw(this._store);
    this._requests.draw(this._store, changes);
  }

  _summarise() {
    const all = this._store.engines.size;
    let available = 0;
    const models = new Set();
    for (const engine of this._store.engines.values()) {
      available += engine.available ? 1 : 0;
      models.add(engine.model);
    }
    const tone = all === 0 || available === 0 ? "bad" : available < all ? "warn" : "good";
    const text = all === 0 ? "No engines" : available === all ? (all === 1 ? "The engine is available" : `All ${all} engines available`) : `${available} of ${all} engines available`;
    if (this._title.textContent !== text && this._title.textContent !== "Connecting") announce(text);
    setText(this._title, text);
    setIcon(this._mark, { good: "up", warn: "warn", bad: "out" }[tone]);
    this._heading.dataset.tone = tone;
    const up = durationMark(Math.max(0, Math.floor(this._store.now_s - this._store.info.started)) * 1000);
    setText(this._meta, `${models.size} ${models.size === 1 ? "model" : "models"} · version ${this._store.info.version} · running for ${up}`);
  }

  _say(state) {
    this._feedState = state;
    this._page.dataset.feed = state.state;
    if (state.state === "refused") {
      if (state.error.status === 401) this._context.session.expired();
      else this._context.fail(state.error);
      return;
    }
    this._retry_ms = Date.now() + state.retryInS * 1000;
    this._age();
  }

  /** Says whether what is shown is fresh. Runs each second, since staleness is just that nothing happens. */
  _age() {
    const { state, error, attempt } = this._feedState;
    const known = this._store.now_s > 0;
    const fresh = state === "open";
    setAttr(this._page, "data-stale", String(known && !fresh));
    this._context.connection(...this._pill(state, attempt));
    this._banner.hidden = fresh || (!known && !error);
    if (this._banner.hidden) return;
    const age = known ? ` What is shown is from ${ago((Date.now() - this._heard_ms) / 1000)}.` : "";
    const seconds = Math.max(0, Math.ceil((this._retry_ms - Date.now()) / 1000));
    const what = { stalled: "The gateway sends nothing.", connecting: "Connecting again…", reconnecting: `${error ? sentence(error.message) : "The feed has ended."} Trying again ${seconds > 0 ? `in ${seconds} s` : "now"}.` };
    setText(this._bannerText, `${what[state] || ""}${age}`);
  }

  _pill(state, attempt) {
    if (state === "open") return ["open", "Live"];
    if (state === "stalled") return ["stalled", "No data"];
    if (state === "connecting" && attempt === 0) return ["connecting", "Connecting"];
    return ["reconnecting", "Reconnecting"];
  }
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

/** A request that can be pasted into a terminal; never with the key itself. */
function curl(api) {
  return curlOf(api.url("v1/chat/completions"), { messages: [{ role: "user", content: "Hello" }] }, api.key !== "");
}

export const page = {
  id: "live",
  title: "Live",
  permission: "metrics",
  mount(root, context) {
    new Live(root, context);
  },
};
