"""The schemas that requests bring along, compiled: the ones that were used last, so that each is compiled once.

Owns them. The lock guards the table and is held for single operations on it, never while a schema is compiled.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any

from gateway.schemas.schema import Schema, compile_schema

BYTES_MAX = 67_108_864
"""What all of them may take, about."""
_BYTES_PER_SCHEMA = 2_048  # within each other
_BYTES_PER_CHARACTER = 32  # of the text: a list of numbers takes as much


class Compiled:
    """Schemas by their JSON. Thread-safe."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._schemas: OrderedDict[str, tuple[Schema, int]] = OrderedDict()
        self._bytes = 0

    def schema(self, document: Any) -> Schema:
        """The schema that a document is. Raises SchemaRefused."""
        text = _text(document)
        with self._lock:
            found = self._schemas.get(text)
            if found is not None:
                self._schemas.move_to_end(text)
                return found[0]
        schema = compile_schema(document)
        takes = _BYTES_PER_SCHEMA * schema.size + _BYTES_PER_CHARACTER * len(text)
        with self._lock:
            if takes <= self._bytes_max and text not in self._schemas:
                self._schemas[text] = schema, takes
                self._bytes += takes
                while self._bytes > self._bytes_max:
                    self._bytes -= self._schemas.popitem(last=False)[1][1]
        return schema

    def missing(self, document: Any) -> int:
        """How many characters there are to compile before `schema` has this one; 0: none."""
        text = _text(document)
        with self._lock:
            return 0 if text in self._schemas else len(text)


def _text(document: Any) -> str:
    return json.dumps(document, sort_keys=True)
