"""Log lines for people: aligned, coloured where that is seen, impossible to forge."""

from __future__ import annotations

import io
import os
import re
import time
import unittest
from typing import Any
from unittest import mock

from gateway.program import shows_colours
from gateway.telemetry.events import AttemptRecord, LogRecord, Mark, RequestEvent, Trace
from gateway.telemetry.textlines import Look, TextLines, duration, look_of
from tests.unit.test_logs import HOSTILE, UNIX_S, event

SCREEN = Look(terminal=True, colours=True, arrows=True)
FILE = TextLines(Look())


def answered(**changes: Any) -> RequestEvent:
    base = event(model="13b", engine="h:1", attempts=1, prompt_tokens=3, completion_tokens=40, client="127.0.0.1")
    return base._replace(**changes)


def plain(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line)


class Stream(io.StringIO):
    def __init__(self, terminal: bool, encoding: str = "utf-8") -> None:
        super().__init__()
        self._terminal = terminal
        self._encoding = encoding

    def isatty(self) -> bool:
        return self._terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


class LineTest(unittest.TestCase):
    def test_a_request_in_a_file(self) -> None:
        self.assertEqual(
            FILE(answered(attempts=2, key="alice", client="10.0.0.7", ttft_s=0.5, trace=Trace("a" * 32, "b" * 16))),
            "2026-01-31T12:00:00.250Z INFO  200 POST /v1/chat/completions    12.3ms  13b->h:1                    "
            f"   3+40 tok  ttft  500ms attempts=2 key=alice client=10.0.0.7 trace_id={'a' * 32} r-1",
        )

    def test_a_record_in_a_file(self) -> None:
        record = LogRecord(UNIX_S, "warning", "engine_state", {"engine": "h:1", "why": "it is off", "x": None})
        self.assertEqual(
            FILE(record),
            '2026-01-31T12:00:00.250Z WARN  engine_state                    engine=h:1 why="it is off"',
        )
        self.assertEqual(FILE(record._replace(event="stopped", fields={}))[24:], " WARN  stopped")
        listed = FILE(LogRecord(UNIX_S, "info", "started", {"models": ["13b", "70b"], "odd": ["a,b"], "none": []}))
        self.assertTrue(listed.endswith(r'  models=13b,70b odd="[\"a,b\"]" none=[]'), listed)

    def test_columns_stay_under_each_other(self) -> None:
        items = (
            answered(),
            answered(latency_s=0.0004, path="/v1/embeddings", completion_tokens=0),
            answered(latency_s=12.5, stream=True, ttft_s=1.25, usage_estimated=True, prompt_tokens=12_000),
            answered(status=404, model=None, engine=None, prompt_tokens=None, completion_tokens=None),
            event(method="GET", path="/healthz"),
        )
        for look in (Look(), SCREEN):
            lines = [plain(TextLines(look)(item)) for item in items]
            self.assertEqual({line.index(" r-1") for line in lines}, {lines[0].index(" r-1")}, lines)
            columns = {re.search(r"[0-9.]+m?s(?=  )", line).end() for line in lines}  # type: ignore[union-attr]
            self.assertEqual(len(columns), 1, lines)
        record = plain(TextLines(SCREEN)(LogRecord(UNIX_S, "info", "started", {"url": "x"})))
        self.assertEqual(record.index("url="), lines[0].index("POST") + len("POST /v1/chat/completions") + 3)

    def test_nothing_is_cut(self) -> None:
        long = {name: name * 30 for name in ("path", "model", "engine", "error", "key", "request_id", "method")}
        line = FILE(answered(**long, fallback="70b->13b", extra={"cache": "hit"}))
        for text in (*long.values(), "fallback=70b->13b", "cache=hit"):
            self.assertIn(text, line)

    def test_colours_by_what_became_of_it(self) -> None:
        lines = TextLines(SCREEN)
        for status, error, code in (
            (200, None, 32),
            (304, None, 36),
            (404, "model_not_found", 33),
            (499, "client_closed_request", 33),
            (502, "backend_error", 31),
            (200, "stream_interrupted", 31),  # it broke off
        ):
            line = lines(answered(status=status, error=error))
            self.assertIn(f"\x1b[{code}m{status}\x1b[0m", line)
            self.assertEqual(f"\x1b[31m{error}\x1b[0m" in line, error is not None)
        self.assertTrue(lines(answered()).endswith(" \x1b[2mr-1\x1b[0m"))
        self.assertIn("\x1b[33mWARN \x1b[0m", lines(LogRecord(UNIX_S, "warning", "x", {})))
        self.assertIn(" 13b→h:1 ", lines(answered()))

    def test_a_terminal_shows_the_time_of_the_place(self) -> None:
        here = time.strftime("%H:%M:%S", time.localtime(UNIX_S))
        self.assertTrue(plain(TextLines(SCREEN)(answered())).startswith(f"{here}.250 INFO "))

    def test_a_slow_request_tells_what_its_time_went_into(self) -> None:
        records = (AttemptRecord("70b", "e1", "error", 1.002, status=503), AttemptRecord("13b", "e2", "ok", 0.035))
        slow = answered(latency_s=1.04, attempt_records=records, marks=(Mark("queue", 1.0, 0.003),))
        line = TextLines(Look(), 1.0)(slow)
        self.assertIn(" slow: 70b->e1 error 503 1.00s, 13b->e2 ok 35.0ms, queue 3.0ms r-1", line)
        self.assertIn(" WARN  200 ", line)
        self.assertIn("\x1b[33m  1.04s\x1b[0m", TextLines(SCREEN, 1.0)(slow))
        self.assertNotIn("slow:", TextLines(Look(), 1.04)(slow))
        self.assertIn(" slow: no engine was asked ", TextLines(Look(), 1.0)(answered(latency_s=2.0)))

    def test_no_string_can_forge_a_line_a_pair_or_an_escape_code(self) -> None:
        names = ("method", "path", "model", "engine", "error", "fallback", "key", "client", "request_id")
        for text in (*HOSTILE, "a status=200", "a=b"):
            with self.subTest(text=ascii(text)):
                marks = (Mark(text, 0.0, 1.0),)
                records = (AttemptRecord(text, text, text, 1.0),)
                wild = event(**dict.fromkeys(names, text), extra={text: [text]}, marks=marks, attempt_records=records)
                record = LogRecord(UNIX_S, "info", text, {text: text, "x": [text, text]})
                for item in (wild, record):
                    line = TextLines(Look(), 0.001)(item)
                    self.assertTrue(line.isascii() and line.isprintable(), line)
                    shown = plain(TextLines(SCREEN, 0.001)(item))
                    self.assertTrue(shown.replace("→", "").isascii() and shown.isprintable(), shown)
        self.assertIn('key="a status=500"', FILE(event(key="a status=500")))

    def test_durations_have_three_digits_or_so(self) -> None:
        for seconds, text in (
            *((0.0, "0.0ms"), (0.00042, "0.4ms"), (0.0999, "99.9ms"), (0.09996, "100ms"), (0.2504, "250ms")),
            *(
                (0.9994, "999ms"),
                (0.9996, "1.00s"),
                (12.5, "12.50s"),
                (99.99, "99.99s"),
                (99.996, "100s"),
                (3600, "3600s"),
            ),
        ):
            self.assertEqual(duration(seconds), text)


