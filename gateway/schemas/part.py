"""What a keyword's compiler is given: one schema, and how to come to those within it.

Pure. Used while a schema is compiled, by one thread.
"""

from __future__ import annotations

from typing import Any, Optional

from gateway.schemas.document import Document, Steps
from gateway.schemas.faults import SchemaRefused, quoted, steps_text
from gateway.schemas.node import Node
from gateway.schemas.patterns import Pattern
from gateway.schemas.patternsyntax import PatternFaulty, PatternUnsupported

PATTERN_STEPS_MAX = 20_000
"""What all patterns of a document may come to."""


class Compiling:
    """What the parts of one document share: its nodes, made before they are filled, and its patterns."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.nodes = {steps: Node() for steps in document.places}
        self._patterns: dict[str, Pattern] = {}
        self.pattern_steps = 0

    def pattern(self, text: str) -> Pattern:
        """The pattern, compiled once. Raises PatternFaulty, PatternUnsupported."""
        found = self._patterns.get(text)
        if found is None:
            found = self._patterns[text] = Pattern(text)
            self.pattern_steps += found.size
            if self.pattern_steps > PATTERN_STEPS_MAX:
                raise PatternUnsupported(f"the patterns of the schema come to more than {PATTERN_STEPS_MAX} steps")
        return found


class Part:
    """One schema that is an object: `schema`, where it stands, and its node."""

    def __init__(self, compiling: Compiling, steps: Steps) -> None:
        self._compiling = compiling
        self._steps = steps
        self.schema: dict[str, Any] = compiling.document.places[steps].schema
        self.own = compiling.nodes[steps]

    def refused(self, message: str, *steps: Any) -> SchemaRefused:
        """The error for what stands at `steps` from here."""
        return SchemaRefused(steps_text((*self._steps, *steps)), message)

    def node(self, *steps: Any) -> Node:
        """The node of the schema at `steps` from here; where that is nothing but a reference, of what it leads to."""
        place = (*self._steps, *steps)
        places = self._compiling.document.places
        while type(places[place].schema) is dict and _only_refers(places[place].schema):
            place = self._compiling.document.target(place)
        return self._compiling.nodes[place]

    def target(self) -> Node:
        """The node that `$ref` leads to."""
        return self._compiling.nodes[self._compiling.document.target(self._steps)]

    def is_false(self, keyword: str) -> bool:
        """Whether a keyword's schema lets nothing pass."""
        return self.schema.get(keyword) is False

    def number(self, keyword: str) -> Any:
        """The number of a keyword. Raises SchemaRefused for anything else."""
        value = self.schema[keyword]
        if type(value) not in (int, float):
            raise self.refused("must be a number", keyword)
        return value

    def count(self, keyword: str, absent: Optional[int] = None) -> int:
        """The whole number of a keyword, 0 or more; `absent` where there is no such keyword. Raises SchemaRefused."""
        value = self.schema.get(keyword, absent)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int or value < 0:
            raise self.refused("must be a whole number, 0 or more", keyword)
        return value

    def names(self, *steps: Any) -> list[str]:
        """The array of strings at `steps` from here. Raises SchemaRefused for anything else."""
        value: Any = self.schema
        for step in steps:
            value = value[step]
        if type(value) is not list or any(type(one) is not str for one in value):
            raise self.refused("must be an array of strings", *steps)
        return list(dict.fromkeys(value))

    def pattern(self, text: Any, *steps: Any) -> Pattern:
        """A pattern that stands at `steps` from here. Raises SchemaRefused for what is none, or cannot be matched."""
        if type(text) is not str:
            raise self.refused("must be a string", *steps)
        try:
            return self._compiling.pattern(text)
        except PatternFaulty as error:
            raise self.refused(f"is no ECMA-262 pattern: {error}", *steps) from None
        except PatternUnsupported as error:
            raise self.refused(f"the pattern {quoted(text)} is not supported: {error}", *steps) from None


def _only_refers(schema: dict[str, Any]) -> bool:
    return len(schema) == 1 and "$ref" in schema
