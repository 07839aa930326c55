"""Clients of other dialects that ask a model which is made of others."""

from __future__ import annotations

import unittest
from unittest import mock

from gateway.verify import panel
from tests.dialects import MESSAGES, OLLAMA, RESPONSES, SPEAKING, asking, ends_well, error_of, mark_of, read, text_of
from tests.support import RawClient
from tests.verified import PROMPT, VerifiedTest

ALIVE = {MESSAGES: "event: ping", RESPONSES: ": alive"}


class VerifiedDialectsTest(VerifiedTest):
    def asked(self, path: str, *texts: str) -> tuple[RawClient, str]:
        """A client that streams, and waits while two models say this; what it has read of the time before."""
        running = self.several("ab", virtual={"v": {"members": ["a", "b"], "fallback": "abstain"}})
        client = self.enter(running.connect())
        with mock.patch.object(panel, "COMMENT_S", 0.01):
            client.request("POST", path, {**asking(path, PROMPT, stream=True), "model": "v"})
            self.assertEqual(client.read_head().status, 200)
            alive = client.read_event(b" " if path in OLLAMA else b"\n\n")
            self.say(dict(zip("ab", texts)))
        return client, alive or ""


def checks(path: str) -> type[unittest.TestCase]:
    """What holds in that dialect. Each test has gateways of its own: their engines are told apart by names."""

    class Checks(VerifiedDialectsTest):
        def test_its_stream_waits_and_is_told(self) -> None:
            client, alive = self.asked(path, "42", "42")
            self.assertIn(ALIVE.get(path, ""), alive)
            told = read(path, client.read_events(mark_of(path)))
            self.assertEqual((text_of(path, told), ends_well(path, told)), ("42", True))

        def test_its_stream_waits_and_is_told_of_a_fault(self) -> None:
            client, _ = self.asked(path, "42", "43")
            told = read(path, client.read_events(mark_of(path)))
            self.assertFalse(ends_well(path, told))
            self.assertIn(error_of(path, told[-1])[0], ("", "no_consensus"))

    return Checks


MessagesTest, ResponsesTest, OllamaChatTest, GenerateTest = map(checks, SPEAKING)


if __name__ == "__main__":
    unittest.main()
