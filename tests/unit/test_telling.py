"""How a chat stream's lines become another dialect's, whatever spacing they have."""

from __future__ import annotations

import unittest

from gateway.dialects.anthropic.requests import read
from gateway.telling import Telling
from gateway.upstream.answers import dump
from gateway.upstream.call import CHAT, Call

CHUNK = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}


class TellingTest(unittest.TestCase):
    def told(self, lines: bytes) -> bytes:
        telling = Telling(read({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}))
        telling.call = Call(CHAT, telling.request)
        return telling.lines(lines)

    def test_an_end_is_one_however_it_is_written(self) -> None:
        chunk = b"data: %b\n\n" % dump(CHUNK)
        usual = self.told(chunk + b"data: [DONE]\n\n")
        self.assertIn(b"message_stop", usual)
        for end in (b"data:[DONE]\n\n", b"data:  [DONE]\n\n", b"data: \t[DONE] \r\n\r\n", b"data:[DONE]\x0b\r\r"):
            self.assertEqual(self.told(chunk + end), usual, end)

    def test_what_says_so_in_its_text_is_no_end(self) -> None:
        for data in (b'"[DONE]"', b"[DONE]x", b"[ DONE ]"):
            self.assertNotIn(b"message_stop", self.told(b"data: %b\n\n" % data), data)


if __name__ == "__main__":
    unittest.main()
