"""What stands in a large JSON text, without making objects of it.

An answer of 40 MiB may hold 13 million empty objects, which take 25 times its size once they are parsed. So a text of
more than `LARGE_BYTES` is only skimmed: checked to be JSON, in slices between which others get the interpreter's lock,
and what is small and near its top is read; the rest stays a `Span` of its bytes. Pure functions; no state.

The check reduces a slice to its tokens, one byte each, and these to what is still open: a string becomes `"`, a number
or a word `0`, a key with its colon `k`, a member `m`, and whatever is whole `0` again. Every step is one call into C.
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, NamedTuple, Union

LARGE_BYTES = 1_048_576
"""Texts of up to this size are parsed as a whole: the worst of them take 25 ms and 25 MiB."""
SLICE_BYTES = 65_536
READ_BYTES = 65_536
"""Values of up to this size are read, where they are looked for ..."""
READ_TOTAL_BYTES = 262_144
"""... and all of them together."""
DEPTH_MAX = 32
"""Answers nest about 10 deep."""
LOOK_MAX = 8
"""Levels that are looked into; a text of a message is 4 deep."""
MEMBERS_MAX = 1_000
"""Of an object or list that is looked into; answers have tens."""
WORD_MAX_BYTES = 4_300
"""Of a number: as many digits as Python reads."""
LOOKED_INTO = ("choices", "message", "delta")

Text = Union[bytes, bytearray]

_WORD = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")
_WORD_BYTES = b"-+.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Without the sign, so that it begins with one set, which the engine looks for quickly. (A 0 is a number of its
# own: what follows it does not fit then.)
_NUMBER = re.compile(rb"[0-9](?:(?<!0)[0-9]+)?(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_ESCAPE_BEGUN = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_NO_ESCAPE = re.compile(rb"\\(?![bfnrt/]|u[0-9a-fA-F]{4})")
_BRACKETS = re.compile(rb'"[^"]*"?|[\[\]{}]')
_TOKENS = b'[]{},:"0'
_WHOLE = frozenset((b"(]", b"(0]", b"<}", b"<m}"))
_SPACE = b" \t\n\r"
_NOT_SPACE = re.compile(rb"[^ \t\n\r]")
_NOT_CONTROL = bytes(range(0x20, 256))


class NotJson(ValueError):
    """The text is no JSON, or of a kind that no answer has."""


class Span(NamedTuple):
    """A value that has not been read: `kind` is its first character, its bytes are `text[start:end]`."""

    kind: str
    start: int
    end: int


class Outline(NamedTuple):
    """A JSON object: its members (small ones read, others `Span`s), where each value stands, and how many values there
    are about in all that was not looked into."""

    members: dict[str, Any]
    places: dict[str, tuple[int, int]]
    values: int


def outline(text: Text) -> Outline:
    """The outline of the JSON object in `text`. Raises NotJson."""
    _check_utf8(text)
    skim = _Skim(text)
    start = skim.next(0)
    if text[start : start + 1] != b"{":
        raise NotJson("not a JSON object")
    found = skim.object(start, LOOK_MAX)
    if isinstance(found, int):
        raise NotJson("too many members")
    members, places, end = found
    if _next(text, end) >= 0:
        raise NotJson("something behind the object")
    return Outline(members, places, skim.values)


def _check_utf8(text: Text) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(text), SLICE_BYTES):
            decoder.decode(text[start : start + SLICE_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise NotJson("not UTF-8") from None


def _next(text: Text, position: int) -> int:
    """Where the next byte stands that is no space; -1: nowhere."""
    for start in range(position, len(text), SLICE_BYTES):
        found = _NOT_SPACE.search(text, start, start + SLICE_BYTES)
        if found is not None:
            return found.start()
    return -1


def _refuse_constant(name: str) -> None:
    raise NotJson(f"{name} is not JSON")


class _Skim:
    """One text, being skimmed."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._left_bytes = READ_TOTAL_BYTES
        self._left_nodes = 10 * MEMBERS_MAX
        self.values = 0

    def next(self, position: int) -> int:
        """Where the next byte stands that is no space."""
        found = _next(self._text, position)
        if found < 0:
            raise NotJson("the text ends early")
        return found

    # --- what is looked into -----------------------------------------------------------------------------------------

    def object(self, start: int, look: int) -> Union[tuple[dict[str, Any], dict[str, tuple[int, int]], int], int]:
        """The object that begins at `start`, its values' places, and its end; a number: it has too many members, and
        this is where looking at them has ended.

        `look`: how many levels may be looked into, this one included; 0: none.
        """
        text = self._text
        members: dict[str, Any] = {}
        places: dict[str, tuple[int, int]] = {}
        position = self.next(start + 1)
        if text[position : position + 1] == b"}":
            return members, places, position + 1
        while True:
            key, position = self._key(position)
            if key in members:
                raise NotJson("a key stands twice in one object")
            begin = self.next(position)
            members[key], position = self._value(begin, look - 1 if key in LOOKED_INTO else 0)
            places[key] = (begin, position)
            position = self.next(position)
            mark = text[position : position + 1]
            if mark == b"}":
                return members, places, position + 1
            if mark != b",":
                raise NotJson("an object without an end")
            if not self._may_go_on(len(members)):
                return position
            position = self.next(position + 1)

    def _key(self, position: int) -> tuple[str, int]:
        if self._text[position : position + 1] != b'"':
            raise NotJson("a key that is no string")
        end = self._string_end(position)
        if end - position > WORD_MAX_BYTES:
            raise NotJson("a key that is too long")
        key = self._load(position, end)
        colon = self.next(end)
        if self._text[colon : colon + 1] != b":":
            raise NotJson("a key without a value")
        return str(key), colon + 1

    def _list(self, start: int, look: int) -> Union[tuple[list[Any], int], int]:
        text = self._text
        items: list[Any] = []
        position = self.next(start + 1)
        if text[position : position + 1] == b"]":
            return items, position + 1
        while True:
            item, position = self._value(position, look - 1)
            items.append(item)
            position = self.next(position)
            mark = text[position : position + 1]
            if mark == b"]":
                return items, position + 1
            if mark != b",":
                raise NotJson("a list without an end")
            if not self._may_go_on(len(items)):
                return position
            position = self.next(position + 1)

    def _may_go_on(self, seen: int) -> bool:
        self._left_nodes -= 1
        return seen < MEMBERS_MAX and self._left_nodes > 0

    def _value(self, start: int, look: int) -> tuple[Any, int]:
        """The value that begins at `start`, read if it is small or, with `look`, looked into; and its end."""
        kind = self._text[start : start + 1]
        seen, still_open = start, b""  # how far it has been looked at, and what is open there
        if look > 0 and kind == b"{":
            found = self.object(start, look)
            if not isinstance(found, int):
                return found[0], found[2]
            seen, still_open = found, b"<m"
        elif look > 0 and kind == b"[":
            items = self._list(start, look)
            if not isinstance(items, int):
                return items
            seen, still_open = items, b"(0"
        if kind == b'"':
            end = self._string_end(start)
        elif kind in (b"[", b"{"):
            end = self._container_end(seen, still_open)
        else:
            word = _WORD.match(self._text, start, start + WORD_MAX_BYTES)
            if word is None:
                raise NotJson("no value")
            end = word.end()
        size = end - start
        if size > READ_BYTES or size > self._left_bytes:
            return Span(kind.decode("latin-1"), start, end), end
        self._left_bytes -= size
        return self._load(start, end), end

    def _load(self, start: int, end: int) -> Any:
        try:
            return json.loads(self._text[start:end].decode(), parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise NotJson("no value") from None

    # --- what is passed over -----------------------------------------------------------------------------------------

    def _piece(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position`, not cut in an escape; those that could be taken for an end are `_`."""
        piece = bytes(self._text[position : position + size])
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"__").replace(b'\\"', b"__")
            begun = _ESCAPE_BEGUN.search(piece, max(0, len(piece) - 5))
            if begun is not None and position + size < len(self._text):
                piece = piece[: begun.start()]
            if _NO_ESCAPE.search(piece):
                raise NotJson("an unknown escape")
        if not piece:
            raise NotJson("the text ends early")
        return piece

    def _string_end(self, start: int) -> int:
        position, size = start + 1, min(64, SLICE_BYTES)
        while True:
            piece = self._piece(position, size)
            end = piece.find(b'"')
            if (piece if end < 0 else piece[:end]).translate(None, _NOT_CONTROL):
                raise NotJson("a control character in a string")
            if end >= 0:
                return position + end + 1
            position += len(piece)
            size = min(4 * size, SLICE_BYTES)

    def _container_end(self, start: int, still_open: bytes) -> int:
        """The end of the list or object that begins at `start` or, with something `still_open`, goes on there: nothing
        is gone through twice, however many of them are in each other."""
        position, size = start, min(1024, SLICE_BYTES)
        word, in_string = b"", False
        while True:
            piece = self._piece(position, size)
            tokens, next_word, ends_in_string = _tokens(word, piece, in_string)
            self.values += tokens.count(b",") + tokens.count(b"{") + tokens.count(b"[")
            left = _reduce(still_open, tokens)
            if b"]" in left or b"}" in left:
                end = _closing(piece, in_string, sum(map(still_open.count, (b"[", b"{", b"(", b"<"))))
                tokens = _tokens(word, piece[:end], in_string)[0]
                if not end or _reduce(still_open, tokens) not in _WHOLE:
                    raise NotJson("brackets that do not fit")
                return position + end
            still_open, word, in_string = left, next_word, ends_in_string
            position += len(piece)
            size = min(4 * size, SLICE_BYTES)


def _tokens(word: bytes, piece: bytes, in_string: bool) -> tuple[bytes, bytes, bool]:
    """The tokens of a piece behind a `word` that had begun; the word that its end begins; whether it ends in a
    string."""
    parts = piece.split(b'"')
    inside, outside = (parts[0::2], parts[1::2]) if in_string else (parts[1::2], parts[0::2])
    if piece.translate(None, _NOT_CONTROL) and b"".join(inside).translate(None, _NOT_CONTROL):
        raise NotJson("a control character in a string")
    ends_in_string = in_string == (len(parts) % 2 == 1)
    text = b'"'.join(outside)
    text = b'"' + text if in_string and outside else word + text
    word = b"" if ends_in_string else text[len(text.rstrip(_WORD_BYTES)) :]
    if len(word) > WORD_MAX_BYTES:
        raise NotJson("a number that is too long")
    text = text[: len(text) - len(word)]
    return _without_words(text).translate(None, _SPACE), word, ends_in_string


def _without_words(text: bytes) -> bytes:
    """The same with `0` for each number and word."""
    text = _NUMBER.sub(b"0", text).replace(b"-0", b"0")
    for word in (b"null", b"true", b"false"):
        if word in text:
            text = text.replace(word, b"0")
    if text.translate(None, _TOKENS + _SPACE):
        raise NotJson("neither a value nor a mark")
    return text


def _reduce(still_open: bytes, tokens: bytes) -> bytes:
    """What is left of these tokens behind what was open (b"": nothing): what is open then, or what does not fit.

    The first bracket of all is `(` or `<`, so that what closes it is left, too.
    """
    if not still_open:
        tokens = (b"(" if tokens[:1] == b"[" else b"<") + tokens[1:]
    text = (still_open + tokens).replace(b'":', b"k")
    pending = text[-1:] if text[-1:] == b'"' else b""  # a key, if a colon comes next
    text = text[: len(text) - len(pending)].replace(b'"', b"0")
    for _ in range(DEPTH_MAX + 2):
        before = text
        text = text.replace(b"k0", b"m")
        for pair, one in ((b"m,m", b"m"), (b"0,0", b"0")):
            while pair in text:
                text = text.replace(pair, one)
        text = text.replace(b"{m}", b"0").replace(b"{}", b"0").replace(b"[0]", b"0").replace(b"[]", b"0")
        if text == before:
            break
    else:
        raise NotJson(f"nested deeper than {DEPTH_MAX} levels")
    if len(text) > 8 * DEPTH_MAX and not (b"]" in text or b"}" in text):
        raise NotJson(f"nested deeper than {DEPTH_MAX} levels, or a mark out of place")
    return text + pending


def _closing(piece: bytes, in_string: bool, depth: int) -> int:
    """Behind which byte the outermost of `depth` open brackets (0: the first one here) is closed; 0: nowhere."""
    begin = piece.find(b'"') + 1 if in_string else 0
    for found in _BRACKETS.finditer(piece, begin):
        mark = found[0]
        if mark in (b"[", b"{"):
            depth += 1
        elif mark in (b"]", b"}"):
            depth -= 1
            if depth == 0:
                return found.end()
    return 0
