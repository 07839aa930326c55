"""How a stream ends, over real sockets: when every choice has its reason, whatever its engine does is a good end."""

from __future__ import annotations

import contextlib
import threading
import time
import unittest
from collections.abc import Iterator
from typing import Any, Callable, Optional
from unittest import mock

from gateway.server import relay as relay_module
from inference import GatewayError, InferenceFactory
from tests.onloop import OnLoopTest
from tests.resilience import ask
from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked, delta
from tests.support import CHAT, COMPLETIONS, TIMEOUT_S, RawClient, RunningGateway, chunk_of, eventually, request_bytes

STREAM = ask(stream=True)
DONE_EVENT = "data: [DONE]"
FIRST, LAST = delta("a"), delta("b", "stop")
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}}\n\n'
FOR_EVER_S = 600.0  # nothing in here waits for it
SOON_S = 0.05

Ending = Callable[[EngineSide], None]


def sends(data: bytes) -> Ending:
    """The engine sends this, and then nothing, without an end."""
    return lambda side: side.send(data)


def sends_and_closes(data: bytes) -> Ending:
    def end(side: EngineSide) -> None:
        side.send(data)
        side.close()

    return end


# What ends a stream at once.
BREAKS: dict[str, Ending] = {
    "the body's end": sends(b"0\r\n\r\n"),
    "the connection's end": lambda side: side.close(),
    "a reset": lambda side: side.reset(),
    "a chunk that is none": sends(b"zz\r\n"),
    "an event that is no JSON": sends(chunked(b"data: {]\n\n")),
    "an event that is no object": sends(chunked(b"data: 1\n\n")),
    "an error event": sends(chunked(b'data: {"error": {"message": "too late"}}\n\n')),
    "an event that is too large": sends(chunked(b"data: " + b"x" * 2000)),
    "an end in an event": sends_and_closes(chunked(b'data: {"cho')),
    "the body's end in an event": sends(chunked(b'data: {"cho') + b"0\r\n\r\n"),
    "an end in a chunk": sends_and_closes(b"50\r\ndata: "),
    "trailers that are none": sends(b"0\r\nno trailer\r\n\r\n"),
}
# Of these, what says something: more was to come.
SAYS = (
    "an event that is no JSON",
    "an event that is no object",
    "an error event",
    "an event that is too large",
    "the body's end in an event",
)
KEPT = ("the body's end", "the body's end in an event")  # the engine's connection, for another request
# What ends it only when its engine has had its time.
HANGS: dict[str, Ending] = {
    "silence": lambda side: None,
    "half an event": sends(chunked(b'data: {"cho')),
    "half a chunk": sends(b"50\r\ndata: "),
}


class EndsTest(OnLoopTest):
    def setUp(self) -> None:
        super().setUp()
        sweep_often = mock.patch.object(relay_module, "SWEEP_S", 0.02)
        sweep_often.start()
        self.addCleanup(sweep_often.stop)

    def front(self, grace_s: float, **variables: object) -> tuple[RunningGateway, ScriptedEngine]:
        """A gateway in front of one engine, of which a single failure would be seen."""
        variables = {"MAX_EVENT_BYTES": 1024, **variables}
        return self.one_engine(
            STREAM_END_GRACE=grace_s, BREAKER_MIN_REQUESTS=1, BREAKER_FAILURE_RATIO=0.01, **variables
        )

    def opened(
        self, running: RunningGateway, engine: ScriptedEngine, body: Any = None, side: Optional[EngineSide] = None
    ) -> tuple[RawClient, EngineSide]:
        """A stream whose first event the client has."""
        client = self.begin(running, STREAM if body is None else body, [("X-Request-ID", "it")])
        side = engine.take() if side is None else side.read_request()
        side.send(STREAM_HEAD + chunked(FIRST))
        client.read_head()
        self.assertEqual(client.read_event(), FIRST.decode().strip())
        return client, side

    def rest(self, client: RawClient) -> bytes:
        """What the client still gets of its stream, byte for byte."""
        return b"".join(event.encode() + b"\n\n" for event in client.read_events())

    def assert_good(self, running: RunningGateway, tokens: Optional[int] = None) -> None:
        """The request and its engine have done well, and nothing is held."""
        line = running.request_line("it")
        self.assertEqual((line["status"], line["error"], line["attempts"]), (200, None, 1))
        if tokens is not None:
            self.assertEqual((line["completion_tokens"], line["usage_estimated"]), (tokens, False))
        self.assertEqual(self.states(running), ["up"])
        self.assertIsNone(running.app.factory.engines()[0].last_error)
        eventually(lambda: running.app.pipeline.in_flight == 0)
        attempts = {k: v for k, v in running.metrics().items() if k.startswith("gateway_engine_requests_total")}
        self.assertEqual([(k.count('outcome="ok"'), v) for k, v in attempts.items()], [(1, 1)], attempts)
        self.assert_nothing_held(running)

    def assert_broken(self, running: RunningGateway, client: RawClient) -> None:
        *events, last = client.read_events()
        self.assertEqual(events, [])
        self.assertEqual(chunk_of(last)["error"], "backend_error")
        self.assertEqual(running.request_line("it")["error"], "backend_error")
        self.assertEqual(self.states(running), ["open"])


