"""Reads `.env`: by python-dotenv where it is installed, else by a strict reader of plain lines.

Owns the rule that both readers agree on every file the strict one accepts (what it would have to guess at is a fault
naming the line), and what is said of names that mean nothing here. No state, no lock; never writes, never changes
os.environ.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple, Optional

from gateway.configuration import ConfigurationError

_ASSIGNMENT = re.compile(r"\s*(?:export[^\S\n]+)?(?!export\s)([A-Za-z_][A-Za-z0-9_.-]*)[^\S\n]*=[^\S\n]*(.*)")
_QUOTED = re.compile(r"""(['"])((?:(?!\1).)*)\1[^\S\n]*(?:#.*)?""")
_LINE_END = re.compile(r"\r\n|\n|\r")
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]{0,63}")
NAMES_ALIKE = 0.7  # of 1: from here on one name may be another one, mistyped
_INSTALL = "pip install python-dotenv"


class Assignment(NamedTuple):
    """What stands on a line; `value` None: a name alone."""

    line: int
    name: str
    value: Optional[str]


class Variables(NamedTuple):
    """What a `.env` says; the last of a repeated name counts in `values`."""

    values: Mapping[str, str]
    assignments: tuple[Assignment, ...]


def read(path: Path) -> Optional[Variables]:
    """Read the variables of a `.env`; None: there is no such file.

    Raises ConfigurationError naming every line that cannot be read, never with what it holds.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError([f".env: cannot be read: {error.strerror or error}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigurationError([f".env: is not UTF-8: byte {error.start}"]) from error
    try:
        from dotenv import dotenv_values
        from dotenv.parser import parse_stream
    except ImportError:
        return Variables(read_strictly(text), _assignments(text))
    bindings = list(parse_stream(io.StringIO(text)))
    # dotenv_values drops a line it cannot parse with a mere warning: keys could vanish unnoticed.
    faults = [f".env line {_line_of(*b.original)}: cannot be parsed" for b in bindings if b.error]
    if faults:
        raise ConfigurationError(faults)
    values = dotenv_values(stream=io.StringIO(text))
    return Variables(
        {name: value for name, value in values.items() if value is not None},
        tuple(Assignment(_line_of(*b.original), b.key, b.value) for b in bindings if b.key is not None),
    )


def read_strictly(text: str) -> Mapping[str, str]:
    """Read `KEY=VALUE` lines: comments, blank lines, `export `, simple quotes, nothing more.

    Raises ConfigurationError naming every line that takes python-dotenv to read.
    """
    values: dict[str, str] = {}
    faults: list[str] = []
    for number, line in _lines(text):
        assignment = _ASSIGNMENT.fullmatch(line)
        if assignment is None:
            faults.append(_fault(number, "is not a plain KEY=VALUE"))
            continue
        try:
            values[assignment[1]] = _value(assignment[2])
        except _NotClosed:
            # The lines that follow belong to this value: reading them would only invent faults.
            faults.append(_fault(number, "has a quote that is not closed on the line"))
            break
        except ValueError as error:
            faults.append(_fault(number, str(error)))
    if faults:
        raise ConfigurationError(faults)
    return values


def _line_of(text: str, line: int) -> int:
    """Where a statement stands whose `text` begins on `line`, perhaps with lines that are blank."""
    blank = text[: len(text) - len(text.lstrip())]
    return line + len(_LINE_END.findall(blank))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, with their numbers."""
    # Not splitlines(): to python-dotenv a form feed or U+2028 does not end a line.
    for number, line in enumerate(_LINE_END.split(text), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _assignments(text: str) -> tuple[Assignment, ...]:
    found = ((number, _ASSIGNMENT.fullmatch(line)) for number, line in _lines(text))
    return tuple(Assignment(number, match[1], _value(match[2])) for number, match in found if match is not None)


class _NotClosed(ValueError):
    """A quoted value goes on on the next line."""


def _fault(number: int, what: str) -> str:
    return f".env line {number}: {what}; this needs python-dotenv ({_INSTALL})"


def _value(raw: str) -> str:
    if "${" in raw:  # python-dotenv interpolates in single quotes, too
        raise ValueError("refers to another variable with ${")
    if raw.startswith("#"):
        raise ValueError("has a value that begins with #")
    if not raw.startswith(("'", '"')):
        return re.sub(r"\s+#.*", "", raw).rstrip()
    if "\\" in raw:
        raise ValueError("has a backslash in or after quotes")
    quoted = _QUOTED.fullmatch(raw)
    if quoted is not None:
        return quoted[2]
    if raw[0] not in raw[1:]:
        raise _NotClosed
    raise ValueError("has more than a comment after the closing quote")


def unknown_names(assignments: Iterable[Assignment], known: Sequence[str]) -> Iterator[str]:
    """What to say of each line whose name is not `known` (settings, and the keys of engines).

    A line may be a secret that was pasted there: what does not look like a name with a value is never shown. (Base64
    may, but for the value: it ends with one or two equals signs.)
    """
    for line, name, value in assignments:
        if name in known:
            continue
        if not _NAME.fullmatch(name) or not (value or "").strip("= ") or (value or "").startswith("="):
            yield f".env line {line}: holds nothing that is known here"
            continue
        # First letters are rarely mistyped, and GROQ_API_KEY is not API_KEYS.
        alike = [one for one in known if one[0].upper() == name[0].upper()]
        near = get_close_matches(name.upper(), alike, 1, NAMES_ALIKE)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield f".env line {line}: {name} is neither a setting nor the key of an engine{hint}"
