"""What is wrong with a value or a schema, and where: the words and the paths.

Pure. A path is written as users of such interfaces know it from error messages and JSONPath: `$.items[2].price`, `$`
being the whole; a name that is no identifier stands in brackets, `$["unit price"]`.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, Optional

Path = Optional[tuple[Any, Any]]
"""Where a value stands: where what holds it stands, and its name or number there. None: the whole."""

NAME_CHARACTERS_MAX = 60
"""How much of a name or a text is quoted."""

_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")


class Fault(NamedTuple):
    """One way in which a value does not fit; `message` is for whoever has to correct it, a model for instance."""

    path: str
    message: str


class SchemaRefused(Exception):
    """A schema cannot be used: `path` says where in it (`$.properties.price.minimum`), `message` why."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


class TooComplex(Exception):
    """Checking a value would take too long or nest too deep: the schema repeats its work, or is made to."""


def path_text(path: Path, root: str = "$") -> str:
    """A path as it is written."""
    steps = []
    while path is not None:
        path, step = path
        steps.append(step)
    return steps_text(tuple(reversed(steps)), root)


def steps_text(steps: tuple[Any, ...], root: str = "$") -> str:
    """A path as it is written, given as its names and numbers from the whole on."""
    return root + "".join(_step_text(step) for step in steps)


def _step_text(step: Any) -> str:
    if type(step) is int:
        return f"[{step}]"
    return f".{step}" if len(step) <= NAME_CHARACTERS_MAX and _IDENTIFIER.fullmatch(step) else f"[{quoted(step)}]"


def quoted(text: str) -> str:
    """The beginning of a text, as JSON writes it."""
    if len(text) > NAME_CHARACTERS_MAX:
        text = text[:NAME_CHARACTERS_MAX] + "…"
    # Half a character cannot be sent to anybody.
    return json.dumps(text, ensure_ascii=any("\ud800" <= character <= "\udfff" for character in text))


def shown(value: Any) -> str:
    """A value in a few words."""
    kind = type(value)
    if kind is str:
        return quoted(value)
    if kind is list:
        return f"an array of {len(value)}" if value else "an empty array"
    if kind is dict:
        return "an object" if value else "an empty object"
    if kind is int and value.bit_length() > 200:
        return f"an integer of some {value.bit_length() * 30103 // 100000} digits"
    return json.dumps(value)


def written(value: Any) -> str:
    """A value of a schema's as JSON, its beginning at least."""
    if type(value) not in (list, dict):
        return shown(value)
    text = json.dumps(value)
    return text if len(text) <= NAME_CHARACTERS_MAX else text[:NAME_CHARACTERS_MAX] + "…"


def listed(words: list[str], most: int = 12) -> str:
    """Words with commas between them; of many, the first."""
    more = len(words) - most
    return ", ".join(words[:most]) + (f" and {more} more" if more > 0 else "")
