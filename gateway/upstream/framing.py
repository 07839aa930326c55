"""How an engine's HTTP answer is framed: its head, and a body by length, in chunks, or until the connection closes.

Sans-I/O: bytes go in, payload comes out; blocking and non-blocking readers share it. A decoder belongs to one answer
and one thread at a time. What is wrong raises `FramingError`.
"""

from __future__ import annotations

import functools
import re
from typing import Optional

HEAD_MAX_BYTES = 65536
UNFINISHED_MAX_BYTES = HEAD_MAX_BYTES + 3  # of a head that may yet end: all of its end but one byte
KNOWN_HEADS = 256  # parsed last, kept to be used again (a look-up takes 0.3 us, parsing 5)
KNOWN_BYTES = 2048  # of a head that is kept

# A header line, in a head or behind a body, a client's or an engine's (RFC 9112, 5): whatever two parsers might read
# differently is none.
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
FIELD = re.compile(TOKEN + rb":[\t \x21-\x7e\x80-\xff]*")
FIELDS = re.compile(rb"(?:\r\n" + FIELD.pattern + rb")*")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [\t \x21-\x7e\x80-\xff]*)?")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[\t ]*;[\t \x21-\x7e\x80-\xff]*)?")
# From an engine: some servers pad the size to a fixed width (RFC 9112, 7.1.1: BWS).
_PADDED_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[\t ]*(?:;[\t \x21-\x7e\x80-\xff]*)?")
_CHUNK_LINE_MAX_BYTES = 4096
_HEX_DIGITS = b"0123456789abcdefABCDEF"


class FramingError(Exception):
    """The bytes are not the HTTP they claim to be. `payload` came in the same piece, before what is wrong. `kind`: of
    the outcome of an attempt that meets it."""

    payload = b""
    kind = "invalid"


class TrailersTooLarge(FramingError):
    """More header lines behind a body than there may be in a head."""


class ResponseHead:
    """Status and headers (names in lower case, the last one of a repeated name).

    `length`: of the body where a Content-Length alone says it, else None.
    """

    __slots__ = ("headers", "keep_alive", "length", "status")

    def __init__(self, status: int, headers: dict[bytes, bytes], keep_alive: bool) -> None:
        self.status = status
        self.headers = headers
        self.keep_alive = keep_alive
        length = headers.get(b"content-length", b"")
        alone = status not in (204, 304) and b"transfer-encoding" not in headers
        self.length = int(length) if alone and length.isdigit() and len(length) <= 18 else None


def parse_response_head(block: bytes) -> ResponseHead:
    """Parse a response head without its closing blank line. Raises FramingError.

    Engines repeat their heads: equal ones may be one object, which nobody changes.
    """
    return _parse_known(block) if len(block) <= KNOWN_BYTES else _parse(block)


def _parse(block: bytes) -> ResponseHead:
    lines = block.split(b"\r\n")
    first = lines.pop(0)
    status = 200 if first == b"HTTP/1.1 200 OK" else _status(first)
    if not FIELDS.fullmatch(block, len(first)):
        raise FramingError("a header line that is none")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip(b" \t")
    if len(headers) < len(lines):
        _join_repeated(headers, lines)
    http_1_1 = first[7:8] == b"1"
    connection = headers.get(b"connection")
    if connection is None:
        keep_alive = http_1_1
    else:
        connection = connection.lower()
        keep_alive = b"close" not in connection and (http_1_1 or b"keep-alive" in connection)
    if b"transfer-encoding" in headers and (b"content-length" in headers or not http_1_1):
        keep_alive = False  # where such an answer ends is a matter of opinion: nothing is to come behind it
    return ResponseHead(status, headers, keep_alive)


_parse_known = functools.lru_cache(KNOWN_HEADS)(_parse)


def _status(line: bytes) -> int:
    found = _STATUS_LINE.fullmatch(line)
    if found is None:
        raise FramingError("not an HTTP/1.x status line")
    return int(found[1])


