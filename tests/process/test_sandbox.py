"""The levels that the standard library brings: what they promise, as whoever runs the tests, and as nobody."""

from __future__ import annotations

import json
import os
import platform
import signal
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from gateway.verify.sandbox.job import Job, Limits
from gateway.verify.sandbox.namespaces import NamespacesLevel
from gateway.verify.sandbox.process import ProcessLevel
from tests import escapes, sandboxing
from tests.sandboxing import HARNESSES, Jailed, descendants
from tests.support import ROOT, eventually
from tests.thorough import thorough

NOBODY = 65534
LINUX = sys.platform.startswith("linux")


@unittest.skipUnless(LINUX, "Linux has them")
class Namespaced(Jailed):
    @classmethod
    def make_level(cls) -> NamespacesLevel:
        return NamespacesLevel(HARNESSES)


@unittest.skipUnless(LINUX, "Linux has them")
class Processed(Jailed):
    @classmethod
    def make_level(cls) -> ProcessLevel:
        return ProcessLevel(HARNESSES)

    def limits(self, **limits: Any) -> Limits:
        # What other tests' jobs start is counted with theirs: they are of the same user, and some are bombs.
        return super().limits(**{"processes": 500, **limits})


class NamespacesPlainTest(Namespaced, sandboxing.PlainCases):
    pass


class NamespacesLimitTest(Namespaced, sandboxing.LimitCases):
    pass


@thorough  # the walls are the kernel's
class NamespacesEscapeTest(Namespaced, escapes.EscapeCases):
    pass


class ProcessPlainTest(Processed, sandboxing.PlainCases):
    pass


class ProcessLimitTest(Processed, sandboxing.LimitCases):
    own_disk = own_count = False

    @unittest.skipUnless(platform.machine() in ("x86_64", "aarch64"), "no table of this machine's calls")
    def test_there_is_no_network_here_either(self) -> None:
        code = (
            "import socket\n"
            "for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):\n"
            "    try:\n        socket.socket(family)\n        print('open')\n"
            "    except PermissionError:\n        print('refused')\n"
        )
        self.assertEqual(self.job(code).stdout.split(), [b"refused"] * 3)

    def test_nothing_is_left_when_the_gateway_is_killed(self) -> None:
        code = (
            "import sys, tempfile, threading\nfrom gateway.verify.sandbox.job import Job, Limits\n"
            "from gateway.verify.sandbox.process import ProcessLevel\ntempfile.tempdir = sys.argv[1]\n"
            "job = Job('bash', 'mkdir d; echo > d/f; sleep 60', limits=Limits(wall_s=60.0))\n"
            "threading.Thread(target=ProcessLevel({}).open().run, args=(job,)).start()\n"
        )
        folder = Path(tempfile.gettempdir())
        with subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT) as gateway:
            try:
                eventually(lambda: list(folder.glob("gateway-job-*/d/f")))
            finally:
                gateway.kill()
        eventually(lambda: not list(folder.glob("gateway-job-*")))


@unittest.skipUnless(LINUX and hasattr(os, "geteuid") and os.geteuid() == 0, "only root is sure to have namespaces")
class AvailabilityTest(unittest.TestCase):
    """That the other tests are skipped only where there is nothing to test."""

    def test_where_a_program_of_the_system_can_use_namespaces_the_level_can(self) -> None:
        kinds = (
            "--mount",
            "--pid",
            "--net",
            "--ipc",
            "--uts",
            "--cgroup",
            "--fork",
            "--mount-proc",
            "--propagation=slave",
        )
        try:
            can = subprocess.run(["unshare", *kinds, "unshare", "--user", "true"], capture_output=True, check=False)
        except OSError:
            self.skipTest("there is no unshare to ask")
        if can.returncode:
            self.skipTest(can.stderr.decode())
        level = NamespacesLevel({})
        self.addCleanup(level.close)
        self.assertIsNone(level.probe())

    def test_where_parts_of_proc_are_hidden_nobodys_level_says_so(self) -> None:
        python = nobodys_python()
        if python is None:
            self.skipTest("nobody may run a Python or read the tests")
        look = (
            "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "from gateway.verify.sandbox.namespaces import NamespacesLevel\n"
            "level = NamespacesLevel({}); print(level.probe()); level.close()"
        )
        hide = 'mount -t tmpfs none /proc/irq && exec "$0" -B -c "$1"'
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", hide, python, look],
            cwd=ROOT,
            env={"PATH": os.environ.get("PATH", "")},
            capture_output=True,
            text=True,
            check=False,
        )
        if "unshare" in done.stderr or "mount:" in done.stderr:
            self.skipTest(done.stderr)
        self.assertIn("/proc cannot be mounted", done.stdout, done.stderr)


