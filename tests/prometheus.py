"""A real Prometheus (Debian's) for tests: started on a port of its own, asked through its API.

Owns the process it starts. Every wait has a deadline.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import unittest
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlencode

from tests.ports import free_port
from tests.support import TIMEOUT_S, eventually

SERVER = shutil.which("prometheus")
PROMTOOL = shutil.which("promtool")
MISSING = [name for name, path in (("prometheus", SERVER), ("promtool", PROMTOOL)) if path is None]
REQUIRED = os.environ.get("REQUIRE_PROMETHEUS") == "1"
needs_prometheus = unittest.skipIf(bool(MISSING), f"{' and '.join(MISSING)} missing")
STARTS = 3  # another program may have taken the port in between

_CONFIGURATION = """global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
  - job_name: inference-gateway
    static_configs: [{targets: ["%s"]}]
"""


class Prometheus:
    """A server that scrapes `target` (host:port) once a second, and keeps exemplars. Close it."""

    def __init__(self, directory: Path, target: str) -> None:
        self._log = directory / "prometheus.log"
        configuration = directory / "prometheus.yml"
        configuration.write_text(_CONFIGURATION % target, "utf-8")
        for _ in range(STARTS):
            self._port = free_port()
            with open(self._log, "wb") as log:
                self._process = subprocess.Popen(
                    [
                        *(str(SERVER), f"--config.file={configuration}", f"--storage.tsdb.path={directory / 'data'}"),
                        *(f"--web.listen-address=127.0.0.1:{self._port}", "--log.level=warn"),
                        "--enable-feature=exemplar-storage",
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=directory,
                )
            if eventually(self._started) == "ready":
                return
            self.close()
        raise AssertionError(f"it does not start: {self.log}")

    def _started(self) -> str:
        if self._process.poll() is not None:
            return "ended"
        try:
            with self._open("/-/ready") as answer:
                return "ready" if answer.status == 200 else ""
        except OSError:
            return ""

    def _open(self, target: str) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(f"http://127.0.0.1:{self._port}{target}", timeout=TIMEOUT_S)

    @property
    def log(self) -> str:
        """What it has written: warnings and errors, and what it says however quiet it is to be."""
        return self._log.read_text("utf-8", "replace")

    def ask(self, endpoint: str, **parameters: object) -> Any:
        """What an endpoint of its API gives as `data`; AssertionError says what it refuses."""
        try:
            with self._open(f"/api/v1/{endpoint}?{urlencode(parameters)}") as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expression: str, unix_s: Optional[float] = None) -> list[dict[str, Any]]:
        """The result of an expression, now or at another time."""
        at = {} if unix_s is None else {"time": f"{unix_s:.3f}"}
        found = self.ask("query", query=expression, **at)["result"]
        assert isinstance(found, list)
        return found

    def number(self, expression: str, unix_s: Optional[float] = None) -> Optional[float]:
        """The value of an expression that gives one series; None when it gives none."""
        found = self.query(expression, unix_s)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def close(self) -> None:
        """End it, at once if it does not end by itself."""
        self._process.terminate()
        try:
            self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
