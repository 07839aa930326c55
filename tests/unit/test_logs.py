"""Log lines: complete, one line each, impossible to forge."""

from __future__ import annotations

import json
import unittest
from typing import Any

from gateway.telemetry.events import AttemptRecord, LogRecord, Mark, RequestEvent, Trace
from gateway.telemetry.logs import format_json, is_slow, request_level, timestamp

UNIX_S = 1769860800.25  # 2026-01-31T12:00:00.250Z
KEYS = [
    *("ts", "level", "event", "request_id", "method", "path", "status", "error"),
    *("latency_ms", "queue_ms", "engine_ms", "ttft_ms", "stream", "model", "engine"),
    *("attempts", "fallback", "prompt_tokens", "completion_tokens", "usage_estimated"),
    *("key", "client"),
]
HOSTILE = (
    'a"b\\c',
    'x\n{"event": "request"}',
    "\r\t\x00\x1b[31m\x7f",
    "\u2028\u2029\x85\u202e",
    "\ud800 lone",
    "\U0001f600 é",
    "%s %d %(x)s {0}",
    "",
)


def event(**changes: Any) -> RequestEvent:
    base = RequestEvent(UNIX_S, "r-1", "POST", "/v1/chat/completions", 200, None, 0.0123456)
    return base._replace(**changes)


class JsonTest(unittest.TestCase):
    def test_keys_are_those_of_the_contract_in_order(self) -> None:
        pairs = json.loads(format_json(event()), object_pairs_hook=list)
        self.assertEqual([key for key, _ in pairs], KEYS)

    def test_least_event(self) -> None:
        self.assertEqual(
            json.loads(format_json(event())),
            {
                "ts": "2026-01-31T12:00:00.250Z",
                "level": "info",
                "event": "request",
                "request_id": "r-1",
                "method": "POST",
                "path": "/v1/chat/completions",
                "status": 200,
                "error": None,
                "latency_ms": 12.346,
                "queue_ms": 0,
                "engine_ms": 0,
                "ttft_ms": None,
                "stream": False,
                "model": None,
                "engine": None,
                "attempts": 0,
                "fallback": None,
                "prompt_tokens": None,
                "completion_tokens": None,
                "usage_estimated": False,
                "key": None,
                "client": "",
            },
        )

    def test_full_event(self) -> None:
        full = event(
            status=502,
            error="backend_error",
            queue_s=0.001,
            engine_s=1.5,
            ttft_s=0.25,
            stream=True,
            model="13b",
            engine="h:1",
            attempts=3,
            fallback="70b->13b",
            prompt_tokens=0,
            completion_tokens=7,
            usage_estimated=True,
            key="alice",
            client="10.0.0.1",
            extra={"cost": 0.5, "body": {"a": [1]}},
        )
        line = json.loads(format_json(full))
        self.assertEqual(list(line), [*KEYS, "cost", "body"])
        expected = {
            "level": "warning",
            "error": "backend_error",
            "queue_ms": 1,
            "engine_ms": 1500,
            "ttft_ms": 250,
            "stream": True,
            "model": "13b",
            "engine": "h:1",
            "attempts": 3,
            "fallback": "70b->13b",
            "prompt_tokens": 0,
            "completion_tokens": 7,
            "usage_estimated": True,
            "key": "alice",
            "client": "10.0.0.1",
            "cost": 0.5,
            "body": {"a": [1]},
        }
        self.assertEqual({key: line[key] for key in expected}, expected)

    def test_any_string_survives_on_one_ascii_line(self) -> None:
        names = ("request_id", "method", "path", "error", "model", "engine", "fallback", "key")
        for text in HOSTILE:
            with self.subTest(text=ascii(text)):
                fields = dict.fromkeys((*names, "client"), text)
                line = format_json(event(**fields, extra={text: text}))
                self.assertTrue(line.isascii() and line.isprintable(), line)
                self.assertEqual({k: json.loads(line)[k] for k in fields}, fields)
                self.assertEqual(json.loads(line)[text], text)
                record = format_json(LogRecord(UNIX_S, "info", text, {"x": text}))
                self.assertTrue(record.isascii() and record.isprintable(), record)
                self.assertEqual(json.loads(record)["event"], text)
                self.assertEqual(json.loads(record)["x"], text)

    def test_record(self) -> None:
        record = LogRecord(UNIX_S, "error", "engine_down", {"engine": "h:1", "fails": 2, "x": None})
        self.assertEqual(
            format_json(record),
            '{"ts": "2026-01-31T12:00:00.250Z", "level": "error", "event": "engine_down", '
            '"engine": "h:1", "fails": 2, "x": null}',
        )

    def test_a_request_that_belongs_to_a_trace_tells_of_which(self) -> None:
        line = json.loads(format_json(event(trace=Trace("a" * 32, "b" * 16), extra={"trace_id": "forged"})))
        self.assertEqual((line["trace_id"], line["trace_id_"]), ("a" * 32, "forged"))

    def test_a_slow_request_tells_what_its_time_went_into(self) -> None:
        records = (
            AttemptRecord("13b", "e1", "error", 0.5, 100.25, None, 503),
            AttemptRecord("13b", "e2", "ok", 0.75, 100.75, 0.125),
        )
        slow = event(latency_s=1.5, accepted_s=100.0, attempt_records=records, marks=(Mark("queue", 100.0, 0.25),))
        keys = ("model", "engine", "outcome", "status", "began_ms", "first_ms", "duration_ms")
        told = {
            "level": "warning",
            "slow": True,
            "attempt_log": [
                dict(zip(keys, ("13b", "e1", "error", 503, 250, None, 500))),
                dict(zip(keys, ("13b", "e2", "ok", None, 750, 125, 750))),
            ],
            "waits": [{"name": "queue", "began_ms": 0, "duration_ms": 250}],
        }
        line = json.loads(format_json(slow, 1.0))
        self.assertEqual({key: line[key] for key in told}, told)
        for limit_s in (0.0, 1.5):
            self.assertEqual(list(json.loads(format_json(slow, limit_s))), KEYS)

    def test_further_keys_never_double_one_of_the_line(self) -> None:
        for item in (event(extra={"status": "x"}), LogRecord(UNIX_S, "info", "e", {"ts": "x"})):
            pairs = json.loads(format_json(item), object_pairs_hook=list)
            keys = [key for key, _ in pairs]
            self.assertEqual(len(keys), len(set(keys)))
            self.assertIn(keys[-1], ("status_", "ts_"))

    def test_values_that_json_lacks_become_strings(self) -> None:
        circle: list[object] = []
        circle.append(circle)
        deep: list[object] = []
        for _ in range(100_000):
            deep = [deep]
        values = {"nan": float("nan"), "circle": circle, "deep": deep, "odd": {(1, 2): 3}}
        line = format_json(LogRecord(UNIX_S, "info", "e", {**values, "big": 10**5000, "b": b"\n"}))

        def refuse(constant: str) -> None:
            raise AssertionError(f"not JSON: {constant}")

        found = json.loads(line, parse_constant=refuse, parse_int=lambda digits: f"{len(digits)} digits")
        self.assertEqual(found["nan"], "nan")
        self.assertEqual(found["odd"], "{(1, 2): 3}")
        for key in ("circle", "deep", "big", "b"):
            self.assertIsInstance(found[key], str)


