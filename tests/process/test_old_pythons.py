"""A Python that is too old says so in one line, whatever it is given to run: it can read the files that come first."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Sequence
from pathlib import Path

from tests.support import ROOT, TIMEOUT_S, process_environment
from tests.unit.test_imports import MODULES, READ_FIRST

FIRST_FILES = (*(MODULES[name] for name in READ_FIRST), ROOT / "tests" / "__init__.py")
# What Python 2.7 and 3.0 have alike, of that what is used; nothing of a later syntax has a node of these kinds.
OLD_NODES = {
    *(
        "Module",
        "Expr",
        "Constant",
        "Name",
        "Load",
        "Store",
        "Assign",
        "Tuple",
        "List",
        "Attribute",
        "Subscript",
        "Call",
    ),
    *("Import", "ImportFrom", "alias", "If", "Compare", "Lt", "Eq", "Is", "BinOp", "Add", "BoolOp", "Or", "Try"),
    *("ExceptHandler", "Raise", "FunctionDef", "arguments", "arg", "Return"),
}
AS_OLD = """
import sys
sys.version_info = (3, 8, 20, "final", 0)
sys.version = "3.8.20 (pretended)"
import runpy
kind, sys.argv = sys.argv[1], sys.argv[2:]
if kind == "module":
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
MODULES_RUN = ("gateway", "gateway.settings", "gateway.mock", "unittest")
OLD = [path for path in map(shutil.which, ("python2", "python2.7", "python3.5", "python3.6", "python3.8")) if path]


def version(python: str) -> str:
    """What it calls itself; "" when it does not run."""
    code = "import sys; print(sys.version.split()[0])"
    ran = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
    return ran.stdout.strip() if ran.returncode == 0 else ""


class SyntaxTest(unittest.TestCase):
    def test_what_is_read_first_has_no_syntax_of_a_later_python(self) -> None:
        for path in FIRST_FILES:
            with self.subTest(path=path.name):
                source = path.read_bytes()
                self.assertTrue(source.isascii(), "without a coding line Python 2 reads ASCII alone")
                tree = ast.parse(source, feature_version=(3, 4))
                for node in ast.walk(tree):
                    where = f"{path}:{getattr(node, 'lineno', '?')}"
                    self.assertIn(type(node).__name__, OLD_NODES, where)
                    if isinstance(node, ast.FunctionDef):
                        arguments = node.args
                        self.assertIsNone(node.returns, where)
                        self.assertFalse(arguments.kwonlyargs + arguments.posonlyargs, where)
                        self.assertFalse([arg for arg in arguments.args if arg.annotation], where)
                    if isinstance(node, ast.Raise):
                        self.assertIsNone(node.cause, where)
                    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                        self.assertNotEqual(node.func.id, "print", where)
                    if isinstance(node, ast.ImportFrom):
                        self.assertNotEqual(node.module, "__future__", where)

    def test_the_package_says_it_before_it_imports_anything_of_its_own(self) -> None:
        tree = ast.parse((ROOT / "gateway" / "__init__.py").read_bytes())
        names = [
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        ]
        self.assertEqual(names, ["sys"])


class OldTest(unittest.TestCase):
    def assert_refused(self, command: Sequence[str], said: str, cwd: Path = ROOT) -> None:
        ran = subprocess.run(
            command,
            cwd=cwd,
            env=process_environment({"PYTHONPATH": ROOT}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=2 * TIMEOUT_S,
        )
        printed = ran.stdout.decode("utf-8", "replace")
        self.assertEqual(ran.returncode, 1, printed)
        self.assertRegex(printed, rf"\AThe (gateway needs|tests need) Python 3\.9 or later; this is {said}\n\Z")

    def test_as_if_this_python_were_old(self) -> None:
        said = r"3\.8\.20 \(.*\)"
        for kind, name in (*(("module", name) for name in MODULES_RUN), ("file", "main.py"), ("file", "inference.py")):
            with self.subTest(name=name):
                self.assert_refused((sys.executable, "-c", AS_OLD, kind, name), said)

    def test_pythons_that_are_old(self) -> None:
        found = {python: version(python) for python in OLD}
        found = {python: number for python, number in found.items() if number}
        if not found:
            self.skipTest("no Python before 3.9 is installed")
        for python, number in found.items():
            said = rf"{number} \(.*\)"
            commands = [("main.py",), ("main.py", "check"), ("-c", "import inference"), ("-m", "unittest", "discover")]
            for command in [*commands, *(("-m", name) for name in MODULES_RUN[:-1])]:
                with self.subTest(python=number, command=command):
                    self.assert_refused((python, *command), said)

    @unittest.skipUnless(os.name == "posix", "a shell script")
    def test_the_mock_script(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            python = Path(directory) / "python"
            python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "$OLD" "$2"\n')
            python.chmod(0o755)
            old = AS_OLD.split("import runpy")[0] + "exec(sys.argv[1])"
            ran = subprocess.run(
                [str(ROOT / "mock.sh"), "1"],
                env=process_environment({"PYTHON": python, "OLD": old}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                timeout=2 * TIMEOUT_S,
            )
        self.assertEqual(ran.returncode, 1, ran.stdout)
        self.assertRegex(ran.stdout, r"\AThe gateway needs Python 3\.9 or later; this is 3\.8\.20 \(.*\)\n\Z")


if __name__ == "__main__":
    unittest.main()
