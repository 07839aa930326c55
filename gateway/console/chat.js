// A chat as the Playground asks it: what the form says becomes a body, what the gateway sends becomes an answer with
// its measures. Pure: nothing is fetched or shown here, and the time is an argument (milliseconds).

const MEASURED_MS = 20; // an answer that comes within this came at once: its tokens per second say nothing
const CALLS_MAX = 128; // of tools, in an answer

/** The stop sequences of a text with one on each line; `\n`, `\t` and `\\` stand for what they do in code. */
export function stopsOf(text) {
  const meant = { n: "\n", t: "\t", "\\": "\\" };
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.replace(/\\([nt\\])/g, (_, letter) => meant[letter]));
}

function numberIn(form, name, label, whole, faults) {
  const text = (form[name] ?? "").trim();
  if (text === "") return undefined;
  const value = Number(text);
  if (!Number.isFinite(value)) faults.push({ field: name, message: `${label} must be a number` });
  else if (whole && !Number.isSafeInteger(value)) {
    faults.push({ field: name, message: `${label} must be a whole number up to ${Number.MAX_SAFE_INTEGER}` });
  } else return value;
  return undefined;
}

function jsonIn(form, name, label, faults) {
  const text = (form[name] ?? "").trim();
  if (text === "") return undefined;
  try {
    const value = JSON.parse(text);
    if (value !== null && typeof value === "object" && !Array.isArray(value)) return value;
    faults.push({ field: name, message: `${label} must be a JSON object` });
  } catch (error) {
    faults.push({ field: name, message: `${label} is no JSON: ${error.message}` });
  }
  return undefined;
}

function formatOf(form, faults) {
  if (form.format === "json_object") return { type: "json_object" };
  if (form.format !== "json_schema") return undefined;
  const schema = jsonIn(form, "schema", "The schema", faults);
  if (schema === undefined) {
    if (!(form.schema ?? "").trim()) faults.push({ field: "schema", message: "The schema is missing" });
    return undefined;
  }
  const isWrapped = typeof schema.name === "string" && typeof schema.schema === "object";
  return { type: "json_schema", json_schema: isWrapped ? schema : { name: "answer", strict: true, schema } };
}

/**
 * What all models are asked with, of the form's texts: `{fields, faults}`. An empty text leaves its field out. Limits of
 * the values are the gateway's to say; a fault is what could not even be sent.
 */
export function fieldsOf(form) {
  const faults = [];
  const fields = {};
  const put = (name, value) => {
    if (value !== undefined) fields[name] = value;
  };
  put("temperature", numberIn(form, "temperature", "Temperature", false, faults));
  put("top_p", numberIn(form, "top_p", "Top p", false, faults));
  put("max_tokens", numberIn(form, "max_tokens", "Max tokens", true, faults));
  put("seed", numberIn(form, "seed", "Seed", true, faults));
  const stops = stopsOf(form.stop ?? "");
  if (stops.length) fields.stop = stops;
  put("response_format", formatOf(form, faults));
  if (form.stream) Object.assign(fields, { stream: true, stream_options: { include_usage: true } });
  Object.assign(fields, jsonIn(form, "extra", "The extra fields", faults) ?? {});
  return { fields, faults };
}

/** The messages to send: the system's, the earlier turns that have an answer (one under way may have none yet), and the new prompt. */
export function messagesOf(system, turns, prompt) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const turn of turns) {
    if (turn.answer?.text) {
      messages.push({ role: "user", content: turn.prompt }, { role: "assistant", content: turn.answer.text });
    }
  }
  messages.push({ role: "user", content: prompt });
  return messages;
}

/** An answer before anything of it has come. `state`: waiting, streaming, done, stopped, failed. */
export function newAnswer(started_ms) {
  return {
    state: "waiting",
    text: "",
    reasoning: "",
    refusal: "",
    tools: [],
    finish: null,
    usage: null,
    error: null,
    model: null,
    verification: null,
    streamed: false,
    pieces: 0,
    started_ms,
    first_ms: null,
    last_ms: null,
    ended_ms: null,
  };
}

/** A place in a list is a small number, whatever an engine says: `__proto__` is none, and 4000000000 has too many before it. */
const isPlace = (index) => Number.isInteger(index) && index >= 0 && index < CALLS_MAX;

function addCalls(answer, calls) {
  for (const [place, call] of calls.slice(0, CALLS_MAX).entries()) {
    if (typeof call !== "object" || call === null) continue;
    const index = isPlace(call.index) ? call.index : place;
    const known = (answer.tools[index] ??= { id: "", name: "", arguments: "" });
    if (call.id) known.id = call.id;
    known.name += call.function?.name ?? "";
    known.arguments += call.function?.arguments ?? "";
  }
}

