// Building the DOM. Text is always text: nothing here, or anywhere in the console, reads a string as HTML.
//
//   el(tag, attrs, ...children)   an element; children: nodes, texts, numbers, arrays of them; null and false are left out
//   svg(tag, attrs, ...children)  the same in SVG's namespace
//   icon(name, label)             an <svg> of the symbol #i-<name> in index.html; without a label it is decoration
//   button(label, {icon, kind, small, onClick, …attrs}); kind: "" | "primary" | "danger" | "ghost"; iconButton(label, icon, {…})
//   badge(tone, text, iconName)   tone: good | warn | bad | info | mute
//   notice(tone, ...children)     a message in the page; empty(title, ...children): a place with nothing in it yet
//   field(label, control, hint)   label, control and hint tied together
//   copyButton(textOf, label)     copies what textOf() gives when it is pressed
//   toast(text, tone), announce(text): for everybody, for screen readers only
//   confirm({title, text, action, danger}) -> Promise<boolean>
//   setText(node, text), setAttr(node, name, value), replace(node, ...children), uniqueId(prefix)
//
// attrs: `class`; `dataset: {…}`; `style: {name: value}` (through CSSOM, custom properties too); `on: {click: f}`;
// anything else is an attribute: true sets it empty, false and null leave it out.

const SVG = "http://www.w3.org/2000/svg";
// Attributes that would be read as code or as a document of their own. Handlers go through `on`.
const NEVER = /^(on.*|srcdoc|style)$/i;
const ADDRESSES = new Set(["href", "src", "action", "formaction"]);
const SAFE_ADDRESS = /^(#|\/(?!\/)|https?:|console\/|data:image\/)/i;

function append(node, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false || child === true) continue;
    if (Array.isArray(child)) append(node, child);
    else node.append(child instanceof Node ? child : String(child));
  }
}

/** Sets one attribute; false and null remove it. Throws for one that could be read as code. */
export function setAttr(node, name, value) {
  if (NEVER.test(name)) throw new TypeError(`the attribute ${name} is not set from scripts`);
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
    return;
  }
  const text = value === true ? "" : String(value);
  if (ADDRESSES.has(name.toLowerCase()) && !SAFE_ADDRESS.test(text)) throw new TypeError(`${name} is no address to follow`);
  if (node.getAttribute(name) !== text) node.setAttribute(name, text);
}

function build(node, attrs, children) {
  for (const [name, value] of Object.entries(attrs || {})) {
    if (name === "class") node.setAttribute("class", Array.isArray(value) ? value.filter(Boolean).join(" ") : value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    else if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else setAttr(node, name, value);
  }
  append(node, children);
  return node;
}

export function el(tag, attrs, ...children) {
  return build(document.createElement(tag), attrs, children);
}

export function svg(tag, attrs, ...children) {
  return build(document.createElementNS(SVG, tag), attrs, children);
}

export function icon(name, label = "") {
  const attrs = label ? { class: "icon", role: "img", "aria-label": label } : { class: "icon", "aria-hidden": "true" };
  return svg("svg", attrs, svg("use", { href: `#i-${name}` }));
}

/** Makes an icon show another symbol. */
export function setIcon(node, name) {
  setAttr(node.querySelector("use"), "href", `#i-${name}`);
}

export function button(label, { icon: name, kind = "", small = false, onClick, ...attrs } = {}) {
  return el(
    "button",
    { type: "button", class: ["button", kind, small && "small"], on: onClick ? { click: onClick } : {}, ...attrs },
    name && icon(name),
    el("span", {}, label),
  );
}

export function iconButton(label, name, { kind = "ghost", small = false, onClick, ...attrs } = {}) {
  return el(
    "button",
    {
      type: "button",
      class: ["button", "square", kind, small && "small"],
      "aria-label": label,
      title: label,
      on: onClick ? { click: onClick } : {},
      ...attrs,
    },
    icon(name),
  );
}

export function badge(tone, text, name = "") {
  return el("span", { class: "badge", dataset: { tone } }, name && icon(name), el("span", {}, text));
}

const TONE_ICONS = { good: "up", warn: "warn", bad: "out", info: "info", mute: "info" };

export function notice(tone, ...children) {
  const role = tone === "bad" ? "alert" : "status";
  return el("div", { class: "notice", role, dataset: { tone } }, icon(TONE_ICONS[tone] || "info"), el("div", {}, ...children));
}

export function empty(title, ...children) {
  return el("div", { class: "empty" }, el("p", { class: "empty-title" }, title), ...children);
}

let ids = 0;

export function uniqueId(prefix = "id") {
  ids += 1;
  return `${prefix}-${ids}`;
}

export function field(label, control, hint = "") {
  if (!control.id) control.id = uniqueId("field");
  const note = hint ? el("p", { class: "hint", id: `${control.id}-hint` }, hint) : null;
  if (note) control.setAttribute("aria-describedby", note.id);
  return el("div", { class: "field" }, el("label", { for: control.id }, label), control, note);
}

/** Writes a text only where it differs: an unchanged node costs no layout. */
export function setText(node, text) {
  const value = String(text);
  if (node.textContent !== value) node.textContent = value;
}

export function replace(node, ...children) {
  node.replaceChildren();
  append(node, children);
}

const TOAST_MS = 5000;

export function toast(text, tone = "info") {
  const node = el("div", { class: "toast", dataset: { tone } }, icon(TONE_ICONS[tone] || "info"), el("span", {}, text));
  const place = document.getElementById("toasts");
  while (place.children.length >= 4) place.firstChild.remove();
  place.append(node);
  setTimeout(() => node.remove(), TOAST_MS);
}

export function announce(text) {
  setText(document.getElementById("announce"), text);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No secure context (plain http to another machine), or not allowed: the old way, by a selection.
  }
  const area = el("textarea", { class: "visually-hidden", "aria-hidden": "true", tabindex: "-1" });
  const focused = document.activeElement;
  // Inside an open dialog everything outside of it is inert, and a selection there copies nothing.
  ((focused && focused.closest("dialog")) || document.body).append(area);
  area.value = text;
  area.select();
  let done = false;
  try {
    done = document.execCommand("copy");
  } catch {
    done = false;
  }
  area.remove();
  if (focused) focused.focus();
  return done;
}

export function copyButton(textOf, label = "Copy") {
  const node = iconButton(label, "copy", { small: true });
  node.addEventListener("click", async (event) => {
    event.stopPropagation();
    const done = await copy(textOf());
    setIcon(node, done ? "check" : "warn");
    announce(done ? "Copied" : "Could not be copied");
    setTimeout(() => setIcon(node, "copy"), 1500);
  });
  return node;
}

/** Asks before something is done. Escape and Cancel are no. */
export function confirm({ title, text = "", action = "OK", danger = false }) {
  const dialog = document.getElementById("confirm-dialog");
  const yes = document.getElementById("confirm-yes");
  setText(document.getElementById("confirm-title"), title);
  setText(document.getElementById("confirm-text"), text);
  setText(yes, action);
  yes.className = danger ? "button danger" : "button primary";
  return new Promise((resolve) => {
    const close = (value) => () => {
      dialog.returnValue = value;
      dialog.close(value);
    };
    yes.onclick = close("yes");
    document.getElementById("confirm-no").onclick = close("");
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
    (danger ? document.getElementById("confirm-no") : yes).focus();
  });
}
