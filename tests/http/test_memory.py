"""Whatever engines send, the gateway's memory stays under rest + 3 x the largest answer that is allowed."""

from __future__ import annotations

import platform
import unittest
from pathlib import Path

from tests.hostile import MIB, hostile, hostile_gateway
from tests.support import FREE_THREADED

ANSWER_BYTES = 8 * MIB
EVENT_BYTES = 3 * MIB // 2
# What is measured is what is held: large blocks go back to the system when they are freed, on whichever thread that is.
# Without its lock CPython has an allocator of its own, which hears of none of this.
TIMES = 10 if FREE_THREADED else 3
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": 131_072, "MALLOC_TRIM_THRESHOLD_": 131_072, "MALLOC_ARENA_MAX": 1}


@unittest.skipUnless(Path("/proc/self/clear_refs").exists(), "the peak cannot be read here")
@unittest.skipUnless(platform.python_implementation() == "CPython", "a collector decides when memory is given back")
class MemoryTest(unittest.TestCase):
    def test_what_hostile_engines_send_is_held_three_times_at_most(self) -> None:
        with hostile_gateway(ANSWER_BYTES, EVENT_BYTES, **ALLOCATOR) as running:
            for kind in hostile(ANSWER_BYTES, EVENT_BYTES):
                with self.subTest(engine=kind.name):
                    measured = running.measure(kind)
                    self.assertEqual(measured.status, kind.status)
                    self.assertLess(measured.peak_bytes, TIMES * ANSWER_BYTES)


if __name__ == "__main__":
    unittest.main()
