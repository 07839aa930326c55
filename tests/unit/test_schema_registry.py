"""Schemas by name in a folder: read at the start, put and deleted as a whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from gateway.schemas import registry
from gateway.schemas.faults import SchemaRefused
from gateway.schemas.registry import NameRefused, RegistryError, SchemaRegistry, SchemaUnknown

CITY: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}}


class RegistryTest(unittest.TestCase):
    def setUp(self) -> None:
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.folder = Path(held.name)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def faults_of_start(self) -> str:
        with self.assertRaises(RegistryError) as caught:
            SchemaRegistry(self.folder)
        return "\n".join(caught.exception.faults)

    def test_what_was_put_is_found_now_and_after_a_start(self) -> None:
        schemas = SchemaRegistry(self.folder)
        self.assertTrue(schemas.put("city", CITY))
        self.assertFalse(schemas.put("city", {**CITY, "title": "ü \ud800"}))
        for one in (schemas, SchemaRegistry(self.folder)):
            self.assertEqual(one.find("city").document["title"], "ü \ud800")
            self.assertEqual(one.find("city").check({"name": 3})[0].path, "$.name")
            self.assertEqual(list(one.schemas()), ["city"])
        self.assertEqual(self.names(), ["city.json"])

    @unittest.skipIf(os.name == "nt", "modes are POSIX's")
    def test_the_file_is_its_owners_alone(self) -> None:
        SchemaRegistry(self.folder).put("city", CITY)
        self.assertEqual(stat.S_IMODE((self.folder / "city.json").stat().st_mode), 0o600)

    def test_what_was_deleted_is_gone_now_and_after_a_start(self) -> None:
        schemas = SchemaRegistry(self.folder)
        schemas.put("city", CITY)
        before = schemas.schemas()
        schemas.delete("city")
        self.assertEqual((self.names(), dict(schemas.schemas())), ([], {}))
        self.assertIn("city", before)  # a snapshot stays what it was
        for act in (schemas.find, schemas.delete):
            with self.assertRaises(SchemaUnknown):
                act("city")

    def test_names_cannot_leave_the_folder(self) -> None:
        schemas = SchemaRegistry(self.folder)
        for name in ("", "../x", "a/b", "a.b", ".", "ü", "a\n", "a" * 65, "a b"):
            with self.subTest(name=name):
                with self.assertRaises(NameRefused):
                    schemas.put(name, CITY)
                with self.assertRaises(SchemaUnknown):
                    schemas.delete(name)
        self.assertEqual(self.names(), [])

    def test_a_faulty_schema_changes_nothing(self) -> None:
        schemas = SchemaRegistry(self.folder)
        schemas.put("city", CITY)
        with self.assertRaises(SchemaRefused):
            schemas.put("city", {"nullable": True})
        with mock.patch.object(registry, "SCHEMA_BYTES_MAX", 10), self.assertRaises(SchemaRefused):
            schemas.put("city", {"title": "larger"})
        self.assertEqual(schemas.find("city").document, CITY)
        self.assertEqual(SchemaRegistry(self.folder).find("city").document, CITY)

    def test_a_disk_that_refuses_leaves_the_old_schema_and_no_rest(self) -> None:
        schemas = SchemaRegistry(self.folder)
        schemas.put("city", CITY)
        with mock.patch.object(registry.os, "fsync", side_effect=OSError(28, "No space left on device")):
            with self.assertRaisesRegex(RegistryError, "city.json: cannot be written: No space left"):
                schemas.put("city", {"type": "string"})
        self.assertEqual(schemas.find("city").document, CITY)
        self.assertEqual(json.loads((self.folder / "city.json").read_text()), CITY)
        self.assertEqual(self.names(), ["city.json"])

    def test_there_is_a_bound_to_their_number(self) -> None:
        schemas = SchemaRegistry(self.folder)
        with mock.patch.object(registry, "SCHEMAS_MAX", 1):
            schemas.put("a", CITY)
            schemas.put("a", CITY)
            with self.assertRaises(NameRefused):
                schemas.put("b", CITY)

    def test_every_fault_of_the_folder_is_named_at_once(self) -> None:
        for name, text in (
            ("good.json", "{}"),
            ("half.json", '{"type": '),
            ("twice.json", '{"type": "string", "type": "null"}'),
            ("unknown.json", '{"properties": {"a": {"nullable": true}}}'),
            ("two words.json", "{}"),
            ("deep.json", '{"items":' * 300 + "{}" + "}" * 300),
        ):
            (self.folder / name).write_text(text)
        (self.folder / "latin.json").write_bytes(b'{"title": "\xe9"}')
        (self.folder / "folder.json").mkdir()
        (self.folder / "notes.txt").write_text("left alone")
        (self.folder / ".half.json.0123").write_text("a rest of a write")
        faults = self.faults_of_start()
        for words in (
            "half.json: is not JSON",
            "twice.json: is not JSON: the key 'type' stands twice",
            'unknown.json: $.properties.a.nullable: the keyword "nullable" is not supported',
            "two words.json: a schema's name has",
            "deep.json: is not JSON",
            "latin.json: is not JSON",
            "folder.json: is not a file",
        ):
            self.assertIn(words, faults)
        self.assertEqual(len(faults.splitlines()), 7)

    def test_a_folder_that_is_not_there_is_named(self) -> None:
        self.folder = self.folder / "none"
        self.assertIn(f"{self.folder}: cannot be read", self.faults_of_start())

    def test_a_file_that_is_too_large_is_named(self) -> None:
        (self.folder / "big.json").write_text("{}" + " " * 50)
        with mock.patch.object(registry, "SCHEMA_BYTES_MAX", 20):
            self.assertIn("big.json: has more than 20 bytes", self.faults_of_start())

    def test_after_many_changes_at_once_files_and_snapshot_agree(self) -> None:
        schemas = SchemaRegistry(self.folder)
        write, writing, overlaps = registry._replace, [0], [0]

        def counted(path: Path, data: bytes) -> None:
            writing[0] += 1
            overlaps[0] += writing[0] > 1
            write(path, data)
            writing[0] -= 1

        patched = mock.patch.object(registry, "_replace", counted)
        patched.start()
        self.addCleanup(patched.stop)

        def change(own: int) -> None:
            for number in range(10):
                schemas.put(f"s{number % 2}", {"const": [own, number]})

        threads = [threading.Thread(target=change, args=(own,)) for own in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(overlaps, [0])
        for name, schema in SchemaRegistry(self.folder).schemas().items():
            self.assertEqual(schemas.find(name).document, schema.document)
        self.assertEqual(self.names(), ["s0.json", "s1.json"])


if __name__ == "__main__":
    unittest.main()
