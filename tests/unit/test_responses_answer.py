"""What a Responses client is told: the Response of a complete answer, and a stream's events in their order."""

from __future__ import annotations

import json
import unittest
from typing import Any, Optional

from gateway.dialects.responses.conversation import Conversation, Writer, read
from gateway.errors import EngineFailed

Json = dict[str, Any]

USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
CUSTOM = {"type": "custom", "name": "shout"}
ERROR = EngineFailed("backend_error", "the engine's stream broke off")


def asked(**fields: Any) -> Conversation:
    return read({"input": "hi", "model": "asked-for", **fields})


def chunk(delta: Optional[Json] = None, finish: Optional[str] = None, **extra: Any) -> Json:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish, **extra}
    return {"id": "chat-1", "created": 1700000000, "model": "m", "choices": [choice]}


def called(index: int, name: str = "", arguments: str = "", call_id: str = "") -> Json:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value}
    return {"tool_calls": [{"index": index, **({"id": call_id} if call_id else {}), "function": function}]}


def answer(message: Json, finish: str = "stop", conversation: Optional[Conversation] = None, **extra: Any) -> Json:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, **extra}
    chat = {"id": "chat-1", "created": 1700000000, "model": "m", "choices": [choice], "usage": USAGE}
    return (conversation or asked()).answer(chat)


def events_of(wire: bytes) -> list[Json]:
    """The events, each of which must be named by its line as by its type."""
    events = []
    for text in wire.decode().split("\n\n")[:-1]:
        if text.startswith(":"):
            continue
        name, data = text.split("\n")
        event = json.loads(data[len("data: ") :])
        assert name == f"event: {event['type']}", text
        events.append(event)
    return events


def told(*chunks: Json, writer: Optional[Writer] = None) -> list[Json]:
    writer = writer or asked().events(0)
    return events_of(b"".join(map(writer.chunk, chunks)) + writer.done())


def types(events: list[Json]) -> list[str]:
    return [event["type"].replace("response.", "") for event in events]


