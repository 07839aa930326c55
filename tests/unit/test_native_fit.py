"""What is read of Responses that nobody has checked."""

from __future__ import annotations

import copy
import random
import unittest
from typing import Any

from gateway.dialects.responses.native import asked_of, corrected, put_back, said_in
from gateway.routing.params import params_of
from gateway.upstream.nativeshaping import natively_shaped

CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
REQUEST: dict[str, Any] = {
    "input": [{"role": "user", "content": "hi"}],
    "tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]}, {"type": "web_search"}],
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}},
    "reasoning": {"effort": "low"},
}
RESPONSE: dict[str, Any] = {
    "status": "completed",
    "output": [
        {"type": "reasoning", "summary": []},
        {"type": "message", "content": [{"type": "output_text", "text": "a"}, {"type": "output_text", "text": "b"}]},
        CALL,
    ],
}
ODD = (None, True, 3, "x", [], {}, [1], [[]], {"type": "message"}, {"type": "function"}, {"content": 1})


def places(value: Any) -> list[tuple[Any, Any]]:
    """Everything that stands in a JSON value, as where it stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, one in inner for place in ((value, key), *places(one))]


class NativeTest(unittest.TestCase):
    def test_a_response_says_what_a_chat_answer_would(self) -> None:
        (choice,) = said_in(RESPONSE)["choices"]
        self.assertEqual((choice["finish_reason"], choice["message"]["content"]), ("stop", "ab"))
        self.assertEqual(choice["message"]["tool_calls"], [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}])
        for status in ("incomplete", "failed"):
            self.assertEqual(said_in({**RESPONSE, "status": status})["choices"][0]["finish_reason"], "length")

    def test_a_turn_that_ends_in_another_tools_call_is_no_answer_yet(self) -> None:
        text, function = RESPONSE["output"][1:]
        for kind in ("custom_tool_call", "computer_call", "mcp_approval_request"):
            other = {"type": kind}
            for output, reason in (
                ([other], "length"),
                ([text, other, {"type": "reasoning"}], "length"),
                ([other, text], "stop"),
                ([function, other], "stop"),
                ([{"type": "reasoning"}], "stop"),
                ([], "stop"),
            ):
                (choice,) = said_in({"status": "completed", "output": output})["choices"]
                self.assertEqual(choice["finish_reason"], reason, output)

    def test_what_was_repaired_stands_in_it_afterwards(self) -> None:
        response = copy.deepcopy(RESPONSE)
        said = said_in(response)
        said["choices"][0]["message"]["content"] = "c"
        said["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] = "[]"
        put_back(response, said)
        self.assertEqual(said_in(response), said)

    def test_what_it_asks_for_is_told_in_chat(self) -> None:
        asked = asked_of(REQUEST)
        function = {"type": "function", "function": {"type": "function", "name": "f"}}
        self.assertEqual(asked["tools"], [{"type": "other"}, {"type": "other"}, function])  # each keeps its place
        self.assertEqual(asked["response_format"]["json_schema"]["schema"], {})
        form = {"type": "json_object"}
        self.assertEqual(asked_of({"text": {"format": form}})["response_format"], form)

    def test_it_is_asked_again_behind_what_was_said(self) -> None:
        again = corrected({**REQUEST, "stream": True}, RESPONSE, "wrong", "not called")
        self.assertEqual(again["input"][:4], [*REQUEST["input"], *RESPONSE["output"]])
        result = {"type": "function_call_output", "call_id": "c1", "output": "not called"}
        self.assertEqual((again["input"][4:], "stream" in again), ([result], False))
        again = corrected({"input": "hi"}, {"output": []}, "wrong", "")
        self.assertEqual(again, {"input": [{"role": "user", "content": "hi"}, {"role": "user", "content": "wrong"}]})

    def test_thoughts_that_nobody_has_kept_are_not_given_back(self) -> None:
        kept = {"type": "reasoning", "encrypted_content": "x"}
        response = {"output": [{"type": "reasoning", "id": "rs_1"}, kept]}
        self.assertEqual(corrected({"input": [], "store": False}, response, "wrong", "")["input"][:-1], [kept])
        self.assertEqual(corrected({"input": []}, response, "wrong", "")["input"][:-1], response["output"])

    def test_whatever_stands_anywhere_nothing_breaks(self) -> None:
        rng = random.Random(4)
        params = params_of(("max_tokens", "verbosity"), {"reasoning_effort": "low"}, {"tools": [{}, 1]})
        assert params is not None
        for _ in range(2000):
            request, response = copy.deepcopy(REQUEST), copy.deepcopy(RESPONSE)
            for value in (request, response):
                for _ in range(rng.randint(1, 3)):
                    at, key = rng.choice(places(value))
                    at[key] = copy.deepcopy(rng.choice(ODD))
            asked_of(request)
            put_back(response, said_in(response))
            corrected(request, response, "", "")
            natively_shaped(request, params)


if __name__ == "__main__":
    unittest.main()
