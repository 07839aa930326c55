"""Large answers and events: lawful ones pass, whatever their size below the limit; others are the engine's failure."""

from __future__ import annotations

import contextlib
import json
import random
import select
import threading
import unittest
from typing import Any
from unittest import mock

from gateway.steps import Steps, drive
from gateway.upstream import answers, sse
from gateway.upstream.response import EngineResponse
from gateway.upstream.sse import EventStream, StreamBroken
from tests.resilience import ResilienceTest, ask
from tests.scripted import DONE, STREAM_HEAD, EngineSide, ScriptedEngine, chunked, delta
from tests.support import EMBEDDINGS, RunningGateway, chunk_of, eventually

MIB = 1 << 20


def chat(text: str, **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    answer = {"id": "theirs", "object": "chat.completion", "model": "theirs", "choices": [choice], "usage": usage}
    return json.dumps(answer, ensure_ascii=False).encode()


class LargeTest(ResilienceTest):
    def gateway(self, **variables: object) -> tuple[RunningGateway, ScriptedEngine]:
        engine = self.scripted()
        return self.serve({"m": {"engines": [engine.url]}}, RETRY_ATTEMPTS=1, **variables), engine

    def send(self, side: EngineSide, data: bytes) -> threading.Thread:
        """Send on a thread of its own: the gateway may not take all of it."""

        def run() -> None:
            with contextlib.suppress(OSError):
                side.send(data)

        thread = threading.Thread(target=run, name="engine")
        thread.start()
        self.addCleanup(thread.join, 20)
        return thread

    def test_a_large_answer_passes_with_its_id_model_and_usage(self) -> None:
        running, engine = self.gateway()
        for body in (
            chat("é€😀\n" * (2 * MIB // 10)),
            chat("hi", logprobs={"content": [{"token": "a", "top_logprobs": [{"bytes": [1]}]}] * 40_000}),
            json.dumps({"choices": [{"message": {"content": "x" * 2 * MIB}}]}, indent=2).encode(),
        ):
            with self.subTest(begin=body[:60]):
                client = self.begin(running)
                side = engine.take()
                self.send(side, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                response = client.read_response()
                self.assertEqual(response.status, 200, response.body[:200])
                told, said = response.json(), json.loads(body)
                self.assertEqual(told["choices"], said["choices"])
                self.assertEqual((told["id"], told["model"]), (response.request_id, "m"))
                self.assertGreater(told["usage"]["total_tokens"], 0)
                side.close()

    def test_large_embeddings_pass(self) -> None:
        running, engine = self.gateway()
        vector = [random.Random(1).uniform(-1, 1) for _ in range(1536)]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i in range(100)]
        body = json.dumps({"object": "list", "data": data, "usage": {"prompt_tokens": 5, "total_tokens": 5}}).encode()
        with running.connect() as client:
            client.request("POST", EMBEDDINGS, {"input": ["x"] * 100})
            self.send(engine.take(), b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            told = client.read_response().json()
        self.assertEqual((told["data"], told["usage"]["prompt_tokens"]), (data, 5))

    def test_a_large_answer_is_never_looked_at_on_the_loop(self) -> None:
        running, engine = self.gateway()
        seen: list[str] = []
        for name in ("parse_answer", "outline_answer"):
            real = getattr(answers, name)

            def noted(body: Any, path: str, real: Any = real) -> Any:
                if len(body) > MIB // 2:
                    seen.append(threading.current_thread().name)
                return real(body, path)

            patch = mock.patch.object(answers, name, noted)
            patch.start()
            self.addCleanup(patch.stop)
        for size in (2 * MIB, MIB * 3 // 4):
            client = self.begin(running)
            side = engine.take()
            body = chat("x" * size)
            self.send(side, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            self.assertEqual(client.read_response().status, 200)
            side.close()
        self.assertEqual(seen, ["worker", "worker"])

    def test_an_answer_above_the_limit_is_the_engine_s_failure(self) -> None:
        running, engine = self.gateway(MAX_ANSWER_BYTES=300_000)
        fine = chat("x" * 250_000)
        large = chat("x" * 350_000)
        for body, status in ((fine, 200), (large, 502)):
            for framing in (
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
                b"Transfer-Encoding: chunked\r\n\r\n%b0\r\n\r\n" % chunked(body),
                b"Connection: close\r\n\r\n%b" % body,
            ):
                with self.subTest(status=status, framing=framing[:20]):
                    client = self.begin(running)
                    side = engine.take()
                    self.send(side, b"HTTP/1.1 200 OK\r\n" + framing).join(20)
                    if status == 200 and framing.startswith(b"Connection"):
                        side.close()
                    response = client.read_response()
                    self.assertEqual(response.status, status, response.body[:200])
                    if status == 502:
                        self.assertIn("300000 bytes", response.json()["message"])
                        self.assertTrue(side.wait_until_left())
                    side.close()

    def test_a_large_answer_that_is_no_json_is_the_engine_s_failure(self) -> None:
        running, engine = self.gateway()
        good = chat("x" * 2 * MIB)
        for body in (good[:-1], good + b"}", good.replace(b'"stop"', b"stop"), b"[" + good + b"]", good[:-2] + b",}}"):
            client = self.begin(running)
            side = engine.take()
            self.send(side, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            self.assert_error(client.read_response(), 502, "backend_error")
            side.close()

    def test_a_large_answer_to_a_streaming_call_becomes_one_event(self) -> None:
        running, engine = self.gateway()
        text = "x" * 2 * MIB
        client = self.begin(running, ask(stream=True))
        body = chat(text)
        side = engine.take()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self.send(side, head % len(body) + body)
        client.read_head()
        events = client.read_events()
        self.assertEqual(chunk_of(events[0])["choices"][0]["delta"]["content"], text)
        side.close()
        client = self.begin(running, ask(stream=True))
        body = chat("x", y=[{}] * MIB)  # too many values for that
        side = engine.take()
        self.send(side, head % len(body) + body)
        self.assert_error(client.read_response(), 502, "backend_error")

    def test_an_error_is_heard_for_64_kib_and_its_connection_closed(self) -> None:
        running, engine = self.gateway()
        client = self.begin(running)
        side = engine.take()
        body = b'{"error":{"message":"busy"}}'
        self.send(side, b"HTTP/1.1 400 No\r\nContent-Length: 99999999\r\n\r\n" + body.ljust(65_536) + b" " * 70_000)
        response = client.read_response()
        self.assertEqual((response.status, response.json()["message"]), (400, "busy"))
        self.assertTrue(side.wait_until_left())

    def test_heads_without_end_are_given_up(self) -> None:
        for early in (
            b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\n" * 4_000,
            b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20_000,
        ):
            with self.subTest(early=early[:20]):
                running, engine = self.gateway()
                client = self.begin(running)
                side = engine.take()
                self.send(side, early)
                self.assert_error(client.read_response(), 502, "backend_error")
                self.assertTrue(side.wait_until_left())

    def test_a_large_event_passes_unchanged(self) -> None:
        running, engine = self.gateway()
        client = self.begin(running, ask(stream=True))
        side = engine.take()
        large = [delta("é" * MIB), delta("x", "stop").replace(b'"x"', b'"x","y":[' + b"{}," * (MIB // 3) + b"{}]")]
        self.send(
            side, STREAM_HEAD + chunked(delta("a")) + b"".join(map(chunked, large)) + chunked(DONE) + b"0\r\n\r\n"
        )
        client.read_head()
        events = [(event + "\n\n").encode() for event in client.read_events()]
        self.assertEqual(events[1:3], large)
        self.assertEqual(events[-1], DONE)

    def test_what_comes_before_the_first_event_is_bounded(self) -> None:
        for unit in (b": x\n", b"\n", b"event: x\n\n", b"x"):
            with self.subTest(unit=unit):
                running, engine = self.gateway(MAX_EVENT_BYTES=400_000)
                client = self.begin(running, ask(stream=True))
                side = engine.take()
                self.send(side, STREAM_HEAD + chunked(unit * 1_000_000))
                response = client.read_response()
                self.assert_error(response, 502, "backend_error")
                self.assertIn("400000 bytes", response.json()["message"])
                self.assertTrue(side.wait_until_left())

    def test_comments_that_come_by_and_by_do_not_put_the_first_event_off(self) -> None:
        for text in ("hi", "x" * 70_000):  # asked on the loop, or on a thread
            with self.subTest(text=text[:2]):
                running, engine = self.gateway(FIRST_TOKEN_TIMEOUT=0.3)
                client = self.begin(running, ask(text, stream=True))
                side = engine.take()
                side.send(STREAM_HEAD)

                def left(side: EngineSide = side) -> bool:
                    side.send(chunked(b": wait\n\n"))
                    return bool(select.select([side.sock], [], [], 0)[0])

                with contextlib.suppress(OSError):
                    eventually(left)
                self.assert_error(client.read_response(), 504, "gateway_timeout")
                self.assert_nothing_held(running)


class EventBoundTest(unittest.TestCase):
    """What `EventStream` takes, however it is cut."""

    LIMIT = 2_000

    def fed(self, data: bytes, cut: int) -> tuple[bytes, str]:
        stream = EventStream(False, event_max_bytes=self.LIMIT)
        out = b""
        try:
            for start in range(0, len(data), cut):
                out += stream.feed(data[start : start + cut])
            return out + stream.end(), ""
        except StreamBroken as broken:
            return out + broken.lines, str(broken)

    def test_lines_that_are_held_back_count_for_more_than_their_bytes(self) -> None:
        end = delta("", "stop") + DONE
        for line in (b"id\n", b"data:\n", b"event:x\n"):
            lines = line * (self.LIMIT // 100)
            fine = delta("a") + lines + b"\n" + lines + b"\n" + end
            self.assertEqual(self.fed(fine, 7), (fine, ""))
            self.assertEqual(self.fed(delta("a") + line * (self.LIMIT // 30) + b"\n" + end, 7)[0], delta("a"))

    def test_an_event_is_bounded_however_it_is_cut(self) -> None:
        end = delta("", "stop") + DONE
        spare = len(delta("")) + 4
        many = b'data: {"choices":[]}\n'
        for cut in (1, 7, 64, 1_000_000):
            with self.subTest(cut=cut):
                fine = delta("a") + delta("x" * (self.LIMIT - spare)) + b": y\n\n" * 1_000 + end
                self.assertEqual(self.fed(fine, cut), (fine, ""))
                for bad in (
                    delta("x" * self.LIMIT) + end,
                    b"data: " + b"x" * self.LIMIT,
                    many * (self.LIMIT // len(many) + 1) + b"\n" + end,
                    (b"id: x\n" * self.LIMIT) + end,
                ):
                    out, error = self.fed(delta("a") + bad, cut)
                    self.assertIn("2000 bytes", error)
                    self.assertTrue(out.startswith(delta("a")))
                    self.assertLessEqual(len(out), len(delta("a")) + self.LIMIT)

    def test_before_the_first_event_so_many_bytes_are_kept(self) -> None:
        end = delta("", "stop") + DONE
        for cut in (1, 7, 1_000_000):
            fine = b": y\n\n" * (self.LIMIT // 5 - 1) + end
            self.assertEqual(self.fed(fine, cut), (fine, ""))
            out, error = self.fed(b": y\n\n" * (self.LIMIT // 5 + 1) + end, cut)
            self.assertIn("2000 bytes", error)
            self.assertLessEqual(len(out), self.LIMIT)

    def test_a_large_event_says_what_a_small_one_does(self) -> None:
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        choices = [{"index": i, "delta": {"content": f"text {i}"}, "finish_reason": "stop"} for i in range(3)]
        data = b"data: " + json.dumps({"choices": choices, "usage": usage}).encode() + b"\n\n"
        found = []
        for limit in (sse.LARGE_BYTES, 10):
            with mock.patch.object(sse, "LARGE_BYTES", limit):
                stream = EventStream(False, 3)
                self.assertEqual(stream.feed(data), data)
                found.append((stream.finished, stream.usage, stream.weight, stream.events))
        self.assertEqual(found[0], found[1])
        with mock.patch.object(sse, "LARGE_BYTES", 10):
            for bad in (b'data: {"error":{"message":"no"}}\n\n', b'data: {"a":[}\n\n', b"data: [[[[[[[[]]]]]]]]\n\n"):
                with self.assertRaises(StreamBroken):
                    EventStream(False).feed(bad)


class BytesHeldTest(unittest.TestCase):
    def test_a_body_that_comes_byte_by_byte_is_one_buffer(self) -> None:
        """A list of its parts would take 40 times its size."""
        response = EngineResponse.__new__(EngineResponse)

        def one(part: bytes) -> Steps[bytes]:
            return part
            yield

        parts = iter([b"x"] * 5_000 + [b""])
        with mock.patch.object(EngineResponse, "read_some", lambda self: one(next(parts))):
            body = drive(response._read_on(bytearray(), 10_000))
        self.assertEqual(body, bytearray(b"x" * 5_000))


if __name__ == "__main__":
    unittest.main()
