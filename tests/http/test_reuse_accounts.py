"""Thousands of mixed requests with everything shared that can be: what is logged, counted, noted and charged agrees.

Log lines, metrics, the ledger and the budget are each made by another part of the gateway; what the engines have said
is counted at the engines. All of it has to be the same, to the token.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import unittest
from collections import Counter
from typing import Any, Callable, Optional
from unittest import mock

from gateway.mock import answers as mock_answers
from tests.access import AccessTest, ask
from tests.support import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    TIMEOUT_S,
    Header,
    RawClient,
    RunningGateway,
    eventually,
)
from tests.thorough import SPARED

PRICES = {
    "m": {"input": 1_000.0, "output": 2_000.0},
    "e": {"input": 30.0, "output": 0.0},
    "bad": {"input": 500.0, "output": 700.0},
    "long": {"input": 11.0, "output": 13.0},
    "cut": {"input": 17.0, "output": 19.0},
}
QUERY = "/query"
THREADS = 32
STAYING, MIXED = (3_000 if SPARED else 9_000), 1_000  # requests whose clients all stay; with some that leave
HOT = 40  # requests after which another question is the one that all ask
WAIT_S = 3 * TIMEOUT_S
WITH_USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
Request = tuple[str, dict[str, Any], list[Header]]


class _Generated:
    """Tokens that the engines have said they took, by model. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.tokens: Counter[tuple[str, str]] = Counter()

    def note(self, model: str, usage: dict[str, int]) -> None:
        with self._lock:
            self.tokens[model, "prompt"] += usage["prompt_tokens"]
            self.tokens[model, "completion"] += usage.get("completion_tokens", 0)

    def watched(self, stack: contextlib.ExitStack) -> None:
        """Count every usage that a mock engine tells from now on."""
        usage, embeddings = mock_answers._usage, mock_answers._embeddings

        def told(asked: mock_answers.Asked, choices: list[Any]) -> dict[str, Any]:
            found = usage(asked, choices)
            self.note(asked.model, found)
            return found

        def embedded(asked: mock_answers.Asked) -> dict[str, Any]:
            found = embeddings(asked)
            self.note(asked.model, found["usage"])
            return found

        stack.enter_context(mock.patch.object(mock_answers, "_usage", told))
        stack.enter_context(mock.patch.object(mock_answers, "_embeddings", embedded))


class _Crowd:
    """Clients on kept connections, a thread each, that ask until so many requests have been sent."""

    def __init__(self, running: RunningGateway, keys: list[list[Header]]) -> None:
        self.running = running
        self.keys = keys
        self.statuses: Counter[int] = Counter()
        self.left = 0
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._failures: list[BaseException] = []

    def run(self, count: int, choose: Callable[[random.Random, int], Request], leaving: float = 0.0) -> None:
        """Send `count` requests. `leaving` is the share of those whose client leaves before it has the answer."""
        upto = next(self._numbers) + count

        def work(seed: int) -> None:
            dice = random.Random(seed)
            client: Optional[RawClient] = None
            try:
                while not self._failures:
                    number = next(self._numbers)
                    if number > upto:
                        return
                    client = client or self.running.connect(WAIT_S)
                    if not self._ask(client, dice, choose(dice, number), dice.random() < leaving):
                        client.close()
                        client = None
            except BaseException as error:
                self._failures.append(error)
            finally:
                if client is not None:
                    client.close()

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failures:
            raise self._failures[0]

    def _ask(self, client: RawClient, dice: random.Random, request: Request, leaves: bool) -> bool:
        """Whether the connection can be used again."""
        path, body, headers = request
        client.request("POST", path, body, [*dice.choice(self.keys), *headers])
        if leaves:
            if body.get("stream") and client.read_head().status == 200:
                client.read_event()
            self._note(None)
            return False
        answer = client.read_response()
        if body.get("stream") and answer.status == 200:
            end = answer.body.rpartition(b"data: ")[2]
            assert end == b"[DONE]\n\n" or b'"error"' in end, answer.body[-500:]
        self._note(answer.status)
        return answer.header("connection") != "close"

    def _note(self, status: Optional[int]) -> None:
        with self._lock:
            if status is None:
                self.left += 1
            else:
                self.statuses[status] += 1


