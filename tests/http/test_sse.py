"""Event streams over real sockets: reasons, choices, lines, usage, numbers and counts as engines send them."""

from __future__ import annotations

import contextlib
import json
import random
import time
import unittest
from collections.abc import Sequence
from typing import Any, Optional

from gateway.upstream.eventlines import events_in
from tests.http.test_streams import outcomes
from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked
from tests.support import CHAT, COMPLETIONS, HI, RawClient, Response, RunningGateway, chunk_of, eventually, gateway

HEAD = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
LAST_CHUNK = b"0\r\n\r\n"
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
BY_PATH: dict[str, dict[str, Any]] = {
    CHAT: {**HI, "model": "m", "stream": True},
    COMPLETIONS: {"prompt": "hi there", "model": "m", "stream": True},
}


def event(members: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(members, separators=(",", ":")).encode()


def delta(path: str, text: Optional[str], finish: object = None, index: int = 0, **extra: Any) -> bytes:
    """One event of a streamed answer to that path."""
    said: dict[str, Any] = {"text": text or ""}
    if path == CHAT:
        said = {"delta": {} if text is None else {"content": text}}
    return event({"id": "x", "choices": [{"index": index, **said, "finish_reason": finish}], **extra})


def read_body(client: RawClient, size: Optional[int] = None) -> bytes:
    """So many bytes of a stream, or all that are left."""
    body = b""
    while client._body is not None and (size is None or len(body) < size):
        body += client._body_part(time.monotonic() + client.timeout_s)
    return body


class SseTestCase(unittest.TestCase):
    def setUp(self) -> None:
        self._stack = contextlib.ExitStack()
        self.addCleanup(self._stack.close)

    def serve(self, engines: int = 1, **variables: object) -> RunningGateway:
        self.engines = [self._stack.enter_context(ScriptedEngine()) for _ in range(engines)]
        urls = ",".join(engine.url for engine in self.engines)
        return self._stack.enter_context(gateway(ENGINES=f"m={urls}", **variables))

    def begin(
        self, running: RunningGateway, path: str, engine: int = 0, **options: Any
    ) -> tuple[RawClient, EngineSide]:
        """A client that has asked for a stream, and the engine's side of it."""
        client = self._stack.enter_context(running.connect())
        client.request("POST", path, {**BY_PATH[path], **options})
        return client, self.engines[engine].take()

    def through(
        self,
        running: RunningGateway,
        path: str,
        parts: Sequence[bytes],
        end: bytes = LAST_CHUNK,
        engine: int = 0,
        begin: bool = True,
        **options: Any,
    ) -> Response:
        """What a client gets of a stream that comes in such chunks, behind a first event that it has already if
        `begin`. Without `end` the connection closes."""
        client, side = self.begin(running, path, engine, **options)
        side.send(HEAD)
        if begin:
            side.send(chunked(delta(path, "begin")))
            head = client.read_head()
            self.assertEqual(read_body(client, len(delta(path, "begin"))), delta(path, "begin"))
        side.send(b"".join(chunked(part) for part in parts if part) + end)
        if not end:
            side.close()
        if not begin:
            head = client.read_head()
        answer = head._replace(body=read_body(client))
        side.close()
        eventually(lambda: running.app.pipeline.in_flight == 0)
        client.close()
        return answer

    def in_every_way(
        self, running: RunningGateway, path: str, payload: bytes, begin: bool = True, **options: Any
    ) -> bytes:
        """What a client gets of a payload, which must not depend on its chunks, or on how they arrive."""
        rng = random.Random(len(payload))
        events = [part + b"\n\n" for part in payload.split(b"\n\n")[:-1]] or [payload]
        cuts = sorted(rng.sample(range(1, len(payload)), 9))
        pieces = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)])]
        ways = [self.through(running, path, way, begin=begin, **options) for way in ([payload], events, pieces)]
        bodies = {way.body.replace(way.request_id.encode(), b"ID") for way in ways}
        self.assertEqual(len(bodies), 1, bodies)
        self.assertEqual({way.status for way in ways}, {200})
        return bodies.pop()


