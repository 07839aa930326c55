"""`cache warm`, `cache stats` and `cache clear`, beside a gateway that runs in this process."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import unittest
from typing import Any
from unittest import mock

from gateway.calling import PASSED
from gateway.dialects.bypath import ENDPOINTS
from gateway.pipeline import INFERENCE, PATHS
from gateway.tools import asking, warming
from gateway.tools.prompts import PATH_BY_MEMBER, request_in
from tests.access import ADMIN_KEYS, ROOT, AccessTest
from tests.support import RunningGateway, dead_url, engines, eventually, gateway_process

ALICE = "sk-alice-0123456789abcdef"
Ran = tuple[int, str, str]


class CacheCommandTest(AccessTest):
    def start(self, **variables: object) -> RunningGateway:
        settings = {"CACHE": "on", "API_KEYS": f"alice:{ALICE}", "ADMIN_KEYS": ADMIN_KEYS, **variables}
        return self.serve(None, **settings)

    def lines(self, *lines: object) -> str:
        path = self.directory / "prompts.jsonl"
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
        return str(path)

    def run_cache(self, *arguments: str, key: str = ALICE) -> Ran:
        status, stdout, stderr = self.cli("cache", *arguments, GATEWAY_API_KEY=key)
        for secret in (key, ALICE, ROOT):
            self.assertNotIn(secret or ALICE, stdout + stderr)
        return status, stdout, stderr

    def warm(self, running: RunningGateway, *lines: object, flags: tuple[str, ...] = (), key: str = ALICE) -> Ran:
        return self.run_cache("warm", self.lines(*lines), "--url", running.url, *flags, key=key)


class WarmTest(CacheCommandTest):
    def test_what_was_asked_is_a_hit_for_whoever_asks_next(self) -> None:
        engine = self.engine()
        running = self.start(ENGINES=engines(m=engine.url))
        lines = [{"prompt": f"question {number}"} for number in range(30)]
        status, stdout, stderr = self.warm(running, *lines)
        self.assertEqual((status, stderr.count("error")), (0, 0), stderr)
        self.assertIn("30/30: 0 hits, 30 misses, 0 not kept, 0 failed", stdout)
        asked = {"messages": [{"role": "user", "content": "question 7"}], "temperature": 0}
        answer = running.post(asked, headers=[("Authorization", f"Bearer {ALICE}")])
        self.assertEqual(answer.header("x-gateway-cache"), "hit")
        status, stdout, _ = self.warm(running, *lines)
        self.assertEqual(status, 0)
        self.assertIn("30/30: 30 hits, 0 misses", stdout)
        self.assertEqual(engine.stats()["requests"], 30)

    def test_a_line_may_be_any_request(self) -> None:
        engine = self.engine()
        running = self.start(ENGINES=engines(m=engine.url))
        status, stdout, stderr = self.warm(
            running,
            "",
            '"a plain text"',
            {"prompt": "a prompt"},
            {"messages": [{"role": "user", "content": "a chat"}], "stream": True},
            {"prompt": "a completion", "max_tokens": 9},
            {"input": "an embedding"},
            {"query": "a query"},
            {"prompt": "a completion by its path", "path": "/v1/completions"},
            flags=("--model", "m", "--concurrency", "2"),
        )
        self.assertEqual(status, 0, stderr)
        self.assertIn("7/7: 0 hits, 7 misses, 0 not kept, 0 failed", stdout)
        running.wait_for_metric('gateway_cache_requests_total{model="m",result="miss"}', 7)

    def test_what_fails_is_named_and_the_others_are_asked(self) -> None:
        running = self.start(ENGINES=engines(m=self.engine().url))
        status, stdout, stderr = self.warm(running, {"prompt": "one", "model": "other"}, {"prompt": "two"})
        self.assertEqual(status, 1)
        self.assertIn("2/2: 0 hits, 1 misses, 0 not kept, 1 failed", stdout)
        self.assertRegex(stderr, r"failed: \S*prompts\.jsonl:1: 404 model_not_found: ")

    def test_who_is_told_to_wait_asks_again(self) -> None:
        engine = self.engine()
        running = self.start(ENGINES=engines(m=engine.url))
        answers = iter([self.refusal(429, "0"), self.refusal(503), self.refusal(503, "0")])
        ask = asking.Connection.ask

        def refused_first(*told: Any, **headers: Any) -> asking.Answer:
            return next(answers, None) or ask(*told, **headers)

        with mock.patch.object(asking.Connection, "ask", refused_first), mock.patch.object(warming, "PAUSE_S", 0):
            status, stdout, stderr = self.warm(running, {"prompt": "one"})
        self.assertEqual(status, 0, stderr)
        self.assertIn("1/1: 0 hits, 1 misses", stdout)
        self.assertIsNone(next(answers, None))

    def test_a_refusal_that_lasts_for_longer_than_there_is_time_is_a_failure(self) -> None:
        running = self.start(ENGINES=engines(m=self.engine().url))
        key = self.secret(running, "bob", rpm=1)
        flags = ("--timeout", "5", "--concurrency", "1")
        status, stdout, stderr = self.warm(running, {"prompt": "one"}, {"prompt": "two"}, flags=flags, key=key)
        self.assertEqual(status, 1)
        self.assertIn("1 misses, 0 not kept, 1 failed", stdout)
        self.assertIn(":2: 429 rate_limit_exceeded", stderr)

    def test_a_gateway_without_a_cache_is_named_once(self) -> None:
        engine = self.engine()
        running = self.start(ENGINES=engines(m=engine.url), CACHE="off")
        flags = ("--concurrency", "1")
        status, stdout, stderr = self.warm(running, *({"prompt": f"{n}"} for n in range(20)), flags=flags)
        self.assertEqual((status, stdout), (1, ""))
        self.assertRegex(stderr, "^error: CACHE=on is not set at http://[^\n]*\n$")
        self.assertEqual(engine.stats()["requests"], 1)

    def test_a_wrong_key_is_named_once(self) -> None:
        running = self.start()
        for key, what in (("sk-wrong", "does not take the key in GATEWAY_API_KEY"), ("", "wants a key in GATEWAY")):
            status, stdout, stderr = self.warm(running, *({"prompt": f"{n}"} for n in range(20)), key=key)
            self.assertEqual((status, stdout, stderr.count("\n")), (1, "", 1), stderr)
            self.assertIn(what, stderr)
        status, _, stderr = self.warm(running, {"prompt": "one"}, key="two words")
        self.assertEqual((status, stderr), (2, "error: GATEWAY_API_KEY: must be one word of ASCII characters\n"))

    def test_a_gateway_that_is_not_there_is_one_line(self) -> None:
        url = dead_url()
        for arguments in (("warm", self.lines('"one"', '"two"')), ("stats",), ("clear",)):
            status, stdout, stderr = self.run_cache(*arguments, "--url", url)
            self.assertEqual((status, stdout), (1, ""))
            self.assertRegex(stderr, "^error: cannot reach a gateway at http://127.0.0.1:[0-9]+: [^\n]+\n$")

    def test_it_is_found_by_the_settings(self) -> None:
        running = self.start()
        status, _, stderr = self.cli("cache", "stats", GATEWAY_API_KEY=ROOT, PORT=running.port, HOST="0.0.0.0")
        self.assertEqual(status, 0, stderr)
        status, _, stderr = self.cli("cache", "stats", PORT="0")
        self.assertEqual((status, stderr), (2, "error: PORT is 0: name the gateway with --url\n"))
        status, _, stderr = self.cli("cache", "stats", PORT="none")
        self.assertEqual(status, 2)
        self.assertIn("PORT", stderr)

    @unittest.skipUnless(os.name == "posix", "signals as POSIX has them")
    def test_ctrl_c_ends_it_in_order(self) -> None:
        engine = self.engine("hang")
        running = self.start(ENGINES=engines(m=engine.url))
        path = self.lines('"one"', '"two"', '"three"')
        arguments = ("cache", "warm", path, "--url", running.url, "--concurrency", "2")
        with gateway_process({"GATEWAY_API_KEY": ALICE}, *arguments, wait=False) as process:
            eventually(lambda: engine.stats()["in_flight"] == 2)
            process.signal(signal.SIGINT)
            self.assertEqual(process.wait(), 130, process.stderr)
            self.assertIn("0/3: 0 hits, 0 misses, 0 not kept, 0 failed", process.stdout)
            self.assertNotIn("Traceback", process.stderr)
        self.assert_idle(running)

    def test_a_terminal_has_one_line_that_is_written_again(self) -> None:
        stream = io.StringIO()
        with mock.patch.object(stream, "isatty", lambda: True):
            progress = warming.Progress(stream)
            progress.show("1/2")
            progress.end()
        self.assertEqual(stream.getvalue(), "\r1/2\x1b[K\r\x1b[K")

    def refusal(self, status: int, retry_after: str = "") -> asking.Answer:
        headers = http.client.HTTPMessage()
        if retry_after:
            headers["Retry-After"] = retry_after
        return asking.Answer(status, headers, b"")


class BadLinesTest(CacheCommandTest):
    def refused(self, *arguments: str) -> str:
        status, stdout, stderr = self.run_cache(*arguments)
        self.assertEqual((status, stdout), (2, ""), stderr)
        return stderr

    def test_all_bad_lines_are_named_before_anything_is_asked(self) -> None:
        engine = self.engine()
        running = self.start(ENGINES=engines(m=engine.url))
        bad: list[tuple[object, str]] = [
            ("{", "is not JSON: "),
            ('{"prompt": NaN}', "is not JSON: NaN is none"),
            ("[" * 5000, "is not JSON: "),
            ([1], "must be an object or a string"),
            ({"prompt": ""}, "prompt must be a text"),
            ({"prompt": ["a"]}, "prompt must be a text"),
            ({}, "needs one of messages, prompt, input, query"),
            ({"input": "a", "query": "b"}, "has input and query: name the path"),
            ({"path": "/metrics", "prompt": "a"}, "path must be one of "),
            ({"path": ["/query"], "prompt": "a"}, "path must be one of "),
        ]
        path = self.lines({"prompt": "good"}, *(line for line, _ in bad), {"prompt": "good"})
        told = self.refused("warm", path, "--url", running.url).splitlines()
        self.assertEqual(len(told), len(bad))
        for number, ((_, what), line) in enumerate(zip(bad, told), 2):
            self.assertIn(f"{path}:{number}: {what}", line)
        self.assertEqual(engine.stats()["requests"], 0)

    def test_at_most_twenty_are_named(self) -> None:
        told = self.refused("warm", self.lines(*([1] for _ in range(50)))).splitlines()
        self.assertEqual(len(told), 21)
        self.assertIn("30 more bad lines", told[-1])

    def test_what_is_no_text_is_named(self) -> None:
        path = self.directory / "prompts.jsonl"
        path.write_bytes(b'"\xff"\n')
        self.assertEqual(self.refused("warm", str(path)), f"error: {path}:1: is not UTF-8\n")
        path.write_bytes(b"\n")
        self.assertEqual(self.refused("warm", str(path)), f"error: {path}: there is nothing in it to ask\n")

    def test_what_was_said_wrongly_is_named(self) -> None:
        path = self.lines('"one"')
        self.assertIn("nowhere.jsonl: ", self.refused("warm", "nowhere.jsonl"))
        for arguments, what in (
            (("warm",), "FILE"),
            (("warm", path, "--concurrency", "0"), "--concurrency"),
            (("warm", path, "--timeout", "nan"), "--timeout"),
            (("warm", path, "--key", "sk"), "--key"),
            (("warm", path, "--url", "ftp://x"), "--url"),
            (("warm", path, "--url", "http://x:99999"), "--url"),
            (("clear", "--older-than", "long"), "--older-than"),
            ((), "command"),
        ):
            with self.subTest(arguments=arguments):
                self.assertIn(what, self.refused(*arguments))

    def test_the_paths_are_those_that_are_served(self) -> None:
        # What is compared is as often another answer, and what is passed on is read by nobody: neither is kept.
        self.assertEqual({*PATH_BY_MEMBER.values(), INFERENCE, *ENDPOINTS, *PASSED}, set(PATHS))

    def test_a_prompt_becomes_a_chat_without_chance(self) -> None:
        path, body = request_in('{"prompt": "a", "model": "m"}', "other")
        chat = {"messages": [{"role": "user", "content": "a"}], "temperature": 0, "model": "m"}
        self.assertEqual((path, json.loads(body)), ("/v1/chat/completions", chat))


class StatsAndClearTest(CacheCommandTest):
    def test_the_figures_are_shown_and_answers_dropped(self) -> None:
        running = self.start(ENGINES=engines(m=self.engine().url))
        self.warm(running, '"one"', '"two"')
        url = ("--url", running.url + "/v1")
        status, stdout, _ = self.run_cache("stats", *url, key=ROOT)
        self.assertEqual(status, 0)
        figures = dict(line.split() for line in stdout.splitlines())
        self.assertEqual((figures["entries"], figures["misses"], figures["hits"]), ("2", "2", "0"))
        for flags, cleared in (
            (("--model", "other"), 0),
            (("--key", "bob"), 0),
            (("--older-than", "1h"), 0),
            (("--model", "m", "--key", "alice", "--older-than", "0s"), 2),
            ((), 0),
        ):
            with self.subTest(flags=flags):
                told = self.run_cache("clear", *flags, *url, key=ROOT)
                self.assertEqual(told[:2], (0, f"cleared {cleared}\n"))

    def test_who_may_not_is_told_so(self) -> None:
        running = self.start()
        for command in ("stats", "clear"):
            status, stdout, stderr = self.run_cache(command, "--url", running.url)
            self.assertEqual((status, stdout, stderr.count("\n")), (1, "", 1))
            self.assertIn("answers 403 ", stderr)

    def test_help_names_the_variable_of_the_key(self) -> None:
        self.assertIn("GATEWAY_API_KEY", self.run_cache("--help")[1])
        self.assertNotIn("GATEWAY_API_KEY", os.environ)


if __name__ == "__main__":
    unittest.main()
