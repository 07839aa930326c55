"""What a body is, by how it begins."""

from __future__ import annotations

import unittest
from typing import Optional

from gateway.upstream.sniff import BLANK_MAX_BYTES, BOM, EMPTY, EVENTS, JSON, OTHER, kind_of

BODIES: list[tuple[bytes, Optional[str]]] = [
    (b'{"choices": []}', JSON),
    (b'[{"error": {}}]', JSON),
    (b' \r\n\t{"a": 1}', JSON),
    (BOM + b'{"a": 1}', JSON),
    (BOM + b"\n[]", JSON),
    (b"data: {}\n\n", EVENTS),
    (b"data:{}\n\n", EVENTS),
    (BOM + b"data: 1\n\n", EVENTS),
    (b"\n\n\r\ndata: 1", EVENTS),
    (b": comment", EVENTS),
    (b":\n", EVENTS),
    (b"event: message\n", EVENTS),
    (b"id: 1\n", EVENTS),
    (b"retry: 100\n", EVENTS),
    (b"<html>", OTHER),
    (b"<!DOCTYPE html>", OTHER),
    (b"Internal Server Error", OTHER),
    (b"database", OTHER),
    (b"OK\n", OTHER),
    (b"", EMPTY),
    (b" \r\n", EMPTY),
    (BOM, EMPTY),
]


class SniffTest(unittest.TestCase):
    def test_a_whole_body(self) -> None:
        for body, kind in BODIES:
            with self.subTest(body):
                self.assertEqual(kind_of(body, True), kind)
                self.assertEqual(kind_of(bytearray(body), True), kind)

    def test_a_beginning_says_the_same_or_nothing_yet(self) -> None:
        for body, kind in BODIES:
            for size in range(len(body)):
                with self.subTest(body, size=size):
                    self.assertIn(kind_of(body[:size], False), (None, kind))
            self.assertEqual(kind_of(body + b" and so on", False), kind if kind != EMPTY else OTHER)

    def test_blanks_without_end_are_something_else(self) -> None:
        self.assertIsNone(kind_of(b" " * (BLANK_MAX_BYTES - 1), False))
        self.assertEqual(kind_of(b" " * BLANK_MAX_BYTES, False), OTHER)
        self.assertEqual(kind_of(b" " * (BLANK_MAX_BYTES + 1) + b"{", True), OTHER)


if __name__ == "__main__":
    unittest.main()
