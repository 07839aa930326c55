"""What an engine's event stream says, event by event, and what of it the client gets.

Sans-I/O (lines: `eventlines.py`; one event's JSON: `deltas.py`). Keeps the rules of a stream's end: it is never
invented (no `finish_reason`, no `[DONE]`), and a finished stream always gets its `[DONE]`. One object per stream,
used by one thread at a time.
"""

from __future__ import annotations

import json
from typing import Any, Optional

from gateway.jsontext import decode_with
from gateway.upstream.deltas import (
    NUMBER,
    OTHER_NUMBER,
    TEXT,
    error_in,
    is_finish,
    number_of,
    text_weight,
    weight_of,
    without_usage,
)
from gateway.upstream.estimates import weigh, weigh_escaped, weight_of_choices
from gateway.upstream.eventlines import UNDECIDED, EventLines
from gateway.upstream.eventlines import StreamBroken as StreamBroken
from gateway.upstream.kept import Kept
from gateway.upstream.nonfinite import dump_with_nulls, has_nonfinite, with_nulls
from gateway.upstream.skim import outline

EVENT_MAX_BYTES = 8_388_608
LARGE_BYTES = 262_144  # of one event: beyond, it is skimmed, since one thread relays all streams
CHOICES_KEPT = 128  # besides those asked for; the ends of more are not looked at


class _NonfiniteNumber(Exception):
    """The JSON holds a number that JSON has no words for."""


def _refuse_nonfinite(name: str) -> None:
    raise _NonfiniteNumber(name)


# A decoder of its own: given to json.loads, the hook would cost one each time.
_decode = decode_with(json.JSONDecoder(parse_constant=_refuse_nonfinite))

# An event's text with null for such numbers, what it says, and where the values of its keys stand, if that is known.
_Read = tuple[bytes, Any, dict[str, tuple[int, int]]]


def _read(payload: bytes) -> _Read:
    """Raises ValueError, RecursionError."""
    try:
        return payload, _decode(payload.decode("utf-8", "replace")), {}
    except _NonfiniteNumber:
        text = with_nulls(payload)
        return text, json.loads(text.decode("utf-8", "replace")), {}


def _read_large(payload: bytes) -> _Read:
    """As `_read`, without making objects of it."""
    text = with_nulls(payload) if has_nonfinite(payload) else payload
    event, places, _ = outline(text)
    return text, event, places


