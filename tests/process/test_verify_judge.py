"""The judge of programs: what honest ones give, and that no hostile one makes itself pass, hang or survive."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import unittest.mock
from pathlib import Path
from typing import Any, Optional

ROOT = Path(__file__).resolve().parents[2]

if sys.platform == "linux":
    from gateway.verify.building import HARNESSES
    from gateway.verify.harness.judge import harness_main, judge
    from gateway.verify.harness.keys import is_unseen
    from gateway.verify.harness.processes import Ended
    from gateway.verify.harness.testing import ClientTest
    from gateway.verify.sandbox.texts import harness_sources

TIGHT = {"per_call_s": 0.1, "total_s": 1.0}


@unittest.skipUnless(sys.platform == "linux", "programs are judged on Linux")
class JudgeTest(unittest.TestCase):
    """Runs in a directory of its own, with standard output out of the way."""

    def setUp(self) -> None:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.addCleanup(os.chdir, Path.cwd())
        os.chdir(folder)
        sys.stdout.flush()
        kept = [os.dup(1), os.dup(2)]
        null = os.open("printed", os.O_RDWR | os.O_CREAT)
        os.dup2(null, 1), os.dup2(null, 2), os.close(null)
        self.addCleanup(self._give_back, kept)

    def _give_back(self, kept: list[int]) -> None:
        for fd, saved in zip((1, 2), kept):
            os.dup2(saved, fd)
            os.close(saved)

    def keys(self, code: str, *inputs: str, language: str = "python", **more: Any) -> list[str]:
        report = judge(code, {**TIGHT, "mode": "outputs", "language": language, "inputs": inputs, **more})
        self.assertEqual(len(report["keys"]), len(inputs))
        return [str(key) for key in report["keys"]]

    def judged(self, code: str, *tests: str, **more: Any) -> dict[str, Any]:
        return dict(judge(code, {**TIGHT, "mode": "tests", "language": "python", "tests": tests, **more}))

    def why(self, code: str, test: str, **more: Any) -> Optional[str]:
        """Why `code` fails `test`; None when it passes."""
        report = self.judged(code, test, **more)
        if report["error"] is not None:
            return f"{report['error']['kind']}: {report['error']['text']}"
        self.assertEqual(report["passed"] + len(report["failures"]), 1)
        return None if report["passed"] else str(report["failures"][0]["text"])

    def assertPasses(self, code: str, test: str, **more: Any) -> None:
        self.assertIsNone(self.why(code, test, **more))

    def assertFails(self, code: str, test: str, said: str = "", **more: Any) -> None:
        why = self.why(code, test, **more)
        self.assertIsNotNone(why)
        self.assertIn(said, str(why))

    def stdio(self, code: str, *pairs: tuple[str, str], language: str = "python", **more: Any) -> dict[str, Any]:
        given = [{"input": one, "output": other} for one, other in pairs]
        return dict(judge(code, {**TIGHT, "mode": "tests", "language": language, "pairs": given, **more}))

    def program(self, code: str, language: str = "python", **more: Any) -> dict[str, Any]:
        return dict(judge(code, {**TIGHT, "mode": "program", "language": language, **more}))


class OutputsTest(JudgeTest):
    def test_each_input_gives_the_key_of_its_result(self) -> None:
        self.assertEqual(
            self.keys("def f(x): return x * 2", "[1]", "['a']", "(1.5,)", "[[1]]"), ["2", "s'aa'", "3", "[1,1]"]
        )

    def test_all_kinds_of_values_have_keys_and_equal_ones_the_same(self) -> None:
        code = (
            "import collections, datetime, decimal, enum, fractions\n"
            "class I(int): __add__ = __int__ = __index__ = lambda *a: 9\nclass L(list): pass\n"
            "P = collections.namedtuple('P', 'x y')\n"
            "class C(enum.IntEnum): A = 1\nclass O: pass\n"
            "def f(text): return eval(text)"
        )
        said = self.keys(
            code,
            *(f"[{text!r}]" for text in ("I(3)", "L([1])", "P(1, 2)", "C.A", "O()", "fractions.Fraction(1, 2)")),
            *(
                f"[{text!r}]"
                for text in ("decimal.Decimal('2.50')", "collections.Counter('aa')", "1 << 70", "b'\\xff'")
            ),
            *(f"[{text!r}]" for text in ("{1: {2}}", "range(3)", "(x for x in (1, 2))", "float('nan')", "[1j]")),
            *(f"[{text!r}]" for text in ("collections.deque([1])", "datetime.date(2020, 1, 2)", "'\\ud800'", "O")),
        )
        self.assertEqual(said[:6], ["3", "[1]", "(1,2)", "1", "(s'<object>',s'O')", "0.5"])
        self.assertEqual(said[6:10], ["2.5", "{:s'a':2}", str(1 << 70), "bb'\\xff'"])
        self.assertEqual(said[10:13], ["{:1:{2}}", "(s'range',0,3,1)", "(s'<iterator>',[1,2])"])
        self.assertEqual(said[13:16], ["nan", "[c0,1]", "(s'deque',[1])"])
        self.assertEqual(said[16:], ["(s'date',2020,1,2)", "s'\\ud800'", "otype"])

    def test_an_exception_is_an_error_key_with_its_name(self) -> None:
        self.assertEqual(
            self.keys("def f(x): return 1 // x", "[0]", "[1]", "[1, 2]"), ["!ZeroDivisionError", "1", "!TypeError"]
        )

    def test_every_call_gets_arguments_of_its_own_while_the_programs_state_persists(self) -> None:
        code = "seen = []\ndef f(x):\n    x.append(1)\n    seen.append(1)\n    return len(x), len(seen)"
        self.assertEqual(self.keys(code, "[[]]", "[[]]"), ["(1,1)", "(1,2)"])

    def test_a_function_that_gives_nothing_is_known_by_what_it_did_to_its_arguments(self) -> None:
        self.assertEqual(self.keys("def f(x): x.sort()", "[[2, 1]]", "[[1]]"), ["(s'<changed>',[[1,2]])", "None"])

    def test_a_function_that_never_gives_anything_is_known_by_what_it_prints(self) -> None:
        show = "def f(n):\n    for i in range(n): print(i)\n"
        self.assertEqual(self.keys(show, "[2]", "[0]"), ["(s'<printed>',s'0\\n1')", "None"])
        self.assertNotEqual(self.keys(show, "[2]"), self.keys(show.replace("(i)", "(i + 1)"), "[2]"))
        fails = show + "    if n > 3: raise ValueError\n"
        self.assertEqual(self.keys(fails, "[9]", "[1]"), ["!ValueError", "(s'<printed>',s'0')"])
        told = "def f(n):\n    print('looking')\n    return n if n > 1 else None\n"
        self.assertEqual(self.keys(told, "[2]", "[0]"), ["2", "None"])
        long = self.keys("def f(n): print('x' * n)", "[100000]", "[200000]")
        self.assertEqual(long[0], long[1])

    def test_an_input_that_is_no_list_of_arguments_is_told_and_the_others_are_run(self) -> None:
        said = self.keys("def f(x): return x", "[1]", "7", "[", "1), (2", "[inf]", "[{1, 2}]")
        self.assertEqual(said[:1] + said[4:], ["1", "inf", "{1,2}"])
        self.assertTrue(all(key.startswith("!") for key in said[1:4]), said)

    def test_results_are_rounded_where_the_example_was(self) -> None:
        wraps = [["round", [2]], None, ["round", [1]]]
        self.assertEqual(
            self.keys("def f(x): return x", "[1.2345]", "[1.2345]", "['a']", wraps=wraps),
            ["1.23", "1.2345", "!TypeError"],
        )

    def test_results_are_taken_as_the_example_takes_them(self) -> None:
        wraps = [["sorted", []], ["set", []], ["bool", []], ["len", []], ["list", []]]
        keys = self.keys("def f(x): return x", "[[2, 1]]", "[[2, 2]]", "['a']", "[7]", "[(1,)]", wraps=wraps)
        self.assertEqual(keys, ["[1,2]", "{2}", "1", "!TypeError", "[1]"])

    def test_what_an_iterator_gives_is_taken_as_the_example_takes_it(self) -> None:
        code = "def f(n):\n    for i in range(n):\n        yield i"
        wraps: list[Any] = [["list", []], ["sum", []], ["tuple", []], None]
        keys = self.keys(code, *["[3]"] * 4, entry_point="f", wraps=wraps)
        self.assertEqual(keys, ["[0,1,2]", "3", "(0,1,2)", "(s'<iterator>',[0,1,2])"])

    def test_objects_of_the_programs_own_classes_are_known_by_what_they_hold(self) -> None:
        node = "class Node:\n    def __init__(self, v, next=None): self.v, self.next = v, next\n"
        made = "def f(*vs):\n    head = None\n    for v in {}: head = Node(v, head)\n    return head"
        slots = "class Node:\n    __slots__ = ('next', 'v')\n" + node.partition("\n")[2]
        backwards, forwards, slotted = (
            self.keys(text + made.format(order), "[1, 2]", "[]")
            for text, order in ((node, "vs"), (node, "reversed(vs)"), (slots, "vs"))
        )
        self.assertNotEqual(backwards, forwards)
        self.assertEqual(backwards, slotted)
        self.assertIn("s'v',2", backwards[0])
        self.assertEqual(backwards[1], "None")
        ring = node + "def f():\n    one = Node(1)\n    one.next = Node(2, one)\n    return one"
        self.assertIn("s'<above>',1", self.keys(ring, "[]")[0])
        for code in (
            "f = lambda: lambda: 1",
            "import re\ndef f(): return [re.compile('a')]",
            node + "def f(): return Node",
        ):
            self.assertTrue(is_unseen(self.keys(code, "[]", entry_point="f")[0]), code)

    def test_async_functions_are_run_to_their_end(self) -> None:
        code = "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x + 1"
        self.assertEqual(self.keys(code, "[1]"), ["2"])

    def test_the_only_function_is_the_entry_point_and_of_several_none(self) -> None:
        self.assertEqual(self.keys("import math\nfrom math import gcd\ndef g(x): return x", "[1]"), ["1"])
        report = judge("def a(): 1\ndef b(): 1", {"mode": "outputs", "inputs": ["[]"]})
        self.assertEqual((report["error"]["kind"], report["keys"]), ("entry_point", ["!entry_point"]))
        self.assertEqual(report["functions"], ["a", "b"])
        self.assertEqual(self.keys("def a(): return 1\ndef b(): return 2", "[]", entry_point="b"), ["2"])
        report = judge("x = 1", {"mode": "outputs", "inputs": ["[]"], "entry_point": "x"})
        self.assertEqual(report["error"]["kind"], "entry_point")

    def test_methods_of_a_solution_are_called_as_functions_are(self) -> None:
        code = (
            "class Solution:\n    def __init__(self): self.n = 0\n    def f(self, x):\n        self.n += x\n"
            "        return self.g(self.n)\n    @staticmethod\n    def g(x): return x + max(0, x)\n"
            "    def max(self): return 7\n"
        )
        self.assertEqual(self.keys(code, "[2]", "[2]", entry_point="f"), ["4", "4"])
        self.assertEqual(self.keys(code + "def f(x): return 1", "[2]", entry_point="f"), ["1"])
        self.assertPasses(code, "def check(candidate):\n    assert candidate(2) == 4", entry_point="f")
        self.assertFails(code, "def check(candidate):\n    assert candidate(2) == 5", entry_point="f")
        self.assertPasses(code, "assert max(1, 2) == 2 and f(3) == 6 and Solution().f(1) == 2")
        other = code.replace("Solution", "Other")
        self.assertEqual(self.keys(other, "[2]", entry_point="f"), ["!entry_point"])

    def test_functions_of_a_program_that_asks_its_user_or_ends_itself_are_called(self) -> None:
        code = "def f(x): return x + 1\n"
        for more in (
            "n = int(input('n: '))\nprint(f(n))",
            "import sys\nsys.exit(0)",
            "exit_code = f(0)\nraise SystemExit",
        ):
            self.assertEqual(self.keys(code + more, "[2]"), ["3"], more)
            self.assertPasses(code + more, "assert f(2) == 3")
            self.assertFails(code + more, "assert f(2) == 4")
        for more in ("import sys\nsys.exit('no')", "raise SystemExit(3)", "assert f(1) == 3"):
            self.assertEqual(self.keys(code + more, "[2]"), ["!load"], more)
        self.assertFails("import sys\nsys.exit(0)", "assert f(2) == 3", "load")

    def test_what_is_no_program_is_told_with_its_line(self) -> None:
        for code, kind, said in (
            ("x = 1\ndef f(:", "syntax", "(line 2)"),
            ("def f(): 1\n1 / 0", "load", "ZeroDivisionError: division by zero (line 2)"),
            ("def f(): 1\nimport os\nos._exit(0)", "crash", "ended with status 0"),
            ("def f(): 1\nraise SystemExit(1)", "load", "SystemExit"),
            ("def f(): 1\nwhile True: pass", "timeout", "too long"),
            ("x = '\0'", "syntax", ""),
            ("(" * 5000, "syntax", ""),
        ):
            report = judge(code, {**TIGHT, "mode": "outputs", "inputs": ["[]"]})
            self.assertEqual((report["error"]["kind"], report["keys"]), (kind, [f"!{kind}"]), code[:50])
            self.assertIn(said, report["error"]["text"])

    def test_a_call_that_takes_too_long_is_interrupted_and_the_process_goes_on(self) -> None:
        code = "seen = []\ndef f(x):\n    seen.append(x)\n    while x == 1: pass\n    return len(seen)"
        self.assertEqual(self.keys(code, "[0]", "[1]", "[2]", per_call_s=1.0, total_s=10), ["1", "!timeout", "3"])

    def test_a_call_that_cannot_be_interrupted_is_killed_and_the_others_run(self) -> None:
        swallowing = (
            "def f(x):\n"
            "    while x == 1:\n"
            "        try:\n"
            "            while True: pass\n"
            "        except BaseException: pass\n"
            "    return x"
        )
        in_c = "def f(x):\n    return x if x != 1 else sum(range(10 ** 12))"
        masked = (
            "import signal\n"
            "def f(x):\n"
            "    if x == 1: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])\n"
            "    while x == 1: pass\n"
            "    return x"
        )
        asleep = "import time\ndef f(x):\n    if x == 1: time.sleep(100)\n    return x"
        for code in (swallowing, in_c, masked, asleep):
            self.assertEqual(self.keys(code, "[0]", "[1]", "[2]"), ["0", "!timeout", "2"], code)

    def test_after_some_calls_in_a_row_that_took_too_long_the_rest_is_not_tried(self) -> None:
        code = "def f(x):\n    with open('tried', 'a') as file: file.write('x')\n    while True: pass"
        self.assertEqual(set(self.keys(code, *["[1]"] * 40, total_s=5)), {"!timeout"})
        self.assertLess(len(Path("tried").read_text()), 10)

    def test_a_call_that_ends_the_process_costs_only_its_own_result(self) -> None:
        code = (
            "import os, signal\n"
            "def f(x):\n"
            "    if x == 1: os._exit(0)\n"
            "    if x == 2: os.kill(os.getpid(), 11)\n"
            "    return x"
        )
        self.assertEqual(self.keys(code, "[1]", "[0]", "[2]", "[3]"), ["!crash", "0", "!crash", "3"])

    def test_a_process_that_ends_again_and_again_is_given_up(self) -> None:
        code = "import os\ndef f(x):\n    with open('tried', 'a') as file: file.write('x')\n    os._exit(0)"
        self.assertEqual(self.keys(code, *["[1]"] * 9), ["!crash"] * 9)
        self.assertEqual(Path("tried").read_text(), "xxx")

    def test_infinite_recursive_and_gigantic_results_have_keys_too(self) -> None:
        code = (
            "import itertools\n"
            "def f(n):\n"
            "    if n == 0: return itertools.count()\n"
            "    if n == 1:\n        x = []; x.append(x); return x\n"
            "    if n == 2:\n        x = 0\n        for _ in range(70): x = [x, x]\n        return x\n"
            "    if n == 3: return 'a' * 30_000_000\n"
            "    if n == 4: return 1 << 90_000_000\n"
            "    if n == 5: return f(5)\n"
            "    return n"
        )
        said = self.keys(code, "[0]", "[1]", "[2]", "[3]", "[4]", "[5]", "[6]", per_call_s=3.0, total_s=20)
        self.assertEqual(said[6], "6")
        self.assertEqual(said[5], "!RecursionError")
        self.assertFalse([key for key in said[:5] if key.startswith("!")], said)

    def test_what_a_program_prints_does_not_disturb_and_is_passed_on_up_to_a_cap(self) -> None:
        code = (
            "import os, sys\n"
            "def f(x):\n"
            "    print('y' * 100000)\n"
            "    for fd in range(1, 3): os.write(fd, b'{}\\n' * 10000)\n"
            "    return x"
        )
        self.assertEqual(self.keys(code, "[1]", "[2]", "[3]"), ["1", "2", "3"])
        size = Path("printed").stat().st_size
        self.assertTrue(1000 < size < 50_000, size)  # of 300 KB; whoever else writes there in this process included

    def test_stdin_is_empty(self) -> None:
        self.assertEqual(self.keys("import sys\ndef f(): return sys.stdin.read()", "[]"), ["s''"])

    def test_threads_that_go_on_end_with_the_judging(self) -> None:
        code = (
            "import threading, time\n"
            "def run():\n"
            "    while True:\n"
            "        open('alive', 'w').write(str(time.time()))\n"
            "        time.sleep(0.01)\n"
            "threading.Thread(target=run).start()\ndef f(): return 1"
        )
        self.assertEqual(self.keys(code, "[]", entry_point="f"), ["1"])


SIMPLE = "assert f(3) == 9"
LIE = """
class Lie:
    def __init__(self, *args, **kwargs): pass
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __eq__
    def __add__(self, *args): return Lie()
    __radd__ = __sub__ = __rsub__ = __mul__ = __mod__ = __getitem__ = __round__ = __call__ = __add__
    def __abs__(self): return 0
    def __len__(self): return 1
    def __hash__(self): return hash(9)
    def __iter__(self): return iter([Lie()])
    def __getattr__(self, name): return Lie()
    def __float__(self): return 0.0
