// Asking the gateway: every request of the console goes through one Api, which holds the key.
//
//   api.get(path, {signal, query})            -> parsed JSON
//   api.post(path, body, {signal}), api.delete(path, {signal}) -> parsed JSON (null for an empty answer)
//   api.events(path, {method, body, signal})  -> async iterator of {event, data, id} over fetch streaming
//   api.raw(path, {method, body, accept, signal, query}) -> the Response, whose status was good
//   api.url(path)                             -> absolute URL, for "copy as curl"
//   api.key, api.signIn(key, remember), api.signOut()
//
// `path` has no leading slash ("v1/models") and is relative to where the gateway is, which may be below a prefix.
// All throw ApiError: {status (0: no answer), code, message, param, requestId, details, body, permission,
// retryAfterS, aborted}.
// A 401 also calls `onUnauthorized(error)`. The key is in memory, or in sessionStorage when that was asked for;
// never in an address, in localStorage, or in an error.

import { eventsOf } from "./sse.js";

const STORED = "console-key";
const TRY_MS = 10_000; // a gateway that hangs must not keep the sign-in from saying so
const ROOT = new URL("../", import.meta.url);

/** What went wrong with a request, in the gateway's own words where it has answered. */
export class ApiError extends Error {
  constructor(message, details = {}) {
    super(message);
    this.name = "ApiError";
    this.status = details.status || 0;
    this.code = details.code || "";
    this.param = details.param || "";
    this.requestId = details.requestId || "";
    this.details = details.details || null;
    this.body = details.body || null; // of an answer in JSON, whatever it is
    this.retryAfterS = details.retryAfterS === undefined ? null : details.retryAfterS;
    this.aborted = Boolean(details.aborted);
  }

  /** The permission that a 403 says is missing; "" for any other error. */
  get permission() {
    const match = this.status === 403 && /needs the permission (\w+)/.exec(this.message);
    return match ? match[1] : "";
  }
}

/** An answer that is no success as an ApiError: the gateway's flat shape, OpenAI's, Anthropic's, or a proxy's page. */
export function errorOf(status, text, headers = new Headers()) {
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // Not the gateway's: a proxy on the way has answered.
  }
  const nested = body && typeof body.error === "object" && body.error !== null ? body.error : null;
  const flat = body && typeof body === "object" ? body : {};
  const said = nested || flat;
  const code = nested ? nested.code || nested.type : flat.error || flat.code;
  const retryAfter = Number(headers.get("Retry-After"));
  return new ApiError(text_of(said.message) || `the gateway, or a proxy before it, answered ${status}`, {
    status,
    code: text_of(code),
    param: text_of(said.param),
    body,
    details: flat.details || flat.verification || said.details || null,
    requestId: text_of(flat.request_id) || text_of(headers.get("X-Request-Id")),
    retryAfterS: headers.has("Retry-After") && Number.isFinite(retryAfter) ? retryAfter : null,
  });
}

function text_of(value) {
  return typeof value === "string" ? value : value === null || value === undefined ? "" : String(value);
}

export class Api {
  constructor({ onUnauthorized = () => {} } = {}) {
    this._onUnauthorized = onUnauthorized;
    this._key = "";
    try {
      this._key = window.sessionStorage.getItem(STORED) || "";
    } catch {
      // Storage is forbidden: the key is in memory only.
    }
  }

  get key() {
    return this._key;
  }

  /** Use this key from now on; `remember`: until the tab is closed, over reloads. */
  signIn(key, remember) {
    this._key = key;
    try {
      if (remember) window.sessionStorage.setItem(STORED, key);
      else window.sessionStorage.removeItem(STORED);
    } catch {
      // As above.
    }
  }

  signOut() {
    this.signIn("", false);
  }

  url(path, query = null) {
    const url = new URL(path.replace(/^\/+/, ""), ROOT);
    for (const [name, value] of Object.entries(query || {})) {
      if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, String(value));
    }
    return url.href;
  }

  /** Whether a key is good, without keeping it: null, or the ApiError that says why not, within TRY_MS. */
  async refusal(key) {
    try {
      await this._fetch("v1/models", { key, quiet: true, signal: AbortSignal.timeout(TRY_MS) });
      return null;
    } catch (error) {
      return error;
    }
  }

  async get(path, options = {}) {
    return json_of(await this._fetch(path, options));
  }

  async post(path, body, options = {}) {
    return json_of(await this._fetch(path, { ...options, method: "POST", body }));
  }

  async delete(path, options = {}) {
    return json_of(await this._fetch(path, { ...options, method: "DELETE" }));
  }

  raw(path, options = {}) {
    return this._fetch(path, options);
  }

  /** The events of a stream until it ends; leaving the loop closes it. Throws ApiError where it breaks. */
  async *events(path, options = {}) {
    const response = await this._fetch(path, { accept: "text/event-stream", ...options });
    try {
      yield* eventsOf(response.body);
    } catch (error) {
      throw failure_of(error);
    }
  }

  async _fetch(path, { method = "GET", body, signal, query, accept = "application/json", key, quiet } = {}) {
    const sent = new Headers({ Accept: accept });
    const shown = key === undefined ? this._key : key;
    try {
      if (shown) sent.set("Authorization", `Bearer ${shown}`);
    } catch {
      throw new ApiError("a key has only characters that a header may have", { status: 401, code: "unauthorized" });
    }
    const init = { method, headers: sent, signal, cache: "no-store", credentials: "same-origin", redirect: "error" };
    if (body !== undefined && body !== null) {
      init.body = JSON.stringify(body);
      sent.set("Content-Type", "application/json");
    }
    let response;
    let text = "";
    try {
      response = await fetch(this.url(path, query), init);
      if (response.ok) return response;
      text = await response.text();
    } catch (error) {
      throw failure_of(error);
    }
    const error = errorOf(response.status, text, response.headers);
    // An answer to a key that has been changed meanwhile says nothing about the one there is now.
    if (error.status === 401 && !quiet && shown === this._key) this._onUnauthorized(error);
    throw error;
  }
}

async function json_of(response) {
  let text;
  try {
    text = await response.text();
  } catch (error) {
    throw failure_of(error);
  }
  if (text.trim() === "") return null;
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError("the answer is not JSON: something other than the gateway has answered", { status: response.status });
  }
}

function failure_of(error) {
  if (error instanceof ApiError) return error;
  if (error && error.name === "AbortError") return new ApiError("stopped", { aborted: true, code: "aborted" });
  if (error instanceof RangeError) return new ApiError(error.message, { code: "too_large" });
  return new ApiError("the gateway cannot be reached", { code: "unreachable" });
}