class GoodEndTest(EndsTest):
    def test_what_breaks_a_complete_stream_is_a_good_end_at_once(self) -> None:
        for name, end in BREAKS.items():
            with self.subTest(name):
                running, engine = self.front(FOR_EVER_S)
                client, side = self.opened(running, engine)
                side.send(chunked(LAST))
                self.assertEqual(client.read_event(), LAST.decode().strip())
                end(side)
                self.assertEqual(self.rest(client), DONE)
                self.assert_good(running)
                # The client's connection goes on.
                client.request("POST", CHAT, STREAM)
                side = side.read_request() if name in KEPT else engine.take()
                side.send(STREAM_HEAD + chunked(LAST + DONE) + b"0\r\n\r\n")
                client.read_head()
                self.assertEqual(self.rest(client), LAST + DONE)

    def test_so_it_is_when_it_comes_in_one_piece_with_the_reason(self) -> None:
        pieces = {
            "a chunk that is none": chunked(LAST) + b"zz\r\n",
            "an error event": chunked(LAST + b'data: {"error": "late"}\n\n'),
            "an event that is no JSON": chunked(LAST + b"data: {]\n\n" + FIRST),
            "the body's end": chunked(LAST) + b"0\r\n\r\n",
            "the body's end in an event": chunked(LAST + b"data: {") + b"0\r\n\r\n",
            "[DONE] and a chunk that is none": chunked(LAST + DONE) + b"zz\r\n",
        }
        for name, piece in pieces.items():
            with self.subTest(name):
                running, engine = self.front(FOR_EVER_S)
                client, side = self.opened(running, engine)
                side.send(piece)
                self.assertEqual(self.rest(client), LAST + DONE)
                self.assert_good(running)

    def test_so_it_is_when_the_first_event_is_the_last(self) -> None:
        behind = {
            "silence": b"",
            "an error event": chunked(b'data: {"error": "late"}\n\n'),
            "the body's end": b"0\r\n\r\n",
            "half an event": chunked(b"data: {"),
        }
        for name, data in behind.items():
            for pause in (False, True):
                with self.subTest(name, pause=pause):
                    running, engine = self.front(SOON_S)
                    client = self.begin(running, STREAM, [("X-Request-ID", "it")])
                    side = engine.take()
                    side.send(STREAM_HEAD + chunked(LAST) + (b"" if pause else data))
                    client.read_head()
                    if pause:
                        self.assertEqual(client.read_event(), LAST.decode().strip())
                        side.send(data)
                    self.assertEqual(self.rest(client), DONE if pause else LAST + DONE)
                    self.assert_good(running)

    def test_an_engine_that_hangs_then_is_left_after_the_grace(self) -> None:
        for name, end in HANGS.items():
            with self.subTest(name):
                running, engine = self.front(SOON_S)
                client, side = self.opened(running, engine)
                side.send(chunked(LAST))
                end(side)
                self.assertEqual(self.rest(client), LAST + DONE)
                self.assertTrue(side.wait_until_left())
                self.assert_good(running)

    def test_an_engine_that_sends_comments_for_ever_is_left_after_the_grace(self) -> None:
        self.see_comments_for_ever(SOON_S)

    def test_so_is_one_that_could_say_more_choices_after_the_time_that_a_stream_may_be_silent(self) -> None:
        self.see_comments_for_ever(FOR_EVER_S, ask(stream=True, n=2), STREAM_IDLE_TIMEOUT=0.2)

    def see_comments_for_ever(self, grace_s: float, request: Any = STREAM, **variables: object) -> None:
        running, engine = self.front(grace_s, **variables)
        client, side = self.opened(running, engine, request)

        def comment() -> None:
            with contextlib.suppress(OSError):
                while True:
                    side.send(chunked(b": still here\n\n"))

        side.send(chunked(LAST))
        thread = threading.Thread(target=comment, name="engine")
        thread.start()
        events = client.read_events()
        thread.join(TIMEOUT_S)
        self.assertFalse(thread.is_alive())  # its connection has been closed
        self.assertEqual([e for e in events if e != ": still here"], [LAST.decode().strip(), DONE_EVENT])
        self.assertEqual(events[-1], DONE_EVENT)
        self.assert_good(running)

    def test_nothing_comes_behind_the_gateway_s_own_end(self) -> None:
        running, engine = self.front(SOON_S)
        client, side = self.opened(running, engine)
        side.send(chunked(LAST))
        self.assertEqual(self.rest(client), LAST + DONE)
        with contextlib.suppress(OSError):
            side.send(chunked(USAGE + DONE) + b"0\r\n\r\n")
        self.assertTrue(side.wait_until_left())
        client.assert_quiet()
        client.request("POST", CHAT, STREAM)
        engine.take().send(STREAM_HEAD + chunked(LAST + DONE) + b"0\r\n\r\n")  # on another connection
        client.read_head()
        self.assertEqual(self.rest(client), LAST + DONE)

    def test_usage_and_the_engine_s_own_end_are_waited_for(self) -> None:
        running, engine = self.front(FOR_EVER_S)
        client, side = self.opened(running, engine, ask(stream=True, stream_options={"include_usage": True}))
        side.send(chunked(LAST))
        self.assertEqual(client.read_event(), LAST.decode().strip())
        side.send(chunked(delta("")))  # whatever comes is passed on
        side.send(chunked(USAGE))
        self.assertEqual(client.read_event(), delta("").decode().strip())
        self.assertEqual(client.read_event(), USAGE.decode().strip())
        side.send(chunked(DONE) + b"0\r\n\r\n")
        self.assertEqual(self.rest(client), DONE)
        self.assert_good(running, tokens=5)
        self.opened(running, engine, side=side)  # the connection is kept

    def test_usage_that_came_before_the_break_counts(self) -> None:
        running, engine = self.front(FOR_EVER_S)
        client, side = self.opened(running, engine)
        side.send(chunked(LAST + USAGE))
        self.assertEqual(client.read_event(), LAST.decode().strip())
        side.close()
        self.assertEqual(self.rest(client), DONE)
        self.assert_good(running, tokens=5)

    def test_an_event_left_open_is_closed_before_the_end(self) -> None:
        for line in (LAST[:-1], LAST[:-2] + b"\r\n", LAST + b": ping\n"):
            with self.subTest(line):
                running, engine = self.front(FOR_EVER_S)
                client, side = self.opened(running, engine)
                side.send(chunked(line))
                side.close()
                events = client.read_events()
                self.assertEqual("\n\n".join(events).encode() + b"\n\n", line + b"\n" + DONE)
                self.assert_good(running)

    def test_a_client_of_http_1_0(self) -> None:
        for name, end in {**HANGS, "a reset": BREAKS["a reset"]}.items():
            with self.subTest(name):
                running, engine = self.front(SOON_S)
                client = self.enter(running.connect())
                client.send(request_bytes("POST", CHAT, STREAM, [("X-Request-ID", "it")], version="HTTP/1.0"))
                side = engine.take()
                side.send(STREAM_HEAD + chunked(FIRST))
                client.read_head()
                self.assertEqual(client.read_event(), FIRST.decode().strip())
                side.send(chunked(LAST))
                self.assertEqual(client.read_event(), LAST.decode().strip())
                end(side)
                self.assertEqual(self.rest(client), DONE)
                client.assert_closed()
                self.assert_good(running)

    def test_engines_that_frame_their_bodies_otherwise(self) -> None:
        heads = {
            "until the end": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
            "by length": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999\r\n\r\n",
        }
        for name, head in heads.items():
            for end in ("silence", "reset", "close"):
                with self.subTest(name, end=end):
                    running, engine = self.front(SOON_S if end == "silence" else FOR_EVER_S)
                    client = self.begin(running, STREAM, [("X-Request-ID", "it")])
                    side = engine.take()
                    side.send(head + FIRST)
                    client.read_head()
                    client.read_event()
                    side.send(LAST)
                    self.assertEqual(client.read_event(), LAST.decode().strip())
                    if end != "silence":
                        getattr(side, end)()
                    self.assertEqual(self.rest(client), DONE)
                    self.assert_good(running)

    def test_every_choice_that_was_asked_for(self) -> None:
        one, two = delta("b", "stop", 0), delta("c", "stop", 1)
        for path, body in (
            (CHAT, ask(stream=True, n=2)),
            (COMPLETIONS, {"model": "m", "prompt": ["x", "y"], "stream": True}),
        ):
            with self.subTest(path):
                running, engine = self.front(SOON_S)
                client = self.enter(running.connect())
                client.request("POST", path, body, [("X-Request-ID", "it")])
                side = engine.take()
                side.send(STREAM_HEAD + chunked(FIRST + one))
                client.read_head()
                client.read_event()
                self.assertEqual(client.read_event(), one.decode().strip())
                side.send(chunked(two))
                self.assertEqual(self.rest(client), two + DONE)
                self.assert_good(running)

    def test_fewer_choices_than_were_asked_for(self) -> None:
        for path, body in (
            (CHAT, ask(stream=True, n=3)),
            (COMPLETIONS, {"model": "m", "prompt": ["x", "y"], "stream": True}),
        ):
            for name, end in {**BREAKS, "silence": HANGS["silence"]}.items():
                with self.subTest(path, name=name):
                    running, engine = self.front(0.001, STREAM_IDLE_TIMEOUT=1.0 if name == "silence" else FOR_EVER_S)
                    client = self.enter(running.connect())
                    client.request("POST", path, body, [("X-Request-ID", "it")])
                    side = engine.take()
                    side.send(STREAM_HEAD + chunked(FIRST))
                    client.read_head()
                    client.read_event()
                    side.send(chunked(LAST))
                    self.assertEqual(client.read_event(), LAST.decode().strip())
                    end(side)
                    if name not in SAYS:
                        self.assertEqual(self.rest(client), DONE)
                        self.assert_good(running)
                        continue
                    self.assert_broken(running, client)

    def test_they_may_come_with_what_breaks_the_stream(self) -> None:
        running, engine = self.front(FOR_EVER_S)
        client = self.begin(running, ask(stream=True, n=3), [("X-Request-ID", "it")])
        engine.take().send(STREAM_HEAD + chunked(FIRST + LAST) + b"zz\r\n")
        client.read_head()
        self.assertEqual(self.rest(client), FIRST + LAST + DONE)
        self.assert_good(running)

    def test_choices_that_come_one_after_another_are_waited_for(self) -> None:
        running, engine = self.front(0.001)
        client, side = self.opened(running, engine, ask(stream=True, n=2))
        side.send(chunked(LAST))
        self.assertEqual(client.read_event(), LAST.decode().strip())
        self.assertFalse(side.wait_until_left(0.2))
        side.sock.settimeout(TIMEOUT_S)
        second = delta("c", index=1), delta("", "stop", 1)
        side.send(chunked(b"".join(second) + DONE) + b"0\r\n\r\n")
        self.assertEqual(self.rest(client), b"".join(second) + DONE)
        self.assert_good(running)

    def test_idle_time_that_is_shorter_than_the_grace(self) -> None:
        running, engine = self.front(FOR_EVER_S, STREAM_IDLE_TIMEOUT=0.05)
        client = self.begin(running, STREAM, [("X-Request-ID", "it")])
        engine.take().send(STREAM_HEAD + chunked(FIRST + LAST))
        client.read_head()
        self.assertEqual(self.rest(client), FIRST + LAST + DONE)
        self.assert_good(running)

    def test_a_stream_that_could_go_on_elsewhere_does_not(self) -> None:
        first, second = self.scripted(), self.scripted()
        specs = [{"url": engine.url, "resume": True} for engine in (first, second)]
        for name, end in BREAKS.items():
            with self.subTest(name):
                running = self.serve({"m": {"engines": specs}}, STREAM_END_GRACE=FOR_EVER_S, MAX_EVENT_BYTES=1024)
                client, side = self.opened(running, first)
                side.send(chunked(LAST))
                self.assertEqual(client.read_event(), LAST.decode().strip())
                end(side)
                self.assertEqual(self.rest(client), DONE)
                self.assertEqual(running.request_line("it")["attempts"], 1)
        self.assertTrue(second.nobody_waits())

    def test_a_stream_that_has_gone_on_ends_like_any_other(self) -> None:
        first, second = self.scripted(), self.scripted()
        specs = [{"url": engine.url, "resume": True} for engine in (first, second)]
        for name, end in {"silence": HANGS["silence"], "a reset": BREAKS["a reset"]}.items():
            with self.subTest(name):
                running = self.serve({"m": {"engines": specs}}, STREAM_END_GRACE=SOON_S)
                client, side = self.opened(running, first)
                side.close()
                other = second.take()
                other.send(STREAM_HEAD + chunked(LAST))
                self.assertIn('"b"', client.read_event() or "")
                end(other)
                self.assertEqual(self.rest(client), DONE)
                self.assertEqual(running.request_line("it")["error"], None)

    def test_a_client_that_leaves_within_the_grace(self) -> None:
        running, engine = self.front(FOR_EVER_S)
        client, side = self.opened(running, engine)
        side.send(chunked(LAST))
        client.read_event()
        client.close()
        self.assertTrue(side.wait_until_left())
        self.assertEqual(running.request_line("it")["status"], 499)
        self.assertEqual(self.states(running), ["up"])
        self.assert_nothing_held(running)

    def test_a_gateway_that_stops_within_the_grace_ends_it_well(self) -> None:
        running, engine = self.front(FOR_EVER_S)
        client, side = self.opened(running, engine)
        side.send(chunked(LAST))
        self.assertEqual(client.read_event(), LAST.decode().strip())
        running.stop(0)
        self.assertEqual(self.rest(client), DONE)
        client.assert_closed()
        self.assertTrue(side.wait_until_left())
        line = running.request_line("it")
        self.assertEqual((line["status"], line["error"]), (200, None))


