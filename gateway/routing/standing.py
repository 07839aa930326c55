"""What an engine's state becomes: by a request's outcome, by a probe's result, by an operator's word.

`Standing` owns nothing but these rules: it writes the fields of an `Engine` that say how it is, and its breaker. The
pool's lock guards those: who calls a method that ends in `_locked` holds it. It neither chooses engines nor counts
their requests.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from gateway.routing.breaker import CLOSED, HALF_OPEN
from gateway.routing.engine import FAILURE_LATENCY_S, UNPROVEN, Engine
from gateway.routing.line import Lease
from gateway.routing.members import Members
from gateway.routing.retry import MISCONFIGURED_S, Outcome, rest_s

HINTED = "another gateway has found it failing"


class StateChange(NamedTuple):
    """An engine went from one state to another (from `new`: the first word of one that was discovered); returned to
    the caller, who logs it outside the lock."""

    model: str
    engine: str
    before: str
    after: str
    reason: str


class Standing:
    """The rules for one model's engines. Each method returns the change of state, if any."""

    def __init__(self, members: Members) -> None:
        self._members = members

    def answered_locked(self, lease: Lease, duration_s: float, now_s: float) -> Optional[StateChange]:
        """A stream's first event has come. See `ModelPool.answered`."""
        if lease.ticket < lease.engine.since_ticket:
            lease.counted = -1
            return None
        return self._good_locked(lease, duration_s, now_s, first_event=True)

    def ended_locked(
        self, lease: Lease, blame: str, outcome: Outcome, duration_s: float, now_s: float
    ) -> Optional[StateChange]:
        """A request has ended, and `blame` (`Verdict.blame`) is what the engine gets for its outcome."""
        engine = lease.engine
        breaker = engine.breaker
        if blame == "good":
            if lease.counted is None:
                return self._good_locked(lease, duration_s, now_s)
            return self._ended_well_locked(engine, now_s)
        before = engine.state(now_s)
        # A 429 or a refused key says nothing about the engine's health, and a refused connection has an end of its own
        # (the next good probe), which an open breaker would only put off: the breaker learns nothing from them.
        failed = True if blame == "failure" else None
        state = breaker.state
        if lease.counted is None:
            breaker.record(lease.ticket, failed, now_s)
        elif failed:
            breaker.broke(lease.ticket, lease.counted, now_s)
        if breaker.state != state or state == HALF_OPEN:
            self._members.stale = True
        self._blame_locked(engine, blame, outcome, duration_s, now_s)
        return self._change_locked(engine, before, now_s, outcome.message)

    def _good_locked(
        self, lease: Lease, duration_s: float, now_s: float, first_event: bool = False
    ) -> Optional[StateChange]:
        engine = lease.engine
        breaker = engine.breaker
        engine.observe_latency(duration_s, now_s)
        engine.ok_at_s = now_s
        engine.answered = True
        # Nothing to change on the usual way: comparisons instead of two state strings.
        usual = breaker.state == CLOSED and not (engine.down or engine.fails) and engine.out_until_s <= now_s
        before = "" if usual else engine.state(now_s)
        state = breaker.state
        if first_event:
            lease.ticket, lease.counted = breaker.answer(lease.ticket, now_s)
        else:
            breaker.record(lease.ticket, False, now_s)
        if usual:
            return None
        if breaker.state != state or state == HALF_OPEN:
            self._members.stale = True
        _in_again(engine)
        engine.fails = 0
        if engine.out_reason == "misconfigured":
            engine.out_until_s = min(engine.out_until_s, now_s)  # its key was put right
        return self._change_locked(engine, before, now_s, "")

    def _ended_well_locked(self, engine: Engine, now_s: float) -> Optional[StateChange]:
        """A stream whose first event was counted has ended: the engine is there, which is all that is new."""
        before = engine.state(now_s) if engine.down else ""
        engine.ok_at_s = now_s
        engine.down = False
        engine.fails = 0
        return self._change_locked(engine, before, now_s, "") if before else None

    def _blame_locked(self, engine: Engine, blame: str, outcome: Outcome, duration_s: float, now_s: float) -> None:
        if blame == "none":
            return
        engine.last_error = outcome.message or outcome.kind
        if blame in ("rest", "misconfigured"):
            until_s = now_s + (rest_s(outcome) if blame == "rest" else MISCONFIGURED_S)
            if until_s > engine.out_until_s:  # the longer reason counts
                engine.out_until_s = until_s
                engine.out_reason = "resting" if blame == "rest" else "misconfigured"
        if blame == "rest":
            return
        engine.failed_at_s = now_s
        engine.observe_latency(max(duration_s, FAILURE_LATENCY_S), now_s)
        if blame == "down":
            engine.down = True
            engine.passes = 0
            engine.misses += 1

    def probed_locked(
        self, engine: Engine, error: Optional[str], fails_to_down: int, passes_to_up: int, now_s: float
    ) -> Optional[StateChange]:
        """A probe has failed with `error`; None: it has passed."""
        before, is_new = engine.state(now_s), engine.unproven
        if error is None:
            engine.answered = True
            engine.fails = 0
            engine.passes += 1
            if engine.passes >= passes_to_up:
                _in_again(engine)
        else:
            engine.passes = 0
            engine.misses += 1
            engine.fails += 1
            engine.last_error = error
            if engine.fails >= fails_to_down:
                engine.down = True
        if is_new and engine.last_error != UNPROVEN:
            before = "new"
        return self._change_locked(engine, before, now_s, error or "probe passed")

    def hinted_locked(self, engine: Engine, left_s: float, now_s: float) -> Optional[StateChange]:
        """Another gateway has left the engine alone; so does this one, unless no other one is in."""
        others = any(other is not engine and other.available(now_s) for other in self._members.engines)
        before = engine.state(now_s)
        if not others or before != "up":
            return None
        engine.breaker.hear(left_s, now_s)
        return self._change_locked(engine, before, now_s, HINTED)

    def heard_locked(
        self, engine: Engine, state: str, left_s: float, error: Optional[str], now_s: float
    ) -> Optional[StateChange]:
        """Another process has found it in this state. See `Roster.hear`."""
        before = engine.state(now_s)
        if error is not None:
            engine.last_error = error
        if state == "open":
            engine.breaker.hear(left_s, now_s)
        elif state == "down":
            engine.down = True
            engine.passes = 0
        elif state in ("resting", "misconfigured"):
            if now_s + left_s > engine.out_until_s:
                engine.out_until_s, engine.out_reason = now_s + left_s, state
        elif state == "up":
            _in_again(engine)
            engine.fails = 0
            engine.answered = True
            engine.breaker.hear(None, now_s)
            if engine.out_reason == "misconfigured":
                engine.out_until_s = min(engine.out_until_s, now_s)
        self._members.stale = True
        return self._change_locked(engine, before, now_s, error or "another process")

    def draining_locked(self, engine: Engine, draining: bool, now_s: float) -> Optional[StateChange]:
        """An operator takes the engine out, or lets it in again."""
        before = engine.state(now_s)
        engine.draining = draining
        if not draining:
            engine.down = False
        return self._change_locked(engine, before, now_s, "operator")

    def _change_locked(self, engine: Engine, before: str, now_s: float, reason: str) -> Optional[StateChange]:
        after = engine.state(now_s)
        if after == before:
            return None
        self._members.stale = True
        return StateChange(engine.model_name, engine.id, before, after, reason)


def _in_again(engine: Engine) -> None:
    engine.down = False
    if engine.last_error == UNPROVEN:
        engine.last_error = None
