"""The relay of open streams: slow clients, silent ones, many at once, TLS engines, and its end."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional, Union, cast
from unittest import mock

from gateway import app as app_module
from gateway.fitting import Fitted, Shape, shape_of
from gateway.pipeline import Pipeline
from gateway.routing.retry import Outcome
from gateway.server import relay as relay_module
from gateway.server.exchange import Client, Exchange
from gateway.server.parsing import RequestHead
from gateway.server.relay import Relay
from gateway.server.relayed import Relayed as StreamUnderWay
from gateway.steps import drive
from gateway.telemetry.events import RequestEvent
from gateway.upstream.attempt import Attempt
from gateway.upstream.connection import Connection
from gateway.upstream.connections import ConnectionPool
from gateway.upstream.framing import ResponseHead
from gateway.upstream.prober import probe
from gateway.upstream.response import EngineResponse
from gateway.upstream.sse import EventStream
from gateway.upstream.stream import EngineStream
from inference import Call, EngineSpec
from tests.naming import Names
from tests.parallel import alone
from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked, delta
from tests.support import CHAT, HI, TIMEOUT_S, RawClient, RunningGateway, content_of, eventually, gateway

STREAM: dict[str, Any] = {**HI, "model": "m", "stream": True}
DONE_EVENT = "data: [DONE]"
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}\n\n'
BIG = chunked(delta("x" * 60_000))
BUFFERS_MAX_BYTES = 64 << 20  # more than the sockets' buffers on both sides of a gateway ever hold


def event(text: str) -> str:
    return delta(text).decode().strip()


class OpenStream:
    """A stream under way: the client's end and the engine's."""

    def __init__(self, client: RawClient, side: EngineSide) -> None:
        self.client = client
        self.side = side
        self._turns = 0

    def round_trip(self) -> None:
        """Move one event from the engine to the client, and wait for it."""
        self._turns += 1
        self.side.send(chunked(delta(str(self._turns))))
        assert self.client.read_event() == event(str(self._turns))


class SlowClientTest(unittest.TestCase):
    def setUp(self) -> None:
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.stack = stack
        self.engine = stack.enter_context(ScriptedEngine())

    def gateway(self, **variables: object) -> RunningGateway:
        return self.stack.enter_context(gateway(ENGINES=f"m={self.engine.url}", **variables))

    def open(self, running: RunningGateway, request_id: str = "a") -> OpenStream:
        client = self.stack.enter_context(running.connect())
        client.request("POST", CHAT, STREAM, [("X-Request-ID", request_id)])
        side = self.engine.take()
        side.send(STREAM_HEAD + chunked(delta("0")))
        client.read_head()
        assert client.read_event() == event("0")
        return OpenStream(client, side)

    def fill(self, slow: OpenStream, other: OpenStream) -> int:
        """Send to a client that does not read until nothing is taken any more; returns how many bytes were.

        Whether the engine's socket takes no more because the relay has stopped reading it, or only because the relay
        has not come to it yet, `other` tells: two round trips through the relay lie between two looks.
        """
        sock = slow.side.sock
        sock.setblocking(False)
        sent = 0
        while sent < BUFFERS_MAX_BYTES:
            try:
                sent += sock.send(BIG[sent % len(BIG) :])
                continue
            except BlockingIOError:
                pass
            other.round_trip()
            other.round_trip()
            try:
                sent += sock.send(BIG[sent % len(BIG) :])
            except BlockingIOError:
                break
        sock.settimeout(TIMEOUT_S)
        return sent

    def test_an_engine_is_not_read_while_its_client_does_not_and_other_streams_go_on(self) -> None:
        running = self.gateway()
        slow, other = self.open(running), self.open(running, "b")
        sent = self.fill(slow, other)
        self.assertLess(sent, BUFFERS_MAX_BYTES, "the gateway takes whatever the engine sends")
        for _ in range(20):
            other.round_trip()

        def send_rest() -> None:
            slow.side.send(BIG[sent % len(BIG) :] + chunked(delta("end", "stop") + DONE) + b"0\r\n\r\n")

        sender = threading.Thread(target=send_rest, name="engine")
        sender.start()
        events = slow.client.read_events()
        sender.join(TIMEOUT_S)
        self.assertEqual(len(content_of(events)), (sent // len(BIG) + 1) * 60_000 + len("end"))
        self.assertEqual(events[-1], DONE_EVENT)
        line = running.request_line("a")
        self.assertEqual((line["status"], line["error"]), (200, None))

    def test_a_client_that_takes_nothing_for_too_long_is_given_up(self) -> None:
        running = self.gateway(STREAM_IDLE_TIMEOUT="0.5")
        slow, other = self.open(running), self.open(running, "b")
        self.fill(slow, other)
        self.assertTrue(slow.side.wait_until_left())
        line = running.request_line("a")
        self.assertEqual((line["status"], line["error"]), (499, "client_closed_request"))

    @alone
    def test_a_client_that_leaves_while_it_is_behind_is_noticed(self) -> None:
        running = self.gateway()
        slow, other = self.open(running), self.open(running, "b")
        self.fill(slow, other)
        slow.client.close()
        self.assertTrue(slow.side.wait_until_left(1.0))
        self.assertEqual(running.request_line("a")["status"], 499)
        other.round_trip()

    def test_an_engine_that_breaks_off_while_the_client_is_behind(self) -> None:
        running = self.gateway()
        slow, other = self.open(running), self.open(running, "b")
        sent = self.fill(slow, other)
        slow.side.close()
        *events, last = slow.client.read_events()
        self.assertEqual(len(content_of(events)), sent // len(BIG) * 60_000)
        self.assertEqual(json.loads(last[6:])["error"], "backend_error")

    def assert_cut(self, running: RunningGateway, stream: OpenStream, request_id: str) -> None:
        """The gateway has ended the stream, and said so, to its client and in the log."""
        *_, last = stream.client.read_events()
        self.assertEqual(json.loads(last[6:])["error"], "draining")
        stream.client.assert_closed()
        self.assert_logged_cut(running, request_id)

    def assert_logged_cut(self, running: RunningGateway, request_id: str) -> None:
        line = running.request_line(request_id)
        self.assertEqual((line["status"], line["error"]), (200, "draining"))

    def test_stopping_ends_every_stream_on_both_sides(self) -> None:
        running = self.gateway()
        streams = [self.open(running, str(number)) for number in range(5)]
        running.stop(0)
        for number, stream in enumerate(streams):
            self.assertTrue(stream.side.wait_until_left())
            self.assert_cut(running, stream, str(number))
        self.assertEqual([e.in_flight for e in running.app.factory.engines()], [0])
        self.assertEqual([e.last_error for e in running.app.factory.engines()], [None])

    def test_stopping_inside_an_event_tells_the_client_in_an_event_of_its_own(self) -> None:
        running = self.gateway()
        stream = self.open(running)
        stream.side.send(chunked(delta("1")[:-1]))
        eventually(lambda: stream.client.sock.recv(1, socket.MSG_PEEK))
        running.stop(0)
        self.assertEqual(stream.client.read_event(), event("1"))
        self.assert_cut(running, stream, "a")

    def test_stopping_does_not_wait_for_a_client_that_does_not_read(self) -> None:
        running = self.gateway()
        slow, other = self.open(running), self.open(running, "b")
        self.fill(slow, other)
        with mock.patch.object(app_module, "END_TIMEOUT_S", 1e6):
            stopper = threading.Thread(target=running.stop, args=(0,), name="stopper", daemon=True)
            stopper.start()
            stopper.join(TIMEOUT_S)
            self.assertFalse(stopper.is_alive())
        self.assertTrue(slow.side.wait_until_left())
        self.assert_cut(running, other, "b")
        self.assert_logged_cut(running, "a")

    def test_stopping_refuses_who_waits_for_the_place_of_a_client_that_does_not_read(self) -> None:
        running = self.gateway(WORKERS=1)
        slow, waiting = (self.stack.enter_context(running.connect()) for _ in range(2))
        slow.request("POST", CHAT, {**HI, "model": "m"}, [("X-Request-ID", "a")])
        content = "x" * (BUFFERS_MAX_BYTES // 2)
        self.engine.take().answer(json.dumps({"choices": [{"message": {"content": content}}]}).encode())
        eventually(lambda: slow.sock.recv(1, socket.MSG_PEEK))  # the place is kept until the client has it all
        waiting.request("POST", CHAT, {**HI, "model": "m"}, [("X-Request-ID", "b")])
        eventually(lambda: running.app.workers.depth == 1)
        with mock.patch.object(app_module, "END_TIMEOUT_S", 1e6):
            stopper = threading.Thread(target=running.stop, args=(0,), name="stopper", daemon=True)
            stopper.start()
            answer = waiting.read_response()
            stopper.join(TIMEOUT_S)
            self.assertFalse(stopper.is_alive())
        self.assertEqual((answer.status, answer.error), (503, "draining"))
        self.assertEqual(running.request_line("b")["error"], "draining")
        self.assert_logged_cut(running, "a")

    def test_stopping_leaves_a_client_that_is_behind_but_reads_the_time_to_catch_up(self) -> None:
        running = self.gateway()
        slow, other = self.open(running), self.open(running, "b")
        sent = self.fill(slow, other)
        stopper = threading.Thread(target=running.stop, args=(0,), name="stopper", daemon=True)
        stopper.start()
        *events, last = slow.client.read_events()
        stopper.join(TIMEOUT_S)
        self.assertEqual(json.loads(last[6:])["error"], "draining")
        self.assertLessEqual(len(content_of(events)), (sent // len(BIG) + 1) * 60_000)
        self.assert_logged_cut(running, "a")


class FakeClient:
    """A client that takes `room` bytes more (None: everything); its socket is always ready for them."""

    def __init__(self) -> None:
        self._sock, self._peer = socket.socketpair()
        self.room: Optional[int] = None
        self.taken = b""
        self.deadline_s = 0.0
        self.last_due = False
        self.shut = False
        self.over = False
        self.fault: Optional[Exception] = None

    def send_now(self, data: Union[bytes, memoryview]) -> int:
        if self.fault is not None:
            raise self.fault
        if self.room == 0:
            raise BlockingIOError
        size = len(data) if self.room is None else min(self.room, len(data))
        if self.room is not None:
            self.room -= size
        self.taken += data[:size]
        return size

    def fileno(self) -> int:
        return self._sock.fileno()

    def before_last(self, exchange: object, keep_alive: bool) -> None:
        self.last_due = True
        self.deadline_s = 2.0

    def set_deadline(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s

    def shut_writing(self) -> None:
        self.shut = True

    def stream_over(self) -> None:
        self.over = True

    def close(self) -> None:
        self._sock.close()
        self._peer.close()


class FakePipeline:
    """What an exchange needs to end: it notes how each has ended."""

    class guard:
        @staticmethod
        def cost(*_: object) -> None:
            return None

    class settings:
        log_bodies = False
        error_format = "simple"
        cors_origins = ()

    draining = False

    def __init__(self) -> None:
        self.events: list[RequestEvent] = []

    def concluded(self, job: object, event: RequestEvent) -> None:
        self.events.append(event)

    def internal_error(self, error: BaseException, request_id: str) -> None:
        raise error


class UnsentTest(unittest.TestCase):
    def test_what_a_client_takes_in_small_pieces_is_not_copied_for_each(self) -> None:
        class Sipping:
            def send_now(self, data: Union[bytes, memoryview]) -> int:
                return 100

        relay = Relay(60.0, lambda error: None)
        self.addCleanup(relay.close, TIMEOUT_S)
        exchange = mock.Mock(client=Sipping())
        relayed = StreamUnderWay(exchange, mock.Mock(), relay, relay._loop)
        relayed.unsent = bytes(8 << 20)
        began_s = time.thread_time()
        for _ in range(10_000):
            relayed._flush()
        self.assertEqual(len(relayed.unsent), (8 << 20) - 1_000_000)
        self.assertLess(time.thread_time() - began_s, 0.7)


class Relayed:
    """One stream between a fake client and a socket pair; `outcome` is how it counts for its engine, once it has
    ended."""

    def __init__(self, relay: Relay, hide_usage: bool = True) -> None:
        self.client = FakeClient()
        self.pipeline = FakePipeline()
        head = RequestHead("POST", CHAT, False)  # HTTP/1.0: the stream as it is, without chunks
        self.exchange = Exchange(
            cast(Pipeline, self.pipeline), relay, cast(Client, self.client), "127.0.0.1", head, time.monotonic()
        )
        self.exchange.call = Call("/chat/completions", STREAM)
        self.exchange.status = 200
        self.outcome: Optional[str] = None
        ours, self.engine = socket.socketpair()
        ours.setblocking(False)
        self.engine.settimeout(TIMEOUT_S)
        self._ours = ours
        answer = ResponseHead(200, {b"transfer-encoding": b"chunked"}, True)
        pool = ConnectionPool("127.0.0.1", 1, None, 1.0)
        response = EngineResponse(answer, b"", Connection(ours), pool, Attempt(math.inf))
        self.stream = EngineStream(response, EventStream(hide_usage))
        self.engine.sendall(chunked(delta("first")))
        drive(self.stream.wait_first())
        self.stream.first = b""  # the client has it already
        self.stream.on_close(self._closed)

    def _closed(self, outcome: Outcome) -> None:
        self.outcome = outcome.kind

    @property
    def ended(self) -> bool:
        """Whether it has been reported."""
        return bool(self.pipeline.events)

    def close(self) -> None:
        """Close its sockets."""
        self.client.close()
        self.engine.close()
        self._ours.close()


class RelayCase(unittest.TestCase):
    """The relay alone, between clients that take what the test lets them and socket pairs for engines."""

    def setUp(self) -> None:
        self.errors: list[BaseException] = []
        self.now_s = 0.0
        sweep_often = mock.patch.object(relay_module, "SWEEP_S", 0.01)
        sweep_often.start()
        self.addCleanup(sweep_often.stop)
        self.relay = Relay(60.0, self.errors.append, clock=lambda: self.now_s)
        self.addCleanup(self.relay.close, TIMEOUT_S)

    def relayed(self, hide_usage: bool = True) -> Relayed:
        """A stream after its first event, not yet handed over."""
        relayed = Relayed(self.relay, hide_usage)
        self.addCleanup(relayed.close)
        return relayed

    def take(self) -> Relayed:
        """A stream that the relay has."""
        relayed = self.relayed()
        self.relay.take(relayed.exchange, relayed.stream)
        return relayed

    def assert_ended(self, relayed: Relayed, outcome: str, status: int, error: Optional[str]) -> None:
        eventually(lambda: relayed.ended)
        self.assertEqual(relayed.outcome, outcome)
        self.assertEqual([(event.status, event.error) for event in relayed.pipeline.events], [(status, error)])
        self.assertTrue(relayed.exchange.finished)

    def swept(self) -> None:
        """Wait until the relay has looked for what is over, at the time that it is now."""
        sweep, seen_s = self.relay._sweep, []

        def noted(events: int) -> None:
            sweep(events)
            seen_s.append(self.relay._loop.began_s)

        with mock.patch.object(self.relay, "_sweep", noted):
            eventually(lambda: self.now_s in seen_s)


class JudgedTest(RelayCase):
    """Streams that have to fit a schema; of large ones it is seen by a thread, which waits for `gate` here."""

    LARGE = delta(json.dumps({"a": "x" * 20_000}), "stop")
    MISFIT = delta('{"a": ' + "1" * 20_000, "stop")
    SMALL = delta("{}", "stop")

    def setUp(self) -> None:
        super().setUp()
        self.gate = threading.Event()
        self.addCleanup(self.gate.set)  # before the relay is closed
        self.threads: list[str] = []
        fit = Shape.fit

        def gated(shape: Shape, answer: dict[str, Any]) -> Fitted:
            self.threads.append(threading.current_thread().name)
            if self.threads[-1] != "relay":
                self.gate.wait(TIMEOUT_S)
            return fit(shape, answer)

        gating = mock.patch.object(Shape, "fit", gated)
        gating.start()
        self.addCleanup(gating.stop)

    def judged(self, lines: bytes) -> Relayed:
        """A stream that has sent these lines and its end, and that the relay has."""
        relayed = self.relayed()
        assert relayed.exchange.call is not None
        relayed.exchange.call.shape = shape_of({"response_format": {"type": "json_object"}}, {})
        self.relay.take(relayed.exchange, relayed.stream)
        relayed.engine.sendall(chunked(lines + DONE) + b"0\r\n\r\n")
        return relayed

    def test_others_go_on_while_a_large_one_is_judged(self) -> None:
        relayed, other = self.judged(self.LARGE), self.take()
        eventually(lambda: self.threads)
        other.engine.sendall(chunked(delta("b", "stop") + DONE) + b"0\r\n\r\n")
        self.assert_ended(other, "ok", 200, None)
        eventually(lambda: relayed.client.taken == self.LARGE)
        self.assertFalse(relayed.client.last_due)
        self.now_s += 100.0  # it is neither silent nor late
        self.swept()
        self.gate.set()
        self.assert_ended(relayed, "ok", 200, None)
        self.assertEqual((relayed.client.taken, self.threads), (self.LARGE + DONE, ["judge"]))

    def test_a_small_one_is_judged_at_once(self) -> None:
        relayed = self.judged(self.SMALL)
        self.assert_ended(relayed, "ok", 200, None)
        self.assertEqual((relayed.client.taken, self.threads), (self.SMALL + DONE, ["relay"]))

    def test_a_misfit_has_its_error_in_the_place_of_the_end(self) -> None:
        self.gate.set()
        for lines in (self.MISFIT, delta("{", "stop")):
            relayed = self.judged(lines)
            self.assert_ended(relayed, "ok", 200, "invalid_model_output")
            told = relayed.client.taken[len(lines) :]
            self.assertEqual(json.loads(told[6:])["error"], "invalid_model_output")
            self.assertTrue(relayed.client.last_due)

    def test_a_client_that_leaves_meanwhile_gets_nothing_more(self) -> None:
        relayed = self.judged(self.LARGE)
        eventually(lambda: self.threads)
        relayed.exchange.cancel()
        self.gate.set()
        self.assert_ended(relayed, "cancelled", 499, "client_closed_request")
        self.assertEqual(relayed.client.taken, self.LARGE)

    def test_who_is_cut_off_meanwhile_gets_what_the_thread_finds(self) -> None:
        relayed = self.judged(self.LARGE)
        eventually(lambda: self.threads)
        relayed.exchange.cut_off()
        self.gate.set()
        self.assert_ended(relayed, "ok", 200, None)
        self.assertEqual((relayed.client.taken, relayed.client.shut), (self.LARGE + DONE, True))

    def test_a_slow_client_gets_the_end_behind_the_rest(self) -> None:
        relayed = self.judged(self.LARGE)
        relayed.client.room = 5
        self.gate.set()
        eventually(lambda: relayed.client.room == 0 or relayed.ended)
        relayed.client.room = None
        self.assert_ended(relayed, "ok", 200, None)
        self.assertEqual(relayed.client.taken, self.LARGE + DONE)

    def test_a_crash_is_told_the_client_and_logged(self) -> None:
        self.gate.set()
        for lines in (self.LARGE, self.SMALL):
            with mock.patch.object(Shape, "fit", side_effect=ZeroDivisionError("a bug")):
                relayed = self.judged(lines)
                self.assert_ended(relayed, "ok", 200, "internal_error")
            self.assertNotIn(b"a bug", relayed.client.taken)
            self.assertIsInstance(self.errors.pop(), ZeroDivisionError)

    def test_where_the_system_gives_no_thread_the_relay_judges(self) -> None:
        with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError):
            relayed = self.judged(self.LARGE)
            self.assert_ended(relayed, "ok", 200, None)
        self.assertEqual((relayed.client.taken, self.threads), (self.LARGE + DONE, ["relay"]))

    def test_the_end_of_the_relay_waits_for_no_verdict_and_leaves_no_thread(self) -> None:
        relayed = self.judged(self.LARGE)
        eventually(lambda: self.threads)
        closing = threading.Thread(target=self.relay.close, args=(TIMEOUT_S,), name="closing")
        closing.start()
        self.assert_ended(relayed, "cancelled", 499, "client_closed_request")
        self.gate.set()
        closing.join(TIMEOUT_S)
        self.assertEqual((closing.is_alive(), relayed.client.taken), (False, self.LARGE))
        self.assertNotIn("judge", [thread.name for thread in threading.enumerate()])


class RelayTest(RelayCase):
    def test_cancelling_closes_the_engine_s_connection(self) -> None:
        relayed = self.take()
        relayed.engine.sendall(chunked(delta("a")))
        eventually(lambda: relayed.client.taken == delta("a"))
        relayed.exchange.cancel()
        self.assertEqual(relayed.engine.recv(1), b"")
        self.assert_ended(relayed, "cancelled", 499, "client_closed_request")

    def test_a_client_that_left_before_the_relay_had_its_stream(self) -> None:
        relayed = self.relayed()
        relayed.exchange.cancel()
        self.relay.take(relayed.exchange, relayed.stream)
        self.assertEqual(relayed.engine.recv(1), b"")
        self.assert_ended(relayed, "cancelled", 499, "client_closed_request")

    def test_a_client_that_leaves_before_the_first_byte_pays_for_what_has_come(self) -> None:
        relayed = self.relayed()
        with mock.patch.object(relayed.client, "send_now", side_effect=ConnectionResetError):
            relayed.exchange.answer(relayed.stream)
        self.assert_ended(relayed, "cancelled", 499, "client_closed_request")
        usage = relayed.pipeline.events[0].completion_tokens
        self.assertEqual((usage, relayed.engine.recv(1)), (2, b""))  # of "first"

    def test_a_silent_engine_is_given_up_after_the_idle_timeout_and_not_before(self) -> None:
        relayed, other = self.take(), self.take()
        self.now_s = 59.0
        other.engine.sendall(chunked(delta("a")))
        eventually(lambda: other.client.taken)
        self.assertFalse(relayed.ended)
        self.now_s = 61.0
        self.assert_ended(relayed, "timeout", 200, "backend_error")
        self.assertEqual(json.loads(relayed.client.taken[6:])["error"], "backend_error")
        self.assertEqual(relayed.engine.recv(1), b"")
        self.assertFalse(other.ended)  # silent for 2 s only

    def test_what_goes_wrong_with_one_stream_ends_that_one_alone(self) -> None:
        relayed, other = self.take(), self.take()
        fault = relayed.client.fault = RuntimeError("a bug")
        relayed.engine.sendall(chunked(delta("a")))
        self.assert_ended(relayed, "cancelled", 499, "client_closed_request")
        self.assertEqual(self.errors, [fault])
        other.engine.sendall(chunked(delta("b", "stop") + DONE) + b"0\r\n\r\n")
        self.assert_ended(other, "ok", 200, None)

    def test_every_byte_reaches_a_client_that_takes_a_few_at_a_time(self) -> None:
        relayed = self.take()
        relayed.client.room = 0
        sent = delta("a") + delta("b", "stop") + DONE
        relayed.engine.sendall(chunked(sent) + b"0\r\n\r\n")
        while len(relayed.client.taken) < len(sent):
            relayed.client.room = 7
            eventually(lambda: relayed.client.room != 7)
        self.assert_ended(relayed, "ok", 200, None)
        self.assertEqual(relayed.client.taken, sent)

    def test_a_finished_stream_may_take_its_time_to_reach_a_slow_client(self) -> None:
        # `before_last` leaves a connection seconds to close; they count from the last byte, not from the engine's.
        relayed = self.take()
        relayed.client.room = 5
        relayed.engine.sendall(chunked(delta("b", "stop") + DONE) + b"0\r\n\r\n")
        eventually(lambda: relayed.client.last_due and relayed.client.deadline_s == math.inf)
        self.assertFalse(relayed.ended)
        relayed.client.room = None
        self.assert_ended(relayed, "ok", 200, None)
        self.assertLess(relayed.client.deadline_s, math.inf)

    def test_an_event_that_comes_drop_by_drop_is_no_silence(self) -> None:
        relayed, silent = self.take(), self.take()
        event_bytes = chunked(delta("a"))
        for place in range(0, len(event_bytes) - 3, 10):
            self.now_s += 50.0
            relayed.engine.sendall(event_bytes[place : min(place + 10, len(event_bytes) - 3)])
            self.swept()  # in a later turn than the one that has read this
            self.assertEqual(self.active_s(relayed), self.now_s)
        eventually(lambda: silent.ended)
        self.assertFalse(relayed.ended)
        self.now_s += 61.0
        self.assert_ended(relayed, "timeout", 200, "backend_error")

    def active_s(self, relayed: Relayed) -> float:
        """When the relay has last seen something of a stream."""
        streams = list(self.relay._streams)
        return next((one.active_s for one in streams if one.exchange is relayed.exchange), -1.0)

    def test_a_complete_stream_is_ended_after_its_grace_and_not_before(self) -> None:
        relayed, other = self.take(), self.take()
        relayed.engine.sendall(chunked(delta("b", "stop")))
        eventually(lambda: relayed.client.taken == delta("b", "stop"))
        self.now_s = 0.9
        self.swept()
        relayed.engine.sendall(chunked(b": more\n\n"))  # does not make it longer
        eventually(lambda: relayed.client.taken.endswith(b": more\n\n"))
        self.assertFalse(relayed.ended)
        self.now_s = 1.1
        self.assert_ended(relayed, "ok", 200, None)
        self.assertEqual(relayed.client.taken, delta("b", "stop") + b": more\n\n" + DONE)
        self.assertEqual(relayed.engine.recv(1), b"")  # not kept
        self.assertFalse(other.ended)

    def test_a_choice_that_begins_within_the_grace_gets_the_time_that_it_takes(self) -> None:
        relayed = self.take()
        relayed.engine.sendall(chunked(delta("b", "stop")))
        eventually(lambda: relayed.client.taken == delta("b", "stop"))
        relayed.engine.sendall(chunked(delta("c", index=1)))
        eventually(lambda: relayed.client.taken.endswith(delta("c", index=1)))
        self.now_s = 1.1
        self.swept()
        self.assertFalse(relayed.ended)
        relayed.engine.sendall(chunked(delta("d", "stop", index=1)))
        eventually(lambda: relayed.client.taken.endswith(delta("d", "stop", index=1)))
        self.now_s = 2.3
        self.assert_ended(relayed, "ok", 200, None)
        self.assertTrue(relayed.client.taken.endswith(delta("d", "stop", index=1) + DONE))

    def test_the_grace_is_its_engine_s_and_a_slow_client_gets_all(self) -> None:
        for behind in (b"", USAGE, USAGE + DONE):
            with self.subTest(behind):
                relayed = self.relayed(hide_usage=False)
                relayed.client.room = 3
                self.relay.take(relayed.exchange, relayed.stream)
                relayed.engine.sendall(chunked(delta("b", "stop")))
                eventually(lambda relayed=relayed: relayed.client.room == 0)  # type: ignore[misc]
                if behind:  # not read while the client is slow
                    relayed.engine.sendall(chunked(behind))
                self.now_s += 1.1
                eventually(lambda relayed=relayed: relayed.client.last_due)  # type: ignore[misc]
                self.assertFalse(relayed.ended)
                eventually(lambda relayed=relayed: relayed.client.deadline_s == math.inf)  # type: ignore[misc]
                relayed.client.room = None
                self.assert_ended(relayed, "ok", 200, None)
                self.assertEqual(relayed.client.taken, delta("b", "stop") + behind.replace(DONE, b"") + DONE)
                self.assertEqual(relayed.stream.events.usage is not None, bool(behind))

    def test_a_slow_client_is_given_up_in_the_grace_as_ever(self) -> None:
        relayed = self.relayed()
        relayed.client.room = 3
        self.relay.take(relayed.exchange, relayed.stream)
        relayed.engine.sendall(chunked(delta("b", "stop")))
        eventually(lambda: relayed.client.room == 0)
        self.now_s = 61.0
        self.assert_ended(relayed, "cancelled", 499, "client_closed_request")

    def test_a_client_of_http_1_0_that_is_slow_from_the_start_loses_nothing(self) -> None:
        relayed = self.relayed()
        relayed.client.room = 0
        relayed.engine.sendall(chunked(delta("b", "stop") + DONE) + b"0\r\n\r\n")
        lines = drive(relayed.stream.read())
        self.relay.take(relayed.exchange, relayed.stream, lines)
        eventually(lambda: relayed.client.last_due)
        relayed.client.room = None
        self.assert_ended(relayed, "ok", 200, None)
        self.assertEqual(relayed.client.taken, delta("b", "stop") + DONE)

    def test_an_unforeseen_exception_behind_the_last_reason_is_told_and_costs_nobody_the_answer(self) -> None:
        relayed = self.take()
        relayed.engine.sendall(chunked(delta("b", "stop")))
        eventually(lambda: relayed.client.taken)
        bug = RuntimeError("a bug")
        with mock.patch.object(EventStream, "feed", side_effect=bug):
            relayed.engine.sendall(chunked(USAGE))
            self.assert_ended(relayed, "ok", 200, None)
        self.assertEqual(relayed.client.taken, delta("b", "stop") + DONE)
        self.assertEqual(self.errors, [bug])

    def test_closing_ends_streams_that_are_open_or_come_too_late(self) -> None:
        relayed, late = self.take(), self.relayed()
        self.relay.close(TIMEOUT_S)
        self.relay.take(late.exchange, late.stream)
        for one in (relayed, late):
            self.assert_ended(one, "cancelled", 499, "client_closed_request")
            self.assertEqual(one.engine.recv(1), b"")
        self.assertEqual(len(self.relay), 0)


OPENSSL = shutil.which("openssl")


@unittest.skipUnless(OPENSSL, "the openssl command is missing: no certificate for the engine")
class TlsTest(unittest.TestCase):
    directory: tempfile.TemporaryDirectory[str]

    @classmethod
    def setUpClass(cls) -> None:
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        cls.certificate = Path(cls.directory.name) / "cert.pem"
        key = Path(cls.directory.name) / "key.pem"
        command = f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {cls.certificate}"
        names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        made = subprocess.run([OPENSSL or "", *command.split(), *names], stderr=subprocess.PIPE, check=False)
        if made.returncode:
            raise unittest.SkipTest(f"this openssl makes no such certificate: {made.stderr.decode()[-200:]}")
        cls.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        cls.context.load_cert_chain(str(cls.certificate), str(key))

    @contextlib.contextmanager
    def running(
        self, trusted: bool = True, name: str = "127.0.0.1", **variables: object
    ) -> Iterator[tuple[RunningGateway, ScriptedEngine]]:
        trust = {"SSL_CERT_FILE": str(self.certificate)} if trusted else {}
        with mock.patch.dict(os.environ, trust), ScriptedEngine(self.context) as engine:
            urls = f"m={engine.url.replace('127.0.0.1', name)}"
            with gateway(ENGINES=urls, RETRY_ATTEMPTS=1, **variables) as running:
                yield running, engine

    def test_an_answer_over_tls_and_the_connection_is_kept(self) -> None:
        with self.running() as (running, engine), running.connect() as client:
            body = json.dumps({"choices": [{"message": {"content": "x" * 100_000}}]}).encode()
            side: Optional[EngineSide] = None
            for _ in range(2):
                client.request("POST", CHAT, {**HI, "model": "m"})
                side = engine.take() if side is None else side.read_request()
                side.answer(body)
                answer = client.read_response()
                self.assertEqual(answer.status, 200)
                self.assertEqual(len(answer.json()["choices"][0]["message"]["content"]), 100_000)
            self.assertTrue(engine.nobody_waits())

    def test_a_form_over_tls_is_sent_on_whatever_tls_itself_says(self) -> None:
        named = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
        form, end = named % b"model" + b"m\r\n" + named % b"file", b"\r\n--x--\r\n"
        with self.running() as (running, engine), running.connect() as client:
            client.send(
                b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: gateway\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 300000\r\n\r\n" + form
            )
            side = engine.accept()  # which has said something meanwhile: tickets of the session, to use it again
            side.take_until(form)
            for piece in (b"x" * 100_000, b"x" * (200_000 - len(form) - len(end)) + end):
                client.send(piece)
                self.assertEqual(side.take(len(piece)), piece)
            side.answer(b'{"text": "heard"}')
            self.assertEqual(client.read_response().json(), {"text": "heard"})

    def test_an_engine_s_name_is_what_its_certificate_must_say(self) -> None:
        for name, status in (("localhost", 200), ("other.localhost", 502)):
            names = Names()
            names.answers[name] = ["127.0.0.1"]
            with mock.patch.object(socket, "getaddrinfo", names), self.running(name=name) as (running, engine):
                with running.connect() as client:
                    client.request("POST", CHAT, {**HI, "model": "m"})
                    with contextlib.suppress(OSError):
                        engine.take().answer(b'{"choices": [{"message": {"content": "fine"}}]}')
                    self.assertEqual(client.read_response().status, status)

    def test_a_compressed_stream_over_tls_stands_for_much(self) -> None:
        events = b"".join(delta(f"{number} " + "z" * 500) for number in range(2_000)) + delta("", "stop") + DONE
        head = STREAM_HEAD.replace(b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1)
        coded = gzip.compress(delta("first")) + gzip.compress(events)
        with self.running() as (running, engine), running.connect() as client:
            for cut in (len(gzip.compress(delta("first"))), 0):
                client.request("POST", CHAT, {**HI, "model": "m", "stream": True})
                side = engine.take()
                if cut:
                    side.send(head + chunked(coded[:cut]))
                    client.read_head()
                    self.assertIn("first", client.read_event() or "")
                    side.send(chunked(coded[cut:]) + b"0\r\n\r\n")
                else:
                    side.send(head + chunked(coded) + b"0\r\n\r\n")
                    client.read_head()
                got = client.read_events()
                self.assertEqual((len(got), got[-1]), (2_002 + (not cut), "data: [DONE]"))
                side.close()

    def assert_surplus(self, running: RunningGateway, count: int) -> None:
        metrics = running.metrics()
        self.assertEqual([v for k, v in metrics.items() if k.startswith("gateway_engine_surplus_total")], [count])

    def test_what_comes_behind_an_answer_over_tls_is_not_the_next_one(self) -> None:
        mine, other = (b'{"choices": [{"message": {"content": "%b"}}]}' % text for text in (b"mine", b"other"))
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
        answer, surplus = head % len(mine) + mine, head % len(other) + other
        for name, pieces in (
            ("one record", [answer + surplus]),
            ("two", [answer, surplus]),
            ("little", [answer, b"H"]),
        ):
            with self.subTest(name), self.running() as (running, engine), running.connect() as client:
                client.request("POST", CHAT, {**HI, "model": "m"})
                side = engine.take()
                for piece in pieces:
                    side.send(piece)
                self.assertIn(b"mine", client.read_response().body)
                client.request("POST", CHAT, {**HI, "model": "m"})
                engine.take().send(answer)
                self.assertIn(b"mine", client.read_response().body)
                self.assert_surplus(running, 1)

    def test_the_end_of_a_tls_connection_is_no_surplus(self) -> None:
        with self.running() as (running, engine), running.connect() as client:
            for end in ("close", "reset", "close"):
                client.request("POST", CHAT, {**HI, "model": "m"})
                side = engine.take()
                side.answer(b'{"choices": [{"message": {"content": "mine"}}]}')
                self.assertIn(b"mine", client.read_response().body)
                getattr(side, end)()
            self.assert_surplus(running, 0)

    def test_a_stream_over_tls_arrives_event_by_event(self) -> None:
        with self.running() as (running, engine), running.connect() as client:
            client.request("POST", CHAT, STREAM)
            side = engine.take()
            side.send(STREAM_HEAD)
            for number in range(5):
                side.send(chunked(delta(str(number))))
                if not number:
                    client.read_head()
                self.assertEqual(client.read_event(), event(str(number)))
            # More than a record holds, then many records at once: no selector tells of what TLS has read already.
            side.send(chunked(delta("y" * 50_000)))
            self.assertEqual(client.read_event(), event("y" * 50_000))
            for number in range(100):
                side.send(chunked(delta(str(number))))
            for number in range(100):
                self.assertEqual(client.read_event(), event(str(number)))
            side.send(chunked(delta("", "stop") + DONE) + b"0\r\n\r\n")
            self.assertEqual(client.read_events()[-1], DONE_EVENT)

    def test_a_complete_stream_over_tls_ends_well_whatever_its_engine_does(self) -> None:
        for end in ("close", "reset", "nothing"):
            with self.subTest(end), self.running(STREAM_END_GRACE="0.05") as (running, engine):
                with running.connect() as client:
                    client.request("POST", CHAT, STREAM)
                    side = engine.take()
                    side.send(STREAM_HEAD + chunked(delta("a") + delta("b", "stop")))
                    client.read_head()
                    self.assertEqual([client.read_event(), client.read_event()][0], event("a"))
                    if end != "nothing":
                        getattr(side, end)()
                    self.assertEqual(client.read_events(), [DONE_EVENT])
                    eventually(lambda: running.app.factory.engines()[0].in_flight == 0)
                    self.assertIsNone(running.app.factory.engines()[0].last_error)

    def test_events_over_tls_that_nobody_asked_for_are_put_together(self) -> None:
        with self.running() as (running, engine), running.connect() as client:
            client.request("POST", CHAT, {**HI, "model": "m"})
            side = engine.take()
            side.send(STREAM_HEAD + chunked(delta("a")))
            side.send(chunked(delta("b", "stop") + DONE) + b"0\r\n\r\n")
            self.assertEqual(client.read_response().json()["choices"][0]["message"]["content"], "ab")

    @alone
    def test_a_client_that_leaves_closes_a_tls_engine_s_connection(self) -> None:
        for silent in (True, False):
            with self.subTest(silent=silent), self.running() as (running, engine), running.connect() as client:
                client.request("POST", CHAT, STREAM)
                side = engine.take()
                if not silent:
                    side.send(STREAM_HEAD + chunked(delta("0")))
                    client.read_head()
                client.close()
                self.assertTrue(side.wait_until_left(1.0))
                eventually(lambda: running.app.factory.engines()[0].in_flight == 0)
                self.assertIsNone(running.app.factory.engines()[0].last_error)

    def test_an_engine_whose_certificate_nobody_trusts_is_not_spoken_to(self) -> None:
        with self.running(trusted=False) as (running, engine), running.connect() as client:
            client.request("POST", CHAT, STREAM)
            with self.assertRaises(OSError):
                engine.take()
            answer = client.read_response()
            self.assertEqual((answer.status, answer.error), (502, "backend_error"))
            self.assertIn("TLS", answer.json()["message"])

    def test_a_tls_engine_that_never_shakes_hands_costs_the_connect_timeout(self) -> None:
        with ScriptedEngine() as engine:  # plain TCP: takes the client's hello and stays silent
            url = engine.url.replace("http:", "https:")
            with gateway(ENGINES=f"m={url}", RETRY_ATTEMPTS=1, CONNECT_TIMEOUT="0.2") as running:
                answer = running.post({**HI, "model": "m"})
                self.assertEqual((answer.status, answer.error), (502, "backend_unavailable"))

    def test_a_probe_speaks_tls_and_checks_the_certificate(self) -> None:
        with ScriptedEngine(self.context) as engine:
            spec = EngineSpec(engine.url)
            results: list[Optional[str]] = []

            def run() -> None:
                results.append(probe(spec, 5.0))

            with mock.patch.dict(os.environ, {"SSL_CERT_FILE": str(self.certificate)}):
                thread = threading.Thread(target=run, name="probe")
                thread.start()
                side = engine.accept()
                side.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                thread.join(TIMEOUT_S)
            self.assertEqual(results, [None])
            thread = threading.Thread(target=run, name="probe")
            thread.start()
            with self.assertRaises(OSError):
                engine.accept()
            thread.join(TIMEOUT_S)
            self.assertIn("TLS", results[1] or "")


if __name__ == "__main__":
    unittest.main()
