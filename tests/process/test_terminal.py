"""`python main.py` at a terminal, and where there is none: what is shown, what is pasted from it, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional
from unittest import mock
from urllib.parse import quote

from gateway import cli
from gateway.announcing import NO_ENGINE
from tests.naming import deaf
from tests.support import (
    CHAT,
    HI,
    HOSTS,
    MAIN,
    TIMEOUT_S,
    RawClient,
    SocketTest,
    dead_url,
    engines,
    eventually,
    gateway_process,
    mock_engine,
    process_environment,
    run_main,
)

try:
    import pty
except ImportError:  # Windows
    pty = None  # type: ignore[assignment]

SECRETS = ("sk-pasted-5ecret", "c2VjcmV0LXBhc3RlZA==", "hunter2hunter2", "QUtJQUlPU0ZPRE5ON0VYQU1QTEU=")


class Screen:
    """A process at a terminal of its own, and all that it has shown there."""

    def __init__(self, directory: Path, environment: dict[str, Any], *arguments: str) -> None:
        self._master, slave = pty.openpty()
        settings = {"PORT": "0", "TERM": "xterm", "LOG_LEVEL": "error", **environment}
        try:
            self.process = subprocess.Popen(
                [sys.executable, *MAIN, *arguments],
                cwd=directory,
                env=process_environment(settings),
                stdin=slave,
                stdout=slave,
                stderr=slave,
            )
        finally:
            os.close(slave)
        self._shown = bytearray()
        self._reader = threading.Thread(target=self._read, name="screen", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # as Linux tells that nobody has it open any more
                data = b""
            if not data:
                return
            self._shown += data

    @property
    def text(self) -> str:
        """All that has been shown so far."""
        return bytes(self._shown).decode("utf-8", "replace").replace("\r\n", "\n")

    def wait_for(self, text: str) -> str:
        """Wait until it shows that; returns all it has shown."""

        def shown() -> Optional[str]:
            found = text in self.text
            assert found or self.process.poll() is None, f"ended with {self.process.returncode}: {self.text}"
            return self.text if found else None

        shown_text = eventually(shown, 2 * TIMEOUT_S)
        assert shown_text is not None
        return shown_text

    def end(self) -> tuple[int, str]:
        """Wait for its end; the exit status and all that it has shown."""
        status = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return status, self.text

    def close(self) -> None:
        """Kill what still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        os.close(self._master)


