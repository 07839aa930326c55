"""Limits that processes share: as one limiter would decide, whoever dies, stands still, or finds no room."""

from __future__ import annotations

import os
import struct
import unittest
from random import Random
from typing import Any, Callable, Union
from unittest import mock

from gateway.limits import sharedtable
from gateway.limits.gcra import TokenGcra
from gateway.limits.limiter import Admission, KeyLimits, Limiter, RateLimits, Refusal, Subject
from gateway.limits.records import PROBES, Section
from gateway.limits.scoperecords import Passed, ScopeRecords
from gateway.limits.sharedtable import BODY_BYTES, ENVIRONMENT, MARKS_MAX, SharedTable, SharedTableError
from gateway.limits.tablelimiter import TableLimiter
from tests.sharedtables import Locks, MachineTest
from tests.unit import test_limits

ALICE = Subject("alice", KeyLimits(rpm=60))  # a burst of 6
SEEDS = 200


class SharedTest(MachineTest):
    def setUp(self) -> None:
        super().setUp()
        self.lines: list[dict[str, Any]] = []

    def log(self, level: str, event: str, **fields: Any) -> None:
        self.lines.append(fields)

    def limiter(self, table: Any = None, **options: Any) -> TableLimiter:
        """One of another process, if none is given."""
        return TableLimiter(table or self.process(), clock=lambda: self.now_s, **options)

    def admitted(self, limiter: Limiter, subject: Subject = ALICE) -> Admission:
        found = limiter.admit(subject, self.now_s)
        assert isinstance(found, Admission), found
        return found

    def passes(self, limiter: Limiter, subject: Subject = ALICE, times: int = 20) -> int:
        """How many of that many requests pass now."""
        return sum(isinstance(limiter.admit(subject, self.now_s), Admission) for _ in range(times))


def seen(found: Union[Admission, Refusal]) -> tuple[Any, ...]:
    """What a client sees of it."""
    if isinstance(found, Admission):
        return (True, found.headers())
    return (False, found.limit_name, found.limit, round(found.retry_after_s, 6), found.never, found.headers())


class OverTable(MachineTest):
    """What an ordinary limiter does a lone process with a table does, too."""

    def limiter(self, *arguments: Any, **options: Any) -> Limiter:
        self.fd, self.holders = self.new_table(), {}
        return TableLimiter(self.process(), *arguments, clock=lambda: self.now_s, **options)


class RequestLimitTest(OverTable, test_limits.RequestLimitTest):
    pass


class TokenLimitTest(OverTable, test_limits.TokenLimitTest):
    pass


class ConcurrencyTest(OverTable, test_limits.ConcurrencyTest):
    pass


class DynamicLimitTest(OverTable, test_limits.DynamicLimitTest):
    pass


class QuotaTest(OverTable, test_limits.QuotaTest):
    pass


class LedgerTest(OverTable, test_limits.LedgerTest):
    seeds = 200  # the ordinary limiter, which OracleTest compares with, passes all of them


class RetryAfterTest(OverTable, test_limits.RetryAfterTest):
    seeds = 200


class ThreadsTest(OverTable, test_limits.ThreadsTest):
    pass


