"""What a mock engine says: OpenAI-shaped answers as plain bodies and as lists of stream events.

Pure: the same request, model, port and number give the same answer. Words stand for tokens, so usage, max_tokens and
the default number of stream events can be counted by hand in a test. Nothing here knows a socket, a lock or a
behaviour's name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional, Union

Json = dict[str, Any]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
DONE = b"data: [DONE]\n\n"

_EMBEDDING_DIMENSIONS = 8
_MAX_CHOICES = 128


class BadRequest(ValueError):
    """The request's body cannot be answered; the text says what is wrong with it."""


class Asked(NamedTuple):
    """A request, its running number, and who answers it: `events` is the number of pieces the text is made of (None:
    its words), `usage` False leaves the usage out."""

    path: str
    body: Json
    model: str
    port: int
    number: int
    events: Optional[int]
    usage: bool


class _Choice(NamedTuple):
    pieces: list[str]
    tokens: int
    finish_reason: str


def encode(value: object) -> bytes:
    """Return `value` as compact JSON in UTF-8, unescaped as llama.cpp sends it."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8: only then escape
        return json.dumps(value, separators=(",", ":")).encode()


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
        {"index": index, **_said(asked.path, "".join(choice.pieces)), "finish_reason": choice.finish_reason}
        for index, choice in enumerate(choices)
    ]
    if asked.usage:
        answer["usage"] = _usage(asked, choices)
    return answer


def _said(path: str, text: str) -> Json:
    return {"message": {"role": "assistant", "content": text}} if path == CHAT else {"text": text, "logprobs": None}


def stream(asked: Asked) -> tuple[list[bytes], Iterator[bytes], list[bytes]]:
    """Return the first, the content and the last events of a streamed answer, each a complete `data: …` block.

    Content is made as it is taken, once: a stream of a million events needs no memory for them. Usage is sent when
    stream_options.include_usage asks. Raises BadRequest as `plain` does.
    """
    choices = _choices(asked)
    frame = _frame(asked, "chat.completion.chunk")

    def event(value: object) -> bytes:
        return b"data: " + encode(value) + b"\n\n"

    def chunk(index: int, text: Optional[str], finish: Optional[str] = None, **delta: str) -> bytes:
        choice: Json = {"index": index, "finish_reason": finish}
        if asked.path == CHAT:
            choice["delta"] = {**delta, **({} if text is None else {"content": text})}
        else:
            choice.update(text=text or "", logprobs=None)
        return event({**frame, "choices": [choice]})

    def content() -> Iterator[bytes]:
        for position in range(max(len(choice.pieces) for choice in choices)):
            for index, choice in enumerate(choices):
                if position < len(choice.pieces):
                    yield chunk(index, choice.pieces[position])

    opening = [chunk(index, "", role="assistant") for index in range(len(choices)) if asked.path == CHAT]
    closing = [chunk(index, None, choice.finish_reason) for index, choice in enumerate(choices)]
    options = asked.body.get("stream_options")
    if asked.usage and isinstance(options, dict) and options.get("include_usage") is True:
        closing.append(event({**frame, "choices": [], "usage": _usage(asked, choices)}))
    return opening, content(), closing


def _frame(asked: Asked, chat_object: str) -> Json:
    return {
        "id": f"{'chatcmpl' if asked.path == CHAT else 'cmpl'}-mock-{asked.port}-{asked.number}",
        "object": chat_object if asked.path == CHAT else "text_completion",
        "created": int(time.time()),
        "model": asked.model,
        "system_fingerprint": f"mock-{asked.port}",
    }


def _choices(asked: Asked) -> list[_Choice]:
    texts, n = _prompts(asked), asked.body.get("n")
    copies = min(n, _MAX_CHOICES) if type(n) is int and n > 0 else 1
    if asked.path == CHAT:
        users = [text for text, message in zip(texts, asked.body["messages"]) if message.get("role") == "user"]
        texts = users[-1:] or [""]
    opening = f"Mock answer from {asked.model} at {asked.port}: "
    return [_choice(opening + text, asked.body, asked.events) for text in texts for _ in range(copies)]


def _choice(text: str, body: Json, events: Optional[int]) -> _Choice:
    words = _words(text)
    if events is not None and events > len(words):
        text += "".join(f" token{number}" for number in range(len(words) + 1, events + 1))
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    words = _words(text[: min([len(text), *(text.find(s) for s in stops if isinstance(s, str) and s and s in text)])])
    finish = "stop"
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if type(limit) is int and 0 < limit < len(words):
        words, finish = words[:limit], "length"
    count = len(words)
    if events is None or events >= count:
        return _Choice(words, count, finish)
    bounds = [index * count // events for index in range(events + 1)] if events else [0]
    pieces = ["".join(words[low:high]) for low, high in zip(bounds, bounds[1:])]
    return _Choice(pieces, count if events else 0, finish)


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)


def _prompts(asked: Asked) -> list[str]:
    """Return the text of each message, prompt or input."""
    if asked.path != CHAT:
        return _texts(asked.body, "input" if asked.path == EMBEDDINGS else "prompt")
    messages = asked.body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a non-empty list")
    if not all(isinstance(message, dict) for message in messages):
        raise BadRequest("'messages' must hold objects")
    return [_text_of(message.get("content")) for message in messages]


def _text_of(content: object) -> str:
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


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


def _usage(asked: Asked, choices: list[_Choice]) -> Json:
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
