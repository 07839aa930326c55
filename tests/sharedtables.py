"""A machine whose processes share a table of limits, played in one process: each has its mapping and its locks."""

from __future__ import annotations

import os
import unittest
from unittest import mock

from gateway.limits import sharedtable
from gateway.limits.filelocks import FileLocks
from gateway.limits.sharedtable import SharedTable


class Locks(FileLocks):
    """The locks of one process, as the kernel would keep them: its own are no obstacle, and all go when it dies."""

    def __init__(self, holders: dict[int, object]) -> None:
        self.holders = holders

    def take(self, number: int) -> bool:
        return self.holders.setdefault(number, self) is self

    def free(self, number: int) -> None:
        if self.holders.get(number) is self:
            del self.holders[number]

    def die(self) -> None:
        for number in [number for number, holder in self.holders.items() if holder is self]:
            del self.holders[number]


class MachineTest(unittest.TestCase):
    """Has a table for `slots` processes. Waits for a lock take no time."""

    slots = 2

    def setUp(self) -> None:
        if os.name == "nt":
            self.skipTest("a gateway is one process there")
        self.now_s = 1000.0
        self.holders: dict[int, object] = {}
        few = {
            "PAUSES": (0.0,) * 3,
            "WAIT_MAX_S": 0.0,
            "TRIES_MIN": 10,
            "SCOPES_MAX": 500,
            "ADDRESSES_MAX": 500,
            "BUDGETS_MAX": 500,
        }
        patch = mock.patch.multiple(sharedtable, **few)
        patch.start()
        self.addCleanup(patch.stop)
        self.fd = self.new_table()
        super().setUp()

    def new_table(self) -> int:
        """What the parent of a gateway makes."""
        fd = SharedTable.create(self.slots)
        self.addCleanup(os.close, fd)
        return fd

    def process(self) -> SharedTable:
        """One more process."""
        table = SharedTable(os.dup(self.fd), Locks(self.holders))
        self.addCleanup(table.close)
        return table

    def kill(self, table: SharedTable) -> None:
        """The process of that table is gone, in the middle of whatever it did."""
        locks = table._locks
        assert isinstance(locks, Locks)
        locks.die()
