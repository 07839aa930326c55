"""Processes that share limits and budgets: exact together, whoever is killed or stopped, and whatever it was doing."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import unittest
from collections import Counter
from random import Random
from typing import Any

from gateway.keys.store import KeyStore
from gateway.limits.gcra import Gcra
from gateway.limits.limiter import Admission, KeyLimits, Subject
from gateway.limits.sharedtable import ENVIRONMENT, SharedTable
from gateway.limits.tablelimiter import TableLimiter
from gateway.state.database import StateDb
from tests.access import AccessTest, ask, bearer
from tests.support import CHAT, ROOT, TIMEOUT_S, GatewayProcess, eventually, gateway_process, process_environment

WORKER = '''
import json, os, signal, sys, time
from gateway.keys.store import KeyStore
from gateway.limits.limiter import Admission, KeyLimits, Subject
from gateway.limits.tablelimiter import TableLimiter
from gateway.limits import sharedtable
from gateway.limits.sharedtable import SharedTable

def be_patient():
    """On a machine that is busy nobody is taken for one that stands still."""
    sharedtable.PAUSES *= 20
    sharedtable.WAIT_MAX_S *= 20

if sys.argv[1] == "patient":
    be_patient()
table = SharedTable.inherited(os.environ)
limiter = TableLimiter(table, burst_share=0.01)
held = []

def hammer(key, duration_s, rpm, tpm):
    """Ask without a pause, and in the end until nothing is left."""
    subject = Subject(key, KeyLimits(rpm, tpm, 1000), tokens_estimate=10)
    passed, refused_s = [], None
    until_s = time.monotonic() + duration_s
    while True:
        now_s = time.monotonic()
        found = limiter.admit(subject, now_s)
        if isinstance(found, Admission):
            passed.append([found._reservations[0][2], now_s, refused_s])
            refused_s = None
            found.settle(5)
            found.release_concurrency()
        else:
            refused_s = now_s
            if now_s > until_s:
                return {"passed": passed, "refused_s": refused_s}

def hold(count, most):
    subject = Subject("alice", KeyLimits(concurrency=most))
    for _ in range(count):
        found = limiter.admit(subject, time.monotonic())
        if isinstance(found, Admission):
            held.append(found)
    return len(held)

def stop_with_the_lock():
    with table:
        os.kill(os.getpid(), signal.SIGSTOP)
        return table.overtaken()

def look():
    lines = []
    limiter.look_after(lambda level, event, **fields: lines.append([level, event, fields]))
    return dict(table.counts(), column=table.column, now_s=time.monotonic(), lines=lines)

print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    name, arguments = json.loads(line)
    print(json.dumps(globals()[name](*arguments)), flush=True)
'''
RATE_PER_S = 100.0
RPM = int(60 * RATE_PER_S)
TPM = 10**9  # never too few, but counted, reserved and settled
BURST = 60


class Worker:
    """A process with a limiter of its own over the table `fd`."""

    def __init__(self, fd: int, how: str) -> None:
        environment = process_environment({ENVIRONMENT: fd, "PYTHONPATH": ROOT})
        command = [sys.executable, "-c", WORKER, how]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, pass_fds=[fd], text=True)

    def begin(self, name: str, *arguments: Any) -> None:
        """Have it call a function."""
        assert self.process.stdin is not None
        print(json.dumps([name, arguments]), file=self.process.stdin, flush=True)

    def result(self) -> Any:
        """What that has given; waits for it."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def call(self, name: str, *arguments: Any) -> Any:
        self.begin(name, *arguments)
        return self.result()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(TIMEOUT_S)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@unittest.skipUnless(os.name == "posix", "a gateway is one process there")
