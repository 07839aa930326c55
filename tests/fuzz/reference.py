"""Another reading of a client's bytes, by the letter of RFC 9112 and contract 10, to hold the gateway's against.

Written apart from the gateway's parsers and without their regular expressions: character by character. It says where
each request begins and ends, or that no careful server may take it. Where both readings may be defended it says
UNSURE, and nothing is concluded. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
HEX = frozenset(b"0123456789abcdefABCDEF")
DIGITS = frozenset(b"0123456789")
CONTROLS = frozenset(range(32)) - {9} | {127}

TAKEN, REFUSED, UNSURE, MORE = "taken", "refused", "unsure", "more"


class Reading(NamedTuple):
    """What becomes of the bytes from `start` on. TAKEN: a request that ends at `end`; MORE: its end is still to come;
    `why` for people; `method`: where the head as such is good."""

    verdict: str
    end: int
    why: str = ""
    body: bytes = b""
    method: bytes = b""


def read_all(data: bytes) -> list[Reading]:
    """The requests in `data`, one after the other, until one is not TAKEN; nothing more: the list ends."""
    found: list[Reading] = []
    position = 0
    while True:
        while data.startswith(b"\r\n", position):
            position += 2
        if position >= len(data):
            return found
        reading = read(data, position)
        found.append(reading)
        if reading.verdict != TAKEN:
            return found
        position = reading.end


def read(data: bytes, start: int) -> Reading:
    """One request that begins at `start`."""
    if data[start : start + 1] in (b"\r", b"\n"):
        return Reading(UNSURE, start, "line ends before the request line")
    end = data.find(b"\r\n\r\n", start)
    if end < 0:
        return Reading(MORE if len(data) - start < 20000 else UNSURE, start, "the head has no end")
    if end - start > 20000:
        return Reading(UNSURE, start, "a long head")
    lines = data[start:end].split(b"\r\n")
    fault = _line_faults(lines)
    if fault:
        return Reading(REFUSED, end + 4, fault)
    method, target, version = lines[0].split(b" ")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        return Reading(REFUSED, end + 4, "version")
    scheme, _, rest = target.partition(b"://")
    absolute = scheme.lower() in (b"http", b"https") and rest[:1] not in (b"", b"/", b"?")
    if not (target.startswith(b"/") or target == b"*" or absolute):
        return Reading(UNSURE, end + 4, "target")
    fields = [(name.lower(), value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines[1:])]
    fault = _framing_fault(fields, version == b"HTTP/1.1")
    if fault:
        return Reading(REFUSED, end + 4, fault)
    return _body(data, end + 4, dict(fields))._replace(method=method)


def _line_faults(lines: list[bytes]) -> str:
    parts = lines[0].split(b" ")
    if len(parts) != 3 or not all(parts):
        return "the request line has not three parts"
    if not TOKEN.issuperset(parts[0]):
        return "the method is no token"
    if any(char <= 32 or char >= 127 for char in parts[1]):
        return "the target holds a character that no target may"
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not name:
            return f"no colon in {line[:40]!r}"
        if not TOKEN.issuperset(name):
            return f"the name {name[:40]!r} is no token"
        if CONTROLS.intersection(value):
            return f"a control character in {line[:60]!r}"
    return ""


def _framing_fault(fields: list[tuple[bytes, bytes]], version_1_1: bool) -> str:
    hosts = [value for name, value in fields if name == b"host"]
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    if len(hosts) > 1 or (version_1_1 and not hosts):
        return "Host is missing or repeated"
    if codings and lengths:
        return "both framings"
    if codings and (not version_1_1 or [value.lower() for value in codings] != [b"chunked"]):
        return f"codings {codings}"
    values = {part.strip(b" \t") for length in lengths for part in length.split(b",")}
    if len(values) > 1:
        return "differing lengths"
    for value in values:
        if not value or not DIGITS.issuperset(value):
            return f"the length {value[:40]!r}"
    return ""


def _body(data: bytes, start: int, fields: dict[bytes, bytes]) -> Reading:
    if b"transfer-encoding" in fields:
        return read_chunked(data, start)
    length = fields.get(b"content-length", b"0").split(b",")[0].strip(b" \t")
    if len(length) > 18:
        return Reading(UNSURE, start, "a long length")
    end = start + int(length)
    if end > len(data):
        return Reading(MORE, start, "the body has no end")
    return Reading(TAKEN, end, body=data[start:end])


def read_chunked(data: bytes, position: int) -> Reading:
    """A chunked body that begins at `position`."""
    body = b""
    while True:
        end = data.find(b"\n", position)
        if end < 0:
            return _unended(data, position)
        line = data[position:end]
        fault = _chunk_line_fault(line)
        if fault:
            return Reading(REFUSED, position, fault)
        digits, semicolon, extension = line[:-1].partition(b";")
        if semicolon and CONTROLS.intersection(extension):
            return Reading(UNSURE, position, "a control character in an extension")
        if len(line) > 4000:
            return Reading(UNSURE, position, "a long extension")
        size = int(digits.strip(b" \t"), 16)
        position = end + 1
        if not size:
            return _trailers(data, position, body)
        if len(data) < position + size:
            return Reading(MORE, position, "a chunk has no end")
        body += data[position : position + size]
        position += size
        if not b"\r\n".startswith(data[position : position + 2]):
            return Reading(REFUSED, position, "a chunk longer than it said")
        if len(data) < position + 2:
            return Reading(MORE, position, "the end of a chunk is missing")
        position += 2


def _unended(data: bytes, position: int) -> Reading:
    """A chunk's first line that has not ended: it may be refused already, and may wait for its end."""
    return Reading(UNSURE if len(data) - position > 4000 else MORE, position, "a chunk line has no end")


def _chunk_line_fault(line: bytes) -> str:
    if line[-1:] != b"\r":
        return "a chunk line ends in a bare line feed"
    digits, semicolon, extension = line[:-1].partition(b";")
    if semicolon:
        digits = digits.rstrip(b" \t")  # RFC 9112, 7.1.1: BWS, by way of an erratum
    if not digits or not HEX.issuperset(digits) or len(digits) > 16:
        return f"the chunk size {digits[:40]!r}"
    if b"\r" in extension or b"\0" in extension:
        return "a bare CR or NUL in a chunk extension"
    return ""


def _trailers(data: bytes, position: int, body: bytes) -> Reading:
    lines = 0
    while True:
        end = data.find(b"\n", position)
        if end < 0:
            return Reading(UNSURE if len(data) - position > 4000 else MORE, position, "the trailers have no end")
        line = data[position:end]
        position = end + 1
        if line[-1:] != b"\r":
            return Reading(REFUSED, position, "a trailer line ends in a bare line feed")
        line = line[:-1]
        if not line:
            return Reading(TAKEN, position, body=body)
        lines += 1
        if lines > 60:
            return Reading(UNSURE, position, "many trailers")
        name, colon, value = line.partition(b":")
        if not colon or not name or not TOKEN.issuperset(name) or CONTROLS.intersection(value):
            return Reading(REFUSED, position, f"the trailer line {line[:60]!r}")
