// The card of the keys: the list, and dialogs to make, rotate and revoke one. A new secret is shown once, in a dialog,
// and is in the document only as long as that is open.

import { card, cell, table } from "./admincards.js";
import { toldBy } from "./ask.js";
import { errorView } from "./answerview.js";
import { dateTime, number, usd } from "./format.js";
import { Fields, input, select } from "./playform.js";
import { badge, button, confirm, copyButton, el, empty, iconButton, notice, replace, toast, uniqueId } from "./ui.js";
import { keyBody } from "./usage.js";

const STATES = {
  active: ["good", "Active", "up"],
  expired: ["warn", "Expired", "warn"],
  revoked: ["mute", "Revoked", "out"],
  rotated: ["warn", "Rotated", "refresh"],
};
const ROLES = ["user", "viewer", "admin"];

/** A key's limits in few words. */
function limitsOf(key) {
  const said = [
    key.rpm !== null && `${number(key.rpm, 0)} requests/min`,
    key.tpm !== null && `${number(key.tpm, 0)} tokens/min`,
    key.concurrency !== null && `${number(key.concurrency, 0)} at once`,
  ].filter(Boolean);
  return said.length ? said.join(" · ") : "the gateway’s own";
}

/** A dialog of its own, in the document while it is open; `onClose` follows its end, however it ends. */
function openDialog(id, title, body, onClose = () => {}) {
  const titleId = uniqueId("dialog");
  const close = iconButton("Close", "close", { small: true, onClick: () => dialog.close() });
  const dialog = el(
    "dialog",
    { class: "dialog wide", id, "aria-labelledby": titleId },
    el("div", { class: "stack" }, el("div", { class: "dialog-head" }, el("h2", { id: titleId }, title), close), body),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    onClose();
  });
  document.getElementById("page-admin").append(dialog);
  dialog.showModal();
  return dialog;
}

export class KeysCard {
  /** `onKeys(keys)`: the list has been read anew. */
  constructor({ api, signal, open }, keys, onKeys) {
    this._api = api;
    this._signal = signal;
    this._open = open;
    this._onKeys = onKeys;
    this._body = el("div", {});
    this._make = button("New key", {
      icon: "plus",
      kind: "primary",
      small: true,
      id: "keys-new",
      onClick: () => this._create(),
    });
    this._revoked = el("input", { type: "checkbox", id: "keys-revoked", on: { change: () => this._show() } });
    const tools = [el("label", { class: "check small" }, this._revoked, el("span", {}, "Show revoked")), this._make];
    this._card = card(
      "admin-keys",
      "Keys",
      tools,
      this._body,
      el(
        "p",
        { class: "hint card-note" },
        "Keys of the settings (API_KEYS, ADMIN_KEYS) and tokens from elsewhere are not listed; their use is. Limits are set when a key is made: for others, make another key.",
      ),
    );
    this.node = this._card.node;
    this._keys = keys;
    this._show();
    signal.addEventListener("abort", () =>
      document.querySelectorAll("#page-admin dialog").forEach((dialog) => dialog.close()),
    );
  }

  async refresh() {
    try {
      this._keys = (await this._api.get("admin/keys", { signal: this._signal })).keys;
      this._card.fail(null);
      this._show();
      this._onKeys(this._keys);
    } catch (error) {
      if (!error.aborted) this._card.fail(error);
    }
  }

  _show() {
    const shown = this._keys.filter((key) => this._revoked.checked || key.state !== "revoked");
    const rows = shown.map((key) => this._row(key));
    const columns = [["Name"], ["State"], ["Models"], ["Limits"], ["Budget"], ["Created"], ["Expires"], [""]];
    const hidden = this._keys.length - shown.length;
    const none = empty(
      hidden ? "No key is good" : "No key is kept",
      el("p", {}, hidden ? `${hidden} revoked` : this._open ? "The first one makes the gateway ask everybody for a key." : "What is made here is kept in STATE_DB."),
    );
    replace(this._body, rows.length ? table("Keys", columns, rows) : none);
  }

