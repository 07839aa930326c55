"""How an answer is told to Ollama's clients: as one object, or line by line.

Sans-I/O. Durations are the request's own: from its coming to the model's first words, and from there to its last; what
is told at once was all generated in between. Loading takes no time here.
"""

from __future__ import annotations

import json
from typing import Any, Optional

from gateway.dialects.dialect import Json, dump
from gateway.dialects.ollama.times import Times
from gateway.dialects.reading import objects_in
from gateway.dialects.said import Call, Calls, Said, Usage, said_in, usage_in
from gateway.errors import EngineFailed, GatewayError

CHAT = "chat"
GENERATE = "generate"

_REASONS = {"tool_calls": "stop", "function_call": "stop"}  # Ollama says of a call only that the model has stopped


class Conversation:
    """A request to /api/chat or /api/generate, translated. See `dialect.Conversation`."""

    stream_type = b"application/x-ndjson"

    def __init__(self, kind: str, path: str, chat: Json, times: Times, shows_thinking: bool) -> None:
        self.kind = kind
        self.path = path
        self.chat = chat
        self.times = times
        self.shows_thinking = shows_thinking

    def answer(self, chat: Json) -> Json:
        """The one object that answers. Raises EngineFailed for arguments of a call that are no JSON object."""
        said = said_in(chat) or _NOTHING
        calls = Calls()
        for place, part in enumerate(said.calls):
            calls.add(part, place)
        told = self.told(said, called(calls.all))
        return {**told, **self.end(said.finish_reason, usage_in(chat) or Usage(0, 0, 0, 0), 0)}

    def events(self, prompt_tokens: int) -> Writer:
        return Writer(self, prompt_tokens)

    def told(self, said: Said, tool_calls: list[Json]) -> Json:
        """What has been said, as an object or a line has it."""
        begin = {"model": self.chat["model"], "created_at": self.times.created_at()}
        told = _body(self.kind, said.text + said.refusal)
        holder = told["message"] if self.kind == CHAT else told
        if said.thought and self.shows_thinking:
            holder["thinking"] = said.thought
        if tool_calls:
            holder["tool_calls"] = tool_calls
        if said.logprobs:
            told["logprobs"] = said.logprobs
        return {**begin, **told, "done": False}

    def end(self, finish_reason: Optional[str], usage: Usage, prompt_ns: int) -> Json:
        """What the end adds. `prompt_ns`: how long the first words were waited for."""
        total_ns = self.times.since_ns()
        reason = finish_reason or "stop"
        return {
            "done": True,
            "done_reason": _REASONS.get(reason, reason),
            "total_duration": total_ns,
            "load_duration": 0,
            "prompt_eval_count": usage.prompt,
            "prompt_eval_duration": prompt_ns,
            "eval_count": usage.completion,
            "eval_duration": total_ns - prompt_ns,
        }


class Writer:
    """Tells a client of a stream, in lines. See `dialect.EventWriter`."""

    def __init__(self, conversation: Conversation, prompt_tokens: int) -> None:
        self._conversation = conversation
        self._prompt_tokens = prompt_tokens
        self._prompt_ns: Optional[int] = None
        self._pieces = 0  # each about a token
        self._calls = Calls()
        self._usage: Optional[Usage] = None
        self._finish_reason: Optional[str] = None

    def chunk(self, chunk: Json) -> bytes:
        self._usage = usage_in(chunk) or self._usage
        said = said_in(chunk)
        if said is None:
            return b""
        self._finish_reason = said.finish_reason or self._finish_reason
        for place, part in enumerate(said.calls):
            self._calls.add(part, place)
        shown = said.text or said.refusal or (said.thought and self._conversation.shows_thinking)
        if shown or said.thought or said.calls:
            self._pieces += 1
            if self._prompt_ns is None:
                self._prompt_ns = self._conversation.times.since_ns()
        return _line(self._conversation.told(said, [])) if shown else b""

    def alive(self) -> bytes:
        """White space before the next line's JSON: an empty line would be no JSON to the official client."""
        return b" "

    def done(self) -> bytes:
        """Calls are told whole: their arguments are objects here."""
        tool_calls = called(self._calls.all)
        lines = _line(self._conversation.told(_NOTHING, tool_calls)) if tool_calls else b""
        usage = self._usage or Usage(self._prompt_tokens, 0, self._pieces, 0)
        end = self._conversation.end(self._finish_reason, usage, self._prompt_ns or 0)
        return lines + _line({**self._conversation.told(_NOTHING, []), **end})

    def failed(self, error: GatewayError, request_id: str) -> bytes:
        return _line(error_of(error))


class Embeddings:
    """A request to /api/embed, translated. See `dialect.Translation`."""

    def __init__(self, path: str, chat: Json, times: Times) -> None:
        self.path = path
        self.chat = chat
        self._times = times

    def answer(self, chat: Json) -> Json:
        usage = usage_in(chat) or Usage(0, 0, 0, 0)
        return {
            "model": self.chat["model"],
            "embeddings": _vectors(chat),
            "total_duration": self._times.since_ns(),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt,
        }


class Embedded:
    """A request to /api/embeddings, translated. See `dialect.Translation`."""

    def __init__(self, path: str, chat: Json) -> None:
        self.path = path
        self.chat = chat

    def answer(self, chat: Json) -> Json:
        vectors = _vectors(chat)
        return {"embedding": vectors[0] if vectors else []}


def empty(kind: str, model: str, reason: str, times: Times) -> Json:
    """The answer to a request that says nothing."""
    begin = {"model": model, "created_at": times.created_at()}
    return {**begin, **_body(kind, ""), "done": True, "done_reason": reason}


def error_of(error: GatewayError) -> Json:
    """The body of an error, and the last line of a stream that is broken."""
    return {"error": error.message}


def called(calls: list[Call]) -> list[Json]:
    """Whole calls, with their arguments as objects. Raises EngineFailed for what is none."""
    told = []
    for call in filter(lambda call: call.name, calls):
        function = {"index": call.number, "name": call.name, "arguments": _arguments(call)}
        told.append({**({"id": call.id} if call.id else {}), "function": function})
    return told


def _arguments(call: Call) -> Json:
    try:
        value = json.loads(call.arguments.strip() or "{}")
    except (ValueError, RecursionError):
        value = None
    if type(value) is not dict:
        text = f"the model called {call.name[:100]} with arguments that are no JSON object"
        raise EngineFailed("backend_error", text)
    return value


def _body(kind: str, text: str) -> Json:
    return {"message": {"role": "assistant", "content": text}} if kind == CHAT else {"response": text}


def _vectors(chat: Json) -> list[Any]:
    """In the order of the texts, which engines number."""
    found = objects_in(chat, "data")
    if all(type(item.get("index")) is int for item in found):
        found.sort(key=lambda item: item["index"])
    return [item.get("embedding") for item in found]


def _line(told: Json) -> bytes:
    return dump(told) + b"\n"


_NOTHING = Said("", "", "", [], [], [], None)
