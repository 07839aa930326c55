"""What a client sends, read into requests: any size, any framing, however it is cut.

A `RequestReader` owns what has come and has not been given yet. Sans-I/O: bytes go in, requests and refusals come out;
it knows no socket and no clock. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple, Optional, Union

from gateway.errors import GatewayError, HttpError
from gateway.server.parsing import RequestHead, parse_head
from gateway.upstream.framing import ChunkedBody, FramingError, TrailersTooLarge

BLANK_LINES_MAX = 64  # before a request line
TLS_HANDSHAKE = b"\x16"  # the first byte of a client that says https


class Request(NamedTuple):
    """A request that has come. Not `whole`: its body has not been read, and what comes of it is void. `uploads`: `body`
    is what it begins with, the rest is given by `RequestReader.upload`."""

    head: RequestHead
    body: bytes
    whole: bool = True
    uploads: bool = False


class Refusal(NamedTuple):
    """A request that cannot be served, and the last that is read. `head` None: not even that could be read."""

    error: GatewayError
    head: Optional[RequestHead] = None

    @property
    def uploads(self) -> bool:
        """Never: whatever comes of its body is void."""
        return False


class RequestReader:
    """Reads one connection's requests, one after another.

    `head` is that of the request whose body is still to come. Once it is `over`, whatever is fed is dropped. `uploads`:
    paths whose bodies may have `max_upload_bytes`, and be given while they come (`begin_upload`, `upload`).
    """

    __slots__ = (
        "_blank_lines",
        "_buffer",
        "_chunks",
        "_limit_bytes",
        "_max_body_bytes",
        "_max_header_bytes",
        "_max_upload_bytes",
        "_missing",
        "_uploads",
        "_usual_bytes",
        "head",
        "over",
    )

    def __init__(
        self,
        max_header_bytes: int,
        max_body_bytes: int,
        uploads: Container[str] = (),
        max_upload_bytes: int = 0,
    ) -> None:
        self._max_header_bytes = max_header_bytes
        self._max_body_bytes = max_body_bytes
        self._uploads = uploads
        self._max_upload_bytes = max_upload_bytes
        self._usual_bytes = min(max_body_bytes, max_upload_bytes) if uploads else max_body_bytes  # wherever it goes
        self._limit_bytes = 0  # of what may still come of the body of `head`
        self._buffer: Union[bytes, bytearray] = b""
        self._blank_lines = 0
        self._missing = 0  # bytes of the body of `head`, where its length is known
        self._chunks: Optional[ChunkedBody] = None  # else
        self.head: Optional[RequestHead] = None
        self.over = False

    @property
    def begun(self) -> bool:
        """Return whether something of a request has come, beyond what may become an empty line."""
        return self.head is not None or (self._buffer != b"" and self._buffer != b"\r")

    @property
    def buffered_bytes(self) -> int:
        """Received and not given yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Union[Request, Refusal, None]:
        """Take bytes as they came; gives the next request that is there, or None: more is needed.

        b"" gives what has come behind the last one.
        """
        if self.over:
            return None
        if self.head is not None:
            return self._feed_body(data)
        buffer = bytes(self._buffer) + data if self._buffer else data
        self._buffer = buffer
        if buffer[:1] == b"\r":
            if not self._drop_blank_lines():
                return self._refuse("bad_request", "there are too many empty lines before the request line")
            buffer = bytes(self._buffer)
        end = buffer.find(b"\r\n\r\n")
        limit = self._max_header_bytes
        if end > limit or (end < 0 and len(buffer) > limit + 3):  # a part of the end may be among them
            return self._refuse("headers_too_large", "the request line and headers are too large")
        if end < 0:
            if buffer[:1] == TLS_HANDSHAKE:  # whose client waits for an answer before it says more
                return self._refuse("bad_request", "this is TLS; the gateway itself speaks http://, not https://")
            return None
        try:
            head = parse_head(buffer[:end])
        except HttpError as error:
            self._close()
            return Refusal(error)
        self._blank_lines = 0
        begins = end + 4
        length = head.content_length or 0
        if begins + length <= len(buffer) and not head.chunked and length <= self._usual_bytes:
            self._buffer = buffer[begins + length :]
            return Request(head, buffer[begins : begins + length])
        self.head = head
        self._limit_bytes = self._max_upload_bytes if head.path in self._uploads else self._max_body_bytes
        self._missing = length
        self._chunks = ChunkedBody(self._max_header_bytes) if head.chunked else None
        self._buffer = b""
        return self._feed_body(buffer[begins:])

    def _drop_blank_lines(self) -> bool:
        """Drop what a client sends between requests (RFC 9112, 2.2): empty lines, each ended by CRLF and nothing else.

        False: there are too many.
        """
        buffer = self._buffer
        start, last = 0, 2 * (BLANK_LINES_MAX - self._blank_lines)
        while buffer.startswith(b"\r\n", start) and start <= last:
            start += 2
        self._buffer = buffer[start:]
        self._blank_lines += start // 2
        return start <= last

    def _feed_body(self, data: bytes) -> Union[Request, Refusal, None]:
        """Take bytes of the body of `head`, and of what is behind it."""
        if self._chunks is not None:
            return self._feed_chunks(self._chunks, data)
        if self._missing > self._limit_bytes:
            return None  # nobody reads it: what comes is dropped
        size = len(self._buffer) + len(data)
        if size < self._missing:
            self._keep(data)
            return None
        surplus = size - self._missing
        self._keep(data[: len(data) - surplus])
        return self._whole(data[len(data) - surplus :] if surplus else b"")

    def _feed_chunks(self, chunks: ChunkedBody, data: bytes) -> Union[Request, Refusal, None]:
        head = self.head
        try:
            self._keep(chunks.feed(data))
        except FramingError as error:
            self._keep(error.payload)
            if len(self._buffer) <= self._limit_bytes:  # else it was too large before it was broken
                if isinstance(error, TrailersTooLarge):
                    return self._refuse("headers_too_large", f"the chunked body is refused: {error}", head)
                return self._refuse("bad_request", f"the chunked body is broken: {error}", head)
        if len(self._buffer) + chunks.left_bytes > self._limit_bytes:  # what a chunk announces need not be awaited
            limit = self._max_upload_bytes if self._head_uploads() else self._max_body_bytes
            return self._refuse("body_too_large", f"the body is larger than {limit} bytes", head)
        return self._whole(chunks.rest) if chunks.complete else None

    def _keep(self, data: bytes) -> None:
        """Add to the body: a large one is held once, and put together without copies."""
        if not self._buffer:
            self._buffer = data
        elif data:
            if not isinstance(self._buffer, bytearray):
                self._buffer = bytearray(self._buffer)
            self._buffer += data

    def _whole(self, rest: bytes) -> Request:
        assert self.head is not None
        request = Request(self.head, bytes(self._buffer))
        self._buffer, self.head, self._chunks = rest, None, None
        return request

    def _head_uploads(self) -> bool:
        return self.head is not None and self.head.path in self._uploads

    def begin_upload(self) -> Request:
        """The request of `head`, with what has come of its body."""
        assert self.head is not None
        return Request(self.head, self._taken_out(), uploads=True)

    def upload(self, data: bytes) -> Union[bytes, Refusal]:
        """Take bytes as they came; gives what they are of the body. `head` is None then: that was its end."""
        event = self._feed_body(data)
        if isinstance(event, Request):
            return event.body
        return self._taken_out() if event is None else event

    def _taken_out(self) -> bytes:
        """What has come of a body, and need not come any more."""
        data, self._buffer = bytes(self._buffer), b""
        self._limit_bytes -= len(data)
        if self._chunks is None:
            self._missing -= len(data)
        return data

    def leave_body(self) -> Request:
        """Give up on the body of `head`; the reader is over."""
        assert self.head is not None
        request = Request(self.head, b"", whole=False)
        self._close()
        return request

    def ended(self) -> Optional[Refusal]:
        """The client sends nothing more: the refusal of a request whose body it has begun; None: it needs no answer."""
        return None if self.head is None else self._refuse("bad_request", "the body ended early", self.head)

    def late(self) -> Optional[Refusal]:
        """The time for the request under way is over: its refusal; None: none has begun."""
        return self._refuse("request_timeout", "the request was not sent in time", self.head) if self.begun else None

    def _refuse(self, code: str, message: str, head: Optional[RequestHead] = None) -> Refusal:
        self._close()
        return Refusal(HttpError(code, message), head)

    def _close(self) -> None:
        self.over = True
        self._buffer, self.head, self._chunks = b"", None, None
