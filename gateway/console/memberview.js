// What POST /api/v1/inference answers, as cards: the verdict, the groups, and the members side by side. Text only.

import { NONE, duration } from "./format.js";
import { badge, copyButton, el, icon } from "./ui.js";
import { factsOf, groupsOf, memberOf, verdictOf } from "./verdict.js";

const TONES = { good: "good", fair: "info", poor: "warn", bad: "bad", plain: "mute" };
const ICONS = { good: "up", fair: "info", poor: "warn", bad: "out", plain: "info" };

/** A group's letter in its colour; without a group, a dash. */
function groupMark(group) {
  const text = group ? group.letter : NONE;
  const label = group ? `Group ${group.letter}` : "In no group";
  return el(
    "span",
    {
      class: "group-mark",
      role: "img",
      "aria-label": label,
      title: label,
      dataset: group ? { group: String(group.colour) } : {},
    },
    text,
  );
}

/** The card that says what was decided, and why. */
export function verdictCard(answer, actions) {
  const told = verdictOf(answer);
  const { verification } = answer;
  const { chosen } = verification.details;
  const wasRun = verification.details.inputs !== undefined || verification.details.tests !== undefined;
  const groups = groupsOf(verification);
  const legend = verification.groups.map((members, index) => {
    const names = members.map((name, place) => [place > 0 && ", ", name === chosen ? el("strong", {}, name) : name]);
    return el(
      "li",
      {},
      groupMark(groups.get(members[0])),
      el("span", {}, names),
      index === 0 && chosen && badge("info", "chosen", "check"),
    );
  });
  return el(
    "section",
    {
      class: "card verdict-card",
      id: "verify-verdict",
      "aria-labelledby": "verify-title",
      dataset: {
        tone: TONES[told.kind],
        strategy: verification.synthesis_strategy,
        verified: String(verification.verified),
        chosen: chosen ?? "",
      },
    },
    el(
      "div",
      { class: "card-body verdict" },
      el(
        "div",
        { class: "stack" },
        el("h2", { id: "verify-title" }, icon(ICONS[told.kind]), told.title),
        el("p", {}, told.text),
        chosen && el("p", {}, "Chosen: ", el("strong", {}, chosen), "."),
        legend.length > 0 &&
          el(
            "div",
            { class: "stack" },
            el("h3", {}, `Groups that ${wasRun ? "do" : "say"} the same`),
            el("ul", { class: "legend", id: "verify-groups" }, legend),
          ),
        el("div", { class: "row" }, actions),
      ),
      el(
        "dl",
        { class: "facts" },
        factsOf(answer).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
      ),
    ),
  );
}

/** The cards of all members, the chosen one first, then by group. */
export function memberCards(answer) {
  const groups = groupsOf(answer.verification);
  const chosen = answer.verification.details.chosen;
  const place = new Map(answer.verification.groups.flat().map((name, index) => [name, index]));
  const order = (response) => (response.model_name === chosen ? -1 : (place.get(response.model_name) ?? place.size));
  const ordered = [...answer.model_responses].sort((a, b) => order(a) - order(b));
  return el(
    "div",
    { class: "members", id: "verify-members" },
    ordered.map((response) =>
      memberCard(response, answer.verification, groups.get(response.model_name), response.model_name === chosen),
    ),
  );
}

function memberCard(response, verification, group, isChosen) {
  const name = response.model_name;
  const told = memberOf(response, verification);
  const family = verification.details.members?.find((member) => member.model === name)?.family;
  const how = [
    duration(response.latency * 1000),
    response.provider && `engine ${response.provider}`,
    family && `family ${family}`,
  ];
  return el(
    "article",
    {
      class: ["card", "member", isChosen && "chosen"],
      "aria-label": name,
      dataset: {
        member: name,
        ...(group ? { group: String(group.colour), letter: group.letter } : {}),
        chosen: String(isChosen),
      },
    },
    el(
      "div",
      { class: "card-head" },
      groupMark(group),
      el("h3", { class: "truncate", title: name }, name),
      isChosen && badge("info", "Chosen", "check"),
      response.healed && badge("warn", "Repaired once", "refresh"),
      badge(TONES[told.kind], told.label, ICONS[told.kind]),
    ),
    el(
      "div",
      { class: "card-body stack" },
      el("p", { class: "small muted" }, how.filter(Boolean).join(" · ")),
      told.text && el("p", { class: "said small", dataset: { part: "why" } }, told.text),
      response.code_blocks.map((block, index) => codePart(block, index, response)),
      response.execution_results.map((run, index) => runPart(run, index, name)),
      wholeAnswer(response),
    ),
  );
}

/** Code or output in a box that can be scrolled by keyboard. */
function box(text, label, part, kind = "") {
  return el(
    "pre",
    { class: ["code", kind], tabindex: "0", role: "group", "aria-label": label, dataset: { part } },
    text,
  );
}

function part(title, ...children) {
  return el("div", { class: "member-part" }, el("h4", {}, title), ...children);
}

function codePart(block, index, response) {
  const many = response.code_blocks.length > 1;
  const lines = block.code.split("\n").length;
  const title = `${block.language || "Code"}${many ? ` ${index + 1} of ${response.code_blocks.length}` : ""}, ${lines} ${lines === 1 ? "line" : "lines"}`;
  const label = `Code of ${response.model_name}${many ? `, ${index + 1}` : ""}`;
  return part(
    title,
    el(
      "div",
      { class: "code-box" },
      box(block.code, label, "code"),
      copyButton(() => block.code, `Copy the ${label.toLowerCase()}`),
    ),
  );
}

function runPart(run, index, name) {
  const how = [
    run.exit_code === null ? null : `exit ${run.exit_code}`,
    run.isolation ? duration(run.execution_time * 1000) : null,
    run.isolation ? `sandbox: ${run.isolation}` : null,
    run.truncated ? "output cut off" : null,
  ]
    .filter(Boolean)
    .join(" · ");
  const printed = [
    run.stdout && part("Printed", box(run.stdout, `Output of ${name}`, "stdout", "printed")),
    run.stderr && part("Error output", box(run.stderr, `Error output of ${name}`, "stderr", "printed")),
  ].filter(Boolean);
  return el(
    "div",
    { class: "stack", dataset: { run: String(index), success: String(run.success) } },
    run.error &&
      el(
        "p",
        { class: run.isolation ? "fault" : "small muted", dataset: { part: "error" } },
        run.error === "isolation_unavailable" ? "Not run: there is no sandbox here." : `Ended with: ${run.error}`,
      ),
    ...printed,
    !printed.length && run.isolation && el("p", { class: "small muted" }, "Printed nothing."),
    how && el("p", { class: "small muted" }, how),
  );
}

function wholeAnswer(response) {
  if (response.text === null) return null;
  const said = el("div", { class: "said", dataset: { part: "text" } }, response.text);
  if (!response.code_blocks.length) return said;
  return el("details", { class: "disclosure" }, el("summary", {}, "Whole answer"), said);
}
