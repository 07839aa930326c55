"""Alerts of a gateway that runs: what is shown, counted and sent to a webhook, and that no request waits for it."""

from __future__ import annotations

import functools
import json
import socket
import time
from typing import Any
from unittest import mock

from gateway import observing
from gateway.alerts.sending import Sender
from gateway.api.document import openapi
from tests.access import ADMIN_KEYS, AS_ROOT, AccessTest
from tests.receivers import Receiver
from tests.support import CHAT, RunningGateway, dead_url, engines, eventually, thread_names

DOWN: dict[str, Any] = {"name": "Down", "what": "engine_down", "above": 0, "summary": "{engine} is gone"}


class AlertsTest(AccessTest):
    def rules(self, *rules: dict[str, Any], **members: Any) -> Any:
        """The path of a file of rules that are judged fifty times a second."""
        own = {"defaults": False, "interval_s": 0.1, "rules": list(rules) or [DOWN], **members}
        return self.file("alerts.json", own)

    def alerts(self, running: RunningGateway) -> list[tuple[str, str]]:
        answer = running.get("/api/v1/alerts", [AS_ROOT])
        self.assertEqual(answer.status, 200)
        return [(alert["name"], alert["state"]) for alert in answer.json()["alerts"]]

    def broken(self, **variables: Any) -> RunningGateway:
        """A gateway whose only engine is not there, and which has noticed."""
        running = self.serve(ENGINES=engines(m=dead_url()), **variables)
        running.post()
        return running


class ShownTest(AlertsTest):
    def test_the_usual_rules_are_judged_without_a_file(self) -> None:
        running = self.serve()
        self.assertEqual(running.get("/api/v1/alerts").json(), {"alerts": []})
        metrics = running.metrics()
        self.assertEqual(metrics['gateway_alerts{name="EngineDown",state="firing"}'], 0)
        self.assertNotIn('gateway_alerts{name="SloBurn",state="firing"}', metrics)
        self.assertEqual(metrics["gateway_queue_size"], 1024)

    def test_an_alert_is_shown_as_its_schema_says_and_counted(self) -> None:
        running = self.broken(ALERTS_FILE=self.rules())
        eventually(lambda: self.alerts(running) == [("Down", "firing")])
        (alert,) = running.get("/api/v1/alerts").json()["alerts"]
        schema = openapi()["components"]["schemas"]["Alert"]
        self.assertLessEqual(set(schema["required"]), set(alert))
        self.assertLessEqual(set(alert), set(schema["properties"]))
        self.assertEqual(alert["labels"]["model"], "m")
        self.assertEqual(alert["summary"], f"{alert['labels']['engine']} is gone")
        self.assertLess(abs(alert["since"] - time.time()), 60)
        self.assertEqual(running.metrics()['gateway_alerts{name="Down",state="firing"}'], 1)

    def test_it_needs_the_permission_of_the_metrics(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS, API_KEYS="bob:sk-bob-fedcba9876543210")
        self.assert_error(running.get("/api/v1/alerts"), 401, "unauthorized")
        bob = [("Authorization", "Bearer sk-bob-fedcba9876543210")]
        self.assert_error(running.get("/api/v1/alerts", bob), 403, "forbidden")
        self.assertEqual(self.alerts(running), [])
        self.assertEqual(running.ask("POST", "/api/v1/alerts", {}, [AS_ROOT]).status, 405)

    def test_requests_are_judged_by_what_they_got(self) -> None:
        ratio = {"name": "Errors", "what": "error_ratio", "above": 0.4, "at_least": 4, "window_s": 5}
        engine = self.engine(behaviour="error", status=500, ratio=1.0, times=20)
        running = self.serve(ENGINES=engines(m=engine.url), ALERTS_FILE=self.rules(ratio), RETRY_ATTEMPTS=1)
        self.assertEqual(self.alerts(running), [])
        for _ in range(5):
            running.post()
        eventually(lambda: self.alerts(running) == [("Errors", "firing")])
        eventually(lambda: self.alerts(running) == [("Errors", "resolved")])  # the window is over

    def test_a_budget_that_is_nearly_spent_names_no_key(self) -> None:
        rules = self.rules({"name": "Budget", "what": "budget_used", "above": 0.5})
        models = {"m": {"engines": ["echo:"], "price": {"input": 0, "output": 1000}}}
        running = self.serve(models, ALERTS_FILE=rules, ADMIN_KEYS=ADMIN_KEYS)
        alice = self.make(running, "alice", budget_usd=0.000001, budget_period="day")
        self.assertEqual(running.post(headers=alice).status, 200)
        eventually(lambda: self.alerts(running) == [("Budget", "firing")])
        answer = running.get("/api/v1/alerts", [AS_ROOT])
        self.assertNotIn(b"alice", answer.body)
        self.assertGreater(running.app.guard.budgets.used()[0][1], 0.5)

    def test_rules_that_are_wrong_stop_the_start_and_the_check(self) -> None:
        wrong = self.file("alerts.json", {"rules": [{"name": "R", "what": "cpu", "above": 1}, {"name": "S"}]})
        for command in (("check",), ("serve",)):
            status, out, err = self.cli(*command, ALERTS_FILE=wrong)
            self.assertEqual((status, out), (2, ""))
            self.assertIn("ALERTS_FILE: ", err)
            self.assertIn("rules[0].what: must be one of", err)
            self.assertIn("rules[1].what: is missing", err)

    def test_threads_end_with_the_gateway(self) -> None:
        before = thread_names()
        receiver = self.enter(Receiver())
        running = self.broken(ALERTS_FILE=self.rules(), ALERTS_URL=f"http://127.0.0.1:{receiver.port}/hook")
        eventually(lambda: receiver.bodies)
        running.stop()
        self.assertEqual([name for name in thread_names() - before if name.startswith("alerts")], [])


