"""Level "bubblewrap": what every level must stand, as whoever runs the tests and as an ordinary user, and its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Optional
from unittest import mock

from gateway.verify.sandbox import bubblewrap
from gateway.verify.sandbox.bubblewrap import Bubblewrap
from gateway.verify.sandbox.job import Job, Run
from tests import escapes, sandboxing
from tests.sandboxing import HARNESSES, Jailed, descendants
from tests.support import ROOT, TIMEOUT_S, eventually

REQUIRED = os.environ.get("REQUIRE_SANDBOX") == "1"
ORDINARY = 12345  # a user who owns nothing
ALL_S = 120.0  # for all cases, as another user
SPARE = 2
PROCESSES = 4  # of a jail that waits: bwrap, and three of the supervisor's program
NEEDED = sum(1 << capability for capability in (5, 6, 7, 19))  # KILL, SETGID, SETUID, SYS_PTRACE
GATEWAY = """
import threading
from gateway.verify.sandbox.bubblewrap import Bubblewrap
from gateway.verify.sandbox.job import Job, Limits
level = Bubblewrap({})
assert level.probe() is None
job = Job("python", "import time; time.sleep(60)", limits=Limits(wall_s=60.0))
threading.Thread(target=level.open().run, args=(job,)).start()
level.refill()
print("started", flush=True)
"""


def make_bubblewrap() -> Bubblewrap:
    """The level, where it must work. Raises SkipTest where it need not."""
    why = "bubblewrap is for Linux" if not sys.platform.startswith("linux") else ""
    if not why and shutil.which("bwrap") is None:
        why = "bwrap is not installed"
    if why:
        raise AssertionError(why) if REQUIRED else unittest.SkipTest(why)
    return Bubblewrap(HARNESSES, spare=SPARE)


class Wrapped(Jailed):
    @classmethod
    def make_level(cls) -> Bubblewrap:
        return make_bubblewrap()

    @classmethod
    def settled(cls) -> None:
        cls.base = SPARE * PROCESSES
        eventually(lambda: len(descendants()) == cls.base)


class PlainTest(Wrapped, sandboxing.PlainCases):
    pass


class LimitTest(Wrapped, sandboxing.LimitCases):
    def test_the_work_directory_has_a_size(self) -> None:
        """The number of files in it counts as memory: see the escapes."""
        said = self.attack(
            "n = 0\ntry:\n    for i in range(99):\n        with open('f%d' % i, 'wb', 0) as f:\n"
            "            for j in range(4): n += f.write(b'x' * (1 << 20))\nexcept OSError: print(n >> 20)"
        )
        self.assertEqual(int(said.split()[0]), self.limits().disk_bytes >> 20)


class EscapeTest(Wrapped, escapes.EscapeCases):
    def test_what_watches_a_program_has_no_rights_but_those_it_needs(self) -> None:
        """To make the program nobody's, to kill it, to see what memory it uses: that is all that root leaves itself."""
        run = self.job("print([line.split()[1] for line in open('/proc/1/status') if line[:6] == 'CapEff'][0])")
        self.assertEqual(int(run.stdout, 16) & ~NEEDED, 0, run)

    def test_of_the_machine_only_its_programs_are_there(self) -> None:
        run = self.job("import os\nprint(*os.listdir('/'), *os.listdir('/etc'), sep='\\n')")
        shown = {path.parts[1] for path in bubblewrap._bound()} | {path.name for path in bubblewrap.TOP_FOLDERS}
        shown |= {Path(setting).name for setting in bubblewrap.SETTINGS} | {"dev", "etc", "proc", "tmp", "work"}
        self.assertLessEqual(set(run.stdout.decode().split()), shown)

    def test_an_interpreter_that_only_root_may_reach_runs_the_jobs_of_nobody(self) -> None:
        run = self.job("import os, json, socket\nprint(os.getuid())")
        self.assertEqual((run.stdout, run.stderr), (b"65534\n", b""))

    def test_shared_memory_has_a_size(self) -> None:
        self.attack(
            "try:\n    for i in range(9):\n"
            "        with open('/dev/shm/%d' % i, 'wb', 0) as f: f.write(bytes(1 << 20))\n"
            "    print('BREACH')\nexcept OSError: pass\n"
        )


