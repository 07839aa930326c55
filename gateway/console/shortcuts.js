// Keyboard shortcuts: one listener, a list that the help dialog shows. Single keys can be switched off there (and are
// off while something is being written), since speech input and screen readers press them by accident.
//
//   shortcuts.shell([{keys: "?", label, run}]); shortcuts.page(title, [{keys: "p", label, run}]) -> replaces the page's
//   {keys: "↑ ↓", label, told: true}: shown in the help, handled by the page itself
//   shortcuts.help(): the dialog

import { el, replace } from "./ui.js";

const STORED = "console-shortcuts";
const WRITING = "input:not([type=checkbox]):not([type=radio]):not([type=range]), textarea, select, [contenteditable]";

export class Shortcuts {
  constructor() {
    this._shell = [];
    this._page = { title: "", list: [] };
    this._dialog = document.getElementById("help-dialog");
    this._on = document.getElementById("shortcuts-on");
    try {
      this._on.checked = window.localStorage.getItem(STORED) !== "off";
    } catch {
      // Storage is forbidden: they are on.
    }
    this._on.addEventListener("change", () => {
      try {
        window.localStorage.setItem(STORED, this._on.checked ? "on" : "off");
      } catch {
        // As above.
      }
    });
    document.getElementById("help-close").addEventListener("click", () => this._dialog.close());
    document.addEventListener("keydown", (event) => this._press(event));
  }

  shell(list) {
    this._shell = list;
  }

  page(title, list) {
    this._page = { title, list };
  }

  help() {
    const group = (title, list) =>
      list.length > 0 &&
      el(
        "div",
        { class: "shortcut-group" },
        el("h3", {}, title),
        list.map(({ keys, label }) => [
          el("span", {}, label),
          el("span", { class: "shortcut-keys" }, keys.split(" ").map((key) => el("kbd", {}, key))),
        ]),
      );
    replace(
      document.getElementById("help-list"),
      group("Everywhere", this._shell),
      group(this._page.title, this._page.list),
    );
    if (!this._dialog.open) this._dialog.showModal();
  }

  _press(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (!this._on.checked || event.target.closest(WRITING) || document.querySelector("dialog[open]")) return;
    const found = [...this._page.list, ...this._shell].find(({ keys, told }) => !told && keys === event.key);
    if (!found) return;
    event.preventDefault();
    found.run();
  }
}
