"""What Ollama's clients ask, as what engines are asked."""

from __future__ import annotations

import base64
import unittest
from typing import Any, Callable

from gateway.dialects.dialect import Immediate
from gateway.dialects.ollama import pages, request
from gateway.dialects.ollama.conversation import Conversation
from gateway.dialects.ollama.times import Times
from gateway.errors import RequestRefused

Json = dict[str, Any]

TIMES = Times(lambda: 1700000000.5, lambda: 10.0, 8.0)
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n and more of it").decode()
HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> Json:
    return conversation(**fields).chat


def conversation(**fields: Any) -> Conversation:
    result = request.read_chat({"model": "m", "messages": HI, **fields}, TIMES)
    assert isinstance(result, Conversation)
    return result


def generate(**fields: Any) -> Conversation:
    result = request.read_generate({"model": "m", "prompt": "hi", **fields}, TIMES)
    assert isinstance(result, Conversation)
    return result


def messages(*said: Json) -> list[Json]:
    result: list[Json] = chat(messages=list(said))["messages"]
    return result


def called(name: str, **extra: Any) -> Json:
    return {"function": {"name": name, "arguments": {"at": 1}}, **extra}


class RequestCase(unittest.TestCase):
    def assert_refused(self, param: str, code: str, read: Callable[[], object]) -> None:
        with self.assertRaises(RequestRefused) as caught:
            read()
        self.assertEqual((caught.exception.code, caught.exception.param), (code, param))