@unittest.skipIf(pty is None, "there are no pseudo-terminals")
class TerminalTest(SocketTest):
    def screen(self, *arguments: str, files: Optional[dict[str, str]] = None, **environment: Any) -> Screen:
        directory = Path(self.enter(tempfile.TemporaryDirectory()))
        for name, text in (files or {}).items():
            (directory / name).write_text(text, "utf-8")
        screen = Screen(directory, environment, *arguments)
        self.addCleanup(screen.close)
        return screen

    def test_address_models_and_how_to_end_it(self) -> None:
        engine = self.enter(mock_engine())
        dead = dead_url()
        screen = self.screen(ENGINES=engines(_13b=[engine.url, dead], _7b=dead))
        text = screen.wait_for("Ctrl-C to stop")
        self.assertTrue(text.startswith("inference gateway at http://127.0.0.1:"), text)
        for line in (
            "model 13b (default)\n",
            f"  {engine.url} \x1b[32mreached\x1b[0m\n",
            f"  {dead} \x1b[31mnot reached: Connection refused\x1b[0m\n",
            "model 7b\n",
        ):
            self.assertIn(line, text)
        screen.process.send_signal(signal.SIGINT)
        self.assertEqual(screen.end()[0], 0)

    def test_nothing_is_coloured_for_who_does_not_want_it(self) -> None:
        for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
            screen = self.screen(ENGINES=engines(m=dead_url()), **environment)
            text = screen.wait_for("Ctrl-C to stop")
            self.assertIn("not reached: Connection refused\n", text)
            self.assertNotIn("\x1b", text)

    def test_requests_are_shown_in_columns_and_colours_and_nothing_of_a_client_is_obeyed(self) -> None:
        engine, bad = self.enter(mock_engine()), self.enter(mock_engine(behaviour="error"))
        told = {
            "ENGINES": engines(_13b=[bad.url, engine.url]),
            "LOG_LEVEL": "info",
            "SLOW_MS": 1,
            "PYTHONUTF8": "1",
            "ALLOWED_HOSTS": HOSTS,
        }
        screen = self.screen(**told, STRATEGY="round_robin")
        text = screen.wait_for("Ctrl-C to stop")
        port = re.search(r"http://127\.0\.0\.1:(\d+)", text)
        assert port is not None
        sent: list[tuple[str, str, Any]] = [
            ("first", CHAT, HI),
            ("second", CHAT, {**HI, "stream": True}),
            ("wild", CHAT, {**HI, "model": "\x1b[2J\x1b]0;mine\x07"}),
            ("lost", "/\x1b[31m", None),
        ]
        with RawClient(int(port[1]), timeout_s=TIMEOUT_S) as client:
            for name, path, body in sent:
                with contextlib.suppress(Exception):
                    client.ask("GET" if body is None else "POST", quote(path), body, [("X-Request-ID", name)])
        for name, _, _ in sent:
            text = screen.wait_for(f"\x1b[2m{name}\x1b[0m\n")
        codes = set(re.findall("\x1b.{0,4}", text))
        self.assertEqual({code for code in codes if not re.match(r"\x1b\[(0|1|2|3[1236])m", code)}, set(), codes)
        lines = {name: line for line in text.split("\n") for name, _, _ in sent if line.endswith(f"[2m{name}\x1b[0m")}
        bare = {name: re.sub("\x1b[^m]*m", "", line) for name, line in lines.items()}
        here = (
            rf"\d\d:\d\d:\d\d\.\d{{3}} (INFO |WARN ) 200 POST {CHAT} +\d+(\.\d)?ms  13b→127\.0\.0\.1:\d+ +\d+\+\d+ tok "
        )
        self.assertRegex(bare["first"], here)
        self.assertRegex(bare["second"], here + r" ttft +\d+(\.\d)?ms")
        self.assertIn(r'"\u001b[2J\u001b]0;mine\u0007"', bare["wild"])
        self.assertIn("\x1b[33m404\x1b[0m", lines["wild"])
        self.assertEqual(len({bare[name].index(" tok") for name in ("first", "second")}), 1, bare)
        slow = [line for line in bare.values() if "slow: " in line and "error 500" in line]
        self.assertTrue(slow and all(" WARN " in line and " ok " in line for line in slow), bare)

    @unittest.skipUnless(shutil.which("curl") and shutil.which("sh"), "curl is not installed")
    def test_what_it_offers_to_be_pasted_works(self) -> None:
        engine = self.enter(mock_engine("13b"))
        for environment, key in (
            ({"ENGINES": engines(_13b=engine.url)}, ""),
            ({"ENGINES": engines(_13b=engine.url), "API_KEYS": "me:open-sesame", "HOST": "0.0.0.0"}, "open-sesame"),
            ({"BACKEND_URL": engine.url}, ""),
            ({}, ""),
        ):
            screen = self.screen(**environment)
            text = screen.wait_for("Ctrl-C to stop").partition("try it:\n")[2].partition("Ctrl-C")[0]
            self.assertEqual("<key>" in text, bool(key))
            command = text.strip().replace("<key>", key).replace("curl ", "curl -q -s --noproxy '*' ", 1)
            answer = subprocess.run(["sh", "-c", command], capture_output=True, timeout=TIMEOUT_S, check=True)
            self.assertEqual(json.loads(answer.stdout)["object"], "chat.completion", answer.stdout)
            address = re.search("endpoints: (http://[^ \n]+)", screen.text)
            assert address is not None
            index = ["curl", "-q", "-s", "--noproxy", "*", "-H", f"Authorization: Bearer {key}", address[1]]
            answer = subprocess.run(index, capture_output=True, timeout=TIMEOUT_S, check=True)
            self.assertIn("endpoints", json.loads(answer.stdout))

    def test_the_drain_tells_how_to_end_it_at_once(self) -> None:
        engine = self.enter(mock_engine(behaviour="hang"))
        screen = self.screen(BACKEND_URL=engine.url, HEALTH_INTERVAL=0)
        text = screen.wait_for("Ctrl-C to stop")
        port = re.search(r"http://127\.0\.0\.1:(\d+)", text)
        assert port is not None
        client = self.enter(RawClient(int(port[1]), timeout_s=TIMEOUT_S))
        client.send(
            b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (CHAT.encode(), len(json.dumps(HI)), json.dumps(HI).encode())
        )
        self.assertTrue(engine.wait_for_requests(1, TIMEOUT_S))
        screen.process.send_signal(signal.SIGINT)
        screen.wait_for("draining: 1 request in flight; Ctrl-C again ends at once\n")
        self.assertIsNone(screen.process.poll())
        screen.process.send_signal(signal.SIGINT)
        self.assertEqual(screen.end()[0], 0)

    def test_without_requests_there_is_nothing_to_wait_for(self) -> None:
        screen = self.screen()
        screen.wait_for("Ctrl-C to stop")
        screen.process.send_signal(signal.SIGINT)
        status, text = screen.end()
        self.assertEqual(status, 0)
        self.assertNotIn("draining", text)

    def test_check_says_that_it_waits(self) -> None:
        with deaf() as port:
            screen = self.screen("check", BACKEND_URL=f"http://127.0.0.1:{port}", HEALTH_TIMEOUT=2)
            screen.wait_for("waiting for engines, at most ")
            status, text = screen.end()
        self.assertEqual(status, 0)
        self.assertIn("not reached: no answer within 2 s\n", text)


