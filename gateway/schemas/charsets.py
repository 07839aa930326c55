"""Sets of characters as patterns name them: ranges, `\\d`, `\\w`, `\\s`, general categories.

Pure. Categories are those of the interpreter's Unicode version.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple, Optional


class CharSet(NamedTuple):
    """Characters in any of `ranges` (code points, both ends included), `categories` or `parts`; `negated`: all others.

    `categories` are general ones by their two letters, or by the first of them.
    """

    ranges: tuple[tuple[int, int], ...] = ()
    categories: frozenset[str] = frozenset()
    parts: tuple[CharSet, ...] = ()
    negated: bool = False

    def has(self, character: str) -> bool:
        """Whether the set holds a character."""
        code = ord(character)
        found = any(first <= code <= last for first, last in self.ranges)
        if not found and self.categories:
            category = unicodedata.category(character)
            found = category in self.categories or category[0] in self.categories
        return (found or any(part.has(character) for part in self.parts)) != self.negated

    def complement(self) -> CharSet:
        """Every character that is not in this one."""
        return self._replace(negated=not self.negated)


def single(code: int) -> CharSet:
    """The set of one code point."""
    return CharSet(((code, code),))


DIGIT = CharSet(((0x30, 0x39),))
WORD = CharSet(((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)))
# ECMA-262's WhiteSpace and LineTerminator.
_BLANKS = (0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000, 0xFEFF)
SPACE = CharSet(((0x09, 0x0D), (0x20, 0x20), (0x2000, 0x200A), *((code, code) for code in _BLANKS)))
NOT_LINE_END = CharSet(((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)), negated=True)
BY_ESCAPE = {
    "d": DIGIT,
    "D": DIGIT.complement(),
    "w": WORD,
    "W": WORD.complement(),
    "s": SPACE,
    "S": SPACE.complement(),
}

_CATEGORIES = {
    "C": "Other",
    "Cc": "Control cntrl",
    "Cf": "Format",
    "Cn": "Unassigned",
    "Co": "Private_Use",
    "Cs": "Surrogate",
    "L": "Letter",
    "Ll": "Lowercase_Letter",
    "Lm": "Modifier_Letter",
    "Lo": "Other_Letter",
    "Lt": "Titlecase_Letter",
    "Lu": "Uppercase_Letter",
    "M": "Mark Combining_Mark",
    "Mc": "Spacing_Mark",
    "Me": "Enclosing_Mark",
    "Mn": "Nonspacing_Mark",
    "N": "Number",
    "Nd": "Decimal_Number digit",
    "Nl": "Letter_Number",
    "No": "Other_Number",
    "P": "Punctuation punct",
    "Pc": "Connector_Punctuation",
    "Pd": "Dash_Punctuation",
    "Pe": "Close_Punctuation",
    "Pf": "Final_Punctuation",
    "Pi": "Initial_Punctuation",
    "Po": "Other_Punctuation",
    "Ps": "Open_Punctuation",
    "S": "Symbol",
    "Sc": "Currency_Symbol",
    "Sk": "Modifier_Symbol",
    "Sm": "Math_Symbol",
    "So": "Other_Symbol",
    "Z": "Separator",
    "Zl": "Line_Separator",
    "Zp": "Paragraph_Separator",
    "Zs": "Space_Separator",
}
_CATEGORY_BY_NAME = {name: short for short, names in _CATEGORIES.items() for name in (short, *names.split())}
_CASED = frozenset({"Lu", "Ll", "Lt"})


def of_category(name: str) -> Optional[CharSet]:
    """What `\\p{name}` holds; None for a name that is no general category."""
    prefix, equals, value = name.partition("=")
    if equals:
        name = value if prefix in ("gc", "General_Category") else ""
    if name in ("LC", "Cased_Letter"):
        return CharSet(categories=_CASED)
    category = _CATEGORY_BY_NAME.get(name)
    return None if category is None else CharSet(categories=frozenset({category}))
