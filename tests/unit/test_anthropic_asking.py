"""What Anthropic's engines are asked."""

from __future__ import annotations

import base64
import unittest
from typing import Any

from gateway.dialects.anthropic.asking import MAX_TOKENS, messages_request
from gateway.errors import RequestRefused

HI = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def call(arguments: Any, call_id: Any = "call_1") -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": call_id, "type": "function", "function": function}]}


def asked(*messages: Any, **fields: Any) -> dict[str, Any]:
    return messages_request({"model": "m", "messages": list(messages or [HI]), **fields})


class AskedTest(unittest.TestCase):
    def test_a_limit_is_always_set(self) -> None:
        said = {"role": "user", "content": [text("hi")]}
        self.assertEqual(asked(), {"model": "m", "max_tokens": MAX_TOKENS, "messages": [said]})
        self.assertEqual(asked(max_tokens=-1)["max_tokens"], MAX_TOKENS)
        self.assertEqual(asked(max_tokens=5, max_completion_tokens=7)["max_tokens"], 7)
        self.assertEqual(messages_request({"messages": [HI]}, 9)["max_tokens"], 9)

    def test_what_has_another_name_gets_it(self) -> None:
        request = asked(stop="x", user="u", temperature=1.7, top_p=0.5, stream=True, stream_options={})
        self.assertEqual(request["stop_sequences"], ["x"])
        self.assertEqual(request["metadata"], {"user_id": "u"})
        self.assertEqual((request["temperature"], request["top_p"], request["stream"]), (1, 0.5, True))
        self.assertNotIn("stream_options", request)
        self.assertEqual(asked(stop=["x", "y"])["stop_sequences"], ["x", "y"])

    def test_what_only_advises_is_left_out(self) -> None:
        self.assertEqual(
            asked(seed=7, presence_penalty=1, logit_bias={"1": 2}, n=1, logprobs=False, store=True), asked()
        )

    def test_all_that_a_system_or_developer_says_goes_before_everything(self) -> None:
        mark = {"type": "ephemeral"}
        request = asked(
            {"role": "system", "content": "a"},
            HI,
            {"role": "developer", "content": [text("b", cache_control=mark), text(" ")]},
        )
        self.assertEqual(request["system"], [text("a"), text("b", cache_control=mark)])
        self.assertEqual([message["role"] for message in request["messages"]], ["user"])

    def test_turns_alternate(self) -> None:
        self.assertEqual(asked(HI, call('{"x": 1e999}'))["messages"][1]["content"][0]["input"], {"x": None})
        request = asked(
            HI,
            HI,
            call('{"city": "Bonn"}'),
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "call_2", "content": [text("rain")], "is_error": True},
            {"role": "user", "content": "thanks"},
            {"role": "assistant", "content": "you are"},
            {"role": "assistant", "content": "welcome"},
        )
        use = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Bonn"}}
        results = [
            {"type": "tool_result", "tool_use_id": "call_1", "content": [text("sunny")]},
            {"type": "tool_result", "tool_use_id": "call_2", "content": [text("rain")], "is_error": True},
        ]
        self.assertEqual(
            request["messages"],
            [
                {"role": "user", "content": [text("hi"), text("hi")]},
                {"role": "assistant", "content": [use]},
                {"role": "user", "content": [*results, text("thanks")]},
                {"role": "assistant", "content": [text("you are"), text("welcome")]},
            ],
        )

    def test_texts_of_nothing_but_space_are_left_out(self) -> None:
        said = {**call("{}"), "content": "\n\n"}
        self.assertEqual([block["type"] for block in asked(HI, said)["messages"][1]["content"]], ["tool_use"])
        roles = [message["role"] for message in asked(HI, {"role": "assistant", "content": ""}, HI)["messages"]]
        self.assertEqual(roles, ["user"])
        tool = {"role": "tool", "tool_call_id": "call_1", "content": ""}
        self.assertEqual(asked(HI, tool)["messages"][0]["content"][1], {"type": "tool_result", "tool_use_id": "call_1"})

    def test_nothing_to_answer_is_refused(self) -> None:
        system, nothing = {"role": "system", "content": "be brief"}, {"role": "assistant", "content": ""}
        for messages in ([system], [{"role": "user", "content": " \n"}], [system, nothing]):
            self.refused("messages", "not_supported", *messages)
        self.refused("messages", "not_supported", nothing, continue_final_message=True)

    def test_images_and_files(self) -> None:
        words = base64.b64encode("grün".encode()).decode()
        parts = [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
            {"type": "file", "file": {"file_data": f"data:text/markdown;charset=utf-8;base64,{words}"}},
            {"type": "file", "file": {"file_data": "https://example.org/a.pdf"}},
        ]
        web = "https://example.org/a"
        self.assertEqual(
            asked({"role": "user", "content": parts})["messages"][0]["content"],
            [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                {"type": "image", "source": {"type": "url", "url": f"{web}.png"}},
                {
                    "type": "document",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"},
                    "title": "a.pdf",
                },
                {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "grün"}},
                {"type": "document", "source": {"type": "url", "url": f"{web}.pdf"}},
            ],
        )

    def test_thinking_goes_back_as_it_came_and_only_with_its_signature(self) -> None:
        signed = {"type": "thinking", "thinking": "hm", "signature": "s"}
        redacted = {"type": "redacted_thinking", "data": "xyz"}
        said = {
            "role": "assistant",
            "content": "x",
            "reasoning_content": "hm",
            "thinking_blocks": [{**signed, "index": 0}, {**redacted, "index": 1}, {**signed, "signature": ""}],
        }
        self.assertEqual(asked(HI, said)["messages"][1]["content"], [signed, redacted, text("x")])
        foreign = {"role": "assistant", "content": "x", "reasoning_content": "hm"}
        self.assertEqual(asked(HI, foreign)["messages"][1]["content"], [text("x")])

    def test_tools_and_the_choice_of_them(self) -> None:
        bare = {"type": "function", "function": {"name": "time", "description": "d", "strict": True}}
        self.assertEqual(
            asked(tools=[TOOL, bare])["tools"],
            [
                {"name": "weather", "input_schema": {"type": "object"}},
                {
                    "name": "time",
                    "description": "d",
                    "input_schema": {"type": "object", "properties": {}},
                    "strict": True,
                },
            ],
        )
        named = {"type": "function", "function": {"name": "weather"}}
        one = {"disable_parallel_tool_use": True}
        for fields, choice in (
            ({}, None),
            ({"tool_choice": "auto"}, {"type": "auto"}),
            ({"tool_choice": "required"}, {"type": "any"}),
            ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
            ({"tool_choice": named}, {"type": "tool", "name": "weather"}),
            ({"parallel_tool_calls": False}, {"type": "auto", **one}),
            ({"tool_choice": "required", "parallel_tool_calls": False}, {"type": "any", **one}),
            ({"parallel_tool_calls": True}, None),
        ):
            self.assertEqual(asked(tools=[TOOL], **fields).get("tool_choice"), choice, fields)
        self.assertNotIn("tool_choice", asked(tool_choice="auto"))

    def test_ids_of_calls_have_characters_that_are_taken(self) -> None:
        request = asked(
            HI, call("", "functions.weather:0"), {"role": "tool", "tool_call_id": "functions.weather:0", "content": "x"}
        )
        use, result = (message["content"][0] for message in request["messages"][1:])
        self.assertEqual((use["id"], result["tool_use_id"]), ("functions_weather_0", "functions_weather_0"))
        self.assertEqual(use["input"], {})

    def test_effort_is_thinking_but_for_who_must_call_a_tool(self) -> None:
        request = asked(reasoning_effort="minimal")
        self.assertEqual((request["output_config"], request["thinking"]), ({"effort": "low"}, {"type": "adaptive"}))
        self.assertEqual(asked(reasoning_effort="none")["thinking"], {"type": "disabled"})
        self.assertNotIn("thinking", asked(reasoning_effort="high", tools=[TOOL], tool_choice="required"))
        sampling = {"temperature": 0, "top_p": 0.5, "top_k": 3}
        self.assertTrue(sampling.keys().isdisjoint(asked(reasoning_effort="low", **sampling)))
        self.assertEqual(asked(reasoning_effort="none", **sampling)["temperature"], 0)
        budget = {"type": "enabled", "budget_tokens": 2000}
        self.assertEqual(asked(reasoning_effort="high", thinking=budget)["thinking"], budget)

    def test_a_strict_schema_is_enforced_and_another_one_told(self) -> None:
        schema = {"type": "object", "additionalProperties": False}

        def of(strict: Any) -> dict[str, Any]:
            described = {"name": "n", "schema": schema, "strict": strict}
            return asked(response_format={"type": "json_schema", "json_schema": described}, reasoning_effort="low")

        form = {"type": "json_schema", "schema": schema}
        self.assertEqual(of(True)["output_config"], {"effort": "low", "format": form})
        self.assertNotIn("system", of(True))
        self.assertEqual(of(None)["output_config"], {"effort": "low"})
        self.assertIn('{"type": "object", "additionalProperties": false}', of(None)["system"][0]["text"])
        self.assertIn("JSON", asked(response_format={"type": "json_object"})["system"][0]["text"])
        self.assertEqual(asked(response_format={"type": "text"}), asked())

    def test_what_cannot_be_kept_is_refused_by_name(self) -> None:
        for fields, param in (
            ({"n": 2}, "n"),
            ({"logprobs": True}, "logprobs"),
            ({"functions": [{}]}, "functions"),
            ({"modalities": ["text", "audio"]}, "modalities"),
            ({"system": "Be brief."}, "system"),
            ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
            ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
            ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ):
            self.refused(param, "not_supported", **fields)
        for message, param in (
            ({"role": "function", "name": "f", "content": "x"}, "messages[0].role"),
            ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[0].content[0].type"),
            (
                {"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]},
                "messages[0].content[0].file.file_data",
            ),
            (
                {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]},
                "messages[0].content",
            ),
        ):
            self.refused(param, "not_supported", message)

    def test_faults_are_named_by_their_path(self) -> None:
        image = {"type": "image_url", "image_url": {"url": "ftp://a"}}
        for message, param in (
            (7, "messages[0]"),
            ({"role": "user", "content": 7}, "messages[0].content"),
            ({"role": "user", "content": [image]}, "messages[0].content[0].image_url.url"),
            (
                {"role": "user", "content": [{**image, "image_url": {"url": "data:image/png,AAAA"}}]},
                "messages[0].content[0].image_url.url",
            ),
            (
                {"role": "user", "content": [{"type": "file", "file": {"file_data": "data:text/plain;base64,A!A="}}]},
                "messages[0].content[0].file.file_data",
            ),
            (call("no JSON"), "messages[0].tool_calls[0].function.arguments"),
            (call("[]"), "messages[0].tool_calls[0].function.arguments"),
            (call('{"a":' * 100_000), "messages[0].tool_calls[0].function.arguments"),
            (call('{"a":%s}' % ("9" * 2000)), "messages[0].tool_calls[0].function.arguments"),
            (call("{}", None), "messages[0].tool_calls[0].id"),
            ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ):
            self.refused(param, "invalid_messages", message)
        self.refused("reasoning_effort", "invalid_body", reasoning_effort="huge")
        self.refused("response_format.json_schema", "invalid_body", response_format={"type": "json_schema"})

    def refused(self, param: str, code: str, *messages: Any, **fields: Any) -> None:
        with self.subTest(param=param), self.assertRaises(RequestRefused) as caught:
            asked(*messages, **fields)
        self.assertEqual((caught.exception.param, caught.exception.code), (param, code))


if __name__ == "__main__":
    unittest.main()
