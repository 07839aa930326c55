"""Complete answers, usage, reasons to stop and errors between chat and Anthropic's messages."""

from __future__ import annotations

import json
import unittest
from typing import Any

from gateway.dialects.anthropic.answers import completion_of
from gateway.dialects.anthropic.endings import chat_usage, messages_usage
from gateway.dialects.anthropic.errors import chat_error, chat_status, error_message, status_for
from gateway.dialects.anthropic.requests import read
from gateway.errors import STATUS_BY_CODE, GatewayError
from gateway.upstream.answers import InvalidAnswer, parse_answer

THINKING = {"type": "thinking", "thinking": "hm", "signature": "sig"}
REDACTED = {"type": "redacted_thinking", "data": "xyz"}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}}
CONTEXT_FULL = "model_context_window_exceeded"
MALFORMED: list[Any] = [None, 7, True, "x", [], {}, [7], [{}], {"a": 1}, [None], [[]]]


def call(arguments: Any, call_id: Any = "call_1", name: Any = "weather") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def completion(finish: Any = "stop", usage: Any = None, stop_reason: Any = None, **said: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **said}, "finish_reason": finish}
    if stop_reason is not None:
        choice["stop_reason"] = stop_reason
    return {"id": "chat-1", "model": "m", "choices": [choice], "usage": usage}


def message(*content: Any, **fields: Any) -> dict[str, Any]:
    said = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": list(content)}
    return {**said, "stop_reason": "end_turn", "stop_sequence": None, **fields}


