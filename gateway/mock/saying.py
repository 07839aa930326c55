"""What the model of a mock engine says, whatever the dialect it is asked in: text, thoughts, tool calls.

Pure: the same request, model, port and number give the same answer. Words stand for tokens, so usage, limits and the
default number of stream events can be counted by hand in a test. A tool is called because the last user text names it,
or the request demands it, once after each such text; when none is left to call, the answer quotes the tools' results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple, Optional

from gateway.mock.instances import instance, misfit, written
from gateway.mock.state import Conversations

Json = dict[str, Any]
Stream = tuple[list[bytes], Iterator[bytes], list[bytes]]  # the opening, content and closing events

_ARGUMENTS_LETTERS = 12  # of a call's arguments, in one event
_THOUGHTS = "The user wants an answer."


class BadRequest(ValueError):
    """The request cannot be answered; the text says what is wrong with it."""


class Asked(NamedTuple):
    """A request, its running number, and who answers it: `events` is the number of pieces the text is made of (None:
    its words), `usage` False leaves the usage out, `habit` is the behaviour that spoils what is to fit a schema, and
    `kept` holds the conversations that a request may refer to."""

    path: str
    body: Json
    model: str
    port: int
    number: int
    events: Optional[int]
    usage: bool
    habit: str = ""
    kept: Optional[Conversations] = None

    def identifier(self, kind: str) -> str:
        """Return an identifier of this answer, or of a part of it."""
        return f"{kind}mock-{self.port}-{self.number}"


class Tool(NamedTuple):
    """A function that may be called, and the schema of its arguments."""

    name: str
    schema: object


class Wish(NamedTuple):
    """What a request asks for. `since` the last user text: the names of the tools called, and the tools' `results`.

    `demanded`: True when a tool must be called, or the name of the one. `schema`: what the text must fit (None: text).
    """

    text: str
    called: list[str]
    results: list[str]
    tools: list[Tool]
    demanded: object = False
    one_at_a_time: bool = False
    schema: Optional[Json] = None
    stops: object = None
    limit: object = None
    thinks: bool = False


class Call(NamedTuple):
    """A tool call: its arguments as a value, and as the text that is sent."""

    name: str
    value: Any
    arguments: str

    def pieces(self) -> list[str]:
        """Return the arguments in the pieces that a stream sends."""
        size = _ARGUMENTS_LETTERS
        return [self.arguments[at : at + size] for at in range(0, len(self.arguments), size)]


class Said(NamedTuple):
    """An answer: its text in the pieces that a stream sends, its size in words, and why it ends: `stop` or `length`,
    `tool_calls`, or `stop_sequence`, which then is `stopped_by`."""

    pieces: list[str]
    tokens: int
    finish_reason: str
    stopped_by: Optional[str] = None
    calls: tuple[Call, ...] = ()
    thoughts: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)


class Block(NamedTuple):
    """A part of a streamed answer: the events before and after its pieces, and what makes an event of a piece."""

    before: list[Json]
    pieces: list[str]
    event: Callable[[str], Json]
    after: list[Json]


def encode(value: object) -> bytes:
    """Return `value` as compact JSON in UTF-8, unescaped as llama.cpp sends it."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8: only then escape
        return json.dumps(value, separators=(",", ":")).encode()


def say(asked: Asked, wish: Wish) -> Said:
    """Return the answer to `wish`."""
    calls = tuple(_call(asked, tool) for tool in _tools_to_call(wish))
    thoughts = tuple(words(_THOUGHTS)) if wish.thinks else ()
    if calls:
        tokens = len(thoughts) + sum(len(words(call.arguments)) for call in calls)
        return Said([], tokens, "tool_calls", None, calls, thoughts)
    if wish.schema is not None:
        value = instance(wish.schema)
        text = written(misfit(value) if asked.habit == "misfit" else value, asked.habit)
    else:
        text = f"Mock answer from {asked.model} at {asked.port}: {'; '.join(wish.results) or wish.text}"
    said = speak(text, wish.stops, wish.limit, asked.events, extends=wish.schema is None)
    return said._replace(thoughts=thoughts, tokens=said.tokens + len(thoughts))


def _tools_to_call(wish: Wish) -> list[Tool]:
    if isinstance(wish.demanded, str):
        named = [tool for tool in wish.tools if tool.name == wish.demanded]
    else:
        named = [tool for tool in wish.tools if _names(wish.text, tool.name)]
        named = named or (wish.tools[:1] if wish.demanded else [])
    left = [tool for tool in named if tool.name not in wish.called]
    return left[:1] if wish.one_at_a_time else left


def _names(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


def _call(asked: Asked, tool: Tool) -> Call:
    value = instance(tool.schema if isinstance(tool.schema, dict) else {"type": "object"})
    if asked.habit == "misfit":
        value = misfit(value) if value else {"misfit": True}  # an object in any case: not every dialect has others
    return Call(tool.name, value, written(value, asked.habit))


def speak(text: str, stops: object, limit: object, events: Optional[int], extends: bool = True) -> Said:
    """Return `text` as far as the stop sequences and the limit in words let it, in so many pieces (None: its words).

    `extends`: whether words are added where it has fewer than `events`.
    """
    count = len(words(text))
    if extends and events is not None and events > count:
        text += "".join(f" token{number}" for number in range(count + 1, events + 1))
    stops = [stops] if isinstance(stops, str) else stops if isinstance(stops, list) else []
    found = [(text.find(stop), stop) for stop in stops if isinstance(stop, str) and stop and stop in text]
    end, stopped_by = min(found, default=(len(text), None))
    said, finish = words(text[:end]), "stop" if stopped_by is None else "stop_sequence"
    if type(limit) is int and 0 < limit < len(said):
        said, finish, stopped_by = said[:limit], "length", None
    count = len(said)
    if events is None or events >= count:
        return Said(said, count, finish, stopped_by)
    bounds = [index * count // events for index in range(events + 1)] if events else [0]
    pieces = ["".join(said[low:high]) for low, high in zip(bounds, bounds[1:])]
    return Said(pieces, count if events else 0, finish, stopped_by)


def words(text: str) -> list[str]:
    """Return the words of `text`, each with the space behind it."""
    return re.findall(r"\S+\s*|\s+", text)


def text_of(content: object, *kinds: str) -> str:
    """Return the text of a message: its content, or that of its parts, of these types if any are named."""
    if isinstance(content, list):
        parts = (part for part in content if isinstance(part, dict) and (not kinds or part.get("type") in kinds))
        texts = (part.get("text") for part in parts)
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def streamed(head: list[Json], blocks: list[Block], tail: list[Json], render: Callable[[int, Json], bytes]) -> Stream:
    """Lay events out as a stream; `render` gets each with its number, from 0.

    What begins the first block and ends the last belongs to the opening and the closing, so that content is what is
    between: made as it is taken, once.
    """
    opening = head + (blocks[0].before if blocks else [])
    closing = (blocks[-1].after if blocks else []) + tail
    size = sum(len(block.before) + len(block.pieces) + len(block.after) for block in blocks)
    last = len(head) + size + len(tail) - len(closing)

    def content() -> Iterator[Json]:
        for number, block in enumerate(blocks):
            yield from chain(block.before if number else (), map(block.event, block.pieces))
            yield from block.after if number < len(blocks) - 1 else ()

    return (
        [render(number, event) for number, event in enumerate(opening)],
        (render(number, event) for number, event in enumerate(content(), len(opening))),
        [render(number, event) for number, event in enumerate(closing, last)],
    )
