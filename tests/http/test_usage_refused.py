"""Engines that refuse to be asked for a stream's usage: asked again without, and not asked for it from then on."""

from __future__ import annotations

import json
import threading
import unittest
from collections.abc import Iterable
from typing import Any, Optional

from gateway.settings import reload
from gateway.upstream.call import Call
from inference import InferenceFactory
from tests.http.test_without_epoll import WithoutEpoll
from tests.onloop import OnLoopTest
from tests.resilience import ask, fleet
from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked, delta
from tests.support import COMPLETIONS, TIMEOUT_S, Header, RawClient, RunningGateway, content_of, eventually

LAST_CHUNK = b"0\r\n\r\n"
ASKED = {"include_usage": True}
EXTRA = {"type": "extra_forbidden", "msg": "Extra inputs are not permitted"}

# As servers say it: OpenAI of old, Mistral, FastAPI, vLLM of old, Azure, Databricks, a list, a text.
REFUSALS: list[tuple[str, Any]] = [
    ("400 Bad Request", {"error": {"message": "Unrecognized request argument supplied: stream_options", "code": None}}),
    ("400 Bad Request", {"error": {"message": "Unknown parameter", "param": "stream_options.include_usage"}}),
    (
        "422 Unprocessable Entity",
        {"object": "error", "message": {"detail": [{**EXTRA, "loc": ["body", "stream_options", "include_usage"]}]}},
    ),
    ("422 Unprocessable Entity", {"detail": [{**EXTRA, "loc": ["body", "stream_options"], "input": ASKED}]}),
    (
        "400 Bad Request",
        {"object": "error", "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'stream_options')}]", "code": 400},
    ),
    ("400 Bad Request", {"error": {"message": "Validation error at #/stream_options: Extra inputs are not permitted"}}),
    ("400 Bad Request", {"error_code": "BAD_REQUEST", "message": 'Stream option "include_usage" not supported'}),
    ("400 Bad Request", [{"error": {"code": 400, "message": 'Unknown name "stream_options": Cannot find field.'}}]),
    ("501 Not Implemented", {"error": "stream_options is not implemented"}),
    ("500 Internal Server Error", {"error": "create() got an unexpected keyword argument 'stream_options'"}),
    ("404 Not Found", "no such parameter: stream options"),
]
REFUSAL = REFUSALS[0]


