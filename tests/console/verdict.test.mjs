import assert from "node:assert/strict";
import { test } from "node:test";

import { START, bodyOf, factsOf, groupsOf, memberOf, sandboxOf, verdictOf } from "../../gateway/console/verdict.js";

const RUN = {
  success: true,
  exit_code: 0,
  stdout: "3\n",
  stderr: "",
  execution_time: 0.01,
  error: null,
  isolation: "bubblewrap",
  truncated: false,
};
const BLOCK = { language: "python", code: "x", line_start: 1, line_end: 1 };
const member = (name, rest = {}) => ({
  model_name: name,
  provider: "e",
  text: "t",
  code_blocks: [BLOCK],
  execution_results: [RUN],
  latency: 1,
  error: null,
  healed: false,
  ...rest,
});
const answer = (rest = {}, details = {}, members = ["a", "b", "c"].map((name) => member(name))) => ({
  request_id: "r",
  model_responses: members,
  selected_response: "t",
  total_latency: 2,
  verification: {
    verified: false,
    consensus: true,
    agreement: 2 / 3,
    successful_executions: 3,
    total_executions: 3,
    synthesis_strategy: "majority",
    groups: [["a", "c"], ["b"]],
    details: { chosen: "a", examples: 1, examples_passed: 1, inputs: 100, dissent: 0, tie: false, ...details },
    ...rest,
  },
});
const title = (...args) => verdictOf(answer(...args)).title;
const text = (...args) => verdictOf(answer(...args)).text;

test("groups are letters, the chosen one's is A, and no colour stands alone", () => {
  const found = groupsOf({ groups: [["a", "c"], ["b"], ...[..."defgh"].map((name) => [name])] });
  assert.deepEqual(found.get("c"), { letter: "A", colour: 0, size: 2 });
  assert.deepEqual([found.get("b").letter, found.get("b").colour], ["B", 1]);
  assert.equal(found.get("h").letter, "G");
  assert.equal(found.get("h").colour, 0, "colours come again, letters do not");
  assert.equal(new Set([...found.values()].map((group) => group.letter)).size, 7);
  const many = groupsOf({ groups: Array.from({ length: 30 }, (_, index) => [String(index)]) });
  assert.deepEqual([many.get("25").letter, many.get("26").letter], ["Z", "A2"]);
});

test("every decision has its own words", () => {
  assert.equal(
    title({ synthesis_strategy: "tests_passed", verified: true }, { tests: 2, passed: 1 }),
    "Verified by your tests",
  );
  assert.match(
    text({ synthesis_strategy: "tests_passed", verified: true }, { tests: 2, passed: 1 }),
    /1 of 3 members passes all 2 tests/,
  );
  assert.equal(title({ synthesis_strategy: "consensus", verified: true }), "Verified by agreement");
  assert.equal(title(), "A majority agrees, not verified");
  assert.equal(title({ synthesis_strategy: "best_available" }), "No majority agrees");
  assert.equal(title({ synthesis_strategy: "best_available", groups: [] }), "Not compared");
  assert.match(
    text({ synthesis_strategy: "best_available" }, { tests: 3, passed: 0 }),
    /No program passes all the tests/,
  );
  assert.equal(title({ synthesis_strategy: "abstained", groups: [] }), "No answer was chosen");
  assert.equal(title({ synthesis_strategy: "no_code", groups: [] }), "Nothing to choose from");
});

test("why it is not verified is said", () => {
  assert.match(text({}, { examples: 0 }), /no example and no test/);
  assert.match(text({}, { examples_passed: 0 }), /Only 0 of 1 example /);
  assert.match(text({}, { dissent: 1 }), /1 other program differs/);
  assert.match(text({}, { tie: true }), /equally large/);
  assert.match(text({}, { unseen: 2 }), /cannot be looked into/);
  assert.match(text({}, { examples: undefined }), /compared as texts/);
  assert.match(text({}, { examples: undefined, error: "isolation_unavailable" }), /no sandbox here/);
  assert.match(text({ synthesis_strategy: "best_available", agreement: 1 / 3 }), /No other of the 3 members agrees/);
});

test("a member's state tells what became of it", () => {
  const { verification } = answer({ groups: [["a"]] }, { failures: { b: "SyntaxError" }, not_judged: { c: "time" } });
  const label = (one) => memberOf(one, verification).label;
  assert.equal(label(member("a")), "Ran");
  assert.equal(label(member("b")), "Failed");
  assert.equal(label(member("c")), "Not judged");
  assert.equal(label(member("d")), "Ran, in no group");
  assert.equal(label(member("d", { code_blocks: [], execution_results: [] })), "No code");
  assert.equal(label(member("a", { code_blocks: [], execution_results: [] })), "Answered");
  assert.equal(label(member("d", { execution_results: [] })), "Not run");
  const failed = memberOf(member("d", { error: { error: "backend_error", message: "broke" } }), verification);
  assert.deepEqual([failed.label, failed.text], ["No answer", "backend_error: broke"]);
  const late = member("d", {
    error: { error: "client_closed_request", message: "not waited for: the others had decided" },
  });
  assert.equal(label(late), "Not waited for");
  const off = memberOf(member("b"), answer({}, { failures: { b: "isolation_unavailable" } }).verification);
  assert.equal(off.label, "Not run");
});

test("the sandbox's level is told, or that there is none", () => {
  assert.equal(sandboxOf(answer()), "bubblewrap");
  const none = [member("a", { execution_results: [{ ...RUN, isolation: null }] })];
  assert.equal(sandboxOf(answer({}, { error: "isolation_unavailable" }, none)), "none");
  assert.equal(sandboxOf(answer({}, {}, [member("a", { execution_results: [] })])), null);
  assert.deepEqual(
    factsOf(answer()).find(([name]) => name === "Sandbox"),
    ["Sandbox", "bubblewrap"],
  );
  assert.ok(
    !factsOf(answer({ groups: [] })).some(([name]) => name === "Agreement"),
    "where nothing was compared, nobody agrees",
  );
  assert.ok(factsOf(answer()).every(([, value]) => value !== "undefined" && value !== "null"));
});

const FORM = { ...START, prompt: "p", models: ["a"] };

test("what is left empty is not sent", () =>
  assert.deepEqual(bodyOf(FORM), { body: { prompt: "p", models: ["a"] }, faults: [] }));

test("tests are a program or a list, inputs are JSON", () => {
  const body = (rest) => bodyOf({ ...FORM, ...rest }).body;
  assert.equal(body({ tests: "assert add(1, 2) == 3" }).tests, "assert add(1, 2) == 3");
  assert.equal(
    body({ tests: "[x] = f()\nassert x" }).tests,
    "[x] = f()\nassert x",
    "a program may begin with a bracket",
  );
  assert.deepEqual(body({ tests: ' ["assert a", {"input": "1", "output": "2"}]' }).tests, [
    "assert a",
    { input: "1", output: "2" },
  ]);
  assert.deepEqual(body({ inputs: "[[1, 2]]", timeout: "2", execute_code: false, verify: false, temperature: "0" }), {
    prompt: "p",
    models: ["a"],
    inputs: [[1, 2]],
    temperature: 0,
    execution_config: { timeout: 2 },
    execute_code: false,
    verify: false,
  });
});

test("what cannot be sent is named by its field", () => {
  const { faults } = bodyOf({
    ...FORM,
    prompt: " ",
    models: [],
    tests: '["',
    inputs: "[1]",
    temperature: "x",
    timeout: "y",
  });
  assert.deepEqual(
    faults.map((fault) => fault.field),
    ["prompt", "models", "tests", "inputs", "temperature", "timeout"],
  );
});
