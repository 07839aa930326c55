"""Which program the code blocks of an answer make: what belongs together is joined, of several versions one is taken.

The rule, in words. Blocks that are no program are set aside: transcripts, output, data, commands that install or start
something, excerpts of another block. Of the rest, in one language, one block is the root: the last that defines the
entry point in full, as models first sketch and then correct, and end on the whole program; without an entry point the
largest that no later block replaces (defining all its functions again). What follows the root is joined when it uses
what is defined so far; what precedes it, when it defines what is used and nothing else does. So a usage follows its
definition, helpers stay, and another version never runs beside the root, except where the root needs more of it.

Pure functions: names and words are found by patterns of one line each, in bounded time. Never parses or compiles the
code; so a name in a comment counts as used, and at worst a block too many is joined.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Optional

from gateway.verify.blocks import CodeBlock
from gateway.verify.languages import RUNNABLE, TYPED, language_of_word

BLOCKS_MAX = 32
LONGEST_CHARS = 200_000
"""Of all blocks together: a longer answer is no program that anybody would wait for."""
_LINES_COMPARED = 2000
_WORD = re.compile(r"[A-Za-z_$][\w$]*")
_DEFINING = {
    "python": re.compile(r"^(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)|^(\w+)[ \t]*=[ \t]*lambda\b", re.MULTILINE),
    "javascript": re.compile(
        r"^(?:export[ \t]+(?:default[ \t]+)?)?(?:async[ \t]+)?(?:function[ \t]*\*?|class)[ \t]+([\w$]+)"
        r"|^(?:export[ \t]+)?(?:const|let|var)[ \t]+([\w$]+)[ \t]*=[ \t]*"
        r"(?=(?:async[ \t]*)?(?:function\b|\([^()\n]{0,500}\)[ \t]*=>|[\w$]+[ \t]*=>))",
        re.MULTILINE,
    ),
    "bash": re.compile(r"^(?:function[ \t]+([\w-]+)|([\w-]+)[ \t]*\([ \t]*\))", re.MULTILINE),
}
_BINDING = {
    "python": re.compile(r"^(\w+)[ \t]*(?::[^=\n]{1,200})?=(?!=)", re.MULTILINE),
    "javascript": re.compile(r"^(?:export[ \t]+)?(?:const|let|var|class)[ \t]+([\w$]+)", re.MULTILINE),
    "bash": re.compile(r"^(?:export[ \t]+)?(\w+)=", re.MULTILINE),
}
_UNPACKED = re.compile(
    r"^(?:const|let|var)[ \t]*[{\[]([^}\]\n]{0,500})[}\]][ \t]*=|^import[ \t]([^'\"\n]{0,500})from\b", re.M
)
_IMPORT = re.compile(
    r"^(?:import[ \t]+(?P<modules>\w[^\n#;(]*)|from[ \t]+[\w.]+[ \t]+import[ \t]*(?:\((?P<many>[^()]{0,2000})\)"
    r"|(?P<names>[\w*][^\n#;(]*)))",
    re.MULTILINE,
)
_FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import[ \t].*\n", re.MULTILINE)
# Of a notebook, and of a shell: no Python.
_FOREIGN = re.compile(r"^(?:[!%].*|(?:\$[ \t]*)?pip3?[ \t]+install[ \t].*)$", re.MULTILINE)
_CALLS = re.compile(
    r"(?:sudo\s+)?(?:(?:python3?|py)\s+-m\s+(?:pip|venv|unittest|pytest)\b|pip3?\s|pipx?\s|uv\s|poetry\s|conda\s|npm\s|npx\s"
    r"|yarn\s|pnpm\s|brew\s|apt(?:-get)?\s|dnf\s|yum\s|git\s+clone\s|cd\s|chmod\s|source\s|\.\s|pytest\b"
    r"|(?:python3?|py|node|bash|sh|deno|bun)\s+[\w./-]+|\./\S|touch\s|nano\s|vim?\s|code\s)"
)
# A result that is shown beside its call, as no language has it.
_SHOWN = re.compile(
    r"^(?!if\b|while\b|for\b|elif\b|with\b|switch\b|function\b)[\w.]+\(.*\)\s*(?:->|→|⇒|=(?!=)|:(?=\s*\S))", re.M
)
_ELIDED = re.compile(
    r"^[ \t]*(?:\.\.\.|…|(?:#|//)[ \t]*(?:\.\.\.|…)|(?:#|//|/\*)[^\n]{0,80}"
    r"\b(?:rest of|(?:same )?as (?:before|above)|remains? the same|existing code|your code (?:goes )?here)\b)",
    re.MULTILINE | re.IGNORECASE,
)
_DEF = re.compile(r"(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)")
_HEAD_ENDS = re.compile(r":\s*(?:#.*)?$|\)[^:()]{0,200}:\s*([^\s#])")
_LOOKED_AHEAD = 60  # lines from a definition on in which its body has to begin; without an end, they are one
_EMPTY_BODY = re.compile(r"(?:pass|\.\.\.|raise NotImplementedError\b.*)?\s*(?:#.*)?")


class Program(NamedTuple):
    """What an answer's blocks make when they are run."""

    language: str
    """"python", "javascript" or "bash"."""
    code: str
    """Ends with a line feed."""
    blocks: tuple[int, ...]
    """The indexes of the blocks that it holds something of, ascending."""


