"""What a file of prompts, one a line, has to ask. Reads one file; no state, no lock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, TypeVar

from gateway.tools.asking import UsageError

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
# A request is for the path of the one of these that it has.
PATH_BY_MEMBER = {"messages": CHAT, "prompt": COMPLETIONS, "input": "/v1/embeddings", "query": "/query"}
FAULTS_MAX = 20  # bad lines that are named
T = TypeVar("T")


class Question(NamedTuple):
    """One request, and the line it is from."""

    place: str
    path: str
    body: bytes


def questions_in(path: Path, model: Optional[str]) -> list[Question]:
    """The requests in a JSONL file; `model` is for those that name none. Raises UsageError with every bad line."""
    return each_line(path, lambda place, text: Question(place, *request_in(text, model)))


def each_line(path: Path, read: Callable[[str, str], T]) -> list[T]:
    """What `read` makes of each line of a file that is not blank; it gets the line's place and its text, and may raise
    ValueError. Raises UsageError with every bad line."""
    found, faults = [], []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                place = f"{path}:{number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                    if text:
                        found.append(read(place, text))
                except UnicodeDecodeError:
                    faults.append(f"{place}: is not UTF-8")
                except (ValueError, RecursionError) as error:
                    faults.append(f"{place}: {error}")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    if faults:
        more = [f"{path}: {len(faults) - FAULTS_MAX} more bad lines"] if len(faults) > FAULTS_MAX else []
        raise UsageError(*faults[:FAULTS_MAX], *more)
    if not found:
        raise UsageError(f"{path}: there is nothing in it to ask")
    return found


def object_in(text: str) -> dict[str, Any]:
    """The object in a line of JSON, of a text alone one with it as `prompt`. Raises ValueError, which says what is
    wrong."""
    try:
        line = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if type(line) is str:
        return {"prompt": line}
    if type(line) is not dict:
        raise ValueError("must be an object or a string")
    return line


def request_in(text: str, model: Optional[str]) -> tuple[str, bytes]:
    """The path and the body that a line of JSON stands for. Raises ValueError, which says what is wrong."""
    line = object_in(text)
    path = line.pop("path", None)
    if path is None:
        path = _path_for(line)
    elif path not in PATH_BY_MEMBER.values():
        raise ValueError(f"path must be one of {', '.join(PATH_BY_MEMBER.values())}")
    if path == CHAT and "messages" not in line:
        prompt = line.pop("prompt", None)
        if type(prompt) is not str or not prompt.strip():
            raise ValueError("prompt must be a text that is not empty")
        line = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, **line}
    for name in ("stream", "stream_options"):  # how an answer is given makes it no other answer
        line.pop(name, None)
    if model is not None:
        line.setdefault("model", model)
    return path, json.dumps(line).encode()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is none")


def _path_for(line: dict[str, Any]) -> str:
    if line.keys() <= {"prompt", "model"} and "prompt" in line:
        return CHAT
    found = [name for name in PATH_BY_MEMBER if name in line]
    if not found:
        raise ValueError(f"needs one of {', '.join(PATH_BY_MEMBER)}")
    if len(found) > 1:
        raise ValueError(f"has {' and '.join(found)}: name the path, too")
    return PATH_BY_MEMBER[found[0]]