class UsageRefused(OnLoopTest):
    def refuse(self, side: EngineSide, refusal: tuple[str, Any] = REFUSAL) -> EngineSide:
        """Answer so, and wait for what is asked next on this connection."""
        status, said = refusal
        side.answer(said.encode() if isinstance(said, str) else json.dumps(said).encode(), status=status)
        return side

    def stream(self, side: EngineSide, *more: bytes) -> None:
        """Answer with a whole stream."""
        side.send(STREAM_HEAD + b"".join(map(chunked, (delta("fine", "stop"), *more, DONE))) + LAST_CHUNK)

    def refused_once(self, running: RunningGateway, engine: ScriptedEngine) -> EngineSide:
        """An engine that has refused to be asked for usage, and has answered without."""
        client = self.begun(running)
        side = self.refuse(engine.take()).read_request()
        self.stream(side)
        self.assert_streamed(running, client, attempts=2)
        return side

    def assert_streamed(self, running: RunningGateway, client: RawClient, attempts: int = 1) -> list[str]:
        """The client gets all of it; then the engine's connection is kept for the next."""
        head = client.read_head()
        self.assertEqual((head.status, head.header("x-gateway-attempts")), (200, str(attempts)))
        events = client.read_events()
        self.assertEqual((content_of(events), events[-1]), ("fine", "data: [DONE]"))
        self.assert_nothing_held(running)
        return events

    def begun(self, running: RunningGateway, headers: Iterable[Header] = (), **options: Any) -> RawClient:
        return self.begin(running, ask(stream=True, **options), headers)

    def assert_blameless(self, running: RunningGateway) -> None:
        """Nothing is held against any engine, and no retry was taken from the budget."""
        self.assertEqual(set(self.states(running)), {"up"})
        self.assertEqual(self.changes(running), [])
        metrics = running.metrics()
        self.assertFalse(
            [name for name, value in metrics.items() if name.startswith("gateway_retries_total") and value]
        )
        outcomes = [name for name, value in metrics.items() if name.startswith("gateway_engine_requests") and value]
        self.assertTrue(all('outcome="ok"' in name for name in outcomes), outcomes)

    def test_the_client_sees_a_stream_and_the_next_is_not_asked_for_usage(self) -> None:
        running, engine = self.one_engine()
        client = self.begun(running, [("X-Request-ID", "first")])
        side = engine.take()
        self.assertEqual(side.json["stream_options"], ASKED)
        self.refuse(side).read_request()
        self.assertNotIn("stream_options", side.json)
        self.assertEqual(side.json, ask(stream=True))
        self.assertIn(b"X-Request-ID: first", side.head)
        self.stream(side)
        self.assert_streamed(running, client, attempts=2)
        line = running.request_line("first")
        self.assertEqual((line["status"], line["attempts"], line["usage_estimated"]), (200, 2, True))
        for _ in range(2):
            client = self.begun(running)
            self.assertEqual(side.read_request().json, ask(stream=True))
            self.stream(side)
            self.assert_streamed(running, client)
        self.assertTrue(engine.nobody_waits())
        self.assert_blameless(running)

    def test_every_way_to_say_so_is_understood(self) -> None:
        for refusal in REFUSALS:
            with self.subTest(refusal=refusal):
                running, engine = self.one_engine()
                client = self.begun(running)
                side = self.refuse(engine.take(), refusal)
                self.assertNotIn("stream_options", side.read_request().json)
                self.stream(side)
                self.assert_streamed(running, client, attempts=2)
                self.assert_blameless(running)

    def test_a_refusal_that_closes_its_connection_is_understood(self) -> None:
        running, engine = self.one_engine()
        client = self.begun(running)
        side = engine.take()
        side.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nunknown field stream_options")
        side.close()
        side = engine.take()
        self.assertNotIn("stream_options", side.json)
        self.stream(side)
        self.assert_streamed(running, client, attempts=2)

    def test_what_else_the_client_wants_of_a_stream_goes_on_as_it_was(self) -> None:
        for options in ({"chunk_size": 3}, {"include_usage": False}, {}):
            running, engine = self.one_engine()
            with self.subTest(options=options):
                for number in range(2):
                    client = self.begun(running, stream_options=options)
                    if not number:
                        side = engine.take()
                        self.assertEqual(side.json["stream_options"], {**options, **ASKED})
                        self.refuse(side)
                    self.assertEqual(side.read_request().json["stream_options"], options)
                    self.stream(side)
                    self.assert_streamed(running, client, attempts=2 - number)

    def test_what_the_client_itself_has_asked_for_is_refused_to_the_client(self) -> None:
        running, engine = self.one_engine()
        client = self.begun(running, stream_options=ASKED)
        side = self.refuse(engine.take())
        answer = client.read_response()
        self.assert_error(answer, 400, "backend_rejected")
        self.assertIn("stream_options", answer.json()["message"])
        self.assertEqual(answer.header("x-gateway-attempts"), "1")
        # And nothing is remembered for those who have not.
        client = self.begun(running)
        self.assertEqual(side.read_request().json["stream_options"], ASKED)
        self.stream(side)
        self.assert_streamed(running, client)
        self.assertEqual((self.states(running), self.changes(running)), (["up"], []))

    def test_the_client_may_still_ask_when_it_is_known(self) -> None:
        running, engine = self.one_engine()
        side = self.refused_once(running, engine)
        client = self.begun(running, stream_options=ASKED)
        self.assertEqual(side.read_request().json["stream_options"], ASKED)
        self.refuse(side)
        self.assert_error(client.read_response(), 400, "backend_rejected")
        self.assertTrue(engine.nobody_waits())

    def test_the_second_answer_counts_and_a_refusal_that_stays_teaches_nothing(self) -> None:
        running, engine = self.one_engine()
        side: Optional[EngineSide] = None
        for said in ({"error": {"message": "the prompt: what are stream_options?"}}, {"error": "no such model"}):
            client = self.begun(running)
            side = engine.take() if side is None else side.read_request()
            self.assertEqual(side.json["stream_options"], ASKED)
            self.refuse(side)
            self.assertNotIn("stream_options", side.read_request().json)
            self.refuse(side, ("422 Unprocessable Entity", said))
            answer = client.read_response()
            self.assert_error(answer, 422, "backend_rejected")
            self.assertEqual(answer.header("x-gateway-attempts"), "2")
        assert side is not None
        client = self.begun(running)
        self.assertEqual(side.read_request().json["stream_options"], ASKED)
        self.stream(side)
        self.assert_streamed(running, client)

    def test_a_second_answer_that_is_the_engines_failure_goes_to_another_engine(self) -> None:
        first, second = self.scripted(), self.scripted()
        running = self.serve({"m": {"engines": [first.url, second.url]}})
        client = self.begun(running)
        side = self.refuse(first.take()).read_request()
        side.answer(b"{}", status="503 Service Unavailable")
        other = second.take()
        self.assertEqual(other.json["stream_options"], ASKED)
        self.stream(other)
        self.assert_streamed(running, client, attempts=3)

    def test_each_engine_is_remembered_for_itself(self) -> None:
        first, second = self.scripted(), self.scripted()
        running = self.serve({"m": {"engines": [first.url, second.url]}})
        client = self.begun(running)
        one = self.refuse(first.take()).read_request()
        self.stream(one)
        self.assert_streamed(running, client, attempts=2)
        client = self.begun(running)
        two = second.take()
        self.assertEqual(two.json["stream_options"], ASKED)
        self.stream(two)
        self.assert_streamed(running, client)
        client = self.begun(running)
        self.assertNotIn("stream_options", one.read_request().json)
        self.stream(one)
        self.assert_streamed(running, client)

    def test_a_rejection_that_names_neither_is_passed_on(self) -> None:
        running, engine = self.one_engine()
        client = self.begun(running)
        self.refuse(engine.take(), ("400 Bad Request", {"error": {"message": "unknown field: stream"}}))
        answer = client.read_response()
        self.assert_error(answer, 400, "backend_rejected")
        self.assertEqual(answer.header("x-gateway-attempts"), "1")

    def test_who_is_not_a_stream_is_asked_once(self) -> None:
        running, engine = self.one_engine()
        client = self.begin(running)
        side = engine.take()
        self.assertNotIn("stream_options", side.json)
        self.refuse(side)
        self.assert_error(client.read_response(), 400, "backend_rejected")
        self.assertTrue(engine.nobody_waits())

    def test_a_completion_is_asked_again_as_well(self) -> None:
        running, engine = self.one_engine()
        client = self.enter(running.connect())
        client.request("POST", COMPLETIONS, {"prompt": "hi", "stream": True})
        side = engine.take()
        self.assertEqual(side.json["stream_options"], ASKED)
        self.assertNotIn("stream_options", self.refuse(side).read_request().json)
        event = b'data: {"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}\n\n'
        side.send(STREAM_HEAD + chunked(event + DONE) + LAST_CHUNK)
        self.assertEqual(client.read_head().status, 200)
        self.assertEqual(client.read_events()[-1], "data: [DONE]")

    def test_an_engine_of_which_it_is_said_is_never_asked_for_usage(self) -> None:
        engine = self.scripted()
        running = self.serve({"m": {"engines": [{"url": engine.url, "model": "its-own", "usage_in_streams": False}]}})
        client = self.begun(running)
        side = engine.take()
        self.assertEqual(side.json, {**ask(stream=True), "model": "its-own"})
        # One that tells it all the same is read, and the client sees what it has asked for.
        usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
        self.stream(side, b"data: %b\n\n" % json.dumps(usage).encode())
        events = self.assert_streamed(running, client)
        self.assertFalse([event for event in events if "usage" in event])
        line = eventually(running.request_lines)[0]
        self.assertEqual((line["completion_tokens"], line["usage_estimated"]), (4, False))

    def test_the_time_of_the_attempt_covers_both(self) -> None:
        running, engine = self.one_engine(FIRST_TOKEN_TIMEOUT="2")
        client = self.begun(running)
        side = self.refuse(engine.take()).read_request()
        self.assert_error(client.read_response(), 504, "gateway_timeout")
        self.assertTrue(side.wait_until_left())

    def test_a_client_that_leaves_ends_the_second_asking(self) -> None:
        running, engine = self.one_engine()
        client = self.begun(running)
        side = self.refuse(engine.take()).read_request()
        client.close()
        self.assertTrue(side.wait_until_left())
        self.assert_nothing_held(running)

    def test_many_at_once_are_each_answered(self) -> None:
        running, engine = self.one_engine()
        clients = [self.begun(running) for _ in range(4)]
        sides = [engine.take() for _ in clients]
        for side in sides:
            self.assertEqual(side.json["stream_options"], ASKED)
            self.refuse(side)
        for side in sides:
            self.assertNotIn("stream_options", side.read_request().json)
        for side in sides:
            self.stream(side)
        for client in clients:
            self.assert_streamed(running, client, attempts=2)
        self.assert_blameless(running)

    def test_a_reload_that_changes_the_engine_forgets(self) -> None:
        running, engine = self.one_engine()
        side = self.refused_once(running, engine)
        path = running.app.settings.engines_file
        assert path is not None
        for engines, asked in (([engine.url], None), ([{"url": engine.url, "weight": 2}], ASKED)):
            path.write_text(fleet({"m": {"engines": engines}}), "utf-8")
            self.reload(running)
            client = self.begun(running)
            side = side.read_request() if asked is None else engine.take()
            self.assertEqual(side.json.get("stream_options"), asked)
            self.stream(side)
            self.assert_streamed(running, client)

    def reload(self, running: RunningGateway) -> None:
        running.app.reload(reload(running.app.settings, {"ENGINES_FILE": str(running.app.settings.engines_file)}, None))


