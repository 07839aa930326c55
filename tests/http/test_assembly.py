"""One answer, put together from the events of a stream that nobody asked for."""

from __future__ import annotations

import json
import math
import socket
import threading
import unittest
from typing import Any, Optional

from gateway.steps import drive
from gateway.upstream.assembly import PARSED_MAX_BYTES, assemble
from gateway.upstream.attempt import Attempt, EngineFault
from gateway.upstream.connection import Connection
from gateway.upstream.connections import ConnectionPool
from gateway.upstream.framing import ResponseHead
from gateway.upstream.response import EngineResponse
from gateway.upstream.sse import EventStream
from gateway.upstream.stream import EngineStream
from tests.scripted import DONE, delta
from tests.support import TIMEOUT_S

CHAT, COMPLETIONS = "/chat/completions", "/completions"


def event(*choices: Any, **more: Any) -> bytes:
    """An event with these choices."""
    return b"data: %b\n\n" % json.dumps({**more, "choices": list(choices)}).encode()


def choice(change: Any = None, finish: Optional[str] = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """A choice of a chat event."""
    return {"index": index, "delta": change or {}, "finish_reason": finish, **more}


def part(arguments: Optional[str] = None, index: Optional[int] = 0, name: Optional[str] = None, **more: Any) -> Any:
    """A part of a tool call, in a delta."""
    function = {"arguments": arguments, "name": name}
    call = {"index": index, "function": {k: v for k, v in function.items() if v is not None}, **more}
    return {"tool_calls": [{k: v for k, v in call.items() if v is not None}]}


class AssemblyTest(unittest.TestCase):
    def stream(self, data: bytes, choices: int = 1, max_bytes: int = 1 << 26, path: str = CHAT) -> bytes:
        """What is put together of a stream with this body, which ends with its connection."""
        ours, engine = socket.socketpair()

        def send() -> None:
            with engine:
                try:
                    engine.sendall(data)
                except OSError:
                    pass

        ours.setblocking(False)
        thread = threading.Thread(target=send, name="engine")
        thread.start()
        try:
            with ours:
                pool = ConnectionPool("127.0.0.1", 1, None, 1.0)
                response = EngineResponse(ResponseHead(200, {}, True), b"", Connection(ours), pool, Attempt(math.inf))
                stream = EngineStream(response, EventStream(False, choices))
                return bytes(drive(assemble(stream, path, max_bytes)))
        finally:
            thread.join(TIMEOUT_S)

    def answer(self, *events: bytes, choices: int = 1, path: str = CHAT) -> Any:
        return json.loads(self.stream(b"".join(events) + DONE, choices, path=path))

    def test_a_text_takes_no_more_bytes_than_it_came_in(self) -> None:
        text = "\u00e9\u6587\U0001f600" * 1_000
        for ascii_only in (False, True):
            events = json.dumps({"choices": [choice({"content": text}, "stop")]}, ensure_ascii=ascii_only).encode()
            body = self.stream(b"data: %b\n\n" % events + DONE)
            self.assertEqual(json.loads(body)["choices"][0]["message"]["content"], text)
            self.assertLess(len(body), len(text.encode()) + 500)

    def message(self, *changes: Any) -> Any:
        """The message of one choice with these deltas."""
        answer = self.answer(*(event(choice(change)) for change in changes), event(choice({}, "stop")))
        self.assertEqual(len(answer["choices"]), 1)
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
        return answer["choices"][0]["message"]

    def fault(self, data: bytes, path: str = CHAT, max_bytes: int = 1 << 26) -> tuple[str, str]:
        with self.assertRaises(EngineFault) as caught:
            self.stream(data, max_bytes=max_bytes, path=path)
        return caught.exception.outcome.kind, caught.exception.outcome.message

    def test_a_text(self) -> None:
        head = {"id": "c-1", "created": 7, "model": "x", "system_fingerprint": "fp"}
        usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
        answer = self.answer(
            event(choice({"role": "assistant", "content": ""}), object="chat.completion.chunk", usage=None, **head),
            event(choice({"content": "Hel"}), **{**head, "id": "c-2"}),
            event(choice({"content": "l\u00f6 \u6587\ud83d"})),
            event(choice({}, "stop"), service_tier="a"),
            event(choice({"content": ""})),  # which takes no reason back
            event(usage=usage, timings={"ms": 1.5}, service_tier="b"),
        )
        message = {"role": "assistant", "content": "Hell\u00f6 \u6587\ud83d"}
        self.assertEqual(
            answer,
            {
                **head,
                "object": "chat.completion",
                "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
                "usage": usage,
                "timings": {"ms": 1.5},
                "service_tier": "b",
            },
        )

    def test_reasoning_and_refusal(self) -> None:
        message = self.message(
            {"reasoning_content": "a", "reasoning": "A"}, {"reasoning_content": "b"}, {"content": "c"}
        )
        self.assertEqual(message, {"role": "assistant", "content": "c", "reasoning_content": "ab", "reasoning": "A"})
        self.assertEqual(
            self.message({"refusal": "I "}, {"refusal": "won't", "content": None}),
            {"role": "assistant", "content": None, "refusal": "I won't"},
        )

    def test_tool_calls_by_index(self) -> None:
        message = self.message(
            {"role": "assistant", "content": ""},
            part("", 0, "weather", id="a", type="function"),
            part('{"city":', 0),
            part("", 1, "time", id="b", type="function"),
            part('"Rome"}', 0),
            part("{}", 1, id="b", name="time"),  # said once more, as some do
        )
        self.assertIsNone(message["content"])
        self.assertEqual(
            message["tool_calls"],
            [
                {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}},
                {"id": "b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
            ],
        )

    def test_tool_calls_as_some_engines_number_them(self) -> None:
        two = [{"id": "a", "name": "f", "arguments": "{}"}, {"id": "b", "name": "g", "arguments": "{}"}]
        same_index = [part(c["arguments"], 0, c["name"], id=c["id"]) for c in two]
        none = [{"tool_calls": [{**part("{}", None, c["name"], id=c["id"])["tool_calls"][0]} for c in two]}]
        for changes in (same_index, none):
            with self.subTest(changes):
                calls = self.message(*changes)["tool_calls"]
                self.assertEqual([(c["id"], c["function"]["name"]) for c in calls], [("a", "f"), ("b", "g")])
        new_id_each = self.message(part("{", 0, "f", id="a"), part("}", 0, id="z"))["tool_calls"]
        self.assertEqual([(c["id"], c["function"]["arguments"]) for c in new_id_each], [("a", "{}")])
        signed = self.message(part("{}", 0, "f", id="a", extra_content={"google": {"thought_signature": "s"}}))
        self.assertEqual(signed["tool_calls"][0]["extra_content"], {"google": {"thought_signature": "s"}})
        as_object = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": {"a": 1}}}]}
        self.assertEqual(self.message(as_object)["tool_calls"][0]["function"]["arguments"], '{"a":1}')

    def test_a_function_call(self) -> None:
        message = self.message(
            {"function_call": {"name": "f", "arguments": ""}},
            {"function_call": {"arguments": "{"}},
            {"function_call": {"arguments": "}"}},
        )
        self.assertEqual(
            message, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
        )

    def test_content_in_parts_and_what_nobody_knows(self) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        message = self.message({"content": parts[:1], "x": 1}, {"content": parts[1:], "x": 2}, {"annotations": [1]})
        self.assertEqual(message, {"role": "assistant", "content": parts, "annotations": [1], "x": 2})

    def test_choices_by_index(self) -> None:
        answer = self.answer(
            event(choice({"content": "b"}, index=1), choice({"content": "a"})),
            event(choice({"content": "A"}, "stop")),
            event(choice({"content": "B"}, "length", 1, stop_reason=7)),
            choices=2,
        )
        found = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in answer["choices"]]
        self.assertEqual(found, [(0, "aA", "stop"), (1, "bB", "length")])
        self.assertEqual(answer["choices"][1]["stop_reason"], 7)

    def test_log_probabilities_are_joined(self) -> None:
        one, two = {"token": "a", "logprob": -1.0, "bytes": [97]}, {"token": "b", "logprob": None}
        raw = event(choice({"content": "b"}, "stop", logprobs={"content": [two]})).replace(b"null}", b"-Infinity}", 1)
        answer = self.answer(event(choice({"content": "a"}, logprobs={"content": [one], "refusal": None})), raw)
        self.assertEqual(answer["choices"][0]["logprobs"], {"content": [one, two]})

    def test_completions(self) -> None:
        def piece(text: str, finish: Optional[str] = None, offset: int = 0) -> dict[str, Any]:
            logprobs = {"tokens": [text], "text_offset": [offset]}
            return {"index": 0, "text": text, "finish_reason": finish, "logprobs": logprobs}

        answer = self.answer(event(piece("a"), id="x"), event(piece("b", "stop", 1)), path=COMPLETIONS)
        logprobs = {"tokens": ["a", "b"], "text_offset": [0, 1]}
        wanted = {"index": 0, "text": "ab", "logprobs": logprobs, "finish_reason": "stop"}
        self.assertEqual(answer, {"id": "x", "object": "text_completion", "choices": [wanted]})

    def test_events_however_they_are_written(self) -> None:
        body = (
            b": hi\r\n\r\nevent: message\r\nid: 1\r\ndata:"
            + event(choice({"content": "a"}))[6:-2]
            + b"\r\n\r\nretry: 5\n\n"
            + event(choice({"content": "b"}, "stop"))[:-2]
        )
        answer = json.loads(self.stream(body))  # without [DONE], nor the end of the last line
        self.assertEqual(answer["choices"][0]["message"]["content"], "ab")

    def test_what_breaks_a_stream_breaks_this(self) -> None:
        begun = event(choice({"content": "a"}))
        for rest, kind, text in (
            (b"", "truncated", "without finishing"),
            (DONE, "invalid", "without finishing"),
            (b'data: {"error": {"message": "no room"}}\n\n', "invalid", "no room"),
            (b"data: {]\n\n", "invalid", "not JSON"),
        ):
            with self.subTest(rest):
                found, message = self.fault(begun + rest)
                self.assertEqual(found, kind)
                self.assertIn(text, message)

    def test_what_makes_no_answer_is_named_for_what_it_is(self) -> None:
        end = event(choice({}, "stop")) + DONE
        bodies = {
            "a text and something else": event(choice({"content": "a"})) + event(choice({"content": ["b"]})) + end,
            "too many keys": event(choice({f"k{i}": 1 for i in range(40)})) + end,
            "an event too large": event(choice({"content": "x" * PARSED_MAX_BYTES})) + end,
            "too many tool calls": b"".join(
                event(choice({"tool_calls": [{"index": i} for i in range(n, n + 1000)]})) for n in range(0, 5000, 1000)
            )
            + end,
        }
        for name, body in bodies.items():
            with self.subTest(name):
                kind, message = self.fault(body)
                self.assertEqual(kind, "unasked_stream")
                self.assertIn("an event stream though none was asked for", message)
        self.assertEqual(self.fault(end, "/embeddings")[0], "unasked_stream")

    def test_numbers_that_nobody_can_write_again_become_null(self) -> None:
        begun = event(choice({"x": 1, "y": 2})).replace(b'"x": 1, "y": 2', b'"x": 1e999, "y": -Infinity')
        answer = json.loads(self.stream(begun + event(choice({}, "stop")) + DONE), parse_constant=self.fail)
        message = answer["choices"][0]["message"]
        self.assertEqual((message["x"], message.get("y")), (None, None))

    def test_events_that_only_a_line_end_parts_are_events(self) -> None:
        events = event(choice({"content": "a"})) + event(choice({"content": "b"}, "stop")) + DONE
        answer = json.loads(self.stream(events.replace(b"\n\n", b"\n")))
        self.assertEqual(answer["choices"][0]["message"]["content"], "ab")

    def test_more_bytes_than_an_answer_may_have(self) -> None:
        body = event(choice({"content": "x" * 1000})) * 20 + event(choice({}, "stop")) + DONE
        self.assertEqual(self.fault(body, max_bytes=10_000)[0], "invalid")
        self.assertEqual(
            len(json.loads(self.stream(body, max_bytes=30_000))["choices"][0]["message"]["content"]), 20_000
        )

    def test_a_great_many_small_events_take_as_long_as_their_number(self) -> None:
        # Counted, not timed: what is kept of an event is added to a list, and joined once.
        count = 20_000
        answer = json.loads(self.stream(delta("ab") * count + delta("", "stop") + DONE))
        self.assertEqual(answer["choices"][0]["message"]["content"], "ab" * count)


if __name__ == "__main__":
    unittest.main()
