"""Conversations that nobody has thought of, through OpenAI's Responses and back: nothing of their meaning is lost.

Skipped where the package hypothesis is missing; with REQUIRE_HYPOTHESIS=1 that is a failure. DIALECT_EXAMPLES says how
many conversations each test tries.
"""

from __future__ import annotations

import importlib.util
import json
import os
import unittest
from collections.abc import Iterable
from typing import Any, Optional

from gateway.dialects.cutting import COMMENT, Cutter
from gateway.dialects.responses.conversation import Writer, read

MISSING = importlib.util.find_spec("hypothesis") is None
EXAMPLES = int(os.environ.get("DIALECT_EXAMPLES", "100"))

Json = dict[str, Any]


class RequirementTest(unittest.TestCase):
    @unittest.skipUnless(os.environ.get("REQUIRE_HYPOTHESIS") == "1", "REQUIRE_HYPOTHESIS=1 is not set")
    def test_the_hypothesis_package_is_installed(self) -> None:
        self.assertFalse(MISSING, "REQUIRE_HYPOTHESIS=1, but the hypothesis package is missing")


# --- a chat request, as a client of Responses would ask the same ----------------------------------------------------


def as_responses(chat: Json) -> Json:
    """The request to /v1/responses that means what a chat request does."""
    request = {key: value for key, value in chat.items() if key not in _OTHERS}
    messages = chat["messages"]
    first = messages[0]["content"] if messages[0]["role"] == "system" and len(messages) > 1 else None
    if type(first) is str and first:
        request["instructions"] = first
        messages = messages[1:]
    request["input"] = [item for message in messages for item in _items(message)]
    for key, name in (("max_tokens", "max_output_tokens"), ("top_logprobs", "top_logprobs")):
        if key in chat:
            request[name] = chat[key]
    if "tools" in chat:
        request["tools"] = [{"type": "function", **tool["function"]} for tool in chat["tools"]]
    choice = chat.get("tool_choice")
    if choice is not None:
        request["tool_choice"] = choice if type(choice) is str else {"type": "function", **choice["function"]}
    form = chat.get("response_format")
    if form is not None:
        request.setdefault("text", {})["format"] = {**form.get("json_schema", {}), "type": form["type"]}
    if "verbosity" in chat:
        request.setdefault("text", {})["verbosity"] = chat["verbosity"]
    if "reasoning_effort" in chat:
        request["reasoning"] = {"effort": chat["reasoning_effort"]}
    return request


_OTHERS = (
    *("messages", "max_tokens", "tools", "tool_choice", "response_format", "verbosity", "reasoning_effort"),
    *("logprobs", "top_logprobs", "stream_options"),
)


def _items(message: Json) -> Iterable[Json]:
    role, content = message["role"], message.get("content")
    if role == "tool":
        output = content if type(content) is str else [_part(part) for part in content]
        yield {"type": "function_call_output", "call_id": message["tool_call_id"], "output": output}
        return
    if message.get("reasoning_content"):
        thought = {"type": "reasoning_text", "text": message["reasoning_content"]}
        yield {"type": "reasoning", "id": "rs", "summary": [], "content": [thought]}
    if role == "assistant":
        parts = [{"type": "output_text", "text": content, "annotations": []}] if content is not None else []
        parts += [{"type": "refusal", "refusal": message["refusal"]}] if message.get("refusal") else []
        if parts:
            yield {"type": "message", "id": "msg", "role": role, "status": "completed", "content": parts}
    else:
        yield {"role": role, "content": content if type(content) is str else [_part(part) for part in content]}
    for call in message.get("tool_calls") or ():
        yield {"type": "function_call", "call_id": call["id"], **call["function"]}


def _part(part: Json) -> Json:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    if part["type"] == "image_url":
        image = part["image_url"]
        detail = {"detail": image["detail"]} if "detail" in image else {}
        return {"type": "input_image", "image_url": image["url"], **detail}
    return {"type": "input_file", **part["file"]}


def meaning(chat: Json) -> Json:
    """A chat request in the one of several ways to say it in which they all mean the same."""
    return {**chat, "messages": [_meaning(message) for message in chat["messages"]]}


def _meaning(message: Json) -> Json:
    content = message.get("content")
    if type(content) is list and len(content) == 1 and content[0]["type"] == "text":
        content = content[0]["text"]
    rest = {key: value for key, value in message.items() if value is not None}
    return {**rest, "content": content}


# --- what is generated ---------------------------------------------------------------------------------------------

