"""What a load test makes of an answer, however it comes: framing, events, refusals, and what is none."""

from __future__ import annotations

import json
import unittest
from typing import Any, Optional

from gateway.tools.loadtest.events import EVENT_MAX_BYTES, Events, error_name
from gateway.tools.loadtest.exchange import KEPT_BYTES, Exchange
from tests.scripted import DONE, STREAM_HEAD, chunked, delta

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5}}\n\n'
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
ANSWER = json.dumps({"choices": [{}], "usage": {"prompt_tokens": 4, "completion_tokens": 9}}).encode()


def read(pieces: list[bytes], stream: bool = False, close: bool = False) -> Exchange:
    """An exchange that has been fed these pieces, one in each nanosecond from 1 on."""
    exchange = Exchange(stream)
    for at_ns, piece in enumerate(pieces, 1):
        if exchange.feed(piece, at_ns):
            return exchange
    if close:
        exchange.closed()
    return exchange


def whole(body: bytes = ANSWER, status: str = "200 OK", headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def streamed(*events: bytes) -> bytes:
    return STREAM_HEAD + b"".join(map(chunked, events)) + b"0\r\n\r\n"


def seen(exchange: Exchange) -> dict[str, Any]:
    """All that is measured of an answer but its times."""
    names = ("complete", "failure", "refused", "reusable", "tokens", "completion_tokens", "prompt_tokens", "body_bytes")
    found = {name: getattr(exchange, name) for name in names}
    return {**found, "texts": None if exchange.events is None else exchange.events.texts}


class SplitTest(unittest.TestCase):
    """The same answer cut at any one place, at any two of some, and into single bytes, is the same answer."""

    def assert_same_however_cut(self, data: bytes, stream: bool, close: bool = False) -> Exchange:
        exchange = read([data], stream, close)
        expected = seen(exchange)
        for cut in range(1, len(data)):
            self.assertEqual(seen(read([data[:cut], data[cut:]], stream, close)), expected, cut)
        for step in (1, 2, 3, 7, 16):
            pieces = [data[at : at + step] for at in range(0, len(data), step)]
            self.assertEqual(seen(read(pieces, stream, close)), expected, step)
        return exchange

    def test_by_length(self) -> None:
        exchange = self.assert_same_however_cut(whole(headers="X-Gateway-Engine: e1\r\n"), stream=False)
        self.assertEqual((exchange.failure, exchange.tokens, exchange.prompt_tokens), (None, 9, 4))
        self.assertTrue(exchange.reusable)
        self.assertEqual(exchange.engine, b"e1")

    def test_in_chunks(self) -> None:
        data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        data += chunked(ANSWER[:9]) + chunked(ANSWER[9:]) + b"0\r\nX-Trailer: 1\r\n\r\n"
        exchange = self.assert_same_however_cut(data, stream=False)
        self.assertEqual((exchange.failure, exchange.tokens, exchange.reusable), (None, 9, True))

    def test_until_it_closes_as_http_1_0_does(self) -> None:
        data = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + ANSWER
        exchange = self.assert_same_however_cut(data, stream=False, close=True)
        self.assertEqual((exchange.failure, exchange.tokens, exchange.reusable), (None, 9, False))

    def test_after_interim_answers(self) -> None:
        data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + whole()
        self.assertIsNone(self.assert_same_however_cut(data, stream=False).failure)

    def test_a_stream(self) -> None:
        data = streamed(ROLE, delta("Hel"), delta('"lo"\\\n'), delta("x", "stop"), b": a comment\r\n\r\n", USAGE, DONE)
        exchange = self.assert_same_however_cut(data, stream=True)
        self.assertEqual((exchange.failure, exchange.tokens, exchange.prompt_tokens), (None, 5, 7))
        self.assertTrue(exchange.reusable)

    def test_a_stream_with_crlf_and_without_spaces(self) -> None:
        events = [ROLE, delta("a"), delta("b"), delta("c"), DONE]
        events = [event.replace(b"\n", b"\r\n").replace(b"data: ", b"data:") for event in events]
        exchange = self.assert_same_however_cut(streamed(*events), stream=True)
        self.assertEqual((exchange.failure, exchange.tokens), (None, 3))

    def test_a_stream_that_breaks(self) -> None:
        data = STREAM_HEAD + chunked(ROLE) + chunked(delta("a")) + chunked(delta("b"))
        exchange = self.assert_same_however_cut(data, stream=True, close=True)
        self.assertEqual(exchange.failure, "stream: closed before its end")


class StreamTest(unittest.TestCase):
    def failure(self, *events: bytes) -> Optional[str]:
        exchange = read([streamed(*events)], stream=True)
        self.assertTrue(exchange.complete)
        return exchange.failure

    def test_one_without_done_is_an_error(self) -> None:
        self.assertEqual(self.failure(delta("a"), delta("", "stop")), "stream: ended without [DONE]")
        self.assertEqual(self.failure(), "stream: ended without [DONE]")

    def test_an_error_event_is_an_error_by_its_code(self) -> None:
        event = b'data: {"error":{"code":"backend_error","message":"it broke"}}\n\n'
        self.assertEqual(self.failure(delta("a"), event, DONE), "stream: error event: backend_error")
        self.assertEqual(self.failure(b'data: {"type":"error","error":"x"}\n\n'), "stream: error event: x")

    def test_what_is_not_json_is_an_error(self) -> None:
        self.assertEqual(self.failure(delta("a"), b"data: {\n\n", DONE), "stream: an event that is not JSON")
        self.assertEqual(self.failure(b"data: 1\n\n", DONE), "stream: an event that is no object")

    def test_a_plain_answer_is_none(self) -> None:
        self.assertEqual(read([whole()], stream=True).failure, "stream: the answer is no event stream")

    def test_times_are_of_events_with_text(self) -> None:
        pieces = [STREAM_HEAD, *map(chunked, (ROLE, delta("a"), b": ping\n\n", delta("b"), delta("c"), USAGE, DONE))]
        exchange = read([*pieces, b"0\r\n\r\n"], stream=True)
        self.assertEqual((exchange.first_ns, exchange.last_ns, exchange.longest_gap_ns), (3, 6, 2))

    def test_tokens_are_counted_events_where_none_are_told(self) -> None:
        exchange = read([streamed(ROLE, delta("a"), delta("b"), DONE)], stream=True)
        self.assertEqual((exchange.tokens, exchange.completion_tokens), (2, None))

    def test_reasoning_tools_completions_and_other_dialects_have_text_too(self) -> None:
        for event in (
            {"choices": [{"delta": {"reasoning_content": "hm"}}]},
            {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]},
            {"choices": [{"text": "a"}]},
            {"type": "content_block_delta", "delta": {"text": "a"}},
            {"type": "response.output_text.delta", "delta": "a"},
        ):
            events = Events()
            events.feed(b"data: %b\n\n" % json.dumps(event).encode())
            self.assertEqual(events.texts, 1, event)
        for end in (
            '{"type":"message_stop"}',
            '{"type":"response.completed","response":{"usage":{"output_tokens":3}}}',
        ):
            events.feed(f"event: x\ndata: {end}\n\n".encode())
            self.assertTrue(events.done)
        self.assertEqual(events.completion_tokens, 3)

    def test_events_that_look_like_the_last_are_counted_alike(self) -> None:
        texts = ["a", "b", "", '"', "\\", "\\n", 'x"},"finish_reason":"stop"', "é", "c"]
        shapes = [
            lambda text: json.dumps({"id": "1", "choices": [{"delta": {"content": text}}]}, separators=(",", ":")),
            lambda text: json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": None}]}),
        ]
        for shape in shapes:
            events = Events()
            for text in texts:
                events.feed(b"data: %b\n\n" % shape(text).encode())
            self.assertEqual(events.texts, len(texts) - 1)
            self.assertIsNone(events.error)

    def test_an_event_of_which_only_the_ends_are_alike_is_read(self) -> None:
        events = Events()
        for content in (b"a", b'","role":"assistant', b"b"):
            events.feed(b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % content)
        self.assertEqual(events.texts, 2)

    def test_an_event_behind_alike_ones_may_still_be_an_error_or_the_end(self) -> None:
        compact = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
        events = Events()
        events.feed(compact * 5 + b'data: {"choices":[{"delta":{"content":"a"}}],"error":{"code":"e"}}\n\n')
        self.assertEqual((events.texts, events.error), (5, "error event: e"))

    def test_a_line_without_end_is_not_kept_without_end(self) -> None:
        exchange = Exchange(stream=True)
        exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: ", 1)
        for _ in range(EVENT_MAX_BYTES // 65536 + 2):
            if exchange.feed(b"x" * 65536, 2):
                break
        self.assertEqual(exchange.failure, "stream: an event that is too large")

    def test_nothing_is_learnt_of_a_large_event(self) -> None:
        """To look for the end of a text of 4 MB takes half a gigabyte, and a second in which nobody else is read."""
        events = Events()
        events.feed(b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (b"x" * 100_000))
        self.assertEqual((events.texts, events.error), (1, None))
        self.assertIsNone(events._alike)

    def test_an_event_of_ever_more_lines_is_given_up_too(self) -> None:
        events = Events()
        lines = b"".join(b"data: %b\n" % (b"x" * 1000) for _ in range(1000))
        for _ in range(2 * (EVENT_MAX_BYTES // len(lines)) + 2):
            events.feed(lines)
            self.assertLessEqual(sum(map(len, events._further)), EVENT_MAX_BYTES)
        self.assertEqual(events.error, "an event that is too large")


class AnswerTest(unittest.TestCase):
    def test_errors_are_told_by_status_and_code(self) -> None:
        for body, expected in (
            (b'{"error":{"code":"backend_error","message":"m"}}', "502 backend_error"),
            (b'{"error":{"type":"server_error","code":null}}', "502 server_error"),
            (b'{"error":"plain"}', "502 plain"),
            (b'{"error":{"code":502}}', "502"),
            (b"<html>", "502"),
            (b"", "502"),
            (b"[1]", "502"),
            (b'{"error":{"code":"a\\u001b[2Jb\\nc"}}', "502 a [2Jb c"),
        ):
            exchange = read([whole(body, "502 Bad Gateway")])
            self.assertEqual((exchange.failure, exchange.refused), (expected, False))
            self.assertTrue(exchange.reusable)

    def test_a_refusal_says_when_to_come_again(self) -> None:
        for status in ("429 Too Many Requests", "503 Service Unavailable"):
            self.assertTrue(read([whole(b"{}", status, "Retry-After: 1\r\n")]).refused)
            self.assertFalse(read([whole(b"{}", status)]).refused)
        self.assertFalse(read([whole(b"{}", "500 Oops", "Retry-After: 1\r\n")]).refused)

    def test_what_is_no_answer_is_an_error(self) -> None:
        for data, expected in (
            (whole(b"hello"), "the answer is not JSON"),
            (whole(b"[]"), "the answer is no JSON object"),
            (whole(b'{"error":{"code":"x"}}'), "200 with an error: x"),
            (b"SSH-2.0-OpenSSH\r\n", "not HTTP: the answer does not begin with HTTP/"),
            (b"HTTP/2 200\r\n\r\n", "not HTTP: not an HTTP/1.x status line"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "not HTTP: a Content-Length that is no number"),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                "not HTTP: a chunk size that is no number",
            ),
            (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, "not HTTP: a head that is too large"),
        ):
            exchange = read([data])
            self.assertEqual((exchange.complete, exchange.failure), (True, expected))
            self.assertEqual(exchange.reusable, not expected.startswith("not HTTP"))

    def test_one_that_is_cut_off_is_an_error(self) -> None:
        for data, expected in (
            (b"", "closed without an answer"),
            (b"HTTP/1.1 200", "closed in the head"),
            (whole()[:-1], "closed in the body"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "closed in the body"),
        ):
            exchange = read([data] if data else [], close=True)
            self.assertEqual(exchange.failure, expected)

    def test_a_connection_is_kept_only_where_that_was_said_and_nothing_came_behind(self) -> None:
        self.assertTrue(read([whole()]).reusable)
        self.assertFalse(read([whole(headers="Connection: close\r\n")]).reusable)
        self.assertFalse(read([whole() + b"HTTP/1.1 200"]).reusable)

    def test_of_a_huge_answer_only_the_end_is_kept(self) -> None:
        tail = b'],"usage":{"prompt_tokens":3,"completion_tokens":0,"details":{"a":1}}}'
        body = b'{"data":[' + b"0.125," * (KEPT_BYTES // 3) + b"0" + tail
        exchange = Exchange(stream=False)
        data = whole(body)
        kept = 0
        for at in range(0, len(data), 65536):
            exchange.feed(data[at : at + 65536], 1)
            kept = max(kept, sum(map(len, exchange._body)))
        self.assertEqual((exchange.failure, exchange.prompt_tokens, exchange.body_bytes), (None, 3, len(body)))
        self.assertLessEqual(kept, KEPT_BYTES + 65536)
        self.assertEqual(read([whole(body[:-4])]).failure, "the answer is not JSON")

    def test_names_of_errors_are_short_and_printable(self) -> None:
        self.assertEqual(error_name({"error": {"code": 7}}), "7")
        self.assertEqual(len(error_name({"error": {"message": "m" * 999}})), 60)
        for odd in (None, [], {"error": {"code": {}}}, {"error": []}, 3.5, {"error": {"code": True}}):
            self.assertEqual(error_name(odd), "", odd)


if __name__ == "__main__":
    unittest.main()
