"""What a child and its parent say to each other, as bytes: frames of a length, a head and a body.

A frame is four bytes that say how long the rest is, then a JSON object (the head: whom it concerns, which the parent
reads), a line feed, and JSON (the body: what one child tells another, which the parent passes on unread). Pure: no
socket, no lock; an `Outbox` belongs to one thread, or to who holds its owner's lock.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from typing import Any, NamedTuple

FRAME_MAX_BYTES = 16 * 2**20
OUTBOX_MAX_BYTES = 32 * 2**20
OUTBOX_MAX_FRAMES = 20_000
_LENGTH = struct.Struct("!I")


class FrameError(Exception):
    """What has come is no frame, or none that may come from there."""


class Frame(NamedTuple):
    """One frame: `head["k"]` is its kind; `body` is JSON, or empty."""

    head: dict[str, Any]
    body: bytes

    @property
    def kind(self) -> str:
        return str(self.head["k"])

    def text(self, key: str) -> str:
        """A text of the head. Raises FrameError."""
        value = self.head.get(key)
        if not isinstance(value, str):
            raise FrameError(f"a frame {self.kind!r} without the text {key!r}")
        return value

    def number(self, key: str) -> int:
        """A whole number of the head. Raises FrameError."""
        value = self.head.get(key)
        if type(value) is not int:
            raise FrameError(f"a frame {self.kind!r} without the number {key!r}")
        return value


def pack(kind: str, body: bytes = b"", **head: Any) -> bytes:
    """A frame as bytes. Raises FrameError when it is longer than FRAME_MAX_BYTES."""
    rest = json.dumps({"k": kind, **head}).encode() + b"\n" + body
    if len(rest) > FRAME_MAX_BYTES:
        raise FrameError(f"a frame of {len(rest)} bytes; at most {FRAME_MAX_BYTES} are sent")
    return _LENGTH.pack(len(rest)) + rest


class Unpacker:
    """Makes frames of bytes as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete now. Raises FrameError; what comes behind that is worth nothing."""
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        at = 0
        while len(buffer) - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, at)
            if size > FRAME_MAX_BYTES:
                raise FrameError(f"a frame of {size} bytes; at most {FRAME_MAX_BYTES} are taken")
            begin = at + _LENGTH.size
            if len(buffer) - begin < size:
                break
            frames.append(_parsed(bytes(buffer[begin : begin + size])))
            at = begin + size
        del buffer[:at]
        return frames


def _parsed(rest: bytes) -> Frame:
    text, line_feed, body = rest.partition(b"\n")
    try:
        head = json.loads(text)
    except (ValueError, RecursionError):
        head = None
    if not line_feed or not isinstance(head, dict) or not isinstance(head.get("k"), str):
        raise FrameError(f"a frame of {len(rest)} bytes without a head")
    return Frame(head, body)


class Outbox:
    """Frames on their way to a socket, in order, and no more of them than are worth keeping.

    `dropped`: how many have been turned away since the start.
    """

    def __init__(self, max_bytes: int = OUTBOX_MAX_BYTES, max_frames: int = OUTBOX_MAX_FRAMES) -> None:
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self._frames: deque[memoryview] = deque()
        self._bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: bytes, must: bool = False) -> bool:
        """Add a frame; False when there is no room for it and it is dropped. What `must` be sent always has room."""
        full = self._bytes + len(frame) > self._max_bytes or len(self._frames) >= self._max_frames
        if full and not must:
            self.dropped += 1
            return False
        self._frames.append(memoryview(frame))
        self._bytes += len(frame)
        return True

    def first(self) -> memoryview:
        """What is to be sent next. Only when there is something."""
        return self._frames[0]

    def sent(self, size: int) -> None:
        """So many bytes of `first` have been sent."""
        self._bytes -= size
        rest = self._frames[0][size:]
        if rest:
            self._frames[0] = rest
        else:
            self._frames.popleft()

    def clear(self) -> None:
        """Nobody takes anything any more."""
        self._frames.clear()
        self._bytes = 0
