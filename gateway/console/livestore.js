// What the live feed has told: the state of everything that the Live page shows, in the feed's own terms.
// Pure: events in, state out; no DOM, no clock. Bounded: `kept_s` points, 60 values of a sparkline, 200 requests.
//
//   const store = new LiveStore(); store.take("history" | "tick", data) -> Changes
//   store.points, .at (column name -> index), .engines (Map key -> Engine), .sparks (Map key -> values), .alerts, .slos,
//   .requests (oldest first), .now_s (the gateway's clock), .info {version, started, slo, …}
// Changes: {all, engines: Set of keys, gone: Set of keys, alerts, slos, requests: [new ones], skipped}

export const SPARK_VALUES = 60;
export const KEPT_REQUESTS = 200;

export function keyOf(engine) {
  return `${engine.model} ${engine.engine}`;
}

// Shape, tone and words of each state of an engine; one that is new to this console is shown by its name.
const STATES = {
  up: { tone: "good", icon: "up", label: "Up" },
  down: { tone: "bad", icon: "out", label: "Down" },
  open: { tone: "bad", icon: "out", label: "Breaker open" },
  misconfigured: { tone: "bad", icon: "warn", label: "Misconfigured" },
  half_open: { tone: "warn", icon: "half", label: "Half open" },
  resting: { tone: "warn", icon: "rest", label: "Resting" },
  draining: { tone: "info", icon: "drain", label: "Draining" },
  removed: { tone: "mute", icon: "gone", label: "Removed" },
};

export function stateOf(engine) {
  const known = Object.prototype.hasOwnProperty.call(STATES, engine.state) ? STATES[engine.state] : null;
  return known || { tone: engine.available ? "info" : "bad", icon: engine.available ? "info" : "out", label: String(engine.state) };
}

const ALERT_RANK = { firing: 0, pending: 1, silenced: 2, resolved: 3 };

/** Alerts in the order in which they matter: the state, then the newest first. */
export function ranked(alerts) {
  const rank = (alert) => (alert.state in ALERT_RANK ? ALERT_RANK[alert.state] : 2);
  return [...alerts].sort((a, b) => rank(a) - rank(b) || (b.since || 0) - (a.since || 0));
}

export class LiveStore {
  constructor() {
    this.info = {};
    this.now_s = 0;
    this.at = {};
    this.points = [];
    this.engines = new Map();
    this.sparks = new Map();
    this.alerts = [];
    this.slos = [];
    this.requests = [];
    this._kept = 900;
  }

  take(event, data) {
    if (event === "history") return this._history(data);
    if (event === "tick") return this._tick(data);
    return null; // an event of a later gateway
  }

  _history(data) {
    const before = new Set(this.engines.keys());
    const known = new Set(this.requests.map((request) => request.id));
    this.info = data;
    this.now_s = data.now;
    this.at = Object.fromEntries(data.columns.map((name, at) => [name, at]));
    this._kept = Math.ceil(data.kept_s / data.interval_s);
    this.points = data.points.slice(-this._kept);
    this.engines = new Map(data.engines.map((engine) => [keyOf(engine), engine]));
    this.sparks = new Map();
    for (const key of this.engines.keys()) this.sparks.set(key, filled(data.sparks[key] || []));
    this.alerts = data.alerts;
    this.slos = data.slos;
    this.requests = data.requests.slice(-KEPT_REQUESTS);
    return {
      all: true,
      engines: new Set(this.engines.keys()),
      gone: new Set([...before].filter((key) => !this.engines.has(key))),
      alerts: true,
      slos: true,
      requests: this.requests.filter((request) => !known.has(request.id)),
      skipped: 0,
    };
  }

  _tick(data) {
    this.now_s = data.now;
    if (data.point) this.points.push(data.point);
    if (this.points.length > this._kept) this.points.splice(0, this.points.length - this._kept);
    const changed = new Set();
    for (const engine of data.engines || []) {
      const key = keyOf(engine);
      this.engines.set(key, engine);
      if (!this.sparks.has(key)) this.sparks.set(key, filled([]));
      changed.add(key);
    }
    for (const [key, values] of this.sparks) {
      const value = data.sparks ? data.sparks[key] : undefined;
      values.push(typeof value === "number" ? value : null);
      values.shift();
    }
    const gone = new Set(data.gone || []);
    for (const key of gone) {
      this.engines.delete(key);
      this.sparks.delete(key);
      changed.delete(key);
    }
    if (data.alerts) this.alerts = data.alerts;
    if (data.slos) this.slos = data.slos;
    const fresh = data.requests || [];
    this.requests.push(...fresh);
    if (this.requests.length > KEPT_REQUESTS) this.requests.splice(0, this.requests.length - KEPT_REQUESTS);
    return {
      all: false,
      engines: changed,
      gone,
      alerts: Boolean(data.alerts),
      slos: Boolean(data.slos),
      requests: fresh,
      skipped: data.skipped || 0,
    };
  }

  /** Engines by model, models and engines by name (numbers in them by their value). */
  groups() {
    const groups = new Map();
    for (const [key, engine] of this.engines) {
      if (!groups.has(engine.model)) groups.set(engine.model, []);
      groups.get(engine.model).push(key);
    }
    const sorted = [...groups].sort(([a], [b]) => byName(a, b));
    for (const [, keys] of sorted) keys.sort(byName);
    return new Map(sorted);
  }
}

const collator = new Intl.Collator("en", { numeric: true });

export function byName(a, b) {
  return collator.compare(a, b);
}

function filled(values) {
  const kept = values.slice(-SPARK_VALUES).map((value) => (typeof value === "number" ? value : null));
  return [...new Array(SPARK_VALUES - kept.length).fill(null), ...kept];
}