  _row(key) {
    const [tone, label, icon] = STATES[key.state] ?? ["mute", key.state, "info"];
    const actions =
      key.state === "revoked"
        ? null
        : el(
            "div",
            { class: "row" },
            button("Rotate", { small: true, "aria-label": `Rotate ${key.name}`, onClick: () => this._rotate(key) }),
            button("Revoke", {
              small: true,
              kind: "danger",
              "aria-label": `Revoke ${key.name}`,
              onClick: () => this._revoke(key),
            }),
          );
    const grace =
      key.previous_key_until &&
      el("div", { class: "small muted" }, `the old secret until ${dateTime(key.previous_key_until)}`);
    return el(
      "tr",
      { dataset: { key: key.name, state: key.state } },
      cell(
        "Name",
        "",
        el("strong", { class: "anywhere" }, key.name),
        el(
          "div",
          { class: "small muted" },
          [key.role, key.priority && `${key.priority} priority`, key.residency && `stays in ${key.residency}`]
            .filter(Boolean)
            .join(", "),
        ),
      ),
      cell("State", "", badge(tone, label, icon), grace),
      cell("Models", "anywhere", key.models.length ? key.models.join(", ") : "all"),
      cell("Limits", "", limitsOf(key)),
      cell("Budget", "nowrap", key.budget_usd === null ? "none" : `${usd(key.budget_usd)} a ${key.budget_period}`),
      cell("Created", "nowrap", dateTime(key.created)),
      cell("Expires", "nowrap", key.expires ? dateTime(key.expires) : "never"),
      cell("", "", actions),
    );
  }

  /** A form in a dialog. `send(values)` gives what the gateway said, or null where the form is at fault. */
  _form(id, title, action, fields, rows, send) {
    const fault = el("div", { role: "alert" });
    const submit = button(action, { kind: "primary", type: "submit" });
    const form = el(
      "form",
      {
        class: "stack",
        novalidate: true,
        on: {
          submit: async (event) => {
            event.preventDefault();
            if (submit.disabled) return;
            fields.clearFaults();
            replace(fault);
            submit.disabled = true;
            try {
              const key = await send(fields.values());
              if (key) {
                dialog.close();
                this._secret(key);
              }
            } catch (error) {
              if (error.aborted) return;
              if (error.param) fields.fault(error.param, error.message);
              for (const said of error.message.split("; "))
                fields.fault(said.split(":")[0], said.slice(said.indexOf(":") + 1).trim());
              replace(fault, errorView(toldBy(error)));
              fields.focusFault();
            } finally {
              submit.disabled = false;
            }
          },
        },
      },
      ...rows,
      fault,
      el("div", { class: "row end" }, button("Cancel", { onClick: () => dialog.close() }), submit),
    );
    const dialog = openDialog(id, title, form);
    form.querySelector("input").focus();
  }

