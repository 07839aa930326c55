"""The examples a prompt gives: arguments, and what the function should make of them.

Runs inside the sandbox. Reads doctests, `f(x) == y` with any usual sign or word between the two, assert lines, and
the forms in prose: "For s = 'a', the result should be 1", "Input: … Output: …". An example whose result cannot be
read is still an input. Where a reading is doubtful there is no expectation: a wrong one would hide right answers.
"""

from __future__ import annotations

import ast
import itertools
import re
from typing import NamedTuple, Optional

from gateway.verify.harness.keys import NOT, is_denial, key_of  # in the sandbox this file stands before
from gateway.verify.harness.literals import NoValue, closing, literal_text, take, value_in, value_of_node
from gateway.verify.harness.signatures import Signature, parsed

EXAMPLES_MAX = 60
WRAPPERS = frozenset({"round", "sorted", "list", "tuple", "set", "len", "str", "int", "float", "bool", "abs", "sum"})
_SIGN = re.compile(
    r"\s*(?:➞|→|⟶|↦|==>|=>|-->|->|===?|=|\bis\b|:|#\s*(?:=>|->|==>?|➞|→)?|//\s*(?:=>|->)?)?\s*"
    r"(?:(?:it\s+|and\s+|this\s+|which\s+)?(?:would\s+|will\s+|must\s+|should\s+)?"
    r"(?:returns?|gives?|yields?|be|equals?|evaluates?\s+to|outputs?|produces?|prints?|is)\b)?\s*(?::|=>|->|to\b)?\s*[`]?\s*",
    re.I,
)
_RESULT = re.compile(
    r"(?:output|result|answer|return(?:s|ed)?(?:\s+value)?|expected|function|it)\b[^\n:=\"'\[\](){}]{0,40}?"
    r"(?:should\s+be|must\s+be|will\s+be|would\s+be|\bis|\bbe|:|=>|->|==?|returns?|\breturn)\s*[`]?\s*",
    re.I,
)
_OUTPUT = re.compile(
    r"\s*[`*_]*(?:output|result|return(?:s| value)?|expected(?:\s+output)?|answer)[`*_]*\s*(?::|=>|->|=)[*_`]*\s*", re.I
)
_INPUT = re.compile(r"(?<!\w)input[`*_]*\s*(?::|=)[*_`]*\s*", re.I)
_UNEQUAL = re.compile(r"`?\s{0,9}(?:!==?|≠)\s{0,9}`?\s{0,9}")
# Before a call: what it is compared to is a condition, and no example.
_CONDITION = re.compile(r"\b(?:if|when|while|whenever|unless|until|why|where|because|since)\b", re.I)
_GOES_ON = re.compile(r"\s*(?:[-+*/%<>^&|=](?!>)|\w|[\"'(\[{])")
# What a prompt says of a result that is not the one to give.
WRONG_WORDS = r"currently|at the moment|right now|(?:wrong|incorrect|erroneous)(?:ly)?|mistake(?:n(?:ly)?)?|bug(?:gy)?"
NOT_RIGHT = r"(?:not|isn't) (?:right|correct)|not what"
_DENIED_BEFORE = re.compile(
    rf"\b(?:{WRONG_WORDS})\b"
    r"|\b(?:not|never|instead of|rather than)(?:\s\w{1,20}){0,2}\s{0,9}[`'\"(]{0,3}$",
    re.I,
)
_DENIED_BEHIND = re.compile(
    rf"[^.;\n]{{0,60}}\b(?:{WRONG_WORDS}|{NOT_RIGHT})\b"
    r"|[`'\")\s]{0,9}[,;(]?\s{0,9}(?:but|while|whereas|although|though|and)\s(?:it\s|that\s|this\s)?(?:should|must|ought)\b"
    r"|[`'\")\s]{0,9}[,;(]?\s{0,9}(?:expected|should be)\b",
    re.I,
)
SHOWN_AS_WRONG = re.compile(rf"\b(?:{WRONG_WORDS}|actual|instead of)\b", re.I)  # in words that introduce an example
_INSTEAD = re.compile(
    r"[`'\")\s]{0,9},?\s{0,9}(?:instead of|rather than)\b", re.I
)  # behind what is given, not what should be
# Behind a value: it is one of several, or, behind a number, only a part of what is meant.
_ALTERNATIVE = re.compile(r"\s{1,9}or\s{1,9}(?:[-\d\"'\[({]|\w{1,40}\()|\s{1,9}if\b[^\n]{0,80}\belse\b")
_GOES_ON_BEHIND_NUMBER = re.compile(
    r"\s{0,9}(?:[-+*/%^](?!>)|=\s|[×·≤≥]|[<>]=|[<>]\s|\(?mod\b)|[!…]|\.\.\.|\.\d|,\d{3}(?!\d)"
    r"|\s(?:times|to|less|more|fewer|or)\b|(?:,\s?-?\d{1,20}){1,9},?\sor\b",
    re.I,
)
_SENTENCE_BEGIN = re.compile(r".*(?:[.;!?]\s|\n)", re.S)
_HEADER = re.compile(r"^[^\w\n]{0,20}(?:for\s+)?examples?\b[^\n]{0,20}:?\s*$", re.I | re.M)


