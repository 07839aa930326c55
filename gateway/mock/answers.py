"""What a mock engine says in OpenAI's dialect: chat, completions and embeddings, plain and as stream events.

Pure. Nothing here knows a socket, a lock or a behaviour's name.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import time
from collections.abc import Iterator
from typing import Optional, Union

from gateway.mock.saying import Asked, BadRequest, Call, Json, Said, Stream, Tool, Wish, encode, say, speak, text_of

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
DONE = b"data: [DONE]\n\n"

_EMBEDDING_DIMENSIONS = 8
_MAX_CHOICES = 128


def error(status: int, message: str, kind: str) -> bytes:
    """Return the error object that llama.cpp and OpenAI share."""
    return encode({"error": {"code": status, "message": message, "type": kind}})


def models(model: str) -> Json:
    """Return the answer to GET /v1/models."""
    return {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "mock"}]}


def plain(asked: Asked) -> Json:
    """Return the whole answer to an inference request. Raises BadRequest when the body lacks what the path needs."""
    if asked.path == EMBEDDINGS:
        return _embeddings(asked)
    choices = _choices(asked)
    answer = _frame(asked, "chat.completion")
    answer["choices"] = [
        {"index": index, **_said(asked, choice), "finish_reason": _finish(choice)}
        for index, choice in enumerate(choices)
    ]
    if asked.usage:
        answer["usage"] = _usage(asked, choices)
    return answer


def _said(asked: Asked, choice: Said) -> Json:
    if asked.path != CHAT:
        return {"text": choice.text, "logprobs": None}
    if not choice.calls:
        return {"message": {"role": "assistant", "content": choice.text}}
    calls = [_call(asked, index, call, call.arguments) for index, call in enumerate(choice.calls)]
    return {"message": {"role": "assistant", "content": None, "tool_calls": calls}}


def _call(asked: Asked, index: int, call: Call, arguments: str) -> Json:
    identifier = f"{asked.identifier('call-')}-{index}"
    return {"id": identifier, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _finish(choice: Said) -> str:
    return "stop" if choice.finish_reason == "stop_sequence" else choice.finish_reason


def stream(asked: Asked) -> Stream:
    """Return the first, the content and the last events of a streamed answer, each a complete `data: …` block.

    Content is made as it is taken, once: a stream of a million events needs no memory for them. Usage is sent when
    stream_options.include_usage asks. Raises BadRequest as `plain` does.
    """
    choices = _choices(asked)
    frame = _frame(asked, "chat.completion.chunk")

    def event(value: object) -> bytes:
        return b"data: " + encode(value) + b"\n\n"

    def chunk(index: int, said: Union[str, Json], finish: Optional[str] = None) -> bytes:
        choice: Json = {"index": index, "finish_reason": finish}
        if asked.path == CHAT:
            choice["delta"] = {"content": said} if isinstance(said, str) else said
        else:
            choice.update(text=said if isinstance(said, str) else "", logprobs=None)
        return event({**frame, "choices": [choice]})

    steps: list[list[Union[str, Json]]] = [[*choice.pieces, *_call_steps(asked, choice)] for choice in choices]

    def content() -> Iterator[bytes]:
        for position in range(max(map(len, steps))):
            for index, own in enumerate(steps):
                if position < len(own):
                    yield chunk(index, own[position])

    begun: list[Json] = [{"role": "assistant", "content": None if choice.calls else ""} for choice in choices]
    opening = [chunk(index, delta) for index, delta in enumerate(begun) if asked.path == CHAT]
    closing = [chunk(index, {}, _finish(choice)) for index, choice in enumerate(choices)]
    options = asked.body.get("stream_options")
    if asked.usage and isinstance(options, dict) and options.get("include_usage") is True:
        closing.append(event({**frame, "choices": [], "usage": _usage(asked, choices)}))
    return opening, content(), closing


def _call_steps(asked: Asked, choice: Said) -> Iterator[Json]:
    for index, call in enumerate(choice.calls):
        yield {"tool_calls": [{"index": index, **_call(asked, index, call, "")}]}
        for piece in call.pieces():
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


def stream_and_done(asked: Asked) -> Stream:
    """Return `stream` with [DONE] as its last event."""
    opening, content, closing = stream(asked)
    return opening, content, [*closing, DONE]


def _frame(asked: Asked, chat_object: str) -> Json:
    return {
        "id": asked.identifier("chatcmpl-" if asked.path == CHAT else "cmpl-"),
        "object": chat_object if asked.path == CHAT else "text_completion",
        "created": int(time.time()),
        "model": asked.model,
        "system_fingerprint": f"mock-{asked.port}",
    }


def _choices(asked: Asked) -> list[Said]:
    texts, n = _prompts(asked), asked.body.get("n")
    copies = min(n, _MAX_CHOICES) if type(n) is int and n > 0 else 1
    if asked.path == CHAT:
        return [say(asked, _wish(asked.body))] * copies
    opening = f"Mock answer from {asked.model} at {asked.port}: "
    stops, limit = asked.body.get("stop"), _limit(asked.body)
    return [speak(opening + text, stops, limit, asked.events) for text in texts for _ in range(copies)]


def _limit(body: Json) -> object:
    return body.get("max_completion_tokens") or body.get("max_tokens")


def _wish(body: Json) -> Wish:
    messages: list[Json] = body["messages"]
    last = max((at for at, message in enumerate(messages) if message.get("role") == "user"), default=-1)
    since = messages[last + 1 :]
    choice, style = body.get("tool_choice"), body.get("response_format")
    tools = [_function(tool) for tool in _objects(body.get("tools"))]
    return Wish(
        text=text_of(messages[last].get("content")) if last >= 0 else "",
        called=[_function(call).name for message in since for call in _objects(message.get("tool_calls"))],
        results=[text_of(message.get("content")) for message in since if message.get("role") == "tool"],
        tools=[] if choice == "none" else [tool for tool in tools if tool.name],
        demanded=_function(choice).name if isinstance(choice, dict) else choice == "required",
        one_at_a_time=body.get("parallel_tool_calls") is False,
        schema=_schema(style) if isinstance(style, dict) else None,
        stops=body.get("stop"),
        limit=_limit(body),
    )


def _objects(value: object) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _function(value: Json) -> Tool:
    function = value.get("function")
    function = function if isinstance(function, dict) else {}
    return Tool(str(function.get("name") or ""), function.get("parameters"))


def _schema(style: Json) -> Optional[Json]:
    """Return the schema that a response_format demands, None for text."""
    if style.get("type") == "json_object":
        return {"type": "object"}
    if style.get("type") != "json_schema":
        return None
    named = style.get("json_schema")
    if not isinstance(named, dict) or not isinstance(named.get("schema"), dict):
        raise BadRequest("'response_format.json_schema' must have a name and a schema")
    schema: Json = named["schema"]
    return schema


def _prompts(asked: Asked) -> list[str]:
    """Return the text of each message, prompt or input."""
    if asked.path != CHAT:
        return _texts(asked.body, "input" if asked.path == EMBEDDINGS else "prompt")
    messages = asked.body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a non-empty list")
    if not all(isinstance(message, dict) for message in messages):
        raise BadRequest("'messages' must hold objects")
    _check_tool_messages(messages)
    return [text_of(message.get("content")) for message in messages]


def _check_tool_messages(messages: list[Json]) -> None:
    called: set[object] = set()
    for message in messages:
        if message.get("role") != "tool":
            called = {str(call.get("id")) for call in _objects(message.get("tool_calls"))}
        elif called and str(message.get("tool_call_id")) not in called:  # as lenient as llama.cpp where there are none
            raise BadRequest("a message of role 'tool' must answer one of the 'tool_calls' of the message before")


def _texts(body: Json, name: str) -> list[str]:
    """Return the texts of a prompt or input: text, token numbers, or a list of either."""
    value = body.get(name)
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(type(item) is int for item in value):
            return [" ".join(map(str, value))]
        if all(isinstance(item, (str, list)) for item in value):
            return [item if isinstance(item, str) else " ".join(map(str, item)) for item in value]
    raise BadRequest(f"'{name}' must be text, a list of token numbers, or a list of either")


def _usage(asked: Asked, choices: list[Said]) -> Json:
    prompt = max(1, sum(len(text.split()) for text in _prompts(asked)))
    completion = sum(choice.tokens for choice in choices)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _embeddings(asked: Asked) -> Json:
    texts, dimensions = _prompts(asked), asked.body.get("dimensions")
    size = dimensions if type(dimensions) is int and 0 < dimensions <= 8192 else _EMBEDDING_DIMENSIONS
    packed = asked.body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(text, size, packed)}
        for index, text in enumerate(texts)
    ]
    answer: Json = {"object": "list", "model": asked.model, "data": data}
    if asked.usage:
        tokens = max(1, sum(len(text.split()) for text in texts))
        answer["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return answer


def _vector(text: str, size: int, packed: bool) -> Union[list[float], str]:
    """Return a unit vector that depends on the text alone, or its float32 bytes in base64."""
    raw = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(size)
    values = [byte - 127.5 for byte in raw]  # never zero, so the length never is
    length = sum(value * value for value in values) ** 0.5
    unit = [value / length for value in values]
    return base64.b64encode(struct.pack(f"<{size}f", *unit)).decode() if packed else unit