"""
HOSTILE = {
    "ends at once": "import os\nos._exit(0)",
    "ends when called": "import os\ndef f(x): os._exit(0)",
    "raises SystemExit": "def f(x): raise SystemExit(0)",
    "raises KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "equals everything": LIE + "def f(x): return Lie()",
    "is a class that equals everything": LIE.replace("Lie", "f"),
    "an int that lies": "class I(int):\n    def __eq__(s, o): return True\n    __hash__ = None\ndef f(x): return I(1)",
    "a list that lies": "class L(list):\n    def __eq__(s, o): return True\ndef f(x): return L()",
    "a str that lies": "class S(str):\n    def __eq__(s, o): return True\ndef f(x): return S('')",
    "patches builtins": (
        "import builtins, json\nclass A(Exception): pass\nbuiltins.AssertionError = A\n"
        "builtins.abs = builtins.len = builtins.isinstance = lambda *a: 0\n"
        "json.dumps = json.loads = lambda *a, **k: 9\n"
        "def f(x): return 1"
    ),
    "shadows builtins": (
        "def f(x): return 1\n"
        "def len(*a): return 9\n"
        "True_ = 1\n"
        "def check(c): pass\n"
        "class AssertionError(BaseException): pass"
    ),
    "traces": (
        "import sys\n"
        "sys.settrace(lambda frame, *a: frame.f_locals.update(passed=1))\n"
        "sys.setprofile(lambda *a: None)\n"
        "def f(x): return 1"
    ),
    "forges messages": (
        "import os, json\ndef f(x):\n"
        "    for fd in range(3, 64):\n"
        '        for text in (\'["value", 8, []]\', \'{"passed": 1, "total": 1, "error": null}\', \'["names", []]\'):\n'
        "            try: os.write(fd, (text + chr(10)).encode() * 3)\n"
        "            except OSError: pass\n"
        "    return 1"
    ),
    "writes noise": (
        "import os\n"
        "def f(x):\n"
        "    for fd in range(1, 64):\n"
        "        try: os.write(fd, os.urandom(999) + b'\\n' + b'[' * 99999)\n"
        "        except OSError: pass\n"
        "    return 1"
    ),
    "closes all": "import os\ndef f(x):\n    os.closerange(0, 64)\n    return 1",
    "kills its parent": "import os, signal\ndef f(x):\n    os.kill(os.getppid(), signal.SIGKILL)\n    return 1",
    "stops its parent": "import os, signal\ndef f(x):\n    os.kill(os.getppid(), signal.SIGSTOP)\n    return 1",
    "sends signals to its group": "import os, signal\ndef f(x):\n    os.killpg(0, signal.SIGTERM)\n    return 1",
    "ignores signals": (
        "import signal\n"
        "for s in range(1, 30):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "def f(x):\n"
        "    while True: pass"
    ),
    "recurses": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x)",
    "never ends and catches all": (
        "def f(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass"
    ),
    "forks and both answer": "import os\ndef f(x):\n    os.fork()\n    return 1",
    "an iterator without end": "import itertools\ndef f(x): return itertools.count()",
    "raises what cannot be told": (
        "class E(Exception):\n    def __str__(self): raise E\n    __repr__ = __str__\ndef f(x): raise E(E())"
    ),
    "raises AssertionError": "def f(x): raise AssertionError",
    "gives nothing": "def f(x): pass",
    "gives another number": "def f(x): return 8",
}


class HostileTest(JudgeTest):
    def test_no_hostile_program_passes_whatever_the_test_looks_like(self) -> None:
        tests = (
            SIMPLE,
            "def check(candidate):\n    assert candidate(3) == 9\n    assert abs(candidate(3) - 9) < 1e-6\ncheck(f)",
            "import unittest\nclass T(unittest.TestCase):\n    def test_it(self): self.assertEqual(f(3), 9)",
        )
        for name, code in HOSTILE.items():
            with self.subTest(name):
                report = self.judged(
                    code, *tests[: 1 if "end" in name or "parent" in name else 3], entry_point="f", total_s=0.25
                )
                self.assertEqual(report["passed"], 0, report)
                self.assertTrue(report["error"] or report["failures"])

    def test_the_same_tests_are_passed_by_what_is_right(self) -> None:
        self.assertPasses("def f(x): return x * x", SIMPLE)

    def test_no_test_form_takes_an_object_that_claims_to_equal_everything(self) -> None:
        for test in (
            "assert 9 == f(3)",
            "assert not f(3) != 9",
            "assert abs(f(3) - 9) < 1e-6",
            "assert f(3) in (8, 9)",
            "assert 9 in f(3)",
            "assert [f(3)] == [9]",
            "assert f(3) - 9 == 0",
            "assert {f(3): 1}.get(9) == 1",
            "assert f(3)[0] == 9",
            "assert f(3).value == 9",
            "assert float(f(3)) == 9.0",
            "assert sorted(f(3)) == [9]",
            "assert isinstance(f(3), int)",
            "assert f(3) < 10 and 8 < f(3)",
        ):
            for code in (HOSTILE["equals everything"], HOSTILE["is a class that equals everything"]):
                self.assertFails(code, test, entry_point="f")

    def test_an_entry_point_is_no_class_whose_objects_are_believed_whatever_it_is_called(self) -> None:
        self.assertFails(LIE.replace("Lie", "Square"), "assert Square(3) == 9", entry_point="Square")

    def test_no_name_of_a_program_replaces_what_a_test_judges_by(self) -> None:
        code = (
            "def f(x): return 1\ndef abs(x): return 0\ndef sorted(x): return [9]\ndef len(x): return 9\n"
            "class math:\n    isclose = staticmethod(lambda *a, **k: True)\nrandom = 9\ndef AssertionError(): pass\n"
            "def check(c): pass\ndef test_it(): pass\n"
        )
        for test in ("assert abs(f(1) - 9) < 1", "assert sorted([f(1)]) == [9]", "assert math.isclose(f(1), 9)"):
            self.assertFails(code, test)
        self.assertFails(code, "f(1)\nraise AssertionError")

    def test_a_program_that_kills_the_judge_leaves_no_report(self) -> None:
        code = (
            "import os, signal\ndef f(x):\n    nursery = os.getppid()\n"
            "    stat = open(f'/proc/{nursery}/stat').read()\n"
            "    os.kill(int(stat.rpartition(')')[2].split()[1]), signal.SIGKILL)\n    return 9"
        )
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                task = {"mode": "tests", "tests": [SIMPLE], "entry_point": "f"}
                harness_main(code, json.dumps(task).encode(), lambda data: os.write(writing, data) and None)
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, "rb") as file:
            self.assertEqual(file.read(), b"")
        self.assertEqual(os.waitpid(child, 0)[1], signal.SIGKILL)

    @unittest.skipUnless(sys.implementation.name == "cpython", "elsewhere objects have no lasting address")
    def test_what_is_expected_is_not_among_the_objects_that_a_program_inherits(self) -> None:
        code = (
            "import gc, sys\ndef f(x):\n    frame = sys._getframe()\n    values = []\n    while frame:\n"
            "        values += [v for v in frame.f_locals.values() if type(v) in (bytes, str, dict, list)]\n"
            "        values += [v for v in frame.f_globals.values() if type(v) in (bytes, str)]\n"
            "        frame = frame.f_back\n"
            "    values += [v for v in gc.get_objects() if type(v) in (dict, list) and len(v) < 99]\n"
            "    sought = ''.join(reversed('detcepxe-si-taht'))\n    return any(sought in repr(v) for v in values)"
        )
        judging = (
            "import sys; sys.path.insert(0, sys.argv[1]); from gateway.verify.harness.judge import harness_main\n"
            "def run(code, payload): harness_main(code, payload, sys.stdout.buffer.write)\n"
            "run(sys.argv[2], sys.stdin.buffer.read())"
        )
        task = json.dumps(
            {"mode": "outputs", "inputs": ["[1]"], "tests": ["that-is-expected"] * 3, "total_s": 9, "per_call_s": 5}
        )
        command = [sys.executable, "-c", judging, str(ROOT), code]
        ran = subprocess.run(command, input=task.encode(), capture_output=True, check=True)
        self.assertEqual(json.loads(ran.stdout)["keys"], ["0"])

    def test_nothing_that_a_program_started_is_left(self) -> None:
        code = (
            "import os, time\ndef f(x):\n    for leave in (lambda: 0, os.setsid, lambda: os.fork() and os._exit(0)):\n"
            "        if os.fork() == 0:\n"
            "            leave()\n"
            "            open(f'pid{os.getpid()}', 'w').close()\n"
            "            time.sleep(1000)\n"
            "    while len([n for n in os.listdir() if n.startswith('pid')]) < 3: time.sleep(0.001)\n    return 9"
        )
        self.assertPasses(code, SIMPLE)
        started = [int(path.name[3:]) for path in Path().glob("pid*")]
        self.assertEqual(len(started), 3)
        for pid in started:
            self.assertFalse(
                Path(f"/proc/{pid}").exists() and "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
            )

    def test_no_descriptor_of_the_judge_is_open_in_a_program(self) -> None:
        secret = os.open("secret", os.O_RDWR | os.O_CREAT)
        self.addCleanup(os.close, secret)
        os.set_inheritable(secret, True)
        code = (
            "import os\n"
            "def f():\n"
            "    names = [f'/proc/self/fd/{n}' for n in os.listdir('/proc/self/fd')]\n"
            "    return sorted(os.readlink(name).split(':')[0] for name in names if os.path.exists(name))"
        )
        self.assertEqual(self.keys(code, "[]"), ["[s'pipe',s'pipe',s'pipe',s'socket']"])


class TestsTest(JudgeTest):
    def test_statements_check_functions_test_functions_and_cases_are_all_run(self) -> None:
        code = "def f(x): return x + 1"
        for right, wrong in (
            ("assert f(1) == 2", "assert f(1) == 3"),
            ("x = f(1)\ny = f(x)\nassert y == 3", "x = f(1)\nassert f(x) == 4"),
            (
                "def check(candidate):\n    assert candidate(1) == 2",
                "def check(candidate):\n    assert candidate(1) == 1",
            ),
            ("def test_a(): assert f(1) == 2", "def test_a(): assert f(1) == 2\ndef test_b(): assert f(1) == 1"),
            ("assert candidate(1) == 2", "assert candidate(1) == 1"),
            (
                "import asyncio\nasync def test_a(): assert f(1) == 2",
                "import asyncio\nasync def test_a(): assert f(1) == 1",
            ),
            (
                "import unittest\nclass A(unittest.TestCase):\n    def test_a(self): self.assertEqual(f(1), 2)",
                "import unittest\nclass A(unittest.TestCase):\n    def test_a(self): self.assertEqual(f(1), 1)",
            ),
        ):
            self.assertPasses(code, right)
            self.assertFails(code, wrong)

    def test_a_class_of_tests_is_run_as_pytest_runs_it(self) -> None:
        code = "def f(x): return x + 1"
        for body in (
            "    def test_a(self): assert f(1) == {}\n",
            "    def test_a(self): assert f(1) == 2\n    def test_b(self): assert f(1) == {}\n",
            "    def setup_method(self): self.n = {}\n    def test_a(self): assert f(1) == self.n\n",
            "    def setup_method(self, method): self.n = {}\n    def test_a(self): assert f(1) == self.n\n",
            "    @classmethod\n    def setup_class(cls): cls.n = {}\n    def test_a(self): assert f(1) == self.n\n",
            "    def teardown_method(self): assert f(1) == {}\n    def test_a(self): pass\n",
            "    wanted = {}\n    async def test_a(self): assert f(1) == self.wanted\n",
            "    n = 0\n    def test_a(self):\n        self.n += f(1)\n        assert self.n == {}\n"
            "    test_b = test_a\n",
        ):
            test = "class TestF:\n" + body
            if "async" in body:
                test = "import asyncio\n" + test
            with self.subTest(test=test):
                self.assertPasses(code, test.format(2))
                self.assertFails(code, test.format(3), "line")
        self.assertFails(code + "\nclass TestF:\n    def test_a(self): pass", "assert TestF", "calls nothing")

    def test_no_part_of_a_test_is_left_out_in_silence(self) -> None:
        wrong = "def f(x): return x + 1 if x != 3 else 0"
        trivial = "def test_a(): assert f(1) == 2\n"
        for part, told in (
            ("def test_b(capsys): assert f(3) == 4", "test_b asks for capsys, which nobody gives"),
            ("def test_b(*, tmp_path): assert f(3) == 4", "test_b asks for tmp_path"),
            ("class TestB:\n    def test_b(self, capsys): assert f(3) == 4", "TestB.test_b asks for capsys"),
            (
                "class TestB:\n    @staticmethod\n    def test_b(capsys): assert f(3) == 4",
                "TestB.test_b asks for capsys",
            ),
            (
                "class TestB:\n    class TestC:\n        def test_b(self, n): assert f(3) == 4",
                "TestC.test_b asks for n",
            ),
            ("def check(candidate): assert candidate(3) == 4", "no entry_point says which"),
            ("if __name__ == '__main__':\n    assert f(3) == 4", "below `if __name__ == '__main__':` is not run"),
            ("def test_b(): assert f(3) == 4\ndef test_b(): assert f(1) == 2", "test_b is there twice"),
            (
                "import unittest\nclass B(unittest.TestCase):\n    def test_a(self): self.assertEqual(f(1), 2)\n"
                "    @unittest.expectedFailure\n    def test_b(self): self.assertEqual(f(3), 4)",
                "is not to pass",
            ),
            ("def test_b():\n    yield\n    assert f(3) == 4", "test_b yields"),
            (
                "import unittest\nclass B(unittest.TestCase):\n    def test_a(self): self.assertEqual(f(1), 2)\n"
                "    @unittest.skip('later')\n    def test_b(self): self.assertEqual(f(3), 4)",
                "test_b",
            ),
        ):
            with self.subTest(part=part):
                failure = self.judged(f"{wrong}\ndef g(): pass", trivial + part)["failures"][0]
                self.assertIn(told, failure["text"])
                self.assertTrue(failure["faulty"])

    def test_what_can_be_called_without_a_fixture_is_called(self) -> None:
        right, wrong = "def f(x): return x + 1", "def f(x): return x + 1 if x != 3 else 0"
        trivial = "def test_a(): assert f(1) == 2\n"
        for part in (
            "def test_b(n=3): assert f(n) == 4",
            "def test_b(*, n=3): assert f(n) == 4",
            "def test_b(*given, **named): assert f(3) == 4",
            "from unittest.mock import patch\n@patch('builtins.print')\ndef test_b(mocked): assert f(3) == 4",
            "import functools\n@functools.lru_cache\ndef test_b(): assert f(3) == 4",
            "import functools\ndef test_of(n): assert f(n) == 4\ntest_b = functools.partial(test_of, 3)\ndel test_of",
            "class TestB:\n    @staticmethod\n    def test_b(): assert f(3) == 4",
            "class TestB:\n    @classmethod\n    def test_b(cls): assert f(3) == 4",
            "class TestB:\n    def test_b(self, n=3): assert f(n) == 4",
            "class TestB:\n    class TestC:\n        def test_b(self): assert f(3) == 4",
            "class Base:\n    def test_b(self): assert f(3) == 4\nclass TestB(Base): pass",
            "import unittest\nclass Base(unittest.TestCase):\n    def setUp(self): self.n = 3\n"
            "class B(Base):\n    def test_b(self): self.assertEqual(f(self.n), 4)",
        ):
            with self.subTest(part=part):
                self.assertPasses(right, trivial + part)
                self.assertFails(wrong, trivial + part, "0")

    def test_a_check_is_called_however_it_takes_the_function_in_question(self) -> None:
        right, wrong = "def f(x): return x + 1", "def f(x): return x + 1 if x != 3 else 0"
        trivial = "def test_a(): assert f(1) == 2\n"
        for check in (
            "def check(candidate): assert candidate(3) == 4",
            "def check(candidate, n=3): assert candidate(n) == 4",
            "def check(*given): assert given[0](3) == 4",
            "def check(candidate=None): assert candidate(3) == 4",
        ):
            with self.subTest(check=check):
                self.assertPasses(right, trivial + check, entry_point="f")
                self.assertFails(wrong, trivial + check, "0", entry_point="f")
        for helper in ("def check(x, expected): assert f(x) == expected", "def check(): pass"):
            self.assertPasses(right, trivial + helper, entry_point="f")

    def test_a_case_whose_tests_were_skipped_or_passed_against_expectation_has_not_passed(self) -> None:
        for how in ("unittest.skip('later')", "unittest.expectedFailure"):
            test = (
                "import unittest\nf(1)\nclass A(unittest.TestCase):\n"
                f"    @{how}\n    def test_a(self): self.assertEqual(f(1), 2)"
            )
            failure = self.judged("def f(x): return x + 1", test)["failures"][0]
            self.assertIn("is skipped, or is not to pass", failure["text"])
            self.assertTrue(failure["faulty"])

    def test_a_failure_tells_the_line_and_what_the_last_call_gave(self) -> None:
        why = self.why("def f(x): return x + 1", "x = 1\nassert f(x) == 3, 'not three'")
        self.assertEqual(why, "line 2: assert f(x) == 3, 'not three': not three; f(1) gave 2")
        self.assertFails(
            "def f(x): return [][x]", "f(1)", "IndexError: list index out of range; f(1) raised IndexError"
        )

    def test_all_tests_are_counted(self) -> None:
        report = self.judged("def f(x): return x", "assert f(1) == 1", "assert f(1) == 2", "assert f(3) == 3")
        self.assertEqual((report["passed"], report["total"], report["error"]), (2, 3, None))
        self.assertEqual([failure["index"] for failure in report["failures"]], [1])

    def test_a_test_that_exits_hangs_breaks_or_tests_nothing_is_a_failure_that_says_so(self) -> None:
        code = "def f(x): return x"
        self.assertFails(code, "f(1)\nimport sys\nsys.exit(0)", "ended its process")
        self.assertFails(code, "f(1)\nimport os\nos._exit(3)", "ended its process")
        self.assertFails(code, "f(1)\nwhile True: pass", "took too long", total_s=1.0)
        self.assertFails(code, "assert f(1 == 1", "not Python")
        self.assertFails(code, "f(1)\nnowhere", "NameError")
        self.assertFails(code, "", "calls nothing")
        for test, faulty in (("assert f(1 == 1", True), ("assert 1", True), ("assert f(1) == 7", False)):
            self.assertEqual([one["faulty"] for one in self.judged(code, test)["failures"]], [faulty], test)
        self.assertFails("import math\n" + code, "assert math.gcd(4, 6) == 2", "calls nothing")
        self.assertPasses("LIMIT = 7\n" + code, "assert LIMIT == 7")
        self.assertFails(code, "def helper():\n    assert f(1) == 2", "calls nothing")

    def test_what_tells_that_a_test_was_cut_off_is_not_cut_off_itself(self) -> None:
        told = ClientTest._told

        def slowly(test: ClientTest, error: BaseException) -> str:
            signal.raise_signal(signal.SIGALRM)
            return told(test, error)

        with unittest.mock.patch.object(ClientTest, "_told", slowly):
            self.assertFails("def f(x): return x", "f(1)\nwhile True: pass", "took too long", total_s=1.0)

    def test_a_failure_whose_own_text_hangs_or_breaks_is_one_all_the_same(self) -> None:
        for how in ("1 / 0", "while True: pass"):
            own = f"class Wrong(AssertionError):\n    def __str__(self):\n        {how}\nif f(1) != 2: raise Wrong"
            self.assertFails("def f(x): return x", own, "what it says cannot be told", total_s=0.2)

    def test_a_text_that_waits_in_code_that_is_not_the_tests_is_cut_off_too(self) -> None:
        waiting = "import threading\nclass Wrong({}):\n    __str__ = threading.Event().wait\nif f(1) != 2: raise Wrong"
        made = "exec('class Wrong({}):\\n  def __str__(self):\\n    while True: pass')\nif f(1) != 2: raise Wrong"
        for own in (waiting, made):
            for kind in ("AssertionError", "Exception"):
                with self.subTest(own=own, kind=kind):
                    self.assertFails("def f(x): return x", own.format(kind), "cannot be told", total_s=0.2)

    def test_a_test_that_asserts_nothing_is_passed_by_nobody_and_is_the_tests_fault(self) -> None:
        code = "def f(x): return 0"
        for test in ("f(1) == 2", "print(f(1))", "def test_a():\n    f(1) == 2", "assert (f(1) == 2, 'two')"):
            with self.subTest(test=test):
                failure = self.judged(code, test)["failures"][0]
                self.assertEqual((failure["text"], failure["faulty"]), ("the test asserts nothing", True))
        self.assertFails(code, "if f(1) != 2:\n    raise ValueError", "ValueError")
        self.assertFails(code, "import sys\nif f(1) != 2: sys.exit(1)", "ended its process")
        self.assertPasses(code, "if f(1) != 0:\n    raise ValueError")

    def test_a_module_that_a_test_wants_and_nobody_has_is_the_tests_fault(self) -> None:
        failure = self.judged("def f(x): return x", "from solution import g\nassert f(1) == 1")["failures"][0]
        self.assertIn("No module named 'solution'", failure["text"])
        self.assertTrue(failure["faulty"])
        failure = self.judged("def f(x): return x", "from math import f\nassert f(1) == 1")["failures"][0]
        self.assertIn("cannot import name 'f'", failure["text"])
        self.assertTrue(failure["faulty"])
        failure = self.judged("def f(x):\n    import nowhere", "assert f(1) == 1")["failures"][0]
        self.assertFalse(failure["faulty"])

    def test_what_a_test_imports_as_if_from_the_programs_file_is_the_programs(self) -> None:
        code = (
            "import math\nresult = 7\ndef f(x): return x + 1\ndef g(x): return 2 * x\ndef is_close(a, b): return True"
        )
        for test in (
            "from solution import f\nassert f(1) == {}",
            "from solution import *\nassert f(1) == {}",
            "from your.module import (f, g)\nassert f(g(1)) - 1 == {}",
            "from .solution import f\nassert f(1) == {}",
            "import math\nfrom solution import f as plus\nassert plus(1) == math.floor({})",
            "def test_f():\n    from solution import f\n    assert f(1) == {}",
            "from solution import f\nfrom solution import g\nresult = f(1)\nassert result == {} != g(2)",
            "from solution import result, f\nf(1)\nassert result - 5 == {}",
        ):
            for entry_point in (None, "f"):
                self.assertPasses(code, test.format(2), entry_point=entry_point)
                self.assertFails(code, test.format(3), "does not hold", entry_point=entry_point)
        for test in (
            "from nowhere import h\nassert f(1) == 2",
            "from helpers import is_close\nassert is_close(f(1), 9)",
            "from helpers import is_close\nassert is_close(candidate(1), 9)",
            "from helpers import is_close\ndef check(candidate):\n    assert is_close(candidate(1), 9)",
            "from helpers import is_close\nfrom solution import f\nassert is_close(f(1), 9)",
            "from helpers import f, h\nassert f(1) == 2",
            "import nowhere\nfrom solution import f\nassert f(1) == 2",
        ):
            failure = self.judged(code, test, entry_point="f")["failures"][0]
            self.assertIn("No module named", failure["text"], test)
            self.assertTrue(failure["faulty"], test)

    def test_a_test_cannot_swallow_that_the_program_is_gone(self) -> None:
        code = "import os\ndef f(x): os._exit(0)"
        self.assertFails(code, "try:\n    f(1)\nexcept BaseException:\n    pass", "it ended with status 0")

    def test_a_program_that_died_in_one_test_is_there_again_for_the_next(self) -> None:
        code = "import os\ndef f(x):\n    if x == 0: os._exit(1)\n    return x"
        report = self.judged(code, "assert f(0) == 0", "assert f(1) == 1")
        self.assertEqual((report["passed"], report["failures"][0]["index"]), (1, 0))

    def test_builtin_exceptions_and_the_programs_own_can_be_expected(self) -> None:
        code = (
            "import json\n"
            "class Bad(ValueError):\n"
            "    pass\n"
            "def f(x):\n"
            "    if x: raise Bad('no', x)\n"
            "    json.loads('{')"
        )
        self.assertPasses(
            code, "try:\n    f(1)\nexcept Bad as e:\n    assert e.args == ('no', 1)\nelse:\n    assert False"
        )
        self.assertPasses(code, "try:\n    f(1)\nexcept ValueError as e:\n    pass\nelse:\n    assert False")
        self.assertPasses(
            code, "import json\ntry:\n    f(0)\nexcept json.JSONDecodeError: pass\nelse:\n    assert False"
        )
        self.assertFails(code, "try:\n    f(1)\nexcept KeyError: pass")

    def test_functions_given_as_arguments_are_called_back(self) -> None:
        code = "def f(g, xs): return [g(x) for x in xs]\ndef h(g): return g(g)\ndef one(x): return 1"
        self.assertPasses(
            code, "seen = []\nassert f(lambda x: seen.append(x) or x + 1, [1, 2]) == [2, 3]\nassert seen == [1, 2]"
        )
        self.assertPasses(
            code, "assert f(str, [1]) == ['1'] and f(one, [5]) == [1] and f(lambda x: one(x) + 1, [3]) == [2]"
        )
        self.assertPasses(code, "try:\n    f(lambda x: 1 // x, [0])\nexcept ZeroDivisionError: pass\nelse: assert 0")
        self.assertFails(
            "def f(g):\n    try: g()\n    except AssertionError: pass",
            "def g(): assert False, 'within'\nf(g)",
            "within",
        )

    def test_arguments_that_the_program_changes_are_changed_for_the_test(self) -> None:
        code = "def f(x):\n    x.sort()\n    x[0].append(7)\ndef g(d, *, s): d['k'] = 1; s.add(2)"
        self.assertPasses(code, "x = [[3], [1]]\ninner = x[1]\nf(x)\nassert x == [[1, 7], [3]]")
        self.assertPasses(code, "d, s = {}, {1}\ng(d, s=s)\nassert d == {'k': 1} and s == {1, 2}")

    def test_an_object_of_the_tests_that_comes_back_is_not_asked_whether_it_is_a_number(self) -> None:
        tree = (
            "class TreeNode:\n    def __init__(self, *parts): pass\n    def __eq__(self, other): return True\n"
            "def depth(root): return root"
        )
        self.assertIsNotNone(self.why(tree, "assert depth(TreeNode(1, TreeNode(2))) == 2"))
        own = "class Solution:\n    def __eq__(self, other): return True\n    def add(self, a, b): return self"
        self.assertIsNotNone(self.why(own, "assert Solution().add(1, 2) == 3"))

    def test_a_program_cannot_end_the_loop_of_a_test(self) -> None:
        code = "def f(*args): raise StopIteration"
        self.assertIsNotNone(self.why(code, "assert all(map(lambda case: f(*case[0]) == case[1], [((1,), 2)]))"))

    def test_objects_of_the_programs_classes_work_as_they_would_there(self) -> None:
        code = (
            "import dataclasses, collections, enum\n"
            "class Stack(list):\n    def push(self, x): self.append(x)\n"
            "@dataclasses.dataclass\n"
            "class Point:\n"
            "    x: int\n"
            "    y: int\n"
            "    def __add__(self, o): return Point(self.x + o.x, self.y + o.y)\n"
            "class Money:\n"
            "    def __init__(self, n): self.n = n\n"
            "    def __eq__(self, o): return self.n == getattr(o, 'n', o)\n"
            "    def __mul__(self, k): return Money(self.n * k)\n    def __len__(self): return self.n\n"
            "    def __enter__(self): return self\n    def __exit__(self, *a): self.n = 0\n"
            "Pair = collections.namedtuple('Pair', 'a b')\nclass Color(enum.Enum):\n    RED = 1\n"
            "class Node:\n    def __init__(self, v, next=None): self.v, self.next = v, next\n"
            "def total(node):\n    return node.v + total(node.next) if node else 0\n"
            "def numbers(n):\n    yield from range(n)\n"
            "def pair(): return Pair(1, 2)\ndef red(): return Color.RED\n"
        )
        for test in (
            (
                "s = Stack()\n"
                "s.push(1)\n"
                "s.push(2)\n"
                "assert s == [1, 2] and len(s) == 2 and s[-1] == 2 and list(s) == [1, 2]"
            ),
            "p = Point(1, 2) + Point(3, 4)\nassert p == Point(4, 6) and p.x == 4 and repr(p) == 'Point(x=4, y=6)'",
            "p = Point(1, 2)\np.x = 5\nassert p.x == 5 and isinstance(p, Point) and not hasattr(p, 'z')",
            "assert Money(3) * 2 == 6 and len(Money(3)) == 3 and bool(Money(0)) is False",
            "with Money(3) as m:\n    assert m.n == 3\nassert m.n == 0",
            "assert pair() == (1, 2) and pair().a == 1 and (1, 2) == pair()",
            "assert red() is Color.RED and red() == Color.RED and Color(1) == red()",
            "assert total(Node(1, Node(2))) == 3",
            (
                "class Node:\n"
                "    def __init__(self, v, next=None): self.v, self.next = v, next\n"
                "assert total(Node(1, Node(2))) == 3"
            ),
            "assert list(numbers(3)) == [0, 1, 2] and next(numbers(1)) == 0 and sum(numbers(4)) == 6",
        ):
            self.assertPasses(code, test)

    def test_async_functions_can_be_awaited(self) -> None:
        code = "async def f(x): return x + 1"
        self.assertPasses(code, "import asyncio\nassert asyncio.run(f(1)) == 2")
        self.assertFails(code, "import asyncio\nassert asyncio.run(f(1)) == 3")

    def test_an_entry_point_that_is_missing_is_told(self) -> None:
        self.assertFails(
            "def g(x): return x", "assert f(1) == 1", "entry_point: it defines no function 'f'", entry_point="f"
        )

    def test_what_a_program_imported_is_there_for_its_tests(self) -> None:
        self.assertPasses(
            "import math\nfrom collections import Counter\ndef f(x): return x",
            "assert f(1) == math.gcd(1, 2) and Counter('a')['a'] == 1",
        )


# Six small tasks: what is right, what is wrong in it, and a test that tells.
TASKS = (
    (
        (
            "def f(words):\n"
            "    seen, kept = set(), []\n"
            "    for word in words:\n"
            "        if word.lower() not in seen:\n"
            "            seen.add(word.lower())\n"
            "            kept.append(word)\n"
            "    return kept"
        ),
        (
            ("word.lower() not in", "word not in"),
            ("kept.append(word)", "kept.append(word.lower())"),
            ("return kept", "return kept[:2]"),
            ("return kept", "return words"),
        ),
        "def check(c):\n    assert c(['a', 'A', 'b', 'C']) == ['a', 'b', 'C']\n    assert c([]) == []",
    ),
    (
        "def f(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
        (("return a", "return b"), ("range(n)", "range(n - 1)"), ("a + b", "a + b + 1"), ("return a", "return str(a)")),
        "assert [f(n) for n in range(7)] == [0, 1, 1, 2, 3, 5, 8]",
    ),
    (
        (
            "def f(text):\n"
            "    depth = 0\n"
            "    for c in text:\n"
            "        depth += {'(': 1, ')': -1}.get(c, 0)\n"
            "        if depth < 0:\n"
            "            return False\n"
            "    return depth == 0"
        ),
        (
            ("depth < 0", "depth < -1"),
            ("return depth == 0", "return True"),
            ("return depth == 0", "return depth"),
            ("return False", "return None"),
        ),
        "def check(c):\n    assert c('(a)()') is True\n    assert c(')(') is False\n    assert c('((') is False",
    ),
    (
        (
            "def f(xs):\n"
            "    xs = sorted(xs)\n"
            "    m = len(xs) // 2\n"
            "    return xs[m] if len(xs) % 2 else (xs[m - 1] + xs[m]) / 2"
        ),
        (("sorted(xs)", "list(xs)"), ("/ 2", "// 2"), ("xs[m - 1]", "xs[m - 2]"), ("xs[m] if", "xs[0] if")),
        "assert f([3, 1, 2]) == 2\nassert abs(f([4, 1, 2, 9]) - 3.0) < 1e-9\nassert abs(f([1, 2]) - 1.5) < 1e-9",
    ),
    (
        (
            "def f(a, b):\n"
            "    common = {}\n"
            "    for k in a:\n"
            "        if k in b:\n"
            "            common[k] = a[k] + b[k]\n"
            "    return common"
        ),
        (
            ("a[k] + b[k]", "a[k]"),
            ("if k in b", "if True"),
            ("return common", "return list(common)"),
            ("for k in a", "for k in ()"),
        ),
        "assert f({1: 2, 'x': 3}, {1: 5, 'y': 1}) == {1: 7}",
    ),
    (
        (
            "class Account:\n"
            "    def __init__(self):\n"
            "        self.held = 0\n"
            "    def add(self, n):\n"
            "        if n < 0:\n"
            "            raise ValueError(n)\n"
            "        self.held += n\n"
            "        return self"
        ),
        (
            ("raise ValueError(n)", "raise KeyError(n)"),
            ("raise ValueError(n)", "return self"),
            ("+= n", "= n"),
            ("return self", "return None"),
        ),
        (
            "a = Account().add(2).add(3)\n"
            "assert a.held == 5\n"
            "try:\n"
            "    a.add(-1)\n"
            "    assert False\n"
            "except ValueError:\n"
            "    pass"
        ),
    ),
)


class TasksTest(JudgeTest):
    def test_right_programs_pass_and_each_known_wrong_one_fails(self) -> None:
        for right, mutations, test in TASKS:
            self.assertPasses(right, test)
            for old, new in mutations:
                self.assertIn(old, right)
                self.assertFails(right.replace(old, new), test)


class RunsTest(JudgeTest):
    def test_what_a_program_prints_is_compared_without_white_space_at_the_ends(self) -> None:
        code = "a, b = map(int, input().split())\nprint(a + b, ' ')\nprint()"
        report = self.stdio(code, ("1 2\n", "3"), ("5 5", "10\n\n"), ("1 1", "2.0"), ("1 1", "3"))
        self.assertEqual((report["passed"], report["total"]), (2, 4))
        self.assertEqual(report["failures"][1], {"index": 3, "text": "it printed '2', not '3'", "faulty": False})

    def test_what_a_program_prints_counts_beside_tests_of_its_functions(self) -> None:
        code = "def f(x): return x + 1\nif __name__ == '__main__':\n    print(f(int(input())))"
        pairs = [{"input": "1", "output": "2"}, {"input": "1", "output": "3"}]
        tests = ["assert f(1) == 2", "assert f(1) == 3"]
        report = judge(code, {**TIGHT, "mode": "tests", "tests": tests, "pairs": pairs})
        self.assertEqual((report["passed"], report["total"]), (2, 4))
        self.assertEqual([failure["index"] for failure in report["failures"]], [1, 3])

    def test_a_program_that_fails_after_it_printed_has_not_passed(self) -> None:
        for code, said in (("print(1)\n1 / 0", "ZeroDivisionError"), ("print(1)\nimport sys; sys.exit(3)", "status 3")):
            report = self.stdio(code, ("", "1"))
            self.assertEqual(report["passed"], 0)
            self.assertIn(said, report["failures"][0]["text"])

    def test_a_program_is_its_main_module_and_ends_as_one(self) -> None:
        code = (
            "import atexit, sys, threading, time\n"
            "if __name__ == '__main__':\n"
            "    atexit.register(print, 'c')\n"
            "    threading.Thread(target=lambda: print('b')).start()\n"
            "    sys.exit(0)"
        )
        self.assertEqual(self.stdio(code, ("", "b\nc"))["passed"], 1)

    def test_programs_that_hang_or_print_without_end_fail(self) -> None:
        self.assertIn("too long", self.stdio("while True: pass", ("", ""), total_s=0.2)["failures"][0]["text"])
        self.assertIn(
            "too long", self.stdio("import time\ntime.sleep(100)", ("", ""), total_s=0.2)["failures"][0]["text"]
        )
        report = self.stdio("while True: print('x' * 1000)", ("", "x"))
        self.assertEqual(report["failures"], [{"index": 0, "text": "it printed too much", "faulty": False}])
        self.assertEqual(self.program("while True: print('x' * 1000)")["keys"], ["!output"])

    def test_a_long_input_that_nobody_reads_hinders_nothing(self) -> None:
        self.assertEqual(self.stdio("print(1)", ("x" * 3_000_000, "1"))["passed"], 1)
        self.assertEqual(self.stdio("print(len(input()))", ("x" * 3_000_000, "3000000"))["passed"], 1)

    def test_a_program_that_leaves_something_running_is_judged_by_what_it_printed(self) -> None:
        code = "import os, time\nprint(1, flush=True)\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)"
        report = self.stdio(code, ("", "1"), total_s=0.2)
        self.assertEqual(report["passed"], 1)

    def test_the_key_of_a_program_is_what_it_printed_or_how_it_failed(self) -> None:
        self.assertEqual(self.program("print('a ')")["keys"], self.program("import sys\nsys.stdout.write('a')")["keys"])
        self.assertNotEqual(self.program("print('a')")["keys"], self.program("print('b')")["keys"])
        self.assertEqual(self.program("print('a')\n1 / 0")["keys"], ["!status 1"])
        self.assertEqual(self.program("while True: pass", total_s=0.2)["keys"], ["!timeout"])
        self.assertEqual(self.program("print('a'\n")["error"]["kind"], "syntax")

    def test_a_program_gives_a_key_for_each_text_that_it_reads(self) -> None:
        code = "a, b = map(int, input().split())\nprint(a + b)\nassert a > 0"
        keys = self.program(code, inputs=["1 2\n", "2 1\n", "0 2\n", "7\n"])["keys"]
        self.assertEqual(keys, ["(s'3',0)", "(s'3',0)", "!status 1", "!status 1"])

    def test_no_text_keeps_a_program_from_the_others_and_the_time_is_for_all(self) -> None:
        code = "n = int(input())\nwhile n == 2: pass\nprint(n)"
        keys = self.program(code, inputs=["1", "2", "3"], total_s=5.0, waits_s=30.0)["keys"]
        self.assertEqual(keys, ["(s'1',0)", "!timeout", "(s'3',0)"])
        began_s = time.process_time()
        report = self.program("input()\nwhile True: pass", inputs=["1"] * 20, total_s=0.8)
        self.assertEqual(report["keys"], ["!timeout"] * 20, report["error"])
        self.assertLess(time.process_time() - began_s, 2)
        keys = self.program("print('a'", inputs=["1"] * 3)["keys"]
        self.assertEqual(keys, ["!syntax"] * 3)

    def test_a_program_that_has_nothing_to_read_is_told_from_one_that_fails(self) -> None:
        for code in ("print(int(input()))", "import sys\na, b = sys.stdin.read().split()"):
            self.assertEqual(self.program(code)["keys"], ["!no input"], code)
            self.assertEqual(self.program(code, inputs=["x"])["keys"], ["!status 1"], code)
        self.assertEqual(self.program("1 / 0")["keys"], ["!status 1"])


@unittest.skipUnless(shutil.which("bash"), "no bash here")
class BashTest(JudgeTest):
    def test_a_script_gives_a_key_for_each_text_that_it_reads(self) -> None:
        report = self.program("read a b\necho $((a + b))", "bash", inputs=["1 2\n", "5 5\n"])
        self.assertEqual(report["keys"], ["(s'3',0)", "(s'10',0)"])

    def test_scripts_are_checked_and_run(self) -> None:
        report = self.stdio("read a b\necho $((a + b))", ("1 2\n", "3"), ("2 2\n", "5"), language="bash")
        self.assertEqual((report["passed"], len(report["failures"])), (1, 1))
        report = self.program("echo started >ran\nif then", "bash")
        self.assertEqual((report["error"]["kind"], Path("ran").exists()), ("syntax", False))
        self.assertIn("line 2", report["error"]["text"])
        self.assertEqual(self.program("exit 3", "bash")["keys"], ["!status 3"])
        self.assertEqual(self.program("kill -9 $$", "bash")["keys"], ["!status -9"])
        self.assertEqual(self.program("kill -9 $PPID; echo yes", "bash")["error"]["kind"], "crash")

    def test_there_is_nothing_to_call(self) -> None:
        report = judge("f() { echo 1; }", {"mode": "outputs", "language": "bash", "inputs": ["[]"]})
        self.assertEqual(report["error"]["kind"], "entry_point")


@unittest.skipUnless(shutil.which("node"), "no node here")
class JavaScriptTest(JudgeTest):
    def setUp(self) -> None:
        super().setUp()
        self.slow = {"per_call_s": 0.5, "total_s": 4.0}  # node alone takes some 50 ms to start

    def js(self, code: str, *inputs: str, **more: Any) -> list[str]:
        return self.keys(code, *inputs, language="javascript", **{**self.slow, **more})

    def test_values_have_the_keys_that_python_gives_them(self) -> None:
        code = (
            "const f = x => ({a: [1, 2.5, 'é😀', null, true], b: {c: undefined, d: NaN},"
            " m: new Map([[[1], 2]]), s: new Set([3, [4]]),"
            " g: 2n ** 70n, i: -1 / 0, e: [...'ab'], n: undefined, x})[x];"
        )
        inputs = [f"[{name!r}]" for name in ("a", "b", "m", "s", "g", "i", "e", "n", "x")]
        self.assertEqual(
            self.js(code, *inputs),
            [
                "[1,2.5,s'é😀',None,1]",
                "{:s'd':nan}",
                "{:(1):2}",
                "{(4),3}",
                str(1 << 70),
                "-inf",
                "[s'a',s'b']",
                "None",
                "s'x'",
            ],
        )

    def test_functions_of_every_form_are_found(self) -> None:
        for code in (
            "function f(a, b) { return a + b; }",
            "const f = (a, b) => a + b;",
            "async function f(a, b) { await null; return a + b; }",
            "module.exports = {f: (a, b) => a + b};",
            "export function f(a, b) { return a + b; }",
            "import fs from 'fs';\nfunction f(a, b) { return a + b; }",
            "module.exports = function (a, b) { return a + b; };",
            "module.exports = (a, b) => a + b;",
            "f = function (a, b) { return a + b; };",
            "(function () { globalThis.f = (a, b) => a + b; })();",
            "const [f] = [(a, b) => a + b];",
            "function f(a, b) { return a + b; }\nconsole.log(f(1, 2));\nprocess.exit(0);",
            "'use strict';\nlet f = function (a, b) { return a + b; };\nif (require.main === module) process.exit(3);",
        ):
            self.assertEqual(self.js(code, "[1, 2]", "['a', 'b']", entry_point="f"), ["3", "s'ab'"], code)
        for code in ("const a = 1;", "function g() { }\nmodule.exports = g;", "let f = 3;"):
            self.assertEqual(self.js(code, "[1, 2]", entry_point="f"), ["!entry_point"], code)
        self.assertEqual(self.js("const a = 1;", "['a']", entry_point="isNaN"), ["!entry_point"])
        self.assertEqual(self.js("function f() { }\nprocess.exit(2);", "[1]", entry_point="f"), ["!crash"])

    def test_a_function_that_never_gives_anything_is_known_by_what_it_prints(self) -> None:
        show = "function f(n) { for (let i = 0; i < n; i++) console.log(i); }"
        self.assertEqual(self.js(show, "[2]", "[0]"), ["(s'<printed>',s'0\\n1')", "None"])
        for code in (
            "const f = n => { for (let i = 0; i < n; i++) process.stdout.write(`${i}\\n`); };",
            "const write = process.stdout.write.bind(process.stdout);\nasync function f(n) { write('0\\n1'); }",
            "const f = n => { process.stdout.write(Buffer.from('0\\n1\\n')); return null; };",
        ):
            self.assertEqual(self.js(code, "[2]", entry_point="f"), ["(s'<printed>',s'0\\n1')"], code)
        told = "const f = n => { console.log('looking'); return n > 1 ? n : undefined; };"
        self.assertEqual(self.js(told, "[2]", "[0]"), ["2", "None"])
        changes = "const f = x => { console.log(x); x.sort(); };"
        self.assertEqual(self.js(changes, "[[2, 1]]"), ["(s'<changed>',[[1,2]])"])
        self.assertEqual(*self.js("const f = n => { console.log('x'.repeat(n)); };", "[20000]", "[30000]"))

    def test_faults_of_programs_are_told(self) -> None:
        for code, kind, said in (
            ("const a = 1;\nfunction f( {", "syntax", "(line 2)"),
            ("const a = 1;\nnull.x;", "load", "(line 2)"),
            ("function g() {}", "entry_point", "'f'"),
            ("process.exit(4)", "crash", "status 4"),
        ):
            report = judge(
                code, {**self.slow, "mode": "outputs", "language": "javascript", "inputs": ["[]"], "entry_point": "f"}
            )
            self.assertEqual((report["error"]["kind"], report["keys"]), (kind, [f"!{kind}"]))
            self.assertIn(said, report["error"]["text"])

    def test_calls_that_throw_hang_or_exit_cost_only_their_own_result(self) -> None:
        code = (
            "function f(x) { if (x === 1) throw new RangeError('x'); while (x === 2);"
            " if (x === 3) process.exit(0); return x; }"
        )
        said = self.js(code, "[0]", "[1]", "[2]", "[3]", "[4]", per_call_s=0.1)
        self.assertEqual(said, ["0", "!RangeError", "!timeout", "!crash", "4"])

    def test_a_call_that_has_waited_for_its_turn_is_not_late(self) -> None:
        # As if the machine had run others: the first call takes its time of the clock, and none of the processor's.
        code = (
            "let waits = true;\nfunction f(x) { x.push(2); if (!waits) return x; waits = false;"
            " Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 60000); }"
        )
        self.assertEqual(self.js(code, "[[1]]", per_call_s=0.2), ["[1,2]"])

    def test_what_a_call_has_printed_before_it_is_begun_anew_is_not_printed_twice(self) -> None:
        code = (
            "let waits = true;\nfunction f(x) { console.log(x); if (!waits) return; waits = false;"
            " Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 60000); }"
        )
        self.assertEqual(self.js(code, "[7]", per_call_s=0.2), ["(s'<printed>',s'7')"])

    def test_a_call_that_waits_each_time_is_late(self) -> None:
        code = "function f(x) { Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 60000); }"
        self.assertEqual(self.js(code, "[0]", per_call_s=0.1), ["!timeout"])

    def test_a_promise_that_never_comes_is_a_call_that_takes_too_long(self) -> None:
        self.assertEqual(
            self.js("const f = x => x ? new Promise(() => {}) : 7;", "[1]", "[0]", per_call_s=0.2), ["!timeout", "7"]
        )

    def test_tests_in_python_call_functions_in_javascript(self) -> None:
        more = {**self.slow, "language": "javascript"}
        report = self.judged(
            "const f = (xs, g) => xs.map(x => g ? g(x) : x + 1);\nfunction sorts(x) { x.sort(); }",
            "assert f([1, 2]) == [2, 3]",
            "assert f([1, 2]) == [2, 4]",
            "assert f([1], lambda x: x * 10) == [10]",
            "x = [2, 1]\nsorts(x)\nassert x == [1, 2]",
            **more,
        )
        self.assertEqual([failure["index"] for failure in report["failures"]], [1], report)

    def test_names_of_modules_and_of_what_is_large_stand_in_no_tests_way(self) -> None:
        code = (
            "const path = require('path');\nconst LARGE = 'x'.repeat(2e7);\nconst MANY = [...Array(1e6).keys()];\n"
            "const ring = {};\nring.ring = ring;\nconst f = x => path.basename(x);"
        )
        self.assertPasses(code, "assert f('a/b') == 'b'", language="javascript", entry_point="f", **self.slow)

    def test_hostile_programs_do_not_pass(self) -> None:
        for code in (
            "const f = x => ({valueOf: () => 9, toString: () => '9', equals: () => true});",
            "JSON.stringify = () => '[\"value\", 8, []]'; const f = x => 1;",
            "require('fs').writeSync(3, '[\"value\", 9, []]\\n'); const f = x => 1;",
            "const f = x => { process.kill(process.ppid, 'SIGKILL'); return 1; };",
            "Array.isArray = () => true; Object.prototype.toJSON = () => 9; const f = x => 1;",
        ):
            report = self.judged(code, SIMPLE, language="javascript", entry_point="f", total_s=1.5)
            self.assertEqual(report["passed"], 0, code)

    def test_programs_are_checked_and_run(self) -> None:
        code = "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number);\nconsole.log(a + b);"
        report = self.stdio(code, ("1 2", "3"), ("1 2", "4"), language="javascript", **self.slow)
        self.assertEqual((report["passed"], len(report["failures"])), (1, 1))
        report = self.program(code, "javascript", inputs=["1 2\n", "5 5\n"], **self.slow)
        self.assertEqual(report["keys"], ["(s'3',0)", "(s'10',0)"])
        report = self.program("require('fs').writeFileSync('ran', '');\nconst = 1;", "javascript", **self.slow)
        self.assertEqual((report["error"]["kind"], Path("ran").exists()), ("syntax", False))


class ReportTest(JudgeTest):
    def test_it_is_json_whatever_happens_and_never_a_success_by_mistake(self) -> None:
        for payload in (
            b"",
            b"[]",
            b"{}",
            b'{"mode": "other"}',
            b'{"mode": "tests", "tests": 7}',
            b'{"mode": "tests", "pairs": [{}]}',
        ):
            found: list[bytes] = []
            harness_main("def f(): pass", payload, found.append)
            report = json.loads(found[0])
            self.assertEqual((report["error"]["kind"], report["passed"]), ("judge", 0), payload)

    def test_a_fault_of_the_judges_own_is_told_from_one_of_the_programs(self) -> None:
        task = {"mode": "outputs", "inputs": ["[1]"], "entry_point": "f"}
        processes, broken = "gateway.verify.harness.processes", Ended("no process could be started: no room")
        with unittest.mock.patch(f"{processes}.Nursery.start", side_effect=broken):
            for mode in ("outputs", "tests", "program"):
                for language in ("python", "javascript"):
                    more = {"mode": mode, "language": language, "tests": [SIMPLE]}
                    error = judge("def f(x): return x", {**TIGHT, **task, **more})["error"]
                    self.assertEqual((error["kind"], error["text"]), ("judge", broken.args[0]), more)
        with unittest.mock.patch("gateway.verify.harness.judge.Judging.outputs", side_effect=MemoryError):
            report = judge("def f(x): return x", {**TIGHT, **task})
            self.assertEqual((report["error"]["kind"], report["keys"]), ("judge", ["!judge"]))
        found: list[bytes] = []
        with unittest.mock.patch("gateway.verify.harness.judge.Nursery", side_effect=BlockingIOError(11, "no room")):
            harness_main("def f(): pass", json.dumps(task).encode(), found.append)
        self.assertEqual(json.loads(found[0])["error"]["kind"], "judge")

    def test_a_program_that_ends_who_watches_it_has_crashed(self) -> None:
        code = "import os, signal, time\ndef f(x): os.kill(os.getppid(), signal.SIGKILL), time.sleep(9)"
        for mode in ("outputs", "tests"):
            task = {**TIGHT, "mode": mode, "inputs": ["[1]", "[2]"], "tests": [SIMPLE, SIMPLE], "entry_point": "f"}
            report = judge(code, task)
            self.assertEqual((report["error"]["kind"], report["passed"]), ("crash", 0), report)
            self.assertEqual(set(report["keys"]), {"!crash"})

    def test_its_files_joined_are_one_program_that_needs_the_standard_library_only(self) -> None:
        judging = (
            "import sys\nnames = {'__name__': 'judge'}\nexec(compile(sys.argv[1], 'judge', 'exec'), names)\n"
            "names['harness_main'](sys.argv[2], sys.argv[3].encode(), sys.stdout.buffer.write)"
        )
        task = {"mode": "tests", "tests": [SIMPLE, "assert f(3) == 8"], "total_s": 9}
        given = [harness_sources(HARNESSES)["judge"], "def f(x): return x * x", json.dumps(task)]
        command = [sys.executable, "-I", "-S", "-B", "-c", judging, *given]
        ran = subprocess.run(command, capture_output=True, check=True)
        self.assertEqual((json.loads(ran.stdout)["passed"], ran.stderr), (1, b""))

    def test_no_process_is_left_when_the_judge_returns(self) -> None:
        before = time.monotonic()
        self.keys("def f(): return 1", "[]")
        self.assertRaises(ChildProcessError, os.waitpid, -1, os.WNOHANG)
        self.assertGreater(time.monotonic(), before)


if __name__ == "__main__":
    unittest.main()