class LookTest(unittest.TestCase):
    def test_no_colours_and_no_arrows_but_on_a_terminal(self) -> None:
        self.assertEqual(look_of(Stream(False), True), Look())
        self.assertEqual(look_of(Stream(True), True), SCREEN)
        self.assertEqual(look_of(Stream(True), False), Look(True, False, True))
        for encoding, arrows in (("UTF-8", True), ("utf8", True), ("ascii", False), ("cp1252", False)):
            self.assertEqual(look_of(Stream(True, encoding), True), Look(True, True, arrows))

    def test_who_wants_no_colours_gets_none(self) -> None:
        for environ, shows in (
            ({"TERM": "xterm"}, True),
            ({"TERM": "dumb"}, False),
            ({"TERM": "xterm", "NO_COLOR": "1"}, False),
            ({"TERM": "xterm", "NO_COLOR": ""}, True),
            ({}, False),
        ):
            self.assertEqual(shows_colours(Stream(True), environ), shows, environ)
            self.assertFalse(shows_colours(Stream(False), environ))


@unittest.skipUnless(hasattr(time, "tzset"), "needs tzset")
class PlaceTest(unittest.TestCase):
    def test_the_time_of_day_follows_the_place(self) -> None:
        with mock.patch.dict(os.environ, {"TZ": "XYZ-05:30"}):
            time.tzset()
            try:
                self.assertTrue(
                    TextLines(Look(terminal=True))(event(finished_unix_s=UNIX_S + 61)).startswith("17:31:01.250 ")
                )
            finally:
                os.environ.pop("TZ")
                time.tzset()


if __name__ == "__main__":
    unittest.main()
