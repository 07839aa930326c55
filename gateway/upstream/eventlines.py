"""An event stream's lines, read as its standard says (WHATWG HTML, "Server-sent events"), passed on as they came.

Sans-I/O: payload comes in, whole lines go out unchanged and in order. Lines of an event are held back until it is known
whether the client gets it: usually its one line of data tells at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Optional, Union

from gateway.upstream.sniff import BOM

UNDECIDED = b""
HELD_LINE_BYTES = 32  # that a line which is held back counts more: so long is the work that a short one makes


class StreamBroken(Exception):
    """The stream cannot go on: it holds an error, is not an event stream, or ended without finishing.

    `lines` are the whole lines before that, still due to the client; `details` as those of an `Outcome`.
    """

    lines = b""
    details: Optional[dict[str, object]] = None


class EventLines:
    """The lines of one stream; what its events say is judged by a subclass. Used by one thread at a time.

    `started` = a first event has come; `done` = `[DONE]` has been passed on; `surplus` = something came behind it;
    `inside` = the last line handed out leaves its event open. No event, nor what comes before the first one, may be
    larger than `event_max_bytes`."""

    __slots__ = (
        "_before_bytes",
        "_begins",
        "_data",
        "_dropped",
        "_event_bytes",
        "_event_max_bytes",
        "_first_line",
        "_gave",
        "_gave_cr",
        "_held",
        "_kind",
        "_last_cr",
        "_partial",
        "done",
        "inside",
        "started",
        "surplus",
    )

    def __init__(self, event_max_bytes: int) -> None:
        self._event_max_bytes = event_max_bytes
        self._event_bytes = 0  # of the event whose lines are coming
        self._before_bytes = 0  # before the first event
        self._partial = bytearray()  # of a line
        self._first_line = True  # comes next
        self._begins = True  # the client's stream; else it goes on after another
        self._held = bytearray()  # lines of an event of which it is not known yet whether the client gets it
        self._data: Optional[bytearray] = None  # what its lines of data say, where one did not tell
        self._kind = b""  # its `event:`
        self._dropped = False  # the event whose lines are coming is kept from the client
        self._last_cr = False  # the last line ended with a CR; a LF behind it is of the same line's end
        self._gave = False  # the client has got the last line
        self._gave_cr = False  # the last byte that it has got is a CR
        self.started = False
        self.done = False
        self.surplus = False
        self.inside = False

    # --- what a subclass says of an event ----------------------------------------------------------------------------

    def _judge(self, payload: bytes, whole: bool) -> Optional[bytes]:
        """What the client gets of an event with this data: `payload` itself, other data, or None: nothing of it.

        UNDECIDED: only more of the event can tell; never said when the event is `whole`. Raises StreamBroken.
        """
        raise NotImplementedError

    def _end_told(self) -> None:
        """`[DONE]` has come. Raises StreamBroken if that cannot be."""
        raise NotImplementedError

    # --- lines -------------------------------------------------------------------------------------------------------

    def take(self, data: bytes) -> bytes:
        """Take payload, return the lines that the client gets now. Raises StreamBroken."""
        out: list[bytes] = []
        try:
            if self._last_cr and data.startswith(b"\n") and not self._partial:
                self._late_lf(out)
                data = data[1:]
            end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
            if end:
                block = data[:end] if not self._partial else bytes(self._partial + data[:end])
                self._partial = bytearray()
                for line in block.splitlines(keepends=True):
                    self._line(line, out)
            if end < len(data):
                self._keep_partial(data[end:])
        except StreamBroken as broken:
            broken.lines = b"".join(out)
            raise
        return b"".join(out)

    def take_rest(self) -> bytes:
        """The engine has sent everything: take an event that it has not ended as if it had. Raises StreamBroken."""
        out: list[bytes] = []
        partial, self._partial = bytes(self._partial), bytearray()
        try:
            if _field(partial) == b"data":
                self._line(partial + b"\n", out)
            if self._data is not None or self._kind == b"error":
                self._end_event(out)
        except StreamBroken as broken:
            broken.lines = b"".join(out)
            raise
        return b"".join(out)

    @property
    def closing(self) -> bytes:
        """What ends the event that the client's last line leaves open, if it does: what follows is to be one of its
        own."""
        if not self.inside:
            return b""
        return b"\r\n" if self._gave_cr else b"\n"

    def _keep_partial(self, data: bytes) -> None:
        if self.done:  # nothing of it goes to the client
            self.surplus = self.surplus or bool(data.strip())
            return
        self._partial += data
        if self._event_bytes + len(self._partial) > self._event_max_bytes:
            self._partial = bytearray()
            self._too_large()

    def _too_large(self) -> None:
        raise StreamBroken(f"the engine sent more than {self._event_max_bytes} bytes for one event")

    def _late_lf(self, out: list[bytes]) -> None:
        """The LF of a CR LF that was cut between them: it goes where the CR went."""
        self._last_cr = False
        if self.done:
            return
        if self._held:
            self._held += b"\n"
        elif self._gave:
            out.append(b"\n")
            self._gave_cr = False

    def _line(self, line: bytes, out: list[bytes]) -> None:
        if self.done:
            self.surplus = self.surplus or bool(line.strip())
            return
        text = line.rstrip(b"\r\n")
        if self._first_line:
            self._first_line = False
            if text.startswith(BOM):
                text = text[len(BOM) :]
                line = line if self._begins else line[len(BOM) :]
        behind_cr, self._last_cr = self._last_cr, line.endswith(b"\r")
        if not text:
            self._blank(line, out)
            return
        self._event_bytes += len(text) + 1
        if self._event_bytes > self._event_max_bytes:
            self._too_large()
        if text.startswith(b"data:"):
            payload = text[5:].strip()
            if payload == b"[DONE]" and self._data is None and self._kind != b"error":
                self._last(line, behind_cr, out)
            else:
                self._data_line(line, payload, out)
            return
        name, _, value = text.partition(b":")
        if name == b"data":
            self._data_line(line, b"", out)
        elif name == b"error" and value.startswith((b"{", b" {")):  # llama.cpp's, until September 2025
            self._kind = name
            self._data_line(line, value.strip(), out)
        elif self._held or name in (b"event", b"id"):
            if name == b"event":
                self._kind = value.strip()
            self._hold(line)
        else:
            self._give(line, out)

    def _hold(self, line: bytes) -> None:
        self._held += line
        self._event_bytes += HELD_LINE_BYTES

    def _data_line(self, line: bytes, payload: bytes, out: list[bytes]) -> None:
        if self._data is not None or not payload:  # what one line does not tell; or nothing, unless more follows
            self._hold(line)
            if self._data is not None:
                self._data += b"\n" + payload
            return
        shown = self._judge(payload, False)
        if shown is payload and not self._held:  # the usual event
            self._dropped = False
            self._give(line, out)
            return
        self._held += line
        if shown == UNDECIDED:
            self._data = bytearray(payload)
        else:
            self._decided(payload, shown, out)

    def _last(self, line: bytes, behind_cr: bool, out: list[bytes]) -> None:
        """Pass `[DONE]` on, and at once the blank line that ends it, which may come later or never.

        Whether a CR at the end of the payload ends the line or half of it has come is not known yet: it is as before.
        """
        self._end_told()
        end = b"\n" if not line.endswith((b"\r\n", b"\r")) else b"\r" if behind_cr else b"\r\n"
        self._decided(UNDECIDED, UNDECIDED, out)  # what is held
        self._give(line.rstrip(b"\r\n") + end + end, out)
        self.done = True
        self.inside = False

    def _blank(self, line: bytes, out: list[bytes]) -> None:
        if self._held:
            self._end_event(out)
        self._event_bytes = 0
        dropped, self._dropped = self._dropped, False
        if dropped and not self.inside:
            self._gave = False
            return
        self._give(line, out)
        self.inside = False

    def _end_event(self, out: list[bytes]) -> None:
        """Decide on the event whose lines have come."""
        if self._data is not None:
            payload = bytes(self._data)
            self._decided(payload, self._judge(payload, True), out)
        elif self._kind == b"error":
            raise StreamBroken("the engine reported an error")
        else:
            self._decided(UNDECIDED, None if self._dropped else UNDECIDED, out)

    def _decided(self, payload: bytes, shown: Optional[bytes], out: list[bytes]) -> None:
        """Hand out the lines held, with `shown` as their data instead of `payload`; None: but for what is not of the
        event itself."""
        held, self._held, self._data = bytes(self._held), bytearray(), None
        self._kind = b""
        self._dropped = shown is None
        if shown is None:
            held = b"".join(line for line in held.splitlines(keepends=True) if line.startswith((b":", b"retry:")))
        elif shown is not payload:
            held = b"".join(_with_data(held.splitlines(keepends=True), payload, shown))
        if held:
            self._give(held, out)
        self._gave = shown is not None

    def _give(self, lines: bytes, out: list[bytes]) -> None:
        if not self.started:
            self._before_bytes += len(lines.replace(b"\r\n", b"\n"))  # however a line's end was cut
            if self._before_bytes > self._event_max_bytes:
                self._too_large()
        out.append(lines)
        self._gave = self.inside = True
        self._gave_cr = self._last_cr and lines.endswith(b"\r")


def events_in(lines: Union[bytes, bytearray], max_bytes: Optional[int] = None) -> Iterator[Any]:
    """The JSON of the events in lines that have been handed out, but for `[DONE]`. An event's data is handed out at
    once. Raises ValueError, also for one of more than `max_bytes` (None: any)."""
    begun: list[bytes] = []
    size = 0  # of the event whose lines come
    for line in (*lines.removeprefix(BOM).splitlines(), b""):
        size = size + len(line) if begun else len(line)
        if max_bytes is not None and size > max_bytes:
            raise ValueError("a large event")
        name, _, value = line.partition(b":")
        payload = bytes(value.strip())
        if name == b"data" and begun:
            begun.append(payload)
        elif name == b"data" and payload not in (b"", b"[DONE]"):
            try:
                # Not kept here: as objects, an event may be 25 times as large.
                yield json.loads(payload.decode("utf-8", "replace"))
            except ValueError:
                begun.append(payload)
        elif not line and begun:
            yield json.loads(b"\n".join(begun).decode("utf-8", "replace"))
            begun.clear()


def _with_data(lines: list[bytes], payload: bytes, shown: bytes) -> list[bytes]:
    """The lines of an event with other data."""
    data = [line for line in lines if _field(line) == b"data"]
    if len(data) == 1:
        return [line.replace(payload, shown, 1) if line is data[0] else line for line in lines]
    end = data[-1][len(data[-1].rstrip(b"\r\n")) :]
    others = [line for line in lines if _field(line) != b"data"]
    return [*others, *(b"data: " + part + end for part in shown.split(b"\n"))]


def _field(line: bytes) -> bytes:
    return line.removeprefix(BOM).rstrip(b"\r\n").partition(b":")[0]
