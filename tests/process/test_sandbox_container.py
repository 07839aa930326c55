"""Level "container": what every level must stand, and that no container is ever left."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import subprocess
import sys
import threading
import unittest
from pathlib import Path
from typing import Optional
from unittest import mock

from gateway.verify.sandbox.container import NAME_PREFIX, Container, owner
from gateway.verify.sandbox.jails import CommandJail
from gateway.verify.sandbox.job import Job, Limits, Run
from tests import escapes, sandboxing
from tests.sandboxing import HARNESSES, Jailed
from tests.support import ROOT, TIMEOUT_S, eventually

RUNTIME = os.environ.get("SANDBOX_TEST_RUNTIME", "")
IMAGE = os.environ.get("SANDBOX_TEST_IMAGE", "")
REQUIRED = os.environ.get("REQUIRE_SANDBOX") == "1"

SPARE = 2
REMOVAL_TIMEOUT_S = 60.0
GATEWAY = """
import sys, threading
from gateway.verify.sandbox.container import Container
from gateway.verify.sandbox.job import Job, Limits
level = Container({}, sys.argv[1], sys.argv[2], spare=1)
assert level.probe() is None
job = Job("python", "import time; time.sleep(60)", limits=Limits(wall_s=60.0))
threading.Thread(target=level.open().run, args=(job,)).start()
level.refill()
print("started", flush=True)
"""


def engine(*arguments: str) -> str:
    """What the container command answers."""
    command = [*shlex.split(RUNTIME), *arguments]
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=60)
    if ran.returncode:
        raise AssertionError(f"{arguments}: {ran.stderr}")
    return ran.stdout


def containers() -> list[str]:
    """The names of all containers of this machine's gateways."""
    return engine("ps", "--all", "--filter", f"name={NAME_PREFIX}", "--format", "{{.Names}}").split()


def left() -> list[str]:
    """What there is of this process's containers: their names, and processes that keep one, which the container command
    may have forgotten."""
    own = f"{NAME_PREFIX}-{owner()}-{os.getpid()}-".encode()
    processes = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            line = entry.read_bytes()
            if own in line:
                processes.append(line.replace(b"\0", b" ").decode("utf-8", "replace"))
    return containers() + processes


def need_a_runtime() -> None:
    if not (RUNTIME and IMAGE):
        why = "SANDBOX_TEST_RUNTIME and SANDBOX_TEST_IMAGE name no container command and image"
        raise AssertionError(why) if REQUIRED else unittest.SkipTest(why)


def make_container() -> Container:
    need_a_runtime()
    return Container(HARNESSES, RUNTIME, IMAGE, spare=SPARE)


def setUpModule() -> None:
    """The classes run one after the other, in one process: each looks at all containers there are."""


class Contained(Jailed):
    @classmethod
    def make_level(cls) -> Container:
        return make_container()

    @classmethod
    def setUpClass(cls) -> None:
        cls.addClassCleanup(cls.assert_no_container_left)  # after the level was closed
        super().setUpClass()

    @classmethod
    def settled(cls) -> None:
        eventually(lambda: len(cls.level._jails._waiting) == SPARE)
        super().settled()

    @classmethod
    def assert_no_container_left(cls) -> None:
        """The level waits for some seconds only; on a busy machine a container takes longer to be removed."""
        if RUNTIME:
            try:
                eventually(lambda: not left(), REMOVAL_TIMEOUT_S)
            except AssertionError:
                raise AssertionError(f"left: {left()}") from None


class PlainTest(Contained, sandboxing.PlainCases):
    pass


