"""An event stream's bytes, cut anywhere, as its events: server-sent events as the WHATWG HTML standard reads them.

Sans-I/O. One `Cutter` per stream, used by one thread at a time.
"""

from __future__ import annotations

from typing import NamedTuple


class Event(NamedTuple):
    """One event, or a comment (`is_comment`, of which only that it came is told)."""

    name: bytes
    data: bytes
    is_comment: bool = False


COMMENT = Event(b"", b"", True)


class Cutter:
    """Makes events of bytes. What is held is one unfinished event; who feeds it bounds that by `held_bytes`."""

    __slots__ = ("_begun", "_data", "_has_data", "_last_cr", "_name", "_partial")

    def __init__(self) -> None:
        self._partial = bytearray()  # an unfinished line
        self._last_cr = False  # the last byte was a CR: a LF that comes next belongs to it
        self._begun = False  # the first byte of the stream has been seen
        self._name = b""
        self._data = bytearray()
        self._has_data = False

    @property
    def held_bytes(self) -> int:
        """What is kept of an event that has not ended."""
        return len(self._partial) + len(self._data)

    def feed(self, data: bytes) -> list[Event]:
        """The events, and comments, that end within `data`."""
        if self._last_cr and data:
            self._last_cr = False
            if data.startswith(b"\n"):
                data = data[1:]
        if not data:
            return []
        if data.endswith(b"\r"):
            self._last_cr = True
        events: list[Event] = []
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = data.split(b"\n")
        self._partial += lines[0]
        if len(lines) == 1:
            return events
        lines[0] = bytes(self._partial)
        self._partial = bytearray(lines.pop())
        for line in lines:
            self._line(line, events)
        return events

    def _line(self, line: bytes, events: list[Event]) -> None:
        if not self._begun:
            self._begun = True
            if line.startswith(b"\xef\xbb\xbf"):
                line = line[3:]
        if not line:
            if self._has_data:
                events.append(Event(self._name, bytes(self._data)))
            self._name, self._data, self._has_data = b"", bytearray(), False
            return
        if line.startswith(b":"):
            events.append(COMMENT)
            return
        field, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            if self._has_data:
                self._data += b"\n"
            self._data += value
            self._has_data = True
        elif field == b"event":
            self._name = value
