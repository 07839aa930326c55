// The Playground's form: models, the system's message, parameters. Owns its fields and which of them are at fault.

import { codeView } from "./codeview.js";
import { badge, el, field, setAttr, setText } from "./ui.js";

const MODELS_MAX = 4; // side by side
const FILTERED_FROM = 10; // more models than that can be looked for

const NUMBERS = [
  ["temperature", "Temperature", "0 to 2", "decimal"],
  ["top_p", "Top p", "0 to 1", "decimal"],
  ["max_tokens", "Max tokens", "no limit", "numeric"],
  ["seed", "Seed", "none", "numeric"],
];
export const START = {
  system: "",
  temperature: "",
  top_p: "",
  max_tokens: "",
  seed: "",
  stop: "",
  format: "text",
  schema: "",
  extra: "",
  stream: true,
};

/** The list of models to choose from, as checkboxes; at most `most` at a time. */
export class ModelList {
  constructor(models, { id, most, chosen, onChange, legend, hint }) {
    this._most = most;
    this._boxes = models.map((model, index) =>
      el("input", {
        type: "checkbox",
        id: `${id}-${index}`,
        value: model.id,
        dataset: { model: model.id },
        on: {
          change: () => {
            this._bound();
            onChange();
          },
        },
      }),
    );
    this._rows = models.map((model, index) =>
      el(
        "label",
        { class: "check model-choice", dataset: { name: model.id.toLowerCase() }, for: this._boxes[index].id },
        this._boxes[index],
        el("span", { class: "truncate", title: model.id }, model.id),
        model.members && badge("info", `of ${model.members.length}`),
        !model.available && badge("bad", "Out", "out"),
      ),
    );
    this._fault = el("p", { class: "fault", hidden: true, role: "alert" });
    const filter =
      models.length > FILTERED_FROM &&
      el("input", {
        class: "input",
        type: "search",
        id: `${id}-filter`,
        placeholder: "Find a model",
        "aria-label": "Find a model",
        autocomplete: "off",
        on: {
          input: (event) => {
            event.stopPropagation();
            this._filter(event.target.value.trim().toLowerCase());
          },
        },
      });
    this.node = el(
      "fieldset",
      { class: "choices", id },
      el("legend", {}, legend),
      el("p", { class: "hint" }, hint),
      filter,
      el("div", { class: "choice-list" }, this._rows),
      this._fault,
    );
    this.choose(chosen);
  }

  chosen() {
    return this._boxes.filter((box) => box.checked).map((box) => box.value);
  }

  choose(names) {
    for (const box of this._boxes) box.checked = names.includes(box.value);
    this._bound();
  }

  /** Those that are chosen stay in sight. */
  _filter(text) {
    for (const [index, row] of this._rows.entries())
      row.hidden = !row.dataset.name.includes(text) && !this._boxes[index].checked;
  }

  _bound() {
    const full = this.chosen().length >= this._most;
    for (const box of this._boxes) box.disabled = full && !box.checked;
  }

  fault(message) {
    setText(this._fault, message);
    this._fault.hidden = message === "";
  }
}

/** A form whose controls are known by name: their texts, and what is wrong with them. */
export class Fields {
  constructor(prefix) {
    this._prefix = prefix;
    this._controls = new Map();
    this._faults = new Map();
  }

  /** A control with its label, hint and a place for its fault. */
  add(name, label, control, hint = "") {
    control.id = `${this._prefix}-${name}`;
    control.name = name;
    const node = field(label, control, hint);
    const fault = el("p", { class: "fault", id: `${control.id}-fault`, hidden: true });
    node.append(fault);
    const described = [control.getAttribute("aria-describedby"), fault.id].filter(Boolean).join(" ");
    control.setAttribute("aria-describedby", described);
    control.addEventListener("input", () => this.fault(name, ""));
    this._controls.set(name, control);
    this._faults.set(name, fault);
    return node;
  }

  /** A checkbox with its label. */
  addCheck(name, label) {
    const box = el("input", { type: "checkbox", id: `${this._prefix}-${name}`, name });
    this._controls.set(name, box);
    return el("label", { class: "check" }, box, el("span", {}, label));
  }

  control(name) {
    return this._controls.get(name);
  }

