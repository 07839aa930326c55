"""What the tests of docs/deploy need: programs and packages that are skipped without, or missed loudly.

Owns nothing. REQUIRE_DEPLOY=1 makes a skip a failure.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import unittest
from pathlib import Path
from typing import Any

from tests.programs import program

DEPLOY = Path(__file__).resolve().parent.parent / "docs" / "deploy"


def tool(test: unittest.TestCase, name: str) -> str:
    """A program's path; skips the test without it."""
    found = program(name)
    if found is None:
        _lacks(test, name)
    return str(found)


def package(test: unittest.TestCase, name: str) -> Any:
    """A package, imported; skips the test without it."""
    if importlib.util.find_spec(name) is None:
        _lacks(test, f"the package {name}")
    return importlib.import_module(name)


def _lacks(test: unittest.TestCase, what: str) -> None:
    if os.environ.get("REQUIRE_DEPLOY") == "1":
        test.fail(f"{what} is missing, and this run must have it")
    test.skipTest(f"{what} is missing")
