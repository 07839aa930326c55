"""Several processes of one gateway, real ones: whichever is asked answers for all."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import unittest
from typing import Any, Callable

from tests.access import ADMIN_KEYS, AS_ROOT
from tests.process.test_processes import BODY, HEADERS, LONG_S, ProcessesCase
from tests.support import (
    CHAT,
    HI,
    TIMEOUT_S,
    GatewayProcess,
    children_of,
    engines,
    eventually,
    mock_engine,
    parse_metrics,
)

REQUESTS = int(os.environ.get("AGREEING_REQUESTS", "3000"))
CLIENTS = 6
LOOKS = 24
"""So many new connections meet every process, but once in some millions of runs."""


class AgreeingCase(ProcessesCase):
    def metrics(self, process: GatewayProcess) -> dict[str, float]:
        return parse_metrics(process.ask("GET", "/metrics").body)

    def counted(self, process: GatewayProcess) -> float:
        """Requests of inference, by whoever takes the connection."""
        return sum(
            value
            for name, value in self.metrics(process).items()
            if name.startswith(f'gateway_requests_total{{path="{CHAT}"')
        )

    def states(self, process: GatewayProcess) -> dict[str, str]:
        models = process.ask("GET", "/health", None, [AS_ROOT]).json()["models"]
        return {engine["id"]: engine["state"] for model in models.values() for engine in model["engines"]}

    def all_say(self, process: GatewayProcess, expected: Any, ask: Callable[[GatewayProcess], Any]) -> None:
        """Every process says so, at last."""
        eventually(lambda: all(ask(process) == expected for _ in range(LOOKS)), LONG_S)

    def ask_many(self, process: GatewayProcess, count: int) -> None:
        """So many requests by some clients, each on connections that it keeps as long as they are."""

        def client(own: int) -> None:
            connection = None
            while own:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=TIMEOUT_S)
                connection.request("POST", CHAT, BODY, HEADERS)
                answer = connection.getresponse()
                answer.read()
                statuses.append(answer.status)
                own -= 1
                if answer.will_close:
                    connection.close()
                    connection = None
            if connection is not None:
                connection.close()

        statuses: list[int] = []
        shares = [len(range(first, count, CLIENTS)) for first in range(CLIENTS)]
        threads = [threading.Thread(target=client, args=(share,)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_S)
        self.assertEqual(statuses, [200] * count)


class CountsTest(AgreeingCase):
    def test_each_request_is_counted_once_whoever_is_asked_and_whoever_ends(self) -> None:
        process = self.start()
        self.ask_many(process, REQUESTS)
        self.assertEqual([self.counted(process) for _ in range(LOOKS)], [REQUESTS] * LOOKS)
        process.signal(signal.SIGUSR2)
        self.wait_for_started(process, 4)
        eventually(lambda: len(children_of(process.process.pid)) == 2, LONG_S)
        self.all_say(process, 2, lambda one: self.metrics(one)['gateway_processes{state="counted"}'])
        self.ask_many(process, 60)
        self.assertEqual([self.counted(process) for _ in range(LOOKS)], [REQUESTS + 60] * LOOKS)

    def test_a_rolling_restart_under_load_loses_no_count(self) -> None:
        process = self.start()
        asking = threading.Thread(target=self.ask_many, args=(process, REQUESTS))
        asking.start()
        eventually(lambda: self.counted(process) > REQUESTS / 10, LONG_S)
        process.signal(signal.SIGUSR2)
        self.wait_for_started(process, 4)
        seen: list[float] = []
        while asking.is_alive():
            seen.append(self.counted(process))
        asking.join()
        eventually(lambda: len(children_of(process.process.pid)) == 2, LONG_S)
        self.assertEqual([self.counted(process) for _ in range(LOOKS)], [REQUESTS] * LOOKS)
        self.assertEqual(seen, sorted(seen), "no count goes down")

    def test_what_was_shown_is_not_taken_back_when_a_process_is_killed(self) -> None:
        process = self.start()
        self.ask_many(process, 300)
        self.assertEqual(self.counted(process), 300)
        os.kill(self.child(process, 1), signal.SIGKILL)
        self.wait_for_started(process, 3)
        eventually(lambda: self.metrics(process)['gateway_processes{state="counted"}'] == 2, LONG_S)
        self.assertEqual([self.counted(process) for _ in range(LOOKS)], [300] * LOOKS)


class EnginesTest(AgreeingCase):
    def test_a_drain_at_one_is_a_drain_at_all_also_at_who_comes_later(self) -> None:
        process = self.start(ADMIN_KEYS=ADMIN_KEYS)
        answer = process.ask("POST", "/admin/engines/echo/drain", None, [AS_ROOT])
        self.assertEqual(answer.status, 200, answer.body)
        self.all_say(process, {"echo": "draining"}, self.states)
        os.kill(self.child(process, 0), signal.SIGKILL)
        self.wait_for_started(process, 3)
        self.all_say(process, {"echo": "draining"}, self.states)
        process.ask("POST", "/admin/engines/echo/enable", None, [AS_ROOT])
        self.all_say(process, {"echo": "up"}, self.states)

    def test_a_breaker_that_opens_in_one_is_open_in_all(self) -> None:
        engine = self.enter(mock_engine("m", "error"))
        process = self.start(ENGINES=engines(m=[engine.url, "echo:"]), BREAKER_MIN_REQUESTS=3, BREAKER_OPEN=60)
        with process.connect() as client:  # one connection is one process's
            eventually(lambda: client.ask("POST", CHAT, HI).status and "open" in self.states(process).values())
        asked = engine.stats()["requests"]
        self.all_say(process, ["open", "up"], lambda one: sorted(self.states(one).values()))
        self.ask_many(process, 60)
        self.assertEqual(engine.stats()["requests"], asked, "no process asks it")

    def test_when_the_leader_is_killed_the_next_one_probes(self) -> None:
        engine = self.enter(mock_engine("m"))
        process = self.start(ENGINES=engines(m=engine.url), HEALTH_INTERVAL="0.3", HEALTH_FAILS="1")
        self.all_say(process, ["up"], lambda one: list(self.states(one).values()))
        os.kill(self.child(process, 0), signal.SIGKILL)
        engine.control("loading")
        self.all_say(process, ["down"], lambda one: list(self.states(one).values()))
        engine.control("ok")
        self.all_say(process, ["up"], lambda one: list(self.states(one).values()))


if __name__ == "__main__":
    unittest.main()
