"""An engine's event stream as the standard of such streams reads it, the same however the bytes arrive."""

from __future__ import annotations

import json
import random
import unittest
import unittest.mock
from typing import Any, Optional

from gateway.upstream.eventlines import events_in
from gateway.upstream.sse import EventStream, StreamBroken
from tests.unit.test_sse import DONE, GOOD, ROLE, USAGE, Seen, SseTest, at_random, delta, event, run

FINISH = event(delta(finish="stop"))
ASKED = event({"id": "x", "choices": [], "usage": USAGE})


def in_lines(value: Any, end: str = "\n") -> bytes:
    """An event whose JSON stands in several lines of data."""
    return "".join(f"data: {line}{end}" for line in json.dumps(value, indent=2).splitlines()).encode() + end.encode()


def by_standard(wire: bytes) -> list[tuple[str, str]]:
    """The events in a stream, kind and data, as the standard has them dispatched."""
    text = wire.decode("utf-8", "replace").removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    events, kind, data = [], "", []
    for line in text.split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append((kind, "\n".join(data)))
            kind, data = "", []
        elif name == "data":
            data.append(value)
        elif name == "event":
            kind = value
    return events


class LinesTest(SseTest):
    def assert_as_it_came(self, wire: bytes, texts: str = "one two") -> Seen:
        """It is a good stream, of which the client gets each byte."""
        seen = self.seen(wire)
        self.assertEqual((seen.lines, seen.error, seen.done), (wire, None, True))
        self.assertEqual(seen.weight, len(texts))
        return seen

    def test_lines_end_with_lf_cr_or_both(self) -> None:
        for end in (b"\n", b"\r\n", b"\r"):
            self.assert_as_it_came((GOOD + DONE).replace(b"\n", end))

    def test_line_ends_may_be_mixed(self) -> None:
        rng = random.Random(3)
        for _ in range(30):
            wire = b"".join(
                line.rstrip(b"\n") + rng.choice((b"\n", b"\r\n", b"\r")) for line in (GOOD + FINISH).splitlines(True)
            )
            # A CR before a LF of its own would be one end: the blank lines are what they were.
            if wire.count(b"\r\n\n") or by_standard(wire + b"\n\n") != by_standard(GOOD + FINISH):
                continue
            seen = self.seen(wire + b"\n\n" + DONE)
            self.assertEqual((seen.lines, seen.error), (wire + b"\n\n" + DONE, None))

    def test_a_stream_with_cr_only_flows(self) -> None:
        stream = EventStream(True)
        for part in (event(ROLE), event(delta("one")), b": ping\n\n", FINISH):
            wire = part.replace(b"\n", b"\r")
            self.assertEqual(stream.feed(wire), wire)
        self.assertEqual(stream.feed(b"data: [DONE]\r\r"), b"data: [DONE]\r\r")
        self.assertTrue(stream.done)

    def test_a_cr_lf_cut_between_them_is_one_line_end(self) -> None:
        stream = EventStream(True)
        wire = event(ROLE).replace(b"\n", b"\r\n")
        self.assertEqual(stream.feed(wire[:-3]) + stream.feed(b"\n") + stream.feed(b"\r"), wire[:-1])
        self.assertEqual(stream.feed(b"\n"), b"\n")
        self.assertFalse(stream.inside)
        self.assertEqual(stream.feed(event(delta("one"))), event(delta("one")))

    def test_a_mark_of_the_byte_order_at_the_start_is_passed_on_and_no_part_of_the_first_line(self) -> None:
        mark = "\ufeff".encode()
        for first in (b"", b": hello\n\n", b"\n", b"event: x\n"):
            self.assert_as_it_came(mark + first + GOOD + DONE)
        self.assertIsNotNone(self.seen(GOOD[:-2] + b"\n\n" + mark + b"data: {}\n\n" + mark + DONE[:4]).error or "x")

    def test_the_stream_that_goes_on_after_another_begins_with_no_such_mark(self) -> None:
        earlier = EventStream(True, keep_text=True)
        earlier.feed(event(ROLE) + event(delta("one")))
        onward = EventStream(True, keep_text=True)
        onward.continue_from(earlier)
        lines = onward.feed("\ufeff".encode() + b": hello\n\n" + event(delta(" two")))
        self.assertTrue(lines.startswith(b": hello\n\ndata: {"), lines)

    def test_a_field_without_a_colon_has_no_value(self) -> None:
        for line in (b"data\n\n", b"event\n\n", b"id\n\n", b"retry\n", b"x\n\n", b"data\nevent: x\n\n"):
            self.assert_as_it_came(line + GOOD + line + DONE)

    def test_an_empty_data_event_is_nothing(self) -> None:
        for line in (b"data:\n\n", b"data: \n\n", b"data:\n", b"event: ping\ndata:\n\n", b"data:\ndata:\n\n"):
            self.assert_as_it_came(line + event(ROLE) + line + GOOD + line + DONE)
            stream = EventStream(True)
            stream.feed(line * 3 + b"\n")
            self.assertFalse(stream.started, line)

    def test_several_lines_of_data_are_one_event(self) -> None:
        for end in ("\n", "\r\n", "\r"):
            wire = b"".join(in_lines(e, end) for e in (ROLE, delta("one "), delta("two"), delta(finish="stop")))
            self.assert_as_it_came(wire + DONE.replace(b"\n", end.encode()))

    def test_a_line_of_such_an_event_that_is_json_alone_is_no_event(self) -> None:
        wire = b'data: {"choices": [\ndata: {}\ndata: , 7,\ndata: [],\ndata: null\ndata: ]}\n\n'
        self.assert_as_it_came(wire + GOOD + DONE)

    def test_an_empty_line_of_data_in_one_is_none(self) -> None:
        begin, rest = event(delta("one ")).split(b",", 1)
        wire = b"data\ndata:\n" + begin + b",\ndata:\ndata\ndata: " + rest
        self.assert_as_it_came(wire + event(delta("two")) + FINISH + DONE)

    def test_other_fields_stand_anywhere_in_an_event(self) -> None:
        data = in_lines(delta("one ")).splitlines(keepends=True)
        fields = (b"event: x\n", b"id: 7\n", b": a comment\n", b"retry: 5\n", b"unknown: y\n", b"unknown\n", b"  \n")
        rng = random.Random(5)
        for _ in range(20):
            lines = list(data[:-1])
            for field in fields:
                lines.insert(rng.randrange(len(lines) + 1), field)
            self.assert_as_it_came(b"".join(lines) + b"\n" + event(delta("two")) + FINISH + DONE)

    def test_events_that_only_one_line_end_separates_are_events(self) -> None:
        wire = GOOD.replace(b"\n\n", b"\n")
        stream = EventStream(True)
        self.assertEqual(stream.feed(wire), wire)
        self.assertEqual(stream.events, 4)
        self.assert_as_it_came(wire + b"event: x\n" + event(delta("", finish="stop"))[:-1] + DONE)

    def test_an_event_in_several_lines_is_broken_when_it_has_ended_and_is_no_json(self) -> None:
        start = event(ROLE) + event(delta("one"))
        stream = EventStream(True)
        self.assertEqual(stream.feed(start + b'event: x\ndata: {"a":\n: ping\ndata: 1\n'), start)
        with self.assertRaises(StreamBroken) as broken:
            stream.feed(b"\n")
        self.assertEqual((broken.exception.lines, stream.inside), (b"", False))
        for bad in (b'data: {"a":\ndata: [1\n\n', b'data: {"a":\n', b'data: {"a":\ndata: [DONE]\n\n', b'data: {"a'):
            seen = self.seen(start + bad)
            self.assertEqual((seen.lines, seen.done), (start, False), bad)
            self.assertIn("JSON", seen.error or "")

    def test_what_cannot_begin_an_object_breaks_the_stream_at_once(self) -> None:
        for payload in (b"<html>", b"7", b"[DONE]x", b'"{'):
            stream = EventStream(True)
            with self.assertRaises(StreamBroken):
                stream.feed(b"data: " + payload + b"\n")

    def test_many_lines_of_one_event_take_linear_time(self) -> None:
        judged: list[int] = []

        class Counted(EventStream):
            def _judge(self, payload: bytes, whole: bool) -> Optional[bytes]:
                judged.append(len(payload))
                return super()._judge(payload, whole)

        wire = b'data: {"x": [\n' + b"data: 1,\n" * 20_000 + b'data: 1], "choices": []}\n\n'
        self.assertEqual(Counted(True).feed(wire), wire)
        self.assertEqual(len(judged), 2)
        self.assertLess(sum(judged), 2 * len(wire))

    def test_lines_are_held_back_only_while_their_event_is_undecided(self) -> None:
        stream = EventStream(True)
        self.assertEqual(stream.feed(b": ping\nretry: 5\nunknown: x\n"), b": ping\nretry: 5\nunknown: x\n")
        self.assertEqual(stream.feed(b"event: message\nid: 7\n: between\n"), b"")
        self.assertEqual(stream.feed(event(ROLE)[:-1]), b"event: message\nid: 7\n: between\n" + event(ROLE)[:-1])
        self.assertEqual(stream.feed(b": behind\n"), b": behind\n")
        self.assertEqual(stream.feed(b"id: 8\n"), b"")
        self.assertEqual(stream.feed(b"\n"), b"id: 8\n\n")


