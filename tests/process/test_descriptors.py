"""How many descriptors a gateway allows itself, and when it says that they are too few."""

from __future__ import annotations

import contextlib
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from gateway.descriptors import DESCRIPTORS_MAX, raise_limit
from tests.support import MAIN, GatewayProcess, SocketTest, eventually, gateway_process

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

MILLION = DESCRIPTORS_MAX
LIMITED = (
    "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (%d, %d)); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


@unittest.skipIf(resource is None, "this system has no such limit")
class Limits(unittest.TestCase):
    """With a system that says what a test wants it to."""

    def setUp(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []
        self.asked: list[tuple[int, int]] = []

    def allowed(self, soft: int, hard: int, possible: Optional[int] = None, connections: int = 10_000) -> int:
        """The soft limit in the end, where the system lets a process have `possible` at most (None: the hard one)."""
        now = [soft]

        def set_limit(kind: int, limits: tuple[int, int]) -> None:
            self.assertEqual(limits[1], hard)
            self.asked.append(limits)
            if limits[0] > (hard if possible is None else possible) != resource.RLIM_INFINITY:
                raise ValueError("current limit exceeds maximum limit")
            now[0] = limits[0]

        def log(level: str, event: str, **fields: object) -> None:
            self.lines.append((level, event, fields))

        with self.system(soft, hard, set_limit):
            raise_limit(256, connections, log)
        return now[0]

    @contextlib.contextmanager
    def system(self, soft: int, hard: int, set_limit: Any) -> Iterator[None]:
        with mock.patch.object(resource, "getrlimit", lambda kind: (soft, hard)):
            with mock.patch.object(resource, "setrlimit", set_limit):
                yield

    def test_a_usual_hard_limit_is_taken_without_a_word(self) -> None:
        for soft, hard in ((1024, 20_000), (20_000, 20_000), (1024, 524_288), (256, MILLION), (1024, 10_512)):
            with self.subTest(soft=soft, hard=hard):
                self.assertEqual(self.allowed(soft, hard), hard)
                self.assertEqual(self.lines, [])

    def test_no_limit_is_no_reason_to_ask_for_more_than_systems_usually_give(self) -> None:
        for hard in (resource.RLIM_INFINITY, 1_073_741_816):
            self.assertEqual(self.allowed(1024, hard), MILLION)
            self.assertEqual(self.allowed(1024, hard, connections=1_000_000), 2_000_512)
        self.assertEqual(self.lines, [])

    def test_what_is_higher_already_stays(self) -> None:
        infinity = resource.RLIM_INFINITY
        for soft, hard in ((2 * MILLION, infinity), (infinity, infinity), (2 * MILLION, 2 * MILLION)):
            self.assertEqual(self.allowed(soft, hard), soft)
        self.assertEqual((self.asked, self.lines), ([], []))

    def test_a_system_that_gives_less_than_its_hard_limit_is_asked_for_all_that_it_gives(self) -> None:
        for hard in (resource.RLIM_INFINITY, 500_000):
            for possible in (10_240, 61_440, 245_760):
                with self.subTest(hard=hard, possible=possible):
                    self.asked.clear()
                    self.assertEqual(self.allowed(256, hard, possible), possible)
                    self.assertLess(len(self.asked), 30)
        self.assertEqual(self.allowed(256, resource.RLIM_INFINITY, 256), 256)

    def test_a_system_that_refuses_every_change_leaves_what_there_is(self) -> None:
        def refuse(kind: int, limits: tuple[int, int]) -> None:
            raise PermissionError(1, "Operation not permitted")

        logged: list[dict[str, Any]] = []
        with self.system(1024, 524_288, refuse):
            raise_limit(256, 10_000, lambda level, event, **fields: logged.append(fields))
        self.assertEqual([(fields["allowed"], fields["wanted"]) for fields in logged], [(1024, 10_512)])

    def test_too_few_are_told_with_what_can_be_had_and_what_to_do(self) -> None:
        self.assertEqual(self.allowed(1024, 4096), 4096)
        ((level, event, fields),) = self.lines
        self.assertEqual((level, event), ("warning", "few_descriptors"))
        self.assertEqual((fields["allowed"], fields["wanted"]), (4096, 10_512))
        self.assertEqual((fields["max_connections"], fields["possible_connections"]), (10_000, 3584))
        self.assertIn("ulimit", str(fields["message"]))
        self.lines.clear()
        self.allowed(100, 100)
        self.assertEqual(self.lines[0][2]["possible_connections"], 0)
        self.lines.clear()
        self.allowed(1024, 10_511)
        self.assertEqual(len(self.lines), 1)


@unittest.skipUnless(sys.platform.startswith("linux"), "reads a process's limits from /proc")
class Processes(SocketTest):
    def begun(self, soft: int, hard: int, **variables: object) -> GatewayProcess:
        """A gateway that began with these limits."""
        if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
            self.skipTest("needs more descriptors than a process may have here")
        program = ("-c", LIMITED % (soft, hard), *MAIN)
        return self.enter(gateway_process(program=program, LOG_FORMAT="json", **variables))

    def limits(self, running: GatewayProcess) -> tuple[int, int]:
        """Of its descriptors, soft and hard."""
        lines = Path(f"/proc/{running.process.pid}/limits").read_text().splitlines()
        words = next(line for line in lines if line.startswith("Max open files")).split()
        return int(words[3]), int(words[4])

    def test_the_limit_is_raised_to_the_hard_one_and_nothing_is_said(self) -> None:
        running = self.begun(1024, 12_000)
        self.assertEqual(self.limits(running), (12_000, 12_000))
        self.assertEqual(running.ask("GET", "/healthz").status, 200)
        self.assertNotIn("few_descriptors", running.stderr)

    def test_connections_that_cannot_be_had_are_told(self) -> None:
        running = self.begun(256, 1024, MAX_CONNECTIONS=1000)
        self.assertEqual(self.limits(running), (1024, 1024))
        line = eventually(lambda: [line for line in running.log_lines() if line["event"] == "few_descriptors"])[0]
        self.assertEqual((line["level"], line["allowed"], line["wanted"]), ("warning", 1024, 1512))
        self.assertEqual((line["max_connections"], line["possible_connections"]), (1000, 512))

    def test_so_many_connections_are_really_had(self) -> None:
        running = self.begun(256, 1024, MAX_CONNECTIONS=512)
        clients = [self.enter(running.connect()) for _ in range(512)]
        for client in clients:
            client.request("GET", "/healthz")
        self.assertEqual({client.read_response().status for client in clients}, {200})
        self.assertNotIn("few_descriptors", running.stderr)


if __name__ == "__main__":
    unittest.main()
