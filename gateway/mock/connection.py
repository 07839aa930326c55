"""One connection of a mock engine: reads requests, writes bytes, waits, and notices that the caller leaves.

Belongs to its own thread; no lock. It is lenient where a test client may be sloppy and bounded in size, and does not
judge smuggling, which is the gateway's business. What it is given to write goes out as it is and in one piece.
"""

from __future__ import annotations

import http
import os
import select
import socket
import socketserver
import struct
import time
from collections.abc import Callable
from typing import Any, Optional

from gateway.mock.state import State

_MAX_HEAD_BYTES = 1 << 17
_MAX_BODY_BYTES = 1 << 27
_TOO_LONG = f"more than {_MAX_HEAD_BYTES} bytes without an end"
_LONGEST_WAIT_S = 60.0
_SHORT_S = 0.001  # poll counts milliseconds; so short a pause is slept
_PEEK = socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0)


class CallerLeft(Exception):
    """The caller closed its connection before the request, or the answer, was complete."""


class EngineClosed(Exception):
    """The mock engine itself closed this connection: it ends, or refuses."""


class ProtocolError(Exception):
    """The bytes are no request that can be answered; its arguments are a status and a text."""


class Connection(socketserver.StreamRequestHandler):
    """One accepted connection and the request read last: header names in lower case, repeated ones joined by a comma.

    Its methods raise CallerLeft or EngineClosed as soon as the other side, or this one, has closed.
    """

    disable_nagle_algorithm = True
    server: Any  # with `state`, and `has_ended` and `forget` for a socket
    keep_alive = True
    chunks = False  # whether the caller understands a chunked answer

    def setup(self) -> None:
        """Called by the server, on the connection's thread."""
        super().setup()
        self.state: State = self.server.state

    def read(self) -> None:
        """Read the next request. Raises ProtocolError for what is none."""
        self._hasty = self.keep_alive = False
        lines: list[str] = []
        size = 0
        while line := self._line():
            lines.append(line)
            size += len(line)
            if size > _MAX_HEAD_BYTES:
                raise ProtocolError(431, _TOO_LONG)
        parts = "".join(lines[:1]).split(" ")
        if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
            raise ProtocolError(400, f"bad request line {' '.join(parts)!r:.80}")
        self.method, self.path = parts[0], parts[1].split("?")[0]
        self.headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise ProtocolError(400, f"bad header line {line!r:.80}")
            name, value = name.strip().lower(), value.strip()
            self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value
        self.body = self._body()
        self.chunks = parts[2] == "HTTP/1.1"
        self.keep_alive = self.chunks and "close" not in self.headers.get("connection", "").lower()

    def _body(self) -> bytes:
        chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        length = "0" if chunked else self.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 16):
            raise ProtocolError(400, f"bad Content-Length {length!r:.80}")
        if int(length) > _MAX_BODY_BYTES:
            raise ProtocolError(413, f"a body of {length} bytes is too large")
        if self.headers.get("expect", "").lower() == "100-continue":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = bytearray(self._exactly(int(length)))
        while chunked:
            line = self._line()
            try:
                size = int(line.partition(";")[0], 16)
            except ValueError:
                raise ProtocolError(400, f"bad chunk size {line.encode('latin-1')!r:.80}") from None
            if size < 0 or len(body) + size > _MAX_BODY_BYTES:
                raise ProtocolError(413, "the chunked body is too large")
            body += self._exactly(size + 2)[:-2] if size else b""
            while size == 0 and self._line():  # trailers, up to the empty line
                pass
            chunked = size > 0
        return bytes(body)

    def _line(self) -> str:
        line = self.rfile.readline(_MAX_HEAD_BYTES)
        if line.endswith(b"\n"):
            return line.rstrip(b"\r\n").decode("latin-1")
        if len(line) == _MAX_HEAD_BYTES:
            raise ProtocolError(431, _TOO_LONG)
        raise CallerLeft

    def _exactly(self, size: int) -> bytes:
        data = self.rfile.read(size) if size else b""
        if len(data) < size:
            raise CallerLeft
        return data

    def head(self, status: int, *lines: str) -> bytes:
        """Return a response head, up to and including its empty line."""
        try:
            phrase = http.HTTPStatus(status).phrase
        except ValueError:
            phrase = "Unknown"
        last = f"Connection: {'keep-alive' if self.keep_alive else 'close'}\r\n\r\n"
        return "\r\n".join((f"HTTP/1.1 {status} {phrase}", *lines, last)).encode("latin-1")

    def whole(self, status: int, body: bytes, *lines: str, media_type: str = "application/json") -> bytes:
        """Return a complete response as the one piece that is to be written."""
        return self.head(status, f"Content-Type: {media_type}", f"Content-Length: {len(body)}", *lines) + body

    def send(self, data: bytes) -> None:
        """Write `data` in one piece."""
        try:
            self.connection.sendall(data)
        except OSError:
            raise self._end() from None

    def reset(self) -> None:
        """Close the connection with a TCP reset: what is unsent is thrown away."""
        self.keep_alive = False
        linger = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.server.forget(self.connection)
        self.connection.close()  # in fact when `rfile` is closed, and without a shutdown before

    def wait_until(self, reached: Callable[[], bool], seconds: Optional[float]) -> None:
        """Wait until `reached()` holds, looked at whenever the bell rings, or `seconds` have passed (None: no end)."""
        ends_at = None if seconds is None else time.monotonic() + seconds
        while True:
            with self.state.bell() as bell:
                if self.server.has_ended(self.connection):
                    raise EngineClosed
                if reached():
                    return
                left_s = _LONGEST_WAIT_S if ends_at is None else min(_LONGEST_WAIT_S, ends_at - time.monotonic())
                if left_s < _SHORT_S:
                    time.sleep(max(0.0, left_s))
                    return
                own = [] if self._hasty else [self.connection]
                woken = readable([*own, bell], left_s)
            if woken and own and readable(own, 0):
                self._look()

    def _look(self) -> None:
        """Raise when the caller has left; bytes, a hasty caller's next request, end the watch for that."""
        try:
            self._hasty = bool(self.connection.recv(1, _PEEK))
        except OSError:
            raise self._end() from None
        if not self._hasty:
            raise self._end()

    def _end(self) -> Exception:
        return EngineClosed() if self.server.has_ended(self.connection) else CallerLeft()


def readable(sockets: list[socket.socket], seconds: float) -> bool:
    """Wait until one of these is readable; False after `seconds`."""
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select(sockets, [], [], seconds)[0])
    poll = select.poll()
    for sock in sockets:
        poll.register(sock, select.POLLIN)
    return bool(poll.poll(int(seconds * 1000)))