class ObjectivesTest(AlertsTest):
    def test_budgets_and_burn_rates_are_metrics(self) -> None:
        running = self.serve(
            ENGINES=engines(m=dead_url(), n="echo:"), SLO_AVAILABILITY=0.9, FALLBACK="off", SLO_LATENCY_MS=60_000
        )
        for model in ("m", "n", "n", "n"):
            running.post({"model": model, "messages": [{"role": "user", "content": "hi"}]})
        running.post({"model": "nobody's", "messages": [{"role": "user", "content": "hi"}]})
        eventually(lambda: len(running.app.observing.slos()) >= 3)
        metrics = running.metrics()
        left = {key: round(value, 6) for key, value in metrics.items() if key.startswith("gateway_slo_error_budget")}
        self.assertEqual(left.get('gateway_slo_error_budget_remaining{model="n"}'), 1.0)
        self.assertEqual(left.get('gateway_slo_error_budget_remaining{model="m"}'), -9.0)
        self.assertEqual(len(left), 2)
        sample = 'gateway_slo_burn_rate{model="m",objective="availability",window="3d"}'
        self.assertAlmostEqual(metrics[sample], 10.0)
        self.assertIn('gateway_alerts{name="SloBurn",state="firing"}', metrics)

    def test_a_budget_that_burns_is_an_alert(self) -> None:
        burn = {"name": "Burn", "what": "slo_burn_rate", "above": 5, "at_least": 3}
        running = self.serve(
            ENGINES=engines(m=dead_url()), SLO_AVAILABILITY=0.9, ALERTS_FILE=self.rules(burn), RETRY_ATTEMPTS=1
        )
        for _ in range(3):
            running.post()
        eventually(lambda: self.alerts(running) == [("Burn", "firing")])


class ConsoleTest(AlertsTest):
    def test_the_feed_tells_of_alerts_and_objectives(self) -> None:
        running = self.broken(ALERTS_FILE=self.rules(), SLO_AVAILABILITY=0.9)
        eventually(lambda: self.alerts(running) == [("Down", "firing")])
        with running.connect() as client:
            client.request("GET", "/api/v1/live")
            self.assertEqual(client.read_head().status, 200)
            name, data = (client.read_event() or "").split("\n")
        self.assertEqual(name, "event: history")
        said = json.loads(data.partition(" ")[2])
        self.assertEqual(said["alerts"], running.app.observing.alerts())
        self.assertEqual([(one["model"], one["budget_remaining"]) for one in said["slos"]], [("m", -9.0)])


