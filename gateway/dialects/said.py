"""What a chat answer, or one chunk of it, says: its first choice, read the same way for every client's dialect.

Pure; what is malformed counts as absent. `Calls` is one object per answer, used by one thread at a time.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Optional

from gateway.dialects.dialect import Json
from gateway.dialects.reading import count_in, object_in, objects_in, text_in

LOGPROB_MIN = -9999.0  # what OpenAI says of a token that cannot come: JSON has no infinity


class Said(NamedTuple):
    """Of one chunk, or of a whole answer."""

    thought: str
    text: str
    refusal: str
    calls: list[Json]
    """The tool calls, or parts of them, as they came; `Calls` puts them together."""
    logprobs: list[Json]
    """Of the tokens of `text`: `{"token", "logprob", "bytes", "top_logprobs"}`, all of them there."""
    sources: list[Json]
    """What `annotations` cite, `{"url", "title", "start_index", "end_index"}`."""
    finish_reason: Optional[str]


class Usage(NamedTuple):
    """Tokens."""

    prompt: int
    cached: int
    """Of the prompt's, which a cache had."""
    completion: int
    reasoning: int
    """Of the completion's."""
    written: int = 0
    """Of the prompt's, to a cache."""


def said_in(answer: Json) -> Optional[Said]:
    """What the first choice says in a chat answer or chunk, or in a completion's; None: there is no choice in it."""
    for choice in objects_in(answer, "choices"):
        if choice.get("index") in (0, None):
            message = object_in(choice, "delta") or object_in(choice, "message")
            return Said(
                text_in(message, "reasoning_content", "reasoning"),
                text_in(choice, "text") or content_text(message.get("content")),
                text_in(message, "refusal"),
                objects_in(message, "tool_calls"),
                [_logprob(item) for item in objects_in(choice.get("logprobs"), "content")],
                [_source(item) for item in objects_in(message, "annotations") if item.get("type") == "url_citation"],
                text_in(choice, "finish_reason") or None,
            )
    return None


def usage_in(answer: Json) -> Optional[Usage]:
    """The usage that an answer or chunk tells; None: none."""
    usage = object_in(answer, "usage")
    if not usage:
        return None
    return Usage(
        count_in(usage, "prompt_tokens"),
        count_in(usage.get("prompt_tokens_details"), "cached_tokens"),
        count_in(usage, "completion_tokens"),
        count_in(usage.get("completion_tokens_details"), "reasoning_tokens"),
        count_in(usage.get("prompt_tokens_details"), "cache_write_tokens"),
    )


def content_text(content: Any) -> str:
    """The text of an answer: some engines give it in parts."""
    if type(content) is str:
        return content
    parts = content if type(content) is list else ()
    return "".join(text_in(part, "text") for part in parts)


def _logprob(item: Json) -> Json:
    return {**_token(item), "top_logprobs": [_token(other) for other in objects_in(item, "top_logprobs")]}


def _token(item: Json) -> Json:
    token, logprob, data = text_in(item, "token"), item.get("logprob"), item.get("bytes")
    if type(data) is not list or not all(type(byte) is int for byte in data):
        data = list(token.encode("utf-8", "replace"))
    known = type(logprob) in (int, float) and math.isfinite(logprob)  # type: ignore[arg-type]
    return {"token": token, "logprob": logprob if known else LOGPROB_MIN, "bytes": data}


def _source(item: Json) -> Json:
    cited = object_in(item, "url_citation")
    texts = {key: text_in(cited, key) for key in ("url", "title")}
    return {**texts, **{key: count_in(cited, key) for key in ("start_index", "end_index")}}


class Call:
    """One tool call, as far as it has come."""

    __slots__ = ("_pieces", "id", "name", "number")

    def __init__(self, number: int) -> None:
        self.number = number  # among the answer's calls, from 0
        self.id = ""
        self.name = ""
        self._pieces: list[str] = []

    @property
    def arguments(self) -> str:
        return "".join(self._pieces)

    def add(self, part: Json) -> str:
        """The next part of it; returns what it adds to the arguments."""
        function = object_in(part, "function")
        self.id = self.id or text_in(part, "id")
        self.name = self.name or text_in(function, "name")
        piece = text_in(function, "arguments")
        self._pieces.append(piece)
        return piece

    def is_other(self, part: Json) -> bool:
        """Whether a part with this call's index begins another call: with an id and a name of its own."""
        other = text_in(part, "id")
        return bool(self.id and other and other != self.id and text_in(object_in(part, "function"), "name"))


class Calls:
    """The tool calls of one answer, put together from their parts: by index, which some engines repeat or leave out."""

    __slots__ = ("_going", "all")

    def __init__(self) -> None:
        self.all: list[Call] = []
        self._going: dict[int, Call] = {}  # by index, the one that goes on

    def add(self, part: Json, place: int) -> tuple[Call, str]:
        """A part, which stands at `place` in its list; returns its call, and what it adds to the arguments."""
        index = part.get("index")
        index = index if type(index) is int else place
        call = self._going.get(index)
        if call is None or call.is_other(part):
            call = self._going[index] = Call(len(self.all))
            self.all.append(call)
        return call, call.add(part)
