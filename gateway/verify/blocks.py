"""The code in an answer: which lines of its Markdown are code blocks, and of which language each is.

Fences are read as CommonMark reads them, and more kindly where models are careless: indented by any depth, behind prose
in the same line, without an end. Pure functions in linear time, whatever the text holds; no lock, as nothing is kept.
Never parses or compiles the code. Which blocks make a program is decided in `programs.py`.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Optional

from gateway.verify.languages import RUNNABLE, guessed, is_bare, language_of_block, language_of_word

_TAGS = "think|thinking|thought|reasoning|seed:think"
_THINKING = re.compile(rf"\s*(?:<({_TAGS})>|\[THINK\])", re.IGNORECASE)
_THOUGHT = re.compile(rf"</(?:{_TAGS})>|\[/THINK\]", re.IGNORECASE)
_OPENED = re.compile(rf"<(?:{_TAGS})>", re.IGNORECASE)
# The end of thinking whose beginning was part of the prompt: in a place where no code that speaks of it has it.
_THOUGHT_ALONE = re.compile(
    rf"^[ \t]*</(?:{_TAGS})>|</(?:{_TAGS})>[ \t]*(?:\n[ \t]*\n|\Z)", re.IGNORECASE | re.MULTILINE
)
_CHANNEL = "<|channel|>"
_LAST_CHANNEL = re.compile(r"<\|channel\|>final\s*(?:<\|constrain\|>\w*)?<\|message\|>")
_MARKER = re.compile(r"(?:[-*+]|\d{1,9}[.)])(?=[ \t])")
_INDENTED_BY_OTHER = re.compile(r"^[ \t]*\xa0[ \t\xa0]*", re.MULTILINE)
_TAB = 4


class CodeBlock(NamedTuple):
    """A part of an answer that is code."""

    language: str
    """"python", "javascript", "bash"; "console" and "pycon" for what was typed at a prompt; else the word at the fence
    in lower case. "": no word, and nothing sure to be guessed from."""
    code: str
    """Its lines, joined by line feeds, without quote marks and the fence's indentation; no line feed at its end."""
    line_start: int
    """Where its first line stands in the answer, from 1."""
    line_end: int
    """Where its last line stands."""


class _Fence(NamedTuple):
    char: str
    length: int
    column: int
    """How far it is indented, behind quote marks."""
    depth: int
    """How many quote marks stand before it."""
    info: str


class _Body(NamedTuple):
    fence: _Fence
    first: int
    """The index of its first line."""
    lines: list[str]
    cut: bool
    """Whether the answer ended before the block did."""


