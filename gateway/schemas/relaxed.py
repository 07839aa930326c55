"""JSON in the middle of a text, and JSON as models miswrite it, made JSON: habits that leave no doubt what was meant.

Pure, and linear in the text. Nothing is made up: what is not closed is left alone, and whether what comes out is JSON
at all is for a strict reader to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, Optional

DEPTH_MAX = 128
"""Brackets within each other."""
FOUND_MAX = 16
"""How many pieces of a text are looked at."""

_TOKEN = re.compile(
    r"""(?P<string>"[^"\\]*(?:\\.[^"\\]*)*"?)
    |(?P<single>'[^'\\]*(?:\\.[^'\\]*)*'?)
    |(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<word>[A-Za-z_]+)
    |(?P<open>[\[{])
    |(?P<close>[\]}])
    |(?P<comma>,)
    |(?P<other>[^"'/A-Za-z_\[\]{},]+|/)""",
    re.VERBOSE | re.DOTALL,
)
_OPENING = re.compile(r"[\[{]")
_FENCE = re.compile(r"```[A-Za-z0-9_-]*")
_CONTROLS = re.compile(r"[\x00-\x1f]")
_IN_SINGLE_QUOTES = re.compile(r"\\(.)|\"", re.DOTALL)
_LITERALS = {"True": "true", "False": "false", "None": "null"}


class Piece(NamedTuple):
    """Something in brackets: as JSON, and what had to be done for it."""

    text: str
    repairs: tuple[str, ...]
    """Of `code_fence`, `text_around`; `comment`, `control_character`, `python_literal`, `single_quotes`,
    `trailing_comma`."""


def pieces(text: str) -> Iterator[Piece]:
    """What stands in brackets in a text, each with all that is within it.

    Ends at a bracket that is not closed: what stands in it may be a part of something that was cut off.
    """
    end = 0
    for _ in range(FOUND_MAX):
        opening = _OPENING.search(text, end)
        if opening is None:
            return
        writer = _Writer()
        closed = writer.write(text, opening.start())
        if closed is None:
            return
        end = closed
        yield Piece("".join(writer.pieces), (*_around(text, opening.start(), end), *sorted(writer.repairs)))


def _around(text: str, start: int, end: int) -> Iterator[str]:
    rest, fences = _FENCE.subn("", f"{text[:start]}\n{text[end:]}")
    if fences:
        yield "code_fence"
    if rest.strip():
        yield "text_around"


class _Writer:
    """Writes one value in brackets as JSON, token by token."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.repairs: set[str] = set()

    def write(self, text: str, start: int) -> Optional[int]:
        """Write what begins at `start`; returns where it ends, None where it does not."""
        depth = 0
        has_comma = False  # one that is written only when something follows it
        for token in _TOKEN.finditer(text, start):
            kind, piece = token.lastgroup, token[0]
            if kind == "comment":
                self.repairs.add("comment")
                continue
            if kind == "other" and piece.isspace():
                self.pieces.append(piece)
                continue
            if has_comma and kind == "close":
                self.repairs.add("trailing_comma")
            elif has_comma:
                self.pieces.append(",")
            has_comma = kind == "comma"
            if kind == "open":
                depth += 1
                if depth > DEPTH_MAX:
                    return None
            elif kind == "close":
                depth -= 1
            if not has_comma:
                self.pieces.append(self._written(kind, piece))
            if depth == 0:
                return token.end()
        return None

    def _written(self, kind: Optional[str], piece: str) -> str:
        if kind == "single":
            self.repairs.add("single_quotes")
            piece = f'"{_IN_SINGLE_QUOTES.sub(_requoted, piece[1:-1])}"'
        elif kind == "word" and piece in _LITERALS:
            self.repairs.add("python_literal")
            return _LITERALS[piece]
        if kind in ("string", "single") and _CONTROLS.search(piece):
            self.repairs.add("control_character")
            return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", piece)
        return piece


def _requoted(found: re.Match[str]) -> str:
    if found[1] is None:
        return '\\"'
    return "'" if found[1] == "'" else found[0]
