"""The image of docs/deploy/Dockerfile: built, run without root or a place to write, asked for its health, stopped.

The base is an image of this machine's own files, as no registry is asked.

Skipped without SANDBOX_TEST_RUNTIME and SANDBOX_TEST_IMAGE (tests/sandbox_image.sh makes one), and without hadolint;
with REQUIRE_SANDBOX=1, or REQUIRE_DEPLOY=1, that is a failure.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import unittest
import urllib.request

from tests import deploying
from tests.ports import free_port
from tests.support import ROOT, eventually

DOCKERFILE = ROOT / "docs" / "deploy" / "Dockerfile"
RUNTIME = shlex.split(os.environ.get("SANDBOX_TEST_RUNTIME", ""))
BASE = os.environ.get("SANDBOX_TEST_IMAGE", "")
LONG_S = 180.0
# The limits are this machine's: podman's own are higher than it may set.
LOCKED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--ulimit", "nofile=1024:1024")


def health_command() -> list[str]:
    """What HEALTHCHECK runs."""
    found = re.search(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    assert found, "the Dockerfile has no HEALTHCHECK in the exec form"
    command: list[str] = json.loads(found[1])
    return command


class LintTest(unittest.TestCase):
    def test_hadolint_finds_nothing_down_to_matters_of_style(self) -> None:
        hadolint = deploying.tool(self, "hadolint")
        done = subprocess.run(
            [hadolint, "--no-color", "--failure-threshold", "style", str(DOCKERFILE)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual((done.returncode, done.stdout), (0, ""))


class HealthTest(unittest.TestCase):
    def test_the_health_check_fails_where_nobody_serves(self) -> None:
        environment = {**os.environ, "PORT": str(free_port())}
        done = subprocess.run(health_command(), env=environment, capture_output=True, timeout=30, check=False)
        self.assertEqual(done.returncode, 1)


class ImageTest(unittest.TestCase):
    def setUp(self) -> None:
        if not RUNTIME or not BASE:
            if os.environ.get("REQUIRE_SANDBOX") == "1":
                self.fail("SANDBOX_TEST_RUNTIME and SANDBOX_TEST_IMAGE are not set, and this run must have them")
            self.skipTest("SANDBOX_TEST_RUNTIME and SANDBOX_TEST_IMAGE are not set")
        self.name = f"gateway-image-test-{os.getpid()}"
        self.addCleanup(self.runtime, "rmi", "--force", self.name, check=False)
        arguments = (f"BUILD={BASE}", f"RUNTIME={BASE}", "PACKAGES=", "VERSION=1.2.3")
        self.runtime(
            *("build", "--layers=false", "--isolation=chroot", "--format=docker", "--file", str(DOCKERFILE)),
            *(word for argument in arguments for word in ("--build-arg", argument)),
            *("--tag", self.name, str(ROOT)),
        )

    def runtime(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [*RUNTIME, *arguments],
            capture_output=True,
            text=True,
            timeout=LONG_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if check:
            self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        return done.stdout

    def test_it_serves_without_root_or_a_place_to_write_is_well_and_drains(self) -> None:
        port = free_port()
        self.addCleanup(self.runtime, "rm", "--force", "--volumes", self.name, check=False)
        self.runtime(
            *("run", "--detach", "--name", self.name, "--network=host", *LOCKED, "--ulimit", "nproc=512:512"),
            *("--volume", f"{self.name}:/data", "--env", f"PORT={port}", "--env", "API_KEYS=alice:open-sesame"),
            *("--env", "LEDGER=on", self.name),
        )
        self.addCleanup(self.runtime, "volume", "rm", "--force", self.name, check=False)
        eventually(lambda: self._answers(port), 30.0)
        self.runtime("healthcheck", "run", self.name)
        seen = self.runtime("exec", self.name, "sh", "-c", "cat /proc/1/status; ls /data; touch /app/x || echo locked")
        self.assertRegex(seen, r"Uid:\s+10001\s+10001\s+10001\s+10001")
        self.assertRegex(seen, r"CapEff:\s+0{16}")
        self.assertRegex(seen, r"NoNewPrivs:\s+1")
        self.assertRegex(seen, r"gateway\.db\n(.*\n)*locked\n")
        self.assertEqual(
            set(self.runtime("exec", self.name, "ls", "/app").split()),
            {"LICENSE", "__pycache__", "gateway", "inference.py", "main.py", "packages"},
        )
        labels = json.loads(self.runtime("inspect", "--format", "{{json .Config.Labels}}", self.name))
        self.assertEqual(labels["org.opencontainers.image.version"], "1.2.3")
        self.runtime("stop", self.name)
        self.assertEqual(self.runtime("inspect", "--format", "{{.State.ExitCode}}", self.name).strip(), "0")

    def _answers(self, port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


if __name__ == "__main__":
    unittest.main()