class BadEndTest(EndsTest):
    def test_before_the_reason_each_of_them_is_an_error(self) -> None:
        for name, end in BREAKS.items():
            with self.subTest(name):
                running, engine = self.front(SOON_S)
                client, side = self.opened(running, engine)
                end(side)
                self.assert_broken(running, client)

    def test_before_the_reason_silence_is_an_error_and_not_after_the_grace(self) -> None:
        for name, end in HANGS.items():
            with self.subTest(name):
                running, engine = self.front(0.001, STREAM_IDLE_TIMEOUT=0.2)
                client, side = self.opened(running, engine)
                end(side)
                self.assert_broken(running, client)

    def test_one_choice_of_two_is_not_the_end(self) -> None:
        running, engine = self.front(0.001, STREAM_IDLE_TIMEOUT=0.2)
        client, side = self.opened(running, engine, ask(stream=True, n=2))
        side.send(chunked(delta("b", index=1) + LAST))
        self.assertEqual(client.read_event(), delta("b", index=1).decode().strip())
        self.assertEqual(client.read_event(), LAST.decode().strip())
        self.assert_broken(running, client)


class LibraryTest(OnLoopTest):
    @contextlib.contextmanager
    def answering(self, engine: ScriptedEngine, end: Ending, *, first: bytes = FIRST) -> Iterator[None]:
        """The engine answers one stream and ends like this."""
        sides: list[EngineSide] = []
        ready = threading.Event()

        def run() -> None:
            side = engine.take()
            sides.append(side)
            side.send(STREAM_HEAD + chunked(first + LAST))
            ready.wait(TIMEOUT_S)
            with contextlib.suppress(OSError):
                end(side)

        self.ready = ready
        thread = threading.Thread(target=run, name="engine")
        thread.start()
        yield
        thread.join(TIMEOUT_S)
        for side in sides:
            self.assertTrue(side.sock.fileno() < 0 or side.wait_until_left())

    def texts(self, factory: InferenceFactory, **options: Any) -> list[str]:
        found = []
        for chunk in factory.stream([{"role": "user", "content": "hi"}], **options):
            found.append(chunk["choices"][0]["delta"]["content"] if chunk["choices"] else "usage")
            if len(found) == 2:
                self.ready.set()
        return found

    def test_a_complete_stream_ends_well_whatever_its_engine_does(self) -> None:
        for name, end in {**BREAKS, **HANGS}.items():
            with self.subTest(name):
                engine = self.scripted()
                grace_s = SOON_S if name in HANGS else FOR_EVER_S
                factory = self.enter(
                    InferenceFactory(
                        {"m": [engine.url]}, stream_end_grace_s=grace_s, health_interval_s=0, max_event_bytes=1024
                    )
                )
                with self.answering(engine, end):
                    self.assertEqual(self.texts(factory), ["a", "b"])
                    if name in KEPT:
                        factory.close()
                self.assertEqual((factory.engines()[0].state, factory.engines()[0].last_error), ("up", None))
                self.assertEqual(factory.engines()[0].in_flight, 0)

    def test_so_does_one_with_fewer_choices_than_were_asked_for(self) -> None:
        for name in ("a reset", "a chunk that is none", "silence"):
            with self.subTest(name):
                engine = self.scripted()
                factory = self.enter(
                    InferenceFactory({"m": [engine.url]}, stream_idle_timeout_s=0.2, health_interval_s=0)
                )
                with self.answering(engine, {**BREAKS, **HANGS}[name]):
                    self.assertEqual(self.texts(factory, n=3), ["a", "b"])
                self.assertIsNone(factory.engines()[0].last_error)

    def test_comments_for_ever_do_not_keep_it_open(self) -> None:
        engine = self.scripted()
        factory = self.enter(InferenceFactory({"m": [engine.url]}, stream_end_grace_s=SOON_S, health_interval_s=0))

        def comment(side: EngineSide) -> None:
            while True:
                side.send(chunked(b": still here\n\n"))

        with self.answering(engine, comment):
            self.assertEqual(self.texts(factory), ["a", "b"])
        self.assertIsNone(factory.engines()[0].last_error)

    def test_who_takes_its_time_still_gets_what_has_come(self) -> None:
        engine = self.scripted()
        factory = self.enter(InferenceFactory({"m": [engine.url]}, stream_end_grace_s=FOR_EVER_S, health_interval_s=0))
        options = {"stream_options": {"include_usage": True}}
        more, sent = threading.Event(), threading.Event()

        def end(side: EngineSide) -> None:
            side.send(chunked(delta("")))
            more.wait(TIMEOUT_S)
            side.send(chunked(USAGE))
            sent.set()

        with self.answering(engine, end):
            stream = factory.stream([{"role": "user", "content": "hi"}], **options)
            chunks = [next(stream), next(stream)]
            self.ready.set()
            chunks.append(next(stream))  # from now on the engine's time counts
            more.set()
            self.assertTrue(sent.wait(TIMEOUT_S))
            late = mock.Mock(monotonic=lambda: time.monotonic() + 2 * FOR_EVER_S)
            with mock.patch("gateway.upstream.stream.time", late):
                chunks += list(stream)
        self.assertEqual(len(chunks), 4)
        self.assertEqual(chunks[-1]["usage"]["completion_tokens"], 5)

    def test_before_the_reason_an_end_is_an_error(self) -> None:
        engine = self.scripted()
        factory = self.enter(InferenceFactory({"m": [engine.url]}, retry_attempts=1, health_interval_s=0))
        seen = []

        def run() -> None:
            side = engine.take()
            side.send(STREAM_HEAD + chunked(FIRST))
            side.close()

        thread = threading.Thread(target=run, name="engine")
        thread.start()
        with self.assertRaises(GatewayError):
            for chunk in factory.stream([{"role": "user", "content": "hi"}]):
                seen.append(chunk)
        thread.join(TIMEOUT_S)
        self.assertEqual(len(seen), 1)


if __name__ == "__main__":
    unittest.main()