def mixed(dice: random.Random, number: int) -> Request:
    """One of what clients ask: by chat, as a stream, for embeddings, in queries; new or known, good or not."""
    hot, known = f"the question of {number // HOT}", f"known question {dice.randrange(20)}"
    text = dice.choice((hot, hot, known, known, f"new question {number} " + "word " * dice.randrange(20)))
    kind = dice.random()
    stream: dict[str, Any] = dice.choice(({}, {}, {"stream": True}, WITH_USAGE))
    fixed: dict[str, Any] = dice.choice(({"temperature": 0}, {"temperature": 0}, {"seed": 4}, {}))
    if kind < 0.5:
        return CHAT, {**ask(text, "m"), **fixed, **stream}, []
    if kind < 0.58:
        headers: list[Header] = dice.choice(
            ([("Cache-Control", "no-cache")], [("X-Gateway-Cache", "on")], [("X-Gateway-Coalesce", "off")])
        )
        return CHAT, {**ask(text, "m"), **fixed, **stream}, headers
    if kind < 0.72:
        inputs: Any = text if dice.random() < 0.6 else [text, known, "a third one"][: dice.randrange(1, 4)]
        return EMBEDDINGS, {"model": "e", "input": inputs}, []
    if kind < 0.84:
        return QUERY, {"model": "m", "query": text, **fixed}, []
    if kind < 0.9:
        return COMPLETIONS, {"model": "m", "prompt": text, **fixed, **stream}, []
    if kind < 0.93:
        return CHAT, {**ask(text, "m"), "n": 2, "temperature": 0, **stream}, []
    if kind < 0.98:
        return CHAT, {**ask(text, "bad"), **fixed, **stream}, []
    wrong: dict[str, Any] = dice.choice(({**ask(text, "nope")}, {"model": "m", "messages": []}))
    return CHAT, wrong, []


def broken(dice: random.Random, number: int) -> Request:
    """The same, with streams that take their time, and some that an engine breaks off."""
    if dice.random() < 0.5:
        return mixed(dice, number)
    model = dice.choice(("long", "long", "cut"))
    stream: dict[str, Any] = dice.choice(({}, {"stream": True}, {"stream": True}, WITH_USAGE))
    return CHAT, {**ask(f"a long one {number // HOT}", model), "temperature": 0, **stream}, []


