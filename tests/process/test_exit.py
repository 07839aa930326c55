"""A process that is told to end ends: whoever does not read what it prints, and whenever the signal comes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

from gateway import serving
from gateway.telemetry.diverted import LINE_MAX, DivertedStream
from tests.ports import free_port
from tests.support import (
    CHAT,
    HI,
    ROOT,
    TIMEOUT_S,
    RawClient,
    SocketTest,
    engines,
    eventually,
    mock_engine,
    process_environment,
)

POSIX = os.name == "posix"
LINUX = sys.platform == "linux"
EXIT_S = 20.0
# A module that stands in the way of the standard library's until the FIFO's other end is closed. It does not block in
# one call: a signal that comes just before that call would be heard of only after it.
IN_THE_WAY = """
import os, sys, time
gate = os.open(os.environ["GATE"], os.O_RDONLY)
os.set_blocking(gate, False)
while True:
    try:
        if not os.read(gate, 1):
            break
    except BlockingIOError:
        time.sleep(0.005)
os.close(gate)
sys.path.remove(os.path.dirname(__file__))
del sys.modules[__name__]
__import__(__name__)
"""


@contextlib.contextmanager
def full_pipe() -> Iterator[int]:
    """The writing end of a pipe that takes nothing more, and that nobody reads."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x")
        os.set_blocking(writer, True)
        yield writer
    finally:
        os.close(writer)
        os.close(reader)


