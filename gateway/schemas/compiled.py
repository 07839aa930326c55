"""The schemas that requests bring along, compiled: the ones that were used last, so that each is compiled once.

Owns them. The lock guards the table and is held for single operations on it, never while a schema is compiled.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import Any

from gateway.schemas.document import PLACES_MAX
from gateway.schemas.faults import SchemaRefused
from gateway.schemas.part import PATTERN_STEPS_MAX
from gateway.schemas.schema import Schema, compile_schema

BYTES_MAX = 67_108_864
"""What all of them may take, about; what their patterns find out is apart (`patterns.ALL_KEPT_MAX`)."""
_BYTES_PER_SCHEMA = 2_048  # within each other
_BYTES_PER_CHARACTER = 32  # of the text: a list of numbers takes as much
_BYTES_PER_STEP = 96  # of a pattern


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
        takes += _BYTES_PER_STEP * schema.pattern_steps
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


class Together:
    """The schemas of one request, which have the bounds of one document together. Used by one thread."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._size = self._pattern_steps = 0

    def schema(self, document: Any) -> Schema:
        """As `Compiled.schema`; raises SchemaRefused for the first that is too much, too."""
        schema = self._compiled.schema(document)
        self._size += schema.size
        self._pattern_steps += schema.pattern_steps
        if self._size > PLACES_MAX:
            raise SchemaRefused(
                "$", f"more than {PLACES_MAX} schemas stand within those of this request up to this one"
            )
        if self._pattern_steps > PATTERN_STEPS_MAX:
            message = f"the patterns up to this schema come to more than {PATTERN_STEPS_MAX} steps"
            raise SchemaRefused("$", message)
        return schema


def _text(document: Any) -> str:
    return json.dumps(document, sort_keys=True)
