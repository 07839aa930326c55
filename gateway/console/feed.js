// One stream of events that is kept open: opened again with back-off when it breaks, and told to be stale when nothing
// comes. Owns a timer and a connection while it runs; knows nothing of what the events mean, and nothing of the DOM.
//
//   const feed = new Feed(api, "api/v1/live", {onEvent({event, data}), onState(state), silence_s: 4});
//   feed.start(); feed.stop();
//
// onState gets {state, error, attempt, retryInS}: state is
//   "connecting"    asked, no event yet
//   "open"          events come
//   "stalled"       the connection stands, but nothing has come for `silence_s`; after three times that it is opened anew
//   "reconnecting"  it broke: tried again in `retryInS`
//   "refused"       401 or 403 or 404: only a person can mend that; not tried again
//   "stopped"
// `data` is parsed JSON. An event that is none, or at which `onEvent` throws, breaks the connection, as a lost one would.

export const FIRST_PAUSE_S = 0.5;
export const LONGEST_PAUSE_S = 15;
const REFUSED = [401, 403, 404];

/** The pause before the next try; `attempt` counts from 1, `chance` is in [0, 1): between half of it and all. */
export function pause_s(attempt, chance) {
  const longest = Math.min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** Math.min(attempt - 1, 10));
  return longest * (0.5 + chance / 2);
}

export class Feed {
  constructor(api, path, { onEvent, onState, silence_s = 4, chance = Math.random }) {
    this._api = api;
    this._path = path;
    this._onEvent = onEvent;
    this._onState = onState;
    this._silence_ms = silence_s * 1000;
    this._chance = chance;
    this._abort = null; // of the connection that stands or is being made
    this._timer = 0; // the watch over silence, or the pause before the next try
    this._attempt = 0;
    this._run = 0; // which start this is: what an earlier one still says does not count
    this._wake = () => this._retryNow();
  }

  start() {
    if (this._run % 2 === 1) return;
    this._run += 1;
    this._attempt = 0;
    window.addEventListener("online", this._wake);
    this._connect();
  }

  stop() {
    if (this._run % 2 === 0) return;
    this._run += 1;
    window.removeEventListener("online", this._wake);
    this._end();
    this._say("stopped");
  }

  _say(state, more = {}) {
    this.state = state;
    this._onState({ state, error: null, attempt: this._attempt, retryInS: 0, ...more });
  }

  _end() {
    clearTimeout(this._timer);
    if (this._abort) this._abort.abort();
    this._abort = null;
  }

  _retryNow() {
    if (this.state !== "reconnecting") return;
    clearTimeout(this._timer);
    this._connect();
  }

  async _connect() {
    const run = this._run;
    const abort = new AbortController();
    this._abort = abort;
    const current = () => this._run === run && this._abort === abort;
    this._say("connecting");
    this._watch(current, 3);
    let failure = null;
    try {
      for await (const event of this._api.events(this._path, { signal: abort.signal })) {
        if (!current()) return;
        if (this.state !== "open") {
          this._attempt = 0;
          this._say("open");
        }
        this._watch(current);
        this._onEvent({ event: event.event, data: JSON.parse(event.data) });
      }
    } catch (error) {
      failure = error;
    }
    if (!current()) return;
    this._end();
    if (failure && REFUSED.includes(failure.status)) {
      this._say("refused", { error: failure });
      return;
    }
    this._attempt += 1;
    const retryInS = Math.max(pause_s(this._attempt, this._chance()), (failure && failure.retryAfterS) || 0);
    this._say("reconnecting", { error: failure, retryInS });
    this._timer = setTimeout(() => this._run === run && this._connect(), retryInS * 1000);
  }

  /** Silence is told of, and a connection that stays silent is given up: a machine that is gone closes nothing. */
  _watch(current, times = 1) {
    clearTimeout(this._timer);
    this._timer = setTimeout(() => {
      if (!current()) return;
      if (this.state === "open") {
        this._say("stalled");
        this._watch(current, 2);
        return;
      }
      const abort = this._abort;
      if (abort) abort.abort(); // the loop above ends with it, and connects anew
    }, this._silence_ms * times);
  }
}