class ErrorEventTest(SseTest):
    def assert_broken(self, wire: bytes, lines: bytes, words: str) -> None:
        seen = self.seen(wire)
        self.assertEqual((seen.lines, seen.done), (lines, False), wire)
        self.assertIn(words, seen.error or "")

    def test_an_error_event_breaks_the_stream_with_the_engine_s_words(self) -> None:
        start = event(ROLE) + event(delta("one"))
        for before in (b"", b": hello\n\n", start, start.replace(b"\n", b"\r")):
            for data in (
                b'data: {"error": {"message": "out of memory"}}\n\n',
                b'data: {"message": "out of memory"}\n\n',
                b'data: {"detail": "out of memory"}\n\n',
                b'data: {"code": "out of memory"}\n\n',
                b'data: "out of memory"\n\n',
                b"data: out of memory\n\n",
                b"data: cuda:\ndata: out of memory\ndata: at last\n\n",
                b"data\nid: 7\ndata: out of memory\n\n",
                b'data: {\ndata: "message":\ndata: "out of memory"}\n\n',
                b"data: out of memory",
                b"data: [DONE] out of memory\n\n",
                b"data: [out of memory\n\n" + DONE,
            ):
                for kind in (b"event: error\n", b"event:error\r\n", b"id: 5\nevent: x\nevent: error\n"):
                    self.assert_broken(before + kind + data, before, "out of memory")

    def test_the_field_may_stand_behind_the_data(self) -> None:
        line = b'data: {"message": "out of memory"}\n'
        self.assert_broken(event(ROLE) + line + b"event: error\n\n", event(ROLE) + line, "error")

    def test_an_error_event_that_says_nothing_is_one(self) -> None:
        for data in (b"", b"data\n", b"data: [DONE]\n"):
            self.assert_broken(GOOD + b"event: error\n" + data + b"\n", GOOD, "error")

    def test_the_next_event_is_of_no_kind(self) -> None:
        wire = b"event: error-free\n" + event(ROLE) + b"event: x\n\n" + GOOD + DONE
        self.assertEqual(self.seen(wire).lines, wire)
        separated_by_one = GOOD.replace(b"\n\n", b"\n")
        self.assert_broken(separated_by_one + b"event: error\ndata: no\n\n", separated_by_one, "no")

    def test_a_field_called_error_is_one(self) -> None:
        wire = GOOD + b'error: {"code": 500, "message": "out of memory", "type": "server_error"}\n\n'
        self.assert_broken(wire, GOOD, "out of memory")
        self.assert_broken(b'error:{\ndata: "message": "no memory"}\n\n', b"", "no memory")
        harmless = b"error: 0\nerror\n\n" + GOOD + DONE
        self.assertEqual(self.seen(harmless).lines, harmless)

    def test_an_error_without_a_message_is_told_as_it_is(self) -> None:
        self.assert_broken(event({"error": {"code": 500}}), b"", '{"code": 500}')


