"""Single flight over real sockets: identical requests under way share one call, streams included."""

from __future__ import annotations

import gc
import socket
import threading
import time
import unittest
from typing import Any, Optional
from unittest import mock

from gateway.server import following, sharing
from gateway.server.exchange import Exchange
from tests.parallel import alone
from tests.resilience import ResilienceTest, ask
from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked, delta
from tests.support import CHAT, RawClient, RunningGateway, content_of, eventually, request_bytes

LAST_CHUNK = b"0\r\n\r\n"
COALESCED = 'gateway_coalesced_total{model="m"}'
PRICED = {"input": 1000.0, "output": 1000.0}


def same(**options: Any) -> dict[str, Any]:
    """A deterministic request."""
    return ask(**{"temperature": 0, **options})


class CoalescingTest(ResilienceTest):
    def one(self, **variables: object) -> tuple[RunningGateway, ScriptedEngine]:
        engine = self.scripted()
        return self.serve({"m": {"engines": [{"url": engine.url}], "price": PRICED}}, **variables), engine

    def followers(self, running: RunningGateway) -> int:
        """Requests that wait for another's call, or follow its stream."""
        flights = running.app.pipeline.reuse.flights
        return sum(len(flight.followers) for flight in list(flights._by_key.values()))

    def flock(self, running: RunningGateway, count: int, body: Optional[dict[str, Any]] = None) -> list[RawClient]:
        """So many clients with the same request; all but the first follow."""
        clients = [self.begin(running, same() if body is None else body)]
        eventually(lambda: len(running.app.pipeline.reuse.flights) == 1)
        clients += [self.begin(running, same() if body is None else body) for _ in range(count - 1)]
        eventually(lambda: self.followers(running) == count - 1)
        return clients

    def answer(self, side: EngineSide, text: str = "yes") -> None:
        body = (
            b'{"id":"e-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
            b'{"role":"assistant","content":"%b"},"finish_reason":"stop"}],'
            b'"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}' % text.encode()
        )
        side.answer(body)

    def lines(self, running: RunningGateway, count: int) -> list[dict[str, Any]]:
        """The log lines of all requests, by status."""
        eventually(lambda: len(running.request_lines()) == count)
        return sorted(running.request_lines(), key=lambda line: int(line["status"]))

    def assert_idle(self, running: RunningGateway) -> None:
        """Nothing is under way any more, and nothing is held."""
        eventually(lambda: running.app.pipeline.in_flight == 0)
        self.assertEqual(len(running.app.pipeline.reuse.flights), 0)
        eventually(lambda: running.app.workers.busy == 0)
        eventually(lambda: running.app.relay.lines_bytes == 0)
        self.assertEqual(len(running.app.relay._followers), 0)
        self.assert_nothing_held(running)


