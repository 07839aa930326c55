"""Budgets that gateways share, without Redis: what is reserved and spent, learnt, set right, and decided alone."""

from __future__ import annotations

import struct
import tempfile
import unittest
from pathlib import Path
from typing import Any, Optional, Union, cast

from gateway.errors import GatewayError
from gateway.limits.budgets import Budgets
from gateway.shared.budgets import KEEP_S, SPENT, TAKEN, Reserved, SharedBudgets
from gateway.shared.line import BEAT_S, Job, Line
from gateway.state.database import StateDb
from gateway.steps import Steps
from tests.support import eventually

NOW_S = 1_700_000_000.0


def reply(passes: bool, spent_usd: float) -> bytes:
    return struct.pack(">2d", passes, spent_usd)


class SharedBudgetsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.asked: list[Job] = []
        self.told: list[Job] = []
        self.is_open = False
        self.peers = 2
        self.now_s = NOW_S
        self.budgets = Budgets(clock=lambda: self.now_s)
        self.budgets.check("alice", 1.0, "day", self.now_s)

    def ask(self, job: Job) -> bool:
        if not self.is_open:
            self.asked.append(job)
        return not self.is_open

    def tell(self, job: Job) -> None:
        self.told.append(job)

    def shared(self, fail: str = "local") -> SharedBudgets:
        return SharedBudgets(cast(Line, self), b"me", lambda: self.peers, lambda: self.budgets, fail, 0.05)

    def begin(self, shared: SharedBudgets, cost: float = 0.1) -> Steps[Union[Reserved, str]]:
        steps = shared.reserve("alice", 1.0, cost, self.now_s)
        next(steps)
        return steps

    def end(self, steps: Steps[Any], answer: Optional[bytes] = None) -> Any:
        if answer is not None:
            self.hear(self.asked.pop(), answer)
        try:
            next(steps)
        except StopIteration as end:
            return end.value
        raise AssertionError("it waits again")

    def alone(self, shared: SharedBudgets, cost: float = 0.1) -> Any:
        return self.end(shared.reserve("alice", 1.0, cost, self.now_s))

    def hear(self, job: Job, answer: Any) -> None:
        assert job.heard is not None
        job.heard(answer)

    def numbers(self, job: Job) -> list[float]:
        packed = job.command(False)[-2] if isinstance(job.command(False)[-1], bytes) else job.command(False)[-3]
        return [round(number, 6) for number in struct.unpack(f">{len(packed) // 8}d", packed)]

    def keeping(self, shared: SharedBudgets) -> list[Job]:
        return [job for _ in range(int(KEEP_S / BEAT_S) + 1) for job in shared.beat()]

    def test_what_passes_is_reserved_until_it_is_released_once(self) -> None:
        shared = self.shared()
        reserved = self.end(self.begin(shared), reply(True, 0.2))
        assert isinstance(reserved, Reserved)
        self.assertAlmostEqual(self.budgets.spent_usd("alice"), 0.2)
        [keep] = self.keeping(shared)
        self.assertEqual(self.numbers(keep), [0.0, 0.1, 0.2])
        reserved.release()
        reserved.release()
        [release] = self.told
        self.assertEqual(self.numbers(release)[1:3], [0.0, 0.1])
        self.hear(release, None)
        [keep] = self.keeping(shared)
        self.assertEqual(self.numbers(keep), [0.0, 0.0, 0.2])

    def test_why_not_is_told(self) -> None:
        shared = self.shared()
        self.assertEqual(self.end(self.begin(shared), reply(False, 1.0)), SPENT)
        self.assertEqual(self.end(self.begin(shared), reply(False, 0.9)), TAKEN)
        self.assertEqual(self.told, [])

    def test_what_is_spent_is_told_and_counted_once(self) -> None:
        shared = self.shared()
        self.end(self.begin(shared), reply(True, 0.2))
        shared.spend("alice", 0.3, self.now_s)
        self.budgets.spend("alice", 0.3)
        [spend] = self.told
        self.assertEqual(self.numbers(spend)[1:3], [0.3, 0.0])
        [keep] = self.keeping(shared)
        self.assertEqual(self.numbers(keep)[2], 0.2)  # else what is under way would be added twice
        self.hear(keep, struct.pack(">d", 0.4))  # another gateway has spent as much
        self.assertAlmostEqual(self.budgets.spent_usd("alice"), 0.7)
        self.hear(spend, 1)
        [keep] = self.keeping(shared)
        self.assertEqual(self.numbers(keep)[2], 0.7)
        shared.spend("nobody", 0.3, self.now_s)
        shared.spend("alice", 0.0, self.now_s)
        self.assertEqual(len(self.told), 1)

    def test_what_others_have_written_to_the_same_database_is_not_told_as_if_redis_had_lost_it(self) -> None:
        with tempfile.TemporaryDirectory() as directory, StateDb(Path(directory) / "state.db") as db:
            self.budgets = Budgets(db, clock=lambda: self.now_s)
            self.budgets.check("alice", 1.0, "day", self.now_s)
            shared = self.shared()
            self.end(self.begin(shared), reply(True, 0.2))
            shared.spend("alice", 0.1, self.now_s)
            self.budgets.spend("alice", 0.1)
            other = Budgets(db, clock=lambda: self.now_s)
            other.check("alice", 1.0, "day", self.now_s)
            other.spend("alice", 0.5)  # its gateway is going to tell Redis, which is gone just now
            eventually(lambda: self.budgets.refresh() and self.budgets.spent_usd("alice") > 0.5)
            [keep] = self.keeping(shared)
            self.assertEqual(self.numbers(keep)[2], 0.2)
            self.hear(self.told.pop(), None)  # nobody knows whether it has come
            [keep] = self.keeping(shared)
            self.assertEqual(self.numbers(keep)[2], 0.3)

    def test_what_was_spent_before_there_was_redis_is_told(self) -> None:
        self.budgets.spend("alice", 0.4)
        shared = self.shared()
        self.begin(shared)
        self.assertEqual(struct.unpack(">5d", self.asked.pop().command(False)[-2])[3], 0.4)

    def test_what_comes_too_late_or_for_who_has_left_is_given_back(self) -> None:
        shared = self.shared()
        self.end(self.begin(shared))  # no answer in time: it has passed here
        self.hear(self.asked.pop(), reply(True, 0.0))
        self.assertEqual([self.numbers(job)[2] for job in self.told], [0.1])
        for early in (True, False):
            self.told.clear()
            steps = self.begin(shared)
            if early:
                self.hear(self.asked.pop(), reply(True, 0.0))
            steps.close()
            if not early:
                self.hear(self.asked.pop(), reply(True, 0.0))
            self.assertEqual([self.numbers(job)[2] for job in self.told], [0.1])

    def test_alone_what_is_spent_counts_for_every_gateway(self) -> None:
        shared = self.shared()
        self.end(self.begin(shared), reply(True, 0.5))
        self.is_open = True
        for _ in range(2):
            self.assertIsInstance(self.alone(shared), Reserved)
            shared.spend("alice", 0.125, self.now_s)
            self.budgets.spend("alice", 0.125)
        self.assertEqual(self.alone(shared), SPENT)  # 0.5 of all, and twice 0.25

    def test_closed_refuses(self) -> None:
        shared = self.shared("closed")
        self.is_open = True
        with self.assertRaises(GatewayError) as caught:
            self.alone(shared)
        self.assertEqual(caught.exception.code, "limits_unavailable")

    def test_a_new_period_is_another_sum(self) -> None:
        shared = self.shared()
        self.end(self.begin(shared), reply(True, 0.9))
        shared.spend("alice", 0.1, self.now_s)
        before = self.told[-1].command(False)[3]
        self.now_s += 86_400.0
        shared.spend("alice", 0.1, self.now_s)
        after = self.told[-1].command(False)[3]
        self.assertNotEqual(before, after)
        for name in (before, after):
            self.assertTrue(name.startswith(b"{igw}:b:"))
            self.assertNotIn(b"alice", name)

    def test_sums_that_nobody_uses_are_forgotten_here(self) -> None:
        shared = self.shared()
        reserved = self.end(self.begin(shared), reply(True, 0.2))
        for _ in range(3):
            self.assertEqual(len(self.keeping(shared)), 1)
        reserved.release()
        self.hear(self.told.pop(), 1)
        self.keeping(shared)
        self.assertEqual(self.keeping(shared), [])

    def test_a_reply_that_is_none_decides_nothing(self) -> None:
        shared = self.shared()
        for answer in (b"", b"x", b"x" * 25):
            self.assertIsInstance(self.end(self.begin(shared), answer), Reserved)
        self.assertEqual(self.budgets.spent_usd("alice"), 0.0)


if __name__ == "__main__":
    unittest.main()