class ExitTest(SocketTest):
    def setUp(self) -> None:
        self.directory = Path(self.enter(tempfile.TemporaryDirectory()))
        self.port = free_port()  # the process cannot always say which it got

    def start(
        self, stdout: Any = None, stderr: Any = None, command: Optional[list[str]] = None, **variables: Any
    ) -> None:
        """`python main.py`; None: a file in the directory."""
        with open(self.directory / "stdout", "wb") as out, open(self.directory / "stderr", "wb") as err:
            self.process = subprocess.Popen(
                [*(command or []), sys.executable, str(ROOT / "main.py")],
                cwd=self.directory,
                env=process_environment(
                    {"PORT": self.port, "HEALTH_INTERVAL": 0, "ALLOWED_HOSTS": "gateway", **variables}
                ),
                stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout,
                stderr=err if stderr is None else stderr,
            )
        self.addCleanup(self.end)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def connect(self) -> RawClient:
        def connected() -> Optional[RawClient]:
            self.assertIsNone(self.process.poll(), self.read("stderr"))
            with contextlib.suppress(ConnectionError):
                return RawClient(self.port)
            return None

        return eventually(connected, 3 * TIMEOUT_S)

    def ready_status(self) -> int:
        with self.connect() as client:
            return client.ask("GET", "/readyz").status

    def read(self, name: str) -> str:
        return (self.directory / name).read_text("utf-8", "replace")

    def log_lines(self) -> list[dict[str, Any]]:
        whole = self.read("stderr").rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def assert_ends(self, status: int = 0, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.assertEqual(self.process.wait(EXIT_S), status, self.read("stderr"))


@unittest.skipUnless(POSIX, "pipes and signals as POSIX has them")
class UnreadTest(ExitTest):
    def test_a_log_that_nobody_reads_keeps_no_request_and_no_exit(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number), full_pipe() as pipe:
                self.start(stderr=pipe)
                with self.connect() as client:
                    for _ in range(20):
                        self.assertEqual(client.post().status, 200)
                self.assert_ends(0, number)

    def test_nor_does_it_keep_a_drain(self) -> None:
        engine = self.enter(mock_engine())
        gate = engine.hold_after(1)
        self.addCleanup(gate.release)
        with full_pipe() as pipe:
            self.start(stderr=pipe, ENGINES=engines(_13b=engine.url))
            with self.connect() as client:
                client.request("POST", CHAT, {**HI, "stream": True})
                client.read_head()
                client.read_event()
                self.process.send_signal(signal.SIGTERM)
                eventually(lambda: self.ready_status() == 503)
                gate.release()
                self.assertEqual(client.read_events()[-1], "data: [DONE]")
            self.assertEqual(self.process.wait(EXIT_S), 0)

    def test_a_log_that_is_blocked_only_later_is_no_different(self) -> None:
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.start(stderr=writer)
        os.close(writer)
        with self.connect() as client:
            for _ in range(300):  # more lines than the pipe takes
                self.assertEqual(client.post().status, 200)
        self.assert_ends()

    def test_an_address_that_nobody_reads_keeps_nothing(self) -> None:
        with full_pipe() as pipe:
            self.start(stdout=pipe)
            with self.connect() as client:
                self.assertEqual(client.post().status, 200)
            self.process.send_signal(signal.SIGHUP)
            eventually(lambda: any(line["event"].startswith("reload") for line in self.log_lines()))
            self.assert_ends()

    def test_both_that_nobody_reads(self) -> None:
        with full_pipe() as pipe:
            self.start(stdout=pipe, stderr=pipe)
            with self.connect() as client:
                self.assertEqual(client.post().status, 200)
            self.assert_ends()

    def test_readers_that_have_left(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        self.start(stdout=writer, stderr=writer)
        os.close(writer)
        with self.connect() as client:
            self.assertEqual(client.post().status, 200)
            metrics = client.ask("GET", "/metrics").body.decode()
        self.assertIn("gateway_log_lines_dropped_total", metrics)
        self.assert_ends()

    def test_closed_descriptors_become_nobodys_socket(self) -> None:
        self.start(command=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"])
        with self.connect() as client:
            self.assertEqual(client.post().status, 200)
            if LINUX:
                links = [str(Path(f"/proc/{self.process.pid}/fd/{number}").readlink()) for number in range(3)]
                self.assertEqual(links, [os.devnull] * 3)
        self.assert_ends()

    def test_a_fault_that_nobody_reads_keeps_no_exit(self) -> None:
        with full_pipe() as pipe:
            self.start(stderr=pipe, STRATEGY="best")
            self.assertEqual(self.process.wait(EXIT_S), 2)

    def test_a_storm_of_sighups_hides_no_sigterm(self) -> None:
        self.start()
        self.connect().close()
        eventually(lambda: "inference gateway at" in self.read("stdout"))
        for _ in range(5000):
            self.process.send_signal(signal.SIGHUP)
        self.assert_ends()
        self.assertNotIn("Traceback", self.read("stderr"))


@unittest.skipUnless(POSIX, "FIFOs, and signals as POSIX has them")
class StartingTest(ExitTest):
    def setUp(self) -> None:
        super().setUp()
        self.fifo = self.directory / "gate"
        os.mkfifo(self.fifo)

    def wait_for_reader(self) -> int:
        """The writing end of the FIFO, as soon as the process stands at it."""

        def opened() -> Optional[list[int]]:
            try:
                return [os.open(self.fifo, os.O_WRONLY | os.O_NONBLOCK)]
            except OSError:
                return None

        return eventually(opened, 3 * TIMEOUT_S)[0]

    def start_importing(self) -> int:
        """A process that stands still among its imports."""
        (self.directory / "modules").mkdir(exist_ok=True)
        (self.directory / "modules" / "argparse.py").write_text(IN_THE_WAY)
        self.start(GATE=self.fifo, PYTHONPATH=self.directory / "modules")
        return self.wait_for_reader()

    def start_reading(self) -> int:
        """A process that stands still at its engines file."""
        self.start(ENGINES_FILE=self.fifo)
        return self.wait_for_reader()

    def test_an_end_during_the_start_is_one_at_once(self) -> None:
        for start in (self.start_importing, self.start_reading):
            for number, status in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
                with self.subTest(start=start.__name__, signal=number):
                    writer = start()
                    self.assert_ends(status, number)
                    os.close(writer)
                    self.assertEqual((self.read("stdout"), self.read("stderr")), ("", ""))

    def test_a_sighup_during_the_start_ends_nothing_and_reads_the_engines_again(self) -> None:
        writer = self.start_importing()
        self.process.send_signal(signal.SIGHUP)
        os.close(writer)
        with self.connect() as client:
            self.assertEqual(client.post().status, 200)
        eventually(lambda: any(line["event"] == "reloaded" for line in self.log_lines()))
        self.assert_ends()

    def test_a_sighup_while_the_engines_file_is_read_is_not_lost(self) -> None:
        writer = self.start_reading()
        self.process.send_signal(signal.SIGHUP)
        os.write(writer, json.dumps({"models": {"first": {"engines": ["echo:"]}}}).encode())
        os.close(writer)
        eventually(lambda: any(line["event"] == "started" for line in self.log_lines()))
        again = self.wait_for_reader()
        os.write(again, json.dumps({"models": {"second": {"engines": ["echo:"]}}}).encode())
        os.close(again)
        eventually(lambda: any(line.get("models") == ["second"] for line in self.log_lines()))
        self.assert_ends()

    def test_an_interrupted_command_prints_no_traceback(self) -> None:
        (self.directory / "modules").mkdir()
        (self.directory / "modules" / "argparse.py").write_text(IN_THE_WAY)
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), "check"],
            cwd=self.directory,
            env=process_environment({"GATE": self.fifo, "PYTHONPATH": self.directory / "modules"}),
            stderr=subprocess.PIPE,
        )
        self.addCleanup(self.end)
        writer = self.wait_for_reader()
        self.process.send_signal(signal.SIGINT)
        _, stderr = self.process.communicate(timeout=EXIT_S)
        os.close(writer)
        self.assertEqual((self.process.returncode, stderr), (130, b""))


