import assert from "node:assert/strict";
import test, { mock } from "node:test";

globalThis.window = Object.assign(new EventTarget(), {});
const { Feed, FIRST_PAUSE_S, LONGEST_PAUSE_S, pause_s } = await import("../../gateway/console/feed.js");

/** Lets everything that is ready run; timers are the mock's. */
const settle = async () => {
  for (let turn = 0; turn < 20; turn += 1) await Promise.resolve();
};

/** An api whose streams the test writes, ends and breaks. */
class Streams {
  constructor() {
    this.opened = [];
  }

  async *events(path, { signal }) {
    const waiting = [];
    let wake = () => {};
    const stream = { path, signal, give: (item) => (waiting.push(item), wake()) };
    signal.addEventListener("abort", () => stream.give(Object.assign(new Error("stopped"), { aborted: true })));
    this.opened.push(stream);
    for (;;) {
      if (waiting.length === 0) await new Promise((resolve) => (wake = resolve));
      const item = waiting.shift();
      if (item === null) return;
      if (item instanceof Error) throw item;
      yield item;
    }
  }

  get last() {
    return this.opened[this.opened.length - 1];
  }
}

function scene() {
  mock.timers.enable({ apis: ["setTimeout"] });
  const api = new Streams();
  const states = [];
  const events = [];
  const feed = new Feed(api, "live", { onEvent: (event) => events.push(event), onState: (state) => states.push(state), silence_s: 4, chance: () => 0 });
  const told = () => states.splice(0).map(({ state }) => state);
  return { api, states, events, feed, told };
}

const event = { event: "tick", data: '{"now":1}' };

test.afterEach(() => mock.timers.reset());

test("a feed that breaks is opened again, later each time, and at once when the network is back", async () => {
  const { api, events, feed, told, states } = scene();
  feed.start();
  await settle();
  api.last.give(event);
  await settle();
  assert.deepEqual(events, [{ event: "tick", data: { now: 1 } }]);
  assert.deepEqual(told(), ["connecting", "open"]);
  api.last.give(null);
  await settle();
  assert.equal(states[0].retryInS, FIRST_PAUSE_S / 2);
  mock.timers.tick(FIRST_PAUSE_S * 500);
  await settle();
  api.last.give(Object.assign(new Error("draining"), { status: 503, retryAfterS: 3 }));
  await settle();
  assert.deepEqual(states.map(({ state, attempt }) => [state, attempt]), [["reconnecting", 1], ["connecting", 1], ["reconnecting", 2]]);
  assert.equal(states[2].retryInS, 3);
  window.dispatchEvent(new Event("online"));
  await settle();
  assert.equal(api.opened.length, 3);
  feed.stop();
});

test("silence is told of, and a connection that stays silent is given up", async () => {
  const { api, feed, told } = scene();
  feed.start();
  await settle();
  api.last.give(event);
  await settle();
  told();
  mock.timers.tick(4000);
  assert.deepEqual(told(), ["stalled"]);
  api.last.give(event);
  await settle();
  assert.deepEqual(told(), ["open"]);
  mock.timers.tick(4000);
  mock.timers.tick(8000);
  await settle();
  assert.deepEqual(told(), ["stalled", "reconnecting"]);
  assert.equal(api.opened[0].signal.aborted, true);
  feed.stop();
});

test("a connection that never says anything is given up, too", async () => {
  const { api, feed, told } = scene();
  feed.start();
  await settle();
  mock.timers.tick(12000);
  await settle();
  assert.deepEqual(told(), ["connecting", "reconnecting"]);
  mock.timers.tick(1000);
  await settle();
  assert.equal(api.opened.length, 2);
  feed.stop();
});

test("what only a person can mend is not tried again", async () => {
  for (const status of [401, 403, 404]) {
    const { api, feed, told } = scene();
    feed.start();
    await settle();
    api.last.give(Object.assign(new Error("no"), { status }));
    await settle();
    mock.timers.tick(60000);
    await settle();
    assert.deepEqual([told(), api.opened.length], [["connecting", "refused"], 1]);
    feed.stop();
    mock.timers.reset();
  }
});

test("what is no JSON breaks the connection, and what is left of it is not read", async () => {
  const { api, events, feed, told } = scene();
  feed.start();
  await settle();
  api.last.give({ event: "tick", data: "{" });
  api.last.give(event);
  await settle();
  assert.deepEqual([told(), events], [["connecting", "open", "reconnecting"], []]);
  feed.stop();
});

test("a feed that was stopped says nothing more, and can be started again", async () => {
  const { api, events, feed, told } = scene();
  feed.start();
  await settle();
  const first = api.last;
  feed.stop();
  first.give(event);
  await settle();
  mock.timers.tick(60000);
  assert.deepEqual([told(), events, first.signal.aborted], [["connecting", "stopped"], [], true]);
  feed.start();
  await settle();
  api.last.give(event);
  await settle();
  assert.deepEqual([told(), events.length, api.opened.length], [["connecting", "open"], 1, 2]);
  feed.stop();
});

test("pauses grow, are bounded and scattered", () => {
  assert.equal(pause_s(1, 0), FIRST_PAUSE_S / 2);
  assert.ok(pause_s(1, 0.999) < FIRST_PAUSE_S);
  assert.equal(pause_s(1000, 0), LONGEST_PAUSE_S / 2);
  for (let attempt = 1; attempt < 20; attempt += 1) assert.ok(pause_s(attempt + 1, 0) >= pause_s(attempt, 0));
});
