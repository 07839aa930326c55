"""What runs inside a jail, part by part: its text, its filter of system calls, the reports of a harness."""

from __future__ import annotations

import ast
import collections
import struct
import sys
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from gateway.verify.sandbox.texts import harness_sources, inside_command, inside_text, join

HARNESSES = Path(__file__).resolve().parents[2] / "gateway" / "verify" / "harness"
LINUX = sys.platform.startswith("linux")
ALLOWED, EPERM, ENOSYS, KILLED = 0x7FFF0000, 0x50001, 0x50026, 0x80000000
X86_64, AARCH64 = 0xC000003E, 0xC00000B7


class TextTest(unittest.TestCase):
    def test_what_runs_inside_is_ascii_and_fits_an_argument(self) -> None:
        for text in (inside_text(), inside_text("zygote.py")):
            self.assertTrue(text.isascii())  # an argument, whatever the locale
            self.assertNotIn("import gateway", text)
            self.assertNotIn("from gateway", text)
            compile(text, "inside", "exec")
        for python in (sys.executable, "/another/python"):
            self.assertLess(max(map(len, inside_command(python, "/work"))), 128 * 1024)

    def test_joined_files_lose_their_imports_of_each_other_and_repeated_futures(self) -> None:
        first = '"""One."""\n\nfrom __future__ import annotations\n\nimport json\n\ndef f() -> int:\n    return 1\n'
        second = (
            "from __future__ import annotations\n\nfrom gateway.verify.harness.keys import f  # stands before\n"
            "from gateway.x import (\n    f,\n)\n\nVALUE = f()\n"
        )
        space: dict[str, Any] = {}
        exec(compile(join(first, second), "joined", "exec", dont_inherit=True), space)
        self.assertEqual(space["VALUE"], 1)

    def test_a_harness_has_the_files_that_it_needs_in_front_each_once(self) -> None:
        files = {
            "__init__": "",
            "keys": "KEY = 1\nMADE = []\nMADE.append('keys')\n",
            "wire": "from gateway.verify.harness.keys import KEY  # (in front)\nMADE.append('wire')\n",
            "judge": (
                "from gateway.verify.harness.wire import (  # in front\n    KEY,\n)\n"
                "from gateway.verify.harness.keys import KEY, MADE\n"
                "def harness_main(code, payload, report): return KEY\n"
            ),
            "other": "FAULT = 1 / 0\n",
        }
        with tempfile.TemporaryDirectory() as name:
            for stem, text in files.items():
                (Path(name) / f"{stem}.py").write_text(text)
            sources = harness_sources(Path(name))
        self.assertEqual(list(sources), ["judge"])
        space: dict[str, Any] = {}
        exec(sources["judge"], space)
        self.assertEqual((space["harness_main"]("", b"", None), space["MADE"]), (1, ["keys", "wire"]))

    def test_no_part_of_a_joined_text_takes_anothers_name(self) -> None:
        texts = {"inside": inside_text(), "zygote": inside_text("zygote.py"), **harness_sources(HARNESSES)}
        for text_name, text in texts.items():
            names = collections.Counter(name for node in ast.parse(text).body for name in bound(node))
            self.assertEqual([name for name, count in names.items() if count > 1], [], text_name)