class ReasonTest(SseTestCase):
    def test_a_stream_without_a_real_reason_that_is_cut_is_broken_and_the_engine_s_fault(self) -> None:
        for path in BY_PATH:
            for reason in ("", " ", "null", "None", "FINISH_REASON_UNSPECIFIED", False, 0, {}):
                with self.subTest(path=path, reason=reason):
                    running = self.serve()
                    parts = [delta(path, "one", reason), delta(path, " two", reason), delta(path, " three", reason)]
                    for number, end in enumerate((b"", LAST_CHUNK, chunked(DONE) + LAST_CHUNK), 1):
                        answer = self.through(running, path, parts, end)
                        self.assertTrue(answer.body.startswith(b"".join(parts) + b'data: {"error"'), answer.body)
                        self.assertNotIn(b"[DONE]", answer.body)
                        line = running.request_line(answer.request_id)
                        self.assertEqual((line["status"], line["error"]), (200, "backend_error"))
                        self.assertEqual(sum(outcomes(running).values()), number)
                        self.assertNotIn("ok", outcomes(running))

    def test_one_that_ends_with_a_real_reason_is_good_and_passed_on_as_it_came(self) -> None:
        for path in BY_PATH:
            running = self.serve()
            payload = b"".join(delta(path, text, "") for text in ("one", "two", "three")) + delta(path, "", "stop")
            self.assertEqual(self.in_every_way(running, path, payload), payload + DONE)
            self.assertEqual(outcomes(running), {"ok": 3})


class ChoicesTest(SseTestCase):
    ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
        (CHAT, {"n": 2}),
        (COMPLETIONS, {"n": 3}),
        (COMPLETIONS, {"prompt": ["a", "b"]}),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 2}),
    )

    def test_an_engine_that_gives_fewer_choices_than_were_asked_for_has_answered(self) -> None:
        for path, options in self.ASKED:
            with self.subTest(path=path, **options):
                running = self.serve(2)
                parts = [delta(path, "one"), delta(path, "two"), delta(path, "", "stop")]
                for number in range(4):
                    end = (chunked(DONE) if number % 2 else b"") + LAST_CHUNK
                    answer = self.through(running, path, parts, end, engine=number % 2, **options)
                    self.assertEqual((answer.status, answer.body), (200, b"".join(parts) + DONE))
                    self.assertEqual(answer.header("x-gateway-attempts"), "1")
                self.assertEqual(outcomes(running), {"ok": 4})
                self.assertEqual({engine.state for engine in running.app.factory.engines()}, {"up"})

    def test_a_choice_that_has_begun_must_finish(self) -> None:
        for path, options in self.ASKED:
            with self.subTest(path=path, **options):
                running = self.serve()
                parts = [delta(path, "one"), delta(path, "two", index=1), delta(path, " more", index=1)]
                parts += [delta(path, "", "stop"), DONE]
                answer = self.through(running, path, parts, **options)
                self.assertTrue(answer.body.startswith(b"".join(parts[:-1]) + b'data: {"error"'), answer.body)
                self.assertEqual(outcomes(running), {"invalid": 1})


