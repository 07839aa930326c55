import assert from "node:assert/strict";
import { test } from "node:test";

import {
  addEvent,
  addWhole,
  end,
  errorOf,
  fieldsOf,
  measuresOf,
  messagesOf,
  newAnswer,
  spokenUpTo,
  stopsOf,
} from "../../gateway/console/chat.js";

const delta = (said, rest = {}) =>
  JSON.stringify({ choices: [{ index: 0, delta: said, finish_reason: null }], ...rest });

test("empty fields are left out of the body", () => {
  assert.deepEqual(fieldsOf({ temperature: "", top_p: " ", stop: "", extra: "", format: "text", stream: false }), {
    fields: {},
    faults: [],
  });
});

test("fields become numbers, stops, a schema and whatever else is given", () => {
  const form = {
    temperature: "0",
    top_p: "0.5",
    max_tokens: "12",
    seed: "7",
    stop: "END\n\\n\n\\\\n",
    stream: true,
    format: "json_schema",
    schema: '{"type": "object"}',
    extra: '{"n": 1, "temperature": 0.3}',
  };
  assert.deepEqual(fieldsOf(form), {
    faults: [],
    fields: {
      temperature: 0.3,
      top_p: 0.5,
      max_tokens: 12,
      seed: 7,
      stop: ["END", "\n", "\\n"],
      n: 1,
      stream: true,
      stream_options: { include_usage: true },
      response_format: {
        type: "json_schema",
        json_schema: { name: "answer", strict: true, schema: { type: "object" } },
      },
    },
  });
});

test("a schema that brings its name is sent as it is", () => {
  const { fields } = fieldsOf({ format: "json_schema", schema: '{"name": "city", "schema": {"type": "string"}}' });
  assert.deepEqual(fields.response_format.json_schema, { name: "city", schema: { type: "string" } });
});

test("every field that cannot be sent is named", () => {
  const form = {
    temperature: "warm",
    max_tokens: "1.5",
    seed: "9007199254740993",
    format: "json_schema",
    schema: " ",
    extra: "[1]",
  };
  const { faults } = fieldsOf(form);
  assert.deepEqual(
    faults.map((fault) => fault.field),
    ["temperature", "max_tokens", "seed", "schema", "extra"],
  );
  assert.match(fieldsOf({ extra: "{" }).faults[0].message, /no JSON/);
});

test("stops are a line each", () => assert.deepEqual(stopsOf("a\n\n b\\t"), ["a", " b\t"]));

test("a conversation goes on with the turns that were answered", () => {
  const turns = [
    { prompt: "one", answer: { text: "1" } },
    { prompt: "two", answer: { text: "" } },
    { prompt: "three", answer: { text: "3" } },
    { prompt: "under way", answer: null },
  ];
  const roles = messagesOf("Be brief.", turns, "four").map((message) => `${message.role}:${message.content}`);
  assert.deepEqual(roles, ["system:Be brief.", "user:one", "assistant:1", "user:three", "assistant:3", "user:four"]);
  assert.deepEqual(messagesOf("  ", [], "x"), [{ role: "user", content: "x" }]);
});

test("an answer is put together of its deltas, and measured", () => {
  const answer = newAnswer(1000);
  addEvent(answer, delta({ role: "assistant", content: "" }), 1100);
  assert.equal(answer.first_ms, null, "an empty delta is no token");
  addEvent(answer, delta({ reasoning_content: "Hm. " }), 1200);
  addEvent(answer, delta({ content: "Hello" }), 1700);
  addEvent(answer, delta({ content: " there" }), 2200);
  let told = measuresOf(answer, 2200);
  assert.deepEqual([told.ttft_ms, told.completion_tokens, told.estimated, told.tokens_per_s], [200, 3, true, 2]);
  addEvent(answer, JSON.stringify({ choices: [{ index: 0, delta: {}, finish_reason: "stop" }], model: "13b" }), 2300);
  addEvent(answer, JSON.stringify({ choices: [], usage: { prompt_tokens: 4, completion_tokens: 11 } }), 2300);
  assert.equal(addEvent(answer, "[DONE]", 2400), true);
  told = measuresOf(answer, 99_999);
  assert.deepEqual([told.total_ms, told.prompt_tokens, told.completion_tokens, told.estimated], [1400, 4, 11, false]);
  assert.equal(told.tokens_per_s, 10);
  assert.deepEqual(
    [answer.text, answer.reasoning, answer.finish, answer.state, answer.model],
    ["Hello there", "Hm. ", "stop", "done", "13b"],
  );
});

