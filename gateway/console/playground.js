// The Playground: one prompt to one to four models, their answers side by side as they come.
//
// Owns the conversation and the earlier runs, in this module's memory only; whoever signs in with another key begins anew.
// What is under way ends when the page is left.

import { ask } from "./ask.js";
import { AnswerView } from "./answerview.js";
import { fieldsOf, measuresOf, messagesOf } from "./chat.js";
import { clock, duration, number } from "./format.js";
import { PlayForm, START, area } from "./playform.js";
import { curlOf, pythonChat } from "./snippets.js";
import { announce, button, el, empty, notice, replace, setText } from "./ui.js";

const RUNS_MAX = 50;
const SHOW_MS = 50; // between two looks at what has come

const fresh = (owner) => ({ owner, form: { ...START }, chosen: null, prompt: "", turns: [], runs: [] });
let kept = fresh(null);

/** What is shown until `context.signal` is aborted. */
class Playground {
  constructor(root, context, models) {
    this._api = context.api;
    this._running = new Map(); // model -> AbortController
    this._signal = context.signal;
    const chosen = (kept.chosen ?? [models.find((model) => model.available)?.id ?? models[0].id]).filter((name) =>
      models.some((model) => model.id === name),
    );
    this.form = new PlayForm({
      models,
      values: kept.form,
      chosen,
      codeOf: () => this._codeOfForm(),
      onChange: () => this._keep(),
    });
    this._build(root);
    for (const turn of kept.turns) this._showTurn(turn);
    this._sync();
    this._showRuns();
    document.addEventListener("keydown", (event) => this._press(event), { signal: this._signal });
    this._signal.addEventListener("abort", () => this.stopAll());
  }

  _build(root) {
    this._prompt = area(2, { id: "play-prompt", placeholder: "Ask something", spellcheck: "true" });
    this._prompt.value = kept.prompt;
    this._prompt.addEventListener("input", () => this._keep());
    this._send = button("Send", {
      icon: "play",
      kind: "primary",
      id: "play-send",
      type: "submit",
      title: "Send (Ctrl + Enter)",
    });
    this._stop = button("Stop", {
      icon: "stop",
      id: "play-stop-all",
      title: "Stop all (Esc)",
      onClick: () => this.stopAll(),
    });
    this._new = button("New conversation", {
      icon: "plus",
      kind: "ghost",
      small: true,
      id: "play-new",
      onClick: () => this._begin(),
    });
    this._fault = el("div", { id: "play-fault" });
    this._place = el("div", { class: "turns", id: "play-turns" });
    this._empty = empty(
      "No answer yet",
      el(
        "p",
        {},
        "Choose models, write a prompt, and press Ctrl + Enter. The conversation is kept in this page’s memory only.",
      ),
    );
    this._runs = el("ol", { class: "runs", id: "play-runs" });
    this._runsBox = el(
      "details",
      { class: "disclosure card card-body", id: "play-history" },
      el("summary", {}, "Earlier runs"),
      this._runs,
    );
    this._note = el("p", { class: "hint grow", id: "play-note" });
    this._prompt.setAttribute("aria-describedby", "play-note");
    const composer = el(
      "form",
      {
        class: "card composer",
        id: "play-composer",
        on: {
          submit: (event) => {
            event.preventDefault();
            this.send();
          },
        },
      },
      this._fault,
      el(
        "div",
        { class: "composer-row" },
        el("label", { class: "visually-hidden", for: "play-prompt" }, "Prompt"),
        this._prompt,
        el("div", { class: "composer-end" }, this._send, this._stop),
      ),
      el("div", { class: "row" }, this._note, this._new),
    );
    replace(
      root,
      el(
        "div",
        { class: "page" },
        el("div", { class: "page-head" }, el("h1", {}, "Playground")),
        el(
          "div",
          { class: "play" },
          this.form.node,
          el(
            "section",
            { class: "play-main", "aria-label": "Conversation" },
            this._empty,
            this._place,
            el("div", { class: "composer-place" }, composer),
            this._runsBox,
          ),
        ),
      ),
    );
  }