def without_thinking(text: str) -> str:
    """The answer without what a model thought before it; as many lines, each ended by a line feed alone.

    Thinking that never ends is no answer: nothing is left of it.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    end = _thinking_end(text)
    return "\n" * text.count("\n", 0, end) + text[end:]


def _thinking_end(text: str) -> int:
    end = 0
    found = _THINKING.match(text)
    while found:
        closing = _THOUGHT.search(text, found.end())
        if closing is None:
            return len(text)
        end = closing.end()
        found = _THINKING.match(text, end)
    if not end and text.lstrip().startswith(_CHANNEL):
        channel = _LAST_CHANNEL.search(text)
        return channel.end() if channel else len(text)
    if not end:
        alone = _THOUGHT_ALONE.search(text)
        if alone and not _OPENED.search(text, 0, alone.start()):
            end = alone.end()
    return end


def code_blocks(text: str) -> list[CodeBlock]:
    """The fenced code blocks of an answer, in their order; those without any code in them are left out.

    What a model thought before its answer holds none. An answer that is wholly wrapped in a block of Markdown is read
    as if it were not.
    """
    lines = _lines(text)
    bodies = _bodies(lines, 0)
    if len(bodies) == 1 and _is_wrapping(bodies[0], lines):
        inner = _bodies(_dedented(bodies[0]), bodies[0].first)
        bodies = inner or bodies
    blocks = (_block(body) for body in bodies)
    return [block for block in blocks if block is not None]


def bare_code(text: str) -> Optional[CodeBlock]:
    """The one block that an answer without fences is, where all of it clearly is code; None where any doubt is left."""
    lines = _lines(text)
    written = [index for index, line in enumerate(lines) if line.strip()]
    if not written or any("```" in line or "~~~" in line for line in lines):
        return None
    first, last = written[0], written[-1]
    body = [line.rstrip() for line in lines[first : last + 1]]
    language = guessed(body)
    if not language or body[0][:1] in (" ", "\t") or not is_bare(language, body):
        return None
    return CodeBlock(language, "\n".join(body), first + 1, last + 1)


def _lines(text: str) -> list[str]:
    """The lines of an answer, without what was thought. Spaces that do not break are plain ones where they indent: what
    was copied from a page has them, and no interpreter takes them for an indentation."""
    return _INDENTED_BY_OTHER.sub(lambda found: found[0].replace("\xa0", " "), without_thinking(text)).split("\n")


def _bodies(lines: list[str], offset: int) -> list[_Body]:
    """What stands between fences; the first line has the index `offset`."""
    bodies: list[_Body] = []
    body: Optional[_Body] = None
    nested = 0
    for index, line in enumerate(lines, offset):
        content = None if body is None else _content(line, body.fence.depth)
        if body is None or content is None:  # outside, or no longer in the quotation
            fence = _opening(line)
            body = None if fence is None else _Body(fence, index + 1, [], True)
            nested = 0
            if body is not None:
                bodies.append(body)
        elif _closes(content, body.fence) and not nested:
            bodies[-1] = body._replace(cut=False)
            body = None
        else:
            nested += _nesting(content, body.fence)
            body.lines.append(content)
    return bodies


def _opening(line: str) -> Optional[_Fence]:
    """The fence that a line opens a block with."""
    if "```" not in line and "~~~" not in line:
        return None
    depth, start, column = _prefix(line)
    rest = line[start:]
    char = rest[:1]
    info = rest.lstrip(char) if char in ("`", "~") else rest
    length = len(rest) - len(info)
    if length < 3:
        return _opening_behind_prose(line)
    return None if char == "`" and "`" in info else _Fence(char, length, column, depth, info.strip())


def _opening_behind_prose(line: str) -> Optional[_Fence]:
    """Markdown has none: but behind "Here it is: ```python" all up to the next fence is code, and nothing behind it."""
    prose, _, word = line.rpartition("```")
    left = prose.rstrip("`")
    if "`" in left or language_of_word(word) not in RUNNABLE:
        return None
    return _Fence("`", 3 + len(prose) - len(left), 0, 0, word.strip())


def _prefix(line: str) -> tuple[int, int, int]:
    """How many quote marks a line begins with, where its text begins, and in which column behind the last mark. Markers
    of lists count as indentation."""
    depth = index = column = 0
    while index < len(line):
        char = line[index]
        if char == ">":
            depth, column = depth + 1, 0
            index += 2 if line[index + 1 : index + 2] == " " else 1
        elif char in (" ", "\t"):
            column += 1 if char == " " else _TAB - column % _TAB
            index += 1
        else:
            marker = _MARKER.match(line, index)
            if marker is None:
                break
            column += marker.end() - index
            index = marker.end()
    return depth, index, column


def _content(line: str, depth: int) -> Optional[str]:
    """A line without the quote marks of its block; None where it has fewer: the quotation is over."""
    start = 0
    for _ in range(depth):
        while line[start : start + 1] in (" ", "\t"):
            start += 1
        if line[start : start + 1] != ">":
            return None
        start += 2 if line[start + 1 : start + 2] == " " else 1
    return line[start:] if start else line


def _indentation(line: str) -> int:
    column = 0
    for char in line:
        if char not in (" ", "\t"):
            break
        column += 1 if char == " " else _TAB - column % _TAB
    return column


def _closes(content: str, fence: _Fence) -> bool:
    bare = content.strip(" \t")
    # Deeper, it belongs to the code: an example in a docstring.
    return len(bare) >= fence.length and not bare.strip(fence.char) and _indentation(content) <= fence.column + 3


def _nesting(content: str, fence: _Fence) -> int:
    """1 where a fence opens a block inside one of Markdown that ought to have a longer fence, -1 where that ends."""
    if language_of_word(fence.info) != "markdown" or fence.char not in content:
        return 0
    if _closes(content, fence):
        return -1
    inner = _opening(content)
    return int(inner is not None and inner.char == fence.char and inner.length >= fence.length and bool(inner.info))


def _dedented(body: _Body) -> list[str]:
    """The lines without the fence's indentation; less, where the code's first line has less."""
    first = next((line for line in body.lines if line.strip()), "")
    columns = min(body.fence.column, _indentation(first))
    return [_without_columns(line, columns) for line in body.lines] if columns else body.lines


def _without_columns(line: str, columns: int) -> str:
    column = index = 0
    while column < columns and line[index : index + 1] in (" ", "\t"):
        column += 1 if line[index] == " " else _TAB - column % _TAB
        index += 1
    return " " * max(0, column - columns) + line[index:]  # what is left of a tab


def _block(body: _Body) -> Optional[CodeBlock]:
    lines = _dedented(body)
    if body.cut:
        lines = _tidied(lines, body.fence)
    if not any(map(str.strip, lines)):
        return None
    language = language_of_block(body.fence.info, lines)
    return CodeBlock(language, "\n".join(lines), body.first + 1, body.first + len(lines))


def _tidied(lines: list[str], fence: _Fence) -> list[str]:
    """The lines of a block that was cut off, without what is left of the fence at its end."""
    end = len(lines)
    while end and not lines[end - 1].strip():
        end -= 1
    if not end:
        return []
    last = lines[end - 1].rstrip()
    bare = last.rstrip(fence.char)
    if not bare.strip():
        return lines[: end - 1]
    return [*lines[: end - 1], bare if len(last) - len(bare) >= fence.length else last]


def _is_wrapping(body: _Body, lines: list[str]) -> bool:
    """Whether a block of Markdown is the whole answer."""
    if language_of_word(body.fence.info) not in ("markdown", "") or not any(map(_opens_named, body.lines)):
        return False
    behind = body.first + len(body.lines) + (not body.cut)
    return not any(map(str.strip, [*lines[: body.first - 1], *lines[behind:]]))


def _opens_named(line: str) -> bool:
    fence = _opening(line)
    return fence is not None and bool(fence.info)
