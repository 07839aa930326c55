// The panel with one request's details: its ids, its figures, its attempts on a scale of its own.
//
//   const panel = new Panel({onClose()}); panel.element; panel.show(request); panel.close(); panel.isOpen

import { dateTime, duration, number, usd } from "./format.js";
import { requestTone, reused } from "./requests.js";
import { details } from "./waterfall.js";
import { badge, copyButton, el, iconButton, replace, setText } from "./ui.js";

export class Panel {
  constructor({ onClose }) {
    this._onClose = onClose;
    this._title = el("h2", { id: "request-panel-title", class: "truncate" });
    this._body = el("div", { class: "panel-body stack", tabindex: 0, role: "region", "aria-label": "Details" });
    this.element = el(
      "aside",
      { class: "panel", id: "request-panel", hidden: true, tabindex: -1, "aria-labelledby": "request-panel-title", on: { keydown: (event) => this._key(event) } },
      el("header", { class: "card-head" }, this._title, iconButton("Close the details", "close", { small: true, id: "request-panel-close", onClick: () => this.close() })),
      this._body,
    );
  }

  get isOpen() {
    return !this.element.hidden;
  }

  show(request) {
    const shown = this.isOpen;
    setText(this._title, `${request.method || ""} ${request.path || "Request"}`.trim());
    this.element.dataset.request = request.id;
    const attempts = request.attempts || [];
    replace(
      this._body,
      el(
        "p",
        { class: "row" },
        badge(requestTone(request), `${request.status}${request.error ? ` ${request.error}` : ""}`),
        request.stream && badge("mute", "stream"),
        request.cache && badge(reused(request) ? "good" : "mute", `cache ${request.cache}`),
        request.fallback && badge("info", `fallback: ${request.fallback}`),
      ),
      el("dl", { class: "facts" }, id("Request", request.id), id("Trace", request.trace), id("Part of", request.part_of), facts(request)),
      el("h3", {}, attempts.length === 1 ? "One attempt" : attempts.length ? `${attempts.length} attempts` : "No engine was asked"),
      details(request),
    );
    this.element.hidden = false;
    document.documentElement.classList.add("with-panel");
    if (!shown) this.element.focus({ preventScroll: true });
  }

  close() {
    if (!this.isOpen) return;
    const focused = this.element.contains(document.activeElement);
    this.element.hidden = true;
    document.documentElement.classList.remove("with-panel");
    this._onClose(this.element.dataset.request, focused);
  }

  _key(event) {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    this.close();
  }
}

function pair(name, value) {
  return value === null || value === undefined || value === "" ? null : [el("dt", {}, name), el("dd", {}, value)];
}

function id(name, value) {
  return value ? [el("dt", {}, name), el("dd", { class: "copyable" }, el("span", { class: "mono" }, value), copyButton(() => value, `Copy the ${name.toLowerCase()} id`))] : null;
}

function facts(request) {
  const tokens = request.prompt_tokens === null && request.completion_tokens === null ? null : `${number(request.prompt_tokens, 0)} prompt, ${number(request.completion_tokens, 0)} completion`;
  return [
    pair("Ended", dateTime(request.time)),
    pair("Model", request.model),
    pair("Engine", request.engine),
    pair("Latency", duration(request.latency_ms)),
    pair("In the queue", request.queue_ms ? duration(request.queue_ms) : null),
    pair("First token", request.ttft_ms === null || request.ttft_ms === undefined ? null : duration(request.ttft_ms)),
    pair("Tokens", tokens),
    pair("Rate", rate(request)),
    pair("Cost", typeof request.cost_usd === "number" ? usd(request.cost_usd) : null),
  ];
}

/** Tokens a second after the first one, of a stream. */
function rate(request) {
  const after_ms = request.latency_ms - (request.ttft_ms || 0);
  if (!request.stream || !request.completion_tokens || !request.ttft_ms || after_ms < 1) return null;
  return `${number((request.completion_tokens / after_ms) * 1000, 1)} tokens per second`;
}
