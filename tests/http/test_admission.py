"""Who gets a place, over real sockets: engines' `max_concurrency`, the line for a place, priorities, load shedding."""

from __future__ import annotations

import json
import threading
import time
import unittest
from typing import Any
from unittest import mock

from gateway.mock.server import MockEngine
from tests.parallel import alone
from tests.resilience import ResilienceTest, ask
from tests.scripted import EngineSide, ScriptedEngine
from tests.support import CHAT, RawClient, RunningGateway, eventually

ANSWER = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "well"}}]}).encode()
WAITING = 'gateway_engine_queue_depth{model="m"}'


def peak_of(engine: MockEngine) -> list[int]:
    """A list that gets the requests in flight at the engine with each that arrives."""
    seen: list[int] = []
    arrived = engine.arrived

    def note(*args: Any) -> int:
        number = arrived(*args)
        seen.append(engine.stats()["in_flight"])
        return number

    engine.arrived = note  # type: ignore[method-assign]
    return seen


class OneByOneTest(ResilienceTest):
    """A gateway whose only place is taken: requests come to the engine one after the other, the test answers each."""

    def occupy(self, running: RunningGateway, engine: ScriptedEngine) -> tuple[RawClient, EngineSide]:
        """The request that holds the place."""
        client = self.begin(running, ask("first"))
        return client, engine.take()

    def order_of(self, side: EngineSide, count: int) -> list[str]:
        """Answer what holds the place, then `count` more; the texts of those in the order in which they came."""
        texts = []
        for _ in range(count):
            side.answer(ANSWER)
            texts.append(side.read_request().json["messages"][0]["content"])
        side.answer(ANSWER)
        return texts