class EventStream(EventLines):
    """State of one stream, besides that of its lines. `finished` = at least one choice has come, and each that has come
    has its finish_reason; `complete` = so have as many as were asked for, or the engine has told its usage behind them;
    `usage` = the engine's own figures or None; `weight` = of the generated text (see `estimates.py`)."""

    __slots__ = (
        "_choices",
        "_ended",
        "_hide_usage",
        "_kept",
        "_numbers",
        "_plain",
        "_told",
        "_under_way",
        "alike",
        "complete",
        "earlier_weight",
        "events",
        "finished",
        "usage",
        "weight",
    )

    def __init__(
        self,
        hide_usage: bool,
        choices: int = 1,
        keep_text: bool = False,
        event_max_bytes: int = EVENT_MAX_BYTES,
    ) -> None:
        super().__init__(event_max_bytes)
        self._hide_usage = hide_usage
        self._choices = choices
        self._under_way: set[int] = set()  # the choices that have come and not ended
        self._ended: set[int] = set()
        self._numbers: set[bytes] = set()  # of all of these, as JSON
        self.finished = False
        self.complete = False
        self._told = False  # the engine has told its usage behind all that has come
        self._plain = False  # what comes next is the beginning of an event of which nothing is known yet
        # Around the text of the last event, if that was one delta with one text: between the same bytes, whatever does
        # not end the string is the text of another such delta.
        self.alike: Optional[tuple[bytes, bytes]] = None
        self.events = 0
        self.weight = 0
        self._kept = Kept(keep_text)
        self.earlier_weight = 0  # of `text`, as far as an earlier stream has given it
        self.usage: Optional[dict[str, Any]] = None

    @property
    def text(self) -> Optional[str]:
        """What the client has been given, to go on from; None: it is not kept, or more than can be gone on from."""
        return self._kept.text

    @property
    def keeps_text(self) -> bool:
        """Whether there is such a text."""
        return self._kept.keeps

    def feed(self, data: bytes) -> bytes:
        """Take payload, return the whole lines that the client gets. Raises StreamBroken."""
        # The usual payload is one delta, and like the one before: nothing to decide, so it is not parsed (0.8 or 3 us
        # instead of 5). (`in` would raise and drop an exception each time, before it looks for bytes in bytes.)
        alike = self.alike
        if alike is not None:
            before, behind = alike
            first, last = len(before), len(data) - len(behind)
            if first < last and data.startswith(before) and data.endswith(behind):
                weight = text_weight(data, first, last)
                if weight >= 0:
                    self.note_alike(weight)
                    return data
        if (
            self._plain
            and data.startswith(b"data: {")
            and data.endswith(b"}\n\n")
            and data.count(b"\n") == 2
            and data.find(b"\r") < 0
            and data.count(b'"finish_reason"') == 1  # of several choices, one may finish beside another
            and (
                data.count(b'"finish_reason":null')
                or data.count(b'"finish_reason": null')
                or data.count(b'"finish_reason":""')
                or data.count(b'"finish_reason": ""')
            )
            and not data.count(b'"error"')
            and (
                not data.count(b'"usage"')
                or data.count(b'"usage"') in (data.count(b'"usage":null'), data.count(b'"usage": null'))
            )
            and (data.find(b"N") < 0 or data.find(b"NaN") < 0)  # one byte is found faster
            and (data.find(b"I") < 0 or data.find(b"Infinity") < 0)
            and self._note_delta(data)
        ):
            return data
        self.alike = None
        self._plain = False
        lines = self.take(data)
        self._plain = (
            self.started
            and not (self._kept.keeps or self._kept.restamped)
            and not (self._partial or self._held or self._dropped or self._last_cr or self.done)
        )
        return lines

    def _note_delta(self, data: bytes) -> bool:
        """Note what a delta says; False: it has to be parsed for that."""
        choices = data.find(b'"choices"')  # what stands before takes time to look through, and tells nothing
        if OTHER_NUMBER.search(data, choices) is None:
            known = b"0" in self._numbers
        else:
            known = self._numbers.issuperset(NUMBER.findall(data) or (b"0",))
        if not known:  # a choice that has not come before
            return False
        text = TEXT.search(data, choices)
        another = None if text is None else TEXT.search(data, text.end())
        if text is not None and another is not None and not text[1]:  # some say each time what they do not say
            text, another = another, TEXT.search(data, another.end())
        while another is not None:
            if another[1]:
                return False
            another = TEXT.search(data, another.end())
        self.events += 1
        self.inside = False
        self._event_bytes = 0
        if text is not None:
            start, end = text.span(1)
            self.weight += weigh_escaped(data[start:end])
            self.alike = (data[:start], data[end:])
        else:
            self.alike = None
        return True

    def note_alike(self, weight: int) -> None:
        """Another delta has been passed on without `feed`: `alike` with a text of this weight between."""
        self.events += 1
        self.weight += weight

    # --- what an event says ------------------------------------------------------------------------------------------

    def _end_told(self) -> None:
        if not self.finished:
            raise StreamBroken("the engine ended the stream without finishing the answer")

    def _judge(self, payload: bytes, whole: bool) -> Optional[bytes]:
        large = len(payload) > LARGE_BYTES
        try:
            text, event, places = _read_large(payload) if large else _read(payload)
        except (ValueError, RecursionError):
            # An object may go on in the next line, and so may an engine's words.
            if not whole and (payload.startswith(b"{") or self._kind == b"error"):
                return UNDECIDED
            if self._kind != b"error":
                raise StreamBroken("the engine sent an event that is not JSON") from None
            event = payload[:500].decode("utf-8", "replace")
        if self._kind == b"error" or (isinstance(event, dict) and event.get("error")):
            words = error_in(event)
            broken = StreamBroken(f"the engine reported an error: {words.message}")
            broken.details = words.details
            raise broken
        if not isinstance(event, dict):
            raise StreamBroken("the engine sent an event that is not an object")
        self.started = True
        self.events += 1
        kept = self._kept
        if large:
            kept.drop()
        if not kept.note(event):
            return None
        choices = event.get("choices")
        if isinstance(choices, list):
            self._note_choices(choices)
            self.weight += weight_of_choices(text, choices) if large else weight_of(text, choices)
        usage = event.get("usage")
        if usage is not None:
            self._note_usage(usage, choices)
            if self._hide_usage:
                if not choices:
                    return None  # the event that was asked for, with what rides on it: clients look at `choices[0]`
                text = without_usage(text, event, places.get("usage"))
                event = {key: value for key, value in event.items() if key != "usage"}
        if kept.restamped and not large:
            text = dump_with_nulls({**event, **kept.stamp})
        return text

    def _note_choices(self, choices: list[Any]) -> None:
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            number = number_of(choice)
            ended = is_finish(choice.get("finish_reason"))
            if number in self._ended or (number in self._under_way and not ended):
                continue
            if number not in self._under_way and len(self._numbers) >= self._choices + CHOICES_KEPT:
                continue
            self._numbers.add(b"%d" % number)
            if ended:
                self._under_way.discard(number)
                self._ended.add(number)
            else:
                self._under_way.add(number)
                self._told = False
        self.finished = bool(self._ended) and not self._under_way
        self.complete = self.finished and (self._told or len(self._ended) >= self._choices)

    def _note_usage(self, usage: Any, choices: Any) -> None:
        if isinstance(usage, dict):
            self.usage = usage
            if not choices and self.finished:  # it says what the answer has taken: nothing more of that will come
                self._told = self.complete = True

    def continue_from(self, earlier: EventStream) -> None:
        """This stream goes on where `earlier` has broken off. Before its first event."""
        self._kept.continue_from(earlier._kept)
        self.earlier_weight = weigh(earlier.text or "")
        self._begins = False

    def end(self) -> bytes:
        """The engine has sent everything: what is still due to the client. Raises StreamBroken if it had not
        finished."""
        lines = self.take_rest()
        if self.done:
            return lines
        if not self.finished:
            broken = StreamBroken("the engine ended the stream without finishing the answer")
            broken.lines = lines
            raise broken
        return lines + self.finish()

    def finish(self) -> bytes:
        """End the stream for the client, whatever the engine has begun to say: `[DONE]` behind what it has got."""
        self._partial = bytearray()
        self._held, self._data = bytearray(), None
        closing, self.inside = self.closing, False
        self.done = True
        return closing + b"data: [DONE]\n\n"