class NoTerminalTest(SocketTest):
    def test_models_but_no_colour_and_nothing_to_paste(self) -> None:
        engine = self.enter(mock_engine())
        dead = dead_url()
        variables = {"ENGINES": engines(_13b=[engine.url, dead]), "HEALTH_INTERVAL": 5, "TERM": "xterm"}
        process = self.enter(gateway_process(variables))
        eventually(lambda: "not reached" in process.stdout)
        expected = f"""inference gateway at {process.url}
model 13b (default)
  {engine.url} reached
  {dead} not reached: Connection refused
"""
        self.assertEqual(process.stdout, expected)

    def test_nothing_configured_is_said(self) -> None:
        process = self.enter(gateway_process())
        eventually(lambda: process.stdout.count("\n") == 2)
        self.assertEqual(process.stdout.splitlines()[1], NO_ENGINE)
        status, stdout, _ = run_main({}, "check")
        self.assertEqual(status, 0)
        self.assertIn(NO_ENGINE, stdout.splitlines())

    def test_engines_that_do_not_answer_keep_neither_requests_nor_the_end_waiting(self) -> None:
        with deaf() as port:
            variables = {"ENGINES": f"m=http://127.0.0.1:{port};e=echo:", "HEALTH_INTERVAL": 5}
            with gateway_process(variables, HEALTH_TIMEOUT=3600) as process:
                self.assertEqual(process.ask("POST", CHAT, {**HI, "model": "e"}).status, 200)
                self.assertEqual(process.ask("GET", "/readyz").status, 503)
            with gateway_process(variables, HEALTH_TIMEOUT=0.5) as process:
                process.signal(signal.SIGTERM)
                self.assertEqual(process.wait(), 0)

    @unittest.skipUnless(os.name == "posix", "pipes of Unix")
    def test_who_reads_the_first_line_and_leaves_ends_nothing(self) -> None:
        engine = self.enter(mock_engine())
        with self.piped({"BACKEND_URL": engine.url, "HEALTH_INTERVAL": 5}) as (process, reader):
            url = read_line(reader)
            os.close(reader)
            self.serves_and_ends(process, int(url.rpartition(":")[2]))

    @unittest.skipUnless(sys.platform == "linux", "the size of a pipe")
    def test_nobody_need_read_any_of_it(self) -> None:
        import fcntl

        names = [f"m{number}" for number in range(20)]
        fleet = ";".join(f"{name}=http://{'x' * 50}.localhost:1/{'v' * 300}" for name in names)
        with self.piped({"ENGINES": fleet, "HEALTH_INTERVAL": 0}, size=4096) as (process, reader):
            url = read_line(reader)
            # As much as there is room for; the rest of the lines waits for a reader that never comes.
            eventually(lambda: select.select([reader], [], [], 0)[0])
            self.assertEqual(fcntl.fcntl(reader, 1032), 4096)
            self.serves_and_ends(process, int(url.rpartition(":")[2]))
            os.close(reader)

    @contextlib.contextmanager
    def piped(self, variables: dict[str, Any], size: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
        reader, writer = os.pipe()
        if size:
            import fcntl

            fcntl.fcntl(writer, 1031, size)  # F_SETPIPE_SZ
        with tempfile.TemporaryDirectory() as directory:
            process = subprocess.Popen(
                [sys.executable, *MAIN],
                cwd=directory,
                env=process_environment({"PORT": 0, **variables}),
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=subprocess.DEVNULL,
            )
            os.close(writer)
            try:
                yield process, reader
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait(TIMEOUT_S)

    def serves_and_ends(self, process: subprocess.Popen[bytes], port: int) -> None:
        client = self.enter(RawClient(port, timeout_s=TIMEOUT_S))
        client.send(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        self.assertEqual(client.read_response().status, 200)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(TIMEOUT_S), 0)


def read_line(reader: int) -> str:
    """The first line of a pipe, byte by byte: nothing behind it is taken."""
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(reader, 1)
        assert data, f"ended after {line!r}"
        line += data
    return line.decode().strip()


class CheckTest(SocketTest):
    def test_engines_that_are_not_reached_are_no_fault(self) -> None:
        engine = self.enter(mock_engine())
        dead = dead_url()
        variables = {"ENGINES": engines(a=engine.url, b=dead), "HEALTH_INTERVAL": 5}
        status, stdout, stderr = run_main(variables, "check")
        self.assertEqual((status, stderr), (0, ""))
        self.assertRegex(stdout, rf"engine [^\n]*: {re.escape(engine.url)}, weight 1, reached\n")
        self.assertIn(f"{dead}, weight 1, not reached: Connection refused\n", stdout)
        self.assertNotIn("\x1b", stdout)

    def test_it_ends_also_when_engines_never_answer(self) -> None:
        with deaf() as port, tempfile.TemporaryDirectory() as directory:
            environ = {"BACKEND_URL": f"http://127.0.0.1:{port}", "HEALTH_TIMEOUT": "3600", "DNS_TTL": "0"}
            with contextlib.ExitStack() as stack:
                stack.enter_context(mock.patch.dict(os.environ, environ))
                stack.enter_context(mock.patch("gateway.cli.DOTENV", Path(directory) / ".env"))
                stack.enter_context(mock.patch("gateway.announcing.LOOK_S", 0.1))
                stack.enter_context(mock.patch("gateway.announcing.PATIENCE_S", 0.1))
                stack.enter_context(mock.patch("gateway.cli.OUTPUT_S", 0.1))
                output = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(output))
                began_s = time.monotonic()
                self.assertEqual(cli.main(["check"]), 0)
                self.assertLess(time.monotonic() - began_s, TIMEOUT_S)
                output.seek(0)
                self.assertIn("weight 1, no answer yet\n", output.read())


