"""Alerts on their way to an Alertmanager or a webhook that fails, hangs and comes back, without a socket."""

from __future__ import annotations

import json
import math
import random
import threading
import unittest
from typing import Any, Optional

from gateway.alerts.alerting import RESOLVED_RESENT_S, Alerts, Sources
from gateway.alerts.messages import Notice, alertmanager_body, notice_of, webhook_body
from gateway.alerts.rules import Rule, RuleSet, Silence
from gateway.alerts.sending import WAITING_MAX, Sender, target_of
from gateway.alerts.states import Book
from gateway.posting import Answer
from gateway.telemetry.events import AttemptRecord, RequestEvent
from tests.support import eventually, thread_names

NOW = 1_700_000_000.0
MANAGER, WEBHOOK = "http://am:9093", "http://hooks/services/T0/s3cret"
OWN_URL = "http://127.0.0.1:8000/"


def notice(name: str = "Down", engine: str = "a", ends: Optional[float] = None, summary: str = "it is") -> Notice:
    labels = (("alertname", name), ("engine", engine), ("instance", "gw:8000"), ("severity", "warning"))
    return Notice(labels, (("summary", summary),), NOW - 60, ends)


class TargetTest(unittest.TestCase):
    def test_an_origin_is_an_alertmanager_and_a_path_a_webhook(self) -> None:
        for url, kind, asked in (
            ("http://am:9093", "alertmanager", "http://am:9093/api/v2/alerts"),
            ("https://am/", "alertmanager", "https://am/api/v2/alerts"),
            ("http://am/prefix/api/v2/alerts", "alertmanager", "http://am/prefix/api/v2/alerts"),
            ("http://hooks/x", "webhook", "http://hooks/x"),
            ("http://hooks/?", "webhook", "http://hooks/?"),
            ("http://hooks?token=x", "webhook", "http://hooks?token=x"),
        ):
            with self.subTest(url):
                target = target_of(url)
                self.assertEqual((target.kind, target.url), (kind, asked))

    def test_what_is_shown_has_no_path_and_no_query(self) -> None:
        self.assertEqual(target_of("https://hooks:8443/services/s3cret?t=s3cret").shown, "https://hooks:8443")


