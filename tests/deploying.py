"""What the tests of docs/deploy need: programs and packages that are skipped without, or missed loudly.

Owns nothing. REQUIRE_DEPLOY=1 makes a skip a failure.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
import unittest
from pathlib import Path
from typing import Any

DEPLOY = Path(__file__).resolve().parent.parent / "docs" / "deploy"


def tool(test: unittest.TestCase, name: str) -> str:
    """A program's path, of those beside the interpreter, in PATH or in root's folders; skips the test without it."""
    places = (str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin")
    found = shutil.which(name, path=os.pathsep.join(places))
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