class WholeAnswersTest(CoalescingTest):
    def test_identical_requests_under_way_become_one_call(self) -> None:
        running, engine = self.one()
        clients = self.flock(running, 5)
        self.answer(engine.take())
        answers = [client.read_response() for client in clients]
        for answer in answers:
            self.assertEqual(answer.status, 200)
            self.assertEqual(answer.json()["id"], answer.request_id)
            self.assertEqual(answer.json()["choices"][0]["message"]["content"], "yes")
            self.assertEqual(answer.json()["usage"]["total_tokens"], 7)
            self.assertEqual(answer.header("x-gateway-engine"), f"127.0.0.1:{engine.port}")
        self.assertEqual([a.header("x-gateway-coalesced") for a in answers], [None] + ["true"] * 4)
        self.assert_idle(running)
        lines = [running.request_line(answer.request_id) for answer in answers]
        self.assertEqual([line.get("coalesced") for line in lines], [None] + [True] * 4)
        self.assertEqual([line["prompt_tokens"] for line in lines], [5, 0, 0, 0, 0])
        self.assertEqual([line["cost_usd"] for line in lines], [0.007, 0.0, 0.0, 0.0, 0.0])
        metrics = running.metrics()
        self.assertEqual(metrics[COALESCED], 4)
        self.assertEqual(metrics['gateway_tokens_total{model="m",kind="prompt"}'], 5)
        self.assertEqual(
            metrics[f'gateway_engine_requests_total{{model="m",engine="127.0.0.1:{engine.port}",outcome="ok"}}'], 1
        )

    def test_what_differs_does_not(self) -> None:
        running, engine = self.one()
        bodies = [same(), same(max_tokens=5), same(stream=True), ask(seed=1), ask(seed=2), same(text="hi There")]
        clients = [self.begin(running, body) for body in bodies]
        sides = [engine.take() for _ in bodies]
        self.assertEqual(len(sides), len(bodies))
        self.assertEqual(self.followers(running), 0)
        for client in clients:
            client.close()

    def test_what_is_not_deterministic_does_not_nor_where_it_is_off(self) -> None:
        for variables, body, headers in (
            ({}, ask(), ()),
            ({"COALESCE": "off"}, same(), ()),
            ({}, same(), (("X-Gateway-Coalesce", "off"),)),
            ({}, ask(temperature=0.5), ()),
        ):
            with self.subTest(variables=variables, body=body, headers=headers):
                running, engine = self.one(**variables)
                clients = [self.begin(running, body, headers) for _ in range(2)]
                sides = [engine.take() for _ in clients]
                for side in sides:
                    self.answer(side)
                self.assertEqual([c.read_response().header("x-gateway-coalesced") for c in clients], [None, None])

    def test_a_request_may_ask_for_it(self) -> None:
        running, engine = self.one(COALESCE="off")
        headers = [("X-Gateway-Coalesce", "on"), ("X-Gateway-Cache", "on")]
        clients = [self.begin(running, ask(), headers) for _ in range(2)]
        eventually(lambda: self.followers(running) == 1)
        self.answer(engine.take())
        self.assertEqual([client.read_response().status for client in clients], [200, 200])

    def test_an_engines_error_reaches_each(self) -> None:
        running, engine = self.one(RETRY_ATTEMPTS=1)
        clients = self.flock(running, 4)
        engine.take().answer(b'{"error":{"message":"no such thing","type":"x"}}', status="400 Bad Request")
        for client in clients:
            answer = client.read_response()
            self.assertEqual((answer.status, answer.error), (400, "backend_rejected"))
            self.assertIn("no such thing", answer.json()["message"])
            self.assertEqual(answer.json()["request_id"], answer.request_id)
        self.assert_idle(running)

    def test_the_leader_may_leave(self) -> None:
        running, engine = self.one()
        clients = self.flock(running, 3)
        side = engine.take()
        leader = clients[0]
        leader.close()
        time.sleep(0.6)  # it is seen to have left, and is looked after again
        self.answer(side)
        for client in clients[1:]:
            self.assertEqual(client.read_response().status, 200)
        self.assert_idle(running)
        paid = [line for line in self.lines(running, 3) if not line.get("coalesced")]
        self.assertEqual([(line["prompt_tokens"], line["cost_usd"]) for line in paid], [(5, 0.007)])

    def test_when_all_have_left_the_engine_is_left(self) -> None:
        running, engine = self.one()
        clients = self.flock(running, 3)
        side = engine.take()
        for client in clients:
            client.close()
        self.assertTrue(side.wait_until_left())
        self.assert_idle(running)
        self.assertEqual([line["status"] for line in self.lines(running, 3)], [499] * 3)

    def test_a_follower_may_leave(self) -> None:
        running, engine = self.one()
        clients = self.flock(running, 3)
        side = engine.take()
        clients[1].close()
        eventually(lambda: self.followers(running) == 1)
        self.answer(side)
        self.assertEqual([client.read_response().status for client in (clients[0], clients[2])], [200, 200])
        self.assert_idle(running)

    def test_a_leader_that_gives_up_queueing_is_followed_by_another(self) -> None:
        running, engine = self.one(WORKERS=1, QUEUE_TIMEOUT=1)
        blocker = self.begin(running, ask("another"))
        blocked = engine.take()
        clients = self.flock(running, 1)
        time.sleep(0.6)  # it comes that much later
        clients.append(self.begin(running, same()))
        eventually(lambda: self.followers(running) == 1)
        first = clients[0].read_response()
        self.assertEqual(first.error, "queue_timeout")
        self.answer(blocked)
        self.assertEqual(blocker.read_response().status, 200)
        self.answer(blocked.read_request())
        self.assertEqual(clients[1].read_response().status, 200)
        self.assert_idle(running)

    def test_a_queued_leader_may_leave(self) -> None:
        running, engine = self.one(WORKERS=1)
        blocker = self.begin(running, ask("another"))
        blocked = engine.take()
        clients = self.flock(running, 2)
        clients[0].close()
        time.sleep(0.3)  # nothing else tells that it has been seen
        self.answer(blocked)
        self.assertEqual(blocker.read_response().status, 200)
        self.answer(blocked.read_request())
        self.assertEqual(clients[1].read_response().status, 200)
        self.assert_idle(running)

    def test_waiting_takes_no_thread(self) -> None:
        running, engine = self.one()
        body = same(text="x" * 100_000)
        clients = self.flock(running, 8, body)
        names = [thread.name for thread in threading.enumerate()]
        self.assertLessEqual(names.count("aside") + names.count("worker"), 5)
        side = engine.take()
        eventually(lambda: self.followers(running) == 7)
        self.answer(side)
        self.assertEqual([client.read_response().status for client in clients], [200] * 8)

    def test_each_key_has_its_own_flight_but_in_the_global_scope(self) -> None:
        for scope, calls in (("key", 2), ("global", 1)):
            with self.subTest(scope):
                running, engine = self.one(API_KEYS="a:sk-a,b:sk-b", CACHE_SCOPE=scope)
                clients = [self.begin(running, same(), [("Authorization", f"Bearer sk-{name}")]) for name in ("a", "b")]
                sides = [engine.take() for _ in range(calls)]
                if calls == 1:
                    eventually(lambda: self.followers(running) == 1)  # noqa: B023
                for side in sides:
                    self.answer(side)
                self.assertEqual([client.read_response().status for client in clients], [200, 200])

    def test_followers_wait_for_a_place_as_long_as_their_leader(self) -> None:
        running, engine = self.one(WORKERS=1, QUEUE_TIMEOUT=1)
        self.begin(running, ask("another"))
        engine.take()
        began_s = time.monotonic()
        clients = self.flock(running, 6)
        self.assertEqual([client.read_response().error for client in clients], ["queue_timeout"] * 6)
        self.assertLess(time.monotonic() - began_s, 3.0)  # not a second for each

    def test_who_comes_late_does_not_share_its_leaders_lack_of_time(self) -> None:
        running, engine = self.one(REQUEST_TIMEOUT=1, RETRY_ATTEMPTS=1)
        clients = self.flock(running, 1)
        engine.take()
        time.sleep(0.6)  # it comes that much later
        clients.append(self.begin(running, same()))
        eventually(lambda: self.followers(running) == 1)
        self.assertEqual(clients[0].read_response().error, "gateway_timeout")
        self.answer(engine.take())
        self.assertEqual(clients[1].read_response().status, 200)

    def test_who_has_been_answered_is_kept_by_nothing(self) -> None:
        running, engine = self.one()
        clients = self.flock(running, 5)
        self.answer(engine.take())
        for client in clients:
            client.read_response()
            client.close()
        self.assert_idle(running)
        eventually(lambda: running.app.server.connections == 0)

        def alive() -> int:
            gc.collect()  # of other tests
            return sum(type(one) is Exchange for one in gc.get_objects())

        eventually(lambda: alive() == 0, 2.0)  # the timers of those who waited are due in five seconds

    def test_the_end_of_the_gateway_ends_them_all(self) -> None:
        running, engine = self.one()
        clients = self.flock(running, 3)
        engine.take()
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        answers = [client.read_response() for client in clients]
        self.assertEqual([(a.status, a.error) for a in answers], [(503, "draining")] * 3)
        stopping.join()


