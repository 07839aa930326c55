// One answer of the Playground, from the question to its measures. Whatever a model says is put into text nodes.

import { headersTold } from "./ask.js";
import { measuresOf, spokenUpTo } from "./chat.js";
import { codeView } from "./codeview.js";
import { NONE, duration, number, usd } from "./format.js";
import { announce, badge, copyButton, el, iconButton, replace, setText } from "./ui.js";

const SPEAK_MS = 4000; // how often, at most, what has come is read out
const SPOKEN_MAX = 2000; // characters of it; the text is there to be read
const STATES = {
  waiting: ["info", "Waiting", "half"],
  streaming: ["info", "Answering", "pulse"],
  done: ["good", "Done", "up"],
  stopped: ["warn", "Stopped", "rest"],
  failed: ["bad", "Failed", "out"],
};
const MEASURES = [
  ["ttft", "First token"],
  ["rate", "Tokens/s"],
  ["total", "Total"],
  ["tokens", "In / out"],
  ["finish", "Finish"],
];

function stateBadge(state) {
  const [tone, text, icon] = STATES[state];
  return badge(tone, text, icon);
}

/** An error as the gateway tells it. */
export function errorView(error) {
  const facts = [
    error.status ? `HTTP ${error.status}` : "",
    error.param ? `field ${error.param}` : "",
    error.retry_after_s === null || error.retry_after_s === undefined ? "" : `try again in ${error.retry_after_s} s`,
  ].filter(Boolean);
  return el(
    "div",
    { class: "error-box", dataset: { error: error.code } },
    el(
      "p",
      { class: "error-title" },
      el("code", {}, error.code || "error"),
      facts.length ? ` · ${facts.join(" · ")}` : "",
    ),
    el("p", { class: "said" }, error.message),
    error.request_id &&
      el("p", { class: "small muted" }, "Request id ", el("code", { dataset: { requestId: "" } }, error.request_id)),
    error.details && detailsView(error.details),
  );
}

/** The details of an error: of several models a line each, anything else as JSON. */
function detailsView(details) {
  const rows = Array.isArray(details) ? [] : Object.entries(details);
  if (rows.length && rows.every(([, value]) => typeof value?.message === "string")) {
    return el(
      "ul",
      {},
      rows.map(([name, value]) =>
        el("li", {}, el("strong", {}, name), `: ${value.message} `, el("code", {}, value.error)),
      ),
    );
  }
  return el("pre", { class: "code", tabindex: "0" }, JSON.stringify(details, null, 2));
}