class LevelAndTimeTest(unittest.TestCase):
    def test_levels(self) -> None:
        self.assertEqual(request_level(event()), "info")
        self.assertEqual(request_level(event(status=499)), "info")
        self.assertEqual(request_level(event(status=500)), "warning")
        for path in ("/healthz", "/readyz", "/metrics"):
            self.assertEqual(request_level(event(method="GET", path=path, status=503)), "debug")
            self.assertEqual(request_level(event(method="POST", path=path)), "info")
        for status, level in ((200, "debug"), (304, "debug"), (404, "info"), (500, "warning")):
            self.assertEqual(request_level(event(method="GET", path="/console/app.js", status=status)), level)

    def test_what_took_longer_than_it_may_is_a_warning(self) -> None:
        slow = event(latency_s=1.5)
        for limit_s, level in ((0.0, "info"), (1.5, "info"), (1.0, "warning")):
            self.assertEqual((request_level(slow, limit_s), is_slow(slow, limit_s)), (level, level == "warning"))
        probe = event(method="GET", path="/metrics", latency_s=1.5)
        self.assertEqual((request_level(probe, 1.0), is_slow(probe, 1.0)), ("debug", False))

    def test_timestamps_carry_milliseconds_and_never_round_up_a_second(self) -> None:
        self.assertEqual(timestamp(1769860799.9999), "2026-01-31T11:59:59.999Z")
        self.assertEqual(timestamp(1769860800.0), "2026-01-31T12:00:00.000Z")
        self.assertEqual(timestamp(1769860799.5), "2026-01-31T11:59:59.500Z")
        self.assertEqual(timestamp(0.0625), "1970-01-01T00:00:00.062Z")


if __name__ == "__main__":
    unittest.main()
