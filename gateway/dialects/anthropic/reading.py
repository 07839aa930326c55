"""The events of an engine's message as chat chunks. One `MessagesReader` per stream, used by one thread at a time.

An event that cannot be read ends the stream with an error, as it would in chat; one of a type that is not known, or
without what belongs to its type, says nothing.
"""

from __future__ import annotations

from typing import Any, Optional

from gateway.dialects.anthropic.endings import USAGE_FIELDS, beside_finish, chat_usage, finish_of
from gateway.dialects.anthropic.errors import chat_error
from gateway.dialects.anthropic.places import Places
from gateway.dialects.anthropic.tools import arguments_of
from gateway.dialects.cutting import Cutter
from gateway.dialects.dialect import Json, dump
from gateway.dialects.reading import decode, index_in, object_in, text_in

ALIVE = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
VALUES_MAX = 100_000  # of an event, as one thread reads all streams
BLOCKS_MAX = 1_024  # that have begun and not ended


class _Block:
    """A block under way: the call or the thinking with this number among its kind."""

    __slots__ = ("is_call", "number", "said")

    def __init__(self, is_call: bool, number: int) -> None:
        self.is_call = is_call
        self.number = number
        self.said = False  # a call's arguments have begun, or thinking


class MessagesReader:
    """`created_s` stands in every chunk. The last one before `[DONE]` has the usage, if the engine has told any."""

    def __init__(self, created_s: int) -> None:
        self._cutter = Cutter()
        self._common: Json = {"id": "", "object": "chat.completion.chunk", "created": created_s, "model": ""}
        self._blocks: dict[int, _Block] = {}
        self._calls = 0
        self._thoughts = 0
        self._places = Places()
        self._usage: Json = {}
        self._finished = False
        self._ended = False
        self._handlers = {
            "message_start": self._message_start,
            "content_block_start": self._block_start,
            "content_block_delta": self._block_delta,
            "content_block_stop": self._block_stop,
            "message_delta": self._message_delta,
            "message_stop": self._message_stop,
        }

    @property
    def held_bytes(self) -> int:
        """What is kept of an event that has not ended; who feeds bounds it."""
        return self._cutter.held_bytes

    def feed(self, data: bytes) -> bytes:
        """The chunks for the engine's bytes; a comment for a `ping`. Nothing follows `[DONE]` or an error."""
        out: list[bytes] = []
        for event in self._cutter.feed(data):
            if self._ended:
                break
            if event.is_comment:
                out.append(ALIVE)
            else:
                self._event(event.name, event.data, out)
        return b"".join(out)

    def _event(self, name: bytes, data: bytes, out: list[bytes]) -> None:
        try:
            said: Any = decode(data.decode(), VALUES_MAX)
        except ValueError:
            said = None
        if type(said) is not dict:
            said = _fault("the engine sent an event that is no JSON object, or too much for one")
        kind = text_in(said, "type")
        if len(self._blocks) > BLOCKS_MAX:
            said = _fault(f"the engine has begun more than {BLOCKS_MAX} blocks without ending one")
            kind = "error"
        if kind == "error" or name == b"error":
            self._ended = True
            out.append(b"data: %b\n\n" % dump(chat_error(said)))
        elif kind == "ping":
            out.append(ALIVE)
        elif kind in self._handlers:
            self._handlers[kind](said, out)

    def _tell(self, out: list[bytes], delta: Json, finish: Optional[str] = None, **fields: Any) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, **fields}
        out.append(b"data: %b\n\n" % dump({**self._common, "choices": [choice]}))

    # --- the message -------------------------------------------------------------------------------------------------

    def _message_start(self, event: Json, out: list[bytes]) -> None:
        message = event.get("message")
        if type(message) is not dict:
            return
        self._common["id"], self._common["model"] = text_in(message, "id"), text_in(message, "model")
        self._note_usage(message.get("usage"))
        self._usage.pop("output_tokens", None)  # of what is still to be written: no figure
        self._tell(out, {"role": "assistant", "content": ""})

    def _message_delta(self, event: Json, out: list[bytes]) -> None:
        self._note_usage(event.get("usage"))
        delta = object_in(event, "delta")
        if text_in(delta, "stop_reason") and not self._finished:
            self._finished = True
            self._tell(out, {}, finish_of(delta), **beside_finish(delta))

    def _message_stop(self, _: Json, out: list[bytes]) -> None:
        if not self._finished:
            self._tell(out, {}, "tool_calls" if self._calls else "stop")
        usage = chat_usage(self._usage)
        if usage is not None:
            out.append(b"data: %b\n\n" % dump({**self._common, "choices": [], "usage": usage}))
        out.append(DONE)
        self._ended = True

    def _note_usage(self, usage: Any) -> None:
        """Later figures are totals, and replace those before; what they leave out stays."""
        if type(usage) is dict:
            self._usage.update({key: usage[key] for key in USAGE_FIELDS if usage.get(key) is not None})

    # --- its blocks --------------------------------------------------------------------------------------------------

    def _block_start(self, event: Json, out: list[bytes]) -> None:
        at, block = index_in(event, "index"), event.get("content_block")
        if at is None or type(block) is not dict:
            return
        kind = block.get("type")
        self._places.block()
        if kind == "text":
            self._text(block, out)
        elif kind == "thinking":
            self._blocks[at] = _Block(False, self._thoughts)
            self._thoughts += 1
            self._thought(self._blocks[at], block, out)
        elif kind == "redacted_thinking":
            thought = {"index": self._thoughts, "type": kind, "data": text_in(block, "data")}
            thought.update(self._places.thinking())
            self._thoughts += 1
            self._tell(out, {"thinking_blocks": [thought]})
        elif kind == "tool_use" and text_in(block, "name"):
            call = self._blocks[at] = _Block(True, self._calls)
            self._calls += 1
            self._places.call()
            arguments = arguments_of(block["input"]) if block.get("input") else ""
            call.said = bool(arguments)
            function = {"name": block["name"], "arguments": arguments}
            begun = {"index": call.number, "id": text_in(block, "id"), "type": "function", "function": function}
            self._tell(out, {"tool_calls": [begun]})

    def _block_delta(self, event: Json, out: list[bytes]) -> None:
        at, delta = index_in(event, "index"), event.get("delta")
        if at is None or type(delta) is not dict:
            return
        kind, block = delta.get("type"), self._blocks.get(at)
        if kind == "text_delta":
            self._text(delta, out)
        elif block is None:
            return
        elif kind == "input_json_delta" and block.is_call:
            self._arguments(block, text_in(delta, "partial_json"), out)
        elif kind in ("thinking_delta", "signature_delta") and not block.is_call:
            self._thought(block, delta, out)

    def _block_stop(self, event: Json, out: list[bytes]) -> None:
        at = index_in(event, "index")
        block = None if at is None else self._blocks.pop(at, None)
        if block is not None and block.is_call and not block.said:
            self._arguments(block, "{}", out)

    def _text(self, said: Json, out: list[bytes]) -> None:
        words = text_in(said, "text")
        if words:
            self._places.text(words)
            self._tell(out, {"content": words})

    def _thought(self, block: _Block, said: Json, out: list[bytes]) -> None:
        """Its pieces have the block's number, so that clients put them together as they do calls."""
        fields = {key: said[key] for key in ("thinking", "signature") if text_in(said, key)}
        if not fields:
            return
        place = {} if block.said else self._places.thinking()
        block.said = True
        delta: Json = {"thinking_blocks": [{"index": block.number, "type": "thinking", **fields, **place}]}
        if "thinking" in fields:
            delta["reasoning_content"] = fields["thinking"]
        self._tell(out, delta)

    def _arguments(self, block: _Block, arguments: str, out: list[bytes]) -> None:
        if arguments:
            block.said = True
            self._tell(out, {"tool_calls": [{"index": block.number, "function": {"arguments": arguments}}]})


def _fault(message: str) -> Json:
    return {"type": "error", "error": {"message": message}}
