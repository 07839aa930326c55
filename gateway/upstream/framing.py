"""How an engine's HTTP answer is framed: its head, and a body by length, in chunks, or until the connection closes.

Sans-I/O: bytes go in, payload comes out; blocking and non-blocking readers share it. A decoder belongs to one answer
and one thread at a time. What is wrong raises `FramingError`.
"""

from __future__ import annotations

from typing import Optional

HEAD_MAX_BYTES = 65536
_CHUNK_LINE_MAX_BYTES = 4096
_CHUNK_DIGITS_MAX = 16
_HEX_DIGITS = b"0123456789abcdefABCDEF"
_TRAILER_LINES_MAX = 100


class FramingError(Exception):
    """The bytes are not the HTTP they claim to be."""


class ResponseHead:
    """Status and headers (names in lower case, the last one of a repeated name)."""

    __slots__ = ("headers", "keep_alive", "status")

    def __init__(self, status: int, headers: dict[bytes, bytes], keep_alive: bool) -> None:
        self.status = status
        self.headers = headers
        self.keep_alive = keep_alive


def parse_response_head(block: bytes) -> ResponseHead:
    """Parse a response head without its closing blank line. Raises FramingError."""
    lines = block.split(b"\r\n")
    first = lines.pop(0)
    status = 200 if first == b"HTTP/1.1 200 OK" else _status(first)
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise FramingError("a header line without a colon")
        headers[name.lower()] = value.strip()
    if len(headers) < len(lines):
        _check_lengths(lines)
    connection = headers.get(b"connection")
    if connection is None:
        keep_alive = first[7:8] == b"1"
    else:
        connection = connection.lower()
        keep_alive = b"close" not in connection and (first[7:8] == b"1" or b"keep-alive" in connection)
    return ResponseHead(status, headers, keep_alive)


def _status(line: bytes) -> int:
    code = line[9:12]
    well_cut = line.startswith(b"HTTP/1.") and line[8:9] == b" " and line[12:13] in (b" ", b"")
    if not (well_cut and len(code) == 3 and code.isdigit()):
        raise FramingError("not an HTTP/1.x status line")
    return int(code)


def _check_lengths(lines: list[bytes]) -> None:
    """Some header is repeated: a length must say the same each time."""
    fields = (line.partition(b":") for line in lines)
    if len({value.strip() for name, _, value in fields if name.lower() == b"content-length"}) > 1:
        raise FramingError("two different lengths")


class BodyDecoder:
    """Payload of one body. `complete` = the framing says it has ended; `reusable` = nothing followed it."""

    complete = False
    reusable = True
    rest = b""  # what came behind the end

    @property
    def between_chunks(self) -> bool:
        """Whether what comes next begins a chunk."""
        return False

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they came, give back the payload among them."""
        raise NotImplementedError

    def end(self) -> bool:
        """The connection has closed: was the body complete?"""
        return self.complete


class LengthBody(BodyDecoder):
    """A body of `length` bytes."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.complete = length == 0

    @property
    def left_bytes(self) -> int:
        """What is still to come."""
        return self._left

    def feed(self, data: bytes) -> bytes:
        size = len(data)
        if size < self._left:
            self._left -= size
            return data
        if size > self._left:
            self.reusable = False
            self.rest = data[self._left :]
            data = data[: self._left]
        self._left = 0
        self.complete = True
        return data


class CloseBody(BodyDecoder):
    """A body that ends where the connection does."""

    reusable = False

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> bool:
        self.complete = True
        return True


class ChunkedBody(BodyDecoder):
    """A body in chunks (RFC 9112, 7.1); extensions and trailers are dropped."""

    def __init__(self) -> None:
        self._pending = b""
        self._left = 0  # payload bytes still to come of the chunk under way
        self._after = False  # the CRLF behind a chunk is due
        self._trailers = False
        self._trailer_lines = 0

    @property
    def between_chunks(self) -> bool:
        return not (self._pending or self._left or self._after or self._trailers or self.complete)

    def feed(self, data: bytes) -> bytes:
        if self.complete:
            self.reusable = self.reusable and not data
            return b""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        elif self.between_chunks:
            whole = _whole_chunk(data)
            if whole:
                return whole
        out: list[bytes] = []
        position = 0
        size = len(data)
        while position < size and not self.complete:
            if self._left:
                piece = data[position : position + self._left]
                out.append(piece)
                position += len(piece)
                self._left -= len(piece)
                self._after = not self._left
                continue
            end = data.find(b"\n", position)
            if end < 0:
                if size - position > _CHUNK_LINE_MAX_BYTES:
                    raise FramingError("a chunk line without an end")
                self._pending = data[position:]
                break
            self._line(data[position:end])
            position = end + 1
        if self.complete and position < size:
            self.reusable = False
            self.rest = data[position:]
        return out[0] if len(out) == 1 else b"".join(out)

    def _line(self, line: bytes) -> None:
        if len(line) > _CHUNK_LINE_MAX_BYTES:
            raise FramingError("a chunk line that is too long")
        if line[-1:] != b"\r":
            raise FramingError("a chunk line that does not end in CRLF")
        line = line[:-1]
        if self._after:
            if line:
                raise FramingError("a chunk longer than it said")
            self._after = False
        elif self._trailers:
            self.complete = not line
            self._trailer_lines += 1
            if self._trailer_lines > _TRAILER_LINES_MAX:
                raise FramingError("too many trailer lines")
        else:
            size = line if line.isalnum() else _before_extension(line)
            # int() would take signs, underscores, spaces and 0x.
            if not size or len(size) > _CHUNK_DIGITS_MAX or size.strip(_HEX_DIGITS):
                raise FramingError("a chunk size that is no number")
            self._left = int(size, 16)
            self._trailers = self._left == 0


def _before_extension(line: bytes) -> bytes:
    """The size in a chunk line with an extension; what another parser might take for a line's end is refused."""
    size, semicolon, extension = line.partition(b";")
    if not semicolon or b"\r" in extension or b"\0" in extension:
        return b""
    return size.rstrip(b" \t")


def _whole_chunk(data: bytes) -> bytes:
    """The payload of exactly one whole chunk; b"" for anything else.

    Events mostly come like this (0.6 instead of 2 us).
    """
    end = data.find(b"\r\n", 0, 18)
    digits = data[: max(end, 0)]
    if not (digits.isalnum() and data.endswith(b"\r\n")):
        return b""
    try:
        size = int(digits, 16)
    except ValueError:
        return b""
    return data[end + 2 : -2] if size and len(data) == end + 4 + size else b""


def body_decoder(head: ResponseHead) -> BodyDecoder:
    """The decoder for an answer with this head. Raises FramingError."""
    if head.status in (204, 304):
        return LengthBody(0)
    coding: Optional[bytes] = head.headers.get(b"transfer-encoding")
    if coding is not None:
        if coding.lower() != b"chunked":
            raise FramingError("an unknown transfer coding")
        return ChunkedBody()
    length = head.headers.get(b"content-length")
    if length is None:
        return CloseBody()
    if not length.isdigit() or len(length) > 18:
        raise FramingError("a Content-Length that is no number")
    return LengthBody(int(length))
