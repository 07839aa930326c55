"""An engine's event stream: the rules of contract 9, the same however the bytes arrive."""

from __future__ import annotations

import json
import random
import unittest
from collections.abc import Iterable
from typing import Any, NamedTuple, Optional

from gateway.upstream.kept import KEPT_MAX_CHARS, KEPT_PIECES
from gateway.upstream.sse import CHOICES_KEPT, EventStream, StreamBroken

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def event(value: Any, end: str = "\n\n", spaced: bool = False) -> bytes:
    text = json.dumps(value, separators=(", ", ": ") if spaced else (",", ":"))
    return f"data: {text}{end}".encode()


def delta(text: Optional[str] = None, finish: Optional[str] = None, index: int = 0, **extra: Any) -> dict[str, Any]:
    body = {} if text is None else {"content": text}
    choice = {"index": index, "delta": body, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion.chunk", "choices": [choice], **extra}


DONE = b"data: [DONE]\n\n"
ROLE = {"id": "x", "choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
GOOD = event(ROLE) + event(delta("one ")) + event(delta("two")) + event(delta(finish="stop"))


class Seen(NamedTuple):
    """All that a client and the log see of a stream."""

    lines: bytes
    error: Optional[str]
    done: bool
    usage: Optional[dict[str, Any]]
    weight: int


def run(parts: Iterable[bytes], hide_usage: bool = True, choices: int = 1, ended: bool = True) -> Seen:
    stream = EventStream(hide_usage, choices)
    out = b""
    error: Optional[str] = None
    try:
        for part in parts:
            out += stream.feed(part)
        if ended:
            out += stream.end()
    except StreamBroken as broken:
        out += broken.lines
        error = str(broken)
    return Seen(out, error, stream.done, stream.usage, stream.weight)


def by_line(wire: bytes) -> list[bytes]:
    return wire.splitlines(keepends=True)


def by_event(wire: bytes) -> list[bytes]:
    parts = wire.split(b"\n\n")
    return [part + b"\n\n" for part in parts[:-1]] + [parts[-1]]


def by_byte(wire: bytes) -> list[bytes]:
    return [bytes((byte,)) for byte in wire]


def at_random(wire: bytes, rng: random.Random) -> list[bytes]:
    cuts = sorted(rng.randrange(len(wire) + 1) for _ in range(rng.randrange(8)))
    return [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)])]


class SseTest(unittest.TestCase):
    def seen(self, wire: bytes, hide_usage: bool = True, choices: int = 1) -> Seen:
        """What is seen of `wire`, which must not depend on how it is cut up."""
        whole = run([wire], hide_usage, choices)
        rng = random.Random(len(wire))
        for parts in (by_event(wire), by_line(wire), by_byte(wire), *(at_random(wire, rng) for _ in range(3))):
            self.assertEqual(run(parts, hide_usage, choices), whole)
        return whole

    def events(self, lines: bytes) -> list[str]:
        """The events of an event stream as its standard reads them: data lines up to a blank one."""
        events: list[str] = []
        data: list[str] = []
        for line in lines.decode().splitlines():
            if line.startswith("data:"):
                data.append(line[5:].lstrip(" "))
            elif not line and data:
                events.append("\n".join(data))
                data = []
        self.assertEqual(data, [], "the last event was not ended")
        return events


