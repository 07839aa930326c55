"""What everything that was configured has in common: its error, and the strict reading of its JSON files.

Nothing is guessed at: what a lenient reader would settle in silence (a key that is there twice, NaN, another encoding)
is a fault. No state, no lock; reads the one file it is told to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from gateway.routing.checks import step


class ConfigurationError(Exception):
    """What was configured cannot work. `faults` names every fault, `warnings` what may be behind it; no text holds a
    secret."""

    def __init__(self, faults: Sequence[str], warnings: Sequence[str] = ()) -> None:
        super().__init__("\n".join(faults))
        self.faults: tuple[str, ...] = tuple(faults)
        self.warnings: tuple[str, ...] = tuple(warnings)


class JsonObject(dict[str, object]):
    """A JSON object that remembers which of its keys came more than once."""

    duplicates: tuple[str, ...] = ()


def duplicate_faults(members: JsonObject, path: str) -> Iterator[str]:
    """Yield a fault for each key of the object at `path` that is there more than once."""
    for key in members.duplicates:
        yield f"{step(path, key)}: is there more than once"


def read_json(path: Path) -> object:
    """Read a JSON file in UTF-8, its objects as JsonObject; raises ConfigurationError with the one fault."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except OSError as error:
        fault = f"cannot be read: {error.strerror or error}"
    except UnicodeDecodeError as error:
        fault = f"is not UTF-8: byte {error.start}"
    except json.JSONDecodeError as error:
        fault = f"is not JSON: line {error.lineno} column {error.colno}: {error.msg}"
    except ValueError as error:  # NaN, Infinity, or more digits than Python converts
        fault = f"is not usable JSON: {error}"
    except RecursionError:
        fault = "is nested too deeply"
    raise ConfigurationError([f"the file {fault}"])


def _object(pairs: list[tuple[str, object]]) -> JsonObject:
    members = JsonObject(pairs)
    if len(members) != len(pairs):
        keys = [key for key, _ in pairs]
        members.duplicates = tuple(key for key in members if keys.count(key) > 1)
    return members


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")
