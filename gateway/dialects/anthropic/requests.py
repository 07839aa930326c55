"""A client's request as a request of chat, with what its answer needs. Pure.

What changes an answer and cannot be said in chat is refused; what only advises (`service_tier`, `inference_geo`, …),
and what is not known, is left out.
"""

from __future__ import annotations

from typing import Any

from gateway.dialects.anthropic.answers import message_of
from gateway.dialects.anthropic.blocks import chat_messages, system_content
from gateway.dialects.anthropic.plain import plain
from gateway.dialects.anthropic.tools import cache_mark, chat_tool_choice, chat_tools
from gateway.dialects.anthropic.writing import MessagesWriter
from gateway.dialects.dialect import CHAT_PATH, EVENT_STREAM, EventWriter, Json
from gateway.dialects.reading import optional, refused, required, text_in, unsupported

_NUMBERS = ("temperature", "top_p", "top_k")


class MessagesConversation:
    """A request to `/v1/messages`, and how it is answered.

    `rich` is the chat request with what only Anthropic's engines know.
    """

    path = CHAT_PATH
    stream_type = EVENT_STREAM

    def __init__(self, chat: Json) -> None:
        self.chat = plain(chat)
        self.rich = chat
        self._model = text_in(chat, "model")
        self._stops = frozenset(chat.get("stop", ()))

    def answer(self, chat: Json) -> Json:
        """The message that a complete chat answer is."""
        return message_of(chat, self._model, self._stops)

    def events(self, prompt_tokens: int) -> EventWriter:
        """What tells a streamed answer; `prompt_tokens`, estimated, are told until the engine says how many it were."""
        return MessagesWriter(self._model, self._stops, prompt_tokens)


def read(request: Json) -> MessagesConversation:
    """A request to `/v1/messages`. Raises RequestRefused, with the client's own path as `param`."""
    if request.get("thread") is not None:
        # Left out, what was said before would be lost. Official clients know this code, and go on without a thread.
        raise refused("thread", "is not kept here: send the whole conversation", "thread_unsupported_request")
    chat = read_count(request)
    max_tokens = request.get("max_tokens")
    if type(max_tokens) is not int or max_tokens < 1:
        raise refused("max_tokens", "must be an integer of at least 1")
    chat["max_tokens"] = max_tokens
    stream = optional(request.get("stream"), bool, "stream")
    if stream is not None:
        chat["stream"] = stream
    if stream:
        chat["stream_options"] = {"include_usage": True}
    for key in _NUMBERS:
        value = request.get(key)
        if type(value) in (int, float):
            chat[key] = value
        elif value is not None:
            raise refused(key, "must be a number")
    stops = request.get("stop_sequences")
    if stops is not None:
        if type(stops) is not list or not all(type(stop) is str for stop in stops):
            raise refused("stop_sequences", "must be a list of texts")
        if stops:
            chat["stop"] = stops
    user = text_in(request.get("metadata"), "user_id")
    if user:
        chat["user"] = user
    return MessagesConversation(chat)


def read_count(request: Json) -> Json:
    """What of a request to `/v1/messages/count_tokens`, or to `/v1/messages`, engines read: a chat request, by which
    its tokens are estimated. Raises RequestRefused."""
    chat: Json = {}
    chat["model"] = required(request.get("model"), str, "model")
    messages = chat_messages(request.get("messages"))
    if request.get("system"):
        messages.insert(0, {"role": "system", "content": system_content(request["system"], "system")})
    chat["messages"] = messages
    for key in ("mcp_servers", "container"):
        if request.get(key):
            raise unsupported(key, "is not served: it is Anthropic's own")
    if request.get("tools"):
        chat["tools"] = chat_tools(request["tools"])
        if request.get("tool_choice") is not None:
            chat.update(chat_tool_choice(request["tool_choice"]))
    if request.get("thinking") is not None:
        chat["thinking"] = _thinking(request["thinking"])
    chat.update(_output(request))
    chat.update(cache_mark(request))
    return chat


def counted(tokens: int) -> Json:
    """The answer to `/v1/messages/count_tokens`."""
    return {"input_tokens": tokens}


def _thinking(value: Any) -> Json:
    if type(value) is not dict or type(value.get("type")) is not str:
        raise refused("thinking", "must be an object with a type")
    budget = value.get("budget_tokens")
    if value["type"] == "enabled" and (type(budget) is not int or budget < 1):
        raise refused("thinking.budget_tokens", "must be an integer of at least 1")
    return value


def _output(request: Json) -> Json:
    """What `output_config` says, and `output_format`, as its `format` was called before."""
    fields: Json = {}
    config = optional(request.get("output_config"), dict, "output_config") or {}
    effort = optional(config.get("effort"), str, "output_config.effort")
    if effort is not None:
        fields["reasoning_effort"] = effort
    for holder, key, path in ((config, "format", "output_config.format"), (request, "output_format", "output_format")):
        if holder.get(key) is not None:
            form = holder[key]
            if type(form) is not dict or form.get("type") != "json_schema":
                raise refused(f"{path}.type", "must be json_schema")
            schema = required(form.get("schema"), dict, f"{path}.schema")
            told = {"name": "output", "schema": schema, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": told}
    return fields