class _Part(NamedTuple):
    """A block that may be (a part of) the program, and what its lines say."""

    place: int
    """The index of its block."""
    code: str
    lines: tuple[str, ...]
    """Those with anything in them, without white space around them."""
    defined: frozenset[str]
    """Functions and classes at its margin."""
    methods: frozenset[str]
    """All functions."""
    full: frozenset[str]
    """Which of them it has all of, as far as can be seen: a body, and no place that is left out."""
    bound: frozenset[str]
    """Those, variables, and what it imports."""
    imports: dict[str, str]
    """The line that imports a name."""
    words: frozenset[str]


def program_of(blocks: Sequence[CodeBlock], entry_point: Optional[str], prompt_language: str = "") -> Optional[Program]:
    """The one program that the blocks of an answer make; None when there is none.

    `entry_point`: the function that will be called, None where that is not known. `prompt_language`: the language that
    was asked for, as a fence would name it; it wins where blocks are in several, and a block without a language is
    taken to be in it where no other is. Of more than `BLOCKS_MAX` blocks of a language, or `LONGEST_CHARS` characters,
    those beyond are left out.
    """
    wanted = language_of_word(prompt_language)
    blocks = _with_typed(blocks, entry_point)
    language = _language(blocks, entry_point, wanted)
    if language is None:
        return None
    parts = _without_excerpts(_parts(blocks, language, wanted))
    if not parts:
        return None
    root = _root(parts, entry_point)
    kept, donors = _joined(parts, root, language, entry_point)
    code = "\n".join([part.code for part in kept])
    if language == "python":
        code = _with_imports(code, [line for lines in donors.values() for line in lines])
    return Program(language, code, tuple(sorted({part.place for part in kept} | donors.keys())))


def _with_typed(blocks: Sequence[CodeBlock], entry_point: Optional[str]) -> Sequence[CodeBlock]:
    """The blocks; where nothing but what was typed at Python's prompt defines (the entry point, if it is known), with
    that as programs."""

    def defines(block: CodeBlock) -> bool:
        found = _DEFINING[block.language].findall(block.code) if block.language in RUNNABLE else []
        names = {name for names in found for name in names if name}
        return bool(names) if entry_point is None else entry_point in names

    if not any(block.language == TYPED for block in blocks) or any(map(defines, blocks)):
        return blocks
    typed = [b._replace(language="python", code=_typed(b.code)) if b.language == TYPED else b for b in blocks]
    return [new if defines(new) else old for new, old in zip(typed, blocks)]


def _typed(code: str) -> str:
    """What was typed at Python's prompt, but for what showed something: that only tries what the rest defines."""
    kept: list[str] = []
    entered = 0  # how many lines are kept before what was entered last
    for line in code.split("\n"):
        if line[:4].rstrip() == ">>>":
            entered = len(kept)
        elif line[:4].rstrip() != "...":
            if line.strip():
                del kept[entered:]
            continue
        kept.append(line[4:])
    return "\n".join(kept)


def _language(blocks: Sequence[CodeBlock], entry_point: Optional[str], wanted: str) -> Optional[str]:
    """The language asked for; else one that defines the entry point, the shell last; else that of most code."""
    best: Optional[tuple[tuple[bool, bool, bool, int], str]] = None
    for language in RUNNABLE:
        parts = _parts(blocks, language, wanted)
        if parts:
            defines = entry_point is not None and any(entry_point in part.methods for part in parts)
            size = sum(len(part.lines) for part in parts)
            rank = (language == wanted, defines, language != "bash", size)
            if best is None or rank > best[0]:
                best = (rank, language)
    return None if best is None else best[1]


