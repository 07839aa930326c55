"""The gateway in front of nine engine processes that are killed and started again while 64 clients are served.

`NINE_ENGINES_REQUESTS=5000 python -m unittest tests.process.test_nine_engines` makes it a long run; it prints what it
did when that variable is set.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import unittest
from typing import Any, Optional

from tests.support import CHAT, ROOT, TIMEOUT_S, GatewayProcess, RawClient, eventually, gateway_process, parse_metrics

MODELS = ("70b", "13b", "7b")


class EngineProcess:
    """`python -m gateway.mock`, which can be killed and started again at the same address."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start; `wait` tells when it listens."""
        command = [sys.executable, "-m", "gateway.mock", "--port", str(self.port), "--model", self.model]
        # Slow enough that every kill hits requests in flight.
        command += ["--behaviour", "slow", "--delay", "0.03"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)

    def wait(self) -> None:
        """Wait until it listens: it prints one line then."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line, f"the engine {self.model} ended with {self.process.wait(TIMEOUT_S)}"
        self.port = int(line.rpartition(":")[2].partition("/")[0])

    def kill(self) -> None:
        """SIGKILL: its connections are reset or closed by the system, and nothing is tidied up."""
        self.process.kill()
        self.process.wait(TIMEOUT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def in_flight(self) -> int:
        """Requests it is working on."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("GET", "/control")
            count: int = json.loads(connection.getresponse().read())["in_flight"]
            return count


class Traffic:
    """Clients on keep-alive connections that ask until `requests` are answered and `stop_after` is over.

    `_lock` guards `answered` and `faults`.
    """

    def __init__(self, gateway: GatewayProcess, clients: int, requests: int) -> None:
        self.gateway = gateway
        self.requests = requests
        self.answered: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self.tormented = threading.Event()  # set when the engines are left in peace
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, name=f"client-{n}") for n in range(clients)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    @property
    def running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def wait_for(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait until so many requests have been answered (or the clients have given up)."""
        eventually(lambda: len(self.answered) >= count or not self.running, timeout_s)

    def _run(self) -> None:
        try:
            with self.gateway.connect(timeout_s=30.0) as client:
                while len(self.answered) < self.requests or not self.tormented.is_set():
                    if self.faults:
                        return
                    self._ask(client, next(self._numbers))
                client.assert_quiet()
        except Exception as error:
            with self._lock:
                self.faults.append(f"{type(error).__name__}: {error}")

    def _ask(self, client: RawClient, number: int) -> None:
        request_id = f"request-{number}"
        prompt = f"question {number}"
        body = {"model": MODELS[number % len(MODELS)], "messages": [{"role": "user", "content": prompt}]}
        answer = client.post(body, headers=[("X-Request-ID", request_id)])
        fault: Optional[str] = None
        if answer.status != 200:
            fault = f"{request_id}: {answer.status} {answer.body[:300]!r}"
        else:
            found: dict[str, Any] = answer.json()
            content = found["choices"][0]["message"]["content"]
            if found["id"] != request_id or answer.request_id != request_id or not content.endswith(f": {prompt}"):
                fault = f"{request_id} got the answer {found['id']}: {content!r}"
        with self._lock:
            self.answered[request_id] += 1
            if fault is not None:
                self.faults.append(fault)


class NineEnginesTest(unittest.TestCase):
    CLIENTS = 64
    REQUESTS = int(os.environ.get("NINE_ENGINES_REQUESTS") or 600)
    HEALTH_INTERVAL_S = "0.2"

    def test_engines_killed_and_started_again_cost_no_client_an_answer(self) -> None:
        engines = [EngineProcess(model) for model in MODELS for _ in range(3)]
        for engine in engines:
            self.addCleanup(engine.kill)
        for engine in engines:
            engine.wait()
        fleet = ";".join(f"{model}={','.join(e.url for e in engines if e.model == model)}" for model in MODELS)
        with gateway_process(ENGINES=fleet, HEALTH_INTERVAL=self.HEALTH_INTERVAL_S) as gateway:
            started_s = time.monotonic()
            traffic = Traffic(gateway, self.CLIENTS, self.REQUESTS)
            traffic.start()
            try:
                killed = self._torment(engines, traffic)
            finally:
                traffic.tormented.set()
                traffic.join(60.0)
            took_s = time.monotonic() - started_s
            self.assertFalse(traffic.running)
            self.assertEqual(traffic.faults, [])
            self.assertGreaterEqual(len(traffic.answered), self.REQUESTS)
            self.assertEqual(set(traffic.answered.values()), {1})
            self.assertGreaterEqual(set(killed), set(MODELS))
            samples = self._assert_settled(gateway, engines)
            self._assert_logged_once_each(gateway, traffic)
        if "NINE_ENGINES_REQUESTS" in os.environ:
            self._report(traffic, killed, samples, took_s)

    def _torment(self, engines: list[EngineProcess], traffic: Traffic) -> list[str]:
        """Kill one engine of each model in turn, and start it again; returns the models in the order of kills."""
        # The first of 70b, of 13b, of 7b, then the second of 70b ...
        turns = [engines[model * 3 + nth] for nth in range(3) for model in range(3)]
        killed: list[str] = []
        for engine in itertools.cycle(turns):
            count = len(traffic.answered)
            if len(killed) >= len(MODELS) and count >= self.REQUESTS:
                return killed
            if traffic.faults:
                return killed
            traffic.wait_for(count + self.CLIENTS // 2)  # all is well for a moment
            engine.kill()
            killed.append(engine.model)
            traffic.wait_for(len(traffic.answered) + self.CLIENTS // 2)  # served without it
            engine.start()
            engine.wait()
        raise AssertionError

    def _assert_settled(self, gateway: GatewayProcess, engines: list[EngineProcess]) -> dict[str, float]:
        """Nothing is in flight any more, at the gateway or at an engine, and all nine are in again."""

        def samples() -> dict[str, float]:
            return parse_metrics(gateway.ask("GET", "/metrics").body)

        def settled() -> bool:
            found = samples()
            up = [value for name, value in found.items() if name.startswith("gateway_engine_up{")]
            in_flight = [value for name, value in found.items() if name.startswith("gateway_engine_inflight{")]
            return up == [1] * 9 and in_flight == [0] * 9 and found["gateway_workers_busy"] == 0

        eventually(settled)
        self.assertEqual(samples()["gateway_queue_depth"], 0)
        eventually(lambda: [engine.in_flight() for engine in engines] == [0] * 9)
        return samples()

    def _assert_logged_once_each(self, gateway: GatewayProcess, traffic: Traffic) -> None:
        def lines() -> collections.Counter[str]:
            return collections.Counter(
                line["request_id"]
                for line in gateway.log_lines()
                if line["event"] == "request" and line["path"] == CHAT and line["status"] == 200
            )

        eventually(lambda: len(lines()) >= len(traffic.answered))
        self.assertEqual(lines(), traffic.answered)

    def _report(self, traffic: Traffic, killed: list[str], samples: dict[str, float], took_s: float) -> None:
        count = len(traffic.answered)
        print(f"\n{count} requests, {self.CLIENTS} clients, {took_s:.1f} s, {len(killed)} kills, no error")
        for name, value in sorted(samples.items()):
            if name.startswith(("gateway_retries_total", "gateway_fallbacks_total")) or (
                name.startswith("gateway_engine_requests_total") and 'outcome="ok"' not in name
            ):
                print(f"  {name} {value:g}")


if __name__ == "__main__":
    unittest.main()