class CodingTest(SseTest):
    def test_bytes_that_are_no_utf_8_are_text_and_pass_as_they_came(self) -> None:
        for odd in (b"\xf0\x9f", b"\xed\xa0\x80", b"\xff", b"\xc3"):
            with self.subTest(odd):
                one = event(delta("ODD")).replace(b"ODD", odd)
                wire = event(ROLE) + one + event(delta("two")) + one + FINISH + DONE
                self.assertEqual((self.seen(wire).lines, self.seen(wire).error), (wire, None))
                (read,) = events_in(one)
                self.assertEqual(read["choices"][0]["delta"]["content"], odd.decode("utf-8", "replace"))
                for usage in (b'data: {"usage":%b,', b'data: {"a":"\xff","usage":%b,'):
                    told = one.replace(b"data: {", usage % json.dumps(USAGE).encode())
                    seen = self.seen(event(ROLE) + told + FINISH + DONE)
                    shown = told.replace(b'"usage":%b,' % json.dumps(USAGE).encode(), b"")
                    self.assertEqual(seen.lines, event(ROLE) + shown + FINISH + DONE)


class FinishTest(SseTest):
    NO_REASONS: tuple[Any, ...] = (
        *("", " ", "null", "NULL", "None", "undefined", "unspecified", "FINISH_REASON_UNSPECIFIED", "not_finished"),
        *(False, True, 0, 1, 0.5, {}, [], ["stop"], {"reason": "stop"}),
    )

    def test_only_a_word_that_means_one_finishes_a_choice(self) -> None:
        for reason in self.NO_REASONS:
            with self.subTest(reason=reason):
                wire = event(ROLE) + event(delta("one", reason)) + event(delta(None, reason))
                for end in (b"", DONE):
                    seen = self.seen(wire + end)
                    self.assertIn("without finishing", seen.error or "")
                    self.assertEqual((seen.lines, seen.done), (wire, False))
                whole = wire + FINISH + DONE
                self.assertEqual(self.seen(whole).lines, whole)

    def test_any_other_word_does(self) -> None:
        for reason in ("stop", "length", "tool_calls", "content_filter", "eos_token", "abort", "STOP", "nothing", "x"):
            wire = event(ROLE) + event(delta("one", reason))
            self.assertEqual(self.seen(wire).lines, wire + DONE)

    def test_an_empty_reason_on_every_delta_is_as_cheap_as_none(self) -> None:
        stream = EventStream(True)
        stream.feed(event(ROLE))
        for empty in ('""', ' ""'):
            one = event(delta("one")).replace(b'"finish_reason":null', f'"finish_reason":{empty}'.encode())
            with unittest.mock.patch.object(EventStream, "take", side_effect=AssertionError("parsed")):
                self.assertEqual(stream.feed(one), one)
            self.assertIsNotNone(stream.alike)
            self.assertFalse(stream.finished)

    def test_choices_are_those_seen(self) -> None:
        for choices in (1, 2, 5):
            seen = self.seen(GOOD + DONE, choices=choices)
            self.assertEqual((seen.lines, seen.error, seen.done), (GOOD + DONE, None, True))
            self.assertEqual(self.seen(GOOD, choices=choices).lines, GOOD + DONE)

    def test_a_choice_that_has_begun_must_finish_whoever_asked_for_it(self) -> None:
        begun = event(delta("b", index=1))
        for choices in (1, 2, 3):
            for wire in (GOOD + begun, begun + GOOD, event(ROLE) + event(delta("a")) + begun + begun + GOOD):
                self.assertIsNotNone(self.seen(wire + DONE, choices=choices).error)
                whole = wire + event(delta(finish="length", index=1)) + DONE
                self.assertEqual(self.seen(whole, choices=choices).lines, whole)

    def test_a_choice_without_an_index_is_the_first(self) -> None:
        other = event({"choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"}]})
        bare = [event({"choices": [{"delta": {}, "finish_reason": reason}]}) for reason in (None, "stop")]
        self.assertIsNotNone(self.seen(other + bare[0] + DONE).error)
        self.assertIsNone(self.seen(other + bare[0] + bare[1] + DONE).error)

    def test_a_stream_without_choices_is_none(self) -> None:
        for wire in (event({"choices": []}), ASKED, event({})):
            self.assertIsNotNone(self.seen(wire + DONE).error)
            self.assertIsNotNone(self.seen(wire).error)

    def test_it_is_complete_when_as_many_as_were_asked_for_are_finished(self) -> None:
        stream = EventStream(True, choices=2)
        for wire, finished, complete in (
            (event(ROLE), False, False),
            (FINISH, True, False),
            (event(delta("b", index=1)), False, False),
            (event(delta(finish="stop", index=1)), True, True),
            (ASKED, True, True),
        ):
            stream.feed(wire)
            self.assertEqual((stream.finished, stream.complete), (finished, complete), wire)

    def test_it_is_complete_when_the_engine_tells_its_usage_behind_the_last_reason(self) -> None:
        for hide in (True, False):
            stream = EventStream(hide, choices=3)
            stream.feed(event(ROLE) + ASKED)
            self.assertFalse(stream.complete)
            stream.feed(event(delta(finish="stop", usage=USAGE)))
            self.assertFalse(stream.complete)
            stream.feed(ASKED)
            self.assertTrue(stream.complete)
            stream.feed(event(delta("", finish="stop")))
            self.assertTrue(stream.complete)
            stream.feed(event(delta("b", index=1)) + event(delta(finish="stop", index=1)))
            self.assertFalse(stream.complete)  # until it tells the usage of that, too

    def test_it_is_ended_for_the_client_whatever_has_begun(self) -> None:
        for begun in (b"", b": ping", b"event: error\n", b"data: {", b'data: {"a":\ndata: 1\n', b"id: 7\r", b"da"):
            stream = EventStream(True)
            out = stream.feed(event(ROLE) + FINISH[:-1]) + stream.feed(begun)
            out += stream.finish()
            self.assertEqual(by_standard(out)[-1], ("", "[DONE]"))
            self.assertEqual(len(by_standard(out)), 3)
            self.assertTrue(stream.done)
            self.assertEqual(stream.feed(FINISH + DONE), b"")

    def test_what_ends_an_open_event_ends_it_behind_a_cr_too(self) -> None:
        stream = EventStream(True)
        out = stream.feed(event(ROLE)[:-2] + b"\r") + stream.closing
        self.assertEqual(len(by_standard(out + FINISH)), 2)
        self.assertEqual(len(by_standard(stream.feed(b"event: x\n") + out + FINISH)), 2)