class BodyTest(unittest.TestCase):
    def test_an_alertmanager_is_told_that_a_firing_alert_lasts_a_while(self) -> None:
        firing, over = json.loads(alertmanager_body([notice(), notice(ends=NOW - 5)], NOW, OWN_URL))
        self.assertEqual(firing["labels"]["alertname"], "Down")
        self.assertEqual(firing["annotations"], {"summary": "it is"})
        self.assertEqual(
            (firing["startsAt"], firing["endsAt"]), ("2023-11-14T22:12:20.000Z", "2023-11-14T22:17:20.000Z")
        )
        self.assertEqual((over["endsAt"], over["generatorURL"]), ("2023-11-14T22:13:15.000Z", OWN_URL))

    def test_an_end_is_never_before_its_begin(self) -> None:
        (one,) = json.loads(alertmanager_body([notice(ends=NOW - 90)], NOW, OWN_URL))
        self.assertLess(one["startsAt"], one["endsAt"])

    def test_a_webhook_gets_what_alertmanagers_do(self) -> None:
        body = json.loads(webhook_body([notice(), notice(engine="b", ends=NOW)], OWN_URL))
        self.assertEqual((body["version"], body["status"], body["truncatedAlerts"]), ("4", "firing", 0))
        self.assertEqual((body["groupKey"], body["groupLabels"]), ('{}:{alertname="Down"}', {"alertname": "Down"}))
        common = {"alertname": "Down", "instance": "gw:8000", "severity": "warning"}
        self.assertEqual((body["commonLabels"], body["commonAnnotations"]), (common, {"summary": "it is"}))
        firing, over = body["alerts"]
        self.assertEqual((firing["status"], firing["endsAt"]), ("firing", "0001-01-01T00:00:00Z"))
        self.assertEqual((over["status"], over["endsAt"]), ("resolved", "2023-11-14T22:13:20.000Z"))
        self.assertNotEqual(firing["fingerprint"], over["fingerprint"])
        self.assertEqual(json.loads(webhook_body([notice(ends=NOW)], OWN_URL))["status"], "resolved")

    def test_its_text_is_a_line_each_in_which_nothing_is_markup(self) -> None:
        text = json.loads(webhook_body([notice(summary="<!channel> & co")], OWN_URL))["text"]
        self.assertEqual(text, "[FIRING] Down (warning, gw:8000): &lt;!channel&gt; &amp; co")
        many = json.loads(webhook_body([notice(engine=f"e{i}") for i in range(30)], OWN_URL))["text"].splitlines()
        self.assertEqual((len(many), many[-1]), (21, "and 10 more"))

    def test_an_alert_is_sent_with_its_labels_and_texts_filled_in(self) -> None:
        rule = Rule(
            name="Down",
            what="engine_down",
            by=("engine", "model"),
            above=0,
            labels=(("team", "ml"),),
            summary="{engine} is down",
            annotations=(("runbook", "http://r/{engine}"),),
        )
        book = Book([rule])
        book.evaluate(0.0, NOW, {"Down": {(("engine", "a"), ("model", "")): 1.0}})
        sent = notice_of(book.shown(NOW)[0], "gw:1")
        expected = {"alertname": "Down", "engine": "a", "instance": "gw:1", "severity": "warning", "team": "ml"}
        self.assertEqual(dict(sent.labels), expected)  # an empty label is none
        self.assertEqual(dict(sent.annotations), {"runbook": "http://r/a", "summary": "a is down"})


