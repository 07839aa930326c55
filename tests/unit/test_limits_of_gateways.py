"""Limits that gateways share, without Redis: what is asked, what becomes of each reply, of none, and of a late one."""

from __future__ import annotations

import importlib.util
import struct
import unittest
from typing import Any, Optional, Union, cast

from gateway.errors import GatewayError
from gateway.guard import Guard
from gateway.limits.limiter import NO_RATE_LIMITS, Admission, KeyLimits, Limiter, RateLimits, Refusal, Subject
from gateway.limits.quotas import Bursts
from gateway.limits.sharedtable import SharedTable
from gateway.shared.limits import LEASE_S, SharedLimits
from gateway.shared.line import BEAT_S, Job, Line
from gateway.shared.scopes import Scopes, told_in
from gateway.shared.scripts import PLACE_BYTES
from gateway.shared.state import _place_of
from gateway.steps import Flagged, Steps
from tests.access import Clock
from tests.support import load_settings

BURSTS = Bursts(0.1, 1.0)
ALICE = Subject("alice", KeyLimits(600, 6000, 2), tokens_estimate=1000)
Outcome = Union[Admission, Refusal]


class FakeLine:
    """Keeps what is asked and told; the test answers."""

    def __init__(self) -> None:
        self.is_open = False
        self.asked: list[Job] = []
        self.told: list[Job] = []

    def ask(self, job: Job) -> bool:
        if self.is_open:
            return False
        self.asked.append(job)
        return True

    def tell(self, job: Job) -> None:
        self.told.append(job)

    def names(self) -> list[str]:
        """The scripts and commands that were told, by their keys and arguments."""
        return [str(job.command(False)[0].decode()) for job in self.told]


def reply(
    *scopes: tuple[float, float, float], peers: int = 1, wait_s: float = 0.0, which: int = 0, full: int = 0
) -> bytes:
    numbers = [float(peers), wait_s, float(which), float(full)]
    for scope in scopes:
        numbers += scope
    return struct.pack(f">{len(numbers)}d", *numbers)


