"""The files of docs/deploy, each looked at by the program that they are for, or the strictest that runs without it.

A test skips without its program; with REQUIRE_DEPLOY=1 that is a failure.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from tests import deploying, proxies
from tests.deploying import DEPLOY
from tests.support import ROOT

UNIT = DEPLOY / "systemd" / "inference-gateway.service"
COMPOSE = DEPLOY / "compose"
MONITORING = DEPLOY / "kubernetes" / "monitoring"
EXPOSURE = 15  # tenths: systemd counts what a unit leaves open from 0 to 10
CHECK = ROOT / "tests" / "process" / "service_monitor.mjs"


class ToolTest(unittest.TestCase):
    def run_tool(
        self, *command: str, text: Optional[str] = None, environment: Optional[Mapping[str, str]] = None
    ) -> tuple[int, str]:
        done = subprocess.run(
            [deploying.tool(self, command[0]), *command[1:]],
            input=text,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def folder(self) -> Path:
        manager = tempfile.TemporaryDirectory()
        self.addCleanup(manager.cleanup)
        return Path(manager.name)


class SystemdTest(ToolTest):
    def test_the_unit_is_good_and_leaves_little_open(self) -> None:
        alone = Path(shutil.copy(UNIT, self.folder()))
        for unit in (alone, UNIT):  # the second one with what stands in the folder beside it
            self.assertEqual(self.run_tool("systemd-analyze", "verify", str(unit)), (0, ""))
            status, told = self.exposure(unit)
            self.assertEqual(status, 0, told)

    def test_a_fault_in_the_folder_beside_it_is_noticed(self) -> None:
        folder = self.folder()
        unit = shutil.copy(UNIT, folder)
        beside = f"{UNIT.name}.d"
        shutil.copytree(UNIT.parent / beside, folder / beside)
        (file,) = (folder / beside).iterdir()
        file.write_text(file.read_text("utf-8").replace("ExecReload=/bin", "ExecReloads=/bin"), "utf-8")
        self.assertIn("ExecReloads", self.run_tool("systemd-analyze", "verify", str(unit))[1])

    def test_a_fault_and_an_open_door_are_noticed(self) -> None:
        text = UNIT.read_text("utf-8")
        changed = self.folder() / UNIT.name
        changed.write_text(text.replace("RestrictRealtime", "RestrictRealTime"), "utf-8")
        self.assertIn("RestrictRealTime", self.run_tool("systemd-analyze", "verify", str(changed))[1])
        changed.write_text(text.replace("SystemCallFilter=@system-service", ""), "utf-8")
        self.assertNotEqual(self.exposure(changed)[0], 0)

    def exposure(self, unit: Path) -> tuple[int, str]:
        return self.run_tool("systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", str(unit))


class MonitoringTest(ToolTest):
    def test_prometheus_and_alertmanager_take_their_files(self) -> None:
        folder = self.folder()
        text = (COMPOSE / "prometheus.yml").read_text("utf-8")
        places = {
            "/etc/prometheus/rules.yml": str(DEPLOY / "prometheus" / "rules.yml"),
            "/run/secrets/metrics_key": str(folder / "metrics_key"),
        }
        for before, after in places.items():
            self.assertEqual(text.count(before), 1)
            text = text.replace(before, after)
        (folder / "metrics_key").write_text("key", "utf-8")
        (folder / "prometheus.yml").write_text(text, "utf-8")
        status, told = self.run_tool("promtool", "check", "config", str(folder / "prometheus.yml"))
        self.assertEqual(status, 0, told)
        self.assertIn("SUCCESS", told)
        status, told = self.run_tool("amtool", "check-config", str(COMPOSE / "alertmanager.yml"))
        self.assertEqual(status, 0, told)

    def test_the_adapters_query_is_one_that_prometheus_takes(self) -> None:
        yaml = deploying.package(self, "yaml")
        (rule,) = yaml.safe_load((MONITORING / "prometheus-adapter.yaml").read_text("utf-8"))["rules"]["custom"]
        put = {"Series": "gateway_queue_depth", "LabelMatchers": 'namespace="x",pod=~"a|b"', "GroupBy": "pod"}
        query = re.sub(r"<<\.(\w+)>>", lambda match: put[match[1]], rule["metricsQuery"])
        rules = {"groups": [{"name": "g", "rules": [{"record": "asked:queue", "expr": query}]}]}
        file = self.folder() / "rules.yml"
        file.write_text(yaml.safe_dump(rules), "utf-8")
        status, told = self.run_tool("promtool", "check", "rules", str(file))
        self.assertEqual(status, 0, told)

    def test_the_operator_takes_the_service_monitor(self) -> None:
        yaml = deploying.package(self, "yaml")
        monitor = yaml.safe_load((MONITORING / "servicemonitor.yaml").read_text("utf-8"))
        self.assertEqual(self.faults(monitor), "")
        monitor["spec"]["endpoints"][0]["intervall"] = monitor["spec"]["endpoints"][0].pop("interval")
        self.assertEqual(self.faults(monitor), "Endpoint has no intervall\n")

    def faults(self, monitor: Any) -> str:
        if not os.environ.get("DEPLOY_JS"):
            if os.environ.get("REQUIRE_DEPLOY") == "1":
                self.fail("DEPLOY_JS is not set, and this run must have it")
            self.skipTest("DEPLOY_JS does not say where npm has put @kubernetes-models/prometheus-operator")
        status, told = self.run_tool(
            "node", str(CHECK), text=json.dumps(monitor), environment={**os.environ, "NODE_NO_WARNINGS": "1"}
        )
        self.assertEqual(status, 0, told)
        return told


class NginxFileTest(ToolTest):
    def test_gixy_finds_no_weakness(self) -> None:
        status, told = self.run_tool("gixy", str(self.whole()))
        self.assertEqual(status, 0, told)
        self.assertIn("No issues found", told)

    def test_gixy_finds_one_that_is_put_in(self) -> None:
        status, told = self.run_tool("gixy", str(self.whole("add_header X-To $uri;")))
        self.assertNotEqual(status, 0, told)

    def whole(self, more: str = "") -> Path:
        file = self.folder() / "nginx.conf"
        text = proxies.NGINX_FILE.read_text("utf-8").replace("server_tokens off;", f"server_tokens off; {more}")
        file.write_text(f"events {{}}\nhttp {{\n{text}\n}}\n", "utf-8")
        return file


if __name__ == "__main__":
    unittest.main()
