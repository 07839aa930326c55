// Alerts and error budgets of the Live page.
//
//   const alerts = new Alerts(); alerts.element; alerts.draw(store)
//   const budgets = new Budgets(); budgets.element; budgets.draw(store)

import { clock, compact, dateTime, duration, number, percent } from "./format.js";
import { ranked } from "./livestore.js";
import { badge, el, icon, replace, setAttr, setText } from "./ui.js";

const STATES = {
  firing: { tone: "bad", icon: "out" },
  pending: { tone: "warn", icon: "half" },
  silenced: { tone: "mute", icon: "rest" },
  resolved: { tone: "good", icon: "up" },
};
const BUDGET_LOW = 0.25;

const looks = (state) => STATES[state] || { tone: "info", icon: "info" };

export class Alerts {
  constructor() {
    this._count = el("span", { class: "row" });
    this._list = el("ul", { class: "alert-list", tabindex: 0, role: "list", "aria-label": "Alerts" });
    this._ages = [];
    this.element = el(
      "section",
      { class: "card alerts", id: "live-alerts", "aria-labelledby": "alerts-title" },
      el("header", { class: "card-head" }, el("h2", { id: "alerts-title" }, "Alerts"), this._count),
      this._list,
    );
  }

  draw(store) {
    const alerts = ranked(store.alerts);
    const states = new Map();
    for (const { state } of alerts) states.set(state, (states.get(state) || 0) + 1);
    replace(this._count, [...states].map(([state, count]) => badge(looks(state).tone, `${count} ${state}`, looks(state).icon)));
    this._ages = [];
    if (alerts.length === 0) {
      replace(this._list, el("li", { class: "calm" }, el("span", { dataset: { tone: "good" } }, icon("up")), "No alert is firing."));
      return;
    }
    replace(this._list, alerts.map((alert) => this._item(alert)));
    this.age(store.now_s);
  }

  /** Says how old each is, by the gateway's clock. */
  age(now_s) {
    for (const [node, since] of this._ages) setText(node, `for ${age(now_s - since)}`);
  }

  _item(alert) {
    const { tone, icon: name } = looks(alert.state);
    const age = el("span", { title: dateTime(alert.since) });
    if (alert.state === "resolved") setText(age, `since ${clock(alert.since)}`);
    else this._ages.push([age, alert.since]);
    const labels = Object.entries(alert.labels || {}).map(([key, value]) => el("span", { class: "chip" }, `${key}=${value}`));
    return el(
      "li",
      { class: "alert", dataset: { alert: alert.name, state: alert.state, tone } },
      el("span", { class: "alert-mark" }, icon(name)),
      el(
        "div",
        { class: "alert-what" },
        el("p", {}, el("b", {}, alert.name), " ", el("span", { class: "alert-state" }, alert.state), " ", age),
        alert.summary && el("p", { class: "muted" }, alert.summary),
        el("p", { class: "row chips" }, labels, alert.value !== null && alert.value !== undefined && el("span", { class: "chip" }, `value ${compact(alert.value)}`)),
      ),
    );
  }
}

/** Whole seconds: a figure that counts up needs no tenths. */
function age(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  return whole < 60 ? `${whole} s` : duration(whole * 1000);
}

/** The tone of what is left of an error budget. */
function budgetTone(remaining) {
  if (remaining <= 0) return "bad";
  return remaining < BUDGET_LOW ? "warn" : "good";
}

export class Budgets {
  constructor() {
    this._list = el("ul", { class: "slo-list", tabindex: 0, role: "list", "aria-label": "Error budgets" });
    this.element = el(
      "section",
      { class: "card budgets", id: "live-slos", "aria-labelledby": "slos-title" },
      el("header", { class: "card-head" }, el("h2", { id: "slos-title" }, "Error budgets")),
      this._list,
    );
  }

  draw(store) {
    if (store.slos.length === 0) {
      const set = store.info.slo && (store.info.slo.availability !== null || store.info.slo.latency_ms !== null);
      replace(this._list, el("li", { class: "calm muted" }, set ? "No figures yet." : ["No objective is set: ", el("code", {}, "SLO_AVAILABILITY"), ", ", el("code", {}, "SLO_LATENCY_MS"), "."]));
      return;
    }
    replace(this._list, store.slos.map((slo) => this._item(slo)));
  }

  _item(slo) {
    const remaining = slo.budget_remaining;
    const tone = budgetTone(remaining);
    const bar = el("span", { style: { "--part": String(Math.min(1, Math.max(0, remaining))) } });
    const meter = el("span", { class: "meter", role: "img", "aria-label": `${percent(remaining)} of the error budget is left` }, bar);
    const burn = Object.entries(slo.burn || {}).map(([window, rate]) => {
      const chip = el("span", { class: "burn" }, `${window} `, el("b", {}, `${number(rate, rate < 10 ? 2 : 0)}×`));
      // Above 1 the budget does not last for its period.
      if (rate > 1) setAttr(chip, "data-tone", rate >= 10 ? "bad" : "warn");
      return chip;
    });
    return el(
      "li",
      { class: "slo", dataset: { slo: `${slo.model} ${slo.objective}`, tone } },
      el("p", { class: "slo-head" }, el("b", { class: "truncate", title: slo.model }, slo.model), el("span", { class: "slo-left" }, tone !== "good" && icon(tone === "bad" ? "out" : "warn"), ` ${percent(remaining)} left`)),
      meter,
      el("p", { class: "row small muted" }, el("span", {}, `${slo.objective} ${percent(slo.target)} · burn`), burn),
    );
  }
}
