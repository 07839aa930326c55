"""`POST /query` over real sockets: queries that leave together, each with its own answer."""

from __future__ import annotations

import gc
import json
import threading
import time
import unittest
from collections.abc import Sequence
from typing import Any

from gateway.reuse.batching import Seat
from tests.parallel import alone
from tests.resilience import ResilienceTest
from tests.scripted import EngineSide, ScriptedEngine
from tests.support import EMBEDDINGS, RawClient, Response, RunningGateway, eventually, gateway

QUERY = "/query"
PRICED = {"input": 1000.0, "output": 1000.0}
LONG = 60_000  # milliseconds: a batch of a test leaves when it is full


def texts(prompts: Sequence[str]) -> bytes:
    """An engine's answer to these prompts, last one first: the index says which is which."""
    choices = [{"index": i, "text": f"Answer to {p}", "finish_reason": "stop"} for i, p in enumerate(prompts)]
    usage = {
        "prompt_tokens": 10 * len(prompts),
        "completion_tokens": 3 * len(prompts),
        "total_tokens": 13 * len(prompts),
    }
    return json.dumps({"id": "c", "object": "text_completion", "choices": choices[::-1], "usage": usage}).encode()


class QueryTest(ResilienceTest):
    def one(self, **variables: object) -> tuple[RunningGateway, ScriptedEngine]:
        engine = self.scripted()
        models = {"m": {"engines": [{"url": engine.url}], "price": PRICED}}
        return self.serve(models, **{"BATCH_MAX_WAIT_MS": LONG, "RETRY_ATTEMPTS": 1, **variables}), engine

    def send(
        self, running: RunningGateway, query: str, headers: Sequence[tuple[str, str]] = (), **more: Any
    ) -> RawClient:
        client = self.enter(running.connect())
        client.request("POST", QUERY, {"query": query, **more}, headers)
        return client

    def warm(self, running: RunningGateway, engine: ScriptedEngine) -> EngineSide:
        """A first query, which leaves at once; those that follow gather."""
        client = self.send(running, "first")
        side = engine.take()
        self.assertEqual(side.json["prompt"], "first")
        side.answer(texts(["first"]))
        self.assertEqual(client.read_response().json(), {"result": "Answer to first"})
        return side

    def gathered(self, running: RunningGateway) -> int:
        batches = running.app.pipeline.reuse._together.gathering._open
        return sum(len(batch.seats) for batch in list(batches.values()))

    def left(self, running: RunningGateway) -> int:
        """How many of those who gather have left."""
        batches = running.app.pipeline.reuse._together.gathering._open
        return sum(seat.asked.left for batch in list(batches.values()) for seat in batch.seats)

    def assert_idle(self, running: RunningGateway) -> None:
        eventually(lambda: running.app.pipeline.in_flight == 0)
        eventually(lambda: running.app.workers.busy == 0)
        self.assertEqual(self.gathered(running), 0)
        self.assert_nothing_held(running)


