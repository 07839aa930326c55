// What the answer of POST /api/v1/inference says, in words and letters for people. Pure.

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const GROUP_COLOURS = 6; // groups beyond share the colours again; the letter tells them apart

/** By model: `{letter, colour, size}` of its group. The group of the answer that was chosen is A. */
export function groupsOf(verification) {
  const found = new Map();
  for (const [index, members] of verification.groups.entries()) {
    const lap = Math.floor(index / LETTERS.length);
    const letter = LETTERS[index % LETTERS.length] + (lap ? String(lap + 1) : "");
    for (const model of members) found.set(model, { letter, colour: index % GROUP_COLOURS, size: members.length });
  }
  return found;
}

const percent = (share) => `${Math.round(share * 100)} %`;
const counted = (count, one, many) => `${count} ${count === 1 ? one : many}`;

/** What was decided: `{kind, title, text}`; `kind` is good, fair, poor or bad. */
export function verdictOf(answer) {
  const { verification: told } = answer;
  const { details } = told;
  const members = answer.model_responses.length;
  const agreeing = Math.round(told.agreement * members);
  const share =
    agreeing === 1 && members > 1
      ? `No other of the ${members} members agrees with the chosen one.`
      : `${agreeing} of ${counted(members, "member agrees", "members agree")} (${percent(told.agreement)}).`;
  const strategy = told.synthesis_strategy;
  if (strategy === "tests_passed") {
    const passing = `${details.passed} of ${members} ${details.passed === 1 ? "members passes" : "members pass"}`;
    const text = `${passing} ${details.tests === 1 ? "the test" : `all ${details.tests} tests`}.`;
    return {
      kind: told.verified ? "good" : "fair",
      title: told.verified ? "Verified by your tests" : "Your tests are passed",
      text,
    };
  }
  if (strategy === "consensus") {
    return {
      kind: "good",
      title: "Verified by agreement",
      text: `${share} Every example is passed, and no other program differs near them.`,
    };
  }
  if (strategy === "majority")
    return { kind: "fair", title: "A majority agrees, not verified", text: `${share} ${whyNotVerified(told)}` };
  if (strategy === "best_available") {
    if (details.tests !== undefined) {
      const text = details.passed
        ? `${counted(details.passed, "program passes", "programs pass")} the tests, of too few model families.`
        : "No program passes all the tests; the one that passes most is shown as chosen.";
      return { kind: "poor", title: "The best there is", text };
    }
    if (!told.groups.length) {
      return {
        kind: "poor",
        title: "Not compared",
        text: "The answers were not compared; the first model’s is shown as chosen.",
      };
    }
    return {
      kind: "poor",
      title: "No majority agrees",
      text: `${share} The best answer there is was chosen. ${whyNotVerified(told)}`,
    };
  }
  if (strategy === "abstained") {
    return { kind: "bad", title: "No answer was chosen", text: "Every program fails everywhere, so none was taken." };
  }
  return { kind: "bad", title: "Nothing to choose from", text: "No answer has anything in it." };
}

function whyNotVerified(told) {
  const { details } = told;
  if (details.error === "isolation_unavailable") {
    return "Nothing was run: there is no sandbox here, so the answers were compared as texts.";
  }
  if (details.examples === undefined)
    return "Nothing was run that could have failed: the answers were compared as texts.";
  if (details.examples === 0) return "There was no example and no test that a program could have failed.";
  if (details.examples_passed < details.examples) {
    return `Only ${details.examples_passed} of ${counted(details.examples, "example", "examples")} are passed.`;
  }
  if (details.tie) return "Several groups are equally large.";
  if (details.dissent)
    return `${counted(details.dissent, "other program differs", "other programs differ")} near the examples.`;
  if (details.unseen) return "Some results cannot be looked into.";
  return "";
}

/** Numbers of the decision, as `[name, value]`, in the order to show them. */
export function factsOf(answer) {
  const { verification: told } = answer;
  const { details } = told;
  const rows = told.groups.length ? [["Agreement", percent(told.agreement)]] : [];
  const add = (name, value) => value !== undefined && value !== null && rows.push([name, String(value)]);
  add(
    "Programs that worked",
    told.total_executions ? `${told.successful_executions} of ${told.total_executions}` : undefined,
  );
  add("Tests", details.tests);
  add(
    "Examples passed",
    details.examples === undefined
      ? undefined
      : details.examples
        ? `${details.examples_passed} of ${details.examples}`
        : "there are none",
  );
  add("Inputs compared", details.inputs);
  add("Function", details.entry_point);
  add("Differ near the examples", details.dissent);
  add("Model families that agree", details.families);
  add("Tie", details.tie === undefined ? undefined : details.tie ? "yes" : "no");
  add("Sandbox", sandboxOf(answer));
  add("Judge", details.judge);
  add("Total time", `${answer.total_latency.toFixed(2)} s`);
  return rows;
}

