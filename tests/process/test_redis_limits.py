"""Limits that several gateways share in a real Redis: what its script decides, and what happens without it.

Skipped where redis-server or the package redis is missing; with REQUIRE_REDIS=1 that is a failure (test_redis_store).
"""

from __future__ import annotations

import signal
import struct
import threading
import unittest
from random import Random
from typing import Any, Optional, Union, cast
from unittest import mock

from gateway.errors import GatewayError
from gateway.limits.gcra import TokenGcra
from gateway.limits.limiter import NO_RATE_LIMITS, Admission, KeyLimits, Limiter, RateLimits, Refusal, Subject
from gateway.limits.quotas import Bursts
from gateway.shared import limits as shared_limits
from gateway.shared import scripts
from gateway.shared.hints import Hints
from gateway.shared.limits import ASIDE_S, FEWER_S, LEASE_S, NOT_FEWER, PEER_S, SharedLimits
from gateway.shared.line import Job, Line
from gateway.shared.scopes import Scopes
from gateway.shared.scripts import PLACE_BYTES
from gateway.steps import drive
from tests.process.test_redis_store import LONG_S, Server, needs_redis
from tests.support import eventually

BURSTS = Bursts(0.1, 1.0)
Outcome = Union[Admission, Refusal]


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


class One:
    """A gateway's limits, with a line of their own."""

    def __init__(
        self,
        server: Server,
        everybody: RateLimits = NO_RATE_LIMITS,
        address_rpm: Optional[int] = None,
        clock: Optional[Clock] = None,
        bursts: Bursts = BURSTS,
        timeout_s: float = LONG_S,
        fail: str = "local",
        local_bursts: Optional[Bursts] = None,
        user_info: str = "",
        place: bytes = b"",
    ) -> None:
        self.reasons: list[Optional[str]] = []
        self.line = Line(f"redis://{user_info}127.0.0.1:{server.port}/0", timeout_s, self._beat, self._changed)
        times: dict[str, Any] = {} if clock is None else {"clock": clock, "now_s": clock}
        self.local = Limiter(
            everybody, address_rpm, *(local_bursts or bursts), **({} if clock is None else {"clock": clock})
        )
        self.limits = SharedLimits(
            self.line, self.local, Scopes(everybody, address_rpm, bursts), fail, timeout_s, **times, place=place
        )
        self.line.start()

    def _beat(self) -> list[Job]:
        return self.limits.beat()

    def _changed(self, reason: Optional[str]) -> None:
        if reason is None:
            for job in self.limits.come_back():
                self.line.tell(job)
        self.reasons.append(reason)

    def admit(self, subject: Subject) -> Outcome:
        return drive(self.limits.admit(subject))

    def flush(self) -> None:
        """All that has been told has been done."""
        for _ in range(2):  # a script that Redis does not know yet is sent again behind what goes with it
            done = threading.Event()
            self.line.tell(Job(lambda whole: (b"PING",), lambda reply, done=done: done.set()))  # type: ignore[misc]
            if not done.wait(LONG_S):
                raise AssertionError("Redis does not answer")

    def close(self) -> None:
        self.line.close(LONG_S, self.limits.farewell())


class RedisTest(unittest.TestCase):
    def setUp(self) -> None:
        self.server = Server.for_test(self).start()

    def one(self, *arguments: Any, **options: Any) -> One:
        one = One(self.server, *arguments, **options)
        self.addCleanup(one.close)
        return one

    def call(self, *command: Any) -> Any:
        import redis  # type: ignore[import-not-found,unused-ignore]

        with redis.Redis(port=self.server.port) as client:
            return client.execute_command(*command)