if not MISSING:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    TEXTS = st.text(max_size=20)
    WORDS = st.text("abcdefgh_", min_size=1, max_size=8)
    SCHEMAS = st.fixed_dictionaries({"type": st.just("object")}, optional={"title": TEXTS, "required": st.lists(WORDS)})
    TEXT_PARTS = st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS})
    IMAGES = st.fixed_dictionaries(
        {"url": st.sampled_from(("data:image/png;base64,iVBORw0KGgo=", "https://example.org/a.png"))},
        optional={"detail": st.sampled_from(("auto", "low", "high"))},
    )
    IMAGE_PARTS = st.builds(lambda image: {"type": "image_url", "image_url": image}, IMAGES)
    FILES = st.fixed_dictionaries({"file_data": st.just("data:text/plain;base64,aGk=")}, optional={"filename": WORDS})
    FILE_PARTS = st.builds(lambda file: {"type": "file", "file": file}, FILES)
    CONTENTS = st.one_of(TEXTS, st.lists(st.one_of(TEXT_PARTS, IMAGE_PARTS, FILE_PARTS), min_size=1, max_size=4))
    ARGUMENTS = st.dictionaries(WORDS, st.one_of(TEXTS, st.integers(), st.none()), max_size=3).map(json.dumps)
    SETTINGS: Any = {
        "model": WORDS,
        "stream": st.just(False),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "max_tokens": st.integers(1, 1_000_000),
        "user": TEXTS,
        "stop": st.lists(TEXTS, min_size=1, max_size=3),
        "seed": st.integers(),
        "verbosity": st.sampled_from(("low", "medium", "high")),
        "reasoning_effort": st.sampled_from(("none", "low", "high")),
        "response_format": st.one_of(
            st.just({"type": "json_object"}),
            st.builds(
                lambda schema: {"type": "json_schema", "json_schema": schema},
                st.fixed_dictionaries(
                    {"name": WORDS, "schema": SCHEMAS}, optional={"strict": st.booleans(), "description": TEXTS}
                ),
            ),
        ),
    }

    @st.composite
    def answers(draw: Any) -> Json:
        """A message of an assistant."""
        names = draw(st.lists(WORDS, max_size=3))
        message: Json = {"role": "assistant", "content": draw(TEXTS if not names else st.one_of(st.none(), TEXTS))}
        if draw(st.booleans()):
            message["reasoning_content"] = draw(st.text(min_size=1, max_size=20))
        if draw(st.integers(0, 9)) == 9:
            message["refusal"] = draw(st.text(min_size=1, max_size=20))
        if names:
            message["tool_calls"] = [
                {
                    "id": f"call_{draw(st.integers(0, 10**9))}_{index}",
                    "type": "function",
                    "function": {"name": name, "arguments": draw(ARGUMENTS)},
                }
                for index, name in enumerate(names)
            ]
        return message

    @st.composite
    def chats(draw: Any) -> Json:
        """A chat request, with tools and images, and several rounds of both."""
        messages: list[Json] = []
        for _ in range(draw(st.integers(1, 4))):
            role = draw(st.sampled_from(("user", "user", "system", "developer")))
            messages.append({"role": role, "content": draw(CONTENTS)})
            for _ in range(draw(st.integers(0, 2))):
                answer = draw(answers())
                messages.append(answer)
                for call in answer.get("tool_calls", ()):
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": draw(CONTENTS)})
                if "tool_calls" not in answer:
                    break  # what it says next without being asked is the same turn in Responses
        chat: Json = {**draw(st.fixed_dictionaries({}, optional=SETTINGS)), "messages": messages}
        if draw(st.booleans()):
            chat["logprobs"] = True
            chat["top_logprobs"] = draw(st.integers(1, 20))
        names = draw(st.lists(WORDS, unique=True, max_size=3))
        if names:
            optional = {"description": TEXTS, "parameters": SCHEMAS, "strict": st.booleans()}
            chat["tools"] = [
                {"type": "function", "function": {"name": name, **draw(st.fixed_dictionaries({}, optional=optional))}}
                for name in names
            ]
            named = st.builds(lambda name: {"type": "function", "function": {"name": name}}, st.sampled_from(names))
            choice = draw(st.one_of(st.none(), st.sampled_from(("none", "auto", "required")), named))
            if choice is not None:
                chat["tool_choice"] = choice
            if draw(st.booleans()):
                chat["parallel_tool_calls"] = draw(st.booleans())
        return chat

    @st.composite
    def streams(draw: Any) -> tuple[Json, list[Json]]:
        """An assistant's message, and the chunks in which it comes, its texts cut anywhere."""
        message = draw(answers())
        deltas: list[Json] = [{"role": "assistant"}]
        for key in ("reasoning_content", "content", "refusal"):
            deltas += [{key: piece} for piece in _cut(draw, message.get(key))]
        calls = message.get("tool_calls", ())
        for index, call in enumerate(calls):
            function = {"name": call["function"]["name"], "arguments": ""}
            deltas.append({"tool_calls": [{**call, "index": index, "function": function}]})
        rests = [_cut(draw, call["function"]["arguments"]) for call in calls]
        while any(rests):
            index = draw(st.sampled_from([index for index, rest in enumerate(rests) if rest]))
            piece = {"index": index, "function": {"arguments": rests[index].pop(0)}}
            deltas.append({"tool_calls": [piece]})
        reason = draw(st.sampled_from(("stop", "tool_calls", "length", "content_filter")))
        chunks = [_chunk(delta) for delta in deltas] + [_chunk({}, reason)]
        chunks.append({**IDENTITY, "choices": [], "usage": USAGE})
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return {**IDENTITY, "choices": [choice], "usage": USAGE}, chunks

    def _cut(draw: Any, text: Optional[str]) -> list[str]:
        text = text or ""
        places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
        return [text[a:b] for a, b in zip([0, *places], [*places, len(text)])]

    fuzzed = settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