class ChatTest(RequestCase):
    def test_a_chat_is_streamed_unless_it_says_otherwise(self) -> None:
        streamed = {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "messages": HI}
        self.assertEqual(chat(), streamed)
        self.assertEqual(chat(stream=None), streamed)
        self.assertEqual(chat(stream=False), {"model": "m", "stream": False, "messages": HI})
        self.assertEqual(conversation().path, "/chat/completions")
        self.assertEqual(conversation().stream_type, b"application/x-ndjson")

    def test_images_become_data_urls_of_what_they_are(self) -> None:
        heads = {
            "png": b"\x89PNG\r\n\x1a\n____",
            "jpeg": b"\xff\xd8\xff\xe0________",
            "gif": b"GIF89a______",
            "webp": b"RIFF____WEBPVP8",
        }
        for kind, head in heads.items():
            image = base64.b64encode(head).decode()
            told = messages({"role": "user", "content": "see", "images": [image]})[0]["content"]
            url = {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{image}"}}
            self.assertEqual(told, [{"type": "text", "text": "see"}, url])
        self.assertEqual(len(messages({"role": "user", "content": "", "images": [PNG, PNG]})[0]["content"]), 2)
        for image in ("", "%%%", "AAAA", base64.b64encode(b"RIFF____WAVEfmt ").decode(), "https://e.org/a.png", 3):
            with self.subTest(image=image):
                said = [{"role": "user", "content": "", "images": [PNG, image]}]
                self.assert_refused("messages[0].images[1]", "invalid_messages", lambda said=said: chat(messages=said))

    def test_calls_have_ids_and_texts_for_arguments(self) -> None:
        told = messages({"role": "assistant", "content": "", "tool_calls": [called("look"), called("go", id="c9")]})
        look = {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
        go = {"id": "c9", "type": "function", "function": {"name": "go", "arguments": '{"at": 1}'}}
        self.assertEqual(told, [{"role": "assistant", "content": None, "tool_calls": [look, go]}])

    def test_a_result_belongs_to_the_call_of_its_tool(self) -> None:
        told = messages(
            {"role": "assistant", "content": "a", "tool_calls": [called("look"), called("go"), called("go")]},
            {"role": "tool", "content": "1", "tool_name": "go"},
            {"role": "tool", "content": "2"},
            {"role": "tool", "content": "3", "tool_name": "go"},
            {"role": "assistant", "content": "", "tool_calls": [called("go")]},
            {"role": "tool", "content": "4", "tool_name": "go"},
        )
        results = [message["tool_call_id"] for message in told if message["role"] == "tool"]
        self.assertEqual(results, ["call_1", "call_0", "call_2", "call_3"])
        self.assertEqual(told[1], {"role": "tool", "content": "1", "tool_call_id": "call_1"})

    def test_a_result_that_names_its_call_is_taken_at_its_word(self) -> None:
        told = messages(
            {"role": "assistant", "content": "", "tool_calls": [called("go", id="a"), called("go", id="b")]},
            {"role": "tool", "content": "1", "tool_call_id": "a"},
            {"role": "tool", "content": "2", "tool_name": "go"},
        )
        self.assertEqual([message["tool_call_id"] for message in told[1:]], ["a", "b"])

    def test_a_result_without_a_call_is_refused(self) -> None:
        said = [{"role": "assistant", "content": "", "tool_calls": [called("go")]}]
        result = {"role": "tool", "content": "1", "tool_name": "go"}
        for others in ([result, result], [{"role": "assistant", "content": "a"}, result]):
            self.assert_refused("messages[2]", "invalid_messages", lambda others=others: chat(messages=said + others))

    def test_what_the_model_thought_goes_back_to_it(self) -> None:
        told = messages({"role": "assistant", "content": "so", "thinking": "hm"})
        self.assertEqual(told, [{"role": "assistant", "content": "so", "reasoning_content": "hm"}])

    def test_options_have_engines_names(self) -> None:
        options = {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.1,
            "seed": 3.0,
            "num_predict": 8,
            "stop": ["x"],
            "presence_penalty": 1,
            "frequency_penalty": 2,
            "repeat_penalty": 1.1,
            "num_ctx": 4096,
            "num_gpu": None,
            "mirostat": 1,
        }
        told = chat(options=options, keep_alive="5m")
        for key in ("model", "messages", "stream", "stream_options"):
            del told[key]
        expected = {key: options[key] for key in ("temperature", "top_p", "min_p", "top_k", "stop")}
        expected |= {"presence_penalty": 1, "frequency_penalty": 2, "repeat_penalty": 1.1, "repetition_penalty": 1.1}
        self.assertEqual(told, {**expected, "seed": 3, "max_tokens": 8})

    def test_no_limit_is_none(self) -> None:
        for most in (-1, -2, 0, None):
            self.assertNotIn("max_tokens", chat(options={"num_predict": most}))

    def test_the_answers_form_may_be_asked_for(self) -> None:
        self.assertEqual(chat(format="json")["response_format"], {"type": "json_object"})
        schema = {"type": "object"}
        wanted = chat(format=schema)["response_format"]
        self.assertEqual((wanted["type"], wanted["json_schema"]["schema"]), ("json_schema", schema))
        self.assertNotIn("response_format", chat(format=""))

    def test_thinking_is_an_effort(self) -> None:
        for think, effort in ((True, "medium"), (False, "none"), ("low", "low"), ("max", "xhigh")):
            self.assertEqual(chat(think=think)["reasoning_effort"], effort)
        self.assertNotIn("reasoning_effort", chat(think=None))

    def test_tools_and_tokens_are_asked_for_as_in_chat(self) -> None:
        tool = {"type": "function", "function": {"name": "go", "parameters": {"type": "object"}}}
        told = chat(tools=[{"function": tool["function"]}], logprobs=True, top_logprobs=2)
        self.assertEqual((told["tools"], told["logprobs"], told["top_logprobs"]), ([tool], True, 2))
        self.assertNotIn("tools", chat(tools=[], top_logprobs=2))

    def test_faults_are_named(self) -> None:
        fields: Any = (
            ("model", "invalid_model", {"model": ""}),
            ("messages", "invalid_messages", {"messages": "hi"}),
            ("messages[0]", "invalid_messages", {"messages": ["hi"]}),
            ("messages[0].role", "invalid_messages", {"messages": [{"content": "hi"}]}),
            ("messages[0].role", "invalid_messages", {"messages": [{"role": "developer"}]}),
            ("messages[0].content", "invalid_messages", {"messages": [{"role": "user", "content": []}]}),
            ("messages[0].images", "invalid_messages", {"messages": [{"role": "user", "images": "x"}]}),
            ("stream", "invalid_stream", {"stream": "no"}),
            ("format", "invalid_body", {"format": "yaml"}),
            ("options", "invalid_body", {"options": []}),
            ("options.temperature", "invalid_body", {"options": {"temperature": "hot"}}),
            ("options.num_predict", "invalid_body", {"options": {"num_predict": 1.5}}),
            ("options.seed", "invalid_body", {"options": {"seed": float("inf")}}),
            ("think", "invalid_body", {"think": "hard"}),
            ("think", "invalid_body", {"think": 1}),
            ("tools[0].type", "not_supported", {"tools": [{"type": "mcp"}]}),
            ("tools[0].function", "invalid_body", {"tools": [{"type": "function"}]}),
            ("tools[0].function.name", "invalid_body", {"tools": [{"function": {}}]}),
            ("logprobs", "invalid_body", {"logprobs": 3}),
        )
        for param, code, request_fields in fields:
            with self.subTest(param=param, request=request_fields):
                self.assert_refused(param, code, lambda fields=request_fields: chat(**fields))
        for call, place in (
            ({}, "function"),
            ({"function": {}}, "function.name"),
            ({"function": {"name": "go", "arguments": "{}"}}, "function.arguments"),
        ):
            said = [{"role": "assistant", "tool_calls": [call]}]
            param = f"messages[0].tool_calls[0].{place}"
            self.assert_refused(param, "invalid_messages", lambda said=said: chat(messages=said))


class GenerateTest(RequestCase):
    def test_a_prompt_is_a_chat_of_one_message(self) -> None:
        told = generate(system="Be brief.", suffix="", template="", context=[], images=[PNG], stream=False)
        url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
        content = [{"type": "text", "text": "hi"}, url]
        expected = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
        self.assertEqual(told.path, "/chat/completions")
        self.assertEqual(told.chat, {"model": "m", "stream": False, "messages": expected})

    def test_a_raw_prompt_or_one_with_a_suffix_is_a_completion(self) -> None:
        told = generate(raw=True, stream=False, options={"num_predict": 3})
        self.assertEqual(told.path, "/completions")
        self.assertEqual(told.chat, {"model": "m", "stream": False, "prompt": "hi", "max_tokens": 3})
        told = generate(suffix="bye", stream=False)
        self.assertEqual((told.path, told.chat["suffix"]), ("/completions", "bye"))

    def test_what_cannot_be_done_is_not_supported(self) -> None:
        fields: Any = (
            ("template", {"template": "{{ .Prompt }}"}),
            ("context", {"context": [1, 2]}),
            ("images", {"raw": True, "images": [PNG]}),
            ("logprobs", {"suffix": "x", "logprobs": True}),
        )
        for param, request_fields in fields:
            with self.subTest(param=param):
                self.assert_refused(param, "not_supported", lambda fields=request_fields: generate(**fields))
        for more in ({"template": "x"}, {"system": "x"}, {"context": [1]}):
            self.assert_refused("raw", "invalid_body", lambda more=more: generate(raw=True, **more))
        self.assert_refused("prompt", "invalid_body", lambda: generate(prompt=["hi"]))


class LoadTest(unittest.TestCase):
    def test_a_request_that_says_nothing_is_answered_without_an_engine(self) -> None:
        begin = {"model": "m", "created_at": "2023-11-14T22:13:20.500000Z"}
        end = {"done": True, "done_reason": "load"}
        message = {"role": "assistant", "content": ""}
        for fields in ({}, {"messages": []}, {"messages": None, "stream": True}):
            told = request.read_chat({"model": "m", **fields}, TIMES)
            self.assertEqual(told, Immediate("m", {**begin, "message": message, **end}))
        told = request.read_generate({"model": "m", "prompt": ""}, TIMES)
        self.assertEqual(told, Immediate("m", {**begin, "response": "", **end}))

    def test_a_model_that_is_to_be_kept_for_no_time_is_unloaded(self) -> None:
        told = request.read_chat({"model": "m", "keep_alive": 0}, TIMES)
        assert isinstance(told, Immediate)
        self.assertEqual(told.answer["done_reason"], "unload")


class EmbeddingsTest(RequestCase):
    def test_texts_are_embedded(self) -> None:
        told: Any = request.read_embed({"model": "m", "input": ["a", "b"], "dimensions": 3, "truncate": True}, TIMES)
        self.assertEqual(told.path, "/embeddings")
        self.assertEqual(told.chat, {"model": "m", "input": ["a", "b"], "dimensions": 3})
        old: Any = request.read_embeddings({"model": "m", "prompt": "a"})
        self.assertEqual((old.path, old.chat), ("/embeddings", {"model": "m", "input": "a"}))

    def test_without_a_text_no_engine_is_asked(self) -> None:
        for fields in ({}, {"input": ""}, {"input": []}):
            told = request.read_embed({"model": "m", **fields}, TIMES)
            self.assertEqual(told, Immediate("m", {"model": "m", "embeddings": []}))
        self.assertEqual(request.read_embeddings({"model": "m"}), Immediate("m", {"embedding": []}))

    def test_faults_are_named(self) -> None:
        for value in (3, {}, ["a", 3], [["a"]]):
            read = lambda value=value: request.read_embed({"model": "m", "input": value}, TIMES)  # noqa: E731
            self.assert_refused("input", "invalid_input", read)
        self.assert_refused("prompt", "invalid_body", lambda: request.read_embeddings({"model": "m", "prompt": 3}))


class PagesTest(unittest.TestCase):
    MODELS = (pages.Model("a:7b", 1700000000.0, 4096, ("completion", "tools"), "qwen"), pages.Model("b"))

    def test_models_are_listed_by_their_names(self) -> None:
        first, second = pages.tags(self.MODELS)["models"]
        self.assertEqual((first["name"], first["model"], first["details"]["family"]), ("a:7b", "a:7b", "qwen"))
        self.assertEqual(first["modified_at"], "2023-11-14T22:13:20.000000Z")
        self.assertEqual(len(first["digest"]), 64)
        self.assertNotEqual(first["digest"], second["digest"])

    def test_what_is_known_of_a_model_is_shown(self) -> None:
        known, unknown = map(pages.show, self.MODELS)
        self.assertEqual(known["capabilities"], ["completion", "tools"])
        self.assertEqual(known["model_info"]["qwen.context_length"], 4096)
        self.assertEqual(known["model_info"]["general.architecture"], "qwen")
        self.assertFalse([key for key in unknown["model_info"] if "context_length" in key])

    def test_all_models_run(self) -> None:
        self.assertEqual([model["context_length"] for model in pages.running(self.MODELS)["models"]], [4096, 0])

    def test_a_request_names_its_model_in_new_words_or_old_ones(self) -> None:
        self.assertEqual(request.model_in({"model": "a"}), "a")
        self.assertEqual(request.model_in({"name": "a"}), "a")
        self.assertRegex(pages.version()["version"], r"^\d+\.\d+\.\d+$")