class SharedLimitsTest(unittest.TestCase):
    def setUp(self) -> None:
        self.clock = Clock(1_000.0)
        self.line = FakeLine()

    def limits(self, fail: str = "local", everybody: RateLimits = NO_RATE_LIMITS) -> SharedLimits:
        self.local = Limiter(everybody, None, *BURSTS, self.clock)
        scopes = Scopes(everybody, None, BURSTS)
        return SharedLimits(cast(Line, self.line), self.local, scopes, fail, 0.05, self.clock)

    def begin(self, limits: SharedLimits, subject: Subject = ALICE) -> Steps[Outcome]:
        """A request that waits for its answer."""
        steps = limits.admit(subject)
        wait = next(steps)
        assert isinstance(wait, Flagged)
        self.assertEqual(wait.seconds, 0.05)
        return steps

    def end(self, steps: Steps[Outcome]) -> Outcome:
        try:
            steps.send(None)
        except StopIteration as end:
            return cast(Outcome, end.value)
        raise AssertionError("it waits again")

    def at_once(self, limits: SharedLimits, subject: Subject = ALICE) -> Outcome:
        """The outcome of a request that does not wait."""
        try:
            next(limits.admit(subject))
        except StopIteration as end:
            return cast(Outcome, end.value)
        raise AssertionError("it waits")

    def answer(self, value: Optional[bytes]) -> None:
        heard = self.line.asked.pop(0).heard
        assert heard is not None
        heard(value)

    @unittest.skipUnless(importlib.util.find_spec("redis"), "redis-py is not installed")
    def test_processes_that_have_never_heard_of_redis_take_no_more_than_their_share_of_a_gateways_limits(self) -> None:
        settings = load_settings({"REDIS_URL": "redis://127.0.0.1:9", "RATE_LIMIT_GLOBAL_RPM": 6_000, "LEDGER": "off"})
        table = SharedTable(SharedTable.create(3))
        self.addCleanup(table.close)
        guard = Guard(settings, lambda *_, **__: None, frozenset(), self.clock, table=table)
        self.addCleanup(guard.close, 1.0)
        assert guard.shared is not None
        self.assertEqual(guard.shared.limits.peers, 3)
        first = guard.limiter.admit(Subject("bob"), self.clock())
        assert isinstance(first, Admission)
        self.assertIn(("x-ratelimit-limit-requests", "2000"), first.headers())

    def test_what_no_limit_applies_to_asks_nobody(self) -> None:
        limits = self.limits()
        self.assertIs(self.at_once(limits, Subject("bob")), self.local.unlimited)
        self.assertEqual((self.line.asked, self.line.told), ([], []))

    def test_what_passes_is_told_what_is_left_and_gives_back_once(self) -> None:
        limits = self.limits()
        steps = self.begin(limits)
        self.answer(reply((0.1, 10.0, 7.0), peers=3))
        admission = self.end(steps)
        assert isinstance(admission, Admission)
        self.assertEqual(limits.peers, 3)
        self.assertIn(("x-ratelimit-remaining-requests", "59"), admission.headers())
        self.assertIn(("x-ratelimit-remaining-tokens", "5000"), admission.headers())
        self.assertTrue(admission.holds)
        for _ in range(2):
            admission.settle(10)
            admission.release_concurrency()
        self.assertEqual(self.line.names(), ["EVALSHA", "ZREM"])

    def test_who_is_refused_for_another_reason_is_told_what_was_last_heard(self) -> None:
        limits = self.limits()
        self.assertIn(("x-ratelimit-remaining-requests", "60"), limits.headers(ALICE))
        steps = self.begin(limits)
        self.answer(reply((3.0, 10.0, 7.0)))
        self.end(steps)
        self.assertIn(("x-ratelimit-remaining-requests", "30"), limits.headers(ALICE))
        self.clock.now_s += 1.0
        self.assertIn(("x-ratelimit-remaining-requests", "40"), limits.headers(ALICE))
        self.assertEqual(limits.headers(Subject("bob")), ())

    def test_a_refusal_names_the_limit_and_the_wait(self) -> None:
        limits = self.limits()
        for value, name, wait_s, never in (
            (reply((6.0, 0.0, 0.0), wait_s=0.1, which=1), "key requests per minute", 0.1, False),
            (reply((0.0, 60.0, 0.0), wait_s=10.0, which=2), "key tokens per minute", 10.0, False),
            (reply((0.0, 0.0, 0.0), wait_s=float("inf"), which=2), "key tokens per minute", float("inf"), True),
            (reply((0.0, 0.0, 0.0), full=1), "key concurrent requests", 1.0, False),
            (reply((0.0, 60.0, 0.0), wait_s=10.0, which=2, full=1), "key tokens per minute", 10.0, False),
        ):
            steps = self.begin(limits)
            self.answer(value)
            refusal = self.end(steps)
            assert isinstance(refusal, Refusal)
            self.assertEqual(refusal[:1] + refusal[2:4], (name, wait_s, never))
        self.assertEqual(self.line.told, [])

    def test_a_reply_that_is_none_counts_as_none(self) -> None:
        for value in (None, b"", b"x" * 31, b"x" * 33, reply((0, 0, 0))[:-8], 7, [b"x"]):
            self.assertIsNone(told_in(value))
        limits = self.limits()
        steps = self.begin(limits)
        self.answer(b"garbage")
        self.assertIsInstance(self.end(steps), Admission)
        self.assertEqual(limits.decided, {"shared": 0, "local": 1, "closed": 0})

    def test_an_answer_that_comes_too_late_is_given_back_unless_the_request_passed_here(self) -> None:
        limits = self.limits()
        local = self.end(self.begin(limits))  # no answer in time
        self.assertIsInstance(local, Admission)
        self.answer(reply((0.1, 10.0, 7.0)))
        self.assertEqual(self.line.told, [])
        self.local.admit(ALICE, self.clock())  # the second place
        self.assertIsInstance(self.end(self.begin(limits)), Refusal)
        self.answer(reply((0.1, 10.0, 7.0)))
        self.assertEqual(self.line.names(), ["EVALSHA", "ZREM"])

    def test_whose_client_has_left_gives_back_what_was_taken(self) -> None:
        limits = self.limits()
        for early in (True, False):
            steps = self.begin(limits)
            if early:
                self.answer(reply((0.1, 10.0, 7.0)))
            steps.close()
            if not early:
                self.answer(reply((0.1, 10.0, 7.0)))
            self.assertEqual(self.line.names(), ["EVALSHA", "ZREM"])
            self.line.told.clear()

    def test_closed_lets_nothing_pass_that_a_limit_applies_to(self) -> None:
        limits = self.limits("closed")
        self.line.is_open = True
        self.assertEqual(limits.mode, "closed")
        with self.assertRaises(GatewayError) as caught:
            self.at_once(limits)
        self.assertEqual(caught.exception.code, "limits_unavailable")
        self.assertEqual(limits.decided["closed"], 1)

    def passes(self, limits: SharedLimits, subject: Subject, most: int = 1000) -> int:
        count = 0
        while count < most and isinstance(self.at_once(limits, subject), Admission):
            count += 1
        return count

    def test_without_redis_a_gateway_has_its_share_of_every_kind_of_limit(self) -> None:
        limits = self.limits(everybody=RateLimits(1200))
        limits.see_peers(4)
        self.line.is_open = True
        self.assertEqual(limits.mode, "local")
        self.assertEqual(self.passes(limits, Subject("a", KeyLimits(600))), 15)
        self.assertEqual(self.passes(limits, Subject("b", model="m", model_limits=RateLimits(300))), 7)
        self.assertEqual(self.passes(limits, Subject("c", KeyLimits(None, 4000), tokens_estimate=200)), 5)
        self.assertEqual(self.passes(limits, Subject("d", KeyLimits(None, None, 9))), 2)
        self.assertEqual(self.passes(limits, Subject("e", KeyLimits(None, None, 3))), 1)  # at least one
        self.assertEqual(self.passes(limits, Subject("f")), 0)  # 30 of everybody's 120

    def test_more_gateways_are_believed_at_once_and_fewer_after_a_while(self) -> None:
        limits = self.limits()
        for count, after_s, expected in (
            *((3, 0.0, 3), (1, 0.0, 3), (2, 4.9, 3), (1, 0.2, 2), (1, 4.0, 2), (2, 2.0, 2), (1, 0.0, 2), (1, 5.0, 1)),
            *((None, 0.0, 1), (b"7", 0.0, 1), (0, 9.0, 1), (5, 0.0, 5)),
        ):
            self.clock.now_s += after_s
            limits.see_peers(count)
            self.assertEqual(limits.peers, expected, (count, after_s))

    def test_what_was_used_by_all_is_known_when_redis_is_gone(self) -> None:
        limits = self.limits()
        subject = Subject("alice", KeyLimits(600, 6000), tokens_estimate=0)
        steps = self.begin(limits, subject)
        self.answer(reply((6.0, 60.0, 7.0), peers=2))  # nothing is left
        self.end(steps)
        self.line.is_open = True
        self.assertIsInstance(self.at_once(limits, subject), Refusal)
        self.clock.now_s += 1.0
        self.assertEqual(self.passes(limits, subject), 5)

    def test_redis_is_told_what_passed_without_it_when_it_is_back(self) -> None:
        limits = self.limits()
        limits.see_peers(2)
        self.line.is_open = True
        subject = Subject("alice", KeyLimits(600, None, 9))
        self.assertEqual(self.passes(limits, subject, 4), 4)
        self.clock.now_s += 0.2
        jobs = limits.come_back()
        commands = [job.command(False) for job in jobs]
        self.assertEqual(len(commands), 2)  # what has passed, and who holds a place
        packed = commands[0][-1]
        # Four of 300 a minute are 0.8 s, of which 0.2 have passed: 0.6 s here are 0.3 s of 600.
        self.assertEqual([round(n, 6) for n in struct.unpack(">7d", packed)], [-1.0, 0.1, 0.0, 0.3, 0.0, 0.0, 0.0])
        self.assertEqual(len(commands[1]) - 5, 4)
        self.assertEqual(limits.come_back()[:-1], [])  # told once; places are renewed each time

    def test_redis_is_told_what_was_known_of_it_in_case_it_has_forgotten(self) -> None:
        limits = self.limits()
        subject = Subject("alice", KeyLimits(600, 6000), tokens_estimate=10)
        steps = self.begin(limits, subject)
        self.answer(reply((3.0, 20.0, 7.0), peers=2))
        self.end(steps)
        self.line.is_open = True
        self.assertEqual(self.passes(limits, subject, 1), 1)
        self.clock.now_s += 1.0
        [job] = limits.come_back()
        # One of 300 a minute, and 10 of 3 000 tokens, are 0.2 s each; half of that is this gateway's.
        numbers = [round(n, 6) for n in struct.unpack(">7d", job.command(False)[-1])]
        self.assertEqual(numbers, [-1.0, 0.1, 0.01, 0.1, 0.1, 2.0, 19.0])

    def test_a_small_burst_here_takes_nothing_away_of_what_is_left(self) -> None:
        """What may go ahead by the shared burst may by the one here, up to that; what must wait there waits here."""
        local = Limiter(NO_RATE_LIMITS, None, 0.02, 0.02, self.clock)
        limits = SharedLimits(
            cast(Line, self.line), local, Scopes(NO_RATE_LIMITS, None, BURSTS), "local", 0.05, self.clock
        )
        subject = Subject("alice", KeyLimits(6000))
        for ahead_s, passes in ((0.0, 120), (5.0, 100), (4.8, 120), (6.0, 0), (9.0, 0)):
            self.line.is_open = False
            steps = self.begin(limits, subject)
            self.answer(reply((ahead_s, 0.0, 0.0)))
            self.end(steps)
            self.line.is_open = True
            self.assertEqual(self.passes(limits, subject), passes, ahead_s)
        self.clock.now_s += 3.1
        self.assertEqual(self.passes(limits, subject), 10)

    def test_an_answer_forgets_what_was_decided_without(self) -> None:
        limits = self.limits()
        subject = Subject("alice", KeyLimits(600))
        self.end(self.begin(limits, subject))
        self.line.asked.clear()
        steps = self.begin(limits, subject)
        self.answer(reply((0.1, 0.0, 0.0)))
        self.end(steps)
        self.assertEqual(limits.come_back(), [])

    def test_places_are_renewed_while_they_are_held_and_not_after(self) -> None:
        limits = self.limits()
        steps = self.begin(limits)
        self.answer(reply((0.1, 10.0, 7.0)))
        admission = self.end(steps)
        assert isinstance(admission, Admission)
        beats = [len(limits.beat()) for _ in range(int(LEASE_S / BEAT_S))]
        self.assertEqual(sum(beats) - len(beats), 3)
        admission.release_concurrency()
        self.assertEqual({len(limits.beat()) for _ in range(int(LEASE_S / BEAT_S))}, {1})
        self.assertEqual(self.local._keys.get("alice", self.clock()).in_flight, 0)  # type: ignore[union-attr]

    def test_who_decides_alone_is_silent_to_the_others(self) -> None:
        limits = self.limits()
        self.assertEqual(len(limits.beat()), 1)
        self.line.is_open = True
        self.assertEqual(limits.beat(), [])

    def test_only_the_next_one_at_an_address_takes_the_place_of_one(self) -> None:
        places = [_place_of("::", 8080, 0), _place_of("::", 8081, 0), _place_of("::", 8080, 1)]
        self.assertEqual({len(place) for place in places}, {PLACE_BYTES})
        self.assertEqual(len(set(places)), 3)
        self.assertEqual(_place_of("::", 8080, 0), places[0])

    def test_a_gateway_that_leaves_gives_up_its_places(self) -> None:
        limits = self.limits()
        steps = self.begin(limits)
        self.answer(reply((0.1, 10.0, 7.0)))
        self.end(steps)
        self.assertEqual([job.command(False)[0] for job in limits.farewell()], [b"ZREM", b"ZREM"])
        self.assertEqual(limits.farewell()[0].command(False)[1], b"{igw}:peers")

    def test_no_name_shows_a_key_a_model_or_an_address(self) -> None:
        scopes = Scopes(RateLimits(1), 5, BURSTS)
        subject = Subject("alice", KeyLimits(1, 1, 1), "192.0.2.77", "llama", RateLimits(1))
        question = scopes.question(subject, 1.0)
        self.assertEqual([one.name for one in question.counted], ["key", "address", "model", "global"])
        names = [one.key for one in question.counted] + [question.held]
        self.assertEqual(len(set(names)), 5)
        for name in names:
            self.assertTrue(name.startswith(b"{igw}:"))
            for secret in (b"alice", b"192", b"llama"):
                self.assertNotIn(secret, name)

    def test_many_names_and_factors_take_bounded_memory(self) -> None:
        scopes = Scopes(NO_RATE_LIMITS, None, BURSTS)
        for number in range(20_000):
            scopes.question(Subject(f"k{number}", KeyLimits(number + 1)), 1.0)
        self.assertLessEqual(max(len(scopes._names), len(scopes._table)), 8192)


class HandedOn(unittest.TestCase):
    """What a limiter takes over of what is decided elsewhere."""

    def test_reservations_from_before_have_no_refund_and_break_nothing(self) -> None:
        clock = Clock(1_000.0)
        limiter = Limiter(clock=clock)
        subject = Subject("alice", KeyLimits(None, 6000), tokens_estimate=3000)
        before: Any = limiter.admit(subject, clock())
        limiter.learn(subject, clock(), [(0.0, 0.0)], False)
        before.settle(0)
        self.assertIn(("x-ratelimit-remaining-tokens", "0"), limiter.headers(subject, clock()))
        self.assertIsInstance(limiter.admit(subject, clock()), Refusal)
        clock.now_s += 30.0
        after: Any = limiter.admit(subject, clock())
        after.settle(0)
        self.assertIn(("x-ratelimit-remaining-tokens", "3000"), limiter.headers(subject, clock()))


if __name__ == "__main__":
    unittest.main()
