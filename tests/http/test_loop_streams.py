"""Streams that begin on the loop's thread and have no thread while they are open, and connections begun there."""

from __future__ import annotations

import contextlib
import socket
import time
import unittest
from collections.abc import Iterator
from typing import Any, Optional

from gateway.upstream.connections import ConnectionPool
from tests.onloop import OnLoopTest, client_threads, completion
from tests.resilience import ask
from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked, delta
from tests.support import CHAT, RawClient, RunningGateway, chunk_of, content_of, dead_url, eventually, request_bytes

STREAM = ask(stream=True)
END = chunked(delta("", "stop") + DONE) + b"0\r\n\r\n"
DONE_EVENT = "data: [DONE]"
FIRST = chunked(delta("first"))


class StreamTest(OnLoopTest):
    def opened(self, running: RunningGateway, engine: ScriptedEngine, **headers: str) -> tuple[RawClient, EngineSide]:
        """A stream whose first event the client has."""
        client = self.begin(running, STREAM, list(headers.items()))
        side = engine.take()
        side.send(STREAM_HEAD + FIRST)
        client.read_head()
        self.assertIn("first", client.read_event() or "")
        return client, side

    def assert_ends(self, client: RawClient, side: EngineSide, text: str = "") -> None:
        """The rest of the stream reaches the client."""
        side.send(END)
        events = [event for event in client.read_events() if not event.startswith(":")]
        self.assertEqual((content_of(events), events[-1]), (text, DONE_EVENT))

    def line(self, running: RunningGateway, request_id: str) -> tuple[Any, ...]:
        line = running.request_line(request_id)
        return line["status"], line["error"], line["attempts"]


class BeginTest(StreamTest):
    def test_a_stream_is_begun_and_ended_without_a_thread(self) -> None:
        running, engine = self.one_engine()
        with self.no_thread(running):
            client, side = self.opened(running, engine)  # on a fresh connection
            self.assert_ends(client, side)
            self.settle(running)
            client.request("POST", CHAT, STREAM)  # on the kept one
            side.read_request()
            side.send(STREAM_HEAD + FIRST)
            client.read_head()
            self.assert_ends(client, side, "first")

    def test_many_open_streams_need_no_threads(self) -> None:
        running, engine = self.one_engine()
        before = len(client_threads())
        streams = [self.opened(running, engine) for _ in range(20)]
        self.assertLessEqual(len(client_threads()), before)
        for client, side in streams:
            self.assert_ends(client, side)

    def test_the_first_event_may_come_in_pieces(self) -> None:
        running, engine = self.one_engine()
        data = STREAM_HEAD + chunked(b": loading\n\n") + FIRST
        side: Optional[EngineSide] = None
        for places in ([10], [len(STREAM_HEAD)], [len(STREAM_HEAD) + 2, len(data) - 9], list(range(1, len(data)))):
            with self.subTest(places=places[:3]), self.no_thread(running):
                client = self.begin(running, STREAM)
                side = engine.take() if side is None else side.read_request()
                for start, stop in zip([0, *places], [*places, len(data)]):
                    side.send(data[start:stop])
                    self.settle(running)
                client.read_head()
                self.assert_ends(client, side, "first")
                eventually(lambda: len(self.kept_connections(running)) == 1)

    def kept_connections(self, running: RunningGateway) -> ConnectionPool:
        return running.app.factory.client.endpoint(self.pool(running).engines[0].spec).pool

    def test_a_whole_stream_at_once(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running, STREAM)
        engine.take().send(STREAM_HEAD + FIRST + END)
        client.read_head()
        events = client.read_events()
        self.assertEqual((content_of(events), events[-1]), ("first", DONE_EVENT))

    def test_an_engine_that_does_not_stream(self) -> None:
        running, engine = self.one_engine()
        with self.no_thread(running):
            client = self.begin(running, STREAM)
            engine.take().answer(completion("whole"))
            client.read_head()
            events = client.read_events()
            self.assertEqual((content_of(events), events[-1]), ("whole", DONE_EVENT))

    def test_what_goes_wrong_before_the_first_event_goes_on_elsewhere(self) -> None:
        broken = {
            "an error": STREAM_HEAD + chunked(b'data: {"error": {"message": "no"}}\n\n'),
            "no event": STREAM_HEAD + b"0\r\n\r\n",
            "a bad chunk": STREAM_HEAD + b"zz\r\n",
            "an end in the head": STREAM_HEAD[:20],
            "an end": STREAM_HEAD,
            "500": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
        }
        for name, data in broken.items():
            with self.subTest(name):
                first, second = self.scripted(), self.scripted()
                running = self.serve({"m": {"engines": [first.url, second.url], "strategy": "round_robin"}})
                client = self.begin(running, STREAM)
                side = first.take()
                side.send(data)
                if name.startswith("an end"):
                    side.close()
                other = second.take()
                other.send(STREAM_HEAD + FIRST)
                head = client.read_head()
                self.assertEqual(head.header("x-gateway-attempts"), "2")
                self.assert_ends(client, other, "first")

    def test_an_engine_that_says_nothing_is_left_at_the_deadline(self) -> None:
        running, engine = self.one_engine(FIRST_TOKEN_TIMEOUT=0.5)
        for data in (b"", STREAM_HEAD, STREAM_HEAD + chunked(b": wait\n\n")):
            with self.subTest(data[-10:]):
                client = self.begin(running, STREAM)
                side = engine.take()
                side.send(data)
                self.assert_error(client.read_response(), 504, "gateway_timeout")
                self.assertTrue(side.wait_until_left())
        self.assert_nothing_held(running)

    def test_a_client_that_does_not_take_its_first_event_at_once_delays_nobody_and_gets_all_of_it(self) -> None:
        running, engine = self.one_engine()
        running.app.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # accepted ones inherit it
        slow = self.enter(running.connect())
        slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        text = "0123456789" * 20_000
        with self.no_thread(running):
            slow.request("POST", CHAT, STREAM)
            side = engine.take()
            side.send(STREAM_HEAD + chunked(delta(text)))
            client, other = self.opened(running, engine)
            self.assert_ends(client, other)
            slow.read_head()
            self.assert_ends(slow, side, text)

    def test_a_client_that_leaves_without_having_taken_its_first_event(self) -> None:
        running, engine = self.one_engine()
        running.app.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        slow = self.begin(running, STREAM)
        side = engine.take()
        side.send(STREAM_HEAD + chunked(delta("0123456789" * 20_000)))
        slow.close()
        self.assertTrue(side.wait_until_left())
        self.wait_for_connections(running, 0)
        self.assert_nothing_held(running)


