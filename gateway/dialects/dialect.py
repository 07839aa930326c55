"""What a dialect has to offer, for a client that speaks it and for an engine that does.

Between the two ends everything is OpenAI's chat: a client's request becomes a chat request, and the chat answer or its
chunks become the client's; an engine is asked in its own words, and what it answers becomes a chat answer or chunks.
Owns the shapes, and how they are written.
"""

from __future__ import annotations

import json
from typing import Any, Callable, NamedTuple, Optional, Protocol, Union

from gateway.errors import GatewayError

Json = dict[str, Any]

CHAT_PATH = "/chat/completions"
COMPLETION_PATH = "/completions"
EMBEDDING_PATH = "/embeddings"
EVENT_STREAM = b"text/event-stream"


def dump(value: object) -> bytes:
    """Compact JSON, ASCII only."""
    return json.dumps(value, separators=(",", ":")).encode()


class Immediate(NamedTuple):
    """A request that no engine is asked for: where a dialect has such, its `read` gives this and no `Translation`."""

    model: str
    """The model that it is about, which has to be one that the client may use."""
    answer: Json
    """What it is answered, whole, whether or not it asked for a stream."""


class Shown(NamedTuple):
    """A request to be told of a model."""

    model: str
    """One that the client may use."""
    answer: Callable[[Optional[int], tuple[str, ...]], Json]
    """What it is answered, by the tokens that the model's context has room for (None: unknown), and what it can do."""


class Counted(NamedTuple):
    """A request that asks how many tokens another one's prompt has. No engine is asked for that either."""

    chat: Json
    """The chat request that it is about."""
    answer: Callable[[int], Json]
    """What it is answered, by that number."""


class Untranslated(NamedTuple):
    """A request for engines that speak the client's dialect themselves, and what they say is told as it is."""

    path: str
    chat: Json


class EventWriter(Protocol):
    """Tells a client of a stream, event by event, in its own dialect. One object per stream, one thread at a time."""

    def chunk(self, chunk: Json) -> bytes:
        """One chat chunk has come: what the client reads of it, whole events; b"" where it says nothing new.

        Never raises for anything that JSON can say: what is malformed counts as absent.
        """
        ...

    def alive(self) -> bytes:
        """Nothing has come for a while: what tells the client that the connection lives, at any place in the stream,
        its beginning included."""
        ...

    def done(self) -> bytes:
        """`[DONE]` has come: everything that a good end needs. Raises EngineFailed where the dialect has no words for
        what a model wrote: then `failed` is to be told."""
        ...

    def failed(self, error: GatewayError, request_id: str) -> bytes:
        """The stream is broken: the dialect's error event, and nothing that a client could take for a good end."""
        ...


class Translation(Protocol):
    """One request of a client, translated, and how a complete answer to it is told. Made by the dialect's `read`."""

    chat: Json
    """What engines are asked: a chat request, or what `path` takes."""
    path: str
    """Where engines are asked, and whose checks `chat` has to pass."""

    def answer(self, chat: Json) -> Json:
        """The client's form of a complete answer. Raises EngineFailed where that has none for what a model wrote."""
        ...


class Conversation(Translation, Protocol):
    """One that may ask for a stream, with `stream` in `chat`."""

    stream_type: bytes
    """The media type of a streamed answer."""

    def events(self, prompt_tokens: int) -> EventWriter:
        """What tells a streamed answer. `prompt_tokens`: the prompt's, estimated, for dialects that begin with it."""
        ...


class EventReader(Protocol):
    """Makes chat chunks of an engine's event stream. One object per stream, one thread at a time."""

    @property
    def held_bytes(self) -> int:
        """What is kept of an event that has not ended; who feeds bounds it."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Bytes of the engine's body, cut anywhere; returns whole `data: …` events of chat chunks, `[DONE]` behind a
        good end, or an event with `error`."""
        ...


Read = Union[Translation, Immediate, Shown, Counted, Untranslated]
"""What a request of another dialect may be."""
