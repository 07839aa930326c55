"""Commands end without a traceback: on Ctrl-C wherever they are, and when what they print cannot be written."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, Optional

from tests.support import MAIN, ROOT, TIMEOUT_S, RawClient, SocketTest, eventually, process_environment

POSIX = os.name == "posix"
# Runs a file as `python FILE` does, and sends itself SIGINT when it looks for the nth module.
INTERRUPTED = """
import os, sys

class Interrupting:
    left = int(sys.argv.pop(1))

    def find_spec(self, name, path=None, target=None):
        Interrupting.left -= 1
        if not Interrupting.left:
            os.kill(os.getpid(), 2)  # without the module `signal`: it is the first that is looked for

sys.meta_path.insert(0, Interrupting())
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
with open(sys.argv[0], encoding="utf-8") as file:
    code = compile(file.read(), sys.argv[0], "exec")
exec(code, {"__name__": "__main__"})
"""
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("--help",),
    ("check",),
    ("keys", "list"),
    ("keys", "create", "--name", "alice"),
    ("usage",),
    ("replay", "decisions"),
    ("mock", "--help"),
    ("loadtest", "http://127.0.0.1:1"),
    ("serve", "--help"),
)
PRINTING: tuple[tuple[str, ...], ...] = (
    *((*MAIN, *command) for command in (("--help",), ("--version",), ("check",), ("keys", "list"), ("usage",))),
    (*MAIN, "keys", "create", "--name", "alice"),
    (*MAIN, "mock", "--help"),
    ("-m", "gateway", "check"),
    ("-m", "gateway.settings", "env"),
    ("-m", "gateway.settings", "table"),
    ("-m", "gateway.mock", "--help"),
)
# One of those that print by argparse, by a stream's `write`, by `print`, and without the command line's own code.
EACH_WAY: tuple[tuple[str, ...], ...] = (
    (*MAIN, "--version"),
    (*MAIN, "check"),
    (*MAIN, "keys", "list"),
    ("-m", "gateway.settings", "table"),
)


class EndingTest(SocketTest):
    def setUp(self) -> None:
        self.directory = Path(self.enter(tempfile.TemporaryDirectory()))

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        """A process in an empty directory, killed at the end; stderr is a pipe."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen(
            command,
            cwd=self.directory,
            env=process_environment({"PYTHONPATH": ROOT, "PORT": "0"}),
            **options,
        )
        self.enter(process)
        self.addCleanup(process.kill)
        return process

    def ended(self, process: subprocess.Popen[bytes]) -> tuple[int, str]:
        """Its status, and what it told on stderr."""
        _, stderr = process.communicate(timeout=2 * TIMEOUT_S)
        return process.returncode, stderr.decode("utf-8", "replace")


