"""Many conversations with a gateway at once on one thread, each written as a generator.

A conversation yields bytes (they are sent in one segment, as far as the system lets them be), PAUSE (what was sent
is given time to be read by itself), an `Await` (resumed with the next response, or with an `End`), a `Quiet` or a
`Collect` (resumed with all bytes until the end). Responses are read as a careful client would: whatever it could
not read in one way only ends the conversation with `End("malformed: ...")`.

A `Talks` owns its sockets and its selector; one thread uses it.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple, Optional, Union

TURN_S = 0.0007  # of a turn, when somebody pauses: another thread reads meanwhile what has been sent
RECV_BYTES = 1 << 18
SEND_S = 10.0  # what a server has not taken by then is not sent

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-9][0-9]{2}) [\t\x20-\x7e]*")
_FIELD = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*"
    rb"([\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?[ \t]*"
)


class Answer(NamedTuple):
    """One response. Header names in lower case; `whole`: the body has ended by its framing."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    whole: bool = True

    def header(self, name: bytes) -> bytes:
        """The first header of that name, or nothing."""
        return next((value for key, value in self.headers if key == name), b"")


class End(NamedTuple):
    """There is no further response: `closed`, `reset`, `late`, or `malformed: why`. `rest`: bytes that came instead."""

    why: str
    rest: bytes = b""


class Await(NamedTuple):
    """Wait for the next response. `method`: of its request; `due_s`: how long at most."""

    method: str = "POST"
    due_s: float = 8.0


class Quiet(NamedTuple):
    """Wait until something comes, or the connection ends, or `due_s` have passed: resumed with None."""

    due_s: float = 0.05


class Collect(NamedTuple):
    """Wait until the connection ends, at most `due_s`: resumed with all the bytes that have come."""

    due_s: float = 8.0


PAUSE = "pause"
Step = Union[bytes, Await, Quiet, Collect, str]
Talk = Generator[Step, Any, None]


class Malformed(Exception):
    """A response that could be read in several ways, or in none."""


class _Line:
    """One conversation and its connection."""

    def __init__(self, sock: socket.socket, talk: Talk) -> None:
        self.sock = sock
        self.talk = talk
        self.unsent = b""
        self.buffer = b""
        self.ended: Optional[str] = None
        self.step: Optional[Step] = None
        self.due_s = 0.0
        self.fresh = False  # something has come since it was last looked at


