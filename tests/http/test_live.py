"""The console's feed over sockets: who gets it, what it says, how it ends, and that nobody is kept waiting by it.

The thread that ends its seconds does not run here: the test ends them.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional
from unittest import mock

from gateway.errors import RequestRefused
from gateway.routing.standing import StateChange
from gateway.server import livefeed
from gateway.server.livefeed import CHECK_TICKS, LiveFeed
from gateway.telemetry.liveticker import LiveTicker
from tests.access import ADMIN_KEYS, AS_ROOT, AccessTest
from tests.fitting import compiled
from tests.http.test_without_epoll import WithoutEpoll
from tests.support import Header, RawClient, Response, RunningGateway, eventually, request_bytes, thread_names

LIVE = "/api/v1/live"
BIG = b"event: tick\ndata: " + b"x" * 2_000_000 + b"\n\n"


class Watcher:
    """A console: a connection on which the feed has begun."""

    def __init__(self, client: RawClient) -> None:
        self.client = client

    def event(self) -> tuple[str, Any]:
        """The next event: its name and what it says; ("", None): the feed has ended well."""
        text = self.client.read_event()
        if text is None:
            return "", None
        name, data = text.split("\n")
        return name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def stand_still(ticker: LiveTicker) -> None:
    """In the place of its thread: each second is over when the test says so, however long that takes."""
    ticker._clock = lambda: ticker._next_s


class LiveTest(AccessTest):
    def setUp(self) -> None:
        super().setUp()
        self.enter(mock.patch.object(LiveTicker, "start", stand_still))

    def ticker(self, running: RunningGateway) -> LiveTicker:
        ticker = running.app.live
        assert ticker is not None
        return ticker

    def feed(self, running: RunningGateway) -> LiveFeed:
        feed = running.app.feed
        assert feed is not None
        return feed

    def settle(self, running: RunningGateway) -> None:
        """The relay has done what it was asked to until now."""
        done = threading.Event()
        running.app.relay.call_soon(done.set)
        self.assertTrue(done.wait(10))

    def tick(self, running: RunningGateway, times: int = 1) -> None:
        """A second is over, and what has finished is counted in it."""
        for _ in range(times):
            running.app.telemetry.flush(5.0)
            self.ticker(running).tick()
            self.settle(running)

    def ended(self, running: RunningGateway, answer: Response) -> str:
        """A request has been reported, and not only answered; returns its id."""
        running.request_line(answer.request_id)
        return answer.request_id

    def ask_for(self, running: RunningGateway, *headers: Header, version: str = "HTTP/1.1") -> RawClient:
        client = self.enter(running.connect())
        client.send(request_bytes("GET", LIVE, None, headers, version=version))
        return client

    def watch(self, running: RunningGateway, *headers: Header, version: str = "HTTP/1.1") -> Watcher:
        """One more console, which has its history."""
        client = self.ask_for(running, *headers, version=version)
        head = client.read_head()
        self.assertEqual((head.status, head.header("content-type")), (200, "text/event-stream"))
        watcher = Watcher(client)
        eventually(lambda: self.feed(running)._wished)
        self.ticker(running).serve()
        name, _ = watcher.event()
        self.assertEqual(name, "history")
        return watcher

    def watching(self, running: RunningGateway) -> int:
        return len(self.feed(running)._watchers)

    def finished(self, running: RunningGateway) -> dict[str, Any]:
        """The log line of the one feed that has ended."""

        def lines() -> list[dict[str, Any]]:
            return [line for line in running.request_lines() if line["path"] == LIVE]

        (line,) = eventually(lines)
        return line


class FeedTest(LiveTest):
    def test_first_comes_all_there_is_then_each_second_what_is_new(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [{"url": engine.url, "id": "a"}]}})
        self.ended(running, running.post())
        self.tick(running)
        client = self.ask_for(running)
        head = client.read_head()
        for name, value in (
            ("content-type", "text/event-stream"),
            ("cache-control", "no-store"),
            ("x-accel-buffering", "no"),
            ("transfer-encoding", "chunked"),
        ):
            self.assertEqual(head.header(name), value)
        self.assertIsNotNone(head.header("x-request-id"))
        eventually(lambda: self.feed(running)._wished)
        self.ticker(running).serve()
        watcher = Watcher(client)
        name, history = watcher.event()
        self.assertEqual((name, len(history["points"]), len(history["requests"])), ("history", 1, 1))
        self.assertEqual([(one["model"], one["engine"]) for one in history["engines"]], [("m", "a")])
        (attempt,) = history["requests"][0]["attempts"]
        self.assertEqual((attempt["engine"], attempt["outcome"]), ("a", "ok"))
        self.assertLess(0, attempt["start_ms"])
        self.assertEqual(history["slo"], {"availability": None, "latency_ms": None})
        answered = self.ended(running, running.post())
        self.tick(running)
        name, tick = watcher.event()
        self.assertEqual((name, [one["id"] for one in tick["requests"]]), ("tick", [answered]))
        self.assertEqual((tick["point"][1], list(tick["sparks"])), (1, ["m a"]))

    def test_its_events_are_as_the_document_says(self) -> None:
        engine, gone = self.engine(), self.engine()
        models = {
            "m": {"engines": [{"url": gone.url, "id": "a", "max_concurrency": 3}, {"url": engine.url, "id": "b"}]}
        }
        running = self.serve(models, SLO_AVAILABILITY="0.999", SLO_LATENCY_MS=2000, CACHE="on")
        gone.close()
        document = running.get("/openapi.json").json()
        content = document["paths"][LIVE]["get"]["responses"]["200"]["content"]["text/event-stream"]
        schemas = {
            name: compiled(schema, document["components"]["schemas"])
            for name, schema in content["schema"]["x-events"].items()
        }
        events: list[tuple[str, Any]] = []
        for stream in (False, True):
            answer = running.post({"messages": [{"role": "user", "content": f"{stream}"}], "stream": stream})
            self.ended(running, answer)
            self.tick(running)
            if not events:
                client = self.ask_for(running)
                client.read_head()
                eventually(lambda: self.feed(running)._wished)
                self.ticker(running).serve()
                watcher = Watcher(client)
            events.append(watcher.event())
        self.ended(running, running.get("/nothing"))
        self.tick(running)
        running.stop()
        events += [watcher.event(), watcher.event()]
        self.assertEqual([name for name, _ in events], ["history", "tick", "tick", "end"])
        for name, said in events:
            self.assertEqual(schemas[name].check(said), [], name)
        (request,) = events[0][1]["requests"]
        self.assertEqual([one["outcome"] == "ok" for one in request["attempts"]], [False, True])
        self.assertEqual(events[0][1]["slo"], {"availability": 0.999, "latency_ms": 2000})
        self.assertIsNotNone(next(one for one in events[0][1]["engines"] if one["engine"] == "a")["last_error_at"])

    def test_what_the_console_and_probes_ask_for_is_not_shown(self) -> None:
        running = self.serve()
        for path in ("/healthz", "/readyz", "/metrics", "/", "/v1/models", "/health", "/console/index.html"):
            running.get(path)
        self.watch(running).client.close()
        eventually(lambda: not self.watching(running))
        self.finished(running)
        watcher = self.watch(running)
        self.ended(running, running.get("/nothing/here"))
        self.tick(running)
        _, tick = watcher.event()
        self.assertEqual([one["path"] for one in tick["requests"]], ["/nothing/here"])

    def test_it_tells_nothing_of_who_asks_and_what(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS, LOG_BODIES="on")
        headers = self.make(running, "alice-the-first")
        body = {"messages": [{"role": "user", "content": "the secret prompt"}]}
        answer = running.post(body, headers=headers)
        self.assertIn(b"the secret prompt", answer.body)  # echo
        self.ended(running, answer)
        self.tick(running)
        client = self.ask_for(running, AS_ROOT)
        client.read_head()
        eventually(lambda: self.feed(running)._wished)
        self.ticker(running).serve()
        text = client.read_event() or ""
        self.assertIn(answer.request_id, text)
        for secret in ("secret prompt", "alice", headers[0][1], "root", "127.0.0.1"):
            self.assertNotIn(secret, text)

    def test_after_missed_seconds_all_get_a_history(self) -> None:
        running = self.serve()
        watchers = [self.watch(running), self.watch(running)]
        ticker = self.ticker(running)
        with mock.patch.object(ticker, "_clock", lambda: ticker._next_s + 5):
            self.tick(running)
        for watcher in watchers:
            name, history = watcher.event()
            self.assertEqual((name, len(history["points"])), ("history", 6))

    def test_when_an_engine_has_gone_out_is_known_also_if_nobody_watched(self) -> None:
        engine = self.engine()
        running = self.serve({"m": {"engines": [{"url": engine.url, "id": "a"}]}})
        running.app._engine_changed(StateChange("m", "a", "down", "up", "it answers"))
        self.assertIsNone(self.ticker(running).series.failed_at(("m", "a")))
        running.app._engine_changed(StateChange("m", "a", "up", "down", "no answer"))
        self.assertIsNotNone(self.ticker(running).series.failed_at(("m", "a")))

    def test_who_may_see_metrics_may_watch(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS)
        self.assert_refused(running, 401, "unauthorized")
        self.assert_refused(running, 403, "forbidden", *self.make(running, "user", role="user"))
        self.watch(running, *self.make(running, "viewer", role="viewer"))
        self.watch(running, AS_ROOT)

    def assert_refused(self, running: RunningGateway, status: int, code: str, *headers: Header) -> None:
        answer = running.get(LIVE, headers)
        self.assertEqual((answer.status, answer.error), (status, code))

    def test_a_gateway_without_keys_lets_everybody_watch_until_there_is_one(self) -> None:
        running = self.serve()
        watcher = self.watch(running)
        self.tick(running, CHECK_TICKS)
        self.assertEqual([watcher.event()[0] for _ in range(CHECK_TICKS)], ["tick"] * CHECK_TICKS)
        self.make(running, "first")
        self.assert_ended(running, watcher, "unauthorized")

    def assert_ended(self, running: RunningGateway, watcher: Watcher, code: str) -> None:
        """The feed ends in good order, within as many seconds as a look takes."""
        self.tick(running, CHECK_TICKS)
        names = []
        while True:
            name, said = watcher.event()
            names.append(name)
            if name != "tick":
                break
        self.assertEqual((name, said["code"]), ("end", code))
        self.assertLessEqual(len(names), CHECK_TICKS + 1)
        self.assertEqual(watcher.event(), ("", None))
        eventually(lambda: not self.watching(running))

    def test_a_key_that_is_revoked_ends_its_feed_and_no_other(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS)
        viewer = self.watch(running, *self.make(running, "viewer", role="viewer"))
        root = self.watch(running, AS_ROOT)
        running.app.guard.store.revoke("viewer")
        self.assert_ended_alone(running, viewer, root)
        self.assertEqual(viewer.client.ask("GET", "/healthz").status, 200)  # the connection goes on

    def assert_ended_alone(self, running: RunningGateway, viewer: Watcher, root: Watcher) -> None:
        self.tick(running, CHECK_TICKS)
        names = [viewer.event()[0]]
        while names[-1] == "tick":
            names.append(viewer.event()[0])
        self.assertEqual((names[-1], viewer.event()), ("end", ("", None)))
        self.assertEqual([root.event()[0] for _ in range(CHECK_TICKS)], ["tick"] * CHECK_TICKS)
        self.assertEqual(self.watching(running), 1)

    def test_a_key_that_expires_ends_its_feed(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS)
        watcher = self.watch(running, *self.make(running, "viewer", role="viewer", expires_s=3600))
        now_s = time.time()
        with mock.patch("gateway.clock._read", lambda: now_s + 3601):
            self.tick(running, CHECK_TICKS)
        names = [watcher.event()[0]]
        while names[-1] in ("tick", "history"):  # the clock has jumped
            names.append(watcher.event()[0])
        self.assertEqual(names[-1], "end")

    def test_where_an_identity_providers_keys_do_not_come_nobody_watches_on_for_ever(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS)
        watcher = self.watch(running, AS_ROOT)
        unauthorized = RequestRefused("unauthorized", "not known")
        with mock.patch.object(running.app.guard, "may_wait", lambda headers: True):
            with mock.patch.object(running.app.pipeline, "known", mock.Mock(side_effect=unauthorized)):
                with mock.patch.object(livefeed, "UNSURE_CHECKS", 2):
                    self.tick(running, 2 * CHECK_TICKS)
                    self.assertEqual(self.watching(running), 1)
                    self.tick(running, CHECK_TICKS)
        self.assertEqual(self.watching(running), 0)
        names = [watcher.event()[0] for _ in range(3 * CHECK_TICKS + 1)]
        self.assertEqual(names[-1], "end")

    def test_who_leaves_is_forgotten_and_told_of_with_how_long_it_was_there(self) -> None:
        running = self.serve()
        watcher = self.watch(running)
        self.tick(running, 3)
        watcher.client.close()
        eventually(lambda: not self.watching(running))
        line = self.finished(running)
        self.assertEqual((line["status"], line["error"], line["method"]), (200, None, "GET"))
        self.assertGreater(line["open_s"], 0)
        self.assertLess(line["latency_ms"], 5000)
        self.assertEqual(running.app.pipeline.in_flight, 0)
        self.assertEqual(self.feed(running)._places, 0)

    def test_its_latency_is_that_of_its_beginning(self) -> None:
        running = self.serve()
        watcher = self.watch(running)
        (one,) = self.feed(running)._watchers
        one._exchange.accepted_s -= 7200
        one._exchange.feed_began_s -= 7199.5
        watcher.client.close()
        line = self.finished(running)
        self.assertAlmostEqual(line["open_s"], 7199.5, delta=5)
        self.assertAlmostEqual(line["latency_ms"], 500, delta=200)

    def test_a_client_of_http_1_0_reads_until_the_connection_ends(self) -> None:
        running = self.serve()
        watcher = self.watch(running, version="HTTP/1.0")
        self.tick(running)
        self.assertEqual(watcher.event()[0], "tick")
        running.stop()
        self.assertEqual(watcher.event()[0], "end")
        self.assertEqual(watcher.event(), ("", None))

    def test_head_has_the_head_alone(self) -> None:
        running = self.serve()
        with running.connect() as client:
            answer = client.ask("HEAD", LIVE)
            self.assertEqual((answer.status, answer.header("content-type")), (200, "text/event-stream"))
            self.assertIsNone(answer.header("content-length"))
            self.assertEqual(client.ask("GET", "/healthz").status, 200)
        self.assertEqual(self.feed(running)._places, 0)

    def test_what_is_sent_behind_its_request_waits_for_the_end(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS)
        watcher = self.watch(running, *self.make(running, "viewer", role="viewer"))
        watcher.client.request("GET", "/healthz")
        running.app.guard.store.revoke("viewer")
        self.tick(running, CHECK_TICKS)
        while watcher.event()[0]:
            pass
        self.assertEqual(watcher.client.read_response().json(), {"status": "ok"})


class BoundsTest(LiveTest):
    def publish(self, running: RunningGateway, tick: bytes = b"", history: bytes = b"") -> None:
        self.feed(running).publish(tick, history, False)
        self.settle(running)

    def sleeper(self, running: RunningGateway) -> Watcher:
        """A console that has its history and reads nothing more, and what the kernel takes for it is full."""
        watcher = self.watch(running)
        self.publish(running, BIG)
        return watcher

    def behind(self, running: RunningGateway) -> list[int]:
        """What has not been taken by each, in bytes."""
        return [len(watcher._unsent) for watcher in self.feed(running)._watchers]

    def test_a_console_that_reads_nothing_delays_nobody_and_holds_one_event(self) -> None:
        running = self.serve()
        self.sleeper(running)
        other = self.watch(running)
        (held, nothing) = self.behind(running)
        self.assertGreater(held, 0)
        self.assertEqual(nothing, 0)
        for number in range(50):
            answer = running.post()
            self.assertEqual(answer.status, 200)
            self.ended(running, answer)
            self.tick(running)
            name, tick = other.event()
            self.assertEqual((name, [one["id"] for one in tick["requests"]]), ("tick", [answer.request_id]), number)
        (left, nothing) = self.behind(running)
        self.assertEqual(nothing, 0)
        self.assertLessEqual(left, held)  # the kernel may have passed on a little of it

    def test_a_console_that_was_behind_gets_a_history_when_it_has_taken_the_rest(self) -> None:
        running = self.serve()
        slow = self.sleeper(running)
        self.tick(running, 3)
        text = slow.client.read_event() or ""
        self.assertEqual(len(text) + 2, len(BIG))
        eventually(lambda: self.feed(running)._wished)
        self.ticker(running).serve()
        name, history = slow.event()
        self.assertEqual((name, len(history["points"])), ("history", 3))
        self.tick(running)
        self.assertEqual(slow.event()[0], "tick")

    def test_one_that_was_behind_but_has_missed_nothing_goes_on(self) -> None:
        running = self.serve()
        slow = self.sleeper(running)
        slow.client.read_event()
        eventually(lambda: self.behind(running) == [0])
        self.tick(running)
        self.assertEqual(slow.event()[0], "tick")

    def test_a_console_that_takes_nothing_for_too_long_is_closed(self) -> None:
        running = self.serve()
        watcher = self.sleeper(running)
        self.tick(running)
        self.assertEqual(self.watching(running), 1)
        with mock.patch.object(livefeed, "TAKE_S", -1.0):
            self.tick(running)
        self.assertEqual(self.watching(running), 0)
        line = self.finished(running)
        self.assertEqual((line["status"], line["error"]), (200, "overloaded"))
        watcher.client.wait_until_ended()
        eventually(lambda: running.app.server.connections == 0)

    def test_a_history_that_does_not_fit_is_taken_by_and_by(self) -> None:
        running = self.serve()
        client = self.ask_for(running)
        client.read_head()
        eventually(lambda: self.feed(running)._wished)
        self.feed(running).take_wish()
        big = b"event: history\ndata: " + b"y" * 5_000_000 + b"\n\n"
        self.publish(running, b"", big)
        self.assertEqual(len(client.read_event() or ""), len(big) - 2)
        self.tick(running)
        self.assertEqual(Watcher(client).event()[0], "tick")

    def test_no_more_than_so_many_watch(self) -> None:
        with mock.patch.object(livefeed, "WATCHERS_MAX", 2):
            running = self.serve()
            first, _ = self.watch(running), self.watch(running)
            answer = running.get(LIVE)
            self.assertEqual((answer.status, answer.error), (503, "overloaded"))
            self.assertIn("2 consoles", answer.body.decode())
            self.assertIsNotNone(answer.header("retry-after"))
            first.client.close()
            eventually(lambda: self.watching(running) == 1)
            self.watch(running)

    def test_those_who_come_and_go_leave_nothing(self) -> None:
        running = self.serve()
        self.watch(running).client.close()
        eventually(lambda: not running.app.server.connections)
        descriptors = self.descriptors()
        for number in range(200):
            client = running.connect()
            client.send(request_bytes("GET", LIVE))
            if number % 3:
                client.read_head()
            if number % 3 == 2:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            client.close()
        eventually(lambda: not running.app.server.connections)
        eventually(lambda: not self.watching(running))
        self.assertEqual(self.feed(running)._places, 0)
        self.assertEqual(self.descriptors(), descriptors)

    @contextlib.contextmanager
    def hold_relay(self, running: RunningGateway) -> Iterator[None]:
        """The relay's thread does nothing meanwhile."""
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            release.wait(10)

        running.app.relay.call_soon(hold)
        self.assertTrue(held.wait(10))
        try:
            yield
        finally:
            release.set()

    def test_who_has_left_before_its_feed_begins_leaves_nothing(self) -> None:
        running = self.serve()
        for reset in (b"\0" * 8, b"\1\0\0\0\0\0\0\0"):
            with self.hold_relay(running):
                with running.connect() as client:
                    client.send(request_bytes("GET", LIVE))
                    eventually(lambda: self.feed(running)._places)
                    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                self.settle_loop(running)
            eventually(lambda: not self.feed(running)._places)
            eventually(lambda: not running.app.server.connections)

    def settle_loop(self, running: RunningGateway) -> None:
        """The loop has seen what has come until now."""
        seen = threading.Event()
        running.app.server.loop.soon(lambda events: seen.set())
        self.assertTrue(seen.wait(10))

    def test_whatever_goes_wrong_at_its_beginning_or_end_gives_the_place_back(self) -> None:
        running = self.serve()
        with mock.patch.object(livefeed, "_head_of", mock.Mock(side_effect=RuntimeError("odd head"))):
            self.ask_for(running).wait_until_ended()
        eventually(lambda: not self.feed(running)._places)
        slow = self.sleeper(running)
        (watcher,) = self.feed(running)._watchers
        with mock.patch.object(watcher._exchange.client, "send_now", mock.Mock(side_effect=RuntimeError("odd rest"))):
            slow.client.wait_until_ended()
        eventually(lambda: not self.feed(running)._places)
        watchers = [self.watch(running) for _ in range(2)]
        first = next(iter(self.feed(running)._watchers))
        with mock.patch.object(first._exchange.client, "before_last", mock.Mock(side_effect=RuntimeError("odd end"))):
            running.stop(None)
        watchers[0].client.wait_until_ended()
        name, said = watchers[1].event()
        self.assertEqual((name, said["code"]), ("end", "draining"))
        eventually(lambda: not self.feed(running)._places)

    def descriptors(self) -> Optional[int]:
        folder = Path("/proc/self/fd")
        return len(list(folder.iterdir())) if folder.exists() else None

    def test_an_error_that_nobody_had_foreseen_ends_one_feed_and_no_other(self) -> None:
        running = self.serve()
        bad, good = self.watch(running), self.watch(running)
        first = next(iter(self.feed(running)._watchers))
        with mock.patch.object(first._exchange.client, "send_now", mock.Mock(side_effect=RuntimeError("odd"))):
            self.tick(running)
        self.assertEqual(good.event()[0], "tick")
        bad.client.wait_until_ended()
        self.assertEqual(self.watching(running), 1)
        eventually(lambda: [line for line in running.log_lines() if "odd" in line.get("traceback", "")])