class AnswerTest(unittest.TestCase):
    def test_a_text_is_a_message(self) -> None:
        response = answer({"content": "Hello"})
        part = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
        message = {"type": "message", "role": "assistant", "id": "msg_chat-1_0", "status": "completed"}
        self.assertEqual(response["output"], [{**message, "content": [part]}])
        self.assertEqual(
            (response["id"], response["object"], response["created_at"]), ("resp_chat-1", "response", 1700000000)
        )
        self.assertEqual((response["model"], response["status"], response["error"]), ("m", "completed", None))
        self.assertIsNone(response["incomplete_details"])

    def test_usage_has_other_names(self) -> None:
        usage = answer({"content": "x"})["usage"]
        self.assertEqual((usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]), (7, 5, 12))
        self.assertEqual(usage["input_tokens_details"], {"cached_tokens": 3, "cache_write_tokens": 2})
        self.assertEqual(usage["output_tokens_details"], {"reasoning_tokens": 2})

    def test_thoughts_come_first_and_calls_last(self) -> None:
        calls = [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}},
            {"id": "c2", "type": "function", "function": {"name": "shout", "arguments": '{"input": "hey"}'}},
        ]
        message = {"reasoning_content": "hm", "content": "I look", "tool_calls": calls}
        output = answer(message, "tool_calls", asked(tools=[CUSTOM]))["output"]
        kinds = ["reasoning", "message", "function_call", "custom_tool_call"]
        self.assertEqual([item["type"] for item in output], kinds)
        self.assertEqual(output[0]["content"], [{"type": "reasoning_text", "text": "hm"}])
        self.assertEqual((output[2]["call_id"], output[2]["arguments"]), ("c1", '{"at": 1}'))
        self.assertEqual(output[3]["input"], "hey")
        self.assertEqual(len({item["id"] for item in output}), 4)

    def test_a_call_of_a_tool_in_a_namespace_says_both_names(self) -> None:
        inner = [{"type": "function", "name": "go"}, CUSTOM]
        tools = [{"type": "function", "name": "go"}, {"type": "namespace", "name": "crm", "tools": inner}]
        names = ("crm__go", "go", "crm__shout")
        calls = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in names]
        output = answer({"tool_calls": calls}, "tool_calls", asked(tools=tools))["output"]
        said = [(item["type"], item["name"], item.get("namespace")) for item in output]
        expected = [("function_call", "go", "crm"), ("function_call", "go", None), ("custom_tool_call", "shout", "crm")]
        self.assertEqual(said, expected)
        events = told(chunk(called(0, "crm__go", "{}", "c1")), writer=asked(tools=tools).events(0))
        items = [event["item"] for event in events if event["type"].startswith("response.output_item")]
        self.assertEqual([(item["name"], item["namespace"]) for item in items], [("go", "crm")] * 2)

    def test_a_custom_tools_input_is_all_that_was_written_where_it_is_no_argument(self) -> None:
        for written in ("hey", "3", "[]", '{"other": "hey"}', '{"input": 3}', "[" * 100_000):
            calls = [{"id": "c1", "function": {"name": "shout", "arguments": written}}]
            output = answer({"tool_calls": calls}, "tool_calls", asked(tools=[CUSTOM]))["output"]
            self.assertEqual(output[0]["input"], written)

    def test_a_call_without_an_id_gets_one(self) -> None:
        calls = [{"function": {"name": name, "arguments": "{}"}} for name in ("look", "go")]
        first, second = answer({"content": None, "tool_calls": calls})["output"]
        self.assertTrue(first["call_id"])
        self.assertNotEqual(first["call_id"], second["call_id"])

    def test_a_refusal_is_a_part_of_the_message(self) -> None:
        content = answer({"content": None, "refusal": "No."})["output"][0]["content"]
        self.assertEqual(content, [{"type": "refusal", "refusal": "No."}])

    def test_an_answer_that_says_nothing_is_an_empty_text(self) -> None:
        self.assertEqual(answer({"content": ""})["output"][0]["content"][0]["text"], "")

    def test_what_was_cut_off_is_incomplete(self) -> None:
        for finish, reason in (("length", "max_output_tokens"), ("content_filter", "content_filter")):
            with self.subTest(finish=finish):
                response = answer({"reasoning": "hm", "content": "Hel"}, finish)
                self.assertEqual(
                    (response["status"], response["incomplete_details"]), ("incomplete", {"reason": reason})
                )
                self.assertEqual([item["status"] for item in response["output"]], ["completed", "incomplete"])
        calls = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in ("look", "go")]
        output = answer({"tool_calls": calls}, "length")["output"]
        self.assertEqual([item["status"] for item in output], ["completed", "incomplete"])

    def test_the_requests_settings_are_told_again(self) -> None:
        settings: Json = {
            "instructions": "Be brief.",
            "max_output_tokens": 9,
            "metadata": {"a": "b"},
            "parallel_tool_calls": False,
            "temperature": 0.5,
            "tool_choice": "required",
            "tools": [{"type": "function", "name": "go", "parameters": {"type": "object"}, "strict": True}],
            "top_p": 0.9,
            "user": "u",
        }
        response = answer({"content": "x"}, conversation=asked(**settings))
        self.assertEqual({key: response[key] for key in settings}, settings)
        plain = answer({"content": "x"})
        self.assertEqual((plain["tools"], plain["tool_choice"], plain["parallel_tool_calls"]), ([], "auto", True))
        self.assertEqual((plain["store"], plain["text"], plain["metadata"]), (False, {"format": {"type": "text"}}, {}))

    def test_sources_and_tokens_are_told_with_the_text(self) -> None:
        cited = {"url": "https://e.org", "title": "E", "start_index": 1, "end_index": 4}
        tokens = [
            {"token": "é", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "e", "logprob": -float("inf")}]}
        ]
        message = {"content": "é", "annotations": [{"type": "url_citation", "url_citation": cited}, {"type": "x"}]}
        part = answer(message, logprobs={"content": tokens})["output"][0]["content"][0]
        self.assertEqual(part["annotations"], [{"type": "url_citation", **cited}])
        other = {"token": "e", "logprob": -9999.0, "bytes": [101]}
        expected = {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [other]}
        self.assertEqual(part["logprobs"], [expected])


