"""Which tests PyPy is spared: those whose code is no other there, and that cost it much more time than they tell.

Mostly they start interpreters by the dozen, each of which takes PyPy a second. `.ci/run` runs them on CPython, and
looks for `REASON` so as not to take them for tests that wait for a package. `THOROUGH=1` runs them on PyPy, too.
"""

from __future__ import annotations

import os
import platform
import unittest
from typing import TypeVar

T = TypeVar("T")
REASON = "enough on CPython"
SPARED = platform.python_implementation() == "PyPy" and os.environ.get("THOROUGH") != "1"


def thorough(test: T) -> T:
    """Mark a test, or a class of them, as one that PyPy is spared. Returns what it was given."""
    return unittest.skipIf(SPARED, REASON)(test)  # type: ignore[type-var]