class EndTest(LiveTest):
    def test_the_end_of_the_gateway_ends_feeds_at_once_and_well(self) -> None:
        running = self.serve(DRAIN_TIMEOUT=300)
        watchers = [self.watch(running) for _ in range(3)]
        began_s = time.monotonic()
        running.stop(None)
        self.assertLess(time.monotonic() - began_s, 5)
        for watcher in watchers:
            name, said = watcher.event()
            self.assertEqual((name, said["code"]), ("end", "draining"))
            self.assertEqual(watcher.event(), ("", None))
            watcher.client.assert_closed()

    def test_while_requests_are_drained_there_is_no_feed(self) -> None:
        engine = self.engine()
        gate = engine.hold_after(1)
        self.addCleanup(gate.release)
        running = self.serve({"m": {"engines": [engine.url]}}, DRAIN_TIMEOUT=300)
        watcher = self.watch(running)
        client = self.begin(running, stream=True)
        client.read_head()
        kept = self.enter(running.connect())
        self.assertEqual(kept.ask("GET", "/healthz").status, 200)
        stopping = threading.Thread(target=lambda: running.stop(None))
        stopping.start()
        self.assertEqual(watcher.event()[0], "end")
        self.assertEqual(watcher.event(), ("", None))
        self.assertTrue(stopping.is_alive())
        answer = kept.ask("GET", LIVE)
        self.assertEqual((answer.status, answer.error), (503, "draining"))
        gate.release()
        self.assertEqual(client.read_events()[-1], "data: [DONE]")
        stopping.join(10)
        self.assertFalse(stopping.is_alive())

    def test_a_console_that_reads_nothing_does_not_hold_the_end_up(self) -> None:
        running = self.serve(DRAIN_TIMEOUT=300)
        watcher = self.watch(running)
        self.feed(running).publish(BIG, b"", False)
        self.settle(running)
        began_s = time.monotonic()
        running.stop(None)
        self.assertLess(time.monotonic() - began_s, 5)
        watcher.client.wait_until_ended()


