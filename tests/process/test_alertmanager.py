"""Alerts with a real Alertmanager that is silent, dead for a while, and tells a receiver; and promtool on the rules.

Skipped where Debian's prometheus-alertmanager (or promtool, of prometheus) is missing; with REQUIRE_ALERTMANAGER=1
(REQUIRE_PROMETHEUS=1) that is a failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import unittest
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from gateway.alerts.defaults import default_rules
from gateway.mock.server import MockEngine
from tests.ports import free_port
from tests.receivers import Receiver
from tests.support import ROOT, GatewayProcess, SocketTest, eventually, gateway_process, mock_engine

MANAGER, AMTOOL = shutil.which("prometheus-alertmanager"), shutil.which("amtool")
PROMTOOL = shutil.which("promtool")
RULES = ROOT / "docs" / "deploy" / "prometheus"
LONG_S = 30.0
CONFIG = """
route: {{receiver: test, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}}
receivers:
  - name: test
    webhook_configs: [{{url: "http://127.0.0.1:{port}/", send_resolved: true}}]
"""
DOWN: dict[str, Any] = {"name": "Down", "what": "engine_down", "above": 0, "for_s": 0.5, "labels": {"team": "ml"}}


def rules(**members: Any) -> str:
    return json.dumps({"defaults": False, "interval_s": 0.1, "rules": [DOWN], **members})


def needed(variable: str, *programs: Optional[str]) -> None:
    if not all(programs):
        if os.environ.get(variable) == "1":
            raise AssertionError("a program is missing, and this run must have it")
        raise unittest.SkipTest("Debian's prometheus-alertmanager, or promtool, is missing")


class PromtoolTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        needed("REQUIRE_PROMETHEUS", PROMTOOL)

    def promtool(self, *arguments: str, folder: Path = RULES) -> tuple[int, str]:
        done = subprocess.run(
            [str(PROMTOOL), *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout + done.stderr

    def test_the_rules_are_good_and_do_what_their_tests_say(self) -> None:
        status, told = self.promtool("check", "rules", "rules.yml")
        self.assertEqual(status, 0, told)
        self.assertIn("SUCCESS: 19 rules found", told)
        status, told = self.promtool("test", "rules", "tests.yml")
        self.assertEqual(status, 0, told)

    def test_another_threshold_is_noticed(self) -> None:
        usual = (RULES / "rules.yml").read_text("utf-8")
        changes = (
            ("ErrorRatioHigh", "> 0.05", "> 0.2"),
            ("LatencyHigh", "> 60000", "> 100000"),
            ("FirstTokenSlow", "> 10000", "> 30000"),
            ("EngineDown", "1 - gateway_engine_up > 0", "1 - gateway_engine_up > 1"),
            ("ModelWithoutEngine", "(gateway_engine_up) > 0", "(gateway_engine_up) > 1"),
            ("EngineSlowdown", "> 2\n", "> 5\n"),
            ("QueueFilling", "gateway_queue_size > 0.5", "gateway_queue_size > 0.05"),
            ("BudgetNearlySpent", "ratio > 0.9", "ratio > 0.4"),
            ("VerificationDisagreement", "> 0.5\n            and sum(inc", "> 0.3\n            and sum(inc"),
            ("SloBurnFast", "> 14.4", "> 34"),
            ("SloBurn", "> 6\n", "> 7\n"),
            ("SloBurnSlow", "> 1\n", "> 3\n"),
        )
        for name, before, after in changes:
            self.assertIn(before, usual, name)
            usual = usual.replace(before, after)
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(RULES / "tests.yml", folder)
            (Path(folder) / "rules.yml").write_text(usual, "utf-8")
            status, told = self.promtool("test", "rules", "tests.yml", folder=Path(folder))
        self.assertNotEqual(status, 0)
        failed = set(re.findall(r"alertname: (\w+),", told))
        self.assertEqual(failed, {name for name, _, _ in changes}, told)
        self.assertEqual({rule.name for rule in default_rules(slos=True)}, {name for name, _, _ in changes})


class AlertmanagerTest(SocketTest):
    """The gateway as a process, and the real thing."""

    @classmethod
    def setUpClass(cls) -> None:
        needed("REQUIRE_ALERTMANAGER", MANAGER, AMTOOL)

    def setUp(self) -> None:
        self.receiver = self.enter(Receiver())
        self.manager_port = free_port()
        self.engine_port = free_port()

    @contextlib.contextmanager
    def manager(self) -> Iterator[None]:
        """An Alertmanager that answers, until it is left."""
        with tempfile.TemporaryDirectory() as name:
            config = Path(name) / "config.yml"
            config.write_text(CONFIG.format(port=self.receiver.port), "utf-8")
            listen = f"127.0.0.1:{self.manager_port}"
            process = subprocess.Popen(
                [
                    *(str(MANAGER), f"--config.file={config}", f"--storage.path={name}/data"),
                    *(f"--web.listen-address={listen}", "--cluster.listen-address=", "--log.level=error"),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                eventually(lambda: self.managed() is not None, LONG_S)
                yield
            finally:
                process.terminate()
                process.wait(LONG_S)

    def managed(self) -> Optional[list[dict[str, Any]]]:
        """The alerts that Alertmanager holds for active; None: it does not answer."""
        url = f"http://127.0.0.1:{self.manager_port}/api/v2/alerts"
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                found: list[dict[str, Any]] = json.loads(response.read())
                return found
        except OSError:
            return None

    def start(self, text: str) -> GatewayProcess:
        files = {"alerts.json": text}
        return self.enter(
            gateway_process(
                files=files,
                ENGINES=f"13b=http://127.0.0.1:{self.engine_port}/v1",
                HEALTH_INTERVAL=0.2,
                ALERTS_FILE="alerts.json",
                ALERTS_URL=f"http://127.0.0.1:{self.manager_port}",
            )
        )

    def engine(self) -> MockEngine:
        return mock_engine("13b", port=self.engine_port)

    def states(self, process: GatewayProcess) -> list[str]:
        alerts = process.ask("GET", "/api/v1/alerts").json()["alerts"]
        return [alert["state"] + ("*" if alert.get("silenced") else "") for alert in alerts]

    def test_an_engine_that_goes_and_comes_back_is_told_to_the_receiver(self) -> None:
        self.enter(self.manager())
        engine = self.engine()
        process = self.start(rules())
        eventually(lambda: process.ask("GET", "/readyz").status == 200)
        self.assertEqual(self.states(process), [])
        engine.close()
        eventually(lambda: self.states(process) == ["pending"])
        self.assertEqual(self.managed(), [])  # one that is pending is nobody's business
        (held,) = eventually(self.managed, LONG_S) or []
        expected = {"alertname": "Down", "model": "13b", "engine": f"127.0.0.1:{self.engine_port}", "team": "ml"}
        self.assertEqual({name: held["labels"][name] for name in expected}, expected)
        self.assertTrue(held["labels"]["instance"].endswith(f":{process.port}"))
        told = subprocess.run(
            [str(AMTOOL), "alert", "query", "Down", f"--alertmanager.url=http://127.0.0.1:{self.manager_port}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        self.assertIn("active", told)
        (firing,) = eventually(lambda: self.receiver.alerts("Down", "firing"), LONG_S)[:1]
        self.assertEqual(firing["labels"]["team"], "ml")
        self.enter(self.engine())
        (over,) = eventually(lambda: self.receiver.alerts("Down", "resolved"), LONG_S)[:1]
        self.assertEqual(over["startsAt"], firing["startsAt"])
        self.assertEqual(self.managed(), [])
        self.assertEqual(self.states(process), ["resolved"])
        metrics = process.ask("GET", "/metrics").body.decode()
        self.assertIn('gateway_alert_notifications_total{result="sent"}', metrics)
        self.assertIn('gateway_alerts{name="Down",state="resolved"} 1\n', metrics)

    def test_a_silence_keeps_an_alert_here_until_the_file_says_otherwise(self) -> None:
        self.enter(self.manager())
        process = self.start(rules(silences=[{"match": {"team": "ml"}, "why": "moving"}]))
        eventually(lambda: self.states(process) == ["firing*"], LONG_S)
        (process.directory / "alerts.json").write_text('{"rules": [{"name": "Down"}]}', "utf-8")
        process.signal(signal.SIGHUP)
        failed = eventually(lambda: [line for line in process.log_lines() if line["event"] == "reload_failed"])[0]
        self.assertEqual(failed["faults"][0], "ALERTS_FILE: alerts.json: rules[0].what: is missing")
        self.assertEqual((self.states(process), self.managed()), (["firing*"], []))
        (process.directory / "alerts.json").write_text(rules(), "utf-8")
        process.signal(signal.SIGHUP)
        eventually(lambda: self.receiver.alerts("Down", "firing"), LONG_S)
        self.assertEqual(self.states(process), ["firing"])

    def test_one_that_is_dead_for_a_while_hears_of_it_when_it_is_back(self) -> None:
        process = self.start(rules())
        failed = 'gateway_alert_notifications_total{result="failed"} 0\n'
        eventually(lambda: failed not in process.ask("GET", "/metrics").body.decode(), LONG_S)
        with self.manager():
            eventually(lambda: self.receiver.alerts("Down", "firing"), LONG_S)
            events = [line["event"] for line in process.log_lines() if line["event"].startswith("alerts_")]
            self.assertEqual(events[0], "alerts_not_sent")
            eventually(lambda: [line for line in process.log_lines() if line["event"] == "alerts_sent_again"])
