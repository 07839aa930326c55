"""What a model says, as output items of a Response and the events that tell how they grow.

Sans-I/O: chat chunks, or a whole chat answer, go in; events come out, without the numbers of their places in a stream.
One `Output` per answer, used by one thread at a time. It holds all that was said, which the last events say again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional, Union

from gateway.dialects.dialect import Json
from gateway.dialects.responses.called import Called
from gateway.dialects.responses.speech import Speech
from gateway.dialects.responses.tools import Named
from gateway.dialects.said import Calls, Said


class Output:
    """The items so far: reasoning and messages, of which at most the last is open, and calls, open until the end.

    (Parts of several calls may come by turns; an item that was closed could not go on.)
    """

    def __init__(self, name: str, tools: Mapping[str, Named]) -> None:
        """`name`: a text that tells this answer's items from those of others. `tools`: as the client calls them."""
        self._name = name
        self._tools = tools
        self._items: list[Union[Speech, Called]] = []
        self._speech: Optional[Speech] = None
        self._calls = Calls()
        self._called: dict[int, Called] = {}  # by the call's number

    def take(self, said: Said) -> list[Json]:
        """More has been said: the events that tell it."""
        events: list[Json] = []
        if said.thought:
            events += self._speak("reasoning", "reasoning_text", said.thought)
        if said.text:
            events += self._speak("message", "output_text", said.text, said.logprobs)
        if said.refusal:
            events += self._speak("message", "refusal", said.refusal)
        if self._speech is not None and said.sources:
            events += self._speech.cite(said.sources)
        for place, part in enumerate(said.calls):
            events += self._call(part, place)
        return events

    def close(self, incomplete: bool) -> list[Json]:
        """All has been said; `incomplete`: the last item was cut off. An answer that says nothing is an empty text."""
        events: list[Json] = []
        if not self._items:
            events += self._speak("message", "output_text", "")
        for item in self._items:
            if item is self._items[-1] and incomplete:
                events += item.close("incomplete")
            else:
                events += item.close("completed")
        return events

    def items(self) -> list[Json]:
        """The items as they are; those that are open are `in_progress`."""
        return [item.json() for item in self._items]

    def _speak(self, item_type: str, part_type: str, text: str, logprobs: Optional[list[Json]] = None) -> list[Json]:
        events: list[Json] = []
        if self._speech is None or self._speech.type != item_type:
            events += self._hush()
            self._speech = Speech(item_type, self._name, len(self._items))
            self._items.append(self._speech)
            events += self._speech.open()
        return events + self._speech.say(part_type, text, logprobs or [])

    def _hush(self) -> list[Json]:
        speech, self._speech = self._speech, None
        return [] if speech is None else speech.close("completed")

    def _call(self, part: Json, place: int) -> list[Json]:
        call, piece = self._calls.add(part, place)
        if not call.name:
            return []  # not known yet what it is a call of
        called = self._called.get(call.number)
        if called is not None:
            return called.say(piece)
        events = self._hush()
        called = Called(call, self._tools.get(call.name, Named(call.name, None, False)), self._name, len(self._items))
        self._called[call.number] = called
        self._items.append(called)
        return events + called.open() + called.say(call.arguments)
