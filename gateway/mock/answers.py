"""What a mock engine says: OpenAI-shaped answers as plain bodies and as lists of stream events.

Pure: the same request, model, port and number give the same answer. Words stand for tokens, so
usage, max_tokens and the default number of stream events can be counted by hand in a test.
Nothing here knows a socket, a lock or a behaviour's name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
DONE = b"data: [DONE]\n\n"

_EMBEDDING_DIMENSIONS = 8
_MAX_CHOICES = 128


class BadRequest(ValueError):
    """The request's body cannot be answered; the text says what is wrong with it."""


@dataclass(frozen=True)
class Identity:
    """Who answers: model name, port, and the running number of the request."""

    model: str
    port: int
    number: int


@dataclass(frozen=True)
class StreamScript:
    """The events of one stream, each a complete `data: …` block, in the order they are sent.

    `content` is made as it is taken, once: a stream of a million events needs no memory for them.
    """

    opening: list[bytes]
    content: Iterator[bytes]
    closing: list[bytes]


@dataclass(frozen=True)
class _Choice:
    pieces: list[str]
    tokens: int
    finish_reason: str


def encode(value: object) -> bytes:
    """Return `value` as compact JSON in UTF-8, unescaped as llama.cpp sends it."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8: only then escape
        return json.dumps(value, separators=(",", ":")).encode()


def event(value: object) -> bytes:
    """Return `value` as one server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


def error_body(status: int, message: str, kind: str) -> Json:
    """Return the error object that llama.cpp and OpenAI share."""
    return {"error": {"code": status, "message": message, "type": kind}}


def models(identity: Identity) -> Json:
    """Return the answer to GET /v1/models."""
    entry = {"id": identity.model, "object": "model", "created": 0, "owned_by": "mock"}
    return {"object": "list", "data": [entry]}


def plain(path: str, body: Json, identity: Identity, events: int | None, usage: bool) -> Json:
    """Return the whole answer to an inference request.

    `events` sets the number of pieces the text is made of (None: its words); `usage` False leaves
    the usage out. Raises BadRequest when the body lacks what the path needs.
    """
    if path == EMBEDDINGS:
        return _embeddings(body, identity, usage)
    choices = _choices(path, body, identity, events)
    answer = _frame(path, identity, chunk=False)
    answer["choices"] = [_whole_choice(path, index, choice) for index, choice in enumerate(choices)]
    if usage:
        answer["usage"] = _usage(path, body, choices)
    return answer


def stream(path: str, body: Json, identity: Identity, events: int | None, usage: bool) -> StreamScript:
    """Return the events of the streamed answer to a chat or text completion.

    Same arguments as `plain`; `usage` True sends usage when stream_options.include_usage asks.
    """
    choices = _choices(path, body, identity, events)
    frame = _frame(path, identity, chunk=True)

    def chunk(index: int, text: str | None, finish: str | None = None, **delta: str) -> bytes:
        choice: Json = {"index": index, "finish_reason": finish}
        if path == CHAT:
            choice["delta"] = {**delta, **({} if text is None else {"content": text})}
        else:
            choice.update(text=text or "", logprobs=None)
        return event({**frame, "choices": [choice]})

    def content() -> Iterator[bytes]:
        for position in range(max(len(choice.pieces) for choice in choices)):
            for index, choice in enumerate(choices):
                if position < len(choice.pieces):
                    yield chunk(index, choice.pieces[position])

    indexes = range(len(choices)) if path == CHAT else ()
    closing = [chunk(i, None, choice.finish_reason) for i, choice in enumerate(choices)]
    options = body.get("stream_options")
    if usage and isinstance(options, dict) and options.get("include_usage") is True:
        closing.append(event({**frame, "choices": [], "usage": _usage(path, body, choices)}))
    return StreamScript([chunk(i, "", role="assistant") for i in indexes], content(), closing)


def _frame(path: str, identity: Identity, chunk: bool) -> Json:
    chat_object = "chat.completion.chunk" if chunk else "chat.completion"
    return {
        "id": f"{'chatcmpl' if path == CHAT else 'cmpl'}-mock-{identity.port}-{identity.number}",
        "object": chat_object if path == CHAT else "text_completion",
        "created": int(time.time()),
        "model": identity.model,
        "system_fingerprint": f"mock-{identity.port}",
    }