class Example(NamedTuple):
    """One call: its arguments, what its result's key should be (None: unknown; behind NOT: should not be), and what is
    applied to the result."""

    args: list[object]
    expected: Optional[str]
    wrap: Optional[list[object]]
    place: int = 0


def examples_in(prompt: str, function: Signature) -> list[Example]:
    """Returns the examples of `function` in a prompt, in order, each once. At most EXAMPLES_MAX."""
    text = _readable(prompt, function.name)
    found = _calls(text, function)
    if not any(example.expected is not None and not is_denial(example.expected) for example in found):
        found += _assignments(text, function) + _inputs_and_outputs(text, function)
    found = _without_asides(text, found)
    unique: dict[str, Example] = {}
    contradicted = set()  # what the prompt says of these, nobody can know
    for example in found:
        if example.expected is not None and is_shown_as_wrong(text, example.place):
            example = example._replace(expected=None)
        try:
            call = literal_text(example.args) + repr(example.wrap)
        except NoValue:
            continue
        known = unique.setdefault(call, example)
        if example.expected is None or example.expected == known.expected:
            continue
        if known.expected is None or is_denial(known.expected):
            unique[call] = example
        elif not is_denial(example.expected):
            contradicted.add(call)
    for call in contradicted:
        unique[call] = unique[call]._replace(expected=None)
    return list(unique.values())[:EXAMPLES_MAX]


def is_shown_as_wrong(text: str, place: int) -> bool:
    """Whether the line above that of an example introduces what is to be changed: "Currently:"."""
    line_start = text.rfind("\n", 0, place) + 1
    above = text[max(0, line_start - 300) : line_start].rstrip().rpartition("\n")[2]
    return above.endswith(":") and bool(SHOWN_AS_WRONG.search(above))


def calls_in(text: str, function: Signature) -> list[list[object]]:
    """Returns the arguments of each call of `function` in a program or an answer that has plain values only."""
    found = []
    for match in itertools.islice(_call_pattern(function.name).finditer(text), EXAMPLES_MAX):
        end = closing(text, match.end() - 1)
        args = None if end is None else _arguments(text[match.end() : end - 1], function, False)
        if args is not None:
            found.append(args)
    return found


def _readable(prompt: str, name: str) -> str:
    """A Python prompt's docstring as it reads (escapes resolved), and its comments; any other prompt as it is."""
    tree = parsed(prompt)
    for node in tree.body if tree is not None else []:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
            comments = re.findall(r"^[ \t]{0,40}#.*$", prompt, re.M)
            return (ast.get_docstring(node) or "") + "\n\n" + "\n".join(comments)
    return prompt