  _keep() {
    kept.form = this.form.values();
    kept.chosen = this.form.models.chosen();
    kept.prompt = this._prompt.value;
    this.form.models.fault("");
    this.form.refreshCode();
    this._sync();
  }

  _press(event) {
    if (document.querySelector("dialog[open]") || event.isComposing) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.send();
    } else if (event.key === "Escape" && this._running.size) {
      event.preventDefault();
      this.stopAll();
    }
  }

  /** The body that a model is asked with: its own answers of the earlier turns are its conversation. */
  _body(model, prompt, values, fields) {
    const turns = kept.turns.flatMap((turn) => {
      const found = turn.answers.get(model);
      return found ? [{ prompt: turn.prompt, answer: found.answer }] : [];
    });
    return { model, messages: messagesOf(values.system, turns, prompt), ...fields };
  }

  _code(body) {
    const withKey = this._api.key !== "";
    const origin = this._api.url("").replace(/\/$/, "");
    return [
      { label: "curl", text: curlOf(`${origin}/v1/chat/completions`, body, withKey) },
      { label: "Python", text: pythonChat(origin, body, withKey) },
    ];
  }

  _codeOfForm() {
    const values = this.form.values();
    const model = this.form.models.chosen()[0] ?? "";
    return this._code(this._body(model, this._prompt.value, values, fieldsOf(values).fields));
  }

  send() {
    if (this._running.size) return;
    const values = this.form.values();
    const prompt = this._prompt.value;
    const models = this.form.models.chosen();
    const { fields, faults } = fieldsOf(values);
    this.form.fields.clearFaults();
    this.form.models.fault(models.length ? "" : "Choose at least one model.");
    for (const { field: name, message } of faults) this.form.fields.fault(name, message);
    const said = [
      ...(prompt.trim() ? [] : ["The prompt is missing"]),
      ...(models.length ? [] : ["no model is chosen"]),
      ...faults.map((fault) => fault.message),
    ];
    replace(this._fault, said.length ? notice("bad", `${said.join("; ")}.`) : null);
    if (said.length) {
      if (prompt.trim()) this.form.fields.focusFault();
      else this._prompt.focus();
      return;
    }
    const turn = { prompt, models, form: values, at_s: Date.now() / 1000, answers: new Map() };
    const bodies = models.map((model) => this._body(model, prompt, values, fields));
    for (const [index, model] of models.entries()) turn.answers.set(model, { body: bodies[index], answer: null });
    kept.turns.push(turn);
    kept.runs.unshift(turn);
    kept.runs.splice(RUNS_MAX);
    this._prompt.value = "";
    this._keep();
    announce(`Sent to ${models.join(", ")}`);
    const { node, views } = this._showTurn(turn);
    for (const model of models) this._ask(model, turn.answers.get(model), views.get(model));
    this._sync();
    this._showRuns();
    node.scrollIntoView({ block: "start" });
  }

  async _ask(model, entry, view) {
    const controller = new AbortController();
    let wanted = 0;
    const show = () => {
      wanted = 0;
      view.show(entry.answer, performance.now());
    };
    const changed = (answer) => {
      entry.answer = answer;
      wanted ||= setTimeout(show, SHOW_MS);
    };
    // While nothing comes, the time goes on.
    const ticking = setInterval(() => entry.answer && show(), 250);
    this._running.set(model, controller);
    await ask(this._api, entry.body, { signal: controller.signal, changed });
    clearInterval(ticking);
    clearTimeout(wanted);
    this._running.delete(model);
    show();
    if (this._signal.aborted) return;
    const { error } = entry.answer;
    if (error?.param) this.form.fields.fault(error.param, error.message);
    this._sync();
    this._showRuns();
  }

  /** Put a turn below the others: what was asked, and the answers side by side. Its node, and the views by model. */
  _showTurn(turn) {
    const views = new Map();
    for (const model of turn.models) {
      const entry = turn.answers.get(model);
      const view = new AnswerView({
        model,
        alone: turn.models.length === 1,
        codeOf: () => this._code(entry.body),
        onStop: () => this._running.get(model)?.abort(),
      });
      views.set(model, view);
      if (entry.answer) view.show(entry.answer, performance.now());
    }
    const node = el(
      "section",
      { class: "turn", "aria-label": `Turn ${this._place.children.length + 1}` },
      el("div", { class: "asked" }, el("span", { class: "visually-hidden" }, "You: "), turn.prompt),
      el(
        "div",
        { class: "answers", dataset: { count: String(turn.models.length) } },
        [...views.values()].map((view) => view.node),
      ),
    );
    this._place.append(node);
    return { node, views };
  }

  stopAll() {
    for (const controller of this._running.values()) controller.abort();
  }

  _begin() {
    this.stopAll();
    kept.turns = [];
    replace(this._place);
    replace(this._fault);
    this._sync();
    this._prompt.focus();
  }

  /** Show what can be done now. */
  _sync() {
    const running = this._running.size;
    this._send.disabled = running > 0;
    this._stop.hidden = running === 0;
    setText(this._stop.lastChild, running > 1 ? `Stop all ${running}` : "Stop");
    this._new.hidden = kept.turns.length === 0;
    this._empty.hidden = kept.turns.length > 0;
    this._place.hidden = kept.turns.length === 0;
    const chosen = this.form.models.chosen().length;
    const going = kept.turns.length ? "Conversation goes on" : "New conversation";
    replace(
      this._note,
      el("span", { class: "keys" }, `${going} · `),
      `${chosen} ${chosen === 1 ? "model" : "models"}`,
      el("span", { class: "keys" }, ` · Ctrl + Enter sends${running ? ", Esc stops" : ""}`),
    );
  }

  /** Not with each key that is pressed: there are up to RUNS_MAX of them. */
  _showRuns() {
    this._runsBox.hidden = kept.runs.length === 0;
    replace(
      this._runs,
      kept.runs.map((turn) => this._run(turn)),
    );
  }

  _run(turn) {
    const told = turn.models.map((model) => {
      const { answer } = turn.answers.get(model);
      if (!answer) return model;
      const { total_ms: total, tokens_per_s: rate } = measuresOf(answer, performance.now());
      const speed = rate === null ? "" : `, ${number(rate, 0)} tokens/s`;
      return answer.ended_ms === null ? `${model}: under way` : `${model}: ${answer.state}, ${duration(total)}${speed}`;
    });
    return el(
      "li",
      {},
      el(
        "div",
        { class: "grow" },
        el("p", { class: "truncate" }, turn.prompt.trim().split("\n")[0]),
        el("p", { class: "small muted" }, `${clock(turn.at_s)} · ${told.join(" · ")}`),
      ),
      button("Use again", { small: true, onClick: () => this._useAgain(turn) }),
    );
  }

  _useAgain(turn) {
    this.form.fill(turn.form, turn.models);
    this._prompt.value = turn.prompt;
    this._keep();
    this._prompt.focus();
  }
}

export const page = {
  id: "playground",
  title: "Playground",
  permission: "infer",
  async mount(root, context) {
    if (kept.owner !== context.api.key) kept = fresh(context.api.key);
    const { signal } = context;
    const { data } = await context.api.get("v1/models", { signal });
    if (signal.aborted) return; // left meanwhile
    if (!data.length) {
      replace(
        root,
        el("div", { class: "page" }, el("h1", {}, "Playground"), empty("There is no model that this key may ask")),
      );
      return;
    }
    new Playground(root, context, data);
    context.shortcuts([
      { keys: "Ctrl Enter", label: "Send", told: true },
      { keys: "Esc", label: "Stop all answers", told: true },
      { keys: "i", label: "Write a prompt", run: () => document.getElementById("play-prompt").focus() },
    ]);
  },
};
