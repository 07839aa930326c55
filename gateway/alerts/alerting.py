"""Alerts at work: every few seconds what the rules look at is read, judged, shown and sent.

`Alerts` owns the thread `alerts`, which alone touches the rules' states (`Book`) and the readings (`Measuring`); what
it shows is a tuple that is replaced whole, so nobody who reads it takes a lock. Answers' times are counted by
`Slowdowns`, under its own lock; everything else was counted by the metrics. Sending is the thread of `Sender`, which
never delays this one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

from gateway.alerts.measuring import EngineNow, Measuring, Numbers, Reading, SloNow
from gateway.alerts.messages import RESEND_S, notice_of
from gateway.alerts.rules import Labels, RuleSet
from gateway.alerts.sending import ALERTMANAGER, Log, Sender
from gateway.alerts.slowdowns import Slowdowns
from gateway.alerts.states import FIRING, PENDING, RESOLVED, Book, Shown, Transition
from gateway.clock import unix_s
from gateway.telemetry.events import RequestEvent

RESOLVED_RESENT_S = 900.0
"""An Alertmanager is told so long that an alert has resolved, as Prometheus does it: one that was away hears of it."""
LAST_S = 2.0
"""At the end, for what is still to be sent."""
STATES = (PENDING, FIRING, RESOLVED)


class Sources(NamedTuple):
    """Whom the rules ask; each is called on the thread `alerts` and must not block."""

    numbers: Callable[[], Numbers]
    engines: Callable[[], Sequence[EngineNow]]
    queue: Callable[[], tuple[int, int]]
    budgets: Callable[[], Sequence[tuple[str, float]]]
    slos: Callable[[], Sequence[SloNow]]
    bounds_s: tuple[float, ...]


class Alerts:
    """Judges the rules while it runs. `start` and `close` belong to one thread; everything else is for any.

    `clock` gives Unix seconds, `monotonic` monotonic ones; without `start`, `look` may be called by whoever has them.
    """

    def __init__(
        self,
        rules: RuleSet,
        clock: Callable[[], float] = unix_s,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._rules = rules
        self._taken = rules  # by the thread
        self.slowdowns = Slowdowns(_wants_slowdowns(rules))
        self._book = Book(rules.rules, rules.silences)
        self._measuring = Measuring(rules.rules)
        self._shown: tuple[Shown, ...] = ()
        self.leads: Callable[[], bool] = lambda: True
        """Whether this is the one of the gateway's processes that judges; the others show what it has told (`hear`)."""
        self.share: Callable[[list[dict[str, Any]]], None] = lambda told: None
        """Gets what there is to be shown after each look of the leader's. Both are set before `start`."""
        self._heard: list[dict[str, Any]] = []
        self._judges = False  # has judged at the last look
        self._sources: Optional[Sources] = None
        self._log: Optional[Log] = None
        self.sender: Optional[Sender] = None
        self._instance = ""
        self._told: dict[Labels, str] = {}  # in which state the other side was told that an alert is
        self._resend_at_s = 0.0
        self._failed = ""
        self._wake = threading.Event()
        self._closing = False
        self._thread: Optional[threading.Thread] = None

    def bind(self, sources: Sources, log: Log, instance: str, sender: Optional[Sender] = None) -> None:
        """Before `start`: whom the rules ask, who writes lines, this gateway's name, who sends (None: nobody)."""
        self._sources, self._log, self._instance, self.sender = sources, log, instance, sender

    def observe(self, events: Sequence[RequestEvent]) -> None:
        """Count finished requests."""
        self.slowdowns.observe(events)

    def start(self) -> None:
        """Start looking and sending."""
        if self.sender is not None:
            self.sender.start()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Look no more; send what is left, within two seconds."""
        timeout_s = min(timeout_s, LAST_S)
        deadline_s = time.monotonic() + timeout_s
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self.sender is not None:
            self.sender.close(max(0.0, deadline_s - time.monotonic()))

    def replace(self, rules: RuleSet) -> None:
        """Judge by other rules from the next look on, which is now; alerts whose rules are gone resolve."""
        self._rules = rules
        self.slowdowns.wanted = _wants_slowdowns(rules)
        self._wake.set()

    # --- what is shown -----------------------------------------------------------------------------------------------

    def told(self) -> list[dict[str, Any]]:
        """Every alert that is pending, firing, or has resolved within an hour, as JSON."""
        return [_as_json(shown) for shown in self._shown] if self._judges else self._heard

    def hear(self, told: list[dict[str, Any]]) -> None:
        """The leader's alerts."""
        self._heard = told

    def state(self) -> list[dict[str, Any]]:
        """What a new process needs to know, for `restore`: as `told`."""
        return self.told()

    def restore(self, state: list[dict[str, Any]]) -> None:
        """As `hear`."""
        self.hear(state)

    def counts(self) -> list[tuple[tuple[str, str], int]]:
        """How many alerts each rule has in each state: ((name, state), count)."""
        counts = {(rule.name, state): 0 for rule in self._rules.rules for state in STATES}
        for shown in self._shown:
            key = (shown.rule.name, shown.state)
            if key in counts:
                counts[key] += 1
        return list(counts.items())

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            try:
                self.look()
                self._failed = ""
            except Exception as error:  # whatever it is, the next look may go well
                text = f"{type(error).__name__}: {error}"
                if text != self._failed and self._log is not None:
                    self._failed = text
                    self._log("error", "alerts", message=text)
            if self._wake.wait(self._rules.interval_s):
                self._wake.clear()  # before the rules are read again, which `replace` sets before it wakes

    def look(self) -> list[Transition]:
        """Read, judge, show and hand over to be sent; returns what has changed. For one thread."""
        assert self._sources is not None
        rules = self._rules
        if rules is not self._taken:
            self._taken = rules
            self._book.replace(rules.rules, rules.silences)
            self._measuring.replace(rules.rules)
        if not self.leads():
            self._rest(rules)
            return []
        self._judges = True
        now_s, now_unix_s = self._monotonic(), self._clock()
        samples = self._measuring.samples(now_s, self._read(self._sources, now_s)) if rules.rules else {}
        changed = self._book.evaluate(now_s, now_unix_s, samples)
        self._shown = self._book.shown(now_unix_s)
        self._write_lines(changed)
        self.share(self.told())
        if self.sender is not None:
            self._tell(self.sender, now_s, now_unix_s)
        return changed

    def _rest(self, rules: RuleSet) -> None:
        """Another process judges. What was judged here is old; what engines usually take is learned all the same."""
        if self._judges:
            self._judges = False
            self._book = Book(rules.rules, rules.silences)
            self._measuring = Measuring(rules.rules)
            self._shown, self._told, self._resend_at_s = (), {}, 0.0
        if self.slowdowns.wanted and self._sources is not None:
            engines = {(engine.model, engine.id) for engine in self._sources.engines()}
            self.slowdowns.look(self._monotonic(), engines)

    def look_now(self) -> None:
        """Look at once: this process leads from now on. Any thread."""
        self._wake.set()

    def _read(self, sources: Sources, now_s: float) -> Reading:
        engines = sources.engines()
        slowdowns = {}
        if self.slowdowns.wanted:
            slowdowns = self.slowdowns.look(now_s, {(engine.model, engine.id) for engine in engines})
        return Reading(
            sources.numbers(),
            engines,
            sources.queue(),
            sources.budgets(),
            sources.slos(),
            slowdowns,
            sources.bounds_s,
        )

    def _write_lines(self, changed: Sequence[Transition]) -> None:
        for alert, before, after in changed:
            if self._log is not None and FIRING in (before, after):
                level = "warning" if after == FIRING and not alert.silenced else "info"
                fields = {"name": alert.rule.name, "state": after, "labels": dict(alert.series), "value": alert.value}
                self._log(level, "alert", **fields, summary=alert.summary)

    def _tell(self, sender: Sender, now_s: float, now_unix_s: float) -> None:
        """Hand over what is new; to an Alertmanager again and again what goes on, or it would take it for resolved."""
        before = self._told
        firing = [alert for alert in self._shown if alert.state == FIRING and not alert.silenced]
        over = [alert for alert in self._shown if alert.state == RESOLVED and alert.identity in before]
        # What is silenced, or pending again, stays as it was told.
        self._told = {alert.identity: before[alert.identity] for alert in self._shown if alert.identity in before}
        self._told.update({alert.identity: alert.state for alert in (*firing, *over)})
        alerts = [alert for alert in (*firing, *over) if before.get(alert.identity) != alert.state]
        if sender.target.kind != ALERTMANAGER:
            # A webhook gets all of one name that are firing, as Alertmanager's own do.
            names = {alert.rule.name for alert in alerts}
            alerts = [alert for alert in (*firing, *over) if alert.rule.name in names]
            alerts = [alert for alert in alerts if alert.state == FIRING or before.get(alert.identity) == FIRING]
        elif now_s >= self._resend_at_s:
            self._resend_at_s = now_s + RESEND_S
            late = now_unix_s - RESOLVED_RESENT_S
            alerts = [*firing, *(alert for alert in over if alert.since_unix_s > late)]
        if alerts:
            sender.offer([notice_of(alert, self._instance) for alert in alerts])


def _wants_slowdowns(rules: RuleSet) -> bool:
    return any(rule.what == "engine_anomaly" for rule in rules.rules)


def _as_json(shown: Shown) -> dict[str, Any]:
    own = ("alertname", "severity")
    alert: dict[str, Any] = {
        "name": shown.rule.name,
        "state": shown.state,
        "severity": shown.rule.severity,
        "labels": {name: value for name, value in shown.identity if name not in own},
        "value": None if shown.value is None else round(shown.value, 6),
        "since": round(shown.since_unix_s, 3),
        "summary": shown.summary,
    }
    if shown.silenced:
        alert["silenced"] = True
    return alert
