// The weight of one engine of Admin: shown, changed, sent. What stands in the field is not taken back by a look at the
// gateway while it is being changed; what has been set is what the gateway says of it.

import { button, el, setAttr, setText, uniqueId } from "./ui.js";

export const WEIGHT_MAX = 1_000_000;

/** What a text says as a weight: `{weight}`, or `{fault}` with what it must be. */
export function weightOf(text) {
  const weight = /^\d{1,7}$/.test(text.trim()) ? Number(text) : 0;
  if (weight >= 1 && weight <= WEIGHT_MAX) return { weight };
  return { fault: `This must be a whole number from 1 to ${WEIGHT_MAX}.` };
}

export class WeightField {
  /** `name`: whose weight it is; `set(weight)`: sends it, and gives the weight that the engine has then, or throws. */
  constructor(name, set) {
    this._send = set;
    this._told = null; // the gateway's last word
    this._sending = false;
    this._fault = el("p", { class: "fault", id: uniqueId("weight-fault"), role: "alert", hidden: true });
    this._input = el("input", {
      class: "input",
      type: "number",
      name: "weight",
      min: 1,
      max: WEIGHT_MAX,
      step: 1,
      autocomplete: "off",
      "aria-label": `Weight of ${name}`,
      "aria-describedby": this._fault.id,
      on: {
        input: () => this._edited(),
        keydown: (event) => {
          if (event.key !== "Escape" || !this._isEdited()) return;
          event.stopPropagation();
          this._input.value = String(this._told);
          this._edited();
        },
      },
    });
    const attrs = { small: true, type: "submit", "aria-label": `Set the weight of ${name}`, dataset: { set: "" } };
    this._set = button("Set", attrs);
    this._form = el(
      "form",
      {
        class: "weight",
        novalidate: true, // what is wrong is said here, in the page's own way
        on: {
          submit: (event) => {
            event.preventDefault();
            this._submit();
          },
        },
      },
      this._input,
    );
    this.nodes = [this._form, this._fault];
  }

  /** The gateway says this. */
  show(weight) {
    const isEdited = this._isEdited();
    this._told = weight;
    if (!isEdited) this._input.value = String(weight);
    this._offer();
  }

  // What is no number at all reads as "".
  _isEdited() {
    return this._told !== null && (this._input.value !== String(this._told) || this._input.validity.badInput);
  }

  _edited() {
    this._say("");
    this._offer();
  }

  /** The button is there only while there is something to set. */
  _offer() {
    if (this._isEdited() === this._set.isConnected) return;
    if (this._set.isConnected) {
      if (document.activeElement === this._set) this._input.focus();
      this._set.remove();
    } else this._form.append(this._set);
  }

  _say(fault) {
    setText(this._fault, fault);
    this._fault.hidden = fault === "";
    setAttr(this._input, "aria-invalid", fault ? "true" : null);
  }

  async _submit() {
    if (this._sending || !this._isEdited()) return;
    const { weight, fault } = weightOf(this._input.value);
    if (fault) {
      this._say(fault);
      this._input.focus();
      return;
    }
    this._sending = true;
    this._say("");
    try {
      this._told = await this._send(weight);
      if (Number(this._input.value) === weight) this._input.value = String(this._told);
      this._offer();
    } catch (error) {
      if (!error.aborted) this._say(error.message || String(error));
    }
    this._sending = false;
  }
}
