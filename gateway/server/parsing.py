"""A request's head, strictly.

One regular expression judges the whole block, then it is taken apart; what it refuses is looked at again only to say
why. Pure functions, that keep what they gave for the last heads. Lenient parsing of framing headers is how requests are
smuggled past a gateway, so whatever two parsers might read differently is refused with 400 and a closed connection
(RFC 9112, section 11.2).
"""

from __future__ import annotations

import functools
import re
from typing import Optional

from gateway.errors import HttpError
from gateway.upstream.framing import FIELD, FIELDS, TOKEN

KNOWN_HEADS = 256  # parsed last, kept to be used again (a look-up takes 0.4 us, parsing 11)
KNOWN_BYTES = 2048  # of a head that is kept

_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")


class RequestHead:
    """One request's head. Header names are lower-case bytes; repeated fields are joined with a comma.

    `content_length` None = no such header. Immutable by convention: the same bytes reuse the object.
    """

    __slots__ = (
        "chunked",
        "content_length",
        "expects_continue",
        "headers",
        "keep_alive",
        "method",
        "path",
        "query",
        "repeated",
        "version_1_1",
    )

    def __init__(self, method: str, target: str, version_1_1: bool) -> None:
        self.method = method
        path, _, query = target.partition("?")
        self.path = path
        self.query = query
        self.version_1_1 = version_1_1
        self.headers: dict[bytes, bytes] = {}
        self.repeated: frozenset[bytes] = frozenset()
        self.content_length: Optional[int] = None
        self.chunked = False
        self.keep_alive = version_1_1
        self.expects_continue = False

    def text(self, name: bytes) -> str:
        """A header's value, or an empty text."""
        return self.headers.get(name, b"").decode("latin-1")


def parse_head(block: bytes) -> RequestHead:
    """Parse a head without its closing blank line. Raises HttpError (400, 501, 505).

    Clients repeat their heads, on new connections too: equal ones may be one object, which nobody changes.
    """
    return _parse_known(block) if len(block) <= KNOWN_BYTES else _parse(block)


def _parse(block: bytes) -> RequestHead:
    line, _, _ = block.partition(b"\r\n")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise _bad("the request line is malformed")
    if not FIELDS.fullmatch(block, len(line)):
        raise _bad(_field_fault(block[len(line) + 2 :]))
    if match[3] != b"1" or match[4] not in b"01":
        raise HttpError("http_version_not_supported", "only HTTP/1.1 and HTTP/1.0 are served")
    head = RequestHead(match[1].decode(), _origin_form(match[2]), match[4] == b"1")
    _read_fields(head, block[len(line) + 2 :])
    _read_framing(head)
    return head


_parse_known = functools.lru_cache(KNOWN_HEADS)(_parse)


def _read_fields(head: RequestHead, block: bytes) -> None:
    headers = head.headers
    if not block:
        return
    for line in block.split(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.lower()
        value = value.strip(b" \t")
        if name in headers:
            head.repeated |= {name}
            value = headers[name] + b", " + value
        headers[name] = value


def _read_framing(head: RequestHead) -> None:
    headers = head.headers
    host = headers.get(b"host")
    if host is None:
        if head.version_1_1:
            raise _bad("the Host header is missing")
    elif b"host" in head.repeated or not _HOST.fullmatch(host):
        raise _bad("the Host header is repeated or malformed")
    length = headers.get(b"content-length")
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise _bad("Content-Length and Transfer-Encoding exclude each other")
        if not head.version_1_1:
            raise _bad("HTTP/1.0 has no Transfer-Encoding")
        if coding.lower() != b"chunked":
            raise HttpError("not_implemented", "the only transfer coding served is chunked")
        head.chunked = True
    elif length is not None:
        if b"content-length" in head.repeated:
            values = {part.strip() for part in length.split(b",")}
            if len(values) != 1:
                raise _bad("Content-Length is repeated with different values")
            length = values.pop()
        if not length.isdigit() or len(length) > 18:
            raise _bad("Content-Length is not a plain number")
        head.content_length = int(length)
    connection = headers.get(b"connection")
    if connection is not None:
        options = connection.lower()
        if b"close" in options:
            head.keep_alive = False
        elif b"keep-alive" in options:
            head.keep_alive = True
    if b"expect" in headers:
        head.expects_continue = headers[b"expect"].lower() == b"100-continue"


def _origin_form(target: bytes) -> str:
    text = target.decode("ascii")
    if text.startswith("/") or text == "*":
        return text
    scheme, separator, rest = text.partition("://")
    if separator and scheme.lower() in ("http", "https"):  # absolute form, as sent to proxies
        authority = re.split("[/?]", rest, maxsplit=1)[0]
        if authority:
            target_path = rest[len(authority) :]
            return target_path if target_path.startswith("/") else f"/{target_path}"
    raise _bad("the request target is malformed")


def _field_fault(block: bytes) -> str:
    """Why a block of header lines was refused. Names the header where it has one, never its value."""
    for line in block.split(b"\r\n"):
        if FIELD.fullmatch(line):
            continue
        name, colon, _ = line.partition(b":")
        if line[:1] in (b" ", b"\t"):
            return "a header line is folded"
        if not colon:
            return "a header line has no colon"
        if name[-1:] in (b" ", b"\t"):
            return "a header has a space before its colon"
        if not re.fullmatch(TOKEN, name):
            return "a header's name is malformed"
        return f"the header {name.decode()[:100]} holds a control character"
    return "the header block is malformed"


def _bad(message: str) -> HttpError:
    return HttpError("bad_request", message)
