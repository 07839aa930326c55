"""What an engine's event stream says, line by line, and what of it the client gets.

Sans-I/O: payload comes in, whole lines go out unchanged and in order. Keeps the rules of a stream's end: it is never
invented (no `finish_reason`, no `[DONE]`), and a finished stream always gets its `[DONE]`. One object per stream,
used by one thread at a time.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, Optional

from gateway.upstream.estimates import weigh
from gateway.upstream.skim import Span, outline

EVENT_MAX_BYTES = 8_388_608
LARGE_BYTES = 262_144  # of one event: beyond, it is skimmed, since one thread relays all streams
KEPT_MAX_CHARS = 1_048_576  # of text to go on from; a stream with more of it ends where its engine does
KEPT_PIECES = 1_000  # of that text, until they are made one

# The text of a delta, still escaped. Only for estimating tokens when the engine reports none. (Unrolled: an alternative
# for each character would keep its place in memory.)
_TEXT = re.compile(rb'"(?:content|text|arguments)":\s?"([^"\\]*(?:\\.[^"\\]*)*)"')

# What of a delta a stream cannot go on with elsewhere.
_NOT_TEXT = ("tool_calls", "function_call", "reasoning_content", "reasoning")


class StreamBroken(Exception):
    """The stream cannot go on: it holds an error, is not an event stream, or ended without finishing.

    `lines` are the whole lines before that, still due to the client.
    """

    lines = b""


class EventStream:
    """State of one stream. `started` = a first event has come; `finished` = every choice has its finish_reason;
    `done` = `[DONE]` has been passed on; `surplus` = something came behind it; `inside` = the last line handed out
    leaves its event open; `usage` = the engine's own figures or None; `text_bytes` = generated text. No event, nor what
    comes before the first one, may be larger than `event_max_bytes`."""

    __slots__ = (
        "_before_bytes",
        "_choices",
        "_event_bytes",
        "_event_max_bytes",
        "_finished_choices",
        "_first_of_rest",
        "_hide_usage",
        "_kept_chars",
        "_kept_text",
        "_partial",
        "_restamped",
        "_skip_blank",
        "alike",
        "done",
        "earlier_chars",
        "earlier_weight",
        "events",
        "inside",
        "stamp",
        "started",
        "surplus",
        "text_bytes",
        "usage",
    )

    def __init__(
        self,
        hide_usage: bool,
        choices: int = 1,
        keep_text: bool = False,
        event_max_bytes: int = EVENT_MAX_BYTES,
    ) -> None:
        self._hide_usage = hide_usage
        self._choices = choices
        self._finished_choices: set[int] = set()
        self._event_max_bytes = event_max_bytes
        self._event_bytes = 0  # of the event whose lines are coming
        self._before_bytes = 0  # before the first event
        self._partial = bytearray()  # of a line
        self._skip_blank = False
        # Around the text of the last event, if that was one delta with one text: between the same bytes, whatever does
        # not end the string is the text of another such delta.
        self.alike: Optional[tuple[bytes, bytes]] = None
        self.started = False
        self.done = False
        self.surplus = False
        self.inside = False
        self.events = 0
        self.text_bytes = 0
        # What the client has been given, to go on from, in pieces: adding to one text would copy it each time.
        self._kept_text: Optional[list[str]] = [] if keep_text else None
        self._kept_chars = 0
        self.earlier_chars = 0  # of `text`, given by an earlier stream
        self.earlier_weight = 0
        self._first_of_rest = False
        self.stamp: dict[str, Any] = {}  # with a kept text: what all events of one stream have in common
        self._restamped = False
        self.usage: Optional[dict[str, Any]] = None

    @property
    def finished(self) -> bool:
        """Whether every choice has its `finish_reason`."""
        return len(self._finished_choices) >= self._choices

    @property
    def text(self) -> Optional[str]:
        """What the client has been given, to go on from; None: it is not kept, or more than can be gone on from."""
        return None if self._kept_text is None else "".join(self._kept_text)

    @property
    def keeps_text(self) -> bool:
        """Whether there is such a text."""
        return self._kept_text is not None

    def feed(self, data: bytes) -> bytes:
        """Take payload, return the whole lines that the client gets. Raises StreamBroken."""
        # The usual payload is one delta: nothing to decide, so it is not parsed (2 instead of 6 us). (`in` would raise
        # and drop an exception each time, before it looks for bytes in bytes.)
        if (
            data.startswith(b"data: {")
            and data.endswith(b"}\n\n")
            and data.count(b"\n") == 2
            and data.count(b'"finish_reason"') == 1  # of several choices, one may finish beside another
            and (data.count(b'"finish_reason":null') or data.count(b'"finish_reason": null'))
            and not data.count(b'"error"')
            and (not data.count(b'"usage"') or data.count(b'"usage":null'))
            and self.started
            and self._kept_text is None
            and not self._restamped
            and not (self._partial or self._skip_blank or self.done)
        ):
            self._note_delta(data)
            return data
        self.alike = None
        end = data.rfind(b"\n") + 1
        if not end:
            self._keep_partial(data, b"")
            return b""
        block = data[:end]
        if self._partial:
            self._partial += block
            block = bytes(self._partial)
            self._partial = bytearray()
        lines = self._lines(block)
        if end < len(data):
            self._keep_partial(data[end:], lines)
        return lines

    def _keep_partial(self, data: bytes, lines: bytes) -> None:
        if self.done:  # nothing of it goes to the client
            self.surplus = self.surplus or bool(data.strip())
            return
        self._partial += data
        if self._event_bytes + len(self._partial) > self._event_max_bytes:
            self._partial = bytearray()
            self._too_large([lines])

    def _too_large(self, before: list[bytes]) -> NoReturn:
        _break_off(StreamBroken(f"the engine sent more than {self._event_max_bytes} bytes for one event"), before)

    def _note_delta(self, data: bytes) -> None:
        spans = [text.span(1) for text in _TEXT.finditer(data)]
        self.events += 1
        self.text_bytes += sum(end - start for start, end in spans)
        self.inside = False
        self._event_bytes = 0
        self.alike = (data[: spans[0][0]], data[spans[0][1] :]) if len(spans) == 1 else None

    def note_alike(self, text_bytes: int) -> None:
        """Another delta has been passed on without `feed`: `alike` with a text of this length between."""
        self.events += 1
        self.text_bytes += text_bytes

    def _lines(self, block: bytes) -> bytes:
        out: list[bytes] = []
        for line in block.splitlines(keepends=True):
            if self.done:
                self.surplus = self.surplus or bool(line.strip())
                continue
            if self._skip_blank and not line.strip():
                self._skip_blank = False
                self._event_bytes = 0
                continue
            self._skip_blank = False
            blank = line.isspace()
            self._event_bytes = 0 if blank else self._event_bytes + len(line)
            if self._event_bytes > self._event_max_bytes:
                self._too_large(out)
            if line.startswith(b"data:") and not self._kept(line[5:].strip(), out):
                self._skip_blank = True
                continue
            if self._restamped and line.startswith(b"data:") and not self.done and len(line) <= LARGE_BYTES:
                line = b"data: %b\n" % json.dumps({**json.loads(line[5:]), **self.stamp}).encode()
            if not self.started:
                self._before_bytes += len(line)
                if self._before_bytes > self._event_max_bytes:
                    self._too_large(out)
            out.append(line)
            self.inside = not blank
        if self.done and self.inside:
            # The blank line that ends [DONE] may come in a later block, after the end.
            out.append(b"\r\n" if out[-1].endswith(b"\r\n") else b"\n")
            self.inside = False
        return b"".join(out)

    def _kept(self, payload: bytes, before: list[bytes]) -> bool:
        try:
            return self._keep(payload)
        except StreamBroken as broken:
            _break_off(broken, before)

    def _keep(self, payload: bytes) -> bool:
        """Note what one event says; False keeps it from the client."""
        if payload == b"[DONE]":
            if not self.finished:
                raise StreamBroken("the engine ended the stream without finishing the answer")
            self.done = True
            return True
        try:
            large = len(payload) > LARGE_BYTES
            event = outline(payload).members if large else json.loads(payload)
        except (ValueError, RecursionError):
            raise StreamBroken("the engine sent an event that is not JSON") from None
        if not isinstance(event, dict):
            raise StreamBroken("the engine sent an event that is not an object")
        error = event.get("error")
        if error:
            text = error.get("message") if isinstance(error, dict) else "a long one" if large else error
            raise StreamBroken(f"the engine reported an error: {str(text)[:500]}")
        self.started = True
        self.events += 1
        usage = event.get("usage")
        if isinstance(usage, dict):
            self.usage = usage
        if large:
            self._kept_text = None  # so nobody can go on from it
        if self._kept_text is not None and not self.stamp:
            self.stamp = {key: event[key] for key in ("id", "created", "model") if key in event}
        choices = event.get("choices")
        if self._kept_text is not None and isinstance(choices, list) and not self._note_text(choices):
            return False
        if isinstance(choices, list):
            for choice in choices:
                if isinstance(choice, dict) and choice.get("finish_reason") is not None and not self.finished:
                    index = choice.get("index")
                    self._finished_choices.add(index if type(index) is int else 0)
            if large:
                self.text_bytes += _large_text_bytes(choices)
            else:
                self.text_bytes += sum(text.end(1) - text.start(1) for text in _TEXT.finditer(payload))
        return not (self._hide_usage and isinstance(usage, dict) and choices == [])

    def _note_text(self, choices: list[Any]) -> bool:
        """Keep the text that is passed on; False for the empty beginning of a stream that goes on after another."""
        choice = choices[0] if choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta")
        content = delta.get("content") if isinstance(delta, dict) else None
        first, self._first_of_rest = self._first_of_rest, self._first_of_rest and not choice
        if isinstance(content, str) and content:
            self._keep_text(content)
        if isinstance(delta, dict) and any(delta.get(key) for key in _NOT_TEXT):
            self._kept_text = None  # cannot be continued as text
        return not (first and choice and not content and choice.get("finish_reason") is None)

    def _keep_text(self, text: str) -> None:
        kept = self._kept_text
        if kept is None:
            return
        self._kept_chars += len(text)
        if self._kept_chars > KEPT_MAX_CHARS:
            self._kept_text = None
            return
        kept.append(text)
        if len(kept) >= KEPT_PIECES:
            kept[:] = ["".join(kept)]

    def go_on(self, earlier: EventStream) -> None:
        """This stream goes on where `earlier` has broken off. Before its first event."""
        text = earlier.text
        self._kept_text = None if text is None else [text]
        self._kept_chars = self.earlier_chars = len(text or "")
        self.earlier_weight = weigh(text or "")
        self.stamp = earlier.stamp
        self._restamped = True
        self._first_of_rest = True

    def end(self) -> bytes:
        """The engine has sent everything: what is still due to the client. Raises StreamBroken if it had not
        finished."""
        rest = b""
        if self._partial and not self.done:
            partial, self._partial = bytes(self._partial), bytearray()
            rest = self._lines(partial + b"\n")
        if self.done:
            return rest
        if not self.finished:
            raise StreamBroken("the engine ended the stream without finishing the answer")
        self.done = True
        closing = b"\n" if self.inside else b""
        return rest + closing + b"data: [DONE]\n\n"


def _break_off(broken: StreamBroken, before: list[bytes]) -> NoReturn:
    broken.lines = b"".join(before)
    raise broken


def _large_text_bytes(choices: list[Any]) -> int:
    """About the bytes of text in the outlines of choices."""
    total = 0
    for choice in choices:
        delta = choice.get("delta", choice) if isinstance(choice, dict) else choice
        for value in delta.values() if isinstance(delta, dict) else (delta,):
            if isinstance(value, Span):
                total += value.end - value.start
            elif isinstance(value, str):
                total += len(value)
    return total
