"""Streams between chat's chunks and the events of Anthropic's messages."""

from __future__ import annotations

import json
import unittest
from typing import Any, Optional

from gateway.dialects.anthropic.reading import MessagesReader
from gateway.dialects.anthropic.writing import PING, MessagesWriter
from gateway.dialects.cutting import Cutter
from gateway.errors import EngineFailed
from gateway.upstream.eventlines import StreamBroken
from gateway.upstream.sse import EventStream

MALFORMED: list[Any] = [None, 7, True, "x", [], {}, [7], [{}], {"a": 1}, [None], [[]]]
ZERO = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}


def chunk(delta: Any = None, finish: Any = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": finish}
    return {"id": "chat-1", "model": "m", "choices": [choice], **fields}


def call(index: Optional[int], arguments: str = "", call_id: Optional[str] = None, name: Optional[str] = None) -> Any:
    piece: dict[str, Any] = {"function": {"arguments": arguments}}
    if index is not None:
        piece["index"] = index
    if call_id is not None:
        piece["id"] = call_id
    if name is not None:
        piece["function"]["name"] = name
    return {"tool_calls": [piece]}


def writer(*stops: str) -> MessagesWriter:
    return MessagesWriter("asked", frozenset(stops), 9)


def events_in(data: bytes) -> list[tuple[str, Any]]:
    """Each event's name and data; that `type` says the name again is checked and left out."""
    found = []
    for event in Cutter().feed(data):
        said = json.loads(event.data)
        assert said.pop("type") == event.name.decode(), event
        found.append((event.name.decode(), said))
    return found


def written(*chunks: Any, stops: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    """The events of a whole stream, but for the first two."""
    one = writer(*stops)
    data = b"".join(one.chunk(each) for each in chunks) + one.done()
    events = events_in(data)
    names = [name for name, _ in events]
    assert names[:2] == ["message_start", "ping"] and not {"message_start", "ping"}.intersection(names[2:]), names
    return events[2:]


def start(index: int, **block: Any) -> tuple[str, Any]:
    return "content_block_start", {"index": index, "content_block": block}


def piece(index: int, **delta: Any) -> tuple[str, Any]:
    return "content_block_delta", {"index": index, "delta": delta}


def stop(index: int) -> tuple[str, Any]:
    return "content_block_stop", {"index": index}


def end(reason: str, sequence: Optional[str] = None, prompt: int = 9, output: int = 0) -> list[tuple[str, Any]]:
    usage = {"input_tokens": prompt, "output_tokens": output, **ZERO}
    return [
        ("message_delta", {"delta": {"stop_reason": reason, "stop_sequence": sequence}, "usage": usage}),
        ("message_stop", {}),
    ]


class WriterTest(unittest.TestCase):
    def test_a_message_begins_with_what_is_known_of_it(self) -> None:
        self.assertEqual(
            events_in(writer().chunk(chunk({"role": "assistant", "content": ""}))),
            [
                (
                    "message_start",
                    {
                        "message": {
                            "id": "chat-1",
                            "type": "message",
                            "role": "assistant",
                            "model": "m",
                            "content": [],
                            "stop_reason": None,
                            "stop_sequence": None,
                            "usage": {"input_tokens": 9, "output_tokens": 0, **ZERO},
                        }
                    },
                ),
                ("ping", {}),
            ],
        )

    def test_texts_are_one_block(self) -> None:
        self.assertEqual(
            written(chunk({"content": "he"}), chunk({"content": "y"}), chunk(finish="stop")),
            [
                start(0, type="text", text=""),
                piece(0, type="text_delta", text="he"),
                piece(0, type="text_delta", text="y"),
                stop(0),
                *end("end_turn"),
            ],
        )

    def test_thinking_text_and_calls_are_blocks_one_after_another(self) -> None:
        self.assertEqual(
            written(
                chunk({"reasoning_content": "hm"}),
                chunk({"content": "x"}),
                chunk(call(0, "", "call_1", "f")),
                chunk(call(0, '{"a"')),
                chunk(call(0, ":1}")),
                chunk(call(1, "{}", "call_2", "g")),
                chunk(finish="tool_calls"),
            ),
            [
                start(0, type="thinking", thinking="", signature=""),
                piece(0, type="thinking_delta", thinking="hm"),
                stop(0),
                start(1, type="text", text=""),
                piece(1, type="text_delta", text="x"),
                stop(1),
                start(2, type="tool_use", id="call_1", name="f", input={}),
                piece(2, type="input_json_delta", partial_json='{"a"'),
                piece(2, type="input_json_delta", partial_json=":1}"),
                stop(2),
                start(3, type="tool_use", id="call_2", name="g", input={}),
                piece(3, type="input_json_delta", partial_json="{}"),
                stop(3),
                *end("tool_use"),
            ],
        )

    def test_thinking_keeps_its_signature_and_its_blocks(self) -> None:
        def thought(index: int, **fields: Any) -> Any:
            return chunk(
                {"thinking_blocks": [{"index": index, "type": "thinking", **fields}], "reasoning_content": "?"}
            )

        redacted = {"index": 1, "type": "redacted_thinking", "data": "xyz"}
        self.assertEqual(
            written(
                thought(0, thinking="a"),
                thought(0, thinking="b"),
                thought(0, signature="s"),
                chunk({"thinking_blocks": [redacted]}),
                thought(2, thinking="c"),
            )[:-2],
            [
                start(0, type="thinking", thinking="", signature=""),
                piece(0, type="thinking_delta", thinking="a"),
                piece(0, type="thinking_delta", thinking="b"),
                piece(0, type="signature_delta", signature="s"),
                stop(0),
                start(1, type="redacted_thinking", data="xyz"),
                stop(1),
                start(2, type="thinking", thinking="", signature=""),
                piece(2, type="thinking_delta", thinking="c"),
                stop(2),
            ],
        )

    def test_thinking_without_an_index_ends_behind_its_signature(self) -> None:
        blocks = [
            {"type": "thinking", "thinking": "a"},
            {"type": "thinking", "thinking": "b", "signature": "s"},
            {"type": "thinking", "thinking": "c", "signature": "t"},
        ]
        found = written(*(chunk({"thinking_blocks": [block]}) for block in blocks))
        self.assertEqual([name for name, _ in found].count("content_block_start"), 2)

    def test_usage_comes_when_it_is_known(self) -> None:
        usage = {"prompt_tokens": 50, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 20}}
        found = written(chunk({"content": "x"}), chunk(finish="length"), {"choices": [], "usage": usage})
        self.assertEqual(found[-2][1]["delta"]["stop_reason"], "max_tokens")
        self.assertEqual(
            found[-2][1]["usage"],
            {
                "input_tokens": 30,
                "output_tokens": 7,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 20,
            },
        )

    def test_a_stop_sequence_is_told(self) -> None:
        last = chunk(finish="stop")
        last["choices"][0]["stop_reason"] = "END"
        self.assertEqual(written(last, stops=("END",)), end("stop_sequence", "END"))
        self.assertEqual(written(last), end("end_turn"))

    def test_a_call_is_told_once_it_has_a_name(self) -> None:
        found = written(chunk(call(0, "{", "call_1")), chunk(call(0, "}", name="f")))
        self.assertEqual(
            found[:2],
            [
                start(0, type="tool_use", id="call_1", name="f", input={}),
                piece(0, type="input_json_delta", partial_json="{}"),
            ],
        )
        self.assertEqual(written(chunk(call(0, "{}", "call_1"))), end("end_turn"))

    def test_calls_without_an_index_are_told_apart_by_their_ids(self) -> None:
        found = written(
            chunk(call(None, "{}", "call_1", "f")), chunk(call(None, "{", "call_2", "g")), chunk(call(None, "}"))
        )
        self.assertEqual(
            [said["content_block"]["id"] for name, said in found if name == "content_block_start"], ["call_1", "call_2"]
        )
        self.assertEqual(found[4], piece(1, type="input_json_delta", partial_json="{"))
        self.assertEqual(found[5], piece(1, type="input_json_delta", partial_json="}"))

    def test_calls_that_come_in_turns_are_told_one_by_one(self) -> None:
        turns = [
            call(0, "", "a", "f"),
            call(1, "", "b", "g"),
            call(0, '{"x'),
            call(1, "{"),
            call(0, '": 1}'),
            call(1, "}"),
        ]
        first = [
            start(0, type="tool_use", id="a", name="f", input={}),
            piece(0, type="input_json_delta", partial_json='{"x'),
            piece(0, type="input_json_delta", partial_json='": 1}'),
            stop(0),
        ]
        second = [
            start(1, type="tool_use", id="b", name="g", input={}),
            piece(1, type="input_json_delta", partial_json="{}"),
            stop(1),
        ]
        self.assertEqual(written(*map(chunk, turns)), [*first, *second, *end("tool_use")])
        thought = chunk({"reasoning_content": "x"})
        self.assertEqual(written(*map(chunk, turns), thought)[:7], [*first, *second])
        words = [start(2, type="text", text=""), piece(2, type="text_delta", text="x"), stop(2)]
        found = written(*map(chunk, [*turns, {"content": "x"}]))
        self.assertEqual(found, [*first, *second, *words, *end("tool_use")])

    def test_only_the_first_choice_is_told(self) -> None:
        other = {"choices": [{"index": 1, "delta": {"content": "x"}, "finish_reason": "length"}]}
        self.assertEqual(written(other), end("end_turn"))

    def test_a_ping_may_come_at_any_time_but_behind_the_end(self) -> None:
        one = writer()
        self.assertEqual(one.alive(), PING)
        self.assertTrue(one.chunk(chunk({"content": "x"})))
        self.assertEqual(one.alive(), PING)
        one.done()
        self.assertEqual(one.alive(), b"")

    def test_an_empty_stream_is_an_empty_message(self) -> None:
        self.assertEqual(
            [name for name, _ in events_in(writer().done())], ["message_start", "ping", "message_delta", "message_stop"]
        )

    def test_a_broken_stream_ends_with_its_error(self) -> None:
        one = writer()
        one.chunk(chunk({"content": "x"}))
        data = one.failed(EngineFailed("overloaded", "no engine is left"), "req-1")
        error = {"type": "overloaded_error", "message": "no engine is left", "details": {"error_code": "overloaded"}}
        self.assertEqual(events_in(data), [("error", {"error": error, "request_id": "req-1"})])
        self.assertEqual(one.done() + one.chunk(chunk({"content": "y"})) + one.alive(), b"")

    def test_what_is_malformed_counts_as_absent(self) -> None:
        for odd in MALFORMED:
            for said in (
                {"choices": odd, "usage": odd, "id": odd, "model": odd},
                {"choices": [odd]},
                {"choices": [{"index": odd, "delta": odd, "finish_reason": odd}]},
                chunk({"content": odd, "reasoning_content": odd, "tool_calls": odd, "thinking_blocks": odd}),
                chunk({"tool_calls": [{"index": odd, "id": odd, "function": odd}]}),
                chunk({"tool_calls": [{"index": odd, "function": {"name": odd, "arguments": odd}}]}),
                chunk({"thinking_blocks": [{"index": odd, "type": "thinking", "thinking": odd, "signature": odd}]}),
            ):
                with self.subTest(said=said):
                    self.assertEqual(written(said)[-1], ("message_stop", {}))


def sse(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


def block_start(index: Any, block: Any) -> bytes:
    return sse("content_block_start", index=index, content_block=block)


def block_delta(index: Any, kind: str, **fields: Any) -> bytes:
    return sse("content_block_delta", index=index, delta={"type": kind, **fields})


BEGIN = sse(
    "message_start",
    message={
        "id": "msg_1",
        "model": "claude",
        "usage": {"input_tokens": 5, "cache_read_input_tokens": 20, "output_tokens": 1},
    },
)
TEXT = [
    block_start(0, {"type": "text", "text": ""}),
    sse("ping"),
    block_delta(0, "text_delta", text="Grüße"),
    sse("content_block_stop", index=0),
]
END = [
    sse(
        "message_delta",
        delta={"stop_reason": "end_turn", "stop_sequence": None},
        usage={"output_tokens": 7, "input_tokens": None},
    ),
    sse("message_stop"),
]
CALLS = [
    block_start(1, {"type": "thinking", "thinking": "", "signature": ""}),
    block_delta(1, "thinking_delta", thinking="h"),
    block_delta(1, "thinking_delta", thinking="m"),
    block_delta(1, "signature_delta", signature="sig"),
    sse("content_block_stop", index=1),
    block_start(2, {"type": "redacted_thinking", "data": "xyz"}),
    sse("content_block_stop", index=2),
    block_start(3, {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}),
    block_delta(3, "input_json_delta", partial_json=""),
    block_delta(3, "input_json_delta", partial_json='{"a"'),
    block_delta(3, "input_json_delta", partial_json=": 1}"),
    sse("content_block_stop", index=3),
    block_start(4, {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}),
    block_delta(4, "input_json_delta", partial_json='{"query": "x"}'),
    sse("content_block_stop", index=4),
    block_start(5, {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}}),
    block_delta(5, "input_json_delta", partial_json=""),
    sse("content_block_stop", index=5),
]


def fed(*parts: bytes) -> bytes:
    reader = MessagesReader(7)
    return b"".join(reader.feed(part) for part in parts)


def payloads(data: bytes) -> list[Any]:
    return [
        "[DONE]" if event.data == b"[DONE]" else json.loads(event.data)
        for event in Cutter().feed(data)
        if not event.is_comment
    ]


def deltas(data: bytes) -> list[Any]:
    return [said["choices"][0]["delta"] for said in payloads(data) if said != "[DONE]" and said["choices"]]


class ReaderTest(unittest.TestCase):
    def test_what_is_kept_of_a_stream_is_bounded(self) -> None:
        odd = [sse("message_delta", usage={f"k{at}": "x" * 100, "output_tokens": at}) for at in range(2000)]
        whole = payloads(fed(BEGIN, *odd, sse("message_stop")))
        self.assertEqual(whole[-2]["usage"]["completion_tokens"], 1999)
        self.assertLess(len(json.dumps(whole[-2])), 1000)
        begun = [block_start(at, {"type": "tool_use", "id": f"t{at}", "name": "f"}) for at in range(2000)]
        ended = [sse("content_block_stop", index=at) for at in range(2000)]
        self.assertIn("blocks", payloads(fed(BEGIN, *begun, *ended))[-1]["error"]["message"])
        both = [part for pair in zip(begun, ended) for part in pair]
        self.assertEqual(payloads(fed(BEGIN, *both, sse("message_stop")))[-1], "[DONE]")

    def test_an_event_of_many_values_is_not_read(self) -> None:
        said = payloads(fed(BEGIN, sse("x", values=[0] * 100_000), sse("message_stop")))
        self.assertEqual([next(iter(each)) for each in said[1:]], ["error"])

    def test_a_text(self) -> None:
        common = {"id": "msg_1", "object": "chat.completion.chunk", "created": 7, "model": "claude"}

        def told(delta: Any, finish: Optional[str] = None) -> Any:
            return {**common, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        usage = {
            "prompt_tokens": 25,
            "completion_tokens": 7,
            "total_tokens": 32,
            "prompt_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 0},
            "cache_read_input_tokens": 20,
        }
        self.assertEqual(
            payloads(fed(BEGIN, *TEXT, *END)),
            [
                told({"role": "assistant", "content": ""}),
                told({"content": "Grüße"}),
                told({}, "stop"),
                {**common, "choices": [], "usage": usage},
                "[DONE]",
            ],
        )

    def test_thinking_and_calls_have_numbers_of_their_own(self) -> None:
        def thought(**fields: Any) -> Any:
            return {"index": 0, "type": "thinking", **fields}

        def called(index: int, arguments: str) -> Any:
            return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}

        def begun(index: int, call_id: str, name: str) -> Any:
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}

        self.assertEqual(
            deltas(fed(BEGIN, *TEXT, *CALLS))[2:],
            [
                {"thinking_blocks": [thought(thinking="h", behind=[5])], "reasoning_content": "h"},
                {"thinking_blocks": [thought(thinking="m")], "reasoning_content": "m"},
                {"thinking_blocks": [thought(signature="sig")]},
                {"thinking_blocks": [{"index": 1, "type": "redacted_thinking", "data": "xyz"}]},
                begun(0, "toolu_1", "f"),
                called(0, '{"a"'),
                called(0, ": 1}"),
                begun(1, "toolu_2", "g"),
                called(1, "{}"),
            ],
        )

    def test_a_stop_sequence_is_told(self) -> None:
        last = sse("message_delta", delta={"stop_reason": "stop_sequence", "stop_sequence": "END"}, usage={})
        choice = payloads(fed(BEGIN, *TEXT, last))[-1]["choices"][0]
        self.assertEqual((choice["finish_reason"], choice["stop_reason"]), ("stop", "END"))

    def test_a_reason_that_chat_has_not_comes_through_from_end_to_end(self) -> None:
        for reason, finish in (("pause_turn", "stop"), ("model_context_window_exceeded", "length")):
            last = sse("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage={})
            chunks = payloads(fed(BEGIN, *TEXT, last))
            self.assertEqual(chunks[-1]["choices"][0]["finish_reason"], finish)
            self.assertEqual(written(*chunks)[-2][1]["delta"], {"stop_reason": reason, "stop_sequence": None})

    def test_a_ping_is_a_comment(self) -> None:
        self.assertEqual(fed(sse("ping")), b": ping\n\n")
        self.assertEqual(fed(b": hello\n\n"), b": ping\n\n")

    def test_every_split_gives_the_same(self) -> None:
        for newline in (b"\n", b"\r\n", b"\r"):
            whole = b"".join([BEGIN, *TEXT, *CALLS[7:12], *END]).replace(b"\n", newline)
            expected = fed(whole)
            self.assertTrue(expected.endswith(b"data: [DONE]\n\n"))
            self.assertEqual(fed(*(whole[at : at + 1] for at in range(len(whole)))), expected)
            # (a split anywhere in the first events, where all kinds of lines are)
            for at in range(len(whole) if newline == b"\n" else len(BEGIN + TEXT[0])):
                self.assertEqual(fed(whole[:at], whole[at:]), expected, at)

    def test_what_has_not_ended_well_is_not_done(self) -> None:
        self.assertNotIn(b"[DONE]", fed(BEGIN, *TEXT, END[0]))

    def test_an_error_ends_it(self) -> None:
        error = sse("error", error={"type": "overloaded_error", "message": "Overloaded"})
        data = fed(BEGIN, error + b"".join(END))
        told = {"message": "Overloaded", "type": "server_error", "code": "overloaded", "param": None}
        self.assertEqual(payloads(data)[-1], {"error": told})
        self.assertNotIn(b"[DONE]", data)

    def test_an_event_that_cannot_be_read_is_an_error(self) -> None:
        for odd in (b"no JSON", b"7", b"[]", b"\xff", b'{"a":' * 100_000, b'{"a":%b}' % (b"9" * 5000)):
            data = fed(BEGIN, b"data: %b\n\n" % odd, *END)
            self.assertIn("error", payloads(data)[-1])

    def test_its_chunks_are_a_stream_of_chat(self) -> None:
        for last, prompt_tokens in ((END, 25), (END[1:], None)):
            stream = EventStream(hide_usage=False, keep_text=True)
            stream.feed(fed(BEGIN, *TEXT, *last))
            self.assertTrue(stream.done)
            self.assertEqual(stream.text, "Grüße")
            self.assertEqual((stream.usage or {}).get("prompt_tokens"), prompt_tokens)
        with self.assertRaises(StreamBroken) as caught:
            EventStream(hide_usage=False).feed(fed(BEGIN, sse("error", error={"type": "api_error", "message": "oh"})))
        self.assertIn("oh", str(caught.exception))

    def test_what_is_malformed_counts_as_absent(self) -> None:
        for odd in MALFORMED:
            for part in (
                sse("message_start", message=odd),
                sse("message_start", message={"id": odd, "model": odd, "usage": odd}),
                block_start(odd, odd),
                block_start(0, {"type": odd}),
                block_start(0, {"type": "text", "text": odd}),
                block_start(0, {"type": "thinking", "thinking": odd, "signature": odd}),
                block_start(0, {"type": "tool_use", "id": odd, "name": odd, "input": odd}),
                block_delta(odd, "text_delta", text=odd),
                block_delta(0, "input_json_delta", partial_json=odd),
                block_delta(0, "thinking_delta", thinking=odd),
                sse("content_block_stop", index=odd),
                sse("message_delta", delta=odd, usage=odd),
                sse("message_delta", delta={"stop_reason": odd, "stop_sequence": odd}, usage={"input_tokens": odd}),
                sse("something_new", said=odd),
            ):
                with self.subTest(part=part):
                    data = fed(part, *CALLS[7:12], part, *END)
                    self.assertTrue(data.endswith(b"data: [DONE]\n\n"))
                    self.assertNotIn(b'"error"', data)


if __name__ == "__main__":
    unittest.main()
