"""An engine that speaks another dialect than OpenAI's chat: how it is asked, and its answers as chat has them.

Sans-I/O. `BY_DIALECT` is the table; the translations are those of `dialects/`. What an engine says is bounded as that
of any other: by the size of an answer, and of an event.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional, Union

from gateway.clock import unix_s
from gateway.dialects.anthropic.answers import completion_of
from gateway.dialects.anthropic.asking import messages_request
from gateway.dialects.anthropic.errors import chat_error, chat_status
from gateway.dialects.anthropic.reading import MessagesReader
from gateway.dialects.dialect import EventReader, Json
from gateway.dialects.reading import decode
from gateway.errors import RequestRefused
from gateway.routing.params import Params
from gateway.routing.retry import Outcome
from gateway.upstream.answers import dump
from gateway.upstream.attempt import EngineFault
from gateway.upstream.call import CHAT, Call
from gateway.upstream.shaping import shaped
from gateway.upstream.sse import EventStream, StreamBroken


class Dialect(NamedTuple):
    """What another dialect of engines is made of."""

    request: Callable[[Json], Json]
    """A chat request in its words. Raises RequestRefused for what cannot be said."""
    answer: Callable[[Json, int], Json]
    """Its answer, come at so many seconds since 1970, as a chat answer."""
    reader: Callable[[int], EventReader]
    """What reads its stream, begun at that time."""
    error: Callable[[Json], Json]
    """The body of an error, as a chat engine would have sent it."""
    status: Callable[[int, Json], int]
    """The status that it would have had."""


BY_DIALECT: dict[Optional[str], Dialect] = {
    "anthropic": Dialect(messages_request, completion_of, MessagesReader, chat_error, chat_status),
}


def payload(dialect: Dialect, call: Call, model: Optional[str], params: Optional[Params]) -> bytes:
    """The body for an engine that knows the model as `model` (None: as it is), of a model with these `params`.

    Raises EngineFault, of no status as nothing has been sent: another dialect may have words for it."""
    if call.path != CHAT:
        raise EngineFault(Outcome("not_implemented", f"the engine's dialect has nothing like {call.path}"))
    request = call.request_for(params) if call.rich is None else shaped(CHAT, call.rich, params)
    if model is not None:
        request = {**request, "model": model}
    try:
        return dump(dialect.request(request))
    except RequestRefused as refusal:
        details = {"param": refusal.param}
        raise EngineFault(Outcome("not_implemented", refusal.message, details=details)) from refusal


def answered(dialect: Dialect, body: Union[bytes, bytearray]) -> Union[bytes, bytearray]:
    """A complete answer as a chat engine would have sent it; what is no JSON object, as it is. Takes long for a long
    one."""
    try:
        said = decode(body.decode())
    except ValueError:
        return body
    return dump(dialect.answer(said, int(unix_s()))) if isinstance(said, dict) else body


def refusal(dialect: Dialect, status: int, body: bytes) -> tuple[int, bytes]:
    """An answer other than 2xx, as a chat engine would have sent it."""
    try:
        said = decode(body.decode())
    except ValueError:
        return status, body
    return (dialect.status(status, said), dump(dialect.error(said))) if isinstance(said, dict) else (status, body)


class TranslatedEvents(EventStream):
    """The stream of such an engine."""

    __slots__ = ("_reader",)

    def __init__(self, dialect: Dialect, hide_usage: bool, choices: int, keep_text: bool, event_max_bytes: int) -> None:
        super().__init__(hide_usage, choices, keep_text, event_max_bytes)
        self._reader = dialect.reader(int(unix_s()))

    def feed(self, data: bytes) -> bytes:
        """Take payload, return the whole lines that the client gets. Raises StreamBroken."""
        lines = self._reader.feed(data)
        if self._reader.held_bytes > self._event_max_bytes:
            raise StreamBroken(f"the engine sent more than {self._event_max_bytes} bytes for one event")
        given = super().feed(lines) if lines else b""
        self.alike = None  # that is about the lines, and not about what comes
        return given
