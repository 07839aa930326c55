"""The built-in echo engine: answers from the request itself, so that a gateway with nothing configured can be tried.

Pure functions; nothing is sent anywhere.
"""

from __future__ import annotations

import hashlib
from typing import Any

from gateway.upstream.answers import unix_now
from gateway.upstream.estimates import tokens_of, weigh

EMBEDDING_DIMENSIONS = 16
ANSWER_CHARS_MAX = 1 << 26  # a body of 32 MiB can be told once more; 128 times is not what this engine is for
OUTPUTS_MAX = 16_384  # choices, embeddings, events: each takes a kilobyte or two


class TooMuch(Exception):
    """The answer would be larger than this engine's may be; says which field is to blame."""


def last_user_text(messages: Any) -> str:
    """The text of the last user message, the parts of a typed one joined; empty when there is none."""
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            return content_text(message.get("content"))
    return ""


def content_text(content: Any) -> str:
    """The text in a message's content: a string, or the `text` of its typed parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def answer(path: str, request: dict[str, Any], prompt_weight: int, opening: str = "Echo: ") -> dict[str, Any]:
    """A complete answer to POST `path`, of whose prompt this is the weight. Raises TooMuch."""
    created = unix_now()
    prompt_tokens = tokens_of(prompt_weight)
    if path == "/embeddings":
        inputs = _inputs(request.get("input"))
        _refuse_too_much("input", 0, len(inputs))
        return {
            "object": "list",
            "model": "echo",
            "data": [
                {"object": "embedding", "index": index, "embedding": _embedding(text)}
                for index, text in enumerate(inputs)
            ],
            "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
        }
    chat = path == "/chat/completions"
    texts = [last_user_text(request.get("messages"))] if chat else _inputs(request.get("prompt"))
    count = request.get("n") or 1
    _refuse_too_much(
        "n" if count > 1 else "messages" if chat else "prompt", sum(map(len, texts)) * count, len(texts) * count
    )
    choices: list[dict[str, Any]] = []
    for text in texts:
        for _ in range(count):
            choice: dict[str, Any] = {"index": len(choices), "finish_reason": "stop", "logprobs": None}
            if chat:
                choice["message"] = {"role": "assistant", "content": opening + text}
            else:
                choice["text"] = opening + text
            choices.append(choice)
    tokens = sum(tokens_of(weigh(opening + text)) for text in texts) * count
    return {
        "id": "echo",
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": "echo",
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
        },
    }


def chunks(path: str, complete: dict[str, Any], include_usage: bool) -> list[dict[str, Any]]:
    """The events of a streamed answer: the role, word after word, the finish, and usage when asked for."""
    chat = path == "/chat/completions"
    kind = "chat.completion.chunk" if chat else "text_completion"
    common = {key: complete[key] for key in ("id", "created", "model")}
    common["object"] = kind
    events: list[dict[str, Any]] = []
    most = max(1, OUTPUTS_MAX // len(complete["choices"]))
    for choice in complete["choices"]:
        text = choice["message"]["content"] if chat else choice["text"]
        pieces = _pieces(text, most)
        deltas: list[tuple[dict[str, Any], Any]] = []
        if chat:
            deltas.append(({"delta": {"role": "assistant", "content": ""}}, None))
            deltas.extend(({"delta": {"content": piece}}, None) for piece in pieces)
            deltas.append(({"delta": {}}, "stop"))
        else:
            deltas.extend(({"text": piece}, None) for piece in pieces)
            deltas.append(({"text": ""}, "stop"))
        for delta, finish in deltas:
            item = {"index": choice["index"], **delta, "finish_reason": finish}
            events.append({**common, "choices": [item]})
    if include_usage:
        events.append({**common, "choices": [], "usage": complete["usage"]})
    return events


def _pieces(text: str, most: int) -> list[str]:
    """The words of a text, each with the space before it; equal parts of one that has more words than `most`."""
    if text.count(" ") < most:
        return [word if i == 0 else f" {word}" for i, word in enumerate(text.split(" "))]
    size = -(-len(text) // most)
    return [text[start : start + size] for start in range(0, len(text), size)]


def _refuse_too_much(field: str, chars: int, outputs: int) -> None:
    if chars > ANSWER_CHARS_MAX or outputs > OUTPUTS_MAX:
        raise TooMuch(
            f"{field}: the echo engine answers with at most {ANSWER_CHARS_MAX} characters, {OUTPUTS_MAX} parts"
        )


def _inputs(value: Any) -> list[str]:
    """Texts of an `input` or `prompt`: a string, a list of strings, or token numbers (written out)."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, int) for item in value):
            return [" ".join(map(str, value))]
        return [
            item if isinstance(item, str) else " ".join(map(str, item))
            for item in value
            if isinstance(item, (str, list))
        ]
    return [""]


def _embedding(text: str) -> list[float]:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return [round(byte / 127.5 - 1.0, 6) for byte in digest[:EMBEDDING_DIMENSIONS]]
