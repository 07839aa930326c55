"""One answer, put together from the event stream of an engine that was not asked for one: several ignore `stream`.

`assemble` reads the stream to its end and gives the body that the engine should have sent. What is kept of an event is
parts of that body, JSON already: so what is held grows with the bytes that have come, whatever they say. No state of
its own; one thread at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Optional, Union

from gateway.routing.retry import Outcome
from gateway.steps import ASIDE, Steps
from gateway.upstream.attempt import EngineFault
from gateway.upstream.deltas import TEXT_KEYS, is_finish, number_of
from gateway.upstream.eventlines import events_in
from gateway.upstream.nonfinite import dump_with_nulls, has_nonfinite, with_nulls
from gateway.upstream.stream import EngineStream

CHOICES_MAX = 4_096  # and as many tool calls
KEYS_MAX = 32  # of an object
PARSED_MAX_BYTES = 1_048_576  # of an event: as objects, such an event may take 25 MiB
PREFIX = "the engine sent an event stream though none was asked for"

_OBJECTS = {"/chat/completions": "chat.completion", "/completions": "text_completion"}
_FIRST = ("id", "created", "model", "system_fingerprint")  # said by the first event; of all else the last word counts
_THOUGHT = ("thinking", "signature", "data")  # texts of a block of thinking, which come in pieces

Pieces = list[Union[bytes, bytearray]]  # of JSON


class Unfit(Exception):
    """These events make no answer."""


def assemble(stream: EngineStream, path: str, max_bytes: int) -> Steps[bytearray]:
    """The body of the answer to POST `path`, of which nothing has been read yet; the stream is read to its end.

    `max_bytes` of events may come. Raises ClientGone, and EngineFault: as a stream that breaks would, or
    `unasked_stream` for events that make no answer to this.
    """
    if path not in _OBJECTS:
        raise EngineFault(Outcome("unasked_stream", f"{PREFIX}, and there is none for {path}"))
    answer = Assembly(path)
    yield ASIDE
    yield from stream.wait_first()
    lines, stream.first = stream.first, b""
    size = 0
    try:
        while lines:
            size += len(lines)
            if size > max_bytes:
                raise EngineFault(Outcome("invalid", f"the engine's answer has more than {max_bytes} bytes"))
            for event in events_in(lines, PARSED_MAX_BYTES):
                answer.add(event)
                del event  # before there is another one: as objects, each may be 25 times as large
            lines = yield from stream.read()
        return answer.body()
    except (Unfit, ValueError, RecursionError) as error:  # ValueError: see `events_in`
        text = str(error) if isinstance(error, Unfit) else "one of its events is no JSON, or too large"
        raise EngineFault(Outcome("unasked_stream", f"{PREFIX}, and it makes no answer: {text}")) from error


def assembled(lines: bytes, path: str) -> bytearray:
    """The body of a whole answer to POST `path`, from all lines of its stream. Raises Unfit, ValueError,
    RecursionError."""
    answer = Assembly(path)
    for event in events_in(lines, PARSED_MAX_BYTES):
        answer.add(event)
    return answer.body()


class _Kept:
    """What is kept of one object in many events, as JSON: its texts and lists without what stands around them."""

    __slots__ = ("items", "texts", "values")

    def __init__(self) -> None:
        self.texts: dict[str, bytearray] = {}
        self.items: dict[str, bytearray] = {}
        self.values: dict[str, bytes] = {}

    def add(self, key: str, value: Any, joined: bool) -> None:
        """Another value of a key; `joined` with those before if it is a text, as lists are; else it replaces them."""
        if value is None:
            return
        if joined and isinstance(value, str):
            self.texts.setdefault(key, bytearray()).extend(_json(value)[1:-1])
        elif isinstance(value, list):
            items = self.items.setdefault(key, bytearray())
            if items and value:
                items += b","
            items += _json(value)[1:-1]
        else:
            self.values[key] = _json(value)
        if len(self.texts) + len(self.items) + len(self.values) > KEYS_MAX:
            raise Unfit("its objects have too many keys")

    def says(self, key: str, text: str) -> bool:
        """Whether the text of a key is this."""
        return self.texts.get(key, bytearray()) == _json(text)[1:-1]

    def members(self) -> dict[str, Pieces]:
        """Each key's value."""
        members: dict[str, Pieces] = {key: [value] for key, value in self.values.items()}
        members.update((key, [b"[", items, b"]"]) for key, items in self.items.items())
        for key, text in self.texts.items():
            if key in members:
                raise Unfit(f"{key} is a text and something else")
            members[key] = [b'"', text, b'"']
        return members