class WebhookTest(AlertsTest):
    def test_a_webhook_gets_what_fires_and_its_end(self) -> None:
        receiver = self.enter(Receiver())
        engine = self.engine()
        running = self.serve(
            ENGINES=engines(m=engine.url),
            ALERTS_FILE=self.rules(),
            ALERTS_URL=f"http://127.0.0.1:{receiver.port}/hooks/s3cret/?room=x",
            HEALTH_INTERVAL=0.1,
            HEALTH_FAILS=1,
        )
        engine.close()
        (firing,) = eventually(lambda: receiver.alerts("Down"))
        self.assertEqual((firing["status"], receiver.paths), ("firing", ["/hooks/s3cret/?room=x"]))
        body = receiver.bodies[0]
        self.assertEqual((body["version"], body["status"]), ("4", "firing"))
        self.assertIn("[FIRING] Down (warning, ", body["text"])
        self.enter(type(engine)(port=engine.port, model="m").start())
        eventually(lambda: receiver.alerts("Down", "resolved"))
        sample = 'gateway_alert_notifications_total{result="sent"}'
        running.wait_for_metric(sample, 2)
        self.assertNotIn("s3cret", running.log.getvalue())

    def test_a_refusal_and_a_redirect_are_told_once_without_the_path(self) -> None:
        receiver = self.enter(Receiver(status=307))
        receiver.headers = (("Location", f"http://127.0.0.1:{receiver.port}/elsewhere"),)
        running = self.broken(ALERTS_FILE=self.rules(), ALERTS_URL=f"http://127.0.0.1:{receiver.port}/s3cret")
        running.wait_for_metric('gateway_alert_notifications_total{result="refused"}', 1)
        (line,) = eventually(lambda: [line for line in running.log_lines() if line["event"] == "alerts_not_sent"])
        self.assertEqual((line["to"], line["error"]), (f"http://127.0.0.1:{receiver.port}", "it answers 307"))
        self.assertEqual(receiver.paths, ["/s3cret"])
        self.assertNotIn("s3cret", running.log.getvalue())

    def test_one_that_hangs_delays_no_request_and_not_the_end(self) -> None:
        """A gate that stays closed: connections are taken, and nothing is ever answered."""
        deaf = self.enter(socket.create_server(("127.0.0.1", 0)))
        rules = self.rules(
            {**DOWN, "match": {"model": "gone"}},
            *({**DOWN, "name": f"Down{number}", "match": {"model": "gone"}} for number in range(50)),
        )
        running = self.serve(
            ENGINES=engines(m="echo:", gone=dead_url()),
            ALERTS_FILE=rules,
            ALERTS_URL=f"http://127.0.0.1:{deaf.getsockname()[1]}/hook",
        )
        running.post({"model": "gone", "messages": [{"role": "user", "content": "hi"}]})
        deaf.settimeout(20)
        connection = self.enter(deaf.accept()[0])
        self.assertTrue(connection.recv(1))  # it is in the middle of sending, and will be for ten seconds
        before_s = time.monotonic()
        with running.connect() as client:
            for _ in range(50):
                self.assertEqual(client.post(path=CHAT, body={"model": "m", **_hi()}).status, 200)
        looks = running.app.observing.alerts()
        self.assertEqual(len(looks), 51)
        self.assertLess(time.monotonic() - before_s, 9)  # none has waited for it
        names = thread_names()
        self.assertEqual(names["alerts-send"], 1)
        before_s = time.monotonic()
        running.stop()
        self.assertLess(time.monotonic() - before_s, 9)
        eventually(lambda: "alerts-send" not in thread_names())  # it was cut off

    def test_what_waits_at_the_end_is_sent_though_a_collector_hangs(self) -> None:
        """A collector may take all the time that there is for the end: alerts have had theirs before."""
        deaf = self.enter(socket.create_server(("127.0.0.1", 0)))
        receiver = self.enter(Receiver(status=503))
        self.enter(mock.patch.object(observing, "Sender", functools.partial(Sender, retry_s=30.0)))
        running = self.broken(
            ALERTS_FILE=self.rules(),
            ALERTS_URL=f"http://127.0.0.1:{receiver.port}/hook",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{deaf.getsockname()[1]}",
            OTEL_TRACES_SAMPLER="always_on",
        )
        running.wait_for_metric('gateway_alert_notifications_total{result="failed"}', 1)
        tried = len(receiver.bodies)
        receiver.status = 200
        running.stop()
        self.assertEqual(len(receiver.bodies), tried + 1)


def _hi() -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": json.dumps("hi")}]}
