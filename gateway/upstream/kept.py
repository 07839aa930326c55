"""What of an event stream is kept, so that another engine's stream can go on where it breaks off.

`Kept` owns the text that the client has been given, and what all events of its stream have in common. It belongs to one
`EventStream`, and is used by that stream's thread. No I/O.
"""

from __future__ import annotations

from typing import Any, Optional

from gateway.upstream.deltas import is_finish

KEPT_MAX_CHARS = 1_048_576  # of text to go on from; a stream with more of it ends where its engine does
KEPT_PIECES = 1_000  # of that text, until they are made one

# What of a delta a stream cannot go on with elsewhere.
_NOT_TEXT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "refusal")


class Kept:
    """The text is kept until there is more of it than can be gone on from, or something that is no text.

    `stamp`: what the stream's events have in common, known with its first one; `restamped`: they get it of another
    stream, after which they come.
    """

    __slots__ = ("_chars", "_first_of_rest", "_pieces", "restamped", "stamp")

    def __init__(self, keep: bool) -> None:
        # In pieces: adding to one text would copy it each time.
        self._pieces: Optional[list[str]] = [] if keep else None
        self._chars = 0
        self._first_of_rest = False
        self.stamp: dict[str, Any] = {}
        self.restamped = False

    @property
    def keeps(self) -> bool:
        """Return whether there is a text to go on from."""
        return self._pieces is not None

    @property
    def text(self) -> Optional[str]:
        """That text; None: there is none."""
        return None if self._pieces is None else "".join(self._pieces)

    def drop(self) -> None:
        """Nobody can go on from what comes now."""
        self._pieces = None

    def continue_from(self, earlier: Kept) -> None:
        """Its stream goes on where another has broken off. Before its first event."""
        text = earlier.text
        self._pieces = None if text is None else [text]
        self._chars = len(text or "")
        self._first_of_rest = True
        self.stamp = earlier.stamp
        self.restamped = True

    def note(self, event: dict[str, Any]) -> bool:
        """Keep what an event says; False for the empty beginning of a stream that goes on: it is not passed on."""
        if self._pieces is None:
            return True
        if not self.stamp:
            self.stamp = {key: event[key] for key in ("id", "created", "model") if key in event}
        choices = event.get("choices")
        if not isinstance(choices, list):
            return True
        choice = choices[0] if choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta")
        content = delta.get("content") if isinstance(delta, dict) else None
        first, self._first_of_rest = self._first_of_rest, self._first_of_rest and not choice
        if isinstance(content, str) and content:
            self._add(content)
        if isinstance(delta, dict) and any(delta.get(key) for key in _NOT_TEXT):
            self._pieces = None
        return not (first and choice and not content and not is_finish(choice.get("finish_reason")))

    def _add(self, text: str) -> None:
        pieces = self._pieces
        if pieces is None:
            return
        self._chars += len(text)
        if self._chars > KEPT_MAX_CHARS:
            self._pieces = None
            return
        pieces.append(text)
        if len(pieces) >= KEPT_PIECES:
            pieces[:] = ["".join(pieces)]
