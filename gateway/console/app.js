// The shell: which page is shown, who uses it, the theme, whether what is shown is fresh. Owns the only Api, Session and
// Shortcuts. A page module exports `page`:
//
//   export const page = {id, title, permission, mount(root, context) [may be async]}
//
// `context`: {api, session, signal, connection(state, text), shortcuts(list), fail(error)}.
// A page is mounted into an empty element when it is gone to, or when somebody else signs in, and its `signal` aborted
// before another is; it keeps nothing in the document, and no timer, after that. Pages are loaded when first gone to.

import { Api } from "./api.js";
import { Session } from "./session.js";
import { Shortcuts } from "./shortcuts.js";
import { announce, button, el, notice, replace, setAttr, setIcon, setText } from "./ui.js";

const PAGES = {
  live: () => import("./live.js"),
  playground: () => import("./playground.js"),
  verify: () => import("./verify.js"),
  admin: () => import("./admin.js"),
};
const FIRST = "live";
const NAME = "Inference Gateway";
const THEME_ICONS = { system: "system", light: "sun", dark: "moon" };

const byId = (id) => document.getElementById(id);
const main = byId("main");
let mounted = null; // the page that is in `main`
let gone = new AbortController(); // aborted when a page is left: what belongs to an earlier one is dropped

const api = new Api({ onUnauthorized: () => session.expired() });
const session = new Session(api, { onChange: changed });
const shortcuts = new Shortcuts();

function wanted() {
  const id = window.location.hash.replace(/^#\/?/, "").split(/[/?]/)[0];
  return Object.prototype.hasOwnProperty.call(PAGES, id) ? id : FIRST;
}

function connection(state, text = "") {
  const node = byId("connection");
  setAttr(node, "hidden", state === "idle");
  setAttr(node, "data-connection", state);
  setText(byId("connection-text"), text);
}

function leave() {
  gone.abort(); // a listener that throws is told of in the console, and keeps no other from ending
  mounted = null;
  shortcuts.page("", []);
  connection("idle");
  replace(main);
}

async function go() {
  const id = wanted();
  for (const link of byId("nav").querySelectorAll("a")) setAttr(link, "aria-current", link.dataset.page === id ? "page" : null);
  leave();
  document.documentElement.dataset.page = id;
  if (session.state !== "open" && session.state !== "in") return;
  gone = new AbortController();
  const { signal } = gone;
  const root = el("div", { class: "page-root", id: `page-${id}` });
  replace(main, el("div", { class: "page-loading" }, el("span", { class: "spinner", role: "img", "aria-label": "Loading" })));
  let page;
  try {
    page = (await PAGES[id]()).page;
  } catch (error) {
    console.warn(error);
    if (!signal.aborted) problem(root, "This page could not be loaded", "The gateway may have been stopped or replaced.");
    return;
  }
  if (signal.aborted) return;
  document.title = `${page.title} · ${NAME}`;
  announce(page.title);
  replace(main, root);
  mounted = page;
  try {
    await page.mount(root, {
      api,
      session,
      signal,
      connection: (...state) => signal.aborted || connection(...state),
      shortcuts: (list) => signal.aborted || shortcuts.page(page.title, list),
      fail: (error) => signal.aborted || fail(page, error),
    });
  } catch (error) {
    if (!signal.aborted) fail(page, error);
  }
}

/** What stands in a page's place when it cannot be shown. */
function fail(page, error) {
  if (error.aborted || error.status === 401) return; // it was left; or the dialog is open
  if (!error.status && error.name !== "ApiError") console.error(error);
  leave();
  const root = el("div", { class: "page-root", id: `page-${page.id}` });
  if (error.status === 403) {
    const permission = error.permission || page.permission;
    problem(root, `This key may not see ${page.title}`, permission ? `It lacks the permission “${permission}”, which keys of the role admin have.` : error.message, "forbidden");
    return;
  }
  problem(root, `${page.title} cannot be shown`, error.message, error.code || "failed");
}

function problem(root, title, text, reason = "failed") {
  const actions = el("div", { class: "row" }, button("Try again", { icon: "refresh", onClick: go }));
  if (reason === "forbidden") actions.append(button("Use another key", { icon: "lock", onClick: () => session.ask() }));
  replace(root, card(reason, title, notice(reason === "forbidden" ? "warn" : "bad", text), actions));
  replace(main, root);
}

/** One thing to say in the place of a page. `data-problem` says which. */
function card(reason, title, ...children) {
  return el("div", { class: "page-problem card", dataset: { problem: reason } }, el("div", { class: "card-body stack" }, el("h1", {}, title), ...children));
}

function changed(state) {
  if (state === "open" || state === "in") {
    go();
    return;
  }
  leave();
  if (state !== "out") return;
  // Behind the dialog: a browser lets a second Escape close it, whatever the page says.
  const signIn = button("Sign in", { icon: "lock", kind: "primary", onClick: () => session.ask() });
  replace(main, card("signed-out", "You are not signed in", el("p", { class: "muted" }, "This gateway asks for a key."), el("div", { class: "row" }, signIn)));
}

async function begin() {
  replace(main, el("div", { class: "page-loading" }, el("span", { class: "spinner", role: "img", "aria-label": "Loading" })));
  try {
    await session.begin();
  } catch (error) {
    const again = el("div", { class: "row" }, button("Try again", { icon: "refresh", onClick: begin }));
    replace(main, card("unreachable", "No gateway answers", notice("bad", error.message), again));
  }
}

function showTheme() {
  const choice = window.consoleTheme.choice();
  const node = byId("theme");
  setIcon(node, THEME_ICONS[choice]);
  setAttr(node, "aria-label", `Theme: ${choice}`);
  setAttr(node, "title", `Theme: ${choice} (t)`);
}

function nextTheme() {
  const { CHOICES, choice, choose } = window.consoleTheme;
  choose(CHOICES[(CHOICES.indexOf(choice()) + 1) % CHOICES.length]);
  announce(`Theme: ${choice()}`);
}

function listen() {
  // What follows the page's name in the hash is the page's own.
  window.addEventListener("hashchange", () => (mounted && mounted.id === wanted() ? undefined : go()));
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the hash is the route
    main.focus();
  });
  byId("theme").addEventListener("click", nextTheme);
  byId("help").addEventListener("click", () => shortcuts.help());
  document.addEventListener("themechange", showTheme);
  showTheme();
  shortcuts.shell([
    ...Object.keys(PAGES).map((id, at) => ({
      keys: String(at + 1),
      label: `Go to ${id[0].toUpperCase()}${id.slice(1)}`,
      run: () => {
        window.location.hash = id;
      },
    })),
    { keys: "t", label: "Change the theme", run: nextTheme },
    { keys: "?", label: "Show this help", run: () => shortcuts.help() },
  ]);
}

listen();
begin();