@needs_redis
class OracleTest(RedisTest):
    """The script decides what the shipped Limiter does, request by request."""

    def compare(self, seed: int, steps: int = 300) -> tuple[int, int]:
        random = Random(seed)
        clock = Clock()
        everybody = RateLimits(random.choice([None, 600, 3000]), random.choice([None, 60_000]))
        address_rpm = random.choice([None, 120, 600])
        bursts = Bursts(random.choice([0.02, 0.1, 1.0]), random.choice([0.1, 1.0]))
        one = self.one(everybody, address_rpm, clock, bursts)
        oracle = Limiter(everybody, address_rpm, *bursts, clock)
        keys = {
            "alice": KeyLimits(random.choice([None, 30, 300]), random.choice([None, 6000, 60_000]), 3),
            "bob": KeyLimits(60, 30_000),
            "carol": KeyLimits(None, None, 2),
        }
        models = {"m": RateLimits(random.choice([None, 100]), random.choice([None, 20_000])), "n": RateLimits()}
        under_way: list[tuple[Admission, Admission, int]] = []
        passed = refused = 0
        for _ in range(steps):
            clock.now_s += random.choice([0.0, 0.0, 0.0, random.random(), random.random() * 10])
            if under_way and random.random() < 0.45:
                ours, theirs, estimate = under_way.pop(random.randrange(len(under_way)))
                real = random.choice([0, estimate, random.randrange(estimate + 1), estimate + random.randrange(500)])
                for admission in (ours, theirs):
                    admission.release_concurrency()
                    admission.settle(real)
                one.flush()
                continue
            if random.random() < 0.05:
                factors = {"normal": random.choice([1.0, 0.5, 0.25])}
                one.limits.set_factors(factors)
                oracle.set_factors(factors)
            name, model = random.choice(list(keys)), random.choice(list(models))
            tokens = random.choice([0, 100, 1000, 5000, 70_000])
            subject = Subject(name, keys[name], f"10.0.0.{random.randrange(3)}", model, models[model], tokens)
            ours_outcome, theirs_outcome = one.admit(subject), oracle.admit(subject, clock())
            self.assert_same(ours_outcome, theirs_outcome, seed)
            if isinstance(ours_outcome, Admission) and isinstance(theirs_outcome, Admission):
                passed += 1
                if theirs_outcome.holds:
                    under_way.append((ours_outcome, theirs_outcome, tokens))
            else:
                refused += 1
        self.assertEqual(one.limits.decided["local"], 0)
        one.close()
        self.call("FLUSHALL")
        return passed, refused

    def assert_same(self, ours: Outcome, theirs: Outcome, seed: int) -> None:
        self.assertEqual(isinstance(ours, Refusal), isinstance(theirs, Refusal), f"seed {seed}: {ours} {theirs}")
        if isinstance(ours, Refusal) and isinstance(theirs, Refusal):
            self.assertAlmostEqual(ours.retry_after_s, theirs.retry_after_s, 4, f"seed {seed}: {ours} {theirs}")
            self.assertEqual(ours[:2] + ours[3:4], theirs[:2] + theirs[3:4])
        for mine, other in zip(ours.quotas, theirs.quotas):
            self.assertEqual(mine is None, other is None)
            if mine is not None and other is not None:
                self.assertEqual(mine[:2], other[:2], f"seed {seed}")
                self.assertAlmostEqual(mine[2], other[2], 4)

    def test_it_decides_what_the_shipped_limiter_does(self) -> None:
        passed = refused = 0
        with mock.patch.object(shared_limits, "LEASE_S", 1e7), mock.patch.object(shared_limits, "PEER_S", 1e7):
            for seed in range(12):
                more = self.compare(seed)
                passed, refused = passed + more[0], refused + more[1]
        self.assertGreater(min(passed, refused), 300)

    def test_with_few_marks_it_never_lets_more_pass(self) -> None:
        """Beyond MARKS_MAX a refund gives back less, never more, than the shipped class."""
        few = scripts.CLOCK + scripts._LIMITS.replace("3 * 64", "3 * 2")
        self.assertNotEqual(few, scripts.CLOCK + scripts._LIMITS)
        admit, settle = scripts.Script(few + scripts._ADMIT), scripts.Script(few + scripts._SETTLE)
        refused = 0
        with mock.patch("gateway.shared.scopes.ADMIT", admit), mock.patch("gateway.shared.scopes.SETTLE", settle):
            for seed in range(12):
                refused += self.compare_marks(seed)
        self.assertGreater(refused, 100)

    def compare_marks(self, seed: int) -> int:
        random, clock = Random(seed), Clock()
        one = self.one(clock=clock)
        oracle = TokenGcra(6000, 6000)
        under_way: list[tuple[Admission, int, int]] = []
        subject = Subject("alice", KeyLimits(None, 6000))
        refused = 0
        for _ in range(300):
            clock.now_s += random.random() * 3
            if under_way and random.random() < 0.4:
                admission, number, estimate = under_way.pop(random.randrange(len(under_way)))
                real = random.randrange(estimate + 1)
                admission.settle(real)
                one.flush()  # a script that Redis does not know yet is done behind what comes with it
                oracle.settle(number, estimate, real, clock.now_s)
                continue
            tokens = random.randrange(1, 1500)
            outcome = one.admit(subject._replace(tokens_estimate=tokens))
            if isinstance(outcome, Refusal):
                refused += oracle.wait_s(tokens, clock.now_s) == 0.0
                continue
            self.assertEqual(oracle.wait_s(tokens, clock.now_s), 0.0, f"seed {seed}")
            under_way.append((outcome, oracle.reserve(tokens, clock.now_s), tokens))
        one.close()
        self.call("FLUSHALL")
        return refused

    def test_many_marks_stay_bounded_and_are_forgotten_when_they_are_paid_off(self) -> None:
        clock = Clock()
        one = self.one(clock=clock)
        subject = Subject("alice", KeyLimits(None, 60_000), tokens_estimate=50)
        for _ in range(500):
            clock.now_s += 0.01
            one.admit(subject)
        [name] = self.call("KEYS", "{igw}:l:*")
        self.assertLess(self.call("STRLEN", name), 64 * 30 + 100)
        self.assertLess(self.call("PTTL", name), 62_000)

    def test_a_clock_that_goes_back_locks_nobody_out_and_hands_nothing_out_twice(self) -> None:
        clock = Clock()
        one = self.one(clock=clock)
        subject = Subject("alice", KeyLimits(60, 6000), tokens_estimate=1000)
        self.assertEqual(sum(isinstance(one.admit(subject), Admission) for _ in range(9)), 6)
        clock.now_s -= 900.0
        refusal = one.admit(subject)
        assert isinstance(refusal, Refusal)
        self.assertAlmostEqual(refusal.retry_after_s, 10.0, 3)  # tokens: 1 000 of 6 000 a minute
        clock.now_s += refusal.retry_after_s
        self.assertIsInstance(one.admit(subject), Admission)

    def test_garbage_under_its_names_counts_as_nothing(self) -> None:
        one = self.one()
        subject = Subject("alice", KeyLimits(600))
        one.admit(subject)
        [name] = self.call("KEYS", "{igw}:l:*")
        infinite, no_number = (b"\x97" + 7 * (b"\xcb" + struct.pack(">d", float(one))) for one in ("inf", "nan"))
        for value in (
            infinite,
            no_number,
            b"",
            b"x",
            b"\xc1",
            b"\x97\x01\x02\x03\x04\x05\x06\xa1x",
            b"\x80",
            b"\xdc\x00\x08" + 8 * b"\x00",
        ):
            self.call("SET", name, value)
            outcome = one.admit(subject)
            self.assertEqual((one.limits.decided["local"], isinstance(outcome, Admission)), (0, True), value)

    def test_a_hint_that_is_none_of_ours_is_passed_over_and_those_behind_it_are_heard(self) -> None:
        hints = Hints(cast(Line, None), b"me")
        self.call("XADD", "{igw}:hints", "*", "odd", "1")
        for digest in ("one", "two", "three"):
            self.call("XADD", "{igw}:hints", "*", "o", "them", "e", digest, "l", "60000")
        with mock.patch.object(hints, "_apply") as apply:
            for _ in range(2):  # what it has read it does not read again
                [job] = hints.beat()
                assert job.heard is not None
                job.heard(self.call(*job.command(True)))
        self.assertEqual([call.args[0] for call in apply.call_args_list], [b"one", b"two", b"three"])


