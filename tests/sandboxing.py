"""What every level of the sandbox must stand, as classes of cases that a test class of a level takes over.

A level's test class names the level by `make_level`; the cases run on it, and behind each nothing may be left: no
process, no mount, no work directory. What an attack must not get prints BREACH or a secret; each attack prints "done"
at its end, so that one which never ran is no success.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any, ClassVar, Union
from unittest import mock

from gateway.verify.sandbox.job import Job, Limits, Run
from gateway.verify.sandbox.texts import harness_sources
from tests.support import FREE_THREADED, ROOT, eventually

MIB = 1 << 20
PYPY = platform.python_implementation() == "PyPy"
SECRET = "s3cr3t-of-the-host"
HARNESSES = {
    "echo": "def harness_main(code, payload, report):\n    report(b'first'); report(code.encode() + payload)\n",
    "silent": "def harness_main(code, payload, report):\n    print('no report')\n",
    "node": (
        "import subprocess\ndef harness_main(code, payload, report):\n"
        "    report(subprocess.run(['node', '-e', code], stdout=subprocess.PIPE).stdout)\n"
    ),
    "judge": harness_sources(ROOT / "gateway" / "verify" / "harness")["judge"],
    "dumpable": (
        "import ctypes\ndef harness_main(code, payload, report):\n"
        "    report(b'%d' % ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"  # PR_GET_DUMPABLE
    ),
}
TRY = """
import ctypes, errno, glob, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def syscall(number, *arguments):
    status = libc.syscall(ctypes.c_long(number), *[a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments])
    return "BREACH %d" % status if status >= 0 else errno.errorcode.get(ctypes.get_errno())
def write(path, mode="w"):
    with open(path, mode) as file:
        file.write("0")
    return "BREACH"
def attempt(name, function):
    try:
        said = function()
    except BaseException as error:
        said = "refused: %s" % (getattr(error, "strerror", None) or type(error).__name__)
    print(name, "=>", said, flush=True)