class SharedTest(unittest.TestCase):
    def setUp(self) -> None:
        self.fd = SharedTable.create(4)
        self.keys = itertools.count()
        self.addCleanup(os.close, self.fd)

    def workers(self, count: int, how: str = "patient") -> list[Worker]:
        workers = [Worker(self.fd, how) for _ in range(count)]
        for worker in workers:
            self.addCleanup(worker.end)
        for worker in workers:
            self.assertEqual(worker.result(), "ready")
        return workers

    def own(self) -> TableLimiter:
        """A limiter in this process."""
        table = SharedTable(os.dup(self.fd))
        self.addCleanup(table.close)
        return TableLimiter(table, burst_share=BURST / RPM)

    def hammer(self, workers: list[Worker], duration_s: float) -> None:
        """All ask for the same new key at once: each request passes that one limiter would let pass, and no other.

        Reservations have their numbers in the order in which requests passed. That one limiter is asked in the same
        order, at the times at which they were decided, so that it does not matter who had to wait for a processor. What
        a worker was refused last, before one of its own passed, must be refused at the latest before that one.
        """
        key = f"key-{next(self.keys)}"
        for worker in workers:
            worker.begin("hammer", key, duration_s, RPM, TPM)
        results = [worker.result() for worker in workers]
        passed = sorted(one for result in results for one in result["passed"])
        first = passed[0][0] if passed else 0
        self.assertEqual([number for number, _, _ in passed], list(range(first, first + len(passed))))
        limit = Gcra(RPM, BURST)
        for number, now_s, refused_s in passed:
            if refused_s is not None:
                self.assertGreater(limit.wait_s(1, refused_s), 0.0, f"less passes, before {number}")
            self.assertTrue(limit.try_take(1, now_s).allowed, f"more passes: {number}")
        for result in results:
            self.assertGreater(limit.wait_s(1, result["refused_s"]), 0.0, "less passes")

    def test_two_and_four_processes_that_hammer_one_key_get_what_one_would(self) -> None:
        for count in (2, 4):
            with self.subTest(count):
                workers = self.workers(count)
                self.hammer(workers, 1.5)
                counts = workers[0].call("look")
                self.assertEqual({counts[name] for name in ("moved", "alone", "forgotten", "torn")}, {0}, counts)
                for worker in workers:
                    worker.end()

    def test_all_processes_of_a_machine_read_one_clock(self) -> None:
        for worker in self.workers(2):
            before_s = time.monotonic()
            now_s = worker.call("look")["now_s"]
            self.assertTrue(before_s <= now_s <= time.monotonic(), (before_s, now_s))

    def test_the_places_of_a_process_that_is_killed_come_back(self) -> None:
        first, second = self.workers(2)
        self.assertEqual(first.call("hold", 3, 3), 3)
        self.assertEqual(second.call("hold", 3, 3), 0)
        first.kill()
        second.call("look")
        self.assertEqual(second.call("hold", 5, 3), 3)

    def test_a_process_that_stands_still_with_the_lock_holds_nobody_up(self) -> None:
        stopped, *others = self.workers(3, "usual")
        stopped.begin("stop_with_the_lock")
        _, status = os.waitpid(stopped.process.pid, os.WUNTRACED)
        self.assertTrue(os.WIFSTOPPED(status))
        began_s = time.monotonic()
        self.assertEqual(others[0].call("hold", 1, 3), 1)
        self.assertLess(time.monotonic() - began_s, TIMEOUT_S / 2)
        for worker in others:
            worker.call("be_patient")
        self.hammer(others, 0.5)
        self.assertGreaterEqual(others[0].call("look")["moved"], 1)
        os.kill(stopped.process.pid, signal.SIGCONT)
        self.assertEqual(stopped.result(), True)  # it knows that it was overtaken
        stopped.call("be_patient")
        self.assertEqual(stopped.call("hold", 5, 3), 2)
        self.hammer([stopped, *others], 0.5)

    def test_whoever_is_killed_at_whatever_point_the_others_go_on_and_no_more_passes(self) -> None:
        random = Random(7)
        limiter = self.own()
        subject = Subject("alice", KeyLimits(RPM, TPM, 1000))
        began_s = time.monotonic()
        admitted = 0
        for _ in range(12):
            (worker,) = self.workers(1)
            worker.begin("hammer", "alice", 60.0, RPM, TPM)
            until_s = time.monotonic() + random.random() * 0.05
            while time.monotonic() < until_s:
                admitted += isinstance(limiter.admit(subject, time.monotonic()), Admission)
            worker.kill()
            limiter.look_after(lambda *_, **__: None)
        self.assertLessEqual(admitted, BURST + RATE_PER_S * (time.monotonic() - began_s) + 1)
        counts = limiter._table.counts()
        self.assertEqual([counts[name] for name in ("alone", "forgotten", "torn")], [0, 0, 0], counts)
        self.assertEqual(sum(generation % 2 for generation in limiter._table.generations()), 1)