@needs_redis
class SeveralTest(RedisTest):
    """Several gateways that share a Redis."""

    def test_together_they_let_pass_what_one_would(self) -> None:
        clock = Clock()
        ones = [self.one(clock=clock) for _ in range(3)]
        passed: list[Admission] = []
        subject = Subject("alice", KeyLimits(3000, None, None))

        def hammer(one: One) -> None:
            for _ in range(100):
                outcome = one.admit(subject)
                if isinstance(outcome, Admission):
                    passed.append(outcome)

        threads = [threading.Thread(target=hammer, args=(one,)) for one in ones for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_S)
        self.assertEqual(len(passed), 300)  # the burst, a tenth of a minute's
        clock.now_s += 1.0
        self.assertEqual(sum(isinstance(ones[0].admit(subject), Admission) for _ in range(100)), 50)

    def test_tokens_and_places_count_wherever_they_are_taken_and_given_back(self) -> None:
        clock = Clock()
        first, second = self.one(clock=clock), self.one(clock=clock)
        subject = Subject("alice", KeyLimits(None, 6000, 2), tokens_estimate=3000)
        one, two = first.admit(subject), second.admit(subject)
        assert isinstance(one, Admission) and isinstance(two, Admission)
        refusal = second.admit(subject._replace(tokens_estimate=0))
        assert isinstance(refusal, Refusal)
        self.assertEqual(refusal.limit_name, "key concurrent requests")
        one.release_concurrency()
        one.release_concurrency()
        one.settle(0)
        one.settle(0)
        first.flush()
        third = second.admit(subject)
        self.assertIsInstance(third, Admission)
        refusal = first.admit(subject)
        assert isinstance(refusal, Refusal)
        self.assertEqual(refusal.limit_name, "key tokens per minute")

    def test_the_places_of_a_gateway_that_is_gone_come_free_and_no_others(self) -> None:
        clock = Clock()
        dead, alive = self.one(clock=clock), self.one(clock=clock)
        subject = Subject("alice", KeyLimits(None, None, 2))
        self.assertIsInstance(dead.admit(subject), Admission)
        held = alive.admit(subject)
        eventually(lambda: alive.limits.peers == 2)
        dead.line.close(LONG_S)  # without a word
        clock.now_s += LEASE_S - 1.0
        alive.limits._renew_at_s = 0.0
        eventually(lambda: alive.limits._renew_at_s > 0.0)
        alive.flush()
        self.assertIsInstance(alive.admit(subject), Refusal)
        clock.now_s += 2.0
        self.assertIsInstance(alive.admit(subject), Admission)
        self.assertIsInstance(alive.admit(subject), Refusal)
        assert isinstance(held, Admission)
        held.release_concurrency()
        self.assertIsInstance(alive.admit(subject), Admission)
        self.assertEqual(alive.limits.peers, 2)  # it may come back
        clock.now_s += ASIDE_S
        eventually(lambda: self.call("ZCARD", "{igw}:peers") == 1)
        eventually(lambda: alive.limits._fewer != NOT_FEWER)  # it has heard of that
        self.assertEqual(alive.limits.peers, 2)
        clock.now_s += FEWER_S
        eventually(lambda: alive.limits.peers == 1)

    def test_a_gateway_that_leaves_holds_nothing_and_is_none_of_them(self) -> None:
        patched = mock.patch.object(shared_limits, "FEWER_S", 1.0)
        patched.start()
        self.addCleanup(patched.stop)
        leaving, staying = self.one(), self.one()
        subject = Subject("alice", KeyLimits(None, None, 1))
        self.assertIsInstance(leaving.admit(subject), Admission)
        eventually(lambda: staying.limits.peers == 2)
        leaving.close()
        self.assertIsInstance(staying.admit(subject), Admission)
        eventually(lambda: staying.limits.peers == 1)

    def test_redis_emptied_forgets_and_hands_out_nothing_for_what_was_before(self) -> None:
        clock = Clock()
        one = self.one(clock=clock)
        subject = Subject("alice", KeyLimits(None, 6000, 1), tokens_estimate=6000)
        before = one.admit(subject)
        assert isinstance(before, Admission)
        self.assertIsInstance(one.admit(subject), Refusal)
        self.call("FLUSHALL")
        self.call("SCRIPT", "FLUSH")
        clock.now_s += 0.001
        self.assertIsInstance(one.admit(subject), Admission)
        before.settle(0)
        one.flush()
        refusal = one.admit(subject._replace(key_limits=KeyLimits(None, 6000)))
        self.assertIsInstance(refusal, Refusal)
        self.assertEqual(one.limits.decided["local"], 0)
        one.limits._renew_at_s = 0.0
        [key] = eventually(lambda: list(self.call("KEYS", "{igw}:p:*")))
        eventually(lambda: self.call("ZCARD", key) == 2)  # what was held before is held again