class OpenTest(StreamTest):
    def test_a_request_behind_a_stream_is_served_when_it_is_over(self) -> None:
        running, engine = self.one_engine()
        client, side = self.opened(running, engine)
        client.send(request_bytes("POST", CHAT, ask()))
        self.settle(running)
        self.assert_ends(client, side)
        side.read_request().answer(completion("next"))
        self.assert_says(client, "next")

    def test_a_request_and_the_end_behind_a_stream(self) -> None:
        running, engine = self.one_engine()
        client, side = self.opened(running, engine)
        self.assert_ends(client, side)
        client.send(request_bytes("POST", CHAT, STREAM))
        side.read_request()
        side.send(STREAM_HEAD + FIRST)
        client.read_head()
        self.assert_ends(client, side, "first")
        client.sock.shutdown(socket.SHUT_WR)
        client.assert_closed()
        self.wait_for_connections(running, 0)

    def test_a_client_that_leaves_an_open_stream_is_noticed_at_once(self) -> None:
        for how in ("close", "half", "behind a request"):
            with self.subTest(how):
                running, engine = self.one_engine()
                client, side = self.opened(running, engine, **{"X-Request-ID": "left"})
                with self.no_thread(running):
                    if how == "behind a request":
                        client.send(request_bytes("POST", CHAT, ask()))
                    if how == "close":
                        client.close()
                    else:
                        client.sock.shutdown(socket.SHUT_WR)
                    self.assertTrue(side.wait_until_left())
                self.assertEqual(self.line(running, "left"), (499, "client_closed_request", 1))
                self.wait_for_connections(running, 0)
                self.assert_nothing_held(running)

    def test_a_client_that_had_left_before_its_first_event(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running, STREAM, [("X-Request-ID", "left")])
        side = engine.take()
        with self.hold_loop(running):
            client.sock.shutdown(socket.SHUT_WR)
            side.send(STREAM_HEAD + FIRST)
        self.assertTrue(side.wait_until_left())
        self.assertEqual(self.line(running, "left"), (499, "client_closed_request", 1))
        self.wait_for_connections(running, 0)

    def test_a_stream_that_closes_its_connection(self) -> None:
        for behind in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
            with self.subTest(behind):
                running, engine = self.one_engine()
                client, side = self.opened(running, engine, Connection="close")
                client.send(behind)
                self.settle(running)
                self.assert_ends(client, side)
                client.assert_closed()
                client.close()
                self.wait_for_connections(running, 0)

    def test_a_drain_tells_streams_of_its_end(self) -> None:
        running, engine = self.one_engine()
        client, _ = self.opened(running, engine)
        running.stop(0)
        events = client.read_events()
        self.assertEqual(chunk_of(events[-1])["error"], "draining")
        client.assert_closed()