class DotenvTest(SocketTest):
    """A `.env` that is read is named; what in it says nothing is warned about, not shown if it may be a secret."""

    def test_its_path_and_its_unknown_names(self) -> None:
        text = f"ENGINES=m=echo:\nPROT=9\nSOME_TOKEN={SECRETS[2]}\n{SECRETS[3]}\n"
        files = {".env": text}
        expected = [
            ".env line 2: PROT is neither a setting nor the key of an engine; did you mean PORT?",
            ".env line 3: SOME_TOKEN is neither a setting nor the key of an engine",
            ".env line 4: holds nothing that is known here",
        ]
        status, stdout, stderr = run_main({}, "check", files=files)
        self.assertEqual((status, stderr), (0, ""))
        lines = stdout.splitlines()
        named = [line for line in lines if line.startswith("settings also from ")]
        self.assertEqual([Path(line).name for line in named], [".env"])
        self.assertTrue(Path(named[0][len("settings also from ") :]).is_absolute())
        self.assertEqual([line for line in lines if line.startswith("warning: ")], [f"warning: {x}" for x in expected])
        process = self.enter(gateway_process(files=files))
        eventually(lambda: "settings also from " in process.stdout)
        warned = eventually(
            lambda: [x for x in process.log_lines() if x["event"] == "dotenv"][2:] and process.log_lines()
        )
        self.assertEqual([x["message"] for x in warned if x["event"] == "dotenv"], expected)
        self.assertEqual({x["level"] for x in warned if x["event"] == "dotenv"}, {"warning"})
        (started,) = [line for line in process.log_lines() if line["event"] == "started"]
        self.assertEqual(Path(started["dotenv"]).name, ".env")
        for secret in SECRETS:
            self.assertNotIn(secret, stdout + process.stdout + process.stderr)

    def test_what_stops_the_start_is_said_with_the_names_that_may_be_behind_it(self) -> None:
        for command in ((), ("check",)):
            status, stdout, stderr = run_main({}, *command, files={".env": f"HOST=0.0.0.0\nAPI_KEY={SECRETS[2]}\n"})
            self.assertEqual((status, stdout), (2, ""))
            error, warning = stderr.splitlines()
            self.assertTrue(error.startswith("error: HOST: others can reach 0.0.0.0"), error)
            self.assertEqual(warning[:9] + warning[-22:], "warning: did you mean API_KEYS?")
            self.assertNotIn(SECRETS[2], stderr)

    def test_where_there_is_none_none_is_named(self) -> None:
        _, stdout, _ = run_main({}, "check")
        self.assertNotIn(".env", stdout)
        process = self.enter(gateway_process())
        (started,) = eventually(lambda: [line for line in process.log_lines() if line["event"] == "started"])
        self.assertNotIn("dotenv", started)


if __name__ == "__main__":
    unittest.main()