class LimitTest(Contained, sandboxing.LimitCases):
    def test_the_work_directory_has_a_size(self) -> None:
        """The number of files in it counts as memory: see the escapes."""
        said = self.attack(
            "n = 0\ntry:\n    for i in range(99):\n        with open('f%d' % i, 'wb', 0) as f:\n"
            "            for j in range(4): n += f.write(b'x' * (1 << 20))\nexcept OSError: print(n >> 20)"
        )
        self.assertEqual(int(said.split()[0]), self.limits().disk_bytes >> 20)

    def test_a_fork_bomb_stays_small(self) -> None:
        """Its processes are the container command's, not this one's: the program itself says how many it could make."""
        code = (
            "import os, time\nfor i in range(999):\n    try:\n        if os.fork() == 0: time.sleep(60)\n"
            "    except OSError: break\nprint(i, flush=True)\nwhile 1:\n    try: os.fork()\n"
            "    except OSError: time.sleep(0.01)"
        )
        run = self.job(code, wall_s=0.8, processes=16)
        self.assertIn(run.reason, {"wall", "processes"}, run)
        self.assertLessEqual(int(run.stdout or b"0"), 16)
        self.assertEqual(self.job("print(1)").stdout, b"1\n")


class EscapeTest(Contained, escapes.EscapeCases):
    def test_mounts_cannot_be_changed(self) -> None:
        """The image's files may be another user's programs; that they give no rights is the process's promise."""
        self.attack(
            "attempt('remount', lambda: syscall(165, 0, b'/', 0, 32, 0))\n"
            "attempt('tmpfs', lambda: syscall(165, b'n', os.getcwd().encode(), b'tmpfs', 0, 0))\n"
            "for path in (b'/proc', b'/', b'/etc/hostname', os.getcwd().encode()):\n"
            "    attempt('umount', lambda: syscall(166, path, 2))\n"
            "if 'NoNewPrivs:\\t1' not in open('/proc/self/status').read(): print('BREACH')\n"
            "for line in open('/proc/self/mountinfo'):\n"
            "    place = line.split()[4]\n"
            "    writable = place.startswith(('/dev/', '/proc/')) or place == os.getcwd()\n"
            "    if not writable and os.access(place, os.W_OK): print('BREACH', line)"
        )

    def test_what_watches_a_program_has_no_rights(self) -> None:
        run = self.job("print([line.split()[1] for line in open('/proc/1/status') if line[:6] == 'CapEff'][0])")
        self.assertEqual(int(run.stdout, 16), 0, run)


class LevelTest(Contained):
    def test_the_containers_of_a_closed_level_are_gone_and_it_can_be_opened_again(self) -> None:
        level = make_container()
        self.assertIsNone(level.probe())
        jail = level.open()
        runs: list[Run] = []
        job = Job("python", "import time; time.sleep(60)", limits=self.limits(wall_s=60.0))
        thread = threading.Thread(target=lambda: runs.append(jail.run(job)))
        thread.start()
        eventually(lambda: len(containers()) == SPARE + 1)
        level.close()
        thread.join(TIMEOUT_S)
        jail.close()
        self.assertEqual([run.reason for run in runs], ["setup"])
        eventually(lambda: len(containers()) == SPARE)
        with self.assertRaises(OSError):
            level.open()
        self.assertIsNone(level.probe())
        level.close()

    def test_no_container_is_left_by_a_gateway_that_was_killed(self) -> None:
        """One with a job, and one that waits for a job: each sees the end of what it reads."""
        command = [sys.executable, "-c", GATEWAY, RUNTIME, IMAGE]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as gateway:
            try:
                assert gateway.stdout is not None
                self.assertEqual(gateway.stdout.readline(), b"started\n")
                eventually(lambda: len(containers()) == SPARE + 2)
            finally:
                gateway.kill()
        eventually(lambda: len(containers()) == SPARE)


