"""Chat chunks as the events of a message. One `MessagesWriter` per stream, used by one thread at a time.

A message is told block by block: what belongs to another block than the last one ends that. A call that begins before
the one under way is whole waits until something else comes, so that calls which come in turns are told one by one.
"""

from __future__ import annotations

from typing import Any, Optional

from gateway.dialects.anthropic.answers import clean_thinking, thoughts_of
from gateway.dialects.anthropic.endings import messages_usage, stop_of
from gateway.dialects.anthropic.errors import error_message
from gateway.dialects.anthropic.places import CALL, TEXT, THINKING, laid_out
from gateway.dialects.anthropic.tools import id_or_made, input_of
from gateway.dialects.dialect import Json, dump
from gateway.dialects.reading import index_in, object_in, objects_in, text_in
from gateway.dialects.said import content_text
from gateway.errors import GatewayError

PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class _Call:
    """A call under way. `block` is its index; None: it has not been told yet, as it has no name or waits."""

    __slots__ = ("block", "call_id", "name", "pieces")

    def __init__(self) -> None:
        self.block: Optional[int] = None
        self.call_id = ""
        self.name = ""
        self.pieces: list[str] = []  # of its arguments


class MessagesWriter:
    """Tells of the first choice. `model`: what the client has asked for; `stops`: its stop sequences;
    `prompt_tokens`: estimated."""

    def __init__(self, model: str, stops: frozenset[str], prompt_tokens: int) -> None:
        self._model = model
        self._stops = stops
        self._prompt_tokens = prompt_tokens
        self._answer_id = ""
        self._begun = False
        self._ended = False
        self._blocks = 0  # begun
        self._open: Optional[tuple[str, int]] = None  # what the open block is of, and which of these
        self._signed = False  # the open thinking has its signature
        self._calls: dict[int, _Call] = {}
        self._last_call = -1
        self._waiting: dict[int, _Call] = {}  # calls that have begun before the open one was whole
        self._finish: Json = {}  # the choice that says why it has ended
        self._usage: Any = None

    def chunk(self, chunk: Json) -> bytes:
        """The events for one chat chunk."""
        if self._ended:
            return b""
        out: list[bytes] = []
        self._begin(chunk, out)
        if type(chunk.get("usage")) is dict:
            self._usage = chunk["usage"]
        for choice in objects_in(chunk, "choices"):
            if choice.get("index"):
                continue
            self._delta(object_in(choice, "delta"), out)
            if text_in(choice, "finish_reason"):
                self._finish = choice
        return b"".join(out)

    def alive(self) -> bytes:
        """A `ping`, which clients skip wherever it comes."""
        return b"" if self._ended else PING

    def done(self) -> bytes:
        """What ends the message."""
        if self._ended:
            return b""
        out: list[bytes] = []
        self._begin({}, out)
        self._tell_waiting(out)
        self._close(out)
        stop = stop_of(self._finish, self._stops, any(call.block is not None for call in self._calls.values()))
        usage = messages_usage(self._usage, self._prompt_tokens)
        out.append(_event("message_delta", {"delta": stop, "usage": usage}))
        out.append(_event("message_stop", {}))
        self._ended = True
        return b"".join(out)

    def failed(self, error: GatewayError, request_id: str) -> bytes:
        """The `error` event; nothing follows it."""
        if self._ended:
            return b""
        self._ended = True
        return b"event: error\ndata: %b\n\n" % dump(error_message(error, request_id))

    # --- a delta -----------------------------------------------------------------------------------------------------

    def _begin(self, chunk: Json, out: list[bytes]) -> None:
        if self._begun:
            return
        self._begun = True
        self._answer_id = text_in(chunk, "id")
        message: Json = {
            "id": self._answer_id,
            "type": "message",
            "role": "assistant",
            "model": text_in(chunk, "model") or self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": messages_usage(None, self._prompt_tokens),
        }
        out += (_event("message_start", {"message": message}), PING)  # engines of other dialects may never give one

    def _delta(self, delta: Json, out: list[bytes]) -> None:
        words = content_text(delta.get("content")) + text_in(delta, "refusal")
        laid, words, calls = laid_out(thoughts_of(delta), words, objects_in(delta, "tool_calls"))
        for what, said in [*laid, (TEXT, words), *((CALL, call) for call in calls)]:
            if what == THINKING:
                self._thought(said, out)
            elif what == CALL:
                self._call(said, out)
            elif said:
                self._text(said, out)

    def _text(self, words: str, out: list[bytes]) -> None:
        self._tell_waiting(out)
        if self._open is None or self._open[0] != "text":
            self._start(("text", 0), {"type": "text", "text": ""}, out)
        self._piece({"type": "text_delta", "text": words}, out)

    def _thought(self, thought: Json, out: list[bytes]) -> None:
        blocks, number = clean_thinking([thought]), index_in(thought, "index")
        if not blocks:
            return
        self._tell_waiting(out)
        block = blocks[0]
        if number is None:  # pieces come without, from some; another block begins behind a signature
            kind, number = self._open or ("", 0)
            if kind != "thinking" or self._signed:
                number = self._blocks
        if block["type"] == "redacted_thinking":
            self._start((block["type"], number), block, out)
            return
        if self._open != ("thinking", number):
            self._start(("thinking", number), {"type": "thinking", "thinking": "", "signature": ""}, out)
            self._signed = False
        if block["thinking"]:
            self._piece({"type": "thinking_delta", "thinking": block["thinking"]}, out)
        if block["signature"]:
            self._piece({"type": "signature_delta", "signature": block["signature"]}, out)
            self._signed = True

    def _call(self, piece: Json, out: list[bytes]) -> None:
        number = index_in(piece, "index")
        if number is None:  # some give none: what has an id of its own is another call
            known = self._calls.get(self._last_call)
            is_new = known is None or text_in(piece, "id") not in ("", known.call_id)
            number = self._last_call + is_new
        self._last_call = number
        call = self._calls.setdefault(number, _Call())
        function = object_in(piece, "function")
        call.call_id = call.call_id or text_in(piece, "id")
        call.name = call.name or text_in(function, "name")
        arguments = text_in(function, "arguments")
        call.pieces.append(arguments)
        if call.block is not None:
            self._arguments(call, arguments, out)
        elif call.name and self._must_wait():
            self._waiting[number] = call
        elif call.name:
            self._tell(number, call, out)

    def _must_wait(self) -> bool:
        """Whether more may come of the call that is open; asked once of each, as it looks at all of its arguments."""
        if self._open is None or self._open[0] != "tool_use":
            return False
        arguments = "" if self._waiting else "".join(self._calls[self._open[1]].pieces)
        return not arguments or input_of(arguments) is None

    def _tell_waiting(self, out: list[bytes]) -> None:
        for number, call in self._waiting.items():
            self._tell(number, call, out)
        self._waiting.clear()

    def _tell(self, number: int, call: _Call, out: list[bytes]) -> None:
        call_id = id_or_made({"id": call.call_id}, self._answer_id, number)
        call.block = self._blocks
        self._start(("tool_use", number), {"type": "tool_use", "id": call_id, "name": call.name, "input": {}}, out)
        self._arguments(call, "".join(call.pieces), out)

    def _arguments(self, call: _Call, arguments: str, out: list[bytes]) -> None:
        if arguments:
            self._piece({"type": "input_json_delta", "partial_json": arguments}, out, call.block)

    # --- blocks ------------------------------------------------------------------------------------------------------

    def _start(self, what: tuple[str, int], block: Json, out: list[bytes]) -> None:
        self._close(out)
        self._open = what
        out.append(_event("content_block_start", {"index": self._blocks, "content_block": block}))
        self._blocks += 1

    def _piece(self, delta: Json, out: list[bytes], block: Optional[int] = None) -> None:
        at = self._blocks - 1 if block is None else block
        out.append(_event("content_block_delta", {"index": at, "delta": delta}))

    def _close(self, out: list[bytes]) -> None:
        if self._open is not None:
            out.append(_event("content_block_stop", {"index": self._blocks - 1}))
            self._open = None


def _event(name: str, fields: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), dump({"type": name, **fields}))