def _join_repeated(headers: dict[bytes, bytes], lines: list[bytes]) -> None:
    """Some header is repeated: a length must say the same each time, a transfer coding is said once, any `close`
    counts, and so does each content coding."""
    fields = [(name.lower(), value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]
    if len({value for name, value in fields if name == b"content-length"}) > 1:
        raise FramingError("two different lengths")
    if sum(name == b"transfer-encoding" for name, _ in fields) > 1:
        raise FramingError("two transfer codings")
    for name in (b"connection", b"content-encoding"):
        if name in headers:
            headers[name] = b", ".join(value for each, value in fields if each == name)


class BodyDecoder:
    """Payload of one body. `complete` = the framing says it has ended; `reusable` = nothing followed it; `surplus` =
    something did; `pending` = `feed(b"")` tells more, so that nothing is to be received before."""

    complete = False
    pending = False
    reusable = True
    surplus = False
    rest = b""  # what came behind the end

    @property
    def between_chunks(self) -> bool:
        """Return whether what comes next begins a chunk."""
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
            self.surplus = True
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
    """A body in chunks (RFC 9112, 7.1); extensions and trailers are dropped.

    Trailers are header lines and keep to the same rules, in `trailers_max_bytes` at most, like a head. `padded`: white
    space may follow a chunk's size, which from a client would be one more way to be read differently by two.
    """

    def __init__(self, trailers_max_bytes: int = HEAD_MAX_BYTES, padded: bool = False) -> None:
        self._trailers_max_bytes = trailers_max_bytes
        self._chunk_line = _PADDED_CHUNK_LINE if padded else _CHUNK_LINE
        self._pending = b""
        self._left = 0  # payload bytes still to come of the chunk under way
        self._after = False  # the CRLF behind a chunk is due
        self._trailers = False
        self._trailer_bytes = 0

    @property
    def left_bytes(self) -> int:
        """What is still to come of the chunk under way."""
        return self._left

    @property
    def between_chunks(self) -> bool:
        return not (self._pending or self._left or self._after or self._trailers or self.complete)

    def feed(self, data: bytes) -> bytes:
        if self.complete:
            if data:
                self.reusable = False
                self.surplus = True
            return b""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        elif self.between_chunks:
            whole = _whole_chunk(data)
            if whole:
                return whole
        out: list[bytes] = []
        try:
            self._take(data, out)
        except FramingError as error:
            error.payload = b"".join(out)
            raise
        return out[0] if len(out) == 1 else b"".join(out)

    def _take(self, data: bytes, out: list[bytes]) -> None:
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
                self._check_size(size - position)
                self._pending = data[position:]
                break
            self._line(data[position:end])
            position = end + 1
        if self.complete and position < size:
            self.reusable = False
            self.surplus = True
            self.rest = data[position:]

    def _check_size(self, size: int) -> None:
        """Return whether a line may be as long as this, its end not counted."""
        if self._trailers:
            if self._trailer_bytes + size > self._trailers_max_bytes:
                raise TrailersTooLarge("the trailers are too large")
        elif size > _CHUNK_LINE_MAX_BYTES:
            raise FramingError("a chunk line that is too long")

    def _line(self, line: bytes) -> None:
        self._check_size(len(line))
        if line[-1:] != b"\r":
            raise FramingError("a chunk line that does not end in CRLF")
        line = line[:-1]
        if self._after:
            if line:
                raise FramingError("a chunk longer than it said")
            self._after = False
        elif self._trailers:
            self._trailer_bytes += len(line) + 2
            if line and not FIELD.fullmatch(line):
                raise FramingError("a trailer that is no header line")
            self.complete = not line
        else:
            found = self._chunk_line.fullmatch(line)
            if found is None:
                raise FramingError("a chunk size that is no number")
            self._left = int(found[1], 16)
            self._trailers = self._left == 0


def _whole_chunk(data: bytes) -> bytes:
    """The payload of exactly one whole chunk; b"" for anything else.

    Events mostly come like this (0.6 instead of 2 us).
    """
    end = data.find(b"\r\n", 0, 18)
    digits = data[: max(end, 0)]
    # int() would take signs, underscores, spaces and 0x.
    if not digits or digits.strip(_HEX_DIGITS) or not data.endswith(b"\r\n"):
        return b""
    size = int(digits, 16)
    return data[end + 2 : -2] if size and len(data) == end + 4 + size else b""


LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Bytes as a chunk; nothing for none of them, which would be the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def body_decoder(head: ResponseHead) -> BodyDecoder:
    """The decoder for an answer with this head. Raises FramingError."""
    if head.length is not None:
        return LengthBody(head.length)
    if head.status in (204, 304):
        return LengthBody(0)
    coding: Optional[bytes] = head.headers.get(b"transfer-encoding")
    if coding is not None:
        if coding.lower() != b"chunked":
            raise FramingError("an unknown transfer coding")
        return ChunkedBody(padded=True)
    if b"content-length" not in head.headers:
        return CloseBody()
    raise FramingError("a Content-Length that is no number")
