"""One request to /v1/responses, and how its answer is told: as a Response, or as the events of one that comes to be."""

from __future__ import annotations

from typing import Optional

from gateway.dialects.dialect import CHAT_PATH, EVENT_STREAM, Json, dump
from gateway.dialects.responses.making import Making
from gateway.dialects.responses.request import Asked, read_request
from gateway.dialects.said import said_in
from gateway.errors import GatewayError

_SERVER_ERROR = "server_error"
_RATE_LIMITED = "rate_limit_exceeded"


def read(request: Json) -> Conversation:
    """Translate the body of a request. Raises RequestRefused, which names what is wrong or what cannot be done."""
    return Conversation(read_request(request))


class Conversation:
    """A request, translated. See `dialect.Conversation`."""

    path = CHAT_PATH
    stream_type = EVENT_STREAM

    def __init__(self, asked: Asked) -> None:
        self.chat = asked.chat
        self._asked = asked

    def answer(self, chat: Json) -> Json:
        """The Response object for a complete chat answer."""
        making = Making(self._asked, chat)
        making.take(chat)
        making.close()
        return making.whole()

    def events(self, prompt_tokens: int) -> Writer:
        """What tells a streamed answer. `prompt_tokens` is not read: usage stands at the end, as engines tell it."""
        return Writer(self._asked)


class Writer:
    """Tells a client of a stream. See `dialect.EventWriter`. There is no `[DONE]` in this dialect."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._making: Optional[Making] = None
        self._told = 0  # events so far

    def chunk(self, chunk: Json) -> bytes:
        if self._making is None and said_in(chunk) is None:
            return b""  # what some engines say before they answer has no id
        making, opening = self._begun(chunk)
        return self._lines([*opening, *making.take(chunk)])

    def alive(self) -> bytes:
        return b": alive\n\n"

    def done(self) -> bytes:
        making, opening = self._begun({})
        return self._lines([*opening, *making.close()])

    def failed(self, error: GatewayError, request_id: str) -> bytes:
        """`response.failed` for those who read it, then `error`: the official clients raise what stands in an event's
        member `error`, and of any other event only say that it has come."""
        events: list[Json] = []
        if self._making is not None:
            code = _RATE_LIMITED if error.status == 429 else _SERVER_ERROR
            failure = {"code": code, "message": error.message}
            events.append({"type": "response.failed", "response": self._making.response("failed", failure)})
        return self._lines(events) + error_event(error, request_id, self._told)

    def _begun(self, first: Json) -> tuple[Making, list[Json]]:
        """The Response, and the events that say that it is begun where that has just happened."""
        if self._making is not None:
            return self._making, []
        making = self._making = Making(self._asked, first)
        response = making.response("in_progress")
        return making, [{"type": f"response.{kind}", "response": response} for kind in ("created", "in_progress")]

    def _lines(self, events: list[Json]) -> bytes:
        lines = b"".join(_line(event, number) for number, event in enumerate(events, self._told))
        self._told += len(events)
        return lines


def _line(event: Json, number: int) -> bytes:
    told = {"type": event["type"], "sequence_number": number, **event}
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), dump(told))


def error_event(error: GatewayError, request_id: str, number: int) -> bytes:
    """The event that tells a client why its stream ends, as the one of this number."""
    told = {"code": error.code, "message": error.message, "param": error.param}
    return _line({"type": "error", **told, "error": told, "request_id": request_id}, number)