function prettyJson(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** Text that only grows: what is new is appended, so that a long answer costs no more with each token. */
class GrowingText {
  constructor() {
    this.node = document.createTextNode("");
    this._shown = 0;
  }

  show(text) {
    if (text.length === this._shown) return;
    this.node.appendData(text.slice(this._shown));
    this._shown = text.length;
  }
}

export class AnswerView {
  /**
   * `codeOf()`: the sources for codeView. `alone`: no other model answers beside, so it may be read out while it comes.
   * `onStop()`: its own stop has been pressed.
   */
  constructor({ model, codeOf, alone, onStop }) {
    this._alone = alone;
    this._model = model;
    this._spoken = 0;
    this._spokenAt = 0;
    this._state = "";
    this._told = false;
    this._ended = false;
    this._text = new GrowingText();
    this._reasoning = new GrowingText();
    this._summary = el("summary", {}, "Reasoning");
    this._thinking = el(
      "details",
      { class: "disclosure thinking", hidden: true, open: true },
      this._summary,
      el("div", { class: "said", dataset: { part: "reasoning" } }, this._reasoning.node),
    );
    this._said = el("div", { class: "said", dataset: { part: "text" } }, this._text.node);
    this._rest = el("div", { class: "answer-rest" });
    this._badge = el("span", {});
    this._stop = iconButton(`Stop ${model}`, "stop", { small: true, hidden: true, onClick: onStop });
    this._stop.dataset.stop = model;
    this._how = el("p", { class: "answer-how" });
    this._values = {};
    const measures = MEASURES.map(([name, label]) => {
      this._values[name] = el("dd", { dataset: { measure: name } }, NONE);
      return el("div", {}, el("dt", {}, label), this._values[name]);
    });
    this._headers = el("dl", { class: "header-list" });
    this._copy = copyButton(() => this._text.node.data, "Copy the answer");
    this.node = el(
      "article",
      { class: "card answer", "aria-label": `Answer of ${model}`, dataset: { model } },
      el(
        "div",
        { class: "card-head" },
        el("h2", { class: "truncate", title: model }, model),
        this._badge,
        this._copy,
        this._stop,
      ),
      el(
        "div",
        { class: "card-body stack" },
        el("dl", { class: "measures" }, measures),
        this._thinking,
        this._said,
        this._rest,
        this._how,
        codeView("Headers, curl, Python", codeOf, "", this._headers).node,
      ),
    );
  }

  /** Show the answer as it is at `now_ms`; cheap enough for every frame. */
  show(answer, now_ms) {
    if (answer.state !== this._state) {
      this._state = answer.state;
      this.node.dataset.state = answer.state;
      replace(this._badge, stateBadge(answer.state));
      this._stop.hidden = answer.ended_ms !== null;
      this._copy.hidden = answer.ended_ms === null || answer.text === "";
    }
    this._text.show(answer.text);
    this._reasoning.show(answer.reasoning);
    if (answer.reasoning && this._thinking.hidden) this._thinking.hidden = false;
    this._measure(answer, now_ms);
    if (answer.headers && !this._told) {
      this._told = true;
      this._tellHeaders(answer.headers);
    }
    if (answer.ended_ms !== null) this._end(answer, now_ms);
    else if (this._alone) this._speak(answer.text, now_ms, false);
  }

  _measure(answer, now_ms) {
    const told = measuresOf(answer, now_ms);
    const about = told.estimated ? "≈ " : "";
    setText(this._values.ttft, duration(told.ttft_ms));
    setText(
      this._values.rate,
      told.tokens_per_s === null ? NONE : about + number(told.tokens_per_s, told.tokens_per_s < 10 ? 1 : 0),
    );
    setText(this._values.total, duration(told.total_ms));
    const out = told.completion_tokens === null ? NONE : about + number(told.completion_tokens, 0);
    setText(this._values.tokens, `${number(told.prompt_tokens, 0)} / ${out}`);
    if (told.reasoning_tokens) setText(this._summary, `Reasoning, ${number(told.reasoning_tokens, 0)} tokens`);
    setText(this._values.finish, answer.finish ?? NONE);
  }

  _tellHeaders(headers) {
    const rows = headersTold(headers);
    const by = Object.fromEntries(rows.map((row) => [row.label, row.value]));
    const attempts = Number(by.Attempts);
    const said = [
      by.Engine && `engine ${by.Engine}`,
      by.Fallback && `fallback ${by.Fallback.replaceAll("->", " → ")}`,
      attempts > 0 && `${attempts} ${attempts === 1 ? "attempt" : "attempts"}`,
      by.Cache && `cache ${by.Cache}`,
      by["Shared call"] && "shared call",
      by.Cost && usd(Number(by.Cost)),
    ].filter(Boolean);
    replace(
      this._headers,
      rows.map((row) => el("div", {}, el("dt", {}, row.name), el("dd", {}, row.value))),
    );
    setText(this._how, said.join(" · "));
  }

  _end(answer, now_ms) {
    if (this._ended) return;
    this._ended = true;
    if (answer.reasoning && answer.text) this._thinking.open = false;
    this._said.hidden = answer.text === "";
    replace(this._rest, [
      answer.refusal && el("div", { class: "said" }, el("strong", {}, "Refused: "), answer.refusal),
      answer.tools
        .filter(Boolean)
        .map((call) =>
          el(
            "div",
            { class: "tool" },
            el("p", { class: "small muted" }, "Tool call ", el("code", {}, call.name)),
            el("pre", { class: "code", tabindex: "0", dataset: { part: "tool" } }, prettyJson(call.arguments)),
          ),
        ),
      answer.state === "stopped" && el("p", { class: "small muted" }, "Stopped here; what had come stays."),
      answer.verification && verificationLine(answer.verification),
      answer.state === "done" &&
        !answer.text &&
        !answer.tools.length &&
        !answer.refusal &&
        el("p", { class: "muted" }, "The answer is empty."),
      answer.error && errorView(answer.error),
    ]);
    const told = measuresOf(answer, now_ms);
    if (this._alone) this._speak(answer.text, now_ms, true);
    const outcome = answer.error
      ? `failed: ${answer.error.message}`
      : `${answer.state === "stopped" ? "stopped" : "has answered"} after ${duration(told.total_ms)}`;
    if (!this._alone || !answer.text) announce(`${this._model} ${outcome}`);
  }

  _speak(text, now_ms, all) {
    if (!all && now_ms - this._spokenAt < SPEAK_MS) return;
    const upTo = spokenUpTo(text, this._spoken, all);
    if (upTo === this._spoken) return;
    announce(text.slice(this._spoken, Math.min(upTo, this._spoken + SPOKEN_MAX)));
    this._spoken = upTo;
    this._spokenAt = now_ms;
  }
}

function verificationLine(told) {
  const share = `${Math.round(told.agreement * 100)} % agree`;
  const tone = told.verified ? "good" : told.consensus ? "info" : "warn";
  const what = told.verified ? "Verified" : "Not verified";
  return el(
    "p",
    { class: "row" },
    badge(tone, what, told.verified ? "up" : "warn"),
    el(
      "span",
      { class: "small muted" },
      `${told.synthesis_strategy.replaceAll("_", " ")}, ${share}; chosen: ${told.details?.chosen ?? "none"}`,
    ),
  );
}
