"""A Responses request as a chat request: what is asked of engines, and what is refused by name."""

from __future__ import annotations

import time
import unittest
from typing import Any

from gateway.dialects.responses.conversation import Conversation, read
from gateway.errors import RequestRefused

TOOL = {"type": "function", "name": "look", "description": "Look.", "parameters": {"type": "object"}, "strict": True}
OTHER = {"type": "function", "name": "go"}
CUSTOM = {"type": "custom", "name": "shout", "description": "Any text."}
NAMESPACE = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [OTHER, CUSTOM]}


def asked(**fields: Any) -> dict[str, Any]:
    return read({"input": "hi", **fields}).chat


def messages(*items: Any) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = asked(input=list(items))["messages"]
    return result


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def call(name: str, call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def chat_call(name: str, call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


class RequestCase(unittest.TestCase):
    def assert_refused(self, param: str, code: str = "invalid_body", **fields: Any) -> None:
        with self.assertRaises(RequestRefused) as caught:
            read({"input": "hi", **fields})
        self.assertEqual((caught.exception.code, caught.exception.param), (code, param))
        self.assertEqual(caught.exception.status, 400)


class InputTest(RequestCase):
    def test_a_text_is_what_the_user_says(self) -> None:
        self.assertEqual(asked()["messages"], [{"role": "user", "content": "hi"}])

    def test_instructions_come_first(self) -> None:
        chat = asked(instructions="Be brief.", input=[{"role": "developer", "content": "Rhyme."}])
        expected = [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Rhyme."}]
        self.assertEqual(chat["messages"], expected)

    def test_parts_become_parts_of_chat(self) -> None:
        image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"}
        file = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}
        audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
        expected = [
            {"type": "text", "text": "see"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}},
            audio,
        ]
        self.assertEqual(messages(user({"type": "input_text", "text": "see"}, image, file, audio)), [user(*expected)])

    def test_one_part_of_text_is_a_text(self) -> None:
        self.assertEqual(messages(user({"type": "input_text", "text": "a"})), [{"role": "user", "content": "a"}])

    def test_an_assistants_turn_is_one_message(self) -> None:
        turn = [
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look"}]},
            call("look", "c1", '{"at":1}'),
            call("go", "c2"),
        ]
        said = {
            "role": "assistant",
            "content": "I look",
            "reasoning_content": "hm",
            "tool_calls": [chat_call("look", "c1", '{"at":1}'), chat_call("go", "c2")],
        }
        results = [{"type": "function_call_output", "call_id": c, "output": c} for c in ("c1", "c2")]
        told = [{"role": "tool", "tool_call_id": c, "content": c} for c in ("c1", "c2")]
        self.assertEqual(messages(*turn, *results), [said, *told])

    def test_what_follows_a_call_or_another_message_is_another_turn(self) -> None:
        first, second = ({"role": "assistant", "content": text} for text in "ab")
        called = {"role": "assistant", "content": None, "tool_calls": [chat_call("go", "c1")]}
        self.assertEqual(messages(first, second), [first, second])
        self.assertEqual(messages(call("go", "c1"), first), [called, first])
        thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
        expected = [first, {**second, "reasoning_content": "hm"}, first]
        self.assertEqual(messages(first, thought, second, first), expected)

    def test_several_thoughts_are_one_text_and_encrypted_ones_are_none(self) -> None:
        thoughts = [{"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]} for text in "abc"]
        hidden = {"type": "reasoning", "summary": [], "encrypted_content": "xx"}
        said = {"role": "assistant", "content": "so"}
        self.assertEqual(messages(*thoughts, hidden, said), [{**said, "reasoning_content": "a\n\nb\n\nc"}])
        self.assertEqual(messages(hidden, said), [said])

    def test_a_refusal_stays_one(self) -> None:
        parts = [{"type": "refusal", "refusal": "No."}]
        said = {"role": "assistant", "content": None, "refusal": "No."}
        self.assertEqual(messages({"type": "message", "role": "assistant", "content": parts}), [said])
        self.assert_refused("input[0].content", "invalid_input", input=[user(*parts)])

    def test_an_output_may_have_parts(self) -> None:
        output = [{"type": "input_text", "text": "see"}, {"type": "input_image", "image_url": "https://e.org/a.png"}]
        told = messages(call("go", "c1"), {"type": "function_call_output", "call_id": "c1", "output": output})[1]
        url = {"type": "image_url", "image_url": {"url": "https://e.org/a.png"}}
        self.assertEqual(told["content"], [{"type": "text", "text": "see"}, url])

    def test_what_is_kept_elsewhere_is_not_supported(self) -> None:
        for item in ({"type": "item_reference", "id": "x"}, {"type": "web_search_call"}, {"type": ["x"]}, {"id": "x"}):
            with self.subTest(item=item):
                self.assert_refused("input[0].type", "not_supported", input=[item])
        for part, key in (
            ({"type": "input_image", "file_id": "f"}, "file_id"),
            ({"type": "input_file", "file_id": "f"}, "file_id"),
            ({"type": "input_file", "file_url": "https://e.org/a.pdf"}, "file_url"),
        ):
            with self.subTest(part=part):
                self.assert_refused(f"input[0].content[0].{key}", "not_supported", input=[user(part)])

    def test_faults_are_named(self) -> None:
        for param, value in (
            ("input", None),
            ("input", []),
            ("input", [{"type": "reasoning", "summary": []}]),
            ("input[0]", ["hi"]),
            ("input[0].role", [{"role": "tool", "content": "x"}]),
            ("input[0].content", [{"role": "user"}]),
            ("input[0].content[0]", [user("x")]),
            ("input[0].content[0].type", [user({"type": "image_url"})]),
            ("input[0].content[0].text", [user({"type": "input_text"})]),
            ("input[0].content[1].image_url", [user({"type": "text", "text": ""}, {"type": "input_image"})]),
            ("input[0].call_id", [{**call("go", "c"), "call_id": None}]),
            ("input[0].arguments", [{**call("go", "c"), "arguments": {}}]),
            ("input[0].output", [{"type": "function_call_output", "call_id": "c", "output": {}}]),
        ):
            with self.subTest(param=param, value=value):
                self.assert_refused(param, "invalid_input", input=value)

    def test_many_thoughts_take_time_for_each_only(self) -> None:
        thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x" * 1000}]}
        began_s = time.process_time()
        messages(*[thought] * 20_000)
        self.assertLess(time.process_time() - began_s, 5.0)


class SettingsTest(RequestCase):
    def test_settings_have_chats_names(self) -> None:
        schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
        chat = asked(
            model="m",
            max_output_tokens=5,
            text={"format": schema, "verbosity": "low"},
            reasoning={"effort": "high", "summary": "auto"},
            top_logprobs=3,
            temperature=0.5,
            user="u",
        )
        del chat["messages"]
        wanted = {"name": "n", "schema": {"type": "object"}, "strict": True}
        expected = {
            "model": "m",
            "max_tokens": 5,
            "response_format": {"type": "json_schema", "json_schema": wanted},
            "verbosity": "low",
            "reasoning_effort": "high",
            "logprobs": True,
            "top_logprobs": 3,
            "temperature": 0.5,
            "user": "u",
        }
        self.assertEqual(chat, expected)

    def test_nothing_is_asked_that_the_client_has_not_asked_for(self) -> None:
        quiet: dict[str, Any] = {
            "metadata": {"a": "b"},
            "truncation": "auto",
            "include": ["reasoning.encrypted_content"],
            "store": False,
            "background": False,
            "previous_response_id": None,
            "text": {"format": {"type": "text"}},
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "max_tool_calls": 3,
            "temperature": None,
            "stream_options": {"include_obfuscation": False},
        }
        self.assertEqual(asked(**quiet), asked())

    def test_json_and_the_tokens_of_the_text_may_be_asked_for(self) -> None:
        chat = asked(text={"format": {"type": "json_object"}}, include=["message.output_text.logprobs"])
        self.assertEqual((chat["response_format"], chat["logprobs"]), ({"type": "json_object"}, True))
        self.assertNotIn("top_logprobs", chat)

    def test_a_schema_may_be_asked_for_by_its_name(self) -> None:
        wanted = asked(text={"format": {"type": "json_schema", "name": "city"}})["response_format"]
        self.assertEqual(wanted, {"type": "json_schema", "json_schema": {"name": "city"}})

    def test_a_stream_is_asked_for_its_usage(self) -> None:
        chat = asked(stream=True)
        self.assertEqual((chat["stream"], chat["stream_options"]), (True, {"include_usage": True}))

    def test_what_neither_dialect_has_is_passed_on(self) -> None:
        self.assertEqual(asked(top_k=4, stop=["x"])["top_k"], 4)

    def test_what_has_another_name_is_not_passed_by(self) -> None:
        for key in ("messages", "max_tokens", "max_completion_tokens", "response_format", "n", "functions"):
            with self.subTest(key=key):
                self.assert_refused(key, **{key: 3})

    def test_what_a_server_would_have_to_keep_is_not_supported(self) -> None:
        for key, value in (
            ("previous_response_id", "resp_1"),
            ("store", True),
            ("background", True),
            ("conversation", "conv_1"),
            ("prompt", {"id": "pmpt_1"}),
        ):
            with self.subTest(key=key):
                self.assert_refused(key, "not_supported", **{key: value})
                with self.assertRaises(RequestRefused) as caught:  # and it is said what would change that
                    read({"model": "m", "input": "hi", key: value})
                for words in (key, "/v1/responses", '"endpoints"'):
                    self.assertIn(words, caught.exception.message)

    def test_faults_are_named(self) -> None:
        fields: Any = (
            ("instructions", "instructions", ["x"]),
            ("text", "text", "json"),
            ("text.format", "text", {"format": "json"}),
            ("text.format.type", "text", {"format": {"type": "yaml"}}),
            ("text.format.name", "text", {"format": {"type": "json_schema", "schema": {}}}),
            ("text.format.schema", "text", {"format": {"type": "json_schema", "name": "n", "schema": "x"}}),
            ("text.verbosity", "text", {"verbosity": 1}),
            ("reasoning.effort", "reasoning", {"effort": 1}),
            ("parallel_tool_calls", "parallel_tool_calls", "no"),
            ("top_logprobs", "top_logprobs", 21),
            ("metadata", "metadata", []),
            ("include", "include", "x"),
        )
        for param, key, value in fields:
            with self.subTest(param=param):
                self.assert_refused(param, **{key: value})
        for value in (0, -1, True, "5", 1.5):
            with self.subTest(max_output_tokens=value):
                self.assert_refused("max_output_tokens", "invalid_max_tokens", max_output_tokens=value)


class ToolsTest(RequestCase):
    def test_a_function_is_one_of_chat(self) -> None:
        function = {"name": "look", "description": "Look.", "parameters": {"type": "object"}, "strict": True}
        bare = {"type": "function", "name": "go", "description": None, "parameters": None, "strict": None}
        expected = [{"type": "function", "function": function}, {"type": "function", "function": {"name": "go"}}]
        self.assertEqual(asked(tools=[TOOL, bare])["tools"], expected)

    def test_a_custom_tool_is_a_function_of_one_text(self) -> None:
        chat = asked(
            tools=[CUSTOM],
            tool_choice={"type": "custom", "name": "shout"},
            input=[
                {"type": "custom_tool_call", "call_id": "c1", "name": "shout", "input": 'a "b"'},
                {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
            ],
        )
        function = chat["tools"][0]["function"]
        self.assertEqual((function["name"], function["description"]), ("shout", "Any text."))
        self.assertEqual(function["parameters"]["required"], ["input"])
        self.assertEqual(chat["tool_choice"], {"type": "function", "function": {"name": "shout"}})
        told = chat_call("shout", "c1", '{"input": "a \\"b\\""}')
        self.assertEqual(chat["messages"][0]["tool_calls"], [told])
        self.assertEqual(chat["messages"][1], {"role": "tool", "tool_call_id": "c1", "content": "done"})

    def test_tools_in_a_namespace_are_functions_by_its_name_and_theirs(self) -> None:
        told = {**call("go", "c1"), "namespace": "crm"}
        chat = asked(
            tools=[OTHER, NAMESPACE], tool_choice={"type": "function", "name": "go", "namespace": "crm"}, input=[told]
        )
        self.assertEqual([tool["function"]["name"] for tool in chat["tools"]], ["go", "crm__go", "crm__shout"])
        self.assertEqual(chat["tools"][2]["function"]["parameters"]["required"], ["input"])
        self.assertEqual(chat["tool_choice"], {"type": "function", "function": {"name": "crm__go"}})
        self.assertEqual(chat["messages"][0]["tool_calls"], [chat_call("crm__go", "c1")])

    def test_faults_in_a_namespace_are_named(self) -> None:
        for param, code, tools in (
            ("tools[1].name", "invalid_body", [TOOL, {**NAMESPACE, "name": 1}]),
            ("tools[0].tools", "invalid_body", [{**NAMESPACE, "tools": None}]),
            ("tools[0].tools[1].type", "not_supported", [{**NAMESPACE, "tools": [TOOL, {"type": "web_search"}]}]),
            ("tools[0].tools[0].type", "not_supported", [{**NAMESPACE, "tools": [NAMESPACE]}]),
        ):
            with self.subTest(param=param):
                self.assert_refused(param, code, tools=tools)
        self.assert_refused("input[0].namespace", "invalid_input", input=[{**call("go", "c1"), "namespace": 1}])

    def test_what_is_to_be_called_may_be_said(self) -> None:
        for choice in ("none", "auto", "required"):
            self.assertEqual(asked(tools=[TOOL], tool_choice=choice)["tool_choice"], choice)
        chat = asked(tools=[TOOL], tool_choice={"type": "function", "name": "look"}, parallel_tool_calls=False)
        self.assertEqual(chat["tool_choice"], {"type": "function", "function": {"name": "look"}})
        self.assertIs(chat["parallel_tool_calls"], False)

    def test_of_allowed_tools_engines_see_no_others(self) -> None:
        allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "go"}]}
        chat = asked(tools=[TOOL, OTHER], tool_choice=allowed)
        self.assertEqual([tool["function"]["name"] for tool in chat["tools"]], ["go"])
        self.assertEqual(chat["tool_choice"], "required")

    def test_tools_that_a_server_runs_are_not_supported(self) -> None:
        for kind in ("web_search", "file_search", "computer_use_preview", "mcp", "code_interpreter", "local_shell"):
            with self.subTest(kind=kind):
                self.assert_refused("tools[1].type", "not_supported", tools=[TOOL, {"type": kind}])
        self.assert_refused("tool_choice.type", "not_supported", tools=[TOOL], tool_choice={"type": "web_search"})
        grammar = {**CUSTOM, "format": {"type": "grammar", "syntax": "lark", "definition": "x"}}
        self.assert_refused("tools[0].format", "not_supported", tools=[grammar])

    def test_faults_are_named(self) -> None:
        allowed = {"type": "allowed_tools", "mode": "auto", "tools": []}
        fields: Any = (
            ("tools", {"tools": {}}),
            ("tools[0]", {"tools": ["x"]}),
            ("tools[0].name", {"tools": [{"type": "function"}]}),
            ("tools[0].parameters", {"tools": [{**TOOL, "parameters": "x"}]}),
            ("tools[0].strict", {"tools": [{**TOOL, "strict": "x"}]}),
            ("tool_choice", {"tools": [TOOL], "tool_choice": "some"}),
            ("tool_choice", {"tool_choice": "required"}),
            ("tool_choice.name", {"tools": [TOOL], "tool_choice": {"type": "function", "name": "go"}}),
            ("tool_choice.mode", {"tools": [TOOL], "tool_choice": {**allowed, "mode": "none"}}),
            ("tool_choice.tools", {"tools": [TOOL], "tool_choice": allowed}),
        )
        for param, request in fields:
            with self.subTest(param=param, request=request):
                self.assert_refused(param, **request)


class WayTest(unittest.TestCase):
    def test_a_chat_is_asked_for_and_told_in_events(self) -> None:
        conversation: Conversation = read({"input": "hi"})
        self.assertEqual((conversation.path, conversation.stream_type), ("/chat/completions", b"text/event-stream"))