class BoundedTest(unittest.TestCase):
    """What a stream has its gateway keep does not grow with it."""

    def test_of_choices_so_many_are_kept_at_most(self) -> None:
        stream = EventStream(True, choices=2)
        stream.feed(event(delta("a")))
        for index in range(100):
            choice = {"index": f"{index}{'x' * 1000}", "delta": {}, "finish_reason": "stop"}
            stream.feed(event({"choices": [choice, {**choice, "index": 5 + index}, {**choice, "index": [index]}]}))
        self.assertEqual(len(stream._ended), 101)
        for index in range(100, 1000):
            stream.feed(event(delta("a", index=index)) + event(delta(finish="stop", index=index)))
            stream.feed(event(delta("a", index=-index)))
        self.assertLessEqual(len(stream._numbers), CHOICES_KEPT + 2)
        self.assertLessEqual(len(stream._ended) + len(stream._under_way), CHOICES_KEPT + 2)
        self.assertTrue(all(isinstance(index, int) for index in stream._ended | stream._under_way))

    def test_a_text_to_go_on_from_is_kept_up_to_a_bound_and_in_linear_time(self) -> None:
        stream = EventStream(True, keep_text=True)
        first: object = None
        copies = 0
        for _ in range(2000):
            stream.feed(event(delta("x" * 500)))
            pieces = stream._kept._pieces
            assert pieces is not None
            copies += pieces[0] is not first
            first = pieces[0]
            self.assertLess(len(pieces), KEPT_PIECES)
        self.assertLessEqual(copies, 3)
        self.assertEqual(stream.text, "x" * 1_000_000)
        for _ in range(100):
            stream.feed(event(delta("x" * 500)))
        self.assertIsNone(stream.text)
        self.assertFalse(stream.keeps_text)
        onward = EventStream(True, keep_text=True)
        onward.continue_from(stream)
        self.assertFalse(onward.keeps_text)

    def test_a_stream_that_goes_on_counts_the_earlier_text(self) -> None:
        earlier = EventStream(True, keep_text=True)
        for size in (*[1 << 17] * 7, (1 << 17) - 10):
            earlier.feed(event(delta("x" * size)))
        earlier.feed(b"".join(event(delta("y")) for _ in range(4)))
        onward = EventStream(True, keep_text=True)
        onward.continue_from(earlier)
        self.assertEqual(onward.earlier_weight, KEPT_MAX_CHARS - 6)
        onward.feed(event(delta("123456")))
        self.assertEqual((onward.text or "")[-10:], "yyyy123456")
        onward.feed(event(delta("7")))
        self.assertIsNone(onward.text)


class PassedOnTest(SseTest):
    def test_a_finished_stream_is_passed_on_unchanged(self) -> None:
        seen = self.seen(GOOD + DONE)
        self.assertEqual((seen.lines, seen.error, seen.done), (GOOD + DONE, None, True))

    def test_comments_other_fields_and_unusual_spacing_stay_as_they_are(self) -> None:
        wire = b": hello\n\nevent: message\nid: 7\n" + event(delta("a"), spaced=True) + b"data:" + event(delta("b"))[6:]
        wire += b"retry: 100\n\n" + event(delta(finish="stop")) + b": bye\n\n" + DONE
        self.assertEqual(self.seen(wire).lines, wire)

    def test_cr_lf_lines_stay_as_they_are(self) -> None:
        wire = (GOOD + DONE).replace(b"\n", b"\r\n")
        seen = self.seen(wire)
        self.assertEqual((seen.lines, seen.done), (wire, True))

    def test_lines_leave_as_soon_as_they_are_whole(self) -> None:
        stream = EventStream(True)
        self.assertEqual(stream.feed(event(ROLE)), event(ROLE))
        first = event(delta("one"))
        self.assertEqual(stream.feed(first[:-10]), b"")
        self.assertEqual(stream.feed(first[-10:]), first)
        second = event(delta("two"))
        self.assertEqual(stream.feed(second + second[:20]), second)

    def test_the_first_event_starts_a_stream_and_a_comment_does_not(self) -> None:
        stream = EventStream(True)
        stream.feed(b": loading the model\n\n")
        self.assertFalse(stream.started)
        stream.feed(event(ROLE)[:-2])
        self.assertFalse(stream.started)
        stream.feed(b"\n\n")
        self.assertTrue(stream.started)

    def test_what_follows_done_is_dropped(self) -> None:
        seen = self.seen(GOOD + DONE + event(delta("more")) + b": late\n\n" + DONE)
        self.assertEqual((seen.lines, seen.error), (GOOD + DONE, None))

    def test_text_with_line_separators_of_unicode_is_one_line(self) -> None:
        text = "a\u2028b\u2029c\x85d"
        line = f'data: {{"choices":[{{"delta":{{"content":"{text}"}},"finish_reason":null}}]}}\n\n'.encode()
        wire = event(ROLE) + line + event(delta(finish="stop")) + DONE
        self.assertEqual(self.seen(wire).lines, wire)