test("what came at once has no tokens per second", () => {
  const answer = newAnswer(0);
  for (let at = 0; at < 50; at += 1) addEvent(answer, delta({ content: "x" }), 5);
  addEvent(answer, "[DONE]", 6);
  assert.equal(measuresOf(answer, 6).tokens_per_s, null);
});

test("tool calls are put together by their index", () => {
  const answer = newAnswer(0);
  const call = (part) => addEvent(answer, delta({ tool_calls: [part] }), 1);
  call({ index: 1, id: "b", function: { name: "second", arguments: "" } });
  call({ index: 0, id: "a", function: { name: "first", arguments: '{"x"' } });
  call({ index: 0, function: { arguments: ": 1}" } });
  assert.deepEqual(answer.tools, [
    { id: "a", name: "first", arguments: '{"x": 1}' },
    { id: "b", name: "second", arguments: "" },
  ]);
});

test("an answer in one piece counts its tokens over its whole time", () => {
  const answer = newAnswer(0);
  addWhole(
    answer,
    {
      model: "13b",
      usage: { prompt_tokens: 1, completion_tokens: 20 },
      choices: [
        {
          message: {
            content: "Hi",
            reasoning: "Hm",
            tool_calls: [{ id: "a", function: { name: "f", arguments: "{}" } }],
          },
          finish_reason: "tool_calls",
        },
      ],
    },
    2000,
  );
  const told = measuresOf(answer, 9000);
  assert.deepEqual([told.ttft_ms, told.tokens_per_s, told.total_ms], [null, 10, 2000]);
  assert.deepEqual([answer.text, answer.reasoning, answer.tools.length, answer.state], ["Hi", "Hm", 1, "done"]);
});

test("a stream that breaks keeps what has come, and says why", () => {
  const answer = newAnswer(0);
  addEvent(answer, delta({ content: "half" }), 1);
  const error = { error: "backend_error", message: "cut short", param: null, request_id: "r-1" };
  assert.equal(addEvent(answer, JSON.stringify(error), 2), true);
  assert.deepEqual(
    [answer.state, answer.text, answer.error.code, answer.error.request_id],
    ["failed", "half", "backend_error", "r-1"],
  );
  end(answer, "stopped", 3);
  assert.equal(answer.state, "failed", "the first end counts");
});

test("an event that is no JSON fails the answer, and is no exception", () => {
  const answer = newAnswer(0);
  assert.equal(addEvent(answer, "<html>", 1), true);
  assert.match(answer.error.message, /no JSON.*<html>/);
  const odd = newAnswer(0);
  for (const data of [
    "null",
    "[]",
    "{}",
    '{"choices": []}',
    '{"choices": [{}]}',
    '{"choices": [{"delta": {"content": 5}}]}',
  ]) {
    assert.equal(addEvent(odd, data, 1), false);
  }
  assert.equal(odd.text, "");
});

test("errors are read in both shapes", () => {
  assert.deepEqual(errorOf({ error: "invalid_stop", message: "m", param: "stop", request_id: "r" }), {
    code: "invalid_stop",
    message: "m",
    param: "stop",
    request_id: "r",
    details: null,
  });
  const nested = errorOf({
    error: { message: "m", type: "t", code: "c", gateway_code: "backend_rejected", param: null },
    request_id: "r",
  });
  assert.deepEqual([nested.code, nested.message, nested.request_id], ["backend_rejected", "m", "r"]);
  assert.equal(errorOf(null).message, "No message was given.");
});

test("whole sentences are read out, and at the end the rest", () => {
  const text = "One. Two is 3.5 now! And";
  assert.equal(text.slice(0, spokenUpTo(text, 0, false)), "One. Two is 3.5 now!");
  assert.equal(spokenUpTo("no end yet", 0, false), 0);
  assert.equal(spokenUpTo(text, 20, true), text.length);
});

test("a tool call whose place is none neither reaches what all lists have in common nor makes a list without end", () => {
  for (const index of ["__proto__", "constructor", "length", -1, 0.5, 4_000_000_000, 128, {}, true]) {
    const answer = newAnswer(0);
    addEvent(answer, delta({ tool_calls: [{ index, id: "a", function: { name: "f", arguments: "{}" } }, null, 7] }), 1);
    assert.deepEqual(answer.tools, [{ id: "a", name: "f", arguments: "{}" }]);
  }
  assert.deepEqual(Object.keys(Array.prototype), []);
  assert.equal(Array.name, "Array");
});
