import assert from "node:assert/strict";
import test from "node:test";

import { MAX_EVENT_CHARS, SseParser } from "../../gateway/console/sse.js";

const read = (...pieces) => {
  const parser = new SseParser();
  return pieces.flatMap((piece) => parser.feed(piece)).map(({ event, data }) => [event, data]);
};

const STREAM = '\uFEFF: hello\nevent: history\ndata: {"a":1}\n\ndata:x\r\ndata: y\r\n\r\nid: 7\rdata:  z\r\rretry: 1\n\ndata\n\ndata: [DONE]\n\n';
const WANTED = [["history", '{"a":1}'], ["message", "x\ny"], ["message", " z"], ["message", ""], ["message", "[DONE]"]];

test("a stream is read alike wherever it is cut", () => {
  assert.deepEqual(read(STREAM), WANTED);
  assert.deepEqual(read(...STREAM), WANTED);
  for (let cut = 0; cut <= STREAM.length; cut += 1) assert.deepEqual(read(STREAM.slice(0, cut), STREAM.slice(cut)), WANTED, `cut at ${cut}`);
});

test("what has not ended with a blank line is no event", () => {
  assert.deepEqual(read("data: half\n"), []);
});

test("an event that never ends is refused before it fills the memory", () => {
  const parser = new SseParser();
  const piece = "x".repeat(MAX_EVENT_CHARS / 4);
  parser.feed(`data: ${piece}`);
  assert.throws(() => { for (let i = 0; i < 4; i += 1) parser.feed(piece); }, RangeError);
});
