"""What is said at the start, and what `check` prints: which lines, how many of them, in which colours."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shlex
import unittest
from typing import Any
from unittest import mock

from gateway.announcing import (
    LINES_MAX,
    NO_ENGINE,
    coloured,
    describe,
    draining_line,
    paint_for,
    plain,
    start_lines,
    url_of,
    write,
)
from gateway.routing.router import Router
from gateway.routing.specs import EngineSpec, FleetSpec, model_from
from gateway.settings import Settings, load

URL = "http://127.0.0.1:8080"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class PaintTest(unittest.TestCase):
    def test_colours_are_for_terminals_that_know_them(self) -> None:
        for environ, expected in (
            ({"TERM": "xterm"}, coloured),
            ({"TERM": "xterm", "NO_COLOR": ""}, coloured),
            ({"TERM": "xterm", "NO_COLOR": "0"}, plain),
            ({"TERM": "dumb"}, plain),
            ({"TERM": "dumb", "WT_SESSION": "x"}, plain),
            ({"WT_SESSION": "x"}, coloured),
            ({}, plain),
        ):
            self.assertIs(paint_for(Terminal(), environ), expected, environ)
        self.assertIs(paint_for(io.StringIO(), {"TERM": "xterm"}), plain)

    def test_a_colour_ends_with_its_text(self) -> None:
        self.assertRegex(coloured("up", "good"), r"^\x1b\[\d+mup\x1b\[0m$")
        self.assertEqual(plain("up", "good"), "up")


class WriteTest(unittest.TestCase):
    def test_what_the_encoding_lacks_is_escaped(self) -> None:
        for encoding, expected in (("ascii", b"/d\\xe9/\\udcff\n"), ("utf-8", "/d\u00e9/\\udcff\n".encode())):
            raw = io.BytesIO()
            stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
            write(stream, "/d\u00e9/\udcff\n")
            self.assertEqual(raw.getvalue(), expected)


class UrlTest(unittest.TestCase):
    def test_an_address_that_can_be_pasted(self) -> None:
        for host, expected in (
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
            ("::", "[::1]"),
            ("::1", "[::1]"),
            ("10.0.0.5", "10.0.0.5"),
            ("localhost", "localhost"),
        ):
            self.assertEqual(url_of(host, 8080), f"http://{expected}:8080")


class LinesTest(unittest.TestCase):
    def settings(self, **environ: str) -> Settings:
        return load({"AUTH": "off", **environ}, None)

    def router(self, settings: Settings) -> Router:
        return Router(settings.fleet, fallback=settings.fallback)

    def lines(self, settings: Settings, router: Router, **options: Any) -> list[str]:
        return start_lines(settings, router, URL, **{"authenticated": False, "terminal": False, **options}).splitlines()

    def probe(self, router: Router, model: str, number: int, error: str | None) -> None:
        pool = router.pools[model]
        pool.record_probe(pool.engines[number], error, 2, 1, 1)

    def test_each_model_with_each_engine_and_whether_it_was_reached(self) -> None:
        settings = self.settings(ENGINES="a=http://h:1,http://h:2,http://h:3;b=echo:", DEFAULT_MODEL="b")
        router = self.router(settings)
        self.probe(router, "a", 0, None)
        self.probe(router, "a", 1, "health check failed: Connection refused")
        expected = [
            "model a",
            "  http://h:1/v1 reached",
            "  http://h:2/v1 not reached: Connection refused",
            "  http://h:3/v1 no answer yet",
            "model b (default)",
            "  echo: built in",
        ]
        self.assertEqual(self.lines(settings, router), expected)
        text = describe(settings, router)
        for line in (
            "  engine h:1: http://h:1/v1, weight 1, reached\n",
            "  engine h:2: http://h:2/v1, weight 1, not reached: Connection refused\n",
            "  engine h:3: http://h:3/v1, weight 1, no answer yet\n",
        ):
            self.assertIn(line, text)

    def test_check_says_that_places_are_counted_by_each_process(self) -> None:
        spec = EngineSpec("http://h:1/v1", max_concurrency=4)
        for processes, expected in (("1", ""), ("2", " from each of 2 processes"), ("0", " from each process")):
            fleet = FleetSpec((model_from("m", [spec]),))
            settings = dataclasses.replace(self.settings(PROCESSES=processes), fleet=fleet)
            self.assertIn(f", at most 4 at once{expected}, no answer", describe(settings, self.router(settings)))

    def test_one_that_answers_and_is_down_is_not_ready(self) -> None:
        settings = self.settings(BACKEND_URL="http://h:1")
        router = self.router(settings)
        self.probe(router, "default", 0, None)
        for _ in range(2):
            self.probe(router, "default", 0, "health check answered 503")
        self.assertIn("  http://h:1/v1 not ready: health check answered 503", self.lines(settings, router))

    def test_without_probes_nothing_is_claimed(self) -> None:
        settings = self.settings(BACKEND_URL="http://h:1", HEALTH_INTERVAL="0")
        router = self.router(settings)
        expected = ["every model name", "  http://h:1/v1 not probed (HEALTH_INTERVAL=0)"]
        self.assertEqual(self.lines(settings, router), expected)
        self.assertIn("weight 1, not probed (HEALTH_INTERVAL=0)", describe(settings, router))
        router.pools["default"].engines[0].listed = ()  # it has been asked for its models, and has answered
        self.assertEqual(self.lines(settings, router)[1:], ["  http://h:1/v1 reached"])

    def test_nothing_configured_is_said(self) -> None:
        settings = self.settings()
        router = self.router(settings)
        self.assertEqual(self.lines(settings, router), [NO_ENGINE])
        self.assertIn(f"\n{NO_ENGINE}\n", describe(settings, router))
        explicit = self.settings(ENGINES="m=echo:")
        self.assertNotIn(NO_ENGINE, describe(explicit, self.router(explicit)))

    def test_a_bound_of_lines_and_what_is_left_is_counted(self) -> None:
        engines = ",".join(f"http://h:{port}" for port in range(1, 101))
        settings = self.settings(ENGINES=f"a={engines};b=http://i:1;c=http://i:2")
        router = self.router(settings)
        for number in (2, 99):
            self.probe(router, "a", number, "gone")
        lines = self.lines(settings, router)
        self.assertEqual(len(lines), LINES_MAX + 1)
        shown = sum(line.startswith("  ") for line in lines)
        self.assertEqual(lines[-1], f"... and {102 - shown} more engines, 1 of them not reached")

    def test_check_tells_of_the_cache(self) -> None:
        plain = self.settings()
        self.assertNotIn("cache:", describe(plain, self.router(plain)))
        texts = {"CACHE": "on", "CACHE_NEAR": "on", "CACHE_TTL": "60", "EMBEDDINGS_MODEL": "e", "CACHE_SCOPE": "global"}
        settings = self.settings(**texts)
        line = "cache: 64 MiB for 60 s, all keys together, other words by the guard of words and a cosine of 0.95 by e"
        self.assertIn(line, describe(settings, self.router(settings)).splitlines())

    def test_an_address_for_all_is_named(self) -> None:
        settings = self.settings(HOST="0.0.0.0")
        self.assertIn("listening on all addresses (0.0.0.0)", self.lines(settings, self.router(settings)))
        first = describe(settings, self.router(settings)).splitlines()[0]
        self.assertEqual(first, "address: http://127.0.0.1:8080 (listening on all addresses: 0.0.0.0)")

    def test_only_a_terminal_gets_what_is_to_be_pasted(self) -> None:
        settings = self.settings(ENGINES="a=http://h:1")
        router = self.router(settings)
        usual = self.lines(settings, router)
        terminal = self.lines(settings, router, terminal=True, authenticated=True)
        self.assertEqual(terminal[: len(usual)], usual)
        more = "\n".join(terminal[len(usual) :])
        for text in (f"{URL}/ (with a key)\n", "Authorization: Bearer <key>", "Ctrl-C to stop"):
            self.assertIn(text, more)
        without = "\n".join(self.lines(settings, router, terminal=True))
        self.assertNotIn("Authorization", without)
        self.assertIn(f"endpoints: {URL}/\n", without)

    @unittest.skipUnless(os.name == "posix", "a shell of Unix")
    def test_what_is_to_be_pasted_holds_any_name(self) -> None:
        odd = """it's"$(x)`\\!#&|"""
        fleet = FleetSpec((model_from("first", ["http://h:1"]), model_from(odd, ["http://h:2"])), default_model=odd)
        text = start_lines(self.settings(), Router(fleet), URL, authenticated=True, terminal=True)
        words = shlex.split(text.partition("try it:")[2].partition("Ctrl-C")[0])
        self.assertEqual(words[:2], ["curl", f"{URL}/v1/chat/completions"])
        self.assertEqual(json.loads(words[words.index("-d") + 1])["model"], odd)

    def test_on_windows_it_is_one_line_in_double_quotes(self) -> None:
        settings = self.settings(ENGINES="a=http://h:1")
        router = self.router(settings)
        with mock.patch("gateway.announcing.os.name", "nt"):
            lines = self.lines(settings, router, terminal=True)
        (line,) = [line for line in lines if "curl" in line]
        self.assertIn('-d "{\\"model\\": \\"a\\", ', line)

    def test_on_windows_a_name_that_is_an_order_to_its_shells_is_left_out(self) -> None:
        for name in ("x&calc", "%PATH%", "a^b", "$(calc)", 'a"b', "a`b", "a|b", "a\\b", "a>b", "a'b", "a!b!"):
            settings = self.settings()
            router = Router(FleetSpec((model_from(name, ["http://h:1"]),), default_model=name))
            with mock.patch("gateway.announcing.os.name", "nt"):
                lines = self.lines(settings, router, terminal=True)
            (line,) = [line for line in lines if "curl" in line]
            self.assertIn(' -d "{\\"messages\\": [', line)
            self.assertNotIn(name, line)

    def test_a_key_in_the_place_of_its_variable_is_not_shown(self) -> None:
        settings = self.settings()
        for name, told in (("gsk_Hunter2", "a variable"), ("hunter2", "a variable"), ("MY_KEY2", "MY_KEY2")):
            router = Router(FleetSpec((model_from("m", [EngineSpec("http://h:1", api_key_env=name)]),)))
            text = describe(dataclasses.replace(settings, fleet=router.fleet), router)
            self.assertIn(f", key from {told}, which is not set, no answer yet", text)

    def test_what_an_engine_has_said_is_no_order_to_a_terminal(self) -> None:
        settings = self.settings(BACKEND_URL="http://h:1")
        router = self.router(settings)
        self.probe(router, "default", 0, "500: \x1b]0;x\x07\r\n\u202e\x9b2J \ud800")
        expected = "  http://h:1/v1 not reached: 500: ?]0;x?????2J ?"
        self.assertIn(expected, self.lines(settings, router))
        self.assertTrue(describe(settings, router).endswith(", not reached: 500: ?]0;x?????2J ?"))

    def test_fallbacks_as_they_will_be_and_why_others_are_none(self) -> None:
        fleet = "near=http://10.0.0.1;far=http://203.0.113.5;close=http://localhost:1;x=http://api.cloud.example"
        settings = self.settings(ENGINES=fleet)
        text = describe(settings, self.router(settings))
        expected = """  fallbacks: close
    not far: farther than its engines
    not x: nothing tells whether api.cloud.example is in a private network
"""
        self.assertIn("model near (default)\n  strategy: round_robin\n" + expected, text)
        self.assertIn("model far\n  strategy: round_robin\n  fallbacks: near, close, x\n", text)

    def test_one_request_is_one(self) -> None:
        self.assertEqual(draining_line(1), "\rdraining: 1 request in flight; Ctrl-C again ends at once\n")
        self.assertEqual(draining_line(2), "\rdraining: 2 requests in flight; Ctrl-C again ends at once\n")


if __name__ == "__main__":
    unittest.main()