class LinesTest(SseTestCase):
    def test_lines_pass_as_they_came_whatever_ends_them(self) -> None:
        for path in BY_PATH:
            running = self.serve()
            start = b": hello\n\nevent: message\nid: 7\n" + delta(path, "one") + b"data:\n\nretry: 100\n"
            several = b'data: {"choices": [\ndata: ],\n: ping\ndata: "x": 1}\n\n'
            payload = (
                start + several + b"unknown\n" + delta(path, "two") + delta(path, "", "stop") + b": bye\n\n" + DONE
            )
            rng = random.Random(1)
            mixed = b"".join(
                line[:-1] + (rng.choice((b"\n", b"\r\n", b"\r")) if line != b"\n" else b"\r\n")
                for line in (payload[: -len(DONE)]).splitlines(keepends=True)
            )
            ended = [payload.replace(b"\n", end) for end in (b"\n", b"\r\n", b"\r")] + [mixed + DONE]
            for wire in (*ended, "\ufeff".encode() + payload):
                with self.subTest(path=path, wire=wire[:40]):
                    self.assertEqual(self.in_every_way(running, path, wire, begin=False), wire)
            self.assertEqual(set(outcomes(running)), {"ok"})

    def test_a_stream_whose_lines_end_with_cr_only_flows(self) -> None:
        for path in BY_PATH:
            running = self.serve()
            client, side = self.begin(running, path)
            side.send(STREAM_HEAD)
            for number in range(4):
                wire = delta(path, str(number)).replace(b"\n", b"\r")
                side.send(chunked(wire))
                if not number:
                    client.read_head()
                self.assertEqual(read_body(client, len(wire)), wire)  # before the engine says more
            side.send(chunked(delta(path, "", "stop") + DONE) + LAST_CHUNK)
            self.assertEqual(client.read_events()[-1], "data: [DONE]")

    def test_an_event_of_several_lines_is_one(self) -> None:
        for path in BY_PATH:
            running = self.serve()
            lines = json.dumps(json.loads(delta(path, "one", usage=USAGE)[6:]), indent=1).splitlines()
            first = b"".join(f"data: {line}\n".encode() for line in lines) + b"\n"
            rest = delta(path, "two") + delta(path, "", "stop") + DONE
            options = {"stream_options": {"include_usage": True}}
            self.assertEqual(self.in_every_way(running, path, first + rest, **options), first + rest)
            shown = self.in_every_way(running, path, first + rest)
            self.assertEqual(next(events_in(shown)), json.loads(delta(path, "one")[6:]))
            self.assertTrue(shown.endswith(rest))

    def test_an_error_event_that_comes_first_is_a_failed_try(self) -> None:
        for path in BY_PATH:
            for data in (b'{"message": "out of memory"}', b"out of memory", b'{"error": {"message": "out of memory"}}'):
                running = self.serve(2)
                client, side = self.begin(running, path)
                side.send(STREAM_HEAD + chunked(b": hello\n\nevent: error\ndata: " + data + b"\n\n"))
                other = self.engines[1].take()
                good = delta(path, "one", "stop") + DONE
                other.send(STREAM_HEAD + chunked(good) + LAST_CHUNK)
                answer = client.read_response()
                self.assertEqual((answer.status, answer.body), (200, good))
                self.assertEqual(answer.header("x-gateway-attempts"), "2")
                eventually(lambda running=running: outcomes(running) == {"invalid": 1, "ok": 1})

    def test_the_engine_s_words_reach_the_client_when_no_other_can_answer(self) -> None:
        running = self.serve(RETRY_ATTEMPTS=1)
        client, side = self.begin(running, CHAT)
        side.send(STREAM_HEAD + chunked(b'event: error\ndata: {"message": "out of memory"}\n\n') + LAST_CHUNK)
        answer = client.read_response()
        self.assertEqual((answer.status, answer.error), (502, "backend_error"))
        self.assertIn("out of memory", answer.json()["message"])

    def test_an_error_event_later_breaks_the_stream_and_leaves_nothing_of_itself(self) -> None:
        for path in BY_PATH:
            for bad in (
                b'event: error\ndata: {"message": "out of memory"}\n\n',
                b"id: 9\nevent: error\ndata: out\ndata: of memory\n\n",
                b'error: {"message": "out of memory"}\n\n',
            ):
                running = self.serve()
                parts = [delta(path, "one"), delta(path, "two"), delta(path, "three")]
                body = self.in_every_way(running, path, b"".join(parts) + bad + DONE)
                self.assertTrue(body.startswith(b"".join(parts) + b'data: {"error"'), body)
                self.assertEqual(body.count(b"\n\n"), 4)
                self.assertIn("memory", chunk_of(body.decode().split("\n\n")[3])["message"])
                self.assertEqual(set(outcomes(running)), {"invalid"})

    def test_the_gateway_s_own_error_is_an_event_of_its_own_behind_a_cr(self) -> None:
        running = self.serve()
        part = delta(CHAT, "one")[:-2] + b"\r"
        answer = self.through(running, CHAT, [part], b"")
        lines = answer.body.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n\n")
        self.assertIn("error", chunk_of(lines[1]))


class UsageTest(SseTestCase):
    def assert_shown(self, sent: bytes, shown: bytes, usage: Optional[dict[str, Any]] = USAGE) -> None:
        """Of what is sent between the first event and `[DONE]`, a client that did not ask is shown this."""
        for path in BY_PATH:
            running = self.serve()
            start, end = delta(path, "one") + delta(path, "two") + delta(path, "three"), delta(path, "", "stop") + DONE
            wire = start + sent.replace(b"PATH", b"") + end
            self.assertEqual(self.in_every_way(running, path, wire), start + shown + end)
            asked = self.in_every_way(running, path, wire, stream_options={"include_usage": True})
            self.assertEqual(asked, wire)
            if usage is not None:
                answer = self.through(running, path, [wire])
                line = running.request_line(answer.request_id)
                tokens = (line["prompt_tokens"], line["completion_tokens"], line["usage_estimated"])
                self.assertEqual(tokens, (usage["prompt_tokens"], usage["completion_tokens"], False))

    def test_an_event_of_usage_is_hidden_with_its_own_lines(self) -> None:
        for members in (
            {"choices": []},
            {"choices": None},
            {},
            {"id": "x", "choices": [], "model": "n", "metrics": None},
        ):
            self.assert_shown(event({**members, "usage": USAGE}), b"")
        self.assert_shown(b"event: usage\nid: 7\n" + event({"choices": [], "usage": USAGE}), b"")

    def test_what_rides_on_it_is_hidden_too(self) -> None:
        # llama.cpp's `timings` stand there only because usage was asked for: else they are in the event that finishes.
        timings = {"timings": {"predicted_ms": 1.25}}
        self.assert_shown(event({"id": "x", "choices": [], "usage": USAGE, **timings}), b"")
        self.assert_shown(event({"usage": USAGE, **timings}), b"")

    def test_an_event_with_choices_loses_its_usage_only(self) -> None:
        first = {**USAGE, "completion_tokens": 1, "total_tokens": 4}
        growing = [
            {"choices": [{"index": 0, "delta": {"content": "a"}}], "n": 1.50, "usage": u} for u in (first, USAGE)
        ]
        shown = [{k: v for k, v in e.items() if k != "usage"} for e in growing]
        self.assert_shown(b"".join(map(event, growing)), b"".join(map(event, shown)))

    def test_null_usage_passes_as_it_came(self) -> None:
        one = event({"choices": [{"index": 0, "delta": {}, "finish_reason": None}], "usage": None})
        self.assert_shown(one * 3, one * 3, None)

    def test_a_large_event_tells_none_either(self) -> None:
        large = {"choices": [{"index": 0, "delta": {"content": "x" * 300_000}, "finish_reason": None}]}
        running = self.serve()
        payload = delta(CHAT, "one") + event({**large, "usage": USAGE}) + delta(CHAT, "", "stop")
        answer = self.through(running, CHAT, [payload])
        self.assertEqual(answer.body, delta(CHAT, "one") + event(large) + delta(CHAT, "", "stop") + DONE)


