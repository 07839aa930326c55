"""What becomes of alerts: inactive, pending, firing, resolved. As Prometheus has it (`for`, `keep_firing_for`).

`Book` owns the alerts that are not inactive; no lock, no clock: it belongs to one thread, and time comes in. A series
that is not measured any more counts as one that is well: its alert resolves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Optional

from gateway.alerts.rules import Labels, Rule, Silence

PENDING, FIRING, RESOLVED, INACTIVE = "pending", "firing", "resolved", "inactive"
RESOLVED_S = 3600.0
"""For so long a resolved alert is shown."""
ALERTS_MAX = 2000
"""Alerts kept at once; further series are not looked at until there is room."""

Samples = Mapping[str, Mapping[Labels, float]]
"""By a rule's name: the values that could be judged, by the labels of their series."""


class Shown(NamedTuple):
    """One alert at one moment; immutable."""

    rule: Rule
    series: Labels
    identity: Labels
    state: str
    value: Optional[float]
    since_unix_s: float
    """When it came into this state."""
    started_unix_s: float
    """When it began to fire; pending: when its condition began."""
    silenced: bool

    @property
    def summary(self) -> str:
        return self.rule.filled(self.rule.summary, self.series, self.value)


class Transition(NamedTuple):
    """An alert has gone from one state to another."""

    alert: Shown
    before: str
    after: str


class _Alert:
    __slots__ = ("active_s", "good_s", "rule", "series", "since_s", "since_unix_s", "started_unix_s", "state", "value")

    def __init__(self, rule: Rule, series: Labels, now_s: float, now_unix_s: float) -> None:
        self.rule = rule
        self.series = series
        self.state = PENDING
        self.active_s = self.since_s = now_s
        self.since_unix_s = self.started_unix_s = now_unix_s
        self.good_s: Optional[float] = None  # firing, and so long well again
        self.value: Optional[float] = None

    def enter(self, state: str, now_s: float, now_unix_s: float) -> None:
        self.state = state
        self.since_s = now_s
        self.since_unix_s = now_unix_s


class Book:
    """All alerts of some rules. For one thread."""

    def __init__(self, rules: Sequence[Rule], silences: Sequence[Silence] = (), most: int = ALERTS_MAX) -> None:
        self.rules = tuple(rules)
        self.silences = tuple(silences)
        self._most = most
        self._alerts: dict[Labels, _Alert] = {}

    def replace(self, rules: Sequence[Rule], silences: Sequence[Silence]) -> None:
        """Take other rules; alerts that are the same by their labels go on, the next `evaluate` resolves others."""
        by_name = {rule.name: rule for rule in rules}
        self.rules, self.silences = tuple(rules), tuple(silences)
        kept = {}
        for identity, alert in self._alerts.items():
            rule = by_name.get(alert.rule.name)
            if rule is not None and rule.identity(alert.series) == identity:
                alert.rule = rule
            kept[identity] = alert
        self._alerts = kept

    def evaluate(self, now_s: float, now_unix_s: float, samples: Samples) -> list[Transition]:
        """Judge what was measured, and say what has changed. `now_s` is monotonic, by it durations are measured."""
        changed: list[Transition] = []
        active: set[Labels] = set()
        for rule in self.rules:
            for series, value in samples.get(rule.name, {}).items():
                if not rule.holds(value):
                    continue
                identity = rule.identity(series)
                if identity in active:
                    continue  # another series with the same labels: a rule's own label stands for it
                if self._hold(identity, rule, series, value, now_s, now_unix_s, changed):
                    active.add(identity)
        for identity, alert in list(self._alerts.items()):
            if identity not in active:
                self._end(identity, alert, now_s, now_unix_s, changed)
        return changed

    def _hold(
        self,
        identity: Labels,
        rule: Rule,
        series: Labels,
        value: float,
        now_s: float,
        now_unix_s: float,
        changed: list[Transition],
    ) -> bool:
        """The condition is true; returns whether the alert is kept."""
        alert = self._alerts.get(identity)
        if alert is None or alert.state == RESOLVED:
            if alert is None and len(self._alerts) >= self._most:
                return False
            alert = self._alerts[identity] = _Alert(rule, series, now_s, now_unix_s)
            if rule.for_s > 0:
                alert.value = value
                changed.append(self._transition(identity, alert, INACTIVE, now_unix_s))
        alert.value = value
        alert.good_s = None
        if alert.state == PENDING and now_s - alert.active_s >= rule.for_s:
            before = PENDING if rule.for_s > 0 else INACTIVE
            alert.enter(FIRING, now_s, now_unix_s)
            alert.started_unix_s = now_unix_s
            changed.append(self._transition(identity, alert, before, now_unix_s))
        return True

    def _end(self, identity: Labels, alert: _Alert, now_s: float, now_unix_s: float, changed: list[Transition]) -> None:
        """The condition is not true, or nothing could be measured."""
        if alert.state == RESOLVED:
            if now_s - alert.since_s >= RESOLVED_S:
                del self._alerts[identity]
        elif alert.state == PENDING:
            del self._alerts[identity]
            alert.state = INACTIVE
            changed.append(self._transition(identity, alert, PENDING, now_unix_s))
        else:
            if alert.good_s is None:
                alert.good_s = now_s
            current = any(rule is alert.rule for rule in self.rules)
            if current and now_s - alert.good_s < alert.rule.keep_firing_s:
                return
            alert.enter(RESOLVED, now_s, now_unix_s)
            changed.append(self._transition(identity, alert, FIRING, now_unix_s))

    def _transition(self, identity: Labels, alert: _Alert, before: str, now_unix_s: float) -> Transition:
        return Transition(self._shown(identity, alert, now_unix_s), before, alert.state)

    def shown(self, now_unix_s: float) -> tuple[Shown, ...]:
        """Every alert as it is now: firing ones first, then pending, then resolved, each kind oldest first."""
        order = {FIRING: 0, PENDING: 1, RESOLVED: 2}
        alerts = [self._shown(identity, alert, now_unix_s) for identity, alert in self._alerts.items()]
        return tuple(sorted(alerts, key=lambda shown: (order[shown.state], shown.since_unix_s, shown.identity)))

    def _shown(self, identity: Labels, alert: _Alert, now_unix_s: float) -> Shown:
        return Shown(
            alert.rule,
            alert.series,
            identity,
            alert.state,
            alert.value,
            alert.since_unix_s,
            alert.started_unix_s,
            any(silence.covers(identity, now_unix_s) for silence in self.silences),
        )