class EventsTest(unittest.TestCase):
    def test_a_text_is_told_as_it_comes(self) -> None:
        events = told(
            chunk({"role": "assistant", "content": ""}), chunk({"content": "Hel"}), chunk({"content": "lo"}, "stop")
        )
        expected = [
            *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"),
            *("output_text.delta", "output_text.done", "content_part.done", "output_item.done", "completed"),
        ]
        self.assertEqual(types(events), expected)
        self.assertEqual([event["sequence_number"] for event in events], list(range(len(events))))
        self.assertEqual([event["delta"] for event in events[4:6]], ["Hel", "lo"])
        self.assertEqual(events[6]["text"], "Hello")
        self.assertEqual(events[0]["response"]["status"], "in_progress")
        self.assertEqual(events[-1]["response"]["output"], [events[-2]["item"]])

    def test_the_response_is_that_of_a_complete_answer(self) -> None:
        calls = [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}]
        whole = answer({"reasoning_content": "hmm", "content": "I look", "tool_calls": calls}, "tool_calls")
        events = told(
            chunk({"reasoning_content": "h"}),
            chunk({"reasoning_content": "mm"}),
            chunk({"content": "I "}),
            chunk({"content": "look"}),
            chunk(called(0, "look", "", "c1")),
            chunk(called(0, arguments='{"at"')),
            chunk(called(0, arguments=": 1}"), "tool_calls"),
            {"id": "chat-1", "choices": [], "usage": USAGE},
            chunk(),
        )
        self.assertEqual(events[-1]["response"], whole)

    def test_each_item_is_over_before_the_next_speaks(self) -> None:
        events = told(chunk({"reasoning": "hm"}), chunk({"content": "a"}), chunk({"refusal": "No."}, "stop"))
        expected = [
            *("created", "in_progress", "output_item.added", "content_part.added", "reasoning_text.delta"),
            *("reasoning_text.done", "content_part.done", "output_item.done"),
            *("output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done"),
            *(
                "content_part.added",
                "refusal.delta",
                "refusal.done",
                "content_part.done",
                "output_item.done",
                "completed",
            ),
        ]
        self.assertEqual(types(events), expected)
        self.assertEqual([event.get("output_index") for event in events[2:-1]], [0] * 6 + [1] * 10)
        self.assertEqual([event["content_index"] for event in events if "content_index" in event][-4:], [1] * 4)

    def test_calls_whose_parts_come_by_turns_are_all_whole(self) -> None:
        events = told(
            chunk(called(0, "look", "{", "c1")),
            chunk(called(1, "go", "", "c2")),
            chunk(called(0, arguments="}")),
            chunk(called(1, arguments="{ }"), "tool_calls"),
        )
        expected = [
            *("created", "in_progress", "output_item.added", "function_call_arguments.delta", "output_item.added"),
            *("function_call_arguments.delta", "function_call_arguments.delta"),
            *("function_call_arguments.done", "output_item.done") * 2,
            "completed",
        ]
        self.assertEqual(types(events), expected)
        self.assertEqual([item["arguments"] for item in events[-1]["response"]["output"]], ["{}", "{ }"])

    def test_a_call_is_told_once_its_name_is_known_and_one_that_never_has_one_is_not(self) -> None:
        events = told(
            chunk(called(0, arguments="{", call_id="c1")),
            chunk(called(0, "look", "}")),
            chunk(called(1, arguments="{}")),
        )
        self.assertEqual(events[2]["item"]["name"], "look")
        self.assertEqual(events[3]["delta"], "{}")
        self.assertEqual(len(events[-1]["response"]["output"]), 1)

    def test_calls_that_share_an_index_or_have_none_are_told_apart(self) -> None:
        parts = [{"id": f"c{n}", "function": {"name": "go", "arguments": str(n)}} for n in range(2)]
        for index in ({"index": 0}, {}):
            events = told(*(chunk({"tool_calls": [{**part, **index}]}) for part in parts))
            output = events[-1]["response"]["output"]
            self.assertEqual([(item["call_id"], item["arguments"]) for item in output], [("c0", "0"), ("c1", "1")])

    def test_a_custom_tools_input_is_told_at_the_end(self) -> None:
        writer = asked(tools=[CUSTOM]).events(0)
        events = told(chunk(called(0, "shout", '{"inp', "c1")), chunk(called(0, arguments='ut": "a"}')), writer=writer)
        expected = [
            "output_item.added",
            "custom_tool_call_input.delta",
            "custom_tool_call_input.done",
            "output_item.done",
        ]
        self.assertEqual(types(events)[2:-1], expected)
        self.assertEqual((events[3]["delta"], events[4]["input"], events[5]["item"]["input"]), ("a", "a", "a"))

    def test_a_text_that_was_cut_off_ends_incomplete(self) -> None:
        events = told(chunk({"content": "Hel"}, "length"))
        self.assertEqual(types(events)[-2:], ["output_item.done", "incomplete"])
        self.assertEqual(events[-2]["item"]["status"], "incomplete")

    def test_sources_and_tokens_are_told_as_they_come(self) -> None:
        tokens = [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]
        cited = {"url": "https://e.org", "title": "E", "start_index": 0, "end_index": 1}
        source = {"annotations": [{"type": "url_citation", "url_citation": cited}]}
        events = told(chunk({"content": "a"}, logprobs={"content": tokens}), chunk(source, "stop"))
        self.assertEqual((events[4]["logprobs"], events[6]["logprobs"]), (tokens, tokens))
        self.assertEqual(
            (events[5]["type"], events[5]["annotation_index"]), ("response.output_text.annotation.added", 0)
        )
        self.assertEqual(events[7]["part"]["annotations"], [{"type": "url_citation", **cited}])

    def test_of_several_choices_the_first_is_told(self) -> None:
        both = chunk({"content": "a"})
        both["choices"].insert(0, {"index": 1, "delta": {"content": "b"}})
        self.assertEqual(told(both)[-1]["response"]["output"][0]["content"][0]["text"], "a")

    def test_a_response_is_called_by_the_first_chunk_that_says_something(self) -> None:
        events = told({"id": "", "model": "", "choices": []}, chunk({"content": "a"}))
        self.assertEqual({event["response"]["id"] for event in events if "response" in event}, {"resp_chat-1"})

    def test_a_stream_that_says_nothing_ends_all_the_same(self) -> None:
        events = told()
        self.assertEqual((types(events)[:2], types(events)[-1]), (["created", "in_progress"], "completed"))
        self.assertEqual(events[-1]["response"]["model"], "asked-for")

    def test_waiting_is_a_comment(self) -> None:
        self.assertEqual(asked().events(0).alive(), b": alive\n\n")

    def test_what_is_malformed_counts_as_absent(self) -> None:
        odd: Any = (None, 3, "x", [], {}, [None], {"index": "x"}, float("inf"))
        writer = asked(tools=[CUSTOM]).events(0)
        for value in odd:
            for key in ("id", "created", "model", "choices", "usage", "service_tier"):
                writer.chunk({**chunk({"content": "a"}), key: value})
            for key in ("content", "reasoning", "refusal", "tool_calls", "annotations"):
                writer.chunk(chunk({key: value}))
            writer.chunk(chunk({"tool_calls": [{"index": value, "id": value, "function": value}]}))
            writer.chunk(chunk({"tool_calls": [{"function": {"name": value, "arguments": value}}]}))
            for key in ("logprobs", "finish_reason", "delta", "index"):
                choice = {**chunk({"content": "a"})["choices"][0], key: value}
                writer.chunk({**chunk(), "choices": [choice]})
            writer.chunk(chunk({"content": "a"}, logprobs={"content": [{"token": value, "logprob": value}]}))
        self.assertEqual(types(events_of(writer.done()))[-1], "completed")