class StuckGateway:
    """Its parts do not end."""

    def __init__(self, drain_timeout_s: float) -> None:
        self.settings = SimpleNamespace(drain_delay_s=0.0, drain_timeout_s=drain_timeout_s)
        self.pipeline = SimpleNamespace(in_flight=0)
        self.never = threading.Event()
        self.hurried = 0

    def stop(self) -> None:
        self.never.wait()

    def hurry(self) -> None:
        self.hurried += 1


class Script:
    """Signals that come as fast as they are waited for."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = list(numbers)

    def wait(self, timeout_s: float) -> Optional[int]:
        return self.numbers.pop(0) if self.numbers else None


class StuckTest(unittest.TestCase):
    def drain(self, gateway: StuckGateway, *numbers: int) -> int:
        self.addCleanup(gateway.never.set)
        return serving._drain(gateway, Script(*numbers), shows=True)  # type: ignore[arg-type]

    def test_a_third_signal_waits_for_nothing(self) -> None:
        gateway = StuckGateway(3600.0)
        self.assertEqual(self.drain(gateway, signal.SIGTERM, signal.SIGINT), 1)
        self.assertEqual(gateway.hurried, 1)

    def test_parts_that_do_not_end_are_left(self) -> None:
        gateway = StuckGateway(-serving.STOP_S)
        self.assertEqual(self.drain(gateway), 1)
        self.assertEqual(gateway.hurried, 0)


class DivertedTest(unittest.TestCase):
    def setUp(self) -> None:
        self.lines: list[str] = []
        self.stream = DivertedStream(lambda level, event, text: self.lines.append(text))

    def test_whole_lines_are_logged_and_blank_ones_are_not(self) -> None:
        print("one", "two", file=self.stream)
        self.stream.write("thr")
        self.assertEqual(self.lines, ["one two"])
        self.stream.write("ee\n\n  \nfour\nfi")
        self.assertEqual(self.lines, ["one two", "three", "four"])

    def test_threads_do_not_mix_their_lines(self) -> None:
        self.stream.write("mine ")
        thread = threading.Thread(target=lambda: print("other", file=self.stream))
        thread.start()
        thread.join()
        self.stream.write("too\n")
        self.assertEqual(self.lines, ["other", "mine too"])

    def test_a_line_without_an_end_is_not_kept_without_bound(self) -> None:
        self.stream.write("x" * (LINE_MAX + 1))
        self.assertEqual(self.lines, ["x" * (LINE_MAX + 1)])


if __name__ == "__main__":
    unittest.main()
