"""What an event stream says, as a load test needs it: how many events had text, when it is over, what it has used.

Sans-I/O: payload goes in as it comes, cut anywhere. One object for one stream and one thread.
"""

from __future__ import annotations

import json
import re
from typing import Any, Optional

EVENT_MAX_BYTES = 4 << 20
LINE_BYTES = 64  # that a line takes beside its text
LEARNT_BYTES = 65_536
"""Of an event that others may be alike to: to look into a larger one takes a hundred times its size."""
DONE = b"[DONE]"
_ENDS = ("message_stop", "response.completed", "response.incomplete")  # Anthropic's; Responses
_FAILURES = ("error", "response.failed")
_TEXTS = ("content", "reasoning_content", "reasoning", "tool_calls", "refusal")  # of a delta
_TEXT_KEY = b'"content":"'
_STRING = re.compile(rb'(?:[^"\\]|\\.)*"')


class Events:
    """State of one stream. `texts`: events with text so far; `error`: what an error event said, or what is wrong."""

    __slots__ = (
        *("_alike", "_data", "_further", "_further_bytes", "_left"),
        *("completion_tokens", "done", "error", "prompt_tokens", "texts"),
    )

    def __init__(self) -> None:
        self._left = b""
        self._data: Optional[bytes] = None  # the first line
        self._further: list[bytes] = []  # of an event in several lines, those behind it
        self._further_bytes = 0
        self._alike: Optional[tuple[bytes, bytes]] = None  # around the text of an event, as the last one had it
        self.texts = 0
        self.done = False
        self.error: Optional[str] = None
        self.completion_tokens: Optional[int] = None
        self.prompt_tokens: Optional[int] = None

    def feed(self, payload: bytes) -> None:
        """Take the next bytes."""
        lines = (self._left + payload if self._left else payload).split(b"\n")
        self._left = lines.pop()
        if len(self._left) > EVENT_MAX_BYTES:
            self.error, self._left = self.error or "an event that is too large", b""
        for line in lines:
            if line[-1:] == b"\r":
                line = line[:-1]
            if not line:
                if self._data is not None:
                    self._event(b"\n".join((self._data, *self._further)) if self._further else self._data)
                    self._data = None
                    if self._further:
                        self._further, self._further_bytes = [], 0
            elif line.startswith(b"data:"):
                text = line[6:] if line[5:6] == b" " else line[5:]
                if self._data is None:
                    self._data = text
                else:
                    self._add(text)

    def _add(self, text: bytes) -> None:
        self._further.append(text)
        self._further_bytes += len(text) + LINE_BYTES
        if self._further_bytes > EVENT_MAX_BYTES:
            self.error = self.error or "an event that is too large"
            self._data, self._further, self._further_bytes = None, [], 0

    def end(self) -> None:
        """The stream is over: a last event may lack its empty line."""
        self.feed(b"\n\n" if self._left else b"\n")

    def _event(self, data: bytes) -> None:
        if self._alike is not None and self._is_alike(data, *self._alike):
            self.texts += 1
            return
        if data == DONE:
            self.done = True
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            self.error = self.error or "an event that is not JSON"
            return
        if type(event) is not dict:
            self.error = self.error or "an event that is no object"
            return
        kind = event.get("type")
        if event.get("error") or kind in _FAILURES:
            self.error = self.error or f"error event: {error_name(event)}"
            return
        if kind in _ENDS:
            self.done = True
        completion, prompt = usage_of(event)
        self.completion_tokens = self.completion_tokens if completion is None else completion
        self.prompt_tokens = self.prompt_tokens if prompt is None else prompt
        if _has_text(event, kind):
            self.texts += 1
            self._learn(data)

    def _learn(self, data: bytes) -> None:
        """Between the same bytes, whatever ends no string is the text of another such event (5 us less each)."""
        if len(data) > LEARNT_BYTES:
            return
        begin = data.find(_TEXT_KEY) + len(_TEXT_KEY)
        if begin >= len(_TEXT_KEY) and data.count(_TEXT_KEY) == 1 and b'"usage":{' not in data:
            string = _STRING.match(data, begin)
            if string is not None:
                self._alike = data[:begin], data[string.end() - 1 :]

    @staticmethod
    def _is_alike(data: bytes, before: bytes, behind: bytes) -> bool:
        size = len(data) - len(behind)
        if size <= len(before) or not (data.startswith(before) and data.endswith(behind)):
            return False
        return data.find(b'"', len(before), size) < 0 and data.find(b"\\", len(before), size) < 0


def _has_text(event: dict[str, Any], kind: object) -> bool:
    choices = event.get("choices")
    if type(choices) is list:
        for choice in choices:
            if type(choice) is dict:
                delta = choice.get("delta")
                if choice.get("text") or (type(delta) is dict and any(delta.get(name) for name in _TEXTS)):
                    return True
        return False
    return type(kind) is str and (kind == "content_block_delta" or kind.endswith(".delta"))


def usage_of(answer: dict[str, Any]) -> tuple[Optional[int], Optional[int]]:
    """Completion and prompt tokens that an answer or event tells, in OpenAI's words or Anthropic's; None: it does
    not."""
    for holder in (answer, answer.get("response"), answer.get("message")):
        usage = holder.get("usage") if type(holder) is dict else None
        if type(usage) is dict:
            completion = usage.get("completion_tokens", usage.get("output_tokens"))
            prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
            return _count(completion), _count(prompt)
    return None, None


def _count(value: object) -> Optional[int]:
    return value if type(value) is int and 0 <= value < 1 << 40 else None


def error_name(answer: object) -> str:
    """The code, type or message of an error as servers tell it, short enough to be counted under; "" when none does."""
    error: Any = answer
    for name in ("response", "error"):
        if type(error) is dict and error.get(name):
            error = error[name]
    if type(error) is dict:
        texts = (error.get(name) for name in ("code", "type", "message"))
        error = next((text for text in texts if text and type(text) in (str, int)), "")
    text = str(error) if type(error) in (str, int) else ""
    return " ".join("".join(one if one.isprintable() else " " for one in text[:60]).split())