def _whole_choice(path: str, index: int, choice: _Choice) -> Json:
    text = "".join(choice.pieces)
    if path == CHAT:
        message = {"role": "assistant", "content": text}
        return {"index": index, "message": message, "finish_reason": choice.finish_reason}
    return {"index": index, "text": text, "logprobs": None, "finish_reason": choice.finish_reason}


def _choices(path: str, body: Json, identity: Identity, events: int | None) -> list[_Choice]:
    asked = [_last_user_text(body)] if path == CHAT else _prompts(body)
    n = body.get("n")
    copies = min(n, _MAX_CHOICES) if type(n) is int and n > 0 else 1
    opening = f"Mock answer from {identity.model} at {identity.port}: "
    return [_choice(opening + text, body, events) for text in asked for _ in range(copies)]


def _choice(text: str, body: Json, events: int | None) -> _Choice:
    words = _words(text)
    if events is not None and events > len(words):
        text += "".join(f" token{number}" for number in range(len(words) + 1, events + 1))
    words = _words(_cut_at_stop(text, body.get("stop")))
    finish = "stop"
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if type(limit) is int and 0 < limit < len(words):
        words, finish = words[:limit], "length"
    if events is None or events >= len(words):
        return _Choice(words, len(words), finish)
    count = len(words)
    bounds = [index * count // events for index in range(events + 1)] if events else [0]
    pieces = ["".join(words[low:high]) for low, high in zip(bounds, bounds[1:])]
    return _Choice(pieces, count if events else 0, finish)


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)


def _cut_at_stop(text: str, stop: object) -> str:
    candidates = stop if isinstance(stop, list) else [stop]
    found = [text.find(s) for s in candidates if isinstance(s, str) and s and s in text]
    return text[: min(found)] if found else text


def _messages(body: Json) -> list[Json]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a non-empty list")
    if not all(isinstance(message, dict) for message in messages):
        raise BadRequest("'messages' must hold objects")
    return messages


def _text_of(content: object) -> str:
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _last_user_text(body: Json) -> str:
    for message in reversed(_messages(body)):
        if message.get("role") == "user":
            return _text_of(message.get("content"))
    return ""


def _prompts(body: Json) -> list[str]:
    return _texts(body.get("prompt"), "prompt")


def _texts(value: object, name: str) -> list[str]:
    """Return the texts of a prompt or input: text, token numbers, or a list of either."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(type(item) is int for item in value):
            return [" ".join(map(str, value))]
        if all(isinstance(item, (str, list)) for item in value):
            return [item if isinstance(item, str) else " ".join(map(str, item)) for item in value]
    raise BadRequest(f"'{name}' must be text, a list of token numbers, or a list of either")


def _usage(path: str, body: Json, choices: list[_Choice]) -> Json:
    if path == CHAT:
        texts = [_text_of(message.get("content")) for message in _messages(body)]
    else:
        texts = _prompts(body)
    prompt = max(1, sum(len(text.split()) for text in texts))
    completion = sum(choice.tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _embeddings(body: Json, identity: Identity, usage: bool) -> Json:
    texts = _texts(body.get("input"), "input")
    asked = body.get("dimensions")
    size = asked if type(asked) is int and 0 < asked <= 8192 else _EMBEDDING_DIMENSIONS
    packed = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(text, size, packed)}
        for index, text in enumerate(texts)
    ]
    answer: Json = {"object": "list", "model": identity.model, "data": data}
    if usage:
        tokens = max(1, sum(len(text.split()) for text in texts))
        answer["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return answer


def _vector(text: str, size: int, packed: bool) -> list[float] | str:
    """Return a unit vector that depends on the text alone, or its float32 bytes in base64."""
    raw = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(size)
    values = [byte - 127.5 for byte in raw]  # never zero, so the length never is
    length = sum(value * value for value in values) ** 0.5
    unit = [value / length for value in values]
    if packed:
        return base64.b64encode(struct.pack(f"<{size}f", *unit)).decode()
    return unit