class _ToolCall:
    """One call of a tool."""

    __slots__ = ("function", "id", "kept")

    def __init__(self) -> None:
        self.id = ""
        self.kept = _Kept()
        self.function = _Kept()

    def add(self, part: dict[str, Any]) -> None:
        """The next part of it."""
        for key, value in part.items():
            if key == "id":
                self.id = self.id or (value if isinstance(value, str) else "")
            elif key == "function":
                _add_function(self.function, value)
            elif key != "index":
                self.kept.add(key, value, joined=False)

    def is_other(self, part: dict[str, Any]) -> bool:
        """Whether a part that has this call's index begins another one: with an id and a name of its own."""
        function = part.get("function")
        named = isinstance(function, dict) and bool(function.get("name"))
        return named and bool(self.id) and bool(part.get("id")) and part.get("id") != self.id

    def pieces(self) -> Pieces:
        """The call, as a complete answer has it."""
        members: dict[str, Pieces] = {"type": [b'"function"'], **self.kept.members()}
        if self.id:
            members = {"id": [_json(self.id)], **members}
        return _object({**members, "function": _function(self.function)})


class _Choice:
    """One choice: its message or text, its reason, and what else is said of it."""

    __slots__ = ("_call", "_calls", "_logprobs", "_thoughts", "finish_reason", "function", "kept", "message")

    def __init__(self) -> None:
        self.kept = _Kept()
        self.message = _Kept()
        self.finish_reason: Optional[str] = None
        self.function: Optional[_Kept] = None
        self._logprobs: Optional[_Kept] = None
        self._calls: list[_ToolCall] = []
        self._call: dict[int, _ToolCall] = {}  # by index, the one that goes on
        self._thoughts: dict[int, _Kept] = {}  # blocks of them, by index

    def add(self, choice: dict[str, Any]) -> int:
        """What an event says of it; returns how many tool calls, or blocks of thinking, have begun."""
        began = 0
        for key, value in choice.items():
            if key == "finish_reason":
                self.finish_reason = value if is_finish(value) else self.finish_reason
            elif key in ("delta", "message"):
                began += self._add_delta(value) if isinstance(value, dict) else 0
            elif key == "logprobs" and isinstance(value, dict):
                self._logprobs = self._logprobs or _Kept()
                for name, items in value.items():
                    self._logprobs.add(name, items, joined=False)
            elif key != "index":
                self.kept.add(key, value, joined=key == "text")
        return began

    def _add_delta(self, delta: dict[str, Any]) -> int:
        began = 0
        for key, value in delta.items():
            if key == "tool_calls":
                for place, part in enumerate(value if isinstance(value, list) else ()):
                    began += self._add_call(part, place)
            elif key == "thinking_blocks":
                for place, part in enumerate(value if isinstance(value, list) else ()):
                    began += self._add_thought(part, place)
            elif key == "function_call":
                self.function = self.function or _Kept()
                _add_function(self.function, value)
            else:
                self.message.add(key, value, joined=key in TEXT_KEYS)
        return began

    def _add_call(self, part: Any, place: int) -> int:
        if not isinstance(part, dict):
            return 0
        index = part.get("index")
        index = index if type(index) is int else place
        call = self._call.get(index)
        began = call is None or call.is_other(part)
        if call is None or began:
            call = self._call[index] = _ToolCall()
            self._calls.append(call)
        call.add(part)
        return int(began)

    def _add_thought(self, part: Any, place: int) -> int:
        if not isinstance(part, dict):
            return 0
        index = part.get("index")
        index = index if type(index) is int else place
        began = index not in self._thoughts
        thought = self._thoughts.setdefault(index, _Kept())
        for key, value in part.items():
            if key != "index":
                thought.add(key, value, joined=key in _THOUGHT)
        return int(began)

    def pieces(self, index: int, path: str) -> Pieces:
        """The choice, as a complete answer has it."""
        members: dict[str, Pieces] = {"index": [_json(index)], "logprobs": [b"null"]}
        if path == "/chat/completions":
            members["message"] = self._message()
        else:
            members["text"] = [b'""']
        if self._logprobs is not None:
            members["logprobs"] = _object(self._logprobs.members())
        return _object({**members, **self.kept.members(), "finish_reason": [_json(self.finish_reason)]})

    def _message(self) -> Pieces:
        called = bool(self._calls) or self.function is not None
        members: dict[str, Pieces] = {"role": [b'"assistant"'], "content": [b"null"], **self.message.members()}
        if called and self.message.texts.get("content") == bytearray():
            members["content"] = [b"null"]
        if self._calls:
            members["tool_calls"] = _list(call.pieces() for call in self._calls)
        if self._thoughts:
            members["thinking_blocks"] = _list(_object(thought.members()) for thought in self._thoughts.values())
        if self.function is not None:
            members["function_call"] = _function(self.function)
        return _object(members)


