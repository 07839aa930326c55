// Verify: one task to several models, what their programs do, who agrees with whom, and what was chosen.
//
// Owns the form's texts and the last answer, in this module's memory only; whoever signs in with another key begins anew.

import { toldBy } from "./ask.js";
import { errorView } from "./answerview.js";
import { codeView } from "./codeview.js";
import { duration } from "./format.js";
import { memberCards, verdictCard } from "./memberview.js";
import { Fields, ModelList, area, input } from "./playform.js";
import { curlOf, pythonPost } from "./snippets.js";
import { announce, button, el, empty, notice, replace, setText } from "./ui.js";
import { START, bodyOf, verdictOf } from "./verdict.js";

const PATH = "api/v1/inference";
const MODELS_MAX = 32; // as the gateway has it
const EXAMPLE =
  "Write a Python function is_leap(year) that says whether a year is a leap year.\nis_leap(2000) == True\nis_leap(1900) == False";

const fresh = (owner) => ({ owner, form: { ...START }, chosen: null, asked: null, answer: null });
let kept = fresh(null);

class Verify {
  constructor(root, context, models) {
    this._api = context.api;
    this._controller = null;
    this._signal = context.signal;
    // A model that is made of others is no member.
    const members = models.filter((model) => !model.members);
    const usable = members.filter((model) => model.available).slice(0, MODELS_MAX);
    const chosen = (kept.chosen ?? usable.map((model) => model.id)).filter((name) =>
      members.some((model) => model.id === name),
    );
    this.fields = new Fields("verify");
    this.models = new ModelList(members, {
      id: "verify-models",
      most: MODELS_MAX,
      chosen,
      onChange: () => this._keep(),
      legend: "Members",
      hint: "They are asked at the same time; three or more can have a majority.",
    });
    this._build(root);
    this.fields.fill(kept.form);
    if (kept.answer) this._show(kept.answer);
    this._sync();
    document.addEventListener("keydown", (event) => this._press(event), { signal: this._signal });
    this._signal.addEventListener("abort", () => this.stop());
  }

  _build(root) {
    const add = (...field) => this.fields.add(...field);
    const run = button("Verify", {
      icon: "verify",
      kind: "primary",
      id: "verify-run",
      type: "submit",
      title: "Verify (Ctrl + Enter)",
    });
    this._run = run;
    this._stop = button("Stop", { icon: "stop", id: "verify-stop", title: "Stop (Esc)", onClick: () => this.stop() });
    this._fault = el("div", { id: "verify-fault" });
    this._clock = el("span", { class: "muted" });
    this._progress = el(
      "div",
      { class: "row", id: "verify-progress", hidden: true },
      el("span", { class: "spinner", "aria-hidden": "true" }),
      this._clock,
    );
    this._code = codeView("curl and Python", () => this._codeOf(), "verify-code");
    this._place = el("div", { class: "stack", id: "verify-result" });
    const form = el(
      "form",
      {
        class: "card play-form",
        id: "verify-form",
        "aria-label": "What to verify",
        novalidate: true,
        on: {
          submit: (event) => {
            event.preventDefault();
            this.run();
          },
          input: () => this._keep(),
        },
      },
      el(
        "div",
        { class: "card-body stack" },
        add(
          "prompt",
          "Task",
          area(7, { placeholder: EXAMPLE, spellcheck: "true" }),
          "Examples in it count: f(1) == 2, >>> f(1), “Input: … Output: …”.",
        ),
        this.models.node,
        add(
          "tests",
          "Tests (optional)",
          area(4, { class: "textarea mono short", placeholder: "assert add(1, 2) == 3" }),
          'A program that asserts something, or a JSON list of such programs and of {"input": …, "output": …}.',
        ),
        el(
          "details",
          { class: "disclosure", id: "verify-more" },
          el("summary", {}, "More"),
          el(
            "div",
            { class: "stack" },
            add(
              "inputs",
              "Other inputs to compare on",
              area(2, { class: "textarea mono short", placeholder: "[[1, 2], [3, 4]]" }),
              "JSON: a list of arguments for each call.",
            ),
            add(
              "entry_point",
              "Function",
              input({ class: "input mono", placeholder: "where the task does not say it" }),
            ),
            add("system", "System message", area(2, { class: "textarea short" })),
            el(
              "div",
              { class: "pairs" },
              add("temperature", "Temperature", input({ inputmode: "decimal", placeholder: "0.7" })),
              add("max_tokens", "Max tokens", input({ inputmode: "numeric", placeholder: "2048" })),
              add("timeout", "Time of a run, s", input({ inputmode: "decimal", placeholder: "the gateway’s" })),
            ),
            el(
              "div",
              { class: "stack" },
              this.fields.addCheck("execute_code", "Run the programs"),
              this.fields.addCheck("verify", "Compare the answers"),
            ),
          ),
        ),
        this._code.node,
      ),
      el("div", { class: "card-foot" }, this._fault, el("div", { class: "row" }, run, this._stop, this._progress)),
    );
    replace(
      root,
      el(
        "div",
        { class: "page" },
        el("div", { class: "page-head" }, el("h1", {}, "Verify")),
        el(
          "div",
          { class: "play" },
          form,
          el("section", { class: "play-main", "aria-label": "Result", "aria-busy": "false" }, this._place),
        ),
      ),
    );
    this._section = this._place.parentNode;
    replace(
      this._place,
      empty(
        "Nothing verified yet",
        el(
          "p",
          {},
          "Several models write a program for the same task. The gateway runs what they wrote in a sandbox on the same inputs, and says which of them do the same.",
        ),
      ),
    );
  }

