"""Engines by a file: a JSON list of URLs and engine objects, read again when the file is another one.

Whoever writes it should write another file and rename it; one that is only half there is no JSON, and is read again
later. A `FileAsker` belongs to the thread that asks.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, Optional

from gateway.clock import unix_s
from gateway.discovery.answers import Answer, DiscoveryError
from gateway.jsontext import read_strictly
from gateway.routing.found import FOUND_MAX, Found
from gateway.routing.sources import FileSource

FILE_MAX_BYTES = 16 << 20
SETTLED_S = 2.0  # a file that was written so lately may be written again without looking like another one

_Looks = tuple[int, int, int]


class FileAsker:
    """Reads one file."""

    def __init__(self, source: FileSource) -> None:
        self._path = Path(source.path)
        self._read: Optional[_Looks] = None  # the file that `_answer` or `_failure` is of
        self._answer: Optional[Answer] = None
        self._failure = ""

    def ask(self) -> Answer:
        """See `Asker`."""
        try:
            found = self._path.stat()
            if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for who writes there
                raise DiscoveryError(f"{self._path} is not a file")
            looks = (found.st_mtime_ns, found.st_size, found.st_ino)
            if looks != self._read:
                self._read_again(looks, unix_s() - found.st_mtime > SETTLED_S)
        except OSError as error:
            self._read = None
            raise DiscoveryError(f"{self._path}: {error.strerror or error}") from None
        if self._answer is None:
            raise DiscoveryError(self._failure)
        return self._answer

    def _read_again(self, looks: _Looks, settled: bool) -> None:
        with self._path.open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
        self._answer = None
        try:
            self._answer = Answer(found_in(data), strict=True)
        except DiscoveryError as error:
            self._failure = f"{self._path}: {error}"
        self._read = looks if settled else None

    def cancel(self) -> None:
        """See `Asker`: nothing here waits."""


def found_in(data: bytes) -> list[Found]:
    """The engines that a file lists, in its order. Raises DiscoveryError."""
    if len(data) > FILE_MAX_BYTES:
        raise DiscoveryError(f"is longer than {FILE_MAX_BYTES} bytes")
    try:
        listed = read_strictly(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DiscoveryError(f"is no JSON (line {error.lineno}, column {error.colno})") from None
    except (UnicodeDecodeError, RecursionError):
        raise DiscoveryError("is no JSON") from None
    except ValueError as error:
        raise DiscoveryError(str(error)) from None
    if not isinstance(listed, list):
        raise DiscoveryError("must be a list of engines")
    if len(listed) > FOUND_MAX:
        raise DiscoveryError(f"lists more than {FOUND_MAX} engines")
    return [_one(index, item) for index, item in enumerate(listed)]


def _one(index: int, item: Any) -> Found:
    if isinstance(item, str):
        return Found(own={"url": item})
    if not isinstance(item, dict):
        raise DiscoveryError(f"[{index}]: must be a URL or an object")
    if not isinstance(item.get("url"), str):
        raise DiscoveryError(f"[{index}].url: is missing, or no text")
    endpoints = item.get("endpoints")
    return Found(own={**item, **({"endpoints": tuple(endpoints)} if isinstance(endpoints, list) else {})})
