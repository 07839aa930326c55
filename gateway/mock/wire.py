"""HTTP/1.1 on the mock engine's side: bytes to requests, answers to bytes.

Owns the buffer of one connection and the framing of answers. A reader belongs to its connection's
thread and has no lock. It is lenient where a test client may be sloppy and bounded in size; it
does not judge smuggling, which is the gateway's business.
"""

from __future__ import annotations

import http
import socket
from collections.abc import Sequence
from dataclasses import dataclass

MAX_HEAD_BYTES = 1 << 17
MAX_BODY_BYTES = 1 << 27
_RECEIVE_BYTES = 1 << 16

Header = tuple[str, str]


class ProtocolError(Exception):
    """The bytes are no request that can be answered; carries the status to answer with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Request:
    """One request as read: header names in lower case, repeated ones joined by a comma."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    chunked_answers: bool
    keep_alive: bool


class RequestReader:
    """Reads the requests of one connection, one after the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    def next(self) -> Request | None:
        """Return the next request, or None when the caller has closed.

        Raises ProtocolError for what is no request, OSError when the connection breaks.
        """
        head = self._until(b"\r\n\r\n", MAX_HEAD_BYTES)
        if head is None:
            return None
        lines = head.decode("latin-1").split("\r\n")
        parts = lines[0].split(" ")
        if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
            raise ProtocolError(400, f"bad request line {lines[0]!r:.80}")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise ProtocolError(400, f"bad header line {line!r:.80}")
            name, value = name.strip().lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        body = self._body(headers)
        if body is None:
            return None
        modern = parts[2] == "HTTP/1.1"
        keep_alive = modern and "close" not in headers.get("connection", "").lower()
        return Request(parts[0], parts[1].split("?")[0], headers, body, modern, keep_alive)

    def _body(self, headers: dict[str, str]) -> bytes | None:
        chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length", "0")
        if not chunked and not (length.isascii() and length.isdigit() and len(length) < 16):
            raise ProtocolError(400, f"bad Content-Length {length!r:.80}")
        if not chunked and int(length) > MAX_BODY_BYTES:
            raise ProtocolError(413, f"a body of {length} bytes is too large")
        if headers.get("expect", "").lower() == "100-continue":
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return self._chunked_body() if chunked else self._exactly(int(length))

    def _chunked_body(self) -> bytes | None:
        body = bytearray()
        while True:
            line = self._until(b"\r\n", MAX_HEAD_BYTES)
            if line is None:
                return None
            try:
                size = int(bytes(line).split(b";")[0], 16)
            except ValueError:
                raise ProtocolError(400, f"bad chunk size {bytes(line)!r:.80}") from None
            if size < 0 or len(body) + size > MAX_BODY_BYTES:
                raise ProtocolError(413, "the chunked body is too large")
            if size == 0:
                break
            data = self._exactly(size + 2)
            if data is None:
                return None
            body += data[:-2]
        while True:  # trailers, up to the empty line
            line = self._until(b"\r\n", MAX_HEAD_BYTES)
            if line is None:
                return None
            if not line:
                return bytes(body)

    def _until(self, mark: bytes, limit: int) -> bytearray | None:
        searched = 0
        while True:
            found = self._buffer.find(mark, searched)
            if found >= 0:
                piece = self._buffer[:found]
                del self._buffer[: found + len(mark)]
                return piece
            if len(self._buffer) > limit:
                raise ProtocolError(431, f"more than {limit} bytes without an end")
            searched = max(0, len(self._buffer) - len(mark))
            if not self._receive():
                return None

    def _exactly(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            if not self._receive():
                return None
        piece = bytes(self._buffer[:size])
        del self._buffer[:size]
        return piece

    def _receive(self) -> bool:
        data = self._sock.recv(_RECEIVE_BYTES)
        self._buffer += data
        return bool(data)


def head(status: int, headers: Sequence[Header], keep_alive: bool) -> bytes:
    """Return a response head, up to and including its empty line."""
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines.append(f"Connection: {'keep-alive' if keep_alive else 'close'}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def whole(status: int, body: bytes, keep_alive: bool, extra: Sequence[Header] = ()) -> bytes:
    """Return a complete JSON response as the one piece that is to be written."""
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *extra]
    return head(status, headers, keep_alive) + body


def stream_head(chunked: bool, keep_alive: bool) -> bytes:
    """Return the head of an event stream; without `chunked` its end is the connection's."""
    headers = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache")]
    if chunked:
        headers.append(("Transfer-Encoding", "chunked"))
    return head(200, headers, keep_alive and chunked)


def frame(data: bytes, chunked: bool) -> bytes:
    """Return `data` as one chunk, or as it is when the body is not chunked."""
    return b"%x\r\n%b\r\n" % (len(data), data) if chunked else data