class Hedged(OnLoopTest):
    def test_of_two_attempts_each_asks_again(self) -> None:
        first, second = self.scripted(), self.scripted()
        models = {"m": {"engines": [first.url, second.url], "hedge_after_ms": 50, "hedge_ratio": 1}}
        running = self.serve(models)
        client = self.begin(running, ask(stream=True))
        one, two = first.take(), second.take()
        for side in (one, two):
            side.answer(json.dumps(REFUSAL[1]).encode(), status=REFUSAL[0])
            self.assertNotIn("stream_options", side.read_request().json)
        two.send(STREAM_HEAD + chunked(delta("second", "stop")) + chunked(DONE) + LAST_CHUNK)
        head = client.read_head()
        self.assertEqual((head.status, head.header("x-gateway-attempts")), (200, "4"))
        self.assertEqual(content_of(client.read_events()), "second")


class Resumed(OnLoopTest):
    def test_an_engine_that_is_to_go_on_with_a_stream_is_asked_again(self) -> None:
        first, second = self.scripted(), self.scripted()
        engines = [{"url": engine.url, "resume": True} for engine in (first, second)]
        running = self.serve({"m": {"engines": engines}})
        client = self.begin(running, ask(stream=True), [("X-Request-ID", "resumed")])
        side = first.take()
        side.send(STREAM_HEAD + chunked(delta("Once ")))
        self.assertEqual(client.read_head().status, 200)
        self.assertIsNotNone(client.read_event())
        side.close()
        other = second.take()
        self.assertEqual(other.json["stream_options"], ASKED)
        other.answer(json.dumps(REFUSAL[1]).encode(), status=REFUSAL[0])
        self.assertNotIn("stream_options", other.read_request().json)
        other.send(STREAM_HEAD + chunked(delta("upon", "stop")) + chunked(DONE) + LAST_CHUNK)
        self.assertEqual(content_of(client.read_events()), "upon")
        line = running.request_line("resumed")
        self.assertEqual((line["resumed"], line["attempts"]), (1, 3))


