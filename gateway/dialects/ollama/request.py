"""What Ollama's clients ask: for a chat, for a completed prompt, for embeddings; as what engines are asked.

Pure functions. All raise RequestRefused, which names what is wrong or what cannot be done.
"""

from __future__ import annotations

from typing import Any, Optional, Union

from gateway.dialects.dialect import CHAT_PATH, COMPLETION_PATH, EMBEDDING_PATH, Immediate, Json, Shown
from gateway.dialects.ollama.conversation import CHAT, GENERATE, Conversation, Embedded, Embeddings, empty
from gateway.dialects.ollama.messages import content_of, messages_of
from gateway.dialects.ollama.pages import Model, show
from gateway.dialects.ollama.times import Times
from gateway.dialects.reading import objects, optional, refused, required, unsupported

# `options`, by what engines call them. All others are about how a model is loaded, or known to llama.cpp only.
_NUMBERS = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "presence_penalty": ("presence_penalty",),
    "frequency_penalty": ("frequency_penalty",),
    "repeat_penalty": ("repeat_penalty", "repetition_penalty"),  # llama.cpp's name, vLLM's and SGLang's
}
_INTEGERS = {"top_k": "top_k", "seed": "seed"}
_EFFORTS = {True: "medium", False: "none", "low": "low", "medium": "medium", "high": "high", "max": "xhigh"}
_SCHEMA_NAME = "answer"  # OpenAI's API wants one


def read_chat(request: Json, times: Times) -> Union[Conversation, Immediate]:
    """POST /api/chat. Without messages it is a request to load the model, or with `keep_alive` 0 to unload it."""
    model = model_in(request)
    messages = messages_of(request.get("messages") or [])
    if not messages:
        return Immediate(model, empty(CHAT, model, _load_reason(request), times))
    chat = {**_common(request, model), "messages": messages}
    tools = [_tool(tool, where) for where, tool in objects(request.get("tools") or [], "tools")]
    if tools:
        chat["tools"] = tools
    chat.update(_logprobs(request))
    return Conversation(CHAT, CHAT_PATH, chat, times, shows_thinking=_think(request, chat))


def read_generate(request: Json, times: Times) -> Union[Conversation, Immediate]:
    """POST /api/generate: a chat of one message; a prompt that is `raw`, or has a `suffix`, a completion.

    Without a prompt it is a request to load the model, or with `keep_alive` 0 to unload it.
    """
    model = model_in(request)
    texts = {key: optional(request.get(key), str, key) or "" for key in ("prompt", "suffix", "system", "template")}
    raw = optional(request.get("raw"), bool, "raw") or False
    if raw and (texts["template"] or texts["system"] or request.get("context")):
        raise refused("raw", "goes with no template, system or context")
    if texts["template"]:
        raise unsupported("template", "is not supported: an engine has its own")
    if request.get("context"):
        raise unsupported("context", "is not supported: nothing here gives one; send the conversation to /api/chat")
    prompt = texts["prompt"]
    if not prompt:
        return Immediate(model, empty(GENERATE, model, _load_reason(request), times))
    chat = _common(request, model)
    if raw or texts["suffix"]:
        for key in ("images", "logprobs"):
            if request.get(key):
                raise unsupported(key, "is not supported for a prompt that is raw or has a suffix")
        chat["prompt"] = prompt
        if texts["suffix"]:
            chat["suffix"] = texts["suffix"]
        return Conversation(GENERATE, COMPLETION_PATH, chat, times, shows_thinking=False)
    content = content_of(prompt, request.get("images"), "images")
    messages: list[Json] = [{"role": "system", "content": texts["system"]}] if texts["system"] else []
    chat["messages"] = [*messages, {"role": "user", "content": content}]
    chat.update(_logprobs(request))
    return Conversation(GENERATE, CHAT_PATH, chat, times, shows_thinking=_think(request, chat))