class StreamsTest(CoalescingTest):
    def streams(self, count: int, **variables: object) -> tuple[RunningGateway, EngineSide, list[RawClient]]:
        """So many clients of one stream that has begun with `one `."""
        running, engine = self.one(**variables)
        clients = self.flock(running, count, same(stream=True))
        side = engine.take()
        side.send(STREAM_HEAD + chunked(delta("one ")))
        for client in clients:
            head = client.read_head()
            self.assertEqual(head.status, 200)
            self.assertEqual(content_of([client.read_event() or ""]), "one ")
        return running, side, clients

    def finish(self, side: EngineSide, text: str = "two") -> None:
        side.send(chunked(delta(text, "stop") + DONE) + LAST_CHUNK)

    def test_all_get_the_same_stream_as_it_comes(self) -> None:
        running, side, clients = self.streams(4)
        side.send(chunked(delta("and ")))
        for client in clients:
            self.assertEqual(content_of([client.read_event() or ""]), "and ")
        self.finish(side)
        rests = [client.read_events() for client in clients]
        self.assertEqual(len(set(map(tuple, rests))), 1)
        self.assertEqual(rests[0][-1], "data: [DONE]")
        for client in clients:  # each connection can be used again
            client.request("GET", "/healthz")
            self.assertEqual(client.read_response().status, 200)
        self.assert_idle(running)
        self.assertEqual(running.metrics()[COALESCED], 3)

    def test_who_comes_late_gets_all_of_it(self) -> None:
        running, side, clients = self.streams(1)
        side.send(chunked(delta("and ")))
        self.assertEqual(content_of([clients[0].read_event() or ""]), "and ")
        late = self.begin(running, same(stream=True))
        head = late.read_head()
        self.assertEqual(head.header("x-gateway-coalesced"), "true")
        self.assertEqual(content_of([late.read_event() or "", late.read_event() or ""]), "one and ")
        self.finish(side)
        self.assertEqual(content_of(late.read_events()), "two")
        self.assertEqual(content_of(clients[0].read_events()), "two")
        self.assert_idle(running)

    def test_no_key_follows_another_s_stream_but_in_the_global_scope(self) -> None:
        for scope, calls in (("key", 2), ("global", 1)):
            with self.subTest(scope):
                running, engine = self.one(API_KEYS="a:sk-a,b:sk-b", CACHE_SCOPE=scope)
                clients, sides = [], []
                for name in ("a", "b"):
                    client = self.begin(running, same(stream=True), [("Authorization", f"Bearer sk-{name}")])
                    if len(sides) < calls:
                        side = engine.take()
                        side.send(STREAM_HEAD + chunked(delta(f"for {name}, ")))
                        sides.append(side)
                    clients.append(client)
                    self.assertEqual(
                        client.read_head().header("x-gateway-coalesced"), "true" if calls < len(clients) else None
                    )
                for side in sides:
                    self.finish(side)
                said = [content_of(client.read_events()) for client in clients]
                self.assertEqual(said, ["for a, two", "for b, two" if calls == 2 else "for a, two"])

    def test_who_comes_after_its_end_asks_anew(self) -> None:
        running, side, clients = self.streams(1)
        self.finish(side)
        clients[0].read_events()
        self.assert_idle(running)
        self.begin(running, same(stream=True))
        side.read_request()

    def test_the_leader_may_leave_in_the_middle_and_pays_for_all(self) -> None:
        running, side, clients = self.streams(3)
        clients[0].close()
        side.send(chunked(delta("and ")))
        for client in clients[1:]:
            self.assertEqual(content_of([client.read_event() or ""]), "and ")
        usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\n'
        side.send(chunked(delta("two", "stop") + usage + DONE) + LAST_CHUNK)
        for client in clients[1:]:
            self.assertEqual(content_of(client.read_events()), "two")
        self.assert_idle(running)
        lines = self.lines(running, 3)
        self.assertEqual([(line["status"], line["prompt_tokens"]) for line in lines], [(200, 0), (200, 0), (499, 3)])

    def test_the_engine_is_left_with_the_last(self) -> None:
        running, side, clients = self.streams(3)
        for client in clients[:2]:
            client.close()
        side.send(chunked(delta("and ")))
        self.assertEqual(content_of([clients[2].read_event() or ""]), "and ")
        clients[2].close()
        self.assertTrue(side.wait_until_left())
        self.assert_idle(running)

    def test_a_stream_that_breaks_ends_for_each_with_the_error_in_its_own_form(self) -> None:
        running, side, clients = self.streams(2)
        side.close()
        for client in clients:
            events = client.read_events()
            self.assertIn("backend_error", events[-1])
            self.assertNotIn("data: [DONE]", events)
        self.assert_idle(running)

    def test_one_that_does_not_read_is_cut_off_and_holds_up_nobody(self) -> None:
        with mock.patch.object(following, "BACKLOG_MAX_BYTES", 200_000):
            running, side, clients = self.streams(3)
            piece = chunked(delta("x" * 50_000))
            slow = clients[1]
            for _ in range(200):  # beyond what the sockets' buffers take
                side.send(piece)
                for client in (clients[0], clients[2]):
                    self.assertEqual(len(content_of([client.read_event() or ""])), 50_000)
            self.finish(side)
            for client in (clients[0], clients[2]):
                self.assertEqual(client.read_events()[-1], "data: [DONE]")
            events = slow.read_events()
            self.assertIn("overloaded", events[-1])
            self.assertNotIn("data: [DONE]", events)
            self.assert_idle(running)
            errors = [line["error"] for line in self.lines(running, 3)]
            self.assertEqual(sorted(map(str, errors)), ["None", "None", "overloaded"])

    def test_when_nobody_reads_the_engine_waits(self) -> None:
        running, side, clients = self.streams(1)
        piece = chunked(delta("x" * 50_000))
        side.sock.settimeout(1.0)
        sent = 0
        with self.assertRaises(socket.timeout):
            for _ in range(2000):
                side.send(piece)
                sent += 1
        self.assertLess(sent, 1000)
        client = clients[0]
        client.read_event()
        client.close()
        self.assert_idle(running)

    def test_who_comes_while_all_others_are_behind_gets_it_in_time(self) -> None:
        with mock.patch.object(sharing, "LINES_MAX_BYTES", 1 << 26):
            running, side, clients = self.streams(1)
            piece = chunked(delta("x" * 50_000))

            def send() -> None:
                for _ in range(300):
                    side.send(piece)
                self.finish(side)

            sending = threading.Thread(target=send)
            sending.start()
            eventually(lambda: any(f.behind_bytes for f in list(running.app.relay._followers)))
            late = self.begin(running, same(stream=True))
            late.read_head()
            self.assertEqual(late.read_events()[-1], "data: [DONE]")
            sending.join()
            self.assertIn("overloaded", clients[0].read_events()[-1])
            self.assert_idle(running)

    def test_clients_that_leave_at_once_are_no_error(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [{"url": engine.url}]}})
        for number in range(150):
            with running.connect() as client:
                client.request("POST", CHAT, same(text=f"number {number}", stream=True))
        self.assert_idle(running)
        self.assertEqual([line for line in running.log_lines() if line["event"] != "request"][1:], [])

    def test_one_slow_client_alone_gets_all_of_it(self) -> None:
        with mock.patch.object(following, "BACKLOG_MAX_BYTES", 100_000):
            running, side, clients = self.streams(1)
            piece = chunked(delta("x" * 50_000))

            def send() -> None:
                for _ in range(100):
                    side.send(piece)
                self.finish(side)

            sending = threading.Thread(target=send)
            sending.start()
            eventually(lambda: any(f.behind_bytes for f in list(running.app.relay._followers)))
            self.assertEqual(len(content_of(clients[0].read_events())), 5_000_003)
            sending.join()
            self.assert_idle(running)

    def test_a_stream_too_long_to_keep_is_not_joined(self) -> None:
        with mock.patch.object(sharing, "LINES_MAX_BYTES", 100_000):
            running, side, clients = self.streams(2)
            for _ in range(3):
                side.send(chunked(delta("x" * 50_000)))
            for client in clients:
                self.assertEqual(len(content_of([client.read_event() or "" for _ in range(3)])), 150_000)
            eventually(lambda: len(running.app.pipeline.reuse.flights) == 0)
            self.assertEqual(running.app.relay.lines_bytes, 0)
            self.finish(side)
            for client in clients:
                self.assertEqual(content_of(client.read_events()), "two")
            self.assert_idle(running)

    def test_old_clients_get_bare_lines(self) -> None:
        running, side, clients = self.streams(1)
        old = self.enter(running.connect())
        old.send(request_bytes("POST", CHAT, same(stream=True), version="HTTP/1.0"))
        self.assertIsNone(old.read_head().header("transfer-encoding"))
        self.assertEqual(content_of([old.read_event() or ""]), "one ")
        self.finish(side)
        self.assertEqual(content_of(old.read_events()), "two")
        self.assertEqual(content_of(clients[0].read_events()), "two")

    def test_the_end_of_the_gateway_tells_each(self) -> None:
        running, _, clients = self.streams(3)
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        for client in clients:
            self.assertIn("draining", client.read_events()[-1])
        stopping.join()

    @alone
    def test_a_hundred_streams_are_one_call(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [{"url": engine.url}]}})
        for calls, leaves in ((1, False), (2, True)):
            with engine.hold_after(1) as gate:
                clients = [self.begin(running, same(stream=True)) for _ in range(100)]
                for client in clients:
                    client.read_head()
                    client.read_event()
                self.assertTrue(gate.wait_for_held(1, 10))
                if leaves:
                    clients[0].close()
            rests = [tuple(client.read_events()) for client in clients[int(leaves) :]]
            self.assertEqual((len(rests), len(set(rests))), (99 if leaves else 100, 1))
            self.assertEqual(rests[0][-1], "data: [DONE]")
            self.assertEqual(engine.stats()["requests"], calls)
            self.assert_idle(running)


if __name__ == "__main__":
    unittest.main()
