// Code to copy: a request as curl and as Python, shown as plain text below a summary.

import { copyButton, el, setText } from "./ui.js";

/**
 * A <details> whose code is made when it is opened. `sourcesOf()` gives `[{label, text}]`; `refresh()` on the returned
 * object makes it anew while it is open. `before`: what stands above the code.
 */
export function codeView(title, sourcesOf, id, before = null) {
  const blocks = [];
  const place = el("div", { class: "code-blocks" }, before);
  const node = el("details", { class: "disclosure code-view", id: id || null }, el("summary", {}, title), place);
  const refresh = () => {
    if (!node.open) return;
    for (const [index, { label, text }] of sourcesOf().entries()) {
      blocks[index] ??= block(place, label, id);
      setText(blocks[index], text);
    }
  };
  node.addEventListener("toggle", refresh);
  return { node, refresh };
}

function block(place, label, id) {
  const name = label.toLowerCase();
  const pre = el("pre", { class: "code", tabindex: "0", role: "group", "aria-label": label, dataset: { code: name } });
  const copy = copyButton(() => pre.textContent, `Copy ${label}`);
  copy.dataset.copy = name;
  if (id) copy.id = `${id}-copy-${name}`;
  place.append(el("div", { class: "code-block" }, el("div", { class: "code-head" }, el("span", {}, label), copy), pre));
  return pre;
}
