// Asking one model and following its answer: api.raw and the stream's bytes in, chat.js's answer out.
//
// Owns nothing that outlives the call; the answer is the caller's, and only `ask` changes it until it has ended.

import { addEvent, addWhole, end, newAnswer } from "./chat.js";
import { eventsOf } from "./sse.js";

const PATH = "v1/chat/completions";
const CUT = {
  code: "cut",
  message: "The stream broke off before its end.",
  param: null,
  request_id: null,
  details: null,
};

/** What an ApiError says, in the shape of an answer's error. */
export function toldBy(error) {
  return {
    code: error.code || "",
    message: error.message || String(error),
    param: error.param || null,
    request_id: error.requestId || null,
    details: error.details ?? null,
    status: error.status || 0,
    retry_after_s: error.retryAfterS ?? null,
  };
}

/**
 * Send `body` and fill the answer, which is returned at its end and never throws. `changed(answer)`: called when there
 * is more to show. `signal` stops it: what has come stays.
 */
export async function ask(api, body, { signal, changed = () => {}, now = () => performance.now() }) {
  const answer = newAnswer(now());
  answer.headers = null;
  changed(answer);
  try {
    const accept = body.stream ? "text/event-stream" : "application/json";
    const response = await api.raw(PATH, { method: "POST", body, signal, accept });
    answer.headers = response.headers;
    note(api.key, response.headers, now());
    const isStream = (response.headers.get("Content-Type") || "").includes("text/event-stream");
    if (isStream) await follow(response, answer, changed, now);
    else addWhole(answer, await response.json(), now());
    if (answer.error && !answer.error.request_id) answer.error.request_id = response.headers.get("X-Request-ID");
  } catch (error) {
    if (signal.aborted || error.aborted || error.name === "AbortError") end(answer, "stopped", now());
    else if (error instanceof SyntaxError)
      end(answer, "failed", now(), { ...CUT, code: "", message: "The answer is no JSON." });
    else if (error instanceof TypeError)
      end(answer, "failed", now(), { ...CUT }); // how fetch says that a body broke off
    else end(answer, "failed", now(), toldBy(error));
  }
  changed(answer);
  return answer;
}

async function follow(response, answer, changed, now) {
  answer.streamed = true;
  for await (const event of eventsOf(response.body)) {
    if (addEvent(answer, event.data, now())) return;
    changed(answer);
  }
  end(answer, "failed", now(), { ...CUT });
}

let noted = null; // what the last answer said of the limits of the key that it was asked with

function note(key, headers, at_ms) {
  const rows = ["requests", "tokens"].flatMap((what) => {
    const limit = headers.get(`x-ratelimit-limit-${what}`);
    return limit === null
      ? []
      : [{ what, limit: Number(limit), remaining: Number(headers.get(`x-ratelimit-remaining-${what}`)) }];
  });
  noted = rows.length ? { key, rows, at_ms } : null;
}

/** What the last answer to this key has said of its limits: `{rows: [{what, limit, remaining}], at_ms}`; null: nothing. */
export function lastLimits(key) {
  return noted && noted.key === key ? noted : null;
}

// Of the headers, those that say how the gateway has answered; in the order to show them.
const TOLD = [
  ["X-Gateway-Engine", "Engine"],
  ["X-Gateway-Model", "Answered by"],
  ["X-Gateway-Fallback", "Fallback"],
  ["X-Gateway-Attempts", "Attempts"],
  ["X-Gateway-Cache", "Cache"],
  ["Age", "Age"],
  ["X-Gateway-Coalesced", "Shared call"],
  ["X-Gateway-Cost-Usd", "Cost"],
  ["Server-Timing", "Timing"],
  ["x-ratelimit-remaining-requests", "Requests left"],
  ["x-ratelimit-remaining-tokens", "Tokens left"],
  ["X-Request-ID", "Request id"],
];

/** The headers to show: `[{name, label, value}]`, those that there are. */
export function headersTold(headers) {
  if (!headers) return [];
  return TOLD.map(([name, label]) => ({ name, label, value: headers.get(name) })).filter((row) => row.value !== null);
}