  _keep() {
    kept.form = this.fields.values();
    kept.chosen = this.models.chosen();
    this.models.fault("");
    this._code.refresh();
  }

  _codeOf() {
    const { body } = bodyOf({ ...this.fields.values(), models: this.models.chosen() });
    const withKey = this._api.key !== "";
    const url = this._api.url(PATH);
    return [
      { label: "curl", text: curlOf(url, body, withKey) },
      { label: "Python", text: pythonPost(url, body, withKey) },
    ];
  }

  _press(event) {
    if (document.querySelector("dialog[open]") || event.isComposing) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.run();
    } else if (event.key === "Escape" && this._controller) {
      event.preventDefault();
      this.stop();
    }
  }

  run() {
    if (this._controller) return;
    const { body, faults } = bodyOf({ ...this.fields.values(), models: this.models.chosen() });
    this.fields.clearFaults();
    for (const { field, message } of faults) {
      if (field === "models") this.models.fault(message);
      else this.fields.fault(field, message);
    }
    replace(this._fault, faults.length ? notice("bad", `${faults.map((fault) => fault.message).join("; ")}.`) : null);
    if (faults.length) this.fields.focusFault();
    else this._ask(body);
  }

  /** Ask again exactly as the answer that is shown was asked for. */
  again() {
    if (!this._controller && kept.asked) this._ask(kept.asked);
  }

  async _ask(body) {
    const controller = new AbortController();
    this._controller = controller;
    const started_ms = performance.now();
    const tick = () =>
      setText(this._clock, `Asking ${body.models.length}, ${duration(performance.now() - started_ms)}`);
    tick();
    const ticking = setInterval(tick, 200);
    this._sync();
    announce(`Asking ${body.models.join(", ")}`);
    let shown;
    try {
      kept.answer = await this._api.post(PATH, body, { signal: controller.signal });
      kept.asked = body;
      shown = () => this._show(kept.answer);
    } catch (error) {
      shown = () => this._fail(error, body);
    }
    clearInterval(ticking);
    this._controller = null;
    if (this._signal.aborted) return;
    this._sync();
    shown();
    // Where the form stands above the result, the latter would come unseen.
    if (window.matchMedia("(max-width: 60rem)").matches) this._section.scrollIntoView({ block: "start" });
  }

  _show(answer) {
    const again = button("Run again", { icon: "refresh", id: "verify-again", onClick: () => this.again() });
    const inputs = button("Compare on other inputs", { id: "verify-other", onClick: () => this._otherInputs() });
    replace(
      this._place,
      verdictCard(answer, [again, inputs]),
      memberCards(answer),
      el("p", { class: "small muted" }, "Request id ", el("code", { dataset: { requestId: "" } }, answer.request_id)),
    );
    announce(verdictOf(answer).title);
  }

  /** The API runs no program by itself: to see them on other input, the whole is asked again, with these inputs. */
  _otherInputs() {
    this.fields.fill({ ...this.fields.values(), prompt: kept.asked.prompt });
    document.getElementById("verify-more").open = true;
    this.fields.control("inputs").focus();
  }

  _fail(error, body) {
    if (error.aborted) {
      replace(this._place, notice("warn", "Stopped. Nothing is told of a verification that has not ended."));
      announce("Stopped");
      return;
    }
    const told = toldBy(error);
    if (
      told.param &&
      !this.fields.fault(told.param.replace(/[.[].*/, ""), told.message) &&
      told.param.startsWith("execution_config")
    ) {
      this.fields.fault("timeout", told.message);
    }
    const retry = button("Run again", {
      icon: "refresh",
      id: "verify-again",
      onClick: () => !this._controller && this._ask(body),
    });
    replace(
      this._place,
      el(
        "section",
        { class: "card", id: "verify-failed" },
        el(
          "div",
          { class: "card-body stack" },
          el("h2", {}, "There is no result"),
          errorView(told),
          el("div", { class: "row" }, retry),
        ),
      ),
    );
    announce(`Failed: ${told.message}`);
  }

  _sync() {
    const running = this._controller !== null;
    this._run.disabled = running;
    this._stop.hidden = !running;
    this._progress.hidden = !running;
    this._section.setAttribute("aria-busy", String(running));
    for (const node of this._place.querySelectorAll("#verify-again, #verify-other")) node.disabled = running;
  }

  stop() {
    this._controller?.abort();
  }
}

export const page = {
  id: "verify",
  title: "Verify",
  permission: "verify",
  async mount(root, context) {
    if (kept.owner !== context.api.key) kept = fresh(context.api.key);
    const { signal } = context;
    const { data } = await context.api.get("v1/models", { signal });
    if (signal.aborted) return; // left meanwhile
    if (!data.some((model) => !model.members)) {
      replace(
        root,
        el("div", { class: "page" }, el("h1", {}, "Verify"), empty("There is no model that this key may ask")),
      );
      return;
    }
    const shown = new Verify(root, context, data);
    context.shortcuts([
      { keys: "Ctrl Enter", label: "Verify", told: true },
      { keys: "Esc", label: "Stop", told: true },
      { keys: "r", label: "Run again", run: () => shown.again() },
    ]);
  },
};
