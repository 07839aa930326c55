"""What a function's inputs look like, learned from the calls that are known: the near domain that fuzz keeps to.

Runs inside the sandbox. A `Shape` describes one parameter, or the elements of a container: which types occur, whether
negative numbers, zero and emptiness do, which characters texts are made of. A right program owes nothing outside of
it; so what lies outside is tried too, but only inside may a difference count against an answer.
"""

from __future__ import annotations

import re
from typing import Optional

_EXTRA_BY_CLASS = (
    ("abcdefghijklmnopqrstuvwxyz", "aeiouybcz"),
    ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "AEIOUYBCZ"),
    ("0123456789", "0123456789"),
)
_NUMERIC = re.compile(r"-?\d+(\.\d+)?$")
WILD_CHARS = "aZ0 9.,-_yE"
SEEN_MAX = 60
_TEXT_NAMES = re.compile(
    r"(s|st|str|string|text|txt|word|message|sentence|name|filename|file_name|brackets|date|paren_string|char|pattern|\w*_str|\w*string|\w*text)\d?$"
)
_LIST_NAMES = re.compile(
    r"(l|lst|arr|array|nums|numbers|xs|ys|values|items|list\w*|\w*list|\w*array|grid|data|elements|seq)\d?$"
)
_TEXTS_NAMES = re.compile(r"(words|strings|names|lines|sentences|texts)\d?$")
_BY_TYPE = (
    (re.compile(r"(?i)^(list|sequence|iterable|collection)\[(list|sequence)"), [[[1, 2], [3, 4]], [[1]]]),
    (re.compile(r"(?i)^(list|sequence|iterable|collection)\[str\]|^tuple\[str"), [["a", "bb", "ccc"], ["word", "a"]]),
    (re.compile(r"(?i)^(list|sequence|iterable|collection)\[float\]"), [[1.0, 2.5, 2.0], [0.5]]),
    (re.compile(r"(?i)^(list|sequence|iterable|collection|array)\b"), [[3, 1, 2], [1, 2, 2, 5]]),
    (re.compile(r"(?i)^set\b"), [{1, 2, 3}]),
    (re.compile(r"(?i)^tuple\b"), [(1, 2, 3)]),
    (re.compile(r"(?i)^(dict|mapping)\b"), [{"a": 1, "b": 2}]),
    (re.compile(r"^(int|Optional\[int\])"), [3, 10]),
    (re.compile(r"^(float|Optional\[float\]|complex)"), [1.5, 3.0]),
    (re.compile(r"^(str|Optional\[str\])"), ["abc", "hello world"]),
    (re.compile(r"^bool"), [True, False]),
    (re.compile(r"^bytes"), [b"abc"]),
)