class EndTest(SseTest):
    def test_a_finished_stream_without_done_gets_one(self) -> None:
        seen = self.seen(GOOD)
        self.assertEqual((seen.lines, seen.error, seen.done), (GOOD + DONE, None, True))

    def test_a_choice_whose_number_is_none_is_the_first(self) -> None:
        for index in ({}, [], "0", None, 1.5, True):
            with self.subTest(index=index):
                end = delta(finish="stop")
                end["choices"][0]["index"] = index
                self.assertIsNone(self.seen(event(ROLE) + event(end)).error)

    def test_an_added_done_is_an_event_of_its_own(self) -> None:
        for cut in (1, 2):  # without the blank line, and without the line's own end
            events = self.events(self.seen(GOOD[:-cut]).lines)
            self.assertEqual(len(events), 5)
            self.assertEqual(events[-1], "[DONE]")
            self.assertEqual(json.loads(events[-2]), delta(finish="stop"))

    def test_a_done_without_its_blank_line_is_ended(self) -> None:
        for cut in (1, 2):
            self.assertEqual(self.seen((GOOD + DONE)[:-cut]).lines, GOOD + DONE)

    def test_a_stream_without_a_finish_is_broken_and_gets_no_done(self) -> None:
        unfinished = event(ROLE) + event(delta("one"))
        for wire in (unfinished, unfinished + DONE, b"", b": only a comment\n\n", DONE, unfinished + b"data: [DONE]"):
            with self.subTest(wire=wire[-30:]):
                seen = self.seen(wire)
                self.assertIsNotNone(seen.error)
                self.assertNotIn(b"[DONE]", seen.lines)
                self.assertFalse(seen.done)

    def test_every_cut_of_a_stream_before_its_finish_is_broken(self) -> None:
        finish = GOOD.index(b'"stop"')
        for size in range(0, finish + 6, 7):
            seen = run([GOOD[:size]])
            self.assertIsNotNone(seen.error, GOOD[:size])
            self.assertNotIn(b"[DONE]", seen.lines)
            self.assertTrue(GOOD.startswith(seen.lines))

    def test_whole_lines_before_a_break_reach_the_client(self) -> None:
        start = event(ROLE) + event(delta("one"))
        for broken in (b"data: {not json}\n\n", b'data: {"error":{"message":"CUDA"}}\n\n', DONE, b'data: {"cho', b""):
            with self.subTest(broken=broken):
                seen = self.seen(start + broken)
                self.assertIsNotNone(seen.error)
                self.assertEqual(seen.lines, start)

    def test_every_choice_must_finish(self) -> None:
        one = event(delta("a", index=0)) + event(delta("b", index=1)) + event(delta(finish="stop", index=0))
        self.assertIsNotNone(self.seen(one, choices=2).error)
        self.assertIsNotNone(self.seen(one + DONE, choices=2).error)
        both = one + event(delta(finish="length", index=1))
        self.assertEqual(self.seen(both, choices=2).lines, both + DONE)

    def test_a_choice_that_finishes_beside_one_that_goes_on_counts(self) -> None:
        def pair(first: Optional[str], second: Optional[str]) -> bytes:
            choices = [{"index": i, "delta": {}, "finish_reason": f} for i, f in enumerate((first, second))]
            return event({"choices": choices})

        for order in ((("stop", None), (None, "stop")), ((None, "stop"), ("stop", None))):
            wire = pair(None, None) + b"".join(pair(*finishes) for finishes in order) + DONE
            seen = self.seen(wire, choices=2)
            self.assertEqual((seen.lines, seen.error), (wire, None))

    def test_a_finish_named_in_the_text_is_no_finish(self) -> None:
        wire = event(ROLE) + event(delta('"finish_reason":"stop"')) + event(delta('\\","finish_reason":"stop"'))
        self.assertIsNotNone(self.seen(wire).error)