IDENTITY = {"id": "chat-1", "created": 1700000000, "model": "m"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def _chunk(delta: Json, finish: Optional[str] = None) -> Json:
    return {**IDENTITY, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def events_of(wire: bytes) -> list[Json]:
    return [json.loads(event.data) for event in Cutter().feed(wire) if event != COMMENT]


def tell(writer: Writer, parts: Iterable[bytes]) -> bytes:
    """What a client reads while an engine's stream comes in these parts."""
    cutter = Cutter()
    told = b""
    for part in parts:
        for event in cutter.feed(part):
            if event != COMMENT:
                told += writer.done() if event.data == b"[DONE]" else writer.chunk(json.loads(event.data))
    return told


def put_together(events: list[Json]) -> list[Json]:
    """The output items, from what each event adds to them."""
    items: list[Json] = []
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items), kind
            items.append(event["item"])
        elif kind == "response.content_part.added":
            content = items[event["output_index"]]["content"]
            assert event["content_index"] == len(content), kind
            content.append(event["part"])
        elif kind == "response.function_call_arguments.delta":
            items[event["output_index"]]["arguments"] += event["delta"]
        elif kind.endswith(".delta"):
            key = "refusal" if "refusal" in kind else "text"
            items[event["output_index"]]["content"][event["content_index"]][key] += event["delta"]
        elif kind == "response.output_item.done":
            items[event["output_index"]]["status"] = event["item"]["status"]
            assert items[event["output_index"]] == event["item"], kind
    return items


@unittest.skipIf(MISSING, "the hypothesis package is not installed")
class FuzzTest(unittest.TestCase):
    def test_a_chat_comes_back_from_responses_unchanged_in_meaning(self) -> None:
        @fuzzed
        @given(chats())
        def test(chat: Json) -> None:
            self.assertEqual(meaning(read(as_responses(chat)).chat), meaning(chat))

        test()

    def test_an_answer_that_a_client_sends_back_is_what_the_model_said(self) -> None:
        @fuzzed
        @given(answers())
        def test(message: Json) -> None:
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            output = read({"input": "hi"}).answer({**IDENTITY, "choices": [choice]})["output"]
            back = read({"input": [{"role": "user", "content": "hi"}, *output]}).chat["messages"]
            said = _meaning(message)
            if not said["content"] and len(said) > 2:
                said["content"] = None  # to say nothing beside other things is not to say anything
            self.assertEqual([_meaning(part) for part in back[1:]], [said])

        test()

    def test_a_stream_tells_the_same_however_it_is_cut(self) -> None:
        @fuzzed
        @given(streams(), st.data())
        def test(stream: tuple[Json, list[Json]], data: Any) -> None:
            whole, chunks = stream
            conversation = read({"input": "hi"})
            wire = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
            told = tell(conversation.events(0), [wire])
            events = events_of(told)
            self.assertEqual(events[-1]["response"], conversation.answer(whole))
            self.assertEqual(put_together(events), events[-1]["response"]["output"])
            self.assertEqual([event["sequence_number"] for event in events], list(range(len(events))))
            place = data.draw(st.integers(0, len(wire)))
            self.assertEqual(tell(conversation.events(0), [wire[:place], wire[place:]]), told)

        test()


class SplitTest(unittest.TestCase):
    def test_every_place_to_cut_a_stream_gives_the_same_events(self) -> None:
        call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "go", "arguments": '{"ä":'}}
        deltas: list[Json] = [{"reasoning_content": "hm"}, {"content": "é\n"}, {"content": "x"}, {"tool_calls": [call]}]
        deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]})
        chunks = [*map(_chunk, deltas), _chunk({}, "tool_calls")]
        wire = b"".join(b"data: %b\r\n\r\n" % json.dumps(chunk, ensure_ascii=False).encode() for chunk in chunks)
        wire = b": waiting\n\n" + wire + b"data: [DONE]\n\n"
        told = tell(read({"input": "hi"}).events(0), [wire])
        self.assertEqual(events_of(told)[-1]["type"], "response.completed")
        for place in range(len(wire) + 1):
            parts = [wire[:place], wire[place:]]
            self.assertEqual(tell(read({"input": "hi"}).events(0), parts), told)
        self.assertEqual(tell(read({"input": "hi"}).events(0), [wire[i : i + 1] for i in range(len(wire))]), told)