"""


def descendants() -> set[int]:
    """All processes that descend from this one, the dead that nobody has waited for too."""
    parent_by_pid: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry.name}/stat").read_bytes().rpartition(b")")[2].split()
                parent_by_pid[int(entry.name)] = int(fields[1])
    found, todo = set(), {os.getpid()}
    while todo:
        todo = {pid for pid, parent in parent_by_pid.items() if parent in todo}
        found |= todo
    return found


def own_mounts() -> list[str]:
    """Where something is mounted that a jail's root would have; others' mounts may come and go."""
    places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [place for place in places if re.match(r"/($|proc|tmp$|usr|old|work|dev/(null|zero|full|u?random))", place)]


class Jailed(unittest.TestCase):
    """A test of one level; the class makes it once."""

    level: ClassVar[Any]
    base: ClassVar[int]  # processes of the level at rest

    @classmethod
    def make_level(cls) -> Any:
        raise NotImplementedError

    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        Path(folder.name).chmod(0o755)
        patch = mock.patch("tempfile.tempdir", folder.name)  # what others leave elsewhere is not ours
        patch.start()
        cls.addClassCleanup(patch.stop)
        cls.level = cls.make_level()
        cls.addClassCleanup(cls.level.close)
        why_not = cls.level.probe()
        if "Assertion" in (why_not or ""):  # it is there, and does not hold
            raise AssertionError(why_not)
        if why_not:
            raise unittest.SkipTest(f"{cls.level.name}: {why_not}")
        cls.level.refill()
        cls.settled()

    @classmethod
    def settled(cls) -> None:
        """Wait until what the level keeps ready is ready: as many processes for a while."""
        seen = [-1]

        def same() -> bool:
            seen.append(len(descendants()))
            return len(seen) > 60 and len(set(seen[-60:])) == 1

        eventually(same)
        cls.base = seen[-1]

    def setUp(self) -> None:
        mounts = own_mounts()
        self.addCleanup(lambda: self.assertEqual(own_mounts(), mounts))
        self.addCleanup(self.assert_nothing_left)

    def assert_nothing_left(self) -> None:
        self.level.refill()
        eventually(lambda: len(descendants()) <= self.base)
        self.assertEqual(list(Path(tempfile.gettempdir()).glob("gateway-job-*")), [])

    def limits(self, **limits: Any) -> Limits:
        defaults: dict[str, Any] = {"wall_s": 120.0, "cpu_s": 4.0, "memory_bytes": (384 if PYPY else 128) * MIB}
        return Limits(**{**defaults, **limits})

    def job(self, code: str, language: str = "python", harness: str = "", payload: bytes = b"", **limits: Any) -> Run:
        with contextlib.closing(self.level.open()) as jail:
            run: Run = jail.run(Job(language, code, harness, payload, self.limits(**limits)))
        self.level.refill()
        self.assertEqual(run.isolation, self.level.name)
        return run

    def attack(self, code: str, **limits: Any) -> str:
        """What an attack has said; it must have come to its end, with no success."""
        run = self.job(f"{TRY}\n{code}\nprint('done')\n", **limits)
        said = (run.stdout + run.stderr).decode("utf-8", "replace")
        self.assertEqual((run.reason, run.exit_code, said.endswith("done\n")), ("exit", 0, True), (run, said))
        for bad in ("BREACH", SECRET, "root:x:"):
            self.assertNotIn(bad, said)
        return said

    def assert_ended(self, run: Run, reason: str, exit_code: Union[int, None] = None) -> None:
        self.assertEqual((run.reason, run.exit_code), (reason, exit_code), run)


class PlainCases(Jailed):
    """Programs that mean no harm run as they would elsewhere."""

    def test_a_program_has_its_input_output_arguments_and_exit_code(self) -> None:
        code = "import sys\nprint(input(), sys.argv, __name__)\nprint('é', file=sys.stderr)\nsys.exit(3)"
        run = self.job(code, payload="żółć\nmore".encode())
        self.assert_ended(run, "exit", 3)
        self.assertEqual((run.stdout, run.stderr), ("żółć ['main.py'] __main__\n".encode(), "é\n".encode()))
        self.assertFalse(run.truncated)
        self.assertIsNone(run.error)

    def test_a_long_input_comes_whole(self) -> None:
        run = self.job("import sys; print(len(sys.stdin.read()))", payload=b"x" * 3_000_000)
        self.assertEqual(run.stdout, b"3000000\n")

    def test_without_an_input_there_is_an_empty_one(self) -> None:
        self.assertEqual(self.job("import sys; print(repr(sys.stdin.read()))").stdout, b"''\n")

    def test_an_error_shows_the_programs_own_lines_only(self) -> None:
        run = self.job("def f():\n    raise ValueError('no')\nf()\n")
        self.assert_ended(run, "exit", 1)
        self.assertTrue(run.stderr.startswith(b'Traceback (most recent call last):\n  File "main.py", line 3'), run)
        self.assertTrue(run.stderr.endswith(b"ValueError: no\n"), run)
        self.assertIn(b"raise ValueError('no')", run.stderr)
        run = self.job("def f(:\n")
        self.assert_ended(run, "exit", 1)
        self.assertIn(b"SyntaxError", run.stderr)

    def test_the_end_waits_for_threads_and_runs_what_was_registered(self) -> None:
        run = self.job(
            "import atexit, threading, time\natexit.register(print, 'last')\n"
            "said = threading.Event()\n"
            "threading.Thread(target=lambda: (said.wait(), time.sleep(0.05), print('thread'))).start()\nprint('main')\n"
            "said.set()\nraise SystemExit('why')"
        )
        self.assert_ended(run, "exit", 1)
        self.assertEqual((run.stdout, run.stderr), (b"main\nthread\nlast\n", b"why\n"))

    def test_a_program_is_compiled_without_futures_of_ours(self) -> None:
        self.assertEqual(self.job("def f(x: 1 + 1): pass\nprint(f.__annotations__)").stdout, b"{'x': 2}\n")

    def test_eight_threads_have_room(self) -> None:
        code = (
            "from concurrent.futures import ThreadPoolExecutor\nimport threading\ngate = threading.Barrier(8)\n"
            "with ThreadPoolExecutor(8) as pool: print(sum(pool.map(lambda i: gate.wait() * 0 + i, range(8))))"
        )
        run = self.job(  # processes: of the same user's, elsewhere too
            code, memory_bytes=(512 if PYPY or FREE_THREADED else 256) * MIB, processes=500
        )
        self.assertEqual(run.stdout, b"28\n", run)

    def test_a_pool_of_processes_works(self) -> None:
        code = (
            "import multiprocessing as m\ndef f(x): return x * x\n"
            "if __name__ == '__main__':\n    with m.get_context('fork').Pool(2) as pool: print(pool.map(f, range(4)))"
        )
        self.assertEqual(self.job(code).stdout, b"[0, 1, 4, 9]\n")

    def test_it_stands_back_behind_who_else_wants_the_processors(self) -> None:
        run = self.job("import os; print(os.getpriority(os.PRIO_PROCESS, 0))")
        self.assertEqual(int(run.stdout), os.getpriority(os.PRIO_PROCESS, 0) + 10, run)

    def test_its_environment_directory_and_descriptors_are_its_own(self) -> None:
        with mock.patch.dict(os.environ, GATEWAY_SECRET=SECRET):
            said = self.attack(
                "print(sorted(os.environ), os.environ['HOME'] == os.environ['TMPDIR'] == os.getcwd(), os.listdir())\n"
                "print(sorted(os.listdir('/proc/self/fd'))[:-1], os.getpid() == os.getpgrp())"
            )
        self.assertIn("['HOME', 'LANG', 'PATH', 'TMPDIR'] True []\n['0', '1', '2'] True", said)

    def test_javascript_runs(self) -> None:
        code = "process.stdin.on('data', d => console.log(d.toString().length, 6 * 7)); "
        run = self.job(code, "javascript", payload=b"four", memory_bytes=256 * MIB)
        if run.error and "there is no node" in run.error:
            self.skipTest(run.error)
        self.assert_ended(run, "exit", 0)
        self.assertEqual(run.stdout, b"4 42\n")
        module = self.job("import fs from 'fs';\nconsole.log(typeof fs.readFileSync)", "javascript")
        self.assertEqual(module.stdout, b"function\n", module)

    def test_bash_runs(self) -> None:
        run = self.job('read line; cat <(echo "$line $((6 * 7)) $HOME") | tr a-z A-Z; exit 4', "bash", payload=b"is\n")
        self.assert_ended(run, "exit", 4)
        self.assertTrue(run.stdout.startswith(b"IS 42 /"), run)

    def test_a_language_that_nobody_runs_is_no_success(self) -> None:
        run = self.job("1", "cobol")
        self.assert_ended(run, "setup")
        self.assertIn("cobol", run.error or "")

    def test_a_harness_reports_and_its_last_report_counts(self) -> None:
        run = self.job("code ", harness="echo", payload=b"payload")
        self.assert_ended(run, "exit", 0)
        self.assertEqual(run.report, b"code payload")
        run = self.job("", harness="silent")
        self.assertEqual((run.report, run.stdout), (b"", b"no report\n"))
        self.assert_ended(self.job("", harness="no such"), "setup")

    def test_a_harness_may_run_javascript(self) -> None:
        run = self.job("console.log(6 * 7)", "javascript", "node", memory_bytes=256 * MIB)
        if b"FileNotFoundError" in run.stderr:
            self.skipTest("there is no node here")
        self.assertEqual(run.report, b"42\n", run)

    def test_a_harness_cannot_be_looked_into(self) -> None:
        self.assertEqual(self.job("", harness="dumpable").report, b"0")

    def test_a_harness_that_reports_too_much_is_killed(self) -> None:
        run = self.job("x" * 100_000, harness="echo", report_bytes=50_000)
        self.assert_ended(run, "output")
        self.assertEqual((run.truncated, run.report), (True, b"first"))


class LimitCases(Jailed):
    """Each limit holds, and the run says which it was."""

    own_disk = True  # whether the work directory has a size
    own_count = True  # whether the kernel counts this job's processes only; else they are looked at now and then
    DEAF = (
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError, RuntimeError): pass\n"
    )

    def test_wall_time_ends_what_sleeps_and_what_ignores_every_signal(self) -> None:
        self.assert_ended(self.job("import time; print(1, flush=True); time.sleep(60)", wall_s=0.3), "wall")
        self.assert_ended(self.job(f"{self.DEAF}while 1:\n    pass", wall_s=0.6, cpu_s=20.0), "wall")

    def test_cpu_time_is_that_of_all_processes_together(self) -> None:
        self.assert_ended(self.job("while 1: pass", cpu_s=0.3, wall_s=60.0), "cpu")
        run = self.job("import os\nos.fork(); os.fork(); os.fork()\nwhile 1: pass", cpu_s=0.8, wall_s=60.0)
        self.assert_ended(run, "cpu")

    def test_memory_of_one_process(self) -> None:
        run = self.job("a = []\nwhile 1: a.append(bytearray(1 << 20))")
        self.assertIn((run.reason, run.exit_code), {("exit", 1), ("memory", None)}, run)

    def test_address_space_cannot_be_reserved_beyond_the_limit(self) -> None:
        self.attack(
            "import mmap\nattempt('much', lambda: (mmap.mmap(-1, 1 << 30), 'BREACH'))\n"
            "attempt('little', lambda: mmap.mmap(-1, 1 << 20).close())"
        )

    def test_memory_of_many_processes_together(self) -> None:
        run = self.job(
            "import os, time\nfor i in range(12):\n    if os.fork() == 0:\n"
            f"        a = bytearray(b'x') * ({limits_mib(self)} << 18); time.sleep(60)\ntime.sleep(60)"
        )
        self.assert_ended(run, "memory")

    def test_memory_that_was_shared_by_a_fork_counts_once(self) -> None:
        run = self.job(
            f"import os, time\na = bytearray(b'x') * ({limits_mib(self)} << 18)\n"
            "pids = [os.fork() for i in range(3)]\ntime.sleep(0.3)\nif all(pids): print('alive')"
        )
        self.assertIn(b"alive", run.stdout, run)

    def test_output_beyond_the_cap_kills_and_keeps_what_fits(self) -> None:
        for fd in (1, 2):
            run = self.job(f"import os\nb = b'y' * 5000\nwhile 1: os.write({fd}, b)")
            self.assert_ended(run, "output")
            self.assertEqual((len((run.stdout, run.stderr)[fd - 1]), run.truncated), (65_536, True))
        whole = self.job("import sys; sys.stdout.write('z' * 65536); sys.stderr.write('z' * 65536)")
        self.assertEqual(
            (whole.reason, len(whole.stdout), len(whole.stderr), whole.truncated), ("exit", 65536, 65536, False)
        )

    def test_output_at_the_end_is_capped_too(self) -> None:
        for code in ("import atexit\natexit.register(lambda: print('z' * 5000000))", "raise ValueError('z' * 5000000)"):
            run = self.job(code)
            self.assertEqual((run.reason, max(len(run.stdout), len(run.stderr))), ("output", 65_536))

    def test_a_fork_bomb_stays_small(self) -> None:
        code = "import os, time\nwhile 1:\n    try: os.fork()\n    except OSError: time.sleep(0.01)"
        for wall_s in (0.8, 3.0, 10.0):  # a busy machine may not have seen it grow
            most, over = [0], threading.Event()

            def watch(most: list[int] = most, over: threading.Event = over) -> None:
                while not over.wait(0.02):
                    most[0] = max(most[0], len(descendants()))

            watcher = threading.Thread(target=watch)
            watcher.start()
            run = self.job(code, wall_s=wall_s, processes=16)
            over.set()
            watcher.join()
            self.assertIn(run.reason, {"wall", "processes"}, run)
            self.assertLessEqual(most[0], self.base + (16 if self.own_count else 64) + 8)
            if most[0] > self.base + 4:
                return
        self.fail(f"there were never more than {most[0]} processes, {self.base} of them before")

    def test_bashs_fork_bomb_and_its_survivor(self) -> None:
        run = self.job("(setsid sleep 60 &) ; :(){ :|:& };: ; sleep 60", "bash", processes=12, wall_s=0.8)
        self.assertIn(run.reason, {"wall", "processes", "output"}, run)

    def test_files_and_their_number_are_bounded(self) -> None:
        said = self.attack(
            "files = []\ntry:\n    while True: files.append(open('/dev/null'))\nexcept OSError: print(len(files))\n"
            "while files: files.pop().close()\ntry:\n    with open('f', 'wb', 0) as f:\n"
            "        for i in range(40): f.write(bytes(1 << 20))\nexcept OSError: print(os.path.getsize('f') >> 20)",
            open_files=20,
            disk_bytes=2 * MIB,
        )
        files, size = (int(line) for line in said.split()[:2])
        self.assertLessEqual(files, 17)
        self.assertGreater(files, 10)
        self.assertEqual(size, 2)

    def test_the_work_directory_has_a_size(self) -> None:
        if not self.own_disk:
            self.skipTest("no size of its own here")
        said = self.attack(
            "n = i = 0\ntry:\n    for i in range(99):\n        with open('f%d' % i, 'wb', 0) as f:\n"
            "            for j in range(4): n += f.write(b'x' * (1 << 20))\nexcept OSError: print(n >> 20)\n"
            "for path in os.listdir(): os.unlink(path)\ntry:\n    for i in range(99999): os.mkdir('d%d' % i)\n"
            "except OSError: print(i)"
        )
        size, directories = (int(line) for line in said.split()[:2])
        self.assertEqual(size, Limits().disk_bytes >> 20)
        self.assertLess(directories, 5000)

    def test_who_leaves_the_session_and_its_parent_dies_with_the_job(self) -> None:
        run = self.job(
            "import os, time\nif os.fork() == 0:\n    try: os.setsid(); print('left')\n"
            "    except PermissionError: os.setpgid(0, 0)\n"
            "    if os.fork() == 0:\n"
            "        os.close(1); os.close(2); time.sleep(60)\n    os._exit(0)\nos.wait(); print('bye')"
        )
        self.assert_ended(run, "exit", 0)
        self.assertEqual(run.stdout, b"bye\n")

    def test_who_holds_the_output_open_does_not_keep_the_run(self) -> None:
        run = self.job("import os, time\nif os.fork() == 0: time.sleep(60)\nprint('bye')")
        self.assert_ended(run, "exit", 0)

    def test_a_signal_is_told(self) -> None:
        self.assert_ended(self.job("import os; os.kill(os.getpid(), 11)"), "signal", -signal.SIGSEGV)

    def test_a_program_that_was_stopped_has_ended(self) -> None:
        run = self.job("import os, time\nif os.fork() == 0: os.kill(os.getppid(), 19)\ntime.sleep(60)", wall_s=20.0)
        self.assert_ended(run, "signal", -signal.SIGSTOP)
        self.assertLess(run.seconds, 10.0)

    def test_a_jail_that_is_closed_ends_its_job(self) -> None:
        jail, runs = self.level.open(), []
        job = Job("python", "import time; time.sleep(60)", limits=self.limits(wall_s=60.0))
        thread = threading.Thread(target=lambda: runs.append(jail.run(job)))
        thread.start()
        eventually(lambda: jail._running)
        jail.close()
        thread.join()
        self.assert_ended(runs[0], "setup")
        self.assert_ended(jail.run(job), "setup")


def limits_mib(case: Jailed) -> int:
    return case.limits().memory_bytes // MIB