def _parts(blocks: Sequence[CodeBlock], language: str, wanted: str) -> list[_Part]:
    """The blocks of a language that can be run."""
    unnamed = language == wanted and not any(block.language == language for block in blocks)
    parts: list[_Part] = []
    chars = 0
    for place, block in enumerate(blocks):
        if block.language == language or (unnamed and block.language == "" and _may_be_code(block.code, language)):
            chars += len(block.code)
            if len(parts) == BLOCKS_MAX or chars > LONGEST_CHARS:
                break
            part = _part(place, block.code, language)
            if part.lines and not (language == "bash" and wanted != "bash" and _only_starts(part)):
                parts.append(part)
    return parts


def _may_be_code(code: str, language: str) -> bool:
    """Whether a block without a language may be in the one that was asked for, and is not what it puts out."""
    if language == "bash":
        return True
    return bool(_DEFINING[language].search(code) or _BINDING[language].search(code) or _IMPORT.search(code))


def _only_starts(part: _Part) -> bool:
    """Whether the commands only install, or start what is somewhere else."""
    return all(line.startswith("#") or _CALLS.match(line + " ") for line in part.lines)


def _part(place: int, code: str, language: str) -> _Part:
    if language == "python":
        code = _FOREIGN.sub("", _at_the_margin(code))
    imports = _imports(code) if language == "python" else {}
    defined = frozenset(name for names in _DEFINING[language].findall(code) for name in names if name)
    bound = defined.union(_BINDING[language].findall(code), imports)
    if language == "javascript":
        bound = bound.union(word for found in _UNPACKED.findall(code) for word in _WORD.findall(" ".join(found)))
    lines = tuple(line.strip() for line in code.split("\n") if line.strip())
    methods, full = _full(code, lines, language, defined)
    words = frozenset(_WORD.findall(code))
    return _Part(
        place, code.rstrip() + "\n", lines, defined, frozenset(methods), frozenset(full), bound, imports, words
    )


def _at_the_margin(code: str) -> str:
    """The code without the indentation that all its lines have."""
    lines = code.split("\n")
    margins = [line[: len(line) - len(line.lstrip(" \t"))] for line in lines if line.strip()]
    margin = min(margins, key=len, default="")
    if not margin or not all(found.startswith(margin) for found in margins):
        return code
    return "\n".join(line[len(margin) :] if line.strip() else "" for line in lines)


def _imports(code: str) -> dict[str, str]:
    imports: dict[str, str] = {}
    for found in _IMPORT.finditer(code):
        names = found["modules"] or found["many"] or found["names"] or ""
        for name in names.split(","):
            words = name.split()
            if words:
                imports[words[-1].split(".")[0]] = found[0].rstrip()
    return imports


def _without_excerpts(parts: list[_Part]) -> list[_Part]:
    """The parts but those that stand, line for line, in another one; of equal ones the last."""
    compared = [part for part in parts if len(part.lines) <= _LINES_COMPARED]
    signs: dict[str, str] = {}  # a character for each line: so comparing takes little, whatever the lines are
    for part in compared:
        for line in part.lines:
            signs.setdefault(line, chr(0xE000 + len(signs)))
    texts = {part.place: "".join(map(signs.__getitem__, part.lines)) for part in compared}
    lines = {part.place: frozenset(part.lines) for part in compared}
    return [
        part
        for part in parts
        if part not in compared
        or not any(
            part is not other
            and (len(part.lines), part.place) < (len(other.lines), other.place)
            and lines[part.place] <= lines[other.place]
            and part.bound <= other.bound
            and texts[part.place] in texts[other.place]
            for other in compared
        )
    ]


def _full(code: str, lines: Sequence[str], language: str, defined: frozenset[str]) -> tuple[set[str], set[str]]:
    """All functions and classes of a part, and which of them are there in full."""
    if language != "python":
        return set(defined), set() if _ELIDED.search(code) else set(defined)
    methods, full = set(defined), set(defined)
    heads = [(at, found[1]) for at, found in enumerate(map(_DEF.match, lines)) if found]
    ends = [at + 1 for at, _ in heads[1:]] + [len(lines)]  # with the next definition's line, so that all is read twice
    for (at, name), end in zip(heads, ends):
        methods.add(name)
        full.discard(name)
        if _has_body(lines[at : min(end, at + _LOOKED_AHEAD)]):
            full.add(name)
    return methods, set() if _ELIDED.search(code) else full