class Receiver:
    """Stands for the other side. `trouble`: what it raises; `status`: what it answers; `gate`: closed, it hangs."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.tried = 0
        self.trouble: Optional[Exception] = None
        self.status = 200
        self.failing_name = ""
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def cut(self) -> None:
        self.trouble = TimeoutError("the gateway ends")
        self.gate.set()

    def post(self, body: bytes, timeout_s: float) -> Answer:
        self.tried += 1
        self.entered.set()
        self.gate.wait(60)
        if self.trouble is not None:
            raise self.trouble
        if self.failing_name and f'"alertname": "{self.failing_name}"'.encode() in body:
            return Answer(500, None, b"")
        if self.status < 300:
            self.bodies.append(json.loads(body))
        return Answer(self.status, None, b"")


class SenderTest(unittest.TestCase):
    def setUp(self) -> None:
        self.receiver = Receiver()
        self.lines: list[tuple[str, str, dict[str, Any]]] = []
        self.now = NOW

    def sender(self, url: str = MANAGER, retry_s: float = 0.01) -> Sender:
        def log(level: str, event: str, **fields: Any) -> None:
            self.lines.append((level, event, fields))

        sender = Sender(target_of(url), OWN_URL, log, self.receiver, clock=lambda: self.now, retry_s=retry_s)
        self.addCleanup(sender.close, 5.0)
        self.addCleanup(self.receiver.gate.set)
        return sender

    def test_what_waits_goes_in_one_request(self) -> None:
        sender = self.sender()
        sender.offer([notice(engine="a"), notice(engine="b")])
        sender.start()
        eventually(lambda: sender.counts["sent"] == 2)
        self.assertEqual([len(body) for body in self.receiver.bodies], [2])

    def test_a_webhook_gets_alerts_of_one_name_in_a_request(self) -> None:
        sender = self.sender(WEBHOOK)
        sender.offer([notice("A"), notice("B"), notice("A", "b")])
        sender.start()
        eventually(lambda: sender.counts["sent"] == 3)
        names = [{alert["labels"]["alertname"] for alert in body["alerts"]} for body in self.receiver.bodies]
        self.assertEqual(names, [{"A"}, {"B"}])

    def test_one_that_is_away_gets_everything_when_it_is_back_and_two_lines_tell(self) -> None:
        self.receiver.trouble = OSError(111, "Connection refused")
        sender = self.sender(WEBHOOK)
        sender.start()
        sender.offer([notice()])
        eventually(lambda: self.receiver.tried >= 3)
        sender.offer([notice(engine="b")])
        self.receiver.trouble = None
        eventually(lambda: sender.counts["sent"] == 2)
        told = [(level, event, fields.get("error"), fields["to"]) for level, event, fields in self.lines]
        failed = ("warning", "alerts_not_sent", "Connection refused", "http://hooks")
        self.assertEqual(told, [failed, ("info", "alerts_sent_again", None, "http://hooks")])
        self.assertGreaterEqual(sender.counts["failed"], 3)
        self.assertNotIn("s3cret", repr(self.lines))

    def test_whatever_goes_wrong_in_a_try_there_is_another(self) -> None:
        self.receiver.trouble = ValueError("nobody had foreseen that")
        sender = self.sender()
        sender.start()
        sender.offer([notice()])
        eventually(lambda: sender.counts["failed"] >= 2)
        self.receiver.trouble = None
        eventually(lambda: sender.counts["sent"] == 1)
        self.assertIn("nobody had foreseen that", self.lines[0][2]["error"])

    def test_what_has_changed_meanwhile_is_sent_as_it_is_now(self) -> None:
        self.receiver.gate.clear()
        sender = self.sender()
        sender.start()
        sender.offer([notice()])
        self.receiver.entered.wait(20)
        sender.offer([notice(ends=NOW)])  # while the first is on its way
        self.receiver.gate.set()
        eventually(lambda: sender.counts["sent"] == 2)
        ends = [body[0]["endsAt"] for body in self.receiver.bodies]
        self.assertEqual(ends, ["2023-11-14T22:17:20.000Z", "2023-11-14T22:13:20.000Z"])

    def test_one_alert_that_its_receiver_fails_on_keeps_back_no_other(self) -> None:
        self.receiver.failing_name = "A"
        sender = self.sender(WEBHOOK)
        sender.offer([notice("A"), notice("B")])
        sender.start()
        eventually(lambda: sender.counts["sent"] == 1)
        self.assertEqual(self.receiver.bodies[0]["groupLabels"], {"alertname": "B"})
        self.receiver.failing_name = ""
        eventually(lambda: sender.counts["sent"] == 2)

    def test_what_is_refused_is_not_sent_again(self) -> None:
        self.receiver.status = 400
        sender = self.sender()
        sender.start()
        sender.offer([notice()])
        eventually(lambda: sender.counts["refused"] == 1)
        self.receiver.status = 200
        sender.offer([notice(engine="b")])
        eventually(lambda: sender.counts["sent"] == 1)
        self.assertEqual([alert["labels"]["engine"] for alert in self.receiver.bodies[0]], ["b"])
        self.assertEqual(self.lines[0][2]["error"], "it answers 400")

    def test_statuses_say_whether_it_is_tried_again(self) -> None:
        for status, result in ((204, "sent"), (307, "refused"), (404, "refused"), (429, "failed"), (503, "failed")):
            with self.subTest(status):
                self.receiver = Receiver()
                self.receiver.status = status
                sender = self.sender()
                sender.start()
                sender.offer([notice()])
                eventually(lambda: sender.counts[result])  # noqa: B023
                self.assertEqual(sum(sender.counts[other] for other in ("sent", "refused") if other != result), 0)
                sender.close(5.0)

    def test_no_more_wait_than_there_is_room_for(self) -> None:
        sender = self.sender()
        sender.offer([notice(engine=f"e{number}") for number in range(WAITING_MAX + 7)])
        self.assertEqual(sender.counts["dropped"], 7)
        sender.offer([notice(engine="e1", ends=NOW)])  # one that waits is replaced
        self.assertEqual(sender.counts["dropped"], 7)

    def test_a_resolved_one_of_hours_ago_is_no_news(self) -> None:
        self.receiver.trouble = OSError("no")
        sender = self.sender()
        sender.start()
        sender.offer([notice(ends=NOW), notice(engine="b")])
        eventually(lambda: self.receiver.tried)
        self.now = NOW + 3601
        eventually(lambda: sender.counts["expired"] == 1)
        self.receiver.trouble = None
        eventually(lambda: sender.counts["sent"] == 1)

    def test_a_hanging_other_side_delays_neither_who_offers_nor_the_end(self) -> None:
        self.receiver.gate.clear()
        sender = self.sender()
        sender.start()
        sender.offer([notice()])
        self.receiver.entered.wait(20)
        for number in range(100):
            sender.offer([notice(engine=f"e{number}")])
        self.assertEqual(sender.counts["sent"], 0)
        sender.close(0.05)  # which cuts it off
        eventually(lambda: not thread_names()["alerts-send"])

    def test_the_end_sends_what_waits_and_tries_once(self) -> None:
        sender = self.sender(retry_s=60.0)
        self.receiver.trouble = OSError("no")
        sender.start()
        sender.offer([notice()])
        eventually(lambda: sender.counts["failed"] == 1)  # now it would wait for a minute
        self.receiver.trouble = None
        sender.close(5.0)
        self.assertEqual(sender.counts["sent"], 1)
        self.assertEqual(thread_names()["alerts-send"], 0)


class Engine:
    def __init__(self, name: str) -> None:
        self.model, self.id, self.state, self.available = "m", name, "up", True


class AlertsTest(unittest.TestCase):
    """The whole, looked at by hand: what is shown, logged and handed over to be sent."""

    def setUp(self) -> None:
        self.now_s = 0.0
        self.engines = [Engine("a"), Engine("b")]
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.trouble: Optional[Exception] = None
        self.rule = Rule(name="Down", what="engine_down", by=("engine",), above=0)

    def start(self, url: Optional[str] = MANAGER, *silences: Silence, rule: Optional[Rule] = None) -> Alerts:
        rules = RuleSet((rule or self.rule,), silences)
        alerts = Alerts(rules, clock=lambda: NOW + self.now_s, monotonic=lambda: self.now_s)
        self.sender = None if url is None else Sender(target_of(url), OWN_URL, lambda *a, **k: None, clock=lambda: NOW)
        alerts.bind(self.sources(), self.log, "gw:1", self.sender)
        return alerts

    def sources(self) -> Sources:
        def queue() -> tuple[int, int]:
            if self.trouble is not None:
                raise self.trouble
            return 0, 1

        return Sources(dict, lambda: self.engines, queue, list, list, (1.0,))

    def log(self, level: str, event: str, **fields: Any) -> None:
        self.lines.append((level, fields))

    def look(self, alerts: Alerts, after_s: float = 5.0) -> list[str]:
        """Look later; returns what was handed over, as `name of the engine` or `- name` for a resolved one."""
        self.now_s += after_s
        alerts.look()
        if self.sender is None:
            return []
        waiting, self.sender._waiting = self.sender._waiting, {}
        named = [("- " if n.ends_unix_s else "") + dict(n.labels)["engine"] for n in waiting.values()]
        return sorted(named)

    def set(self, name: str, available: bool) -> None:
        next(engine for engine in self.engines if engine.id == name).available = available

    def test_of_several_processes_the_leader_judges_and_the_others_show_what_it_has_told(self) -> None:
        leader, other = self.start(), self.start()
        leads = {leader: True, other: False}
        leader.leads, other.leads = lambda: leads[leader], lambda: leads[other]
        leader.share, other.share = other.hear, leader.hear
        self.set("a", False)
        self.assertEqual(self.look(other), [])
        self.assertEqual((other.told(), self.lines), ([], []))
        self.look(leader)
        self.assertEqual([alert["labels"] for alert in other.told()], [{"engine": "a"}])
        self.assertEqual(other.told(), leader.told())
        self.assertEqual(len(self.lines), 1, "one line")
        leads = {leader: False, other: True}
        self.assertEqual(self.look(other), ["a"], "who leads from now on judges by itself, and tells")
        self.look(leader)
        self.assertEqual(leader.told(), other.told())
        self.assertEqual(leader.counts()[1], (("Down", "firing"), 0), "what it has judged before is no more")

    def test_a_process_that_begins_to_lead_shows_what_it_has_heard_until_it_has_looked(self) -> None:
        alerts = self.start()
        alerts.leads = lambda: False
        alerts.restore([{"name": "Down"}])
        alerts.leads = lambda: True
        self.assertEqual(alerts.state(), [{"name": "Down"}])
        self.look(alerts)
        self.assertEqual(alerts.told(), [])

    def test_an_alertmanager_hears_at_once_and_every_minute(self) -> None:
        alerts = self.start()
        self.look(alerts)
        self.set("a", False)
        self.assertEqual(self.look(alerts), ["a"])
        heard = [self.look(alerts) for _ in range(36)]
        self.assertEqual([each for each in heard if each], [["a"]] * 3)
        self.set("a", True)
        self.assertEqual(self.look(alerts), ["- a"])
        heard = [self.look(alerts) for _ in range(int(RESOLVED_RESENT_S // 5) + 60)]
        self.assertEqual({tuple(each) for each in heard if each}, {("- a",)})
        self.assertIn(len([each for each in heard if each]), (14, 15))
        self.assertEqual(heard[-40:], [[]] * 40)

    def test_a_webhook_hears_of_changes_with_all_of_that_name_that_fire(self) -> None:
        alerts = self.start(WEBHOOK)
        self.set("a", False)
        self.assertEqual(self.look(alerts), ["a"])
        self.assertEqual(self.look(alerts, 600), [])
        self.set("b", False)
        self.assertEqual(self.look(alerts), ["a", "b"])
        self.set("a", True)
        self.assertEqual(self.look(alerts), ["- a", "b"])
        self.set("b", True)
        self.assertEqual(self.look(alerts), ["- b"])
        self.set("a", False)
        self.assertEqual(self.look(alerts), ["a"])

    def test_a_silenced_alert_is_shown_and_counted_and_not_sent(self) -> None:
        alerts = self.start(WEBHOOK, Silence((("engine", "a"),), until_unix_s=NOW + 100))
        self.set("a", False)
        self.assertEqual(self.look(alerts), [])
        (told,) = alerts.told()
        self.assertEqual((told["state"], told["silenced"]), ("firing", True))
        self.assertEqual(dict(alerts.counts())["Down", "firing"], 1)
        self.assertEqual(self.lines[0][0], "info")
        self.assertEqual(self.look(alerts, 100), ["a"])  # the silence is over, the trouble is not

    def test_one_that_was_told_of_and_ends_in_a_silence_is_told_to_have_ended(self) -> None:
        alerts = self.start(WEBHOOK, Silence((("engine", "a"),), from_unix_s=NOW + 50))
        self.set("a", False)
        self.assertEqual(self.look(alerts), ["a"])
        self.assertEqual(self.look(alerts, 50), [])
        self.set("a", True)
        self.assertEqual(self.look(alerts), ["- a"])

    def test_an_engine_that_is_taken_away_resolves(self) -> None:
        alerts = self.start(WEBHOOK)
        self.set("a", False)
        self.look(alerts)
        del self.engines[0]
        self.assertEqual(self.look(alerts), ["- a"])

    def test_what_is_told_is_what_the_contract_says(self) -> None:
        alerts = self.start(None)
        self.set("b", False)
        self.look(alerts)
        expected = {"name": "Down", "state": "firing", "severity": "warning", "labels": {"engine": "b"}, "value": 1.0}
        self.assertEqual(alerts.told(), [{**expected, "since": NOW + 5, "summary": ""}])
        self.assertEqual(sum(count for _, count in alerts.counts()), 1)
        self.assertEqual({state for (_, state), _ in alerts.counts()}, {"pending", "firing", "resolved"})

    def test_lines_tell_of_what_fires_and_of_its_end(self) -> None:
        alerts = self.start(None)
        self.set("b", False)
        self.look(alerts)
        self.look(alerts)
        self.set("b", True)
        self.look(alerts)
        self.assertEqual(
            [(level, f["name"], f["state"]) for level, f in self.lines],
            [("warning", "Down", "firing"), ("info", "Down", "resolved")],
        )

    def test_an_engine_that_becomes_slow_is_an_alert(self) -> None:
        rule = Rule("Slow", "engine_anomaly", ("model", "engine"), above=2, at_least=20, for_s=60)
        alerts = self.start(None, rule=rule)
        chance = random.Random(3)

        def answers(usual_s: float, looks: int) -> list[tuple[str, str]]:
            for _ in range(looks):
                for engine, factor in (("a", usual_s), ("b", 1.0)):
                    took_s = factor * math.exp(chance.gauss(0, 0.5))
                    record = AttemptRecord("m", engine, "ok", took_s)
                    alerts.observe([RequestEvent(0.0, "", "POST", "/", 200, None, took_s, attempt_records=(record,))])
                self.look(alerts)
            return [(told["labels"]["engine"], told["state"]) for told in alerts.told()]

        alerts.leads = lambda: False  # what is usual is learned while another process judges, too
        self.assertEqual(answers(1.0, 720), [])
        alerts.leads = lambda: True
        self.assertEqual(answers(4.0, 60), [("a", "firing")])
        self.assertGreater(alerts.told()[0]["value"], 2)
        self.assertEqual(answers(1.0, 100), [("a", "resolved")])

    def test_other_rules_count_from_the_next_look_on(self) -> None:
        alerts = self.start(None)
        self.set("b", False)
        self.look(alerts)
        self.assertFalse(alerts.slowdowns.wanted)
        alerts.replace(RuleSet((Rule("Slow", "engine_anomaly", ("engine",), above=2),)))
        self.assertTrue(alerts.slowdowns.wanted)
        self.look(alerts)
        self.assertEqual([(told["name"], told["state"]) for told in alerts.told()], [("Down", "resolved")])
        self.assertEqual({name for (name, _), _ in alerts.counts()}, {"Slow"})

    def test_without_a_rule_nobody_is_asked_and_what_was_firing_resolves(self) -> None:
        alerts = self.start(None)
        self.set("a", False)
        self.look(alerts)
        alerts.replace(RuleSet(()))
        self.trouble = RuntimeError("somebody was asked")
        self.look(alerts)
        self.assertEqual([told["state"] for told in alerts.told()], ["resolved"])

    def test_the_thread_goes_on_whatever_goes_wrong_and_says_so_once(self) -> None:
        rule = Rule("Down", "engine_down", ("engine",), above=0)
        alerts = Alerts(RuleSet((rule,), interval_s=0.002))
        looks = [0]
        sources = self.sources()

        def engines() -> list[Engine]:
            looks[0] += 1
            return self.engines

        alerts.bind(sources._replace(engines=engines), self.log, "gw:1")
        self.trouble = RuntimeError("no queue")
        self.set("a", False)
        before = thread_names()
        alerts.start()
        self.addCleanup(alerts.close, 5.0)
        eventually(lambda: looks[0] > 5)
        self.assertEqual(self.lines, [("error", {"message": "RuntimeError: no queue"})])
        self.trouble = None
        eventually(alerts.told)
        alerts.close(5.0)
        self.assertEqual(thread_names()["alerts"], before["alerts"])
