"""Tokens that an engine reports are believed within reason: beyond it they are estimated, logged and counted."""

from __future__ import annotations

import json
import math
import sqlite3
import tempfile
import unittest
from pathlib import Path
from typing import Any, Optional

from gateway.telemetry.events import RequestEvent
from gateway.telemetry.ledger import Ledger
from gateway.upstream.answers import Bounds, Usage, complete, complete_large, outline_answer, parse_answer, usage_of
from gateway.upstream.bounds import PART_TOKENS, TOKENS_UNKNOWN, bounds_of
from gateway.upstream.call import Call
from gateway.upstream.estimates import weigh
from tests.resilience import ResilienceTest, ask
from tests.scripted import DONE, STREAM_HEAD, ScriptedEngine, chunked, delta
from tests.support import CHAT, RunningGateway, chunk_of, eventually

KEY = [("Authorization", "Bearer sk-one")]
HUGE = 10**12
ODD: tuple[Any, ...] = (HUGE, 10**399, -1, True, 1.5, "7", [], {}, None)


def answer(usage: Any, text: str = "four") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"id": "a", "model": "m", "choices": [choice], "usage": usage}).encode()


def usage(prompt: Any = 3, completion: Any = 2, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 5, **more}


class BoundsTest(unittest.TestCase):
    def bounds(self, request: dict[str, Any], path: str = "/chat/completions", context: Optional[int] = None) -> Bounds:
        return bounds_of(Call(path, request), context)

    def test_a_prompt_has_no_more_tokens_than_bytes_and_what_templates_and_images_take(self) -> None:
        plain = ask("x" * 50_000)
        self.assertTrue(50_000 < self.bounds(plain).prompt < 80_000)
        parts = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": "http://i"}}]
        image = {"messages": [{"role": "user", "content": parts}]}
        self.assertTrue(PART_TOKENS < self.bounds(image).prompt < PART_TOKENS + 20_000)
        self.assertEqual(self.bounds(ask("x" * 11_000_000)).prompt, TOKENS_UNKNOWN)

    def test_what_a_stream_goes_on_after_is_prompt_too(self) -> None:
        call = Call("/chat/completions", ask())
        for text in ("a", "\u00e9", "\u0394", "\u4e00", "\U0001f600"):
            more = bounds_of(call, None, weigh(text * 10_000)).prompt - bounds_of(call).prompt
            self.assertTrue(len(text.encode()) <= more / 10_000 <= 16, text)

    def test_an_answer_is_as_long_as_was_asked_for_in_each_choice(self) -> None:
        self.assertTrue(1_000 <= self.bounds(ask(max_tokens=10)).completion < 2_000)
        self.assertTrue(20_000 <= self.bounds(ask(max_completion_tokens=10_000)).completion < 30_000)
        self.assertTrue(80_000 <= self.bounds(ask(max_tokens=10_000, n=4)).completion < 120_000)
        best = {"prompt": ["a", "b"], "max_tokens": 10_000, "best_of": 8}
        self.assertTrue(320_000 <= self.bounds(best, "/completions").completion < 400_000)

    def test_else_as_the_context_is_or_anything(self) -> None:
        self.assertTrue(8_192 <= self.bounds(ask(), context=8_192).completion < 10_000)
        self.assertEqual(self.bounds(ask()).completion, TOKENS_UNKNOWN)
        self.assertLess(self.bounds({"input": "x", "max_tokens": 10**6}, "/embeddings").completion, 2_000)

    def test_what_is_beyond_or_odd_is_estimated(self) -> None:
        limit = Bounds(20_000, 30_000)
        for prompt, completion in ((20_000, 30_000), (0, 0), (16_384, 1)):
            self.assertEqual(usage_of(usage(prompt, completion), 8, 9, lambda: limit), Usage(prompt, completion, False))
        for bad in ODD:
            for reported in (usage(bad, 2), usage(3, bad)):
                with self.subTest(reported=str(reported)[:80]):
                    found = usage_of(reported, 8, 9, lambda: limit)
                    self.assertEqual(found[:3], (2, 3, True))
                    if bad is None:  # nothing is said, which is nothing odd
                        self.assertEqual(found.rejected, "")
                    else:
                        self.assertTrue(0 < len(found.rejected) < 200, found.rejected)
        for missing in (None, {}, {"prompt_tokens": None}, "x", []):
            self.assertEqual(usage_of(missing, 8, 9, lambda: limit), Usage(2, 3, True))


