"""An output item that is made of texts: a message, or the reasoning before it. Sans-I/O; no lock."""

from __future__ import annotations

from typing import Any

from gateway.dialects.dialect import Json

_PREFIXES = {"message": "msg", "reasoning": "rs"}
# Of a part's type: what its events are called, and the key of its text.
_PARTS = {
    "output_text": ("response.output_text", "text"),
    "refusal": ("response.refusal", "refusal"),
    "reasoning_text": ("response.reasoning_text", "text"),
}


class Speech:
    """One item. Its parts follow each other; only the last may be open."""

    def __init__(self, item_type: str, name: str, index: int) -> None:
        """`index`: of the item, in the output. `name`: of the answer."""
        self.type = item_type
        self._id = f"{_PREFIXES[item_type]}_{name}_{index}"
        self._index = index
        self._status = "in_progress"
        self._parts: list[_Part] = []

    def json(self) -> Json:
        """The item as it is."""
        item: Json = {"id": self._id, "type": self.type, "status": self._status}
        content = [part.json() for part in self._parts]
        if self.type == "reasoning":
            return {**item, "summary": [], "content": content}
        return {**item, "role": "assistant", "content": content}

    def open(self) -> list[Json]:
        return [{"type": "response.output_item.added", "output_index": self._index, "item": self.json()}]

    def say(self, part_type: str, text: str, logprobs: list[Json]) -> list[Json]:
        """More text, in a part of this type."""
        events: list[Json] = []
        if not self._parts or self._parts[-1].type != part_type:
            events += self._close_part()
            part = _Part(part_type)
            self._parts.append(part)
            events.append(self._event("response.content_part.added", part=part.json()))
        part = self._parts[-1]
        if text:
            part.add(text, logprobs)
            events.append(self._event(f"{part.events}.delta", delta=text, **part.told(logprobs)))
        return events

    def cite(self, sources: list[Json]) -> list[Json]:
        """What the last part's text refers to, if it is one that may."""
        if self._parts[-1].type != "output_text":
            return []
        cited = self._parts[-1].annotations
        events = []
        for source in sources:
            annotation = {"type": "url_citation", **source}
            told = {"annotation_index": len(cited), "annotation": annotation}
            events.append(self._event("response.output_text.annotation.added", **told))
            cited.append(annotation)
        return events

    def close(self, status: str) -> list[Json]:
        """Nothing more comes; [] if that was so before."""
        if self._status != "in_progress":
            return []
        events = self._close_part()
        self._status = status
        return [*events, {"type": "response.output_item.done", "output_index": self._index, "item": self.json()}]

    def _close_part(self) -> list[Json]:
        if not self._parts:
            return []
        part = self._parts[-1]
        done = {part.key: part.text, **part.told(part.logprobs)}
        return [
            self._event(f"{part.events}.done", **done),
            self._event("response.content_part.done", part=part.json()),
        ]

    def _event(self, kind: str, **members: Any) -> Json:
        place = {"item_id": self._id, "output_index": self._index, "content_index": len(self._parts) - 1}
        return {"type": kind, **place, **members}


class _Part:
    """One text."""

    def __init__(self, kind: str) -> None:
        self.type = kind
        self.events, self.key = _PARTS[kind]
        self.logprobs: list[Json] = []
        self.annotations: list[Json] = []
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def add(self, text: str, logprobs: list[Json]) -> None:
        self._pieces.append(text)
        self.logprobs += logprobs

    def told(self, logprobs: list[Json]) -> Json:
        """What an event about its text tells of tokens, which only an answer's text has."""
        return {"logprobs": logprobs} if self.type == "output_text" else {}

    def json(self) -> Json:
        part: Json = {"type": self.type, self.key: self.text}
        if self.type == "output_text":
            part.update(annotations=list(self.annotations), logprobs=list(self.logprobs))
        return part