class BrokenTest(SseTest):
    def test_an_error_event_breaks_the_stream_and_says_why(self) -> None:
        for error in ({"message": "out of memory", "code": 500}, "out of memory"):
            seen = self.seen(event(ROLE) + event({"error": error}) + DONE)
            assert seen.error is not None
            self.assertIn("out of memory", seen.error)
            self.assertFalse(seen.done)

    def test_an_error_of_any_size_gives_a_short_message(self) -> None:
        seen = self.seen(event({"error": {"message": "x" * 100_00}}))
        assert seen.error is not None
        self.assertLess(len(seen.error), 1000)

    def test_a_null_error_is_none(self) -> None:
        wire = event(delta("a", error=None)) + event(delta("b", error=None)) + event(delta(finish="stop", error=None))
        self.assertEqual(self.seen(wire).lines, wire + DONE)

    def test_events_that_are_no_json_object_break_the_stream(self) -> None:
        for payload in (b"{", b"[]", b"1", b"null", b"[done]", b"<html>", b"[" * 100_000, b"\xff\xfe"):
            with self.subTest(payload=payload[:10]):
                self.assertIsNotNone(run([b"data: " + payload + b"\n\n"]).error)

    def test_what_is_not_an_event_stream_is_broken_at_its_end(self) -> None:
        for body in (b"<html>\n<body>502</body>\n</html>\n", b"no line end"):
            self.assertIsNotNone(self.seen(body).error)

    def test_a_line_without_an_end_is_bounded(self) -> None:
        stream = EventStream(True)
        with self.assertRaises(StreamBroken):
            for _ in range(100):
                stream.feed(b"x" * 1_000_000)


class UsageTest(SseTest):
    ASKED = event({"id": "x", "choices": [], "usage": USAGE})

    def test_the_usage_event_is_recorded_and_kept_from_a_client_that_did_not_ask(self) -> None:
        seen = self.seen(GOOD + self.ASKED + DONE)
        self.assertEqual((seen.lines, seen.usage), (GOOD + DONE, USAGE))

    def test_a_client_that_asked_gets_it(self) -> None:
        seen = self.seen(GOOD + self.ASKED + DONE, hide_usage=False)
        self.assertEqual((seen.lines, seen.usage), (GOOD + self.ASKED + DONE, USAGE))

    def test_usage_in_every_event_ends_with_the_last(self) -> None:
        growing = [event(delta("a", usage={**USAGE, "completion_tokens": i})) for i in range(1, 3)]
        wire = event(ROLE) + b"".join(growing) + event(delta(finish="stop", usage=USAGE)) + DONE
        self.assertEqual(self.seen(wire).usage, USAGE)

    def test_null_usage_is_no_usage(self) -> None:
        wire = event(ROLE) + event(delta("a", usage=None)) + event(delta(finish="stop", usage=None)) + DONE
        seen = self.seen(wire)
        self.assertEqual((seen.lines, seen.usage), (wire, None))

    def test_a_hidden_usage_event_without_done_behind_it(self) -> None:
        self.assertEqual(self.seen(GOOD + self.ASKED).lines, GOOD + DONE)
        self.assertEqual(self.seen((GOOD + self.ASKED)[:-1]).lines, GOOD + DONE)

    def test_an_event_with_no_choices_and_no_usage_is_passed_on(self) -> None:
        wire = event({"choices": [], "prompt_filter_results": []}) + GOOD + DONE
        self.assertEqual(self.seen(wire).lines, wire)

    def test_generated_text_is_counted_for_estimates(self) -> None:
        self.assertEqual(self.seen(GOOD + DONE).weight, len("one two"))
        completion = b"".join(
            event({"choices": [{"index": 0, "text": text, "finish_reason": finish}]})
            for text, finish in (("ab", None), ("cde", None), ("", "stop"))
        )
        self.assertEqual(self.seen(completion + DONE).weight, 5)

    def test_text_is_counted_whatever_stands_around_it(self) -> None:
        deltas: list[tuple[dict[str, Any], int]] = [
            ({"content": "one", "role": "assistant"}, 3),
            ({"content": "one", "role": None}, 3),
            ({"role": "assistant", "content": "one", "tool_calls": None}, 3),
            ({"content": '"}'}, 2),
            ({"content": "a\\"}, 2),
            ({"content": "", "tool_calls": [{"index": 0, "function": {"arguments": "abcd"}}]}, 4),
            ({"content": None, "tool_calls": [{"index": 0, "function": {"arguments": "abcd"}}]}, 4),
            ({"content": ""}, 0),
            ({}, 0),
        ]
        for body, size in deltas:
            with self.subTest(delta=body):
                middle = event({"choices": [{"index": 0, "delta": body, "finish_reason": None}]})
                self.assertEqual(self.seen(event(ROLE) + middle + event(delta(finish="stop"))).weight, size)


