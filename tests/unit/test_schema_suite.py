"""The official tests of JSON Schema 2020-12: every case passes, or its schema is refused for a reason named here."""

from __future__ import annotations

import json
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from gateway.schemas.faults import SchemaRefused
from gateway.schemas.schema import compile_schema

SUITE = Path(__file__).resolve().parents[1] / "data" / "jsonschema" / "draft2020-12.jsonl"

# What schemas of a file are refused for, as the refusal says it, and how many for each reason.
REMOTE = "leads out of this document"  # nothing is fetched, the meta-schema neither
DYNAMIC = 'the keyword "$dynamic'  # what it means depends on the way to it: structured outputs do not use it
UNKNOWN = "is not supported"  # a keyword, a format or a dialect ($schema) that is not known
REFUSED = {
    "defs.json": {REMOTE: 1},
    "dynamicRef.json": {REMOTE: 1, DYNAMIC: 20},
    "format.json": {UNKNOWN: 1},
    "optional/format/unknown.json": {UNKNOWN: 1},
    "optional/refOfUnknownKeyword.json": {UNKNOWN: 4, "leads to no schema": 1},
    "optional/unknownKeyword.json": {UNKNOWN: 1},
    "ref.json": {REMOTE: 1},
    "refRemote.json": {REMOTE: 15},
    "unevaluatedItems.json": {DYNAMIC: 1},
    "unevaluatedProperties.json": {DYNAMIC: 1},
    "vocabulary.json": {UNKNOWN: 2},
}

# Cases whose verdict is another one here.
A_LABELS = "validation of A-label (punycode) host names"  # what a label stands for is not looked at
ANNOTATION_ONLY = "is only an annotation by default"  # formats are asserted


def groups() -> Iterator[dict[str, Any]]:
    with SUITE.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def refusal(group: dict[str, Any]) -> Optional[str]:
    try:
        compile_schema(group["schema"])
    except SchemaRefused as error:
        return str(error)
    return None


def is_excluded(group: dict[str, Any], case: dict[str, Any]) -> bool:
    if group["file"] == "format.json":
        return bool(case["description"].endswith(ANNOTATION_ONLY))
    return bool(group["description"] == A_LABELS and not case["valid"])


class SuiteTest(unittest.TestCase):
    def test_every_case_of_a_schema_that_is_not_refused_passes(self) -> None:
        count = excluded = 0
        for group in groups():
            if refusal(group) is not None:
                continue
            schema = compile_schema(group["schema"])
            for case in group["tests"]:
                count += 1
                if is_excluded(group, case):
                    excluded += 1
                    self.assertNotEqual(not schema.check(case["data"]), case["valid"], "no longer an exception")
                    continue
                with self.subTest(file=group["file"], group=group["description"], case=case["description"]):
                    self.assertEqual(not schema.check(case["data"]), case["valid"])
        self.assertGreater(count, 1900)
        self.assertLess(excluded, 45)

    def test_schemas_are_refused_for_the_reasons_named_and_no_others(self) -> None:
        found: dict[str, dict[str, int]] = {}
        for group in groups():
            message = refusal(group)
            if message is not None:
                reasons = [reason for reason in REFUSED.get(group["file"], ()) if reason in message]
                self.assertEqual(len(reasons), 1, f"{group['file']}: {group['description']}: {message}")
                counts = found.setdefault(group["file"], {})
                counts[reasons[0]] = counts.get(reasons[0], 0) + 1
        self.assertEqual(found, REFUSED)


if __name__ == "__main__":
    unittest.main()
