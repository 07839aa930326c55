"""Single flight across gateways, without Redis: who takes a lease, who waits for another's, and for how long."""

from __future__ import annotations

import unittest
from typing import Any, Optional, cast
from unittest import mock

from gateway.errors import ClientGone
from gateway.shared import leases as leases_module
from gateway.shared.leases import ANOTHERS, DONE, LOOK_S, OWN, RENEW_S, WAIT_S, Lease, Leases
from gateway.shared.line import BEAT_S, Job, Line
from gateway.steps import Flagged, Steps
from gateway.upstream.call import Call


class LeasesTest(unittest.TestCase):
    def setUp(self) -> None:
        self.asked: list[Job] = []
        self.told: list[Job] = []
        self.is_open = False
        self.leases = Leases(cast(Line, self), 0.05)
        self.call = Call("/completions", {"prompt": "a"})
        self.found: Optional[str] = None
        self.looks = 0
        self.now_s = 100.0
        patched = mock.patch.object(leases_module.time, "monotonic", lambda: self.now_s)
        patched.start()
        self.addCleanup(patched.stop)

    def ask(self, job: Job) -> bool:
        if not self.is_open:
            self.asked.append(job)
        return not self.is_open

    def tell(self, job: Job) -> None:
        self.told.append(job)

    def look(self) -> Steps[Optional[str]]:
        self.looks += 1
        return self.found
        yield

    def take(self) -> Any:
        return self.leases.take(self.call, b"k", self.look)

    def answer(self, reply: Any) -> None:
        heard = self.asked.pop().heard
        assert heard is not None
        heard(reply)

    def goes_on(self, steps: Any, reply: Any) -> Any:
        """Redis replies; the next wait, or what the steps give."""
        self.answer(reply)
        try:
            return steps.send(True)
        except StopIteration as end:
            return end.value

    def given_back(self) -> list[int]:
        """For how many milliseconds it is said that there is an answer, by each lease that was given back."""
        return [job.command(False)[-1] for job in self.told]

    def test_who_is_first_holds_it_until_it_has_answered(self) -> None:
        steps = self.take()
        self.assertEqual(next(steps).seconds, 0.05)
        lease = self.goes_on(steps, OWN)
        self.assertIsInstance(lease, Lease)
        beats = [len(self.leases.beat()) for _ in range(int(2 * RENEW_S / BEAT_S))]
        self.assertEqual(sum(beats), 2)
        lease.give_back(True)
        self.assertEqual(self.given_back(), [500])
        self.assertEqual({len(self.leases.beat()) for _ in range(int(2 * RENEW_S / BEAT_S))}, {0})

    def test_who_comes_after_waits_and_is_given_the_answer(self) -> None:
        steps = self.take()
        next(steps)
        wait = self.goes_on(steps, ANOTHERS)
        self.assertIsInstance(wait, Flagged)
        self.assertEqual(wait.seconds, LOOK_S)
        next(steps)
        self.goes_on(steps, DONE)  # the answer is not there yet
        self.assertEqual(self.looks, 1)
        next(steps)
        self.found = "answer"
        self.assertEqual(self.goes_on(steps, DONE), "answer")
        self.assertEqual(self.told, [])

    def test_who_waits_takes_over_when_it_ends_without_an_answer(self) -> None:
        steps = self.take()
        next(steps)
        self.goes_on(steps, ANOTHERS)
        next(steps)
        self.assertIsInstance(self.goes_on(steps, OWN), Lease)

    def test_nobody_waits_for_ever(self) -> None:
        steps = self.take()
        next(steps)
        self.goes_on(steps, ANOTHERS)
        next(steps)
        self.now_s += WAIT_S
        self.assertIsNone(self.goes_on(steps, ANOTHERS))

    def test_without_redis_each_asks_by_itself(self) -> None:
        for reply in (None, b"garbage"):
            steps = self.take()
            next(steps)
            self.assertIsNone(self.goes_on(steps, reply))
        self.is_open = True
        with self.assertRaises(StopIteration) as end:
            next(self.take())
        self.assertIsNone(end.exception.value)

    def test_a_lease_that_comes_too_late_or_for_who_has_left_is_given_back(self) -> None:
        steps = self.take()
        next(steps)
        with self.assertRaises(StopIteration) as end:
            steps.send(False)
        self.assertIsNone(end.exception.value)
        self.answer(OWN)
        self.assertEqual(self.given_back(), [0])
        for early in (False, True):
            self.told.clear()
            steps = self.take()
            next(steps)
            if early:
                self.answer(OWN)
            steps.close()
            if not early:
                self.answer(OWN)
            self.assertEqual(self.given_back(), [0])

    def test_who_leaves_while_it_waits_is_let_go(self) -> None:
        steps = self.take()
        next(steps)
        self.goes_on(steps, ANOTHERS)
        self.call.cancel()
        with self.assertRaises(ClientGone):
            steps.send(True)
        self.assertEqual(self.told, [])


if __name__ == "__main__":
    unittest.main()