class Shape:
    """What was seen at one place. `observe` values, then read. Not thread-safe."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.seen: list[object] = []
        self.negative = self.zero = self.empty = False
        self.largest = 0.0
        self.longest = 0
        self.sorted = True
        self.long_lists = 0
        self.sizes: set[int] = set()
        self.rectangular = True
        self.chars: set[str] = set()
        self.elements: Optional[Shape] = None
        self.entries: Optional[Shape] = None  # a dict's values; `elements` are its keys

    def observe(self, value: object) -> None:
        kind = type(value).__name__
        if kind not in self.kinds:
            self.kinds.append(kind)
        if len(self.seen) < SEEN_MAX:
            self.seen.append(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            self.negative |= value < 0
            self.zero |= value == 0
            self.largest = max(self.largest, abs(value)) if value == value and abs(value) < 1e300 else self.largest
        elif isinstance(value, (str, bytes, list, tuple, set, dict)):
            self.empty |= not value
            self.longest = max(self.longest, len(value))
            self.sizes.add(len(value))
            self._observe_parts(value)

    def _observe_parts(self, value: object) -> None:
        if isinstance(value, str):
            self.chars.update(value)
        if isinstance(value, (list, tuple, set, dict)):
            if self.elements is None:
                self.elements = Shape()
            for part in list(value)[:200]:
                self.elements.observe(part)
        if isinstance(value, dict):
            if self.entries is None:
                self.entries = Shape()
            for part in list(value.values())[:200]:
                self.entries.observe(part)
        if isinstance(value, (list, tuple)):
            self.rectangular &= len({len(row) for row in value if isinstance(row, (list, tuple, str))}) < 2
        if isinstance(value, list) and len(value) > 2:
            self.long_lists += 1
            try:
                self.sorted &= value == sorted(value)
            except TypeError:
                self.sorted = False

    def numbers(self) -> list[float]:
        return [value for value in self.seen if isinstance(value, (int, float)) and not isinstance(value, bool)]

    def texts(self) -> list[str]:
        return [value for value in self.seen if isinstance(value, str)]

    def is_binary(self) -> bool:
        """Whether the ints are flags: often seen, and none but 0 and 1."""
        numbers = self.numbers()
        return self.kinds == ["int"] and len(numbers) >= 6 and set(numbers) == {0, 1}

    def is_pair(self) -> bool:
        """Whether the containers are pairs: two points, two ends."""
        return self.sizes == {2} and len(self.seen) > 1

    def is_even(self) -> bool:
        """Whether containers of several sizes were seen, and all of them even."""
        return len(self.sizes) > 1 and not any(size % 2 for size in self.sizes)


class Hints:
    """What a prompt says about inputs in so many words."""

    def __init__(self, prompt: str) -> None:
        text = prompt.lower()
        alone = re.search(r"(?<!non)(?<!non-)(?<!non )(?<!no )\bnegative|-\s?10\d*,", text)
        self.negative = bool(alone) and not re.search(r"no negative (numbers|integers|values)", text)
        self.zero = bool(re.search(r"non-?\s?negative|natural number|≥ ?0|>= ?0|0 ?(<=|≤)|\bzero\b", text))
        self.empty = bool(re.search(r"\bempty\b", text)) and not re.search(r"(non-?\s?|not |n't be )empty", text)
        self.sorted = bool(re.search(r"\bsorted (list|array|sequence)|(already|is|are) sorted|in sorted order", text))


class Wording:
    """What the texts at one place are like. Made once all calls are known; then only read."""

    def __init__(self, shape: Shape, literals: list[str]) -> None:
        texts = [text for text in shape.texts() if text]
        self.numeric = bool(texts) and not shape.chars <= set("01") and all(map(_NUMERIC.match, texts))
        self.fractions = "." in shape.chars
        self.blank_ends = any(text != text.strip() for text in texts)
        self.blank_runs = any("  " in text.strip() for text in texts)
        self.balanced = [
            pair
            for pair in ("()", "[]", "{}", "<>")
            if set(pair) & shape.chars and all(_balanced(t, pair) for t in texts)
        ]
        self.words = _vocabulary(texts, literals)

    def fits(self, text: str) -> bool:
        """Whether `text` is one of the kind: for a fuzzed one to be near."""
        if not self.blank_ends and text != text.strip():
            return False
        if not self.blank_runs and "  " in text:
            return False
        return all(_balanced(text, pair) for pair in self.balanced)


def _vocabulary(texts: list[str], literals: list[str]) -> list[str]:
    """The words that texts are made of, where they are made of few, or of words that the programs know."""
    tokens = [token for text in texts for token in text.split(" ") if token]
    distinct = list(dict.fromkeys(tokens))
    words = [word for word in literals if len(word) > 1 and " " not in word]
    if tokens and len(words) >= 4 and set(distinct) <= set(words):
        alike = [word for word in words if word.isalpha() == distinct[0].isalpha()]
        return list(dict.fromkeys([*distinct, *alike]))
    for text in texts:
        parts = text.split()
        if len(parts) >= 4 and (len(set(parts)) * 2 <= len(parts) or all(len(part) == 1 for part in parts)):
            return distinct
    return []


def _balanced(text: str, pair: str) -> bool:
    depth = 0
    for char in text:
        depth += (char == pair[0]) - (char == pair[1])
        if depth < 0:
            return False
    return depth == 0


def alphabet(shape: Shape, near: bool, texts: list[str]) -> list[str]:
    """Returns the characters a text may be made of: those seen, and more of the kinds seen; anything when not near."""
    chars = set(shape.chars)
    for whole, some in _EXTRA_BY_CLASS:
        if chars & set(whole):
            chars |= set(some)
    for text in texts:
        if len(text) <= 2 and (not near or all(_kind(char) in map(_kind, shape.chars) for char in text)):
            chars |= set(text)
    if not near:
        chars |= set(WILD_CHARS)
    return sorted(chars) or list("abc")


def _kind(char: str) -> str:
    return "a" if char.islower() else "A" if char.isupper() else "0" if char.isdigit() else " " if char == " " else "."


def guesses(name: str, declared: str) -> list[object]:
    """Returns values for a parameter of which no call is known, by its declared type, else by its name, else none."""
    for pattern, values in _BY_TYPE:
        if pattern.search(declared):
            return list(values)
    lower = name.lower()
    if _TEXTS_NAMES.match(lower):
        return [["a", "bb", "ccc"], ["word", "a"]]
    if _LIST_NAMES.match(lower):
        return [[3, 1, 2], [1, 2, 2, 5]]
    if _TEXT_NAMES.match(lower):
        return ["abc", "hello world"]
    return []