class AccountsTest(AccessTest):
    def setUp(self) -> None:
        super().setUp()
        self.generated = _Generated()
        stack = self.enter(contextlib.ExitStack())
        self.generated.watched(stack)
        behaviours: dict[str, tuple[str, dict[str, Any]]] = {
            "m": ("slow", {"delay": 0.004}),
            "e": ("slow", {"delay": 0.004}),
            "bad": ("flaky", {"ratio": 0.4, "seed": 1}),
            "long": ("ok", {"events": 25, "gap": 0.004}),
            "cut": ("drop_mid_stream", {"after": 3}),
        }
        self.fleet: dict[str, dict[str, Any]] = {}
        for model, (behaviour, options) in behaviours.items():
            engine = self.engine(behaviour, model, **options)
            self.fleet[model] = {"engines": [engine.url], "price": PRICES[model], "fallbacks": []}

    def lines(self, running: RunningGateway, count: int) -> list[dict[str, Any]]:
        """The log lines of all requests, once there are so many and nothing is under way."""
        eventually(lambda: running.log.getvalue().count('"event": "request"') >= count, WAIT_S)
        eventually(lambda: not running.app.pipeline.in_flight, WAIT_S)
        lines = running.request_lines()
        self.assertEqual(len(lines), count)
        return lines

    def tokens_of(self, lines: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
        """The tokens of log lines, by model."""
        found: Counter[tuple[str, str]] = Counter()
        for line in lines:
            for kind in ("prompt", "completion"):
                if line.get(f"{kind}_tokens"):
                    found[line["model"], kind] += line[f"{kind}_tokens"]
        return found

    def test_log_metrics_ledger_budget_and_engines_agree(self) -> None:
        running = self.serve(
            self.fleet,
            CACHE="on",
            COALESCE="on",
            BATCH_EMBEDDINGS="on",
            LEDGER="on",
            BREAKER_MIN_REQUESTS=1_000_000,
            WORKERS=64,
            ADMIN_KEYS="root:sk-root-fedcba9876543210",
        )
        names = ("alice", "bob", "carol")
        keys = [self.make(running, "alice", budget_usd=1e6), self.make(running, "bob"), self.make(running, "carol")]
        crowd = _Crowd(running, keys)

        crowd.run(STAYING, mixed)
        lines = self.lines(running, STAYING)
        self.assertEqual(Counter(line["status"] for line in lines), crowd.statuses)
        self.assertGreater(crowd.statuses[200], STAYING * 0.9)
        self.assertGreater(crowd.statuses[502], 20)
        self.assertEqual([line for line in lines if line.get("usage_estimated")], [])
        self.assert_shared(lines)
        self.assertEqual(self.tokens_of(lines), +self.generated.tokens)

        crowd.run(MIXED, broken, leaving=0.3)
        lines = self.lines(running, STAYING + MIXED)
        self.assertGreater(crowd.left, MIXED * 0.2)
        self.assertTrue({200, 400, 404, 499, 502} <= {line["status"] for line in lines})
        self.assert_shared(lines)
        self.assert_agreement(running, lines, names)

    def assert_shared(self, lines: list[dict[str, Any]]) -> None:
        """Much was shared, and what was cost nothing."""
        kinds = Counter(str(line.get("cache")) for line in lines)
        coalesced = [line for line in lines if line.get("coalesced")]
        batched = [line for line in lines if line.get("batch", 0) > 1]
        self.assertGreater(min(kinds["hit"], kinds["miss"], kinds["bypass"]), len(lines) / 20, kinds)
        self.assertGreater(len(coalesced), 30)
        self.assertGreater(len(batched), 50)
        for line in lines:
            if line.get("cache") == "hit" or line.get("coalesced"):
                told = (line.get("prompt_tokens") or 0, line.get("completion_tokens") or 0, line.get("cost_usd") or 0)
                self.assertEqual(told, (0, 0, 0), line)

    def assert_agreement(self, running: RunningGateway, lines: list[dict[str, Any]], names: tuple[str, ...]) -> None:
        """Log, metrics, ledger and budget say the same."""
        tokens = self.tokens_of(lines)
        samples = running.metrics()
        for (model, kind), count in tokens.items():
            self.assertEqual(samples[f'gateway_tokens_total{{model="{model}",kind="{kind}"}}'], count, (model, kind))
        costs: dict[str, float] = dict.fromkeys(PRICES, 0.0)
        by_key: dict[str, float] = dict.fromkeys(names, 0.0)
        for line in lines:
            cost = line.get("cost_usd") or 0.0
            by_key[line["key"]] += cost
            price = PRICES.get(line["model"])
            if price is None:
                self.assertEqual((cost, line.get("prompt_tokens")), (0.0, None), line)
                continue
            costs[line["model"]] += cost
            if line.get("prompt_tokens") is not None:
                sides = (line["prompt_tokens"] * price["input"], (line["completion_tokens"] or 0) * price["output"])
                self.assertAlmostEqual(cost, sum(sides) / 1e6, places=9)
        near = 1e-9 * len(lines)
        for model, price in PRICES.items():
            expected = (tokens[model, "prompt"] * price["input"] + tokens[model, "completion"] * price["output"]) / 1e6
            self.assertGreater(expected, 0)
            self.assertAlmostEqual(costs[model], expected, delta=near)
            self.assertAlmostEqual(samples[f'gateway_cost_usd_total{{model="{model}"}}'], expected, delta=near)
        self.assertAlmostEqual(running.app.guard.budgets.spent_usd("alice"), by_key["alice"], delta=near)

        db = running.app.guard.open_db()
        eventually(lambda: db.read("SELECT COUNT(*) FROM ledger")[0][0] >= len(lines), WAIT_S)
        self.assertEqual(samples["gateway_ledger_dropped_total"], 0)
        noted = {
            row[0]: row[1:]
            for row in db.read("SELECT request_id, key, prompt_tokens, completion_tokens, cost_usd, status FROM ledger")
        }
        self.assertEqual(len(noted), len(lines))
        for line in lines:
            fields = ("key", "prompt_tokens", "completion_tokens", "cost_usd", "status")
            self.assertEqual(noted[line["request_id"]], tuple(line.get(name) for name in fields), line)
        self.assertEqual({row[0] for row in noted.values()}, set(names))
        hits = sum(line.get("cache") == "hit" for line in lines)
        counted = sum(
            value for name, value in samples.items() if "cache_requests_total" in name and 'result="hit"' in name
        )
        self.assertEqual(counted, hits)
        coalesced = sum(bool(line.get("coalesced")) for line in lines)
        told = sum(value for name, value in samples.items() if name.startswith("gateway_coalesced_total"))
        self.assertEqual(told, coalesced)
        saved = sum(line.get("saved_tokens", 0) for line in lines)
        told = sum(value for name, value in samples.items() if name.startswith("gateway_saved_tokens_total"))
        self.assertEqual(told, saved)


if __name__ == "__main__":
    unittest.main()
