"""Which language a code block is in: by the word at its fence, else by its lines, and only where they leave no doubt.

Pure functions over lines of text: patterns of one line each, in linear time. Never parses or compiles what it looks at,
so it can be wrong about a text that is made to mislead: what is run is told so by its interpreter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

RUNNABLE = ("python", "javascript", "bash")
TYPED = "pycon"
"""What was typed at a prompt, with what came out: no program."""

_WORDS_OF = {
    "python": "python py python3 py3 ipython ipython3 cpython pypy",
    "javascript": "javascript js node nodejs node.js mjs cjs es6 ecmascript",
    "bash": "bash sh shell shellscript shell-script",
    "console": "console terminal shell-session shellsession sh-session bash-session",
    "pycon": "pycon python-repl python-console doctest",
    "markdown": "markdown md",
}
_BY_WORD = {word: language for language, words in _WORDS_OF.items() for word in words.split()}
_BY_SUFFIX = {"py": "python", "js": "javascript", "mjs": "javascript", "cjs": "javascript", "sh": "bash"}
_WORD = re.compile(r"""[{\s.]*(?:lang(?:uage)?[-=:]["']?)?([^\s,:;{}="'()\[\]]{0,64})""", re.IGNORECASE)
_PYTHON_VERSION = re.compile(r"(?:python|py)-?3(?:\.\d{1,3}){0,2}")
_SHEBANG = re.compile(r"#!\s*\S{0,64}?/(?:env\s+(?:-S\s+)?)?(python3?|node|bash|sh)(?:[\s\d.]|$)")
_PROMPT = re.compile(r"\$ \S|[\w.-]{1,64}@[\w.-]{1,64}[: ][^$#]{0,200}[$#] ")

_PYTHON_DEF = re.compile(r"(?:async\s+)?def\s+\w+\s*\((?:[^)]*$|.*\).*:)")
_PYTHON_SURE = re.compile(
    r"class\s+\w+\s*(?:\([^()]*\))?\s*:|from\s+[\w.]+\s+import\s+[\w*(]|if\s+__name__\s*==|(?:el)?if\s.*:$|else:$|try:$"
    r"|(?:for\s.*\sin|while|with|except)\s.*:$"
)
_PYTHON_LIKELY = re.compile(r"import\s+\w[\w., ]*$|print\(|@\w")
_SCRIPT_SURE = re.compile(
    r"(?:export\s+(?:default\s+)?)?(?:async\s+)?function\b\s*\*?\s*[\w$]*\s*\([^)]*\)\s*\{|console\.log\("
    r"|(?:export\s+)?(?:const|let|var)\s+[\w$]+\s*=\s*(?:async\s*)?(?:\([^)]*\)|[\w$]+)\s*=>"
    r"""|(?:const|let|var)\s.*=\s*require\(|module\.exports\b|import\s.*\sfrom\s+["']"""
)
_SCRIPT_LIKELY = re.compile(r"(?:const|let|var)\s+[\w$]+\s*=.*;$|class\s+\w+(?:\s+extends\s+[\w.]+)?\s*\{$")
# Words that begin a line in other languages, and types that are written behind a colon in TypeScript.
_ELSEWHERE = re.compile(
    r"\s*(?:(?:public|private|protected|fun|fn|func|package|using|namespace|impl|struct|interface|echo|local|val)\s"
    r"|#include|<\?|let\s+mut\s|(?:end|fi|done|esac|begin|then|do)$)"
)
_TYPED = re.compile(r"[\w$)?]\s*:\s*(?:number|string|boolean|any|void|unknown)\b")
_LOOKED_AT = 400
_LONGEST = 500  # characters of a line that a pattern sees


def language_of_word(word: str) -> str:
    """The language a word names: "python", "javascript", "bash", or the word in lower case; "": it names none."""
    word = word.strip().lower()
    known = _BY_WORD.get(word)
    if known is None:
        known = "python" if _PYTHON_VERSION.fullmatch(word) else _BY_SUFFIX.get(word.rpartition(".")[2] or word, word)
    return known


def language_of_block(info: str, lines: Sequence[str]) -> str:
    """The language of a block with the words `info` at its fence. What shows a prompt is a transcript, whatever it is
    called."""
    found = _WORD.match(info)
    word = found[1] if found else ""
    if info[found.end() : found.end() + 1] == "=" if found else False:
        word = ""  # an attribute: title="x"
    language = language_of_word(word)
    if language in ("bash", "console") and " session" in info.lower()[:80]:
        language = "console"
    if language not in ("", "python", "bash"):
        return language
    first = next((line for line in lines if line.strip() and not line.startswith("# ")), "")
    if first.startswith(">>> "):
        return "pycon"
    if language != "python" and _PROMPT.match(first):
        return "console"
    return language or guessed(lines)


def guessed(lines: Sequence[str]) -> str:
    """The language that lines without a name are in beyond doubt; "" where there is any."""
    written = [line[:_LONGEST].rstrip() for line in lines if line.strip()][:_LOOKED_AT]
    if not written:
        return ""
    shebang = _SHEBANG.match(written[0])
    if shebang:
        return language_of_word(shebang[1])
    if any(_ELSEWHERE.match(line) for line in written):
        return ""
    python = _score(written, _PYTHON_DEF, 2) + _score(written, _PYTHON_SURE, 1) + _score(written, _PYTHON_LIKELY, 1)
    script = _score(written, _SCRIPT_SURE, 2) + _score(written, _SCRIPT_LIKELY, 1)
    if python >= 2 and not script:
        return "python" if _has_python_lines(written) else ""
    if script >= 2 and not python and not any(_TYPED.search(line) for line in written):
        return "javascript"
    return ""


def _score(lines: Sequence[str], pattern: re.Pattern[str], points: int) -> int:
    return points * sum(1 for line in lines if pattern.match(line.lstrip()))


def _has_python_lines(lines: Sequence[str]) -> bool:
    """Whether what opens a body has one, and lines do not end as those of other languages do."""
    opened = False
    for line in lines:
        if line.endswith(";") or (opened and line[:1] not in (" ", "\t", "#", ")", "]", "}")):
            return False
        opened = line.endswith(":") and line[:1] not in (" ", "\t", "#")
    return True


_PYTHON_LINE = re.compile(
    r"""(?:async\s+)?(?:def|class)\s+\w+\s*[(:]|from\s+[\w.]+\s+import\s|import\s+\w[\w., ]*$|@\w|\#|[)\]}]"""
    r"""|(?:if|elif|for|while|with|try|except|else|finally|match)\b.*:\s*(?:\#.*)?$|(?:assert|raise|del|global)\s"""
    r"""|[A-Za-z_][\w.]*(?:\[[^\]]*\])?\s*(?::[\w.\[\], ]{1,80})?[-+*/]?=(?!=)\s*\S"""
    r"""|[A-Za-z_][\w.]*\(.*[)(,\[{]\s*(?:\#.*)?$"""
    r"""|[rRbBuUfF]?(?:\"\"\"|''')|pass$""",
    re.VERBOSE,
)
_SCRIPT_LINE = re.compile(
    r"""(?:export\s+(?:default\s+)?)?(?:async\s+)?function\b.*[{}]$|(?:export\s+)?(?:const|let|var)\s+[\w$\[{][^=]*=.*"""
    r"""|class\s+\w+.*\{$|import\s.*["'];?$|(?:if|for|while|switch|try|do)\s*[({].*|\}.*|[)\]].*|//.*|/\*.*|\*.*"""
    r"""|["']use\s+strict["'];?$|[\w$][\w$.]*\(.*(?:\);?|[({,\[]|=>)$|[\w$][\w$.]*\s*=(?!=).*;$|return\s.*;$"""
)


def is_bare(language: str, lines: Sequence[str]) -> bool:
    """Whether every line that stands at the margin can be code of a language whose sure signs were found. Strict: a
    line of prose anywhere outside a long string or a comment, and it is not."""
    if any(len(line) > _LONGEST for line in lines):
        return False
    if language == "python":
        return _is_bare_python(lines)
    if language == "javascript":
        return all(_SCRIPT_LINE.match(line.rstrip()) for line in lines if line[:1].strip())
    return language == "bash"  # found only by its first line


def _is_bare_python(lines: Sequence[str]) -> bool:
    mark = ""  # of the long string that is open
    for line in lines:
        if not mark and line[:1].strip() and not _PYTHON_LINE.match(line):
            return False
        for quotes in ('"""', "'''"):
            if mark in ("", quotes) and line.count(quotes) % 2:
                mark = "" if mark else quotes
                break
    return not mark
