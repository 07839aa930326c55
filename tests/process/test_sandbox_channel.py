"""The gateway's end of a jail, with a test that plays the jail: only a whole answer with the nonce is believed."""

from __future__ import annotations

import json
import socket
import threading
import unittest
from typing import Any, Callable
from unittest import mock

from gateway.verify.sandbox.channel import Channel
from gateway.verify.sandbox.job import Job, Limits, Run
from tests.support import eventually

JOB = Job("python", "1")


class ChannelTest(unittest.TestCase):
    def setUp(self) -> None:
        ours, self.jail = socket.socketpair()
        self.jail.settimeout(10.0)
        self.addCleanup(self.jail.close)
        self.ended: list[str] = []
        self.channel = Channel(ours, "test", {"judge": "SOURCE"}, lambda: self.ended.append("end"))
        self.addCleanup(self.channel.close)
        self.received = b""

    def receive(self) -> tuple[dict[str, Any], str]:
        """The job's head and nonce."""
        while b"\n" not in self.received:
            self.received += self.jail.recv(1 << 16)
        head = json.loads(self.received.partition(b"\n")[0])
        size = self.received.index(b"\n") + 1 + sum(head[part] for part in ("code", "source", "payload")) + 32
        while len(self.received) < size:
            self.received += self.jail.recv(1 << 16)
        return head, self.received[-32:].decode()

    def answered(self, answer: Callable[[dict[str, Any]], bytes], job: Job = JOB) -> Run:
        """What is believed when the jail says `answer` of an honest head."""

        def play() -> None:
            _, nonce = self.receive()
            head = {"nonce": nonce, "reason": "exit", "exit_code": 0, "truncated": False, "error": None}
            self.jail.sendall(answer({**head, "stdout": 1, "stderr": 2, "report": 3}))
            self.jail.close()

        thread = threading.Thread(target=play)
        thread.start()
        run = self.channel.run(job)
        thread.join()
        return run

    def assert_not_believed(self, run: Run, words: str) -> None:
        self.assertEqual((run.reason, run.exit_code, run.stdout, run.report), ("setup", None, b"", b""))
        self.assertIn(words, run.error or "")

    def test_a_whole_answer_is_believed(self) -> None:
        run = self.answered(lambda head: json.dumps(head).encode() + b"\nabbccc")
        self.assertEqual(run[:6], ("exit", 0, b"a", b"bb", False, b"ccc"))
        self.assertEqual((run.isolation, run.error), ("test", None))

    def test_all_of_the_job_is_sent_and_the_harness_it_names(self) -> None:
        job = Job("python", "code é", "judge", b"payload", Limits(wall_s=3.0))
        self.answered(lambda head: b"", job)
        head = json.loads(self.received.partition(b"\n")[0])
        self.assertEqual((head["language"], head["harness"], head["limits"]["wall_s"]), ("python", "judge", 3.0))
        self.assertEqual(self.received.partition(b"\n")[2][:-32], "code éSOURCEpayload".encode())

    def test_an_answer_with_another_nonce_is_not(self) -> None:
        for nonce in ("0" * 32, "", None):
            self.setUp()
            self.assert_not_believed(
                self.answered(lambda head: json.dumps({**head, "nonce": nonce}).encode() + b"\nabbccc"),  # noqa: B023
                "not the supervisor's",
            )

    def test_an_answer_that_is_cut_or_longer_than_it_says_is_not(self) -> None:
        for body in (b"", b"\n", b"\nabbcc", b"\nabbcccd"):
            self.setUp()
            self.assert_not_believed(self.answered(lambda head: json.dumps(head).encode() + body), "whole")  # noqa: B023

    def test_what_is_no_answer_is_not(self) -> None:
        self.assert_not_believed(self.answered(lambda head: b""), "without an answer")
        for text in (b"nonsense\n", b"[]\n", b"{}\n", b"\xff\n"):
            self.setUp()
            self.assert_not_believed(self.answered(lambda head: text), "")  # noqa: B023
        for change in ({"reason": "fine"}, {"exit_code": "0"}, {"stdout": -1}, {"stdout": None}):
            self.setUp()
            run = self.answered(lambda head: json.dumps({**head, **change}).encode() + b"\nabbccc")  # noqa: B023
            self.assert_not_believed(run, "")

    def test_an_endless_answer_is_not_kept(self) -> None:
        limits = Limits(output_bytes=10, report_bytes=10)
        ran: list[Run] = []
        thread = threading.Thread(target=lambda: ran.append(self.channel.run(Job("python", "1", limits=limits))))
        thread.start()
        self.receive()
        with self.assertRaises(OSError):
            while True:
                self.jail.sendall(b"x" * 10_000)
        thread.join()
        self.assert_not_believed(ran[0], "too much")

    def test_an_answer_that_does_not_come_in_time_is_not_waited_for(self) -> None:
        with mock.patch("gateway.verify.sandbox.channel.GRACE_S", 0.0):
            self.assert_not_believed(self.channel.run(Job("python", "1", limits=Limits(wall_s=0.05))), "")

    def test_a_jail_is_good_for_one_job_and_ended_once(self) -> None:
        self.answered(lambda head: json.dumps(head).encode() + b"\nabbccc")
        self.assert_not_believed(self.channel.run(JOB), "used or closed")
        self.channel.close()
        self.channel.close()
        self.assertEqual(self.ended, ["end"])

    def test_closing_wakes_who_waits_for_the_answer(self) -> None:
        ran: list[Run] = []
        thread = threading.Thread(target=lambda: ran.append(self.channel.run(JOB)))
        thread.start()
        self.receive()
        eventually(lambda: self.channel._running)
        self.channel.close()
        thread.join()
        self.assert_not_believed(ran[0], "without an answer")

    def test_a_job_that_cannot_be_told_is_no_success(self) -> None:
        self.assert_not_believed(self.channel.run(Job("cobol", "1")), "no way to run")