class FailureTest(unittest.TestCase):
    def test_a_broken_stream_ends_in_an_error_and_is_not_completed(self) -> None:
        writer = asked().events(0)
        wire = writer.chunk(chunk({"content": "Hel"})) + writer.failed(ERROR, "req-1")
        events = events_of(wire)
        self.assertEqual(types(events)[-2:], ["failed", "error"])
        failed, error = events[-2:]
        self.assertEqual(failed["response"]["status"], "failed")
        self.assertEqual(failed["response"]["error"], {"code": "server_error", "message": ERROR.message})
        self.assertEqual(failed["response"]["output"][0]["content"][0]["text"], "Hel")
        said = {"code": "backend_error", "message": ERROR.message, "param": None}
        self.assertEqual({key: error[key] for key in said}, said)
        self.assertEqual((error["error"], error["request_id"]), (said, "req-1"))
        self.assertEqual([event["sequence_number"] for event in events], list(range(len(events))))

    def test_of_a_stream_that_has_not_begun_only_the_error_is_told(self) -> None:
        self.assertEqual(types(events_of(asked().events(0).failed(ERROR, "req-1"))), ["error"])

    def test_too_many_requests_are_told_as_such(self) -> None:
        writer = asked().events(0)
        writer.chunk(chunk({"content": "a"}))
        failed = events_of(writer.failed(EngineFailed("backend_rate_limited", "slow down"), "r"))[0]
        self.assertEqual(failed["response"]["error"]["code"], "rate_limit_exceeded")