function addSaid(answer, said, now_ms) {
  const reasoning = said.reasoning_content ?? said.reasoning;
  const hasCalls = Array.isArray(said.tool_calls) && said.tool_calls.length > 0;
  const isText = (value) => typeof value === "string" && value !== "";
  if (!isText(said.content) && !isText(reasoning) && !isText(said.refusal) && !hasCalls) return;
  if (isText(said.content)) answer.text += said.content;
  if (isText(reasoning)) answer.reasoning += reasoning;
  if (isText(said.refusal)) answer.refusal += said.refusal;
  if (hasCalls) addCalls(answer, said.tool_calls);
  answer.pieces += 1;
  answer.first_ms ??= now_ms;
  answer.last_ms = now_ms;
}

function addRest(answer, payload, choice) {
  if (choice?.finish_reason) answer.finish = choice.finish_reason;
  if (payload.usage) answer.usage = payload.usage;
  if (payload.model) answer.model = payload.model;
  if (payload.verification) answer.verification = payload.verification;
}

/** Add one event's data to a streamed answer. True when the stream has come to its end: `[DONE]`, or an error. */
export function addEvent(answer, data, now_ms) {
  answer.streamed = true;
  if (data === "[DONE]") {
    end(answer, "done", now_ms);
    return true;
  }
  let payload;
  try {
    payload = JSON.parse(data);
  } catch {
    end(answer, "failed", now_ms, {
      code: "",
      message: `An event is no JSON: ${data.slice(0, 200)}`,
      request_id: null,
    });
    return true;
  }
  if (payload?.error) {
    end(answer, "failed", now_ms, errorOf(payload));
    return true;
  }
  const choice = payload?.choices?.[0];
  answer.state = "streaming";
  if (choice?.delta) addSaid(answer, choice.delta, now_ms);
  addRest(answer, payload ?? {}, choice);
  return false;
}

/** Make a complete answer of a body that came in one piece. */
export function addWhole(answer, payload, now_ms) {
  const choice = payload?.choices?.[0];
  if (choice?.message) addSaid(answer, choice.message, now_ms);
  addRest(answer, payload ?? {}, choice);
  end(answer, "done", now_ms);
}

/** An answer's end; of several the first counts. `error`: as `errorOf` gives it, or null. */
export function end(answer, state, now_ms, error = null) {
  if (answer.ended_ms !== null) return;
  answer.state = state;
  answer.ended_ms = now_ms;
  answer.error = error;
}

/** What an error's body says, in the gateway's shape or OpenAI's: `{code, message, param, request_id, details}`. */
export function errorOf(payload) {
  const nested = typeof payload?.error === "object" && payload.error !== null ? payload.error : null;
  return {
    code: String(nested ? (nested.gateway_code ?? nested.code ?? nested.type ?? "") : (payload?.error ?? "")),
    message: String((nested ? nested.message : payload?.message) ?? "No message was given."),
    param: (nested ? nested.param : payload?.param) ?? null,
    request_id: payload?.request_id ?? null,
    details: payload?.details ?? payload?.verification ?? null,
  };
}

/**
 * An answer's measures at `now_ms`: times in milliseconds, null where there is nothing to tell. Until the usage comes,
 * tokens are the pieces that have come, and `estimated` says so. Tokens per second count from the first token on.
 */
export function measuresOf(answer, now_ms) {
  const until_ms = answer.ended_ms ?? now_ms;
  const counted = answer.usage?.completion_tokens;
  const tokens = counted ?? (answer.streamed ? answer.pieces : null);
  const from_ms = answer.streamed ? answer.first_ms : answer.started_ms;
  const last_ms = answer.streamed ? (answer.ended_ms === null ? now_ms : answer.last_ms) : answer.ended_ms;
  const spent_ms = from_ms === null || last_ms === null ? 0 : last_ms - from_ms;
  // Of a stream, the first token comes at the time's start: what was made within the time are the others.
  const made = answer.streamed ? (tokens ?? 0) - 1 : (tokens ?? 0);
  return {
    ttft_ms: answer.streamed && answer.first_ms !== null ? answer.first_ms - answer.started_ms : null,
    total_ms: until_ms - answer.started_ms,
    tokens_per_s: spent_ms > MEASURED_MS && made > 0 ? (made * 1000) / spent_ms : null,
    prompt_tokens: answer.usage?.prompt_tokens ?? null,
    completion_tokens: tokens,
    reasoning_tokens: answer.usage?.completion_tokens_details?.reasoning_tokens ?? null,
    estimated: counted === undefined && tokens !== null,
  };
}

/**
 * How far `text` may be read out: up to the end of a sentence, a line, or all of it when `all`. `from`: what has been
 * read out already. Returns the index behind the last whole sentence, or `from`.
 */
export function spokenUpTo(text, from, all) {
  if (all) return text.length;
  const found = [...text.slice(from).matchAll(/[.!?:](?=\s)|\n/g)].at(-1);
  return found === undefined ? from : from + found.index + 1;
}