class ZygoteTest(Namespaced):
    def test_another_zygote_comes_when_one_has_died(self) -> None:
        before, launcher = descendants(), self.level._zygote._process.pid
        os.kill(launcher, signal.SIGKILL)
        others = before - {launcher}  # for whom nobody has waited yet
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in others))
        run = self.job("print(1)")
        self.assertEqual(run.stdout, b"1\n", run)

    def test_a_closed_level_opens_nothing_and_leaves_nothing(self) -> None:
        level = NamespacesLevel({}, parked=3)
        before = descendants()
        level.start()
        jail = level.open()
        level.close()
        eventually(lambda: descendants() <= before)
        self.assertEqual(jail.run(Job("python", "print(1)")).reason, "setup")
        with self.assertRaises(OSError):
            level.open()

    def test_a_job_is_ended_whose_keeper_has_been_held_up_on_its_way(self) -> None:
        from gateway.verify.sandbox import namespaces

        slow = "def keeper(self) -> None:\n        import time; time.sleep(3)\n"
        text = namespaces.inside_text("zygote.py").replace("def keeper(self) -> None:\n", slow)
        with mock.patch.object(namespaces, "inside_text", return_value=text):
            level = NamespacesLevel({}, parked=0)
            self.addCleanup(level.close)
            jail = level.open()
        run = jail.run(Job("python", "import os\nwhile 1: os.write(1, b'y' * 5000)"))
        self.assertEqual((run.reason, len(run.stdout)), ("output", 65_536), run)

    def test_why_it_cannot_be_used_is_told(self) -> None:
        for python, words in (("/no/such/python", "No such file"), ("/bin/false", "died")):
            level = NamespacesLevel({}, python=python)
            self.addCleanup(level.close)
            self.assertIn(words, level.probe() or "")

    def test_all_ends_when_the_gateway_is_killed(self) -> None:
        code = (
            "import threading\nfrom gateway.verify.sandbox.job import Job, Limits\n"
            "from gateway.verify.sandbox.namespaces import NamespacesLevel\n"
            "level = NamespacesLevel({})\nlevel.start()\n"
            "job = Job('python', 'import time; time.sleep(60)', limits=Limits(wall_s=60.0))\n"
            "threading.Thread(target=level.open().run, args=(job,)).start()\nprint('started', flush=True)\n"
        )
        before = descendants()
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as gateway:
            try:
                assert gateway.stdout is not None
                self.assertEqual(gateway.stdout.readline(), b"started\n")
                eventually(lambda: len(descendants() - before) >= 9)  # it, launcher, zygote, two jails
                started = descendants() - before - {gateway.pid}
            finally:
                gateway.kill()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


def nobodys_python() -> Optional[str]:
    """A Python of 3.9 or later that nobody may run, with the tests; None where there is none."""
    for name in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        try:
            places = [Path(name).resolve(strict=True), ROOT / "tests"]
            open_to_all = all(one.stat().st_mode & stat.S_IXOTH for place in places for one in (place, *place.parents))
            new = "import sys; sys.exit(sys.version_info < (3, 9))"
            if open_to_all and subprocess.run([name, "-c", new], check=False).returncode == 0:
                return name
        except OSError:
            pass
    return None