@unittest.skipUnless(POSIX, "signals as POSIX has them")
class InterruptedTest(EndingTest):
    def interrupted(self, nth: int, *command: str) -> tuple[int, str]:
        return self.ended(self.popen(sys.executable, "-c", INTERRUPTED, str(nth), *MAIN, *command))

    def test_at_any_import_nothing_is_told_but_the_status(self) -> None:
        # Before `run` it is the signal itself that ends it: to a shell the same.
        # The first ones are the same for all.
        for command, nth in ((("check",), 1), (("check",), 3), *itertools.product(COMMANDS, (12, 40))):
            with self.subTest(command=command, nth=nth):
                status, stderr = self.interrupted(nth, *command)
                self.assertIn(status, (130, -signal.SIGINT))
                self.assertEqual(stderr, "")

    def test_through_all_the_imports_of_a_command(self) -> None:
        nth, statuses = 60, []
        while 0 not in statuses:
            status, stderr = self.interrupted(nth, "check")
            self.assertEqual(stderr, "")
            statuses.append(status)
            nth += 45
        self.assertGreater(len(statuses), 2)
        self.assertEqual(set(statuses), {130, 0})

    def fifo(self) -> Path:
        path = self.directory / "fifo"
        os.mkfifo(path)
        return path

    def wait_for_reader(self, process: subprocess.Popen[bytes], fifo: Path) -> None:
        """Until it has opened the FIFO and waits for what is in it; the writer's end is open from then on."""

        def opened() -> Optional[list[int]]:
            try:
                return [os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)]
            except OSError:  # nobody has opened it
                return None

        (writer,) = eventually(opened)
        self.addCleanup(os.close, writer)
        stat = Path(f"/proc/{process.pid}/stat")
        if stat.exists():
            # A signal just before `read` is seen only after it, and nothing is ever written.
            eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S")

    def test_while_a_file_is_read(self) -> None:
        fifo = str(self.fifo())
        for command in (("check", "--engines-file", fifo), ("replay", fifo), ("--engines-file", fifo)):
            with self.subTest(command=command):
                process = self.popen(sys.executable, *MAIN, *command)
                self.wait_for_reader(process, Path(fifo))
                process.send_signal(signal.SIGINT)
                self.assertEqual(self.ended(process), (130, ""))

    def test_a_gateway_whose_file_is_called_like_a_command_starts_and_ends_as_one(self) -> None:
        os.mkfifo(self.directory / "check")
        process = self.popen(sys.executable, *MAIN, "--engines-file", "check")
        self.wait_for_reader(process, self.directory / "check")
        process.terminate()
        self.assertEqual(self.ended(process), (0, ""))

    def test_a_mock_engine_ends_as_on_sigterm(self) -> None:
        for module in ((*MAIN, "mock"), ("-m", "gateway.mock")):
            process = self.popen(sys.executable, *module, "--port", "0", stdout=subprocess.PIPE)
            assert process.stdout is not None
            self.assertIn(b"mock engine", process.stdout.readline())
            process.send_signal(signal.SIGINT)
            self.assertEqual(self.ended(process), (0, ""))


@unittest.skipUnless(POSIX, "pipes as POSIX has them")
class UnwrittenTest(EndingTest):
    def test_a_reader_that_has_left_is_told_by_the_status_alone(self) -> None:
        for command in PRINTING:
            with self.subTest(command=command):
                reader, writer = os.pipe()
                os.close(reader)
                process = self.popen(sys.executable, *command, stdout=writer)
                os.close(writer)
                self.assertEqual(self.ended(process), (141, ""))

    def test_a_stdout_that_is_closed_is_an_error(self) -> None:
        for command in PRINTING[:-1]:
            with self.subTest(command=command):
                process = self.popen("sh", "-c", 'exec "$@" >&-', "sh", sys.executable, *command)
                self.assertEqual(self.ended(process), (1, "error: cannot write to stdout: Bad file descriptor\n"))

    @unittest.skipUnless(Path("/dev/full").exists(), "no /dev/full")
    def test_a_full_disk_is_an_error(self) -> None:
        for command in EACH_WAY:
            with self.subTest(command=command), open("/dev/full", "wb") as full:
                process = self.popen(sys.executable, *command, stdout=full)
                self.assertEqual(self.ended(process), (1, "error: cannot write to stdout: No space left on device\n"))

    def test_with_no_output_at_all_the_status_remains(self) -> None:
        for arguments, expected in ((("check",), 1), (("check", "--port", "x"), 2), (("frobnicate",), 2)):
            process = self.popen("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, *MAIN, *arguments)
            self.assertEqual(self.ended(process), (expected, ""))

    @unittest.skipUnless(sys.platform == "linux", "needs a port that nobody else gets")
    def test_a_mock_engine_whose_reader_has_left_goes_on(self) -> None:
        held = self.enter(socket.socket())
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        reader, writer = os.pipe()
        os.close(reader)
        process = self.popen(sys.executable, *MAIN, "mock", "--port", str(port), stdout=writer)
        os.close(writer)

        def connected() -> Optional[RawClient]:
            self.assertIsNone(process.poll())
            with contextlib.suppress(ConnectionError):
                return RawClient(port)
            return None

        with eventually(connected) as client:
            self.assertEqual(client.ask("GET", "/health").status, 200)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(self.ended(process), (0, ""))


if __name__ == "__main__":
    unittest.main()