class SingleTest(QueryTest):
    def test_with_nothing_configured_it_echoes(self) -> None:
        running = self.enter(gateway())
        answer = running.post({"query": "What is AI?"}, QUERY)
        self.assertEqual((answer.status, answer.json()), (200, {"result": "Processed: What is AI?"}))

    def test_what_is_no_query_is_refused(self) -> None:
        running = self.enter(gateway())
        for body in ({}, {"query": ""}, {"query": "  "}, {"query": 5}, {"query": None}, {"query": ["a"]}):
            answer = running.post(body, QUERY)
            self.assertEqual((answer.status, answer.error, answer.json()["param"]), (400, "invalid_query", "query"))
        for field, value in (("max_tokens", 0), ("temperature", 3), ("model", 5)):
            answer = running.post({"query": "hi", field: value}, QUERY)
            self.assertEqual((answer.status, answer.error), (400, f"invalid_{field}"))
        self.assertEqual(running.get(QUERY).status, 405)

    def test_it_is_an_inference_request_like_any(self) -> None:
        running, engine = self.one(API_KEYS="a:sk-a")
        self.assertEqual(running.post({"query": "hi"}, QUERY).status, 401)
        client = self.send(running, "hi", [("Authorization", "Bearer sk-a")], max_tokens=7, temperature=0.5)
        side = engine.take()
        self.assertEqual(side.json, {"model": "m", "prompt": "hi", "max_tokens": 7, "temperature": 0.5})
        side.answer(texts(["hi"]))
        answer = client.read_response()
        self.assertEqual(answer.json(), {"result": "Answer to hi"})
        self.assertEqual(answer.header("x-gateway-engine"), f"127.0.0.1:{engine.port}")
        line = running.request_line(answer.request_id)
        self.assertEqual(
            (line["path"], line["key"], line["prompt_tokens"], line["cost_usd"]), ("/query", "a", 10, 0.013)
        )

    def test_an_engines_failure_is_told_as_ever(self) -> None:
        running, engine = self.one()
        client = self.send(running, "hi")
        engine.take().answer(b"{}", status="500 No")
        answer = client.read_response()
        self.assertEqual((answer.status, answer.error), (502, "backend_error"))