class HiddenUsageTest(SseTest):
    def shown(self, members: dict[str, Any]) -> list[dict[str, Any]]:
        """What a client that did not ask sees of an event before the end."""
        wire = event(ROLE) + event(members) + FINISH + DONE
        seen = self.seen(wire)
        self.assertIsNone(seen.error)
        self.assertEqual(seen.usage, members["usage"] if isinstance(members["usage"], dict) else None)
        self.assertEqual(self.seen(wire, hide_usage=False).lines, wire)
        return [json.loads(text) for text in self.events(seen.lines)[1:-2]]

    def test_an_event_of_nothing_else_is_hidden(self) -> None:
        usual = {"id": "x", "object": "y", "created": 1, "model": "m", "system_fingerprint": "f", "service_tier": None}
        for choices in ({"choices": []}, {"choices": None}, {}):
            for usage in (USAGE, {}, 7, [], "x"):
                self.assertEqual(self.shown({**choices, "usage": usage}), [])
                self.assertEqual(self.shown({**usual, **choices, "usage": usage, "metrics": None}), [])

    def test_whatever_rides_on_it_is_hidden_too(self) -> None:
        for choices in ({"choices": []}, {"choices": None}, {}):
            for rides in ({"timings": {"predicted_ms": 1.5}}, {"x_groq": {"usage": 1}}, {"metrics": []}, {"a": False}):
                members = {"id": "x", **choices, **rides}
                self.assertEqual(self.shown({**members, "usage": USAGE}), [])
                self.assertEqual(self.shown({"usage": USAGE, **members}), [])
                self.assertEqual(self.shown({**members, "usage": None}), [{**members, "usage": None}])

    def test_an_event_with_choices_loses_its_usage_only(self) -> None:
        for reason in (None, "stop"):
            self.assertEqual(self.shown(delta("a", reason, usage=USAGE)), [delta("a", reason)])

    def test_all_other_bytes_stay(self) -> None:
        value = b'{"a":{"b":[1,"}",{}]}, "c":"\\"\xc3\xa9"}'
        for spaced in (b"%b", b" %b", b"\t%b "):
            space = spaced % b""
            key = b'"usage"' + space + b":" + space + value
            rest = b'"id":1e-7,"x":"\\u0075\xc3\xa9\xed\xa0\xbd", "choices": [{"delta":{}}]'
            for whole, left in (
                (b"{" + key + b", " + rest + b"}", b"{" + rest + b"}"),
                (b"{" + rest + b" , " + key + b" }", b"{" + rest + b"}"),
                (b"{" + rest + b"," + key + b',"y":1}', b"{" + rest + b',"y":1}'),
            ):
                seen = self.seen(b"data:  " + whole + b"\r\n\r\n" + GOOD)
                first = seen.lines.split(b"\r\n")[0]
                self.assertEqual(json.loads(first[5:]), json.loads(left))
                self.assertEqual(first.replace(b" }", b"}"), b"data:  " + left.replace(b" }", b"}"))

    def test_a_key_of_that_name_elsewhere_stays(self) -> None:
        for usage in (USAGE, {"usage": 1}):
            nested = delta("usage", x_groq={"usage": USAGE}, why="usage", usage=usage)
            self.assertEqual(self.shown(nested), [{k: v for k, v in nested.items() if k != "usage"}])
        escaped = json.dumps(delta("a", x={"usage": 1}, usage=USAGE)).replace('"usage": {', '"\\u0075sage": {')
        seen = self.seen(f"data: {escaped}\n\n".encode() + FINISH)
        self.assertEqual(json.loads(self.events(seen.lines)[0]), delta("a", x={"usage": 1}))

    def test_its_own_lines_do_not_dangle(self) -> None:
        for lines, kept in (
            (b"event: usage\nid: 7\n%b\n", b""),
            (b"id: 7\n%bid: 8\nevent: y\n\n", b""),
            (b"id: 7\n: kept\n%b\n", b": kept\n\n"),
            (b"id: 7\nretry: 10\n%b\n", b"retry: 10\n\n"),
        ):
            for end in (b"\n", b"\r\n", b"\r"):
                wire = (GOOD + lines % ASKED[:-1] + DONE).replace(b"\n", end)
                seen = self.seen(wire)
                self.assertEqual(seen.lines, (GOOD + kept + DONE).replace(b"\n", end))

    def test_an_event_in_several_lines(self) -> None:
        seen = self.seen(GOOD + in_lines({"choices": [], "usage": USAGE}) + DONE)
        self.assertEqual((seen.lines, seen.usage), (GOOD + DONE, USAGE))
        seen = self.seen(event(ROLE) + b"id: 5\n" + in_lines(delta("a", usage=USAGE)) + FINISH)
        self.assertEqual(json.loads(self.events(seen.lines)[1]), delta("a"))
        self.assertEqual(seen.lines.count(b"id: 5\n"), 1)

    def test_of_events_that_one_line_end_separates_only_its_line_is_hidden(self) -> None:
        wire = GOOD[:-1] + ASKED + DONE
        self.assertEqual(self.seen(wire).lines, GOOD + DONE)

    def test_a_large_event_tells_no_usage_either(self) -> None:
        text = "x" * 300_000
        seen = run([event(ROLE) + event(delta(text, usage=USAGE, x=1)) + FINISH])
        self.assertEqual(json.loads(self.events(seen.lines)[1]), delta(text, x=1))
        self.assertEqual((seen.usage, seen.weight), (USAGE, len(text)))
        seen = run([GOOD + event({"choices": [], "usage": USAGE, "timings": text})])
        self.assertEqual((seen.lines, seen.usage), (GOOD + DONE, USAGE))
        large = {**USAGE, "details": text}
        self.assertEqual(run([GOOD + event({"choices": [], "usage": large})]).lines, GOOD + DONE)

    def test_null_usage_passes_as_it_came_and_is_not_parsed(self) -> None:
        stream = EventStream(True)
        stream.feed(event(ROLE))
        for spaced in (False, True):
            one = event(delta("a", usage=None), spaced=spaced)
            with unittest.mock.patch.object(EventStream, "take", side_effect=AssertionError("parsed")):
                self.assertEqual(stream.feed(one), one)

    def test_null_usage_somewhere_hides_no_other(self) -> None:
        one = delta("a", usage=USAGE)
        one["choices"][0]["usage"] = None
        self.assertEqual(self.shown(one), [{k: v for k, v in one.items() if k != "usage"}])


