"""What Anthropic's clients ask, as chat, and as engines of OpenAI's dialect get it."""

from __future__ import annotations

import copy
import unittest
from typing import Any

from gateway.dialects.anthropic.plain import plain
from gateway.dialects.anthropic.requests import counted, read, read_count
from gateway.errors import RequestRefused
from gateway.upstream.fields import BY_PATH

MARK = {"type": "ephemeral", "ttl": "1h"}
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0="}
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}}
CALL = {
    "id": "toolu_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Köln"}'},
}
HI = {"role": "user", "content": "hi"}


def request(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 100, "messages": list(messages or [HI]), **fields}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


class ReadTest(unittest.TestCase):
    def chat(self, *messages: Any, **fields: Any) -> dict[str, Any]:
        asked = request(*messages, **fields)
        before = copy.deepcopy(asked)
        chat = read(asked).rich
        self.assertEqual(asked, before, "the client's request was changed")
        BY_PATH["/chat/completions"].validate(chat)
        return chat

    def messages(self, *messages: Any, **fields: Any) -> list[Any]:
        said = self.chat(*messages, **fields)["messages"]
        assert isinstance(said, list)
        return said

    def test_a_plain_request_is_one_of_chat(self) -> None:
        self.assertEqual(self.chat(), {"model": "m", "messages": [HI], "max_tokens": 100})

    def test_what_has_another_name_in_chat_gets_it(self) -> None:
        chat = self.chat(
            stop_sequences=["a", "b"], metadata={"user_id": "u"}, temperature=0.5, top_p=0.9, top_k=5, stream=True
        )
        self.assertEqual(chat["stop"], ["a", "b"])
        self.assertEqual(chat["user"], "u")
        self.assertEqual((chat["temperature"], chat["top_p"], chat["top_k"]), (0.5, 0.9, 5))
        self.assertEqual((chat["stream"], chat["stream_options"]), (True, {"include_usage": True}))

    def test_what_is_not_known_is_left_out(self) -> None:
        self.assertEqual(self.chat(service_tier="auto", betas=[], context_management={}), self.chat())

    def test_the_system_prompt_comes_first_with_its_marks(self) -> None:
        self.assertEqual(self.messages(system="be kind"), [{"role": "system", "content": "be kind"}, HI])
        self.assertEqual(self.messages(system=[text("be kind")])[0]["content"], "be kind")
        blocks = [text("be kind"), text("and short", cache_control=MARK)]
        self.assertEqual(self.messages(system=blocks), [{"role": "system", "content": blocks}, HI])

    def test_a_system_message_keeps_its_place(self) -> None:
        later = {"role": "system", "content": [text("now in French")]}
        self.assertEqual(self.messages(HI, later)[1], {"role": "system", "content": "now in French"})

    def test_images_are_parts_with_a_url(self) -> None:
        blocks = [
            text("what is this"),
            {"type": "image", "source": PNG, "cache_control": MARK},
            {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        ]
        self.assertEqual(
            self.messages({"role": "user", "content": blocks})[0]["content"],
            [
                text("what is this"),
                {**PNG_PART, "cache_control": MARK},
                {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
            ],
        )

    def document(self, source: Any, **fields: Any) -> Any:
        return self.messages({"role": "user", "content": [{"type": "document", "source": source, **fields}]})[0][
            "content"
        ]

    def test_a_documents_text_is_text(self) -> None:
        source = {"type": "text", "media_type": "text/plain", "data": "All is well."}
        self.assertEqual(self.document(source), "All is well.")
        self.assertEqual(self.document(source, title="News", context="of today"), "News\nof today\nAll is well.")
        self.assertEqual(self.document({"type": "content", "content": "words"}, title="T"), "T\nwords")
        inner = [text("words"), {"type": "image", "source": PNG}]
        self.assertEqual(self.document({"type": "content", "content": inner}), [text("words"), PNG_PART])

    def test_a_pdf_is_a_file(self) -> None:
        source = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
        file = {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}
        self.assertEqual(self.document(source), [{"type": "file", "file": file}])
        source = {"type": "url", "url": "https://example.org/a.pdf"}
        file = {"filename": "A", "file_data": "https://example.org/a.pdf"}
        self.assertEqual(self.document(source, title="A"), [{"type": "file", "file": file}])

    def test_a_search_result_is_text(self) -> None:
        block = {"type": "search_result", "title": "T", "source": "https://a", "content": [text("found")]}
        said = self.messages({"role": "user", "content": [block]})[0]["content"]
        self.assertEqual(said, [text("T\nhttps://a"), text("found")])

    def test_an_assistants_thinking_text_and_calls_are_one_message(self) -> None:
        thinking = {"type": "thinking", "thinking": "hm", "signature": "sig"}
        redacted = {"type": "redacted_thinking", "data": "xyz"}
        second = {**USE, "id": "toolu_2", "input": {}}
        said = self.messages(HI, {"role": "assistant", "content": [thinking, redacted, text("I look"), USE, second]})[1]
        self.assertEqual(
            said,
            {
                "role": "assistant",
                "content": "I look",
                "reasoning_content": "hm",
                "thinking_blocks": [thinking, redacted],
                "tool_calls": [CALL, {**CALL, "id": "toolu_2", "function": {"name": "weather", "arguments": "{}"}}],
            },
        )

    def test_an_assistant_that_only_calls_has_no_content(self) -> None:
        self.assertEqual(
            self.messages(HI, {"role": "assistant", "content": [USE]})[1],
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
        )

    def test_thinking_behind_a_text_keeps_its_place(self) -> None:
        first, second = ({"type": "thinking", "thinking": word, "signature": word} for word in "ab")
        said = self.messages(HI, {"role": "assistant", "content": [first, text("x"), second, USE]})
        self.assertEqual([message.get("thinking_blocks") for message in said], [None, [first], [second]])
        self.assertEqual([message["content"] for message in said], ["hi", "x", None])

    def test_results_come_before_what_else_is_said(self) -> None:
        result = {"type": "tool_result", "tool_use_id": "toolu_1"}
        blocks = [
            text("and now?"),
            {**result, "content": "sunny"},
            {**result, "is_error": True, "content": [text("no"), {"type": "image", "source": PNG}]},
            {**result, "cache_control": MARK},
        ]
        tool = {"role": "tool", "tool_call_id": "toolu_1"}
        self.assertEqual(
            self.messages(HI, {"role": "assistant", "content": [USE]}, {"role": "user", "content": blocks})[2:],
            [
                {**tool, "content": "sunny"},
                {**tool, "content": [text("no"), PNG_PART], "is_error": True},
                {**tool, "content": "", "cache_control": MARK},
                {"role": "user", "content": "and now?"},
            ],
        )

    def test_tools_and_the_choice_of_them(self) -> None:
        schema = {"type": "object", "properties": {"city": {"type": "string"}}}
        tool = {"name": "weather", "description": "d", "input_schema": schema, "strict": True, "cache_control": MARK}
        function = {"name": "weather", "description": "d", "parameters": schema, "strict": True}
        expected = {"type": "function", "function": function, "cache_control": MARK}
        self.assertEqual(self.chat(tools=[tool])["tools"], [expected])
        self.assertEqual(self.chat(tools=[{**tool, "type": "custom"}])["tools"], [expected])
        for choice, told in (
            ({"type": "auto"}, "auto"),
            ({"type": "any"}, "required"),
            ({"type": "none"}, "none"),
            ({"type": "tool", "name": "weather"}, {"type": "function", "function": {"name": "weather"}}),
        ):
            chat = self.chat(tools=[tool], tool_choice=choice)
            self.assertEqual(chat["tool_choice"], told)
            self.assertNotIn("parallel_tool_calls", chat)
        chat = self.chat(tools=[tool], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
        self.assertIs(chat["parallel_tool_calls"], False)

    def test_the_output_is_asked_for_in_chats_words(self) -> None:
        schema = {"type": "object"}
        form = {"type": "json_schema", "schema": schema}
        chat = self.chat(output_config={"effort": "high", "format": form})
        self.assertEqual(chat["reasoning_effort"], "high")
        expected = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema, "strict": True}}
        self.assertEqual(chat["response_format"], expected)
        self.assertEqual(self.chat(output_format=form)["response_format"], expected)

    def test_what_is_counted_needs_no_limit(self) -> None:
        asked = request(system="be kind", tools=[{"name": "t", "input_schema": {}}])
        del asked["max_tokens"]
        chat = read_count(asked)
        self.assertEqual([message["content"] for message in chat["messages"]], ["be kind", "hi"])
        self.assertGreater(BY_PATH["/chat/completions"].prompts(chat).weight, len("be kind") + len("hi"))
        self.assertEqual(counted(7), {"input_tokens": 7})


class RefusedTest(unittest.TestCase):
    def refused(self, asked: dict[str, Any], path: str, code: str) -> None:
        with self.subTest(path=path), self.assertRaises(RequestRefused) as caught:
            read(asked)
        self.assertEqual((caught.exception.param, caught.exception.code), (path, code))
        self.assertTrue(caught.exception.message.startswith(f"{path} "), caught.exception.message)

    def test_faults_are_named_by_the_clients_own_path(self) -> None:
        def of(role: str, *blocks: Any) -> dict[str, Any]:
            return request(HI, {"role": role, "content": list(blocks)})

        for asked, path in (
            (request(7), "messages.0"),
            (request({"role": "tool", "content": "x"}), "messages.0.role"),
            (request({"role": ["user"], "content": "x"}), "messages.0.role"),
            (request(HI, {"role": "user"}), "messages.1.content"),
            (of("user"), "messages.1.content"),
            (of("user", 7), "messages.1.content.0"),
            (of("user", {"text": "x"}), "messages.1.content.0.type"),
            (of("user", text("x"), text(7)), "messages.1.content.1.text"),
            (of("user", {"type": "image"}), "messages.1.content.0.source"),
            (of("user", {"type": "image", "source": {"type": "url"}}), "messages.1.content.0.source.url"),
            (of("user", {"type": "document", "source": {"type": "base64"}}), "messages.1.content.0.source.media_type"),
            (of("user", {"type": "tool_result", "content": "x"}), "messages.1.content.0.tool_use_id"),
            (of("user", {"type": "tool_result", "tool_use_id": "a", "content": 7}), "messages.1.content.0.content"),
            (
                of("user", {"type": "tool_result", "tool_use_id": "a", "content": [7]}),
                "messages.1.content.0.content.0",
            ),
            (of("assistant", {**USE, "input": "x"}), "messages.1.content.0.input"),
            (of("assistant", {"type": "thinking", "thinking": "x"}), "messages.1.content.0.signature"),
            (of("system", {"type": "image", "source": PNG}), "messages.1.content.0.type"),
        ):
            self.refused(asked, path, "invalid_messages")
        self.refused({**request(), "messages": []}, "messages", "invalid_messages")
        self.refused({**request(), "messages": {}}, "messages", "invalid_messages")

    def test_other_fields_have_their_own_codes(self) -> None:
        for fields, path, code in (
            ({"max_tokens": None}, "max_tokens", "invalid_max_tokens"),
            ({"max_tokens": 0}, "max_tokens", "invalid_max_tokens"),
            ({"max_tokens": True}, "max_tokens", "invalid_max_tokens"),
            ({"model": None}, "model", "invalid_model"),
            ({"stream": 1}, "stream", "invalid_stream"),
            ({"temperature": "hot"}, "temperature", "invalid_temperature"),
            ({"top_k": "5"}, "top_k", "invalid_body"),
            ({"stop_sequences": "a"}, "stop_sequences", "invalid_stop"),
            ({"stop_sequences": [7]}, "stop_sequences", "invalid_stop"),
            ({"system": 7}, "system", "invalid_body"),
            ({"system": [{"type": "image"}]}, "system.0.type", "invalid_body"),
            ({"tools": {"name": "x"}}, "tools", "invalid_body"),
            ({"tools": [{"input_schema": {}}]}, "tools.0.name", "invalid_body"),
            ({"tools": [{"name": "x"}]}, "tools.0.input_schema", "invalid_body"),
            ({"tools": [{"type": "function", "function": {"name": "x"}}]}, "tools.0.type", "invalid_body"),
            ({"tools": [{"name": "x", "input_schema": {}}], "tool_choice": "auto"}, "tool_choice.type", "invalid_body"),
            ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", "invalid_body"),
            ({"thinking": "on"}, "thinking", "invalid_body"),
            ({"output_config": []}, "output_config", "invalid_body"),
            ({"output_config": {"format": {"type": "json"}}}, "output_config.format.type", "invalid_body"),
        ):
            self.refused(request(**fields), path, code)

    def test_what_chat_has_no_words_for_is_refused_rather_than_dropped(self) -> None:
        def of(block: Any) -> dict[str, Any]:
            return request({"role": "user", "content": [block]})

        cited = {"type": "document", "source": {"type": "text", "data": "x"}, "citations": {"enabled": True}}
        for asked, path in (
            (request(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "tools.0.type"),
            (request(mcp_servers=[{"url": "https://a"}]), "mcp_servers"),
            (of({"type": "image", "source": {"type": "file", "file_id": "f"}}), "messages.0.content.0.source.type"),
            (of({"type": "container_upload", "file_id": "f"}), "messages.0.content.0.type"),
            (of(cited), "messages.0.content.0.citations"),
        ):
            self.refused(asked, path, "not_supported")

    def test_a_thread_is_refused_as_clients_know_it_rather_than_its_conversation_lost(self) -> None:
        for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
            self.refused(request(thread=thread), "thread", "thread_unsupported_request")
        read(request(thread=None))


class PlainTest(unittest.TestCase):
    def plain(self, *messages: Any, **fields: Any) -> dict[str, Any]:
        chat = {"model": "m", "messages": list(messages or [HI]), **fields}
        before = copy.deepcopy(chat)
        told = plain(chat)
        self.assertEqual(chat, before, "the request was changed, which another engine may get")
        BY_PATH["/chat/completions"].validate(told)
        return told

    def test_a_request_in_openais_words_stays_as_it_is(self) -> None:
        chat = {
            "model": "m",
            "messages": [HI, {"role": "user", "content": [text("x"), PNG_PART]}],
            "tools": [{"type": "function", "function": {"name": "t"}}],
            "reasoning_effort": "low",
        }
        self.assertEqual(plain(chat), chat)

    def test_marks_and_thinking_are_left_out(self) -> None:
        thinking = [{"type": "thinking", "thinking": "hm", "signature": "s"}]
        assistant = {
            "role": "assistant",
            "content": [text("a", cache_control=MARK), text("b")],
            "reasoning_content": "hm",
            "thinking_blocks": thinking,
            "tool_calls": [{**CALL, "cache_control": MARK}],
        }
        tool = {"type": "function", "function": {"name": "t"}}
        told = self.plain(
            {"role": "system", "content": [text("a", cache_control=MARK), text("b")]},
            assistant,
            {"role": "tool", "tool_call_id": "toolu_1", "content": "ok", "cache_control": MARK},
            tools=[{**tool, "cache_control": MARK}],
            cache_control=MARK,
        )
        self.assertNotIn("cache_control", str(told))
        self.assertEqual(told["tools"], [tool])
        self.assertEqual(
            told["messages"],
            [
                {"role": "system", "content": "a\n\nb"},
                {"role": "assistant", "content": "ab", "reasoning_content": "hm", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "toolu_1", "content": "ok"},
            ],
        )

    def test_what_tools_have_shown_is_the_users_behind_all_results(self) -> None:
        tool = {"role": "tool", "tool_call_id": "toolu_1"}
        results = [{**tool, "content": [PNG_PART]}, {**tool, "content": [text("a"), PNG_PART]}]
        texts = [{**tool, "content": "(shown in the next message)"}, {**tool, "content": "a"}]
        shown = {"role": "user", "content": [PNG_PART, PNG_PART]}
        assistant = {"role": "assistant", "content": "x"}
        self.assertEqual(self.plain(HI, *results)["messages"], [HI, *texts, shown])
        self.assertEqual(self.plain(HI, *results, assistant)["messages"], [HI, *texts, shown, assistant])
        said = {"role": "user", "content": [PNG_PART, PNG_PART, text("hi")]}
        self.assertEqual(self.plain(HI, *results, HI)["messages"], [HI, *texts, said])

    def test_an_error_of_a_tool_says_so(self) -> None:
        tool = {"role": "tool", "tool_call_id": "toolu_1", "content": "no such city"}
        self.assertEqual(self.plain(HI, {**tool, "is_error": True})["messages"][1]["content"], "Error: no such city")

    def test_a_budget_for_thinking_is_an_effort(self) -> None:
        for budget, effort in ((1024, "low"), (4000, "medium"), (30_000, "high")):
            told = self.plain(thinking={"type": "enabled", "budget_tokens": budget})
            self.assertEqual(told["reasoning_effort"], effort)
            self.assertNotIn("thinking", told)
        self.assertNotIn("reasoning_effort", self.plain(thinking={"type": "adaptive"}))
        self.assertEqual(self.plain(reasoning_effort="max")["reasoning_effort"], "xhigh")


if __name__ == "__main__":
    unittest.main()