class PropertyTest(SseTest):
    def stream(self, rng: random.Random) -> tuple[bytes, int]:
        """A random well-formed stream that finishes, and its number of choices."""
        choices = rng.randrange(1, 4)
        spaced = rng.random() < 0.3
        texts = ["a", " b", '"', "\\", "\n", "é\u2028", '"finish_reason":null', "data: [DONE]", "", "\U0001f600"]
        out = []
        for _ in range(rng.randrange(0, 12)):
            extra: dict[str, Any] = rng.choice(({}, {}, {"usage": None}, {"error": None}, {"usage": USAGE}))
            out.append(event(delta(rng.choice(texts), index=rng.randrange(choices), **extra), spaced=spaced))
            out.append(rng.choice((b"", b"", b"", b": ping\n\n", b"event: x\n", b"\n")))
        order = list(range(choices))
        rng.shuffle(order)
        out += [event(delta(finish="stop", index=index), spaced=spaced) for index in order]
        out.append(rng.choice((b"", event({"choices": [], "usage": USAGE}))))
        out.append(rng.choice((b"", DONE)))
        wire = b"".join(out)
        return wire.replace(b"\n", rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r"))), choices

    def test_any_good_stream_reads_the_same_however_it_is_cut(self) -> None:
        rng = random.Random(41)
        for _ in range(150):
            wire, choices = self.stream(rng)
            hide = rng.random() < 0.5
            seen = self.seen(wire, hide, choices)
            self.assertIsNone(seen.error, wire)
            self.assertEqual(self.events(seen.lines)[-1], "[DONE]")
            if hide:
                self.assertFalse(any('"usage": {' in e or '"usage":{' in e for e in self.events(seen.lines)))
            else:
                self.assertTrue(seen.lines.startswith(wire))

    def test_a_stream_cut_anywhere_is_broken_or_ends_well_but_nothing_is_invented(self) -> None:
        rng = random.Random(42)
        for _ in range(300):
            wire, choices = self.stream(rng)
            cut = wire[: rng.randrange(len(wire) + 1)]
            seen = run(at_random(cut, rng), False, choices)
            if seen.error is None:
                self.assertEqual(self.events(seen.lines)[-1], "[DONE]")
            else:
                self.assertNotIn(b"\ndata: [DONE]", seen.lines)
                # A last event that only lacks its line's end is one, so that its text is not lost.
                self.assertTrue(wire.startswith((seen.lines, seen.lines[:-1])), (wire, seen.lines))

    def test_damaged_streams_never_raise_anything_else(self) -> None:
        rng = random.Random(43)
        for _ in range(1500):
            wire, choices = self.stream(rng)
            damaged = bytearray(wire)
            for _ in range(rng.randrange(1, 4)):
                if damaged:
                    damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            run(at_random(bytes(damaged), rng), rng.random() < 0.5, choices)


if __name__ == "__main__":
    unittest.main()