class BodyTest(unittest.TestCase):
    """The usage of the client's body, whether it was parsed or skimmed."""

    def told(self, reported: Any, believed: Usage) -> dict[str, Any]:
        body = answer(reported)
        parsed = parse_answer(body, "/chat/completions")
        small = json.loads(complete(parsed, body, "id-1", "model", believed))
        large = bytearray(body)
        skimmed = complete_large(outline_answer(large, "/chat/completions"), large, "id-1", "model", believed)
        self.assertEqual(json.loads(skimmed), small)
        self.assertEqual((small["id"], small["model"]), ("id-1", "model"))
        found: dict[str, Any] = small["usage"]
        return found

    def test_what_was_estimated_stands_there(self) -> None:
        details = {"cached_tokens": HUGE}
        reported = usage(HUGE, 2, prompt_tokens_details=details)
        estimate = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
        self.assertEqual(self.told(reported, Usage(2, 1, True, "prompt 1")), estimate)
        self.assertEqual(self.told(None, Usage(2, 1, True)), estimate)

    def test_parts_that_do_not_agree_are_made_to(self) -> None:
        for total in (4, 0, -1, 10**12, True, "5", None):
            self.assertEqual(self.told(usage(total_tokens=total), Usage(3, 2, False))["total_tokens"], 5)
        for cached in (4, -1, True, "x", 1.5, 10**30):
            reported = usage(prompt_tokens_details={"cached_tokens": cached})
            self.assertEqual(self.told(reported, Usage(3, 2, False)), usage())

    def test_what_agrees_stays(self) -> None:
        for details in ({"cached_tokens": 3}, {"cached_tokens": None}, {}, None):
            reported = usage(prompt_tokens_details=details)
            self.assertEqual(self.told(reported, Usage(3, 2, False)), reported)
        thinking = usage(total_tokens=500)  # what a model thinks, counted apart
        self.assertEqual(self.told(thinking, Usage(3, 2, False)), thinking)