class OracleTest(SharedTest):
    """Any requests, at any of three processes, against one ordinary limiter that sees all of them."""

    def subjects(self, random: Random, most: int) -> list[Subject]:
        """Some limits of a key are not the same for all its requests, as when they are being changed; but there always
        is one, or none: an ordinary limiter forgets what has passed when there is none."""
        subjects = []
        has = {name: [random.random() < 0.6 for _ in range(4)] for name in ("alice", "bob", None, "m", "n")}
        for name in ("alice", "bob", None):
            for model in ("m", "n"):
                rpm, tpm, concurrency, _ = has[name]
                limits = KeyLimits(
                    random.choice((30, 120)) if rpm else None,
                    random.choice((600, 900)) if tpm else None,
                    random.choice((2, 5)) if concurrency else None,
                )
                rpm, tpm, _, _ = has[model]
                model_limits = RateLimits(90 if rpm else None, random.choice((1500, 2000)) if tpm else None)
                priority = "low" if name == "bob" else "normal"
                address = f"10.0.0.{len(subjects) % 4}"
                estimate = random.randrange(1, most)
                subjects.append(Subject(name, limits, address, model, model_limits, estimate, priority))
        return subjects

    def compare(self, seed: int, steps: int, settled: float, most: int) -> int:
        """How many passed. What the shared limiters let pass the ordinary one must, too; as long as no more marks are
        needed than a record has, also the other way round, and with the same headers."""
        random = Random(seed)
        self.now_s = float(random.randrange(1, 10**6))
        options: dict[str, Any] = {
            "everybody": RateLimits(random.choice((None, 200)), random.choice((None, 4000))),
            "address_rpm": random.choice((None, 100)),
            "burst_share": random.choice((0.1, 0.5)),
            "token_burst_share": random.choice((0.1, 1.0)),
        }
        self.fd, self.holders = self.new_table(), {}
        oracle = Limiter(clock=lambda: self.now_s, **options)
        limiters = [self.limiter(**options) for _ in range(3)]
        subjects = self.subjects(random, most)
        open_now: list[tuple[Admission, Admission, int]] = []
        passed = 0
        for step in range(steps):
            self.now_s += random.choice((0.0, 0.0, 1 / 64, 0.25, 1.0, 3.0))
            where = f"seed {seed}, step {step}"
            chance = random.random()
            if open_now and chance < settled:
                ours, theirs, estimate = open_now.pop(random.randrange(len(open_now)))
                real = random.randrange(estimate + 2) if random.random() < 0.8 else 2 * estimate
                for admission in (ours, theirs):
                    admission.settle(real)
                    admission.release_concurrency()
            elif chance > 0.98:
                factors = {"low": random.choice((0.5, 1.0))}
                for limiter in (oracle, *limiters, *limiters):  # twice, so that all have heard of the last one's
                    limiter.set_factors(factors)
            else:
                subject = random.choice(subjects)
                found = random.choice(limiters).admit(subject, self.now_s)
                if settled < 0.4 and isinstance(found, Refusal):
                    oracle.headers(subject, self.now_s)  # these are its limits now
                    continue
                expected = oracle.admit(subject, self.now_s)
                if settled < 0.4:
                    self.assertIsInstance(expected, Admission, where)
                else:
                    self.assertEqual(seen(found), seen(expected), where)
                if isinstance(found, Admission) and isinstance(expected, Admission):
                    passed += 1
                    open_now.append((found, expected, subject.tokens_estimate))
        self.assertEqual(set(limiters[0]._table.counts().values()), {0})
        return passed

    def test_as_many_pass_as_one_limiter_lets_and_all_are_told_the_same(self) -> None:
        passed = sum(self.compare(seed, 120, settled=0.5, most=300) for seed in range(SEEDS))
        self.assertGreater(passed, 20 * SEEDS)

    def test_with_more_in_flight_than_a_record_has_marks_for_never_more_pass(self) -> None:
        with mock.patch("gateway.limits.tablelimiter.MARKS_MAX", 3):
            passed = sum(self.compare(seed, 120, settled=0.2, most=40) for seed in range(SEEDS))
        self.assertGreater(passed, 20 * SEEDS)