def bound(node: ast.stmt) -> list[str]:
    """The names that a statement of a module defines; those it imports may be imported again."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    each = [one for target in targets for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [name.id for name in each if isinstance(name, ast.Name)]


def judged(program: bytes, machine: int, number: int, *arguments: int) -> int:
    """What the kernel would do with a call, by the rules of classic BPF as far as a filter uses them."""
    data = struct.pack("<IIQ6Q", number, machine, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    code = [struct.unpack_from("HBBI", program, at) for at in range(0, len(program), 8)]
    held, at = 0, 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == 0x06:
            return int(value)
        if operation == 0x20:
            held = struct.unpack_from("<I", data, value)[0]
            continue
        so = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[operation]
        at += if_true if so else if_false


@unittest.skipUnless(LINUX, "Linux's system calls")
class FilterTest(unittest.TestCase):
    def program(self, machine: str, sockets: bool = True) -> bytes:
        from gateway.verify.sandbox import kernel

        with mock.patch("os.uname", return_value=SimpleNamespace(machine=machine)):
            found = kernel.filter_program(sockets)
        assert found is not None
        return found

    def test_each_machine_has_its_own_numbers(self) -> None:
        for name, machine, ptrace, read, openat in (("x86_64", X86_64, 101, 0, 257), ("aarch64", AARCH64, 117, 63, 56)):
            program = self.program(name)
            self.assertEqual(judged(program, machine, ptrace), EPERM)
            self.assertEqual(judged(program, machine, read), ALLOWED)
            self.assertEqual(judged(program, machine, openat), ALLOWED)
            self.assertEqual(judged(program, machine ^ 1, read), KILLED)
        self.assertEqual(judged(self.program("x86_64"), X86_64, 1 << 30), KILLED)
        self.assertEqual(judged(self.program("x86_64"), X86_64, 172), EPERM)  # iopl, which aarch64 has not

    def test_unknown_calls_are_not_there(self) -> None:
        for number in (435, 452, 500, 100_000):
            self.assertEqual(judged(self.program("aarch64"), AARCH64, number), ENOSYS)

    def test_processes_may_be_made_but_no_namespaces(self) -> None:
        for name, machine, clone in (("x86_64", X86_64, 56), ("aarch64", AARCH64, 220)):
            self.assertEqual(judged(self.program(name), machine, clone, 0x1200011), ALLOWED)  # fork
            self.assertEqual(judged(self.program(name), machine, clone, 0x3D0F00), ALLOWED)  # a thread
            for flag in (1 << 17, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30):
                self.assertEqual(judged(self.program(name), machine, clone, flag | 17), EPERM)

    def test_sockets_lead_to_programs_of_the_same_jail_or_there_are_only_pairs(self) -> None:
        for name, machine, socket in (("x86_64", X86_64, 41), ("aarch64", AARCH64, 198)):
            some, none = self.program(name), self.program(name, sockets=False)
            pair = 53 if name == "x86_64" else 199
            for family in range(50):
                unix = ALLOWED if family == 1 else EPERM
                self.assertEqual(judged(some, machine, socket, family), unix)
                self.assertEqual(judged(none, machine, socket, family), EPERM)
                self.assertEqual([judged(one, machine, pair, family) for one in (some, none)], [unix, unix])
            self.assertEqual(judged(none, machine, 42 if name == "x86_64" else 203), ALLOWED)  # connect

    def test_a_socket_cannot_have_more_room_than_it_has(self) -> None:
        for name, machine, setsockopt in (("x86_64", X86_64, 54), ("aarch64", AARCH64, 208)):
            program = self.program(name)
            refused = [option for option in range(80) if judged(program, machine, setsockopt, 5, 1, option) != ALLOWED]
            self.assertEqual(refused, [7, 26])  # SO_SNDBUF, SO_ATTACH_FILTER

    def test_others_limits_and_the_terminals_input_are_out_of_reach(self) -> None:
        program = self.program("x86_64")
        self.assertEqual(judged(program, X86_64, 302, 0, 7), ALLOWED)
        self.assertEqual(judged(program, X86_64, 302, 1, 7), EPERM)
        self.assertEqual(judged(program, X86_64, 16, 0, 0x5401), ALLOWED)
        self.assertEqual([judged(program, X86_64, 16, 0, request) for request in (0x5412, 0x541C)], [EPERM, EPERM])

    def test_another_machine_has_no_filter(self) -> None:
        with self.assertRaises(AssertionError):
            self.program("riscv64")


@unittest.skipUnless(LINUX, "what runs inside runs on Linux")
class ReportTest(unittest.TestCase):
    def test_the_last_whole_report_counts(self) -> None:
        from gateway.verify.sandbox.inside import last_report

        def framed(report: bytes) -> bytes:
            return len(report).to_bytes(8, "big") + report

        both = framed(b"one") + framed(b"second")
        self.assertEqual(last_report(b""), b"")
        self.assertEqual(last_report(both), b"second")
        for cut in range(1, len(framed(b"second"))):
            self.assertEqual(last_report(both[:-cut]), b"one")
        self.assertEqual(last_report(framed(b"one") + b"\xff" * 8), b"one")