  values() {
    const read = ([name, control]) => [name, control.type === "checkbox" ? control.checked : control.value];
    return Object.fromEntries([...this._controls].map(read));
  }

  fill(values) {
    for (const [name, control] of this._controls) {
      if (values[name] === undefined) continue;
      if (control.type === "checkbox") control.checked = values[name];
      else control.value = values[name];
    }
  }

  /** Say what is wrong with a field; "" takes it back. False: there is no such field. */
  fault(name, message) {
    const place = this._faults.get(name);
    if (!place) return false;
    setText(place, message);
    place.hidden = message === "";
    const control = this._controls.get(name);
    setAttr(control, "aria-invalid", message ? "true" : null);
    const around = message && control.closest("details");
    if (around) around.open = true;
    return true;
  }

  /** Go to the first field that is at fault, if there is one. */
  focusFault() {
    [...this._controls.values()].find((control) => control.getAttribute("aria-invalid") === "true")?.focus();
  }

  clearFaults() {
    for (const name of this._faults.keys()) this.fault(name, "");
  }
}

export const input = (attrs = {}) =>
  el("input", { class: "input", autocomplete: "off", spellcheck: "false", ...attrs });
export const area = (rows, attrs = {}) => el("textarea", { class: "textarea", rows, spellcheck: "false", ...attrs });
export const select = (options, attrs = {}) =>
  el(
    "select",
    { class: "select", ...attrs },
    options.map(([value, label]) => el("option", { value }, label)),
  );

export class PlayForm {
  /** `codeOf()`: the sources of the code for the form as it stands; `onChange()`: something in it has changed. */
  constructor({ models, values, chosen, codeOf, onChange }) {
    const fields = new Fields("play");
    this.fields = fields;
    this.models = new ModelList(models, {
      id: "play-models",
      most: MODELS_MAX,
      chosen,
      onChange,
      legend: "Models",
      hint: `Up to ${MODELS_MAX} answer side by side.`,
    });
    const numbers = NUMBERS.map(([name, label, hint, inputmode]) =>
      fields.add(name, label, input({ inputmode, placeholder: hint })),
    );
    const format = select([
      ["text", "Text"],
      ["json_object", "JSON"],
      ["json_schema", "JSON that fits a schema"],
    ]);
    this._schema = fields.add(
      "schema",
      "Schema",
      area(5, { class: "textarea mono", placeholder: '{"type": "object", …}' }),
      "JSON Schema, or an object with “name” and “schema”.",
    );
    const code = codeView("curl and Python", codeOf, "play-code");
    this._code = code;
    this.node = el(
      "form",
      { class: "card play-form", id: "play-form", "aria-label": "What to ask with", novalidate: true },
      el(
        "div",
        { class: "card-body stack" },
        this.models.node,
        fields.add(
          "system",
          "System message",
          area(2, { class: "textarea short", placeholder: "How the model is to answer", spellcheck: "true" }),
        ),
        el(
          "details",
          { class: "disclosure", id: "play-parameters", open: window.matchMedia("(min-width: 60rem)").matches },
          el("summary", {}, "Parameters"),
          el(
            "div",
            { class: "stack" },
            el("div", { class: "pairs" }, numbers),
            fields.add(
              "stop",
              "Stop sequences",
              area(2, { class: "textarea mono short" }),
              "One on each line; \\n stands for a line’s end.",
            ),
            fields.add("format", "Answer’s format", format),
            this._schema,
            fields.add(
              "extra",
              "Other fields",
              area(2, { class: "textarea mono short", placeholder: '{"n": 1}' }),
              "A JSON object; it goes into the body as it is.",
            ),
            fields.addCheck("stream", "Stream the answer"),
          ),
        ),
        code.node,
      ),
    );
    fields.fill({ ...START, ...values });
    this._showSchema();
    this.node.addEventListener("submit", (event) => event.preventDefault());
    this.node.addEventListener("input", () => {
      this._showSchema();
      onChange();
    });
  }

  _showSchema() {
    this._schema.hidden = this.fields.control("format").value !== "json_schema";
  }

  values() {
    return this.fields.values();
  }

  fill(values, chosen) {
    this.fields.fill(values);
    this.models.choose(chosen);
    this._showSchema();
  }

  refreshCode() {
    this._code.refresh();
  }
}
