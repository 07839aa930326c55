"""What a field of a request may hold: its own field of each path, and the others by name.

Pure functions: what is wrong with a value that a client has sent. A value that is null counts as absent, and is not for
these. Beside each stands the same in JSON Schema, for the OpenAPI document; nothing is checked by that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Optional

from gateway.errors import RequestRefused

TOKENS_MAX = 1_000_000
CHOICES_MAX = 128
STOPS_MAX = 64  # OpenAI itself takes 4, other engines more
ROLES = frozenset(("system", "user", "assistant", "tool", "developer", "function"))

Json = dict[str, Any]
Request = Json
Check = Callable[[Any], Optional[tuple[str, str]]]
"""Of a value that is not null: None, or the error's code and what the value must be."""


def check_messages(request: Request) -> None:
    """Raise RequestRefused, which names what is wrong with `messages`."""
    messages = request.get("messages")
    if type(messages) is not list or not messages:
        raise _refused("invalid_messages", "messages", "must be a non-empty list of messages")
    for index, message in enumerate(messages):
        if type(message) is not dict:
            raise _refused("invalid_messages", f"messages[{index}]", "must be an object")
        role = message.get("role")
        if type(role) is not str or role not in ROLES:
            raise _refused("invalid_messages", f"messages[{index}].role", f"must be one of {', '.join(sorted(ROLES))}")
        if type(message.get("content")) is not str:
            _check_content(message, f"messages[{index}]")


def _check_content(message: dict[str, Any], where: str) -> None:
    content = message.get("content")
    if content is None or content == []:
        instead = map(message.get, _FOR_CONTENT) if message["role"] == "assistant" else ()
        if any(value or value == "" for value in instead):
            return
        if content is None:
            what = (
                f"is missing; only an assistant with {', '.join(_FOR_CONTENT[:-1])} or {_FOR_CONTENT[-1]} may omit it"
            )
            raise _refused("invalid_messages", f"{where}.content", what)
    if type(content) is not list or not content:
        raise _refused("invalid_messages", f"{where}.content", "must be a text or a list of typed parts")
    for index, part in enumerate(content):
        if type(part) is not dict or type(part.get("type")) is not str:
            raise _refused("invalid_messages", f"{where}.content[{index}]", "must be an object with a type")
        if part["type"] == "text" and type(part.get("text")) is not str:
            raise _refused("invalid_messages", f"{where}.content[{index}].text", "must be a text")


# What an assistant may say instead of content: OpenAI's fields, and the thoughts that engines give, which clients send
# back with what else an answer has had (an answer may have been cut off before it came to its content).
_FOR_CONTENT = ("tool_calls", "function_call", "refusal", "audio", "reasoning_content", "reasoning")


def check_prompt(request: Request) -> None:
    """Raise RequestRefused for a `prompt` that no engine takes."""
    if not _texts_or_tokens(request.get("prompt")):
        raise _refused("invalid_prompt", "prompt", "must be a text, a non-empty list of texts, or a list of tokens")


def check_input(request: Request) -> None:
    """Raise RequestRefused for an `input` that no engine takes."""
    value = request.get("input")
    if value == "" or not _texts_or_tokens(value):
        raise _refused("invalid_input", "input", "must be a non-empty text, a non-empty list of texts, or of tokens")


def _texts_or_tokens(value: Any) -> bool:
    if type(value) is str:
        return True
    if type(value) is not list or not value:
        return False
    return (
        all(type(item) is str for item in value)
        or all(type(item) is int for item in value)
        or all(type(i) is list and i and all(type(t) is int for t in i) for i in value)
    )


def _refused(code: str, where: str, what: str) -> RequestRefused:
    return RequestRefused(code, f"{where} {what}", param=where)


def _model(value: Any) -> Optional[tuple[str, str]]:
    return None if type(value) is str else ("invalid_model", "must be a text")


def _stream(value: Any) -> Optional[tuple[str, str]]:
    return None if type(value) is bool else ("invalid_stream", "must be true or false")


def _no_stream(value: Any) -> Optional[tuple[str, str]]:
    return None if value is False else ("invalid_stream", "must be false: embeddings are not streamed")


def _stream_options(value: Any) -> Optional[tuple[str, str]]:
    return None if type(value) is dict else ("invalid_stream", "must be an object")


def _max_tokens(value: Any) -> Optional[tuple[str, str]]:
    if type(value) is int and (1 <= value <= TOKENS_MAX or value == -1):
        return None
    return "invalid_max_tokens", f"must be an integer from 1 to {TOKENS_MAX}, or -1 for no limit"


def _temperature(value: Any) -> Optional[tuple[str, str]]:
    if type(value) in (int, float) and 0 <= value <= 2:
        return None
    return "invalid_temperature", "must be a number from 0 to 2"


def _top_p(value: Any) -> Optional[tuple[str, str]]:
    if type(value) in (int, float) and 0 <= value <= 1:
        return None
    return "invalid_top_p", "must be a number from 0 to 1"


