"""The operations for clients of other dialects: one for each path of `dialects.bypath`.

Their requests are read where they are translated. What is said of them here is what no reading lets pass; of the rest
the dialects' own documents tell.
"""

from __future__ import annotations

from typing import Any

from gateway.api.asking import ASKING, HEADERS, PARAMETERS, SHAPED
from gateway.api.operation import JSON_TYPE, Answer, Body, Json, Operation, ref
from gateway.dialects.bypath import ENDPOINTS

TAG = "Other dialects"
_EVENT: Json = {"description": "One server-sent event.", "type": "object", "properties": {"event": {"type": "string"}}}
_EVENTS = {"text/event-stream": _EVENT}
_LINES: dict[str, Json] = {"application/x-ndjson": {"type": "string", "description": "A line of JSON for each piece."}}
_FLAG: Json = {"type": ["boolean", "null"]}
_NUMBER: Json = {"type": ["number", "null"]}
_OBJECTS: Json = {"type": "array", "items": {"type": "object"}}
_USER = {"role": "user", "content": "What is Python?"}
_CHAT_CODES = ("invalid_messages", "invalid_stream", "invalid_max_tokens", "invalid_temperature", "invalid_top_p")
_CODES = (*ASKING, *_CHAT_CODES, "invalid_stop", "not_supported")
_TOGETHER = (*SHAPED, "no_consensus", "no_model_answered")


def _request(*required: str, **properties: Json) -> Json:
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": True}


def _operation(
    path: str,
    name: str,
    summary: str,
    schema: str,
    request: Json,
    example: dict[str, Any],
    stream: dict[str, Json],
    *codes: str,
) -> Operation:
    return Operation(
        "POST",
        path,
        name,
        TAG,
        summary,
        "infer",
        (Answer(200, "The answer, or the stream of it.", {JSON_TYPE: ref(schema), **stream}, HEADERS),),
        "Translated: any engine can answer. What cannot be translated is `not_supported`.",
        PARAMETERS,
        Body(request, example=example),
        (*_CODES, *codes),
        ENDPOINTS[path].error_format,
    )


_MESSAGES: Json = {**_OBJECTS, "minItems": 1}
_SAMPLING = {"temperature": _NUMBER, "top_p": _NUMBER, "stream": _FLAG}
_TEXT: Json = {"type": "string"}
_OPTIONAL_TEXT: Json = {"type": ["string", "null"]}
# A request that only loads a model is not read any further: so these two have no type.
_OLLAMA: dict[str, Json] = {
    "model": {"description": "Or `name`.", "type": ["string", "null"]},
    "stream": {"description": "Whether the answer comes in lines; it does, unless this is false."},
    "options": {"description": "`temperature`, `num_predict` and others."},
}
_OPTIONS: Json = {"type": ["object", "null"]}
DESCRIBED = (
    _operation(
        "/v1/messages",
        "createMessage",
        "Answer a conversation, for Anthropic's clients",
        "AnthropicMessage",
        _request(
            *("model", "messages", "max_tokens"),
            model=_TEXT,
            messages=_MESSAGES,
            max_tokens={"type": "integer", "minimum": 1},
            stop_sequences={"type": ["array", "null"], "items": _TEXT},
            top_k=_NUMBER,
            thread={"type": "null"},
            **_SAMPLING,
        ),
        {"model": "13b", "max_tokens": 100, "messages": [_USER]},
        _EVENTS,
        *_TOGETHER,
        "thread_unsupported_request",
    ),
    _operation(
        "/v1/messages/count_tokens",
        "countTokens",
        "Estimate the tokens of a conversation, for Anthropic's clients",
        "AnthropicCount",
        _request("model", "messages", model=_TEXT, messages=_MESSAGES),
        {"model": "13b", "messages": [_USER]},
        {},
    ),
    _operation(
        "/v1/responses",
        "createResponse",
        "Answer a conversation, for OpenAI's Responses",
        "Response",
        _request(
            "input",
            input={"anyOf": [_TEXT, _MESSAGES]},
            instructions=_OPTIONAL_TEXT,
            max_output_tokens={"type": ["integer", "null"], "minimum": 1},
            text=_OPTIONS,
            reasoning=_OPTIONS,
            **_SAMPLING,
        ),
        {"input": "What is Python?", "max_output_tokens": 100},
        _EVENTS,
        *("invalid_input", *_TOGETHER),
    ),
    _operation(
        "/api/chat",
        "ollamaChat",
        "Answer a conversation, for Ollama's clients",
        "OllamaChat",
        _request(**_OLLAMA),
        {"model": "13b", "messages": [_USER], "stream": False},
        _LINES,
        *_TOGETHER,
    ),
    _operation(
        "/api/generate",
        "ollamaGenerate",
        "Answer a prompt, for Ollama's clients",
        "OllamaGenerated",
        _request(**_OLLAMA, prompt=_OPTIONAL_TEXT, system=_OPTIONAL_TEXT, suffix=_OPTIONAL_TEXT, raw=_FLAG),
        {"model": "13b", "prompt": "What is Python?", "stream": False},
        _LINES,
        *("invalid_prompt", *_TOGETHER),
    ),
    _operation(
        "/api/embed",
        "ollamaEmbed",
        "Turn texts into vectors, for Ollama's clients",
        "OllamaEmbedded",
        _request(model=_OLLAMA["model"], input={"anyOf": [_OPTIONAL_TEXT, {"type": "array", "items": _TEXT}]}),
        {"model": "13b", "input": ["What is Python?"]},
        {},
        "invalid_input",
    ),
    _operation(
        "/api/show",
        "ollamaShow",
        "Tell of a model, for Ollama's clients",
        "OllamaModel",
        _request(model=_OLLAMA["model"]),
        {"model": "13b"},
        {},
    ),
    _operation(
        "/api/embeddings",
        "ollamaEmbeddings",
        "Turn a text into a vector, for Ollama's older clients",
        "OllamaEmbedding",
        _request(model=_OLLAMA["model"], prompt=_OPTIONAL_TEXT),
        {"model": "13b", "prompt": "What is Python?"},
        {},
        "invalid_input",
    ),
)
