"""How large a module and a class may be: what does not fit is split by what it decides."""

from __future__ import annotations

import ast
import unittest
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULE_LINES = 400
CLASS_LINES = 250

LONG_MODULES = {"gateway/settings.py"}  # a table


def long_parts(name: str, source: str) -> Iterator[str]:
    """The module, and each of its classes, that has too many lines."""
    lines = len(source.splitlines())
    if lines > MODULE_LINES:
        yield f"{name} ({lines} lines)"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > CLASS_LINES:
                yield f"{name}: {node.name} ({lines} lines)"


class SizesTest(unittest.TestCase):
    def test_no_module_and_no_class_is_too_long(self) -> None:
        paths = [ROOT / "main.py", ROOT / "inference.py", *sorted((ROOT / "gateway").rglob("*.py"))]
        self.assertGreater(len(paths), 100)
        faults = []
        for path in paths:
            name = path.relative_to(ROOT).as_posix()
            for part in long_parts(name, path.read_text(encoding="utf-8")):
                if part.partition(" (")[0] not in LONG_MODULES:
                    faults.append(part)
        self.assertEqual(faults, [])

    def test_what_is_too_long_is_seen(self) -> None:
        body = "    x = 1\n"
        self.assertEqual(list(long_parts("m", "class C:\n" + body * (CLASS_LINES - 1))), [])
        self.assertEqual(list(long_parts("m", "class C:\n" + body * CLASS_LINES)), ["m: C (251 lines)"])
        inner = "def f():\n    class C:\n" + 2 * "    " + "x = 1\n" + CLASS_LINES * "        x = 1\n"
        self.assertEqual(list(long_parts("m", inner)), ["m: C (252 lines)"])
        self.assertEqual(list(long_parts("m", "x = 1\n" * MODULE_LINES)), [])
        self.assertEqual(list(long_parts("m", "x = 1\n" * (MODULE_LINES + 1))), ["m (401 lines)"])


if __name__ == "__main__":
    unittest.main()