class ThreadTest(AccessTest):
    """With the thread that ends the seconds."""

    def first_events(self, watcher: RawClient) -> list[str]:
        return [(watcher.read_event() or "").partition("\n")[0] for _ in range(3)]

    def test_seconds_end_by_themselves_and_the_thread_with_the_gateway(self) -> None:
        running = self.serve()
        self.assertEqual(thread_names()["live"], 1)
        client = self.enter(running.connect())
        client.request("GET", LIVE)
        client.read_head()
        first, *others = self.first_events(client)
        self.assertEqual(first, "event: history")
        self.assertLessEqual(set(others), {"event: tick", "event: history"})  # where this machine has missed a second
        running.stop()
        eventually(lambda: not thread_names()["live"])

    def test_who_comes_between_two_seconds_does_not_wait_for_the_next(self) -> None:
        running = self.serve()
        with mock.patch.object(LiveTicker, "tick", forbidden()):
            client = self.enter(running.connect())
            client.request("GET", LIVE)
            client.read_head()
            ticker = running.app.live
            assert ticker is not None
            ticker._next_s = time.monotonic() + 3600
            ticker.wake()
            self.assertTrue((client.read_event() or "").startswith("event: history"))


def forbidden() -> Callable[..., None]:
    def tick(*arguments: Any) -> None:
        raise AssertionError("a second is over")

    return tick


class WithoutEpollTest(WithoutEpoll, FeedTest):
    pass


class BoundsWithoutEpollTest(WithoutEpoll, BoundsTest):
    pass


if __name__ == "__main__":
    unittest.main()