class MessageTest(unittest.TestCase):
    def told(self, chat: dict[str, Any], *stops: str) -> dict[str, Any]:
        asked = {
            "model": "m",
            "max_tokens": 9,
            "stop_sequences": list(stops),
            "messages": [{"role": "user", "content": "x"}],
        }
        return read(asked).answer(chat)

    def test_a_text(self) -> None:
        usage = {"prompt_tokens": 5, "completion_tokens": 3}
        self.assertEqual(
            self.told(completion(content="hello", usage=usage)),
            {
                "id": "chat-1",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [{"type": "text", "text": "hello"}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {
                    "input_tokens": 5,
                    "output_tokens": 3,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0,
                },
            },
        )

    def test_thinking_then_text_then_calls(self) -> None:
        said = completion(
            content="I look",
            thinking_blocks=[THINKING, REDACTED],
            tool_calls=[call('{"city": "Köln"}'), call("", "call_2")],
        )
        first, second = {**USE, "id": "call_1"}, {**USE, "id": "call_2", "input": {}}
        content = [THINKING, REDACTED, {"type": "text", "text": "I look"}, first, second]
        self.assertEqual(self.told(said)["content"], content)
        # (what an engine says of calls that it was made to make)
        self.assertEqual(self.told(said)["stop_reason"], "tool_use")

    def test_thinking_of_other_engines_has_no_signature(self) -> None:
        for key in ("reasoning_content", "reasoning"):
            content = self.told(completion(content="x", **{key: "hm"}))["content"]
            self.assertEqual(content[0], {"type": "thinking", "thinking": "hm", "signature": ""})

    def test_the_first_choice_is_told(self) -> None:
        said = completion(content="first")
        said["choices"].insert(0, {"index": 1, "message": {"content": "second"}})
        self.assertEqual(self.told(said)["content"][0]["text"], "first")

    def test_a_refusal_is_text(self) -> None:
        self.assertEqual(self.told(completion(content=None, refusal="no"))["content"], [{"type": "text", "text": "no"}])

    def test_why_it_has_ended(self) -> None:
        for finish, reason in (
            ("stop", "end_turn"),
            ("length", "max_tokens"),
            ("tool_calls", "tool_use"),
            ("content_filter", "refusal"),
            (None, "end_turn"),
            ({}, "end_turn"),
        ):
            self.assertEqual(self.told(completion(finish, content="x"))["stop_reason"], reason)

    def test_what_chat_has_no_reason_for_is_told_where_the_engine_has_said_it(self) -> None:
        for finish, reason in (("stop", "pause_turn"), ("length", "model_context_window_exceeded")):
            for calls in ([], [call("{}")]):
                said = completion(finish, content="x", tool_calls=calls)
                said["choices"][0]["native_finish_reason"] = reason
                told = self.told(said)
                self.assertEqual((told["stop_reason"], told["stop_sequence"]), (reason, None))
        for odd in [*MALFORMED, "STOP", "tool_use"]:  # another engine's words
            said = completion(content="x")
            said["choices"][0]["native_finish_reason"] = odd
            self.assertEqual(self.told(said)["stop_reason"], "end_turn")

    def test_a_stop_sequence_is_told_where_the_engine_tells_it(self) -> None:
        said = self.told(completion(content="x", stop_reason="END"), "END")
        self.assertEqual((said["stop_reason"], said["stop_sequence"]), ("stop_sequence", "END"))
        for other in ("other", 128001, [], {}):  # a token that has ended it, mostly
            said = self.told(completion(content="x", stop_reason=other), "END")
            self.assertEqual((said["stop_reason"], said["stop_sequence"]), ("end_turn", None))

    def test_arguments_that_are_no_object_do_not_become_an_empty_one(self) -> None:
        for arguments in ('{"city": "K', "[1]", "7", [], '{"a":' * 100_000):
            content = self.told(completion("length", tool_calls=[call(arguments)]))["content"]
            self.assertEqual(content[0]["input"], {"malformed_arguments": arguments})

    def test_calls_without_an_id_get_one_each(self) -> None:
        content = self.told(completion(tool_calls=[call("{}", None), call("{}", ""), call("{}", name=None)]))["content"]
        self.assertEqual([block["id"] for block in content], ["call_chat-1_0", "call_chat-1_1"])

    def test_whatever_an_engine_says_there_is_a_message(self) -> None:
        for odd in MALFORMED:
            for chat in (
                {"choices": odd, "usage": odd, "id": odd, "model": odd},
                {"choices": [{"message": odd, "finish_reason": odd, "stop_reason": odd}]},
                completion(content=odd, thinking_blocks=odd, reasoning_content=odd, tool_calls=odd, refusal=odd),
                completion(content=[{"type": "text", "text": odd}], tool_calls=[{"function": odd, "id": odd}]),
                completion(usage={"prompt_tokens": odd, "prompt_tokens_details": odd, "completion_tokens": odd}),
            ):
                with self.subTest(chat=chat):
                    told = self.told(chat)
                    json.dumps(told, allow_nan=False)
                    self.assertEqual((told["type"], type(told["content"])), ("message", list))
                    self.assertIs(type(told["usage"]["input_tokens"]), int)


class CompletionTest(unittest.TestCase):
    def said(self, *content: Any) -> dict[str, Any]:
        said = completion_of(message(*content), 7)["choices"][0]["message"]
        assert isinstance(said, dict)
        return said

    def test_a_text(self) -> None:
        usage = {"input_tokens": 5, "output_tokens": 3}
        told = completion_of(message({"type": "text", "text": "a"}, {"type": "text", "text": "b"}, usage=usage), 7)
        self.assertEqual(
            told,
            {
                "id": "msg_1",
                "object": "chat.completion",
                "created": 7,
                "model": "claude",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": "ab"}, "finish_reason": "stop"}],
                "usage": {
                    "prompt_tokens": 5,
                    "completion_tokens": 3,
                    "total_tokens": 8,
                    "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                },
            },
        )
        self.assertEqual(parse_answer(json.dumps(told).encode(), "/chat/completions"), told)

    def test_calls_without_a_text_have_no_content(self) -> None:
        said = self.said(USE, {**USE, "id": "toolu_2", "input": {}})
        self.assertIsNone(said["content"])
        self.assertEqual([one["function"]["arguments"] for one in said["tool_calls"]], ['{"city": "Köln"}', "{}"])
        self.assertEqual([one["id"] for one in said["tool_calls"]], ["toolu_1", "toolu_2"])

    def test_thinking_can_be_read_and_given_back(self) -> None:
        said = self.said(THINKING, REDACTED, {"type": "text", "text": "x"})
        self.assertEqual(said["reasoning_content"], "hm")
        self.assertEqual(said["thinking_blocks"], [THINKING, REDACTED])

    def test_why_it_has_ended(self) -> None:
        for reason, finish in (
            ("end_turn", "stop"),
            ("stop_sequence", "stop"),
            ("pause_turn", "stop"),
            ("max_tokens", "length"),
            ("model_context_window_exceeded", "length"),
            ("tool_use", "tool_calls"),
            ("refusal", "content_filter"),
            (None, "stop"),
            ([], "stop"),
        ):
            told = completion_of(message(stop_reason=reason), 7)["choices"][0]
            self.assertEqual(told["finish_reason"], finish)
            self.assertNotIn("stop_reason", told)
            kept = {"native_finish_reason": reason} if reason in ("pause_turn", CONTEXT_FULL) else {}
            self.assertEqual({key: told[key] for key in told if key.startswith("native")}, kept)
        told = completion_of(message(stop_reason="stop_sequence", stop_sequence="END"), 7)["choices"][0]
        self.assertEqual(told["stop_reason"], "END")

    def test_an_error_and_what_is_no_message_are_no_answers(self) -> None:
        for odd in ({"type": "error", "error": {"type": "api_error", "message": "m"}}, {}, {"content": {}}):
            with self.subTest(odd=odd), self.assertRaises(InvalidAnswer):
                parse_answer(json.dumps(completion_of(odd, 7)).encode(), "/chat/completions")

    def test_what_is_malformed_counts_as_absent(self) -> None:
        for odd in MALFORMED:
            for content in (
                odd,
                [odd],
                [{"type": odd}],
                [{"type": "text", "text": odd}],
                [{"type": "tool_use", "name": odd, "id": odd, "input": odd}],
                [{"type": "tool_use", "name": "x", "id": odd, "input": odd}],
                [{"type": "thinking", "thinking": odd, "signature": odd}],
            ):
                with self.subTest(content=content):
                    told = completion_of(
                        message(stop_reason=odd, stop_sequence=odd, usage=odd) | {"content": content}, 7
                    )
                    json.dumps(told, allow_nan=False)
                    self.assertTrue(told.get("choices") or told.get("error"))


class UsageTest(unittest.TestCase):
    def test_a_prompt_is_all_its_tokens_in_chat(self) -> None:
        usage = {
            "input_tokens": 10,
            "cache_creation_input_tokens": 20,
            "cache_read_input_tokens": 30,
            "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 0},
            "output_tokens": 7,
            "output_tokens_details": {"thinking_tokens": 4},
            "inference_geo": "eu",
        }
        told = chat_usage(usage)
        self.assertEqual(
            told,
            {
                "prompt_tokens": 60,
                "completion_tokens": 7,
                "total_tokens": 67,
                "prompt_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 20},
                "completion_tokens_details": {"reasoning_tokens": 4},
                "cache_creation_input_tokens": 20,
                "cache_read_input_tokens": 30,
                "cache_creation": usage["cache_creation"],
            },
        )
        del usage["inference_geo"]
        self.assertEqual(messages_usage(told), usage)

    def test_an_engine_that_tells_none_has_none(self) -> None:
        for odd in [*MALFORMED, {"input_tokens": None}, {"input_tokens": "5"}]:
            self.assertIsNone(chat_usage(odd))
        for odd in ({"input_tokens": 5}, {"input_tokens": 5, "output_tokens": None}, {"output_tokens": 5}):
            self.assertIsNone(chat_usage(odd))

    def test_cached_tokens_of_any_engine_were_read_or_written(self) -> None:
        details = {"cached_tokens": 8, "cache_write_tokens": 1}
        told = messages_usage({"prompt_tokens": 10, "prompt_tokens_details": details})
        self.assertEqual((told["input_tokens"], told["cache_read_input_tokens"]), (1, 8))
        self.assertEqual(told["cache_creation_input_tokens"], 1)


class ErrorTest(unittest.TestCase):
    def test_every_error_has_a_type_that_clients_know(self) -> None:
        kinds = {
            "invalid_request_error",
            "authentication_error",
            "permission_error",
            "not_found_error",
            "request_too_large",
            "rate_limit_error",
            "api_error",
            "timeout_error",
            "overloaded_error",
        }
        told = {code: error_message(GatewayError(code, "m"), "r")["error"]["type"] for code in STATUS_BY_CODE}
        self.assertEqual(set(told.values()), kinds)
        self.assertEqual(told["invalid_messages"], "invalid_request_error")
        self.assertEqual(told["unauthorized"], "authentication_error")
        self.assertEqual(told["model_not_found"], "not_found_error")
        self.assertEqual(told["body_too_large"], "request_too_large")
        self.assertEqual(told["backend_rate_limited"], "rate_limit_error")
        self.assertEqual(told["backend_error"], "api_error")
        self.assertEqual(told["gateway_timeout"], "timeout_error")

    def test_its_body(self) -> None:
        error = GatewayError("no_consensus", "they differ", details={"votes": 2})
        self.assertEqual(
            error_message(error, "req-1"),
            {
                "type": "error",
                "error": {
                    "type": "invalid_request_error",
                    "message": "they differ",
                    "details": {"votes": 2, "error_code": "no_consensus"},
                },
                "request_id": "req-1",
            },
        )

    def test_who_is_to_come_later_is_told_529(self) -> None:
        for code, status in (("overloaded", 529), ("draining", 529), ("backend_error", 502), ("gateway_timeout", 504)):
            self.assertEqual(status_for(GatewayError(code, "m")), status)
        self.assertEqual(error_message(GatewayError("overloaded", "m"), "r")["error"]["type"], "overloaded_error")

    def test_an_engines_error_is_told_in_openais_words(self) -> None:
        for kind, message_, expected, code in (
            ("invalid_request_error", "no", "invalid_request_error", None),
            (
                "invalid_request_error",
                "prompt is too long: 210000 tokens > 200000 maximum",
                "invalid_request_error",
                "context_length_exceeded",
            ),
            ("rate_limit_error", "slow down", "rate_limit_error", "rate_limit_exceeded"),
            ("overloaded_error", "Overloaded", "server_error", "overloaded"),
            ("api_error", "oh", "server_error", None),
            (["odd"], "oh", "server_error", None),
        ):
            told = chat_error({"type": "error", "error": {"type": kind, "message": message_}})
            self.assertEqual(told, {"error": {"message": message_, "type": expected, "code": code, "param": None}})
        coded = {"type": "invalid_request_error", "message": "m", "details": {"error_code": "tool_name_conflict"}}
        self.assertEqual(chat_error({"error": coded})["error"]["code"], "tool_name_conflict")
        for odd in MALFORMED:
            self.assertTrue(chat_error({"error": odd})["error"]["message"])

    def test_what_is_not_the_clients_fault_does_not_look_like_it(self) -> None:
        unpaid = {"error": {"message": "Your credit balance is too low to access the Anthropic API."}}
        self.assertEqual(chat_status(529, {}), 529)
        self.assertEqual(chat_status(402, {}), 429)
        self.assertEqual(chat_status(400, unpaid), 429)
        self.assertEqual([chat_status(status, {"error": 7}) for status in (400, 404, 429, 500)], [400, 404, 429, 500])


if __name__ == "__main__":
    unittest.main()