class HttpUsageTest(ResilienceTest):
    def gateway(self, **variables: object) -> tuple[RunningGateway, ScriptedEngine]:
        engine = self.scripted()
        model = {"engines": [engine.url], "price": {"input": 1.0, "output": 2.0}}
        return self.serve({"m": model}, API_KEYS="one:sk-one", **variables), engine

    def test_no_answer_s_figures_hold_it_up_or_use_up_a_limit(self) -> None:
        running, engine = self.gateway(RATE_LIMIT_TPM=100_000)
        count = 0
        with running.connect() as client:
            for stream in (False, True):
                for bad in ODD:
                    with self.subTest(stream=stream, bad=str(bad)[:30]):
                        client.request("POST", CHAT, ask(stream=stream, max_tokens=9), KEY)
                        side = engine.take()
                        if stream:
                            last = b'data: {"choices":[],"usage":' + json.dumps(usage(bad, bad)).encode() + b"}\n\n"
                            side.send(STREAM_HEAD + chunked(delta("four", "stop") + last + DONE) + b"0\r\n\r\n")
                            self.assertEqual(client.read_head().status, 200)
                            self.assertEqual(client.read_events()[-1], "data: [DONE]")
                        else:
                            side.answer(answer(usage(bad, bad)))
                            told = client.read_response().json()["usage"]
                            self.assertEqual(told, {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3})
                        side.close()
                        count += 1
                        eventually(lambda seen=count: len(running.request_lines()) == seen)
                        line = running.request_lines()[-1]
                        self.assertEqual((line["prompt_tokens"], line["usage_estimated"]), (2, True))
                        self.assertEqual("usage_rejected" in line, bad is not None)
        rejected = 2 * sum(bad is not None for bad in ODD)
        name = f'gateway_usage_rejected_total{{model="m",engine="127.0.0.1:{engine.port}"}}'
        self.assertEqual(running.wait_for_metric(name, rejected), rejected)
        told = [line for line in running.log_lines() if line["event"] == "usage_rejected"]
        self.assertEqual(len(told), 1)  # however many there were
        self.assertEqual((told[0]["model"], told[0]["engine"]), ("m", f"127.0.0.1:{engine.port}"))
        self.assertIn(str(HUGE), told[0]["figures"])
        self.assertEqual(running.app.pipeline.in_flight, 0)

    def test_the_bytes_of_a_stream_that_asked_for_usage_pass_unchanged(self) -> None:
        running, engine = self.gateway()
        client = self.begin(running, ask(stream=True, stream_options={"include_usage": True}), KEY)
        side = engine.take()
        last = b'data: {"choices":[],"usage":{"prompt_tokens":1000000000000,"completion_tokens":2}}\n\n'
        side.send(STREAM_HEAD + chunked(delta("four", "stop") + last + DONE) + b"0\r\n\r\n")
        client.read_head()
        self.assertEqual(chunk_of(client.read_events()[-2])["usage"]["prompt_tokens"], HUGE)
        line = eventually(running.request_lines)[0]
        self.assertEqual((line["prompt_tokens"], line["completion_tokens"]), (2, 1))

    def test_a_trillion_tokens_do_not_use_up_a_budget(self) -> None:
        directory = self.enter(tempfile.TemporaryDirectory())
        running, engine = self.gateway(STATE_DB=Path(directory) / "gateway.db", LEDGER="on")
        secret = running.app.guard.store.create("alice", budget_usd=1.0)[1]
        for _ in range(2):
            client = self.begin(running, headers=[("Authorization", f"Bearer {secret}")])
            side = engine.take()
            side.answer(answer(usage(HUGE, HUGE)))
            self.assertEqual(client.read_response().status, 200)
            side.close()
        db = running.app.guard.db
        assert db is not None
        rows = eventually(lambda: db.read("SELECT key, prompt_tokens, completion_tokens FROM ledger"))
        self.assertEqual(rows[0], ("alice", 2, 1))
        self.assertLess(running.app.guard.budgets.spent_usd("alice"), 0.001)


class Rows:
    """A database that makes each batch as the real one does."""

    def __init__(self) -> None:
        self.writes: list[Any] = []
        self.connection = sqlite3.connect(":memory:")
        columns = "ts_unix_s, key, model, engine, prompt_tokens, completion_tokens, cost_usd, latency_s, status,"
        self.connection.execute(f"CREATE TABLE ledger ({columns} request_id, error)")

    def submit(self, write: Any) -> bool:
        self.writes.append(write)
        return True


def event(request_id: str, prompt: Optional[int] = 1, cost: Optional[float] = 0.5) -> RequestEvent:
    plain = RequestEvent(1.0, request_id, "POST", CHAT, 200, None, 0.1)
    return plain._replace(model="m", prompt_tokens=prompt, completion_tokens=1, extra={"cost_usd": cost})


class LedgerTest(unittest.TestCase):
    def rows(self) -> Rows:
        rows = Rows()
        self.addCleanup(rows.connection.close)
        return rows

    def test_a_row_that_cannot_be_kept_is_counted_and_takes_no_other_along(self) -> None:
        rows = self.rows()
        ledger = Ledger(rows, (CHAT,))
        ledger([event("a"), event("b", 10**30), event("c", cost=math.inf), event("d", cost=math.nan), event("e")])
        self.assertEqual(ledger.dropped_total, 3)
        for write in rows.writes:
            write(rows.connection)
        kept = rows.connection.execute("SELECT request_id FROM ledger").fetchall()
        self.assertEqual(kept, [("a",), ("e",)])

    def test_a_row_that_only_the_database_refuses_is_counted_once(self) -> None:
        rows = self.rows()
        ledger = Ledger(rows, (CHAT,))
        ledger([event("a"), event("\ud800"), event("b")])
        for _ in range(2):  # as after a rollback
            for write in rows.writes:
                try:
                    write(rows.connection)
                except ValueError:
                    pass
        self.assertEqual(ledger.dropped_total, 1)
        self.assertEqual(len(rows.connection.execute("SELECT * FROM ledger").fetchall()), 4)


if __name__ == "__main__":
    unittest.main()
