"""A client that speaks another dialect is told the answer to its request in it, complete or as a stream.

A `Telling` belongs to one request, and to one thread at a time: that of its steps, then who relays its stream. It
translates nothing itself (`dialects/`); it knows which bytes are events, and what a stream has taken if its engine does
not say.
"""

from __future__ import annotations

import json
from typing import Optional, cast

from gateway.dialects.cutting import Cutter
from gateway.dialects.dialect import (
    CHAT_PATH,
    Conversation,
    Counted,
    EventWriter,
    Immediate,
    Json,
    Read,
    Shown,
    Translation,
    Untranslated,
)
from gateway.dialects.responses.conversation import error_event
from gateway.errors import EngineFailed, GatewayError
from gateway.hedging import Answer
from gateway.routing.capabilities import CHATS
from gateway.upstream.answers import Usage, dump, usage_of
from gateway.upstream.call import Call
from gateway.upstream.estimates import tokens_of, weight_of_choices


class Telling:
    """How one request's answer is told."""

    __slots__ = ("_cutter", "_translation", "_usage_told", "_weight", "_writer", "call", "fault")

    call: Call
    """What is asked. To be set before anything is told."""

    def __init__(self, translation: Read) -> None:
        self._translation = translation
        self._cutter = Cutter()
        self._writer: Optional[EventWriter] = None
        self._usage_told = False
        self.fault: Optional[EngineFailed] = None  # what has been told instead of a stream's good end
        self._weight = 0  # of what has been generated (see `upstream/estimates.py`)

    @property
    def is_immediate(self) -> bool:
        """Whether it is answered without an engine."""
        return isinstance(self._translation, (Immediate, Shown, Counted))

    @property
    def path(self) -> str:
        """What engines are asked."""
        translation = self._translation
        return CHAT_PATH if isinstance(translation, (Immediate, Shown, Counted)) else translation.path

    @property
    def request(self) -> Json:
        """With what they are asked, or would be."""
        if isinstance(self._translation, (Immediate, Shown)):
            return {"model": self._translation.model, "messages": []}
        return self._translation.chat

    @property
    def rich(self) -> Optional[Json]:
        """The request with what only engines of the client's own dialect know; None: there is no such."""
        return getattr(self._translation, "rich", None)

    @property
    def stream_type(self) -> bytes:
        """The media type of a stream."""
        return cast(Conversation, self._translation).stream_type

    def immediate(self, context_tokens: Optional[int], capabilities: tuple[str, ...] = CHATS) -> Answer:
        """What is answered without an engine, for a model with so large a context (None: unknown) that can do this."""
        given = self._translation
        if isinstance(given, Counted):
            told = given.answer(tokens_of(self.call.prompt_weight()))
        elif isinstance(given, Shown):
            told = given.answer(context_tokens, capabilities)
        else:
            told = cast(Immediate, given).answer
        return Answer(dump(told), Usage(0, 0, False))

    def answer(self, given: Answer) -> Answer:
        """A complete answer, or the whole of a stream, as the client reads it. Takes long for a long one. Raises
        EngineFailed for what the dialect has no words for."""
        body = bytes(given.body)
        if self.call.stream:
            lines = self.lines(body)
            if self.fault is not None:
                raise self.fault
            return Answer(lines, given.usage)
        return Answer(dump(cast(Translation, self._translation).answer(json.loads(body))), given.usage)

    def lines(self, lines: bytes) -> bytes:
        """Whole lines of a chat stream as the client reads them; what ends within them is told."""
        told: list[bytes] = []
        for event in self._cutter.feed(lines):
            try:
                told.append(self._event(event.data, event.is_comment))
            except EngineFailed as error:
                self.fault = error
                told.append(self.failed(error, self.call.request_id))
        return b"".join(told)

    def failed(self, error: GatewayError, request_id: str) -> bytes:
        """The stream is broken."""
        return self._events().failed(error, request_id)

    def _events(self) -> EventWriter:
        writer = self._writer
        if writer is None:
            conversation = cast(Conversation, self._translation)
            writer = self._writer = conversation.events(tokens_of(self.call.prompt_weight()))
        return writer

    def _event(self, data: bytes, is_comment: bool) -> bytes:
        writer = self._events()
        if is_comment:
            return writer.alive()
        if data.strip() == b"[DONE]":  # as `eventlines.py` knows it
            before = b"" if self._usage_told else writer.chunk(self._estimated())
            return before + writer.done()
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            return b""
        if not isinstance(chunk, dict):
            return b""
        if not chunk.get("id"):
            chunk["id"] = self.call.request_id  # some engines give none, others not at first: dialects want one
        if chunk.get("usage"):
            self._usage_told = True
        elif not self._usage_told:
            self._weight += weight_of_choices(data, chunk.get("choices"))
        return writer.chunk(chunk)

    def _estimated(self) -> Json:
        """What says the tokens of a stream whose engine does not."""
        usage = usage_of(None, self.call.prompt_weight(), self._weight)
        return {
            "choices": [],
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
        }


class Native(Telling):
    """An engine's own answers in Responses, which are passed on as they are; only that a stream breaks is told."""

    __slots__ = ("_events_told",)

    def __init__(self, path: str, request: Json) -> None:
        super().__init__(Untranslated(path, request))
        self._events_told = 0

    def answer(self, given: Answer) -> Answer:
        """The same."""
        return given

    def lines(self, lines: bytes) -> bytes:
        """The same."""
        self._events_told += lines.count(b"\ndata:") + lines.startswith(b"data:")
        return lines

    def failed(self, error: GatewayError, request_id: str) -> bytes:
        """The stream is broken, behind a whole event."""
        return error_event(error, request_id, self._events_told)
