"""One table of errors: every code of it is raised somewhere, every code that is raised stands in it, and the document
tells of all."""

from __future__ import annotations

import ast
import re
import unittest
from pathlib import Path

from gateway.errors import ERRORS, GatewayError, errors_document

ROOT = Path(__file__).resolve().parents[2]
RAISING = {"GatewayError", "RequestRefused", "EngineFailed", "HttpError", "_refused"}


def sources() -> list[ast.Module]:
    paths = [path for path in sorted((ROOT / "gateway").rglob("*.py")) if path != ROOT / "gateway" / "errors.py"]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths]


def texts_in(tree: ast.Module) -> set[str]:
    """All texts that stand in a module by themselves, docstrings and the pieces of formatted ones left out."""
    pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in pieces)
    return {node.value for node in constants if isinstance(node.value, str) and " " not in node.value}


def codes_raised_in(tree: ast.Module) -> set[str]:
    """The codes that errors are made with, as far as they stand there."""
    codes = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) in RAISING and node.args:
            code = node.args[0]
            if isinstance(code, ast.Constant) and isinstance(code.value, str):
                codes.add(code.value)
    return codes


class TableTest(unittest.TestCase):
    def test_every_code_is_used(self) -> None:
        used = set().union(*map(texts_in, sources())) | {"client_closed_request"}  # that one by `ClientGone`
        self.assertEqual(sorted(ERRORS.keys() - used), [])

    def test_every_code_that_is_raised_is_in_the_table(self) -> None:
        raised = set().union(*map(codes_raised_in, sources()))
        self.assertGreater(len(raised), 30)
        self.assertEqual(sorted(raised - ERRORS.keys()), [])

    def test_a_code_that_is_not_in_the_table_cannot_be_raised(self) -> None:
        with self.assertRaises(KeyError):
            GatewayError("no_such_code", "")

    def test_each_says_what_it_means_and_what_to_do(self) -> None:
        for code, row in ERRORS.items():
            with self.subTest(code):
                self.assertIn(row.status // 100, (4, 5))
                for text in (row.meaning, row.action):
                    self.assertRegex(text, r"\A[A-Z`][^|\n]*[.]\Z")
        self.assertEqual([row.status for row in ERRORS.values()], sorted(row.status for row in ERRORS.values()))


class DocumentTest(unittest.TestCase):
    def test_the_file_is_what_the_table_says(self) -> None:
        shown = (ROOT / "docs" / "ERRORS.md").read_text(encoding="utf-8")
        self.assertEqual(shown, errors_document(), "run python -m gateway.errors > docs/ERRORS.md")

    def test_it_has_a_row_for_each_code(self) -> None:
        rows = re.findall(r"(?m)^\| (\d{3}) \| `(\w+)` \| .+ \| .+ \|$", errors_document())
        self.assertEqual(rows, [(str(row.status), code) for code, row in ERRORS.items()])


if __name__ == "__main__":
    unittest.main()
