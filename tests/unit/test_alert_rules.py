"""What a file of rules may say, and how everything that is wrong with it is told."""

from __future__ import annotations

import json
import re
import tempfile
import unittest
from pathlib import Path
from typing import Any

from gateway.alerts.defaults import default_rules
from gateway.alerts.measuring import _FAMILIES, _NOW
from gateway.alerts.rules import MEASURES, PLACEHOLDER, Rule, RuleSet, Silence
from gateway.alerts.rulesfile import OWN_LABELS, rules_at
from gateway.configuration import ConfigurationError
from gateway.settingfiles import faults_of_named

RULE: dict[str, Any] = {"name": "R", "what": "error_ratio", "above": 0.1}


class RulesTest(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "alerts.json"

    def read(self, document: Any, slos: bool = False) -> RuleSet:
        text = document if isinstance(document, str) else json.dumps(document)
        self.path.write_text(text, encoding="utf-8")
        return rules_at(self.path, slos)

    def faults(self, document: Any, slos: bool = False) -> list[str]:
        with self.assertRaises(ConfigurationError) as caught:
            self.read(document, slos)
        start = f"ALERTS_FILE: {self.path}: "
        for fault in caught.exception.faults:
            self.assertTrue(fault.startswith(start), fault)
        return [fault[len(start) :] for fault in caught.exception.faults]

    def rule_faults(self, **members: Any) -> list[str]:
        return self.faults({"rules": [{**RULE, **members}]})


class FileTest(RulesTest):
    def test_a_rule_is_taken_as_it_stands_there(self) -> None:
        rules = self.read(
            {
                "defaults": False,
                "interval_s": 2,
                "rules": [
                    {
                        "name": "Slow",
                        "what": "latency_p95_ms",
                        "by": ["path"],
                        "match": {"model": "13*"},
                        "window_s": 60,
                        "above": 900,
                        "for_s": 5,
                        "keep_firing_s": 7,
                        "at_least": 3,
                        "severity": "page",
                        "labels": {"team": "ml"},
                        "summary": "{path} takes {value}, {team}",
                        "annotations": {"runbook": "https://runbooks/{path}"},
                    }
                ],
                "silences": [
                    {"match": {"team": "m?"}, "from": "2026-11-30T08:00:00+01:00", "until": "2026-11-30T08:00:00.5Z"}
                ],
            }
        )
        expected = Rule(
            name="Slow",
            what="latency_p95_ms",
            by=("path",),
            match=(("model", "13*"),),
            window_s=60.0,
            above=900,
            for_s=5.0,
            keep_firing_s=7.0,
            at_least=3,
            severity="page",
            labels=(("team", "ml"),),
            summary="{path} takes {value}, {team}",
            annotations=(("runbook", "https://runbooks/{path}"),),
        )
        silence = Silence((("team", "m?"),), 1796022000.0, 1796025600.5)
        self.assertEqual(rules, RuleSet((expected,), (silence,), 2.0))
        self.assertEqual(expected.filled(expected.summary, (("path", "/v1/x"),), 1500.4), "/v1/x takes 1500 ms, ml")

    def test_without_a_file_and_beside_its_rules_there_are_the_usual_ones(self) -> None:
        self.assertEqual(rules_at(None, slos=False).rules, default_rules(slos=False))
        self.assertEqual(self.read({}).rules, default_rules(slos=False))
        names = [rule.name for rule in self.read({"rules": [RULE]}, slos=True).rules]
        self.assertEqual(names, [*(rule.name for rule in default_rules(slos=True)), "R"])

    def test_a_rule_of_the_same_name_replaces_the_usual_one(self) -> None:
        rules = self.read({"rules": [{**RULE, "name": "EngineDown"}]}).rules
        self.assertEqual([rule.what for rule in rules if rule.name == "EngineDown"], ["error_ratio"])
        self.assertEqual(len(rules), len(default_rules(slos=False)))

    def test_without_a_summary_what_is_looked_at_is_named_with_its_labels(self) -> None:
        down = {"name": "Down", "what": "engine_down", "above": 0}
        *_, plain, together = self.read({"rules": [down, {**down, "name": "Any", "by": []}]}).rules
        series = (("model", "m"), ("engine", "gpu-1"))
        text = "engines that cannot be chosen and are not drained"
        self.assertEqual(plain.filled(plain.summary, series, 1), f"1: {text} (m, gpu-1)")
        self.assertEqual(together.filled(together.summary, (), 1), f"1: {text}")

    def test_every_fault_is_named_at_once_with_its_place(self) -> None:
        document = {
            "rule": [],
            "defaults": 1,
            "rules": [{"name": "1", "what": "cpu"}, "x", {**RULE, "above": "much"}, RULE],
            "silences": [{"until": "tomorrow"}],
        }
        found = self.faults(document)
        for start in (
            "rule: is not a known key; known here: rules, silences, defaults, interval_s",
            "defaults: must be true or false",
            "rules[0].name: must be a name of",
            "rules[0].what: must be one of error_ratio, ",
            "rules[0]: must have either above or below",
            'rules[1]: must be an object, not "x"',
            "rules[2].above: must be a number",
            "silences[0].until: must be a time such as",
            "silences[0].match: must name at least one label",
        ):
            with self.subTest(start):
                self.assertEqual(len([fault for fault in found if fault.startswith(start)]), 1, found)
        self.assertEqual(len(found), 9, found)

    def test_what_does_not_fit_the_measure_is_a_fault(self) -> None:
        for members, fault in (
            ({"by": ["engine"]}, 'rules[0].by: error_ratio has no label "engine"; it has: model, path'),
            ({"match": {"key": "x"}}, 'rules[0].match: error_ratio has no label "key"; it has: model, path'),
            ({"by": ["model", "model"]}, "rules[0].by: names a label twice"),
            ({"window_s": 7200}, "rules[0].window_s: must be at most 3600"),
            ({"what": "queue_fill", "window_s": 60}, "says nothing, as queue_fill is looked at as it is now"),
            ({"what": "queue_fill", "at_least": 2}, "rules[0].at_least: says nothing"),
            ({"what": "slo_burn_rate"}, "needs SLO_AVAILABILITY or SLO_LATENCY_MS, which are not set"),
            ({"summary": "{engine} is slow"}, "rules[0].summary: there is no {engine}; there is: model, value"),
            ({"annotations": {"a": "{x}"}}, "rules[0].annotations.a: there is no {x}"),
            ({"labels": {"severity": "x"}}, "rules[0].labels.severity: is set by itself"),
            ({"labels": {"a b": "x"}}, 'rules[0].labels["a b"]: is no name of'),
            ({"below": 1}, "rules[0]: must have either above or below"),
            ({"at_least": 0}, "rules[0].at_least: must be an integer from 1"),
            ({"for_s": -1}, "rules[0].for_s: must be a number from 0"),
        ):
            with self.subTest(members):
                found = self.rule_faults(**members)
                self.assertEqual(len(found), 1, found)
                self.assertIn(fault, found[0])

    def test_a_range_that_runs_backwards_fits_nothing(self) -> None:
        """For any Python: to those up to 3.10 it is an error whenever it is looked at."""
        document = {"rules": [{**RULE, "match": {"model": "[b-a]"}}], "silences": [{"match": {"model": "[b-a]"}}]}
        read = self.read(document)
        self.assertFalse(read.rules[-1].admits({"model": "b"}))
        self.assertFalse(read.silences[0].covers((("model", "b"),), 0.0))

    def test_a_burn_rate_has_the_windows_that_are_kept(self) -> None:
        rule = {"name": "B", "what": "slo_burn_rate", "above": 2}
        self.assertEqual(self.read({"rules": [{**rule, "window_s": 21600}]}, slos=True).rules[-1].window_s, 21600)
        self.assertIn("one of 3600, 21600, 259200", self.faults({"rules": [{**rule, "window_s": 60}]}, slos=True)[0])

    def test_two_rules_of_one_name_and_keys_that_come_twice_are_faults(self) -> None:
        self.assertEqual(self.faults({"rules": [RULE, RULE]}), ['rules[1].name: "R" is the name of another rule, too'])
        twice = '{"rules": [{"name": "R", "name": "R", "what": "error_ratio", "above": 1}]}'
        self.assertEqual(self.faults(twice), ["rules[0].name: is there more than once"])

    def test_a_silence_ends_after_it_begins(self) -> None:
        silence = {"match": {"model": "m"}, "from": "2026-11-30T08:00:00Z", "until": "2026-11-30T09:00:00+01:00"}
        self.assertEqual(self.faults({"silences": [silence]}), ["silences[0].until: must be later than from"])
        for text in ("2026-11-30", "2026-13-30T08:00:00Z", "2026-11-30T08:00:00", 5):
            with self.subTest(text):
                self.assertIn("silences[0].until", self.faults({"silences": [{**silence, "until": text}]})[0])

    def test_files_that_are_no_rules_are_told(self) -> None:
        self.assertIn("the file is not JSON", self.faults("{")[0])
        self.assertIn("the file: must be an object", self.faults("[]")[0])
        self.assertIn("rules: must be a list of at most 200", self.faults({"rules": [RULE] * 201})[0])
        self.path.unlink()
        with self.assertRaises(ConfigurationError):
            rules_at(self.path, slos=False)

    def test_the_start_tells_of_faulty_rules_with_everything_else(self) -> None:
        self.path.write_text('{"rules": [{"name": "B", "what": "slo_burn_rate", "above": 2}]}', encoding="utf-8")
        without: dict[str, Any] = {"alerts_file": self.path, "slo_availability": None, "slo_latency_ms": None}
        found = list(faults_of_named(without))
        self.assertEqual(len(found), 1, found)
        self.assertIn(f"ALERTS_FILE: {self.path}: rules[0].what: slo_burn_rate needs", found[0])
        self.assertEqual(list(faults_of_named({**without, "slo_latency_ms": 5})), [])
        del without["slo_availability"]  # it is set, and wrong: which has a fault of its own
        self.assertEqual(list(faults_of_named(without)), [])


class DocumentTest(RulesTest):
    """docs/ALERTS.md."""

    text = (Path(__file__).resolve().parents[2] / "docs" / "ALERTS.md").read_text("utf-8")

    def test_its_file_of_rules_is_a_good_one(self) -> None:
        (example,) = re.findall(r"^```json\n(\{\n.*?)^```$", self.text, re.M | re.S)
        rules = self.read(example)
        self.assertEqual([rule.name for rule in rules.rules[-2:]], ["BigModelSlow", "EngineDown"])
        self.assertEqual(len(rules.silences), 1)

    def test_its_tables_have_every_usual_rule_every_measure_and_every_key(self) -> None:
        first = [line.split("|")[1] for line in self.text.splitlines() if line.startswith("| `")]
        named = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
        keys = {"name", "what", "by", "match", "window_s", "above", "below", "for_s", "keep_firing_s", "at_least"}
        keys |= {"severity", "labels", "summary", "annotations"}
        self.assertEqual(named, {*MEASURES, *(rule.name for rule in default_rules(slos=True)), *keys})
        for rule in default_rules(slos=True):
            (line,) = [line for line in self.text.splitlines() if line.startswith("| ") and f"`{rule.name}`" in line]
            self.assertIn(rule.severity, line)


class MeasuresTest(unittest.TestCase):
    def test_each_measure_is_worked_out_in_one_way(self) -> None:
        self.assertEqual({*_FAMILIES, *_NOW}, set(MEASURES))
        self.assertEqual(set(_FAMILIES) & set(_NOW), set())

    def test_the_usual_rules_say_only_what_a_file_may_say(self) -> None:
        names = [rule.name for rule in default_rules(slos=True)]
        self.assertEqual(len(names), len(set(names)))
        for rule in default_rules(slos=True):
            with self.subTest(rule.name):
                measure = MEASURES[rule.what]
                self.assertLessEqual(set(rule.by), set(measure.labels))
                self.assertEqual(bool(rule.window_s), bool(measure.window_s))
                self.assertTrue(rule.at_least == 1 or measure.counts)
                self.assertLessEqual(set(PLACEHOLDER.findall(rule.summary)), {"value", *rule.by})
                self.assertNotEqual(rule.above is None, rule.below is None)
                self.assertEqual(set(OWN_LABELS) & set(rule.by), set())

    def test_key_names_are_in_no_label_unless_a_rule_asks_for_them(self) -> None:
        self.assertEqual([rule.by for rule in default_rules(slos=False) if rule.what == "budget_used"], [()])
        self.assertEqual(MEASURES["budget_used"].by, ())