  _create() {
    const fields = new Fields("key");
    const numeric = (placeholder) => input({ inputmode: "numeric", placeholder });
    const roles = el(
      "datalist",
      { id: "key-roles" },
      ROLES.map((role) => el("option", { value: role })),
    );
    const rows = [
      this._open &&
        notice(
          "warn",
          "This gateway asks for no key yet. From its first key on it asks everybody for one: let that be an admin’s, and keep it, since this console will ask for it, too.",
        ),
      el(
        "div",
        { class: "pairs wide" },
        fields.add("name", "Name", input({ placeholder: "alice" })),
        fields.add(
          "role",
          "Role",
          input({ list: "key-roles", placeholder: "user" }),
          "user, viewer, admin, or one of the roles file.",
        ),
      ),
      roles,
      fields.add(
        "models",
        "Models",
        input({ placeholder: "all" }),
        "Names or patterns such as 13b*, with commas between.",
      ),
      el(
        "div",
        { class: "pairs" },
        fields.add("rpm", "Requests/min", numeric("default")),
        fields.add("tpm", "Tokens/min", numeric("default")),
        fields.add("concurrency", "At once", numeric("default")),
      ),
      el(
        "div",
        { class: "pairs" },
        fields.add("budget_usd", "Budget, USD", input({ inputmode: "decimal", placeholder: "none" })),
        fields.add(
          "budget_period",
          "Budget’s period",
          select([
            ["month", "Month"],
            ["week", "Week"],
            ["day", "Day"],
          ]),
        ),
      ),
      el(
        "div",
        { class: "pairs" },
        fields.add("expires", "Expires in", input({ placeholder: "never" }), "For example 90d, 12h."),
        fields.add(
          "priority",
          "Priority",
          select([
            ["", "Default"],
            ["high", "High"],
            ["normal", "Normal"],
            ["low", "Low"],
          ]),
        ),
      ),
      fields.add(
        "residency",
        "Stays in",
        input({ placeholder: "any region" }),
        "The region that nothing it asks may leave, as in eu.",
      ),
    ];
    if (this._open) fields.fill({ role: "admin" });
    this._form("key-create", "New key", "Make the key", fields, rows, async (values) => {
      const { body, faults } = keyBody(values);
      for (const { field, message } of faults) fields.fault(field, message);
      fields.focusFault();
      return faults.length ? null : this._api.post("admin/keys", body, { signal: this._signal });
    });
  }

  _rotate(key) {
    const fields = new Fields("rotate");
    const rows = [
      el("p", {}, `${key.name} gets a new secret; limits, budget and usage stay.`),
      el(
        "div",
        { class: "pairs" },
        fields.add("grace", "The old secret is good for", input({ placeholder: "1h" }), "0s ends it at once."),
        fields.add("expires", "The key expires in", input({ placeholder: "as before" }), "For example 90d."),
      ),
    ];
    this._form("key-rotate", `Rotate ${key.name}`, "Rotate", fields, rows, (values) => {
      const body = Object.fromEntries(
        Object.entries(values)
          .map(([name, text]) => [name, text.trim()])
          .filter(([, text]) => text),
      );
      return this._api.post(`admin/keys/${encodeURIComponent(key.name)}/rotate`, body, { signal: this._signal });
    });
  }

  async _revoke(key) {
    const text = `Whoever uses ${key.name} is refused from now on, for good. Its name cannot be used again; what it has used stays in the ledger.`;
    if (!(await confirm({ title: `Revoke ${key.name}?`, text, action: "Revoke", danger: true }))) return;
    try {
      const said = await this._api.delete(`admin/keys/${encodeURIComponent(key.name)}`, { signal: this._signal });
      toast(`${said.name} is ${said.state}`, "good");
      await this.refresh();
      this._make.focus();
    } catch (error) {
      if (!error.aborted) this._card.fail(error);
    }
  }

  /** Show the new secret, once. */
  _secret(key) {
    const shown = el(
      "code",
      { class: "secret", id: "key-secret", tabindex: "0", "aria-label": "The new key" },
      key.key,
    );
    const copy = copyButton(() => shown.textContent, "Copy the key");
    copy.id = "key-secret-copy";
    const done = button("I have kept it", { kind: "primary", id: "key-secret-done", onClick: () => dialog.close() });
    const dialog = openDialog(
      "key-shown",
      `The key of ${key.name}`,
      [
        notice("warn", "Keep it now: it is not shown again, and the gateway has only its digest."),
        el("div", { class: "row secret-row" }, shown, copy),
        el("div", { class: "row end" }, done),
      ],
      () => {
        replace(shown);
        if (!this._signal.aborted) {
          this.refresh();
          this._make.focus();
        }
      },
    );
    // Escape would lose it by mistake.
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    copy.focus();
  }
}
