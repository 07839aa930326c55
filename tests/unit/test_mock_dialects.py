"""What the mock engine says in each dialect: tools in rounds, structured output, the order of events, refusals."""

from __future__ import annotations

import json
import unittest
from collections.abc import Callable
from typing import Any

from gateway.mock import answers, messages, passing, responses
from gateway.mock.saying import Asked, BadRequest, Stream
from gateway.mock.state import Conversations

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TEXT = "Mock answer from m at 1: "


def asked(path: str, habit: str = "ok", kept: Any = None, number: int = 1, **body: Any) -> Asked:
    return Asked(path, body, "m", 1, number, None, True, habit, kept)


def data_of(streamed: Stream) -> list[Any]:
    """Return the events of a stream, parsed, and check that their names are their types."""
    opening, content, closing = streamed
    found = []
    for event in (*opening, *content, *closing):
        head, _, data = event.decode().rstrip("\n").rpartition("data: ")
        found.append(data if data == "[DONE]" else json.loads(data))
        if head:
            assert head == f"event: {found[-1]['type']}\n", event
    return found


def types_of(events: list[Any]) -> list[str]:
    """Return the types of events, each as often as it changes."""
    types = [event["type"] for event in events]
    return [kind for number, kind in enumerate(types) if types[number - 1 : number] != [kind]]


class ChatTest(unittest.TestCase):
    TOOLS = [{"type": "function", "function": {"name": name, "parameters": CITY}} for name in ("f", "g", "h")]

    def message(self, text: str = "call f and g", *more: Any, **body: Any) -> Any:
        said = [{"role": "user", "content": text}, *more]
        choice = answers.plain(asked(answers.CHAT, **{"messages": said, "tools": self.TOOLS, **body}))["choices"][0]
        self.assertEqual(choice["finish_reason"], "tool_calls" if choice["message"].get("tool_calls") else "stop")
        return choice["message"]

    def names(self, *more: Any, **body: Any) -> list[str]:
        return [call["function"]["name"] for call in self.message(*more, **body).get("tool_calls", [])]

    def result(self, call: Any, text: str) -> Any:
        return {"role": "tool", "tool_call_id": call["id"], "content": text}

    def test_tools_that_the_last_user_text_names_are_called_as_tool_choice_lets_them(self) -> None:
        named = {"type": "function", "function": {"name": "h"}}
        cases: list[tuple[str, dict[str, Any], list[str]]] = [
            ("call f and g", {}, ["f", "g"]),
            ("call f and g", {"parallel_tool_calls": False}, ["f"]),
            ("call f and g", {"tool_choice": "none"}, []),
            ("call f and g", {"tool_choice": named}, ["h"]),
            ("hello", {}, []),
            ("hello", {"tool_choice": "required"}, ["f"]),
            ("half a gift-g of f_", {}, []),
        ]
        for text, body, expected in cases:
            with self.subTest(text, **body):
                self.assertEqual(self.names(text, **body), expected)

    def test_results_are_quoted_once_all_are_called(self) -> None:
        message = self.message()
        f, g = message["tool_calls"]
        self.assertEqual(json.loads(f["function"]["arguments"]), {"city": "city"})
        self.assertIsNone(message["content"])
        results = [self.result(f, "sunny"), self.result(g, "noon")]
        self.assertEqual(self.message("call f and g", message, *results)["content"], TEXT + "sunny; noon")
        again = [message, *results, {"role": "user", "content": "and h"}]
        self.assertEqual(self.names("call f and g", *again), ["h"])

    def test_one_at_a_time_makes_as_many_rounds_as_tools(self) -> None:
        history: list[Any] = []
        for expected in ("f", "g"):
            message = self.message("call f and g", *history, parallel_tool_calls=False, tool_choice="required")
            (call,) = message["tool_calls"]
            self.assertEqual(call["function"]["name"], expected)
            history += [message, self.result(call, f"of {expected}")]
        last = self.message("call f and g", *history, parallel_tool_calls=False, tool_choice="required")
        self.assertEqual(last["content"], TEXT + "of f; of g")

    def test_a_result_of_another_call_is_refused(self) -> None:
        result = {"role": "tool", "tool_call_id": "x", "content": "1"}
        self.assertEqual(self.message("hi", result)["content"], TEXT + "1")
        with self.assertRaises(BadRequest):
            self.message("call f", self.message("call f"), result)

    def test_arguments_are_streamed_in_pieces_by_index(self) -> None:
        body = {"messages": [{"role": "user", "content": "g, f"}], "tools": self.TOOLS}
        *events, done = data_of(answers.stream_and_done(asked(answers.CHAT, **body)))
        self.assertEqual(done, "[DONE]")
        parts = [part for event in events for part in event["choices"][0]["delta"].get("tool_calls", [])]
        for index, name in enumerate("fg"):
            first, *rest = [part for part in parts if part["index"] == index]
            self.assertEqual((first["function"], first["type"]), ({"name": name, "arguments": ""}, "function"))
            self.assertGreater(len(rest), 1)
            text = "".join(part["function"]["arguments"] for part in rest)
            self.assertEqual(json.loads(text), {"city": "city"})
        self.assertEqual(events[-1]["choices"][0]["finish_reason"], "tool_calls")

    def test_structured_output_fits_unless_a_behaviour_has_it_otherwise(self) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}}
        for habit, expected in (("ok", '{"city": "city"}'), ("misfit", '{"city": ["misfit"]}')):
            body = {"messages": [{"role": "user", "content": "hi"}], "response_format": form}
            answer = answers.plain(asked(answers.CHAT, habit, **body))
            self.assertEqual(answer["choices"][0]["message"]["content"], expected)
        self.assertEqual(self.message("hi", response_format={"type": "json_object"})["content"], "{}")
        with self.assertRaises(BadRequest):
            self.message("hi", response_format={"type": "json_schema", "json_schema": {"name": "c"}})