class NonfiniteTest(SseTest):
    def test_such_a_number_becomes_null_and_all_else_stays(self) -> None:
        for number in (b"NaN", b"Infinity", b"-Infinity"):
            for end in (b"\n", b"\r\n", b"\r"):
                for text in ("a", "a NaN, -Infinity"):
                    one = event(delta(text, logprobs={"x": [1e-7, "NUMBER", text], "y": "NUMBER"}))
                    wire = event(ROLE) + one.replace(b'"NUMBER"', number) + FINISH + DONE
                    shown = event(ROLE) + one.replace(b'"NUMBER"', b"null") + FINISH + DONE
                    seen = self.seen(wire.replace(b"\n", end))
                    self.assertEqual((seen.lines, seen.error), (shown.replace(b"\n", end), None))
                    self.assertEqual(seen.weight, len(text))

    def test_a_text_that_names_one_passes_as_it_came(self) -> None:
        for text in ("NaN", "a NaN.", '":NaN', "Infinity", "-Infinity,", "\\NaN", "N", "I"):
            wire = event(ROLE) + event(delta(text)) + event(delta("b", x=text)) + FINISH + DONE
            self.assertEqual(self.seen(wire).lines, wire)

    def test_in_an_event_of_several_lines_and_beside_usage(self) -> None:
        wire = in_lines(delta("a", x="NUMBER", usage=USAGE)).replace(b'"NUMBER"', b"-Infinity")
        seen = self.seen(event(ROLE) + wire + FINISH)
        self.assertEqual(json.loads(self.events(seen.lines)[1]), delta("a", x=None))

    def test_in_a_large_event(self) -> None:
        one = event(delta("x" * 300_000, x="NUMBER"))
        seen = run([event(ROLE) + one.replace(b'"NUMBER"', b"NaN") + FINISH + DONE])
        self.assertEqual(seen.lines, event(ROLE) + one.replace(b'"NUMBER"', b"null") + FINISH + DONE)

    def test_in_a_stream_that_goes_on_after_another_whose_events_are_written_anew(self) -> None:
        for number in (b"NaN", b"-Infinity", b"1e999"):
            onward = EventStream(True, keep_text=True)
            onward.continue_from(EventStream(True, keep_text=True))
            lines = onward.feed(event(delta("a", x="NUMBER")).replace(b'"NUMBER"', number))
            self.assertEqual(lines.count(b'"x":null'), 1)

    def test_one_instead_of_an_event_is_none(self) -> None:
        for payload in (b"NaN", b"-Infinity", b"[NaN]"):
            self.assertIsNotNone(self.seen(b"data: " + payload + b"\n\n").error)