class TogetherTest(QueryTest):
    def test_queries_that_come_together_share_one_call(self) -> None:
        running, engine = self.one(BATCH_MAX_SIZE=4)
        side = self.warm(running, engine)
        clients = [self.send(running, f"q{i}") for i in range(4)]
        side.read_request()
        prompts = side.json["prompt"]
        self.assertEqual(sorted(prompts), ["q0", "q1", "q2", "q3"])
        side.answer(texts(prompts))
        answers = [client.read_response() for client in clients]
        self.assertEqual([a.json() for a in answers], [{"result": f"Answer to q{i}"} for i in range(4)])
        self.assert_idle(running)
        lines = [running.request_line(answer.request_id) for answer in answers]
        self.assertEqual(sum(line["prompt_tokens"] for line in lines), 40)
        self.assertEqual(sum(line["completion_tokens"] for line in lines), 12)
        self.assertEqual([line["batch"] for line in lines], [4] * 4)
        metrics = running.metrics()
        self.assertEqual(metrics["gateway_batch_size_count"], 2)
        self.assertEqual(metrics["gateway_batch_size_sum"], 5)
        self.assertEqual(metrics["gateway_batch_wait_seconds_count"], 2)
        name = f'gateway_engine_requests_total{{model="m",engine="127.0.0.1:{engine.port}",outcome="ok"}}'
        self.assertEqual(metrics[name], 2)

    def test_a_batch_leaves_when_the_first_has_waited_long_enough(self) -> None:
        running, engine = self.one(BATCH_MAX_WAIT_MS=1000)
        side = self.warm(running, engine)
        clients = [self.send(running, f"q{i}") for i in range(3)]
        eventually(lambda: self.gathered(running) == 3)
        prompts = side.read_request().json["prompt"]
        self.assertEqual(sorted(prompts), ["q0", "q1", "q2"])
        side.answer(texts(prompts))
        self.assertEqual([c.read_response().status for c in clients], [200] * 3)

    def test_only_equal_parameters_share_a_call(self) -> None:
        running, engine = self.one(BATCH_MAX_SIZE=2, BATCH_MAX_WAIT_MS=100)
        side = self.warm(running, engine)
        self.send(running, "a", max_tokens=5)
        self.send(running, "b", max_tokens=6)
        self.send(running, "c", temperature=0.5)
        asked = [side.read_request().json] + [engine.take().json for _ in range(2)]
        self.assertEqual(sorted(one["prompt"] for one in asked), ["a", "b", "c"])

    def test_each_keys_budget_and_limits_are_charged_with_its_share(self) -> None:
        running, engine = self.one(BATCH_MAX_SIZE=2, API_KEYS="a:sk-a,b:sk-b")
        client = self.send(running, "x", [("Authorization", "Bearer sk-a")])
        side = engine.take()
        side.answer(texts(["x"]))
        client.read_response()
        clients = [
            self.send(running, text, [("Authorization", f"Bearer sk-{key}")])
            for text, key in (("short", "a"), ("a much longer query than that", "b"))
        ]
        side.read_request()
        side.answer(texts(side.json["prompt"]))
        lines = [running.request_line(c.read_response().request_id) for c in clients]
        self.assertEqual([line["key"] for line in lines], ["a", "b"])
        self.assertEqual(sum(line["prompt_tokens"] for line in lines), 20)
        self.assertGreater(lines[1]["prompt_tokens"], lines[0]["prompt_tokens"])
        self.assertAlmostEqual(sum(line["cost_usd"] for line in lines), 0.026)

    def test_one_that_leaves_spoils_nothing(self) -> None:
        for place in range(3):
            with self.subTest(place=place):
                running, engine = self.one(BATCH_MAX_SIZE=3)
                side = self.warm(running, engine)
                clients = [self.send(running, "q0"), self.send(running, "q1")]
                eventually(lambda: self.gathered(running) == 2)  # noqa: B023
                clients.append(self.send(running, "q2"))
                side.read_request()
                clients[place].close()
                time.sleep(0.6)
                side.answer(texts(side.json["prompt"]))
                for i, client in enumerate(clients):
                    if i != place:
                        self.assertEqual(client.read_response().json(), {"result": f"Answer to q{i}"})
                self.assert_idle(running)

    def test_who_leaves_while_it_is_asked_pays_its_share(self) -> None:
        for place in range(2):
            with self.subTest(place=place):
                running, engine = self.one(BATCH_MAX_SIZE=2)
                side = self.warm(running, engine)
                clients = [self.send(running, "q0")]
                eventually(lambda: self.gathered(running) == 1)  # noqa: B023
                clients.append(self.send(running, "q1"))
                side.read_request()
                clients[place].close()
                time.sleep(0.6)
                side.answer(texts(side.json["prompt"]))
                self.assertEqual(clients[1 - place].read_response().status, 200)
                self.assert_idle(running)
                eventually(lambda: len(running.request_lines()) == 3)  # noqa: B023
                self.assertEqual(sum(line["prompt_tokens"] for line in running.request_lines()), 30)

    def test_when_all_leave_while_it_is_asked_the_engine_is_left(self) -> None:
        running, engine = self.one(BATCH_MAX_SIZE=2)
        side = self.warm(running, engine)
        clients = [self.send(running, f"q{i}") for i in range(2)]
        side.read_request()
        for client in clients:
            client.close()
        self.assertTrue(side.wait_until_left())
        self.assert_idle(running)

    def test_what_an_engine_says_of_a_batch_is_told_to_nobody(self) -> None:
        running, engine = self.one(BATCH_MAX_SIZE=2)
        side = self.warm(running, engine)
        clients = [self.send(running, f"q{i}") for i in range(2)]
        side.read_request().answer(texts(side.json["prompt"]))
        for client in clients:
            client.read_response()
        clients = [self.send(running, "a secret"), self.send(running, "another")]
        words = json.dumps({"error": {"message": "failed on a secret", "type": "a secret"}}).encode()
        side.read_request().answer(words, status="429 Too Many Requests")
        for client in clients:
            answer = client.read_response()
            self.assertEqual(answer.error, "backend_rate_limited")
            self.assertNotIn(b"secret", answer.body)

    def test_each_is_told_the_engine_that_has_failed_a_batch_and_its_call_is_counted_once(self) -> None:
        running, engine = self.one(BATCH_MAX_SIZE=2)
        side = self.warm(running, engine)
        clients = [self.send(running, f"q{i}") for i in range(2)]
        side.read_request().answer(b"{}", status="429 Too Many Requests")
        for client in clients:
            self.assertEqual(client.read_response().status, 429)
        self.assert_idle(running)
        eventually(lambda: len(running.request_lines()) == 3)
        lines = running.request_lines()
        self.assertEqual([(line["attempts"], line["engine"] is None) for line in lines], [(1, False)] * 3)
        self.assertEqual(sum(line["engine_ms"] > 0 for line in lines), 2)  # the first one, and who has led
        figures = running.metrics()
        calls = {name: value for name, value in figures.items() if name.startswith("gateway_engine_requests_total")}
        self.assertEqual(sum(calls.values()), 2, calls)

    def test_who_leaves_before_is_not_asked_for(self) -> None:
        running, engine = self.one(BATCH_MAX_SIZE=4)
        side = self.warm(running, engine)
        clients = [self.send(running, f"q{i}") for i in range(3)]
        eventually(lambda: self.gathered(running) == 3)
        clients[0].close()
        clients[1].close()
        eventually(lambda: self.left(running) == 2)
        clients.append(self.send(running, "q3"))  # the batch is full
        prompts = side.read_request().json["prompt"]
        self.assertEqual(prompts, ["q2", "q3"])
        side.answer(texts(prompts))
        for client, prompt in zip(clients[2:], prompts):
            self.assertEqual(client.read_response().json(), {"result": f"Answer to {prompt}"})
        self.assert_idle(running)

    def test_when_all_have_left_nothing_is_asked(self) -> None:
        running, engine = self.one(BATCH_MAX_WAIT_MS=1000)
        self.warm(running, engine)
        clients = [self.send(running, f"q{i}") for i in range(3)]
        eventually(lambda: self.gathered(running) == 3)
        for client in clients:
            client.close()
        self.assert_idle(running)
        eventually(lambda: len(running.request_lines()) == 4)
        self.assertEqual(sum(line["attempts"] for line in running.request_lines()), 1)

    def test_the_end_of_the_gateway_ends_those_who_gather(self) -> None:
        running, engine = self.one()
        self.warm(running, engine)
        clients = [self.send(running, f"q{i}") for i in range(3)]
        eventually(lambda: self.gathered(running) == 3)
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        self.assertEqual([client.read_response().error for client in clients], ["draining"] * 3)
        stopping.join()

    def test_the_engines_limit_counts(self) -> None:
        engine = self.scripted()
        models = {"m": {"engines": [{"url": engine.url, "max_batch": 2}]}}
        running = self.serve(models, BATCH_MAX_WAIT_MS=LONG)
        side = self.warm(running, engine)
        clients = [self.send(running, f"q{i}") for i in range(4)]
        for asked in (side.read_request(), engine.take()):
            self.assertEqual(len(asked.json["prompt"]), 2)
            asked.answer(texts(asked.json["prompt"]))
        self.assertEqual([c.read_response().status for c in clients], [200] * 4)

    def test_one_that_is_too_long_fails_alone(self) -> None:
        engine = self.scripted()
        models = {"m": {"engines": [{"url": engine.url}], "max_model_len": 200}}
        running = self.serve(models, BATCH_MAX_WAIT_MS=LONG, BATCH_MAX_SIZE=3)
        side = self.warm(running, engine)
        clients = []
        for text in ("q0", "word " * 2000, "q2"):  # in this order: the two short ones part
            eventually(lambda: self.gathered(running) == len(clients))
            clients.append(self.send(running, text))
        long = clients[1].read_response()
        self.assertEqual((long.status, long.error), (400, "context_too_long"))
        sides = [side.read_request(), engine.take()]
        for asked in sides:
            prompt = asked.json["prompt"]
            asked.answer(texts(prompt if isinstance(prompt, list) else [prompt]))
        self.assertEqual([clients[0].read_response().status, clients[2].read_response().status], [200, 200])
        self.assert_idle(running)

    def test_what_is_over_is_kept_by_nothing(self) -> None:
        running, engine = self.one(BATCH_MAX_SIZE=2)
        side = self.warm(running, engine)
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        clients = [self.send(running, f"q{i}") for i in range(2)]
        side.read_request()
        side.answer(texts(side.json["prompt"]))
        for client in clients:
            client.read_response()
            client.close()
        self.assert_idle(running)
        eventually(lambda: not any(type(one) is Seat for one in gc.get_objects()), 2.0)

    def test_a_failing_engine_fails_each(self) -> None:
        running, engine = self.one(BATCH_MAX_SIZE=2)
        side = self.warm(running, engine)
        clients = [self.send(running, f"q{i}") for i in range(2)]
        side.read_request().answer(texts(side.json["prompt"]))  # lists are taken
        for client in clients:
            client.read_response()
        clients = [self.send(running, f"r{i}") for i in range(2)]
        side.read_request().answer(b"{}", status="429 Too Many Requests")
        for client in clients:
            self.assertEqual(client.read_response().error, "backend_rate_limited")
        self.assert_idle(running)


