"""Which tests PyPy is spared: those whose code is no other there, and that cost it much more time than they tell.

Mostly they start interpreters by the dozen, each of which takes PyPy a second. So of the ring with real processes, PyPy
runs `PROCESSES` alone when all tests are run; of the others all but `ALIKE`: arithmetic, reading of sources and
documents, and systems that PyPy is not used on. `.ci/run` runs all on CPython; `THOROUGH=1`
runs everything on PyPy, too.
"""

from __future__ import annotations

import os
import platform
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
REASON = "enough on CPython"
SPARED = platform.python_implementation() == "PyPy" and os.environ.get("THOROUGH") != "1"

PROCESSES = (
    "chaos_short",
    "descriptors",
    "no_locale",
    "process",
    "processes",
    "redis_limits",
    "sandbox",
    "shared_table",
)
ALIKE = (
    "tests.http.test_without_epoll",
    "tests.unit.test_advise",
    "tests.unit.test_alert_anomaly",
    "tests.unit.test_imports",
    "tests.unit.test_simulate",
    "tests.unit.test_simulate_theory",
)


def left_out() -> list[str]:
    """The modules of which PyPy runs nothing."""
    found = sorted(path.stem for path in (Path(__file__).parent / "process").glob("test_*.py"))
    return [*ALIKE, *(f"tests.process.{stem}" for stem in found if stem.partition("test_")[2] not in PROCESSES)]


def thorough(test: T) -> T:
    """Mark a test, or a class of them, as one that PyPy is spared. Returns what it was given."""
    return unittest.skipIf(SPARED, REASON)(test)  # type: ignore[type-var]


def without_spared(suite: unittest.TestSuite) -> unittest.TestSuite:
    """The suite without the modules that PyPy is spared; how many tests that leaves out is printed."""
    if not SPARED:
        return suite
    without = set(left_out())
    kept = unittest.TestSuite()
    count = 0
    for folder in suite:
        for module in folder if isinstance(folder, unittest.TestSuite) else (folder,):
            name = next((type(test).__module__ for test in _tests(module)), "")
            if name in without:
                count += module.countTestCases()
            else:
                kept.addTest(module)
    print(f"{count} tests are left to CPython (tests/thorough.py)", file=sys.stderr)
    return kept


def _tests(suite: unittest.TestSuite | unittest.TestCase) -> Iterator[unittest.TestCase]:
    if isinstance(suite, unittest.TestSuite):
        for part in suite:
            yield from _tests(part)
    else:
        yield suite