class MessagesTest(unittest.TestCase):
    TOOLS = [{"name": name, "input_schema": CITY} for name in ("f", "g")]
    USER = {"role": "user", "content": "call f and g"}

    def asked(self, *more: Any, habit: str = "ok", **body: Any) -> Asked:
        given = {"messages": list(more) or [self.USER], "max_tokens": 4096, **body}
        return asked(messages.MESSAGES, habit, **given)

    def test_an_answer_has_its_parts_and_its_usage(self) -> None:
        cached = {"cache_control": {"type": "ephemeral"}, "type": "text"}
        user = {"role": "user", "content": [{**cached, "text": "one two"}, {"type": "text", "text": " three"}]}
        system = [{**cached, "text": "a b c"}, {"type": "text", "text": "d"}]
        thinking = {"type": "enabled", "budget_tokens": 1024}
        answer = messages.plain(self.asked(user, system=system, thinking=thinking))
        self.assertEqual([block["type"] for block in answer["content"]], ["thinking", "text"])
        self.assertTrue(answer["content"][0]["signature"])
        self.assertEqual(answer["content"][1]["text"], TEXT + "one two three")
        self.assertEqual((answer["stop_reason"], answer["stop_sequence"]), ("end_turn", None))
        sizes = {"input_tokens": 2, "cache_creation_input_tokens": 2, "cache_read_input_tokens": 3}
        self.assertEqual(answer["usage"], {**sizes, "output_tokens": 14})

    def test_limits_and_stop_sequences_end_it(self) -> None:
        cut = messages.plain(self.asked(max_tokens=2))
        self.assertEqual((cut["content"][0]["text"], cut["stop_reason"]), ("Mock answer ", "max_tokens"))
        stopped = messages.plain(self.asked(stop_sequences=["nowhere", "at", "from"]))
        self.assertEqual((stopped["stop_reason"], stopped["stop_sequence"]), ("stop_sequence", "from"))
        self.assertEqual(stopped["content"][0]["text"], "Mock answer ")

    def test_events_come_in_their_order(self) -> None:
        thinking = {"type": "enabled", "budget_tokens": 1024}
        events = data_of(messages.stream(self.asked(tools=self.TOOLS, thinking=thinking)))
        block = ["content_block_start", "content_block_delta", "content_block_stop"]
        first = [block[0], "ping", *block[1:]]
        self.assertEqual(types_of(events), ["message_start", *first, *block, *block, "message_delta", "message_stop"])
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta" and event["index"] == 0]
        self.assertEqual([delta["type"] for delta in deltas], ["thinking_delta"] * 5 + ["signature_delta"])
        started = [event["content_block"] for event in events if event["type"] == "content_block_start"]
        self.assertEqual([block["type"] for block in started], ["thinking", "tool_use", "tool_use"])
        for index in (1, 2):
            pieces = [e["delta"]["partial_json"] for e in events if e["type"] == block[1] and e["index"] == index]
            self.assertGreater(len(pieces), 2)
            self.assertEqual((pieces[0], json.loads("".join(pieces))), ("", {"city": "city"}))
        self.assertEqual(events[-2]["delta"]["stop_reason"], "tool_use")

    def test_tools_without_arguments_have_one_empty_piece(self) -> None:
        tool = {"name": "f", "input_schema": {"type": "object"}}
        events = data_of(messages.stream(self.asked(tools=[tool])))
        pieces = [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta"]
        self.assertEqual(pieces, [""])

    def test_tools_are_called_as_tool_choice_lets_them_and_results_are_quoted(self) -> None:
        hello = {"role": "user", "content": "hello"}
        cases: list[tuple[Any, dict[str, Any], list[str]]] = [
            (self.USER, {"type": "auto"}, ["f", "g"]),
            (self.USER, {"type": "auto", "disable_parallel_tool_use": True}, ["f"]),
            (self.USER, {"type": "none"}, []),
            (hello, {"type": "any"}, ["f"]),
            (hello, {"type": "tool", "name": "g"}, ["g"]),
        ]
        for user, choice, expected in cases:
            content = messages.plain(self.asked(user, tools=self.TOOLS, tool_choice=choice))["content"]
            self.assertEqual([block["name"] for block in content if block["type"] == "tool_use"], expected)
        calls = messages.plain(self.asked(tools=self.TOOLS))["content"]
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": call["name"] * 2} for call in calls]
        turns = [self.USER, {"role": "assistant", "content": calls}, {"role": "user", "content": results}]
        self.assertEqual(messages.plain(self.asked(*turns, tools=self.TOOLS))["content"][0]["text"], TEXT + "ff; gg")

    def test_structured_output_is_asked_for_in_two_ways_or_by_the_system_prompt(self) -> None:
        style = {"type": "json_schema", "schema": CITY}
        for body in ({"output_config": {"format": style}}, {"output_format": style}):
            self.assertEqual(messages.plain(self.asked(**body))["content"][0]["text"], '{"city": "city"}')
        for system, told in (
            ("Fit this JSON Schema:\n" + json.dumps(CITY), '{"city": "city"}'),
            ("JSON, please", "{}"),
        ):
            for prompt in (system, [{"type": "text", "text": system}]):
                self.assertEqual(messages.plain(self.asked(system=prompt))["content"][0]["text"], told)
        self.assertEqual(messages.plain(self.asked(system="JSON:\n{"))["content"][0]["text"], "{}")
        spoilt = messages.plain(self.asked(habit="misfit", tools=self.TOOLS))["content"][0]
        self.assertEqual(spoilt["input"], {"city": ["misfit"]})

    def test_what_the_api_refuses_is_refused(self) -> None:
        call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "t", "content": "1"}
        text = {"type": "text", "text": "so"}

        def turns(*content: Any) -> list[Any]:
            return [self.USER, {"role": "assistant", "content": [call]}, {"role": "user", "content": list(content)}]

        messages.plain(self.asked(*turns(result, text)))
        for fault, given in {
            "max_tokens": self.asked(max_tokens=0),
            "at least one": self.asked(messages=[]),
            "user role": self.asked({"role": "assistant", "content": "hi"}),
            "messages.0": self.asked({"role": "tool", "content": "hi"}),
            "empty": self.asked({"role": "user", "content": ""}),
            "non-empty": self.asked({"role": "user", "content": [{"type": "text", "text": ""}]}),
            "unknown content block 'image_url'": self.asked({"role": "user", "content": [{"type": "image_url"}]}),
            "needs its tool_result": self.asked(*turns(text)),
            "and no other": self.asked({"role": "user", "content": [result]}),
            "before all others": self.asked(*turns(text, result)),
            "input_schema": self.asked(tools=[{"name": "f", "input_schema": {}}]),
            "tools.0.name": self.asked(tools=[{"name": "a b", "input_schema": CITY}]),
            "budget_tokens": self.asked(thinking={"type": "enabled", "budget_tokens": 9}),
        }.items():
            with self.subTest(fault), self.assertRaisesRegex(BadRequest, fault):
                messages.plain(given)