class Talks:
    """Runs conversations with servers on this machine, `at_once` at a time."""

    def __init__(self, at_once: int = 96) -> None:
        self._at_once = at_once
        self._selector = selectors.DefaultSelector()
        self._lines: set[_Line] = set()

    def run(self, talks: Iterator[tuple[int, Talk]]) -> None:
        """Hold all of them, each with the server on its port; each is begun when there is room for it."""
        more = True
        try:
            while more or self._lines:
                while more and len(self._lines) < self._at_once:
                    talk = next(talks, None)
                    if talk is None:
                        more = False
                        break
                    self._begin(*talk)
                self._turn()
        finally:
            for line in list(self._lines):
                self._drop(line)
            self._selector.close()

    def _begin(self, port: int, talk: Talk) -> None:
        sock = socket.create_connection(("127.0.0.1", port), timeout=10.0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        line = _Line(sock, talk)
        self._lines.add(line)
        self._selector.register(sock, selectors.EVENT_READ, line)
        self._resume(line, None)

    def _turn(self) -> None:
        pausing = [line for line in self._lines if line.step == PAUSE or line.unsent]
        for key, _ in self._selector.select(TURN_S if pausing else 0.02):
            self._read(key.data)
        if pausing:
            time.sleep(TURN_S)
        now_s = time.monotonic()
        for line in list(self._lines):
            if line in pausing:
                line.step = None if line.step == PAUSE else line.step
                if self._flush(line) and line.step is None:
                    self._resume(line, None)
            elif isinstance(line.step, Await):
                if line.fresh or line.ended or now_s > line.due_s:
                    self._look(line, now_s)
            elif isinstance(line.step, Collect):
                if line.ended or now_s > line.due_s:
                    self._resume(line, line.buffer)
            elif isinstance(line.step, Quiet) and (line.fresh or line.ended or now_s > line.due_s):
                self._resume(line, None)

    def _read(self, line: _Line) -> None:
        if line not in self._lines:
            return
        try:
            data = line.sock.recv(RECV_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
            line.ended = "reset"
        if not data:
            line.ended = line.ended or "closed"
            self._selector.unregister(line.sock)
        line.buffer += data
        line.fresh = True

    def _look(self, line: _Line, now_s: float) -> None:
        line.fresh = False
        assert isinstance(line.step, Await)
        try:
            found = take_response(line.buffer, line.step.method, line.ended is not None)
        except Malformed as error:
            self._resume(line, End(f"malformed: {error}", line.buffer))
            return
        if found is not None:
            answer, line.buffer = found
            self._resume(line, answer)
        elif line.ended or now_s > line.due_s:
            self._resume(line, End(line.ended or "late", line.buffer))

    def _flush(self, line: _Line) -> bool:
        """Send what is left; True when nothing is, or when it is given up."""
        if not line.unsent:
            return True
        try:
            line.unsent = line.unsent[line.sock.send(line.unsent) :]
        except BlockingIOError:
            if time.monotonic() < line.due_s:
                return False
            line.unsent = b""
        except OSError:
            line.unsent = b""  # the server has closed: what it said before is still read
        return not line.unsent

    def _resume(self, line: _Line, value: Any) -> None:
        while True:
            try:
                step = line.talk.send(value)
            except StopIteration:
                self._drop(line)
                return
            value = None
            line.step = step
            if isinstance(step, bytes):
                line.unsent = step
                line.step = None
                line.due_s = time.monotonic() + SEND_S
                if not self._flush(line):
                    return
                continue
            if not isinstance(step, str):
                line.due_s = time.monotonic() + step.due_s
                line.fresh = line.fresh or bool(line.buffer) or line.ended is not None
            return

    def _drop(self, line: _Line) -> None:
        self._lines.discard(line)
        try:
            self._selector.unregister(line.sock)
        except (KeyError, ValueError):
            pass
        line.sock.close()
        line.talk.close()


def take_response(buffer: bytes, method: str, ended: bool) -> Optional[tuple[Answer, bytes]]:
    """The first response in `buffer` and what follows it; None: more is to come. Raises Malformed."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if buffer and ended:
            raise Malformed("a head without an end")
        return None
    status, headers = _head(buffer[:end])
    rest = buffer[end + 4 :]
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1:
        raise Malformed("several framings")
    if status < 200 or status in (204, 304) or method == "HEAD":
        return Answer(status, headers, b""), rest
    if codings:
        if codings[0] != b"chunked":
            raise Malformed(f"coding {codings[0]!r}")
        return _chunked(status, headers, rest, ended)
    if lengths:
        if not re.fullmatch(rb"[0-9]{1,15}", lengths[0]):
            raise Malformed(f"length {lengths[0]!r}")
        length = int(lengths[0])
        if len(rest) < length:
            return (Answer(status, headers, rest, False), b"") if ended else None
        return Answer(status, headers, rest[:length]), rest[length:]
    if not any(name == b"connection" and value == b"close" for name, value in headers):
        raise Malformed("no framing, and the connection stays open")
    return (Answer(status, headers, rest), b"") if ended else None


def _head(block: bytes) -> tuple[int, tuple[tuple[bytes, bytes], ...]]:
    first, *lines = block.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None:
        raise Malformed(f"status line {first[:100]!r}")
    headers = []
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise Malformed(f"header line {line[:100]!r}")
        headers.append((field[1].lower(), field[2] or b""))
    return int(match[1]), tuple(headers)


def _chunked(
    status: int, headers: tuple[tuple[bytes, bytes], ...], rest: bytes, ended: bool
) -> Optional[tuple[Answer, bytes]]:
    parts = []
    position = 0
    while True:
        end = rest.find(b"\r\n", position)
        if end < 0:
            break
        digits = rest[position:end]
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", digits):
            raise Malformed(f"chunk size {digits[:50]!r}")
        size = int(digits, 16)
        start, position = end + 2, end + 4 + size
        if len(rest) < position:
            parts.append(rest[start : start + size])
            break
        if rest[start + size : position] != b"\r\n":
            raise Malformed("a chunk longer than it said")
        if not size:
            return Answer(status, headers, b"".join(parts)), rest[position:]
        parts.append(rest[start : start + size])
    return (Answer(status, headers, b"".join(parts), False), b"") if ended else None