def _stop(value: Any) -> Optional[tuple[str, str]]:
    if type(value) is str:
        return None
    if type(value) is list and len(value) <= STOPS_MAX and all(type(s) is str for s in value):
        return None
    return "invalid_stop", f"must be a text or a list of at most {STOPS_MAX} texts"


def _n(value: Any) -> Optional[tuple[str, str]]:
    if type(value) is int and 1 <= value <= CHOICES_MAX:
        return None
    return "invalid_n", f"must be an integer from 1 to {CHOICES_MAX}"


class Field(NamedTuple):
    """An optional field: what is wrong with a value, and what it may be in JSON Schema."""

    check: Check
    schema: Json


def _or_null(description: str, **schema: Any) -> Json:
    """A schema of one type that takes null, which counts as absent, as well."""
    return {"description": description, **schema, "type": [schema["type"], "null"]}


_TOKENS: Json = {
    "anyOf": [{"type": "integer", "minimum": 1, "maximum": TOKENS_MAX}, {"const": -1}, {"type": "null"}],
}
COMPLETION: Mapping[str, Field] = {
    "model": Field(_model, _or_null("A name that `GET /v1/models` lists; without one, the default.", type="string")),
    "stream": Field(_stream, _or_null("Whether the answer comes as server-sent events.", type="boolean")),
    "stream_options": Field(
        _stream_options,
        _or_null("`include_usage`: whether an event with the tokens used comes before the end.", type="object"),
    ),
    "max_tokens": Field(
        _max_tokens, {"description": "Tokens of an answer at most; -1, like null: no limit of the request.", **_TOKENS}
    ),
    "temperature": Field(
        _temperature, _or_null("How much chance there is in the answer.", type="number", minimum=0, maximum=2)
    ),
    "top_p": Field(
        _top_p, _or_null("The share of likely tokens that one is chosen from.", type="number", minimum=0, maximum=1)
    ),
    "stop": Field(
        _stop,
        {
            "description": "Texts before which the answer ends.",
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "maxItems": STOPS_MAX},
                {"type": "null"},
            ],
        },
    ),
    "n": Field(_n, _or_null("Choices in the answer, for each prompt.", type="integer", minimum=1, maximum=CHOICES_MAX)),
}
CHAT: Mapping[str, Field] = {
    **COMPLETION,
    "max_completion_tokens": Field(_max_tokens, {"description": "The later name of `max_tokens`.", **_TOKENS}),
}
RESPONSE: Mapping[str, Field] = {name: CHAT[name] for name in ("model", "stream", "temperature", "top_p")}
"""Of a Response that is passed on, what has one meaning everywhere; the rest is for its engine to say."""
EMBEDDING: Mapping[str, Field] = {
    "model": COMPLETION["model"],
    "stream": Field(_no_stream, {"description": "Embeddings are not streamed.", "enum": [False, None]}),
}


def checks_of(fields: Mapping[str, Field]) -> Mapping[str, Check]:
    """The checks alone."""
    return {name: field.check for name, field in fields.items()}


def schema_of(own: str, own_schema: Json, fields: Mapping[str, Field]) -> Json:
    """What a request of these fields is; others are passed on to engines as they are."""
    properties = {own: own_schema, **{name: field.schema for name, field in fields.items()}}
    return {"type": "object", "required": [own], "properties": properties, "additionalProperties": True}


_SAID_INSTEAD: Json = {"not": {"enum": [None, False, 0, [], {}]}}
_PART: Json = {
    "type": "object",
    "required": ["type"],
    "properties": {"type": {"type": "string"}},
    "if": {"properties": {"type": {"const": "text"}}},
    "then": {"required": ["text"], "properties": {"text": {"type": "string"}}},
}
_CONTENT: Json = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART, "minItems": 1}]}
MESSAGES_SCHEMA: Json = {
    "description": "The conversation so far.",
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"enum": sorted(ROLES)},
            "content": {
                "description": "A text, or typed parts such as `text` and `image_url`. An assistant may leave it out"
                " and say something else, such as `tool_calls`.",
                "type": ["string", "array", "null"],
            },
        },
        "anyOf": [
            {
                "required": ["content"],
                "properties": {"content": _CONTENT},
            },
            {
                "properties": {
                    "role": {"const": "assistant"},
                    "content": {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 0}]},
                },
                "anyOf": [{"required": [key], "properties": {key: _SAID_INSTEAD}} for key in _FOR_CONTENT],
            },
        ],
    },
}
_TOKEN_LIST: Json = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_LISTS: list[Json] = [
    {"type": "array", "items": {"type": "string"}, "minItems": 1},
    _TOKEN_LIST,
    {"type": "array", "items": _TOKEN_LIST, "minItems": 1},
]
PROMPT_SCHEMA: Json = {
    "description": "A text, texts, the tokens of one, or those of several.",
    "anyOf": [{"type": "string"}, *_LISTS],
}
INPUT_SCHEMA: Json = {
    "description": "A text, texts, the tokens of one, or those of several.",
    "anyOf": [{"type": "string", "minLength": 1}, *_LISTS],
}