class ContainersTest(unittest.TestCase):
    def setUp(self) -> None:
        need_a_runtime()

    def refused(self, level: Container) -> str:
        self.addCleanup(level.close)
        why: Optional[str] = level.probe()
        self.assertIsNotNone(why)
        return str(why)

    def test_an_image_that_is_not_there_is_not_asked_for(self) -> None:
        name = f"registry.invalid/{secrets.token_hex(4)}:latest"
        why = self.refused(Container({}, RUNTIME, name))
        self.assertIn(f"no image {name}", why)
        self.assertNotIn("registry.invalid/", engine("images", "--format", "{{.Repository}}"))

    def test_what_a_dead_gateway_has_left_is_removed_and_nothing_of_another_machine(self) -> None:
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", ""]) as dead:
            pass
        other = "0" * 8 if owner() != "0" * 8 else "1" * 8
        names = [f"{NAME_PREFIX}-{machine}-{dead.pid}-{secrets.token_hex(4)}" for machine in (owner(), other)]
        for name in names:
            engine("create", "--name", name, "--network", "none", "--ulimit", "nofile=64:64", IMAGE, "python3")
        try:
            level = make_container()
            self.assertIsNone(level.probe())
            level.close()
            eventually(lambda: containers() == names[1:])  # its own are removed within some seconds, or soon after
        finally:
            engine("rm", "--force", names[1])

    def test_an_image_without_python_is_refused_with_the_reason(self) -> None:
        name = f"gateway-sandbox-empty-{secrets.token_hex(4)}"
        subprocess.run(
            [*shlex.split(RUNTIME), "import", "-", name], input=bytes(10240), check=True, capture_output=True
        )
        try:
            self.assertIn("python3", self.refused(Container({}, RUNTIME, name)))
        finally:
            engine("rmi", "--force", name)
        self.assertEqual(containers(), [])

    def test_a_program_may_not_use_more_memory_than_the_container_has(self) -> None:
        """Beside the supervisor's own watch, where the container command can limit it."""
        level = make_container()
        self.addCleanup(level.close)
        self.assertIsNone(level.probe())
        jail = level.open()
        self.addCleanup(jail.close)
        (name,) = eventually(lambda: [name for name in containers() if f"-{os.getpid()}-" in name])
        limit = engine("inspect", "--format", "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}", name).split()
        if os.geteuid() != 0 and limit == ["0", "0"]:
            self.skipTest("an ordinary user's container command limits nothing here")
        self.assertEqual([int(number) > 0 for number in limit], [True, True])

    def test_who_has_no_memory_left_is_ended_for_that_where_the_kernel_was_first(self) -> None:
        """The container has less than the job's limit: nobody else watches. A child takes the program along."""
        level = make_container()
        self.addCleanup(level.close)
        self.assertIsNone(level.probe())
        if not level._engine.cgroups:
            self.skipTest("an ordinary user's container command limits nothing here")
        grow = "kept = []\nwhile True: kept.append(bytearray(b'x') * (1 << 20))\n"
        for code in (grow, f"import os, time\nif os.fork():\n    os.wait()\n    time.sleep(60)\n{grow}"):
            with contextlib.closing(level.open()) as jail:
                run = jail.run(
                    Job("python", code, limits=Limits(wall_s=TIMEOUT_S, cpu_s=TIMEOUT_S, memory_bytes=8 << 30))
                )
            self.assertEqual((run.reason, run.exit_code, run.error), ("memory", None, None), run)


class UnusableTest(unittest.TestCase):
    """What needs no container command."""

    def test_without_an_image_nothing_is_started(self) -> None:
        self.assertEqual(Container({}, "/nonexistent/command").probe(), "no image is named")

    def test_a_command_that_is_not_there_is_named(self) -> None:
        self.assertIn("/nonexistent/command", str(Container({}, "/nonexistent/command", "image").probe()))

    def test_what_a_command_makes_late_is_removed_although_it_had_to_be_killed(self) -> None:
        """The first removal comes before there is a container, and whom it is told to ends by nothing but force."""
        alive: list[bool] = []

        def remove() -> None:
            if alive:
                jail._process.wait(TIMEOUT_S)  # it has been killed; how soon that is seen is the machine's
            alive.append(jail.alive)

        command = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]
        with mock.patch("gateway.verify.sandbox.jails.START_TIMEOUT_S", 0.01):
            jail = CommandJail(command, b"", {}, remove=remove)
            jail.discard()
        self.assertEqual(alive, [True, False])

    def test_a_level_that_was_not_tried_makes_no_container(self) -> None:
        with self.assertRaises(OSError):
            Container({}, "/nonexistent/command", "image").open()