def _has_body(lines: Sequence[str]) -> bool:
    """Whether the function that the first line defines does anything."""
    head = next((at for at, line in enumerate(lines) if _HEAD_ENDS.search(line)), None)
    if head is None:
        return len(lines) == _LOOKED_AHEAD
    behind = _HEAD_ENDS.search(lines[head])
    if behind and behind[1]:
        return not _EMPTY_BODY.fullmatch(lines[head][behind.start(1) :])
    return any(not _EMPTY_BODY.fullmatch(line) for line in _body(lines[head + 1 :]))


def _body(lines: Iterable[str]) -> Iterable[str]:
    """The lines behind the docstring that they may begin with."""
    rest = list(lines)
    first = rest[0].lstrip("rRuU") if rest else ""
    mark = first[:3]
    if mark in ('"""', "'''"):
        end = 0
        if mark not in first[3:]:
            end = next((i for i, line in enumerate(rest[1:], 1) if mark in line), len(rest))
        rest = rest[end + 1 :]
    return rest


def _root(parts: list[_Part], entry_point: Optional[str]) -> _Part:
    if entry_point is not None:
        defining = [part for part in parts if entry_point in part.methods]
        full = [part for part in defining if entry_point in part.full]
        if defining:
            return (full or defining)[-1]
    living = [part for part in parts if not any(_replaces(later, part) for later in parts)]
    return max(living or parts, key=lambda part: (bool(part.defined), len(part.lines), -part.place))


def _replaces(later: _Part, part: _Part) -> bool:
    """Whether a later part defines again, in full, all that this one does."""
    if later.place <= part.place or not part.defined or not part.defined <= later.defined:
        return False
    return part.defined <= later.full


def _joined(
    parts: list[_Part], root: _Part, language: str, entry_point: Optional[str]
) -> tuple[list[_Part], dict[int, list[str]]]:
    """The root with what belongs to it; and, by index, the imports taken from parts that do not."""
    kept = [root]
    words, bound, functions = set(root.words), set(root.bound), set(root.defined)
    for part in parts:
        # In a part with functions, the name of a variable is more likely that of a parameter.
        known = functions if part.defined else bound
        if part.place > root.place and _may_follow(part, root, bound, language, entry_point):
            if (part.words - part.bound) & known or part.defined & words:
                kept.append(part)
                words |= part.words
                bound |= part.bound
                functions |= part.defined
    donors: dict[int, list[str]] = {}
    for part in reversed([part for part in parts if part.place < root.place]):
        missing = _needed(part, root, words, entry_point) - bound
        if missing and missing <= part.imports.keys():
            donors[part.place] = [part.imports[name] for name in sorted(missing)]
            bound |= missing
        elif missing and not (language == "javascript" and part.bound & bound):
            kept.append(part)
            words |= part.words
            bound |= part.bound
    return sorted(kept, key=lambda part: part.place), donors


def _needed(part: _Part, root: _Part, words: set[str], entry_point: Optional[str]) -> set[str]:
    """What of a part before the root is used: of another version only what can hardly be meant otherwise."""
    needed = set(part.bound & words)
    if part.defined & root.defined or entry_point in part.methods:
        return {name for name in needed if name in part.defined or name in part.imports or name.isupper()}
    if not part.defined and part.words & root.defined - part.bound:
        return needed & part.imports.keys()  # it uses the root, in the version before
    return needed


def _may_follow(part: _Part, root: _Part, bound: set[str], language: str, entry_point: Optional[str]) -> bool:
    """Whether a part behind the root is no version of it, and does it no harm."""
    if entry_point is not None and entry_point in part.methods:
        return False
    again = part.defined & root.defined
    if again and (root.defined <= part.defined or not again <= part.full):
        return False
    if not part.defined and _SHOWN.search(part.code):
        return False
    # Else it is "already declared", and none of it would run.
    return not (language == "javascript" and part.bound & bound)


def _with_imports(code: str, imports: list[str]) -> str:
    """The code with imports before it; those from __future__ come first."""
    code = "".join(f"{line}\n" for line in dict.fromkeys(imports)) + code
    future = _FUTURE.findall(code)
    return "".join(dict.fromkeys(future)) + _FUTURE.sub("", code) if (future and imports) or len(future) > 1 else code
