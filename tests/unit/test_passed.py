"""What is passed on: a form for another model's name, an upload between two threads, the events of Responses."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
import unittest
from typing import Any, Optional

from gateway.dialects.forms import FormReader
from gateway.errors import ClientGone, RequestRefused
from gateway.steps import Flagged, drive
from gateway.uploads import FULL_BYTES, Upload
from gateway.upstream.passed import Form, PassedEvents, PassedJson, ResponsesEvents, UsageEvents, usage_in
from gateway.upstream.sse import EVENT_MAX_BYTES, StreamBroken

READER = FormReader(b"multipart/form-data; boundary=x")
TIMEOUT_S = 20.0


def nothing() -> None:
    pass


class FormTest(unittest.TestCase):
    def test_another_name_is_put_where_the_model_s_stands(self) -> None:
        form = Form(b"k", b"before OLD after", (7, 10), READER, Upload(nothing), 100)
        self.assertEqual(form.for_model("larger"), (b"before larger after", 103))
        self.assertEqual(form.for_model(None), (b"before OLD after", 100))

    def test_a_form_without_a_model_gets_one(self) -> None:
        begin, length = Form(b"k", b"--x--\r\n", None, READER).for_model("m")
        self.assertEqual(begin, b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--\r\n')
        self.assertEqual(length, len(begin))

    def test_one_of_unknown_length_comes_in_chunks(self) -> None:
        form = Form(b"k", b"abc", (0, 1), READER, Upload(nothing), None)
        self.assertTrue(form.in_chunks)
        self.assertIsNone(form.for_model("m").length)
        self.assertFalse(Form(b"k", b"abc", None, READER).in_chunks)

    def test_it_is_spent_when_something_has_been_sent_that_nobody_holds(self) -> None:
        upload = Upload(nothing)
        form = Form(b"k", b"abc", None, READER, upload, 9)
        self.assertFalse(form.spent)
        upload.spent = True
        self.assertTrue(form.spent)
        self.assertFalse(Form(b"k", b"abc", None, READER).spent)

    def test_one_that_ends_without_its_end_is_refused_with_its_last_piece(self) -> None:
        begin, rest = (
            b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x',
            b"\r\nContent-Disposition:",
        )
        for whole, length in ((False, len(begin + rest)), (False, None), (True, len(begin) + 2), (True, None)):
            reader, upload = FormReader(b"multipart/form-data; boundary=x"), Upload(nothing)
            reader.find(begin)
            reader.go_on(begin)
            form = Form(b"k", begin, None, reader, upload, length)
            upload.put(b"--" if whole else rest)
            upload.end()
            if whole or length is None:
                self.assertTrue(drive(form.take(upload)))
            if whole:
                self.assertEqual(drive(form.take(upload)), b"")
                continue
            with self.assertRaises(RequestRefused) as caught:
                drive(form.take(upload))
            self.assertEqual(caught.exception.code, "invalid_body")


class UploadTest(unittest.TestCase):
    def taken(self, upload: Upload) -> Optional[bytes]:
        """What can be taken at once; None: one has to wait."""
        steps = upload.take()
        try:
            wait = next(steps)
        except StopIteration as end:
            return bytes(end.value)
        self.assertIsInstance(wait, Flagged)
        steps.close()
        return None

    def test_what_was_put_is_taken_in_order_and_then_the_end(self) -> None:
        upload = Upload(nothing)
        self.assertIsNone(self.taken(upload))
        upload.put(b"a")
        upload.put(b"b")
        self.assertEqual(self.taken(upload), b"ab")
        self.assertIsNone(self.taken(upload))
        upload.put(b"c")
        upload.end()
        self.assertEqual([self.taken(upload), self.taken(upload)], [b"c", b""])

    def test_who_waits_is_woken_by_what_comes_by_the_end_and_by_a_failure(self) -> None:
        for act, told in (
            (lambda u: u.put(b"x"), b"x"),
            (lambda u: u.end(), b""),
            (lambda u: u.fail(ClientGone()), None),
        ):
            upload = Upload(nothing)
            steps = upload.take()
            wait = next(steps)
            assert isinstance(wait, Flagged)
            self.assertFalse(wait.flag.is_set())
            act(upload)
            self.assertTrue(wait.flag.is_set())
            if told is None:
                self.assertRaises(ClientGone, steps.send, True)
                continue
            with self.assertRaises(StopIteration) as ended:
                steps.send(True)
            self.assertEqual(ended.exception.value, told)

    def test_the_first_failure_stays_and_an_end_is_one(self) -> None:
        upload = Upload(nothing)
        upload.put(b"x")
        upload.fail(ValueError())
        upload.fail(ClientGone())
        self.assertRaises(ValueError, drive, upload.take())
        ended = Upload(nothing)
        ended.end()
        ended.fail(ClientGone())
        self.assertEqual(drive(ended.take()), b"")

    def test_room_is_told_once_it_is_there_again(self) -> None:
        told: list[bool] = []
        upload = Upload(lambda: told.append(upload.full))
        upload.put(b"x" * (FULL_BYTES - 1))
        self.assertFalse(upload.full)
        drive(upload.take())
        self.assertEqual(told, [])
        upload.put(b"x" * FULL_BYTES)
        self.assertTrue(upload.full)
        drive(upload.take())
        self.assertEqual(told, [False])

    def test_two_threads_lose_nothing(self) -> None:
        room = threading.Event()
        upload = Upload(room.set)
        pieces = [b"%d," % number * 1000 for number in range(2000)]

        def put() -> None:
            for piece in pieces:
                while upload.full:
                    room.wait(TIMEOUT_S)
                    room.clear()
                upload.put(piece)
            upload.end()

        thread = threading.Thread(target=put, name="putter")
        thread.start()
        got = bytearray()
        while True:
            piece = drive(upload.take())
            if not piece:
                break
            got += piece
        thread.join(TIMEOUT_S)
        self.assertEqual(bytes(got), b"".join(pieces))


class EventsTest(unittest.TestCase):
    def test_a_body_passes_as_it_is_and_ends(self) -> None:
        events = PassedEvents()
        self.assertEqual(events.feed(b"\0\xff data: [DONE]\n\n"), b"\0\xff data: [DONE]\n\n")
        self.assertFalse(events.done)
        self.assertEqual(events.end(), b"")
        self.assertTrue(events.done)

    def test_what_a_large_answer_says_of_its_usage_is_found_at_its_ends(self) -> None:
        used, forged, text = b'"usage": {"total_tokens": 9}', b'"usage": {"total_tokens": 0}', b"x" * 10_000
        for body, tokens in (
            (b'{"id": 1, %b, "data": ["%b", {%b}]}' % (used, text, forged), 9),
            (b'{"data": ["%b", {%b}], %b, "id": 1}\n' % (text, forged, used), 9),
            (b'{"data": [{%b}, "%b"], %b}' % (forged, text, used), 9),
            (b'{"data": [{%b}, "%b", {"a": {%b}}]}' % (forged, text, forged), None),
            (b'{"data": "%b \\"usage\\": {}"}' % text, None),
            (b'{"usage": ' + b'{"a":' * 5000 + text, None),
        ):
            for size in (1, 1000, len(body)):
                events = PassedJson()
                self.assertEqual(b"".join(events.feed(body[at : at + size]) for at in range(0, len(body), size)), body)
                events.end()
                self.assertEqual((events.usage or {}).get("prompt_tokens"), tokens, (body[:40], size))

    def stream(self, *types: str, **last: Any) -> bytes:
        told = [{"type": kind, "delta": "some words"} for kind in types] + ([last] if last else [])
        return b"".join(b"event: x\ndata: %b\n\n" % json.dumps(event).encode() for event in told)

    def test_the_last_event_of_responses_tells_what_was_used(self) -> None:
        used = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
        data = self.stream("response.output_text.delta", type="response.completed", response={"usage": used})
        for size in (1, 3, len(data)):
            events = ResponsesEvents()
            pieces = [events.feed(data[at : at + size]) for at in range(0, len(data), size)]
            self.assertEqual(b"".join(pieces), data)
            self.assertTrue(events.finished and events.complete)
            self.assertEqual(events.usage, {"prompt_tokens": 7, "completion_tokens": 5})
            self.assertGreater(events.weight, 0)
            self.assertEqual(events.end(), b"")

    def test_the_events_of_others_tell_what_was_used(self) -> None:
        used, large = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}, "x" * 10_000
        for last, tokens in (
            ({"type": "image_generation.completed", "b64_json": large, "usage": used}, (7, 5)),
            ({"type": "image_edit.completed", "usage": used, "b64_json": large}, (7, 5)),
            ({"type": "transcript.text.done", "text": "a", "logprobs": [{"usage": {}}], "usage": used}, (7, 5)),
            ({"type": "speech.audio.done", "usage": {"total_tokens": 9}}, (9, 0)),
            ({"type": "speech.audio.done", "usage": None}, None),
            ({"type": "transcript.text.done", "text": json.dumps({"usage": used})}, None),
            ({"type": "transcript.text.done", "usage": {"type": "duration", "seconds": 3}}, None),
        ):
            data = self.stream("speech.audio.delta", **last)
            for size in (1, 100, len(data)):
                for body in (data, data.rstrip(b"\n"), data.replace(b"\n", b"\r\n") + b"data: [DONE]\r\n\r\n"):
                    events = UsageEvents()
                    passed = [events.feed(body[at : at + size]) for at in range(0, len(body), size)]
                    self.assertEqual(b"".join(passed) + events.end(), body)
                    told = events.usage and (events.usage["prompt_tokens"], events.usage["completion_tokens"])
                    self.assertEqual(told, tokens, (last["type"], size))

    def test_lines_that_tell_nothing_are_not_looked_at(self) -> None:
        looks = 0

        class Counted(UsageEvents):
            def _look(self) -> None:
                nonlocal looks
                looks += 1
                super()._look()

        events = Counted()
        for data in (
            b"\n" * 65_536,
            b"data: x\n" * 8_192,
            b'data: {"usage": {"input_tokens": 1}}\n' + b"data: x\n" * 8_192,
        ):
            events.feed(data)
        self.assertLess(looks, 6)

    @unittest.skipUnless(importlib.util.find_spec("_tracemalloc"), "memory is not traced here")
    def test_a_large_delta_needs_little_memory(self) -> None:
        import tracemalloc

        for text in ("x" * 300_000, "\n" * 150_000, "\\" * 150_000):
            event = b"data: %b\n" % json.dumps({"type": "x", "delta": text}).encode()
            tracemalloc.start()
            try:
                ResponsesEvents().feed(event)
                peak_bytes = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            self.assertLess(peak_bytes, 12 * len(event))

    def test_a_large_delta_costs_little(self) -> None:
        for text in ("x" * 1_000_000, '\\"' * 500_000, "\n" * 1_000_000):
            event = b"data: %b\n" % json.dumps({"type": "x", "delta": text, "item": "a"}).encode()
            events = ResponsesEvents()
            began_s = time.process_time()
            events.feed(event)
            self.assertLess(time.process_time() - began_s, 0.2)
            self.assertEqual(events.weight, len(text))
        cut = ResponsesEvents()
        cut.feed(b'data: {"delta": "' + b"\\\\\\n" * 10 + b'\\"\n')
        self.assertEqual(cut.weight, 0)

    def test_one_that_ends_before_its_last_event_is_broken(self) -> None:
        said = self.stream("response.output_text.delta") + b'data: {"delta": "\\"type\\":\\"response.completed\\""}\n\n'
        events = ResponsesEvents()
        events.feed(said)
        self.assertRaises(StreamBroken, events.end)

    def test_what_its_client_has_asked_is_no_last_event(self) -> None:
        told = {"metadata": {"type": "response.completed"}, "tools": [{"properties": {"type": "response.failed"}}]}
        for holds in (False, True):
            events = ResponsesEvents(holds)
            begun = self.stream(type="response.created", response=told)
            self.assertEqual(events.feed(begun), begun)
            self.assertFalse(events.finished or events.complete)
            last = self.stream(type="response.completed", response=told)
            self.assertEqual(events.feed(last) + events.end(), last)

    def test_an_event_without_an_end_is_bounded(self) -> None:
        events = ResponsesEvents()
        with self.assertRaises(StreamBroken):
            for _ in range(EVENT_MAX_BYTES // 65536 + 2):
                events.feed(b"x" * 65536)

    def test_usage_is_found_in_the_words_of_each_endpoint(self) -> None:
        for told, want in (
            ({"prompt_tokens": 3, "total_tokens": 3}, (3, 0, False)),
            ({"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}, (3, 4, False)),
            ({"total_tokens": 9}, (9, 0, False)),
            ({"type": "duration", "seconds": 3}, (5, 0, True)),
            ({"prompt_tokens": -1}, (5, 0, True)),
            ({"prompt_tokens": 1 << 70}, (5, 0, True)),
            ([], (5, 0, True)),
        ):
            self.assertEqual(usage_in({"usage": told}, 5)[:3], want, told)
        self.assertEqual(usage_in(None, 5)[:3], (5, 0, True))


if __name__ == "__main__":
    unittest.main()