class MaxConcurrencyTest(OneByOneTest):
    def one_place(self, engine: Any, **variables: object) -> RunningGateway:
        """A gateway whose engine has one place."""
        return self.serve({"m": {"engines": [{"url": engine.url, "max_concurrency": 1}]}}, **variables)

    def test_an_engine_never_has_more_than_its_number(self) -> None:
        small, large = self.engine("slow", delay=0.01), self.engine("slow", delay=0.01)
        peaks = peak_of(small), peak_of(large)
        specs = [{"url": small.url, "max_concurrency": 2}, {"url": large.url, "max_concurrency": 3}]
        for strategy in ("round_robin", "least_connections", "prefix_affinity"):
            with self.subTest(strategy=strategy):
                running = self.serve({"m": {"engines": specs, "strategy": strategy}})
                statuses: list[int] = []

                def ask_some(gateway: RunningGateway = running, seen: list[int] = statuses) -> None:
                    with gateway.connect() as client:
                        for number in range(6):
                            answer = client.post(ask(stream=number % 2 == 0))
                            seen.append(answer.status)

                threads = [threading.Thread(target=ask_some, name=f"asker-{n}") for n in range(12)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(20)
                self.assertEqual(statuses, [200] * 72)
                self.assert_nothing_held(running)
        self.assertEqual((max(peaks[0]), max(peaks[1])), (2, 3))

    def test_the_others_wait_and_are_served_in_their_order(self) -> None:
        engine = self.scripted()
        running = self.one_place(engine)
        client, side = self.occupy(running, engine)
        waiting = []
        for number in range(1, 6):
            waiting.append(self.begin(running, ask(f"number {number}")))
            self.wait_for_waiting(running, number)
        self.assertEqual(running.metrics()[WAITING], 5)
        self.assertEqual(self.pool(running).snapshot()[0].in_flight, 1)
        self.assertEqual(self.order_of(side, 5), [f"number {n}" for n in range(1, 6)])
        for one in (client, *waiting):
            self.assertEqual(one.read_response().status, 200)
        self.assertTrue(engine.nobody_waits())
        self.assertEqual(running.metrics()[WAITING], 0)
        self.assert_nothing_held(running)

    def test_the_wait_is_told_as_time_in_a_queue(self) -> None:
        engine = self.scripted()
        running = self.one_place(engine)
        _, side = self.occupy(running, engine)
        pool = self.pool(running)
        self.enter(mock.patch("gateway.waiting.LINE_LOOK_S", 0.01))
        looked = self.enter(mock.patch.object(pool, "serve_line", wraps=pool.serve_line))
        client = self.begin(running, headers=[("X-Request-ID", "waited")])
        eventually(lambda: looked.called)  # who looks has begun to wait, and its clock runs
        since = time.monotonic()
        eventually(lambda: time.monotonic() >= since + 0.1)
        self.order_of(side, 1)
        answer = client.read_response()
        self.assertRegex(answer.header("server-timing") or "", r"\Aqueue;dur=[1-9][0-9][0-9]")
        self.assertGreaterEqual(running.request_line("waited")["queue_ms"], 100)

    def test_a_stream_holds_its_place_until_its_end(self) -> None:
        engine = self.engine()
        running = self.one_place(engine)
        with engine.hold_after(1) as gate:
            stream = self.begin(running, ask(stream=True))
            stream.read_head()
            self.assertTrue(gate.wait_for_held(1, 5))
            second = self.begin(running)
            self.wait_for_waiting(running, 1)
            self.assertEqual(engine.stats()["requests"], 1)
        self.assertEqual(stream.read_events()[-1], "data: [DONE]")
        self.assertEqual(second.read_response().status, 200)

    def test_another_engine_with_a_free_place_is_used_at_once(self) -> None:
        full, free = self.engine("hang"), self.engine()
        specs = [{"url": full.url, "max_concurrency": 1, "weight": 100}, free.url]
        running = self.serve({"m": {"engines": specs}})
        self.begin(running)
        self.assertTrue(full.wait_for_requests(1, 5))
        for _ in range(5):
            self.assert_answered_by(running.post(ask()), free.port, attempts=1)

    def test_a_client_that_leaves_the_line_frees_its_place_in_it(self) -> None:
        engine = self.scripted()
        running = self.one_place(engine)
        client, side = self.occupy(running, engine)
        leaving = self.begin(running, ask("leaves"), [("X-Request-ID", "left")])
        self.wait_for_waiting(running, 1)
        staying = self.begin(running, ask("stays"))
        self.wait_for_waiting(running, 2)
        leaving.close()
        self.wait_for_waiting(running, 1)
        line = running.request_line("left")
        self.assertEqual((line["status"], line["attempts"]), (499, 0))
        self.assertEqual(self.order_of(side, 1), ["stays"])
        self.assertEqual([client.read_response().status, staying.read_response().status], [200, 200])
        self.assert_nothing_held(running)

    @alone
    def test_a_client_that_leaves_its_place_gives_it_to_the_next(self) -> None:
        engine = self.engine("hang")
        running = self.one_place(engine)
        first = self.begin(running)
        self.assertTrue(engine.wait_for_requests(1, 5))
        second = self.begin(running)
        self.wait_for_waiting(running, 1)
        first.close()
        self.assertTrue(engine.wait_for_cancelled(1, 1.0))
        self.assertTrue(engine.wait_for_requests(2, 5))
        engine.control("ok")
        self.assertEqual(second.read_response().status, 200)

    def test_an_engine_that_has_rested_serves_those_who_wait_for_another(self) -> None:
        full, resting = self.engine("hang"), self.engine("rate_limit", retry_after=0.1)
        specs = [{"url": full.url, "max_concurrency": 1}, resting.url]
        running = self.serve({"m": {"engines": specs}})
        self.begin(running)
        self.assertTrue(full.wait_for_requests(1, 5))
        client = self.begin(running)
        self.wait_for_waiting(running, 1)
        resting.control("ok")
        self.assert_answered_by(client.read_response(), resting.port, attempts=2)

    def test_waiting_has_an_end(self) -> None:
        engine = self.engine("hang")
        running = self.one_place(engine, QUEUE_TIMEOUT=0.15)
        self.begin(running)
        self.assertTrue(engine.wait_for_requests(1, 5))
        answer = running.post(ask())
        self.assert_error(answer, 503, "queue_timeout")
        self.assertEqual(answer.header("retry-after"), "1")
        self.assertEqual(engine.stats()["requests"], 1)
        self.assertEqual(self.pool(running).waiting, 0)

    def test_a_failed_engine_s_requests_do_not_overtake_those_who_wait(self) -> None:
        engine = self.scripted()
        running = self.one_place(engine)
        client, side = self.occupy(running, engine)
        waiting = self.begin(running, ask("waits"))
        self.wait_for_waiting(running, 1)
        side.answer(b"{}", status="500 Oops")
        self.assertEqual(side.read_request().json["messages"][0]["content"], "waits")
        self.assertEqual(self.order_of(side, 1), ["first"])
        self.assertEqual([client.read_response().status, waiting.read_response().status], [200, 200])


class SheddingTest(OneByOneTest):
    def known(self, engine: ScriptedEngine, held_s: float, **variables: object) -> tuple[RunningGateway, EngineSide]:
        """A gateway that knows how long a request holds a place, with its only place taken."""
        running = self.serve({"m": {"engines": [{"url": engine.url, "max_concurrency": 1}]}}, **variables)
        client, side = self.occupy(running, engine)
        since = time.monotonic()
        eventually(lambda: time.monotonic() >= since + held_s)
        side.answer(ANSWER)
        self.assertEqual(client.read_response().status, 200)
        self.begin(running, ask("holds the place"))
        return running, side.read_request()

    @alone
    def test_what_cannot_start_in_time_is_refused_at_once(self) -> None:
        engine = self.scripted()
        running, _ = self.known(engine, 0.2, QUEUE_TIMEOUT=0.1)
        answer = running.post(ask())  # had it waited, it would be a queue_timeout
        self.assert_error(answer, 503, "overloaded")
        self.assertEqual(answer.header("retry-after"), "1")
        self.assertLess(running.request_line(answer.request_id)["queue_ms"], 90)
        self.assertEqual(self.pool(running).waiting, 0)

    def test_the_first_in_the_line_waits_for_one_turn_only(self) -> None:
        engine = self.scripted()
        running, side = self.known(engine, 0.01, QUEUE_TIMEOUT=35)
        self.pool(running)._chooser._service_s = 20.0
        waiting = self.begin(running, ask("first in line"))
        self.wait_for_waiting(running, 1)
        self.assert_error(running.post(ask("second in line")), 503, "overloaded")
        self.assertEqual(self.order_of(side, 1), ["first in line"])
        self.assertEqual(waiting.read_response().status, 200)

    def test_a_high_priority_is_not_refused_for_those_behind_it(self) -> None:
        engine = self.scripted()
        running, side = self.known(engine, 0.01, QUEUE_TIMEOUT=35, AUTH="off")
        self.pool(running)._chooser._service_s = 20.0
        low = self.begin(running, ask("low"), [("X-Gateway-Priority", "low")])
        self.wait_for_waiting(running, 1)
        high = self.begin(running, ask("high"), [("X-Gateway-Priority", "high")])
        self.wait_for_waiting(running, 2)
        self.assertEqual(self.order_of(side, 2), ["high", "low"])
        self.assertEqual([high.read_response().status, low.read_response().status], [200, 200])

    def test_what_no_worker_can_begin_in_time_is_refused_at_once(self) -> None:
        engine = self.engine("slow", delay=0.5)
        running = self.serve({"m": {"engines": [engine.url]}}, WORKERS=1, QUEUE_TIMEOUT=2)
        self.assertEqual(running.post(ask()).status, 200)
        eventually(lambda: running.app.workers._held_s)  # the place is given back behind the answer
        engine.control("hang")
        clients = [self.begin(running, ask(), [("X-Request-ID", str(number))]) for number in range(8)]
        refused = eventually(
            lambda: (
                len(lines := [x for x in running.request_lines() if x["error"] == "overloaded"])
                + running.app.workers.depth
                == 7
                and lines
            )
        )
        self.assertGreaterEqual(len(refused), 4)
        for line in refused:
            self.assertLess(line["latency_ms"], 1000)
            answer = clients[int(line["request_id"])].read_response()
            self.assert_error(answer, 503, "overloaded")
            self.assertGreaterEqual(int(answer.header("retry-after") or 0), 2)
        engine.control("ok")
        refused_ids = {line["request_id"] for line in refused}
        for number, client in enumerate(clients):
            if str(number) not in refused_ids:
                self.assertEqual(client.read_response().status, 200)

    def test_a_deadline_before_the_queue_s_counts(self) -> None:
        engine = self.scripted()
        running, _ = self.known(engine, 0.01, REQUEST_TIMEOUT=0.4, QUEUE_TIMEOUT=30)
        self.pool(running)._chooser._service_s = 2.0
        self.assert_error(running.post(ask()), 503, "overloaded")


class PriorityTest(OneByOneTest):
    def in_line(self, running: RunningGateway, asked: list[tuple[str, str]], key: str = "") -> list[RawClient]:
        """Requests with (text, priority) in this order, each waiting before the next is sent."""
        clients = []
        for number, (text, priority) in enumerate(asked, 1):
            headers = [("X-Gateway-Priority", priority)] if priority else []
            headers += [("Authorization", f"Bearer {key}")] if key else []
            clients.append(self.begin(running, ask(text), headers))
            eventually(lambda n=number: self.pool(running).waiting + running.app.workers.depth == n)
        return clients

    def check(self, engine: ScriptedEngine, running: RunningGateway, expected: list[str], key: str = "") -> None:
        """low, normal, high and an unknown one are asked in this order; they reach the engine as expected."""
        first = self.begin(running, ask("first"), [("Authorization", f"Bearer {key}")] if key else [])
        side = engine.take()
        asked = [("low", "low"), ("normal", ""), ("high", "High"), ("unknown", "urgent")]
        clients = self.in_line(running, asked, key)
        self.assertEqual(self.order_of(side, 4), expected)
        for client in (first, *clients):
            self.assertEqual(client.read_response().status, 200)

    def both(self, engine: ScriptedEngine, **variables: object) -> list[RunningGateway]:
        """Two gateways: in one the line for the engine is the bottleneck, in the other the queue for a worker."""
        by_engine = self.serve({"m": {"engines": [{"url": engine.url, "max_concurrency": 1}]}}, **variables)
        return [by_engine, self.serve({"m": {"engines": [engine.url]}}, WORKERS=1, **variables)]

    def test_without_keys_everybody_may_say_it(self) -> None:
        engine = self.scripted()
        for running in self.both(engine, AUTH="off"):
            with self.subTest(workers=running.app.settings.workers):
                self.check(engine, running, ["high", "normal", "unknown", "low"])

    def test_an_admin_may(self) -> None:
        engine = self.scripted()
        for running in self.both(engine, ADMIN_KEYS="root:sk-admin-1", API_KEYS="u:sk-user-1"):
            with self.subTest(workers=running.app.settings.workers):
                self.check(engine, running, ["high", "normal", "unknown", "low"], "sk-admin-1")

    def test_a_user_s_wish_is_ignored(self) -> None:
        engine = self.scripted()
        for running in self.both(engine, ADMIN_KEYS="root:sk-admin-1", API_KEYS="u:sk-user-1"):
            with self.subTest(workers=running.app.settings.workers):
                self.check(engine, running, ["low", "normal", "high", "unknown"], "sk-user-1")

    def test_who_has_waited_long_enough_is_not_overtaken_any_more(self) -> None:
        engine = self.scripted()
        with mock.patch("gateway.routing.line.AGEING_S", 0.02), mock.patch("gateway.workers.AGEING_S", 0.02):
            for running in self.both(engine, AUTH="off"):
                with self.subTest(workers=running.app.settings.workers):
                    first = self.begin(running, ask("first"))
                    side = engine.take()
                    (low,) = self.in_line(running, [("low", "low")])
                    since = time.monotonic()
                    eventually(lambda since=since: time.monotonic() > since + 0.05)
                    high = self.begin(running, ask("high"), [("X-Gateway-Priority", "high")])
                    eventually(lambda r=running: self.pool(r).waiting + r.app.workers.depth == 2)
                    self.assertEqual(self.order_of(side, 2), ["low", "high"])
                    for client in (first, low, high):
                        self.assertEqual(client.read_response().status, 200)

    def test_it_is_never_sent_to_an_engine(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [engine.url]}}, AUTH="off")
        self.assertEqual(running.ask("POST", CHAT, ask(), [("X-Gateway-Priority", "high")]).status, 200)
        self.assertNotIn("x-gateway-priority", engine.requests[0]["headers"])


if __name__ == "__main__":
    unittest.main()