def _call_pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.])(?<!def )(?<!function ){re.escape(name)}\s*\(")


def _calls(text: str, function: Signature) -> list[Example]:
    found, bare = [], []
    for match in itertools.islice(_call_pattern(function.name).finditer(text), 2 * EXAMPLES_MAX):
        end = closing(text, match.end() - 1)
        if end is None:
            continue
        inside = text[match.end() : end - 1]
        args = _arguments(inside, function, False)
        if args is not None:
            found.append(_example(text, match.start(), end, args))
            continue
        args = _arguments(inside, function, True)  # is_happy(abcd): words without their quotes
        if args is not None:
            bare.append(_example(text, match.start(), end, args))
    if not found and len(bare) > 1 and all(example.expected is not None for example in bare):
        return bare
    return found


def _arguments(inside: str, function: Signature, bare: bool) -> Optional[list[object]]:
    try:
        call = ast.parse(f"f({inside.strip()})", mode="eval").body
        if not isinstance(call, ast.Call):
            return None
        values = [_word_or_value(node, function, bare) for node in call.args]
        named = {keyword.arg or "": value_of_node(keyword.value) for keyword in call.keywords}
    except (NoValue, SyntaxError, ValueError, RecursionError, MemoryError):
        written = value_or_none(f"[{inside}]")  # as JavaScript has it
        if not isinstance(written, list):
            return None
        values, named = written, {}
    return _fitting(values, named, function)


def _word_or_value(node: ast.AST, function: Signature, bare: bool) -> object:
    if (
        bare
        and isinstance(node, ast.Name)
        and node.id not in function.params
        and node.id.lower() not in ("true", "false")
    ):
        return node.id
    return value_of_node(node)


def _fitting(values: list[object], named: dict[str, object], function: Signature) -> Optional[list[object]]:
    """Positional arguments in the function's order; None when they are not what it takes."""
    for param in function.params[len(values) :]:
        if param not in named:
            break
        values.append(named.pop(param))
    if named or len(values) < function.required or (function.params and len(values) > len(function.params)):
        return None
    return values


def _example(text: str, start: int, end: int, args: list[object]) -> Example:
    """Reads what stands around a call: wrappers before it, `not`, `>>>` and `assert`, the result behind it."""
    line_start = text.rfind("\n", 0, start) + 1
    before = text[line_start:start]
    wrap: Optional[list[object]] = None
    call_end = end
    outer = re.search(r"(\w+)\(\s*$", before)
    if outer and outer.group(1) in WRAPPERS:
        close = closing(text, line_start + outer.end() - 1)
        extra = value_or_none(f"[{text[end : close - 1].strip(' ,')}]") if close else None
        if close and isinstance(extra, list):
            wrap, end, before = [outer.group(1), extra], close, before[: outer.start()]
    elif outer and outer.group(1) in ("print", "log"):
        end = closing(text, line_start + outer.end() - 1) or end
    difference = re.search(r"(?:abs|isclose|assert\w*Equals?)\(\s*$", text[line_start:start])
    if difference and (wrap is None or wrap[0] == "abs") and re.match(r"\s*[-,]", text[call_end:]):
        taken = take(text, text.index(text[call_end:].lstrip()[0], call_end) + 1)
        return Example(args, _key(taken.value) if taken else None, None, start)
    asserted = re.search(r"\bassert\s+(not\s+)?$", before)
    if asserted and re.match(r"\s*(?:$|\n|,|#)", text[end:]):
        return Example(args, _key(not asserted.group(1)), wrap or ["bool", []], start)
    if ">>>" in before:
        return Example(args, _after_prompt(text, end), wrap, start)
    unequal = _UNEQUAL.match(text, end)
    if unequal:
        denied = None if _CONDITION.search(before) else _expected(text, unequal.end())
        if denied is not None and _is_denied(text, line_start, start, unequal):
            denied = None
        return Example(args, None if denied is None else NOT + denied, wrap, start)
    end += text[end : end + 1] in ("`", ";")
    sign = _SIGN.match(text, end)
    expected = _expected(text, sign.end()) if sign and sign.group().strip() and "\n\n" not in sign.group() else None
    if expected is not None and sign and _is_denied(text, line_start, start, sign):
        expected = None
    return Example(args, expected, wrap, start)


def _is_denied(text: str, line_start: int, start: int, sign: re.Match[str]) -> bool:
    """Whether the sentence around an example says that its result is what is wrong."""
    before = text[max(line_start, start - 200) : start]
    begin = _SENTENCE_BEGIN.match(before)
    taken = take(text, sign.end())
    if re.search(r"\bassert", before):  # which holds, whatever its message says
        return False
    if taken is None or _DENIED_BEFORE.search(before, begin.end() if begin else 0):
        return True
    demanded = re.search(r"\b(?:should|must)\b", sign.group(), re.I)
    return bool(_DENIED_BEHIND.match(text, taken.end) or (not demanded and _INSTEAD.match(text, taken.end)))


def value_or_none(text: str) -> object:
    """Returns the value `text` writes, or None when it is not a plain value."""
    try:
        return value_in(text)
    except NoValue:
        return None


def _after_prompt(text: str, end: int) -> Optional[str]:
    """What a doctest's line is followed by: a result on the same line, else the next one; nothing at all is None."""
    line_end = text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end
    rest = text[end:line_end]
    if rest.strip() and not rest.lstrip().startswith("#"):
        sign = _SIGN.match(text, end)
        return _expected(text, sign.end() if sign and sign.end() <= line_end else end)
    following = text[line_end + 1 :]
    if not following.strip() or re.match(r"[ \t]*(?:\n|>>>|```)", following):
        return key_of(None)
    return _expected(text, line_end + 1)


def _expected(text: str, start: int) -> Optional[str]:
    """The key of the literal that stands at `start`, when nothing shows that it is only a part of something."""
    taken = take(text, start)
    if taken is None:
        return None
    line_end = text.find("\n", taken.end)
    rest = text[taken.end : line_end if line_end >= 0 else len(text)]
    number = isinstance(taken.value, (int, float)) and not isinstance(taken.value, bool)
    if re.match(r"[\w\"'(\[{]", rest) or (number and _GOES_ON_BEHIND_NUMBER.match(rest)):
        return None
    if re.match(r"\s*[\"'][\w\"']", rest) or _ALTERNATIVE.match(rest):
        return None
    return _key(taken.value)


def _key(value: object) -> str:
    return key_of(value)


def _assignments(text: str, function: Signature) -> list[Example]:
    """ "For s = 'abc', c = 'a', the result should be 1", "Input: arr = [1], k = 3" and, below it, "Output: 2"."""
    if not function.params:
        return []
    found = []
    first = re.compile(rf"(?<![\w.]){re.escape(function.params[0])}\s*(?:=|:=|:)\s*(?!=)")
    for match in itertools.islice(first.finditer(text), EXAMPLES_MAX):
        end, args = match.start(), []
        for param in function.params:
            head = re.compile(rf"[\s,;`]*(?:and\s+|with\s+)?`?{re.escape(param)}`?\s*(?:=|:=|:)\s*").match(text, end)
            taken = take(text, head.end()) if head else None
            if taken is None:
                break
            args.append(taken.value)
            end = taken.end
        if len(args) == len(function.params):
            found.append(Example(args, _result_after(text, end), None, match.start()))
    return found


def _result_after(text: str, start: int) -> Optional[str]:
    """The result that prose names soon behind `start`: the last one of its line, else an "Output:" on the next."""
    stop = re.compile(r"\n\s*\n|$|(?<!\w)input\b", re.I).search(text, start)
    line_end = text.find("\n", start)
    line = text[start : line_end if line_end >= 0 else len(text)]
    for match in reversed(list(_RESULT.finditer(line))):
        key = _expected(text, start + match.end())
        if key is not None:
            return key
    sign = re.match(r"[\s,`]*(?:➞|→|==>|=>|-->|->|==)\s*", line)
    if sign:
        return _expected(text, start + sign.end())
    near = text[start : min(stop.start() if stop else len(text), start + 200)]
    for match in _OUTPUT.finditer(near):
        return _expected(text, start + match.end())
    return None


def _inputs_and_outputs(text: str, function: Signature) -> list[Example]:
    found = []
    for match in itertools.islice(_INPUT.finditer(text), EXAMPLES_MAX):
        args: list[object] = []
        end = match.end()
        while len(args) < max(1, len(function.params)):
            head = re.compile(r"[ \t,;`]*(?:and\s+)?`?").match(text, end)
            taken = take(text, head.end() if head else end)
            if taken is None:
                break
            args.append(taken.value)
            end = taken.end
        if args and len(args) >= function.required:
            output = _OUTPUT.match(text[end:].lstrip(" ,;`\n"))
            offset = len(text) - len(text[end:].lstrip(" ,;`\n"))
            found.append(Example(args, _expected(text, offset + output.end()) if output else None, None, match.start()))
    return found


def _without_asides(text: str, found: list[Example]) -> list[Example]:
    """Drops what only looks like an example: a recurrence `tri(1) = 3` in a prompt whose examples are lists.

    Told by the results' shapes: where some are containers and some are numbers or texts, those below the last
    "Examples:" count, if they agree.
    """
    headers = list(_HEADER.finditer(text))
    if len({_shape(example) for example in found} - {""}) < 2 or not headers:
        return found
    below = [example for example in found if example.place > headers[-1].end()]
    return below if len({_shape(example) for example in below} - {""}) == 1 else found


def _shape(example: Example) -> str:
    if example.expected in (None, "None") or is_denial(example.expected or ""):
        return ""
    return "container" if example.expected and example.expected[0] in "[({h" else "scalar"