class Engine(threading.Thread):
    """Answers completions as `say` has it, from a list of connections of its own, until it is closed."""

    def __init__(self, scripted: ScriptedEngine, say: Any) -> None:
        super().__init__(daemon=True)
        self.scripted = scripted
        self.say = say
        self.asked: list[Any] = []
        self.lock = threading.Lock()

    def run(self) -> None:
        while True:
            try:
                side = self.scripted.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(side,), daemon=True).start()

    def serve(self, side: EngineSide) -> None:
        try:
            while True:
                prompt = side.read_request().json["prompt"]
                with self.lock:
                    self.asked.append(prompt)
                body, status = self.say(prompt)
                side.answer(body, status=status)
        except (OSError, AssertionError):
            pass


def rejects(prompt: Any) -> bool:
    return "poison" in (prompt if isinstance(prompt, list) else [prompt])


def says(prompt: Any) -> tuple[bytes, str]:
    if rejects(prompt):
        return b'{"error":{"message":"this is poison"}}', "400 Bad Request"
    return texts(prompt if isinstance(prompt, list) else [prompt]), "200 OK"


class FaultyTest(QueryTest):
    def behind(self, say: Any, **variables: object) -> tuple[RunningGateway, Engine]:
        scripted = self.scripted()
        engine = Engine(scripted, say)
        engine.start()
        models = {"m": {"engines": [{"url": scripted.url}]}}
        return self.serve(models, **{"RETRY_ATTEMPTS": 1, **variables}), engine

    def ask_all(self, running: RunningGateway, queries: Sequence[str]) -> list[Response]:
        clients = [self.enter(running.connect()) for _ in queries]
        for client, query in zip(clients, queries):
            client.request("POST", QUERY, {"query": query})
        return [client.read_response() for client in clients]

    def test_one_that_the_engine_rejects_fails_alone(self) -> None:
        running, engine = self.behind(says, BATCH_MAX_SIZE=16, BATCH_MAX_WAIT_MS=500)
        queries = [f"q{i}" for i in range(32)] + ["poison"]
        answers = self.ask_all(running, queries)
        for query, answer in zip(queries, answers):
            if query == "poison":
                self.assertEqual((answer.status, answer.error), (400, "backend_rejected"))
            else:
                self.assertEqual(answer.json(), {"result": f"Answer to {query}"})
        self.assertLessEqual(len(engine.asked), 4 + 2 * 4)
        self.assert_idle(running)

    def test_so_does_one_that_it_fails_on(self) -> None:
        def fails(prompt: Any) -> tuple[bytes, str]:
            return (b"{}", "500 No") if rejects(prompt) else says(prompt)

        running, _ = self.behind(fails, BATCH_MAX_SIZE=16, BATCH_MAX_WAIT_MS=500, RETRY_ATTEMPTS=3)
        queries = [f"q{i}" for i in range(16)] + ["poison"]
        answers = self.ask_all(running, queries)
        self.assertEqual([a.status for a in answers], [200] * 16 + [502])
        self.assertEqual(answers[-1].error, "backend_error")
        self.assert_idle(running)

    def test_what_led_to_its_answer_is_counted_though_others_led(self) -> None:
        running, engine = self.behind(says, BATCH_MAX_SIZE=16, BATCH_MAX_WAIT_MS=500)
        self.ask_all(running, [f"q{i}" for i in range(16)] + ["poison"])
        self.assert_idle(running)
        figures = running.metrics()
        calls = sum(value for name, value in figures.items() if name.startswith("gateway_engine_requests_total"))
        self.assertEqual(calls, len(engine.asked))

    def test_faulty_ones_do_not_end_the_asking_with_lists(self) -> None:
        running, engine = self.behind(says, BATCH_MAX_SIZE=16, BATCH_MAX_WAIT_MS=500)
        queries = ["first", *("poison" if i in (2, 13) else f"q{i}" for i in range(16))]
        answers = self.ask_all(running, queries)
        self.assertEqual([a.status for a in answers], [400 if query == "poison" else 200 for query in queries])
        before = len(engine.asked)
        self.ask_all(running, [f"r{i}" for i in range(16)])
        self.assertLessEqual(len(engine.asked) - before, 2)
        self.assert_idle(running)

    def test_what_it_says_to_lists_is_not_held_against_an_engine(self) -> None:
        def broken(prompt: Any) -> tuple[bytes, str]:
            return says(prompt) if isinstance(prompt, str) else (b"{}", "500 No")

        running, engine = self.behind(
            broken, BATCH_MAX_SIZE=2, BATCH_MAX_WAIT_MS=500, RETRY_ATTEMPTS=3, BREAKER_MIN_REQUESTS=5
        )
        self.assertEqual({a.status for a in self.ask_all(running, [f"q{i}" for i in range(17)])}, {200})
        self.assertGreater(sum(isinstance(prompt, list) for prompt in engine.asked), 5)
        self.assert_idle(running)
        self.assertEqual([line for line in running.log_lines() if line["event"] == "engine_state"], [])

    def test_an_engine_that_takes_lists_no_more_is_asked_with_concurrent_calls_from_then_on(self) -> None:
        taking = threading.Event()

        def once(prompt: Any) -> tuple[bytes, str]:
            return says(prompt) if taking.is_set() or isinstance(prompt, str) else (b"{}", "500 No")

        running, engine = self.behind(once, BATCH_MAX_SIZE=8, BATCH_MAX_WAIT_MS=300, RETRY_ATTEMPTS=3)
        queries = [f"q{i}" for i in range(17)]
        taking.set()
        self.assertEqual({a.status for a in self.ask_all(running, queries)}, {200})
        self.assertIn(list, map(type, engine.asked))
        taking.clear()
        for _ in range(2):
            before = len(engine.asked)
            self.assertEqual({a.status for a in self.ask_all(running, queries)}, {200})
        self.assertEqual([one for one in engine.asked[before:] if isinstance(one, list)], [])
        self.assert_idle(running)

    def test_an_engine_that_takes_no_lists_is_asked_with_concurrent_calls_from_then_on(self) -> None:
        def no_lists(prompt: Any) -> tuple[bytes, str]:
            if isinstance(prompt, list):
                return b'{"error":{"message":"prompt must be a string"}}', "400 Bad Request"
            return texts([prompt]), "200 OK"

        def fewer(prompt: Any) -> tuple[bytes, str]:
            return texts([prompt] if isinstance(prompt, str) else prompt[:1]), "200 OK"

        def broken(prompt: Any) -> tuple[bytes, str]:
            return (b"{}", "500 No") if isinstance(prompt, list) else (texts([prompt]), "200 OK")

        for say in (no_lists, fewer, broken):
            with self.subTest(say.__name__):
                running, engine = self.behind(say, BATCH_MAX_SIZE=8, BATCH_MAX_WAIT_MS=300)
                queries = [f"q{i}" for i in range(17)]
                answers = self.ask_all(running, queries)
                self.assertEqual([a.json() for a in answers], [{"result": f"Answer to {q}"} for q in queries])
                before = len(engine.asked)
                answers = self.ask_all(running, queries)
                self.assertEqual([a.json() for a in answers], [{"result": f"Answer to {q}"} for q in queries])
                self.assertEqual([one for one in engine.asked[before:] if isinstance(one, list)], [])
                self.assert_idle(running)

    @alone
    def test_a_thousand_queries_are_few_calls(self) -> None:
        running, engine = self.behind(says, WORKERS=64)
        queries = [f"question number {i}?" for i in range(1000)]
        answers: dict[str, Response] = {}

        def ask(own: list[str]) -> None:
            clients = []
            for query in own:
                client = running.connect()
                client.request("POST", QUERY, {"query": query})
                clients.append(client)
            for query, client in zip(own, clients):
                answers[query] = client.read_response()
                client.close()

        threads = [threading.Thread(target=ask, args=(queries[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for query in queries:
            self.assertEqual(answers[query].json(), {"result": f"Answer to {query}"})
        self.assertLessEqual(len(engine.asked), -(-1000 // 32) + 2)
        self.assert_idle(running)


class EmbeddingsTest(QueryTest):
    def answer(self, side: EngineSide, inputs: list[str], tokens: int) -> None:
        items = b",".join(
            b'{"object": "embedding", "index": %d, "embedding": [%d.50, 1E-3, -0.10]}' % (i, len(text))
            for i, text in enumerate(inputs)
        )
        side.answer(
            b'{"object":"list","model":"e","data":[%b],"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
            % (items, tokens, tokens)
        )

    def send_input(self, running: RunningGateway, value: Any, **more: Any) -> RawClient:
        client = self.enter(running.connect())
        client.request("POST", EMBEDDINGS, {"input": value, **more})
        return client

    def lonely(self, running: RunningGateway, engine: ScriptedEngine) -> EngineSide:
        client = self.send_input(running, "first")
        side = engine.take()
        self.answer(side, ["first"], 1)
        client.read_response()
        return side

    def test_requests_that_come_together_share_one_call(self) -> None:
        running, engine = self.one(BATCH_EMBEDDINGS="on", BATCH_MAX_SIZE=4)
        side = self.lonely(running, engine)
        clients = [self.send_input(running, "a")]
        eventually(lambda: self.gathered(running) == 1)
        clients.append(self.send_input(running, ["bb", "ccc"]))
        eventually(lambda: self.gathered(running) == 2)
        clients.append(self.send_input(running, ["dddd"]))
        side.read_request()
        self.assertEqual(side.json["input"], ["a", "bb", "ccc", "dddd"])
        self.answer(side, side.json["input"], 21)
        answers = [client.read_response() for client in clients]
        vectors = [[item["embedding"] for item in answer.json()["data"]] for answer in answers]
        self.assertEqual(
            vectors, [[[1.5, 0.001, -0.1]], [[2.5, 0.001, -0.1], [3.5, 0.001, -0.1]], [[4.5, 0.001, -0.1]]]
        )
        self.assertEqual([[i["index"] for i in a.json()["data"]] for a in answers], [[0], [0, 1], [0]])
        self.assertEqual(sum(a.json()["usage"]["prompt_tokens"] for a in answers), 21)
        self.assertEqual([a.json()["id"] for a in answers], [a.request_id for a in answers])
        self.assertEqual([a.json()["model"] for a in answers], ["m"] * 3)
        self.assert_idle(running)

    def test_what_differs_or_is_tokens_is_not_mixed(self) -> None:
        running, engine = self.one(BATCH_EMBEDDINGS="on", BATCH_MAX_WAIT_MS=100, BATCH_MAX_SIZE=2)
        side = self.lonely(running, engine)
        self.send_input(running, "a", dimensions=8)
        self.send_input(running, "b", encoding_format="base64")
        self.send_input(running, [1, 2, 3])
        self.send_input(running, "c")
        inputs = [side.read_request().json["input"]] + [engine.take().json["input"] for _ in range(3)]
        self.assertEqual(sorted(map(str, inputs)), ["[1, 2, 3]", "a", "b", "c"])

    def test_off_nothing_is_shared(self) -> None:
        running, engine = self.one(BATCH_MAX_SIZE=2)
        self.send_input(running, "a")
        self.send_input(running, "b")
        self.assertEqual(sorted(engine.take().json["input"] for _ in range(2)), ["a", "b"])


if __name__ == "__main__":
    unittest.main()
