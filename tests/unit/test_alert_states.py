"""Pending, firing, resolved: by a clock that the test turns."""

from __future__ import annotations

import unittest
from typing import Any, Optional

from gateway.alerts.rules import Labels, Rule, Silence
from gateway.alerts.states import RESOLVED_S, Book

T0 = 1_700_000_000.0


def rule(name: str = "Down", **members: Any) -> Rule:
    usual: dict[str, Any] = {"name": name, "what": "engine_down", "by": ("engine",), "above": 0.5}
    return Rule(**{**usual, **members})


def engine(name: str) -> Labels:
    return (("engine", name),)


class BookTest(unittest.TestCase):
    def setUp(self) -> None:
        self.now_s = 100.0
        self.book = Book([rule(for_s=10)])

    def see(self, after_s: float = 0.0, name: str = "Down", **values: float) -> list[tuple[str, str]]:
        """Look `after_s` later, with these engines' values; returns the changes of state."""
        self.now_s += after_s
        samples = {name: {engine(key): value for key, value in values.items()}}
        return [(t.before, t.after) for t in self.book.evaluate(self.now_s, T0 + self.now_s, samples)]

    def state(self) -> Optional[str]:
        shown = self.book.shown(T0 + self.now_s)
        self.assertLessEqual(len(shown), 1)
        return shown[0].state if shown else None

    def test_an_alert_is_pending_until_its_condition_has_held_long_enough(self) -> None:
        self.assertEqual(self.see(a=1), [("inactive", "pending")])
        self.assertEqual(self.see(9.9, a=1), [])
        self.assertEqual(self.state(), "pending")
        self.assertEqual(self.see(0.1, a=1), [("pending", "firing")])
        shown = self.book.shown(T0 + self.now_s)[0]
        self.assertEqual((shown.since_unix_s, shown.started_unix_s), (T0 + 110, T0 + 110))

    def test_without_a_wait_it_fires_at_once(self) -> None:
        self.book = Book([rule()])
        self.assertEqual(self.see(a=1), [("inactive", "firing")])

    def test_a_pending_alert_whose_condition_ends_is_forgotten_and_begins_anew(self) -> None:
        self.see(a=1)
        self.assertEqual(self.see(9, a=0), [("pending", "inactive")])
        self.assertIsNone(self.state())
        self.see(1, a=1)
        self.assertEqual(self.see(9.9, a=1), [])  # what held before does not count
        self.assertEqual(self.see(0.1, a=1), [("pending", "firing")])

    def test_a_resolved_alert_is_shown_for_an_hour(self) -> None:
        self.see(a=1)
        self.see(10, a=1)
        self.assertEqual(self.see(5, a=0), [("firing", "resolved")])
        shown = self.book.shown(T0 + self.now_s)[0]
        self.assertEqual((shown.since_unix_s, shown.started_unix_s, shown.value), (T0 + 115, T0 + 110, 1))
        self.see(RESOLVED_S - 0.1, a=0)
        self.assertEqual(self.state(), "resolved")
        self.assertEqual(self.see(0.1, a=0), [])
        self.assertIsNone(self.state())

    def test_one_that_comes_back_is_a_new_alert(self) -> None:
        self.see(a=1)
        self.see(10, a=1)
        self.see(1, a=0)
        self.assertEqual(self.see(1, a=1), [("inactive", "pending")])
        self.assertEqual(self.state(), "pending")
        self.assertEqual(self.see(10, a=1), [("pending", "firing")])

    def test_keep_firing_bridges_what_comes_and_goes(self) -> None:
        self.book = Book([rule(keep_firing_s=30)])
        self.see(a=1)
        for _ in range(20):
            self.assertEqual(self.see(29, a=0), [])
            self.assertEqual(self.see(0.5, a=1), [])
        self.assertEqual(self.see(1, a=0), [])
        self.assertEqual(self.see(29.9, a=0), [])
        self.assertEqual(self.see(0.1, a=0), [("firing", "resolved")])

    def test_a_series_that_is_gone_resolves(self) -> None:
        self.book = Book([rule()])
        self.see(a=1, b=1)
        self.assertEqual(self.see(1, b=1), [("firing", "resolved")])
        states = {dict(shown.identity)["engine"]: shown.state for shown in self.book.shown(T0)}
        self.assertEqual(states, {"a": "resolved", "b": "firing"})

    def test_labels_are_who_an_alert_is(self) -> None:
        self.book = Book([rule(labels=(("team", "ml"),), severity="page")])
        self.see(a=1)
        expected = (("alertname", "Down"), ("engine", "a"), ("severity", "page"), ("team", "ml"))
        self.assertEqual(self.book.shown(T0)[0].identity, expected)

    def test_other_rules_leave_alone_what_they_have_in_common(self) -> None:
        self.see(a=1)
        self.book.replace([rule(for_s=10), rule("Other")], ())
        self.assertEqual(self.see(10, a=1), [("pending", "firing")])
        self.book.replace([rule(for_s=10, above=2)], ())
        self.assertEqual(self.see(1, a=1), [("firing", "resolved")])

    def test_a_rule_that_looks_at_something_else_now_speaks_for_its_alert(self) -> None:
        self.see(a=1)
        self.book.replace(
            [rule(what="engine_anomaly", above=2, for_s=1, keep_firing_s=30, summary="{engine}: {value}")], ()
        )
        self.assertEqual(self.see(1, a=3), [("pending", "firing")])
        self.assertEqual(self.book.shown(T0)[0].summary, "a: 3 times")
        self.assertEqual(self.see(29, a=1) + self.see(29, a=1), [])
        self.assertEqual(self.see(1, a=1), [("firing", "resolved")])

    def test_a_rule_that_is_gone_or_renamed_labels_resolves_at_once(self) -> None:
        for after in ([], [rule(labels=(("team", "ml"),))], [rule("New")]):
            with self.subTest(after):
                self.book = Book([rule(keep_firing_s=1000)])
                self.see(a=1)
                self.book.replace(after, ())
                self.assertIn(("firing", "resolved"), self.see(1, a=1))

    def test_below_is_the_other_way_round(self) -> None:
        self.book = Book([rule(above=None, below=0.5)])
        self.assertEqual(self.see(a=0.5), [])
        self.assertEqual(self.see(a=0.49), [("inactive", "firing")])

    def test_no_more_alerts_are_kept_than_there_is_room_for(self) -> None:
        self.book = Book([rule()], most=3)
        self.see(e0=1, e1=1, e2=1, e3=1, e4=1)
        self.assertEqual(len(self.book.shown(T0)), 3)
        self.assertEqual(len(self.see(1, e1=1)), 2)  # the others resolve, and are shown

    def test_a_silence_covers_what_fits_while_it_lasts(self) -> None:
        silence = Silence((("alertname", "D*"), ("engine", "a")), T0 + 105, T0 + 110)
        self.book = Book([rule()], [silence])
        self.see(a=1, b=1)

        def silenced(now_s: float) -> dict[str, bool]:
            return {dict(s.identity)["engine"]: s.silenced for s in self.book.shown(T0 + now_s)}

        self.assertEqual(silenced(104.9), {"a": False, "b": False})
        self.assertEqual(silenced(105), {"a": True, "b": False})
        self.assertEqual(silenced(110), {"a": False, "b": False})