class Library(OnLoopTest):
    def test_the_librarys_streams_are_asked_again_as_well(self) -> None:
        engine = self.scripted()
        with InferenceFactory({"m": [engine.url]}, health_interval_s=0) as factory:
            chunks: list[dict[str, Any]] = []
            thread = threading.Thread(target=lambda: chunks.extend(factory.stream(ask()["messages"])), name="asking")
            thread.start()
            side = engine.take()
            self.assertEqual(side.json["stream_options"], ASKED)
            side.answer(json.dumps(REFUSAL[1]).encode(), status=REFUSAL[0])
            self.assertNotIn("stream_options", side.read_request().json)
            side.send(STREAM_HEAD + chunked(delta("fine", "stop")) + chunked(DONE) + LAST_CHUNK)
            thread.join(TIMEOUT_S)
        self.assertEqual([chunk["choices"][0]["delta"]["content"] for chunk in chunks], ["fine"])


class Payloads(unittest.TestCase):
    def test_a_body_that_need_not_change_is_sent_as_it_came(self) -> None:
        for request in (
            ask(stream=True),
            ask(stream=True, stream_options=ASKED),
            ask(stream=True, stream_options=None),
        ):
            body = json.dumps(request, indent=3).encode()
            call = Call("/chat/completions", request, body)
            self.assertIs(call.payload("m", False), body)
            self.assertIs(call.payload(None, False), body)
            self.assertEqual(json.loads(call.payload("m", True))["stream_options"], ASKED)
            self.assertEqual(json.loads(call.payload("n", False)), {**request, "model": "n"})


class UsageRefusedWithoutEpoll(WithoutEpoll, UsageRefused):
    pass


del WithoutEpoll

if __name__ == "__main__":
    unittest.main()
