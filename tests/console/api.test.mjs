import assert from "node:assert/strict";
import test from "node:test";

// What a browser has beside what node has.
const stored = new Map();
globalThis.window = globalThis;
globalThis.sessionStorage = { getItem: (key) => stored.get(key) ?? null, setItem: (key, value) => stored.set(key, value), removeItem: (key) => stored.delete(key) };

const { Api, ApiError, errorOf } = await import("../../gateway/console/api.js");

/** Lets `fetch` give these answers, one after another; returns what was asked. */
function answering(...answers) {
  const asked = [];
  globalThis.fetch = async (url, init) => {
    asked.push({ url, ...init });
    const answer = answers.shift();
    if (answer instanceof Error) throw answer;
    return answer;
  };
  return asked;
}

const refused = (status, body, headers) => new Response(JSON.stringify(body), { status, headers });

test("errors keep what the gateway said, in each of its shapes", () => {
  const flat = errorOf(403, '{"error":"forbidden","message":"this needs the permission metrics","param":null,"request_id":"r1"}');
  assert.deepEqual([flat.status, flat.code, flat.permission, flat.requestId, flat.param], [403, "forbidden", "metrics", "r1", ""]);
  const openai = errorOf(429, '{"error":{"message":"slow down","type":"t","param":"n","code":"rate_limit_exceeded"}}', new Headers({ "Retry-After": "12", "X-Request-Id": "r2" }));
  assert.deepEqual([openai.code, openai.message, openai.param, openai.retryAfterS, openai.requestId], ["rate_limit_exceeded", "slow down", "n", 12, "r2"]);
  const anthropic = errorOf(400, '{"type":"error","error":{"type":"invalid_request_error","message":"no"}}');
  assert.deepEqual([anthropic.code, anthropic.message], ["invalid_request_error", "no"]);
  for (const text of ["<html>502</html>", "", "null", "3", "[]", '"x"', '{"error":null}']) assert.match(errorOf(502, text).message, /answered 502/);
});

test("the key goes into one header, and into the session's storage only when that was asked for", async () => {
  const api = new Api();
  api.signIn("k-1", false);
  assert.equal(stored.size, 0);
  const asked = answering(new Response('{"a":1}'), new Response(""));
  assert.deepEqual(await api.get("/v1/models", { query: { by: "key,model", from: null } }), { a: 1 });
  assert.equal(await api.post("x", { b: 2 }), null);
  assert.equal(asked[0].headers.get("Authorization"), "Bearer k-1");
  assert.ok(!asked[0].url.includes("k-1") && asked[0].url.endsWith("/v1/models?by=key%2Cmodel"), asked[0].url);
  assert.deepEqual([asked[1].method, asked[1].body, asked[1].headers.get("Content-Type")], ["POST", '{"b":2}', "application/json"]);
  api.signIn("k-2", true);
  assert.equal(new Api().key, "k-2");
  api.signOut();
  assert.deepEqual([api.key, stored.size], ["", 0]);
});

test("a 401 is told of, but not one to a key that has been changed meanwhile, nor one that was only tried", async () => {
  let told = 0;
  const api = new Api({ onUnauthorized: () => (told += 1) });
  answering(refused(401, {}), refused(401, {}));
  assert.equal((await api.refusal("wrong")).status, 401);
  assert.deepEqual([told, api.key], [0, ""]);
  await assert.rejects(api.get("x"), ApiError);
  assert.equal(told, 1);
  globalThis.fetch = async () => {
    api.signIn("newer", false);
    return refused(401, {});
  };
  await assert.rejects(api.get("x"), ApiError);
  assert.equal(told, 1);
});

test("a key that no header may have is a wrong key, not a crash", async () => {
  const api = new Api();
  answering(new Error("is not asked"));
  assert.equal((await api.refusal("schlüssel → 鍵")).status, 401);
});

test("whether a key is good is asked for a bounded time, after which the gateway is out of reach", async () => {
  const asked = answering(Object.assign(new Error("x"), { name: "TimeoutError" }));
  const error = await new Api().refusal("k");
  assert.deepEqual([error.status, error.code, error.aborted], [0, "unreachable", false]);
  assert.ok(asked[0].signal instanceof AbortSignal);
});

test("what is no answer, and what is no JSON, is an ApiError", async () => {
  const api = new Api();
  answering(new TypeError("Failed to fetch"), new Response("<html>"), Object.assign(new Error("x"), { name: "AbortError" }));
  await assert.rejects(api.get("x"), { name: "ApiError", status: 0, code: "unreachable" });
  await assert.rejects(api.get("x"), { name: "ApiError", message: /not JSON/ });
  await assert.rejects(api.get("x"), { name: "ApiError", aborted: true });
});

test("a stream gives its events, in characters that a cut may have split, and is closed when its reader leaves", async () => {
  const api = new Api();
  const bytes = new TextEncoder().encode("event: a\ndata: grüße\n\ndata: [DONE]\n\ndata: last");
  let cancelled = false;
  const stream = () => {
    let at = 0;
    return new Response(new ReadableStream({ pull: (c) => (at < bytes.length ? c.enqueue(bytes.slice(at, (at += 1))) : c.close()), cancel: () => (cancelled = true) }));
  };
  answering(stream(), stream());
  const events = [];
  for await (const { event, data } of api.events("x", { method: "POST", body: {} })) events.push([event, data]);
  assert.deepEqual(events, [["a", "grüße"], ["message", "[DONE]"], ["message", "last"]]);
  for await (const one of api.events("x")) {
    assert.equal(one.event, "a");
    break;
  }
  assert.equal(cancelled, true);
});