class Assembly:
    """One answer to POST `path` while it is put together: all choices, and what is said of the whole."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._first: dict[str, Pieces] = {}
        self._last: dict[str, Pieces] = {}
        self._choices: dict[int, _Choice] = {}
        self._calls = 0

    def add(self, event: Any) -> None:
        """The next event. Raises Unfit."""
        if not isinstance(event, dict):
            raise Unfit("one of its events is no object")
        for key, value in event.items():
            if key == "choices":
                for choice in value if isinstance(value, list) else ():
                    self._add_choice(choice)
            elif value is None or key in ("object", "error"):
                continue
            elif key in _FIRST:
                self._first.setdefault(key, [_json(value)])
            else:
                self._last[key] = [_json(value)]
        if len(self._last) > KEYS_MAX:
            raise Unfit("its objects have too many keys")

    def _add_choice(self, choice: Any) -> None:
        if not isinstance(choice, dict):
            return
        index = number_of(choice)
        kept = self._choices.get(index)
        if kept is None:
            kept = self._choices[index] = _Choice()
        self._calls += kept.add(choice)
        if len(self._choices) > CHOICES_MAX or self._calls > CHOICES_MAX:
            raise Unfit("it has too many choices, tool calls or thoughts")

    def body(self) -> bytearray:
        """The whole answer."""
        choices = _list(choice.pieces(index, self._path) for index, choice in sorted(self._choices.items()))
        kind: Pieces = [_json(_OBJECTS[self._path])]
        return bytearray().join(_object({**self._first, "object": kind, "choices": choices, **self._last}))


def _add_function(kept: _Kept, value: Any) -> None:
    if not isinstance(value, dict):
        return
    for key, part in value.items():
        if key == "arguments" and isinstance(part, dict):
            part = _json(part).decode()
        if key == "name" and isinstance(part, str) and kept.says(key, part):  # once more, not gone on with
            continue
        kept.add(key, part, joined=key in TEXT_KEYS)


def _function(kept: _Kept) -> Pieces:
    return _object({"name": [b'""'], "arguments": [b'""'], **kept.members()})


def _list(items: Iterable[Pieces]) -> Pieces:
    pieces: Pieces = []
    for item in items:
        pieces += (b",", *item)
    return [b"[", *pieces[1:], b"]"]


def _object(members: dict[str, Pieces]) -> Pieces:
    pieces: Pieces = []
    for key, value in members.items():
        pieces += (b",", _json(key), b":", *value)
    return [b"{", *pieces[1:], b"}"]


def _json(value: object) -> bytes:
    """The JSON of what an engine has said; of a text no more bytes than it came in."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half a character, whose other half may be in the next event
        return dump_with_nulls(value)
    return with_nulls(text) if has_nonfinite(text) else text
