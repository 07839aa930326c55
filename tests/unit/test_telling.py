"""How a chat stream's lines become another dialect's, whatever spacing they have."""

from __future__ import annotations

import unittest
from typing import Any

from gateway.dialects.anthropic.requests import read
from gateway.dialects.responses.conversation import read as read_response
from gateway.telling import Telling
from gateway.upstream.answers import dump
from gateway.upstream.call import CHAT, Call

CHUNK = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
HI = {"role": "user", "content": "hi"}


class TellingTest(unittest.TestCase):
    def told(self, lines: bytes, read_one: Any = read, **more: Any) -> bytes:
        telling = Telling(read_one(more or {"model": "m", "max_tokens": 5, "messages": [HI]}))
        telling.call = Call(CHAT, telling.request, request_id="req-1")
        return telling.lines(lines)

    def test_a_stream_that_has_no_id_gets_the_one_of_its_request(self) -> None:
        for given in ({}, {"id": ""}, {"id": None}):
            line = b"data: %b\n\n" % dump({**CHUNK, **given})
            self.assertIn(b'"id":"req-1"', self.told(line))
            self.assertIn(b'"id":"resp_req-1"', self.told(line, read_response, model="m", input="hi"))
        self.assertIn(b'"id":"its-own"', self.told(b"data: %b\n\n" % dump({**CHUNK, "id": "its-own"})))

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