class SqueezeTest(unittest.TestCase):
    def test_a_limit_with_few_marks_waits_at_least_as_long_as_one_with_all(self) -> None:
        later = 0
        for seed in range(2000):
            random = Random(seed)
            exact, squeezed = TokenGcra(60, 30), TokenGcra(60, 30)
            count = random.randrange(1, 5)
            now_s, open_now = 0.0, []
            for _ in range(80):
                now_s += random.choice((0.0, 0.5, 3.0))
                if open_now and random.random() < 0.45:
                    numbers, amount = open_now.pop(random.randrange(len(open_now)))
                    real = random.randrange(amount + 2)
                    for limit, number in zip((exact, squeezed), numbers):
                        limit.settle(number, amount, real, now_s)
                else:
                    amount = random.randrange(1, 12)
                    open_now.append(([limit.reserve(amount, now_s) for limit in (exact, squeezed)], amount))
                squeezed.squeeze(count)
                self.assertLessEqual(len(squeezed._marks), count)
                if squeezed.tat_s > now_s:
                    gaps_s = sum(mark.gap_s for mark in squeezed._marks[:-1])
                    self.assertAlmostEqual(squeezed.tat_s, squeezed._last_s + gaps_s, msg=f"seed {seed}")
                behind_s = max(squeezed.tat_s, now_s) - max(exact.tat_s, now_s)
                self.assertGreaterEqual(behind_s, -1e-9, f"seed {seed}")
                later += behind_s > 1e-9
        self.assertGreater(later, 100)

    def test_what_fits_stays_exact(self) -> None:
        limit = TokenGcra(60, 30)
        for _ in range(5):
            limit.reserve(2, 0.0)
        before = limit.state()
        limit.squeeze(5)
        self.assertEqual(limit.state(), before)


class PlacesTest(SharedTest):
    subject = Subject("alice", KeyLimits(concurrency=3))

    def test_places_are_those_of_all_processes(self) -> None:
        first, second = self.limiter(), self.limiter()
        one = self.admitted(first, self.subject)
        self.assertEqual(self.passes(second, self.subject), 2)
        self.assertEqual(self.passes(first, self.subject), 0)
        one.release_concurrency()
        self.assertEqual(self.passes(second, self.subject), 1)

    def test_who_waits_is_told_what_is_left_of_the_oldest_holding_anywhere(self) -> None:
        first, second = self.limiter(), self.limiter()
        started_s = self.now_s
        holding = self.admitted(first, self.subject)
        self.now_s += 20.0
        holding.release_concurrency()  # 20 s is what is usual, for the key's other process, too
        self.now_s = started_s + 100.0
        self.admitted(first, self.subject)
        self.now_s += 5.0
        self.assertEqual(self.passes(second, self.subject), 2)
        refusal = second.admit(self.subject, self.now_s)
        assert isinstance(refusal, Refusal)
        self.assertEqual(refusal.retry_after_s, 15.0)

    def test_what_a_dead_process_held_comes_back_and_its_column_is_anothers_afterwards(self) -> None:
        first, second = self.process(), self.process()
        self.assertEqual(self.passes(self.limiter(first), self.subject), 3)
        left = self.limiter(second)
        left.look_after(self.log)
        self.assertEqual(self.passes(left, self.subject), 0)
        self.kill(first)
        self.assertEqual(self.passes(left, self.subject), 0)  # nobody has noticed
        left.look_after(self.log)
        self.assertEqual(self.passes(left, self.subject, times=1), 1)
        third = self.process()
        self.assertEqual(third.column, first.column)
        self.assertEqual(self.passes(self.limiter(third), self.subject), 2)

    def test_a_process_in_a_dead_ones_column_does_not_inherit_its_places(self) -> None:
        first = self.process()
        self.assertEqual(self.passes(self.limiter(first), self.subject), 3)
        self.kill(first)
        second = self.process()
        self.assertEqual(second.column, first.column)
        self.assertEqual(self.passes(self.limiter(), self.subject, times=1), 1)
        self.assertEqual(self.passes(self.limiter(second), self.subject), 2)

    def test_a_scope_with_places_held_is_remembered_by_its_process_and_only_by_it(self) -> None:
        first, second = self.limiter(), self.limiter()
        holding = self.admitted(first, self.subject)
        self.admitted(second, self.subject)
        scopes = [limiter._keys.get("alice", self.now_s) for limiter in (first, second)]
        self.now_s += 3600.0
        self.assertEqual([scope is not None and scope.is_active(self.now_s) for scope in scopes], [True, True])
        holding.release_concurrency()
        self.assertEqual([scope is not None and scope.is_active(self.now_s) for scope in scopes], [False, True])


