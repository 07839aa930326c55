"""The tests: `python -m unittest` runs them all, several test classes side by side (see `tests.parallel`)."""

from __future__ import annotations

import unittest
from pathlib import Path
from typing import Optional

HERE = Path(__file__).resolve().parent


def load_tests(loader: unittest.TestLoader, tests: unittest.TestSuite, pattern: Optional[str]) -> unittest.TestSuite:
    """What discovery takes instead of walking this folder itself; a module named alone runs as unittest runs it."""
    from tests.parallel import ParallelSuite

    tests.addTests(loader.discover(str(HERE), pattern or "test*.py", str(HERE.parent)))
    return ParallelSuite([tests])
