"""`loadtest` against real servers in this process: what it counts is what they have counted, whatever they do."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional
from unittest import mock

from gateway.tools.loadtest.arrivals import Stage, due_ns
from gateway.tools.loadtest.command import main
from gateway.tools.loadtest.connections import Endpoint
from gateway.tools.loadtest.durations import NS
from gateway.tools.loadtest.loop import Limits, Loop
from gateway.tools.loadtest.measures import Measures
from gateway.tools.loadtest.requests import Request
from gateway.tools.loadtest.schedule import ClosedLoop, OpenLoop, Schedule
from tests.scripted import DONE, STREAM_HEAD, EngineSide, chunked, delta
from tests.support import (
    TIMEOUT_S,
    SocketTest,
    assert_no_more_threads,
    dead_url,
    engines,
    gateway,
    mock_engine,
    thread_names,
)

KEY = "sk-secret-of-this-test"
ANSWER = b'{"choices":[{}],"usage":{"prompt_tokens":4,"completion_tokens":9}}'
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)


class Server:
    """A server of which a function says what it does with each request on each connection; a context manager."""

    def __init__(
        self,
        conduct: Callable[[EngineSide, int], None],
        host: str = "127.0.0.1",
        tls: Optional[ssl.SSLContext] = None,
    ) -> None:
        """`conduct` gets the connection, with a request read, and how many requests came on it before; what it raises
        (AssertionError: the other side has closed) ends the connection."""
        self._conduct = conduct
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=128)
        shown = f"[{host}]" if ":" in host else host
        self._tls = tls
        self.url = f"{'https' if tls else 'http'}://{shown}:{self._listener.getsockname()[1]}"
        self.requests = 0
        self.connections = 0
        self._lock = threading.Lock()
        self._sides: list[EngineSide] = []
        self._threads = [threading.Thread(target=self._accept, name="test-server", daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(TIMEOUT_S)
            try:
                side = EngineSide(sock if self._tls is None else self._tls.wrap_socket(sock, server_side=True))
            except OSError:  # who does not trust us leaves
                sock.close()
                continue
            thread = threading.Thread(target=self._serve, args=(side,), name="test-server", daemon=True)
            with self._lock:
                self.connections += 1
                self._sides.append(side)
                self._threads.append(thread)
            thread.start()

    def _serve(self, side: EngineSide) -> None:
        with contextlib.suppress(OSError, AssertionError):
            before = 0
            while True:
                side.read_request()
                with self._lock:
                    self.requests += 1
                self._conduct(side, before)
                before += 1
        side.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for side in self._sides:
            side.close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)


class LoadTestTest(SocketTest):
    def setUp(self) -> None:
        self.directory = Path(self.enter(tempfile.TemporaryDirectory()))
        before = thread_names()
        self.addCleanup(assert_no_more_threads, before)

    def run_command(self, url: str, *argv: str, **environment: str) -> tuple[int, str, str]:
        """Exit status, stdout and stderr."""
        stdout, stderr = io.StringIO(), io.StringIO()
        with mock.patch.dict(os.environ, environment, clear=True):
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                status = main([url, *argv], "loadtest")
        for text in (stdout.getvalue(), stderr.getvalue()):
            self.assertNotIn(KEY, text)
        return status, stdout.getvalue(), stderr.getvalue()

    def measured(self, url: str, *argv: str, **environment: str) -> dict[str, Any]:
        """The result of a run that ends well."""
        if "-m" not in argv:
            argv = ("-m", "m", *argv)
        status, stdout, stderr = self.run_command(url, "--json", "-", "--timeout", "20s", *argv, **environment)
        self.assertEqual(status, 0, stderr)
        found: dict[str, Any] = json.loads(stdout)
        asked = found["requests"]
        self.assertEqual(asked["sent"] + asked["unsent"], asked["finished"] + asked["abandoned"])
        return found

    def errors(self, url: str, *argv: str) -> dict[str, int]:
        """Errors and their counts; times are only of what was answered well."""
        found = self.measured(url, *argv)
        service = found["times"]["service"]
        self.assertEqual(service["count"] if service else 0, found["requests"]["ok"])
        return {one["error"]: one["count"] for one in found["errors"]}


class CountsTest(LoadTestTest):
    def test_a_closed_loop_counts_what_the_server_has_counted(self) -> None:
        engine = self.enter(mock_engine("m"))
        found = self.measured(engine.url, "-n", "200", "-c", "8", "--stream=0.5", "--seed", "3")
        self.assertEqual(engine.stats()["requests"], 200)
        self.assertEqual((found["requests"]["sent"], found["requests"]["ok"]), (200, 200))
        self.assertLessEqual(found["connections"]["opened"], 8)
        self.assertEqual(engine.stats()["connections_total"], found["connections"]["opened"] + 1)  # one to look
        self.assertGreater(found["requests"]["streams"], 50)
        self.assertEqual(found["times"]["ttft"]["count"], found["requests"]["streams"])
        self.assertEqual(found["tokens"]["answers_with_usage"], 200)
        self.assertFalse(found["tokens"]["estimated"])

    def test_an_open_loop_sends_each_request_that_was_due_and_no_other(self) -> None:
        engine = self.enter(mock_engine("m"))
        found = self.measured(engine.url, "--rate", "400", "-d", "0.5s", "--warmup", "0.1s", "--stream=0.3")
        self.assertEqual((found["requests"]["sent"], found["requests"]["warmup_sent"]), (200, 40))
        self.assertEqual(engine.stats()["requests"], 240)
        self.assertEqual(found["times"]["response"]["count"], 200)
        self.assertEqual(sum(one["sent"] for one in found["timeline"]), 240)

    def test_a_gateway_has_counted_the_same_by_model_and_engine(self) -> None:
        one, two = self.enter(mock_engine("a")), self.enter(mock_engine("b"))
        running = self.enter(gateway(ENGINES=engines(a=one.url, b=two.url), API_KEYS=f"k:{KEY}"))
        argv = ("-m", "a=3", "-m", "b=1", "-n", "120", "-c", "6", "--stream=0.5", "--unique", "--seed", "1")
        found = self.measured(f"{running.url}/v1", *argv, LOADTEST_KEY=KEY)
        models = {row["name"]: row["ok"] for row in found["models"]}
        self.assertEqual(models, {"a": one.stats()["requests"], "b": two.stats()["requests"]})
        self.assertEqual(sum(models.values()), 120)
        self.assertGreater(models["a"], models["b"])
        self.assertEqual(sorted(row["ok"] for row in found["engines"]), sorted(models.values()))
        for name, count in models.items():
            sample = f'gateway_requests_total{{path="/v1/chat/completions",model="{name}",status="200"}}'
            running.wait_for_metric(sample, count)

    def test_the_same_seed_asks_the_same_again(self) -> None:
        seen: list[bytes] = []
        server = self.enter(Server(lambda side, before: (seen.append(side.body), side.send(WHOLE))[1]))
        argv = (
            "-c",
            "1",
            "-n",
            "20",
            "--unique",
            "--prompt-tokens",
            "5-50",
            "--max-tokens",
            "1-9",
            "-m",
            "a",
            "-m",
            "b",
        )
        for _ in range(2):
            self.measured(server.url, *argv, "--seed", "7")
        self.assertEqual(seen[:20], seen[20:])
        self.assertEqual(len(set(seen)), 20)
        self.measured(server.url, *argv, "--seed", "8")
        self.assertNotEqual(seen[:20], seen[40:])

    def test_every_kind_and_a_prompts_file_are_asked(self) -> None:
        engine = self.enter(mock_engine("m"))
        for kind in ("completions", "embeddings"):
            self.assertEqual(self.errors(engine.url, "-n", "10", "-c", "2", "--kind", kind), {})
        path = self.directory / "prompts.jsonl"
        path.write_text('"a"\n{"messages": [{"role": "user", "content": "b"}], "temperature": 0}\n', "utf-8")
        self.assertEqual(self.errors(engine.url, "-n", "10", "--prompts", str(path), "--shared-prefix", "20"), {})
        self.assertEqual(
            self.errors(engine.url, "-n", "9", "--path", "/v1/messages", "--max-tokens", "8", "--stream"), {}
        )

    def test_a_connection_for_each_request(self) -> None:
        engine = self.enter(mock_engine("m"))
        found = self.measured(engine.url, "-n", "30", "-c", "3", "--no-keepalive")
        self.assertEqual((found["connections"]["opened"], found["requests"]["ok"]), (30, 30))
        self.assertEqual(engine.stats()["connections_total"], 31)  # one to look

    def test_a_model_is_asked_for_where_none_is_named(self) -> None:
        engine = self.enter(mock_engine("the-only-one"))
        status, stdout, stderr = self.run_command(engine.url, "-n", "3")
        self.assertEqual(status, 0)
        self.assertIn("the-only-one", stdout)
        self.assertIn("model: the-only-one, which it lists", stderr)

    def test_a_model_that_is_named_for_terminals_tells_them_nothing(self) -> None:
        engine = self.enter(mock_engine("\x1b]0;mine\x07\x1b[2J\u202e" + "x" * 9000))
        status, stdout, stderr = self.run_command(engine.url, "-n", "3")
        self.assertEqual(status, 0)
        (line,) = (line for line in stderr.splitlines() if "which it lists" in line)
        self.assertLess(len(line), 300)
        for text in (stdout, stderr):
            self.assertFalse([one for one in text if not one.isprintable() and one != "\n"])


class FaultsTest(LoadTestTest):
    """Each behaviour of the mock engine is counted as what it is, as often as it happened."""

    def test_what_goes_wrong_is_counted_by_its_name(self) -> None:
        for behaviour, options, flags, expected in (
            ("error", {"status": 500}, (), "500"),
            ("unauthorized", {}, (), "401"),
            ("malformed", {}, (), "the answer is not JSON"),
            ("truncate", {}, (), "closed in the body"),
            ("drop_mid_stream", {}, ("--stream",), "stream: closed before its end"),
            ("end_mid_stream", {}, ("--stream",), "stream: ended without [DONE]"),
            ("no_done", {}, ("--stream",), "stream: ended without [DONE]"),
            ("error_mid_stream", {}, ("--stream",), "stream: error event: "),
            ("error_first_event", {}, ("--stream",), "stream: error event: "),
            ("plain_json", {}, ("--stream",), "stream: the answer is no event stream"),
        ):
            with self.subTest(behaviour):
                engine = self.enter(mock_engine("m", behaviour, **options))
                ((name, count),) = self.errors(engine.url, "-n", "12", "-c", "3", *flags).items()
                self.assertEqual((name[: len(expected)], count), (expected, 12))
                self.assertEqual(engine.stats()["requests"], 12)

    def test_a_reset_is_one_also_in_the_midst_of_a_stream(self) -> None:
        for behaviour, flags in (("reset", ()), ("reset_mid_stream", ("--stream",))):
            engine = self.enter(mock_engine("m", behaviour))
            counted = self.errors(engine.url, "-n", "12", "-c", "3", *flags)
            self.assertEqual(sum(counted.values()), 12)
            self.assertTrue(all("connection reset" in name or "closed" in name for name in counted), counted)

    def test_refusals_are_counted_apart(self) -> None:
        engine = self.enter(mock_engine("m", "rate_limit", retry_after=3))
        asked = self.measured(engine.url, "-n", "10")["requests"]
        self.assertEqual((asked["refused"], asked["errors"], asked["failed"]), (10, 0, 10))
        engine = self.enter(mock_engine("m", "rate_limit"))
        asked = self.measured(engine.url, "-n", "10")["requests"]
        self.assertEqual((asked["refused"], asked["errors"]), (0, 10))

    def test_one_that_never_answers_is_a_timeout(self) -> None:
        engine = self.enter(mock_engine("m", "hang"))
        self.assertEqual(self.errors(engine.url, "-n", "4", "-c", "4", "--timeout", "0.3s"), {"timeout": 4})
        self.assertEqual(engine.stats()["requests"], 4)

    def test_one_that_drips_is_read_to_its_end(self) -> None:
        engine = self.enter(mock_engine("m", "drip", gap=0.0))
        self.assertEqual(self.errors(engine.url, "-n", "8", "-c", "4", "--stream=0.5"), {})

    def test_odd_servers_are_read_or_told(self) -> None:
        http_1_0 = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + ANSWER
        early = b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE
        huge = ANSWER[:-1] + b',"padding":"' + b"x" * 5_000_000 + b'"}'
        huge = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(huge), huge)
        for data, closes, expected in (
            (http_1_0, True, {}),
            (early, False, {}),
            (huge, False, {}),
            (WHOLE, True, {}),
            (WHOLE[:-3], True, {"closed in the body": 6}),
            (b"SSH-2.0-x\r\n", False, {"not HTTP: the answer does not begin with HTTP/": 6}),
            (b"\x00" * 1000, True, {"not HTTP: the answer does not begin with HTTP/": 6}),
        ):
            with self.subTest(data[:30]):
                conduct = lambda side, before, data=data, closes=closes: side.send(data) or (closes and side.close())  # noqa: E731
                server = self.enter(Server(conduct))
                self.assertEqual(self.errors(server.url, "-n", "6", "-c", "2"), expected)
                self.assertEqual(server.requests, 6)

    def test_a_kept_connection_that_was_closed_costs_no_request(self) -> None:
        def conduct(side: EngineSide, before: int) -> None:
            if before:
                side.close()  # instead of an answer to the second one, as a server does that has closed meanwhile
            else:
                side.send(WHOLE)

        server = self.enter(Server(conduct))
        found = self.measured(server.url, "-n", "5", "-c", "1")
        self.assertEqual((found["requests"]["ok"], found["connections"]["resent"]), (5, 4))
        self.assertIn("went out once more", "".join(found["notes"]))

    def test_a_server_that_closes_each_connection_without_an_answer_is_told(self) -> None:
        server = self.enter(Server(lambda side, before: side.close()))
        counted = self.errors(server.url, "-n", "6", "-c", "2")
        self.assertEqual(sum(counted.values()), 6)
        self.assertEqual(server.requests, 6)

    def test_it_goes_over_ipv6_where_there_is_one(self) -> None:
        try:
            server = self.enter(Server(lambda side, before: side.send(WHOLE), "::1"))
        except OSError as error:
            self.skipTest(f"no IPv6 here: {error}")
        self.assertEqual(self.errors(server.url, "-n", "5"), {})

    def test_a_stream_in_any_pieces(self) -> None:
        data = STREAM_HEAD + b"".join(map(chunked, (delta("a"), delta("b"), DONE))) + b"0\r\n\r\n"

        def conduct(side: EngineSide, before: int) -> None:
            for at in range(0, len(data), 1 + before):
                side.send(data[at : at + 1 + before])

        server = self.enter(Server(conduct))
        found = self.measured(server.url, "-n", "12", "-c", "1", "--stream")
        self.assertEqual((found["requests"]["ok"], found["tokens"]["output"]), (12, 24))
        self.assertTrue(found["tokens"]["estimated"])


class EndsTest(LoadTestTest):
    def test_a_server_that_is_not_there_is_named_before_anything_is_sent(self) -> None:
        url = dead_url()
        status, stdout, stderr = self.run_command(url, "-m", "m", "--rate", "1000")
        self.assertEqual((status, stdout), (1, ""))
        self.assertRegex(stderr, r"^error: cannot reach http://127\.0\.0\.1:\d+: connection refused\n$")

    def test_a_key_that_is_wanted_is_named(self) -> None:
        running = self.enter(gateway(ENGINES="m=echo:", API_KEYS=f"k:{KEY}"))
        status, _, stderr = self.run_command(running.url, "-n", "1")
        self.assertEqual(status, 1)
        self.assertIn("wants a key (LOADTEST_KEY)", stderr)
        status, _, stderr = self.run_command(running.url, "-n", "1", OPENAI_API_KEY="sk-other")
        self.assertIn("does not take the key from OPENAI_API_KEY", stderr)

    def test_a_list_of_models_that_never_ends_is_waited_for_no_longer_than_an_answer(self) -> None:
        for name, head, again in (
            ("a head", b"HTTP/1.1 200 OK\r\nX: ", b"x"),
            ("a body", b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", b" "),
            ("going on", b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ):
            with self.subTest(name), socket.create_server(("127.0.0.1", 0)) as listener:

                def drip(listener: socket.socket = listener, head: bytes = head, again: bytes = again) -> None:
                    listener.accept()[0].close()  # a look whether it is there
                    sock, _ = listener.accept()
                    with sock, contextlib.suppress(OSError):
                        sock.sendall(head)
                        for _ in range(100):  # the point is that it takes long, and each wait is short
                            sock.sendall(again)
                            time.sleep(0.05)

                thread = threading.Thread(target=drip, name="test-server", daemon=True)
                thread.start()
                status, _, stderr = self.run_command(
                    f"http://127.0.0.1:{listener.getsockname()[1]}", "--timeout", "0.3s"
                )
                thread.join(TIMEOUT_S)
                self.assertEqual(status, 1)
                self.assertIn("for a model: timeout; name a model with --model", stderr)

    def test_a_server_that_lists_no_model_is_told_with_what_to_do(self) -> None:
        for answer, expected in (
            (b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"data":[]}', "lists no model"),
            (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "answers 404"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "lists no model"),
            (b"SSH-2.0\r\n", "BadStatusLine"),
            (b"", "connection reset"),
        ):
            with self.subTest(answer):
                with socket.create_server(("127.0.0.1", 0)) as listener:

                    def serve(listener: socket.socket = listener, answer: bytes = answer) -> None:
                        for _ in range(2):  # one to look whether it is there, one that asks
                            sock, _ = listener.accept()
                            with sock:
                                sock.settimeout(TIMEOUT_S)
                                if sock.recv(65536):
                                    sock.sendall(answer)

                    thread = threading.Thread(target=serve, name="test-server", daemon=True)
                    thread.start()
                    status, _, stderr = self.run_command(f"http://127.0.0.1:{listener.getsockname()[1]}")
                    thread.join(TIMEOUT_S)
                self.assertEqual(status, 1)
                self.assertIn(expected, stderr)
                self.assertIn("name a model with --model", stderr)

    def test_thresholds_decide_the_exit_status(self) -> None:
        engine = self.enter(mock_engine("m"))
        for rule, expected in (("errors>1%", 0), ("p99>1m", 0), ("p99<1m", 1), ("rate>0", 1)):
            status, stdout, _ = self.run_command(engine.url, "-n", "5", "--fail-if", rule)
            self.assertEqual(status, expected, rule)
            self.assertIn("FAILED" if expected else "passed", stdout)

    def test_files_are_written_or_said_not_to_be_before_the_load(self) -> None:
        engine = self.enter(mock_engine("m"))
        page, document = self.directory / "r.html", self.directory / "r.json"
        status, stdout, _ = self.run_command(engine.url, "-n", "5", "--html", str(page), "--json", str(document))
        self.assertEqual(status, 0)
        self.assertIn("service time", stdout)
        self.assertEqual(json.loads(document.read_text("utf-8"))["schema"], "loadtest/1")
        self.assertTrue(page.read_text("utf-8").startswith("<!doctype html>"))
        asked = engine.stats()["requests"]
        for flag in ("--html", "--json"):
            for path in (self.directory, self.directory / "none" / "x"):
                status, _, stderr = self.run_command(engine.url, "-n", "5", flag, str(path))
                self.assertEqual(status, 2)
                self.assertIn(f"error: {flag}: {path}: ", stderr)
        self.assertEqual(engine.stats()["requests"], asked)

    def test_a_file_of_prompts_that_is_none_is_named(self) -> None:
        status, _, stderr = self.run_command(dead_url(), "--prompts", str(self.directory / "none"))
        self.assertEqual(status, 2)
        self.assertIn("No such file", stderr)


OPENSSL = shutil.which("openssl")


@unittest.skipUnless(OPENSSL, "the openssl command is missing: no certificate for the server")
class TlsTest(LoadTestTest):
    def server(self, body: bytes = WHOLE) -> tuple[Server, Path]:
        """One that speaks TLS, and its certificate."""
        certificate, key = self.directory / "cert.pem", self.directory / "key.pem"
        command = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
        names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        made = subprocess.run([OPENSSL or "", *command.split(), *names], stderr=subprocess.PIPE, check=False)
        if made.returncode:
            raise unittest.SkipTest(f"this openssl makes no such certificate: {made.stderr.decode()[-200:]}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(str(certificate), str(key))
        return self.enter(Server(lambda side, before: side.send(body), tls=context)), certificate

    def test_a_certificate_is_trusted_or_said_not_to_be(self) -> None:
        server, certificate = self.server()
        for flags in (("--insecure",), ("--cacert", str(certificate)), ("--insecure", "--no-keepalive")):
            self.assertEqual(self.errors(server.url, "-n", "20", "-c", "3", *flags), {})
        asked = server.requests
        status, _, stderr = self.run_command(server.url, "-m", "m", "-n", "20")
        self.assertEqual((status, server.requests), (1, asked))
        self.assertIn("its certificate is not trusted", stderr)

    def test_answers_and_requests_larger_than_a_record_are_whole(self) -> None:
        answer = ANSWER[:-1] + b',"padding":"' + b"x" * 700_000 + b'"}'
        server, certificate = self.server(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))
        prompt = self.directory / "large.txt"
        prompt.write_text("x" * 3_000_000, "utf-8")
        flags = ("-n", "6", "-c", "2", "--cacert", str(certificate), "--prompts", str(prompt))
        found = self.measured(server.url, *flags)
        self.assertEqual((found["requests"]["ok"], found["body_bytes"]), (6, 6 * len(answer)))


class LoopTest(LoadTestTest):
    """The loop itself, with a server that does what the test says."""

    def loop(
        self, server: Server, schedule: Schedule, measures: Measures, connections: int = 1, **options: Any
    ) -> Loop:
        port = int(server.url.rpartition(":")[2])
        body = b'{"model":"m","messages":[]}'
        wire = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

        def requests() -> Iterator[Request]:
            while True:
                yield Request(wire, "m", False)

        limits = options.pop("limits", None) or Limits(connections, round(TIMEOUT_S * NS), round(TIMEOUT_S * NS))
        return Loop(Endpoint(socket.AF_INET, ("127.0.0.1", port)), schedule, requests(), measures, limits, **options)

    def test_who_was_due_while_the_server_stood_still_has_waited_since_then(self) -> None:
        gate = threading.Event()

        def conduct(side: EngineSide, before: int) -> None:
            if not before:
                assert gate.wait(TIMEOUT_S)
            side.send(WHOLE)

        def tick(now_ns: int) -> None:
            if now_ns >= 3 * NS // 10:
                gate.set()

        server = self.enter(Server(conduct))
        measures = Measures(open_loop=True)
        schedule = OpenLoop(due_ns([Stage(100, 100, 0.2)], 0))
        self.loop(server, schedule, measures, tick=tick).run(0)
        self.assertEqual((measures.total.ok, server.requests, server.connections), (20, 20, 1))
        # All had fallen due by 0.19 s, and none was answered before 0.3 s; but all except the first were sent then.
        self.assertGreaterEqual(measures.total.response.least, 110_000_000)
        self.assertGreaterEqual(measures.total.response.largest, 300_000_000)
        self.assertLess(measures.total.service.least, measures.total.response.least)
        self.assertEqual(measures.late, 0)  # that was no fault of the generator

    def test_a_loop_that_is_held_up_says_how_late_it_sent(self) -> None:
        server = self.enter(Server(lambda side, before: side.send(WHOLE)))
        measures = Measures(open_loop=True)

        def tick(now_ns: int) -> None:
            while loop.now_ns() < NS // 5:  # as a machine with other things to do would
                pass

        schedule = OpenLoop(due_ns([Stage(50, 50, 0.2)], 0))
        loop = self.loop(server, schedule, measures, connections=20, tick=tick)
        loop.run(0)
        self.assertEqual((measures.total.ok, measures.waited), (10, 0))
        # The first may have gone out in time; that of 0.02 s waited until 0.2 s.
        self.assertGreaterEqual(measures.lag.largest, 180_000_000)
        self.assertGreaterEqual(measures.late, 9)
        self.assertGreaterEqual(measures.total.response.largest, 180_000_000)

    @unittest.skipUnless(sys.platform == "linux", "elsewhere a full backlog refuses")
    def test_a_connection_that_does_not_come_about_is_given_up_sooner_than_an_answer(self) -> None:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
            for _ in range(8):  # nobody accepts them, and what comes behind them is not answered
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(listener.getsockname())
            measures = Measures(open_loop=False)
            schedule = ClosedLoop(2, 0, None, limit=2)
            endpoint = Endpoint(socket.AF_INET, listener.getsockname())
            request = Request(b"POST / HTTP/1.1\r\n\r\n", "m", False)
            limits = Limits(2, round(TIMEOUT_S * NS), NS // 5)
            Loop(endpoint, schedule, iter([request] * 2), measures, limits).run(0)
        self.assertEqual(measures.total.errors, {"connect: timeout": 2})

    def test_a_request_that_goes_out_once_more_has_all_the_time_to_connect(self) -> None:
        now_ns = step_ns = 0

        def clock_ns() -> int:
            nonlocal now_ns
            now_ns += step_ns
            return now_ns

        def conduct(side: EngineSide, before: int) -> None:
            nonlocal now_ns, step_ns
            if not before:
                side.send(WHOLE)
                return
            now_ns += 2 * NS  # so long has the request been under way when the kept connection is closed
            step_ns = NS // 9  # and the loop looks for what is too late each time around
            side.close()

        server = self.enter(Server(conduct))
        measures = Measures(open_loop=False)
        limits = Limits(1, 10**9 * NS, NS)
        self.loop(server, ClosedLoop(1, 0, None, limit=2), measures, limits=limits, clock_ns=clock_ns).run(0)
        self.assertEqual((measures.total.errors, measures.resent, measures.total.ok), ({}, 1, 2))

    def test_it_ends_when_it_is_interrupted_and_counts_what_it_abandons(self) -> None:
        held = threading.Event()

        def conduct(side: EngineSide, before: int) -> None:
            if before == 2:
                held.wait(TIMEOUT_S)
            side.send(WHOLE)

        server = self.enter(Server(conduct))
        self.addCleanup(held.set)
        measures = Measures(open_loop=False)
        loop: Optional[Loop] = None

        def tick(now_ns: int) -> None:
            if server.requests == 6 and measures.in_flight == 2:
                assert loop is not None
                loop.interrupt()

        loop = self.loop(server, ClosedLoop(2, 0, None), measures, connections=2, tick=tick)
        loop.run(0)
        self.assertEqual((measures.sent, measures.total.ok, measures.abandoned), (6, 4, 2))

    def test_it_looks_at_the_time_during_the_warm_up_too(self) -> None:
        server = self.enter(Server(lambda side, before: side.send(WHOLE)))
        measures, ticks = Measures(open_loop=True), list[int]()
        schedule = OpenLoop(due_ns([Stage(2, 2, 0.5), Stage(20, 20, 0.1)], -NS // 2))
        self.loop(server, schedule, measures, tick=ticks.append).run(-NS // 2)
        self.assertEqual((measures.warmup_sent, measures.sent), (1, 2))
        self.assertGreater(sum(now_ns < 0 for now_ns in ticks), 1)

    def test_a_large_request_is_sent_in_as_many_writes_as_it_takes(self) -> None:
        sizes: list[int] = []
        server = self.enter(Server(lambda side, before: (sizes.append(len(side.body)), side.send(WHOLE))[1]))
        prompt = self.directory / "large.txt"
        prompt.write_text("x" * 9_000_000, "utf-8")
        self.assertEqual(self.errors(server.url, "-n", "3", "-c", "1", "--prompts", str(prompt)), {})
        self.assertGreater(min(sizes), 9_000_000)


if __name__ == "__main__":
    unittest.main()