class NumbersTest(SseTestCase):
    def test_a_number_that_is_none_becomes_null_and_all_else_stays(self) -> None:
        for path in BY_PATH:
            running = self.serve()
            plain = [delta(path, text) for text in ("NaN", "one", "-Infinity", "Infinity, NaN")]
            for number in (b"NaN", b"Infinity", b"-Infinity"):
                odd = delta(path, "NaN", logprobs={"a": ["NUMBER", "NaN", 1e-7]})
                wire = b"".join(plain) + odd.replace(b'"NUMBER"', number) + plain[1] + delta(path, "", "stop")
                shown = b"".join(plain) + odd.replace(b'"NUMBER"', b"null") + plain[1] + delta(path, "", "stop")
                self.assertEqual(self.in_every_way(running, path, wire), shown + DONE)
            self.assertEqual(set(outcomes(running)), {"ok"})

    def test_in_a_large_event_too(self) -> None:
        running = self.serve()
        odd = delta(CHAT, "x" * 300_000, logprobs=["NUMBER"])
        end = delta(CHAT, "", "stop") + DONE
        answer = self.through(running, CHAT, [delta(CHAT, "one"), odd.replace(b'"NUMBER"', b"NaN"), end])
        self.assertEqual(answer.body, delta(CHAT, "one") + odd.replace(b'"NUMBER"', b"null") + end)


class CountTest(SseTestCase):
    def tokens(self, parts: Sequence[bytes], path: str = CHAT) -> int:
        """The tokens that are told of a stream whose engine tells none."""
        running = self.serve()
        end = [delta(path, "", "stop") + DONE]
        counted = set()
        for way in ([*parts, *end], [b"".join(parts), *end]):
            answer = self.through(running, path, way, begin=False)
            line = running.request_line(answer.request_id)
            self.assertTrue(line["usage_estimated"])
            counted.add(line["completion_tokens"])
        self.assertEqual(len(counted), 1)
        return int(counted.pop())

    def test_characters_are_counted_not_how_they_are_written(self) -> None:
        for path in BY_PATH:
            for text in ('\n\t"\\', "grün", "abcd"):
                self.assertEqual(self.tokens([delta(path, text)] * 6, path), 6)
                written = [json.dumps(json.loads(delta(path, text)[6:]), ensure_ascii=False).encode()] * 6
                self.assertEqual(self.tokens([b"data: %b\n\n" % part for part in written], path), 6)
            self.assertEqual(self.tokens([delta(path, "你好")] * 6, path), 12)

    def test_reasoning_and_the_arguments_of_calls_count_too(self) -> None:
        def said(**body: Any) -> bytes:
            return event({"choices": [{"index": 0, "delta": body, "finish_reason": None}]})

        for key in ("reasoning_content", "reasoning", "refusal", "content"):
            self.assertEqual(self.tokens([said(**{key: "abcd"})] * 6), 6)
        call = {"index": 0, "function": {"arguments": '{"a"'}}
        self.assertEqual(self.tokens([said(tool_calls=[call])] * 6), 6)
        self.assertEqual(self.tokens([said(function_call={"arguments": "abcd"})] * 6), 6)


if __name__ == "__main__":
    unittest.main()