class WeightTest(SseTest):
    def weight(self, body: dict[str, Any], ascii_only: bool = True) -> int:
        """What a delta weighs, which must not depend on the way it is read."""
        one = {"id": "e", "choices": [{"index": 0, "delta": body, "finish_reason": None}]}
        text = json.dumps(one, ensure_ascii=ascii_only)
        first = event(ROLE)
        wires = [first + f"data: {text}{end}".encode() for end in ("\n\n", "\r\n\r\n")]
        wires.append(first + event({**one, "pad": "x" * 300_000}))
        weights = {self.seen(wire + FINISH).weight for wire in wires[:2]} | {run([wires[2] + FINISH]).weight}
        self.assertEqual(len(weights), 1, body)
        return weights.pop()

    def test_escaped_and_multi_byte_characters_are_one(self) -> None:
        for text, weight in (("a\nb", 3), ('"\\"', 3), ("é", 1), ("grüße", 5), ("\t", 1), ("你好", 8), ("a你", 5)):
            for ascii_only in (True, False):
                self.assertEqual(self.weight({"content": text}, ascii_only), weight, text)

    def test_all_that_is_generated_counts(self) -> None:
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\n"}'}}
        for body, weight in (
            ({"reasoning_content": "abc"}, 3),
            ({"reasoning": "abc"}, 3),
            ({"content": "", "reasoning_content": "abc"}, 3),
            ({"content": "ab", "reasoning_content": "abc"}, 5),
            ({"refusal": "abcd", "content": None}, 4),
            ({"tool_calls": [call]}, 1 + len('{"a": "\\n"}')),
            ({"tool_calls": [call, {**call, "index": 1}]}, 2 * (1 + len('{"a": "\\n"}'))),
            ({"tool_calls": [{"index": 0, "function": {"arguments": '{"content": "x"}'}}]}, len('{"content": "x"}')),
            ({"function_call": {"name": "f", "arguments": "{}"}}, 3),
            ({"content": [{"type": "text", "text": "abc"}, {"type": "text", "text": "d"}]}, 4),
            ({"role": "assistant"}, 0),
        ):
            self.assertEqual(self.weight(body), weight, body)

    def test_what_is_said_twice_counts_once(self) -> None:
        details = [{"type": "reasoning.text", "text": "abc"}]
        for body in (
            {"reasoning": "abc", "reasoning_content": "abc"},
            {"content": "", "reasoning": "abc", "reasoning_details": details},
        ):
            self.assertEqual(self.weight(body), 3)

    def test_log_probabilities_do_not_count(self) -> None:
        token = {
            "token": " hello",
            "bytes": [32, 104],
            "logprob": -0.5,
            "top_logprobs": [{"token": "x", "bytes": None}],
        }
        one = delta("abc")
        one["choices"][0]["logprobs"] = {"content": [token] * 3, "refusal": None}
        self.assertEqual(self.seen(event(ROLE) + event(one) + FINISH).weight, 3)

    def test_the_text_of_completions_counts(self) -> None:
        parts = [event({"choices": [{"index": 0, "text": text, "finish_reason": None}]}) for text in ("é", "\n", "ab")]
        self.assertEqual(self.seen(b"".join(parts) + FINISH).weight, 4)

    def test_every_choice_of_an_event_counts(self) -> None:
        choices = [{"index": i, "delta": {"content": "same"}, "finish_reason": None} for i in range(3)]
        self.assertEqual(self.seen(event(ROLE) + event({"choices": choices})).weight, 12)

    def test_a_delta_like_the_one_before_counts_its_text(self) -> None:
        stream = EventStream(True)
        before, behind = event(delta("abc")).split(b"abc")
        stream.feed(event(ROLE) + event(delta("abc")) + event(delta("abc")))
        stream.feed(before + b"abc" + behind)
        for text, weight in ((b"abc", 3), (b"\\n", 1), ("é".encode(), 1), ("你".encode(), 4), (b"\\u4f60", 4)):
            with self.subTest(text):
                counted = stream.weight
                self.assertEqual(stream.alike, (before, behind))
                stream.feed(before + text + behind)
                self.assertEqual(stream.weight - counted, weight)

    def test_the_text_that_a_stream_goes_on_after_is_weighed(self) -> None:
        earlier = EventStream(True, keep_text=True)
        earlier.feed(event(ROLE) + event(delta("你a")))
        onward = EventStream(True, keep_text=True)
        onward.continue_from(earlier)
        onward.feed(event(ROLE) + event(delta("b")))
        self.assertEqual((onward.text, onward.earlier_weight, onward.weight), ("你ab", 5, 1))