@unittest.skipUnless(LINUX and hasattr(os, "geteuid") and os.geteuid() == 0, "only root can become somebody else")
@thorough
class NobodyTest(unittest.TestCase):
    """The same as an ordinary user, one process for each class."""

    def assert_passes(self, *names: str) -> None:
        python = nobodys_python()
        if python is None:
            self.skipTest("nobody may run a Python or read the tests")
        done = subprocess.run(
            [python, "-B", "-m", "unittest", *[f"tests.process.test_sandbox.{name}" for name in names]],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd=ROOT,
            env={"PATH": os.environ.get("PATH", ""), "TESTS_PROCESSES": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout.decode())
        self.assertRegex(done.stdout.decode(), r"Ran \d\d+ tests")

    def test_escapes_and_limits_of_namespaces(self) -> None:
        self.assert_passes("NamespacesEscapeTest", "NamespacesLimitTest")


class NobodysPlainTest(NobodyTest):
    test_escapes_and_limits_of_namespaces = None  # type: ignore[assignment]

    def test_plain_programs_and_limits_of_processes(self) -> None:
        self.assert_passes("NamespacesPlainTest", "ProcessPlainTest", "ProcessLimitTest")


if __name__ == "__main__":
    unittest.main()


@unittest.skipUnless(sys.platform.startswith("linux"), "what runs inside runs on Linux")
class UsageTest(unittest.TestCase):
    def test_memory_is_looked_at_exactly_only_while_that_is_needed_and_does_not_take_too_long(self) -> None:
        from gateway.verify.sandbox import watching

        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
            real, read = watching._field_bytes, []

            def noted(path: str, names: tuple[bytes, ...]) -> int:
                read.append(Path(path).name)
                return real(path, names)

            with mock.patch.object(watching, "_field_bytes", noted):
                eventually(lambda: watching.usage_of(os.getpid(), 0)[1] > 1 << 20)
                self.assertIn("smaps_rollup", read)
                for limit_s, enough_bytes in ((-1.0, 0), (60.0, 1 << 60)):
                    read.clear()
                    with mock.patch.object(watching, "EXACT_S", limit_s):
                        self.assertGreater(watching.usage_of(os.getpid(), enough_bytes)[1], 1 << 20)
                    self.assertNotIn("smaps_rollup", read)
            child.communicate(b"\n")

    def test_the_memory_of_who_ends_during_a_look_is_not_counted(self) -> None:
        from gateway.verify.sandbox import watching

        code = "a = bytearray(b'x') * (64 << 20)\nprint(flush=True)\ninput()"
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            real = watching._field_bytes

            def ends(path: str, names: tuple[bytes, ...]) -> int:
                if path == f"/proc/{child.pid}/smaps_rollup":
                    child.kill()
                    child.wait()
                return real(path, names)

            self.assertGreater(watching.usage_of(os.getpid(), 1 << 60)[1], 64 << 20)
            with mock.patch.object(watching, "_field_bytes", ends):
                self.assertLess(watching.usage_of(os.getpid(), 0)[1], 64 << 20)

    def test_a_look_that_was_held_up_counts_only_when_the_next_one_is_too(self) -> None:
        from gateway.verify.sandbox import watching
        from gateway.verify.sandbox.worker import Walls

        much, little = 1 << 30, 1 << 20
        looks = [(1, much, 0.0, False), (1, little, 0.0, True), (1, much, 0.0, False), (1, much, 0.0, False)]
        limits = {"memory_bytes": 1 << 29, "cpu_s": 9.0, "processes": 9}
        for sequence in (looks, [(1, much, 0.0, True)]):
            ready_r, ready_w = os.pipe()
            told_r, told_w = os.pipe()
            self.addCleanup(lambda *fds: [os.close(fd) for fd in fds], ready_r, ready_w, told_r, told_w)
            os.write(ready_w, json.dumps(limits).encode())
            with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
                with mock.patch.object(watching, "usage_of", side_effect=sequence) as usage_of:
                    said = watching.watch(child.pid, ready_r, told_w, watching.Kept(Walls()))
                self.assertEqual((said["reason"], usage_of.call_count), ("memory", len(sequence)))
                child.communicate(b"\n")

    def test_whom_the_kernel_has_killed_for_memory_is_read_from_either_version_of_cgroups(self) -> None:
        from gateway.verify.sandbox import watching
        from gateway.verify.sandbox.worker import Walls

        walls = Walls()
        walls.own_cgroup = True
        text_by_name = {"2": "max 7\noom 3\noom_kill %d\noom_group_kill 0\n", "1": "under_oom 5\noom_kill %d\n"}
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, name) for name in text_by_name]
            with mock.patch.object(watching, "OOM_PATHS", paths):
                self.assertFalse(watching.Kept(walls).was_short())
                for path, text in zip(reversed(paths), reversed(list(text_by_name.values()))):
                    path.write_text(text % 1, encoding="ascii")
                    kept = watching.Kept(walls)
                    self.assertFalse(kept.was_short())
                    path.write_text(text % 2, encoding="ascii")
                    self.assertTrue(kept.was_short())
                    self.assertFalse(watching.Kept(Walls()).was_short())