class ConnectTest(StreamTest):
    def test_an_engine_that_refuses_is_left_for_another(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [dead_url(), engine.url], "strategy": "round_robin"}})
        client = self.begin(running, STREAM)
        side = engine.take()
        side.send(STREAM_HEAD + FIRST)
        self.assertEqual(client.read_head().header("x-gateway-attempts"), "2")
        self.assert_ends(client, side, "first")

    @contextlib.contextmanager
    def deaf(self) -> Iterator[str]:
        """The URL of an engine whose queue of connections is full."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
            for _ in range(8):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    @unittest.skipUnless(hasattr(socket, "MSG_DONTWAIT"), "a full queue refuses here")
    def test_an_engine_that_does_not_accept_costs_the_connect_timeout(self) -> None:
        with self.deaf() as url:
            running = self.serve({"m": {"engines": [url]}}, CONNECT_TIMEOUT=0.5, RETRY_ATTEMPTS=1)
            for body in (ask(), STREAM):
                client = self.begin(running, body)
                self.assert_error(client.read_response(), 502, "backend_unavailable")
            sample = 'gateway_engine_requests_total{model="m",engine="%s",outcome="connect_timeout"}'
            self.assertEqual(running.metrics()[sample % url.split("/")[2]], 2)
            self.assert_nothing_held(running)

    @unittest.skipUnless(hasattr(socket, "MSG_DONTWAIT"), "a full queue refuses here")
    def test_a_client_that_leaves_while_its_engine_is_being_connected_to(self) -> None:
        with self.deaf() as url:
            running = self.serve({"m": {"engines": [url]}}, CONNECT_TIMEOUT=60)
            client = self.begin(running, STREAM, [("X-Request-ID", "left")])
            eventually(lambda: running.app.pipeline.in_flight == 1)
            client.close()
            self.assertEqual(self.line(running, "left")[:2], (499, "client_closed_request"))
            self.assert_nothing_held(running)

    @unittest.skipUnless(hasattr(socket, "MSG_DONTWAIT"), "a full queue refuses here")
    def test_a_connection_that_opens_late_is_used(self) -> None:
        listener = self.enter(socket.create_server(("127.0.0.1", 0), backlog=0))
        fillers = [self.enter(socket.socket()) for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        running = self.serve({"m": {"engines": [f"http://127.0.0.1:{listener.getsockname()[1]}/v1"]}})
        client = self.begin(running, STREAM)
        eventually(lambda: running.app.pipeline.in_flight == 1)
        side = self.accepted(listener, fillers)
        side.send(STREAM_HEAD + FIRST)
        self.assertEqual(client.read_head().header("x-gateway-attempts"), "1")
        self.assert_ends(client, side, "first")

    def accepted(self, listener: socket.socket, fillers: list[socket.socket]) -> EngineSide:
        """The gateway's connection, among those that only filled the queue; with its request read."""
        ports = {filler.getsockname()[1] for filler in fillers}
        listener.settimeout(20.0)
        deadline_s = time.monotonic() + 20.0
        found: Optional[EngineSide] = None
        while found is None and time.monotonic() < deadline_s:
            sock, address = listener.accept()
            self.enter(sock)
            found = None if address[1] in ports else EngineSide(sock)
        assert found is not None
        return found.read_request()


if __name__ == "__main__":
    unittest.main()
