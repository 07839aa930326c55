"""Streams that go on at another engine over real sockets: what the client reads, and what is told of it."""

from __future__ import annotations

import json
import threading
import unittest
from typing import Any, Optional

from tests.parallel import alone
from tests.resilience import ResilienceTest, ask
from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked, delta
from tests.support import CHAT, RawClient, RunningGateway, chunk_of, content_of, eventually

RESUMES = 'gateway_stream_resumes_total{model="m"}'
LAST_CHUNK = b"0\r\n\r\n"


def event(content: Optional[str], finish: Optional[str] = None, **more: Any) -> bytes:
    """One event of a streamed chat answer as an engine with an identity sends it."""
    change = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": {**change, **more.pop("delta", {})}, "finish_reason": finish}
    return b"data: %b\n\n" % json.dumps({"object": "chat.completion.chunk", "choices": [choice], **more}).encode()


def role_event(**more: Any) -> bytes:
    """The first event of many engines."""
    return event("", delta={"role": "assistant"}, **more)


class ResumeTest(ResilienceTest):
    def two(self, *resume: bool, **variables: object) -> RunningGateway:
        """Scripted engines, one for each flag."""
        self.engines = [self.scripted() for _ in resume]
        specs = [{"url": e.url, "resume": flag} for e, flag in zip(self.engines, resume)]
        return self.serve({"m": {"engines": specs}}, **variables)

    def start(
        self, running: RunningGateway, engine: ScriptedEngine, **options: Any
    ) -> tuple[RawClient, EngineSide, list[str]]:
        """A client whose stream has begun with `Once upon`: the client, the engine's side, the events so far."""
        client = self.begin(running, ask(stream=True, **options), [("X-Request-ID", "resumed")])
        side = engine.take()
        side.send(STREAM_HEAD + chunked(role_event(id="a-1", created=7, model="m")))
        side.send(chunked(event("Once ", id="a-1", created=7, model="m")))
        side.send(chunked(event("upon", id="a-1", created=7, model="m")))
        self.assertEqual(client.read_head().status, 200)
        return client, side, [client.read_event() or "" for _ in range(3)]

    def assert_one_stream(self, events: list[str], text: str) -> None:
        """The events are those of one good stream with that text."""
        self.assertEqual(content_of(events), text)
        self.assertEqual(events.count("data: [DONE]"), 1)
        self.assertEqual(events[-1], "data: [DONE]")
        chunks = [chunk_of(e) for e in events[:-1]]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        self.assertEqual(sum(choice["finish_reason"] is not None for choice in choices), 1)
        self.assertEqual(sum("role" in choice["delta"] for choice in choices), 1)
        self.assertEqual({(c["id"], c["created"], c["model"]) for c in chunks}, {("a-1", 7, "m")})

    def assert_broken(self, events: list[str], text: str) -> None:
        """The events end with an error, and nothing is invented."""
        self.assertEqual(chunk_of(events[-1])["error"], "backend_error")
        self.assertEqual(content_of(events[:-1]), text)
        self.assertNotIn("data: [DONE]", events)

    def test_the_client_sees_one_stream(self) -> None:
        running = self.two(True, True)
        client, side, events = self.start(running, self.engines[0], max_tokens=100, temperature=0)
        side.close()
        other = self.engines[1].take()
        asked = other.json
        self.assertEqual(asked["messages"], [*ask()["messages"], {"role": "assistant", "content": "Once upon"}])
        self.assertEqual((asked["continue_final_message"], asked["add_generation_prompt"]), (True, False))
        self.assertEqual((asked["max_tokens"], asked["temperature"], asked["model"]), (97, 0, "m"))
        self.assertIn(b"X-Request-ID: resumed", other.head)
        other.send(STREAM_HEAD + chunked(role_event(id="b-9", created=9, model="other-name")))
        other.send(chunked(event(" a", id="b-9", created=9, model="other-name")))
        events.append(client.read_event() or "")
        self.assertEqual(content_of(events), "Once upon a")
        usage = {"prompt_tokens": 15, "completion_tokens": 4, "total_tokens": 19}
        other.send(chunked(event(" time", "stop", id="b-9", created=9, model="other-name")))
        other.send(chunked(b'data: {"choices": [], "usage": %b}\n\n' % json.dumps(usage).encode() + DONE) + LAST_CHUNK)
        self.assert_one_stream(events + client.read_events(), "Once upon a time")
        line = running.request_line("resumed")
        self.assertEqual((line["status"], line["error"], line["resumed"], line["attempts"]), (200, None, 1, 2))
        self.assertEqual(line["engine"], f"127.0.0.1:{self.engines[1].port}")
        self.assertEqual((line["prompt_tokens"], line["completion_tokens"]), (12, 7))
        metrics = running.metrics()
        self.assertEqual(metrics[RESUMES], 1)
        for engine, outcome in zip(self.engines, ("truncated", "ok")):
            label = f'model="m",engine="127.0.0.1:{engine.port}",outcome="{outcome}"'
            self.assertEqual(metrics[f"gateway_engine_requests_total{{{label}}}"], 1)
        self.assert_nothing_held(running)
        self.assertEqual(client.post(ask(), path="/nowhere").status, 404)  # the connection goes on as well

    def test_every_way_to_break_off(self) -> None:
        breaks = {
            "closed": lambda side: side.close(),
            "reset": lambda side: side.reset(),
            "ended without finishing": lambda side: side.send(LAST_CHUNK),
            "an error event": lambda side: side.send(chunked(b'data: {"error": {"message": "out of memory"}}\n\n')),
            "no JSON": lambda side: side.send(chunked(b"data: {nonsense\n\n")),
            "half an event": lambda side: (side.send(chunked(event(" a ti")[:-30])), side.close()),
            "an event left open": lambda side: (side.send(chunked(event("").rstrip() + b"\n")), side.close()),
            "a reason that is none": lambda side: (
                side.send(chunked(event("", "") + event(None, "null"))),
                side.close(),
            ),
            "an event called error": lambda side: side.send(chunked(b"event: error\ndata: out of memory\n\n")),
        }
        for name, break_off in breaks.items():
            with self.subTest(name):
                running = self.two(True, True)
                client, side, events = self.start(running, self.engines[0])
                break_off(side)
                other = self.engines[1].take()
                self.assertEqual(other.json["messages"][-1]["content"], "Once upon")
                other.send(STREAM_HEAD + chunked(event(" a time", "stop") + DONE) + LAST_CHUNK)
                rest = client.read_events()
                self.assertEqual(content_of(events + rest), "Once upon a time")
                self.assertEqual(rest.count("data: [DONE]"), 1)
                self.assertEqual(running.request_line("resumed")["error"], None)

    def test_an_idle_engine_is_left_as_well(self) -> None:
        running = self.two(True, True, STREAM_IDLE_TIMEOUT=0.2)
        client, side, events = self.start(running, self.engines[0])
        other = self.engines[1].take()
        self.assertTrue(side.wait_until_left(1.0))
        other.send(STREAM_HEAD + chunked(event(" a time", "stop", id="b") + DONE) + LAST_CHUNK)
        self.assert_one_stream(events + client.read_events(), "Once upon a time")

    def test_a_client_of_http_1_0_gets_it_too(self) -> None:
        running = self.two(True, True)
        client = self.enter(running.connect())
        body = json.dumps(ask(stream=True)).encode()
        client.send(
            b"POST %b HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (CHAT.encode(), len(body), body)
        )
        side = self.engines[0].take()
        side.send(STREAM_HEAD + chunked(delta("Once ")))
        client.read_head()
        events = [client.read_event() or ""]
        side.reset()
        self.engines[1].take().send(STREAM_HEAD + chunked(delta("upon", "stop") + DONE) + LAST_CHUNK)
        self.assertEqual(content_of(events + client.read_events()), "Once upon")

    def test_it_goes_on_more_than_once(self) -> None:
        running = self.two(True, True, True)
        client, side, events = self.start(running, self.engines[0])
        side.reset()
        eventually(lambda: not all(e.nobody_waits() for e in self.engines[1:]))
        second, third = self.engines[1:] if not self.engines[1].nobody_waits() else self.engines[:0:-1]
        side = second.take()
        side.send(STREAM_HEAD + chunked(role_event(id="b")) + chunked(event(" a", id="b")))
        events.append(client.read_event() or "")
        side.reset()
        eventually(lambda: not (third.nobody_waits() and self.engines[0].nobody_waits()))
        last = (self.engines[0] if third.nobody_waits() else third).take()
        self.assertEqual(last.json["messages"][-1]["content"], "Once upon a")
        last.send(STREAM_HEAD + chunked(event(" time", "stop", id="c") + DONE) + LAST_CHUNK)
        self.assert_one_stream(events + client.read_events(), "Once upon a time")
        self.assertEqual(running.request_line("resumed")["resumed"], 2)

    def test_an_engine_that_goes_on_and_breaks_in_one_piece_has_given_nothing(self) -> None:
        running = self.two(True, True, True)
        client, side, events = self.start(running, self.engines[0])
        side.reset()
        eventually(lambda: not all(e.nobody_waits() for e in self.engines[1:]))
        second, third = self.engines[1:] if not self.engines[1].nobody_waits() else self.engines[:0:-1]
        second.take().send(STREAM_HEAD + chunked(event(" an", id="b") + b'data: {"error": "out of memory"}\n\n'))
        last = third.take()
        self.assertEqual(last.json["messages"][-1]["content"], "Once upon")
        last.send(STREAM_HEAD + chunked(event(" a time", "stop", id="c") + DONE) + LAST_CHUNK)
        self.assert_one_stream(events + client.read_events(), "Once upon a time")

    def test_nothing_but_the_role_has_been_given(self) -> None:
        running = self.two(True, True)
        client = self.begin(running, ask(stream=True))
        side = self.engines[0].take()
        side.send(STREAM_HEAD + chunked(role_event(id="a-1", created=7, model="m")))
        client.read_head()
        events = [client.read_event() or ""]
        side.reset()
        other = self.engines[1].take()
        self.assertEqual(other.json["messages"], ask()["messages"])
        self.assertNotIn("continue_final_message", other.json)
        other.send(STREAM_HEAD + chunked(b'data: {"choices": [], "id": "b"}\n\n' + role_event(id="b")))
        other.send(chunked(event("Once", "stop", id="b") + DONE) + LAST_CHUNK)
        self.assert_one_stream(events + client.read_events(), "Once")

    def test_an_engine_that_cannot_is_passed_over(self) -> None:
        running = self.two(True, False, True)
        client, side, events = self.start(running, self.engines[0])
        side.reset()
        self.engines[2].take().send(STREAM_HEAD + chunked(event(" a time", "stop") + DONE) + LAST_CHUNK)
        self.assert_one_stream(events + client.read_events(), "Once upon a time")
        self.assertTrue(self.engines[1].nobody_waits())

    def test_an_engine_that_fails_is_followed_by_another(self) -> None:
        running = self.two(True, True, True)
        client, side, events = self.start(running, self.engines[0])
        side.reset()
        eventually(lambda: not all(e.nobody_waits() for e in self.engines[1:]))
        second, third = self.engines[1:] if not self.engines[1].nobody_waits() else self.engines[:0:-1]
        second.take().answer(b"{}", status="500 Oops")
        third.take().send(STREAM_HEAD + chunked(event(" a time", "stop") + DONE) + LAST_CHUNK)
        self.assert_one_stream(events + client.read_events(), "Once upon a time")
        line = running.request_line("resumed")
        self.assertEqual((line["resumed"], line["attempts"]), (1, 3))

    def test_without_an_engine_to_go_on_the_client_is_told(self) -> None:
        for flags in ((True,), (True, False), (False, True)):
            with self.subTest(resume=flags):
                running = self.two(*flags)
                client, side, events = self.start(running, self.engines[0])
                side.reset()
                self.assert_broken(events + client.read_events(), "Once upon")
                line = running.request_line("resumed")
                self.assertEqual((line["error"], line.get("resumed")), ("backend_error", None))
                self.assertNotIn(RESUMES, running.metrics())
                self.assert_nothing_held(running)

    def test_when_nobody_can_go_on_the_client_is_told(self) -> None:
        running = self.two(True, True)
        client, side, events = self.start(running, self.engines[0])
        side.reset()
        self.engines[1].take().answer(b'{"error": "no such option"}', status="400 Bad Request")
        self.assert_broken(events + client.read_events(), "Once upon")
        self.assert_nothing_held(running)

    def test_never_where_text_is_not_all_there_is(self) -> None:
        table: list[dict[str, Any]] = [
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            {"n": 2},
            {"response_format": {"type": "json_object"}},
        ]
        for options in table:
            with self.subTest(**options):
                running = self.two(True, True)
                client, side, events = self.start(running, self.engines[0], **options)
                side.reset()
                self.assert_broken(events + client.read_events(), "Once upon")
                self.assertTrue(self.engines[1].nobody_waits())

    def test_never_when_the_engine_has_begun_to_call_a_tool_or_to_think(self) -> None:
        for begun in ({"tool_calls": [{"index": 0, "id": "c"}]}, {"reasoning_content": "Hm"}):
            with self.subTest(**begun):
                running = self.two(True, True)
                client, side, events = self.start(running, self.engines[0])
                side.send(chunked(event(None, delta=begun)))
                events.append(client.read_event() or "")
                side.reset()
                self.assert_broken(events + client.read_events(), "Once upon")
                self.assertTrue(self.engines[1].nobody_waits())

    def test_a_stream_that_had_finished_is_complete(self) -> None:
        running = self.two(True, True)
        client, side, events = self.start(running, self.engines[0])
        side.send(chunked(event(".", "stop", id="a-1", created=7, model="m")))
        side.close()
        self.assert_one_stream(events + client.read_events(), "Once upon.")
        self.assertTrue(self.engines[1].nobody_waits())

    @alone
    def test_a_client_that_leaves_meanwhile_ends_the_search(self) -> None:
        running = self.two(True, True)
        client, side, _ = self.start(running, self.engines[0])
        side.reset()
        other = self.engines[1].take()
        client.close()
        self.assertTrue(other.wait_until_left(1.0))
        line = running.request_line("resumed")
        self.assertEqual((line["status"], line["error"]), (499, "client_closed_request"))
        self.assert_nothing_held(running)

    @alone
    def test_a_client_that_leaves_after_it_went_on_ends_the_new_stream(self) -> None:
        running = self.two(True, True)
        client, side, _ = self.start(running, self.engines[0])
        side.reset()
        other = self.engines[1].take()
        other.send(STREAM_HEAD + chunked(event(" a")))
        self.assertEqual(content_of([client.read_event() or ""]), " a")
        client.close()
        self.assertTrue(other.wait_until_left(1.0))
        line = running.request_line("resumed")
        self.assertEqual((line["status"], line["resumed"]), (499, 1))
        self.assert_nothing_held(running)

    def test_a_gateway_that_stops_meanwhile_ends_both(self) -> None:
        running = self.two(True, True)
        client, side, _ = self.start(running, self.engines[0])
        side.reset()
        other = self.engines[1].take()
        running.stop()
        self.assertTrue(other.wait_until_left(5.0))
        *_, last = client.read_events()
        self.assertEqual(chunk_of(last)["error"], "draining")
        client.assert_closed()
        line = running.request_line("resumed")
        self.assertEqual((line["status"], line["error"]), (200, "draining"))
        self.assert_nothing_held(running)

    def test_a_client_slower_than_both_engines_misses_nothing(self) -> None:
        for together in (True, False):
            with self.subTest(rest_in_one_piece=together):
                running = self.two(True, True)
                client, side, events = self.start(running, self.engines[0])
                (relayed,) = eventually(lambda r=running: list(r.app.relay._streams))
                send_now, takes_more = relayed._client.send_now, threading.Event()

                def send_late(data: bytes, send: Any = send_now, gate: threading.Event = takes_more) -> int:
                    if not gate.is_set():
                        raise BlockingIOError
                    return int(send(data))

                relayed._client.send_now = send_late  # type: ignore[method-assign]
                side.send(chunked(event(" a", id="a-1", created=7, model="m") + b'data: {"error": "no memory"}\n\n'))
                other = self.engines[1].take()
                rest = chunked(event(" time", "stop", id="b") + DONE) + LAST_CHUNK
                other.send(STREAM_HEAD + (chunked(event(" long")) + rest if together else chunked(event(" long"))))
                eventually(lambda r=relayed: r.stream.events.earlier_weight and r.unsent.count(b"data:") >= 2)
                takes_more.set()
                if not together:
                    events += [client.read_event() or "" for _ in range(2)]
                    other.send(rest)
                self.assert_one_stream(events + client.read_events(), "Once upon a long time")


if __name__ == "__main__":
    unittest.main()