@needs_redis
class WithoutRedisTest(RedisTest):
    """Redis is stopped, killed, full, read-only, locked: each gateway decides alone, or nothing passes."""

    SUBJECT = Subject("alice", KeyLimits(600))  # 60 at once

    def two(self, **options: Any) -> tuple[One, One, Clock]:
        clock = Clock()
        first, second = (self.one(clock=clock, timeout_s=0.3, **options) for _ in range(2))
        for one in (first, second):
            eventually(lambda one=one: one.limits.peers == 2)
        return first, second, clock

    def used(self, one: One, clock: Clock, seconds: float, here: int = 1) -> int:
        """How much passes in so many seconds, of what has been used up before, with so many gateways here."""
        self.passes(one)
        clock.now_s += seconds
        eventually(lambda: self.call("ZCOUNT", "{igw}:peers", clock.now_s, "+inf") == here)
        return self.passes(one)

    def test_the_share_of_a_gateway_that_is_silent_is_left_to_it(self) -> None:
        silent, one, clock = self.two()
        self.assertEqual(self.used(one, clock, 4.0, 2), 40)
        silent.line.close(LONG_S)  # without a word
        clock.now_s += PEER_S + 1.0
        self.assertEqual(self.used(one, clock, 4.0), 20)
        refusal = one.admit(self.SUBJECT)
        assert isinstance(refusal, Refusal) and refusal.quotas[0] is not None
        self.assertAlmostEqual(refusal.retry_after_s, 0.2, 3)
        self.assertEqual(refusal.quotas[0][:2], (600, 0))
        clock.now_s += ASIDE_S
        eventually(lambda: self.call("ZCARD", "{igw}:peers") == 1)
        self.assertEqual(self.used(one, clock, 4.0), 40)

    def test_one_that_is_started_again_takes_the_place_of_the_one_before(self) -> None:
        clock, place = Clock(), b"a" * PLACE_BYTES
        other, killed = self.one(clock=clock), self.one(clock=clock, place=place)
        eventually(lambda: other.limits.peers == 2)
        killed.line.close(LONG_S)
        clock.now_s += PEER_S + 1.0
        self.assertEqual(self.used(other, clock, 4.0), 20)
        self.one(clock=clock, place=place)
        self.used(other, clock, 0.0, 2)
        self.assertEqual(self.used(other, clock, 4.0, 2), 40)
        self.assertEqual(self.call("ZCARD", "{igw}:peers"), 2)

    def test_a_gateway_that_is_there_again_has_its_share_with_the_others(self) -> None:
        _, one, clock = self.two()
        self.call("ZADD", "{igw}:peers", clock.now_s - 1.0, "silent")
        self.assertEqual(self.used(one, clock, 3.0, 2), 20)
        self.call("ZADD", "{igw}:peers", clock.now_s + 3.5, "silent")
        self.assertEqual(self.used(one, clock, 3.0, 3), 30)

    def test_however_many_are_silent_nearly_half_of_a_limit_is_left(self) -> None:
        _, one, clock = self.two()
        for number in range(50):
            self.call("ZADD", "{igw}:peers", clock.now_s - 1.0, f"silent{number}")
        self.assertEqual(self.used(one, clock, 5.0, 2), 20)

    def test_nothing_is_left_to_who_lets_nothing_pass(self) -> None:
        silent, one, clock = self.two(fail="closed")
        silent.line.close(LONG_S)
        clock.now_s += PEER_S + 1.0
        eventually(lambda: self.call("ZCARD", "{igw}:peers") == 1)
        self.assertEqual(self.used(one, clock, 4.0), 40)

    def passes(self, one: One, subject: Optional[Subject] = None, most: int = 200) -> int:
        count = 0
        while isinstance(one.admit(subject or self.SUBJECT), Admission) and count < most:
            count += 1
        return count

    def test_each_takes_its_share_of_what_is_left_and_redis_hears_of_it(self) -> None:
        first, second, clock = self.two()
        self.assertEqual(self.passes(first, Subject("bob", KeyLimits(600))), 60)
        self.server.signal(signal.SIGSTOP)
        self.addCleanup(self.server.signal, signal.SIGCONT)
        self.assertEqual((self.passes(first), self.passes(second)), (30, 30))
        bob = Subject("bob", KeyLimits(600))
        self.assertEqual(self.passes(first, bob), 0)  # it knows what was used before
        clock.now_s += 1.0
        self.assertEqual((self.passes(first), self.passes(second), self.passes(first, bob)), (5, 5, 5))
        self.assertEqual((first.limits.mode, second.limits.mode), ("local", "local"))
        self.assertEqual(first.limits.decided["local"], 30 + 1 + 1 + 5 + 1 + 5 + 1)
        self.server.signal(signal.SIGCONT)
        eventually(lambda: first.limits.mode == second.limits.mode == "shared")
        for one in (first, second):
            one.flush()
        before = first.limits.decided["shared"]
        self.assertEqual((self.passes(first), self.passes(first, bob)), (0, 5))
        self.assertEqual(first.limits.decided["shared"], before + 7)
        clock.now_s += 1.0
        self.assertEqual(self.passes(second), 10)

    def test_places_are_shared_out_too_and_counted_when_it_is_back(self) -> None:
        first, second, _ = self.two()
        subject = Subject("alice", KeyLimits(None, None, 4))
        held = [first.admit(subject), second.admit(subject)]
        self.server.kill()
        more = [first.admit(subject), first.admit(subject), second.admit(subject)]
        self.assertEqual([isinstance(one, Admission) for one in more], [True, False, True])
        self.server.start()
        eventually(lambda: first.limits.mode == second.limits.mode == "shared")
        for one in (first, second):
            one.flush()
        self.assertIsInstance(first.admit(subject), Refusal)
        assert isinstance(held[0], Admission) and isinstance(more[0], Admission)
        held[0].release_concurrency()
        more[0].release_concurrency()
        first.flush()
        self.assertEqual([isinstance(second.admit(subject), Admission) for _ in range(3)], [True, True, False])

    def test_closed_refuses_what_a_limit_applies_to_and_nothing_else(self) -> None:
        first, _, _ = self.two(fail="closed")
        self.server.kill()
        for _ in range(3):
            with self.assertRaises(GatewayError) as caught:
                first.admit(self.SUBJECT)
            self.assertEqual((caught.exception.code, caught.exception.retry_after_s), ("limits_unavailable", 1.0))
        self.assertIsInstance(first.admit(Subject("bob")), Admission)
        self.assertEqual(first.limits.mode, "closed")
        self.server.start()
        eventually(lambda: first.limits.mode == "shared")
        self.assertIsInstance(first.admit(self.SUBJECT), Admission)

    def test_what_keeps_redis_from_counting_is_a_failure_told_once_without_secrets(self) -> None:
        for cause, cure in (
            (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
            (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
            (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
        ):
            with self.subTest(cause):
                one = self.one(timeout_s=LONG_S)
                self.assertIsInstance(one.admit(self.SUBJECT), Admission)
                self.call(*cause)
                for _ in range(5):
                    self.assertIsInstance(one.admit(self.SUBJECT), Admission)
                self.assertEqual(one.limits.mode, "local")
                self.assertEqual(len(one.reasons), 1, one.reasons)
                self.call(*cure)
                eventually(lambda one=one: one.limits.mode == "shared")
                self.assertIsInstance(one.admit(self.SUBJECT), Admission)
                self.assertEqual(len(one.reasons), 2)

    def test_a_password_that_is_wrong_is_told_without_it(self) -> None:
        self.call("CONFIG", "SET", "requirepass", "the-right-one")
        for user_info in ("", ":hush-hush@", "somebody:hush-hush@"):
            one = One(self.server, user_info=user_info)
            self.addCleanup(one.close)
            self.assertIsInstance(one.admit(self.SUBJECT), Admission)
            eventually(lambda one=one: one.reasons)
            self.assertEqual((len(one.reasons), one.limits.mode), (1, "local"))
            self.assertIsNotNone(one.reasons[0])
            for secret in ("hush", "somebody", "right"):
                self.assertNotIn(secret, str(one.reasons[0]))

    def test_a_gateway_that_begins_without_redis_decides_alone_until_it_is_there(self) -> None:
        self.server.kill()
        one = self.one(timeout_s=0.3)
        self.assertEqual(self.passes(one, most=10), 10)
        self.assertEqual(one.limits.mode, "local")
        self.server.start()
        eventually(lambda: one.limits.mode == "shared")

    def test_evicted_limits_are_forgotten_and_nobody_is_locked_out(self) -> None:
        one = self.one()
        for number in range(50):
            self.assertIsInstance(one.admit(Subject(f"key-{number}", KeyLimits(60))), Admission)
        for name in self.call("KEYS", "{igw}:*"):
            self.call("DEL", name)
        for number in range(50):
            self.assertIsInstance(one.admit(Subject(f"key-{number}", KeyLimits(60))), Admission)
        self.assertEqual(one.limits.mode, "shared")