class DeathTest(SharedTest):
    """A process that dies in the middle of saying something has not said it."""

    def setUp(self) -> None:
        super().setUp()
        self.table = self.process()
        self.records = ScopeRecords(self.table)
        digest = self.table.digest_of("key", b"alice")
        self.at = self.records.claim(digest, self.now_s)
        self.offset = self.table.scopes.offset(self.at)
        self.end = self.offset + self.records._bodies_at + 2 * BODY_BYTES

    def passed(self, tat_s: float, marks: int) -> Passed:
        gaps = [value for number in range(marks) for value in (number, 0.5 * number, 1)]
        return (tat_s, 1.0, tat_s + 1, 2.0, tat_s + 2, 7, *gaps)

    def image(self) -> bytes:
        return self.table.memory[self.offset : self.end]

    def test_at_every_byte_of_a_store(self) -> None:
        before, after = self.passed(10.0, 3), self.passed(20.0, MARKS_MAX)
        self.records.write(self.at, self.passed(5.0, 1))
        self.records.write(self.at, before)
        old = self.image()
        self.records.write(self.at, after)
        new = self.image()
        self.assertEqual(self.records.read(self.at), after)
        body = [at for at in range(8, len(new)) if new[at] != old[at]]
        self.assertGreater(len(body), 50)
        for last in body:
            self.table.memory[self.offset : self.end] = old[:8] + new[8 : last + 1] + old[last + 1 :]
            self.assertEqual(self.records.read(self.at), before)
        self.table.memory[self.offset : self.end] = new  # the word was the last
        self.assertEqual(self.records.read(self.at), after)

    def test_what_two_have_written_at_once_is_found_out(self) -> None:
        before, after = self.passed(10.0, 2), self.passed(20.0, 2)
        self.records.write(self.at, before)
        self.records.write(self.at, after)
        which = self.table.words[self.offset // 8] & 1
        bodies_at = self.offset + self.records._bodies_at
        struct.pack_into("=Q", self.table.memory, bodies_at + which * BODY_BYTES, 5)
        self.assertEqual(self.records.read(self.at), before)
        struct.pack_into("=Q", self.table.memory, bodies_at + (1 - which) * BODY_BYTES, 5)
        self.assertIsNone(self.records.read(self.at))

    def test_a_record_that_nobody_can_read_lets_nothing_more_pass_at_once(self) -> None:
        limiter = self.limiter(self.table)
        self.passes(limiter, times=1)
        self.table.memory[self.offset + self.records._bodies_at : self.end] = bytes(2 * BODY_BYTES)
        self.assertEqual(self.passes(limiter), 0)
        self.assertEqual(self.table.counts()["torn"], 1)
        self.now_s += 1.0
        self.assertEqual(self.passes(limiter), 1)
        self.now_s += 60.0
        self.assertEqual(self.passes(limiter), 6)

    def test_with_the_lock_the_others_go_on_at_once(self) -> None:
        first, second = self.process(), self.process()
        first.__enter__()
        self.kill(first)
        self.assertEqual(self.passes(self.limiter(second)), 6)
        self.assertEqual(second.counts()["moved"], 0)


class StandingStillTest(SharedTest):
    """A process that is stopped while it has the lock keeps it; the others agree on another one."""

    def test_the_others_go_on_and_stay_exact(self) -> None:
        stopped, others = self.process(), [self.limiter() for _ in range(2)]
        stopped.__enter__()
        self.assertEqual(self.passes(others[0], times=2), 2)
        self.assertEqual(self.passes(others[1]), 4)
        self.assertEqual(stopped.counts()["moved"], 1)
        self.assertTrue(stopped.overtaken())
        stopped.__exit__()
        self.assertEqual(self.passes(self.limiter(stopped)), 0)
        self.assertEqual(stopped.counts()["moved"], 1)

    def standing_still(self, limiter: TableLimiter, meanwhile: Callable[[], None]) -> Any:
        """That process stands still, once, between what it has decided and saying so."""
        write, still_to_come = limiter._records.write, [meanwhile]

        def stand_still(*arguments: Any) -> None:
            while still_to_come:
                still_to_come.pop()()
            write(*arguments)

        return mock.patch.object(limiter._records, "write", stand_still)

    def test_what_it_overwrites_when_it_goes_on_is_not_passed_again(self) -> None:
        stopped, other = self.limiter(), self.limiter()
        with self.standing_still(stopped, lambda: self.assertEqual(self.passes(other), 6)):
            self.assertEqual(self.passes(stopped, times=1), 1)
        self.assertEqual((self.passes(other), self.passes(stopped)), (0, 0))

    def test_a_settlement_that_stood_still_gives_nothing_back_that_others_have_taken(self) -> None:
        stopped, other = self.limiter(), self.limiter()
        subject = Subject("alice", KeyLimits(tpm=60), tokens_estimate=20)
        admission = self.admitted(stopped, subject)
        with self.standing_still(stopped, lambda: self.assertEqual(self.passes(other, subject), 2)):
            admission.settle(0)
        self.assertEqual((self.passes(other, subject), self.passes(stopped, subject)), (0, 0))

    def test_when_too_many_stand_still_a_process_goes_on_without_a_lock(self) -> None:
        table = self.process()
        limiter = self.limiter(table)
        for number in range(sharedtable._LOCK, sharedtable._LOCK + 10):
            self.holders[number] = object()
        self.assertEqual(self.passes(limiter), 6)
        self.assertGreater(table.counts()["alone"], 0)

    def test_no_wait_is_long(self) -> None:
        self.assertLessEqual(sharedtable.WAIT_MAX_S, 1.0)

    def test_who_only_has_no_luck_does_not_move_the_others_on(self) -> None:
        unlucky, lucky = self.process(), self.process()
        turns = 0

        def take(number: int) -> bool:
            nonlocal turns
            turns += 1
            if turns < 8 and number == sharedtable._LOCK:  # each time it looks the others have just been there
                with lucky:
                    return False
            return Locks.take(locks, number)

        locks = unlucky._locks
        assert isinstance(locks, Locks)
        with mock.patch.object(locks, "take", take), unlucky:
            self.assertFalse(unlucky.overtaken())
        self.assertEqual([lucky.counts()[name] for name in ("moved", "alone")], [0, 0])

    def test_who_is_late_in_moving_on_moves_nobody_back(self) -> None:
        late = self.process()
        locks = late._locks
        assert isinstance(locks, Locks)

        def take(number: int) -> bool:
            if number == sharedtable._LOCK + 1:  # between its last look and this the others have moved on twice
                late.words[sharedtable._EPOCH] = 2
            return number != sharedtable._LOCK and Locks.take(locks, number)

        with mock.patch.object(locks, "take", take), late:
            self.assertEqual((late.words[sharedtable._EPOCH], late.overtaken()), (2, False))
        self.assertEqual(late.counts()["moved"], 0)


class RoomTest(SharedTest):
    """A table that is full."""

    def small(self) -> tuple[SharedTable, SharedTable]:
        """Two processes with a table that has room for PROBES scopes and as many addresses."""
        tables = self.process(), self.process()
        for table in tables:
            for name in ("scopes", "addresses"):
                whole = getattr(table, name)
                setattr(table, name, Section(table.memory, whole._start, 1, whole._record_bytes))
        return tables

    def test_who_has_recovered_makes_room(self) -> None:
        limiter = self.limiter(self.small()[0])
        for number in range(3 * PROBES):
            self.assertEqual(self.passes(limiter, ALICE._replace(key_name=f"key-{number}")), 6)
            self.now_s += 6.1
        self.assertEqual(limiter._table.counts()["forgotten"], 0)

    def test_who_would_have_recovered_first_is_forgotten_when_nobody_has(self) -> None:
        limiter = self.limiter(self.small()[0])
        for number in range(PROBES):
            self.passes(limiter, ALICE._replace(key_name=f"key-{number}"))
            self.now_s += 0.01
        self.assertEqual(self.passes(limiter), 6)
        self.assertEqual(limiter._table.counts()["forgotten"], 1)
        for one in (limiter, self.limiter(), limiter):
            one.look_after(self.log)
        self.assertEqual([line["forgotten"] for line in self.lines], [1])
        waits = [self.passes(limiter, ALICE._replace(key_name=f"key-{n}"), times=1) for n in range(1, PROBES)]
        self.assertEqual(waits, [0] * (PROBES - 1))

    def test_where_places_are_held_nothing_is_forgotten_and_others_are_limited_by_each_process_itself(self) -> None:
        first, second = (self.limiter(table) for table in self.small())
        holding = KeyLimits(concurrency=1)
        held = [self.admitted(first, Subject(f"key-{number}", holding)) for number in range(PROBES)]
        self.assertEqual((self.passes(first), self.passes(second)), (6, 6))
        full = [self.passes(second, Subject(f"key-{number}", holding)) for number in range(PROBES)]
        self.assertEqual(full, [0] * PROBES)
        alone = self.admitted(first, Subject("late", holding))
        self.assertEqual(self.passes(first, Subject("late", holding)), 0)
        for admission in (*held, alone):
            admission.release_concurrency()
        self.assertEqual((self.passes(first), self.passes(second, times=1)), (6, 0))

    def test_addresses(self) -> None:
        tables = self.small()
        first, second = (self.limiter(table, address_rpm=60) for table in tables)
        subject = Subject(None, address="10.0.0.1")
        self.assertEqual((self.passes(first, subject, times=4), self.passes(second, subject)), (4, 2))
        for number in range(PROBES):
            self.now_s += 0.01
            self.assertEqual(self.passes(second, subject._replace(address=f"10.0.1.{number}")), 6)
        self.assertEqual(tables[0].counts()["forgotten"], 1)

    def test_a_reservation_whose_record_was_forgotten_takes_nothing_off_the_next_one(self) -> None:
        limiter = self.limiter(self.small()[0])
        subject = Subject("alice", KeyLimits(tpm=60), tokens_estimate=30)
        admission = self.admitted(limiter, subject)
        self.now_s += 31.0
        for number in range(PROBES):
            self.passes(limiter, ALICE._replace(key_name=f"key-{number}"))
        self.now_s += 7.0
        self.assertEqual(self.passes(limiter, subject), 2)
        admission.settle(0)
        self.assertEqual(self.passes(limiter, subject), 0)


class AgreementTest(SharedTest):
    def test_however_many_records_were_begun_the_next_one_counts_its_reservations(self) -> None:
        table = self.process()
        limiter = self.limiter(table)
        table.words[sharedtable._CREATED] = 2**31 - 2
        for name in ("alice", "bob", "carol"):
            subject = Subject(name, KeyLimits(None, 600), tokens_estimate=100)
            for _ in range(2):
                self.admitted(limiter, subject).settle(10)
            self.assertEqual(self.passes(limiter, subject, 10), 5, name)

    def test_an_address_is_no_other_of_the_same_bytes(self) -> None:
        limiter = self.limiter(address_rpm=60)
        for address in ("10.0.0.1", "3130:2e30:2e30:2e31::1"):
            self.assertEqual(self.passes(limiter, Subject(None, address=address)), 6)

    def test_the_lowest_factor_that_a_living_process_says_holds_for_all(self) -> None:
        table = self.process()
        first, second = self.limiter(table), self.limiter()
        limits = Subject("alice", KeyLimits(rpm=600))
        first.set_factors({"low": 0.1, "normal": 0.5, "high": 1.0})
        self.assertEqual(second._factors.get("normal", 1.0), 1.0)
        second.look_after(self.log)
        self.assertEqual(second._factors, {"low": 0.1, "normal": 0.5, "high": 1.0})
        self.assertEqual(self.passes(second, limits, times=100), 30)
        self.kill(table)
        second.look_after(self.log)
        self.assertEqual(second._factors, {"low": 1.0, "normal": 1.0, "high": 1.0})

    def test_what_has_passed_counts_under_other_limits_too(self) -> None:
        first, second = self.limiter(), self.limiter()
        self.assertEqual(self.passes(first, times=3), 3)
        # 3 of 60 a minute have passed: of a burst of 12 nine are left, where the settings are newer
        self.assertEqual(self.passes(second, ALICE._replace(key_limits=KeyLimits(rpm=120))), 9)
        self.assertEqual(self.passes(first), 0)

    def test_a_process_that_has_no_such_limit_leaves_it_as_it_is(self) -> None:
        first, second = self.limiter(), self.limiter()
        both = Subject("alice", KeyLimits(60, 60), tokens_estimate=15)
        self.assertEqual(self.passes(first, both), 4)
        self.assertEqual(self.passes(second, both._replace(key_limits=KeyLimits(rpm=60))), 2)
        self.assertEqual(self.passes(first, both), 0)
        self.now_s += 6.0
        self.assertEqual(self.passes(first, both), 0)  # of tokens only six are back

    def test_nobodys_limits_are_not_those_of_a_key_of_any_name(self) -> None:
        limiter = self.limiter()
        names = (None, "", "None", "nobody", "\ud800")
        self.assertEqual([self.passes(limiter, ALICE._replace(key_name=name)) for name in names], [6] * len(names))

    def test_what_is_left_is_told_without_a_record(self) -> None:
        limiter, subject = self.limiter(), Subject("unknown", KeyLimits(rpm=60))
        self.assertIn(("x-ratelimit-remaining-requests", "6"), limiter.headers(subject, self.now_s))
        self.assertLess(limiter._table.scopes.find(limiter._table.digest_of("key", b"unknown")), 0)


class TableTest(MachineTest):
    def test_who_uses_a_table_that_is_closed_does_not_wait(self) -> None:
        table = SharedTable(os.dup(self.fd), Locks(self.holders))
        table.close()
        for _ in range(2):
            with self.assertRaises(ValueError), table:
                pass

    def test_a_child_takes_the_descriptor_from_its_environment_and_keeps_it_to_itself(self) -> None:
        fd = os.dup(self.fd)
        os.set_inheritable(fd, True)
        environ = {ENVIRONMENT: str(fd)}
        table = SharedTable.inherited(environ)
        assert table is not None
        self.addCleanup(table.close)
        self.assertEqual((environ, os.get_inheritable(fd)), ({}, False))
        self.assertIsNone(SharedTable.inherited(environ))

    def test_what_is_no_descriptor_is_said(self) -> None:
        for text in ("x", "-1", "99999"):
            with self.assertRaisesRegex(SharedTableError, f"{ENVIRONMENT}: no descriptor has the number"):
                SharedTable.inherited({ENVIRONMENT: text})

    def test_a_table_of_another_version_or_of_nobody_is_refused(self) -> None:
        for size, text in ((0, "no such table"), (os.fstat(self.fd).st_size, "another version")):
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, size)
            with self.assertRaisesRegex(SharedTableError, text):
                SharedTable(os.dup(self.fd))

    def test_there_is_room_for_all_processes_thrice_and_not_for_any_number(self) -> None:
        columns = 3 * self.slots + 4
        tables = [self.process() for _ in range(columns)]
        self.assertEqual({table.column for table in tables}, set(range(columns)))
        with self.assertRaisesRegex(SharedTableError, "all 10 columns"):
            self.process()
        self.kill(tables[2])
        self.assertEqual(self.process().column, 2)


if __name__ == "__main__":
    unittest.main()
