"""Gateways that share their answers in a real Redis, which is stopped, killed and started again meanwhile.

Skipped where redis-server or the package redis is missing; with REQUIRE_REDIS=1 that is a failure (test_redis_store).
"""

from __future__ import annotations

import signal
import threading
import time
import unittest
from typing import Any
from unittest import mock

from gateway.reuse.stored import Chosen
from gateway.shared import leases
from tests.process.test_redis_store import Server, needs_redis
from tests.resilience import ResilienceTest, ask
from tests.support import RunningGateway, eventually

SHORT_MS = 200  # of a Redis that is not there; else no wait is to end because others want the processor


def question(text: str = "What is the capital of France?", **more: Any) -> dict[str, Any]:
    """A deterministic request."""
    return ask(text, temperature=0, **more)


@needs_redis
class SharedTest(ResilienceTest):
    def setUp(self) -> None:
        super().setUp()
        self.server = Server.for_test(self).start()
        self.mock = self.engine()

    def gateway(self, **variables: object) -> RunningGateway:
        models = {"m": {"engines": [{"url": self.mock.url}], "price": {"input": 1.0, "output": 1.0}}}
        return self.serve(
            models,
            CACHE="on",
            REDIS_URL=f"redis://127.0.0.1:{self.server.port}/0",
            **{"REDIS_TIMEOUT_MS": 20_000, **variables},
        )

    def asked(self) -> int:
        return int(self.mock.stats()["requests"])

    def hit(self, running: RunningGateway, *headers: tuple[str, str], **more: Any) -> Any:
        """What the cache has done."""
        return running.post(question(**more), headers=headers).header("x-gateway-cache")

    def names(self) -> int:
        """How many answers Redis has."""
        import redis  # type: ignore[import-not-found,unused-ignore]

        with redis.Redis(port=self.server.port) as client:
            return len(client.keys("igw:a:*"))

    def wait_open(self, running: RunningGateway, open_now: bool = True) -> None:
        store = running.app.caches.shared  # type: ignore[union-attr]
        eventually(lambda: (store._breaker.retry_at_s is not None) is open_now)

    def test_what_one_has_answered_the_other_gives_again(self) -> None:
        first, second = self.gateway(), self.gateway()
        self.assertEqual(self.hit(first), "miss")
        eventually(lambda: self.names() == 1)
        answer = second.post(question())
        self.assertEqual((answer.status, answer.header("x-gateway-cache")), (200, "hit"))
        self.assertEqual(answer.json()["id"], answer.request_id)
        self.assertEqual(answer.json()["usage"]["prompt_tokens"], 6)
        stream = second.post(question(stream=True))
        self.assertIn(b"data: [DONE]", stream.body)
        self.assertEqual(self.asked(), 1)

    def test_keys_do_not_see_each_others_answers_but_in_the_global_scope(self) -> None:
        for scope, expected in (("key", "miss"), ("global", "hit")):
            with self.subTest(scope):
                keys = {"API_KEYS": "a:sk-a,b:sk-b", "CACHE_SCOPE": scope}
                first, second = self.gateway(**keys), self.gateway(**keys)
                text = f"What is {scope}?"
                self.assertEqual(self.hit(first, ("X-API-Key", "sk-a"), text=text), "miss")
                eventually(lambda: self.names() >= 1)
                before = self.names()
                self.assertEqual(self.hit(second, ("X-API-Key", "sk-b"), text=text), expected)
                self.assertEqual(self.hit(second, ("X-API-Key", "sk-a"), text=text), "hit")
                self.assertGreaterEqual(self.names(), before)

    def test_near_duplicates_are_shared_too(self) -> None:
        first, second = self.gateway(CACHE_NEAR="on"), self.gateway(CACHE_NEAR="on")
        self.assertEqual(self.hit(first), "miss")
        eventually(lambda: self.names() == 1)
        self.assertEqual(self.hit(second, text="what's the capital of France"), "near")
        self.assertEqual(self.hit(second, text="What is the capital of Spain?"), "miss")

    def test_a_slow_redis_costs_one_wait_and_is_left_alone(self) -> None:
        running = self.gateway(REDIS_TIMEOUT_MS=SHORT_MS)
        self.assertEqual(self.hit(running), "miss")
        eventually(lambda: self.names() == 1)
        self.server.signal(signal.SIGSTOP)
        self.addCleanup(self.server.signal, signal.SIGCONT)
        self.assertEqual(self.hit(running, text="one"), "miss")
        self.wait_open(running)
        skipped = running.app.caches.shared.skipped  # type: ignore[union-attr]
        for number in range(5):
            self.assertEqual(running.post(question(f"number {number}")).status, 200)
        self.assertGreater(running.app.caches.shared.skipped, skipped)  # type: ignore[union-attr]
        self.assertEqual(self.hit(running), "hit")  # from memory
        self.server.signal(signal.SIGCONT)
        self.wait_open(running, False)
        running.app.caches.store.clear(Chosen(time.time()))  # type: ignore[union-attr]
        self.assertEqual(self.hit(running), "hit")  # from Redis

    def test_killed_and_started_again_it_is_used_again(self) -> None:
        running = self.gateway(REDIS_TIMEOUT_MS=SHORT_MS)
        self.assertEqual(self.hit(running, text="before"), "miss")
        eventually(lambda: self.names() == 1)
        self.server.kill()
        answers = [running.post(question(f"meanwhile {number}")) for number in range(5)]
        self.assertEqual([answer.status for answer in answers], [200] * 5)
        self.wait_open(running)
        self.server.start()
        self.wait_open(running, False)
        self.assertEqual(self.hit(running, text="after"), "miss")
        eventually(lambda: self.names() == 1)
        other = self.gateway()
        self.assertEqual(self.hit(other, text="after"), "hit")

    def test_a_gateway_starts_without_it(self) -> None:
        self.server.kill()
        running = self.gateway(REDIS_TIMEOUT_MS=SHORT_MS)
        self.assertEqual([running.post(question()).status for _ in range(3)], [200] * 3)
        self.assertEqual(self.hit(running), "hit")
        eventually(lambda: any(line["event"] == "redis" for line in running.log_lines()))
        states = [line["state"] for line in running.log_lines() if line["event"] == "redis"]
        self.assertEqual(states, ["open"])

    def test_clearing_reaches_it(self) -> None:
        running = self.gateway(REDIS_TIMEOUT_MS=SHORT_MS)
        self.hit(running, text="one")
        self.hit(running, text="two")
        eventually(lambda: self.names() == 2)
        answer = running.ask("POST", "/api/v1/cache/clear", {"model": "m"})
        self.assertEqual((answer.status, answer.json()), (200, {"cleared": 2}))
        self.assertEqual(self.names(), 0)
        self.server.kill()
        self.hit(running, text="three")
        answer = running.ask("POST", "/api/v1/cache/clear", {"model": "m"})
        self.assertEqual((answer.status, answer.error), (500, "internal_error"))
        self.assertIn("Redis", answer.json()["message"])
        self.assertEqual(self.hit(running, text="three"), "miss")

    def test_waiting_for_it_takes_no_thread(self) -> None:
        running = self.gateway(REDIS_TIMEOUT_MS=SHORT_MS)
        self.server.signal(signal.SIGSTOP)
        self.addCleanup(self.server.signal, signal.SIGCONT)
        clients = [self.begin(running, question(f"number {number}")) for number in range(50)]
        names = [thread.name for thread in threading.enumerate()]
        self.assertLess(names.count("aside") + names.count("worker"), 10)
        self.assertEqual([client.read_response().status for client in clients], [200] * 50)

    def together(self, *runnings: RunningGateway) -> list[Any]:
        """The same question at these gateways, one after the other, while the engine says nothing; then it does."""
        self.mock.control("hang")
        answers: list[Any] = []

        def one(running: RunningGateway) -> None:
            answers.append(running.post(question()))

        threads = [threading.Thread(target=one, args=(running,)) for running in runnings]
        for thread, running in zip(threads, runnings):
            before = running.app.pipeline.in_flight
            thread.start()
            eventually(lambda running=running, before=before: running.app.pipeline.in_flight > before)
            eventually(lambda: self.asked() >= 1)
        for running in runnings[1:]:
            held = running.app.guard.shared.leases  # type: ignore[union-attr]
            eventually(lambda held=held: held.waiting)
        self.mock.control("ok")
        for thread in threads:
            thread.join(60.0)
        return answers

    def test_of_identical_requests_at_several_gateways_one_is_asked(self) -> None:
        first, second, third = self.gateway(), self.gateway(), self.gateway()
        answers = self.together(first, second, third, second)
        self.assertEqual([answer.status for answer in answers], [200] * 4)
        self.assertEqual([answer.json()["id"] == answer.request_id for answer in answers], [True] * 4)
        self.assertEqual(self.asked(), 1)

    def test_who_waits_goes_on_by_itself_when_the_first_one_is_gone(self) -> None:
        first, second = self.gateway(), self.gateway()
        held = first.app.guard.shared.leases  # type: ignore[union-attr]
        self.enter(mock.patch.object(held, "beat", list))  # dead, as far as anybody sees
        self.mock.control("hang")
        clients = [self.begin(running, question()) for running in (first, second)]
        eventually(lambda: self.asked() == 2, 60.0)
        self.mock.control("ok")
        self.assertEqual([client.read_response("POST").status for client in clients], [200, 200])

    def test_what_fails_at_one_is_asked_by_the_other_at_once(self) -> None:
        first, second = self.gateway(RETRY_ATTEMPTS=1), self.gateway()
        self.mock.control("error")
        self.assertGreaterEqual(first.post(question()).status, 500)
        self.mock.control("ok")
        began_s = time.monotonic()
        self.assertEqual(second.post(question()).status, 200)
        self.assertLess(time.monotonic() - began_s, leases.LEASE_S)


if __name__ == "__main__":
    unittest.main()
