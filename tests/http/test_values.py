"""Bodies of many small values on real sockets: refused where they are too many, never read on the loop's thread."""

from __future__ import annotations

import json
import threading
import unittest
from typing import Any
from unittest import mock

from gateway import validation
from tests.access import ADMIN_KEYS, AS_ROOT, AccessTest
from tests.onloop import OnLoopTest
from tests.support import COMPLETIONS, RunningGateway, gateway


def filled(filler: bytes, count: int) -> bytes:
    """A completion request with a field that holds so many small values."""
    return b'{"prompt": "hi", "a": [' + filler * count + b"1]}"


class BoundTest(AccessTest):
    def test_one_value_too_many_is_refused_and_the_limit_named(self) -> None:
        running = self.enter(gateway(MAX_JSON_VALUES=100))
        with running.connect() as client:
            for count, status in ((94, 200), (95, 400), (95_000, 400), (94, 200)):
                response = client.post(filled(b"[],", count), COMPLETIONS)  # the object, two keys, two values, the 1
                self.assertEqual(response.status, status, response.body[:300])
                if status == 400:
                    self.assertEqual(response.error, "invalid_json")
                    self.assertIn("100", response.json()["message"])

    def test_megabytes_of_nothing_are_refused_before_they_are_parsed(self) -> None:
        running = self.enter(gateway())
        with mock.patch.object(validation, "read_strictly", side_effect=AssertionError("parsed")):
            response = running.post(filled(b"[],", 3_000_000), COMPLETIONS)
        self.assert_error(response, 400, "invalid_json")
        self.assertIn("1000000", response.json()["message"])

    def test_a_long_text_is_one_value_whatever_stands_in_it(self) -> None:
        running = self.enter(gateway())
        for text in ("[],{:}" * 700_000, '",\n' * 700_000):
            response = running.post({"prompt": text}, COMPLETIONS)
            self.assertEqual(response.status, 200, response.body[:300])
            self.assertEqual(response.json()["choices"][0]["text"], f"Echo: {text}")

    def test_administrators_bodies_are_bounded_too(self) -> None:
        running = self.serve(ADMIN_KEYS=ADMIN_KEYS, MAX_JSON_VALUES=100)
        body = json.dumps({"name": "alice", "models": ["m"] * 200}).encode()
        self.assert_error(running.ask("POST", "/admin/keys", body, [AS_ROOT]), 400, "invalid_json")


class LoopTest(OnLoopTest):
    def parsed_on(self, running: RunningGateway, body: bytes) -> Any:
        """The thread that reads the body, when it comes whole."""
        threads: list[threading.Thread] = []

        def parse(data: bytes, values_max: int) -> Any:
            threads.append(threading.current_thread())
            return real(data, values_max)

        real = validation.parse_json
        with mock.patch("gateway.pipeline.parse_json", parse):
            self.assertEqual(running.post(body, COMPLETIONS).status, 200)
        return threads[0]

    def test_many_small_values_are_read_on_a_thread(self) -> None:
        running = self.enter(gateway())
        server = running.app.server
        for body, on_loop in (
            (filled(b"", 0), True),
            (filled(b"1,", 500), True),
            (json.dumps({"prompt": "some words, and more. " * 2000}).encode(), True),
            (filled(b"{},", 15_000), False),
            (filled(b"1,", 15_000), False),
        ):
            with self.subTest(body=body[:60], size=len(body)):
                thread = self.parsed_on(running, body)
                self.assertEqual(thread is server.loop._thread, on_loop)


if __name__ == "__main__":
    unittest.main()