def read_embed(request: Json, times: Times) -> Union[Embeddings, Immediate]:
    """POST /api/embed. Without input it is a request to load the model. `truncate` is the engine's affair."""
    model = model_in(request)
    texts = request.get("input")
    if texts is None or texts in ("", []):
        return Immediate(model, {"model": model, "embeddings": []})
    if type(texts) is not str and not (type(texts) is list and all(type(text) is str for text in texts)):
        raise refused("input", "must be a text or a list of texts")
    chat: Json = {"model": model, "input": texts}
    dimensions = _integer(request.get("dimensions"), "dimensions")
    if dimensions:
        chat["dimensions"] = dimensions
    return Embeddings(EMBEDDING_PATH, chat, times)


def read_embeddings(request: Json) -> Union[Embedded, Immediate]:
    """POST /api/embeddings, which came before /api/embed. Without a prompt it is a request to load the model."""
    model = model_in(request)
    prompt = optional(request.get("prompt"), str, "prompt")
    if not prompt:
        return Immediate(model, {"embedding": []})
    return Embedded(EMBEDDING_PATH, {"model": model, "input": prompt})


def read_show(request: Json, times: Times) -> Shown:
    """POST /api/show."""
    model = model_in(request)
    return Shown(model, lambda context_tokens, can: show(Model(model, times.unix_s(), context_tokens, can)))


def model_in(request: Json) -> str:
    """The model that any request is about; in old clients' words, `name`."""
    model = request.get("model") or request.get("name")
    if type(model) is not str or not model:
        raise refused("model", "is required, a text")
    return model


def _load_reason(request: Json) -> str:
    """What a request that says nothing asks for."""
    return "unload" if request.get("keep_alive") in (0, "0", "0s") else "load"


def _common(request: Json, model: str) -> Json:
    """What all have: the model, whether it is a stream (if it does not say, it is), the answer's form, `options`."""
    stream = optional(request.get("stream"), bool, "stream")
    chat: Json = {"model": model, "stream": stream is not False}
    if chat["stream"]:
        chat["stream_options"] = {"include_usage": True}  # its last line tells it
    wanted = request.get("format")
    if wanted == "json":
        chat["response_format"] = {"type": "json_object"}
    elif wanted is not None and wanted != "":
        if type(wanted) is not dict:
            raise refused("format", "must be json or a JSON Schema")
        schema = {"name": _SCHEMA_NAME, "schema": wanted}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    chat.update(_options(optional(request.get("options"), dict, "options") or {}))
    return chat


def _options(options: Json) -> Json:
    found: Json = {}
    for key, names in _NUMBERS.items():
        value = options.get(key)
        if value is not None:
            if type(value) not in (int, float):
                raise refused(f"options.{key}", "must be a number")
            found.update(dict.fromkeys(names, value))
    for key, name in _INTEGERS.items():
        number = _integer(options.get(key), f"options.{key}")
        if number is not None:
            found[name] = number
    most = _integer(options.get("num_predict"), "options.num_predict")
    if most is not None and most > 0:  # below, the words for no limit
        found["max_tokens"] = most
    if options.get("stop"):
        found["stop"] = options["stop"]
    return found


def _integer(value: Any, where: str) -> Optional[int]:
    if value is None:
        return None
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise refused(where, "must be an integer")
    return value


def _think(request: Json, chat: Json) -> bool:
    """Put what `think` asks for into `chat`; returns whether the client is shown what the model thinks."""
    think = request.get("think")
    if think is None:
        return True
    if type(think) not in (bool, str) or think not in _EFFORTS:
        raise refused("think", "must be true, false, low, medium, high or max")
    chat["reasoning_effort"] = _EFFORTS[think]
    return think is not False


def _logprobs(request: Json) -> Json:
    if not optional(request.get("logprobs"), bool, "logprobs"):
        return {}
    most = _integer(request.get("top_logprobs"), "top_logprobs")
    return {"logprobs": True, "top_logprobs": most} if most else {"logprobs": True}


def _tool(tool: Json, where: str) -> Json:
    if tool.get("type", "function") != "function":
        raise unsupported(f"{where}.type", "must be function")
    function = required(tool.get("function"), dict, f"{where}.function")
    required(function.get("name"), str, f"{where}.function.name")
    return {"type": "function", "function": function}