class ResponsesTest(unittest.TestCase):
    TOOLS = [{"type": "function", "name": name, "parameters": CITY} for name in ("f", "g")]

    def setUp(self) -> None:
        self.kept = Conversations()
        self.number = 0

    def asked(self, **body: Any) -> Asked:
        self.number += 1
        return asked(responses.RESPONSES, kept=self.kept, number=self.number, **body)

    def test_a_text_is_answered(self) -> None:
        answer = responses.plain(self.asked(input="hi", instructions="be brief", metadata={"a": "b"}))
        (item,) = answer["output"]
        self.assertEqual((item["type"], item["content"][0]["text"]), ("message", TEXT + "hi"))
        self.assertEqual((answer["status"], answer["metadata"]), ("completed", {"a": "b"}))
        self.assertEqual((answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]), (3, 7))
        cut = responses.plain(self.asked(input="hi", max_output_tokens=2))
        self.assertEqual((cut["status"], cut["output"][0]["status"]), ("incomplete", "incomplete"))
        self.assertEqual(cut["incomplete_details"], {"reason": "max_output_tokens"})

    def test_conversations_go_on_unless_they_are_not_stored(self) -> None:
        first = responses.plain(self.asked(input="call f", tools=self.TOOLS))
        (call,) = first["output"]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        again = self.asked(input=[output], previous_response_id=first["id"])
        answer = responses.plain(again)
        self.assertEqual(answer["output"][0]["content"][0]["text"], TEXT + "sunny")
        self.assertEqual(answer["previous_response_id"], first["id"])
        unkept = responses.plain(self.asked(input="hi", store=False))
        for body in ({"input": [output]}, {"input": "hi", "previous_response_id": unkept["id"]}, {"input": []}):
            self.assertRaises(BadRequest, responses.plain, self.asked(**body))

    def test_fields_of_other_types_are_refused(self) -> None:
        for name in ("instructions", "max_output_tokens", "reasoning", "stream", "temperature", "text", "top_p"):
            responses.plain(self.asked(input="hi", **{name: None}))
            for value in (True if name != "stream" else 1, {} if name not in ("reasoning", "text") else "x"):
                with self.subTest(name=name, value=value):
                    self.assertRaises(BadRequest, responses.plain, self.asked(input="hi", **{name: value}))

    def test_only_the_last_conversations_are_kept(self) -> None:
        ids = [responses.plain(self.asked(input="hi"))["id"] for _ in range(65)]
        self.assertEqual([self.kept.find(one) is None for one in (ids[0], ids[1], ids[-1])], [True, False, False])

    def test_events_are_numbered_and_in_their_order(self) -> None:
        given = {"input": "hi", "reasoning": {"effort": "low", "summary": "auto"}}
        events = data_of(responses.stream(self.asked(**given)))
        self.assertEqual([event["sequence_number"] for event in events], list(range(len(events))))
        inner = {
            "reasoning": [".reasoning_summary_part.added", ".reasoning_summary_text.delta"],
            "message": [".content_part.added", ".output_text.delta", ".output_text.done", ".content_part.done"],
        }
        inner["reasoning"] += [".reasoning_summary_text.done", ".reasoning_summary_part.done"]
        expected = [".created", ".in_progress"]
        for kind in ("reasoning", "message"):
            expected += [".output_item.added", *inner[kind], ".output_item.done"]
        self.assertEqual(types_of(events), [f"response{name}" for name in (*expected, ".completed")])
        text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
        self.assertEqual(text, events[-1]["response"]["output"][1]["content"][0]["text"])

    def test_calls_are_streamed_each_in_its_place(self) -> None:
        events = data_of(responses.stream(self.asked(input="g and f", tools=self.TOOLS)))
        for index, name in enumerate("fg"):
            own = [event for event in events if event.get("output_index") == index]
            self.assertEqual(own[0]["item"]["arguments"], "")
            pieces = [event["delta"] for event in own if event["type"].endswith(".delta")]
            done, item = own[-2]["arguments"], own[-1]["item"]
            self.assertEqual((item["name"], item["arguments"], "".join(pieces)), (name, done, done))
            self.assertGreater(len(pieces), 1)

    def test_structured_output_is_text_format(self) -> None:
        style = {"format": {"type": "json_schema", "name": "c", "schema": CITY}}
        answer = responses.plain(self.asked(input="hi", text=style))
        self.assertEqual(answer["output"][0]["content"][0]["text"], '{"city": "city"}')


