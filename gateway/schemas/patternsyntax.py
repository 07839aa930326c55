"""ECMA-262 regular expressions, read: from a pattern's text to a tree that says what it matches.

Pure. Read as with the flag `u`, and beside it what means the same in every language: punctuation may be escaped, and
`{`, `}` and `]` stand for themselves where they can mean nothing else. What needs backtracking (lookaround,
backreferences) is told apart from what is no pattern at all.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Optional, Union

from gateway.schemas.charsets import BY_ESCAPE, NOT_LINE_END, CharSet, of_category, single

LENGTH_MAX = 4096
"""Characters of a pattern."""
NEST_MAX = 30
"""Groups within groups."""
SIZE_MAX = 5000
"""What a pattern may come to when its counted repetitions are written out."""


class PatternFaulty(ValueError):
    """The text is no ECMA-262 pattern."""


class PatternUnsupported(ValueError):
    """The pattern cannot be matched in linear time, or is too large."""


class Assertion(NamedTuple):
    """A place: `^` the beginning, `$` the end, `b` where a word begins or ends, `B` where none does."""

    kind: str


class Chain(NamedTuple):
    """One behind the other; nothing, when empty."""

    parts: tuple[Tree, ...]


class Choice(NamedTuple):
    """Any of them."""

    parts: tuple[Tree, ...]


class Repeated(NamedTuple):
    """`part`, from `least` to `most` times; None: without end."""

    part: Tree
    least: int
    most: Optional[int]


Tree = Union[CharSet, Assertion, Chain, Choice, Repeated]

_SIMPLE_ESCAPES = {"t": 0x09, "n": 0x0A, "v": 0x0B, "f": 0x0C, "r": 0x0D}
_COUNTED = re.compile(r"\{([0-9]{1,10})(,([0-9]{1,10})?)?\}")
_HEX = re.compile(r"[0-9A-Fa-f]+")
_GROUP_NAME = re.compile(r"\?<[^\W\d]\w*>")
_UNSUPPORTED_GROUPS = {"?=": "lookahead", "?!": "lookahead", "?<=": "lookbehind", "?<!": "lookbehind"}


def parse(pattern: str) -> Tree:
    """What a pattern matches. Raises PatternFaulty, PatternUnsupported; both name the place."""
    if len(pattern) > LENGTH_MAX:
        raise PatternUnsupported(f"a pattern may have at most {LENGTH_MAX} characters")
    parser = _Parser(pattern)
    tree = parser.choice(0)
    if parser.at < len(pattern):
        raise parser.faulty("unmatched )")
    if size(tree) > SIZE_MAX:
        raise PatternUnsupported(f"the pattern's repetitions come to more than {SIZE_MAX} steps")
    return tree


def size(tree: Tree) -> int:
    """How many steps a tree comes to, its counted repetitions written out."""
    if isinstance(tree, Repeated):
        return (size(tree.part) + 1) * max(1, tree.least + 1 if tree.most is None else tree.most)
    if isinstance(tree, (Chain, Choice)):
        return 1 + sum(size(part) for part in tree.parts)
    return 1


class _Parser:
    """Recursive descent over one pattern; `at` is where it stands."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def faulty(self, what: str) -> PatternFaulty:
        return PatternFaulty(f"{what} at character {self.at}")

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def accept(self, token: str) -> bool:
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def choice(self, nested: int) -> Tree:
        parts = [self.chain(nested)]
        while self.accept("|"):
            parts.append(self.chain(nested))
        return parts[0] if len(parts) == 1 else Choice(tuple(parts))

    def chain(self, nested: int) -> Tree:
        parts: list[Tree] = []
        while self.peek() not in ("", "|", ")"):
            parts.append(self.quantified(nested))
        return parts[0] if len(parts) == 1 else Chain(tuple(parts))

    def quantified(self, nested: int) -> Tree:
        atom = self.atom(nested)
        bounds = self.quantifier()
        if bounds is None:
            return atom
        if isinstance(atom, Assertion):
            raise self.faulty("a quantifier behind nothing that repeats")
        self.accept("?")  # lazy: another match, but a match all the same
        if self.peek() in ("*", "+", "?") or self.quantifier() is not None:
            raise self.faulty("a quantifier behind a quantifier")
        return Repeated(atom, *bounds)

    def quantifier(self) -> Optional[tuple[int, Optional[int]]]:
        for token, least, most in (("*", 0, None), ("+", 1, None), ("?", 0, 1)):
            if self.accept(token):
                return least, most
        found = _COUNTED.match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        least = int(found[1])
        most = least if found[2] is None else int(found[3]) if found[3] else None
        if most is not None and most < least:
            raise self.faulty("a quantifier's numbers are out of order")
        return least, most

    def atom(self, nested: int) -> Tree:
        character = self.peek()
        if character in ("*", "+", "?") or _COUNTED.match(self.text, self.at):
            raise self.faulty("a quantifier behind nothing that repeats")
        self.at += 1
        if character == "(":
            return self.group(nested)
        if character == "[":
            return self.char_class()
        if character == ".":
            return NOT_LINE_END
        if character in ("^", "$"):
            return Assertion(character)
        if character != "\\":
            return single(ord(character))
        escaped = self.peek()
        if escaped in ("b", "B"):
            self.at += 1
            return Assertion(escaped)
        if escaped == "k" or escaped in tuple("123456789"):
            raise PatternUnsupported(f"a backreference at character {self.at} is not supported")
        return self.escape()

    def group(self, nested: int) -> Tree:
        if nested >= NEST_MAX:
            raise PatternUnsupported(f"groups are nested deeper than {NEST_MAX}")
        if self.peek() == "?":
            for token, what in _UNSUPPORTED_GROUPS.items():
                if self.text.startswith(token, self.at):
                    raise PatternUnsupported(f"a {what} at character {self.at} is not supported")
            name = _GROUP_NAME.match(self.text, self.at)
            if name is not None:
                self.at = name.end()
            elif not self.accept("?:"):
                raise self.faulty("a group of a kind that ECMA-262 does not have")
        inner = self.choice(nested + 1)
        if not self.accept(")"):
            raise self.faulty("a group is not closed")
        return Chain((inner,))  # which may be repeated, were it a place alone

    def char_class(self) -> CharSet:
        negated = self.accept("^")
        ranges: list[tuple[int, int]] = []
        parts: list[CharSet] = []
        while not self.accept("]"):
            first = self.class_atom()
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                last = self.class_atom()
                if len(first.ranges) != 1 or len(last.ranges) != 1 or first.negated or last.negated:
                    raise self.faulty("a range of sets")
                start, end = first.ranges[0][0], last.ranges[0][1]
                if start > end or first.ranges[0][1] != start or last.ranges[0][0] != end:
                    raise self.faulty("a range is out of order")
                ranges.append((start, end))
            elif first.categories or first.negated:
                parts.append(first)
            else:
                ranges.extend(first.ranges)
        return CharSet(tuple(ranges), parts=tuple(parts), negated=negated)

    def class_atom(self) -> CharSet:
        character = self.peek()
        if not character:
            raise self.faulty("a class is not closed")
        self.at += 1
        if character != "\\":
            return single(ord(character))
        return single(0x08) if self.accept("b") else self.escape()

    def escape(self) -> CharSet:
        """What stands behind a backslash and is a set of characters, most often of one."""
        character = self.peek()
        self.at += 1
        if character in BY_ESCAPE:
            return BY_ESCAPE[character]
        if character in ("p", "P"):
            return self.property(negated=character == "P")
        return single(self.escaped_code(character))

    def escaped_code(self, character: str) -> int:
        if character in _SIMPLE_ESCAPES:
            return _SIMPLE_ESCAPES[character]
        if character == "c":
            letter = self.peek()
            if letter.isascii() and letter.isalpha():
                self.at += 1
                return ord(letter) % 32
        elif character == "0":
            if self.peek() not in tuple("0123456789"):
                return 0
        elif character == "x":
            return self.hexadecimal(2)
        elif character == "u":
            return self.code_point()
        elif character and not character.isalnum():
            return ord(character)
        raise self.faulty("an escape that ECMA-262 does not have")

    def code_point(self) -> int:
        if self.accept("{"):
            found = _HEX.match(self.text, self.at)
            if found is None or len(found[0].lstrip("0")) > 6 or int(found[0], 16) > 0x10FFFF:
                raise self.faulty("no code point")
            self.at = found.end()
            if not self.accept("}"):
                raise self.faulty("no code point")
            return int(found[0], 16)
        high = self.hexadecimal(4)
        if 0xD800 <= high <= 0xDBFF and re.compile(r"\\u[dD][c-fC-F][0-9A-Fa-f]{2}").match(self.text, self.at):
            self.at += 2
            return 0x10000 + ((high - 0xD800) << 10) + (self.hexadecimal(4) - 0xDC00)
        return high

    def hexadecimal(self, digits: int) -> int:
        text = self.text[self.at : self.at + digits]
        if len(text) != digits or _HEX.fullmatch(text) is None:
            raise self.faulty("too few hexadecimal digits")
        self.at += digits
        return int(text, 16)

    def property(self, negated: bool) -> CharSet:
        end = self.text.find("}", self.at)
        if not self.accept("{") or end < 0:
            raise self.faulty("a property without a name")
        name = self.text[self.at : end]
        found = of_category(name)
        if found is None:
            raise PatternUnsupported(f"the property {name[:40]!r} is no general category; others are not supported")
        self.at = end + 1
        return found.complement() if negated else found