@unittest.skipUnless(os.name == "posix", "a gateway is one process there")
class GatewaysTest(AccessTest):
    """Two gateways started as a parent would, but that each has its port."""

    def start(self, fd: int, **variables: object) -> GatewayProcess:
        environment = {"STATE_DB": self.db, ENVIRONMENT: fd, **variables}
        running: GatewayProcess = self.enter(gateway_process(environment, descriptors=[fd]))
        return running

    def table(self) -> int:
        fd = SharedTable.create(2)
        self.addCleanup(os.close, fd)
        return fd

    def post(self, running: GatewayProcess, secret: str, **options: Any) -> Any:
        return running.ask("POST", CHAT, ask(**options), bearer(secret))

    def test_a_keys_requests_are_counted_together_and_told_so(self) -> None:
        fd = self.table()
        two = [self.start(fd, API_KEYS="alice:sk-alice", RATE_LIMIT_RPM=6, RATE_LIMIT_BURST=1) for _ in range(2)]
        answers = [self.post(two[number % 2], "sk-alice") for number in range(8)]
        self.assertEqual([answer.status for answer in answers], [200] * 6 + [429] * 2)
        told = [answer.header("x-ratelimit-remaining-requests") for answer in answers]
        self.assertEqual(told, ["5", "4", "3", "2", "1", "0", "0", "0"])

    def test_places_of_a_gateway_that_is_killed_are_the_others(self) -> None:
        engine, other = self.engine("hang"), self.engine(model="n")
        fd = self.table()
        engines = {"m": engine.url, "n": other.url}
        models = json.dumps({"models": {name: {"engines": [{"url": url}]} for name, url in engines.items()}})
        variables = {
            "API_KEYS": "alice:sk-alice",
            "RATE_LIMIT_CONCURRENCY": 1,
            "ENGINES_FILE": self.directory / "e.json",
        }
        (self.directory / "e.json").write_text(models, "utf-8")
        first, second = (self.start(fd, **variables) for _ in range(2))
        client = self.enter(first.connect())
        client.request("POST", CHAT, ask(model="m"), bearer("sk-alice"))
        eventually(lambda: engine.stats()["requests"])
        self.assertEqual(self.post(second, "sk-alice", model="n").status, 429)
        first.signal(signal.SIGKILL)
        eventually(lambda: self.post(second, "sk-alice", model="n").status == 200)

    def test_a_budget_is_spent_by_both_at_once(self) -> None:
        engine = self.engine()
        price = {"input": 0.0, "output": 1e6}  # a dollar a token
        document = {"models": {"m": {"engines": [{"url": engine.url}], "price": price}}}
        path = self.file("e.json", document)
        with StateDb(self.db) as db:
            secret = KeyStore(db).create("alice", budget_usd=10.0)[1]
        fd = self.table()
        two = [self.start(fd, ENGINES_FILE=path) for _ in range(2)]
        answers = [self.post(two[number % 2], secret, max_tokens=3) for number in range(8)]
        spent = [answer.json()["usage"]["completion_tokens"] for answer in answers if answer.status == 200]
        self.assertEqual([answer.status for answer in answers], [200] * len(spent) + [429] * (8 - len(spent)))
        self.assertGreaterEqual(sum(spent), 10)
        self.assertLess(sum(spent[:-1]), 10)

        def events() -> Counter[str]:
            return Counter(line["event"] for one in two for line in one.log_lines())

        eventually(lambda: events()["request"] == len(answers) and events()["budget_warning"])
        self.assertEqual(events()["budget_warning"], 1)

    def test_a_gateway_that_is_handed_something_else_says_so_and_does_not_start(self) -> None:
        fd = self.table()
        os.ftruncate(fd, 0)
        with gateway_process({ENVIRONMENT: fd}, descriptors=[fd], wait=False) as running:
            self.assertNotEqual(running.wait(), 0)
            self.assertIn("the shared table of limits is no such table", running.stderr)
            self.assertNotIn("Traceback", running.stderr)

    def test_the_processes_of_one_gateway_count_together_and_go_on_counting_when_they_are_replaced(self) -> None:
        limits = {"RATE_LIMIT_RPM": 60, "RATE_LIMIT_BURST": 1, "RATE_LIMIT_CONCURRENCY": 200}
        variables = {"API_KEYS": "alice:sk-alice", "PROCESSES": 2, **limits}
        running: GatewayProcess = self.enter(gateway_process({"STATE_DB": self.db, **variables}))
        eventually(lambda: self.count(running, "started") == 2)
        answers = []

        def storm() -> None:
            for _ in range(10):
                answers.append(self.post(running, "sk-alice"))

        began_s = time.monotonic()
        threads = [threading.Thread(target=storm) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        passed = [answer for answer in answers if answer.status == 200]
        self.assertTrue(60 <= len(passed) <= 61 + time.monotonic() - began_s, len(passed))
        self.assertEqual(min(int(str(answer.header("x-ratelimit-remaining-requests"))) for answer in passed), 0)
        running.signal(signal.SIGUSR2)
        eventually(lambda: self.count(running, "started") == 4)
        answer = self.post(running, "sk-alice")
        remaining = int(str(answer.header("x-ratelimit-remaining-requests")))
        self.assertLessEqual(remaining, time.monotonic() - began_s)

    def count(self, running: GatewayProcess, event: str) -> int:
        return sum(line["event"] == event for line in running.log_lines())


if __name__ == "__main__":
    unittest.main()