class LevelTest(Wrapped):
    def test_a_jail_that_has_died_while_it_waited_is_not_used(self) -> None:
        for jail in self.level._jails._waiting:
            jail._process.kill()
            jail._process.wait()
        self.assertEqual(self.job("print(1)").stdout, b"1\n")

    def test_a_closed_level_opens_nothing_leaves_nothing_and_can_be_opened_again(self) -> None:
        self.settled()
        before = descendants()
        level = make_bubblewrap()
        self.assertIsNone(level.probe())
        level.refill()
        jail = level.open()
        runs: list[Run] = []
        job = Job("python", "import time; time.sleep(60)", limits=self.limits(wall_s=60.0))
        thread = threading.Thread(target=lambda: runs.append(jail.run(job)))
        thread.start()
        eventually(lambda: jail._running)
        level.close()
        thread.join(TIMEOUT_S)
        jail.close()
        self.assertEqual([run.reason for run in runs], ["setup"])
        eventually(lambda: descendants() <= before)
        with self.assertRaises(OSError):
            level.open()
        self.assertIsNone(level.probe())
        level.close()
        eventually(lambda: descendants() <= before)

    def test_all_ends_when_the_gateway_is_killed(self) -> None:
        self.settled()
        before = descendants()
        with subprocess.Popen([sys.executable, "-c", GATEWAY], cwd=ROOT, stdout=subprocess.PIPE) as gateway:
            try:
                assert gateway.stdout is not None
                self.assertEqual(gateway.stdout.readline(), b"started\n")
                eventually(lambda: len(descendants() - before) == 1 + (1 + SPARE) * PROCESSES)
                started = descendants() - before - {gateway.pid}
            finally:
                gateway.kill()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


class UnusableTest(unittest.TestCase):
    def why_not(self, program: str) -> str:
        """Why a `bwrap` cannot be used that is this shell program."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bwrap"
            path.write_text(f"#!/bin/sh\n{program}\n")
            path.chmod(0o755)
            with mock.patch.object(shutil, "which", return_value=str(path)):
                level = Bubblewrap({})
                self.addCleanup(level.close)
                return level.probe() or ""

    def test_without_the_program_the_level_says_so(self) -> None:
        with mock.patch.object(shutil, "which", return_value=None):
            level = Bubblewrap({})
            self.assertEqual(level.probe(), "bwrap is not in PATH")
            with self.assertRaises(OSError):
                level.open()

    def test_what_the_program_complains_of_is_the_reason(self) -> None:
        self.assertIn("no namespaces today", self.why_not("echo 'no namespaces today' >&2; exit 1"))

    @unittest.skipUnless(sys.platform.startswith("linux"), "the supervisor is for Linux")
    def test_a_jail_that_is_none_is_not_used(self) -> None:
        """A program that only pretends to make a jail runs the supervisor on the bare machine."""
        self.assertNotEqual(self.why_not('while [ "$1" != -- ]; do shift; done; shift; cd /tmp; exec "$@"'), "")

    def test_a_prefix_that_is_the_root_itself_is_not_shown_in_the_jail(self) -> None:
        with mock.patch.object(sys, "base_prefix", "/"), mock.patch.object(sys, "base_exec_prefix", "/"):
            command = bubblewrap.command_line("bwrap", 1 << 20, as_root=True)
        self.assertNotIn(("--ro-bind", "/", "/"), list(zip(command, command[1:], command[2:])))


def readable_python() -> Optional[str]:
    """An interpreter that any user may run."""
    for path in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        command = [path, "-c", "import sys, unittest; sys.exit(sys.version_info < (3, 9))"]
        try:
            if subprocess.run(command, user=ORDINARY, group=ORDINARY, extra_groups=[], env={}).returncode == 0:
                return path
        except OSError:
            pass
    return None


class OtherUserTest(unittest.TestCase):
    def test_all_of_it_holds_for_an_ordinary_user(self) -> None:
        make_bubblewrap().close()
        if os.geteuid() != 0:
            self.skipTest("only root can become another user")
        python = readable_python()
        if python is None:
            self.skipTest("there is no interpreter that any user may run")
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            for name in ("gateway", "tests"):
                shutil.copytree(ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__"))
            subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
            ran = subprocess.run(
                [python, "-B", "-m", "unittest", *[f"{__name__}.{case.__name__}" for case in (PlainTest, LimitTest)]]
                + [f"{__name__}.{case.__name__}" for case in (EscapeTest, LevelTest)],
                cwd=folder,
                user=ORDINARY,
                group=ORDINARY,
                extra_groups=[],
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "REQUIRE_SANDBOX": "1"},
                capture_output=True,
                encoding="utf-8",
                timeout=ALL_S,
            )
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertRegex(ran.stderr, r"Ran \d\d tests in")