/** The sandbox's level that programs were run at; "none" where none could be, null where nothing was to be run. */
export function sandboxOf(answer) {
  const runs = answer.model_responses.flatMap((response) => response.execution_results);
  const levels = [...new Set(runs.map((run) => run.isolation).filter(Boolean))];
  if (levels.length) return levels.join(", ");
  return answer.verification.details.error === "isolation_unavailable" ? "none" : null;
}

/** What became of one member: `{kind, label, text}`; `kind` is good, poor, bad or plain. */
export function memberOf(response, verification) {
  const name = response.model_name;
  const { details } = verification;
  const failure = details.failures?.[name];
  const unjudged = details.not_judged?.[name];
  const isGrouped = verification.groups.some((group) => group.includes(name));
  if (response.error?.error === "client_closed_request")
    return { kind: "plain", label: "Not waited for", text: "The others had decided." };
  if (response.error)
    return { kind: "bad", label: "No answer", text: `${response.error.error}: ${response.error.message}` };
  if (failure === "isolation_unavailable") return { kind: "plain", label: "Not run", text: "" };
  if (failure) return { kind: "bad", label: "Failed", text: String(failure) };
  if (unjudged) return { kind: "poor", label: "Not judged", text: String(unjudged) };
  if (!response.code_blocks.length) return { kind: "plain", label: isGrouped ? "Answered" : "No code", text: "" };
  if (!response.execution_results.length) return { kind: "plain", label: "Not run", text: "" };
  if (isGrouped) return { kind: "good", label: "Ran", text: "" };
  return {
    kind: "poor",
    label: "Ran, in no group",
    text: "It passes fewer examples or tests than others do, or fails everywhere.",
  };
}

function inputsIn(text, faults) {
  if (!text.trim()) return undefined;
  try {
    const value = JSON.parse(text);
    if (Array.isArray(value) && value.every(Array.isArray)) return value;
    faults.push({ field: "inputs", message: "Inputs must be a list of lists of arguments, such as [[1, 2], [3, 4]]" });
  } catch (error) {
    faults.push({ field: "inputs", message: `The inputs are no JSON: ${error.message}` });
  }
  return undefined;
}

function testsIn(text, faults) {
  if (!text.trim()) return undefined;
  if (!/^\s*\[\s*["{]/.test(text)) return text; // a program; a list of JSON's begins with a text or a pair
  try {
    return JSON.parse(text);
  } catch (error) {
    faults.push({ field: "tests", message: `The list of tests is no JSON: ${error.message}` });
    return undefined;
  }
}

/** The form at first; the models to be asked come to it. */
export const START = {
  prompt: "",
  system: "",
  tests: "",
  inputs: "",
  entry_point: "",
  temperature: "",
  max_tokens: "",
  timeout: "",
  execute_code: true,
  verify: true,
};

/** The body to send, of the form's texts: `{body, faults}`. */
export function bodyOf(form) {
  const faults = [];
  const body = { prompt: form.prompt };
  if (!form.prompt.trim()) faults.push({ field: "prompt", message: "The prompt is missing" });
  if (!form.models.length) faults.push({ field: "models", message: "Choose at least one model" });
  body.models = form.models;
  if (form.system.trim()) body.system = form.system;
  const tests = testsIn(form.tests, faults);
  if (tests !== undefined) body.tests = tests;
  const inputs = inputsIn(form.inputs, faults);
  if (inputs !== undefined) body.inputs = inputs;
  if (form.entry_point.trim()) body.entry_point = form.entry_point.trim();
  for (const [name, label] of [
    ["temperature", "Temperature"],
    ["max_tokens", "Max tokens"],
  ]) {
    if (!form[name].trim()) continue;
    if (Number.isFinite(Number(form[name]))) body[name] = Number(form[name]);
    else faults.push({ field: name, message: `${label} must be a number` });
  }
  if (form.timeout.trim()) {
    if (Number.isFinite(Number(form.timeout))) body.execution_config = { timeout: Number(form.timeout) };
    else faults.push({ field: "timeout", message: "Time must be a number of seconds" });
  }
  if (!form.execute_code) body.execute_code = false;
  if (!form.verify) body.verify = false;
  return { body, faults };
}
