"""Budgets that processes share: exact within one request, warned of once, and free of what the dead had reserved."""

from __future__ import annotations

import unittest
from random import Random
from typing import Any, Optional, Union

from gateway.limits.budgets import Budgets, BudgetWarning, Reservation
from gateway.limits.records import PROBES, Section
from gateway.limits.sharedtable import SharedTable
from gateway.limits.tablebudgets import TableBudgets
from gateway.state.database import StateDb
from tests.sharedtables import MachineTest
from tests.unit import test_budgets


class OverTable(MachineTest):
    """What ordinary budgets do a lone process with a table does, too."""

    warnings: list[BudgetWarning]

    def budgets(self, db: Optional[StateDb] = None) -> Budgets:
        self.fd, self.holders = self.new_table(), {}
        return TableBudgets(self.process(), db, lambda: self.now_s, self.warnings.append, lambda: self.now_s)


class InMemoryTest(OverTable, test_budgets.InMemoryTest):
    pass


class ReservationTest(OverTable, test_budgets.ReservationTest):
    pass


class OnDiskTest(OverTable, test_budgets.OnDiskTest):
    pass


class SharedTest(MachineTest):
    def setUp(self) -> None:
        super().setUp()
        self.now_s = test_budgets.at("2026-11-05T12:00:00")
        self.warnings: list[BudgetWarning] = []

    def budgets(self, table: Optional[SharedTable] = None) -> TableBudgets:
        """Those of another process, if none is given."""
        return TableBudgets(table or self.process(), None, lambda: self.now_s, self.warnings.append, lambda: self.now_s)

    def check(self, budgets: Budgets, usd: float = 5.0, key: str = "alice") -> Optional[float]:
        return budgets.check(key, usd, "day", self.now_s)

    def reserved(self, budgets: Budgets, cost: float, key: str = "alice") -> Reservation:
        found = budgets.reserve(key, cost)
        assert isinstance(found, Reservation), found
        return found

    def test_what_one_has_spent_the_others_know_at_once(self) -> None:
        first, second = self.budgets(), self.budgets()
        for budgets in (first, second):
            self.assertIsNone(self.check(budgets))
        first.spend("alice", 2.0)
        second.spend("alice", 2.5)
        self.assertEqual((first.spent_usd("alice"), second.spent_usd("alice")), (4.5, 4.5))
        self.assertEqual(first.used(), [("alice", 0.9)])
        self.assertIsNone(self.check(second))
        first.spend("alice", 0.5)
        self.assertEqual(self.check(second), test_budgets.at("2026-11-06T00:00:00"))

    def test_what_one_has_reserved_the_others_may_not_take(self) -> None:
        first, second = self.budgets(), self.budgets()
        for budgets in (first, second):
            self.check(budgets)
        reservation = self.reserved(first, 5.0)
        self.now_s += 3.0
        self.assertEqual(second.reserve("alice", 1.0), 3.0)  # as long as the oldest has lasted
        reservation.release()
        reservation.release()
        self.reserved(second, 1.0)

    def test_a_dead_process_has_nothing_reserved_and_what_it_spent_stays_spent(self) -> None:
        dead, table = self.process(), self.process()
        first, second = self.budgets(dead), self.budgets(table)
        for budgets in (first, second):
            self.check(budgets)
        first.spend("alice", 2.0)
        self.reserved(first, 3.0)
        self.kill(dead)
        self.assertNotIsInstance(second.reserve("alice", 1.0), Reservation)
        table.sweep()
        self.reserved(second, 3.0)
        self.assertNotIsInstance(second.reserve("alice", 1.0), Reservation)

    def test_of_a_key_and_period_all_processes_warn_once(self) -> None:
        processes = [self.budgets() for _ in range(3)]
        for budgets in processes:
            self.check(budgets)
        for budgets in processes:
            budgets.spend("alice", 1.4)
        for budgets in processes:
            budgets.refresh()
            budgets.spend("alice", 0.01)
        self.assertEqual([round(warning.spent_usd, 6) for warning in self.warnings], [4.2])
        for budgets in processes:  # of a larger budget once more
            self.check(budgets, usd=10.0)
            budgets.spend("alice", 2.0)
        self.assertEqual(len(self.warnings), 2)
        self.now_s += test_budgets.DAY_S
        for budgets in processes:
            self.check(budgets)
            budgets.spend("alice", 4.5)
        self.assertEqual(len(self.warnings), 3)

    def test_any_requests_at_any_process_are_counted_as_one_would(self) -> None:
        for seed in range(100):
            random = Random(seed)
            self.fd, self.holders = self.new_table(), {}
            one = Budgets(None, lambda: self.now_s, None, lambda: self.now_s)
            processes = [self.budgets() for _ in range(3)]
            open_now: list[tuple[int, Reservation, Reservation]] = []
            refused = 0
            for _ in range(200):
                self.now_s += random.choice((0.0, 1.0, 600.0, 7200.0))
                at = random.randrange(3)
                budgets = processes[at]
                if open_now and random.random() < 0.5:
                    at, ours, theirs = open_now.pop(random.randrange(len(open_now)))
                    cost = random.randrange(16) / 16
                    for counted, reservation in ((processes[at], ours), (one, theirs)):
                        counted.spend("alice", cost)
                        reservation.release()
                    continue
                passed = self.check(budgets)
                self.assertEqual(passed, self.check(one), f"seed {seed}")
                if passed is not None:
                    continue
                cost = random.randrange(1, 32) / 16
                found, expected = budgets.reserve("alice", cost), one.reserve("alice", cost)
                self.assertEqual(self.kind(found), self.kind(expected), f"seed {seed}")
                if isinstance(found, Reservation) and isinstance(expected, Reservation):
                    open_now.append((at, found, expected))
                refused += not isinstance(found, Reservation)
                self.assertEqual(budgets.spent_usd("alice"), one.spent_usd("alice"))
            self.assertGreater(refused, 0)

    def kind(self, found: Union[Reservation, float]) -> Any:
        return isinstance(found, Reservation)

    def test_where_there_is_no_room_each_process_counts_for_itself(self) -> None:
        tables = self.process(), self.process()
        for table in tables:
            whole = table.budgets
            table.budgets = Section(table.memory, whole._start, 1, whole._record_bytes)
        first, second = (self.budgets(table) for table in tables)
        for number in range(PROBES):
            self.check(first, key=f"key-{number}")
            first._records.open(first._records.columns(f"key-{number}"), 0.0, 0.0)
            self.reserved(first, 1.0, f"key-{number}")
        for budgets in (first, second):
            self.check(budgets)
            budgets.spend("alice", 4.0)
            self.reserved(budgets, 1.0).release()
            self.assertEqual(budgets.spent_usd("alice"), 4.0)


if __name__ == "__main__":
    unittest.main()
