"""The examples a prompt gives of what a program reads and prints: "Input: … Output: …" and the like.

Runs inside the sandbox. Read line by line, so any text takes linear time. Prose below "Input" and "Output", as
statements of tasks have it, is no example; nor is a call's argument ("nums = [1, 2]"), which no program reads. Where
it is doubtful what is printed there is no expectation: a wrong one would hide right answers.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple, Optional

from gateway.verify.harness.examples import (
    NOT_RIGHT,
    SHOWN_AS_WRONG,
    WRONG_WORDS,
)  # in the sandbox this file stands before

EXAMPLES_MAX_READ = 10
_FENCE = re.compile(r"\s{0,12}(?:```|~~~)[`~]{0,9}\s{0,9}(\w{0,20})")
_LABEL = re.compile(
    r"[^\w`]{0,12}(?:for\s)?(?P<sample>(?:sample|example)s?\b\s?(?:case|test)?\s?#?\d{0,3}[^\w`]{0,6})?"
    r"(?:standard\s|expected\s)?(?P<what>input|output|stdin|stdout)\b\s?(?:example|sample)?\s?#?\d{0,3}[*_`)]{0,4}\s{0,4}"
    r"(?P<colon>:|=>|->|→)?[*_]{0,4}(?P<rest>.*)",
    re.I | re.S,
)
_OUTPUT_BEHIND = re.compile(r"(?<!\w)(?:expected\s)?output[*_` ]{0,4}\d{0,3}[*_` ]{0,4}(?::|=>|->|=|→)[*_]{0,4}", re.I)
_QUOTED_PAIR = re.compile(
    r"\binput\b[^`\n]{0,20}`([^`\n]{1,500})`[^`\n]{0,60}\b(?:outputs?|prints?|printed)\b[^`\n]{0,20}`([^`\n]{1,500})`",
    re.I,
)
# A pair in the middle of a line, which is to begin one.
_INSIDE = re.compile(
    r"(?<=[.,:;!?)`\"'\d])[ \t]{1,4}(?=(?:(?:sample|example)\s)?[*_(]{0,3}input[*_` ]{0,4}\d{0,3}[*_` ]{0,4}:"
    r"(?:[^\n]{1,300}output|[ \t\r]{0,4}(?:\n|\Z)))|(?<!\S)\((?=input[*_` ]{0,4}:[^\n]{1,300}output)",
    re.I,
)
_NUMBER_ENDS = re.compile(r"(-?\d+(?:\.\d+)?)(?:[.;)]|[.;)]{1,2}\s[A-Z].*)$", re.S)
_SAMPLES = re.compile(r"[^\w\n]{0,12}(?:for\s)?(?:samples?|examples?)\b[^\n]{0,20}$", re.I)
_HEADING = re.compile(r"\s{0,3}(?:#{1,6}\s|\*\*|__|-{3,}|={3,})")
_STOP = re.compile(
    r"[^\w\n]{0,12}(?:explanations?|notes?|constraints?|samples?|examples?|hints?|limits?|tests?|case)\b", re.I
)
_PROSE = re.compile(
    r"\b(?:an?\s\w\w+|the|of|each|integers?|numbers?|lines?|strings?|words?|contain\w*|consist\w*|print|denot\w*|separated"
    r"|characters?|values?|lists?|single)\b",
    re.I,
)
_ASSIGNED = re.compile(r"\s{0,9}[A-Za-z_]\w{0,40}\s?=(?!=)")
_NOTHING = re.compile(r"\W{0,3}(?:none|empty|no input|n/a|nothing)\W{0,3}$", re.I)
_IN_QUOTES = re.compile(r"([\"'])[^\n]*\1$")
_SENTENCE = re.compile(r"(?:\S+\s+){2,}\S|.*[.:?]$")  # matched against one line without its margins
_EXPLAINED = re.compile(r"\S\s(?:\(|because\b|since\b|as\b|for\b|which\b|#|//|<-|←|--)", re.I)
_LETTER = re.compile(r"[^\W\d_]")
_DENIED = re.compile(r"\b(?:not|never|instead|wrong\w*|incorrect\w*|currently|but)\b|n't\b", re.I)
# Below what is printed.
_WAS_WRONG = re.compile(
    rf"\W*(?:this|that|it|which|but|the (?:output|result|answer))\b[^\n]*(?:\b(?:{WRONG_WORDS}|{NOT_RIGHT})\b"
    r"|\b(?:should|must|ought to) (?:be|have|print(?:ed)?|give|output|show|return)\b:? ?[-`\"'\d])",
    re.I,
)
_LEFT_OUT = re.compile(r"\.\.\.|…")


class StdinExample(NamedTuple):
    """What a program reads, and what it should print then (None: unknown)."""

    stdin: str
    printed: Optional[str]


class _Item(NamedTuple):
    """A part of the prompt: what is read or printed, or anything else ("")."""

    what: str
    text: str
    sure: bool
    """It is set apart as code, or said to be a sample."""
    doubtful: bool = False
    """It may go on, or not be all of it."""


def stdin_examples(prompt: str) -> list[StdinExample]:
    """Returns the examples of a prompt, in order, each once. At most EXAMPLES_MAX_READ."""
    found: dict[str, StdinExample] = {}
    contradicted = set()
    for example in _pairs(prompt):
        if example.stdin not in found and len(found) >= EXAMPLES_MAX_READ:
            continue
        known = found.setdefault(example.stdin, example)
        if known.printed is None:
            found[example.stdin] = example
        elif example.printed not in (None, known.printed):
            contradicted.add(example.stdin)  # what is to be printed then, nobody can know
    return [one._replace(printed=None) if one.stdin in contradicted else one for one in found.values()]


def _pairs(prompt: str) -> Iterator[StdinExample]:
    """What is read and what is printed then, as it comes. An output behind another one is of the same input."""
    given: Optional[_Item] = None
    made: Optional[StdinExample] = None
    is_wrong = False  # what comes now is shown as what is to be changed
    for item in _Lines(prompt).items():
        if item.what == "":
            introduces = item.text.rstrip(" *_").endswith(":") or bool(_HEADING.match(item.text))
            is_wrong = introduces and bool(SHOWN_AS_WRONG.search(item.text))
            if made is not None:
                yield made._replace(printed=None) if not introduces and _WAS_WRONG.match(item.text) else made
            given = made = None
            continue
        if made is not None:
            yield made
            made = None
        if item.what == "input":
            given = item
        elif given is not None:
            made = _stdin_example(given, item)
            if made is not None and is_wrong:
                made = made._replace(printed=None)
    if made is not None:
        yield made


def as_stdin(text: str) -> str:
    """The text as lines, each of them ended."""
    return "".join(f"{line.rstrip()}\n" for line in text.rstrip().splitlines())


def _stdin_example(given: _Item, printed: _Item) -> Optional[StdinExample]:
    stdin, wanted = given.text.strip("\n"), printed.text
    if not stdin.strip() or not wanted.strip() or _NOTHING.match(stdin) or _ASSIGNED.match(stdin):
        return None
    prose = _PROSE.search(stdin) or (not printed.doubtful and _PROSE.search(wanted))
    if prose and not (given.sure and printed.sure):
        return None
    if given.doubtful or _LEFT_OUT.search(stdin):
        return None
    expected: Optional[str] = wanted
    if _IN_QUOTES.match(stdin.strip()):  # whether the quotes belong to it, nobody knows
        stdin, expected = stdin.strip()[1:-1], None
    if printed.doubtful or _LEFT_OUT.search(wanted):
        expected = None
    return StdinExample(as_stdin(stdin), expected)


class _Lines:
    """A prompt's lines, on the way through them."""

    def __init__(self, prompt: str) -> None:
        self._lines = _INSIDE.sub("\n", prompt).split("\n")
        self._at = 0
        self._fenced = False
        self._in_examples = False

    def items(self) -> Iterator[_Item]:
        while self._at < len(self._lines):
            line = self._lines[self._at]
            self._at += 1
            fence = _FENCE.match(line)
            if fence:
                self._fenced = not self._fenced
                named = fence.group(1).lower()
                if self._fenced and named in ("input", "output", "stdin", "stdout"):
                    yield _Item(_what(named), self._rest_of_fence(), True)
                continue
            pairs = list(_QUOTED_PAIR.finditer(line))
            if pairs:
                for pair in pairs:
                    yield _Item("input", pair.group(1).replace("\\n", "\n"), True)
                    yield _Item("output", pair.group(2).replace("\\n", "\n"), True, bool(_DENIED.search(line)))
                continue
            label = _label(line)
            if label is not None:
                yield from self._labelled(label)
                continue
            if _SAMPLES.match(line):
                self._in_examples = True
            elif _HEADING.match(line):
                self._in_examples = False
            if line.strip():
                yield _Item("", line, False)

    def _labelled(self, label: re.Match[str]) -> Iterator[_Item]:
        what, rest = _what(label.group("what")), label.group("rest").strip()
        sure = self._in_examples or bool(label.group("sample"))
        if not rest or not rest.strip("*_#=-:"):
            yield self._block(what, sure)
            return
        behind = _OUTPUT_BEHIND.search(rest) if what == "input" else None
        if behind is None:
            yield self._goes_on(what, rest, sure)
        else:
            before = rest[: behind.start()].rstrip(" \t,;|/*_(.")
            yield _inline("input", re.sub(r"\s?(?:[-=]+>|→|➞|\band)$", "", before), sure)
            yield self._goes_on("output", rest[behind.end() :].strip(), sure)

    def _goes_on(self, what: str, rest: str, sure: bool) -> _Item:
        """What stands behind a label, and the lines below, as far as they belong to it."""
        item = _inline(what, rest, sure)
        if item.sure and not sure:  # it is set apart
            return item
        more, doubtful = self._below(what == "output", sure)
        if not more:
            return item._replace(doubtful=item.doubtful or doubtful)
        return _Item(what, "\n".join([item.text, *more]), sure, doubtful or item.doubtful)

    def _block(self, what: str, sure: bool) -> _Item:
        """What stands below a label: a fenced block, or lines up to an empty one."""
        while self._at < len(self._lines) and not self._lines[self._at].strip():
            self._at += 1
        if self._at < len(self._lines) and not self._fenced and _FENCE.match(self._lines[self._at]):
            self._at += 1
            self._fenced = True
            return _Item(what, self._rest_of_fence(), True)
        begins = self._lines[self._at] if self._at < len(self._lines) else ""
        lines, doubtful = self._below(what == "output" and not _LETTER.search(begins), sure)
        return _Item(what, textwrap.dedent("\n".join(lines)), sure, doubtful)

    def _below(self, is_short: bool, sure: bool) -> tuple[list[str], bool]:
        """The lines from here on that go on with what was begun, and whether it is doubtful that these are they: words
        below what is printed, where that is short (`is_short`), more likely go on with the prompt."""
        found: list[str] = []
        while self._at < len(self._lines):
            line = self._lines[self._at]
            text = line.strip()
            if _FENCE.match(line) or _label(line) is not None or _STOP.match(line) or (not text and not self._fenced):
                break
            if not self._fenced:
                if _HEADING.match(line):
                    break
                if is_short and _LETTER.search(text) and (_SENTENCE.match(text) or not sure):
                    return found, not _SENTENCE.match(text)
            found.append(line)
            self._at += 1
        return found, False

    def _rest_of_fence(self) -> str:
        start = self._at
        while self._at < len(self._lines) and not _FENCE.match(self._lines[self._at]):
            self._at += 1
        text = textwrap.dedent("\n".join(self._lines[start : self._at]))
        self._at += 1
        self._fenced = False
        return text


def _what(label: str) -> str:
    return "input" if label.lower() in ("input", "stdin") else "output"


def _label(line: str) -> Optional[re.Match[str]]:
    found = _LABEL.match(line)
    if found is None or (found.group("colon") is None and found.group("rest").strip("*_#=-: \t\r")):
        return None
    return found


def _inline(what: str, text: str, sure: bool) -> _Item:
    """What stands behind a label in the same line."""
    text = text.strip()
    end = text.find("`", 1)
    if text.startswith("`") and end > 0:
        return _Item(what, text[1:end].replace("\\n", "\n"), True, bool(_DENIED.search(text[end:])))
    number = _NUMBER_ENDS.match(text) if what == "output" else None
    if number:
        text = number.group(1)
    doubtful = what == "output" and bool(_EXPLAINED.search(text) or (text.endswith(".") and len(text) > 1))
    return _Item(what, text, sure, doubtful)
