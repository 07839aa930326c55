"""Texts like those seen: fresh ones and variations, in the near domain or outside of it.

Runs inside the sandbox. Near texts keep what all texts seen have in common: characters, the form of a date or a
fraction, words of a small vocabulary, brackets that close, blanks that stand single.
"""

from __future__ import annotations

import re
from random import Random
from typing import Callable

from gateway.verify.harness.domain import WILD_CHARS, Shape, Wording, alphabet  # in the sandbox this file stands before
from gateway.verify.harness.mining import Pool

TEXT_MAX = 80
_TRIES = 6


class Texts:
    """Makes texts. `near`: keep to what a Shape shows. Not thread-safe."""

    def __init__(self, pool: Pool, rng: Random, near: bool) -> None:
        self._pool = pool
        self._rng = rng
        self._near = near
        self._wordings: dict[int, Wording] = {}  # by the shape's id: shapes outlive this

    def fresh(self, shape: Shape) -> str:
        """Returns a new text."""
        seen = shape.texts() or ["abc"]
        if not self._near:
            return (self._changed if self._rng.random() < 0.35 else self._spelled)(self._rng.choice(seen), shape)
        wording = self._wording(shape)
        if wording.words:
            return self._sentence(wording, shape)
        if wording.numeric:
            return self._number(wording, shape)
        if wording.balanced and self._rng.random() < 0.6:
            return self._nested(wording.balanced, shape)
        return self._fitting(
            self._changed if self._rng.random() < (0.8 if _is_form(shape) else 0.35) else self._spelled, shape
        )

    def varied(self, text: str, shape: Shape) -> str:
        """Returns `text` with a small change."""
        if not self._near:
            return self._changed(text, shape)
        wording = self._wording(shape)
        if wording.words or wording.numeric:
            return self.fresh(shape)
        for _ in range(_TRIES):
            made = self._changed(text, shape)
            if wording.fits(made):
                return made
        return self.fresh(shape)

    def _wording(self, shape: Shape) -> Wording:
        if id(shape) not in self._wordings:
            self._wordings[id(shape)] = Wording(shape, self._pool.coded)
        return self._wordings[id(shape)]

    def _fitting(self, make: Callable[[str, Shape], str], shape: Shape) -> str:
        wording, seen = self._wording(shape), shape.texts() or ["abc"]
        for _ in range(_TRIES):
            made = make(self._rng.choice(seen), shape)
            if wording.fits(made):
                return made
        return self._rng.choice(seen)

    def _sentence(self, wording: Wording, shape: Shape) -> str:
        several = any(" " in text for text in shape.texts())
        count = self._rng.choice((1, 1, 2, 3, 4, 6, 8)) if several else 1
        few = [self._rng.choice(wording.words) for _ in range(self._rng.choice((1, 2, 3, count)))]
        return " ".join(self._rng.choice(few) for _ in range(count))[:TEXT_MAX]

    def _number(self, wording: Wording, shape: Shape) -> str:
        rng = self._rng
        largest = max(len(text.split(".")[0].lstrip("-")) for text in shape.texts() if text)
        whole = str(rng.choice((rng.randint(0, 12), rng.randint(0, 10 ** min(largest, 15) - 1), rng.randint(10, 130))))
        if rng.random() < 0.2:
            whole = "".join(rng.choice("0123456789") for _ in range(largest))
        if wording.fractions and rng.random() < 0.7:
            whole += rng.choice((".5", ".5", ".0", ".25", ".49", ".51", f".{rng.randint(1, 9)}"))
        return "-" + whole if "-" in shape.chars and rng.random() < 0.4 else whole

    def _nested(self, pairs: list[str], shape: Shape) -> str:
        """Brackets that close, some in each other; in groups, where blanks are seen."""
        groups = []
        for _ in range(self._rng.choice((1, 1, 2, 3, 4)) if " " in shape.chars else 1):
            made = ""
            open_ones: list[str] = []
            for _ in range(self._rng.choice((1, 1, 2, 3, 4, 6)) * 2):
                if open_ones and (self._rng.random() < 0.5 or len(open_ones) > 4):
                    made += open_ones.pop()[1]
                elif made.count("(") + made.count("[") + made.count("<") + made.count("{") < 8:
                    open_ones.append(self._rng.choice(pairs))
                    made += open_ones[-1][0]
            groups.append(made + "".join(pair[1] for pair in reversed(open_ones)))
        return " ".join(groups)[:TEXT_MAX]

    def _spelled(self, seen: str, shape: Shape) -> str:
        """A literal that fits, else a new text; often of few different characters, so that they repeat."""
        rng, literals = self._rng, self._pool.texts
        if literals and rng.random() < 0.2:
            made = rng.choice(literals)
            if not self._near or set(made) <= set(alphabet(shape, True, literals)):
                return made[:TEXT_MAX]
        chars = alphabet(shape, self._near, literals)
        letters = [rng.choice(chars) for _ in range(rng.choice((1, 2, 2, 3, 26)))]
        size = rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6, 8, max(1, shape.longest)))
        made = "".join(rng.choice(letters) for _ in range(min(size, TEXT_MAX)))
        if " " in shape.chars and rng.random() < 0.5:
            for _ in range(rng.randint(1, 3)):
                made += " " + "".join(rng.choice(chars) for _ in range(rng.randint(1, 4)))
        elif rng.random() < 0.15:
            made += made[::-1][rng.randrange(2) :]
        return self._allowed(made, shape, seen)

    def _changed(self, text: str, shape: Shape) -> str:
        rng = self._rng
        digits = list(re.finditer(r"\d+", text))
        if (
            self._near
            and digits
            and len(digits[0].group()) < len(text)
            and rng.random() < (0.85 if _is_form(shape) else 0.6)
        ):
            return self._other_digits(text, digits)
        chars = alphabet(shape, self._near, self._pool.texts)
        if not self._near and rng.random() < 0.3:
            return rng.choice((text + rng.choice(WILD_CHARS), rng.choice(WILD_CHARS) + text))[:TEXT_MAX]
        start = rng.randrange(len(text)) if text else 0
        stop = rng.randint(start, len(text))
        way = rng.randrange(11)
        if way == 0:
            made = text[:start] + text[start + 1 :]
        elif way == 1:
            made = text[:start] + rng.choice(chars) + text[start:]
        elif way == 2:
            made = text[:start] + rng.choice(chars) + text[start + 1 :]
        elif way == 3:
            made = text[:start] + text[start : start + 1] * rng.randint(2, 4) + text[start + 1 :]
        elif way == 4:
            made = text[::-1]
        elif way == 5:
            made = text[start:stop] or text
        elif way == 6:
            made = text + rng.choice(shape.texts() or [text])
        elif way == 7 and (not self._near or _has_both_cases(shape)):
            made = text.swapcase()
        elif way == 8 and " " in text:
            words = text.split(" ")
            rng.shuffle(words)
            made = " ".join(words[: rng.randint(1, len(words))])
        elif way == 9:
            made = text[stop:] + text[:stop]
        else:
            made = "".join(rng.sample(text, len(text)))
        return self._allowed(made, shape, text)

    def _other_digits(self, text: str, runs: list[re.Match[str]]) -> str:
        """Keeps the form of a date, a fraction, a version: only the numbers in it change."""
        rng = self._rng
        run = rng.choice(runs)
        digits = run.group()
        known = [value for value in self._pool.bounds or self._pool.ints if 0 <= value < 10 ** len(digits)] or [1]
        numbers = [int(digits) + rng.choice((1, -1, 2)), rng.randint(0, 9), rng.randint(10, 40), int(digits) * 2]
        numbers += [rng.choice(known) + rng.choice((0, 1, -1)) for _ in range(3)]
        number = max(0, rng.choice(numbers))
        made = rng.choice((str(number).zfill(len(digits)), str(number), rng.choice(runs).group()))
        if not int(made) and int(digits) and rng.random() < 0.8:
            made = digits  # a zero where none is seen: a denominator, mostly
        return text[: run.start()] + made + text[run.end() :]

    def _allowed(self, made: str, shape: Shape, otherwise: str) -> str:
        if not made and self._near and not shape.empty:
            made = otherwise
        return made[:TEXT_MAX]


def _is_form(shape: Shape) -> bool:
    """Whether texts are numbers and signs, such as dates and fractions."""
    return any(char.isdigit() for char in shape.chars) and not any(char.isalpha() for char in shape.chars)


def _has_both_cases(shape: Shape) -> bool:
    return any(char.islower() for char in shape.chars) and any(char.isupper() for char in shape.chars)