class PassingTest(unittest.TestCase):
    def test_forms_are_read_and_what_is_none_is_not(self) -> None:
        kind = 'multipart/form-data; boundary="b"'
        file = b"\r\n--x\r\n\r\n--"
        body = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nw\r\n--b\r\n'
        body += b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        body += file + b"\r\n--b--\r\n"
        fields = passing.form(body, kind)
        assert fields is not None
        self.assertEqual((fields["model"], fields["file"]["filename"]), ("w", "a.wav"))
        self.assertEqual(fields["file"]["bytes"], len(file))
        for broken, given in ((body[:-8], kind), (body, "multipart/form-data"), (body, "text/plain; boundary=b")):
            self.assertIsNone(passing.form(broken, given))

    def test_documents_are_ranked_by_shared_words(self) -> None:
        documents = ["hi", "what is a bear", {"text": "a panda"}]
        given = asked("/v1/rerank", query="what is a panda", documents=documents, top_n=2)
        results = passing.rerank(given)["results"]
        scores = [{"index": 1, "relevance_score": 0.75}, {"index": 2, "relevance_score": 0.5}]
        self.assertEqual(results, scores)

    def test_tokens_become_their_text_again(self) -> None:
        tokens = passing.tokenize(asked("/tokenize", content="hé🙂"))["tokens"]
        self.assertEqual(passing.detokenize(asked("/detokenize", tokens=tokens)), {"content": "hé🙂"})

    def test_what_cannot_be_answered_is_refused(self) -> None:
        cases: list[tuple[Callable[[Asked], Any], dict[str, Any]]] = [
            (passing.rerank, {"query": "q"}),
            (passing.rerank, {"query": 1, "documents": []}),
            (passing.moderation, {}),
            (passing.speech, {"input": None}),
            (passing.images, {}),
            (passing.transcription, {"file": "a", "model": "w"}),
            (passing.tokenize, {"content": 1}),
            (passing.detokenize, {"tokens": [-1]}),
        ]
        for answer, body in cases:
            with self.subTest(answer.__name__), self.assertRaises(BadRequest):
                answer(asked("/", **body))


if __name__ == "__main__":
    unittest.main()
