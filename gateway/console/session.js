// Who is using the console: nobody yet, anybody (the gateway asks for no key), or who has shown a key.
// Owns the sign-in dialog and the button in the bar. The key itself is the Api's.
//
//   const session = new Session(api, {onChange}); session.begin(); session.ask(reason)
//   session.state: "unknown" | "open" | "out" | "in"
// `onChange(state)` follows each sign-in and sign-out, and the first look.

import { setAttr, setIcon, setText } from "./ui.js";

const byId = (id) => document.getElementById(id);
const REASONS = {
  unknown: "This gateway asks for a key.",
  out: "This gateway asks for a key.",
  open: "This gateway asks for no key: there is no need to sign in. A key given here is sent along, and not looked at.",
  in: "Use the console with another key.",
};

export class Session {
  constructor(api, { onChange }) {
    this._api = api;
    this._onChange = onChange;
    this._dialog = byId("sign-in-dialog");
    this._key = byId("sign-in-key");
    this._busy = false;
    this.state = "unknown";
    byId("sign-in-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this._submit();
    });
    byId("sign-in-show").addEventListener("click", () => this._show(this._key.type === "password"));
    byId("sign-in-close").addEventListener("click", () => this._dialog.close());
    // Escape closes it only where there is something to go back to.
    this._dialog.addEventListener("cancel", (event) => {
      if (this.state === "out" || this.state === "unknown") event.preventDefault();
    });
    this._dialog.addEventListener("close", () => this._clear());
    byId("session").addEventListener("click", () => (this.state === "in" ? this.end() : this.ask()));
  }

  /** Finds out whether a key is needed, and whether the one kept for this tab still is good. Throws where no gateway answers. */
  async begin() {
    const error = await this._api.refusal(this._api.key);
    if (!error) {
      this._become(this._api.key ? "in" : "open");
      return;
    }
    if (error.status !== 401 && error.status !== 403) throw error;
    const had = this._api.key !== "";
    this._api.signOut();
    this._become("out");
    this.ask(had ? "The key that this tab had is no longer accepted." : "");
  }

  /** A request was refused for its key: a key that has expired, or one that is needed since a moment ago. */
  expired() {
    if (this.state === "out" || this.state === "unknown") return;
    const had = this._api.key !== "";
    this._api.signOut();
    this._become("out");
    this.ask(had ? "The key is no longer accepted. Sign in again." : "This gateway has begun to ask for a key.");
  }

  ask(reason = "") {
    const optional = this.state === "open" || this.state === "in";
    setText(byId("sign-in-reason"), reason || REASONS[this.state]);
    byId("sign-in-close").hidden = !optional;
    if (!this._dialog.open) this._dialog.showModal();
    this._key.focus();
  }

  end() {
    this._api.signOut();
    this._become("unknown");
    this.begin().catch(() => {
      this._become("out");
      this.ask("You are signed out. The gateway cannot be reached.");
    });
  }

  async _submit() {
    const key = this._key.value.trim();
    if (this._busy) return;
    if (!key) return this._fail("Enter a key.");
    this._busy = true;
    byId("sign-in-submit").disabled = true;
    const error = await this._api.refusal(key);
    this._busy = false;
    byId("sign-in-submit").disabled = false;
    if (error) return this._fail(this._words(error));
    this._api.signIn(key, byId("sign-in-remember").checked);
    this._dialog.close();
    this._become("in");
  }

  _words(error) {
    if (error.status === 401) return "This key is not accepted. It may be mistyped, expired or revoked.";
    if (error.status === 429) return "Too many tries. Wait a moment, then try again.";
    if (error.status === 0) return "The gateway cannot be reached. Is it running?";
    return `The gateway said: ${error.message}`;
  }

  _fail(text) {
    const place = byId("sign-in-error");
    setText(place, text);
    place.hidden = false;
    setAttr(this._key, "aria-invalid", "true");
    this._key.focus();
    this._key.select();
  }

  _clear() {
    this._key.value = "";
    this._show(false);
    byId("sign-in-error").hidden = true;
    setAttr(this._key, "aria-invalid", null);
  }

  _show(shown) {
    this._key.type = shown ? "text" : "password";
    setAttr(byId("sign-in-show"), "aria-pressed", shown ? "true" : "false");
    setIcon(byId("sign-in-show"), shown ? "lock" : "eye");
  }

  _become(state) {
    this.state = state;
    document.documentElement.dataset.session = state;
    const button = byId("session");
    button.hidden = state === "unknown" || state === "out";
    setText(button, state === "in" ? "Sign out" : "Sign in");
    setAttr(button, "title", state === "open" ? "This gateway asks for no key" : null);
    this._onChange(state);
  }
}