class CutTest(SseTest):
    """Any stream, cut anywhere, gives the same bytes and the same verdict."""

    PIECES: tuple[bytes, ...] = (
        event(ROLE),
        event(delta("one")),
        event(delta("two"), spaced=True),
        event(delta("b", index=1)),
        event(delta("你\n")),
        event(delta("a", "")),
        event(delta("a", usage=None)),
        event(delta("a", usage=USAGE)),
        event(delta("a", x="NUMBER")).replace(b'"NUMBER"', b"-Infinity"),
        event({"choices": [], "usage": USAGE}),
        event({"choices": [], "usage": USAGE, "timings": {"a": 1}}),
        FINISH,
        event(delta(finish="stop", index=1)),
        in_lines(delta("lines")),
        in_lines({"usage": USAGE}),
        in_lines(delta("c", usage=USAGE)),
        b": ping\n\n",
        b": ping\n",
        b"\n",
        b"event: x\n",
        b"id: 7\n",
        b"retry: 5\n",
        b"unknown\n",
        b"data\n",
        b"data:\n\n",
        b"data: \n",
    )
    BAD: tuple[bytes, ...] = (
        b"event: error\n",
        b"data: {\n",
        b"data: {}\n",
        b"data: 7\n\n",
        b'data: {"error": "no"}\n\n',
        b'error: {"message": "no"}\n\n',
        b"data: [DONE]\n",
        b"\r",
        b"\xef\xbb\xbf",
    )

    def test_at_every_byte(self) -> None:
        rng = random.Random(11)
        for number in range(250):
            pieces = rng.choices(self.PIECES, k=rng.randrange(1, 8))
            if rng.random() < 0.4:
                pieces.insert(rng.randrange(len(pieces) + 1), rng.choice(self.BAD))
            pieces += rng.choice(([], [FINISH], [FINISH, DONE], [DONE]))
            wire = b"".join(pieces).replace(b"\n", rng.choice((b"\n", b"\n", b"\r\n", b"\r")))
            if rng.random() < 0.1:
                wire = b"\xef\xbb\xbf" + wire
            if rng.random() < 0.1:
                wire = wire[: rng.randrange(len(wire))]
            hide, choices = rng.random() < 0.7, rng.choice((1, 2))
            whole = run([wire], hide, choices)
            cuts = range(len(wire)) if number % 10 == 0 else rng.sample(range(len(wire)), min(len(wire), 40))
            for cut in cuts:
                self.assertEqual(run([wire[:cut], wire[cut:]], hide, choices), whole, (number, wire, cut))
            self.assertEqual(run([wire[i : i + 1] for i in range(len(wire))], hide, choices), whole, (number, wire))
            self.assertEqual(run(at_random(wire, rng), hide, choices), whole, (number, wire))
            self.check(wire, whole, hide)

    def check(self, wire: bytes, seen: Seen, hide: bool) -> None:
        """The client gets events that the engine sent, in their order, and never one that has not been judged."""
        sent, got = by_standard(wire + b"\n\n"), by_standard(seen.lines + b"\n\n")
        if seen.done:
            self.assertEqual(got[-1][1].splitlines()[-1:], ["[DONE]"], (wire, seen))
        for kind, _ in got:
            self.assertNotEqual(kind, "error", (wire, seen))
        if not hide and wire.count(b"Infinity") == 0:
            lines = [line for _, data in got for line in data.splitlines()][: -1 if seen.done else None]
            self.assertEqual(lines, [line for _, data in sent for line in data.splitlines()][: len(lines)])
        if hide:
            for _, data in got:
                for line in data.splitlines():
                    self.assertNotIn('"usage":{', line)


if __name__ == "__main__":
    unittest.main()
